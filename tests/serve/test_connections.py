"""Connections of clients that are slow, on purpose or not, by sockets."""

import asyncio
import socket
import threading

import pytest
import uvicorn

from foveal.serve.connections import Connection
from foveal.serve.server import settings_of

LARGE = 12 << 20  # more than the buffers of sockets hold
HEAD = b"HTTP/1.1\r\nHost: localhost\r\n"


async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    read = b""
    if scope["path"] == "/read":
        while (message := await receive())["type"] == "http.request":
            read += message["body"]
            if not message["more_body"]:
                break
    body = bytes(LARGE) if scope["path"] == "/large" else b"read %d" % len(read)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture(scope="module")
def server():
    """A server with the settings of the service, but shorter times."""
    with pytest.MonkeyPatch.context() as patch, socket.socket() as listener:
        for name, seconds in (("header_seconds", 0.2), ("rest_seconds", 0.2), ("sending_seconds", 1.0)):
            patch.setattr(Connection, name, seconds)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        settings = settings_of(app)
        settings.lifespan = "off"
        server = uvicorn.Server(settings)
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])))
        thread.start()
        server.address = listener.getsockname()
        yield server
        server.should_exit = True
        thread.join()


@pytest.fixture
def address(server):
    return server.address


def until(connection, part):
    """Receive until a part has come."""
    received = b""
    while part not in received:
        received += connection.recv(1 << 16)


def until_closed(connection):
    """What is received before the other side closes; an error if it does not."""
    connection.settimeout(20)
    received = b""
    try:
        while part := connection.recv(1 << 16):
            received += part
    except ConnectionResetError:
        pass
    return received


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"GET / " + HEAD + b"X: y\r\n"])
def test_a_header_must_end_in_time(address, sent):
    with socket.create_connection(address) as connection:
        connection.sendall(sent)
        assert until_closed(connection) == b""


def test_so_must_that_of_a_further_request(address):
    with socket.create_connection(address) as connection:
        connection.sendall(b"GET / " + HEAD + b"\r\n")
        until(connection, b"read 0")
        connection.sendall(b"GET / HT")
        assert until_closed(connection) == b""


def test_the_rest_of_a_body_that_nobody_reads_must_end_in_time(address):
    with socket.create_connection(address) as connection:
        connection.sendall(b"POST / " + HEAD + b"Content-Length: 1000\r\n\r\n")
        until(connection, b"read 0")
        connection.sendall(b"more")
        assert until_closed(connection) == b""


def test_a_slow_body_is_left_to_the_limits_of_the_request(address):
    with socket.create_connection(address) as connection:
        connection.sendall(b"POST /read " + HEAD + b"Content-Length: 3\r\n\r\n")
        connection.settimeout(3 * Connection.header_seconds)
        for part in b"a", b"b":
            with pytest.raises(TimeoutError):
                connection.recv(1)
            connection.sendall(part)
        connection.sendall(b"c")
        connection.settimeout(20)
        until(connection, b"read 3")


def test_a_header_has_a_largest_size(address):
    with socket.create_connection(address) as connection, pytest.raises(ConnectionError):
        for _ in range(1000):
            connection.sendall(b"X" * (1 << 16))


def test_a_client_that_takes_nothing_is_cut_off(server, address):
    with socket.socket() as idle, socket.socket() as other:
        for connection in (idle, other):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
            connection.connect(address)
            connection.sendall(b"GET /large " + HEAD + b"Connection: close\r\n\r\n")
        assert len(until_closed(other)) > LARGE
        for _ in range(200):
            if not server.server_state.connections:
                break
            threading.Event().wait(0.1)
        assert len(until_closed(idle)) < LARGE

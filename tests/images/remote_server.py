"""The server of `benchmarks/loopback.py` for tests, with the answers of faulty servers."""

from __future__ import annotations

import importlib.util
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_FILE = Path(__file__).parents[2] / "benchmarks" / "loopback.py"
_spec = importlib.util.spec_from_file_location("loopback", _FILE)
assert _spec is not None and _spec.loader is not None
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
Loopback = _module.Loopback

Answer = Callable[[Any, bytes], None]


def range_of(handler: Any) -> tuple[int, int]:
    """(start, end) of the range that is asked for; the end of all is far away."""
    start, end = handler.headers.get("Range", f"bytes=0-{1 << 40}").removeprefix("bytes=").split("-")
    return int(start), int(end) + 1


def partial(handler: Any, content: bytes, **headers: str) -> None:
    """The right answer to a range, with other headers."""
    start, end = range_of(handler)
    end = min(end, len(content))
    given = {"ETag": handler.etag(content), "Content-Range": f"bytes {start}-{end - 1}/{len(content)}"}
    handler.answer(206, content[start:end], given | {name.replace("_", "-"): text for name, text in headers.items()})


def status(code: int) -> Answer:
    return lambda handler, content: handler.answer(code, b"private text of the server")


def reset(handler: Any, content: bytes) -> None:
    """Half of the range, then the connection is reset."""
    start, end = range_of(handler)
    handler.send_response(206)
    handler.send_header("Content-Length", str(end - start))
    handler.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(content)}")
    handler.send_header("ETag", handler.etag(content))
    handler.end_headers()
    handler.wfile.write(content[start : (start + end) // 2])
    handler.wfile.flush()
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True


def shorter(handler: Any, content: bytes) -> None:
    """Fewer bytes than the length that is promised."""
    start, end = range_of(handler)
    end = min(end, len(content))
    given = {"ETag": handler.etag(content), "Content-Range": f"bytes {start}-{end - 1}/{len(content)}"}
    handler.answer(206, content[start : end - 1], given | {"Content-Length": str(end - start)})
    handler.close_connection = True


def understated(handler: Any, content: bytes) -> None:
    """A length that is less than the range."""
    start, end = range_of(handler)
    partial(handler, content, Content_Length=str(min(end, len(content)) - start - 1))
    handler.close_connection = True


def other_range(handler: Any, content: bytes) -> None:
    """The bytes one further than asked for."""
    start, end = range_of(handler)
    end = min(end, len(content) - 1)
    given = {"ETag": handler.etag(content), "Content-Range": f"bytes {start + 1}-{end}/{len(content)}"}
    handler.answer(206, content[start + 1 : end + 1], given)


def changed(handler: Any, content: bytes) -> None:
    """The range of another version, by a server that ignores If-Match."""
    partial(handler, bytes(len(content)), ETag='"another"')


def longer(handler: Any, content: bytes) -> None:
    """The range of a version of another length, with the same ETag."""
    start, end = range_of(handler)
    partial(handler, content, Content_Range=f"bytes {start}-{min(end, len(content)) - 1}/{len(content) + 1}")


def whole(handler: Any, content: bytes) -> None:
    """The whole object, as a server without ranges."""
    handler.answer(200, content)


def slow(handler: Any, content: bytes) -> None:
    """Some bytes, then nothing."""
    handler.send_response(206)
    start, end = range_of(handler)
    handler.send_header("Content-Length", str(end - start))
    handler.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(content)}")
    handler.send_header("ETag", handler.etag(content))
    handler.end_headers()
    handler.wfile.write(content[start : start + 10])
    handler.wfile.flush()
    time.sleep(0.5)
    handler.close_connection = True


def redirect(to: str) -> Answer:
    return lambda handler, content: handler.answer(302, headers={"Location": to})

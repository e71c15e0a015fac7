"""`serve`: start the service and answer until the process is asked to end.

Example:
    >>> check_token("s3cret"), check_token(None)
    ('s3cret', None)
"""

from __future__ import annotations

import errno
import math
import os
import secrets
import socket
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveal.errors import ConfigError

if TYPE_CHECKING:
    import uvicorn

    from foveal.serve.service import Service

TOKEN = "FOVEAL_TOKEN"
"""Environment variable with the token. Options of a command can be read by other users of the machine."""


def serve(
    model: str | Path,
    *,
    images: str | Path | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    batch_size: int = 8,
    wait: float = 5.0,
    queue: int = 64,
    timeout: float = 60.0,
    upload: int = 64,
    pixels: int = 64,
    device: str = "auto",
    precision: str = "32",
    on_start: Callable[[str], None] = print,
) -> None:
    """Serve a run: REST, and a page with a viewer. Returns when the process is asked to end, after the requests that
    were accepted have been answered.

    Args:
        model: run folder.
        images: folder of the images that requests can name; None for uploads only.
        host: address to listen at. With another one than the loopback, clients must send a token: that of
            ``$FOVEAL_TOKEN``, or else a new one, which is in the address that ``on_start`` gets.
        port: port to listen at; 0 for a free one.
        batch_size: most images per batch.
        wait: milliseconds that an image waits for others of its batch; ten times as long while others are being opened.
        queue: most classifications that are accepted and not yet answered.
        timeout: seconds after which a request is refused.
        upload: most megabytes of a request.
        pixels: most megapixels of an uploaded image.
        device, precision: see `foveal.prediction.Predictor`.
        on_start: called with the address of the page when the service answers.

    Raises:
        ConfigError: packages are not installed, the port cannot be used, or an argument is invalid.
        RunError: the run folder cannot be loaded.
    """
    for package in ("fastapi", "uvicorn", "python_multipart", "prometheus_client"):
        if find_spec(package) is None:
            raise ConfigError(f"serve needs {package}, which is not installed; run: pip install 'foveal[serve]'")
    from foveal.host import share_heap
    from foveal.serve.guard import is_loopback
    from foveal.serve.limits import Limits
    from foveal.serve.service import Service

    for name, value, fits in (("wait", wait, 0 <= wait < math.inf), ("timeout", timeout, 0 < timeout < math.inf)):
        if not fits:
            raise ConfigError(f"`{name}` {value:g}: does not fit; give a positive number")
    limits = Limits(
        upload_bytes=upload << 20,
        upload_pixels=pixels * 1_000_000,
        queue=queue,
        seconds=timeout,
        batch_size=batch_size,
        wait=wait / 1000,
    )
    token = check_token(os.environ.get(TOKEN))
    made = token is None and not is_loopback(host)
    token = secrets.token_urlsafe(24) if made else token
    with _listening(host, port) as listener:
        share_heap()
        service = Service(model, images=images, limits=limits, device=device, precision=precision)
        shown = f"[{host}]" if ":" in host else host
        address = f"http://{shown}:{listener.getsockname()[1]}/"
        _answer(service, token, listener, lambda: on_start(f"{address}?token={token}" if made else address))


def check_token(token: str | None) -> str | None:
    """A token from the environment; None if there is none.

    Raises:
        ConfigError: it cannot be sent in a header.
    """
    if not token:
        return None
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise ConfigError(f"{TOKEN}: a token has letters, digits and signs of ASCII only; set another one")
    return token


def _listening(host: str, port: int) -> socket.socket:
    """A socket that listens; before the model is loaded, so that a port in use is reported at once."""
    if not 0 <= port <= 65535:  # getaddrinfo would take another one
        raise ConfigError(f"`port` {port}: is not a port; give one up to 65535, or 0 for a free one")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(1024)
        except BaseException:
            listener.close()
            raise
    except socket.gaierror as error:
        raise ConfigError(f"`host` {host}: is no address of this machine ({error.strerror}); try 127.0.0.1") from error
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL:
            raise ConfigError(f"`host` {host}: is no address of this machine; try 127.0.0.1") from error
        raise ConfigError(f"`port` {port}: cannot be used at {host} ({error.strerror}); choose another one") from error
    return listener


def _answer(service: Service, token: str | None, listener: socket.socket, on_start: Callable[[], None]) -> None:
    import uvicorn

    from foveal.serve.app import make_app

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            on_start()

    Server(settings_of(make_app(service, token=token))).run(sockets=[listener])


def settings_of(app: Any) -> uvicorn.Config:
    """Settings of the server of an application."""
    import uvicorn

    from foveal.serve.connections import Connection

    return uvicorn.Config(
        app,
        http=Connection,
        log_level="warning",
        access_log=False,
        server_header=False,
        date_header=True,
        ws="none",
        timeout_keep_alive=15,
        h11_max_incomplete_event_size=1 << 16,
        proxy_headers=False,
    )

"""A web server on this machine for measurements and tests: ranges, ETags, a delay of each request, faults on request.

python benchmarks/loopback.py FOLDER [--port 8000] [--delay 0.05]
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import http.server
import json
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote


class Loopback:
    """Serves files and bytes in memory, by threads. A file has many addresses: ``a.tif``, ``as/1/a.tif``, ...

    Args:
        folder: folder of the files.
        delay: seconds before each answer.
        port: its port; any free one if 0.

    Attributes:
        contents: bytes in memory, by path.
        fault: called with each handler and its content, before the answer; it answers itself and returns True, or
            returns False. For tests.
        log: (path, range) of each request.
        sent: number of bytes of bodies that were sent.
        rounds: longest chain of requests of which each began after the one before was answered. Meaningful with a
            delay.
    """

    def __init__(self, folder: str | Path = ".", delay: float = 0.0, port: int = 0) -> None:
        self.folder = Path(folder)
        self.delay = delay
        self.contents: dict[str, bytes] = {}
        self.fault: Callable[[Any, bytes], bool] | None = None
        self.log: list[tuple[str, str | None]] = []
        self.sent = 0
        self.rounds = 0
        self.lock = threading.Lock()
        self.server = _Server(("127.0.0.1", port), functools.partial(_Handler, self))
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def clear(self) -> dict[str, int]:
        """Forget the requests. Returns their number, rounds and bytes. A request of ``/-/clear`` does the same."""
        counts = {"requests": len(self.log), "rounds": self.rounds, "bytes": self.sent}
        self.log, self.sent, self.rounds = [], 0, 0
        return counts

    def content(self, path: str) -> tuple[bytes | Path, int] | None:
        """The content of a path, as bytes or a file, and its size."""
        if path in self.contents:
            return self.contents[path], len(self.contents[path])
        file = self.folder / path
        inside = file.resolve().is_relative_to(self.folder.resolve())
        return (file, file.stat().st_size) if inside and file.is_file() else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # otherwise connections that come together wait for a second


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def __init__(self, owner: Loopback, *arguments: Any) -> None:
        self.owner = owner
        super().__init__(*arguments)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        owner, path = self.owner, re.sub(r"^/(as/\d+/)?", "", unquote(self.path.partition("?")[0]))
        if path == "-/clear":
            self.answer(200, json.dumps(owner.clear()).encode())
            owner.sent = 0
            return
        with owner.lock:
            owner.log.append((path, self.headers.get("Range")))
            depth = owner.rounds + 1
        time.sleep(owner.delay)
        with owner.lock:
            owner.rounds = max(owner.rounds, depth)
        self.respond(path)

    def respond(self, path: str) -> None:
        owner = self.owner
        found = owner.content(path)
        if found is None:
            self.answer(404)
            return
        content, size = found
        if owner.fault is not None and isinstance(content, bytes) and owner.fault(self, content):
            return
        etag = self.etag(content)
        if self.headers.get("If-Match") not in (None, etag):
            self.answer(412)
            return
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start, end = (0, size) if span is None else (int(span[1]), min(size, int(span[2] or size - 1) + 1))
        if span is not None and start >= size:
            self.answer(416, headers={"Content-Range": f"bytes */{size}"})
            return
        headers = {"ETag": etag, "Accept-Ranges": "bytes"}
        if span is not None:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        self.answer(200 if span is None else 206, self.part(content, start, end), headers)

    def part(self, content: bytes | Path, start: int, end: int) -> bytes:
        if isinstance(content, bytes):
            return content[start:end]
        with content.open("rb") as file:
            file.seek(start)
            return file.read(end - start)

    def etag(self, content: bytes | Path) -> str:
        if isinstance(content, bytes):
            return f'"{hashlib.sha256(content).hexdigest()[:16]}"'
        stat = content.stat()
        return f'"{stat.st_size:x}-{stat.st_mtime_ns:x}"'

    def answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        """Send an answer. ``headers`` may replace the length of the body."""
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            with self.owner.lock:
                self.owner.sent += len(body)
            try:
                self.wfile.write(body)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--delay", type=float, default=0.0, help="seconds before each answer")
    arguments = parser.parse_args()
    with Loopback(arguments.folder, arguments.delay, arguments.port) as server:
        print(f"{arguments.folder} at {server.url}; Ctrl-C ends it", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()

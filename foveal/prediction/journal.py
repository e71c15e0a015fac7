"""Journals: files of JSON lines with chained checksums.

A line is a checksum of 16 hexadecimal digits, which depends on the value and on all lines before, and a value as JSON.
A killed process may leave an incomplete last line, which is dropped. If another program changed or removed a line, this
line and all that follow are dropped.

Example:
    >>> import tempfile
    >>> journal = Journal(Path(tempfile.mkdtemp()) / "journal")
    >>> journal.restart({"settings": 1})
    >>> journal.append([1, 2])
    >>> with journal.file.open("a") as file:
    ...     _ = file.write("0123456789abcdef [3,")
    >>> list(Journal(journal.file).lines())
    [{'settings': 1}, [1, 2]]
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from foveal.errors import StorageError
from foveal.files import replacing

SYNC_EVERY = 5.0
"""Seconds between two calls of fsync. Lines written before survive a loss of power; all lines survive a killed process.
"""

_logger = logging.getLogger(__name__)


class Journal:
    """A journal. One process may use it at a time. Methods raise an `OSError` if reading or writing fails.

    Args:
        file: the file, which need not exist.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._descriptor = -1
        self._digest, self._end = "", 0  # of the last line known to be complete
        self._synced = time.monotonic()
        with suppress(FileNotFoundError):
            self._open()

    def __bool__(self) -> bool:
        """Whether the file exists."""
        return self._descriptor >= 0

    def lines(self) -> Iterator[Any]:
        """The values of the lines, up to the first with a wrong checksum.

        Raises:
            StorageError: that line has been read or written before by this object.
        """
        digest, end, known = "", 0, self._end
        with self._reading() as file:
            for line in file:
                after = _digest(digest, line[17:-1])
                if line[:17] != f"{after} ".encode() or line[-1:] != b"\n":
                    if end and not known and b"\n" in line + file.read():
                        _logger.warning(
                            "%s: another program changed it; everything after its first %d bytes is done again",
                            self.file,
                            end,
                        )
                    break
                digest, end = after, end + len(line)
                if end > self._end:
                    self._digest, self._end = digest, end
                yield json.loads(line[17:])
        if end < known:
            raise self._changed()

    def append(self, value: Any, sync: bool = False) -> None:
        """Write a line after the last complete one.

        Args:
            value: a value that JSON can represent.
            sync: call fsync.

        Raises:
            StorageError: another program removed lines.
        """
        self._restore()
        size = os.fstat(self._descriptor).st_size
        if size < self._end:
            raise self._changed()
        if size > self._end:
            os.ftruncate(self._descriptor, self._end)
        digest, line = _line(self._digest, value)
        rest = memoryview(line)
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]
        if sync or time.monotonic() - self._synced > SYNC_EVERY:
            os.fsync(self._descriptor)
            self._synced = time.monotonic()
        self._digest, self._end = digest, self._end + len(line)

    def restart(self, value: Any) -> None:
        """Replace the file by one with a single line."""
        digest, line = _line("", value)
        with replacing(self.file) as unfinished:
            unfinished.write_bytes(line)
            self.close()
        self._digest, self._end = digest, len(line)
        self._open()

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1

    def _open(self) -> None:
        self._descriptor = os.open(self.file, os.O_RDWR | os.O_APPEND | getattr(os, "O_BINARY", 0))

    def _reading(self) -> BinaryIO:
        file = os.fdopen(os.dup(self._descriptor), "rb")
        file.seek(0)
        return file

    def _restore(self) -> None:
        """Restore the file from the open descriptor if another program deleted or replaced it."""
        with suppress(FileNotFoundError):
            if os.path.samestat(self.file.stat(), os.fstat(self._descriptor)):
                return
        _logger.warning("%s: another program deleted or replaced it; it is restored", self.file)
        with replacing(self.file) as unfinished, self._reading() as file, unfinished.open("wb") as copy:
            shutil.copyfileobj(file, copy)
        self.close()
        self._open()

    def _changed(self) -> StorageError:
        return StorageError(
            f"{self.file}: another program changed it while this call ran; the rows before the change are safe; "
            "repeat the command, which predicts the others again"
        )


def _line(before: str, value: Any) -> tuple[str, bytes]:
    text = json.dumps(value).encode()
    digest = _digest(before, text)
    return digest, b"%s %s\n" % (digest.encode(), text)


def _digest(before: str, text: bytes) -> str:
    return hashlib.blake2b(before.encode() + text, digest_size=8).hexdigest()

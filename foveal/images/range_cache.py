"""Cache of the bytes of remote objects on the local disk.

Each range that was read is a file. Its folder is named by a digest of the address and the ETag of the object, so a
changed object has another folder, and no name tells an address. A file begins with a checksum of its content. Files
are written under another name and renamed, so several processes may share the cache. Above its limit the files that
were not used for longest are removed.

Example:
    >>> import tempfile
    >>> cache = RangeCache(tempfile.mkdtemp(), limit=1 << 20)
    >>> cache.put("key", 100, b"tile"), cache.get("key", 100, 4), cache.get("key", 100, 5)
    (None, b'tile', None)
"""

from __future__ import annotations

import logging
import os
import re
import threading
import zlib
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from foveal.errors import ConfigError, StorageError
from foveal.files import locked

LIMIT = 10 << 30
"""Default of ``$FOVEAL_REMOTE_CACHE_BYTES``."""

_CHECKED = 64  # the size of the cache is checked after so many parts of the limit were written
_log = logging.getLogger("foveal")


class RangeCache:
    """Files of byte ranges.

    Args:
        folder: where they are; it is created if it does not exist.
        limit: bytes of all files together. 0 for no cache.
    """

    def __init__(self, folder: str | os.PathLike[str], limit: int = LIMIT) -> None:
        self.folder = Path(folder)
        self.limit = limit
        self._written = 0
        self._failed = False

    def get(self, key: str, start: int, length: int) -> bytes | None:
        """Bytes of a range; None if they are not in the cache, or damaged. The cache may be read-only."""
        if not self.limit:
            return None
        file = self._file(key, start, length)
        try:
            with open(file, "rb") as opened:  # noqa: PTH123 (a Path takes longer)
                data = opened.read()
        except OSError:
            return None
        with suppress(OSError):
            os.utime(file)
        found = data[4:]
        return found if len(found) == length and data[:4] == _checksum(found) else None

    def put(self, key: str, start: int, data: bytes) -> None:
        """Keep bytes of an object. A full or read-only disk is no error."""
        if not self.limit or self._failed:
            return
        file = self._file(key, start, len(data))
        unfinished = f"{file}.{os.getpid()}.{threading.get_ident()}"
        try:
            os.makedirs(os.path.dirname(file), exist_ok=True)  # noqa: PTH103, PTH120 (a Path takes longer)
            with open(unfinished, "wb") as opened:  # noqa: PTH123
                opened.write(_checksum(data) + data)
            os.replace(unfinished, file)  # noqa: PTH105
        except FileNotFoundError:
            return  # another process removed the folder to make room
        except OSError as error:
            with suppress(OSError):
                os.unlink(unfinished)  # noqa: PTH108
            self._failed = True
            _log.warning("%s: bytes of remote images are not kept there (%s)", self.folder, error.strerror)
            return
        self._written += len(data)
        if self._written * _CHECKED > self.limit:
            self._written = 0
            self._make_room()

    def _file(self, key: str, start: int, length: int) -> str:
        return f"{self.folder}/{key[:2]}/{key[2:]}/{start:x}-{length:x}"

    def _make_room(self) -> None:
        """Remove the least recently used files above nine tenths of the limit, unless another process does."""
        with suppress(StorageError), locked(self.folder / ".lock", "another process removes files"):
            files = []
            for folder, _, names in os.walk(self.folder):
                for name in names:
                    with suppress(OSError):
                        stat = os.stat(path := f"{folder}/{name}")  # noqa: PTH116
                        files.append((stat.st_mtime_ns, stat.st_size, path))
            total = sum(size for _, size, _ in files)
            for _, size, path in sorted(files):
                if total <= self.limit * 0.9:
                    break
                with suppress(OSError):
                    os.unlink(path)  # noqa: PTH108
                    total -= size
                    os.rmdir(os.path.dirname(path))  # noqa: PTH106, PTH120 (fails unless the folder is empty)


def user_cache() -> RangeCache:
    """The cache of the user: the folder ``remote`` beside that of `foveal.images.cache.default_folder`, with the limit
    ``$FOVEAL_REMOTE_CACHE_BYTES``.

    Raises:
        ConfigError: the variable is not a number of bytes.
    """
    from foveal.images.cache import default_folder

    return _cache(str(default_folder().parent / "remote"), os.environ.get("FOVEAL_REMOTE_CACHE_BYTES", ""))


@lru_cache
def _cache(folder: str, limit: str) -> RangeCache:
    if limit and not re.fullmatch("[0-9]+", limit):
        raise ConfigError(f"FOVEAL_REMOTE_CACHE_BYTES is {limit!r}; set it to a number of bytes such as {LIMIT}, or 0")
    return RangeCache(folder, int(limit) if limit else LIMIT)


def _checksum(data: bytes) -> bytes:
    return zlib.crc32(data).to_bytes(4, "little")

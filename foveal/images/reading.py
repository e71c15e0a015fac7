"""Errors of reading files, and positional reads.

An open file is the file descriptor of a local file, or a `foveal.images.remote.RemoteObject`. Only the functions below
know the difference.

`reading` converts every exception that a damaged file can cause to an `ImageError` with the path of the file.
Programming errors are not converted. `read_at` reads files at a position, also on systems without ``os.pread``.

Example:
    >>> with reading("scan.tif", "cannot be decoded"):
    ...     b"".decode("ascii").index("?")
    Traceback (most recent call last):
    ...
    foveal.errors.ImageError: scan.tif: cannot be decoded (substring not found); the file is damaged or cut short, ...
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterable, Sequence
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, TypeAlias

from foveal.errors import ConfigError, FovealError, ImageError

if TYPE_CHECKING:
    from foveal.images.remote import RemoteObject

OpenFile: TypeAlias = "int | RemoteObject"
"""The file descriptor of a local file, or a remote object."""

_BUGS = (NameError, ImportError, AssertionError)
_WRONG_CALL = re.compile(r"unexpected keyword argument|positional argument|required keyword-only argument")
LIMIT = 1 << 30
_LARGE = 1 << 20  # bytes
_moving = threading.Lock()


class reading:
    """Context manager that converts every exception that a file can cause to an `ImageError`.

    Programming errors are not converted: unknown names, failed imports, failed assertions, calls with wrong arguments.

    Args:
        path: path of the file; the message begins with it.
        what: what failed, for the message.
        advice: what to do, for the message.
    """

    __slots__ = ("advice", "path", "what")

    def __init__(self, path: str, what: str, advice: str = "the file is damaged or cut short, copy it again") -> None:
        self.path, self.what, self.advice = path, what, advice

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not isinstance(error, Exception) or isinstance(error, FovealError) or _is_bug(error):
            return
        if isinstance(error, MemoryError):
            raise ImageError(
                f"{self.path}: {self.what}, since there is not enough memory; free some, or convert it to a tiled TIFF"
            ) from error
        raise ImageError(f"{self.path}: {self.what} ({short(error)}); {self.advice}") from error


def _is_bug(error: Exception) -> bool:
    if isinstance(error, AttributeError):
        return isinstance(error.obj, ModuleType)
    return isinstance(error, _BUGS) or (isinstance(error, TypeError) and bool(_WRONG_CALL.search(str(error))))


def short(error: BaseException) -> str:
    """Message of an error in one line of at most 120 characters; for system errors without number and path."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    text = " ".join(text.split()) or type(error).__name__
    return text if len(text) <= 120 else text[:117] + "..."


def memory_limit() -> int:
    """Memory limit of one decoded image, or one look at it, in bytes: ``$FOVEAL_MAX_BYTES``, or one gibibyte.

    Raises:
        ConfigError: the variable is not a positive integer.
    """
    text = os.environ.get("FOVEAL_MAX_BYTES", "")
    if text and not (text.isdecimal() and int(text) > 0):
        raise ConfigError(f"FOVEAL_MAX_BYTES is {text!r}; set it to a number of bytes such as {LIMIT}, or unset it")
    return int(text) if text else LIMIT


def check_claim(path: str, size: tuple[int, int], cost: int, limit: int) -> None:
    """Check the size in the header of an image before memory is allocated.

    Args:
        path: path of the file.
        size: (height, width) in the header.
        cost: memory of decoding in bytes.
        limit: memory limit in bytes.

    Raises:
        ImageError: the image has no pixels, or ``cost`` exceeds ``limit``.
    """
    height, width = size
    if height < 1 or width < 1:
        raise ImageError(f"{path}: the image is {width} x {height} pixels, with nothing to see; save it again")
    if cost > limit:
        claim = f"claims {width} x {height} pixels, which take {cost:,} bytes, more than the limit of {limit:,}"
        advice = "if it is genuine, convert it to a tiled TIFF with levels, or raise --max-bytes or FOVEAL_MAX_BYTES"
        raise ImageError(f"{path}: {claim}; {advice}")


def size_of(file: OpenFile) -> int:
    """Size of a file in bytes."""
    return os.fstat(file).st_size if isinstance(file, int) else file.size


def open_file(path: str) -> int:
    """Open a local file for reading; return its file descriptor."""
    return os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0))


def read_at(file: OpenFile, length: int, position: int) -> bytes:
    """Read bytes at a position of a file; safe in threads that share the descriptor.

    Raises:
        ValueError: the range goes past the end of the file.
        OSError, OverflowError: the disk fails, or the position is invalid.
        ImageError: a remote file cannot be read.
    """
    # os.pread allocates the requested length, so long ranges are checked first.
    inside = length < _LARGE or position + length <= size_of(file)
    data = read_up_to(file, length, position) if inside else b""
    if len(data) != length:
        raise ValueError("it lies past the end of the file")
    return data


def read_tiles(file: OpenFile, spans: Sequence[tuple[int, int]]) -> list[bytes]:
    """Read several ranges, each a (position, length); those of a remote file in one parallel round.

    Raises:
        ValueError, OSError, OverflowError, ImageError: see `read_at`.
    """
    if isinstance(file, int):
        return [read_at(file, length, position) for position, length in spans]
    return file.fetch(spans)


def read_ahead(file: OpenFile, spans: Iterable[tuple[int, int]]) -> None:
    """Read small parts of the headers of a remote file together, before `read_at` reads them one by one. Nothing is
    read of a local file.

    Raises:
        ImageError: a remote file cannot be read.
    """
    if not isinstance(file, int):
        file.ahead(spans)


def check_inside(file: OpenFile, position: int) -> None:
    """Check a position without reading there.

    Raises:
        ValueError: it is past the end of the file.
    """
    if position > size_of(file):
        raise ValueError("it lies past the end of the file")


def read_up_to(file: OpenFile, length: int, position: int) -> bytes:
    """Like `read_at`, but returns fewer bytes at the end of the file."""
    if not isinstance(file, int):
        return file.read_up_to(length, position)
    if hasattr(os, "pread"):
        return os.pread(file, length, position)
    with _moving:
        os.lseek(file, position, os.SEEK_SET)
        return os.read(file, length)

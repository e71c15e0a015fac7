"""Files that are whole or not there, and locks that end with their process.

A file is written under a temporary name beside it and renamed. A process that is killed in between leaves the temporary file;
the next one that holds the lock of the same place removes it.

Example:
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> with locked(folder / ".lock", "another process writes here"):
    ...     (folder / ".a.txt.123.unfinished").touch()
    ...     remove_unfinished(folder)
    ...     with replacing(folder / "a.txt") as unfinished:
    ...         _ = unfinished.write_text("whole")
    >>> sorted(path.name for path in folder.iterdir())
    ['.lock', 'a.txt']
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from foveal.errors import StorageError

try:
    import fcntl
except ImportError:  # Windows has no such locks; two writers are not noticed there
    fcntl = None  # type: ignore[assignment]

_UNFINISHED = ".unfinished"

_held: set[str] = set()
_guard = threading.Lock()


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A temporary path beside ``file`` that takes its place at the end, or is removed where writing failed.

    What was written is on the disk before it is renamed, so that a loss of power leaves the old file or the new one.
    """
    unfinished = file.with_name(f".{file.name}.{os.getpid()}{_UNFINISHED}")
    try:
        yield unfinished
        descriptor = os.open(unfinished, os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        unfinished.replace(file)
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)


def remove_unfinished(folder: Path, name: str = "*") -> None:
    """Remove temporary files of `replacing` that killed processes left. To be called by who holds the lock of what is written.

    Args:
        folder: where they are; nothing below it is touched.
        name: of the files that were to be written, as a pattern.
    """
    for file in folder.glob(f".{name}.*{_UNFINISHED}"):
        with suppress(OSError):
            file.unlink()


@contextmanager
def locked(file: Path, taken: str, wait: float = 0.0) -> Iterator[None]:
    """Hold a lock that the system releases when the process ends, however it ends.

    Forked children do not hold it. The file stays: removing it would let two processes hold locks of two files of one name.

    Args:
        file: is made where it is missing; it is empty.
        taken: one sentence, for the error.
        wait: seconds to wait for another process.

    Raises:
        StorageError: ``taken``; or the file cannot be made.
    """
    place = os.path.realpath(file)
    deadline = time.monotonic() + wait
    with _guard:  # a process may lock a file again that it has locked already
        if place in _held:
            raise StorageError(taken)
        _held.add(place)
    try:
        try:
            descriptor = os.open(place, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise StorageError(f"{file}: cannot be made ({error.strerror}); check the rights of its folder and the space there") from error
        try:
            while not _lock(descriptor):
                if time.monotonic() >= deadline:
                    raise StorageError(taken)
                time.sleep(0.05)
            yield
        finally:
            os.close(descriptor)
    finally:
        with _guard:
            _held.discard(place)


def _lock(descriptor: int) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP):  # a file system without locks
            return True
        raise
    return True


@contextmanager
def storing(file: str | os.PathLike[str], safe: str) -> Iterator[None]:
    """Say in one sentence that something cannot be written: a full disk, a quota, a limit of file sizes, no permission.

    Args:
        file: what is written.
        safe: what is safe, and how to go on.

    Raises:
        StorageError: instead of an `OSError`.
    """
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error  # other libraries have their own words
        raise StorageError(f"{file}: cannot be written ({reason}); {safe}") from error

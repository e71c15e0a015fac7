"""Atomic writing of files, and locks that are released when their process ends.

A file is written under a temporary name beside it and renamed. A killed process may leave the temporary file; the next
process that holds the lock removes it. The process that holds a lock removes its file.

Example:
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> with locked(folder / ".lock", "another process writes here"):
    ...     (folder / ".a.txt.123.unfinished").touch()
    ...     remove_unfinished(folder)
    ...     with replacing(folder / "a.txt") as unfinished:
    ...         _ = unfinished.write_text("whole")
    >>> sorted(path.name for path in folder.iterdir())
    ['a.txt']
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path

from foveal.errors import StorageError

try:
    import fcntl
except ImportError:  # Windows has no such locks; nothing is locked there
    fcntl = None  # type: ignore[assignment]

_UNFINISHED = ".unfinished"

_held: dict[str, object] = {}  # by paths of files


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``file``. At the end it is renamed to ``file``, or removed after an exception.

    fsync is called before, so that after a loss of power there is the old file or the new one.
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
    """Remove temporary files of `replacing` that killed processes left. The caller holds the lock.

    Args:
        folder: their folder; subfolders are not searched.
        name: names of the files to be written, as a pattern.
    """
    for file in folder.glob(f".{name}.*{_UNFINISHED}"):
        with suppress(OSError):
            file.unlink()


@contextmanager
def locked(file: Path, taken: str, wait: float = 0.0) -> Iterator[None]:
    """Hold a lock. The system releases it when the process ends. Forked children do not hold it.

    Args:
        file: an empty file, which is created if it does not exist, and removed at the end. A file left by a killed
            process is not locked.
        taken: message of the error if another process or thread holds the lock.
        wait: seconds to wait for it.

    Raises:
        StorageError: another process or thread holds the lock, or the file cannot be created.
    """
    place = os.path.realpath(file)
    deadline = time.monotonic() + wait
    while (descriptor := _try_to_lock(place)) is None:
        if time.monotonic() >= deadline:
            raise StorageError(taken)
        time.sleep(0.05)
    try:
        yield
    finally:
        with suppress(OSError):
            Path(place).unlink()
        os.close(descriptor)
        _held.pop(place, None)


def _try_to_lock(place: str) -> int | None:
    """Lock the file. Returns its descriptor; None if another process or thread holds the lock."""
    holder = object()
    if _held.setdefault(place, holder) is not holder:  # a process can lock a file twice
        return None
    descriptor, locks = -1, False
    try:
        descriptor = os.open(place, os.O_RDWR | os.O_CREAT, 0o666)
        locks = _lock(descriptor) and _is_at(descriptor, place)
    except OSError as error:
        raise StorageError(
            f"{Path(place).parent}: cannot be written ({error.strerror}); make space, or choose another folder"
        ) from error
    finally:
        if not locks:
            if descriptor >= 0:
                os.close(descriptor)
            _held.pop(place, None)
    return descriptor if locks else None


def _is_at(descriptor: int, place: str) -> bool:
    """Whether the path still refers to the open file. The previous holder of the lock may have removed it."""
    try:
        return os.path.samestat(os.fstat(descriptor), Path(place).stat())
    except FileNotFoundError:
        return False


def _clear_held() -> None:
    """Clear the locks in a forked child, which does not hold those of its parent."""
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_clear_held)


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
def taking_turns(file: Path, safe: str) -> Iterator[Path]:
    """`replacing` with a lock, for a file that several processes may write. Removes temporary files of killed ones.

    Args:
        file: the file; its folder is created.
        safe: see `storing`.

    Raises:
        StorageError: the file cannot be written, or the lock was not free for a minute.
    """
    with storing(file, safe):
        file.parent.mkdir(parents=True, exist_ok=True)
        with locked(
            file.with_name(f".{file.name}.lock"), f"{file}: another process is writing it; try again later", wait=60
        ):
            remove_unfinished(file.parent, escape(file.name))
            with replacing(file) as unfinished:
                yield unfinished


@contextmanager
def storing(file: str | os.PathLike[str], safe: str = "") -> Iterator[None]:
    """Convert an `OSError`, such as a full disk or a missing permission, into a `StorageError`.

    Args:
        file: the file to be written, for the message.
        safe: which data are safe and how to continue, for the message.

    Raises:
        StorageError: writing fails.
    """
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error  # errors of other libraries have no number
        raise StorageError(f"{file}: cannot be written ({reason}){'; ' * bool(safe)}{safe}") from error

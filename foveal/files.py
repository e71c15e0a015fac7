"""Files that are whole or not there, and locks that end with their process.

A file is written under a temporary name beside it and renamed. A process that is killed in between leaves the temporary
file; the next one that holds the lock of the same place removes it. A file of a lock is removed by who holds it.

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
except ImportError:  # Windows has no such locks; two writers are not noticed there
    fcntl = None  # type: ignore[assignment]

_UNFINISHED = ".unfinished"

_held: dict[str, object] = {}  # by paths of files


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
    """Remove temporary files of `replacing` that killed processes left. To be called by who holds the lock of what is
    written.

    Args:
        folder: where they are; nothing below it is touched.
        name: of the files that were to be written, as a pattern.
    """
    for file in folder.glob(f".{name}.*{_UNFINISHED}"):
        with suppress(OSError):
            file.unlink()


@contextmanager
def locked(file: Path, taken: str, wait: float = 0.0) -> Iterator[None]:
    """Hold a lock that the system releases when the process ends, however it ends. Forked children do not hold it.

    Args:
        file: is made where it is missing, and removed at the end; it is empty. One that a killed process left is not
            locked.
        taken: one sentence, for the error.
        wait: seconds to wait for another process, or another thread of this one.

    Raises:
        StorageError: ``taken``; or the file cannot be made.
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
    """A descriptor of the file, which is locked now; None where somebody else holds it."""
    mine = object()
    if (
        _held.setdefault(place, mine) is not mine
    ):  # the system lets a process lock a file again that it has locked already
        return None
    descriptor, ours = -1, False
    try:
        descriptor = os.open(place, os.O_RDWR | os.O_CREAT, 0o666)
        ours = _lock(descriptor) and _is_at(descriptor, place)
    except OSError as error:
        raise StorageError(
            f"{Path(place).parent}: cannot be written ({error.strerror}); make room, or choose another place"
        ) from error
    finally:
        if not ours:
            if descriptor >= 0:
                os.close(descriptor)
            _held.pop(place, None)
    return descriptor if ours else None


def _is_at(descriptor: int, place: str) -> bool:
    """Whether the open file has the name still: who held the lock before may have removed it."""
    try:
        return os.path.samestat(os.fstat(descriptor), Path(place).stat())
    except FileNotFoundError:
        return False


def _forget() -> None:
    """A forked child does not hold what threads of its parent hold."""
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


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
    """`replacing` for a file that several processes may write: one after another, and the first removes what killed
    ones left.

    Args:
        file: its folder is made.
        safe: as of `storing`.

    Raises:
        StorageError: the file cannot be written, or another process has been writing it for a minute.
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
    """Say in one sentence that something cannot be written: a full disk, a quota, a limit of file sizes, no permission.

    Args:
        file: what is written.
        safe: what is safe, and how to go on; left out where the caller adds it.

    Raises:
        StorageError: instead of an `OSError`.
    """
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error  # other libraries have their own words
        raise StorageError(f"{file}: cannot be written ({reason}){'; ' * bool(safe)}{safe}") from error

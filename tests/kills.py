"""Kill a function at any of its file operations, in a child of this process: what a power cut, the memory killer or
`kill -9` does.

Example:
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> def write() -> None:
    ...     (folder / "a").write_text("whole")
    ...     (folder / "a").rename(folder / "b")
    >>> [(killed(write, k, folder), sorted(file.name for file in folder.iterdir())) for k in (0, 1, 2)]
    [(True, []), (True, ['a']), (False, ['b'])]
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = {
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.truncate",
    "os.utime",
    "os.chmod",
}


def killed(action: Callable[[], Any], at: int, under: Path, before: Callable[[], Any] | None = None) -> bool:
    """Run ``action`` in a forked child that kills itself before the ``at``-th operation that changes files below a
    folder.

    An operation is opening a file for writing, an fsync, or making, renaming or removing a file or folder.

    Args:
        action: what to run; an error in it is a failure.
        at: number of operations to let pass.
        under: the folder.
        before: is run in the child first; its operations are not counted.

    Returns:
        Whether the child was killed; False if it had no more operations.

    Raises:
        AssertionError: the action failed.
    """
    child = os.fork()
    if not child:
        try:
            if before is not None:
                before()
            _count(at, os.path.realpath(under))
            action()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL, status
        return True
    assert os.WEXITSTATUS(status) == 0, "the action failed in the child"
    return False


def _count(at: int, under: str) -> None:
    left, fsync = at, os.fsync

    def pass_by() -> None:
        nonlocal left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1

    def hook(event: str, details: tuple) -> None:
        changes = event in _CHANGES or (event == "open" and isinstance(details[2], int) and details[2] & _WRITING)
        if (
            changes
            and isinstance(details[0], str | bytes | os.PathLike)
            and os.path.realpath(os.fsdecode(details[0])).startswith(under)
        ):
            pass_by()

    def counted(descriptor: int) -> None:
        pass_by()
        fsync(descriptor)

    sys.addaudithook(hook)
    os.fsync = counted  # there is no audit event for it

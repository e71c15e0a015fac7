"""A folder for uploaded images, which is removed with its service. That of a killed service is removed by the next one.

Example:
    >>> uploads = Uploads()
    >>> with uploads.file() as path:
    ...     path.exists(), path.parent == uploads.folder
    (True, True)
    >>> uploads.close()
    >>> path.exists(), uploads.folder.exists()
    (False, False)
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from foveal.errors import StorageError
from foveal.files import locked

_NAME = "foveal-serve-"


class Uploads:
    """A folder that only this user can read.

    Raises:
        StorageError: it cannot be made.
    """

    def __init__(self) -> None:
        place = Path(tempfile.gettempdir())
        _remove_left(place)
        self.folder = place / f"{_NAME}{secrets.token_hex(8)}"
        with ExitStack() as stack:
            # The lock comes first, so that a folder without one has no service.
            stack.enter_context(locked(_lock_of(self.folder), f"{self.folder}: another service uses it; start again"))
            try:
                self.folder.mkdir(mode=0o700)
            except OSError as error:
                raise StorageError(
                    f"{place}: cannot be written ({error.strerror}); make space, or set TMPDIR to another folder"
                ) from error
            stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
            self._stack = stack.pop_all()

    @contextmanager
    def file(self) -> Iterator[Path]:
        """An empty file, which is removed at the end. Its name has nothing of the client's."""
        descriptor, path = tempfile.mkstemp(dir=self.folder)
        os.close(descriptor)
        try:
            yield Path(path)
        finally:
            Path(path).unlink(missing_ok=True)

    def close(self) -> None:
        """Remove the folder."""
        self._stack.close()


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.lock")


def _remove_left(place: Path) -> None:
    """Remove folders of this user's services that were killed."""
    if not hasattr(os, "getuid"):  # Windows has no locks by which to tell them
        return
    for folder in place.glob(f"{_NAME}*"):
        with suppress(OSError, StorageError):
            if folder.lstat().st_uid == os.getuid():
                with locked(_lock_of(folder), "a living service uses it"):
                    shutil.rmtree(folder)

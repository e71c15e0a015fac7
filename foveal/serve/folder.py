"""The folder of images that a service may read.

A request names an image by its path below the folder, with ``/`` between the parts. The name is looked up in a list of
the images of the folder; it is never joined to a path. So a name with ``..``, an absolute path, another encoding or a
NUL is only a name that is not in the list. Links are in the list if they lead to an image below the folder.

Example:
    >>> import tempfile
    >>> top = Path(tempfile.mkdtemp())
    >>> (top / "a.png").touch(); (top / "link.png").symlink_to("/etc/hostname")
    >>> folder = ImageFolder(top)
    >>> folder.names()
    ['a.png']
    >>> folder.find("../a.png")
    Traceback (most recent call last):
    ...
    foveal.serve.limits.Refused: there is no such image below the folder of the service; GET /v1/images lists them
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

from foveal.errors import ConfigError
from foveal.images import as_text, is_zarr, walk
from foveal.serve.limits import Refused

_FRESH = 1.0  # seconds during which the list is not made again


class ImageFolder:
    """The images below a folder, as in training and prediction: see `foveal.images.walk`.

    Args:
        root: the folder; it may be a link.

    Raises:
        ConfigError: there is no such folder, or it cannot be read.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        if not Path(root).is_dir():
            raise ConfigError(f"`images` {root}: there is no such folder; check the path")
        if not os.access(root, os.R_OK | os.X_OK):
            raise ConfigError(f"`images` {root}: the folder cannot be read; change its permissions")
        self.root = os.path.realpath(root)
        self._lock = threading.Lock()
        self._listed = -_FRESH
        self._paths: dict[str, str] = {}

    def names(self) -> list[str]:
        """Names of the images, sorted by folder. New files are found after at most a second."""
        return list(self._list())

    def find(self, name: str) -> Path:
        """Path of an image.

        Raises:
            Refused: there is no image of this name below the folder.
        """
        path = self._paths.get(name) or self._list().get(name)
        if path is None or not self._is_inside(path):
            raise Refused(404, "there is no such image below the folder of the service; GET /v1/images lists them")
        return Path(path)

    def _list(self) -> dict[str, str]:
        with self._lock:
            if time.monotonic() - self._listed >= _FRESH:
                found = (path for path in walk(self.root).paths if self._is_inside(path))
                self._paths = {as_text(os.path.relpath(path, self.root)).replace(os.sep, "/"): path for path in found}
                self._listed = time.monotonic()
            return self._paths

    def _is_inside(self, path: str) -> bool:
        """Whether the path leads to an image below the folder; it may have become a link since it was listed."""
        real = os.path.realpath(path)
        is_image = os.path.isfile(real) or is_zarr(real)  # noqa: PTH113
        return real.startswith(self.root.rstrip(os.sep) + os.sep) and is_image

"""Folders with a file of annotations for each image, written while images are classified.

Example:
    >>> import tempfile, torch, foveal
    >>> model = foveal.create_model("test_resnet", num_classes=2)
    >>> folder = Path(tempfile.mkdtemp()) / "looks"
    >>> with LooksFolder(folder) as looks:
    ...     done = foveal.predict(model, torch.rand(2, 3, 96, 128), device="cpu", sinks=[looks])
    >>> sorted(file.name for file in folder.iterdir())
    ['[0]-ce8be1cc17e9.geojson', '[1]-0e83f30c2319.geojson']
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from foveal.annotations.geojson import UnknownSystem
from foveal.annotations.heatmap import write_heatmap
from foveal.annotations.looks import GEOJSON, GEOPACKAGE, write_looks
from foveal.errors import ConfigError
from foveal.files import locked, remove_unfinished, storing

LONGEST_NAME = 180
"""Longest name of an image that is kept, in bytes; file systems allow 255 for all of a name."""


_logger = logging.getLogger(__name__)


def file_stem(path: str) -> str:
    """Name of the files of an image, without suffix: its own name, and a digest of its path.

    The name depends on the path alone, and images of the same name in several folders have different ones.

    Args:
        path: path of the image as in the column ``path``.
    """
    name = re.sub(r'[\x00-\x1f\x7f<>:"/\\|?*]', "_", Path(path).name)
    name = name.encode()[:LONGEST_NAME].decode(errors="ignore")
    return f"{name}-{hashlib.blake2b(path.encode(), digest_size=6).hexdigest()}"


class _Folder(ABC):
    """A folder of files by image, see `foveal.prediction.output.Sink`. It is locked until it is closed.

    Args:
        folder: the folder; it is created with its parents.

    Raises:
        ConfigError: the path is a file.
        StorageError: it cannot be created, or another call writes to it.
    """

    suffixes: tuple[str, ...]

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.path = Path(folder)
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"{folder}: is a file; give the name of a folder")
        with ExitStack() as stack:
            with storing(self.path, "choose another folder"):
                self.path.mkdir(parents=True, exist_ok=True)
            taken = f"{folder}: another call writes there; wait for its end, or choose another folder"
            stack.enter_context(locked(self.path / f".{type(self).__name__.lower()}.lock", taken))
            for suffix in self.suffixes:
                remove_unfinished(self.path, f"*{suffix}")
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def files(self, path: str) -> list[Path]:
        """The files that an image may have, the last one written last.

        Args:
            path: the column ``path`` of its row.
        """
        return [self.path / f"{file_stem(path)}{suffix}" for suffix in self.suffixes]

    def has(self, path: str) -> bool:
        """Whether an earlier call wrote all files of an image."""
        return self.files(path)[-1].exists()

    def write(self, row: Mapping[str, Any]) -> None:
        """Write the files of an image. Those of an image that failed are removed."""
        files = self.files(row["path"])
        if row["error"]:
            with storing(self.path, "change the permissions"):
                for file in files:
                    file.unlink(missing_ok=True)
            return
        try:
            self._write(row, files)
        except UnknownSystem as error:
            _logger.warning("%s; its files are in pixels", error)
            self._write({**row, "crs": None}, files)

    @abstractmethod
    def _write(self, row: Mapping[str, Any], files: list[Path]) -> None:
        """Write the files of an image that was classified."""


class LooksFolder(_Folder):
    """A GeoJSON file of looks for each image; for rasters with a coordinate system a GeoPackage too.

    See `write_looks`.
    """

    suffixes = (GEOPACKAGE, GEOJSON)

    def _write(self, row: Mapping[str, Any], files: list[Path]) -> None:
        for file in files if row["crs"] is not None else files[1:]:
            write_looks(row, file)


class HeatmapFolder(_Folder):
    """A heatmap for each image. See `write_heatmap`."""

    suffixes = (".tif",)

    def _write(self, row: Mapping[str, Any], files: list[Path]) -> None:
        write_heatmap(row, files[0])

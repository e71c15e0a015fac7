"""Tiles of an image for a viewer, and looks as a model saw them, cut by foveal's own reader.

Level 0 is one pixel; the last level is full resolution, each has twice the size of the one before. Column and row count
tiles of `TILE` pixels from the top left; the last ones are smaller. These are the levels of Deep Zoom.

Example:
    >>> import tempfile
    >>> from PIL import Image
    >>> from foveal.images import open_image
    >>> path = Path(tempfile.mkdtemp(), "a.png"); Image.new("RGB", (600, 300), "red").save(path)
    >>> tiles = Tiles(open_image)
    >>> tiles.describe(path)["levels"], len(tiles.tile(path, 10, 2, 1)) > 100
    (11, True)
"""

from __future__ import annotations

import hashlib
import io
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from foveal.explain.pictures import LONGEST, to_picture
from foveal.images import Pyramid
from foveal.serve.limits import Refused

TILE = 256
"""Side of a tile in pixels."""

_OPEN = 16  # images
_OPEN_BYTES = 1 << 29  # decoded pixels of images without levels


class Tiles:
    """Tiles of images, with caches of encoded tiles and of open images.

    Args:
        open: opens an image.
        cache_bytes: size of the cache of encoded tiles.
    """

    def __init__(self, open: Callable[[Path], Pyramid], cache_bytes: int = 64 << 20) -> None:
        self.open = open
        self._tiles = _Cache(cache_bytes)
        self._images = _Cache(_OPEN_BYTES)
        self._opening = threading.Lock()

    def version(self, path: Path) -> str:
        """A text that differs when the file has changed."""
        stat = path.stat()
        return hashlib.sha256(f"{path} {stat.st_mtime_ns} {stat.st_size} {stat.st_ino}".encode()).hexdigest()[:16]

    def describe(self, path: Path) -> dict[str, Any]:
        """Size of an image in pixels, its levels here and in the file, µm per pixel and version."""
        image = self._image(path)
        height, width = image.size
        return {
            "width": width,
            "height": height,
            "tile": TILE,
            "levels": _last_level(image) + 1,
            "stored_levels": [[w, h] for h, w in image.level_sizes],
            "mpp": image.mpp,
            "version": self.version(path),
        }

    def tile(self, path: Path, level: int, column: int, row: int) -> bytes:
        """A tile as JPEG.

        Raises:
            Refused: there is no such tile.
            ImageError: the file is damaged there.
        """
        key = (self.version(path), level, column, row)
        if (found := self._tiles.get(key)) is None:
            found = _as_jpeg(self._cut(path, level, column, row))
            self._tiles.put(key, found, len(found))
        return found

    def look(
        self, path: Path, box: Sequence[float], size: tuple[int, int], fill: Sequence[float], antialias: bool
    ) -> bytes:
        """A box as a model sees it, as PNG; reduced to `foveal.explain.pictures.LONGEST` px.

        Args:
            path: the image.
            box: (y0, x0, y1, x1) in full-resolution pixels.
            size: (height, width) that the model resamples it to.
            fill: value per channel outside the image.
            antialias: whether the model antialiases.

        Raises:
            ImageError: the file is damaged there.
        """
        shrink = min(1.0, LONGEST / max(size))
        shown = max(1, round(size[0] * shrink)), max(1, round(size[1] * shrink))
        pixels = self._image(path).look(
            np.array([box], dtype=np.float64), shown, fill=torch.tensor(list(fill)), antialias=antialias
        )
        file = io.BytesIO()
        to_picture(pixels[0]).save(file, "PNG")
        return file.getvalue()

    def _cut(self, path: Path, level: int, column: int, row: int) -> torch.Tensor:
        image = self._image(path)
        scale = 2.0 ** (_last_level(image) - min(max(level, 0), _last_level(image)))
        height, width = (math.ceil(n / scale) for n in image.size)
        top, left = row * TILE, column * TILE
        bottom, right = min(top + TILE, height), min(left + TILE, width)
        if not (0 <= level <= _last_level(image) and 0 <= top < height and 0 <= left < width):
            raise Refused(404, "there is no such tile; GET /v1/image gives the size and the levels of the image")
        # The last pixel of a level may cover less than a whole pixel; it is stretched to one.
        box = [top * scale, left * scale, min(bottom * scale, image.size[0]), min(right * scale, image.size[1])]
        return image.look(np.array([box]), (bottom - top, right - left))[0]

    def _image(self, path: Path) -> Pyramid:
        key = self.version(path)
        if (found := self._images.get(key)) is not None:
            return found
        with self._opening:  # an image that is decoded whole is decoded once
            if (found := self._images.get(key)) is None:
                found = self.open(path)
                height, width = found.size
                whole = height * width * found.channels * found.dtype.itemsize if len(found.level_sizes) == 1 else 0
                # An image that leaves the cache closes its file when the last request that uses it has ended.
                self._images.put(key, found, max(whole, _OPEN_BYTES // _OPEN))
        return found


class _Cache:
    """The most recently used values up to a sum of sizes; one larger value is kept alone."""

    def __init__(self, most: int) -> None:
        self.most, self.size = most, 0
        self._held: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> Any:
        with self._lock:
            if key not in self._held:
                return None
            self._held.move_to_end(key)
            return self._held[key][0]

    def put(self, key: Hashable, value: Any, size: int) -> None:
        with self._lock:
            self.size += size - self._held.pop(key, (None, 0))[1]
            self._held[key] = value, size
            while self.size > self.most and len(self._held) > 1:
                self.size -= self._held.popitem(last=False)[1][1]


def _last_level(image: Pyramid) -> int:
    return max(0, math.ceil(math.log2(max(image.size))))


def _as_jpeg(pixels: torch.Tensor) -> bytes:
    import simplejpeg

    return simplejpeg.encode_jpeg(np.asarray(to_picture(pixels)), quality=90, colorspace="RGB", colorsubsampling="444")

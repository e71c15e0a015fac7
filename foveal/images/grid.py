"""Images that another library reads tile by tile: a cache of tiles, and windows made of them.

A subclass of `GridPyramid` reads one tile; the class reads each tile that the windows of a look need once, and keeps a
few, because glimpses overlap.

Example:
    >>> import numpy as np
    >>> class Stripes(GridPyramid):
    ...     def _read_tile(self, level, row, column):
    ...         return np.full((16, 16, 1), row, np.uint8), None
    >>> image = Stripes("stripes", [(64, 40)], 1, np.dtype(np.uint8), tiles=[(16, 16)])
    >>> image.read(0, (15, 0, 17, 2))[..., 0].tolist(), image.tiles_decoded
    ([[0, 0], [1, 1]], 2)
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from foveal.images.pyramid import Pyramid, Stored, Window, without_gaps

_KEPT = 4 << 20  # least size of the cache of decoded tiles of an image, in bytes
_MOST_KEPT = 32 << 20
_ROUNDING = 1.01  # pixels by which the size of a level may differ from that of its stated scale


class GridPyramid(Pyramid):
    """Base class of pyramids whose levels are grids of tiles.

    Args:
        path, stored_sizes, bands, dtype: see `Pyramid`.
        tiles: (height, width) of the tiles of each level.
        scales: (y, x) pixels of each level per full-resolution pixel, as the file states; from the sizes if None. A
            scale that contradicts the sizes is ignored.
        options: other options of `Pyramid`.
    """

    def __init__(
        self,
        path: str,
        stored_sizes: Sequence[tuple[int, int]],
        bands: int,
        dtype: np.dtype,
        *,
        tiles: Sequence[tuple[int, int]],
        scales: Sequence[tuple[float, float]] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(path, stored_sizes, bands, dtype, **options)
        if scales is not None:
            self._scales = [
                tuple(
                    stated if _fits(stated, n, of) else found
                    for stated, found, n, of in zip(*level, size, self.size, strict=True)
                )
                for *level, size in zip(scales, self._scales, self.level_sizes, strict=True)
            ]
        self._grids = tuple(tiles)
        self._kept: OrderedDict[tuple[int, int, int], Stored] = OrderedDict()
        self._kept_bytes = 0
        largest = max(math.prod(tile) for tile in tiles) * bands * self.dtype.itemsize
        self._keep = max(_KEPT, min(4 * largest, _MOST_KEPT))

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_kept": OrderedDict(), "_kept_bytes": 0}

    @abstractmethod
    def _read_tile(self, level: int, row: int, column: int) -> Stored:
        """(h, w, bands) pixels of a tile, at least those inside the level, and their (h, w) alpha or None."""

    def _read_stored(self, requests: list[tuple[int, Window]]) -> list[Stored]:
        users: dict[tuple[int, int, int], list[int]] = defaultdict(list)
        for i, (level, (y0, x0, y1, x1)) in enumerate(requests):
            height, width = self._grids[level]
            for row in range(y0 // height, (y1 - 1) // height + 1):
                for column in range(x0 // width, (x1 - 1) // width + 1):
                    users[level, row, column].append(i)
        shapes = [(y1 - y0, x1 - x0) for _, (y0, x0, y1, x1) in requests]
        pixels = [np.empty((*shape, self._bands), self.dtype) for shape in shapes]
        covers: list[np.ndarray | None] = [None] * len(requests)
        keys = sorted(users)
        for key, (tile, alpha) in zip(keys, self._tiles(keys), strict=True):
            level, row, column = key
            height, width = self._grids[level]
            top, left = row * height, column * width
            for i in users[key]:
                y, x, y_end, x_end = requests[i][1]
                y0, x0, y1, x1 = max(y, top), max(x, left), min(y_end, top + height), min(x_end, left + width)
                target = np.s_[y0 - y : y1 - y, x0 - x : x1 - x]
                source = np.s_[y0 - top : y1 - top, x0 - left : x1 - left]
                pixels[i][target] = tile[source]
                if alpha is not None:
                    if covers[i] is None:
                        covers[i] = np.ones(shapes[i], np.float32)
                    covers[i][target] = alpha[source]  # type: ignore[index]
        return [without_gaps(*stored) for stored in zip(pixels, covers, strict=True)]

    def _tiles(self, keys: Sequence[tuple[int, int, int]]) -> Iterator[Stored]:
        """The tiles of a turn, in this order."""
        return map(self._tile, keys)

    def _tile(self, key: tuple[int, int, int]) -> Stored:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        tile = self._read_tile(*key)
        self._count(0, 1)
        with self._lock:
            if key not in self._kept:
                self._kept[key] = tile
                self._kept_bytes += _held(tile)
            while self._kept_bytes > self._keep:
                self._kept_bytes -= _held(self._kept.popitem(last=False)[1])
        return tile


def _held(tile: Stored) -> int:
    return tile[0].nbytes + (0 if tile[1] is None else tile[1].nbytes)


def _fits(scale: float, level: int, full: int) -> bool:
    """Whether a level of this size may have the scale: its size is rounded, or lacks or repeats a last pixel."""
    return math.isfinite(scale) and abs(full * scale - level) <= _ROUNDING

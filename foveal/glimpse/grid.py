"""Grids of overlapping regions (TNet, scale-space geometry).

Boxes are NumPy arrays (y0, x0, y1, x1) on the host, which makes their arithmetic exact. Cells are numbered row by row.

A square look is divided into ``side`` x ``side`` square cells, spread from edge to edge. The side of a cell is the
share ``region`` of the side of the look. For a look that is not square, or that reaches outside the image, there are
two ways to lay the grid:

`Grid.boxes` divides the box of the look. For a long image, this box is the square around the image, so that cells
contain padding or lie outside the image; or it is the image itself, so that cells have the image's aspect ratio.
Published models use it, and so do models of earlier versions.

`Grid.inside` lays square cells over the part of the look inside the image, of some height and width:

1. A cell covers the same share of the area as in a square look: its side is region * sqrt(height * width), but at most
   the shorter side. It equals the shorter side where the two nearly agree. Cells are larger where a row of ``side``
   cells would otherwise leave gaps along the longer side that a square look does not have.
2. Cells are spread evenly along each axis, from edge to edge. A cell longer than the shorter side is centred there.
3. Cells closer together than half their distance in a square look count as one. One of them is offered to the policy.

Every cell lies inside the image, unless the image is more than ``side`` times as long as wide; then a cell contains the
whole shorter side. In a square look inside the image, the cells are those of `Grid.boxes`. The index of a cell is its
position in the full grid, even where some cells are not offered. Where looks have a fixed physical size, the side of
the cells is given and replaces rule 1; cells may then leave gaps.

The thumbnail of such a model is the whole image, squashed to a square (see `foveal.glimpse.tnet`). The thumbnail loses
the image's proportions, but has no padding and the same shape for all images, which networks of a fixed input size
need. Closer looks keep their proportions. ``benchmarks/shapes.py`` compares these choices.

Example:
    >>> import numpy as np
    >>> Grid(3, 0.5).boxes(np.array([0, 0, 896, 896]))[[0, 4, 8]].tolist()
    [[0.0, 0.0, 448.0, 448.0], [224.0, 224.0, 672.0, 672.0], [448.0, 448.0, 896.0, 896.0]]
    >>> cells, offered = Grid(3, 0.5).inside(np.array([[0, 0, 500, 1260]]), np.array([[500, 1260]]))
    >>> cells[offered].tolist()
    [[0.0, 0.0, 500.0, 500.0], [0.0, 380.0, 500.0, 880.0], [0.0, 760.0, 500.0, 1260.0]]
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from foveal.errors import ConfigError


@dataclass(frozen=True)
class Grid:
    """A ``side`` x ``side`` grid of regions of a box.

    Args:
        side: cells per axis, at least 2.
        region: side of a region as a share of the side of the box, in (0, 1]. The released code calls it "overlap".
        padded: place cells as in the released code. The stride is rounded up, so the first cell may begin before the
            box and the last may end after it. Otherwise cells are spread evenly from edge to edge. In both cases cells
            of a box at whole pixels are at whole pixels.

    Raises:
        ConfigError: ``side`` or ``region`` is out of range.
    """

    side: int
    region: float
    padded: bool = False

    def __post_init__(self) -> None:
        if self.side < 2 or not 0 < self.region <= 1:
            raise ConfigError(
                f"`grid` {self.side}, `region` {self.region}: a grid needs at least 2 cells per axis and a region in"
                " (0, 1]; change them"
            )

    @property
    def cells(self) -> int:
        return self.side**2

    def axis(self, length: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Regions along one axis of ``length`` (...) pixels: starts (..., side) relative to the box, and sizes
        (...)."""
        size = np.maximum(np.round(length * self.region), 1.0)
        if self.padded:
            stride = np.ceil((length - size) / (self.side - 1))
            excess = (self.side - 1) * stride + size - length
            return np.arange(self.side) * stride[..., None] - np.ceil(excess / 2)[..., None], size
        return self._spread(length - size), size

    def boxes(self, parents: np.ndarray) -> np.ndarray:
        """(..., side**2, 4) regions of ``parents`` (..., 4)."""
        parents = np.asarray(parents, dtype=np.float64)
        y, h = self.axis(parents[..., 2] - parents[..., 0])
        x, w = self.axis(parents[..., 3] - parents[..., 1])
        return self._boxes(parents[..., 0, None] + y, parents[..., 1, None] + x, h, w)

    def inside(
        self, parents: np.ndarray, sizes: np.ndarray, given: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Square regions of the parts of boxes that lie inside images; for the rules see the top of this file.

        Args:
            parents: (B, ..., 4) boxes of looks, each overlapping its image.
            sizes: (B, 2) (height, width) of the images.
            given: (B, ...) side of the regions in pixels, which replaces rule 1; rule 1 applies where it is NaN.

        Returns:
            Regions (B, ..., side**2, 4), and whether each is offered, (B, ..., side**2) bool. At least one is offered
            per box.
        """
        parents, sizes = np.asarray(parents, dtype=np.float64), np.asarray(sizes, dtype=np.float64)
        sizes = sizes.reshape(-1, *[1] * (parents.ndim - 2), 2)
        first = np.maximum(parents[..., :2], 0.0)
        extent = np.minimum(parents[..., 2:], sizes) - first
        size = self._size(extent)
        plain = extent[..., 0] == extent[..., 1]
        if given is not None:
            plain, size = plain & np.isnan(given), np.where(np.isnan(given), size, given)
        room = extent - size[..., None]
        # Both ends are distinct if there is any room between them.
        distinct = np.clip(1 + np.floor(room / self._minimum_distance(size)[..., None]), 1 + (room > 0), self.side)
        distinct = np.where(plain[..., None], self.side, distinct).astype(int)
        starts = np.where(distinct[..., None] == 1, np.floor(room / 2)[..., None], self._spread(room))
        y, x = np.moveaxis(first[..., None] + starts, -2, 0)
        rows, columns = np.moveaxis(self._kept[distinct], -2, 0)
        offered = (rows[..., :, None] & columns[..., None, :]).reshape(*rows.shape[:-1], self.cells)
        return self._boxes(y, x, size, size), offered

    def _size(self, extent: np.ndarray) -> np.ndarray:
        """Side (...) of the cells of an area of ``extent`` (..., 2) pixels."""
        shorter, longer = extent.min(-1), extent.max(-1)
        size = np.minimum(np.round(np.sqrt(shorter * longer) * self.region), shorter)
        size = np.maximum(size, np.ceil(longer * min(self.region, 1 / self.side)))
        size = np.where((size < shorter) & (shorter - size < self._minimum_distance(size)), shorter, size)
        return np.where(shorter == longer, np.maximum(np.round(longer * self.region), 1.0), size)

    def _minimum_distance(self, size: np.ndarray) -> np.ndarray:
        """Minimum distance (...) of distinct cells of a size (...): half of that in a square look, and at least one
        pixel."""
        return np.maximum(size * ((1 - self.region) / self.region / (self.side - 1) / 2), 1.0)

    def _spread(self, room: np.ndarray) -> np.ndarray:
        """Starts (..., side) from 0 to ``room`` (...), at whole pixels."""
        return np.round(np.arange(self.side) * (room / (self.side - 1))[..., None])

    def _boxes(self, y: np.ndarray, x: np.ndarray, height: np.ndarray, width: np.ndarray) -> np.ndarray:
        """Boxes (..., side**2, 4) from the starts (..., side) of rows and columns and the size (...) of a cell."""
        y, x = np.repeat(y, self.side, axis=-1), np.concatenate([x] * self.side, axis=-1)
        return np.stack([y, x, y + height[..., None], x + width[..., None]], axis=-1)

    @cached_property
    def _kept(self) -> np.ndarray:
        """(side + 1, side) bool: row n marks the n positions that are offered if only n are distinct."""
        kept = np.zeros((self.side + 1, self.side), dtype=bool)
        kept[1, (self.side - 1) // 2] = True
        for distinct in range(2, self.side + 1):
            kept[distinct, np.round(np.linspace(0, self.side - 1, distinct)).astype(int)] = True
        return kept


def enclosing_square(sizes: np.ndarray) -> np.ndarray:
    """Centred square around each image, at whole pixels: sizes (B, 2) to boxes (B, 4)."""
    sizes = np.asarray(sizes, dtype=np.float64)
    side = sizes.max(1, keepdims=True)
    first = np.floor((sizes - side) / 2)
    return np.concatenate([first, first + side], axis=1)


def whole_image(sizes: np.ndarray) -> np.ndarray:
    """Box of each whole image: sizes (B, 2) to boxes (B, 4)."""
    sizes = np.asarray(sizes, dtype=np.float64)
    return np.concatenate([np.zeros_like(sizes), sizes], axis=1)


def centred_square(sizes: np.ndarray, share: float) -> np.ndarray:
    """Centred square whose side is a share of the image's shorter side: sizes (B, 2) to boxes (B, 4)."""
    sizes = np.asarray(sizes, dtype=np.float64)
    half = share / 2 * sizes.min(1, keepdims=True)
    return np.concatenate([sizes / 2 - half, sizes / 2 + half], axis=1)


def windows(roots: np.ndarray, starts: np.ndarray, window: float, size: int) -> np.ndarray:
    """Square windows of looks, row by row.

    Args:
        roots: (B, 4) boxes of the looks.
        starts: (side,) first pixel of the windows along an axis of a look.
        window: their side.
        size: side of the look.

    Returns:
        (B, side**2, 4) in full-resolution pixels.
    """
    y, x = np.repeat(starts, len(starts)), np.tile(starts, len(starts))
    inside = np.stack([y, x, y + window, x + window], axis=-1)
    scale = (roots[:, 2:] - roots[:, :2]) / size
    return np.tile(roots[:, None, :2], (1, 1, 2)) + inside * np.tile(scale[:, None], (1, 1, 2))


def means(first: np.ndarray, last: np.ndarray, length: int) -> np.ndarray:
    """(..., length) float32 weights that average a row of ``length`` values from ``first`` (...) to ``last`` (...)."""
    edge = np.arange(length)
    overlap = np.minimum(last[..., None], edge + 1) - np.maximum(first[..., None], edge)
    weights = np.clip(overlap, 0, None).astype(np.float32)
    return weights / weights.sum(-1, keepdims=True)


def share_inside(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Share of the area of boxes (B, ..., 4) inside images of ``sizes`` (B, 2): (B, ...), from 0 to 1."""
    sizes = np.asarray(sizes, dtype=np.float64).reshape(-1, *[1] * (boxes.ndim - 2), 2)
    within = np.minimum(boxes[..., 2:], sizes) - np.maximum(boxes[..., :2], 0.0)
    return np.clip(within, 0.0, None).prod(-1) / (boxes[..., 2:] - boxes[..., :2]).prod(-1)


def outside(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Whether boxes (B, ..., 4) lie wholly outside images of ``sizes`` (B, 2): (B, ...) bool."""
    height, width = (sizes[:, i].reshape(-1, *[1] * (boxes.ndim - 2)) for i in (0, 1))
    return (boxes[..., 2] <= 0) | (boxes[..., 3] <= 0) | (boxes[..., 0] >= height) | (boxes[..., 1] >= width)

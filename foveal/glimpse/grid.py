"""Geometry of a grid of overlapping regions inside a box (TNet's scale space; tnet paper, section 3).

Boxes are (y0, x0, y1, x1) NumPy arrays on the host: whoever reads pixels needs them there, they are few, and their
arithmetic is exact. Cells are numbered row by row.

A square look is divided into ``side`` x ``side`` square cells, spread from edge to edge; the side of a cell is the
share ``region`` of the side of the look. There are two ways to lay the grid over a look that is not square, or that
reaches outside the image:

`Grid.boxes` divides the box of the look, whatever lies in it. For a long image this is the square around it, so that
cells are mostly padding or wholly outside; or it is the image itself, so that cells have the image's aspect ratio and
are squashed. Published models do so, and models that were trained before there was the other way.

`Grid.inside` lays square cells over the part of the look that lies in the image, of some height and width:

1. A cell has the share of the area that it has in a square look: its side is region * sqrt(height * width), but not
more than the
   shorter side, and exactly that where it is nearly as long. Only where a row of ``side`` such cells would leave gaps
   along the longer side, which a square look has not, the cell is larger.
2. Cells are spread evenly along each axis, from edge to edge. A cell that is longer than the shorter side is centred
there. 3. Cells that lie closer together than half their distance in a square look count as one: one of them is offered,
the others never are.

So every cell lies wholly in the image, unless the image is more than ``side`` times as long as wide; then it contains
the whole shorter side. In a square look that lies in the image, the cells are those of `Grid.boxes`. The index of a
cell is its row and column in the full grid, also where some cells are not offered. Where the side of the cells is
given, because looks are to have a fixed physical size, it replaces rule 1, and there may be gaps.

The thumbnail of such a model is the whole image, squashed to a square (see `foveal.glimpse.tnet`). This costs its
proportions, but no pixel is spent on padding, looks of all images have one shape, and networks of a fixed input size
can be used. Closer looks are not squashed. ``benchmarks/shapes.py`` compares these choices with others.

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
        side: cells per axis, 2 or more.
        region: side of a region as a share of the box's side, in (0, 1]. The released code calls it "overlap".
        padded: place cells as the released code does, with a stride rounded up, so that the first may begin before the
            box and the last may end after it; otherwise they are spread evenly, from edge to edge. Both keep to whole
            pixels where the box does, which spares a resampling by fractions.
    """

    side: int
    region: float
    padded: bool = False

    def __post_init__(self) -> None:
        if self.side < 2 or not 0 < self.region <= 1:
            raise ConfigError(
                f"grid {self.side}, region {self.region}: a grid needs at least 2 cells per axis and a region in (0, 1]"
                "; change them"
            )

    @property
    def cells(self) -> int:
        return self.side**2

    def axis(self, length: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Starts (..., side), relative to the box, and sizes (...) of the regions along one axis of ``length`` (...)
        pixels."""
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
        """Square regions of the parts of boxes that lie in images; see the top of this file.

        Args:
            parents: (B, ..., 4) boxes of looks, each with a part in its image.
            sizes: (B, 2) (height, width) of the images.
            given: (B, ...) side of the regions in pixels, instead of rule 1; NaN leaves that rule in force.

        Returns:
            (B, ..., side**2, 4) regions, and which of them are offered, (B, ..., side**2) bool, one at least.
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
        # No end is left out, however little is there.
        distinct = np.clip(1 + np.floor(room / self._apart(size)[..., None]), 1 + (room > 0), self.side)
        distinct = np.where(plain[..., None], self.side, distinct).astype(int)
        starts = np.where(distinct[..., None] == 1, np.floor(room / 2)[..., None], self._spread(room))
        y, x = np.moveaxis(first[..., None] + starts, -2, 0)
        rows, columns = np.moveaxis(self._kept[distinct], -2, 0)
        offered = (rows[..., :, None] & columns[..., None, :]).reshape(*rows.shape[:-1], self.cells)
        return self._boxes(y, x, size, size), offered

    def _size(self, extent: np.ndarray) -> np.ndarray:
        """(...) side of the cells of an area of ``extent`` (..., 2) pixels."""
        shorter, longer = extent.min(-1), extent.max(-1)
        size = np.minimum(np.round(np.sqrt(shorter * longer) * self.region), shorter)
        size = np.maximum(size, np.ceil(longer * min(self.region, 1 / self.side)))
        size = np.where((size < shorter) & (shorter - size < self._apart(size)), shorter, size)
        return np.where(shorter == longer, np.maximum(np.round(longer * self.region), 1.0), size)

    def _apart(self, size: np.ndarray) -> np.ndarray:
        """(...) least distance of distinct cells of a size (...): half of what they have in a square look, and one
        pixel at least."""
        return np.maximum(size * ((1 - self.region) / self.region / (self.side - 1) / 2), 1.0)

    def _spread(self, room: np.ndarray) -> np.ndarray:
        """(..., side) starts from 0 to ``room`` (...), at whole pixels."""
        return np.round(np.arange(self.side) * (room / (self.side - 1))[..., None])

    def _boxes(self, y: np.ndarray, x: np.ndarray, height: np.ndarray, width: np.ndarray) -> np.ndarray:
        """(..., side**2, 4) from the starts (..., side) of rows and columns, and the size (...) of a cell."""
        y, x = np.repeat(y, self.side, axis=-1), np.concatenate([x] * self.side, axis=-1)
        return np.stack([y, x, y + height[..., None], x + width[..., None]], axis=-1)

    @cached_property
    def _kept(self) -> np.ndarray:
        """(side + 1, side) bool, which rows stand for all where only so many are distinct."""
        kept = np.zeros((self.side + 1, self.side), dtype=bool)
        kept[1, (self.side - 1) // 2] = True
        for distinct in range(2, self.side + 1):
            kept[distinct, np.round(np.linspace(0, self.side - 1, distinct)).astype(int)] = True
        return kept


def share_inside(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Share of the area of ``boxes`` (B, ..., 4) that lies in images of ``sizes`` (B, 2): (B, ...), 0 to 1."""
    sizes = np.asarray(sizes, dtype=np.float64).reshape(-1, *[1] * (boxes.ndim - 2), 2)
    within = np.minimum(boxes[..., 2:], sizes) - np.maximum(boxes[..., :2], 0.0)
    return np.clip(within, 0.0, None).prod(-1) / (boxes[..., 2:] - boxes[..., :2]).prod(-1)


def outside(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Which of ``boxes`` (B, ..., 4) lie wholly outside images of ``sizes`` (B, 2): bool (B, ...)."""
    height, width = (sizes[:, i].reshape(-1, *[1] * (boxes.ndim - 2)) for i in (0, 1))
    return (boxes[..., 2] <= 0) | (boxes[..., 3] <= 0) | (boxes[..., 0] >= height) | (boxes[..., 1] >= width)

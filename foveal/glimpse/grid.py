"""Geometry of a grid of overlapping regions inside a box (TNet's scale space; tnet paper, section 3).

Boxes are (y0, x0, y1, x1) NumPy arrays on the host: whoever reads pixels needs them there, they are few, and their
arithmetic is exact. Cells are numbered row by row.

Example:
    >>> import numpy as np
    >>> Grid(3, 0.5).boxes(np.array([0, 0, 896, 896]))[[0, 4, 8]].tolist()
    [[0.0, 0.0, 448.0, 448.0], [224.0, 224.0, 672.0, 672.0], [448.0, 448.0, 896.0, 896.0]]
"""

from __future__ import annotations

from dataclasses import dataclass

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
                f"grid {self.side}, region {self.region}: a grid needs at least 2 cells per axis and a region in (0, 1]; change them"
            )

    @property
    def cells(self) -> int:
        return self.side**2

    def axis(self, length: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Starts (..., side), relative to the box, and sizes (...) of the regions along one axis of ``length`` (...) pixels."""
        size = np.maximum(np.round(length * self.region), 1.0)
        steps = np.arange(self.side)
        if self.padded:
            stride = np.ceil((length - size) / (self.side - 1))
            excess = (self.side - 1) * stride + size - length
            return steps * stride[..., None] - np.ceil(excess / 2)[..., None], size
        return np.round(steps * ((length - size) / (self.side - 1))[..., None]), size

    def boxes(self, parents: np.ndarray) -> np.ndarray:
        """(..., side**2, 4) regions of ``parents`` (..., 4)."""
        parents = np.asarray(parents, dtype=np.float64)
        y, h = self.axis(parents[..., 2] - parents[..., 0])
        x, w = self.axis(parents[..., 3] - parents[..., 1])
        y0 = np.repeat(parents[..., 0, None] + y, self.side, axis=-1)
        x0 = np.concatenate([parents[..., 1, None] + x] * self.side, axis=-1)
        return np.stack([y0, x0, y0 + h[..., None], x0 + w[..., None]], axis=-1)


def outside(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Which of ``boxes`` (B, ..., 4) lie wholly outside images of ``sizes`` (B, 2): bool (B, ...)."""
    height, width = (sizes[:, i].reshape(-1, *[1] * (boxes.ndim - 2)) for i in (0, 1))
    return (boxes[..., 2] <= 0) | (boxes[..., 3] <= 0) | (boxes[..., 0] >= height) | (boxes[..., 1] >= width)

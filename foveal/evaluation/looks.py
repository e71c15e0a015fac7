"""How much of an image the chosen looks cover, and how far apart they are.

Coverage is the share of an image's pixels inside the union of the boxes that a model chose (Saccader, Elsayed et al.
2019, arXiv 1908.07644). Overlaps count once, areas outside the image do not count, and the first look is not chosen.

Example:
    >>> import numpy as np
    >>> corners = np.array([[[0, 0, 77, 77], [0, 0, 77, 77]], [[-8, 0, 8, 32], [0, 0, 0, 0]]])
    >>> [round(float(share), 6) for share in coverage(corners, np.array([[224, 224], [16, 32]]))]
    [0.118164, 0.5]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from foveal.classification import Glimpses

_CELLS = 1 << 22  # of the grids that are filled together


class Looks(NamedTuple):
    """The looks at each of N images beyond the first.

    Attributes:
        number: (N,) how many there were.
        coverage: (N,) share of the image inside their boxes.
        diversity: (N,) mean distance between two of them, see `diversity`; NaN with fewer than two.
    """

    number: np.ndarray
    coverage: np.ndarray
    diversity: np.ndarray

    @classmethod
    def of(cls, boxes: np.ndarray, sizes: np.ndarray) -> Looks:
        """From (N, K, 4) chosen boxes in images of sizes (N, 2)."""
        return cls((~np.isnan(boxes[..., 0])).sum(1), coverage(boxes, sizes), diversity(boxes, sizes))

    @classmethod
    def cat(cls, parts: Sequence[Looks]) -> Looks:
        """The looks at the images of all parts."""
        return cls(*map(np.concatenate, zip(*parts, strict=True)))

    def take(self, rows: np.ndarray) -> Looks:
        """The looks at some of the images, by index or mask."""
        return Looks(*(column[rows] for column in self))

    @property
    def mean_diversity(self) -> float | None:
        """Mean over the images with two looks or more; None where there are none."""
        return None if np.isnan(self.diversity).all() else float(np.nanmean(self.diversity))


def chosen_boxes(glimpses: Glimpses, images: int) -> np.ndarray:
    """(B, N, 4) boxes of the looks beyond the first, in the order chosen; NaN at the end of images with fewer."""
    chosen = glimpses.level > 1
    which, box = glimpses.image[chosen], glimpses.box[chosen]
    count = np.bincount(which, minlength=images)
    boxes = np.full((images, count.max(initial=0), 4), np.nan)
    boxes[np.arange(boxes.shape[1]) < count[:, None]] = box
    return boxes


def coverage(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Share of each image inside the union of its boxes.

    Exact, by compression of coordinates: the edges of the boxes cut an image into a grid of rectangles, and each of
        them is
    inside a box or outside all of them. Takes O(N log N + N^2) time for each image, about 10 ms for 400 boxes.

    Args:
        boxes: (B, N, 4) (y0, x0, y1, x1), half-open; floats, may reach outside; NaN for none.
        sizes: (B, 2) (height, width).

    Returns:
        (B,) float64, 0 to 1.
    """
    images, count = boxes.shape[:2]
    sizes = np.asarray(sizes, dtype=np.float64)
    if not boxes.size:
        return np.zeros(images)
    clipped = np.clip(np.nan_to_num(boxes), 0, np.tile(sizes, 2)[:, None])
    area = [
        _union(clipped[i : i + step]) for step in [max(1, _CELLS // (2 * count) ** 2)] for i in range(0, images, step)
    ]
    return np.concatenate(area) / sizes.prod(1)


def _union(boxes: np.ndarray) -> np.ndarray:
    """(B,) area of the union of (B, N, 4) boxes."""
    images, count = boxes.shape[:2]
    y, x = (np.concatenate([boxes[..., axis], boxes[..., axis + 2]], 1) for axis in (0, 1))
    # Equal coordinates get different places, with empty rectangles between them, so that no two corners coincide.
    (top, bottom), (left, right) = (
        np.split(values.argsort(1, kind="stable").argsort(1), 2, axis=1) for values in (y, x)
    )
    inside = np.zeros((images, 2 * count, 2 * count), np.int32)
    i = np.arange(images)[:, None]
    inside[i, top, left] = inside[i, bottom, right] = 1
    inside[i, top, right] = inside[i, bottom, left] = -1
    inside.cumsum(1, out=inside).cumsum(2, out=inside)
    height, width = (np.diff(np.sort(values, 1)) for values in (y, x))
    return (((inside[:, :-1, :-1] > 0) @ width[..., None])[..., 0] * height).sum(1)


def diversity(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Mean distance between the centres of any two boxes of an image, in units where its sides span -1 to 1.

    Args:
        boxes, sizes: as of `coverage`.

    Returns:
        (B,) float64, 0 to 2.83 and more for centres outside; NaN for images with fewer than two boxes.
    """
    total, pairs = np.zeros(len(boxes)), np.zeros(len(boxes))
    centres = (boxes[..., :2] + boxes[..., 2:]) / np.asarray(sizes, dtype=np.float64)[:, None]
    for n in range(1, boxes.shape[1]):
        apart = np.linalg.norm(centres[:, :n] - centres[:, n : n + 1], axis=-1)
        total += np.nansum(apart, 1)
        pairs += (~np.isnan(apart)).sum(1)
    return np.divide(total, pairs, out=np.full(len(boxes), np.nan), where=pairs > 0)

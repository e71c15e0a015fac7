"""Geometric and colour transforms of an image, applied to every look at it.

A `Transform` maps points of the transformed image (the *view*) to points of the image, and changes its colours. It is
drawn once for a sample. Every look applies the same transform, so thumbnail and details show the same augmented image,
and only pixels of looks are transformed.

Example:
    >>> t = Transform.identity((100, 200)).crop((10, 20, 90, 180)).resize((40, 80)).flip()
    >>> t.size, t.bounds
    ((40, 80), (10.0, 20.0, 90.0, 180.0))
    >>> t.points([[0, 0], [40, 80]]).tolist()  # a corner of the view is the opposite one of the crop
    [[10.0, 180.0], [90.0, 20.0]]
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

Row = tuple[float, float, float]
Bounds = tuple[float, float, float, float]


@dataclass(frozen=True)
class Colour:
    """A sequence of colour operations, as in TensorFlow; the result is clamped to [0, 1].

    - ``("brightness", d)``: x + d.
    - ``("contrast", f)``: (x - mean) * f + mean, with the mean of each channel over the whole view.
    - ``("saturation", f)``: saturation (HSV) times f, at most 1; only for images of three channels.
    - ``("hue", d)``: hue (HSV) plus d, in turns; only for images of three channels.

    Args:
        operations: (name, amount), applied in this order.

    Raises:
        ValueError: there is no operation of a name.
    """

    operations: tuple[tuple[str, float], ...]

    def __post_init__(self) -> None:
        for name, _ in self.operations:
            if name not in _OPERATIONS:
                raise ValueError(f"there is no colour operation {name!r}; choose from {', '.join(_OPERATIONS)}")

    def means(self, pixels: Tensor, cover: Tensor | None) -> list[Tensor]:
        """(C,) channel means for each contrast operation, from a small look (C, h, w) at the whole view."""
        found = []
        for name, amount in self.operations:
            mean = pixels.mean((1, 2)) if cover is None else (pixels * cover).sum((1, 2)) / cover.sum().clamp(min=1e-6)
            if name == "contrast":
                found.append(mean)
            pixels = _OPERATIONS[name](pixels, amount, mean)
        return found

    def apply(self, pixels: Tensor, means: Sequence[Tensor]) -> Tensor:
        """Apply the operations to (C, h, w) pixels in [0, 1], with the result of `means`."""
        remaining = iter(means)
        for name, amount in self.operations:
            pixels = _OPERATIONS[name](pixels, amount, next(remaining) if name == "contrast" else None)
        return pixels.clamp(0, 1)


@dataclass(frozen=True)
class Transform:
    """An affine map from a view to an image, and a change of colours.

    Attributes:
        size: (height, width) of the view.
        matrix: rows (a, b, c), (d, e, f): the point (y, x) of the view is the point (a y + b x + c, d y + e x + f) of
            the image.
        colour: change of colours, or None.
        bounds: (y0, x0, y1, x1) of the visible part of the image, or None for all of it.
    """

    size: tuple[int, int]
    matrix: tuple[Row, Row] = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))
    colour: Colour | None = None
    bounds: Bounds | None = None

    @classmethod
    def identity(cls, size: tuple[int, int]) -> Self:
        """The identity transform of an image of ``size``."""
        return cls((int(size[0]), int(size[1])))

    def crop(self, box: Sequence[float]) -> Self:
        """Crop the view to a box (y0, x0, y1, x1); pixels beyond it count as outside."""
        y0, x0, y1, x1 = map(float, box)
        corners = self.points([[y0, x0], [y1, x1]])
        low, high = corners.min(0), corners.max(0)
        bounds = self.bounds
        if self.aligned:
            top, left, bottom, right = bounds or (-math.inf, -math.inf, math.inf, math.inf)
            bounds = (
                max(float(low[0]), top),
                max(float(low[1]), left),
                min(float(high[0]), bottom),
                min(float(high[1]), right),
            )
        size = (max(1, round(y1 - y0)), max(1, round(x1 - x0)))
        return self._after(size, [[(y1 - y0) / size[0], 0, y0], [0, (x1 - x0) / size[1], x0]], bounds)

    def resize(self, size: tuple[int, int]) -> Self:
        """Stretch the view to ``size``. This changes coordinates only; looks resample from the image."""
        return self._after(
            (int(size[0]), int(size[1])), [[self.size[0] / size[0], 0, 0], [0, self.size[1] / size[1], 0]]
        )

    def flip(self) -> Self:
        """Flip horizontally."""
        return self._after(self.size, [[1, 0, 0], [0, -1, self.size[1]]])

    def turn(self, quarters: int) -> Self:
        """Rotate by quarter turns, counterclockwise."""
        result = self
        for _ in range(quarters % 4):
            h, w = result.size
            result = result._after((w, h), [[0, 1, 0], [-1, 0, w]])
        return result

    def rotate(self, degrees: float) -> Self:
        """Rotate counterclockwise about the centre of the view. The size stays; empty corners take the fill value."""
        cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        y, x = self.size[0] / 2, self.size[1] / 2
        return self._after(self.size, [[cos, sin, y - cos * y - sin * x], [-sin, cos, x + sin * y - cos * x]])

    def shift(self, down: float, right: float) -> Self:
        """Shift the picture by pixels of the view."""
        return self._after(self.size, [[1, 0, -down], [0, 1, -right]])

    def coloured(self, colour: Colour | None) -> Self:
        """Replace the change of colours."""
        return replace(self, colour=colour)

    def points(self, points: np.ndarray | Sequence[Sequence[float]]) -> np.ndarray:
        """Map (n, 2) points (y, x) of the view to (n, 2) points of the image."""
        matrix = np.array(self.matrix)
        return np.asarray(points, dtype=np.float64) @ matrix[:, :2].T + matrix[:, 2]

    @property
    def aligned(self) -> bool:
        """Whether the map is axis-aligned, so that boxes of the view are boxes of the image."""
        (a, b, _), (d, e, _) = self.matrix
        return (b == 0 and d == 0) or (a == 0 and e == 0)

    def _after(self, size: tuple[int, int], first: Sequence[Sequence[float]], bounds: Bounds | None = None) -> Self:
        """Compose: apply ``first``, which maps the new view to the current one, then this transform."""
        matrix = np.array(self.matrix) @ np.vstack([np.array(first, dtype=np.float64), [0, 0, 1]])
        (a, b, c), (d, e, f) = matrix.tolist()
        return replace(self, size=size, matrix=((a, b, c), (d, e, f)), bounds=bounds or self.bounds)


def _brightness(pixels: Tensor, amount: float, mean: Tensor | None) -> Tensor:
    return pixels + amount


def _contrast(pixels: Tensor, amount: float, mean: Tensor | None) -> Tensor:
    assert mean is not None
    centre = mean[:, None, None]
    return (pixels - centre) * amount + centre


def _saturation(pixels: Tensor, amount: float, mean: Tensor | None) -> Tensor:
    if len(pixels) != 3:
        return pixels
    value = pixels.amax(0)
    old = torch.where(value > 0, (value - pixels.amin(0)) / value.clamp(min=1e-12), 0.0)
    # With fixed hue and value, the distance of each channel from the maximum is proportional to the saturation.
    ratio = torch.where(old > 0, (old * amount).clamp(0, 1) / old.clamp(min=1e-12), 0.0)
    return value - (value - pixels) * ratio


def _hue(pixels: Tensor, amount: float, mean: Tensor | None) -> Tensor:
    if len(pixels) != 3:
        return pixels
    r, g, b = pixels
    value, index = pixels.max(0)
    chroma = value - pixels.amin(0)
    safe = torch.where(chroma > 0, chroma, 1.0)
    sextant = (
        torch.where(index == 0, (g - b) / safe, torch.where(index == 1, (b - r) / safe + 2, (r - g) / safe + 4))
        + 6 * amount
    )
    k = (torch.tensor([5.0, 3.0, 1.0])[:, None, None] + sextant) % 6
    return value - chroma * torch.minimum(k, 4 - k).clamp(0, 1)


_OPERATIONS: dict[str, Callable[[Tensor, float, Tensor | None], Tensor]] = {
    "brightness": _brightness,
    "contrast": _contrast,
    "saturation": _saturation,
    "hue": _hue,
}

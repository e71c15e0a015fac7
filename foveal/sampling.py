"""Which source pixels an output pixel of a look is made of, and their weights.

This is the arithmetic of `foveal.images.resample`, where the sampling rule is described. It needs no torch, so that
`foveal.runtime` resamples like training and prediction do.

Example:
    >>> how = plan((0, 2, 8, 6), (1, 2), (0, 0, 8, 8), antialias=False)
    >>> how.window
    (0, 2, 8, 6)
    >>> index, weight, cover = taps(how.x, 4, antialias=False)
    >>> index.tolist(), weight.tolist()
    ([[0, 1], [2, 3]], [[0.5, 0.5], [0.5, 0.5]])
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Axis(NamedTuple):
    """Resampling of one axis of a box.

    Attributes:
        first, last: the source pixels [first, last); empty if the box lies outside.
        factor: number of pixels that are averaged before resampling.
        start, stop: the box, in averaged pixels counted from ``first``.
        low, high: the visible range in the same unit; infinite if the box does not reach beyond it.
        outputs: number of output pixels.
    """

    first: int
    last: int
    factor: int
    start: float
    stop: float
    low: float
    high: float
    outputs: int

    @property
    def whole(self) -> bool:
        """Whether the box is exactly [first, last)."""
        length = -(-(self.last - self.first) // self.factor)
        return self.inside and self.start == 0 and self.stop == length

    @property
    def on_grid(self) -> bool:
        """Whether every output pixel is an averaged pixel, or outside."""
        same = self.stop - self.start == self.outputs and float(self.start).is_integer() and self.start <= 0
        ends = self.low in (-math.inf, 0) and self.high in (math.inf, (self.last - self.first) / self.factor)
        return same and ends and (self.last - self.first) % self.factor == 0

    @property
    def inside(self) -> bool:
        return self.low == -math.inf and self.high == math.inf


class ResamplePlan(NamedTuple):
    """Resampling of a box: the source pixels and weights of both axes."""

    y: Axis
    x: Axis
    antialias: bool

    @property
    def window(self) -> tuple[int, int, int, int]:
        """(y0, x0, y1, x1) of the source pixels."""
        return self.y.first, self.x.first, self.y.last, self.x.last

    @property
    def empty(self) -> bool:
        return self.y.last <= self.y.first or self.x.last <= self.x.first

    def at_origin(self) -> ResamplePlan:
        """The same plan for a crop of its window."""
        y, x = (a._replace(first=0, last=a.last - a.first) for a in (self.y, self.x))
        return ResamplePlan(y, x, self.antialias)

    def on_level(self, by: int) -> ResamplePlan:
        """The same plan, at the origin, for pixels that were averaged by ``by``, a divisor of both factors."""
        y, x = (a._replace(last=a.last // by, factor=a.factor // by) for a in (self.y, self.x))
        return ResamplePlan(y, x, self.antialias)


def plan(
    box: Sequence[float],
    size: tuple[int, int],
    bounds: Sequence[float],
    *,
    antialias: bool = True,
    shrink: bool = False,
) -> ResamplePlan:
    """Compute the source pixels of a box.

    Args:
        box: (y0, x0, y1, x1) in pixels; may reach outside.
        size: output (height, width).
        bounds: (y0, x0, y1, x1) of the visible pixels; pixels beyond take the fill value.
        antialias: the sampling rule; see the module.
        shrink: average by the largest power of two that leaves at least one pixel for each output pixel.
    """
    y0, x0, y1, x1 = box
    low_y, low_x, high_y, high_x = bounds
    shrink = shrink and antialias
    return ResamplePlan(
        _axis(y0, y1, size[0], low_y, high_y, shrink), _axis(x0, x1, size[1], low_x, high_x, shrink), antialias
    )


def _axis(start: float, stop: float, count: int, low: float, high: float, shrink: bool) -> Axis:
    # Remove rounding errors of corners that are meant to be integers.
    start, stop, low, high = (round(v) if abs(v - round(v)) < 1e-6 else v for v in (start, stop, low, high))
    if not stop > start:
        raise ValueError(f"a box from {start} to {stop} is empty; its second corner must lie after its first")
    first, last = math.floor(max(start, low)), math.ceil(min(stop, high))
    if last <= first or min(stop, high) <= max(start, low):
        return Axis(0, 0, 1, 0.0, 0.0, 0.0, 0.0, count)
    # 1 % upsampling is allowed, as for the level of a pyramid.
    factor = 1 << int(math.log2(max((stop - start) / count * 1.01, 1))) if shrink else 1
    low, high = low if low > start else -math.inf, high if high < stop else math.inf
    start, stop, low, high = ((v - first) / factor for v in (start, stop, low, high))
    return Axis(first, last, factor, start, stop, low, high, count)


def taps(axis: Axis, length: int, antialias: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(count, K) source pixels and weights of each output pixel of an axis, and the (count,) cover."""
    scale = (axis.stop - axis.start) / axis.outputs
    centre = axis.start + (np.arange(axis.outputs) + 0.5) * scale
    if antialias:
        support = max(scale, 1.0)
        begin = np.floor(centre - support + 0.5)
        index = begin[:, None] + np.arange(int(2 * support) + 2)
        triangle = np.maximum(1 - np.abs(index + 0.5 - centre[:, None]) / support, 0)
        total = (triangle * _overlap(index, axis.start, axis.stop)).sum(1, keepdims=True)
        weight = triangle * _overlap(index, max(axis.start, axis.low), min(axis.stop, axis.high)) / total
    else:
        # Samples are clamped to the centres of the outermost pixels, half a pixel inside the box.
        inset = min(0.5, (axis.stop - axis.start) / 2)
        centre = np.clip(centre, axis.start + inset, axis.stop - inset)
        begin = np.floor(centre - 0.5)
        index = begin[:, None] + np.arange(2)
        weight = (1 - np.abs(index + 0.5 - centre[:, None])) * _overlap(index, axis.low, axis.high)
    used = (weight > 0).any(0)
    used[0] = True
    index, weight = index[:, used].clip(0, length - 1).astype(np.int64), weight[:, used]
    return index, weight, weight.sum(1)


def _overlap(index: np.ndarray, low: float, high: float) -> np.ndarray:
    """Share of each pixel [index, index + 1) that is in [low, high)."""
    return np.clip(np.minimum(index + 1, high) - np.maximum(index, low), 0, 1)

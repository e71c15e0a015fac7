"""Resize whole images with one of eight kernels without antialiasing, like TensorFlow's ``tf.image.resize``.

Reference recipes need this: their papers train on images resized to one size. Pixel centres are at half-integers.
Weights outside the image are dropped and the rest is normalised.

Example:
    >>> import torch
    >>> ramp = torch.arange(8.0).expand(1, 4, 8)
    >>> resize(ramp, (2, 4), "area")[0, 0].tolist()
    [0.5, 2.5, 4.5, 6.5]
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def _triangle(x: Tensor) -> Tensor:
    return (1 - x.abs()).clamp(min=0)


def _lanczos(radius: int) -> Callable[[Tensor], Tensor]:
    return lambda x: torch.where(x.abs() < radius, torch.sinc(x) * torch.sinc(x / radius), 0.0)


def _cubic(b: float, c: float) -> Callable[[Tensor], Tensor]:
    """Kernels of Mitchell and Netravali ("Reconstruction filters in computer graphics", 1988)."""

    def kernel(x: Tensor) -> Tensor:
        x = x.abs()
        near = (12 - 9 * b - 6 * c) * x**3 + (-18 + 12 * b + 6 * c) * x**2 + (6 - 2 * b)
        far = (-b - 6 * c) * x**3 + (6 * b + 30 * c) * x**2 + (-12 * b - 48 * c) * x + (8 * b + 24 * c)
        return torch.where(x < 1, near, torch.where(x < 2, far, 0.0)) / 6

    return kernel


def _gaussian(x: Tensor) -> Tensor:
    return torch.where(x.abs() < 1.5, torch.exp(-(x**2) / (2 * 0.5**2)), 0.0)


# Radius in source pixels, and weight as a function of distance.
_INTERPOLATING: dict[str, tuple[float, Callable[[Tensor], Tensor]]] = {
    "bilinear": (1, _triangle),
    "lanczos3": (3, _lanczos(3)),
    "lanczos5": (5, _lanczos(5)),
    "bicubic": (2, _cubic(0, 0.5)),
    "gaussian": (1.5, _gaussian),
    "mitchell": (2, _cubic(1 / 3, 1 / 3)),
}
KERNELS = (*_INTERPOLATING, "nearest", "area")


def resize(pixels: Tensor, size: tuple[int, int], kernel: str = "bilinear") -> Tensor:
    """Resize an image without keeping its aspect ratio.

    Args:
        pixels: (C, H, W) float.
        size: (height, width).
        kernel: a name from `KERNELS`. ``"area"`` averages the area of an output pixel; the others use a fixed radius.

    Returns:
        (C, height, width). Kernels with negative lobes can leave [0, 1].
    """
    down = _resize_rows(pixels, size[0], kernel)
    # Indexing whole rows is many times faster than indexing columns.
    return _resize_rows(down.transpose(1, 2).contiguous(), size[1], kernel).transpose(1, 2).contiguous()


def _resize_rows(pixels: Tensor, count: int, kernel: str) -> Tensor:
    """(C, H, W) to (C, count, W)."""
    index, weight = _kernel_taps(pixels.shape[1], count, kernel)
    out = pixels.index_select(1, index[:, 0]) * weight[:, :1]
    for tap in range(1, index.shape[1]):
        out.addcmul_(pixels.index_select(1, index[:, tap]), weight[:, tap, None])
    return out


def _kernel_taps(length: int, count: int, kernel: str) -> tuple[Tensor, Tensor]:
    """(count, taps) source pixels of each of ``count`` outputs, and their weights."""
    scale = length / count
    output = torch.arange(count, dtype=torch.float64)
    if kernel == "nearest":
        return ((output + 0.5) * scale).floor().clamp(max=length - 1).long()[:, None], torch.ones(count, 1)
    if kernel == "area":
        start, stop = output * scale, (output + 1) * scale
        index = start.floor()[:, None] + torch.arange(math.ceil(scale) + 1)
        weight = (torch.minimum(index + 1, stop[:, None]) - torch.maximum(index, start[:, None])).clamp(min=0)
    else:
        radius, weigh = _INTERPOLATING[kernel]
        centre = (output + 0.5) * scale
        index = (centre - radius).floor()[:, None] + torch.arange(math.ceil(2 * radius) + 1)
        weight = weigh(index + 0.5 - centre[:, None])
    weight = torch.where((index >= 0) & (index < length), weight, 0.0)
    return index.clamp(0, length - 1).long(), (weight / weight.sum(1, keepdim=True)).float()

"""Cut boxes with fractional corners out of pixels and resample them, in one step.

The sampling rule, the same for tensors and files: pixel i of a row covers [i, i + 1); output pixel j of a box covers an
equal share of it. With ``antialias`` the weight of a source pixel is a triangle as wide as two output pixels (PIL's and
torch's antialiased bilinear); without, it is plain bilinear at the output pixel's centre (half-pixel centres). Pixels
outside the source take the fill value.

Example:
    >>> import torch
    >>> ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    >>> resample(ramp, (0, 2, 8, 6), (1, 2))[0, 0, 0].tolist()
    [3.0, 4.0]
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def resample(pixels: Tensor, box: Sequence[float], size: tuple[int, int], *, fill: Tensor | None = None, antialias: bool = True) -> Tensor:
    """Resample one box of N images.

    Args:
        pixels: (N, C, H, W) float.
        box: (y0, x0, y1, x1) in pixels of ``pixels``; may reach outside.
        size: output (height, width).
        fill: (C,) value outside the pixels; 0 if None.
        antialias: weigh every source pixel that an output pixel covers.

    Returns:
        (N, C, height, width), dtype of ``pixels``.
    """
    y0, x0, y1, x1 = box
    h, w = pixels.shape[-2:]
    if all(float(v).is_integer() for v in box) and 0 <= y0 and 0 <= x0 and y1 <= h and x1 <= w:
        window = pixels[..., int(y0) : int(y1), int(x0) : int(x1)]
        if window.shape[-2:] == size:
            return window.clone()
        return F.interpolate(window, size, mode="bilinear", antialias=antialias)
    rows, cover_y = _weights(y0, y1, size[0], h, antialias, pixels)
    cols, cover_x = _weights(x0, x1, size[1], w, antialias, pixels)
    out = rows @ pixels @ cols.T
    if fill is not None and (cover_y.min() < 1 or cover_x.min() < 1):
        out = out + (1 - cover_y[:, None] * cover_x) * fill.to(out)[:, None, None]
    return out


def _weights(start: float, stop: float, count: int, length: int, antialias: bool, like: Tensor) -> tuple[Tensor, Tensor]:
    """(count, length) weights of one axis, and (count,) the share of each output that lies inside."""
    scale = (stop - start) / count
    support = max(scale, 1.0) if antialias else 1.0
    centre = start + (torch.arange(count, dtype=torch.float64) + 0.5) * scale
    first = int(torch.floor(centre[0] - support).item())
    last = int(torch.ceil(centre[-1] + support).item())
    position = torch.arange(first, last, dtype=torch.float64) + 0.5
    weight = (1 - (position - centre[:, None]).abs() / support).clamp(min=0)
    weight = weight / weight.sum(1, keepdim=True)
    inside = torch.zeros(count, length, dtype=torch.float64)
    lo, hi = max(first, 0), min(last, length)
    if hi > lo:
        inside[:, lo:hi] = weight[:, lo - first : hi - first]
    return inside.to(like), inside.sum(1).to(like)

"""Crop boxes with fractional corners and resample them, in one step.

The sampling rule for tensors and files is "crop, then resize": pixel i of a row covers [i, i + 1), output pixel j
covers an equal share of the box, and pixels outside the box have no weight. With ``antialias`` the weight of a source
pixel is a triangle filter of two output pixels' width, times the share of the pixel inside the box; the weights of an
output pixel sum to one (antialiased bilinear of torch and PIL). Without, it is bilinear at the centre of the output
pixel (half-pixel centres, ``align_corners=False``). A box with integer corners gives the result of ``F.interpolate`` of
the crop; a box of the output size gives the pixels unchanged. Parts of a box outside the pixels take the fill value.

Readers of files use the two halves separately: `plan` computes the source pixels of a box, and `cut` resamples them.
They can also `shrink` by a power of two before resampling, like the levels of a pyramid. This is much faster for large
boxes and slightly sharper than the full triangle filter: on photographs the root mean square difference of a look is
0.01 (0.025 at worst, single pixels at sharp edges up to 0.2), and the mean is unchanged.

Example:
    >>> import torch
    >>> ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    >>> resample(ramp, (0, 2, 8, 6), (1, 2), antialias=False)[0, 0, 0].tolist()
    [2.5, 4.5]
    >>> resample(ramp, (0, 6, 8, 10), (4, 4), fill=torch.tensor([-1.0]))[0, 0, 0].tolist()
    [6.0, 7.0, -1.0, -1.0]
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.host import to_device
from foveal.sampling import Axis, ResamplePlan, plan, taps

_STRIP = 1 << 21  # elements that are shrunk at once; they fit into the CPU cache


def cut(window: Tensor, how: ResamplePlan) -> tuple[Tensor, Tensor | None]:
    """Resample the window of a plan.

    Args:
        window: (N, C, H, W) pixels of ``how.window``, any real dtype.
        how: from `plan`.

    Returns:
        (N, C, height, width) float, 0 outside; and the (height, width) cover, the share of each output pixel that is
        inside, or None if it is 1 everywhere.
    """
    pixels = shrink(window, how.y.factor, how.x.factor)
    size = (how.y.outputs, how.x.outputs)
    if how.y.whole and how.x.whole:
        if pixels.shape[-2:] == size:
            return pixels, None
        with torch.autocast(pixels.device.type, enabled=False):
            return F.interpolate(pixels, size, mode="bilinear", antialias=how.antialias), None
    if how.empty:
        return pixels.new_zeros((*pixels.shape[:2], *size)), pixels.new_zeros(size)
    if how.y.on_grid and how.x.on_grid:
        out, cover = pixels.new_zeros((*pixels.shape[:2], *size)), pixels.new_zeros(size)
        top, left = round(-how.y.start), round(-how.x.start)
        inside = np.s_[top : top + pixels.shape[-2], left : left + pixels.shape[-1]]
        out[(..., *inside)], cover[inside] = pixels, 1
        return out, cover
    rows, row_weight, cover_y = _on(pixels, _taps(how.y, pixels.shape[-2], how.antialias))
    cols, col_weight, cover_x = _on(pixels, _taps(how.x, pixels.shape[-1], how.antialias))
    # Transpose for the second pass, because selecting whole rows is faster on a CPU.
    turned = _weigh(pixels, rows, row_weight).transpose(-1, -2).contiguous()
    out = _weigh(turned, cols, col_weight).transpose(-1, -2)
    return out, None if how.y.inside and how.x.inside else cover_y[:, None] * cover_x


def resample(
    pixels: Tensor, box: Sequence[float], size: tuple[int, int], *, fill: Tensor | None = None, antialias: bool = True
) -> Tensor:
    """Resample one box of N images.

    Args:
        pixels: (N, C, H, W) float.
        box: (y0, x0, y1, x1) in pixels of ``pixels``; may reach outside.
        size: output (height, width).
        fill: (C,) value outside the pixels; 0 if None.
        antialias: the sampling rule; see the module.

    Returns:
        (N, C, height, width), dtype of ``pixels``, never a view of them.
    """
    how = plan(box, size, (0, 0, *pixels.shape[-2:]), antialias=antialias)
    y0, x0, y1, x1 = how.window
    out, cover = cut(pixels[..., y0:y1, x0:x1], how)
    out = composite(out, cover, fill).to(pixels.dtype)
    return out.clone() if cover is None and out.data_ptr() == pixels[..., y0:, x0:].data_ptr() else out


def composite(pixels: Tensor, cover: Tensor | None, fill: Tensor | None) -> Tensor:
    """Composite pixels, premultiplied by their cover, over the fill value (C,)."""
    if cover is None or fill is None:
        return pixels
    return pixels + (1 - cover) * to_device(fill, pixels.device, pixels.dtype)[:, None, None]


def shrink(pixels: Tensor, rows: int, cols: int) -> Tensor:
    """Average blocks of (rows, cols) pixels; the last blocks of each axis may be smaller.

    Args:
        pixels: (N, C, H, W), any real dtype, any memory layout.
        rows, cols: size of a block, powers of two.

    Returns:
        (N, C, ceil(H / rows), ceil(W / cols)), float32 (float64 stays).
    """
    dtype = pixels.dtype if pixels.dtype == torch.float64 else torch.float32
    if rows == 1 and cols == 1:
        return pixels.to(dtype)
    if pixels.is_cuda:
        return F.avg_pool2d(pixels.to(dtype), (rows, cols), ceil_mode=True, count_include_pad=False)
    n, c, h, w = pixels.shape
    # Sums of up to 128 bytes are exact in int16, which is twice as fast as float32.
    narrow = pixels.dtype == torch.uint8 and rows * cols <= 128 and h % rows == w % cols == 0
    sums = torch.int16 if narrow else dtype
    step = rows * max(1, _STRIP // max(1, rows * w * c * n))
    out = pixels.new_empty((n, c, -(-h // rows), -(-w // cols)), dtype=dtype)
    for top in range(0, h, step):
        total = _total(_total(pixels[:, :, top : top + step].to(sums), 2, rows), 3, cols).to(dtype)
        out[:, :, top // rows : top // rows + total.shape[2]] = total.div_(rows * cols)
    return out


def _total(x: Tensor, dim: int, by: int) -> Tensor:
    """Sums of runs of ``by``, a power of two, along a dimension; that of a shorter last run is scaled to ``by``."""
    if by == 1:
        return x
    full = x.shape[dim] // by
    parts = []
    if full:
        runs = x.narrow(dim, 0, full * by)
        if dim == 2 and by >= 8:
            runs = runs.unflatten(dim, (full, by)).sum(dim + 1, dtype=runs.dtype)
        else:
            # Pairwise addition is several times faster than a sum over a short dimension.
            for _ in range(by.bit_length() - 1):
                even, odd = runs.unflatten(dim, (-1, 2)).unbind(dim + 1)
                runs = even + odd
        parts.append(runs)
    if full * by < x.shape[dim]:
        parts.append(x.narrow(dim, full * by, x.shape[dim] - full * by).mean(dim, keepdim=True).mul_(by))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def _weigh(pixels: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """Weighted sum of rows of (N, C, H, W), with ``index`` (count, K) and ``weight`` (count, K)."""
    out = pixels.index_select(-2, index[:, 0]).mul_(weight[:, 0, None])
    for k in range(1, index.shape[1]):
        out.addcmul_(pixels.index_select(-2, index[:, k]), weight[:, k, None])
    return out


def _on(pixels: Tensor, taps: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    index, weight, cover = taps
    return (
        to_device(index, pixels.device),
        to_device(weight, pixels.device, pixels.dtype),
        to_device(cover, pixels.device, pixels.dtype),
    )


@lru_cache(maxsize=512)
def _taps(axis: Axis, length: int, antialias: bool) -> tuple[Tensor, Tensor, Tensor]:
    """See `foveal.sampling.taps`."""
    index, weight, cover = taps(axis, length, antialias)
    return torch.from_numpy(index), torch.from_numpy(weight), torch.from_numpy(cover)

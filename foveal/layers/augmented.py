"""Attention augmentation: a few output channels of a convolution come from self-attention with relative positions instead.

"Attention Augmented Convolutional Networks", Bello et al., ICCV 2019, https://arxiv.org/abs/1904.09925.

Example:
    >>> layer = AttentionAugmentation(64, 128, stride=2, size=(28, 20))
    >>> layer(torch.rand(2, 64, 28, 20)).shape, layer.value_channels, layer.key_channels
    (torch.Size([2, 128, 14, 10]), 8, 160)
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.layers.maps import Attends


class AttentionAugmentation(Attends):
    """Stands for ``Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=False)``.

    (B, in_channels, H, W) becomes (B, out_channels, ceil(H / stride), ceil(W / stride)); channels of the convolution come first.

    Every position of the output's grid attends to all of them. With a stride the input is averaged over the stride's cells first, as the
    parameters published for the paper's networks demand. The tables of positions are made for one grid; on another one they are resampled
    linearly.

    Args:
        size: (height, width) of the input that the tables are made for.
        ratio: share of the output channels that attend (upsilon), rounded down to a multiple of the heads. 0 leaves the convolution alone,
            1 leaves no convolution.
        key_ratio: channels of the queries, and of the keys, over output channels (kappa), rounded down likewise.
        heads: parts that channels are split into, each with a map of its own.
        min_key_channels: channels of the keys that a head has at least.
        pool: attend on a grid of half the size: 3x3 average pooling with stride 2 before, bilinear interpolation after.
        shared_positions: one table for all heads, else one for each.

    Raises:
        ValueError: impossible options.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        *,
        size: tuple[int, int],
        ratio: float = 0.1,
        key_ratio: float = 0.2,
        heads: int = 8,
        min_key_channels: int = 20,
        pool: bool = False,
        shared_positions: bool = True,
    ) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size={kernel_size} has no centre; choose an odd one.")
        if heads < 1 or not 0 <= ratio <= 1:
            raise ValueError(f"ratio={ratio} with heads={heads} is no part of the channels; choose a ratio from 0 to 1 and 1 head or more.")
        if min(size) < 1:
            raise ValueError(f"size={size} is no grid; give the input's (height, width).")
        self.in_channels, self.out_channels, self.kernel_size, self.stride = in_channels, out_channels, kernel_size, stride
        self.heads, self.pool = heads, pool
        self.value_channels = _whole(ratio * out_channels) // heads * heads
        if ratio > 0 and not self.value_channels:
            raise ValueError(
                f"ratio={ratio} of {out_channels} output channels leaves the {heads} heads none; "
                "choose a larger ratio, fewer heads, or ratio=0 for the plain convolution."
            )
        self.key_channels = max(_whole(key_ratio * out_channels) // heads, min_key_channels) * heads
        if self.key_channels < heads:
            raise ValueError(f"key_ratio={key_ratio} leaves the {heads} heads no keys; choose a larger one, or a min_key_channels above 0.")
        self.conv: nn.Conv2d | None = None
        if self.value_channels < out_channels:
            self.conv = nn.Conv2d(in_channels, out_channels - self.value_channels, kernel_size, stride, kernel_size // 2, bias=False)
            nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")
        if self.value_channels:
            self.qkv = nn.Conv2d(in_channels, 2 * self.key_channels + self.value_channels, 1, bias=False)
            self.project = nn.Conv2d(self.value_channels, self.value_channels, 1, bias=False)
            tables, d = 1 if shared_positions else heads, self.key_channels // heads
            height, width = (-(-side // (stride * (2 if pool else 1))) for side in size)
            self.rel_height = nn.Parameter(torch.randn(tables, 2 * height - 1, d) * d**-0.5)
            self.rel_width = nn.Parameter(torch.randn(tables, 2 * width - 1, d) * d**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        if not self.value_channels:
            return self.conv(x)  # type: ignore[misc]
        y = self._attend(x)
        return y if self.conv is None else torch.cat([self.conv(x), y], 1)

    def _attend(self, x: Tensor) -> Tensor:
        """The channels that attend: MHA(X)."""
        if self.stride > 1:
            x = F.avg_pool2d(x, self.stride, ceil_mode=True, count_include_pad=False)
        grid = (x.shape[-2], x.shape[-1])
        if self.pool:
            x = F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)
        height, width = x.shape[-2:]
        q, k, v = (
            part.flatten(2).unflatten(1, (self.heads, -1)).transpose(-1, -2)
            for part in self.qkv(x).split([self.key_channels, self.key_channels, self.value_channels], 1)
        )
        # Scaling the queries scales the whole sum of the logits, positions included.
        q = q * (self.key_channels // self.heads) ** -0.5
        self.keep(lambda: self._central_map(q, k, (height, width)))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=self.relative_logits(q, (height, width)), scale=1.0)
        y = self.project(y.transpose(-1, -2).reshape(x.shape[0], self.value_channels, height, width))
        return F.interpolate(y, grid, mode="bilinear", align_corners=False) if self.pool else y

    def relative_logits(self, q: Tensor, grid: tuple[int, int]) -> Tensor:
        """What positions add to the logits, S_H + S_W: (B, heads, N, d) queries of a grid to (B, heads, N, N)."""
        (height, width), (rel_height, rel_width) = grid, self._tables(grid)
        along_y = (q @ rel_height.mT).unflatten(2, grid).transpose(2, 3)
        along_x = (q @ rel_width.mT).unflatten(2, grid)
        rows = relative_to_absolute(along_y).transpose(2, 3)
        columns = relative_to_absolute(along_x)
        return (rows[..., :, None] + columns[..., None, :]).reshape(*q.shape[:2], height * width, height * width)

    def _tables(self, grid: tuple[int, int]) -> list[Tensor]:
        return [
            table if table.shape[1] == 2 * side - 1 else F.interpolate(table.mT, 2 * side - 1, mode="linear").mT
            for table, side in zip((self.rel_height, self.rel_width), grid, strict=True)
        ]

    def _central_map(self, q: Tensor, k: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, heads, height, width): the weights of the central query."""
        (height, width), (y, x) = grid, (grid[0] // 2, grid[1] // 2)
        rel_height, rel_width = self._tables(grid)
        to_rows = rel_height[:, height - 1 - y : 2 * height - 1 - y, None]
        to_columns = rel_width[:, None, width - 1 - x : 2 * width - 1 - x]
        keys = k.unflatten(2, grid) + to_rows + to_columns
        logits = (keys @ q[:, :, y * width + x, None, :, None])[..., 0]
        return logits.flatten(2).softmax(-1).unflatten(2, grid)


def relative_to_absolute(rel: Tensor) -> Tensor:
    """(..., L, 2 L - 1) by query and offset, from -(L - 1) to L - 1, to (..., L, L) by query and key.

    This is the paper's memory-efficient form, without an N x N x d tensor: a zero is put behind every row, and the flat whole is read
    again in rows of the old length, so that each begins one place further on than the last.
    """
    length = rel.shape[-2]
    flat = F.pad(F.pad(rel, (0, 1)).flatten(-2), (0, length - 1))
    return flat.unflatten(-1, (length + 1, 2 * length - 1))[..., :length, length - 1 :]


def _whole(channels: float) -> int:
    return math.floor(channels + 1e-9)

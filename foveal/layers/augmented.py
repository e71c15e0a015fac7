"""Attention augmentation: some output channels of a convolution are replaced by self-attention with relative positions.

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

from foveal.layers.maps import AttentionLayer


class AttentionAugmentation(AttentionLayer):
    """Replacement for ``Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=False)``.

    Maps (B, in_channels, H, W) to (B, out_channels, ceil(H / stride), ceil(W / stride)). Channels of the convolution
    come first.

    Each position of the output grid attends to all of them. With a stride, the input is average-pooled by the stride
    first; this agrees with the published parameter counts. Position tables are made for one grid and resampled linearly
    for others.

    Args:
        size: (height, width) of the input that the position tables are made for.
        ratio: fraction of attention channels in the output (upsilon), rounded down to a multiple of the heads. 0 is a
            plain convolution, 1 has no convolution.
        key_ratio: channels of queries and of keys relative to the output channels (kappa), rounded down likewise.
        heads: number of attention heads.
        min_key_channels: smallest number of key channels per head.
        pool: attend on a grid of half the size: 3x3 average pooling with stride 2 before, bilinear interpolation after.
        shared_positions: one position table for all heads, else one per head.

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
            raise ValueError(f"kernel_size={kernel_size} is even; choose an odd one.")
        if heads < 1 or not 0 <= ratio <= 1:
            raise ValueError(
                f"ratio={ratio} with heads={heads} is not possible; choose a ratio from 0 to 1 and 1 head or more."
            )
        if min(size) < 1:
            raise ValueError(f"size={size} is not a grid; give the (height, width) of the input.")
        self.in_channels, self.out_channels, self.kernel_size, self.stride = (
            in_channels,
            out_channels,
            kernel_size,
            stride,
        )
        self.heads, self.pool = heads, pool
        self.value_channels = _floor(ratio * out_channels) // heads * heads
        if ratio > 0 and not self.value_channels:
            raise ValueError(
                f"ratio={ratio} of {out_channels} output channels leaves no channels for {heads} heads; "
                "choose a larger ratio, fewer heads, or ratio=0 for the plain convolution."
            )
        self.key_channels = max(_floor(key_ratio * out_channels) // heads, min_key_channels) * heads
        if self.key_channels < heads:
            raise ValueError(
                f"key_ratio={key_ratio} leaves no keys for {heads} heads; choose a larger one, or min_key_channels "
                "above 0."
            )
        self.conv: nn.Conv2d | None = None
        if self.value_channels < out_channels:
            self.conv = nn.Conv2d(
                in_channels, out_channels - self.value_channels, kernel_size, stride, kernel_size // 2, bias=False
            )
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
        """The attention channels: MHA(X)."""
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
        # Position logits are products of the queries too, so they are scaled with them.
        q = q * (self.key_channels // self.heads) ** -0.5
        self.record_map(lambda: self._central_map(q, k, (height, width)))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=self.relative_logits(q, (height, width)), scale=1.0)
        y = self.project(y.transpose(-1, -2).reshape(x.shape[0], self.value_channels, height, width))
        return F.interpolate(y, grid, mode="bilinear", align_corners=False) if self.pool else y

    def relative_logits(self, q: Tensor, grid: tuple[int, int]) -> Tensor:
        """Position logits S_H + S_W: queries (B, heads, N, d) of a grid to (B, heads, N, N)."""
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
        """(B, heads, height, width) weights of the central query."""
        (height, width), (y, x) = grid, (grid[0] // 2, grid[1] // 2)
        rel_height, rel_width = self._tables(grid)
        to_rows = rel_height[:, height - 1 - y : 2 * height - 1 - y, None]
        to_columns = rel_width[:, None, width - 1 - x : 2 * width - 1 - x]
        keys = k.unflatten(2, grid) + to_rows + to_columns
        logits = (keys @ q[:, :, y * width + x, None, :, None])[..., 0]
        return logits.flatten(2).softmax(-1).unflatten(2, grid)


def relative_to_absolute(rel: Tensor) -> Tensor:
    """(..., L, 2 L - 1) by query and offset, from -(L - 1) to L - 1, to (..., L, L) by query and key.

    This is the memory-efficient form of the paper, without an N x N x d tensor. Each row is padded by one zero; reading
    the flattened result in rows of the old length shifts each row by one more place.
    """
    length = rel.shape[-2]
    flat = F.pad(F.pad(rel, (0, 1)).flatten(-2), (0, length - 1))
    return flat.unflatten(-1, (length + 1, 2 * length - 1))[..., :length, length - 1 :]


def _floor(channels: float) -> int:
    return math.floor(channels + 1e-9)

"""CBAM: channel attention, then spatial attention.

"CBAM: Convolutional Block Attention Module", Woo et al., ECCV 2018, https://arxiv.org/abs/1807.06521. Unlike ``timm``'s
``CbamModule`` it has biases in the MLP and a batch norm after the spatial convolution, as the authors' code has.

Example:
    >>> CBAM(64)(torch.rand(2, 64, 8, 8)).shape
    torch.Size([2, 64, 8, 8])
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from foveal.layers.maps import AttentionLayer


class CBAM(AttentionLayer):
    """Channel gates sigmoid(MLP(mean) + MLP(max)), then spatial gates sigmoid(BN(conv7x7([mean; max]))).

    Maps (B, C, h, w) to the same shape. The attention map is the spatial one, (B, 1, h, w) in [0, 1].

    Args:
        channels: C.
        reduction: the MLP has C / reduction hidden units, at least one.
        biases: biases in the MLP (section 3, and the authors' code).
        spatial_norm: batch norm after the spatial convolution (the authors' code).

    Raises:
        ValueError: the reduction is below 1.
    """

    def __init__(self, channels: int, reduction: int = 16, *, biases: bool = True, spatial_norm: bool = True) -> None:
        super().__init__()
        if reduction < 1:
            raise ValueError(f"reduction={reduction} is too small; use 1 or more")
        hidden = max(1, channels // reduction)
        self.mlp = nn.Sequential(
            nn.Conv2d(channels, hidden, 1, bias=biases), nn.ReLU(), nn.Conv2d(hidden, channels, 1, bias=biases)
        )
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        self.bn = nn.BatchNorm2d(1) if spatial_norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x * (self.mlp(x.mean((2, 3), keepdim=True)) + self.mlp(x.amax((2, 3), keepdim=True))).sigmoid()
        where = self.bn(self.conv(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1))).sigmoid()
        self.record_map(lambda: where)
        return x * where

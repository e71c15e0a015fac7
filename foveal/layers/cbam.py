"""Channel attention, then spatial attention: "CBAM: Convolutional Block Attention Module" (Woo et al., ECCV 2018, arXiv 1807.06521).

timm's module of the same name has no biases in its perceptron; the authors' has, and a batch norm after the spatial convolution.

Example:
    >>> CBAM(64)(torch.rand(2, 64, 8, 8)).shape
    torch.Size([2, 64, 8, 8])
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from foveal.layers.maps import Attends


class CBAM(Attends):
    """(B, C, h, w) features times sigmoid(MLP(mean) + MLP(max)) per channel, then times sigmoid(BN(conv7x7([mean; max]))) per position.

    The attention map is the spatial one, (B, 1, h, w) in [0, 1].

    Args:
        channels: C.
        reduction: the perceptron's hidden layer has C / reduction units, at least one.
        biases: in the perceptron (section 3, and the authors' code).
        spatial_norm: batch norm after the spatial convolution (the authors' code).

    Raises:
        ValueError: a reduction below 1.
    """

    def __init__(self, channels: int, reduction: int = 16, *, biases: bool = True, spatial_norm: bool = True) -> None:
        super().__init__()
        if reduction < 1:
            raise ValueError(f"reduction={reduction} reduces nothing; use 1 or more")
        hidden = max(1, channels // reduction)
        self.mlp = nn.Sequential(nn.Conv2d(channels, hidden, 1, bias=biases), nn.ReLU(), nn.Conv2d(hidden, channels, 1, bias=biases))
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        self.bn = nn.BatchNorm2d(1) if spatial_norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x * (self.mlp(x.mean((2, 3), keepdim=True)) + self.mlp(x.amax((2, 3), keepdim=True))).sigmoid()
        where = self.bn(self.conv(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1))).sigmoid()
        self.keep(lambda: where)
        return x * where

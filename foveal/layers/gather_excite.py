"""Gather-Excite: gates for channels, computed from a neighbourhood of each position.

"Gather-Excite: Exploiting Feature Context in Convolutional Neural Networks", Hu et al., NeurIPS 2018,
https://arxiv.org/abs/1810.12348.

Example:
    >>> import torch
    >>> GatherExcite(64)(torch.rand(2, 64, 8, 8)).shape
    torch.Size([2, 64, 8, 8])
    >>> sum(p.numel() for p in GatherExcite(64).parameters())
    0
"""

from __future__ import annotations

import math
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from foveal.layers.maps import AttentionLayer


class GatherExcite(AttentionLayer):
    """Multiply features X (B, C, h, w) by sigmoid(G(X)). G gathers over an extent and is resized (nearest) to h x w.

    Unless the extent is global, there is an attention map: the mean of the gates over channels, (B, 1, h, w).

    Args:
        channels: C.
        extent: 2, 4, 8 or another power of two, in positions; 0 is global.
        params: operator that gathers. ``none``: average pooling with kernel 2 e - 1 and stride e (GE-theta-minus in the
            paper). ``theta``: log2(e) depthwise 3x3 convolutions of stride 2 with batch norm, or a single one of the
            size of the features. ``theta_plus``: the same, then the bottleneck of squeeze-and-excitation.
        reduction: channel reduction of the bottleneck.
        size: (height, width) of the features, for the learned global extent.

    Raises:
        ValueError: the extent is not a power of two, ``params`` is unknown, the reduction is below 1, or ``size`` is
            missing.
    """

    def __init__(
        self,
        channels: int,
        extent: int = 0,
        params: str = "none",
        *,
        reduction: int = 16,
        size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        if extent != 0 and (extent < 2 or extent & (extent - 1)):
            raise ValueError(f"extent={extent} is not a power of two; use 2, 4 or 8, or 0 for global")
        if params not in ("none", "theta", "theta_plus"):
            raise ValueError(f"params={params!r} is unknown; use none, theta or theta_plus")
        if params != "none" and not extent and size is None:
            raise ValueError("a learned global extent needs the size of the features; give size=(height, width)")
        if reduction < 1:
            raise ValueError(f"reduction={reduction} is too small; use 1 or more")
        self.extent = extent
        self.gather: nn.Module
        if params == "none":
            self.gather = (
                nn.AvgPool2d(2 * extent - 1, extent, extent - 1, count_include_pad=False)
                if extent
                else nn.AdaptiveAvgPool2d(1)
            )
        elif extent:
            steps = [
                layer for _ in range(int(math.log2(extent))) for layer in (*_depthwise(channels, 3, 2, 1), nn.ReLU())
            ]
            self.gather = nn.Sequential(*steps[:-1])
        else:
            self.gather = nn.Sequential(*_depthwise(channels, size, 1, 0))
        widths = (channels, max(1, channels // reduction), channels)
        squeeze, excite = (nn.Conv2d(a, b, 1) for a, b in pairwise(widths))
        self.mlp = nn.Sequential(squeeze, nn.ReLU(), excite) if params == "theta_plus" else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        gate = self.mlp(self.gather(x)).sigmoid()
        if self.extent:
            gate = F.interpolate(gate, x.shape[2:], mode="nearest")
            self.record_map(lambda: gate.mean(1, keepdim=True))
        return x * gate


def _depthwise(
    channels: int, kernel: int | tuple[int, int] | None, stride: int, padding: int
) -> tuple[nn.Module, nn.Module]:
    conv = nn.Conv2d(channels, channels, kernel, stride, padding, groups=channels, bias=False)  # type: ignore[arg-type]
    return conv, nn.BatchNorm2d(channels)

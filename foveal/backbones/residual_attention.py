"""Residual Attention Network for images of 32 px: stacked modules of a trunk and an hourglass mask.

"Residual Attention Network for Image Classification" (Wang et al., CVPR 2017, arXiv 1704.06904), section 3 and figure
2. For CIFAR the paper states three stages with m attention modules and two residual units each, p = 1, t = 2, r = 1,
and a trunk of 36 m + 20 layers. Hence a unit has three layers, and m is 1 and 2 for the models below. The paper does
not state the widths of the stages or the depths of the masks. Here the widths are those of the 164-layer ResNet (16,
then 64, 128, 256), and the masks of the three stages have 3, 2 and 1 poolings, down to 4x4, as in the paper's networks
for ImageNet.

With 100 classes, Attention-92 and Attention-236 (m = 6) then have the published 1.9 and 5.1 million parameters. With 10
classes Attention-92 has 1.84 million, and Attention-452 (p, t, r = 2, 4, 3) would have 10.2 instead of the published
8.6. Two more choices are made here: one residual unit in each skip connection of a mask, and the second of the two
residual units of a stage at its end.

Example:
    >>> import timm, torch
    >>> import foveal.backbones
    >>> from foveal.layers import attention_maps
    >>> net = timm.create_model("test_attention_cifar").eval()
    >>> with attention_maps(net) as maps:
    ...     logits = net(torch.rand(2, 3, 32, 32))
    >>> logits.shape, maps["stages.0.1"].shape
    (torch.Size([2, 10]), torch.Size([2, 1, 32, 32]))
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from timm.models import build_model_with_cfg, register_model
from torch import Tensor, nn
from torch.nn import functional as F

from foveal.backbones.head import ClassifierBackbone, Stage, cifar_cfg
from foveal.layers import AttentionLayer

Mask = Literal["mixed", "channel", "spatial"]

default_cfgs = {name: cifar_cfg("stem") for name in ("attention56_cifar", "attention92_cifar", "test_attention_cifar")}


class NormActConv(nn.Sequential):
    """Batch norm, ReLU, and a k x k convolution without bias, padded by k // 2."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 1, stride: int = 1) -> None:
        conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False)
        super().__init__(nn.BatchNorm2d(in_channels), nn.ReLU(inplace=True), conv)


class ResidualUnit(nn.Module):
    """Pre-activation bottleneck with a quarter of the width, plus a shortcut.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        stride: stride of the 3x3 convolution. If the shape changes, the shortcut is a 1x1 convolution of the activated
            input.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        width = out_channels // 4
        self.norm = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.conv2 = NormActConv(width, width, 3, stride)
        self.conv3 = NormActConv(width, out_channels)
        changes = stride > 1 or in_channels != out_channels
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.norm(x))
        y = self.conv3(self.conv2(self.conv1(active)))
        return y + (x if self.shortcut is None else self.shortcut(active))


def residual_units(count: int, channels: int) -> nn.Sequential:
    """A sequence of ``count`` residual units."""
    return nn.Sequential(*(ResidualUnit(channels, channels) for _ in range(count)))


class Hourglass(nn.Module):
    """Max pooling, r units, a smaller hourglass with a skip connection, r units, and bilinear interpolation.

    Args:
        channels: channels of input and output.
        depth: number of poolings, 1 or more.
        r: number of residual units between changes of size (2 r at the lowest resolution).
    """

    def __init__(self, channels: int, depth: int, r: int) -> None:
        super().__init__()
        self.down, self.up = residual_units(r, channels), residual_units(r, channels)
        self.inner = Hourglass(channels, depth - 1, r) if depth > 1 else None
        self.skip = ResidualUnit(channels, channels) if depth > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.down(F.max_pool2d(x, 3, stride=2, padding=1))
        if self.inner is not None and self.skip is not None:
            y = self.inner(y) + self.skip(y)
        return F.interpolate(self.up(y), size=x.shape[-2:], mode="bilinear", align_corners=False)


class AttentionModule(AttentionLayer):
    """p units, (1 + M(x)) * T(x) (equation 3), and p units. The attention map is the mean of the mask M over channels.

    Args:
        channels: channels of input and output.
        depth: number of poolings of the mask branch.
        mask: activation of the mask (section 3.2). ``mixed``: sigmoid(x). ``channel``: x divided by its norm over
            channels. ``spatial``: sigmoid of x standardised over positions.
        p: number of units before and after.
        t: number of units of the trunk T.
        r: see `Hourglass`.

    Raises:
        ValueError: unknown mask.
    """

    def __init__(self, channels: int, depth: int, mask: Mask = "mixed", p: int = 1, t: int = 2, r: int = 1) -> None:
        super().__init__()
        if mask not in get_args(Mask):
            raise ValueError(f"there is no mask {mask!r}; use {' or '.join(get_args(Mask))}")
        self.mask = mask
        self.before, self.trunk, self.after = (
            residual_units(p, channels),
            residual_units(t, channels),
            residual_units(p, channels),
        )
        self.hourglass = Hourglass(channels, depth, r)
        self.to_mask = nn.Sequential(NormActConv(channels, channels), NormActConv(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        mask = self.attend(self.to_mask(self.hourglass(x)))
        self.record_map(lambda: mask.mean(1, keepdim=True))
        return self.after((1 + mask) * self.trunk(x))

    def attend(self, x: Tensor) -> Tensor:
        """Mask (B, C, h, w) of the output of the hourglass (B, C, h, w): in (0, 1), or in [-1, 1] for ``channel``."""
        if self.mask == "channel":
            return F.normalize(x, dim=1)
        if self.mask == "spatial":
            variance, mean = torch.var_mean(x, (2, 3), correction=0, keepdim=True)
            x = (x - mean) * torch.rsqrt(variance + 1e-5)
        return torch.sigmoid(x)


class ResidualAttentionNet(ClassifierBackbone):
    """Residual Attention Network for CIFAR.

    Args:
        num_classes: number of classes; 0 for no classifier.
        in_chans: number of input bands.
        modules: m, the number of attention modules per stage.
        widths: channels of the stem and of the three stages.
        depths: number of poolings of the masks in the three stages.
        mask: ``mixed``, ``channel`` or ``spatial``, see `AttentionModule`.
        p, t, r: number of residual units around the mask, in the trunk, and between poolings, see `AttentionModule`.
        drop_rate: dropout rate before the classifier.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 3,
        modules: int = 1,
        widths: tuple[int, ...] = (16, 64, 128, 256),
        depths: tuple[int, ...] = (3, 2, 1),
        mask: Mask = "mixed",
        p: int = 1,
        t: int = 2,
        r: int = 1,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__(drop_rate)
        if len(widths) != len(depths) + 1:
            raise ValueError(
                f"widths={widths} do not fit depths={depths}; give one width for the stem and one for each depth"
            )
        self.in_chans, self.num_features = in_chans, widths[-1]
        self.feature_info = [
            {"num_chs": c, "reduction": 2**i, "module": f"stages.{i}"} for i, c in enumerate(widths[1:])
        ]
        self.stem = nn.Conv2d(in_chans, widths[0], 3, padding=1, bias=False)
        stages = []
        for i, (c_in, c, depth) in enumerate(zip(widths[:-1], widths[1:], depths, strict=True)):
            attention = (AttentionModule(c, depth, mask, p, t, r) for _ in range(modules))
            stages.append(Stage(ResidualUnit(c_in, c, stride=2 if i else 1), *attention, ResidualUnit(c, c)))
        self.stages = nn.Sequential(*stages)
        self.norm = nn.BatchNorm2d(self.num_features)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.reset_classifier(num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.stages(self.stem(x))))

    def pooled(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def _create_residual_attention(name: str, pretrained: bool, **kwargs: Any) -> ResidualAttentionNet:
    return build_model_with_cfg(
        ResidualAttentionNet,
        name,
        pretrained,
        feature_cfg={"out_indices": (0, 1, 2), "flatten_sequential": True},
        **kwargs,
    )


@register_model
def attention56_cifar(pretrained: bool = False, **kwargs: Any) -> ResidualAttentionNet:
    """One attention module per stage; 1,030,362 parameters."""
    return _create_residual_attention("attention56_cifar", pretrained, **kwargs)


@register_model
def attention92_cifar(pretrained: bool = False, **kwargs: Any) -> ResidualAttentionNet:
    """Two attention modules per stage; 1,841,242 parameters.

    Published: 1.9 million parameters; errors 4.99 % with 10 classes and 21.71 % with 100.
    """
    return _create_residual_attention("attention92_cifar", pretrained, **{"modules": 2, **kwargs})


@register_model
def test_attention_cifar(pretrained: bool = False, **kwargs: Any) -> ResidualAttentionNet:
    """A tiny network for tests."""
    return _create_residual_attention("test_attention_cifar", pretrained, **{"widths": (16, 16, 32, 64), **kwargs})

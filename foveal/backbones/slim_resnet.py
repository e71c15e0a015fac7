"""ResNet-v2-50 as in TensorFlow's slim library.

"Identity Mappings in Deep Residual Networks", He et al., 2016, arXiv 1603.05027. Unlike ``timm``'s networks, it strides
in the last block of a stage, takes every other pixel as the shortcut of that block, and has biases where no batch norm
follows: in the stem, in the last convolution of each block and in projections. Saccader's paper (arXiv 1908.07644) uses
it in DRAM and as a classifier of glimpses.

Example:
    >>> import timm, torch
    >>> import foveal.backbones
    >>> net = timm.create_model("resnetv2_50_slim", num_classes=10).eval()
    >>> net.forward_features(torch.rand(1, 3, 77, 77)).shape, net(torch.rand(1, 3, 77, 77)).shape
    (torch.Size([1, 2048, 3, 3]), torch.Size([1, 10]))
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from timm.layers import create_pool2d
from timm.models import build_model_with_cfg, register_model
from torch import Tensor, nn

from foveal.backbones.head import ClassifierBackbone, Stage, image_cfg

default_cfgs = {
    name: image_cfg(side, side // 32, crop_pct=0.9106, interpolation="bicubic")
    for name, side in (("resnetv2_50_slim", 224), ("test_resnetv2_slim", 64))
}

MOMENTUM = 0.003
"""Momentum of batch norm statistics; the decay in slim is 0.997."""


def _norm(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm2d(channels, momentum=MOMENTUM), nn.ReLU())


class SlimBottleneck(nn.Module):
    """Norm, 1x1 conv, norm, 3x3 conv, norm, 1x1 conv to four times the width; plus a shortcut.

    Args:
        channels: channels of the input.
        width: channels of the 3x3 convolution.
        stride: stride of the 3x3 convolution.
    """

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        out = 4 * width
        self.stride = stride
        self.norm1, self.conv1 = _norm(channels), nn.Conv2d(channels, width, 1, bias=False)
        self.norm2, self.conv2 = _norm(width), nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.norm3, self.conv3 = _norm(width), nn.Conv2d(width, out, 1)
        self.project = nn.Conv2d(channels, out, 1, stride) if channels != out else None

    def forward(self, x: Tensor) -> Tensor:
        active = self.norm1(x)
        shortcut = x[..., :: self.stride, :: self.stride] if self.project is None else self.project(active)
        return shortcut + self.conv3(self.norm3(self.conv2(self.norm2(self.conv1(active)))))


class SlimResNetV2(ClassifierBackbone):
    """A 7x7 convolution and max pooling, four stages of bottlenecks, a norm, pooling and a linear classifier.

    Args:
        num_classes: number of classes; 0 for no classifier.
        in_chans: number of input bands.
        layers: number of blocks per stage.
        widths: bottleneck width per stage. The output has four times as many channels.
        stem: channels of the first convolution.
        drop_rate: dropout rate before the classifier.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        *,
        layers: Sequence[int] = (3, 4, 6, 3),
        widths: Sequence[int] = (64, 128, 256, 512),
        stem: int = 64,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__(drop_rate)
        self.in_chans = in_chans
        self.conv1 = nn.Conv2d(in_chans, stem, 7, 2, padding=3)
        self.pool1 = create_pool2d("max", 3, 2, padding="same")
        channels, reduction, stages = stem, 4, []
        self.feature_info = []
        for i, (count, width) in enumerate(zip(layers, widths, strict=True)):
            last = i == len(layers) - 1
            blocks = []
            for j in range(count):
                blocks.append(SlimBottleneck(channels, width, 2 if j == count - 1 and not last else 1))
                channels = 4 * width
            stages.append(Stage(*blocks))
            reduction *= 1 if last else 2
            self.feature_info.append({"num_chs": channels, "reduction": reduction, "module": f"stages.{i}"})
        self.stages = nn.Sequential(*stages)
        self.norm = _norm(channels)
        self.num_features = channels
        self.reset_classifier(num_classes)
        self.apply(_initialise)

    def forward_features(self, x: Tensor) -> Tensor:
        return self.norm(self.stages(self.pool1(self.conv1(x))))

    def pooled(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def _initialise(module: nn.Module) -> None:
    """Default initialisation of slim: variance 2 / fan-in."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _create_slim_resnet(name: str, pretrained: bool, kwargs: dict[str, Any], **defaults: Any) -> SlimResNetV2:
    features = {"out_indices": (0, 1, 2, 3), "feature_cls": "hook"}
    return build_model_with_cfg(SlimResNetV2, name, pretrained, feature_cfg=features, **{**defaults, **kwargs})


@register_model
def resnetv2_50_slim(pretrained: bool = False, **kwargs: Any) -> SlimResNetV2:
    """ResNet-v2-50 as in slim.

    25,615,849 parameters with 1,001 classes, running statistics included; 23,602,432 with 15 bands and no classifier.
    """
    return _create_slim_resnet("resnetv2_50_slim", pretrained, kwargs)


@register_model
def test_resnetv2_slim(pretrained: bool = False, **kwargs: Any) -> SlimResNetV2:
    """A tiny network for tests."""
    return _create_slim_resnet(
        "test_resnetv2_slim", pretrained, kwargs, layers=(2, 1, 1, 1), widths=(16, 16, 16, 16), stem=16
    )

"""A small plain convolutional network for small images on a CPU.

It learns small objects on large backgrounds several times faster with max pooling than with average pooling.

Example:
    >>> import timm, torch
    >>> import foveal.backbones
    >>> timm.create_model("plain_convnet_32", num_classes=10)(torch.rand(2, 3, 32, 32)).shape
    torch.Size([2, 10])
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from timm.models import build_model_with_cfg, register_model
from torch import Tensor, nn

from foveal.backbones.head import ClassifierBackbone, Stage, image_cfg

default_cfgs = {
    "plain_convnet_32": image_cfg(
        32, 4, num_classes=10, crop_pct=1.0, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), first_conv="stages.0.1"
    )
}


FEATURES = {"out_indices": (0, 1, 2, 3), "feature_cls": "hook"}


class PlainConvNet(ClassifierBackbone):
    """Stages of a 3x3 convolution, batch norm and ReLU, with max pooling between stages.

    Args:
        num_classes: number of classes; 0 for no classifier.
        in_chans: number of input bands.
        widths: channels of the stages.
        drop_rate: dropout rate before the classifier.
        global_pool: pooling of the last stage: ``avg`` or ``max``.

    Raises:
        ValueError: unknown ``global_pool``.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 3,
        widths: tuple[int, ...] = (32, 64, 96, 128),
        drop_rate: float = 0.0,
        global_pool: Literal["avg", "max"] = "avg",
    ) -> None:
        super().__init__(drop_rate)
        if global_pool not in ("avg", "max"):
            raise ValueError(f"global_pool={global_pool!r} is unknown; use 'avg' or 'max'")
        self.in_chans, self.num_features, self.global_pool = in_chans, widths[-1], global_pool
        self.feature_info = [{"num_chs": c, "reduction": 2**i, "module": f"stages.{i}"} for i, c in enumerate(widths)]
        stages = []
        for i, (c_in, c_out) in enumerate(zip((in_chans, *widths), widths, strict=False)):
            pool = nn.MaxPool2d(2) if i else nn.Identity()
            conv = nn.Conv2d(c_in, c_out, 3, padding=1, bias=False)
            stages.append(nn.Sequential(pool, conv, nn.BatchNorm2d(c_out), nn.ReLU(inplace=True)))
        self.stages = Stage(*stages)
        self.reset_classifier(num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        return self.stages(x)

    def pooled(self, x: Tensor) -> Tensor:
        if self.global_pool == "max":
            return x.amax((2, 3))
        return torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1)


@register_model
def plain_convnet_32(pretrained: bool = False, **kwargs: Any) -> PlainConvNet:
    """Four convolutions, for images from 32 px."""
    return build_model_with_cfg(PlainConvNet, "plain_convnet_32", pretrained, feature_cfg=dict(FEATURES), **kwargs)

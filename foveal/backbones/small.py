"""A small plain convolutional network, for small looks on machines without an accelerator.

With maximum pooling it learns small objects on large grounds several times sooner than with average pooling.

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

from foveal.backbones.head import Headed, Stage

default_cfgs = {
    "plain_convnet_32": {
        "url": "", "num_classes": 10, "input_size": (3, 32, 32), "pool_size": (4, 4), "crop_pct": 1.0, "interpolation": "bilinear",
        "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "first_conv": "stages.0.1", "classifier": "fc",
    }
}  # fmt: skip


FEATURES = {"out_indices": (0, 1, 2, 3), "feature_cls": "hook"}


class PlainConvNet(Headed):
    """Stages of 3x3 convolution, batch norm and ReLU, with max pooling between them.

    Args:
        num_classes: 0 leaves the classifier out.
        in_chans: bands of the input.
        widths: channels of each stage.
        drop_rate: dropout before the classifier.
        global_pool: ``avg`` or ``max``: how the last stage becomes one vector.

    Raises:
        ValueError: an unknown ``global_pool``.
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
    """Four convolutions for looks of 32 px and up."""
    return build_model_with_cfg(PlainConvNet, "plain_convnet_32", pretrained, feature_cfg=dict(FEATURES), **kwargs)

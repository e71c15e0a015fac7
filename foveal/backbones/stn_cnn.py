"""A small convolutional network with a spatial transformer that can undo shifts, rotations and changes of scale.

"Spatial Transformer Networks" (Jaderberg et al., NeurIPS 2015, arXiv 1506.02025). The classifier is `plain_convnet_32`,
which is the baseline without a transformer. The localisation network is a parameter group that can have a lower
learning rate, as in the paper: ``--optimiser.group_lr {localisation: 1e-4}`` where the rest has 1e-3.

Example:
    >>> import timm, torch
    >>> import foveal.backbones
    >>> timm.create_model("stn_cnn", in_chans=1)(torch.rand(2, 1, 40, 40)).shape
    torch.Size([2, 10])
"""

from __future__ import annotations

from typing import Any, ClassVar

from timm.models import build_model_with_cfg, register_model
from torch import Tensor

from foveal.backbones import small
from foveal.backbones.small import FEATURES, PlainConvNet
from foveal.layers.spatial_transformer import SpatialTransformer

default_cfgs = {
    "stn_cnn": small.default_cfgs["plain_convnet_32"] | {"first_conv": ("transformer.localisation.0", "stages.0.1")}
}


class SpatialTransformerCNN(PlainConvNet):
    """A `SpatialTransformer` and a `PlainConvNet`, for images from 16 px.

    Args:
        num_classes: number of classes; 0 for no classifier.
        in_chans: number of input bands.
        widths: channels of the stages of the classifier.
        size: (height, width) of the transformed image; None is that of the input.
        localisation_width: ``width`` of `SpatialTransformer`.
        drop_rate: dropout rate before the classifier.
    """

    groups: ClassVar = {"localisation": "transformer"}

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 3,
        widths: tuple[int, ...] = (32, 64, 96, 128),
        size: tuple[int, int] | None = None,
        localisation_width: int = 32,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__(num_classes, in_chans, widths, drop_rate)
        self.transformer = SpatialTransformer(in_chans, size, localisation_width)

    def forward_features(self, x: Tensor) -> Tensor:
        return super().forward_features(self.transformer(x))


@register_model
def stn_cnn(pretrained: bool = False, **kwargs: Any) -> SpatialTransformerCNN:
    """Four convolutions after an affine spatial transformer."""
    return build_model_with_cfg(SpatialTransformerCNN, "stn_cnn", pretrained, feature_cfg=dict(FEATURES), **kwargs)

"""Wide ResNets for images of 32 x 32 px, plain or with attention in every block.

* `wrn_28_10_cifar`: "Wide Residual Networks", Zagoruyko and Komodakis, BMVC 2016, arXiv 1605.07146.
* `aa_wrn_28_10_cifar`: attention augmentation of the first convolution of each block, with 8 heads, as in "Attention
  Augmented Convolutional Networks" (arXiv 1904.09925).
* `expatt_wrn_28_10_cifar`: explicitly modelled attention (arXiv 2006.07872) in the same place. This is not from the
  paper.

Example:
    >>> import timm, torch
    >>> import foveal.backbones
    >>> net = timm.create_model("test_wrn_cifar").eval()
    >>> net(torch.rand(2, 3, 32, 32)).shape, net.forward_features(torch.rand(2, 3, 32, 32)).shape
    (torch.Size([2, 10]), torch.Size([2, 128, 8, 8]))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

from timm.layers import SelectAdaptivePool2d
from timm.models import build_model_with_cfg, register_model
from torch import Tensor, nn

from foveal.backbones import cifar_resnet
from foveal.backbones.cifar_resnet import PreactBlock, conv3x3, conv_replacement
from foveal.backbones.head import ClassifierBackbone, Stage, cifar_cfg
from foveal.layers import AttentionAugmentation, augment_convs

default_cfgs = {
    name: cifar_cfg("conv1")
    for name in ("wrn_28_10_cifar", "expatt_wrn_28_10_cifar", "aa_wrn_28_10_cifar", "test_wrn_cifar")
}

CONVS: dict[str, Callable[..., nn.Module]] = {**cifar_resnet.CONVS, "aa": AttentionAugmentation}
"""As in `cifar_resnet`, but attention augmentation has eight heads."""


class WideResNet(ClassifierBackbone):
    """A 3x3 convolution to 16 channels, three stages of n pre-activation blocks, pooling, and a linear classifier.

    Args:
        depth: number of layers with weights, 6 n + 4.
        width: factor of the widths 16, 32 and 64 of the stages.
        num_classes: number of classes; 0 for no classifier.
        in_chans: number of input bands.
        drop_rate: dropout rate between the two convolutions of each block; the paper tries 0.3.
        conv: replacement of the first convolution of each block, a name from `CONVS`: ``expatt``, ``aa``, or ``narrow``
            as a control.
        conv_options: keywords of these layers.
        img_size: side of the images, in pixels, that position tables are made for; they are resampled for others.

    Raises:
        ValueError: the depth is not 6 n + 4, ``conv`` or a keyword is unknown, or there are keywords without ``conv``.
    """

    def __init__(
        self,
        depth: int = 28,
        width: int = 10,
        num_classes: int = 10,
        in_chans: int = 3,
        *,
        drop_rate: float = 0.0,
        conv: Annotated[str, tuple(CONVS)] | None = None,
        conv_options: Mapping[str, Any] | None = None,
        img_size: int = 32,
    ) -> None:
        super().__init__()
        n, rest = divmod(depth - 4, 6)
        if n < 1 or rest:
            raise ValueError(f"depth={depth} is not 6 n + 4; use 16, 22, 28 or 40.")
        replacement = conv_replacement(conv, CONVS, conv_options)
        self.in_chans = in_chans
        channels, widths, stages = 16, (16 * width, 32 * width, 64 * width), []
        self.conv1 = conv3x3(in_chans, channels)
        for i, wide in enumerate(widths):
            blocks = []
            for j in range(n):
                stride = 2 if i > 0 and j == 0 else 1
                blocks.append(PreactBlock(channels, wide, stride, "B", nn.Identity(), nn.Identity(), drop_rate))
                channels = wide
            stages.append(Stage(*blocks))
        self.layer1, self.layer2, self.layer3 = stages
        self.bn, self.act = nn.BatchNorm2d(channels), nn.ReLU()
        self.pool = SelectAdaptivePool2d(pool_type="avg", flatten=True)
        self.num_features = channels
        self.feature_info = [{"num_chs": c, "reduction": 2**i, "module": f"layer{i + 1}"} for i, c in enumerate(widths)]
        self.reset_classifier(num_classes)
        if replacement is not None:
            augment_convs(self, replacement, (1, 2, 3), image_size=img_size)

    def forward_features(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.layer3(self.layer2(self.layer1(self.conv1(x))))))

    def pooled(self, x: Tensor) -> Tensor:
        return self.pool(x)


def _create_wide_resnet(name: str, pretrained: bool, kwargs: dict[str, Any], **defaults: Any) -> WideResNet:
    return build_model_with_cfg(
        WideResNet, name, pretrained, feature_cfg={"out_indices": (0, 1, 2)}, **{**defaults, **kwargs}
    )


@register_model
def wrn_28_10_cifar(pretrained: bool = False, **kwargs: Any) -> WideResNet:
    """36,479,194 parameters with 10 classes, 36,536,884 with 100; published: 36.5 million."""
    return _create_wide_resnet("wrn_28_10_cifar", pretrained, kwargs)


@register_model
def expatt_wrn_28_10_cifar(pretrained: bool = False, **kwargs: Any) -> WideResNet:
    """Explicitly modelled attention in every block; ``conv_options`` are its keywords."""
    return _create_wide_resnet("expatt_wrn_28_10_cifar", pretrained, kwargs, conv="expatt")


@register_model
def aa_wrn_28_10_cifar(pretrained: bool = False, **kwargs: Any) -> WideResNet:
    """36,312,660 parameters with 100 classes; published: 36.2 million.

    ``conv_options`` are keywords of `AttentionAugmentation`.
    """
    return _create_wide_resnet("aa_wrn_28_10_cifar", pretrained, kwargs, conv="aa")


@register_model
def test_wrn_cifar(pretrained: bool = False, **kwargs: Any) -> WideResNet:
    """A tiny network for tests."""
    return _create_wide_resnet("test_wrn_cifar", pretrained, kwargs, depth=10, width=2)

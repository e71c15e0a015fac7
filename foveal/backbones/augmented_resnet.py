"""ResNets with attention in the k x k convolution of each residual block of the last three stages.

* `expatt_resnet50` and other depths: `ExplicitAttention` (arXiv 2006.07872) in a tenth of the channels. Choices that
  the paper leaves open give the parameter counts of its abstract.
* `aa_resnet50` and other depths: `AttentionAugmentation` (arXiv 1904.09925). The paper's settings do not fit depth 34;
  a ratio of 0.25 gives the published parameter count.

The rest is ``timm``'s ResNet, with the stride in the 3x3 convolution. Keywords are those of the classes below, of the
layer (``foveal cost expatt_resnet152 --image-size 224 --set attn_stride=pool``), and of ``timm``'s ``ResNet``.

Example:
    >>> import timm
    >>> import foveal.backbones
    >>> sum(p.numel() for p in timm.create_model("expatt_resnet50").parameters())
    24586134
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

from timm.models import build_model_with_cfg, register_model
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn

from foveal.backbones.head import image_cfg
from foveal.layers import AttentionAugmentation, ExplicitAttention, augment_convs, share_radius
from foveal.layers.augment import unique_stages
from foveal.signatures import typed

default_cfgs = {
    name: image_cfg(side, side // 32)
    for kind in ("expatt", "aa")
    for name, side in (*((f"{kind}_resnet{depth}", 224) for depth in (34, 50, 101, 152)), (f"test_{kind}_resnet", 64))
}


@typed
class ExpAttResNet(ResNet):
    """``timm`` ResNet with `ExplicitAttention`.

    Args:
        layers: number of blocks per stage.
        bottleneck: use bottlenecks instead of basic blocks.
        stages: stages with attention, counted from 1.
        basic_conv: convolution to replace in basic blocks: 1, 2 or "both".
        radius_scope: what shares a radius, see `share_radius`.
        options: keywords of `ExplicitAttention` and of ``timm``'s ``ResNet``.

    Raises:
        ValueError: impossible options.
    """

    def __init__(
        self,
        layers: tuple[int, ...] = (3, 4, 6, 3),
        bottleneck: bool = True,
        *,
        stages: Sequence[int] = (2, 3, 4),
        basic_conv: Literal[1, 2, "both"] = 1,
        radius_scope: Literal["head", "module", "stage", "global"] = "head",
        **options: Any,
    ) -> None:
        attention, rest = _split(ExplicitAttention, options)
        super().__init__(Bottleneck if bottleneck else BasicBlock, layers, **rest)  # type: ignore[arg-type]
        augment_convs(self, partial(ExplicitAttention, **attention), stages, basic_conv=basic_conv)
        share_radius(self, radius_scope)


@typed
class AAResNet(ResNet):
    """``timm`` ResNet with `AttentionAugmentation`.

    Args:
        layers: number of blocks per stage.
        bottleneck: use bottlenecks instead of basic blocks.
        stages: stages with attention, counted from 1.
        basic_conv: convolution to replace in basic blocks: 1, 2 or "both".
        aa_pool_stage2: attend on a grid of half the size in stage 2. The published FLOPs suggest that the paper did.
        img_size: side of the images, in pixels, that position tables are made for; they are resampled for others.
        options: keywords of `AttentionAugmentation` and of ``timm``'s ``ResNet``.

    Raises:
        ValueError: impossible options.
    """

    def __init__(
        self,
        layers: tuple[int, ...] = (3, 4, 6, 3),
        bottleneck: bool = True,
        *,
        stages: Sequence[int] = (2, 3, 4),
        basic_conv: Literal[1, 2, "both"] = 1,
        aa_pool_stage2: bool = False,
        img_size: int = 224,
        **options: Any,
    ) -> None:
        attention, rest = _split(AttentionAugmentation, options)
        super().__init__(Bottleneck if bottleneck else BasicBlock, layers, **rest)  # type: ignore[arg-type]
        for stage in unique_stages(stages):
            make = partial(AttentionAugmentation, **{"pool": aa_pool_stage2 and stage == 2, **attention})
            augment_convs(self, make, (stage,), basic_conv=basic_conv, image_size=img_size)


def _split(layer: type[nn.Module], options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split options into keywords of a layer and the rest."""
    takes = [
        name for name, p in inspect.signature(layer).parameters.items() if p.kind is p.KEYWORD_ONLY and name != "size"
    ]
    return {k: v for k, v in options.items() if k in takes}, {k: v for k, v in options.items() if k not in takes}


# ---- registered models


def _create_expatt(name: str, pretrained: bool, kwargs: dict[str, Any], **defaults: Any) -> ExpAttResNet:
    return build_model_with_cfg(ExpAttResNet, name, pretrained, **{**defaults, **kwargs})


def _create_aa(name: str, pretrained: bool, kwargs: dict[str, Any], **defaults: Any) -> AAResNet:
    return build_model_with_cfg(AAResNet, name, pretrained, **{**defaults, **kwargs})


@register_model
def expatt_resnet34(pretrained: bool = False, **kwargs: Any) -> ExpAttResNet:
    """20,962,966 parameters; 20,826,774 with ``basic_conv=2``."""
    return _create_expatt("expatt_resnet34", pretrained, kwargs, bottleneck=False)


@register_model
def expatt_resnet50(pretrained: bool = False, **kwargs: Any) -> ExpAttResNet:
    """24,586,134 parameters."""
    return _create_expatt("expatt_resnet50", pretrained, kwargs)


@register_model
def expatt_resnet101(pretrained: bool = False, **kwargs: Any) -> ExpAttResNet:
    """42,718,504 parameters."""
    return _create_expatt("expatt_resnet101", pretrained, kwargs, layers=(3, 4, 23, 3))


@register_model
def expatt_resnet152(pretrained: bool = False, **kwargs: Any) -> ExpAttResNet:
    """57,656,118 parameters."""
    return _create_expatt("expatt_resnet152", pretrained, kwargs, layers=(3, 8, 36, 3))


@register_model
def aa_resnet34(pretrained: bool = False, **kwargs: Any) -> AAResNet:
    """20,749,552 parameters; published: 20.7 million."""
    return _create_aa("aa_resnet34", pretrained, kwargs, bottleneck=False, ratio=0.25, key_ratio=0.25)


@register_model
def aa_resnet50(pretrained: bool = False, **kwargs: Any) -> AAResNet:
    """25,813,872 parameters; published: 25.8 million."""
    return _create_aa("aa_resnet50", pretrained, kwargs)


@register_model
def aa_resnet101(pretrained: bool = False, **kwargs: Any) -> AAResNet:
    """45,391,208 parameters; published: 45.4 million."""
    return _create_aa("aa_resnet101", pretrained, kwargs, layers=(3, 4, 23, 3))


@register_model
def aa_resnet152(pretrained: bool = False, **kwargs: Any) -> AAResNet:
    """61,622,496 parameters."""
    return _create_aa("aa_resnet152", pretrained, kwargs, layers=(3, 8, 36, 3))


TINY: dict[str, Any] = {"layers": (1, 1, 1, 1), "channels": (16, 16, 32, 64), "bottleneck": False}


@register_model
def test_expatt_resnet(pretrained: bool = False, **kwargs: Any) -> ExpAttResNet:
    """A tiny network for tests."""
    return _create_expatt("test_expatt_resnet", pretrained, kwargs, ratio=0.25, **TINY)


@register_model
def test_aa_resnet(pretrained: bool = False, **kwargs: Any) -> AAResNet:
    """A tiny network for tests."""
    return _create_aa(
        "test_aa_resnet", pretrained, kwargs, ratio=0.25, heads=2, min_key_channels=4, img_size=64, **TINY
    )

"""ResNet-50 with attention after the last batch norm of each bottleneck, for ImageNet.

`attn_resnet50` has `SpatialSoftmaxAttention` with kernel size 1: a 3x3 kernel over up to 2048 channels would be large,
and the paper of this attention names no network for ImageNet. `cbam_resnet50` has CBAM as in the authors' weights
(arXiv 1807.06521): 28,089,624 parameters.

Example:
    >>> import timm
    >>> import foveal.backbones
    >>> sum(p.numel() for p in timm.create_model("cbam_resnet50").parameters())
    28089624
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from timm.models import build_model_with_cfg, register_model
from timm.models.resnet import Bottleneck, ResNet

from foveal.backbones.cifar_resnet import Attention, make_attention
from foveal.backbones.head import image_cfg
from foveal.layers import SpatialSoftmaxAttention
from foveal.signatures import typed

default_cfgs = {
    name: image_cfg(side, side // 32)
    for name, side in (("attn_resnet50", 224), ("cbam_resnet50", 224), ("test_attn_resnet", 64))
}


@typed
class AttentionResNet(ResNet):
    """``timm`` ResNet of bottlenecks with attention in place of squeeze-and-excitation.

    Args:
        attention: a name from `foveal.backbones.cifar_resnet.ATTENTION`: ``bounded``, ``softmax``, ``cbam``, ``se``,
            ``ge`` or ``nl``.
        attention_options: keywords of the attention layers.
        layers: number of blocks per stage.
        options: keywords of ``timm``'s ``ResNet``.

    Raises:
        ValueError: unknown attention or keyword.
    """

    def __init__(
        self,
        attention: Attention = "bounded",
        attention_options: Mapping[str, Any] | None = None,
        layers: tuple[int, ...] = (3, 4, 6, 3),
        **options: Any,
    ) -> None:
        def make(channels: int, **placement: Any) -> Any:
            return make_attention(attention, channels, attention_options).to(**placement)

        super().__init__(Bottleneck, layers, block_args={"attn_layer": make}, **options)  # type: ignore[arg-type]

    def init_weights(self, zero_init_last: bool = True) -> None:
        super().init_weights(zero_init_last)
        for module in self.modules():
            # The base class initialises all convolutions, but these must start at zero.
            if isinstance(module, SpatialSoftmaxAttention):
                module.reset_parameters()


def _create_attn(name: str, pretrained: bool, kwargs: dict[str, Any], **defaults: Any) -> AttentionResNet:
    return build_model_with_cfg(AttentionResNet, name, pretrained, **{**defaults, **kwargs})


@register_model
def attn_resnet50(pretrained: bool = False, attention: Attention = "bounded", **kwargs: Any) -> AttentionResNet:
    """ResNet-50 with spatial softmax attention of kernel size 1. ``attention_options`` are its keywords."""
    options = kwargs.pop("attention_options", None) or {}
    if attention in ("bounded", "softmax"):
        options = {"kernel_size": 1, **options}
    return _create_attn("attn_resnet50", pretrained, {"attention": attention, **kwargs}, attention_options=options)


@register_model
def cbam_resnet50(pretrained: bool = False, **kwargs: Any) -> AttentionResNet:
    """ResNet-50 with CBAM in every bottleneck. ``attention_options`` are its keywords."""
    return _create_attn("cbam_resnet50", pretrained, kwargs, attention="cbam")


@register_model
def test_attn_resnet(pretrained: bool = False, attention: Attention = "bounded", **kwargs: Any) -> AttentionResNet:
    """A tiny network with spatial softmax attention for tests."""
    sizes = {"layers": (1, 1, 1, 1), "channels": (32, 32, 32, 32)}
    return _create_attn("test_attn_resnet", pretrained, kwargs, attention=attention, **sizes)


for _make in (attn_resnet50, test_attn_resnet):
    _make.formerly = {"attention": "softmax"}  # type: ignore[attr-defined]  # their default in earlier versions

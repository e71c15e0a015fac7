"""ResNet-50 with attention after the last batch norm of every bottleneck, for ImageNet.

`attn_resnet50` has `SpatialSoftmaxAttention`, of kernel 1, as a 3x3 kernel over up to 2048 channels is no longer small; the paper that
attention is from names no network for ImageNet. `cbam_resnet50` has CBAM as in its authors' weights (arXiv 1807.06521): 28,089,624
parameters.

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

from foveal.backbones.cifar_resnet import Attention, attention_layer
from foveal.layers import SpatialSoftmaxAttention

default_cfgs = {
    name: {
        "url": "", "num_classes": 1000, "input_size": (3, side, side), "pool_size": (side // 32, side // 32), "crop_pct": 0.875,
        "interpolation": "bilinear", "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "first_conv": "conv1",
        "classifier": "fc",
    }
    for name, side in (("attn_resnet50", 224), ("cbam_resnet50", 224), ("test_attn_resnet", 64))
}  # fmt: skip


class AttentionResNet(ResNet):
    """timm's ResNet of bottlenecks with a layer of `foveal.backbones.cifar_resnet.ATTENTION` where it has squeeze-and-excitation.

    Args:
        attention: ``softmax``, ``cbam``, ``se``, ``ge`` or ``nl``.
        attention_options: keywords of its layers.
        layers: blocks of each stage.
        options: keywords of timm's ResNet.

    Raises:
        ValueError: an unknown attention or keyword of it.
    """

    def __init__(
        self, attention: Attention = "softmax", attention_options: Mapping[str, Any] | None = None,
        layers: tuple[int, ...] = (3, 4, 6, 3), **options: Any,
    ) -> None:  # fmt: skip
        def make(channels: int, **placement: Any) -> Any:
            return attention_layer(attention, channels, attention_options).to(**placement)

        super().__init__(Bottleneck, layers, block_args={"attn_layer": make}, **options)  # type: ignore[arg-type]

    def init_weights(self, zero_init_last: bool = True) -> None:
        super().init_weights(zero_init_last)
        for module in self.modules():
            # timm has drawn the weights of all convolutions; these must start at zero.
            if isinstance(module, SpatialSoftmaxAttention):
                module.reset_parameters()


def _build(name: str, pretrained: bool, kwargs: dict[str, Any], **ours: Any) -> AttentionResNet:
    return build_model_with_cfg(AttentionResNet, name, pretrained, **{**ours, **kwargs})


@register_model
def attn_resnet50(pretrained: bool = False, **kwargs: Any) -> AttentionResNet:
    """ResNet-50 with spatial softmax attention of kernel 1 in every bottleneck; ``attention_options`` are its keywords."""
    options = kwargs.pop("attention_options", None) or {}
    if kwargs.get("attention", "softmax") == "softmax":
        options = {"kernel_size": 1, **options}
    return _build("attn_resnet50", pretrained, {"attention": "softmax", **kwargs}, attention_options=options)


@register_model
def cbam_resnet50(pretrained: bool = False, **kwargs: Any) -> AttentionResNet:
    """ResNet-50 with CBAM in every bottleneck; ``attention_options`` are its keywords."""
    return _build("cbam_resnet50", pretrained, kwargs, attention="cbam")


@register_model
def test_attn_resnet(pretrained: bool = False, **kwargs: Any) -> AttentionResNet:
    """A tiny network with spatial softmax attention for tests."""
    return _build("test_attn_resnet", pretrained, kwargs, attention="softmax", layers=(1, 1, 1, 1), channels=(32, 32, 32, 32))

"""DenseNet-BC for images of 32 px: ``timm``'s DenseNet with the stem and the three dense blocks for CIFAR.

"Densely Connected Convolutional Networks" (Huang et al., CVPR 2017, arXiv 1608.06993), section 3 and table 2. Names
give the depth L and the growth rate k.

Example:
    >>> import timm, torch
    >>> import foveal.backbones
    >>> net = timm.create_model("densenet_bc_100_12_cifar").eval()
    >>> net.forward_features(torch.rand(1, 3, 32, 32)).shape, sum(p.numel() for p in net.parameters())
    (torch.Size([1, 342, 8, 8]), 769162)
"""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, register_model
from timm.models.densenet import DenseNet
from torch import nn

from foveal.backbones.head import cifar_cfg
from foveal.signatures import typed

default_cfgs = {
    name: cifar_cfg("features.conv0", "classifier")
    for name in (
        "densenet_bc_100_12_cifar",
        "densenet_bc_250_24_cifar",
        "densenet_bc_190_40_cifar",
        "test_densenet_cifar",
    )
}


@typed
class DenseNetCifar(DenseNet):
    """A 3x3 convolution to 2k channels, and three dense blocks of (L - 4) / 6 bottleneck layers with compression 1/2.

    Args:
        depth: L, the number of layers with weights, 6 n + 4.
        growth_rate: k, the number of channels that each layer adds.
        num_classes: number of classes; 0 for no classifier.
        in_chans: number of input bands.
        options: keywords of ``timm``'s ``DenseNet``. The paper's runs without augmentation have ``proj_drop_rate=0.2``.

    Raises:
        ValueError: the depth is not 6 n + 4.
    """

    def __init__(
        self, depth: int = 100, growth_rate: int = 12, num_classes: int = 10, in_chans: int = 3, **options: Any
    ) -> None:
        layers, rest = divmod(depth - 4, 6)
        if rest or layers < 1:
            raise ValueError(f"a DenseNet-BC of three blocks cannot have depth {depth}; use 4 + 6 n, such as 100")
        super().__init__(growth_rate, (layers,) * 3, num_classes=num_classes, in_chans=in_chans, **options)
        self.features.conv0 = nn.Conv2d(in_chans, 2 * growth_rate, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(self.features.conv0.weight)
        del self.features.norm0, self.features.pool0
        self.feature_info[0]["module"] = "features.conv0"
        for info, reduction in zip(self.feature_info, (1, 1, 2, 4), strict=True):
            info["reduction"] = reduction
        # timm counts the two deleted modules.
        self.feature_ends = [0] + [end - 2 for end in self.feature_ends[1:]]


def _create_densenet(name: str, pretrained: bool, **kwargs: Any) -> DenseNetCifar:
    return build_model_with_cfg(
        DenseNetCifar, name, pretrained, feature_cfg={"out_indices": (0, 1, 2, 3), "flatten_sequential": True}, **kwargs
    )


@register_model
def densenet_bc_100_12_cifar(pretrained: bool = False, **kwargs: Any) -> DenseNetCifar:
    """769,162 parameters with 10 classes, 800,032 with 100; published errors 4.51 and 22.27 %."""
    return _create_densenet("densenet_bc_100_12_cifar", pretrained, **kwargs)


@register_model
def densenet_bc_250_24_cifar(pretrained: bool = False, **kwargs: Any) -> DenseNetCifar:
    """15,324,406 parameters with 10 classes, 15,480,556 with 100; published errors 3.62 and 17.60 %."""
    return _create_densenet("densenet_bc_250_24_cifar", pretrained, **{"depth": 250, "growth_rate": 24, **kwargs})


@register_model
def densenet_bc_190_40_cifar(pretrained: bool = False, **kwargs: Any) -> DenseNetCifar:
    """25,624,430 parameters with 10 classes, 25,821,620 with 100; published errors 3.46 and 17.18 %."""
    return _create_densenet("densenet_bc_190_40_cifar", pretrained, **{"depth": 190, "growth_rate": 40, **kwargs})


@register_model
def test_densenet_cifar(pretrained: bool = False, **kwargs: Any) -> DenseNetCifar:
    """A tiny network for tests."""
    return _create_densenet("test_densenet_cifar", pretrained, **{"depth": 16, "growth_rate": 8, **kwargs})

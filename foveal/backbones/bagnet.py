"""BagNets: ResNet-50-like networks that see only a small window of the image at a time.

`bagnet77_tnet` is the variant that TNet is trained with on ImageNet ("Hard-Attention for Scalable Image
Classification", Papadopoulos et al., NeurIPS 2021, arXiv 2102.10212, released code): receptive field 77 px, no
normalisation layers, biases everywhere, LeakyReLU(0.2), channel dropout before the pooling.

Example:
    >>> import timm, torch
    >>> import foveal.backbones
    >>> net = timm.create_model("bagnet77_tnet", num_classes=10).eval()
    >>> net.forward_features(torch.rand(1, 3, 77, 77)).shape, net(torch.rand(1, 3, 77, 77)).shape
    (torch.Size([1, 512, 7, 7]), torch.Size([1, 10]))
"""

from __future__ import annotations

from typing import Any

from timm.layers import create_conv2d
from timm.models import build_model_with_cfg, register_model
from torch import Tensor, nn

default_cfgs = {
    name: {
        "url": "", "num_classes": 1000, "input_size": (3, 77, 77), "pool_size": (7, 7), "crop_pct": 1.0, "interpolation": "bilinear",
        "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "first_conv": "stem.0", "classifier": "fc",
    }
    for name in ("bagnet77_tnet", "test_bagnet_tnet")
}  # fmt: skip


class Bottleneck(nn.Module):
    """1x1 conv, k x k conv, 1x1 conv to four times the width, and a shortcut; an activation after each.

    Args:
        in_channels: channels of the input.
        width: channels of the k x k convolution.
        kernel: 1 or 3.
        stride: of the k x k convolution.
        valid: leave the k x k convolution unpadded, and crop the shortcut to match; else TF's "same" padding.
    """

    def __init__(self, in_channels: int, width: int, kernel: int, stride: int, valid: bool) -> None:
        super().__init__()
        out = 4 * width
        self.act = nn.LeakyReLU(0.2)
        self.conv1 = nn.Conv2d(in_channels, width, 1)
        self.conv2 = create_conv2d(width, width, kernel, stride=stride, padding="valid" if valid else "same", bias=True)
        self.conv3 = nn.Conv2d(width, out, 1)
        self.shortcut = nn.Conv2d(in_channels, out, 1, stride) if stride > 1 or in_channels != out else nn.Identity()
        self.crop = int(valid and kernel == 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv3(self.act(self.conv2(self.act(self.conv1(x)))))
        if self.crop:
            x = x[..., 1:-1, 1:-1]
        return self.act(y + self.shortcut(x))


class BagNetTNet(nn.Module):
    """The norm-free BagNet of TNet.

    Args:
        num_classes: 0 leaves the classifier out.
        in_chans: bands of the input.
        widths: bottleneck width of the four stages.
        kernels: kernel of each block of the four stages.
        strides: of the first block of each stage.
        valid: stages whose first 3x3 convolution is unpadded ("partial 3 valid", with the stem).
        features: channels of the last 1x1 convolution.
        drop_rate: share of channels dropped before the pooling; TNet trains with 0.5, the dense baseline with 0.625.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        widths: tuple[int, ...] = (64, 128, 256, 512),
        kernels: tuple[tuple[int, ...], ...] = ((3, 3, 1), (3, 3, 1, 1), (3, 3, 1, 1, 1, 1), (3, 3, 1)),
        strides: tuple[int, ...] = (2, 2, 2, 1),
        valid: tuple[bool, ...] = (False, False, True, True),
        features: int = 512,
        drop_rate: float = 0.5,
    ) -> None:
        super().__init__()
        self.num_classes, self.in_chans, self.num_features = num_classes, in_chans, features
        self.act = nn.LeakyReLU(0.2)
        self.stem = nn.Sequential(nn.Conv2d(in_chans, widths[0], 3), nn.LeakyReLU(0.2))
        channels, reduction = widths[0], 1
        self.feature_info, stages = [], []
        for i, (width, ks, stride, first_valid) in enumerate(zip(widths, kernels, strides, valid, strict=True)):
            blocks = []
            for j, k in enumerate(ks):
                blocks.append(Bottleneck(channels, width, k, stride if j == 0 else 1, valid=first_valid and j == 0))
                channels = 4 * width
            stages.append(nn.Sequential(*blocks))
            reduction *= stride
            self.feature_info.append({"num_chs": channels, "reduction": reduction, "module": f"stages.{i}"})
        self.stages = nn.Sequential(*stages)
        self.head_conv = nn.Conv2d(channels, features, 1)
        self.drop = nn.Dropout2d(drop_rate)
        self.fc: nn.Module = nn.Identity()
        self.reset_classifier(num_classes)
        self.apply(self._init)

    @staticmethod
    def _init(module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    def get_classifier(self) -> nn.Module:
        return self.fc

    def reset_classifier(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.fc = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        self._init(self.fc)

    def forward_features(self, x: Tensor) -> Tensor:
        return self.act(self.head_conv(self.stages(self.stem(x))))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.drop(x).mean((2, 3))
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def _build(name: str, pretrained: bool, **kwargs: Any) -> BagNetTNet:
    return build_model_with_cfg(
        BagNetTNet, name, pretrained, feature_cfg={"out_indices": (0, 1, 2, 3), "flatten_sequential": True}, **kwargs
    )


@register_model
def bagnet77_tnet(pretrained: bool = False, **kwargs: Any) -> BagNetTNet:
    """Receptive field 77 px; 20,033,664 parameters without the classifier."""
    return _build("bagnet77_tnet", pretrained, **kwargs)


@register_model
def test_bagnet_tnet(pretrained: bool = False, **kwargs: Any) -> BagNetTNet:
    """The same shape with few channels, for tests."""
    # Fewer than 16 crash torch 2.15 on a CPU, in the backward pass of a strided 1x1 convolution with channels last.
    return _build("test_bagnet_tnet", pretrained, **{"widths": (16,) * 4, "features": 16, **kwargs})

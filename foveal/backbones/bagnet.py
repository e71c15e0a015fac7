"""BagNets: ResNet-50-like networks that see only a small window of the image at a time.

* `bagnet77` and its smaller fields, with and without a narrow last layer (``_lowd``): the networks that Saccader reads its glimpses
  from ("Saccader: Improving Accuracy of Hard Attention Models for Vision", Elsayed et al., NeurIPS 2019, arXiv 1908.07644, released
  code). Nothing is padded, so that a cell of the feature map depends on its window of the image and on nothing else. The idea is of
  "Approximating CNNs with Bag-of-local-Features Models" (Brendel and Bethge, ICLR 2019, arXiv 1904.00760).
* `bagnet77_tnet`: the variant that TNet is trained with on ImageNet ("Hard-Attention for Scalable Image Classification", Papadopoulos
  et al., NeurIPS 2021, arXiv 2102.10212, released code): receptive field 77 px, no normalisation layers, biases everywhere,
  LeakyReLU(0.2), channel dropout before the pooling.

Example:
    >>> import timm, torch
    >>> import foveal.backbones
    >>> net = timm.create_model("bagnet77_tnet", num_classes=10).eval()
    >>> net.forward_features(torch.rand(1, 3, 77, 77)).shape, net(torch.rand(1, 3, 77, 77)).shape
    (torch.Size([1, 512, 7, 7]), torch.Size([1, 10]))
    >>> net = timm.create_model("bagnet_small", num_classes=10)
    >>> net.receptive_field, net.jump, net.grid(64), net.forward_features(torch.rand(2, 3, 64, 64)).shape
    (13, 2, 26, torch.Size([2, 256, 26, 26]))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import create_conv2d
from timm.models import build_model_with_cfg, register_model
from torch import Tensor, nn

from foveal.backbones.head import Headed, Stage

default_cfgs = {
    name: {
        "url": "", "num_classes": 1000, "input_size": (3, 77, 77), "pool_size": (7, 7), "crop_pct": 1.0, "interpolation": "bilinear",
        "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "first_conv": "stem.0", "classifier": "fc",
    }
    for name in ("bagnet77_tnet", "test_bagnet_tnet")
} | {
    name: {
        "url": "", "num_classes": 1000, "input_size": (3, side, side), "pool_size": (cells, cells), "crop_pct": 0.9106,
        "interpolation": "bicubic", "mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD, "first_conv": "stem.0", "classifier": "fc",
    }
    for name, side, cells in (
        ("bagnet9", 224, 27), ("bagnet17", 224, 26), ("bagnet33", 224, 24), ("bagnet77", 224, 19),
        ("bagnet9_lowd", 224, 27), ("bagnet17_lowd", 224, 26), ("bagnet33_lowd", 224, 24), ("bagnet77_lowd", 224, 19),
        ("bagnet_small", 64, 26), ("test_bagnet", 32, 5), ("test_bagnet_lowd", 32, 5),
    )
}  # fmt: skip

EXPANSION = 4
DownsampleBN = Literal["main", "shortcut"]


class BagNetBottleneck(nn.Module):
    """1x1 conv, k x k conv, 1x1 conv to four times the width, and a shortcut; an activation after each.

    Args:
        conv1: the first 1x1 convolution, with its norm if it has one; ``conv2`` and ``conv3`` likewise.
        shortcut: what makes the shapes of the two paths agree.
        crop: leave out the outermost pixels of the shortcut, as a 3x3 convolution without padding does. This comes before a stride,
            so that the shortcut has the centre of each 3x3 window.
        act: the activation.
    """

    def __init__(self, conv1: nn.Module, conv2: nn.Module, conv3: nn.Module, shortcut: nn.Module, crop: bool, act: nn.Module) -> None:
        super().__init__()
        self.act = act
        self.conv1, self.conv2, self.conv3, self.shortcut = conv1, conv2, conv3, shortcut
        self.crop = crop

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv3(self.act(self.conv2(self.act(self.conv1(x)))))
        if self.crop:
            x = x[..., 1:-1, 1:-1]
        return self.act(y + self.shortcut(x))


def _stages(
    channels: int, widths: Sequence[int], kernels: Sequence[Sequence[int]], strides: Sequence[int],
    block: Callable[[int, int, int, int, int, int], BagNetBottleneck],
) -> tuple[nn.Sequential, list[dict[str, Any]]]:  # fmt: skip
    """Stages of blocks, and timm's ``feature_info``; ``block`` gets channels, width, kernel, stride, stage and position in the stage."""
    stages, info, reduction = [], [], 1
    for i, (width, ks, stride) in enumerate(zip(widths, kernels, strides, strict=True)):
        blocks = []
        for j, k in enumerate(ks):
            blocks.append(block(channels, width, k, stride if j == 0 else 1, i, j))
            channels = EXPANSION * width
        stages.append(Stage(*blocks))
        reduction *= stride
        info.append({"num_chs": channels, "reduction": reduction, "module": f"stages.{i}"})
    return nn.Sequential(*stages), info


def _glorot(module: nn.Module, fill: Callable[[Tensor], Tensor]) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        fill(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class BagNet(Headed):
    """The BagNet of Saccader: batch norm after every convolution, and no padding anywhere.

    Cell (i, j) of the feature map sees rows ``jump * i`` to ``jump * i + receptive_field - 1`` of the image, columns likewise. Images may
    be of any size that has room for one window; pixels at the bottom and the right that fill no further window are not seen.

    The classifier is linear and so commutes with the mean: `forward` classifies the mean of the cells, which equals the mean of what
    ``fc`` says of each.

    Args:
        num_classes: 0 leaves the classifier out.
        in_chans: bands of the input.
        layers: blocks of each stage.
        widths: bottleneck width of each stage; its output has four times as many channels.
        strides: of the first block of each stage.
        kernel3: how many blocks of each stage, from its first, have a 3x3 convolution; the others have 1x1.
        stem: channels of the first convolution.
        low_dim: channels of the 1x1 convolution before the classifier; 0 for none.
        downsample_bn: where the blocks with a projected shortcut have the batch norm that belongs to it. ``main``, as released: the main
            path is normalised a second time, and the shortcut is not, so that what such a block adds in training does not depend on the
            magnitude of the scale before, and the scale's zero at the start, where its gradient is about 316 times as large, holds nothing
            back. ``shortcut``, as in textbooks; has as many parameters.
        drop_rate: dropout before the classifier.

    Attributes:
        num_features: channels that the classifier sees: ``low_dim``, or those of the feature map.
        feature_channels: channels of the feature map.
        receptive_field: side of the window that one cell sees, in px.
        jump: distance between the windows of neighbouring cells, in px.

    Raises:
        ValueError: options that do not fit each other, or an unknown ``downsample_bn``.
    """

    def __init__(
        self, num_classes: int = 1000, in_chans: int = 3, *, layers: Sequence[int] = (3, 4, 6, 3),
        widths: Sequence[int] = (64, 128, 256, 512), strides: Sequence[int] = (2, 2, 2, 1), kernel3: Sequence[int] = (2, 2, 2, 2),
        stem: int = 64, low_dim: int = 512, downsample_bn: DownsampleBN = "main", drop_rate: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(drop_rate)
        if len({len(layers), len(widths), len(strides), len(kernel3)}) > 1:
            raise ValueError(
                f"layers={tuple(layers)}, widths={tuple(widths)}, strides={tuple(strides)} and kernel3={tuple(kernel3)} are of different "
                "lengths; give one number for each stage in all of them"
            )
        if any(not 0 <= k <= n or n < 1 for k, n in zip(kernel3, layers, strict=True)):
            raise ValueError(f"kernel3={tuple(kernel3)} has to be from 0 to layers={tuple(layers)}, and layers at least 1, in every stage")
        if downsample_bn not in get_args(DownsampleBN):
            raise ValueError(f"downsample_bn={downsample_bn!r} is unknown; use {' or '.join(get_args(DownsampleBN))}")
        self.in_chans = in_chans
        self.stem = nn.Sequential(*_conv_norm(in_chans, stem, 3), nn.ReLU())
        kernels = [[3] * k + [1] * (n - k) for k, n in zip(kernel3, layers, strict=True)]
        self.stages, self.feature_info = _stages(
            stem, widths, kernels, strides, lambda c, width, k, s, _stage, _j: _normed_block(c, width, k, s, downsample_bn)
        )
        self.feature_channels = EXPANSION * widths[-1]
        self.num_features = low_dim or self.feature_channels
        self.what = nn.Sequential(*_conv_norm(self.feature_channels, low_dim), nn.ReLU()) if low_dim else nn.Identity()
        self.receptive_field, self.jump = 1, 1
        # Along the main path; the shortcuts see the centres of the same windows.
        for conv in (m for name, m in self.named_modules() if isinstance(m, nn.Conv2d) and "shortcut" not in name):
            self.receptive_field += self.jump * (conv.kernel_size[0] - 1)
            self.jump *= conv.stride[0]
        self.reset_classifier(num_classes)
        self.apply(lambda module: _glorot(module, nn.init.xavier_uniform_))

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        super().reset_classifier(num_classes, global_pool)
        _glorot(self.fc, nn.init.xavier_uniform_)

    def grid(self, side: int) -> int:
        """Cells along an axis of ``side`` px; 0 where there is no room for one window."""
        return max(0, (side - self.receptive_field) // self.jump + 1)

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) images to the (B, feature_channels, grid(H), grid(W)) feature map.

        Raises:
            ValueError: an image smaller than the receptive field.
        """
        if min(x.shape[-2:]) < self.receptive_field:
            raise ValueError(
                f"images of {x.shape[-2]} x {x.shape[-1]} px have no room for a window of {self.receptive_field} px; "
                "give larger images, or choose a BagNet with a smaller receptive field"
            )
        return self.stages(self.stem(x))

    def reduce(self, features: Tensor) -> Tensor:
        """The feature map to (B, num_features, h, w), what the classifier sees of each cell ("what" in the paper)."""
        return self.what(features)

    def pooled(self, x: Tensor) -> Tensor:
        return self.reduce(x).mean((2, 3))


def _conv_norm(channels: int, out: int, kernel: int = 1, stride: int = 1) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    return nn.Conv2d(channels, out, kernel, stride, bias=False), nn.BatchNorm2d(out)


def _normed_block(channels: int, width: int, kernel: int, stride: int, downsample_bn: str) -> BagNetBottleneck:
    out = EXPANSION * width
    last, zeroed = _conv_norm(width, out)
    nn.init.zeros_(zeroed.weight)
    main, shortcut = nn.Sequential(last, zeroed), nn.Sequential()
    if stride > 1 or channels != out:
        projection, norm = _conv_norm(channels, out, stride=stride)
        shortcut.append(projection)
        (main if downsample_bn == "main" else shortcut).append(norm)
    conv1, conv2 = nn.Sequential(*_conv_norm(channels, width)), nn.Sequential(*_conv_norm(width, width, kernel, stride))
    return BagNetBottleneck(conv1, conv2, main, shortcut, kernel == 3, nn.ReLU())


class BagNetTNet(Headed):
    """The norm-free BagNet of TNet.

    Args:
        num_classes: 0 leaves the classifier out.
        in_chans: bands of the input.
        widths: bottleneck width of the four stages.
        kernels: kernel of each block of the four stages.
        strides: of the first block of each stage.
        valid: stages whose first 3x3 convolution is unpadded ("partial 3 valid", with the stem); the others have TF's "same" padding.
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
        self.in_chans, self.num_features = in_chans, features
        self.act = nn.LeakyReLU(0.2)
        self.stem = nn.Sequential(nn.Conv2d(in_chans, widths[0], 3), nn.LeakyReLU(0.2))
        self.stages, self.feature_info = _stages(
            widths[0], widths, kernels, strides, lambda c, width, k, s, i, j: _norm_free_block(c, width, k, s, valid[i] and j == 0)
        )
        self.head_conv = nn.Conv2d(EXPANSION * widths[-1], features, 1)
        self.drop = nn.Dropout2d(drop_rate)
        self.reset_classifier(num_classes)
        self.apply(lambda module: _glorot(module, nn.init.xavier_normal_))

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        super().reset_classifier(num_classes, global_pool)
        _glorot(self.fc, nn.init.xavier_normal_)

    def forward_features(self, x: Tensor) -> Tensor:
        return self.act(self.head_conv(self.stages(self.stem(x))))

    def pooled(self, x: Tensor) -> Tensor:
        return self.drop(x).mean((2, 3))


def _norm_free_block(channels: int, width: int, kernel: int, stride: int, valid: bool) -> BagNetBottleneck:
    out = EXPANSION * width
    conv2 = create_conv2d(width, width, kernel, stride=stride, padding="valid" if valid else "same", bias=True)
    projection = nn.Conv2d(channels, out, 1, stride) if stride > 1 or channels != out else nn.Identity()
    return BagNetBottleneck(
        nn.Conv2d(channels, width, 1), conv2, nn.Conv2d(width, out, 1), projection, valid and kernel == 3, nn.LeakyReLU(0.2)
    )


FEATURES = {"out_indices": (0, 1, 2, 3), "flatten_sequential": True}
FIELDS = {9: (1, 1, 0, 0), 17: (1, 1, 1, 0), 33: (1, 1, 1, 1), 77: (2, 2, 2, 2)}


def _build(name: str, pretrained: bool, kwargs: dict[str, Any], **ours: Any) -> BagNet:
    return build_model_with_cfg(BagNet, name, pretrained, feature_cfg=dict(FEATURES), **{**ours, **kwargs})


def _build_tnet(name: str, pretrained: bool, kwargs: dict[str, Any], **ours: Any) -> BagNetTNet:
    return build_model_with_cfg(BagNetTNet, name, pretrained, feature_cfg=dict(FEATURES), **{**ours, **kwargs})


@register_model
def bagnet9(pretrained: bool = False, **kwargs: Any) -> BagNet:
    """Receptive field 9 px, jump 8 px; 15,653,416 parameters, 14.2 G MACs at 224 px."""
    return _build("bagnet9", pretrained, kwargs, kernel3=FIELDS[9], low_dim=0)


@register_model
def bagnet17(pretrained: bool = False, **kwargs: Any) -> BagNet:
    """Receptive field 17 px, jump 8 px; 16,177,704 parameters, 13.9 G MACs at 224 px."""
    return _build("bagnet17", pretrained, kwargs, kernel3=FIELDS[17], low_dim=0)


@register_model
def bagnet33(pretrained: bool = False, **kwargs: Any) -> BagNet:
    """Receptive field 33 px, jump 8 px; 18,274,856 parameters, 14.3 G MACs at 224 px."""
    return _build("bagnet33", pretrained, kwargs, kernel3=FIELDS[33], low_dim=0)


@register_model
def bagnet77(pretrained: bool = False, **kwargs: Any) -> BagNet:
    """Receptive field 77 px, jump 8 px; 21,060,136 parameters, 13.5 G MACs at 224 px."""
    return _build("bagnet77", pretrained, kwargs, kernel3=FIELDS[77], low_dim=0)


@register_model
def bagnet9_lowd(pretrained: bool = False, **kwargs: Any) -> BagNet:
    """`bagnet9` with 512 channels before the classifier; 15,167,016 parameters."""
    return _build("bagnet9_lowd", pretrained, kwargs, kernel3=FIELDS[9], low_dim=512)


@register_model
def bagnet17_lowd(pretrained: bool = False, **kwargs: Any) -> BagNet:
    """`bagnet17` with 512 channels before the classifier; 15,691,304 parameters."""
    return _build("bagnet17_lowd", pretrained, kwargs, kernel3=FIELDS[17], low_dim=512)


@register_model
def bagnet33_lowd(pretrained: bool = False, **kwargs: Any) -> BagNet:
    """`bagnet33` with 512 channels before the classifier; 17,788,456 parameters."""
    return _build("bagnet33_lowd", pretrained, kwargs, kernel3=FIELDS[33], low_dim=512)


@register_model
def bagnet77_lowd(pretrained: bool = False, **kwargs: Any) -> BagNet:
    """`bagnet77` with 512 channels before the classifier, Saccader's own; 20,573,736 parameters, 13.9 G MACs at 224 px."""
    return _build("bagnet77_lowd", pretrained, kwargs, kernel3=FIELDS[77], low_dim=512)


@register_model
def bagnet_small(pretrained: bool = False, **kwargs: Any) -> BagNet:
    """For looks of 32 to 128 px on a CPU: receptive field 13 px, jump 2 px; 239,642 parameters with 10 classes.

    26.2 M MACs and 10 x 10 cells at 32 px, 166 M and 26 x 26 at 64 px.
    """
    small = {
        "layers": (1, 2, 2, 1), "widths": (16, 32, 48, 64), "strides": (2, 1, 1, 1), "kernel3": (1, 1, 1, 0), "stem": 16, "low_dim": 128
    }  # fmt: skip
    return _build("bagnet_small", pretrained, kwargs, **small)


# Fewer than 16 channels crash torch 2.15 on a CPU, in the backward pass of a strided 1x1 convolution with channels last.
TINY = {"layers": (2, 1, 1, 1), "widths": (16,) * 4, "strides": (2, 2, 1, 1), "kernel3": (2, 1, 0, 0), "stem": 16}


@register_model
def test_bagnet(pretrained: bool = False, **kwargs: Any) -> BagNet:
    """Receptive field 13 px, jump 4 px, for tests."""
    return _build("test_bagnet", pretrained, kwargs, **TINY, low_dim=0)


@register_model
def test_bagnet_lowd(pretrained: bool = False, **kwargs: Any) -> BagNet:
    """The same with the bottleneck, for tests."""
    return _build("test_bagnet_lowd", pretrained, kwargs, **TINY, low_dim=16)


@register_model
def bagnet77_tnet(pretrained: bool = False, **kwargs: Any) -> BagNetTNet:
    """Receptive field 77 px; 20,033,664 parameters without the classifier."""
    return _build_tnet("bagnet77_tnet", pretrained, kwargs)


@register_model
def test_bagnet_tnet(pretrained: bool = False, **kwargs: Any) -> BagNetTNet:
    """The same shape with few channels, for tests."""
    return _build_tnet("test_bagnet_tnet", pretrained, kwargs, widths=(16,) * 4, features=16)

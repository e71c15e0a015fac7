"""BagNets: networks like ResNet-50 with a small receptive field.

* `bagnet77` and smaller fields, with and without a narrow last layer (``_lowd``): Saccader reads its glimpses from
  these ("Saccader: Improving Accuracy of Hard Attention Models for Vision", Elsayed et al., NeurIPS 2019, arXiv
  1908.07644, released code). Nothing is padded, so a cell of the feature map depends on its window of the image only.
  BagNets come from "Approximating CNNs with Bag-of-local-Features Models" (Brendel and Bethge, ICLR 2019, arXiv
  1904.00760).
* `bagnet77_tnet`: TNet's backbone on ImageNet ("Hard-Attention for Scalable Image Classification", Papadopoulos et al.,
  NeurIPS 2021, arXiv 2102.10212, released code): receptive field 77 px, no normalisation, biases everywhere,
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

from timm.layers import create_conv2d
from timm.models import build_model_with_cfg, register_model
from torch import Tensor, nn

from foveal.backbones.head import ClassifierBackbone, Stage, image_cfg
from foveal.layers.initialise import glorot

default_cfgs = {
    name: image_cfg(77, 7, crop_pct=1.0, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), first_conv="stem.0")
    for name in ("bagnet77_tnet", "test_bagnet_tnet")
} | {
    name: image_cfg(side, cells, crop_pct=0.9106, interpolation="bicubic", first_conv="stem.0")
    for name, side, cells in (
        ("bagnet9", 224, 27),
        ("bagnet17", 224, 26),
        ("bagnet33", 224, 24),
        ("bagnet77", 224, 19),
        ("bagnet9_lowd", 224, 27),
        ("bagnet17_lowd", 224, 26),
        ("bagnet33_lowd", 224, 24),
        ("bagnet77_lowd", 224, 19),
        ("bagnet_small", 64, 26),
        ("test_bagnet", 32, 5),
        ("test_bagnet_lowd", 32, 5),
    )
}

EXPANSION = 4
DownsampleBN = Literal["main", "shortcut"]


class BagNetBottleneck(nn.Module):
    """1x1 conv, k x k conv and 1x1 conv to four times the width, plus a shortcut; an activation after each.

    Args:
        conv1: the first 1x1 convolution with its norm, if any; likewise ``conv2`` and ``conv3``.
        shortcut: projection of the input to the shape of the main path.
        crop: crop one pixel at each edge of the shortcut, as an unpadded 3x3 convolution does. The crop precedes a
            stride, so the shortcut takes the centre of each 3x3 window.
        act: the activation.
    """

    def __init__(
        self, conv1: nn.Module, conv2: nn.Module, conv3: nn.Module, shortcut: nn.Module, crop: bool, act: nn.Module
    ) -> None:
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
    channels: int,
    widths: Sequence[int],
    kernels: Sequence[Sequence[int]],
    strides: Sequence[int],
    block: Callable[[int, int, int, int, int, int], BagNetBottleneck],
) -> tuple[nn.Sequential, list[dict[str, Any]]]:
    """Make stages and ``feature_info``. ``block`` takes channels, width, kernel, stride, stage and position."""
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


class BagNet(ClassifierBackbone):
    """BagNet as in Saccader: batch norm after each convolution, no padding.

    Cell (i, j) of the feature map sees rows ``jump * i`` to ``jump * i + receptive_field - 1`` of the image, and
    likewise for columns. Images can have any size from the receptive field. Pixels at the bottom and right that do not
    fill a window are ignored.

    The classifier is linear, so the logits of the mean of all cells equal the mean of the logits of all cells.

    Args:
        num_classes: number of classes; 0 for no classifier.
        in_chans: number of input bands.
        layers: number of blocks per stage.
        widths: bottleneck width per stage. The output has four times as many channels.
        strides: stride of the first block per stage.
        kernel3: number of blocks per stage, from the first, with a 3x3 convolution; the others have 1x1.
        stem: channels of the first convolution.
        low_dim: channels of the 1x1 convolution before the classifier; 0 for none.
        downsample_bn: place of the batch norm of a projected shortcut. ``main`` (released code) puts a second batch
            norm on the main path and none on the shortcut. The output in training then does not depend on the magnitude
            of the scale before, and that scale can start at zero: its gradient is then about 316 times as large.
            ``shortcut`` is the usual place, with as many parameters.
        drop_rate: dropout rate before the classifier.

    Attributes:
        num_features: number of input features of the classifier: ``low_dim`` or ``feature_channels``.
        feature_channels: channels of the feature map.
        receptive_field: side of the window of a cell in pixels.
        jump: distance between neighbouring windows in pixels.

    Raises:
        ValueError: options do not fit together, or ``downsample_bn`` is unknown.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        *,
        layers: Sequence[int] = (3, 4, 6, 3),
        widths: Sequence[int] = (64, 128, 256, 512),
        strides: Sequence[int] = (2, 2, 2, 1),
        kernel3: Sequence[int] = (2, 2, 2, 2),
        stem: int = 64,
        low_dim: int = 512,
        downsample_bn: DownsampleBN = "main",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__(drop_rate)
        if len({len(layers), len(widths), len(strides), len(kernel3)}) > 1:
            raise ValueError(
                f"layers={tuple(layers)}, widths={tuple(widths)}, strides={tuple(strides)} and "
                f"kernel3={tuple(kernel3)} are of different "
                "lengths; give one number for each stage in all of them"
            )
        if any(not 0 <= k <= n or n < 1 for k, n in zip(kernel3, layers, strict=True)):
            raise ValueError(
                f"kernel3={tuple(kernel3)} must be from 0 to layers={tuple(layers)}, and layers at least 1, in each "
                "stage"
            )
        if downsample_bn not in get_args(DownsampleBN):
            raise ValueError(f"downsample_bn={downsample_bn!r} is unknown; use {' or '.join(get_args(DownsampleBN))}")
        self.in_chans = in_chans
        self.stem = nn.Sequential(*_conv_norm(in_chans, stem, 3), nn.ReLU())
        kernels = [[3] * k + [1] * (n - k) for k, n in zip(kernel3, layers, strict=True)]
        self.stages, self.feature_info = _stages(
            stem,
            widths,
            kernels,
            strides,
            lambda c, width, k, s, _stage, _j: _normed_block(c, width, k, s, downsample_bn),
        )
        self.feature_channels = EXPANSION * widths[-1]
        self.num_features = low_dim or self.feature_channels
        self.what = nn.Sequential(*_conv_norm(self.feature_channels, low_dim), nn.ReLU()) if low_dim else nn.Identity()
        self.receptive_field, self.jump = 1, 1
        # Main path only; shortcuts see the centres of the same windows.
        for conv in (m for name, m in self.named_modules() if isinstance(m, nn.Conv2d) and "shortcut" not in name):
            self.receptive_field += self.jump * (conv.kernel_size[0] - 1)
            self.jump *= conv.stride[0]
        self.reset_classifier(num_classes)
        self.apply(glorot)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        super().reset_classifier(num_classes, global_pool)
        glorot(self.fc)

    def grid(self, side: int) -> int:
        """Number of cells along an axis of ``side`` pixels; 0 if it is below the receptive field."""
        return max(0, (side - self.receptive_field) // self.jump + 1)

    def forward_features(self, x: Tensor) -> Tensor:
        """Feature map (B, feature_channels, grid(H), grid(W)) of images (B, in_chans, H, W).

        Raises:
            ValueError: images are smaller than the receptive field.
        """
        if min(x.shape[-2:]) < self.receptive_field:
            raise ValueError(
                f"images of {x.shape[-2]} x {x.shape[-1]} px are smaller than the receptive field of "
                f"{self.receptive_field} px; "
                "give larger images, or choose a BagNet with a smaller receptive field"
            )
        return self.stages(self.stem(x))

    def reduce(self, features: Tensor) -> Tensor:
        """Features (B, num_features, h, w) of each cell for the classifier ("what" in the paper)."""
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


class BagNetTNet(ClassifierBackbone):
    """BagNet without normalisation, as in TNet.

    Args:
        num_classes: number of classes; 0 for no classifier.
        in_chans: number of input bands.
        widths: bottleneck width per stage.
        kernels: kernel sizes of the blocks of each stage.
        strides: stride of the first block per stage.
        valid: whether the first 3x3 convolution of a stage is unpadded (the paper's "partial 3 valid", with the stem);
            others have TensorFlow's "same" padding.
        features: channels of the last 1x1 convolution.
        drop_rate: rate of channel dropout before the pooling; TNet trains with 0.5, the dense baseline with 0.625.
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
            widths[0],
            widths,
            kernels,
            strides,
            lambda c, width, k, s, i, j: _norm_free_block(c, width, k, s, valid[i] and j == 0),
        )
        self.head_conv = nn.Conv2d(EXPANSION * widths[-1], features, 1)
        self.drop = nn.Dropout2d(drop_rate)
        self.reset_classifier(num_classes)
        self.apply(lambda module: glorot(module, nn.init.xavier_normal_))

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        super().reset_classifier(num_classes, global_pool)
        glorot(self.fc, nn.init.xavier_normal_)

    def forward_features(self, x: Tensor) -> Tensor:
        return self.act(self.head_conv(self.stages(self.stem(x))))

    def pooled(self, x: Tensor) -> Tensor:
        return self.drop(x).mean((2, 3))


def _norm_free_block(channels: int, width: int, kernel: int, stride: int, valid: bool) -> BagNetBottleneck:
    out = EXPANSION * width
    conv2 = create_conv2d(width, width, kernel, stride=stride, padding="valid" if valid else "same", bias=True)
    projection = nn.Conv2d(channels, out, 1, stride) if stride > 1 or channels != out else nn.Identity()
    conv1, conv3 = nn.Conv2d(channels, width, 1), nn.Conv2d(width, out, 1)
    return BagNetBottleneck(conv1, conv2, conv3, projection, valid and kernel == 3, nn.LeakyReLU(0.2))


FEATURES = {"out_indices": (0, 1, 2, 3), "flatten_sequential": True}
FIELDS = {9: (1, 1, 0, 0), 17: (1, 1, 1, 0), 33: (1, 1, 1, 1), 77: (2, 2, 2, 2)}


def _create_bagnet(name: str, pretrained: bool, kwargs: dict[str, Any], **defaults: Any) -> BagNet:
    return build_model_with_cfg(BagNet, name, pretrained, feature_cfg=dict(FEATURES), **{**defaults, **kwargs})


def _create_bagnet_tnet(name: str, pretrained: bool, kwargs: dict[str, Any], **defaults: Any) -> BagNetTNet:
    return build_model_with_cfg(BagNetTNet, name, pretrained, feature_cfg=dict(FEATURES), **{**defaults, **kwargs})


@register_model
def bagnet9(pretrained: bool = False, **kwargs: Any) -> BagNet:
    """Receptive field 9 px, jump 8 px; 15,653,416 parameters, 14.2 G MACs at 224 px."""
    return _create_bagnet("bagnet9", pretrained, kwargs, kernel3=FIELDS[9], low_dim=0)


@register_model
def bagnet17(pretrained: bool = False, **kwargs: Any) -> BagNet:
    """Receptive field 17 px, jump 8 px; 16,177,704 parameters, 13.9 G MACs at 224 px."""
    return _create_bagnet("bagnet17", pretrained, kwargs, kernel3=FIELDS[17], low_dim=0)


@register_model
def bagnet33(pretrained: bool = False, **kwargs: Any) -> BagNet:
    """Receptive field 33 px, jump 8 px; 18,274,856 parameters, 14.3 G MACs at 224 px."""
    return _create_bagnet("bagnet33", pretrained, kwargs, kernel3=FIELDS[33], low_dim=0)


@register_model
def bagnet77(pretrained: bool = False, **kwargs: Any) -> BagNet:
    """Receptive field 77 px, jump 8 px; 21,060,136 parameters, 13.5 G MACs at 224 px."""
    return _create_bagnet("bagnet77", pretrained, kwargs, kernel3=FIELDS[77], low_dim=0)


@register_model
def bagnet9_lowd(pretrained: bool = False, **kwargs: Any) -> BagNet:
    """`bagnet9` with 512 channels before the classifier; 15,167,016 parameters."""
    return _create_bagnet("bagnet9_lowd", pretrained, kwargs, kernel3=FIELDS[9], low_dim=512)


@register_model
def bagnet17_lowd(pretrained: bool = False, **kwargs: Any) -> BagNet:
    """`bagnet17` with 512 channels before the classifier; 15,691,304 parameters."""
    return _create_bagnet("bagnet17_lowd", pretrained, kwargs, kernel3=FIELDS[17], low_dim=512)


@register_model
def bagnet33_lowd(pretrained: bool = False, **kwargs: Any) -> BagNet:
    """`bagnet33` with 512 channels before the classifier; 17,788,456 parameters."""
    return _create_bagnet("bagnet33_lowd", pretrained, kwargs, kernel3=FIELDS[33], low_dim=512)


@register_model
def bagnet77_lowd(pretrained: bool = False, **kwargs: Any) -> BagNet:
    """`bagnet77` with 512 channels before the classifier, as in Saccader.

    20,573,736 parameters, 13.9 G MACs at 224 px.
    """
    return _create_bagnet("bagnet77_lowd", pretrained, kwargs, kernel3=FIELDS[77], low_dim=512)


@register_model
def bagnet_small(pretrained: bool = False, **kwargs: Any) -> BagNet:
    """BagNet for images of 32 to 128 px on a CPU: receptive field 13 px, jump 2 px; 239,642 parameters with 10 classes.

    26.2 M MACs and 10 x 10 cells at 32 px, 166 M and 26 x 26 at 64 px.
    """
    small = {
        "layers": (1, 2, 2, 1),
        "widths": (16, 32, 48, 64),
        "strides": (2, 1, 1, 1),
        "kernel3": (1, 1, 1, 0),
        "stem": 16,
        "low_dim": 128,
    }
    return _create_bagnet("bagnet_small", pretrained, kwargs, **small)


# With fewer than 16 channels, torch 2.15 crashes on a CPU in the backward pass of a strided channels-last 1x1
# convolution.
TINY = {"layers": (2, 1, 1, 1), "widths": (16,) * 4, "strides": (2, 2, 1, 1), "kernel3": (2, 1, 0, 0), "stem": 16}


@register_model
def test_bagnet(pretrained: bool = False, **kwargs: Any) -> BagNet:
    """A tiny network for tests: receptive field 13 px, jump 4 px."""
    return _create_bagnet("test_bagnet", pretrained, kwargs, **TINY, low_dim=0)


@register_model
def test_bagnet_lowd(pretrained: bool = False, **kwargs: Any) -> BagNet:
    """`test_bagnet` with a narrow last layer, for tests."""
    return _create_bagnet("test_bagnet_lowd", pretrained, kwargs, **TINY, low_dim=16)


@register_model
def bagnet77_tnet(pretrained: bool = False, **kwargs: Any) -> BagNetTNet:
    """Receptive field 77 px; 20,033,664 parameters without the classifier."""
    return _create_bagnet_tnet("bagnet77_tnet", pretrained, kwargs)


@register_model
def test_bagnet_tnet(pretrained: bool = False, **kwargs: Any) -> BagNetTNet:
    """A tiny network for tests."""
    return _create_bagnet_tnet("test_bagnet_tnet", pretrained, kwargs, widths=(16,) * 4, features=16)

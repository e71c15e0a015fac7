"""ResNets for images of 32 x 32 px: plain, with attention after residual branches, or with other convolutions.

* `resnet110_cifar` and shallower: "Deep Residual Learning for Image Recognition", section 4.2 (He et al., 2015,
  arXiv 1512.03385).
* `preact_resnet110_cifar`: "Identity Mappings in Deep Residual Networks" (He et al., 2016, arXiv 1603.05027).
* `attn_resnet110_cifar`: "Attention-Based Convolutional Neural Networks for Image Classification". The paper does not
  say where its modules are. Here they are after the last batch norm of each residual branch, as in
  squeeze-and-excitation.
* `se_`, `cbam_`, `ge_`, `nl_`: squeeze-and-excitation (arXiv 1709.01507), CBAM, Gather-Excite (global, without
  parameters), and two non-local blocks in the middle of stages 2 and 3.
* `expatt_`, `aa_`: explicitly modelled attention and attention augmentation in the first 3x3 convolution of each block,
  as in the wide ResNet of arXiv 1904.09925. They have one head: a tenth of 16 channels cannot be divided into eight.

Public weights of the plain networks with shortcut A load by ``foveal.create_model("resnet20_cifar", pretrained=FILE)``.
The file holds {"state_dict": ...} with keys as on the left; `filter_keys` maps them to those on the right:

    module.conv1.weight                     conv1.weight
    module.bn1.{weight, bias, running_*}    bn1.{...}
    module.layer1.0.conv1.weight            layer1.0.conv1.weight    (and so on; shortcuts have no weights)
    module.linear.{weight, bias}            fc.{weight, bias}

These weights expect the mean (0.485, 0.456, 0.406) and standard deviation (0.229, 0.224, 0.225) of ImageNet.
``default_cfgs`` has those of CIFAR-10, so pass ``mean`` and ``std`` to `foveal.glimpse.base.WholeImage`.

Example:
    >>> import timm, torch
    >>> import foveal.backbones
    >>> net = timm.create_model("attn_resnet20_cifar")
    >>> net(torch.rand(2, 3, 32, 32)).shape, net.forward_features(torch.rand(2, 3, 32, 32)).shape
    (torch.Size([2, 10]), torch.Size([2, 64, 8, 8]))
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any, Literal, get_args

from timm.layers import SelectAdaptivePool2d, SEModule
from timm.models import build_model_with_cfg, register_model
from torch import Tensor, nn
from torch.nn import functional as F

from foveal.backbones.head import ClassifierBackbone, Stage, cifar_cfg, model_signature
from foveal.layers import (
    CBAM,
    AttentionAugmentation,
    ExplicitAttention,
    GatherExcite,
    NarrowedConv,
    NonLocal,
    SpatialSoftmaxAttention,
    augment_convs,
)

ATTENTION: dict[str, Callable[..., nn.Module]] = {
    "bounded": SpatialSoftmaxAttention,
    "softmax": partial(SpatialSoftmaxAttention, mode="scaled"),  # the default of earlier versions, which runs name
    "se": partial(SEModule, rd_ratio=1 / 16, rd_divisor=1),
    "cbam": CBAM,
    "ge": GatherExcite,
    "nl": NonLocal,
}
CONVS: dict[str, Callable[..., nn.Module]] = {
    "expatt": ExplicitAttention,
    "aa": partial(AttentionAugmentation, heads=1),
    "narrow": NarrowedConv,
}

Attention = Annotated[str, tuple(ATTENTION)]
Conv = Annotated[str, tuple(CONVS)]
Shortcut = Literal["A", "B"]
Place = Literal["block", "stage", "middle", "last", "none"]
Head = Literal["gap", "attnpool", "flatten"]


class CifarResNet(ClassifierBackbone):
    """A 3x3 convolution, three stages of n blocks on grids of 32, 16 and 8, pooling, and a linear classifier.

    Args:
        depth: number of layers with weights, 6 n + 2.
        num_classes: number of classes; 0 for no classifier.
        in_chans: number of input bands.
        preact: pre-activation: batch norm and ReLU before each convolution and at the end, instead of after each
            convolution.
        shortcut: shortcut of blocks that change shape. ``A`` takes every other pixel and pads channels with zeros, half
            of them before and half after, as the public weights do. ``B`` is a 1x1 convolution, with batch norm unless
            ``preact``; then it takes activated features.
        attention: a name from `ATTENTION`: ``bounded`` (`SpatialSoftmaxAttention`), ``softmax`` (the same with
            ``mode="scaled"``), ``se``, ``cbam``, ``ge`` or ``nl``.
        attention_options: keywords of the attention layers; ``size`` is added for layers that take it.
        place: place of the attention. ``block``: after the last batch norm (or convolution) of each residual branch.
            ``stage``: after each stage. ``middle``: after the middle block of stages 2 and 3. ``last``: before the
            pooling. ``none``: no attention.
        conv: replacement of the first convolution of each block, a name from `CONVS`: ``expatt``, ``aa``, or ``narrow``
            as a control.
        conv_options: keywords of these layers.
        widths: channels of the stages.
        head: pooling. ``gap``: mean over positions. ``attnpool``: weighted mean, see ``mode="pool"`` of
            `SpatialSoftmaxAttention`. ``flatten``: all positions of images of ``img_size``.
        img_size: side of the images in pixels, for parts that depend on it: ``flatten``, ``aa``, and attention with a
            ``size``.
        drop_rate: dropout rate before the classifier.

    Raises:
        ValueError: the depth is not 6 n + 2, or an option is unknown or has no effect.
    """

    def __init__(
        self,
        depth: int = 20,
        num_classes: int = 10,
        in_chans: int = 3,
        *,
        preact: bool = False,
        shortcut: Shortcut = "A",
        attention: Attention | None = None,
        attention_options: Mapping[str, Any] | None = None,
        place: Place = "block",
        conv: Conv | None = None,
        conv_options: Mapping[str, Any] | None = None,
        widths: tuple[int, int, int] = (16, 32, 64),
        head: Head = "gap",
        img_size: int = 32,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__(drop_rate)
        n, rest = divmod(depth - 2, 6)
        if n < 1 or rest:
            raise ValueError(f"depth={depth} is not 6 n + 2; use 20, 32, 44, 56 or 110")
        if len(widths) != 3:
            raise ValueError(f"widths={widths} are not the channels of three stages; give three numbers")
        _check_choice("shortcut", shortcut, get_args(Shortcut))
        _check_choice("place", place, get_args(Place))
        _check_choice("head", head, get_args(Head))
        if attention is None and (attention_options or place not in ("block", "none")):
            raise ValueError("attention_options and place need attention; set attention, or leave them out")
        replacement = conv_replacement(conv, CONVS, conv_options)
        if img_size < 1:
            raise ValueError(f"img_size={img_size} is not possible; give the side of the images in pixels")
        self.in_chans, self.preact = in_chans, preact
        sides = (img_size, -(-img_size // 2), -(-img_size // 4))

        def attend(stage: int, wanted: bool) -> nn.Module:
            if attention is None or not wanted:
                return nn.Identity()
            return make_attention(attention, widths[stage], attention_options, (sides[stage], sides[stage]))

        self.conv1 = conv3x3(in_chans, widths[0])
        if not preact:
            self.bn1, self.act1 = nn.BatchNorm2d(widths[0]), nn.ReLU()
        channels, stages = widths[0], []
        for i, width in enumerate(widths):
            blocks: list[nn.Module] = []
            for j in range(n):
                in_branch = attend(i, place == "block")
                after = attend(
                    i, (place == "stage" and j == n - 1) or (place == "middle" and i > 0 and j == (n - 1) // 2)
                )
                stride = 2 if i > 0 and j == 0 else 1
                blocks.append(
                    (PreactBlock if preact else PostactBlock)(channels, width, stride, shortcut, in_branch, after)
                )
                channels = width
            stages.append(Stage(*blocks))
        self.layer1, self.layer2, self.layer3 = stages
        if preact:
            self.bn, self.act = nn.BatchNorm2d(channels), nn.ReLU()
        self.attention = attend(2, place == "last")
        self.pool = {
            "gap": lambda: SelectAdaptivePool2d(pool_type="avg", flatten=True),
            "attnpool": lambda: SpatialSoftmaxAttention(channels, mode="pool"),
            "flatten": nn.Flatten,
        }[head]()
        self.num_features = channels * sides[2] ** 2 if head == "flatten" else channels
        self.feature_info = [{"num_chs": c, "reduction": 2**i, "module": f"layer{i + 1}"} for i, c in enumerate(widths)]
        self.reset_classifier(num_classes)
        if replacement is not None:
            augment_convs(self, replacement, (1, 2, 3), image_size=img_size)

    def forward_features(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        if not self.preact:
            x = self.act1(self.bn1(x))
        x = self.layer3(self.layer2(self.layer1(x)))
        if self.preact:
            x = self.act(self.bn(x))
        return self.attention(x)

    def pooled(self, x: Tensor) -> Tensor:
        return self.pool(x)


class PostactBlock(nn.Module):
    """Post-activation block: conv, norm, ReLU, conv, norm, attention, shortcut, ReLU, then ``after``."""

    def __init__(
        self, in_channels: int, channels: int, stride: int, shortcut: str, attention: nn.Module, after: nn.Module
    ) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv3x3(in_channels, channels, stride), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = conv3x3(channels, channels), nn.BatchNorm2d(channels)
        self.attention, self.after = attention, after
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or in_channels != channels:
            wide = ShortcutA(in_channels, channels, stride)
            self.shortcut = (
                wide
                if shortcut == "A"
                else nn.Sequential(conv1x1(in_channels, channels, stride), nn.BatchNorm2d(channels))
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.attention(self.bn2(self.conv2(y)))
        return self.after(F.relu(y + self.shortcut(x)))


class PreactBlock(nn.Module):
    """Pre-activation block: norm, ReLU, conv, norm, ReLU, dropout, conv, attention, shortcut, then ``after``.

    A shortcut that changes the shape takes the activated features.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int,
        shortcut: str,
        attention: nn.Module,
        after: nn.Module,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(in_channels), conv3x3(in_channels, channels, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(channels), conv3x3(channels, channels)
        self.drop, self.attention, self.after = nn.Dropout(drop_rate), attention, after
        self.shortcut: nn.Module | None = None
        if stride > 1 or in_channels != channels:
            self.shortcut = (ShortcutA if shortcut == "A" else conv1x1)(in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.bn1(x))
        y = self.conv2(self.drop(F.relu(self.bn2(self.conv1(activated)))))
        return self.after(self.attention(y) + (x if self.shortcut is None else self.shortcut(activated)))


class ShortcutA(nn.Module):
    """Every ``stride``-th pixel, with channels padded by zeros. Has no parameters."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.stride, self.before = stride, (channels - in_channels) // 2
        self.behind = channels - in_channels - self.before

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.behind))


def conv3x3(in_channels: int, channels: int, stride: int = 1) -> nn.Conv2d:
    return _kaiming_normal(nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False))


def conv1x1(in_channels: int, channels: int, stride: int = 1) -> nn.Conv2d:
    return _kaiming_normal(nn.Conv2d(in_channels, channels, 1, stride, bias=False))


def _kaiming_normal(conv: nn.Conv2d) -> nn.Conv2d:
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


def make_attention(
    kind: str, channels: int, options: Mapping[str, Any] | None = None, size: tuple[int, int] | None = None
) -> nn.Module:
    """Make an attention layer, (B, channels, h, w) to the same shape.

    Args:
        kind: a name from `ATTENTION`.
        channels: channels of the features.
        options: keywords of the layer.
        size: (height, width) of the features, for layers that take it.

    Raises:
        ValueError: unknown name or keyword.
    """
    _check_choice("attention", kind, ATTENTION)
    make = ATTENTION[kind]
    sized = {"size": size} if "size" in inspect.signature(make).parameters else {}
    return make(channels, **sized | _known_options(kind, make, options))


def conv_replacement(
    kind: str | None, kinds: Mapping[str, Callable[..., nn.Module]], options: Mapping[str, Any] | None = None
) -> Callable[..., nn.Module] | None:
    """A layer of ``kinds`` with its keywords bound, for `augment_convs`; None without ``kind``.

    Raises:
        ValueError: unknown name or keyword, or keywords without ``kind``.
    """
    if kind is None:
        if options:
            raise ValueError("conv_options need conv; set conv, or leave them out")
        return None
    _check_choice("conv", kind, kinds)
    return partial(kinds[kind], **_known_options(kind, kinds[kind], options))


def _check_choice(name: str, value: str, choices: Any) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r} is unknown; use {', '.join(choices)}")


def _known_options(kind: str, make: Callable[..., nn.Module], options: Mapping[str, Any] | None) -> dict[str, Any]:
    own = ("channels", "in_channels", "out_channels", "stride") + (("kernel_size", "size") if kind in CONVS else ())
    takes = [name for name in inspect.signature(make).parameters if name not in own]
    for name in options or {}:
        if name not in takes:
            raise ValueError(f"{kind} has no option {name!r}; use {', '.join(takes)}")
    return dict(options or {})


# ---- registered models

default_cfgs: dict[str, dict[str, Any]] = {}


def filter_keys(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Map the keys of public weights to those of this module. Own keys are unchanged."""
    del model
    keys = ((key.removeprefix("module."), value) for key, value in state.items())
    return {key.replace("linear.", "fc.", 1) if key.startswith("linear.") else key: value for key, value in keys}


def _register(name: str, what: str, **defaults: Any) -> None:
    def make(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
        return build_model_with_cfg(
            CifarResNet,
            name,
            pretrained,
            pretrained_filter_fn=filter_keys,
            feature_cfg={"out_indices": (0, 1, 2)},
            **{**defaults, **kwargs},
        )

    make.__name__ = make.__qualname__ = name
    make.__signature__ = model_signature(CifarResNet, **defaults)  # type: ignore[attr-defined]
    make.__doc__ = what
    default_cfgs[name] = cifar_cfg("conv1")
    globals()[name] = register_model(make)


KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "": ("", {}),
    "attn_": (" with spatial softmax attention in every block", {"attention": "bounded"}),
    "se_": (" with squeeze-and-excitation in every block", {"attention": "se"}),
    "cbam_": (" with CBAM in every block", {"attention": "cbam"}),
    "ge_": (" with Gather-Excite in every block", {"attention": "ge"}),
    "nl_": (" with two non-local blocks", {"attention": "nl", "place": "middle"}),
    "expatt_": (" with explicitly modelled attention in every block", {"conv": "expatt"}),
    "aa_": (" with attention augmentation in every block", {"conv": "aa"}),
}
for _depth in (20, 32, 44, 56, 110):
    for _prefix, (_what, _options) in KINDS.items():
        _register(f"{_prefix}resnet{_depth}_cifar", f"ResNet-{_depth} for 32 px{_what}.", depth=_depth, **_options)
for _depth in (20, 110):
    _register(f"preact_resnet{_depth}_cifar", f"Pre-activation ResNet-{_depth} for 32 px.", depth=_depth, preact=True)
_register("test_resnet_cifar", "A tiny network for tests.", depth=8, widths=(16, 16, 32))
_register(
    "test_attn_resnet_cifar",
    "A tiny network with attention for tests.",
    depth=8,
    widths=(16, 16, 32),
    attention="bounded",
)

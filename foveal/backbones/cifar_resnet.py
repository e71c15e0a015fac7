"""ResNets for images of 32 x 32 px, plain, with attention after their residual branches, or with other convolutions inside them.

* `resnet110_cifar` and shallower: "Deep Residual Learning for Image Recognition", section 4.2 (He et al., 2015, arXiv 1512.03385).
* `preact_resnet110_cifar`: "Identity Mappings in Deep Residual Networks" (He et al., 2016, arXiv 1603.05027).
* `attn_resnet110_cifar`: "Attention-Based Convolutional Neural Networks for Image Classification", which does not say where its modules
  are; here they are where squeeze-and-excitation has its, after the last batch norm of every residual branch.
* `se_`, `cbam_`, `ge_`, `nl_`: the same networks with squeeze-and-excitation (arXiv 1709.01507), CBAM, Gather-Excite (global, without
  parameters) and two non-local blocks, one in the middle of each of stages 2 and 3.
* `expatt_`, `aa_`: explicitly modelled attention, and attention augmentation, in place of the first 3x3 convolution of every block of all
  stages, as the wide ResNet of arXiv 1904.09925 has it; with one head, as a tenth of 16 channels does not make eight.

Public weights of the plain networks with shortcut A load by ``foveal.create_model("resnet20_cifar", pretrained=FILE)``, where a file holds
{"state_dict": ...} with keys as on the left; `filter_keys` makes those on the right:

    module.conv1.weight                     conv1.weight
    module.bn1.{weight, bias, running_*}    bn1.{...}
    module.layer1.0.conv1.weight            layer1.0.conv1.weight    (and so on; no block has weights in its shortcut)
    module.linear.{weight, bias}            fc.{weight, bias}

They expect images normalised by ImageNet's mean (0.485, 0.456, 0.406) and standard deviation (0.229, 0.224, 0.225), where our
``default_cfgs`` have CIFAR-10's own: give mean and std to `foveal.glimpse.base.WholeImage`.

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

from foveal.backbones.head import Headed, Stage, cifar_card, takes
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
    "softmax": SpatialSoftmaxAttention,
    "se": partial(SEModule, rd_ratio=1 / 16, rd_divisor=1),
    "cbam": CBAM,
    "ge": GatherExcite,
    "nl": NonLocal,
}
CONVS: dict[str, Callable[..., nn.Module]] = {
    "expatt": ExplicitAttention, "aa": partial(AttentionAugmentation, heads=1), "narrow": NarrowedConv,
}  # fmt: skip

Attention = Annotated[str, tuple(ATTENTION)]
Conv = Annotated[str, tuple(CONVS)]
Shortcut = Literal["A", "B"]
Place = Literal["block", "stage", "middle", "last", "none"]
Head = Literal["gap", "attnpool", "flatten"]


class CifarResNet(Headed):
    """A 3x3 convolution, three stages of n blocks on grids of 32, 16 and 8, pooling, and a linear classifier: depth 6 n + 2.

    Args:
        depth: number of layers with weights, 6 n + 2.
        num_classes: 0 leaves the classifier out.
        in_chans: bands of the input.
        preact: batch norm and ReLU before each convolution, and a last pair at the end, instead of after each.
        shortcut: where a block changes shape, ``A`` takes every other pixel and adds channels of zeros, half of them before and half after
            (as the public weights have it); ``B`` is a 1x1 convolution, with batch norm unless ``preact``, where it sees activated ones.
        attention: ``softmax``, ``se``, ``cbam``, ``ge`` or ``nl``, see `ATTENTION`.
        attention_options: keywords of its layers; a ``size`` is added where they take one.
        place: where: ``block``, after the last batch norm (or convolution) of every residual branch; ``stage``, after each stage;
            ``middle``, after the middle block of stages 2 and 3; ``last``, before the pooling; ``none``.
        conv: what replaces the first convolution of every block: ``expatt``, ``aa`` or, as a control, ``narrow``, see `CONVS`.
        conv_options: keywords of its layers.
        widths: channels of the stages.
        head: what the classifier sees: ``gap``, the mean over positions; ``attnpool``, a weighted mean, see the ``pool`` mode of
            `SpatialSoftmaxAttention`; ``flatten``, all positions of images of ``img_size``.
        img_size: side of the images, in px, for what is tied to a grid: ``flatten``, ``aa``, and attention that takes a ``size``.
        drop_rate: dropout before the classifier.

    Raises:
        ValueError: a depth that is not 6 n + 2, an unknown choice, or one that nothing takes.
    """

    def __init__(
        self, depth: int = 20, num_classes: int = 10, in_chans: int = 3, *, preact: bool = False, shortcut: Shortcut = "A",
        attention: Attention | None = None, attention_options: Mapping[str, Any] | None = None, place: Place = "block",
        conv: Conv | None = None, conv_options: Mapping[str, Any] | None = None, widths: tuple[int, int, int] = (16, 32, 64),
        head: Head = "gap", img_size: int = 32, drop_rate: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(drop_rate)
        n, rest = divmod(depth - 2, 6)
        if n < 1 or rest:
            raise ValueError(f"depth={depth} is not 6 n + 2; use 20, 32, 44, 56 or 110")
        if len(widths) != 3:
            raise ValueError(f"widths={widths} are not the channels of three stages; give three numbers")
        _check("shortcut", shortcut, get_args(Shortcut))
        _check("place", place, get_args(Place))
        _check("head", head, get_args(Head))
        if attention is None and (attention_options or place not in ("block", "none")):
            raise ValueError("attention_options and place are of attention, and there is none; set attention, or leave them out")
        stand_in = stand_in_for_convs(conv, CONVS, conv_options)
        if img_size < 1:
            raise ValueError(f"img_size={img_size} is no size of images; give their side in px")
        self.in_chans, self.preact = in_chans, preact
        sides = (img_size, -(-img_size // 2), -(-img_size // 4))

        def attend(stage: int, wanted: bool) -> nn.Module:
            if attention is None or not wanted:
                return nn.Identity()
            return attention_layer(attention, widths[stage], attention_options, (sides[stage], sides[stage]))

        self.conv1 = conv3x3(in_chans, widths[0])
        if not preact:
            self.bn1, self.act1 = nn.BatchNorm2d(widths[0]), nn.ReLU()
        channels, stages = widths[0], []
        for i, width in enumerate(widths):
            blocks: list[nn.Module] = []
            for j in range(n):
                in_branch = attend(i, place == "block")
                after = attend(i, (place == "stage" and j == n - 1) or (place == "middle" and i > 0 and j == (n - 1) // 2))
                stride = 2 if i > 0 and j == 0 else 1
                blocks.append((PreactBlock if preact else PostactBlock)(channels, width, stride, shortcut, in_branch, after))
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
        if stand_in is not None:
            augment_convs(self, stand_in, (1, 2, 3), image_size=img_size)

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
    """conv, norm, ReLU, conv, norm, attention; plus the shortcut; ReLU; ``after``."""

    def __init__(self, in_channels: int, channels: int, stride: int, shortcut: str, attention: nn.Module, after: nn.Module) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv3x3(in_channels, channels, stride), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = conv3x3(channels, channels), nn.BatchNorm2d(channels)
        self.attention, self.after = attention, after
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or in_channels != channels:
            wide = ShortcutA(in_channels, channels, stride)
            self.shortcut = wide if shortcut == "A" else nn.Sequential(conv1x1(in_channels, channels, stride), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.attention(self.bn2(self.conv2(y)))
        return self.after(F.relu(y + self.shortcut(x)))


class PreactBlock(nn.Module):
    """norm, ReLU, conv, norm, ReLU, dropout, conv, attention; plus the shortcut, which sees activated features
    if it changes them; ``after``.
    """

    def __init__(
        self, in_channels: int, channels: int, stride: int, shortcut: str, attention: nn.Module, after: nn.Module, drop_rate: float = 0.0
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
    """Every ``stride``-th pixel, between channels of zeros: no parameters."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.stride, self.before = stride, (channels - in_channels) // 2
        self.behind = channels - in_channels - self.before

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.behind))


def conv3x3(in_channels: int, channels: int, stride: int = 1) -> nn.Conv2d:
    return _he(nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False))


def conv1x1(in_channels: int, channels: int, stride: int = 1) -> nn.Conv2d:
    return _he(nn.Conv2d(in_channels, channels, 1, stride, bias=False))


def _he(conv: nn.Conv2d) -> nn.Conv2d:
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


def attention_layer(kind: str, channels: int, options: Mapping[str, Any] | None = None, size: tuple[int, int] | None = None) -> nn.Module:
    """One layer of `ATTENTION`, (B, channels, h, w) to the same shape.

    Args:
        kind: its name there.
        channels: of the features.
        options: keywords of the layer.
        size: (height, width) of the features, for layers that take it.

    Raises:
        ValueError: an unknown name or keyword.
    """
    _check("attention", kind, ATTENTION)
    make = ATTENTION[kind]
    sized = {"size": size} if "size" in inspect.signature(make).parameters else {}
    return make(channels, **sized | _known_options(kind, make, options))


def stand_in_for_convs(
    kind: str | None, kinds: Mapping[str, Callable[..., nn.Module]], options: Mapping[str, Any] | None = None
) -> Callable[..., nn.Module] | None:
    """One of ``kinds`` with its keywords bound, for `augment_convs`; None for none.

    Raises:
        ValueError: an unknown name or keyword, or keywords of none.
    """
    if kind is None:
        if options:
            raise ValueError("conv_options are of conv, and there is none; set conv, or leave them out")
        return None
    _check("conv", kind, kinds)
    return partial(kinds[kind], **_known_options(kind, kinds[kind], options))


def _check(name: str, value: str, choices: Any) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r} is unknown; use {', '.join(choices)}")


def _known_options(kind: str, make: Callable[..., nn.Module], options: Mapping[str, Any] | None) -> dict[str, Any]:
    network_s = ("channels", "in_channels", "out_channels", "stride") + (("kernel_size", "size") if kind in CONVS else ())
    takes = [name for name in inspect.signature(make).parameters if name not in network_s]
    for name in options or {}:
        if name not in takes:
            raise ValueError(f"{kind} takes no option {name!r}; use {', '.join(takes)}")
    return dict(options or {})


# ------------------------------------------------------------------------------------------------------ names for timm

default_cfgs: dict[str, dict[str, Any]] = {}


def filter_keys(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Public weights' names to ours, see the head of this file; our own stay."""
    del model
    keys = ((key.removeprefix("module."), value) for key, value in state.items())
    return {key.replace("linear.", "fc.", 1) if key.startswith("linear.") else key: value for key, value in keys}


def _register(name: str, what: str, **ours: Any) -> None:
    def make(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
        return build_model_with_cfg(
            CifarResNet, name, pretrained, pretrained_filter_fn=filter_keys, feature_cfg={"out_indices": (0, 1, 2)}, **{**ours, **kwargs}
        )

    make.__name__ = make.__qualname__ = name
    make.__signature__ = takes(CifarResNet, **ours)  # type: ignore[attr-defined]
    make.__doc__ = what
    default_cfgs[name] = cifar_card("conv1")
    globals()[name] = register_model(make)


KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "": ("", {}),
    "attn_": (" with spatial softmax attention in every block", {"attention": "softmax"}),
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
_register("test_attn_resnet_cifar", "A tiny network with attention for tests.", depth=8, widths=(16, 16, 32), attention="softmax")

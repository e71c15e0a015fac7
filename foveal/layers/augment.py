"""Replace convolutions of an existing network by attention layers.

Example:
    >>> from functools import partial
    >>> import timm
    >>> from foveal.layers import ExplicitAttention
    >>> model = augment_convs(timm.create_model("resnet18"), partial(ExplicitAttention, ratio=0.1), stages=(3, 4))
    >>> [name for name, module in model.named_modules() if isinstance(module, ExplicitAttention)]
    ['layer3.0.conv1', 'layer3.1.conv1', 'layer4.0.conv1', 'layer4.1.conv1']
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Literal, TypeVar

import torch
from torch import nn

from foveal.layers.explicit import ExplicitAttention, Radius
from foveal.layers.maps import stage_of

Net = TypeVar("Net", bound=nn.Module)


def augment_convs(
    model: Net,
    make: Callable[..., nn.Module],
    stages: Sequence[int] = (2, 3, 4),
    *,
    basic_conv: Literal[1, 2, "both"] = 1,
    image_size: int | tuple[int, int] | None = None,
) -> Net:
    """Replace the k x k convolution of each residual block in some stages, in place.

    In bottlenecks this is ``conv2``. New layers have the channels, kernel size, stride, device and dtype of the
    convolution, and new weights. Everything else is unchanged.

    Args:
        model: a ``timm`` ResNet: stages ``layer1``, ``layer2``, ... of blocks with ``conv1``, ``conv2`` and optionally
            ``conv3``.
        make: called as ``make(in_channels, out_channels, kernel_size=k, stride=s)``, and with ``size=(height, width)``
            of the input if it has this keyword and it is not bound.
        stages: stages to change, counted from 1.
        basic_conv: convolution to replace in blocks without ``conv3``.
        image_size: side or (height, width) of the images, to find ``size``; None takes that of
            ``model.pretrained_cfg``.

    Returns:
        The model.

    Raises:
        ValueError: a stage or convolution is missing, or the convolution is grouped, dilated or otherwise not
            replaceable.
    """
    if basic_conv not in (1, 2, "both"):
        raise ValueError(f"basic_conv={basic_conv!r} is unknown; choose 1, 2 or 'both'.")
    convs = {name: conv for stage in unique_stages(stages) for name, conv in _convs_of(model, stage, basic_conv)}
    size = inspect.signature(make).parameters.get("size")
    sizes = (
        _input_sizes(model, convs, image_size)
        if size is not None and size.default in (inspect.Parameter.empty, None)
        else {}
    )
    layers = {}
    for name, conv in convs.items():
        options = {"size": sizes[name]} if sizes else {}
        with torch.device(conv.weight.device):
            layer = make(
                conv.in_channels, conv.out_channels, kernel_size=conv.kernel_size[0], stride=conv.stride[0], **options
            )
        layers[name] = layer.to(conv.weight.dtype).train(conv.training)
    for name, layer in layers.items():  # all or none
        model.set_submodule(name, layer)
    return model


def unique_stages(stages: Sequence[int]) -> tuple[int, ...]:
    """Stages that attention is put into, each once.

    Raises:
        ValueError: no stage, or not a sequence.
    """
    if isinstance(stages, (int, str)) or not stages:
        raise ValueError(f"stages={stages!r} names no stage; give at least one, in a list.")
    return tuple(dict.fromkeys(stages))


class NarrowedConv(nn.Sequential):
    """A k x k convolution with fewer output channels, then a 1x1 convolution to all: a control for attention layers.

    Args:
        in_channels, out_channels, kernel_size, stride: those of the replaced convolution.
        ratio: fraction of the output channels, rounded down, that the first convolution lacks.

    Raises:
        ValueError: the ratio is outside [0, 1).
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int = 3, stride: int = 1, *, ratio: float = 0.1
    ) -> None:
        if not 0 <= ratio < 1:
            raise ValueError(
                f"ratio={ratio} leaves no channels, or more than there are; choose a ratio from 0 to below 1."
            )
        left = out_channels - math.floor(ratio * out_channels + 1e-9)
        convs = (
            nn.Conv2d(in_channels, left, kernel_size, stride, kernel_size // 2, bias=False),
            nn.Conv2d(left, out_channels, 1, bias=False),
        )
        super().__init__(*convs)
        for conv in convs:
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")


def share_radius(model: Net, scope: Literal["head", "module", "stage", "global"]) -> Net:
    """Share radii between the `ExplicitAttention` layers of a model, in place.

    Args:
        model: any network. Learned values of replaced radii are lost.
        scope: "head" (one radius per head, no change), "module", "stage" (see `stage_of`), or "global" (one for the
            model).

    Returns:
        The same model.

    Raises:
        ValueError: an unknown scope.
    """
    if scope not in ("head", "module", "stage", "global"):
        raise ValueError(f"radius_scope={scope!r} is unknown; choose head, module, stage or global.")
    shared: dict[str, Radius] = {}
    for name, layer in list(model.named_modules()):
        if scope == "head" or not isinstance(layer, ExplicitAttention) or layer.radius is None:
            continue
        group = {"module": name, "stage": stage_of(name), "global": ""}[scope]
        if group not in shared:
            own = layer.radius
            shared[group] = Radius(own.init, 1, own.param, own.raw.requires_grad).to(own.raw)
        layer.radius = shared[group]
    return model


def _convs_of(model: nn.Module, stage: int, basic_conv: Literal[1, 2, "both"]) -> list[tuple[str, nn.Conv2d]]:
    blocks = getattr(model, f"layer{stage}", None)
    if not isinstance(blocks, nn.Module):
        there = [name.removeprefix("layer") for name, _ in model.named_children() if name.startswith("layer")]
        raise ValueError(
            f"{type(model).__name__} has no stage {stage}; choose among {', '.join(there) or 'those of a ResNet'}."
        )
    found = []
    for block_name, block in blocks.named_children():
        wanted = (
            ("conv2",)
            if hasattr(block, "conv3")
            else ("conv1", "conv2")
            if basic_conv == "both"
            else (f"conv{basic_conv}",)
        )
        for which in wanted:
            name = f"layer{stage}.{block_name}.{which}"
            found.append((name, _checked(name, getattr(block, which, None))))
    return found


def _checked(name: str, conv: nn.Module | None) -> nn.Conv2d:
    if not isinstance(conv, nn.Conv2d):
        kind = "missing" if conv is None else f"a {type(conv).__name__}"
        raise ValueError(f"{name} is {kind}, not a Conv2d; choose a ResNet whose blocks have conv1 and conv2.")
    k, s = conv.kernel_size[0], conv.stride[0]
    for wrong, what in (
        (conv.groups > 1, "grouped"),
        (max(conv.dilation) > 1, "dilated"),
        (conv.bias is not None, "one with a bias"),
        (
            conv.kernel_size != (k, k) or conv.stride != (s, s) or conv.padding != (k // 2, k // 2),
            "not square with padding k // 2",
        ),
    ):
        if wrong:
            raise ValueError(f"{name} is {what}, which attention layers cannot replace; leave its stage out.")
    return conv


def _input_sizes(
    model: nn.Module, convs: dict[str, nn.Conv2d], image_size: int | tuple[int, int] | None
) -> dict[str, tuple[int, int]]:
    """Input sizes (height, width) of ``convs``, by a forward pass on the meta device."""
    if image_size is None:
        image_size = (getattr(model, "pretrained_cfg", None) or {}).get("input_size", (None,))[1:] or None
    if image_size is None:
        raise ValueError(f"{type(model).__name__} does not state the size of its images; give image_size.")
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    if min(height, width) < 1:
        raise ValueError(f"images of {height} x {width} px are not possible; give a side above 0.")
    dry = copy.deepcopy(model).to("meta").eval()
    sizes: dict[str, tuple[int, int]] = {}
    for name in convs:
        dry.get_submodule(name).register_forward_pre_hook(
            lambda _, seen, name=name: sizes.update({name: tuple(seen[0].shape[-2:])})
        )
    first = next(module for module in dry.modules() if isinstance(module, nn.Conv2d))
    with torch.no_grad():
        dry(torch.empty(1, first.in_channels, height, width, device="meta", dtype=first.weight.dtype))
    return sizes

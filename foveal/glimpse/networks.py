"""Look up and create backbones by timm name.

`foveal.backbones` registers its networks with timm, so one registry holds all names. Some networks, such as ViT and
Swin, are built for one input size. `size_options` finds the options that build them for another.

Example:
    >>> create_network("plain_convnet_32", in_chans=3, pretrained=False, options={"num_classes": 5}).num_classes
    5
    >>> size_options("vit_tiny_patch16_224", (96, 96), {})
    {'img_size': 96}
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection
from types import ModuleType
from typing import Any

import torch
from torch import nn

from foveal.errors import ConfigError
from foveal.importing import fast_imports
from foveal.registry import UnknownName


def import_timm() -> ModuleType:
    """Import timm and register `foveal.backbones` with it.

    The import takes longer than that of torch. Call this where a network is needed.
    """
    with fast_imports():
        import timm

        import foveal.backbones  # noqa: F401  (registers the networks)
    return timm


def create_network(
    name: str, in_chans: int, pretrained: bool | str, options: dict[str, Any], size: int | None = None
) -> nn.Module:
    """Create a network by name.

    Args:
        name: timm name.
        in_chans: number of input bands.
        pretrained: True loads the weights that timm downloads; a path loads that file.
        options: further keywords for `timm.create_model`.
        size: side of the input in pixels; the network's default if None.

    Raises:
        ConfigError: the name is unknown, or the network does not accept the size.
    """
    check_backbone(name)
    options = {"in_chans": in_chans, **options}
    if size is not None:
        options |= size_options(name, (size, size), options)
    if isinstance(pretrained, str):
        options = {**options, "pretrained_cfg_overlay": {"file": pretrained}}
    return import_timm().create_model(name, pretrained=bool(pretrained), **options)


def check_backbone(name: str) -> None:
    """Raise an error unless there is a backbone of this name; see `check_network`."""
    check_network(name, f"backbone {name}", "there is no backbone of this name", "foveal models '*' lists them")


def check_network(
    name: str, label: str, problem: str, hint: str, other_names: Collection[str] = (), kind: str = "backbone"
) -> None:
    """Raise an error unless timm, with `foveal.backbones`, has a network of this name.

    Models of the Hugging Face Hub and of folders are refused: a run must be rebuilt from its own files.

    Args:
        name: name of a network, with or without the tag of its weights.
        label: beginning of the error message.
        problem: the error message for an unknown name.
        hint: end of the error message if no name is similar.
        other_names: further valid names, suggested before the names of timm.
        kind: ``kind`` of the `foveal.registry.UnknownName`.

    Raises:
        UnknownName: there is no such network.
        ConfigError: the name refers to the Hugging Face Hub or to a folder.
    """
    timm = import_timm()
    source, _, place = name.rpartition(":")
    if source or "/" in place:
        architecture = place.rpartition("/")[2].partition("@")[0]
        advice = "give the name of its architecture in timm, and its file of weights by `model.pretrained` FILE"
        if _has_network(architecture):
            advice = f"give {architecture}, and `model.pretrained` true for its weights"
        raise ConfigError(
            f"{label}: a model of the Hugging Face Hub or of a folder is not loaded by its name; {advice}"
        )
    if _has_network(name):
        return
    architecture, _, tag = name.partition(".")
    tags = timm.list_pretrained(f"{architecture}.*") if tag and timm.is_model(architecture) else []
    # ``other_names`` come first: timm has about a thousand names, and some of them are always closer.
    similar = [
        match
        for names in (tags or other_names, tags or timm.list_models())
        for match in difflib.get_close_matches(name, names, 3)
    ]
    advice = f"did you mean {' or '.join(list(dict.fromkeys(similar))[:3])}" if similar else hint
    raise UnknownName(f"{label}: {problem}; {advice}", kind, name)


def _has_network(name: str) -> bool:
    timm, (architecture, _, tag) = import_timm(), name.partition(".")
    return timm.is_model(architecture) and (not tag or name in timm.list_pretrained(f"{architecture}.*"))


def size_options(name: str, size: tuple[int, int], options: dict[str, Any]) -> dict[str, Any]:
    """Find the options with which a network accepts images of a size: none, or ``img_size``.

    Networks such as ViT, Swin and Mixer are built for one size. The network is tried on the meta device, without
    weights.

    Args:
        name: timm name.
        size: (height, width) of the images.
        options: keywords for `timm.create_model`. If they contain ``img_size`` or ``dynamic_img_size``, nothing is
            added.

    Raises:
        ConfigError: the network does not accept images of this size with either option.
    """
    timm = import_timm()
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    default_size = tuple(config.input_size[1:]) if config is not None else None
    if size == default_size:
        return {}
    options = {
        key: value for key, value in options.items() if not key.startswith("pretrained") and key != "checkpoint_path"
    }
    with_size: dict[str, Any] = {"img_size": size[0] if size[0] == size[1] else size}
    errors: list[Exception] = []
    for more in ({}, with_size) if options.keys().isdisjoint(("img_size", "dynamic_img_size")) else ({},):
        try:
            with torch.random.fork_rng(devices=()), torch.device("meta"):
                network = timm.create_model(name, **options, **more).eval()
        except Exception as error:
            if not more:
                return {}  # creating the network will raise the same error
            errors.append(error)
            break
        if (error_of_forward := _try_size(network, size)) is None:
            return more
        errors.append(error_of_forward)
    # The error of the second attempt is more specific, unless ``img_size`` is not an option.
    cause = next((e for e in reversed(errors) if not isinstance(e, TypeError)), errors[0])
    reason = str(cause).strip().partition("\n")[0].rstrip(".") or type(cause).__name__
    choice = f"choose {default_size[0]}, its own size, or another network" if default_size else "choose another size"
    raise ConfigError(f"{name}: does not take images of {size[0]} x {size[1]} px ({reason}); {choice}") from cause


def _try_size(network: nn.Module, size: tuple[int, int]) -> Exception | None:
    """Pass zeros of a size through a network on the meta device; return the exception, or None."""
    channels = (
        getattr(network, "in_chans", None)
        or (getattr(network, "pretrained_cfg", None) or {}).get("input_size", (3,))[0]
    )
    try:
        with torch.no_grad():
            network(torch.zeros(1, channels, *size, device="meta"))
    except NotImplementedError:  # an operation is not implemented on the meta device
        return None
    except Exception as error:
        return None if "meta tensor" in str(error) else error
    return None


def channels_last(network: nn.Module) -> nn.Module:
    """Convert 4-d weights to channels-last memory format, in place.

    `nn.Module.to` raises an error for networks with 3-d convolutions.
    """
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.ndim == 4:
            tensor.data = tensor.data.to(memory_format=torch.channels_last)
    return network


def small_reader(channels: int, classes: int) -> nn.Sequential:
    """(N, channels, height, width) to logits (N, classes), by four convolutions and the maximum over all places.

    The maximum does not depend on where in a look an object is. A hidden layer over all places learns that by heart.
    """
    layers: list[nn.Module] = []
    for width, stride in ((24, 2), (48, 2), (96, 2), (128, 1)):
        layers += [nn.Conv2d(channels, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


MOST_BYTES = 2**30
"""Limit of the size of one look in memory, as float32."""


def check_look(channels: int, **sides: int | tuple[int, int] | None) -> None:
    """Check that looks whose sides are options fit into `MOST_BYTES`. Options that are None are not checked.

    Args:
        channels: number of bands.
        sides: side, or (height, width), in pixels.

    Raises:
        ConfigError: one is less than 1, or a look does not fit.
    """
    for name, side in sides.items():
        size = (side, side) if isinstance(side, int) else side or (1, 1)
        if min(size) < 1:
            raise ConfigError(f"`{name}` {side}: is too small; give at least 1")
        if (needs := 4 * channels * math.prod(size)) > MOST_BYTES:
            most = math.isqrt(MOST_BYTES // (4 * channels))
            raise ConfigError(
                f"`{name}` {'x'.join(map(str, dict.fromkeys(size)))}: is too large and needs {needs / 2**30:,.1f} GiB "
                f"of memory; give at most {most}"
            )


def check_least(least: int, **options: int | None) -> None:
    """Check that options that are not None are at least ``least``.

    Raises:
        ConfigError: one is not.
    """
    for name, value in options.items():
        if value is not None and value < least:
            raise ConfigError(f"`{name}` {value}: is too small; give at least {least}")

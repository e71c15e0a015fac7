"""The cost of a model: its parameters, and multiply-accumulates (MACs) per image.

MACs are the FLOPs that torch's flop counter counts, divided by two: convolutions, matrix products and attention.

Example:
    >>> import timm
    >>> dense = timm.create_model("test_resnet", num_classes=5)
    >>> count_cost(dense, 64).macs < count_cost(dense, 128).macs
    True
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from foveal.classification import Classification
from foveal.errors import ConfigError
from foveal.glimpse.base import GlimpseClassifier
from foveal.hub import on_hub
from foveal.images.views import BlankViews
from foveal.models import create_model
from foveal.policies import GREEDY, Policy
from foveal.prediction.checks import check_whole
from foveal.registry import MODELS
from foveal.runs import Run
from foveal.runtime.adapter import Exported

Watcher = TypeVar("Watcher")


@dataclass(frozen=True)
class Cost:
    """The cost of a model.

    Attributes:
        parameters: number of trainable parameters.
        parameters_and_statistics: number of all parameters and of the running means and variances of batch norms.
        macs: multiply-accumulates per image.
    """

    parameters: int
    parameters_and_statistics: int
    macs: int


def count_cost(
    model: nn.Module | Run | str | Path,
    image_size: int | tuple[int, int],
    locations: int | Sequence[int] | None = None,
    policy: str | Policy | None = None,
    mpp: float | None = None,
) -> Cost:
    """Count the cost of a model for one image. No memory is allocated for the image.

    Args:
        model: a classifier; a dense network, whose input is the image at full resolution; a run folder; or the name of
            a model, see `foveal.list_models`.
        image_size: side, or (height, width), in full-resolution pixels.
        locations: looks per grid at each level; the model's own if None. Ignored for dense networks.
        policy: how locations are selected; the model's ``usual_policy`` if None. The cost may depend on it.
        mpp: µm per pixel of the image. The number of cells may depend on it.

    Raises:
        ConfigError: the dense network does not take images of this size; or ``model`` or ``image_size`` is none.
        RunError: the run folder cannot be loaded.
    """
    model = _model_of(model)
    size = _size_of(image_size)
    statistics = sum(
        b.numel() for name, b in model.named_buffers() if name.rpartition(".")[2] in ("running_mean", "running_var")
    )
    return Cost(
        parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        parameters_and_statistics=sum(p.numel() for p in model.parameters()) + statistics,
        macs=_looking_macs(model, size, locations, policy, mpp)
        if isinstance(model, GlimpseClassifier)
        else _dense_macs(model, size),
    )


def _model_of(model: Any) -> nn.Module:
    """The model itself, that of a run folder, or a new one by its name."""
    if isinstance(model, nn.Module):
        return model
    if isinstance(model, Run):
        return model.load_model()
    named = isinstance(model, str) and (on_hub(model) or (Path(model).exists() and model not in MODELS))
    if isinstance(model, Path) or named:
        return Run(model).load_model()
    if isinstance(model, str):
        return create_model(model)
    raise ConfigError(
        f"`model`: an object of the type {type(model).__name__} was given; give a network, a model's name, or the path "
        "of a run folder"
    )


def _size_of(image_size: Any) -> tuple[int, int]:
    each = tuple(image_size) if isinstance(image_size, Sequence) else (image_size, image_size)
    if len(each) != 2 or isinstance(image_size, str):
        raise ConfigError(f"`image_size` {image_size}: is not a size; give a side, or (height, width)")
    for side in each:
        check_whole("image_size", side)
    return int(each[0]), int(each[1])


class LookCounter:
    """Counts MACs of images for one model. The result is cached by the number and size of looks at each level.

    Args:
        model, policy: see `count_cost`.
    """

    def __init__(self, model: GlimpseClassifier, policy: str | Policy = GREEDY) -> None:
        self.model, self.policy = model, policy
        self._known: dict[tuple, int] = {}

    def __call__(
        self, seen: Classification, size: Sequence[int], locations: Sequence[int], mpp: float | None = None
    ) -> int:
        """MACs of one image.

        Args:
            seen: classification of the image.
            size: its (height, width).
            locations: the locations taken.
            mpp: its µm per pixel.
        """
        key = (tuple(locations), tuple(np.bincount(seen.glimpses.level).tolist()), tuple(seen.glimpses.size[0]))
        if key not in self._known:
            self._known[key] = count_cost(self.model, (int(size[0]), int(size[1])), locations, self.policy, mpp).macs
        return self._known[key]


def input_channels(network: nn.Module) -> int:
    """Input channels of a dense network, from its timm attributes; 3 if there are none."""
    return (
        getattr(network, "in_chans", None)
        or (getattr(network, "pretrained_cfg", None) or {}).get("input_size", (3,))[0]
    )


def _dense_macs(network: nn.Module, size: tuple[int, int]) -> int:
    network = copy.deepcopy(network).to("meta").eval()
    images = torch.empty(1, input_channels(network), *size, device="meta")
    counter = FlopCounterMode(display=False)
    try:
        with torch.no_grad(), counter:
            network(images)
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"{type(network).__name__}: does not take images of {size[0]} x {size[1]} px ({reason}); choose another "
            "size"
        ) from error
    return counter.get_total_flops() // 2


def _looking_macs(
    model: GlimpseClassifier,
    size: tuple[int, int],
    locations: int | Sequence[int] | None,
    policy: str | Policy | None,
    mpp: float | None,
) -> int:
    if isinstance(model, Exported):
        policy = str(policy)
        return model.count_macs(
            BlankViews(1, size, model.channels, mpp=mpp), model.resolve_locations(locations), policy
        )
    counter = run_on_blank(model, size, lambda _: FlopCounterMode(display=False), locations, policy, mpp)
    return counter.get_total_flops() // 2


def count_looks(model: GlimpseClassifier, size: tuple[int, int], locations: int | Sequence[int] | None = None) -> int:
    """Looks after the first at an image of a size; images that are not square may have fewer cells than asked for.

    Args:
        model: a classifier.
        size: (height, width) of the image.
        locations: see `count_cost`.
    """

    @contextmanager
    def watching(copied: nn.Module) -> Iterator[list[int]]:
        looks: list[int] = []
        copied.register_forward_hook(lambda module, given, seen: looks.append(int(seen.locations[0])))
        yield looks

    return run_on_blank(model, size, watching, locations)[-1]


def run_on_blank(
    model: GlimpseClassifier,
    size: tuple[int, int],
    watching: Callable[[nn.Module], AbstractContextManager[Watcher]],
    locations: int | Sequence[int] | None = None,
    policy: str | Policy | None = GREEDY,
    mpp: float | None = None,
) -> Watcher:
    """Run a copy of a model on a blank image in a context that records operations.

    Args:
        model: a classifier.
        size: (height, width) of the image.
        watching: called with the copy; returns the context.
        locations, policy, mpp: see `count_cost`.

    Returns:
        The value of the entered context.
    """

    def look(device: str) -> Watcher:
        copied = copy.deepcopy(model).to(device).eval()
        views = BlankViews(1, size, model.channels, device, mpp)
        with torch.no_grad(), watching(copied) as watcher:
            copied(views, locations=locations, policy=policy, contributions=False)
        return watcher

    try:
        return look("meta")
    except (NotImplementedError, RuntimeError):
        # Some models select locations by values, which meta tensors do not have.
        return look("cpu")

"""What a model costs, counted: parameters and multiply-accumulates.

Multiply-accumulates (MACs) are what torch's flop counter sees, halved: convolutions, matrix products and attention.
FLOPs are twice the MACs.

Example:
    >>> import timm
    >>> dense = timm.create_model("test_resnet", num_classes=5)
    >>> count_cost(dense, 64).macs < count_cost(dense, 128).macs
    True
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from foveal.classification import Classification
from foveal.errors import ConfigError
from foveal.glimpse.base import GlimpseClassifier
from foveal.images.views import BlankViews
from foveal.policies import GREEDY, Policy

Watcher = TypeVar("Watcher")


@dataclass(frozen=True)
class Cost:
    """What a model costs for one image.

    Attributes:
        parameters: trainable parameters.
        parameters_and_statistics: all parameters, with the running mean and variance of batch norms.
        macs: multiply-accumulates of one image.
    """

    parameters: int
    parameters_and_statistics: int
    macs: int


def count_cost(
    model: nn.Module,
    image_size: int | tuple[int, int],
    locations: Sequence[int] | None = None,
    policy: str | Policy = GREEDY,
    mpp: float | None = None,
) -> Cost:
    """Count what ``model`` costs for one image. No image is held, whatever its size.

    Args:
        model: a classifier that looks, or a dense network, which is given the image at full size.
        image_size: side, or (height, width), in full-resolution pixels.
        locations: budget; the model's own if None. Dense networks have none.
        policy: how cells are selected: some ways cost more than others.
        mpp: µm per pixel of the image: how many cells it has may depend on it.

    Raises:
        ConfigError: a dense network that does not take images of this size.
    """
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
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


class LookCounter:
    """Multiply-accumulates of images of one model. Images that got equally many looks at every level cost the same and
    are counted once.

    Args:
        model, policy: see `count_cost`.
    """

    def __init__(self, model: GlimpseClassifier, policy: str | Policy = GREEDY) -> None:
        self.model, self.policy = model, policy
        self._known: dict[tuple, int] = {}

    def __call__(
        self, seen: Classification, size: Sequence[int], locations: Sequence[int], mpp: float | None = None
    ) -> int:
        """MACs of one image of this (height, width) and scale, classified with the budget ``locations``, or left early
        after it.
        """
        key = (tuple(locations), tuple(np.bincount(seen.glimpses.level).tolist()))
        if key not in self._known:
            self._known[key] = count_cost(self.model, (int(size[0]), int(size[1])), locations, self.policy, mpp).macs
        return self._known[key]


def input_channels(network: nn.Module) -> int:
    """Bands that a dense network takes: what timm says of it, or 3."""
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
    locations: Sequence[int] | None,
    policy: str | Policy,
    mpp: float | None,
) -> int:
    counter = look_at_nothing(model, size, lambda _: FlopCounterMode(display=False), locations, policy, mpp)
    return counter.get_total_flops() // 2


def look_at_nothing(
    model: GlimpseClassifier,
    size: tuple[int, int],
    watching: Callable[[nn.Module], AbstractContextManager[Watcher]],
    locations: Sequence[int] | None = None,
    policy: str | Policy = GREEDY,
    mpp: float | None = None,
) -> Watcher:
    """Let a copy of a model look at an image that is not there, to see what it does.

    Args:
        model: a classifier.
        size: (height, width) of the image.
        watching: given the copy, the context that it looks in; what entering the context gives is returned.
        locations, policy, mpp: see `count_cost`.
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
        # A model that chooses where to look needs numbers to choose by, which meta tensors have not.
        return look("cpu")

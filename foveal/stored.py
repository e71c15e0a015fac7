"""Checks of the content of a run folder's files, before a model is built from them.

The files may come from elsewhere, or be damaged. Their values must have the types and sizes below. A model is first
built on the meta device, where weights take no memory, and compared with the stored shapes.

Example:
    >>> card_error({"model": {"name": "tnet"}, "class_names": ["cat", "cat"]})
    "class_names: 'cat' occurs twice"
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import accumulate
from operator import mul
from pathlib import Path
from typing import Annotated, Any, TypedDict, get_type_hints

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from foveal.errors import RunError
from foveal.glimpse.base import GlimpseClassifier
from foveal.glimpse.networks import MOST_BYTES
from foveal.model_options import LARGEST_OPTION, Whole
from foveal.policies import GREEDY, Random
from foveal.signatures import mismatch
from foveal.strict import class_names_error
from foveal.tasks import TASKS

PARAMETERS_PER_TENSOR, EXTRA_PARAMETERS = 4, 1_000
"""Limit of the parameters created while a model is built: so many per stored tensor, plus the extra ones. Some modules
create parameters and replace them.
"""

MOST_LOOKS = 100_000
"""Limit of the looks at an image, by the locations that a run stores."""


# ---- config.json


class Threshold(TypedDict):
    """The threshold of a class in ``config.json``; see `foveal.evaluation.fit_threshold`."""

    label: str
    threshold: float
    at: str


class EncoderCard(TypedDict):
    """The network that made the features that a model was trained on."""

    name: str | None
    licence: str | None


class Card(TypedDict, total=False):
    """Types of the values in ``config.json``. ``model`` and ``class_names`` are required."""

    foveal: str
    imports: list[str]
    model: dict[str, Any]
    num_classes: Annotated[int, range(1, 1_000_001)]
    class_names: list[str]
    task: Annotated[str, tuple(TASKS)]
    thresholds: list[Threshold]
    channels: Whole
    size: tuple[Whole, Whole]
    mean: list[float]
    std: list[float]
    value_range: tuple[float, float] | None
    image_size: Whole | None
    shorter_side: Whole | None
    locations: list[Annotated[int, range(LARGEST_OPTION + 1)]] | None
    policy: Annotated[str, (GREEDY.name, Random.name)]
    encoder: EncoderCard


def card_error(card: Any) -> str | None:
    """The first error in the content of ``config.json``; None if it is valid."""
    if not isinstance(card, dict):
        return "is not a mapping of keys to values"
    if absent := next((key for key in ("model", "class_names") if key not in card), None):
        return f"{absent}: is missing"
    if error := mismatch(card, get_type_hints(Card, include_extras=True)):
        return error
    if error := mismatch({"name": card["model"].get("name")}, {"name": str}, "model."):
        return error
    if error := class_names_error(card["class_names"]):
        return f"class_names: {error}"
    labels = [one["label"] for one in card.get("thresholds", [])]
    if twice := next((label for label in labels if labels.count(label) > 1), None):
        return f"thresholds: {twice!r} has several"
    for one in card.get("thresholds", []):
        if one["label"] not in card["class_names"]:
            return f"thresholds: there is no class {one['label']!r}"
        if not 0 <= one["threshold"] <= 1:
            return f"thresholds: {one['threshold']} is not from 0 to 1"
    low, high = card.get("value_range") or (0, 1)
    return None if low < high else f"value_range: {low} is not below {high}"


# ---- checkpoints


class _ParameterGroup(TypedDict):
    lr: float
    base_lr: float


class _Optimiser(TypedDict):
    param_groups: list[_ParameterGroup]
    state: dict[Any, Any]


class Checkpoint(TypedDict, total=False):
    """Types of the values in a checkpoint that are read. Lightning and `foveal.training` write them."""

    state_dict: dict[str, Tensor]
    loops: dict[str, Any]
    global_step: Annotated[int, range(10**15)]
    optimizer_states: list[_Optimiser]
    callbacks: dict[str, dict[str, Any]]
    epoch: int
    elapsed: float
    left_out: int
    average: dict[str, Tensor]


def checkpoint_error(content: Any) -> str | None:
    """The first error in the content of a checkpoint; None if it is valid."""
    if not isinstance(content, dict):
        return "it is not a mapping"
    hints = get_type_hints(Checkpoint, include_extras=True)
    required = {key: None for key in hints if key not in ("epoch", "elapsed", "left_out", "average")}
    error = mismatch({key: value for key, value in {**required, **content}.items() if key in hints}, hints)
    return error or (None if content["optimizer_states"] else "optimizer_states: is empty")


# ---- models


@contextmanager
def limit_parameters(tensors: int, file: Path) -> Iterator[None]:
    """Limit the parameters that this thread creates, see `PARAMETERS_PER_TENSOR`. A model of a billion layers would
    fill the memory even on the meta device.

    Args:
        tensors: number of stored tensors.
        file: the configuration, for the error.

    Raises:
        RunError: the limit is exceeded.
    """
    created, thread = 0, threading.get_ident()

    def count(*_: Any) -> None:
        nonlocal created
        if threading.get_ident() == thread:
            created += 1
            if created > PARAMETERS_PER_TENSOR * tensors + EXTRA_PARAMETERS:
                raise RunError(
                    f"{file}: the model has more layers than there are weights for; copy it again, or train again"
                )

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def check_weights(model: nn.Module, weights: dict[str, Tensor], file: Path) -> None:
    """Check that weights have the names and shapes of the model's.

    Raises:
        RunError: names the first tensor that is missing, unexpected, or of another shape.
    """
    wanted = model.state_dict()
    for name in [*wanted, *weights]:
        here, there = wanted.get(name), weights.get(name)
        if here is None or there is None:
            what = f"{name} is {'missing' if there is None else 'not part of this model'}"
        elif here.shape != there.shape:
            what = f"{name} is {tuple(there.shape)} where the model has {tuple(here.shape)}"
        else:
            continue
        raise RunError(f"{file}: the weights do not fit the model, {what}; use the config that they were trained with")


def check_normalisation(model: GlimpseClassifier, card: Mapping[str, Any], file: Path) -> None:
    """Check that mean and standard deviation in ``config.json`` are those of the model.

    Raises:
        RunError: one of them differs.
    """
    for key in ("mean", "std"):
        built = getattr(model, key).float().cpu()
        if key in card and not torch.equal(torch.tensor(card[key], dtype=torch.float32), built):
            what = f"is {card[key]}, but the model with these options has {built.tolist()}"
            raise RunError(f"{file}: {key}: {what}; copy it again, or use the version of foveal that wrote it")


def check_outline(model: GlimpseClassifier, card: Mapping[str, Any], file: Path) -> None:
    """Check that a model on the meta device agrees with ``config.json``, and does not exceed the limits above.

    Args:
        model: the model, with the stored locations.
        card: content of ``config.json``.
        file: its path, for errors.

    Raises:
        RunError: the model has other classes, channels or another size; or it exceeds a limit.
    """
    names = card["class_names"]
    if names and len(names) != model.num_classes:
        what = f"class_names: {len(names)} names for {model.num_classes} classes"
        raise RunError(f"{file}: {what}; give one name for each class")
    for key, built in (("channels", model.channels), ("size", list(model.size))):
        if card.get(key, built) != built:
            what = f"is {card[key]}, but the model with these options has {built}"
            raise RunError(f"{file}: {key}: {what}; copy it again, or train again")
    stored = model.state_dict()
    buffers = sum(b.numel() * b.element_size() for name, b in model.named_buffers() if name not in stored)
    height, width = model.size
    for what, size in (
        (f"size: a look of {height} x {width} px needs", 4 * model.channels * height * width),
        ("model: buffers that are not stored need", buffers),
    ):
        if size > MOST_BYTES:
            limit = f"{what} more than {MOST_BYTES / 2**30:g} GB"
            raise RunError(f"{file}: {limit}; copy the file again, or train a smaller model")
    looks = sum(accumulate(model.locations, mul, initial=1))
    if looks > MOST_LOOKS:
        raise RunError(f"{file}: locations: make {looks:,} looks at an image; give {MOST_LOOKS:,} or fewer")

"""Checks of the options of models by name, for recipes and run folders.

Example:
    >>> check_options("tnet", {"backbone": "test_resnet", "grid": 3, "backbone_options": {"drop_rate": 0.1}})
    >>> check_options("tnet", {"grid": "3"})
    Traceback (most recent call last):
    ...
    foveal.errors.ConfigError: model tnet: grid: '3' does not fit; give a whole number; foveal fit --model tnet ...
"""

from __future__ import annotations

import inspect
import reprlib
import sys
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from foveal.errors import ConfigError
from foveal.glimpse.base import WholeImage
from foveal.glimpse.networks import check_backbone, import_timm
from foveal.models import constructor
from foveal.registry import MODELS
from foveal.signatures import chain_of, hints_of, mismatch

LARGEST_OPTION = 32_768
"""Largest integer in a model's options."""

Whole = Annotated[int, range(1, LARGEST_OPTION + 1)]


def check_options(name: str, options: Mapping[str, Any], stored: bool = False) -> None:
    """Check that options are parameters of the model's constructor and have their types.

    Options of a dense network are the parameters of its class. Keyword arguments by which timm finds weights are not
    allowed.

    Args:
        name: see `list_models`.
        options: keyword arguments of `create_classifier`.
        stored: whether they come from a run folder, which has its own weights.

    Raises:
        ConfigError: an option is unknown, has another type, or is too large.
    """
    types = _option_types(name, constructor(name), options, stored)
    large = next((key for key, value in options.items() if _too_large(value)), None)
    error = mismatch(options, types)
    if error is None and name in MODELS:
        error = _network_error(options)
    if error is None and large is not None:
        error = f"{large}: {reprlib.repr(options[large])} is too large; give whole numbers up to {LARGEST_OPTION:,}"
    if error is not None:
        raise ConfigError(
            f"model {name}: {error}{'' if stored else f'; foveal fit --model {name} --help lists what there is'}"
        )


def _network_error(options: Mapping[str, Any]) -> str | None:
    """The first error in the options of a network in the model: ``backbone_options`` for ``backbone`` and the like."""
    for key, inner in options.items():
        if key.endswith("_options") and inner:
            network = options.get(key.removesuffix("_options"))
            known = _network_types(network, inner) if network else dict.fromkeys(inner.keys() - _reserved(), Any)
            if error := mismatch(inner, known, f"{key}."):
                return error
    return None


def _option_types(name: str, build: Callable[..., Any], options: Mapping[str, Any], stored: bool) -> dict[str, Any]:
    """Types of a model's options, except the number of classes."""
    found: dict[str, Any] = {} if name in MODELS else _network_types(name, options)
    for part in chain_of(build) if name in MODELS else (WholeImage,):
        found = {key: hint for key, (hint, _) in hints_of(part).items()} | found
    if name not in MODELS and not stored:
        found["pretrained"] = bool | str
    if "in_chans" in found:
        found["in_chans"] = Whole
    left_out = {"num_classes", "network", "return", "options"} | (
        {key for key in found if key.endswith("pretrained")} if stored else set()
    )
    return {key: hint for key, hint in found.items() if key not in left_out}


COMMON: dict[str, Any] = {
    "in_chans": Whole,
    "drop_rate": float,
    "drop_path_rate": float,
    "global_pool": str | None,
    "bn_momentum": float,
    "bn_eps": float,
}
"""Types of options that most networks of timm take. Those of batch norm are in no signature."""


def _network_types(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Types of a timm network's options: the parameters of its class; all of ``options`` if that takes ``**kwargs``."""
    check_backbone(name)
    make = inspect.signature(import_timm().model_entrypoint(name.partition(".")[0]))
    kind = make.return_annotation
    if isinstance(kind, str):
        kind = getattr(sys.modules[import_timm().model_entrypoint(name.partition(".")[0]).__module__], kind, make.empty)
    spec = {} if kind is make.empty else inspect.signature(kind).parameters
    takes_any = not spec or any(p.kind is p.VAR_KEYWORD for p in spec.values())
    named = {
        p.name
        for p in [*spec.values(), *make.parameters.values()]
        if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)
    }
    known = (named | (set(options) if takes_any else set())) - _reserved() - {"num_classes"}
    return dict.fromkeys(known, Any) | COMMON


def _reserved() -> set[str]:
    """Keyword arguments by which timm finds weights and wraps networks."""
    from timm.models import build_model_with_cfg

    makers = (import_timm().create_model, build_model_with_cfg)
    return {key for make in makers for key in inspect.signature(make).parameters} | {
        "pruned",
        "features_only",
        "num_classes",
    }


def _too_large(value: Any) -> bool:
    """Whether a value contains an integer above `LARGEST_OPTION`."""
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return (isinstance(value, int) and abs(value) > LARGEST_OPTION) or any(map(_too_large, inner))

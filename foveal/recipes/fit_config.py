"""Configuration of a run by names, and `fit_config`, which creates its objects and calls `foveal.fit`.

Example:
    >>> config = FitConfig.from_dict({"model": {"name": "tnet"}, "optimiser": {"lr": 0.01}, "epochs": 2})
    >>> config.optimiser.lr, config.to_dict()["epochs"]
    (0.01, 2)
    >>> FitConfig.from_dict({"epoch": 2})
    Traceback (most recent call last):
    ...
    foveal.errors.ConfigError: epoch: there is no such option; did you mean epochs
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_type_hints

import torch

from foveal.data import DataModule, Encoder, data_constructor, get_data, list_data
from foveal.errors import ConfigError, RunError, renaming, section
from foveal.glimpse.base import GlimpseClassifier
from foveal.glimpse.tiles import TileClassifier
from foveal.model_options import check_options
from foveal.models import constructor, create_classifier, simple_defaults, wrapper_options
from foveal.objectives import OBJECTIVES, Objective
from foveal.runs import CONFIG, Run, without_weights
from foveal.signatures import chain_of, hints_of, mismatch
from foveal.training.config import Optimiser, Training, renamed

if TYPE_CHECKING:
    from foveal.training.fitting import Opening


@dataclass
class FitConfig(Training):
    """Configuration of a run with names of model, data and objective: the content of recipes and of ``config.yaml``.

    Attributes:
        model: ``name`` and options, see `foveal.models.create_classifier`.
        data: ``name`` and options, see `foveal.data.get_data`.
        objective: options of the model's own objective; with ``name``, of another one. None for the model's own.
    """

    model: dict[str, Any] = field(default_factory=lambda: {"name": "tnet"})
    data: dict[str, Any] = field(default_factory=lambda: {"name": "folder"})
    objective: dict[str, Any] | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FitConfig:
        """Create a configuration from nested plain values.

        Raises:
            ConfigError: a key is unknown, or a value has another type.
        """
        values = renamed(values)
        _known(values, cls, "")
        _typed(values, cls, "")
        if isinstance(values.get("optimiser"), Mapping):
            optimiser = dict(values["optimiser"])
            _known(optimiser, Optimiser, "optimiser.")
            _typed(optimiser, Optimiser, "optimiser.")
            for key in ("betas", "l2_groups", "step_at"):
                if isinstance(optimiser.get(key), list):
                    optimiser[key] = tuple(optimiser[key])
            values["optimiser"] = Optimiser(**optimiser)
        if values.get("locations") is not None:
            values["locations"] = tuple(values["locations"])
        return cls(**values)

    def check(self) -> None:
        """Check the values.

        Raises:
            ConfigError: names the first invalid value.
        """
        for key in ("model", "data"):
            section = getattr(self, key)
            if not isinstance(section, Mapping) or not isinstance(section.get("name"), str):
                raise ConfigError(f"{key}: has no name; set `{key}` NAME")
        if not isinstance(self.objective, Mapping | None):
            raise ConfigError(f"objective: {self.objective!r} does not fit; give a mapping of options, or null")
        self.training().check()

    def training(self) -> Training:
        """The configuration without names of model, data and objective."""
        return Training(**{f.name: getattr(self, f.name) for f in fields(Training)})


def fit_config(
    config: FitConfig | None,
    out: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
    data: DataModule | None = None,
) -> Run:
    """`foveal.fit` with the model, data and objective of a configuration.

    Args:
        config: the configuration; None resumes with the stored one.
        data: replaces the data of the configuration.
        out, resume, overwrite, quiet: see `foveal.fit`.

    Raises:
        FovealError, KeyboardInterrupt: see `foveal.fit`.
    """
    from foveal.training.fitting import opened  # imports Lightning

    if config is not None:
        config.check()
    shape = None if config is None else (config.nodes, config.devices)
    with opened(out, resume=resume, overwrite=overwrite, shape=shape) as opening:
        config = _with_stored(config, opening)
        data, training = data or make_data(config.data), config.training()
        model = make_model(config, data, resume)
        return opening.train(model, data, make_objective(model, config.objective), training, quiet)


def _with_stored(config: FitConfig | None, opening: Opening) -> FitConfig:
    """The configuration with missing model options from the stored one; the stored one if ``config`` is None."""
    if opening.stored is not None:
        stored = _stored(opening, here=config is None)
        if config is not None:
            # Options that are newer than the run keep the behaviour of its model.
            formerly = getattr(constructor(stored.model["name"]), "formerly", {})
            return replace(config, model={**{key: stored.model[key] for key in formerly}, **config.model})
        return stored
    if config is None:
        raise ConfigError("config: is missing; give one, or resume a run")
    return config


def _stored(opening: Opening, here: bool) -> FitConfig:
    """The stored configuration of a run.

    Args:
        opening: the folder of the run.
        here: whether the run continues on as many devices as before.

    Raises:
        RunError: it is invalid.
    """
    try:
        config = FitConfig.from_dict(opening.stored or {})
        (config if here else replace(config, device="cpu")).check()
        if config.data["name"] in list_data():
            parts = chain_of(data_constructor(config.data["name"]))
            hints = {key: hint for part in parts for key, (hint, _) in hints_of(part).items()}
            if fault := mismatch(config.data, {**hints, "name": str}, "data."):
                raise ConfigError(fault)
    except ConfigError as error:
        raise RunError(f"{opening.out / CONFIG}: {error}") from error
    return config


def make_data(options: Mapping[str, Any]) -> DataModule:
    """Create a data set by ``name`` and options. Errors name an option as in recipes, such as ``data.root``.

    Raises:
        ConfigError, DataError: see `foveal.data.get_data`.
    """
    with renaming(section("data", {*options, *_parameters(data_constructor(options["name"]))})):
        return get_data(**options)


def _parameters(build: Callable[..., Any]) -> set[str]:
    """Names of the parameters of a constructor, and of those to which it passes keywords."""
    return {name for part in chain_of(build) for name in inspect.signature(getattr(part, "func", part)).parameters}


def make_model(config: FitConfig, data: DataModule, resume: bool = False) -> GlimpseClassifier:
    """Create the model of a configuration.

    Args:
        config: the configuration.
        data: determines the number of classes.
        resume: do not load pretrained weights, because a checkpoint is loaded later.

    Raises:
        ConfigError: see `create_classifier`; or ``num_classes`` differs from that of the data.
    """
    torch.manual_seed(config.seed)
    if data.encoder is not None:
        config = replace(config, model=_with_encoder(config.model, data.encoder))
    options = without_weights(config.model) if resume else dict(config.model)
    classes = options.pop("num_classes", len(data.classes))
    if classes != len(data.classes):
        raise ConfigError(
            f"model.num_classes: is {classes}, but {data.name} has {len(data.classes)} classes; leave it out"
        )
    name = options.pop("name")
    check_options(name, {key: str(value) if isinstance(value, Path) else value for key, value in options.items()})
    with renaming(section("model", {*options, *_parameters(constructor(name)), *wrapper_options()})):
        model = create_classifier(name, num_classes=classes, **options)
    model.spec |= {key: value for key, value in config.model.items() if key != "num_classes"}
    if data.encoder is not None and data.encoder.weights is not None and getattr(model, "reads_features", False):
        cast(TileClassifier, model).load_encoder(data.encoder.weights, data.encoder.digest)
    return model


def _with_encoder(options: dict[str, Any], encoder: Encoder) -> dict[str, Any]:
    """Options of a model of tiles with those of the network that made the features of the data.

    Raises:
        ConfigError: another value is set.
    """
    build = constructor(options["name"])
    known, usual = _parameters(build), simple_defaults(build)
    found = dict(options)
    if "features" not in known:
        return found  # training refuses the model
    if encoder.weights is not None and options.get("features") is not None:
        raise ConfigError(f"`model.features` {options['features']}: the network of the features is known; leave it out")
    for key, value in encoder.options.items():
        given = options.get(key)
        if key not in known or key not in usual:
            continue
        if given not in (None, usual[key], value):
            raise ConfigError(f"`model.{key}` {given}: the features were made with {value}; leave it out")
        found[key] = value
    return found


def make_objective(model: GlimpseClassifier, options: Mapping[str, Any] | None) -> Objective:
    """Create an objective: the model's own with changed options, or another one by ``name``.

    Raises:
        ConfigError: the name or an option is unknown.
    """
    options = dict(options or {})
    name = options.pop("name", None)
    options.pop("class_weights", None)
    build = type(model.default_objective()) if name is None else OBJECTIVES.get(name, "objective.name")
    try:
        with renaming(section("objective", {*options, *_parameters(build)})):
            return build(**options) if name is not None else replace(model.default_objective(), **options)  # type: ignore[type-var]
    except TypeError as error:
        raise ConfigError(f"objective: {error}; use options that it has") from error


def _known(values: Mapping[str, Any], cls: type, prefix: str) -> None:
    names = [f.name for f in fields(cls)]
    for key in values:
        if key not in names:
            near = difflib.get_close_matches(str(key), names, 1)
            raise ConfigError(
                f"{prefix}{key}: there is no such option; "
                f"{f'did you mean {prefix}{near[0]}' if near else 'foveal fit --help lists them'}"
            )


def _typed(values: Mapping[str, Any], cls: type, prefix: str) -> None:
    hints = {**get_type_hints(cls), "optimiser": Optimiser | dict[str, Any], "precision": str | int}
    if fault := mismatch(values, hints, prefix):
        raise ConfigError(fault)

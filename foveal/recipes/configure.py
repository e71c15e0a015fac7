"""Make the configuration of a run from a recipe and the command line.

Example:
    >>> flags = ["--epochs", "3", "--optimiser.lr", "1e-2", "--data.canvas", "128", "--quiet"]
    >>> config, out, how = configure("demo", flags)
    >>> config.epochs, config.optimiser.lr, config.data["canvas"], out.as_posix(), how["quiet"]
    (3, 0.01, 128, 'runs/demo', True)
    >>> configure("demo", ["--optimiser.lrr", "1"])
    Traceback (most recent call last):
    ...
    foveal.errors.ConfigError: --optimiser.lrr: there is no such option; did you mean optimiser.lr?
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from foveal.data import data_constructor
from foveal.errors import ConfigError
from foveal.glimpse.base import WholeImage
from foveal.models import constructor
from foveal.objectives import OBJECTIVES, CrossEntropy
from foveal.recipes import find_recipe, load_recipe, merge
from foveal.recipes.fit_config import FitConfig
from foveal.recipes.flags import SECTIONS, Option, chosen_names, dataclass_options, options_of, parse_options
from foveal.recipes.help import recipe_help
from foveal.registry import MODELS, made_with
from foveal.signatures import mismatch, target_of
from foveal.training.config import renamed

RUN_FLAGS = (
    Option("resume", bool, False, "continue the run in the folder"),
    Option("overwrite", bool, False, "replace the run in the folder"),
    Option("quiet", bool, False, "print results and errors only"),
)


def configure(recipe: str, argv: Sequence[str]) -> tuple[FitConfig, Path, dict[str, bool]]:
    """Make the configuration of a run.

    Args:
        recipe: name or file of a recipe.
        argv: flags that override it; ``--help`` prints all flags and exits.

    Returns:
        The configuration, the run folder, and the values of ``resume``, ``overwrite`` and ``quiet`` for `fit_config`.

    Raises:
        ConfigError: a name, key or value does not fit.
    """
    file, content = find_recipe(recipe), renamed(load_recipe(recipe))
    with made_with(content.pop("imports", None)):
        return _configured(recipe, file, content, argv)


def _configured(
    recipe: str, file: Path, content: dict[str, Any], argv: Sequence[str]
) -> tuple[FitConfig, Path, dict[str, bool]]:
    loaded = {key: value for key, value in content.items() if not (key in SECTIONS and value is None)}
    for section in SECTIONS:
        if not isinstance(loaded.get(section, {}), dict):
            raise ConfigError(f"{file}: {section} is not a mapping; write its name and options below it")
    values = chosen_names(merge({"model": {"name": "tnet"}, "data": {"name": "folder"}}, loaded), argv)
    model, data = (_name(values, section, str(file)) for section in ("model", "data"))
    looks = model in MODELS
    build = constructor(model)
    of_model = options_of(build, "model", skip=("num_classes", "objective")) if looks else _dense_options()
    objective = (
        OBJECTIVES.get(named, "objective.name")
        if (named := values.get("objective", {}).get("name"))
        else own_objective(model)
    )
    of_objective = options_of(objective, "objective", skip=("class_weights",))
    options = [
        Option(
            "out",
            str,
            Path("runs", recipe if file != Path(recipe) else file.stem).as_posix(),
            "run folder, created if missing",
        ),
        *RUN_FLAGS,
        *dataclass_options(FitConfig, skip=(*SECTIONS, "imports")),
        *_section("data", data, options_of(data_constructor(data), "data")),
        *_section("model", model, of_model),
        Option("objective.name", str, None, "name of the objective; short: --objective NAME", unset=True),
        *(replace(o, unset=True) for o in of_objective),
    ]
    open_keys = ("objective",) if looks else ("objective", "model")
    found = parse_options(
        options,
        values,
        argv,
        where=str(file),
        open_keys=open_keys,
        explain=partial(recipe_help, recipe, values, options),
    )
    out = found.pop("out")
    how = {o.key: found.pop(o.key) for o in RUN_FLAGS}
    return FitConfig.from_dict(found), Path(out), how


def own_objective(model: str) -> type:
    """Class of the default objective of a model.

    Raises:
        ConfigError: unknown model.
    """
    return target_of(constructor(model)).objective if model in MODELS else CrossEntropy


def configure_data(values: dict[str, Any], argv: Sequence[str], where: str) -> dict[str, Any]:
    """Name and options of a data set: ``values``, overridden by flags such as ``--data.root``.

    Raises:
        ConfigError: a name, key or value does not fit.
    """
    recipe = chosen_names({"data": values}, argv)
    name = _name(recipe, "data", where)
    return parse_options(_section("data", name, options_of(data_constructor(name), "data")), recipe, argv, where=where)[
        "data"
    ]


def _name(values: dict[str, Any], section: str, where: str) -> str:
    """The name of a section.

    Raises:
        ConfigError: it is no text.
    """
    if fault := mismatch({"name": values[section]["name"]}, {"name": str}, f"{section}."):
        raise ConfigError(f"{where}: {fault}")
    return values[section]["name"]


def _section(section: str, name: str, options: Sequence[Option]) -> list[Option]:
    return [Option(f"{section}.name", str, name, f"name of the {section}; short: --{section} NAME"), *options]


def _dense_options() -> list[Option]:
    """Common options of dense networks. Most networks of ``timm`` do not declare their options."""
    return [
        Option("model.pretrained", bool | str, False, "load the pretrained weights of timm, or of a file"),
        Option("model.in_chans", int, None, "bands of the images", unset=True),
        Option("model.drop_rate", float, None, "dropout before the classifier", unset=True),
        Option("model.drop_path_rate", float, None, "stochastic depth of the last block", unset=True),
        *options_of(WholeImage, "model", skip=("network",)),
    ]

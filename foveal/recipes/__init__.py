"""Recipes: YAML files of the runs that can be reproduced.

A recipe sets some values of a `foveal.recipes.FitConfig`. ``base:`` names a recipe to start from. If a section
(``model``, ``data``, ``objective``) has another name than in the base, it replaces the section of the base, because
options of one model do not apply to another.

The first line of a recipe is a comment that describes it.

Example:
    >>> load_recipe("demo")["data"]["name"]
    'digits'
    >>> describe_recipe("cifar10/resnet110")
    'ResNet-110'
    >>> list_recipes("imagenet/*stage*")
    ['imagenet/saccader_stage1', 'imagenet/saccader_stage2', 'imagenet/saccader_stage3']
    >>> merge({"model": {"name": "tnet", "grid": 5}, "epochs": 2}, {"model": {"locations": [3]}})
    {'model': {'name': 'tnet', 'grid': 5, 'locations': [3]}, 'epochs': 2}
    >>> merge({"model": {"name": "tnet", "grid": 5}}, {"model": {"name": "resnet18"}})
    {'model': {'name': 'resnet18'}}
"""

from __future__ import annotations

import difflib
import fnmatch
from pathlib import Path
from typing import Any

import yaml

from foveal.errors import ConfigError
from foveal.strict import ContentError
from foveal.strict_yaml import StrictLoader, read_yaml

_FOLDER = Path(__file__).parent

GROUPS = {
    "cifar10": "networks with and without attention, Saccader, DRAM",
    "cifar100": "networks with and without attention",
    "imagenet": "the same for ImageNet, and TNet, Saccader, DRAM",
    "fmow": "TNet on satellite images",
    "cub": "TNet on birds",
    "nabirds": "TNet on more kinds of birds",
    "megapixel": "TNet, and scans, on MNIST digits scattered over large canvases",
}
"""Descriptions of the folders of recipes."""


def parse_value(text: str) -> Any:
    """Parse a value from the command line: ``3`` is a number, ``[2, 1]`` a list, ``null`` is None.

    Raises:
        ConfigError: brackets or quotes are not closed.
    """
    try:
        return yaml.load(text, Loader=StrictLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{text}: cannot be read as a value; check brackets and quotes") from error


def list_recipes(pattern: str = "*") -> list[str]:
    """Names of the recipes in the package. Files whose names begin with an underscore are bases only.

    Args:
        pattern: pattern with ``*`` and ``?``, or the name of a folder for all recipes in it.
    """
    names = sorted(
        p.relative_to(_FOLDER).as_posix().removesuffix(".yaml")
        for p in _FOLDER.rglob("*.yaml")
        if not p.name.startswith("_")
    )
    folder = pattern.removesuffix("/")
    return [name for name in names if fnmatch.fnmatch(name, pattern) or name.partition("/")[0] == folder]


def describe_recipe(name: str) -> str:
    """Description of a recipe from its first line; empty if that is not a comment.

    Raises:
        ConfigError: see `find_recipe`.
    """
    with find_recipe(name).open(encoding="utf-8", errors="replace") as lines:
        first = lines.readline()
    return first.lstrip("# ").rstrip().removesuffix(".") if first.startswith("#") else ""


def find_recipe(name: str) -> Path:
    """Path of a recipe: a YAML file, or the name of a recipe in the package.

    Raises:
        ConfigError: there is no such recipe.
    """
    if Path(name).suffix in (".yaml", ".yml"):
        if not Path(name).is_file():
            raise ConfigError(f"{name}: there is no such file; give a recipe file or a name that foveal recipes lists")
        return Path(name)
    if name not in list_recipes():
        if name.removesuffix("/") in GROUPS:
            raise ConfigError(f"{name}: this is a group of recipes; give one that foveal recipes {name} lists")
        if instead := _advice(Path(name)):
            raise ConfigError(f"{name}: this is not a recipe, {instead}")
        near = difflib.get_close_matches(name, list_recipes(), 1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else "use a YAML file or a name that foveal recipes lists"
        raise ConfigError(f"{name}: there is no recipe of this name; {hint}")
    return _FOLDER / f"{name}.yaml"


def _advice(path: Path) -> str:
    """Advice for a path that is not a recipe; empty if there is no such path."""
    if not path.exists():
        return ""
    if (path / "config.yaml").is_file():  # foveal.runs.CONFIG, without importing torch
        return f"but a run folder; continue the run with foveal fit --resume --out {path}"
    if path.is_dir():
        return f"but a folder; use --data.root {path} to train on its images"
    if path.suffix.lower() in (".csv", ".parquet", ".pq"):
        return f"but a table; use --data manifest --data.file {path} to train on its images"
    return "but a file of another kind; give a file that ends in .yaml, or the folder of your images by --data.root"


def load_recipe(name: str, _seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Load the values of a recipe, merged with those of its bases.

    Raises:
        ConfigError: there is no such recipe, it is not valid YAML, or its bases form a cycle.
    """
    file = find_recipe(name)
    if file in _seen:
        raise ConfigError(f"{file}: its base leads back to itself; remove a base line")
    try:
        values = read_yaml(file) or {}
    except ContentError as error:
        raise ConfigError(f"{file}: {error}; correct it") from error
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error.strerror}); check its permissions") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{file}: this is not a recipe; write lines of the form epochs: 3")
    for section in ("model", "data", "objective"):
        if isinstance(values.get(section), str):
            values[section] = {"name": values[section]}
    base = values.pop("base", None)
    if base is None:
        return values
    nearby = file.parent / base
    return merge(load_recipe(str(nearby) if nearby.suffix and nearby.is_file() else str(base), (*_seen, file)), values)


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Merge ``over`` into ``base`` section by section. A section with another name replaces that of the base.

    Options of the default objective are dropped if ``over`` names a model with another kind of default objective.
    """
    merged = dict(base)
    if _other_objective(base, over):
        merged["objective"] = {}
    for key, value in over.items():
        under = merged.get(key)
        if isinstance(value, dict) and isinstance(under, dict):
            first_named = key == "objective" and "name" in value and "name" not in under
            other = {"name"} <= value.keys() & under.keys() and value["name"] != under["name"]
            merged[key] = value if first_named or other else merge(under, value)
        else:
            merged[key] = value
    return merged


def _other_objective(base: dict[str, Any], over: dict[str, Any]) -> bool:
    """Whether ``base`` sets options of a default objective that the model of ``over`` does not have."""
    sections = [base.get("objective"), base.get("model"), over.get("model")]
    if not all(isinstance(section, dict) for section in sections):
        return False
    options, *models = (section for section in sections if isinstance(section, dict))
    before, after = (model.get("name") for model in models)
    if not options or "name" in options or not before or not after or before == after:
        return False
    from foveal.recipes.configure import own_objective

    return own_objective(before) is not own_objective(after)

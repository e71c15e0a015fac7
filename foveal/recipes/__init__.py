"""Recipes: one YAML file for each run worth repeating.

A recipe is the part of a `foveal.recipes.config.FitConfig` that it wants to fix. ``base:`` names another recipe to start from;
a section (``model``, ``data``, ``objective``) that names something else than its base does starts from nothing, because
the options of one model mean nothing to another.

Its first line is a comment that says what it is.

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
from foveal.strict import Loader, Malformed, read_yaml

_FOLDER = Path(__file__).parent

GROUPS = {
    "cifar10": "networks with and without attention, Saccader, DRAM",
    "cifar100": "networks with and without attention",
    "imagenet": "the same for ImageNet, and TNet, Saccader, DRAM",
    "fmow": "TNet on satellite images",
    "cub": "TNet on birds",
    "nabirds": "TNet on more kinds of birds",
    "megapixel": "TNet on MNIST digits scattered over large canvases",
}
"""What the recipes of each folder are for."""


def parse_value(text: str) -> Any:
    """A value as people type it: ``3`` is a number, ``[2, 1]`` a list, ``null`` nothing.

    Raises:
        ConfigError: brackets or quotes that do not close.
    """
    try:
        return yaml.load(text, Loader=Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{text}: cannot be read as a value; check brackets and quotes") from error


def list_recipes(pattern: str = "*") -> list[str]:
    """Names of the recipes that come with the package; files whose name begins with an underscore are only bases.

    Args:
        pattern: with ``*`` and ``?``, for those that it fits; the name of a folder stands for all recipes in it.
    """
    names = sorted(p.relative_to(_FOLDER).as_posix().removesuffix(".yaml") for p in _FOLDER.rglob("*.yaml") if not p.name.startswith("_"))
    folder = pattern.removesuffix("/")
    return [name for name in names if fnmatch.fnmatch(name, pattern) or name.partition("/")[0] == folder]


def describe_recipe(name: str) -> str:
    """What a recipe is, by its first line; nothing where that is no comment.

    Raises:
        ConfigError: see `find_recipe`.
    """
    with find_recipe(name).open(encoding="utf-8", errors="replace") as lines:
        first = lines.readline()
    return first.lstrip("# ").rstrip().removesuffix(".") if first.startswith("#") else ""


def find_recipe(name: str) -> Path:
    """The file of a recipe: a YAML file of the user's, or a recipe of the package by name.

    Raises:
        ConfigError: neither.
    """
    if Path(name).suffix in (".yaml", ".yml"):
        if not Path(name).is_file():
            raise ConfigError(f"{name}: there is no such file; give a recipe file or a name that foveal recipes lists")
        return Path(name)
    if name not in list_recipes():
        if name.removesuffix("/") in GROUPS:
            raise ConfigError(f"{name}: this is a group of recipes; give one that foveal recipes {name} lists")
        if instead := _meant(Path(name)):
            raise ConfigError(f"{name}: is no recipe, {instead}")
        near = difflib.get_close_matches(name, list_recipes(), 1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else "use a YAML file or a name that foveal recipes lists"
        raise ConfigError(f"{name}: there is no recipe of this name; {hint}")
    return _FOLDER / f"{name}.yaml"


def _meant(path: Path) -> str:
    """What is there instead of a recipe, and how to train on it; nothing if nothing is there."""
    if not path.exists():
        return ""
    if (path / "config.yaml").is_file():  # foveal.runs.CONFIG, which takes torch to import
        return f"but the folder of a run; go on with it by foveal fit --resume --out {path}"
    if path.is_dir():
        return f"but a folder; use --data.root {path} to train on the images in it"
    if path.suffix.lower() in (".csv", ".parquet", ".pq"):
        return f"but a table; use --data manifest --data.file {path} to train on the images that it lists"
    return "but a file of another kind; give a file that ends in .yaml, or the folder of your images by --data.root"


def load_recipe(name: str, _seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The values of a recipe, on top of those of its bases.

    Raises:
        ConfigError: no such recipe, no valid YAML, or recipes that are each other's base.
    """
    file = find_recipe(name)
    if file in _seen:
        raise ConfigError(f"{file}: its base leads back to itself; remove a base line")
    try:
        values = read_yaml(file) or {}
    except Malformed as error:
        raise ConfigError(f"{file}: {error}; mend it") from error
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error.strerror}); check its permissions") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{file}: is no recipe; write lines of the form epochs: 3")
    for section in ("model", "data", "objective"):
        if isinstance(values.get(section), str):
            values[section] = {"name": values[section]}
    base = values.pop("base", None)
    if base is None:
        return values
    beside = file.parent / base
    return merge(load_recipe(str(beside) if beside.suffix and beside.is_file() else str(base), (*_seen, file)), values)


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """``over`` on top of ``base``, section by section; a section that names something else replaces the base's.

    Options of a model's own objective are left out where ``over`` names a model with an objective of another kind.
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
    """Whether ``base`` sets options of its model's own objective, and the model of ``over`` has another kind of objective."""
    sections = [base.get("objective"), base.get("model"), over.get("model")]
    if not all(isinstance(section, dict) for section in sections):
        return False
    options, *models = (section for section in sections if isinstance(section, dict))
    before, after = (model.get("name") for model in models)
    if not options or "name" in options or not before or not after or before == after:
        return False
    from foveal.recipes.configure import own_objective

    return own_objective(before) is not own_objective(after)

"""Flags from signatures: every value of a run can be set on the command line, typed and explained.

Which flags there are depends on the model and the data set that were chosen, so that this happens in two steps: find the
names (in the recipe, then on the command line), then build a parser from the signatures behind them. Nothing about an
option is written twice: its type, default and explanation are those of the constructor.

Example:
    >>> from foveal.glimpse.base import WholeImage
    >>> [(o.key, o.default) for o in options_of(WholeImage, "model", skip=("network",))][:1]
    [('model.image_size', None)]
    >>> as_flat({"model": {"name": "tnet", "grid": 3}, "epochs": 2})
    {'model.name': 'tnet', 'model.grid': 3, 'epochs': 2}
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import docstring_parser
import jsonargparse

from foveal.errors import ConfigError
from foveal.recipes import merge, parse_value
from foveal.signatures import chain_of, hints_of, in_words

SECTIONS = ("model", "data", "objective")


class UsageError(ConfigError):
    """Something on the command line, as against in a file, that does not fit."""


@dataclasses.dataclass(frozen=True)
class Option:
    """One value that can be set.

    Attributes:
        key: where it stands in a recipe, with dots: ``optimiser.lr``.
        hint: its type.
        default: its value if nobody says anything; `REQUIRED` where there is none, `UNKNOWN` where it cannot be told.
        help: one sentence.
        unset: leave it out where nobody sets it: whoever it is for has a default of its own, which ``default`` says if nobody on the
            way to there has another (see `foveal.recipes.help.reached`).
        values: names that it takes, where they are listed in a table (``Annotated[str, TABLE]``); any if empty.
    """

    key: str
    hint: Any
    default: Any
    help: str
    unset: bool = False
    values: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The last part of its key."""
        return self.key.rpartition(".")[2]

    @property
    def taken(self) -> Any:
        """The type of what may be given: null leaves what is `unset` as it is."""
        return self.hint | None if self.unset and self.hint is not Any else self.hint


REQUIRED = inspect.Parameter.empty
UNKNOWN = object()


def options_of(build: Callable[..., Any], prefix: str, skip: Iterable[str] = ()) -> list[Option]:
    """The options of a class or function. One that hands ``**options`` on has those of the class it returns as well."""
    preset: dict[str, Any] = {}
    if isinstance(build, functools.partial):
        positional = list(inspect.signature(build.func).parameters)[: len(build.args)]
        skip = {*skip, *positional}
        preset, build = build.keywords, build.func
    found: dict[str, Option] = {}
    for level, function in enumerate(chain_of(build)):
        hints, texts = hints_of(function), _texts(function)
        for name, parameter in inspect.signature(function).parameters.items():
            if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL) or name in skip or name in found:
                continue
            (hint, values), text = hints.get(name, (Any, ())), texts.get(name, "")
            if level == 0:
                found[name] = Option(f"{prefix}.{name}", hint, preset.get(name, parameter.default), text, values=values)
            elif parameter.default is not REQUIRED:
                # Someone on the way may have other defaults than the class at the end.
                found[name] = Option(f"{prefix}.{name}", hint, parameter.default, text, unset=True, values=values)
        for name, option in found.items():
            if not option.help and name in texts:  # one that is handed on is explained where it arrives
                found[name] = dataclasses.replace(option, help=texts[name])
    return list(found.values())


def initialiser_of(kind: type) -> type:
    """The class that ``__init__`` is inherited from."""
    return next(c for c in kind.__mro__ if "__init__" in vars(c))


def _texts(function: Callable[..., Any]) -> dict[str, str]:
    """What a docstring says of each argument; an entry may speak of several, ``mean, std``. What a class leaves out its bases say."""
    documented = reversed(function.__mro__) if inspect.isclass(function) else [function]
    entries = [
        entry
        for where in documented
        for entry in docstring_parser.parse(inspect.getdoc(where) or "", docstring_parser.DocstringStyle.GOOGLE).params
    ]
    return {name.strip(): " ".join((e.description or "").split()) for e in entries for name in e.arg_name.split(",")}


def dataclass_options(config: type, prefix: str = "", skip: Iterable[str] = ()) -> list[Option]:
    """The options of a dataclass and of the dataclasses in it."""
    hints, texts, found = hints_of(config), _texts(config), []
    for field in dataclasses.fields(config):
        if field.name in skip:
            continue
        key, (hint, values) = prefix + field.name, hints[field.name]
        if dataclasses.is_dataclass(hint):
            found += dataclass_options(typing.cast(type, hint), f"{key}.")
            continue
        default = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
        default = REQUIRED if default is dataclasses.MISSING else default
        found.append(Option(key, hint, default, texts.get(field.name, ""), values=values))
    return found


def as_flat(values: dict[str, Any], keys: Iterable[str] | None = None, prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted key. A mapping that is itself the value of one of ``keys`` is left whole."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        inner = isinstance(value, dict) and not (keys is not None and prefix + key in keys)
        flat.update(as_flat(value, keys, f"{prefix}{key}.") if inner else {prefix + key: value})
    return flat


def as_nested(flat: dict[str, Any]) -> dict[str, Any]:
    """The reverse of `as_flat`.

    Raises:
        UsageError: a key stands for a value and for a section.
    """
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *way, last = key.split(".")
        at = nested
        for part in way:
            at = at.setdefault(part, {})
            if not isinstance(at, dict):
                raise UsageError(f"{key}: {part} has a value already; give the one or the other")
        at[last] = value
    return nested


def chosen_names(recipe: dict[str, Any], argv: Sequence[str]) -> dict[str, Any]:
    """``recipe`` with the sections whose names the command line changes: ``--model resnet18`` drops the recipe's model options."""
    for section in SECTIONS:
        for i, token in enumerate(argv):
            key, equals, value = token.partition("=")
            if key in (f"--{section}", f"--{section}.name"):
                name = value if equals else argv[i + 1] if i + 1 < len(argv) else ""
                recipe = merge(recipe, {section: {"name": name}})
    return recipe


def parse(
    options: Sequence[Option], recipe: dict[str, Any], argv: Sequence[str], *, where: str, open_keys: Sequence[str] = (),
    explain: Callable[[], str] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Values for ``options``: those of ``argv``, else of ``recipe``, else the defaults; nested.

    Args:
        options: what can be set.
        recipe: nested values.
        argv: the command line.
        where: what errors about the recipe begin with.
        open_keys: sections in which any other key is let through, untyped.
        explain: what ``--help`` prints before it exits.

    Returns:
        Nested values.

    Raises:
        ConfigError: an unknown key, a value of another type, or one that is missing; `UsageError` where the command line is to blame.
    """
    by_key = {o.key: o for o in options}
    given = as_flat(recipe, by_key)
    through = {k: v for k, v in given.items() if k not in by_key and k.startswith(tuple(f"{s}." for s in open_keys))}
    for key in given:
        if key not in by_key and key not in through:
            raise ConfigError(f"{where}: {_unknown(key, by_key)}")
    parser = _parser(options)
    argv, more = _translate(argv, by_key, open_keys)
    try:
        checked = as_flat(parser.parse_object(as_nested({k: v for k, v in given.items() if k in by_key}), defaults=False).as_dict(), by_key)
    except Exception as error:
        raise ConfigError(f"{where}: {_wrong_type(str(error), by_key)}") from error
    if explain is not None and "--help" in argv:
        print(explain())
        raise SystemExit(0)
    try:
        parser.set_defaults(checked)
        values = as_flat(parser.parse_args(argv).as_dict(), by_key)
    except jsonargparse.ArgumentError as error:
        raise UsageError(f"--{_wrong_type(str(error), by_key)}") from error
    for key, option in by_key.items():
        if option.default is REQUIRED and not option.unset and values.get(key) is None:
            raise UsageError(f"--{key}: is missing ({option.help.rstrip('.')}); set it")
    unset = {key for key, option in by_key.items() if option.unset and values.get(key) is None}
    return as_nested({**{k: v for k, v in values.items() if k not in unset}, **through, **more})


def _parser(options: Sequence[Option]) -> jsonargparse.ArgumentParser:
    parser = jsonargparse.ArgumentParser(exit_on_error=False, add_help=False)
    for o in options:
        absent = o.unset or o.default is REQUIRED
        # A required value has no default to fit its type; whether it was given is checked afterwards.
        hint = o.hint | None if absent and o.hint is not Any else o.hint
        parser.add_argument(flag(o.key), type=hint, default=None if absent else o.default)
    return parser


def _translate(argv: Sequence[str], by_key: dict[str, Option], open_keys: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """The command line as the parser wants it, and what goes through untyped.

    ``--model X`` is ``--model.name X``, and so for every section that has a name; hyphens and underscores are one; a flag without a
    value is true; ``2,1`` is a list.
    """
    known, through, i = [], {}, 0
    while i < len(argv):
        token = argv[i]
        i += 1
        if token in ("-h", "--help"):
            known.append("--help")
            continue
        if not token.startswith("--"):
            hint = f"; a folder of images is given by --data.root {token}" if Path(token).is_dir() else ""
            raise UsageError(f"{token}: is not expected here; a recipe comes first, and values after their --key{hint}")
        key, equals, value = token[2:].partition("=")
        key = key.replace("-", "_")
        key = f"{key}.name" if f"{key}.name" in by_key else key
        if not equals:
            if i < len(argv) and not argv[i].startswith("--"):
                value, i = argv[i], i + 1
            else:
                value = "true"
        if key in by_key:
            value = _listed(value, by_key[key].taken)
        elif not any(key.startswith(f"{k}.") and "dict" in str(o.hint) for k, o in by_key.items()):
            if not key.startswith(tuple(f"{s}." for s in open_keys)):
                raise UsageError(f"--{_unknown(key, by_key)}")
            through[key] = parse_value(_listed(value, int | Sequence))
            continue
        known += [flag(key), value]
    return known, through


def flag(key: str) -> str:
    return "--" + (key if "." in key else key.replace("_", "-"))


def _listed(value: str, hint: Any) -> str:
    """``2,1`` for a sequence is ``[2,1]``; so is ``2``, unless a number would do as well."""
    parts = [hint, *(typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else ())]
    takes_list = any(inspect.isclass(o := typing.get_origin(p) or p) and o in (tuple, list, Sequence) for p in parts)
    if takes_list and re.fullmatch(r"[-+.\deE]+(,[-+.\deE]+)*,?", value) and ("," in value or not {int, float} & set(parts)):
        return f"[{value.rstrip(',')}]"
    return value


def _unknown(key: str, by_key: dict[str, Option]) -> str:
    near = difflib.get_close_matches(key, by_key, 1, cutoff=0.6)
    if not near:
        leaf = key.rpartition(".")[2]
        near = [k for k in by_key if k.rpartition(".")[2] == leaf] or difflib.get_close_matches(leaf, by_key, 1, cutoff=0.5)
    return f"{key}: there is no such option; " + (f"did you mean {near[0]}?" if near else "see --help for those there are")


def _wrong_type(text: str, by_key: dict[str, Option]) -> str:
    """jsonargparse's words as one sentence."""
    key = re.search(r'key "([^"]+)"', text)
    got = re.findall(r"(?:Got|Given) value: (.*)", text)
    if not key or key[1] not in by_key:
        return " ".join(text.split())
    return f"{key[1]}: {got[-1].strip() if got else 'the value'} does not fit; give {in_words(by_key[key[1]].taken)}"


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """``["grid=5", "locations=[3]"]`` as keywords.

    Raises:
        UsageError: no equals sign.
    """
    values = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise UsageError(f"--set {setting}: has no value; write --set {key}=VALUE")
        values[key] = parse_value(_listed(value, int | Sequence))
    return values

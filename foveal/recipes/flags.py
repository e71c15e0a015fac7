"""Flags from signatures: every value of a run can be set on the command line.

The model and the data set determine which flags exist. So the names are read first, from the recipe and the command
line; then a parser is built from the signatures of these constructors. Types, defaults and help texts are those of the
constructors.

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

_GONE = {
    "tensorboard": "use --logger tensorboard",
    "channels_last": "leave it out, because every model chooses its memory format",
}
SECTIONS = ("model", "data", "objective")


@dataclasses.dataclass(frozen=True)
class Option:
    """A value that can be set.

    Attributes:
        key: key in a recipe, with dots: ``optimiser.lr``.
        hint: type.
        default: default; `REQUIRED` if there is none, `UNKNOWN` if it cannot be determined.
        help: one sentence.
        unset: omit the option if it is not set: the class that takes it has its own default. ``default`` is then that
            of the class, unless a constructor in between changes it (see `foveal.recipes.help.trace_arguments`).
        values: allowed names, from a table (``Annotated[str, TABLE]``); any if empty.
    """

    key: str
    hint: Any
    default: Any
    help: str
    unset: bool = False
    values: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The last part of the key."""
        return self.key.rpartition(".")[2]

    @property
    def taken(self) -> Any:
        """The accepted type. null leaves an `unset` option unset."""
        return self.hint | None if self.unset and self.hint is not Any else self.hint


REQUIRED = inspect.Parameter.empty
UNKNOWN = object()


def options_of(build: Callable[..., Any], prefix: str, skip: Iterable[str] = ()) -> list[Option]:
    """Options of a class or function. If it passes ``**options`` on, includes those of the class that it returns."""
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
                # A constructor in between can have another default than the class.
                found[name] = Option(f"{prefix}.{name}", hint, parameter.default, text, unset=True, values=values)
        for name, option in found.items():
            if not option.help and name in texts:  # documented by the class that takes it
                found[name] = dataclasses.replace(option, help=texts[name])
    return list(found.values())


def initialiser_of(kind: type) -> type:
    """The class that defines the ``__init__`` of a class."""
    return next(c for c in kind.__mro__ if "__init__" in vars(c))


def _texts(function: Callable[..., Any]) -> dict[str, str]:
    """Help texts of arguments by docstring. An entry can cover several, as ``mean, std``. Classes inherit texts."""
    documented = reversed(function.__mro__) if inspect.isclass(function) else [function]
    entries = [
        entry
        for where in documented
        for entry in docstring_parser.parse(inspect.getdoc(where) or "", docstring_parser.DocstringStyle.GOOGLE).params
    ]
    return {name.strip(): " ".join((e.description or "").split()) for e in entries for name in e.arg_name.split(",")}


def dataclass_options(config: type, prefix: str = "", skip: Iterable[str] = ()) -> list[Option]:
    """Options of a dataclass, including nested dataclasses."""
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
    """Flatten nested values to dotted keys. Mappings that are values of ``keys`` are not flattened."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        inner = isinstance(value, dict) and not (keys is not None and prefix + key in keys)
        flat.update(as_flat(value, keys, f"{prefix}{key}.") if inner else {prefix + key: value})
    return flat


def as_nested(flat: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `as_flat`.

    Raises:
        ConfigError: a key is both a value and a section.
    """
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *way, last = key.split(".")
        at = nested
        for part in way:
            at = at.setdefault(part, {})
            if not isinstance(at, dict):
                raise ConfigError(f"{key}: {part} has a value already; give the one or the other")
        at[last] = value
    return nested


def chosen_names(recipe: dict[str, Any], argv: Sequence[str]) -> dict[str, Any]:
    """The recipe with the names of the command line. ``--model resnet18`` drops the model options of the recipe."""
    for section in SECTIONS:
        for i, token in enumerate(argv):
            key, equals, value = token.partition("=")
            if key in (f"--{section}", f"--{section}.name"):
                name = value if equals else argv[i + 1] if i + 1 < len(argv) else ""
                recipe = merge(recipe, {section: {"name": name}})
    return recipe


def parse_options(
    options: Sequence[Option],
    recipe: dict[str, Any],
    argv: Sequence[str],
    *,
    where: str,
    open_keys: Sequence[str] = (),
    explain: Callable[[], str] | None = None,
) -> dict[str, Any]:
    """Parse values for ``options``, from ``argv``, else from ``recipe``, else the defaults.

    Args:
        options: available options.
        recipe: nested values.
        argv: the command line.
        where: name of the recipe in errors.
        open_keys: sections that accept other keys, without a type.
        explain: returns the text of ``--help``.

    Returns:
        Nested values.

    Raises:
        ConfigError: a key is unknown, or a value is missing or of the wrong type.
    """
    by_key = {o.key: o for o in options}
    given = as_flat(recipe, by_key)
    through = {k: v for k, v in given.items() if k not in by_key and k.startswith(tuple(f"{s}." for s in open_keys))}
    for key in given:
        if key not in by_key and key not in through:
            raise ConfigError(f"{where}: {_unknown(key, by_key)}")
    parser = _make_parser(options)
    argv, more = _translate(argv, by_key, open_keys)
    try:
        checked = as_flat(
            parser.parse_object(as_nested({k: v for k, v in given.items() if k in by_key}), defaults=False).as_dict(),
            by_key,
        )
    except Exception as error:
        raise ConfigError(f"{where}: {_wrong_type(str(error), by_key)}") from error
    if explain is not None and "--help" in argv:
        print(explain())
        raise SystemExit(0)
    try:
        parser.set_defaults(checked)
        values = as_flat(parser.parse_args(argv).as_dict(), by_key)
    except jsonargparse.ArgumentError as error:
        raise ConfigError(f"--{_wrong_type(str(error), by_key)}") from error
    for key, option in by_key.items():
        if option.default is REQUIRED and not option.unset and values.get(key) is None:
            raise ConfigError(f"--{key}: this option is missing ({option.help.rstrip('.')}); set it")
    unset = {key for key, option in by_key.items() if option.unset and values.get(key) is None}
    return as_nested({**{k: v for k, v in values.items() if k not in unset}, **through, **more})


def _make_parser(options: Sequence[Option]) -> jsonargparse.ArgumentParser:
    parser = jsonargparse.ArgumentParser(exit_on_error=False, add_help=False)
    for o in options:
        absent = o.unset or o.default is REQUIRED
        # Required values have no default of their type. They are checked after parsing.
        hint = o.hint | None if absent and o.hint is not Any else o.hint
        parser.add_argument(flag(o.key), type=hint, default=None if absent else o.default)
    return parser


def _translate(
    argv: Sequence[str], by_key: dict[str, Option], open_keys: Sequence[str]
) -> tuple[list[str], dict[str, Any]]:
    """Convert the command line for the parser; also returns the values of untyped keys.

    ``--model X`` is short for ``--model.name X``, in every section with a name. Hyphens equal underscores. A flag
    without a value is true. ``2,1`` is a list.
    """
    known, through, i = [], {}, 0
    while i < len(argv):
        token = argv[i]
        i += 1
        if token in ("-h", "--help"):
            known.append("--help")
            continue
        if not token.startswith("--"):
            hint = f"; give a folder of images by --data.root {token}" if Path(token).is_dir() else ""
            raise ConfigError(f"{token}: not expected here; the recipe comes first, then values after --key{hint}")
        key, equals, value = token[2:].partition("=")
        key = key.replace("-", "_")
        key = f"{key}.name" if f"{key}.name" in by_key else key
        if not equals:
            if i < len(argv) and not argv[i].startswith("--"):
                value, i = argv[i], i + 1
            else:
                value = "true"
        if key in by_key:
            value = _as_list(value, by_key[key].taken)
        elif not any(key.startswith(f"{k}.") and "dict" in str(o.hint) for k, o in by_key.items()):
            if not key.startswith(tuple(f"{s}." for s in open_keys)):
                raise ConfigError(f"--{_unknown(key, by_key)}")
            through[key] = parse_value(_as_list(value, int | Sequence))
            continue
        if flag(key) in known and value[:1] == "[" and _takes_words(by_key[key].taken):  # --logger a --logger b
            at = known.index(flag(key)) + 1
            known[at] = f"{known[at][:-1]},{value[1:]}"
            continue
        known += [flag(key), value]
    return known, through


def flag(key: str) -> str:
    return "--" + (key if "." in key else key.replace("_", "-"))


def _as_list(value: str, hint: Any) -> str:
    """Convert ``2,1`` to ``[2,1]`` for a sequence, and also ``2`` unless the type accepts a number."""
    parts = [hint, *(typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else ())]
    if _takes_words(hint) and value[:1] not in ("", "[") and value != "null":
        return f"[{value.rstrip(',')}]"
    takes_list = any(inspect.isclass(o := typing.get_origin(p) or p) and o in (tuple, list, Sequence) for p in parts)
    if (
        takes_list
        and re.fullmatch(r"[-+.\deE]+(,[-+.\deE]+)*,?", value)
        and ("," in value or not {int, float} & set(parts))
    ):
        return f"[{value.rstrip(',')}]"
    return value


def _takes_words(hint: Any) -> bool:
    """Whether a type is a list of text, but not also a text."""
    parts = [hint, *(typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else ())]
    listed = [typing.get_args(p)[:1] for p in parts if typing.get_origin(p) in (list, tuple, Sequence)]
    return str not in parts and (str,) in listed


def _unknown(key: str, by_key: dict[str, Option]) -> str:
    if key in _GONE:
        return f"{key}: there is no such option any more; {_GONE[key]}"
    near = difflib.get_close_matches(key, by_key, 1, cutoff=0.6)
    if not near:
        leaf = key.rpartition(".")[2]
        near = [k for k in by_key if k.rpartition(".")[2] == leaf] or difflib.get_close_matches(
            leaf, by_key, 1, cutoff=0.5
        )
    return f"{key}: there is no such option; " + (f"did you mean {near[0]}?" if near else "--help lists the options")


def _wrong_type(text: str, by_key: dict[str, Option]) -> str:
    """The error of jsonargparse as one sentence."""
    key = re.search(r'key "([^"]+)"', text)
    got = re.findall(r"(?:Got|Given) value: (.*)", text)
    if not key or key[1] not in by_key:
        return " ".join(text.split())
    return f"{key[1]}: {got[-1].strip() if got else 'the value'} does not fit; give {in_words(by_key[key[1]].taken)}"


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """Parse ``["grid=5", "locations=[3]"]`` to keywords.

    Raises:
        ConfigError: there is no equals sign.
    """
    values = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise ConfigError(f"--set {setting}: the value is missing; write --set {key}=VALUE")
        values[key] = parse_value(_as_list(value, int | Sequence))
    return values

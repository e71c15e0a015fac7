"""Flags from signatures: every value of a run can be set on the command line, typed and explained.

Which flags there are depends on the model and the data set that were chosen, so that this happens in two steps: find the
names (in the recipe, then on the command line), then build a parser from the signatures behind them. Nothing about an
option is written twice: its type, default and explanation are those of the constructor.

Example:
    >>> options = {o.key: o for o in options_of(_dense, "model")}
    >>> options["model.image_size"].default is None, "side" in options["model.image_size"].help
    (True, True)
    >>> as_flat({"model": {"name": "tnet", "grid": 3}, "epochs": 2})
    {'model.name': 'tnet', 'model.grid': 3, 'epochs': 2}
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import re
import typing
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import docstring_parser
import jsonargparse

from foveal.errors import ConfigError
from foveal.recipes import merge, parse_value

SECTIONS = ("model", "data", "objective")


class UsageError(ConfigError):
    """Something on the command line, as against in a file, that does not fit."""


@dataclasses.dataclass(frozen=True)
class Option:
    """One value that can be set.

    Attributes:
        key: where it stands in a recipe, with dots: ``optimiser.lr``.
        hint: its type.
        default: its value if nobody says anything; `REQUIRED` where there is none.
        help: one sentence.
    """

    key: str
    hint: Any
    default: Any
    help: str


REQUIRED = inspect.Parameter.empty


def options_of(build: Callable[..., Any], prefix: str, skip: Iterable[str] = ("num_classes",)) -> list[Option]:
    """The options of a class or function. One that hands ``**options`` on has those of the class it returns as well."""
    bound: set[str] = set()
    while isinstance(build, functools.partial):
        positional = [n for n, p in inspect.signature(build.func).parameters.items() if p.kind is not p.KEYWORD_ONLY]
        preset = {k: v for k, v in build.keywords.items() if k in ("locations",)}
        bound |= set(positional[: len(build.args)]) | (set(build.keywords) - set(preset))
        options = [o for o in options_of(build.func, prefix, {*skip, *bound})]
        return [dataclasses.replace(o, default=preset.get(o.key.rpartition(".")[2], o.default)) for o in options]
    found: dict[str, Option] = {}
    for function in _chain(build):
        hints, texts = _hints(function), _texts(function)
        for name, parameter in inspect.signature(function).parameters.items():
            if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL) or name in skip or name in found:
                continue
            found[name] = Option(f"{prefix}.{name}", hints.get(name, Any), parameter.default, texts.get(name, ""))
    return list(found.values())


def _chain(build: Callable[..., Any]) -> Iterable[Callable[..., Any]]:
    """``build`` and, as long as keywords are handed on, the classes that they reach."""
    yield build
    if not any(p.kind is p.VAR_KEYWORD for p in inspect.signature(build).parameters.values()):
        return
    target = build if inspect.isclass(build) else _hints(build).get("return")
    if inspect.isclass(target):
        onward = target.__mro__[1] if target is build else target
        yield from _chain(onward)


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function.__init__ if inspect.isclass(function) else function)
    except NameError:
        return {}


def _texts(function: Callable[..., Any]) -> dict[str, str]:
    """What a docstring says of each argument; an entry may speak of several, ``mean, std``."""
    entries = docstring_parser.parse(inspect.getdoc(function) or "", docstring_parser.DocstringStyle.GOOGLE).params
    return {name.strip(): " ".join((e.description or "").split()) for e in entries for name in e.arg_name.split(",")}


def dataclass_options(config: type, prefix: str = "", skip: Iterable[str] = ()) -> list[Option]:
    """The options of a dataclass and of the dataclasses in it."""
    hints, texts, found = typing.get_type_hints(config), _texts(config), []
    for field in dataclasses.fields(config):
        if field.name in skip:
            continue
        key, hint = prefix + field.name, hints[field.name]
        if dataclasses.is_dataclass(hint):
            found += dataclass_options(typing.cast(type, hint), f"{key}.")
            continue
        default = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
        found.append(Option(key, hint, REQUIRED if default is dataclasses.MISSING else default, texts.get(field.name, "")))
    return found


def as_flat(values: dict[str, Any], keys: Iterable[str] | None = None, prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted key. A mapping that is itself the value of one of ``keys`` is left whole."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        inner = isinstance(value, dict) and not (keys is not None and prefix + key in keys)
        flat.update(as_flat(value, keys, f"{prefix}{key}.") if inner else {prefix + key: value})
    return flat


def as_nested(flat: dict[str, Any]) -> dict[str, Any]:
    """The reverse of `as_flat`."""
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *way, last = key.split(".")
        at = nested
        for part in way:
            at = at.setdefault(part, {})
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


def parse(options: Sequence[Option], recipe: dict[str, Any], argv: Sequence[str], *, where: str, usage: str, open_keys: Sequence[str] = ()) -> dict[str, Any]:
    """Values for ``options``: those of ``argv``, else of ``recipe``, else the defaults; nested. ``--help`` prints and exits.

    Args:
        options: what can be set.
        recipe: nested values.
        argv: the command line.
        where: what errors about the recipe begin with.
        usage: first words of the help.
        open_keys: sections in which any other key is let through, untyped.

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
    parser = _parser(options, given, usage)
    argv, more = _translate(argv, by_key, open_keys)
    try:
        checked = as_flat(parser.parse_object(as_nested({k: v for k, v in given.items() if k in by_key}), defaults=False).as_dict(), by_key)
    except Exception as error:
        raise ConfigError(f"{where}: {_wrong_type(str(error), by_key)}") from error
    try:
        parser.set_defaults(checked)
        values = as_flat(parser.parse_args(argv).as_dict(), by_key)
    except jsonargparse.ArgumentError as error:
        raise UsageError(f"--{_wrong_type(str(error), by_key)}") from error
    for key, option in by_key.items():
        if option.default is REQUIRED and values.get(key) is None:
            raise UsageError(f"--{key}: is missing ({option.help.rstrip('.')}); set it")
    return as_nested({**values, **through, **more})


def _parser(options: Sequence[Option], given: dict[str, Any], usage: str) -> jsonargparse.ArgumentParser:
    parser = jsonargparse.ArgumentParser(prog=usage, exit_on_error=False, usage=f"{usage} [--key value ...]")
    groups: dict[str, Any] = {}
    for o in options:
        section = o.key.partition(".")[0] if "." in o.key else "the run"
        name = given.get(f"{section}.name")
        group = groups.get(section) or groups.setdefault(section, parser.add_argument_group(f"{section} {name}" if name else section))
        default = None if o.default is REQUIRED else o.default
        # A required value has no default to fit its type; whether it was given is checked afterwards.
        hint = o.hint | None if o.default is REQUIRED and o.hint is not Any else o.hint
        group.add_argument(f"--{o.key.replace('_', '-') if '.' not in o.key else o.key}", type=hint, default=default, help=o.help.replace("%", "%%"))
    return parser


def _translate(argv: Sequence[str], by_key: dict[str, Option], open_keys: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """The command line as the parser wants it, and what goes through untyped.

    ``--model X`` is ``--model.name X``; hyphens and underscores are one; a flag without a value is true; ``2,1`` is a list.
    """
    known, through, i = [], {}, 0
    while i < len(argv):
        token = argv[i]
        i += 1
        if token in ("-h", "--help"):
            known.append("--help")
            continue
        if not token.startswith("--"):
            raise UsageError(f"{token}: is not expected here; a recipe comes first, and values after their --key")
        key, equals, value = token[2:].partition("=")
        key = key.replace("-", "_")
        key = f"{key}.name" if key in SECTIONS and f"{key}.name" in by_key else key
        if not equals:
            if i < len(argv) and not argv[i].startswith("--"):
                value, i = argv[i], i + 1
            else:
                value = "true"
        if key in by_key:
            value = _listed(value, by_key[key].hint)
        elif not any(key.startswith(f"{k}.") and "dict" in str(o.hint) for k, o in by_key.items()):
            if not key.startswith(tuple(f"{s}." for s in open_keys)):
                raise UsageError(f"--{_unknown(key, by_key)}")
            through[key] = parse_value(value)
            continue
        known += [f"--{key.replace('_', '-') if '.' not in key else key}", value]
    return known, through


def _listed(value: str, hint: Any) -> str:
    """``2,1`` for a sequence is ``[2,1]``."""
    if re.search(r"Sequence|tuple|list", str(hint)) and not value.startswith(("[", "(", "{")) and re.fullmatch(r"[-+.\deE]+(,[-+.\deE]+)*,?", value):
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
    got = re.findall(r"Got value: (.*)", text)
    if not key or key[1] not in by_key:
        return " ".join(text.split())
    hint = by_key[key[1]].hint
    name = re.sub(r"collections\.abc\.|typing\.", "", hint.__name__ if inspect.isclass(hint) and not typing.get_args(hint) else str(hint))
    return f"{key[1]}: {got[0] if got else 'the value'} does not fit; give a value of type {name}"


def _dense(
    *, pretrained: bool | str = False, in_chans: int | None = None, drop_rate: float | None = None, drop_path_rate: float | None = None,
    image_size: int | None = None, squash: bool | None = None, antialias: bool | None = None,
    mean: Sequence[float] | None = None, std: Sequence[float] | None = None,
) -> None:  # fmt: skip
    """The options that all of timm's networks share.

    Args:
        pretrained: load timm's pretrained weights, or those of this file.
        in_chans: bands of the images.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth of the last block.
        image_size: side that the whole image is resampled to; the network's own input size if None.
        squash: squash the whole image into the look, rather than look at the square around it.
        antialias: resample with antialiasing.
        mean, std: normalisation, per band; the network's if None.
    """

"""The help of a recipe: every option of the chosen model, data and objective, what it takes, and its default.

Example:
    >>> print(help_of([Option("model.grid", int, 3, "cells per axis"), Option("model.region", float, 0.5, "side of a cell")], {}, "fit"))
    usage: fit [--key value ...]
    <BLANKLINE>
    model:
      -h, --help        show this help and exit
      --model.grid N    cells per axis (default: 3)
      --model.region X  side of a cell (default: 0.5)
    >>> reached(MODELS.get("tnet_bagnet77.reference"))[1]["base_size"]
    77
"""

from __future__ import annotations

import argparse
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import yaml

from foveal.data import data_constructor, list_data
from foveal.errors import ConfigError
from foveal.glimpse.registry import MODELS
from foveal.models import constructor, wrapper_options
from foveal.objectives import OBJECTIVES, CrossEntropy
from foveal.recipes import describe_recipe
from foveal.recipes.flags import REQUIRED, UNKNOWN, Option, as_flat, flag, initialiser_of, options_of
from foveal.recipes.layout import Layout, columns
from foveal.signatures import chain_of, target_of

EXAMPLES = """\
A list is written as 2,1, nothing as null, a mapping as '{{key: value}}'; a flag
alone means true. --model NAME, --data NAME and --objective NAME choose another
one, whose options --help then shows.

  foveal fit {recipe} --epochs 3 --out runs/short
  foveal fit {recipe} --model resnet18 --help
  foveal fit --out runs/short --resume            go on after an interruption
  foveal fit --import my_package --model mine --help      a model of your own
"""

ANY_NETWORK = """\
Options of the network that are not listed here are given as --model.KEY VALUE
too, see the documentation of timm.

"""

LONGEST = 40
"""Characters of a recipe's name that examples have room for."""


def recipe_help(recipe: str, values: dict[str, Any], options: Sequence[Option]) -> str:
    """What ``foveal fit RECIPE --help`` prints.

    Args:
        recipe: name or file.
        values: those of the recipe, nested, with the names that the command line chose.
        options: everything that can be set; defaults that the model decides are found out here.
    """
    model, data = values["model"]["name"], values["data"]["name"]
    build, looks = constructor(model), model in MODELS
    wrapper = [] if looks else [*wrapper_options(), "pretrained"]
    try:
        made, arguments = reached(build, **{k: v for k, v in values["model"].items() if k not in ("name", *wrapper)})
    except (ConfigError, TypeError):
        made, arguments = None, {}
    known = {f"model.{name}": default for name, default in arguments.items()}
    if "name" not in values.get("objective", {}):
        own = made.default_objective() if looks and made is not None else CrossEntropy()
        known |= {f"objective.{field.name}": getattr(own, field.name) for field in fields(own)}
        known["objective.name"] = OBJECTIVES.name_of(type(own))
    if not looks:
        options = _with_network(options, build, arguments)
    policies = getattr(made, "policies", ())
    tables = {"data.name": list_data(), "objective.name": OBJECTIVES.names(), "objective.policy": policies}
    options = [
        replace(o, default=known.get(o.key, o.default) if o.unset else o.default, values=tuple(tables.get(o.key) or o.values))
        for o in options
    ]
    sections = {"data": _first_line(data_constructor(data)), "model": _first_line(target_of(build) if not looks else build)}
    about = f"Train a model by the recipe {recipe}" + (f": {text}." if (text := describe_recipe(recipe)) else ".")
    short = recipe if len(recipe) <= LONGEST else "RECIPE"
    return help_of(
        options, as_flat(values, {o.key for o in options}), f"foveal fit {short}", about=about, sections=sections,
        epilog=("" if looks else ANY_NETWORK) + EXAMPLES.format(recipe=short),
    )  # fmt: skip


def _with_network(options: Sequence[Option], build: Callable[..., Any], arguments: Mapping[str, Any]) -> list[Option]:
    """Options of a dense network: of the usual ones those that it takes; all that a network of ours has."""
    network = [c for c in chain_of(build) if inspect.isclass(c)]
    takes_any = not arguments or any(p.kind is p.VAR_KEYWORD for p in inspect.signature(network[-1]).parameters.values())
    usual = [
        replace(o, default=UNKNOWN) if o.unset and o.key.startswith("model.") else o
        for o in options
        if not (o.unset and o.key.startswith("model.")) or o.name in arguments or takes_any
    ]
    foreign = {name for c in network if not c.__module__.startswith("foveal.") for name in inspect.signature(c).parameters}
    have = {o.name for o in options if o.key.startswith("model.")}
    own = options_of(network[0], "model", skip={"num_classes", *have, *foreign}) if network else []
    return [*usual, *(replace(o, unset=True) for o in own)]


def _first_line(build: Any) -> str:
    return (inspect.getdoc(getattr(build, "func", build)) or "").partition("\n")[0].replace("`", "")


class _Reached(Exception):
    """A constructor has come to the class that it makes."""


def reached(build: Callable[..., Any], **options: Any) -> tuple[Any, dict[str, Any]]:
    """What a constructor comes to, without making it: there is no network, and there are no weights.

    Presets change defaults on the way to the class that they make, some of them by what else is given, so that no signature tells
    which hold in the end. The arguments that the class is called with do.

    Args:
        build: a class, or a function whose annotation says what it returns.
        options: keywords to call it with.

    Returns:
        The object, of which nothing is there but what is set before the last class of the chain is asked to initialise it; and the
        arguments of all classes of the chain by name.

    Raises:
        ConfigError: the constructor does not say which class it makes, or makes another one.
    """
    classes = [initialiser_of(c) for c in chain_of(build) if inspect.isclass(c) and not c.__module__.startswith(("torch.", "builtins"))]
    original: dict[type, Callable[..., None]] = {c: vars(c)["__init__"] for c in classes}
    arguments: dict[str, Any] = {}

    def recording(c: type) -> Callable[..., None]:
        signature = inspect.signature(original[c])

        def record(self: Any, *args: Any, **keywords: Any) -> None:
            bound = signature.bind(self, *args, **keywords)
            bound.apply_defaults()
            for parameter in list(signature.parameters.values())[1:]:
                value = bound.arguments[parameter.name]
                arguments.update(value if parameter.kind is parameter.VAR_KEYWORD else {parameter.name: value})
            if c is classes[-1]:
                raise _Reached(self)
            original[c](self, *args, **keywords)

        return record

    try:
        for c in classes:
            c.__init__ = recording(c)  # type: ignore[misc, method-assign]
        build(**options)
    except _Reached as end:
        return end.args[0], arguments
    finally:
        for c in classes:
            c.__init__ = original[c]  # type: ignore[misc, method-assign]
    raise ConfigError(f"{getattr(build, '__name__', build)}: does not say which class it makes")


def help_of(
    options: Sequence[Option], values: Mapping[str, Any], usage: str, *, about: str = "", sections: Mapping[str, str] | None = None,
    epilog: str = "",
) -> str:  # fmt: skip
    """The help of options, section by section: what each takes, what it is for, and its default.

    Args:
        options: what can be set.
        values: by key, those of the recipe, which are the defaults then.
        usage: first words of the command.
        about: what the command does.
        sections: what stands below the title of a section.
        epilog: what stands at the end.
    """
    parser = argparse.ArgumentParser(
        prog=usage, usage=f"{usage} [--key value ...]", description=about, epilog=epilog, formatter_class=Layout, add_help=False
    )
    groups: dict[str, Any] = {}
    for o in options:
        section = o.key.partition(".")[0] if "." in o.key else "run"
        if section not in groups:
            title = " ".join(filter(None, (section, values.get(f"{section}.name"))))
            groups[section] = parser.add_argument_group(title, (sections or {}).get(section))
            if len(groups) == 1:
                groups[section].add_argument("-h", "--help", action="store_true", help="show this help and exit")
        form, text = _form(o), _cleaned(o.help)
        if len(f"  {flag(o.key)} {form}") > columns() - 2:
            text, form = f"{text}; one of {form.strip('{}').replace(',', ', ')}", o.name.upper()
        text += f" {_default(values.get(o.key, o.default))}"
        groups[section].add_argument(flag(o.key), metavar=form, help=text.replace("%", "%%"))
    return parser.format_help().rstrip()


def _cleaned(text: str) -> str:
    """A sentence of a docstring as it stands in help: values are written as they are typed."""
    text = text.replace("`", "")
    text = text if text.endswith("...") else text.rstrip(".")
    for python, typed in (("None", "null"), ("True", "true"), ("False", "false")):
        text = re.sub(rf"\b{python}\b", typed, text)
    return text


def _default(value: Any) -> str:
    if value is REQUIRED:
        return "(required)"
    return f"(default: {'that of the network' if value is UNKNOWN else as_typed(value)})"


def as_typed(value: Any) -> str:
    """A value as it is typed on the command line: what `foveal.recipes.parse_value` and ``2,1`` for lists are read from.

    >>> [as_typed(v) for v in (None, True, 1e-08, (2, 1), [3], (), {"lr": 0.1}, "", "auto")]
    ['null', 'true', '1e-08', '2,1', '3', '[]', '{lr: 0.1}', "''", 'auto']
    """
    if isinstance(value, str) and value:
        return value
    if isinstance(value, list | tuple) and value and not any(isinstance(item, Mapping | list | tuple) for item in value):
        return ",".join(map(as_typed, value))
    if isinstance(value, float):
        return repr(value)
    plain = yaml.safe_dump(list(value) if isinstance(value, tuple) else value, default_flow_style=True, width=10**6)
    return plain.removesuffix("\n").removesuffix("\n...")


def _form(option: Option) -> str:
    """What an option takes: ``{adamw,adam,sgd}`` where these are all, else ``N|null`` and the like."""
    forms = dict(_forms(option.hint, option))
    if "null" in forms:
        forms["null"] = forms.pop("null")  # last
    return "{" + ",".join(forms) + "}" if all(forms.values()) else "|".join(forms)


_LETTERS = {int: "N", float: "X"}


def _forms(hint: Any, option: Option) -> Iterator[tuple[str, bool]]:
    """What a value of a type looks like on the command line, and whether it is a word to be typed as it is."""
    origin, inner = typing.get_origin(hint) or hint, [part for part in typing.get_args(hint) if part is not Ellipsis]
    if origin in (typing.Union, types.UnionType):
        for part in inner:
            yield from _forms(part, option)
    elif origin is typing.Literal:
        yield from ((str(word), True) for word in inner)
    elif hint is str:
        yield from ((word, True) for word in option.values) if option.values else ((option.name.upper(), False),)
    elif hint is type(None):
        yield "null", True
    elif hint is bool:
        yield from (("true", True), ("false", True))
    elif hint in _LETTERS:
        yield _LETTERS[hint], False
    elif inspect.isclass(origin) and issubclass(origin, Mapping):
        yield "{KEY: VALUE}", False
    elif inspect.isclass(origin) and issubclass(origin, Sequence) and inner:
        letters = [_LETTERS.get(part, "NAME") for part in inner]
        fixed = origin is tuple and Ellipsis not in typing.get_args(hint)
        yield ",".join(letters if fixed else [letters[0], letters[0], "..."]), False
    else:
        yield "VALUE", False

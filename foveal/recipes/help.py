"""Help of a recipe: the options of the model, data and objective, with their values and defaults.

Example:
    >>> options = [Option("model.grid", int, 3, "cells per axis"), Option("model.region", float, 0.5, "side of a cell")]
    >>> print(help_of(options, {}, "fit"))
    usage: fit [--key value ...]
    <BLANKLINE>
    model:
      -h, --help        show this help and exit
      --model.grid N    cells per axis (default: 3)
      --model.region X  side of a cell (default: 0.5)
    >>> trace_arguments(MODELS.get("tnet_bagnet77.reference"))[1]["base_size"]
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
from foveal.models import constructor, wrapper_options
from foveal.objectives import OBJECTIVES, CrossEntropy
from foveal.recipes import describe_recipe
from foveal.recipes.flags import REQUIRED, UNKNOWN, Option, as_flat, flag, initialiser_of, options_of
from foveal.recipes.layout import HelpLayout, columns
from foveal.registry import MODELS
from foveal.signatures import chain_of, target_of

EXAMPLES = """\
Write a list as 2,1, no value as null, a mapping as '{{key: value}}'. A flag
without a value is true. --model NAME, --data NAME and --objective NAME choose
another one; --help then shows its options.

  foveal fit {recipe} --epochs 3 --out runs/short
  foveal fit {recipe} --model resnet18 --help
  foveal fit --out runs/short --resume            continue an interrupted run
  foveal fit --import my_package --model mine --help      a model of your own
"""

ANY_NETWORK = """\
--model.KEY VALUE also sets options of the network that are not listed here, see
the documentation of timm.

"""

LONGEST = 40
"""Longest name of a recipe in examples."""


def recipe_help(recipe: str, values: dict[str, Any], options: Sequence[Option]) -> str:
    """The text of ``foveal fit RECIPE --help``.

    Args:
        recipe: name or file of the recipe.
        values: nested values of the recipe, with the names from the command line.
        options: available options. Defaults set by the model are determined here.
    """
    model, data = values["model"]["name"], values["data"]["name"]
    build, looks = constructor(model), model in MODELS
    wrapper = [] if looks else [*wrapper_options(), "pretrained"]
    try:
        made, arguments = trace_arguments(
            build, **{k: v for k, v in values["model"].items() if k not in ("name", *wrapper)}
        )
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
        replace(
            o,
            default=known.get(o.key, o.default) if o.unset else o.default,
            values=tuple(tables.get(o.key) or o.values),
        )
        for o in options
    ]
    sections = {
        "data": _first_line(data_constructor(data)),
        "model": _first_line(target_of(build) if not looks else build),
    }
    about = f"Train a model by the recipe {recipe}" + (f": {text}." if (text := describe_recipe(recipe)) else ".")
    short = recipe if len(recipe) <= LONGEST else "RECIPE"
    return help_of(
        options,
        as_flat(values, {o.key for o in options}),
        f"foveal fit {short}",
        about=about,
        sections=sections,
        epilog=("" if looks else ANY_NETWORK) + EXAMPLES.format(recipe=short),
    )


def _with_network(options: Sequence[Option], build: Callable[..., Any], arguments: Mapping[str, Any]) -> list[Option]:
    """Options of a dense network: the common options that it accepts, and all options of networks of this package."""
    network = [c for c in chain_of(build) if inspect.isclass(c)]
    takes_any = not arguments or any(
        p.kind is p.VAR_KEYWORD for p in inspect.signature(network[-1]).parameters.values()
    )
    usual = [
        replace(o, default=UNKNOWN) if o.unset and o.key.startswith("model.") else o
        for o in options
        if not (o.unset and o.key.startswith("model.")) or o.name in arguments or takes_any
    ]
    foreign = {
        name for c in network if not c.__module__.startswith("foveal.") for name in inspect.signature(c).parameters
    }
    have = {o.name for o in options if o.key.startswith("model.")}
    own = options_of(network[0], "model", skip={"num_classes", *have, *foreign}) if network else []
    return [*usual, *(replace(o, unset=True) for o in own)]


def _first_line(build: Any) -> str:
    return (inspect.getdoc(getattr(build, "func", build)) or "").partition("\n")[0].replace("`", "")


class _Traced(Exception):
    """Raised when the last class of a constructor is initialised."""


def trace_arguments(build: Callable[..., Any], **options: Any) -> tuple[Any, dict[str, Any]]:
    """Find the arguments that a constructor passes to its class, without building a network.

    Presets change defaults on the way to the class, some depending on other options, so signatures do not give the
    final values. The arguments of the class do.

    Args:
        build: a class, or a function whose return annotation is a class.
        options: keywords for the constructor.

    Returns:
        The uninitialised object, and the arguments of all classes in the chain by name.

    Raises:
        ConfigError: the constructor does not declare its class, or makes another one.
    """
    classes = [
        initialiser_of(c)
        for c in chain_of(build)
        if inspect.isclass(c) and not c.__module__.startswith(("torch.", "builtins"))
    ]
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
                raise _Traced(self)
            original[c](self, *args, **keywords)

        return record

    try:
        for c in classes:
            c.__init__ = recording(c)  # type: ignore[misc, method-assign]
        build(**options)
    except _Traced as end:
        return end.args[0], arguments
    finally:
        for c in classes:
            c.__init__ = original[c]  # type: ignore[misc, method-assign]
    raise ConfigError(f"{getattr(build, '__name__', build)}: this constructor does not declare its class")


def help_of(
    options: Sequence[Option],
    values: Mapping[str, Any],
    usage: str,
    *,
    about: str = "",
    sections: Mapping[str, str] | None = None,
    epilog: str = "",
) -> str:
    """Help of options by section: accepted values, help text and default.

    Args:
        options: available options.
        values: values of the recipe by key; these are shown as defaults.
        usage: first words of the command.
        about: description of the command.
        sections: text below the titles of sections.
        epilog: text at the end.
    """
    parser = argparse.ArgumentParser(
        prog=usage,
        usage=f"{usage} [--key value ...]",
        description=about,
        epilog=epilog,
        formatter_class=HelpLayout,
        add_help=False,
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
    """A sentence of a docstring for help, with values as on the command line."""
    text = text.replace("`", "")
    text = text if text.endswith("...") else text.rstrip(".")
    for python, typed in (("None", "null"), ("True", "true"), ("False", "false")):
        text = re.sub(rf"\b{python}\b", typed, text)
    return text


def _default(value: Any) -> str:
    if value is REQUIRED:
        return "(required)"
    return f"(default: {'set by the network' if value is UNKNOWN else as_typed(value)})"


def as_typed(value: Any) -> str:
    """A value as on the command line, for `foveal.recipes.parse_value`; lists as ``2,1``.

    >>> [as_typed(v) for v in (None, True, 1e-08, (2, 1), [3], (), {"lr": 0.1}, "", "auto")]
    ['null', 'true', '1e-08', '2,1', '3', '[]', '{lr: 0.1}', "''", 'auto']
    """
    if isinstance(value, str) and value:
        return value
    if (
        isinstance(value, list | tuple)
        and value
        and not any(isinstance(item, Mapping | list | tuple) for item in value)
    ):
        return ",".join(map(as_typed, value))
    if isinstance(value, float):
        return repr(value)
    plain = yaml.safe_dump(list(value) if isinstance(value, tuple) else value, default_flow_style=True, width=10**6)
    return plain.removesuffix("\n").removesuffix("\n...")


def _form(option: Option) -> str:
    """Accepted values of an option: ``{adamw,adam,sgd}`` for a list of names, else ``N|null`` and the like."""
    forms = dict(_forms(option.hint, option))
    if "null" in forms:
        forms["null"] = forms.pop("null")  # last
    return "{" + ",".join(forms) + "}" if all(forms.values()) else "|".join(forms)


_LETTERS = {int: "N", float: "X"}


def _forms(hint: Any, option: Option) -> Iterator[tuple[str, bool]]:
    """Placeholders for values of a type, and whether each is a literal word."""
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

"""Arguments of commands, made from the signatures of the functions that they call.

A command lists its arguments. Types and defaults of arguments that a function has come from its signature. Signatures
are read from the source, because importing the modules would import torch, which takes seconds.

Example:
    >>> signature("foveal.evaluation.tradeoff.evaluate")["measure"]
    Parameter(hint='Measure', default='quick')
    >>> in_flags("`judges` x: other classes", {"judges": {"name": "--by"}})
    '--by x: other classes'
"""

from __future__ import annotations

import argparse
import ast
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from foveal.recipes.layout import HelpLayout

Arguments = dict[str, dict[str, Any]]
"""Arguments by name, each with keywords of ``add_argument`` that the signature does not determine. The keyword ``name``
is the flag if it differs from the name of the argument; None if the argument is positional.
"""


class Parameter(NamedTuple):
    """The type hint of an argument as text, and its default; None if there is none or it is not a literal."""

    hint: str = "str"
    default: Any = None


@dataclass(frozen=True)
class Command:
    """A command.

    Attributes:
        run: runs the command; returns the exit code.
        summary: one line of help.
        epilog: the rest of the help, with examples; or a function that returns it.
        arguments: arguments of the command.
        calls: functions and dataclasses whose signatures have the arguments; the first that has one determines it.
        reads: whether it reads images.
        aliases: other names.
        usage: line of usage; made from the arguments if None.
    """

    run: Callable[[Any], int]
    summary: str
    epilog: str | Callable[[], str]
    arguments: Arguments
    calls: tuple[str, ...] = ()
    reads: bool = True
    aliases: tuple[str, ...] = ()
    usage: str | None = None


def argument(help: str, metavar: str | None = None, **more: Any) -> dict[str, Any]:
    """An argument with a flag."""
    return {"help": help, "metavar": metavar, **more} if metavar else {"help": help, **more}


def switch(help: str, **more: Any) -> dict[str, Any]:
    """A flag without a value."""
    return {"action": "store_true", "help": help, **more}


def positional(metavar: str, help: str, **more: Any) -> dict[str, Any]:
    """An argument without a flag."""
    return {"name": None, "metavar": metavar, "help": help, **more}


def positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return int(text)


def natural(text: str) -> int:
    if int(text) < 0:
        raise argparse.ArgumentTypeError(f"{text} is less than 0")
    return int(text)


positive.__name__ = natural.__name__ = "number"  # shown in errors of argparse


def signature(path: str) -> dict[str, Parameter]:
    """The parameters of a function, or the fields of a dataclass, read from the source of its module."""
    *modules, name = path.split(".")
    file = Path(__file__).parents[2].joinpath(*modules).with_suffix(".py")
    tree = ast.parse(file.read_text("utf-8"))
    found = next(node for node in tree.body if getattr(node, "name", None) == name)
    parts: list[tuple[str, ast.expr | None, ast.expr | None]] = []
    if isinstance(found, ast.FunctionDef):
        plain = found.args.args
        defaults = [None] * (len(plain) - len(found.args.defaults)) + found.args.defaults + found.args.kw_defaults
        parts = [(a.arg, a.annotation, d) for a, d in zip([*plain, *found.args.kwonlyargs], defaults, strict=True)]
    elif isinstance(found, ast.ClassDef):
        fields = [node for node in found.body if isinstance(node, ast.AnnAssign)]
        parts = [(ast.unparse(field.target), field.annotation, field.value) for field in fields]
    return {key: Parameter(ast.unparse(hint) if hint else "Any", _literal(value)) for key, hint, value in parts}


def _literal(value: ast.expr | None) -> Any:
    try:
        return None if value is None else ast.literal_eval(value)
    except ValueError:
        return None


def make_parser(made: Mapping[str, Command], only: str | None = None, **top: Any) -> argparse.ArgumentParser:
    """The parser of all commands.

    Args:
        made: commands by name.
        only: add the arguments of the command with this name or alias only; of all commands if None.
        top: further keywords of the parser, such as its description.
    """
    parser = argparse.ArgumentParser(formatter_class=HelpLayout, allow_abbrev=False, **top)
    parser.set_defaults(command=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command")
    for name, each in made.items():
        asked = only is None or only in (name, *each.aliases)
        summary, epilog = each.summary, each.epilog if asked else None
        one = commands.add_parser(
            name,
            aliases=each.aliases,
            help=summary,
            usage=each.usage,
            description=f"{summary[0].upper()}{summary[1:]}{'' if summary.endswith('?') else '.'}",
            epilog=epilog() if callable(epilog) else epilog,
            formatter_class=HelpLayout,
            allow_abbrev=False,
        )
        one.set_defaults(run=each.run, parser=one)
        if asked:
            _add(one, (EVERYWHERE | READING if each.reads else EVERYWHERE) | each.arguments, each.calls)
    return parser


EVERYWHERE: Arguments = {
    "quiet": switch("print results and errors only"),
    "import": argument("load a module or .py file with models, data sets, ... of your own; repeatable", "MODULE"),
}
"""Arguments of every command."""

READING: Arguments = {"max_bytes": argument("memory that a decoded image may take, as 4GiB (default: 1GiB)", "SIZE")}
"""Arguments of every command that reads images."""


def _add(parser: argparse.ArgumentParser, arguments: Arguments, calls: tuple[str, ...]) -> None:
    known = {name: parameter for path in reversed(calls) for name, parameter in signature(path).items()}
    for name, how in arguments.items():
        parameter = known.get(name, Parameter())
        default = list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
        options = {key: value for key, value in how.items() if key != "name"}
        if parameter.hint in ("int", "int | None"):
            options = {"type": positive, "metavar": "N"} | options
        if options.get("action") != "store_true":
            options = {"default": default} | options
        told = options.get("default") if default is None else default
        if type(told) in (int, str) and "(default: " not in options["help"]:
            options["help"] += f" (default: {told})"
        if (option := _flag(name, how)) is None:
            parser.add_argument(name, **options)
        else:
            parser.add_argument(option, dest=name, **options)


def _flag(name: str, how: Mapping[str, Any]) -> str | None:
    return how.get("name", f"--{name.replace('_', '-')}")


def given(args: argparse.Namespace, function: Callable[..., Any]) -> dict[str, Any]:
    """Arguments of a function that are set on the command line. Locations are parsed to the type of the function."""
    from foveal.prediction import parse_location_sweep, parse_locations

    read: dict[str, Callable[[str], Any]] = {
        "Sequence[int] | None": parse_locations,
        "int | Sequence[int] | None": parse_locations,
        "int | Sequence[int | Sequence[int]] | None": parse_location_sweep,
    }
    found = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if (value := getattr(args, name, None)) not in (None, ""):
            found[name] = read[parameter.annotation](value) if parameter.annotation in read else value
    return found


def in_flags(error: str, arguments: Arguments) -> str:
    """Replace names of arguments in backquotes in an error of the library by flags.

    Args:
        error: the message.
        arguments: arguments of the command; other names become flags with the same name.
    """
    flags = {name: _flag(name, how) for name, how in arguments.items()}

    def option(found: re.Match[str]) -> str:
        name = found[1]
        return flags.get(name) or f"--{name if '.' in name else name.replace('_', '-')}"

    return re.sub(r"`([a-z][\w.]*)`", option, error)

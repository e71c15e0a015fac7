"""Arguments of commands, compared with the functions that Python imports."""

import dataclasses
import inspect
import typing
from importlib import import_module

import pytest

from foveal import cli
from foveal.choices import MEASURES
from foveal.cli.arguments import in_flags, signature
from foveal.cli.commands import COMMANDS, find_command
from foveal.evaluation import Measure

CALLS = sorted({path for command in COMMANDS.values() for path in command.calls})


def imported(path):
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


@pytest.mark.parametrize("path", CALLS)
def test_signatures_are_those_of_the_functions(path):
    read, parameters = signature(path), inspect.signature(imported(path)).parameters
    assert [name for name in parameters if parameters[name].kind is not inspect.Parameter.VAR_KEYWORD] == list(read)
    for name, (hint, default) in read.items():
        assert hint == parameters[name].annotation
        made = parameters[name].default
        if default is not None:
            assert default == made and type(default) is type(made)
        else:  # none, or a constant such as a policy
            assert made in (None, inspect.Parameter.empty) or not isinstance(made, str | int | float | tuple)


@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if command.calls])
def test_defaults_and_types_are_those_of_the_functions(name):
    """An argument that is not set has the default of its function."""
    command = COMMANDS[name]
    parser = next(a for a in cli._parser(name)._actions if a.dest == "command").choices[name]
    actions = {action.dest: action for action in parser._actions}
    parameters = {
        k: p for path in reversed(command.calls) for k, p in inspect.signature(imported(path)).parameters.items()
    }
    shared = [argument for argument in command.arguments if argument in parameters]
    assert len(shared) >= 2
    for argument in shared:
        action, default = actions[argument], parameters[argument].default
        if action.default not in (None, "greedy"):
            assert action.default == (list(default) if isinstance(default, tuple) else default)
        kind = parameters[argument].annotation
        if action.nargs == 0:
            assert kind == "bool"
        elif kind in ("int", "int | None"):
            assert action.type("3") == 3
        if argument == "policy":
            assert repr(default).lower().startswith(str(action.default).lower())


def test_choices_are_those_of_the_types():
    assert typing.get_args(Measure) == MEASURES


def test_every_setting_can_be_given():
    fields = {field.name for field in dataclasses.fields(imported("foveal.evaluation.protocol.Setting"))}
    for name in ("evaluate", "compare", "occlude", "faithfulness", "threshold"):
        unused = {"metrics"} if name in ("faithfulness", "threshold") else set()  # they report their own
        assert fields - {"on_progress"} - unused <= set(COMMANDS[name].arguments)


def test_errors_name_flags():
    arguments = find_command("faithful").arguments
    assert in_flags("`attention` a: give `cam` b", arguments) == "--map a: give --cam b"
    assert (
        in_flags("`locations` 0,1: looks once; leave `locations` out", {})
        == "--locations 0,1: looks once; leave --locations out"
    )
    assert in_flags("`optimiser.lr`: is -1; `batch_size` 4", arguments) == "--optimiser.lr: is -1; --batch-size 4"


def test_the_parser_of_one_command_is_that_of_all():
    every = next(a for a in cli._parser()._actions if a.dest == "command").choices
    for name in every:
        one = next(a for a in cli._parser(name)._actions if a.dest == "command").choices
        assert one[name].format_help() == every[name].format_help() and list(one) == list(every)

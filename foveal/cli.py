"""The ``foveal`` command: shapes of arguments, and calls.

Example:
    >>> main(["--version"])
    foveal 0.1.0
    0
    >>> main(["cost", "test_resnet", "--image-size", "64", "--num-classes", "10", "--json"])
    {"model": "test_resnet", "image_size": 64, "locations": [], "parameters": ..., "macs": ...}
    0
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveal import __version__
from foveal.errors import FovealError, RunError

if TYPE_CHECKING:
    from foveal.data import DataModule
    from foveal.runs import Run

DESCRIPTION = """Classify large images by looking where it matters."""

EXAMPLES = """a first hour:
  foveal fit demo                                          train on the bundled images; five minutes on two cores
  foveal evaluate runs/demo --locations 0..4               what does looking closer buy, and what does it cost?
  foveal predict runs/demo photos/ --out labels.csv        one row an image
  foveal explain runs/demo photos/1.png                    where did it look, and what did each look add?

your own images, in one folder a class:
  foveal fit --data.root photos/ --out runs/photos

foveal COMMAND --help tells more; every command takes --quiet, and those that run a model take --device, --precision,
--batch-size, --workers and --seed.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: what stands after ``foveal``; that of the process if None.

    Returns:
        Exit code: 0 done; 1 failed, or images failed; 2 not understood; 130 interrupted.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _run(argv)
        sys.stdout.flush()
        return code
    except FovealError as error:
        print(f"foveal: {error}", file=sys.stderr)
        return 2 if type(error).__name__ == "UsageError" else 1
    except KeyboardInterrupt:
        print("foveal: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read our output has gone; Python must not complain about that while shutting down.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)


def _run(argv: list[str]) -> int:
    if argv[:1] == ["fit"] and argv[1:] not in (["--help"], ["-h"]):
        return _fit(argv[1:])
    argv, data = _take(argv, "data") if argv[:1] in (["evaluate"], ["data"]) else (argv, [])
    args = _parser().parse_args(argv)
    if args.command is None:
        _parser().print_help()
        return 0
    logging.basicConfig(format="foveal: %(message)s", level=logging.WARNING if args.quiet else logging.INFO)
    args.data = data
    return args.run(args)


# ------------------------------------------------------------------------------------------------------- arguments


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="foveal", description=DESCRIPTION, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"foveal {__version__}")
    parser.set_defaults(command=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command")
    for add in (_add_fit, _add_evaluate, _add_predict, _add_explain, _add_models, _add_data, _add_cost):
        add(commands)
    return parser


def _add(commands: Any, name: str, run: Callable[[argparse.Namespace], int] | None, summary: str, epilog: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.", epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    parser.set_defaults(run=run)
    parser.add_argument("--quiet", action="store_true", help="print results and errors only")
    return parser


def _add_running(parser: argparse.ArgumentParser, batch_size: int) -> None:
    """Flags of every command that runs a model."""
    parser.add_argument("--device", default="auto", help="where to run: auto, cpu, cuda, cuda:1, ... (default: auto)")
    parser.add_argument("--precision", default="32", help="bits of the arithmetic: 32, bf16 or 16 (default: 32)")
    parser.add_argument("--batch-size", type=_positive, default=batch_size, metavar="N", help=f"images at a time (default: {batch_size})")
    parser.add_argument("--workers", type=_natural, default=None, metavar="N", help="processes or threads that open images (default: as many as help)")
    parser.add_argument("--seed", type=int, default=0, help="of everything random (default: 0)")


def _positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return int(text)


def _natural(text: str) -> int:
    if int(text) < 0:
        raise argparse.ArgumentTypeError(f"{text} is less than 0")
    return int(text)


_positive.__name__ = _natural.__name__ = "number"  # what argparse calls them in its errors


def _take(argv: list[str], section: str) -> tuple[list[str], list[str]]:
    """Move ``--data X`` and ``--data.key X`` out of the command line."""
    rest, taken = [], []
    i = 0
    while i < len(argv):
        mine = argv[i] == f"--{section}" or argv[i].startswith((f"--{section}.", f"--{section}="))
        width = 2 if mine and "=" not in argv[i] else 1
        (taken if mine else rest).extend(argv[i : i + width])
        i += width
    return rest, taken


# -------------------------------------------------------------------------------------------------------------- fit


def _add_fit(commands: Any) -> None:
    from foveal.recipes import list_recipes

    _add(
        commands, "fit", None, "train a model by a recipe",
        """usage: foveal fit [RECIPE] [--key value ...] [--out FOLDER] [--resume | --overwrite]

RECIPE is a YAML file or a name from the list below; without one, a TNet is trained on the class folders in --data.root.
Every value of a recipe is also a flag, and foveal fit RECIPE --help explains all of them, those of the chosen model and
data set too:

  foveal fit demo
  foveal fit demo --epochs 3 --optimiser.lr 3e-4 --out runs/short
  foveal fit --data.root photos/ --model.backbone resnet18 --model.pretrained true
  foveal fit --data.root photos/ --model efficientnet_b0        the dense network, to compare with
  foveal fit --data manifest --data.file labels.csv
  foveal fit demo --out runs/short --resume                     go on after an interruption

recipes:
  """ + "\n  ".join(list_recipes()),
    )  # fmt: skip


def _fit(argv: list[str]) -> int:
    recipe, flags = (argv[0], argv[1:]) if argv and not argv[0].startswith("-") else ("folder", argv)
    from foveal.recipes.configure import configure, describe

    config, out, options = configure(recipe, flags)
    logging.basicConfig(format="foveal: %(message)s", level=logging.WARNING if options["quiet"] else logging.INFO)
    from foveal.training import fit

    if not options["quiet"]:
        print(describe(config, out), flush=True)
    fit(config, out, **options)
    if not options["quiet"]:
        print(f"The run is in {out}. What next: foveal evaluate {out}, foveal predict {out} IMAGES --out FILE, foveal explain {out} IMAGE")
    return 0

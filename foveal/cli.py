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
import errno
import gc
import json
import logging
import os
import re
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import replace
from itertools import groupby, islice
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from foveal import __version__
from foveal.choices import FORMATS, MEASURES, POLICY_NAMES, PRECISIONS, SACCADER_POLICY_NAMES, SPLITS
from foveal.display import printable, printed, unfiltered
from foveal.errors import ConfigError, DataError, FovealError, RunError, StorageError
from foveal.formats import SUFFIXES
from foveal.importing import fast_imports
from foveal.recipes.layout import HelpLayout, in_columns

if TYPE_CHECKING:
    from foveal.data import DataModule
    from foveal.evaluation import Result, Setting
    from foveal.prediction import Cost, Exit
    from foveal.runs import Run

READING = ("fit", "evaluate", "compare", "occlude", "faithfulness", "faithful", "predict", "explain", "data")
"""Commands that read images."""

DESCRIPTION = """Classify large images by looking where it matters."""

EXAMPLES = """A first hour:

  foveal fit demo                               train on the bundled images
  foveal evaluate runs/demo --locations 0..4    accuracy and cost by looks
  foveal predict runs/demo photos/ --out labels.csv       one row per image
  foveal explain runs/demo photos/1.png         where the model looked

Your own images, in one folder per class:

  foveal fit --data.root photos/ --out runs/photos

foveal COMMAND --help explains a command and its options. foveal recipes lists what foveal fit trains by name. Every
command takes --quiet, and --import for models of your own. Commands that run a model take --device, --precision and
--seed; all of these but explain, which takes one image, also take --batch-size and --workers.

Exit codes: 0 done; 1 failed, or some images failed; 2 not understood; 128 + n ended by signal n: 130 Ctrl-C, 143
SIGTERM, 129 SIGHUP.
"""


def _names(names: Sequence[str], word: str = "or") -> str:
    """Names as a sentence lists them."""
    *first, last = names
    return f"{', '.join(first)} {word} {last}" if first else last


COST = "a number with MAC, kMAC, MMAC, GMAC, TMAC, ms or locations, as 20MMAC"
POLICY = f"{_names(POLICY_NAMES)}; Saccader also knows {_names(SACCADER_POLICY_NAMES, 'and')}"
WITH_DATA = ("evaluate", "compare", "occlude", "faithfulness", "faithful", "data")
"""Commands that take options of the data set."""
SHOWN_CLASSES = 20
"""Classes that a terminal shows unless it is to show all."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: what stands after ``foveal``; that of the process if None.

    Returns:
        Exit code: 0 done; 1 failed, or images failed; 2 not understood; 128 + n ended by signal n, which is 130 for
        Ctrl-C; 141 if nobody reads the output any more.
    """
    own_process = argv is None
    if own_process:
        _open_standard_files()
    argv, modules = _take(list(sys.argv[1:] if argv is None else argv), "import")
    if "OMP_WAIT_POLICY" not in os.environ:
        # By default OpenMP's threads spin for milliseconds between operations. Where another program needs the core,
        # that makes a training step twenty times as long. So many turns are enough to meet the next operation. Read
        # when torch is imported.
        os.environ.setdefault("GOMP_SPINCOUNT", "5000")
    with printed(for_good=own_process):
        return _main(argv, modules, own_process)


def _main(argv: list[str], modules: list[str], own_process: bool) -> int:
    """`main`, with streams that print names as they are safe to show."""
    limit = os.environ.get("FOVEAL_MAX_BYTES")
    fits = argv[:1] == ["fit"]  # which minds signals itself
    watch: AbstractContextManager[None] = nullcontext() if fits else _ended_by_signals(not own_process)
    try:
        with watch:
            return _written(_run(argv, modules))
    except FovealError as error:
        _say(_with_dashes(str(error)))
        return _written(2 if type(error).__name__ == "UsageError" else 1)
    except KeyboardInterrupt as end:
        number = getattr(end, "number", signal.SIGINT)
        by = "" if number == signal.SIGINT else f" by {signal.Signals(number).name}"
        how = getattr(end, "__notes__", [] if fits else ["the same command begins anew"])
        _say("; ".join([f"interrupted{by}", *how]))
        return _written(128 + number)
    except OSError as error:
        if error.errno not in _NOT_OURS:
            raise
        if _written(0) == 0 and error.errno != errno.EPIPE:
            _say(f"{error.filename or 'output'}: {_unwritten(error)}")
        return _written(141 if error.errno == errno.EPIPE else 1)
    except SystemExit as end:
        return _written(end.code if isinstance(end.code, int) else int(end.code is not None))
    finally:
        if limit is None:
            os.environ.pop("FOVEAL_MAX_BYTES", None)
        else:
            os.environ["FOVEAL_MAX_BYTES"] = limit
        if own_process:
            gc.freeze()  # the process ends; what is there need not be searched for garbage


_NOT_OURS = {getattr(errno, name, None) for name in ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EPIPE")}
"""Errors of writing that are no bug: a full disk, a quota, a limit of file sizes, a disk to read only, nobody who
reads.
"""

_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class _Ended(KeyboardInterrupt):
    """A signal is to end the process; what is under way is left as at Ctrl-C."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextmanager
def _ended_by_signals(restore: bool) -> Iterator[None]:
    """Raise `_Ended` at the first signal that is to end the process. The second ends it at once. Ignored signals stay
    ignored.
    """
    if threading.current_thread() is not threading.main_thread():  # which alone gets signals
        yield
        return
    process = os.getpid()
    ours = {
        number: then
        for number in _SIGNALS
        if (then := signal.getsignal(number)) in (signal.SIG_DFL, signal.default_int_handler)
    }

    def end(number: int, frame: Any) -> None:
        if os.getpid() != process:  # a process that reads images ahead; the one that it works for tells what happened
            os._exit(0)
        for each in ours:
            signal.signal(each, signal.SIG_DFL)
        raise _Ended(number)

    for number in ours:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number, then in ours.items():
            signal.signal(number, then if restore else signal.SIG_DFL)


def _say(text: str) -> None:
    """Tell it on standard error, if that can be written."""
    with suppress(OSError):
        print(f"foveal: {printable(text)}", file=sys.stderr)


def _unwritten(error: OSError) -> str:
    return f"cannot be written ({error.strerror}); make space or send it elsewhere, and run the same command again"


def _written(code: int) -> int:
    """The exit code, once all is written that was printed; another one if it cannot be."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError as error:
            # Python must not complain about it while shutting down.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            if isinstance(error, BrokenPipeError):
                return 141
            if stream is sys.stdout:
                _say(f"output: {_unwritten(error)}")
            code = code or 1
    return code


def _open_standard_files() -> None:
    """Where the process was begun without input or output, have it read and write nothing: a file must not get their
    number.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115


def _run(argv: list[str], modules: list[str]) -> int:
    _import_modules(modules)
    argv, limit = _take(argv, "max-bytes") if argv[:1] and argv[0] in READING else (argv, [])
    if limit:  # the processes that read images inherit it
        os.environ["FOVEAL_MAX_BYTES"] = str(_bytes(limit[-1].rpartition("=")[2]))
    if argv[:1] == ["fit"] and argv[1:] not in (["--help"], ["-h"]):
        return _fit(argv[1:])
    argv, data = _take(argv, "data") if argv[:1] and argv[0] in WITH_DATA else (argv, [])
    typed = shlex.join(["foveal", *argv, *data, *limit, *modules])
    parser = _parser()
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        # argparse would have the program say this, with the usage of the program.
        getattr(args, "parser", parser).error(f"unrecognized arguments: {' '.join(unknown)}")
    if args.command is None:
        parser.print_help()
        return 0
    logging.basicConfig(format="foveal: %(message)s", level=logging.WARNING if args.quiet else logging.INFO)
    args.data, args.typed = data, typed
    if args.run is not _recipes:
        _import_torch()
    return args.run(args)


def _with_dashes(error: str) -> str:
    """An error of the library with flags in place of names of arguments. The library puts them in backquotes."""
    error = re.sub(r"`([a-z][\w.]*)`", _flag, error)
    return re.sub(r"^(?=(locations|policy) [^:]*: )|(?<=leave )(?=(locations|policy) out)", "--", error)


def _flag(name: re.Match[str]) -> str:
    argument = FLAGS.get(name[1], name[1])
    return f"--{argument}" if "." in argument else f"--{argument.replace('_', '-')}"


def _import_modules(flags: Sequence[str]) -> None:
    """Load the modules of others that the command line names; those that a run or a recipe names are left alone."""
    if not flags:
        return
    from foveal.registry import import_module

    names = iter(flags)
    for flag in names:
        name = flag.partition("=")[2] or next(names, "")
        if not name:
            raise ConfigError("--import: names no module; give one as --import my_package, or the path of a .py file")
        with fast_imports():
            import_module(name)


def _import_torch() -> None:
    """What takes a command longest to begin with."""
    with fast_imports():
        import torch  # noqa: F401


# ------------------------------------------------------------------------------------------------------- arguments


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="foveal", description=DESCRIPTION, epilog=EXAMPLES, formatter_class=HelpLayout, allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"foveal {__version__}")
    parser.set_defaults(command=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command")
    for add in (
        _add_fit,
        _add_recipes,
        _add_evaluate,
        _add_compare,
        _add_occlude,
        _add_faithfulness,
        _add_predict,
        _add_explain,
        _add_models,
        _add_data,
        _add_cost,
        _add_table,
    ):
        add(commands)
    return parser


def _add(
    commands: Any,
    name: str,
    run: Callable[[argparse.Namespace], int] | None,
    summary: str,
    epilog: str,
    aliases: Sequence[str] = (),
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        aliases=aliases,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}{'' if summary.endswith('?') else '.'}",
        epilog=epilog,
        formatter_class=HelpLayout,
        allow_abbrev=False,
    )
    parser.set_defaults(run=run, parser=parser)
    parser.add_argument("--quiet", action="store_true", help="print results and errors only")
    # `_run` takes these two out before the parser sees them; here they are explained.
    parser.add_argument(
        "--import",
        metavar="MODULE",
        help="load a module, or a .py file, with models and the like of your own; repeatable",
    )
    if name in READING:
        parser.add_argument(
            "--max-bytes", metavar="SIZE", help="memory that a decoded image may take, as 4GiB (default: 1GiB)"
        )
    return parser


def _add_running(
    parser: argparse.ArgumentParser, batch_size: int, workers: str = "processes that read images ahead (default: 0)"
) -> None:
    """Flags of every command that runs a model on many images."""
    _add_how(parser)
    parser.add_argument(
        "--batch-size",
        type=_positive,
        default=batch_size,
        metavar="N",
        help=f"images at a time (default: {batch_size})",
    )
    parser.add_argument("--workers", type=_natural, metavar="N", help=workers)


def _add_how(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device",
        default="auto",
        help="where to run: cpu, cuda, cuda:1, ...; auto is the first GPU, or the CPU (default: auto)",
    )
    parser.add_argument(
        "--precision", default="32", help=f"of the arithmetic: {_names(list(PRECISIONS))} (default: 32)"
    )
    parser.add_argument("--seed", type=_natural, default=0, metavar="N", help="of everything random (default: 0)")


def _add_data_options(parser: argparse.ArgumentParser) -> None:
    """`_take` takes these out before the parser sees them; here they are explained."""
    parser.add_argument("--data", metavar="NAME", help="data set, see foveal data (default: the run's)")
    parser.add_argument(
        "--data.KEY",
        metavar="VALUE",
        help="option of the data set, see foveal fit --data NAME --help (default: the run's)",
    )


def _add_images(parser: argparse.ArgumentParser) -> None:
    """Flags of every command that evaluates: which images it uses."""
    _add_data_options(parser)
    parser.add_argument(
        "--split", default=None, choices=SPLITS, help="images to use (default: test, or val where there is no test)"
    )
    parser.add_argument("--limit", type=_positive, metavar="N", help="use N images, drawn by the seed (default: all)")


def _add_judging(parser: argparse.ArgumentParser) -> None:
    """Flags of every command that hides parts of images from judges."""
    parser.add_argument(
        "--by",
        action="extend",
        nargs="+",
        default=[],
        metavar="RUN",
        help="other runs that also classify the changed images, say dense ones",
    )
    _add_images(parser)
    parser.add_argument("--out", metavar="FOLDER", help="where to write (default: the run)")
    _add_wide(parser)
    _add_running(parser, batch_size=32)


def _add_wide(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--wide", action="store_true", help="print every column that there is")


def _add_measure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--measure",
        choices=MEASURES,
        help="times and memory: none, in about 20 s in all, or 0.5 s and more for each number (default: quick)",
    )


def _policy(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


def _positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return int(text)


def _natural(text: str) -> int:
    if int(text) < 0:
        raise argparse.ArgumentTypeError(f"{text} is less than 0")
    return int(text)


def _bytes(text: str) -> int:
    """A number of bytes, or of KiB, MiB, GiB or TiB."""
    found = re.fullmatch(r"(\d+)\s*(?:([KMGT])i?B?)?", text, re.IGNORECASE)
    if not found or int(found[1]) < 1:
        raise ConfigError(f"--max-bytes {text}: is no size in memory; give one such as 4GiB, or a number of bytes")
    return int(found[1]) << 10 * (" KMGT".index(found[2].upper()) if found[2] else 0)


_positive.__name__ = _natural.__name__ = "number"  # what argparse calls them in its errors


def _take(argv: list[str], section: str) -> tuple[list[str], list[str]]:
    """Move ``--data X`` and ``--data.key X`` out of the command line."""
    rest: list[str] = []
    taken: list[str] = []
    i = 0
    while i < len(argv):
        mine = argv[i] == f"--{section}" or argv[i].startswith((f"--{section}.", f"--{section}="))
        width = 2 if mine and "=" not in argv[i] else 1
        (taken if mine else rest).extend(argv[i : i + width])
        i += width
    return rest, taken


# -------------------------------------------------------------------------------------------------------------- fit


def _add_fit(commands: Any) -> None:
    from foveal.recipes import GROUPS, describe_recipe, list_recipes

    names = list_recipes()
    single = [(name, describe_recipe(name)) for name in names if "/" not in name]
    groups = [
        (f"{group}/", f"{sum(name.startswith(f'{group}/') for name in names):3} {text}")
        for group, text in GROUPS.items()
    ]
    parser = _add(
        commands,
        "fit",
        None,
        "train a model by a recipe",
        """Every value of a recipe can also be given as a flag. foveal fit RECIPE --help explains all of them, with
the options of the chosen model and data set.

  foveal fit demo
  foveal fit demo --epochs 3 --optimiser.lr 3e-4 --out runs/short
  foveal fit --data.root photos/ --model.backbone resnet18 \\
      --model.pretrained true
  foveal fit --data.root photos/ --model efficientnet_b0    a dense network
  foveal fit --data manifest --data.file labels.csv
  foveal fit --out runs/short --resume            go on after an interruption
  foveal fit --data folder --model tnet --help    every option of the two

Recipes:

"""
        + "\n".join(in_columns(single))
        + """

Recipes of published experiments; foveal recipes NAME lists those of a group:

"""
        + "\n".join(in_columns(groups)),
    )
    parser.usage = "foveal fit [RECIPE] [--key value ...]"
    parser.add_argument(
        "RECIPE",
        nargs="?",
        help="name from the lists below, or YAML file (default: folder, a TNet on the class folders in --data.root)",
    )
    parser.add_argument("--out", metavar="FOLDER", help="run folder (default: runs/ and the name of the recipe)")
    parser.add_argument("--resume", action="store_true", help="go on with the run that is there")
    parser.add_argument("--overwrite", action="store_true", help="replace the run that is there")


def _fit(argv: list[str]) -> int:
    recipe, flags = (argv[0], argv[1:]) if argv and not argv[0].startswith("-") else (_recipe_of(argv), argv)
    from foveal.recipes import find_recipe

    find_recipe(recipe)  # a name that is wrong should be told at once
    _import_torch()
    from foveal.recipes.configure import configure

    config, out, how = configure(recipe, flags)
    from foveal.recipes.config import fit_config
    from foveal.training import TrainingSummary

    # Lightning starts further processes as copies of this command; one of them speaks.
    speaks = os.environ.get("LOCAL_RANK", "0") == "0"
    quiet = how["quiet"] or not speaks
    logging.basicConfig(format="foveal: %(message)s", level=logging.WARNING if quiet else logging.INFO)
    run = fit_config(config, out, resume=how["resume"], overwrite=how["overwrite"], quiet=quiet)
    if speaks and quiet and run.summary:
        TrainingSummary(**run.summary).show(out, brief=True)
    return 0


def _recipe_of(argv: Sequence[str]) -> str:
    """What is meant where no recipe is named: the run that is to be resumed, or a folder of images."""
    joined = [
        text
        for word, after in zip(argv, [*argv[1:], ""], strict=True)
        for text in (f"{word}={after}", word)
        if text.startswith("--out=")
    ]
    if "--resume" in argv and joined:
        from foveal.runs import CONFIG, read_config

        config = Path(joined[0].removeprefix("--out="), CONFIG)
        if config.is_file():
            if "base" in read_config(config.parent):
                raise RunError(f"{config}: base: a run has all its values and no recipe below it; remove the line")
            return str(config)
    return "folder"


# ---------------------------------------------------------------------------------------------------------- recipes


def _add_recipes(commands: Any) -> None:
    parser = _add(
        commands,
        "recipes",
        _recipes,
        "recipes there are, and what each of them trains",
        """One line per recipe. With --quiet, the names alone.

  foveal recipes
  foveal recipes cifar10                          all of one group
  foveal recipes '*saccader*'
  foveal fit cifar10/saccader --help              the options of one
""",
    )
    parser.add_argument(
        "pattern", nargs="?", default="*", metavar="PATTERN", help="a group, or names with * and ? (default: *)"
    )


def _recipes(args: argparse.Namespace) -> int:
    from foveal.recipes import describe_recipe, list_recipes

    names = sorted(list_recipes(args.pattern), key=lambda name: "/" in name)
    if not names:
        raise ConfigError(f"{args.pattern}: no recipe has such a name; foveal recipes lists them all")
    if args.quiet:
        print("\n".join(names))
        return 0
    groups = [list(group) for _, group in groupby(names, key=lambda name: name.rpartition("/")[0])]
    print(
        "\n\n".join(
            "\n".join(in_columns([(name, describe_recipe(name)) for name in group], indent="")) for group in groups
        )
    )
    return 0


# --------------------------------------------------------------------------------------------------------- evaluate


def _add_evaluate(commands: Any) -> None:
    parser = _add(
        commands,
        "evaluate",
        _evaluate,
        "accuracy and cost of a trained model, by locations",
        """Writes evaluation.json and tradeoff.png into the run folder, or into --out. The images are those of the
run; --data and --data.KEY choose others, as for foveal fit.

  foveal evaluate runs/demo --locations 0..4
  foveal evaluate runs/demo --locations 0..3,1 --against runs/dense
  foveal evaluate runs/photos --data folder --data.root other/ --split test

Other policies, compared with the learned one:

  foveal evaluate runs/demo --policy centre,exhaustive

Early exit: no more looks at an image once the answer is sure. The budget is the cost of the mean image:

  foveal evaluate runs/demo --budget 3locations --budget 20MMAC
""",
    )
    parser.add_argument("path", metavar="RUN", help="run folder")
    parser.add_argument(
        "--locations",
        metavar="LOOKS",
        help="looks per level, 2,1, or a sweep of the first, 0..6 (default: 0 up to the run's own)",
    )
    parser.add_argument(
        "--policy",
        type=_policy,
        action="extend",
        default=[],
        metavar="NAMES",
        help=f"policies to evaluate besides the learned one and random, with commas between them: {POLICY}",
    )
    parser.add_argument(
        "--budget",
        action="append",
        default=[],
        metavar="COST",
        help="early exit instead of equal looks: stop at each image once the answer is sure, so that the mean image "
        "costs this much: "
        f"{COST}. The threshold is found on validation images and kept in the run. May be repeated",
    )
    parser.add_argument(
        "--at-once",
        type=_positive,
        default=1,
        metavar="N",
        help="with --budget: looks between two decisions to stop (default: 1)",
    )
    parser.add_argument("--against", metavar="RUN", help="run of another model, say a dense network, to compare with")
    _add_images(parser)
    parser.add_argument("--out", metavar="FOLDER", help="where to write (default: the run)")
    _add_measure(parser)
    _add_wide(parser)
    _add_running(parser, batch_size=32)


FLAGS = {"attention": "map", "budgets": "budget", "judges": "by", "policies": "policy"}
"""Flags of arguments that have another name."""


def _setting(args: argparse.Namespace, on_progress: Callable[..., None]) -> Setting:
    from foveal.evaluation import Setting

    return Setting(
        split=args.split,
        batch_size=args.batch_size,
        workers=args.workers or 0,
        device=args.device,
        precision=args.precision,
        seed=args.seed,
        limit=args.limit,
        on_progress=on_progress,
    )


def _evaluate(args: argparse.Namespace) -> int:
    from foveal.evaluation import evaluate
    from foveal.prediction import parse_location_sweep
    from foveal.runs import Run

    run = Run(args.path)
    if args.budget:
        return _early_exit(run, args)
    locations = parse_location_sweep(args.locations) if args.locations else None
    with _progress("accuracy", args.quiet) as show:
        result = evaluate(
            run,
            _data_of(run, args.data),
            locations=locations,
            policies=args.policy,
            against=args.against or (),
            measure=args.measure or "quick",
            setting=_setting(args, show),
        )
    return _report(result, args, args.out or run.path)


def _early_exit(run: Run, args: argparse.Namespace) -> int:
    from foveal.evaluation import evaluate_early_exit
    from foveal.prediction import parse_locations, read_exits

    if args.policy or args.against:
        raise ConfigError(
            "--budget: is compared with equal locations of the same model; leave --policy and --against out"
        )
    if args.measure:
        raise ConfigError(
            f"--measure {args.measure}: with --budget every image is timed while it is classified; leave --measure out"
        )
    locations = parse_locations(args.locations) if args.locations else None
    read_exits(run.path)  # a damaged file is reported before the work is done
    with _progress("finding thresholds", args.quiet) as show:
        result = evaluate_early_exit(
            run,
            _data_of(run, args.data),
            args.budget,
            locations=locations,
            at_once=args.at_once,
            setting=_setting(args, show),
        )
    code = _report(result, args, args.out or run.path)
    if not args.data:  # thresholds found on other data are not kept
        _keep(run, result.exits)
    return code


def _keep(run: Run, exits: Sequence[Exit]) -> None:
    """Keep thresholds for later predictions, where the run can be written."""
    from foveal.prediction import write_exits

    try:
        write_exits(run.path, exits)
    except StorageError as error:
        print(f"foveal: {error}", file=sys.stderr)


def _report(result: Result, args: argparse.Namespace, out: str | Path) -> int:
    """Print a result's table, write its files into a folder, list the images that failed."""
    from foveal.display import console

    console().print(result.table(args.wide))
    result.about["command"] = args.typed
    result.write(out)
    if not args.quiet:
        print(f"\nAll numbers are in {Path(out) / result.file}{'' if args.wide else '; --wide prints more of them'}.")
    _tell_failed(result.errors)
    return 1 if result.errors else 0


@contextmanager
def _progress(what: str, quiet: bool) -> Iterator[Callable[..., None]]:
    """A bar on a terminal; what it yields is called with how much is done, of how much, and of which part of the work
    if there are some.
    """
    if quiet or not sys.stderr.isatty():
        yield lambda *_: None
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import Progress

    with Progress(console=Console(stderr=True, file=unfiltered(sys.stderr)), transient=True) as bar:
        row = bar.add_task(what, total=None)

        def show(done: int, total: int, part: str = what) -> None:
            part = escape(printable(part))
            if part != bar.tasks[0].description:
                bar.reset(row, description=part)  # its time left is not that of the part before
            bar.update(row, completed=done, total=total)

        yield show


def _tell_failed(failed: Sequence[tuple[str, str]]) -> None:
    """List images that failed; their sentences name them."""
    if failed:
        print(f"foveal: {len(failed)} image{'s' if len(failed) > 1 else ''} failed:", file=sys.stderr)
    for path, error in failed:
        print(f"  {printable(error if error.startswith(path) else f'{path}: {error}')}", file=sys.stderr)


# ---------------------------------------------------------------------------------------------------------- compare


def _add_compare(commands: Any) -> None:
    parser = _add(
        commands,
        "compare",
        _compare,
        "accuracy, calibration and cost of several models on the same images",
        """Takes run folders, of models that look and of dense ones, and names of networks. A network by name has no
trained weights, so that only its cost is found. Times are taken in turn. Writes comparison.json and comparison.png
into --out: accuracy against MACs, time and memory, with the Pareto front marked. The images are those of the first
run; --data and --data.KEY choose others, as for foveal fit.

  foveal compare runs/demo runs/dense
  foveal compare runs/tnet runs/dense --locations 0..6 --out results/
  foveal compare runs/photos efficientnet_b0 --data folder \\
      --data.root other/ --split test
""",
    )
    parser.add_argument(
        "paths", metavar="RUN_OR_MODEL", nargs="+", help="run folders, and names of networks, see foveal models"
    )
    parser.add_argument(
        "--locations",
        metavar="LOOKS",
        help="looks per level, 2,1, or a sweep of the first, 0..6, for the models that can meet them "
        "(default: 0, and each run's own)",
    )
    _add_images(parser)
    parser.add_argument("--out", metavar="FOLDER", default="comparison", help="where to write (default: comparison)")
    _add_measure(parser)
    _add_wide(parser)
    _add_running(parser, batch_size=32)


def _compare(args: argparse.Namespace) -> int:
    from foveal.evaluation import compare, first_run
    from foveal.prediction import parse_location_sweep

    locations = parse_location_sweep(args.locations) if args.locations else None
    data = _data_of(first_run(args.paths), args.data)
    with _progress("accuracy", args.quiet) as show:
        result = compare(
            args.paths, data, locations=locations, measure=args.measure or "quick", setting=_setting(args, show)
        )
    return _report(result, args, args.out)


# ---------------------------------------------------------------------------------------------------------- occlude


def _add_occlude(commands: Any) -> None:
    parser = _add(
        commands,
        "occlude",
        _occlude,
        "hide what a model looked at, and see what is still known",
        """The model classifies an image at each of the locations. The regions that it chose to look at are hidden
under the mean colour. Then the model, and the runs named by --by, classify what is left. If the model looks at what
matters, accuracy falls faster than when random looks hide as much of the image; random looks are always evaluated
too. Writes occlusion.json and occlusion.png, accuracy against the share hidden, into the run. The images are those
of the run; --data and --data.KEY choose others, as for foveal fit.

  foveal occlude runs/demo
  foveal occlude runs/demo --locations 1..8 --policy centre
  foveal occlude runs/demo --locations 1..4 --by runs/dense runs/other \\
      --limit 500 --out occlusion/
""",
    )
    parser.add_argument("path", metavar="RUN", help="run folder of a model that chooses where to look")
    parser.add_argument(
        "--locations",
        metavar="LOOKS",
        help="looks to hide, per level, 2,1, or a sweep of the first, 1..8 (default: 1 up to the run's own)",
    )
    parser.add_argument(
        "--policy",
        type=_policy,
        action="extend",
        default=[],
        metavar="NAMES",
        help=f"policies whose looks are hidden, besides the learned one and random, with commas between them: {POLICY}",
    )
    _add_judging(parser)


def _occlude(args: argparse.Namespace) -> int:
    from foveal.evaluation import occlude
    from foveal.prediction import parse_location_sweep
    from foveal.runs import Run

    run = Run(args.path)
    locations = parse_location_sweep(args.locations) if args.locations else None
    with _progress("occluding", args.quiet) as show:
        result = occlude(
            run,
            _data_of(run, args.data),
            locations=locations,
            policies=args.policy,
            judges=args.by,
            setting=_setting(args, show),
        )
    return _report(result, args, args.out or run.path)


# ----------------------------------------------------------------------------------------------------- faithfulness


def _add_faithfulness(commands: Any) -> None:
    parser = _add(
        commands,
        "faithfulness",
        _faithfulness,
        "does the answer depend on the regions that a model points at?",
        """Regions are ranked: the boxes that a model chose to look at, the cells of a network's last attention map
or of the one named by --map, or the cells of Grad-CAM at the module named by --cam. Deletion hides them one after
another, best first, under the mean colour. Insertion shows nothing else but them. The probability of the predicted
class should fall early in deletion and rise early in insertion. The pointing game asks whether the best region lies
on the object, where the data has boxes. Everything is compared with random regions of equal area. Writes
faithfulness.json and faithfulness.png into the run. The images are those of the run; --data and --data.KEY choose
others, as for foveal fit.

  foveal faithfulness runs/demo
  foveal faithfulness runs/demo --locations 4 --by runs/dense --limit 500
  foveal faithfulness runs/attention --map layer3
  foveal faithfulness runs/dense --cam layer4 --out gradcam/
""",
        aliases=["faithful"],
    )
    parser.add_argument("path", metavar="RUN", help="run folder")
    parser.add_argument(
        "--locations", metavar="LOOKS", help="looks per level, as 2,1, of a model that looks (default: the run's)"
    )
    parser.add_argument(
        "--map", metavar="NAME", help="attention map, by its module or part of the network (default: the last)"
    )
    parser.add_argument("--cam", metavar="LAYER", help="Grad-CAM at this module; needs pip install 'foveal[cam]'")
    _add_judging(parser)


def _faithfulness(args: argparse.Namespace) -> int:
    from foveal.evaluation import evaluate_faithfulness
    from foveal.prediction import parse_locations
    from foveal.runs import Run

    run = Run(args.path)
    locations = parse_locations(args.locations) if args.locations else None
    with _progress("hiding and showing", args.quiet) as show:
        result = evaluate_faithfulness(
            run,
            _data_of(run, args.data),
            locations=locations,
            attention=args.map,
            cam=args.cam,
            judges=args.by,
            setting=_setting(args, show),
        )
    return _report(result, args, args.out or run.path)


# ---------------------------------------------------------------------------------------------------------- predict


def _add_predict(commands: Any) -> None:
    parser = _add(
        commands,
        "predict",
        _predict,
        "classify images: one row an image",
        """IMAGES are files, folders (searched to the bottom) and patterns. An image that fails is a row with an
error: the command goes on, lists these images at the end and exits with 1.

With --out, the rows of finished batches are safe whatever ends the command. The same command again goes on where it
stopped, and the rows are those of one command that was not stopped. Images that are new are appended. Images that
have a row are not predicted again; those that failed are if their file has changed since, or with --retry. Leave the
table as it is until all is done.

In folders, files with these suffixes are images, unless they are hidden; others are counted at the end:
"""
        + " ".join(SUFFIXES)
        + """

  foveal predict runs/demo photo.png
  foveal predict runs/demo photos/ --out labels.csv
  foveal predict runs/slides scans/ 'more/**/*.svs' --locations 3,2 \\
      --out predictions.parquet

Three looks on average, more at hard images than at easy ones:

  foveal predict runs/demo photos/ --budget 3locations

Random looks, to compare with:

  foveal predict runs/demo photos/ --policy random --seed 1
""",
    )
    parser.add_argument("path", metavar="RUN", help="run folder")
    parser.add_argument("images", metavar="IMAGES", nargs="+", help="files, folders and patterns such as 'scans/*.tif'")
    parser.add_argument("--locations", metavar="LOOKS", help="looks per level, as 2,1 (default: the run's)")
    parser.add_argument(
        "--policy", default="greedy", metavar="NAME", help=f"how cells are chosen: {POLICY} (default: greedy)"
    )
    parser.add_argument(
        "--budget",
        metavar="COST",
        help=f"stop at each image once the answer is sure, so that the mean image costs this much: {COST}; "
        "--locations is then the most"
        " looks",
    )
    parser.add_argument(
        "--at-once",
        type=_positive,
        default=1,
        metavar="N",
        help="with --budget: looks between two decisions to stop (default: 1)",
    )
    parser.add_argument(
        "--out", metavar="FILE", help=f"table to write, {_names(FORMATS)} (default: print path, label, probability)"
    )
    parser.add_argument(
        "--top-k", type=_positive, default=5, metavar="K", help="most probable classes in a row (default: 5)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the file instead of going on with it")
    parser.add_argument("--retry", action="store_true", help="with --out: predict images again that failed")
    _add_running(
        parser,
        batch_size=8,
        workers="threads that open images (default: one per image of a batch, two per processor at most)",
    )


def _predict(args: argparse.Namespace) -> int:
    from foveal.prediction import parse_locations, predict

    locations = parse_locations(args.locations) if args.locations else None
    until = _exit(args) if args.budget else None
    with _progress("predicting", args.quiet) as show:
        done = predict(
            args.path,
            args.images,
            locations=locations,
            policy=args.policy,
            batch_size=args.batch_size,
            threads=args.workers,
            device=args.device,
            precision=args.precision,
            top_k=args.top_k,
            seed=args.seed,
            out=args.out,
            resume=not args.overwrite,
            until=until,
            retry=args.retry,
            on_progress=show,
        )
    for row in done.rows:
        if not row["error"]:
            print(f"{printable(row['path'])}\t{printable(row['label'])}\t{row['probability']:.3f}")
    if done.out and not args.quiet:
        before = f", {done.skipped} were there" if done.skipped else ""
        print(f"{done.out}: {done.predicted} predicted{before}, in {done.seconds:.1f} s")
    if not args.quiet:
        for line in done.left_out.lines():
            print(f"foveal: {printable(line)}", file=sys.stderr)
    _tell_failed(done.failed)
    if done.failed and done.out and not args.quiet:
        print(
            "foveal: the same command tries these again once their files have changed; with --retry at once",
            file=sys.stderr,
        )
    return 1 if done.failed else 0


def _exit(args: argparse.Namespace) -> Exit:
    """The exit of this budget: as it was solved before under these conditions, or solved now on the run's validation
    images.
    """
    from foveal.evaluation import Setting, find_thresholds
    from foveal.glimpse.base import GlimpseClassifier
    from foveal.policies import GREEDY, find_policy
    from foveal.prediction import (
        Exit,
        find_device,
        fingerprint,
        format_locations,
        machine_name,
        parse_cost,
        parse_locations,
        read_exits,
    )
    from foveal.runs import Run, load

    if find_policy(args.policy) != GREEDY:
        raise ConfigError("--budget: looks where the model thinks best; leave --policy out")
    run, unit = Run(args.path), parse_cost(args.budget)[1]
    model = load(run.path)
    own = model.locations if isinstance(model, GlimpseClassifier) else ()
    most = parse_locations(args.locations) if args.locations else own
    holds = {"batch_size": args.batch_size, "machine": machine_name(find_device(args.device))} if unit == "ms" else {}
    wanted = Exit(args.budget, 0, most, args.at_once, 0, unit, 0, fingerprint(model), args.precision, **holds)
    known = next(
        (one for one in read_exits(run.path) if (one.conditions, one.model) == (wanted.conditions, wanted.model)), None
    )
    if known is None:
        with _progress("finding when to stop", args.quiet) as show:
            setting = Setting(
                batch_size=args.batch_size, device=args.device, precision=args.precision, on_progress=show
            )
            data = _data_of(run, [])
            (known,) = find_thresholds(run, data, [args.budget], locations=most, at_once=args.at_once, setting=setting)
        _keep(run, [known])
    if not args.quiet:
        spent = f"--locations {format_locations(known.locations)} is spent"
        when = f"no image is left before {spent}"
        if known.threshold <= 1:
            when = f"images are left once they are {100 * known.threshold:.1f} % sure, or when {spent}"
        print(f"foveal: {args.budget}: {when}", file=sys.stderr)
    return known


# ---------------------------------------------------------------------------------------------------------- explain


def _add_explain(commands: Any) -> None:
    parser = _add(
        commands,
        "explain",
        _explain,
        "where a model looked, and what each look added",
        """Writes one page that needs no other file: the image with the boxes, every look as the model saw it, what
each look added to the most probable classes, and the cost.

  foveal explain runs/demo photo.png --out report.html
  foveal explain runs/slides slide.svs --locations 3,2 \\
      --overlay looked.png
  foveal explain runs/demo photo.png --policy exhaustive    what every cell adds
""",
    )
    parser.add_argument("path", metavar="RUN", help="run folder")
    parser.add_argument("image", metavar="IMAGE", help="image file")
    parser.add_argument("--out", metavar="FILE", default="report.html", help="the page (default: report.html)")
    parser.add_argument(
        "--overlay", metavar="FILE", help="also write the image with the boxes alone: .png, .jpg or .webp"
    )
    parser.add_argument("--locations", metavar="LOOKS", help="looks per level, as 2,1 (default: the run's)")
    parser.add_argument(
        "--policy", default="greedy", metavar="NAME", help=f"how cells are chosen: {POLICY} (default: greedy)"
    )
    _add_wide(parser)
    _add_how(parser)


def _explain(args: argparse.Namespace) -> int:
    from foveal.explain import explain, show
    from foveal.prediction import parse_locations

    locations = parse_locations(args.locations) if args.locations else None
    seen = explain(
        args.path,
        args.image,
        args.out,
        locations=locations,
        policy=args.policy,
        device=args.device,
        precision=args.precision,
        seed=args.seed,
        overlay_out=args.overlay,
    )
    if not args.quiet:
        show(seen, wide=args.wide)
        print(f"\nThe page is {args.out}")
    return 0


# ------------------------------------------------------------------------------------------------------ models, data


def _add_models(commands: Any) -> None:
    parser = _add(
        commands,
        "models",
        _models,
        "names of the models there are",
        """Without a pattern: the models that look. Any of timm's networks can be trained too, or be the backbone of
a model that looks.

  foveal models
  foveal models 'efficientnet*'
  foveal fit demo --model tnet --help             the options of one
""",
    )
    parser.add_argument(
        "pattern", nargs="?", metavar="PATTERN", help="names with * and ?, among timm's too (default: models that look)"
    )


def _models(args: argparse.Namespace) -> int:
    from foveal.glimpse.registry import MODELS
    from foveal.models import list_models

    names = list_models(args.pattern) if args.pattern else MODELS.names()
    for name in names:
        print(name)
    if not args.pattern and not args.quiet:
        print("and the dense networks of timm and ours: foveal models '*'", file=sys.stderr)
    return 0 if names else 1


def _add_data(commands: Any) -> None:
    parser = _add(
        commands,
        "data",
        _data,
        "data sets there are, or the images of one",
        """Without NAME: the names of the data sets. With the name of a data set, or a run folder: its classes, and
how many images each split has. --data.KEY sets an option of the data set, as for foveal fit.

  foveal data
  foveal data folder --data.root photos/

Write the first test images of a run's data set as PNG files:

  foveal data runs/demo --export samples/ --count 4
""",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="data set or run folder (default: list the data sets)")
    parser.add_argument("--data.KEY", metavar="VALUE", help="option of the data set, see foveal fit --data NAME --help")
    parser.add_argument("--split", default="test", choices=SPLITS, help="images to export (default: test)")
    parser.add_argument("--export", metavar="FOLDER", help="write images into this folder")
    parser.add_argument("--count", type=_positive, default=8, metavar="N", help="how many images to write (default: 8)")
    parser.add_argument("--wide", action="store_true", help="name every class")


def _data(args: argparse.Namespace) -> int:
    from foveal.data import list_data, value_notes
    from foveal.runs import Run

    if args.name is None:
        print("\n".join(list_data()))
        return 0
    run = args.name not in list_data() and Path(args.name).is_dir()
    data = _data_of(Run(args.name), args.data) if run else _make_data({"name": args.name}, args.data, where=args.name)
    if args.export:
        failed = _export(data, args.split, Path(args.export), args.count)
        _tell_failed(failed)
        return 1 if failed else 0
    from foveal.display import console, counted, stacked

    shown = console()
    few = data.classes[: SHOWN_CLASSES if shown.is_terminal and not args.wide else None]
    more = "" if len(few) == len(data.classes) else f" and {len(data.classes) - len(few):,} more; --wide names all"
    splits = {split: len(images) for split in ("train", "val", "test") if (images := getattr(data, split)) is not None}
    shown.print(stacked(f"{len(data.classes):,} classes: {', '.join(map(printable, few))}{more}"))
    shown.print(stacked(", ".join(f"{split}: {counted(count, 'image')}" for split, count in splits.items())))
    for note in (*data.notes, *value_notes(data)):
        shown.print(stacked(printable(note)))
    return 0


def _export(data: DataModule, split: str, folder: Path, count: int) -> list[tuple[str, str]]:
    """Write the first images of a split as PNG files, named by number and class; (path, reason) of each that cannot be
    read.
    """
    import numpy as np
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    if data.train is not None:
        data = replace(data, train=data.train.plain())
    failed: list[tuple[str, str]] = []
    for number, batch in enumerate(islice(data.loader(split, batch_size=1), count)):
        failed += batch.errors
        if not len(batch):
            continue
        height, width = map(int, batch.views.sizes[0])
        pixels = batch.views.look(np.array([0]), np.array([[0, 0, height, width]], dtype=np.float64), (height, width))[
            0
        ]
        if batch.views.errors:
            failed += [(text.partition(": ")[0], text) for text in batch.views.errors.values()]
            continue
        rows = (pixels * 255).round().byte().permute(1, 2, 0).numpy()
        name = printable(data.classes[int(batch.target[0])]).replace(os.sep, "_").replace("\\", "_")
        Image.fromarray(rows if rows.shape[2] == 3 else rows[..., 0]).save(folder / f"{number}_{name}.png")
    return failed


def _data_of(run: Run, flags: Sequence[str]) -> DataModule:
    """The data set of a run, or what the flags make of it; another one is read as the model's images were."""
    from foveal.registry import made_with
    from foveal.runs import DATA_PATHS

    config = run.config.get("data")
    if not isinstance(config, dict) or "name" not in config:
        raise RunError(f"{run.path}: does not say which data it was trained on; give --data and --data.root")
    try:
        with made_with(run.config.get("imports")):
            return _make_data(config, flags, where=str(run.path / "config.yaml"), like=run.card)
    except DataError as error:
        key = next(
            (key for key in DATA_PATHS if config.get(key) and not Path(config[key]).expanduser().is_absolute()), None
        )
        if flags or key is None:  # runs of older versions have relative paths
            raise
        raise RunError(
            f"{run.path}: was trained on {config[key]}, a path from the folder where training was started, and "
            f"{Path.cwd()} has no such"
            f" data; run the command there, or give --data.{key} PATH"
        ) from error


def _make_data(
    config: dict[str, Any], flags: Sequence[str], where: str, like: Mapping[str, Any] = MappingProxyType({})
) -> DataModule:
    from foveal.data import get_data
    from foveal.recipes.configure import configure_data

    values = configure_data(config, flags, where)
    if values["name"] != config["name"]:
        values |= {key: like.get(key) for key in ("value_range", "image_size") if key in values and values[key] is None}
    return get_data(values.pop("name"), **values)


# ------------------------------------------------------------------------------------------------------------- cost


def _add_cost(commands: Any) -> None:
    parser = _add(
        commands,
        "cost",
        _cost,
        "parameters and multiply-accumulates of a model for one image",
        """Nothing is trained and no image is held in memory, so that any size is quick to ask for. FLOPs are twice
the MACs.

  foveal cost tnet --image-size 4096 --locations 2,1 --set backbone=resnet50
  foveal cost tnet_bagnet77.reference --image-size 224 --locations 5 --json
  foveal cost efficientnet_b0 --image-size 896 --num-classes 62
""",
    )
    parser.add_argument("model", metavar="MODEL", help="name that foveal models lists, or run folder")
    parser.add_argument(
        "--image-size",
        type=_size,
        required=True,
        metavar="SIDE",
        help="of the image: 896, or 896x1344 (height x width)",
    )
    parser.add_argument("--locations", metavar="LOOKS", help="looks per level, as 2,1 (default: the model's)")
    parser.add_argument("--num-classes", type=_positive, metavar="N", help="classes (default: the model's)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="option of the model, see foveal fit --model MODEL --help; may be repeated",
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON")


def _size(text: str) -> int | tuple[int, int]:
    height, _, width = text.partition("x")
    return (_positive(height), _positive(width)) if width else _positive(height)


_size.__name__ = "size"


def _cost(args: argparse.Namespace) -> int:
    from foveal.display import TEXT, Column, Table, console, image_size, significant
    from foveal.glimpse.base import GlimpseClassifier
    from foveal.models import create_model, list_models
    from foveal.prediction import count_cost, format_locations, parse_locations
    from foveal.recipes.flags import UsageError, as_nested, parse_settings
    from foveal.runs import load

    settings = as_nested(parse_settings(args.set))
    classes = settings.pop("num_classes", args.num_classes)
    if classes is not None and (type(classes) is not int or classes < 1):
        raise UsageError(f"--set num_classes={classes}: is no number of classes; give 1 or more")
    if args.num_classes not in (None, classes):
        raise UsageError(
            f"--num-classes {args.num_classes}: --set num_classes={classes} says another number; give one of the two"
        )
    folder = Path(args.model).is_dir() and args.model not in list_models()
    model = load(args.model) if folder else create_model(args.model, num_classes=classes, **settings)
    own = model.locations if isinstance(model, GlimpseClassifier) else ()
    locations = parse_locations(args.locations) if args.locations and isinstance(model, GlimpseClassifier) else own
    cost = count_cost(model, args.image_size, locations)
    line = {
        "model": args.model,
        "image_size": args.image_size,
        "locations": locations,
        "parameters": cost.parameters,
        "parameters_and_statistics": cost.parameters_and_statistics,
        "macs": cost.macs,
    }
    if args.json:
        print(json.dumps(line))
        return 0
    rows: list[tuple[str, Cost | None]] = [("model", cost)]
    if isinstance(model, GlimpseClassifier):
        try:
            rows.append(("dense backbone", count_cost(model.dense(), args.image_size)))
        except ConfigError:
            rows.append(("dense backbone", None))
    columns = [
        Column("", lambda row: row[0], TEXT),
        Column("parameters", lambda row: f"{row[1].parameters:,}" if row[1] else "takes no such image"),
        Column("and statistics", lambda row: f"{row[1].parameters_and_statistics:,}" if row[1] else ""),
        Column("MACs", lambda row: f"{row[1].macs:,}" if row[1] else ""),
        Column(
            "times as many", lambda row: significant(row[1].macs / cost.macs) if row[1] and row[1] is not cost else ""
        ),
    ]
    looks = f", locations {format_locations(locations)}" if isinstance(model, GlimpseClassifier) else ""
    console().print(Table(f"{args.model} on an image of {image_size(args.image_size)} px{looks}", columns, rows))
    return 0


# ------------------------------------------------------------------------------------------------------------ table


def _add_table(commands: Any) -> None:
    parser = _add(
        commands,
        "table",
        _table,
        "published tables, with the results of your own runs",
        """Each row has three kinds of numbers, in separate columns. Claimed: what a paper's own tables say of its
model and of others; two numbers where its tables contradict each other. Published: what other papers and
repositories report, with the source. Measured: mean, standard deviation and best over the seeds of your runs, from
their evaluation.json. "not found" means that a number was looked for and not found.

A run counts for a row if its model has the row's name and options, it was trained to its end, and foveal evaluate
has seen every image of the table's split: CIFAR's test images, ImageNet's val images. Runs that differ in anything
but the seed are lines of their own.

  foveal fit cifar10/attn_resnet110 --seed 1 --out runs/attn_1
  foveal evaluate runs/attn_1
  foveal table cifar
  foveal table cifar --runs elsewhere/ --json
  foveal table imagenet
""",
    )
    tables = sorted(file.stem for file in Path(__file__).parent.glob("evaluation/tables/*.yaml"))
    parser.add_argument("name", metavar="NAME", help=_names(tables))
    parser.add_argument("--runs", metavar="FOLDER", help="where to look for run folders (default: runs)")
    _add_wide(parser)
    parser.add_argument("--json", action="store_true", help="print every row, also those without a number, as JSON")


def _table(args: argparse.Namespace) -> int:
    from foveal.display import console
    from foveal.evaluation import paper_table

    if args.runs is not None and not Path(args.runs).is_dir():
        raise ConfigError(f"--runs {args.runs}: there is no such folder; check the path")
    found = paper_table(args.name, args.runs or "runs")
    if args.json:
        print(json.dumps(found.as_dict()))
        return 0
    console().print(found.table(args.wide))
    if found.left_out and not args.quiet:
        print("left out:", file=sys.stderr)
    for folder, reason in found.left_out if not args.quiet else ():
        print(f"  {printable(f'{folder}: ' + reason.removeprefix(f'{folder}: '))}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The ``foveal`` command: exit codes, signals, and the call of a command.

`foveal.cli.commands` describes the commands, `foveal.cli.arguments` makes their arguments from signatures.

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
import logging
import os
import re
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any

from foveal import __version__
from foveal.cli.arguments import in_flags, make_parser
from foveal.cli.commands import COMMANDS, find_command
from foveal.cli.running import import_torch
from foveal.display import printable, printed
from foveal.errors import ConfigError, FovealError
from foveal.importing import fast_imports

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
        called = find_command(argv[0]) if argv else None
        _say(in_flags(str(error), called.arguments if called else {}))
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
    called = find_command(argv[0]) if argv else None
    argv, limit = _take(argv, "max-bytes") if called and called.reads else (argv, [])
    if limit:  # the processes that read images inherit it
        os.environ["FOVEAL_MAX_BYTES"] = str(_bytes(limit[-1].rpartition("=")[2]))
    if argv[:1] == ["fit"] and argv[1:] not in (["--help"], ["-h"]):
        return COMMANDS["fit"].run(argv[1:])
    argv, data = _take(argv, "data") if called and "data.KEY" in called.arguments else (argv, [])
    typed = shlex.join(["foveal", *argv, *data, *limit, *modules])
    parser = _parser(next(filter(find_command, argv), ""))
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        # argparse would have the program say this, with the usage of the program.
        getattr(args, "parser", parser).error(f"unrecognized arguments: {' '.join(unknown)}")
    if args.command is None:
        parser.print_help()
        return 0
    logging.basicConfig(format="foveal: %(message)s", level=logging.WARNING if args.quiet else logging.INFO)
    args.data_flags, args.typed = data, typed
    if args.command != "recipes":
        import_torch()
    return args.run(args)


def _parser(only: str | None = None) -> argparse.ArgumentParser:
    """The parser, see `foveal.cli.arguments.make_parser`."""
    parser = make_parser(COMMANDS, only, prog="foveal", description=DESCRIPTION, epilog=EXAMPLES)
    parser.add_argument("--version", action="version", version=f"foveal {__version__}")
    return parser


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
        try:
            with fast_imports():
                import_module(name)
        except FovealError:
            raise
        except Exception as error:  # a module may raise anything
            last = traceback.extract_tb(error.__traceback__)[-1]
            place = (error.filename, error.lineno) if isinstance(error, SyntaxError) else (last.filename, last.lineno)
            reason = error.msg if isinstance(error, SyntaxError) else str(error).partition("\n")[0]
            raise ConfigError(
                f"--import {name}: cannot be loaded ({type(error).__name__}: {reason}, {place[0]}, line {place[1]}); "
                "correct the module"
            ) from error


def _bytes(text: str) -> int:
    """A number of bytes, or of KiB, MiB, GiB or TiB."""
    found = re.fullmatch(r"(\d+)\s*(?:([KMGT])i?B?)?", text, re.IGNORECASE)
    if not found or int(found[1]) < 1:
        raise ConfigError(f"--max-bytes {text}: is no size in memory; give one such as 4GiB, or a number of bytes")
    return int(found[1]) << 10 * (" KMGT".index(found[2].upper()) if found[2] else 0)


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

"""The ``foveal`` command: parse the command line, run a command, return its exit code.

`foveal.cli.commands` defines the commands. `foveal.cli.arguments` makes their arguments from signatures.

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

EXAMPLES = """First steps:

  foveal fit demo                               train on the bundled images
  foveal evaluate runs/demo --locations 0..4    accuracy and cost by locations
  foveal predict runs/demo photos/ --out labels.csv       one row per image
  foveal explain runs/demo photos/1.png         where the model looked

Train on your own images, in one folder per class:

  foveal fit --data.root photos/ --out runs/photos

foveal COMMAND --help explains a command and its options. foveal recipes lists the recipes of foveal fit. Every
command takes --quiet, and --import for models of your own. Commands that run a model take --device, --precision and
--seed; all of these except explain, which takes one image at a time, also take --batch-size and --workers.

Exit codes: 0 success; 1 failure, or some images failed; 2 a name, option or value is not valid; 128 + n ended by
signal n: 130 Ctrl-C, 143 SIGTERM, 129 SIGHUP.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: the words after ``foveal``; those of the process if None.

    Returns:
        Exit code: 0 success; 1 failure, or some images failed; 2 a name, option or value is not valid
        (`foveal.errors.ConfigError`); 128 + n ended by signal n, 130 for Ctrl-C; 141 if the output is a closed pipe.
    """
    own_process = argv is None
    if own_process:
        _open_standard_files()
    argv, modules = _take(list(sys.argv[1:] if argv is None else argv), "import")
    if "OMP_WAIT_POLICY" not in os.environ:
        # By default, threads of OpenMP spin for milliseconds between operations. If another program needs the core,
        # a training step takes up to twenty times as long. 5,000 iterations last until the next operation. OpenMP
        # reads the variable when torch is imported.
        os.environ.setdefault("GOMP_SPINCOUNT", "5000")
    if argv[:1] == ["fit"]:
        # Each process of a run would print advice of torch.distributed on networks whose weights all get gradients.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    with printed(for_good=own_process):
        return _main(argv, modules, own_process)


def _main(argv: list[str], modules: list[str], own_process: bool) -> int:
    """`main`, with output streams that escape control characters."""
    limit = os.environ.get("FOVEAL_MAX_BYTES")
    called = find_command(argv[0]) if argv else None
    arguments = called.arguments if called else {}
    fits = argv[:1] == ["fit"]  # training handles signals itself
    watch: AbstractContextManager[None] = nullcontext() if fits else _raise_for_signals(not own_process)
    try:
        with watch:
            return _flush(_run(argv, modules))
    except FovealError as error:
        _say(in_flags(str(error), arguments))
        return _flush(2 if isinstance(error, ConfigError) else 1)
    except KeyboardInterrupt as end:
        number = getattr(end, "number", signal.SIGINT)
        by = "" if number == signal.SIGINT else f" by {signal.Signals(number).name}"
        how = getattr(end, "__notes__", [] if fits else ["the same command starts again"])
        _say(in_flags("; ".join([f"interrupted{by}", *how]), arguments))
        return _flush(128 + number)
    except OSError as error:
        if error.errno not in _WRITE_ERRORS:
            raise
        if _flush(0) == 0 and error.errno != errno.EPIPE:
            _say(f"{error.filename or 'output'}: {_write_error(error)}")
        return _flush(141 if error.errno == errno.EPIPE else 1)
    except SystemExit as end:
        return _flush(end.code if isinstance(end.code, int) else int(end.code is not None))
    finally:
        if limit is None:
            os.environ.pop("FOVEAL_MAX_BYTES", None)
        else:
            os.environ["FOVEAL_MAX_BYTES"] = limit
        if own_process:
            gc.freeze()  # no garbage collection while the process exits


_WRITE_ERRORS = {getattr(errno, name, None) for name in ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EPIPE")}
"""Errors of writing that are not bugs: full disk, quota, limit of file sizes, read-only disk, closed pipe."""

_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class _Ended(KeyboardInterrupt):
    """A signal that ends the process, handled like Ctrl-C."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextmanager
def _raise_for_signals(restore: bool) -> Iterator[None]:
    """Raise `_Ended` for the first signal that ends the process. The second ends it at once. Ignored signals stay
    ignored.
    """
    if threading.current_thread() is not threading.main_thread():  # only the main thread gets signals
        yield
        return
    process = os.getpid()
    handlers = {
        number: then
        for number in _SIGNALS
        if (then := signal.getsignal(number)) in (signal.SIG_DFL, signal.default_int_handler)
    }

    def end(number: int, frame: Any) -> None:
        if os.getpid() != process:  # a worker that reads images; the main process reports the signal
            os._exit(0)
        for each in handlers:
            signal.signal(each, signal.SIG_DFL)
        raise _Ended(number)

    for number in handlers:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number, then in handlers.items():
            signal.signal(number, then if restore else signal.SIG_DFL)


def _say(text: str) -> None:
    """Print a message on standard error; ignore errors of writing."""
    with suppress(OSError):
        print(f"foveal: {printable(text)}", file=sys.stderr)


def _write_error(error: OSError) -> str:
    return f"cannot be written ({error.strerror}); make space or send it elsewhere, and run the same command again"


def _flush(code: int) -> int:
    """Flush the output. Returns the exit code: ``code``, or another one if the output cannot be written."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError as error:
            # Otherwise Python reports it again at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            if isinstance(error, BrokenPipeError):
                return 141
            if stream is sys.stdout:
                _say(f"output: {_write_error(error)}")
            code = code or 1
    return code


def _open_standard_files() -> None:
    """Open /dev/null for standard streams that are closed. Otherwise the next file gets the number of such a stream."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115


def _run(argv: list[str], modules: list[str]) -> int:
    _import_modules(modules)
    called = find_command(argv[0]) if argv else None
    argv, limit = _take(argv, "max-bytes") if called and called.reads else (argv, [])
    if limit:  # worker processes inherit it
        os.environ["FOVEAL_MAX_BYTES"] = str(_bytes(limit[-1].rpartition("=")[2]))
    if argv[:1] == ["fit"] and argv[1:] not in (["--help"], ["-h"]):
        return COMMANDS["fit"].run(argv[1:])
    argv, data = _take(argv, "data") if called and "data.KEY" in called.arguments else (argv, [])
    typed = shlex.join(["foveal", *argv, *data, *limit, *modules])
    parser = _parser(next(filter(find_command, argv), ""))
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        # The error shows the usage of the command. That of argparse shows the usage of the program.
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
    """Import the modules of ``--import``. Modules that runs or recipes list are not imported."""
    if not flags:
        return
    from foveal.registry import import_module

    names = iter(flags)
    for flag in names:
        name = flag.partition("=")[2] or next(names, "")
        if not name:
            raise ConfigError("--import: the module is missing; give one, as --import my_package, or a .py file")
        try:
            with fast_imports():
                import_module(name)
        except FovealError:
            raise
        except Exception as error:  # a module can raise any exception
            last = traceback.extract_tb(error.__traceback__)[-1]
            place = (error.filename, error.lineno) if isinstance(error, SyntaxError) else (last.filename, last.lineno)
            reason = error.msg if isinstance(error, SyntaxError) else str(error).partition("\n")[0]
            raise ConfigError(
                f"--import {name}: cannot be loaded ({type(error).__name__}: {reason}, {place[0]}, line {place[1]}); "
                "correct the module"
            ) from error


def _bytes(text: str) -> int:
    """Parse a number of bytes, KiB, MiB, GiB or TiB.

    Raises:
        ConfigError: the text is not a size.
    """
    found = re.fullmatch(r"(\d+)\s*(?:([KMGT])i?B?)?", text, re.IGNORECASE)
    if not found or int(found[1]) < 1:
        raise ConfigError(f"--max-bytes {text}: is not a size in memory; give one such as 4GiB, or a number of bytes")
    return int(found[1]) << 10 * (" KMGT".index(found[2].upper()) if found[2] else 0)


def _take(argv: list[str], section: str) -> tuple[list[str], list[str]]:
    """Split the command line: all other words, and the flags of a section such as ``--data X`` and ``--data.key X``."""
    rest: list[str] = []
    taken: list[str] = []
    i = 0
    while i < len(argv):
        mine = argv[i] == f"--{section}" or argv[i].startswith((f"--{section}.", f"--{section}="))
        width = 2 if mine and "=" not in argv[i] else 1
        (taken if mine else rest).extend(argv[i : i + width])
        i += width
    return rest, taken

"""Functions that several commands use: data of a run, progress bar, printed results, failed images.

Example:
    >>> len(make_data({"name": "digits"}, ["--data.test", "20"], where="digits").test)
    20
    >>> with progress("predicting", quiet=True) as show:
    ...     show(1, 2)
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from foveal.display import printable, unfiltered
from foveal.errors import DataError, RunError, StorageError
from foveal.importing import fast_imports

if TYPE_CHECKING:
    from foveal.data import DataModule
    from foveal.evaluation import Result
    from foveal.prediction import Exit
    from foveal.runs import Run


def import_torch() -> None:
    """Import torch, with the faster import of `foveal.importing`."""
    with fast_imports():
        import torch  # noqa: F401


@contextmanager
def progress(what: str, quiet: bool, late: bool = False) -> Iterator[Callable[..., None]]:
    """Show a progress bar on a terminal.

    Args:
        what: description of the work.
        quiet: show nothing.
        late: show nothing before the first amount.

    Yields:
        A function of the amounts done and in total, and optionally of the description of the current part.
    """
    if quiet or not sys.stderr.isatty():
        yield lambda *_: None
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import Progress

    bar = Progress(console=Console(stderr=True, file=unfiltered(sys.stderr)), transient=True)
    with ExitStack() as stack:
        stack.callback(bar.stop)
        row = bar.add_task(what, total=None)
        if not late:
            bar.start()

        def show(done: float, total: float, part: str = what) -> None:
            bar.start()
            part = escape(printable(part))
            if part != bar.tasks[0].description:
                bar.reset(row, description=part)  # also resets the estimate of the time left
            bar.update(row, completed=done, total=total)

        yield show


def print_result(result: Result, args: argparse.Namespace) -> int:
    """Print the table of a result, write its files into ``--out`` or the run, and list failed images.

    Returns:
        The exit code.
    """
    from foveal.display import console

    out = args.out or args.model.path
    console().print(result.table(args.wide))
    result.about["command"] = args.typed
    result.write(out)
    if not args.quiet:
        print(f"\nAll numbers are in {Path(out) / result.file}{'' if args.wide else '; --wide prints more of them'}.")
    print_failed(result.errors)
    return 1 if result.errors else 0


def print_failed(failed: Sequence[tuple[str, str]]) -> None:
    """Print the (path, error) of each failed image on standard error."""
    if failed:
        print(f"foveal: {len(failed)} image{'s' if len(failed) > 1 else ''} failed:", file=sys.stderr)
    for path, error in failed:
        print(f"  {printable(error if error.startswith(path) else f'{path}: {error}')}", file=sys.stderr)


def keep_exits(run: Run, exits: Sequence[Exit]) -> None:
    """Store thresholds in the run for later predictions. If it cannot be written, print the error only."""
    from foveal.prediction import write_exits

    try:
        write_exits(run.path, exits)
    except StorageError as error:
        print(f"foveal: {error}", file=sys.stderr)


def data_of(run: Run, flags: Sequence[str]) -> DataModule:
    """The data set of a run, changed by flags. Another data set gets the value range and image size of the run.

    Raises:
        RunError: the run does not store its data set.
        DataError: the data cannot be read.
    """
    from foveal.registry import made_with
    from foveal.runs import DATA_PATHS

    config = run.config.get("data")
    if not isinstance(config, dict) or "name" not in config:
        raise RunError(f"{run.path}: the data it was trained on is not stored; give --data and --data.root")
    try:
        with made_with(run.config.get("imports")):
            return make_data(config, flags, where=str(run.path / "config.yaml"), like=run.card)
    except DataError as error:
        key = next(
            (key for key in DATA_PATHS if config.get(key) and not Path(config[key]).expanduser().is_absolute()), None
        )
        if flags or key is None:  # runs of older versions store relative paths
            raise
        raise RunError(
            f"{run.path}: was trained on {config[key]}, a path from the folder where training was started, and "
            f"{Path.cwd()} has no such data; run the command there, or give --data.{key} PATH"
        ) from error


def make_data(
    config: dict[str, Any], flags: Sequence[str], where: str, like: Mapping[str, Any] = MappingProxyType({})
) -> DataModule:
    """Create a data set from its configuration and flags.

    Args:
        config: name and options.
        flags: flags such as ``--data.root`` that override them.
        where: origin of ``config``, for errors.
        like: content of a run's ``config.json``, whose value range and image size another data set gets.
    """
    from foveal.recipes.configure import configure_data
    from foveal.recipes.fit_config import make_data as make

    values = configure_data(config, flags, where)
    if values["name"] != config["name"]:
        values |= {key: like.get(key) for key in ("value_range", "image_size") if key in values and values[key] is None}
    return make(values)


def export(data: DataModule, split: str, folder: Path, count: int) -> list[tuple[str, str]]:
    """Write the first images of a split as PNG files, named by number and class.

    Returns:
        (path, error) of each image that cannot be read.
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
        whole = np.array([[0, 0, height, width]], dtype=np.float64)
        pixels = batch.views.look(np.array([0]), whole, (height, width))[0]
        if batch.views.errors:
            failed += [(text.partition(": ")[0], text) for text in batch.views.errors.values()]
            continue
        rows = (pixels * 255).round().byte().permute(1, 2, 0).numpy()
        classes = [data.classes[i] for i in data.task.indices(batch.target[0])]
        name = printable("+".join(classes)).replace(os.sep, "_").replace("\\", "_")
        Image.fromarray(rows if rows.shape[2] == 3 else rows[..., 0]).save(folder / f"{number}_{name}.png")
    return failed

"""Tables of papers with the results of one's own runs: claimed, published and measured numbers, each in a column.

Rows, claims and sources are package data, one YAML file a table. TrainedRuns numbers come from run folders alone. A
run counts for a row if its model has the row's name and options, it was trained to its end, and `foveal evaluate` has
seen all images of the table's split. Runs are averaged over seeds only. Runs that differ in anything else are further
lines of the row, which say what differs.

Example:
    >>> found = paper_table("cifar", "no/such/folder")
    >>> row = next(row for row in found.rows if row.name == "SE-ResNet-110" and row.data == "cifar10")
    >>> row.claimed, row.published[0].value, row.measured
    ((95.2, 95.3), 94.79, ())
"""

from __future__ import annotations

import csv
import difflib
import inspect
import json
import math
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from importlib.resources import files
from itertools import groupby, pairwise, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from foveal.display import NAME, TEXT, Column, Table, fixed, significant, stacked, unit_for
from foveal.errors import ConfigError, FovealError
from foveal.glimpse.base import WholeImage
from foveal.models import constructor, wrapper_options
from foveal.runs import CARD, CONFIG, METRICS, WEIGHTS, Run
from foveal.training.config import plain

if TYPE_CHECKING:
    from rich.console import Group

NOT_FOUND = "not found"
"""Instead of a number that was looked for and not found."""

_SAME_RESULT = (
    "seed",
    "device",
    "devices",
    "nodes",
    "strategy",
    "workers",
    "compile",
    "save_every",
    "val_every",
    "log_every",
    "locations",
    "logger",
)
_SAME_DATA = ("root", "download")
_SAME_MODEL = ("num_classes",)  # the data says how many


class PublishedNumber(NamedTuple):
    """A published number, in %, and the key of its source."""

    value: float
    source: str


@dataclass(frozen=True)
class TrainedRuns:
    """Runs that differ only in their seed.

    Attributes:
        how: length, schedule and scale of the training, then each setting that differs from the table's or between
            lines of the row.
        mean, best: accuracy in %.
        deviation: sample standard deviation, None of a single run.
        milliseconds: an image, at the best batch; of the fastest run, None where none was timed or not all on the same
            machine.
        device: the type of device that was timed, ``cpu`` or ``cuda``; None without ``milliseconds``.
        seeds: of the runs.
        runs: their folders.
    """

    how: str
    mean: float
    deviation: float | None
    best: float
    milliseconds: float | None
    device: str | None
    seeds: tuple[int, ...]
    runs: tuple[str, ...]


@dataclass(frozen=True)
class PaperRow:
    """One model on one data set.

    Attributes:
        name: what the row is called.
        section: the heading above it.
        data: key of the table.
        model: name and options, None for a row that nothing can be run for.
        recipe: name of its recipe, None where there is none.
        claimed: numbers of the paper or its abstract, several where they contradict each other; `NOT_FOUND`; or None
            where the paper does not treat the row.
        published: numbers of other papers and repositories, as ``claimed``.
        measured: one entry for each way in which the model was trained.
        parameters, macs: counted, of this model on this data.
    """

    name: str
    section: str
    data: str
    model: Mapping[str, Any] | None
    recipe: str | None
    claimed: tuple[float, ...] | str | None
    published: tuple[PublishedNumber, ...] | str | None
    measured: tuple[TrainedRuns, ...]
    parameters: int | None
    macs: int | None


@dataclass(frozen=True)
class PaperTables:
    """Result of `paper_table`.

    Attributes:
        name: of the table.
        titles: by key of ``PaperRow.data``.
        sources: by key.
        rows: of all data sets.
        left_out: run folders that do not count, with the reason.
    """

    name: str
    titles: Mapping[str, str]
    sources: Mapping[str, str]
    rows: tuple[PaperRow, ...]
    left_out: tuple[tuple[str, str], ...]

    def as_dict(self) -> dict[str, Any]:
        """Everything, as JSON can write it."""
        values = asdict(self)
        for row, written in zip(self.rows, values["rows"], strict=True):
            if isinstance(row.published, tuple):
                written["published"] = [p._asdict() for p in row.published]
        return values

    def table(self, wide: bool = False) -> Group:
        """The result for people, to be printed by rich: the tables, and their sources."""
        trained = [
            f"{row.name}, {row.data}, {_mean(group)}: {group.how}" for row in self.rows for group in row.measured
        ]
        sources = (f"{key}: {source}" for key, source in self.sources.items())
        return stacked(
            *self.tables(wide), "\n".join(trained or ["No run was found that counts for a row."]), "\n".join(sources)
        )

    def tables(self, wide: bool = False) -> Iterator[Table]:
        """One table a data set, for rich to print; rows for which there is no number yet are left out.

        Args:
            wide: with the best of several runs, times and costs.
        """
        for data, title in self.titles.items():
            yield _as_table(
                title,
                [row for row in self.rows if row.data == data and (row.claimed or row.published or row.measured)],
                wide,
            )


def table_names() -> list[str]:
    """Names of the tables."""
    return sorted(file.name.removesuffix(".yaml") for file in files("foveal.evaluation").joinpath("tables").iterdir())


def paper_table(name: str, runs: str | Path = "runs") -> PaperTables:
    """A table of a paper, with the results of the runs in a folder.

    Args:
        name: see `table_names`.
        runs: searched to the bottom.

    Raises:
        ConfigError: there is no such table.
    """
    if name not in table_names():
        near = difflib.get_close_matches(name, table_names(), 1)
        raise ConfigError(
            f"{name}: there is no table of this name; "
            f"{'did you mean' if near else 'use'} {' or '.join(near or table_names())}"
        )
    content = yaml.safe_load(files("foveal.evaluation").joinpath("tables", f"{name}.yaml").read_text(encoding="utf-8"))
    found: list[_RunResult] = []
    left_out: list[tuple[str, str]] = []
    for folder in sorted(path.parent for path in Path(runs).rglob(CARD)):
        try:
            result = _result(folder, content["tables"])
        except FovealError as error:
            left_out.append((str(folder), str(error)))
            continue
        if isinstance(result, str):
            left_out.append((str(folder), result))
        elif result is not None:
            found.append(result)
    found, repeated = _newest(found)
    left_out += repeated
    rows = tuple(_row(line, key, about, found) for key, about in content["tables"].items() for line in content["rows"])
    used = {run for row in rows for group in row.measured for run in group.runs}
    left_out += [(run.folder, "its model, with these options, is no row") for run in found if run.folder not in used]
    titles = {key: about["title"] for key, about in content["tables"].items()}
    return PaperTables(name, titles, content["sources"], rows, tuple(left_out))


class _RunResult(NamedTuple):
    """The result of one run folder; ``way`` are the settings that could change it, except the seed, by dotted name."""

    folder: str
    written: float
    data: str
    model: dict[str, Any]
    seed: int
    way: dict[str, Any]
    how: str
    accuracy: float
    top5: float
    milliseconds: float | None
    machine: tuple[str, str]


def _result(folder: Path, tables: Mapping[str, Any]) -> _RunResult | str | None:
    """The result of a run; a sentence where it has none; None where it is about other data."""
    run = Run(folder)
    config = run.config
    file = folder / "evaluation.json"
    reading, remedy = CONFIG, "copy it again or train again"
    try:
        name = config["data"]["name"]
        about = next((about for about in tables.values() if about["data"] == name), None)
        if about is None:
            return None
        way, how = _way(config), _how(config)
        reading, remedy = METRICS, "copy it again, continue it by `resume`, or train again"
        if reason := _unfinished(run):
            return reason
        written = (folder / WEIGHTS).stat().st_mtime
        if not file.is_file() or file.stat().st_mtime < written:
            return f"has no evaluation of these weights; foveal evaluate {folder}"
        reading, remedy = file.name, f"foveal evaluate {folder}"
        evaluation = json.loads(file.read_text())
        point = next(point for point in evaluation["points"] if point["kind"] == "learned")
        images, split = point["images"], evaluation["split"]
        if (images, split) != (about["images"], about["split"]):
            wanted = f"the {about['images']:,} {about['split']} images of the table"
            again = f"foveal evaluate {folder} --split {about['split']}"
            return f"was evaluated on {images:,} {split} images, not on {wanted}; {again}"
        milliseconds = (point.get("batched") or {}).get("p50")
        return _RunResult(
            str(folder),
            written,
            name,
            _model_options(run.card["model"]),
            int(config["seed"]),
            way,
            how,
            100 * float(point["accuracy"]),
            100 * float(point["top5"]),
            None if milliseconds is None else float(milliseconds),
            (str(evaluation["device"]).partition(":")[0], str(evaluation["machine"])),
        )
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, OSError, StopIteration, csv.Error):
        # The files are not as foveal writes them. One damaged folder must not hide the others.
        return f"its {reading} is damaged; {remedy}"


def _newest(found: list[_RunResult]) -> tuple[list[_RunResult], list[tuple[str, str]]]:
    """One run of each seed and way, and the repetitions that are left out."""
    kept: dict[tuple[str, int], _RunResult] = {}
    for run in sorted(found, key=lambda run: run.written):
        kept[json.dumps(run.way, sort_keys=True), run.seed] = run
    repeated = [
        (
            run.folder,
            f"repeats the training of {newest.folder}, which is newer, seed included; train with another `seed`",
        )
        for run in found
        if (newest := kept[json.dumps(run.way, sort_keys=True), run.seed]) is not run
    ]
    gone = {folder for folder, _ in repeated}
    return [run for run in found if run.folder not in gone], repeated


def _unfinished(run: Run) -> str | None:
    """A sentence where a run is not trained to its end: metrics.csv ends more than one interval of its lines before."""
    file, goes_on = run.path / METRICS, "is not trained to its end; continue it by `resume`"
    rows: list[dict[str, str]] = []
    if file.is_file():
        with file.open(newline="") as lines:
            rows = list(csv.DictReader(lines))
    if rows and math.isnan(float(rows[-1].get("loss") or 0)):
        return f"diverged in step {rows[-1]['step']}; train with a lower `optimiser.lr` or `optimiser.clip` 1"
    if not rows or not (run.path / WEIGHTS).is_file():
        return goes_on
    step, epoch = int(rows[-1]["step"]), float(rows[-1]["epoch"])
    steps, epochs, line = run.config.get("steps"), run.config.get("epochs"), run.config.get("log_every") or 1
    ended = [step + line > steps] if steps else []
    # Four digits of the epoch are written.
    ended += [epoch * (1 + (line - 1) / max(step, 1)) >= epochs * 0.999] if epochs else []
    if most := run.config.get("max_time"):
        seconds = [float(row["seconds"]) for row in rows]
        # Lines are a fixed number of steps apart, but not of seconds.
        ended.append(seconds[-1] + max(b - a for a, b in pairwise([0.0, *seconds])) >= most)
    return None if any(ended) else goes_on


def _model_options(model: Mapping[str, Any]) -> dict[str, Any]:
    """Name and options of a model, without defaults and without options of how it is given images."""
    quiet = {"pretrained", *wrapper_options()}
    return {key: value for key, value in _without_defaults(model).items() if key not in quiet}


def _without_defaults(model: Mapping[str, Any]) -> dict[str, Any]:
    """Name and options of a model, without defaults."""
    signatures = (inspect.signature(WholeImage), inspect.signature(constructor(model["name"])))
    defaults = {"pretrained": False} | {
        key: spec.default for signature in signatures for key, spec in signature.parameters.items()
    }
    defaults = plain(defaults)  # as YAML gives them: lists for tuples
    return {
        key: value
        for key, value in plain(model).items()
        if key not in _SAME_MODEL
        and not (key in defaults and (defaults[key] == value or (defaults[key] is None and value == {})))
    }


def _way(config: Mapping[str, Any]) -> dict[str, Any]:
    way = {key: value for key, value in config.items() if key not in _SAME_RESULT}
    way["data"] = {key: value for key, value in config["data"].items() if key not in _SAME_DATA}
    way["model"] = _without_defaults(config["model"])
    # "32" and "32-true" are the same.
    way["precision"] = str(config["precision"]).removesuffix("-true")
    # Older versions did not write every option: one that is missing is not set. 4.0 is 4.
    return {
        key: int(value) if isinstance(value, float) and value.is_integer() else value
        for key, value in _flat(way)
        if value is not None
    }


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


_IN_WORDS = ("epochs", "steps", "max_time", "data.train", "optimiser.schedule", "batch_size", "precision")
"""Settings that `_how` writes for every run."""


def _how(config: Mapping[str, Any]) -> str:
    limits = {
        "epochs": f"{config['epochs']:g} epochs" if config.get("epochs") else "",
        "steps": f"{config['steps']:,} steps" if config.get("steps") else "",
        "max_time": f"{config['max_time']:,g} s" if config.get("max_time") else "",
    }
    # The run ended at the first limit.
    length = " or ".join(filter(None, limits.values()))
    few = config["data"].get("train")
    of = f" of {few:,} images" if few else ""
    precision = "" if str(config["precision"]).startswith("32") else f", {config['precision']}"
    return f"{length}{of}, {config['optimiser']['schedule']}, batches of {config['batch_size']}{precision}"


def _unusual(way: Mapping[str, Any], others: list[dict[str, Any]], usual: Mapping[str, Any]) -> str:
    """The settings that differ from the table's, or from other lines of the row, as flags."""
    keys = [*usual, *(key for key in way if key not in (*usual, *_IN_WORDS))]
    different = [
        key
        for key in keys
        if (way.get(key) != usual[key] if key in usual else any(other.get(key) != way[key] for other in others))
    ]
    return "".join(f", {key} {_value(way.get(key))}" for key in different)


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)


def _row(line: Mapping[str, Any], key: str, about: Mapping[str, Any], found: list[_RunResult]) -> PaperRow:
    model = {"name": line["model"]} if isinstance(line.get("model"), str) else line.get("model")
    by_way: dict[str, list[_RunResult]] = {}
    for run in found:
        if run.data == about["data"] and run.model == model:
            by_way.setdefault(json.dumps(run.way, sort_keys=True), []).append(run)
    ways = [runs[0].way for runs in by_way.values()]
    claimed, published = line.get("claimed", {}).get(key), line.get("published", {}).get(key)
    parameters, macs = (line.get("cost") or {}).get(about["data"], (None, None))
    return PaperRow(
        name=line["row"],
        section=line["section"],
        data=key,
        model=model,
        recipe=f"{about['data']}/{line['recipe']}" if "recipe" in line else None,
        claimed=tuple(claimed) if isinstance(claimed, list) else claimed,
        published=tuple(PublishedNumber(*entry) for entry in published) if isinstance(published, list) else published,
        measured=tuple(
            _averaged(runs, about["metric"], _unusual(runs[0].way, ways, about["usual"]))
            for runs in sorted(by_way.values(), key=len, reverse=True)
        ),
        parameters=parameters,
        macs=macs,
    )


def _averaged(runs: list[_RunResult], metric: str, unusual: str) -> TrainedRuns:
    values = [getattr(run, metric) for run in runs]
    timed = [run for run in runs if run.milliseconds is not None]
    # Times of different machines are not compared.
    fastest = min(timed, key=lambda run: run.milliseconds or 0) if len({run.machine for run in timed}) == 1 else None
    return TrainedRuns(
        how=runs[0].how + unusual,
        mean=statistics.fmean(values),
        deviation=statistics.stdev(values) if len(values) > 1 else None,
        best=max(values),
        milliseconds=None if fastest is None else fastest.milliseconds,
        device=None if fastest is None else fastest.machine[0],
        seeds=tuple(run.seed for run in runs),
        runs=tuple(run.folder for run in runs),
    )


class _TableLine(NamedTuple):
    """A line of a row: one published number, one way of training, or both. Cells of the whole row are in the first."""

    row: PaperRow
    first: bool
    published: PublishedNumber | str | None
    measured: TrainedRuns | None


def _lines(row: PaperRow) -> list[_TableLine]:
    published = row.published if isinstance(row.published, tuple) else (row.published,)
    pairs = zip_longest(published or (None,), row.measured or (None,))
    return [_TableLine(row, not number, paper, group) for number, (paper, group) in enumerate(pairs)]


def _mean(group: TrainedRuns) -> str:
    return fixed(group.mean, 2) + ("" if group.deviation is None else f" ± {fixed(group.deviation, 2)}")


def _as_table(title: str, rows: list[PaperRow], wide: bool) -> Table:
    macs = unit_for("MAC", [row.macs for row in rows])

    def once(cell: Callable[[PaperRow], str]) -> Callable[[_TableLine | str], str]:
        return lambda line: cell(line.row) if isinstance(line, _TableLine) and line.first else ""

    def measured(cell: Callable[[TrainedRuns], str]) -> Callable[[_TableLine | str], str]:
        return lambda line: cell(line.measured) if isinstance(line, _TableLine) and line.measured else ""

    def published(line: _TableLine | str, part: str) -> str:
        found = None if isinstance(line, str) else line.published
        if isinstance(found, PublishedNumber):
            return str(getattr(found, part))
        return found if found is not None and part == "value" else ""

    columns = [
        Column("", lambda line: line if isinstance(line, str) else line.row.name, NAME),
        Column(
            "claimed",
            once(lambda row: row.claimed if isinstance(row.claimed, str) else " / ".join(map(str, row.claimed or ()))),
            TEXT,
        ),
        Column("published", partial(published, part="value")),
        Column("source", partial(published, part="source"), TEXT),
        Column("measured", measured(_mean)),
        Column("runs", measured(lambda m: str(len(m.runs)))),
    ]
    if wide:
        columns += [
            Column("best", measured(lambda m: fixed(m.best, 2))),
            Column("ms", measured(lambda m: significant(m.milliseconds))),
            Column("on", measured(lambda m: m.device or ""), TEXT),
            Column("parameters", once(lambda row: "" if row.parameters is None else f"{row.parameters:,}")),
            Column(macs.name, once(lambda row: macs(row.macs))),
        ]
    lines: list[_TableLine | str | None] = []
    for section, group in groupby(rows, key=lambda row: row.section):
        lines += [*([None] if lines else []), f"{section}:", *(line for row in group for line in _lines(row))]
    return Table(title, columns, lines)

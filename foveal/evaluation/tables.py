"""Tables of published results beside one's own: claimed, published and measured numbers, each in a column of its own.

Rows, claims and sources are package data, one YAML file a table. Measured numbers come from run folders and from nothing else: a
run counts for a row if its model has the row's name and options, it was trained to its end, and `foveal evaluate` has seen all
test images. Runs are averaged over seeds only; whatever else differs makes them another line.

Example:
    >>> found = table("cifar", "no/such/folder")
    >>> row = next(row for row in found.rows if row.name == "SE-ResNet-110" and row.data == "cifar10")
    >>> row.claimed, row.published[0].value, row.measured
    ((95.2, 95.3), 94.79, ())
"""

from __future__ import annotations

import csv
import difflib
import inspect
import json
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from foveal.errors import ConfigError, FovealError
from foveal.runs import CARD, METRICS, WEIGHTS, Run, constructor, wrapper_options

if TYPE_CHECKING:
    from rich.table import Table

NOT_FOUND = "not found"
"""What stands where somebody looked for a number and there was none."""

_SAME_RESULT = (
    "seed", "device", "devices", "strategy", "workers", "compile", "channels_last", "save_every", "val_every", "log_every", "locations",
    "tensorboard",
)  # fmt: skip
_SAME_DATA = ("root", "download")


class Published(NamedTuple):
    """A published number, in %, and the key of its source."""

    value: float
    source: str


@dataclass(frozen=True)
class Measured:
    """Runs that differ in nothing but their seed.

    Attributes:
        how: length, schedule and scale, in words.
        mean, best: accuracy in %.
        deviation: sample standard deviation, None of a single run.
        milliseconds: an image, at the best batch; of the fastest run, None where none was timed.
        seeds: of the runs.
        runs: their folders.
    """

    how: str
    mean: float
    deviation: float | None
    best: float
    milliseconds: float | None
    seeds: tuple[int, ...]
    runs: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """One model on one data set.

    Attributes:
        name: what the row is called.
        section: the heading it stands under.
        data: key of the table.
        model: name and options, None for a row that nothing can be run for.
        recipe: name of its recipe, None where there is none.
        claimed: numbers of the document or the abstract; several where they contradict each other; `NOT_FOUND`; or None: not its subject.
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
    published: tuple[Published, ...] | str | None
    measured: tuple[Measured, ...]
    parameters: int | None
    macs: int | None


@dataclass(frozen=True)
class Tables:
    """Result of `table`: ``titles`` by key of ``Row.data``, ``sources`` by key, and run folders that were left out, with the reason."""

    name: str
    titles: Mapping[str, str]
    sources: Mapping[str, str]
    rows: tuple[Row, ...]
    left_out: tuple[tuple[str, str], ...]

    def as_dict(self) -> dict[str, Any]:
        """Everything, as JSON can write it."""
        values = asdict(self)
        for row, plain in zip(self.rows, values["rows"], strict=True):
            if isinstance(row.published, tuple):
                plain["published"] = [p._asdict() for p in row.published]
        return values

    def tables(self) -> Iterator[Table]:
        """One table a data set, for rich to print; rows for which there is no number yet are left out."""
        for data, title in self.titles.items():
            yield _drawn(title, [row for row in self.rows if row.data == data and (row.claimed or row.published or row.measured)])


def names() -> list[str]:
    """The tables there are."""
    return sorted(file.name.removesuffix(".yaml") for file in files("foveal.evaluation").joinpath("tables").iterdir())


def table(name: str, runs: str | Path = "runs") -> Tables:
    """A published table beside what the runs in a folder have reached.

    Args:
        name: see `names`.
        runs: searched to the bottom.

    Raises:
        ConfigError: there is no such table.
    """
    if name not in names():
        near = difflib.get_close_matches(name, names(), 1)
        raise ConfigError(f"{name}: there is no table of this name; {'did you mean' if near else 'use'} {' or '.join(near or names())}")
    content = yaml.safe_load(files("foveal.evaluation").joinpath("tables", f"{name}.yaml").read_text(encoding="utf-8"))
    found: list[_Result] = []
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
    rows = tuple(_row(line, key, about, found) for key, about in content["tables"].items() for line in content["rows"])
    used = {run for row in rows for group in row.measured for run in group.runs}
    left_out += [(run.folder, "its model, with these options, is no row") for run in found if run.folder not in used]
    titles = {key: about["title"] for key, about in content["tables"].items()}
    return Tables(name, titles, content["sources"], rows, tuple(left_out))


class _Result(NamedTuple):
    """What one run folder says."""

    folder: str
    data: str
    model: dict[str, Any]
    seed: int
    way: str
    how: str
    accuracy: float
    top5: float | None
    milliseconds: float | None


def _result(folder: Path, tables: Mapping[str, Any]) -> _Result | str | None:
    """The result of a run; why it has none; or None where it is about something else."""
    run = Run(folder)
    data = run.config.get("data") or {}
    about = next((about for about in tables.values() if about["data"] == data.get("name")), None)
    if about is None:
        return None
    if not _finished(run):
        return "is not trained to its end; go on by --resume"
    file = folder / "evaluation.json"
    if not file.is_file() or file.stat().st_mtime < (folder / WEIGHTS).stat().st_mtime:
        return f"has no evaluation of these weights; foveal evaluate {folder}"
    try:
        evaluation = json.loads(file.read_text())
        point = next(point for point in evaluation["points"] if point["kind"] == "learned")
        if point["images"] != about["images"] or evaluation["split"] == "train":
            return f"was evaluated on {point['images']:,} {evaluation['split']} images, not on the {about['images']:,} of the table"
        batched = point.get("batched") or {}
        config = run.config
        return _Result(
            str(folder), data["name"], _told(run.card["model"]), config["seed"], _way(config), _how(config), 100 * point["accuracy"],
            None if point["top5"] is None else 100 * point["top5"], batched.get("p50"),
        )  # fmt: skip
    except (ValueError, KeyError, TypeError, StopIteration):
        return f"its evaluation.json or config.yaml is damaged; foveal evaluate {folder}"


def _finished(run: Run) -> bool:
    """Whether the last line of metrics.csv is as near to the end as lines are to each other."""
    file = run.path / METRICS
    if not file.is_file() or not (run.path / WEIGHTS).is_file():
        return False
    with file.open(newline="") as lines:
        last = next(iter(list(csv.DictReader(lines))[-1:]), None)
    if last is None:
        return False
    step = int(last["step"])
    steps, epochs, line = run.config.get("steps"), run.config.get("epochs"), run.config.get("log_every") or 1
    ended = [step + line > steps] if steps else []
    # Four digits of the epoch are written.
    ended += [float(last["epoch"]) * (1 + (line - 1) / max(step, 1)) >= epochs * 0.999] if epochs else []
    return any(ended) or bool(run.config.get("max_time"))


def _told(model: Mapping[str, Any]) -> dict[str, Any]:
    """Name and options of a model, without what says how images are given to it and without the defaults of its constructor."""
    defaults = {key: spec.default for key, spec in inspect.signature(constructor(model["name"])).parameters.items()}
    quiet = {"num_classes", "pretrained", *wrapper_options()}
    return {key: value for key, value in model.items() if key not in quiet and not (key in defaults and defaults[key] == value)}


def _way(config: Mapping[str, Any]) -> str:
    """Everything that could change the result, except the seed."""
    way = {key: value for key, value in config.items() if key not in _SAME_RESULT}
    way["data"] = {key: value for key, value in config["data"].items() if key not in _SAME_DATA}
    return json.dumps(way, sort_keys=True)


def _how(config: Mapping[str, Any]) -> str:
    length = f"{config['epochs']:g} epochs" if config.get("epochs") else f"{config['steps']:,} steps" if config.get("steps") else "by time"
    few = config["data"].get("train")
    of = f" of {few:,} images" if few else ""
    precision = "" if str(config["precision"]).startswith("32") else f", {config['precision']}"
    return f"{length}{of}, {config['optimiser']['schedule']}, batches of {config['batch_size']}{precision}"


def _row(line: Mapping[str, Any], key: str, about: Mapping[str, Any], found: list[_Result]) -> Row:
    model = {"name": line["model"]} if isinstance(line.get("model"), str) else line.get("model")
    by_way: dict[str, list[_Result]] = {}
    for run in found:
        if run.data == about["data"] and run.model == model:
            by_way.setdefault(run.way, []).append(run)
    claimed, published = line.get("claimed", {}).get(key), line.get("published", {}).get(key)
    parameters, macs = (line.get("cost") or {}).get(about["data"], (None, None))
    return Row(
        name=line["row"],
        section=line["section"],
        data=key,
        model=model,
        recipe=f"{about['data']}/{line['recipe']}" if "recipe" in line else None,
        claimed=tuple(claimed) if isinstance(claimed, list) else claimed,
        published=tuple(Published(*entry) for entry in published) if isinstance(published, list) else published,
        measured=tuple(_averaged(runs, about["metric"]) for runs in sorted(by_way.values(), key=len, reverse=True)),
        parameters=parameters,
        macs=macs,
    )


def _averaged(runs: list[_Result], metric: str) -> Measured:
    values = [getattr(run, metric) for run in runs]
    timed = [run.milliseconds for run in runs if run.milliseconds is not None]
    return Measured(
        how=runs[0].how,
        mean=statistics.fmean(values),
        deviation=statistics.stdev(values) if len(values) > 1 else None,
        best=max(values),
        milliseconds=min(timed, default=None),
        seeds=tuple(run.seed for run in runs),
        runs=tuple(run.folder for run in runs),
    )


def _drawn(title: str, rows: list[Row]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    drawn = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    drawn.add_column("")
    for name in ("claimed", "published", "measured", "best", "runs"):
        drawn.add_column(name, justify="right")
    drawn.add_column("trained")
    for name in ("ms/image", "parameters", "MACs"):
        drawn.add_column(name, justify="right")
    section = None
    for row in rows:
        if row.section != section:
            section = row.section
            drawn.add_section()
            drawn.add_row(f"[bold]{section}")
        claimed = row.claimed if isinstance(row.claimed, str) else " / ".join(map(str, row.claimed or ()))
        published = row.published if isinstance(row.published, str) else "\n".join(f"{p.value} {p.source}" for p in row.published or ())
        cost = ("" if row.parameters is None else f"{row.parameters:,}", "" if row.macs is None else f"{row.macs / 1e6:,.0f} M")
        for i, group in enumerate(row.measured or (None,)):
            first = (row.name, claimed, published) if i == 0 else ("", "", "")
            drawn.add_row(*first, *_measured_cells(group), *(cost if i == 0 else ("", "")))
    return drawn


def _measured_cells(group: Measured | None) -> tuple[str, ...]:
    if group is None:
        return ("", "", "", "", "")
    spread = "" if group.deviation is None else f" ± {group.deviation:.2f}"
    speed = "" if group.milliseconds is None else f"{group.milliseconds:.3g}"
    return f"{group.mean:.2f}{spread}", f"{group.best:.2f}", str(len(group.runs)), group.how, speed

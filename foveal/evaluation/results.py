"""Results of evaluations: named metrics, costs, and the circumstances. Each is a table, a JSON file and a picture.

Example:
    >>> point = Scored(images=100, metrics={"accuracy": Metric(0.9, (0.82, 0.95)), "nll": Metric(0.3)})
    >>> point.accuracy, point.metrics["nll"].value, to_json(point)
    (0.9, 0.3, {'images': 100, 'accuracy': 0.9, 'interval': [0.82, 0.95], 'nll': 0.3})
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from foveal.display import Column, significant, unit_for
from foveal.evaluation.protocol import Strategy
from foveal.evaluation.timing import Timing
from foveal.files import taking_turns
from foveal.glimpse.base import GlimpseClassifier
from foveal.metrics import METRICS, Metric, flat
from foveal.prediction.cost import count_cost

if TYPE_CHECKING:
    from rich.console import Group

INTERVALS = "±: 95 % interval, the longer of its two sides."
"""The sentence below a table with intervals."""
ELSEWHERE = "make room, or choose another folder"
"""What to do where a result cannot be written."""


@dataclass(frozen=True, kw_only=True)
class Result(ABC):
    """What an evaluation found.

    Attributes:
        file, picture: names of the files that `write` writes.
        about: on what, where and how it was found.
        errors: (path or name, one sentence) of each image that could not be read; such an image counts nowhere.
    """

    file: ClassVar[str]
    picture: ClassVar[str]

    about: dict[str, Any]
    errors: tuple[tuple[str, str], ...] = ()

    @abstractmethod
    def table(self, wide: bool = False) -> Group:
        """The result for people, to be printed by rich; every column if ``wide``."""

    @abstractmethod
    def draw(self, file: Path) -> None:
        """Draw the result into a PNG file."""

    def pictures(self) -> dict[str, Callable[[Path], None]]:
        """Functions that draw a PNG file, by its name."""
        return {self.picture: self.draw}

    def as_dict(self) -> dict[str, Any]:
        """Content of the JSON file."""
        own = {f.name: to_json(getattr(self, f.name)) for f in fields(self) if f.name not in ("about", "errors")}
        return {**self.about, **own, "errors": [{"image": image, "error": error} for image, error in self.errors]}

    def write(self, folder: str | Path) -> None:
        """Write the JSON file and the picture into a folder, which is made; waits for another process that writes them.

        Raises:
            StorageError: one of them cannot be written; the folder keeps both old ones, or has none.
        """
        with ExitStack() as files:
            numbers = files.enter_context(taking_turns(Path(folder) / self.file, ELSEWHERE))
            numbers.write_text(json.dumps(self.as_dict(), indent=2) + "\n")
            for name, draw in self.pictures().items():
                draw(files.enter_context(taking_turns(Path(folder) / name, ELSEWHERE)))


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Metrics of some images.

    Attributes:
        images: how many were classified.
        metrics: by name, see `foveal.metrics`.
    """

    images: int | None
    metrics: Mapping[str, Metric]

    @property
    def accuracy(self) -> float | None:
        """Share of images whose most probable class is the label."""
        return self.metrics["accuracy"].value

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % confidence interval of the accuracy."""
        return self.metrics["accuracy"].interval


@dataclass(frozen=True, kw_only=True)
class OperatingPoint(Scored):
    """Metrics and costs of a model at some locations.

    Attributes:
        locations: looks per grid at each level.
        total_locations: looks at an image beyond the first, mean; None for a model without weights, which classifies
            nothing.
        macs: multiply-accumulates of the image of median area.
        parameters: trainable ones.
        single, batched: timed at batch 1 and at the best batch; None where nothing was timed.
    """

    locations: tuple[int, ...]
    total_locations: float | None
    macs: int
    parameters: int
    single: Timing | None = None
    batched: Timing | None = None


def point_costs(
    model: GlimpseClassifier,
    size: tuple[int, int],
    strategy: Strategy,
    timings: Mapping[tuple[int, ...], tuple[Timing, Timing]],
) -> dict[str, Any]:
    """The costs of an `OperatingPoint`, by name; learned looks alone are timed.

    Args:
        model: the model.
        size: (height, width) of the image whose operations are counted.
        strategy: of the point.
        timings: see `foveal.evaluation.measure_locations`.
    """
    cost = count_cost(model, size, strategy.locations, strategy.policy)
    single, batched = timings.get(strategy.locations, (None, None)) if strategy.kind == "learned" else (None, None)
    return {"macs": cost.macs, "parameters": cost.parameters, "single": single, "batched": batched}


def to_json(value: Any) -> Any:
    """A result as JSON holds it: data classes are mappings, and metrics are further keys of them, see `flat`.

    JSON has no NaN and no infinity: they are None.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if is_dataclass(value):
        content: dict[str, Any] = {}
        for f in fields(value):
            inner = getattr(value, f.name)
            content |= to_json(flat(inner)) if f.name == "metrics" else {f.name: to_json(inner)}
        return content
    if isinstance(value, Mapping):
        return {key: to_json(each) for key, each in value.items()}
    return [to_json(each) for each in value] if isinstance(value, tuple | list) else value


# ---- columns of tables


def metric_column(name: str, after: bool = False) -> Column:
    """The column of a metric; empty for rows without metrics.

    Args:
        name: key of the metric.
        after: the metric is one with logits divided by the temperature; its key is ``<registered name>_after``.
    """
    definition = METRICS[name.removesuffix("_after") if after else name]
    what, comma, unit = definition.header.partition(",")

    def cell(row: Any) -> str:
        return definition.show(row.metrics[name]) if hasattr(row, "metrics") else ""

    return Column(f"{what} at T{comma}{unit}" if after else definition.header, cell)


class Costed(Protocol):
    """A row of a table with costs, counted and perhaps timed."""

    @property
    def macs(self) -> int | None: ...
    @property
    def parameters(self) -> int | None: ...


def cost_columns(rows: Sequence[Costed], front: Callable[[Any], Container[str]] = lambda row: ()) -> list[Column]:
    """Columns of the cost of an image: multiply-accumulates, and time and memory where they were measured.

    Args:
        rows: the rows of the table; every column has one unit.
        front: the costs, of ``macs``, ``ms`` and ``memory``, at which a row is marked.
    """
    macs = unit_for("MAC", [row.macs for row in rows])
    memory = unit_for("B", [one.peak_memory for one in _timings(rows, "single")])

    def marked(kind: str, cell: Callable[[Any], str]) -> Callable[[Any], str]:
        return lambda row: f"{cell(row)} *" if kind in front(row) else cell(row)

    return [
        Column(macs.name, marked("macs", lambda row: macs(row.macs))),
        Column("ms", marked("ms", _of_timing("single", lambda one: significant(one.p50)))),
        Column(memory.name, marked("memory", _of_timing("single", lambda one: memory(one.peak_memory)))),
    ]


def wide_cost_columns(rows: Sequence[Costed]) -> list[Column]:
    """Further columns of the cost of an image."""
    read = unit_for("B", [one.bytes_read for one in _timings(rows, "single")])
    return [
        Column("parameters", lambda row: "" if row.parameters is None else f"{row.parameters:,}"),
        Column(f"{read.name} read", _of_timing("single", lambda one: read(one.bytes_read))),
        Column("ms, p95", _of_timing("single", lambda one: significant(one.p95))),
        Column("best batch", _of_timing("batched", lambda many: f"{many.batch_size:,}")),
        Column("ms at best batch", _of_timing("batched", lambda many: significant(many.p50))),
        Column("p95 at best batch", _of_timing("batched", lambda many: significant(many.p95))),
    ]


def _timings(rows: Sequence[Costed], which: str) -> list[Timing]:
    return [timing for row in rows if (timing := getattr(row, which, None)) is not None]


def _of_timing(which: str, cell: Callable[[Timing], str]) -> Callable[[Any], str]:
    """A cell of a timing, empty for rows that were not timed."""
    return lambda row: "".join(map(cell, _timings([row], which)))

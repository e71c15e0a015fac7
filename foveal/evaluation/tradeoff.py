"""Accuracy against cost of one model, at several locations, with random looks, other policies and dense networks.

Example:
    >>> from foveal.data import get_data
    >>> from foveal.models import create_model
    >>> data = get_data("digits", canvas=96, digit=(12, 16), train=10, val=10, test=20)
    >>> model = create_model("tnet", backbone="test_efficientnet", num_classes=10, base_size=32, locations=(2,))
    >>> result = evaluate(model, data, measure="none")
    >>> [(point.kind, point.locations, point.total_locations) for point in result.points]
    [('learned', (), 0.0), ('learned', (1,), 1.0), ('learned', (2,), 2.0), ('random', (1,), 1.0), ('random', (2,), 2.0)]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from foveal.data import DataModule
from foveal.display import NAME, TEXT, Column, Table, counted, fixed, image_size, percent, printable, stacked
from foveal.errors import ConfigError
from foveal.evaluation.drawing import (
    ACCURACY,
    INK,
    ORANGE,
    draw_confusion,
    draw_series,
    finish,
    png_figure,
    policy_colours,
    verbatim,
)
from foveal.evaluation.protocol import DEFAULT, Bench, Setting, Strategy, strategies_of
from foveal.evaluation.results import (
    INTERVALS,
    OperatingPoint,
    Result,
    cost_columns,
    metric_column,
    point_costs,
    wide_cost_columns,
)
from foveal.evaluation.timing import Measure, check_measure
from foveal.glimpse.base import GlimpseClassifier
from foveal.metrics import METRICS, Answers, ClassMetrics, Metric, class_metrics, confusion_matrix
from foveal.policies import GREEDY
from foveal.prediction.cost import count_cost
from foveal.prediction.locations import format_locations
from foveal.prediction.predictor import Model

if TYPE_CHECKING:
    from rich.console import Group

HOW = (
    "macs: as counted by torch's flop counter, halved, for the image of median area. Milliseconds an image: from "
    "opening it to its class, files in the page cache, one process, batch norms folded as in predictions, locations "
    "in turn; single: at batch 1; batched: at the batch that was fastest for the model's most locations, of those "
    "that a quick measurement has time for. peak_memory, bytes_read: of the first call; memory is the growth of the "
    "process on a CPU, and torch's peak on a GPU."
)


LISTED_CLASSES = 100
"""The most classes of which each has its own metrics."""
PRINTED_CLASSES = 5
"""The most classes that are printed unless the table is wide."""
CONFUSION = "confusion.png"


@dataclass(frozen=True, kw_only=True)
class EvaluatedPoint(OperatingPoint):
    """A model at some locations.

    Attributes:
        kind: ``"learned"`` looks, ``"random"`` looks of the same model, or those of another policy, by its name; or
            ``"against"``, another model.
        name: of the model.
        coverage: share of the image inside the boxes of the looks beyond the first, mean.
        classes: metrics of each class; empty for more than `LISTED_CLASSES`.
        confusion: images by (class, predicted class), or for each label by (presence, predicted presence); empty for
            more than `LISTED_CLASSES`.
        diversity: distance between two of them, in units where the image's sides span -1 to 1, mean; None with fewer
            than two.
    """

    kind: str
    name: str
    coverage: float
    diversity: float | None
    classes: tuple[ClassMetrics, ...] = ()
    confusion: tuple[Any, ...] = ()


@dataclass(frozen=True)
class DenseCost:
    """The cost of the bare backbone on the whole image at a (height, width); None where it takes no such image."""

    name: str
    size: tuple[int, int]
    macs: int | None
    parameters: int | None


@dataclass(frozen=True, kw_only=True)
class Evaluation(Result):
    """Result of `evaluate`."""

    file: ClassVar[str] = "evaluation.json"
    picture: ClassVar[str] = "tradeoff.png"

    points: tuple[EvaluatedPoint, ...]
    dense: tuple[DenseCost, ...]

    def table(self, wide: bool = False) -> Group:
        tables = [
            _table(self, wide),
            _metrics_table(self, wide),
            *_class_tables(self, wide),
            *_policy_tables(self, wide),
        ]
        return stacked(*tables, _legend(self))

    def pictures(self) -> dict[str, Callable[[Path], None]]:
        """The curve and, up to `LISTED_CLASSES`, the confusion matrix."""
        more = {CONFUSION: self.draw_confusion} if self._own.confusion else {}
        return {self.picture: self.draw, **more}

    @property
    def _own(self) -> EvaluatedPoint:
        """The point with the most looks by the policy of predictions."""
        kind = Strategy((), self.about.get("policy", GREEDY.name)).kind
        points = [p for p in self.points if p.kind == kind or (p.kind == "learned" and not p.locations)]
        return max(points, key=lambda point: point.total_locations or 0)

    def draw_confusion(self, file: Path) -> None:
        """The confusion matrix at the most locations; for labels the four counts of each."""
        own = self._own
        draw_confusion(
            file,
            np.array(own.confusion),
            [printable(one.name) for one in own.classes],
            f"{self.about['model']}: {self.about['data']}, {self.about['split']}, {_at(own)}",
        )

    def draw(self, file: Path) -> None:
        """Accuracy against MACs: policies are curves, other models are points, costs of dense networks are lines."""
        colours = policy_colours(point.kind for point in self.points)
        curves = [(kind, f"{kind} looks", colour) for kind, colour in colours.items()]
        with png_figure(file, 7.5, 4.8) as figure:
            axes = figure.add_subplot()
            for kind, label, colour in (*curves, ("against", None, ORANGE)):
                points = sorted((point for point in self.points if point.kind == kind), key=lambda point: point.macs)
                style = {"marker": "s" if kind == "against" else "o", "label": label}
                style["linestyle"] = {"against": "none", "learned": "-"}.get(kind, "--")
                if points:
                    macs = [point.macs for point in points]
                    draw_series(axes, macs, [point.metrics["accuracy"] for point in points], colour, **style)
                for point in points if kind in ("learned", "against") else ():
                    text = point.name if kind == "against" else format_locations(point.locations)
                    at, offset = (point.macs, 100 * (point.accuracy or 0)), (6, -12)
                    axes.annotate(verbatim(text), at, offset, textcoords="offset points", color=colour, fontsize=8)
            for cost in self.dense:
                if cost.macs is not None:
                    axes.axvline(cost.macs, color=INK, linestyle=":", linewidth=1)
                    at, units = (cost.macs, 0.02), ("data", "axes fraction")
                    axes.annotate(cost.name, at, (-4, 0), units, "offset points", rotation=90, ha="right", fontsize=8)
            axes.set_xscale("log")
            about = self.about
            heading = f"{about['model']}: {about['data']}, {about['split']}"
            axes.set_title(verbatim(heading), fontsize=10, loc="left")
            finish(axes, xlabel="multiply-accumulates an image", ylabel=ACCURACY)


def evaluate(
    model: Model,
    data: DataModule,
    *,
    locations: int | Sequence[int | Sequence[int]] | None = None,
    policies: Sequence[str] = (),
    against: Model | Sequence[Model] = (),
    measure: Measure = "quick",
    setting: Setting = DEFAULT,
) -> Evaluation:
    """Find accuracy and cost of a model at several locations.

    Args:
        model: a classifier, a dense network, or a run folder.
        data: images with labels.
        locations: looks per grid at each level, several times, see `foveal.prediction.parse_location_sweep`; if None,
            from none to the model's own.
        policies: policies to try besides learned and random looks. ``exhaustive`` takes every cell: it gets one
            point for each number of levels, at the locations that it amounts to.
        against: other models, for example dense networks, each at its own locations.
        measure: how long time and memory are measured, after accuracy: ``"quick"``, about 20 s in all; ``"full"``, 0.5
            s and longer for each number; ``"none"``. See `foveal.evaluation.measure_locations`.
        setting: which images, and how. Progress is reported for ``"accuracy"``, in looks at a batch, then
            ``"timings"``.

    Raises:
        ConfigError: locations, a policy or an option that does not fit.
        DataError: other classes than the model's, no such split, or no image that can be read.
        RunError: a run folder is missing or damaged.
    """
    check_measure(measure)
    others = against if isinstance(against, list | tuple) else [against]
    bench = Bench([model, *others], data, setting)
    strategies = {name: [Strategy(tuple(each.locations), each.usual_policy)] for name, each in bench.models.items()}
    name, first = next(iter(bench.models.items()))
    strategies[name] = strategies_of(first, locations, policies)
    looks = sum(strategy.looks for its in strategies.values() for strategy in its)
    step = setting.steps("accuracy", looks * len(bench.loader([])))
    passes = {of: bench.score(each, strategies[of], on_step=step) for of, each in bench.models.items()}
    learned = {of: [s.locations for s in its if s.kind == "learned" or of != name] for of, its in strategies.items()}
    timings = bench.time(learned, {of: found.places for of, found in passes.items()}, measure)
    points = [
        EvaluatedPoint(
            kind=scores.strategy.kind if of == name else "against",
            name=of,
            locations=scores.locations,
            total_locations=float(scores.looks.number.mean()),
            coverage=float(scores.looks.coverage.mean()),
            diversity=scores.looks.mean_diversity,
            images=len(scores.answers),
            metrics=bench.measure(scores.answers),
            **_of_classes(scores.answers, data.classes),
            **point_costs(
                bench.models[of],
                found.size,
                scores.strategy if of == name else Strategy(scores.strategy.locations),
                timings[of],
            ),
        )
        for of, found in passes.items()
        for scores in found.scores
    ]
    size = passes[name].size
    answers = passes[name].scores[0].answers
    about = {
        "model": name,
        "image_size": list(size),
        **bench.circumstances(),
        "policy": first.usual_policy,
        "task": first.task.name,
        "thresholds": [[data.classes[index], threshold] for index, threshold in first.task.thresholds],
        "positive": None if answers.positive is None else data.classes[answers.positive],
        "measure": measure,
        "how": HOW,
    }
    return Evaluation(about=about, points=tuple(points), dense=_dense(first, size), errors=bench.failed())


def _of_classes(answers: Answers, names: Sequence[str]) -> dict[str, Any]:
    """The fields of a point about classes."""
    if len(names) > LISTED_CLASSES:
        return {}
    table = confusion_matrix(answers).tolist()
    return {"classes": class_metrics(answers, names), "confusion": tuple(table)}


def _dense(model: GlimpseClassifier, full: tuple[int, int]) -> tuple[DenseCost, ...]:
    try:
        network, costs = model.dense(), []
    except ConfigError:  # a model of features has none
        return ()
    for name, size in (("dense, thumbnail", model.size), ("dense, full size", full)):
        try:
            cost = count_cost(network, size)
        except ConfigError:
            costs.append(DenseCost(name, size, None, None))
        else:
            costs.append(DenseCost(name, size, cost.macs, cost.parameters))
    return tuple(costs)


def _table(evaluation: Evaluation, wide: bool) -> Table:
    """A row for each point of the model, below them other models and the costs of the dense network."""
    about, costs = evaluation.about, evaluation.dense
    learned, against = ([point for point in evaluation.points if point.kind == kind] for kind in ("learned", "against"))
    random = {
        p.locations: METRICS["accuracy"].show(p.metrics["accuracy"]) for p in evaluation.points if p.kind == "random"
    }

    def of_point(cell: Callable[[EvaluatedPoint], str]) -> Callable[[EvaluatedPoint | DenseCost], str]:
        return lambda row: cell(row) if isinstance(row, EvaluatedPoint) else ""

    def name(row: EvaluatedPoint | DenseCost) -> str:
        if isinstance(row, DenseCost):
            return f"dense, {image_size(row.size)} px"
        return row.name if row.kind == "against" else format_locations(row.locations)

    named: list[EvaluatedPoint | DenseCost] = [*learned, *costs]
    columns = [
        Column("locations", name, NAME, least=max(len("locations"), *(len(name(row)) for row in named))),
        metric_column("accuracy"),
        Column("random looks, %", of_point(lambda p: random.get(p.locations, "") if p.kind == "learned" else "")),
        *cost_columns([*learned, *against, *costs]),
    ]
    if wide:
        columns += [
            Column("looks", of_point(lambda p: fixed(p.total_locations, 1))),
            Column("covered, %", of_point(lambda p: percent(p.coverage))),
            Column("distance", of_point(lambda p: fixed(p.diversity, 2))),
            *wide_cost_columns([*learned, *against, *costs]),
        ]
    images = f"{counted(learned[0].images or 0, 'image')} of {image_size(about['image_size'])} px"
    rows = [*learned, *([None, *against] if against else []), None, *costs]
    return Table(f"{about['model']} on {about['data']}, {about['split']}: {images}", columns, rows)


def _metrics_table(evaluation: Evaluation, wide: bool) -> Table:
    """A row for learned looks at each locations, and one for random looks; a column for each metric."""
    rows: list[EvaluatedPoint] = []
    for point in evaluation.points:
        if point.kind == "learned":
            rows += [point, *(p for p in evaluation.points if (p.kind, p.locations) == ("random", point.locations))]
    chosen = evaluation.about.get("metrics") or [name for name, one in METRICS.items() if one.brief or wide]
    names = [name for name in chosen if rows[0].metrics.get(name, Metric()).value is not None]
    columns = [
        Column("locations", lambda p: format_locations(p.locations), TEXT),
        Column("looks", lambda p: p.kind, TEXT),
        *(metric_column(name) for name in names if name != "accuracy"),
    ]
    return Table("further metrics", columns, rows, keys=2)


def _class_tables(evaluation: Evaluation, wide: bool) -> list[Table]:
    """A row for each class, at the most locations; none for many classes unless ``wide``."""
    own = evaluation._own
    if not own.classes or not (wide or len(own.classes) <= PRINTED_CLASSES):
        return []

    def column(name: str) -> Column:
        header = METRICS[name].header if name in METRICS else f"{name.replace('f1', 'F1')}, %"
        return Column(header, lambda one: percent(*one.metrics[name]))

    columns = [
        Column("class", lambda one: printable(one.name), NAME),
        Column("images", lambda one: f"{one.images:,}"),
        *(column(name) for name in own.classes[0].metrics if wide or name != "auroc"),
    ]
    return [Table(f"classes, at {_at(own)}", columns, own.classes)]


def _at(point: EvaluatedPoint) -> str:
    """The locations of a point, and the policy unless it is the learned one."""
    return f"{format_locations(point.locations)} {'' if point.kind == 'learned' else f'{point.kind} '}locations"


def _legend(evaluation: Evaluation) -> str:
    """Explains the columns of the table."""
    about, legend = evaluation.about, [INTERVALS]
    if (positive := about.get("positive")) is not None and "average_precision" in evaluation._own.known:
        equal = len({one.images for one in evaluation._own.classes}) == 1
        legend.append(f"AP: of the class {printable(positive)}{'' if equal else ', the rarer one'}.")
    if about.get("thresholds"):
        legend.append("Classes are predicted by the thresholds of the run.")
    if any(point.kind == "random" for point in evaluation.points):
        legend.append("random looks: of the same model, drawn without its guidance.")
    if about.get("policy", GREEDY.name) != GREEDY.name:
        legend.append(f"Predictions take {about['policy']} looks, because fit found learned ones worse.")
    if about["measure"] != "none":
        legend.append(f"ms: one image at a time, median, on {about['machine']}.")
    if any(cost.macs is None for cost in evaluation.dense):
        legend.append("The dense network takes no image of the size that has no MACs here.")
    return " ".join(legend)


def _policy_tables(evaluation: Evaluation, wide: bool) -> list[Table]:
    """Accuracy, and the share of the image covered, by policy and locations; none without further policies."""
    points = {(point.kind, point.locations): point for point in evaluation.points if point.kind != "against"}
    kinds = dict.fromkeys(kind for kind, _ in points)
    if not set(kinds) - {"learned", "random"}:
        return []

    def column(places: tuple[int, ...], of: Callable[[EvaluatedPoint], float | None]) -> Column:
        return Column(
            format_locations(places), lambda kind: percent(of(points[kind, places])) if (kind, places) in points else ""
        )

    def table(heading: str, of: Callable[[EvaluatedPoint], float | None]) -> Table:
        every = sorted({places for _, places in points})
        return Table(heading, [Column("policy", str, TEXT), *(column(places, of) for places in every)], kinds)

    tables = [table("accuracy by policy and locations, %", lambda point: point.accuracy)]
    covered = table("share of the image covered by policy and locations, %", lambda point: point.coverage)
    return [*tables, covered] if wide else tables

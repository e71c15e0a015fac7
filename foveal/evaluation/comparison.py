"""Several models on the same images: accuracy, calibration and cost of each.

Accuracy and calibration are over the images that every model could read. Models are timed in turn, so that other load
of the machine affects all of them equally. The policy gap is the accuracy by learned looks minus the accuracy by
random looks, of the same model at the same locations on the same images.

Example:
    >>> from foveal.data import get_data
    >>> from foveal.models import create_model
    >>> data = get_data("digits", canvas=96, digit=(12, 16), train=10, val=10, test=20)
    >>> looks = create_model("tnet", backbone="test_efficientnet", num_classes=10, base_size=32, locations=(2,))
    >>> found = compare([looks, create_model("test_resnet", num_classes=10), "test_vit"], data, measure="none")
    >>> [(point.model, point.locations, point.accuracy is None) for point in found.points]
    [('model', (), False), ('model', (2,), False), ('model 1', (), False), ('test_vit', (), True)]
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from foveal.data import DataModule, Dataset
from foveal.display import NAME, TEXT, Column, Table, counted, fixed, image_size, percent, stacked
from foveal.errors import ConfigError, DataError
from foveal.evaluation.calibration import COLDEST, HOTTEST, fit_temperature
from foveal.evaluation.drawing import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    OTHERS,
    draw_series,
    drawn_boxes,
    finish,
    plain_ticks,
    png_figure,
    verbatim,
    write_beside,
)
from foveal.evaluation.protocol import (
    DEFAULT,
    Bench,
    Scores,
    Setting,
    Strategy,
    check_setting,
    names_of,
    path_of,
    plain_split,
    sweep_of,
)
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
from foveal.metrics import METRICS, Answers, Metric, paired_interval
from foveal.models import create_classifier, list_models
from foveal.prediction.cost import count_cost
from foveal.prediction.locations import format_locations
from foveal.prediction.predictor import Model, Predictor
from foveal.runs import Run

if TYPE_CHECKING:
    from rich.console import Group

HOW = (
    "metrics: over the images that every model could read. interval: 95 %, Wilson. gap: accuracy by learned looks "
    "minus that by random looks at the same locations; its interval: 95 %, for paired proportions, Wald's with half "
    "an image added to each cell (Agresti and Min, Statistics in Medicine 24, 2005). nll: nats. ece: 15 equally wide "
    "bins of the confidence. temperature: makes the labels of the validation images most likely, from 0.05 to 20; "
    "nll_after and ece_after: with logits divided by it. macs: as counted by torch's flop counter, halved, for the "
    "image of median area. Milliseconds an image: from opening it to its class, files in the page cache, one process, "
    "batch norms folded as in predictions, models in turn; single: at batch 1; batched: at the batch that was fastest "
    "for the model's most locations, of those that a quick measurement has time for. peak_memory, bytes_read: of the "
    "first call; memory is the growth of the process on a CPU, without weights, and torch's peak on a GPU, with them. "
    "front: the costs at which no model here is at least as accurate and as cheap, and better in one; random looks "
    "are not compared."
)

COSTS = {
    "macs": "multiply-accumulates an image",
    "ms": "milliseconds an image, at batch 1",
    "memory": "peak memory at batch 1, MB",
}
"""The costs that accuracy is drawn against, with the labels of their axes."""
PAGE = 4096
"""Bytes of a page. Memory on a CPU is counted in pages; a logarithmic axis has no 0."""


@dataclass(frozen=True, kw_only=True)
class ComparedPoint(OperatingPoint):
    """A model at some locations, among other models.

    Besides the registered metrics, ``metrics`` has ``random``, the accuracy of random looks at the same locations;
    ``gap``, the accuracy minus that, with its interval (`foveal.metrics.paired_interval`); and ``nll_after`` and
    ``ece_after``, with logits divided by the temperature. A metric that is not defined has the value None; a model
    without weights has none.

    Attributes:
        model: its run folder or name.
        temperature: fitted on the validation images; None where there are none.
        front: those of `COSTS` at which no other model is more accurate without costing more, see `pareto`.
    """

    model: str
    temperature: float | None = None
    front: tuple[str, ...] = ()

    def cost(self, kind: str) -> float | None:
        """One of `COSTS`: multiply-accumulates, milliseconds or bytes; None where it was not measured."""
        if kind == "macs":
            return self.macs
        if self.single is None:
            return None
        return self.single.p50 if kind == "ms" else self.single.peak_memory


@dataclass(frozen=True, kw_only=True)
class Comparison(Result):
    """Result of `compare`; ``about`` has ``notes`` on what is missing and why."""

    file: ClassVar[str] = "comparison.json"
    picture: ClassVar[str] = "comparison.png"

    points: tuple[ComparedPoint, ...]

    def labels(self) -> dict[str, str]:
        """A short label for each model: its folder's name, unless two have the same."""
        models = list(dict.fromkeys(point.model for point in self.points))
        short = [Path(model).name for model in models]
        return {model: name if short.count(name) == 1 else model for model, name in zip(models, short, strict=True)}

    def table(self, wide: bool = False) -> Group:
        return stacked(_table(self, wide), "\n".join([_legend(self), *self.about["notes"]]))

    def draw(self, file: Path) -> None:
        """Accuracy against each of `COSTS`, a colour for each model; 1600 px wide."""
        labels, palette = self.labels(), (BLUE, ORANGE, *OTHERS)
        colours = {model: palette[i % len(palette)] for i, model in enumerate(labels)}
        about = self.about
        with png_figure(file, 16, 6, dpi=100) as figure:
            panels = dict(zip(COSTS, figure.subplots(1, len(COSTS), sharey=True), strict=True))
            for kind, axes in panels.items():
                axes.set_xscale("log")
                axes.set_autoscalex_on(False)  # rounding may leave no width around points that are nearly one
                axes.margins(y=0.15)
                for model, colour in colours.items():
                    _draw_model(axes, kind, [point for point in self.points if point.model == model], colour)
                _draw_front(axes, kind, self.points)
                plain_ticks(axes, prefixes=kind == "macs")
                finish(axes, xlabel=COSTS[kind])
            panels["macs"].set_ylabel("accuracy, %")
            figure.suptitle(
                verbatim(f"{about['data']}, {about['split']}, {about['images']} images, {about['machine']}") + "\n"
                "filled: learned looks or the whole image, with its 95 % interval; hollow: random looks; "
                "numbers: locations; grey band: Pareto front; dotted: models without weights",
                fontsize=10,
                x=0.01,
                ha="left",
            )
            figure.draw_without_rendering()  # places the axes, which labels depend on
            figure.set_layout_engine("none")
            for kind, axes in panels.items():
                _write_labels(axes, kind, self.points, labels, colours)


def compare(
    models: Sequence[Model],
    data: DataModule,
    *,
    locations: int | Sequence[int | Sequence[int]] | None = None,
    measure: Measure = "quick",
    setting: Setting = DEFAULT,
) -> Comparison:
    """Evaluate and time several models on the same images.

    Args:
        models: run folders, classifiers and dense networks; and names of models, which have no weights: only their
            cost is found.
        data: images with labels.
        locations: looks per grid at each level, several times, see `foveal.prediction.parse_location_sweep`; each
            model that looks gets those that fit it. If None, no looks and the model's own.
        measure: see `foveal.evaluation.evaluate`.
        setting: which images, and how; ``limit`` holds for the validation images too. Progress is reported for
            ``"accuracy"``, in looks at a batch, then ``"timings"``.

    Raises:
        ConfigError: an option that does not fit, no model with weights, or a name that no model has.
        DataError: classes that differ, no such split, or no image that every model can read.
        RunError: a run folder is missing or damaged.
    """
    check_measure(measure)
    check_setting(setting)
    locations = None if locations is None else sweep_of(locations)
    named = dict(zip(names_of(models), models, strict=True))
    bare = {name for name, model in named.items() if _is_bare(model)}
    bench = Bench(_loaded(named, bare, data, setting), data, setting)
    chosen, notes = _choose_locations(bench.models, locations)
    notes += [f"{name}: has no weights, so that only its cost is given; train it by foveal fit" for name in bare]
    trained = {name: model for name, model in bench.models.items() if name not in bare}
    notes += [note for name, model in trained.items() for note in _reading_notes(name, model, bench.images)]
    notes += [
        f"{name}: predicts by the thresholds of the run" for name, model in trained.items() if model.task.thresholds
    ]
    notes += [
        f"{name}: predictions take random looks, because fit found learned ones worse; see the random column"
        for name, model in trained.items()
        if model.usual_policy != "greedy"
    ]
    no_temperature = _no_temperature(bench)
    notes += [f"no temperature was fitted: {no_temperature}"] if no_temperature else []
    strategies = {name: _strategies(model, chosen[name]) for name, model in trained.items()}
    step = setting.steps("accuracy", _steps(bench, strategies.values(), fit=not no_temperature))
    passes = {
        name: _pass_over(bench, model, *strategies[name], fit=not no_temperature, on_step=step)
        for name, model in trained.items()
    }
    read = np.concatenate([found.places for found in passes.values()])
    common = np.flatnonzero(np.bincount(read, minlength=len(bench.images)) == len(passes))
    if not len(common):
        reason = bench.errors[0][1]
        raise DataError(f"{bench.data.name}: no image could be read by every model; check the data ({reason})")
    timings = bench.time(chosen, dict.fromkeys(bench.models, common), measure)
    size = next(iter(passes.values())).size
    points = [
        ComparedPoint(
            model=name,
            locations=places,
            **point_costs(model, size, Strategy(places), timings[name]),
            **(passes[name].at(places, common, bench.measure) if name in passes else _without_weights(bench)),
        )
        for name, model in bench.models.items()
        for places in chosen[name]
    ]
    notes += [
        f"{p.model}: no temperature between {COLDEST:g} and {HOTTEST:g} calibrates its probabilities; the bound is used"
        for p in points
        if p.temperature is not None and not 1.01 * COLDEST < p.temperature < 0.99 * HOTTEST
    ]
    about = {
        "models": list(named),
        "images": len(common),
        "image_size": list(size),
        **bench.circumstances(),
        "measure": measure,
        "notes": list(dict.fromkeys(notes)),
        "how": HOW,
    }
    return Comparison(about=about, points=tuple(_with_front(points)), errors=bench.failed())


def first_run(models: Sequence[str]) -> Run:
    """The first run folder among run folders and names of models; its data is the default.

    Raises:
        ConfigError: there is none.
        RunError: a run folder is missing or damaged.
    """
    for model in models:
        if not _is_bare(model):
            return Run(model)
    raise _no_weights(models)


def pareto(costs: Sequence[float], values: Sequence[float]) -> list[bool]:
    """Whether each point is on the Pareto front: no other is as cheap and as good, and better in one of the two.

    >>> pareto([1, 2, 2, 3], [0.5, 0.7, 0.6, 0.7])
    [True, True, False, False]
    """
    best, front = -float("inf"), [False] * len(costs)
    # By rising cost, of equal ones the best first: a point is on the front if it is better than all before, or equal
    # to the best.
    for i in sorted(range(len(costs)), key=lambda i: (costs[i], -values[i])):
        if values[i] > best:
            best, at = values[i], costs[i]
        front[i] = values[i] == best and costs[i] == at
    return front


# ---- models


def _no_weights(names: Iterable[str]) -> ConfigError:
    return ConfigError(f"{', '.join(names)}: no model here has weights; add a run folder, or count by foveal cost")


def _is_bare(model: Any) -> bool:
    """Whether a model is given by its name; a path that leads nowhere is no name."""
    return isinstance(model, str) and (model in list_models() or not (Path(model).exists() or os.sep in model))


def _loaded(
    named: Mapping[str, Model], bare: set[str], data: DataModule, setting: Setting
) -> dict[str, GlimpseClassifier]:
    """The models, loaded, or created for this data where they are bare; all of the same classes."""
    if len(bare) == len(named):
        raise _no_weights(named)
    plain, split = plain_split(data, setting.split)
    channels = plain.split(split).channels
    bands = {} if channels == 3 else {"in_chans": channels}
    models = {
        name: create_classifier(name, num_classes=len(data.classes), **bands)
        if name in bare
        else Predictor(path_of(model), device="cpu").model
        for name, model in named.items()
    }
    for name in bare:
        models[name].task = data.task
    (first, wanted), *others = [(name, m.class_names) for name, m in models.items() if m.class_names] or [("", ())]
    for name, classes in others:
        for i, (one, other) in enumerate(zip_longest(wanted, classes)):
            if one != other:
                here, there = ("missing" if c is None else repr(c) for c in (one, other))
                what = f"class {i} is {here} in the one and {there} in the other"
                raise DataError(f"{first} and {name}: {what}; compare runs of one data set")
    return models


def _choose_locations(
    models: Mapping[str, GlimpseClassifier], locations: Sequence[Sequence[int]] | None
) -> tuple[dict[str, list[tuple[int, ...]]], list[str]]:
    """The locations of each model, and sentences about those that do not fit it."""
    asked = " or ".join(format_locations(tuple(each)) for each in locations or ())
    if locations and not any(model.locations for model in models.values()):
        raise ConfigError(f"`locations` {asked}: these models look once, at the whole image; leave `locations` out")
    chosen: dict[str, list[tuple[int, ...]]] = {}
    notes: list[str] = []
    for name, model in models.items():
        own = tuple(model.locations)
        chosen[name] = []
        for places in dict.fromkeys(map(tuple, locations if own and locations is not None else [(), own])):
            try:
                count_cost(model, model.size, places)
            except ConfigError as error:
                notes.append(f"{name}: locations {format_locations(places)} are left out: {error}")
            else:
                chosen[name].append(places)
        if not chosen[name]:
            reason = notes[-1].rpartition("left out: ")[2]
            raise ConfigError(f"`locations` {asked}: none of them fits {name} ({reason}); give others")
    return chosen, notes


def _no_temperature(bench: Bench) -> str | None:
    """Why no temperature can be fitted; None where it can."""
    if bench.data.val is None or not len(bench.data.val):
        return "there are no validation images"
    return "the validation images are those compared" if bench.split == "val" else None


def _reading_notes(name: str, model: GlimpseClassifier, images: Dataset) -> list[str]:
    """A sentence where images are not read as in the training of a model."""
    here = getattr(getattr(images, "reading", None), "image_size", None)
    trained = getattr(model, "image_size", here)
    if trained == here:
        return []
    sides = [f"resized to {side} px first" if side else "of their own size" for side in (trained, here)]
    return [f"{name}: was trained on images {sides[0]}, and these are {sides[1]}; that may cost it accuracy"]


# ---- answers


def _after(names: Iterable[str]) -> dict[str, str]:
    """Names of metrics with logits divided by the temperature, and their names without."""
    return {f"{name}_after": name for name in names if name in METRICS and METRICS[name].of_confidence}


class _ModelPass(NamedTuple):
    """What a model answered by learned looks, by random looks, and with calibrated probabilities, by locations."""

    places: np.ndarray
    size: tuple[int, int]
    learned: dict[tuple[int, ...], Scores]
    random: dict[tuple[int, ...], Answers]
    temperature: dict[tuple[int, ...], float]
    calibrated: dict[tuple[int, ...], Answers]

    def at(
        self, locations: tuple[int, ...], common: np.ndarray, measure: Callable[[Answers], dict[str, Metric]]
    ) -> dict[str, Any]:
        """The fields of a `ComparedPoint` that depend on answers, about the images at these places in the data set."""
        rows, scores = np.isin(self.places, common), self.learned[locations]
        answers = scores.answers.take(rows)
        metrics = measure(answers)
        metrics |= dict.fromkeys(["random", "gap", *_after(metrics)], Metric())
        if locations in self.random:
            by_chance = self.random[locations].take(rows).correct
            metrics["random"] = Metric(float(by_chance.mean()))
            gap = float(answers.correct.mean()) - float(by_chance.mean())
            metrics["gap"] = Metric(gap, paired_interval(answers.correct, by_chance))
        if locations in self.calibrated:
            after = measure(self.calibrated[locations].take(rows))
            metrics |= {name: after[plain] for name, plain in _after(after).items()}
        return {
            "total_locations": float(scores.looks.take(rows).number.mean()),
            "images": len(common),
            "metrics": metrics,
            "temperature": self.temperature.get(locations),
        }


def _without_weights(bench: Bench) -> dict[str, Any]:
    """The same fields of a model that answers nothing."""
    names = [*bench.metrics, "random", "gap", *_after(bench.metrics)]
    return {"total_locations": None, "images": None, "metrics": dict.fromkeys(names, Metric())}


def _strategies(
    model: GlimpseClassifier, locations: Sequence[tuple[int, ...]]
) -> tuple[list[Strategy], list[Strategy]]:
    """Learned looks at all locations, and random ones where there are any."""
    drawn = [Strategy(places, "random") for places in locations if places and "random" in model.policies]
    return [Strategy(places) for places in locations], drawn


def _steps(bench: Bench, strategies: Iterable[tuple[list[Strategy], list[Strategy]]], fit: bool) -> int:
    """Looks at a batch in all passes."""
    batches, fitting = len(bench.loader([])), len(bench.loader([], "val")) if fit else 0
    return sum(
        (batches + fitting) * sum(s.looks for s in learned) + batches * sum(s.looks for s in random)
        for learned, random in strategies
    )


def _pass_over(
    bench: Bench,
    model: GlimpseClassifier,
    learned: Sequence[Strategy],
    random: Sequence[Strategy],
    fit: bool,
    on_step: Callable[[int], None],
) -> _ModelPass:
    """Fit the temperatures on the validation images, then classify the images; logits are not kept."""
    temperature: dict[tuple[int, ...], float] = {}
    calibrated: dict[tuple[int, ...], Answers] = {}
    for scores in bench.score(model, learned, "val", on_step, keep_logits=True).scores if fit else ():
        temperature[scores.strategy.locations] = fit_temperature(*_logits_and_labels(scores))
    found = bench.score(model, [*learned, *random], on_step=on_step, keep_logits=fit)
    at = {scores.strategy: scores for scores in found.scores}
    for locations, value in temperature.items():
        logits, target = _logits_and_labels(at[Strategy(locations)])
        calibrated[locations] = bench.answers(model, logits / value, target)
    return _ModelPass(
        found.places,
        found.size,
        {strategy.locations: replace(at[strategy], logits=None) for strategy in learned},
        {strategy.locations: at[strategy].answers for strategy in random},
        temperature,
        calibrated,
    )


def _logits_and_labels(scores: Scores) -> tuple[Tensor, Tensor]:
    assert scores.logits is not None
    return scores.logits, torch.from_numpy(scores.answers.target)


def _with_front(points: Sequence[ComparedPoint]) -> list[ComparedPoint]:
    """The same points, with the costs at which each is on the Pareto front."""
    fronts: list[tuple[str, ...]] = [()] * len(points)
    for kind in COSTS:
        known = [
            (i, c, a) for i, p in enumerate(points) if (c := p.cost(kind)) is not None and (a := p.accuracy) is not None
        ]
        for (i, _, _), on in zip(known, pareto([c for _, c, _ in known], [a for _, _, a in known]), strict=True):
            fronts[i] += (kind,) if on else ()
    return [replace(point, front=front) for point, front in zip(points, fronts, strict=True)]


# ---- table and picture


def _table(comparison: Comparison, wide: bool) -> Table:
    """A row for each model and locations."""
    about, points, labels = comparison.about, comparison.points, comparison.labels()
    columns = [
        Column("model", lambda p: labels[p.model], NAME),
        Column("locations", lambda p: format_locations(p.locations), TEXT),
        metric_column("accuracy"),
        Column("random, %", lambda p: percent(p.metrics["random"].value)),
        *cost_columns(points, lambda p: p.front),
    ]
    if wide:
        columns += [
            Column("looks", lambda p: fixed(p.total_locations, 1)),
            Column("gap, %", lambda p: percent(p.metrics["gap"].value, p.metrics["gap"].interval, signed=True)),
            *(metric_column(name) for name in points[0].metrics if name in METRICS and name != "accuracy"),
            Column("T", lambda p: fixed(p.temperature, 2)),
            *(metric_column(name, after=True) for name in points[0].metrics if name.endswith("_after")),
            *wide_cost_columns(points),
        ]
    images = f"{counted(about['images'], 'image')} of {image_size(about['image_size'])} px"
    return Table(f"{about['data']}, {about['split']}: {images}", columns, points, keys=2)


def _legend(comparison: Comparison) -> str:
    """Explains the columns of the table."""
    legend = [INTERVALS, "*: no model here is as accurate for less (Pareto front)."]
    if any(point.metrics["random"].value is not None for point in comparison.points):
        legend.insert(1, "random: accuracy of looks drawn without the model's guidance.")
    if comparison.about["measure"] != "none":
        legend.append(f"ms: one image at a time, median, on {comparison.about['machine']}.")
    return " ".join(legend)


def _cost(point: ComparedPoint, kind: str) -> float | None:
    cost = point.cost(kind)
    return cost if cost is None or kind != "memory" else max(cost, PAGE) / 1e6


def _draw_model(axes: Any, kind: str, points: Sequence[ComparedPoint], colour: str) -> None:
    """A line through one model's points, another through its random looks; without weights a line at its cost."""
    points = sorted((p for p in points if _cost(p, kind) is not None), key=lambda p: p.locations)
    known = [p for p in points if p.accuracy is not None]
    x = [_cost(p, kind) or 0 for p in known]
    if known:
        bars = {"linewidth": 1.8, "markersize": 7, "elinewidth": 1}
        draw_series(axes, x, [p.metrics["accuracy"] for p in known], colour, **bars)
    random = [(at, 100 * r) for at, p in zip(x, known, strict=True) if (r := p.metrics["random"].value) is not None]
    if random:
        hollow = {"marker": "o", "markersize": 7, "markerfacecolor": "white", "linestyle": "--", "linewidth": 1}
        axes.plot(*zip(*random, strict=True), color=colour, **hollow)
    for p in points[len(known) :]:
        axes.axvline(_cost(p, kind), color=colour, linestyle=":", linewidth=1.5)


def _draw_front(axes: Any, kind: str, points: Sequence[ComparedPoint]) -> None:
    """Set the range of the costs, and draw the Pareto front as a band behind the points."""
    costs = [cost for p in points if (cost := _cost(p, kind)) is not None]
    if costs:
        margin = max((max(costs) / min(costs)) ** 0.25, 2)
        axes.set_xlim(min(costs) / margin, max(costs) * margin)
    front = sorted((_cost(p, kind), 100 * (p.accuracy or 0)) for p in points if kind in p.front)
    if front:
        last = axes.get_xlim()[1], front[-1][1]
        axes.step(*zip(*front, last, strict=True), where="post", color=INK, linewidth=5, alpha=0.18, zorder=0)
    else:
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color=GREY)


def _write_labels(
    axes: Any, kind: str, points: Sequence[ComparedPoint], labels: Mapping[str, str], colours: Mapping[str, str]
) -> None:
    """Write each model's name at its best point, and the locations at each point, where there is room."""
    drawn = [(p, cost) for p in points if (cost := _cost(p, kind)) is not None]
    taken = drawn_boxes(axes)
    best = {p.model: p for p, _ in sorted(drawn, key=lambda pair: (pair[0].accuracy or 0, pair[0].locations))}
    for p, cost in sorted(drawn, key=lambda pair: best[pair[0].model] is not pair[0]):
        named = best[p.model] is p
        text = labels[p.model] if named else ""
        if any(other is not p and other.model == p.model for other, _ in drawn):
            text = f"{text} {format_locations(p.locations)}".strip()
        if text:
            y, height = (100 * p.accuracy, "data") if p.accuracy is not None else (0.97, "axes fraction")
            style = {"color": colours[p.model], "fontsize": 11 if named else 9}
            write_beside(axes, text, (cost, y), height, taken, **style)

"""Early exit: confidence thresholds for a mean cost per image, and their evaluation on other images.

Thresholds are found on validation images. With a threshold, an image is left as soon as its most probable class
reaches it.

Example:
    >>> confidences = np.array([[0.3, 0.6, 0.9], [0.8, 0.9, 0.95]])
    >>> mean_cost(confidences, np.array([1.0, 2.0, 3.0]), 0.7), mean_cost(confidences, np.array([1.0, 2.0, 3.0]), 0.2)
    (2.0, 1.0)
    >>> round(threshold_for(confidences, np.array([1.0, 2.0, 3.0]), 1.5), 2)
    0.6
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from foveal.classification import Classification
from foveal.data import Batch, DataModule
from foveal.display import TEXT, Column, Table, counted, fixed, percent, significant, stacked, unit_for
from foveal.errors import ConfigError
from foveal.evaluation.drawing import ACCURACY, BLUE, GREY, draw_series, finish, png_figure, title
from foveal.evaluation.protocol import Bench, Setting, median_size, validation_bench
from foveal.evaluation.results import INTERVALS, Result, Scored, metric_column
from foveal.evaluation.timing import REPEATS, WARM_UP
from foveal.glimpse.base import GlimpseClassifier
from foveal.images import Views
from foveal.metrics import Answers
from foveal.policies import GREEDY
from foveal.prediction.cost import LookCounter, count_cost, count_looks
from foveal.prediction.device import autocast, machine_name
from foveal.prediction.early_exit import Exit, format_cost, locations_of, look_until, parse_cost, turns
from foveal.prediction.folding import fold_norms
from foveal.prediction.locations import format_locations
from foveal.prediction.output import fingerprint
from foveal.prediction.predictor import Model

if TYPE_CHECKING:
    from rich.console import Group

NEVER_SURE = 2.0
"""A threshold above all confidences."""

SMALL_BATCHES = Setting(batch_size=8)
"""The setting unless another is given."""


@dataclass(frozen=True, kw_only=True)
class ExitPoint(Scored):
    """Metrics and costs of early exit, or of locations that are equal for all images.

    Attributes:
        name: the budget of an exit, or the locations, as text.
        stops: whether it is early exit.
        locations, macs: looks beyond the first, and multiply-accumulates, of the mean image.
        milliseconds: of the mean image, from opening it to its class, in batches of ``batch_size``.
        batch_size: images at a time.
    """

    name: str
    stops: bool
    locations: float
    macs: float
    milliseconds: float
    batch_size: int


@dataclass(frozen=True, kw_only=True)
class EarlyExit(Result):
    """Result of `evaluate_early_exit`: the thresholds, and points with equal locations, then with early exit."""

    file: ClassVar[str] = "early_exit.json"
    picture: ClassVar[str] = "early_exit.png"

    exits: tuple[Exit, ...]
    ways: tuple[ExitPoint, ...]

    def table(self, wide: bool = False) -> Group:
        """The result as a table for rich; with the costs on the validation images if ``wide``."""
        macs, exits = unit_for("MAC", [way.macs for way in self.ways]), {one.budget: one for one in self.exits}

        def of_exit(cell: Callable[[Exit], str]) -> Callable[[ExitPoint], str]:
            return lambda way: cell(exits[way.name]) if way.stops else ""

        def leaves(one: Exit) -> str:
            return "never early" if one.threshold > 1 else f"{percent(one.threshold)} % sure"

        about, first = self.about, self.ways[0]
        columns = [
            Column("budget", lambda way: way.name, TEXT),
            Column("leaves images", of_exit(leaves), TEXT),
            Column("looks", lambda way: fixed(way.locations, 2)),
            metric_column("accuracy"),
            Column(macs.name, lambda way: macs(way.macs)),
            Column("ms", lambda way: significant(way.milliseconds)),
        ]
        if wide:
            columns += [
                *(metric_column(name) for name in first.metrics if name != "accuracy"),
                Column("threshold", of_exit(lambda one: fixed(one.threshold, 4))),
                Column("validation cost", of_exit(lambda one: format_cost(one.cost, one.unit))),
                Column("validation images", of_exit(lambda one: f"{one.images:,}")),
            ]
        images = f"{counted(first.images or 0, 'image')}, {first.batch_size} at a time"
        heading = f"{about['model']} on {about['data']}, {about['split']}: {images}"
        equal, early = ([way for way in self.ways if way.stops is stops] for stops in (False, True))
        legend = "Above the gap, all images get the same looks. looks, MACs and ms: of the mean image."
        return stacked(Table(heading, columns, [*equal, None, *early]), f"{INTERVALS} {legend}")

    def draw(self, file: Path) -> None:
        """Accuracy against MACs of the mean image, with equal locations and with early exit."""
        with png_figure(file, 7.5, 4.8) as figure:
            axes = figure.add_subplot()
            for stops, label, colour, line in ((False, "equal locations", GREY, "--"), (True, "early exit", BLUE, "-")):
                ways = sorted((way for way in self.ways if way.stops is stops), key=lambda way: way.macs)
                macs, accuracy = [way.macs for way in ways], [way.metrics["accuracy"] for way in ways]
                draw_series(axes, macs, accuracy, colour, linestyle=line, label=label)
            title(figure, self.about, self.ways[0].images or 0)
            finish(axes, xlabel="multiply-accumulates of the mean image", ylabel=ACCURACY)


def evaluate_early_exit(
    model: Model,
    data: DataModule,
    budgets: Sequence[str],
    *,
    locations: int | Sequence[int] | None = None,
    at_once: int = 1,
    setting: Setting = SMALL_BATCHES,
) -> EarlyExit:
    """Find thresholds on the validation images, and compare early exit with equal locations on others.

    Args:
        model: a classifier that can stop after each look, or a run folder.
        data: images with labels.
        budgets, locations, at_once: see `find_thresholds`.
        setting: which images, and how; ``limit`` holds for the validation images too. Progress is reported for
            ``"finding thresholds"``, then for ``"accuracy and times"``, in batches.

    Raises:
        ConfigError: a budget that the first look alone exceeds, or a model that cannot stop early.
        DataError: no such split, no image that can be read, or other classes than the model's.
    """
    bench = Bench([model], data, setting)
    validation = validation_bench(bench.models, data, setting)
    exits = _find_thresholds(validation, budgets, locations, at_once)
    ways = score_exits(bench, exits)
    about = {"model": next(iter(bench.models)), **bench.circumstances()}
    return EarlyExit(about=about, exits=tuple(exits), ways=tuple(ways), errors=validation.failed() + bench.failed())


def find_thresholds(
    model: Model,
    data: DataModule,
    budgets: Sequence[str],
    *,
    locations: int | Sequence[int] | None = None,
    at_once: int = 1,
    seconds: float = 0.5,
    setting: Setting = SMALL_BATCHES,
) -> list[Exit]:
    """Find thresholds for a mean cost per image, by bisection.

    The time per image is the time of a batch after each turn, divided by the number of its images. When images leave a
    batch, the time per remaining image may increase.

    Args:
        model: a classifier that can stop after each look, or a run folder.
        data: images; their labels are not used.
        budgets: mean costs of an image, see `foveal.prediction.parse_cost`.
        locations: the most looks per grid at each level; the model's own if None.
        at_once: cells of the first grid that are looked at between two decisions to stop.
        seconds: least time of the measurement, for a budget that is a time.
        setting: which images, and how; the split is ``"val"`` if None.

    Raises:
        ConfigError: a budget that the first look alone exceeds, or a model that cannot stop early.
        DataError: no such split, no image that can be read, or other classes than the model's.
    """
    return _find_thresholds(validation_bench([model], data, setting), budgets, locations, at_once, seconds)


def _find_thresholds(
    bench: Bench, budgets: Sequence[str], locations: int | Sequence[int] | None, at_once: int, seconds: float = 0.5
) -> list[Exit]:
    wanted, setting = [parse_cost(text) for text in budgets], bench.setting
    (model,) = bench.models.values()
    ends = turns(model.resolve_locations(locations), at_once)
    if len(ends) == 1:
        what = "with one look there is nothing to leave out"
        raise ConfigError(f"`budgets` {budgets[0]}: {what}; use a model that looks, and `locations` 1 or more")
    folded, some = fold_norms(model), min(setting.batch_size, len(bench.images))
    confidences, size = _confidences(bench, folded, ends, at_once)

    def price_in(unit: str) -> np.ndarray:
        """(T,) cost of an image that is left after each turn."""
        if unit == "locations":
            return np.array([count_looks(model, size, end) for end in ends], dtype=float)
        if unit == "macs":
            return np.array([count_cost(model, size, end, GREEDY).macs for end in ends], dtype=float)
        views_of = bench.views_of(np.arange(some))
        return _times(folded, lambda: views_of(some), ends[-1], at_once, setting.precision, seconds) / some

    prices = {unit: price_in(unit) for unit in {unit for _, unit in wanted}}
    exits, weights = [], fingerprint(model)
    for text, (cost, unit) in zip(budgets, wanted, strict=True):
        price = prices[unit]
        if cost < price[0]:
            at = f", {some} images at a time" if unit == "ms" else ""
            least = f"the first look alone costs {format_cost(price[0], unit)}{at}"
            raise ConfigError(f"`budgets` {text}: {least}; allow more")
        exits.append(
            Exit(
                budget=text,
                threshold=(threshold := threshold_for(confidences, price, cost)),
                locations=ends[-1],
                at_once=at_once,
                cost=mean_cost(confidences, price, threshold),
                unit=unit,
                images=len(confidences),
                model=weights,
                precision=setting.precision,
                batch_size=setting.batch_size if unit == "ms" else None,
                machine=machine_name(bench.device) if unit == "ms" else None,
            )
        )
    return exits


def score_exits(bench: Bench, exits: Sequence[Exit]) -> list[ExitPoint]:
    """Classify the images with equal locations and with exits.

    They alternate on each batch, so that other load of the machine affects all equally.

    Args:
        bench: a classifier that can stop after each look, and images.
        exits: of `find_thresholds`; they are compared with the locations that their images can end with.

    Returns:
        Points with equal locations, then with exits.

    Raises:
        DataError: no image could be read.
    """
    (model,) = bench.models.values()
    folded, macs_of, setting = fold_norms(model), LookCounter(model), bench.setting
    ends = list(dict.fromkeys(end for one in exits for end in turns(one.locations, one.at_once)))
    ways: list[Exit | tuple[int, ...]] = [*ends, *exits]
    answers: list[list[Answers]] = [[] for _ in ways]
    looks, macs, seconds = np.zeros((3, len(ways)))
    every = [rows for _, rows in bench.loader([]).order]
    step = setting.steps("accuracy and times", len(every))
    for number, index in enumerate([every[0], *every]):  # the first batch warms up and does not count
        for i, way in enumerate(ways):
            began = time.perf_counter()
            batch = bench.images.batch(0, index, 0).to(bench.device)
            seen = _classify(folded, batch, way, setting.precision) if len(batch) else None
            took = time.perf_counter() - began
            bench.errors += batch.errors
            if seen is None:
                continue
            rows = bench.readable(batch)
            if number and len(rows):
                answers[i].append(bench.answers(model, seen.logits.cpu()[rows], batch.target.cpu()[rows]))
                looks[i] += np.asarray(seen.locations)[rows].sum()
                most = way.locations if isinstance(way, Exit) else way
                for j in rows:
                    macs[i] += macs_of(seen[j], batch.views.sizes[j], locations_of(seen[j].glimpses, most))
            seconds[i] += took if number else 0
        step(1 if number else 0)
    images = sum(map(len, answers[0]))
    bench.check_read(images)
    return [
        ExitPoint(
            name=way.budget if isinstance(way, Exit) else format_locations(way),
            stops=isinstance(way, Exit),
            locations=looks[i] / images,
            macs=macs[i] / images,
            images=images,
            metrics=bench.measure(Answers.cat(answers[i])),
            milliseconds=1e3 * seconds[i] / images,
            batch_size=setting.batch_size,
        )
        for i, way in enumerate(ways)
    ]


def _classify(model: GlimpseClassifier, batch: Batch, way: Exit | tuple[int, ...], precision: str) -> Classification:
    """The answers about a batch, when the device has computed them."""
    with torch.inference_mode(), autocast(precision, model.mean.device):
        if isinstance(way, Exit):
            seen = look_until(model, batch.views, way.threshold, way.locations, way.at_once)
        else:
            seen = model(batch.views, locations=way, policy=GREEDY, contributions=False)
        seen.logits.argmax(-1).cpu()
    return seen


def mean_cost(confidences: np.ndarray, price: np.ndarray, threshold: float) -> float:
    """The cost of the mean image, if each is left as soon as its confidence reaches the threshold.

    Args:
        confidences: (N, T) confidence of each image after each turn.
        price: (T,) cost of an image that is left after each turn, rising.
        threshold: see `foveal.prediction.look_until`.
    """
    return float(price[left_after(confidences, threshold)].mean())


def left_after(confidences: np.ndarray, threshold: float) -> np.ndarray:
    """(N,) turn after which each image is left: the first that reaches the threshold, or the last, of (N, T)."""
    leaves = confidences >= threshold
    leaves[:, -1] = True
    return leaves.argmax(1)


def threshold_for(confidences: np.ndarray, price: np.ndarray, cost: float) -> float:
    """The largest threshold, of confidences and `NEVER_SURE`, at which the mean image costs no more than this."""
    steps = np.append(np.unique(confidences[:, :-1]), NEVER_SURE)
    low, high = 0, len(steps)  # the cost rises with the threshold
    while high - low > 1:
        middle = (low + high) // 2
        if mean_cost(confidences, price, steps[middle]) <= cost:
            low = middle
        else:
            high = middle
    return float(steps[low])


def _confidences(
    bench: Bench, model: GlimpseClassifier, ends: Sequence[tuple[int, ...]], at_once: int
) -> tuple[np.ndarray, tuple[int, int]]:
    """(N, T) confidence of every image after each turn, and the size of an image of median area."""
    confidences, sizes = [], []
    step = bench.setting.steps("finding thresholds", len(bench.loader([])))
    for batch in bench.batches():
        if len(batch):
            with torch.inference_mode(), autocast(bench.setting.precision, bench.device):
                seen = [
                    model.task.confidence(logits) for logits in _logits_by_turn(model, batch.views, ends[-1], at_once)
                ]
            rows = bench.readable(batch)
            if len(seen) != len(ends):
                what = f"{model.label} cannot stop early"
                raise ConfigError(f"`budgets`: {what}; use `locations` instead")
            confidences.append(torch.stack(seen, 1)[rows].float().cpu().numpy())
            sizes.append(batch.views.sizes[rows])
        step()
    bench.check_read(sum(map(len, confidences)))
    return np.concatenate(confidences), median_size(sizes)


def _times(
    model: GlimpseClassifier,
    views_of: Callable[[], Views],
    locations: Sequence[int],
    at_once: int,
    precision: str,
    seconds: float,
) -> np.ndarray:
    """(T,) milliseconds from opening a batch to its confidences after each turn; medians."""
    times: list[list[float]] = []
    began = time.perf_counter()
    while len(times) < WARM_UP + REPEATS or time.perf_counter() - began < seconds:
        start, ended = time.perf_counter(), []
        with torch.inference_mode(), autocast(precision, model.mean.device):
            for logits in _logits_by_turn(model, views_of(), locations, at_once):
                model.task.confidence(logits).cpu()
                ended.append(1e3 * (time.perf_counter() - start))
        times.append(ended)
    return np.median(times[WARM_UP:], 0)


def _logits_by_turn(model: GlimpseClassifier, views: Views, locations: Sequence[int], at_once: int) -> Iterator[Tensor]:
    """(n, classes) logits of all images after each turn, when none is left early."""
    walk = model.walk(views, locations, at_once, False)
    try:
        which, logits = next(walk)
        while True:
            yield logits
            which, logits = walk.send(np.ones(len(which), dtype=bool))
    except StopIteration as end:
        yield end.value.logits

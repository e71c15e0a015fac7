"""Which threshold spends a wanted cost on the mean image, solved on validation images; and what stopping early then gives.

Example:
    >>> sure = np.array([[0.3, 0.6, 0.9], [0.8, 0.9, 0.95]])
    >>> mean_cost(sure, np.array([1.0, 2.0, 3.0]), 0.7), mean_cost(sure, np.array([1.0, 2.0, 3.0]), 0.2)
    (2.0, 1.0)
    >>> round(threshold_for(sure, np.array([1.0, 2.0, 3.0]), 1.5), 2)
    0.6
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from foveal.data import Batch, DataModule
from foveal.display import TEXT, Column, Table, counted, fixed, percent, significant, stacked, unit_for
from foveal.errors import ConfigError, DataError
from foveal.evaluation.accuracy import median_size, wilson
from foveal.evaluation.cost import REPEATS, WARM_UP
from foveal.evaluation.evaluation import Progress, circumstances, plain_split, ready_for, write_json
from foveal.glimpse.base import GlimpseClassifier
from foveal.images import BlankViews, Views
from foveal.prediction.budget import format_budget
from foveal.prediction.cost import LookCounter, count
from foveal.prediction.device import autocast, find_device, machine_name
from foveal.prediction.early_exit import Exit, budget_of, confidence, format_cost, look_until, parse_cost, turns
from foveal.prediction.folding import fold_norms
from foveal.prediction.output import fingerprint
from foveal.prediction.rows import check_locations
from foveal.runs import Run

if TYPE_CHECKING:
    from rich.console import Group

NEVER_SURE = 2.0


def solve(
    model: GlimpseClassifier | nn.Module | Run | str, data: DataModule, budgets: Sequence[str], *, locations: Sequence[int] | None = None,
    at_once: int = 1, split: str = "val", batch_size: int = 8, workers: int = 0, device: str | torch.device = "auto",
    precision: str = "32", seconds: float = 0.5, on_progress: Callable[[int, int], None] | None = None,
) -> list[Exit]:  # fmt: skip
    """Find the thresholds by which the mean image costs what is wanted, by bisection.

    A time is what a whole batch has taken after each turn of looking, divided by the number of its images; as images leave a batch,
    those that remain may take a little longer each.

    Args:
        model: a classifier that can stop on the way, or a run folder.
        data: images; their labels are not needed.
        budgets: mean costs of an image, see `foveal.prediction.early_exit.parse_cost`.
        locations: the most looks to take; the model's own budget if None.
        at_once: cells of the first grid to look into before asking again.
        split: images to solve on.
        batch_size: images at a time.
        workers, device, precision: see `foveal.evaluation.evaluate`.
        seconds: least time of the measurement, where a time is asked for.
        on_progress: called with how many batches are done, and how many there are.

    Raises:
        ConfigError: a budget that the first look alone exceeds, or a model that cannot stop on the way.
        DataError: no such split, no image that can be read, or other classes than the model's.
    """
    wanted = [parse_cost(text) for text in budgets]
    where = find_device(device)
    (judged,) = ready_for([model], data, where)
    ends = turns(check_locations(judged, locations), at_once)
    if len(ends) == 1:
        raise ConfigError(
            f"--budget {budgets[0]}: with one look there is nowhere to stop on the way; use a model that looks, and --locations 1 or more"
        )
    if split == "val" and not (data.val is not None and len(data.val)):
        raise DataError(f"{data.name}: --budget finds out on validation images when to stop, and there are none; give the data a val split")
    images = data.split(split)
    loader = data.loader(split, batch_size=batch_size, workers=workers, first_looks=judged.first_looks, shuffle=False)
    total = -(-len(images) // batch_size)
    folded = fold_norms(judged)
    sure, size = _confidences(folded, loader, ends, at_once, precision, lambda done: on_progress and on_progress(done, total))
    some = list(range(min(batch_size, len(images))))

    def price_in(unit: str) -> np.ndarray:
        """(T,) what an image costs that is left after each turn."""
        if unit == "locations":
            blank = BlankViews(1, size, judged.channels, where)  # an image that is not square may get fewer looks than it is offered
            with torch.inference_mode():
                return np.array([judged(blank, locations=end, contributions=False).locations[0] for end in ends], dtype=float)
        if unit == "macs":
            return np.array([count(judged, size, end).macs for end in ends], dtype=float)
        return _times(folded, lambda: images.batch(0, some, 0).to(where).views, ends[-1], at_once, precision, seconds) / len(some)

    prices = {unit: price_in(unit) for unit in {unit for _, unit in wanted}}
    found, weights = [], fingerprint(judged)
    for text, (cost, unit) in zip(budgets, wanted, strict=True):
        price = prices[unit]
        if cost < price[0]:
            at = f", {len(some)} images at a time" if unit == "ms" else ""
            raise ConfigError(f"--budget {text}: the first look alone costs {format_cost(price[0], unit)}{at}; allow more")
        threshold = threshold_for(sure, price, cost)
        spent = mean_cost(sure, price, threshold)
        on: dict[str, Any] = {"batch_size": batch_size, "machine": machine_name(where)}
        found.append(Exit(text, threshold, ends[-1], at_once, spent, unit, len(sure), weights, precision, **(on if unit == "ms" else {})))
    return found


@dataclass(frozen=True)
class Spent:
    """What a way to spend looks gave.

    Attributes:
        name: a fixed budget as it is typed, or that of an exit.
        stops: whether images were left early.
        locations, macs: looks beyond the first and multiply-accumulates of the mean image.
        images: how many were classified.
        accuracy: share whose class came first.
        interval: its 95 % confidence interval (Wilson).
        milliseconds: of the mean image, from opening it to its class, in batches of ``batch_size``.
        batch_size: images at a time.
    """

    name: str
    stops: bool
    locations: float
    macs: float
    images: int
    accuracy: float
    interval: tuple[float, float]
    milliseconds: float
    batch_size: int


def spend(
    model: GlimpseClassifier | nn.Module | Run | str, data: DataModule, exits: Sequence[Exit], *, split: str | None = None,
    batch_size: int = 8, device: str | torch.device = "auto", precision: str = "32", on_progress: Callable[[int, int], None] | None = None,
    errors: dict[str, str] | None = None,
) -> list[Spent]:  # fmt: skip
    """Classify all images by fixed budgets and by exits, batch by batch in turn, so that what else the machine does falls on all alike.

    Args:
        model: a classifier that can stop on the way, or a run folder.
        data: images with labels.
        exits: of `solve`; the fixed budgets beside them are those at which their images can end.
        split: images to use; ``"test"`` if None, or ``"val"`` where there is no test split.
        batch_size, device, precision, on_progress: see `solve`.
        errors: gets path or name of images that could not be read, with one sentence.

    Returns:
        The fixed budgets, then the exits.

    Raises:
        DataError: no such split, or no image that can be read.
    """
    where = find_device(device)
    (judged,) = ready_for([model], data, where)
    data, split = plain_split(data, split)
    images = data.split(split)
    folded = fold_norms(judged)
    ends = list(dict.fromkeys(end for one in exits for end in turns(one.locations, one.at_once)))
    ways: list[Exit | tuple[int, ...]] = [*ends, *exits]
    right, looks, macs, seconds = np.zeros((4, len(ways)))
    macs_of = LookCounter(judged)
    total = 0
    starts = range(0, len(images), batch_size)
    for number, start in enumerate([0, *starts]):  # the first batch is taken twice, and does not count before
        rows = list(range(start, min(start + batch_size, len(images))))
        for i, way in enumerate(ways):
            began = time.perf_counter()
            batch = images.batch(0, rows, 0).to(where)
            if errors is not None:
                errors |= dict(batch.errors)
            if not len(batch):
                continue
            with torch.inference_mode(), autocast(precision, where):
                if isinstance(way, Exit):
                    seen = look_until(folded, batch.views, way.threshold, way.locations, way.at_once)
                else:
                    seen = folded(batch.views, locations=way, contributions=False)
                answer = seen.logits.argmax(-1).cpu()
            took = time.perf_counter() - began
            if errors is not None:
                errors |= {f"image {batch.index[j]}": reason for j, reason in batch.views.errors.items()}
            if number:
                good = [j for j in range(len(batch)) if j not in batch.views.errors]
                right[i] += int((answer == batch.target.cpu())[good].sum())
                looks[i] += np.asarray(seen.locations)[good].sum()
                budget = way.locations if isinstance(way, Exit) else way
                macs[i] += sum(macs_of(seen[j], batch.views.sizes[j], budget_of(seen[j].glimpses, budget)) for j in good)
                seconds[i] += took
                total += len(good) if i == 0 else 0
        if on_progress is not None:
            on_progress(number, len(starts))
    if not total:
        raise DataError("none of the images could be read; check the data")
    return [
        Spent(
            name=way.budget if isinstance(way, Exit) else format_budget(way), stops=isinstance(way, Exit), locations=looks[i] / total,
            macs=macs[i] / total, images=total, accuracy=right[i] / total,
            interval=wilson(int(right[i]), total), milliseconds=1e3 * seconds[i] / total, batch_size=batch_size,
        )
        for i, way in enumerate(ways)
    ]  # fmt: skip


@dataclass(frozen=True)
class EarlyExit:
    """Result of `stop_early`; ``about`` says on what, where and how."""

    file: ClassVar[str] = "early_exit.json"

    about: dict[str, Any]
    exits: tuple[Exit, ...]
    ways: tuple[Spent, ...]
    errors: tuple[tuple[str, str], ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Content of ``early_exit.json``."""
        return {**self.about, "exits": [asdict(one) for one in self.exits], "ways": [asdict(way) for way in self.ways]}

    def write(self, folder: str | Path) -> None:
        """Write ``early_exit.json``; `foveal.prediction.write_exits` is what keeps thresholds for later predictions.

        Raises:
            StorageError: it cannot be written.
        """
        write_json(folder, self.file, self.as_dict())

    def table(self, wide: bool = False) -> Group:
        """The result for people, to be printed by rich; with the budgets' costs on the validation images where ``wide``."""
        macs, exits = unit_for("MAC", [way.macs for way in self.ways]), {one.budget: one for one in self.exits}

        def of_exit(cell: Callable[[Exit], str]) -> Callable[[Spent], str]:
            return lambda way: cell(exits[way.name]) if way.stops else ""

        columns = [
            Column("budget", lambda way: way.name, TEXT),
            Column("leaves images", of_exit(lambda one: "never early" if one.threshold > 1 else f"{percent(one.threshold)} % sure"), TEXT),
            Column("looks", lambda way: fixed(way.locations, 2)),
            Column("accuracy, %", lambda way: percent(way.accuracy, way.interval)),
            Column(macs.name, lambda way: macs(way.macs)),
            Column("ms", lambda way: significant(way.milliseconds)),
        ]
        if wide:
            columns += [
                Column("threshold", of_exit(lambda one: fixed(one.threshold, 4))),
                Column("cost when solved", of_exit(lambda one: format_cost(one.cost, one.unit))),
                Column("images then", of_exit(lambda one: f"{one.images:,}")),
            ]
        about, first = self.about, self.ways[0]
        title = f"{about['model']} on {about['data']}, {about['split']}: {counted(first.images, 'image')}, {first.batch_size} at a time"
        fixed_ones, early = ([way for way in self.ways if way.stops is stops] for stops in (False, True))
        said = "Above the gap, all images get the same looks. looks, MACs and ms: of the mean image."
        return stacked(Table(title, columns, [*fixed_ones, None, *early]), f"±: 95 % interval, the longer of its two sides. {said}")


def stop_early(
    model: GlimpseClassifier | nn.Module | Run | str, data: DataModule, budgets: Sequence[str], *, locations: Sequence[int] | None = None,
    at_once: int = 1, split: str | None = None, batch_size: int = 8, workers: int = 0, device: str | torch.device = "auto",
    precision: str = "32", on_progress: Progress | None = None,
) -> EarlyExit:  # fmt: skip
    """Solve budgets on the validation images, and see on others what stopping early gives beside fixed budgets; see `solve`, `spend`."""

    def part(what: str) -> Callable[[int, int], None]:
        return lambda done, total: None if on_progress is None else on_progress(done, total, what)

    name = str(model.path) if isinstance(model, Run) else type(model).__name__ if isinstance(model, nn.Module) else str(model)
    exits = solve(
        model, data, budgets, locations=locations, at_once=at_once, batch_size=batch_size, workers=workers, device=device,
        precision=precision, on_progress=part("finding thresholds"),
    )  # fmt: skip
    errors: dict[str, str] = {}
    ways = spend(
        model, data, exits, split=split, batch_size=batch_size, device=device, precision=precision, on_progress=part("accuracy and times"),
        errors=errors,
    )  # fmt: skip
    about = {"model": name, **circumstances(*plain_split(data, split), find_device(device), precision, 0)}
    return EarlyExit(about, tuple(exits), tuple(ways), tuple(errors.items()))


def mean_cost(sure: np.ndarray, price: np.ndarray, threshold: float) -> float:
    """What the mean image costs, if each is left as soon as it is as sure as the threshold.

    Args:
        sure: (N, T) confidence of each image after each turn.
        price: (T,) cost of an image that is left after each turn; rising.
        threshold: see `foveal.prediction.early_exit.look_until`.
    """
    return float(price[left_after(sure, threshold)].mean())


def left_after(sure: np.ndarray, threshold: float) -> np.ndarray:
    """(N,) turn after which each image is left: the first at which it is as sure as the threshold, or the last of (N, T)."""
    leaves = sure >= threshold
    leaves[:, -1] = True
    return leaves.argmax(1)


def threshold_for(sure: np.ndarray, price: np.ndarray, cost: float) -> float:
    """The largest threshold that keeps the mean image within a cost; of those between two confidences the upper."""
    steps = np.append(np.unique(sure[:, :-1]), NEVER_SURE)
    low, high = 0, len(steps)  # the cost rises with the threshold
    while high - low > 1:
        middle = (low + high) // 2
        if mean_cost(sure, price, steps[middle]) <= cost:
            low = middle
        else:
            high = middle
    return float(steps[low])


def _confidences(
    model: GlimpseClassifier, batches: Iterable[Batch], ends: Sequence[tuple[int, ...]], at_once: int, precision: str,
    on_batch: Callable[[int], object],
) -> tuple[np.ndarray, tuple[int, int]]:  # fmt: skip
    """(N, T) confidence of every image after each turn, and the size of an image of median area."""
    rows, sizes, failed = [], [], ""
    for number, batch in enumerate(batches, start=1):
        if len(batch):
            batch = batch.to(model.mean.device)
            with torch.inference_mode(), autocast(precision, model.mean.device):
                sure = [confidence(logits) for logits in _looking_on(model, batch.views, ends[-1], at_once)]
            good = [i for i in range(len(batch)) if i not in batch.views.errors]
            failed = next(iter(batch.views.errors.values()), failed)
            if len(sure) != len(ends):
                raise ConfigError(f"--budget: {type(model).__name__} cannot stop on the way; use --locations instead")
            rows.append(torch.stack(sure, 1)[good].float().cpu().numpy())
            sizes.append(batch.views.sizes[good])
        on_batch(number)
    if not sum(map(len, rows)):
        raise DataError(f"none of the images could be read ({failed or 'there are none'}); check the data")
    return np.concatenate(rows), median_size(sizes)


def _times(
    model: GlimpseClassifier, views_of: Callable[[], Views], locations: Sequence[int], at_once: int, precision: str, seconds: float
) -> np.ndarray:
    """(T,) milliseconds from opening a batch to knowing how sure its images are after each turn; medians."""
    times: list[list[float]] = []
    began = time.perf_counter()
    while len(times) < WARM_UP + REPEATS or time.perf_counter() - began < seconds:
        start, ended = time.perf_counter(), []
        with torch.inference_mode(), autocast(precision, model.mean.device):
            for logits in _looking_on(model, views_of(), locations, at_once):
                confidence(logits).cpu()
                ended.append(1e3 * (time.perf_counter() - start))
        times.append(ended)
    return np.median(times[WARM_UP:], 0)


def _looking_on(model: GlimpseClassifier, views: Views, locations: Sequence[int], at_once: int) -> Iterator[Tensor]:
    """(n, classes) logits of all images after each turn, when none is left early."""
    walk = model.walk(views, locations, at_once, False)
    try:
        which, logits = next(walk)
        while True:
            yield logits
            which, logits = walk.send(np.ones(len(which), dtype=bool))
    except StopIteration as end:
        yield end.value.logits

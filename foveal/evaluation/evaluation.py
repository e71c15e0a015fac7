"""Accuracy against cost at every budget, beside random looks and beside the dense network.

Example:
    >>> from foveal.data import get_data
    >>> from foveal.runs import create_model
    >>> data = get_data("digits", canvas=96, digit=(12, 16), train=10, val=10, test=20)
    >>> model = create_model("tnet", backbone="test_efficientnet", num_classes=10, base_size=32, locations=(2,))
    >>> result = evaluate(model, data, measured=False)
    >>> [(point.kind, point.locations, point.total_locations) for point in result.points]
    [('learned', (), 0.0), ('learned', (1,), 1.0), ('learned', (2,), 2.0), ('random', (1,), 1.0), ('random', (2,), 2.0)]
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from foveal.data import DataModule, Dataset, check_classes
from foveal.errors import ConfigError
from foveal.evaluation.accuracy import Judged, Plan, Scores, judge, wilson
from foveal.evaluation.cost import Measured, best_batch, measure
from foveal.evaluation.picture import draw_tradeoff
from foveal.glimpse.base import GlimpseClassifier
from foveal.images.views import Views
from foveal.prediction.budget import format_budget
from foveal.prediction.cost import count
from foveal.prediction.device import find_device
from foveal.prediction.rows import check_locations, ready
from foveal.runs import Run, replacing

if TYPE_CHECKING:
    from rich.table import Table

HOW = (
    "macs: as torch's flop counter sees them, halved, for the image of median area. Milliseconds an image: from opening it to its class, "
    "files in the page cache, one process; single: at batch 1; batched: at the batch that was fastest for the largest budget. peak_memory, "
    "bytes_read: of the first call; memory is the growth of the process on a CPU, and torch's peak on a GPU."
)

LARGEST_BATCH = {"cpu": 64, "cuda": 512}


@dataclass(frozen=True)
class Point:
    """A model at one budget.

    Attributes:
        kind: ``"learned"`` looks, ``"random"`` looks of the same model, or ``"against"``, another model.
        name: what to call it.
        locations: budget.
        total_locations: looks beyond the first that an image got, mean.
        images: how many were classified.
        accuracy: share whose class came first.
        interval: its 95 % confidence interval (Wilson).
        top5: share whose class was among the first five; None with five classes or fewer.
        nll: mean negative log-likelihood, nats.
        macs: multiply-accumulates an image.
        parameters: trainable ones.
        single, batched: measured at batch 1 and at the best batch; None where nothing was measured.
    """

    kind: str
    name: str
    locations: tuple[int, ...]
    total_locations: float
    images: int
    accuracy: float
    interval: tuple[float, float]
    top5: float | None
    nll: float
    macs: int
    parameters: int
    single: Measured | None = None
    batched: Measured | None = None


@dataclass(frozen=True)
class DenseCost:
    """What the bare backbone would cost on the whole image at this (height, width); ``macs`` is None where it takes no such image."""

    name: str
    size: tuple[int, int]
    macs: int | None
    parameters: int | None


@dataclass(frozen=True)
class Evaluation:
    """Result of `evaluate`; ``about`` says on what, where and how."""

    about: dict[str, Any]
    points: tuple[Point, ...]
    dense: tuple[DenseCost, ...]
    errors: tuple[tuple[str, str], ...]

    def as_dict(self) -> dict[str, Any]:
        """Content of ``evaluation.json``."""
        return {
            **self.about,
            "points": [asdict(point) for point in self.points],
            "dense": [asdict(cost) for cost in self.dense],
            "errors": [{"image": image, "error": error} for image, error in self.errors],
        }

    def write(self, folder: str | Path) -> None:
        """Write ``evaluation.json`` and ``tradeoff.png``.

        Raises:
            ConfigError: the folder cannot be written.
        """
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with replacing(folder / "evaluation.json") as unfinished:
                unfinished.write_text(json.dumps(self.as_dict(), indent=2) + "\n")
            with replacing(folder / "tradeoff.png") as unfinished:
                draw_tradeoff(self, unfinished)
        except OSError as error:
            raise ConfigError(f"{folder}: cannot be written ({error.strerror}); choose another --out") from error

    def table(self) -> Table:
        """The result for people, to be printed by rich."""
        return _table(self)


def evaluate(
    model: GlimpseClassifier | nn.Module | Run | str | Path, data: DataModule, *, budgets: Sequence[Sequence[int]] | None = None,
    against: str | Path | Run | nn.Module | Sequence[str | Path | Run | nn.Module] | None = None, split: str | None = None,
    batch_size: int = 32, workers: int = 0, device: str | torch.device = "auto", precision: str = "32", seed: int = 0,
    measured: bool = True, seconds: float = 0.5, out: str | Path | None = None, on_progress: Callable[[int, int], None] | None = None,
) -> Evaluation:  # fmt: skip
    """Find accuracy and cost at every budget.

    Args:
        model: a classifier, a dense network, or a run folder.
        data: images with labels.
        budgets: see `foveal.prediction.parse_locations`; if None from the thumbnail alone to the model's own budget.
        against: other models, by default none: say run folders of dense networks, for their accuracy beside their cost.
        split: images to use; ``"test"`` if None, or ``"val"`` where there is no test split.
        batch_size: images at a time for accuracy.
        workers: processes that read ahead.
        device: see `foveal.prediction.find_device`.
        precision: see `foveal.prediction.autocast`.
        seed: of random looks.
        measured: measure time and memory as well as count.
        seconds: least time of each measurement.
        out: folder for ``evaluation.json`` and ``tradeoff.png``; nothing is written if None.
        on_progress: called with how many batches are done, and how many there are.

    Raises:
        ConfigError: a budget or option that does not fit.
        DataError: other classes than the model's, no such split, or no image that can be read.
        RunError: a run folder that is none.
    """
    where = find_device(device)
    if data.train is not None:
        data = replace(data, train=data.train.plain())
    split = split or ("test" if data.test is not None and len(data.test) else "val")
    models = [model, *(against if isinstance(against, list | tuple) else [] if against is None else [against])]
    first, *others = (_ready(m, where) for m in models)
    name, *other_names = _names(models)
    for judged in (first, *others):
        _check_classes(judged, data)
    batches = -(-len(data.split(split)) // batch_size) * (1 + len(others))
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        if on_progress is not None:
            on_progress(done, batches)

    def points_of(judged: GlimpseClassifier, kind: str, name: str, plans: Sequence[Plan]) -> tuple[list[Point], Judged]:
        loader = data.loader(split, batch_size=batch_size, workers=workers, seed=seed, first_looks=judged.first_looks, shuffle=False)
        found = judge(judged, loader, plans, precision=precision, seed=seed, on_batch=step)
        costs = _measure(judged, data.split(split), found.good, plans, precision, seconds) if measured else {}
        kinds = ["random" if plan.policy == "random" else kind for plan in plans]
        rows = zip(kinds, plans, found.scores, strict=True)
        return [_point(k, name, judged, plan, scores, found.size, costs.get(plan, (None, None))) for k, plan, scores in rows], found

    points, found = points_of(first, "learned", name, _plans(first, budgets))
    errors = dict(found.errors)
    for other, other_name in zip(others, other_names, strict=True):
        more, also = points_of(other, "against", other_name, [Plan(tuple(other.locations))])
        points += more
        errors |= dict(also.errors)
    about = {
        "model": name, "data": data.name, "split": split, "classes": len(data.classes), "image_size": list(found.size),
        "device": str(where), "machine": _machine(where), "threads": torch.get_num_threads(), "torch": torch.__version__,
        "precision": precision, "seed": seed, "how": HOW,
    }  # fmt: skip
    result = Evaluation(about, tuple(points), _dense(first, found.size), tuple(errors.items()))
    if out is not None:
        result.write(out)
    return result


def _ready(model: Any, device: torch.device) -> GlimpseClassifier:
    return ready(model.path if isinstance(model, Run) else model, device)


def _names(models: Sequence[Any]) -> list[str]:
    """A name for each model: its run folder, or a number."""
    paths = [model.path if isinstance(model, Run) else model for model in models]
    return [str(path) if isinstance(path, str | Path) else f"model {i}" if i else "model" for i, path in enumerate(paths)]


def _check_classes(model: GlimpseClassifier, data: DataModule) -> None:
    if model.class_names:
        check_classes(model.class_names, data)
    elif model.num_classes != len(data.classes):
        raise ConfigError(f"{data.name}: has {len(data.classes)} classes, the model {model.num_classes}; use data with the model's classes")


def _plans(model: GlimpseClassifier, budgets: Sequence[Sequence[int]] | None) -> list[Plan]:
    """Learned looks at every budget, then random ones."""
    if budgets is None:
        first, *rest = model.locations or (0,)
        budgets = [(k, *rest) if k else () for k in range(first + 1)]
    learned = [Plan(check_locations(model, budget)) for budget in budgets]
    return learned + [Plan(plan.locations, "random") for plan in learned if plan.locations]


def _point(
    kind: str,
    name: str,
    model: GlimpseClassifier,
    plan: Plan,
    scores: Scores,
    size: tuple[int, int],
    costs: tuple[Measured | None, Measured | None],
) -> Point:
    cost = count(model, size, plan.locations)
    return Point(
        kind=kind,
        name=name,
        locations=plan.locations,
        total_locations=scores.locations / scores.images,
        images=scores.images,
        accuracy=scores.correct / scores.images,
        interval=wilson(scores.correct, scores.images),
        top5=scores.correct5 / scores.images if model.num_classes > 5 else None,
        nll=scores.nll / scores.images,
        macs=cost.macs,
        parameters=cost.parameters,
        single=costs[0],
        batched=costs[1],
    )


def _measure(
    model: GlimpseClassifier, dataset: Dataset, good: np.ndarray, plans: Sequence[Plan], precision: str, seconds: float
) -> dict[Plan, tuple[Measured, Measured]]:
    """Time each plan of learned looks, at batch 1 and at the batch that is best for the largest budget."""
    device = model.mean.device

    def views_of(n: int) -> Views:
        return dataset.batch(0, good[:n].tolist(), 0).to(device).views

    learned = [plan for plan in plans if plan.policy != "random"]
    largest = min(LARGEST_BATCH.get(device.type, 64), len(good))
    best = best_batch(model, views_of, largest, locations=max(learned).locations, precision=precision, seconds=seconds).batch_size
    return {
        plan: (
            measure(model, views_of, 1, locations=plan.locations, precision=precision, seconds=seconds),
            measure(model, views_of, best, locations=plan.locations, precision=precision, seconds=seconds),
        )
        for plan in learned
    }


def _dense(model: GlimpseClassifier, full: tuple[int, int]) -> tuple[DenseCost, ...]:
    network = model.dense()
    costs = []
    for name, size in (("dense, thumbnail", model.size), ("dense, full size", full)):
        try:
            cost = count(network, size)
        except ConfigError:
            costs.append(DenseCost(name, size, None, None))
        else:
            costs.append(DenseCost(name, size, cost.macs, cost.parameters))
    return tuple(costs)


def _machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()}, {os.cpu_count()} processors"


def _table(evaluation: Evaluation) -> Table:
    from rich.table import Table

    table = Table(title=f"{evaluation.about['model']} on {evaluation.about['data']}, {evaluation.about['split']}", title_justify="left")
    table.add_column("")
    for name in ("locations", "in all", "accuracy, 95 %", "random looks", "MACs", "ms/image", "p95", "ms at batch", "memory", "read"):
        table.add_column(name, justify="right")
    random = {point.locations: point for point in evaluation.points if point.kind == "random"}
    for point in evaluation.points:
        if point.kind != "random":
            beside = random.get(point.locations)
            one, many = point.single, point.batched
            table.add_row(
                "learned looks" if point.kind == "learned" and random else point.name,
                format_budget(point.locations),
                f"{point.total_locations:g}",
                f"{100 * point.accuracy:.1f} %  {100 * point.interval[0]:.1f} to {100 * point.interval[1]:.1f}",
                "" if beside is None else f"{100 * beside.accuracy:.1f} %",
                _si(point.macs),
                "" if one is None else f"{one.p50:.3g}",
                "" if one is None else f"{one.p95:.3g}",
                "" if many is None else f"{many.p50:.3g} at {many.batch_size}",
                "" if one is None or one.peak_memory is None else f"{one.peak_memory / 2**20:.1f} MiB",
                "" if one is None or one.bytes_read is None else f"{one.bytes_read / 1024:.0f} KiB",
            )
    for cost in evaluation.dense:
        size = f"{cost.size[0]} x {cost.size[1]}"
        table.add_row(f"{cost.name} ({size})", "", "", "", "", "takes no such image" if cost.macs is None else _si(cost.macs), *[""] * 5)
    return table


def _si(number: float) -> str:
    """A number with three digits and k, M, G or T."""
    for unit in ("", "k", "M", "G"):
        if abs(number) < 999.5:
            return f"{number:.3g} {unit}".strip()
        number /= 1000
    return f"{number:.3g} T"

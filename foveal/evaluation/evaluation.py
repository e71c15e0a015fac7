"""Accuracy against cost at every budget, beside random looks, other policies and the dense network.

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
from foveal.prediction.device import find_device, machine_name
from foveal.prediction.folding import fold_norms
from foveal.prediction.rows import check_locations, check_policies, ready
from foveal.runs import Run, replacing

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

HOW = (
    "macs: as torch's flop counter sees them, halved, for the image of median area. Milliseconds an image: from opening it to its class, "
    "files in the page cache, one process, batch norms folded as in predictions; single: at batch 1; batched: at the batch that was "
    "fastest for the largest budget. peak_memory, "
    "bytes_read: of the first call; memory is the growth of the process on a CPU, and torch's peak on a GPU."
)

LARGEST_BATCH = {"cpu": 64, "cuda": 512}


@dataclass(frozen=True)
class Point:
    """A model at one budget.

    Attributes:
        kind: ``"learned"`` looks, ``"random"`` looks of the same model or those of another policy, by its name; or ``"against"``,
            another model.
        name: what to call it.
        locations: budget.
        total_locations: looks beyond the first that an image got, mean.
        coverage: share of the image inside the boxes of these looks, mean.
        diversity: distance between two of them, in units where the image's sides span -1 to 1, mean; None with fewer than two.
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
    coverage: float
    diversity: float | None
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
        write_results(folder, "evaluation.json", self.as_dict(), "tradeoff.png", lambda file: draw_tradeoff(self, file))

    def table(self) -> Group:
        """The result for people, to be printed by rich."""
        from rich.console import Group

        others = [kind for kind in dict.fromkeys(point.kind for point in self.points) if kind not in ("learned", "random", "against")]
        return Group(_table(self), *([_policy_table(self, ["learned", "random", *others])] if others else []))


def evaluate(
    model: GlimpseClassifier | nn.Module | Run | str | Path, data: DataModule, *, budgets: Sequence[Sequence[int]] | None = None,
    against: str | Path | Run | nn.Module | Sequence[str | Path | Run | nn.Module] | None = None, split: str | None = None,
    batch_size: int = 32, workers: int = 0, device: str | torch.device = "auto", precision: str = "32", seed: int = 0,
    measured: bool = True, seconds: float = 0.5, out: str | Path | None = None, on_progress: Callable[[int, int], None] | None = None,
    policies: Sequence[str] = (),
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
        policies: ways of selecting cells to try beside the model's own and random looks. ``exhaustive`` does not heed budgets: it
            gets one point for each number of levels, at the budget that it amounts to.

    Raises:
        ConfigError: a budget, policy or option that does not fit.
        DataError: other classes than the model's, no such split, or no image that can be read.
        RunError: a run folder that is none.
    """
    where = find_device(device)
    models = [model, *(against if isinstance(against, list | tuple) else [] if against is None else [against])]
    first, *others = ready_for(models, data, where)
    name, *other_names = names_of(models)
    plans = plans_of(first, budgets, policies)
    data, split = plain_split(data, split)
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
        kinds = [kind if plan.policy == "greedy" else plan.policy for plan in plans]
        rows = zip(kinds, plans, found.scores, strict=True)
        return [_point(k, name, judged, plan, scores, found.size, costs.get(plan, (None, None))) for k, plan, scores in rows], found

    points, found = points_of(first, "learned", name, plans)
    errors = dict(found.errors)
    for other, other_name in zip(others, other_names, strict=True):
        more, also = points_of(other, "against", other_name, [Plan(tuple(other.locations))])
        points += more
        errors |= dict(also.errors)
    about = {"model": name, "image_size": list(found.size), **circumstances(data, split, where, precision, seed), "how": HOW}
    result = Evaluation(about, tuple(points), _dense(first, found.size), tuple(errors.items()))
    if out is not None:
        result.write(out)
    return result


def ready_for(models: Sequence[Any], data: DataModule, device: torch.device) -> list[GlimpseClassifier]:
    """Classifiers, on the device, in evaluation mode.

    Args:
        models: classifiers, dense networks and run folders.
        data: what they are to classify.
        device: where to.

    Raises:
        DataError, ConfigError: one has other classes.
        RunError: a run folder that is none.
    """
    found = [ready(model.path if isinstance(model, Run) else model, device) for model in models]
    for model in found:
        if model.class_names:
            check_classes(model.class_names, data)
        elif model.num_classes != len(data.classes):
            what = f"has {len(data.classes)} classes, the model {model.num_classes}"
            raise ConfigError(f"{data.name}: {what}; use data with the model's classes")
    return found


def write_results(folder: str | Path, name: str, content: dict[str, Any], picture: str, draw: Callable[[Path], None]) -> None:
    """Write JSON and a picture into a folder, which is made.

    Raises:
        ConfigError: the folder cannot be written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / name) as unfinished:
            unfinished.write_text(json.dumps(content, indent=2) + "\n")
        with replacing(folder / picture) as unfinished:
            draw(unfinished)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written ({error.strerror}); choose another --out") from error


def names_of(models: Sequence[Any]) -> list[str]:
    """A name for each model: its run folder, or a number."""
    paths = [model.path if isinstance(model, Run) else model for model in models]
    return [str(path) if isinstance(path, str | Path) else f"model {i}" if i else "model" for i, path in enumerate(paths)]


def plain_split(data: DataModule, split: str | None) -> tuple[DataModule, str]:
    """The data without anything random, and the split to judge by: ``"test"`` if None, or ``"val"`` where there is no test split."""
    if data.train is not None:
        data = replace(data, train=data.train.plain())
    return data, split or ("test" if data.test is not None and len(data.test) else "val")


def plans_of(model: GlimpseClassifier, budgets: Sequence[Sequence[int]] | None, policies: Sequence[str]) -> list[Plan]:
    """Learned looks at every budget, then random ones and those of other policies.

    Raises:
        ConfigError: a budget or a policy that the model does not know.
    """
    check_policies(model, policies)
    if budgets is None:
        first, *rest = model.locations or (0,)
        budgets = [(k, *rest) if k else () for k in range(first + 1)]
    learned = [Plan(check_locations(model, budget)) for budget in budgets]
    beside = [policy for policy in dict.fromkeys(["random", *policies]) if policy in model.policies and policy != "greedy"]
    plans = [Plan(plan.locations, policy) for policy in beside for plan in learned if plan.locations]
    # One exhaustive plan says what all would that have as many levels.
    deepest = {len(plan.locations): plan for plan in plans if plan.policy == "exhaustive"}
    return learned + [plan for plan in plans if plan.policy != "exhaustive" or deepest[len(plan.locations)] == plan]


def circumstances(data: DataModule, split: str, device: torch.device, precision: str, seed: int) -> dict[str, Any]:
    """On what and where something was found out, for a file of results."""
    from foveal import __version__

    return {
        "data": data.name, "split": split, "classes": len(data.classes), "device": str(device),
        "machine": machine_name(device), "threads": torch.get_num_threads(),
        "foveal": __version__, "torch": torch.__version__, "precision": precision, "seed": seed,
    }  # fmt: skip


def _point(
    kind: str,
    name: str,
    model: GlimpseClassifier,
    plan: Plan,
    scores: Scores,
    size: tuple[int, int],
    costs: tuple[Measured | None, Measured | None],
) -> Point:
    cost = count(model, size, plan.locations, plan.policy)
    return Point(
        kind=kind,
        name=name,
        locations=scores.budget,
        total_locations=scores.locations / scores.images,
        coverage=scores.coverage / scores.images,
        diversity=scores.diversity / scores.several if scores.several else None,
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


def opener(dataset: Dataset, good: np.ndarray, device: torch.device) -> Callable[[int], Views]:
    """What opens the first n of these images of a data set, for `measure`."""
    return lambda n: dataset.batch(0, good[:n].tolist(), 0).to(device).views


def _measure(
    model: GlimpseClassifier, dataset: Dataset, good: np.ndarray, plans: Sequence[Plan], precision: str, seconds: float
) -> dict[Plan, tuple[Measured, Measured]]:
    """Time each plan of learned looks, at batch 1 and at the batch that is best for the largest budget."""
    device, model = model.mean.device, fold_norms(model)
    views_of = opener(dataset, good, device)
    learned = [plan for plan in plans if plan.policy == "greedy"]
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


def _table(evaluation: Evaluation) -> Table:
    from rich.table import Table

    table = Table(title=f"{evaluation.about['model']} on {evaluation.about['data']}, {evaluation.about['split']}", title_justify="left")
    table.add_column("")
    measured = ("MACs", "ms/image", "p95", "ms at batch", "memory", "read")
    for name in ("locations", "in all", "covered", "accuracy, 95 %", "random looks", *measured):
        table.add_column(name, justify="right")
    random = {point.locations: point for point in evaluation.points if point.kind == "random"}
    for point in evaluation.points:
        if point.kind in ("learned", "against"):
            beside = random.get(point.locations)
            one, many = point.single, point.batched
            table.add_row(
                "learned looks" if point.kind == "learned" and random else point.name,
                format_budget(point.locations),
                f"{point.total_locations:g}",
                f"{100 * point.coverage:.1f} %" if point.total_locations else "",
                f"{100 * point.accuracy:.1f} %  {100 * point.interval[0]:.1f} to {100 * point.interval[1]:.1f}",
                "" if beside is None else f"{100 * beside.accuracy:.1f} %",
                format_si(point.macs),
                "" if one is None else f"{one.p50:.3g}",
                "" if one is None else f"{one.p95:.3g}",
                "" if many is None else f"{many.p50:.3g} at {many.batch_size}",
                "" if one is None or one.peak_memory is None else f"{one.peak_memory / 2**20:.1f} MiB",
                "" if one is None or one.bytes_read is None else f"{one.bytes_read / 1024:.0f} KiB",
            )
    for cost in evaluation.dense:
        size = f"{cost.size[0]} x {cost.size[1]}"
        macs = "takes no such image" if cost.macs is None else format_si(cost.macs)
        table.add_row(f"{cost.name} ({size})", *[""] * 5, macs, *[""] * 5)
    return table


def _policy_table(evaluation: Evaluation, kinds: Sequence[str]) -> Table:
    """A row a budget, a column a policy."""
    from rich.table import Table

    table = Table(title="accuracy (and image covered) by policy, %", title_justify="left")
    table.add_column("locations", justify="right")
    for kind in kinds:
        table.add_column(kind, justify="right")
    points = {(point.kind, point.locations): point for point in evaluation.points}
    for budget in sorted({budget for kind, budget in points if kind != "against"}):
        row = [points.get((kind, budget)) for kind in kinds]
        cells = ["" if p is None else f"{100 * p.accuracy:.1f} ({100 * p.coverage:.0f})" for p in row]
        table.add_row(format_budget(budget), *cells)
    return table


def format_si(number: float) -> str:
    """A number with three digits and k, M, G or T."""
    for unit in ("", "k", "M", "G"):
        if abs(number) < 999.5:
            return f"{number:.3g} {unit}".strip()
        number /= 1000
    return f"{number:.3g} T"

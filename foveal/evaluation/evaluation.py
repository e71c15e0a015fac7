"""Accuracy against cost at every budget, beside random looks, other policies and the dense network.

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

import json
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
import torch
from torch import nn

from foveal.data import DataModule, Dataset, check_classes
from foveal.data.values import check_values
from foveal.display import NAME, TEXT, Column, Table, counted, fixed, image_size, percent, significant, stacked, unit_for
from foveal.errors import ConfigError
from foveal.evaluation.accuracy import Judged, Plan, Scores, judge, looks_of, wilson
from foveal.evaluation.cost import Measure, Measured, Timed, check_measure, measure_budgets, measure_steps
from foveal.evaluation.picture import draw_tradeoff
from foveal.files import taking_turns
from foveal.glimpse.base import GlimpseClassifier
from foveal.images.views import Views
from foveal.prediction.budget import format_budget
from foveal.prediction.cost import count
from foveal.prediction.device import find_device, machine_name
from foveal.prediction.rows import check_locations, check_policies, ready
from foveal.runs import Run

if TYPE_CHECKING:
    from rich.console import Group

HOW = (
    "macs: as torch's flop counter sees them, halved, for the image of median area. Milliseconds an image: from opening it to its class, "
    "files in the page cache, one process, batch norms folded as in predictions, budgets in turn; single: at batch 1; batched: at the "
    "batch that was fastest for the model's largest budget, of those that a quick measurement has time for. peak_memory, "
    "bytes_read: of the first call; memory is the growth of the process on a CPU, and torch's peak on a GPU."
)

Progress = Callable[[int, int, str], None]
"""Called with how much is done, how much there is, and what is being done."""


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

    file: ClassVar[str] = "evaluation.json"

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
            StorageError: a file cannot be written.
        """
        write_results(folder, self.file, self.as_dict(), "tradeoff.png", lambda file: draw_tradeoff(self, file))

    def table(self, wide: bool = False) -> Group:
        """The result for people, to be printed by rich: what decides between budgets, or everything where ``wide``."""
        return stacked(_table(self, wide), *_policy_tables(self, wide), _legend(self))


def evaluate(
    model: GlimpseClassifier | nn.Module | Run | str | Path, data: DataModule, *, budgets: Sequence[Sequence[int]] | None = None,
    against: str | Path | Run | nn.Module | Sequence[str | Path | Run | nn.Module] | None = None, split: str | None = None,
    batch_size: int = 32, workers: int = 0, device: str | torch.device = "auto", precision: str = "32", seed: int = 0,
    measure: Measure = "quick", out: str | Path | None = None, on_progress: Progress | None = None, policies: Sequence[str] = (),
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
        measure: how thoroughly time and memory are measured, after accuracy: ``"quick"`` takes about 20 s in all, ``"full"`` takes 0.5 s
            and longer for each number, ``"none"`` leaves them out. See `foveal.evaluation.measure_budgets`.
        out: folder for ``evaluation.json`` and ``tradeoff.png``; nothing is written if None.
        on_progress: called with how much is done, how much there is, and what is being done: ``"accuracy"``, in looks at a batch, then
            ``"timings"``.
        policies: ways of selecting cells to try beside the model's own and random looks. ``exhaustive`` does not heed budgets: it
            gets one point for each number of levels, at the budget that it amounts to.

    Raises:
        ConfigError: a budget, policy or option that does not fit.
        DataError: other classes than the model's, no such split, or no image that can be read.
        RunError: a run folder that is none.
    """
    check_measure(measure)
    where = find_device(device)
    models = [model, *(against if isinstance(against, list | tuple) else [] if against is None else [against])]
    first, *others = ready_for(models, data, where)
    name, *other_names = names_of(models)
    plans = plans_of(first, budgets, policies)
    data, split = plain_split(data, split)
    images = data.split(split)
    panel = [("learned", name, first, plans)]
    panel += [("against", name, other, [Plan(tuple(other.locations))]) for name, other in zip(other_names, others, strict=True)]
    batches, looks = -(-len(images) // batch_size), sum(looks_of(plan) for *_, plans in panel for plan in plans)
    step = steps(on_progress, "accuracy", batches * looks)
    seen: list[Judged] = []
    for _, _, judged, its_plans in panel:
        loader = data.loader(split, batch_size=batch_size, workers=workers, seed=seed, first_looks=judged.first_looks, shuffle=False)
        seen.append(judge(judged, loader, its_plans, precision=precision, seed=seed, on_step=step))
    timed = [
        Timed(judged, [plan.locations for plan in plans if plan.policy == "greedy"], opener(images, found.good, where), len(found.good))
        for (_, _, judged, plans), found in zip(panel, seen, strict=True)
    ]
    step = steps(on_progress, "timings", measure_steps(len(timed), measure))
    costs = measure_budgets(timed, measure, precision=precision, on_step=step)
    points = [
        _point(kind, name, judged, plan, scores, found.size, times)
        for (kind, name, judged, plans), found, times in zip(panel, seen, costs, strict=True)
        for plan, scores in zip(plans, found.scores, strict=True)
    ]
    size = seen[0].size
    about = {
        "model": name, "image_size": list(size), **circumstances(data, split, where, precision, seed), "measure": measure, "how": HOW,
    }  # fmt: skip
    errors = {image: error for found in seen for image, error in found.errors}
    result = Evaluation(about, tuple(points), _dense(first, size), tuple(errors.items()))
    if out is not None:
        result.write(out)
    return result


def steps(on_progress: Progress | None, what: str, total: int) -> Callable[..., None]:
    """What counts the steps of one part of the work, one at a time or as many as it is told."""
    done = 0

    def step(count: int = 1) -> None:
        nonlocal done
        done += count
        if on_progress is not None:
            on_progress(done, total, what)

    return step


def ready_for(models: Sequence[Any], data: DataModule, device: torch.device) -> list[GlimpseClassifier]:
    """Classifiers, on the device, in evaluation mode.

    Args:
        models: classifiers, dense networks and run folders.
        data: what they are to classify.
        device: where to.

    Raises:
        DataError, ConfigError: one has other classes, or was trained on another range of values.
        RunError: a run folder that is none.
    """
    found = [ready(model.path if isinstance(model, Run) else model, device) for model in models]
    for model in found:
        if model.class_names:
            check_classes(model.class_names, data)
        elif model.num_classes != len(data.classes):
            what = f"has {len(data.classes)} classes, the model {model.num_classes}"
            raise ConfigError(f"{data.name}: {what}; use data with the model's classes")
        check_values(model, data)
    return found


ELSEWHERE = "make room, or choose another --out"
"""What to do where a result cannot be written."""


def write_results(folder: str | Path, name: str, content: dict[str, Any], picture: str, draw: Callable[[Path], None]) -> None:
    """Write JSON and a picture into a folder, which is made. Another process that writes the same is waited for.

    Raises:
        StorageError: one of them cannot be written; the folder holds the old one, or none.
    """
    write_json(folder, name, content)
    with taking_turns(Path(folder) / picture, ELSEWHERE) as unfinished:
        draw(unfinished)


def write_json(folder: str | Path, name: str, content: Any) -> None:
    """Write a JSON file as `write_results` does."""
    with taking_turns(Path(folder) / name, ELSEWHERE) as unfinished:
        unfinished.write_text(json.dumps(content, indent=2) + "\n")


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
    beside = [policy for policy in dict.fromkeys(["random", *map(str, policies)]) if policy in model.policies and policy != "greedy"]
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
    times: Mapping[tuple[int, ...], tuple[Measured, Measured]],
) -> Point:
    cost, learned = count(model, size, plan.locations, plan.policy), plan.policy == "greedy"
    single, batched = times.get(plan.locations, (None, None)) if learned else (None, None)
    return Point(
        kind=kind if learned else plan.policy,
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
        single=single,
        batched=batched,
    )


def opener(dataset: Dataset, good: np.ndarray, device: torch.device) -> Callable[[int], Views]:
    """What opens the first n of these images of a data set, for `measure`."""
    return lambda n: dataset.batch(0, good[:n].tolist(), 0).to(device).views


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


def _table(evaluation: Evaluation, wide: bool) -> Table:
    """A row a budget, with random looks beside learned ones; below it other models, and what the dense network costs."""
    about, costs = evaluation.about, evaluation.dense
    learned, against = ([point for point in evaluation.points if point.kind == kind] for kind in ("learned", "against"))
    random = {point.locations: percent(point.accuracy, point.interval) for point in evaluation.points if point.kind == "random"}

    def of_point(cell: Callable[[Point], str]) -> Callable[[Point | DenseCost], str]:
        return lambda row: cell(row) if isinstance(row, Point) else ""

    def name(row: Point | DenseCost) -> str:
        if isinstance(row, DenseCost):
            return f"dense, {image_size(row.size)} px"
        return row.name if row.kind == "against" else format_budget(row.locations)

    budgets_and_sizes: list[Point | DenseCost] = [*learned, *costs]
    columns = [
        Column("locations", name, NAME, least=max(len(name(row)) for row in budgets_and_sizes)),
        Column("accuracy, %", of_point(lambda p: percent(p.accuracy, p.interval))),
        Column("random looks, %", of_point(lambda p: random.get(p.locations, "") if p.kind == "learned" else "")),
        *cost_columns([*learned, *against, *costs]),
    ]
    if wide:
        columns += [
            Column("looks", of_point(lambda p: fixed(p.total_locations, 1))),
            Column("covered, %", of_point(lambda p: percent(p.coverage))),
            Column("distance", of_point(lambda p: fixed(p.diversity, 2))),
            Column("top 5, %", of_point(lambda p: percent(p.top5))),
            Column("NLL", of_point(lambda p: fixed(p.nll, 3))),
            *wide_cost_columns([*learned, *against, *costs]),
        ]
    images = f"{counted(learned[0].images, 'image')} of {image_size(about['image_size'])} px"
    rows = [*learned, *([None, *against] if against else []), None, *costs]
    return Table(f"{about['model']} on {about['data']}, {about['split']}: {images}", columns, rows)


class Costed(Protocol):
    """What has costs, counted and perhaps measured."""

    @property
    def macs(self) -> int | None: ...
    @property
    def parameters(self) -> int | None: ...


def cost_columns(rows: Sequence[Costed], front: Callable[[Any], Container[str]] = lambda row: ()) -> list[Column]:
    """Columns of what an image costs: multiply-accumulates, and time and memory where they were measured.

    Args:
        rows: what will stand there: every column has one unit.
        front: for which of ``macs``, ``ms`` and ``memory`` a row is marked.
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
    """Further columns of what an image costs."""
    read = unit_for("B", [one.bytes_read for one in _timings(rows, "single")])
    return [
        Column("parameters", lambda row: "" if row.parameters is None else f"{row.parameters:,}"),
        Column(f"{read.name} read", _of_timing("single", lambda one: read(one.bytes_read))),
        Column("ms, p95", _of_timing("single", lambda one: significant(one.p95))),
        Column("best batch", _of_timing("batched", lambda many: f"{many.batch_size:,}")),
        Column("ms at best batch", _of_timing("batched", lambda many: significant(many.p50))),
        Column("p95 at best batch", _of_timing("batched", lambda many: significant(many.p95))),
    ]


def _timings(rows: Sequence[Costed], which: str) -> list[Measured]:
    return [measured for row in rows if (measured := getattr(row, which, None)) is not None]


def _of_timing(which: str, cell: Callable[[Measured], str]) -> Callable[[Any], str]:
    """A cell of what was measured, empty for rows of which nothing was."""
    return lambda row: "".join(map(cell, _timings([row], which)))


def _legend(evaluation: Evaluation) -> str:
    """What the columns of the table are."""
    about = evaluation.about
    said = ["±: 95 % interval, the longer of its two sides."]
    if any(point.kind == "random" for point in evaluation.points):
        said.append("random looks: of the same model, drawn without its guidance.")
    if about["measure"] != "none":
        said.append(f"ms: one image at a time, median, on {about['machine']}.")
    if any(cost.macs is None for cost in evaluation.dense):
        said.append("The dense network takes no image of the size that has no MACs here.")
    return " ".join(said)


def _policy_tables(evaluation: Evaluation, wide: bool) -> list[Table]:
    """A row a policy, a column a budget: accuracy, and the share of the image that looks cover; none without further policies."""
    points = {(point.kind, point.locations): point for point in evaluation.points if point.kind != "against"}
    kinds = dict.fromkeys(kind for kind, _ in points)
    if not set(kinds) - {"learned", "random"}:
        return []

    def column(budget: tuple[int, ...], of: Callable[[Point], float]) -> Column:
        return Column(format_budget(budget), lambda kind: percent(of(points[kind, budget])) if (kind, budget) in points else "")

    def table(title: str, of: Callable[[Point], float]) -> Table:
        budgets = sorted({budget for _, budget in points})
        return Table(title, [Column("policy", str, TEXT), *(column(budget, of) for budget in budgets)], kinds)

    tables = [table("accuracy by policy and locations, %", lambda point: point.accuracy)]
    return [*tables, table("share of the image covered by policy and locations, %", lambda point: point.coverage)] if wide else tables

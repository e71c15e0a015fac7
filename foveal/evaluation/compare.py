"""Several models on the same images: what each gets right, how sure it is of it, and what that costs.

Accuracy and calibration come from one pass a model, over the images that all of them could read. Times are taken in turn, a little of
each model in every round, so that what else the machine does falls on all alike. Whether learning where to look has paid is the policy
gap: accuracy by learned looks less accuracy by random ones, of the same model at the same budget on the same images.

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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import nn

from foveal.data import DataModule, Dataset
from foveal.display import NAME, TEXT, Column, Table, counted, fixed, image_size, percent, stacked
from foveal.errors import ConfigError, DataError
from foveal.evaluation.accuracy import Judged, Plan, judge, looks_of, wilson
from foveal.evaluation.calibration import COLDEST, HOTTEST, Said, expected_calibration_error, fit_temperature, said
from foveal.evaluation.cost import Measure, Measured, Timed, check_measure, measure_budgets, measure_steps
from foveal.evaluation.evaluation import (
    Progress,
    circumstances,
    cost_columns,
    names_of,
    opener,
    plain_split,
    ready_for,
    steps,
    wide_cost_columns,
    write_results,
)
from foveal.evaluation.picture import draw_comparison
from foveal.glimpse.base import GlimpseClassifier
from foveal.models import create_classifier, list_models
from foveal.prediction.budget import format_budget
from foveal.prediction.cost import count
from foveal.prediction.device import find_device
from foveal.prediction.rows import ready
from foveal.runs import Run

if TYPE_CHECKING:
    from rich.console import Group

HOW = (
    "accuracy, calibration: over the images that every model could read. interval: 95 %, Wilson. gap: accuracy by learned looks less that "
    "by random ones at the same budget; its interval: 95 %, for paired proportions, Wald's with half an image added to each cell (Agresti "
    "and Min, Statistics in Medicine 24, 2005). nll: nats. ece: 15 equally wide bins of the confidence. temperature: makes the labels of "
    "the validation images most likely, from 0.05 to 20; nll_after and ece_after: with logits divided by it. macs: as torch's flop counter "
    "sees them, halved, for the image of median area. Milliseconds an image: from opening it to its class, files in the page cache, one "
    "process, batch norms folded as in predictions, models in turn; single: at batch 1; batched: at the batch that was fastest for the "
    "model's largest budget, of those that a quick measurement has time for. peak_memory, "
    "bytes_read: of the first call; memory is the growth of the process on a CPU, without weights, and torch's peak on a GPU, with them. "
    "front: the costs for which no model here is at least as accurate and as cheap, and better in one; random looks do not compete."
)

COSTS = ("macs", "ms", "memory")
"""What accuracy is drawn against: multiply-accumulates, and milliseconds and memory at batch 1."""


@dataclass(frozen=True)
class Standing:
    """A model at one budget, beside the others.

    Attributes:
        model: its run folder or name.
        locations: budget.
        total_locations: looks beyond the first that an image got, mean; None, as all up to the costs, for a model without weights.
        images: how many were classified.
        accuracy, interval: share whose class came first, and its 95 % confidence interval (Wilson).
        random: accuracy of random looks at the same budget; None where there are no looks to choose.
        gap, gap_interval: accuracy less that, with the 95 % confidence interval of the difference, see `paired_interval`.
        nll, ece: mean negative log-likelihood in nats, and expected calibration error.
        temperature: fitted on the validation images; None where there are none.
        nll_after, ece_after: with logits divided by the temperature.
        macs: multiply-accumulates an image.
        parameters: trainable ones.
        single, batched: measured at batch 1 and at the best batch; None where nothing was measured.
        front: those of `COSTS` for which no other model is more accurate without costing more, see `pareto`.
    """

    model: str
    locations: tuple[int, ...]
    total_locations: float | None
    images: int | None
    accuracy: float | None
    interval: tuple[float, float] | None
    random: float | None
    gap: float | None
    gap_interval: tuple[float, float] | None
    nll: float | None
    ece: float | None
    temperature: float | None
    nll_after: float | None
    ece_after: float | None
    macs: int
    parameters: int
    single: Measured | None = None
    batched: Measured | None = None
    front: tuple[str, ...] = ()

    def cost(self, kind: str) -> float | None:
        """One of `COSTS`: multiply-accumulates, milliseconds or bytes; None where it was not measured."""
        if kind == "macs":
            return self.macs
        if self.single is None:
            return None
        return self.single.p50 if kind == "ms" else self.single.peak_memory


@dataclass(frozen=True)
class Comparison:
    """Result of `compare`; ``about`` says on what, where and how, and under ``notes`` what is missing and why."""

    file: ClassVar[str] = "comparison.json"

    about: dict[str, Any]
    points: tuple[Standing, ...]
    errors: tuple[tuple[str, str], ...]

    def as_dict(self) -> dict[str, Any]:
        """Content of ``comparison.json``."""
        errors = [{"image": image, "error": error} for image, error in self.errors]
        return {**self.about, "points": [asdict(point) for point in self.points], "errors": errors}

    def write(self, folder: str | Path) -> None:
        """Write ``comparison.json`` and ``comparison.png``.

        Raises:
            StorageError: a file cannot be written.
        """
        write_results(folder, self.file, self.as_dict(), "comparison.png", lambda file: draw_comparison(self, file))

    def labels(self) -> dict[str, str]:
        """What to call each model where there is little room: its folder's name, unless two have the same."""
        models = list(dict.fromkeys(point.model for point in self.points))
        short = [Path(model).name for model in models]
        return {model: name if short.count(name) == 1 else model for model, name in zip(models, short, strict=True)}

    def table(self, wide: bool = False) -> Group:
        """The result for people, to be printed by rich: what decides between models, or everything where ``wide``."""
        return stacked(_table(self, wide), "\n".join([_legend(self), *self.about["notes"]]))


class _Seen(NamedTuple):
    """What a model said at one budget.

    ``which`` are the images that it could read; ``random`` is whether random looks were right about them, ``after`` what is said at the
    temperature.
    """

    which: np.ndarray
    total_locations: float
    random: np.ndarray | None
    temperature: float | None
    before: Said
    after: Said | None


def compare(
    models: Sequence[GlimpseClassifier | nn.Module | Run | str | Path], data: DataModule, *, budgets: Sequence[Sequence[int]] | None = None,
    split: str | None = None, batch_size: int = 32, workers: int = 0, device: str | torch.device = "auto", precision: str = "32",
    seed: int = 0, measure: Measure = "quick", out: str | Path | None = None, on_progress: Progress | None = None,
) -> Comparison:  # fmt: skip
    """Judge and measure several models on the same images.

    Args:
        models: run folders, classifiers and dense networks; and names of models, which have no weights, so that only their cost counts.
        data: images with labels.
        budgets: see `foveal.prediction.parse_locations`; each model that looks gets those that it can meet. If None, the thumbnail and
            the model's own budget.
        split: images to use; ``"test"`` if None, or ``"val"`` where there is no test split.
        batch_size: images at a time for accuracy.
        workers: processes that read ahead.
        device: see `foveal.prediction.find_device`.
        precision: see `foveal.prediction.autocast`.
        seed: of random looks.
        measure: see `foveal.evaluation.evaluate`.
        out: folder for ``comparison.json`` and ``comparison.png``; nothing is written if None.
        on_progress: see `foveal.evaluation.evaluate`.

    Raises:
        ConfigError: an option that does not fit, no model with weights, or a name that no model has.
        DataError: classes that differ, no such split, or no image that every model can read.
        RunError: a run folder that is none.
    """
    check_measure(measure)
    where = find_device(device)
    data, split = plain_split(data, split)
    images = data.split(split)
    named = dict(zip(names_of(models), models, strict=True))  # no model stands here twice
    bare = {name for name, model in named.items() if _is_bare(model)}
    if len(bare) == len(named):
        raise _no_weights(named)
    bands = {} if images.channels == 3 else {"in_chans": images.channels}
    loaded = {
        name: create_classifier(name, num_classes=len(data.classes), **bands) if name in bare else ready(_path(model))
        for name, model in named.items()
    }
    _check_same_classes(loaded)
    panel = dict(zip(loaded, ready_for(list(loaded.values()), data, where), strict=True))
    chosen, notes = _budgets(panel, budgets)
    notes += [f"{name}: has no weights, so that only its cost stands here; train it by foveal fit" for name in bare]
    notes += [note for name in named if name not in bare for note in _reading_notes(name, panel[name], images)]
    reason = _no_temperature(data, split)
    notes += [f"no temperature was fitted: {reason}"] if reason else []
    learned = {name: [Plan(budget) for budget in chosen[name]] for name in named if name not in bare}
    random = {
        name: [Plan(plan.locations, "random") for plan in plans if plan.locations and "random" in panel[name].policies]
        for name, plans in learned.items()
    }

    def work(split: str, plans: Sequence[Plan]) -> int:
        return -(-len(data.split(split)) // batch_size) * sum(map(looks_of, plans))

    total = sum(work(split, [*learned[name], *random[name]]) + (0 if reason else work("val", learned[name])) for name in learned)
    step = steps(on_progress, "accuracy", total)

    def pass_over(model: GlimpseClassifier, split: str, plans: Sequence[Plan]) -> Judged:
        loader = data.loader(split, batch_size=batch_size, workers=workers, seed=seed, first_looks=model.first_looks, shuffle=False)
        return judge(model, loader, plans, precision=precision, seed=seed, on_step=step, keep_logits=True)

    seen: dict[str, list[_Seen]] = {}
    errors: list[tuple[str, str]] = []
    sizes: list[tuple[int, int]] = []
    for name, plans in learned.items():
        fitting = None if reason else pass_over(panel[name], "val", plans)
        found = pass_over(panel[name], split, [*plans, *random[name]])
        seen[name] = _seen(plans, random[name], found, images.targets, fitting, None if reason else data.split("val").targets)
        errors += [*found.errors, *(fitting.errors if fitting else [])]
        sizes.append(found.size)
    common = np.flatnonzero(np.bincount(np.concatenate([s[0].which for s in seen.values()]), minlength=len(images)) == len(seen))
    if not len(common):
        raise DataError(f"{data.name}: no image could be read by every model; check the data ({errors[0][1]})")
    timed = [Timed(model, chosen[name], opener(images, common, where), len(common)) for name, model in panel.items()]
    step = steps(on_progress, "timings", measure_steps(len(timed), measure))
    costs = dict(zip(panel, measure_budgets(timed, measure, precision=precision, on_step=step), strict=True))
    standings = [
        _standing(name, panel[name], budget, sizes[0], seen[name][i] if name in seen else None, common, costs[name].get(budget))
        for name in named
        for i, budget in enumerate(chosen[name])
    ]
    notes += [
        f"{p.model}: no temperature between {COLDEST:g} and {HOTTEST:g} makes its probabilities right, the bound is taken"
        for p in standings
        if p.temperature is not None and not 1.01 * COLDEST < p.temperature < 0.99 * HOTTEST
    ]
    about = {
        "models": list(named), "images": len(common), "image_size": list(sizes[0]), **circumstances(data, split, where, precision, seed),
        "measure": measure, "notes": list(dict.fromkeys(notes)), "how": HOW,
    }  # fmt: skip
    result = Comparison(about, tuple(_with_front(standings)), tuple(dict.fromkeys(errors)))
    if out is not None:
        result.write(out)
    return result


def first_run(models: Sequence[str]) -> Run:
    """The first run folder among run folders and names of models: the one whose data they are compared on.

    Raises:
        ConfigError: there is none.
        RunError: a run folder that is none.
    """
    for model in models:
        if not _is_bare(model):
            return Run(model)
    raise _no_weights(models)


def pareto(costs: Sequence[float], values: Sequence[float]) -> list[bool]:
    """Which points no other one dominates, by costing no more and being worth no less, and one of the two strictly.

    >>> pareto([1, 2, 2, 3], [0.5, 0.7, 0.6, 0.7])
    [True, True, False, False]
    """
    best, front = -float("inf"), [False] * len(costs)
    # From the cheapest on, of equal ones the best first: whatever is better than all before is on the front, and what equals it.
    for i in sorted(range(len(costs)), key=lambda i: (costs[i], -values[i])):
        if values[i] > best:
            best, at = values[i], costs[i]
        front[i] = values[i] == best and costs[i] == at
    return front


def paired_interval(first: np.ndarray, second: np.ndarray, z: float = 1.959964) -> tuple[float, float]:
    """Confidence interval, 95 % by default, of how much more often ``first`` is right than ``second`` about the same images.

    Wald's interval for the difference of paired proportions, with half an image added to each of the four cells (Agresti and Min,
    "Simple improved confidence intervals for comparing matched proportions", Statistics in Medicine 24, 2005).

    Args:
        first, second: (N,) bool, N at least 1.
        z: quantile of the normal distribution.
    """
    only_first, only_second, n = int((first & ~second).sum()), int((second & ~first).sum()), len(first) + 2
    centre = (only_first - only_second) / n
    half = z * (only_first + only_second + 1 - (only_first - only_second) ** 2 / n) ** 0.5 / n
    return max(centre - half, -1.0), min(centre + half, 1.0)


def _no_weights(names: Iterable[str]) -> ConfigError:
    return ConfigError(f"{', '.join(names)}: no model here has weights; give a run folder as well, or count by foveal cost")


def _path(model: Any) -> Any:
    return model.path if isinstance(model, Run) else model


def _is_bare(model: Any) -> bool:
    """Whether a model is given by its name, not by a run folder; a path that leads nowhere is no name."""
    return isinstance(model, str) and (model in list_models() or not (Path(model).exists() or os.sep in model))


def _check_same_classes(models: Mapping[str, GlimpseClassifier]) -> None:
    """See that all models tell the same classes apart, as far as they have names for them."""
    (first, wanted), *others = [(name, model.class_names) for name, model in models.items() if model.class_names] or [("", ())]
    for name, classes in others:
        for i, (one, other) in enumerate(zip_longest(wanted, classes)):
            if one != other:
                here, there = ("missing" if c is None else repr(c) for c in (one, other))
                raise DataError(
                    f"{first} and {name}: class {i} is {here} in the one and {there} in the other; compare runs of one data set"
                )


def _budgets(
    panel: Mapping[str, GlimpseClassifier], budgets: Sequence[Sequence[int]] | None
) -> tuple[dict[str, list[tuple[int, ...]]], list[str]]:
    """The budgets of each model, and sentences about those that it cannot meet."""
    told = " or ".join(format_budget(tuple(budget)) for budget in budgets or ())
    if budgets and not any(model.locations for model in panel.values()):
        raise ConfigError(f"--locations {told}: these models look once, at the whole image; leave --locations out")
    chosen: dict[str, list[tuple[int, ...]]] = {}
    notes: list[str] = []
    for name, model in panel.items():
        own = tuple(model.locations)
        chosen[name] = []
        for budget in dict.fromkeys(map(tuple, budgets if own and budgets is not None else [(), own])):
            try:
                count(model, model.size, budget)
            except ConfigError as error:
                notes.append(f"{name}: budget {format_budget(budget)} is left out: {error}")
            else:
                chosen[name].append(budget)
        if not chosen[name]:
            raise ConfigError(
                f"--locations {told}: {name} can meet none of it ({notes[-1].rpartition('left out: ')[2]}); give another budget"
            )
    return chosen, notes


def _no_temperature(data: DataModule, split: str) -> str | None:
    """Why no temperature can be fitted; None where it can."""
    if data.val is None or not len(data.val):
        return "there are no validation images"
    return "the validation images are those compared" if split == "val" else None


def _reading_notes(name: str, model: GlimpseClassifier, images: Dataset) -> list[str]:
    """What the model of a run is not used to in the way that images are read here."""
    here = getattr(getattr(images, "reading", None), "image_size", None)
    trained = getattr(model, "image_size", here)
    if trained == here:
        return []
    sides = [f"resized to {side} px first" if side else "of their own size" for side in (trained, here)]
    return [f"{name}: was trained on images {sides[0]}, and these are {sides[1]}; that may cost it accuracy"]


def _seen(
    learned: Sequence[Plan], random: Sequence[Plan], found: Judged, targets: np.ndarray, fitting: Judged | None,
    fitting_targets: np.ndarray | None,
) -> list[_Seen]:  # fmt: skip
    """What one pass over the images, and one over the validation images, say of every budget; logits are not kept."""
    target = torch.from_numpy(targets[found.good])
    by_chance = {plan.locations: said(found.logits[len(learned) + i], target).correct for i, plan in enumerate(random)}
    seen = []
    for i, plan in enumerate(learned):
        temperature = after = None
        if fitting is not None and fitting_targets is not None:
            temperature = fit_temperature(fitting.logits[i], torch.from_numpy(fitting_targets[fitting.good]))
            after = said(found.logits[i], target, temperature)
        scores = found.scores[i]
        looks = scores.locations / scores.images
        seen.append(_Seen(found.good, looks, by_chance.get(plan.locations), temperature, said(found.logits[i], target), after))
    return seen


def _standing(
    name: str, model: GlimpseClassifier, budget: tuple[int, ...], size: tuple[int, int], seen: _Seen | None, common: np.ndarray,
    measured: tuple[Measured, Measured] | None,
) -> Standing:  # fmt: skip
    cost = count(model, size, budget)
    single, batched = measured or (None, None)
    costs = {"macs": cost.macs, "parameters": cost.parameters, "single": single, "batched": batched}
    if seen is None:
        return Standing(name, budget, *[None] * 12, **costs)  # type: ignore[arg-type]
    rows = np.isin(seen.which, common)
    before, after = (None if what is None else Said(*(values[rows] for values in what)) for what in (seen.before, seen.after))
    random = None if seen.random is None else seen.random[rows]
    assert before is not None
    accuracy = float(before.correct.mean())
    return Standing(
        model=name,
        locations=budget,
        total_locations=seen.total_locations,
        images=len(common),
        accuracy=accuracy,
        interval=wilson(int(before.correct.sum()), len(common)),
        random=None if random is None else float(random.mean()),
        gap=None if random is None else accuracy - float(random.mean()),
        gap_interval=None if random is None else paired_interval(before.correct, random),
        nll=float(before.nll.mean()),
        ece=expected_calibration_error(before.confidence, before.correct),
        temperature=seen.temperature,
        nll_after=None if after is None else float(after.nll.mean()),
        ece_after=None if after is None else expected_calibration_error(after.confidence, after.correct),
        **costs,  # type: ignore[arg-type]
    )


def _with_front(standings: Sequence[Standing]) -> list[Standing]:
    """The same, each with the costs for which it is on the front."""
    fronts: list[tuple[str, ...]] = [()] * len(standings)
    for kind in COSTS:
        points = [(i, c, s.accuracy) for i, s in enumerate(standings) if (c := s.cost(kind)) is not None and s.accuracy is not None]
        for (i, _, _), on in zip(points, pareto([c for _, c, _ in points], [a for _, _, a in points]), strict=True):
            fronts[i] += (kind,) if on else ()
    return [replace(standing, front=front) for standing, front in zip(standings, fronts, strict=True)]


def _table(comparison: Comparison, wide: bool) -> Table:
    """A row a model and budget."""
    about, points, labels = comparison.about, comparison.points, comparison.labels()
    columns = [
        Column("model", lambda p: labels[p.model], NAME),
        Column("locations", lambda p: format_budget(p.locations), TEXT),
        Column("accuracy, %", lambda p: percent(p.accuracy, p.interval)),
        Column("random, %", lambda p: percent(p.random)),
        *cost_columns(points, lambda p: p.front),
    ]
    if wide:
        columns += [
            Column("looks", lambda p: fixed(p.total_locations, 1)),
            Column("gap, %", lambda p: percent(p.gap, p.gap_interval, signed=True)),
            Column("NLL", lambda p: fixed(p.nll, 3)),
            Column("ECE, %", lambda p: percent(p.ece)),
            Column("T", lambda p: fixed(p.temperature, 2)),
            Column("NLL at T", lambda p: fixed(p.nll_after, 3)),
            Column("ECE at T, %", lambda p: percent(p.ece_after)),
            *wide_cost_columns(points),
        ]
    title = f"{about['data']}, {about['split']}: {counted(about['images'], 'image')} of {image_size(about['image_size'])} px"
    return Table(title, columns, points, keys=2)


def _legend(comparison: Comparison) -> str:
    """What the columns of the table are."""
    said = ["±: 95 % interval, the longer of its two sides.", "*: no model here is as accurate for less (Pareto front)."]
    if any(p.random is not None for p in comparison.points):
        said.insert(1, "random: accuracy of looks drawn without the model's guidance.")
    if comparison.about["measure"] != "none":
        said.append(f"ms: one image at a time, median, on {comparison.about['machine']}.")
    return " ".join(said)

"""What a model looked at, hidden: does the answer depend on it?

The occlusion experiment of Saccader (Elsayed et al. 2019, arXiv 1908.07644) for any model that looks: it classifies an image, the
union of the boxes that it chose is hidden under the mean colour of the training images (0 after normalisation), and judges classify
what is left. A policy that picks what matters takes away more accuracy than random looks that cover the same area. The model itself
is the first judge, at its own budget; it may look elsewhere then. Which network judged in the paper is not known: give several.

Example:
    >>> from foveal.data import get_data
    >>> from foveal.models import create_model
    >>> data = get_data("digits", canvas=96, digit=(12, 16), train=10, val=10, test=20)
    >>> model = create_model("tnet", backbone="test_efficientnet", num_classes=10, base_size=32, locations=(2,))
    >>> [(point.kind, point.locations, point.images) for point in occlude(model, data).points]
    [('whole', (), 20), ('learned', (1,), 20), ('learned', (2,), 20), ('random', (1,), 20), ('random', (2,), 20)]
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import nn

from foveal.data import Batch, DataModule
from foveal.display import NAME, TEXT, Column, Table, counted, fixed, percent, stacked
from foveal.draws import Draws
from foveal.errors import ConfigError, DataError
from foveal.evaluation.accuracy import Plan, Scores, budget_taken, wilson
from foveal.evaluation.coverage import chosen_boxes
from foveal.evaluation.evaluation import circumstances, names_of, plain_split, plans_of, ready_for, write_results
from foveal.evaluation.picture import draw_occlusion
from foveal.glimpse.base import GlimpseClassifier
from foveal.images import Look, Occluded, Views
from foveal.prediction.budget import format_budget
from foveal.prediction.device import autocast, find_device
from foveal.runs import Run

if TYPE_CHECKING:
    from rich.console import Group

HOW = (
    "The union of the boxes that the model chose is hidden under the judge's mean colour, which is 0 after normalisation: pixels of a look "
    "whose centre lies in a box. The first look is not chosen and hides nothing. hidden: share of the image, mean over images. Every judge "
    "looks at its own budget and most probable cells, elsewhere if it likes."
)


@dataclass(frozen=True)
class Verdict:
    """How often a judge is right about what is left of the images.

    Attributes:
        judge: who judges, a run folder or ``"model"``.
        kind: what is hidden: ``"learned"`` or ``"random"`` looks, or those of another policy, by its name; ``"whole"`` for nothing.
        locations: budget of these looks.
        total_locations: how many they were for an image, mean.
        hidden: share of the image that they cover, mean.
        images: how many were classified.
        accuracy: share whose class came first.
        interval: its 95 % confidence interval (Wilson).
    """

    judge: str
    kind: str
    locations: tuple[int, ...]
    total_locations: float
    hidden: float
    images: int
    accuracy: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Occlusion:
    """Result of `occlude`; ``about`` says on what, where and how."""

    file: ClassVar[str] = "occlusion.json"

    about: dict[str, Any]
    points: tuple[Verdict, ...]
    errors: tuple[tuple[str, str], ...]

    def as_dict(self) -> dict[str, Any]:
        """Content of ``occlusion.json``."""
        errors = [{"image": image, "error": error} for image, error in self.errors]
        return {**self.about, "points": [asdict(point) for point in self.points], "errors": errors}

    def write(self, folder: str | Path) -> None:
        """Write ``occlusion.json`` and ``occlusion.png``.

        Raises:
            StorageError: a file cannot be written.
        """
        write_results(folder, self.file, self.as_dict(), "occlusion.png", lambda file: draw_occlusion(self, file))

    def table(self, wide: bool = False) -> Group:
        """The result for people, to be printed by rich; with random looks and how many there were for an image where ``wide``."""
        return _table(self, wide)


def occlude(
    model: GlimpseClassifier | Run | str | Path, data: DataModule, *, budgets: Sequence[Sequence[int]] | None = None,
    policies: Sequence[str] = (), judges: Sequence[GlimpseClassifier | nn.Module | Run | str | Path] = (), split: str | None = None,
    limit: int | None = None, batch_size: int = 32, workers: int = 0, device: str | torch.device = "auto", precision: str = "32",
    seed: int = 0, out: str | Path | None = None, on_progress: Callable[[int, int], None] | None = None,
) -> Occlusion:  # fmt: skip
    """Hide what a model looked at and see what is still known.

    Args:
        model: a classifier that looks, or its run folder.
        data: images with labels.
        budgets: looks to hide, see `foveal.prediction.parse_locations`; if None from one to the model's own budget.
        policies: ways of selecting the looks, beside the model's own and random ones, which stand beside always.
        judges: who classifies what is left, beside the model itself: classifiers, dense networks and run folders.
        split: images to use; ``"test"`` if None, or ``"val"`` where there is no test split.
        limit: use so many images at most, drawn by the seed; all if None.
        batch_size: images at a time.
        workers: processes that read ahead.
        device: see `foveal.prediction.find_device`.
        precision: see `foveal.prediction.autocast`.
        seed: of policies that draw, and of the images drawn.
        out: folder for ``occlusion.json`` and ``occlusion.png``; nothing is written if None.
        on_progress: called with how many batches are done, and how many there are.

    Raises:
        ConfigError: a model that does not choose where to look, or a budget, policy or option that does not fit.
        DataError: other classes than the model's, no such split, or no image that can be read.
        RunError: a run folder that is none.
    """
    where = find_device(device)
    named = dict(zip(names_of([model, *judges]), [model, *judges], strict=True))  # nobody judges twice
    panel, names = ready_for(list(named.values()), data, where), list(named)
    looker = panel[0]
    if not looker.locations:
        raise ConfigError(
            f"{names[0]}: this model looks once, at the whole image, so it chooses nothing to hide; give one that looks closer"
        )
    plans = [plan for plan in plans_of(looker, budgets, policies) if plan.locations]
    if not plans:
        raise ConfigError("--locations 0: hides nothing; give one look or more, say 1..4")
    data, split = plain_split(data, split)
    looks = [Scores() for _ in plans]
    verdicts: dict[tuple[Plan | None, int], Scores] = {(p, j): Scores() for p in (None, *plans) for j in range(len(panel))}
    errors: list[tuple[str, str]] = []
    for batch, good in sample(
        data, split, panel, errors, limit=limit, batch_size=batch_size, workers=workers, seed=seed, device=where, on_progress=on_progress
    ):
        views, draws = batch.views, Draws(seed, 0, batch.index)
        with torch.inference_mode(), autocast(precision, where):
            choices = [looker(views, locations=p.locations, policy=p.policy, draws=draws, contributions=False) for p in plans]
            boxes = [chosen_boxes(choice.glimpses, len(batch)) for choice in choices]
            left: dict[Plan | None, Views] = dict(zip(plans, (Occluded(views, hide) for hide in boxes), strict=True))
            left[None] = views
            seen = {(plan, j): panel[j](left[plan], contributions=False).logits.cpu() for plan, j in verdicts}
        rows = good()
        for key, logits in seen.items():
            verdicts[key].add(logits[rows], batch.target.cpu()[rows])
        for plan, score, choice, hide in zip(plans, looks, choices, boxes, strict=True):
            score.add_looks(hide[rows], views.sizes[rows])
            score.budget = budget_taken(choice, plan.locations, plan.policy)
    images = verdicts[None, 0].images
    if not images:
        raise DataError(f"none of the {len(errors)} images could be read ({errors[0][1]}); check the data")
    about = {
        "model": names[0], "judges": [{"name": name, "locations": judge.locations} for name, judge in zip(names, panel, strict=True)],
        "images": images, "limit": limit, **circumstances(data, split, where, precision, seed), "how": HOW,
    }  # fmt: skip
    looked: dict[Plan | None, Scores] = {None: Scores(), **dict(zip(plans, looks, strict=True))}
    points = [_verdict(names[j], hidden, looked[hidden], score) for (hidden, j), score in verdicts.items()]
    result = Occlusion(about, tuple(points), tuple(dict(errors).items()))
    if out is not None:
        result.write(out)
    return result


def sample(
    data: DataModule, split: str, panel: Sequence[GlimpseClassifier], errors: list[tuple[str, str]], *, limit: int | None,
    batch_size: int, workers: int, seed: int, device: torch.device, on_progress: Callable[[int, int], None] | None,
) -> Iterator[tuple[Batch, Callable[[], np.ndarray]]]:  # fmt: skip
    """Batches of a split, or of ``limit`` images of it drawn by the seed, on the device.

    Args:
        data, split: where from.
        panel: who will look at them.
        errors: gets the images that fail.
        limit, batch_size, workers, seed, device, on_progress: as of `occlude`.

    Yields:
        A batch, and what tells, once it was looked at, which of its rows count: those that could be read and are within the limit.
    """
    count = min(len(data.split(split)), limit or len(data.split(split)))
    size = min(batch_size, count)
    loader = data.loader(
        split, batch_size=size, workers=workers, seed=seed, first_looks=partial(_first_looks, panel),
        shuffle=limit is not None,
    )  # fmt: skip
    batches = -(-count // size)
    for number, batch in zip(range(batches), loader, strict=False):
        errors += batch.errors
        if len(batch):
            batch = batch.to(device)
            bad = batch.views.errors
            # The last batch may hold more images than are wanted.
            yield batch, partial(_readable, min(len(batch), count - number * size), bad)
            errors += [(f"image {batch.index[i]}", reason) for i, reason in bad.items()]
        if on_progress is not None:
            on_progress(number + 1, batches)


def _readable(wanted: int, bad: Container[int]) -> np.ndarray:
    return np.array([i for i in range(wanted) if i not in bad], dtype=np.int64)


def _first_looks(panel: Sequence[GlimpseClassifier], size: tuple[int, int]) -> list[Look]:
    return list(dict.fromkeys(look for judge in panel for look in judge.first_looks(size)))


def _verdict(judge: str, plan: Plan | None, looks: Scores, score: Scores) -> Verdict:
    return Verdict(
        judge=judge,
        kind="whole" if plan is None else "learned" if plan.policy == "greedy" else plan.policy,
        locations=looks.budget,
        total_locations=looks.locations / score.images,
        hidden=looks.coverage / score.images,
        images=score.images,
        accuracy=score.correct / score.images,
        interval=wilson(score.correct, score.images),
    )


def _table(occlusion: Occlusion, wide: bool) -> Group:
    """A row a judge and budget, a column a policy."""
    about = occlusion.about
    found = {(p.judge, p.kind, p.locations): p for p in occlusion.points}
    kinds = [kind for kind in dict.fromkeys(p.kind for p in occlusion.points) if kind != "whole"]
    budgets = sorted({budget for _, kind, budget in found if kind != "whole"})

    def of(kind: str, cell: Callable[[Verdict], str]) -> Callable[[tuple[str, tuple[int, ...]]], str]:
        return lambda row: cell(found[row[0], kind, row[1]]) if (row[0], kind, row[1]) in found else ""

    def hidden(row: tuple[str, tuple[int, ...]]) -> str:
        return percent(next(p.hidden for kind in ("whole", *kinds) if (p := found.get((row[0], kind, row[1])))))

    def accuracy(row: tuple[str, tuple[int, ...]], kind: str) -> str:
        p = found.get((row[0], kind, row[1])) or (found[row[0], "whole", ()] if not row[1] and kind == kinds[0] else None)
        return "" if p is None else percent(p.accuracy, p.interval)

    columns = [
        Column("judged by", lambda row: row[0], NAME),
        Column("locations", lambda row: format_budget(row[1]), TEXT),
        Column("hidden, %", hidden),
        *(Column(kind, partial(accuracy, kind=kind)) for kind in kinds),
    ]
    if wide:
        columns += [Column(f"{kind} looks", of(kind, lambda p: fixed(p.total_locations, 1))) for kind in kinds]
        columns += [Column(f"{kind} hide, %", of(kind, lambda p: percent(p.hidden))) for kind in kinds]
    rows: list[tuple[str, tuple[int, ...]] | None] = []
    for judge in about["judges"]:
        rows += [*([None] if rows else []), *((judge["name"], budget) for budget in ((), *budgets))]
    title = f"{about['model']} on {about['data']}, {about['split']}: accuracy on {counted(about['images'], 'image')} with looks hidden, %"
    said = "A column for each way of choosing the looks that are hidden. hidden: mean share of the image, by the first of them."
    return stacked(Table(title, columns, rows, keys=2), f"±: 95 % interval, the longer of its two sides. {said}")

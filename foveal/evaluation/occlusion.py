"""Occlusion: does the answer depend on the regions that a model looked at?

The experiment of Saccader (Elsayed et al. 2019, arXiv 1908.07644) for any model that looks. The model classifies an
image. The union of the boxes that it chose is hidden under the mean colour of the training images (0 after
normalisation). Judges classify the hidden image. If the policy chooses what matters, accuracy falls further than with
random looks that cover the same area. The first judge is the model itself, at its own locations; it may look
elsewhere. The paper does not say which network judged.

Example:
    >>> from foveal.data import get_data
    >>> from foveal.models import create_model
    >>> data = get_data("digits", canvas=96, digit=(12, 16), train=10, val=10, test=20)
    >>> model = create_model("tnet", backbone="test_efficientnet", num_classes=10, base_size=32, locations=(2,))
    >>> [(point.kind, point.locations, point.images) for point in occlude(model, data).points]
    [('whole', (), 20), ('learned', (1,), 20), ('learned', (2,), 20), ('random', (1,), 20), ('random', (2,), 20)]
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch

from foveal.data import Batch, DataModule
from foveal.display import NAME, TEXT, Column, Table, counted, fixed, percent, stacked
from foveal.draws import Draws
from foveal.errors import ConfigError
from foveal.evaluation.drawing import ACCURACY, draw_series, finish, png_figure, policy_colours, title, verbatim
from foveal.evaluation.looks import Looks, chosen_boxes
from foveal.evaluation.protocol import (
    DEFAULT,
    Bench,
    Setting,
    Strategy,
    locations_taken,
    strategies_of,
)
from foveal.evaluation.results import INTERVALS, Result, Scored
from foveal.images import Occluded, Views
from foveal.metrics import Answers
from foveal.prediction.device import autocast
from foveal.prediction.locations import format_locations
from foveal.prediction.predictor import Model

if TYPE_CHECKING:
    from rich.console import Group

HOW = (
    "The union of the boxes that the model chose is hidden under the judge's mean colour, which is 0 after "
    "normalisation: pixels of a look whose centre lies in a box. The first look is not chosen and hides nothing. "
    "hidden: share of the image, mean over images. Every judge looks at its own locations, the most probable cells, "
    "elsewhere if it chooses to."
)


@dataclass(frozen=True, kw_only=True)
class OcclusionPoint(Scored):
    """Metrics of a judge on images with hidden looks.

    Attributes:
        judge: name of the judge, a run folder or ``"model"``.
        kind: what is hidden: ``"learned"`` or ``"random"`` looks, or those of another policy, by its name; ``"whole"``
            for nothing.
        locations: of the hidden looks, per grid at each level.
        total_locations: number of these looks at an image, mean.
        hidden: share of the image that they cover, mean.
    """

    judge: str
    kind: str
    locations: tuple[int, ...]
    total_locations: float
    hidden: float


@dataclass(frozen=True, kw_only=True)
class Occlusion(Result):
    """Result of `occlude`."""

    file: ClassVar[str] = "occlusion.json"
    picture: ClassVar[str] = "occlusion.png"

    points: tuple[OcclusionPoint, ...]

    def table(self, wide: bool = False) -> Group:
        legend = f"{INTERVALS} A column for each policy whose looks are hidden."
        return stacked(_table(self, wide), f"{legend} hidden: mean share of the image, by the first policy.")

    def draw(self, file: Path) -> None:
        """Accuracy against the share of the image that is hidden: a panel for each judge, a line for each policy."""
        judges = list(dict.fromkeys(point.judge for point in self.points))
        with png_figure(file, 1 + 4.6 * len(judges), 4.4) as figure:
            panels = figure.subplots(1, len(judges), sharey=True, squeeze=False)[0]
            for axes, judge in zip(panels, judges, strict=True):
                of_judge = [point for point in self.points if point.judge == judge]
                (whole,) = [point for point in of_judge if point.kind == "whole"]
                for kind, colour in policy_colours(point.kind for point in of_judge).items():
                    points = sorted((p for p in of_judge if p.kind == kind), key=lambda p: p.hidden)
                    if points:
                        points = [whole, *points]
                        x, y = [100 * p.hidden for p in points], [p.metrics["accuracy"] for p in points]
                        line = "-" if kind == "learned" else "--"
                        draw_series(axes, x, y, colour, linestyle=line, label=f"{kind} looks hidden")
                axes.set_title(verbatim(f"judged by {judge}"), fontsize=9, loc="left")
                finish(axes, xlabel="hidden, % of the image")
            panels[0].set_ylabel(ACCURACY)
            title(figure, self.about, self.about["images"])


def occlude(
    model: Model,
    data: DataModule,
    *,
    locations: int | Sequence[int | Sequence[int]] | None = None,
    policies: Sequence[str] = (),
    judges: Sequence[Model] = (),
    setting: Setting = DEFAULT,
) -> Occlusion:
    """Hide what a model looked at, and classify what is left.

    Args:
        model: a classifier that looks, or its run folder.
        data: images with labels.
        locations: of the looks to hide, per grid at each level, several times, see
            `foveal.prediction.parse_location_sweep`; if None, from one to the model's own.
        policies: policies whose looks are hidden, besides the model's own and random ones.
        judges: classifiers, dense networks and run folders that classify what is left, besides the model itself.
        setting: which images, and how. Progress is reported for ``"occluding"``, in batches.

    Raises:
        ConfigError: a model that does not choose where to look, or locations, a policy or an option that does not fit.
        DataError: other classes than the model's, no such split, or no image that can be read.
        RunError: a run folder is missing or damaged.
    """
    bench = Bench([model, *judges], data, setting)
    name, looker = next(iter(bench.models.items()))
    if not looker.locations:
        raise ConfigError(f"{name}: this model has no locations; it chooses nothing to hide")
    strategies = [strategy for strategy in strategies_of(looker, locations, policies) if strategy.locations]
    if not strategies:
        raise ConfigError("`locations` 0: hides nothing; give one look or more, say 1..4")
    taken: dict[Strategy | None, tuple[int, ...]] = {None: ()}
    looks: dict[Strategy | None, list[Looks]] = defaultdict(list)
    answers: dict[tuple[Strategy | None, str], list[Answers]] = defaultdict(list)
    step = setting.steps("occluding", len(bench.loader([])))
    for batch in bench.batches():
        if len(batch):
            _occlude_batch(bench, batch, strategies, taken, looks, answers)
        step()
    bench.check_read(sum(map(len, answers[None, name])))
    points = []
    for (strategy, judge), parts in answers.items():
        chosen = Looks.cat(looks[strategy])
        points.append(
            OcclusionPoint(
                judge=judge,
                kind="whole" if strategy is None else strategy.kind,
                locations=taken[strategy],
                total_locations=float(chosen.number.mean()),
                hidden=float(chosen.coverage.mean()),
                images=len(chosen.number),
                metrics=bench.measure(Answers.cat(parts)),
            )
        )
    about = {
        "model": name,
        "judges": [{"name": judge, "locations": its.locations} for judge, its in bench.models.items()],
        "images": points[0].images,
        **bench.circumstances(),
        "how": HOW,
    }
    return Occlusion(about=about, points=tuple(points), errors=bench.failed())


def _occlude_batch(
    bench: Bench,
    batch: Batch,
    strategies: Sequence[Strategy],
    taken: dict[Strategy | None, tuple[int, ...]],
    looks: dict[Strategy | None, list[Looks]],
    answers: dict[tuple[Strategy | None, str], list[Answers]],
) -> None:
    """Hide the looks of each strategy in a batch; add the looks, and the answers of every judge."""
    views, setting = batch.views, bench.setting
    looker, draws = next(iter(bench.models.values())), Draws(setting.seed, 0, batch.index)
    with torch.inference_mode(), autocast(setting.precision, bench.device):
        seen = {s: looker(views, s.locations, s.policy, draws, contributions=False) for s in strategies}
        boxes = {s: chosen_boxes(choice.glimpses, len(batch)) for s, choice in seen.items()}
        left: dict[Strategy | None, Views] = {None: views}
        left |= {s: Occluded(views, hide) for s, hide in boxes.items()}
        logits = {
            (s, name): judge(part, contributions=False).logits.cpu()
            for s, part in left.items()
            for name, judge in bench.models.items()
        }
    rows = bench.readable(batch)
    if len(rows):
        target, sizes = batch.target.cpu()[rows], views.sizes[rows]
        for key, found in logits.items():
            answers[key].append(bench.answers(bench.models[key[1]], found[rows], target))
        none = next(iter(boxes.values()))[rows][:, :0]
        for s, hide in ((None, none), *((s, hide[rows]) for s, hide in boxes.items())):
            looks[s].append(Looks.of(hide, sizes))
        taken |= {s: locations_taken(choice, s) for s, choice in seen.items()}


def _table(occlusion: Occlusion, wide: bool) -> Table:
    """A row for each judge and locations, a column for each policy."""
    about = occlusion.about
    found = {(p.judge, p.kind, p.locations): p for p in occlusion.points}
    kinds = [kind for kind in dict.fromkeys(p.kind for p in occlusion.points) if kind != "whole"]
    every = sorted({places for _, kind, places in found if kind != "whole"})

    def of(kind: str, cell: Callable[[OcclusionPoint], str]) -> Callable[[tuple[str, tuple[int, ...]]], str]:
        return lambda row: cell(found[row[0], kind, row[1]]) if (row[0], kind, row[1]) in found else ""

    def hidden(row: tuple[str, tuple[int, ...]]) -> str:
        return percent(next(p.hidden for kind in ("whole", *kinds) if (p := found.get((row[0], kind, row[1])))))

    def accuracy(row: tuple[str, tuple[int, ...]], kind: str) -> str:
        whole = found[row[0], "whole", ()] if not row[1] and kind == kinds[0] else None
        p = found.get((row[0], kind, row[1])) or whole
        return "" if p is None else percent(p.accuracy, p.interval)

    columns = [
        Column("judged by", lambda row: row[0], NAME),
        Column("locations", lambda row: format_locations(row[1]), TEXT),
        Column("hidden, %", hidden),
        *(Column(kind, partial(accuracy, kind=kind)) for kind in kinds),
    ]
    if wide:
        columns += [Column(f"{kind} looks", of(kind, lambda p: fixed(p.total_locations, 1))) for kind in kinds]
        columns += [Column(f"{kind} hide, %", of(kind, lambda p: percent(p.hidden))) for kind in kinds]
    rows: list[tuple[str, tuple[int, ...]] | None] = []
    for judge in about["judges"]:
        rows += [*([None] if rows else []), *((judge["name"], places) for places in ((), *every))]
    images = counted(about["images"], "image")
    heading = f"{about['model']} on {about['data']}, {about['split']}: accuracy on {images} with looks hidden, %"
    return Table(heading, columns, rows, keys=2)

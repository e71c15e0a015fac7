"""Faithfulness: does the answer depend on the regions that a model points at?

Every classifier ranks regions of an image: a model that looks, the boxes it chose; a network that attends, the cells
    of an attention
map; any convolutional network, the cells of Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391, as captum computes it).
*Deletion* hides the regions one after another, best first, under the mean colour. *Insertion* shows nothing but them
(Petsiuk et al. 2018, RISE, arXiv 1806.07421, section 4.3; they insert into a blurred image). A ranking is faithful if
the probability of the predicted class falls early in deletion and rises early in insertion. The *pointing game* (Zhang
et al. 2016, arXiv 1608.00507, section 4.2) asks whether the best region lies on the object, where a box of the object
is known.

Everything is compared with random regions: the same regions, in the same order, moved together by a random distance
    and wrapped around
at the edges of the image, so that area, shape and overlap are equal at every step.

Example:
    >>> from foveal.data import get_data
    >>> from foveal.models import create_model
    >>> data = get_data("digits", canvas=96, digit=(12, 16), train=10, val=10, test=20)
    >>> model = create_model("tnet", backbone="test_efficientnet", num_classes=10, base_size=32, locations=(2,))
    >>> result = evaluate_faithfulness(model, data)
    >>> [(curve.change, len(curve.probability)) for curve in result.curves], [game.what for game in result.pointing]
    ([('deletion', 3), ('insertion', 3)], ['centre on the object', 'half of the object covered'])
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.classification import Classification
from foveal.data import Batch, DataModule, Dataset
from foveal.display import NAME, TEXT, Column, Table, counted, percent, stacked
from foveal.draws import Draws
from foveal.errors import ConfigError, FovealError
from foveal.evaluation.drawing import BLUE, GREY, finish, png_figure, title, verbatim
from foveal.evaluation.looks import chosen_boxes, coverage
from foveal.evaluation.protocol import DEFAULT, Bench, Setting
from foveal.evaluation.results import INTERVALS, Result
from foveal.glimpse.base import GlimpseClassifier, WholeImage, whole_locations
from foveal.images import Occluded, Views
from foveal.layers import AttentionLayer
from foveal.metrics import wilson
from foveal.prediction.device import autocast
from foveal.prediction.predictor import Model
from foveal.tasks import MULTICLASS

if TYPE_CHECKING:
    from rich.console import Group

STEPS = 10
"""Steps of a curve; no more than there are looks."""
FINEST = 16
"""Most cells along a side of a map; finer maps are averaged over areas."""

HOW = (
    "probability: of the class that the model predicted for the whole image, mean over images; accuracy: share "
    "classified rightly. auc: area under the curve of an image's probability against the share of it hidden or shown "
    "(trapezoids), divided by the range of that share; mean over images. random: the same regions moved together by a "
    "random distance, wrapped around at the edges. difference: auc minus auc_random, with its 95 % interval over "
    "images (paired, normal). Hidden pixels have the judge's mean colour, 0 after normalisation. Every judge looks at "
    "its own locations, the most probable cells, elsewhere if it chooses to. Pointing: for any predicted class, "
    "without tolerance."
)

CHANGES = ("deletion", "insertion")
CENTRE, COVERED = "centre on the object", "half of the object covered"
INSIDE = "half of the object inside"

Ranking = tuple[str, Callable[[Views], tuple[Tensor, np.ndarray]], int]
"""What the regions are; the number of steps; and between them a function of views to (B, classes) logits and (B, N, 4)
boxes inside the images, best first, NaN at the end."""


@dataclass(frozen=True)
class Curve:
    """Answers of a judge as regions are hidden or shown one after another.

    Attributes:
        judge: name of the judge, a run folder or ``"model"``.
        change: ``"deletion"`` or ``"insertion"``.
        share: share of the image hidden or shown at each step, mean; the first is 0.
        probability, accuracy: at each step, means.
        random_probability, random_accuracy: with random regions.
        auc, auc_random: normalised areas under the curves, see `area`; means.
        difference: ``auc - auc_random``.
        interval: its 95 % confidence interval over images, paired.
    """

    judge: str
    change: str
    share: tuple[float, ...]
    probability: tuple[float, ...]
    accuracy: tuple[float, ...]
    random_probability: tuple[float, ...]
    random_accuracy: tuple[float, ...]
    auc: float
    auc_random: float
    difference: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class PointingGame:
    """How often the regions hit the object.

    Attributes:
        what: ``"centre on the object"``: the centre of the best region lies in a box of the object; ``"half of the
            object covered"``: one of the looks covers half of such a box.
        images: number of images with boxes.
        share: share of these where it is so.
        interval: its 95 % confidence interval (Wilson).
        random, random_interval: the same for random regions.
    """

    what: str
    images: int
    share: float
    interval: tuple[float, float]
    random: float
    random_interval: tuple[float, float]


@dataclass(frozen=True)
class ObjectInside:
    """How much of the object lies in the regions so far. It can be compared between regions of different sizes.

    Attributes:
        images: number of images with boxes.
        share: share of the image in the regions at each step, mean; the first is 0.
        half: share of images with half of the object or more in these regions.
        random_half: the same for random regions.
    """

    images: int
    share: tuple[float, ...]
    half: tuple[float, ...]
    random_half: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Faithfulness(Result):
    """Result of `evaluate_faithfulness`; ``found`` is None where no image has boxes."""

    file: ClassVar[str] = "faithfulness.json"
    picture: ClassVar[str] = "faithfulness.png"

    curves: tuple[Curve, ...]
    pointing: tuple[PointingGame, ...]
    found: ObjectInside | None

    def table(self, wide: bool = False) -> Group:
        return _table(self, wide)

    def draw(self, file: Path) -> None:
        """The probability against the share of the image: a row for each judge, deletion and insertion side by side."""
        rows = len(self.curves) // len(CHANGES)
        with png_figure(file, 9, 0.6 + 3.6 * rows) as figure:
            panels = figure.subplots(rows, len(CHANGES), sharey=True, squeeze=False).flat
            for axes, c in zip(panels, self.curves, strict=True):
                random = ("random", GREY, "--", c.random_probability, c.auc_random)
                for name, colour, line, probability, auc in (
                    random,
                    (self.about["regions"], BLUE, "-", c.probability, c.auc),
                ):
                    label = f"{name}: area {100 * auc:.1f} %"
                    x, y = [100 * share for share in c.share], [100 * p for p in probability]
                    axes.plot(x, y, color=colour, linestyle=line, marker="o", markersize=4, label=label)
                axes.set_title(verbatim(f"{c.change}, judged by {c.judge}"), fontsize=9, loc="left")
                axes.set_ylim(0, 100)
                finish(axes, xlabel=f"{'hidden' if c.change == 'deletion' else 'shown'}, % of the image")
            figure.supylabel("probability of the predicted class, %", fontsize=10)
            title(figure, self.about, self.about["images"])


def evaluate_faithfulness(
    model: Model,
    data: DataModule,
    *,
    locations: int | Sequence[int] | None = None,
    attention: str | None = None,
    cam: str | None = None,
    judges: Sequence[Model] = (),
    setting: Setting = DEFAULT,
) -> Faithfulness:
    """Hide and show the regions that a model points at, and classify what is left.

    A model that looks points at the boxes that it chose, in the order of their contributions to the predicted class
    where it is additive, else in the order chosen. A network that attends points at the cells of its last attention
    map, mean over heads.

    Args:
        model: a classifier, a dense network, or a run folder.
        data: images with labels.
        locations: looks per grid at each level; the model's own if None.
        attention: attention map to use instead of the last, by the name of its module or of a part of the network (its
            last map then).
        cam: use Grad-CAM at the output of this module, (B, channels, h, w), instead; needs captum. It is not cut off
            at 0, so that negative cells keep their order.
        judges: classifiers, dense networks and run folders that classify what is left, besides the model itself.
        setting: which images, and how; the seed also draws the random regions. Progress is reported for ``"hiding and
            showing"``, in batches.

    Raises:
        ConfigError: a model of labels, or one that points at nothing; locations, a map, a module or an option that does
            not fit; captum is not installed.
        DataError: other classes than the model's, no such split, or no image that can be read.
        RunError: a run folder is missing or damaged.
    """
    bench = Bench([model, *judges], data, setting)
    name, pointer = next(iter(bench.models.items()))
    if pointer.task.name != MULTICLASS.name:
        raise ConfigError(f"{name}: it predicts labels, and faithfulness follows a single class; use occlude instead")
    ranking = _ranker(pointer, name, locations, attention, cam)
    rows: dict[Any, list[np.ndarray]] = defaultdict(list)
    step = setting.steps("hiding and showing", len(bench.loader([])))
    for batch in bench.batches():
        if len(batch):
            _change_batch(bench, batch, ranking, rows)
        step()
    seen = {key: np.concatenate(values) for key, values in rows.items()}
    bench.check_read(len(seen.get("share", ())))
    about = {
        "model": name,
        "regions": ranking[0],
        "policy": pointer.usual_policy,
        "judges": [{"name": judge, "locations": its.locations} for judge, its in bench.models.items()],
        "images": len(seen["share"]),
        **bench.circumstances(),
        "how": HOW,
    }
    curves = [
        _curve(judge, change, seen["share"], seen[judge, change, False], seen[judge, change, True])
        for judge, change in product(bench.models, CHANGES)
    ]
    pointing = [_pointing_game(what, seen[what]) for what in (CENTRE, COVERED) if what in seen]
    found = None
    if INSIDE in seen:
        found = ObjectInside(len(seen[INSIDE]), *(tuple(row) for row in seen[INSIDE].mean(0).tolist()))
    return Faithfulness(about=about, curves=tuple(curves), pointing=tuple(pointing), found=found, errors=bench.failed())


def _change_batch(bench: Bench, batch: Batch, ranking: Ranking, rows: dict[Any, list[np.ndarray]]) -> None:
    """Hide and show the regions of a batch step by step; add the answers, and whether the regions hit the objects."""
    kind, rank, steps = ranking
    views, sizes, setting = batch.views, batch.views.sizes, bench.setting
    with autocast(setting.precision, bench.device):
        logits, boxes = rank(views)
    moves = np.floor(Draws(setting.seed, 0, batch.index).uniform("random regions", 2) * sizes)
    regions = {False: boxes[:, :, None], True: shifted(boxes, sizes, moves)}
    parts = {random: [_first(of, step / steps) for step in range(steps + 1)] for random, of in regions.items()}
    found: dict[Any, np.ndarray] = {"share": np.stack([coverage(part, sizes) for part in parts[False]], 1)}
    for (name, judge), change, random in product(bench.models.items(), CHANGES, parts):
        with torch.inference_mode(), autocast(setting.precision, bench.device):
            changed = (Occluded(views, part, inverse=change == "insertion") for part in parts[random])
            answers = [_answer(judge(left, contributions=False), logits.argmax(1), batch.target) for left in changed]
        found[name, change, random] = np.stack(answers, 1)
    read = bench.readable(batch)
    for key, values in found.items():
        rows[key].append(values[read])
    for i in read.tolist():
        objects = _objects(bench.images, int(batch.index[i]), bench.errors)
        if len(objects) and not np.isnan(boxes[i, :1]).any():
            centre = (boxes[i, 0, :2] + boxes[i, 0, 2:]) / 2
            rows[CENTRE].append(np.array([[_inside(at, objects) for at in (centre, (centre + moves[i]) % sizes[i])]]))
            inside = [[_half_inside(part[i], objects) for part in steps_of] for steps_of in parts.values()]
            rows[INSIDE].append(np.array([[found["share"][i], *inside]]))
            if kind == "looks":
                rows[COVERED].append(np.array([[_half_covered(of[i], objects) for of in regions.values()]]))


# ---- rankings


def _ranker(
    model: GlimpseClassifier, name: str, locations: int | Sequence[int] | None, attention: str | None, cam: str | None
) -> Ranking:
    """What the regions are, what ranks them, and the steps to show them in."""
    if attention is not None and cam is not None:
        raise ConfigError(
            f"`attention` {attention} and `cam` {cam}: regions are ranked by one of them; leave the other out"
        )
    if model.locations or not isinstance(model, WholeImage):
        if attention is not None or cam is not None:
            raise ConfigError(
                f"{name}: this model chooses where to look, and its looks are ranked; leave `attention` and `cam` out"
            )
        places = model.resolve_locations(locations)
        if model.most_levels == 0:
            raise ConfigError(f"{name}: this model has no locations, which would be ranked; use one that has")
        looks = int(np.cumprod(places).sum())
        if not looks:
            raise ConfigError("`locations` 0: shows no region; give one look or more, say 4")
        return "looks", partial(_rank_looks, model, places), min(looks, STEPS)
    if locations is not None:
        asked = ",".join(map(str, whole_locations(locations)))
        raise ConfigError(f"`locations` {asked}: {name} looks once, at the whole image; leave it out")
    maps = [of for of, module in model.network.named_modules() if isinstance(module, AttentionLayer)]
    if cam is None and maps:
        fit = [of for of in maps if attention is None or of == attention or of.startswith(f"{attention}.")]
        if not fit:
            raise ConfigError(f"`attention` {attention}: {name} has no attention there; use one of {', '.join(maps)}")
        return f"map {fit[-1]}", partial(_rank_attention, model, fit[-1]), STEPS
    layers = [part["module"] for part in getattr(model.network, "feature_info", ())]
    layers = layers or [of for of, _ in model.network.named_children()]
    if cam is None:
        what = "this model neither looks closer nor attends"
        raise ConfigError(f"{name}: {what}; rank regions by Grad-CAM, `cam` {layers[-1]}")
    if cam not in dict(model.network.named_modules()):
        raise ConfigError(f"`cam` {cam}: {name} has no module of this name; use one such as {', '.join(layers)}")
    return f"cam {cam}", partial(_rank_cam, model, cam), STEPS


@torch.inference_mode()
def _rank_looks(model: GlimpseClassifier, places: tuple[int, ...], views: Views) -> tuple[Tensor, np.ndarray]:
    seen = model(views, locations=places)
    boxes = chosen_boxes(seen.glimpses, len(views))
    if seen.glimpses.contribution is not None:
        looks = seen.glimpses.contribution.float().cpu().numpy()
        added = looks[np.arange(len(looks)), seen.logits.argmax(1).cpu().numpy()[seen.glimpses.image]]
        table = np.full(boxes.shape[:2], -np.inf)
        table[~np.isnan(boxes[..., 0])] = added[seen.glimpses.level > 1]
        boxes = np.take_along_axis(boxes, np.argsort(-table, 1, kind="stable")[..., None], 1)
    return seen.logits, _clipped(boxes, views.sizes[:, None])


@torch.inference_mode()
def _rank_attention(model: WholeImage, name: str, views: Views) -> tuple[Tensor, np.ndarray]:
    seen = model(views)
    return seen.logits, cells(seen.maps[name].mean(1), model.root(views.sizes), views.sizes)


def _rank_cam(model: WholeImage, layer: str, views: Views) -> tuple[Tensor, np.ndarray]:
    with torch.no_grad():
        seen = model.see(views, np.arange(len(views)), model.root(views.sizes))
        logits = model.network(seen)
    return logits, cells(grad_cam(model.network, layer, seen, logits.argmax(1)), model.root(views.sizes), views.sizes)


def grad_cam(network: nn.Module, layer: str, images: Tensor, target: Tensor) -> Tensor:
    """Grad-CAM (Selvaraju et al. 2017, equations 1 and 2) before it is cut off at 0.

    Args:
        network: (B, C, H, W) to (B, classes).
        layer: name of the module that gives the maps.
        images: normalised.
        target: (B,) class to explain.

    Returns:
        (B, h, w) at the resolution of the maps.

    Raises:
        ConfigError: the module gives no (B, channels, h, w); captum is not installed.
    """
    try:
        from captum.attr import LayerGradCam
    except ImportError as error:
        raise ConfigError(f"`cam` {layer}: captum is not installed; run pip install 'foveal[cam]'") from error
    # The input needs a gradient for the case that all weights are frozen.
    found = LayerGradCam(network, network.get_submodule(layer)).attribute(
        images.detach().requires_grad_(), target=target
    )
    if not isinstance(found, Tensor) or found.ndim != 4 or getattr(network, "output_fmt", "NCHW") == "NHWC":
        raise ConfigError(
            f"`cam` {layer}: this module gives no maps, (batch, channels, height, width); name a convolutional one"
        )
    return found[:, 0].detach().float()


def cells(values: Tensor, root: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Cells of maps as boxes, greatest value first, equal ones in reading order.

    Args:
        values: (B, h, w) maps; more than `FINEST` cells a side are averaged over areas.
        root: (B, 4) box that each map covers.
        sizes: (B, 2) of the images.

    Returns:
        (B, N, 4) parts of the cells inside the images; NaN at the end for cells without.
    """
    height, width = (min(side, FINEST) for side in values.shape[1:])
    values = F.adaptive_avg_pool2d(values[:, None].float().cpu(), (height, width)).flatten(1)
    y, x = np.divmod(np.arange(height * width), width)
    step = (root[:, 2:] - root[:, :2]) / (height, width)
    corner = root[:, None, :2] + np.stack([y, x], -1) * step[:, None]
    boxes = _clipped(np.concatenate([corner, corner + step[:, None]], -1), sizes[:, None])
    outside = (boxes[..., 2:] <= boxes[..., :2]).any(-1)
    boxes[outside] = np.nan
    order = np.argsort(np.where(outside, np.inf, -values.numpy()), 1, kind="stable")
    return np.take_along_axis(boxes, order[..., None], 1)


def shifted(boxes: np.ndarray, sizes: np.ndarray, moves: np.ndarray) -> np.ndarray:
    """Boxes moved and wrapped around at the edges of their images.

    Args:
        boxes: (B, N, 4) inside the images.
        sizes: (B, 2) of the images.
        moves: (B, 2) down and to the right, 0 to the image's size.

    Returns:
        (B, N, 4, 4): four pieces of each box, some of them empty.
    """
    wrapped = moves[:, None] - np.array([(0, 0), (0, 1), (1, 0), (1, 1)]) * sizes[:, None]
    return _clipped(boxes[:, :, None] + np.tile(wrapped, 2)[:, None], sizes[:, None, None])


def _clipped(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The parts of boxes (..., 4) inside images of sizes (..., 2)."""
    return np.clip(boxes, 0, np.concatenate([sizes, sizes], -1))


def _first(regions: np.ndarray, share: float) -> np.ndarray:
    """(B, M, 4) boxes of a share of each image's (B, N, pieces, 4) regions, the first ones; NaN elsewhere."""
    count = np.round(share * (~np.isnan(regions[..., 0, 0])).sum(1)).astype(int)
    taken = regions[:, : count.max(initial=0)]
    kept = np.arange(taken.shape[1]) < count[:, None]
    return np.where(kept[..., None, None], taken, np.nan).reshape(len(regions), -1, 4)


# ---- scores


def area(share: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """Normalised area under curves: mean height over the range of the share, by trapezoids.

    sum_i (s_i - s_i-1) (p_i + p_i-1) / 2, divided by s_n - s_0. It is the area of RISE where the share goes from 0 to
    1; the share of looks ends where they have covered their part of the image. A curve of no width has its mean
    height.

    Args:
        share: (B, n) of the image, ascending.
        probability: (B, n).

    Returns:
        (B,).
    """
    width = np.diff(share)
    total = width.sum(1)
    mean = (width * (probability[:, 1:] + probability[:, :-1]) / 2).sum(1)
    return np.divide(mean, total, out=probability.mean(1), where=total > 0)


def _answer(seen: Classification, predicted: Tensor, target: Tensor) -> np.ndarray:
    """(B, 2): probability of the class that was predicted, and whether the class is right."""
    chance = seen.probabilities.gather(1, predicted[:, None])[:, 0]
    return torch.stack([chance.double(), (seen.logits.argmax(1) == target).double()], 1).cpu().numpy()


def _curve(judge: str, change: str, share: np.ndarray, ranked: np.ndarray, random: np.ndarray) -> Curve:
    auc, auc_random = area(share, ranked[..., 0]), area(share, random[..., 0])
    apart = auc - auc_random
    half = 1.959964 * float(apart.std(ddof=1)) / math.sqrt(len(apart)) if len(apart) > 1 else 1.0
    difference = float(apart.mean())
    means = [tuple(of.mean(0).tolist()) for of in (share, *np.moveaxis(ranked, 2, 0), *np.moveaxis(random, 2, 0))]
    return Curve(
        judge,
        change,
        means[0],
        means[1],
        means[2],
        means[3],
        means[4],
        auc=float(auc.mean()),
        auc_random=float(auc_random.mean()),
        difference=difference,
        interval=(max(difference - half, -1.0), min(difference + half, 1.0)),
    )


def _pointing_game(what: str, hits: np.ndarray) -> PointingGame:
    images, (chosen, random) = len(hits), hits.sum(0).tolist()
    return PointingGame(what, images, chosen / images, wilson(chosen, images), random / images, wilson(random, images))


def _objects(dataset: Dataset, i: int, errors: list[tuple[str, str]]) -> np.ndarray:
    """(k, 4) boxes of the object in an image; none where they cannot be read, which is noted."""
    try:
        objects = dataset.objects(i)
    except FovealError as error:
        errors.append((f"image {i}", str(error)))
        objects = None
    return np.empty((0, 4)) if objects is None else objects


def _inside(point: np.ndarray, objects: np.ndarray) -> bool:
    return bool(((objects[:, :2] <= point) & (point < objects[:, 2:])).all(1).any())


def _half_covered(regions: np.ndarray, objects: np.ndarray) -> bool:
    """Whether one of (N, pieces, 4) regions covers half or more of one of (k, 4) boxes."""
    pieces = np.nan_to_num(regions)[:, :, None]
    low, high = np.maximum(pieces[..., :2], objects[:, :2]), np.minimum(pieces[..., 2:], objects[:, 2:])
    shared = np.clip(high - low, 0, None).prod(-1).sum(1)
    return bool((2 * shared >= (objects[:, 2:] - objects[:, :2]).prod(1)).any())


def _half_inside(regions: np.ndarray, objects: np.ndarray) -> bool:
    """Whether half or more of one of (k, 4) boxes lies in (N, 4) regions together."""
    for box in objects:
        touching = regions[(regions[:, :2] < box[2:]).all(1) & (regions[:, 2:] > box[:2]).all(1)]
        if coverage((touching - np.tile(box[:2], 2))[None], (box[2:] - box[:2])[None])[0] >= 0.5:
            return True
    return False


# ---- table


def _table(result: Faithfulness, wide: bool) -> Group:
    about = result.about
    curves = [
        Column("", lambda c: c.change, TEXT),
        Column("judged by", lambda c: c.judge, NAME),
        Column("of the image, %", lambda c: percent(c.share[-1])),
        Column("ranked", lambda c: percent(c.auc)),
        Column("random", lambda c: percent(c.auc_random)),
        Column("difference", lambda c: percent(c.difference, c.interval, signed=True)),
    ]
    images = counted(about["images"], "image")
    heading = f"{about['model']} ({about['regions']}) on {about['data']}, {about['split']}, {images}"
    parts = [Table(f"{heading}: area under the curve, %", curves, result.curves, keys=2)]
    if result.pointing:
        game = [
            Column("", lambda hits: hits.what, TEXT),
            Column("ranked", lambda hits: percent(hits.share, hits.interval)),
            Column("random", lambda hits: percent(hits.random, hits.random_interval)),
        ]
        images = counted(result.pointing[0].images, "image")
        parts.append(Table(f"pointing game, {images} with boxes, %", game, result.pointing))
    if wide and (found := result.found) is not None:
        objects = [
            Column("regions", lambda row: row[0], TEXT),
            Column("of the image, %", lambda row: percent(row[1])),
            Column("ranked", lambda row: percent(row[2])),
            Column("random", lambda row: percent(row[3])),
        ]
        rows = list(zip(map(str, range(len(found.share))), found.share, found.half, found.random_half, strict=True))
        images = counted(found.images, "image")
        parts.append(Table(f"half of the object in the regions so far, {images} with boxes, %", objects, rows))
    legend = "Deletion should be low and insertion high; random: the same regions elsewhere."
    return stacked(*parts, f"{INTERVALS} {legend}")

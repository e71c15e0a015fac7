"""At which level is the evidence still visible? An answer in minutes, before hours of training.

An image is seen at scales of 1, 2, 4, ... image pixels per pixel, until all of it fits into one look. For each level
there is a measurement, see `foveal.evaluation.levels`:

- With boxes of the objects: their size in pixels, and how many of them a quickly trained scout finds.
- Without boxes: the accuracy of a linear classifier of features of looks, or its average precision for a rare class.

The recommended level is the coarsest whose result lies in the 95 % interval of the best one, because a level twice as
coarse costs a quarter; but not one at which objects have less than 6 px, if a finer one is as good. Options of a scan
and of a TNet follow from it.

Example:
    >>> from foveal.data import get_data
    >>> data = get_data("digits", canvas=96, digit=(12, 16), train=40, val=4, test=4)
    >>> found = visible(data, backbone="test_efficientnet", look_size=32, steps=20, limit=24, device="cpu")
    >>> [(level.scale, level.size) for level in found.levels]
    [(1, (96, 96)), (2, (48, 48)), (4, (24, 24))]
    >>> found.levels[1].shorter[1] == found.levels[0].shorter[1] / 2
    True
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from foveal.data import DataModule
from foveal.display import TEXT, Column, Table, counted, fixed, image_size, percent, stacked, unit_for
from foveal.errors import ConfigError, DataError, renaming
from foveal.evaluation.levels import PASSES, PEAKS, Sample, chance, draw_sample, look_at_levels, probe, recalls
from foveal.evaluation.protocol import Progress, Setting, nothing_read, plain_split
from foveal.evaluation.results import ELSEWHERE, INTERVALS, to_json
from foveal.files import taking_turns
from foveal.glimpse.base import GlimpseClassifier, WholeImage
from foveal.glimpse.scan import WINDOW
from foveal.metrics import Metric
from foveal.models import create_classifier
from foveal.prediction.checks import check_whole
from foveal.prediction.cost import count_cost
from foveal.prediction.device import find_device, machine_name
from foveal.prediction.locations import format_locations
from foveal.tasks import MULTILABEL

if TYPE_CHECKING:
    from rich.console import Group

DECIDES = f"recall_{PEAKS[1]}"
"""The recall that decides: at as many peaks as a scan looks at by default."""
MOST_PIXELS = 1 << 29
"""Most pixels of all images together at a level that a scout searches."""
LEAST_IMAGES = 8
"""Fewest images with objects on which scouts are trained and judged."""
VISIBLE = 6
"""Pixels that an object needs at the recommended level, unless only coarser levels are good."""
READABLE = 20
"""Pixels of a look that an object needs to be recognised."""
SMALLEST = 8
"""Fewest pixels along the shorter side of the median image."""
RARE = 1 / 3
"""Average precision is measured if less than this share of the images have one of two classes."""
SIDE = 224
"""Side of a look without a backbone."""
READER = "efficientnet_b0"
"""Backbone of suggested models, unless one is given: that of the recipe ``folder``."""


# ------------------------------------------------------------------------------------------------------------ results


@dataclass(frozen=True, kw_only=True)
class Level:
    """What a level shows.

    Attributes:
        scale: image pixels per pixel, along each axis.
        size: (height, width) of the median image in pixels of this level.
        shorter: 10th, 50th and 90th percentile of the objects' shorter side, in pixels of this level; None without
            boxes.
        longer: the same of the longer side.
        looks: number of looks at an image, mean; None with boxes.
        covered: share of the image that they cover, mean.
        metrics: with boxes ``recall_M`` and ``random_M``, recall at the M highest peaks and at M random places. Without
            boxes ``accuracy`` or ``average_precision``, and the same with ``_one_look`` for a random look alone. Empty
            if the level was not measured.
    """

    scale: int
    size: tuple[int, int]
    shorter: tuple[float, float, float] | None = None
    longer: tuple[float, float, float] | None = None
    looks: float | None = None
    covered: float | None = None
    metrics: Mapping[str, Metric]


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """A model to train.

    Attributes:
        model: its name.
        flags: flags of ``foveal fit``.
        locations: looks per grid at each level.
        macs: multiply-accumulates for the median image.
        bytes_read: bytes read of a file, mean of up to four; None for images in memory.
    """

    model: str
    flags: tuple[str, ...]
    locations: tuple[int, ...]
    macs: int
    bytes_read: float | None


@dataclass(frozen=True, kw_only=True)
class Visibility:
    """Result of `visible`.

    Attributes:
        about: on what, where and how it was found.
        levels: from full resolution to the level at which an image fits into one look.
        metric: name of the metric that decides; None if nothing was measured.
        scale: image pixels per pixel of the recommended level.
        notes: sentences that explain the recommendation.
        suggested: models to train, the most promising first.
        errors: (path or name, one sentence) of each image that could not be read; such an image counts nowhere.
    """

    about: dict[str, Any]
    levels: tuple[Level, ...]
    metric: str | None
    scale: int
    notes: tuple[str, ...]
    suggested: tuple[Suggestion, ...]
    errors: tuple[tuple[str, str], ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Content of the JSON file."""
        own = {name: to_json(getattr(self, name)) for name in ("metric", "scale", "notes", "levels", "suggested")}
        return {**self.about, **own, "errors": [{"image": image, "error": error} for image, error in self.errors]}

    def write(self, file: str | Path) -> None:
        """Write the JSON file.

        Raises:
            StorageError: it cannot be written.
        """
        with taking_turns(Path(file), ELSEWHERE) as unfinished:
            unfinished.write_text(json.dumps(self.as_dict(), indent=2) + "\n")

    def table(self, wide: bool = False) -> Group:
        """The result for people, to be printed by rich, without `commands`; every column if ``wide``."""
        about, legend = self.about, ["scale: image pixels per pixel, along each axis; *: recommended."]
        objects = f"{counted(about['objects'], 'object')} in " if about["objects"] else ""
        if objects:
            legend.append("object: shorter side in pixels of the level, median (10th to 90th percentile).")
        if self.metric == DECIDES:
            legend.append("Recall, %: objects at the highest peaks of a scout, and at random places.")
        elif self.metric:
            legend.append("seen: share of the image in the looks. one look: a random one alone.")
        if self.metric:
            legend.append(INTERVALS)
        return stacked(
            Table(
                f"{about['data']}, {about['split']}: {objects}{counted(about['images'], 'image')}",
                self._columns(wide),
                self.levels,
            ),
            " ".join(legend),
            *self.notes,
            Table(f"Cost of an image of {image_size(about['image_size'])} px", _costs(self.suggested), self.suggested),
        )

    def commands(self, width: int = 80) -> str:
        """Commands that train the suggested models, for a shell; lines are broken before flags, at ``width`` columns.

        Print them as they are: a line that rich wraps cannot be copied.
        """
        flags = self.about.get("data_flags", ())
        return "\n".join(_command(["foveal", "fit", *flags, *one.flags], width - 2) for one in self.suggested)

    def _columns(self, wide: bool) -> list[Column]:
        """Columns of the table of levels; those without content are not shown."""

        def measured(name: str, header: str, interval: bool) -> Column:
            def cell(level: Level) -> str:
                value, bounds = level.metrics.get(name, Metric())
                return percent(value, bounds if interval or wide else None)

            return Column(header, cell)

        elongated = any(one.longer and one.shorter and one.longer[1] > 2 * one.shorter[1] for one in self.levels)
        columns = [Column("scale", lambda level: f"{level.scale}{' *' if level.scale == self.scale else ''}")]
        if wide or not self.about["objects"]:
            columns.append(Column("image, px", lambda level: image_size(level.size), TEXT))
        columns.append(Column("object, px", lambda level: _spread(level.shorter), TEXT))
        if wide or elongated:
            columns.append(Column("longer, px", lambda level: fixed(level.longer[1], 1) if level.longer else ""))
        columns.append(Column("looks", lambda level: fixed(level.looks, 1)))
        columns.append(Column("seen, %", lambda level: percent(level.covered)))
        if self.metric == DECIDES:
            columns += [measured(f"recall_{m}", counted(m, "peak"), m == PEAKS[1]) for m in PEAKS]
            columns += [measured(f"random_{m}", f"{m} random", False) for m in (PEAKS if wide else PEAKS[1:2])]
        elif self.metric:
            columns.append(measured(self.metric, f"{self.metric.replace('_', ' ')}, %", True))
            columns.append(measured(f"{self.metric}_one_look", "one look", False))
        return columns


def _spread(of: tuple[float, float, float] | None) -> str:
    low, middle, high = (fixed(value, 1) for value in of or (None, None, None))
    return middle if low == high else f"{middle} ({low} to {high})"


def _costs(suggested: Sequence[Suggestion]) -> list[Column]:
    macs, read = unit_for("MAC", [s.macs for s in suggested]), unit_for("B", [s.bytes_read for s in suggested])
    return [
        Column("model", lambda one: one.model, TEXT),
        Column("locations", lambda one: format_locations(one.locations), TEXT),
        Column(macs.name, lambda one: macs(one.macs)),
        Column(f"{read.name} read", lambda one: read(one.bytes_read)),
    ]


def _command(words: Sequence[str], width: int) -> str:
    """A command for a shell, in lines of ``width`` columns where it can be broken. A flag and its value stay together.

    >>> print(_command(["foveal", "fit", "--model", "scan", "--model.scale", "4"], 26))
    foveal fit --model scan \\
        --model.scale 4
    """
    parts: list[str] = []
    for word in map(shlex.quote, words):
        if parts and parts[-1].startswith("--") and not word.startswith("--"):
            parts[-1] += f" {word}"
        else:
            parts.append(word)
    lines = parts[:1]
    for part in parts[1:]:
        if len(lines[-1]) + 1 + len(part) > width - 2:
            lines[-1] += " \\"
            lines.append(f"    {part}")
        else:
            lines[-1] += f" {part}"
    return "\n".join(lines)


# -------------------------------------------------------------------------------------------------------- the program


def visible(
    data: DataModule,
    *,
    backbone: str | None = None,
    pretrained: bool | str = False,
    look_size: int | None = None,
    looks: int = 32,
    steps: int = 400,
    split: str = "train",
    limit: int = 200,
    batch_size: int = 32,
    device: str | torch.device = "auto",
    precision: str = "32",
    seed: int = 0,
    on_progress: Progress | None = None,
) -> Visibility:
    """Find the level at which the evidence is still visible, and suggest models.

    Args:
        data: images with labels, and boxes of the objects if there are any.
        backbone: name of the network that suggested models have and, without boxes, that computes features; if None,
            a small network with random weights computes them.
        pretrained: True loads the weights that timm downloads into the backbone; a path loads that file.
        look_size: side of a look in pixels that a network sees; the backbone's input size if None, or 224.
        looks: without boxes: most looks at an image at each level.
        steps: with boxes: updates of each scout.
        split: images to use.
        limit: most images, drawn by the seed, equally many of each class as far as there are.
        batch_size: looks at a time.
        device: see `foveal.prediction.find_device`.
        precision: see `foveal.prediction.autocast`.
        seed: seed of all random numbers.
        on_progress: see `foveal.evaluation.protocol.Progress`.

    Raises:
        ConfigError: an option is not valid, or the backbone is unknown.
        DataError: there is no such split; no image can be read; or there are no boxes, and fewer than two classes with
            two images each.
    """
    from foveal import __version__

    for name, value, least in (("looks", looks, 1), ("steps", steps, 1), ("look_size", look_size or SIDE, WINDOW)):
        check_whole(name, value, least)
    how = Setting(
        split=split,
        batch_size=batch_size,
        device=device,
        precision=precision,
        seed=seed,
        limit=limit,
        on_progress=on_progress,
    )
    data, split = plain_split(data, split)
    images = data.split(split)
    network = _network(backbone, pretrained, look_size, images.channels).to(find_device(device)).eval()
    side = network.size[0]
    sample = Sample(images, draw_sample(images, limit, seed), how)
    boxes = _boxes_inside(sample)
    median = np.median(np.stack([sample.sizes[i] for i in sample.good]), 0).round().astype(int)
    if median.min() < SMALLEST:
        what = f"its median image has {image_size(median.tolist())} px, and levels are compared from {SMALLEST} px on"
        raise DataError(f"{data.name}: {what}; train a dense network on these images")
    scales = [1]
    while median.max() > side * scales[-1]:
        scales.append(2 * scales[-1])
    counts = images.counts()
    rare = images.task != MULTILABEL and len(counts) == 2 and counts.min() < RARE * counts.sum()
    metric: str | None = "average_precision" if rare or images.task == MULTILABEL else "accuracy"
    middle, floor = _median_sides(boxes), None
    if middle is not None:
        levels = _with_boxes(sample, boxes, scales, steps, scan_look(*middle, side), median)
        metric = DECIDES if any(level.metrics for level in levels) else None
    else:
        levels, floor = _without_boxes(sample, network, scales, looks, str(metric), median, data.name)
    scale, notes = recommend(levels, metric, floor)
    evidence = _Evidence(scale, levels[-1].scale, middle, side)
    named = {"backbone": backbone or READER} | ({"pretrained": pretrained} if pretrained else {})
    bands = {} if images.channels == 3 else {"in_chans": images.channels}
    models, more = _models(evidence, median, named, backbone is None, bands)
    rarely = ("--class-weights", "balanced", "--monitor", "average_precision") if rare else ()
    about = {
        "data": data.name,
        "split": split,
        "images": len(sample.good),
        "objects": sum(map(len, boxes.values())),
        "classes": len(images.classes),
        "image_size": median.tolist(),
        "backbone": backbone,
        "look_size": side,
        "looks": looks if middle is None else None,
        "steps": None if middle is None else steps,
        "chance": floor,
        "limit": limit,
        "device": str(sample.device),
        "machine": machine_name(sample.device),
        "threads": torch.get_num_threads(),
        "foveal": __version__,
        "torch": torch.__version__,
        "precision": precision,
        "seed": seed,
    }
    return Visibility(
        about=about,
        levels=tuple(levels),
        metric=metric,
        scale=scale,
        notes=(*notes, *more),
        suggested=tuple(_costed(name, options, sample, median, rarely) for name, options in models),
        errors=tuple(dict.fromkeys(sample.errors.values())),
    )


def _network(backbone: str | None, pretrained: bool | str, look_size: int | None, channels: int) -> WholeImage:
    """The network that computes features. Without pretrained weights, its random ones are always the same."""
    if backbone is None and pretrained:
        raise ConfigError("`backbone`: is missing, but there are weights for it; name a network")
    size = {} if look_size is None else {"image_size": look_size}
    with torch.random.fork_rng(devices=()), renaming({"image_size": "`look_size`"}):
        torch.manual_seed(0)
        if backbone is None:
            size = {"image_size": look_size or SIDE}
            found = create_classifier("plain_convnet_32", in_chans=channels, widths=(16, 32, 64), **size)
        else:
            found = create_classifier(backbone, in_chans=channels, pretrained=pretrained, **size)
    if not isinstance(found, WholeImage) or not hasattr(found.network, "forward_features"):
        raise ConfigError(f"`backbone` {backbone}: gives no feature maps; name a network of timm, as resnet18")
    return found


def _sound(boxes: Any) -> np.ndarray:
    """The boxes (k, 4) that have an area; none of None."""
    found = np.zeros((0, 4)) if boxes is None else np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    return found[(found[:, 2:] > found[:, :2]).all(1)]


def _boxes_inside(sample: Sample) -> dict[int, np.ndarray]:
    """Boxes (k, 4) of the objects of each image, as far as they are inside it. An image with a box that is outside is
    left out of the sample.

    Raises:
        DataError: no image is left.
    """
    boxes = {}
    for i in sample.good:
        found, limits = _sound(sample.images.objects(i)), np.tile(sample.sizes[i], 2)
        inside = found.clip(0, limits)
        wrong = found[(inside[:, 2:] <= inside[:, :2]).any(1)]
        if not len(wrong):
            boxes[i] = inside
            continue
        name = getattr(sample.images, "path", "image {}".format)(i)
        box, size = " ".join(f"{v:g}" for v in wrong[0]), image_size(sample.sizes[i].tolist())
        sample.errors[i] = name, f"{name}: has the box {box}, outside of its {size} px; give y0 x0 y1 x1 in pixels"
    if not sample.good:
        raise nothing_read(list(sample.errors.values()))
    return boxes


def _sides(boxes: Mapping[int, np.ndarray]) -> np.ndarray:
    """(N, 2) shorter and longer sides of all boxes."""
    every = np.concatenate(list(boxes.values()))
    return np.sort(every[:, 2:] - every[:, :2], axis=1)


def _median_sides(boxes: Mapping[int, np.ndarray]) -> tuple[float, float] | None:
    """Median shorter and longer side; None without boxes."""
    sides = _sides(boxes)
    return (float(np.median(sides[:, 0])), float(np.median(sides[:, 1]))) if len(sides) else None


def _with_boxes(
    sample: Sample,
    boxes: Mapping[int, np.ndarray],
    scales: Sequence[int],
    steps: int,
    look_size: int,
    median: np.ndarray,
) -> list[Level]:
    """Sizes of objects at each level, and recall at those that are not too large to be searched."""
    shorter, longer = np.percentile(_sides(boxes), (10, 50, 90), axis=0).T
    pixels = sum(int(size.prod()) for size in sample.sizes.values())
    searched = [scale for scale in scales if pixels <= MOST_PIXELS * scale**2] or scales[-1:]
    if sum(len(of) > 0 for of in boxes.values()) < LEAST_IMAGES:
        searched = []
    step = sample.how.steps("training scouts", PASSES * len(searched))
    return [
        Level(
            scale=scale,
            size=_at_scale(median, scale),
            shorter=tuple((shorter / scale).tolist()),
            longer=tuple((longer / scale).tolist()),
            metrics=recalls(sample, boxes, scale, look_size, steps, step) if scale in searched else {},
        )
        for scale in scales
    ]


def _without_boxes(
    sample: Sample,
    network: WholeImage,
    scales: Sequence[int],
    looks: int,
    metric: str,
    median: np.ndarray,
    name: str,
) -> tuple[list[Level], float]:
    """The metric of a linear classifier at each level, and that of a constant answer."""
    found = look_at_levels(sample, network, scales, looks, sample.how.steps("looking", sample.rounds))
    images, places = sample.images, sample.good
    targets = images.targets[places]
    counts = images.task.counts(targets, len(images.classes))
    several = images.task == MULTILABEL
    known = (counts >= 2) & (len(targets) - counts >= 2) if several else counts >= 2
    if (counts > 0).sum() == 1 and not several:
        only = images.classes[int(counts.argmax())]
        raise DataError(
            f"{name}: there are images of one class, {only!r}, and no boxes of objects, so nothing tells whether a "
            "level shows the evidence; add a class, or boxes"
        )
    if known.sum() < (1 if several else 2):
        raise DataError(
            f"{name}: without boxes, at least two images with and two without a class are needed, and there are "
            f"{counted(len(places), 'image')} in all; add images, or boxes of the objects"
        )
    levels = []
    for scale in scales:
        seen = [found[scale][i] for i in places]
        metrics = {
            key: probe(np.stack(features), targets, len(images.classes), metric, sample.how.seed)
            for key, features in (
                (metric, [one.features for one in seen]),
                (f"{metric}_one_look", [one.of_one for one in seen]),
            )
        }
        levels.append(
            Level(
                scale=scale,
                size=_at_scale(median, scale),
                looks=float(np.mean([one.looks for one in seen])),
                covered=float(np.mean([one.covered for one in seen])),
                metrics=metrics,
            )
        )
    return levels, chance(targets, images, metric)


def _at_scale(size: np.ndarray, scale: int) -> tuple[int, int]:
    height, width = (-(-size // scale)).tolist()
    return height, width


# ------------------------------------------------------------------------------------------------- the recommendation


def recommend(levels: Sequence[Level], metric: str | None, floor: float | None) -> tuple[int, list[str]]:
    """The recommended scale, and sentences that say why.

    Args:
        levels: from full resolution to the coarsest.
        metric: name of the metric that decides; None if nothing was measured.
        floor: its value for an answer that does not depend on the image; None for recall, which has that of random
            places.
    """
    name = {"accuracy": "accuracy", "average_precision": "average precision"}.get(metric or "", "recall")
    measured = [(one, one.metrics[metric]) for one in levels if metric in one.metrics] if metric else []
    notes = []
    if measured and (left_out := [one.scale for one in levels if not one.metrics]):
        notes.append(
            f"Not measured: {_scales(left_out)}, where the images have more than {MOST_PIXELS / 1e9:.1f} billion "
            "pixels in all. Use fewer images to measure more levels."
        )
    if measured:
        best, (value, interval) = max(measured, key=lambda pair: (pair[1].value or 0, pair[0].scale))
        least = floor if floor is not None else best.metrics[DECIDES.replace("recall", "random")].value
        if interval and interval[0] > (least or 0):
            good = [pair for pair in measured if (pair[1].value or 0) >= interval[0]]
            visible_there = [pair for pair in good if pair[0].shorter is None or pair[0].shorter[1] >= VISIBLE]
            chosen, (own, _) = (visible_there or good)[-1]
            why = f"{percent(own)} %, the best"
            if own != value:
                why = f"{percent(own)} %, within the interval of the best, {percent(value)} % at scale {best.scale}"
            coarser = "" if chosen is levels[-1] or chosen is not good[-1][0] else "; coarser levels have less"
            notes.append(f"Scale {chosen.scale} is recommended: its {name} is {why}{coarser}.")
            if (last := good[-1][0]) is not chosen and last.shorter:
                pixels = f"objects have only {fixed(last.shorter[1], 1)} px there"
                notes.append(f"Scale {last.scale} is as good, but {pixels}; try it if the cost matters.")
            alike = [one.scale for one, (_, bounds) in measured if bounds and bounds[1] >= interval[0]]
            if len(alike) > 1:
                told = f"The intervals of {_scales(alike)} overlap: these images cannot tell the levels apart."
                notes.append(f"{told} Of those within the interval of the best, the cheapest is recommended.")
            return chosen.scale, [*notes, *_remarks(levels, chosen, str(metric))]
        of_what = "random places" if floor is None else "a constant answer"
        notes.append(
            f"The evidence cannot decide: no level has a clearly higher {name} than {of_what} ({percent(least)} %)."
        )
    else:
        notes.append(f"The evidence cannot decide: scouts need {LEAST_IMAGES} images with boxes.")
    large = [one for one in levels if one.shorter and one.shorter[1] >= VISIBLE]
    if not large:
        return 1, [*notes, "Full resolution is recommended, which shows all there is."]
    notes.append(f"Scale {large[-1].scale} is recommended, the coarsest at which objects have {VISIBLE} px.")
    return large[-1].scale, notes


def _remarks(levels: Sequence[Level], chosen: Level, metric: str) -> list[str]:
    """Sentences on what else speaks for or against the chosen level."""
    remarks = []
    if chosen.shorter is not None:
        large = [one.scale for one in levels if one.shorter and one.shorter[1] >= VISIBLE and one.metrics]
        if large and large[-1] > chosen.scale:
            remarks.append(
                f"Boxes have {VISIBLE} px or more up to scale {large[-1]}. That less is found there says that what "
                "matters is smaller than its box."
            )
    partly = [one.scale for one in levels if (one.covered or 1) < 0.5 and one.scale < chosen.scale]
    if partly:
        remarks.append(f"At {_scales(partly)} the looks covered less than half of an image. More looks may show more.")
    alone = chosen.metrics.get(f"{metric}_one_look", Metric()).value
    interval = chosen.metrics[metric].interval
    if alone is not None and interval and alone >= interval[0] and (chosen.looks or 1) >= 4:
        remarks.append("One random look at this level is as good as all: where to look hardly matters.")
    return remarks


def _scales(scales: Sequence[int]) -> str:
    return f"scale{'s' * (len(scales) > 1)} {', '.join(map(str, scales))}"


class _Evidence(NamedTuple):
    """What suggested models depend on: the scale, that of the coarsest level, the median shorter and longer side of an
    object in full-resolution pixels if known, and the side of a look."""

    scale: int
    coarsest: int
    object: tuple[float, float] | None
    side: int


def scan_look(shorter: float, longer: float, most: int) -> int:
    """Side of a look of a scan: twice that of an object, as the peak may be anywhere on it. Of elongated objects it is
    twice the shorter side.

    >>> scan_look(28, 28, 224), scan_look(58, 277, 224), scan_look(500, 600, 224)
    (56, 120, 224)
    """
    room = 2 * (shorter if longer > 2 * shorter else longer)
    return min(max(8 * math.ceil(room / 8), 40), most)


def tnet_levels(share: float) -> dict[str, Any]:
    """Options of a TNet whose last looks have a share of the side of the image, or a little more.

    Cells have from a quarter to half of the side of their look. Neighbours overlap by a quarter of their side or more.

    >>> tnet_levels(0.6), tnet_levels(1 / 16)
    ({'grid': 3, 'region': 0.5, 'locations': [2]}, {'grid': 5, 'region': 0.25, 'locations': [2, 1]})
    """
    below = max(1, math.ceil(math.log(share) / math.log(0.25) - 0.05))
    region = min(round(share ** (1 / below), 2), 0.5)
    grid = max(3, 1 + math.ceil((1 - region) / (0.75 * region) - 1e-9))
    return {"grid": grid, "region": region, "locations": [2, *[1] * (below - 1)]}


def _models(
    evidence: _Evidence, median: np.ndarray, named: dict[str, Any], small: bool, bands: dict[str, Any]
) -> tuple[list[tuple[str, dict[str, Any]]], list[str]]:
    """Names and options of models for the evidence, the most promising first, and sentences on them.

    Args:
        evidence: the evidence.
        median: (height, width) of the median image.
        named: backbone and weights.
        small: whether a scan may have its own small reader instead.
        bands: the option ``in_chans``, if there is need of it.
    """
    scale, coarsest, of_object, side = evidence
    last = scale * side if of_object is None else max(of_object[0] * side / READABLE, side)
    if last >= 0.9 * median.max():
        dense = {"image_size": side, **named, **bands}
        return [(dense.pop("backbone"), dense)], [
            "The whole image in one look is enough: a dense network on reduced images is the cheapest."
        ]
    look = side if of_object is None else scan_look(*of_object, side)
    scan = {"scale": scale, "look_size": look, **({} if small and look <= 64 else named), **bands}
    tnet = {**named, "base_size": side, **tnet_levels(min(last / math.sqrt(median.prod()), 0.9)), **bands}
    if scale == coarsest:
        return [("tnet", tnet), ("scan", scan)], []
    first = median.max() / side
    pixels = "" if of_object is None else f", where an object has {fixed(of_object[0] / first, 1)} px"
    return [("scan", scan), ("tnet", tnet)], [
        f"The first look of a TNet is at scale {fixed(first, 1)}{pixels}. It is coarser than recommended and may not "
        "show where to look: begin with the scan."
    ]


def _costed(
    name: str, options: dict[str, Any], sample: Sample, median: np.ndarray, more: tuple[str, ...]
) -> Suggestion:
    """A suggestion, with the cost of its model."""
    flags = ["--model", name]
    for key, value in options.items():
        text = ",".join(map(str, value)) if isinstance(value, list) else "true" if value is True else str(value)
        flags += [f"--model.{key}", text]
    made = {key: value for key, value in options.items() if key != "pretrained"}
    model = create_classifier(name, num_classes=max(2, len(sample.images.classes)), **made).to(sample.device).eval()
    height, width = median.tolist()
    return Suggestion(
        model=name,
        flags=(*flags, *more),
        locations=model.locations,
        macs=count_cost(model, (height, width)).macs,
        bytes_read=_bytes_read(sample, model),
    )


@torch.no_grad()
def _bytes_read(sample: Sample, model: GlimpseClassifier) -> float | None:
    """Bytes that a model reads of an image, mean of up to four; None in memory."""
    for batch in sample.batches(sample.good[:4]):
        if batch.views.bytes_read is None:
            return None
        model(batch.views, contributions=False)
        if rows := sample.check(batch):
            return float(batch.views.bytes_read[rows].mean())
    return None

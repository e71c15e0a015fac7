"""What one level of images shows: recall of objects by a quickly trained scout, and accuracy of a linear classifier.

A level has a scale: image pixels per pixel, along each axis. `foveal.evaluation.visibility` compares levels.

`recalls` needs boxes. A scout of `foveal.glimpse.scan` is trained on one half of the images and judged on the other,
each half in turn. It learns to score the best window of a box above windows elsewhere, first those of random places,
then also those of its own false peaks.

`look_at_levels` needs no boxes. A network computes features of square looks that tile an image. Their means and maxima
are classified by `probe`, a cross-validated ridge regression.

Example:
    >>> import numpy as np
    >>> tiles(np.array([500, 1260]), 640).tolist()
    [[-70.0, 0.0, 570.0, 640.0], [-70.0, 620.0, 570.0, 1260.0]]
    >>> hits(np.array([[0, 0, 40, 40], [60, 0, 100, 40]]), np.array([[10, 30, 30, 50]])).tolist()
    [[True, False]]
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.data import Batch, Dataset
from foveal.draws import Draws, generator
from foveal.evaluation.protocol import Setting, nothing_read, readable
from foveal.glimpse.base import WholeImage
from foveal.glimpse.scan import STRIDE, WINDOW, Scan
from foveal.host import to_device
from foveal.metrics import Answers, Metric, compute_metrics, proportion
from foveal.policies import GREEDY, Random
from foveal.prediction.device import autocast, find_device
from foveal.tasks import MULTILABEL

PEAKS = (1, 4, 16)
"""Numbers of highest peaks for which recall is measured."""
PASSES = 5
"""Passes over images for the recall at a level: one over all, and two over each half."""
BAG = 8
"""Windows at a box, of which the best counts."""
ELSEWHERE = 64
"""Windows of an image at random places."""
FALSE_PEAKS = 16
"""Peaks of an image of which the false ones become training windows."""
FOLDS = 5
"""Folds of the cross-validation."""
PENALTIES = np.logspace(-4, 3, 15)
"""Weights of the penalty of ridge regression that are tried, relative to the mean square of a feature."""
_AT_ONCE = 8  # images that are open at once


class Sample:
    """Some images of a split. Images that cannot be read are left out, and their errors kept.

    Args:
        images: the split.
        indices: places of the images in it.
        how: device, precision, seed and batch size.

    Attributes:
        sizes: (height, width) of each image that could be opened, by its place.
        errors: (path or name, one sentence) of each image that could not be read, by its place.

    Raises:
        DataError: no image could be opened.
    """

    def __init__(self, images: Dataset, indices: np.ndarray, how: Setting) -> None:
        self.images, self.how, self.device = images, how, find_device(how.device)
        self.errors: dict[int, tuple[str, str]] = {}
        self.sizes: dict[int, np.ndarray] = {}
        for batch in self.batches(indices.tolist()):
            self.sizes |= dict(zip(batch.index.tolist(), batch.views.sizes, strict=True))
        if not self.sizes:
            raise nothing_read(list(self.errors.values()))

    @property
    def good(self) -> list[int]:
        """Places of the images that could be read so far."""
        return [i for i in self.sizes if i not in self.errors]

    @property
    def rounds(self) -> int:
        """Batches of all images."""
        return -(-len(self.good) // _AT_ONCE)

    def batches(self, indices: Sequence[int]) -> Iterator[Batch]:
        """Batches of images, without those that could not be read."""
        wanted = [i for i in indices if i not in self.errors]
        for start in range(0, len(wanted), _AT_ONCE):
            some = wanted[start : start + _AT_ONCE]
            batch = self.images.batch(0, some, self.how.seed)
            opened = set(batch.index.tolist())
            self.errors |= dict(zip([i for i in some if i not in opened], batch.errors, strict=True))
            if len(batch):
                yield batch.to(self.device)

    def check(self, batch: Batch) -> list[int]:
        """Rows of a batch that could be read, after looks at it; keeps the errors of the others."""
        rows, errors = readable(batch)
        bad = np.delete(batch.index, rows).tolist()
        self.errors |= dict(zip(bad, errors, strict=True))
        return rows.tolist()


def draw_sample(images: Dataset, limit: int, seed: int) -> np.ndarray:
    """Places of up to ``limit`` random images, equally many of each class as far as there are; sorted."""
    order = generator(seed, 0, 0, "visible images").permutation(len(images))
    if images.task != MULTILABEL:
        classes, turn = images.targets[order], np.zeros(len(order), dtype=int)
        for c in np.unique(classes):
            turn[classes == c] = np.arange((classes == c).sum())
        order = order[np.argsort(turn, kind="stable")]
    return np.sort(order[:limit])


# --------------------------------------------------------------------------------------------------------- with boxes


class _Windows(NamedTuple):
    """Windows of one image at a level."""

    bags: Tensor  # (k, BAG, C, WINDOW, WINDOW) at k boxes
    others: Tensor  # (n, C, WINDOW, WINDOW) that overlap no box
    random: np.ndarray  # (k, ELSEWHERE) bool, whether a look at a random place shows a box


def recalls(
    sample: Sample, objects: Mapping[int, np.ndarray], scale: int, look_size: int, steps: int, step: Callable[[], None]
) -> dict[str, Metric]:
    """Recall of objects at one level.

    Args:
        sample: the images.
        objects: (k, 4) boxes of each image, by its place; k may be 0.
        scale: image pixels per pixel.
        look_size: side of a look in full-resolution pixels. An object is found if a look at a peak shows it, see
            `hits`.
        steps: updates of each of two scouts.
        step: called after each of `PASSES`.

    Returns:
        ``recall_M`` at the M highest peaks, and ``random_M`` at M random places that are not blank, with Wilson's
        intervals. Empty if no object could be read.
    """
    rng = generator(sample.how.seed, 0, scale, "visible windows")
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(sample.how.seed)
        channels = sample.images.channels
        models = [Scan(2, in_chans=channels, look_size=look_size, scale=scale).to(sample.device) for _ in range(2)]
    windows = _read_windows(sample, models[0], objects, rng)
    step()
    having, empty = ([i for i in windows if (len(objects[i]) > 0) == some] for some in (True, False))
    having, empty = rng.permutation(having).tolist(), rng.permutation(empty).tolist()
    at_peaks, at_random = [np.zeros((0, max(PEAKS)), bool)], [np.zeros((0, max(PEAKS)), bool)]
    for half, model in enumerate(models):
        judged, training = having[half::2], having[1 - half :: 2] + empty[half::2]
        bags, others = (torch.cat([getattr(windows[i], of) for i in training]) for of in ("bags", "others"))
        if not len(bags) or not len(others):
            continue
        _train(model, bags, others, steps - steps // 2, rng, sample.how)
        false = _false_peaks(sample, model, training, objects)
        step()
        _train(model, bags, torch.cat([others, *false]), steps // 2, rng, sample.how)
        for batch in sample.batches(judged):
            found = model.scan(batch.views, max(PEAKS), GREEDY, Draws(sample.how.seed, 0, batch.index), "visible peaks")
            looks = model.boxes(found.places, batch.views.sizes)
            for row in sample.check(batch):
                i = int(batch.index[row])
                at_peaks.append(hits(looks[row], objects[i]) & found.taken[row])
                at_random.append(windows[i].random[:, : max(PEAKS)])
        step()
    peaks, places = np.concatenate(at_peaks), np.concatenate(at_random)
    if not len(peaks):
        return {}
    found_at = {"recall": peaks, "random": places}
    return {f"{name}_{m}": proportion(np.any(of[:, :m], axis=1)) for name, of in found_at.items() for m in PEAKS}


def hits(looks: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """(k, n) bool, whether looks (n, 4) show boxes (k, 4): they share half of the area that they could at most."""
    low, high = np.maximum(looks[:, :2], boxes[:, None, :2]), np.minimum(looks[:, 2:], boxes[:, None, 2:])
    sides = np.minimum(looks[:, 2:] - looks[:, :2], (boxes[:, 2:] - boxes[:, :2])[:, None])
    return np.prod(np.clip(high - low, 0, None) / sides, axis=-1) >= 0.5


def _read_windows(
    sample: Sample, model: Scan, objects: Mapping[int, np.ndarray], rng: np.random.Generator
) -> dict[int, _Windows]:
    """Windows at boxes and elsewhere of each image, by its place."""
    windows = {}
    for batch in sample.batches(sample.good):
        found = model.scan(batch.views, ELSEWHERE, Random(), Draws(sample.how.seed, 0, batch.index), "visible places")
        boxes = [objects[int(i)] for i in batch.index]
        which, corners = _places_inside(model, boxes, batch.views.sizes, rng)
        side = WINDOW * model.scale
        bags = model.see(batch.views, which, np.concatenate([corners, corners + side], 1), (WINDOW, WINDOW))
        of_image = bags.reshape(-1, BAG, *bags.shape[1:]).split([len(b) for b in boxes])
        looks = model.boxes(found.places, batch.views.sizes)
        for row in sample.check(batch):
            far = to_device(_far(model, found.places[row], boxes[row]) & found.taken[row], bags.device)
            shown = hits(looks[row], boxes[row]) & found.taken[row]
            windows[int(batch.index[row])] = _Windows(of_image[row], found.windows[row][far], shown)
    return windows


def _places_inside(
    model: Scan, boxes: Sequence[np.ndarray], sizes: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The image (n,), and the corner (n, 2) of the window, of `BAG` random places in each of its boxes."""
    which = np.repeat(np.arange(len(boxes)), [BAG * len(of) for of in boxes])
    inside = np.concatenate(boxes).repeat(BAG, 0)
    centre = inside[:, :2] + rng.random((len(inside), 2)) * (inside[:, 2:] - inside[:, :2])
    place = np.floor(np.clip(centre, 0, sizes[which] - 1) / (STRIDE * model.scale))
    return which, (place * STRIDE - WINDOW // 2) * model.scale


def _far(model: Scan, places: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """(n,) bool, whether the windows of places (n, 2) overlap no box (k, 4)."""
    centre, reach = ((places * STRIDE + 0.5) * model.scale)[:, None], WINDOW / 2 * model.scale
    near = (centre > boxes[:, :2] - reach) & (centre < boxes[:, 2:] + reach)
    return ~np.any(near.all(-1), axis=1)


def _train(model: Scan, bags: Tensor, others: Tensor, steps: int, rng: np.random.Generator, how: Setting) -> None:
    """Train the scout to score the best window of a box above those elsewhere, ``bags`` and ``others``."""
    optimiser = torch.optim.AdamW(model.scout.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, max(steps, 2))
    for _ in range(steps):
        box, other = (
            torch.from_numpy(rng.integers(len(bags), size=16)),
            torch.from_numpy(rng.integers(len(others), size=128)),
        )
        seen = torch.cat([bags[box.to(bags.device)].flatten(0, 1), others[other.to(bags.device)]])
        seen = seen.flip([dim for dim in (2, 3) if rng.random() < 0.5]).contiguous(memory_format=torch.channels_last)
        with autocast(how.precision, seen.device):
            scores = model.scout(seen).flatten().float()
        at_box, elsewhere = scores.split([len(box) * BAG, len(other)])
        best = at_box.unflatten(0, (-1, BAG)).logsumexp(1)
        loss = F.softplus(elsewhere.logsumexp(0) - best).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()


def _false_peaks(
    sample: Sample, model: Scan, training: Sequence[int], objects: Mapping[int, np.ndarray]
) -> list[Tensor]:
    """Windows of the peaks that overlap no box."""
    false = []
    for batch in sample.batches(training):
        found = model.scan(batch.views, FALSE_PEAKS, GREEDY, Draws(sample.how.seed, 0, batch.index), "visible peaks")
        for row in sample.check(batch):
            far = _far(model, found.places[row], objects[int(batch.index[row])]) & found.taken[row]
            false.append(found.windows[row][to_device(far, found.windows.device)])
    return false


# ------------------------------------------------------------------------------------------------------ without boxes


class Looked(NamedTuple):
    """What was seen of an image at a level.

    Attributes:
        features: (D,) float64, means and maxima over all looks.
        of_one: the same of one random look.
        looks: number of looks.
        covered: share of the image that they cover.
    """

    features: np.ndarray
    of_one: np.ndarray
    looks: int
    covered: float


def tiles(size: np.ndarray, side: int) -> np.ndarray:
    """(n, 4) square boxes that cover an image.

    They are spread evenly from edge to edge. Along an axis that is shorter than a box there is one, centred.

    Args:
        size: (height, width) of the image.
        side: side of a box in pixels of the image.
    """
    starts = []
    for length in size.tolist():
        room = length - side
        starts.append(np.round(np.linspace(0, room, -(-length // side))) if room > 0 else np.floor([room / 2]))
    corners = np.stack(np.meshgrid(*starts, indexing="ij"), -1).reshape(-1, 2)
    return np.concatenate([corners, corners + side], 1)


@torch.no_grad()
def look_at_levels(
    sample: Sample, network: WholeImage, scales: Sequence[int], looks: int, step: Callable[[], None]
) -> dict[int, dict[int, Looked]]:
    """Look at all images at several levels.

    Args:
        sample: the images.
        network: computes feature maps of looks of its size.
        scales: image pixels per pixel of each level.
        looks: most looks at an image at a level; random ones of those that would tile it.
        step: called after each batch of images.

    Returns:
        By scale, then by the place of an image.
    """
    found: dict[int, dict[int, Looked]] = {scale: {} for scale in scales}
    for batch in sample.batches(sample.good):
        for scale in scales:
            for row, i in enumerate(batch.index.tolist()):
                every = tiles(batch.views.sizes[row], network.size[0] * scale)
                boxes = every[generator(sample.how.seed, scale, i, "visible looks").permutation(len(every))[:looks]]
                parts = []
                for start in range(0, len(boxes), sample.how.batch_size):
                    now = boxes[start : start + sample.how.batch_size]
                    with autocast(sample.how.precision, sample.device):
                        parts.append(_pooled(network, network.see(batch.views, np.full(len(now), row), now)))
                mean, high = torch.cat(parts).double().cpu().numpy().swapaxes(0, 1)
                found[scale][i] = Looked(
                    np.concatenate([mean.mean(0), high.max(0)]),
                    np.concatenate([mean[0], high[0]]),
                    len(boxes),
                    len(boxes) / len(every),
                )
        sample.check(batch)
        step()
    return found


def _pooled(network: WholeImage, seen: Tensor) -> Tensor:
    """(N, 2, D) means and maxima over the last feature maps of looks."""
    inner: Any = network.network
    maps = inner.forward_features(seen).float()
    if maps.ndim == 4:
        channels = getattr(inner, "num_features", maps.shape[1])
        # Swin and others have channels last.
        maps = (maps if maps.shape[1] == channels else maps.permute(0, 3, 1, 2)).flatten(2)
    else:
        maps = maps.transpose(1, 2)
    return torch.stack([maps.mean(2), maps.amax(2)], 1)


def probe(features: np.ndarray, targets: np.ndarray, classes: int, metric: str, seed: int) -> Metric:
    """A metric of a cross-validated linear classifier of images.

    Args:
        features: (N, D).
        targets: (N,) classes, or (N, classes) labels.
        classes: number of classes.
        metric: name of the metric, see `foveal.metrics`.
        seed: of the folds. The images of a class are spread over them evenly.
    """
    order = generator(seed, 0, 0, "visible folds").permutation(len(targets))
    if targets.ndim == 1:
        order = order[np.argsort(targets[order], kind="stable")]
    folds = np.empty(len(targets), dtype=int)
    folds[order] = np.arange(len(order)) % FOLDS
    marks = targets if targets.ndim == 2 else targets[:, None] == np.arange(classes)
    scores = ridge(features, np.where(marks, 1.0, -1.0), folds)
    answers = Answers.of(torch.from_numpy(scores), torch.from_numpy(targets), keep_probabilities=True)
    return compute_metrics(answers, [metric])[metric]


def ridge(features: np.ndarray, targets: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Predictions of ridge regression for images whose fold was left out of training.

    Features are standardised. Of `PENALTIES`, that with the least leave-one-out error of the training images is taken.

    Args:
        features: (N, D) float64.
        targets: (N, K) float64.
        folds: (N,) fold of each image.

    Returns:
        (N, K) float64.
    """
    out = np.zeros(targets.shape)
    for fold in np.unique(folds):
        held = folds == fold
        x, z, middle = features[~held], features[held], targets[~held].mean(0)
        y, mean, std = targets[~held] - middle, x.mean(0), x.std(0)
        varies = std > 1e-9 * (np.abs(mean) + 1)
        factor = np.where(varies, 1 / np.where(varies, std, 1), 0) / math.sqrt(max(varies.sum(), 1))
        x, z = (x - mean) * factor, (z - mean) * factor
        values, vectors = np.linalg.eigh(x @ x.T)  # (N, N): there are fewer images than features
        values, inside = np.clip(values, 0, None), vectors.T @ y
        least = np.inf
        for penalty in PENALTIES:
            fitted = vectors @ ((values / (values + penalty))[:, None] * inside)
            leverage = np.square(vectors) @ (values / (values + penalty)) + 1 / len(x)
            error = float(np.square((y - fitted) / np.maximum(1 - leverage, 1e-9)[:, None]).sum())
            if error < least:
                least = error
                out[held] = middle + z @ x.T @ (vectors @ (inside / (values + penalty)[:, None]))
    return out


def chance(targets: np.ndarray, images: Dataset, metric: str) -> float:
    """The metric of an answer that does not depend on the image, for some ``targets`` of a data set."""
    if metric == "accuracy":
        return images.task.commonest(targets)[1]
    shares = images.task.counts(targets, len(images.classes)) / len(targets)
    known = shares[(shares > 0) & (shares < 1)]
    return float(known.mean() if images.task == MULTILABEL else known.min())

"""Scan, then look: a scout reads the whole image at a coarse level, a reader looks at a few places in full resolution.

A thumbnail of a large image does not show small objects. The scout reads a level at which they still have 6 to 8 px: a
small convolutional network scores every second pixel of it. Local maxima of the scores are peaks. The reader, any
network, looks at the K highest peaks. With scores s_i and logits z_i of the looks, the logits of the image are the sum
of w_i z_i, with w the softmax of the scores over the looks, so the contribution of each look is exact.

The scan streams over the image block by block, without gradient and in constant memory. It keeps the best peaks, and a
uniform sample of all places (a reservoir), each with its window of the scanned level. From the windows, scores are
computed again with gradient. Places that are blank, with constant pixels around them, are not scored and cannot be
chosen; an image without other places is looked at in its middle. What is kept does not depend on the size of a block.

Of a tiled file, missing tiles and tiles with the bytes of one that was decoded and has a single colour are not decoded,
and blocks of such tiles are not read. Equal bytes decode equally, so this changes no result. With ``blank_bytes``,
places in tiles of at most this many bytes count as blank before they are read. This is a guess: a small object on a
plain ground may fit into as few bytes, and is then missed. A mask (`foveal.images.masks`) excludes places, too.

In a `Classification` the scan is the glimpse of level 1. It has the size of the scanned level, and contributes 0 to the
logits. Looks have level 2. Without looks, all logits are 0.

"Iterative Patch Selection" (Bergner, Lippert and Mahendran, ICLR 2023, arXiv 2210.13007) also selects in constant
memory, but runs the network that classifies over all patches in full resolution.

Example:
    >>> import torch
    >>> model = Scan(num_classes=4, look_size=16, scale=2, locations=(3,)).eval()
    >>> looked = model(torch.rand(1, 3, 120, 200))
    >>> [(g.level, g.size) for g in looked.glimpses]
    [(1, (60, 100)), (2, (16, 16)), (2, (16, 16)), (2, (16, 16))]
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.classification import Classification, Glimpses
from foveal.draws import Draws
from foveal.errors import ConfigError
from foveal.glimpse.base import GlimpseClassifier, Normalised, Part, Parts, Walk, on_host, per_band, whole_image
from foveal.glimpse.networks import channels_last, check_least, check_look, create_network, small_reader
from foveal.glimpse.places import (
    AHEAD,
    FLAT,
    SIDE,
    STRIDE,
    TILE,
    WINDOW,
    Block,
    Kept,
    allowed_places,
    block_box,
    blocks_of,
    by_tile,
    highest,
    inner,
    look_boxes,
    middle,
    readable,
    rounded,
    together,
)
from foveal.host import to_device
from foveal.images.views import Look, Views
from foveal.objectives.rollout import Rollout
from foveal.objectives.scan import ScanObjective
from foveal.policies import GREEDY, NEVER, Greedy, Policy, Random, Sampled
from foveal.registry import MODELS

_SCORED = 256  # tiles that are scored at once


class Scout(nn.Module):
    """Scores places from windows of ``WINDOW`` pixels: three 3 x 3 convolutions, and a linear layer.

    Without norms, the score of a place does not depend on others.

    Args:
        channels: number of bands.
        width: channels of the convolutions.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(channels, width, 3, STRIDE),
            nn.ReLU(),
            nn.Conv2d(width, width, 3),
            nn.ReLU(),
            nn.Conv2d(width, width, 3),
            nn.ReLU(),
        )
        self.score = nn.Linear(width, 1)

    def forward(self, seen: Tensor) -> Tensor:
        """(N, channels, h, w) to scores (N, rows, columns) of every second window along each axis."""
        # A matrix product would add in an order that depends on the number of windows.
        return (self.features(seen) * self.score.weight[0, :, None, None]).sum(1) + self.score.bias


def distort(looks: Tensor, draws: np.ndarray) -> Tensor:
    """Rotate, scale and shear looks around their centres.

    Args:
        looks: (N, C, side, side), normalised.
        draws: (N, 4) in the open interval (-1, 1) times the strength: angle in radians, logarithms of the scale along
            both axes, and shear.

    Returns:
        (N, C, side, side), bilinear; 0 outside the look.
    """
    angle, down, right, shear = to_device(draws.T, looks.device, looks.dtype)
    cos, sin = angle.cos(), angle.sin()
    zero = torch.zeros_like(cos)
    rows = torch.stack([cos * right.exp(), shear - sin, zero, sin, cos * down.exp(), zero], 1).unflatten(1, (2, 3))
    grid = F.affine_grid(rows, list(looks.shape), align_corners=False)
    return F.grid_sample(looks, grid, align_corners=False).contiguous(memory_format=torch.channels_last)


class Head(nn.Module):
    """Adds the logits of looks, with weights from the scout, or from the scout and the looks (cross-attention).

    Without attention heads, weights are the softmax of the scout's scores over the looks. An attention head compares a
    learned query with a key of each look, adds the score of the scout, and takes the softmax. Its values are logits,
    and the logits of the image are the mean over heads. The last layer of the reader computes values, and the products
    of keys and queries. The contribution of each look is exact in both cases.

    Args:
        classes: number of classes.
        heads: number of attention heads; 0 for weights from the scout alone.
    """

    def __init__(self, classes: int, heads: int) -> None:
        super().__init__()
        self.classes, self.heads = classes, heads
        self.outputs = heads * (classes + 1) or classes

    def _split(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs of the reader (..., outputs) to values (..., heads, classes) and products (..., heads)."""
        if not self.heads:
            return seen[..., None, :], seen.new_zeros(*seen.shape[:-1], 1)
        values, products = seen.unflatten(-1, (self.heads, self.classes + 1)).split((self.classes, 1), -1)
        return values, products.squeeze(-1)

    def forward(self, seen: Tensor) -> Tensor:
        """Logits (..., classes) of single looks, from outputs of the reader (..., outputs)."""
        return self._split(seen)[0].mean(-2)

    def weigh(self, seen: Tensor, scores: Tensor, taken: np.ndarray) -> tuple[Tensor, Tensor]:
        """Contributions (B, N, classes) of looks, and logarithms (B, N) of their weights.

        Args:
            seen: (B, N, outputs) of the reader.
            scores: (B, N) of the scout.
            taken: (B, N) bool; looks that are not taken have contribution 0.
        """
        values, products = self._split(seen)
        mask = to_device(taken, scores.device)
        log_w = (scores[..., None] + products).masked_fill(~mask[..., None], NEVER).log_softmax(1)
        parts = (log_w.exp()[..., None] * values).mean(2) * mask[..., None]
        return parts, log_w.logsumexp(2) - math.log(max(self.heads, 1))

    def roll_out(self, seen: Tensor, scores: Tensor, taken: np.ndarray, policy: Policy) -> Rollout:
        """A rollout whose ``values`` are the scores of the looks, and whose ``scores`` are the logarithms of their
        weights; see `weigh` for the arguments."""
        parts, log_w = self.weigh(seen, scores, taken)
        return Rollout(
            parts.sum(1),
            self(seen),
            level=np.full(seen.shape[1], 2),
            scores=[log_w[:, None]],
            additive=False,
            values=scores,
            policy=policy,
        )


def classification(
    model: GlimpseClassifier,
    views: Views,
    parts: Tensor,
    taken: np.ndarray,
    log_probability: np.ndarray,
    boxes: np.ndarray,
    scale: int,
    contributions: bool,
) -> Classification:
    """The sum of looks, with the scan as the glimpse of level 1.

    Args:
        model: a model that scans and looks.
        views: the images.
        parts: (B, N, classes) contributions of looks.
        taken: (B, N) bool, looks that were taken.
        log_probability: (B, N) of their choice.
        boxes: (B, N, 4).
        scale: pixels of the image per pixel of the scanned level.
        contributions: whether glimpses have contributions.
    """
    every = np.pad(taken, ((0, 0), (1, 0)), constant_values=True)
    image, column = np.nonzero(every)
    sizes = np.repeat(-(-views.sizes // scale)[:, None], every.shape[1], axis=1)
    sizes[:, 1:] = model.size
    log_p = to_device(np.pad(log_probability, ((0, 0), (1, 0)))[every], parts.device, torch.float32)
    glimpses = Glimpses(
        image=image,
        box=np.concatenate([model.root(views.sizes)[:, None], boxes], axis=1)[every],
        size=sizes[every],
        level=np.where(column, 2, 1),
        parent=np.where(column, 0, -1),
        probability=log_p.exp(),
        contribution=F.pad(parts, (0, 0, 1, 0))[to_device(image, parts.device), to_device(column, parts.device)]
        if contributions
        else None,
    )
    return Classification(parts.sum(1), glimpses, model.class_names, {}, views.bytes_read, model.task)


class _Found(NamedTuple):
    """Places of a batch, N for each image, in the order chosen; an image with fewer has the last ones not taken."""

    places: np.ndarray  # (B, N, 2) row and column, in places
    taken: np.ndarray  # (B, N) bool
    windows: Tensor  # (B, N, C, WINDOW, WINDOW)
    log_probability: np.ndarray  # (B, N)


# ------------------------------------------------------------------------------------------------ the model


@MODELS.register("scan")
class Scan(GlimpseClassifier):
    """A scan of the image at a coarse level, and looks at its best places in full resolution.

    Policies: ``greedy`` takes the highest peaks, ``sampled`` draws peaks without replacement from the softmax of their
    scores, ``random`` takes any places that are not blank, without use of the scout.

    In training mode, rollouts look at ``candidates`` peaks and ``reservoir`` other places instead of ``locations``.

    Args:
        num_classes: number of classes.
        backbone: timm name of the network that reads the looks; if None, four convolutions, for small looks.
        backbone_options: further keywords for `timm.create_model`.
        pretrained: True loads the weights that timm downloads into the backbone; a path loads that file.
        in_chans: number of bands of the images.
        look_size: side of a look in full-resolution pixels; the backbone's input size if None, or 40.
        scale: pixels of the image per pixel of the scanned level, along each axis; a power of two.
        scout_width: channels of the scout.
        locations: default number of looks.
        candidates: peaks of each image that are looked at in training.
        reservoir: other places of each image that are looked at in training, drawn uniformly.
        distortion: in training mode, looks are rotated by up to this angle in radians, scaled along each axis by up to
            its exponential, and sheared by up to this share.
        heads: number of attention heads that weigh looks together with the scout; 0 for the scout alone. See `Head`.
        blank_bytes: places in tiles of the file of at most this many bytes count as blank; None for no limit. Small
            objects on a plain ground may fit into as few bytes, and are then missed.
        mean, std: normalisation; the backbone's if None, or 0.5.

    Raises:
        ConfigError: ``scale`` is not a power of two, a number is too small, or the backbone is unknown.
    """

    objective: type[Any] = ScanObjective
    policy_kinds = (Greedy, Sampled, Random)
    searches = True

    def __init__(
        self,
        num_classes: int = 1000,
        *,
        backbone: str | None = None,
        backbone_options: dict[str, Any] | None = None,
        pretrained: bool | str = False,
        in_chans: int = 3,
        look_size: int | None = None,
        scale: int = 4,
        scout_width: int = 24,
        locations: Sequence[int] = (4,),
        candidates: int = 12,
        reservoir: int = 4,
        distortion: float = 0.0,
        heads: int = 0,
        blank_bytes: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        if scale < 1 or scale & (scale - 1):
            raise ConfigError(f"`scale` {scale}: is not a power of two; give 1, 2, 4, 8, ...")
        check_look(in_chans, look_size=look_size)
        check_least(1, scout_width=scout_width, candidates=candidates)
        check_least(0, reservoir=reservoir, heads=heads, blank_bytes=blank_bytes)
        if not 0 <= distortion < 1:
            raise ConfigError(f"`distortion` {distortion}: is not from 0 to 1; give a share such as 0.2")
        head = Head(num_classes, heads)
        network: nn.Module | None = None
        if backbone is not None:
            options = {**(backbone_options or {}), "num_classes": head.outputs}
            network = create_network(backbone, in_chans, pretrained, options, look_size)
        elif backbone_options or pretrained:
            raise ConfigError("`backbone`: is missing, but there are options or weights for it; name a network")
        config = getattr(network, "pretrained_cfg", None) or {}
        side = look_size or (40 if network is None else config.get("input_size", (3, 224, 224))[-1])
        super().__init__(
            num_classes,
            (side, side),
            per_band(mean or config.get("mean", (0.5,)), in_chans),
            per_band(std or config.get("std", (0.5,)), in_chans),
        )
        self.scale, self.candidates, self.reservoir = scale, candidates, reservoir
        self.distortion, self.blank_bytes = distortion, blank_bytes
        # Two peaks are more than half a look apart along one axis.
        self.radius = max(1, side // (2 * STRIDE * scale))
        self.locations = self.resolve_locations(locations)
        self.head = head
        self.scout = channels_last(Scout(in_chans, scout_width))
        self.reader = channels_last(small_reader(in_chans, head.outputs) if network is None else network)

    def root(self, sizes: np.ndarray) -> np.ndarray:
        return whole_image(sizes)

    def first_looks(self, size: tuple[int, int]) -> list[Look]:
        """The block of an image that has only one. Larger images are read during the scan."""
        blocks = self._blocks(np.array([size]))[0]
        if len(blocks) > 1:
            return []
        box, shape = self._box(blocks[0])
        return [Look(tuple(box), shape, self._fill, self.antialias)]

    # ---- the scan

    def scan(self, views: Views, count: int, policy: Policy, draws: Draws, purpose: str, reservoir: int = 0) -> _Found:
        """Scan images, and choose places to look at.

        Args:
            views: B images.
            count: number of places that the policy chooses.
            policy: one of ``policies``.
            draws: random numbers.
            purpose: name of the draws.
            reservoir: number of further places, drawn uniformly.
        """
        policies = [(policy, count), (Random(), count + reservoir)] if reservoir else [(policy, count)]
        empty = self.mean.new_zeros(0, self.channels, WINDOW, WINDOW)
        kept = [[Kept(most, of.learned, of.draws, empty) for of, most in policies] for _ in range(len(views))]
        needs_seeds = any(of.draws for of, _ in policies)
        uniform = draws.uniform(purpose) if needs_seeds else np.zeros(len(views))
        seeds = (uniform * 2.0**63).astype(np.uint64)
        blocks = self._blocks(views.sizes)
        total, done = sum(map(len, blocks)), 0
        with torch.no_grad():
            if self.mean.is_meta and policy.learned and total > len(views):
                # Only the cost is counted: the tiles of further blocks are scored at once, and their places left out.
                tiles = sum(int((block.end - block.begin).prod()) for of_image in blocks for block in of_image[1:])
                self.scout(self.mean.new_empty(tiles, self.channels, SIDE, SIDE))
                blocks = [of_image[:1] for of_image in blocks]
            for some in self._read_ahead(views, together(blocks)):
                self._scan_blocks(views, some, kept, seeds, policy.learned)
                done += len(some)
                if views.on_scan is not None and total > len(views):
                    views.on_scan(done / total)
        return self._found(views, kept, count + reservoir)

    def _read_ahead(self, views: Views, steps: Iterator[list[Block]]) -> Iterator[list[Block]]:
        """Blocks of a scan, in this order. The bytes of many of a remote image are read in one round."""
        while group := list(islice(steps, AHEAD if views.is_remote else 1)):
            if views.is_remote:
                blocks = [block for some in group for block in some if self._may_choose(views, block)]
                if blocks:
                    boxes, sizes = zip(*map(self._box, blocks), strict=True)
                    views.read_ahead(np.array([block.image for block in blocks]), np.stack(boxes), sizes)
            yield from group

    def _may_choose(self, views: Views, block: Block) -> bool:
        allowed = allowed_places(views, block, self.scale, self.blank_bytes)
        return allowed is None or bool(allowed.any())

    def _blocks(self, sizes: np.ndarray) -> list[list[Block]]:
        """Blocks of each image, in reading order."""
        return [blocks_of(size, self.scale, self.radius, image) for image, size in enumerate(np.asarray(sizes))]

    def _box(self, block: Block) -> tuple[np.ndarray, tuple[int, int]]:
        """Box of a block in the image, and its (height, width) at the scanned level: the windows of its places."""
        return block_box(block, self.scale)

    def _scan_blocks(
        self, views: Views, blocks: list[Block], kept: list[list[Kept]], seeds: np.ndarray, scored: bool
    ) -> None:
        """Read blocks of the same shape, one of each image, and keep their best places. Blocks without a place that can
        be chosen are not read."""
        blocks, allowed = readable(views, blocks, self.scale, self.blank_bytes)
        if not blocks:
            return
        boxes, shapes = zip(*map(self._box, blocks), strict=True)
        which = np.array([block.image for block in blocks])
        seen = self.see(views, which, np.stack(boxes), shapes[0])
        sizes = -(-views.sizes[which] // self.scale)
        begin = np.stack([block.begin for block in blocks]) * TILE
        blank = self._blank(seen, begin * STRIDE - WINDOW // 2, sizes)
        for i, some in enumerate(allowed):
            if some is not None:
                blank[i] |= ~some
        scores = np.where(blank, np.float32(NEVER), np.float32(0))
        if scored:
            full = np.logical_not(by_tile(blank).all((3, 4)))
            tiles = by_tile(scores)
            tiles[full] = np.where(tiles[full] < 0, NEVER, self._score_tiles(seen, full))
        peaks = (scores == highest(scores, self.radius)) & ~blank
        windows = seen.unfold(2, WINDOW, STRIDE).unfold(3, WINDOW, STRIDE)
        for i, block in enumerate(blocks):
            for keep in kept[block.image]:
                mask = np.zeros_like(blank[i])
                mask[inner(block)] = (peaks if keep.learned else ~blank)[i][inner(block)]
                at = np.argwhere(mask)
                chosen = scores[i][mask].astype(np.float64)
                best, order = keep.offer(at + begin[i], chosen, seeds[block.image])
                y, x = to_device(at[best].T, seen.device)
                near = torch.cat([keep.windows, windows[i][:, y, x].transpose(0, 1)])
                keep.windows = near[to_device(order, seen.device)]

    def _blank(self, seen: Tensor, first: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """Whether places are blank: the 3 x 3 pixels around them, as far as they are in the image, have one value.

        Args:
            seen: (n, C, h, w) blocks at the scanned level.
            first: (n, 2) their first pixel in the image.
            sizes: (n, 2) (height, width) of the images at the scanned level.

        Returns:
            (n, rows, columns) bool; True for places outside the image.
        """
        at = [first[:, i, None] + np.arange(seen.shape[2 + i]) for i in (0, 1)]
        inside = [(p >= 0) & (p < sizes[:, i, None]) for i, p in enumerate(at)]
        near = slice(WINDOW // 2 - 1, -(WINDOW // 2) + STRIDE)
        high = low = seen[..., near, near]
        if not all(part.all() for part in inside):
            rows, columns = (to_device(part[:, near], seen.device) for part in inside)
            beyond = ~(rows[:, None, :, None] & columns[:, None, None, :])
            high, low = high.masked_fill(beyond, -torch.inf), low.masked_fill(beyond, torch.inf)
        for dim in (2, 3):
            high, low = _of_three(high, dim, torch.maximum), _of_three(low, dim, torch.minimum)
        # Tensors on the meta device have no values: nothing is blank.
        flat = on_host(((high - low) * self.std[:, None, None]).amax(1) <= FLAT).astype(bool)
        centres = slice(WINDOW // 2, -(WINDOW // 2) + STRIDE - 1, STRIDE)
        there = [part[:, centres] for part in inside]
        return flat | ~(there[0][:, :, None] & there[1][:, None, :])

    def _score_tiles(self, seen: Tensor, full: np.ndarray) -> np.ndarray:
        """(m, TILE, TILE) scores of the tiles of blocks that are ``full``, (n, rows, columns) bool."""
        tiles = seen.unfold(2, SIDE, TILE * STRIDE).unfold(3, SIDE, TILE * STRIDE)
        n, y, x = (to_device(index, seen.device) for index in np.nonzero(full))
        scores = []
        for part in range(0, len(n), _SCORED):
            some = np.arange(part, min(part + _SCORED, len(n)))
            if not seen.is_meta:
                # Repeat the last tile: convolutions of a batch of one may add in another order, and oneDNN keeps memory
                # for each size of a batch, so few sizes are used.
                some = np.pad(some, (0, rounded(len(some)) - len(some)), mode="edge")
            score = self.scout(tiles[n[some], :, y[some], x[some]].contiguous(memory_format=torch.channels_last))
            scores.append(on_host(score.float()).astype(np.float32))
        return np.concatenate(scores)[: len(n)] if scores else np.zeros((0, TILE, TILE))

    def _found(self, views: Views, kept: list[list[Kept]], count: int) -> _Found:
        """Gather what was kept of each image."""
        places = np.zeros((len(kept), count, 2), dtype=int)
        taken = np.zeros((len(kept), count), dtype=bool)
        log_p = np.zeros((len(kept), count))
        windows = self.mean.new_zeros(len(kept), count, self.channels, WINDOW, WINDOW)
        for i, (chosen, *more) in enumerate(kept):
            found, shown, log_probability = chosen.places, chosen.windows, chosen.log_probability
            for keep in more:
                new = ~(keep.places[:, None] == found).all(-1).any(1)
                other = np.flatnonzero(new)[: count - chosen.count]
                found = np.concatenate([found, keep.places[other]])
                shown = torch.cat([shown, keep.windows[to_device(other, shown.device)]])
                log_probability = np.concatenate([log_probability, np.full(len(other), NEVER)])
            if count and not len(found):
                (found, box), log_probability = middle(views.sizes[i], self.scale), np.zeros(1)
                shown = self.see(views, np.array([i]), box, (WINDOW, WINDOW))
            n = len(found)
            places[i, :n], taken[i, :n], log_p[i, :n], windows[i, :n] = found, True, log_probability, shown
        return _Found(places, taken, windows, log_p)

    # ---- the looks

    def boxes(self, places: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """(B, N, 4) boxes of looks at places (B, N, 2), moved into the images of ``sizes`` (B, 2), or centred on an
        image that is smaller than a look."""
        return look_boxes(places, sizes, self.size[0], self.scale)

    def read(self, views: Views, boxes: np.ndarray, taken: np.ndarray, distortion: np.ndarray | None = None) -> Tensor:
        """(B, N, outputs) of the reader for looks at boxes (B, N, 4), distorted by (B, N, 4) draws, see `distort`; 0
        where they are not taken, (B, N) bool."""
        which, column = np.nonzero(taken)
        if not len(which):
            return self.mean.new_zeros(*taken.shape, self.head.outputs)
        looks = self.see(views, which, boxes[which, column])
        seen = self.reader(looks if distortion is None else distort(looks, distortion[which, column]))
        out = seen.new_zeros(taken.size, seen.shape[1])
        return out.index_copy(0, to_device(np.flatnonzero(taken), seen.device), seen).unflatten(0, taken.shape)

    def scores(self, found: _Found) -> Tensor:
        """(B, N) scores of places, in float32 or more; `NEVER` for those that are missing."""
        windows = found.windows.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        scores = self.scout(windows).reshape(found.taken.shape)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        return scores.masked_fill(~to_device(found.taken, scores.device), NEVER)

    def weighted_looks(self, views: Views) -> tuple[np.ndarray, Tensor]:
        """The ``candidates`` highest peaks, with the softmax of their scores. The reader does not look at them."""
        found = self.scan(views, self.candidates, GREEDY, Draws(0, 0, np.arange(len(views))), "scan 0")
        return self.boxes(found.places, views.sizes), self.scores(found).softmax(1)

    def classify(
        self, views: Views, locations: tuple[int, ...], policy: Policy, draws: Draws, contributions: bool
    ) -> Classification:
        found = self.scan(views, sum(locations), policy, draws, "scan 0")
        boxes = self.boxes(found.places, views.sizes)
        return self._classification(views, found, boxes, self.read(views, boxes, found.taken), contributions)

    def classify_in_turns(self, views: Views, locations: tuple[int, ...], at_once: int, contributions: bool) -> Walk:
        most = sum(locations)
        found = self.scan(views, most, GREEDY, Draws(0, 0, np.arange(len(views))), "scan 0")
        boxes, scores = self.boxes(found.places, views.sizes), self.scores(found)
        looks = self.mean.new_zeros(*found.taken.shape, self.head.outputs)
        done, going = np.zeros_like(found.taken), np.ones(len(views), dtype=bool)
        for step in range(0, most, at_once):
            if not going.any():
                break
            which = np.flatnonzero(going)  # with those that have no more peaks, as each image has as many turns
            logits = self.head.weigh(looks, scores, done)[0].sum(1)
            wanted = yield which, logits[to_device(which, logits.device)]
            going[which] = wanted
            now = np.zeros_like(done)
            now[going, step : step + at_once] = found.taken[going, step : step + at_once]
            if now.any():
                looks, done = looks + self.read(views, boxes, now), done | now
        return self._classification(views, found._replace(taken=done), boxes, looks, contributions)

    def _classification(
        self, views: Views, found: _Found, boxes: np.ndarray, looks: Tensor, contributions: bool
    ) -> Classification:
        parts, _ = self.head.weigh(looks, self.scores(found), found.taken)
        return classification(self, views, parts, found.taken, found.log_probability, boxes, self.scale, contributions)

    def roll_out(self, views: Views, locations: tuple[int, ...], policies: list[Policy], draws: Draws) -> list[Rollout]:
        """``values`` are the scores of the looks, and ``scores`` the logarithms of their weights."""
        chosen, more = (self.candidates, self.reservoir) if self.training else (sum(locations), 0)
        rollouts = []
        for number, policy in enumerate(policies):
            found = self.scan(views, chosen, policy, draws, f"scan {number}", more)
            distortion = None
            if self.training and self.distortion:
                drawn = draws.uniform(f"distortion {number}", *found.taken.shape[1:], 4)
                distortion = (2 * drawn - 1) * self.distortion
            seen = self.read(views, self.boxes(found.places, views.sizes), found.taken, distortion)
            scores = self.scores(found)
            rollouts.append(self.head.roll_out(seen, scores, found.taken, policy))
        return rollouts

    # ---- parts for export

    def parts(self) -> Parts:
        """``scout``: a tile of the scanned level to the scores of its places; ``place``: the window of a place to its
        score; ``reader``: a look to the inputs of `Head`."""
        sizes = {"scout": (SIDE, SIDE), "place": (WINDOW, WINDOW)}
        parts = {
            name: Part(Normalised(self, self.scout), {"look": self.example_looks(size)}, ("scores",))
            for name, size in sizes.items()
        }
        parts["reader"] = Part(Normalised(self, self.reader), {"look": self.example_looks()}, ("seen",))
        options = {
            "scale": self.scale,
            "radius": self.radius,
            "heads": self.head.heads,
            "blank_bytes": self.blank_bytes,
        }
        return Parts("scan", parts, options)

    # ---- parameters and the dense baseline

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """``scout``, ``head`` (the classifier of the backbone), and ``backbone``."""
        head = getattr(self.reader, "get_classifier", lambda: None)()
        if isinstance(self.reader, nn.Sequential):
            head = self.reader[-1]
        parts = {"scout": self.scout, "head": head if isinstance(head, nn.Module) else nn.Identity()}
        group_of = {id(p): name for name, part in parts.items() for p in part.parameters()}
        groups: dict[str, list[nn.Parameter]] = {"head": [], "backbone": [], "scout": []}
        for p in self.parameters():
            if p.requires_grad:
                groups[group_of.get(id(p), "backbone")].append(p)
        return groups

    def dense(self) -> nn.Module:
        reader = copy.deepcopy(self.reader)
        return nn.Sequential(reader, self.head) if self.head.heads else reader


def _of_three(x: Tensor, dim: int, extreme: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Extremes of three neighbours along a dimension, at every second place."""
    first, middle, last = ([slice(None)] * dim + [slice(i, x.shape[dim] - 2 + i, STRIDE)] for i in range(3))
    return extreme(extreme(x[tuple(first)], x[tuple(middle)]), x[tuple(last)])

"""Scan tiles at a coarse level, then look at the best of them at a finer one, by one network.

Every tile of a grid is encoded at a level with ``coarse`` times fewer pixels per axis. A scout, two layers, scores its
features. The same network encodes the K best tiles at the finer level. With scores s_i and logits z_i of these looks,
the logits of the image are the sum of w_i z_i, with w the softmax of the scores over the looks, as of
`foveal.glimpse.scan`, so the contribution of each look is exact. `foveal.objectives.scan` trains both.

Of n tiles, prediction encodes n at 1 / coarse² of the pixels, and K more. With `foveal.features.FeatureViews`, features
of both levels are known and nothing is encoded: scout and head are trained on them in seconds, and the trained model
then encodes only what it chooses.

The scan streams over the tiles in constant memory. Blank tiles are left out as of `foveal.glimpse.tiles`. In a
`Classification` the scan is the glimpse of level 1, with the size of the coarse level, and contributes 0. Looks have
level 2. Without looks, all logits are 0.

Example:
    >>> import torch
    >>> model = TileScan(num_classes=4, tile_size=16, coarse=2, locations=(3,)).eval()
    >>> looked = model(torch.rand(1, 3, 120, 200))
    >>> [(g.level, g.size) for g in looked.glimpses]
    [(1, (60, 100)), (2, (16, 16)), (2, (16, 16)), (2, (16, 16))]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from foveal.classification import Classification
from foveal.draws import Draws
from foveal.errors import ConfigError
from foveal.features.views import FeatureViews
from foveal.glimpse.base import GlimpseClassifier, on_host
from foveal.glimpse.networks import check_least
from foveal.glimpse.places import Kept
from foveal.glimpse.scan import Head, classification
from foveal.glimpse.tiles import TileClassifier, evaluating
from foveal.host import to_device
from foveal.images.views import Views
from foveal.objectives.rollout import Rollout
from foveal.objectives.scan import ScanObjective
from foveal.policies import NEVER, Greedy, Policy, Random, Sampled
from foveal.registry import MODELS


class _Found(NamedTuple):
    """Tiles of a batch, N for each image, in the order chosen; an image with fewer has the last ones not taken."""

    tiles: np.ndarray  # (B, N) numbers in reading order, or positions in a file of features
    taken: np.ndarray  # (B, N) bool
    coarse: Tensor  # (B, N, features) of the coarse level
    log_probability: np.ndarray  # (B, N)


@MODELS.register("tile_scan")
class TileScan(TileClassifier):
    """A scan of all tiles at a coarse level, and looks at the best of them at a finer one.

    Policies: ``greedy`` takes the tiles with the highest scores, ``sampled`` draws tiles without replacement from the
    softmax of the scores, ``random`` takes any tiles.

    In training mode, rollouts look at ``candidates`` tiles and ``reservoir`` other ones instead of ``locations``.

    Args:
        num_classes: number of classes.
        backbone: timm name of the network that encodes tiles; if None, four convolutions, for small tiles.
        backbone_options: further keywords for `timm.create_model`.
        stages: number of stages of the backbone, whose last output is averaged; the whole backbone if None.
        pretrained: True loads the weights that timm downloads into the backbone; a path loads that file.
        in_chans: number of bands of the images.
        tile_size: side of a tile in pixels of the finer level; a multiple of ``coarse``.
        tile_stride: pixels of the finer level between the beginnings of tiles; ``tile_size`` if None.
        scale: pixels of the image per pixel of the finer level, along each axis.
        coarse: pixels of the finer level per pixel of the coarse one, along each axis.
        locations: default number of looks.
        candidates: tiles of each image that are looked at in training.
        reservoir: other tiles of each image that are looked at in training, drawn uniformly.
        hidden: hidden features of the scout.
        heads: number of attention heads that weigh looks together with the scout; 0 for the scout alone. See
            `foveal.glimpse.scan.Head`.
        at_once: tiles that are encoded at once at the coarse level.
        skip_blank: leave blank tiles out; see `foveal.glimpse.tiles`.
        features: number of features, for a model without a network, which takes features of files alone.
        mean, std: normalisation; the backbone's if None, or 0.5.

    Raises:
        ConfigError: a number is too small, ``tile_size`` is no multiple of ``coarse``, or the backbone is unknown, does
            not have the stages, or does not take tiles of both sizes.
    """

    reads_features = True
    reads_coarse = True
    objective: type[Any] = ScanObjective
    policy_kinds = (Greedy, Sampled, Random)
    most_levels = 1

    def __init__(
        self,
        num_classes: int = 1000,
        *,
        backbone: str | None = None,
        backbone_options: dict[str, Any] | None = None,
        stages: int | None = None,
        pretrained: bool | str = False,
        in_chans: int = 3,
        tile_size: int = 64,
        tile_stride: int | None = None,
        scale: int = 1,
        coarse: int = 4,
        locations: Sequence[int] = (4,),
        candidates: int = 16,
        reservoir: int = 16,
        hidden: int = 64,
        heads: int = 0,
        at_once: int = 128,
        skip_blank: bool = True,
        features: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        check_least(1, coarse=coarse, candidates=candidates, hidden=hidden)
        check_least(0, reservoir=reservoir, heads=heads)
        if tile_size % coarse:
            raise ConfigError(f"`tile_size` {tile_size}: is no multiple of `coarse` {coarse}; give one that is")
        super().__init__(
            num_classes,
            backbone=backbone,
            backbone_options=backbone_options,
            stages=stages,
            pretrained=pretrained,
            in_chans=in_chans,
            tile_size=tile_size,
            tile_stride=tile_stride,
            scale=scale,
            at_once=at_once,
            reuse_blank=False,
            skip_blank=skip_blank,
            features=features,
            mean=mean,
            std=std,
        )
        self.coarse, self.candidates, self.reservoir = coarse, candidates, reservoir
        self.coarse_size = (tile_size // coarse, tile_size // coarse)
        self.locations = self.resolve_locations(locations)
        self.weigher = Head(num_classes, heads)
        self.scout = nn.Sequential(
            nn.LayerNorm(self.features), nn.Linear(self.features, hidden), nn.ReLU(), nn.Linear(hidden, 1)
        )
        self.head = nn.Linear(self.features, self.weigher.outputs)
        self._check_coarse_size()

    def _check_coarse_size(self) -> None:
        if isinstance(self.encoder, nn.Identity):
            return
        try:
            with torch.no_grad(), evaluating(self.encoder):
                self.encoder(torch.zeros(1, self.channels, *self.coarse_size))
        except Exception as error:
            what = f"the network does not take tiles of {self.size[0]} px and of {self.coarse_size[0]} px"
            raise ConfigError(
                f"`coarse` {self.coarse}: {what}; give a convolutional one, or a smaller number"
            ) from error

    def _takes(self) -> str:
        return GlimpseClassifier._takes(self)

    def check_policies(self, policies: Sequence[str | Policy]) -> None:
        GlimpseClassifier.check_policies(self, policies)

    # ---- the scan

    def scan(self, views: Views, count: int, policy: Policy, draws: Draws, purpose: str, reservoir: int = 0) -> _Found:
        """Encode tiles at the coarse level, and choose some; see `foveal.glimpse.scan.Scan.scan` for the arguments."""
        policies = [(policy, count), (Random(), count + reservoir)] if reservoir else [(policy, count)]
        empty = self.mean.new_zeros(0, self.features)
        uniform = draws.uniform(purpose) if any(of.draws for of, _ in policies) else np.zeros(len(views))
        seeds = (uniform * 2.0**63).astype(np.uint64)
        most = count + reservoir
        found = _Found(
            np.zeros((len(views), most), dtype=np.int64),
            np.zeros((len(views), most), dtype=bool),
            self.mean.new_zeros(len(views), most, self.features),
            np.full((len(views), most), NEVER),
        )
        for image, tiles in enumerate(self.counts(views)):
            kept = [Kept(of_policy, of.learned, of.draws, empty) for of, of_policy in policies]
            with torch.no_grad():
                self._scan_image(views, image, int(tiles), kept, seeds[image])
            chosen, *more = kept
            numbers, coarse, log_p = chosen.places[:, 1], chosen.windows, chosen.log_probability
            for keep in more:
                other = np.flatnonzero(~np.isin(keep.places[:, 1], numbers))[: most - chosen.count]
                numbers = np.concatenate([numbers, keep.places[other, 1]])
                coarse = torch.cat([coarse, keep.windows[to_device(other, coarse.device)]])
                log_p = np.concatenate([log_p, np.full(len(other), NEVER)])
            if most and not len(numbers):
                middle = np.array([[self.middle_tile(views, image)]])
                coarse = self.encode(self.read(views, np.array([image]), middle, self.coarse_size)[0]).detach()
                numbers, log_p = middle[0], np.zeros(1)
            n = len(numbers)
            found.tiles[image, :n], found.taken[image, :n], found.log_probability[image, :n] = numbers, True, log_p
            found.coarse[image, :n] = coarse.to(found.coarse.dtype)
        return found

    def _scan_image(self, views: Views, image: int, tiles: int, kept: list[Kept], seed: np.uint64) -> None:
        """Score the tiles of an image, and keep the best."""
        with evaluating(self.encoder):
            for first in range(0, tiles, self.at_once):
                numbers = np.arange(first, min(first + self.at_once, tiles))
                coarse, some = self.encoded(views, np.full(len(numbers), image), numbers, self.coarse_size)
                scores = on_host(self._score(coarse).double()).astype(np.float64)
                places = np.stack([np.zeros_like(some), numbers[some]], axis=1)
                for keep in kept:
                    best, order = keep.offer(places, scores, seed)
                    near = torch.cat([keep.windows, coarse[to_device(best, coarse.device)].to(keep.windows.dtype)])
                    keep.windows = near[to_device(order, near.device)]
                if views.on_scan is not None and tiles > self.at_once:
                    views.on_scan((image + numbers[-1] / tiles) / len(views))

    def _score(self, coarse: Tensor) -> Tensor:
        """(...) scores of features (..., features), in float32 or more."""
        scores = self.scout(coarse)[..., 0]
        return scores.to(torch.promote_types(scores.dtype, torch.float32))

    def scores(self, found: _Found) -> Tensor:
        """(B, N) scores of tiles; `NEVER` for those that are missing."""
        return self._score(found.coarse).masked_fill(~to_device(found.taken, found.coarse.device), NEVER)

    # ---- the looks

    def look(self, views: Views, found: _Found) -> Tensor:
        """(B, N, outputs) of the head for tiles at the finer level; 0 where they are not taken."""
        which, column = np.nonzero(found.taken)
        if not len(which):
            return self.mean.new_zeros(*found.taken.shape, self.weigher.outputs)
        tiles = found.tiles[which, column]
        if isinstance(views, FeatureViews):
            features = views.features(which, tiles).to(self.mean.device, self.mean.dtype)
        else:
            features = self.encode(self.read(views, which, tiles[:, None])[:, 0])
        seen = self.head(features)
        out = seen.new_zeros(found.taken.size, seen.shape[1])
        return out.index_copy(0, to_device(np.flatnonzero(found.taken), seen.device), seen).unflatten(
            0, found.taken.shape
        )

    def classify(
        self, views: Views, locations: tuple[int, ...], policy: Policy, draws: Draws, contributions: bool
    ) -> Classification:
        found = self.scan(views, sum(locations), policy, draws, "scan 0")
        parts, _ = self.weigher.weigh(self.look(views, found), self.scores(found), found.taken)
        boxes = np.zeros((*found.taken.shape, 4))
        boxes[found.taken] = self.boxes_of(views, np.nonzero(found.taken)[0], found.tiles[found.taken])
        scale = self.scale * self.coarse
        return classification(self, views, parts, found.taken, found.log_probability, boxes, scale, contributions)

    def roll_out(self, views: Views, locations: tuple[int, ...], policies: list[Policy], draws: Draws) -> list[Rollout]:
        """``values`` are the scores of the looks, and ``scores`` the logarithms of their weights."""
        chosen, more = (self.candidates, self.reservoir) if self.training else (sum(locations), 0)
        rollouts = []
        for number, policy in enumerate(policies):
            found = self.scan(views, chosen, policy, draws, f"scan {number}", more)
            rollouts.append(self.weigher.roll_out(self.look(views, found), self.scores(found), found.taken, policy))
        return rollouts

    # ---- parameters and the dense baseline

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """``scout``, ``head``, and ``backbone`` (the encoder of tiles)."""
        groups = super().parameter_groups()
        return {"head": groups["head"], "backbone": groups["backbone"], "scout": groups["attention"]}

    def dense(self) -> nn.Module:
        network = super().dense()
        if not self.weigher.heads:
            return network
        whole = nn.Sequential(network, self.weigher)
        whole.in_chans = self.channels  # type: ignore[assignment]
        return whole

"""Iterative patch selection: the network that classifies scans all tiles in full resolution and keeps the best.

Bergner, Lippert and Mahendran, "Iterative Patch Selection for High-Resolution Image Recognition", ICLR 2023, arXiv
2210.13007; code github.com/benbergner/ips.

A memory holds M tiles. I further tiles are read and encoded at a time, without gradient and in evaluation mode (section
3.1). Cross-attention of learned queries scores all M + I; the score of a tile is the mean over heads and queries of its
softmax (equation 4 and the text after it). The best M stay in the memory. At the end its tiles are encoded once more,
with gradient, and a cross-attention transformer aggregates them (section 3.2). Memory does not depend on the size of
the image.

Tiles are read in a random order, because scores are compared with those in the memory alone. In training the order is a
function of (seed, epoch, sample); the released code shuffles all images of a batch alike. In evaluation mode all images
with the same number of tiles have the same order.

On Megapixel MNIST the paper learns four tasks together, each with a query and a linear layer of its own, and averages
scores over the queries. `foveal.data.megapixel_digits` has one task, so `ips.reference` has one query, as the paper's
other experiments. With several ``queries`` for one task the linear layer takes the mean of their outputs. The released
loss is -log(softmax + 1e-6); here it is the cross-entropy of the logits.

In a `Classification` the grid is the glimpse of level 1, and the tiles of the memory have level 2, in descending order
of their scores. The model is not additive, so they have no contributions.

Example:
    >>> import torch
    >>> model = IPS(num_classes=4, in_chans=1, tile_size=16, memory=3, at_once=5).eval()
    >>> looked = model(torch.rand(1, 1, 64, 80))
    >>> [(g.level, g.size) for g in looked.glimpses]
    [(1, (64, 80)), (2, (16, 16)), (2, (16, 16)), (2, (16, 16))]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from foveal.classification import Classification
from foveal.draws import Draws, generator
from foveal.glimpse.base import on_host
from foveal.glimpse.networks import check_least
from foveal.glimpse.tiles import TileClassifier, evaluating
from foveal.host import to_device
from foveal.images.views import Views
from foveal.objectives.rollout import Rollout
from foveal.policies import Policy
from foveal.registry import MODELS


class CrossAttention(nn.Module):
    """Cross-attention of learned queries, then a network of two layers; both with a residual and a layer norm.

    Args:
        features: length of a tile's features.
        queries: number of queries.
        heads: number of heads.
        key: length of a key, a query and a value of each head.
        hidden: hidden features of the two layers.
        dropout: rate of dropout, of attention weights too.
    """

    def __init__(self, features: int, queries: int, heads: int, key: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.key = heads, key
        self.query = nn.Parameter(torch.empty(1, queries, features).uniform_(-(key**-0.5), key**-0.5))
        self.to_query, self.to_key, self.to_value = (nn.Linear(features, heads * key, bias=False) for _ in range(3))
        self.merge = nn.Linear(heads * key, features, bias=False)
        self.norm_attention = nn.LayerNorm(features, eps=1e-6)
        self.layers = nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, features))
        self.norm_layers = nn.LayerNorm(features, eps=1e-6)
        self.drop_weights, self.drop = nn.Dropout(dropout), nn.Dropout(dropout)

    def weights(self, tiles: Tensor, taken: Tensor | None = None) -> Tensor:
        """(B, heads, queries, N) attention weights of tiles (B, N, features), as far as they are ``taken`` (B, N)."""
        query, key = (self._split(x) for x in (self.to_query(self.query), self.to_key(tiles)))
        logits = (query / self.key**0.5) @ key.transpose(2, 3)
        if taken is not None:
            logits = logits.masked_fill(~taken[:, None, None], -torch.inf)
        return self.drop_weights(logits.softmax(-1))

    def scores(self, tiles: Tensor) -> Tensor:
        """(B, N) mean weight of tiles (B, N, features) over heads and queries."""
        return self.weights(tiles).mean(1).mean(1)

    def forward(self, tiles: Tensor, taken: Tensor | None = None) -> Tensor:
        """(B, queries, features) aggregated features of tiles (B, N, features)."""
        seen = (self.weights(tiles, taken) @ self._split(self.to_value(tiles))).transpose(1, 2).flatten(2)
        x = self.norm_attention(self.drop(self.merge(seen)) + self.query)
        return self.norm_layers(self.drop(self.layers(x)) + x)

    def _split(self, x: Tensor) -> Tensor:
        """(B, N, heads * key) to (B, heads, N, key)."""
        return x.unflatten(-1, (self.heads, self.key)).transpose(1, 2)


def position_code(tiles: Tensor, features: int) -> Tensor:
    """(..., features) sines and cosines of the numbers of tiles (...), counted in reading order."""
    rates = torch.exp(
        torch.arange(0, features, 2, dtype=torch.float32, device=tiles.device) * (-math.log(1e4) / features)
    )
    angles = tiles[..., None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)[..., :features]


class _Kept(NamedTuple):
    """Tiles of a batch, N for each image; an image with fewer has the last ones not taken."""

    tiles: Tensor  # (B, N) int64, numbers in reading order
    taken: np.ndarray  # (B, N) bool
    pixels: Tensor  # (B, N, C, side, side)
    features: Tensor  # (B, N, features), of evaluation mode and without gradient


@MODELS.register("ips")
class IPS(TileClassifier):
    """Iterative patch selection on any timm backbone.

    Args:
        num_classes: number of classes.
        backbone: timm name of the network that encodes tiles; if None, four convolutions, for small tiles.
        backbone_options: further keywords for `timm.create_model`.
        stages: number of stages of the backbone, whose last output is averaged; the whole backbone if None.
        pretrained: True loads the weights that timm downloads into the backbone; a path loads that file.
        in_chans: number of bands of the images.
        tile_size: side of a tile in pixels of the level.
        tile_stride: pixels of the level between the beginnings of tiles; ``tile_size`` if None.
        scale: pixels of the image per pixel of the level, along each axis.
        memory: number M of tiles that are kept.
        at_once: number I of further tiles that are read at a time.
        positions: add sines and cosines of the tile's number to its features.
        queries: number of queries.
        heads: number of heads of the cross-attention.
        key: length of a key of each head.
        hidden: hidden features of the layers after the cross-attention.
        dropout: rate of dropout in the cross-attention and after it.
        reuse_blank: encode tiles of one value once while scanning. The result is the same, apart from rounding.
        mean, std: normalisation; the backbone's if None, or 0.5.

    Raises:
        ConfigError: a number is too small, or the backbone is unknown or does not have the stages.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        *,
        backbone: str | None = "resnet18",
        backbone_options: dict[str, Any] | None = None,
        stages: int | None = 2,
        pretrained: bool | str = False,
        in_chans: int = 3,
        tile_size: int = 50,
        tile_stride: int | None = None,
        scale: int = 1,
        memory: int = 100,
        at_once: int = 100,
        positions: bool = True,
        queries: int = 1,
        heads: int = 8,
        key: int = 16,
        hidden: int = 512,
        dropout: float = 0.1,
        reuse_blank: bool = False,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        check_least(1, memory=memory, queries=queries, heads=heads, key=key, hidden=hidden)
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
            reuse_blank=reuse_blank,
            mean=mean,
            std=std,
        )
        self.memory, self.positions = memory, positions
        self.attention = CrossAttention(self.features, queries, heads, key, hidden, dropout)
        self.head = nn.Linear(self.features, num_classes)

    @torch.no_grad()
    def select(self, views: Views, draws: Draws | None = None) -> _Kept:
        """Scan all tiles of images and keep the best.

        Args:
            views: B images.
            draws: random numbers for the order of tiles; a fixed order if None.
        """
        most, side = int(min(self.memory, max(self.count(views.sizes), default=0))), self.size
        kept = _Kept(
            self.mean.new_zeros(len(views), most, dtype=torch.int64),
            np.zeros((len(views), most), dtype=bool),
            self.mean.new_zeros(len(views), most, self.channels, *side),
            self.mean.new_zeros(len(views), most, self.features),
        )
        with evaluating(self.encoder, self.attention):
            for images, count in self.alike(views.sizes):
                found = self._select(views, images, self._order(len(views), images, count, draws))
                rows, n = to_device(images, self.mean.device), min(count, self.memory)
                kept.taken[images, :n] = True
                for whole, part in zip((kept.tiles, kept.pixels, kept.features), found, strict=True):
                    whole[rows, :n] = part.to(whole.dtype)
        return kept

    def _order(self, batch: int, images: np.ndarray, count: int, draws: Draws | None) -> np.ndarray:
        """(b, count) order in which tiles of images (b,) are read. All of few tiles are kept, in reading order."""
        if count <= self.memory:
            order = np.arange(count)
        elif draws is None:
            order = generator(0, 0, count, "tiles").permutation(count)
        else:
            return draws.uniform("tiles", count)[images].argsort(1)
        return np.tile(order, (len(images), 1))

    def _select(self, views: Views, images: np.ndarray, order: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        """Numbers, pixels and features of the best of tiles (b, count) of images (b,)."""
        kept: tuple[Tensor, ...] = ()
        ends = [0, *range(self.memory, order.shape[1], self.at_once), order.shape[1]]
        for first, last in pairwise(ends):
            tiles = order[:, first:last]
            pixels = self.read(views, images, tiles)
            new = (to_device(tiles, pixels.device), pixels, self.encode(pixels))
            kept = tuple(torch.cat(both, dim=1) for both in zip(kept, new, strict=True)) if kept else new
            if first:
                best = self.attention.scores(self._placed(kept[2], kept[0])).topk(self.memory, dim=1).indices
                rows = torch.arange(len(best), device=best.device)[:, None]
                kept = tuple(part[rows, best] for part in kept)
        return kept[0], kept[1], kept[2]

    def _placed(self, features: Tensor, tiles: Tensor) -> Tensor:
        """Features of tiles with the code of their positions."""
        return features + position_code(tiles, self.features).to(features.dtype) if self.positions else features

    def _logits(self, kept: _Kept) -> Tensor:
        again = self.training or torch.is_grad_enabled()
        features = self.encode(kept.pixels) if again else kept.features
        taken = None if kept.taken.all() else to_device(kept.taken, features.device)
        return self.head(self.attention(self._placed(features, kept.tiles), taken).mean(1))

    def classify(
        self, views: Views, locations: tuple[int, ...], policy: Policy, draws: Draws, contributions: bool
    ) -> Classification:
        kept = self.select(views, draws if self.training else None)
        glimpses = self.glimpses(views, on_host(kept.tiles), kept.taken)
        return Classification(self._logits(kept), glimpses, self.class_names, {}, views.bytes_read, self.task)

    def roll_out(self, views: Views, locations: tuple[int, ...], policies: list[Policy], draws: Draws) -> list[Rollout]:
        logits = self._logits(self.select(views, draws if self.training else None))
        return [Rollout(logits, logits[:, None], level=np.array([1]))] * len(policies)


@MODELS.register("ips.reference")
def ips(num_classes: int = 10, *, in_chans: int = 1, **options: Any) -> IPS:
    """Megapixel MNIST: tiles of 50 px, the first two stages of ResNet-18, memory of 100 tiles, 100 further ones at a
    time."""
    model = IPS(num_classes, in_chans=in_chans, **{"backbone_options": {"zero_init_last": False}, **options})
    first = model.encoder.get_submodule("0.conv1")
    if in_chans == 1 and isinstance(first, nn.Conv2d) and not options.get("pretrained"):
        first.reset_parameters()  # the release replaces it, and so torch initialises it
    return model

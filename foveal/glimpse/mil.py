"""Attention-based multiple-instance pooling over all tiles of an image.

Ilse, Tomczak and Welling, "Attention-based Deep Multiple Instance Learning", ICML 2018, arXiv 1802.04712; code
github.com/AMLab-Amsterdam/AttentionDeepMIL.

Every tile of a grid is encoded. The image is the sum of a_k h_k over the features h_k of its tiles, with attention
weights a_k = softmax_k(w^T tanh(V h_k)) (equation 8), or gated, softmax_k(w^T (tanh(V h_k) * sigmoid(U h_k)))
(equation 9). A linear layer W, b classifies it. So the logits are the sum of the contributions a_k W h_k of the tiles,
and of b.

Prediction reads and encodes a few tiles at a time, and holds only the features of all. Training encodes all tiles of a
batch together, or a random sample of at most ``train_tiles`` of each image. With `foveal.features.FeatureViews`,
features that were made once are pooled; see `foveal.embedding`.

In a `Classification` the grid is the glimpse of level 1 and contributes b. Tiles have level 2, in reading order.

The paper has one sigmoid for a bag; here there are as many classes as the data has.

Example:
    >>> import torch
    >>> model = AttentionPooling(num_classes=4, tile_size=16).eval()
    >>> looked = model(torch.rand(1, 3, 32, 48))[0]
    >>> len(looked.glimpses), bool(torch.allclose(looked.glimpses.contribution.sum(0), looked.logits, atol=1e-6))
    (7, True)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from foveal.classification import Classification
from foveal.draws import Draws
from foveal.glimpse.networks import check_least
from foveal.glimpse.tiles import TileClassifier
from foveal.host import to_device
from foveal.images.views import Views
from foveal.objectives.rollout import Rollout
from foveal.policies import Policy
from foveal.registry import MODELS


class Attention(nn.Module):
    """Attention scores of tiles, whose softmax are the weights of equation 8, or of equation 9 if ``gated``.

    Args:
        features: length of a tile's features.
        hidden: length L of the hidden features.
        gated: multiply the hidden features by sigmoids.
    """

    def __init__(self, features: int, hidden: int, gated: bool) -> None:
        super().__init__()
        self.hidden = nn.Linear(features, hidden)
        self.gate = nn.Linear(features, hidden) if gated else None
        self.score = nn.Linear(hidden, 1)

    def forward(self, tiles: Tensor) -> Tensor:
        """(..., features) to (...), in float32 or more."""
        x = self.hidden(tiles).tanh()
        if self.gate is not None:
            x = x * self.gate(tiles).sigmoid()
        scores = self.score(x)[..., 0]
        return scores.to(torch.promote_types(scores.dtype, torch.float32))


@MODELS.register("mil")
class AttentionPooling(TileClassifier):
    """Attention-based multiple-instance pooling over all tiles.

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
        hidden: length L of the hidden features of the attention.
        gated: gated attention, equation 9.
        train_tiles: largest number of tiles of an image in training, drawn without replacement; all if None.
        at_once: tiles of each image that are read at once in prediction.
        reuse_blank: encode tiles of one value once in prediction. The result is the same, apart from rounding.
        skip_blank: leave blank tiles out, as `foveal.embedding` does; see `foveal.glimpse.tiles`.
        features: number of features, for a model without a network, which takes features of files alone.
        mean, std: normalisation; the backbone's if None, or 0.5.

    Raises:
        ConfigError: a number is too small, or the backbone is unknown or does not have the stages.
    """

    reads_features = True

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
        hidden: int = 128,
        gated: bool = False,
        train_tiles: int | None = None,
        at_once: int = 128,
        reuse_blank: bool = False,
        skip_blank: bool = False,
        features: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        check_least(1, hidden=hidden, train_tiles=train_tiles)
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
            skip_blank=skip_blank,
            features=features,
            mean=mean,
            std=std,
        )
        self.train_tiles = train_tiles
        self.attention = Attention(self.features, hidden, gated)
        self.head = nn.Linear(self.features, num_classes)

    def _tiles(self, views: Views, draws: Draws | None) -> tuple[np.ndarray, np.ndarray]:
        """(B, N) numbers of tiles, and (B, N) bool which of them are taken."""
        counts = self.counts(views)
        most = int(max(counts, default=0))
        tiles = np.tile(np.arange(most), (len(views), 1))
        taken = tiles < counts[:, None]
        if draws is None or self.train_tiles is None or most <= self.train_tiles:
            return tiles, taken
        keys = np.where(taken, draws.uniform("tiles", most), 2)
        chosen = np.sort(keys.argsort(1)[:, : self.train_tiles], axis=1)
        return chosen, np.take_along_axis(taken, chosen, 1)

    def _encoded(self, views: Views, tiles: np.ndarray, taken: np.ndarray) -> tuple[Tensor, np.ndarray]:
        """(B, N, features) of tiles (B, N), 0 where they are not taken; and (B, N) bool, taken and not blank."""
        image, column = np.nonzero(taken)
        step = max(len(image) if self.training else self.at_once * len(views), 1)
        parts, kept = [], np.zeros_like(taken)
        for first in range(0, len(image), step):
            which, place = image[first : first + step], column[first : first + step]
            features, good = self.encoded(views, which, tiles[which, place])
            parts.append(features)
            kept[which[good], place[good]] = True
        for empty in np.flatnonzero(~kept.any(1)) if self.skip_blank else ():
            kept[empty, 0], tiles[empty, 0] = True, self.middle_tile(views, int(empty))
            where = int(kept[:empty].sum())
            joined, new = torch.cat(parts), self.encode(self.read(views, np.array([empty]), tiles[[empty], :1])[0])
            parts = [joined[:where], new, joined[where:]]
        features = torch.cat(parts) if parts else self.mean.new_zeros(0, self.features)
        out = features.new_zeros(taken.size, self.features)
        return out.index_copy(0, to_device(np.flatnonzero(kept), out.device), features).unflatten(0, taken.shape), kept

    def _parts(self, features: Tensor, taken: np.ndarray) -> Tensor:
        """(B, 1 + N, classes) contributions of the bias and of tiles."""
        scores = self.attention(features).masked_fill(~to_device(taken, features.device), -torch.inf)
        weights = scores.softmax(1)[..., None]
        tiles = weights * nn.functional.linear(features, self.head.weight)
        bias = self.head.bias.to(tiles.dtype).expand(len(tiles), 1, -1)
        return torch.cat([bias, tiles], dim=1)

    def classify(
        self, views: Views, locations: tuple[int, ...], policy: Policy, draws: Draws, contributions: bool
    ) -> Classification:
        tiles, taken = self._tiles(views, draws if self.training else None)
        features, taken = self._encoded(views, tiles, taken)
        parts = self._parts(features, taken)
        glimpses = self.glimpses(views, tiles, taken, parts if contributions else None)
        return Classification(parts.sum(1), glimpses, self.class_names, {}, views.bytes_read, self.task)

    def roll_out(self, views: Views, locations: tuple[int, ...], policies: list[Policy], draws: Draws) -> list[Rollout]:
        tiles, taken = self._tiles(views, draws if self.training else None)
        logits = self._parts(*self._encoded(views, tiles, taken)).sum(1)
        return [Rollout(logits, logits[:, None], level=np.array([1]))] * len(policies)

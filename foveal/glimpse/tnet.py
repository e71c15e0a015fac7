"""TNet, the Traversal Network: looks at a thumbnail, then at the most informative regions, coarse to fine.

"Hard-Attention for Scalable Image Classification", Papadopoulos, Korus and Memon, NeurIPS 2021, arXiv 2102.10212.
Details follow the released TensorFlow code (Tpap/TNet). The feature extraction module, one backbone with one input
size, processes every look. It gives a feature vector, which the positional encoding module tags with the position and
scale of the look, and the location module predicts a distribution over a grid of overlapping regions of the look. The
most probable regions are cut from the full-resolution image and processed in the same way. The feature vectors of all
looks are averaged and classified by a linear layer. The cost depends on the number of looks and not on the size of the
image.

`tnet` is the default of this package. Models with ``.reference`` in their name follow the paper.

An image that is not square is squashed for the thumbnail only. Closer looks are squares inside the image, and cells
that nearly coincide count as one (`foveal.glimpse.grid`). If an image has fewer cells than ``locations`` asks for, each
is looked at once. The prediction, the glimpses, contributions and counts are those of the looks taken.

Example:
    >>> import torch
    >>> model = TNet(num_classes=4, backbone="test_efficientnet", base_size=32, locations=(2, 1)).eval()
    >>> looked = model(torch.rand(1, 3, 128, 128))
    >>> len(looked.glimpses), looked.glimpses[1].level, looked.locations.tolist()
    (5, 2, [4])
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.classification import Classification, Glimpses
from foveal.draws import Draws
from foveal.errors import ConfigError
from foveal.glimpse.base import GlimpseClassifier, Normalised, Part, Parts, Walk, on_host, per_band, whole_image
from foveal.glimpse.grid import Grid, means, outside
from foveal.glimpse.networks import channels_last, check_look, create_network
from foveal.host import to_device, true_indices
from foveal.images.views import Views
from foveal.layers.initialise import glorot
from foveal.objectives.objective import Objective
from foveal.objectives.rollout import Rollout
from foveal.objectives.tnet import ReferenceTNetObjective, TNetObjective
from foveal.policies import GREEDY, NEVER, CellPolicy, Likelihood, Policy, Random, Whole, independent, plackett_luce
from foveal.registry import MODELS
from foveal.signatures import typed

# --------------------------------------------------------------------------------------------------------- modules


def code_frequencies(dim: int) -> Tensor:
    """(dim // 6,) frequencies of the positional encoding, from 1 to 1/100. The released code uses base 100."""
    m = dim // 6
    return 100 ** (-torch.arange(m, dtype=torch.float32) / (m - 1))


def position_code(position: Tensor, frequency: Tensor, dim: int) -> Tensor:
    """Sinusoidal encoding of (y, x, scale) coordinates.

    Args:
        position: (..., 3).
        frequency: frequencies, see `code_frequencies`.
        dim: length of the encoding, at least 12.

    Returns:
        (..., dim): for each coordinate the sines, then the cosines of all frequencies; padded with zeros.
    """
    angle = position[..., None] * frequency
    code = torch.cat([angle.sin(), angle.cos()], dim=-1).flatten(-2)
    return F.pad(code, (0, dim - code.shape[-1]))


class PositionModule(nn.Module):
    """The positional encoding module: adds position and scale of a look to its feature vector.

    Args:
        features: length D of the feature vector.
        concat: ``W [f; code] + c`` with a code of length D (ImageNet); otherwise ``swish(f + W code + c)`` with a code
            of length D / 4.
    """

    frequency: Tensor

    def __init__(self, features: int, concat: bool = False) -> None:
        super().__init__()
        self.concat = concat
        self.code_dim = features if concat else max(features // 4, 12)
        self.register_buffer("frequency", code_frequencies(self.code_dim), persistent=False)
        self.linear = nn.Linear(features + self.code_dim if concat else self.code_dim, features)

    def forward(self, feature: Tensor, position: Tensor) -> Tensor:
        code = position_code(position.to(self.frequency.dtype), self.frequency, self.code_dim).to(feature.dtype)
        if self.concat:
            return self.linear(torch.cat([feature, code], dim=-1))
        return F.silu(feature + self.linear(code))


class LocationModule(nn.Module):
    """The location module: scores the cells of a grid from one descriptor per cell.

    The 1x1 convolutions of the paper are implemented as linear layers over the cells, which are faster on a small grid.

    Args:
        channels: length of a descriptor.
        side: cells per axis.
        context: length of the look's feature vector, which is concatenated to each descriptor, with LeakyReLU
            (ImageNet). 0 uses squeeze-and-excitation over the grid instead, with swish.
        scale: initial value of a learned factor on the normalised scores. None keeps unit norm, as in the released
            code, which keeps every probability close to uniform.
        detached: detach the inputs, so the policy gradient trains this module only (the paper). Otherwise it trains the
            backbone too.
    """

    coordinates: Tensor

    def __init__(
        self, channels: int, side: int, context: int = 0, scale: float | None = None, detached: bool = False
    ) -> None:
        super().__init__()
        self.context = context
        self.detached = detached
        self.act: nn.Module
        self.coordinate_gain = nn.Parameter(torch.ones(2))
        self.coordinate_bias = nn.Parameter(torch.zeros(2))
        line = torch.linspace(-1, 1, side)
        self.register_buffer("coordinates", torch.cartesian_prod(line, line), persistent=False)
        self.log_scale = None if scale is None else nn.Parameter(torch.tensor(math.log(scale)))
        if context:
            hidden, self.act = 512, nn.LeakyReLU(0.2)
        else:
            hidden, self.act = channels, nn.SiLU()
            self.embed = nn.Linear(channels, channels)
            self.squeeze = nn.Linear(channels, channels // 2)
            self.excite = nn.Linear(channels // 2, channels)
        self.hidden = nn.Linear(channels + context + 2, hidden)
        self.score = nn.Linear(hidden, 1)

    def forward(self, descriptors: Tensor, feature: Tensor) -> Tensor:
        """Descriptors (N, side**2, channels) and feature vectors (N, D) to scores (N, side**2)."""
        x, feature = (descriptors.detach(), feature.detach()) if self.detached else (descriptors, feature)
        where = self.coordinates * self.coordinate_gain + self.coordinate_bias
        where = where.to(x.dtype).expand(x.shape[0], -1, -1)
        if self.context:
            x = torch.cat([x, feature[:, None].expand(-1, x.shape[1], -1), where], dim=-1)
        else:
            x = self.act(self.embed(x))
            x = x * self.excite(self.act(self.squeeze(x.mean(1, keepdim=True)))).sigmoid()
            x = torch.cat([x, where], dim=-1)
        scores = self.score(self.act(self.hidden(x))).squeeze(-1)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        # The minimum is not in the paper. It prevents a division by zero.
        scores = scores / scores.norm(dim=1, keepdim=True).clamp(min=1e-12)
        return scores if self.log_scale is None else scores * self.log_scale.exp()


class FeatureWeighting(nn.Module):
    """The feature weighting module: learned weights of the feature vectors of an image, instead of a mean (bird data
    sets)."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(features, features // 4)
        self.excite = nn.Linear(features // 4, features)
        self.score = nn.Linear(features, 1)

    def forward(self, features: Tensor, taken: Tensor | None = None) -> Tensor:
        """(B, N, D) to (B, N) weights that sum to 1. Looks that were not ``taken``, (B, N) bool, get weight 0."""
        mean = (
            features.mean(1) if taken is None else (_equal_weights(taken, features.dtype)[..., None] * features).sum(1)
        )
        gate = self.excite(F.silu(self.squeeze(mean))).sigmoid()
        scores = self.score(features * gate[:, None]).squeeze(-1)
        return (scores if taken is None else scores.masked_fill(~taken, -math.inf)).softmax(1)


def _equal_weights(taken: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, N) equal weights of the looks taken, (B, N) bool."""
    return taken.to(dtype) / taken.sum(1, keepdim=True)


# ----------------------------------------------------------------------------------------------------------- model


@dataclass
class _Traversal:
    """Looks of a traversal: rows are images (of each rollout in turn), columns are glimpses.

    Images that are not square may have fewer cells than ``locations`` asks for. The last columns of a grid are then not
    taken.
    """

    features: Tensor  # (R, N, D), 0 where no look was taken
    boxes: np.ndarray  # (R, N, 4)
    taken: np.ndarray  # (R, N) bool
    level: np.ndarray  # (N,)
    parent: np.ndarray  # (N,), -1 for looks without a parent
    log_p: list[Tensor]  # for each level with grids: (R, n, K)
    cells: list[Tensor]  # for each level with grids: (R, n, k)
    grids: list[np.ndarray]  # for each level with grids: (R, n, K, 4)

    def join(self, below: _Traversal) -> _Traversal:
        """These looks, followed by looks that were chosen from the first of them."""
        return _Traversal(
            torch.cat([self.features, below.features], 1),
            np.concatenate([self.boxes, below.boxes], 1),
            np.concatenate([self.taken, below.taken], 1),
            np.concatenate([self.level, below.level]),
            np.concatenate([self.parent, np.where(below.parent < 0, 0, below.parent + len(self.level))]),
            [*self.log_p, *below.log_p],
            [*self.cells, *below.cells],
            [*self.grids, *below.grids],
        )

    def rows(self, which: np.ndarray) -> _Traversal:
        """Features and boxes of some images, selected by a bool mask. Choices are dropped."""
        kept = true_indices(which, self.features.device)
        return _Traversal(
            self.features[kept], self.boxes[which], self.taken[which], self.level, self.parent, [], [], []
        )

    @property
    def mask(self) -> Tensor | None:
        """`taken` on the device of the features; None if every look was taken."""
        return None if self.taken.all() else to_device(self.taken, self.features.device)

    def log_probability(self, likelihood: Likelihood) -> Tensor:
        """(R, choices) log-probability of each choice given the earlier choices in the same grid; 0 for looks not
        taken."""
        steps = [likelihood(p, c).flatten(1) for p, c in zip(self.log_p, self.cells, strict=True)]
        if not steps:
            return self.features.new_zeros((len(self.features), 0), dtype=torch.float32)
        log_p, mask = torch.cat(steps, dim=1), self.mask
        return log_p if mask is None else log_p.masked_fill(~mask[:, -log_p.shape[1] :], 0)


@dataclass
class _Grids:
    """Grids over looks, n for each row."""

    boxes: np.ndarray  # (R, n, K, 4) boxes of the cells
    offered: np.ndarray  # (R, n, K) bool, whether a cell may be chosen
    log_p: Tensor  # (R, n, K)

    def rows(self, which: np.ndarray) -> _Grids:
        """Rows selected by a bool mask."""
        return _Grids(self.boxes[which], self.offered[which], self.log_p[true_indices(which, self.log_p.device)])

    def repeat(self, times: int) -> _Grids:
        """All rows, repeated."""
        boxes, offered = (np.tile(of, (times, *[1] * (of.ndim - 1))) for of in (self.boxes, self.offered))
        return _Grids(boxes, offered, self.log_p.repeat(times, 1, 1))

    def chosen(self, cells: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Boxes (R, n, k, 4) of cells (R, n, k), and whether each cell is offered, (R, n, k) bool."""
        # On the meta device, which has no values, choose as many offered cells as possible.
        chosen = (
            np.argsort(~self.offered, -1, kind="stable")[..., : cells.shape[-1]] if cells.is_meta else on_host(cells)
        )
        return np.take_along_axis(self.boxes, chosen[..., None], axis=2), np.take_along_axis(
            self.offered, chosen, axis=2
        )


@MODELS.register("tnet")
class TNet(GlimpseClassifier):
    """The Traversal Network on any timm backbone.

    Args:
        num_classes: number of classes.
        backbone: timm name of the network that processes every look.
        backbone_options: further keywords for `timm.create_model`.
        pretrained: True loads the weights that timm downloads into the backbone; a path loads that file.
        in_chans: number of bands of the images.
        base_size: side in pixels that every look is resampled to; the backbone's input size if None.
        grid: cells per axis of the grid over each look.
        region: side of a cell as a share of the side of the look.
        locations: default number of cells chosen from each grid of level 1, level 2, ...
        location_features: module of the backbone whose output describes the cells; if None, the deepest one with at
            least two rows per cell.
        location_index: rows and columns of that feature map that describe the cells; if None, its average over each
            cell.
        location_context: concatenate the feature vector of the look to each descriptor (location module for ImageNet).
        score_scale: initial value of a learned scale of the scores; None keeps unit norm, as in the released code.
        detached_policy: the policy gradient trains the location module only, as in the paper. By default it trains the
            backbone too, which then learns features for finding objects.
        position_concat: concatenate the positional encoding, without activation (ImageNet), instead of adding it.
        weighting: weigh feature vectors by the feature weighting module, instead of equally.
        head_dropout: dropout rate before the classifier.
        padded_grid: place cells as in the released code.
        level_statistics: keep running statistics of batch norms for each processing level of ``locations``, instead of
            one set as in the paper. Each batch holds looks of one level. Helps where thumbnails and close looks have
            different statistics.
        mean, std: normalisation; the backbone's if None.
        squash: squash the whole image for the first look, and the cells with it, instead of looking at the square
            around it.
        antialias: resample with antialiasing.
        fit_grid: fit the grid to images that are not square: the first look is the whole image, squashed, and the cells
            are squares inside it (`foveal.glimpse.grid`). False looks at the square around the image, as in earlier
            versions. No effect on square images, or with ``squash``, ``padded_grid`` or ``location_index``.
        region_mpp: micrometres per pixel of the closest looks. Cells then have a fixed physical size instead of being
            shares of the image: the side of a closest look is base_size * region_mpp / (micrometres per pixel of the
            image) pixels of the image. The closest looks are those of the last level of the default ``locations``; each
            level before is coarser by 1 / ``region``. Requires images with a known pixel size (`foveal.images.scale`).
            For rasters in metres, 1e6 is one metre.

    Raises:
        ConfigError: the backbone or the location features are unknown, ``locations`` exceeds the number of cells, or
            ``region_mpp`` conflicts with other options.

    Attributes:
        takes_whole: rollouts support the policy ``whole``, see `TNetObjective`. Otherwise it falls back to ``random``:
            for backbones of a fixed input size, and with ``region_mpp``.
    """

    objective: type[Any] = TNetObjective
    formerly: ClassVar[dict[str, Any]] = {"fit_grid": False}
    rollout_policies = ("whole",)
    teachable = True
    most_levels = None
    cell_weights: Tensor

    def __init__(
        self,
        num_classes: int = 1000,
        *,
        backbone: str = "efficientnet_b0",
        backbone_options: dict[str, Any] | None = None,
        pretrained: bool | str = False,
        in_chans: int = 3,
        base_size: int | None = None,
        grid: int = 3,
        region: float = 0.5,
        locations: Sequence[int] = (2, 1),
        location_features: str | None = None,
        location_index: Sequence[int] | None = None,
        location_context: bool = False,
        score_scale: float | None = 4.0,
        detached_policy: bool = False,
        position_concat: bool = False,
        weighting: bool = False,
        head_dropout: float = 0.0,
        padded_grid: bool = False,
        level_statistics: bool = False,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        squash: bool = False,
        antialias: bool = True,
        fit_grid: bool = True,
        region_mpp: float | None = None,
    ) -> None:
        check_look(in_chans, base_size=base_size)
        network = create_network(
            backbone, in_chans, pretrained, {"num_classes": 0, **(backbone_options or {})}, base_size
        )
        config = getattr(network, "pretrained_cfg", None) or {}
        side = base_size or config.get("input_size", (3, 224, 224))[-1]
        mean = mean or config.get("mean", (0.5,))
        std = std or config.get("std", (0.5,))
        super().__init__(
            num_classes,
            (side, side),
            per_band(mean, in_chans),
            per_band(std, in_chans),
            squash=squash,
            antialias=antialias,
        )
        self.backbone = channels_last(network)
        self.grid = Grid(grid, region, padded_grid)
        self.fit_grid = fit_grid
        self._fits = fit_grid and not squash and not padded_grid and location_index is None
        if region_mpp is not None and (region_mpp <= 0 or not self._fits):
            raise ConfigError(
                f"`region_mpp` {region_mpp}: must be above 0 and needs a fitted grid; leave `fit_grid` on,"
                " and `squash`, `padded_grid` and `location_index` out"
            )
        self.region_mpp = region_mpp
        self.locations = self.resolve_locations(locations)
        self.statistics = 1 + len(self.locations) if level_statistics else 1
        for norm in _batch_norms(network):
            for name in ("running_mean", "running_var"):
                for level in range(2, self.statistics + 1):
                    norm.register_buffer(f"{name}_{level}", norm.get_buffer(name).clone())
        self.location_features = location_features or _default_location_features(network, side, grid)
        channels, map_side, features = self._probe(backbone, in_chans, side)
        self.location_index = None if location_index is None else list(location_index)
        first = np.arange(grid) * (1 - region) / (grid - 1) * map_side
        self.register_buffer(
            "cell_weights", torch.from_numpy(means(first, first + region * map_side, map_side)), persistent=False
        )
        self.location = LocationModule(
            channels, grid, features if location_context else 0, score_scale, detached_policy
        )
        self.position = PositionModule(features, position_concat)
        self.weighting = FeatureWeighting(features) if weighting else None
        self.dropout = nn.Dropout(head_dropout)
        self.classifier = nn.Linear(features, num_classes)
        self.likelihood = independent if score_scale is None else plackett_luce
        self.takes_whole = region_mpp is None and self._supports_whole(in_chans)

    @property
    def most_cells(self) -> int:
        return self.grid.cells

    def root(self, sizes: np.ndarray) -> np.ndarray:
        return whole_image(sizes) if self._fits else super().root(sizes)

    # ---- one look

    def perceive(self, seen: Tensor, position: Tensor, level: int = 1) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Pass looks through the backbone and the positional encoding module.

        Args:
            seen: (N, C, h, w) normalised looks.
            position: (N, 3) grid coordinates y, x and scale of each look.
            level: processing level of the looks.

        Returns:
            (N, D) tagged feature vectors, and the inputs of `score`.
        """
        with _running_statistics(self.backbone, min(level, self.statistics)):
            feature, described = self.embed(seen)
        return self.position(feature, position), (_as_map(described, self.backbone), feature)

    def embed(self, seen: Tensor) -> tuple[Tensor, Any]:
        """Feature vectors (N, D) of normalised looks (N, C, h, w), and the output of ``location_features``."""
        outputs: list[Any] = []
        hook = self.backbone.get_submodule(self.location_features).register_forward_hook(
            lambda _m, _i, out: outputs.append(out)
        )
        try:
            return _embed(self.backbone, seen), outputs.pop()
        finally:
            hook.remove()

    def compile_backbone(self) -> None:
        # A hook that is registered before compilation becomes part of the compiled code.
        outputs: list[Any] = []
        tapped = self.backbone.get_submodule(self.location_features)
        tapped.register_forward_hook(lambda _m, _i, out: outputs.append(out))

        def embed(seen: Tensor) -> tuple[Tensor, Any]:
            outputs.clear()
            return _embed(self.backbone, seen), outputs.pop()

        self.embed = torch.compile(embed)  # type: ignore[method-assign]

    def score(self, features: Tensor, feature: Tensor, weights: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Score the cells of looks.

        Args:
            features: (N, channels, h, w) feature maps of the looks.
            feature: (N, D) feature vectors without position.
            weights: see `describe`.

        Returns:
            (N, side**2) scores.
        """
        return self.location(self.describe(features, weights), feature)

    def describe(self, features: Tensor, weights: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Descriptors of the cells of looks.

        Args:
            features: (N, channels, h, w) feature maps of the looks.
            weights: (N, side, h) and (N, side, w) weights that average the map over each row and each column of cells;
                those of square looks if None.

        Returns:
            (N, side**2, channels).
        """
        if self.location_index is not None:
            rows, columns = (
                to_device(np.arange(cells)[self.location_index], features.device) for cells in features.shape[2:]
            )
            return features.index_select(2, rows).index_select(3, columns).flatten(2).transpose(1, 2)
        images, channels, _, width = features.shape
        down, across = (w.to(features.dtype) for w in weights or (self.cell_weights,) * 2)
        if weights is not None:
            across = across.repeat_interleave(self.grid.side, 0)
        # The map is channels last in memory, so average over rows first, then over columns.
        rows = (down @ features.permute(0, 2, 3, 1).flatten(2)).reshape(-1, width, channels)
        return (across @ rows).reshape(images, -1, channels)

    # ---- the traversal

    def _traverse(self, views: Views, locations: Sequence[int], policies: Sequence[Policy], draws: Draws) -> _Traversal:
        """Traverse a batch once per policy. Rollouts share the thumbnail and each pass through the backbone."""
        count = len(policies)
        thumbnail, look = self._thumbnail(views, count)
        if not locations:
            return thumbnail

        def select(log_p: Tensor, k: int, depth: int) -> Tensor:
            parts = zip(policies, log_p.chunk(count), strict=True)
            return torch.cat([self._select(policy, part, k, draws, depth, i) for i, (policy, part) in enumerate(parts)])

        which = np.tile(np.arange(len(views)), count)
        grids = self._grids(
            views, np.arange(len(views)), thumbnail.boxes[: len(views)], thumbnail.taken[: len(views)], look
        ).repeat(count)
        return thumbnail.join(self._expand(views, which, grids, locations, select))

    def _thumbnail(self, views: Views, count: int = 1) -> tuple[_Traversal, tuple[Tensor, Tensor]]:
        """The first look, repeated for each rollout, and the inputs of `score`, not repeated."""
        if self.region_mpp is not None:
            for i in np.flatnonzero(np.isnan(views.mpp)).tolist():
                problem = "has no pixel size, which region_mpp of this model needs"
                views.errors.setdefault(
                    i, f"{views.name(i)}: {problem}; give a file with one, or use a model without region_mpp"
                )
        boxes = self.root(views.sizes)
        position = torch.zeros(len(views), 3, device=self.mean.device)
        tagged, look = self.perceive(self.see(views, np.arange(len(views)), boxes), position)
        features, boxes = tagged[:, None].repeat(count, 1, 1), np.tile(boxes[:, None], (count, 1, 1))
        taken = np.ones(boxes.shape[:2], dtype=bool)
        return _Traversal(features, boxes, taken, np.array([1]), np.array([-1]), [], [], []), look

    def _grids(
        self,
        views: Views,
        which: np.ndarray,
        boxes: np.ndarray,
        taken: np.ndarray,
        look: tuple[Tensor, Tensor],
        depth: int = 1,
    ) -> _Grids:
        """Grids over looks.

        Args:
            views: the images.
            which: (R,) image of each row.
            boxes: (R, n, 4) boxes of the looks.
            taken: (R, n) bool, whether each look was taken. Grids of looks not taken offer no cell.
            look: inputs of `score`, for the looks taken.
            depth: processing level of the looks.
        """
        cells, offered = self.cells(boxes, views.sizes[which], views.mpp[which], depth)
        scores = _scatter(self.score(*look, self._weights(boxes[taken], cells[taken])), taken)
        log_p = scores.unflatten(0, taken.shape).masked_fill(to_device(~offered, scores.device), NEVER).log_softmax(-1)
        # In a grid that is not fitted, cells outside the image are the least probable, but can be chosen.
        return _Grids(cells, offered & taken[..., None] if self._fits else np.ones_like(offered), log_p)

    def cells(
        self, boxes: np.ndarray, sizes: np.ndarray, mpp: np.ndarray | None = None, depth: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        """Cells of the grids over looks.

        Args:
            boxes: (R, n, 4) boxes of the looks.
            sizes: (R, 2) sizes of the images.
            mpp: (R,) micrometres per pixel of the images, NaN if unknown; used with ``region_mpp``.
            depth: processing level of the looks.

        Returns:
            Boxes of the cells (R, n, side**2, 4), and whether each is offered to the policy, (R, n, side**2) bool.
        """
        if self._fits:
            given = None
            if self.region_mpp is not None and mpp is not None:
                coarser = self.grid.region ** (depth - max(len(self.locations), 1))
                given = np.maximum(np.round(self.size[0] * self.region_mpp * coarser / mpp), 1.0)[:, None]
            return self.grid.inside(boxes, sizes, given)
        cells = self.grid.boxes(boxes)
        return cells, ~outside(cells, sizes)

    def _weights(self, boxes: np.ndarray, cells: np.ndarray) -> tuple[Tensor, Tensor] | None:
        """Weights for `describe`, for cells (N, K, 4) of looks (N, 4); None if all cells lie as in a square look."""
        as_square = (cells == self.grid.boxes(boxes)).all((1, 2))
        if as_square.all() or not self._fits:
            return None
        cells = cells.reshape(-1, self.grid.side, self.grid.side, 4)
        device, length = self.cell_weights.device, self.cell_weights.shape[1]
        weights = []
        for axis, edges in enumerate((cells[:, :, 0], cells[:, 0])):
            pixels = (boxes[:, axis + 2] - boxes[:, axis])[:, None] / length  # pixels of the image per pixel of the map
            first, last = ((edges[..., i] - boxes[:, None, axis]) / pixels for i in (axis, axis + 2))
            weights.append(
                torch.where(
                    to_device(as_square, device)[:, None, None],
                    self.cell_weights,
                    to_device(means(first, last, length), device),
                )
            )
        return weights[0], weights[1]

    def _expand(
        self,
        views: Views,
        which: np.ndarray,
        grids: _Grids,
        locations: Sequence[int],
        select: Callable[[Tensor, int, int], Tensor],
    ) -> _Traversal:
        """Look at cells of the first looks, level by level.

        Args:
            views: the images.
            which: (R,) image of each row.
            grids: grids over the first looks, one for each row.
            locations: number of cells to choose from each grid of each level.
            select: ``select(log_p, k, depth)`` chooses (R, n, k) cells of grids with (R, n, K) log-probabilities.
        """
        position = torch.zeros(len(which), 3, device=self.mean.device)
        no_features = position.new_zeros(len(which), 0, self.classifier.in_features)
        empty = np.zeros((len(which), 0))
        found = _Traversal(
            no_features, grids.boxes[:, 0, :0], empty.astype(bool), np.zeros(0, int), np.zeros(0, int), [], [], []
        )
        own = np.array([-1])
        for depth, k in enumerate(locations, start=1):
            chosen = select(grids.log_p, k, depth)
            count = chosen[0].numel() if len(chosen) else 0
            boxes, taken = (of.reshape(len(which), count, *of.shape[3:]) for of in grids.chosen(chosen))
            position = self._descend(position, chosen, depth)
            seen = self.see(views, np.repeat(which, count)[taken.ravel()], boxes[taken])
            tagged, look = self.perceive(
                seen, position if taken.all() else position[true_indices(taken.ravel(), position.device)], depth + 1
            )
            features = _scatter(tagged, taken).unflatten(0, (-1, count))
            parent, own = np.repeat(own, chosen.shape[2]), len(found.level) + np.arange(count)
            found = _Traversal(
                torch.cat([found.features.to(tagged.dtype), features], 1),
                np.concatenate([found.boxes, boxes], 1),
                np.concatenate([found.taken, taken], 1),
                np.concatenate([found.level, np.full(count, depth + 1)]),
                np.concatenate([found.parent, parent]),
                [*found.log_p, grids.log_p],
                [*found.cells, chosen],
                [*found.grids, grids.boxes],
            )
            if depth < len(locations):
                grids = self._grids(views, which, boxes, taken, look, depth + 1)
        return found

    def _select(self, policy: Policy, log_p: Tensor, k: int, draws: Draws, depth: int, rollout: int) -> Tensor:
        noise = None
        if policy.draws:
            noise = to_device(draws.gumbel(f"selection {depth} {rollout}", *log_p.shape[1:]), log_p.device, log_p.dtype)
        return cast(CellPolicy, policy).choose(log_p, k, noise)

    def _descend(self, position: Tensor, cells: Tensor, depth: int) -> Tensor:
        """Hierarchical grid coordinates of the chosen cells: y_child = G y_parent + row."""
        y, x, _ = position.unflatten(0, (-1, cells.shape[1]))[..., None, :].expand(*cells.shape, 3).unbind(-1)
        side = self.grid.side
        child = torch.stack([side * y + cells // side, side * x + cells % side, torch.full_like(y, depth)], dim=-1)
        return child.flatten(0, 2)

    # ---- classification

    def _fuse(self, seen: _Traversal) -> tuple[Tensor, Tensor]:
        """Fused features (R, D), and the weight (R, N) of each look."""
        features, mask = seen.features, seen.mask
        if self.weighting is not None:
            weight = self.weighting(features, mask)
        elif mask is None:
            weight = features.new_full(features.shape[:2], 1 / features.shape[1])
        else:
            weight = _equal_weights(mask, features.dtype)
        return (weight[..., None] * features).sum(1), weight

    def classify(
        self, views: Views, locations: tuple[int, ...], policy: Policy, draws: Draws, contributions: bool
    ) -> Classification:
        seen = self._traverse(views, locations, [policy], draws)
        log_p = seen.log_probability(policy.likelihood or self.likelihood)
        return self._classified(seen, log_p, contributions, views.bytes_read)

    def _classified(
        self, seen: _Traversal, log_p: Tensor, contributions: bool, read: np.ndarray | None = None
    ) -> Classification:
        """Classify looks that were chosen with log-probabilities (R, N - 1)."""
        fused, weight = self._fuse(seen)
        # The head is linear, so contributions are exact. The bias is distributed by weight.
        contribution = (weight[..., None] * self.classifier(seen.features)).flatten(0, 1) if contributions else None
        images = len(seen.features)
        # Index of each look among the looks taken of its image, and index of its parent.
        index = np.cumsum(seen.taken, axis=1) - 1
        parent = np.where(seen.parent < 0, -1, index[:, seen.parent])
        glimpses = Glimpses(
            image=np.repeat(np.arange(images), seen.taken.shape[1]),
            box=seen.boxes.reshape(-1, 4),
            size=np.array(self.size),
            level=np.tile(seen.level, images),
            parent=parent.flatten(),
            probability=F.pad(log_p.exp(), (1, 0), value=1.0).flatten(),
            contribution=contribution,
        )
        if not seen.taken.all():
            glimpses = glimpses[seen.taken.ravel()]
        return Classification(
            self.classifier(self.dropout(fused)), glimpses, self.class_names, bytes_read=read, task=self.task
        )

    def classify_in_turns(self, views: Views, locations: tuple[int, ...], at_once: int, contributions: bool) -> Walk:
        """See `GlimpseClassifier.walk`. Cells of the thumbnail are taken in order of descending probability, each with
        all its descendants."""
        which, done = np.arange(len(views)), []
        known, look = self._thumbnail(views)
        chances = known.features.new_zeros(len(views), 0, dtype=torch.float32)
        for start in range(0, locations[0] if locations else 0, at_once):
            going = yield which, self.classifier(self._fuse(known)[0])
            on = true_indices(going, chances.device)
            if not going.all():
                left = true_indices(~going, chances.device)
                done.append((which[~going], self._classified(known.rows(~going), chances[left], contributions)))
                which, known, chances = which[going], known.rows(going), chances[on]
            if not len(which):
                break
            if not start:  # only images that get more looks are scored
                grids = self._grids(views, which, known.boxes, known.taken, (look[0][on], look[1][on]))
                order = GREEDY.choose(grids.log_p, locations[0])
                turns = self.likelihood(grids.log_p, order)[:, 0]
            elif not going.all():
                grids, order, turns = grids.rows(going), order[on], turns[on]
            cells = order[..., start : start + at_once]
            if not grids.chosen(cells)[1].any():
                continue  # no offered cell is left

            def select(log_p: Tensor, k: int, depth: int, cells: Tensor = cells) -> Tensor:
                return cells if depth == 1 else GREEDY.choose(log_p, k)

            below = self._expand(views, which, grids, locations, select)
            # Log-probabilities of the first level depend on all earlier choices, so they come from ``turns``.
            below.log_p, below.cells, below.grids = below.log_p[1:], below.cells[1:], below.grids[1:]
            chance = below.log_probability(self.likelihood)
            known, chances = known.join(below), torch.cat([chances, turns[:, start : start + at_once], chance], 1)
        if len(which) or not done:
            done.append((which, self._classified(known, chances, contributions)))
        return Classification.merge(done, views.bytes_read)

    def roll_out(self, views: Views, locations: tuple[int, ...], policies: list[Policy], draws: Draws) -> list[Rollout]:
        if any(policy.one_pass for policy in policies):
            if self.takes_whole and locations:
                return [self._whole(views) for _ in policies]
            policies = [Random() if policy.one_pass else policy for policy in policies]
        for policy in policies:  # rollouts of one batch have the same number of looks
            locations = self.resolve_locations(locations, policy)
        count, seen = len(policies), self._traverse(views, locations, policies, draws)
        fused, _ = self._fuse(seen)
        logits, alone, mask = (
            self.classifier(self.dropout(fused)),
            self.classifier(self.dropout(seen.features)),
            seen.mask,
        )
        if mask is not None:
            # Looks not taken get the mean logits, so the mean over all columns equals that over the looks taken.
            alone = torch.where(mask[..., None], alone, logits[:, None])
        parts = zip(
            policies,
            logits.chunk(count),
            alone.chunk(count),
            seen.log_probability(self.likelihood).chunk(count),
            fused.chunk(count),
            zip(*(p.chunk(count) for p in seen.log_p), strict=True) if seen.log_p else [()] * count,
            zip(*(c.flatten(1).chunk(count) for c in seen.cells), strict=True) if seen.cells else [()] * count,
            zip(*(np.split(g, count) for g in seen.grids), strict=True) if seen.grids else [()] * count,
            strict=True,
        )
        return [
            Rollout(
                logits=logits,
                glimpse_logits=alone,
                level=seen.level,
                parent=seen.parent,
                log_probability=log_probability,
                scores=list(scores),
                grids=list(grids),
                cells=torch.cat(cells, 1) if cells else None,
                fused=fused,
                additive=self.weighting is None,
                policy=policy,
            )
            for policy, logits, alone, log_probability, fused, scores, cells, grids in parts
        ]

    def _whole(self, views: Views) -> Rollout:
        """Rollout of the policy ``whole``: process the whole image at the resolution of looks of level 2, in one pass.

        The pooled feature map is classified. The part of the map at each cell is classified too, without gradient, to
        estimate the logits of a look at that cell. Costs as much as ``1 / region**2`` looks.

        Returns:
            ``logits`` of the whole image, ``glimpse_logits`` of the K cells, and ``scores`` of the cells from the
            thumbnail.
        """
        which, boxes = np.arange(len(views)), self.root(views.sizes)
        origin = torch.zeros(len(views), 3, device=self.mean.device)
        with _running_statistics(self.backbone, min(2, self.statistics)):
            features = _features(self.backbone, self.see(views, which, boxes, self._whole_size()))
        fused = self.position(self._pool(features), origin)
        _, look = self.perceive(self.see(views, which, boxes), origin)
        with torch.no_grad():
            places, _ = self.cells(boxes[:, None], views.sizes)
            windows = _windows(features, boxes, places[:, 0], self.grid.region)
            cells = torch.arange(self.grid.cells, device=origin.device).expand(len(views), 1, -1)
            alone = self.classifier(self.position(self._pool(windows), self._descend(origin, cells, 1)))
        grids = self._grids(views, which, boxes[:, None], np.ones((len(views), 1), dtype=bool), look)
        return Rollout(
            logits=self.classifier(self.dropout(fused)),
            glimpse_logits=alone.unflatten(0, (len(views), -1)),
            level=np.full(self.grid.cells, 2),
            scores=[grids.log_p],
            grids=[grids.boxes],
            fused=fused,
            additive=False,
            policy=Whole(),
        )

    def _whole_size(self) -> tuple[int, int]:
        height, width = self.size
        return round(height / self.grid.region), round(width / self.grid.region)

    def _pool(self, features: Tensor) -> Tensor:
        """Pool feature maps (N, C, h, w) to feature vectors (N, D)."""
        return self.backbone.forward_head(features, pre_logits=True)  # type: ignore[operator]

    def _supports_whole(self, in_chans: int) -> bool:
        """Whether the backbone accepts the whole image at the resolution of looks, and pools parts of its feature map.
        This is tried on the meta device; convolutional networks do."""
        probe = copy.deepcopy(self.backbone).to("meta").eval()
        try:
            features = _features(probe, torch.zeros(1, in_chans, *self._whole_size(), device="meta"))
            vector = probe.forward_head(features[..., :1, :1], pre_logits=True)  # type: ignore[operator]
        except Exception:  # networks raise various exceptions for unsupported sizes
            return False
        channels_first = features.ndim == 4 and getattr(probe, "output_fmt", "NCHW") == "NCHW"
        return channels_first and vector.shape == (1, self.classifier.in_features)

    # ---- parts for export

    def parts(self) -> Parts:
        """``look1``, ``look2``, ...: a look to its feature vector, its logits and the scores of its cells. There is one
        for each processing level whose statistics differ. ``weigh``: feature vectors to weights of looks, if the model
        has a feature weighting module."""
        length, features = self.cell_weights.shape[1], self.classifier.in_features
        weights = self.cell_weights.expand(2, -1, -1).contiguous()
        given = {
            "look": self.example_looks(),
            "position": torch.tensor([[0.0, 0.0, 0.0], [1.0, 2.0, 1.0]]).to(self.mean),
            "rows": weights,
            "columns": weights.clone(),
        }
        parts = {
            f"look{level}": Part(Normalised(self, _Look(self, level)), given, ("feature", "logits", "scores"))
            for level in range(1, self.statistics + 1)
        }
        if self.weighting is not None:
            seen = {"features": self.mean.new_zeros(2, 3, features), "taken": self.mean.new_ones(2, 3)}
            parts["weigh"] = Part(_Weigh(self.weighting), seen, ("weights",), free=2)
        options = {
            "grid": self.grid.side,
            "region": self.grid.region,
            "padded": self.grid.padded,
            "fits": self._fits,
            "region_mpp": self.region_mpp,
            "levels": len(self.locations),
            "map_side": length,
            "networks": self.statistics,
            "weighting": self.weighting is not None,
            "likelihood": self.likelihood.__name__,
        }
        return Parts("tnet", parts, options)

    # ---- parameters and the dense baseline

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        backbone = {id(p) for p in self.backbone.parameters()}
        trainable = [p for p in self.parameters() if p.requires_grad]
        return {
            "backbone": [p for p in trainable if id(p) in backbone],
            "head": [p for p in trainable if id(p) not in backbone],
        }

    def dense(self) -> nn.Module:
        return _Dense(
            copy.deepcopy(self.backbone),
            nn.Linear(self.classifier.in_features, self.num_classes, device=self.mean.device),
        )

    def _probe(self, name: str, in_chans: int, side: int) -> tuple[int, int, int]:
        """Channels and side of the descriptor map, and length of the feature vector, computed on the meta device."""
        probe = copy.deepcopy(self.backbone).to("meta").eval()
        outputs: list[Any] = []
        try:
            module = probe.get_submodule(self.location_features)
        except AttributeError as error:
            known = ", ".join(entry["module"] for entry in _feature_info(probe)) or "its named_modules()"
            raise ConfigError(
                f"`location_features` {self.location_features}: the backbone has no such module; try {known}"
            ) from error
        module.register_forward_hook(lambda _m, _i, out: outputs.append(out))
        try:
            feature = _embed(probe, torch.zeros(1, in_chans, side, side, device="meta"))
            if not outputs:
                raise ValueError("the module is not called")
            described = _as_map(outputs[0], probe)
            if feature.ndim != 2:
                raise ValueError(f"the feature vector is {tuple(feature.shape)}")
        except Exception as error:  # networks raise various exceptions for unsupported sizes
            reason = str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
            raise ConfigError(
                f"`backbone` {name}: does not process {side} x {side} px with `location_features` "
                f"{self.location_features} ({reason}); choose another `base_size`, `location_features` or `backbone`"
            ) from error
        return described.shape[1], described.shape[2], feature.shape[1]


def _batch_norms(network: nn.Module) -> list[nn.Module]:
    """Batch norms with running statistics."""
    return [
        m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_mean is not None
    ]


@contextmanager
def _running_statistics(network: nn.Module, level: int) -> Iterator[None]:
    """Context in which batch norms use and update the running statistics of a processing level. Those of level 1 have
    the usual names."""

    def swap() -> None:
        for norm in _batch_norms(network) if level > 1 else ():
            for name in ("running_mean", "running_var"):
                here, there = name, f"{name}_{level}"
                norm._buffers[here], norm._buffers[there] = norm._buffers[there], norm._buffers[here]

    swap()
    try:
        yield
    finally:
        swap()


class _Look(nn.Module):
    """One look, as it is exported: perceive it, classify it, and score its cells.

    Args:
        model: the classifier.
        level: processing level of the looks.
    """

    def __init__(self, model: TNet, level: int) -> None:
        super().__init__()
        if level > 1:
            model = copy.deepcopy(model)
            for norm in _batch_norms(model.backbone):
                for name in ("running_mean", "running_var"):
                    norm._buffers[name] = norm._buffers[f"{name}_{level}"]
        self.model = model

    def forward(self, seen: Tensor, position: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `TNet.perceive` and `TNet.describe`, whose weights are ``rows`` and ``columns``."""
        tagged, look = self.model.perceive(seen, position)
        return tagged, self.model.classifier(tagged), self.model.score(*look, (rows, columns))


class _Weigh(nn.Module):
    """Weights of looks, as they are exported."""

    def __init__(self, weighting: FeatureWeighting) -> None:
        super().__init__()
        self.weighting = weighting

    def forward(self, features: Tensor, taken: Tensor) -> tuple[Tensor]:
        """(B, N, D) feature vectors and (B, N), 1 for looks taken, to (B, N)."""
        return (self.weighting(features, taken > 0),)


class _Dense(nn.Module):
    """The backbone with a linear classifier."""

    def __init__(self, backbone: nn.Module, classifier: nn.Linear) -> None:
        super().__init__()
        self.backbone, self.classifier = backbone, classifier

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(_embed(self.backbone, x))


def _features(network: Any, x: Tensor) -> Tensor:
    """Images (N, C, h, w) to the final feature map of a timm network."""
    return network.forward_features(x)


def _embed(network: Any, x: Tensor) -> Tensor:
    """Images (N, C, h, w) to the pre-logits (N, D) of a timm network."""
    return network.forward_head(_features(network, x), pre_logits=True)


def _default_location_features(network: nn.Module, side: int, grid: int) -> str:
    """Name of the deepest module whose feature map has at least two rows per cell of the grid."""
    info = _feature_info(network)
    if not info:
        name = type(network).__name__
        raise ConfigError(
            f"{name} has no feature_info; give the module that describes the cells as `location_features`"
        )
    fine = [f for f in info if side / f["reduction"] >= 2 * grid]
    return (fine[-1] if fine else min(info, key=lambda f: f["reduction"]))["module"]


def _feature_info(network: nn.Module) -> list[dict[str, Any]]:
    """Entries of timm's ``feature_info`` that name a module of the network. For wrapped networks some names are
    relative to the wrapped part."""
    names = {name for name, _ in network.named_modules()}
    return [entry for entry in getattr(network, "feature_info", None) or [] if entry["module"] in names]


def _as_map(x: Any, network: nn.Module) -> Tensor:
    """(B, C, h, w) from a channels-first map, a channels-last map, or tokens of a square look.

    Raises:
        ValueError: ``x`` is none of these.
    """
    if isinstance(x, tuple | list):  # some blocks also return class tokens or the size of the map
        x = next((part for part in x if isinstance(part, Tensor) and part.ndim in (3, 4)), None)
    if isinstance(x, Tensor) and x.ndim == 3:
        # Class tokens come first. Some networks add them in a later block.
        tokens, declared = x.shape[1], getattr(network, "num_prefix_tokens", 0)
        patches = (
            tokens - declared
            if math.isqrt(tokens - declared) ** 2 == tokens - declared > 0
            else math.isqrt(tokens) ** 2
        )
        side = math.isqrt(patches)
        return x[:, tokens - patches :].transpose(1, 2).unflatten(2, (side, side))
    if isinstance(x, Tensor) and x.ndim == 4:
        first, last = x.shape[2] == x.shape[3], x.shape[1] == x.shape[2]  # whether channels may be first or last
        if first or last:
            channels_last = getattr(network, "output_fmt", "NCHW") == "NHWC" if first and last else last
            return x.permute(0, 3, 1, 2) if channels_last else x
    raise ValueError(
        f"its output is not a map of a square look but {tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__}"
    )


def _windows(features: Tensor, roots: np.ndarray, cells: np.ndarray, region: float) -> Tensor:
    """Windows of feature maps at cells.

    Args:
        features: (B, C, h, w) feature maps.
        roots: (B, 4) boxes that the maps show.
        cells: (B, K, 4) boxes of the cells.
        region: usual side of a cell as a share of the side of the map.

    Returns:
        (B K, C, height, width) windows of the maps, at the positions closest to the cells. Cells of another size are
        sampled at the same number of positions.
    """
    lines = []
    for axis, length in enumerate(features.shape[2:]):
        window = max(1, round(region * length))
        steps = np.arange(window)
        extent = (roots[:, axis + 2] - roots[:, axis])[:, None]
        start, stop = ((cells[..., i] - roots[:, None, axis]) / extent * length for i in (axis, axis + 2))
        places = np.round(start).clip(0, length - window)[..., None] + steps
        # Cells are at whole pixels, so their share of the map varies slightly.
        usual = np.abs(stop - start - region * length) <= length / extent
        start, stop = start.clip(0, length), stop.clip(0, length)
        sampled = np.floor(start[..., None] + (steps + 0.5) * ((stop - start) / window)[..., None]).clip(0, length - 1)
        lines.append(to_device(np.where(usual[..., None], places, sampled).astype(np.int64), features.device))
    rows, columns = lines
    image = torch.arange(len(features), device=features.device)[:, None, None, None]
    picked = features.permute(0, 2, 3, 1)[image, rows[..., None], columns[:, :, None]]
    return picked.flatten(0, 1).permute(0, 3, 1, 2)


def _scatter(values: Tensor, taken: np.ndarray) -> Tensor:
    """Scatter values of the looks taken to all looks, with 0 for the others."""
    if taken.all():
        return values
    return values.new_zeros(taken.size, *values.shape[1:]).index_copy(
        0, true_indices(taken.ravel(), values.device), values
    )


# --------------------------------------------------------------------------------------------------------- presets


class ReferenceTNet(TNet):
    """TNet as published. The presets set the options of each data set."""

    objective = ReferenceTNetObjective

    def __init__(self, num_classes: int, *, objective: dict[str, Any], **options: Any) -> None:
        published = {
            "score_scale": None,
            "detached_policy": True,
            "padded_grid": True,
            "squash": True,
            "antialias": False,
        }
        options = {**published, "mean": (0.5,), "std": (0.5,), **options}
        # Set before super().__init__, because help reads the default objective without creating the network.
        self._objective = objective
        super().__init__(num_classes, **options)

    def default_objective(self) -> Objective:
        return ReferenceTNetObjective(**self._objective)


@MODELS.register("tnet_bagnet77.reference")
def tnet_bagnet77(num_classes: int = 1000, *, locations: Sequence[int] = (3,), **options: Any) -> ReferenceTNet:
    """ImageNet: variant of BagNet-77, images of 224 px, looks of 77 px, 5 x 5 grid. 21,859,949 parameters."""
    preset = {
        "backbone": "bagnet77_tnet",
        "base_size": 77,
        "grid": 5,
        "region": 77 / 224,
        "location_features": "stages.2",
        "location_index": (0, 2, 4, 6, 8),
        "location_context": True,
        "position_concat": True,
    }
    model = ReferenceTNet(num_classes, objective={"image_share": 0.3}, locations=locations, **{**preset, **options})
    for module in (model.location, model.position, model.classifier):
        module.apply(partial(glorot, fill=nn.init.xavier_normal_))
    return model


@MODELS.register("tnet_efficientnet_b0.reference_fmow")
@partial(typed, error=ConfigError)
def tnet_fmow(
    num_classes: int = 62, *, locations: Sequence[int] = (2, 1), depth_drop: float = 0.5, **options: Any
) -> ReferenceTNet:
    """fMoW: EfficientNet-B0, looks of 224 px, images of 448 or 896 px, 3 x 3 grid. 4,517,575 parameters with 62
    classes.

    Args:
        depth_drop: maximum rate of stochastic depth; 0.3 in the first step of training (448 px), 0.5 in the second.
    """
    preset = {
        "grid": 3,
        "region": 0.5,
        "location_features": "blocks.3",
        "location_index": (2, 6, 10),
        "head_dropout": 0.5,
    }
    three_levels = len(tuple(locations)) > 1
    objective = {"image_share": 0.05, "feature_levels": 2} if three_levels else {"image_share": 0.2}
    return _efficientnet(num_classes, 0, depth_drop, objective, locations=locations, **{**preset, **options})


@partial(typed, error=ConfigError)
def _birds(
    num_classes: int,
    *,
    variant: int,
    contrastive: float,
    locations: Sequence[int],
    depth_drop: float = 0.5,
    **options: Any,
) -> ReferenceTNet:
    """CUB-200-2011 and NABirds: EfficientNet-B0 to B4, looks of 224 px, images of 448 px, 5 x 5 grid, feature
    weighting.

    Args:
        variant: number of the EfficientNet, 0 to 4.
        contrastive: weight of the contrastive loss.
        depth_drop: maximum rate of stochastic depth.
    """
    index = (2, 4, 6, 8, 10) if variant == 0 else (5, 9, 13, 17, 21)
    preset = {
        "grid": 5,
        "region": 0.35,
        "location_features": "blocks.3.0" if variant == 0 else "blocks.2.1",
        "location_index": index,
        "head_dropout": 0.75,
        "weighting": True,
    }
    objective = {"image_share": 0.3, "contrastive": contrastive}
    return _efficientnet(num_classes, variant, depth_drop, objective, locations=locations, **{**preset, **options})


for _variant in range(5):
    MODELS.register(f"tnet_efficientnet_b{_variant}.reference_cub")(
        partial(_birds, num_classes=200, variant=_variant, contrastive=100.0, locations=(5,))
    )
    MODELS.register(f"tnet_efficientnet_b{_variant}.reference_nabirds")(
        partial(_birds, num_classes=555, variant=_variant, contrastive=50.0, locations=(5,) if _variant < 3 else (3,))
    )


def _efficientnet(
    num_classes: int, variant: int, depth_drop: float, objective: dict[str, Any], **options: Any
) -> ReferenceTNet:
    """TNet on EfficientNet with the "same" padding of TensorFlow, which ``location_index`` assumes, and Keras' batch
    norm."""
    options.setdefault("backbone", f"tf_efficientnet_b{variant}")
    backbone_options = {"bn_momentum": 0.01, "bn_eps": 1e-3, **(options.pop("backbone_options", None) or {})}
    options = {"base_size": 224, **options}
    model = ReferenceTNet(num_classes, objective=objective, backbone_options=backbone_options, **options)
    _stochastic_depth(model.backbone, depth_drop)
    if not options.get("pretrained"):
        model.backbone.apply(_keras_convolution)
    model.location.apply(_keras_convolution)
    for module in (model.position, model.classifier, model.weighting):
        if module is not None:
            module.apply(_keras_dense)
    return model


def _stochastic_depth(network: nn.Module, largest: float) -> None:
    """Set the rate largest * i / n for block i = 1..n, on blocks with an identity shortcut (timm counts from 0)."""
    from timm.layers import DropPath

    blocks = [block for stage in network.get_submodule("blocks").children() for block in stage.children()]
    for i, block in enumerate(blocks, start=1):
        if getattr(block, "has_skip", False):
            block.drop_path = DropPath(largest * i / len(blocks))


def _keras_convolution(module: nn.Module) -> None:
    """Truncated normal of variance 2 / fan_out. A linear layer over cells is a 1x1 convolution."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        fan_out = module.weight[:, 0].numel() // getattr(module, "groups", 1)
        std = math.sqrt(2 / fan_out) / 0.87962566103423978  # standard deviation of a unit normal truncated at +-2
        nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _keras_dense(module: nn.Module) -> None:
    """Uniform of variance (1/3) / fan_out."""
    if isinstance(module, nn.Linear):
        bound = math.sqrt(1 / module.out_features)
        nn.init.uniform_(module.weight, -bound, bound)
        nn.init.zeros_(module.bias)

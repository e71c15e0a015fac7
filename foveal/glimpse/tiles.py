"""Base class of classifiers that encode every tile of a grid over the image.

Tiles are squares of equal size. They are read and encoded a few at a time, so pixels of a large image are never held at
once. Subclasses decide what is kept of the tiles: `foveal.glimpse.ips` the best ones, `foveal.glimpse.mil` the features
of all, `foveal.glimpse.tile_scan` those that a scout chooses.

A tile is blank if all of its pixels in the image have one value, if its tiles of the file are known to, or if it is
outside the mask of the image. Models with ``skip_blank``, and `foveal.embedding`, leave blank tiles out; of an image
without others, the tile in the middle is read.

Models with ``reads_features`` also take `foveal.features.FeatureViews`, whose features they do not encode.

Example:
    >>> import torch
    >>> from foveal.glimpse.mil import AttentionPooling
    >>> model = AttentionPooling(num_classes=4, tile_size=16, tile_stride=8)
    >>> model.grid((40, 64)), model.count(np.array([[40, 64], [50, 16]]))
    ((4, 7), array([28,  6]))
    >>> model.boxes(np.array([[40, 64]]), np.array([8])).tolist()
    [[8.0, 8.0, 24.0, 24.0]]
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from foveal.classification import Glimpses
from foveal.errors import ConfigError, DataError, ImageError
from foveal.features.views import FeatureViews
from foveal.glimpse.base import GlimpseClassifier, on_host, per_band, whole_image
from foveal.glimpse.networks import channels_last, check_least, check_look, create_network, small_reader
from foveal.glimpse.places import FLAT
from foveal.host import to_device
from foveal.images.views import Look, Views
from foveal.policies import Greedy, Policy

ENCODED = 128
"""Tiles that are encoded at once."""
MASK_POINTS = 4
"""Points per axis of a tile at which the mask of an image is asked."""


class TileClassifier(GlimpseClassifier):
    """Base class of classifiers that encode every tile of a grid.

    The tile in row r and column c begins at (r, c) * ``tile_stride`` pixels of the level. The last row and column may
    reach outside the image, so that tiles cover it. Where tiles fit without a rest these are the patches of
    `torch.Tensor.unfold`.

    Subclasses implement `classify` and `roll_out`, and have a linear layer ``head``.

    Args:
        num_classes: number of classes.
        backbone: timm name of the network that encodes tiles; if None, four convolutions, for small tiles.
        backbone_options: further keywords for `timm.create_model`.
        stages: number of stages of the backbone, as timm counts its features; their mean over positions encodes the
            tile. The whole backbone without its classifier if None.
        pretrained: True loads the weights that timm downloads into the backbone; a path loads that file.
        in_chans: number of bands of the images.
        tile_size: side of a tile in pixels of the level.
        tile_stride: pixels of the level between the beginnings of tiles; ``tile_size`` if None.
        scale: pixels of the image per pixel of the level, along each axis.
        at_once: tiles of each image that are read at once.
        reuse_blank: encode tiles of one value once, in evaluation mode without gradient. The result is the same, apart
            from rounding.
        skip_blank: leave blank tiles out.
        features: number of features, for a model without a network, which takes `FeatureViews` alone.
        mean, std: normalisation; the backbone's if None, or 0.5.

    Raises:
        ConfigError: a number is too small, the backbone is unknown or does not have the stages, or there are
            ``features`` and a backbone.

    Attributes:
        features: number of features of a tile.
        reads_features: whether the model takes `FeatureViews`.
        reads_coarse: whether it takes those with features of a coarser level, which has a ``coarse`` times larger
            scale.
    """

    reads_features: ClassVar[bool] = False
    reads_coarse: ClassVar[bool] = False
    policy_kinds: ClassVar[tuple[type[Policy], ...]] = (Greedy,)
    most_levels = 0
    not_exported = "foveal.runtime has no loop that encodes every tile of an image; use the run folder"
    head: nn.Linear

    def __init__(
        self,
        num_classes: int,
        *,
        backbone: str | None,
        backbone_options: dict[str, Any] | None,
        stages: int | None,
        pretrained: bool | str,
        in_chans: int,
        tile_size: int,
        tile_stride: int | None,
        scale: int,
        at_once: int,
        reuse_blank: bool,
        skip_blank: bool = False,
        features: int | None = None,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
    ) -> None:
        stride = tile_size if tile_stride is None else tile_stride
        check_look(in_chans, tile_size=tile_size)
        check_least(1, tile_stride=stride, scale=scale, at_once=at_once, features=features)
        network: nn.Module
        if features is not None:
            if backbone is not None or backbone_options or pretrained or stages is not None:
                raise ConfigError(f"`features` {features}: cannot be used with `backbone`; use one of the two")
            network, self.features = nn.Identity(), features
        elif backbone is None:
            if backbone_options or pretrained or stages is not None:
                raise ConfigError("`backbone`: is missing, but there are options or weights for it; name a network")
            network, self.features = small_reader(in_chans, 1)[:-1], 128
        else:
            network, self.features = _create_encoder(
                backbone, in_chans, pretrained, backbone_options or {}, stages, tile_size
            )
        config = getattr(network, "pretrained_cfg", None) or {}
        super().__init__(
            num_classes,
            (tile_size, tile_size),
            per_band(mean or config.get("mean", (0.5,)), in_chans),
            per_band(std or config.get("std", (0.5,)), in_chans),
        )
        self.stride, self.scale, self.at_once, self.reuse_blank = stride, scale, at_once, reuse_blank
        self.skip_blank = self.searches = skip_blank
        self.encoder = channels_last(network)

    def _takes(self) -> str:
        return "this model reads every tile of an image; leave `locations` out"

    def check_policies(self, policies: Sequence[str | Policy]) -> None:
        for policy in policies:
            if str(policy) not in self.policies:
                raise ConfigError(f"`policy` {policy}: this model reads every tile of an image; leave `policy` out")

    def load_encoder(self, file: Path, digest: str | None = None) -> None:
        """Load the weights of the network from a file that `foveal.embedding` wrote.

        Args:
            file: the file.
            digest: the digest that it has.

        Raises:
            DataError: it cannot be read, has another digest, or does not fit the network.
        """
        try:
            with safe_open(file, framework="pt") as content:
                stored = (content.metadata() or {}).get("digest")
                weights = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
            if digest is not None and stored != digest:
                raise DataError(f"{file}: has other weights than those that made the features; make them again")
            self.encoder.load_state_dict(weights)
        except (OSError, RuntimeError, SafetensorError) as error:
            raise DataError(f"{file}: are not the weights of the network; make the features again") from error

    # ---- the grid

    def root(self, sizes: np.ndarray) -> np.ndarray:
        return whole_image(sizes)

    def first_looks(self, size: tuple[int, int]) -> list[Look]:
        """None: tiles are read while they are encoded."""
        return []

    def grid(self, size: Sequence[int] | np.ndarray) -> tuple[int, int]:
        """Rows and columns of tiles of an image of (height, width) pixels."""
        beyond = np.asarray(size) - self.size[0] * self.scale
        rows, columns = (np.maximum(-(-beyond // (self.stride * self.scale)), 0) + 1).tolist()
        return rows, columns

    def count(self, sizes: np.ndarray) -> np.ndarray:
        """(B,) number of tiles of images of ``sizes`` (B, 2)."""
        return np.array([rows * columns for rows, columns in map(self.grid, sizes)], dtype=np.int64)

    def boxes(self, sizes: np.ndarray, tiles: np.ndarray) -> np.ndarray:
        """(N, 4) boxes of tiles (N,), counted in reading order, of images of ``sizes`` (N, 2) or (1, 2)."""
        columns = np.array([self.grid(size)[1] for size in sizes])
        corner = np.stack([tiles // columns, tiles % columns], axis=1) * float(self.stride * self.scale)
        return np.concatenate([corner, corner + self.size[0] * self.scale], axis=1)

    def counts(self, views: Views) -> np.ndarray:
        """(B,) number of tiles of images, with blank ones."""
        return views.counts if isinstance(views, FeatureViews) else self.count(views.sizes)

    def boxes_of(self, views: Views, which: np.ndarray, tiles: np.ndarray) -> np.ndarray:
        """(N, 4) boxes of tiles (N,) of images ``which`` (N,)."""
        if isinstance(views, FeatureViews):
            return views.boxes(which, tiles)
        return self.boxes(views.sizes[which], tiles)

    def alike(self, sizes: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
        """Indices of images with the same number of tiles, and that number."""
        counts = self.count(sizes)
        for count in np.unique(counts):
            yield np.flatnonzero(counts == count), int(count)

    # ---- tiles

    def read(self, views: Views, which: np.ndarray, tiles: np.ndarray, size: tuple[int, int] | None = None) -> Tensor:
        """(b, n, C, h, w) normalised pixels of tiles (b, n) of images ``which`` (b,), at ``size`` or their own."""
        each = which.repeat(tiles.shape[1])
        return self.see(views, each, self.boxes(views.sizes[each], tiles.ravel()), size).unflatten(0, tiles.shape)

    def worth_reading(self, views: Views, image: int, tiles: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """(n,) bool, whether tiles (n,) of an image may be other than blank, as far as is known without reading them.

        Args:
            views: the images.
            image: index of the image.
            tiles: numbers of tiles in reading order.
            size: (height, width) at which tiles are read.
        """
        boxes = self.boxes(views.sizes[[image]], tiles)
        worth = np.ones(len(tiles), dtype=bool)
        (_, columns), side = self.grid(views.sizes[image]), self.size[0] * self.scale
        at = (np.arange(MASK_POINTS) + 0.5) * side / MASK_POINTS
        x = (np.arange(columns)[:, None] * self.stride * self.scale + at).ravel()
        for row in np.unique(tiles // columns):
            allowed = views.may_look(image, row * self.stride * self.scale + at, x, side / size[0])
            if allowed is not None:
                of_row = tiles // columns == row
                any_point = np.max(allowed.reshape(MASK_POINTS, columns, MASK_POINTS), axis=(0, 2))
                worth[of_row] = any_point[tiles[of_row] % columns]
        worth[worth] = [not views.is_blank(image, box, size) for box in boxes[worth]]
        return worth

    def blank(self, pixels: Tensor, boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """(n,) bool, whether normalised pixels (n, C, h, w) of boxes (n, 4) have one value inside images of ``sizes``
        (n, 2)."""
        per_pixel = (boxes[:, 2:] - boxes[:, :2]) / np.array(pixels.shape[-2:])
        inside = np.maximum((sizes - boxes[:, :2]) // per_pixel, 1)
        rows, columns = (to_device(np.arange(pixels.shape[-2 + i]) < inside[:, i, None], pixels.device) for i in (0, 1))
        beyond = ~(rows[:, None, :, None] & columns[:, None, None, :])
        high = pixels.masked_fill(beyond, -torch.inf).amax((2, 3))
        low = pixels.masked_fill(beyond, torch.inf).amin((2, 3))
        return on_host(((high - low) * self.std).amax(1) <= FLAT).astype(bool)

    def encoded(
        self, views: Views, which: np.ndarray, tiles: np.ndarray, size: tuple[int, int] | None = None
    ) -> tuple[Tensor, np.ndarray]:
        """Features (m, features) of tiles (n,) of images ``which`` (n,), and indices (m,) of these tiles: all, or with
        ``skip_blank`` those that are not blank.

        Args:
            views: the images.
            which, tiles: images, and numbers of tiles.
            size: (height, width) at which tiles are read; their own if None. The coarser level of `FeatureViews` if
                given.
        """
        every = np.arange(len(tiles))
        if isinstance(views, FeatureViews):
            found = views.features(which, tiles, coarse=size is not None)
            return found.to(self.mean.device, self.mean.dtype), every
        if self.skip_blank:
            worth = np.ones(len(tiles), dtype=bool)
            for image in np.unique(which):
                of_image = which == image
                worth[of_image] = self.worth_reading(views, int(image), tiles[of_image], size or self.size)
            every = every[worth]
        if not len(every):
            return self.mean.new_zeros(0, self.features), every
        pixels = self.read(views, which[every], tiles[every, None], size)[:, 0]
        if self.skip_blank:
            boxes, sizes = self.boxes(views.sizes[which[every]], tiles[every]), views.sizes[which[every]]
            kept = ~self.blank(pixels, boxes, sizes)
            if not kept.all():
                every, pixels = every[kept], pixels[to_device(np.flatnonzero(kept), pixels.device)]
            if not len(every):
                return self.mean.new_zeros(0, self.features), every
        return self.encode(pixels), every

    def middle_tile(self, views: Views, image: int) -> int:
        """Number of the tile in the middle of an image."""
        rows, columns = self.grid(views.sizes[image])
        return rows // 2 * columns + columns // 2

    def encode(self, pixels: Tensor) -> Tensor:
        """(..., features) of tiles (..., C, side, side)."""
        if isinstance(self.encoder, nn.Identity):
            if not pixels.is_meta:
                raise ImageError(
                    "images: the model was trained on features of tiles, and has no network that makes them of pixels; "
                    "classify files of features by foveal evaluate"
                )
            return self.mean.new_zeros(*pixels.shape[:-3], self.features)  # its cost is not known
        flat = pixels.flatten(0, -4).contiguous(memory_format=torch.channels_last)
        if not self.reuse_blank or self.encoder.training or torch.is_grad_enabled() or flat.is_meta:
            return self._encode(flat).unflatten(0, pixels.shape[:-3])
        blank = (flat == flat[..., :1, :1]).all(3).all(2).all(1)
        shades, shade = flat[blank][..., :1, :1].unique(dim=0, return_inverse=True)
        features = self._encode(torch.cat([flat[~blank], shades.expand(-1, -1, *self.size)]))
        places = torch.empty_like(blank, dtype=torch.int64)
        places[~blank] = torch.arange(len(flat) - len(shade), device=flat.device)
        places[blank] = len(flat) - len(shade) + shade
        return features[places].unflatten(0, pixels.shape[:-3])

    def _encode(self, flat: Tensor) -> Tensor:
        if self.encoder.training:  # batch norm takes its statistics from all tiles
            return self.encoder(flat)
        return torch.cat([self.encoder(part) for part in flat.split(ENCODED)])

    def glimpses(
        self, views: Views, tiles: np.ndarray, taken: np.ndarray, contribution: Tensor | None = None
    ) -> Glimpses:
        """The grid as a glimpse of level 1, and tiles (B, N) as glimpses of level 2, as far as they are ``taken``
        (B, N). ``contribution`` is that of the grid and of the tiles, (B, 1 + N, classes)."""
        every = np.concatenate([np.ones((len(views), 1), dtype=bool), taken], axis=1)
        image, column = np.nonzero(every)
        found = np.nonzero(taken)[0]
        box = np.empty((len(image), 4))
        box[column == 0] = self.root(views.sizes)
        box[column > 0] = self.boxes_of(views, found, tiles[taken])
        level = np.where(column, 2, 1)
        grid = -(-views.sizes[image] // self.scale)
        device = self.mean.device
        return Glimpses(
            image=image,
            box=box,
            size=np.where(level[:, None] == 1, grid, self.size),
            level=level,
            parent=np.where(column, 0, -1),
            probability=torch.ones(len(image), device=device),
            contribution=None
            if contribution is None
            else contribution[to_device(image, device), to_device(column, device)],
        )

    # ---- parameters and the dense baseline

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """``head``, ``backbone`` (the encoder of tiles), and ``attention``."""
        groups: dict[str, list[nn.Parameter]] = {"head": [], "backbone": [], "attention": []}
        for name, p in self.named_parameters():
            if p.requires_grad:
                groups[{"encoder": "backbone", "head": "head"}.get(name.partition(".")[0], "attention")].append(p)
        return groups

    def dense(self) -> nn.Module:
        if isinstance(self.encoder, nn.Identity):
            raise ConfigError(f"model {self.label}: has no network that reads pixels, so there is no dense one")
        network = nn.Sequential(copy.deepcopy(self.encoder), copy.deepcopy(self.head))
        network.in_chans = self.channels  # type: ignore[assignment]
        return network


class _StageMean(nn.Module):
    """(N, C, h, w) output of the last stage, in a list, to its mean (N, C)."""

    def forward(self, stages: list[Tensor]) -> Tensor:
        return stages[-1].mean((2, 3))


def _create_encoder(
    backbone: str, in_chans: int, pretrained: bool | str, options: dict[str, Any], stages: int | None, side: int
) -> tuple[nn.Module, int]:
    """A network from tiles to features, and their number."""
    if stages is None:
        network: Any = create_network(backbone, in_chans, pretrained, {**options, "num_classes": 0}, side)
        return network, getattr(network, "head_hidden_size", None) or network.num_features
    check_least(1, stages=stages)
    try:
        network = create_network(
            backbone, in_chans, pretrained, {**options, "features_only": True, "out_indices": (stages,)}, side
        )
    except (AssertionError, IndexError) as error:
        raise ConfigError(
            f"`stages` {stages}: {backbone} does not have so many; give fewer, or leave it out"
        ) from error
    encoder = nn.Sequential(network, _StageMean())
    encoder.pretrained_cfg = getattr(network, "pretrained_cfg", None)  # type: ignore[assignment]
    return encoder, network.feature_info.channels()[-1]


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Evaluation mode of modules, for a while."""
    training = [part for module in modules for part in module.modules() if part.training]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True

"""Batches of images of which features of tiles are known instead of pixels.

Example:
    >>> import torch
    >>> tiles = Tiles("a.h5", (100, 128), torch.ones(2, 4), np.array([[0.0, 0, 64, 64], [0, 64, 64, 128]]))
    >>> views = FeatureViews([tiles])
    >>> views.counts, views.features(np.array([0, 0]), np.array([1, 0])).shape
    (array([2]), torch.Size([2, 4]))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from foveal.errors import ImageError
from foveal.host import to_device
from foveal.images.views import Views


@dataclass(frozen=True)
class Tiles:
    """The tiles of an image.

    Attributes:
        name: name of the image in messages.
        size: its (height, width).
        features: (n, width).
        boxes: (n, 4) boxes of the tiles.
        coarse: (n, width) features of the same boxes at a coarser level; None if there are none.
        channels: number of bands of the image.
    """

    name: str
    size: tuple[int, int]
    features: Tensor
    boxes: np.ndarray
    coarse: Tensor | None = None
    channels: int = 3

    def to(self, device: str | torch.device) -> Tiles:
        """Move features to a device."""
        coarse = None if self.coarse is None else self.coarse.to(device, non_blocking=True)
        return replace(self, features=self.features.to(device, non_blocking=True), coarse=coarse)


class FeatureViews(Views):
    """Images by the features of their tiles. They have no pixels, so a look is an `ImageError`.

    Args:
        tiles: those of each image, at least one.

    Attributes:
        counts: (B,) number of tiles of each image.
    """

    def __init__(self, tiles: Sequence[Tiles]) -> None:
        self.tiles = list(tiles)
        self.channels = self.tiles[0].channels if self.tiles else 3
        self.errors = {}
        self.sizes = np.array([one.size for one in self.tiles], dtype=np.int64).reshape(-1, 2)
        self.counts = np.array([len(one.features) for one in self.tiles], dtype=np.int64)

    def features(self, which: np.ndarray, tiles: np.ndarray, coarse: bool = False) -> Tensor:
        """(n, width) float32 features of tiles (n,) of images (n,).

        Args:
            which: images.
            tiles: positions of tiles in their files.
            coarse: those at the coarser level.
        """
        first = self.tiles[0].features
        out = first.new_empty(len(tiles), first.shape[1], dtype=torch.float32)
        for i in np.unique(which):
            one, rows = self.tiles[i], np.flatnonzero(which == i)
            if (known := one.coarse if coarse else one.features) is None:
                raise ImageError(f"{one.name}: has no features of a coarser level; set `data.coarse` to their folder")
            out[to_device(rows, out.device)] = known[to_device(tiles[rows], known.device)].float()
        return out

    def boxes(self, which: np.ndarray, tiles: np.ndarray) -> np.ndarray:
        """(n, 4) boxes of tiles (n,) of images (n,)."""
        out = np.empty((len(tiles), 4))
        for i in np.unique(which):
            rows = which == i
            out[rows] = self.tiles[i].boxes[tiles[rows]]
        return out

    def to(self, device: str | torch.device) -> FeatureViews:
        """Move features to a device."""
        return FeatureViews([one.to(device) for one in self.tiles])

    def name(self, i: int) -> str:
        return self.tiles[i].name

    def look(
        self,
        which: np.ndarray,
        boxes: np.ndarray,
        size: tuple[int, int],
        *,
        fill: Tensor | None = None,
        antialias: bool = True,
    ) -> Tensor:
        raise ImageError(f"{self.name(int(which[0]))}: has features and no pixels; give images by `data`")

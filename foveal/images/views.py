"""A batch of views: images that can be looked at, box by box.

A hard-attention model never holds a full-resolution image. It holds `Views` and asks for boxes; whether the pixels come
from a tensor or from tiles on a disk is the views' business.

Example:
    >>> import numpy as np, torch
    >>> views = TensorViews(torch.rand(2, 3, 64, 48))
    >>> views.look(np.array([0, 1, 1]), np.array([[0, 0, 32, 32], [0, 0, 64, 48], [-8, -8, 8, 8]]), (16, 16)).shape
    torch.Size([3, 3, 16, 16])
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from foveal.images.resample import resample


class Look(NamedTuple):
    """A look that is known beforehand, so that it can be read ahead.

    Attributes:
        box: (y0, x0, y1, x1) in full-resolution pixels of the view.
        size: (height, width) to resample to.
        fill: value of each channel outside the image, or None for 0.
        antialias: see `foveal.images.resample`.
    """

    box: tuple[float, float, float, float]
    size: tuple[int, int]
    fill: tuple[float, ...] | None = None
    antialias: bool = True


class Views(ABC):
    """A batch of images that can be looked at.

    Attributes:
        sizes: (B, 2) int, (height, width) of each view in full-resolution pixels.
        channels: bands that a look returns.
        errors: image -> one sentence, for images of which a look failed; such looks are filled with the fill value.
    """

    sizes: np.ndarray
    channels: int
    errors: dict[int, str]

    def __len__(self) -> int:
        return len(self.sizes)

    @abstractmethod
    def look(self, which: np.ndarray, boxes: np.ndarray, size: tuple[int, int], *, fill: Tensor | None = None, antialias: bool = True) -> Tensor:
        """Cut boxes out and resample them.

        Args:
            which: (N,) int, image of each box.
            boxes: (N, 4) float64 (y0, x0, y1, x1) in full-resolution pixels; may reach outside the image.
            size: (height, width) of every output.
            fill: (channels,) value of pixels outside the image and of transparent ones; 0 if None.
            antialias: see `foveal.images.resample`; False is for models whose paper says so.

        Returns:
            (N, channels, height, width) float32 in [0, 1], on the device of the views.
        """

    @property
    def bytes_read(self) -> np.ndarray | None:
        """(B,) bytes read from files so far, or None for images in memory."""
        return None


class TensorViews(Views):
    """Images in memory, all of one size.

    Args:
        images: (B, C, H, W); floating point in [0, 1], or an unsigned integer type over its range.
    """

    def __init__(self, images: Tensor) -> None:
        if images.ndim != 4:
            raise ValueError(f"expected images as (B, C, H, W), got shape {tuple(images.shape)}; add the missing dimensions")
        self.images = images
        self.errors = {}
        self.channels = images.shape[1]
        self.sizes = np.tile(np.array(images.shape[-2:]), (len(images), 1))

    def look(self, which: np.ndarray, boxes: np.ndarray, size: tuple[int, int], *, fill: Tensor | None = None, antialias: bool = True) -> Tensor:
        parts = [resample(self._float(self.images[i : i + 1]), b, size, fill=fill, antialias=antialias) for i, b in zip(which, boxes.tolist(), strict=True)]
        return torch.cat(parts) if parts else self.images.new_empty((0, self.channels, *size), dtype=torch.float32)

    @staticmethod
    def _float(x: Tensor) -> Tensor:
        return x if x.is_floating_point() else x.float() / torch.iinfo(x.dtype).max


class BlankViews(Views):
    """Views of nothing, of any size, for counting what a model costs without holding an image."""

    def __init__(self, count: int, size: tuple[int, int], channels: int = 3, device: str | torch.device = "cpu") -> None:
        self.sizes = np.tile(np.array(size), (count, 1))
        self.channels = channels
        self.errors = {}
        self.device = device

    def look(self, which: np.ndarray, boxes: np.ndarray, size: tuple[int, int], *, fill: Tensor | None = None, antialias: bool = True) -> Tensor:
        return torch.zeros(len(which), self.channels, *size, device=self.device)


def as_views(images: Views | Tensor | Sequence) -> Views:
    """Views of a (B, C, H, W) tensor, of a list of pyramids, or the views themselves."""
    if isinstance(images, Views):
        return images
    if isinstance(images, Tensor):
        return TensorViews(images)
    raise TypeError(f"cannot look at {type(images).__name__}")  # ImageViews joins here

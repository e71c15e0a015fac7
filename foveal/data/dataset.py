"""Data sets: images with a label each, in files or in memory.

A data set knows what its samples are; which of them are read when is the `foveal.data.loader.Loader`'s business.

Example:
    >>> import torch
    >>> data = TensorDataset(torch.zeros(4, 3, 32, 32, dtype=torch.uint8), torch.tensor([0, 1, 1, 0]), ("cat", "dog"))
    >>> len(data), data.counts().tolist()
    (4, [2, 2])
    >>> data.batch(epoch=0, indices=[2, 0], seed=0).target.tolist()
    [1, 0]
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from foveal.images.views import Look, TensorViews, Views

FirstLooks = Callable[[tuple[int, int]], list[Look]]


@dataclass
class Batch:
    """Images to look at, with their labels.

    Attributes:
        views: B views.
        target: (B,) int64 class of each.
        index: (B,) position of each in its data set.
        errors: (path, one sentence) of every image that could not be opened; it has no row in the batch, which may therefore be empty.
    """

    views: Views
    target: Tensor
    index: np.ndarray
    errors: list[tuple[str, str]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.index)

    def to(self, device: str | torch.device) -> Batch:
        """The batch with its labels, and its pixels if it holds any, on a device; views of files stay where they are."""
        views = TensorViews(self.views.images.to(device, non_blocking=True)) if isinstance(self.views, TensorViews) else self.views
        return replace(self, views=views, target=self.target.to(device, non_blocking=True))


class Dataset(ABC):
    """Images with a label each.

    Attributes:
        targets: (N,) int64 class of each image.
        classes: names of the classes.
        boxes: for each image (k, 4) boxes of its object in full-resolution pixels, k may be 0; None where nobody drew any.
        channels: bands of every image.
    """

    targets: np.ndarray
    classes: tuple[str, ...]
    boxes: Sequence[np.ndarray] | None
    channels: int

    def __len__(self) -> int:
        return len(self.targets)

    def counts(self) -> np.ndarray:
        """(classes,) images of each class."""
        return np.bincount(self.targets, minlength=len(self.classes))

    @abstractmethod
    def load(self, epoch: int, indices: Sequence[int], seed: int, first_looks: FirstLooks | None = None) -> Loaded:
        """Open and augment images; runs in a loader's worker.

        Args:
            epoch: decides, with ``seed`` and the index, what augmentation draws.
            indices: images wanted.
            seed: seed of the run.
            first_looks: size of a view to the looks to read ahead.
        """

    def batch(self, epoch: int, indices: Sequence[int], seed: int, first_looks: FirstLooks | None = None) -> Batch:
        """The batch of some images; what it takes is documented at `load`."""
        return self.load(epoch, indices, seed, first_looks).batch()


@dataclass
class Loaded:
    """What a worker sends: a `Batch` before it has threads or file handles.

    Attributes:
        pixels: (B, C, H, W), or a list of B views.
        target, index, errors: as in `Batch`.
    """

    pixels: Tensor | list
    target: Tensor
    index: np.ndarray
    errors: list[tuple[str, str]] = field(default_factory=list)

    def batch(self) -> Batch:
        """The batch, ready to be looked at."""
        return Batch(TensorViews(self.pixels), self.target, self.index, self.errors)


class TensorDataset(Dataset):
    """Images in memory, all of one size, as they are.

    Args:
        images: (N, C, H, W); uint8, or floating point in [0, 1].
        targets: (N,) classes.
        classes: names.
        boxes: (N, 4) box of the object of each image, or None.
    """

    def __init__(self, images: Tensor, targets: Tensor | np.ndarray, classes: Sequence[str], boxes: np.ndarray | None = None) -> None:
        self.images = images
        self.targets = np.asarray(targets, dtype=np.int64)
        self.classes = tuple(classes)
        self.boxes = None if boxes is None else [np.asarray(b, dtype=np.float64).reshape(-1, 4) for b in boxes]
        self.channels = images.shape[1]

    def load(self, epoch: int, indices: Sequence[int], seed: int, first_looks: FirstLooks | None = None) -> Loaded:
        index = np.asarray(indices, dtype=np.int64)
        return Loaded(self.images.index_select(0, torch.from_numpy(index)), torch.from_numpy(self.targets[index]), index)

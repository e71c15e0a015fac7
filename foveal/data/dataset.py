"""Data sets of labelled images, in files or in memory.

A data set defines its samples. `foveal.data.loader.Loader` decides in which order they are read.

Example:
    >>> import torch
    >>> data = TensorDataset(torch.zeros(4, 3, 32, 32, dtype=torch.uint8), torch.tensor([0, 1, 1, 0]), ("cat", "dog"))
    >>> len(data), data.counts().tolist()
    (4, [2, 2])
    >>> data.batch(epoch=0, indices=[2, 0], seed=0).target.tolist()
    [1, 0]
"""

from __future__ import annotations

import copy
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from foveal.data.augmentation import (
    AUGMENTATIONS,
    TENSOR_AUGMENTATIONS,
    change_pixels,
    change_view,
    check_bands,
    crop_flip,
    draw_change,
    draw_crop_flip,
    rand_augment,
)
from foveal.data.kernels import KERNELS
from foveal.draws import generator
from foveal.errors import ConfigError, DataError, FovealError
from foveal.features.views import FeatureViews, Tiles
from foveal.images import ImageViews, Look, Pyramid, TensorViews, View, Views, checked_range, find_mask, open_image
from foveal.images.uris import SCHEMES, shown
from foveal.tasks import Task, task_of

FirstLooks = Callable[[tuple[int, int]], list[Look]]

RESIZINGS = ("bilinear", "tnet")
Resizing = Annotated[str, RESIZINGS]


@dataclass
class Batch:
    """A batch of labelled images.

    Attributes:
        views: the B images.
        target: (B,) int64 classes, or (B, classes) bool labels.
        index: (B,) positions in the data set.
        errors: (path, sentence) of each image that could not be opened. Such images are left out, so a batch can be
            empty.
    """

    views: Views
    target: Tensor
    index: np.ndarray
    errors: list[tuple[str, str]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.index)

    def to(self, device: str | torch.device) -> Batch:
        """Move labels, and pixels or features in memory, to a device. Views of files stay where they are."""
        views = self.views
        if isinstance(views, TensorViews):
            views = TensorViews(views.images.to(device, non_blocking=True))
        elif isinstance(views, FeatureViews):
            views = views.to(device)
        return replace(self, views=views, target=self.target.to(device, non_blocking=True))


class Dataset(ABC):
    """A data set of labelled images.

    Attributes:
        targets: (N,) int64, the class of each image; or (N, classes) bool, its labels, see `foveal.tasks`.
        classes: names of the classes.
        boxes: (k, 4) boxes of the object for each image, in full-resolution pixels; k may be 0. None if there are no
            boxes.
        channels: number of bands.
    """

    targets: np.ndarray
    classes: tuple[str, ...]
    boxes: Sequence[np.ndarray] | None
    channels: int

    @property
    def is_remote(self) -> bool:
        """Whether images are read from stores, see `foveal.images.remote`."""
        return False

    def __len__(self) -> int:
        return len(self.targets)

    def counts(self) -> np.ndarray:
        """(classes,) number of images per class."""
        return self.task.counts(self.targets, len(self.classes))

    @property
    def task(self) -> Task:
        """The task of the targets."""
        return task_of(self.targets)

    def objects(self, i: int) -> np.ndarray | None:
        """(k, 4) boxes of the object in image ``i`` of `plain`; None if there are no boxes."""
        return None if self.boxes is None else self.boxes[i]

    def plain(self) -> Dataset:
        """The data set for evaluation, without random changes."""
        return self

    def to(self, device: str | torch.device) -> Dataset:
        """Move images in memory to a device if it has room. Files stay where they are."""
        return self

    @abstractmethod
    def load(self, epoch: int, indices: Sequence[int], seed: int, first_looks: FirstLooks | None = None) -> Loaded:
        """Open and augment images. Runs in a worker of the loader.

        Args:
            epoch: with ``seed`` and the index, determines the augmentation.
            indices: positions of the images.
            seed: seed of the run.
            first_looks: function from the size of a view to the looks to read ahead.
        """

    def batch(self, epoch: int, indices: Sequence[int], seed: int, first_looks: FirstLooks | None = None) -> Batch:
        """`load` as a `Batch`; same arguments."""
        return self.load(epoch, indices, seed, first_looks).batch()


@dataclass
class Loaded:
    """What a worker sends to the main process: a `Batch` without threads and file handles.

    Attributes:
        pixels: (B, C, H, W), or a list of B views, or of the tiles of B images.
        target, index, errors: as in `Batch`.
    """

    pixels: Tensor | list[View] | list[Tiles]
    target: Tensor
    index: np.ndarray
    errors: list[tuple[str, str]] = field(default_factory=list)

    @staticmethod
    def join(parts: Sequence[Loaded]) -> Loaded:
        """One batch of several. ``errors`` are those of all."""
        whole = [part for part in parts if len(part.index)] or parts[:1]
        errors = [error for part in parts for error in part.errors]
        if len(whole) == 1:
            return replace(whole[0], errors=errors)
        pixels: list[Any] = [part.pixels for part in whole]
        return Loaded(
            torch.cat(pixels) if isinstance(pixels[0], Tensor) else [view for views in pixels for view in views],
            torch.cat([part.target for part in whole]),
            np.concatenate([part.index for part in whole]),
            errors,
        )

    def batch(self) -> Batch:
        """Make the batch."""
        pixels: Any = self.pixels
        views: Views
        if isinstance(pixels, Tensor):
            views = TensorViews(pixels)
        else:
            views = FeatureViews(pixels) if pixels and isinstance(pixels[0], Tiles) else ImageViews(pixels)
        return Batch(views, self.target, self.index, self.errors)


def as_targets(targets: Any, images: int, classes: int) -> np.ndarray:
    """Targets as an array: (N,) int64 classes, or (N, classes) bool labels.

    Args:
        targets: classes from 0 to ``classes - 1``, or labels of 0 and 1.
        images, classes: their numbers.

    Raises:
        DataError: targets of another shape, or values that are no classes and no labels.
    """
    given = np.asarray(targets)
    several = given.ndim == 2
    if given.shape != ((images, classes) if several else (images,)):
        what = f"targets are {given.shape} for {images} images and {classes} classes"
        raise DataError(f"data: {what}; give (N,) classes, or (N, classes) labels")
    found = given.astype(bool if several else np.int64, copy=False)
    in_range = several or not len(found) or 0 <= found.min() <= found.max() < classes
    if not (in_range and np.array_equal(found, given)):
        kind = "labels of 0 or 1" if several else f"classes from 0 to {classes - 1}"
        raise DataError(f"data: some targets are not {kind}; correct them")
    return found


class TensorDataset(Dataset):
    """Images in memory, all of the same size.

    Args:
        images: (N, C, H, W); uint8, or float in [0, 1].
        targets: (N,) classes, or (N, classes) labels.
        classes: names of the classes.
        boxes: (N, 4), one box of the object for each image, or None.
        augmentation: ``none``; ``crop_flip`` (see `foveal.data.augmentation.crop_flip`), padded with the mean colour;
            or ``randaugment``, which is `foveal.data.augmentation.rand_augment` after ``crop_flip``.

    Raises:
        ConfigError: unknown augmentation, or one for another number of bands.
        DataError: targets do not fit the images or the classes.
    """

    def __init__(
        self,
        images: Tensor,
        targets: Tensor | np.ndarray,
        classes: Sequence[str],
        boxes: np.ndarray | None = None,
        augmentation: str = "none",
    ) -> None:
        if augmentation not in TENSOR_AUGMENTATIONS:
            known = " or ".join(TENSOR_AUGMENTATIONS)
            raise ConfigError(f"data: there is no augmentation {augmentation!r} for images in memory; use {known}")
        check_bands(augmentation, images.shape[1])
        self.targets = as_targets(targets, len(images), len(classes))
        self.images = images
        self.augmentation = augmentation
        if augmentation != "none":
            mean = images.mean((0, 2, 3), dtype=torch.float32)
            self._fill = mean if images.is_floating_point() else mean.round()
        self._drawn: tuple[Any, np.ndarray] = None, np.empty(0)
        self.classes = tuple(classes)
        self.boxes = None if boxes is None else [np.asarray(b, dtype=np.float64).reshape(-1, 4) for b in boxes]
        self.channels = images.shape[1]

    def plain(self) -> TensorDataset:
        same = copy.copy(self)
        same.augmentation = "none"
        return same

    def to(self, device: str | torch.device) -> TensorDataset:
        device = torch.device(device)
        if device.type == "cuda" and self.images.nbytes > torch.cuda.mem_get_info(device)[0] // 4:
            return self
        same = copy.copy(self)
        same.images = self.images.to(device)
        return same

    def load(self, epoch: int, indices: Sequence[int], seed: int, first_looks: FirstLooks | None = None) -> Loaded:
        index = np.asarray(indices, dtype=np.int64)
        pixels = self.images.index_select(0, torch.from_numpy(index).to(self.images.device, non_blocking=True))
        if self.augmentation != "none":
            pixels = crop_flip(pixels, self._draws(seed, epoch)[index], self._fill)
        if self.augmentation == "randaugment" and len(index):
            each = zip(pixels, index.tolist(), strict=True)
            pixels = torch.stack([rand_augment(one, generator(seed, epoch, i, "augmentation")) for one, i in each])
        return Loaded(pixels, torch.from_numpy(self.targets[index]), index)

    def _draws(self, seed: int, epoch: int) -> np.ndarray:
        """The draws of `draw_crop_flip` for all images in an epoch. Those of the last epoch are kept."""
        if self._drawn[0] != (seed, epoch):
            self._drawn = (seed, epoch), draw_crop_flip(len(self.images), generator(seed, epoch, 0, "crop_flip"))
        return self._drawn[1]


@dataclass(frozen=True)
class Reading:
    """How images are read from files.

    Attributes:
        augmentation: a name from `foveal.data.augmentation.AUGMENTATIONS`.
        channels: number of bands.
        value_range: stored values that become 0 and 1. None takes the range of the pixel type; signed and
            floating-point images have none.
        image_size: resize whole images to a square of this side first, ignoring their aspect ratio. None keeps their
            size, and only looks are read.
        kernels: with ``image_size``: ``bilinear``, or ``tnet`` for one of `foveal.data.kernels.KERNELS` drawn for each
            image.
        shorter_side: with ``image_size``: first reduce images, antialiased, until their shorter side is at most this.
        masks: folder of the masks of the images, see `foveal.images.masks`; None for no masks.
        headers: index of the headers of remote images, see `foveal.images.header_index`; None for none.
    """

    augmentation: str = "none"
    channels: int = 3
    value_range: tuple[float, float] | None = None
    image_size: int | None = None
    kernels: str = "bilinear"
    shorter_side: int | None = None
    masks: str | None = None
    headers: str | None = None

    def __post_init__(self) -> None:
        for what, value, known in (
            ("augmentation", self.augmentation, AUGMENTATIONS),
            ("kernels", self.kernels, RESIZINGS),
        ):
            if value not in known:
                raise ConfigError(f"data: there is no {what} {value!r}; use one of {', '.join(known)}")
        if self.image_size is not None:
            check_bands(self.augmentation, self.channels)
        if self.value_range is not None:
            checked_range(self.value_range)

    def plain(self) -> Reading:
        """The settings for evaluation, without random changes."""
        return replace(self, augmentation="none", kernels="bilinear")


class ImageDataset(Dataset):
    """Images in files, opened on demand.

    Args:
        paths: N files.
        targets: (N,) classes, or (N, classes) labels.
        classes: names of the classes.
        reading: how to read the files.
        boxes: (k, 4) boxes of the object for each image; may be computed on access.
        regions: (N, 4) boxes. Each sample is this part of its image; ``boxes`` are then ignored.
    """

    def __init__(
        self,
        paths: Sequence[str],
        targets: Sequence[int] | np.ndarray,
        classes: Sequence[str],
        *,
        reading: Reading | None = None,
        boxes: Sequence[np.ndarray] | None = None,
        regions: np.ndarray | None = None,
    ) -> None:
        # An array: reference counts in a list of a million strings would make workers copy its memory.
        self._paths = np.array([os.fsencode(p) for p in paths])
        self.targets = as_targets(targets, len(paths), len(classes))
        self.classes = tuple(classes)
        self.reading = reading or Reading()
        self.boxes = boxes
        self.regions = regions
        self.channels = self.reading.channels

    def plain(self) -> ImageDataset:
        same = copy.copy(self)
        same.reading = self.reading.plain()
        return same

    def objects(self, i: int) -> np.ndarray | None:
        if self.boxes is None or self.regions is not None:
            return None
        if self.reading.image_size is None:
            return self.boxes[i]
        with self.open(i, value_range=self.reading.value_range) as image:
            return self.boxes[i] * (self.reading.image_size / np.tile(np.array(image.size), 2))

    @property
    def is_remote(self) -> bool:
        schemes = tuple(map(os.fsencode, SCHEMES))
        return any(path.startswith(schemes) for path in self._paths.tolist())

    def path(self, i: int) -> str:
        """Path of image ``i``."""
        return os.fsdecode(self._paths[i])

    def open(self, i: int, **options: Any) -> Pyramid:
        """Open image ``i``; options are those of `foveal.images.open_image`.

        Raises:
            ImageError: it cannot be opened.
        """
        return open_image(self.path(i), channels=self.channels, headers=self.reading.headers, **options)

    def load(self, epoch: int, indices: Sequence[int], seed: int, first_looks: FirstLooks | None = None) -> Loaded:
        good: list[int] = []
        items: list[Any] = []
        errors: list[tuple[str, str]] = []
        for i in indices:
            try:
                items.append(self._open(epoch, i, seed, first_looks))
                good.append(i)
            except FovealError as error:
                errors.append((shown(self.path(i)), str(error)))
        index = np.array(good, dtype=np.int64)
        side = self.reading.image_size or 1
        pixels = (
            torch.stack(items)
            if items and self.reading.image_size
            else items or torch.empty(0, self.channels, side, side)
        )
        return Loaded(pixels, torch.from_numpy(self.targets[index]), index, errors)

    def _open(self, epoch: int, i: int, seed: int, first_looks: FirstLooks | None) -> View | Tensor:
        """Open an image as a view, or as pixels if ``image_size`` is set."""
        path, masks = self.path(i), self.reading.masks
        mask = None if masks is None else find_mask(masks, path)
        image = self.open(i, value_range=self.reading.value_range, mask=mask)
        rng = generator(seed, epoch, i, "augmentation")
        region = (0, 0, *image.size) if self.regions is None else self.regions[i]
        boxes = self.boxes[i] if self.boxes is not None and self.regions is None else None
        kernels = KERNELS if self.reading.kernels == "tnet" else ("bilinear",)
        augmentation, side = self.reading.augmentation, self.reading.image_size
        of_pixels = side is not None and augmentation == "randaugment"
        change = draw_change("light" if of_pixels else augmentation, region, boxes, rng, kernels)
        if side is not None:
            with image:
                pixels = change_pixels(change, image, side, self.reading.shorter_side)
            return rand_augment(pixels, rng) if of_pixels else pixels
        view = change_view(change, image)
        if first_looks is not None:
            view.prefetch(first_looks(view.size))
        return view


def torchvision_set(kind: str, root: Path, train: bool, download: bool) -> Any:
    """Load a data set of torchvision by its class name; missing files are downloaded if ``download``.

    Raises:
        DataError: the files are missing, damaged, or cannot be downloaded.
    """
    from torchvision import datasets

    read: Any = getattr(datasets, kind)
    try:
        return read(root, train=train)
    except Exception as error:  # torchvision raises many types for damaged files
        if not download:
            raise DataError(
                f"{root}: there is no {kind} in this folder, or a file is damaged; correct the path, or download it"
            ) from error
        try:
            return read(root, train=train, download=True)
        except Exception as failed:
            reason = str(failed).strip().partition("\n")[0] or type(failed).__name__
            raise DataError(
                f"{root}: {kind} cannot be downloaded to this folder ({reason}); copy its files there"
            ) from failed

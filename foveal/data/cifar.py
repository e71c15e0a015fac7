"""CIFAR-10 and CIFAR-100: 60,000 images of 32 x 32 pixels, held in memory.

torchvision downloads, checks and reads the files (https://www.cs.toronto.edu/~kriz/cifar.html); they may also be there
already. The augmentation is the one that residual networks were published with: pad by 4 pixels, crop, mirror.

Example:
    >>> cifar10("/nowhere", download=False)
    Traceback (most recent call last):
    ...
    foveal.errors.DataError: /nowhere: there is no CIFAR10 in this folder, or a file is damaged; correct the path, or let it be downloaded
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from foveal.data.augmentation import TensorAugmentation
from foveal.data.dataset import TensorDataset, torchvision_set
from foveal.data.module import DATA_SETS, DataModule
from foveal.draws import generator
from foveal.errors import ConfigError


@DATA_SETS.register
def cifar10(
    root: str, download: bool = True, train: int | None = None, val: int = 0, augmentation: TensorAugmentation = "crop_flip", seed: int = 0
) -> DataModule:
    """CIFAR-10: 50,000 training and 10,000 test images of ten classes.

    Args:
        root: folder that holds the archive's folder, ``cifar-10-batches-py``.
        download: fetch what is not there.
        train: use only the first so many training images, in the archive's order, which is random: classes are nearly balanced. All if
            None.
        val: validation images, drawn at random, whatever their class, out of the training images before ``train`` counts them.
        augmentation: what happens to training images: ``crop_flip`` or ``none``.
        seed: decides which images are kept for validation.

    Raises:
        ConfigError: more images are asked for than there are, or fewer than can be.
        DataError: the files are not there, damaged, or cannot be downloaded.
    """
    return _cifar("CIFAR10", root, download, train, val, augmentation, seed)


@DATA_SETS.register
def cifar100(
    root: str, download: bool = True, train: int | None = None, val: int = 0, augmentation: TensorAugmentation = "crop_flip", seed: int = 0
) -> DataModule:
    """CIFAR-100: 50,000 training and 10,000 test images of a hundred classes.

    Args:
        root: folder that holds the archive's folder, ``cifar-100-python``.
        download: fetch what is not there.
        train: use only the first so many training images, in the archive's order, which is random: classes are nearly balanced. All if
            None.
        val: validation images, drawn at random, whatever their class, out of the training images before ``train`` counts them.
        augmentation: what happens to training images: ``crop_flip`` or ``none``.
        seed: decides which images are kept for validation.

    Raises:
        ConfigError: more images are asked for than there are, or fewer than can be.
        DataError: the files are not there, damaged, or cannot be downloaded.
    """
    return _cifar("CIFAR100", root, download, train, val, augmentation, seed)


def _cifar(kind: str, root: str, download: bool, train: int | None, val: int, augmentation: str, seed: int) -> DataModule:
    parts = {split: _read(kind, Path(root).expanduser(), split == "train", download) for split in ("train", "test")}
    (images, targets, classes), (test_images, test_targets, _) = parts["train"], parts["test"]
    rows = generator(seed, 0, 0, "hold out").permutation(len(targets))
    if val < 0:
        raise ConfigError(f"data {kind.lower()}: val={val} is no number of images; give 0 for none")
    if train is not None and train < 1:
        raise ConfigError(f"data {kind.lower()}: train={train} leaves nothing to train on; give 1 or more, or leave it out for all")
    held, kept = np.sort(rows[:val]), np.sort(rows[val:])
    if not len(kept) or (train is not None and train > len(kept)):
        raise ConfigError(
            f"data {kind.lower()}: train={train} with val={val} cannot be had from {len(targets)} training images; ask for fewer"
        )
    kept = kept[:train]
    return DataModule(
        classes,
        train=TensorDataset(images[kept], targets[kept], classes, augmentation=augmentation),
        val=TensorDataset(images[held], targets[held], classes) if val else None,
        test=TensorDataset(test_images, test_targets, classes),
        name=kind.lower(),
    )


def _read(kind: str, root: Path, train: bool, download: bool) -> tuple[torch.Tensor, np.ndarray, tuple[str, ...]]:
    """(N, 3, 32, 32) uint8 images of a split, their targets, and the classes."""
    found = torchvision_set(kind, root, train, download)
    pixels = torch.from_numpy(np.ascontiguousarray(found.data.transpose(0, 3, 1, 2)))
    return pixels, np.array(found.targets, dtype=np.int64), tuple(found.classes)

"""CIFAR-10 and CIFAR-100: 60,000 images of 32 x 32 pixels, held in memory.

torchvision downloads, verifies and reads the files (https://www.cs.toronto.edu/~kriz/cifar.html).

Example:
    >>> cifar10("/nowhere", download=False)
    Traceback (most recent call last):
    ...
    foveal.errors.DataError: /nowhere: there is no CIFAR10 in this folder, or a file is damaged; correct the path...
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from foveal.data.augmentation import TensorAugmentation
from foveal.data.dataset import TensorDataset, torchvision_set
from foveal.data.module import DATA_SETS, DataModule
from foveal.data.options import document_options
from foveal.draws import generator
from foveal.errors import ConfigError

HELP = {
    "train": "number of training images, the first of the archive, which is in random order; None takes all.",
    "val": "number of validation images, held out at random from the training images before ``train`` is applied.",
    "augmentation": "random changes to training images: ``crop_flip``, ``randaugment`` after it, or ``none``.",
}


@DATA_SETS.register
@document_options(**HELP)
def cifar10(
    root: str,
    download: bool = True,
    train: int | None = None,
    val: int = 0,
    augmentation: TensorAugmentation = "crop_flip",
    seed: int = 0,
) -> DataModule:
    """CIFAR-10: 50,000 training and 10,000 test images of ten classes.

    Args:
        root: folder that holds ``cifar-10-batches-py``.

    Raises:
        ConfigError: the numbers of images are impossible.
        DataError: the files are missing, damaged, or cannot be downloaded.
    """
    return _cifar("CIFAR10", root, download, train, val, augmentation, seed)


@DATA_SETS.register
@document_options(**HELP)
def cifar100(
    root: str,
    download: bool = True,
    train: int | None = None,
    val: int = 0,
    augmentation: TensorAugmentation = "crop_flip",
    seed: int = 0,
) -> DataModule:
    """CIFAR-100: 50,000 training and 10,000 test images of a hundred classes.

    Args:
        root: folder that holds ``cifar-100-python``.

    Raises:
        ConfigError: the numbers of images are impossible.
        DataError: the files are missing, damaged, or cannot be downloaded.
    """
    return _cifar("CIFAR100", root, download, train, val, augmentation, seed)


def _cifar(
    kind: str, root: str, download: bool, train: int | None, val: int, augmentation: str, seed: int
) -> DataModule:
    parts = {
        split: _read_split(kind, Path(root).expanduser(), split == "train", download) for split in ("train", "test")
    }
    (images, targets, classes), (test_images, test_targets, _) = parts["train"], parts["test"]
    rows = generator(seed, 0, 0, "hold out").permutation(len(targets))
    if val < 0:
        raise ConfigError(f"data {kind.lower()}: val={val} is not a number of images; give 0 for none")
    if train is not None and train < 1:
        raise ConfigError(
            f"data {kind.lower()}: train={train} leaves no training images; give 1 or more, or leave it out for all"
        )
    held, kept = np.sort(rows[:val]), np.sort(rows[val:])
    if not len(kept) or (train is not None and train > len(kept)):
        raise ConfigError(
            f"data {kind.lower()}: train={train} and val={val} are more than the {len(targets)} training images; ask "
            "for fewer"
        )
    kept = kept[:train]
    return DataModule(
        classes,
        train=TensorDataset(images[kept], targets[kept], classes, augmentation=augmentation),
        val=TensorDataset(images[held], targets[held], classes) if val else None,
        test=TensorDataset(test_images, test_targets, classes),
        name=kind.lower(),
    )


def _read_split(kind: str, root: Path, train: bool, download: bool) -> tuple[torch.Tensor, np.ndarray, tuple[str, ...]]:
    """(N, 3, 32, 32) uint8 images of a split, their targets, and the classes."""
    found = torchvision_set(kind, root, train, download)
    pixels = torch.from_numpy(np.ascontiguousarray(found.data.transpose(0, 3, 1, 2)))
    return pixels, np.array(found.targets, dtype=np.int64), tuple(found.classes)

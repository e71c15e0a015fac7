"""Annotation files of the published data sets: boxes read on demand, and the layout of CUB-200-2011 and NABirds.

Example:
    >>> boxes = LazyBoxes(["a.xml", "b.xml"], lambda file: np.empty((0, 4)))
    >>> len(boxes), boxes[0].shape
    (2, (0, 4))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from foveal.data.dataset import ImageDataset, Reading
from foveal.data.folder import assemble, existing
from foveal.data.module import DataModule
from foveal.errors import DataError


@dataclass(frozen=True)
class LazyBoxes(Sequence[np.ndarray]):
    """Boxes read from annotation files on demand.

    Attributes:
        files: annotation file of each image.
        read: reads the (k, 4) boxes of a file.
    """

    files: Sequence[str]
    read: Callable[[str], np.ndarray]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i):  # type: ignore[override]
        return self.read(self.files[i])


def bird_tables(root: str, inner: str, reading: Reading, val_fraction: float, seed: int) -> DataModule:
    """Load a data set in the layout of CUB-200-2011: a folder ``images``, and tables with one line per image.

    Args:
        root: the folder that holds ``images.txt``, or a folder above it.
        inner: name of the folder inside ``root``.
        reading: how images are read.
        val_fraction: share of each class's training images held out for validation.
        seed: seed of the random split.
    """
    top = existing(root)
    top = top / inner if not (top / "images.txt").exists() and (top / inner).is_dir() else top
    files, labels, training, bounds = (
        _read_table(top / f"{name}.txt")
        for name in ("images", "image_class_labels", "train_test_split", "bounding_boxes")
    )
    used = sorted(set(labels.values()), key=lambda label: (len(label), label))
    names = _read_table(top / "classes.txt")
    # Only the leaves of the NABirds hierarchy have images. Two leaves can have the same name.
    named = [names.get(label, label) for label in used]
    classes = [f"{name} ({label})" if named.count(name) > 1 else name for name, label in zip(named, used, strict=True)]
    code = {label: i for i, label in enumerate(used)}
    rows: dict[str, list[str]] = {"train": [], "test": []}
    for image in files:
        if image not in labels or image not in training:
            raise DataError(f"{top / 'images.txt'}: the image {image} has no label or split; unpack the archive again")
        rows["train" if training[image] == "1" else "test"].append(image)
    listings = {
        split: (
            [str(top / "images" / files[image]) for image in images],
            np.array([code[labels[image]] for image in images], dtype=np.int64),
        )
        for split, images in rows.items()
        if images
    }
    data = assemble(str(top), classes, listings, reading, val_fraction, seed)
    box_of = {str(top / "images" / files[image]): bounds[image] for image in files if image in bounds}
    for split in (data.train, data.val, data.test):
        if isinstance(split, ImageDataset):
            split.boxes = [_box_of(box_of.get(split.path(i), "")) for i in range(len(split))]
    return data


def _box_of(text: str) -> np.ndarray:
    """Parse ``x y width height`` into a (1, 4) box; empty text gives (0, 4)."""
    x, y, w, h = map(float, text.split()) if text else (0.0, 0.0, 0.0, 0.0)
    return np.array([[y, x, y + h, x + w]])[: bool(text)]


def _read_table(path: Path) -> dict[str, str]:
    """Read lines of ``key value``; the value may contain spaces."""
    return dict(line.strip().split(" ", 1) for line in read_lines(existing(path)) if " " in line.strip())


def read_lines(path: Path) -> list[str]:
    """Lines of a UTF-8 text file."""
    return path.read_text(encoding="utf-8").splitlines()

"""Data sets of the user's own: class folders, and manifests.

Example:
    >>> import tempfile, pathlib
    >>> from PIL import Image
    >>> root = pathlib.Path(tempfile.mkdtemp())
    >>> for name in ("cat/1", "cat/2", "dog/1", "dog/2"):
    ...     (root / name).parent.mkdir(exist_ok=True)
    ...     Image.new("RGB", (40, 30)).save(root / f"{name}.png")
    >>> data = folder(str(root), val_fraction=0.5)
    >>> data.classes, len(data.train), len(data.val)
    (('cat', 'dog'), 2, 2)
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from foveal.choices import SPLITS
from foveal.data.augmentation import Augmentation
from foveal.data.dataset import ImageDataset, Reading, Resizing
from foveal.data.module import DataModule, register
from foveal.draws import generator
from foveal.errors import DataError
from foveal.images import SUFFIXES


@register
def folder(
    root: str, val_fraction: float = 0.1, seed: int = 0, augmentation: Augmentation = "light", channels: int = 3,
    value_range: tuple[float, float] | None = None, image_size: int | None = None, kernels: Resizing = "bilinear",
) -> DataModule:  # fmt: skip
    """Images in one folder for each class.

    ``root/train/<class>/...``, ``root/val/...`` and ``root/test/...`` are the splits where they exist; else ``root/<class>/...`` is
    split into training and validation images, class by class. Folders inside a class are searched too; files that are no images are
    passed over.

    Args:
        root: the folder.
        val_fraction: share of each class that is kept for validation where there is no ``val`` folder; 0 for none, 1 for all.
        seed: decides which images are kept for validation.
        augmentation: random changes to training images: ``light`` crops a little and mirrors, ``inception`` crops as is usual for ImageNet,
            ``tnet`` and ``tnet_birds`` do what TNet's paper does.
        channels: bands of the images; grey images are repeated where 3 are wanted.
        value_range: lowest and highest value of floating-point images.
        image_size: resize whole images to this side first, without keeping their aspect ratio; None leaves them as they are.
        kernels: with ``image_size``, ``bilinear`` or ``tnet`` (one of eight kernels, drawn anew for each training image).

    Raises:
        DataError: no such folder, a class folder without an image, or classes that training does not know.
    """
    reading = Reading(augmentation, channels, value_range, image_size, kernels)
    top = existing(root)
    found = {split: list_classes(top / split) for split in SPLITS if (top / split).is_dir()} or {"train": list_classes(top)}
    classes = tuple(found["train"] if "train" in found else next(iter(found.values())))
    listings = {}
    for split, by_class in found.items():
        strange = sorted(set(by_class) - set(classes))
        if strange:
            raise DataError(
                f"{top / split / strange[0]}: there is no training image of the class {strange[0]!r}; add some or remove the folder"
            )
        listings[split] = (
            [path for name in by_class for path in by_class[name]],
            np.array([classes.index(name) for name in by_class for _ in by_class[name]], dtype=np.int64),
        )
    return assemble(str(top), classes, listings, reading, val_fraction, seed)


@register
def manifest(
    file: str, root: str | None = None, val_fraction: float = 0.1, seed: int = 0, augmentation: Augmentation = "light", channels: int = 3,
    value_range: tuple[float, float] | None = None, image_size: int | None = None, kernels: Resizing = "bilinear",
) -> DataModule:  # fmt: skip
    """Images listed in a table with the columns ``path``, ``label`` and, if there are splits, ``split`` (train, val or test).

    Args:
        file: the table, CSV or Parquet.
        root: folder that the paths start from; that of the table if None.
        val_fraction: share of each class's training images that is kept for validation where no row says ``val``.
        seed: decides which images are kept for validation.
        augmentation: random changes to training images: ``light`` crops a little and mirrors, ``inception`` crops as is usual for ImageNet,
            ``tnet`` and ``tnet_birds`` do what TNet's paper does.
        channels: bands of the images; grey images are repeated where 3 are wanted.
        value_range: lowest and highest value of floating-point images.
        image_size: resize whole images to this side first, without keeping their aspect ratio; None leaves them as they are.
        kernels: with ``image_size``, ``bilinear`` or ``tnet`` (one of eight kernels, drawn anew for each training image).

    Raises:
        DataError: a table that cannot be read, a column or an image that is missing, a label or split that is unknown.
    """
    reading = Reading(augmentation, channels, value_range, image_size, kernels)
    table = existing(file)
    base = table.parent if root is None else existing(root)
    rows: dict[str, list[tuple[str, str, int]]] = {}
    for number, (path, label, split) in _rows(table):
        if not path or not label:
            raise DataError(f"{table}: row {number} has no {'label' if path else 'path'}; complete it or remove it")
        if split not in SPLITS:
            raise DataError(f"{table}: row {number} has the split {split!r}; use train, val or test")
        rows.setdefault(split, []).append((str(base / path), label, number))
    if not rows:
        raise DataError(f"{table}: there are no rows; list at least one image")
    classes = tuple(sorted({label for _, label, _ in rows.get("train", next(iter(rows.values())))}))
    code = {label: i for i, label in enumerate(classes)}
    every = [row for of_split in rows.values() for row in of_split]
    unknown = next(((label, number) for _, label, number in every if label not in code), None)
    if unknown:
        raise DataError(
            f"{table}: row {unknown[1]} has the label {unknown[0]!r}, which no training row has; correct it or add training images of it"
        )
    missing = [(path, number) for path, _, number in every if not Path(path).exists()]
    if missing:
        path, number = missing[0]
        raise DataError(
            f"{table}: {len(missing)} of {len(every)} images are missing, first {path} in row {number}; correct the paths or set root"
        )
    listings = {
        split: ([path for path, _, _ in of_split], np.array([code[label] for _, label, _ in of_split], dtype=np.int64))
        for split, of_split in rows.items()
    }
    return assemble(str(table), classes, listings, reading, val_fraction, seed)


def _rows(table: Path) -> Iterator[tuple[int, tuple[str, str, str]]]:
    """(row number as an editor shows it, (path, label, split)) of a table."""
    if table.suffix.lower() in (".parquet", ".pq"):
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            records: Iterable[dict] = pq.read_table(table).to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                f"{table}: this is not a Parquet file that can be read ({str(error).splitlines()[0]}); write it anew"
            ) from error
        first = 1
    else:
        try:
            with table.open(encoding="utf-8-sig", newline="") as lines:
                records = list(csv.DictReader(lines))
        except (UnicodeDecodeError, csv.Error, OSError) as error:
            raise DataError(f"{table}: this is not a CSV file in UTF-8 that can be read ({error}); save it as one") from error
        first = 2
    for number, record in enumerate(records, start=first):
        for column in ("path", "label"):
            if column not in record:
                raise DataError(f"{table}: the column {column!r} is missing; name the columns path, label and, if there are splits, split")
        path, label, split = (str("" if record.get(k) is None else record[k]).strip() for k in ("path", "label", "split"))
        yield number, (path, label, split or "train")


def existing(path: str | Path) -> Path:
    """The path, if there is something.

    Raises:
        DataError: there is nothing.
    """
    path = Path(path).expanduser()
    if not path.exists():
        where = "" if path.is_absolute() else f" in {Path.cwd()}"
        raise DataError(f"{path}: there is no such file or folder{where}; correct the path")
    return path


def list_images(directory: str | Path, suffixes: tuple[str, ...] = SUFFIXES) -> list[str]:
    """Paths of the images in a folder and the folders in it, sorted; hidden ones are passed over."""
    found: list[str] = []
    for entry in sorted(os.scandir(directory), key=lambda e: e.name):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            found += list_images(entry.path, suffixes)
        elif entry.name.lower().endswith(suffixes):
            found.append(entry.path)
    return found


def list_classes(directory: Path, suffixes: tuple[str, ...] = SUFFIXES) -> dict[str, list[str]]:
    """Class to its images, sorted by name.

    Raises:
        DataError: there are no class folders, or one has no image.
    """
    try:
        names = sorted(e.name for e in os.scandir(directory) if e.is_dir() and not e.name.startswith("."))
    except OSError as error:
        raise DataError(
            f"{directory}: this is not a folder that can be read; give the folder that holds one folder for each class"
        ) from error
    if not names:
        raise DataError(f"{directory}: there are no class folders in it; put the images of each class in a folder of its own")
    by_class = {name: list_images(directory / name, suffixes) for name in names}
    empty = next((name for name in names if not by_class[name]), None)
    if empty is not None:
        raise DataError(f"{directory / empty}: there is no image in this class folder; add some or remove the folder")
    return by_class


def hold_out(targets: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """(N,) bool: the share of each class to hold out, rounded.

    At least one image of a class that has two, and never the last of a class unless ``fraction`` is 1.
    """
    held = np.zeros(len(targets), dtype=bool)
    for label in np.unique(targets):
        rows = np.flatnonzero(targets == label)
        count = len(rows) if fraction >= 1 else min(max(round(fraction * len(rows)), 1 if fraction > 0 else 0), len(rows) - 1)
        held[generator(seed, 0, int(label), "hold out").permutation(rows)[:count]] = True
    return held


def assemble(
    name: str,
    classes: Sequence[str],
    listings: dict[str, tuple[list[str], np.ndarray]],
    reading: Reading,
    val_fraction: float = 0.0,
    seed: int = 0,
) -> DataModule:
    """Data sets of (paths, targets) listings, with validation images held out of the training ones where there is no listing of them."""
    if "val" not in listings and "train" in listings and val_fraction > 0:
        paths, targets = listings["train"]
        held = hold_out(targets, val_fraction, seed)
        for split, rows in (("train", np.flatnonzero(~held)), ("val", np.flatnonzero(held))):
            listings[split] = ([paths[i] for i in rows], targets[rows])
    splits = {
        split: ImageDataset(paths, targets, classes, reading=reading if split == "train" else reading.plain())
        for split, (paths, targets) in listings.items()
        if len(paths)
    }
    return DataModule(tuple(classes), name=name, **splits)

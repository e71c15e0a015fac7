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
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from foveal.choices import SPLITS
from foveal.data.augmentation import Augmentation
from foveal.data.dataset import ImageDataset, Reading, Resizing
from foveal.data.module import DATA_SETS, DataModule, class_text, same_class
from foveal.draws import generator
from foveal.errors import DataError
from foveal.images import SUFFIXES, LeftOut, walk
from foveal.images.walk import set_apart, why_left_out

SPLIT_NAMES = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val", "test": "test",
    "testing": "test",
}  # fmt: skip
"""What people call a split, in lower case, to its name here."""


@DATA_SETS.register
def folder(
    root: str, val_fraction: float = 0.1, seed: int = 0, augmentation: Augmentation = "light", channels: int = 3,
    value_range: tuple[float, float] | None = None, image_size: int | None = None, kernels: Resizing = "bilinear",
) -> DataModule:  # fmt: skip
    """Images in one folder for each class.

    ``root/train/<class>/...``, ``root/val/...`` and ``root/test/...`` are the splits where they exist, also under the names
    ``training``, ``valid``, ``validation``, ``dev`` and ``testing``, in upper or lower case; else ``root/<class>/...`` is split into
    training and validation images, class by class. Folders inside a class are searched too. ``notes`` say what is left out.

    Args:
        root: the folder.
        val_fraction: share of each class that is kept for validation where there is no ``val`` folder; 0 for none, 1 for all.
        seed: decides which images are kept for validation.
        augmentation: random changes to training images: ``light`` crops a little and mirrors, ``inception`` crops as is usual for ImageNet,
            ``tnet`` and ``tnet_birds`` do what TNet's paper does.
        channels: bands of the images; grey images are repeated where 3 are wanted.
        value_range: stored values that are black and white, say 0,4095; those of the images' type if None, which signed and
            floating-point images do not have.
        image_size: resize whole images to this side first, without keeping their aspect ratio; None leaves them as they are.
        kernels: with ``image_size``, ``bilinear`` or ``tnet`` (one of eight kernels, drawn anew for each training image).

    Raises:
        DataError: no such folder, no image in a class folder of the training images or in a split, classes that training does not
            know, or two folders for one split.
    """
    reading = Reading(augmentation, channels, value_range, image_size, kernels)
    top = existing(root)
    notes: list[str] = []
    left_out = LeftOut()
    folders = _split_folders(top, left_out, notes) or {"train": top}
    found = {split: class_folders(where, left_out=left_out) for split, where in folders.items()}
    first = next(iter(found))  # the training images, where there are any
    _check_images(folders[first], found[first])
    classes = _classes(found[first], notes)
    code = {same_class(name): i for i, name in enumerate(classes)}
    listings = {}
    for split, by_class in found.items():
        strange = next((name for name, paths in by_class.items() if paths and same_class(name) not in code), None)
        if strange is not None:
            advice = _similar(strange, classes) or "add some or remove the folder"
            raise DataError(f"{folders[split] / strange}: there is no training image of the class {strange!r}; {advice}")
        listings[split] = (
            [path for paths in by_class.values() for path in paths],
            np.array([code[same_class(name)] for name, paths in by_class.items() for _ in paths], dtype=np.int64),
        )
        absent = [name for i, name in enumerate(classes) if i not in set(listings[split][1].tolist())]
        if len(absent) == len(classes):
            raise DataError(f"{folders[split]}: there is no image in its class folders; add some or remove the folder")
        if absent:
            notes.append(f"{folders[split]} has no image of {len(absent)} of {len(classes)} classes: {_few(absent)}")
    return assemble(str(top), classes, listings, reading, val_fraction, seed, [*notes, *left_out.lines()])


@DATA_SETS.register
def manifest(
    file: str, root: str | None = None, val_fraction: float = 0.1, seed: int = 0, augmentation: Augmentation = "light", channels: int = 3,
    value_range: tuple[float, float] | None = None, image_size: int | None = None, kernels: Resizing = "bilinear",
) -> DataModule:  # fmt: skip
    """Images listed in a table with the columns ``path``, ``label`` and, if there are splits, ``split`` (train, val or test, or another
    name of theirs that `folder` knows).

    Args:
        file: the table, CSV or Parquet.
        root: folder that the paths start from; that of the table if None.
        val_fraction: share of each class's training images that is kept for validation where no row says ``val``.
        seed: decides which images are kept for validation.
        augmentation: random changes to training images: ``light`` crops a little and mirrors, ``inception`` crops as is usual for ImageNet,
            ``tnet`` and ``tnet_birds`` do what TNet's paper does.
        channels: bands of the images; grey images are repeated where 3 are wanted.
        value_range: stored values that are black and white, say 0,4095; those of the images' type if None, which signed and
            floating-point images do not have.
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
        if split.casefold() not in SPLIT_NAMES:
            raise DataError(f"{table}: row {number} has the split {split!r}; use train, val or test")
        rows.setdefault(SPLIT_NAMES[split.casefold()], []).append((str(base / path), label, number))
    if not rows:
        raise DataError(f"{table}: there are no rows; list at least one image")
    notes: list[str] = []
    classes = _classes({label for _, label, _ in rows.get("train", next(iter(rows.values())))}, notes)
    code = {same_class(name): i for i, name in enumerate(classes)}
    every = [row for of_split in rows.values() for row in of_split]
    unknown = next(((label, number) for _, label, number in every if same_class(label) not in code), None)
    if unknown:
        advice = _similar(unknown[0], classes) or "correct it or add training images of it"
        raise DataError(f"{table}: row {unknown[1]} has the label {unknown[0]!r}, which no training row has; {advice}")
    missing = [(path, number) for path, _, number in every if not Path(path).exists()]
    if missing:
        path, number = missing[0]
        raise DataError(
            f"{table}: {len(missing)} of {len(every)} images are missing, first {path} in row {number}; correct the paths or set root"
        )
    listings = {
        split: ([path for path, _, _ in of_split], np.array([code[same_class(label)] for _, label, _ in of_split], dtype=np.int64))
        for split, of_split in rows.items()
    }
    return assemble(str(table), classes, listings, reading, val_fraction, seed, notes)


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


def list_images(directory: str | Path, suffixes: tuple[str, ...] = SUFFIXES, left_out: LeftOut | None = None) -> list[str]:
    """Paths of the images in a folder and the folders in it, sorted; see `foveal.images.walk`.

    Args:
        directory: the folder.
        suffixes: of the images, in lower case.
        left_out: counts what is left out, if given.

    Raises:
        DataError: a folder cannot be searched.
    """
    found = walk(directory, suffixes)
    for _, reason in found.unreadable:
        raise DataError(reason)
    if left_out is not None:
        left_out.join(found.left_out)
    return found.paths


def class_folders(directory: Path, suffixes: tuple[str, ...] = SUFFIXES, left_out: LeftOut | None = None) -> dict[str, list[str]]:
    """Class folder to its images, sorted by name; a folder may have none. Arguments as of `list_images`.

    Raises:
        DataError: there are no class folders, or one cannot be searched.
    """
    by_class: dict[str, list[str]] = {name: [] for name in _folders(directory)}
    if not by_class:
        raise DataError(f"{directory}: there are no class folders in it; put the images of each class in a folder of its own")
    beside = LeftOut()
    start = len(str(directory / "x")) - 1
    for path in list_images(directory, suffixes, left_out):
        name, inside, _ = path[start:].partition(os.sep)
        if inside:
            by_class[name].append(path)
        else:
            beside.add("image beside the class folders", path)
    if left_out is not None:
        left_out.join(beside)
    return by_class


def list_classes(directory: Path, suffixes: tuple[str, ...] = SUFFIXES, left_out: LeftOut | None = None) -> dict[str, list[str]]:
    """`class_folders`, each of which has to have an image.

    Raises:
        DataError: see `class_folders`; or one has no image.
    """
    by_class = class_folders(directory, suffixes, left_out)
    _check_images(directory, by_class, suffixes)
    return by_class


def _check_images(directory: Path, by_class: dict[str, list[str]], suffixes: tuple[str, ...] = SUFFIXES) -> None:
    empty = next((directory / name for name, paths in by_class.items() if not paths), None)
    if empty is not None:
        why = "".join(f", {line}" for line in walk(empty, suffixes).left_out.lines())
        raise DataError(f"{empty}: there is no image in this class folder{why}; add some or remove the folder")


def _folders(directory: Path) -> list[str]:
    """Names of the folders in a folder, sorted, without those that no walk enters."""
    try:
        with os.scandir(directory) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir() and set_apart(entry.name) is None)
    except OSError as error:
        raise DataError(
            f"{directory}: this is not a folder that can be read; give the folder that holds one folder for each class"
        ) from error


def _split_folders(top: Path, left_out: LeftOut, notes: list[str]) -> dict[str, Path]:
    """Split to its folder; empty where the folders are classes."""
    names = _folders(top)
    by_split: dict[str, list[str]] = {}
    for name in names:
        if split := SPLIT_NAMES.get(name.casefold()):
            by_split.setdefault(split, []).append(name)
    others = [name for name in names if name.casefold() not in SPLIT_NAMES]
    # One folder "valid" beside others may be a class, as its neighbour "invalid" is.
    if not by_split or (others and len(by_split) == 1 and "train" not in by_split and not set(SPLITS) & set(names)):
        return {}
    for split, same in by_split.items():
        if len(same) > 1:
            raise DataError(f"{top / same[0]}: this folder and {same[1]!r} are both the {split} split; keep one of them, or merge them")
        if same[0] != split:
            notes.append(f"{top / same[0]} is taken as the {split} split")
    inside = [path for name in others for path in list_images(top / name)]
    with os.scandir(top) as entries:
        inside += sorted(entry.path for entry in entries if entry.is_file() and why_left_out(entry) is None)
    if inside:
        left_out.add("image beside the splits", inside[0], len(inside))
    return {split: top / by_split[split][0] for split in SPLITS if split in by_split}


def _classes(names: Iterable[str], notes: list[str]) -> tuple[str, ...]:
    """The classes behind names, sorted; of several forms of a name the first in that order."""
    forms: dict[str, str] = {}
    alike: dict[str, str] = {}
    for name in sorted(names):
        if forms.setdefault(same_class(name), class_text(name)) != class_text(name):
            notes.append(f"{class_text(name)!r} is written in two Unicode forms, which are one class")
        elif (other := alike.setdefault(_folded(name), class_text(name))) != class_text(name):
            notes.append(f"{other!r} and {class_text(name)!r} differ in case or spaces only, and are two classes")
    return tuple(forms.values())


def _similar(name: str, classes: Sequence[str]) -> str | None:
    """What to do about a name that is a class's but for case or spaces."""
    meant = next((other for other in classes if _folded(other) == _folded(name)), None)
    return meant and f"training has {meant!r}, which differs in case or spaces only: give both the same name"


def _folded(name: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", class_text(name)).casefold().split())


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + ", ..." * (len(names) > 3)


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
    notes: Sequence[str] = (),
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
    data = DataModule(tuple(classes), name=name, **splits)
    data.notes = tuple(notes)
    return data

"""Data sets of your own images: class folders, and tables of paths and labels.

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
import math
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np

from foveal.choices import SPLITS
from foveal.data.augmentation import Augmentation
from foveal.data.dataset import ImageDataset, Reading, Resizing
from foveal.data.module import DATA_SETS, DataModule, class_key, class_text
from foveal.data.options import document_options
from foveal.draws import generator
from foveal.errors import ConfigError, DataError
from foveal.images import SUFFIXES, LeftOut, walk
from foveal.images.header_index import beside
from foveal.images.uris import is_remote, join, shown
from foveal.images.walk import is_zarr, set_apart, why_left_out
from foveal.importing import need_parquet
from foveal.tasks import MULTICLASS, MULTILABEL, SEPARATOR, TASKS

SPLIT_NAMES = {"train": "train", "training": "train", "test": "test", "testing": "test"} | dict.fromkeys(
    ("val", "valid", "validation", "dev"), "val"
)
"""Standard name of each common name of a split, in lower case."""


def _masks(folder: str | None) -> str | None:
    """The folder of masks, if there is one.

    Raises:
        DataError: it does not exist.
    """
    return None if folder is None else str(existing(folder))


@DATA_SETS.register
@document_options()
def folder(
    root: str,
    val_fraction: float = 0.1,
    seed: int = 0,
    augmentation: Augmentation = "light",
    channels: int = 3,
    value_range: tuple[float, float] | None = None,
    image_size: int | None = None,
    kernels: Resizing = "bilinear",
    masks: str | None = None,
) -> DataModule:
    """Images in one folder per class.

    The splits are ``root/train/<class>/...``, ``root/val/...`` and ``root/test/...``; the names ``training``,
    ``valid``, ``validation``, ``dev`` and ``testing`` work too, in any case. Without split folders,
    ``root/<class>/...`` is split at random into training and validation images of each class. Subfolders of a class are
    searched. ``notes`` list files that were left out.

    Args:
        root: folder of the images.
        val_fraction: share of each class held out for validation if there is no ``val`` folder; 0 for none, 1 for all.

    Raises:
        DataError: the folder is missing; a split or a class of the training images is empty; a split has a class that
            training lacks; or two folders are the same split.
    """
    reading = Reading(augmentation, channels, value_range, image_size, kernels, masks=_masks(masks))
    top = existing(root)
    notes: list[str] = []
    left_out = LeftOut()
    folders = _split_folders(top, left_out, notes) or {"train": top}
    found = {split: class_folders(where, left_out=left_out) for split, where in folders.items()}
    first = next(iter(found))  # the training images, if there are any
    _check_images(folders[first], found[first])
    classes = _classes(found[first], notes)
    code = {class_key(name): i for i, name in enumerate(classes)}
    listings = {}
    for split, by_class in found.items():
        strange = next((name for name, paths in by_class.items() if paths and class_key(name) not in code), None)
        if strange is not None:
            advice = _similar(strange, classes) or "add some or remove the folder"
            raise DataError(
                f"{folders[split] / strange}: there is no training image of the class {strange!r}; {advice}"
            )
        listings[split] = (
            [path for paths in by_class.values() for path in paths],
            np.array([code[class_key(name)] for name, paths in by_class.items() for _ in paths], dtype=np.int64),
        )
        absent = [name for i, name in enumerate(classes) if i not in set(listings[split][1].tolist())]
        if len(absent) == len(classes):
            raise DataError(f"{folders[split]}: there is no image in its class folders; add some or remove the folder")
        if absent:
            notes.append(f"{folders[split]} has no image of {len(absent)} of {len(classes)} classes: {_few(absent)}")
    return assemble(str(top), classes, listings, reading, val_fraction, seed, [*notes, *left_out.lines()])


@DATA_SETS.register
@document_options()
def manifest(
    file: str,
    root: str | None = None,
    task: Annotated[str, tuple(TASKS)] = MULTICLASS.name,
    val_fraction: float = 0.1,
    seed: int = 0,
    augmentation: Augmentation = "light",
    channels: int = 3,
    value_range: tuple[float, float] | None = None,
    image_size: int | None = None,
    kernels: Resizing = "bilinear",
    masks: str | None = None,
) -> DataModule:
    """Images listed in a table with the columns ``path`` and ``label``, and optionally ``split`` (names as for
    `folder`), ``group`` and ``boxes``.

    A group is what images have in common besides their label, such as a patient or a slide. All images of a group are
    in one split: held-out validation images are those of whole groups, with about the same share of each class.

    Boxes are those of the objects that decide the class: ``y0 x0 y1 x1`` in pixels of the image at full resolution,
    with ``|`` between several; none in an empty cell. Random crops keep them inside where they can.

    Paths may be addresses of remote images (``s3://``, ``gs://``, ``az://``, ``https://``), see
    `foveal.images.remote`; whether these exist is not checked before they are read. If `foveal.data.headers` wrote an
    index beside the table, they are opened by it.

    Args:
        file: the table, CSV or Parquet.
        root: folder that paths are relative to, which may be an address; None takes the folder of the table.
        task: ``multiclass``: each image has one label. ``multilabel``: any number of labels, with ``|`` between them;
            none in an empty cell. In Parquet, a list of labels works too.
        val_fraction: share of each class's training images held out for validation if the table has no validation
            images.

    Raises:
        DataError: the table cannot be read, a column or an image is missing, a label or split is unknown, a cell has
            no boxes but other text, or a group has images in two splits.
    """
    table = existing(file)
    headers = str(index) if (index := beside(table)).exists() else None
    reading = Reading(augmentation, channels, value_range, image_size, kernels, masks=_masks(masks), headers=headers)
    base = table.parent if root is None else base_folder(root)
    notes: list[str] = []
    found = read_listing(table, lambda path: placed(path, base), check_task("manifest", task), notes)
    notes += _shared(found.listings)
    data = assemble(
        str(table), found.classes, found.listings, reading, val_fraction, seed, notes, found.groups.get("train")
    )
    data.notes += tuple(_lacking(data))
    for images in (data.train, data.val, data.test):
        if found.boxes is not None and isinstance(images, ImageDataset):
            images.boxes = [found.boxes[images.path(i)] for i in range(len(images))]
    return data


def check_task(data: str, task: str) -> bool:
    """Whether images have several labels.

    Raises:
        ConfigError: there is no such task.
    """
    if task not in TASKS:
        raise ConfigError(f"data {data}: there is no task {task!r}; use one of {', '.join(TASKS)}")
    return TASKS[task] == MULTILABEL


class Listing(NamedTuple):
    """The content of a table of images.

    Attributes:
        classes: names of the classes.
        listings: (paths, targets) of each split.
        groups: groups of the images of each split, empty text for none.
        boxes: boxes by path; None if there is no such column.
    """

    classes: tuple[str, ...]
    listings: dict[str, tuple[list[str], np.ndarray]]
    groups: dict[str, list[str]]
    boxes: dict[str, np.ndarray] | None


def read_listing(table: Path, locate: Callable[[str], str], several: bool, notes: list[str]) -> Listing:
    """Read a table of images, see `manifest`.

    Args:
        table: the table.
        locate: file of a path in it.
        several: whether images have several labels.
        notes: gets sentences for the user.

    Raises:
        DataError: see `manifest`.
    """
    rows: dict[str, list[tuple[str, list[str], int]]] = {}
    groups: dict[str, list[str]] = {}
    boxes: dict[str, np.ndarray] | None = None
    for number, (path, label, split, group, places) in _read_rows(table):
        if not path or not (label or several):
            raise DataError(f"{table}: row {number} has no {'label' if path else 'path'}; complete it or remove it")
        if split.casefold() not in SPLIT_NAMES:
            raise DataError(f"{table}: row {number} has the split {split!r}; use train, val or test")
        rows.setdefault(SPLIT_NAMES[split.casefold()], []).append(
            (locate(path), split_labels(label) if several else [label], number)
        )
        groups.setdefault(SPLIT_NAMES[split.casefold()], []).append(group)
        if places is not None:
            boxes = boxes or {}
            boxes[locate(path)] = _boxes(places, f"{table}: row {number}")
    if not rows:
        raise DataError(f"{table}: there are no rows; list at least one image")
    _check_groups(table, groups)
    first = rows.get("train", next(iter(rows.values())))
    classes = _classes({label for _, labels, _ in first for label in labels}, notes)
    if not classes:
        raise DataError(f"{table}: no training row has a label; give at least two labels")
    if not several and (joined := next((name for name in classes if SEPARATOR in name), None)):
        notes.append(f"{joined!r} is one class; set `data.task` {MULTILABEL.name} if {SEPARATOR} separates labels")
    code = {class_key(name): i for i, name in enumerate(classes)}
    every = [row for of_split in rows.values() for row in of_split]
    unknown = next(
        ((label, number) for _, labels, number in every for label in labels if class_key(label) not in code), None
    )
    if unknown:
        advice = _similar(unknown[0], classes) or "correct it or add training images of it"
        raise DataError(f"{table}: row {unknown[1]} has the label {unknown[0]!r}, which no training row has; {advice}")
    missing = [(path, number) for path, _, number in every if not is_remote(path) and not Path(path).exists()]
    if missing:
        path, number = missing[0]
        raise DataError(
            f"{table}: {len(missing)} of {len(every)} images are missing, first {path} in row {number}; correct the "
            "paths or set root"
        )
    listings = {
        split: (
            [path for path, _, _ in of_split],
            _targets(
                [[code[class_key(label)] for label in labels] for _, labels, _ in of_split], len(classes), several
            ),
        )
        for split, of_split in rows.items()
    }
    return Listing(classes, listings, groups, boxes)


def _boxes(text: str, where: str) -> np.ndarray:
    """(k, 4) boxes in a cell of a table.

    >>> _boxes("1 2 30 40 | 5 6 7 8", "row 2").tolist()
    [[1.0, 2.0, 30.0, 40.0], [5.0, 6.0, 7.0, 8.0]]
    """
    try:
        found = np.array([[float(x) for x in box.split()] for box in split_labels(text)]).reshape(-1, 4)
    except ValueError:
        found = np.full((1, 4), np.nan)
    if not (np.isfinite(found).all() and (found[:, :2] < found[:, 2:]).all()):
        raise DataError(
            f"{where} has the boxes {text!r}; write y0 x0 y1 x1 in pixels for each, with {SEPARATOR} between them"
        )
    return found


def split_labels(text: str) -> list[str]:
    """The labels in a cell of a table.

    >>> split_labels("crack | dust|"), split_labels("")
    (['crack', 'dust'], [])
    """
    return [label for part in text.split(SEPARATOR) if (label := part.strip())]


def _targets(codes: Sequence[Sequence[int]], classes: int, several: bool) -> np.ndarray:
    """(N,) classes, or (N, classes) labels, of the classes of each image."""
    if not several:
        return np.array([one for (one,) in codes], dtype=np.int64)
    targets = np.zeros((len(codes), classes), dtype=bool)
    for row, labels in zip(targets, codes, strict=True):
        row[list(labels)] = True
    return targets


def _shared(listings: Mapping[str, tuple[list[str], np.ndarray]]) -> list[str]:
    """A note if an image is in several splits."""
    seen = Counter(path for paths, _ in listings.values() for path in set(paths))
    shared = [path for path, splits in seen.items() if splits > 1]
    return [f"images in several splits: {len(shared)}, first {shown(min(shared))}"] if shared else []


def _lacking(data: DataModule) -> Iterator[str]:
    """Notes on classes without an image in a split, whose recall cannot be measured there."""
    for split in ("val", "test"):
        images = getattr(data, split)
        absent = [] if images is None else [data.classes[i] for i in np.flatnonzero(images.counts() == 0)]
        if absent:
            yield f"the {split} split has no image of {len(absent)} of {len(data.classes)} classes: {_few(absent)}"


def _check_groups(table: Path, groups: dict[str, list[str]]) -> None:
    """Check that no group has images in two splits.

    Raises:
        DataError: names such a group.
    """
    seen: dict[str, str] = {}
    for split, names in groups.items():
        for name in names:
            if name and seen.setdefault(name, split) != split:
                raise DataError(
                    f"{table}: the group {name!r} has images in {seen[name]} and in {split}; put all images of a group "
                    "in one split, or leave the column group out"
                )


def _read_rows(table: Path) -> Iterator[tuple[int, tuple[str, str, str, str, str | None]]]:
    """Rows of a table: (row number as shown in an editor, (path, label, split, group, boxes)). Boxes are None if there
    is no such column."""
    for number, record in records_of(table):
        for column in ("path", "label"):
            if column not in record:
                raise DataError(
                    f"{table}: the column {column!r} is missing; name the columns path, label and, if there are "
                    "splits, split"
                )
        path, label, split, group = (_cell(record.get(k)) for k in ("path", "label", "split", "group"))
        yield number, (path, label, split or "train", group, _cell(record["boxes"]) if "boxes" in record else None)


def records_of(table: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of a table, CSV or Parquet, with their numbers as shown in an editor.

    Raises:
        DataError: it cannot be read.
    """
    if table.suffix.lower() in (".parquet", ".pq"):
        need_parquet(table)
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
            raise DataError(f"{table}: this is not a CSV file in UTF-8 ({error}); save it as one") from error
        first = 2
    yield from enumerate(records, start=first)


def base_folder(root: str | Path) -> str | Path:
    """The folder that paths of a table are relative to, or its address.

    Raises:
        DataError: there is no such folder, or an address has secrets, which would be stored with the options of a run.
    """
    if is_remote(root) and shown(root) != root:
        raise DataError(f"{shown(root)}: has a query or a user; leave them out, or write whole addresses in the table")
    return root if is_remote(root) else existing(root)


def placed(path: str, base: str | Path) -> str:
    """A path of a table.

    Args:
        path: an address, or a path that is relative to ``base``.
        base: a folder, or an address.
    """
    if is_remote(path):
        return path
    return join(base, path) if isinstance(base, str) else str(base / path)


def _cell(value: Any) -> str:
    """A value of a table as text. Parquet may hold the labels of an image as a list."""
    if isinstance(value, list):
        return SEPARATOR.join(_cell(one) for one in value)
    return "" if value is None else str(value).strip()


def existing(path: str | Path) -> Path:
    """Check that a file or folder exists, and expand ``~``.

    Raises:
        DataError: it does not exist.
    """
    if is_remote(path):
        raise DataError(f"{shown(path)}: only images are read from there; list them in a table (data manifest)")
    path = Path(path).expanduser()
    if not path.exists():
        where = "" if path.is_absolute() else f" in {Path.cwd()}"
        raise DataError(f"{path}: there is no such file or folder{where}; correct the path")
    return path


def list_images(
    directory: str | Path, suffixes: tuple[str, ...] = SUFFIXES, left_out: LeftOut | None = None
) -> list[str]:
    """Sorted paths of the images in a folder and its subfolders; see `foveal.images.walk`.

    Args:
        directory: the folder.
        suffixes: suffixes of images in lower case.
        left_out: collects the files that are left out.

    Raises:
        DataError: a folder cannot be searched.
    """
    found = walk(directory, suffixes)
    for _, reason in found.unreadable:
        raise DataError(reason)
    if left_out is not None:
        left_out.join(found.left_out)
    return found.paths


def class_folders(
    directory: Path, suffixes: tuple[str, ...] = SUFFIXES, left_out: LeftOut | None = None
) -> dict[str, list[str]]:
    """Paths of images by class folder, sorted by name. Classes may be empty. Arguments are those of `list_images`.

    Raises:
        DataError: there are no class folders, or one cannot be searched.
    """
    by_class: dict[str, list[str]] = {name: [] for name in _folders(directory)}
    if not by_class:
        raise DataError(
            f"{directory}: there are no class folders in it; put the images of each class in a separate folder"
        )
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


def list_classes(
    directory: Path, suffixes: tuple[str, ...] = SUFFIXES, left_out: LeftOut | None = None
) -> dict[str, list[str]]:
    """`class_folders`, where every class needs an image.

    Raises:
        DataError: as `class_folders`, or a class has no image.
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
    """Sorted names of the subfolders, without those that `foveal.images.walk` skips."""
    try:
        with os.scandir(directory) as entries:
            folders = [entry for entry in entries if entry.is_dir() and set_apart(entry.name) is None]
            return sorted(entry.name for entry in folders if not is_zarr(entry.path))
    except OSError as error:
        raise DataError(
            f"{directory}: this is not a folder that can be read; give the folder that holds one folder per class"
        ) from error


def _split_folders(top: Path, left_out: LeftOut, notes: list[str]) -> dict[str, Path]:
    """Folders by split; empty if the folders are classes."""
    names = _folders(top)
    by_split: dict[str, list[str]] = {}
    for name in names:
        if split := SPLIT_NAMES.get(name.casefold()):
            by_split.setdefault(split, []).append(name)
    others = [name for name in names if name.casefold() not in SPLIT_NAMES]
    # A single folder "valid" beside others can be a class, for example beside "invalid".
    if not by_split or (others and len(by_split) == 1 and "train" not in by_split and not set(SPLITS) & set(names)):
        return {}
    for split, same in by_split.items():
        if len(same) > 1:
            raise DataError(
                f"{top / same[0]}: this folder and {same[1]!r} are both the {split} split; keep one of them, or merge "
                "them"
            )
        if same[0] != split:
            notes.append(f"{top / same[0]} is taken as the {split} split")
    inside = [path for name in others for path in list_images(top / name)]
    with os.scandir(top) as entries:
        inside += sorted(entry.path for entry in entries if entry.is_file() and why_left_out(entry) is None)
    if inside:
        left_out.add("image beside the splits", inside[0], len(inside))
    return {split: top / by_split[split][0] for split in SPLITS if split in by_split}


def class_list(names: Iterable[str]) -> tuple[str, ...]:
    """Sorted class names, see `folder`."""
    return _classes(names, [])


def _classes(names: Iterable[str], notes: list[str]) -> tuple[str, ...]:
    """Sorted class names. Names that differ in Unicode form only are one class, by the first form."""
    forms: dict[str, str] = {}
    alike: dict[str, str] = {}
    for name in sorted(names):
        if forms.setdefault(class_key(name), class_text(name)) != class_text(name):
            notes.append(f"{class_text(name)!r} is written in two Unicode forms, which are one class")
        elif (other := alike.setdefault(_folded(name), class_text(name))) != class_text(name):
            notes.append(f"{other!r} and {class_text(name)!r} differ in case or spaces only, and are two classes")
    return tuple(forms.values())


def _similar(name: str, classes: Sequence[str]) -> str | None:
    """Advice if a name equals a class except for case or spaces."""
    meant = next((other for other in classes if _folded(other) == _folded(name)), None)
    return meant and f"training has {meant!r}, which differs in case or spaces only: give both the same name"


def _folded(name: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", class_text(name)).casefold().split())


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + ", ..." * (len(names) > 3)


def hold_out(targets: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """(N,) bool mask of a random share of each class, rounded.

    Holds out at least one image of a class with two or more, and all images of a class only if ``fraction`` is 1.
    """
    held = np.zeros(len(targets), dtype=bool)
    for label in np.unique(targets):
        rows = np.flatnonzero(targets == label)
        count = (
            len(rows)
            if fraction >= 1
            else min(max(round(fraction * len(rows)), 1 if fraction > 0 else 0), len(rows) - 1)
        )
        held[generator(seed, 0, int(label), "hold out").permutation(rows)[:count]] = True
    return held


def hold_out_groups(targets: np.ndarray, groups: Sequence[str], fraction: float, seed: int) -> np.ndarray:
    """(N,) bool mask of the images of some groups, about a share of each class.

    Groups are taken in random order, each if this brings the shares of the classes closer to ``fraction``. Then a group
    is taken for each class of which there is none. All images of a class are held out only if ``fraction`` is 1.

    Args:
        targets: (N,) classes, or (N, classes) of 0 and 1.
        groups: name of the group of each image; images without a name are groups of their own.
        fraction: share to hold out, 0 to 1.
        seed: seed of the order.
    """
    names = [name or f"\0{i}" for i, name in enumerate(groups)]
    of_group = np.unique(names, return_inverse=True)[1]
    labels = np.asarray(targets if targets.ndim == 2 else np.eye(targets.max() + 1)[targets], dtype=float)
    labels = np.column_stack([labels, ~labels.any(1)])  # images without a label are a kind of their own
    counts = np.zeros((of_group.max() + 1, labels.shape[1]))
    np.add.at(counts, of_group, labels)
    shares = (counts / np.maximum(counts.sum(0), 1))[:, counts.any(0)]
    order = generator(seed, 0, 0, "hold out groups").permutation(len(shares))
    taken, held = np.zeros(len(shares), dtype=bool), np.zeros(shares.shape[1])

    def distance(group: int) -> float:
        """Distance of the shares from those wanted with one group more; infinite if training loses a class."""
        after = held + shares[group]
        lost = fraction < 1 and (after > 1 - 1e-9).any()
        return math.inf if lost else float(np.square(after - fraction).sum())

    for group in order:
        if distance(group) < np.square(held - fraction).sum():
            taken[group], held = True, held + shares[group]
    for kind in range(len(held)):  # of each class at least one, if another is left for training
        having = [group for group in order if shares[group, kind] and not held[kind]]
        if having and math.isfinite(distance(best := min(having, key=distance))):
            taken[best], held = True, held + shares[best]
    return taken[of_group]


def assemble(
    name: str,
    classes: Sequence[str],
    listings: dict[str, tuple[list[Any], np.ndarray]],
    reading: Reading,
    val_fraction: float = 0.0,
    seed: int = 0,
    notes: Sequence[str] = (),
    groups: Sequence[str] | None = None,
    make: Callable[..., ImageDataset] = ImageDataset,
) -> DataModule:
    """Make data sets of listings (images, targets); holds out validation images if there is no listing of them.

    ``groups`` are those of the training images, see `hold_out_groups`; none if empty. ``make`` is called with the
    images of a listing, usually paths, as `ImageDataset` is.
    """
    listings, more = hold_out_val(listings, val_fraction, seed, groups)
    splits = {
        split: make(paths, targets, classes, reading=reading if split == "train" else reading.plain())
        for split, (paths, targets) in listings.items()
        if len(paths)
    }
    data = DataModule(tuple(classes), name=name, **splits)
    data.notes = (*notes, *more)
    return data


def hold_out_val(
    listings: Mapping[str, tuple[list[str], np.ndarray]],
    fraction: float,
    seed: int,
    groups: Sequence[str] | None = None,
) -> tuple[dict[str, tuple[list[str], np.ndarray]], list[str]]:
    """Listings with validation images, held out of the training images if there are none; and notes for the user."""
    listings, notes = dict(listings), []
    if "val" not in listings and "train" in listings and fraction > 0:
        paths, targets = listings["train"]
        if (groups and any(groups)) or targets.ndim == 2:
            held = hold_out_groups(targets, groups or [""] * len(paths), fraction, seed)
            if not held.any():
                notes.append("no group is held out for validation, because each has all images of a class")
        else:
            held = hold_out(targets, fraction, seed)
        for split, rows in (("train", np.flatnonzero(~held)), ("val", np.flatnonzero(held))):
            listings[split] = ([paths[i] for i in rows], targets[rows])
    return listings, notes

"""Data set of features of tiles, which `foveal.embedding` or another program made once.

Example:
    >>> import tempfile
    >>> from foveal.features import writing
    >>> root = Path(tempfile.mkdtemp())
    >>> for name in ("cat/1", "cat/2", "dog/1", "dog/2"):
    ...     (root / name).parent.mkdir(exist_ok=True)
    ...     with writing(root / f"{name}.zarr", width=4) as file:
    ...         file.append(np.ones((2, 4)), np.array([[0, 0], [64, 0]]))
    >>> data = features(str(root), val_fraction=0.5)
    >>> data.classes, len(data.train), data.encoder.options
    (('cat', 'dog'), 2, {'features': 4})
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path, PurePath
from typing import Annotated, Any

import numpy as np
import torch

from foveal.data.dataset import Dataset, FirstLooks, Loaded, Reading, as_targets
from foveal.data.folder import SPLIT_NAMES, check_task, class_list, existing, hold_out_val, read_listing
from foveal.data.module import DATA_SETS, DataModule, Encoder, class_key
from foveal.data.options import document_options
from foveal.errors import DataError, FovealError
from foveal.features.files import ENCODER, Header, list_files, read, read_header
from foveal.features.views import Tiles
from foveal.tasks import MULTICLASS, TASKS


@DATA_SETS.register
@document_options()
def features(
    root: str,
    labels: str | None = None,
    coarse: str | None = None,
    task: Annotated[str, tuple(TASKS)] = MULTICLASS.name,
    val_fraction: float = 0.1,
    seed: int = 0,
) -> DataModule:
    """Features of tiles in files, HDF5 or Zarr, one file an image; see `foveal.features.files` for the layout.

    Models that read features are trained on them: ``mil`` and, with ``coarse``, ``tile_scan``. Their options that
    decide features, such as the backbone, are those with which the features were made; its weights are in the folder,
    too, so the trained model also classifies images. Models trained on features of other programs classify features.

    Args:
        root: folder of the files. It is searched with its subfolders.
        labels: table as of `foveal.data.folder.manifest`, with the columns ``path`` and ``label``. A path is that of
            the image or of the file; its end, without suffix, is the path of a file in ``root``. If None, files are in
            one folder for each class, and folders of classes may be in folders of splits, as of
            `foveal.data.folder.folder`.
        coarse: folder of features of the same tiles at a coarser level; for models that choose tiles by these.
        task: with ``labels``: ``multiclass`` or ``multilabel``.
        val_fraction: share of each class's training images held out for validation if there are no validation images.

    Raises:
        DataError: there are no files, one cannot be read or is of another network than the others, an image has no
            label, two images of the table have one file, or see `foveal.data.folder.manifest`.
    """
    top, several = existing(root), check_task("features", task)
    files = list_files(top)
    if not files:
        raise DataError(f"{top}: has no files of features; make them by foveal embed, or correct the path")
    notes: list[str] = []
    groups: Sequence[str] = ()
    if labels is None:
        classes, listings = _by_folder(top, files)
    else:
        table = read_listing(existing(labels), _finder(top, files, labels), several, notes)
        classes, listings, groups = table.classes, table.listings, table.groups.get("train", ())
        used = {path for paths, _ in listings.values() for path in paths}
        if unused := [path for path in files.values() if str(path) not in used]:
            notes.append(f"left out {len(unused):,} files of features without label: {unused[0]}")
    paths = [path for of_split, _ in listings.values() for path in of_split]
    header, empty = _same(paths)
    of_coarse, coarse_header = None, None
    if coarse is not None:
        beside = list_files(existing(coarse))
        names = {str(path): name for name, path in files.items()}
        of_coarse = {path: str(beside.get(names[path], Path(coarse, names[path]))) for path in paths}
        coarse_header, also = _same(list(of_coarse.values()))
        empty |= {path for path in paths if of_coarse[path] in also}
    if empty:
        notes.append(f"left out {len(empty):,} files of images without tiles: {min(empty)}")
        groups = [group for group, path in zip(groups, listings["train"][0], strict=True) if path not in empty]
        listings = {split: _without(empty, *of_split) for split, of_split in listings.items()}
    listings, more = hold_out_val(listings, val_fraction, seed, groups)
    encoder = _encoder(top, header, coarse, coarse_header)
    if encoder.weights is None and _settings(top, header) is not None:
        notes.append(f"the model will classify features and no images, because {top} has no {ENCODER}")
    reading = Reading(channels=encoder.options.get("in_chans", 3), value_range=header.settings.get("value_range"))
    splits: dict[str, Any] = {
        split: FeatureDataset(
            of_split, targets, classes, reading, None if of_coarse is None else [of_coarse[path] for path in of_split]
        )
        for split, (of_split, targets) in listings.items()
        if of_split
    }
    data = DataModule(tuple(classes), name=str(labels or top), **splits)
    data.encoder = encoder
    data.notes = (*notes, *more, _described(header))
    return data


def _finder(top: Path, files: dict[str, Path], labels: str) -> Callable[[str], str]:
    """A function that gives the file of a path in the table.

    Raises:
        DataError: it is that of another path, too.
    """
    taken: dict[str, str] = {}

    def find(path: str) -> str:
        file = str(_find(files, path) or top / path)
        if (other := taken.setdefault(file, path)) != path:
            what = f"{other} and {path} both have the features of {file}"
            raise DataError(f"{labels}: {what}; encode the folder that holds both, or remove one of the rows")
        return file

    return find


def _find(files: dict[str, Path], path: str) -> Path | None:
    """The file of an image: that with the longest end of its path.

    foveal leaves out the last suffix of an image, and TRIDENT all of ``.ome.tif``. Names may have other dots.
    """
    *above, name = PurePath(path).parts
    stem = PurePath(name).stem
    for first in range(len(above) + 1):
        for last in (name, stem, stem.removesuffix(".ome")):
            if found := files.get("/".join([*above[first:], last])):
                return found
    return None


def _without(empty: set[str], paths: list[str], targets: np.ndarray) -> tuple[list[str], np.ndarray]:
    """A listing without some paths."""
    kept = [i for i, path in enumerate(paths) if path not in empty]
    return [paths[i] for i in kept], targets[kept]


def _by_folder(top: Path, files: dict[str, Path]) -> tuple[tuple[str, ...], dict[str, tuple[list[str], np.ndarray]]]:
    """Classes and listings of files in folders of classes, which may be in folders of splits."""
    firsts = {name.partition("/")[0] for name in files}
    in_splits = all(first.casefold() in SPLIT_NAMES for first in firsts)
    found: dict[str, list[tuple[str, str]]] = {}
    for name, path in files.items():
        split, rest = "train", name
        if in_splits:
            first, _, rest = name.partition("/")
            split = SPLIT_NAMES[first.casefold()]
        label, inside, _ = rest.partition("/")
        if not inside:
            raise DataError(f"{path}: is in no folder of a class; move it into one, or set `data.labels` to a table")
        found.setdefault(split, []).append((str(path), label))
    classes = class_list({label for _, label in found.get("train", next(iter(found.values())))})
    code = {class_key(name): i for i, name in enumerate(classes)}
    for rows in found.values():
        if strange := next((path for path, label in rows if class_key(label) not in code), None):
            raise DataError(f"{strange}: there is no training image of its class; add some or remove the folder")
    return classes, {
        split: ([path for path, _ in rows], np.array([code[class_key(label)] for _, label in rows], dtype=np.int64))
        for split, rows in found.items()
    }


def _same(paths: Sequence[str]) -> tuple[Header, set[str]]:
    """The header of the first file with tiles, and the files without. All others must have as many features, made by
    the same network with the same settings."""
    first: tuple[str, Header] | None = None
    empty: set[str] = set()
    damaged: list[DataError] = []
    for path in paths:
        try:
            header = read_header(Path(path))
        except DataError as error:
            damaged.append(error)
            continue
        if not header.tiles:
            empty.add(path)
            continue
        name, like = first = first or (path, header)
        if header.width != like.width:
            what = f"has {header.width} features of a tile, and {name} has {like.width}"
            raise DataError(f"{path}: {what}; make all files with one network")
        if header.settings.get("digest") != like.settings.get("digest"):
            raise DataError(f"{path}: was made with other settings than {name}; make all files with the same ones")
        if header.encoder and like.encoder and header.encoder != like.encoder:
            what = f"was made by {header.encoder}, and {name} by {like.encoder}"
            raise DataError(f"{path}: {what}; make all files with one network")
    if damaged:
        more = f"; {len(damaged) - 1:,} more of {len(paths):,} files are not right either" if len(damaged) > 1 else ""
        raise DataError(f"{damaged[0]}{more}")
    if first is None:
        raise DataError(f"{paths[0]}: has no features, as all files, because the images had no tiles; make them again")
    return first[1], empty


_OPTIONS = ("backbone", "backbone_options", "stages", "in_chans", "tile_size", "tile_stride", "scale", "mean", "std")
"""Options of a model that the settings of a file may decide. No others: they could name files of weights."""


def _settings(top: Path, header: Header) -> dict[str, Any] | None:
    """Options of the network and the grid, if foveal made the features of a grid of tiles.

    Raises:
        DataError: they are damaged.
    """
    options, values = header.settings.get("encoder"), header.settings.get("value_range")
    whole = ("in_chans", "tile_size", "tile_stride", "scale")
    damaged = header.settings and not (
        isinstance(options, dict)
        and all(isinstance(options.get(key), int) and options[key] > 0 for key in whole)
        and (values is None or (isinstance(values, list) and len(values) == 2))
        and all(isinstance(value, int | float) for value in values or ())
    )
    if damaged:
        raise DataError(f"{top}: the settings in its files are damaged, or of another version; make the files again")
    if not isinstance(options, dict) or header.settings.get("chosen"):
        return None
    return {key: options[key] for key in _OPTIONS if key in options}


def _encoder(top: Path, header: Header, coarse: str | None, at_coarse: Header | None) -> Encoder:
    """The network, if foveal made the features of a grid of tiles."""
    options, weights = _settings(top, header), top / ENCODER
    if at_coarse is not None and at_coarse.width != header.width:
        what = f"has features of {at_coarse.width} numbers, and {top} of {header.width}"
        raise DataError(f"{coarse}: {what}; make both with one network")
    if options is None or not weights.is_file():
        return Encoder(header.width, {"features": header.width}, coarse=coarse is not None)
    options["skip_blank"] = True
    if at_coarse is not None:
        other = _settings(Path(str(coarse)), at_coarse)
        if other is None or at_coarse.settings.get("weights") != header.settings.get("weights"):
            raise DataError(f"{coarse}: was made by another network than {top}; make both with one")
        ratio, rest = divmod(other["scale"], options["scale"])
        if rest or ratio < 1 or any(other[key] * ratio != options[key] for key in ("tile_size", "tile_stride")):
            what = f"its tiles of {other['tile_size']} px at scale {other['scale']} are not those of {top}"
            wanted = f"{options['tile_size']} px at scale {options['scale']}"
            raise DataError(f"{coarse}: {what}, of {wanted}; divide the tile size by what the scale is multiplied by")
        options |= {"coarse": ratio}
    licence = header.settings.get("licence")
    about = {"name": header.encoder, "licence": licence if isinstance(licence, str) else None}
    return Encoder(header.width, options, weights, header.settings.get("weights"), about, coarse is not None)


def _described(header: Header) -> str:
    """The network and the grid, for the user."""
    by = f" by {header.encoder}" if header.encoder else ""
    licence = header.settings.get("licence")
    return f"{header.width:,} features of a tile{by}{f', weights under {licence}' if licence else ''}"


KEPT = 2**30
"""Bytes of features that a data set keeps in memory."""


class FeatureDataset(Dataset):
    """Features in files. Up to `KEPT` bytes of them are kept in memory.

    Args:
        paths: N files.
        targets: (N,) classes, or (N, classes) labels.
        classes: names of the classes.
        reading: how the images were read.
        coarse: files of features of the same tiles at a coarser level; None for none.
    """

    boxes = None

    def __init__(
        self,
        paths: Sequence[str],
        targets: Sequence[int] | np.ndarray,
        classes: Sequence[str],
        reading: Reading | None = None,
        coarse: Sequence[str] | None = None,
    ) -> None:
        self.paths = list(paths)
        self.coarse = None if coarse is None else list(coarse)
        self.targets = as_targets(targets, len(paths), len(classes))
        self.classes = tuple(classes)
        self.reading = reading or Reading()
        self.channels = self.reading.channels
        self._kept: dict[int, Tiles] = {}
        self._room = KEPT

    def load(self, epoch: int, indices: Sequence[int], seed: int, first_looks: FirstLooks | None = None) -> Loaded:
        good: list[int] = []
        items: list[Tiles] = []
        errors: list[tuple[str, str]] = []
        for i in indices:
            try:
                items.append(self._read(i))
                good.append(i)
            except FovealError as error:
                errors.append((self.paths[i], str(error)))
        index = np.array(good, dtype=np.int64)
        return Loaded(items, torch.from_numpy(self.targets[index]), index, errors)

    def _read(self, i: int) -> Tiles:
        if i in self._kept:
            return self._kept[i]
        tiles = self._read_files(i)
        needs = sum(part.nbytes for part in (tiles.features, tiles.coarse) if part is not None)
        if needs <= self._room:
            self._room -= needs
            self._kept[i] = tiles
        return tiles

    def _read_files(self, i: int) -> Tiles:
        path = self.paths[i]
        found = read(Path(path))
        values, coords, coarse = found.features, found.coords, None
        if self.coarse is not None:
            beside = read(Path(self.coarse[i]))
            # A tile may be blank at one of the levels.
            rows = {tuple(place): row for row, place in enumerate(beside.coords.tolist())}
            both = [(row, rows[place]) for row, place in enumerate(map(tuple, coords.tolist())) if place in rows]
            if not both:
                raise DataError(f"{path}: has no tile of {self.coarse[i]}; make both files of the same tiles")
            here, there = np.array(both).T
            values, coords, coarse = values[here], coords[here], torch.from_numpy(beside.features[there])
        corners = coords[:, ::-1].astype(np.float64)
        boxes = np.concatenate([corners, corners + found.side], axis=1)
        return Tiles(path, found.size, torch.from_numpy(values), boxes, coarse, self.channels)

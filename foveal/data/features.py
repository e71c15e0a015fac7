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

from collections.abc import Sequence
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
        DataError: there are no files, one cannot be read or has another number of features than the others, an image
            has no label, or see `foveal.data.folder.manifest`.
    """
    top, several = existing(root), check_task("features", task)
    files = list_files(top)
    if not files:
        raise DataError(f"{top}: has no files of features; make them by foveal embed, or correct the path")
    notes: list[str] = []
    groups: Sequence[str] | None = None
    if labels is None:
        classes, listings = _by_folder(top, files)
    else:
        table = read_listing(existing(labels), lambda path: str(_find(files, path) or top / path), several, notes)
        classes, listings, groups = table.classes, table.listings, table.groups.get("train")
        used = {path for paths, _ in listings.values() for path in paths}
        if unused := [path for path in files.values() if str(path) not in used]:
            notes.append(f"left out {len(unused):,} files of features without label: {unused[0]}")
    listings, more = hold_out_val(listings, val_fraction, seed, groups)
    paths = [path for of_split, _ in listings.values() for path in of_split]
    header = _same(paths)
    of_coarse, coarse_header = None, None
    if coarse is not None:
        beside = list_files(existing(coarse))
        names = {str(path): name for name, path in files.items()}
        of_coarse = {path: str(beside.get(names[path], Path(coarse, names[path]))) for path in paths}
        coarse_header = _same(list(of_coarse.values()))
    encoder = _encoder(top, paths[0], header, coarse, coarse_header)
    reading = Reading(
        channels=int(encoder.options.get("in_chans") or 3), value_range=header.settings.get("value_range") or None
    )
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


def _find(files: dict[str, Path], path: str) -> Path | None:
    """The file of an image: that with the longest end of its path."""
    *above, name = PurePath(path).parts
    for first in range(len(above) + 1):
        for last in (PurePath(name).stem, name):
            if found := files.get("/".join([*above[first:], last])):
                return found
    return None


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


def _same(paths: Sequence[str]) -> Header:
    """The header of the first file. All must have as many features, made with the same settings."""
    first = read_header(Path(paths[0]))
    for path in paths[1:]:
        header = read_header(Path(path))
        if header.width != first.width:
            what = f"has {header.width} features of a tile, and {paths[0]} has {first.width}"
            raise DataError(f"{path}: {what}; make all files with one network")
        if header.settings.get("digest") != first.settings.get("digest"):
            raise DataError(f"{path}: was made with other settings than {paths[0]}; make all files with the same ones")
    return first


def _encoder(top: Path, first: str, header: Header, coarse: str | None, at_coarse: Header | None) -> Encoder:
    """The network, if foveal made the features of a grid of tiles."""
    options, weights = header.settings.get("encoder"), top / ENCODER
    known = isinstance(options, dict) and not header.settings.get("chosen") and weights.is_file()
    if at_coarse is not None and at_coarse.width != header.width:
        what = f"has features of {at_coarse.width} numbers, and {top} of {header.width}"
        raise DataError(f"{coarse}: {what}; make both with one network")
    if not known or not isinstance(options, dict):
        return Encoder(header.width, {"features": header.width}, coarse=coarse is not None)
    options = {**options, "skip_blank": True}
    if at_coarse is not None:
        other = at_coarse.settings.get("encoder")
        if not isinstance(other, dict) or at_coarse.settings.get("weights") != header.settings.get("weights"):
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
    """Features in files. The first `KEPT` bytes that are read are kept in memory.

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
        self._room -= sum(part.nbytes for part in (tiles.features, tiles.coarse) if part is not None)
        if self._room >= 0:
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

"""Files with features of the tiles of one image, HDF5 or Zarr.

A file has two data sets. ``features`` is (n, width). ``coords`` is (n, 2), (x, y) of the upper left corner of each
tile in pixels of the image at full resolution. This is the layout of TRIDENT (github.com/mahmoodlab/TRIDENT,
``trident/IO.py``, `save_h5` and `coords_to_h5`; ``trident/wsi_objects/WSI.py``, `extract_patch_features`) and of CLAM
(github.com/mahmoodlab/CLAM, ``extract_features_fp.py`` and ``utils/file_utils.py``, `save_hdf5`).

TRIDENT gives ``coords`` the attributes ``patch_size``, ``patch_size_level0``, ``overlap``, ``level0_width`` and
``level0_height``, and ``features`` the attributes ``name`` and ``encoder``. CLAM gives its files of features none; of
its files of coordinates, ``patch_size``, ``patch_level``, ``downsample`` and ``level_dim``, are read, too. Without
attributes, the side of a tile is the most frequent distance of two neighbours in a row or column, because CLAM begins a
grid of its own in each piece of tissue; and the image ends with the last tile. Of arrays with a third dimension of 1 in
front, (1, n, width), this is left out.

foveal writes the attributes of TRIDENT, features in half precision, and an attribute ``foveal`` of ``features``, JSON
text with the settings.

Only arrays of numbers are read. Links, external and virtual data, and arrays of objects are refused, so a file cannot
make another one be read, and nothing is unpickled.

Example:
    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "a.zarr"
    >>> with writing(file, width=3, size=(100, 130), side=64, encoder="resnet18") as written:
    ...     written.append(np.ones((2, 3)), np.array([[0, 0], [64, 0]]))
    >>> found = read(file)
    >>> found.features.shape, found.size, found.side, read_header(file).encoder
    ((2, 3), (100, 130), 64, 'resnet18')
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from foveal.choices import FEATURE_FORMATS
from foveal.errors import ConfigError, DataError, ImageError
from foveal.files import replacing
from foveal.images.reading import memory_limit
from foveal.images.walk import as_text
from foveal.images.zarr_codecs import check_array, guarded

SUFFIXES = (*(f".{name}" for name in FEATURE_FORMATS), ".hdf5")
"""Suffixes of files that are read."""
ENCODER = "encoder.safetensors"
"""Weights of the network beside the files, by their names in ``encoder`` of `foveal.glimpse.tiles.TileClassifier`."""
CHUNK = 32
"""Tiles of a chunk of HDF5, as of CLAM. An image with few tiles takes a whole one."""
ROWS = 256
"""Tiles that are written at once."""
LARGEST = float(np.finfo(np.float16).max)
FARTHEST = 2**40
"""Largest coordinate."""
USUAL_SIDE = 256
"""Side of a tile in pixels of the image, if a file has neither attributes nor two tiles."""


class Header(NamedTuple):
    """What a file tells without its features being read.

    Attributes:
        tiles: number of tiles; 0 where TRIDENT found no tissue.
        width: number of features of a tile.
        encoder: name of the network, if known.
        settings: settings of foveal, see `foveal.embedding`; empty if another program wrote the file.
        attributes: numbers in attributes of ``coords`` and ``features``.
    """

    tiles: int
    width: int
    encoder: str | None
    settings: dict[str, Any]
    attributes: dict[str, Any]


class Features(NamedTuple):
    """The features of an image.

    Attributes:
        features: (n, width), floating point.
        coords: (n, 2) int64, (x, y) of the upper left corner of tiles, in pixels of the image.
        side: side of a tile in pixels of the image.
        size: (height, width) of the image.
    """

    features: np.ndarray
    coords: np.ndarray
    side: int
    size: tuple[int, int]


def list_files(folder: Path) -> dict[str, Path]:
    """Files of features in a folder and its subfolders, by their paths in it, without suffix and sorted.

    Raises:
        DataError: two files have the same name, or the folder cannot be searched.
    """
    found: dict[str, Path] = {}

    def failed(error: OSError) -> None:
        raise DataError(f"{folder}: cannot be searched ({error.strerror}); give a folder of features") from error

    for top, folders, files in os.walk(folder, onerror=failed):
        here = [name for name in [*folders, *files] if name.endswith(SUFFIXES) and not name.startswith(".")]
        folders[:] = sorted(name for name in folders if name not in here and not name.startswith("."))
        for path in (Path(top, name) for name in here):
            name = path.relative_to(folder).with_suffix("").as_posix()
            if name in found:
                raise DataError(f"{path}: {found[name].name} has the features of the same image; remove one of them")
            found[name] = path
    return dict(sorted(found.items()))


# ------------------------------------------------------------------------------------------------------------ reading


def read_header(path: Path) -> Header:
    """Read the shape and the attributes of a file.

    Raises:
        DataError: it cannot be read, or is not a file of features.
        ConfigError: h5py or zarr is not installed.
    """
    with _opened(path) as arrays:
        return _header(path, arrays)


def read(path: Path) -> Features:
    """Read a file.

    Raises:
        DataError: as `read_header`, or there are no tiles, or features are NaN or infinite.
    """
    with _opened(path) as arrays:
        header = _header(path, arrays)
        if not header.tiles:
            raise DataError(f"{path}: has no features, because the image had no tiles; remove it from the labels")
        if header.settings and any(not _whole(array) for array in arrays.values()):
            raise DataError(f"{path}: some of its chunks are missing; make the file again")
        features = np.asarray(arrays["features"][...]).reshape(header.tiles, header.width)
        coords = np.asarray(arrays["coords"][...]).reshape(header.tiles, 2)
    if features.dtype.itemsize > 4:  # models take single precision
        with np.errstate(over="ignore"):
            features = features.astype(np.float32)
    if not np.isfinite(features.sum(dtype=np.float64)) and not np.isfinite(features).all():
        row = int(np.flatnonzero(~np.isfinite(features).all(1))[0])
        raise DataError(f"{path}: the features of tile {row} are not all finite numbers; make the file again")
    if not (np.abs(coords, dtype=np.float64) <= FARTHEST).all():
        raise DataError(f"{path}: some coords are not pixels of an image; make the file again")
    coords = np.rint(coords).astype(np.int64)
    side = _side(header.attributes) or _spacing(coords)
    return Features(features, coords, side, _size(header.attributes) or _extent(coords, side))


def _whole(array: Any) -> bool:
    """Whether no chunk is missing. Zarr would read zeros; foveal writes chunks of zeros, too."""
    return getattr(array, "nchunks_initialized", 0) == getattr(array, "nchunks", 0)


def _header(path: Path, arrays: Mapping[str, Any]) -> Header:
    shapes = {}
    for name, kinds in (("features", "f"), ("coords", "iuf")):
        if name not in arrays:
            raise DataError(f"{path}: has no data set {name!r}; give files of features of tiles, with their coords")
        array = arrays[name]
        if array.dtype.kind not in kinds:
            what = "floating-point numbers" if kinds == "f" else "numbers"
            raise DataError(f"{path}: {name} has the type {array.dtype}; write {what}")
        shape = tuple(array.shape)
        shapes[name] = shape[1:] if len(shape) == 3 and shape[0] == 1 else shape
        # A chunk is decoded whole, and may be larger than the array.
        most = max(math.prod(shape), math.prod(array.chunks or ()))
        if (needs := most * array.dtype.itemsize) > (limit := memory_limit()):
            what = f"{name} needs {needs / 2**30:,.1f} GiB, and the limit is {limit / 2**30:,.1f} GiB"
            raise DataError(f"{path}: {what}; raise --max-bytes or FOVEAL_MAX_BYTES")
    features, coords = shapes["features"], shapes["coords"]
    if len(features) != 2 or not features[1]:
        what = f"features have the shape {features}"
        raise DataError(f"{path}: {what}; give features of tiles, (n, width), not of whole images")
    if coords != (features[0], 2):
        what = f"coords have the shape {coords} for {features[0]} tiles"
        raise DataError(f"{path}: {what}; give (x, y) of each tile, or make the file again")
    attributes = {**_attributes(arrays["features"]), **_attributes(arrays["coords"])}
    encoder, text = attributes.get("encoder"), attributes.get("foveal")
    settings: Any = {}
    with suppress(ValueError, TypeError):
        settings = json.loads(text) if isinstance(text, str) else {}
    known = isinstance(encoder, str) and encoder != "None"  # TRIDENT writes a missing name as text
    return Header(*features, encoder if known else None, settings if isinstance(settings, dict) else {}, attributes)


_READ = (
    "encoder",
    "foveal",
    "patch_size",
    "patch_size_level0",
    "patch_level",
    "level0_width",
    "level0_height",
    "downsample",
    "custom_downsample",
    "level_dim",
)


def _attributes(array: Any) -> dict[str, Any]:
    """The known attributes of an array that are text or numbers."""
    found: dict[str, Any] = {}
    for name in _READ:
        value = array.attrs.get(name)
        if isinstance(value, bytes):
            value = value.decode(errors="replace")
        if isinstance(value, str):
            found[name] = value
        elif value is not None and (numbers := np.asarray(value)).dtype.kind in "iuf" and np.isfinite(numbers).all():
            found[name] = [float(x) for x in numbers.ravel()]
    return found


def _number(attributes: Mapping[str, Any], name: str, place: int = 0) -> float | None:
    """A positive number in an attribute."""
    value = attributes.get(name)
    return value[place] if isinstance(value, list) and len(value) > place and value[place] > 0 else None


def _side(attributes: Mapping[str, Any]) -> int | None:
    side = _number(attributes, "patch_size_level0")
    if side is None and (of_level := _number(attributes, "patch_size")) is not None:
        if _number(attributes, "patch_level") and _number(attributes, "downsample") is None:
            return None  # pixels of a level whose scale is not known
        factors = (_number(attributes, name) or 1.0 for name in ("downsample", "custom_downsample"))
        side = of_level * float(np.prod([*factors]))
    return None if side is None else max(1, round(side))


def _size(attributes: Mapping[str, Any]) -> tuple[int, int] | None:
    height, width = (_number(attributes, f"level0_{axis}") for axis in ("height", "width"))
    if height is None or width is None:
        factor = _number(attributes, "downsample") or 1.0
        width, height = (_number(attributes, "level_dim", place) for place in (0, 1))
        width, height = (None if extent is None else extent * factor for extent in (width, height))
    return None if height is None or width is None else (round(height), round(width))


def _spacing(coords: np.ndarray) -> int:
    """The most frequent distance of two neighbours in a row or column of tiles.

    >>> _spacing(np.array([[0, 0], [64, 0], [128, 0], [301, 7], [365, 7]]))
    64
    """
    steps = []
    for along, across in ((0, 1), (1, 0)):
        gaps = np.diff(coords[np.lexsort((coords[:, along], coords[:, across]))], axis=0)
        steps.append(gaps[(gaps[:, across] == 0) & (gaps[:, along] > 0), along])
    found, times = np.unique(np.concatenate(steps), return_counts=True)
    if len(found):
        return int(found[times.argmax()])
    lone = [np.diff(np.unique(axis)) for axis in coords.T]  # no two tiles share a row or column
    return max((int(gaps.min()) for gaps in lone if len(gaps)), default=USUAL_SIDE)


def _extent(coords: np.ndarray, side: int) -> tuple[int, int]:
    width, height = (coords.max(0) + side).tolist()
    return height, width


@contextmanager
def _opened(path: Path) -> Iterator[Mapping[str, Any]]:
    """Arrays of a file by name. What a library raises becomes a `DataError`."""
    try:
        with (_zarr if path.suffix == ".zarr" else _hdf5)(path) as arrays:
            yield arrays
    except (DataError, ConfigError, MemoryError):
        raise
    except ImageError as error:
        raise DataError(str(error)) from error
    except Exception as error:  # libraries raise many types for damaged files
        if not path.exists():
            raise DataError(f"{path}: there is no such file; check the path") from error
        kind = "a Zarr group" if path.suffix == ".zarr" else "an HDF5 file"
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise DataError(f"{path}: is not {kind} that can be read ({reason}); make it again") from error


@contextmanager
def _hdf5(path: Path) -> Iterator[dict[str, Any]]:
    h5py = _library("h5py", path)
    with h5py.File(path, "r", locking=False) as file:
        arrays = {}
        for name in ("features", "coords"):
            if (link := file.get(name, getlink=True)) is None:
                continue
            array = file[name] if isinstance(link, h5py.HardLink) else None
            if not isinstance(array, h5py.Dataset) or array.external or array.is_virtual:
                raise DataError(f"{path}: {name} refers to other data; write the numbers themselves")
            arrays[name] = array
        yield arrays


@contextmanager
def _zarr(path: Path) -> Iterator[dict[str, Any]]:
    zarr = _library("zarr", path)
    # Version 2 has arrays of pickled objects.
    group = zarr.open_group(str(path), mode="r", zarr_format=3)
    arrays = {}
    for name in ("features", "coords"):
        if isinstance(array := group.get(name), zarr.Array):
            check_array(str(path), f"array {name}", array)
            arrays[name] = guarded(array)
    yield arrays


def _library(name: str, path: Path) -> Any:
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError as error:
        raise ConfigError(f"{path}: {path.suffix} needs {name}; run pip install 'foveal[features]'") from error


# ------------------------------------------------------------------------------------------------------------ writing


@dataclass
class Writer:
    """Writes features as they come, with at most `ROWS` tiles in memory.

    Attributes:
        count: number of tiles so far.
        settings: content of the attribute ``foveal``; may be changed until the end.
    """

    width: int
    settings: dict[str, Any]
    count: int = 0
    _write: Callable[[np.ndarray, np.ndarray], None] = field(default=lambda features, coords: None, repr=False)
    _waiting: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list, repr=False)

    def append(self, features: np.ndarray, coords: np.ndarray) -> None:
        """Append tiles.

        Args:
            features: (n, width).
            coords: (n, 2) (x, y) of the upper left corners, in pixels of the image.

        Raises:
            DataError: features are not finite numbers in half precision.
        """
        features = np.asarray(features)
        if features.shape != (len(coords), self.width):
            raise ValueError(f"expected features ({len(coords)}, {self.width}), got {features.shape}")
        if not (np.abs(features) <= LARGEST).all():
            raise DataError(
                f"features: are NaN, infinite, or above {LARGEST:,.0f}, the largest number of half precision"
            )
        self._waiting.append((features.astype(np.float16), np.asarray(coords, np.int64)))
        self.count += len(features)
        if sum(len(part) for part, _ in self._waiting) >= ROWS:
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        if self._waiting:
            features, coords = (np.concatenate(parts) for parts in zip(*self._waiting, strict=True))
            self._write(features, coords)
            self._waiting.clear()


@contextmanager
def writing(
    path: Path,
    width: int,
    *,
    size: tuple[int, int] | None = None,
    side: int | None = None,
    patch_size: int | None = None,
    overlap: int = 0,
    encoder: str | None = None,
    settings: dict[str, Any] | None = None,
) -> Iterator[Writer]:
    """Write a file. It has its name when it is complete; an existing file is replaced.

    Args:
        path: the file; its suffix decides the format.
        width: number of features of a tile.
        size: (height, width) of the image.
        side: side of a tile in pixels of the image.
        patch_size: side of a tile in pixels of the level; ``side`` if None.
        overlap: pixels of the level that two neighbours share.
        encoder: name of the network.
        settings: content of the attribute ``foveal``.

    Raises:
        ConfigError: h5py or zarr is not installed.
        OSError: it cannot be written.
    """
    library = _library("zarr" if path.suffix == ".zarr" else "h5py", path)
    name = as_text(path.with_suffix("").name)
    of_coords: dict[str, Any] = {"name": name}
    if side is not None:
        of_coords |= {"patch_size": patch_size or side, "patch_size_level0": side, "overlap": overlap}
    if size is not None:
        of_coords |= {"level0_width": size[1], "level0_height": size[0]}
    writer = Writer(width, dict(settings or {}))
    with (_replacing_folder if path.suffix == ".zarr" else replacing)(path) as unfinished, ExitStack() as stack:
        stream = None
        if path.suffix == ".zarr":
            group = library.create_group(str(unfinished), zarr_format=3)
            make: Any = lambda name, columns, dtype: group.create_array(  # noqa: E731
                name, shape=(0, columns), chunks=(4 * ROWS, columns), dtype=dtype, config={"write_empty_chunks": True}
            )
        else:
            stream = stack.enter_context(_Stream(unfinished))
            group = stack.enter_context(library.File(stream, "w"))
            make = lambda name, columns, dtype: group.create_dataset(  # noqa: E731
                name, shape=(0, columns), maxshape=(None, columns), chunks=(CHUNK, columns), dtype=dtype
            )
        arrays = make("features", width, "float16"), make("coords", 2, "int64")

        def write(*parts: np.ndarray) -> None:
            for array, part in zip(arrays, parts, strict=True):
                first = array.shape[0]
                array.resize((first + len(part), *array.shape[1:]))
                array[first:] = part
            if stream is not None:
                stream.check()

        writer._write = write
        yield writer
        writer.flush()
        text = json.dumps(writer.settings, sort_keys=True)
        arrays[0].attrs.update({"name": name, "encoder": encoder or "None", "foveal": text})
        arrays[1].attrs.update(of_coords)


class _Stream(io.RawIOBase):
    """A file for HDF5, whose errors of writing `check` and the end raise.

    HDF5 ends the process if the disk is full while it closes a file. So it is told that all is written. What is not is
    kept in memory, for the little that it still reads.

    Args:
        path: the file to be written.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("w+b", buffering=0)
        self._place = 0
        self._error: OSError | None = None
        self._lost: list[tuple[int, bytes]] = []

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self._file.close()
        super().__exit__(kind, error, trace)
        if error is None:
            self.check()

    def readable(self) -> bool:
        return True

    def check(self) -> None:
        """Raise the first `OSError` of writing."""
        if self._error is not None:
            raise self._error

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_END:
            offset += max([self._file.seek(0, os.SEEK_END), *(at + len(data) for at, data in self._lost)])
        self._place = offset + (self._place if whence == os.SEEK_CUR else 0)
        return self._place

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        self._file.seek(self._place)
        length = self._file.readinto(view) or 0
        view[length:] = bytes(len(view) - length)
        for at, data in self._lost:
            first, last = max(at, self._place), min(at + len(data), self._place + len(view))
            if first < last:
                view[first - self._place : last - self._place] = data[first - at : last - at]
        return len(view)

    def write(self, data: Any) -> int:
        rest = memoryview(data).cast("B")
        length = len(rest)
        with self._keeping():
            self._file.seek(self._place)
            while len(rest):
                rest = rest[self._file.write(rest) or 0 :]
        if len(rest):
            self._lost.append((self._place + length - len(rest), bytes(rest)))
        return length

    def truncate(self, size: int | None = None) -> int:
        size = self._place if size is None else size
        with self._keeping():
            self._file.truncate(size)
        return size

    @contextmanager
    def _keeping(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._error = self._error or error


@contextmanager
def _replacing_folder(path: Path) -> Iterator[Path]:
    """`foveal.files.replacing` for a folder."""
    unfinished, before = (path.with_name(f".{path.name}.{os.getpid()}.{end}") for end in ("unfinished", "before"))
    try:
        yield unfinished
        for file in unfinished.rglob("*"):
            _sync(file)
        with suppress(FileNotFoundError):
            path.rename(before)
        unfinished.rename(path)
    finally:
        for folder in (unfinished, before):
            shutil.rmtree(folder, ignore_errors=True)


def _sync(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


LOCK = ".embed.lock"
"""Lock of a folder while files are written to it."""
_LEFT = re.compile(r"\..+\.(h5|zarr|safetensors)\.\d+\.(unfinished|before)")


def remove_unfinished(folder: Path) -> None:
    """Remove files and folders that killed processes left, in a folder and its subfolders without a lock of their own.
    The caller holds the lock."""
    for top, folders, files in os.walk(folder):
        if Path(top) != folder and LOCK in files:
            folders.clear()
            continue
        for name in filter(_LEFT.fullmatch, (*folders, *files)):
            if name in folders:
                shutil.rmtree(Path(top, name), ignore_errors=True)
            else:
                with suppress(OSError):
                    Path(top, name).unlink()
        folders[:] = [name for name in folders if not name.startswith(".") and not name.endswith(SUFFIXES)]

"""Photographs in shards: tar files in the format of WebDataset, read by position.

A shard is a tar file whose consecutive members with the same name up to the first dot are a sample: ``dog/17.jpg`` and
``dog/17.cls``. WebDataset (https://github.com/webdataset/webdataset) reads shards from their beginning and mixes what a
buffer holds. Here an index of a shard tells where each image begins, so that any image takes one read. Order and random
changes are those of images in folders: functions of (seed, epoch, sample), whatever the number of processes and shards.

Example:
    >>> import tempfile, pathlib
    >>> from PIL import Image
    >>> photos, packed = pathlib.Path(tempfile.mkdtemp()), pathlib.Path(tempfile.mkdtemp(), "shards")
    >>> for name in ("cat/1", "cat/2", "dog/1", "dog/2"):
    ...     (photos / name).parent.mkdir(exist_ok=True)
    ...     Image.new("RGB", (40, 30)).save(photos / f"{name}.png")
    >>> from foveal.data import get_data
    >>> pack(get_data("folder", root=str(photos), val_fraction=0.5), packed)
    []
    >>> sorted(file.name for file in packed.iterdir() if file.suffix == ".tar")
    ['train-000000.tar', 'val-000000.tar']
    >>> data = shards(str(packed))
    >>> data.classes, len(data.train), len(data.val)
    (('cat', 'dog'), 2, 2)
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np

from foveal.choices import SPLITS
from foveal.data.augmentation import Augmentation
from foveal.data.dataset import ImageDataset, Reading, Resizing
from foveal.data.folder import SPLIT_NAMES, assemble, existing
from foveal.data.module import DATA_SETS, DataModule, class_key, class_text
from foveal.data.options import document_options
from foveal.errors import ConfigError, DataError, ImageError
from foveal.files import replacing, storing
from foveal.images import Pyramid, open_content
from foveal.images.plain import kind_of
from foveal.images.reading import memory_limit, read_at, reading
from foveal.strict import class_names_error

CLASSES = "classes.txt"
"""File of the names of the classes, one per line, beside the shards."""

IMAGES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "ppm", "pgm", "pbm", "pnm")
"""Suffixes of the images in a shard."""

INDEX = ".index.npz"
"""Added to the name of a shard for the file of its index."""

_PICKLED = ("pyd", "pkl", "pickle", "pth", "pt", "npy.pkl")
_BLOCK = tarfile.BLOCKSIZE
_HEADER_SUM = slice(148, 156)  # the checksum of a member's header, in its header
_LABEL = 4096  # most bytes of a label


class Index(NamedTuple):
    """Where the samples of a shard are.

    Attributes:
        names: (n,) bytes, names of the images in the shard.
        offsets, sizes: (n,) int64, where the content of each image begins, and its number of bytes.
        sums: (n,) bytes, checksum in the header of each image.
        labels: (n,) bytes, the label of each sample: the text of its ``.cls``, or the name of its folder; empty if it
            has neither.
        without: number of samples without an image, and of further images of a sample.
        shard_bytes: size of the shard.
    """

    names: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    sums: np.ndarray
    labels: np.ndarray
    without: int
    shard_bytes: int


class Member(NamedTuple):
    """An image in a shard; see `Index`."""

    shard: str
    name: str
    offset: int
    size: int
    check: bytes


@DATA_SETS.register
@document_options()
def shards(
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
    """Photographs in tar files in the format of WebDataset: one image of each sample, with its class.

    The class of a sample is the text in its member ``.cls``: a name, or the number of a line of ``root/classes.txt``,
    from 0. Without this member it is the folder of the image in the shard. A shard belongs to the split in its folder
    or its name, such as ``val/000000.tar`` or ``val-000000.tar``; others are training shards.

    Where the images are is stored in a file beside each shard, when the shard is first read. ``foveal data folder
    --data.root photos/ --pack shards/`` writes shards.

    Args:
        root: folder of the shards; its subfolders are searched.
        val_fraction: share of each class held out for validation if there is no shard of the split ``val``.

    Raises:
        DataError: there is no shard, a shard is damaged or holds pickled data, or a sample has no class.
    """
    reading = Reading(augmentation, channels, value_range, image_size, kernels, masks=masks and str(existing(masks)))
    top = existing(root)
    found = sorted(path for path in top.rglob("*.tar*") if path.is_file() and _SHARD.search(path.name))
    if not found:
        raise DataError(
            f"{top}: there are no .tar files in it; give the folder of the shards; foveal data --pack writes some"
        )
    if packed := next((path for path in found if path.suffix != ".tar"), None):
        raise DataError(f"{packed}: is compressed, so that an image cannot be read alone; decompress it")
    names = _class_names(top / CLASSES)
    members: dict[str, list[Member]] = {}
    labels: dict[str, list[str]] = {}
    without = 0
    seen: dict[bytes, Path] = {}
    copies: list[tuple[Path, Path]] = []
    for path in found:
        index = index_of(path)
        content = b"".join(part.tobytes() for part in (index.names, index.sizes, index.sums))
        if len(index.names) and (other := seen.setdefault(hashlib.blake2b(content).digest(), path)) != path:
            copies.append((path, other))
        split = _split_of(path.relative_to(top))
        without += index.without
        members.setdefault(split, []).extend(
            Member(str(path), os.fsdecode(name), int(offset), int(size), bytes(check))
            for name, offset, size, check in zip(index.names, index.offsets, index.sizes, index.sums, strict=True)
        )
        labels.setdefault(split, []).extend(class_text(os.fsdecode(label)) for label in index.labels)
    classes, listings = _listings(str(top), members, labels, names)
    notes = [f"samples without an image, and second images of a sample: {without}"] if without else []
    notes += [f"{path} lists the same images as {other}; remove it if it is a copy" for path, other in copies]
    return assemble(str(top), classes, listings, reading, val_fraction, seed, notes, make=ShardDataset)


_SHARD = re.compile(r"\.(tar|tar\.(gz|bz2|xz|zst)|tgz)$")


def _class_names(file: Path) -> list[str] | None:
    """The lines of a file of names; None if there is none."""
    if not file.is_file():
        return None
    try:
        return [line.strip() for line in file.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read as text in UTF-8 ({error}); write one class name per line") from error


def _split_of(path: Path) -> str:
    """The split of a shard by its name, such as ``imagenet-val-000000.tar``, or else by the nearest folder."""
    words = [word for part in reversed(path.parts) for word in re.split(r"[-_.]", part.casefold())]
    return next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), "train")


def _listings(
    top: str, members: dict[str, list[Member]], labels: dict[str, list[str]], names: list[str] | None
) -> tuple[tuple[str, ...], dict[str, tuple[list[Any], np.ndarray]]]:
    """Classes, and images with targets of each split."""
    for split, of_split in labels.items():
        if "" in of_split:
            member = members[split][of_split.index("")]
            raise DataError(
                f"{member.shard}/{member.name}: has no class; add a member .cls, or put it in a folder of its class"
            )
    there = {label for of_split in labels.values() for label in of_split}
    first = (members.get("train") and labels["train"]) or next(iter(labels.values()), [])
    if not first:
        raise DataError(
            f"{top}: there is no image in the shards; write samples with one of {', '.join(IMAGES[:4])}, ..."
        )
    if names is None:
        whole = all(label.isdecimal() for label in set(first))
        names = sorted(set(first), key=int if whole else str)
    numbers = (Path(top) / CLASSES).is_file() and all(label.isdecimal() for label in there)
    code = {str(i) if numbers else class_key(name): i for i, name in enumerate(names)}
    if strange := sorted(label for label in there if class_key(label) not in code):
        known = f"{CLASSES} has" if (Path(top) / CLASSES).is_file() else "training shards have"
        raise DataError(f"{top}: samples have the class {strange[0]!r}, which is not among those that {known}; add it")
    listings: dict[str, tuple[list[Any], np.ndarray]] = {
        split: (members[split], np.array([code[class_key(label)] for label in labels[split]], dtype=np.int64))
        for split in SPLITS
        if members.get(split)
    }
    return tuple(names), listings


# ---- reading


class ShardDataset(ImageDataset):
    """Images in shards.

    Args:
        members: N images.
        targets, classes, reading: see `ImageDataset`.
    """

    def __init__(
        self, members: Sequence[Member], targets: np.ndarray, classes: Sequence[str], *, reading: Reading | None = None
    ) -> None:
        super().__init__([f"{m.shard}/{m.name}" for m in members], targets, classes, reading=reading)
        # Arrays: reference counts in a list of a million members would make workers copy its memory.
        self._shards = sorted({m.shard for m in members})
        number = {shard: i for i, shard in enumerate(self._shards)}
        self._shard = np.array([number[m.shard] for m in members], dtype=np.int32)
        self._offsets = np.array([m.offset for m in members], dtype=np.int64)
        self._sizes = np.array([m.size for m in members], dtype=np.int64)
        self._sums = np.array([m.check for m in members], dtype="S8")

    def content(self, i: int) -> bytes:
        """The bytes of the file of image ``i``.

        Raises:
            ImageError: the shard cannot be read, is cut short, or has been replaced.
        """
        path, offset, size = self.path(i), int(self._offsets[i]), int(self._sizes[i])
        if size > (limit := memory_limit()):
            raise ImageError(f"{path}: has {size:,} bytes, more than the limit of {limit:,}; give it as its own file")
        with reading(path, "cannot be read", "the shard is damaged or cut short, copy it again"):
            data = read_at(_opened(self._shards[self._shard[i]]).fileno(), _BLOCK + size, offset - _BLOCK)
        if data[_HEADER_SUM].rstrip(b"\0") != self._sums[i]:
            shard = self._shards[self._shard[i]]
            raise ImageError(f"{path}: the shard has been replaced; remove {shard}{INDEX} and start again")
        return data[_BLOCK:]

    def open(self, i: int, **options: Any) -> Pyramid:
        return open_content(self.content(i), self.path(i), channels=self.channels, **options)


@lru_cache(maxsize=64)
def _opened(shard: str) -> io.FileIO:
    """An open shard. It is closed when the cache and its readers have forgotten it."""
    return io.FileIO(shard)


# ---- the index


def index_of(shard: Path) -> Index:
    """The index of a shard, from the file beside it. It is made if it is missing, damaged, or older than the shard, or
    tells another size.

    Raises:
        DataError: see `scan`.
    """
    file = shard.with_name(shard.name + INDEX)
    try:
        about = shard.stat()
        with np.load(file, allow_pickle=False) as stored:
            index = Index(*(stored[name] for name in Index._fields))
        kinds = [(part.dtype.kind, part.shape) for part in index[:5]]
        fits = kinds == [(kind, (index.sizes.size,)) for kind in "SiiSS"]
        if fits and int(index.shard_bytes) == about.st_size and file.stat().st_mtime_ns >= about.st_mtime_ns:
            return index._replace(without=int(index.without))
    except (OSError, ValueError, TypeError, KeyError, EOFError, BadZipFile, zlib.error):
        pass  # there is none, or it is damaged or of another version
    index = scan(shard)
    with suppress(OSError), replacing(file) as unfinished, unfinished.open("wb") as out:  # read-only folders have none
        np.savez(out, **index._asdict())
    return index


def scan(shard: Path) -> Index:
    """Read the headers of all members of a shard.

    Raises:
        DataError: the shard is damaged or cut short, cannot be read, or holds pickled data.
    """
    rows: list[tuple[bytes, int, int, bytes, bytes]] = []
    without = count = 0
    try:
        with shard.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for key, parts in _samples(archive, shard):
                count += 1
                images = [parts[suffix] for suffix in IMAGES if suffix in parts]
                without += abs(len(images) - 1)
                if not images:
                    continue
                image = images[0]
                if "cls" in parts:
                    label = read_at(file.fileno(), min(parts["cls"].size, _LABEL), parts["cls"].offset_data).strip()
                else:
                    label = os.fsencode(PurePosixPath(key).parent.name)
                block = read_at(file.fileno(), _BLOCK, image.offset_data - _BLOCK)
                check = block[_HEADER_SUM].rstrip(b"\0")
                rows.append((os.fsencode(image.name), image.offset_data, image.size, check, label))
            # tarfile takes a damaged header for the end, which is a block of zeros.
            if any(read_at(file.fileno(), _BLOCK, archive.offset)):
                raise ValueError("a header is damaged")
    except (tarfile.TarError, OSError, ValueError, EOFError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DataError(
            f"{shard}: is no tar file, is damaged or cut short after {count} samples ({reason}); copy it again"
        ) from error
    names, offsets, sizes, sums, labels = zip(*rows, strict=True) if rows else [()] * 5
    return Index(
        np.array(names, dtype=np.bytes_),
        np.array(offsets, dtype=np.int64),
        np.array(sizes, dtype=np.int64),
        np.array(sums, dtype="S8"),
        np.array(labels, dtype=np.bytes_),
        without,
        shard.stat().st_size,
    )


def _samples(archive: tarfile.TarFile, shard: Path) -> Iterator[tuple[str, dict[str, tarfile.TarInfo]]]:
    """(name, members by suffix) of the samples of a shard."""
    last = ""
    parts: dict[str, tarfile.TarInfo] = {}
    while (member := archive.next()) is not None:
        archive.members = []  # type: ignore[attr-defined]  # otherwise it keeps all of them
        folder, _, name = member.name.rpartition("/")
        stem, _, suffix = name.partition(".")
        if not member.isreg() or member.issparse() or not stem:
            continue
        suffix = suffix.lower()
        if suffix in _PICKLED:
            raise DataError(
                f"{shard}: holds pickled data in {member.name}, which can run code when it is read; write labels as "
                "text in .cls, and leave such members out"
            )
        key = f"{folder}/{stem}" if folder else stem
        if key != last and parts:
            yield last, parts
            parts = {}
        last = key
        if suffix in parts:
            raise DataError(f"{shard}: has {member.name} twice, or with another case of its suffix; rename one of them")
        parts[suffix] = member
    if parts:
        yield last, parts


# ---- writing


def pack(data: DataModule, out: str | Path, shard_bytes: int = 256 << 20) -> list[tuple[str, str]]:
    """Write the images of a data set into shards, with their classes.

    The files are copied as they are. Shards are ``<split>-<number>.tar``, with ``classes.txt`` beside them.

    Args:
        data: images in files, with one class each.
        out: folder to write; it appears when all shards are written.
        shard_bytes: a shard is closed when it has so many bytes.

    Returns:
        (path, reason) of each file that is no image for a shard, and is left out.

    Raises:
        ConfigError: the data set is not of files with one class each, or ``shard_bytes`` is not positive.
        DataError: ``out`` is there already, or a class has a name that cannot be a line of text.
        StorageError: a shard cannot be written.
    """
    out = Path(out)
    splits = {name: split for name in SPLITS if (split := getattr(data, name)) is not None and len(split)}
    if not all(isinstance(split, ImageDataset) and split.regions is None for split in splits.values()):
        raise ConfigError(f"{data.name}: shards are made of image files; give such a data set, as `data` folder")
    if any(split.targets.ndim > 1 for split in splits.values()):
        raise ConfigError(f"{data.name}: its images have several labels each; shards hold one class")
    if shard_bytes < 1:
        raise ConfigError(f"shard_bytes: is {shard_bytes}; set it above 0")
    if out.exists():
        raise DataError(f"{out}: is there already; remove it, or choose another `out`")
    if fault := class_names_error(data.classes):
        raise DataError(f"{data.name}: its classes cannot be lines of {CLASSES}, {fault}; rename them")
    if spaced := next((name for name in data.classes if name != name.strip()), None):
        raise DataError(f"{data.name}: the class {spaced!r} begins or ends with a space; rename it")
    unfinished = out.with_name(f".{out.name}.unfinished")
    failed: list[tuple[str, str]] = []
    with storing(out):
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        try:
            (unfinished / CLASSES).write_text("".join(f"{name}\n" for name in data.classes), "utf-8")
            for name, split in splits.items():
                _pack_split(split, name, unfinished, shard_bytes, failed)
            unfinished.rename(out)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
    return failed


def _pack_split(
    images: ImageDataset, split: str, folder: Path, shard_bytes: int, failed: list[tuple[str, str]]
) -> None:
    """Write the shards of a split."""
    number, archive = 0, None
    for i in range(len(images)):
        try:
            content, suffix = _content(images, i)
        except ImageError as error:
            failed.append((images.path(i), str(error)))
            continue
        if archive is None:
            shard = folder / f"{split}-{number:06d}.tar"
            archive = tarfile.open(shard, "w", format=tarfile.PAX_FORMAT)  # noqa: SIM115
        stem = Path(images.path(i)).name.partition(".")[0] or "image"
        for ending, text in ((suffix, content), ("cls", str(int(images.targets[i])).encode())):
            member = tarfile.TarInfo(f"{i:08d}_{stem}.{ending}")
            member.size, member.mode = len(text), 0o644
            archive.addfile(member, io.BytesIO(text))
        if archive.offset >= shard_bytes:
            archive.close()
            index_of(shard)
            archive, number = None, number + 1
    if archive is not None:
        archive.close()
        index_of(shard)


def _content(images: ImageDataset, i: int) -> tuple[bytes, str]:
    """The bytes of an image file, and the suffix of its format.

    Raises:
        ImageError: it cannot be read, or is no image for a shard.
    """
    path = images.path(i)
    if isinstance(images, ShardDataset):
        content = images.content(i)
    else:
        with reading(path, "cannot be read", "check the path and the disk"):
            content = Path(path).read_bytes()
    open_content(content, path)  # the header is that of an image which shards can hold
    return content, {"JPEG": "jpg"}.get(kind := str(kind_of(content[:64])), kind.lower())

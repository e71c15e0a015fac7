"""Cache of tiled pyramids, converted from large images without tiles.

The conversion is lossless (zstd) and is logged. The key is the path, size and modification time of the image and of its
mask file; of a remote image its address and ETag. The size of the cache is limited; the least recently used pyramids
are removed first.

Example:
    >>> import tempfile
    >>> default_folder().name
    'pyramids'
    >>> import os
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     make = lambda target: open(target, "wb").close()
    ...     first, second = (cached(__file__, folder, make, "a test") for _ in range(2))
    >>> first == second
    True
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from foveal.errors import ImageError, StorageError
from foveal.files import locked, remove_unfinished, replacing

LIMIT = 20 << 30  # size of the cache in bytes
_TILE = 256
_DAY = 24 * 3600
_log = logging.getLogger("foveal")


def default_folder() -> Path:
    """``pyramids`` in ``$FOVEAL_CACHE``, or else in ``$XDG_CACHE_HOME/foveal`` or ``~/.cache/foveal``."""
    base = os.environ.get("FOVEAL_CACHE")
    return (
        Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "foveal"
    ) / "pyramids"


class Unconverted(ImageError):
    """An image must be converted before it can be read, and ``convert`` is False."""


def cached(
    path: str,
    folder: str | os.PathLike | None,
    make: Callable[[str], None],
    why: str,
    convert: bool = True,
    key: str | None = None,
) -> str:
    """Return the path of an image's pyramid; convert the image if it is not in the cache.

    Args:
        path: path of the image.
        folder: folder of the cache; `default_folder` if None.
        make: function that writes the pyramid to the given path.
        why: description of the image for messages, such as "a PNG of 300 megapixels".
        convert: convert the image if it is not in the cache.
        key: digest of what the image is, for one that is not a local file.

    Raises:
        ImageError: the folder cannot be written, or ``make`` fails.
        Unconverted: the image is not in the cache, and ``convert`` is False.
    """
    place = Path(folder) if folder is not None else default_folder()
    key = _key_of(path) if key is None else key
    target = place / f"{key}.tif"
    if target.exists():
        with suppress(OSError):  # the file may belong to another user
            os.utime(target)
        return str(target)
    if not convert:
        raise Unconverted(f"{path}: {why} has to be converted before it can be read; open it with convert=True")
    try:
        place.mkdir(parents=True, exist_ok=True)
        # Another worker may be converting the same image.
        with locked(_lock_of(target), f"{path}: another process is converting it", wait=math.inf):
            if target.exists():
                return str(target)
            _log.warning(
                "%s: %s cannot be read in parts; converting it once to a tiled pyramid in %s", path, why, place
            )
            remove_unfinished(place, target.name)
            with replacing(target) as unfinished:
                make(str(unfinished))
            _make_room(place, target)
    except (OSError, StorageError) as error:
        reason = error if isinstance(error, OSError) else error.__cause__
        what = f"its pyramid cannot be written to {place} ({getattr(reason, 'strerror', None) or reason})"
        raise ImageError(f"{path}: {what}; free space there or set FOVEAL_CACHE") from error
    return str(target)


def _key_of(path: str) -> str:
    """Digest of the path, size and time of a file."""
    stat = Path(path).stat()
    mask = Path(path + ".msk")  # the pyramid contains the mask
    beside = f" {mask.stat().st_size} {mask.stat().st_mtime_ns}" if mask.exists() else ""
    text = f"1 {os.path.realpath(path)} {stat.st_size} {stat.st_mtime_ns}{beside}"
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def write_pyramid(
    target: str, shape: tuple[int, int, int], dtype: np.dtype, rows: Callable[[int, int], np.ndarray], *, alpha: bool
) -> None:
    """Write a tiled pyramid. Each level is half the size of the one before, by averaging, down to 256 pixels.

    Args:
        target: path of the file to write.
        shape: (height, width, bands), including alpha.
        dtype: type of the pixels.
        rows: function that returns rows y0 to y1 as (y1 - y0, width, bands); it is called from top to bottom.
        alpha: the last band is alpha, and the other bands are premultiplied.
    """
    import tifffile

    h, w, bands = shape
    sizes = [(h, w)]
    while max(sizes[-1]) > _TILE:
        sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
    options: dict[str, Any] = {
        "tile": (_TILE, _TILE),
        "compression": "zstd",
        "photometric": "minisblack",
        "planarconfig": "contig" if bands > 1 else None,
        "metadata": None,
        "predictor": 2 if dtype.kind in "ui" else None,
        "extrasamples": [0] * (bands - 1 - alpha) + [1] * alpha,
    }
    with (
        tempfile.TemporaryFile(dir=Path(target).parent) as scratch,
        tifffile.TiffWriter(target, bigtiff=True) as writer,
    ):
        # The second level of a very large image may not fit in memory, so it is a memory-mapped file. Its disk space is
        # allocated first, because writing to a mapped file on a full disk kills the process.
        if len(sizes) > 1 and hasattr(os, "posix_fallocate"):
            os.posix_fallocate(scratch.fileno(), 0, math.prod(sizes[1]) * bands * dtype.itemsize)
        half = np.memmap(scratch, dtype, "w+", shape=(*sizes[1], bands)) if len(sizes) > 1 else None
        writer.write(_tiles(shape, rows, half), shape=_flat(shape), dtype=dtype, **options)
        level: np.ndarray | None = half
        for size in sizes[1:]:
            assert level is not None
            current, level = level, np.empty((-(-size[0] // 2), -(-size[1] // 2), bands), dtype)
            tiles = _tiles((*size, bands), lambda y0, y1, source=current: source[y0:y1], level)  # type: ignore[misc]
            writer.write(tiles, shape=_flat((*size, bands)), dtype=dtype, subfiletype=1, **options)


def _tiles(
    shape: tuple[int, int, int], rows: Callable[[int, int], np.ndarray], half: np.ndarray | None
) -> Iterator[np.ndarray]:
    """Yield the tiles of a level from top to bottom, and fill the next level ``half``."""
    h, w, bands = shape
    for top in range(0, h, _TILE):
        strip = np.asarray(rows(top, min(top + _TILE, h)))
        if half is not None:
            half[top // 2 : top // 2 + -(-len(strip) // 2)] = _halve(strip)
        for left in range(0, w, _TILE):
            tile = np.zeros((_TILE, _TILE, bands), strip.dtype)
            part = strip[:, left : left + _TILE]
            tile[: part.shape[0], : part.shape[1]] = part
            yield tile.reshape(_flat(tile.shape))


def _flat(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of pixels for tifffile, which would take the first axis of (height, width, 1) for pages."""
    return shape[:2] if shape[2] == 1 else shape


def _halve(pixels: np.ndarray) -> np.ndarray:
    """Average blocks of 2 x 2 pixels; an odd last row or column is repeated."""
    h, w = pixels.shape[:2]
    even = np.pad(pixels, ((0, h % 2), (0, w % 2), (0, 0)), mode="edge")
    if pixels.dtype.kind == "f":
        return (even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2]) / 4
    wide = np.uint16 if pixels.dtype == np.uint8 else np.int64
    even = even.astype(wide)
    return ((even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2] + 2) // 4).astype(pixels.dtype)


def _lock_of(pyramid: Path) -> Path:
    return pyramid.with_suffix(".lock")


def _make_room(folder: Path, kept: Path) -> None:
    """Remove unfinished files of killed processes, then the least recently used pyramids above `LIMIT`."""
    for file in folder.glob(".*.tif.*"):
        pyramid = folder / f"{file.name.split('.')[1]}.tif"
        with suppress(StorageError), locked(_lock_of(pyramid), "a living process writes it"):
            remove_unfinished(folder, pyramid.name)
    for file in folder.glob("tmp*.part"):  # temporary files of an older version, without the name of the pyramid
        with suppress(OSError):
            if time.time() - file.stat().st_mtime > _DAY:
                file.unlink()
    files = sorted((f.stat().st_mtime, f.stat().st_size, f) for f in folder.glob("[!.]*.tif"))
    total = sum(size for _, size, _ in files)
    for _, size, file in files:
        if total > LIMIT and file != kept:
            file.unlink(missing_ok=True)
            total -= size

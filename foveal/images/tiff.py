"""Tiled TIFF by positional reads: pyramids, Cloud-Optimised GeoTIFF, Aperio SVS, OME-TIFF.

The headers are parsed once by tifffile; after that a look is a few ``os.pread`` calls and decodes, of exactly the tiles
it needs. There is no shared file offset and no library state, so that threads, forked workers and pickling are safe.

What cannot be seen: a tile whose bytes were changed but still decode, as those of uncompressed and WebP tiles may.
Everything else that is damaged is an `ImageError`: a chain of levels that breaks off, tiles past the end of the file,
JPEG data cut short.

Example:
    >>> import numpy as np, tempfile, tifffile
    >>> from foveal.images import open_image
    >>> with tempfile.NamedTemporaryFile(suffix=".tif") as file:
    ...     tifffile.imwrite(file, np.zeros((512, 512, 3), np.uint8), tile=(256, 256))
    ...     image = open_image(file.name)
    ...     seen = image.look(np.array([[10, 10, 200, 200]]), (64, 64))
    >>> seen.shape, image.tiles_decoded, image.bytes_read
    (torch.Size([1, 3, 64, 64]), 1, 196608)
"""

from __future__ import annotations

import io
import logging
import os
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import simplejpeg
import tifffile

from foveal.errors import ImageError
from foveal.images import scale
from foveal.images.headers import Numbers, outline
from foveal.images.pyramid import Pyramid, Stored, Window

# tifffile logs what it makes of damaged files; without any handler Python prints that. We raise instead.
logging.getLogger("tifffile").addHandler(logging.NullHandler())

Lists = dict[int, tuple[Numbers | None, Numbers | None]]

_KEPT = 4 << 20  # bytes of decoded tiles kept for each image: glimpses overlap
_LARGEST_TILE = 1 << 28  # bytes
_JPEG = {6, 7, 34892, 33007}
_IMAGE_CODECS = _JPEG | {33003, 33005, 34712, 50001, 50002, 52546}
_COLOURS = {0: 1, 1: 1, 2: 3, 3: 1, 4: 1, 5: 4, 6: 3}
_NAMES = {0: "min-is-white", 1: "grey", 2: "RGB", 3: "palette", 4: "mask", 5: "CMYK", 6: "YCbCr"}


@dataclass
class Level:
    """Where the tiles of one level lie and how they are decoded; a strip is a tile as wide as the image."""

    height: int
    width: int
    tile: tuple[int, int]
    samples: int
    planar: bool
    compression: int
    photometric: int
    offsets: Numbers
    counts: Numbers
    tables: bytes | None
    decode: Callable[..., Any] = field(repr=False)

    @classmethod
    def of(cls, path: str, page: tifffile.TiffPage, lists: Lists) -> Level:
        offsets, counts = lists[page.offset]
        if offsets is None or counts is None:
            raise ImageError(f"{path}: does not say where its pixels are; the header is damaged, copy it again")
        tile = (page.tilelength, page.tilewidth) if page.is_tiled else (min(page.rowsperstrip, page.imagelength), page.imagewidth)
        planar = page.planarconfig == 2 and page.samplesperpixel > 1
        level = cls(
            page.imagelength, page.imagewidth, tile, page.samplesperpixel, planar, int(page.compression), int(page.photometric),
            offsets, counts, page.jpegtables, page.decode,
        )  # fmt: skip
        if page.dtype is None or min(tile) < 1 or tile[0] * tile[1] * page.samplesperpixel * page.dtype.itemsize > _LARGEST_TILE:
            raise ImageError(f"{path}: claims tiles of {tile[1]} x {tile[0]} pixels; the header is damaged, or tiles must be smaller")
        expected = level.rows * level.columns * (level.samples if planar else 1)
        if len(level.offsets) < expected or len(level.counts) < expected:
            found = min(len(level.offsets), len(level.counts))
            raise ImageError(f"{path}: lists {found} tiles where its size needs {expected}; the header is damaged, copy it again")
        return level

    @property
    def rows(self) -> int:
        return -(-self.height // self.tile[0])

    @property
    def columns(self) -> int:
        return -(-self.width // self.tile[1])


@dataclass
class Layout:
    """What the headers of a TIFF say.

    Attributes:
        levels: finest first.
        masks: for each level the mask of its valid pixels, or None.
        tiled: or in strips.
        bits: used bits of ``dtype``.
        bands: before conversion, without alpha.
        alpha: the band that is alpha, or None.
        palette: (n, 3) colours, or None.
        nodata: value that means "nothing here", or None.
    """

    levels: list[Level]
    masks: list[Level | None]
    tiled: bool
    dtype: np.dtype
    bits: int
    bands: int
    alpha: int | None
    premultiplied: bool
    palette: np.ndarray | None
    nodata: float | None
    orientation: int
    metadata: dict[str, Any]

    @property
    def photometric(self) -> int:
        return self.levels[0].photometric

    @property
    def shown_dtype(self) -> np.dtype:
        return np.dtype(np.uint8) if self.palette is not None else self.dtype

    @property
    def shown_bands(self) -> int:
        return 3 if self.photometric in (3, 5) else self.bands

    def options(self) -> dict[str, Any]:
        """Arguments of `Pyramid`."""
        bits = None if self.palette is not None or self.bits == self.dtype.itemsize * 8 else self.bits
        return {"orientation": self.orientation, "metadata": self.metadata, "premultiplied": self.premultiplied, "bits": bits}


def parse(path: str, name: str | None = None) -> Layout:
    """Read the headers.

    Args:
        path: the file.
        name: the path for messages, where it is another one.

    Raises:
        ImageError: not a TIFF, cut short, or of a kind that cannot be read.
    """
    name = name or path
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            small, lists = outline(descriptor)
        finally:
            os.close(descriptor)
        with tifffile.TiffFile(io.BytesIO(small)) as file:
            return _layout(name, file, lists)
    except ImageError:
        raise
    except Exception as error:
        what = f"the TIFF header cannot be read ({_short(error)})"
        raise ImageError(f"{name}: {what}; the file is damaged or cut short, copy it again") from error


def _layout(name: str, file: tifffile.TiffFile, lists: Lists) -> Layout:
    if len(file.pages) == 0:
        raise ImageError(f"{name}: has no readable image; the file is cut short, copy it again")
    first = file.pages.first
    height, width, photometric = first.imagelength, first.imagewidth, int(first.photometric)
    if height < 1 or width < 1:
        raise ImageError(f"{name}: the image is {width} x {height} pixels; there is nothing to see, make it again")
    if first.dtype is None:
        raise ImageError(f"{name}: has {first.bitspersample} bits of sample format {first.sampleformat}, which cannot be read; convert it")
    plain = int(first.compression) not in _IMAGE_CODECS
    if photometric not in _COLOURS or (photometric == 6 and plain) or first.samplesperpixel < _COLOURS[photometric]:
        kind = _NAMES.get(photometric, f"photometric {photometric}")
        raise ImageError(f"{name}: stores {kind} pixels with {first.samplesperpixel} samples, which cannot be read; convert it to RGB")
    others = [page.aspage() for page in ((first.pages or []) if first.subifds else list(file.pages)[1:])]
    levels, pages, masks = [Level.of(name, first, lists)], [first], [_mask_of(name, first, others, lists)]
    for page in others:
        if first.is_tiled and _is_level(page, first, pages[-1]):
            levels.append(Level.of(name, page, lists))
            pages.append(page)
            masks.append(_mask_of(name, page, others, lists))
    extra = [int(kind) for kind in first.extrasamples]
    alpha = next((first.samplesperpixel - len(extra) + i for i, kind in enumerate(extra) if kind in (1, 2)), None)
    colours = first.colormap if photometric == 3 else None
    return Layout(
        levels, masks, tiled=bool(first.is_tiled), dtype=first.dtype.newbyteorder("="), bits=first.bitspersample,
        bands=first.samplesperpixel - (alpha is not None), alpha=alpha, premultiplied=alpha is not None and 1 in extra,
        palette=None if colours is None else (colours.T >> 8).astype(np.uint8), nodata=_nodata(first),
        orientation=int(first.tags.valueof(274) or 1), metadata=_metadata(first),
    )  # fmt: skip


def _is_level(page: tifffile.TiffPage, first: tifffile.TiffPage, finer: tifffile.TiffPage) -> bool:
    """Whether a page is the next coarser level: not a mask, thumbnail, label, macro or another focal plane."""
    skew = abs(page.imagewidth * first.imagelength - page.imagelength * first.imagewidth)
    return bool(
        page.is_tiled and not int(page.subfiletype) & 4 and page.dtype == first.dtype and page.samplesperpixel == first.samplesperpixel
        and 0 < page.imagewidth < finer.imagewidth and page.imagelength > 0 and skew <= 2 * max(first.imagewidth, first.imagelength)
    )  # fmt: skip


def _mask_of(name: str, page: tifffile.TiffPage, others: list[tifffile.TiffPage], lists: Lists) -> Level | None:
    shape = (page.imagelength, page.imagewidth)
    mask = next((p for p in others if int(p.subfiletype) & 4 and (p.imagelength, p.imagewidth) == shape), None)
    return None if mask is None else Level.of(name, mask, lists)


def _nodata(page: tifffile.TiffPage) -> float | None:
    """GDAL's no-data value, unless the type of the pixels cannot hold it."""
    text = page.tags.valueof(42113)
    if text is None:
        return None
    try:
        value = float(str(text).strip("\0 "))
        dtype = page.dtype or np.dtype(float)
        return value if dtype.kind == "f" or float(np.array(value).astype(dtype)) == value else None
    except (ValueError, OverflowError):
        return None


def _metadata(page: tifffile.TiffPage) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if page.description:
        found["description"] = page.description
    if (mpp := scale.of_page(page)) is not None:
        found["mpp"] = mpp
    if geo := page.geotiff_tags:
        found["geo"] = geo
    return found


class TiffPyramid(Pyramid):
    """A TIFF of which single tiles are read.

    Args:
        path: for messages, and the file unless ``file`` is given.
        layout: its headers, parsed.
        file: the file to read instead: a cached conversion of ``path``.
        channels, value_range: see `foveal.images.open_image`.
        options: overrides of what the headers say; see `Pyramid`.
    """

    def __init__(
        self, path: str, layout: Layout, *, file: str | None = None, channels: int | None = None,
        value_range: tuple[float, float] | None = None, **options: Any,
    ) -> None:  # fmt: skip
        sizes = [(level.height, level.width) for level in layout.levels]
        options = {**layout.options(), "channels": channels, "value_range": value_range, **options}
        super().__init__(path, sizes, layout.shown_bands, layout.shown_dtype, **options)
        self._file = file or path
        self._layout: Layout | None = layout
        self._descriptor: int | None = None
        self._kept: OrderedDict[tuple[int, int, bool], np.ndarray] = OrderedDict()
        self._kept_bytes = 0

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def __del__(self) -> None:
        if getattr(self, "_descriptor", None) is not None:
            self.close()

    def __getstate__(self) -> dict[str, Any]:
        # Decoders cannot be pickled; the headers are parsed again when, and if, the copy is looked at.
        return {**super().__getstate__(), "_layout": None, "_descriptor": None, "_kept": OrderedDict(), "_kept_bytes": 0}

    def read_whole(self) -> Stored:
        """All of level 0, before orientation: (h, w, bands) and (h, w) alpha or None."""
        return self._read_stored([(0, (0, 0, *self._stored_sizes[0]))])[0]

    @property
    def has_gaps(self) -> bool:
        """Whether the file leaves out tiles of level 0."""
        layout, descriptor = self._connect()
        return not layout.levels[0].counts.all(descriptor).all()

    def _connect(self) -> tuple[Layout, int]:
        with self._lock:
            if self._layout is None:
                self._layout = parse(self._file, self.path)
            if self._descriptor is None:
                try:
                    self._descriptor = os.open(self._file, os.O_RDONLY)
                except OSError as error:
                    raise ImageError(f"{self.path}: cannot be opened any more ({error.strerror}); put it back") from error
            return self._layout, self._descriptor

    def _read_stored(self, requests: list[tuple[int, Window]]) -> list[Stored]:
        layout, _ = self._connect()
        shapes = [(y1 - y0, x1 - x0, layout.levels[level].samples) for level, (y0, x0, y1, x1) in requests]
        buffers = [np.zeros(shape, layout.dtype) for shape in shapes]
        absent = self._paste(layout.levels, requests, buffers, mask=False)
        valid: list[np.ndarray | None] = [None] * len(requests)
        masked = [i for i, (level, _) in enumerate(requests) if layout.masks[level] is not None]
        if masked:
            covers = [np.zeros((*buffers[i].shape[:2], 1), np.uint8) for i in masked]
            self._paste(layout.masks, [requests[i] for i in masked], covers, mask=True)
            for i, cover in zip(masked, covers, strict=True):
                valid[i] = cover[..., 0] != 0
        return [_show(layout, b, a, v) for b, a, v in zip(buffers, absent, valid, strict=True)]

    def _paste(self, levels: Any, requests: list[tuple[int, Window]], buffers: list[np.ndarray], mask: bool) -> list[np.ndarray | None]:
        """Fill the buffers tile by tile, each tile once, in the order of the file; return where tiles are absent, if any are."""
        users: dict[tuple[int, int], list[int]] = defaultdict(list)
        for i, (number, (y0, x0, y1, x1)) in enumerate(requests):
            level = levels[number]
            th, tw = level.tile
            for plane in range(level.samples if level.planar else 1):
                for row in range(y0 // th, (y1 - 1) // th + 1):
                    start = (plane * level.rows + row) * level.columns
                    for column in range(x0 // tw, (x1 - 1) // tw + 1):
                        users[number, start + column].append(i)
        absent: list[np.ndarray | None] = [None] * len(requests)
        _, descriptor = self._connect()
        for at, number, index in sorted((levels[n].offsets.get(descriptor, i), n, i) for n, i in users):
            level = levels[number]
            tile = self._tile(level, number, index, at, mask)
            plane, place = divmod(index, level.rows * level.columns)
            top, left = (n * t for n, t in zip(divmod(place, level.columns), level.tile, strict=True))
            height, width = level.tile if tile is None else tile.shape[:2]
            for i in users[number, index]:
                y, x, y_end, x_end = requests[i][1]
                y0, x0, y1, x1 = max(y, top), max(x, left), min(y_end, top + height), min(x_end, left + width)
                target = np.s_[y0 - y : y1 - y, x0 - x : x1 - x]
                if tile is None:
                    if absent[i] is None:
                        absent[i] = np.zeros(buffers[i].shape[:2], bool)
                    absent[i][target] = True  # type: ignore[index]
                else:
                    piece = tile[y0 - top : y1 - top, x0 - left : x1 - left]
                    if level.planar:
                        buffers[i][(*target, plane)] = piece[..., 0]
                    else:
                        buffers[i][target] = piece
        return absent

    def _tile(self, level: Level, number: int, index: int, at: int, mask: bool) -> np.ndarray | None:
        """(h, w, samples) of one tile, None where the file leaves it out."""
        key = (number, index, mask)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        _, descriptor = self._connect()
        length = level.counts.get(descriptor, index)
        if length == 0:
            return None
        where = f"{self.path}: tile {index} of level {number}"
        try:
            data = os.pread(descriptor, length, at)
        except OSError as error:
            raise ImageError(f"{where} cannot be read ({error.strerror}); check the disk and copy the file again") from error
        if len(data) != length:
            raise ImageError(f"{where} lies past the end of the file; the file is cut short, copy it again")
        try:
            tile = decode(level, data, index)
        except Exception as error:
            raise ImageError(f"{where} cannot be decoded ({_short(error)}); the file is damaged there, copy it again") from error
        self._count(length, 1)
        with self._lock:
            self._kept[key] = tile
            self._kept_bytes += tile.nbytes
            while self._kept_bytes > _KEPT:
                self._kept_bytes -= self._kept.popitem(last=False)[1].nbytes
        return tile


def decode(level: Level, data: bytes, index: int) -> np.ndarray:
    """(h, w, samples) of one tile's bytes; raises whatever the decoder raises, and where JPEG data breaks off."""
    # The decoders of JPEG and JPEG 2000 make up what is missing; both formats end with the same marker.
    if (level.compression in _JPEG or data.startswith(b"\xff\x4f\xff\x51")) and not data.rstrip(b"\0").endswith(b"\xff\xd9"):
        raise ValueError("JPEG data cut short")
    if level.compression == 7 and level.photometric == 6 and level.samples == 3 and not level.planar:
        return simplejpeg.decode_jpeg((level.tables[:-2] + data[2:]) if level.tables else data, strict=True)
    tile = level.decode(data, index, jpegtables=level.tables)[0][0]
    if level.compression == 33003 and level.samples == 3 and not _jpeg2000_transformed(data):
        tile = _from_ycbcr(tile)
    return tile


def _jpeg2000_transformed(data: bytes) -> bool:
    """Whether the codestream says that the decoder must undo a colour transform (and has done so)."""
    at = data.find(b"\xff\x52")
    return at >= 0 and data[at + 8] != 0


def _from_ycbcr(tile: np.ndarray) -> np.ndarray:
    y, cb, cr = np.moveaxis(tile.astype(np.float32), -1, 0)
    rgb = np.stack([y + 1.402 * (cr - 128), y - 0.344136 * (cb - 128) - 0.714136 * (cr - 128), y + 1.772 * (cb - 128)], -1)
    return np.clip(np.rint(rgb), 0, 255).astype(tile.dtype)


def _show(layout: Layout, stored: np.ndarray, absent: np.ndarray | None, valid: np.ndarray | None) -> Stored:
    """Colours and alpha of stored samples."""
    highest = (1 << layout.bits) - 1
    pixels = stored if layout.alpha is None else np.delete(stored, layout.alpha, axis=2)
    alpha = None if layout.alpha is None else stored[..., layout.alpha].astype(np.float32) / np.float32(highest)
    hidden = [] if absent is None else [absent]
    if valid is not None:
        hidden.append(~valid)
    if layout.nodata is not None and layout.palette is None:
        hidden.append((pixels == layout.nodata).all(2))
    if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
        hidden.append(~np.isfinite(pixels).all(2))
        pixels = np.where(np.isfinite(pixels), pixels, 0).astype(pixels.dtype)
    if hidden:
        seen = ~np.logical_or.reduce(hidden)
        if not seen.all():
            alpha = seen.astype(np.float32) if alpha is None else alpha * seen
    if alpha is not None and alpha.min() == 1:
        alpha = None
    if layout.palette is not None:
        pixels = layout.palette[pixels[..., 0]]
    elif layout.photometric == 5:
        pixels = from_cmyk(pixels, highest)
    elif layout.photometric == 0 and pixels.dtype.kind in "ub":
        pixels = ~pixels if pixels.dtype == bool else (highest - pixels).astype(pixels.dtype)
    return pixels, alpha


def from_cmyk(pixels: np.ndarray, highest: int) -> np.ndarray:
    """(h, w, 3) RGB of (h, w, 4) ink amounts, without a colour profile, as Pillow does."""
    light = highest - pixels.astype(np.float32)
    return np.rint(light[..., :3] * light[..., 3:4] / highest).astype(pixels.dtype)


def _short(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 120 else text[:117] + "..."

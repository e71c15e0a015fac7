"""Reader of TIFFs: pyramids, Cloud-Optimised GeoTIFF, Aperio SVS, OME-TIFF.

tifffile parses the headers once. Each look then reads and decodes only the tiles it needs, at their positions in the
file. There is no shared file offset and no library state, so threads, forked workers and pickling are safe.

Damage raises an `ImageError`: broken chains of levels, tiles past the end of the file, incomplete JPEG data, tiles
whose size differs from the header. Changed bytes that still decode cannot be detected, as in uncompressed, WebP and
JPEG 2000 tiles.

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
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tifffile

from foveal.errors import ImageError
from foveal.images import pages, scale
from foveal.images.colours import from_cmyk, from_lab, from_ycbcr
from foveal.images.headers import outline
from foveal.images.pyramid import ORIENTATIONS, Pyramid, Stored, Window, without_gaps
from foveal.images.reading import OpenFile, check_inside, open_file, read_ahead, read_tiles, reading
from foveal.images.tiles import IMAGE_CODECS, Level, Source, decode_tile

if TYPE_CHECKING:
    from foveal.images.remote import RemoteObject

# tifffile logs faults of damaged files, which Python prints if there is no handler. Damage raises errors here instead.
logging.getLogger("tifffile").addHandler(logging.NullHandler())

_KEPT = 4 << 20  # size of the cache of decoded tiles of each image, in bytes; glimpses overlap
_MOST_KEPT = 32 << 20  # its largest size during a scan, whose blocks overlap
_ROUND = 32 << 20  # bytes of tiles of a remote file that are read in one round
_CONSTANT = 32  # tiles that shrink by this factor or more are tested for a constant colour
_MOST_CONSTANT = 64  # encoded constant tiles that are remembered
_COLOURS = {0: 1, 1: 1, 2: 3, 3: 1, 4: 1, 5: 4, 6: 3, 8: 3, 9: 3}
_NAMES = {
    0: "min-is-white",
    1: "grey",
    2: "RGB",
    3: "palette",
    4: "mask",
    5: "CMYK",
    6: "YCbCr",
    8: "CIELAB",
    9: "ICCLAB",
}


@dataclass
class TiffLayout:
    """Levels and pixel format of a TIFF.

    Attributes:
        levels: the levels, finest first.
        masks: for each level the mask of valid pixels, or None.
        tiled: whether the pixels are stored in tiles; otherwise in strips.
        dtype: type of the stored samples.
        bits: used bits of ``dtype``.
        bands: number of stored bands, without alpha.
        alpha: index of the alpha band, or None.
        premultiplied: whether the colours are premultiplied by alpha.
        palette: (n, 3) colours, or None.
        nodata: value of pixels without data, or None.
        orientation: EXIF orientation, 1 to 8.
        metadata: see `Pyramid`.
        convert: function that converts stored colours to RGB if the codec does not, or None.
        vendor: name of the vendor of a slide whose tiles only OpenSlide can place, or None.
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
    convert: Callable[[np.ndarray], np.ndarray] | None = None
    vendor: str | None = None

    @property
    def photometric(self) -> int:
        return self.levels[0].photometric

    @property
    def shown_dtype(self) -> np.dtype:
        return np.dtype(np.uint8) if self.palette is not None else self.dtype

    @property
    def shown_bands(self) -> int:
        return 3 if self.photometric in (3, 5) else self.bands

    @property
    def cost(self) -> int:
        """Size of the decoded level 0 in bytes."""
        level = self.levels[0]
        return level.height * level.width * level.samples * self.dtype.itemsize

    def looking_cost(self, number: int) -> int:
        """Memory of a look at a whole level in bytes; with alpha or no data it includes two float32 copies."""
        level = self.levels[number]
        gaps = self.alpha is not None or self.nodata is not None or self.masks[0] is not None or self.dtype.kind == "f"
        each = self.shown_bands * self.shown_dtype.itemsize + level.samples * self.dtype.itemsize
        return level.height * level.width * (each + 8 * (self.shown_bands + 1) * gaps)

    def options(self) -> dict[str, Any]:
        """Keyword arguments of `Pyramid`."""
        bits = None if self.palette is not None or self.bits == self.dtype.itemsize * 8 else self.bits
        return {
            "orientation": self.orientation,
            "metadata": self.metadata,
            "premultiplied": self.premultiplied,
            "bits": bits,
        }


def parse_tiff(path: str, name: str | None = None, remote: RemoteObject | None = None) -> TiffLayout:
    """Parse the headers of a TIFF.

    Args:
        path: path of the file.
        name: path for messages; ``path`` if None.
        remote: the file, if it is remote. Files beside it are not looked for.

    Raises:
        ImageError: the file is not a TIFF, is damaged, or has an unsupported pixel format.
    """
    name = name or path
    with reading(name, "the TIFF header cannot be read"):
        source, file = open_tiff(path, name, remote)
        with file:
            layout, picture = _layout(source, file)
            if remote is None:
                _add_files_beside(layout, picture, path, name)
        return layout


def open_tiff(path: str, name: str, remote: RemoteObject | None = None) -> tuple[Source, tifffile.TiffFile]:
    """Open the headers of a TIFF, without its lists of tiles.

    Args:
        path: path of the file.
        name: path for messages.
        remote: the file, if it is remote.
    """
    if remote is not None:
        small, lists = outline(remote)
    else:
        descriptor = open_file(path)
        try:
            small, lists = outline(descriptor)
        finally:
            os.close(descriptor)
    return Source(path, name, lists), tifffile.TiffFile(io.BytesIO(small))


def _add_files_beside(layout: TiffLayout, picture: pages.Picture, path: str, name: str) -> None:
    """Add the levels in ``.ovr`` and the masks in ``.msk`` that GDAL writes beside a file."""
    if layout.tiled and Path(path + ".ovr").exists():
        source, file = open_tiff(path + ".ovr", name)
        with file:
            for level in pages.coarser(picture, file):
                layout.levels.append(Level.of(source, level.pages, size=level.size))
                layout.masks.append(None)
    masks: list[Level] = []
    for beside in (path + ".msk", path + ".msk.ovr"):
        if Path(beside).exists():
            source, file = open_tiff(beside, name)
            with file:
                masks += [Level.of(source, [page.aspage()]) for page in file.pages]
    if masks:
        sizes = {(mask.height, mask.width): mask for mask in reversed(masks)}
        layout.masks = [
            own or sizes.get((level.height, level.width))
            for level, own in zip(layout.levels, layout.masks, strict=True)
        ]
    if layout.masks[0] is not None:  # drop levels without a mask, which would show masked pixels
        kept = [i for i, mask in enumerate(layout.masks) if mask is not None]
        layout.levels, layout.masks = [layout.levels[i] for i in kept], [layout.masks[i] for i in kept]


def _layout(source: Source, file: tifffile.TiffFile) -> tuple[TiffLayout, pages.Picture]:
    name = source.name
    if len(file.pages) == 0:
        raise ImageError(f"{name}: has no readable image; the file is cut short, copy it again")
    picture = pages.find_picture(file)
    first = picture.levels[0].pages[0]
    height, width, photometric = first.imagelength, first.imagewidth, int(first.photometric)
    if height < 1 or width < 1:
        raise ImageError(f"{name}: the image is {width} x {height} pixels, with nothing to see; save it again")
    if first.dtype is None:
        raise ImageError(
            f"{name}: has {first.bitspersample} bits of sample format {first.sampleformat}, which cannot be read; "
            "convert it"
        )
    convert = _conversion(first)
    counted = photometric in _COLOURS and first.samplesperpixel >= _COLOURS[photometric]
    if not counted or (convert is not None and first.dtype not in (np.uint8, np.uint16)[: 2 if photometric > 6 else 1]):
        kind = _NAMES.get(photometric, f"photometric {photometric}")
        raise ImageError(
            f"{name}: stores {kind} pixels with {first.samplesperpixel} samples, which cannot be read; convert it to "
            "RGB"
        )
    levels = [Level.of(source, level.pages, size=level.size, channels=picture.channels) for level in picture.levels]
    masks = [None if level.mask is None else Level.of(source, [level.mask]) for level in picture.levels]
    extra = [int(kind) for kind in first.extrasamples]
    alpha = next((first.samplesperpixel - len(extra) + i for i, kind in enumerate(extra) if kind in (1, 2)), None)
    colours = first.colormap if photometric == 3 else None
    layout = TiffLayout(
        levels,
        masks,
        tiled=bool(first.is_tiled),
        dtype=first.dtype.newbyteorder("="),
        bits=first.bitspersample,
        bands=levels[0].samples - (alpha is not None),
        alpha=alpha,
        premultiplied=alpha is not None and 1 in extra,
        palette=None if colours is None else (colours.T >> 8).astype(np.uint8),
        nodata=_nodata(first),
        orientation=_orientation(first, picture.parent),
        metadata=_metadata(first, picture.parent),
        convert=convert,
        vendor=_vendor(picture.parent),
    )
    return layout, picture


def _vendor(page: tifffile.TiffPage) -> str | None:
    """Vendor of a slide with overlapping tiles or a private layout, by the first page of the file."""
    with suppress(Exception):
        xmp = page.tags.valueof(700)
        if isinstance(xmp, bytes) and b"<iScan" in xmp:
            return "Ventana"
        if str(page.tags.valueof(305) or "").startswith("MedScan") and "OverlapsXY" in page.description:
            return "Trestle"
        if page.tags.get(65420) is not None:  # a private tag of NDPI
            return "Hamamatsu"
        if "http://www.leica-microsystems.com/scn/" in page.description:
            return "Leica"
    return None


def _conversion(page: tifffile.TiffPage) -> Callable[[np.ndarray], np.ndarray] | None:
    photometric = int(page.photometric)
    if photometric in (8, 9):
        return partial(from_lab, offset=photometric == 9)
    if photometric != 6 or int(page.compression) in IMAGE_CODECS:
        return None
    given: dict[str, Any] = {}
    for name, code in (("shares", 529), ("ends", 532)):
        if numbers := page.tags.valueof(code):
            given[name] = [over / (under or 1) for over, under in zip(numbers[::2], numbers[1::2], strict=True)]
    return partial(from_ycbcr, **given)


def _nodata(page: tifffile.TiffPage) -> float | None:
    """No-data value of GDAL; None if there is none or the type of the pixels cannot represent it."""
    text = page.tags.valueof(42113)
    if text is None:
        return None
    try:
        value = float(str(text).strip("\0 "))
        dtype = page.dtype or np.dtype(float)
        with np.errstate(invalid="ignore"):
            return value if dtype.kind == "f" or float(np.array(value).astype(dtype)) == value else None
    except (ValueError, OverflowError):
        return None


def _metadata(page: tifffile.TiffPage, parent: tifffile.TiffPage) -> dict[str, Any]:
    """Description, pixel size and georeference. Damaged metadata are ignored."""
    found: dict[str, Any] = {}
    with suppress(Exception):
        if description := page.description or parent.description:
            found["description"] = description
    with suppress(Exception):
        mpp = scale.of_page(page)
        if mpp is None and not page.description:
            mpp = scale.described(parent.description or "")
        if mpp is not None:
            found["mpp"] = mpp
    with suppress(Exception):
        if geo := page.geotiff_tags:
            found["geo"] = geo
    return found


def _orientation(*pages: tifffile.TiffPage) -> int:
    found = (value for page in pages if isinstance(value := page.tags.valueof(274), int))
    return next(found, 1)


class TiffPyramid(Pyramid):
    """A TIFF whose tiles are read when they are needed.

    Args:
        path: path of the image, for messages.
        layout: layout of the file.
        file: path of the file to read if it is a cached conversion of ``path``, or its address if it is remote;
            ``path`` if None.
        remote: the file, if it is remote.
        channels, value_range, max_bytes: see `foveal.images.open_image`.
        options: replacements of the options in ``layout``; see `Pyramid`.
    """

    remote: RemoteObject | None

    def __init__(
        self,
        path: str,
        layout: TiffLayout,
        *,
        file: str | None = None,
        remote: RemoteObject | None = None,
        channels: int | None = None,
        value_range: tuple[float, float] | None = None,
        max_bytes: int | None = None,
        **options: Any,
    ) -> None:
        sizes = [(level.height, level.width) for level in layout.levels]
        if any(level.halved for level in layout.levels):
            options = {"halved": [level.halved for level in layout.levels], **options}
        options = {
            **layout.options(),
            "channels": channels,
            "value_range": value_range,
            "max_bytes": max_bytes,
            **options,
        }
        super().__init__(path, sizes, layout.shown_bands, layout.shown_dtype, **options)
        self._file = file or path
        self.remote = remote
        self._layout: TiffLayout | None = layout
        self._descriptors: dict[str, int] = {}
        self._kept: OrderedDict[tuple[int, int, bool], np.ndarray] = OrderedDict()
        self._kept_bytes = 0
        self._keep = _KEPT
        self._constant: dict[tuple, np.ndarray] = {}
        self._counts: dict[int, np.ndarray] = {}

    def close(self) -> None:
        descriptors, self._descriptors = self._descriptors, {}
        for descriptor in descriptors.values():
            os.close(descriptor)

    def __del__(self) -> None:
        if getattr(self, "_descriptors", None):
            self.close()

    def __getstate__(self) -> dict[str, Any]:
        # Decoders cannot be pickled. The headers are parsed again on the first look at the copy.
        empty: dict[str, Any] = {"_layout": None, "_descriptors": {}, "_kept": OrderedDict(), "_kept_bytes": 0}
        return {**super().__getstate__(), **empty, "_constant": {}, "_counts": {}}

    def read_whole(self) -> Stored:
        """Read all of level 0, before orientation: (h, w, bands) and (h, w) alpha or None."""
        return self._read_stored([(0, (0, 0, *self._stored_sizes[0]))])[0]

    def keep_rows(self) -> None:
        """Enlarge the cache to a full row of tiles, for reading from top to bottom."""
        level = self._headers().levels[0]
        self._keep = min(
            max(_KEPT, level.tile_cost * level.columns * (level.samples if level.planar else 1)), self._max_bytes
        )

    def read_lists(self, most: int) -> None:
        """Read the lists of tiles of the levels that have at most ``most`` bytes, so that a remote file keeps them."""
        for level in self._headers().levels:
            lists = [numbers for numbers in (level.offsets, level.counts) if len(numbers)]
            spans = [(numbers.span(0), numbers.span(len(numbers) - 1)) for numbers in lists]
            whole = [(start, end + length - start) for (start, _), (end, length) in spans if end >= start]
            read_ahead(self._descriptor(level.file), [span for span in whole if span[1] <= most])

    @property
    def has_gaps(self) -> bool:
        """Whether tiles of level 0 are missing, as in sparse files."""
        level = self._headers().levels[0]
        return not level.counts.all(self._descriptor(level.file)).all()

    def is_constant(self, box: Sequence[float], size: tuple[int, int]) -> bool:
        layout = self._headers()
        number, how = self._planned(box, size)
        level = layout.levels[number]
        if how.empty or self._orientation != 1 or level.planar or layout.masks[number] is not None:
            return False
        descriptor, lengths = self._descriptor(level.file), {len(same[-1]) for same in list(self._constant)}
        values: list[Any] = []
        indices = list(_indices(level, how.window, 0))
        self._keep = max(self._keep, min(len(indices) * level.tile_cost, _MOST_KEPT))
        for index in indices:
            length = level.counts.get(descriptor, index)
            if length and length not in lengths and (number, index, False) not in self._kept:
                return False  # it would have to be decoded
            tile = self._tile(level, number, index, level.offsets.get(descriptor, index), False)
            if tile is not None and not _is_constant(tile):
                return False
            values.append(tile if tile is None else tile[0, 0].tolist())
            if values[-1] != values[0]:
                return False
        return True

    def tile_bytes(self, y: np.ndarray, x: np.ndarray, spacing: float) -> np.ndarray:
        number = self._level((0, 0, spacing, spacing), (1, 1), True)
        level = self._headers().levels[number]
        if number not in self._counts:
            planes = level.samples if level.planar else 1
            counts = level.counts.all(self._descriptor(level.file))[: planes * level.rows * level.columns]
            self._counts[number] = counts.astype(np.int64).reshape(planes, level.rows, level.columns).sum(0)
        transpose, *flips = ORIENTATIONS[self._orientation]
        at = [v * scale for v, scale in zip((y, x), self._scales[number], strict=True)]
        at = [n - v if flip else v for v, n, flip in zip(at, self.level_sizes[number], flips, strict=True)]
        row, column = (v // n for v, n in zip(at[:: -1 if transpose else 1], level.tile, strict=True))
        row, column = row.clip(0, level.rows - 1), column.clip(0, level.columns - 1)
        return self._counts[number][row.astype(int), column.astype(int)]

    def read_ahead(self, boxes: np.ndarray, sizes: Sequence[tuple[int, int]]) -> None:
        if (remote := self._remote_file) is None:
            return
        levels, tiles = self._headers().levels, set()
        for number, how in map(self._planned, boxes.tolist(), sizes):
            if not how.empty:
                planes = range(levels[number].samples if levels[number].planar else 1)
                tiles |= {(number, i) for plane in planes for i in _indices(levels[number], how.window, plane)}
        self._read_entries(levels, tiles)
        wanted = sorted(tile for tile in tiles if (*tile, False) not in self._kept)
        remote.hold([(levels[n].offsets.get(remote, i), levels[n].counts.get(remote, i)) for n, i in wanted])

    def _read_entries(self, levels: Any, tiles: Iterable[tuple[int, int]]) -> None:
        """Read the entries of tiles (level, index) in the lists of a remote file, in one round."""
        if self._remote_file is not None:
            lists = (numbers for n, i in tiles for numbers in (levels[n].offsets.span(i), levels[n].counts.span(i)))
            read_ahead(self._remote_file, lists)

    @property
    def _remote_file(self) -> RemoteObject | None:
        """The remote file that is read; None if it is local, also as the cached conversion of a remote one."""
        return self.remote if self.remote is not None and self._file == self.remote.uri else None

    def _headers(self) -> TiffLayout:
        with self._lock:
            if self._layout is None:
                self._layout = parse_tiff(self._file, self.path, self._remote_file)
            return self._layout

    def _descriptor(self, file: str) -> OpenFile:
        if (remote := self._remote_file) is not None:
            return remote
        with self._lock:
            if file not in self._descriptors:
                with reading(self.path, "cannot be opened any more", "put it back"):
                    self._descriptors[file] = open_file(file)
            return self._descriptors[file]

    def _read_stored(self, requests: list[tuple[int, Window]]) -> list[Stored]:
        layout = self._headers()
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

    def _paste(
        self, levels: Any, requests: list[tuple[int, Window]], buffers: list[np.ndarray], mask: bool
    ) -> list[np.ndarray | None]:
        """Fill the buffers, reading each tile once, in file order; return masks of missing tiles, or None."""
        users: dict[tuple[int, int], list[int]] = defaultdict(list)
        for i, (number, window) in enumerate(requests):
            level = levels[number]
            for plane in range(level.samples if level.planar else 1):
                for index in _indices(level, window, plane):
                    users[number, index].append(i)
        absent: list[np.ndarray | None] = [None] * len(requests)
        descriptors = {n: self._descriptor(levels[n].file) for n, _ in users}
        self._read_entries(levels, users)
        places = sorted((levels[n].file, levels[n].offsets.get(descriptors[n], i), n, i) for n, i in users)
        for at, number, index, data in self._with_data(levels, places, mask):
            level = levels[number]
            tile = self._tile(level, number, index, at, mask, data)
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
                        buffers[i][target] = piece[..., : buffers[i].shape[2]]
        return absent

    def _with_data(
        self, levels: Any, places: list[tuple[str, int, int, int]], mask: bool
    ) -> Iterator[tuple[int, int, int, bytes | None]]:
        """(position, level, index, bytes) of tiles. The bytes of those of remote files are read ahead, many in one
        round; None for others, and for those that are kept."""
        remote = self._remote_file
        if remote is None:
            yield from ((at, number, index, None) for _, at, number, index in places)
            return
        waiting: list[tuple[int, int, int, int]] = []
        total = 0
        for _, at, number, index in places:
            length = 0 if (number, index, mask) in self._kept else levels[number].counts.get(remote, index)
            waiting.append((at, length, number, index))
            total += length
            if total > _ROUND:
                yield from _fetched(remote, waiting)
                waiting, total = [], 0
        yield from _fetched(remote, waiting)

    def _tile(
        self, level: Level, number: int, index: int, at: int, mask: bool, data: bytes | None = None
    ) -> np.ndarray | None:
        """(h, w, samples) of one tile; None if it is missing in a sparse file. A constant tile has strides of 0.

        A tile with the bytes of one that was decoded and found constant is not decoded: equal bytes decode equally.
        """
        key = (number, index, mask)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        descriptor = self._descriptor(level.file)
        length = level.counts.get(descriptor, index)
        where = f"tile {index} of level {number}"
        with reading(self.path, f"{where} cannot be read", "check the disk, and copy the file again"):
            if length == 0:
                check_inside(descriptor, at)
                return None
            data = read_tiles(descriptor, [(at, length)])[0] if data is None else data
        # Decoding depends on the plane, by its tables, and on the size of tiles at the edges.
        same = (number, mask, index // (level.rows * level.columns), *level.shapes(index), data)
        small = length * _CONSTANT <= level.tile_cost
        tile = self._constant.get(same) if small else None
        self._count(length, tile is None)
        if tile is None:
            with reading(self.path, f"{where} cannot be decoded", "the file is damaged there, copy it again"):
                tile = decode_tile(level, data, index)
            if small and (tile == tile[:1, :1]).all():
                tile = np.broadcast_to(tile[:1, :1].copy(), tile.shape)
        with self._lock:
            if _is_constant(tile) and len(self._constant) < _MOST_CONSTANT:
                self._constant[same] = tile
            if key not in self._kept:
                self._kept[key] = tile
                self._kept_bytes += _held(tile)
            while self._kept_bytes > self._keep:
                self._kept_bytes -= _held(self._kept.popitem(last=False)[1])
        return tile


def _fetched(
    remote: RemoteObject, waiting: list[tuple[int, int, int, int]]
) -> Iterator[tuple[int, int, int, bytes | None]]:
    """Read (position, length, level, index) of tiles in one round; those of length 0 are not read."""
    spans = dict.fromkeys((at, length) for at, length, _, _ in waiting)
    inside = [(at, length) for at, length in spans if at >= 0 and length > 0 and at + length <= remote.size]
    data = dict(zip(inside, read_tiles(remote, inside), strict=True))
    # A tile past the end of the file is left to `_tile`, whose error names it.
    yield from ((at, number, index, data.get((at, length))) for at, length, number, index in waiting)


def _indices(level: Level, window: Window, plane: int) -> Iterator[int]:
    """Indices of the tiles of a plane in a window of the level."""
    (y0, x0, y1, x1), (height, width) = window, level.tile
    for row in range(y0 // height, (y1 - 1) // height + 1):
        start = (plane * level.rows + row) * level.columns
        yield from range(start + x0 // width, start + (x1 - 1) // width + 1)


def _is_constant(tile: np.ndarray) -> bool:
    """Whether a tile was found to be constant."""
    return tile.strides[:2] == (0, 0)


def _held(tile: np.ndarray) -> int:
    """Memory of a tile in bytes; a constant one is small."""
    return 1 << 10 if _is_constant(tile) else tile.nbytes


def _show(layout: TiffLayout, stored: np.ndarray, absent: np.ndarray | None, valid: np.ndarray | None) -> Stored:
    """Convert stored samples to colours and alpha."""
    highest = (1 << layout.bits) - 1
    pixels = stored if layout.alpha is None else np.delete(stored, layout.alpha, axis=2)
    alpha = None if layout.alpha is None else stored[..., layout.alpha].astype(np.float32) / np.float32(highest)
    hidden = [] if absent is None else [absent]
    if valid is not None:
        hidden.append(~valid)
    if layout.nodata is not None:
        hidden.append((pixels == layout.nodata).all(2))
    pixels, alpha = without_gaps(pixels, alpha)
    if hidden:
        seen = ~np.logical_or.reduce(hidden)
        if not seen.all():
            alpha = seen.astype(np.float32) if alpha is None else alpha * seen
    if alpha is not None and alpha.min() == 1:
        alpha = None
    if layout.palette is not None:
        pixels = layout.palette[pixels[..., 0]]
    elif layout.convert is not None:
        pixels = layout.convert(pixels)
    elif layout.photometric == 5:
        pixels = from_cmyk(pixels, highest)
    elif layout.photometric == 0 and pixels.dtype.kind in "ub":
        pixels = ~pixels if pixels.dtype == bool else (highest - pixels).astype(pixels.dtype)
    return pixels, alpha

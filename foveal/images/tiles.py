"""Tiles and strips of a TIFF: their positions in the file, and their decoders.

The size, number of samples and type of a decoded tile are compared with the header.

Example:
    >>> import numpy as np, tempfile, tifffile
    >>> from foveal.images.reading import read_at
    >>> from foveal.images.tiff import parse_tiff
    >>> with tempfile.NamedTemporaryFile(suffix=".tif") as file:
    ...     tifffile.imwrite(file, np.zeros((64, 64), np.uint8), tile=(16, 16), compression="zlib")
    ...     level = parse_tiff(file.name).levels[0]
    ...     data = read_at(file.fileno(), level.counts.get(file.fileno(), 5), level.offsets.get(file.fileno(), 5))
    >>> level.columns, decode_tile(level, data, 5).shape
    (4, (16, 16, 1))
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import tifffile

from foveal.errors import ImageError
from foveal.images import fax, jpeg, jpeg2000, png
from foveal.images.colours import from_ycbcr
from foveal.images.headers import Numbers
from foveal.images.reading import OpenFile, memory_limit

JPEG = {6, 7, 34892, 33007}
_JPEG_XR = b"II\xbc"
_FAX = {2, 3, 4, 32771}
_EXTRA = {0, 1, 2, 999}  # kinds of extra samples; 999 is alpha of Corel
_LOSSLESS_JPEG = b"\xff\xd8\xff\xc3"
IMAGE_CODECS = JPEG | {33003, 33004, 33005, 34712, 50001, 50002, 52546}
"""Compressions whose codecs handle YCbCr."""


class Source(NamedTuple):
    """A file and its lists of tiles.

    Attributes:
        file: path of the file.
        name: path for messages.
        lists: lists of offsets and of byte counts, by the position of the header.
    """

    file: str
    name: str
    lists: dict[int, tuple[Numbers | None, Numbers | None]]


class Calculated(NamedTuple):
    """Byte counts of uncompressed strips, for old files without a list of them.

    Attributes:
        planes: number of planes.
        each: number of strips of a plane.
        full: size of a strip in bytes.
        last: size of the last strip of a plane in bytes.
    """

    planes: int
    each: int
    full: int
    last: int

    def __len__(self) -> int:
        return self.planes * self.each

    def span(self, index: int) -> tuple[int, int]:
        """No bytes, see `Numbers.span`."""
        return 0, 0

    def get(self, descriptor: OpenFile, index: int) -> int:
        return self.last if index % self.each == self.each - 1 else self.full

    def all(self, descriptor: OpenFile) -> np.ndarray:
        return np.array([self.get(descriptor, i) for i in range(len(self))])

    @classmethod
    def of(cls, page: tifffile.TiffPage) -> Calculated | None:
        """Byte counts of the strips of a page, or None if they cannot be calculated."""
        if int(page.compression) != 1 or page.is_tiled or min(page.rowsperstrip, page.imagelength) < 1:
            return None
        apart = page.planarconfig == 2
        row = -(-page.imagewidth * (1 if apart else page.samplesperpixel) * page.bitspersample // 8)
        rows = min(page.rowsperstrip, page.imagelength)
        each = -(-page.imagelength // rows)
        return cls(page.samplesperpixel if apart else 1, each, row * rows, row * (page.imagelength - (each - 1) * rows))


class Joined(NamedTuple):
    """Concatenated lists of equal length, one for each channel of a level.

    Attributes:
        parts: the lists.
        length: length of each list.
        step: value added to the numbers of each following list, if the same list is repeated.
    """

    parts: tuple[Numbers | Calculated, ...]
    length: int
    step: int = 0

    def __len__(self) -> int:
        return len(self.parts) * self.length

    def span(self, index: int) -> tuple[int, int]:
        """Position and length of an entry in the file."""
        part, place = divmod(index, self.length)
        return self.parts[part].span(place)

    def get(self, descriptor: OpenFile, index: int) -> int:
        part, place = divmod(index, self.length)
        return self.parts[part].get(descriptor, place) + part * self.step

    def all(self, descriptor: OpenFile) -> np.ndarray:
        parts = [part.all(descriptor)[: self.length] + i * self.step for i, part in enumerate(self.parts)]
        return np.concatenate(parts)


@dataclass
class Level:
    """Positions and format of the tiles of one level. A strip is a tile of the width of the image.

    Attributes:
        file: path of the file.
        height, width: size of the level in pixels.
        tile: (height, width) of a tile.
        samples: number of samples of a pixel.
        planar: whether the samples are stored in separate tiles.
        compression, photometric, bits, dtype: compression, colour space and sample format of the TIFF.
        offsets, counts: lists of the positions and byte counts of the tiles.
        tables: shared tables of JPEG tiles, or None.
        other_tables: shared tables of the pages of the second and later channels.
        fax: TIFF tags T4Options and FillOrder.
        subsampling: chroma subsampling (horizontal, vertical), if the codec does not handle it.
        decode: decoder of tifffile, for codecs that do not return an image.
        halved: whether the level was made from level 0 by repeated halving, with an integer scale.
    """

    file: str
    height: int
    width: int
    tile: tuple[int, int]
    samples: int
    planar: bool
    compression: int
    photometric: int
    bits: int
    dtype: np.dtype | None
    offsets: Numbers | Joined
    counts: Numbers | Joined | Calculated
    tables: bytes | None
    decode: Callable[..., Any] | None = field(repr=False)
    halved: bool = False
    other_tables: tuple[bytes | None, ...] = ()
    subsampling: tuple[int, int] = (1, 1)
    fax: tuple[int, int] = (0, 1)

    @classmethod
    def of(
        cls,
        source: Source,
        pages: Sequence[tifffile.TiffPage],
        *,
        size: tuple[int, int] | None = None,
        channels: int = 1,
    ) -> Level:
        """Make a level of one page, or of one page for each channel.

        Args:
            source: the file.
            pages: the pages, which have equal headers.
            size: (height, width) without padding to whole tiles; that of the page if None.
            channels: number of channels stored one after the other in a single page, as ImageJ writes them.

        Raises:
            ImageError: the header is inconsistent.
        """
        name, page = source.name, pages[0]
        for each in pages:
            _check_header(name, each)
        found = [source.lists[p.offset] for p in pages]
        offsets = tuple(numbers for numbers, _ in found if numbers is not None)
        lengths = (numbers or Calculated.of(p) for p, (_, numbers) in zip(pages, found, strict=True))
        counts = tuple(numbers for numbers in lengths if numbers is not None)
        if min(len(offsets), len(counts)) < len(pages):
            raise ImageError(f"{name}: has no list of its tiles or strips; the header is damaged, copy it again")
        tile = (
            (page.tilelength, page.tilewidth)
            if page.is_tiled
            else (min(page.rowsperstrip, page.imagelength), page.imagewidth)
        )
        if page.dtype is None or min(tile) < 1:
            raise ImageError(
                f"{name}: claims tiles of {tile[1]} x {tile[0]} pixels; the header is damaged, copy it again"
            )
        planes = max(len(pages), channels)
        planar = planes > 1 or (page.planarconfig == 2 and page.samplesperpixel > 1)
        level = cls(
            source.file,
            *(size or (page.imagelength, page.imagewidth)),
            tile,
            planes if planes > 1 else page.samplesperpixel,
            planar,
            int(page.compression),
            int(page.photometric),
            page.bitspersample,
            page.dtype,
            offsets[0],
            counts[0],
            page.jpegtables,
            None if int(page.compression) in tifffile.TIFF.IMAGE_COMPRESSIONS else page.decode,
            halved=size is not None,
            other_tables=tuple(p.jpegtables for p in pages[1:]),
        )
        level.fax = int(page.tags.valueof(292) or 0), int(page.fillorder)
        if level.photometric == 6 and level.compression not in IMAGE_CODECS and not planar:
            level.subsampling = page.tags.valueof(530) or (2, 2)
        if level.tile_cost > memory_limit():
            claim = f"claims tiles or strips of {tile[1]} x {tile[0]} pixels, {level.tile_cost:,} bytes each"
            claim += f", more than the limit of {memory_limit():,}"
            raise ImageError(f"{name}: {claim}; make them smaller, or raise --max-bytes or FOVEAL_MAX_BYTES")
        one = level.rows * level.columns * (page.samplesperpixel if planar and planes == 1 else 1)
        least = min(len(numbers) for numbers in offsets + counts)
        if least < one:
            raise ImageError(
                f"{name}: lists {least} tiles where its size needs {one}; the header is damaged, copy it again"
            )
        if planes > 1:
            step = page.imagelength * page.imagewidth * page.dtype.itemsize if channels > 1 else 0
            level.offsets = Joined(offsets * (planes // len(pages)), one, step)
            level.counts = Joined(counts * (planes // len(pages)), one)
        return level

    def shapes(self, index: int) -> list[tuple[int, int]]:
        """Valid sizes (height, width) of a decoded tile: full, or cropped at the lower and right edges."""
        row, column = divmod(index % (self.rows * self.columns), self.columns)
        height, width = self.tile
        least = min(height, self.height - row * height), min(width, self.width - column * width)
        return [self.tile] if least == self.tile else [(h, w) for h in (height, least[0]) for w in (width, least[1])]

    @property
    def tile_cost(self) -> int:
        """Size of a decoded tile in bytes."""
        samples = 1 if self.planar else self.samples
        return self.tile[0] * self.tile[1] * samples * (1 if self.dtype is None else self.dtype.itemsize)

    @property
    def rows(self) -> int:
        return -(-self.height // self.tile[0])

    @property
    def columns(self) -> int:
        return -(-self.width // self.tile[1])


def _check_header(name: str, page: tifffile.TiffPage) -> None:
    """Raise ImageError if tags of the pixel format are missing or inconsistent. Defaults would hide damaged tags."""
    bits, samples = page.tags.get(258), page.samplesperpixel
    colourless = int(page.photometric) == 3 and page.tags.get(320) is None
    if page.tags.get(262) is None or colourless or (bits is None and samples > 1):
        raise ImageError(f"{name}: lacks tags of its pixel format; the header is damaged, copy the file again")
    white = int(page.photometric) == 0 and samples - len(page.extrasamples) != 1
    extra = any(int(kind) not in _EXTRA for kind in page.extrasamples)
    if (
        white
        or extra
        or (bits is not None and bits.count not in (1, samples))
        or page.tags.valueof(284) not in (None, 1, 2)
        or page.tags.valueof(274) not in (None, *range(9))  # 0 is no orientation, but is written
    ):
        what = "has contradictory tags of its pixel format"
        raise ImageError(f"{name}: {what}; the header is damaged, copy the file again")


def decode_tile(level: Level, data: bytes, index: int) -> np.ndarray:
    """Decode the bytes of one tile to (h, w, samples).

    Raises:
        Exception: any exception of the decoder; ValueError if the result does not match the header.
    """
    shapes, samples = level.shapes(index), 1 if level.planar else level.samples
    plane, place = divmod(index, level.rows * level.columns)
    tables = level.other_tables[plane - 1] if plane and level.other_tables else level.tables
    if level.compression in JPEG and not data.startswith(_LOSSLESS_JPEG):
        transformed = level.photometric == 6 and samples == 3
        return jpeg.decode_segment(data, tables, shapes, samples, transformed=transformed, bits=level.bits)
    if level.subsampling != (1, 1):
        return _subsampled(level, data, shapes[-1] if level.tile[1] == level.width else level.tile)
    if level.decode is not None:
        tile = level.decode(data, place, jpegtables=tables)[0][0]
        if level.compression in _FAX:
            coding, order = level.fax
            fax.check_fax(data, level.compression, *tile.shape[:2], options=coding, reverse=order == 2)
        return tile
    if (start := data.find(jpeg2000.START, 0, 200)) >= 0:
        jpeg2000.check_jpeg2000(data, start)
    if data.startswith(_JPEG_XR):
        _check_jpegxr(data)
    if data.startswith(png.SIGNATURE):
        tile = png.decode_png(png.parse_png(data))
    else:
        options = {"hasalpha": True} if level.compression == 50001 and samples == 4 else {}
        tile = tifffile.TIFF.DECOMPRESSORS[level.compression](data, **options)
    tile = tile[..., None] if tile.ndim == 2 else tile
    if tile.shape[:2] not in shapes or tile.shape[2:] != (samples,) or tile.dtype != level.dtype:
        what = f"{tile.shape[1]} x {tile.shape[0]} pixels with {tile.shape[2]} samples of {tile.dtype}"
        raise ValueError(f"it has {what} where the header has {samples} of {level.dtype}")
    ycbcr = level.compression == 33003 or level.photometric == 6
    if ycbcr and samples == 3 and start >= 0 and jpeg2000.is_ycbcr(data, start):
        tile = from_ycbcr(tile)
    return tile


def _subsampled(level: Level, data: bytes, size: tuple[int, int]) -> np.ndarray:
    """(h, w, 3) YCbCr of uncompressed units, each with the Y of several pixels and then one Cb and one Cr."""
    (height, width), (across, down) = size, level.subsampling
    rows, columns = -(-height // down), -(-width // across)
    raw = data if level.compression == 1 else tifffile.TIFF.DECOMPRESSORS[level.compression](data)
    units = np.frombuffer(raw, np.uint8).reshape(
        rows, columns, across * down + 2
    )  # raises ValueError if the size does not match the header
    brightness = (
        units[..., :-2].reshape(rows, columns, down, across).swapaxes(1, 2).reshape(rows * down, columns * across, 1)
    )
    colour = units[..., -2:].repeat(down, 0).repeat(across, 1)
    return np.concatenate([brightness, colour], 2)[:height, :width]


def _check_jpegxr(data: bytes) -> None:
    """Raise ValueError if a JPEG XR is shorter than in its header. The decoder fills missing data without an error."""
    at = struct.unpack_from("<I", data, 4)[0]
    entries = [struct.unpack_from("<HHII", data, at + 2 + 12 * i) for i in range(struct.unpack_from("<H", data, at)[0])]
    numbers = {code: value for code, _, _, value in entries}
    if numbers.get(0xBCC0, 0) + numbers.get(0xBCC1, 0) > len(data):
        raise ValueError("JPEG XR data cut short")

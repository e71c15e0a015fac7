"""Tiles and strips of a TIFF: where they lie in the file, and how their bytes become pixels.

What a decoder returns is compared with what the header promises: size, number of samples and type.

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
from foveal.images.reading import memory_limit

JPEG = {6, 7, 34892, 33007}
_JPEG_XR = b"II\xbc"
_FAX = {2, 3, 4, 32771}
_LOSSLESS_JPEG = b"\xff\xd8\xff\xc3"
IMAGE_CODECS = JPEG | {33003, 33004, 33005, 34712, 50001, 50002, 52546}
"""Compressions whose codecs convert from YCbCr themselves, or say how to."""


class Source(NamedTuple):
    """A file whose headers were read.

    Attributes:
        file: its path.
        name: the path for messages.
        lists: by the position of each header its lists of offsets and of lengths.
    """

    file: str
    name: str
    lists: dict[int, tuple[Numbers | None, Numbers | None]]


class Calculated(NamedTuple):
    """Lengths of uncompressed strips of one plane after the other, of which old files give no list.

    Attributes:
        planes: of strips.
        each: strips of a plane.
        full: bytes of a strip.
        last: bytes of the last strip of a plane.
    """

    planes: int
    each: int
    full: int
    last: int

    def __len__(self) -> int:
        return self.planes * self.each

    def get(self, descriptor: int, index: int) -> int:
        return self.last if index % self.each == self.each - 1 else self.full

    def all(self, descriptor: int) -> np.ndarray:
        return np.array([self.get(descriptor, i) for i in range(len(self))])

    @classmethod
    def of(cls, page: tifffile.TiffPage) -> Calculated | None:
        """Those of a page, or None where they cannot be told."""
        if int(page.compression) != 1 or page.is_tiled or min(page.rowsperstrip, page.imagelength) < 1:
            return None
        apart = page.planarconfig == 2
        row = -(-page.imagewidth * (1 if apart else page.samplesperpixel) * page.bitspersample // 8)
        rows = min(page.rowsperstrip, page.imagelength)
        each = -(-page.imagelength // rows)
        return cls(page.samplesperpixel if apart else 1, each, row * rows, row * (page.imagelength - (each - 1) * rows))


class Joined(NamedTuple):
    """Lists of equal length one behind the other, one for each page of a level whose channels are pages.

    Attributes:
        parts: the lists.
        length: of each.
        step: what the next list adds to the numbers, where one list stands for all.
    """

    parts: tuple[Numbers | Calculated, ...]
    length: int
    step: int = 0

    def __len__(self) -> int:
        return len(self.parts) * self.length

    def get(self, descriptor: int, index: int) -> int:
        part, place = divmod(index, self.length)
        return self.parts[part].get(descriptor, place) + part * self.step

    def all(self, descriptor: int) -> np.ndarray:
        parts = [part.all(descriptor)[: self.length] + i * self.step for i, part in enumerate(self.parts)]
        return np.concatenate(parts)


@dataclass
class Level:
    """Where the tiles of one level lie and how they are decoded; a strip is a tile as wide as the image.

    Attributes:
        file: that holds them.
        tile: (height, width) of a tile.
        samples: of a pixel.
        planar: each sample has tiles of its own.
        tables: that JPEG tiles share, or None.
        other_tables: those of the pages of the second and later channels.
        fax: options of its codes, and the order of bits.
        subsampling: pixels (across, down) that share their colour, where the codec does not know of it.
        decode: of tifffile, where the codec does not return an image.
        halved: made from level 0 by halving, so that a pixel stands for a whole number of pixels there.
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
        """A level of one page, or of one page for each channel.

        Args:
            source: the file.
            pages: alike but for their pixels.
            size: (height, width) of what is picture, where the rest pads it to whole tiles.
            channels: how many follow one another in one page that does not tell of the others, as ImageJ writes them.

        Raises:
            ImageError: the header contradicts itself.
        """
        name, page = source.name, pages[0]
        for each in pages:
            _check_header(name, each)
        found = [source.lists[p.offset] for p in pages]
        offsets = tuple(numbers for numbers, _ in found if numbers is not None)
        lengths = (numbers or Calculated.of(p) for p, (_, numbers) in zip(pages, found, strict=True))
        counts = tuple(numbers for numbers in lengths if numbers is not None)
        if min(len(offsets), len(counts)) < len(pages):
            raise ImageError(f"{name}: does not say where its pixels are; the header is damaged, copy it again")
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
        """(height, width) that a tile may have: that of all tiles, and what is left of it at the lower and right
        edges.
        """
        row, column = divmod(index % (self.rows * self.columns), self.columns)
        height, width = self.tile
        least = min(height, self.height - row * height), min(width, self.width - column * width)
        return [self.tile] if least == self.tile else [(h, w) for h in (height, least[0]) for w in (width, least[1])]

    @property
    def tile_cost(self) -> int:
        """Bytes of a tile when it is decoded."""
        samples = 1 if self.planar else self.samples
        return self.tile[0] * self.tile[1] * samples * (1 if self.dtype is None else self.dtype.itemsize)

    @property
    def rows(self) -> int:
        return -(-self.height // self.tile[0])

    @property
    def columns(self) -> int:
        return -(-self.width // self.tile[1])


def _check_header(name: str, page: tifffile.TiffPage) -> None:
    """Raise ImageError where a page does not say what its pixels are; defaults would stand for what damage took
    away.
    """
    bits, samples = page.tags.get(258), page.samplesperpixel
    colourless = int(page.photometric) == 3 and page.tags.get(320) is None
    if page.tags.get(262) is None or colourless or (bits is None and samples > 1):
        raise ImageError(f"{name}: does not say what its values mean; the header is damaged, copy the file again")
    white = int(page.photometric) == 0 and samples - len(page.extrasamples) != 1
    if white or (bits is not None and bits.count not in (1, samples)) or page.tags.valueof(284) not in (None, 1, 2):
        raise ImageError(f"{name}: contradicts itself on what a pixel is; the header is damaged, copy the file again")


def decode_tile(level: Level, data: bytes, index: int) -> np.ndarray:
    """(h, w, samples) of one tile's bytes.

    Raises:
        Exception: whatever the decoder raises; ValueError where its result is not what the header promises.
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
        raise ValueError(f"it has {what} where the header promises {samples} of {level.dtype}")
    ycbcr = level.compression == 33003 or level.photometric == 6
    if ycbcr and samples == 3 and start >= 0 and jpeg2000.is_ycbcr(data, start):
        tile = from_ycbcr(tile)
    return tile


def _subsampled(level: Level, data: bytes, size: tuple[int, int]) -> np.ndarray:
    """(h, w, 3) YCbCr of units that have the brightness of several pixels and then their colour."""
    (height, width), (across, down) = size, level.subsampling
    rows, columns = -(-height // down), -(-width // across)
    raw = data if level.compression == 1 else tifffile.TIFF.DECOMPRESSORS[level.compression](data)
    units = np.frombuffer(raw, np.uint8).reshape(
        rows, columns, across * down + 2
    )  # exactly so many, or the header lies
    brightness = (
        units[..., :-2].reshape(rows, columns, down, across).swapaxes(1, 2).reshape(rows * down, columns * across, 1)
    )
    colour = units[..., -2:].repeat(down, 0).repeat(across, 1)
    return np.concatenate([brightness, colour], 2)[:height, :width]


def _check_jpegxr(data: bytes) -> None:
    """Raise ValueError where a JPEG XR is shorter than its header says; the decoder makes up what is missing."""
    at = struct.unpack_from("<I", data, 4)[0]
    entries = [struct.unpack_from("<HHII", data, at + 2 + 12 * i) for i in range(struct.unpack_from("<H", data, at)[0])]
    numbers = {code: value for code, _, _, value in entries}
    if numbers.get(0xBCC0, 0) + numbers.get(0xBCC1, 0) > len(data):
        raise ValueError("JPEG XR data cut short")

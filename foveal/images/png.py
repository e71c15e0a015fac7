"""Parser and decoder of PNG files with checks of their checksums.

The CRCs of the critical chunks are checked, and the Adler-32 of the compressed pixels, which libpng does not always
check. Ancillary chunks with a wrong CRC are ignored, as libpng does, and with them the orientation in damaged EXIF
data, about which there is a warning. A chunk of an unknown name before the pixels must have a valid CRC, because it may
be a critical chunk with a damaged name.

Example:
    >>> import io
    >>> from PIL import Image
    >>> file = io.BytesIO()
    >>> Image.new("RGB", (4, 2), (255, 0, 0)).save(file, "PNG")
    >>> header = parse_png(file.getvalue())
    >>> header.size, header.depth, decode_png(header)[0, 0].tolist()
    ((2, 4), 8, [255, 0, 0])
"""

from __future__ import annotations

import struct
import warnings
import zlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_PICTURE = (b"IHDR", b"PLTE", b"tRNS", b"IDAT")
_NOTES = {
    b"iCCP",
    b"gAMA",
    b"cHRM",
    b"sRGB",
    b"sBIT",
    b"tEXt",
    b"zTXt",
    b"iTXt",
    b"eXIf",
    b"pHYs",
    b"tIME",
    b"bKGD",
    b"hIST",
    b"sPLT",
    b"acTL",
    b"fcTL",
    b"fdAT",
    b"cICP",
    b"mDCV",
    b"cLLI",
    b"IEND",
}
_LONGEST_NOTE = 1 << 20  # longest metadata that are read, in bytes


@dataclass
class Png:
    """The chunks of a PNG.

    Attributes:
        size: (height, width).
        data: contents of the file.
        depth: bits per sample.
        colour: PNG colour type.
        interlaced: whether the pixels are stored in the seven passes of Adam7.
        chunks: (name, start, end) of the critical chunks and those of unknown names.
        exif, xmp: metadata that may contain the orientation, or None.
    """

    data: Any
    size: tuple[int, int]
    depth: int
    colour: int
    interlaced: bool
    chunks: list[tuple[bytes, int, int]] = field(default_factory=list)
    exif: bytes | None = None
    xmp: bytes | None = None

    @property
    def raw_size(self) -> int:
        """Size in bytes of the decompressed rows, each with a filter byte."""
        height, width = self.size
        bits = self.depth * _SAMPLES[self.colour]
        if not self.interlaced:
            return height * (1 + -(-width * bits // 8))
        passes = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
        parts = [(-(-(height - y) // down), -(-(width - x) // across)) for y, x, down, across in passes]
        return sum(rows * (1 + -(-columns * bits // 8)) for rows, columns in parts if rows > 0 and columns > 0)


def parse_png(data: Any) -> Png:
    """Find the chunks of a PNG, without decoding its pixels.

    Args:
        data: bytes or a memory map.

    Raises:
        ValueError: the header is missing or invalid.
    """
    if data[12:16] != b"IHDR":
        raise ValueError("it does not begin with its header")
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", data[16:29])
    if colour not in _SAMPLES or depth not in (1, 2, 4, 8, 16):
        raise ValueError(f"{depth} bits of colour type {colour} do not exist")
    png, at = Png(data, (height, width), depth, colour, bool(interlaced)), 8
    while at + 8 <= len(data):
        length, name = struct.unpack(">I4s", data[at : at + 8])
        start, end = at + 8, at + 8 + length
        if name not in _NOTES:
            png.chunks.append((name, start, end))
        elif name == b"IEND":
            break
        elif name in (b"eXIf", b"tEXt", b"zTXt", b"iTXt"):
            if _is_intact(data, start, end):
                _read_note(png, name, data[start : min(end, start + _LONGEST_NOTE)])
            elif name == b"eXIf":
                warnings.warn("the checksum of its EXIF data is wrong; an orientation in them is ignored", stacklevel=2)
        at = end + 4
    return png


def _is_intact(data: Any, start: int, end: int) -> bool:
    """Whether the CRC of a chunk is right."""
    return end + 4 <= len(data) and struct.pack(">I", zlib.crc32(data[start - 4 : end])) == data[end : end + 4]


def _read_note(png: Png, name: bytes, body: bytes) -> None:
    if name == b"eXIf":
        png.exif = body
        return
    keyword, _, text = body.partition(b"\0")
    try:
        if keyword == b"XML:com.adobe.xmp" and name == b"iTXt":
            compressed = text[0]
            text = text[2:].split(b"\0", 2)[2]
            png.xmp = _inflated(text) if compressed else text
        elif keyword in (b"Raw profile type exif", b"Raw profile type APP1") and png.exif is None:
            text = text if name == b"tEXt" else _inflated(text[1:])
            png.exif = bytes.fromhex("".join(text.decode("latin-1").split()[2:]))
    except (ValueError, IndexError, zlib.error):
        pass


def _inflated(data: bytes) -> bytes:
    return zlib.decompressobj().decompress(data, _LONGEST_NOTE)


def decode_png(png: Png) -> np.ndarray:
    """(h, w) or (h, w, bands) uint8 or uint16. Palettes are expanded; transparency becomes the last band.

    Raises:
        ValueError: a checksum is wrong, or the data are cut short.
    """
    import imagecodecs

    kept, pixels = [SIGNATURE], []
    last = max((i for i, (name, *_) in enumerate(png.chunks) if name == b"IDAT"), default=-1)
    for name, start, end in png.chunks[: last + 1]:
        if not _is_intact(png.data, start, end):
            raise ValueError(f"the checksum of its {name.decode('latin-1')} chunk is wrong")
        if name not in _PICTURE:
            continue  # a chunk of an unknown name is only checked
        if name == b"IDAT":
            pixels.append(png.data[start:end])
        kept += [struct.pack(">I", end - start), png.data[start - 4 : end + 4]]
    _check(b"".join(pixels), png.raw_size)
    end_chunk = b"IEND"
    kept += [bytes(4), end_chunk, struct.pack(">I", zlib.crc32(end_chunk))]
    return imagecodecs.png_decode(b"".join(kept))


def _check(compressed: bytes, size: int) -> None:
    """Raise ValueError if the compressed pixels are incomplete or their checksum is wrong."""
    import imagecodecs

    try:
        complete = len(imagecodecs.deflate_decode(compressed, out=size)) == size
    except Exception:  # surplus data, which are harmless, or damage: decompress again with zlib to distinguish them
        stream, left, found = zlib.decompressobj(), compressed, 0
        try:
            while not stream.eof:
                part = stream.decompress(left, 1 << 24)
                found, left = found + len(part), stream.unconsumed_tail
                if not part and not left:
                    break
        except zlib.error as error:
            raise ValueError(f"its pixels are damaged: {error}") from error
        complete = stream.eof and found >= size
    if not complete:
        raise ValueError("its pixels are cut short")

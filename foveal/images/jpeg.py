"""Decoder of JPEG files and of JPEG tiles and strips of a TIFF.

libjpeg continues after damage: it issues a warning and fills the missing pixels. Here such damage raises an error.
Faults that change no pixels are accepted; `HARMLESS` lists their warnings.

libjpeg reports only the first warning, so a harmless warning may hide a serious one. After a harmless warning the
headers are rewritten without their faults, and the data are decoded again. If the coded data contain extraneous bytes,
`check_codes` reads every code to determine where each restart interval ends; bytes after that end are padding.

Example:
    >>> import io
    >>> from PIL import Image
    >>> file = io.BytesIO()
    >>> Image.new("RGB", (16, 8), (255, 0, 0)).save(file, "JPEG")
    >>> data = file.getvalue()
    >>> decode_jpeg(data[:-2] + b"stray" + data[-2:], "RGB").shape
    (8, 16, 3)
    >>> decode_jpeg(data[:-9] + data[-2:], "RGB")
    Traceback (most recent call last):
    ...
    ValueError: Corrupt JPEG data: premature end of data segment
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import simplejpeg

from foveal.images.codes import STANDARD, check_codes, has_sound_tables

HARMLESS = {
    "extraneous bytes before marker": "padding before a marker, which some cameras write",
    "Premature end of JPEG file": "no end marker: harmless if the data are complete, which the second decoding checks",
    "unknown JFIF revision number": "the version number of metadata",
    "Unknown Adobe color transform code": "libjpeg assumes YCbCr, as other readers do",
    "Invalid SOS parameters for sequential JPEG": "parameters that have a meaning in progressive files only",
    "bad ICC marker": "a damaged colour profile; profiles are not used",
}
"""Warnings of libjpeg about faults that change no pixels: part of the text, and the reason."""

_COMPONENTS = {"Gray": 1, "GRAY": 1, "RGB": 3, "YCbCr": 3, "CMYK": 4, "YCCK": 4}
_ADOBE = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0"


def decode_jpeg(data: bytes, colours: str, *, smaller: int = 1, bits: int = 8) -> np.ndarray:
    """Decode a JPEG.

    Args:
        data: the whole JPEG.
        colours: "GRAY", "RGB", or "CMYK" for the stored values of four components.
        smaller: factor by which height and width are reduced: 1, 2, 4 or 8.
        bits: bits per component, 8 or 12.

    Returns:
        (h, w, 1, 3 or 4) uint8, or uint16 for 12 bits.

    Raises:
        ValueError: the JPEG is damaged, or its kind is not supported.
    """
    if bits > 8:
        return _by_imagecodecs(data, colours, bits)[::smaller, ::smaller]
    shape = {"min_height": 1, "min_width": 1, "min_factor": smaller} if smaller > 1 else {}
    try:
        return simplejpeg.decode_jpeg(data, colours, strict=True, **shape)
    except ValueError as error:
        warning = str(error)
    pixels = _by_imagecodecs(data, colours) if "subsampling" in warning else _after_warning(data, colours, warning)
    return pixels[::smaller, ::smaller]


def read_jpeg_header(data: bytes) -> tuple[int, int, int, str, str]:
    """Height, width, number of components, colour space and subsampling ("" if libjpeg-turbo does not know them).

    Raises:
        ValueError: there is no frame header.
    """
    try:
        height, width, colours, subsampling = simplejpeg.decode_jpeg_header(data)
        return height, width, _COMPONENTS[colours], colours, subsampling
    except (ValueError, KeyError):
        stream = parse_jpeg(data)
        return stream.height, stream.width, len(stream.components), "", ""


def decode_segment(
    data: bytes,
    tables: bytes | None,
    shapes: Collection[tuple[int, int]],
    components: int,
    *,
    transformed: bool = False,
    bits: int = 8,
) -> np.ndarray:
    """Decode a tile or a strip of a TIFF.

    The tags of the TIFF define the colour space. JFIF and Adobe markers of the JPEG are ignored, as in libtiff.

    Args:
        data: an abbreviated or a whole JPEG.
        tables: tables shared by abbreviated JPEGs, or None.
        shapes: sizes (height, width) that the TIFF allows.
        components: number of components according to the TIFF.
        transformed: three components are YCbCr; otherwise the stored values are returned.
        bits: bits per component, 8 or 12.

    Returns:
        (height, width, components) uint8, or uint16 for 12 bits.

    Raises:
        ValueError: the JPEG is damaged, does not match the TIFF, or its kind is not supported.
    """
    if not data.startswith(b"\xff\xd8"):
        raise ValueError("it does not begin as a JPEG does")
    if bits not in (8, 12):
        raise ValueError(f"it is a JPEG, of 8 or 12 bits, where the header has {bits}")
    whole = tables[:-2] + data[2:] if tables else data
    height, width, found, colours, subsampling = read_jpeg_header(whole)
    if components == 3 and not transformed and subsampling not in ("444", ""):
        raise ValueError("its components are of different sizes, which those of RGB are not")  # as in libtiff
    if (height, width) not in shapes or found != components:
        expected = f"{next(iter(shapes))[1]} x {next(iter(shapes))[0]} pixels with {components} components"
        raise ValueError(f"it has {width} x {height} pixels with {found} components where the header has {expected}")
    if components > 1 and colours != ("YCbCr" if transformed else {3: "RGB", 4: "CMYK"}.get(components)):
        # The Adobe transform code is 0 for untransformed components and 1 for YCbCr.
        whole = b"".join(
            (b"\xff\xd8", _ADOBE, bytes([transformed]), _unmarked(tables)[2:-2] if tables else b"", _unmarked(data)[2:])
        )
    if bits == 8 and components in (1, 3, 4):
        return decode_jpeg(whole, {1: "GRAY", 3: "RGB", 4: "CMYK"}[components])
    pixels = _by_imagecodecs(whole, "RGB" if components == 3 else None, bits)
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _unmarked(data: bytes) -> bytes:
    """A copy of a JPEG with disabled JFIF and Adobe markers."""
    end = data.find(b"\xff\xda", 2, 4096)
    if data.find(b"Adobe", 2, end) > 0 or data.find(b"JFIF", 2, end) > 0:
        return data[:end].replace(b"Adobe", b"adobe").replace(b"JFIF", b"jfif") + data[end:]
    return data


def _harmless(warning: str) -> bool:
    return any(part in warning for part in HARMLESS)


def _after_warning(data: bytes, colours: str, warning: str) -> np.ndarray:
    """Decode a JPEG after a warning of libjpeg, if all its faults are harmless."""
    if not _harmless(warning):
        raise ValueError(warning)
    stream = parse_jpeg(data)
    stream.require_all_scans("extraneous" in warning)
    if not has_sound_tables(stream) or (stream.progressive and "extraneous" in warning):
        check_codes(stream)
    ended, data = stream.ended, stream.mended()
    if not ended:
        check_codes(parse_jpeg(data), cut=True)
    try:
        return simplejpeg.decode_jpeg(data, colours, strict=True)
    except ValueError as error:
        warning = str(error)
    if "extraneous bytes before marker" not in warning or not ended:
        raise ValueError(warning)
    check_codes(parse_jpeg(data))
    return simplejpeg.decode_jpeg(data, colours, strict=False)


def _by_imagecodecs(data: bytes, colours: str | None, bits: int = 8) -> np.ndarray:
    """Decode sampling factors, numbers of components and precisions that simplejpeg does not support."""
    import imagecodecs

    stream = parse_jpeg(data)
    stream.require_all_scans()
    if bits == 8 or not _sound(stream.with_precision(8)):
        check_codes(stream)
    wanted = {"GRAY": "GRAYSCALE", "RGB": "RGB"}.get(colours or "")
    if colours == "RGB" and len(stream.components) == 4:
        raise ValueError("four components with rare sampling factors; convert it to RGB")
    pixels = imagecodecs.jpeg8_decode(data, outcolorspace=wanted)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _sound(data: bytes) -> bool:
    """Whether simplejpeg decodes data without a warning."""
    try:
        simplejpeg.decode_jpeg(data, strict=True)
        return True
    except ValueError:
        return False


@dataclass
class _Component:
    """A colour component: its identifier, sampling factors, and number of its quantisation table."""

    name: int
    across: int
    down: int
    table: int


@dataclass
class Scan:
    """A scan: its components with their DC and AC Huffman tables, its parameters, and the range of its coded data."""

    parts: list[tuple[_Component, bytes, bytes]]
    first: int
    last: int
    high: int
    low: int
    interval: int
    start: int
    end: int


@dataclass
class ParsedJpeg:
    """The headers and scans of a JPEG.

    Attributes:
        data: the JPEG.
        frame: marker of the frame header: 0xC0 and 0xC1 sequential, 0xC2 progressive, 0xC3 lossless.
        frame_at: position of the frame header.
        pieces: (start, end) of the segments and scans.
        ended: whether there is an end marker.
        steps: the first entry of each quantisation table, by its number.
    """

    data: Any
    frame: int = 0
    frame_at: int = 0
    bits: int = 8
    height: int = 0
    width: int = 0
    components: list[_Component] = field(default_factory=list)
    scans: list[Scan] = field(default_factory=list)
    pieces: list[tuple[int, int]] = field(default_factory=list)
    ended: bool = False
    steps: dict[int, int] = field(default_factory=dict)

    def notes(self, marker: int, start: bytes) -> bytes | None:
        """Contents after ``start`` of the first application segment that begins with it; None if there is none."""
        for at, end in self.pieces:
            if self.data[at + 1] == marker and self.data[at + 4 : at + 4 + len(start)] == start:
                return self.data[at + 4 + len(start) : end]
        return None

    def with_precision(self, bits: int) -> bytes:
        """The JPEG with another precision in its header. Its codes can be checked; its pixels are wrong."""
        return self.data[: self.frame_at + 4] + bytes([bits]) + self.data[self.frame_at + 5 :]

    @property
    def progressive(self) -> bool:
        return self.frame in (0xC2, 0xCA)

    def require_all_scans(self, every_bit: bool = False) -> None:
        """Check that no scan is missing, which libjpeg does not report.

        Args:
            every_bit: require every bit of a progressive JPEG with an end marker, which may lack the last refinements.

        Raises:
            ValueError: a scan is missing.
        """
        left: dict[tuple[int, int], int] = {}  # bits of each coefficient that are not yet decoded
        for scan in self.scans if self.progressive else ():
            for place in ((part[0].name, k) for part in scan.parts for k in range(scan.first, scan.last + 1)):
                if left.get(place, 0) != scan.high or (place in left) != (scan.high > 0):
                    raise ValueError("a scan is missing")
                left[place] = scan.low
        for component in self.components:
            if not any(part[0] is component for scan in self.scans for part in scan.parts):
                raise ValueError("a component has no data")
            if (
                self.progressive
                and (every_bit or not self.ended)
                and any(left.get((component.name, k), 1) for k in range(64))
            ):
                raise ValueError("the last scans are missing")

    def mended(self) -> bytes:
        """The JPEG without bytes between its segments and without metadata, and with an end marker."""
        parts = [b"\xff\xd8"]
        for start, end in self.pieces:
            part = self.data[start:end]
            if part[1] == 0xE0 and part[4:9] == b"JFIF\0":
                part = part[:9] + b"\1\2" + part[11:]
            elif part[1] == 0xEE and part[4:9] == b"Adobe" and len(part) >= 16 and part[15] > 2:
                part = part[:15] + bytes([2 if len(self.components) == 4 else 1]) + part[16:]
            elif (0xE0 <= part[1] <= 0xEF and part[1] != 0xEE) or part[1] == 0xFE:
                continue
            elif part[1] == 0xDA and self.frame in (0xC0, 0xC1):
                end_of_header = 2 + struct.unpack(">H", part[2:4])[0]
                part = part[: end_of_header - 3] + b"\x00\x3f\x00" + part[end_of_header:]
            parts.append(part)
        return b"".join([*parts, b"\xff\xd9"])


def parse_jpeg(data: Any, *, headers: bool = False) -> ParsedJpeg:
    """Find the segments of a JPEG. Bytes between segments are skipped, as in libjpeg.

    Args:
        data: bytes or a memory map.
        headers: stop at the first scan.

    Raises:
        ValueError: there is no frame header, or a segment goes past the end.
    """
    stream, tables, interval, at = ParsedJpeg(data), dict(STANDARD), 0, 2
    while not stream.ended and (at := data.find(b"\xff", at)) >= 0:
        while at + 1 < len(data) and data[at + 1] == 0xFF:
            at += 1
        if at + 4 > len(data):
            stream.ended = data[at : at + 2] == b"\xff\xd9"
            break
        marker = data[at + 1]
        if marker == 0xD9:
            stream.ended = True
            break
        if marker in (0, 1) or 0xD0 <= marker <= 0xD8:
            at += 2
            continue
        end = at + 2 + struct.unpack(">H", data[at + 2 : at + 4])[0]
        if end > len(data):
            raise ValueError("a header is cut short")
        body = data[at + 4 : end]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            stream.frame, stream.frame_at = marker, at
            stream.bits = body[0]
            stream.height, stream.width = struct.unpack(">HH", body[1:5])
            stream.components = [_Component(c[0], c[1] >> 4, c[1] & 15, c[2]) for c in _chunks(body[6:], 3)][: body[5]]
        elif marker == 0xDB:
            stream.steps.update(_quantisers(body))
        elif marker == 0xC4:
            tables.update(_huffman(body))
        elif marker == 0xDD:
            interval = struct.unpack(">H", body[:2])[0]
        elif marker == 0xDA and headers:
            break
        elif marker == 0xDA:
            start, end = end, _end_of_data(data, end)
            stream.scans.append(_scan(stream, body, tables, interval, start, end))
        stream.pieces.append((at, end))
        at = end
    if (
        not stream.components
        or min(c.across for c in stream.components) < 1
        or min(c.down for c in stream.components) < 1
    ):
        raise ValueError("it has no frame header")
    return stream


def _chunks(data: bytes, size: int) -> Iterator[bytes]:
    return (data[i : i + size] for i in range(0, len(data) - size + 1, size))


def _end_of_data(data: bytes, at: int) -> int:
    """Position of the first marker after coded data, other than restart markers and stuffed zeros."""
    while (at := data.find(b"\xff", at)) >= 0 and at + 1 < len(data):
        following = data[at + 1]
        if following == 0xFF:
            at += 1
        elif following == 0 or 0xD0 <= following <= 0xD7:
            at += 2
        else:
            return at
    return len(data)


def _scan(stream: ParsedJpeg, body: bytes, tables: dict[int, bytes], interval: int, start: int, end: int) -> Scan:
    count = body[0]
    names = {c.name: c for c in stream.components}
    parts = []
    for name, chosen in _chunks(body[1 : 1 + 2 * count], 2):
        if name not in names:
            raise ValueError("a scan has a component that does not exist")
        parts.append((names[name], tables.get(chosen >> 4, b""), tables.get(16 + (chosen & 15), b"")))
    first, last, approximation = body[1 + 2 * count : 4 + 2 * count]
    return Scan(parts, first, last, approximation >> 4, approximation & 15, interval, start, end)


def _quantisers(body: bytes) -> Iterator[tuple[int, int]]:
    """Yield the number and the first entry of each table of 64 entries of one or two bytes."""
    while len(body) > 64:
        size = 2 if body[0] >> 4 else 1
        yield body[0] & 15, int.from_bytes(body[1 : 1 + size], "big")
        body = body[1 + 64 * size :]


def _huffman(body: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the number and definition of each table: 16 counts of codes by length, then the symbols."""
    while len(body) > 17:
        end = 17 + sum(body[1:17])
        yield body[0], body[1:end]
        body = body[end:]

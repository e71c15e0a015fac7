"""Formats without tiles: JPEG, PNG, WebP, BMP, GIF and PPM.

An image of up to 64 megapixels is decoded whole on the first look and kept in memory. A larger one is converted once to
a cached pyramid (`foveal.images.cache`), except for baseline JPEGs with restart markers, whose segments can be decoded
separately (`RestartJpeg`).

Example:
    >>> import numpy as np, tempfile
    >>> from PIL import Image
    >>> from foveal.images import open_image
    >>> with tempfile.NamedTemporaryFile(suffix=".png") as file:
    ...     Image.new("RGB", (40, 30), (255, 0, 0)).save(file, "PNG")
    ...     file.flush()
    ...     image = open_image(file.name)
    ...     seen = image.look(np.array([[0, 0, 30, 30]]), (2, 2))
    >>> image.size, seen[0, :, 0, 0].tolist()
    ((30, 40), [1.0, 0.0, 0.0])
"""

from __future__ import annotations

import io
import mmap
import os
import re
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from foveal.errors import ImageError
from foveal.images import bmp, gif, jpeg, png
from foveal.images.pyramid import ArrayPyramid, Pyramid, Stored, Window, without_gaps
from foveal.images.reading import check_claim, open_file, read_at, reading

if TYPE_CHECKING:
    from foveal.images.remote import RemoteObject

LARGE = 64_000_000  # largest image that is decoded whole, in pixels
_MOST_SCANS = 200  # most scans of a progressive JPEG; ten are usual
_MODES = {
    "1": (1, bool),
    "L": (1, np.uint8),
    "P": (3, np.uint8),
    "RGB": (3, np.uint8),
    "RGBA": (3, np.uint8),
    "CMYK": (3, np.uint8),
    "I;16": (1, np.uint16),
    "I;16B": (1, np.uint16),
    "I": (1, np.uint16),
    "F": (1, np.float32),
}


@dataclass
class Header:
    """Properties of a plain image before it is decoded."""

    kind: str
    size: tuple[int, int]
    bands: int
    dtype: Any
    metadata: dict[str, Any] = field(default_factory=dict)
    alpha: bool = False
    progressive: bool = False
    bits: int = 8  # per component of a JPEG

    @property
    def cost(self) -> int:
        """Memory of decoding in bytes; decoders of progressive JPEGs keep all coefficients."""
        samples = self.bands + self.alpha
        return self.size[0] * self.size[1] * samples * (np.dtype(self.dtype).itemsize + 2 * self.progressive)

    @property
    def large(self) -> bool:
        """Whether the image is converted to tiles. With alpha the limit is lower, as looks need two float32 copies."""
        pixels = self.size[0] * self.size[1]
        return pixels > (LARGE // 2 if self.alpha else LARGE)

    @property
    def orientation(self) -> int:
        return self.metadata["orientation"]


def kind_of(head: bytes) -> str | None:
    """Name of the plain format by the first bytes of a file, or None."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    starts = {b"\xff\xd8\xff": "JPEG", b"\x89PNG\r\n\x1a\n": "PNG", b"BM": "BMP", b"GIF8": "GIF"}
    found = next((kind for start, kind in starts.items() if head.startswith(start)), None)
    return found or ("PPM" if head[:1] == b"P" and head[1:2] in b"123456" and head[2:3].isspace() else None)


def read_header(path: str, kind: str, max_bytes: int, content: bytes | None = None) -> Header:
    """Read size, bands and orientation, without decoding.

    Args:
        path: path of the file, or the name of ``content`` in errors.
        kind: see `kind_of`.
        max_bytes: most bytes of the decoded image.
        content: content of the file, if it is in memory.

    Raises:
        ImageError: the file is damaged, has no pixels, or takes more than ``max_bytes`` when it is decoded.
    """
    read = {"JPEG": _jpeg_header, "PNG": _png_header, "WEBP": _webp_header}.get(kind)
    with (
        reading(path, f"the {kind} header cannot be read"),
        _mapped(path) if content is None else nullcontext(content) as data,
    ):
        source = path if content is None else io.BytesIO(content)
        header = read(data) if read else _pillow_header(path, kind, data, source)
    check_claim(path, header.size, header.cost, max_bytes)
    return header


def _jpeg_header(data: Any) -> Header:
    stream = jpeg.parse_jpeg(data, headers=True)
    if (stream.bits, len(stream.components)) not in ((8, 1), (8, 3), (8, 4), (12, 1), (12, 3)):
        raise ValueError(
            f"{len(stream.components)} components of {stream.bits} bits are not supported; convert it to 8-bit RGB"
        )
    notes = {"exif": stream.notes(0xE1, b"Exif\0\0"), "xmp": stream.notes(0xE1, b"http://ns.adobe.com/xap/1.0/\0")}
    if stream.progressive and (scans := len(re.findall(b"\xff\xda", data))) > _MOST_SCANS:
        raise ValueError(f"{scans} scans, each of which takes as long as an image; save it again")
    bands = 1 if len(stream.components) == 1 else 3
    metadata = {"orientation": _orientation(**notes)}
    dtype = np.uint8 if stream.bits == 8 else np.uint16
    return Header(
        "JPEG", (stream.height, stream.width), bands, dtype, metadata, progressive=stream.progressive, bits=stream.bits
    )


@contextmanager
def _mapped(path: str) -> Iterator[mmap.mmap]:
    with Path(path).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        yield data


def _png_header(data: Any) -> Header:
    found = png.parse_png(data)
    dtype = np.uint16 if found.depth == 16 else np.uint8
    metadata = {"orientation": _orientation(found.exif, found.xmp)}
    alpha = found.colour in (4, 6) or any(name == b"tRNS" for name, *_ in found.chunks)
    return Header("PNG", found.size, 1 if found.colour in (0, 4) else 3, dtype, metadata, alpha)


def _webp_header(data: Any) -> Header:
    """Size and metadata of a WebP. The chunks must add up to the length in the header."""
    end, at = 8 + int.from_bytes(data[4:8], "little"), 12
    size, exif, xmp, alpha = None, None, None, False
    while at + 8 <= min(end, len(data)):
        name, length = struct.unpack("<4sI", data[at : at + 8])
        body = data[at + 8 : at + 18]
        if name == b"VP8X":
            size, alpha = (
                (1 + int.from_bytes(body[7:10], "little"), 1 + int.from_bytes(body[4:7], "little")),
                bool(body[0] & 0x10),
            )
        elif name == b"VP8 " and size is None:
            width, height = struct.unpack("<HH", body[6:10])
            size = height & 0x3FFF, width & 0x3FFF
        elif name == b"VP8L" and size is None:
            bits = int.from_bytes(body[1:5], "little")
            size, alpha = (((bits >> 14) & 0x3FFF) + 1, (bits & 0x3FFF) + 1), bool(bits >> 28 & 1)
        elif name == b"EXIF":
            exif = data[at + 8 : at + 8 + length].removeprefix(b"Exif\0\0")
        elif name == b"XMP ":
            xmp = data[at + 8 : at + 8 + length]
        at += 8 + length + length % 2
    if size is None:
        raise ValueError("it has no image")
    # Some encoders omit the padding byte of the last chunk, and some do not count it.
    if not end - 1 <= at <= end + 1 or end > len(data) + 1:
        raise ValueError(f"it claims {end} bytes, its chunks take {at}, and the file has {len(data)}")
    return Header("WEBP", size, 3, np.uint8, {"orientation": _orientation(exif, xmp)}, alpha)


def _pillow(source: Any, kind: str) -> Any:
    """Open with the class of the format, because the size limit of ``Image.open`` is global to the process.

    Images without pixels are opened, too; only their size can be read.
    """
    from PIL import BmpImagePlugin, GifImagePlugin, PpmImagePlugin

    classes: dict[str, Any] = {
        "BMP": BmpImagePlugin.BmpImageFile,
        "GIF": GifImagePlugin.GifImageFile,
        "PPM": PpmImagePlugin.PpmImageFile,
    }
    image = classes[kind].__new__(classes[kind])
    try:
        image.__init__(source)
    except SyntaxError:
        # Pillow raises this for files without pixels, too, after reading their size.
        if not image.mode or min(image.size) > 0:
            raise
    return image


def _pillow_header(path: str, kind: str, data: Any, source: Any) -> Header:
    with _pillow(source, kind) as image:
        width, height = image.size
        metadata = {"orientation": 1}
        if min(width, height) < 1:
            return Header(kind, (height, width), 3, np.uint8, metadata)
        mode, alpha = "RGB" if kind == "GIF" else image.mode, "A" in image.mode or "transparency" in image.info
        rows = [
            tile.offset + tile.args[1] * (height - 1)
            for tile in image.tile
            if kind == "BMP" and tile.codec_name == "raw"
        ]
    if mode not in _MODES:
        raise ImageError(f"{path}: stores {mode} pixels, which cannot be read; convert it to RGB")
    # A length of 0 is common. Other lengths must include the pixels and must not exceed the file.
    if (
        kind == "BMP"
        and (length := int.from_bytes(data[2:6], "little"))
        and not max(rows, default=0) < length <= len(data)
    ):
        raise ValueError(f"it claims {length} bytes and has {len(data)}")
    return Header(kind, (height, width), *_MODES[mode], metadata, alpha)


def _orientation(exif: bytes | None, xmp: bytes | None) -> int:
    """EXIF orientation, or else that of the XMP metadata, as in Pillow; 1 if the metadata are damaged."""
    value = _exif_orientation(exif or b"")
    if value is None and xmp and (found := re.search(rb"tiff:Orientation(?:=\"|>)([0-9])", xmp)):
        value = int(found[1])
    return value if value is not None and 1 <= value <= 8 else 1


def _exif_orientation(exif: bytes) -> int | None:
    exif = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    try:
        first = struct.unpack_from(f"{order}I", exif, 4)[0] if order else 0
        for i in range(struct.unpack_from(f"{order}H", exif, first)[0] if first else 0):
            tag, kind, _, value = struct.unpack_from(f"{order}HHIH", exif, first + 2 + 12 * i)
            if tag == 0x0112 and kind == 3:
                return value
    except struct.error:
        pass
    return None


def decode_plain(path: str, header: Header, content: bytes | None = None) -> tuple[np.ndarray, bool, int]:
    """Decode a whole image.

    Args:
        path, content: see `read_header`.
        header: its header.

    Returns:
        (h, w, samples) pixels; whether the last sample is alpha; and the number of bytes read.

    Raises:
        ImageError: the file is damaged or cut short.
    """
    with reading(path, "cannot be read", "put it back, or check the disk"):
        data = Path(path).read_bytes() if content is None else content
    with reading(path, "cannot be decoded"):
        if header.kind == "JPEG":
            pixels = jpeg.decode_jpeg(data, "GRAY" if header.bands == 1 else "RGB", bits=header.bits)
        elif header.kind == "PNG":
            pixels = png.decode_png(png.parse_png(data))  # Pillow reduces 16-bit colour to 8 bits
        elif header.kind == "WEBP":
            import imagecodecs

            pixels = imagecodecs.webp_decode(data)
        else:
            pixels = _by_pillow(data, header.kind)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    alpha = pixels.shape[2] in (2, 4)
    bands = pixels.shape[2] - alpha
    if (*pixels.shape[:2], bands) != (*header.size, header.bands) or pixels.dtype != header.dtype:
        found = f"{pixels.shape[1]} x {pixels.shape[0]} pixels with {bands} bands of {pixels.dtype}"
        raise ImageError(f"{path}: has {found}, which does not match its header; save it again")
    if alpha and pixels[..., -1].max() == 0 and header.kind != "BMP":
        raise ImageError(f"{path}: is wholly transparent, with nothing to see; save it again")
    # Many programs write 32-bit BMPs whose fourth byte is zero and not alpha.
    if (
        alpha
        and pixels[..., -1].min() in (0, np.iinfo(pixels.dtype).max)
        and pixels[..., -1].min() == pixels[..., -1].max()
    ):
        pixels, alpha = pixels[..., :-1], False
    return pixels, alpha, len(data)


def split_alpha(stored: np.ndarray, alpha: bool) -> Stored:
    """Split stored samples into (h, w, bands) pixels and (h, w) float32 alpha or None."""
    if not alpha:
        return without_gaps(stored, None)
    return stored[..., :-1], stored[..., -1].astype(np.float32) / np.float32(np.iinfo(stored.dtype).max)


def _by_pillow(data: bytes, kind: str) -> np.ndarray:
    if kind == "BMP":
        bmp.check_bmp(data)
    if kind == "GIF":
        gif.check_gif(data)
    with _pillow(io.BytesIO(data), kind) as image:
        colours = len(image.palette.palette) // 4 if kind == "BMP" and image.palette is not None else 256
        if colours < 256 and np.asarray(image).max() >= colours:
            raise ValueError("its pixels have colours that are not in its palette")
        if image.mode in ("P", "PA") or kind == "GIF":
            image = image.convert("RGBA" if "transparency" in image.info or image.mode == "PA" else "RGB")
        elif image.mode in ("CMYK", "YCbCr", "RGBX"):
            image = image.convert("RGB")
        pixels = np.asarray(image)
    return pixels.astype(np.uint16) if pixels.dtype == np.int32 else pixels


class PlainPyramid(ArrayPyramid):
    """A plain image file, decoded whole on the first look.

    Args:
        path: path of the file.
        header: its header.
        content: content of the file, if it is in memory. It is released when it has been decoded.
        remote: the file, if it is remote.
        options: see `Pyramid`.
    """

    remote: RemoteObject | None

    def __init__(
        self,
        path: str,
        header: Header,
        content: bytes | None = None,
        remote: RemoteObject | None = None,
        **options: Any,
    ) -> None:
        Pyramid.__init__(
            self,
            path,
            [header.size],
            header.bands,
            header.dtype,
            orientation=header.orientation,
            metadata=header.metadata,
            bits=header.bits if header.bits > 8 else None,
            **options,
        )
        self._header = header
        self._content = content
        self._decoding = threading.Lock()
        self.remote = remote
        self._pixels: Tensor | None = None  # type: ignore[assignment]

    def _read_stored(self, requests: list[tuple[int, Window]]) -> list[Stored]:
        with self._decoding:
            if self._pixels is None:
                content = self._content if self.remote is None else self.remote.whole(self._max_bytes)
                stored, alpha, length = decode_plain(self.path, self._header, content)
                self._content = None
                self._fill_with(*split_alpha(stored, alpha))
                if self.remote is not None:
                    self.remote.release()
                self._count(length, 1)
        return super()._read_stored(requests)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in super().__getstate__().items() if k != "_decoding"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._decoding = threading.Lock()


@dataclass
class _RestartSegments:
    """Positions of the restart segments of a baseline JPEG.

    Attributes:
        unit: (height, width) of a unit (MCU) in pixels.
        grid: number of rows of units, and of segments in each row.
        width: width of a segment in pixels.
        interval: number of units in a segment.
        start, end: (rows * segments,) positions in the file.
        tables: tables and application segments that are put before the frame header.
        frame: the frame header, whose size is replaced.
        scan: the scan header.
    """

    unit: tuple[int, int]
    grid: tuple[int, int]
    width: int
    interval: int
    start: np.ndarray
    end: np.ndarray
    tables: bytes
    frame: bytes
    scan: bytes


def find_segments(data: np.ndarray) -> _RestartSegments | None:
    """Find the restart segments of a JPEG; None if no segments can be decoded separately.

    Args:
        data: (n,) uint8, contents of the file.
    """
    raw = data[: 1 << 20].tobytes()
    at, tables, frame, interval = 2, b"", b"", 0
    while at + 4 <= len(raw) and raw[at] == 0xFF:
        marker, length = raw[at + 1], struct.unpack(">H", raw[at + 2 : at + 4])[0]
        part = raw[at : at + 2 + length]
        if marker in (0xC0, 0xC1):
            frame = part
        elif 0xC2 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return None
        elif marker == 0xDD:
            interval = struct.unpack(">H", part[4:6])[0]
        elif marker in (0xDB, 0xC4, 0xEE, 0xE0):
            tables += part
        at += 2 + length
        if marker == 0xDA:
            break
    else:
        return None
    if not frame or not interval:
        return None
    height, width = struct.unpack(">HH", frame[5:9])
    factors = [frame[11 + 3 * i] for i in range(frame[9])]
    unit = (8 * max(f & 15 for f in factors), 8 * max(f >> 4 for f in factors))
    rows, columns = -(-height // unit[0]), -(-width // unit[1])
    if columns % interval:
        return None
    body = data[at:]
    mark = np.flatnonzero(body[:-1] == 0xFF)
    following = body[mark + 1]
    restart, final = mark[(following >= 0xD0) & (following <= 0xD7)], mark[following == 0xD9]
    if len(final) == 0 or len(restart) + 1 != rows * (columns // interval):
        return None
    start, end = np.concatenate([[0], restart + 2]) + at, np.concatenate([restart, final[-1:]]) + at
    return _RestartSegments(
        unit, (rows, columns // interval), interval * unit[1], interval, start, end, tables, frame, part
    )


class RestartJpeg(Pyramid):
    """A large baseline JPEG with restart markers, whose segments are decoded separately.

    The second level, an eighth of the size, is decoded whole when it is first needed. Pixels at the seams of segments
    may differ from those of a full decode by about ten grey values, because chroma is not interpolated across seams.

    Args:
        path: path of the file.
        header: its header.
        segments: from `find_segments`.
        options: see `Pyramid`.
    """

    def __init__(self, path: str, header: Header, segments: _RestartSegments, **options: Any) -> None:
        h, w = header.size
        sizes = [(h, w), (-(-h // 8), -(-w // 8))]
        super().__init__(
            path,
            sizes,
            header.bands,
            np.dtype(np.uint8),
            orientation=header.orientation,
            metadata=header.metadata,
            **options,
        )
        self._header = header
        self._segments = segments
        self._eighth: np.ndarray | None = None

    def _read_stored(self, requests: list[tuple[int, Window]]) -> list[Stored]:
        with reading(self.path, "cannot be decoded"):
            return [(self._overview(box) if level else self._decode(box), None) for level, box in requests]

    def _overview(self, box: Window) -> np.ndarray:
        y0, x0, y1, x1 = box
        if self._eighth is None:
            data = Path(self.path).read_bytes()
            self._eighth = jpeg.decode_jpeg(data, self._colours, smaller=8)
            self._count(len(data), 1)
        return self._eighth[y0:y1, x0:x1]

    @property
    def _colours(self) -> str:
        return "GRAY" if self._bands == 1 else "RGB"

    def _decode(self, box: Window) -> np.ndarray:
        s = self._segments
        y0, x0, y1, x1 = box
        out = np.empty((y1 - y0, x1 - x0, self._bands), np.uint8)
        # One more row of units on each side, because chroma is interpolated.
        first, last = max(0, y0 // s.unit[0] - 1), min(s.grid[0] - 1, (y1 - 1) // s.unit[0] + 1)
        height = (last - first + 1) * s.unit[0]
        frame = s.frame[:5] + struct.pack(">HH", height, s.width) + s.frame[9:]
        head = b"\xff\xd8" + s.tables + frame + b"\xff\xdd\x00\x04" + struct.pack(">H", s.interval) + s.scan
        descriptor = open_file(self.path)
        try:
            for column in range(x0 // s.width, (x1 - 1) // s.width + 1):
                parts = [head]
                for k, row in enumerate(range(first, last + 1)):
                    n = row * s.grid[1] + column
                    parts.append(read_at(descriptor, int(s.end[n] - s.start[n]), int(s.start[n])))
                    parts.append(b"\xff\xd9" if row == last else bytes([0xFF, 0xD0 + k % 8]))
                data = b"".join(parts)
                pixels = jpeg.decode_jpeg(data, self._colours)
                self._count(len(data), last - first + 1)
                left = max(x0, column * s.width)
                right = min(x1, (column + 1) * s.width)
                top = y0 - first * s.unit[0]
                out[:, left - x0 : right - x0] = pixels[
                    top : top + y1 - y0, left - column * s.width : right - column * s.width
                ]
        finally:
            os.close(descriptor)
        return out

"""Reading of files by other libraries, and detection of damage by them and by checksums.

Each reader returns the pixels of the pages that foveal uses, or raises. The result is compared with that of the same
reader for the intact file, so conventions of colour and rounding have no effect.

Example:
    >>> import tempfile
    >>> from pathlib import Path
    >>> from benchmarks.torture.seeds import VARIANTS
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = VARIANTS[0].write(Path(folder))
    ...     before = damage_reports(path)
    ...     _ = path.write_bytes(path.read_bytes()[:-300] + bytes(300))
    ...     before, sorted(damage_reports(path, all_warnings=True))
    ({}, ['libjpeg'])
"""

from __future__ import annotations

import contextlib
import logging
import lzma
import os
import re
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from foveal.images.jpeg import HARMLESS

Pixels = list[np.ndarray]
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
}


class Unknown(Exception):
    """The library does not support the format, or is not installed."""


def by_pillow(path: Path) -> Pixels:
    from PIL import Image, ImageFile

    ImageFile.LOAD_TRUNCATED_IMAGES = False
    Image.MAX_IMAGE_PIXELS = 1 << 26
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(path) as image:
            pages = getattr(image, "n_frames", 1) if image.format == "TIFF" else 1
            found = []
            for i in range(min(pages, 10)):
                if i:
                    image.seek(i)
                shown = image.convert("RGBA" if "transparency" in image.info else "RGB") if image.mode == "P" else image
                found.append(np.asarray(shown))
            return found


def by_imagecodecs(path: Path) -> Pixels:
    import imagecodecs

    data = path.read_bytes()
    starts = {
        b"\x89PNG": "png",
        b"RIFF": "webp",
        b"GIF8": "gif",
        b"BM": "bmp",
        b"\xff\x0a": "jpegxl",
        b"\0\0\0\x0cJXL": "jpegxl",
        b"\xff\xd8": "jpeg8",
        b"\0\0\0\x0cjP": "jpeg2k",
        b"\xff\x4f": "jpeg2k",
    }
    kind = next(
        (kind for start, kind in starts.items() if data.startswith(start)), "avif" if data[4:8] == b"ftyp" else None
    )
    if kind is None:
        raise Unknown
    pixels = getattr(imagecodecs, f"{kind}_decode")(data, **({"index": 0} if kind in ("gif", "jpegxl", "avif") else {}))
    if pixels.size == 0 or pixels.nbytes > 1 << 28:
        raise ValueError("no pixels")
    return [pixels]


def by_tifffile(path: Path) -> Pixels:
    import tifffile

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    if path.read_bytes()[:2] not in (b"II", b"MM"):
        raise Unknown
    with tifffile.TiffFile(path) as file:
        pages = [page.aspage() for page in file.pages]
        if not pages or sum(page.nbytes for page in pages) > 1 << 28:
            raise ValueError("no pages, or too much of them")
        for page in pages:
            for at, count in zip(page.dataoffsets, page.databytecounts, strict=False):
                if at + count > file.filehandle.size:
                    raise ValueError("past the end")
        return [page.asarray() for page in pages]


def by_libvips(path: Path) -> Pixels:
    import pyvips

    pyvips.cache_set_max(0)
    pyvips.vips_lib.vips_error_clear()
    first = pyvips.Image.new_from_file(str(path), fail_on="error", access="sequential")
    if first.width * first.height * first.bands > 1 << 27:
        raise ValueError("too large")
    pages = [first]
    if path.suffix in (".tif", ".svs") and first.get_typeof("n-pages"):
        for i in range(1, min(first.get("n-pages"), 10)):
            pages.append(pyvips.Image.new_from_file(str(path), fail_on="error", access="sequential", page=i))
    return [page.numpy() for page in pages]


def by_gdal(path: Path) -> Pixels:
    import rasterio

    logging.getLogger("rasterio").setLevel(logging.CRITICAL)
    os.environ.setdefault("GDAL_CACHEMAX", "32")
    with warnings.catch_warnings(), rasterio.Env(GDAL_PAM_ENABLED="NO"):
        warnings.simplefilter("ignore")
        with rasterio.open(path, sharing=False) as data:
            if data.width * data.height * data.count > 1 << 27:
                raise ValueError("too large")
            levels = len(data.overviews(1))
            found = [np.moveaxis(data.read(), 0, -1)]
        for level in range(levels):
            with rasterio.open(path, sharing=False, overview_level=level) as data:
                found.append(np.moveaxis(data.read(), 0, -1))
        return found


def by_openslide(path: Path) -> Pixels:
    import openslide

    if path.suffix not in (".svs", ".scn"):
        raise Unknown
    with openslide.OpenSlide(path) as slide:
        if max(slide.dimensions) > 4096:
            raise ValueError("too large")
        return [np.asarray(slide.read_region((0, 0), i, slide.level_dimensions[i])) for i in range(slide.level_count)]


READERS: dict[str, Callable[[Path], Pixels]] = {
    "Pillow": by_pillow,
    "imagecodecs": by_imagecodecs,
    "tifffile": by_tifffile,
    "libvips": by_libvips,
    "GDAL": by_gdal,
    "OpenSlide": by_openslide,
}


def lost_tiles(path: Path) -> bool:
    """Whether a TIFF has a byte count of 0, as files with missing tiles have."""
    import tifffile

    if path.suffix not in (".tif", ".svs"):
        return False
    try:
        with tifffile.TiffFile(path) as file:
            return any(0 in page.aspage().databytecounts for page in file.pages)
    except Exception:  # a header that tifffile cannot read
        return False


def read_by(name: str, path: Path) -> Pixels | str | None:
    """Pixels read by one library, or its error message, or None if it does not support the format."""
    try:
        with quiet():
            return READERS[name](path)
    except (Unknown, ImportError):
        return None
    except Exception as error:
        text = " ".join(str(error).split())[:160] or type(error).__name__
        return None if re.search(r"not (implemented|supported|configured)", text) else text


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress the messages that C libraries write to standard error."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


# ----------------------------------------------------------------------------------------------- checksums and warnings


def damage_reports(path: Path, *, all_warnings: bool = False) -> dict[str, str]:
    """Damage of pixels reported by checksums, lengths and libjpeg, by the name of the source; empty if there is none.

    Args:
        path: path of the file.
        all_warnings: include warnings of libjpeg that may be harmless, such as extraneous bytes.
    """
    data = path.read_bytes()
    found: dict[str, str | None] = {}
    try:
        if data.startswith(b"\xff\xd8"):
            found["libjpeg"] = libjpeg_warns(data, all_warnings)
        elif data.startswith(b"\x89PNG"):
            found["CRC"], found["Adler"] = _png(data)
        elif data[:2] in (b"II", b"MM"):
            found |= _tiff(path, data, all_warnings)
    except Exception as error:
        found["parsing"] = f"{type(error).__name__}: {error}"
    return {name: text for name, text in found.items() if text}


def libjpeg_warns(data: bytes, all_warnings: bool = False) -> str | None:
    """First warning of libjpeg, from simplejpeg; possibly harmless ones only if ``all_warnings`` is True."""
    import simplejpeg

    try:
        height, width, kind, _ = simplejpeg.decode_jpeg_header(data)
        if height * width > 1 << 25:
            return "too large"
        colours = {"Gray": "GRAY", "CMYK": "CMYK", "YCCK": "CMYK"}.get(kind, "RGB")
        simplejpeg.decode_jpeg(data, colours, strict=True)
        return None
    except ValueError as error:
        text = str(error)
        harmless = any(part in text for part in HARMLESS)
        if harmless and all_warnings:
            harmless = "Premature" not in text and ("extraneous" not in text or _stray_among_headers(data))
        return None if harmless or re.search(r"subsampling|precision", text) else text


def _stray_among_headers(data: bytes) -> bool:
    """Whether there are bytes between the segments before the first scan of a JPEG, which libjpeg reports first."""
    at = 2
    while data[at : at + 1] == b"\xff" and data[at + 1 : at + 2] != b"\xda":
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return data[at : at + 1] != b"\xff"


def without_later_frames(path: Path) -> Path:
    """The file, or a copy of the first frame if it is a GIF: damage of later frames does not change the first."""
    data = path.read_bytes()
    if not data.startswith(b"GIF8"):
        return path
    try:
        at = 13 + (3 << (data[10] & 7) + 1 if data[10] & 128 else 0)
        while data[at] in b"!,":
            frame = data[at : at + 1] == b","
            at += 11 + (3 << (data[at + 9] & 7) + 1 if data[at + 9] & 128 else 0) if frame else 2
            while data[at]:
                at += 1 + data[at]
            at += 1
            if frame:
                first = path.with_name(f"first frame of {path.name}")
                first.write_bytes(data[:at] + b";")
                return first
    except IndexError:
        pass
    return path


def with_intact_notes(path: Path, intact: Path) -> Path:
    """The file, or a copy of a little-endian TIFF with the tags of resolution and software of the intact file: their
    damage does not change pixels, but some libraries then refuse the file.
    """
    data, good = bytearray(path.read_bytes()), intact.read_bytes()
    if good[:4] != b"II*\0" or data[:8] != good[:8] or len(data) < len(good):
        return path
    at = int.from_bytes(good[4:8], "little")
    for entry in range(at + 2, at + 2 + 12 * int.from_bytes(good[at : at + 2], "little"), 12):
        if int.from_bytes(good[entry : entry + 2], "little") in (269, 271, 272, 282, 283, 296, 305, 306, 315):
            data[entry : entry + 12] = good[entry : entry + 12]
    copy = path.with_name(f"notes of {path.name}")
    copy.write_bytes(data)
    return copy


def is_proven(path: Path) -> bool:
    """Whether checksums show that the pixels are those that were written: of a PNG with its critical chunks intact."""
    data = path.read_bytes()
    return data.startswith(b"\x89PNG") and not damage_reports(path)


def _png(data: bytes) -> tuple[str | None, str | None]:
    """Wrong checksums of critical chunks, and of the compressed pixels."""
    at, pixels, wrong, ended = 8, b"", None, False
    while at + 12 <= len(data) and not ended:
        length, name = struct.unpack(">I4s", data[at : at + 8])
        body, told = data[at + 4 : at + 8 + length], data[at + 8 + length : at + 12 + length]
        if name not in _NOTES and struct.pack(">I", zlib.crc32(body)) != told and name != b"IEND":
            wrong = wrong or f"{name!r}"
        if name == b"IDAT":
            pixels += body[4:]
        ended = name == b"IEND"
        at += 12 + length
    stream = zlib.decompressobj()
    try:
        size = 0
        left = pixels
        while left and not stream.eof and size < 1 << 28:
            size += len(stream.decompress(left, 1 << 20))
            left = stream.unconsumed_tail
        return wrong, None if stream.eof else "the stream does not end"
    except zlib.error as error:
        return wrong, str(error)


def _tiff(path: Path, data: bytes, all_warnings: bool) -> dict[str, str | None]:
    """Strips and tiles that are cut short, have wrong checksums, or decode to less than their size."""
    import imagecodecs
    import tifffile

    found: dict[str, str | None] = {}
    found["header"] = _damage_of_tags(data)
    if not found["header"] and _chain_is_cut(data):
        found["header"] = "the next header is past the end of the file"
    with tifffile.TiffFile(path) as file:
        if path.name.endswith(".ome.tif") and not file.is_ome:
            found["header"] = "no OME-XML, which tells that pages are channels"
        for page in (p.aspage() for p in file.pages):
            compression = int(page.compression)
            if int(page.photometric) not in (0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 32803, 32844, 32845, 34892):
                found["header"] = f"no such photometric interpretation, {int(page.photometric)}"
            if compression == 50001 and int(page.photometric) != 2:
                found["header"] = "WebP pixels are RGB"
            bits = page.tags.get(258)
            if bits is not None and bits.count not in (1, page.samplesperpixel):
                found["header"] = "not as many numbers of bits as samples, which TIFF requires"
            if page.tags.get(262) is None:
                found["header"] = "no photometric interpretation, which TIFF requires"
            for i, (at, count) in enumerate(zip(page.dataoffsets, page.databytecounts, strict=False)):
                if count == 0:
                    continue
                piece = data[at : at + count]
                if len(piece) < count:
                    found["length"] = "a tile lies past the end"
                    continue
                size = _raw_size(page, i)
                try:
                    if compression in (8, 32946):
                        stream = zlib.decompressobj()
                        short = len(stream.decompress(piece, 1 << 26)) < size
                        found["deflate"] = found.get("deflate") or ("too little" if short or not stream.eof else None)
                    elif compression == 5:
                        found["LZW"] = found.get("LZW") or (
                            "too little" if len(imagecodecs.lzw_decode(piece)) < size else None
                        )
                    elif compression == 32773:
                        found["PackBits"] = found.get("PackBits") or (
                            "too little" if len(imagecodecs.packbits_decode(piece)) < size else None
                        )
                    elif compression in (34926, 50000):
                        found["zstd"] = found.get("zstd") or (
                            "too little" if len(imagecodecs.zstd_decode(piece)) < size else None
                        )
                    elif compression == 34925:
                        found["LZMA"] = found.get("LZMA") or (
                            "too little" if len(lzma.decompress(piece)) < size else None
                        )
                    elif compression == 7:
                        found["libjpeg"] = found.get("libjpeg") or libjpeg_warns(_whole_jpeg(page, piece), all_warnings)
                    elif compression == 1 and count < size:
                        found["length"] = "too few bytes"
                except Exception as error:
                    found[f"compression {compression}"] = " ".join(str(error).split())[:100] or type(error).__name__
    return found


def _damage_of_tags(data: bytes) -> str | None:
    """Whether the first header of a TIFF, or one of its values, goes past the end of the file, or a tag that is needed
    to decode the pixels has a type that does not exist.
    """
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    word, count_form = ("Q", "Q") if big else ("I", "H")
    width = struct.calcsize(order + word)
    at = struct.unpack(order + word, data[8:16] if big else data[4:8])[0]
    sizes = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 16: 8, 17: 8, 18: 8}
    start, step = at + struct.calcsize(order + count_form), 4 + 2 * width
    count = struct.unpack(order + count_form, data[at:start])[0]
    cut = "a tag continues past the end of the file"
    if start + step * count + width > len(data):
        return cut
    tags = [
        struct.unpack(order + "HH" + 2 * word, data[start + step * i : start + step * (i + 1)]) for i in range(count)
    ]
    if any(kind not in sizes and code in (258, 320, 338, 339, 347, 529, 530, 532) for code, kind, *_ in tags):
        return "a tag of pixels has a type that does not exist"
    past = (sizes.get(kind, 1) * number > max(width, len(data) - where) for _, kind, number, where in tags)
    return cut if any(past) else None


def _chain_is_cut(data: bytes) -> bool:
    """Whether the chain of headers of a classic TIFF leaves the file, so that levels may be lost."""
    order = "<" if data[:2] == b"II" else ">"
    at, seen = struct.unpack(order + "I", data[4:8])[0], set[int]()
    while data[2:4] in (b"*\0", b"\0*") and at and at not in seen:
        seen.add(at)
        if at + 2 > len(data):
            return True
        end = at + 2 + 12 * struct.unpack(order + "H", data[at : at + 2])[0]
        if end + 4 > len(data):
            return True
        at = struct.unpack(order + "I", data[end : end + 4])[0]
    return at != 0 and at in seen


def _raw_size(page: Any, index: int) -> int:
    """Size of a decoded tile or strip in bytes; the last strip may have fewer rows."""
    samples = page.samplesperpixel if page.planarconfig == 1 else 1
    if page.is_tiled:
        rows, width = page.tilelength, page.tilewidth
    else:
        per_plane = -(-page.imagelength // max(1, page.rowsperstrip))
        rows, width = (
            min(page.rowsperstrip, page.imagelength - (index % per_plane) * page.rowsperstrip),
            page.imagewidth,
        )
    if int(page.photometric) == 6 and int(page.compression) != 7:
        across, down = page.tags.valueof(530) or (2, 2)
        return -(-rows // down) * -(-width // across) * (across * down + 2)
    return rows * -(-width * samples * page.bitspersample // 8)


def _whole_jpeg(page: Any, piece: bytes) -> bytes:
    """A JPEG tile with the tables of its page, without padding."""
    bare = piece.rstrip(b"\0")
    piece = bare if bare.endswith(b"\xff\xd9") else piece
    return page.jpegtables[:-2] + piece[2:] if page.jpegtables else piece

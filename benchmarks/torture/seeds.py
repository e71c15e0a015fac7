"""Small intact files of every format that foveal reads, in common variants.

Example:
    >>> import tempfile
    >>> from pathlib import Path
    >>> variant = next(v for v in VARIANTS if v.name == "LZW, tiles")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     variant.write(Path(folder)).name
    'TIFF LZW, tiles.tif'
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import tifffile
from PIL import Image

SIZE = (88, 104)  # height, width; not multiples of the tile size
TILE = (32, 32)


@dataclass(frozen=True)
class Variant:
    """A variant of a file format.

    Attributes:
        format: name of the format in the tables.
        name: name of the variant.
        suffix: suffix of the file.
        make: function that writes the file.
        value_range: value range to open the file with, or None.
        module: optional package that foveal needs to read the file, or None.
    """

    format: str
    name: str
    suffix: str
    make: Callable[[Path], Any] = field(compare=False)
    value_range: tuple[float, float] | None = None
    module: str | None = None

    @property
    def title(self) -> str:
        return f"{self.format} {self.name}"

    def write(self, folder: Path) -> Path:
        """Write the file if it does not exist."""
        path = folder / f"{self.title.replace('/', ' ')}{self.suffix}"
        if not path.exists():
            self.make(path)
        return path


def picture(bands: int = 3, dtype: Any = np.uint8, size: tuple[int, int] = SIZE) -> np.ndarray:
    """(h, w, bands): smooth shapes and some texture; (h, w) of one band."""
    rng = np.random.default_rng(bands)
    y, x = np.mgrid[: size[0], : size[1]] / max(size)
    planes = [np.sin(7 * (i + 1) * y + 3 * x) * np.cos(5 * x * (i + 2) - y) + 0.3 * y - 0.2 * x for i in range(bands)]
    pixels = np.stack(planes, -1) + rng.normal(0, 0.02, (*size, bands))
    pixels = (pixels - pixels.min()) / np.ptp(pixels)
    if np.dtype(dtype).kind != "f":
        pixels = np.rint(pixels * np.iinfo(dtype).max)
    pixels = pixels.astype(dtype)
    return pixels[..., 0] if bands == 1 else pixels


def _cover(pixels: np.ndarray) -> np.ndarray:
    """Append a partly transparent alpha band."""
    alpha = np.full((*pixels.shape[:2], 1), np.iinfo(pixels.dtype).max, pixels.dtype)
    alpha[20:40, 30:60] = 0
    alpha[50:60, 30:60] //= 2
    return np.concatenate([pixels if pixels.ndim == 3 else pixels[..., None], alpha], 2)


def _pillow(
    mode: str = "RGB", form: str | None = None, size: tuple[int, int] = SIZE, **options: Any
) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        image = Image.fromarray(picture(size=size))
        if mode == "RGBA":
            image = Image.fromarray(_cover(picture(size=size)))
        elif mode == "LA":
            image = Image.fromarray(_cover(picture(1, size=size)), "LA")
        elif mode == "P":
            image = image.quantize(64)
        elif mode == "I;16":
            image = Image.fromarray(picture(1, np.uint16, size))
        elif mode != "RGB":
            image = image.convert(mode)
        image.save(path, form, **options)

    return make


def _bytes(
    encode: Callable[..., bytes], pixels: Callable[[], np.ndarray] = picture, **options: Any
) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(encode(pixels(), **options)) and None


def _exif(orientation: int) -> Any:
    exif = Image.Exif()
    exif[0x112] = orientation
    return exif


def _jpegs() -> Iterator[tuple[str, Callable[[Path], Any]]]:
    yield "4:2:0", _pillow(quality=85)
    yield "4:4:4", _pillow(quality=90, subsampling=0)
    yield "4:2:2, optimised", _pillow(quality=80, subsampling=1, optimize=True)
    yield "grey", _pillow("L", quality=85)
    yield "RGB", _pillow(quality=85, keep_rgb=True)
    yield "CMYK", _pillow("CMYK", quality=85)
    yield "progressive", _pillow(quality=85, progressive=True)
    yield "progressive 4:4:4", _pillow(quality=90, progressive=True, subsampling=0)
    yield "progressive grey", _pillow("L", quality=85, progressive=True)
    yield "progressive CMYK", _pillow("CMYK", quality=85, progressive=True)
    yield "restart markers", _pillow(quality=85, restart_marker_rows=1)
    yield "restart markers in a row", _pillow(quality=85, restart_marker_blocks=3)
    yield "EXIF orientation 6", _pillow(quality=85, exif=_exif(6))
    yield "4:1:1", _bytes(imagecodecs.jpeg8_encode, level=85, subsampling="411")
    yield "4:4:0", _bytes(imagecodecs.jpeg8_encode, level=85, subsampling="440")
    yield "notes and profile", _pillow(quality=85, comment=b"a note", icc_profile=bytes(range(256)) * 4, exif=_exif(1))
    yield "12 bits", _bytes(imagecodecs.jpeg8_encode, lambda: picture(dtype=np.uint16) >> 4, level=90, bitspersample=12)
    yield (
        "12 bits, grey",
        _bytes(imagecodecs.jpeg8_encode, lambda: picture(1, dtype=np.uint16) >> 4, level=90, bitspersample=12),
    )


def _pngs() -> Iterator[tuple[str, Callable[[Path], Any]]]:
    for mode in ("RGB", "RGBA", "L", "LA", "I;16", "P", "1"):
        yield (
            {"P": "palette", "1": "1 bit", "L": "grey", "LA": "grey, alpha", "I;16": "grey, 16 bits"}.get(mode, mode),
            _pillow(mode),
        )
    yield "palette, transparent", _pillow("P", transparency=b"\0\x80\xff\xff")
    yield "palette, 4 bits", _pillow("P", bits=6)
    yield "RGB, transparent colour", _pillow(transparency=(12, 40, 200))
    yield "RGB, 16 bits", _bytes(imagecodecs.png_encode, lambda: picture(dtype=np.uint16))
    yield "RGBA, 16 bits", _bytes(imagecodecs.png_encode, lambda: _cover(picture(dtype=np.uint16)))
    yield "interlaced", _interlaced
    yield "orientation 6 and text", _pillow(exif=_exif(6))


def _interlaced(path: Path) -> None:
    """Write an interlaced PNG (Adam7), which Pillow cannot write."""
    pixels = picture()
    passes = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
    rows = b"".join(b"\0" + row.tobytes() for y, x, down, across in passes for row in pixels[y::down, x::across])
    head = struct.pack(">IIBBBBB", SIZE[1], SIZE[0], 8, 2, 0, 0, 1)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    parts = [
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def _rle_bmp(path: Path) -> None:
    pixels = np.asarray(Image.fromarray(picture()).quantize(16, dither=Image.Dither.NONE))
    palette = b"".join(bytes([i * 16, 255 - i * 16, i * 8, 0]) for i in range(16))
    body = b""
    for row in pixels[::-1]:
        starts = np.flatnonzero(np.diff(row, prepend=-1))
        for a, b in zip(starts, [*starts[1:], len(row)], strict=True):
            body += bytes([b - a, row[a]])
        body += b"\0\0"
    body += b"\0\1"
    head = struct.pack("<IiiHHIIiiII", 40, SIZE[1], SIZE[0], 1, 8, 1, len(body), 2835, 2835, 16, 0)
    path.write_bytes(b"BM" + struct.pack("<IHHI", 54 + 64 + len(body), 0, 0, 54 + 64) + head + palette + body)


def _pnm(kind: int) -> Callable[[Path], Any]:
    def make(path: Path) -> None:
        grey = picture(1)
        values = {1: grey < 128, 2: grey, 3: picture()}[kind]
        top = b"" if kind == 1 else b"255\n"
        text = b"\n".join(b" ".join(b"%d" % v for v in row.reshape(-1)) for row in values)
        path.write_bytes(b"P%d\n%d %d\n" % (kind, SIZE[1], SIZE[0]) + top + text + b"\n")

    return make


def write_tiff(
    pixels: Callable[[], np.ndarray] = picture, levels: int = 1, planar: bool = False, **options: Any
) -> Callable[[Path], None]:
    """Write a TIFF with tifffile: tiled unless ``tile`` is None, planar if ``planar``, with subsampled levels."""

    def make(path: Path) -> None:
        data = np.moveaxis(pixels(), -1, 0) if planar else pixels()
        given = {
            "tile": TILE,
            "photometric": "rgb" if data.ndim == 3 and data.shape[2] == 3 else "minisblack",
            "metadata": None,
            **options,
        }
        if planar:
            given["planarconfig"] = "separate"
        if given["tile"] is None:
            given |= {"rowsperstrip": 24} if "rowsperstrip" not in options else {}
        with tifffile.TiffWriter(
            path, bigtiff=bool(given.pop("big", False)), byteorder=given.pop("order", None)
        ) as writer:
            for i in range(levels):
                step = 2**i
                level = data[..., ::step, ::step] if planar else data[::step, ::step]
                writer.write(level, subfiletype=int(i > 0), **given)

    return make


def _planes(dtype: Any = np.uint8, bands: int = 3) -> Callable[[], np.ndarray]:
    return lambda: np.moveaxis(picture(bands, dtype), -1, 0)


def _jpeg_tiles(**arguments: Any) -> dict[str, Any]:
    return {"compression": "jpeg", "compressionargs": {"level": 85, **arguments}}


def _tiffs() -> Iterator[tuple[str, Callable[[Path], Any]]]:
    for compression in (
        "none",
        "packbits",
        "lzw",
        "zlib",
        "zstd",
        "lzma",
        "lerc",
        "webp",
        "jpeg2000",
        "jpegxl",
        "jpegxr",
        "png",
    ):
        shown = {"none": "uncompressed", "zlib": "deflate", "lzw": "LZW"}.get(compression, compression)
        given: dict[str, Any] = {"compression": None if compression == "none" else compression}
        if compression in ("webp", "jpegxl"):
            given["compressionargs"] = {"lossless": True}
        if compression == "jpegxr":
            given["compressionargs"] = {"level": 0.95}
        yield f"{shown}, tiles", write_tiff(**given)
        if compression in ("none", "packbits", "lzw", "zlib", "zstd", "lzma", "webp"):
            yield f"{shown}, strips", write_tiff(tile=None, **given)
        if compression in ("none", "lzw", "zlib", "zstd", "lzma"):
            yield f"{shown}, 16 bits", write_tiff(lambda: picture(dtype=np.uint16), **given)
            yield f"{shown}, planar", write_tiff(planar=True, **given)
        if compression in ("lzw", "zlib", "zstd"):
            yield f"{shown}, predictor", write_tiff(predictor=2, **given)
    yield "JPEG, YCbCr tiles", write_tiff(photometric="ycbcr", subsampling=(2, 2), **_jpeg_tiles())
    yield "JPEG, RGB tiles", write_tiff(photometric="rgb", **_jpeg_tiles())
    yield "JPEG, grey tiles", write_tiff(lambda: picture(1), **_jpeg_tiles())
    yield "JPEG, CMYK tiles", write_tiff(lambda: picture(4), photometric="separated", **_jpeg_tiles())
    yield "JPEG, planar tiles", write_tiff(planar=True, photometric="rgb", **_jpeg_tiles())
    yield (
        "JPEG, strips",
        write_tiff(tile=None, rowsperstrip=32, photometric="ycbcr", subsampling=(2, 2), **_jpeg_tiles()),
    )
    yield "JPEG by libtiff", _pillow(form="TIFF", compression="jpeg")
    yield "deflate by libtiff", _pillow(form="TIFF", compression="tiff_adobe_deflate")
    yield "LZW by libtiff", _pillow(form="TIFF", compression="tiff_lzw")
    yield "fax 3", _pillow("1", "TIFF", compression="group3")
    yield "fax 4", _pillow("1", "TIFF", compression="group4")
    yield "palette", _pillow("P", "TIFF")
    yield "CMYK", _pillow("CMYK", "TIFF")
    yield "grey, 16 bits", write_tiff(lambda: picture(1, np.uint16), compression="zlib")
    yield (
        "alpha",
        write_tiff(lambda: _cover(picture()), photometric="rgb", extrasamples=["unassalpha"], compression="zlib"),
    )
    yield "pyramid", write_tiff(levels=3, compression="zlib")
    yield "pyramid of JPEG tiles", write_tiff(levels=3, photometric="ycbcr", subsampling=(2, 2), **_jpeg_tiles())
    yield "pyramid, big-endian", write_tiff(levels=2, compression="lzw", order=">")
    yield "BigTIFF", write_tiff(levels=2, compression="zlib", big=True)
    yield "min is white", write_tiff(lambda: picture(1), photometric="miniswhite", compression="zlib")
    yield (
        "4 bands",
        write_tiff(
            lambda: picture(4),
            photometric="minisblack",
            planarconfig="contig",
            extrasamples=[0, 0, 0],
            compression="zlib",
        ),
    )
    yield "YCbCr, uncompressed", _ycbcr((1, 1))
    yield "YCbCr 4:2:0, uncompressed", _ycbcr((2, 2))
    yield "YCbCr 4:2:2, LZW", _ycbcr((2, 1), "tiff_lzw")
    yield "CIELAB", _pillow("LAB", "TIFF")


def _ycbcr(subsampling: tuple[int, int], compression: str | None = None) -> Callable[[Path], None]:
    """Write YCbCr without JPEG compression, in units of the Y of several pixels and then one Cb and one Cr."""

    def make(path: Path) -> None:
        across, down = subsampling
        y, cb, cr = np.moveaxis(np.asarray(Image.fromarray(picture()).convert("YCbCr")), -1, 0)
        height, width = SIZE
        units = np.empty((height // down, width // across, across * down + 2), np.uint8)
        units[..., :-2] = (
            y.reshape(height // down, down, width // across, across).swapaxes(1, 2).reshape(*units.shape[:2], -1)
        )
        units[..., -2], units[..., -1] = (
            c.reshape(height // down, down, width // across, across).mean((1, 3)).round() for c in (cb, cr)
        )
        data = units.tobytes()
        if compression:
            data = imagecodecs.lzw_encode(data)
        entries = [
            (256, 4, 1, width),
            (257, 4, 1, height),
            (258, 3, 3, None),
            (259, 3, 1, 5 if compression else 1),
            (262, 3, 1, 6),
            (273, 4, 1, None),
            (277, 3, 1, 3),
            (278, 4, 1, height),
            (279, 4, 1, len(data)),
            (284, 3, 1, 1),
            (530, 3, 2, across | down << 16),
            (531, 3, 1, 1),
            (532, 5, 6, None),
        ]
        bits = 8 + 2 + 12 * len(entries) + 4
        values = {258: bits, 532: bits + 8, 273: bits + 8 + 48}
        body = b"".join(
            struct.pack("<HHII", c, t, n, values.get(c, v if v is not None else 0)) for c, t, n, v in entries
        )
        white = struct.pack("<12I", 0, 1, 255, 1, 128, 1, 255, 1, 128, 1, 255, 1)
        head = b"II*\0" + struct.pack("<IH", 8, len(entries)) + body + bytes(4)
        path.write_bytes(head + struct.pack("<4H", 8, 8, 8, 0) + white + data)

    return make


def _svs(path: Path) -> None:
    text = "Aperio Image Library v1\n|AppMag = 20|MPP = 0.5"
    pixels = picture(size=(256, 320))
    with tifffile.TiffWriter(path) as writer:
        for i, level in enumerate((pixels, pixels[::4, ::4])):
            given = {
                "compression": "jpeg",
                "photometric": "ycbcr",
                "subsampling": (2, 2),
                "compressionargs": {"level": 85},
            }
            writer.write(level, tile=(64, 64), metadata=None, subfiletype=int(i > 0), description=text, **given)


def _ome(path: Path) -> None:
    tifffile.imwrite(
        path, _planes()(), tile=TILE, compression="zlib", photometric="minisblack", metadata={"axes": "CYX"}, ome=True
    )


def _scn(path: Path) -> None:
    """Write a Leica slide with the tags that OpenSlide requires."""
    size = (128, 192)
    text = f"""<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01"><collection name="a"
 sizeX="{size[1] * 2000}" sizeY="{size[0] * 2000}"><barcode/>
<image name="a"><creationDate>2020-01-01T00:00:00Z</creationDate>
<device model="x" version="1"/>
<pixels sizeX="{size[1]}" sizeY="{size[0]}"><dimension sizeX="{size[1]}" sizeY="{size[0]}" r="0" ifd="0"/>
<dimension sizeX="{size[1] // 4}" sizeY="{size[0] // 4}" r="1" ifd="1"/></pixels>
<view sizeX="{size[1] * 1000}" sizeY="{size[0] * 1000}" offsetX="0" offsetY="0" spacingZ="0"/>
<scanSettings><objectiveSettings><objective>20</objective></objectiveSettings><illuminationSettings>
<illuminationSource>brightfield</illuminationSource><numericalAperture>0.5</numericalAperture></illuminationSettings></scanSettings>
</image></collection></scn>"""
    pixels = picture(size=size)
    with tifffile.TiffWriter(path) as writer:
        for i, level in enumerate((pixels, pixels[::4, ::4])):
            given: dict[str, Any] = {"compression": "jpeg", "photometric": "ycbcr", "subsampling": (2, 2)}
            writer.write(level, tile=(64, 64), metadata=None, description=text if i == 0 else None, **given)


def _raster(driver: str, dtype: Any = np.uint8, bands: int = 3, **options: Any) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        import rasterio

        planes = _planes(dtype, bands)() if bands > 1 else picture(1, dtype)[None]
        profile = {"driver": driver, "height": SIZE[0], "width": SIZE[1], "count": bands, "dtype": dtype}
        with rasterio.open(path, "w", **profile, **options) as data:
            data.write(planes)

    return make


def _vrt(path: Path) -> None:
    write_tiff(compression="zlib")(path.with_suffix(".tif"))
    bands = "".join(
        f'<VRTRasterBand dataType="Byte" band="{i}"><SimpleSource>'
        f'<SourceFilename relativeToVRT="1">{path.with_suffix(".tif").name}'
        f"</SourceFilename><SourceBand>{i}</SourceBand></SimpleSource></VRTRasterBand>"
        for i in (1, 2, 3)
    )
    path.write_text(f'<VRTDataset rasterXSize="{SIZE[1]}" rasterYSize="{SIZE[0]}">{bands}</VRTDataset>')


def _svg(path: Path) -> None:
    shapes = "".join(
        f'<circle cx="{9 * i}" cy="{7 * i}" r="{5 + i}" fill="rgb({20 * i},{255 - 20 * i},90)"/>' for i in range(11)
    )
    back = '<rect width="104" height="88" fill="#abc"/>'
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{SIZE[1]}" height="{SIZE[0]}">{back}{shapes}</svg>'
    )


def _vips(suffix: str, **options: Any) -> Callable[[Path], None]:
    """Write with libvips in a child process, because libvips may hang after a fork."""

    def make(path: Path) -> None:
        import subprocess
        import sys

        raw = io.BytesIO()
        np.save(raw, picture())
        code = (
            "import sys, io, numpy as np, pyvips; a = np.load(io.BytesIO(sys.stdin.buffer.read()));"
            f"pyvips.Image.new_from_array(a).copy(interpretation='srgb').write_to_file(sys.argv[1] + '', **{options!r})"
        )
        subprocess.run([sys.executable, "-c", code, str(path)], input=raw.getvalue(), check=True)

    return make


def _all() -> Iterator[Variant]:
    for name, make in _jpegs():
        yield Variant("JPEG", name, ".jpg", make)
    for name, make in _pngs():
        yield Variant("PNG", name, ".png", make)
    yield Variant("PNG", "animated", ".apng", lambda path: _frames(path, "PNG"))
    for name, options in {"lossy": {"quality": 80}, "lossless": {"lossless": True}}.items():
        yield Variant("WebP", name, ".webp", _pillow(form="WEBP", **options))
        yield Variant("WebP", f"{name}, alpha", ".webp", _pillow("RGBA", "WEBP", **options))
    yield Variant("WebP", "orientation 6", ".webp", _pillow(form="WEBP", lossless=True, exif=_exif(6)))
    yield Variant("GIF", "one picture", ".gif", _pillow("P", "GIF", interlace=0))
    yield Variant("GIF", "interlaced", ".gif", _pillow("P", "GIF", interlace=1))
    yield Variant("GIF", "transparent", ".gif", _pillow("P", "GIF", transparency=3))
    yield Variant("GIF", "animated", ".gif", lambda path: _frames(path, "GIF"))
    for mode, shown in {"RGB": "24 bits", "RGBA": "32 bits", "P": "palette", "L": "grey", "1": "1 bit"}.items():
        yield Variant("BMP", shown, ".bmp", _pillow(mode, "BMP"))
    yield Variant("BMP", "run lengths", ".bmp", _rle_bmp)
    for kind in (1, 2, 3):
        yield Variant("PPM", f"P{kind}", ".ppm", _pnm(kind))
    for mode, kind in {"1": "P4", "L": "P5", "RGB": "P6"}.items():
        yield Variant("PPM", kind, ".ppm", _pillow(mode, "PPM"))
    yield Variant("PPM", "P5, 16 bits", ".pgm", _pillow("I;16", "PPM"))
    for name, options in {
        "lossless": {"lossless": True},
        "lossy": {"level": 80},
        "container": {"lossless": True, "usecontainer": True},
    }.items():
        yield Variant("JPEG XL", name, ".jxl", _bytes(imagecodecs.jpegxl_encode, **options))
    yield Variant(
        "JPEG XL", "alpha", ".jxl", _bytes(imagecodecs.jpegxl_encode, lambda: _cover(picture()), lossless=True)
    )
    yield Variant(
        "JPEG XL", "16 bits", ".jxl", _bytes(imagecodecs.jpegxl_encode, lambda: picture(dtype=np.uint16), lossless=True)
    )
    for name, make in _tiffs():
        yield Variant("TIFF", name, ".tif", make)
    for name, dtype in {"float32": np.float32, "float16": np.float16}.items():
        yield Variant(
            "TIFF", name, ".tif", write_tiff(lambda dtype=dtype: picture(dtype=dtype), compression="zlib"), (0, 1)
        )
    yield Variant(
        "TIFF",
        "float32, predictor",
        ".tif",
        write_tiff(lambda: picture(dtype=np.float32), compression="zlib", predictor=3),
        (0, 1),
    )
    yield Variant("TIFF", "int16", ".tif", write_tiff(lambda: picture(1, np.int16), compression="lzw"), (0, 32767))
    yield Variant("TIFF", "SVS", ".svs", _svs)
    yield Variant("TIFF", "OME-TIFF, channels as pages", ".ome.tif", _ome)
    yield Variant("slides", "Leica SCN", ".scn", _scn, module="openslide")
    yield Variant("rasters", "JPEG 2000, lossless", ".jp2", _pillow(form="JPEG2000"), module="rasterio")
    yield Variant(
        "rasters",
        "JPEG 2000, lossy",
        ".jp2",
        _pillow(form="JPEG2000", quality_layers=[20], irreversible=True),
        module="rasterio",
    )
    yield Variant("rasters", "JPEG 2000 codestream", ".j2k", _pillow(form="JPEG2000", no_jp2=True), module="rasterio")
    yield Variant(
        "rasters",
        "JPEG 2000, 16 bits",
        ".jp2",
        _raster("JP2OpenJPEG", np.uint16, REVERSIBLE="YES", QUALITY="100"),
        module="rasterio",
    )
    yield Variant("rasters", "VRT", ".vrt", _vrt, module="rasterio")
    yield Variant("rasters", "ERDAS", ".img", _raster("HFA"), module="rasterio")
    yield Variant("rasters", "ERDAS, compressed", ".img", _raster("HFA", COMPRESSED="YES"), module="rasterio")
    yield Variant("rasters", "NITF", ".ntf", _raster("NITF"), module="rasterio")
    yield Variant("rasters", "BIL", ".bil", _raster("EHdr"), module="rasterio")
    yield Variant("rasters", "ASCII grid", ".asc", _ascii, (0, 255), module="rasterio")
    yield Variant("pictures", "AVIF", ".avif", _pillow(form="AVIF", quality=80), module="pyvips")
    yield Variant("pictures", "AVIF, alpha", ".avif", _pillow("RGBA", "AVIF", quality=80), module="pyvips")
    yield Variant("pictures", "SVG", ".svg", _svg, module="pyvips")


def _ascii(path: Path) -> None:
    rows = "\n".join(" ".join(map(str, row)) for row in picture(1))
    path.write_text(
        f"ncols {SIZE[1]}\nnrows {SIZE[0]}\nxllcorner 0\nyllcorner 0\ncellsize 1\nNODATA_value -9999\n{rows}\n"
    )


def _frames(path: Path, form: str) -> None:
    frames = [Image.fromarray(np.roll(picture(), 7 * i, 1)) for i in range(3)]
    frames = [frame.quantize(64) for frame in frames] if form == "GIF" else frames
    frames[0].save(path, form, save_all=True, append_images=frames[1:], duration=50)


VARIANTS = tuple(_all())

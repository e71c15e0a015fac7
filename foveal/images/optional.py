"""Readers that need optional packages: OpenSlide for slides, rasterio for rasters, libvips for other images.

OME-Zarr and DICOM have modules of their own. If the package is not installed, an error names the extra to install.
libvips runs in a child process that converts the file to a cached pyramid, because libvips may hang after a fork and
its caches grow.

Example:
    >>> wants_openslide("slide.mrxs", b"")
    True
"""

from __future__ import annotations

import importlib
import mmap
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from foveal.errors import ImageError
from foveal.formats import EXTRAS
from foveal.images import dicom, jpeg2000, ome_zarr, scale, unread
from foveal.images.cache import cached
from foveal.images.pyramid import Pyramid, Stored, Window, without_gaps
from foveal.images.reading import check_claim, memory_limit, reading
from foveal.images.walk import is_zarr

_SLIDES, _RASTERS, _PICTURES = (
    {*EXTRAS[name].suffixes, *EXTRAS[name].by_name} for name in ("openslide", "geo", "vips")
)
_JPEG_2000 = {".jp2", ".j2k", ".j2c", ".jpc"}
_ADVICE = {
    ".mrxs": "put the folder of the same name, with Slidedat.ini, beside it",
    ".vms": "put the .jpg and .opt files that it names beside it",
    ".vmu": "put the .ngr files that it names beside it",
}
"""What to do if OpenSlide cannot open a slide of several files."""
_VIPS = """
import sys, pyvips
source, target, limit = sys.argv[1], sys.argv[2], int(sys.argv[3])
image = pyvips.Image.new_from_file(source, access="sequential", fail_on="warning")
bytes_each = {"uchar": 1, "char": 1, "ushort": 2, "short": 2, "double": 8, "complex": 8,
              "dpcomplex": 16}.get(image.format, 4)
cost = image.width * image.height * image.bands * bytes_each
if cost > limit:
    sys.exit(f"claims {image.width} x {image.height} pixels, which take {cost:,} bytes, "
             f"more than the limit of {limit:,}")
if image.hasalpha():
    image = image.premultiply().cast(image.format)
if image.interpretation == "cmyk":
    image = (image.icc_import() if image.get_typeof("icc-profile-data") else image).colourspace("srgb")
image.tiffsave(target, tile=True, tile_width=256, tile_height=256, pyramid=True, compression="deflate",
               predictor="horizontal",
               bigtiff=True, premultiply=False)
"""


def wants_openslide(path: str, head: bytes) -> bool:
    """Whether a file with the first bytes of a TIFF or JPEG is a slide that OpenSlide must read."""
    suffix = Path(path).suffix.lower()
    # A .mrxs is a JPEG thumbnail beside a folder of data; .ndpi, .scn and .bif are TIFFs with private layouts.
    return suffix in {".mrxs", ".vms", ".vmu"} or (suffix in {".ndpi", ".scn", ".bif"} and head[:2] in (b"II", b"MM"))


def wants_dicom(path: str, head: bytes) -> bool:
    """Whether a file is DICOM. One that is a TIFF as well is read as what its suffix says."""
    is_tiff = head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
    return Path(path).suffix.lower() == ".dcm" or (head[128:132] == b"DICM" and not is_tiff)


def is_image_folder(path: str) -> bool:
    """Whether a path is a folder that is one image: OME-Zarr, or the files of DICOM slides."""
    return Path(path).is_dir() and (is_zarr(path) or any(map(_is_dicom, dicom.files_in(path))))


def open_folder(path: str, **options: Any) -> Pyramid:
    """Open a folder for which `is_image_folder` is true."""
    return ome_zarr.OmeZarrPyramid(path, **options) if is_zarr(path) else dicom.DicomPyramid(path, **options)


def _is_dicom(path: str) -> bool:
    with suppress(OSError), Path(path).open("rb") as file:
        return file.read(132)[128:] == b"DICM"
    return False


def need(module: str, path: str, extra: str | None = None) -> ModuleType:
    """Import an optional module.

    Args:
        module: name of the module.
        path: path of the image, for the message.
        extra: the extra that installs it, if it is not that of a format.

    Raises:
        ImageError: the module is not installed; the message names the extra.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        extra = extra or next(name for name, extra in EXTRAS.items() if extra.module == module)
        needs = f"needs {module.partition('.')[0]}, which is not installed"
        raise ImageError(f"{path}: {needs}; run: pip install 'foveal[{extra}]'") from error


def open_slide(path: str, **options: Any) -> Pyramid:
    """Open a slide with OpenSlide."""
    return OpenSlidePyramid(path, **options)


def open_other(path: str, head: bytes, cache_dir: Any, convert: bool, options: dict[str, Any]) -> Pyramid:
    """Open a file with the optional reader of its suffix or first bytes.

    Raises:
        ImageError: the format is not supported, or its reader is not installed.
    """
    unread.refuse(path, head)
    suffix = Path(path).suffix.lower()
    if suffix in _SLIDES or head.startswith(b"ZISRAWFILE"):
        return OpenSlidePyramid(path, **options)
    if suffix in _RASTERS or head[:12] == jpeg2000.SIGNATURE or head.lstrip().startswith(b"<VRTDataset"):
        need("rasterio", path)
        _check_jpeg2000(path)
        return RasterPyramid(path, **options)
    if suffix in _PICTURES or head[4:12] in (b"ftypavif", b"ftypheic", b"ftypmif1"):
        need("pyvips", path)
        return _by_vips(path, cache_dir, convert, options)
    raise ImageError(
        f"{path}: is not an image of a known kind; give a TIFF, JPEG, PNG, WebP, or a slide or raster with its usual "
        "suffix"
    )


def _check_jpeg2000(path: str) -> None:
    """Raise ImageError for damage of a JPEG 2000 file that GDAL ignores."""
    with (
        reading(path, "cannot be decoded"),
        Path(path).open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        if Path(path).suffix.lower() in _JPEG_2000 or data[:2] == b"\xff\x4f" or data[4:8] == b"jP  ":
            if data[:2] != b"\xff\x4f" and data[:12] != jpeg2000.SIGNATURE:
                raise ValueError("it does not begin as a JPEG 2000 does")
            jpeg2000.check_jpeg2000(data, max(data.find(jpeg2000.START), 0))


def _by_vips(path: str, cache_dir: Any, convert: bool, options: dict[str, Any]) -> Pyramid:
    from foveal.images import tiff

    def make(target: str) -> None:
        child = subprocess.run(
            [sys.executable, "-c", _VIPS, path, target, str(options["max_bytes"])],
            capture_output=True,
            text=True,
            check=False,
        )
        if child.returncode:
            reason = (child.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise ImageError(f"{path}: cannot be converted ({reason}); convert it to a tiled TIFF yourself")

    file = cached(path, cache_dir, make, "this format", convert)
    layout = tiff.parse_tiff(file, path)
    layout.premultiplied = layout.alpha is not None
    return tiff.TiffPyramid(path, layout, file=file, **options)


class OpenSlidePyramid(Pyramid):
    """A slide read by OpenSlide, 8-bit RGB. Transparent pixels count as outside the image.

    Args:
        path: path of the file.
        options: ``channels``, ``value_range``; see `Pyramid`.
    """

    def __init__(self, path: str, **options: Any) -> None:
        from foveal.images import leica

        openslide = need("openslide", path)
        suffix = Path(path).suffix.lower()
        with reading(path, "OpenSlide cannot open it", _ADVICE.get(suffix, "check the file, and copy it again")):
            slide = openslide.OpenSlide(path)
        metadata: dict[str, Any] = {"description": slide.properties.get("openslide.comment", "")}
        if (mpp := scale.of_slide(slide.properties)) is not None:
            metadata["mpp"] = mpp
        if (bounds := _bounds(slide.properties)) is not None:
            metadata["bounds"] = bounds
        super().__init__(
            path, [(h, w) for w, h in slide.level_dimensions], 3, np.dtype(np.uint8), metadata=metadata, **options
        )
        self._slide: Any = slide
        is_leica = slide.properties.get("openslide.vendor") == "leica"
        if suffix == ".scn" and not is_leica:
            what = "has no description of a Leica slide, or a damaged one"
            raise ImageError(f"{path}: {what}; copy it again, or give it the suffix of its format")
        self._tiles = leica.read_scn_tiles(path, slide.level_count) if is_leica else None

    def close(self) -> None:
        with self._lock:
            if self._slide is not None:
                self._slide.close()
                self._slide = None

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_slide": None}

    def _read_stored(self, requests: list[tuple[int, Window]]) -> list[Stored]:
        return [self._region(level, box) for level, box in requests]

    def _region(self, level: int, box: Window) -> Stored:
        y0, x0, y1, x1 = box
        openslide = need("openslide", self.path)
        if self._tiles is not None:
            with Path(self.path).open("rb") as file:
                self._tiles.check(file.fileno(), level, box)
        with self._lock:
            slide, self._slide = self._slide, None  # a handle cannot be used after an error
            with reading(
                self.path, f"OpenSlide cannot read level {level} at {box}", "the slide is damaged, copy it again"
            ):
                slide = slide or openslide.OpenSlide(self.path)
                # OpenSlide expects the corner in pixels of level 0.
                down = slide.level_downsamples[level]
                region = slide.read_region((round(x0 * down), round(y0 * down)), level, (x1 - x0, y1 - y0))
            self._slide = slide
            self.bytes_read += 4 * (y1 - y0) * (x1 - x0)
            self.tiles_decoded += 1
        pixels = np.asarray(region)
        alpha = pixels[..., 3]
        return pixels[..., :3], None if alpha.min() == 255 else alpha.astype(np.float32) / 255


def _bounds(properties: Mapping[str, str]) -> tuple[int, int, int, int] | None:
    """(y0, x0, y1, x1) of the part of a slide that was scanned; None if OpenSlide does not tell."""
    try:
        y, x, height, width = (int(properties[f"openslide.bounds-{key}"]) for key in ("y", "x", "height", "width"))
    except (KeyError, ValueError):
        return None
    return y, x, y + height, x + width


class RasterPyramid(Pyramid):
    """A raster read by rasterio (GDAL), such as VRT and JPEG 2000.

    Args:
        path: path of the file.
        options: ``channels``, ``value_range``; see `Pyramid`.
    """

    def __init__(self, path: str, **options: Any) -> None:
        rasterio = need("rasterio", path)
        data = self._open(path, 0)
        if not data.count:
            raise ImageError(f"{path}: GDAL finds no image in it; features of tiles are classified by foveal evaluate")
        kinds = [str(c.name) for c in data.colorinterp]
        self._colour_bands = [i + 1 for i, kind in enumerate(kinds) if kind != "alpha"]
        with rasterio.Env():  # otherwise GDAL prints its errors
            down = [1, *data.overviews(1)]
        sizes = [(-(-data.height // d), -(-data.width // d)) for d in down]
        metadata: dict[str, Any] = {
            "geo": {"crs": str(data.crs) if data.crs else None, "transform": tuple(data.transform)}
        }
        if (mpp := scale.of_raster(data.crs, data.transform)) is not None:
            metadata["mpp"] = mpp
        dtype = np.dtype(data.dtypes[0])
        block = data.block_shapes[0]  # GDAL decodes whole blocks
        check_claim(path, block, block[0] * block[1] * dtype.itemsize, options.get("max_bytes") or memory_limit())
        self._data: dict[int, Any] = {0: data}
        super().__init__(path, sizes, len(self._colour_bands), dtype, metadata=metadata, **options)

    @staticmethod
    def _open(path: str, level: int) -> Any:
        import rasterio

        os.environ.setdefault("GDAL_CACHEMAX", "32")  # megabytes; the default is 5 % of the memory
        with reading(path, "GDAL cannot open it", "check the file, and copy it again"):
            return rasterio.open(path, sharing=False, **({"overview_level": level - 1} if level else {}))

    def close(self) -> None:
        with self._lock:
            for data in self._data.values():
                data.close()
            self._data = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_data": {}}

    def _read_stored(self, requests: list[tuple[int, Window]]) -> list[Stored]:
        return [self._region(level, box) for level, box in requests]

    def _region(self, level: int, box: Window) -> Stored:
        y0, x0, y1, x1 = box
        with self._lock:  # datasets are not thread-safe
            if level not in self._data:
                self._data[level] = self._open(self.path, level)
            data, window = self._data[level], ((y0, y1), (x0, x1))
            with reading(self.path, f"GDAL cannot read level {level} at {box}", "the file is damaged, copy it again"):
                try:
                    pixels = data.read(self._colour_bands, window=window).transpose(1, 2, 0)
                    alpha = data.dataset_mask(window=window)
                except Exception as error:
                    raise (error.__cause__ or error) from None  # the cause is GDAL's message
            self.bytes_read += pixels.nbytes
            self.tiles_decoded += 1
        return without_gaps(pixels, None if alpha.min() == 255 else alpha.astype(np.float32) / 255)

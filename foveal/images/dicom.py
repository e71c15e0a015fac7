"""Reader of DICOM whole-slide images, by wsidicom: a folder of the instances of one slide, or one file of it.

The levels of a slide are instances of one series, in one folder. Headers of all files there are read up to the size of
the image; of the rest only the files with levels of this series are opened. Labels, overviews and macro images, which
may show the name of a patient, are never read, nor is the patient's data.

Frames of JPEG are decoded with the checks of `foveal.images.jpeg`, others by wsidicom. A frame that a sparse instance
lacks counts as outside the image. The focal plane is wsidicom's default one; the optical paths of a grey slide are its
bands, and of a slide in colour the first one is read.

Example:
    >>> import tempfile
    >>> DicomPyramid(tempfile.mkdtemp())
    Traceback (most recent call last):
    ...
    foveal.errors.ImageError: ...: the folder has no DICOM files; give a folder of them, or one file
"""

from __future__ import annotations

import logging
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from foveal.errors import ImageError
from foveal.images import jpeg, jpeg2000
from foveal.images.grid import GridPyramid
from foveal.images.pyramid import Stored
from foveal.images.reading import check_claim, memory_limit, reading

# They log faults of damaged files, which Python prints if there is no handler. Damage raises errors here instead.
for _name in ("wsidicom", "pydicom"):
    logging.getLogger(_name).addHandler(logging.NullHandler())

_WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
_BASELINE_JPEG = "1.2.840.10008.1.2.4.50"
_JPEG_2000 = {f"1.2.840.10008.1.2.4.{number}" for number in (90, 91)}
_INDEX = 8  # bytes of wsidicom's index for each frame
_HIDDEN = {"LABEL", "OVERVIEW", "LOCALIZER"}
_TAGS = [
    0x00080008,  # ImageType
    0x00080016,  # SOPClassUID
    0x0020000E,  # SeriesInstanceUID
    0x00209161,  # ConcatenationUID
    0x00209163,  # InConcatenationTotalNumber
    0x00280010,  # Rows
    0x00280011,  # Columns
    0x00480006,  # TotalPixelMatrixColumns
    0x00480007,  # TotalPixelMatrixRows
]


class Header(NamedTuple):
    """The part of a DICOM header that tells which slide and level an instance belongs to.

    Attributes:
        whole_slide: whether it is an instance of a whole slide.
        kind: what it shows: ``VOLUME`` (a level), ``LABEL``, ``OVERVIEW``, ``THUMBNAIL``.
        resampled: whether it was made from a finer level.
        series: UID of its series.
        size: (height, width) in pixels.
        tile: (height, width) of its frames.
        concatenation: UID of the level if this is split into several files, or "".
        parts: number of these files; 0 if it is not stated.
    """

    whole_slide: bool
    kind: str
    resampled: bool
    series: str
    size: tuple[int, int]
    tile: tuple[int, int]
    concatenation: str
    parts: int


def read_header(path: str) -> Header | None:
    """Header of a DICOM file; None if it is not one, or its header is damaged. It needs pydicom."""
    try:
        stat = os.stat(path)  # noqa: PTH116 (many files)
    except OSError:
        return None
    return _read_header(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=4096)
def _read_header(path: str, size: int, changed: int) -> Header | None:
    from pydicom.filereader import read_partial

    try:
        with Path(path).open("rb") as file:
            found = read_partial(file, lambda tag, vr, length: tag > _TAGS[-1], specific_tags=list(_TAGS))
        kinds = [str(value) for value in found.get("ImageType", ())]
        return Header(
            found.SOPClassUID == _WHOLE_SLIDE,
            kinds[2] if len(kinds) > 2 else "",
            "RESAMPLED" in kinds[3:],
            str(found.get("SeriesInstanceUID", "")),
            (int(found.get("TotalPixelMatrixRows", 0)), int(found.get("TotalPixelMatrixColumns", 0))),
            (int(found.get("Rows", 0)), int(found.get("Columns", 0))),
            str(found.get("ConcatenationUID", "")),
            int(found.get("InConcatenationTotalNumber", 0) or 0),
        )
    except Exception:  # pydicom raises many types of exceptions for other files, and for damaged ones
        return None


def files_in(folder: str) -> list[str]:
    """Sorted paths of the files in a folder that may be DICOM: with the suffix ``.dcm``, or without a suffix."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if not entry.name.startswith(".") and entry.is_file()]
    return [str(Path(folder, name)) for name in sorted(names) if Path(name).suffix.lower() in (".dcm", "")]


def one_of_each(paths: Iterable[str]) -> dict[str, list[str]]:
    """The other files of each slide, by the file that stands for it: its finest level, the first by name.

    Labels and overviews stand for no slide, unless there is nothing else of their series. Other files stand for
    themselves. Without pydicom each file does.

    Args:
        paths: paths of DICOM files.
    """
    series: dict[tuple[str, str], list[tuple[str, Header]]] = defaultdict(list)
    found: dict[str, list[str]] = {}
    for path in sorted(paths):
        try:
            header = read_header(path)
        except ImportError:
            header = None
        if header is None or not header.whole_slide:
            found[path] = []
        else:
            series[os.path.dirname(path), header.series].append((path, header))  # noqa: PTH120 (many files)
    for files in series.values():
        levels = [(path, header) for path, header in files if header.kind not in _HIDDEN]
        first, _ = max(levels or files, key=lambda file: (file[1].kind == "VOLUME", file[1].size))
        found[first] = [path for path, _ in files if path != first]
    return found


def _find(path: str) -> dict[str, Header]:
    """The files of the levels of a slide.

    Args:
        path: path of a folder, or of a file of it.
    """
    one = None if Path(path).is_dir() else str(Path(path))  # as `files_in` writes it
    folder = path if one is None else str(Path(path).parent)
    with reading(path, "the folder cannot be searched", "change its permissions"):
        headers = {file: header for file in files_in(folder) if (header := read_header(file)) is not None}
    if one is not None:
        own = read_header(one)
        if own is None:
            raise ImageError(f"{path}: is not DICOM, or its header is damaged; copy it again")
        if not own.whole_slide:
            raise ImageError(f"{path}: is DICOM, but not a whole-slide image; convert it to TIFF or PNG")
        if own.kind in _HIDDEN:
            what = f"is the {own.kind.lower()} of a slide, which is not read, since it may show a name"
            raise ImageError(f"{path}: {what}; give another file of the slide")
        headers = {one: own, **headers}
    slides = {header.series: file for file, header in reversed(headers.items()) if header.whole_slide}
    if not slides:
        what = "DICOM files, but no whole-slide image" if headers else "no DICOM files"
        raise ImageError(f"{path}: the folder has {what}; give a folder of them, or one file")
    if one is None and len(slides) > 1:
        names = ", ".join(sorted(Path(file).name for file in slides.values())[:3])
        raise ImageError(f"{path}: the folder has {len(slides)} slides; name a file of one, such as {names}")
    series = next(iter(slides)) if one is None else headers[one].series
    levels = {
        file: header
        for file, header in headers.items()
        if header.whole_slide and header.series == series and header.kind == "VOLUME"
    }
    if not levels:
        raise ImageError(f"{path}: the folder has no level of this slide; copy all its files")
    return levels


def _check_complete(path: str, levels: dict[str, Header]) -> None:
    """Raise ImageError if a part of a level is missing, or a size cannot be; log it if the finest level is missing."""
    parts: dict[str, list[int]] = defaultdict(list)
    for header in levels.values():
        frames = math.prod(-(-n // max(1, side)) for n, side in zip(header.size, header.tile, strict=True))
        check_claim(path, header.size, frames * _INDEX, memory_limit())
        if header.concatenation:
            parts[header.concatenation].append(header.parts)
    for stated in parts.values():
        if len(stated) < max(stated):
            what = f"{len(stated)} of the {max(stated)} files of a level are there"
            raise ImageError(f"{path}: {what}; copy all files of the slide")
    if all(header.resampled for header in levels.values()):
        import warnings

        warnings.warn("its finest level is missing, so that level 0 is a reduced one", stacklevel=2)


class DicomPyramid(GridPyramid):
    """A DICOM whole-slide image.

    Args:
        path: path of the folder, or of one file of the slide.
        options: ``channels``, ``value_range``, ``max_bytes``; see `Pyramid`.

    Raises:
        ImageError: there is no slide, or it is damaged or incomplete; or wsidicom is not installed.
    """

    def __init__(self, path: str, **options: Any) -> None:
        from foveal.images.optional import need

        need("wsidicom", path)
        found = _find(path)
        _check_complete(path, found)
        self._files = tuple(found)
        slide = _open(path, self._files)
        with reading(path, "its levels cannot be read"):
            levels = list(slide.pyramids[0])
            base = levels[0].default_instance
            grey = base.image_data.photometric_interpretation == "MONOCHROME2"
            of_all = dict.fromkeys(name for one in levels[0].instances.values() for name in one.optical_paths)
            self._place = base.default_z, list(of_all) if grey else [base.default_path]
            data = base.image_data
            for number, level in enumerate(levels):
                _check_level(path, level, number, self._place, data)
            tiles = [(level.tile_size.height, level.tile_size.width) for level in levels]
            sizes = [(level.size.height, level.size.width) for level in levels]
            finest = levels[0].pixel_spacing
            scales = [
                (finest.height / level.pixel_spacing.height, finest.width / level.pixel_spacing.width)
                for level in levels
            ]
            mpp = (levels[0].mpp.height * levels[0].mpp.width) ** 0.5
        cost = data.dtype.itemsize * data.samples_per_pixel
        for tile in tiles:
            check_claim(path, tile, tile[0] * tile[1] * cost, options.get("max_bytes") or memory_limit())
        super().__init__(
            path,
            sizes,
            len(self._place[1]) if grey else data.samples_per_pixel,
            data.dtype,
            tiles=tiles,
            scales=scales,
            bits=data.bits if data.bits % 8 else None,
            metadata={"mpp": mpp, "file_bytes": sum(Path(file).stat().st_size for file in found)},
            **options,
        )
        self._slide: tuple[int, Any] | None = (os.getpid(), slide)

    def close(self) -> None:
        with self._lock:
            if self._slide is not None:
                self._slide[1].close()
                self._slide = None

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_slide": None}

    def _levels(self) -> Any:
        """The levels, of files that this process opened: a forked one would share their positions."""
        with self._lock:
            if self._slide is None or self._slide[0] != os.getpid():
                self._slide = os.getpid(), _open(self.path, self._files)
            return self._slide[1].pyramids[0]

    def _read_tile(self, level: int, row: int, column: int) -> Stored:
        from wsidicom.geometry import Point

        levels, (z, paths), point = self._levels(), self._place, Point(column, row)
        bands, empty = [], False
        with reading(
            self.path, f"the frame at ({row}, {column}) of level {level} cannot be read", "copy the slide again"
        ):
            for path in paths:
                data = levels[level].get_instance(z, path).image_data
                if data.is_sparse(point, z, path):
                    tile, empty = data.blank_tile, True
                else:
                    frame = data.get_encoded_tile(point, z, path)
                    self._count(len(frame), 0)
                    tile = _decode(data, frame)
                bands.append(tile if tile.ndim == 3 else tile[..., None])
        pixels = np.concatenate(bands, 2) if len(bands) > 1 else bands[0]
        return pixels, np.zeros(pixels.shape[:2], np.float32) if empty else None


def _open(path: str, files: Sequence[str]) -> Any:
    """Open the levels of a slide by wsidicom, without its caches."""
    import wsidicom
    from wsidicom.config import Settings

    settings = Settings(strict_tile_size_check=False, decoded_frame_cache_size=0, encoded_frame_cache_size=0)
    with reading(path, "wsidicom cannot open it", "check that all its files are there, and copy them again"):
        slide = wsidicom.WsiDicom.open(list(files), settings=settings)
        opened = {
            os.path.realpath(file)
            for pyramid in slide.pyramids
            for level in pyramid
            for instance in level.instances.values()
            for file in instance.image_data.files
        }
        for file in files:
            if os.path.realpath(file) not in opened:
                name = Path(file).name
                raise ImageError(f"{path}: {name}, a file of this slide, is damaged or not supported; copy it again")
    return slide


def _check_level(path: str, level: Any, number: int, place: tuple[float, list[str]], first: Any) -> None:
    """Raise ImageError if a level lacks frames, or its pixels are not of the kind of those of the first."""
    from wsidicom.instance import TileType

    z, paths = place
    for name in paths:
        data = level.get_instance(z, name).image_data
        kinds = [(one.samples_per_pixel, one.bits, one.photometric_interpretation) for one in (data, first)]
        if kinds[0][:2] != kinds[1][:2] or (kinds[0][2] == "MONOCHROME2") != (kinds[1][2] == "MONOCHROME2"):
            raise ImageError(f"{path}: level {number} has other pixels than level 0; copy the slide again")
    for instance in level.instances.values():
        data, datasets = instance.image_data, instance.datasets
        needed = data.tiled_size.area * len(data.focal_planes) * len(data.optical_paths)
        frames = sum(dataset.frame_count for dataset in datasets)
        if datasets[0].tile_type == TileType.FULL and frames < needed:
            what = f"level {number} has {frames} frames where its size needs {needed}"
            raise ImageError(f"{path}: {what}; a file is missing or damaged, copy the slide again")


def _decode(data: Any, frame: bytes) -> np.ndarray:
    """Decode a frame.

    Raises:
        Exception: any exception of the decoder; ValueError if the frame is damaged or has another size or type.
    """
    tile, samples, syntax = data.tile_size, data.samples_per_pixel, str(data.transfer_syntax)
    if not frame:
        raise ValueError("it lies past the end of the file")
    if syntax == _BASELINE_JPEG:
        return jpeg.decode_segment(
            frame, None, [(tile.height, tile.width)], samples, transformed=data.photometric_interpretation != "RGB"
        )
    if syntax in _JPEG_2000:
        jpeg2000.check_jpeg2000(frame, max(frame.find(jpeg2000.START), 0))
    pixels = np.asarray(data.decoder.decode(frame))
    shape = (tile.height, tile.width, *((samples,) if samples > 1 else ()))
    if pixels.shape != shape or pixels.dtype != data.dtype:
        what = f"it has {pixels.dtype} of shape {pixels.shape} where the header has {data.dtype} of shape {shape}"
        raise ValueError(what)
    return pixels

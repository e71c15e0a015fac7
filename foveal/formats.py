"""Suffixes of image files. Training, prediction, the documentation and ``--help`` use these lists.

A file that is named explicitly is opened by its content, whatever its suffix. In folders, files are selected by suffix.

Example:
    >>> "scan.TIFF".lower().endswith(SUFFIXES), "notes.txt".endswith(SUFFIXES)
    (True, False)
    >>> EXTRAS["openslide"].suffixes[:2]
    ('.ndpi', '.mrxs')
"""

from __future__ import annotations

from typing import NamedTuple

BASE = (
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".jif",
    ".pjpeg",
    ".pjp",
    ".png",
    ".apng",
    ".webp",
    ".bmp",
    ".dib",
    ".gif",
    ".ppm",
    ".pgm",
    ".pbm",
    ".pnm",
    ".jxl",
    ".tif",
    ".tiff",
    ".btf",
    ".tf8",
    ".ptif",
    ".ptiff",
    ".svs",
    ".qptiff",
)
"""Formats that are read without optional packages. ``.ome.tif`` and ``.ome.tiff`` end in one of these."""


class Extra(NamedTuple):
    """Formats that an optional package reads; it is installed by ``pip install 'foveal[NAME]'``.

    Attributes:
        module: name of the Python module to import.
        suffixes: suffixes of files that are read from folders.
        by_name: suffixes that are read only if the file is named explicitly, because other programs use them too.
        folders: suffixes of folders that are one image.
    """

    module: str
    suffixes: tuple[str, ...]
    by_name: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()


EXTRAS = {
    "openslide": Extra("openslide", (".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".czi")),
    "dicom": Extra("wsidicom", (".dcm",)),
    "zarr": Extra("zarr", (), folders=(".zarr",)),
    "geo": Extra(
        "rasterio",
        (".vrt", ".jp2", ".j2k", ".jpx", ".jpf", ".j2c", ".jpc", ".ecw", ".sid", ".nitf", ".ntf"),
        by_name=(".img", ".nc", ".hdf", ".h5", ".grib", ".asc", ".bil"),
    ),
    "vips": Extra("pyvips", (".avif", ".heic", ".heif", ".hif", ".exr", ".fits"), by_name=(".svg", ".hdr", ".pdf")),
}

SUFFIXES = BASE + tuple(suffix for extra in EXTRAS.values() for suffix in extra.suffixes)
"""All suffixes of files that are read from folders."""

BY_NAME = tuple(suffix for extra in EXTRAS.values() for suffix in extra.by_name)
"""All suffixes of files that are read only if the file is named explicitly."""

FOLDERS = tuple(suffix for extra in EXTRAS.values() for suffix in extra.folders)
"""Suffixes of folders that are one image. ``.ome.zarr`` ends in one of these."""

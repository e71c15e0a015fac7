"""Suffixes of image files: the one list that training, prediction, the documentation and ``--help`` share.

A file that is named itself is opened by its content, whatever its suffix. In folders the suffix decides.

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
"""Read without any extra. ``.ome.tif``, ``.ome.tiff`` and the like end in one of these."""


class Extra(NamedTuple):
    """What an extra reads, ``pip install 'foveal[NAME]'``.

    Attributes:
        module: the module that it brings.
        suffixes: found in folders.
        by_name: read only where the file itself is named, because these suffixes have other uses too.
    """

    module: str
    suffixes: tuple[str, ...]
    by_name: tuple[str, ...] = ()


EXTRAS = {
    "openslide": Extra(
        "openslide", (".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".zvi", ".czi", ".dcm")
    ),
    "geo": Extra(
        "rasterio",
        (".vrt", ".jp2", ".j2k", ".jpx", ".jpf", ".j2c", ".jpc", ".ecw", ".sid", ".nitf", ".ntf"),
        by_name=(".img", ".nc", ".hdf", ".h5", ".grib", ".asc", ".bil"),
    ),
    "vips": Extra("pyvips", (".avif", ".heic", ".heif", ".hif", ".exr", ".fits"), by_name=(".svg", ".hdr", ".pdf")),
}

SUFFIXES = BASE + tuple(suffix for extra in EXTRAS.values() for suffix in extra.suffixes)
"""Suffixes by which images are found in folders."""

BY_NAME = tuple(suffix for extra in EXTRAS.values() for suffix in extra.by_name)
"""Suffixes of files that are read, but only where they are named themselves."""

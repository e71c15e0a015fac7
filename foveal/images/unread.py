"""Formats of slides and microscopes that are known but not read: one sentence with what to do for each.

Example:
    >>> refuse("slide.isyntax", b"")
    Traceback (most recent call last):
    ...
    foveal.errors.ImageError: slide.isyntax: is Philips iSyntax, which is not read; convert it to TIFF, ...
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from foveal.errors import ImageError

_BIO_FORMATS = "convert it to OME-TIFF, say by bfconvert of Bio-Formats"
_EXPORT = "export it as TIFF, SVS or DICOM with the software of the scanner"


class Unread(NamedTuple):
    """A format that is not read.

    Attributes:
        name: its name.
        advice: what to do.
        suffixes: its suffixes.
        starts: first bytes of its files, if these alone tell.
    """

    name: str
    advice: str
    suffixes: tuple[str, ...]
    starts: tuple[bytes, ...] = ()


UNREAD = (
    Unread("Philips iSyntax", "convert it to TIFF, say by isyntax-to-tiff of libisyntax", (".isyntax", ".i2syntax")),
    Unread("Olympus VSI", _BIO_FORMATS, (".vsi",)),
    Unread("part of an Olympus VSI", _BIO_FORMATS + ", giving the .vsi beside its folder", (".ets",), (b"SIS\0",)),
    Unread("Zeiss ZVI or Olympus OIB", _BIO_FORMATS, (".zvi", ".oib"), (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",)),
    Unread("Olympus OIF", _BIO_FORMATS, (".oif",)),
    Unread("Leica LIF", _BIO_FORMATS, (".lif", ".xlef", ".lof"), (b"\x70\0\0\0",)),
    Unread("Nikon ND2", _BIO_FORMATS, (".nd2",), (b"\xda\xce\xbe\x0a",)),
    Unread("an Aperio list of fluorescence channels", "give the .svs files that it names", (".afi",)),
    Unread("a Deep Zoom image", "give the image that it was made from", (".dzi",)),
    Unread("KFBio KFB", _EXPORT, (".kfb", ".kfbf"), (b"KFB\0",)),
    Unread("SQRAY SDPC", _EXPORT, (".sdpc", ".dyqx")),
    Unread("Unic TMAP", _EXPORT, (".tmap",)),
    Unread("Motic MDS", _EXPORT, (".mds", ".mdsx")),
    Unread("a Zarr in one file", "unpack it, and give the folder that ends in .zarr", (".zarr", ".zarr.zip", ".ozx")),
)
"""Formats that are not read."""


def refuse(path: str, head: bytes) -> None:
    """Raise ImageError for a format that is not read.

    Args:
        path: path of the file.
        head: its first bytes.
    """
    name = Path(path).name.lower()
    for one in (*(one for one in UNREAD if name.endswith(one.suffixes)), *UNREAD):
        if name.endswith(one.suffixes) or (one.starts and head.startswith(one.starts)):
            raise ImageError(f"{path}: is {one.name}, which is not read; {one.advice}")


def refuse_tiff(path: str) -> None:
    """`refuse` for the one format whose files begin as TIFFs do, but without the pixels of the slide."""
    if path.lower().endswith(".vsi"):
        refuse(path, b"")

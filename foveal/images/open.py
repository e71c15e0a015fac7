"""Open an image file of any supported format.

Example:
    >>> from foveal.images import open_image
    >>> open_image("no such file.tif")
    Traceback (most recent call last):
    ...
    foveal.errors.ImageError: no such file.tif: there is no such file; check the path
"""

from __future__ import annotations

import math
import os
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from foveal.errors import ImageError
from foveal.images import dicom, jxl, masks, ome_zarr, optional, plain, unread
from foveal.images.cache import cached, write_pyramid
from foveal.images.notices import noting
from foveal.images.pyramid import ArrayPyramid, Pyramid, Stored
from foveal.images.reading import check_claim, memory_limit, reading, short
from foveal.images.uris import SCHEMES, is_remote, is_remote_zarr, shown

if TYPE_CHECKING:
    from foveal.images.remote import RemoteObject

_PIECEWISE = 64  # factor of the memory limit for images that are converted in parts
_MOST_COMPRESSED = 2000  # largest compression ratio of a TIFF that is converted; codecs reach about 1000
_PATH_OF_URI = re.compile(r"(s3|gs|az|https?):/[^/]")  # a Path joins the two slashes
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def open_image(
    path: str | os.PathLike,
    *,
    channels: int | None = None,
    value_range: tuple[float, float] | None = None,
    max_bytes: int | None = None,
    cache_dir: str | os.PathLike | None = None,
    convert: bool = True,
    mask: str | os.PathLike | np.ndarray | None = None,
    headers: str | os.PathLike | None = None,
) -> Pyramid:
    """Open an image. The format is detected from the contents of the file; optional readers also use the suffix.
    A folder is an image if it is OME-Zarr, or holds the files of one DICOM slide.

    Opening reads the headers, not the pixels. Of tiled formats (pyramidal TIFF, COG, SVS, OME-TIFF) only the tiles that
    boxes need are read later. Formats without tiles are decoded whole once; see `foveal.images.plain`.

    Addresses (``s3://``, ``gs://``, ``az://``, ``https://``) are read by ranges of bytes, see `foveal.images.remote`:
    tiled TIFFs by their tiles, JPEG, PNG, WebP, BMP, GIF and PPM whole.

    Args:
        path: path of the file, or of the folder, or the address of a remote one.
        channels: number of bands of a look; that of the image if None. Grey is repeated if 3 bands are requested.
            Alpha does not count; CMYK and palettes become RGB.
        value_range: stored values that are scaled to 0 and 1. The default is the range of the type for unsigned
            integers; signed and floating-point pixels have no default.
        max_bytes: memory limit of a decoded image, and of the pixels of one look, in bytes. It protects against wrong
            sizes in headers. The default is ``$FOVEAL_MAX_BYTES``, or one gibibyte. Images that are converted in parts
            may take 64 times as much.
        cache_dir: cache folder of the pyramids of large images without tiles; `foveal.images.cache.default_folder` if
            None.
        convert: convert such images. If False, a TIFF is read without conversion, which is slow except for a few small
            boxes.
        mask: where a scan may look, see `foveal.images.masks`: an image file whose white pixels are to be searched, or
            an (h, w) array of bool. It is stretched over the image. Other models ignore it.
        headers: index of the headers of remote images, see `foveal.images.header_index`.

    Raises:
        ImageError: the file is missing, damaged, not an image, or has another number of channels; or the mask is, or
            has another shape than the image.
        Unconverted: the image must be converted, and ``convert`` is False; see `foveal.images.cache`.
    """
    name = shown(path)
    options = {"channels": channels, "value_range": value_range, "max_bytes": max_bytes or memory_limit()}
    head = b"" if is_remote(path) else _first_bytes(name)
    with reading(name, "cannot be opened"), noting(name):
        if is_remote(path):
            image = _open_remote(path, headers, cache_dir, convert, options)
        else:
            image = _open(name, head, cache_dir, convert, options)
    if mask is not None:
        image.mask = masks.read_mask(mask, image)
    return image


def open_content(
    content: bytes,
    name: str,
    *,
    channels: int | None = None,
    value_range: tuple[float, float] | None = None,
    max_bytes: int | None = None,
    convert: bool = True,
    mask: str | os.PathLike | np.ndarray | None = None,
) -> Pyramid:
    """Open the content of an image file: a JPEG, PNG, WebP, BMP, GIF or PPM of up to 64 megapixels.

    Args:
        content: the bytes of the file. They are released after the first look.
        name: name of the image in errors.
        channels, value_range, max_bytes, mask: see `open_image`.
        convert: for the interface of `open_image`; such images are never converted.

    Raises:
        ImageError: the content is damaged, of another format, too large, or has another number of channels.
    """
    if not content:
        raise ImageError(f"{name}: the file is empty; copy it again")
    kind = plain.kind_of(content[:64])
    if kind is None:
        raise ImageError(f"{name}: is no JPEG, PNG, WebP, BMP, GIF or PPM; give other images as files of their own")
    limit = max_bytes or memory_limit()
    with reading(name, "cannot be opened"), noting(name):
        header = plain.read_header(name, kind, limit, content)
        if header.large:
            raise ImageError(
                f"{name}: has {math.prod(header.size) / 1e6:,.0f} megapixels; give it as a file of its own"
            )
        image = plain.PlainPyramid(name, header, content, channels=channels, value_range=value_range, max_bytes=limit)
    if mask is not None:
        image.mask = masks.read_mask(mask, image)
    return image


def _first_bytes(name: str) -> bytes:
    """First bytes of a file; none of a folder that is an image."""
    try:
        # Opening a named pipe blocks until another process writes to it.
        if not stat.S_ISREG(Path(name).stat().st_mode) and not Path(name).is_dir():
            raise ImageError(f"{name}: is a pipe, a socket or a device, not a regular file; copy its data to a file")
        if optional.is_image_folder(name):
            return b""
        with Path(name).open("rb") as file:
            head = file.read(256)
    except FileNotFoundError as error:
        advice = "give an address as text, not as a Path" if _PATH_OF_URI.match(name) else "check the path"
        if "://" in name:
            advice = f"addresses begin with {', '.join(SCHEMES)}"
        raise ImageError(f"{name}: there is no such file; {advice}") from error
    except IsADirectoryError as error:
        what = "is a folder, and neither OME-Zarr nor a DICOM slide"
        raise ImageError(f"{name}: {what}; give the image files in it") from error
    except PermissionError as error:
        raise ImageError(f"{name}: cannot be read (permission denied); change its permissions") from error
    except (OSError, ValueError) as error:
        raise ImageError(f"{name}: cannot be opened ({short(error)}); check the path and the disk") from error
    if not head:
        raise ImageError(f"{name}: the file is empty; copy it again")
    return head


def _open(name: str, head: bytes, cache_dir: Any, convert: bool, options: dict[str, Any]) -> Pyramid:
    if not head:
        return optional.open_folder(name, **options)
    if optional.wants_openslide(name, head):
        return optional.open_slide(name, **options)
    if optional.wants_dicom(name, head):
        return dicom.DicomPyramid(name, **options)
    if head[:4] in _TIFF:
        return _open_tiff(name, cache_dir, convert, options)
    if kind := plain.kind_of(head):
        return _open_plain(name, kind, cache_dir, convert, options)
    if jxl.is_jxl(head):
        return _open_jxl(name, cache_dir, convert, options)
    return optional.open_other(name, head, cache_dir, convert, options)


def _open_remote(uri: str, headers: Any, cache_dir: Any, convert: bool, options: dict[str, Any]) -> Pyramid:
    from foveal.images import header_index
    from foveal.images.remote import LOCAL_ONLY, RemoteObject

    if is_remote_zarr(uri):
        return ome_zarr.OmeZarrPyramid(uri, name=shown(uri), **options)
    remote = RemoteObject(uri) if headers is None else header_index.find(headers, uri)
    head = remote.read_up_to(64, 0)
    if head[:4] in _TIFF and not optional.wants_openslide(remote.name, head):
        image = _open_tiff(remote.name, cache_dir, convert, options, remote)
    elif kind := plain.kind_of(head):
        image = _open_plain(remote.name, kind, cache_dir, convert, options, remote)
    else:
        unread.refuse(remote.name, head)
        what = f"is {LOCAL_ONLY}, or not an image of a known kind"
        raise ImageError(f"{remote.name}: {what}; copy it, or store it as a tiled TIFF")
    image.remote = remote
    return image


def _open_tiff(
    name: str, cache_dir: Any, convert: bool, options: dict[str, Any], remote: RemoteObject | None = None
) -> Pyramid:
    from foveal.images import tiff

    file = name if remote is None else remote.uri
    unread.refuse_tiff(name)
    layout = tiff.parse_tiff(file, name, remote)
    if layout.vendor is not None:
        if remote is not None:
            raise ImageError(f"{name}: is a slide of {layout.vendor}, which is read from local files only; copy it")
        return optional.open_slide(name, **options)
    size = layout.levels[0].height, layout.levels[0].width
    small = (
        layout.looking_cost(-1) <= options["max_bytes"]
        and layout.levels[-1].height * layout.levels[-1].width <= plain.LARGE
    )
    image = tiff.TiffPyramid(name, layout, file=file, remote=remote, **options)
    if (layout.tiled and small) or not convert:
        return image
    if small:
        with image:
            pixels, alpha = image.read_whole()
        whole = ArrayPyramid(pixels, alpha, path=name, **layout.options(), **options)
        whole._count(image.bytes_read, image.tiles_decoded)
        return whole
    height, width = size
    cost = layout.cost
    check_claim(name, size, cost, options["max_bytes"] * _PIECEWISE)
    length = Path(name).stat().st_size if remote is None else remote.size
    if cost > _MOST_COMPRESSED * max(length, 1 << 16):
        claim = f"claims {width} x {height} pixels, {cost:,} bytes, in a file of {length:,}"
        raise ImageError(f"{name}: {claim}: almost all tiles are missing; crop it to the others, or add levels to it")

    def make(target: str) -> None:
        gaps = image.has_gaps or layout.masks[0] is not None or image.dtype.kind == "f"
        alpha = bool(layout.alpha is not None or layout.nodata is not None or gaps)
        image.keep_rows()

        def rows(y0: int, y1: int) -> np.ndarray:
            return _packed(image._read_stored([(0, (y0, 0, y1, width))])[0], alpha, layout.premultiplied)

        write_pyramid(target, (height, width, layout.shown_bands + alpha), _packable(image.dtype), rows, alpha=alpha)

    kind = "a TIFF without levels" if layout.tiled else "a TIFF in strips"
    key = None if remote is None else remote.key
    why = f"{kind} of {height * width / 1e6:,.0f} megapixels"
    return _open_cached(name, cached(name, cache_dir, make, why, key=key), image, options)


def _open_plain(
    name: str,
    kind: str,
    cache_dir: Any,
    convert: bool,
    options: dict[str, Any],
    remote: RemoteObject | None = None,
) -> Pyramid:
    data = None if remote is None else remote.whole(options["max_bytes"])
    header = plain.read_header(name, kind, options["max_bytes"], data)
    height, width = header.size
    image = plain.PlainPyramid(name, header, remote=remote, **options)
    if not header.large:
        return image
    in_parts = remote is None and kind == "JPEG" and header.bits == 8
    if in_parts and (segments := plain.find_segments(np.memmap(name, np.uint8, "r"))):
        return plain.RestartJpeg(name, header, segments, **options)

    def make(target: str) -> None:
        stored, alpha, _ = plain.decode_plain(name, header, data)

        def rows(y0: int, y1: int) -> np.ndarray:
            return _packed(plain.split_alpha(stored[y0:y1], alpha), alpha, False)

        write_pyramid(target, (height, width, header.bands + alpha), _packable(image.dtype), rows, alpha=alpha)

    why = f"a {kind} of {height * width / 1e6:,.0f} megapixels"
    key = None if remote is None else remote.key
    return _open_cached(name, cached(name, cache_dir, make, why, convert, key), image, options)


def _open_jxl(name: str, cache_dir: Any, convert: bool, options: dict[str, Any]) -> Pyramid:
    from foveal.images import tiff

    size = height, width = jxl.read_jxl_size(name)
    check_claim(
        name, size, 8 * height * width, options["max_bytes"]
    )  # the header parser reads no bands and bits; 4 bands of 16 bits are assumed
    if height * width <= plain.LARGE:
        pixels, alpha = jxl.decode_jxl(name)
        image = ArrayPyramid(pixels, alpha, path=name, **options)
        image._count(Path(name).stat().st_size, 1)
        return image

    def make(target: str) -> None:
        pixels, alpha = jxl.decode_jxl(name)

        def rows(y0: int, y1: int) -> np.ndarray:
            return _packed((pixels[y0:y1], None if alpha is None else alpha[y0:y1]), alpha is not None, False)

        write_pyramid(
            target,
            (*pixels.shape[:2], pixels.shape[2] + (alpha is not None)),
            pixels.dtype,
            rows,
            alpha=alpha is not None,
        )

    file = cached(name, cache_dir, make, f"a JPEG XL of {height * width / 1e6:,.0f} megapixels", convert)
    return tiff.TiffPyramid(name, tiff.parse_tiff(file, name), file=file, halved=True, **options)


def _open_cached(name: str, file: str, original: Pyramid, options: dict[str, Any]) -> Pyramid:
    """Open the cached pyramid of an image, with the path and metadata of the original."""
    from foveal.images import tiff

    kept = {"orientation": original.metadata["orientation"], "metadata": original.metadata, "halved": True}
    given = options["value_range"] is not None
    if not given and original.dtype != bool:
        options = {**options, "value_range": original.value_range}
    converted = tiff.TiffPyramid(name, tiff.parse_tiff(file, name), file=file, **options, **kept)
    converted._range_was_given = given
    return converted


def _packable(dtype: np.dtype) -> np.dtype:
    return np.dtype(np.uint8) if dtype.kind == "b" else dtype


def _packed(stored: Stored, alpha: bool, premultiplied: bool) -> np.ndarray:
    """Bands of a pyramid: premultiplied colours, then alpha if ``alpha`` is True."""
    pixels, cover = stored
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8) * 255
    if not alpha:
        return pixels
    highest = 1 if pixels.dtype.kind == "f" else np.iinfo(pixels.dtype).max
    if cover is None or cover.min() == 1:
        return np.concatenate([pixels, np.full((*pixels.shape[:2], 1), highest, pixels.dtype)], axis=2)
    colours = pixels if premultiplied else pixels * cover[..., None]
    both = np.concatenate([colours, cover[..., None] * highest], axis=2)
    return (both if pixels.dtype.kind == "f" else np.rint(both)).astype(pixels.dtype)

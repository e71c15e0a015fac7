"""The roles of the pages of a TIFF: main image, levels, channels and masks.

Tags define whether a page is a reduced copy, a mask or a channel. The order of the pages does not: DNG files and some
scanners write a thumbnail first, and some pyramids are stored from small to large.

Example:
    >>> import io, numpy as np, tifffile
    >>> file = io.BytesIO()
    >>> with tifffile.TiffWriter(file) as writer:
    ...     for side, reduced in ((32, 1), (64, 0)):
    ...         writer.write(np.zeros((side, side), np.uint8), tile=(16, 16), subfiletype=reduced, metadata=None)
    >>> _ = file.seek(0)
    >>> with tifffile.TiffFile(file) as opened:
    ...     picture = find_picture(opened)
    >>> [level.pages[0].imagewidth for level in picture.levels]
    [64, 32]
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import tifffile

_REDUCED, _MASK = 1, 4
_KINDS = 0x1001F  # the bits that TIFF and DNG define
_NO_TEXT = re.compile(r"[\x01-\x08\x0e-\x1f\x7f]")
_DAMAGED = "its description, which may define the roles of its pages, is damaged"


@dataclass
class PageLevel:
    """The pages of one level: one page, or one for each channel.

    Attributes:
        pages: the pages.
        mask: page with the mask of valid pixels, or None.
        size: (height, width) without padding if the pages are padded to whole tiles; None if they are not.
    """

    pages: list[tifffile.TiffPage]
    mask: tifffile.TiffPage | None = None
    size: tuple[int, int] | None = None


@dataclass
class Picture:
    """The levels of the main image.

    Attributes:
        levels: the levels, finest first.
        parent: the first page of the file, whose metadata apply if the main image has none.
        channels: number of channels stored one after the other in a single page (ImageJ); otherwise 1.
    """

    levels: list[PageLevel]
    parent: tifffile.TiffPage
    channels: int = 1


def find_picture(file: tifffile.TiffFile) -> Picture:
    """Find the main image among the pages of a file.

    Raises:
        ValueError: a channel is in another file, or the description that defines the channels is damaged.
    """
    top = [page.aspage() for page in file.pages]
    everyone = [page for parent in top for page in (parent, *_children(parent))]
    masks = [page for page in everyone if page_kind(page) & _MASK]
    main = _main(top, everyone)
    masks = [page for page in masks if page is not main]  # a file of masks only shows the largest
    pages, channels = _channels(file, top, main)
    picture = Picture([PageLevel(pages, _mask_of(main, masks))], top[0], channels)
    used = {id(page) for page in (*pages, *masks)}
    _add_levels(picture, [page for page in _children(main) or everyone if id(page) not in used], masks)
    return picture


def coarser(picture: Picture, file: tifffile.TiffFile) -> list[PageLevel]:
    """Add the levels of an overview file to a picture, and return them."""
    before = len(picture.levels)
    _add_levels(picture, [page.aspage() for page in file.pages], [])
    return picture.levels[before:]


def _add_levels(picture: Picture, pool: list[tifffile.TiffPage], masks: list[tifffile.TiffPage]) -> None:
    pages = picture.levels[0].pages
    main = pages[0]
    if not main.is_tiled or picture.channels > 1:
        return
    for page in sorted(pool, key=_area, reverse=True):
        fits, size = _is_level(page, main, picture.levels[-1])
        same = [page] if len(pages) == 1 else _siblings(page, main, pages, pool)
        if fits and same:
            picture.levels.append(PageLevel(same, _mask_of(page, masks), size))


def page_kind(page: tifffile.TiffPage) -> int:
    """Bits of the tag NewSubfileType, or else of SubfileType: 1 for a reduced copy, 4 for a mask."""
    if page.tags.valueof(254) is None and page.tags.valueof(255) == 2:
        return _REDUCED
    kind = int(page.subfiletype)
    return 0 if kind & ~_KINDS else kind  # with bits that do not exist the tag is damaged


def _children(page: tifffile.TiffPage) -> list[tifffile.TiffPage]:
    return [child.aspage() for child in page.pages] if page.subifds and page.pages else []


def _size(page: tifffile.TiffPage) -> tuple[int, int]:
    return page.imagelength, page.imagewidth


def _area(page: tifffile.TiffPage) -> int:
    return page.imagewidth * page.imagelength


def _main(top: list[tifffile.TiffPage], everyone: list[tifffile.TiffPage]) -> tifffile.TiffPage:
    first = top[0]
    whole = [page for page in everyone if not page_kind(page) & (_REDUCED | _MASK)]
    if page_kind(first) & (_REDUCED | _MASK):
        return max(whole or [page for page in everyone if not page_kind(page) & _MASK] or everyone, key=_area)
    # Pyramids from small to large without tags: tiled pages, each an integer multiple of the size of the one before.
    last = first
    for page in top[1:]:
        times = page.imagewidth / last.imagewidth if last.imagewidth else 0
        fits = page.is_tiled and _alike(page, last) and round(times) >= 2 and not page_kind(page) & _MASK
        if (
            not fits
            or abs(page.imagewidth - round(times) * last.imagewidth) >= round(times)
            or not _same_shape(page, last)
        ):
            break
        last = page
    return last if first.is_tiled else first


def _alike(page: tifffile.TiffPage, other: tifffile.TiffPage) -> bool:
    return bool(
        page.dtype == other.dtype
        and page.samplesperpixel == other.samplesperpixel
        and page.photometric == other.photometric
    )


def _same_shape(page: tifffile.TiffPage, larger: tifffile.TiffPage) -> bool:
    skew = abs(page.imagewidth * larger.imagelength - page.imagelength * larger.imagewidth)
    return skew <= 2 * max(page.imagewidth, page.imagelength, larger.imagewidth, larger.imagelength)


def _is_level(
    page: tifffile.TiffPage, main: tifffile.TiffPage, finer: PageLevel
) -> tuple[bool, tuple[int, int] | None]:
    """Whether a page is a coarser level (not a thumbnail, label, macro or focal plane), and its unpadded size."""
    previous = finer.size or _size(finer.pages[0])
    if (
        not page.is_tiled
        or page.dtype != main.dtype
        or page.samplesperpixel != main.samplesperpixel
        or min(_size(page)) < 1
    ):
        return False, None
    plain = page.imagewidth < previous[1] and _same_shape(page, main)
    times = main.imagewidth / page.imagewidth
    if plain and finer.size is None and abs(main.imagewidth - round(times) * page.imagewidth) < round(times):
        return True, None
    # Padded levels are not an integer factor smaller; all levels after a padded one are padded, too.
    size = _unpadded(page, main, previous)
    return plain or size is not None, size


def _unpadded(page: tifffile.TiffPage, main: tifffile.TiffPage, previous: tuple[int, int]) -> tuple[int, int] | None:
    """Size without padding of a level that is padded to whole tiles, as Philips and ASAP write them; None if it is not.

    In such files each level is half the size of the one before, level 0 is padded as well, and the page is tagged as a
    reduced copy.
    """
    tile = page.tilelength, page.tilewidth
    stated, full = _size(page), _size(main)
    if not page_kind(page) & _REDUCED or full[0] % main.tilelength or full[1] % main.tilewidth or min(tile) < 1:
        return None
    for halvings in range(1, 32):
        size = math.ceil(full[0] / 2**halvings), math.ceil(full[1] / 2**halvings)
        if size[0] < previous[0] and size[1] < previous[1]:
            if all(math.ceil(n / t) * t == s for n, t, s in zip(size, tile, stated, strict=True)):
                return size
            if size == (1, 1):
                break
    return None


def _mask_of(page: tifffile.TiffPage, masks: list[tifffile.TiffPage]) -> tifffile.TiffPage | None:
    return next((mask for mask in masks if _size(mask) == _size(page)), None)


def _channels(
    file: tifffile.TiffFile, top: list[tifffile.TiffPage], main: tifffile.TiffPage
) -> tuple[list[tifffile.TiffPage], int]:
    """The pages of the channels, at the first time and depth; and the number of channels stored in a single page."""
    if main.samplesperpixel > 1 or main is not top[0]:
        return [main], 1
    if file.is_imagej:
        count = int((file.imagej_metadata or {}).get("channels", 1))
        if count <= len(top):
            return top[: max(count, 1)], 1
        return [main], count if len(top) == 1 and int(main.compression) == 1 and not main.is_tiled else 1
    if len(top) == 1:
        return [main], 1
    if not (file.is_ome or file.is_qpi or file.is_shaped or file.is_lsm):
        _check_description(main)
        return [main], 1
    series = _series(file)
    if series is None or "C" not in series.axes:
        return [main], 1
    at = series.axes.index("C")
    stride = math.prod(
        n for n, axis in zip(series.shape[at + 1 :], series.axes[at + 1 :], strict=True) if axis not in "YXS"
    )
    found = [series.pages[i * stride] for i in range(series.shape[at])]
    if any(page is None for page in found):
        raise ValueError("some of its channels are in other files")
    by_offset = {page.offset: page for page in top}
    pages = [by_offset.get(page.offset) for page in found]
    return [page for page in pages if page is not None] if all(pages) else [main], 1


def _series(file: tifffile.TiffFile) -> Any:
    try:
        if file.is_ome:  # tifffile ignores XML that it cannot parse
            ElementTree.fromstring(file.ome_metadata or "")
        return file.series[0]
    except Exception as error:
        if file.is_ome:
            raise ValueError(_DAMAGED) from error
        return None


def _check_description(page: tifffile.TiffPage) -> None:
    """Raise ValueError if a description is no text, or was OME-XML: it may have told that the pages are channels."""
    text = page.tags.valueof(270) or ""
    if isinstance(text, bytes) or _NO_TEXT.search(text) or "<OME" in text or "openmicroscopy" in text:
        raise ValueError(_DAMAGED)


def _siblings(
    page: tifffile.TiffPage, main: tifffile.TiffPage, pages: list[tifffile.TiffPage], pool: list[tifffile.TiffPage]
) -> list[tifffile.TiffPage]:
    """The pages of a level, one for each channel: SubIFDs at the same index, or pages of equal size."""
    children = [_children(p) for p in pages]
    if page in children[0]:
        place = children[0].index(page)
        found = [c[place] for c in children if len(c) > place]
    else:
        found = [p for p in pool if _size(p) == _size(page) and _alike(p, main)]
        found = found[: len(pages)]
    return found if len(found) == len(pages) else []

"""Checks of the JPEG tiles of Leica slides (SCN).

OpenSlide does not report the warnings of libjpeg. So the tiles below a look are decoded here first, with the checks of
`foveal.images.jpeg`. The pixels are those of OpenSlide, which composes the scanned areas.

Example:
    >>> no_area = ScnTiles("slide.scn", areas=[[]])
    >>> no_area.check(-1, number=0, box=(0, 0, 256, 256))
    >>> no_area.checked
    set()
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from xml.etree import ElementTree

from foveal.images import tiff
from foveal.images.pyramid import Window
from foveal.images.reading import read_at, reading
from foveal.images.tiles import Level, decode_tile

_SPACE = "{http://www.leica-microsystems.com/scn/2010/10/01}"


@dataclass
class ScnTiles:
    """The tiles of the scanned areas of a slide.

    Attributes:
        path: path of the slide.
        areas: for each level the areas, each with the position (y, x) of its corner in pixels of the level.
        checked: tiles that are intact, by level, area and index.
    """

    path: str
    areas: list[list[tuple[Level, float, float]]]
    checked: set[tuple[int, int, int]] = field(default_factory=set)

    def check(self, descriptor: int, number: int, box: Window) -> None:
        """Decode the tiles below a box of a level.

        Args:
            descriptor: file descriptor of the slide.
            number: index of the level.
            box: (y0, x0, y1, x1) in pixels of the level.

        Raises:
            ImageError: a tile is damaged.
        """
        for area, (level, top, left) in enumerate(self.areas[number]):
            for index in _below(level, top, left, box):
                if (number, area, index) in self.checked or not (length := level.counts.get(descriptor, index)):
                    continue
                where = f"tile {index} of level {number}"
                with reading(self.path, f"{where} cannot be decoded", "the slide is damaged there, copy it again"):
                    decode_tile(level, read_at(descriptor, length, level.offsets.get(descriptor, index)), index)
                self.checked.add((number, area, index))


def read_scn_tiles(path: str, levels: int) -> ScnTiles:
    """Find the tiles of a slide; none if its description lists another number of levels than OpenSlide.

    Args:
        path: path of the slide.
        levels: number of its levels.

    Raises:
        ImageError: a header of a page is damaged.
    """
    with reading(path, "the TIFF header cannot be read"):
        source, file = tiff.open_tiff(path, path)
        with file:
            found = []
            for pages, top, left, width in _main_images(file.pages[0].aspage().description):
                areas = []
                for number, across in pages:
                    level = Level.of(source, [file.pages[number].aspage()])
                    areas.append((level, top * across / width, left * across / width))
                found.append(areas)
    if not found or any(len(areas) != levels for areas in found):
        return ScnTiles(path, [[] for _ in range(levels)])
    return ScnTiles(path, [list(areas) for areas in zip(*found, strict=True)])


def _main_images(text: str) -> Iterator[tuple[list[tuple[int, int]], int, int, int]]:
    """Yield the pages (number, width in pixels) of each image but the macro, from large to small, and the top, left and
    width of its area in nanometres.
    """
    with suppress(ElementTree.ParseError, TypeError, ValueError):  # OpenSlide reads other files than expected here
        collection = ElementTree.fromstring(text).find(f"{_SPACE}collection")
        for image in [] if collection is None else collection.iter(f"{_SPACE}image"):
            view, pixels = image.find(f"{_SPACE}view"), image.find(f"{_SPACE}pixels")
            if view is None or pixels is None:
                continue
            width, left, top = (int(view.get(key, 0)) for key in ("sizeX", "offsetX", "offsetY"))
            whole = [view.get(key) == collection.get(key) for key in ("sizeX", "sizeY")]  # type: ignore[union-attr]
            if width < 1 or (all(whole) and left == top == 0):
                continue
            stored = [d for d in pixels.iter(f"{_SPACE}dimension") if d.get("z", "0") == "0"]
            pages = [(int(d.get("ifd", "")), int(d.get("sizeX", ""))) for d in stored]
            yield sorted(pages, key=lambda page: -page[1]), top, left, width


def _below(level: Level, top: float, left: float, box: Window) -> Iterator[int]:
    """Indices of the tiles of an area below a box, and those one pixel beside it."""
    (height, width), (y0, x0, y1, x1) = level.tile, box
    rows = range(max(0, math.floor((y0 - top - 1) / height)), min(level.rows, math.floor((y1 - top + 1) / height) + 1))
    across = max(0, math.floor((x0 - left - 1) / width)), min(level.columns, math.floor((x1 - left + 1) / width) + 1)
    return (row * level.columns + column for row in rows for column in range(*across))

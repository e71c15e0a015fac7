"""Checks of JPEG 2000: the tile-parts of the codestream, the boxes that describe its pixels, and its colour space.

Example:
    >>> import imagecodecs, numpy as np
    >>> data = imagecodecs.jpeg2k_encode(np.zeros((8, 8), np.uint8), codecformat="j2k")
    >>> check_jpeg2000(data, 0)
    >>> check_jpeg2000(data[:20] + data[28:], 0)
    Traceback (most recent call last):
    ...
    ValueError: JPEG 2000 data are cut short or displaced
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

_OTHER_BOXES = {b"jpx ", b"jpm ", b"mjp2"}  # file types of compound images and videos
SIGNATURE = b"\0\0\0\x0cjP  \r\n\x87\n"
START = b"\xff\x4f\xff\x51"


def check_jpeg2000(data: Any, start: int) -> None:
    """Check that the tile-parts have the lengths in their headers, and that the boxes agree with the codestream.

    OpenJPEG fills missing data without an error. Boxes that do not describe pixels are not read.

    Args:
        data: bytes or a memory map.
        start: position of the codestream in ``data``.

    Raises:
        ValueError: a tile-part is missing or has another length, or boxes of the header contradict the codestream.
    """
    if data[4:8] == b"jP  ":
        if data[16:20] != b"ftyp":
            raise ValueError("it has no file type")
        if data[20:24] not in _OTHER_BOXES:
            _check_boxes(data, start)
    *_, at = _markers(data, start)
    while data[at : at + 2] == b"\xff\x90":
        length = int.from_bytes(data[at + 6 : at + 10], "big")
        at = at + length if length else data.rfind(b"\xff\xd9", at)
        if length == 0 or at > len(data):
            break
    if not start < at <= len(data) or (at < len(data) and data[at : at + 2] != b"\xff\xd9"):
        raise ValueError("JPEG 2000 data are cut short or displaced")


def _check_boxes(data: Any, start: int) -> None:
    """Check ihdr and bpcc against the codestream, and that colr, pclr, cmap and cdef are complete and consistent."""
    outer = dict(_boxes(data, 0, start))
    header = list(_boxes(data, *outer.get(b"jp2h", (0, 0))))
    found = {name: data[a:b] for name, (a, b) in reversed(header)}  # of repeated boxes the first counts
    x, y, x0, y0 = struct.unpack(">4I", data[start + 8 : start + 24])
    count = struct.unpack(">H", data[start + 40 : start + 42])[0]
    bits = data[start + 42 : start + 42 + 3 * count : 3]
    if len(found.get(b"ihdr", b"")) != 14 or struct.unpack(">IIH", found[b"ihdr"][:10]) != (y - y0, x - x0, count):
        raise ValueError("the size in its header is not that of its pixels")
    if found[b"ihdr"][11] != 7:
        raise ValueError("the compression in its header is not that of JPEG 2000")
    stated = found.get(b"bpcc", b"") if found[b"ihdr"][10] == 255 else found[b"ihdr"][10:11] * count
    if stated != bits:
        raise ValueError("the depth in its header is not that of its pixels")
    channels = count
    if palette := found.get(b"pclr", b""):
        entries, columns = struct.unpack(">HB", palette[:3])
        size = sum(entries * (-(-((depth & 127) + 1) // 8)) for depth in palette[3 : 3 + columns])
        mapping = found.get(b"cmap", b"")
        channels = len(mapping) // 4
        parts = [struct.unpack(">HBB", mapping[4 * i : 4 * i + 4]) for i in range(channels)]
        if len(palette) != 3 + columns + size or not parts or len(mapping) % 4:
            raise ValueError("its palette is damaged")
        if any(component >= count or kind > 1 or column >= columns for component, kind, column in parts):
            raise ValueError("its palette is damaged")
    if roles := found.get(b"cdef", b""):
        each = struct.unpack(f">{len(roles) // 2}H", roles[: len(roles) // 2 * 2])
        numbers, kinds = each[1::3], each[2::3]
        if len(each) != 1 + 3 * each[0] or max(numbers) >= channels or any(2 < kind < 65535 for kind in kinds):
            raise ValueError("the roles of its channels are damaged")
    colours = found.get(b"colr", b"")
    if colours[:1] == b"\1" and len(colours) < 7:  # boxes of other methods are ignored
        raise ValueError("its colour space is damaged")


def _boxes(data: Any, at: int, end: int) -> Iterator[tuple[bytes, tuple[int, int]]]:
    """Yield the name of each box between two positions, and the range of its contents.

    Raises:
        ValueError: a box continues past the end.
    """
    while at + 8 <= end:
        length, name = struct.unpack(">I4s", data[at : at + 8])
        if name == b"jp2c":
            return
        head = 16 if length == 1 else 8
        length = int.from_bytes(data[at + 8 : at + 16], "big") if length == 1 else length
        if length < head or at + length > end:
            raise ValueError("a box of its header is damaged")
        yield bytes(name), (at + head, at + length)
        at += length


def is_ycbcr(data: bytes, start: int) -> bool:
    """Whether decoded components of a TIFF tile with YCbCr pixels are still YCbCr.

    The decoder converts to RGB if the codestream has a component transform, if chroma is subsampled, or if the colour
    space of the JP2 header is sYCC.
    """
    if b"colr\x01\0\0\0\0\0\x12" in data[:start]:
        return False
    if any(data[at + 1] == 0x52 and data[at + 8] for at in _markers(data, start) if at + 8 < len(data)):
        return False
    components = struct.unpack(">H", data[start + 40 : start + 42])[0]
    steps = data[start + 42 : start + 42 + 3 * components]
    return set(steps[1::3] + steps[2::3]) == {1}


def _markers(data: Any, start: int) -> Iterator[int]:
    """Yield the positions of the markers of the main header, then that of the first tile-part."""
    at = start + 2
    yield at
    while data[at : at + 1] == b"\xff" and data[at + 1 : at + 2] != b"\x90" and at + 4 <= len(data):
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        yield at

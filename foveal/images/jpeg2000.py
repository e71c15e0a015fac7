"""Check of the tile-parts of a JPEG 2000 codestream, and its colour space.

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

START = b"\xff\x4f\xff\x51"


def check_jpeg2000(data: Any, start: int) -> None:
    """Check that the tile-parts have the lengths in their headers. OpenJPEG fills missing data without an error.

    Args:
        data: bytes or a memory map.
        start: position of the codestream in ``data``.

    Raises:
        ValueError: a tile-part is missing or has another length.
    """
    *_, at = _markers(data, start)
    while data[at : at + 2] == b"\xff\x90":
        length = int.from_bytes(data[at + 6 : at + 10], "big")
        at = at + length if length else data.rfind(b"\xff\xd9", at)
        if length == 0 or at > len(data):
            break
    if not start < at <= len(data) or (at < len(data) and data[at : at + 2] != b"\xff\xd9"):
        raise ValueError("JPEG 2000 data are cut short or displaced")


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

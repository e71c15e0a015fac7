"""Checks of the palette and the run lengths of a BMP. Pillow pads missing pixels and drops surplus ones without an
error.

Example:
    >>> row = bytes([3, 7, 0, 0])  # three pixels of colour 7, end of the row
    >>> head = struct.pack("<2s8xIIiiHHI12xI4x", b"BM", 86, 40, 3, 2, 1, 8, 1, 8) + bytes(32)  # 8 colours
    >>> check_bmp(head + row + row + bytes([0, 1]))
    >>> check_bmp(head + row + bytes([2, 7, 0, 0, 0, 1]))
    Traceback (most recent call last):
    ...
    ValueError: its run lengths do not fill its rows
"""

from __future__ import annotations

import struct
from typing import Any


def check_bmp(data: Any) -> None:
    """Check that the palette ends before the pixels, and that run lengths fill the rows exactly.

    Runs of files with delta codes, which skip pixels, may leave rows incomplete.

    Raises:
        ValueError: the palette overlaps the pixels, or the runs are cut short, leave the image or do not fill its rows.
    """
    at, size = struct.unpack("<II", data[10:18])
    if size < 40:
        return
    width, height, bits, compression, colours = struct.unpack("<ii2xHI12xI", data[18:50])
    if bits <= 8 and at < 14 + size + 4 * min(colours or 1 << bits, 1 << bits):
        raise ValueError("its palette overlaps its pixels")
    if compression not in (1, 2):
        return
    x, y, jumped = 0, 0, False
    while True:
        if at + 2 > len(data):
            raise ValueError("its run lengths are cut short")
        count, code = data[at], data[at + 1]
        at += 2
        if count:
            x += count
        elif code == 0:
            if x != width and not jumped:
                raise ValueError("its run lengths do not fill its rows")
            x, y = 0, y + 1
        elif code == 1:
            break
        elif code == 2:
            x, y, jumped, at = x + data[at], y + data[at + 1], True, at + 2
        else:
            x += code
            octets = code if compression == 1 else -(-code // 2)
            at += octets + octets % 2
        if x > width or y > abs(height):
            raise ValueError("its run lengths go beyond the image")
    if not jumped and (x, y) not in ((0, abs(height)), (width, abs(height) - 1)):
        raise ValueError("its run lengths end before the last row")

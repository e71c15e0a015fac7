"""Check of the run lengths of a BMP. Pillow pads missing pixels and drops surplus ones without an error.

Example:
    >>> row = bytes([3, 7, 0, 0])  # three pixels of colour 7, end of the row
    >>> head = struct.pack("<2s8xIIiiHHI20x", b"BM", 54, 40, 3, 2, 1, 8, 1)
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
    """Check that the runs of a run-length encoded BMP fill its rows exactly.

    Files of other compressions are not checked. Files with delta codes, which skip pixels, may have incomplete rows.

    Raises:
        ValueError: the runs are cut short, leave the image, or do not fill its rows.
    """
    size = int.from_bytes(data[14:18], "little")
    if size < 40:
        return
    width, height, compression = struct.unpack("<ii4xI", data[18:34])
    if compression not in (1, 2):
        return
    at, x, y, jumped = int.from_bytes(data[10:14], "little"), 0, 0, False
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

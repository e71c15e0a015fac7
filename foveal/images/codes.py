"""Every code of a JPEG read one by one: is all of the picture there, and is what is left over stray?

libjpeg passes over bytes that are left when a part of a picture is complete. They may be stray, as cameras write them,
or the rest of damaged data. Intact data keep rules that damaged ones soon break: runs of zeros end within their block,
a run of empty blocks ends with the picture, the last byte is filled up with ones. Encoders make a table for each scan
of a progressive JPEG, the best one for its symbols; when some of them are damaged, it is no longer the best.

Example:
    >>> import io
    >>> from PIL import Image
    >>> from foveal.images.jpeg import parse_jpeg
    >>> file = io.BytesIO()
    >>> Image.linear_gradient("L").save(file, "JPEG", progressive=True)
    >>> data = file.getvalue()
    >>> check_codes(parse_jpeg(data[:-2] + b"stray" + data[-2:]))
    >>> check_codes(parse_jpeg(data[:-9] + data[-2:]))
    Traceback (most recent call last):
    ...
    ValueError: Corrupt JPEG data: premature end of data segment
"""

from __future__ import annotations

import math
import re
from collections import Counter
from functools import lru_cache
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from foveal.images.jpeg import ParsedJpeg, Scan

Blocks = list[tuple[list[int], list[int] | None]]

_SHORT = "Corrupt JPEG data: premature end of data segment"
_NO_CODE = "Corrupt JPEG data: bad Huffman code"
_OVER = "Corrupt JPEG data: codes are left over"


def check_codes(stream: ParsedJpeg, *, cut: bool = False) -> None:
    """Read every code of a JPEG, of whatever sampling, number of components and bits.

    Stray bytes after the last code of a part are accepted, unless they look like the rest of damaged data.

    Args:
        stream: the JPEG.
        cut: its end marker is missing, so that nothing may be left and the last byte must be filled up as encoders do.

    Raises:
        ValueError: codes that do not exist or lead out of their block, too few, or restart markers that are missing.
    """
    if stream.frame not in (0xC0, 0xC1, 0xC2, 0xC3):
        raise ValueError("arithmetic codes with stray bytes or rare sampling factors; save it again")
    tallest, widest = max(c.down for c in stream.components), max(c.across for c in stream.components)
    side = 1 if stream.frame == 0xC3 else 8
    known: dict[int, bytearray] = {}  # by component: which coefficients are not zero
    fitting = []
    for scan in stream.scans:
        if len(scan.parts) == 1:
            component = scan.parts[0][0]
            height = math.ceil(stream.height * component.down / tallest)
            width = math.ceil(stream.width * component.across / widest)
            units = math.ceil(height / side) * math.ceil(width / side)
            blocks = scan.parts
        else:
            units = math.ceil(stream.height / (side * tallest)) * math.ceil(stream.width / (side * widest))
            blocks = [part for part in scan.parts for _ in range(part[0].across * part[0].down)]
        parts = _parts(stream.data[scan.start : scan.end])
        expected = -(-units // scan.interval) if scan.interval else 1
        if len(parts) != expected:
            raise ValueError(f"{len(parts)} restart intervals where there should be {expected}")
        symbols, over = Counter[int](), list[bool]()
        for number, part in enumerate(parts):
            first = number * scan.interval
            count = min(scan.interval, units - first) if scan.interval else units
            if stream.progressive and scan.first:
                flags = known.setdefault(scan.parts[0][0].name, bytearray(64 * units))
                left = _skip_coefficients(part, scan, flags, first, count, symbols)
            elif stream.progressive and scan.high:
                left = _left(part, count * len(blocks), [])
            else:
                runs = not stream.progressive and side == 8
                left = _skip_units(
                    part, [(_codes(direct), _codes(run) if runs else None) for _, direct, run in blocks], count
                )
            if left and stream.progressive and scan is not stream.scans[-1]:
                raise ValueError(_OVER)  # no camera pads its scans but the last
            last = scan is stream.scans[-1] and number + 1 == len(parts)
            if cut and last and left > part.endswith(b"\xff"):  # a half of the end marker may be there
                raise ValueError(_SHORT)
            over += [left > 0] if number + 1 < len(parts) else []
        if any(over) and not all(over):  # an encoder that pads its parts pads all of them
            raise ValueError(_OVER)
        if symbols:
            fitting.append(_is_best(scan.parts[0][2], symbols))
    # An encoder whose tables are others has several that are not the best.
    if fitting.count(False) == 1 and len(fitting) > 1:
        raise ValueError(_OVER)


def _parts(data: bytes) -> list[bytes]:
    """Coded data between restart markers, without the zeros that are put after 0xFF.

    Raises:
        ValueError: the numbers of the markers are not in their order.
    """
    marks = list(re.finditer(rb"\xff+([\xd0-\xd7])", data))
    if any(mark[1][0] != 0xD0 + i % 8 for i, mark in enumerate(marks)):
        raise ValueError("restart markers are missing or out of order")
    starts, ends = [0, *(m.end() for m in marks)], [*(m.start() for m in marks), len(data)]
    return [data[a:b].replace(b"\xff\0", b"\xff") for a, b in zip(starts, ends, strict=True)]


@lru_cache(maxsize=16)
def _codes(table: bytes) -> list[int]:
    """For each 16 bits that may follow: symbol * 32 + length of its code, or -1 where no code fits."""
    codes: list[int] = []
    values = iter(table[16:])
    for length, count in enumerate(table[:16], 1):
        for _ in range(count):
            codes += [next(values, 0) * 32 + length] * (1 << (16 - length))
    return (codes + [-1] * 65536)[:65536]


def _is_best(table: bytes, symbols: Counter[int]) -> bool:
    """Whether a Huffman table is made for symbols that occur so often, as libjpeg makes them."""
    lengths = dict(zip(table[16:], (n for n, count in enumerate(table[:16], 1) for _ in range(count)), strict=False))
    if lengths.keys() != symbols.keys():
        return False
    longest = max(lengths.values())
    heap = [1, *symbols.values()]  # 1: the code of ones is kept free
    heapify(heap)
    least = 0
    while len(heap) > 1:
        both = heappop(heap) + heappop(heap)
        least += both
        heappush(heap, both)
    # Codes have 16 bits at most, which may cost more.
    return longest == 16 or sum(lengths[s] * n for s, n in symbols.items()) + longest <= least + 1


def _skip_units(data: bytes, blocks: Blocks, units: int) -> int:
    """Bytes that are left after the units of a sequential scan, or of the first scan of the mean values of a
    progressive one.
    """
    bits, padded, at = 8 * len(data), data + bytes(16), 0
    for _ in range(units):
        at = _skip_unit(padded, blocks, at)
        if at > bits:
            raise ValueError(_SHORT)
    return _left(data, at, blocks)


def _left(data: bytes, at: int, blocks: Blocks) -> int:
    """Stray bytes that are left of a part when its last code is read.

    An intact end is filled up with ones, and what is left is stray. Damage leaves codes over, too. Where it shifts them
    the end lies anywhere in a byte, and whole units follow up to the real end; where it erases them the erased bytes
    begin before the end.

    Args:
        data: the part.
        at: bits that were read.
        blocks: of a unit; none where what follows cannot be read on.

    Raises:
        ValueError: codes are left over, or too few.
    """
    bits = 8 * len(data)
    if at > bits:
        raise ValueError(_SHORT)
    if bits - at < 8:
        return 0
    filler = (1 << -at % 8) - 1
    intact = data[at // 8] & filler == filler
    stray = data[-(-at // 8) :]
    erased = data[-len(stray) - 4 : -len(stray)] == stray[:1] * 4
    # Codes that cannot be read on are told by their values: half of the bytes of codes begin with a one.
    coded = not blocks and max(stray) > 127 and len(set(stray)) > 1
    if erased or coded or not intact:
        raise ValueError(_OVER)
    if blocks and all(block[0] is blocks[0][0] and block[1] is blocks[0][1] for block in blocks):
        blocks = blocks[:1]  # their codes do not tell which of them comes next
    padded = data + bytes(16)
    while blocks and bits - at >= 8:
        try:
            at = _skip_unit(padded, blocks, at)
        except ValueError:
            break
    left = bits - at
    if 0 <= left < 8 and data[-1] & ((1 << left) - 1) == (1 << left) - 1:
        raise ValueError(_OVER)
    return len(stray)


def _skip_unit(data: bytes, blocks: Blocks, at: int) -> int:
    """Position in bits after one unit (MCU) that begins at ``at``.

    Raises:
        ValueError: a code that does not exist or leads out of its block, or the end of the data.
    """
    take = int.from_bytes
    for direct, run in blocks:
        byte = at >> 3
        code = direct[(take(data[byte : byte + 3]) >> (8 - (at & 7))) & 0xFFFF]
        if code < 0:
            raise ValueError(_NO_CODE)
        size = code >> 5
        at += (code & 31) + (0 if size == 16 else size)
        if run is None:
            continue
        index = 1
        while index < 64:
            byte = at >> 3
            code = run[(take(data[byte : byte + 3]) >> (8 - (at & 7))) & 0xFFFF]
            if code < 0:
                raise ValueError(_NO_CODE)
            size = (code >> 5) & 15
            at += (code & 31) + size
            skip = code >> 9
            if size == 0 and skip != 15:
                break
            index += skip + 1
        if index > 64:
            raise ValueError(_NO_CODE)
        if byte > len(data):
            raise ValueError(_SHORT)
    return at


def _skip_coefficients(data: bytes, scan: Scan, flags: bytearray, first: int, count: int, symbols: Counter[int]) -> int:
    """Bytes that are left after blocks of a scan of coefficients of a progressive JPEG: their first bits, or one bit
    more.

    Args:
        data: a part.
        scan: of one component.
        flags: 64 for each block: whether a coefficient is not zero; filled in.
        first, count: blocks of this part.
        symbols: counted here.
    """
    take, codes, refined = int.from_bytes, _codes(scan.parts[0][2]), scan.high > 0
    padded, at, empty = data + bytes(16), 0, 0  # `empty`: blocks that end here, this one included
    for start in range(64 * first, 64 * (first + count), 64):
        index, last = start + scan.first, start + scan.last
        while index <= last and not empty:
            byte = at >> 3
            code = codes[(take(padded[byte : byte + 3]) >> (8 - (at & 7))) & 0xFFFF]
            if code < 0 or byte > len(data):
                raise ValueError(_NO_CODE if byte <= len(data) else _SHORT)
            at += code & 31
            symbols[code >> 5] += 1
            run, size = code >> 9, (code >> 5) & 15
            if size == 0 and run < 15:
                byte = at >> 3
                empty = (1 << run) + ((take(padded[byte : byte + 3]) >> (24 - run - (at & 7))) & ((1 << run) - 1))
                at += run
                break
            if refined:
                if size > 1:
                    raise ValueError(_NO_CODE)
                at += size
                while index <= last and (flags[index] or run):
                    if flags[index]:
                        at += 1
                    else:
                        run -= 1
                    index += 1
            else:
                at += size
                index += run
            if index > last:
                raise ValueError(_NO_CODE)
            flags[index] = size > 0
            index += 1
        if empty:
            empty -= 1
            if refined and index <= last:
                at += sum(flags[index : last + 1])
    if empty:
        raise ValueError(_NO_CODE)
    return _left(data, at, [])

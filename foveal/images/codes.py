"""Check of the Huffman codes of a JPEG: they are complete, and bytes after them are padding.

libjpeg ignores bytes after the last code of a restart interval. These bytes may be padding, which some cameras write,
or the remainder of damaged data. Valid data obey rules that damaged data soon violate: runs of zeros end within their
block, runs of empty blocks end within the image, DC values stay in their range, and the last byte is filled with ones.
Encoders also write an optimal Huffman table for each scan of a progressive JPEG. If the symbols are damaged, the table
is no longer optimal for them. Damaged tables may also leave codes over. Codes of symbols that are damaged for certain
are invalid codes.

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

Blocks = list[tuple[list[int], list[int] | None, int]]
"""DC and AC lookup tables of the blocks of a unit (MCU), and the index of the component in the scan."""

_SHORT = "Corrupt JPEG data: premature end of data segment"
_NO_CODE = "Corrupt JPEG data: bad Huffman code"
_OVER = "Corrupt JPEG data: codes are left over"
_RANGE = "Corrupt JPEG data: a value is out of range"
STANDARD = {
    0: bytes.fromhex("00010501010101010100000000000000000102030405060708090a0b"),
    1: bytes.fromhex("00030101010101010101010000000000000102030405060708090a0b"),
    16: bytes.fromhex(
        "0002010303020403050504040000017d01020300041105122131410613516107227114328191a1082342b1c11552d1f0"
        "2433627282090a161718191a25262728292a3435363738393a434445464748494a535455565758595a63646566676869"
        "6a737475767778797a838485868788898a92939495969798999aa2a3a4a5a6a7a8a9aab2b3b4b5b6b7b8b9bac2c3c4c5"
        "c6c7c8c9cad2d3d4d5d6d7d8d9dae1e2e3e4e5e6e7e8e9eaf1f2f3f4f5f6f7f8f9fa"
    ),
    17: bytes.fromhex(
        "00020102040403040705040400010277000102031104052131061241510761711322328108144291a1b1c109233352f0"
        "156272d10a162434e125f11718191a262728292a35363738393a434445464748494a535455565758595a636465666768"
        "696a737475767778797a82838485868788898a92939495969798999aa2a3a4a5a6a7a8a9aab2b3b4b5b6b7b8b9bac2c3"
        "c4c5c6c7c8c9cad2d3d4d5d6d7d8d9dae2e3e4e5e6e7e8e9eaf2f3f4f5f6f7f8f9fa"
    ),
}
"""The Huffman tables of the JPEG standard, which libjpeg uses in place of missing ones: by number, 16 more for AC."""


def has_sound_tables(stream: ParsedJpeg) -> bool:
    """Whether no table has symbols that `_doubtful` finds."""
    return not any(_doubtful(table) for scan in stream.scans for part in scan.parts for table in part[1:])


def _doubtful(table: bytes) -> set[int]:
    """Positions of damaged symbols. No symbol has two codes, and an AC table with the code lengths of a standard table
    has its symbols.
    """
    counts, symbols = table[:16], table[16:]
    times = Counter(symbols)
    twice = len(times) < sum(counts)
    for standard in STANDARD.values():
        if counts == standard[:16] and (twice or len(standard) > 100):
            return {i for i, symbol in enumerate(standard[16:]) if symbols[i : i + 1] != bytes([symbol])}
    return {i for i in range(sum(counts)) if i >= len(symbols) or times[symbols[i]] > 1}


def check_codes(stream: ParsedJpeg, *, cut: bool = False) -> None:
    """Read every Huffman code of a JPEG, with any sampling factors, number of components and precision.

    Bytes after the last code of a restart interval are accepted, unless they look like the remainder of damaged data.

    Args:
        stream: the parsed JPEG.
        cut: the end marker is missing. No bytes may follow the last code, and the last byte must be filled with ones.

    Raises:
        ValueError: a code is invalid or goes beyond its block, codes are missing, restart markers are missing, or the
            brightness of a block is out of range.
    """
    if stream.frame not in (0xC0, 0xC1, 0xC2, 0xC3):
        raise ValueError("arithmetic codes with stray bytes or rare sampling factors; save it again")
    tallest, widest = max(c.down for c in stream.components), max(c.across for c in stream.components)
    side = 1 if stream.frame == 0xC3 else 8
    known: dict[int, bytearray] = {}  # by component: which coefficients are nonzero
    fitting = []
    for scan in stream.scans:
        if len(scan.parts) == 1:
            component = scan.parts[0][0]
            height = math.ceil(stream.height * component.down / tallest)
            width = math.ceil(stream.width * component.across / widest)
            units = math.ceil(height / side) * math.ceil(width / side)
            blocks = [0]
        else:
            units = math.ceil(stream.height / (side * tallest)) * math.ceil(stream.width / (side * widest))
            blocks = [i for i, part in enumerate(scan.parts) for _ in range(part[0].across * part[0].down)]
        parts = _parts(stream.data[scan.start : scan.end])
        expected = -(-units // scan.interval) if scan.interval else 1
        if len(parts) != expected:
            raise ValueError(f"{len(parts)} restart intervals where there should be {expected}")
        symbols, over, coded = Counter[int](), list[bool](), 0
        for number, part in enumerate(parts):
            first = number * scan.interval
            count = min(scan.interval, units - first) if scan.interval else units
            if stream.progressive and scan.first:
                flags = known.setdefault(scan.parts[0][0].name, bytearray(64 * units))
                at = _skip_coefficients(part, scan, flags, first, count, symbols)
                left, coded = _left(part, at, []), coded or _coded(part, at)
            elif stream.progressive and scan.high:
                at = count * len(blocks)
                left, coded = _left(part, at, []), coded or _coded(part, at)
            else:
                runs = not stream.progressive and side == 8
                tables = [(_codes(direct), _codes(run) if runs else None) for _, direct, run in scan.parts]
                left = _skip_units(part, [(*tables[i], i) for i in blocks], count, _largest(stream, scan))
            if left and stream.progressive and scan is not stream.scans[-1]:
                raise ValueError(_OVER)  # cameras pad only the last scan
            last = scan is stream.scans[-1] and number + 1 == len(parts)
            if cut and last and left > part.endswith(b"\xff"):  # the first byte of the end marker may be left
                raise ValueError(_SHORT)
            over += [left > 0] if number + 1 < len(parts) else []
        if any(over) and not all(over):  # an encoder pads all restart intervals or none
            raise ValueError(_OVER)
        optimal = bool(symbols) and _is_optimal(scan.parts[0][2], symbols)
        # Damage in a refinement misplaces all codes after it, so that the table is no longer optimal for many of them.
        if coded and not (coded >= 16 and optimal and scan.high):
            raise ValueError(_OVER)
        if symbols:
            fitting.append(optimal)
    # An encoder without optimal tables has several tables that are not optimal.
    if fitting.count(False) == 1 and len(fitting) > 1:
        raise ValueError(_OVER)


def _parts(data: bytes) -> list[bytes]:
    """Split coded data at restart markers, and remove the zero bytes that are stuffed after 0xFF.

    Raises:
        ValueError: the restart markers are out of order.
    """
    marks = list(re.finditer(rb"\xff+([\xd0-\xd7])", data))
    if any(mark[1][0] != 0xD0 + i % 8 for i, mark in enumerate(marks)):
        raise ValueError("restart markers are missing or out of order")
    starts, ends = [0, *(m.end() for m in marks)], [*(m.start() for m in marks), len(data)]
    return [data[a:b].replace(b"\xff\0", b"\xff") for a, b in zip(starts, ends, strict=True)]


@lru_cache(maxsize=16)
def _codes(table: bytes) -> list[int]:
    """Lookup table of 2^16 entries, by the next 16 bits: symbol * 32 + length of the code, or -1 for invalid codes and
    those of damaged symbols.
    """
    codes: list[int] = []
    lengths = [length for length, count in enumerate(table[:16], 1) for _ in range(count)]
    wrong = _doubtful(table)
    for i, length in enumerate(lengths):
        codes += [-1 if i in wrong else table[16 + i] * 32 + length] * (1 << (16 - length))
    return (codes + [-1] * 65536)[:65536]


def _is_optimal(table: bytes, symbols: Counter[int]) -> bool:
    """Whether a Huffman table is optimal for these counts of symbols, as libjpeg computes it."""
    lengths = dict(zip(table[16:], (n for n, count in enumerate(table[:16], 1) for _ in range(count)), strict=False))
    if lengths.keys() != symbols.keys():
        return False
    longest = max(lengths.values())
    heap = [1, *symbols.values()]  # 1: the code of all ones is reserved
    heapify(heap)
    least = 0
    while len(heap) > 1:
        both = heappop(heap) + heappop(heap)
        least += both
        heappush(heap, both)
    # Codes are limited to 16 bits, which may make the optimal table longer.
    return longest == 16 or sum(lengths[s] * n for s, n in symbols.items()) + longest <= least + 1


def _largest(stream: ParsedJpeg, scan: Scan) -> list[float]:
    """Largest DC values of the components of a scan: eight times half the range of the samples, and a quarter more for
    rounding and for images that were changed without decoding; in units of the quantiser.
    """
    if stream.frame == 0xC3:
        return [math.inf] * len(scan.parts)
    highest = 1.25 * 8 * 2 ** (stream.bits - 1)
    return [(highest / max(1, stream.steps.get(part[0].table, 1)) + 1) / 2**scan.low for part in scan.parts]


def _skip_units(data: bytes, blocks: Blocks, units: int, largest: list[float]) -> int:
    """Number of bytes after the units (MCUs) of a sequential scan, or of the first DC scan of a progressive JPEG.

    Args:
        data: the restart interval.
        blocks: the blocks of a unit.
        units: number of units.
        largest: largest DC value of each component.
    """
    bits, padded, at, sums = 8 * len(data), data + bytes(16), 0, [0] * len(largest)
    for _ in range(units):
        at = _skip_unit(padded, blocks, at, sums)
        if at > bits:
            raise ValueError(_SHORT)
        if any(abs(value) > bound for value, bound in zip(sums, largest, strict=True)):
            raise ValueError(_RANGE)
    return _left(data, at, blocks)


def _left(data: bytes, at: int, blocks: Blocks) -> int:
    """Number of padding bytes after the last code of a restart interval.

    In valid data the last byte is filled with ones and padding may follow. Damaged data may leave codes after the
    expected end. If the damage shifts the codes, the expected end may lie at any bit of a byte, and whole units follow
    up to the real end. If the damage erases bytes, the erased bytes begin before the expected end.

    Args:
        data: the restart interval.
        at: position in bits after the last code.
        blocks: the blocks of a unit; empty if codes after ``at`` cannot be decoded.

    Raises:
        ValueError: codes remain after the expected end, or codes are missing.
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
    if erased or not intact:
        raise ValueError(_OVER)
    if blocks and all(block[0] is blocks[0][0] and block[1] is blocks[0][1] for block in blocks):
        blocks = blocks[:1]  # with equal tables, any block of the unit may come next
    padded = data + bytes(16)
    for start in range(len(blocks)):
        if _ends_with_units(padded, blocks, start, at, bits):
            raise ValueError(_OVER)
    return len(stray)


def _ends_with_units(padded: bytes, blocks: Blocks, start: int, at: int, bits: int) -> bool:
    """Whether ``at`` is followed by the blocks of a unit from ``start`` on, then whole units, up to the last byte."""
    try:
        at = _skip_unit(padded, blocks[start:], at)
        while bits - at >= 8:
            at = _skip_unit(padded, blocks, at)
    except ValueError:
        return False
    filler = (1 << max(bits - at, 0)) - 1
    return at <= bits and padded[(bits - 1) // 8] & filler == filler


def _coded(data: bytes, at: int) -> int:
    """Number of bytes after ``at`` if they may be codes by their values, of which half exceed 127; otherwise 0."""
    stray = data[-(-at // 8) :]
    return len(stray) if len(set(stray)) > 1 and max(stray) > 127 else 0


def _skip_unit(data: bytes, blocks: Blocks, at: int, sums: list[int] | None = None) -> int:
    """Position in bits after the unit (MCU) that begins at ``at``.

    Args:
        data: the restart interval, and some bytes more.
        blocks: the blocks of the unit.
        at: position in bits.
        sums: DC value of each component, to be updated, or None.

    Raises:
        ValueError: a code is invalid or goes beyond its block, or the data end.
    """
    take = int.from_bytes
    for direct, run, component in blocks:
        byte = at >> 3
        code = direct[(take(data[byte : byte + 3]) >> (8 - (at & 7))) & 0xFFFF]
        if code < 0:
            raise ValueError(_NO_CODE)
        size = code >> 5
        at += code & 31
        if size and sums is not None:
            byte = at >> 3
            value = (take(data[byte : byte + 4]) >> (32 - size - (at & 7))) & ((1 << size) - 1)
            sums[component] += value if value >> (size - 1) else value + 1 - (1 << size)
        at += 0 if size == 16 else size
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
    """Position in bits after the blocks of an AC scan of a progressive JPEG, either a first scan or a refinement.

    Args:
        data: the restart interval.
        scan: the scan, of one component.
        flags: 64 entries for each block: whether a coefficient is nonzero; updated.
        first, count: index of the first block and number of blocks of this interval.
        symbols: counts of symbols; updated.
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
    return at

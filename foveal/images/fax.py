"""Check of fax codes (ITU-T T.4 and T.6). Decoders continue after damage and return wrong rows without an error.

Example:
    >>> check_fax(bytes([0b00110101, 0b00110100, 0b10000000]), 2, 1, 8)  # no white, 2 black, 6 white
    Traceback (most recent call last):
    ...
    ValueError: fax data are damaged in row 0
    >>> check_fax(bytes([0b00110101, 0b11111000]), 2, 1, 8)  # no white, 2 black, 6 white
"""

from __future__ import annotations

from functools import cache

# Codes of runs of 0 to 63 pixels, then of 64, 128, ..., 1728; `_LONG` has those of 1792 to 2560 for both colours.
_WHITE = """
00110101 000111 0111 1000 1011 1100 1110 1111 10011 10100 00111 01000 001000 000011 110100 110101 101010 101011 0100111
0001100 0001000 0010111 0000011 0000100 0101000 0101011 0010011 0100100 0011000 00000010 00000011 00011010 00011011
00010010
00010011 00010100 00010101 00010110 00010111 00101000 00101001 00101010 00101011 00101100 00101101 00000100 00000101
00001010 00001011 01010010 01010011 01010100 01010101 00100100 00100101 01011000 01011001 01011010 01011011 01001010
01001011 00110010 00110011 00110100 11011 10010 010111 0110111 00110110 00110111 01100100 01100101 01101000 01100111
011001100 011001101 011010010 011010011 011010100 011010101 011010110 011010111 011011000 011011001 011011010 011011011
010011000 010011001 010011010 011000 010011011
"""
_BLACK = """
0000110111 010 11 10 011 0011 0010 00011 000101 000100 0000100 0000101 0000111 00000100 00000111 000011000 0000010111
0000011000 0000001000 00001100111 00001101000 00001101100 00000110111 00000101000 00000010111 00000011000 000011001010
000011001011 000011001100 000011001101 000001101000 000001101001 000001101010 000001101011 000011010010 000011010011
000011010100 000011010101 000011010110 000011010111 000001101100 000001101101 000011011010 000011011011 000001010100
000001010101 000001010110 000001010111 000001100100 000001100101 000001010010 000001010011 000000100100 000000110111
000000111000 000000100111 000000101000 000001011000 000001011001 000000101011 000000101100 000001011010 000001100110
000001100111 0000001111 000011001000 000011001001 000001011011 000000110011 000000110100 000000110101 0000001101100
0000001101101 0000001001010 0000001001011 0000001001100 0000001001101 0000001110010 0000001110011 0000001110100
0000001110101 0000001110110 0000001110111 0000001010010 0000001010011 0000001010100 0000001010101 0000001011010
0000001011011 0000001100100 0000001100101
"""
_LONG = """
00000001000 00000001100 00000001101 000000010010 000000010011 000000010100 000000010101 000000010110 000000010111
000000011100 000000011101 000000011110 000000011111
"""
_LONGEST = 13  # bits of a code
# Modes of two-dimensional coding: offset of a changing element from the one in the row above, pass, or horizontal.
_PASS, _RUNS = 100, 200
_MODES = {
    "1": 0,
    "011": 1,
    "000011": 2,
    "0000011": 3,
    "010": -1,
    "000010": -2,
    "0000010": -3,
    "0001": _PASS,
    "001": _RUNS,
}


def check_fax(
    data: bytes, compression: int, height: int, width: int, *, options: int = 0, reverse: bool = False
) -> None:
    """Check that the codes of a strip or tile are valid, fill each row exactly, and are complete.

    Args:
        data: the strip or tile.
        compression: TIFF compression: 2 and 32771 for one-dimensional rows, 3 (T.4) for rows with end-of-line codes, 4
            (T.6) for two-dimensional rows.
        height, width: size in pixels.
        options: value of the TIFF tag T4Options; bit 0 allows two-dimensional rows.
        reverse: the first bit of a byte is its least significant one.

    Raises:
        ValueError: a row is damaged; the message has its number.
    """
    if reverse:
        data = data.translate(bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256)))
    bits, at, above = _Bits(data), 0, [width]
    for row in range(height):
        try:
            if compression == 3:
                at = bits.after_mark(at)
                compared = bool(options & 1) and not bits.take(at, 1)
                at += options & 1
            else:
                compared = compression == 4
            at, above = bits.compared(at, above, width) if compared else bits.runs(at, width)
            if at > 8 * len(data):
                raise ValueError
            if compression in (2, 32771):
                unit = 8 if compression == 2 else 16
                at += -at % unit
        except ValueError:
            raise ValueError(f"fax data are damaged in row {row}") from None


@cache
def _table(black: bool) -> list[int]:
    """Lookup table by the next 13 bits: pixels * 16 + length of the code, or -1 for invalid codes."""
    codes = (_BLACK if black else _WHITE).split()
    pixels = [*range(64), *range(64, 1729, 64)]
    pairs = [*zip(codes, pixels, strict=True), *zip(_LONG.split(), range(1792, 2561, 64), strict=True)]
    return _filled(pairs)


@cache
def _modes() -> list[int]:
    return _filled([(code, way + 50) for code, way in _MODES.items()])


def _filled(pairs: list[tuple[str, int]]) -> list[int]:
    table = [-1] * (1 << _LONGEST)
    for code, value in pairs:
        first, count = int(code, 2) << _LONGEST - len(code), 1 << _LONGEST - len(code)
        table[first : first + count] = [value * 16 + len(code)] * count
    return table


class _Bits:
    """Reader of bits, most significant first; zeros follow the end of the data."""

    def __init__(self, data: bytes) -> None:
        self._data, self._end = data + bytes(4), 8 * len(data)

    def take(self, at: int, count: int) -> int:
        byte = at >> 3
        return (int.from_bytes(self._data[byte : byte + 4].ljust(4, b"\0"), "big") >> (32 - count - (at & 7))) & (
            (1 << count) - 1
        )

    def after_mark(self, at: int) -> int:
        """Position after the end-of-line code (at least eleven zeros, then a one); ``at`` if there is none."""
        if self.take(at, 11):
            return at
        while at < self._end and not self.take(at, 1):
            at += 1
        return at + 1

    def _code(self, at: int, table: list[int]) -> tuple[int, int]:
        found = table[self.take(at, _LONGEST)]
        if found < 0:
            raise ValueError
        return at + (found & 15), found >> 4

    def run(self, at: int, black: bool) -> tuple[int, int]:
        pixels = 0
        while True:
            at, part = self._code(at, _table(black))
            pixels += part
            if part < 64:
                return at, pixels

    def runs(self, at: int, width: int) -> tuple[int, list[int]]:
        """Read a one-dimensional row; return the position after it and the columns where its colour changes."""
        changes, x, black = [], 0, False
        while x < width:
            at, pixels = self.run(at, black)
            x, black = x + pixels, not black
            changes.append(x)
        if x > width:
            raise ValueError
        return at, changes

    def compared(self, at: int, above: list[int], width: int) -> tuple[int, list[int]]:
        """Read a two-dimensional row, coded relative to the row above."""
        changes: list[int] = []
        x, black, place = -1, False, 0
        while x < width:
            place = max(0, place - 2)
            while place < len(above) and (above[place] <= x or place % 2 != black):
                place += 1
            first, second = (above[i] if i < len(above) else width for i in (place, place + 1))
            at, way = self._code(at, _modes())
            if (way := way - 50) == _PASS:
                x = second
            elif way == _RUNS:
                at, one = self.run(at, black)
                at, two = self.run(at, not black)
                changes += [max(x, 0) + one, max(x, 0) + one + two]
                x = changes[-1]
            else:
                if first + way < max(x, 0):
                    raise ValueError
                x, black = first + way, not black
                changes.append(x)
        if x > width:
            raise ValueError
        return at, changes

"""The headers of a TIFF without its lists of tile offsets and byte counts.

An image of 17 gigapixels has 360,000 tiles, and reading their lists takes longer than reading the tiles of a look.
`outline` copies the headers into a small TIFF in memory, which tifffile parses. The lists stay in the file, and
`Numbers` reads single entries. The cost of opening is then independent of the size of the image.

Example:
    >>> import numpy as np, tempfile, tifffile
    >>> with tempfile.NamedTemporaryFile(suffix=".tif") as file:
    ...     tifffile.imwrite(file, np.zeros((512, 512), np.uint8), tile=(16, 16))
    ...     small, lists = outline(file.fileno())
    >>> len(small) < 600, [len(offsets) for offsets, _ in lists.values()]
    (True, [1024])
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from foveal.images.reading import OpenFile, read_ahead, read_at, read_up_to, size_of

_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_SIGNED = {6, 8, 9, 17}
_FORMATS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
_OFFSETS, _COUNTS, _CHILDREN, _DESCRIPTION = (324, 273), (325, 279), 330, 270
_ONE = {256, 257, 259, 262, 277, 278, 284, 317, 322, 323}  # required tags that hold one number
_ONE_NOTE = {254, 255, 274, 282, 283, 296}  # tags that hold one number and are dropped if damaged
_PICTURE = {258, 320, 338, 339, 347, 529, 530, 532}  # other tags that are needed to decode the pixels
_DROPPED = {34665, 34853, 34675, 37724}  # EXIF, GPS, colour profile, Photoshop layers
_AHEAD = 4 << 10  # bytes of each header of a list that are read together
_LONGEST = 1 << 22  # longest tag that is copied, in bytes


class Numbers(NamedTuple):
    """A list of integers that stays in the file."""

    position: int
    length: int
    format: str

    def __len__(self) -> int:
        return self.length

    def span(self, index: int) -> tuple[int, int]:
        """Position and length of an entry in the file."""
        size = struct.calcsize(self.format)
        return self.position + index * size, size

    def get(self, descriptor: OpenFile, index: int) -> int:
        size = struct.calcsize(self.format)
        return struct.unpack(self.format, read_at(descriptor, size, self.position + index * size))[0]

    def all(self, descriptor: OpenFile) -> np.ndarray:
        return np.frombuffer(
            read_at(descriptor, self.length * struct.calcsize(self.format), self.position), self.format
        )


@dataclass
class _Header:
    """One image file directory."""

    tags: list[tuple[int, int, int, bytes]] = field(default_factory=list)
    children: list[_Header] = field(default_factory=list)
    lists: dict[int, Numbers] = field(default_factory=dict)
    first_tile: dict[int, tuple[int, int]] = field(default_factory=dict)  # type and position of the first entries
    position: int = 0
    complete_description: bool = True


class _Kind(NamedTuple):
    """Byte order, and the sizes that differ between classic TIFF and BigTIFF."""

    order: str
    big: bool

    @property
    def number(self) -> str:
        return self.order + ("Q" if self.big else "I")

    @property
    def word(self) -> int:
        return 8 if self.big else 4

    @property
    def tag_count(self) -> str:
        return self.order + ("Q" if self.big else "H")

    @property
    def tag_size(self) -> int:
        return 20 if self.big else 12


def outline(descriptor: OpenFile) -> tuple[bytes, dict[int, tuple[Numbers | None, Numbers | None]]]:
    """Copy the headers.

    Args:
        descriptor: the open file.

    Returns:
        A TIFF with every header, but only the first entry of each list of tiles; and by the position of each header in
        it the lists of offsets and of byte counts in the file.

    Raises:
        ValueError: the chain of headers leaves the file or is circular, or a tag that is needed to decode the pixels is
            damaged.
    """
    start = read_up_to(descriptor, 16, 0)
    kind = _Kind("<" if start[:2] == b"II" else ">", start[2:4] in (b"+\0", b"\0+"))
    position = struct.unpack(kind.number, start[8:16] if kind.big else start[4:8])[0]
    headers: list[_Header] = []
    seen: set[int] = set()
    while position:
        header, position = _read(descriptor, kind, position, seen)
        headers.append(header)
    _read_first_entries(descriptor, [h for parent in headers for h in _family(parent)])
    # The description of the first page may define the roles of the pages (OME-TIFF).
    if len(headers) > 1 and not headers[0].complete_description:
        raise ValueError("its description continues past the end of the file")
    return _write(kind, headers)


def _read(descriptor: OpenFile, kind: _Kind, position: int, seen: set[int]) -> tuple[_Header, int]:
    """Read one header; return it and the position of the next one."""
    end = size_of(descriptor)
    if position in seen:
        raise ValueError("the list of its levels runs in a circle")
    seen.add(position)
    head = struct.calcsize(kind.tag_count)
    raw = read_up_to(descriptor, head, position)
    count = struct.unpack(kind.tag_count, raw)[0] if len(raw) == head else 1 << 20
    body = read_up_to(descriptor, min(count, 1 << 16) * kind.tag_size + kind.word, position + head)
    if len(body) < count * kind.tag_size + kind.word:
        raise ValueError("the list of its levels continues past the end of the file")
    if not count:
        raise ValueError("one of its headers is empty")
    header, codes = _Header(), set[int]()
    for at in range(0, count * kind.tag_size, kind.tag_size):
        code, type_ = struct.unpack(kind.order + "HH", body[at : at + 4])
        if code in codes:
            continue  # of repeated tags the first counts, as in libtiff
        codes.add(code)
        number = struct.unpack(kind.number, body[at + 4 : at + 4 + kind.word])[0]
        length = _BYTES.get(type_, 1) * number
        field_at = at + 4 + kind.word
        if length <= kind.word:
            where, value = position + head + field_at, body[field_at : field_at + length]
        else:
            where, value = struct.unpack(kind.number, body[field_at : field_at + kind.word])[0], b""
        if code in _OFFSETS + _COUNTS and type_ in _FORMATS and number:
            if where + length > end:
                raise ValueError("a list of tiles continues past the end of the file")
            header.lists[code] = Numbers(where, number, kind.order + _FORMATS[type_])
            if code in (_OFFSETS[0], _COUNTS[0]):  # of tiles only: strips are few, and tifffile checks their number
                header.first_tile[code] = type_, where
                continue
        wrong = number != 1 or type_ not in _SIGNED | _FORMATS.keys() if code in _ONE else type_ not in _BYTES
        wrong |= length > _LONGEST
        if wrong and code in _ONE | _PICTURE:
            raise ValueError(f"its tag {code} is damaged")
        if code in _DROPPED or length > _LONGEST or (code in _ONE_NOTE and number != 1):
            continue
        value = value or read_up_to(descriptor, length, where)
        if code in _PICTURE and len(value) < length:
            raise ValueError(f"its tag {code} continues past the end of the file")
        header.complete_description &= code != _DESCRIPTION or len(value) == length
        if code == _CHILDREN and type_ in _FORMATS:
            places = struct.unpack(f"{kind.order}{number}{_FORMATS[type_]}", value)
            read_ahead(descriptor, [(place, _AHEAD) for place in places])
            header.children = [_read(descriptor, kind, place, seen)[0] for place in places]
        else:
            header.tags.append((code, type_, number, value))
    return header, struct.unpack(kind.number, body[count * kind.tag_size :][: kind.word])[0]


def _read_first_entries(descriptor: OpenFile, headers: list[_Header]) -> None:
    """Read the first entry of each list of tiles, of a remote file all in one round."""
    read_ahead(descriptor, [(where, _BYTES[type_]) for h in headers for type_, where in h.first_tile.values()])
    for header in headers:
        for code, (type_, where) in header.first_tile.items():
            header.tags.append((code, type_, 1, read_up_to(descriptor, _BYTES[type_], where)))


def _write(kind: _Kind, headers: list[_Header]) -> tuple[bytes, dict[int, tuple[Numbers | None, Numbers | None]]]:
    everyone = [h for parent in headers for h in _family(parent)]
    at = 16
    for header in everyone:
        header.position = at
        tags = len(header.tags) + bool(header.children)
        at += struct.calcsize(kind.tag_count) + tags * kind.tag_size + kind.word
        at += (
            sum(-(-len(value) // 8) * 8 for *_, value in header.tags if len(value) > kind.word)
            + 8 * len(header.children)
            + 8
        )
        at += -at % 8
    magic = (b"II" if kind.order == "<" else b"MM") + struct.pack(kind.order + "H", 43 if kind.big else 42)
    middle = struct.pack(kind.order + "HH", 8, 0) if kind.big else b""
    out = bytearray(at)
    first = magic + middle + struct.pack(kind.number, everyone[0].position if everyone else 0)
    out[: len(first)] = first
    following = {id(h): n.position for h, n in pairwise(headers)}
    for header in everyone:
        _write_header(out, kind, header, following.get(id(header), 0))
    return bytes(out), {h.position: (_list(h, _OFFSETS), _list(h, _COUNTS)) for h in everyone}


def _write_header(out: bytearray, kind: _Kind, header: _Header, following: int) -> None:
    tags = list(header.tags)
    if header.children:
        places = struct.pack(
            f"{kind.order}{len(header.children)}{kind.number[1]}", *(c.position for c in header.children)
        )
        tags.append((_CHILDREN, 16 if kind.big else 4, len(header.children), places))
    tags.sort(key=lambda tag: tag[0])
    body = struct.pack(kind.tag_count, len(tags))
    spare = header.position + len(body) + len(tags) * kind.tag_size + kind.word
    spare += -spare % 8
    for code, type_, number, value in tags:
        body += struct.pack(kind.order + "HH", code, type_) + struct.pack(kind.number, number)
        if len(value) <= kind.word:
            body += value.ljust(kind.word, b"\0")
        else:
            out[spare : spare + len(value)] = value
            body += struct.pack(kind.number, spare)
            spare += -(-len(value) // 8) * 8
    body += struct.pack(kind.number, following)
    out[header.position : header.position + len(body)] = body


def _family(header: _Header) -> list[_Header]:
    return [header, *(member for child in header.children for member in _family(child))]


def _list(header: _Header, codes: tuple[int, int]) -> Numbers | None:
    return next((header.lists[code] for code in codes if code in header.lists), None)

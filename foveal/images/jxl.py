"""JPEG XL by libjxl. An image is decoded whole, once; its size is read from the header before.

Example:
    >>> import imagecodecs, numpy as np, tempfile
    >>> with tempfile.NamedTemporaryFile(suffix=".jxl") as file:
    ...     written = file.write(imagecodecs.jpegxl_encode(np.zeros((30, 40, 3), np.uint8)))
    ...     file.flush()
    ...     read_jxl_size(file.name), decode_jxl(file.name)[0].shape
    ((30, 40), (30, 40, 3))
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np

from foveal.images.pyramid import Stored, without_gaps
from foveal.images.reading import reading

STREAM = b"\xff\x0a"
CONTAINER = b"\0\0\0\x0cJXL \r\n\x87\n"

# Ratio of width to height by its code, ISO/IEC 18181-1 D.2; code 0: the width is stored.
_RATIOS = (None, (1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))


def is_jxl(head: bytes) -> bool:
    """Whether the first bytes of a file are those of a JPEG XL image."""
    return head.startswith((STREAM, CONTAINER))


def read_jxl_size(path: str) -> tuple[int, int]:
    """Stored (height, width); the orientation may exchange them when the image is decoded.

    Raises:
        ImageError: the header is damaged or cut short.
    """
    with reading(path, "the JPEG XL header cannot be read"), Path(path).open("rb") as file:
        start = file.read(32)
        return _size(start if start.startswith(STREAM) else _stream(file))


def _stream(file: BinaryIO) -> bytes:
    """First bytes of the codestream in a container of boxes, each of which has a length, a name and contents."""
    at = len(CONTAINER)
    while True:
        file.seek(at)
        head = file.read(48)
        length, name = struct.unpack_from(">I4s", head)
        content = 8
        if length == 1:
            length, content = struct.unpack_from(">Q", head, 8)[0], 16
        if name in (b"jxlc", b"jxlp"):  # jxlp is a part of the codestream, with a number of four bytes
            return head[content + 4 * (name == b"jxlp") :]
        if length < content:
            raise ValueError("it has no image")
        at += length


def _size(stream: bytes) -> tuple[int, int]:
    """(height, width) from the start of a codestream, whose bits are read least significant first."""
    if not stream.startswith(STREAM):
        raise ValueError("it has no image")
    bits = int.from_bytes(stream[2:16], "little")

    def take(count: int) -> int:
        nonlocal bits
        value, bits = bits & ((1 << count) - 1), bits >> count
        return value

    small = take(1)

    def side() -> int:
        return 8 * (take(5) + 1) if small else take((9, 13, 18, 30)[take(2)]) + 1

    height = side()
    ratio = _RATIOS[take(3)]
    return height, height * ratio[0] // ratio[1] if ratio else side()


def decode_jxl(path: str) -> Stored:
    """(h, w, bands) pixels, and (h, w) float32 alpha or None if all pixels are opaque; the first frame of an animation.

    Raises:
        ImageError: the file is damaged or cut short.
    """
    import imagecodecs

    with reading(path, "cannot be decoded"):
        pixels = imagecodecs.jpegxl_decode(Path(path).read_bytes(), index=0)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if pixels.shape[2] not in (2, 4):
        return without_gaps(pixels, None)
    highest = 1 if pixels.dtype.kind == "f" else np.iinfo(pixels.dtype).max
    alpha = pixels[..., -1].astype(np.float32) / highest
    return without_gaps(pixels[..., :-1], None if alpha.min() == 1 else alpha)

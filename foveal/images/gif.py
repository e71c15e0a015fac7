"""The first picture of a GIF, followed to its last pixel: Pillow leaves black what damage took away.

Example:
    >>> import io
    >>> from PIL import Image
    >>> file = io.BytesIO()
    >>> Image.linear_gradient("L").save(file, "GIF")
    >>> check_gif(file.getvalue())
    >>> check_gif(file.getvalue()[:2000] + bytes(1))
    Traceback (most recent call last):
    ...
    ValueError: the blocks of its pixels are cut short
"""

from __future__ import annotations


def check_gif(data: bytes) -> None:
    """Raise ValueError where bytes before the first picture belong to no block, or its codes do not make all of its
    pixels.
    """

    import imagecodecs

    def colours(flags: int) -> int:
        return 3 << (flags & 7) + 1 if flags & 0x80 else 0

    at = 13 + colours(data[10])
    while data[at] == 0x21:
        at = _blocks(data, at + 2)
    if data[at] != 0x2C:
        raise ValueError("it has bytes that belong to no block")
    end = _blocks(data, at + 11 + colours(data[at + 9]))
    imagecodecs.gif_decode(data[:end] + b";", index=0)  # giflib is strict, but of the other pictures, too


def _blocks(data: bytes, at: int) -> int:
    """Position after blocks that begin at ``at``, of which the last is empty."""
    while at < len(data) and data[at]:
        at += 1 + data[at]
    if at >= len(data):
        raise ValueError("the blocks of its pixels are cut short")
    return at + 1

"""Check of the first frame of a GIF. Pillow fills the pixels of damaged blocks with black without an error.

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
    """Check that the first frame is complete.

    Raises:
        ValueError: bytes before the first frame belong to no block, or the codes do not fill the frame.
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
    imagecodecs.gif_decode(data[:end] + b";", index=0)  # without later frames, which giflib would check too


def _blocks(data: bytes, at: int) -> int:
    """Position after a sequence of sub-blocks that begins at ``at`` and ends with an empty one."""
    while at < len(data) and data[at]:
        at += 1 + data[at]
    if at >= len(data):
        raise ValueError("the blocks of its pixels are cut short")
    return at + 1

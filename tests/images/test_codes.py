"""Distinction of padding in a JPEG from the remainder of damaged data, for every kind of scan."""

import io
import random

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from foveal.images import jpeg
from tests.images.files import photo

KINDS = {
    "progressive": {"progressive": True},
    "progressive, 4:4:4": {"progressive": True, "subsampling": 0, "quality": 92},
    "progressive, grey": {"progressive": True},
    "baseline": {},
    "optimised": {"optimize": True},
    "restarts in a row": {"restart_marker_blocks": 3},
    "a restart each row": {"restart_marker_rows": 1},
}


def _jpeg(kind):
    data = io.BytesIO()
    image = Image.fromarray(photo(120, 104)).convert("L" if "grey" in kind else "RGB")
    image.save(data, "JPEG", **{"quality": 85, **KINDS[kind]})
    return data.getvalue(), "GRAY" if "grey" in kind else "RGB"


def _damaged(data, draw):
    """Change the coded data at one position, with probability 1/2 in the last scan."""
    scans = data.index(b"\xff\xda"), data.rindex(b"\xff\xda")
    changed, at = bytearray(data), draw.randrange(draw.choice(scans) + 12, len(data) - 3)
    count = min(draw.choice((1, 2, 8, 60)), len(data) - 2 - at)
    how = draw.randrange(4)
    if how == 0:
        changed[at] ^= 1 << draw.randrange(8)
    elif how == 1:
        changed[at : at + count] = bytes(count)
    elif how == 2:
        changed[at : at + count] = draw.randbytes(count)
    else:
        del changed[at : at + count]
    return bytes(changed)


@pytest.mark.parametrize("kind", KINDS)
def test_damage_that_leaves_codes_over_is_told_from_stray_bytes(kind):
    data, colours = _jpeg(kind)
    good, tried = simplejpeg.decode_jpeg(data, colours), 0
    for number in range(300):
        damaged = _damaged(data, random.Random(number))
        try:
            simplejpeg.decode_jpeg(damaged, colours, strict=True)
        except ValueError as error:
            if "extraneous" not in str(error):
                continue
            tried += 1
            try:
                pixels = jpeg.decode_jpeg(damaged, colours)
            except ValueError:
                continue
            assert np.array_equal(pixels, good), number
    assert tried > 10


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "stray", [bytes(1), bytes(300), b"\x20" * 7, b"text of a camera", bytes(range(1, 120)), b"\xfe" * 9]
)
def test_stray_bytes_lose_nothing(kind, stray):
    data, colours = _jpeg(kind)
    assert np.array_equal(
        jpeg.decode_jpeg(data[:-2] + stray + data[-2:], colours), simplejpeg.decode_jpeg(data, colours)
    )


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "progressive" in kind])
def test_random_bytes_after_the_last_scan_lose_nothing(kind):
    data, colours = _jpeg(kind)
    good, draw = simplejpeg.decode_jpeg(data, colours), random.Random(kind)
    for count in (16, 60, 300) * 8:
        stray = draw.randbytes(count).replace(b"\xff", b"\x7f")
        assert np.array_equal(jpeg.decode_jpeg(data[:-2] + stray + data[-2:], colours), good)


@pytest.mark.parametrize("kind", ["baseline", "optimised", "progressive"])
def test_damaged_tables_are_told_though_codes_are_left_over(kind):
    """Codes of another table may end early, so that libjpeg reports extraneous bytes only."""
    data, colours = _jpeg(kind)
    good, tried = simplejpeg.decode_jpeg(data, colours), 0
    for number in range(200):
        draw = random.Random(number)
        changed, at = bytearray(data), draw.randrange(22, data.index(b"\xff\xda") - 8)
        if number % 2:
            changed[at : at + 4] = bytes(4)
        else:
            changed[at] ^= 1 << draw.randrange(8)
        try:
            simplejpeg.decode_jpeg(bytes(changed), colours, strict=True)
        except ValueError as error:
            if "extraneous" not in str(error):
                continue
            tried += 1
            try:
                pixels = jpeg.decode_jpeg(bytes(changed), colours)
            except ValueError:
                continue
            assert np.array_equal(pixels, good), number
    assert tried > 2


def test_damaged_symbols_that_are_not_used_lose_nothing():
    data, colours = _jpeg("baseline")
    good, at = simplejpeg.decode_jpeg(data, colours), data.index(b"\xff\xda")
    for last in (b"\1", b"\xfa"):  # the last symbol of the table of chroma, after stray bytes in the header
        damaged = data[: at - 1] + last + b"stray" + data[at:]
        assert np.array_equal(jpeg.decode_jpeg(damaged, colours), good)
    tables = data.index(b"\xff\xc4")
    for stray in (b"", b"stray"):  # libjpeg then uses the standard tables
        assert np.array_equal(jpeg.decode_jpeg(data[:tables] + stray + data[at:], colours), good)


def test_a_lost_scan_of_a_progressive_jpeg_is_told():
    data, colours = _jpeg("progressive")
    headers = [i for i in range(len(data)) if data[i : i + 2] == b"\xff\xda"]
    for at in headers[1:]:
        with pytest.raises(ValueError, match=r"missing|Huffman|left over|no data"):
            jpeg.decode_jpeg(data[:at] + b"\x00\x00" + data[at + 2 :], colours)

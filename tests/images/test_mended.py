"""Damage that decoders ignore, and headers of old files, found by `benchmarks/torture`."""

import os
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from benchmarks.torture.seeds import VARIANTS, picture
from foveal.errors import ImageError
from foveal.images import cache, open_image
from tests.images.files import photo


def _read(path, **options):
    image = open_image(path, **options)
    return image.read(0, (0, 0, *image.size))


def _refused(path, match, **options):
    with pytest.raises(ImageError, match=match) as error:
        _read(path, **options)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


def _written(tmp_path, title):
    return next(v for v in VARIANTS if v.title == title).write(tmp_path)


def _tag(path, code):
    """Position of a tag of the first page of a little-endian classic TIFF."""
    data = path.read_bytes()
    first = struct.unpack("<I", data[4:8])[0]
    count = struct.unpack("<H", data[first : first + 2])[0]
    return next(
        at for at in range(first + 2, first + 2 + 12 * count, 12) if struct.unpack("<H", data[at : at + 2])[0] == code
    )


def _patch(path, at, new):
    data = bytearray(path.read_bytes())
    data[at : at + len(new)] = new
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("code", "at", "new"),
    [
        (262, 0, b"\xff\xff"),
        (258, 0, b"\xff\xff"),
        (258, 2, b"\x03\x20"),  # of a type that does not exist
        (284, 4, b"\2"),
        (284, 8, b"\7"),
        (277, 4, b"\2"),
        (258, 4, b"\2"),
        (258, 8, b"\xff" * 4),
    ],
)
def test_a_header_that_no_longer_says_what_a_pixel_is(tmp_path, code, at, new):
    tifffile.imwrite(tmp_path / "a.tif", photo(64, 64), tile=(32, 32), photometric="rgb", metadata=None)
    _patch(tmp_path / "a.tif", _tag(tmp_path / "a.tif", code) + at, new)
    _refused(tmp_path / "a.tif", r"damaged|contradicts|cannot be read")


@pytest.mark.parametrize(("code", "at", "new"), [(296, 5, b"\1"), (305, 0, b"\0\1"), (282, 8, b"\xff" * 4)])
def test_notes_of_a_tiff_may_be_damaged(tmp_path, code, at, new):
    tifffile.imwrite(tmp_path / "a.tif", photo(64, 64), tile=(32, 32), photometric="rgb", metadata=None)
    _patch(tmp_path / "a.tif", _tag(tmp_path / "a.tif", code) + at, new)
    assert np.array_equal(_read(tmp_path / "a.tif"), photo(64, 64))


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_uncompressed_strips_without_their_lengths(tmp_path, planar):
    """TIFF 4 did not require byte counts; libtiff calculates them."""
    pixels = photo(50, 40)
    data = np.moveaxis(pixels, -1, 0) if planar == "separate" else pixels
    tifffile.imwrite(tmp_path / "a.tif", data, rowsperstrip=16, photometric="rgb", planarconfig=planar, metadata=None)
    _patch(tmp_path / "a.tif", _tag(tmp_path / "a.tif", 279), struct.pack("<H", 65000))
    assert np.array_equal(_read(tmp_path / "a.tif"), pixels)
    if planar == "contig":
        assert np.array_equal(np.asarray(Image.open(tmp_path / "a.tif")), pixels)


def test_pages_whose_description_is_cut_off(tmp_path):
    path = _written(tmp_path, "TIFF OME-TIFF, channels as pages")
    assert _read(path).shape[2] == 3
    path.write_bytes(path.read_bytes()[:-30])
    _refused(path, "description continues past the end")


def test_a_strip_that_does_not_begin_as_a_jpeg(tmp_path):
    path = _written(tmp_path, "TIFF JPEG, strips")
    with tifffile.TiffFile(path) as file:
        at = file.pages[0].dataoffsets[0]
    _patch(path, at, b"\x1f\x13")
    _refused(path, "begin as a JPEG")


@pytest.mark.parametrize("title", ["TIFF fax 3", "TIFF fax 4"])
def test_flipped_bits_of_a_fax_are_told_where_libtiff_tells_them(tmp_path, title):
    """libtiff issues a warning for invalid codes and continues; libvips raises an error."""
    pyvips = pytest.importorskip("pyvips")
    path = _written(tmp_path, title)
    data, told = path.read_bytes(), 0
    good = _read(path)
    with tifffile.TiffFile(path) as file:
        start, length = file.pages[0].dataoffsets[0], file.pages[0].databytecounts[0]
    for number in range(60):
        rng = np.random.default_rng(number)
        damaged = bytearray(data)
        damaged[start + int(rng.integers(length - 4))] ^= 1 << int(rng.integers(8))
        copy = tmp_path / f"{number}.tif"
        copy.write_bytes(damaged)
        try:
            pyvips.Image.new_from_file(str(copy), fail_on="warning").numpy()
        except pyvips.Error:
            told += 1
            try:
                assert np.array_equal(_read(copy), good), number
            except ImageError as error:
                assert "fax data are damaged" in str(error)
    assert told > 10


@pytest.mark.parametrize(
    "damage", [lambda d: d[:700] + b"\x12\x34\x56" + d[700:], lambda d: d[:700] + d[740:], lambda d: d[:-300]]
)
@pytest.mark.parametrize("title", ["rasters JPEG 2000, lossless", "rasters JPEG 2000 codestream"])
def test_jpeg_2000_out_of_place(tmp_path, title, damage):
    pytest.importorskip("rasterio")
    path = _written(tmp_path, title)
    path.write_bytes(damage(path.read_bytes()))
    _refused(path, "cannot be decoded|cannot open|cannot read")


def _bmp(tmp_path, rows, end=b"\0\1"):
    body = b"".join(rows) + end
    head = struct.pack("<IiiHHIIiiII", 40, 6, 3, 1, 8, 1, len(body), 0, 0, 2, 0)
    start = 14 + 40 + 8
    (tmp_path / "a.bmp").write_bytes(
        struct.pack("<2sIHHI", b"BM", start + len(body), 0, 0, start) + head + b"\0\0\0\0\xff\0\0\0" + body
    )
    return tmp_path / "a.bmp"


def test_run_lengths_of_a_bmp(tmp_path):
    row, literal = b"\6\1\0\0", b"\0\4\1\0\1\0\2\1\0\0"
    seen = _read(_bmp(tmp_path, [row, literal, row]))
    assert np.array_equal(seen, np.asarray(Image.open(tmp_path / "a.bmp").convert("RGB"))) and seen.shape == (3, 6, 3)
    jump = b"\2\1\0\2\4\0\0\0"
    assert _read(_bmp(tmp_path, [row, jump, row])).shape == (3, 6, 3)
    for rows, end in (
        ([row, b"\5\1\0\0", row], b"\0\1"),
        ([row, row], b"\0\1"),
        ([row, b"\7\1\0\0", row], b"\0\1"),
        ([row] * 3, b""),
    ):
        _refused(_bmp(tmp_path, rows, end), "run lengths")


def test_a_bmp_with_colours_that_its_palette_lacks(tmp_path):
    path = _written(tmp_path, "BMP palette")
    assert np.array_equal(_read(path), np.asarray(Image.open(path).convert("RGB")))
    _patch(path, len(path.read_bytes()) - 50, b"\xfa")
    _refused(path, "not in its palette")


def test_a_gif_with_bytes_between_its_blocks(tmp_path):
    path = _written(tmp_path, "GIF one picture")
    data = path.read_bytes()
    table = 13 + (3 << (data[10] & 7) + 1)
    path.write_bytes(data[:table] + b"\0\0" + data[table:])
    _refused(path, "no block")


def test_a_png_chunk_whose_name_is_damaged(tmp_path):
    path = _written(tmp_path, "PNG palette, transparent")
    data = path.read_bytes()
    at = data.index(b"tRNS")
    path.write_bytes(data[:at] + b"tRNs" + data[at + 4 :])
    _refused(path, "checksum of its tRNs")
    private = b"prVt" + b"any"
    chunk = struct.pack(">I", 3) + private + struct.pack(">I", zlib.crc32(private))
    path.write_bytes(data[: at - 4] + chunk + data[at - 4 :])
    assert _read(path).shape == (*picture().shape[:2], 3)


def test_a_changed_mask_is_another_pyramid(tmp_path):
    (tmp_path / "a.tif").write_bytes(b"image")
    made = []

    def make(target):
        Path(target).write_bytes(b"pyramid")
        made.append(target)

    for _ in range(2):
        cache.cached(str(tmp_path / "a.tif"), tmp_path / "cache", make, "a test")
    assert len(made) == 1
    (tmp_path / "a.tif.msk").write_bytes(b"mask")
    cache.cached(str(tmp_path / "a.tif"), tmp_path / "cache", make, "a test")
    os.utime(tmp_path / "a.tif.msk", (time.time() + 5,) * 2)
    cache.cached(str(tmp_path / "a.tif"), tmp_path / "cache", make, "a test")
    assert len(made) == 3

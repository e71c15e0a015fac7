"""Damage that decoders ignore, and headers of old files, found by `benchmarks/torture`."""

import os
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
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
        (258, 4, b"\xe4\xe5\xe6\xe7\xe8\xe9\xea\xf2"),
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


def test_jpeg_tiles_of_subsampled_chroma_are_not_rgb(tmp_path):
    path = _written(tmp_path, "TIFF SVS")
    _patch(path, _tag(path, 262) + 8, b"\2\0")
    _refused(path, "of different sizes, which those of RGB are not")


@pytest.mark.parametrize(("orientation", "read"), [(0, True), (88, False)])
def test_orientations_that_do_not_exist(tmp_path, orientation, read):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, picture(), photometric="rgb", extratags=[(274, 3, 1, orientation, True)], metadata=None)
    if read:
        assert np.array_equal(_read(path), picture())
    else:
        _refused(path, "contradictory tags")


def test_jpeg_tiles_without_a_tag_of_their_bits(tmp_path):
    """The default of TIFF is 1 bit."""
    path = _written(tmp_path, "TIFF JPEG, grey tiles")
    _patch(path, _tag(path, 258), b"\0\0\xff")
    _refused(path, "of 8 or 12 bits, where the header has 1")


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


@pytest.mark.parametrize(
    ("find", "at", "new", "match"),
    [
        (b"ihdr", 7, b"\x50", "size in its header"),
        (b"ihdr", 13, b"\x43", "size in its header"),
        (b"ihdr", 14, b"\x0b", "depth in its header"),
        (b"colr", -2, b"\x02", "box of its header"),
        (b"ftyp", 0, b"d", "no file type"),
    ],
)
def test_boxes_of_jpeg_2000_that_describe_pixels(tmp_path, find, at, new, match):
    pytest.importorskip("rasterio")
    path = _written(tmp_path, "rasters JPEG 2000, lossless")
    assert np.array_equal(_read(path), picture())
    _patch(path, path.read_bytes().index(find) + at, new)
    _refused(path, match)


def test_roles_of_channels_of_jpeg_2000(tmp_path):
    pytest.importorskip("rasterio")
    path = tmp_path / "a.jp2"
    Image.fromarray(np.dstack([picture(), np.full(picture().shape[:2], 255, np.uint8)])).save(path)
    assert np.array_equal(_read(path), picture())
    _patch(path, path.read_bytes().index(b"cdef") + 7, b"\x99")
    _refused(path, "roles of its channels")


def test_other_boxes_of_jpeg_2000_do_not_matter(tmp_path):
    pytest.importorskip("rasterio")
    path = _written(tmp_path, "rasters JPEG 2000, lossless")
    data = path.read_bytes()
    at = data.index(b"jp2h") - 4
    path.write_bytes(data[:at] + struct.pack(">I4s", 28, b"xml ") + b"<damaged \xff\0\x01/ no xml" + data[at:])
    assert np.array_equal(_read(path), picture())


@pytest.mark.parametrize("damage", [b"\x17\xff\x90" * 30, b"<OME xmlns=", b"xml of openmicroscopy"])
def test_pages_whose_description_is_damaged(tmp_path, damage):
    """The pages may be channels, of which only the first would be seen."""
    path = _written(tmp_path, "TIFF OME-TIFF, channels as pages")
    with tifffile.TiffFile(path) as file:
        tag = file.pages[0].tags[270]
    _patch(path, tag.valueoffset, (damage + b" " * tag.count)[: tag.count - 1])
    _refused(path, "description, which may define the roles of its pages, is damaged")


def test_pages_whose_description_is_no_xml_any_more(tmp_path):
    """tifffile ignores such a description."""
    path = _written(tmp_path, "TIFF OME-TIFF, channels as pages")
    path.write_bytes(path.read_bytes().replace(b"</Pixels>", b"</Xixels>"))
    _refused(path, "description, which may define the roles of its pages, is damaged")


def test_pages_with_other_descriptions_are_read(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for page in picture().transpose(2, 0, 1):
            writer.write(page, description="sections of a caf\u00e9".encode(), metadata=None)
    assert np.array_equal(_read(tmp_path / "a.tif"), picture()[..., :1])


def test_extra_samples_of_a_kind_that_does_not_exist(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, picture(4), photometric="rgb", extrasamples=[2], tile=(32, 32), metadata=None)
    assert _read(path).shape[2] == 3
    _patch(path, _tag(path, 338) + 9, b"\x10")
    _refused(path, "contradictory")


def test_a_width_of_a_signed_type_is_read(tmp_path):
    path = _written(tmp_path, "TIFF LZW, tiles")
    _patch(path, _tag(path, 256) + 2, b"\x09")
    assert np.array_equal(_read(path), picture())


@pytest.mark.parametrize("kind", [4, 0x7F, 0x10001, 1 << 31])
def test_a_page_is_seen_whatever_its_kind(tmp_path, kind):
    """A lone page is the picture, be it called a mask or a reduced copy."""
    path = _written(tmp_path, "TIFF deflate, planar")
    _patch(path, _tag(path, 254) + 8, struct.pack("<I", kind))
    assert np.array_equal(_read(path), picture())


def test_a_missing_tile_past_the_end(tmp_path):
    path = _written(tmp_path, "TIFF uncompressed, tiles")
    with tifffile.TiffFile(path) as file:
        offsets, counts = file.pages[0].tags[324], file.pages[0].tags[325]
    size = 2 if counts.dtype == 3 else 4
    _patch(path, counts.valueoffset + 2 * size, bytes(size))
    seen = _read(path)
    assert not seen[:32, 64:96].any() and np.array_equal(seen[32:], picture()[32:])
    _patch(path, offsets.valueoffset + 2 * 4, b"\0\0\0\x7f")
    _refused(path, "past the end")


def test_a_palette_that_overlaps_the_pixels(tmp_path):
    path = _written(tmp_path, "BMP palette")
    _patch(path, 46, bytes(4))  # 256 colours
    _refused(path, "palette overlaps")


def test_exif_data_of_a_png_with_a_wrong_checksum_are_ignored(tmp_path, caplog):
    """As libpng and the viewers that use it ignore them: the picture is shown as it is stored."""
    path = _written(tmp_path, "PNG orientation 6 and text")
    with open_image(path) as image:
        assert image.size == picture().shape[1::-1]
    _patch(path, path.read_bytes().index(b"eXIf") + 4, b"X")
    with open_image(path) as image:
        assert image.size == picture().shape[:2]
        assert np.array_equal(image.read(0, (0, 0, *image.size)), picture())
    assert f"{path}: the checksum of its EXIF data is wrong" in caplog.text


def test_damaged_tiles_of_a_leica_slide(tmp_path):
    """OpenSlide does not report the warnings of libjpeg."""
    openslide = pytest.importorskip("openslide")
    path = _written(tmp_path, "slides Leica SCN")
    data, intact, told = path.read_bytes(), _read(path), 0
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        at, length, tables = page.dataoffsets[1], page.databytecounts[1], page.jpegtables
    for number in range(12):
        path.write_bytes(data)
        _patch(path, at + length // 2, np.random.default_rng(number).bytes(16))
        tile = path.read_bytes()[at + 2 : at + length]
        with openslide.OpenSlide(path) as slide:
            try:
                slide.read_region((0, 0), 0, slide.dimensions)
                simplejpeg.decode_jpeg((tables or b"\xff\xd8\xff\xd9")[:-2] + tile, strict=True)
            except openslide.OpenSlideError:
                continue
            except ValueError:
                told += 1
                _refused(path, "tile 1 of level 0 cannot be decoded")
                with open_image(path) as image:  # tiles elsewhere can be read
                    assert np.array_equal(image.read(0, (66, 0, 120, 60)), intact[66:120, :60])
    assert told > 2


def test_a_leica_slide_with_a_damaged_description(tmp_path):
    """OpenSlide then reads it as any TIFF, with other levels."""
    pytest.importorskip("openslide")
    path = _written(tmp_path, "slides Leica SCN")
    _patch(path, path.read_bytes().index(b"collection name") + 17, b"\xb5")
    _refused(path, "no description of a Leica slide")


def test_jpeg_2000_with_a_damaged_signature_or_huge_tiles(tmp_path):
    pytest.importorskip("rasterio")
    path = _written(tmp_path, "rasters JPEG 2000, lossless")
    data = path.read_bytes()
    _patch(path, 11, b"\x02")
    _refused(path, "does not begin as a JPEG 2000 does")
    path.write_bytes(data)
    _patch(path, data.index(b"\xff\x4f\xff\x51") + 24, b"\x02")  # the width of a tile
    _refused(path, "which take .* bytes, more than the limit")

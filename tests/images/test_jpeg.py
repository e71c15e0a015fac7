"""JPEG: warnings of libjpeg are errors if pixels are damaged, and only then."""

import io
import struct

import imagecodecs
import numpy as np
import pytest
import simplejpeg
import tifffile
from PIL import Image, ImageFile

from foveal.errors import ImageError
from foveal.images import jpeg, open_image
from tests.images.files import photo

KINDS = {
    "baseline": {},
    "4:4:4": {"subsampling": 0},
    "4:2:2": {"subsampling": 1},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_rows": 1},
}


def _jpeg(kind="baseline", mode="RGB", size=(120, 104)):
    data = io.BytesIO()
    Image.fromarray(photo(*size, 3)).convert(mode).save(data, "JPEG", quality=85, **KINDS[kind])
    return data.getvalue()


def _as_pillow_reads_it(data, mode, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert(mode))
    return pixels.reshape(*pixels.shape[:2], -1)


def _before(marker, what):
    return lambda data: data.replace(b"\xff" + bytes([marker]), what + b"\xff" + bytes([marker]), 1)


def _patched(find, at, new):
    def change(data):
        at_ = data.index(find) + at
        return data[:at_] + new + data[at_ + len(new) :]

    return change


def _bad_parameters(data):
    at = data.index(b"\xff\xda")
    end = at + 2 + struct.unpack(">H", data[at + 2 : at + 4])[0]
    return data[: end - 3] + bytes(3) + data[end:]


def _unknown_transform(data):
    return data[:2] + b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\x07" + data[20:]


ACCEPTED = {
    "extraneous bytes before marker": [
        lambda data: data[:-2] + bytes(range(1, 60)) + data[-2:],
        lambda data: data[:-2] + b"\x11\x22\x33" + data[-2:],
        lambda data: data[:-2] + bytes(20) + data[-2:],
        _before(0xDB, b"\1\2"),
        _before(0xC4, b"\1\2"),
        _before(0xDA, b"\1\2"),
    ],
    "Premature end of JPEG file": [lambda data: data[:-2], lambda data: data[:-1]],
    "unknown JFIF revision number": [_patched(b"JFIF\0", 5, b"\3")],
    "Unknown Adobe color transform code": [_unknown_transform],
    "Invalid SOS parameters for sequential JPEG": [_bad_parameters],
    "bad ICC marker": [lambda data: data[:2] + b"\xff\xe2\0\x14ICC_PROFILE\0\5\1abcd" + data[2:]],
}


def test_every_harmless_warning_has_an_input():
    assert set(ACCEPTED) == set(jpeg.HARMLESS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("warning", ACCEPTED)
def test_what_loses_no_pixel_is_read(warning, kind, monkeypatch):
    if (warning, kind) == ("Invalid SOS parameters for sequential JPEG", "progressive"):
        pytest.skip("the parameters count there")
    for change in ACCEPTED[warning]:
        for mode, colours in (("RGB", "RGB"), ("L", "GRAY")):
            data = change(_jpeg(kind, mode))
            assert np.array_equal(jpeg.decode_jpeg(data, colours), _as_pillow_reads_it(data, mode, monkeypatch))


def test_bytes_after_the_end_and_filling_bytes_are_read(monkeypatch):
    for kind in KINDS:
        data = _jpeg(kind)
        for changed in (
            data + b"trailer" * 20,
            data + bytes(7),
            data[:-2] + b"\xff" * 7 + data[-2:],
            data[:-2] + b"\x55" + data[-2:],
        ):
            assert np.array_equal(jpeg.decode_jpeg(changed, "RGB"), simplejpeg.decode_jpeg(data))


def test_stray_bytes_in_every_restart_interval_are_read():
    data = _jpeg("restarts")
    start = data.index(b"\xff\xda")
    scan = data[start:-2]
    for number in range(8):
        marker = bytes([0xFF, 0xD0 + number])
        scan = scan.replace(marker, b"\xaa\xbb" + marker)
    assert np.array_equal(jpeg.decode_jpeg(data[:start] + scan + b"\xff\xd9", "RGB"), simplejpeg.decode_jpeg(data))


def _scan(data):
    """Range of the coded data."""
    at = data.index(b"\xff\xda")
    return at + 2 + struct.unpack(">H", data[at + 2 : at + 4])[0], len(data) - 2


def _lost_marker(data):
    at = data.index(b"\xff\xd3", _scan(data)[0])
    return data[:at] + data[at + 2 :]


REFUSED = {
    "cut": lambda data: data[: len(data) * 3 // 4],
    "cut, end marker kept": lambda data: data[: len(data) * 3 // 4] + b"\xff\xd9",
    "a few bytes cut": lambda data: data[:-8] + b"\xff\xd9",
    "second half zeroed": lambda data: (
        data[: sum(_scan(data)) // 2] + bytes(_scan(data)[1] - sum(_scan(data)) // 2) + b"\xff\xd9"
    ),
    "second half and end zeroed": lambda data: data[: sum(_scan(data)) // 2] + bytes(len(data) - sum(_scan(data)) // 2),
    "harmless, then cut": lambda data: _before(0xDB, b"\1\2")(data)[: len(data) * 3 // 4] + b"\xff\xd9",
    "unsupported marker": lambda data: data[: sum(_scan(data)) // 2] + b"\xff\x02" + data[sum(_scan(data)) // 2 :],
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", REFUSED)
def test_what_loses_pixels_is_refused(damage, kind):
    for mode, colours in (("RGB", "RGB"), ("L", "GRAY"), ("CMYK", "RGB")):
        with pytest.raises(ValueError, match=r"\w"):
            jpeg.decode_jpeg(REFUSED[damage](_jpeg(kind, mode)), colours)


def test_lost_and_wrong_restart_markers_are_refused():
    data = _jpeg("restarts")
    at = data.index(b"\xff\xd3")
    for damaged in (
        _lost_marker(data),
        data[: at + 1] + b"\xd5" + data[at + 2 :],
        _before(0xD3, b"\1\2")(_lost_marker(data)),
    ):
        with pytest.raises(ValueError, match="marker"):
            jpeg.decode_jpeg(damaged, "RGB")


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_codes_that_damage_leaves_over_are_not_taken_for_stray_bytes(mode):
    """A flipped bit shifts the codes after it; libjpeg then reports the remainder as extraneous bytes."""
    data, rng, told = _jpeg("baseline", mode), np.random.default_rng(0), 0
    start, end = _scan(data)
    colours = "GRAY" if mode == "L" else "RGB"
    for _ in range(150):
        damaged = bytearray(data)
        damaged[rng.integers(start, end)] ^= 1 << rng.integers(8)
        try:
            simplejpeg.decode_jpeg(bytes(damaged), colours, strict=True)
        except ValueError as error:
            told += "extraneous" in str(error)
            with pytest.raises(ValueError, match=r"\w"):
                jpeg.decode_jpeg(bytes(damaged), colours)
    assert told > 5


def test_a_missing_scan_is_refused():
    data = _jpeg("progressive")
    scans = [i for i in range(len(data)) if data[i : i + 2] == b"\xff\xda"]
    with pytest.raises(ValueError, match="last scans"):
        jpeg.decode_jpeg(data[: data.rindex(b"\xff\xc4")], "RGB")
    with pytest.raises(ValueError, match=r"\w"):
        jpeg.decode_jpeg(data[: scans[2]] + data[scans[3] :], "RGB")


@pytest.mark.parametrize("factors", [(0x22, 0x12, 0x21), (0x41, 0x21, 0x11)])
def test_rare_sampling_factors_are_decoded_and_checked(factors):
    """Images of one colour, coded with the standard tables, in sampling factors that simplejpeg does not support."""
    blocks = [(f >> 4) * (f & 15) for f in factors]
    units = (64 // (8 * (factors[0] >> 4))) * (64 // (8 * (factors[0] & 15)))
    rest = "0000" * sum(blocks[1:])
    first = "100101" + "1010" + "001010" * (blocks[0] - 1)  # the brightness differs once, by 5 steps
    bits = first + rest + ("001010" * blocks[0] + rest) * (units - 1)
    bits += "1" * (-len(bits) % 8)
    codes = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    plain = io.BytesIO()
    Image.new("RGB", (64, 64)).save(plain, "JPEG", quality=90, subsampling=0)
    head = bytearray(plain.getvalue()[: _scan(plain.getvalue())[0]])
    at = head.index(b"\xff\xc0")
    head[at + 11 : at + 20 : 3] = bytes(factors)
    data = bytes(head) + codes + b"\xff\xd9"
    with pytest.raises(ValueError, match="subsampling"):
        simplejpeg.decode_jpeg(data)
    pixels = jpeg.decode_jpeg(data, "RGB")
    assert (
        np.array_equal(pixels, np.asarray(Image.open(io.BytesIO(data))))
        and pixels.std() == 0
        and pixels[0, 0, 0] != 128
    )
    with pytest.raises(ValueError, match="premature"):
        jpeg.decode_jpeg(bytes(head) + codes[: len(codes) // 2] + b"\xff\xd9", "RGB")


def _tiles(pixels, side=64):
    padded = np.pad(pixels, ((0, -pixels.shape[0] % side), (0, -pixels.shape[1] % side), (0, 0)), mode="edge")
    return [
        np.ascontiguousarray(padded[y : y + side, x : x + side])
        for y in range(0, padded.shape[0], side)
        for x in range(0, padded.shape[1], side)
    ]


def _write(path, tiles, shape, meaning, **options):
    """Write a TIFF of encoded tiles; the photometric is set afterwards, because tifffile changes it."""
    with tifffile.TiffWriter(path) as writer:
        writer.write(
            iter(tiles), shape=shape, dtype=np.uint8, tile=(64, 64), compression="jpeg", metadata=None, **options
        )
    with tifffile.TiffFile(path, mode="r+") as file:
        file.pages[0].tags[262].overwrite(meaning)


@pytest.mark.parametrize("marks", ["none", "JFIF", "Adobe"])
def test_the_tiff_says_what_the_components_are(tmp_path, marks):
    """JFIF and Adobe markers of the JPEG are ignored, as in libtiff, OpenSlide, libvips and GDAL."""
    pixels = photo(150, 200)
    for photometric, colours in ((2, "RGB"), (6, "YCBCR")):
        tiles = [
            imagecodecs.jpeg8_encode(t, 95, colorspace="RGB", outcolorspace=colours, subsampling="444")
            for t in _tiles(pixels)
        ]
        bare = [t[:2] + t[2 + 2 + struct.unpack(">H", t[4:6])[0] :] if t[3] in (0xE0, 0xEE) else t for t in tiles]
        note = {
            "none": b"",
            "JFIF": b"\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0",
            "Adobe": b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0",
        }[marks]
        note += bytes([photometric == 2]) if marks == "Adobe" else b""  # the wrong transform
        path = tmp_path / f"{photometric}.tif"
        extra = {"photometric": "ycbcr", "subsampling": (1, 1)}
        _write(path, [t[:2] + note + t[2:] for t in bare], pixels.shape, photometric, **extra)
        seen = open_image(path).read(0, (0, 0, 150, 200))
        assert np.abs(seen.astype(int) - pixels).mean() < 4
        rasterio = pytest.importorskip("rasterio")
        with rasterio.open(path) as file:
            assert np.abs(file.read().transpose(1, 2, 0).astype(int) - seen).max() <= 1


@pytest.mark.parametrize("damage", ["cut, end marker kept", "second half zeroed", "a few bytes cut"])
@pytest.mark.parametrize("kind", ["RGB", "grey", "CMYK", "grey and alpha", "12 bits", "planes"])
def test_damaged_tiles_are_refused_in_every_colour_space(tmp_path, kind, damage):
    shape = {"RGB": 3, "grey": 1, "CMYK": 4, "grey and alpha": 2, "12 bits": 3, "planes": 3}[kind]
    pixels, path = photo(150, 200, shape), tmp_path / "a.tif"
    space = {"RGB": "RGB", "CMYK": "CMYK"}.get(kind)
    options = {
        "RGB": {"photometric": "rgb"},
        "grey": {"photometric": "minisblack"},
        "CMYK": {"photometric": "separated"},
        "grey and alpha": {"photometric": "minisblack", "extrasamples": [2], "planarconfig": "contig"},
    }.get(kind)
    if options is None:
        more = {"compressionargs": {"bitspersample": 12}} if kind == "12 bits" else {"planarconfig": "separate"}
        source = pixels.astype(np.uint16) * 16 if kind == "12 bits" else pixels.transpose(2, 0, 1)
        tifffile.imwrite(path, source, tile=(64, 64), compression="jpeg", photometric="rgb", metadata=None, **more)
    else:
        tiles = [
            imagecodecs.jpeg8_encode(t.squeeze(), 95, colorspace=space, outcolorspace=space) for t in _tiles(pixels)
        ]
        _write(path, tiles, pixels.squeeze().shape, {"RGB": 2, "CMYK": 5}.get(kind, 1), **options)
    image = open_image(path)
    seen = image.read(0, (0, 0, 150, 200))
    if kind != "CMYK":
        expected = pixels.astype(int) * (16 if kind == "12 bits" else 1)
        expected = expected[..., :1] if kind == "grey and alpha" else expected
        assert np.abs(seen.astype(int) - expected).mean() < (60 if kind == "12 bits" else 4)
    data = path.read_bytes()
    page = tifffile.TiffFile(path).pages[0]
    at, count = page.dataoffsets[5], page.databytecounts[5]
    broken = REFUSED[damage](data[at : at + count])
    path.write_bytes(data[:at] + broken + bytes(count - len(broken)) + data[at + count :])
    with pytest.raises(ImageError, match=r"a\.tif: tile 5 of level 0 cannot be decoded"):
        open_image(path).read(0, (0, 0, 150, 200))


@pytest.mark.parametrize("other", ["larger", "smaller", "grey"])
def test_a_tile_of_another_size_or_colour_is_refused(tmp_path, other):
    tiles = [simplejpeg.encode_jpeg(t) for t in _tiles(photo(128, 128))]
    size = {"larger": 80, "smaller": 40, "grey": 64}[other]
    strange = photo(size, size, 1 if other == "grey" else 3)
    tiles[0] = simplejpeg.encode_jpeg(strange, colorspace="GRAY" if other == "grey" else "RGB")
    _write(tmp_path / "a.tif", tiles, (128, 128, 3), 6, photometric="ycbcr", subsampling=(2, 2))
    image = open_image(tmp_path / "a.tif")
    with pytest.raises(ImageError, match="where the header has 64 x 64 pixels with 3 components"):
        image.read(0, (0, 0, 64, 64))
    assert image.read(0, (64, 64, 128, 128)).shape == (64, 64, 3)


def test_tiles_that_end_at_the_edge_of_the_image_are_read(tmp_path):
    pixels = photo(100, 90)
    pieces = [pixels[y : y + 64, x : x + 64] for y in (0, 64) for x in (0, 64)]
    tiles = [simplejpeg.encode_jpeg(np.ascontiguousarray(p), 95) for p in pieces]
    _write(tmp_path / "a.tif", tiles, pixels.shape, 6, photometric="ycbcr", subsampling=(2, 2))
    assert np.abs(open_image(tmp_path / "a.tif").read(0, (0, 0, 100, 90)).astype(int) - pixels).mean() < 4

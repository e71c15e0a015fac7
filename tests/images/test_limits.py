"""Small files with large claimed sizes are refused before memory is allocated, unless the limit is raised."""

import io
import re
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from foveal.errors import ConfigError, ImageError
from foveal.images import ArrayPyramid, open_image, plain
from tests.images.files import photo, write_pyramid


def _sparse(path, side, tile):
    """Write a sparse TIFF without any tiles, in a few hundred bytes."""
    count = (-(-side // tile)) ** 2
    lists = 8 + 2 + 12 * 10 + 4
    tags = [
        (256, 4, 1, side),
        (257, 4, 1, side),
        (258, 3, 1, 8),
        (259, 3, 1, 8),
        (262, 3, 1, 1),
        (277, 3, 1, 1),
        (322, 4, 1, tile),
        (323, 4, 1, tile),
        (324, 4, count, lists),
        (325, 4, count, lists),
    ]
    body = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    path.write_bytes(b"II*\0" + struct.pack("<I", 8) + body + bytes(4 * count))


def _png(path, side):
    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 16, 6, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b""))


def _jpeg(path, side):
    data = io.BytesIO()
    Image.new("RGB", (16, 16)).save(data, "JPEG")
    jpeg = bytearray(data.getvalue())
    at = jpeg.index(b"\xff\xc0")
    jpeg[at + 5 : at + 9] = struct.pack(">HH", side, side)
    path.write_bytes(jpeg)


def _webp(path, _):
    data = io.BytesIO()
    Image.new("RGBA", (16, 16)).save(data, "WEBP", lossless=True)
    webp = bytearray(data.getvalue())
    at = webp.index(b"VP8L") + 9
    webp[at : at + 4] = struct.pack("<I", 0x3FFF | 0x3FFF << 14 | 1 << 28)
    path.write_bytes(webp)


def _bmp(path, side):
    data = io.BytesIO()
    Image.new("RGB", (16, 16)).save(data, "BMP")
    path.write_bytes(data.getvalue()[:18] + struct.pack("<ii", side, side) + data.getvalue()[26:])


def _gif(path, side):
    data = io.BytesIO()
    Image.new("P", (16, 16)).save(data, "GIF")
    path.write_bytes(data.getvalue()[:6] + struct.pack("<HH", side, side) + data.getvalue()[10:])


def _strip(path, side):
    tifffile.imwrite(path, np.zeros((16, 16), np.uint8), rowsperstrip=16, compression="zlib")
    with tifffile.TiffFile(path, mode="r+") as file:
        for code in (256, 257, 278):
            file.pages[0].tags[code].overwrite(side)


BOMBS = {
    "tiles left out": lambda p: _sparse(p, 20_000, 4096),
    "tiles left out, larger": lambda p: _sparse(p, 131_072, 16_384),
    "PNG": lambda p: _png(p, 12_000),
    "JPEG": lambda p: _jpeg(p, 65_000),
    "WebP": lambda p: _webp(p, 16_383),
    "BMP": lambda p: _bmp(p, 30_000),
    "GIF": lambda p: _gif(p, 65_000),
    "PPM": lambda p: p.write_bytes(b"P6 99999 99999 255\n"),
    "one strip": lambda p: _strip(p, 60_000),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_bombs_are_refused_at_once(tmp_path, kind):
    path = tmp_path / "a"
    BOMBS[kind](path)
    assert path.stat().st_size < 3000
    tracemalloc.start()
    try:
        with pytest.raises(ImageError, match=rf"^{re.escape(str(path))}: .*(claims|nothing to see)"):
            image = open_image(path, cache_dir=tmp_path / "cache", max_bytes=1 << 29)
            image.look(np.array([[0, 0, *image.size]], float), (32, 32))
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_a_progressive_jpeg_of_many_scans_is_refused(tmp_path):
    data = io.BytesIO()
    Image.new("RGB", (16, 16)).save(data, "JPEG", progressive=True)
    jpeg = data.getvalue()
    last = jpeg.rindex(b"\xff\xda")
    (tmp_path / "a.jpg").write_bytes(jpeg[:last] + jpeg[last:-2] * 300 + jpeg[-2:])
    with pytest.raises(ImageError, match=r"3\d\d scans"):
        open_image(tmp_path / "a.jpg")


def test_the_limit_is_raised_by_a_variable_or_an_argument(tmp_path, monkeypatch):
    Image.fromarray(photo(100, 100)).save(tmp_path / "a.png")
    for text, told in (("29999", ImageError), ("many", ConfigError), ("-5", ConfigError), ("0", ConfigError)):
        monkeypatch.setenv("FOVEAL_MAX_BYTES", text)
        with pytest.raises(told, match="FOVEAL_MAX_BYTES"):
            open_image(tmp_path / "a.png")
    monkeypatch.setenv("FOVEAL_MAX_BYTES", "10")
    assert open_image(tmp_path / "a.png", max_bytes=30_000).size == (100, 100)
    monkeypatch.setenv("FOVEAL_MAX_BYTES", "30000")
    assert open_image(tmp_path / "a.png").size == (100, 100)


def test_more_bytes_for_each_pixel_count_more(tmp_path):
    for name, pixels, cost in (("8.png", photo(50, 50), 7500), ("rgba.png", photo(50, 50, 4), 10_000)):
        Image.fromarray(pixels).save(tmp_path / name)
        assert open_image(tmp_path / name, max_bytes=cost).size == (50, 50)
        with pytest.raises(ImageError, match=f"take {cost:,} bytes"):
            open_image(tmp_path / name, max_bytes=cost - 1)
    Image.fromarray(photo(50, 50)).save(tmp_path / "p.jpg", progressive=True)
    with pytest.raises(ImageError, match="take 22,500 bytes"):
        open_image(tmp_path / "p.jpg", max_bytes=20_000)


def test_a_look_that_needs_too_much_is_refused(tmp_path):
    """A level above the limit can only be read in parts, for every reader."""
    image = ArrayPyramid(photo(100, 100), max_bytes=3 * 50 * 50)
    assert image.look(np.array([[0, 0, 50, 50.0]]), (10, 10)).shape == (1, 3, 10, 10)
    with pytest.raises(
        ImageError, match=r"a look needs 100 x 100 pixels of level 0, 30,000 bytes, more than the limit of 7,500"
    ):
        image.look(np.array([[0, 0, 100, 100.0]]), (10, 10))
    write_pyramid(tmp_path / "a.tif", photo(256, 256), 3)
    tiled = open_image(tmp_path / "a.tif", max_bytes=100_000)
    assert tiled.look(np.array([[0, 0, 256, 256.0]]), (64, 64)).shape == (1, 3, 64, 64)


def test_large_images_with_alpha_are_kept_as_tiles_sooner(tmp_path, monkeypatch):
    monkeypatch.setattr(plain, "LARGE", 10_000)
    Image.fromarray(photo(90, 90, 4)).save(tmp_path / "a.png")
    Image.fromarray(photo(90, 90)).save(tmp_path / "b.png")
    kinds = [type(open_image(tmp_path / name, cache_dir=tmp_path / "cache")).__name__ for name in ("a.png", "b.png")]
    assert kinds == ["TiffPyramid", "PlainPyramid"]


def test_one_large_strip_is_decoded_once_for_its_conversion(tmp_path, monkeypatch):
    from foveal.images import tiff

    monkeypatch.setattr(plain, "LARGE", 10_000)
    monkeypatch.setattr(tiff, "_KEPT", 1000)
    decoded, real = [], tiff.decode_tile
    monkeypatch.setattr(
        tiff, "decode_tile", lambda level, data, index: decoded.append(level.file) or real(level, data, index)
    )
    pixels = photo(600, 200)
    tifffile.imwrite(tmp_path / "a.tif", pixels, rowsperstrip=600, photometric="rgb", compression="zlib")
    image = open_image(tmp_path / "a.tif", cache_dir=tmp_path / "cache")
    assert np.array_equal(image.read(0, (0, 0, 600, 200)), pixels)
    assert decoded.count(str(tmp_path / "a.tif")) == 1

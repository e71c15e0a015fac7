"""Damaged and invalid files raise an error with the path; they give no wrong pixels and do not hang."""

import os
import struct

import numpy as np
import pytest
import tifffile
import torch

from foveal.errors import FovealError, ImageError
from foveal.images import ImageViews, open_image
from tests.images.files import photo, write_pyramid

WHOLE = np.array([[0, 0, 256, 256]], dtype=float)


@pytest.fixture
def pyramid(tmp_path):
    write_pyramid(tmp_path / "a.tif", photo(256, 256), 3, compression="jpeg", compressionargs={"level": 85})
    return tmp_path / "a.tif"


def _refused(path, boxes=WHOLE, match=None):
    with pytest.raises(ImageError, match=match) as error:
        image = open_image(path)
        for side in (256, 128, 64):
            image.look(boxes, (side, side))
    text = str(error.value)
    assert text.startswith(f"{path}: ") and "\n" not in text and len(text) < 400


def test_missing_empty_folder_and_text(tmp_path):
    _refused(tmp_path / "none.tif", match="no such file")
    _refused(tmp_path, match="folder")
    (tmp_path / "empty.tif").touch()
    _refused(tmp_path / "empty.tif", match="empty")
    (tmp_path / "text.tif").write_text("This is not an image. " * 100)
    _refused(tmp_path / "text.tif", match="known kind")


def test_no_permission(pyramid, monkeypatch):
    if os.geteuid() == 0:  # root may read everything

        def refuse(*_, **__):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("pathlib.Path.open", refuse)
    pyramid.chmod(0)
    with pytest.raises(ImageError, match="permissions"):
        open_image(pyramid)


def test_header_without_an_image(tmp_path):
    (tmp_path / "a.tif").write_bytes(b"II*\0" + bytes(4))
    _refused(tmp_path / "a.tif")
    (tmp_path / "a.tif").write_bytes(b"II*\0\xff\xff\xff\x7f" + bytes(50))
    _refused(tmp_path / "a.tif")


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.9, 0.99])
@pytest.mark.parametrize("compression", [None, "jpeg", "deflate"])
def test_cut_short_anywhere(tmp_path, share, compression):
    """The chain of levels is broken or a tile is past the end; levels must not be dropped without an error."""
    write_pyramid(tmp_path / "a.tif", photo(256, 256), 3, compression=compression)
    data = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "b.tif").write_bytes(data[: int(len(data) * share)])
    _refused(tmp_path / "b.tif")


def test_levels_lost_by_a_broken_chain_are_noticed(pyramid):
    with tifffile.TiffFile(pyramid) as file:
        second = file.pages[1].offset
    data = bytearray(pyramid.read_bytes())
    tags = struct.unpack("<H", data[second : second + 2])[0]
    data[second + 2 + 12 * tags : second + 6 + 12 * tags] = struct.pack("<I", len(data) + 1000)
    pyramid.write_bytes(data)
    _refused(pyramid, match="past the end of the file")


def _tile(path, index=5, level=0):
    with tifffile.TiffFile(path) as file:
        page = file.pages[level]
        return page.dataoffsets[index], page.databytecounts[index]


def _damage(path, how):
    at, length = _tile(path)
    data = bytearray(path.read_bytes())
    if how == "zeroed":
        data[at : at + length] = bytes(length)
    elif how == "half zeroed":
        data[at + length // 2 : at + length] = bytes(length - length // 2)
    elif how == "scrambled":
        data[at : at + length] = np.random.default_rng(0).integers(0, 256, length, dtype=np.uint8).tobytes()
    path.write_bytes(data)


@pytest.mark.parametrize("how", ["zeroed", "half zeroed", "scrambled"])
@pytest.mark.parametrize(
    "options",
    [
        {"compression": "jpeg"},
        {"compression": "jpeg", "photometric": "ycbcr"},
        {"compression": "deflate"},
        {"compression": "lzw"},
        {"compression": "zstd"},
        {"compression": "jpeg2000"},
        {"compression": "lzma"},
        {"compression": "webp", "compressionargs": {"lossless": True}},
    ],
    ids=lambda o: "-".join(str(v) for v in o.values() if isinstance(v, str)),
)
def test_damage_in_a_needed_tile_is_noticed_and_the_rest_stays_readable(tmp_path, options, how):
    if (options["compression"], how) == ("webp", "half zeroed"):
        pytest.skip("libwebp decodes it; the documentation says so")
    path = tmp_path / "a.tif"
    write_pyramid(path, photo(256, 256), 1, **options)
    good = open_image(path).look(np.array([[128, 0, 256, 256]]), (128, 256))
    _damage(path, how)
    image = open_image(path)
    bad = np.array([[64, 64, 128, 128]])
    for _ in range(2):
        with pytest.raises(ImageError, match=r"tile 5 of level 0 cannot be decoded .* copy it again"):
            image.look(bad, (64, 64))
        assert torch.equal(image.look(np.array([[128, 0, 256, 256]]), (128, 256)), good)


def test_damage_reaches_only_its_image(tmp_path):
    for name in "abc":
        write_pyramid(tmp_path / f"{name}.tif", photo(256, 256), 1, compression="jpeg")
    _damage(tmp_path / "b.tif", "half zeroed")
    views = ImageViews([open_image(tmp_path / f"{name}.tif") for name in "abc"])
    seen = views.look(np.arange(3), WHOLE.repeat(3, 0), (64, 64), fill=torch.tensor([0.5, 0.5, 0.5]))
    assert list(views.errors) == [1] and "b.tif" in views.errors[1]
    assert (seen[1] == 0.5).all() and torch.equal(seen[0], seen[2]) and seen[0].std() > 0.05


def _set_tag(path, code, value):
    with tifffile.TiffFile(path, mode="r+") as file:
        file.pages[0].tags[code].overwrite(value)


@pytest.mark.parametrize(
    ("code", "value"), [(256, 0), (257, 0), (322, 1 << 20), (323, 0), (256, 1 << 20), (277, 40), (262, 7)]
)
def test_headers_that_lie(tmp_path, code, value):
    write_pyramid(tmp_path / "a.tif", photo(256, 256), 1)
    _set_tag(tmp_path / "a.tif", code, value)
    _refused(tmp_path / "a.tif")


def test_large_strips_are_bounded(tmp_path, monkeypatch):
    from foveal.images import plain

    monkeypatch.setattr(plain, "LARGE", 100)
    tifffile.imwrite(tmp_path / "a.tif", photo(64, 64), photometric="rgb")
    with pytest.raises(ImageError, match="FOVEAL_MAX_BYTES"):
        open_image(tmp_path / "a.tif", max_bytes=100)


def test_cache_that_cannot_be_written(tmp_path, monkeypatch):
    from foveal.images import plain

    monkeypatch.setattr(plain, "LARGE", 100)
    tifffile.imwrite(tmp_path / "a.tif", photo(64, 64), photometric="rgb")
    (tmp_path / "file").touch()
    with pytest.raises(ImageError, match="FOVEAL_CACHE"):
        open_image(tmp_path / "a.tif", cache_dir=tmp_path / "file" / "cache")


def test_random_bytes_behind_every_magic_number(tmp_path):
    rng = np.random.default_rng(0)
    starts = [
        b"II*\0\x08\0\0\0",
        b"MM\0*",
        b"II+\0\x08\0\0\0",
        b"\xff\xd8\xff\xe0",
        b"\x89PNG\r\n\x1a\n",
        b"RIFF\x10\0\0\0WEBP",
        b"BM",
        b"GIF89a",
        b"P6 ",
    ]
    for i in range(90):
        (tmp_path / "a").write_bytes(
            starts[i % len(starts)] + rng.integers(0, 256, int(rng.integers(0, 300)), dtype=np.uint8).tobytes()
        )
        with pytest.raises(FovealError, match="/a: "):
            open_image(tmp_path / "a").look(WHOLE, (8, 8))


@pytest.mark.parametrize("damage", ["cut in half", "cut by 40 bytes", "second half zeroed"])
@pytest.mark.parametrize(
    "codec",
    ["packbits", "lzw", "deflate", "zstd", "lzma", "lerc", "jpegxl", "png", "jpegxr", "group3", "group4", "ccitt"],
)
def test_data_cut_short_are_refused_whatever_the_codec(tmp_path, codec, damage):
    from PIL import Image

    if (codec, damage) == ("jpegxr", "second half zeroed"):
        pytest.skip("it decodes; the documentation says so")
    path = tmp_path / "a.tif"
    if codec in ("group3", "group4", "ccitt"):
        bits = Image.fromarray(photo(128, 128)).convert("1")
        bits.save(path, compression=f"tiff_{codec}" if codec == "ccitt" else codec)
        expected = np.asarray(bits)[..., None]
    else:
        options = {"compressionargs": {"level": 100}} if codec == "jpegxr" else {}
        options = {"compressionargs": {"lossless": True}} if codec == "jpegxl" else options
        write_pyramid(path, photo(128, 128), 1, compression=codec, **options)
        expected = photo(128, 128)
    seen = open_image(path).read(0, (0, 0, 128, 128))
    assert np.array_equal(seen, expected) or codec == "jpegxr"
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        at, length = page.dataoffsets[0], page.databytecounts[0]
    data = path.read_bytes()
    piece = data[at : at + length]
    kept = piece[: length // 2 if damage != "cut by 40 bytes" else length - 40]
    if damage == "second half zeroed":
        path.write_bytes(data[:at] + kept.ljust(length, b"\0") + data[at + length :])
    else:
        tag = "StripByteCounts" if codec in ("group3", "group4", "ccitt") else "TileByteCounts"
        with tifffile.TiffFile(path, mode="r+") as file:
            counts = list(file.pages[0].databytecounts)
            file.pages[0].tags[tag].overwrite([len(kept), *counts[1:]])
    with pytest.raises(ImageError, match="cannot be decoded"):
        open_image(path).read(0, (0, 0, 128, 128))

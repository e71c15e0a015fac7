"""JPEG, PNG, WebP and other formats without tiles."""

import io
import os
import struct
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image, ImageOps

from foveal.errors import ImageError
from foveal.files import locked
from foveal.images import open_image, plain
from foveal.images.cache import cached
from tests.images.files import photo


def _whole(image):
    return image.read(0, (0, 0, *image.size))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "PPM", "GIF"])
def test_content_counts_not_the_suffix(tmp_path, kind):
    pixels = photo(60, 50)
    Image.fromarray(pixels).save(tmp_path / "image.jpg", kind, **({"lossless": True} if kind == "WEBP" else {}))
    expected = np.asarray(Image.open(tmp_path / "image.jpg").convert("RGB"))
    image = open_image(tmp_path / "image.jpg")
    assert np.array_equal(_whole(image), expected)
    assert image.bytes_read == (tmp_path / "image.jpg").stat().st_size and image.tiles_decoded == 1


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("bands", [1, 3])
def test_jpeg(tmp_path, bands, progressive):
    pixels = photo(61, 50, bands)
    Image.fromarray(pixels.squeeze()).save(tmp_path / "a.jpg", quality=90, progressive=progressive)
    image = open_image(tmp_path / "a.jpg")
    expected = simplejpeg.decode_jpeg((tmp_path / "a.jpg").read_bytes(), "GRAY" if bands == 1 else "RGB")
    assert image.channels == bands and np.array_equal(_whole(image), expected)
    assert open_image(tmp_path / "a.jpg", channels=3).look(np.array([[0, 0, 61, 50]]), (61, 50)).shape == (1, 3, 61, 50)


def test_opening_reads_no_pixels(tmp_path):
    Image.fromarray(photo(60, 50)).save(tmp_path / "a.jpg")
    with open_image(tmp_path / "a.jpg") as image:
        assert image.size == (60, 50) and image.bytes_read == image.tiles_decoded == 0
        image.look(np.array([[0, 0, 8, 8], [9, 9, 20, 20]]), (8, 8))
        image.look(np.array([[0, 0, 8, 8]]), (8, 8))
        assert image.tiles_decoded == 1


def test_cmyk_jpeg_becomes_rgb(tmp_path):
    Image.fromarray(photo(64, 64, 4), "CMYK").save(tmp_path / "a.jpg", quality=95)
    image = open_image(tmp_path / "a.jpg", channels=3)
    expected = np.asarray(Image.open(tmp_path / "a.jpg").convert("RGB")).astype(int)
    assert np.abs(_whole(image).astype(int) - expected).max() <= 3


@pytest.mark.parametrize("bands", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_png_keeps_its_bits_and_alpha_is_not_a_band(tmp_path, dtype, bands):
    pixels = photo(40, 50, bands, dtype)
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(pixels.squeeze()))
    image = open_image(tmp_path / "a.png")
    colours = pixels[..., : 1 if bands < 3 else 3]
    assert image.dtype == dtype and np.array_equal(_whole(image), colours)
    fill = torch.full((colours.shape[2],), 0.4)
    seen = image.look(np.array([[0, 0, 40, 50]]), (40, 50), fill=fill)[0].permute(1, 2, 0).double().numpy()
    top = np.iinfo(dtype).max
    alpha = pixels[..., -1:] / top if bands in (2, 4) else 1
    assert np.abs(seen - (colours / top * alpha + 0.4 * (1 - alpha))).max() < 1e-6


@pytest.mark.parametrize("mode", ["P", "1"])
def test_palette_and_bilevel_png(tmp_path, mode):
    source = Image.fromarray(photo(40, 50)).convert(mode)
    source.save(tmp_path / "a.png")
    image = open_image(tmp_path / "a.png", channels=3)
    seen = image.look(np.array([[0, 0, 40, 50]]), (40, 50))[0].permute(1, 2, 0)
    assert np.allclose(seen.numpy(), np.asarray(source.convert("RGB")) / 255, atol=1e-6)


def test_palette_with_a_transparent_entry(tmp_path):
    source = Image.new("P", (8, 8), 1)
    source.putpalette([255, 0, 0, 0, 255, 0])
    source.putpixel((0, 0), 0)
    source.save(tmp_path / "a.png", transparency=0)
    seen = open_image(tmp_path / "a.png").look(np.array([[0, 0, 8, 8]]), (8, 8), fill=torch.tensor([0.0, 0.0, 0.5]))[0]
    assert seen[:, 0, 0].tolist() == [0, 0, 0.5] and seen[:, 1, 1].tolist() == [0, 1, 0]


def test_interlaced_png(tmp_path):
    pixels = photo(33, 47)
    (tmp_path / "a.png").write_bytes(_interlaced(pixels))
    assert np.array_equal(_whole(open_image(tmp_path / "a.png")), pixels)


def _interlaced(pixels):
    """Write an interlaced PNG (Adam7), which Pillow cannot write."""
    h, w = pixels.shape[:2]
    rows = b""
    for y0, x0, dy, dx in (
        (0, 0, 8, 8),
        (0, 4, 8, 8),
        (4, 0, 8, 4),
        (0, 2, 4, 4),
        (2, 0, 4, 2),
        (0, 1, 2, 2),
        (1, 0, 2, 1),
    ):
        part = pixels[y0::dy, x0::dx]
        rows += b"".join(b"\0" + row.tobytes() for row in part if row.size)
    return _png(w, h, 8, 2, zlib.compress(rows), interlace=1)


def _png(width, height, depth, colour, data, interlace=0):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation(tmp_path, kind, orientation):
    source = Image.fromarray(photo(48, 70))
    exif = Image.Exif()
    exif[0x0112] = orientation
    source.save(tmp_path / "a", kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    with Image.open(tmp_path / "a") as stored:
        expected = np.asarray(ImageOps.exif_transpose(stored)).astype(int)
    image = open_image(tmp_path / "a")
    assert image.metadata["orientation"] == orientation and image.size == expected.shape[:2]
    assert np.abs(_whole(image).astype(int) - expected).max() <= (3 if kind == "JPEG" else 0)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "PPM"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.97])
def test_cut_short(tmp_path, kind, share):
    data = io.BytesIO()
    Image.fromarray(photo(200, 200)).save(data, kind)
    (tmp_path / "a").write_bytes(data.getvalue()[: int(len(data.getvalue()) * share)])
    with pytest.raises(ImageError, match=r"/a: .*; .*copy it again"):
        open_image(tmp_path / "a").look(np.array([[0, 0, 10, 10]]), (8, 8))


def test_decompression_bombs_are_refused_by_their_headers(tmp_path):
    data = io.BytesIO()
    Image.new("RGB", (16, 16)).save(data, "JPEG")
    jpeg = bytearray(data.getvalue())
    at = jpeg.index(b"\xff\xc0")
    jpeg[at + 5 : at + 9] = struct.pack(">HH", 65500, 65500)
    (tmp_path / "bomb.jpg").write_bytes(jpeg)
    (tmp_path / "bomb.png").write_bytes(_png(60000, 60000, 8, 2, zlib.compress(bytes(1000))))
    for name in ("bomb.jpg", "bomb.png"):
        with pytest.raises(ImageError, match=rf"{name}: claims .* FOVEAL_MAX_BYTES"):
            open_image(tmp_path / name)
    Image.new("L", (100, 100)).save(tmp_path / "small.png")
    with pytest.raises(
        ImageError, match=r"convert it to a tiled TIFF with levels, or raise --max-bytes or FOVEAL_MAX_BYTES$"
    ):
        open_image(tmp_path / "small.png", max_bytes=9999)
    assert open_image(tmp_path / "small.png", max_bytes=10000).size == (100, 100)


def test_limits_of_pillow_are_left_alone(tmp_path, monkeypatch, recwarn):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    for kind in ("PNG", "JPEG", "WEBP"):
        Image.fromarray(photo(100, 100)).save(tmp_path / kind, kind)
        assert _whole(open_image(tmp_path / kind)).shape == (100, 100, 3)
    assert Image.MAX_IMAGE_PIXELS == 1000
    assert not [w for w in recwarn if issubclass(w.category, Image.DecompressionBombWarning)]


def test_zero_sized(tmp_path):
    data = io.BytesIO()
    Image.new("RGB", (16, 16)).save(data, "JPEG")
    jpeg = bytearray(data.getvalue())
    at = jpeg.index(b"\xff\xc0")
    jpeg[at + 5 : at + 9] = struct.pack(">HH", 10, 0)
    ppm, png = b"P6\n0 10\n255\n", _png(0, 10, 8, 2, zlib.compress(b""))
    for content in (png, jpeg, ppm):
        (tmp_path / "a").write_bytes(content)
        with pytest.raises(ImageError, match=r"/a: the image is 0 x 10 pixels, with nothing to see; save it again$"):
            open_image(tmp_path / "a")


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_large_is_converted_once_and_said(tmp_path, monkeypatch, caplog, kind):
    monkeypatch.setattr(plain, "LARGE", 10_000)
    source = Image.fromarray(photo(700, 530, 4 if kind == "PNG" else 3))
    exif = Image.Exif()
    exif[0x0112] = 8
    source.save(tmp_path / "a", kind, exif=exif)
    stored = open_image(tmp_path / "a", cache_dir=tmp_path / "cache", max_bytes=10**7)
    assert len(caplog.records) == 1 and "converting it once" in caplog.text
    caplog.clear()
    image = open_image(tmp_path / "a", cache_dir=tmp_path / "cache")
    assert not caplog.records, "the second time it is there"
    monkeypatch.setattr(plain, "LARGE", 10**8)
    direct = open_image(tmp_path / "a")
    assert (
        image.size == direct.size == (530, 700) and len(image.level_sizes) == 3 and stored.path == str(tmp_path / "a")
    )
    fill = torch.tensor([0.2, 0.3, 0.4])
    for box in [(0, 0, 530, 700), (10, 20, 110, 120), (400, 500, 600, 800)]:
        box = np.array([box], dtype=float)
        one, other = image.look(box, (100, 100), fill=fill), direct.look(box, (100, 100), fill=fill)
        assert (one - other).pow(2).mean().sqrt() < 0.01
    if kind == "JPEG":
        assert np.array_equal(_whole(image), _whole(direct))


def test_changed_file_is_converted_again(tmp_path, monkeypatch):
    monkeypatch.setattr(plain, "LARGE", 1000)
    for seed in (0, 1):
        Image.fromarray(photo(64, 64, seed=seed)).save(tmp_path / "a.png")
        os.utime(tmp_path / "a.png", ns=(seed, seed))
        assert np.array_equal(
            _whole(open_image(tmp_path / "a.png", cache_dir=tmp_path / "cache")), photo(64, 64, seed=seed)
        )


def test_what_killed_processes_left_in_the_cache_is_removed(tmp_path):
    (tmp_path / "a").touch()
    place = tmp_path / "cache"
    place.mkdir()
    left, alive, older, new = (
        place / name
        for name in (f".{'0' * 32}.tif.12.unfinished", f".{'1' * 32}.tif.13.unfinished", "tmpab.part", "tmpcd.part")
    )
    for file in (left, alive, older, new):
        file.touch()
    os.utime(older, (0, 0))
    with locked(place / f"{'1' * 32}.lock", "taken"):
        made = Path(cached(str(tmp_path / "a"), place, lambda target: Path(target).write_bytes(b"1"), "test"))
        assert sorted(place.iterdir()) == sorted([made, alive, new, place / f"{'1' * 32}.lock"])


def test_threads_convert_an_image_once(tmp_path):
    (tmp_path / "a").touch()
    made = []

    def make(target):
        made.append(target)
        time.sleep(0.2)
        Path(target).write_bytes(b"1")

    with ThreadPoolExecutor(4) as pool:
        got = {pool.submit(cached, str(tmp_path / "a"), tmp_path / "cache", make, "test") for _ in range(4)}
    assert len({one.result() for one in got}) == 1 and len(made) == 1


def test_cache_is_bounded_and_drops_the_least_recently_used(tmp_path, monkeypatch):
    from foveal.images import cache

    monkeypatch.setattr(cache, "LIMIT", 2500)
    made = []
    for i in range(3):
        (tmp_path / f"{i}").write_text("image")
        made.append(
            Path(
                cached(
                    str(tmp_path / f"{i}"),
                    tmp_path / "cache",
                    lambda target: Path(target).write_bytes(bytes(1000)),
                    "test",
                )
            )
        )
        os.utime(made[-1], (i, i))
    assert [m.exists() for m in made] == [False, True, True]


def test_failed_conversion_leaves_nothing(tmp_path):
    (tmp_path / "a").write_text("image")

    def make(target):
        raise ImageError("a: broken; copy it again")

    with pytest.raises(ImageError, match="broken"):
        cached(str(tmp_path / "a"), tmp_path / "cache", make, "a test")
    assert not list((tmp_path / "cache").iterdir())


@pytest.mark.parametrize("bands", [1, 3])
def test_restart_markers_give_access_to_parts(tmp_path, monkeypatch, bands):
    monkeypatch.setattr(plain, "LARGE", 10_000)
    y, x = np.mgrid[:500, :640]
    smooth = np.stack([np.sin(y / 40) * 100 + 120, np.cos(x / 50) * 100 + 120, (y + x) / 6], -1).astype(np.uint8)[
        ..., :bands
    ]
    options = {"quality": 90, "restart_marker_rows": 1}
    Image.fromarray(smooth.squeeze()).save(tmp_path / "a.jpg", **options)
    image = open_image(tmp_path / "a.jpg", cache_dir=tmp_path / "never")
    assert type(image).__name__ == "RestartJpeg" and not (tmp_path / "never").exists()
    full = simplejpeg.decode_jpeg((tmp_path / "a.jpg").read_bytes(), "GRAY" if bands == 1 else "RGB")
    for box in [(0, 0, 500, 640), (100, 200, 164, 264), (450, 600, 500, 640), (0, 0, 3, 3)]:
        part = image.read(0, box)
        assert np.abs(part.astype(int) - full[box[0] : box[2], box[1] : box[3]]).max() <= (0 if bands == 1 else 11)
    before = image.bytes_read
    image.look(np.array([[96, 200, 160, 264]]), (64, 64))
    assert 0 < image.bytes_read - before < (tmp_path / "a.jpg").stat().st_size / 2
    thumbnail = image.look(np.array([[0, 0, 500, 640]]), (50, 64))[0]
    expected = torch.from_numpy(full.astype(np.float32)).permute(2, 0, 1)[None] / 255
    expected = torch.nn.functional.interpolate(expected, (50, 64), mode="bilinear", antialias=True)[0]
    assert (thumbnail - expected).abs().mean() < 0.02


def test_jpegs_without_usable_restart_markers(tmp_path):
    for options in ({}, {"progressive": True, "restart_marker_rows": 1}):
        Image.fromarray(photo(64, 64)).save(tmp_path / "a.jpg", **options)
        assert plain.find_segments(np.fromfile(tmp_path / "a.jpg", np.uint8)) is None


def test_squashing_is_what_training_on_squashed_images_sees(tmp_path):
    from foveal.data.augmentation import change_pixels, draw_change
    from foveal.images import squash

    Image.fromarray(photo(60, 90)).save(tmp_path / "a.png")
    for shorter_side in (None, 30):
        image = open_image(tmp_path / "a.png", channels=3)
        squashed = squash(image, 32, shorter_side)
        trained = change_pixels(
            draw_change("none", (0, 0, *image.size), None, np.random.default_rng(0), ("bilinear",)),
            image,
            32,
            shorter_side,
        )
        assert squashed.size == (32, 32) and squashed.path.endswith("a.png") and squashed.bytes_read > 0
        torch.testing.assert_close(squashed.look(np.array([[0, 0, 32, 32.0]]), (32, 32))[0], trained, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
@pytest.mark.parametrize("note", ["exif", "xmp"])
def test_orientation_of_other_notes(tmp_path, kind, note):
    source = Image.fromarray(photo(48, 70))
    exif = Image.Exif()
    exif[0x0112] = 6
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    source.save(tmp_path / "a", kind, **({"exif": exif} if note == "exif" else {"xmp": xmp}))
    with Image.open(tmp_path / "a") as stored:
        expected = np.asarray(ImageOps.exif_transpose(stored))
    image = open_image(tmp_path / "a")
    assert image.size == (70, 48) and np.abs(_whole(image).astype(int) - expected).mean() < 3


def _changed_length(data, at, by):
    return data[:at] + struct.pack("<I", struct.unpack("<I", data[at : at + 4])[0] + by) + data[at + 4 :]


@pytest.mark.parametrize("by", [-5000, -20, 40, 100_000])
@pytest.mark.parametrize(("kind", "at"), [("WEBP", 4), ("BMP", 2)])
def test_a_length_that_is_not_that_of_the_file_is_refused(tmp_path, kind, at, by):
    data = io.BytesIO()
    Image.fromarray(photo(100, 100)).save(data, kind)
    (tmp_path / "a").write_bytes(_changed_length(data.getvalue(), at, max(by, -len(data.getvalue()) // 2)))
    if (kind, by) == ("BMP", -20):  # the padding of the last row may be missing
        (tmp_path / "a").write_bytes(_changed_length(data.getvalue(), at, -400))
    with pytest.raises(ImageError, match="it claims"):
        open_image(tmp_path / "a")


def test_lengths_that_harm_nothing_are_accepted(tmp_path):
    for kind, options in (("WEBP", {"lossless": True}), ("BMP", {})):
        data = io.BytesIO()
        Image.fromarray(photo(50, 61)).save(data, kind, **options)
        changed = [data.getvalue() + b"trailing bytes"]
        if kind == "BMP":
            changed.append(data.getvalue()[:2] + bytes(4) + data.getvalue()[6:])
        for content in changed:
            (tmp_path / "a").write_bytes(content)
            assert np.array_equal(_whole(open_image(tmp_path / "a")), photo(50, 61))


@pytest.mark.parametrize("alpha", [0, 255, None])
def test_a_bmp_whose_fourth_byte_is_zero_is_shown(tmp_path, alpha):
    """Alpha of a 32-bit BMP is ignored if it is 0 or 255 everywhere."""
    pixels = photo(20, 30)
    fourth = np.full((20, 30, 1), alpha) if alpha is not None else (photo(20, 30, 1) // 2)
    body = np.concatenate([pixels[..., ::-1], fourth], 2).astype(np.uint8)[::-1].tobytes()
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    head = struct.pack("<IiiHHIIiiII", 108, 30, 20, 1, 32, 3, len(body), 0, 0, 0, 0) + masks + b"BGRs" + bytes(48)
    (tmp_path / "a.bmp").write_bytes(
        b"BM" + struct.pack("<IHHI", 14 + len(head) + len(body), 0, 0, 14 + len(head)) + head + body
    )
    image = open_image(tmp_path / "a.bmp")
    assert np.array_equal(_whole(image), pixels)
    seen = image.look(np.array([[0, 0, 20, 30.0]]), (20, 30), fill=torch.ones(3))[0].permute(1, 2, 0).numpy()
    shown = pixels / 255 if alpha is not None else pixels / 255 * fourth / 255 + (1 - fourth / 255)
    assert np.allclose(seen, shown, atol=1e-6)


@pytest.mark.parametrize(
    "note", [b"\xff\xe1\0\x10Exif\0\0nonsens", b"\xff\xed\0\x08Photo", b"\xff\xe2\0\x10MPF\0nonsense12"]
)
def test_broken_notes_of_a_jpeg_are_no_reason_to_refuse_it(tmp_path, note):
    data = io.BytesIO()
    Image.fromarray(photo(48, 70)).save(data, "JPEG")
    note = note[:2] + struct.pack(">H", len(note) - 2) + note[4:]
    (tmp_path / "a.jpg").write_bytes(data.getvalue()[:2] + note + data.getvalue()[2:])
    assert np.array_equal(_whole(open_image(tmp_path / "a.jpg")), simplejpeg.decode_jpeg(data.getvalue()))

"""Colours of TIFFs and bits of JPEGs, compared with other libraries."""

import io

import imagecodecs
import numpy as np
import pytest
from PIL import Image, ImageCms

from benchmarks.torture.seeds import VARIANTS, picture
from foveal.images import open_image
from foveal.images.colours import from_lab, from_ycbcr


def _read(path):
    image = open_image(path)
    return image, image.read(0, (0, 0, *image.size))


def _written(tmp_path, title):
    return next(v for v in VARIANTS if v.title == title).write(tmp_path)


@pytest.mark.parametrize("name", ["YCbCr, uncompressed", "YCbCr 4:2:0, uncompressed", "YCbCr 4:2:2, LZW"])
def test_ycbcr_without_jpeg_is_as_gdal_shows_it(tmp_path, name):
    rasterio = pytest.importorskip("rasterio")
    path = _written(tmp_path, f"TIFF {name}")
    _, seen = _read(path)
    with rasterio.open(path) as data:
        expected = np.moveaxis(data.read(), 0, -1)[..., :3]
    assert np.abs(seen.astype(int) - expected).max() <= 1
    assert np.abs(seen.astype(int) - picture()).mean() < 5


def test_ycbcr_of_every_kind_of_pixel_is_as_pillow_converts_it():
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    expected = np.asarray(Image.fromarray(pixels, "YCbCr").convert("RGB")).astype(int)
    assert np.abs(from_ycbcr(pixels, ends=(0, 255, 128, 255, 128, 255)) - expected).max() <= 2


def test_cielab_is_as_a_colour_profile_shows_it(tmp_path):
    path = _written(tmp_path, "TIFF CIELAB")
    _, seen = _read(path)
    to_rgb = ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
    difference = np.abs(seen.astype(int) - np.asarray(ImageCms.applyTransform(Image.open(path), to_rgb)))
    assert (
        difference.mean() < 0.6 and np.percentile(difference, 95) <= 3
    )  # colours outside of sRGB are clipped differently
    assert np.abs(seen.astype(int) - picture()).mean() < 0.6


def test_cielab_of_16_bits_and_with_an_offset_is_that_of_8_bits():
    skimage = pytest.importorskip("skimage.color")
    lab = np.array([[[50.0, 20.0, -30.0], [80.0, -40.0, 25.0], [20.0, 5.0, 5.0]]])
    xyz = skimage.lab2xyz(lab, illuminant="D50")
    seen = from_lab(np.rint(lab * [655.35, 256, 256]).astype(np.int64).astype(np.uint16))
    shifted = from_lab(np.rint(lab * [655.35, 256, 256] + [0, 32768, 32768]).astype(np.uint16), offset=True)
    assert np.abs(seen.astype(int) - shifted).max() <= 1
    # Grey stays grey only if the white point is adapted.
    white = from_lab(np.array([[[65535, 0, 0], [32768, 0, 0]]], np.uint16)).astype(int)
    assert np.ptp(white, axis=2).max() < 300 and (xyz > 0).all()


@pytest.mark.parametrize("name", ["12 bits", "12 bits, grey"])
def test_jpeg_of_12_bits_is_as_imagecodecs_and_gdal_read_it(tmp_path, name):
    rasterio = pytest.importorskip("rasterio")
    path = _written(tmp_path, f"JPEG {name}")
    image, seen = _read(path)
    assert image.value_range == (0, 4095) and image.dtype == np.uint16
    assert np.array_equal(seen.squeeze(), imagecodecs.jpeg8_decode(path.read_bytes()))
    with rasterio.open(path) as data:
        assert np.array_equal(seen, np.moveaxis(data.read(), 0, -1))
    path.write_bytes(path.read_bytes()[:-400] + b"\xff\xd9")
    with pytest.raises(Exception, match=r"premature|Huffman"):
        _read(path)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_avif_is_turned_once(tmp_path, orientation):
    """HEIC and AVIF store the orientation in a separate property, which libheif applies."""
    pytest.importorskip("pyvips")
    exif = Image.Exif()
    exif[0x112] = orientation
    data = io.BytesIO()
    Image.fromarray(picture()).save(data, "AVIF", quality=90, exif=exif)
    (tmp_path / "a.avif").write_bytes(data.getvalue())
    upright = Image.Exif()
    upright[0x112] = 1
    with Image.open(tmp_path / "a.avif") as opened:
        from PIL import ImageOps

        expected = np.asarray(ImageOps.exif_transpose(opened))
    image = open_image(tmp_path / "a.avif", cache_dir=tmp_path / "cache")
    seen = image.read(0, (0, 0, *image.size))
    assert seen.shape == expected.shape and np.abs(seen.astype(int) - expected).mean() < 6

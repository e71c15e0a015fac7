"""Readers that need optional packages."""

import sys

import numpy as np
import pytest
import tifffile
import torch

from foveal.errors import ImageError
from foveal.images import open_image, optional
from tests.images.files import photo, write_pyramid


@pytest.mark.parametrize(
    ("name", "head", "module", "extra"),
    [
        ("a.mrxs", b"\xff\xd8\xff\xe0 a thumbnail", "openslide", "openslide"),
        ("a.ndpi", b"II*\0\x08\0\0\0", "openslide", "openslide"),
        ("a.jp2", b"\0\0\0\x0cjP  \r\n\x87\n", "rasterio", "geo"),
        ("a.vrt", b"<VRTDataset>", "rasterio", "geo"),
        ("a.avif", b"\0\0\0\x20ftypavif", "pyvips", "vips"),
        ("a.heic", b"\0\0\0\x20ftypheic", "pyvips", "vips"),
    ],
)
def test_absent_extra_is_named(tmp_path, monkeypatch, name, head, module, extra):
    (tmp_path / name).write_bytes(head + bytes(100))
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImageError, match=rf"{name}: needs {module}.*pip install 'foveal\[{extra}\]'"):
        open_image(tmp_path / name)


@pytest.mark.parametrize(("name", "module"), [("a.mrxs", "openslide"), ("a.jp2", "rasterio"), ("a.avif", "pyvips")])
def test_damaged_files_of_extras(tmp_path, name, module):
    pytest.importorskip(module)
    (tmp_path / name).write_bytes(b"nonsense" * 100)
    with pytest.raises(ImageError, match=name):
        open_image(tmp_path / name, cache_dir=tmp_path / "cache")


def test_openslide_agrees_with_our_own_reader(tmp_path):
    pytest.importorskip("openslide")
    pixels = photo(512, 640)
    with tifffile.TiffWriter(tmp_path / "a.svs") as writer:
        for i, level in enumerate((pixels, pixels[::4, ::4])):
            text = "Aperio Image Library v1\n|AppMag = 20|MPP = 0.5"
            writer.write(
                level,
                tile=(128, 128),
                compression="jpeg",
                photometric="ycbcr",
                subsampling=(1, 1),
                metadata=None,
                subfiletype=int(i > 0),
                description=text,
            )
    slide, own = optional.OpenSlidePyramid(str(tmp_path / "a.svs")), open_image(tmp_path / "a.svs")
    assert slide.level_sizes == own.level_sizes and slide.channels == 3
    for level, box in ((0, (100, 200, 300, 450)), (1, (0, 0, 128, 160))):
        assert np.abs(slide.read(level, box).astype(int) - own.read(level, box)).max() <= 1
    boxes = np.array([[0, 0, 512, 640], [-50, -50, 100, 100]], dtype=float)
    torch.testing.assert_close(slide.look(boxes, (64, 64)), own.look(boxes, (64, 64)), atol=0.01, rtol=0)
    slide.close()
    assert slide.look(boxes, (64, 64)).shape == (2, 3, 64, 64)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_rasterio_agrees_with_our_own_reader(tmp_path, dtype):
    pytest.importorskip("rasterio")
    write_pyramid(tmp_path / "a.tif", photo(256, 300, 3, dtype), 3, compression="deflate")
    raster, own = optional.RasterPyramid(str(tmp_path / "a.tif")), open_image(tmp_path / "a.tif")
    assert raster.level_sizes == own.level_sizes and raster.dtype == dtype
    for level, box in ((0, (10, 20, 200, 300)), (2, (0, 0, 64, 75))):
        assert np.array_equal(raster.read(level, box), own.read(level, box))


def test_vips_converts_in_a_child_once(tmp_path):
    pytest.importorskip("pyvips")
    import imagecodecs

    pixels = photo(90, 60)
    try:
        (tmp_path / "a.avif").write_bytes(imagecodecs.avif_encode(pixels, level=90, speed=10))
    except Exception:
        pytest.skip("no AVIF encoder here")
    image = open_image(tmp_path / "a.avif", cache_dir=tmp_path / "cache")
    assert (
        image.size == (90, 60)
        and image.path.endswith("a.avif")
        and "pyvips" not in sys.modules.get("__main__").__dict__
    )
    assert np.abs(image.read(0, (0, 0, 90, 60)).astype(int) - pixels).mean() < 6
    with pytest.raises(ImageError, match=r"more than the limit of 100\)"):
        open_image(tmp_path / "a.avif", cache_dir=tmp_path / "other", max_bytes=100)

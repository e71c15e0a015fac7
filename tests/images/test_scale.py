"""Pixel size from the metadata of files."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
import torch

from foveal.images import ArrayPyramid, BlankViews, ImageViews, Occluded, TensorViews, Transform, View, open_image
from foveal.images.scale import described

PIXELS = np.zeros((96, 128, 3), np.uint8)


def written(path, **options):
    tifffile.imwrite(path, PIXELS, **{"photometric": "rgb", "metadata": None, **options})
    with open_image(path) as image:
        return image.mpp


def test_plain_tiff_says_its_resolution(tmp_path):
    assert written(tmp_path / "cm.tif", resolution=(20_000, 20_000), resolutionunit="CENTIMETER") == pytest.approx(0.5)
    assert written(
        tmp_path / "inch.tif", resolution=(50_800, 50_800), resolutionunit="INCH", tile=(64, 64)
    ) == pytest.approx(0.5)
    assert written(tmp_path / "uneven.tif", resolution=(20_000, 5_000), resolutionunit="CENTIMETER") == pytest.approx(
        1.0
    )


@pytest.mark.parametrize(
    "resolution, unit", [(72, "INCH"), (300, "INCH"), (1200, "INCH"), (28.35, "CENTIMETER"), (1, "NONE"), (2.0, "NONE")]
)
def test_a_resolution_for_printing_is_no_size_of_pixels(tmp_path, resolution, unit):
    assert written(tmp_path / "a.tif", resolution=(resolution, resolution), resolutionunit=unit) is None


def test_nothing_said(tmp_path):
    assert written(tmp_path / "a.tif") is None
    assert ArrayPyramid(PIXELS).mpp is None


@pytest.mark.parametrize(
    "description, mpp",
    [
        ("Aperio Image Library v1\n|AppMag = 20|MPP = 0.499", 0.499),
        ("Aperio Image Library v1|MPP = 0.2.5", None),
        ("Aperio Image Library v1|MPP = 0", None),
        ('<Image><Pixels SizeX="9" PhysicalSizeX="0.5" PhysicalSizeY="0.5"><Channel/></Pixels></Image>', 0.5),
        ('<ome:Pixels PhysicalSizeX="250" PhysicalSizeXUnit="nm" PhysicalSizeY="1" PhysicalSizeYUnit="\u00b5m">', 0.5),
        ('<Pixels PhysicalSizeX="2" PhysicalSizeXUnit="mm">', 2000),
        ('<Pixels PhysicalSizeX="2" PhysicalSizeXUnit="&#181;m" PhysicalSizeY="two">', 2),
        ('<Pixels PhysicalSizeX="2" PhysicalSizeXUnit="pixel">', None),
        ('<Pixels SizeX="9">', None),
        ("ImageJ=1.54f\nimages=1\nunit=micron\nloop=false", 0.25),
        ("ImageJ=1.54f\nunit=\\u00B5m\n", 0.25),
        ("ImageJ=1.54f\nunit=inch\n", 6350),
        ("ImageJ=1.54f\nunit=pixel\n", None),
        ("ImageJ=1.54f\n", None),
        ("a photograph", None),
    ],
)
def test_descriptions(description, mpp):
    assert described(description, [4.0, 4.0]) == (None if mpp is None else pytest.approx(mpp))


def test_files_of_tifffile(tmp_path):
    size = {
        "PhysicalSizeX": 0.25,
        "PhysicalSizeXUnit": "\u00b5m",
        "PhysicalSizeY": 0.25,
        "PhysicalSizeYUnit": "\u00b5m",
    }
    assert written(tmp_path / "a.ome.tif", metadata={"axes": "YXS", **size}, tile=(64, 64)) == pytest.approx(0.25)
    tifffile.imwrite(tmp_path / "ij.tif", PIXELS[..., 0], imagej=True, resolution=(2.0, 2.0), metadata={"unit": "um"})
    with open_image(tmp_path / "ij.tif") as image:
        assert image.mpp == pytest.approx(0.5)
    # The image can be read with an invalid number.
    assert written(tmp_path / "a.svs", description="Aperio Image Library v1|MPP = 0.4.9", tile=(64, 64)) is None


@pytest.mark.parametrize(
    "epsg, unit, expected",
    [
        (32618, "metre", 10e6),
        (2263, "US survey foot", 10e6 * 1200 / 3937),
        (4326, "degree", None),
        (3857, "metre", None),
    ],
)
def test_rasters_say_their_size_on_the_ground(tmp_path, epsg, unit, expected):
    rasterio = pytest.importorskip("rasterio")
    from foveal.images.optional import RasterPyramid

    profile = {
        "driver": "GTiff",
        "height": 96,
        "width": 128,
        "count": 3,
        "dtype": "uint8",
        "tiled": True,
        "blockxsize": 64,
        "blockysize": 64,
    }
    transform = rasterio.transform.from_origin(500_000, 4_000_000, 10, 10)
    with rasterio.open(tmp_path / "a.tif", "w", crs=f"EPSG:{epsg}", transform=transform, **profile) as file:
        file.write(PIXELS.transpose(2, 0, 1))
    with open_image(tmp_path / "a.tif") as ours, RasterPyramid(str(tmp_path / "a.tif")) as theirs:
        for image in (ours, theirs):
            assert image.mpp == (None if expected is None else pytest.approx(expected))


def test_a_turned_raster(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    transform = rasterio.Affine(6, 8, 5e5, 8, -6, 4e6)  # turned, with pixels of 10 m
    with rasterio.open(
        tmp_path / "a.tif",
        "w",
        driver="GTiff",
        height=96,
        width=128,
        count=3,
        dtype="uint8",
        crs="EPSG:32618",
        transform=transform,
    ) as file:
        file.write(PIXELS.transpose(2, 0, 1))
    with open_image(tmp_path / "a.tif") as image:
        assert image.mpp == pytest.approx(10e6)


def test_views_have_the_scale_of_what_they_show():
    image = ArrayPyramid(PIXELS, path="a.tif", metadata={"mpp": 0.5})
    changed = View(image, Transform.identity(image.size).crop((0, 0, 48, 64)).resize((96, 128)).flip().rotate(10))
    views = ImageViews([image, changed, ArrayPyramid(PIXELS)])
    assert views.mpp[:2].tolist() == pytest.approx([0.5, 0.25]) and np.isnan(views.mpp[2])
    assert views.name(0) == "a.tif"
    hidden = Occluded(views, np.full((3, 1, 4), np.nan))
    assert hidden.mpp[:2].tolist() == pytest.approx([0.5, 0.25]) and hidden.name(0) == "a.tif"
    assert BlankViews(2, (8, 8), mpp=2.0).mpp.tolist() == [2, 2]
    assert np.isnan(TensorViews(torch.zeros(2, 3, 8, 8)).mpp).all() and np.isnan(BlankViews(1, (8, 8)).mpp).all()

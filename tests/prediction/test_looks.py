"""What rows tell about images and looks: contributions, scale and coordinates, of files that other programs wrote."""

import math

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from foveal.classification import Classification, Glimpses
from foveal.images import ArrayPyramid, open_image
from foveal.models import create_classifier
from foveal.prediction import describe_image, describe_looks, explained_class, predict
from foveal.tasks import TASKS

rasterio = pytest.importorskip("rasterio")
from rasterio.shutil import copy  # noqa: E402

Affine = rasterio.Affine
UPRIGHT = Affine(10, 0, 5e5, 0, -10, 6e6)
TRANSFORMS = {
    "north up": UPRIGHT,
    "south up": Affine(10, 0, 5e5, 0, 10, 6e6),
    "rotated": Affine.translation(5e5, 6e6) @ Affine.rotation(30) @ Affine.scale(10, -10),
}


def write_raster(path, transform, crs="EPSG:32633", size=(64, 48), **more):
    profile = {"driver": "GTiff", "height": size[0], "width": size[1], "count": 3, "dtype": "uint8", "tiled": True}
    with rasterio.open(
        path, "w", **profile, blockxsize=16, blockysize=16, crs=crs, transform=transform, **more
    ) as file:
        file.write(np.random.default_rng(0).integers(0, 256, (3, *size), dtype=np.uint8))
    return path


def one_look(image, box, **more):
    """A classification with one look at a box of an image."""
    one = np.array([1])
    looks = Glimpses(one - 1, np.array([box], float), np.array([8, 8]), one, -one, torch.ones(1))
    return Classification(torch.tensor([0.25, 1.5, -1.0]), looks, **more)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_the_transform_of_a_raster_is_that_of_gdal(tmp_path, name):
    with open_image(write_raster(tmp_path / "a.tif", TRANSFORMS[name])) as image:
        told = describe_image(image)
        (look,) = describe_looks(one_look(image, (16, 8, 32, 40)), image)
    assert told["crs"] == "EPSG:32633" and told["size"] == [64, 48]
    assert told["transform"] == pytest.approx(list(TRANSFORMS[name])[:6])
    ways = [TRANSFORMS[name] @ point for point in ((8, 16), (40, 16), (40, 32), (8, 32))]  # (column, row)
    assert np.allclose(look["corners"], ways, rtol=0, atol=1e-6)
    assert look["box_um"] is None and look["mpp"] == pytest.approx(10e6 * math.sqrt(16 / 8 * 32 / 8))


def test_pixels_that_are_points_are_half_a_pixel_off(tmp_path):
    path = write_raster(tmp_path / "a.tif", UPRIGHT)
    with rasterio.open(path, "r+") as file:
        file.update_tags(AREA_OR_POINT="Point")
    with rasterio.open(path) as file, open_image(path) as image:
        assert image.info.transform == pytest.approx(list(file.transform)[:6])
        stored = [image.metadata["geo"][key] for key in ("GTRasterTypeGeoKey", "ModelTiepoint")]
    assert stored[0] == 2 and stored[1][3] == 5e5 + 5


def test_a_system_without_a_code_is_read_by_gdal_and_one_that_is_missing_is_none(tmp_path):
    odd = "+proj=laea +lat_0=10 +lon_0=20"
    with open_image(write_raster(tmp_path / "a.tif", UPRIGHT, crs=odd)) as image:
        assert rasterio.crs.CRS.from_user_input(image.info.crs) == rasterio.crs.CRS.from_user_input(odd)
        assert image.info.transform == pytest.approx(list(UPRIGHT)[:6])
    with open_image(write_raster(tmp_path / "b.tif", UPRIGHT, crs=None)) as image:
        assert (image.info.crs, image.info.transform) == (None, None)
    vrt = tmp_path / "c.vrt"
    copy(write_raster(tmp_path / "d.tif", TRANSFORMS["rotated"]), vrt, driver="VRT")
    with open_image(vrt) as image:
        assert image.info.crs == "EPSG:32633"
        assert image.info.transform == pytest.approx(list(TRANSFORMS["rotated"])[:6])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_point_of_a_turned_raster_keeps_its_coordinates(orientation):
    """A marked pixel is found in the turned image, and its centre has the coordinates of the stored pixel."""
    stored = np.zeros((4, 6, 1), np.uint8)
    stored[1, 4] = 255
    tags = {"ProjectedCSTypeGeoKey": 32633, "ModelPixelScale": (10, 10, 0), "ModelTiepoint": (0, 0, 0, 5e5, 6e6, 0)}
    image = ArrayPyramid(stored, orientation=orientation, metadata={"geo": tags})
    seen = image.look(np.array([[0, 0, *image.size]], float), image.size)[0, 0]
    ((y, x),) = seen.nonzero().tolist()
    assert image.info.on_ground(y + 0.5, x + 0.5) == (5e5 + 45, 6e6 - 15)


def test_slides_have_boxes_in_micrometres(tmp_path):
    tifffile.imwrite(
        tmp_path / "a.tif",
        np.zeros((64, 48, 3), np.uint8),
        tile=(16, 16),
        resolution=(2e4, 2e4),
        resolutionunit="CENTIMETER",
    )
    with open_image(tmp_path / "a.tif") as image:
        (look,) = describe_looks(one_look(image, (-8, 0, 32, 16)), image)
    assert look["box_um"] == pytest.approx([-4, 0, 16, 8]) and look["corners"] is None
    assert look["mpp"] == pytest.approx(0.5 * math.sqrt(40 / 8 * 16 / 8))


def test_the_only_look_contributes_the_logit_of_the_class_that_is_told():
    image = ArrayPyramid(np.zeros((8, 8, 3), np.uint8))
    assert describe_looks(one_look(image, (0, 0, 8, 8)), image)[0]["contribution"] == 1.5
    labels = one_look(image, (0, 0, 8, 8), task=TASKS["multilabel"].with_thresholds([(1, 0.9), (0, 0.1), (2, 0.1)]))
    assert labels.predicted == (0, 2) and explained_class(labels) == 0  # the most probable label is not predicted
    none = one_look(image, (0, 0, 8, 8), task=TASKS["multilabel"].with_thresholds([(i, 0.99) for i in range(3)]))
    assert none.predicted == () and explained_class(none) == 1


def test_looks_at_an_image_that_was_resized_first_are_in_pixels_of_the_file(tmp_path):
    Image.fromarray(np.zeros((60, 90, 3), np.uint8)).save(tmp_path / "a.png")
    dense = create_classifier("test_resnet", num_classes=3, image_size=32)
    dense.image_size = 32  # of the data
    (row,) = predict(dense, tmp_path / "a.png", device="cpu").rows
    assert row["size"] == [60, 90] and [look["box"] for look in row["glimpses"]] == [[0, 0, 60, 90]]
    assert row["glimpses"][0]["contribution"] is not None

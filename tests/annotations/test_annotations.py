"""Files of looks, read back by GDAL, checked against a schema, and against points whose coordinates are known."""

import json
import math
import struct
from itertools import pairwise
from pathlib import Path

import jsonschema_rs
import numpy as np
import pytest
import torch
from PIL import Image

from foveal.annotations import (
    HeatmapFolder,
    LooksFolder,
    as_geojson,
    as_qupath,
    file_stem,
    write_heatmap,
    write_looks,
)
from foveal.errors import ConfigError, StorageError
from foveal.glimpse.tnet import TNet
from foveal.prediction import predict
from foveal.prediction.output import read_rows
from foveal.prediction.rows import SCHEMA, failed_row

rasterio = pytest.importorskip("rasterio")
warp = pytest.importorskip("rasterio.warp")
raw = pytest.importorskip("pyogrio.raw")
Affine = rasterio.Affine
R = 6378137.0  # of Web Mercator, whose inverse is a closed form

POSITION = {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 3}
RING = {"type": "array", "items": POSITION, "minItems": 4}
GEOMETRY = {
    "oneOf": [
        {"type": "null"},
        *(
            {
                "type": "object",
                "required": ["type", "coordinates"],
                "properties": {"type": {"const": kind}, "coordinates": coordinates},
            }
            for kind, coordinates in (
                ("Polygon", {"type": "array", "items": RING}),
                ("MultiPolygon", {"type": "array", "items": {"type": "array", "items": RING}}),
            )
        ),
    ]
}
RFC_7946 = {
    "type": "object",
    "required": ["type", "features"],
    "not": {"anyOf": [{"required": [key]} for key in ("coordinates", "geometry", "properties", "crs")]},  # section 7.1
    "properties": {
        "type": {"const": "FeatureCollection"},
        "features": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["type", "geometry", "properties"],
                "not": {"anyOf": [{"required": [key]} for key in ("coordinates", "features")]},
                "properties": {
                    "type": {"const": "Feature"},
                    "id": {"type": ["string", "number"]},
                    "geometry": GEOMETRY,
                    "properties": {"type": ["object", "null"]},
                },
            },
        },
    },
}
COLOUR = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 255}, "minItems": 3, "maxItems": 3}
QUPATH = {
    "type": "object",
    "required": ["objectType", "classification", "measurements"],
    "properties": {
        "objectType": {"const": "annotation"},
        "name": {"type": "string"},
        "classification": {
            "type": "object",
            "required": ["name", "color"],
            "properties": {"name": {"type": "string"}, "color": COLOUR},
        },
        "measurements": {"type": "object", "additionalProperties": {"type": "number"}},
    },
}
"""What QuPath's ``QuPathTypeAdapters`` reads of ``properties``."""


def a_look(box, level=2, contribution=0.5, size=(16, 16)):
    parent = None if level == 1 else 0
    return {
        "box": list(map(float, box)),
        "size": list(size),
        "level": level,
        "parent": parent,
        "probability": 0.25 if level > 1 else 1.0,
        "contribution": contribution,
        "mpp": None,
    }


def a_row(*looks, size=(64, 48), crs=None, transform=None, bounds=None, mpp=None, path="scans/a.tif"):
    about = {"size": list(size), "crs": crs, "transform": None if transform is None else list(transform)[:6]}
    about |= {"bounds": bounds, "mpp": mpp, "error": None, "schema": SCHEMA}
    return {"path": path, "label": "crack", "probability": 0.75, "glimpses": list(looks), **about}


def check(collection):
    """Section 3 of the RFC, and rings that are closed and counterclockwise (3.1.6) inside the range of degrees."""
    jsonschema_rs.validate(RFC_7946, collection)
    for feature in collection["features"]:
        shape = feature["geometry"] or {"type": "MultiPolygon", "coordinates": []}
        for polygon in [shape["coordinates"]] if shape["type"] == "Polygon" else shape["coordinates"]:
            (ring,) = polygon
            assert ring[0] == ring[-1] and area(ring) > 0
            assert all(-180 <= x <= 180 and -90 <= y <= 90 for x, y in ring)


def area(ring):
    return sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in pairwise(ring)) / 2


def corners_of(wkb):
    """The points of a polygon in well-known binary, without the last one."""
    order, kind, rings, points = struct.unpack("<BIII", wkb[:13])
    assert (order, kind, rings) == (1, 3, 1)
    return np.frombuffer(wkb[13:]).reshape(points, 2)[:-1]


def test_qupath_gets_pixels_inside_the_image(tmp_path):
    row = a_row(a_look((-8, 0, 72, 48), 1, -0.25), a_look((16, 8, 32, 40)), a_look((80, 0, 90, 10)))
    collection = json.loads(write_looks(row, tmp_path / "a.geojson").read_text())
    jsonschema_rs.validate(RFC_7946, collection)
    first, second = collection["features"]
    for feature in (first, second):
        jsonschema_rs.validate(QUPATH, feature["properties"])
    assert first["geometry"]["coordinates"] == [[[0, 0], [48, 0], [48, 64], [0, 64], [0, 0]]]
    assert second["geometry"]["coordinates"] == [[[8, 16], [40, 16], [40, 32], [8, 32], [8, 16]]]
    assert second["properties"]["measurements"] == {"Probability": 0.25, "Contribution": 0.5, "Level": 2, "Parent": 0}
    assert first["properties"]["measurements"] == {"Probability": 1, "Contribution": -0.25, "Level": 1}
    assert second["properties"]["name"] == "look 1" and first["id"] != second["id"]
    assert as_qupath(row) == collection
    # GDAL reads it as a table of polygons.
    _, _, shapes, _ = raw.read(tmp_path / "a.geojson")
    assert corners_of(shapes[1]).tolist() == [[8, 16], [40, 16], [40, 32], [8, 32]]


def test_slides_whose_scanned_part_is_smaller_begin_at_its_corner():
    row = a_row(a_look((0, 0, 64, 48), 1), a_look((16, 8, 32, 40)), bounds=[10, 6, 60, 46])
    first, second = (feature["geometry"]["coordinates"][0] for feature in as_qupath(row)["features"])
    assert first == [[0, 0], [40, 0], [40, 50], [0, 50], [0, 0]]
    assert second[0] == [2, 6] and second[2] == [34, 22]


def mercator(lon, lat):
    return R * math.radians(lon), R * math.log(math.tan(math.pi / 4 + math.radians(lat) / 2))


X, Y = mercator(10, 50)
PLACED = {
    "north up": Affine(100, 0, X, 0, -100, Y),
    "south up": Affine(100, 0, X, 0, 100, Y),
    "rotated": Affine.translation(X, Y) @ Affine.rotation(30) @ Affine.scale(100, -100),
    "mirrored": Affine(-100, 0, X, 0, -100, Y),
}


@pytest.mark.parametrize("name", PLACED)
def test_rasters_have_a_geopackage_and_geojson_with_known_points(tmp_path, name):
    row = a_row(a_look((0, 0, 64, 48), 1, None), a_look((16, 8, 32, 40)), crs="EPSG:3857", transform=PLACED[name])
    ground = np.array([PLACED[name] @ point for point in ((8, 16), (40, 16), (40, 32), (8, 32))])  # (column, row)
    for file in (tmp_path / "a.gpkg", tmp_path / "a.geojson"):
        write_looks(row, file)
        meta, _, shapes, values = raw.read(file)
        fields = dict(zip(meta["fields"], values, strict=True))
        if file.suffix == ".gpkg":
            assert meta["crs"] == "EPSG:3857"
            assert corners_of(shapes[1]) == pytest.approx(ground, abs=1e-6)
        else:
            assert meta["crs"] == "EPSG:4326"
            want = {(math.degrees(x / R), math.degrees(math.atan(math.sinh(y / R)))) for x, y in ground}
            found = {tuple(point) for point in corners_of(shapes[1]).tolist()}
            assert np.allclose(sorted(found), sorted(want), rtol=0, atol=1e-8)
        assert fields["look"].tolist() == [0, 1] and fields["level"].tolist() == [1, 2]
        assert np.isnan(fields["contribution"][0].astype(float)) and fields["contribution"][1] == 0.5
        assert fields["label"].tolist() == ["crack"] * 2 and fields["label_probability"].tolist() == [0.75] * 2
        assert fields["parent"].astype(float)[1] == 0
    check(json.loads((tmp_path / "a.geojson").read_text()))


def test_a_point_of_utm_on_its_meridian_and_the_equator():
    row = a_row(a_look((0, 0, 32, 24)), crs="EPSG:32633", transform=Affine(10, 0, 5e5, 0, -10, 320))
    (feature,) = as_geojson(row)["features"]
    check(as_geojson(row))
    assert [15, 0] in feature["geometry"]["coordinates"][0]


def test_long_edges_follow_the_curve_that_a_straight_edge_is_in_degrees():
    """On the equator's side of a UTM zone, the middle of an edge along a parallel of the grid is nearer to the pole."""
    row = a_row(a_look((0, 0, 30_000, 30_000)), size=(30_000, 30_000), crs="EPSG:32633")
    row["transform"] = [10, 0, 350_000, 0, -10, 6_000_000]
    (feature,) = as_geojson(row)["features"]
    check(as_geojson(row))
    ring = feature["geometry"]["coordinates"][0]
    assert len(ring) == 4 * 16 + 1
    top = sorted(point for point in ring if point[1] > 54)
    assert top[len(top) // 2][1] > (top[0][1] + top[-1][1]) / 2 + 0.005


@pytest.mark.parametrize(
    ("crs", "left", "step", "size", "parts"),
    [
        ("EPSG:4326", -180, 0.5, (360, 720), [(-180, 180)]),  # the globe
        ("EPSG:4326", 0, 0.5, (360, 720), [(0, 180), (-180, 0)]),
        ("EPSG:4326", -120, 0.5, (360, 440), [(-120, 100)]),  # more than half of it
        ("EPSG:3857", -2e7, 1e5, (200, 400), [(-math.degrees(2e7 / R), math.degrees(2e7 / R))]),
    ],
)
def test_boxes_wider_than_half_of_the_globe_are_not_their_complement(crs, left, step, size, parts):
    row = a_row(a_look((0, 0, *size)), size=size, crs=crs, transform=Affine(step, 0, left, 0, -step, 180 * step))
    (feature,) = as_geojson(row)["features"]
    check(as_geojson(row))
    shape = feature["geometry"]
    rings = [shape["coordinates"]] if shape["type"] == "Polygon" else shape["coordinates"]
    found = sorted((min(x for x, _ in ring), max(x for x, _ in ring)) for (ring,) in rings)
    assert np.allclose(found, sorted(parts), rtol=0, atol=1e-6)


def test_a_coarse_raster_follows_curves_too():
    """A square of 100 x 100 pixels beside the pole: what is drawn in degrees is the square, to a thousandth."""
    row = a_row(a_look((0, 0, 100, 100)), size=(100, 100), crs="EPSG:3031")
    row["transform"] = [20_000, 0, -1e6, 0, -20_000, 3e6]
    (feature,) = as_geojson(row)["features"]
    ring = np.array(feature["geometry"]["coordinates"][0])
    drawn = np.concatenate([np.linspace(one, other, 50)[:-1] for one, other in pairwise(ring)])
    x, y = warp.transform("EPSG:4326", "EPSG:3031", *drawn.T)
    assert abs(area([*zip(x, y, strict=True), (x[0], y[0])])) == pytest.approx(2e6**2, rel=1e-3)


def test_a_box_across_the_antimeridian_is_two_polygons():
    x, y = mercator(179.9, -17)
    row = a_row(a_look((0, 0, 64, 48)), crs="EPSG:3857", transform=Affine(1000, 0, x, 0, -1000, y))
    (feature,) = as_geojson(row)["features"]
    check(as_geojson(row))
    assert feature["geometry"]["type"] == "MultiPolygon"
    east, west = sorted((polygon[0] for polygon in feature["geometry"]["coordinates"]), key=lambda ring: -ring[0][0])
    assert {x for x, _ in east} == {179.9, 180} and min(x for x, _ in west) == -180
    width = math.degrees(48_000 / R)
    assert max(x for x, _ in west) == pytest.approx(179.9 + width - 360, abs=1e-8)
    height = math.degrees(math.atan(math.sinh(y / R)) - math.atan(math.sinh((y - 64_000) / R)))
    assert area(east) + area(west) == pytest.approx(width * height, rel=1e-6)


def test_a_box_around_a_pole_has_no_geometry_on_the_map_but_in_its_own_system(tmp_path):
    row = a_row(a_look((0, 0, 64, 48)), crs="EPSG:3031", transform=Affine(100, 0, -2400, 0, -100, 3200))
    assert [feature["geometry"] for feature in as_geojson(row)["features"]] == [None]
    check(as_geojson(row))
    _, _, (shape,), _ = raw.read(write_looks(row, tmp_path / "a.gpkg"))
    assert corners_of(shape).tolist() == [[-2400, 3200], [2400, 3200], [2400, -3200], [-2400, -3200]]


@pytest.mark.parametrize(
    "row, name, says",
    [
        (a_row(), "a.json", "give the file one of these suffixes"),
        (a_row(), "a.gpkg", "has no coordinate system"),
        (a_row() | {"schema": 1}, "a.geojson", "another version .* predict it again by `overwrite`"),
        (failed_row("b.tif", "b.tif: is empty"), "a.geojson", "this image failed and has no looks"),
    ],
)
def test_what_cannot_be_written_is_one_sentence(tmp_path, row, name, says):
    with pytest.raises(ConfigError, match=says):
        write_looks(row, tmp_path / name)
    assert not list(tmp_path.iterdir())


# ---- heatmaps


def by_brute_force(row, shape):
    """The value of each pixel, one by one."""
    values = np.full(shape, np.nan)
    for i, j in np.ndindex(*shape):
        y, x = (i + 0.5) * row["size"][0] / shape[0], (j + 0.5) * row["size"][1] / shape[1]
        for look in row["glimpses"][1:]:
            y0, x0, y1, x1 = look["box"]
            if y0 <= y < y1 and x0 <= x < x1:
                values[i, j] = np.nan_to_num(values[i, j]) + look["contribution"]
    return values


def test_a_heatmap_is_the_sum_of_the_looks_at_a_place(tmp_path):
    looks = a_look((0, 0, 640, 480), 1, 9.0), a_look((-10, 0, 128, 128), 2, 0.5), a_look((33, 47, 65, 79), 3, -0.25)
    row = a_row(*looks, size=(640, 480), crs="EPSG:3857", transform=PLACED["rotated"])
    with rasterio.open(write_heatmap(row, tmp_path / "a.tif")) as file:
        assert file.shape == (320, 240)  # the closest look has 2 px of the image per pixel
        assert np.array_equal(file.read(1), by_brute_force(row, file.shape).astype(np.float32), equal_nan=True)
        assert file.crs == "EPSG:3857" and math.isnan(file.nodata) and file.dtypes == ("float32",)
        assert np.allclose(file.transform @ (240, 320), PLACED["rotated"] @ (480, 640), rtol=0, atol=1e-6)
        assert file.descriptions == ("contribution to crack",)
        assert file.block_shapes == [(256, 256)] and file.overviews(1) == [2]
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"


def test_a_heatmap_without_a_system_lies_on_the_pixels_and_tells_their_size(tmp_path):
    row = a_row(a_look((0, 0, 64, 48), 1), size=(64, 48), mpp=0.5)
    with rasterio.open(write_heatmap(row, tmp_path / "a.tif")) as file:
        assert file.crs is None and tuple(file.bounds) == (0, -64, 48, 0)
        assert np.array_equal(file.read(1), np.full(file.shape, 0.5, np.float32))  # the only look counts
        tags = file.tags()
        assert file.shape == (21, 16)  # the look has 3 px of the image per pixel along its shorter side
        assert float(tags["TIFFTAG_XRESOLUTION"]) == pytest.approx(1e4 / 1.5) and "3" in tags["TIFFTAG_RESOLUTIONUNIT"]


def test_a_heatmap_of_any_image_is_small(tmp_path):
    looks = a_look((0, 0, 36_000, 36_000), 1), *(a_look((0, x, 512, x + 512), size=(512, 512)) for x in (0, 17_488))
    row = a_row(*looks, size=(36_000, 18_000))
    file = write_heatmap(row, tmp_path / "a.tif")
    with rasterio.open(file) as data:
        assert data.shape == (2250, 1125) and data.overviews(1) == [2, 4, 8, 16]
        assert np.isfinite(data.read(1)[:32, :32]).all() and np.isfinite(data.read(1)[:32, -32:]).all()
    assert file.stat().st_size < 100_000


def test_a_model_that_is_no_sum_has_no_heatmap(tmp_path):
    with pytest.raises(ConfigError, match=r"not a sum over looks, so it has no heatmap; leave `heatmap` out"):
        write_heatmap(a_row(a_look((0, 0, 8, 8), 1, None), a_look((0, 0, 8, 8))), tmp_path / "a.tif")
    with pytest.raises(ConfigError, match=r"ends in \.tif"):
        write_heatmap(a_row(), tmp_path / "a.png")


# ---- folders, beside the rows


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return TNet(num_classes=3, backbone="test_efficientnet", base_size=32, locations=(2,)).eval()


@pytest.fixture
def images(tmp_path):
    """Four images of one name in four folders, and a damaged one."""
    for i in range(4):
        folder = tmp_path / "images" / str(i)
        folder.mkdir(parents=True)
        pixels = np.random.default_rng(i).integers(0, 256, (64, 90, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "scan.png")
    (tmp_path / "images" / "0" / "bad.png").write_text("not an image")
    return tmp_path / "images"


def content(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


class Killed(Exception):
    pass


class Stopping(LooksFolder):
    """Ends the call after some files, before their rows are stored."""

    left = 3

    def write(self, row):
        super().write(row)
        self.left -= 1
        if not self.left:
            raise Killed


def test_interrupted_calls_write_each_file_once_whole_and_lose_none(tmp_path, images, model):
    def call(kind, folder, out, **more):
        with kind(tmp_path / folder) as looks:
            return predict(model, images, out=tmp_path / out, batch_size=2, device="cpu", sinks=[looks], **more)

    call(LooksFolder, "whole", "whole.csv")
    whole = content(tmp_path / "whole")
    assert len(whole) == 4 and all(name.startswith("scan.png-") for name in whole)
    rows = {row["path"]: row for row in read_rows(tmp_path / "whole.csv")}
    for path, row in rows.items():
        assert (f"{file_stem(path)}.geojson" in whole) == (row["error"] is None)
    with pytest.raises(Killed):
        call(Stopping, "looks", "rows.csv")
    (tmp_path / "looks" / ".scan.png-0.geojson.1.unfinished").touch()  # of a killed process
    assert call(LooksFolder, "looks", "rows.csv").skipped == 2
    assert content(tmp_path / "looks") == whole
    # Files that are missing are written from the rows, without classifying again.
    next((tmp_path / "looks").iterdir()).unlink()
    done = call(LooksFolder, "looks", "rows.csv")
    assert done.predicted == 0 and content(tmp_path / "looks") == whole
    # An image that fails now has no file any more.
    (images / "1" / "scan.png").write_bytes(b"")
    call(LooksFolder, "looks", "rows.csv", resume=False)
    assert len(content(tmp_path / "looks")) == 3


def test_looks_at_a_turned_raster_are_where_gdal_says(tmp_path, model):
    """From the file to the GeoPackage: boxes of the row go through the transform that GDAL reads from the raster."""
    path, turned = tmp_path / "a.tif", PLACED["rotated"]
    profile = {"driver": "GTiff", "height": 64, "width": 90, "count": 3, "dtype": "uint8", "crs": "EPSG:3857"}
    with rasterio.open(path, "w", **profile, transform=turned) as file:
        file.write(np.random.default_rng(0).integers(0, 256, (3, 64, 90), dtype=np.uint8))
    with LooksFolder(tmp_path / "looks") as looks:
        (row,) = predict(model, path, device="cpu", sinks=[looks]).rows
    assert {file.suffix for file in (tmp_path / "looks").iterdir()} == {".gpkg", ".geojson"}
    meta, _, shapes, _ = raw.read(next((tmp_path / "looks").glob("*.gpkg")))
    assert meta["crs"] == "EPSG:3857" and len(shapes) == 3
    with rasterio.open(path) as file:
        for look, shape in zip(row["glimpses"], shapes, strict=True):
            y0, x0, y1, x1 = np.clip(look["box"], 0, [64, 90, 64, 90])
            want = [file.transform @ point for point in ((x0, y0), (x1, y0), (x1, y1), (x0, y1))]
            assert corners_of(shape) == pytest.approx(np.array(want), abs=1e-6)


def test_two_calls_do_not_write_into_one_folder(tmp_path):
    folder, says = tmp_path / "a" / "b", "another call writes there"
    with LooksFolder(folder), HeatmapFolder(folder), pytest.raises(StorageError, match=says):
        LooksFolder(folder)
    assert not list((tmp_path / "a" / "b").iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is a file; give the name of a folder"):
        LooksFolder(tmp_path / "file")


def test_a_system_that_nobody_knows_is_a_warning(tmp_path, caplog):
    row = a_row(a_look((0, 0, 64, 48), 1), crs="EPSG:999999", transform=PLACED["north up"])
    with LooksFolder(tmp_path) as looks, HeatmapFolder(tmp_path) as heatmaps:
        looks.write(row)
        heatmaps.write(row)
    assert {file.suffix for file in tmp_path.iterdir()} == {".geojson", ".tif"}
    assert "EPSG:999999 is unknown to rasterio" in caplog.text


def test_names_of_files_are_distinct_and_short():
    paths = ["a/x.png", "b/x.png", "A/x.png", "a/X.png", "a/" + "ü" * 120 + ".png", 'c/a:b"<>|?*\\\n.png']
    stems = [file_stem(path) for path in paths]
    assert len({stem.lower() for stem in stems}) == len(paths)
    assert all(len(f".{stem}.geojson.1234567.unfinished".encode()) < 255 for stem in stems)
    assert not set('<>:"/\\|?*\n') & set("".join(stems)) and stems == [file_stem(path) for path in paths]
    assert Path(stems[0]).name == stems[0]

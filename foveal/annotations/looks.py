"""Files of looks: GeoJSON, and GeoPackage for rasters.

Example:
    >>> import tempfile, torch, foveal
    >>> from pathlib import Path
    >>> model = foveal.create_model("test_resnet", num_classes=2)
    >>> (row,) = foveal.predict(model, torch.rand(3, 96, 128), device="cpu").rows
    >>> write_looks(row, Path(tempfile.mkdtemp()) / "looks.geojson").name
    'looks.geojson'
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from foveal.annotations.boxes import inside
from foveal.annotations.geojson import as_geojson, as_qupath, known_system, on_ground, properties_of
from foveal.errors import ConfigError
from foveal.files import replacing, storing
from foveal.prediction.looks import corners

GEOJSON, GEOPACKAGE = ".geojson", ".gpkg"
LAYER = "looks"
"""Name of the layer in a GeoPackage."""


def check_file(file: Path) -> None:
    """Check the suffix of a file for looks.

    Raises:
        ConfigError: it is another one.
    """
    if file.suffix.lower() not in (GEOJSON, GEOPACKAGE):
        raise ConfigError(
            f"{file}: looks are written as {GEOJSON} or {GEOPACKAGE}; give the file one of these suffixes"
        )


def write_looks(row: Mapping[str, Any], file: str | Path) -> Path:
    """Write the looks of an image.

    Args:
        row: the row of a prediction.
        file: ``.geojson``: longitude and latitude for an image with a coordinate system, else pixels for QuPath.
            ``.gpkg``: coordinates of the image, which must have a coordinate system.

    Returns:
        The path of the file.

    Raises:
        ConfigError: the suffix is another one, the row is of an earlier version, or a GeoPackage is asked for an image
            without a coordinate system.
        ImageError: a package of the extra ``geo`` is not installed.
        StorageError: the file cannot be written.
    """
    file = Path(file)
    check_file(file)
    if file.suffix.lower() == GEOPACKAGE:
        content = as_geopackage(row)
    else:
        collection = as_qupath(row) if row.get("crs") is None else as_geojson(row)
        content = (json.dumps(collection, allow_nan=False) + "\n").encode()
    with storing(file, "make space, or choose another file"), replacing(file) as unfinished:
        unfinished.write_bytes(content)
    return file


def as_geopackage(row: Mapping[str, Any]) -> bytes:
    """The content of a GeoPackage with a polygon for each look, in the coordinate system of the image.

    Raises:
        ConfigError, ImageError: see `write_looks`.
    """
    system = known_system(row)
    looks = list(inside(row))
    shapes = np.array([_polygon([on_ground(row, *point) for point in corners(box)]) for _, box, _ in looks], object)
    rows = [properties_of(row, number, look) for number, _, look in looks]
    types = {"look": int, "level": int, "parent": int, "label": object, "path": object}
    fields = list(properties_of(row, 0, {**row["glimpses"][0]}))
    values = [[one[field] for one in rows] for field in fields]
    absent = [np.array([value is None for value in column]) for column in values]
    filled: list[Any] = [
        np.array([0 if value is None else value for value in column], types.get(field, float))
        for field, column in zip(fields, values, strict=True)
    ]
    try:
        from pyogrio.raw import write
    except ImportError as error:
        raise ConfigError(
            f"{row['path']}: a GeoPackage needs pyogrio, which is not installed; run: pip install 'foveal[geo]'"
        ) from error
    file = io.BytesIO()
    write(
        file,
        geometry=shapes,
        field_data=filled,
        fields=fields,
        field_mask=absent,
        layer=LAYER,
        driver="GPKG",
        geometry_type="Polygon",
        crs=system.to_string() if system.to_epsg() is None else f"EPSG:{system.to_epsg()}",
    )
    return file.getvalue()


def _polygon(points: list[tuple[float, float]]) -> bytes:
    """A polygon as well-known binary, little-endian."""
    ring = [*points, points[0]]
    return struct.pack(f"<BIII{2 * len(ring)}d", 1, 3, 1, len(ring), *(value for point in ring for value in point))

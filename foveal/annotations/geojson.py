"""Looks as GeoJSON: for QuPath in pixels, for maps in longitude and latitude.

QuPath reads GeoJSON with a member ``properties`` of its own, see its documentation, "Exporting annotations". Its
coordinates are full-resolution pixels from the upper left corner. GeoJSON of maps follows RFC 7946: WGS 84, longitude
before latitude, rings of polygons counterclockwise (section 3.1.6), and polygons cut at the antimeridian (section
3.1.9).

Example:
    >>> look = {"box": [0, 0, 8, 8], "level": 1, "parent": None, "probability": 1.0, "contribution": None, "mpp": None}
    >>> row = {"path": "a.png", "label": "cat", "probability": 0.9, "size": [8, 8], "crs": None, "bounds": None,
    ...        "glimpses": [look], "error": None, "schema": 2}
    >>> as_qupath(row)["features"][0]["properties"]["classification"]
    {'name': 'cat', 'color': [213, 94, 0]}
"""

from __future__ import annotations

import math
import uuid
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from foveal.annotations.boxes import inside
from foveal.classification import Box
from foveal.errors import ConfigError, ImageError
from foveal.images.optional import need
from foveal.prediction.looks import corners

COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167))
"""Colours of classes. A class has the same colour in all files."""

DECIMALS = 9
"""Decimals of degrees; 0.1 mm on the ground."""

PIECES = 16
"""Pieces of an edge that is curved in degrees. A straight edge of a raster is a curve there."""

WIDEST = 90
"""Largest number of degrees of longitude of an edge without further points. From 180 it would be ambiguous."""

Ring = list[tuple[float, float]]


class UnknownSystem(ImageError):
    """A coordinate system that rasterio does not know."""


def as_qupath(row: Mapping[str, Any]) -> dict[str, Any]:
    """A feature collection for QuPath: an annotation for each look.

    QuPath shows only the scanned part of a slide, so its corner is the origin. Boxes are cut at the edge of the image.

    Args:
        row: the row of a prediction.

    Raises:
        ConfigError: the row is of an earlier version, or of an image that failed.
    """
    frame: Box = tuple(row["bounds"]) if row.get("bounds") else (0, 0, *(row["size"] or (0, 0)))  # type: ignore[assignment]
    top, left = frame[:2]
    features = []
    for number, (y0, x0, y1, x1), look in inside(row, frame):
        measurements = {name: look[name.lower()] for name in ("Probability", "Contribution", "Level", "Parent")}
        properties: dict[str, Any] = {
            "objectType": "annotation",
            "name": f"look {number}",
            "measurements": {name: value for name, value in measurements.items() if value is not None},
        }
        if row["label"]:
            properties["classification"] = {"name": row["label"], "color": list(colour(row["label"]))}
        y0, x0, y1, x1 = y0 - top, x0 - left, y1 - top, x1 - left
        ring = [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]
        one = str(uuid.uuid5(uuid.NAMESPACE_URL, f"{row['path']}#{number}"))
        features.append(_feature(one, {"type": "Polygon", "coordinates": [ring]}, properties))
    return _collection(row, features)


def as_geojson(row: Mapping[str, Any]) -> dict[str, Any]:
    """A feature collection in longitude and latitude by RFC 7946, with `properties_of` each look.

    A box across the antimeridian becomes a multipolygon. A box around a pole, or outside the domain of the coordinate
    system, has no geometry.

    Args:
        row: the row of a prediction with a coordinate system.

    Raises:
        ConfigError: the image has no coordinate system; or see `as_qupath`.
        UnknownSystem: rasterio does not know it.
    """
    looks = list(inside(row))
    flat = _degrees(row, [on_ground(row, *point) for _, box, _ in looks for point in _outline(box)])
    features = []
    for i, (number, box, look) in enumerate(looks):
        points = _needed(flat[4 * PIECES * i : 4 * PIECES * (i + 1)], box)
        features.append(_feature(number, geometry(points), properties_of(row, number, look)))
    return _collection(row, features)


def properties_of(row: Mapping[str, Any], number: int, look: Mapping[str, Any]) -> dict[str, Any]:
    """Properties of a look on a map."""
    return {
        "look": number,
        "level": look["level"],
        "parent": look["parent"],
        "probability": look["probability"],
        "contribution": look["contribution"],
        "label": row["label"],
        "label_probability": row["probability"],
        "path": row["path"],
    }


def on_ground(row: Mapping[str, Any], y: float, x: float) -> tuple[float, float]:
    """Coordinates of a point, in full-resolution pixels, in the coordinate system of the image."""
    a, b, c, d, e, f = row["transform"]
    return a * x + b * y + c, d * x + e * y + f


def colour(label: str) -> tuple[int, int, int]:
    """Colour of a class."""
    return COLOURS[zlib.crc32(label.encode()) % len(COLOURS)]


def known_system(row: Mapping[str, Any]) -> Any:
    """The coordinate system of a row, of rasterio.

    Raises:
        ConfigError: there is none.
        UnknownSystem: rasterio does not know it.
        ImageError: rasterio is not installed.
    """
    if row["crs"] is None:
        raise ConfigError(f"{row['path']}: has no coordinate system, so it is on no map; write GeoJSON in pixels")
    rasterio = need("rasterio", row["path"])
    from rasterio.errors import CRSError

    try:
        with rasterio.Env():
            return rasterio.CRS.from_user_input(row["crs"])
    except CRSError as error:
        raise UnknownSystem(
            f"{row['path']}: its coordinate system {row['crs']} is unknown to rasterio; set another one in the file"
        ) from error


def _degrees(row: Mapping[str, Any], points: Sequence[tuple[float, float]]) -> Ring:
    """Longitude and latitude of points; infinite outside the domain of the coordinate system."""
    system = known_system(row)
    if not points:
        return []
    import rasterio
    from rasterio.warp import transform

    with rasterio.Env():
        x, y = transform(system, "EPSG:4326", *map(list, zip(*points, strict=True)))
    return list(zip(x, y, strict=True))


def _outline(box: Box) -> Ring:
    """Points (y, x) along the edges of a box, open: `PIECES` for each edge, its first corner first."""
    edge = corners(box)
    return [
        (y0 + i / PIECES * (y1 - y0), x0 + i / PIECES * (x1 - x0))
        for (y0, x0), (y1, x1) in zip(edge, [*edge[1:], edge[0]], strict=True)
        for i in range(PIECES)
    ]


def _needed(points: Ring, box: Box) -> Ring:
    """An outline in degrees without the points of straight edges: those that pass within half a pixel.

    Args:
        points: the points of `_outline` as (longitude, latitude).
        box: the box.
    """
    kept: Ring = []
    for side in range(4):
        edge = [points[(side * PIECES + i) % len(points)] for i in range(PIECES + 1)]
        pixels = (box[3] - box[1], box[2] - box[0])[side % 2]
        kept += edge[: 1 if _is_straight(_unwrapped(edge), 0.5 / pixels) else PIECES]
    return kept


def _is_straight(points: Ring, tolerance: float) -> bool:
    """Whether all points are near the line from the first to the last.

    Args:
        points: (longitude, latitude).
        tolerance: largest distance, as a share of the length of the line.
    """
    (x0, y0), (x1, y1) = points[0], points[-1]
    across, up = x1 - x0, y1 - y0
    if across == up == 0 or abs(across) > WIDEST:
        return False
    most = tolerance * (across**2 + up**2)
    return all(abs(across * (y - y0) - up * (x - x0)) <= most for x, y in points)


def _unwrapped(points: Ring) -> Ring:
    """Points (longitude, latitude) with no step over more than half of the globe; longitudes may leave -180 to 180."""
    if not all(math.isfinite(x) for x, _ in points):
        return points
    ring = points[:1]
    for x, y in points[1:]:
        ring.append((x - 360 * round((x - ring[-1][0]) / 360), y))
    return ring


def geometry(points: Ring) -> dict[str, Any] | None:
    """A polygon of RFC 7946, or a multipolygon if it crosses the antimeridian.

    Args:
        points: (longitude, latitude) along the polygon, open.

    Returns:
        The geometry; None if the polygon is around a pole, or a point is not finite.
    """
    if not all(math.isfinite(value) for point in points for value in point):
        return None
    ring = _unwrapped([*points, points[0]])
    if abs(ring[-1][0] - ring[0][0]) > 180:
        return None  # it closes on the other side of a pole
    ring = ring[:-1]
    low, high = (math.floor((edge + 180) / 360) for edge in (min(x for x, _ in ring), max(x for x, _ in ring)))
    parts = []
    for turn in range(low, high + 1):
        part = _cut(_cut(ring, 360 * turn - 180, 1), 360 * turn + 180, -1)
        if abs(_area(part)) > 0:
            parts.append([_closed([(x - 360 * turn, y) for x, y in part])])
    if not parts:
        return None
    return (
        {"type": "Polygon", "coordinates": parts[0]}
        if len(parts) == 1
        else {"type": "MultiPolygon", "coordinates": parts}
    )


def _cut(ring: Ring, edge: float, side: int) -> Ring:
    """The part of a polygon on one side of a meridian (Sutherland and Hodgman, 1974): east for 1, west for -1."""
    kept: Ring = []
    for (x0, y0), (x1, y1) in zip(ring, ring[1:] + ring[:1], strict=True):
        first, second = side * (x0 - edge) >= 0, side * (x1 - edge) >= 0
        if first:
            kept.append((x0, y0))
        if first != second:
            kept.append((edge, y0 + (edge - x0) / (x1 - x0) * (y1 - y0)))
    return kept


def _area(ring: Ring) -> float:
    """Twice the signed area; positive if counterclockwise."""
    return sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in zip(ring, ring[1:] + ring[:1], strict=True))


def _closed(ring: Ring) -> list[list[float]]:
    ring = ring if _area(ring) > 0 else ring[::-1]
    return [[round(x, DECIMALS), round(y, DECIMALS)] for x, y in [*ring, ring[0]]]


def _feature(one: str | int, shape: dict[str, Any] | None, properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Feature", "id": one, "geometry": shape, "properties": properties}


def _collection(row: Mapping[str, Any], features: list[dict[str, Any]]) -> dict[str, Any]:
    about = {key: row[key] for key in ("schema", "path", "label", "probability")}
    return {"type": "FeatureCollection", "features": features, "foveal": about}

"""Size, levels, scale and position of an image.

The coordinate system of a raster is that of its GeoTIFF tags, or what GDAL reads. A system without an EPSG code is read
by rasterio; without rasterio it is unknown.

Example:
    >>> import numpy as np
    >>> from foveal.images.pyramid import ArrayPyramid
    >>> tags = {"ProjectedCSTypeGeoKey": 32633, "ModelPixelScale": (10, 10, 0), "ModelTiepoint": (0, 0, 0, 5e5, 6e6, 0)}
    >>> info = ArrayPyramid(np.zeros((20, 30, 1), np.uint8), metadata={"geo": tags}).info
    >>> info.crs, info.transform
    ('EPSG:32633', (10.0, 0.0, 500000.0, 0.0, -10.0, 6000000.0))
    >>> info.on_ground(20, 30)
    (500300.0, 5999800.0)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from foveal.images.pyramid import Pyramid

Affine = tuple[float, float, float, float, float, float]
"""(a, b, c, d, e, f): x = a column + b row + c, y = d column + e row + f; rows and columns of corners of pixels."""

_USER_DEFINED = 32767
_POINT = 2  # GTRasterTypeGeoKey: coordinates are those of the centres of pixels


class ImageInfo(NamedTuple):
    """Size, levels, scale and position of an image as it is displayed.

    Attributes:
        size: (height, width) in full-resolution pixels.
        levels: (height, width) of each level of the pyramid, finest first.
        mpp: µm per full-resolution pixel; None if unknown.
        crs: coordinate system as ``EPSG:32633`` or as WKT; None if there is none.
        transform: from pixels to coordinates of ``crs``; None without ``crs``.
        bounds: (y0, x0, y1, x1) of the part of a slide that was scanned, if it is not all. QuPath shows this part only.
    """

    size: tuple[int, int]
    levels: tuple[tuple[int, int], ...]
    mpp: float | None = None
    crs: str | None = None
    transform: Affine | None = None
    bounds: tuple[int, int, int, int] | None = None

    def on_ground(self, y: float, x: float) -> tuple[float, float]:
        """Coordinates of a point in ``crs``.

        Args:
            y, x: the point in full-resolution pixels.
        """
        if self.transform is None:
            raise ValueError("the image has no coordinate system; check crs first")
        a, b, c, d, e, f = self.transform
        return a * x + b * y + c, d * x + e * y + f


def image_info(image: Pyramid) -> ImageInfo:
    """The information of an open image. Damaged metadata are ignored."""
    crs, transform = None, None
    with suppress(Exception):
        crs, transform = _georeference(image.metadata.get("geo") or {}, image.path)
        if transform is not None:
            transform = _displayed(transform, image)
    return ImageInfo(image.size, image.level_sizes, image.mpp, crs, transform, image.metadata.get("bounds"))


def _georeference(geo: Mapping[str, Any], path: str) -> tuple[str, Affine] | tuple[None, None]:
    """Coordinate system and transform of stored pixels, from rasterio's values or GeoTIFF tags."""
    if "transform" in geo:
        return (geo["crs"], _finite(geo["transform"])) if geo["crs"] else (None, None)
    if (transform := _transform(geo)) is None:
        return None, None
    codes = [int(geo.get(f"{kind}GeoKey", 0)) for kind in ("ProjectedCSType", "GeographicType")]
    code = codes[0] or codes[1]
    return (f"EPSG:{code}", transform) if 0 < code != _USER_DEFINED else _by_rasterio(path)


def _transform(geo: Mapping[str, Any]) -> Affine | None:
    """Transform of stored pixels from GeoTIFF tags, see the standard, annex B.6; None if there is none."""
    if (matrix := geo.get("ModelTransformation")) is not None:
        (a, b, _, c), (d, e, _, f) = matrix[:2]
    elif "ModelPixelScale" in geo and len(geo.get("ModelTiepoint", ())) == 6:
        width, height = geo["ModelPixelScale"][:2]
        column, row, _, x, y, _ = geo["ModelTiepoint"]
        a, b, c, d, e, f = width, 0, x - column * width, 0, -height, y + row * height
    else:
        return None
    half = 0.5 if int(geo.get("GTRasterTypeGeoKey", 1)) == _POINT else 0
    return _finite((a, b, c - half * (a + b), d, e, f - half * (d + e)))


def _finite(values: Any) -> Affine:
    a, b, c, d, e, f = map(float, values[:6])
    if not all(map(math.isfinite, (a, b, c, d, e, f))) or a * e == b * d:
        raise ValueError("the transform is singular")
    return a, b, c, d, e, f


def _by_rasterio(path: str) -> tuple[str, Affine] | tuple[None, None]:
    import rasterio

    with rasterio.Env(), rasterio.open(path) as data:
        return (str(data.crs), _finite(data.transform)) if data.crs else (None, None)


def _displayed(transform: Affine, image: Pyramid) -> Affine:
    """Transform of displayed pixels: these are turned if the file has an orientation."""
    from foveal.images.pyramid import ORIENTATIONS

    a, b, c, d, e, f = transform
    swapped, flip_y, flip_x = ORIENTATIONS[image.stored_orientation]
    height, width = image.size
    if swapped:
        a, b, d, e = b, a, e, d
    if flip_x:
        a, c, d, f = -a, c + a * width, -d, f + d * width
    if flip_y:
        b, c, e, f = -b, c + b * height, -e, f + e * height
    return a, b, c, d, e, f

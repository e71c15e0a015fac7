"""Contributions as a raster: a Cloud Optimized GeoTIFF with one band.

The value of a pixel is the sum of the contributions, to the predicted class, of all looks that contain its centre. The
first look is left out, because it contains all of the image; pixels that no other look contains have no data (NaN). The
single look of a dense network counts.

A pixel of the raster is a pixel of the closest looks as the model saw them, or a multiple of it by a power of two so
that no side is longer than `LONGEST`. The values therefore take at most 64 MiB for images of any size.

Example:
    >>> look = {"box": [0, 0, 64, 64], "size": [32, 32], "level": 1, "contribution": 0.5}
    >>> near = {"box": [0, 0, 32, 32], "size": [32, 32], "level": 2, "contribution": 2.0}
    >>> row = {"path": "a.png", "size": [64, 64], "glimpses": [look, near], "error": None, "schema": 2}
    >>> values = contributions(row)
    >>> values.shape, float(values[31, 31]), float(values[32, 32])
    ((64, 64), 2.0, nan)
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from foveal.annotations.boxes import check, inside
from foveal.annotations.geojson import known_system
from foveal.errors import ConfigError
from foveal.files import replacing, storing
from foveal.images.optional import need

LONGEST = 4096
"""Longest side of a heatmap in pixels."""

BLOCK = 256
"""Side of its tiles."""


def contributions(row: Mapping[str, Any]) -> np.ndarray:
    """The values of a heatmap, (height, width) float32.

    Raises:
        ConfigError: the logits of the model are not a sum over looks; the row is of an earlier version, or of an image
            that failed.
    """
    check(row)
    if any(look["contribution"] is None for look in row["glimpses"]):
        raise ConfigError(
            f"{row['path']}: the logits of this model are not a sum over looks, so it has no heatmap; leave `heatmap` "
            "out"
        )
    height, width = row["size"]
    rows, columns = _size(row)
    values = np.full((rows, columns), np.nan, np.float32)
    for number, (y0, x0, y1, x1), look in inside(row):
        if number or len(row["glimpses"]) == 1:
            # A pixel is inside if its centre is.
            top, bottom = (math.ceil(y * rows / height - 0.5) for y in (y0, y1))
            left, right = (math.ceil(x * columns / width - 0.5) for x in (x0, x1))
            part = values[top:bottom, left:right]
            part[np.isnan(part)] = 0
            part += np.float32(look["contribution"])
    return values


def _size(row: Mapping[str, Any]) -> tuple[int, int]:
    scale = min(
        min((y1 - y0) / look["size"][0], (x1 - x0) / look["size"][1])
        for look in row["glimpses"]
        for y0, x0, y1, x1 in [look["box"]]
    )
    scale = max(scale, 1.0)  # a look that was enlarged shows no more than the pixels of the image
    longest = max(row["size"]) / scale
    if longest > LONGEST:
        scale *= 2 ** math.ceil(math.log2(longest / LONGEST))
    height, width = row["size"]
    return max(1, round(height / scale)), max(1, round(width / scale))


def write_heatmap(row: Mapping[str, Any], file: str | Path) -> Path:
    """Write the heatmap of an image: a tiled GeoTIFF with overviews, float32, NaN for no data.

    It has the coordinate system of the image. Without one, its coordinates are pixels of the image, with y downwards
    negative as in QGIS, and the resolution tags have the µm per pixel.

    Args:
        row: the row of a prediction.
        file: ``.tif`` or ``.tiff``.

    Returns:
        The path of the file.

    Raises:
        ConfigError: the suffix is another one; or see `contributions`.
        ImageError: rasterio, of the extra ``geo``, is not installed.
        StorageError: the file cannot be written.
    """
    file = Path(file)
    check_file(file)
    values = contributions(row)
    rasterio = need("rasterio", row["path"])
    from rasterio.errors import NotGeoreferencedWarning
    from rasterio.shutil import copy

    (height, width), (rows, columns) = row["size"], values.shape
    down, across = height / rows, width / columns
    placed = row.get("crs") is not None
    a, b, c, d, e, f = row["transform"] if placed else (1, 0, 0, 0, -1, 0)
    profile: dict[str, Any] = {
        "driver": "GTiff",
        "height": rows,
        "width": columns,
        "count": 1,
        "dtype": "float32",
        "nodata": math.nan,
        "compress": "DEFLATE",  # in memory, until it is copied
        "transform": rasterio.Affine(a * across, b * down, c, d * across, e * down, f),
    }
    tags = {}
    if placed:
        profile["crs"] = known_system(row)
    elif row.get("mpp"):
        per_cm = {"X": 1e4 / (row["mpp"] * across), "Y": 1e4 / (row["mpp"] * down)}
        tags = {f"TIFFTAG_{axis}RESOLUTION": f"{value:.9g}" for axis, value in per_cm.items()}
        tags["TIFFTAG_RESOLUTIONUNIT"] = "3"
    how = {"compress": "DEFLATE", "blocksize": BLOCK, "overview_resampling": "average"}
    with rasterio.Env(), warnings.catch_warnings(), rasterio.MemoryFile() as memory, rasterio.MemoryFile() as optimised:
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with memory.open(**profile) as image:
            image.write(values, 1)
            image.set_band_description(1, f"contribution to {row['label'] or 'no label'}")
            image.update_tags(**tags)
            copy(image, optimised.name, driver="COG", **how)
        with storing(file, "make space, or choose another file"), replacing(file) as unfinished:
            unfinished.write_bytes(optimised.read())
    return file


def check_file(file: Path) -> None:
    """Check the suffix of a heatmap.

    Raises:
        ConfigError: it is another one.
    """
    if file.suffix.lower() not in (".tif", ".tiff"):
        raise ConfigError(f"{file}: heatmaps are GeoTIFF; give the file a name that ends in .tif")

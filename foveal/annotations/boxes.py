"""Boxes of a row, inside the image.

Example:
    >>> row = {"path": "a.tif", "schema": 2, "size": [60, 90], "error": None}
    >>> look = {"box": [-15, 0, 75, 90], "level": 1}
    >>> list(inside(row | {"glimpses": [look]}))
    [(0, (0.0, 0.0, 60.0, 90.0), {'box': [-15, 0, 75, 90], 'level': 1})]
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from foveal.classification import Box
from foveal.errors import ConfigError
from foveal.prediction.rows import SCHEMA


def inside(row: Mapping[str, Any], frame: Box | None = None) -> Iterator[tuple[int, Box, dict[str, Any]]]:
    """The looks of a row, with the part of each box that is inside the image. Looks wholly outside are left out.

    Args:
        row: the row of an image that was classified.
        frame: a part of the image, instead of all of it.

    Yields:
        Number of the look, (y0, x0, y1, x1) in full-resolution pixels, and the look.

    Raises:
        ConfigError: the row is of an earlier version, or of an image that failed.
    """
    check(row)
    top, left, bottom, right = frame or (0, 0, *row["size"])
    for number, look in enumerate(row["glimpses"]):
        y0, x0, y1, x1 = map(float, look["box"])
        y0, x0, y1, x1 = max(y0, top), max(x0, left), min(y1, bottom), min(x1, right)
        if y1 > y0 and x1 > x0:
            yield number, (float(y0), float(x0), float(y1), float(x1)), look


def check(row: Mapping[str, Any]) -> None:
    """Check that a row has looks with contributions.

    Raises:
        ConfigError: the row is of an earlier version, or of an image that failed.
    """
    if row.get("error"):
        raise ConfigError(f"{row['path']}: this image failed and has no looks ({row['error']}); leave it out")
    if row.get("schema") not in (2, SCHEMA):
        raise ConfigError(
            f"{row['path']}: its row was written by another version of foveal and does not tell enough to draw its "
            "looks; predict it again by `overwrite` (in Python resume=False)"
        )

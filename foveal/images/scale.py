"""Pixel size of an image in micrometres, from its metadata.

The sources are the description of a slide (Aperio's ``MPP``, OME's ``PhysicalSizeX``, ImageJ's unit), the projected
coordinate system of a raster in metres or feet (pixels of 10 m have 10,000,000 µm), and the resolution of a TIFF. The
resolution is usually that of printing, so it is only used if it is finer than any printer's.

Example:
    >>> described("Aperio Image Library v11.2.1|AppMag = 20|MPP = 0.499")
    0.499
    >>> described('<OME><Image><Pixels PhysicalSizeX="250" PhysicalSizeXUnit="nm"/></Image></OME>')
    0.25
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tifffile

_COARSEST_RESOLUTION = 10.0  # µm; resolutions for printing are coarser
_LENGTHS = {"nm": 1e-3, "um": 1.0, "mm": 1e3, "cm": 1e4, "m": 1e6, "in": 25_400.0, "inch": 25_400.0}
_LENGTHS |= {"angstrom": 1e-4, "nanometer": 1e-3, "millimeter": 1e3, "centimeter": 1e4, "meter": 1e6}  # of OME-Zarr
_MICRO = re.compile(r"micron|micrometer|micrometre|(?:µ|μ|&#181;|&#xB5;|\\u00B5)m", re.IGNORECASE)
_PER_UNIT = {2: 25_400.0, 3: 10_000.0}  # µm per TIFF resolution unit: inch, centimetre
_METRES = {9001: 1.0, 9002: 0.3048, 9003: 1200 / 3937}  # GeoTIFF linear units: metre, foot, US survey foot
_MERCATOR = {3857, 3785, 900913}  # Web Mercator; its unit is a metre of ground at the equator only


def of_page(page: tifffile.TiffPage) -> float | None:
    """µm per pixel of a TIFF page; None if unknown."""
    per_unit = [_rational(page.tags.valueof(tag)) for tag in (282, 283)]
    found = described(page.description or "", per_unit)
    if found is None:
        found = on_the_ground(page.geotiff_tags or {})
    if found is None and int(page.tags.valueof(296) or 1) in _PER_UNIT:
        found = _mean(_PER_UNIT[int(page.tags.valueof(296))] / n if n else None for n in per_unit)
        found = None if found is None or found > _COARSEST_RESOLUTION else found
    return found


def described(description: str, per_unit: list[float | None] | None = None) -> float | None:
    """µm per pixel in an Aperio, OME or ImageJ description; None if there is none.

    Args:
        description: the text.
        per_unit: pixels per unit along x and y, from the resolution tags; ImageJ descriptions have only the unit.
    """
    if aperio := re.search(r"\bMPP\s*=\s*([\d.]+)", description):
        return _mean([_number(aperio[1])])
    if pixels := re.search(r"<(?:\w+:)?Pixels\b[^>]*>", description):
        sizes = []
        for axis in "XY":
            size = re.search(rf'\bPhysicalSize{axis}="([^"]+)"', pixels[0])
            unit = re.search(rf'\bPhysicalSize{axis}Unit="([^"]+)"', pixels[0])
            sizes.append(_in_micrometres(_number(size[1]) if size else None, unit[1] if unit else "um"))
        return _mean(sizes)
    if description.startswith("ImageJ=") and (unit := re.search(r"^unit=(.+)$", description, re.MULTILINE)):
        return _mean(_in_micrometres(1 / n if n else None, unit[1].strip()) for n in per_unit or ())
    return None


def on_the_ground(tags: Mapping[str, Any]) -> float | None:
    """µm of ground per pixel from GeoTIFF tags; None if the coordinates are not lengths."""
    metres = _METRES.get(int(tags.get("ProjLinearUnitsGeoKey", 0)))
    if (
        int(tags.get("GTModelTypeGeoKey", 0)) != 1
        or metres is None
        or int(tags.get("ProjectedCSTypeGeoKey", 0)) in _MERCATOR
    ):
        return None
    if scale := tags.get("ModelPixelScale"):
        return _mean(1e6 * metres * float(n) for n in scale[:2])
    if (transform := tags.get("ModelTransformation")) is not None:
        (a, b, *_), (c, d, *_) = transform[:2]
        return _mean([1e6 * metres * math.sqrt(abs(float(a) * float(d) - float(b) * float(c)))])
    return None


def of_raster(crs: Any, transform: Any) -> float | None:
    """µm of ground per pixel from rasterio's coordinate system and transform; None if its unit is no length."""
    if not crs or not crs.is_projected or crs.to_epsg() in _MERCATOR:
        return None
    return _mean([1e6 * crs.linear_units_factor[1] * math.sqrt(abs(transform.determinant))])


def of_slide(properties: Mapping[str, str]) -> float | None:
    """µm per pixel from the properties of OpenSlide."""
    return _mean(_number(properties.get(f"openslide.mpp-{axis}", "")) for axis in "xy")


def of_axes(sizes: Sequence[float], units: Sequence[str]) -> float | None:
    """µm per pixel from the lengths of a pixel along y and x, and their units as OME-Zarr names them."""
    return _mean(_in_micrometres(size, unit) for size, unit in zip(sizes, units, strict=True))


def _in_micrometres(length: float | None, unit: str) -> float | None:
    per_unit = 1.0 if _MICRO.fullmatch(unit) else _LENGTHS.get(unit.lower())
    return None if length is None or per_unit is None else length * per_unit


def _mean(sizes: Any) -> float | None:
    """Side of the square pixel of the same area; sizes that are unknown are ignored."""
    known = [size for size in sizes if size is not None and math.isfinite(size) and size > 0]
    return math.prod(known) ** (1 / len(known)) if known else None


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _rational(value: Any) -> float | None:
    return value[0] / value[1] if isinstance(value, tuple) and len(value) == 2 and value[1] else None

"""Locations as text: ``2,1`` is two looks in the first grid and one in each grid below, ``0..6`` is a sweep.

Example:
    >>> parse_location_sweep("0..2,1")
    [(), (1, 1), (2, 1)]
    >>> parse_locations("3")
    (3,)
"""

from __future__ import annotations

import re

from foveal.errors import ConfigError


def parse_location_sweep(text: str) -> list[tuple[int, ...]]:
    """Parse ``K1,K2,...``, looks per grid at each level. The first may be a sweep ``A..B``, both ends included.

    Locations end at the first zero: ``0`` is the thumbnail only, ``()``.

    Raises:
        ConfigError: the text has another form.
    """
    first, *rest = (part.strip() for part in text.split(","))
    sweep = re.fullmatch(r"(\d+)(?:\.\.(\d+))?", first)
    if sweep is None or not all(re.fullmatch(r"\d+", part) for part in rest):
        raise ConfigError(
            f"`locations` {text}: are not locations; write looks per level as 2,1, or a sweep of the first as 0..6 or "
            "1..3,1"
        )
    start, stop = int(sweep[1]), int(sweep[2] or sweep[1])
    if stop < start:
        raise ConfigError(f"`locations` {text}: the sweep runs backwards; write {stop}..{start}")
    return [_until_zero((k, *map(int, rest))) for k in range(start, stop + 1)]


def parse_locations(text: str) -> tuple[int, ...]:
    """Parse locations that are not a sweep.

    Raises:
        ConfigError: the text is a sweep, or has another form.
    """
    *others, locations = parse_location_sweep(text)
    if others:
        raise ConfigError(
            f"`locations` {text}: only evaluation takes a sweep; give one of them, as {format_locations(locations)}"
        )
    return locations


def format_locations(locations: tuple[int, ...]) -> str:
    """Locations as text, the inverse of `parse_locations`."""
    return ",".join(map(str, locations)) or "0"


def _until_zero(locations: tuple[int, ...]) -> tuple[int, ...]:
    return locations[: locations.index(0)] if 0 in locations else locations

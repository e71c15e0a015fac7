"""Checks of numbers that a caller gives.

Example:
    >>> check_whole("batch_size", 0)
    Traceback (most recent call last):
    ...
    foveal.errors.ConfigError: `batch_size` 0: is not a whole number from 1; give one
"""

from __future__ import annotations

from numbers import Integral
from typing import Any

from foveal.errors import ConfigError


def check_whole(name: str, value: Any, least: int = 1) -> None:
    """Check that an argument is a whole number and not below ``least``.

    Raises:
        ConfigError: it is not.
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:  # type: ignore[operator]
        raise ConfigError(f"`{name}` {value}: is not a whole number from {least}; give one")

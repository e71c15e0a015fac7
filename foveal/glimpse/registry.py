"""Registry of classifiers that choose where to look. Presets have the name of the model and a suffix after a dot.

Example:
    >>> MODELS.get("nonsense")
    Traceback (most recent call last):
    ...
    foveal.registry.UnknownName: nonsense: there is no model of this name; ...
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from foveal.registry import Registry

MODELS: Registry[Callable[..., Any]] = Registry("model")
"""Constructors by name. Their keywords are the model's options in commands and recipes."""

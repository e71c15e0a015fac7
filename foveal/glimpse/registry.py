"""Names of the classifiers that look: a model, or a model with a preset after a dot.

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
"""Constructors, which are called with keywords; these are the model's options everywhere."""

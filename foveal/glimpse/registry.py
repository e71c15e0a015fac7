"""Names of the classifiers that look: a model, or a model with a preset after a dot.

Example:
    >>> @register("doctest_only")
    ... def build(num_classes: int = 2): ...
    >>> REGISTRY.pop("doctest_only") is build
    True
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

Constructor = TypeVar("Constructor", bound=Callable[..., Any])

REGISTRY: dict[str, Callable[..., Any]] = {}


def register(name: str) -> Callable[[Constructor], Constructor]:
    """Register a constructor under ``name``; it is called with keywords, which are the model's options everywhere."""

    def add(build: Constructor) -> Constructor:
        if name in REGISTRY:
            raise ValueError(f"two models are called {name}")
        REGISTRY[name] = build
        return build

    return add

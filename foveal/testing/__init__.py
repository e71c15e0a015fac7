"""Test classes for models and backbones. They need pytest.

Derive a class, define how the model is made, and pytest runs all tests on it:

Example:
    >>> from foveal.glimpse import RAM
    >>> class TestMyModel(GlimpseClassifierTester):
    ...     locations = ((), (1,), (3,))
    ...     additive = False
    ...
    ...     def make(self):
    ...         return RAM(num_classes=3, base_size=6)
    >>> TestMyModel().make().resolve_locations((3,))
    (3,)
"""

import pytest

pytest.register_assert_rewrite("foveal.testing.backbones", "foveal.testing.glimpse")  # errors show values

from foveal.testing.backbones import BackboneTester  # noqa: E402
from foveal.testing.glimpse import CountingViews, GlimpseClassifierTester  # noqa: E402

__all__ = ["BackboneTester", "CountingViews", "GlimpseClassifierTester"]

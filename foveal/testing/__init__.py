"""Checks that a model or a network of yours must pass to work with every command. They need pytest.

Derive a class in a file of tests, say how the model is made, and pytest runs all checks on it:

Example:
    >>> from foveal.glimpse import RAM
    >>> class TestMine(GlimpseClassifierTester):
    ...     budgets = ((), (1,), (3,))
    ...     additive = False
    ...
    ...     def make(self):
    ...         return RAM(num_classes=3, base_size=6)
    >>> TestMine().make().budget((3,))
    (3,)
"""

import pytest

pytest.register_assert_rewrite("foveal.testing.backbones", "foveal.testing.glimpse")  # errors show values

from foveal.testing.backbones import BackboneTester  # noqa: E402
from foveal.testing.glimpse import CountingViews, GlimpseClassifierTester  # noqa: E402

__all__ = ["BackboneTester", "CountingViews", "GlimpseClassifierTester"]

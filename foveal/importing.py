"""Importing large libraries in less time.

Example:
    >>> import gc
    >>> with quickly():
    ...     import json
    ...     gc.isenabled()
    False
    >>> gc.isenabled()
    True
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quickly() -> Iterator[None]:
    """Do not search for garbage while modules are imported.

    Python searches all objects again and again while their number grows. torch and timm make some millions of objects, which all
    stay, and the search takes a good part of the time that their import takes.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()

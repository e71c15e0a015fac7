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

MANY = 100_000
"""Objects that one garbage collection should not have to look at; a library as large as torch makes several times as many."""


@contextmanager
def quickly() -> Iterator[None]:
    """Do not search for garbage while modules are imported.

    Python searches all objects again and again while their number grows. torch and timm make some millions of objects, which all
    stay, and the searches take a good part of the time of their import. Afterwards the new objects are put with the old ones without
    a search.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            if gc.get_count()[0] > MANY and not gc.get_freeze_count():
                gc.freeze()
                gc.unfreeze()  # into the oldest generation
            gc.enable()

"""Faster imports of large libraries.

Example:
    >>> import gc
    >>> with fast_imports():
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
from importlib.util import find_spec
from pathlib import Path

from foveal.errors import ConfigError

MANY = 100_000
"""Freeze new objects above this number; importing torch creates several times as many."""


@contextmanager
def fast_imports() -> Iterator[None]:
    """Disable garbage collection during imports.

    Importing torch and timm creates millions of permanent objects. Python scans them repeatedly as their number grows,
    which takes a large part of the import time. At the end, new objects move to the oldest generation without a scan.
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


def need_parquet(file: Path) -> None:
    """Check that Parquet files can be read and written.

    Raises:
        ConfigError: pyarrow is not installed.
    """
    if find_spec("pyarrow") is None:
        raise ConfigError(f"{file}: Parquet needs pyarrow; run pip install 'foveal[parquet]', or use another format")

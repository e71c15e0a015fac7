"""Warnings of image libraries, with the path of the file.

Warnings of Pillow, tifffile, imagecodecs and rasterio do not name the file. The context manager `noting` collects their
warnings and log records. On exit the logger ``foveal`` logs each of them once, with the path first. If the file cannot
be read, an error with its path is raised and its warnings are dropped.

Threads may read different files at the same time.

Example:
    >>> import logging, sys, warnings
    >>> shown = logging.StreamHandler(sys.stdout)
    >>> logging.getLogger("foveal").addHandler(shown)
    >>> with noting("photo.jpg"):
    ...     warnings.warn("Corrupt EXIF data")
    photo.jpg: Corrupt EXIF data
    >>> logging.getLogger("foveal").removeHandler(shown)
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

_LOGGERS = ("tifffile", "imagecodecs", "rasterio", "rasterio._env", "rasterio._err", "PIL.TiffImagePlugin")
_DEBUG_ONLY = ("NotGeoreferencedWarning",)  # images need no georeference

_log = logging.getLogger("foveal")
_here = threading.local()


class _Hook:
    """Replacement of ``warnings.showwarning`` while any thread reads a file."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._readers = 0
        self._before: Any = warnings.showwarning

    def enter(self) -> None:
        with self._lock:
            self._readers += 1
            # `warnings.catch_warnings` in another thread may replace the function at any time.
            if warnings.showwarning is not _show:
                self._before, warnings.showwarning = warnings.showwarning, _show

    def leave(self) -> None:
        with self._lock:
            self._readers -= 1
            if not self._readers and warnings.showwarning is _show:
                warnings.showwarning = self._before

    def forget(self) -> None:
        """Reset in a forked child, which has no other threads; one of them may have held the lock."""
        self._lock, self._readers = threading.Lock(), 0

    def pass_on(self, *warning: Any) -> None:
        self._before(*warning)


_hook = _Hook()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_hook.forget)


@contextmanager
def noting(path: str) -> Iterator[None]:
    """Log the warnings of this thread with the path of the file. Nested contexts have no effect.

    Args:
        path: path of the file that is read.
    """
    if getattr(_here, "notes", None) is not None:
        yield
        return
    _here.notes = {}
    _hook.enter()
    try:
        yield
        for text, level in _here.notes.items():
            _log_once(path, text, level)
    finally:
        _hook.leave()
        _here.notes = None


@lru_cache(maxsize=4096)
def _log_once(path: str, text: str, level: int) -> None:
    """Log a notice. The cache drops repeated notices, because files are read again in each epoch."""
    _log.log(level, "%s: %s", path, text)


def _keep(text: str, level: int) -> bool:
    """Collect a notice; return False if this thread reads no file."""
    notes = getattr(_here, "notes", None)
    if notes is None:
        return False
    notes[" ".join(text.split())] = level
    return True


def _show(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: Any = None,
    line: str | None = None,
) -> None:
    """Replacement of `warnings.showwarning`."""
    if not _keep(str(message), logging.DEBUG if category.__name__ in _DEBUG_ONLY else logging.WARNING):
        _hook.pass_on(message, category, filename, lineno, file, line)
        return
    # Python shows each warning once per line of code. Reset that, so that other files with the same fault are logged.
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename != filename:
        frame = frame.f_back
    frame.f_globals.get("__warningregistry__", {}).clear()


def _filter(record: logging.LogRecord) -> bool:
    """Filter of a library's logger: drop records that were collected."""
    return record.levelno < logging.INFO or not _keep(record.getMessage(), record.levelno)


for _name in _LOGGERS:
    logging.getLogger(_name).addFilter(_filter)

"""Warnings of the libraries that read images, with the name of the file that caused them.

Pillow, tifffile, imagecodecs and rasterio warn of what is odd in a file, but do not say in which one. Within `noting`
their warnings and log records are kept back. At its end the logger ``foveal`` says each of them once, with the path
first. A file that cannot be read leads to an error with its path; its warnings are dropped then.

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
_NOT_SAID = ("NotGeoreferencedWarning",)  # a picture needs no place on Earth

_log = logging.getLogger("foveal")
_here = threading.local()


class _Hook:
    """The function that Python calls to show a warning, replaced while any thread reads a file."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._readers = 0
        self._before: Any = warnings.showwarning

    def enter(self) -> None:
        with self._lock:
            self._readers += 1
            # Whoever uses `warnings.catch_warnings` puts another function there at any time.
            if warnings.showwarning is not _show:
                self._before, warnings.showwarning = warnings.showwarning, _show

    def leave(self) -> None:
        with self._lock:
            self._readers -= 1
            if not self._readers and warnings.showwarning is _show:
                warnings.showwarning = self._before

    def forget(self) -> None:
        """In a forked child the threads that read are gone, and one of them may have held the lock."""
        self._lock, self._readers = threading.Lock(), 0

    def pass_on(self, *warning: Any) -> None:
        self._before(*warning)


_hook = _Hook()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_hook.forget)


@contextmanager
def noting(path: str) -> Iterator[None]:
    """Name the file in every warning that is raised in this thread.

    Args:
        path: what is read. Of two nested contexts the outer one counts.
    """
    if getattr(_here, "notes", None) is not None:
        yield
        return
    _here.notes = {}
    _hook.enter()
    try:
        yield
        for text, level in _here.notes.items():
            _say(path, text, level)
    finally:
        _hook.leave()
        _here.notes = None


@lru_cache(maxsize=4096)
def _say(path: str, text: str, level: int) -> None:
    """Log a notice. The cache drops those that were said before: files are read again in each epoch."""
    _log.log(level, "%s: %s", path, text)


def _keep(text: str, level: int) -> bool:
    """Keep a notice of the file that this thread reads; whether it reads one."""
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
    """Stands for `warnings.showwarning`."""
    if not _keep(str(message), logging.DEBUG if category.__name__ in _NOT_SAID else logging.WARNING):
        _hook.pass_on(message, category, filename, lineno, file, line)
        return
    # Python shows a text once for each place in the code. The next file with the same fault must be named too.
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename != filename:
        frame = frame.f_back
    frame.f_globals.get("__warningregistry__", {}).clear()


def _filter(record: logging.LogRecord) -> bool:
    """Whether a library's logger may speak itself."""
    return record.levelno < logging.INFO or not _keep(record.getMessage(), record.levelno)


for _name in _LOGGERS:
    logging.getLogger(_name).addFilter(_filter)

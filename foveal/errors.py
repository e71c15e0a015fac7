"""Exceptions for errors that a user can correct. The message is one sentence: what is wrong, where, and what to do.

The command prints the message and exits with 2 for a `ConfigError`, with 1 for the others. Any other exception is a bug
and keeps its traceback.

Example:
    >>> from foveal.errors import ImageError
    >>> raise ImageError("scan.tif: the file is empty; copy it again")
    Traceback (most recent call last):
    ...
    foveal.errors.ImageError: scan.tif: the file is empty; copy it again
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager


class FovealError(Exception):
    """An error that a user can correct."""


class ImageError(FovealError):
    """An image cannot be opened or read."""


class DataError(FovealError):
    """A data set, manifest or label file is missing or invalid."""


class ConfigError(FovealError):
    """A name, option or value is not valid: of a model, recipe, locations, ..."""


class RunError(FovealError):
    """A run folder is missing, incomplete, already there, or does not fit the model."""


class StorageError(FovealError):
    """A file cannot be written: full disk, limit of size, no permission, or another process writes it."""


@contextmanager
def renaming(names: Mapping[str, str]) -> Iterator[None]:
    """Give options in errors the names by which the user sets them.

    Args:
        names: replacements of names in backquotes, by name.
    """
    try:
        yield
    except FovealError as error:
        error.args = (re.sub(r"`(\w+)`", lambda found: names.get(found[1], found[0]), str(error)),)
        raise


def section(name: str, options: Iterable[str]) -> dict[str, str]:
    """Names for `renaming` of the options of a section of a recipe. The option ``model.heads`` is ``heads`` in errors
    of the constructor of the model.

    >>> section("model", ["heads"])
    {'heads': '`model.heads`'}
    """
    return {option: f"`{name}.{option}`" for option in options}

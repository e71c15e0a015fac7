"""The one exception a user may see: a sentence that says what was wrong, where, and what to do.

The command prints it and exits non-zero; everything else is a bug and keeps its traceback.

Example:
    >>> from foveal.errors import ImageError
    >>> raise ImageError("scan.tif: the file is empty; copy it again")
    Traceback (most recent call last):
    ...
    foveal.errors.ImageError: scan.tif: the file is empty; copy it again
"""

from __future__ import annotations


class FovealError(Exception):
    """Something the user can mend. Its text is one clear sentence."""


class ImageError(FovealError):
    """An image that cannot be opened or read."""


class DataError(FovealError):
    """A data set, manifest or label file that does not fit."""


class ConfigError(FovealError):
    """A model name, recipe, locations or option that does not exist or does not fit."""


class RunError(FovealError):
    """A run folder that is missing, half written, in the way, or does not fit the model."""


class StorageError(FovealError):
    """A file that cannot be written: a full disk, a limit, no permission, or another process that writes it."""

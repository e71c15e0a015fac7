"""Features of tiles: files that hold them, and batches of them that models take in place of images.

    list_files(folder) -> {name: path};  read(path) -> Features;  read_header(path) -> Header
    writing(path, width) -> Writer
    FeatureViews: a batch of images, of which features of tiles are known instead of pixels

Example:
    >>> import tempfile, pathlib, numpy as np
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> with writing(folder / "a.zarr", width=4) as file:
    ...     file.append(np.ones((2, 4)), np.array([[0, 0], [64, 0]]))
    >>> read(list_files(folder)["a"]).coords.tolist()
    [[0, 0], [64, 0]]
"""

from foveal.features.files import FEATURE_FORMATS, Features, Header, Writer, list_files, read, read_header, writing
from foveal.features.views import FeatureViews, Tiles

__all__ = [
    "FEATURE_FORMATS",
    "FeatureViews",
    "Features",
    "Header",
    "Tiles",
    "Writer",
    "list_files",
    "read",
    "read_header",
    "writing",
]

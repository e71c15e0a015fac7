"""`embed`: encode the tiles of images once, and store their features in files.

For each image a file is written, in the layout of `foveal.features.files`. It has the features and coordinates of all
tiles of a grid, as of `foveal.glimpse.tiles`, without blank ones; or for a run of the model ``scan``, of the looks that
the scan chooses. An image has its name in the folder, or its path in a folder that is searched: ``photos/cat/1.jpg`` of
``photos/`` becomes ``cat/1.h5``. Beside them are ``encoder.safetensors``, the weights of the network, and
``report.jsonl``: a line for each image that was encoded or failed, with ``path``, ``file``, ``tiles``, ``blank``,
``seconds`` and ``error``.

A file has its name when it is complete, so an image is encoded once, however often a command is stopped and repeated. A
file made with other settings is an error, unless it is overwritten.

    embed(model, images, out, *, format="h5", tile_size=None, scale=None, ...) -> Embedded
    tile_encoder(model, *, tile_size=None, scale=None, ...) -> TileEncoder

Example:
    >>> tile_encoder("test_resnet", tile_size=32, pretrained=False).tiles.size
    (32, 32)
"""

from foveal.embedding.encoders import TileEncoder, tile_encoder
from foveal.embedding.images import REPORT, Embedded, embed

__all__ = ["REPORT", "Embedded", "TileEncoder", "embed", "tile_encoder"]

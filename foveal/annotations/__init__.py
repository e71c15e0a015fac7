"""Looks as annotations for other programs: GeoJSON for QuPath and QGIS, GeoPackage, and heatmaps.

    write_looks(row, file) -> Path                      # .geojson, or .gpkg for a raster with a coordinate system
    write_heatmap(row, file) -> Path                    # contributions as a pyramidal GeoTIFF
    LooksFolder(folder), HeatmapFolder(folder)          # one file per image, for foveal.predict(..., sinks=[...])
    as_qupath(row), as_geojson(row) -> dict             # the content of a GeoJSON file

They take rows of predictions, see `foveal.prediction.rows.COLUMNS`, so they need neither the model nor the image.

Example:
    >>> import torch, foveal
    >>> model = foveal.create_model("tnet", backbone="test_efficientnet", num_classes=3, base_size=32, locations=(2,))
    >>> (row,) = foveal.predict(model, torch.rand(3, 96, 128), device="cpu").rows
    >>> features = as_qupath(row)["features"]
    >>> features[0]["geometry"]["coordinates"]
    [[[0.0, 0.0], [128.0, 0.0], [128.0, 96.0], [0.0, 96.0], [0.0, 0.0]]]
    >>> sorted(features[1]["properties"]["measurements"])
    ['Contribution', 'Level', 'Parent', 'Probability']
"""

from foveal.annotations.folders import HeatmapFolder, LooksFolder, file_stem
from foveal.annotations.geojson import as_geojson, as_qupath
from foveal.annotations.heatmap import write_heatmap
from foveal.annotations.looks import write_looks

__all__ = [
    "HeatmapFolder",
    "LooksFolder",
    "as_geojson",
    "as_qupath",
    "file_stem",
    "write_heatmap",
    "write_looks",
]

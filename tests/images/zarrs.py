"""Small OME-Zarr images for the tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import zarr

UNITS = {"t": "second", "z": "micrometer", "y": "micrometer", "x": "micrometer"}


def write_ome_zarr(
    place: Any,
    levels: list[np.ndarray],
    axes: str = "cyx",
    *,
    version: str = "0.5",
    step: float = 2.0,
    mpp: float | None = 0.5,
    chunks: tuple[int, ...] | None = None,
    write: bool = True,
    path: str | None = None,
    **options: Any,
) -> zarr.Group:
    """Write levels as an OME-Zarr image; return the group.

    Args:
        place: path of the folder.
        levels: the arrays.
        axes: names of their axes.
        version: of NGFF.
        step: scale of each level to the one before.
        mpp: µm per pixel; no scales if None.
        chunks: shape of the chunks.
        write: whether to write the pixels.
        path: path of the image in the folder.
        options: of ``create_array``.
    """
    group = zarr.open_group(str(place), mode="a", path=path, zarr_format=3 if version == "0.5" else 2)
    datasets = []
    for i, level in enumerate(levels):
        array = group.create_array(
            str(i),
            shape=level.shape,
            dtype=level.dtype,
            chunks=chunks
            or tuple(min(64, n) if name in "yx" else 1 for name, n in zip(axes, level.shape, strict=True)),
            **({"chunk_key_encoding": {"name": "v2", "separator": "/"}} if version != "0.5" else {}),
            **options,
        )
        if write:
            array[...] = level
        entry: dict[str, Any] = {"path": str(i)}
        if mpp is not None:
            scale = [mpp * step**i if name in "yx" else 1.0 for name in axes]
            entry["coordinateTransformations"] = [{"type": "scale", "scale": scale}]
        datasets.append(entry)
    kinds = {"t": "time", "c": "channel"}
    named = [
        {"name": name, "type": kinds.get(name, "space"), **({"unit": UNITS[name]} if name in UNITS else {})}
        for name in axes
    ]
    image = {"axes": named, "datasets": datasets}
    if version == "0.5":
        group.attrs["ome"] = {"version": version, "multiscales": [image]}
    else:
        group.attrs["multiscales"] = [{"version": version, **image}]
    return group


def one_file(folder: Any, name: str) -> Path:
    """The first file of this name below a folder."""
    return sorted(Path(folder).rglob(name))[0]

"""Intact files of every variant, read by foveal and other libraries, and comparison of the pixels.

Example:
    >>> import numpy as np
    >>> grey = np.full((2, 2, 1), 0.5)
    >>> distance(grey, np.full((2, 2), 128, np.uint8), 255.0) < 0.003
    True
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.torture.libraries import READERS, read_by
from benchmarks.torture.seeds import VARIANTS

SAME, CLOSE = 1.5 / 255, 5 / 255  # largest difference; mean difference for another interpolation of chroma


def run(folder: Path) -> list[dict[str, Any]]:
    """Read each variant with foveal and the other libraries, and compare the pixels."""
    import torch

    from foveal.errors import FovealError
    from foveal.images import open_image

    rows = []
    folder.mkdir(parents=True, exist_ok=True)
    for variant in VARIANTS:
        path = variant.write(folder)
        row: dict[str, Any] = {"format": variant.format, "name": variant.name, "foveal": "read", "others": {}}
        seen, highest = None, None
        try:
            with open_image(path, value_range=variant.value_range, cache_dir=folder / "cache") as image:
                look = image.look(np.array([[0, 0, *image.size]], float), image.size, fill=torch.zeros(image.channels))
                seen, highest = look[0].permute(1, 2, 0).numpy(), image.value_range[1]
        except FovealError as error:
            row["foveal"] = str(error)
        for name in READERS:
            found = read_by(name, path)
            if found is None or isinstance(found, str):
                row["others"][name] = None if found is None else "cannot"
            elif seen is not None:
                row["others"][name] = judge(seen, found[0], highest)
            else:
                row["others"][name] = "read"
        rows.append(row)
    return rows


def judge(seen: np.ndarray, pixels: np.ndarray, highest: float | None) -> str:
    """ "same", "close" (chroma interpolated in another way), or "as stored" (indices, ink, another picture)."""
    if distance(seen, pixels, highest) <= SAME:
        return "same"
    return "close" if distance(seen, pixels, highest, np.mean) <= CLOSE else "as stored"


def distance(seen: np.ndarray, pixels: np.ndarray, highest: float | None, of: Any = np.max) -> float:
    """Difference of a look from the pixels of a library; the least over conventions of colour, alpha and orientation.

    Args:
        seen: (h, w, bands) in [0, 1].
        pixels: (h, w) or (h, w, bands); colours, alpha and orientation may be as stored.
        highest: value of white.
        of: reduction of the differences of the pixels.
    """
    if pixels.dtype == bool or highest is None:
        highest = 1
    elif pixels.dtype.kind == "u" and pixels.dtype.itemsize == 1:
        highest = 255
    values = (pixels if pixels.ndim == 3 else pixels[..., None]).astype(float) / highest
    return min(
        (
            float(of(np.abs(seen - turned)))
            for way in _ways(values, seen.shape[2])
            for turned in _turns(way)
            if turned.shape == seen.shape
        ),
        default=np.inf,
    )


def _ways(values: np.ndarray, bands: int) -> Iterator[np.ndarray]:
    found = values.shape[2]
    if found == bands:
        yield values
        yield 1 - values
    if found == bands + 1:
        yield values[..., :-1]
        yield values[..., :-1] * values[..., -1:]
    if (found, bands) == (4, 3):
        yield (1 - values[..., :3]) * (1 - values[..., 3:])
        yield values[..., :3] * values[..., 3:]
    if bands == 1 and found > 2:
        yield values[..., :1]
        yield values[..., :1] * (values[..., 3:] if found == 4 else 1)
    if (found, bands) == (1, 3):
        yield values.repeat(3, 2)


def _turns(values: np.ndarray) -> Iterator[np.ndarray]:
    for turned in (values, values.swapaxes(0, 1)):
        yield from (turned, turned[::-1], turned[:, ::-1], turned[::-1, ::-1])

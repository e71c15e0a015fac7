"""Small image files for the tests of this folder."""

from __future__ import annotations

import numpy as np
import tifffile


def photo(h: int, w: int, bands: int = 3, dtype: type = np.uint8, seed: int = 0) -> np.ndarray:
    """(h, w, bands) test image: smooth shapes and texture, with four different corners."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:h, :w] / max(h, w)
    planes = [np.sin(7 * (i + 1) * y + 3 * x) * np.cos(5 * x * (i + 2) - y) + 0.3 * y - 0.2 * x for i in range(bands)]
    picture = np.stack(planes, -1) + rng.normal(0, 0.03, (h, w, bands))
    picture = (picture - picture.min()) / np.ptp(picture)
    if np.dtype(dtype).kind == "f":
        return picture.astype(dtype)
    return np.rint(picture * np.iinfo(dtype).max).astype(dtype)


def halve(pixels: np.ndarray) -> np.ndarray:
    h, w = pixels.shape[0] // 2 * 2, pixels.shape[1] // 2 * 2
    small = pixels[:h, :w].reshape(h // 2, 2, w // 2, 2, -1).astype(float).mean((1, 3))
    return (np.rint(small) if pixels.dtype.kind != "f" else small).astype(pixels.dtype)


def write_pyramid(
    path, pixels: np.ndarray, levels: int = 3, *, tile: int = 64, subifds: bool = False, **options
) -> list[np.ndarray]:
    """Write a tiled TIFF with halved levels, as SubIFDs or as pages; return the levels."""
    stack = [pixels]
    while len(stack) < levels:
        stack.append(halve(stack[-1]))
    options = {"tile": (tile, tile), "photometric": "rgb" if pixels.shape[2] == 3 else "minisblack", **options}
    if pixels.shape[2] > 1:
        options["planarconfig"] = "contig"
    with tifffile.TiffWriter(path) as writer:
        for i, level in enumerate(stack):
            writer.write(
                level.squeeze(2) if level.shape[2] == 1 else level,
                subifds=levels - 1 if subifds and i == 0 else None,
                subfiletype=int(i > 0),
                metadata=None,
                **options,
            )
    return stack

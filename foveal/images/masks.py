"""Masks of images: where a scan may look, such as the tissue of a slide.

A mask is an image of any size with the proportions of its image, such as a PNG of 1,000 x 2,000 px for a slide of
50,000 x 100,000 px. It is stretched over its image. A scan searches the white pixels, those above half of the range.
The mask of
``slides/a.svs`` in a folder of masks is ``a.png``, or ``a.svs.png``.

Example:
    >>> import numpy as np
    >>> from foveal.images.pyramid import ArrayPyramid
    >>> image = ArrayPyramid(np.zeros((60, 40, 3), np.uint8), path="a.tif")
    >>> read_mask(np.eye(6, 4, dtype=bool), image).sum()
    np.int64(4)
    >>> read_mask(np.ones((6, 6), bool), image)
    Traceback (most recent call last):
    ...
    foveal.errors.ImageError: a.tif: the mask is 6 x 6 pixels, and the image 40 x 60; give one whose width is 0.667
    times its height
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from foveal.errors import ImageError

if TYPE_CHECKING:
    from foveal.images.pyramid import Pyramid

LONGEST = 2048
"""Larger masks are reduced to this side, in pixels."""
MASK_SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".webp", ".jpg", ".jpeg")
_SHAPE = 0.02  # relative difference of aspect ratios that is allowed, besides one pixel of rounding


def read_mask(mask: str | os.PathLike | np.ndarray, image: Pyramid) -> np.ndarray:
    """(h, w) bool mask of an image.

    Args:
        mask: path of an image file, or an (h, w) array of bool.
        image: the image.

    Raises:
        ImageError: the file cannot be read, its ratio of width to height is not that of the image, or it has no white
            pixel.
    """
    name = f"{image.path}: the mask"
    if isinstance(mask, np.ndarray):
        if mask.ndim != 2 or mask.dtype != bool or not mask.size:
            what = f"is an array of {mask.dtype} of shape {mask.shape}"
            raise ImageError(f"{name} {what}; give an (h, w) array of bool, or a path")
        found = mask
    else:
        found, name = _read_file(mask), os.fspath(mask)
    (h, w), (height, width) = found.shape, image.size
    rounding = max(1 / h, 1 / w)
    if abs(h * width / (w * height) - 1) > _SHAPE + rounding:
        other = "the image" if isinstance(mask, np.ndarray) else image.path
        ratio = f"give one whose width is {width / height:.3g} times its height"
        raise ImageError(f"{name} is {w} x {h} pixels, and {other} {width} x {height}; {ratio}")
    if not found.any():
        raise ImageError(f"{name} has no white pixel, so there is nowhere to look; make it white where to look")
    return found


def _read_file(path: str | os.PathLike) -> np.ndarray:
    from foveal.images.open import open_image

    with open_image(path) as opened:
        height, width = opened.size
        shrink = min(1.0, LONGEST / max(height, width))
        size = max(1, round(height * shrink)), max(1, round(width * shrink))
        return (opened.look(np.array([[0.0, 0, height, width]]), size)[0].mean(0) > 0.5).numpy()


def find_mask(folder: str | os.PathLike, path: str | os.PathLike) -> Path:
    """Path of the mask of an image in a folder.

    Raises:
        ImageError: there is none.
    """
    image = Path(path)
    for stem in (image.stem, image.name):
        for suffix in MASK_SUFFIXES:
            if (file := Path(folder) / f"{stem}{suffix}").is_file():
                return file
    raise ImageError(f"{path}: has no mask in {folder}; add {image.stem}.png there, white where to look")

"""Caltech-UCSD Birds-200-2011 (CUB).

Example:
    >>> cub(root="/nowhere")
    Traceback (most recent call last):
    ...
    foveal.errors.DataError: /nowhere: there is no such file or folder; correct the path
"""

from __future__ import annotations

from foveal.data.annotations import bird_tables
from foveal.data.augmentation import Augmentation
from foveal.data.dataset import Reading, Resizing
from foveal.data.module import DATA_SETS, DataModule
from foveal.data.options import document_options


@DATA_SETS.register
@document_options()
def cub(
    root: str,
    val_fraction: float = 0.0,
    seed: int = 0,
    augmentation: Augmentation = "light",
    image_size: int | None = None,
    kernels: Resizing = "bilinear",
) -> DataModule:
    """Caltech-UCSD Birds-200-2011: 5,994 training and 5,794 test images of 200 kinds of birds.

    Args:
        root: folder that holds ``images.txt`` or the folder ``CUB_200_2011``.

    Raises:
        DataError: a part of the data set is missing or malformed.
    """
    return bird_tables(
        root, "CUB_200_2011", Reading(augmentation, image_size=image_size, kernels=kernels), val_fraction, seed
    )

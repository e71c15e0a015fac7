"""NABirds.

Example:
    >>> nabirds(root="/nowhere")
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
def nabirds(
    root: str,
    val_fraction: float = 0.0,
    seed: int = 0,
    augmentation: Augmentation = "light",
    image_size: int | None = None,
    kernels: Resizing = "bilinear",
) -> DataModule:
    """NABirds: 23,929 training and 24,633 test images of 555 kinds of birds; plumages are classes of their own.

    Args:
        root: folder that holds ``images.txt`` or the folder ``nabirds``.

    Raises:
        DataError: a part of the data set is missing or malformed.
    """
    return bird_tables(
        root, "nabirds", Reading(augmentation, image_size=image_size, kernels=kernels), val_fraction, seed
    )

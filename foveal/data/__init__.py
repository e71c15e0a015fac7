"""Data sets, in files or in memory, and the batches made of them.

Example:
    >>> data = get_data("digits", canvas=96, digit=(12, 16), train=16, val=8, test=8)
    >>> batch = next(iter(data.loader("train", batch_size=4)))
    >>> batch.views.sizes.tolist(), batch.target.shape
    ([[96, 96], [96, 96], [96, 96], [96, 96]], torch.Size([4]))
"""

from foveal.data import digits as _digits  # noqa: F401  (registers its data set)
from foveal.data.dataset import Batch, Dataset, TensorDataset
from foveal.data.loader import Loader
from foveal.data.module import DataModule, check_classes, data_constructor, get_data, list_data, register

__all__ = [
    "Batch",
    "DataModule",
    "Dataset",
    "Loader",
    "TensorDataset",
    "check_classes",
    "data_constructor",
    "get_data",
    "list_data",
    "register",
]

"""Data sets, in files or in memory, and the batches made of them.

Example:
    >>> data = get_data("digits", canvas=128, digit=(12, 16), train=16, val=8, test=8)
    >>> batch = next(iter(data.loader("train", batch_size=4)))
    >>> batch.views.sizes.tolist(), batch.target.shape
    ([[128, 128], [128, 128], [128, 128], [128, 128]], torch.Size([4]))
"""

# Importing a module registers its data sets. Constructors have the names of their modules; use `get_data`.
import foveal.data.cifar
import foveal.data.cub
import foveal.data.digits
import foveal.data.features
import foveal.data.fmow
import foveal.data.folder
import foveal.data.imagenet
import foveal.data.megapixel
import foveal.data.nabirds
import foveal.data.shards  # noqa: F401
from foveal.data.dataset import Batch, Dataset, ImageDataset, Reading, TensorDataset
from foveal.data.loader import Loader
from foveal.data.module import DATA_SETS, DataModule, Encoder, check_classes, data_constructor, get_data, list_data
from foveal.data.values import value_notes

__all__ = [
    "DATA_SETS",
    "Batch",
    "DataModule",
    "Dataset",
    "Encoder",
    "ImageDataset",
    "Loader",
    "Reading",
    "TensorDataset",
    "check_classes",
    "data_constructor",
    "get_data",
    "list_data",
    "value_notes",
]

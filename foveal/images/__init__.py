"""Image readers and views: pixels of boxes in image files and tensors.

Example:
    >>> import torch
    >>> len(as_views(torch.zeros(2, 3, 8, 8)))
    2
"""

from foveal.formats import SUFFIXES
from foveal.images.info import ImageInfo
from foveal.images.inputs import as_batch, as_image, check_type, each, is_one, is_path
from foveal.images.masks import find_mask
from foveal.images.open import open_image
from foveal.images.pyramid import ArrayPyramid, Pyramid, checked_range, squash
from foveal.images.resample import resample
from foveal.images.transform import Colour, Transform
from foveal.images.views import BlankViews, ImageViews, Look, Occluded, TensorViews, View, Views, as_views
from foveal.images.walk import LeftOut, as_text, is_zarr, walk

__all__ = [
    "SUFFIXES",
    "ArrayPyramid",
    "BlankViews",
    "Colour",
    "ImageInfo",
    "ImageViews",
    "LeftOut",
    "Look",
    "Occluded",
    "Pyramid",
    "TensorViews",
    "Transform",
    "View",
    "Views",
    "as_batch",
    "as_image",
    "as_text",
    "as_views",
    "check_type",
    "checked_range",
    "each",
    "find_mask",
    "is_one",
    "is_path",
    "is_zarr",
    "open_image",
    "resample",
    "squash",
    "walk",
]

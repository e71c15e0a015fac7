"""Where pixels come from: files and tensors that can be looked at, box by box.

Example:
    >>> import torch
    >>> len(as_views(torch.zeros(2, 3, 8, 8)))
    2
"""

from foveal.images.open import SUFFIXES, open_image
from foveal.images.pyramid import ArrayPyramid, Pyramid, checked_range, squash
from foveal.images.resample import resample
from foveal.images.transform import Colour, Transform
from foveal.images.views import BlankViews, ImageViews, Look, Occluded, TensorViews, View, Views, as_views

__all__ = [
    "SUFFIXES", "ArrayPyramid", "BlankViews", "Colour", "ImageViews", "Look", "Occluded", "Pyramid", "TensorViews", "Transform", "View",
    "Views", "as_views", "checked_range", "open_image", "resample", "squash",
]  # fmt: skip

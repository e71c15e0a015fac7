"""Help texts of the options that several data sets share.

Example:
    >>> @document_options()
    ... def birds(root: str, seed: int = 0):
    ...     '''Photographs of birds.
    ...
    ...     Args:
    ...         root: folder of the data set.
    ...     '''
    >>> print(birds.__doc__)
    Photographs of birds.
    <BLANKLINE>
    Args:
        root: folder of the data set.
        seed: seed of the random split.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import TypeVar

HELP = {
    "root": "folder of the data set.",
    "download": "download missing files.",
    "val_fraction": "share of each class's training images held out for validation; 0 (the default) is the published "
    "split.",
    "seed": "seed of the random split.",
    "augmentation": (
        "random changes to training images: ``light`` is a slight crop and a flip, ``surface`` also flips upside down "
        "and changes brightness and contrast, ``inception`` is the usual crop and flip for "
        "ImageNet, ``tnet`` and ``tnet_birds`` follow TNet's paper. ``randaugment`` is ``light`` and two operations of "
        "RandAugment: any with ``image_size``, else shifts, rotation and changes of colour that all looks at an image "
        "share."
    ),
    "channels": "bands of the images; grey images are repeated to 3 bands.",
    "value_range": (
        "stored values that are black and white, for example 0,4095. None takes the range of the pixel type; signed "
        "and "
        "floating-point images have none."
    ),
    "image_size": "resize whole images to a square of this side first, ignoring their aspect ratio; None keeps their "
    "size.",
    "masks": "folder of masks, PNG files with the names of the images: a scan looks where they are white. Other models "
    "ignore them.",
    "kernels": "with ``image_size``: ``bilinear``, or ``tnet`` for one of eight kernels drawn for each training image.",
}

Function = TypeVar("Function", bound=Callable)


def document_options(**more: str) -> Callable[[Function], Function]:
    """Decorator: add options that a docstring leaves out to its ``Args``, with the texts of `HELP` and ``more``."""
    texts = HELP | more

    def document(function: Function) -> Function:
        text = inspect.getdoc(function) or ""
        names = [
            n for n in inspect.signature(function).parameters if n in texts and not re.search(rf"^    {n}:", text, re.M)
        ]
        before, separator, after = text.partition("\n\nRaises:")
        function.__doc__ = (
            before.rstrip() + "".join(f"\n    {name}: {texts[name]}" for name in names) + separator + after
        )
        return function

    return document

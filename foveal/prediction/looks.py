"""Looks and images as plain values: the keys of a look and of an image, for rows, annotations and the service.

Example:
    >>> import torch
    >>> from foveal.images import as_image
    >>> from foveal.models import create_model
    >>> from foveal.prediction import classify
    >>> model = create_model("tnet", backbone="test_efficientnet", num_classes=3, base_size=32, locations=(2,))
    >>> image = as_image(torch.rand(3, 96, 128))
    >>> first, second, third = describe_looks(classify(model, image), image)
    >>> list(first) == list(LOOK_KEYS), second["parent"], second["level"], describe_image(image)["size"]
    (True, 0, 2, [96, 128])
"""

from __future__ import annotations

from typing import Any

from foveal.classification import Box, Classification
from foveal.images import ImageInfo, Pyramid

LOOK_KEYS = ("box", "size", "level", "parent", "probability", "contribution", "mpp", "box_um", "corners")
"""Keys of a look.

``box`` is [y0, x0, y1, x1] in full-resolution pixels of the file, and may reach outside the image; ``size`` the
[height, width] to which it was resampled; ``level`` the processing level, 1 for the first look; ``parent`` the index of
the look from which it was chosen, None for the first; ``probability`` that of the choice. ``contribution`` is what the
look added to the logit of `explained_class`; None if the logits are not a sum over looks. ``mpp`` is the µm per pixel
of the look as resampled, ``box_um`` the box in µm, for images with a scale and no coordinate system. ``corners`` are
the four corners [x, y] of the box in the coordinate system of the image, clockwise as displayed, from the upper left.
"""

IMAGE_KEYS = ("size", "levels", "mpp", "crs", "transform", "bounds")
"""Keys of an image, see `foveal.images.ImageInfo`."""


def explained_class(seen: Classification) -> int:
    """Index of the class of which contributions are told: the predicted class of one image, or the most probable of the
    predicted labels; the most probable label if none is predicted.
    """
    p = seen.probabilities
    return max(seen.predicted or range(len(p)), key=lambda i: float(p[i]))


def describe_looks(seen: Classification, image: Pyramid) -> list[dict[str, Any]]:
    """The looks at an image as plain values, with `LOOK_KEYS`.

    Args:
        seen: the classification of one image.
        image: the open image.
    """
    info, chosen = image.info, explained_class(seen)
    down, across = info.size[0] / image.size[0], info.size[1] / image.size[1]
    looks = seen.glimpses
    added: list[float | None] = [None] * len(looks)
    if looks.contribution is not None:
        added = looks.contribution[:, chosen].double().tolist()
    elif len(looks) == 1:
        added = [float(seen.logits[chosen])]  # there is no other look
    found = []
    for look, gave in zip(looks, added, strict=True):
        y0, x0, y1, x1 = look.box
        look = look._replace(box=(down * y0, across * x0, down * y1, across * x1))
        um = info.mpp is not None and info.crs is None
        values = (
            list(look.box),
            list(look.size),
            look.level,
            look.parent,
            look.probability,
            gave,
            None if info.mpp is None else info.mpp * look.pixels_each,
            [info.mpp * edge for edge in look.box] if um and info.mpp is not None else None,
            None if info.crs is None else [list(info.on_ground(y, x)) for y, x in corners(look.box)],
        )
        found.append(dict(zip(LOOK_KEYS, values, strict=True)))
    return found


def corners(box: Box) -> list[tuple[float, float]]:
    """The corners (y, x) of a box, clockwise as displayed, from the upper left."""
    y0, x0, y1, x1 = box
    return [(y0, x0), (y0, x1), (y1, x1), (y1, x0)]


def describe_image(image: Pyramid) -> dict[str, Any]:
    """An open image as plain values, with `IMAGE_KEYS`."""
    info: ImageInfo = image.info
    return {
        "size": list(info.size),
        "levels": [list(size) for size in info.levels],
        "mpp": info.mpp,
        "crs": info.crs,
        "transform": None if info.transform is None else list(info.transform),
        "bounds": None if info.bounds is None else list(info.bounds),
    }

"""Pictures of an image with the glimpses of a model.

Example:
    >>> import torch
    >>> from foveal.models import create_model
    >>> from foveal.prediction import classify
    >>> model = create_model("tnet", backbone="test_efficientnet", num_classes=3, base_size=32, locations=(2,))
    >>> image = torch.rand(3, 96, 128)
    >>> overlay(classify(model, image), image).size
    (128, 96)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from foveal.classification import Classification
from foveal.errors import ImageError
from foveal.images import View, Views, as_image, as_views, is_path, open_image

LONGEST = 1024
"""Longest side in pixels of the picture of a glimpse."""

COLOURS = ("#e8eaed", "#ffb000", "#4cc9f0", "#f72585", "#80ed99", "#b794f6")
"""Colours of processing levels, starting with the thumbnail, used cyclically."""


def colour(level: int) -> str:
    """Colour of a processing level."""
    return COLOURS[(level - 1) % len(COLOURS)]


def one_view(image: Any) -> Views:
    """Views of one image: a path, an image in memory as for `foveal.classify`, or views.

    A path is opened with the value range of its type. For another value range, open the image with
    `foveal.prediction.Predictor.open` first.

    Raises:
        ImageError: there are several images, or this is not an image.
    """
    if is_path(image):
        image = open_image(image)
    held = isinstance(image, Views | View | list | tuple) or (isinstance(image, Tensor) and image.ndim == 4)
    views = as_views(image if held else [as_image(image)])
    if len(views) != 1:
        raise ImageError(f"expected one image, got {len(views)}; take one of them")
    return views


def thumbnail(image: Any, side: int = 768) -> Image.Image:
    """The whole image, reduced so that no side is longer than ``side``."""
    views = one_view(image)
    height, width = (int(n) for n in views.sizes[0])
    shrink = min(1.0, side / max(height, width))
    size = max(1, round(height * shrink)), max(1, round(width * shrink))
    return to_picture(_read_looks(views, np.array([[0, 0, height, width]]), size)[0])


def glimpse_pictures(
    classification: Classification, image: Any, *, fill: Sequence[float] | None = None, antialias: bool = True
) -> list[Image.Image]:
    """Each glimpse as the model saw it, before normalisation; a scan that is longer than 1,024 px is reduced.

    Args:
        classification: the classification of one image.
        image: the image, see `one_view`.
        fill: value of each channel outside the image; models use their mean, which is normalised to 0.
        antialias: whether looks are antialiased, as for the model.
    """
    views, looks = one_view(image), classification.glimpses
    ground = None if fill is None else torch.tensor(fill)
    pictures: dict[int, Image.Image] = {}
    for size in {g.size for g in looks}:
        rows = (looks.size == size).all(1).nonzero()[0]
        shrink = min(1.0, LONGEST / max(size))
        shown = max(1, round(size[0] * shrink)), max(1, round(size[1] * shrink))
        seen = _read_looks(views, looks.box[rows], shown, fill=ground, antialias=antialias)
        pictures |= {int(row): to_picture(pixels) for row, pixels in zip(rows, seen, strict=True)}
    return [pictures[row] for row in range(len(looks))]


def to_picture(pixels: Tensor) -> Image.Image:
    """A picture of (C, h, w) pixels in [0, 1]: the first three channels, or the first of fewer than three."""
    shown = pixels[:3] if len(pixels) >= 3 else pixels[:1].expand(3, -1, -1)
    return Image.fromarray((shown.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy())


def overlay(classification: Classification, image: Any, *, side: int = 768) -> Image.Image:
    """The image with the boxes of all glimpses, coloured by level and numbered in order.

    Args:
        classification: the classification of one image.
        image: the image, see `one_view`.
        side: longest side of the picture; smaller images are not enlarged.
    """
    views = one_view(image)
    picture = thumbnail(views, side)
    draw = ImageDraw.Draw(picture)
    scale = picture.width / views.sizes[0, 1], picture.height / views.sizes[0, 0]
    line, font = max(1, round(max(picture.size) / 256)), max(10, max(picture.size) // 40)
    for number, glimpse in enumerate(classification.glimpses):
        if glimpse.level > 1:
            y0, x0, y1, x1 = glimpse.box
            corners = [x0 * scale[0], y0 * scale[1], x1 * scale[0] - 1, y1 * scale[1] - 1]
            # The dark outline makes the coloured line visible on any background.
            draw.rectangle(
                [corners[0] - 1, corners[1] - 1, corners[2] + 1, corners[3] + 1], outline="#000000", width=line + 2
            )
            draw.rectangle(corners, outline=colour(glimpse.level), width=line)
            # A cell often shares its corner with a cell of the next level, so the labels of levels are at different
            # heights.
            at = max(corners[0], 0) + line + 2, max(corners[1], 0) + line + 1 + (glimpse.level - 2) * (font + 5)
            draw.rectangle(
                [a + d for a, d in zip(draw.textbbox(at, str(number), font_size=font), (-2, -2, 2, 2), strict=True)],
                fill=colour(glimpse.level),
            )
            draw.text(at, str(number), fill="#000000", font_size=font)
    return picture


def heat(ground: Image.Image, attention: Tensor) -> Image.Image:
    """Draw an attention map (h, w) over a picture: bright where it is high, grey where it is low."""
    low, high = float(attention.min()), float(attention.max())
    level = (attention.float() - low) / ((high - low) or 1.0)
    mask = Image.fromarray((level * 255).round().byte().cpu().numpy()).resize(ground.size, Image.Resampling.BICUBIC)
    dark = ground.convert("L").point(lambda v: round(0.55 * v)).convert("RGB")
    glow = Image.composite(Image.new("RGB", ground.size, "#ffb000"), Image.new("RGB", ground.size, "#000000"), mask)
    return Image.composite(Image.blend(ground, glow, 0.45), dark, mask)


def _read_looks(
    views: Views, boxes: np.ndarray, size: tuple[int, int], *, fill: Tensor | None = None, antialias: bool = True
) -> Tensor:
    pixels = views.look(
        np.zeros(len(boxes), dtype=int), np.asarray(boxes, dtype=np.float64), size, fill=fill, antialias=antialias
    )
    for reason in views.errors.values():
        raise ImageError(reason)
    return pixels

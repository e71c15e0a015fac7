"""Random changes to training images. A change is drawn once per image, so that all looks at the image agree.

`draw_change` draws the change. `change_view` applies it to a view that looks are cut from; `change_pixels` applies it
to a whole image that is resized to one size.

Example:
    >>> import numpy as np
    >>> change = draw_change("light", (0, 0, 100, 80), None, np.random.default_rng(0))
    >>> 0.7 < (change.crop[2] - change.crop[0]) / 100 < 1, change.colour
    (True, ())
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from foveal.classification import Box
from foveal.data.kernels import resize
from foveal.errors import ConfigError
from foveal.images import Colour, Pyramid, Transform, View

AUGMENTATIONS = ("none", "light", "surface", "inception", "tnet", "tnet_birds", "randaugment")
TENSOR_AUGMENTATIONS = ("none", "crop_flip", "randaugment")

Augmentation = Annotated[str, AUGMENTATIONS]
TensorAugmentation = Annotated[str, TENSOR_AUGMENTATIONS]

PADDING = 4
"""Padding of `crop_flip` on each side, in pixels."""

# Ranges and orders of the colour changes in TNet's released code.
_COLOUR_RANGES = {
    "brightness": (-32 / 255, 32 / 255),
    "saturation": (0.5, 1.5),
    "hue": (-0.2, 0.2),
    "contrast": (0.5, 1.5),
}
_COLOUR_ORDERS = (
    ("brightness", "saturation", "hue", "contrast"),
    ("saturation", "brightness", "contrast", "hue"),
    ("contrast", "hue", "brightness", "saturation"),
    ("hue", "saturation", "contrast", "brightness"),
    (),
)

# Operations of RandAugment that a view can express, with the amounts of torchvision's strength 9 of 30. Brightness is
# added here, and multiplied there; 0.135 is the difference for medium grey.
_VIEW_OPERATIONS = ("identity", "down", "right", "rotate", "brightness", "saturation", "contrast")
_SHIFT, _DEGREES, _BRIGHTNESS, _FACTOR = 150 / 331 * 0.3, 9.0, 0.135, 0.27

_SURFACE = {"brightness": (-0.15, 0.15), "contrast": (0.7, 1.4)}
"""Ranges of the colour changes of ``surface``."""


@dataclass(frozen=True)
class Change:
    """A change to one image, applied in the order of the attributes.

    Attributes:
        crop: (y0, x0, y1, x1), the part that is kept, in pixels of the image.
        kernel: kernel for resizing the crop.
        mirrored: horizontal flip.
        inverted: vertical flip.
        colour: (operation, amount) pairs. ``brightness`` adds, ``contrast`` scales around the mean of each channel,
            ``saturation`` scales, ``hue`` rotates by a fraction of the colour circle.
        shift: (down, right) as a fraction of each side.
        degrees: rotation around the centre, anticlockwise.
    """

    crop: Box
    kernel: str = "bilinear"
    mirrored: bool = False
    inverted: bool = False
    colour: tuple[tuple[str, float], ...] = ()
    shift: tuple[float, float] = (0.0, 0.0)
    degrees: float = 0.0


def draw_change(
    augmentation: str,
    region: Sequence[float],
    boxes: np.ndarray | None,
    rng: np.random.Generator,
    kernels: Sequence[str] = ("bilinear",),
) -> Change:
    """Draw a change.

    * ``none``: no change.
    * ``light``: a crop of 85 to 100 % of both sides and a horizontal flip with probability 0.5.
    * ``surface``: ``light``, a vertical flip with probability 0.5, and a change of brightness and contrast. For images
      without an upright direction, such as surfaces of parts, slides and aerial photographs.
    * ``inception``: `inception_crop` and the same flip.
    * ``tnet``: a crop of 85 to 100 % of the area with an aspect ratio from 0.5 to 2 that covers a tenth of a box, the
      same flip and a change of colour, as TNet trains on ImageNet and fMoW.
    * ``tnet_birds``: such a crop that ignores boxes, the same flip, a shift of up to 10 % and a rotation of up to 20
      degrees.
    * ``randaugment``: ``light``, and two of the operations of RandAugment (arXiv 1909.13719) that do not need the
      pixels of the whole image: shifts, rotation, brightness, saturation, contrast or none. For whole images there is
      `rand_augment`.

    Args:
        augmentation: a name from `AUGMENTATIONS`.
        region: (y0, x0, y1, x1), the part of the image to use.
        boxes: (k, 4) boxes of the object; without any, the whole region.
        rng: source of randomness.
        kernels: kernels to draw from.
    """
    whole = Change(tuple(map(float, region)))  # type: ignore[arg-type]
    if augmentation == "none":
        return whole
    mirrored = bool(rng.random() < 0.5)
    if augmentation in ("light", "surface", "randaugment"):
        light = replace(whole, crop=_keep_aspect(region, rng.uniform(0.85, 1.0), boxes, rng), mirrored=mirrored)
        if augmentation == "surface":
            colour = tuple((operation, float(rng.uniform(*bounds))) for operation, bounds in _SURFACE.items())
            return replace(light, inverted=bool(rng.random() < 0.5), colour=colour)
        return light if augmentation == "light" else _with_operations(light, rng)
    if augmentation == "inception":
        return replace(whole, crop=inception_crop(region, rng), mirrored=mirrored)
    birds = augmentation == "tnet_birds"
    change = replace(
        whole,
        crop=distorted_crop(region, None if birds else boxes, rng),
        kernel=kernels[int(rng.integers(len(kernels)))],
        mirrored=mirrored,
    )
    if birds:
        return replace(change, shift=tuple(rng.uniform(-0.1, 0.1, 2).tolist()), degrees=float(rng.uniform(-20, 20)))
    order = _COLOUR_ORDERS[int(rng.integers(len(_COLOUR_ORDERS)))]
    return replace(
        change, colour=tuple((operation, float(rng.uniform(*_COLOUR_RANGES[operation]))) for operation in order)
    )


def _with_operations(change: Change, rng: np.random.Generator) -> Change:
    """A change and two operations of RandAugment, drawn with replacement."""
    for which, sign in zip(rng.integers(len(_VIEW_OPERATIONS), size=2), rng.choice((-1.0, 1.0), 2), strict=True):
        operation, sign = _VIEW_OPERATIONS[which], float(sign)
        down, right = change.shift
        if operation in ("down", "right"):
            down, right = down + sign * _SHIFT * (operation == "down"), right + sign * _SHIFT * (operation == "right")
            change = replace(change, shift=(down, right))
        elif operation == "rotate":
            change = replace(change, degrees=change.degrees + sign * _DEGREES)
        elif operation != "identity":
            amount = sign * _BRIGHTNESS if operation == "brightness" else 1 + sign * _FACTOR
            change = replace(change, colour=(*change.colour, (operation, amount)))
    return change


def rand_augment(pixels: Tensor, rng: np.random.Generator) -> Tensor:
    """RandAugment of torchvision with its defaults, two of 14 operations of strength 9 of 30, on a whole image.

    Args:
        pixels: (C, H, W) with one or three bands; uint8, or floating point in [0, 1].
        rng: source of randomness. torch's global generator is left as it was.
    """
    from torchvision.transforms import v2

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(rng.integers(2**63)))
        return v2.RandAugment()(pixels)


def check_bands(augmentation: str, channels: int) -> None:
    """Check that images of this number of bands can be augmented as whole images.

    Raises:
        ConfigError: they cannot.
    """
    if augmentation == "randaugment" and channels not in (1, 3):
        raise ConfigError(
            f"data.augmentation: randaugment takes images of 1 or 3 bands, and these have {channels}; use another one"
        )


def _keep_aspect(region: Sequence[float], share: float, boxes: np.ndarray | None, rng: np.random.Generator) -> Box:
    """Crop a fraction of each side. The crop contains all boxes if they fit, else as much of them as possible."""
    start, stop = np.array(region[:2], dtype=float), np.array(region[2:], dtype=float)
    side = (stop - start) * share
    low, high = start, stop - side
    if boxes is not None and len(boxes):
        first, last = boxes[:, :2].min(0), boxes[:, 2:].max(0)
        low, high = np.clip(last - side, low, high), np.clip(first, low, high)
        low, high = np.minimum(low, high), np.maximum(low, high)
    corner = rng.uniform(low, high)
    (y0, x0), (y1, x1) = corner.tolist(), (corner + side).tolist()
    return y0, x0, y1, x1


def inception_crop(region: Sequence[float], rng: np.random.Generator) -> Box:
    """Draw a crop like torchvision's ``RandomResizedCrop``: area 8 to 100 %, log-uniform aspect ratio 3/4 to 4/3.

    If none of ten draws fits, the result is the largest centred crop within these aspect ratios. ("Going deeper with
    convolutions", https://arxiv.org/abs/1409.4842, section 6.)
    """
    y0, x0, y1, x1 = map(int, region)
    height, width = y1 - y0, x1 - x0
    low, high = 3 / 4, 4 / 3
    for _ in range(10):
        area = height * width * rng.uniform(0.08, 1.0)
        aspect = math.exp(rng.uniform(math.log(low), math.log(high)))
        h, w = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < h <= height and 0 < w <= width:
            y, x = y0 + int(rng.integers(0, height - h + 1)), x0 + int(rng.integers(0, width - w + 1))
            return float(y), float(x), float(y + h), float(x + w)
    h, w = min(height, round(width / low)), min(width, round(height * high))
    y, x = y0 + (height - h) // 2, x0 + (width - w) // 2
    return float(y), float(x), float(y + h), float(x + w)


def distorted_crop(region: Sequence[float], boxes: np.ndarray | None, rng: np.random.Generator) -> Box:
    """Draw a crop like ``tf.image.sample_distorted_bounding_box``: area 85 to 100 %, width / height from 0.5 to 2.

    A draw is accepted if the crop covers a tenth of the area of at least one box. After 50 rejected draws the whole
    region is returned.
    """
    y0, x0, y1, x1 = map(int, region)
    height, width = y1 - y0, x1 - x0
    smallest, largest = 0.85 * height * width, 1.0 * height * width
    boxes = np.array([region], dtype=float) if boxes is None or not len(boxes) else boxes
    for _ in range(50):
        aspect = rng.uniform(0.5, 2.0)
        lowest, highest = round(math.sqrt(smallest / aspect)), round(math.sqrt(largest / aspect))
        if round(highest * aspect) > width:
            highest = int((width + 0.4999) / aspect)
        highest = min(highest, height)
        lowest = min(lowest, highest)
        h = lowest if lowest >= highest else int(rng.integers(lowest, highest + 1))
        w = round(h * aspect)
        if not (smallest <= h * w <= largest and 0 < h <= height and 0 < w <= width):
            continue
        y, x = y0 + int(rng.integers(0, height - h + 1)), x0 + int(rng.integers(0, width - w + 1))
        corner = np.maximum(boxes[:, :2], (y, x))
        shared = np.prod(np.clip(np.minimum(boxes[:, 2:], (y + h, x + w)) - corner, 0, None), axis=1)
        if (shared >= 0.1 * np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)).any():
            return float(y), float(x), float(y + h), float(x + w)
    return float(y0), float(x0), float(y1), float(x1)


def rotate_and_shift(pixels: Tensor, shift: tuple[float, float], degrees: float) -> Tensor:
    """Shift by whole pixels, then rotate anticlockwise around the centre: nearest neighbour, padded with 0.

    Args:
        pixels: (C, H, W).
        shift: (down, right) as a fraction of each side.
        degrees: angle of the rotation.
    """
    height, width = pixels.shape[1:]
    down, right = round(shift[0] * height), round(shift[1] * width)
    y, x = (torch.arange(n, dtype=torch.float64) - (n - 1) / 2 for n in (height, width))
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    # Rotate output coordinates clockwise to find their source; rows point down.
    from_y = (cos * y[:, None] + sin * x + (height - 1) / 2).round().long()
    from_x = (-sin * y[:, None] + cos * x + (width - 1) / 2).round().long()
    in_frame = (from_y >= 0) & (from_y < height) & (from_x >= 0) & (from_x < width)
    from_y, from_x = from_y - down, from_x - right
    inside = in_frame & (from_y >= 0) & (from_y < height) & (from_x >= 0) & (from_x < width)
    return pixels[:, from_y.clamp(0, height - 1), from_x.clamp(0, width - 1)] * inside


def draw_crop_flip(count: int, rng: np.random.Generator) -> np.ndarray:
    """(count, 3) int64: crop offsets down and right, 0 to 2 `PADDING`, and whether to flip."""
    return rng.integers(0, (2 * PADDING + 1, 2 * PADDING + 1, 2), (count, 3))


def crop_flip(pixels: Tensor, drawn: np.ndarray, fill: Tensor) -> Tensor:
    """The usual augmentation for CIFAR: pad each side by `PADDING`, crop to the original size, flip horizontally.

    From "Deep Residual Learning" (https://arxiv.org/abs/1512.03385, section 4.2), which pads normalised images with 0.
    That equals padding with the mean colour here.

    Args:
        pixels: (B, C, H, W), on any device.
        drawn: (B, 3) from `draw_crop_flip`.
        fill: (C,) value of the padding.

    Returns:
        (B, C, H, W) of the same type.
    """
    count, channels, height, width = pixels.shape
    fill = fill.to(pixels.device, pixels.dtype, non_blocking=True)
    padded = fill[:, None, None].expand(count, channels, height + 2 * PADDING, width + 2 * PADDING).contiguous()
    padded[..., PADDING:-PADDING, PADDING:-PADDING] = pixels
    down, right, mirrored = torch.from_numpy(drawn.T.copy()).to(pixels.device, non_blocking=True)
    # All possible crops are views; only the selected ones are copied.
    crops = padded.unfold(2, height, 1).unfold(3, width, 1)
    kept = crops[torch.arange(count, device=pixels.device), :, down, right]
    return torch.where(mirrored.bool()[:, None, None, None], kept.flip(-1), kept)


def change_view(change: Change, image: Pyramid) -> View:
    """A view of the changed image; nothing is read yet. ``change.kernel`` is not used: looks have their own kernel."""
    transform = Transform.identity(image.size)
    if change.crop != (0, 0, *image.size):
        transform = transform.crop(change.crop)
    if change.mirrored:
        transform = transform.flip()
    if change.inverted:
        transform = transform.turn(2).flip()
    if any(change.shift):
        transform = transform.shift(*np.multiply(change.shift, transform.size).tolist())
    if change.degrees:
        transform = transform.rotate(change.degrees)
    return View(image, transform.coloured(Colour(change.colour) if change.colour else None))


def change_pixels(change: Change, image: Pyramid, side: int, shorter_side: int | None = None) -> Tensor:
    """The changed image, resized to a square.

    Args:
        change: the change.
        image: an image of any size; it is read whole.
        side: side of the result in pixels.
        shorter_side: first reduce the image, antialiased, until its shorter side is at most this.

    Returns:
        (C, side, side) float32 in [0, 1].
    """
    factor = 1.0 if shorter_side is None else min(1.0, shorter_side / min(image.size))
    y0, x0, y1, x1 = change.crop
    size = max(1, round((y1 - y0) * factor)), max(1, round((x1 - x0) * factor))
    pixels = image.look(np.array([change.crop]), size)[0]
    pixels = resize(pixels, (side, side), change.kernel)
    if change.mirrored:
        pixels = pixels.flip(2)
    if change.inverted:
        pixels = pixels.flip(1)
    if change.colour:
        colour = Colour(change.colour)
        pixels = colour.apply(pixels, colour.means(pixels, None))
    pixels = pixels.clamp(0, 1)
    return rotate_and_shift(pixels, change.shift, change.degrees) if change.degrees or any(change.shift) else pixels

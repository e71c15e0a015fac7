"""Pixel values of a data set: inspects a few images and suggests a value range.

Unsigned pixels are scaled by the range of their type. Cameras and satellites often use a small part of 16 bits; such
images are nearly black. 8-bit images are not inspected.

Example:
    >>> sensible_range(np.array([37.0, 900.0, 3991.0])), sensible_range(np.array([-0.97, 0.2, 0.94]))
    ((0.0, 4095.0), (-1.0, 1.0))
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from foveal.data.dataset import ImageDataset, Reading
from foveal.data.module import DataModule
from foveal.draws import generator
from foveal.errors import ConfigError, DataError, ImageError
from foveal.images import open_image
from foveal.images.cache import Unconverted

IMAGES = 16
"""Number of images to inspect."""

PIXELS = 100_000_000
"""Stop after this many pixels of images that must be decoded whole."""

SMALL = 0.25
"""Warn if values use less than this fraction of the range."""

_TAIL = 0.1  # percentage of values ignored at each end


@dataclass
class Sample:
    """Pixel values of a few images.

    Attributes:
        images: number of inspected images.
        types: number of images per pixel type.
        values: (n,) stored values of images that are not 8-bit, equally many per image.
        stored_range: the widest range of their types; None if a type has no range.
        rangeless: number of images whose type has no range.
        unreadable: one sentence for each image that cannot be read.
    """

    images: int = 0
    types: Counter[str] = field(default_factory=Counter)
    values: np.ndarray = field(default_factory=lambda: np.empty(0))
    stored_range: tuple[float, float] | None = None
    rangeless: int = 0
    unreadable: list[str] = field(default_factory=list)


def value_notes(data: DataModule, seed: int = 0) -> list[str]:
    """Notes on how the images are read, one sentence each; empty if all is well.

    Args:
        data: the data set; images in memory are not inspected.
        seed: determines the inspected images.
    """
    images = _images_of(data)
    if images is None:
        return []
    sample = look_at_values(images, seed)
    notes = []
    if sample.unreadable:
        count, first = len(sample.unreadable), sample.unreadable[0]
        notes.append(f"{count} of {sample.images} images looked at cannot be read, the first: {first}")
    if advice := advise(sample, images.reading):
        notes.append(advice)
    return notes


def check_readable(data: DataModule, seed: int = 0) -> None:
    """Check that at least one of a few images can be read.

    Raises:
        DataError: all are damaged, have another number of bands, or need a value range that is not given.
    """
    images = _images_of(data)
    if images is None:
        return
    sample = look_at_values(images, seed)
    if sample.images and len(sample.unreadable) == sample.images:
        raise DataError(
            f"{data.name}: none of {sample.images} images looked at can be read, the first: {sample.unreadable[0]}"
        )
    if (
        images.reading.value_range is None
        and sample.rangeless
        and sample.rangeless + len(sample.unreadable) == sample.images
    ):
        raise DataError(f"{data.name}: {advise(sample, images.reading)}")


def _images_of(data: DataModule) -> ImageDataset | None:
    """The training images in files, else those of another split; None if all are in memory."""
    return next((split for split in (data.train, data.val, data.test) if isinstance(split, ImageDataset)), None)


def check_values(model: object, data: DataModule) -> None:
    """Check that the data are read with the value range that the model was trained with.

        Raises:
            ConfigError: the value ranges differ.
    __

    """
    readings = [split.reading for split in (data.train, data.val, data.test) if isinstance(split, ImageDataset)]
    if not readings or not hasattr(model, "value_range"):
        return
    trained, here = (
        None if value is None else tuple(map(float, value)) for value in (model.value_range, readings[0].value_range)
    )
    if trained != here:
        was, now = ("none" if value is None else f"{value[0]:g},{value[1]:g}" for value in (trained, here))
        how = f"set `data.value_range` {was}" if trained else "leave `data.value_range` out"
        raise ConfigError(
            f"{data.name}: its images are read with the value range {now}, the model was trained with {was}; {how}"
        )


def look_at_values(images: ImageDataset, seed: int = 0) -> Sample:
    """Inspect a few images, drawn by the seed. Coarse levels are read where an image has them."""
    sample = Sample()
    found: list[np.ndarray] = []
    ranges: list[tuple[float, float] | None] = []
    decoded = 0
    count = min(IMAGES, len(images))
    for i in sorted(generator(seed, 0, 0, "sample of values").permutation(len(images))[:count].tolist()):
        if decoded > PIXELS:
            break
        sample.images += 1
        try:
            # With an explicit value range, every pixel type can be opened.
            with open_image(
                images.path(i),
                channels=images.channels,
                value_range=(0, 1),
                convert=False,
                headers=images.reading.headers,
            ) as image:
                sample.types[str(image.dtype)] += 1
                if image.dtype.itemsize == 1 and image.dtype.kind in "bu":
                    continue
                values = image.sample().reshape(-1)
                decoded += math.prod(image.size) if len(image.level_sizes) == 1 else 0
        except Unconverted:
            sample.images -= 1
        except ImageError as error:
            sample.unreadable.append(str(error))
        else:
            found.append(values)
            ranges.append(image.stored_range)
    if found:
        found = [values for values in found if len(values)]  # an image can have no data
        most = min(map(len, found), default=0)
        found = [values[np.linspace(0, len(values) - 1, most).round().astype(int)] for values in found]
        sample.values = np.concatenate([sample.values, *found])
        known = [one for one in ranges if one is not None]
        sample.rangeless = len(ranges) - len(known)
        sample.stored_range = None if sample.rangeless else max(known, key=lambda one: one[1])
    return sample


def advise(sample: Sample, reading: Reading) -> str | None:
    """One sentence that suggests a better value range; None if the current one serves."""
    if not len(sample.values):
        return None
    low, high = np.percentile(sample.values, (_TAIL, 100 - _TAIL))
    if not low < high:
        return None
    given = reading.value_range
    black, white = sensible_range(sample.values)
    wide = [name for name in sample.types if name not in ("uint8", "bool")]
    count = sum(sample.types[name] for name in wide)
    what = f"the values of {count} {' and '.join(wide)} images looked at lie between {low:.4g} and {high:.4g}"
    if given is not None:
        beyond = np.mean((sample.values < given[0]) | (sample.values > given[1]))
        used = (min(high, given[1]) - max(low, given[0])) / (given[1] - given[0])
        if beyond <= SMALL and used >= SMALL:
            return None
        share = f"{100 * beyond:.0f} % of them beyond" if beyond > SMALL else "a small part of"
        why = f"{share} `data.value_range` {given[0]:g},{given[1]:g}"
    elif sample.stored_range is None:
        why = "and their pixel type has no range"
    elif high - low < SMALL * (sample.stored_range[1] - sample.stored_range[0]):
        why = (
            f"a small part of {sample.stored_range[0]:g} to {sample.stored_range[1]:g}, so that the model sees "
            "little of their contrast"
        )
    else:
        return None
    if len(wide) < len(sample.types):
        others = sum(sample.types.values()) - count
        return f"{what}, {why}; {others} others are 8-bit, which no common range fits: convert the images to one type"
    return f"{what}, {why}; set `data.value_range` {black:.15g},{white:.15g}"


def sensible_range(values: np.ndarray) -> tuple[float, float]:
    """A range of round numbers that holds nearly all values.

    Args:
        values: (n,), not all the same.
    """
    low, high = (float(v) for v in np.percentile(values, (_TAIL, 100 - _TAIL)))
    lowest, highest = float(values.min()), float(values.max())
    # Ignore a few values far outside, such as dead pixels. Keep those that are only a little outside.
    near = (high - low) / 4
    low, high = lowest if low - lowest < near else low, highest if highest - high < near else high
    power = 10.0 ** math.floor(math.log10(high - low))
    step = next(power * share for most, share in ((2, 0.2), (5, 0.5), (10.1, 1)) if high - low < most * power)
    black, white = (round_to(value / step) * step for round_to, value in ((math.floor, low), (math.ceil, high)))
    # Prefer 2^n - 1, such as 4095, if it is near: cameras saturate there.
    bits = 2.0 ** math.ceil(math.log2(high + 1)) - 1 if black == 0 else 0.0
    return black, bits if 200 < bits < 1.1 * white else white

"""Images for exported models, without torch: arrays, Pillow images, and files that Pillow opens.

Boxes are cut and resampled as by `foveal.images`, see `foveal.images.resample`. A model asks for boxes only, so any
object with the attributes of `Source` can take the place of an image, such as a reader of slides.

Example:
    >>> ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    >>> image = ArrayImage(ramp, channels=3)
    >>> seen = image.look(np.array([[0.0, 0, 16, 16], [-4, 0, 4, 8]]), (4, 4), np.array([0.5, 0.5, 0.5]), True)
    >>> seen.shape, seen[1, 0, 0].tolist()
    ((2, 3, 4, 4), [0.5, 0.5, 0.5, 0.5])
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Protocol

import numpy as np

from foveal.errors import ImageError
from foveal.sampling import Axis, ResamplePlan, plan, taps

ROUNDING = 2e-3
"""Tolerance of floats beyond 0 and 1: twice the rounding error of float16."""


class Source(Protocol):
    """One image, of which boxes are read.

    Attributes:
        size: (height, width) in pixels.
        mpp: µm per pixel; NaN if unknown.
    """

    size: tuple[int, int]
    mpp: float

    def look(self, boxes: np.ndarray, size: tuple[int, int], fill: np.ndarray, antialias: bool) -> np.ndarray:
        """(n, channels, height, width) float32 in [0, 1] of boxes (n, 4); ``fill`` (channels,) outside the image."""


class Batch:
    """A batch of images as a loop reads them; the twin of `foveal.images.Views`.

    Attributes:
        sizes: (B, 2) int, (height, width) of each image.
        mpp: (B,) µm per pixel; NaN if unknown.
    """

    def __init__(self, images: Sequence[Source]) -> None:
        self.images = list(images)
        self.sizes = np.array([image.size for image in self.images], dtype=np.int64).reshape(-1, 2)
        self.mpp = np.array([image.mpp for image in self.images], dtype=np.float64)

    def __len__(self) -> int:
        return len(self.images)

    def look(
        self, which: np.ndarray, boxes: np.ndarray, size: tuple[int, int], fill: np.ndarray, antialias: bool
    ) -> np.ndarray:
        """Boxes (n, 4) of the images ``which`` (n,): (n, channels, height, width) float32 in [0, 1]."""
        out = np.empty((len(boxes), len(fill), *size), dtype=np.float32)
        for i in np.unique(which):
            mine = np.flatnonzero(which == i)
            out[mine] = self.images[i].look(boxes[mine], size, fill, antialias)
        return out

    def may_look(
        self, i: int, y: np.ndarray, x: np.ndarray, spacing: float, blank_bytes: int | None = None
    ) -> np.ndarray | None:
        """See `foveal.images.Views.may_look`."""
        return None

    def is_blank(self, i: int, box: np.ndarray, size: tuple[int, int]) -> bool:
        """See `foveal.images.Views.is_blank`."""
        return False


class ArrayImage:
    """An image in memory.

    Args:
        pixels: (H, W) or (H, W, C): uint8 or uint16 over the range of the type, bool, floats in [0, 1]; or real values
            in ``value_range``.
        channels: bands that the model takes. Grey is repeated for 3.
        value_range: values that are scaled to 0 and 1; that of the type if None.
        mpp: µm per pixel; NaN if unknown.
        alpha: (H, W) float32 in [0, 1]; 0 counts as outside the image. Opaque if None.
        name: name in errors.

    Raises:
        ImageError: shape, type or values are not those that the model takes.
    """

    def __init__(
        self,
        pixels: np.ndarray,
        *,
        channels: int = 3,
        value_range: tuple[float, float] | None = None,
        mpp: float = math.nan,
        alpha: np.ndarray | None = None,
        name: str = "image",
    ) -> None:
        pixels = pixels[..., None] if pixels.ndim == 2 else pixels
        if pixels.ndim != 3 or 0 in pixels.shape or pixels.shape[2] not in ({1, 3} if channels == 3 else {channels}):
            raise ImageError(
                f"{name}: an array of shape {pixels.shape} was given, and the model takes (height, width, {channels}); "
                "give one image of so many bands"
            )
        pixels = pixels.astype(np.uint8) * np.uint8(255) if pixels.dtype == bool else pixels
        kind, short = pixels.dtype.kind, pixels.dtype in (np.uint8, np.uint16)
        if not (short or kind == "f" or (kind in "iu" and value_range is not None)):
            raise ImageError(f"{name}: pixels are {pixels.dtype}; give uint8, uint16, or floats from 0 to 1")
        self.size, self.mpp, self.channels = pixels.shape[:2], mpp, channels
        self._low, self._high = value_range or (0.0, float(np.iinfo(pixels.dtype).max) if short else 1.0)
        self._exact = short and value_range is None  # averaged as integers, and scaled after
        self._alpha = alpha
        if not self._exact:
            pixels = pixels.astype(np.float32)
            if not np.isfinite(pixels).all():
                raise ImageError(f"{name}: some values are NaN or infinite; replace them, say by numpy.nan_to_num")
            if value_range is None and not -ROUNDING <= pixels.min() <= pixels.max() <= 1 + ROUNDING:
                raise ImageError(f"{name}: floats are taken from 0 to 1; divide them by the value that is white")
        self._pixels = pixels

    def look(self, boxes: np.ndarray, size: tuple[int, int], fill: np.ndarray, antialias: bool) -> np.ndarray:
        """See `Source.look`."""
        out = np.empty((len(boxes), self.channels, *size), dtype=np.float32)
        bounds = (0, 0, *self.size)
        for slot, box in zip(out, np.asarray(boxes, dtype=np.float64).tolist(), strict=True):
            how = plan(box, size, bounds, antialias=antialias, shrink=True)
            if how.empty:
                slot[:] = fill[:, None, None]
                continue
            y0, x0, y1, x1 = how.window
            seen, cover = self._seen(np.s_[y0:y1, x0:x1], how.at_origin())
            slot[:] = seen
            if cover is not None:
                slot += (1 - cover) * fill[:, None, None].astype(np.float32)
        return out

    def _seen(self, window: Any, how: ResamplePlan) -> tuple[np.ndarray, np.ndarray | None]:
        """(C, height, width) pixels, premultiplied by the (height, width) cover; None if it is 1 everywhere."""
        pixels = self._pixels[window]
        if self._alpha is None and self._exact:
            seen, cover = _cut(pixels, how)
            return np.clip(seen / np.float32(self._high), 0, 1), cover
        pixels = np.clip((pixels.astype(np.float32) - self._low) / (self._high - self._low), 0, 1, dtype=np.float32)
        if self._alpha is None:
            return _cut(pixels, how)
        alpha = self._alpha[window][..., None]
        seen, _ = _cut(np.concatenate([pixels * alpha, alpha], axis=2), how)
        return seen[:-1], seen[-1]


def _cut(pixels: np.ndarray, how: ResamplePlan) -> tuple[np.ndarray, np.ndarray | None]:
    """Resample the window of a plan: (h, w, C) to (C, height, width) float32, and its cover; see
    `foveal.images.resample.cut`."""
    pixels = _shrink(pixels, how.y.factor, how.x.factor)
    size = (how.y.outputs, how.x.outputs)
    cover: np.ndarray | None = None
    if not (how.y.inside and how.x.inside):
        cover = (
            _weights(how.y, pixels.shape[0], how.antialias)[1][:, None]
            * _weights(how.x, pixels.shape[1], how.antialias)[1]
        )
    if pixels.shape[:2] == size and how.y.whole and how.x.whole:
        return np.ascontiguousarray(pixels.transpose(2, 0, 1), dtype=np.float32), None
    rows, _ = _weights(how.y, pixels.shape[0], how.antialias)
    columns, _ = _weights(how.x, pixels.shape[1], how.antialias)
    bands = np.ascontiguousarray(pixels.transpose(2, 0, 1), dtype=np.float32)
    return rows @ bands @ columns.T, cover


@lru_cache(maxsize=256)
def _weights(axis: Axis, length: int, antialias: bool) -> tuple[np.ndarray, np.ndarray]:
    """(outputs, length) float32 weights of the source pixels of an axis, and the (outputs,) cover."""
    index, weight, cover = taps(axis, length, antialias)
    matrix = np.zeros((axis.outputs, length), dtype=np.float64)
    np.add.at(matrix, (np.arange(axis.outputs)[:, None], index), weight)
    return matrix.astype(np.float32), cover.astype(np.float32)


def _shrink(pixels: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Average blocks of (rows, columns) pixels of (h, w, C); the last blocks of an axis may be smaller."""
    if rows == columns == 1:
        return pixels
    whole = pixels.dtype.kind == "u" and pixels.shape[0] % rows == pixels.shape[1] % columns == 0
    small = whole and pixels.dtype == np.uint8 and rows * columns <= 256
    sums = pixels.astype(np.uint16 if small else np.float32)
    sums = _sums(_sums(sums, 0, rows), 1, columns)
    return sums.astype(np.float32) / np.float32(rows * columns)


def _sums(x: np.ndarray, axis: int, by: int) -> np.ndarray:
    """Sums of runs of ``by``, a power of two; that of a shorter last run is scaled to ``by``."""
    full = x.shape[axis] // by * by
    runs = x[:full] if axis == 0 else x[:, :full]
    for _ in range(by.bit_length() - 1):
        runs = runs[::2] + runs[1::2] if axis == 0 else runs[:, ::2] + runs[:, 1::2]
    if full == x.shape[axis]:
        return runs
    rest = x[full:] if axis == 0 else x[:, full:]
    return np.concatenate([runs, rest.mean(axis, keepdims=True, dtype=np.float32) * np.float32(by)], axis=axis)


def squashed(image: Source, channels: int, side: int, shorter_side: int | None = None) -> ArrayImage:
    """Resize a whole image to a square, see `foveal.images.squash`."""
    height, width = image.size
    factor = 1.0 if shorter_side is None else min(1.0, shorter_side / min(height, width))
    size = max(1, round(height * factor)), max(1, round(width * factor))
    black, whole = np.zeros(channels, dtype=np.float32), np.array([[0.0, 0, height, width]])
    small = ArrayImage(image.look(whole, size, black, True)[0].transpose(1, 2, 0), channels=channels)
    seen = small.look(np.array([[0.0, 0, *size]]), (side, side), black, False)[0]
    return ArrayImage(np.clip(seen, 0, 1).transpose(1, 2, 0), channels=channels)


def as_source(image: Any, channels: int, value_range: tuple[float, float] | None, name: str = "image") -> Source:
    """A `Source` from a path, a Pillow image, an array, or an object that is one.

    Raises:
        ImageError: it is none of these, or cannot be read, or does not fit the model.
    """
    if hasattr(image, "look") and hasattr(image, "size"):
        return image
    if isinstance(image, np.ndarray):
        return ArrayImage(image, channels=channels, value_range=value_range, name=name)
    if isinstance(image, str | os.PathLike):
        image, name = _opened(os.fspath(image)), os.fspath(image)
    if not hasattr(image, "getexif"):
        raise ImageError(
            f"{name}: an object of the type {type(image).__name__} was given; give a path, a Pillow image or an array"
        )
    pixels, alpha = _of_pillow(image, name)
    return ArrayImage(pixels, channels=channels, value_range=value_range, alpha=alpha, name=name)


def _opened(path: str) -> Any:
    from PIL import Image

    try:
        return Image.open(path)
    except FileNotFoundError as error:
        raise ImageError(f"{path}: there is no such file; check the path") from error
    except Exception as error:  # decoders raise many types of exceptions for damaged files
        raise ImageError(
            f"{path}: Pillow cannot open it ({type(error).__name__}); give an array, or use foveal.classify, which "
            "reads more formats"
        ) from error


def _of_pillow(image: Any, name: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Pixels and alpha, upright; palettes and CMYK as RGB."""
    from PIL import ImageOps

    try:
        image = ImageOps.exif_transpose(image)
        key = image.info.get("transparency")
        if image.mode in ("P", "PA"):
            image = image.convert("RGBA" if key is not None or image.mode == "PA" else "RGB")
        elif image.mode in ("1", "L", "RGB") and key is not None:
            image = image.convert("RGBA" if image.mode == "RGB" else "LA")
        elif image.mode in ("CMYK", "YCbCr", "RGBX", "LAB", "HSV"):
            image = image.convert("RGB")
        pixels = np.asarray(image)
    except Exception as error:
        raise ImageError(f"{name}: Pillow cannot decode it ({error}); copy the file again") from error
    if image.mode in ("LA", "RGBA"):
        alpha = pixels[..., -1]
        return pixels[..., :-1], None if alpha.min() == 255 else alpha.astype(np.float32) / 255
    return pixels, None

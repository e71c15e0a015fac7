"""Images in memory as pyramids: Pillow images, NumPy arrays, tensors and open images.

The same pixels give the same looks from a file, a Pillow image, an array or a tensor. Images whose shape, type or
values do not match the training images of the model raise an `ImageError`.

Arrays are (H, W) or (H, W, C), tensors (C, H, W). An array of shape (3, 100, 3) is 3 rows high, a tensor of that shape
is 3 columns wide. The axis of the bands is not guessed from the shape.

Values are uint8 or uint16 over the range of the type, bool for black and white, or floats in [0, 1]. If the model was
trained with a value range, values of any real type in that range are accepted.

Example:
    >>> import numpy as np
    >>> as_image(np.zeros((30, 40), np.uint8), channels=3)
    ArrayPyramid('image', size=(30, 40), channels=3, levels=1)
    >>> as_image(np.zeros((3, 30, 40), np.uint8))
    Traceback (most recent call last):
    ...
    foveal.errors.ImageError: image: an array of shape (3, 30, 40) has its bands first, ...
"""

from __future__ import annotations

import math
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor

from foveal.errors import ImageError
from foveal.images.notices import noting
from foveal.images.pyramid import ArrayPyramid, Pyramid, fitting
from foveal.images.reading import memory_limit
from foveal.images.uris import shown

ValueRange = tuple[float, float]

ROUNDING = 2e-3
"""Tolerance of floats beyond 0 and 1: twice the rounding error of float16."""

KINDS = (
    "a path, a Pillow image, a NumPy array (H, W) or (H, W, C), a tensor (C, H, W), or an image that open_image "
    "returned"
)
_SAMPLED = 32  # rows and columns of each image that `check_sample` reads
_WIDE = 100.0  # images in [0, 1] are an error for models whose value range ends at this or above
_NARROW = 2.0  # integers above a value range of this width or less are an error

_decoding = [threading.Lock() for _ in range(16)]


def is_path(image: Any) -> TypeGuard[str | os.PathLike[str]]:
    """Whether ``image`` is a path."""
    return isinstance(image, str | os.PathLike)


def is_one(images: Any) -> bool:
    """Whether ``images`` is one image, rather than a list of images or a batch."""
    return images.ndim != 4 if isinstance(images, Tensor) else not _is_list(images)


def each(images: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (name, image) of one image, or of each image of a list, a tuple or a (B, C, H, W) tensor.

    The name of a path is the path, without the secrets of an address. The name of another image is its index in the
    list, ``[3]``, or in a batch of a list, ``[3][0]``. The name of a single image is ``image``.
    """
    if is_one(images):
        yield shown(images) if is_path(images) else place or "image", images
        return
    for i, image in enumerate(images):
        yield from each(image, f"{place}[{i}]")


def _is_list(images: Any) -> bool:
    return isinstance(images, Sequence) and not isinstance(images, str | bytes | bytearray | memoryview)


# ------------------------------------------------------------------------------------------------------- one image


def as_image(
    image: Any, *, channels: int | None = None, value_range: ValueRange | None = None, name: str = "image"
) -> Pyramid:
    """Make a `Pyramid` from an image in memory.

    Args:
        image: a Pillow image, an array, a tensor or an open image; see the module. Pillow images are treated as files:
            the EXIF orientation is applied, palettes and CMYK become RGB, and transparent pixels count as outside the
            image. Masked pixels of an array count as outside, too. If an open image was opened with a value range, it
            keeps that range.
        channels: number of bands of a look; that of the image if None. Grey is repeated if 3 bands are requested.
        value_range: values that are scaled to 0 and 1, as of the model; the range of the type if None.
        name: name of the image in error messages.

    Raises:
        ImageError: ``image`` is not an image, or its shape, type or values do not match those of the model.
    """
    if isinstance(image, Pyramid):
        return image.taken_as(channels, value_range)
    with noting(name):
        pixels, alpha, orientation = _pixels(image, name)
    _check_shape(image, pixels.shape, channels, name)
    pixels, alpha = _values(pixels, alpha, value_range, name)
    scale = (0.0, 1.0) if value_range is None and pixels.dtype.kind == "f" else value_range
    held = max(memory_limit(), pixels.nbytes)  # the limit does not apply to pixels in memory
    return ArrayPyramid(
        pixels, alpha, path=name, channels=channels, value_range=scale, orientation=orientation, max_bytes=held
    )


def _pixels(image: Any, name: str) -> tuple[np.ndarray, np.ndarray | None, int]:
    """Stored pixels, (h, w, bands) for valid images; (h, w) alpha or None; and the EXIF orientation."""
    if isinstance(image, Tensor):
        pixels = _settled(image, name).cpu().numpy()
        return np.moveaxis(pixels, 0, -1) if pixels.ndim == 3 else pixels, None, 1
    if isinstance(image, np.ndarray):
        pixels, alpha, orientation = np.ma.getdata(image), None, 1
        if np.ma.is_masked(image):
            hidden = np.ma.getmaskarray(image)
            alpha = np.asarray(~(hidden.any(-1) if hidden.ndim == 3 else hidden), np.float32)
    elif is_pillow(image):
        pixels, alpha, orientation = _of_pillow(image, name)
    else:
        what = "None" if image is None else f"an object of the type {type(image).__name__}"
        hint = "; numpy.asarray makes an array of it" if hasattr(image, "__array__") else ""
        raise ImageError(f"{name}: {what} was given; give {KINDS}{hint}")
    return np.asarray(pixels)[..., None] if pixels.ndim == 2 else pixels, alpha, orientation


def is_pillow(image: Any) -> bool:
    """Whether ``image`` is a Pillow image. This does not import Pillow."""
    pillow = sys.modules.get("PIL.Image")
    return pillow is not None and isinstance(image, pillow.Image)


def _settled(image: Tensor, name: str) -> Tensor:
    """A dense tensor without gradient, on the same device, with floats as float32."""
    dense = image.layout == torch.strided and not image.is_nested
    if not dense or image.is_quantized or image.is_meta:
        kind = "on the meta device" if image.is_meta else "quantized" if dense else "sparse or nested"
        raise ImageError(f"{name}: the tensor is {kind}; give a dense tensor that holds its values")
    image = image.detach().as_subclass(Tensor)
    return image.float() if image.is_floating_point() else image.resolve_conj()


def _of_pillow(image: Any, name: str) -> tuple[np.ndarray, np.ndarray | None, int]:
    """Pixels, alpha and orientation of a Pillow image, as from the readers of files."""
    try:
        with _decoding[id(image) // 64 % len(_decoding)]:  # a list may contain the same image several times
            image.load()
        kind, key = image.format, image.info.get("transparency")
        orientation = int(image.getexif().get(0x0112, 1))
        if image.mode in ("P", "PA"):
            image = image.convert("RGBA" if key is not None or image.mode == "PA" else "RGB")
        elif image.mode in ("La", "RGBa"):
            image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
        elif image.mode in ("1", "L", "RGB") and key is not None:
            image = image.convert("RGBA" if image.mode == "RGB" else "LA")
        elif image.mode in ("CMYK", "YCbCr", "RGBX", "LAB", "HSV"):
            image = image.convert("RGB")
        pixels = np.asarray(image)
    except Exception as error:  # decoders raise many types of exceptions for damaged files
        raise ImageError(
            f"{name}: the Pillow image cannot be read ({error}); open it again, or give its path"
        ) from error
    if image.mode == "I":  # Pillow's mode of some 16-bit files
        if pixels.size and (pixels.min() < 0 or pixels.max() > 65535):
            raise ImageError(
                f"{name}: a Pillow image of 32-bit integers has values beyond 0 and 65535; convert it to 16 bits"
            )
        pixels = pixels.astype(np.uint16)
    if image.mode in ("LA", "RGBA"):
        opaque = pixels[..., -1]
        # Many programs write 32-bit BMPs whose fourth byte is zero and not alpha.
        unused = opaque.min(initial=255) == 255 or (kind == "BMP" and opaque.max() == 0)
        return pixels[..., :-1], None if unused else opaque.astype(np.float32) / 255, orientation
    hidden = image.mode.startswith("I;16") and key is not None
    return pixels, (pixels != key).astype(np.float32) if hidden else None, orientation


# ----------------------------------------------------------------------------------------------------------- shapes


def _check_shape(image: Any, shape: tuple[int, ...], channels: int | None, name: str) -> None:
    """Check that an image has pixels, and that the axis and number of its bands are right.

    Args:
        image: the image as given, for error messages.
        shape: its shape as (h, w, bands).
        channels, name: see `as_image`.
    """
    tensor = isinstance(image, Tensor)
    kind = "a tensor" if tensor else "an array" if isinstance(image, np.ndarray) else "an image"
    given = f"{name}: {kind} of shape {tuple(getattr(image, 'shape', shape))}"
    layout = "a tensor is taken as (C, H, W)" if tensor else "an array is taken as (H, W) or (H, W, C)"
    if len(shape) != 3:
        advice = "give x[None] for a grey image" if len(shape) == 2 else "give one image, or a list of images"
        raise ImageError(f"{given} was given, and {layout}; {advice}")
    if 0 in shape:
        raise ImageError(f"{given} has no pixels; give an image that has some")
    fits = (1, 3) if channels in (None, 3) else (channels,)
    if shape[2] in fits:
        return
    if shape[1 if tensor else 0] in fits:
        where, way = ("last", "x.permute(2, 0, 1)") if tensor else ("first", "numpy.moveaxis(x, 0, -1)")
        raise ImageError(f"{given} has its bands {where}, and {layout}; give {way}")
    if (channels, shape[2]) == (3, 4):
        colours = "x[:3]" if tensor else "x[..., :3], or PIL.Image.fromarray(x)"
        raise ImageError(f"{name}: has 4 bands where 3 are expected; if the fourth is alpha, give {colours}")
    fitting(name, shape[2], channels)


# ----------------------------------------------------------------------------------------------------------- values


def _values(
    pixels: np.ndarray, alpha: np.ndarray | None, value_range: ValueRange | None, name: str
) -> tuple[np.ndarray, np.ndarray | None]:
    """Check the values of pixels; return the pixels in a type that a pyramid accepts, and alpha."""
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8) * np.uint8(255)
    kind, size = pixels.dtype.kind, pixels.dtype.itemsize
    short = kind == "u" and size <= 2
    if not (short or kind == "f" or (kind in "iu" and value_range is not None)):
        raise _of_wrong_type(pixels.dtype, value_range, name)
    top = np.iinfo(pixels.dtype).max if kind in "iu" else math.inf
    if value_range is not None and top < value_range[1]:
        raise _untrained(name, f"{pixels.dtype} pixels, which end at {top},", value_range)
    with np.errstate(over="ignore"):
        pixels = pixels.astype(pixels.dtype.newbyteorder("=") if short else np.float32, copy=False)
    if short and value_range is None:
        return pixels, alpha
    least, most, shown = _ends(pixels, alpha)
    if not (math.isfinite(least) and math.isfinite(most)):
        if value_range is None:
            raise ImageError(f"{name}: some values are NaN or infinite; replace them, say by numpy.nan_to_num")
        seen = np.isfinite(pixels).all(-1).astype(np.float32)  # other pixels are no data, as in files
        alpha = seen if alpha is None else alpha * seen
        least, most, shown = _ends(pixels, alpha)
        if not shown:
            raise ImageError(f"{name}: no pixel has a finite value in every band; give an image that has some")
    if kind == "f" and alpha is not None:
        pixels = np.where(alpha[..., None] > 0, pixels, np.float32(0))
    if value_range is None:
        _check_floats(least, most, name)
    elif shown:
        low, high = value_range
        scaled = kind == "f" and 0 <= least < most <= 1 and high >= _WIDE
        unscaled = kind != "f" and high - low <= _NARROW and most > high
        if least > high or most < low or scaled or unscaled:
            raise _untrained(name, f"values from {least:.4g} to {most:.4g}", value_range)
    return pixels, alpha


def _ends(pixels: np.ndarray, alpha: np.ndarray | None) -> tuple[float, float, bool]:
    """Lowest and highest value of the pixels with alpha above 0, and whether there are any."""
    shown = pixels if alpha is None else pixels[alpha > 0]
    return (float(shown.min()), float(shown.max()), True) if shown.size else (0.0, 0.0, False)


def _check_floats(low: float, high: float, name: str) -> None:
    """Check that floats from ``low`` to ``high`` are in [0, 1]."""
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ImageError(f"{name}: some values are NaN or infinite; replace them, say by torch.nan_to_num")
    if low >= -ROUNDING and high <= 1 + ROUNDING:
        return
    if low < -ROUNDING:
        advice = "give the image before it is normalised, which the model does itself"
    else:
        advice = "divide them by 255, or give uint8" if high <= 255 else "divide them by the value that is white"
    raise ImageError(
        f"{name}: float values from {low:.4g} to {high:.4g} were given, and floats are taken from 0 to 1; {advice}"
    )


def check_sample(images: Tensor) -> None:
    """Check that a sample of the pixels of a floating-point (B, C, H, W) tensor is in [0, 1].

    The sample has a few thousand pixels. Tensors on a GPU are not checked, because the check would synchronise with the
    device, and nothing is checked while a model is compiled.

    Raises:
        ImageError: a sampled pixel is outside of [0, 1].
    """
    plain = (
        type(images) is Tensor
        and images.is_floating_point()
        and images.device.type == "cpu"
        and images.layout == torch.strided
    )
    if plain and images.numel() and not torch.compiler.is_compiling():
        rows, columns = (max(1, n // _SAMPLED) for n in images.shape[-2:])
        low, high = images.detach()[..., ::rows, ::columns].aminmax()
        _check_floats(float(low), float(high), "images")


def check_type(image: Pyramid, value_range: ValueRange | None) -> None:
    """Check that the integers of an open image match the value range of a model.

    Args:
        image: an open image. Images with a value range other than the model's are not checked.
        value_range: value range of the model.

    Raises:
        ImageError: the maximum of the type is below the range, or integers exceed a range of scaled values.
    """
    if value_range is None or image.dtype.kind != "u" or image.value_range != tuple(map(float, value_range)):
        return
    (low, high), top = value_range, np.iinfo(image.dtype).max
    if top < high:
        raise _untrained(image.path, f"{image.dtype} pixels, which end at {top},", value_range)
    if high - low <= _NARROW:
        level = len(image.level_sizes) - 1
        highest = image.read(level, (0, 0, *image.level_sizes[level])).max()
        if highest > high:
            raise _untrained(image.path, f"{image.dtype} pixels up to {highest}", value_range)


def _of_wrong_type(dtype: Any, value_range: ValueRange | None, name: str) -> ImageError:
    taken = (
        "uint8, uint16, or floats from 0 to 1"
        if value_range is None
        else "real numbers from {:g} to {:g}".format(*value_range)
    )
    return ImageError(f"{name}: pixels of the type {str(dtype).removeprefix('torch.')} were given; give {taken}")


def _untrained(name: str, given: str, value_range: ValueRange) -> ImageError:
    low, high = value_range
    return ImageError(
        f"{name}: {given} were given, and the model was trained on values from {low:g} to {high:g}; give values in "
        "that range"
    )


# ---------------------------------------------------------------------------------------------------------- a batch


def as_batch(images: Tensor, channels: int) -> Tensor:
    """Convert a tensor of images to a batch for `foveal.images.TensorViews`, for a model without a value range.

    Args:
        images: (C, H, W) or (B, C, H, W), on any device.
        channels: number of bands of the model. Grey is repeated if the model has 3 bands.

    Returns:
        (B, channels, H, W) uint8, uint16 or float32 in [0, 1], on the same device.

    Raises:
        ImageError: the shape, type or values of an image do not match those of the model.
    """
    names = [f"[{i}]" for i in range(len(images))] if images.ndim == 4 else ["image"]
    if not names:
        return images
    pixels = _settled(images, names[0])
    pixels = pixels if images.ndim == 4 else pixels[None]
    _check_shape(pixels[0], (*pixels.shape[2:], *pixels.shape[1:2]), channels, names[0])
    if pixels.dtype == torch.bool:
        pixels = pixels.to(torch.uint8) * 255
    if pixels.dtype not in (torch.uint8, torch.uint16, torch.float32):
        raise _of_wrong_type(pixels.dtype, None, names[0])
    if pixels.is_floating_point():
        for name, image in zip(names, pixels, strict=True):
            low, high = image.aminmax()
            _check_floats(float(low), float(high), name)
    return pixels.expand(-1, channels, -1, -1)

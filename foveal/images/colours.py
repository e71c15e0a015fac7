"""Conversion of CMYK, YCbCr and CIELAB pixels of TIFFs to RGB.

Example:
    >>> import numpy as np
    >>> red, white = np.array([[[76, 85, 255]]], np.uint8), np.array([[[255, 0, 0]]], np.uint8)
    >>> from_ycbcr(red).tolist(), from_lab(white).tolist()
    ([[[254, 0, 0]]], [[[255, 255, 255]]])
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_D50 = np.array([0.9642, 1.0, 0.8249])
# XYZ (D50) to linear sRGB (D65) with Bradford adaptation, as in ICC profiles.
_TO_SRGB = np.array(
    [[3.1338561, -1.6168667, -0.4906146], [-0.9787684, 1.9161415, 0.0334540], [0.0719453, -0.2289914, 1.4052427]]
)


def from_cmyk(pixels: np.ndarray, highest: int) -> np.ndarray:
    """(h, w, 3) RGB of (h, w, 4) CMYK pixels, without a colour profile, as in Pillow."""
    light = highest - pixels.astype(np.float32)
    return np.rint(light[..., :3] * light[..., 3:4] / highest).astype(pixels.dtype)


def from_ycbcr(
    pixels: np.ndarray,
    shares: Sequence[float] = (0.299, 0.587, 0.114),
    ends: Sequence[float] = (0, 255, 128, 255, 128, 255),
) -> np.ndarray:
    """(h, w, 3) uint8 RGB of YCbCr pixels.

    Args:
        pixels: (h, w, 3) uint8.
        shares: weights of red, green and blue in Y (TIFF tag YCbCrCoefficients).
        ends: black and white of Y, then zero and maximum of Cb and of Cr (TIFF tag ReferenceBlackWhite).
    """
    values = pixels.astype(np.float32)
    y, cb, cr = (
        (values[..., i] - ends[2 * i]) * np.float32((127 if i else 255) / ((ends[2 * i + 1] - ends[2 * i]) or 1))
        for i in range(3)
    )
    red, blue = y + (2 - 2 * shares[0]) * cr, y + (2 - 2 * shares[2]) * cb
    green = (y - shares[0] * red - shares[2] * blue) / shares[1]
    return np.rint(np.stack([red, green, blue], -1).clip(0, 255)).astype(np.uint8)


def from_lab(pixels: np.ndarray, *, offset: bool = False) -> np.ndarray:
    """(h, w, 3) sRGB of CIELAB (D50) pixels.

    Args:
        pixels: (h, w, 3) uint8 or uint16.
        offset: a and b are stored with an offset of half the range (ICCLAB); otherwise they are signed (CIELAB).
    """
    highest = np.iinfo(pixels.dtype).max
    middle = (highest + 1) // 2
    differences = pixels[..., 1:].astype(np.int32)
    differences = differences - middle if offset else (differences + middle) % (highest + 1) - middle
    a, b = np.moveaxis(differences / ((highest + 1) // 256), -1, 0)
    fy = (pixels[..., 0] * (100 / highest) + 16) / 116
    f = np.stack([fy + a / 500, fy, fy - b / 200], -1)
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * _D50
    linear = (xyz @ _TO_SRGB.T).clip(0, 1)
    shown = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.rint(shown * highest).astype(pixels.dtype)

"""Whether a model is as sure as it is right, before and after its logits are divided by a temperature.

The temperature (Guo, Pleiss, Sun and Weinberger, "On Calibration of Modern Neural Networks", ICML 2017, arXiv 1706.04599, section
4.2) is the one that makes the labels of validation images most likely. It changes how sure a model is, never what it says.

Example:
    >>> import torch
    >>> sure = torch.tensor([[9.0, 0.0]] * 4)
    >>> right = torch.tensor([0, 0, 0, 1])
    >>> before = said(sure, right)
    >>> round(expected_calibration_error(before.confidence, before.correct), 3)
    0.25
    >>> after = said(sure, right, fit_temperature(sure, right))
    >>> round(expected_calibration_error(after.confidence, after.correct), 3)
    0.0
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch.nn.functional as F
from torch import Tensor

BINS = 15
COLDEST, HOTTEST = 0.05, 20.0
ROWS = 4096
"""Images whose logits are doubles at a time."""


class Said(NamedTuple):
    """What a model said of each of N images.

    Attributes:
        correct: (N,) bool, whether the most probable class is the label.
        confidence: (N,) float64, the probability of that class.
        nll: (N,) float64, negative log-likelihood of the label, nats.
    """

    correct: np.ndarray
    confidence: np.ndarray
    nll: np.ndarray


def said(logits: Tensor, target: Tensor, temperature: float = 1.0) -> Said:
    """What (N, classes) logits, divided by a temperature, say of images with these (N,) labels."""
    nll, confidence = [], []
    for z, t in zip(logits.split(ROWS), target.split(ROWS), strict=True):
        scaled = z.double() / temperature
        nll.append(F.cross_entropy(scaled, t, reduction="none").numpy())
        confidence.append(scaled.softmax(1).amax(1).numpy())
    return Said((logits.argmax(1) == target).numpy(), np.concatenate(confidence), np.concatenate(nll))


def expected_calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = BINS) -> float:
    """Mean distance between how sure a model is and how often it is right, over bins of confidence weighted by their images.

    Equation 3 of Guo et al. 2017 (arXiv 1706.04599), after Naeini, Cooper and Hauskrecht (AAAI 2015): bin m of M equally wide ones
    holds the confidences in ((m - 1) / M, m / M].

    Args:
        confidence: (N,) probability of the predicted class, N at least 1.
        correct: (N,) whether it is the label.
        bins: M.

    Returns:
        0 for a model that is exactly as sure as it is right, 1 at worst.
    """
    which = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    # The images of a bin cancel out: what is left are sums.
    return float(np.abs(np.bincount(which, correct - confidence, bins)).sum() / len(confidence))


def fit_temperature(logits: Tensor, target: Tensor) -> float:
    """The temperature from 0.05 to 20 at which labels are most likely.

    The negative log-likelihood is convex in 1 / temperature: its slope is the mean over images of E z - z_label and its curvature that of
    Var z, both under the probabilities at that temperature. Newton's steps, halved where they lead astray, find where the slope is 0.

    Args:
        logits: (N, classes), N at least 1.
        target: (N,) labels.
    """
    low, high = 1 / HOTTEST, 1 / COLDEST
    if _slope(logits, target, low)[0] > 0:
        return HOTTEST
    if _slope(logits, target, high)[0] < 0:
        return COLDEST
    inverse = 1.0
    for _ in range(100):
        slope, curvature = _slope(logits, target, inverse)
        low, high = (inverse, high) if slope < 0 else (low, inverse)
        step = inverse - slope / curvature if curvature > 0 else inverse
        following = step if low < step < high else math.sqrt(low * high)
        if slope == 0 or abs(following - inverse) < 1e-9 * inverse:
            break
        inverse = following
    return 1 / inverse


def _slope(logits: Tensor, target: Tensor, inverse: float) -> tuple[float, float]:
    """First and second derivative of the mean negative log-likelihood with respect to the inverse temperature."""
    slope = curvature = 0.0
    for part, t in zip(logits.split(ROWS), target.split(ROWS), strict=True):
        z = part.double()
        z = z - z.amax(1, keepdim=True)
        p = (inverse * z).softmax(1)
        mean = (p * z).sum(1)
        slope += float((mean - z.gather(1, t[:, None])[:, 0]).sum())
        curvature += float(((p * z * z).sum(1) - mean * mean).sum())
    return slope / len(logits), curvature / len(logits)

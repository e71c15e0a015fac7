"""Temperature scaling: the temperature that calibrates a model's probabilities.

Logits are divided by the temperature at which the labels of validation images are most likely (Guo, Pleiss, Sun and
Weinberger, "On Calibration of Modern Neural Networks", ICML 2017, arXiv 1706.04599, section 4.2). The most probable
class stays the same.

Example:
    >>> import torch
    >>> logits, labels = torch.tensor([[9.0, 0.0]] * 4), torch.tensor([0, 0, 0, 1])
    >>> round((logits / fit_temperature(logits, labels)).softmax(1)[0, 0].item(), 3)
    0.75
"""

from __future__ import annotations

import math

from torch import Tensor

from foveal.metrics import ROWS

COLDEST, HOTTEST = 0.05, 20.0
"""Bounds of the temperature."""


def fit_temperature(logits: Tensor, target: Tensor) -> float:
    """The temperature from 0.05 to 20 at which labels are most likely.

    The negative log-likelihood is convex in 1 / temperature. Its slope is the mean over images of E z - z_label and its
    curvature that of Var z, both under the probabilities at that temperature. For multilabel targets, E z is p z for
    each label, and z_label is z where the label holds and 0 elsewhere. Newton's method finds where the slope is
    0; a step that leaves the bracket is replaced by a bisection.

    Args:
        logits: (N, classes), N at least 1.
        target: (N,) classes, or (N, classes) labels.
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
        if t.ndim == 2:
            p = (inverse * z).sigmoid()
            slope += float(((p - t.double()) * z).mean(1).sum())
            curvature += float((p * (1 - p) * z * z).mean(1).sum())
            continue
        z = z - z.amax(1, keepdim=True)
        p = (inverse * z).softmax(1)
        mean = (p * z).sum(1)
        slope += float((mean - z.gather(1, t[:, None])[:, 0]).sum())
        curvature += float(((p * z * z).sum(1) - mean * mean).sum())
    return slope / len(logits), curvature / len(logits)

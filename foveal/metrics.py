"""Confidence intervals of measured accuracies.

Example:
    >>> [round(x, 3) for x in wilson(90, 100)]
    [0.826, 0.945]
"""

from __future__ import annotations

import math


def wilson(successes: int, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson score interval of a proportion.

    Args:
        successes: number of successes, 0 to ``trials``.
        trials: number of trials, at least 1.
        z: quantile of the standard normal distribution; default 95 %.

    Returns:
        Lower and upper bound, 0 to 1.
    """
    p, n = successes / trials, trials
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # At none or all of the trials the bound is the proportion itself, but for rounding.
    return max(min(centre - half, p), 0.0), min(max(centre + half, p), 1.0)

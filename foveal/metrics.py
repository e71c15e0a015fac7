"""Named metrics of classification, and confidence intervals of proportions.

A metric is a function of a model's `Answers`. It is registered with the header of its column, and then part of all
results of `foveal.evaluation`.

Example:
    >>> import torch
    >>> answers = Answers.of(torch.tensor([[9.0, 0.0], [9.0, 0.0], [0.0, 1.0], [3.0, 0.0]]), torch.tensor([0, 1, 1, 0]))
    >>> found = compute_metrics(answers)
    >>> found["accuracy"].value, [round(bound, 2) for bound in found["accuracy"].interval], round(found["nll"].value, 2)
    (0.75, [0.3, 0.95], 2.34)
    >>> [round(x, 3) for x in wilson(90, 100)]
    [0.826, 0.945]
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from foveal.display import fixed, percent

BINS = 15
"""Bins of the expected calibration error."""
ROWS = 4096
"""Images whose logits are converted to float64 at a time."""


class Metric(NamedTuple):
    """The value of a metric.

    Attributes:
        value: the value; None if it is undefined.
        interval: its 95 % confidence interval; None if there is none.
    """

    value: float | None = None
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Answers:
    """A model's predictions for N images, with their labels.

    Attributes:
        classes: number of classes.
        target, predicted: (N,) int64, the label and the most probable class.
        in_top5: (N,) bool, whether the label is among the five most probable classes.
        confidence: (N,) float64, the probability of the most probable class.
        nll: (N,) float64, negative log-likelihood of the label, in nats.
    """

    classes: int
    target: np.ndarray
    predicted: np.ndarray
    in_top5: np.ndarray
    confidence: np.ndarray
    nll: np.ndarray

    @classmethod
    def of(cls, logits: Tensor, target: Tensor, temperature: float = 1.0) -> Answers:
        """Answers from (N, classes) logits, divided by a temperature, and (N,) labels."""
        classes, parts = logits.shape[1], []
        for z, t in zip(logits.split(ROWS), target.split(ROWS), strict=True):
            scaled = z.double() / temperature
            top = (z.topk(min(5, classes), dim=1).indices == t[:, None]).any(1)
            confidence, nll = scaled.softmax(1).amax(1), F.cross_entropy(scaled, t, reduction="none")
            parts.append(cls(classes, *(of.numpy() for of in (t, z.argmax(1), top, confidence, nll))))
        return cls.cat(parts)

    @classmethod
    def cat(cls, parts: Sequence[Answers]) -> Answers:
        """Concatenate answers, one part or more."""
        columns = zip(*(part._columns() for part in parts), strict=True)
        return cls(parts[0].classes, *map(np.concatenate, columns))

    def take(self, rows: np.ndarray) -> Answers:
        """Answers for some of the images, by index or mask."""
        return Answers(self.classes, *(column[rows] for column in self._columns()))

    @property
    def correct(self) -> np.ndarray:
        """(N,) bool, whether the most probable class is the label."""
        return self.predicted == self.target

    def __len__(self) -> int:
        return len(self.target)

    def _columns(self) -> tuple[np.ndarray, ...]:
        return self.target, self.predicted, self.in_top5, self.confidence, self.nll


# ---- the metrics


class Definition(NamedTuple):
    """A registered metric.

    Attributes:
        compute: computes the metric of one image or more.
        header: header of its column in a table.
        decimals: digits after the decimal point; if None, a share is printed in per cent with its interval.
        of_confidence: whether it depends on the temperature of the softmax.
    """

    compute: Callable[[Answers], Metric]
    header: str
    decimals: int | None = None
    of_confidence: bool = False

    def show(self, metric: Metric) -> str:
        """The metric as text for a table."""
        return percent(*metric) if self.decimals is None else fixed(metric.value, self.decimals)


METRICS: dict[str, Definition] = {}


def metric(header: str, *, decimals: int | None = None, of_confidence: bool = False) -> Callable:
    """Register a function of `Answers` as a metric by its name; arguments as of `Definition`."""

    def register_metric(compute: Callable[[Answers], Metric]) -> Callable[[Answers], Metric]:
        METRICS[compute.__name__] = Definition(compute, header, decimals, of_confidence)
        return compute

    return register_metric


def compute_metrics(answers: Answers) -> dict[str, Metric]:
    """All registered metrics, by name."""
    return {name: definition.compute(answers) for name, definition in METRICS.items()}


def flat(metrics: Mapping[str, Metric]) -> dict[str, object]:
    """Metrics for JSON: the value by the metric's name, and the interval by ``<name>_interval``.

    The interval of the accuracy is called ``interval``.
    """
    content: dict[str, object] = {}
    for name, found in metrics.items():
        content[name] = found.value
        if found.interval is not None or found.value is None:
            content["interval" if name == "accuracy" else f"{name}_interval"] = found.interval
    return content


@metric("accuracy, %")
def accuracy(answers: Answers) -> Metric:
    """Share of images whose most probable class is the label, with Wilson's interval."""
    return _share(answers.correct)


@metric("top 5, %")
def top5(answers: Answers) -> Metric:
    """Share of images whose label is among the five most probable classes; undefined for five classes or fewer."""
    return _share(answers.in_top5) if answers.classes > 5 else Metric()


@metric("NLL", decimals=3, of_confidence=True)
def nll(answers: Answers) -> Metric:
    """Mean negative log-likelihood of the labels, in nats."""
    return Metric(float(answers.nll.mean()))


@metric("ECE, %", of_confidence=True)
def ece(answers: Answers) -> Metric:
    """Expected calibration error, see `expected_calibration_error`."""
    return Metric(expected_calibration_error(answers.confidence, answers.correct))


def _share(successes: np.ndarray) -> Metric:
    return Metric(int(successes.sum()) / len(successes), wilson(int(successes.sum()), len(successes)))


def expected_calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = BINS) -> float:
    """Mean distance between confidence and accuracy, over bins of confidence weighted by their images.

    Equation 3 of Guo et al. 2017 (arXiv 1706.04599), after Naeini, Cooper and Hauskrecht (AAAI 2015). Bin m of M
    equally wide bins holds the confidences in ((m - 1) / M, m / M].

    Args:
        confidence: (N,) probability of the predicted class, N at least 1.
        correct: (N,) whether it is the label.
        bins: M.

    Returns:
        0 to 1.
    """
    which = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    # The number of images in a bin cancels.
    return float(np.abs(np.bincount(which, correct - confidence, bins)).sum() / len(confidence))


# ---- intervals


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
    # Rounding must not put the proportion outside of the interval.
    return max(min(centre - half, p), 0.0), min(max(centre + half, p), 1.0)


def paired_interval(first: np.ndarray, second: np.ndarray, z: float = 1.959964) -> tuple[float, float]:
    """Confidence interval of the difference of two accuracies on the same images.

    Wald's interval for the difference of paired proportions, with half an image added to each of the four cells
    (Agresti and Min, "Simple improved confidence intervals for comparing matched proportions", Statistics in Medicine
    24, 2005).

    Args:
        first, second: (N,) bool, whether each image was classified correctly; N at least 1.
        z: quantile of the standard normal distribution; 95 % by default.

    Returns:
        Lower and upper bound of the accuracy of ``first`` minus that of ``second``, -1 to 1.
    """
    only_first, only_second, n = int((first & ~second).sum()), int((second & ~first).sum()), len(first) + 2
    centre = (only_first - only_second) / n
    half = z * (only_first + only_second + 1 - (only_first - only_second) ** 2 / n) ** 0.5 / n
    return max(centre - half, -1.0), min(centre + half, 1.0)

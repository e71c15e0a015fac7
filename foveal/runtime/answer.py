"""The answer of an exported model, in NumPy: logits and the looks behind them.

`Classification` has the attributes of `foveal.Classification`, as arrays.

Example:
    >>> looks = Looks(np.array([0, 0]), np.zeros((2, 4)), np.array([[8, 8]] * 2), np.array([1, 2]), np.array([-1, 0]),
    ...               np.ones(2), np.array([[0.5, 0.0], [1.5, 0.5]]))
    >>> seen = Classification(np.array([[2.0, 0.5]]), looks, ("cat", "dog"))
    >>> seen.labels, seen.probabilities.round(3).tolist(), seen.looks_of(0).level.tolist()
    (['cat'], [[0.818, 0.182]], [1, 2])
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

SEPARATOR = "|"
"""Separates the labels of an image."""


class Looks(NamedTuple):
    """The looks of a batch, grouped by image, in the order of their choice.

    Attributes:
        image: (M,) int, index of the image; ascending.
        box: (M, 4) float64 (y0, x0, y1, x1) in pixels of the image.
        size: (M, 2) int, (height, width) that each box was resampled to.
        level: (M,) int, processing level, 1 for the first look.
        parent: (M,) int, index of the parent among the looks of the image; -1 for none.
        probability: (M,) float32, probability of the choice given those before it.
        contribution: (M, classes) float32, contribution to the logits; None if the model is not additive.
    """

    image: np.ndarray
    box: np.ndarray
    size: np.ndarray
    level: np.ndarray
    parent: np.ndarray
    probability: np.ndarray
    contribution: np.ndarray | None = None


@dataclass(frozen=True)
class Classification:
    """Logits of a batch, and the looks behind them.

    Attributes:
        logits: (B, classes) float32.
        looks: the looks of all images.
        class_names: names in the order of the logits; if empty, numbers are used.
        task: ``multiclass`` or ``multilabel``.
        thresholds: (class, probability) of each class that is decided by a threshold.
    """

    logits: np.ndarray
    looks: Looks
    class_names: tuple[str, ...] = ()
    task: str = "multiclass"
    thresholds: tuple[tuple[int, float], ...] = ()

    @property
    def probabilities(self) -> np.ndarray:
        """(B, classes) softmax of the logits, or their sigmoid for labels."""
        return sigmoid(self.logits) if self.task == "multilabel" else softmax(self.logits)

    @property
    def labels(self) -> list[str]:
        """Name of the predicted class of each image, or its labels with ``|`` between them.

        With thresholds: the most probable class that reaches its threshold, or else of those without one.
        """
        decided = _labels if self.task == "multilabel" else _classes
        return [SEPARATOR.join(self._name(int(i)) for i in row) for row in decided(self.probabilities, self.thresholds)]

    def looks_of(self, i: int) -> Looks:
        """The looks of one image."""
        own = self.looks.image == i
        return Looks(*(None if part is None else part[own] for part in self.looks))  # type: ignore[arg-type]

    def _name(self, i: int) -> str:
        return self.class_names[i] if self.class_names else str(i)

    def __len__(self) -> int:
        return len(self.logits)


def _labels(p: np.ndarray, thresholds: Sequence[tuple[int, float]]) -> list[np.ndarray]:
    """Indices of the labels whose probability is at least their threshold, 0.5 unless there is another."""
    least = np.full(p.shape[1], 0.5)
    for index, threshold in thresholds:
        least[index] = threshold
    return [np.flatnonzero(row >= least) for row in p]


def _classes(p: np.ndarray, thresholds: Sequence[tuple[int, float]]) -> list[np.ndarray]:
    """Index of the predicted class, see `foveal.tasks.Multiclass.decide`."""
    if thresholds:
        least = np.full(p.shape[1], np.inf)
        for index, threshold in thresholds:
            least[index] = threshold
        reached, others = p >= least, np.isinf(least)
        allowed = np.where(reached.any(1, keepdims=True), reached, others if others.any() else True)
        p = np.where(allowed, p, -1)
    return list(p.argmax(1)[:, None])


def log_softmax(x: np.ndarray) -> np.ndarray:
    """Along the last axis."""
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def softmax(x: np.ndarray) -> np.ndarray:
    """Along the last axis."""
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -x))

"""Tasks: what a target is, and what logits say about it.

A task has an activation, a loss, a reward, and a rule that turns probabilities into labels. The targets tell the task:
(N,) integers are one class of each image, an (N, classes) matrix marks each label that holds. Logits are sums of the
contributions of looks in either task.

Example:
    >>> logits = torch.tensor([[2.0, -1.0, 0.5]])
    >>> Multiclass().decide(Multiclass().probabilities(logits)).tolist()
    [0]
    >>> Multilabel().decide(Multilabel().probabilities(logits)).tolist()
    [[True, False, True]]
    >>> task_of(torch.tensor([[1.0, 0.0, 1.0]])).name
    'multilabel'
    >>> rare = Multiclass(thresholds=((2, 0.1),))
    >>> rare.decide(rare.probabilities(logits)).tolist()
    [2]
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

SEPARATOR = "|"
"""Separates the labels of an image in tables."""


@dataclass(frozen=True)
class Task(ABC):
    """A task, and the thresholds of its decisions.

    Attributes:
        thresholds: (class, probability) of each class that is decided by a threshold, see `decide`.
        name: its name in files.
    """

    name: ClassVar[str]
    thresholds: tuple[tuple[int, float], ...] = ()

    @abstractmethod
    def probabilities(self, logits: Tensor) -> Tensor:
        """Probabilities (..., classes) of logits, in float32 or more."""

    @abstractmethod
    def decide(self, probabilities: Tensor) -> Tensor:
        """Predicted targets of (..., classes) probabilities."""

    @abstractmethod
    def indices(self, decided: Tensor) -> tuple[int, ...]:
        """Predicted classes of one image, of what `decide` returns."""

    @abstractmethod
    def certainty(self, probabilities: Tensor) -> Tensor:
        """(...) probability of the decision, of (..., classes) probabilities."""

    def confidence(self, logits: Tensor) -> Tensor:
        """(...) probability of the decision without thresholds, of (..., classes) logits."""
        return type(self)().certainty(self.probabilities(logits))

    @abstractmethod
    def loss(
        self,
        logits: Tensor,
        target: Tensor,
        class_weights: Sequence[float] | None = None,
        label_smoothing: float = 0.0,
        reduction: str = "mean",
    ) -> Tensor:
        """Negative log-likelihood of targets.

        Args:
            logits: (B, classes).
            target: targets of B images.
            class_weights: weight of each class.
            label_smoothing: share of the probability that is spread over all classes.
            reduction: ``"mean"``, ``"sum"``, or ``"none"`` for (B,).
        """

    @abstractmethod
    def reward(self, logits: Tensor, target: Tensor) -> Tensor:
        """(...) reward of a prediction, 0 to 1; 1 if it is right. Logits are (..., classes)."""

    @abstractmethod
    def evidence(self, logits: Tensor, target: Tensor) -> Tensor:
        """(...) log-probability of the targets, of (..., classes) logits."""

    @abstractmethod
    def mixture(self, logits: Tensor, log_weights: Tensor) -> Tensor:
        """(B, classes) logits of a weighted mean of probabilities, of (B, N, classes) logits and (B, N) weights."""

    @abstractmethod
    def counts(self, targets: np.ndarray, classes: int) -> np.ndarray:
        """(classes,) number of images of each class."""

    @abstractmethod
    def commonest(self, targets: np.ndarray) -> tuple[tuple[int, ...], float]:
        """The most frequent target, as classes, and the share of images that have it: the accuracy of a constant."""

    def with_thresholds(self, thresholds: Sequence[tuple[int, float]]) -> Task:
        """The same task with other thresholds."""
        return type(self)(tuple(sorted(thresholds)))


class Multiclass(Task):
    """Each image has one class. Targets are (N,) int64; the activation is the softmax."""

    name = "multiclass"

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(-1)

    def decide(self, probabilities: Tensor) -> Tensor:
        """(...) int64: the most probable class that reaches its threshold, or else of those without threshold."""
        if not self.thresholds:
            return probabilities.argmax(-1)
        with_one = torch.zeros(probabilities.shape[-1], dtype=torch.bool, device=probabilities.device)
        least = torch.full(with_one.shape, torch.inf, dtype=torch.float64, device=probabilities.device)
        for index, threshold in self.thresholds:
            with_one[index], least[index] = True, threshold
        reached = probabilities >= least
        # All classes may have a threshold that none reaches.
        others = ~with_one if not bool(with_one.all()) else with_one
        allowed = torch.where(reached.any(-1, keepdim=True), reached, others)
        return probabilities.masked_fill(~allowed, -1).argmax(-1)

    def indices(self, decided: Tensor) -> tuple[int, ...]:
        return (int(decided),)

    def certainty(self, probabilities: Tensor) -> Tensor:
        """The probability of the predicted class."""
        if not self.thresholds:
            return probabilities.amax(-1)
        return probabilities.gather(-1, self.decide(probabilities)[..., None]).squeeze(-1)

    def loss(
        self,
        logits: Tensor,
        target: Tensor,
        class_weights: Sequence[float] | None = None,
        label_smoothing: float = 0.0,
        reduction: str = "mean",
    ) -> Tensor:
        """Cross-entropy."""
        weight = _weights(class_weights, logits)
        return F.cross_entropy(logits, target, weight=weight, label_smoothing=label_smoothing, reduction=reduction)

    def reward(self, logits: Tensor, target: Tensor) -> Tensor:
        """1 if the most probable class is the target."""
        return (logits.argmax(-1) == _aligned(target, logits.ndim - 1)).float()

    def evidence(self, logits: Tensor, target: Tensor) -> Tensor:
        index = _aligned(target, logits.ndim - 1).expand(logits.shape[:-1])
        return logits.log_softmax(-1).gather(-1, index[..., None]).squeeze(-1)

    def mixture(self, logits: Tensor, log_weights: Tensor) -> Tensor:
        return (log_weights[..., None] + logits.log_softmax(-1)).logsumexp(1)

    def counts(self, targets: np.ndarray, classes: int) -> np.ndarray:
        return np.bincount(targets, minlength=classes)

    def commonest(self, targets: np.ndarray) -> tuple[tuple[int, ...], float]:
        counts = np.bincount(targets)
        return (int(counts.argmax()),), float(counts.max() / len(targets))


class Multilabel(Task):
    """Each image has any number of labels. Targets are (N, classes); the activation is the sigmoid."""

    name = "multilabel"

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.to(torch.promote_types(logits.dtype, torch.float32)).sigmoid()

    def decide(self, probabilities: Tensor) -> Tensor:
        """(..., classes) bool: each label whose probability is at least its threshold, 0.5 unless there is another."""
        least = torch.full(probabilities.shape[-1:], 0.5, dtype=torch.float64, device=probabilities.device)
        for index, threshold in self.thresholds:
            least[index] = threshold
        return probabilities >= least

    def indices(self, decided: Tensor) -> tuple[int, ...]:
        return tuple(torch.nonzero(decided).flatten().tolist())

    def certainty(self, probabilities: Tensor) -> Tensor:
        """The probability of the least certain decision, for or against a label."""
        return torch.where(self.decide(probabilities), probabilities, 1 - probabilities).amin(-1)

    def loss(
        self,
        logits: Tensor,
        target: Tensor,
        class_weights: Sequence[float] | None = None,
        label_smoothing: float = 0.0,
        reduction: str = "mean",
    ) -> Tensor:
        """Mean binary cross-entropy of the labels. Weights multiply the terms of their label."""
        wanted = target.to(logits.dtype) * (1 - label_smoothing) + label_smoothing / 2
        each = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
        weight = _weights(class_weights, logits)
        each = each.mean(-1) if weight is None else (each * weight).sum(-1) / weight.sum()
        return each if reduction == "none" else each.sum() if reduction == "sum" else each.mean()

    def reward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Jaccard index of the predicted and the true labels; 1 if there are none of both."""
        predicted, true = logits >= 0, _aligned(target, logits.ndim).bool()
        union = (predicted | true).sum(-1)
        return torch.where(union > 0, (predicted & true).sum(-1) / union.clamp(min=1), 1.0)

    def evidence(self, logits: Tensor, target: Tensor) -> Tensor:
        """Mean over labels, as in `loss`."""
        wanted = _aligned(target, logits.ndim).to(logits.dtype).expand_as(logits)
        return -F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean(-1)

    def mixture(self, logits: Tensor, log_weights: Tensor) -> Tensor:
        log_yes, log_no = ((log_weights[..., None] + F.logsigmoid(z)).logsumexp(1) for z in (logits, -logits))
        return log_yes - log_no

    def counts(self, targets: np.ndarray, classes: int) -> np.ndarray:
        return targets.astype(bool).sum(0)

    def commonest(self, targets: np.ndarray) -> tuple[tuple[int, ...], float]:
        sets, counts = np.unique(targets.astype(bool), axis=0, return_counts=True)
        most = counts.argmax()
        return tuple(np.flatnonzero(sets[most]).tolist()), float(counts[most] / len(targets))


MULTICLASS, MULTILABEL = Multiclass(), Multilabel()
TASKS: dict[str, Task] = {task.name: task for task in (MULTICLASS, MULTILABEL)}
"""Tasks by name, without thresholds."""


def task_of(targets: Any) -> Task:
    """The task of targets, a tensor or an array."""
    return MULTICLASS if targets.ndim == 1 else MULTILABEL


def join(names: Sequence[str]) -> str:
    """Labels as one text, as tables hold them."""
    return SEPARATOR.join(names)


def _weights(class_weights: Sequence[float] | None, logits: Tensor) -> Tensor | None:
    if class_weights is None:
        return None
    return torch.tensor(class_weights, dtype=logits.dtype).to(logits.device, non_blocking=True)


def _aligned(target: Tensor, ndim: int) -> Tensor:
    """Targets of B images with dimensions of size 1 after the first, up to a number of dimensions."""
    return target.reshape(len(target), *[1] * (ndim - target.ndim), *target.shape[1:])

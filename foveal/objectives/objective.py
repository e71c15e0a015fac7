"""The contract of an objective: a pure function from rollouts to a loss.

An objective keeps no state. What it must remember from step to step (a moving-average baseline) is handed in and
handed back, so that whoever trains can save it, and a test can call the function twice and get the same answer.

Example:
    >>> import numpy as np, torch
    >>> from foveal.objectives.rollout import Rollout
    >>> logits = torch.zeros(4, 2)
    >>> tried = Rollout(logits=logits, glimpse_logits=logits[:, None], level=np.array([1]))
    >>> loss, state, log = CrossEntropy()([tried], torch.tensor([0, 1, 1, 0]), torch.zeros(0))
    >>> round(float(loss), 4), sorted(log)
    (0.6931, ['loss'])
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.objectives.rollout import Rollout


class Objective(Protocol):
    """What a trainer needs to know of an objective."""

    def plan(self, progress: float) -> tuple[str, ...]:
        """Policies of the rollouts wanted at this point of training (0 to 1), e.g. ``("sampled", "greedy")``."""
        ...

    def initial_state(self) -> Tensor:
        """What the first call gets as ``state``; (0,) where nothing is remembered."""
        ...

    def __call__(self, rollouts: Sequence[Rollout], target: Tensor, state: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return (scalar loss, next state, scalars to log).

        Args:
            rollouts: one for each policy of the plan, in its order.
            target: (B,) int64 labels.
            state: what the last call returned.
        """
        ...


class CrossEntropy:
    """Cross-entropy of the whole rollout; what dense networks are trained with.

    Args:
        label_smoothing: share of the probability spread over all classes.
        class_weights: weight of each class, in the order of the logits; equal weights if None.
    """

    def __init__(self, label_smoothing: float = 0.0, class_weights: Sequence[float] | None = None) -> None:
        self.label_smoothing = label_smoothing
        self.class_weights = None if class_weights is None else torch.tensor(class_weights)

    def plan(self, progress: float) -> tuple[str, ...]:
        return ("greedy",)

    def initial_state(self) -> Tensor:
        return torch.zeros(0)

    def __call__(self, rollouts: Sequence[Rollout], target: Tensor, state: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        logits = rollouts[0].logits
        weights = None if self.class_weights is None else self.class_weights.to(logits.device, logits.dtype, non_blocking=True)
        loss = F.cross_entropy(logits, target, weight=weights, label_smoothing=self.label_smoothing)
        return loss, state, {"loss": loss.detach()}

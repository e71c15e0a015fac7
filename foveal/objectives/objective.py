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
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.choices import POLICY_NAMES
from foveal.objectives.rollout import Rollout
from foveal.policies import Policy
from foveal.registry import Registry

OBJECTIVES: Registry[type[Any]] = Registry("objective")
"""Objectives by the name that recipes call them by: dataclasses, whose fields are the options."""


class Objective(Protocol):
    """Interface of an objective."""

    @property
    def trains(self) -> tuple[str, ...] | None:
        """Groups of the model's parameters that learn, see `GlimpseClassifier.parameter_groups`; all if None.

        The others are left as they are: they get no gradient, and what holds nothing else is in evaluation mode.
        """
        ...

    def plan(self, progress: float) -> tuple[str | Policy, ...]:
        """Policies of the rollouts wanted at this point of training (0 to 1), e.g. ``("sampled", "greedy")``."""
        ...

    def initial_state(self) -> Tensor:
        """``state`` of the first call; shape (0,) for a stateless objective."""
        ...

    def __call__(
        self, rollouts: Sequence[Rollout], target: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return (scalar loss, next state, scalars to log).

        Args:
            rollouts: one for each policy of the plan, in its order.
            target: (B,) int64 labels.
            state: what the last call returned.
        """
        ...


@OBJECTIVES.register("cross_entropy")
@dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy of the whole rollout; what dense networks are trained with.

    Args:
        label_smoothing: share of the probability spread over all classes.
        image_share: share of the whole rollout's cross-entropy; the rest goes to every look alone.
        policy: how cells are chosen meanwhile, in models that choose.
        trains: groups of the model's parameters that learn; all if None.
        class_weights: weight of each class, in the order of the logits; equal weights if None.
    """

    label_smoothing: float = 0.0
    image_share: float = 1.0
    policy: Annotated[str, POLICY_NAMES] = "greedy"
    trains: tuple[str, ...] | None = None
    class_weights: Sequence[float] | None = None

    def plan(self, progress: float) -> tuple[str, ...]:
        return (self.policy,)

    def initial_state(self) -> Tensor:
        return torch.zeros(0)

    def __call__(
        self, rollouts: Sequence[Rollout], target: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        (tried,) = rollouts
        loss = perception(tried, target, self.image_share, self.class_weights, self.label_smoothing)
        return loss, state, {"loss": loss.detach()}


def perception(
    tried: Rollout,
    target: Tensor,
    image_share: float,
    class_weights: Sequence[float] | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy of the whole rollout and, with the rest of the weight, of every look alone."""
    whole = cross_entropy(tried.logits, target, class_weights, label_smoothing)
    if image_share == 1:
        return whole
    return image_share * whole + (1 - image_share) * cross_entropy(
        tried.glimpse_logits, target, class_weights, label_smoothing
    )


def cross_entropy(
    logits: Tensor, target: Tensor, class_weights: Sequence[float] | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """Mean cross-entropy of (B, classes) or, each look against its image's label, (B, N, classes)."""
    if logits.ndim == 3:
        target = target[:, None].expand(logits.shape[:2]).flatten()
        logits = logits.flatten(0, 1)
    weights = (
        None
        if class_weights is None
        else torch.tensor(class_weights).to(logits.device, logits.dtype, non_blocking=True)
    )
    return F.cross_entropy(logits, target, weight=weights, label_smoothing=label_smoothing)

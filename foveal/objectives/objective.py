"""The interface of objectives: pure functions from rollouts to a loss.

An objective has no internal state. Its state, such as a moving-average baseline, is an argument and a return value, so
the caller can save it.

Example:
    >>> import numpy as np, torch
    >>> from foveal.objectives.rollout import Rollout
    >>> logits = torch.zeros(4, 2)
    >>> rollout = Rollout(logits=logits, glimpse_logits=logits[:, None], level=np.array([1]))
    >>> loss, state, log = CrossEntropy()([rollout], torch.tensor([0, 1, 1, 0]), torch.zeros(0))
    >>> round(float(loss), 4), sorted(log)
    (0.6931, ['loss'])
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

import torch
from torch import Tensor

from foveal.choices import POLICY_NAMES
from foveal.objectives.rollout import Rollout
from foveal.policies import Policy
from foveal.registry import Registry
from foveal.tasks import task_of

OBJECTIVES: Registry[type[Any]] = Registry("objective")
"""Objectives by name. They are dataclasses whose fields are the options in recipes."""


class Objective(Protocol):
    """Interface of an objective.

    An objective may also have ``formerly``: options that were added in later versions, with the values that reproduce
    earlier versions, for runs that are resumed. And it may have a method ``adapted(images, cells, levels,
    pretrained)``: training calls it with the numbers of training images, of cells of a grid (None for models without
    one) and of levels with grids, and whether the backbone is pretrained, and uses what it returns; see
    `TNetObjective.adapted`. With an attribute ``teacher`` that is not None, the run folder of a trained model, training
    fills `Rollout.taught`.
    """

    @property
    def trains(self) -> tuple[str, ...] | None:
        """Parameter groups that are trained, see `GlimpseClassifier.parameter_groups`; all if None.

        Other parameters are frozen. Fully frozen modules stay in evaluation mode.
        """
        ...

    def plan(self, progress: float) -> tuple[str | Policy, ...]:
        """Policies of the rollouts at this point of training (0 to 1), e.g. ``("sampled", "greedy")``."""
        ...

    def initial_state(self) -> Tensor:
        """``state`` of the first call; shape (0,) for objectives without state."""
        ...

    def __call__(
        self, rollouts: Sequence[Rollout], target: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Compute the loss.

        Args:
            rollouts: one for each policy of the plan, in the same order.
            target: (B,) int64 classes, or (B, classes) labels, see `foveal.tasks`.
            state: state returned by the previous call.

        Returns:
            Scalar loss, next state, and scalars to log.
        """
        ...


@OBJECTIVES.register("cross_entropy")
@dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy; the default for dense networks.

    Args:
        label_smoothing: share of the probability that is spread over all classes.
        image_share: weight of the cross-entropy of the whole rollout; the remaining weight is that of every look alone.
        policy: policy that chooses cells, for models that choose.
        trains: parameter groups that are trained; all if None.
        class_weights: weight of each class, in the order of the logits; equal if None.
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
        (rollout,) = rollouts
        loss = classification_loss(rollout, target, self.image_share, self.class_weights, self.label_smoothing)
        return loss, state, {"loss": loss.detach()}


def classification_loss(
    rollout: Rollout,
    target: Tensor,
    image_share: float,
    class_weights: Sequence[float] | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy of the whole rollout, and with the remaining weight that of every look alone."""
    whole = cross_entropy(rollout.logits, target, class_weights, label_smoothing)
    if image_share == 1:
        return whole
    return image_share * whole + (1 - image_share) * cross_entropy(
        rollout.glimpse_logits, target, class_weights, label_smoothing
    )


def cross_entropy(
    logits: Tensor, target: Tensor, class_weights: Sequence[float] | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """Mean loss of logits (B, classes), or (B, N, classes) with the target of the image for every look.

    It is the cross-entropy, or the binary cross-entropy of (B, classes) targets; see `foveal.tasks.Task.loss`.
    """
    task = task_of(target)
    if logits.ndim == 3:
        target = target.repeat_interleave(logits.shape[1], dim=0)
        logits = logits.flatten(0, 1)
    return task.loss(logits, target, class_weights, label_smoothing)

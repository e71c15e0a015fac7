"""Objectives of the three training stages of Saccader (arXiv 1908.07644).

Stage 1: cross-entropy of the mean over all cells; this is `CrossEntropy` with the policy ``exhaustive``.
Stage 2: the policy imitates ordered logits, the cells in descending order of their logit of the predicted class
(`SaccaderLocations`).
Stage 3: cross-entropy and policy gradient for the whole model (`SaccaderObjective`). It can also run stages 1 and 2
first.

Example:
    >>> import numpy as np, torch
    >>> import foveal.glimpse.saccader  # registers its policies
    >>> from foveal.objectives.rollout import Rollout
    >>> scores = torch.tensor([[0.5, 0.25, 0.25]]).log()
    >>> rollout = Rollout(
    ...     logits=torch.zeros(1, 2), glimpse_logits=torch.zeros(1, 1, 2), level=np.array([2]),
    ...     cells=torch.tensor([[1]]), log_probability=scores[:, 1:2], scores=[scores[:, None]],
    ...     policy="ordered_logits")
    >>> loss, _, _ = SaccaderLocations()([rollout], torch.tensor([0]), torch.zeros(0))
    >>> round(float(loss), 3)
    1.386
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor

from foveal.objectives.objective import OBJECTIVES, cross_entropy
from foveal.objectives.rollout import Rollout
from foveal.tasks import task_of


def location_nll(rollout: Rollout, target_cells: Tensor) -> tuple[Tensor, Tensor]:
    """Negative log-probability of each target cell under the policy, step by step.

    Args:
        rollout: rollout with the scores of the policy. Its own cells are barred once visited.
        target_cells: (B, T) target cells, in order.

    Returns:
        Negative log-probabilities (B, T), and whether each target cell was still free, (B, T) bool. The loss of a
        barred cell is a large constant and has no meaning.
    """
    cells = cast(Tensor, rollout.cells)
    loss = -rollout.scores[0].gather(-1, target_cells[..., None]).squeeze(-1)
    before = torch.ones(target_cells.shape[1], target_cells.shape[1], device=target_cells.device).tril(-1).bool()
    visited = (target_cells[..., None].eq(cells[:, None]) & before).any(-1)
    return loss, ~visited


@OBJECTIVES.register("saccader_locations")
@dataclass(frozen=True)
class SaccaderLocations:
    """Stage 2: imitation of ordered logits, as a classification of cells at each step.

    Args:
        rollout: ``teacher`` visits the target cells; ``sampled`` visits cells sampled from the policy, as in the
            released code, so a target cell may already be barred.
        trains: parameter groups that are trained; all if None.
    """

    rollout: Literal["teacher", "sampled"] = "teacher"
    trains: tuple[str, ...] | None = ("location",)
    class_weights: Sequence[float] | None = None

    def plan(self, progress: float) -> tuple[str, ...]:
        return ("ordered_logits",) if self.rollout == "teacher" else ("sampled", "ordered_logits")

    def initial_state(self) -> Tensor:
        return torch.zeros(0)

    def __call__(
        self, rollouts: Sequence[Rollout], target: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        target_cells = cast(Tensor, rollouts[-1].cells)
        nll, free = location_nll(rollouts[0], target_cells)
        most_probable = rollouts[0].scores[0].argmax(-1)
        mean_nll = (nll.detach() * free).sum() / free.sum().clamp(min=1)
        log = {
            "loss": mean_nll,
            "barred": 1 - free.float().mean(),
            "agreement": most_probable.eq(target_cells).float().mean(),
        }
        return nll.mean(), state, log


@OBJECTIVES.register("saccader")
@dataclass(frozen=True)
class SaccaderObjective:
    """Stage 3: cross-entropy of the averaged logits, and REINFORCE for the locations.

    loss = CE - w mean over images and steps of (reward - mean reward) log-probability. The reward is 1 for a right
    prediction. The mean reward is that of the images of one process, so each process needs several images.

    Args:
        pretraining: share of the run, from its start, that runs stages 1 and 2: cross-entropy of all cells and of the
            glimpses of ordered logits, and imitation of ordered logits. 0 if the run starts from such weights.
        policy_weight: weight w of the policy gradient.
        samples: number of rollouts per image.
        punish: reward -1 instead of 0 for a wrong prediction.
        class_weights: weight of each class in the cross-entropies.
        label_smoothing: share of the probability that is spread over all classes in the cross-entropies.
    """

    trains: ClassVar[None] = None
    pretraining: float = 0.7
    policy_weight: float = 1.0
    samples: int = 1
    punish: bool = False
    class_weights: Sequence[float] | None = None
    label_smoothing: float = 0.0

    def plan(self, progress: float) -> tuple[str, ...]:
        return ("exhaustive", "ordered_logits") if progress < self.pretraining else ("sampled",) * self.samples

    def initial_state(self) -> Tensor:
        return torch.zeros(0)

    def __call__(
        self, rollouts: Sequence[Rollout], target: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        loss_classes = torch.stack(
            [cross_entropy(r.logits, target, self.class_weights, self.label_smoothing) for r in rollouts]
        ).mean()
        log = {"loss_classes": loss_classes.detach()}
        if rollouts[-1].policy.teaches:
            loss_locations = -rollouts[-1].log_probability.mean()
            loss = loss_classes + loss_locations
            return loss, state, {"loss": loss.detach(), **log, "loss_locations": loss_locations.detach()}
        right = torch.stack([task_of(target).reward(rollout.logits, target) for rollout in rollouts])
        reward = 2 * right - 1 if self.punish else right
        log_p = torch.stack([rollout.log_probability.mean(1) for rollout in rollouts])
        loss = loss_classes - self.policy_weight * ((reward - reward.mean()) * log_p).mean()
        return loss, state, {"loss": loss.detach(), **log, "reward": reward.mean()}

"""What Saccader minimises, stage by stage.

Stage 1 learns classes from all cells: `CrossEntropy` with the policy ``exhaustive``. Stage 2 teaches the policy to
follow the cells that speak most for the predicted class, in their order (`SaccaderLocations`). Stage 3 trains all by
cross-entropy and policy gradient (`SaccaderObjective`), which can do the work of the first two in the same run.

Example:
    >>> import numpy as np, torch
    >>> from foveal.objectives.rollout import Rollout
    >>> scores = torch.tensor([[0.5, 0.25, 0.25]]).log()
    >>> tried = Rollout(
    ...     logits=torch.zeros(1, 2), glimpse_logits=torch.zeros(1, 1, 2), level=np.array([2]),
    ...     cells=torch.tensor([[1]]), log_probability=scores[:, 1:2], scores=[scores[:, None]],
    ...     policy="ordered_logits")
    >>> loss, _, _ = SaccaderLocations()([tried], torch.tensor([0]), torch.zeros(0))
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


def cell_surprise(tried: Rollout, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Negative log-probability of each wanted cell under the policy, step by step.

    Args:
        tried: whose scores are judged; its own cells decide what was barred.
        wanted: (B, T) cells, in order.

    Returns:
        (B, T) negative log-probability of each, and (B, T) whether it could still be chosen: a cell that the rollout
        had visited before is barred, and its huge loss says nothing.
    """
    cells = cast(Tensor, tried.cells)
    loss = -tried.scores[0].gather(-1, wanted[..., None]).squeeze(-1)
    before = torch.ones(wanted.shape[1], wanted.shape[1], device=wanted.device).tril(-1).bool()
    visited = (wanted[..., None].eq(cells[:, None]) & before).any(-1)
    return loss, ~visited


@OBJECTIVES.register("saccader_locations")
@dataclass(frozen=True)
class SaccaderLocations:
    """Stage 2: the locations that ordered logits choose, as a classification of cells, step by step.

    Args:
        rollout: ``teacher`` visits the wanted cells themselves; ``sampled`` what the policy draws, as released, so that
            a wanted cell may be barred by then.
        trains: groups of the model's parameters that learn; all if None.
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
        wanted = cast(Tensor, rollouts[-1].cells)
        each, free = cell_surprise(rollouts[0], wanted)
        best = rollouts[0].scores[0].argmax(-1)
        mean_of_free = (each.detach() * free).sum() / free.sum().clamp(min=1)
        log = {"loss": mean_of_free, "barred": 1 - free.float().mean(), "agreement": best.eq(wanted).float().mean()}
        return each.mean(), state, log


@OBJECTIVES.register("saccader")
@dataclass(frozen=True)
class SaccaderObjective:
    """Stage 3: cross-entropy of the averaged glimpses, and REINFORCE for where they were taken.

    loss = CE - w mean over images and steps of (reward - mean reward) log-probability, with the reward 1 for a right
    answer. The mean reward is that of the images that one process holds: give each several.

    Args:
        pretraining: share of the run, from its beginning, that learns classes from all cells and from the glimpses of
            ordered logits, and locations from ordered logits: stages 1 and 2 in the same run. 0 for a run that begins
            with such weights.
        policy_weight: w.
        samples: rollouts of each image.
        punish: reward -1, not 0, for a wrong answer.
        class_weights: weight of each class in the cross-entropies.
    """

    trains: ClassVar[None] = None
    pretraining: float = 0.7
    policy_weight: float = 1.0
    samples: int = 1
    punish: bool = False
    class_weights: Sequence[float] | None = None

    def plan(self, progress: float) -> tuple[str, ...]:
        return ("exhaustive", "ordered_logits") if progress < self.pretraining else ("sampled",) * self.samples

    def initial_state(self) -> Tensor:
        return torch.zeros(0)

    def __call__(
        self, rollouts: Sequence[Rollout], target: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        classes = torch.stack([cross_entropy(tried.logits, target, self.class_weights) for tried in rollouts]).mean()
        log = {"loss_classes": classes.detach()}
        if rollouts[-1].policy.teaches:
            each = -rollouts[-1].log_probability
            loss = classes + each.mean()
            return loss, state, {"loss": loss.detach(), **log, "loss_locations": each.mean().detach()}
        right = torch.stack([(tried.logits.argmax(-1) == target).float() for tried in rollouts])
        reward = 2 * right - 1 if self.punish else right
        log_p = torch.stack([tried.log_probability.mean(1) for tried in rollouts])
        loss = classes - self.policy_weight * ((reward - reward.mean()) * log_p).mean()
        return loss, state, {"loss": loss.detach(), **log, "reward": reward.mean()}

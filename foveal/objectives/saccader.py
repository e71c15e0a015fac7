"""Objectives of the three training stages of Saccader (arXiv 1908.07644).

Stage 1: cross-entropy of the mean over all cells; this is `CrossEntropy` with the policy ``exhaustive``.
Stage 2: the policy imitates ordered logits, the cells in descending order of their logit of the predicted class
(`SaccaderLocations`).
Stage 3: cross-entropy and policy gradient (`SaccaderObjective`). It can also run stages 1 and 2 first.

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

from foveal.errors import ConfigError
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

    The loss also has the cross-entropy of the glimpses of ordered logits. While the BagNet is frozen, it trains nothing
    but the scale of the logits of glimpses; models without this scale have no such term.
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
        loss, logits = nll.mean(), rollouts[-1].logits
        if logits.requires_grad and "backbone" not in (self.trains or ("backbone",)):
            loss_classes = cross_entropy(logits, target, self.class_weights)
            loss, log = loss + loss_classes, {**log, "loss_classes": loss_classes.detach()}
        return loss, state, log


def cell_values(rollout: Rollout, cell_logits: Tensor, target: Tensor) -> Tensor:
    """Log-probability of the target with each cell in the place of each choice.

    The logits of a rollout are the mean of those of its glimpses, so the value of exchanging one glimpse for any cell
    is known exactly, without another forward pass.

    Args:
        rollout: rollout of T glimpses whose logits are averaged.
        cell_logits: (B, N, classes) logits of each cell as a glimpse.
        target: targets of B images, see `foveal.tasks`.

    Returns:
        (B, T, N), detached, in float32 or better. The value of a chosen cell in its own place is that of the rollout.
    """
    alone, cells = rollout.glimpse_logits.detach(), cell_logits.detach()
    dtype = torch.promote_types(alone.dtype, torch.float32)
    alone, cells = alone.to(dtype), cells.to(dtype)
    task, count = task_of(target), alone.shape[1]
    others = alone.sum(1, keepdim=True) - alone
    # One choice at a time, because cells x classes can be large.
    return torch.stack([task.evidence((others[:, t, None] + cells) / count, target) for t in range(count)], 1)


@OBJECTIVES.register("saccader")
@dataclass(frozen=True)
class SaccaderObjective:
    """Stage 3: cross-entropy of the averaged logits, and a policy gradient for the locations.

    With ``credit`` ``image``, as published, it is REINFORCE: loss = CE - w mean over images and steps of (reward - mean
    reward) log-probability. The reward is 1 for a right prediction. The mean reward is that of the images of one
    process, so each process needs several images.

    With ``credit`` ``cells`` the gradient is computed over all cells instead of estimated from the sampled ones: loss =
    CE - w mean over images of the sum over steps of E[value]. The value of a cell is the log-probability of the target
    with this cell in the place of the choice (`cell_values`); the expectation is over the cells, under the policy. How
    a choice changes later ones, of which it only bars itself, is left out. CE is the mean of the cross-entropies of the
    glimpses and of all cells, which keeps the BagNet a classifier of whole images.

    Args:
        pretraining: share of the run, from its start, that runs stages 1 and 2: cross-entropy of all cells and of the
            glimpses of ordered logits, and imitation of ordered logits. 0 if the run starts from such weights.
        policy_weight: weight w of the policy gradient.
        samples: number of rollouts per image.
        punish: reward -1 instead of 0 for a wrong prediction.
        class_weights: weight of each class in the cross-entropies.
        label_smoothing: share of the probability that is spread over all classes in the cross-entropies.
        credit: see above. ``cells`` needs the logits of all cells, which models with a separate classifier do not have.
        trains: parameter groups that are trained; all if None.
    """

    pretraining: float = 0.7
    policy_weight: float = 1.0
    samples: int = 1
    punish: bool = False
    class_weights: Sequence[float] | None = None
    label_smoothing: float = 0.0
    credit: Literal["cells", "image"] = "cells"
    formerly: ClassVar[dict[str, str]] = {"credit": "image"}
    trains: tuple[str, ...] | None = None

    def plan(self, progress: float) -> tuple[str, ...]:
        if progress < self.pretraining:
            return ("exhaustive", "ordered_logits")
        return ("sampled",) * self.samples + (("exhaustive",) if self.credit == "cells" else ())

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
        tried = [rollout for rollout in rollouts if rollout.policy.sampled]
        if not tried:
            return loss_classes, state, {"loss": loss_classes.detach(), **log}
        right = torch.stack([task_of(target).reward(rollout.logits, target) for rollout in tried])
        reward = 2 * right - 1 if self.punish else right
        if self.credit == "image":
            log_p = torch.stack([rollout.log_probability.mean(1) for rollout in tried])
            loss = loss_classes - self.policy_weight * ((reward - reward.mean()) * log_p).mean()
        else:
            cell_logits = rollouts[-1].glimpse_logits
            if cell_logits.shape[1] != tried[0].scores[0].shape[-1]:
                raise ConfigError(
                    "objective.credit: cells needs the logits of all cells, which a separate classifier does not give;"
                    " use image"
                )
            expected = [(r.scores[0].exp() * cell_values(r, cell_logits, target)).sum(-1) for r in tried]
            loss = loss_classes - self.policy_weight * torch.stack(expected).sum(-1).mean()
        return loss, state, {"loss": loss.detach(), **log, "reward": reward.mean()}

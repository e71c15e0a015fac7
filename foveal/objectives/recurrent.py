"""Objective of recurrent attention models: cross-entropy and REINFORCE.

In RAM ("Recurrent Models of Visual Attention", Mnih et al., 2014, arXiv 1406.6247) the baseline is a learned prediction
of the reward. In DRAM as trained by the authors of Saccader (arXiv 1908.07644, released code) it is the mean reward of
the batch.

Example:
    >>> import numpy as np, torch
    >>> from foveal.objectives.rollout import Rollout
    >>> logits = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    >>> density = torch.zeros(2, 1, requires_grad=True)
    >>> rollout = Rollout(
    ...     logits=logits, glimpse_logits=logits[:, None], level=np.array([1]), log_probability=density,
    ...     policy="sampled")
    >>> loss, _, log = RecurrentObjective(policy_weight=0.1)([rollout], torch.tensor([0, 0]), torch.zeros(0))
    >>> float(log["reward"]), [round(g, 4) for g in torch.autograd.grad(loss, density)[0].flatten().tolist()]
    (0.5, [-0.025, 0.025])
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.objectives.objective import OBJECTIVES, classification_loss
from foveal.objectives.rollout import Rollout
from foveal.tasks import task_of


@OBJECTIVES.register("recurrent")
@dataclass(frozen=True)
class RecurrentObjective:
    """Cross-entropy and REINFORCE, with reward 1 if the final prediction is right and 0 otherwise.

    The baseline is the model's prediction of the reward (``Rollout.values``), trained by its mean squared error, or the
    mean reward of the batch for models without such a prediction.

    Args:
        policy_weight: weight of the policy gradient, which is a mean over images and choices.
        image_share: weight of the cross-entropy of the final prediction. The remaining weight is that of the
            predictions after every look, which allow the model to stop at any time.
        class_weights: weight of each class in the cross-entropies.
        label_smoothing: share of the probability that is spread over all classes in the cross-entropies.
    """

    trains: ClassVar[None] = None
    policy_weight: float = 1.0
    image_share: float = 1.0
    class_weights: Sequence[float] | None = None
    label_smoothing: float = 0.0

    def plan(self, progress: float) -> tuple[str, ...]:
        return ("sampled",)

    def initial_state(self) -> Tensor:
        return torch.zeros(0)

    def __call__(
        self, rollouts: Sequence[Rollout], target: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        (rollout,) = rollouts
        loss_perception = classification_loss(
            rollout, target, self.image_share, self.class_weights, self.label_smoothing
        )
        right = task_of(target).reward(rollout.logits, target)
        log = {"loss_perception": loss_perception.detach(), "reward": right.mean()}
        if not rollout.log_probability.shape[1]:
            return loss_perception, state, {"loss": loss_perception.detach(), **log}
        reward = right[:, None].expand_as(rollout.log_probability)
        baseline = right.mean() if rollout.values is None else rollout.values.float()
        loss = loss_perception - self.policy_weight * ((reward - baseline).detach() * rollout.log_probability).mean()
        if rollout.values is not None:
            loss_baseline = F.mse_loss(baseline, reward)
            loss = loss + loss_baseline
            log["loss_baseline"] = loss_baseline.detach()
        return loss, state, {"loss": loss.detach(), **log}

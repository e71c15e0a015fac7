"""What recurrent attention minimises: cross-entropy, and a policy gradient for places that are drawn from a density.

RAM ("Recurrent Models of Visual Attention", Mnih et al., 2014, arXiv 1406.6247) expects a reward by itself, which is
learned beside; DRAM as Saccader's authors train it (arXiv 1908.07644, released code) compares with the mean reward of
the batch.

Example:
    >>> import numpy as np, torch
    >>> from foveal.objectives.rollout import Rollout
    >>> logits = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    >>> density = torch.zeros(2, 1, requires_grad=True)
    >>> tried = Rollout(
    ...     logits=logits, glimpse_logits=logits[:, None], level=np.array([1]), log_probability=density,
    ...     policy="sampled")
    >>> loss, _, log = RecurrentObjective(policy_weight=0.1)([tried], torch.tensor([0, 0]), torch.zeros(0))
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

from foveal.objectives.objective import OBJECTIVES, perception
from foveal.objectives.rollout import Rollout


@OBJECTIVES.register("recurrent")
@dataclass(frozen=True)
class RecurrentObjective:
    """Cross-entropy and REINFORCE, whose reward is 1 where the final prediction is right.

    The baseline is what the model expects before each choice, fitted to the reward by its mean squared error, where it
    says so (``Rollout.values``); else the mean reward of the batch.

    Args:
        policy_weight: weight of the policy gradient, which is a mean over images and choices.
        image_share: share of the final prediction's cross-entropy; the rest goes to what was predicted after every
            single look, which teaches the model to be stopped at any time.
        class_weights: weight of each class in the cross-entropies.
    """

    trains: ClassVar[None] = None
    policy_weight: float = 1.0
    image_share: float = 1.0
    class_weights: Sequence[float] | None = None

    def plan(self, progress: float) -> tuple[str, ...]:
        return ("sampled",)

    def initial_state(self) -> Tensor:
        return torch.zeros(0)

    def __call__(
        self, rollouts: Sequence[Rollout], target: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        (tried,) = rollouts
        perceived = perception(tried, target, self.image_share, self.class_weights)
        right = (tried.logits.argmax(-1) == target).float()
        log = {"loss_perception": perceived.detach(), "reward": right.mean()}
        if not tried.log_probability.shape[1]:
            return perceived, state, {"loss": perceived.detach(), **log}
        reward = right[:, None].expand_as(tried.log_probability)
        expected = right.mean() if tried.values is None else tried.values.float()
        loss = perceived - self.policy_weight * ((reward - expected).detach() * tried.log_probability).mean()
        if tried.values is not None:
            fit = F.mse_loss(expected, reward)
            loss = loss + fit
            log["loss_baseline"] = fit.detach()
        return loss, state, {"loss": loss.detach(), **log}

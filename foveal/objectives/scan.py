"""Objective of `foveal.glimpse.scan.Scan`.

Most looks of a beginner miss the object, so a mean over looks hides the one that shows it. The mixture likelihood does
not: it is high if any look with weight gives the right class, and its gradient moves weight to such looks. Each look is
also trained alone, and the scout on what each look alone gains, which needs no weight to begin with.

Example:
    >>> import numpy as np, torch
    >>> from foveal.objectives.rollout import Rollout
    >>> looks, scores = torch.tensor([[[4.0, 0.0], [0.0, 0.0]]]), torch.tensor([[1.0, 0.0]])
    >>> log_w = scores.log_softmax(1)[:, None]
    >>> rollout = Rollout(looks.mean(1), looks, np.array([2, 2]), scores=[log_w], values=scores)
    >>> loss, _, log = ScanObjective()([rollout], torch.tensor([0]), torch.zeros(0))
    >>> sorted(log)
    ['loss', 'loss_alone', 'loss_image', 'loss_mixture', 'loss_scout']
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.choices import POLICY_NAMES
from foveal.errors import ConfigError
from foveal.objectives.objective import OBJECTIVES, cross_entropy
from foveal.objectives.rollout import MASKED, Rollout
from foveal.tasks import task_of


@OBJECTIVES.register("scan")
@dataclass(frozen=True)
class ScanObjective:
    """Mixture likelihood of the looks, cross-entropy of every look alone, and regression of the scout.

    The mixture of N looks with weights w_i, the softmax of the scout's scores, has the probability sum_i w_i p_i of a
    class (or of each label). The score of each look is regressed on its own gain: the log-probability of the target
    minus that of equal logits, at least the negative of its maximum.

    Args:
        alone: weight of the cross-entropy of every look alone.
        fading: multiply the cross-entropy of the looks of an image by the probability that the mixture does not give to
            its target. It starts the reader while no look has weight. Later, most looks do not show what the label is
            about, and the reader would learn them by heart.
        regression: weight of the scout's regression.
        image: weight of the cross-entropy of the logits of the image, the sum of w_i z_i. The mixture takes a look with
            another class for an error; here it is a vote.
        policy: policy that chooses places.
        trains: parameter groups that are trained; all if None.
        class_weights: weight of each class in the mixture likelihood and the cross-entropy; equal if None.
    """

    alone: float = 0.5
    fading: bool = True
    regression: float = 1.0
    image: float = 0.0
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
        if rollout.values is None or not rollout.scores:
            raise ConfigError("objective scan: the model has no scout; use the model scan, or another objective")
        task, log_w, logits = task_of(target), rollout.scores[0][:, 0], rollout.glimpse_logits.to(rollout.values)
        taken = (log_w > MASKED).to(log_w)
        mixture = task.mixture(logits, log_w)
        loss_mixture = cross_entropy(mixture, target, self.class_weights)
        count = taken.sum()
        repeated = target.repeat_interleave(logits.shape[1], dim=0)
        each = task.loss(logits.flatten(0, 1), repeated, self.class_weights, reduction="none")
        unexplained = 1 - task.evidence(mixture.detach(), target).exp()[:, None] if self.fading else 1.0
        alone = (each.view_as(taken) * taken * unexplained).sum() / count
        chance = task.evidence(torch.zeros_like(logits), target)
        gain = (task.evidence(logits.detach(), target) - chance).maximum(chance)
        scout = (F.smooth_l1_loss(rollout.values * taken, gain * taken, reduction="sum")) / count
        loss_image = cross_entropy(rollout.logits.to(logits), target, self.class_weights)
        loss = loss_mixture + self.image * loss_image + self.alone * alone + self.regression * scout
        log = {
            "loss": loss,
            "loss_mixture": loss_mixture,
            "loss_image": loss_image,
            "loss_alone": alone,
            "loss_scout": scout,
        }
        return loss, state, {name: value.detach() for name, value in log.items()}

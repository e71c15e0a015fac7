"""What TNet minimises: as published, and our default.

Both train the perception by cross-entropy, of the whole rollout and of every look alone (so that each attended region
is informative by itself), and the policy by REINFORCE.

Example:
    >>> import numpy as np, torch
    >>> from foveal.objectives.rollout import MASKED, Rollout
    >>> looks = torch.tensor([[[0.0, 0.0], [2.0, 0.0], [4.0, 1.0]]])
    >>> tried = Rollout(
    ...     logits=looks.mean(1), glimpse_logits=looks, level=np.array([1, 2, 2]), parent=np.array([-1, 0, 0]),
    ...     log_probability=torch.tensor([[-0.7, -0.7]]), policy="sampled")
    >>> [round(c, 2) for c in credit(tried, torch.tensor([0]))[0].tolist()]
    [0.08, 0.14]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.host import to_device
from foveal.objectives.objective import OBJECTIVES, cross_entropy, perception
from foveal.objectives.rollout import MASKED, Rollout


def contrastive(fused: Tensor, target: Tensor, margin: float = 0.4, group: int = 16) -> Tensor:
    """Cosine contrast of all ordered pairs (bird data sets).

    1 - cos for pairs of one class, max(cos - margin, 0) for others, averaged over the B^2 pairs of each group of
    ``group`` images: the published runs had 16 images per device.

    Args:
        fused: (B, D).
        target: (B,).
    """
    total = fused.new_zeros(())
    for vectors, labels in zip(fused.split(group), target.split(group), strict=True):
        v = F.normalize(vectors, dim=1)
        cos = v @ v.T
        same = labels[:, None] == labels
        total = total + torch.where(same, 1 - cos, (cos - margin).clamp(min=0)).mean() * len(labels)
    return total / len(fused)


@OBJECTIVES.register("tnet.reference")
@dataclass(frozen=True)
class ReferenceTNetObjective:
    """The published objective.

    loss = s CE_img + (1 - s) CE_feat + w [s RL_img + (1 - s) RL_feat] + c contrastive, with the reward 1 for a right
    answer, one moving-average baseline for both policy terms, and deterministic top-k as the "sample".

    Args:
        image_share: share of the whole rollout's terms; the rest goes to every look alone. s, the same for both halves
            in the published runs (lambda_c = lambda_b).
        policy_weight: weight of the policy gradient, w (lambda_r).
        feature_levels: highest level whose looks are judged alone (H); all if None.
        contrastive: weight of the contrast between the images of a batch, c (lambda_k).
        class_weights: weight of each class in the cross-entropies.
    """

    trains: ClassVar[None] = None
    image_share: float
    policy_weight: float = 0.1
    feature_levels: int | None = None
    contrastive: float = 0.0
    class_weights: Sequence[float] | None = None

    def plan(self, progress: float) -> tuple[str, ...]:
        return ("greedy",)

    def initial_state(self) -> Tensor:
        return torch.tensor(0.5)

    def __call__(
        self, rollouts: Sequence[Rollout], target: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        (tried,) = rollouts
        weights, share = self.class_weights, self.image_share
        right = (tried.logits.argmax(-1) == target).float()
        loss_image = cross_entropy(tried.logits, target, weights)
        log = {"loss_image": loss_image.detach()}
        extra: Tensor | float = 0.0
        if self.contrastive and tried.fused is not None:
            extra = self.contrastive * contrastive(tried.fused, target)
        if tried.glimpses_per_image == 1:
            # The released code skips every other term where there is only the thumbnail.
            loss = share * loss_image + extra
            return loss, state, {"loss": loss.detach(), **log}

        judged = np.flatnonzero(tried.level <= (self.feature_levels or tried.level.max()))
        at = to_device(judged, target.device)
        alone = tried.glimpse_logits.index_select(1, at)
        loss_feature = cross_entropy(alone, target, weights)
        right_alone = (alone[:, 1:].argmax(-1) == target[:, None]).float()
        log_p = tried.log_probability
        policy_image = ((right - state) * -log_p.sum(1)).mean()
        policy_feature = ((right_alone - state) * -log_p.index_select(1, at[1:] - 1)).mean()
        reward = share * right.mean() + (1 - share) * right_alone.mean()
        loss = share * loss_image + (1 - share) * loss_feature + extra
        loss = loss + self.policy_weight * (share * policy_image + (1 - share) * policy_feature)
        log |= {"loss_feature": loss_feature.detach(), "reward": reward, "baseline": state}
        return loss, 0.9 * state + 0.1 * reward.to(state), {"loss": loss.detach(), **log}


def credit(tried: Rollout, target: Tensor) -> Tensor:
    """Credit of each choice: the value of all looks minus the expected value without this choice.

    The value of a set of looks is the log-probability of the right class after averaging them; the head is additive, so
    that the value of any subset costs no forward pass. A choice is compared with its context: the looks that do not
    follow from it (not those chosen later from the same grid, nor what descends from them). Where another cell was
    chosen next from the same grid, drawn from what the choice left,
    ``(1 - p) value(context + next) + p value(context + choice)`` is on average the value that the policy expects of
    this draw, whichever cell it fell on. So the credit is nearly what leaving the choice out would cost, which carries
    little noise, and yet keeps the policy gradient unbiased.

    Args:
        tried: N looks, with an additive head.
        target: (B,).

    Returns:
        (B, N - 1), detached; positive where the choice helped.
    """
    logits = tried.glimpse_logits.detach()
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    p = tried.log_probability.detach().exp().to(logits.dtype)
    parent = cast(np.ndarray, tried.parent).tolist()
    context, following = (to_device(mask, logits.device) for mask in _compared(tuple(parent)))
    own = torch.eye(logits.shape[1], dtype=torch.bool, device=logits.device)[1:]

    def value(looks: Tensor) -> Tensor:
        share = looks.to(logits.dtype) / looks.sum(1, keepdim=True)
        with torch.autocast(logits.device.type, enabled=False):  # differences of means, for which halves are too coarse
            means = (share @ logits).transpose(1, 2)
        return -F.cross_entropy(means, target[:, None].expand(-1, len(share)), reduction="none")

    expected = torch.where(
        following.any(1), (1 - p) * value(context | following) + p * value(context | own), value(context)
    )
    return value(torch.ones_like(own)) - expected


@cache
def _compared(parent: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """For each choice among N looks: (N - 1, N) masks of its context, and of the look chosen next from the same
    grid."""
    count = len(parent)
    context, following = np.ones((2, count - 1, count), dtype=bool)
    following[:] = False
    for j in range(1, count):
        later = [i for i in range(j, count) if parent[i] == parent[j]]
        if len(later) > 1:
            following[j - 1, later[1]] = True
        gone = set(later)
        for i in range(j, count):
            if parent[i] in gone:
                gone.add(i)
        context[j - 1, list(gone)] = False
    return context, following


@OBJECTIVES.register("tnet")
@dataclass(frozen=True)
class TNetObjective:
    """Our default: a warm-up without choices, then looks sampled without replacement, each credited with what it gained
    (`credit`).

    From nothing, a classifier of a few looks learns very slowly: most looks miss the object, and what they are taught
    is noise. So the warm-up sees the whole image at the resolution of the looks, in one pass. The policy learns
    meanwhile from the cells of the same pass: it is drawn to those that say most for the right class.

    Args:
        image_share: share of the whole rollout's cross-entropy; the rest goes to every look alone.
        policy_weight: weight of the policy gradient, whose baseline is a moving average of the credit.
        warm_up: share of training that comes before the policy chooses.
        warm_up_looks: what is seen meanwhile: ``whole``, all cells in one pass, where the backbone takes images of that
            size; or ``random`` looks.
        class_weights: weight of each class in the cross-entropies.
    """

    trains: ClassVar[None] = None
    image_share: float = 0.3
    policy_weight: float = 1.0
    warm_up: float = 0.1
    warm_up_looks: Literal["whole", "random"] = "whole"
    class_weights: Sequence[float] | None = None

    def plan(self, progress: float) -> tuple[str, ...]:
        return (self.warm_up_looks if progress < self.warm_up else "sampled",)

    def initial_state(self) -> Tensor:
        return torch.tensor(0.0)

    def __call__(
        self, rollouts: Sequence[Rollout], target: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        (tried,) = rollouts
        if tried.policy.one_pass:
            perceived = cross_entropy(tried.logits, target, self.class_weights)
            taught = divergence_from_best_cells(tried, target)
            loss = perceived + self.policy_weight * taught
            return (
                loss,
                state,
                {"loss": loss.detach(), "loss_perception": perceived.detach(), "loss_imitation": taught.detach()},
            )
        perceived = perception(tried, target, self.image_share, self.class_weights)
        if not tried.policy.sampled or tried.glimpses_per_image == 1:
            return perceived, state, {"loss": perceived.detach()}
        credits = self.credit(tried, target)
        loss = perceived - self.policy_weight * ((credits - state) * tried.log_probability).sum(1).mean()
        mean = credits.mean()
        log = {"loss": loss.detach(), "loss_perception": perceived.detach(), "credit": mean, "baseline": state}
        return loss, 0.95 * state + 0.05 * mean.to(state), log

    def credit(self, tried: Rollout, target: Tensor) -> Tensor:
        """(B, N - 1) credit of each choice, detached."""
        return credit(tried, target)


def divergence_from_best_cells(tried: Rollout, target: Tensor) -> Tensor:
    """Divergence of the policy from the cells with the most evidence for the right class.

    The teacher gives each of the K cells a probability in proportion to what the cell alone gives the right class; the
    result is the mean Kullback-Leibler divergence of the policy from the teacher, in nats.

    Args:
        tried: a rollout with the policy ``whole``.
        target: (B,).
    """
    log_p = tried.scores[0].flatten(0, 1)
    speaks = tried.glimpse_logits.detach().to(log_p.dtype).log_softmax(-1)
    speaks = speaks.gather(-1, target[:, None, None].expand(-1, speaks.shape[1], 1)).squeeze(-1)
    masked = log_p < MASKED
    teacher = speaks.masked_fill(masked, -torch.inf).log_softmax(-1)
    apart = teacher.exp() * (teacher - log_p)
    return apart.masked_fill(masked, 0).sum(-1).mean()

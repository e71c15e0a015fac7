"""Objectives of TNet: the published one, and the default.

Both train the classifier by cross-entropy of the whole rollout and of every look alone, so that each attended region is
informative by itself. Both train the policy by REINFORCE.

Example:
    >>> import numpy as np, torch
    >>> from foveal.objectives.rollout import MASKED, Rollout
    >>> looks = torch.tensor([[[0.0, 0.0], [2.0, 0.0], [4.0, 1.0]]])
    >>> rollout = Rollout(
    ...     logits=looks.mean(1), glimpse_logits=looks, level=np.array([1, 2, 2]), parent=np.array([-1, 0, 0]),
    ...     log_probability=torch.tensor([[-0.7, -0.7]]), policy="sampled")
    >>> [round(c, 2) for c in credit(rollout, torch.tensor([0]))[0].tolist()]
    [0.08, 0.14]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.host import to_device
from foveal.objectives.objective import OBJECTIVES, classification_loss, cross_entropy
from foveal.objectives.rollout import MASKED, Rollout
from foveal.tasks import task_of

FEW_IMAGES, FEW_CELLS = 500, 25
"""With fewer training images, and with at most so many cells, all cells are looked at; see `TNetObjective.adapted`."""


def contrastive(fused: Tensor, target: Tensor, margin: float = 0.4, group: int = 16) -> Tensor:
    """Contrastive loss on cosine similarities of all ordered pairs (bird data sets).

    1 - cos for pairs of one class and max(cos - margin, 0) for others, averaged over the B^2 pairs of each group of
    ``group`` images. The published runs had 16 images per device.

    Args:
        fused: (B, D) features.
        target: (B,) classes, or (B, classes) labels, which are alike if all are equal.
        margin: cosine similarity up to which pairs of different classes have no loss.
        group: number of images that are compared with each other.
    """
    total = fused.new_zeros(())
    for vectors, labels in zip(fused.split(group), target.split(group), strict=True):
        v = F.normalize(vectors, dim=1)
        cos = v @ v.T
        same = labels[:, None] == labels if labels.ndim == 1 else (labels[:, None] == labels).all(-1)
        total = total + torch.where(same, 1 - cos, (cos - margin).clamp(min=0)).mean() * len(labels)
    return total / len(fused)


@OBJECTIVES.register("tnet.reference")
@dataclass(frozen=True)
class ReferenceTNetObjective:
    """The published objective.

    loss = s CE_img + (1 - s) CE_feat + w [s RL_img + (1 - s) RL_feat] + c contrastive. The reward is 1 for a right
    prediction. Both policy terms share a moving-average baseline, and the actions are the deterministic top-k cells.

    Args:
        image_share: weight s of the terms of the whole rollout; 1 - s is that of every look alone. The published runs
            use the same value for cross-entropy and policy gradient (lambda_c = lambda_b).
        policy_weight: weight w of the policy gradient (lambda_r).
        feature_levels: highest level with terms for every look alone (H); all levels if None.
        contrastive: weight c of the contrastive loss (lambda_k).
        class_weights: weight of each class in the cross-entropies.
        label_smoothing: share of the probability that is spread over all classes in the cross-entropies.
    """

    trains: ClassVar[None] = None
    image_share: float
    policy_weight: float = 0.1
    feature_levels: int | None = None
    contrastive: float = 0.0
    class_weights: Sequence[float] | None = None
    label_smoothing: float = 0.0

    def plan(self, progress: float) -> tuple[str, ...]:
        return ("greedy",)

    def initial_state(self) -> Tensor:
        return torch.tensor(0.5)

    def __call__(
        self, rollouts: Sequence[Rollout], target: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        (rollout,) = rollouts
        weights, smooth, share = self.class_weights, self.label_smoothing, self.image_share
        task = task_of(target)
        right = task.reward(rollout.logits, target)
        loss_image = cross_entropy(rollout.logits, target, weights, smooth)
        log = {"loss_image": loss_image.detach()}
        loss_contrastive: Tensor | float = 0.0
        if self.contrastive and rollout.fused is not None:
            loss_contrastive = self.contrastive * contrastive(rollout.fused, target)
        if rollout.glimpses_per_image == 1:
            # With only the thumbnail, the released code skips all other terms.
            loss = share * loss_image + loss_contrastive
            return loss, state, {"loss": loss.detach(), **log}

        looks = np.flatnonzero(rollout.level <= (self.feature_levels or rollout.level.max()))
        at = to_device(looks, target.device)
        alone = rollout.glimpse_logits.index_select(1, at)
        loss_feature = cross_entropy(alone, target, weights, smooth)
        right_alone = task.reward(alone[:, 1:], target)
        log_p = rollout.log_probability
        policy_image = ((right - state) * -log_p.sum(1)).mean()
        policy_feature = ((right_alone - state) * -log_p.index_select(1, at[1:] - 1)).mean()
        reward = share * right.mean() + (1 - share) * right_alone.mean()
        loss = share * loss_image + (1 - share) * loss_feature + loss_contrastive
        loss = loss + self.policy_weight * (share * policy_image + (1 - share) * policy_feature)
        log |= {"loss_feature": loss_feature.detach(), "reward": reward, "baseline": state}
        return loss, 0.9 * state + 0.1 * reward.to(state), {"loss": loss.detach(), **log}


def credit(rollout: Rollout, target: Tensor) -> Tensor:
    """Credit of each choice: the value of all looks minus the expected value without this choice.

    The value of a set of looks is the log-probability of the right class after averaging their logits. The head is
    additive, so the value of any subset needs no forward pass. The context of a choice is the set of looks that do not
    depend on it, that is without later choices from the same grid and without their descendants. The expected value is
    ``(1 - p) value(context + next) + p value(context + choice)``, where p is the probability of the choice and ``next``
    is the following choice from the same grid, sampled without replacement from the remaining cells. In expectation
    this is the value under the policy, independent of the chosen cell. The policy gradient is therefore unbiased, and
    its variance is low because the credit is close to the loss of leaving the choice out.

    Args:
        rollout: rollout of N looks with an additive head.
        target: (B,) labels.

    Returns:
        (B, N - 1), detached; positive for choices that helped.
    """
    logits = rollout.glimpse_logits.detach()
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    p = rollout.log_probability.detach().exp().to(logits.dtype)
    parent = cast(np.ndarray, rollout.parent).tolist()
    context, next_choice = (to_device(mask, logits.device) for mask in _context_and_next(tuple(parent)))
    own = torch.eye(logits.shape[1], dtype=torch.bool, device=logits.device)[1:]

    def value(looks: Tensor) -> Tensor:
        share = looks.to(logits.dtype) / looks.sum(1, keepdim=True)
        with torch.autocast(logits.device.type, enabled=False):  # half precision is too coarse for differences of means
            return task_of(target).evidence(share @ logits, target)

    expected = torch.where(
        next_choice.any(1), (1 - p) * value(context | next_choice) + p * value(context | own), value(context)
    )
    return value(torch.ones_like(own)) - expected


@cache
def _context_and_next(parent: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """For each choice among N looks: masks (N - 1, N) of its context, and of the next choice from the same grid."""
    count = len(parent)
    context, next_choice = np.ones((2, count - 1, count), dtype=bool)
    next_choice[:] = False
    for j in range(1, count):
        later = [i for i in range(j, count) if parent[i] == parent[j]]
        if len(later) > 1:
            next_choice[j - 1, later[1]] = True
        dependent = set(later)
        for i in range(j, count):
            if parent[i] in dependent:
                dependent.add(i)
        context[j - 1, list(dependent)] = False
    return context, next_choice


@OBJECTIVES.register("tnet")
@dataclass(frozen=True)
class TNetObjective:
    """The default: a warm-up without choices, then REINFORCE with looks sampled without replacement and the `credit` of
    each.

    A classifier of a few looks learns very slowly from random weights, because most looks miss the object. The warm-up
    therefore trains on the whole image at the resolution of the looks, in one pass. Meanwhile the policy imitates the
    cells of this pass with the highest log-probability of the right class.

    A policy gradient from few images is mostly noise. There, all cells of an image are looked at instead, and the
    policy imitates what each look alone says about the target (`imitation_loss`). The head is additive, so this is
    known exactly. Only the whole rollout has a cross-entropy then: most cells do not show what the image is labelled
    for, and learning the label from each of them would teach all cells to agree.

    A trained model can be the teacher instead, such as a scan, which sees the image at a finer level than the
    thumbnail. In all updates, beside the policy gradient, the policy imitates the weights that the teacher gives to the
    cells of each grid.

    Args:
        image_share: weight of the cross-entropy of the whole rollout; the remaining weight is that of every look alone.
        policy_weight: weight of the policy gradient, and of the imitation of cells that were looked at. The baseline is
            a moving average of the credit.
        warm_up: share of training before the policy chooses looks.
        warm_up_looks: looks of the warm-up: ``whole``, all cells in one pass, for backbones that accept images of that
            size; or ``random``.
        class_weights: weight of each class in the cross-entropies.
        label_smoothing: share of the probability that is spread over all classes in the cross-entropies.
        teach: share of training, from its start, in which all cells are looked at, instead of the warm-up where they
            overlap. None decides by the backbone, the number of training images and the grid, see `adapted`; 0 without
            them.
        teacher: run folder of a trained model that gives weights to boxes, such as a scan; None for none. Only training
            needs it.
        teacher_weight: weight of the imitation of the teacher.
    """

    trains: ClassVar[None] = None
    formerly: ClassVar[dict[str, Any]] = {"teach": 0.0, "teacher": None, "teacher_weight": 1.0}
    image_share: float = 0.3
    policy_weight: float = 1.0
    warm_up: float = 0.1
    warm_up_looks: Literal["whole", "random"] = "whole"
    class_weights: Sequence[float] | None = None
    label_smoothing: float = 0.0
    teach: float | None = None
    teacher: str | None = None
    teacher_weight: float = 1.0

    def adapted(self, images: int, cells: int | None, levels: int, pretrained: bool) -> TNetObjective:
        """The objective with ``teach`` decided: 1 for a pretrained backbone, fewer than `FEW_IMAGES` training images,
        and one grid of at most `FEW_CELLS` cells, which all updates can afford to look at; else 0. A backbone without
        pretrained weights cannot tell cells apart at first, and learns faster by the warm-up.

        Args:
            images: number of training images.
            cells: number of cells of a grid; None for models without one.
            levels: number of levels with grids.
            pretrained: whether the backbone has pretrained weights.
        """
        if self.teach is not None:
            return self
        affordable = levels == 1 and cells is not None and cells <= FEW_CELLS
        return replace(self, teach=float(pretrained and affordable and images < FEW_IMAGES))

    def plan(self, progress: float) -> tuple[str, ...]:
        if progress < (self.teach or 0) or self.teach == 1:
            return ("exhaustive",)
        return (self.warm_up_looks if progress < self.warm_up else "sampled",)

    def initial_state(self) -> Tensor:
        return torch.tensor(0.0)

    def __call__(
        self, rollouts: Sequence[Rollout], target: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        (rollout,) = rollouts
        every_cell = rollout.policy.one_pass or (rollout.policy.every_cell and bool(rollout.scores))
        image_share = 1.0 if every_cell else self.image_share
        loss = classification_loss(rollout, target, image_share, self.class_weights, self.label_smoothing)
        log = {"loss_perception": loss.detach()}
        if every_cell or rollout.taught:
            loss_imitation = imitation_loss(rollout, target)
            loss = loss + (self.teacher_weight if rollout.taught else self.policy_weight) * loss_imitation
            log["loss_imitation"] = loss_imitation.detach()
        if rollout.policy.sampled and rollout.glimpses_per_image > 1:
            credits = self.credit(rollout, target)
            loss = loss - self.policy_weight * ((credits - state) * rollout.log_probability).sum(1).mean()
            mean = credits.mean()
            log |= {"credit": mean, "baseline": state}
            state = 0.95 * state + 0.05 * mean.to(state)
        return loss, state, {"loss": loss.detach(), **log}

    def credit(self, rollout: Rollout, target: Tensor) -> Tensor:
        """Credit (B, N - 1) of each choice, detached; see `credit`."""
        return credit(rollout, target)


def imitation_loss(rollout: Rollout, target: Tensor) -> Tensor:
    """KL divergence of the policy from a teacher's distribution over the cells of its grids.

    The teacher is another model, if the rollout has its weights (``taught``), or else the looks at all cells of the
    first grid, see `told_by_looks`. Weights of the cells of a grid are a distribution times their sum, the teacher's
    weight in the grid. The divergences of the grids of an image are multiplied by this weight and added, as for a chain
    of choices from coarse to fine.

    Args:
        rollout: rollout with ``taught``, or of the policy ``whole`` or ``exhaustive``.
        target: (B,) labels.

    Returns:
        Mean divergence in nats.
    """
    total = rollout.logits.new_zeros(())
    for weights, log_p in zip(rollout.taught or [told_by_looks(rollout, target)], rollout.scores, strict=False):
        inside = weights.sum(-1)
        known = log_p.masked_fill(log_p < MASKED, 0)
        divergence = (weights.xlogy(weights) - weights * known).sum(-1) - inside.xlogy(inside)
        total = total + divergence.sum(1).mean()
    return total


def told_by_looks(rollout: Rollout, target: Tensor) -> Tensor:
    """Weights (B, 1, K) of the cells of the first grid, proportional to the probability that each alone gives the right
    class. If all cells give it, as in images without an object, weights are equal.

    Args:
        rollout: rollout of the policy ``whole`` or ``exhaustive``.
        target: (B,) labels.
    """
    log_p, alone = rollout.scores[0].flatten(0, 1), rollout.glimpse_logits
    if rollout.cells is not None:  # the first look, then looks at the cells in the order chosen
        order = rollout.cells[:, : log_p.shape[1]].argsort(1) + 1
        alone = alone.gather(1, order[..., None].expand(-1, -1, alone.shape[-1]))
    evidence = task_of(target).evidence(alone.detach().to(log_p.dtype), target)
    return evidence.masked_fill(log_p < MASKED, -torch.inf).softmax(-1)[:, None]

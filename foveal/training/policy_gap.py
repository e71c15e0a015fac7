"""Whether a learned policy is better than random looks, measured on validation images when training ends.

A policy that learned nothing looks as sure of itself as a good one. The check classifies validation images twice, with
learned and with random looks, and compares the log-probability of the target image by image. Predictions look at random
only if learned looks are worse beyond noise: the interval of the mean difference is below 0. The sign of the difference
alone would be a matter of chance where both are as good, as when all validation images are right anyway.

Example:
    >>> gap = PolicyGap.of(np.array([0.3, 0.1, 0.2, 0.2]), np.ones(4), accuracy=0.9, random_accuracy=0.8)
    >>> round(gap.gap, 3), [round(bound, 2) for bound in gap.interval], gap.helps, gap.harms
    (0.2, [0.12, 0.28], True, False)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from foveal.data import DataModule, Loader
from foveal.draws import Draws
from foveal.glimpse.base import GlimpseClassifier
from foveal.host import usable_device
from foveal.policies import GREEDY, Random
from foveal.tasks import task_of
from foveal.training.config import Training

MOST, FEWEST = 1000, 30
"""Largest number of images that are classified, and smallest number that allows a statement."""


@dataclass(frozen=True)
class PolicyGap:
    """Learned looks compared with as many random ones, on the same images.

    Attributes:
        images: number of images.
        accuracy, random_accuracy: accuracy with learned and with random looks, 0 to 1.
        gap: mean log-probability of the target with learned looks minus that with random looks, in nats. Images count
            by the class weights of training.
        interval: 95 % interval of ``gap``, from the differences of single images.
    """

    images: int
    accuracy: float
    random_accuracy: float
    gap: float
    interval: tuple[float, float]

    @classmethod
    def of(cls, differences: np.ndarray, weights: np.ndarray, *, accuracy: float, random_accuracy: float) -> PolicyGap:
        """From the differences (N,) of log-probabilities and the weights (N,) of images."""
        share = weights / weights.sum()
        gap = float((share * differences).sum())
        few = len(differences) / max(len(differences) - 1, 1)
        error = math.sqrt(few * float((share**2 * (differences - gap) ** 2).sum()))
        interval = gap - 1.959964 * error, gap + 1.959964 * error
        return cls(len(differences), accuracy, random_accuracy, gap, interval)

    @property
    def helps(self) -> bool:
        """Whether learned looks are better than random ones beyond noise."""
        return self.interval[0] > 0

    @property
    def harms(self) -> bool:
        """Whether learned looks are worse than random ones beyond noise."""
        return self.interval[1] < 0

    def note(self) -> str | None:
        """A sentence for the user, if learned looks are not clearly better than random ones."""
        if self.helps:
            return None
        measured = (
            f"accuracy {100 * self.accuracy:.1f} against {100 * self.random_accuracy:.1f} %, log-likelihood"
            f" {self.gap:+.3f} nats (95 % interval: {self.interval[0]:+.3f} to {self.interval[1]:+.3f})"
        )
        if not self.harms:
            return (
                f"learned looks are not clearly better than random ones on {self.images:,} validation images:"
                f" {measured}; predictions keep learned looks; train longer, or compare them on more images by foveal"
                " evaluate"
            )
        return (
            f"learned looks are worse than random ones on {self.images:,} validation images: {measured};"
            " predictions of this run therefore choose looks at random, unless `policy` greedy is given"
        )


def measure_policy_gap(
    model: GlimpseClassifier, data: DataModule, training: Training, class_weights: Sequence[float] | None = None
) -> PolicyGap | None:
    """Compare learned with random looks on validation images.

    Args:
        model: the trained model.
        data: the data it was trained on.
        training: batch size, locations, device and seed.
        class_weights: weight of each class.

    Returns:
        The comparison; None for a model that does not choose looks, with fewer than `FEWEST` images that can be read,
        if learned and random looks are the same, as when all cells are looked at, or if a log-probability is not
        finite.
    """
    policies = (GREEDY.name, Random.name)
    locations = model.resolve_locations(training.locations)
    if not locations or not set(policies) <= set(model.policies) or data.val is None or len(data.val) < FEWEST:
        return None
    device, home, mode = usable_device(training.device), model.mean.device, model.training
    loader = Loader(
        data.val,
        batch_size=training.batch_size,
        seed=training.seed,
        first_looks=model.first_looks,
        shuffle=len(data.val) > MOST,
        limit=MOST,
    )
    found: list[Tensor] = []
    model.eval().to(device)
    try:
        with torch.inference_mode():
            for batch in loader:
                if not len(batch):
                    continue
                batch, draws = batch.to(device), Draws(training.seed, 0, batch.index)
                learned, chance = (
                    model(batch.views, locations, policy, draws, contributions=False).logits.float()
                    for policy in policies
                )
                task, target = task_of(batch.target), batch.target
                columns = [
                    task.evidence(learned, target) - task.evidence(chance, target),
                    _weight(target, class_weights),
                    *((task.reward(logits, target) == 1).float() for logits in (learned, chance)),
                ]
                good = [i for i in range(len(batch)) if i not in batch.views.errors]
                found.append(torch.stack(columns, 1).cpu()[good])
    finally:
        model.train(mode).to(home)
    differences, weights, right, right_by_chance = torch.cat(found).double().numpy().T if found else np.zeros((4, 0))
    if len(differences) < FEWEST or not differences.any() or not weights.any() or not np.isfinite(differences).all():
        return None
    return PolicyGap.of(
        differences, weights, accuracy=float(right.mean()), random_accuracy=float(right_by_chance.mean())
    )


def _weight(target: Tensor, class_weights: Sequence[float] | None) -> Tensor:
    """(B,) weight of each image: that of its class, or equal weights for targets with several labels."""
    if class_weights is None or target.ndim > 1:
        return torch.ones(len(target), device=target.device)
    return torch.tensor(class_weights, device=target.device)[target].float()

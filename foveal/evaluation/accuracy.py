"""How often a model is right, at several budgets in one pass over the images.

Example:
    >>> [round(x, 3) for x in wilson(90, 100)]
    [0.826, 0.945]
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.classification import Classification
from foveal.data import Batch
from foveal.draws import Draws
from foveal.errors import DataError
from foveal.evaluation.coverage import chosen_boxes, coverage, diversity
from foveal.glimpse.base import GlimpseClassifier
from foveal.metrics import wilson  # noqa: F401  (for those who import it from here)
from foveal.prediction.device import autocast


class Plan(NamedTuple):
    """One way to use a model: a budget, and how cells are selected."""

    locations: tuple[int, ...]
    policy: str = "greedy"


@dataclass
class Scores:
    """Counts over images.

    Attributes:
        images: images classified.
        correct, correct5: images whose class came first, or among the first five.
        nll: sum of the negative log-likelihoods of the labels, in nats.
        locations: sum of the looks beyond the first.
        coverage: sum of the shares of the images inside the boxes chosen.
        diversity: sum, over images with two looks or more beyond the first, of the mean distance between them.
        several: images with that many.
        budget: the budget that the looks at an image amounted to.
    """

    images: int = 0
    correct: int = 0
    correct5: int = 0
    nll: float = 0.0
    locations: int = 0
    coverage: float = 0.0
    diversity: float = 0.0
    several: int = 0
    budget: tuple[int, ...] = ()

    def add(self, logits: Tensor, target: Tensor) -> None:
        """Count (B, classes) logits against (B,) labels."""
        top = logits.topk(min(5, logits.shape[1]), dim=1).indices == target[:, None]
        self.images += len(target)
        self.correct += int(top[:, 0].sum())
        self.correct5 += int(top.any(1).sum())
        self.nll += float(F.cross_entropy(logits.double(), target, reduction="sum"))

    def add_looks(self, boxes: np.ndarray, sizes: np.ndarray) -> None:
        """Count the (B, N, 4) boxes chosen in images of these sizes (B, 2)."""
        self.locations += int((~np.isnan(boxes[..., 0])).sum())
        self.coverage += float(coverage(boxes, sizes).sum())
        apart = diversity(boxes, sizes)
        self.diversity += float(np.nansum(apart))
        self.several += int((~np.isnan(apart)).sum())


class Judged(NamedTuple):
    """What a pass over the images found.

    Attributes:
        scores: one for each plan.
        errors: (path or name of the image, one sentence) of images that could not be read; they count nowhere.
        size: (height, width) of the image of median area.
        good: indices of the images that could be read.
        logits: for each plan (images that could be read, classes) float32; none unless they were to be kept.
    """

    scores: list[Scores]
    errors: list[tuple[str, str]]
    size: tuple[int, int]
    good: np.ndarray
    logits: list[Tensor]


def judge(
    model: GlimpseClassifier, batches: Iterable[Batch], plans: Sequence[Plan], *, precision: str = "32", seed: int = 0,
    on_step: Callable[[int], None] = lambda looks: None, keep_logits: bool = False,
) -> Judged:  # fmt: skip
    """Classify every batch by every plan.

    Args:
        model: the model, on its device, in evaluation mode.
        batches: images with labels.
        plans: what to try.
        precision: see `autocast`.
        seed: of policies that draw; what they draw depends on the image's index alone.
        on_step: called with the looks that a plan takes, see `looks_of`, after each plan of each batch.
        keep_logits: keep the logits of every image and plan, 4 bytes a class.

    Raises:
        DataError: no image could be read.
    """
    scores = [Scores() for _ in plans]
    errors: list[tuple[str, str]] = []
    sizes: list[np.ndarray] = []
    indices: list[np.ndarray] = []
    kept: list[list[Tensor]] = [[] for _ in plans]
    device = model.mean.device
    for batch in batches:
        errors += batch.errors
        if len(batch):
            batch = batch.to(device)
            draws = Draws(seed, 0, batch.index)
            with torch.inference_mode(), autocast(precision, device):
                seen = []
                for plan in plans:
                    seen.append(model(batch.views, locations=plan.locations, policy=plan.policy, draws=draws, contributions=False))
                    on_step(looks_of(plan))
            bad = batch.views.errors
            errors += [(f"image {batch.index[i]}", reason) for i, reason in bad.items()]
            good = torch.tensor([i for i in range(len(batch)) if i not in bad], dtype=torch.long)
            sizes.append(batch.views.sizes[good.numpy()])
            indices.append(batch.index[good.numpy()])
            for plan, score, mine, result in zip(plans, scores, kept, seen, strict=True):
                logits = result.logits[good.to(device)].cpu()
                score.add(logits, batch.target[good.to(device)].cpu())
                if keep_logits:
                    mine.append(logits.float())
                score.add_looks(chosen_boxes(result.glimpses, len(batch))[good.numpy()], sizes[-1])
                score.budget = budget_taken(result, plan.locations, plan.policy)
        else:
            on_step(sum(map(looks_of, plans)))
    if not scores[0].images:
        raise DataError(f"none of the {len(errors)} images could be read ({errors[0][1] if errors else 'there are none'}); check the data")
    return Judged(scores, errors, median_size(sizes), np.concatenate(indices), [torch.cat(mine) for mine in kept if mine])


def looks_of(plan: Plan) -> int:
    """Looks at an image by a plan, the first included; what a pass takes is nearly in proportion to them."""
    return 1 + int(np.cumprod(plan.locations).sum())


def median_size(sizes: Sequence[np.ndarray]) -> tuple[int, int]:
    """(height, width) of the image of median area, of batches of (n, 2) sizes."""
    every = np.concatenate(sizes)
    height, width = every[np.argsort(every.prod(1), kind="stable")[len(every) // 2]].tolist()
    return height, width


def budget_taken(seen: Classification, budget: Sequence[int], policy: str) -> tuple[int, ...]:
    """The budget that the looks at an image amount to: ``exhaustive`` takes every cell, whatever it is told."""
    if policy != "exhaustive":
        return tuple(budget)
    most = np.bincount(seen.glimpses.image).argmax()  # images that are not square may have fewer cells
    looks = np.bincount(seen.glimpses.level[seen.glimpses.image == most])[1:]
    return tuple((looks[1:] // looks[:-1]).tolist())

"""A trained model that teaches the policy of another one where to look.

A scan reads all of an image, at a level at which small objects are visible, and its scout gives weights to boxes. Over
the cells of a grid these are a distribution. A policy that sees only a thumbnail learns to imitate it, as far as the
thumbnail holds the evidence, see `foveal.objectives.tnet.imitation_loss`. The teacher is needed for training only, so
the cost of a prediction does not grow with the image.

Example:
    >>> boxes, cells = np.array([[[0, 0, 4, 4]]]), np.array([[[[0, 0, 8, 3], [0, 3, 8, 8]]]])
    >>> pooled(boxes, torch.ones(1, 1), cells, torch.zeros(1, 1, 2)).tolist()
    [[[0.75, 0.25]]]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from foveal.data import DataModule
from foveal.errors import ConfigError, RunError
from foveal.glimpse.base import GlimpseClassifier, whole_image
from foveal.host import to_device
from foveal.images import Views
from foveal.objectives.rollout import MASKED, Rollout
from foveal.runs import load


class Teacher:
    """A trained model in eval mode, without gradient.

    Args:
        path: its run folder.
        student: the model whose policy is taught.
        data: the data on which it is taught.

    Raises:
        ConfigError: the model at ``path`` gives no weights to boxes, or was trained on images of other classes, bands,
            values or sizes; or the student is not ``teachable``.
        RunError: there is no trained model at ``path``.
    """

    def __init__(self, path: str | Path, student: GlimpseClassifier, data: DataModule) -> None:
        try:
            self.model = load(path)
        except RunError as error:
            raise RunError(f"objective.teacher {error}") from error
        if fault := _misfit(self.model, student, data):
            raise ConfigError(f"objective.teacher {path}: {fault}")

    def teach(self, views: Views, rollouts: Sequence[Rollout]) -> list[Rollout]:
        """Rollouts of the images, with ``taught``."""
        device = rollouts[0].logits.device
        with torch.no_grad():
            boxes, weights = self.model.to(device).weighted_looks(views)
        images = whole_image(views.sizes)[:, None]
        boxes = np.concatenate(
            [np.maximum(boxes[..., :2], images[..., :2]), np.minimum(boxes[..., 2:], images[..., 2:])], axis=-1
        )
        return [
            replace(
                rollout,
                taught=[
                    pooled(boxes, weights, cells, log_p)
                    for cells, log_p in zip(rollout.grids, rollout.scores, strict=True)
                ],
            )
            for rollout in rollouts
        ]


def pooled(boxes: np.ndarray, weights: Tensor, cells: np.ndarray, log_p: Tensor) -> Tensor:
    """Weights of boxes, summed over the cells of grids.

    A box gives its weight to the cells that it overlaps, in proportion to the areas of overlap. Of a box that is partly
    outside of a grid, only that share of the weight counts.

    Args:
        boxes: (B, N, 4).
        weights: (B, N).
        cells: (B, n, K, 4) boxes of the cells of n grids.
        log_p: (B, n, K) log-probabilities of the cells; masked cells get no weight.

    Returns:
        (B, n, K) weights.
    """
    grids = np.concatenate([cells[..., :2].min(2), cells[..., 2:].max(2)], axis=-1)
    area = (boxes[..., 2:] - boxes[..., :2]).prod(-1)
    inside = to_device(_overlaps(boxes, grids) / area[:, None], weights.device, weights.dtype)
    overlaps = to_device(_overlaps(boxes, cells.reshape(len(cells), -1, 4)), weights.device, weights.dtype)
    overlaps = overlaps.unflatten(1, log_p.shape[1:]) * (log_p > MASKED)[..., None]
    shares = overlaps / overlaps.sum(2, keepdim=True).clamp(min=1e-6)
    return (shares * (inside * weights[:, None])[:, :, None]).sum(-1)


def _overlaps(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(B, M, N) areas that boxes (B, N, 4) share with others (B, M, 4)."""
    first = np.maximum(boxes[:, None, :, :2], others[:, :, None, :2])
    last = np.minimum(boxes[:, None, :, 2:], others[:, :, None, 2:])
    return np.clip(last - first, 0, None).prod(-1)


def _misfit(teacher: GlimpseClassifier, student: GlimpseClassifier, data: DataModule) -> str | None:
    """Why the model at a path cannot teach; None if it can."""
    train = data.split("train")
    if type(teacher).weighted_looks is GlimpseClassifier.weighted_looks:
        return f"{teacher.label} gives no weights to boxes; give a run of a model that does, such as scan"
    if not student.teachable:
        return f"{student.label} has no grids of boxes to be taught; leave it out, or train a model such as tnet"
    if set(teacher.class_names) != set(data.classes):
        return f"its classes are not those of {data.name}; give a run that was trained on the same classes"
    if teacher.channels != train.channels:
        return f"takes images of {teacher.channels} bands, and those of {data.name} have {train.channels}; give another"
    for key in ("value_range", "image_size", "shorter_side"):
        own, here = getattr(teacher, key), getattr(getattr(train, "reading", None), key, None)
        if (own and tuple(np.ravel(own))) != (here and tuple(np.ravel(here))):
            return f"was trained with {key} {own}, and {data.name} has {here}; set `data.{key}` to the same"
    return None

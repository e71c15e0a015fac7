"""A rollout: one classification of a batch with all values that objectives need.

Example:
    >>> import numpy as np, torch
    >>> rollout = Rollout(logits=torch.zeros(2, 3), glimpse_logits=torch.zeros(2, 1, 3), level=np.array([1]))
    >>> rollout.glimpses_per_image, rollout.log_probability.shape
    (1, torch.Size([2, 0]))
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from foveal.policies import GREEDY, Policy, find_policy

MASKED = -1e8
"""Log-probabilities below this value mark cells that cannot be chosen."""


@dataclass
class Rollout:
    """One rollout of B images with N glimpses each, level by level, in the order they were chosen.

    Attributes:
        logits: (B, classes) of the whole rollout.
        glimpse_logits: (B, N, classes) of each glimpse alone.
        level: (N,) int, processing level of each glimpse; 1 is the thumbnail.
        log_probability: (B, M) log-probability, or log-density, of each of the M chosen glimpses under the learned
            policy, given the earlier choices. It has the gradient of the policy. The thumbnail is not chosen.
        scores: for each level with a grid, (B, n, K) log-probabilities of the K cells of the n grids, or of the n
            choices from one grid; below `MASKED` for masked cells.
        grids: for each level with a grid, boxes (B, n, K, 4) of the cells; empty for models whose cells are not boxes
            that are cut from the image.
        taught: for each entry of ``grids``, weights (B, n, K) of the cells by a teacher, which the policy imitates, see
            `foveal.training.teacher`; empty without one. Their sum is the teacher's weight in the grid, up to 1.
        parent: (N,) int, index of the glimpse that each glimpse was chosen from; -1 for the thumbnail.
        cells: (B, M) int, chosen cell in the grid of the parent.
        fused: (B, D) input of the classifier, or None.
        additive: ``logits`` is the mean of ``glimpse_logits`` over glimpses, apart from dropout.
        values: (B, M) reward predicted by the model before each choice, or None.
        policy: policy that chose the cells, or its name.
    """

    logits: Tensor
    glimpse_logits: Tensor
    level: np.ndarray
    log_probability: Tensor = None  # type: ignore[assignment]
    scores: list[Tensor] = field(default_factory=list)
    grids: list[np.ndarray] = field(default_factory=list)
    taught: list[Tensor] = field(default_factory=list)
    parent: np.ndarray | None = None
    cells: Tensor | None = None
    fused: Tensor | None = None
    additive: bool = True
    values: Tensor | None = None
    policy: Policy = GREEDY

    def __post_init__(self) -> None:
        self.policy = find_policy(self.policy)
        if self.log_probability is None:
            self.log_probability = self.logits.new_zeros((len(self.logits), 0))

    @property
    def glimpses_per_image(self) -> int:
        return self.glimpse_logits.shape[1]

    @property
    def entropy(self) -> Tensor | None:
        """(B,) entropy of the policy in nats, averaged over grids, detached; None without a grid."""
        if not self.scores:
            return None
        rows = [-(s.exp() * s).sum(-1) for s in self.scores]
        return torch.cat(rows, dim=1).mean(1).detach()

"""What an objective sees: one try at classifying a batch, with everything needed to judge it.

Example:
    >>> import numpy as np, torch
    >>> tried = Rollout(logits=torch.zeros(2, 3), glimpse_logits=torch.zeros(2, 1, 3), level=np.array([1]))
    >>> tried.glimpses_per_image, tried.log_probability.shape
    (1, torch.Size([2, 0]))
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from foveal.policies import GREEDY, Policy, find_policy

MASKED = -1e8
"""Log-probabilities below this are those of cells that cannot be chosen."""


@dataclass
class Rollout:
    """One rollout of B images, N glimpses each, level by level, in the order they were chosen.

    Attributes:
        logits: (B, classes) of the whole rollout.
        glimpse_logits: (B, N, classes) of each glimpse alone; where the head is additive and glimpses are averaged,
            their mean is ``logits`` (see ``additive``).
        level: (N,) int, processing level of each glimpse; 1 is the thumbnail.
        log_probability: (B, M) log probability (or density) with which each of the M chosen glimpses was chosen, given
            the choices before it; carries the policy's gradient. A thumbnail is not chosen.
        scores: for each level with a grid, (B, n, K) log-probabilities of all K cells of the n grids, or of the n
            choices from one grid; below `MASKED` where a cell is masked.
        parent: (N,) int, glimpse each was chosen from; -1 for the thumbnail.
        cells: (B, M) int, cell chosen in the parent's grid.
        fused: (B, D) the vector that was classified, or None.
        additive: ``logits`` is the mean of ``glimpse_logits`` over glimpses, up to what dropout adds.
        values: (B, M) reward that the model itself expects before each choice, or None.
        policy: how the cells were chosen, a policy or its name; ``log_probability`` is the learned policy's all the
            same.
    """

    logits: Tensor
    glimpse_logits: Tensor
    level: np.ndarray
    log_probability: Tensor = None  # type: ignore[assignment]
    scores: list[Tensor] = field(default_factory=list)
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
        """(B,) entropy of the policy in nats, averaged over grids; None without a grid. Detached."""
        if not self.scores:
            return None
        rows = [-(s.exp() * s).sum(-1) for s in self.scores]
        return torch.cat(rows, dim=1).mean(1).detach()

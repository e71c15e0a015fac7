"""Selection: which k cells of a grid to look at, and how probable that choice was.

A policy orders the cells; the first k are chosen. ``greedy`` takes the most probable, ``sampled`` draws without
replacement (Gumbel top-k: Kool et al. 2019, arXiv 1903.06059), ``random`` is uniform without replacement, ``centre``
takes the cells nearest the middle and ``exhaustive`` takes them all, whatever the budget says.

Example:
    >>> import torch
    >>> log_p = torch.tensor([[0.1, 0.7, 0.2]]).log()
    >>> cells = choose("greedy", log_p, 2)
    >>> cells.tolist(), [round(p, 3) for p in plackett_luce(log_p, cells).exp()[0].tolist()]
    ([[1, 2]], [0.7, 0.667])
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from foveal.choices import POLICIES

NEVER = -1e9
"""Score of a masked cell: finite, so that a grid with every cell masked still has gradients that are numbers."""


def choose(policy: str, log_p: Tensor, k: int, noise: Tensor | None = None) -> Tensor:
    """Choose k cells of each grid.

    Args:
        policy: one of `POLICIES`.
        log_p: (..., K) log-probabilities, from scores that are `NEVER` for cells that may not be chosen (they come last all
            the same, should there be fewer than k others).
        k: cells to choose, at most K; ``exhaustive`` is meant for all K.
        noise: (..., K) standard Gumbel noise, for ``sampled`` and ``random``.

    Returns:
        (..., k) int64, in the order they were chosen. Between equals the lower index comes first.
    """
    log_p = log_p.detach()
    if noise is None:
        if policy in ("sampled", "random"):
            raise ValueError(f"the {policy} policy needs noise")
        noise = torch.zeros(())
    if policy == "greedy":
        order = log_p
    elif policy == "sampled":
        order = log_p + noise
    elif policy == "random":
        order = log_p.where(log_p < NEVER / 2, 0) + noise
    elif policy == "centre":
        side = math.isqrt(log_p.shape[-1])
        axis = torch.arange(side, device=log_p.device) - (side - 1) / 2
        order = log_p.where(log_p < NEVER / 2, 0) - (axis[:, None] ** 2 + axis**2).flatten()
    elif policy == "exhaustive":
        order = log_p.where(log_p < NEVER / 2, 0)
    else:
        raise ValueError(f"no policy is called {policy!r}; there are {', '.join(POLICIES)}")
    return order.sort(dim=-1, descending=True, stable=True).indices[..., :k]


def plackett_luce(log_p: Tensor, cells: Tensor) -> Tensor:
    """Log-probability of each choice given the choices before it, drawing without replacement (Plackett-Luce).

    Args:
        log_p: (..., K) log-probabilities (or scores up to a constant).
        cells: (..., k) int64, in the order chosen.

    Returns:
        (..., k); their sum is the log-probability of the ordered choice. 0 for masked cells.
    """
    chosen = log_p.gather(-1, cells)
    left = log_p
    steps = []
    for j in range(cells.shape[-1]):
        masked = chosen[..., j] < NEVER / 2
        steps.append(torch.where(masked, 0, chosen[..., j] - left.logsumexp(-1)))
        left = left.scatter(-1, cells[..., j : j + 1], 2 * NEVER)
    return torch.stack(steps, -1) if steps else chosen


def independent(log_p: Tensor, cells: Tensor) -> Tensor:
    """Log-probability of each choice as if it were drawn alone: log(p + 1e-10), as TNet's released code has it."""
    return (log_p.gather(-1, cells).exp() + 1e-10).log()


def uniform(log_p: Tensor, cells: Tensor) -> Tensor:
    """Log-probability of each choice when unmasked cells are drawn uniformly, without replacement."""
    return plackett_luce(log_p.where(log_p < NEVER / 2, 0), cells)


def certain(log_p: Tensor, cells: Tensor) -> Tensor:
    """Log-probability of a choice that is always the same: 0."""
    return log_p.new_zeros(cells.shape)


CHOICE_LIKELIHOOD = {"random": uniform, "centre": certain, "exhaustive": certain}
"""Likelihood of the choices of policies that do not follow the learned distribution."""

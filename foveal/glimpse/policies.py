"""Selection: which k cells of a grid to look at, and how probable that choice was.

A policy orders the cells; the first k are chosen. ``greedy`` takes the most probable, ``sampled`` draws without
replacement (Gumbel top-k: Kool et al. 2019, arXiv 1903.06059), ``random`` is uniform without replacement and ``centre``
takes the cells nearest the middle.

Example:
    >>> import torch
    >>> log_p = torch.tensor([[0.1, 0.7, 0.2]]).log()
    >>> cells = choose("greedy", log_p, 2)
    >>> cells.tolist(), plackett_luce(log_p, cells).exp().round(decimals=3).tolist()
    ([[1, 2]], [[0.7, 0.667]])
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

POLICIES = ("greedy", "sampled", "random", "centre")


def choose(policy: str, log_p: Tensor, k: int, noise: Tensor | None = None) -> Tensor:
    """Choose k cells of each grid.

    Args:
        policy: one of `POLICIES`.
        log_p: (..., K) log-probabilities; -inf for cells that may not be chosen (they come last all the same, should
            there be fewer than k others).
        k: cells to choose, at most K.
        noise: (..., K) standard Gumbel noise, for ``sampled`` and ``random``.

    Returns:
        (..., k) int64, in the order they were chosen. Between equals the lower index comes first.
    """
    log_p = log_p.detach()
    if policy in ("sampled", "random") and noise is None:
        raise ValueError(f"the {policy} policy needs noise")
    if policy == "greedy":
        order = log_p
    elif policy == "sampled":
        order = log_p + noise
    elif policy == "random":
        order = noise.masked_fill(log_p.isinf(), -math.inf)  # type: ignore[union-attr]
    elif policy == "centre":
        side = math.isqrt(log_p.shape[-1])
        axis = torch.arange(side, device=log_p.device) - (side - 1) / 2
        order = (-(axis[:, None] ** 2 + axis**2)).flatten().to(log_p.dtype).expand_as(log_p).masked_fill(log_p.isinf(), -math.inf)
    else:
        raise ValueError(f"no policy is called {policy!r}; there are {', '.join(POLICIES)}")
    return order.sort(dim=-1, descending=True, stable=True).indices[..., :k]


def plackett_luce(log_p: Tensor, cells: Tensor) -> Tensor:
    """Log-probability of each choice given the choices before it, drawing without replacement (Plackett-Luce).

    Args:
        log_p: (..., K) log-probabilities (or scores up to a constant).
        cells: (..., k) int64, in the order chosen.

    Returns:
        (..., k); their sum is the log-probability of the ordered choice. 0 for cells that had probability 0.
    """
    chosen = log_p.gather(-1, cells)
    left = torch.ones_like(log_p, dtype=torch.bool)
    steps = []
    for j in range(cells.shape[-1]):
        rest = log_p.masked_fill(~left, -math.inf).logsumexp(-1)
        possible = ~chosen[..., j].isinf()
        steps.append(torch.where(possible, chosen[..., j].masked_fill(~possible, 0) - rest.masked_fill(~possible, 0), 0))
        left = left.scatter(-1, cells[..., j : j + 1], False)
    return torch.stack(steps, -1) if steps else chosen


def independent(log_p: Tensor, cells: Tensor) -> Tensor:
    """Log-probability of each choice as if it were drawn alone: log(p + 1e-10), as TNet's released code has it."""
    return (log_p.gather(-1, cells).exp() + 1e-10).log()

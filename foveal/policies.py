"""Policies: how a model selects where to look.

A `CellPolicy` orders the cells of a grid, of which the first k are selected. A `PlacePolicy` returns a point of the
image. ``greedy`` selects the most probable locations. ``sampled`` draws from the learned distribution (cells without
replacement, by Gumbel top-k: Kool et al. 2019, arXiv 1903.06059). ``random`` is uniform, ``centre`` selects the
locations nearest the centre, and ``exhaustive`` all cells.

Arguments take a policy or its name; `find_policy` returns the policy. To add one, derive a class with a name and
register it:

Example:
    >>> import torch
    >>> log_p = torch.tensor([[0.1, 0.7, 0.2]]).log()
    >>> cells = find_policy("greedy").choose(log_p, 2)
    >>> cells.tolist(), [round(p, 3) for p in plackett_luce(log_p, cells).exp()[0].tolist()]
    ([[1, 2]], [0.7, 0.667])
    >>> class Last(CellPolicy):
    ...     name, likelihood = "last", certain
    ...
    ...     def order(self, log_p, noise):
    ...         return torch.arange(log_p.shape[-1]).expand_as(log_p)
    >>> Last().choose(log_p, 2).tolist()
    [[2, 1]]
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from foveal.registry import Registry

NEVER = -1e9
"""Score of a masked cell: finite, so that gradients are finite even if all cells of a grid are masked."""

Likelihood = Callable[[Tensor, Tensor], Tensor]
"""(..., K) log-probabilities of cells and (..., k) chosen ones to the (..., k) log-probability of each choice."""


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
    """Log-probability of each choice by itself, without the others: log(p + 1e-10), as in TNet's released code."""
    return (log_p.gather(-1, cells).exp() + 1e-10).log()


def uniform(log_p: Tensor, cells: Tensor) -> Tensor:
    """Log-probability of each choice when unmasked cells are drawn uniformly, without replacement."""
    return plackett_luce(equal(log_p), cells)


def certain(log_p: Tensor, cells: Tensor) -> Tensor:
    """Log-probability of a deterministic choice: 0."""
    return log_p.new_zeros(cells.shape)


def equal(log_p: Tensor) -> Tensor:
    """Scores 0 instead of ``log_p``, except for masked cells."""
    return log_p.where(log_p < NEVER / 2, 0)


@dataclass(frozen=True)
class Policy:
    """A way to select where to look.

    Attributes:
        name: its name in options.
        draws: whether it needs random numbers.
        learned: whether it and the likelihood of its choices follow the learned distribution.
        likelihood: log-probability of its choices, see `Likelihood`; None if the model computes it.
        every_cell: whether it selects all cells of a grid, for any number of locations.
        one_pass: whether it selects nothing, and the model sees the whole image at the resolution of the looks; for
            training only.
        teaches: whether the learned policy is trained to make its choices.
    """

    name: ClassVar[str]
    draws: ClassVar[bool] = False
    learned: ClassVar[bool] = False
    likelihood: ClassVar[Any] = None
    every_cell: ClassVar[bool] = False
    one_pass: ClassVar[bool] = False
    teaches: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        if callable(cls.__dict__.get("likelihood")):
            cls.likelihood = staticmethod(cls.likelihood)

    def __str__(self) -> str:
        return self.name

    @property
    def sampled(self) -> bool:
        """Whether it draws from the learned distribution, as a policy gradient requires."""
        return self.learned and self.draws


class CellPolicy(Policy):
    """A policy that selects cells of grids."""

    def order(self, log_p: Tensor, noise: Tensor) -> Tensor:
        """(..., K) scores by which cells are ordered, the highest first.

        Args:
            log_p: (..., K) log-probabilities of the cells; below ``NEVER / 2`` for masked cells.
            noise: (..., K) standard Gumbel noise if the policy ``draws``, else 0.
        """
        raise NotImplementedError

    def choose(self, log_p: Tensor, k: int, noise: Tensor | None = None) -> Tensor:
        """Select k cells of each grid.

        Args:
            log_p: (..., K) log-probabilities, from scores that are `NEVER` for masked cells. Masked cells come last;
                they are selected if there are fewer than k others.
            k: number of cells, at most K.
            noise: (..., K) standard Gumbel noise, for a policy that ``draws``.

        Returns:
            (..., k) int64, in descending order of the scores. Of equal scores the lower index comes first.
        """
        if noise is None and self.draws:
            raise ValueError(f"the {self.name} policy needs noise")
        log_p = log_p.detach()
        order = self.order(log_p, log_p.new_zeros(()) if noise is None else noise)
        return order.sort(dim=-1, descending=True, stable=True).indices[..., :k]


class PlacePolicy(Policy):
    """A policy that selects points of an image, y and x from -1 to 1."""

    def place(self, mean: Tensor, uniform: Tensor, sd: float, limit: float) -> Tensor:
        """(R, 2) places. No gradient passes.

        Args:
            mean: (R, 2) means of the learned Gaussian.
            uniform: (R, 2) uniform random numbers from 0 to 1, if the policy ``draws``.
            sd: standard deviation of the Gaussian.
            limit: largest coordinate.
        """
        raise NotImplementedError


POLICIES: Registry[type[Policy]] = Registry("policy")
"""Policies by name."""


@POLICIES.register
class Greedy(CellPolicy, PlacePolicy):
    """The most probable cells, or the mean."""

    name, learned = "greedy", True

    def order(self, log_p: Tensor, noise: Tensor) -> Tensor:
        return log_p

    def place(self, mean: Tensor, uniform: Tensor, sd: float, limit: float) -> Tensor:
        return mean.detach()


@POLICIES.register
class Sampled(CellPolicy, PlacePolicy):
    """A draw from the learned distribution; places are kept within the limit."""

    name, learned, draws = "sampled", True, True

    def order(self, log_p: Tensor, noise: Tensor) -> Tensor:
        return log_p + noise

    def place(self, mean: Tensor, uniform: Tensor, sd: float, limit: float) -> Tensor:
        return (mean.detach() + sd * torch.special.ndtri(uniform)).clamp(-limit, limit)


@POLICIES.register
class Random(CellPolicy, PlacePolicy):
    """Uniformly random cells, without replacement, or places."""

    name, draws, likelihood = "random", True, uniform

    def order(self, log_p: Tensor, noise: Tensor) -> Tensor:
        return equal(log_p) + noise

    def place(self, mean: Tensor, uniform: Tensor, sd: float, limit: float) -> Tensor:
        return limit * (2 * uniform - 1)


@POLICIES.register
class Centre(CellPolicy, PlacePolicy):
    """The cells nearest the centre of the grid, or the centre of the image."""

    name, likelihood = "centre", certain

    def order(self, log_p: Tensor, noise: Tensor) -> Tensor:
        side = math.isqrt(log_p.shape[-1])
        axis = torch.arange(side, device=log_p.device) - (side - 1) / 2
        return equal(log_p) - (axis[:, None] ** 2 + axis**2).flatten()

    def place(self, mean: Tensor, uniform: Tensor, sd: float, limit: float) -> Tensor:
        return torch.zeros_like(mean)


@POLICIES.register
class Exhaustive(CellPolicy):
    """All cells, in the order of the grid."""

    name, likelihood, every_cell = "exhaustive", certain, True

    def order(self, log_p: Tensor, noise: Tensor) -> Tensor:
        return equal(log_p)


@POLICIES.register
class Whole(Policy):
    """The whole image in one pass, at the resolution of the looks; see `foveal.objectives.TNetObjective`."""

    name, one_pass = "whole", True


GREEDY = Greedy()


def find_policy(policy: str | Policy) -> Policy:
    """The policy with a name. A policy is returned unchanged.

    Raises:
        UnknownName: there is no such policy.
    """
    return policy if isinstance(policy, Policy) else POLICIES.get(policy)()

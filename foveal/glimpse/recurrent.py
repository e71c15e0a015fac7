"""Common parts of recurrent attention models, which choose each place from a memory of the previous looks.

A network predicts the mean of a Gaussian over the next place, a point of the image plane. In training the place is
sampled from the Gaussian; in evaluation it is the mean. After the last look the model classifies from its memory.

Example:
    >>> import torch
    >>> from foveal.policies import find_policy
    >>> policy = GaussianPolicy(features=4, limit=0.5, sd=0.1)
    >>> mean = policy(torch.randn(3, 4))
    >>> where = policy.choose(find_policy("sampled"), mean, torch.rand(3, 2))
    >>> bool((where.abs() <= 0.5).all()), policy.log_density(where, mean).shape
    (True, torch.Size([3]))
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from foveal.classification import Classification, Glimpses
from foveal.draws import Draws
from foveal.errors import ConfigError
from foveal.glimpse.base import GlimpseClassifier, on_host
from foveal.host import to_device
from foveal.images.views import Views
from foveal.objectives.recurrent import RecurrentObjective
from foveal.objectives.rollout import Rollout
from foveal.policies import PlacePolicy, Policy

AGGREGATES = ("last", "mean")
Aggregate = Annotated[str, AGGREGATES]


class LSTMCell(nn.Module):
    """One step of an LSTM with one bias vector, as in TensorFlow. The bias of the forget gate is initialised to 1.

    One linear layer computes the input, forget, cell and output gates, in this order, so that flop counters count it.

    Args:
        features: length of the input.
        hidden: length of the state.
    """

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.gates = nn.Linear(features + hidden, 4 * hidden)
        nn.init.xavier_uniform_(self.gates.weight)
        nn.init.zeros_(self.gates.bias)
        nn.init.ones_(self.gates.bias[hidden : 2 * hidden])

    def zeros(self, rows: int) -> tuple[Tensor, Tensor]:
        """The initial state: zeros."""
        return (self.gates.weight.new_zeros(rows, self.hidden),) * 2

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """(R, features) input and the state to the next state: (R, hidden) output and (R, hidden) cell."""
        output, cell = state
        input_gate, forget_gate, candidate, output_gate = self.gates(torch.cat([x, output.to(x.dtype)], 1)).chunk(4, 1)
        cell = forget_gate.sigmoid() * cell + input_gate.sigmoid() * candidate.tanh()
        return output_gate.sigmoid() * cell.tanh(), cell


class GaussianPolicy(nn.Module):
    """A Gaussian over the next place with a learned mean and a fixed standard deviation, equal in both coordinates.

    Args:
        features: length of the input from which the mean is predicted.
        limit: maximum absolute value of a coordinate; the border of the image is at 1.
        sd: standard deviation.
    """

    def __init__(self, features: int, limit: float, sd: float) -> None:
        super().__init__()
        self.limit, self.sd = limit, sd
        self.emit = nn.Linear(features, 2)

    def forward(self, x: Tensor) -> Tensor:
        """(R, features) to the (R, 2) mean, y and x, within the limit."""
        emitted = self.emit(x)
        return self.limit * emitted.to(torch.promote_types(emitted.dtype, torch.float32)).tanh()

    def choose(self, policy: PlacePolicy, mean: Tensor, uniform: Tensor) -> Tensor:
        """(R, 2) places chosen by a policy, see `foveal.policies.PlacePolicy.place`."""
        return policy.place(mean, uniform, self.sd, self.limit)

    def log_density(self, where: Tensor, mean: Tensor) -> Tensor:
        """(R,) log-density of places (R, 2), ignoring that samples are clipped to the limit. Gradients flow to the
        mean."""
        z = (where - mean) / self.sd
        return -(z.square() / 2 + math.log(self.sd * math.sqrt(2 * math.pi))).sum(1)


@dataclass
class Trace:
    """T steps after the first look. The R rows are the images of the first rollout, then those of the second, and so
    on.

    Attributes:
        features: (R, 1 + T, D) input of the classifier after each look.
        where: (R, T, 2) places, y and x.
        log_density: (R, T) log-density of each place under the learned policy.
        values: (R, T) predicted reward before each place, or None.
    """

    features: Tensor
    where: Tensor
    log_density: Tensor
    values: Tensor | None = None


class RecurrentAttention(GlimpseClassifier):
    """Base class of models that look once and then at one place after another, chosen by a `GaussianPolicy`.

    A place has a density instead of a probability, so the probability of every glimpse is reported as 1.

    Args:
        aggregate: ``last`` predicts from the last look; ``mean`` averages the predictions after each chosen look.
        locations: default number of looks after the first, as a sequence of one number.
        options: see `GlimpseClassifier`.

    Attributes:
        classifier: linear layer on `Trace.features`.
        where: the policy.

    Raises:
        ConfigError: ``aggregate`` is unknown, or ``locations`` has several levels.
    """

    policy_kinds = (PlacePolicy,)
    not_exported = "foveal.runtime has no loop with the memory of recurrent models; use the run folder"
    objective: type[Any] = RecurrentObjective
    classifier: nn.Linear
    where: GaussianPolicy

    def __init__(self, *base: Any, aggregate: Aggregate = "last", locations: Sequence[int], **options: Any) -> None:
        super().__init__(*base, **options)
        if aggregate not in AGGREGATES:
            raise ConfigError(f"`aggregate` {aggregate}: is not known; use {' or '.join(AGGREGATES)}")
        self.aggregate = aggregate
        self.locations = self.resolve_locations(locations)

    @abstractmethod
    def trace(self, views: Views, steps: int, policies: Sequence[Policy], draws: Draws) -> Trace:
        """Look at a batch once per policy, with ``steps`` looks after the first."""

    @abstractmethod
    def boxes(self, sizes: np.ndarray, where: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Boxes of the looks.

        Args:
            sizes: (B, 2) (height, width) of the images.
            where: (B, T, 2) places.

        Returns:
            (B, 4) of the first look, and (B, T, 4) of the looks after it.
        """

    def glimpse_sizes(self, steps: int) -> np.ndarray:
        """(1 + steps, 2) input size of each look."""
        return np.tile(np.array(self.size), (1 + steps, 1))

    def decide(
        self, policy_features: Tensor, policies: Sequence[Policy], draws: Draws, step: int
    ) -> tuple[Tensor, Tensor]:
        """Choose the next place in all rollouts: places (R, 2) and their log-densities (R,)."""
        mean = self.where(policy_features)
        drawn = [np.zeros((len(draws.samples), 2))] * len(policies)
        for i, policy in enumerate(policies):
            if policy.draws:
                drawn[i] = draws.uniform(f"location {step} {i}", 2)
        uniform = [to_device(u, mean.device, mean.dtype) for u in drawn]
        places = [
            self.where.choose(*of) for of in zip(cast(Any, policies), mean.chunk(len(policies)), uniform, strict=True)
        ]
        place = torch.cat(places)
        return place, self.where.log_density(place, mean)

    def classify(
        self, views: Views, locations: tuple[int, ...], policy: Policy, draws: Draws, contributions: bool
    ) -> Classification:
        steps = sum(locations)
        seen = self.trace(views, steps, [policy], draws)
        chosen = self.classifier(seen.features[:, 1:] if steps and self.aggregate == "mean" else seen.features[:, -1:])
        contribution = None
        if contributions and self.aggregate == "mean":
            contribution = (
                chosen if not steps else torch.cat([torch.zeros_like(chosen[:, :1]), chosen / steps], 1)
            ).flatten(0, 1)
        first, boxes = self.boxes(views.sizes, on_host(seen.where))
        count, level, parent = 1 + steps, np.array([1] + [2] * steps), np.array([-1] + [0] * steps)
        glimpses = Glimpses(
            image=np.repeat(np.arange(len(views)), count),
            box=np.concatenate([first[:, None], boxes], axis=1).reshape(-1, 4),
            size=np.tile(self.glimpse_sizes(steps), (len(views), 1)),
            level=np.tile(level, len(views)),
            parent=np.tile(parent, len(views)),
            probability=torch.ones(len(views) * count),
            contribution=contribution,
        )
        return Classification(chosen.mean(1), glimpses, self.class_names, bytes_read=views.bytes_read, task=self.task)

    def roll_out(self, views: Views, locations: tuple[int, ...], policies: list[Policy], draws: Draws) -> list[Rollout]:
        count, steps = len(policies), sum(locations)
        seen = self.trace(views, steps, policies, draws)
        alone = self.classifier(seen.features)
        logits = alone[:, 1:].mean(1) if steps and self.aggregate == "mean" else alone[:, -1]
        values = [None] * count if seen.values is None else seen.values.chunk(count)
        parts = zip(
            policies, logits.chunk(count), alone.chunk(count), seen.log_density.chunk(count), values, strict=True
        )
        return [
            Rollout(
                logits=whole,
                glimpse_logits=each,
                level=np.array([1] + [2] * steps),
                parent=np.array([-1] + [0] * steps),
                log_probability=log_density,
                values=value,
                additive=False,
                policy=policy,
            )
            for policy, whole, each, log_density, value in parts
        ]

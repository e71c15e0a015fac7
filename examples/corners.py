"""A custom policy, objective and model, for ``--import examples/corners.py``.

Example:
    >>> model = CornerNet(num_classes=3).eval()
    >>> looked = model(torch.rand(1, 3, 64, 64), policy="corners", locations=(4,))
    >>> [glimpse.box[:2] for glimpse in looked.glimpses][1:]
    [(0.0, 0.0), (0.0, 32.0), (32.0, 0.0), (32.0, 32.0)]
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.classification import Classification, Glimpses
from foveal.draws import Draws
from foveal.glimpse.base import GlimpseClassifier
from foveal.glimpse.grid import Grid
from foveal.images.views import Views
from foveal.objectives import OBJECTIVES, Rollout
from foveal.policies import POLICIES, CellPolicy, Policy, certain, equal, plackett_luce
from foveal.registry import MODELS


@POLICIES.register
class Corners(CellPolicy):
    """Cells in order of descending distance from the centre."""

    name, likelihood = "corners", certain

    def order(self, log_p: Tensor, noise: Tensor) -> Tensor:
        axis = torch.linspace(-1, 1, math.isqrt(log_p.shape[-1]), device=log_p.device)
        return equal(log_p) + (axis[:, None] ** 2 + axis**2).flatten()


@OBJECTIVES.register("margin")
@dataclass(frozen=True)
class Margin:
    """Multi-class margin loss, and REINFORCE with reward 1 for a right prediction.

    Args:
        margin: minimum difference between the logit of the right class and each other logit.
        policy_weight: weight of the policy gradient.
    """

    trains: tuple[str, ...] | None = None
    margin: float = 1.0
    policy_weight: float = 0.1

    def plan(self, progress: float) -> tuple[str, ...]:
        return ("sampled",)

    def initial_state(self) -> Tensor:
        return torch.zeros(0)

    def __call__(self, rollouts: list[Rollout], target: Tensor, state: Tensor):
        (rollout,) = rollouts
        reward = (rollout.logits.argmax(-1) == target).float()
        loss = F.multi_margin_loss(rollout.logits, target, margin=self.margin)
        loss = loss - self.policy_weight * ((reward - reward.mean()) * rollout.log_probability.sum(1)).mean()
        return loss, state, {"loss": loss.detach(), "reward": reward.mean()}


@MODELS.register("corner_net")
class CornerNet(GlimpseClassifier):
    """A thumbnail and some of its cells, processed by one convolution. Their logits are averaged."""

    objective = Margin

    def __init__(self, num_classes: int = 10, base_size: int = 16, grid: int = 3, locations: tuple[int, ...] = (2,)):
        super().__init__(num_classes, (base_size, base_size), (0.5,) * 3, (0.5,) * 3)
        self.grid = Grid(grid, 0.5)
        self.locations = self.resolve_locations(locations)
        self.features = nn.Sequential(nn.Conv2d(3, 16, 5, 2), nn.ReLU(), nn.AdaptiveMaxPool2d(2), nn.Flatten())
        self.where, self.classifier = nn.Linear(64, grid**2), nn.Linear(64, num_classes)

    @property
    def most_cells(self) -> int:
        return self.grid.cells

    def traverse(self, views: Views, k: int, policy: Policy, draws: Draws, rollout: int = 0):
        """(B, 1 + k, classes) logits, (B, 1 + k, 4) boxes, (B, cells) log-probabilities and (B, k) chosen cells."""
        first, which = self.root(views.sizes), np.arange(len(views))
        thumbnail = self.features(self.see(views, which, first))
        log_p = self.where(thumbnail).log_softmax(-1)
        noise = torch.from_numpy(draws.gumbel(f"cells {rollout}", self.grid.cells)).to(log_p) if policy.draws else None
        cells = policy.choose(log_p, k, noise)  # type: ignore[attr-defined]
        boxes = np.take_along_axis(self.grid.boxes(first), cells.cpu().numpy()[..., None], axis=1)
        looks = self.features(self.see(views, np.repeat(which, k), boxes.reshape(-1, 4))).unflatten(0, (len(views), k))
        logits = self.classifier(torch.cat([thumbnail[:, None], looks], 1))
        return logits, np.concatenate([first[:, None], boxes], axis=1), log_p, cells

    def classify(self, views: Views, locations: tuple[int, ...], policy: Policy, draws: Draws, contributions: bool):
        k, images = sum(locations), len(views)
        logits, boxes, log_p, cells = self.traverse(views, k, policy, draws)
        probability = (policy.likelihood or plackett_luce)(log_p, cells).exp()
        glimpses = Glimpses(
            image=np.repeat(np.arange(images), 1 + k),
            box=boxes.reshape(-1, 4),
            size=np.array(self.size),
            level=np.tile([1] + [2] * k, images),
            parent=np.tile([-1] + [0] * k, images),
            probability=F.pad(probability, (1, 0), value=1.0).flatten(),
            contribution=(logits / (1 + k)).flatten(0, 1) if contributions else None,
        )
        return Classification(logits.mean(1), glimpses, self.class_names, bytes_read=views.bytes_read)

    def roll_out(self, views: Views, locations: tuple[int, ...], policies: list[Policy], draws: Draws) -> list[Rollout]:
        level, rollouts = np.array([1] + [2] * sum(locations)), []
        for number, policy in enumerate(policies):
            logits, _, log_p, cells = self.traverse(views, sum(locations), policy, draws, number)
            chosen, scores = plackett_luce(log_p, cells), [log_p[:, None]]
            rollouts.append(Rollout(logits.mean(1), logits, level, chosen, scores, level - 2, cells, policy=policy))
        return rollouts

    def dense(self) -> nn.Module:
        return nn.Sequential(self.features, self.classifier)

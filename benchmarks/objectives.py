"""Which objective trains the policy of TNet? The published objective, the default and its alternatives, at equal cost.

Every variant trains the network of digits.yaml on its digits, but on a 3 x 3 grid with cells of half the side, where
all variants leave the plateau earlier. Learning rates and the number of looks are the same, so a variant with more
looks per image gets fewer steps. Variants that are not in the package are defined here. Two trainings run at a time,
with one thread each.

    python benchmarks/objectives.py --seeds 0 1 2 --out benchmarks/results/objectives.json
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from harness import write
from torch import Tensor

from foveal.data import get_data
from foveal.draws import Draws
from foveal.glimpse.tnet import TNet
from foveal.host import keep_freed_memory
from foveal.images.views import TensorViews
from foveal.objectives.objective import classification_loss
from foveal.objectives.rollout import Rollout
from foveal.objectives.tnet import ReferenceTNetObjective, TNetObjective
from foveal.policies import find_policy, plackett_luce
from foveal.recipes import load_recipe

RECIPE = load_recipe(str(Path(__file__).with_name("digits.yaml")))
DATA = {k: tuple(v) if isinstance(v, list) else v for k, v in RECIPE["data"].items()} | {"val": 0}
MODEL = {k: v for k, v in RECIPE["model"].items() if k != "name"} | {"grid": 3, "region": 0.5}


class Correctness(TNetObjective):
    """The published reward on sampled looks: 1 for a right prediction of the whole rollout and of each look alone."""

    def credit(self, tried: Rollout, target: Tensor) -> Tensor:
        whole = (tried.logits.argmax(-1) == target).float()
        alone = (tried.glimpse_logits[:, 1:].argmax(-1) == target[:, None]).float()
        return self.image_share * whole[:, None] + (1 - self.image_share) * alone


class RewardToCome(TNetObjective):
    """Decrease in cross-entropy by this look and later ones: unbiased, but with the noise of the later looks."""

    def credit(self, tried: Rollout, target: Tensor) -> Tensor:
        alone = tried.glimpse_logits.detach()
        so_far = (alone.cumsum(1) / torch.arange(1, alone.shape[1] + 1)[:, None]).transpose(1, 2)
        loss = F.cross_entropy(so_far, target[:, None].expand(alone.shape[:2]), reduction="none")
        return loss[:, :-1] - loss[:, -1:]


class GainInProbability(TNetObjective):
    """Increase in the probability of the right class, which is bounded, instead of the decrease in cross-entropy."""

    def credit(self, tried: Rollout, target: Tensor) -> Tensor:
        alone = tried.glimpse_logits.detach()
        so_far = alone.cumsum(1) / torch.arange(1, alone.shape[1] + 1)[:, None]
        p = so_far.softmax(-1).gather(2, target[:, None, None].expand(-1, alone.shape[1], 1)).squeeze(2)
        return p[:, -1:] - p[:, :-1]


class ProbabilityToCome(TNetObjective):
    """Probability of the right class: of the whole rollout, and of this look and later ones alone."""

    def credit(self, tried: Rollout, target: Tensor) -> Tensor:
        alone, whole = tried.glimpse_logits.detach().softmax(-1), tried.logits.detach().softmax(-1)
        p_alone = alone.gather(2, target[:, None, None].expand(-1, alone.shape[1], 1)).squeeze(2)[:, 1:]
        to_come = p_alone.flip(1).cumsum(1).flip(1)
        return self.image_share * whole.gather(1, target[:, None]) + (1 - self.image_share) * to_come


class LeaveOneOut(TNetObjective):
    """Credit of a look: the loss of the other looks without it. Similar to the default, but biased."""

    def credit(self, tried: Rollout, target: Tensor) -> Tensor:
        alone = tried.glimpse_logits.detach()
        without = (alone.sum(1, keepdim=True) - alone) / (alone.shape[1] - 1)
        loss = F.cross_entropy(without.transpose(1, 2), target[:, None].expand(alone.shape[:2]), reduction="none")
        return loss[:, 1:] - F.cross_entropy(alone.mean(1), target, reduction="none")[:, None]


class EveryPrefix(TNetObjective):
    """The default credit, averaged over prefixes of the rollout: the first look, the first two, ..."""

    def credit(self, tried: Rollout, target: Tensor) -> Tensor:
        total, looks = torch.zeros_like(tried.log_probability), tried.glimpses_per_image - 1
        for k in range(1, looks + 1):
            within = replace(
                tried,
                glimpse_logits=tried.glimpse_logits[:, : k + 1],
                log_probability=tried.log_probability[:, :k],
                level=tried.level[: k + 1],
                parent=tried.parent[: k + 1],
            )
            total[:, :k] += super().credit(within, target) / looks
        return total.detach()


class TwoRollouts(TNetObjective):
    """Two sampled rollouts of each image; each is the baseline of the other."""

    def plan(self, progress: float) -> tuple[str, ...]:
        return super().plan(progress) * 2

    def __call__(self, rollouts, target, state):
        perceived = sum(classification_loss(tried, target, self.image_share) for tried in rollouts) / 2
        if not rollouts[0].policy.sampled:
            return perceived, state, {"loss": perceived.detach()}
        one, other = (self.credit(tried, target) for tried in rollouts)
        policy = (
            -((one - other) * rollouts[0].log_probability + (other - one) * rollouts[1].log_probability).sum(1).mean()
        )
        loss = perceived + self.policy_weight * policy
        return loss, state, {"loss": loss.detach()}


class SelfCritical(TNetObjective):
    """The greedy rollout is the baseline."""

    def plan(self, progress: float) -> tuple[str, ...]:
        return ("random",) if progress < self.warm_up else ("sampled", "greedy")

    def __call__(self, rollouts, target, state):
        if len(rollouts) == 1:
            return super().__call__(rollouts, target, state)
        perceived = sum(classification_loss(tried, target, self.image_share) for tried in rollouts) / 2
        with torch.no_grad():
            sampled, greedy = (F.cross_entropy(tried.logits, target, reduction="none") for tried in rollouts)
        policy = -((greedy - sampled)[:, None] * rollouts[0].log_probability).sum(1).mean()
        loss = perceived + self.policy_weight * policy
        return loss, state, {"loss": loss.detach()}


class Teacher(TNetObjective):
    """On one batch in four every cell is looked at, and the policy imitates the cells with the lowest loss."""

    calls = 0

    def plan(self, progress: float) -> tuple[str, ...]:
        object.__setattr__(self, "calls", self.calls + 1)
        self_taught = progress < self.warm_up or self.calls % 4
        return super().plan(progress) if self_taught else ("exhaustive",)

    def __call__(self, rollouts, target, state):
        (tried,) = rollouts
        if not tried.policy.every_cell:
            return super().__call__(rollouts, target, state)
        alone = tried.glimpse_logits
        with torch.no_grad():
            pairs = (alone[:, :1] + alone[:, 1:]) / 2
            loss = F.cross_entropy(pairs.transpose(1, 2), target[:, None].expand(pairs.shape[:2]), reduction="none")
            by_cell = torch.empty_like(loss).scatter_(1, tried.cells, -loss)
            wanted = (by_cell / 0.5).softmax(1)
        policy = F.kl_div(tried.scores[0][:, 0], wanted, reduction="batchmean")
        loss = classification_loss(tried, target, self.image_share) + self.policy_weight * policy
        return loss, state, {"loss": loss.detach()}


class Random(TNetObjective):
    """Random looks throughout training; the policy is not trained."""

    def plan(self, progress: float) -> tuple[str, ...]:
        return ("random",)


@dataclass
class Variant:
    objective: Any
    model: dict[str, Any] = field(default_factory=dict)
    looks: float = 3.0  # backbone passes an image and step
    policy: str = "greedy"


LOOKS = {"warm_up_looks": "random"}
PUBLISHED = {"score_scale": None, "antialias": False}
VARIANTS = {
    "published": Variant(ReferenceTNetObjective(0.3), PUBLISHED),
    "published reward, sampled, unit-norm scores": Variant(Correctness(**LOOKS), {"score_scale": None}),
    "published reward, sampled": Variant(Correctness(**LOOKS)),
    "ours": Variant(TNetObjective(**LOOKS)),
    "reward to come": Variant(RewardToCome(**LOOKS)),
    "gain in probability": Variant(GainInProbability(**LOOKS)),
    "probability to come": Variant(ProbabilityToCome(**LOOKS)),
    "ours, unit-norm scores": Variant(TNetObjective(**LOOKS), {"score_scale": None}),
    "ours, no warm-up": Variant(TNetObjective(warm_up=0.0)),
    "leave-one-out credit": Variant(LeaveOneOut(**LOOKS)),
    "ours, every budget": Variant(EveryPrefix(**LOOKS)),
    "two rollouts, each the other's baseline": Variant(TwoRollouts(**LOOKS), looks=5),
    "self-critical": Variant(SelfCritical(**LOOKS), looks=5),
    "exhaustive teacher on 1 batch in 4": Variant(Teacher(**LOOKS), looks=3 * 0.75 + 10 * 0.25),
    "random looks": Variant(Random(), policy="random"),
}


def accuracy(model: TNet, data: Any, locations: tuple[int, ...], policy: str = "greedy") -> float:
    model.eval()
    right = 0
    with torch.inference_mode():
        for first in range(0, len(data.targets), 250):
            rows = np.arange(first, min(first + 250, len(data.targets)))
            out = model(TensorViews(data.images[rows]), locations, policy, Draws(0, 0, rows), contributions=False)
            right += int((out.logits.argmax(-1) == torch.as_tensor(data.targets[rows])).sum())
    return right / len(data.targets)


def train(
    variant: Variant, data: Any, seed: int, looks: int, batch_size: int = 32, lr: float = 2e-3, warm_up: int = 150
) -> dict[str, Any]:
    torch.manual_seed(seed)
    model = TNet(num_classes=10, **{**MODEL, **variant.model})
    if not isinstance(variant.objective, ReferenceTNetObjective):
        model.likelihood = plackett_luce  # looks are sampled without replacement, whatever the norm of the scores
    steps = round(looks / variant.looks)
    optimiser = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=1e-2)
    rising = torch.optim.lr_scheduler.LinearLR(optimiser, 1e-3, total_iters=warm_up)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps - warm_up)
    schedule = torch.optim.lr_scheduler.SequentialLR(optimiser, [rising, falling], [warm_up])
    state, done, epoch, began = variant.objective.initial_state(), 0, 0, time.process_time()
    while done < steps:
        loader = data.loader("train", batch_size=batch_size, seed=seed, drop_last=True)
        loader.set_epoch(epoch)
        for batch in loader:
            model.train()
            plan = variant.objective.plan(done / steps)
            if plan == ("exhaustive",):
                rollouts = model.rollouts(
                    batch.views, ("greedy",), Draws(seed, epoch, batch.index), (model.grid.cells,)
                )
                rollouts[0].policy = find_policy("exhaustive")
            else:
                rollouts = model.rollouts(batch.views, plan, Draws(seed, epoch, batch.index))
            loss, state, _ = variant.objective(rollouts, batch.target, state)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            done += 1
            if done == steps:
                break
        epoch += 1
    test = data.test
    return {
        "seed": seed,
        "steps": steps,
        "cpu_seconds": round(time.process_time() - began),
        "accuracy": {k: accuracy(model, test, (k,), variant.policy) for k in (1, 2, 3)},
        "random": accuracy(model, test, (2,), "random"),
        "thumbnail": accuracy(model, test, ()),
    }


@cache
def bundled() -> Any:
    """The data, created once in each process."""
    return get_data(**DATA)


def prepare() -> None:
    torch.set_num_threads(1)
    keep_freed_memory()
    bundled()


def run(name: str, seed: int, looks: int) -> dict[str, Any]:
    return {"variant": name, **train(VARIANTS[name], bundled(), seed, looks)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--looks", type=int, default=4500, help="backbone passes for each image of a batch, over the whole training"
    )
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--out")
    args = parser.parse_args()
    jobs = [(name, seed, args.looks) for seed in args.seeds for name in args.variants]
    rows: list[dict[str, Any]] = []
    with ProcessPoolExecutor(2, initializer=prepare, mp_context=multiprocessing.get_context("spawn")) as pool:
        for future in as_completed([pool.submit(run, *job) for job in jobs]):
            rows.append(future.result())
            print(rows[-1], flush=True)
            write(
                args.out, sorted(rows, key=lambda row: (list(VARIANTS).index(row["variant"]), row["seed"])), seed=None
            )


if __name__ == "__main__":
    main()

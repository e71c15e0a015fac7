"""The objective of recurrent attention against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from foveal.objectives.recurrent import RecurrentObjective
from foveal.objectives.rollout import Rollout

NOTHING = torch.zeros(0)


def tried(right: list[bool], steps: int = 3, **more) -> tuple[Rollout, torch.Tensor]:
    """A rollout that is right about these images, and their labels."""
    torch.manual_seed(0)
    target = torch.arange(len(right)) % 3
    logits = 4 * F.one_hot(torch.where(torch.tensor(right), target, (target + 1) % 3), 3).double().requires_grad_()
    each = torch.randn(len(right), 1 + steps, 3, dtype=torch.float64)
    density = torch.randn(len(right), steps, dtype=torch.float64, requires_grad=True)
    level = np.array([1] + [2] * steps)
    return Rollout(
        logits=logits,
        glimpse_logits=each,
        level=level,
        log_probability=density,
        additive=False,
        policy="sampled",
        **more,
    ), target


@pytest.mark.parametrize("right", [[True] * 4, [False] * 4])
def test_a_constant_reward_teaches_the_policy_nothing(right):
    rollout, target = tried(right)
    loss, _, log = RecurrentObjective()([rollout], target, NOTHING)
    torch.testing.assert_close(loss, F.cross_entropy(rollout.logits, target))
    assert not torch.autograd.grad(loss, rollout.log_probability)[0].any() and float(log["reward"]) == right[0]


def test_policy_gradient_is_the_written_formula():
    rollout, target = tried([True, False, True, True])
    loss, state, _ = RecurrentObjective(policy_weight=0.1)([rollout], target, NOTHING)
    reward = torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=torch.float64)
    expected = -((reward - 0.75)[:, None] * rollout.log_probability).mean()
    torch.testing.assert_close(loss, F.cross_entropy(rollout.logits, target) + 0.1 * expected)
    gradient = torch.autograd.grad(loss, rollout.log_probability)[0]
    torch.testing.assert_close(gradient, (-0.1 * (reward - 0.75) / 12)[:, None].expand(4, 3))
    assert state is NOTHING


def test_a_learned_baseline_gets_the_squared_error_and_nothing_of_the_policy():
    values = torch.full((2, 3), 0.25, requires_grad=True)
    rollout, target = tried([True, False], values=values)
    loss, _, log = RecurrentObjective(policy_weight=2.0)([rollout], target, NOTHING)
    advantage = torch.tensor([0.75, -0.25])[:, None].double()
    expected = (
        F.cross_entropy(rollout.logits, target)
        - 2 * (advantage * rollout.log_probability).mean()
        + log["loss_baseline"]
    )
    torch.testing.assert_close(loss, expected)
    assert float(log["loss_baseline"]) == pytest.approx((0.75**2 + 0.25**2) / 2)
    torch.testing.assert_close(torch.autograd.grad(loss, values)[0], (-2 * advantage / 6).float().expand(2, 3))


def test_every_look_alone_takes_the_rest_of_the_weight():
    rollout, target = tried([True, False])
    loss, _, log = RecurrentObjective(policy_weight=0, image_share=0.25)([rollout], target, NOTHING)
    alone = torch.stack([F.cross_entropy(step, target) for step in rollout.glimpse_logits.unbind(1)]).mean()
    torch.testing.assert_close(loss, 0.25 * F.cross_entropy(rollout.logits, target) + 0.75 * alone)
    assert float(log["loss_perception"]) == pytest.approx(float(loss.detach()))


def test_without_choices_there_is_no_policy_term():
    rollout, target = tried([True, False], steps=0)
    loss, _, _ = RecurrentObjective()([rollout], target, NOTHING)
    torch.testing.assert_close(loss, F.cross_entropy(rollout.logits, target))

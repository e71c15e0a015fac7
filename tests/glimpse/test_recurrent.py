"""The parts that recurrent attention models share, against other libraries and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.distributions import Normal

from foveal.draws import Draws
from foveal.glimpse.dram import DRAM
from foveal.glimpse.ram import RAM
from foveal.glimpse.recurrent import GaussianPolicy, LSTMCell
from foveal.policies import find_policy


def test_the_cell_is_that_of_torch_with_one_vector_of_biases():
    torch.manual_seed(0)
    ours, theirs = LSTMCell(5, 7), torch.nn.LSTMCell(5, 7)
    torch.nn.init.normal_(ours.gates.bias)
    with torch.no_grad():
        theirs.weight_ih.copy_(ours.gates.weight[:, :5])
        theirs.weight_hh.copy_(ours.gates.weight[:, 5:])
        theirs.bias_ih.copy_(ours.gates.bias)
        theirs.bias_hh.zero_()
    mine, their = ours.zeros(3), (torch.zeros(3, 7), torch.zeros(3, 7))
    for _ in range(4):
        x = torch.randn(3, 5)
        mine, their = ours(x, mine), theirs(x, their)
        torch.testing.assert_close(mine, their)


def test_the_cell_has_one_vector_of_biases_and_begins_by_remembering():
    cell = LSTMCell(5, 7)
    assert {name: tuple(p.shape) for name, p in cell.named_parameters()} == {
        "gates.weight": (28, 12),
        "gates.bias": (28,),
    }
    assert cell.gates.bias.tolist() == [0.0] * 7 + [1.0] * 7 + [0.0] * 14
    # With no other input a forget bias of 1 keeps sigmoid(1) of what is in the cell.
    torch.nn.init.zeros_(cell.gates.weight)
    _, kept = cell(torch.randn(1, 5), (torch.zeros(1, 7), torch.ones(1, 7)))
    torch.testing.assert_close(kept, torch.tensor(1.0).sigmoid().expand(1, 7))


def test_log_density_is_that_of_torch_and_its_gradient_the_closed_form():
    torch.manual_seed(0)
    policy, mean, where = GaussianPolicy(3, 0.6, 0.1), torch.randn(4, 2, requires_grad=True), torch.randn(4, 2)
    density = policy.log_density(where, mean)
    torch.testing.assert_close(density, Normal(mean, 0.1).log_prob(where).sum(1))
    (gradient,) = torch.autograd.grad(density.sum(), mean)
    torch.testing.assert_close(gradient, (where - mean).detach() / 0.1**2)


def test_draws_are_gaussian_and_kept_within_the_limit():
    policy, mean = GaussianPolicy(3, 0.6, 0.1), torch.tensor([[0.2, -0.55]])
    uniform = torch.from_numpy(np.random.default_rng(0).random((20_000, 2))).float()
    where = policy.choose(find_policy("sampled"), mean.expand(20_000, 2), uniform)
    assert where.abs().max() <= 0.6 and (where[:, 1] == -0.6).float().mean() == pytest.approx(
        float(Normal(0, 1).cdf(torch.tensor(-0.5))), abs=0.01
    )
    assert where[:, 0].mean() == pytest.approx(0.2, abs=0.003) and where[:, 0].std() == pytest.approx(0.1, abs=0.003)


def test_other_ways_to_choose():
    policy, mean, uniform = (
        GaussianPolicy(3, 0.6, 0.1),
        torch.tensor([[0.2, -0.5]], requires_grad=True),
        torch.tensor([[0.0, 0.75]]),
    )
    assert policy.choose(find_policy("greedy"), mean, uniform).tolist() == mean.tolist()
    assert policy.choose(find_policy("centre"), mean, uniform).tolist() == [[0, 0]]
    torch.testing.assert_close(policy.choose(find_policy("random"), mean, uniform), torch.tensor([[-0.6, 0.3]]))
    assert not any(
        policy.choose(find_policy(name), mean, uniform + 0.1).requires_grad
        for name in ("greedy", "sampled", "random", "centre")
    )


def test_means_stay_within_the_limit():
    policy = GaussianPolicy(3, 0.6, 0.1)
    means = policy(1000 * torch.randn(50, 3))
    assert means.shape == (50, 2) and means.abs().max() <= 0.6 < means.abs().max() + 1e-3


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    "model",
    [
        RAM(num_classes=3, base_size=6),
        DRAM(num_classes=3, backbone="test_resnetv2_slim", image_size=48, base_size=16, hidden=12),
    ],
)
def test_other_precisions_train_and_keep_places_exact(model, dtype):
    objective = model.to(dtype).default_objective()
    tried = model.rollouts(torch.rand(4, 3, 48, 48), objective.plan(0), Draws(0, 0, np.arange(4)), locations=(2,))
    loss, _, _ = objective(tried, torch.arange(4) % 3, objective.initial_state())
    loss.backward()
    assert torch.isfinite(loss) and tried[0].log_probability.dtype == torch.promote_types(dtype, torch.float32)

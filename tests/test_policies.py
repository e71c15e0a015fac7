"""Selection compared with enumeration and frequencies."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from foveal.choices import POLICY_NAMES, SACCADER_POLICY_NAMES
from foveal.draws import Draws
from foveal.errors import ConfigError
from foveal.policies import NEVER, POLICIES, CellPolicy, Policy, find_policy, independent, plackett_luce, uniform


def choose(policy, log_p, k, noise=None):
    return find_policy(policy).choose(log_p, k, noise)


LOG_P = torch.tensor([0.4, 0.1, 0.3, 0.2]).log()


def test_greedy_takes_the_most_probable_and_the_lower_index_of_equals():
    assert choose("greedy", torch.tensor([[0.2, 0.3, 0.3, 0.2]]).log(), 3).tolist() == [[1, 2, 0]]


def test_centre_goes_outwards():
    assert choose("centre", torch.zeros(25), 5).tolist() == [12, 7, 11, 13, 17]


@pytest.mark.parametrize("policy", ["sampled", "random"])
def test_frequencies_of_ordered_choices(policy):
    draws = 40_000
    noise = torch.from_numpy(Draws(0, 0, np.arange(draws)).gumbel("test", 4))
    cells = choose(policy, LOG_P.expand(draws, -1), 2, noise)
    likelihood = plackett_luce if policy == "sampled" else uniform
    for order in itertools.permutations(range(4), 2):
        p = likelihood(LOG_P, torch.tensor(order)).sum().exp().item()
        seen = (cells == torch.tensor(order)).all(1).float().mean().item()
        assert abs(seen - p) < 4 * (p * (1 - p) / draws) ** 0.5


def test_plackett_luce_against_its_definition():
    p = LOG_P.exp()
    got = plackett_luce(LOG_P, torch.tensor([2, 0, 1])).exp()
    torch.testing.assert_close(got, torch.stack([p[2], p[0] / (1 - p[2]), p[1] / (1 - p[2] - p[0])]))


def test_independent_is_the_plain_logarithm():
    torch.testing.assert_close(independent(LOG_P, torch.tensor([2, 0])), (LOG_P.exp()[[2, 0]] + 1e-10).log())


@pytest.mark.parametrize("policy", ["greedy", "sampled", "random", "centre"])
def test_masked_cells_come_last_and_carry_no_gradient(policy):
    scores = torch.tensor([[3.0, 1.0, 2.0, 0.5]], requires_grad=True)
    log_p = scores.masked_fill(torch.tensor([True, False, False, True]), NEVER).log_softmax(-1)
    noise = torch.from_numpy(Draws(0, 0, np.arange(1)).gumbel("test", 4))
    cells = choose(policy, log_p, 3, noise)
    assert set(cells[0, :2].tolist()) == {1, 2}
    got = plackett_luce(log_p, cells)
    assert got[0, 2] == 0 and torch.isfinite(got).all()
    got.sum().backward()
    assert torch.isfinite(scores.grad).all() and scores.grad[0, 0] == scores.grad[0, 3] == 0


def test_a_grid_with_every_cell_masked_is_still_numbers():
    scores = torch.zeros(1, 4, requires_grad=True)
    log_p = scores.masked_fill(torch.ones(4, dtype=torch.bool), NEVER).log_softmax(-1)
    plackett_luce(log_p, choose("greedy", log_p, 2)).sum().backward()
    assert torch.isfinite(scores.grad).all()


def test_names_and_objects():
    sampled = find_policy("sampled")
    assert (
        find_policy(sampled) is sampled
        and sampled == POLICIES.get("sampled")() != find_policy("greedy")
        and str(sampled) == "sampled"
    )
    assert {name for name in POLICIES if POLICIES.get(name).learned} == {"greedy", "sampled"}
    assert {name for name in POLICIES if find_policy(name).sampled} == {"sampled"}
    with pytest.raises(ConfigError, match="greddy: there is no policy of this name; did you mean greedy"):
        find_policy("greddy")


@pytest.mark.parametrize("name", ["greedy", "sampled", "random", "centre", "exhaustive"])
def test_what_draws_says_so(name):
    policy = find_policy(name)
    if policy.draws:
        with pytest.raises(ValueError, match=f"the {name} policy needs noise"):
            policy.choose(LOG_P, 1)
    else:
        noise = torch.arange(4.0)
        assert torch.equal(policy.choose(LOG_P, 4, noise), policy.choose(LOG_P, 4))


def test_the_tables_of_names_that_help_shows_are_those_of_the_policies():
    import foveal.glimpse.saccader

    grid = [
        name
        for name in POLICIES
        if issubclass(POLICIES.get(name), CellPolicy) and POLICIES.get(name).__module__ == "foveal.policies"
    ]
    own = [name for name in POLICIES if issubclass(POLICIES.get(name), foveal.glimpse.saccader.SaccaderPolicy)]
    assert (*grid,) == POLICY_NAMES and (*own,) == SACCADER_POLICY_NAMES
    assert all(POLICIES.get(name).name == name and issubclass(POLICIES.get(name), Policy) for name in POLICIES)

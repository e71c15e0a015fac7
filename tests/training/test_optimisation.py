"""Groups, penalties and schedules against their definitions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from foveal.errors import ConfigError
from foveal.training import FitConfig, Optimiser
from foveal.training.optimisation import build, lr_factor


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2)).double()


def groups(net: nn.Module) -> dict[str, list[nn.Parameter]]:
    return {"backbone": [*net[0].parameters(), *net[1].parameters()], "head": list(net[3].parameters()), "none": []}


@pytest.mark.parametrize("named", [None, ("head",)])
def test_l2_is_the_gradient_of_its_term_in_the_loss(named):
    """Adam with the l2 option takes the step that Adam without it takes on loss + l2 * |w|^2, norm layers excluded."""
    images, lam = torch.randn(8, 3, 3, 3, dtype=torch.float64), 0.03
    results = []
    for explicit in (False, True):
        net = network()
        optimiser = build(net, groups(net), Optimiser(name="adam", lr=0.1, l2=0.0 if explicit else lam, l2_groups=named))
        for _ in range(3):
            optimiser.zero_grad()
            loss = net(images).square().mean()
            if explicit:
                penalised = [*net[3].parameters()] + ([] if named else [*net[0].parameters()])
                loss = loss + lam * sum(p.square().sum() for p in penalised)
            loss.backward()
            optimiser.step()
        results.append(torch.cat([p.flatten() for p in net.parameters()]))
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-12)


def test_every_parameter_is_in_one_group_with_its_own_rate():
    net = network()
    optimiser = build(net, groups(net), Optimiser(lr=1e-3, weight_decay=0.1, group_lr={"backbone": 1e-4}))
    found = {id(p): (g["base_lr"], g["weight_decay"]) for g in optimiser.param_groups for p in g["params"]}
    assert len(found) == sum(len(g["params"]) for g in optimiser.param_groups) == len(list(net.parameters()))
    expected = {
        "0.weight": (1e-4, 0.1),
        "0.bias": (1e-4, 0),
        "1.weight": (1e-4, 0),
        "1.bias": (1e-4, 0),
        "3.weight": (1e-3, 0.1),
        "3.bias": (1e-3, 0),
    }
    assert {name: found[id(p)] for name, p in net.named_parameters()} == expected


def test_schedules():
    constant, step, cosine = (Optimiser(schedule=name) for name in ("constant", "step", "cosine"))
    assert [lr_factor(constant, 0, x) for x in (0.0, 0.5, 1.0)] == [1, 1, 1]
    assert [lr_factor(step, 0, x) for x in (0.0, 0.79, 0.8, 1.0)] == [1, 1, 0.1, 0.1]
    assert [lr_factor(cosine, 0, x) for x in (0.0, 0.5, 1.0)] == pytest.approx([1, 0.5, 0])
    warm = Optimiser(schedule="constant", warmup=3)
    assert [lr_factor(warm, s, 0.0) for s in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_adam_takes_its_epsilon_from_the_configuration():
    """After one step Adam has moved each weight by lr * g / (|g| + eps), whatever its betas."""
    net = nn.Linear(1, 1, bias=False).double()
    before = net.weight.item()
    optimiser = build(net, {"head": list(net.parameters())}, Optimiser(name="adam", lr=0.1, eps=0.5))
    net.weight.grad = torch.full_like(net.weight, 2.0)
    optimiser.step()
    assert before - net.weight.item() == pytest.approx(0.1 * 2 / 2.5)


def test_configurations_survive_being_written():
    config = FitConfig(optimiser=Optimiser(betas=(0.5, 0.9), l2_groups=("head",), group_lr={"backbone": 1e-4}), locations=(2, 1), epochs=3)
    assert FitConfig.from_dict(config.to_dict()) == config
    assert all(not isinstance(v, tuple) for v in config.to_dict()["optimiser"].values())
    with pytest.raises(ConfigError, match=r"^optimiser.learning_rate: there is no such option; foveal fit --help lists them$"):
        FitConfig.from_dict({"optimiser": {"learning_rate": 1}})
    with pytest.raises(ConfigError, match=r"^bach_size: there is no such option; did you mean batch_size$"):
        FitConfig.from_dict({"bach_size": 1})


def test_a_momentum_of_sgd():
    net = nn.Linear(1, 1)
    optimiser = build(net, {"head": list(net.parameters())}, Optimiser(name="sgd", betas=(0.8, 0.999)))
    assert optimiser.defaults["momentum"] == 0.8 and math.isclose(optimiser.param_groups[0]["lr"], 1e-3)

"""Groups, penalties and schedules compared with their definitions."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import timm
import timm.optim
import torch
from torch import nn

from foveal.errors import ConfigError
from foveal.models import create_classifier
from foveal.recipes.fit_config import FitConfig
from foveal.training import Optimiser
from foveal.training.optimisation import build, lr_factor
from tests.training.tiny import NORM_FREE


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
        optimiser = build(
            net, groups(net), Optimiser(name="adam", lr=0.1, l2=0.0 if explicit else lam, l2_groups=named)
        )
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


def rates(optimiser: Optimiser, epochs: int, batches: int) -> list[float]:
    """Learning rate of the first and the last step of every epoch, as a task counts them."""
    total = epochs * batches
    steps = (step for epoch in range(epochs) for step in (epoch * batches, (epoch + 1) * batches - 1))
    return [optimiser.lr * lr_factor(optimiser, step, step / total) for step in steps]


@pytest.mark.parametrize("batches", [1, 7, 390, 391, 5004])
def test_several_drops_come_exactly_at_their_epochs(batches):
    """Attention-based CNN, T1: 0.1, a tenth of it from epoch 100, a hundredth from epoch 150 of 200; ImageNet: 30 and
    60 of 90.
    """
    cifar = Optimiser(lr=0.1, schedule="step", step_at=(0.5, 0.75))
    assert rates(cifar, 200, batches) == pytest.approx([0.1] * 200 + [0.01] * 100 + [0.001] * 100)
    imagenet = Optimiser(lr=0.1, schedule="step", step_at=(0.3333333, 0.6666667))
    assert rates(imagenet, 90, batches) == pytest.approx([0.1] * 60 + [0.01] * 60 + [0.001] * 60)


def test_a_constant_warm_up():
    """ResNet-110: a tenth of the learning rate for the first 400 steps."""
    warm = Optimiser(schedule="step", warmup=400, warmup_factor=0.1)
    assert [lr_factor(warm, s, 0.0) for s in (0, 399, 400, 401)] == pytest.approx([0.1, 0.1, 1, 1])
    assert lr_factor(warm, 399, 0.9) == pytest.approx(0.01)


class Gate(nn.Module):
    no_weight_decay = ("log_radius",)

    def __init__(self):
        super().__init__()
        self.log_radius = nn.Parameter(torch.zeros(3, 1, 1))
        self.weight = nn.Parameter(torch.ones(2, 2))


class WithTable(nn.Sequential):
    def no_weight_decay(self):
        return {"1.weight", "pos_embed"}


@pytest.mark.parametrize("decay_all", [False, True])
def test_what_weight_decay_leaves_alone(decay_all):
    net = WithTable(nn.Conv2d(3, 4, 3), nn.Linear(4, 4), nn.BatchNorm2d(4), Gate())
    optimiser = build(
        net, {"head": list(net.parameters())}, Optimiser(name="sgd", weight_decay=0.1, l2=0.01, decay_all=decay_all)
    )  # the penalty is on weights and biases, whatever else is decayed
    found = {id(p): g["weight_decay"] for g in optimiser.param_groups for p in g["params"]}
    other = 0.1 if decay_all else 0.0
    assert {name: found[id(p)] for name, p in net.named_parameters()} == pytest.approx(
        {
            "0.weight": 0.12,
            "0.bias": other + 0.02,
            "1.weight": 0.0,
            "1.bias": other + 0.02,
            "2.weight": other,
            "2.bias": other,
            "3.log_radius": 0.0,
            "3.weight": 0.12,
        }
    )


def test_timms_own_list_is_kept():
    net = timm.create_model("test_vit", num_classes=2)
    optimiser = build(net, {"head": list(net.parameters())}, Optimiser(weight_decay=0.1, decay_all=True))
    spared = {id(p) for g in optimiser.param_groups for p in g["params"] if g["weight_decay"] == 0}
    named = {name for name, p in net.named_parameters() if id(p) in spared}
    assert named == net.no_weight_decay() & dict(net.named_parameters()).keys() and "pos_embed" in named


def test_nesterov_looks_ahead():
    """Two steps with constant gradient g: sgd moves by g, then 1.9 g; Nesterov's by 1.9 g, then 2.71 g."""
    moved = {}
    for nesterov in (False, True):
        net = nn.Linear(1, 1, bias=False).double()
        start = net.weight.item()
        optimiser = build(net, {"head": list(net.parameters())}, Optimiser(name="sgd", lr=1.0, nesterov=nesterov))
        for _ in range(2):
            net.weight.grad = torch.ones_like(net.weight)
            optimiser.step()
        moved[nesterov] = start - net.weight.item()
    assert moved == {False: pytest.approx(1 + 1.9), True: pytest.approx(1.9 + 2.71)}


def test_adam_takes_its_epsilon_from_the_configuration():
    """After one step Adam has moved each weight by lr * g / (|g| + eps), whatever its betas."""
    net = nn.Linear(1, 1, bias=False).double()
    before = net.weight.item()
    optimiser = build(net, {"head": list(net.parameters())}, Optimiser(name="adam", lr=0.1, eps=0.5))
    net.weight.grad = torch.full_like(net.weight, 2.0)
    optimiser.step()
    assert before - net.weight.item() == pytest.approx(0.1 * 2 / 2.5)


def test_configurations_survive_being_written():
    config = FitConfig(
        optimiser=Optimiser(betas=(0.5, 0.9), l2_groups=("head",), group_lr={"backbone": 1e-4}),
        locations=(2, 1),
        epochs=3,
    )
    assert FitConfig.from_dict(config.to_dict()) == config
    dropping = FitConfig(optimiser=Optimiser(step_at=(0.5, 0.75), warmup_factor=0.1))
    assert FitConfig.from_dict(dropping.to_dict()) == dropping
    assert FitConfig.from_dict({"optimiser": {"step_at": [0.5, 0.75]}}).optimiser.step_at == (0.5, 0.75)
    assert all(not isinstance(v, tuple) for v in config.to_dict()["optimiser"].values())
    with pytest.raises(
        ConfigError, match=r"^optimiser.learning_rate: there is no such option; foveal fit --help lists them$"
    ):
        FitConfig.from_dict({"optimiser": {"learning_rate": 1}})
    with pytest.raises(ConfigError, match=r"^bach_size: there is no such option; did you mean batch_size$"):
        FitConfig.from_dict({"bach_size": 1})


def test_a_momentum_of_sgd():
    net = nn.Linear(1, 1)
    optimiser = build(net, {"head": list(net.parameters())}, Optimiser(name="sgd", betas=(0.8, 0.999)))
    assert optimiser.defaults["momentum"] == 0.8 and math.isclose(optimiser.param_groups[0]["lr"], 1e-3)


@pytest.mark.parametrize(
    ("config", "kind", "options"),
    [
        (Optimiser(lr=0.1, eps=1e-7), torch.optim.AdamW, {"betas": (0.9, 0.999), "eps": 1e-7}),
        (Optimiser(name="adam", lr=0.1, betas=(0.8, 0.9)), torch.optim.Adam, {"betas": (0.8, 0.9), "eps": 1e-8}),
        (Optimiser(name="sgd", lr=0.1), torch.optim.SGD, {"momentum": 0.9}),
        (Optimiser(name="sgd", lr=0.1, nesterov=True), torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    ],
)
def test_the_usual_optimisers_are_those_of_torch(config, kind, options):
    one, other = network(), network()
    decayed, others = (
        [p for p in other.parameters() if (p.ndim > 1) == weight] for weight in (True, False)
    )  # the order in which they are grouped
    optimisers = (
        build(one, {"head": list(one.parameters())}, replace(config, weight_decay=0.1)),
        kind([{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}], lr=0.1, **options),
    )
    assert type(optimisers[0]) is kind
    images = torch.randn(8, 3, 3, 3, dtype=torch.float64)
    for _ in range(3):
        for net, optimiser in zip((one, other), optimisers, strict=True):
            optimiser.zero_grad()
            net(images).square().mean().backward()
            optimiser.step()
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


USABLE = [
    name
    for name in timm.optim.list_optimizers()
    if not name.startswith(("bnb", "fused")) and not timm.optim.get_optimizer_info(name).second_order
]


FEW = ("adafactor", "adan", "lamb", "lion", "muon", "nadam", "radam", "rmsprop")


@pytest.mark.parametrize(
    "name", [name if name in FEW else pytest.param(name, marks=pytest.mark.slow) for name in USABLE]
)
def test_every_optimiser_of_timm_is_saved_and_resumed(name, tmp_path):
    images = torch.randn(8, 3, 3, 3)

    def trained(stop: int | None) -> torch.Tensor:
        net = network().float()
        config = Optimiser(name=name, lr=0.01, weight_decay=0.05)
        config.check()
        optimiser = build(net, groups(net), config)
        for step in range(4):
            if step == stop:
                torch.save([net.state_dict(), optimiser.state_dict()], tmp_path / "state")
                net = network().float()
                optimiser = build(net, groups(net), config)
                weights, state = torch.load(tmp_path / "state", weights_only=True)
                net.load_state_dict(weights)
                optimiser.load_state_dict(state)
            optimiser.zero_grad()
            torch.manual_seed(step)  # kron draws
            net(images).square().mean().backward()
            optimiser.step()
        return torch.cat([p.flatten() for p in net.parameters()])

    whole = trained(None)
    assert torch.equal(trained(2), whole) and not torch.equal(whole, trained_not())


def trained_not() -> torch.Tensor:
    return torch.cat([p.flatten() for p in network().float().parameters()])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"name": "adamww"}, r"^optimiser.name: there is no optimiser 'adamww'; did you mean adamw$"),
        ({"name": "?"}, r"^optimiser.name: there is no optimiser '\?'; timm.optim.list_optimizers\(\) lists them$"),
        ({"name": "adahessian"}, r"^optimiser.name: adahessian needs second derivatives"),
        ({"name": "lion", "l2": 0.1}, r"^optimiser.l2: is a term of the loss, which lion replaces"),
        ({"layer_decay": 1.5}, r"^optimiser.layer_decay: is 1.5; set `optimiser.layer_decay` above 0 and up to 1$"),
    ],
)
def test_optimisers_that_cannot_be_used(options, sentence):
    with pytest.raises(ConfigError, match=sentence):
        Optimiser(**options).check()


def test_an_optimiser_that_does_not_take_the_options():
    net = network()
    with pytest.raises(ConfigError, match=r"^optimiser.name: adan cannot be made \(.+\); change its options"):
        build(net, groups(net), Optimiser(name="adan", betas=(0.5, 0.9)))


def test_layers_of_a_dense_network_are_those_of_timm():
    model = create_classifier("test_vit", num_classes=3)
    optimiser = build(model, model.parameter_groups(), Optimiser(lr=1.0, layer_decay=0.5))
    found = {id(p): g["base_lr"] for g in optimiser.param_groups for p in g["params"]}
    expected = {
        id(p): g["lr_scale"]
        for g in timm.optim.param_groups_layer_decay(model.network, layer_decay=0.5)
        for p in g["params"]
    }
    assert found == expected and len(set(found.values())) > 3
    assert found[id(model.network.head.weight)] == 1.0


def test_what_is_not_the_backbone_has_the_full_rate():
    model = create_classifier("tnet", num_classes=3, backbone="test_vit", base_size=32)
    config = Optimiser(lr=1.0, layer_decay=0.5, group_lr={"backbone": 0.1})
    optimiser = build(model, model.parameter_groups(), config)
    rates = {id(p): g["lr"] for g in optimiser.param_groups for p in g["params"]}
    blocks = [{rates[id(p)] for p in block.parameters()} for block in model.backbone.blocks]
    assert all(len(of_block) == 1 for of_block in blocks)
    first, *_, last = (of_block.pop() for of_block in blocks)
    assert first == pytest.approx(last * 0.5 ** (len(blocks) - 1)) and last < 0.1 + 1e-9
    assert {rates[id(p)] for p in model.classifier.parameters()} == {1.0}


def test_layers_that_cannot_be_counted():
    for name, sentence in (("ram", "ram has no backbone"), ("tnet", "timm finds no layers in NormFree")):
        options = dict(NORM_FREE) if name == "tnet" else {"name": name}
        model = create_classifier(**options, num_classes=3)
        with pytest.raises(ConfigError, match=rf"^optimiser.layer_decay: .*{sentence}"):
            build(model, model.parameter_groups(), Optimiser(layer_decay=0.5))

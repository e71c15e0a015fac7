"""Invalid values that `fit` refuses before it changes an existing run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

import foveal.models
from foveal.data.dataset import TensorDataset
from foveal.data.module import DataModule
from foveal.errors import ConfigError
from foveal.glimpse.base import WholeImage
from foveal.objectives.objective import CrossEntropy
from foveal.training import Optimiser, Training, fit


def data() -> DataModule:
    images = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return DataModule(("a", "b"), TensorDataset(images, [0, 1] * 4, ("a", "b")), name="mine")


def model() -> nn.Module:
    return foveal.models.create_classifier("test_resnet", num_classes=2, image_size=16)


def plain_network(last: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), last)


def training(**changes: Any) -> Training:
    return Training(**{"steps": 1, "device": "cpu", "batch_size": 4, **changes})


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = plain_network(nn.Linear(4, 2))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.layer(x), self.layer(x)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return fit(model(), data(), tmp_path_factory.mktemp("checks") / "run", training=training(), quiet=True).path


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"ema": 2.0}, "ema: is 2.0; set `ema` above 0 and below 1, or leave it out"),
        ({"strategy": "foo"}, "strategy: Lightning has no strategy 'foo'; set `strategy` to one such as"),
        ({"strategy": "single_tpu"}, "strategy: Lightning cannot use single_tpu on cpu"),
        ({"locations": (99,)}, "`locations` 99: this model looks once"),
        ({"optimiser": Optimiser(schedule="poly")}, "optimiser.schedule: poly does not fit; give one of constant, "),
        ({"optimiser": Optimiser(name="lyon")}, "optimiser.name: there is no optimiser 'lyon'; did you mean lion"),
        ({"optimiser": Optimiser(lr=-1.0)}, "optimiser.lr: is -1.0; set `optimiser.lr` to 0 or more"),
        ({"optimiser": Optimiser(lr=math.inf)}, "optimiser.lr: is inf; set `optimiser.lr` to 0 or more, and finite"),
        ({"optimiser": Optimiser(lr="1")}, "optimiser.lr: '1' does not fit; give a number"),
        ({"optimiser": Optimiser(betas=(0.9, 1.0))}, "optimiser.betas: are 0.9 and 1.0; set `optimiser.betas`"),
        ({"optimiser": Optimiser(eps=-1e-8)}, "optimiser.eps: is -1e-08; set `optimiser.eps` to 0 or more"),
        ({"optimiser": Optimiser(weight_decay=math.nan)}, "optimiser.weight_decay: is nan; set .* finite"),
        ({"optimiser": Optimiser(clip=0.0)}, "optimiser.clip: is 0.0; set `optimiser.clip` above 0"),
        ({"optimiser": Optimiser(name="sgd", l2=-1.0)}, "optimiser.l2: is -1.0; set `optimiser.l2` to 0 or more"),
        ({"optimiser": Optimiser(warmup=-1)}, "optimiser.warmup: is -1; set `optimiser.warmup` to 0 or more"),
        ({"optimiser": Optimiser(step_at=())}, "optimiser.step_at: is empty; set `optimiser.step_at`"),
        ({"optimiser": Optimiser(step_at=[0.5, 2])}, r"optimiser.step_at: \[0.5, 2\] are not shares of the run"),
        ({"optimiser": {"lr": 0.1}}, "optimiser: an object of the type dict was given; give a foveal.Optimiser"),
        ({"workers": -1}, "workers: is -1; set `workers` to 0 or more"),
        ({"seed": 2**63}, f"seed: is {2**63}; set `seed` to 0 or more, and below"),
        ({"max_time": math.nan}, "max_time: is nan; set it above 0"),
        ({"batch_size": "4"}, "batch_size: '4' does not fit; give a whole number"),
        ({"class_weights": [1.0, -1.0]}, r"class_weights: \[1.0, -1.0\] cannot weigh the classes; set `class_weights`"),
        ({"class_weights": [0.0, 0.0]}, r"class_weights: \[0.0, 0.0\] cannot weigh the classes"),
        ({"class_weights": [1.0, math.inf]}, r"class_weights: \[1.0, inf\] cannot weigh the classes"),
    ],
)
def test_bad_values_leave_the_run_that_would_be_replaced(run, changes, sentence):
    before = {file.name: file.read_bytes() for file in run.iterdir()}
    with pytest.raises(ConfigError, match=rf"^{sentence}[^\n]*$"):
        fit(model(), data(), run, training=training(**changes), overwrite=True, quiet=True)
    assert {file.name: file.read_bytes() for file in run.iterdir()} == before


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"training": None}, "training: an object of the type NoneType was given; give a foveal.Training"),
        ({"training": {"steps": 1}}, "training: an object of the type dict was given; give a foveal.Training"),
        ({"data": "digits"}, "data: an object of the type str was given; give a foveal.DataModule"),
        ({"objective": "cross_entropy"}, "objective: an object of the type str was given; give an objective"),
        ({"objective": nn.CrossEntropyLoss()}, "objective: an object of the type CrossEntropyLoss was given"),
        ({"objective": CrossEntropy}, "objective: the class CrossEntropy was given; give an objective, such as"),
        ({"out": None}, "out: an object of the type NoneType was given; give the path of a run folder"),
        ({"resume": True}, "resume: cannot be used with `overwrite`"),
        ({"model": plain_network(nn.Linear(4, 3))}, "model.num_classes: is 3, but mine has 2 classes"),
        ({"model": plain_network(nn.Unflatten(1, (2, 2)))}, r"model: Sequential gives an output of shape \(1, 2, 2\)"),
        ({"model": Pair()}, "model: Pair gives an output of the type tuple; give a network that returns .* logits"),
        ({"model": nn.Linear(4, 2)}, r"model: Linear gives an output of shape \(1, 3, 224, 2\)|model: Linear cannot"),
        (
            {"model": nn.Sequential(nn.Flatten(), nn.Linear(48, 2))},
            "model: Sequential cannot classify an image of 3 x 224 x 224 .*; set num_classes on the network, or",
        ),
        (
            {"model": timm.create_model("test_resnet", num_classes=0)},
            "model: ResNet has num_classes 0 and gives features; give a network that returns",
        ),
        (
            {"model": WholeImage(plain_network(nn.Linear(4, 2)).requires_grad_(False), 16)},
            "model: it has no parameters that can be trained",
        ),
    ],
)
def test_what_is_no_such_object_leaves_the_run_too(run, changes, sentence):
    before = (run / "model.safetensors").read_bytes()
    given = {"model": model(), "data": data(), "out": run, "training": training(), **changes}
    with pytest.raises(ConfigError, match=rf"^(?:{sentence})[^\n]*$"):
        fit(**given, overwrite=True, quiet=True)
    assert (run / "model.safetensors").read_bytes() == before


def test_a_number_of_classes_that_the_network_does_not_give(run):
    network = plain_network(nn.Linear(4, 7))
    network.num_classes = 2
    with pytest.raises(ConfigError, match=r"has num_classes 2, but gives an output of shape \(1, 7\) for one image"):
        fit(WholeImage(network, 16), data(), run, training=training(), overwrite=True, quiet=True)


def test_classes_of_a_plain_network_are_counted_and_it_trains(tmp_path):
    network = plain_network(nn.Linear(4, 2)).train()
    network[1].eval()
    network.insert(1, nn.BatchNorm2d(4))
    state, drawn = {key: value.clone() for key, value in network.state_dict().items()}, torch.get_rng_state()
    classifier = WholeImage(network, 16)
    assert classifier.num_classes == 2
    assert torch.equal(torch.get_rng_state(), drawn)
    assert [part.training for part in network] == [True, True, False, True, True]
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert fit(network, data(), tmp_path / "run", training=training(), quiet=True).summary["step"] == 1


def test_lists_are_tuples_to_an_optimiser(tmp_path):
    optimiser = Optimiser(step_at=[0.25, 0.5], betas=[0.9, 0.99], schedule="step")
    assert optimiser.steps() == (0.25, 0.5)
    run = fit(model(), data(), tmp_path / "run", training=training(optimiser=optimiser, steps=2), quiet=True)
    assert run.summary["step"] == 2

"""Frozen parts: no weight and no statistic moves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from foveal.data import get_data
from foveal.errors import ConfigError
from foveal.glimpse.base import GlimpseClassifier, WholeImage
from foveal.models import create_classifier
from foveal.objectives import CrossEntropy
from foveal.recipes.fit_config import fit_config
from foveal.training import Optimiser, Training, fit
from tests.training.test_resume import resumed, same_runs
from tests.training.tiny import config

TNET = {"name": "tnet", "backbone": "test_efficientnet", "base_size": 32, "locations": [2]}
SACCADER = {"name": "saccader", "backbone": "test_bagnet_lowd", "image_size": 32, "locations": [3]}


class Plain(nn.Module):
    """A norm without parameters beside the classifier."""

    num_classes, in_chans = 3, 3

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False)
        self.classifier = nn.Linear(4, 3)

    def get_classifier(self) -> nn.Module:
        return self.classifier

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.norm(self.conv(x)).mean((2, 3)))


def moved(model: GlimpseClassifier, out: Path, freeze: Sequence[str], **options) -> set[str]:
    """Names of the entries of the model's state, or of its average, that training changes."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    training = Training(
        steps=3,
        batch_size=4,
        ema=0.5,
        freeze=list(freeze),
        device="cpu",
        optimiser=Optimiser(lr=0.01, weight_decay=0.1, decay_all=True),
    )
    run = fit(model, get_data("tiny_images"), out, training=training, quiet=True, **options)
    checkpoint = torch.load(run.path / "last.ckpt", weights_only=True)
    after = {name.removeprefix("model."): value for name, value in checkpoint["state_dict"].items()}
    average = {name.removeprefix("module."): value for name, value in checkpoint["average"].items()}
    return {n for n, v in before.items() if not (torch.equal(v, after[n]) and torch.equal(v, average[n]))}


@pytest.mark.parametrize(
    ("options", "still", "moving"),
    [
        ({**TNET, "level_statistics": True}, "backbone.", {"position", "classifier", "location"}),
        (SACCADER, "backbone.", {"attention", "mix", "cell"}),
        ({"name": "test_resnet", "image_size": 32}, "network.", {"network"}),
    ],
    ids=["tnet", "saccader", "dense"],
)
def test_nothing_of_a_frozen_backbone_moves(tmp_path, options, still, moving):
    model = create_classifier(**options, num_classes=3)
    statistics = [name for name in model.state_dict() if "running" in name]
    assert statistics
    changed = moved(model, tmp_path / "run", ["backbone"])
    head = {f"network.{name}" for name, _ in model.network.named_parameters()} if still == "network." else set()
    head = {name for name in head if name.startswith("network.fc")}
    assert {name for name in changed if name.startswith(still)} == head
    assert {name.partition(".")[0] for name in changed} & moving
    free = moved(create_classifier(**options, num_classes=3), tmp_path / "free", [])
    assert {name for name in free if "running_mean" in name} >= {n for n in statistics if n.endswith("running_mean")}


def test_a_norm_without_parameters_is_frozen_with_what_is_before_it(tmp_path):
    assert moved(WholeImage(Plain(), 16), tmp_path / "a", ["backbone"]) == {
        "network.classifier.weight",
        "network.classifier.bias",
    }
    assert "network.norm.running_mean" in moved(WholeImage(Plain(), 16), tmp_path / "b", ["head"])


def test_modules_are_frozen_by_name_and_together_with_the_objective(tmp_path):
    changed = moved(create_classifier(**TNET, num_classes=3), tmp_path / "a", ["backbone.blocks.0", "position"])
    assert not {n for n in changed if n.startswith(("backbone.blocks.0.", "position."))}
    assert {n for n in changed if n.startswith("backbone.blocks.1.")}
    network = create_classifier("test_resnet", num_classes=3, image_size=32)
    changed = moved(network, tmp_path / "b", ["layer1"], objective=CrossEntropy(trains=("backbone",)))
    assert {n.split(".")[1] for n in changed} >= {"layer2"} and not {
        n for n in changed if n.startswith(("network.layer1.", "network.fc."))
    }


@pytest.mark.parametrize(
    ("options", "freeze", "sentence"),
    [
        (
            TNET,
            ["neck"],
            "freeze: the model has no part 'neck'; use one of backbone, head, location, position, classifier",
        ),
        (
            {"name": "test_resnet", "image_size": 32},
            [""],
            "freeze: the model has no part ''; use one of head, backbone, conv1, bn1, layer1, layer2, layer3, layer4",
        ),
        (TNET, ["backbone", "head"], "freeze: leaves no parameter to train; name fewer parts of the model"),
    ],
)
def test_parts_that_there_are_not(tmp_path, options, freeze, sentence):
    with pytest.raises(ConfigError) as error:
        fit_config(config(model=options, freeze=freeze), tmp_path / "run", quiet=True)
    assert str(error.value).startswith(sentence) and not (tmp_path / "run").exists()


def test_a_resumed_run_stays_frozen_and_is_the_uninterrupted_one(tmp_path, monkeypatch):
    """With all that training can draw besides."""
    from foveal.training.learner import Learner

    changes = {
        "freeze": ["backbone"],
        "sampling": "balanced",
        "mixup": 0.4,
        "label_smoothing": 0.1,
        "optimiser": {"name": "lion", "lr": 0.001, "warmup": 2},
    }
    whole = fit_config(config(**changes), tmp_path / "whole", quiet=True)
    same_runs(resumed(monkeypatch, tmp_path / "run", Learner, "training_step", 11, **changes), whole.path)
    with pytest.raises(ConfigError, match=r"^freeze: differs from the run to be resumed"):
        fit_config(config(**{**changes, "freeze": [], "epochs": 4}), tmp_path / "run", resume=True, quiet=True)

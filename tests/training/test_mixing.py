"""Mixup and smoothed labels against their definitions."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from foveal.data import Batch, ImageDataset, get_data
from foveal.data.module import DataModule
from foveal.draws import generator
from foveal.errors import ConfigError
from foveal.images import TensorViews
from foveal.models import create_classifier
from foveal.objectives import OBJECTIVES, CrossEntropy
from foveal.objectives.objective import cross_entropy
from foveal.objectives.rollout import Rollout
from foveal.recipes.configure import configure
from foveal.recipes.fit_config import fit_config
from foveal.training import Training, fit
from foveal.training.learner import Learner
from tests.training.tiny import NORM_FREE, config


def learner(**options) -> Learner:
    torch.manual_seed(0)
    model = create_classifier("norm_free_16", num_classes=3)
    return Learner(model, CrossEntropy(), get_data("tiny_images"), Training(steps=9, batch_size=5, seed=3, **options))


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_the_loss_is_that_of_mixed_pixels_and_mixed_labels(dtype, monkeypatch):
    monkeypatch.setattr(Learner, "progress", 0.5)
    monkeypatch.setattr(Learner, "global_rank", 0)
    one = learner(mixup=0.5)
    batch = one.data.train.batch(0, [0, 1, 2, 3, 4], 3)
    if dtype == torch.uint8:
        batch = replace(batch, views=TensorViews((batch.views.images * 255).to(torch.uint8)))
    loss, log, good = one._loss(batch, 2, 7)
    rng = generator(3, 2, 7, "mixup")
    share = rng.beta(0.5, 0.5)
    other = rng.spawn(1)[0].permutation(5)
    pixels = batch.views.images.float() / (255 if dtype == torch.uint8 else 1)
    logits = one.model(share * pixels + (1 - share) * pixels[other]).logits
    labels = F.one_hot(batch.target, 3).float()
    expected = F.cross_entropy(logits, share * labels + (1 - share) * labels[other])
    torch.testing.assert_close(loss, expected)
    right = (logits.argmax(1)[:, None] == torch.stack([batch.target, batch.target[other]], 1)).float().mean(0)
    assert float(log["accuracy"]) == pytest.approx(float(share * right[0] + (1 - share) * right[1]), abs=1e-6)
    assert good == 5 and 0 < share < 1 and (other != np.arange(5)).any()


def test_draws_are_a_function_of_seed_epoch_and_batch(monkeypatch):
    monkeypatch.setattr(Learner, "progress", 0.5)
    monkeypatch.setattr(Learner, "global_rank", 0)
    one = learner(mixup=0.5)
    batch: Batch = one.data.train.batch(0, [0, 1, 2, 3, 4], 3)
    losses = [float(one._loss(batch, epoch, number)[0].detach()) for epoch in (0, 1) for number in (0, 1)]
    assert len(set(losses)) == 4
    assert float(one._loss(batch, 1, 0)[0].detach()) == losses[2]


def test_a_policy_is_trained_on_both_labels(tmp_path):
    objective = {"warm_up": 0.2, "teach": 0.0}
    run = fit_config(config(model=NORM_FREE, mixup=0.3, objective=objective, ema=None), tmp_path / "run", quiet=True)
    assert (run.path / "metrics.csv").read_text().count("\n") == 12


def test_looks_from_files_cannot_be_mixed(tmp_path):
    files = ImageDataset(["a.png", "b.png"], [0, 1], ("a", "b"))
    data = DataModule(("a", "b"), files, name="mine")
    model = create_classifier(**NORM_FREE, num_classes=2)
    training = Training(steps=1, batch_size=2, mixup=0.2, device="cpu")
    with pytest.raises(
        ConfigError, match=r"^mixup: images are read look by look .+; set `data.image_size`, or [^\n]+$"
    ):
        fit(model, data, tmp_path / "run", training=training, quiet=True)


def objectives() -> list:
    every = [OBJECTIVES.get(name, "") for name in OBJECTIVES.names() if name != "saccader_locations"]
    made = [kind for kind in every if "label_smoothing" in {field.name for field in fields(kind)}]
    return [kind(image_share=0.3) if kind.__name__ == "ReferenceTNetObjective" else kind() for kind in made]


@pytest.mark.parametrize("objective", objectives(), ids=lambda o: type(o).__name__)
def test_smoothed_labels_are_those_of_every_objective(objective):
    """The loss is linear in the label. With half of it smoothed over two classes, it is the mean with labels 0 and 1
    in these shares, in all cross-entropies and nowhere else.
    """
    logits = torch.randn(6, 3, 2, generator=torch.Generator().manual_seed(0))
    target = torch.tensor([0, 1, 0, 1, 1, 0])
    rollout = Rollout(logits.mean(1), logits, np.array([1, 2, 2]), policy="greedy")  # no choice has a log-probability
    rollout.log_probability = torch.zeros(6, 2)
    rollout.parent = np.array([-1, 0, 0])
    count = len(objective.plan(1.0))
    state = objective.initial_state()

    def loss(smoothing: float, of: torch.Tensor) -> torch.Tensor:
        changed = replace(objective, label_smoothing=smoothing)
        return changed([rollout] * count, of, state)[0]

    expected = 0.8 * loss(0.0, target) + 0.2 * (loss(0.0, target) + loss(0.0, 1 - target)) / 2
    torch.testing.assert_close(loss(0.2, target), expected)
    assert not torch.equal(loss(0.2, target), loss(0.0, target))


def test_smoothing_reaches_the_objective_and_is_stored(tmp_path):
    flags = [
        "--label-smoothing",
        "0.2",
        "--steps",
        "1",
        "--device",
        "cpu",
        "--data",
        "tiny_images",
        "--batch-size",
        "4",
    ]
    wanted, _, _ = configure("demo", flags)
    assert wanted.label_smoothing == 0.2
    run = fit_config(config(model=NORM_FREE, label_smoothing=0.2, epochs=None, steps=1), tmp_path / "run", quiet=True)
    assert "label_smoothing: 0.2" in (run.path / "config.yaml").read_text()
    logits, target = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    expected = F.cross_entropy(logits, target, label_smoothing=0.2)
    torch.testing.assert_close(cross_entropy(logits, target, None, 0.2), expected)
    locations = {"name": "saccader", "backbone": "test_bagnet_lowd", "image_size": 32, "locations": [3]}
    with pytest.raises(ConfigError, match=r"^label_smoothing: SaccaderLocations has no cross-entropy to smooth"):
        fit_config(
            config(model=locations, objective={"name": "saccader_locations"}, label_smoothing=0.2),
            tmp_path / "other",
            quiet=True,
        )

"""Whether learned looks are compared with random ones, and what follows."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

import foveal
from foveal.cli import main
from foveal.data.dataset import TensorDataset
from foveal.data.module import DataModule
from foveal.errors import RunError
from foveal.evaluation import Setting, evaluate, fit_threshold
from foveal.glimpse.base import WholeImage
from foveal.models import create_model
from foveal.prediction import format_locations
from foveal.recipes.fit_config import fit_config
from foveal.runs import Run
from foveal.training import Training, fitting
from foveal.training.policy_gap import MOST, PolicyGap, measure_policy_gap
from tests.training.tiny import NORM_FREE, config, tiny_images

TRAINING = Training(steps=1, batch_size=16, device="cpu")


class Oracle(WholeImage):
    """Knows the class from the brightest band; how sure it is depends on the policy."""

    most_levels = 1

    def __init__(self, sure: dict[str, float]) -> None:
        super().__init__(torch.nn.AdaptiveAvgPool2d(1), 8, mean=(0.0,), std=(1.0,))
        self.locations, self.num_classes, self.sure = (1,), 3, sure

    def classify(self, views, locations, policy, draws, contributions):
        bands = self.see(views, np.arange(len(views)), self.root(views.sizes)).mean((2, 3))
        logits = self.sure[policy.name] * torch.nn.functional.one_hot(bands.argmax(1), 3).float()
        return replace(super().classify(views, (), policy, draws, False), logits=logits)


def log_p(sure: float) -> float:
    return sure - math.log(math.exp(sure) + 2)


def test_an_interval_is_that_of_paired_differences():
    differences = np.random.default_rng(0).normal(0.1, 1, 50)
    gap = PolicyGap.of(differences, np.full(50, 7.0), accuracy=1, random_accuracy=1)
    half = 1.959964 * differences.std(ddof=1) / math.sqrt(50)
    assert gap.gap == pytest.approx(differences.mean())
    assert gap.interval == pytest.approx((differences.mean() - half, differences.mean() + half))
    twice = PolicyGap.of(differences, np.arange(50) % 2 + 1.0, accuracy=1, random_accuracy=1)
    assert twice.gap == pytest.approx(np.average(differences, weights=np.arange(50) % 2 + 1))


@pytest.mark.parametrize(("learned", "chance"), [(3.0, 1.0), (1.0, 1.5)])
def test_looks_are_compared_image_by_image(learned, chance):
    gap = measure_policy_gap(Oracle({"greedy": learned, "random": chance}), tiny_images(val=40), TRAINING)
    assert gap.images == 40 and gap.accuracy == gap.random_accuracy == 1
    assert gap.gap == pytest.approx(log_p(learned) - log_p(chance), rel=1e-5)
    assert (gap.note() is None) == gap.helps == (learned > chance)
    assert gap.harms == (learned < chance)


def test_classes_count_by_their_weights():
    model = Oracle({"greedy": 2.0, "random": 1.0})
    data = tiny_images(val=40)
    swapped = data.val.images.clone()
    reds = np.flatnonzero(data.val.targets == 0)
    swapped[reds] = swapped[reds].flip(1)  # always wrong, and surer of it
    wrong = DataModule(data.classes, data.train, TensorDataset(swapped, data.val.targets, data.classes), name="wrong")
    even, weighted = (measure_policy_gap(model, wrong, TRAINING, weights) for weights in (None, (2.0, 1.0, 1.0)))
    right, lost = log_p(2.0) - log_p(1.0), log_p(2.0) - 2 - (log_p(1.0) - 1)
    assert even.gap == pytest.approx((26 * right + 14 * lost) / 40, rel=1e-5)
    assert weighted.gap == pytest.approx((26 * right + 28 * lost) / 54, rel=1e-5)


def test_nothing_is_said_without_ground():
    model = Oracle({"greedy": 3.0, "random": 1.0})
    assert measure_policy_gap(model, tiny_images(val=29), TRAINING) is None
    assert measure_policy_gap(model, tiny_images(val=0), TRAINING) is None
    assert measure_policy_gap(Oracle({"greedy": 3.0, "random": 3.0}), tiny_images(val=40), TRAINING) is None
    assert measure_policy_gap(model, tiny_images(val=40), Training(steps=1, locations=(0,))) is None
    many = measure_policy_gap(model, tiny_images(val=MOST + 60), TRAINING)
    assert many.images == MOST


WORSE = PolicyGap(40, 0.5, 0.6, -0.2, (-0.3, -0.1))


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    """A run whose policy is found to be worse than random looks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "measure_policy_gap", lambda *_: WORSE)
        out = tmp_path_factory.mktemp("runs") / "run"
        return fit_config(config(model=NORM_FREE, steps=2, ema=None), out, quiet=True)


@pytest.fixture
def photo(tmp_path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_a_run_records_it_and_looks_at_random(run, photo):
    assert run.summary["policy"] == {
        "images": 40,
        "accuracy": 0.5,
        "random_accuracy": 0.6,
        "gap": -0.2,
        "interval": [-0.3, -0.1],
    }
    assert "learned looks are worse than random ones on 40 validation images" in run.summary["warnings"][-1]
    model = foveal.load(run.path)
    assert model.usual_policy == "random"
    boxes = {
        policy: foveal.classify(model, photo, policy=policy).glimpses.box.tolist()
        for policy in (None, "random", "greedy")
    }
    assert boxes[None] == boxes["random"] != boxes["greedy"]
    pixels = torch.from_numpy(np.array(Image.open(photo))).permute(2, 0, 1)[None] / 255
    assert boxes["greedy"] == model(pixels, policy="greedy").glimpses.box.tolist()
    assert boxes["random"] == model(pixels).glimpses.box.tolist()  # a call takes what predictions take


def test_evaluations_of_a_run_show_both_and_say_which_predictions_take(run):
    model, data = foveal.load(run.path), tiny_images(count=8, val=12)
    data = replace(data, test=data.val)
    found = evaluate(model, data, measure="none", setting=Setting(device="cpu"))
    points = {(p.kind, p.locations): p for p in found.points}
    own = model.locations
    assert ("learned", own) in points and found._own is points["random", own]
    assert found.about["policy"] == "random" and found.as_dict()["policy"] == "random"
    shown = Console(width=80, record=True, file=io.StringIO())
    shown.print(found.table())
    text = shown.export_text()
    assert "Predictions take random looks, because fit found learned ones worse." in " ".join(text.split())
    assert f"classes, at {format_locations(own)} random locations" in text
    # Another model in the table answers as it predicts.
    other = evaluate(create_model("test_resnet", num_classes=3), data, against=model, measure="none")
    (against,) = (p for p in other.points if p.kind == "against")
    assert against.metrics["nll"] == points["random", own].metrics["nll"] != points["learned", own].metrics["nll"]
    # The threshold of a class is found with the looks of predictions.
    seen = {
        policy: fit_threshold(_with_policy(model, policy), data, "recall=0.5", label="red").thresholds[0].threshold
        for policy in ("random", "greedy")
    }
    assert seen["random"] != seen["greedy"]


def _with_policy(model, policy):
    model.usual_policy = policy
    return model


def test_the_command_says_that_looks_are_random(run, photo, capsys):
    texts = []
    for more in ([], ["--policy", "greedy"], ["--policy", "random"]):
        assert main(["predict", str(run.path), str(photo), *more]) == 0
        texts.append(capsys.readouterr())
    assert "looks were random" in texts[0].err and "--policy greedy" in texts[0].err
    assert not texts[1].err and not texts[2].err
    assert texts[0].out == texts[2].out


def test_looks_become_random_only_beyond_noise(tmp_path, monkeypatch):
    spread = np.tile([-1.0, 1.0], 50)  # an interval of 0.2 on both sides of the mean
    better, unclear, worse = (
        PolicyGap.of(mean + spread, np.ones(100), accuracy=0.9, random_accuracy=0.9) for mean in (0.5, -0.05, -0.5)
    )
    assert [gap.helps for gap in (better, unclear, worse)] == [True, False, False]
    assert [gap.harms for gap in (better, unclear, worse)] == [False, False, True]
    assert better.note() is None and "not clearly better" in unclear.note() and "worse" in worse.note()
    monkeypatch.setattr(fitting, "measure_policy_gap", lambda *_: unclear)
    out = fit_config(config(model=NORM_FREE, steps=2, ema=None), tmp_path / "run", quiet=True)
    assert foveal.load(out.path).usual_policy == "greedy" and unclear.note() in out.summary["warnings"]


def test_a_policy_that_helps_stays(tmp_path):
    folder = fit_config(config(model=NORM_FREE, steps=2, ema=None), tmp_path / "run", quiet=True)
    assert folder.summary["policy"] is None and foveal.load(folder.path).usual_policy == "greedy"
    folder.keep_policy("random")
    assert foveal.load(folder.path).usual_policy == "random"
    folder.keep_policy("greedy")
    assert foveal.load(folder.path).usual_policy == "greedy"
    card = folder.path / "config.json"
    card.write_text(card.read_text().replace('"policy": "greedy"', '"policy": "exhaustive"'))
    with pytest.raises(RunError, match=r"policy: exhaustive does not fit"):
        Run(folder.path).load_model()

"""The monitored metric decides which weights are kept; patience ends a run."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest
import torch

from foveal.errors import ConfigError
from foveal.metrics import METRICS, Metric, metric
from foveal.recipes.fit_config import fit_config
from foveal.runs import Run
from foveal.training.callbacks import Score
from foveal.training.learner import Learner
from foveal.training.report import TrainingSummary
from tests.training.test_resume import same_runs, script
from tests.training.tiny import NORM_FREE, config

SMALL = {"model": NORM_FREE, "accumulate": 1, "ema": None, "epochs": None, "steps": 6, "val_every": 1, "batch_size": 4}

NOT_VALIDATED = {"name": "tiny_images", "val": 0}


def train(out: Path, **changes) -> Run:
    resume = changes.pop("resume", False)
    return fit_config(config(**{**SMALL, **changes}), out, quiet=True, resume=resume)


def steps(run: Run) -> dict[str, int]:
    return {name: torch.load(run.path / f"{name}.ckpt", weights_only=True)["global_step"] for name in ("best", "last")}


def validations(run: Run, name: str) -> list[float]:
    with (run.path / "metrics.csv").open() as file:
        return [float(row[f"val_{name}"]) for row in csv.DictReader(file) if row["val_loss"]]


@pytest.fixture
def values(monkeypatch):
    """Lets validations have these values of the monitored metric, by the step."""
    given: list[float] = []
    monkeypatch.setattr(Learner, "_monitored", lambda self: given[self.step - 1])
    return given


# ---- which weights are kept


@pytest.mark.parametrize(
    ("monitor", "sequence", "best"),
    [
        ("auroc", [0.5, 0.7, 0.9, 0.8, 0.9, 0.1], {3, 5}),
        ("nll", [0.5, 0.3, 0.4, 0.2, 0.6, 0.7], {4}),
        ("ece", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], {1}),
        ("auroc", [math.nan, 0.2, math.nan, 0.1, 0.15, math.nan], {2}),
        ("nll", [math.nan, 3.0, math.nan, 4.0, 5.0, math.nan], {2}),
    ],
)
def test_the_best_weights_are_kept(tmp_path, values, monitor, sequence, best):
    values.extend(sequence)
    run = train(tmp_path / "run", monitor=monitor)
    assert steps(run)["best"] in best and steps(run)["last"] == 6
    assert validations(run, monitor) == pytest.approx(sequence, nan_ok=True)
    assert json.loads((run.path / "summary.json").read_text())["kept_step"] == steps(run)["best"]
    weights = torch.load(run.path / "best.ckpt", weights_only=True)["state_dict"]
    for name, value in run.load_model().state_dict().items():
        assert torch.equal(value, weights[f"model.{name}"])


def test_ties_are_decided_by_accuracy_and_loss(tmp_path, values):
    values.extend([0.5] * 6)
    run = train(tmp_path / "run", monitor="macro_f1")
    keys = list(zip(validations(run, "accuracy"), [-loss for loss in validations(run, "loss")], strict=True))
    assert steps(run)["best"] == keys.index(max(keys)) + 1


def test_the_loss_may_be_monitored(tmp_path):
    run = train(tmp_path / "run", monitor="loss")
    losses = validations(run, "loss")
    assert steps(run)["best"] == losses.index(min(losses)) + 1


def test_a_metric_is_computed_of_all_validation_images(tmp_path):
    run = train(tmp_path / "run", monitor="nll", batch_size=4)  # six validation images: two batches
    assert validations(run, "nll") == pytest.approx(validations(run, "loss"), abs=2e-6)


def test_a_registered_metric_may_be_monitored(tmp_path):
    @metric("first", lower_is_better=True)
    def images_seen(answers):
        return Metric(float(len(answers)))

    try:
        run = train(tmp_path / "run", monitor="images_seen", steps=2)
        assert validations(run, "images_seen") == [6, 6]
    finally:
        del METRICS["images_seen"]


def test_scores():
    logged = {"val_accuracy": 0.5, "val_loss": 2.0, "val_auroc": 0.8, "val_nll": 1.5}
    assert Score.of(logged, "accuracy").key == (0.5, -2.0)
    assert Score.of(logged, "loss").key == (-2.0, 0.5, -2.0)
    assert Score.of(logged, "auroc").key == (0.8, 0.5, -2.0) and Score.of(logged, "nll").key == (-1.5, 0.5, -2.0)
    undefined = Score.of({**logged, "val_auroc": math.nan}, "auroc")
    assert undefined.key < Score.of({**logged, "val_auroc": 0.0}, "auroc").key
    assert undefined.key < Score.of({**logged, "val_auroc": math.nan, "val_accuracy": 0.6}, "auroc").key


def test_what_decided_is_told(tmp_path, values):
    values.extend([0.5, 0.7, 0.6])
    run = train(tmp_path / "run", monitor="auroc", steps=3)
    assert (run.summary["monitor"], run.summary["monitored"]) == ("auroc", pytest.approx(0.7))
    _, _, decided, last = TrainingSummary(**run.summary).result().splitlines()
    assert decided.strip() == "at step 2, the best of 3 validations by auroc, 0.700"
    assert last.strip() == f"accuracy {100 * run.summary['last_accuracy']:.1f} % at the last"
    lower = train(tmp_path / "lower", monitor="nll", steps=1)
    assert lower.summary["monitored"] == 0.5


def test_an_undefined_metric_is_told(tmp_path, values):
    values.extend([math.nan] * 3)
    run = train(tmp_path / "run", monitor="auroc", steps=3)
    assert run.summary["monitored"] is None and "NaN" not in (run.path / "summary.json").read_text()
    assert any(each.startswith("`monitor` auroc was undefined for the val") for each in run.summary["warnings"])


def test_another_metric_is_not_compared_with_that_of_the_run(tmp_path, values):
    values.extend([0.5, 0.7, 0.6, 0.9])
    train(tmp_path / "run", monitor="auroc", steps=3)
    with pytest.raises(ConfigError, match=r"^monitor: differs from the run to be resumed; "):
        train(tmp_path / "run", monitor="macro_f1", steps=4, resume=True)


# ---- patience


@pytest.mark.parametrize(("patience", "end"), [(1, 3), (2, 6), (3, 7), (9, 8)])
def test_patience_ends_a_run(tmp_path, values, patience, end):
    values.extend([0.5, 0.6, 0.6, 0.7, 0.1, 0.2, 0.3, 0.9])
    # Equal values are no better: accuracy and loss are made equal, too.
    run = train(tmp_path / "run", monitor="auroc", patience=patience, steps=8, optimiser={"lr": 1e-12})
    assert steps(run)["last"] == end
    summary = json.loads((run.path / "summary.json").read_text())
    assert summary["ended"] == "finished" and summary["out_of_patience"] == (patience < 9)
    assert not summary["out_of_time"] and not any("learning rate was still" in each for each in summary["warnings"])


def test_a_run_that_ends_with_its_steps_has_not_lost_patience(tmp_path, values):
    values.extend([0.9, 0.8, 0.7])
    run = train(tmp_path / "run", monitor="auroc", patience=2, steps=3)
    assert steps(run)["last"] == 3 and not run.summary["out_of_patience"]


def test_patience_is_not_time(tmp_path, values):
    values.extend([0.9, 0.8, 0.7])
    run = train(tmp_path / "run", monitor="auroc", patience=1, steps=None, max_time=3600.0)
    assert steps(run)["last"] == 2 and run.summary["out_of_patience"] and not run.summary["out_of_time"]


def test_a_run_without_patience_left_does_nothing_more(tmp_path, values):
    values.extend([0.9, 0.8, 0.7, 0.95, 0.9, 0.8])
    run = train(tmp_path / "run", monitor="auroc", patience=2)
    before = {file.name: file.read_bytes() for file in run.path.iterdir() if file.name != "summary.json"}
    again = train(tmp_path / "run", monitor="auroc", patience=2, resume=True)
    assert {file.name: file.read_bytes() for file in again.path.iterdir() if file.name != "summary.json"} == before
    assert again.summary["out_of_patience"] and steps(again)["last"] == 3
    further = train(tmp_path / "run", monitor="auroc", patience=3, resume=True)
    assert steps(further) == {"best": 4, "last": 6} and not further.summary["out_of_patience"]


def test_a_resumed_run_waits_as_the_uninterrupted_one(tmp_path, monkeypatch, values):
    values.extend([0.5, 0.6, 0.4, 0.3, 0.2, 0.1])
    whole = train(tmp_path / "whole", monitor="auroc", patience=3)
    assert steps(whole) == {"best": 2, "last": 5}
    step = Learner.training_step

    class Cut(Exception):
        pass

    def cut(self, batch, batch_idx):
        if batch_idx == 3:
            raise Cut
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch, pytest.raises(Cut):
        patch.setattr(Learner, "training_step", cut)
        train(tmp_path / "run", monitor="auroc", patience=3)
    train(tmp_path / "run", monitor="auroc", patience=3, resume=True)
    same_runs(tmp_path / "run", whole.path)


@pytest.mark.slow
def test_two_processes_compute_the_metric_of_all_images(tmp_path):
    changes = {**SMALL, "batch_size": 8, "steps": 3, "monitor": "average_precision", "patience": 2}
    changes |= {"data": {"name": "tiny_images", "val": 13}, "precision": "64"}
    one = fit_config(config(**changes), tmp_path / "one", quiet=True)
    done = script(tmp_path / "two", json.dumps({**changes, "devices": 2}))
    assert done.returncode == 0, done.stderr
    two = Run(tmp_path / "two")
    assert validations(two, "average_precision") == pytest.approx(validations(one, "average_precision"), abs=2e-6)
    assert steps(one) == steps(two)


# ---- errors


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"monitor": "aurok"}, "`monitor` aurok: there is no metric of this name; did you mean auroc"),
        ({"patience": 0}, "patience: "),
        (
            {"monitor": "auroc", "data": {"name": "tiny_images", "val": 0}},
            "monitor: tiny_images has no validation images",
        ),
        ({"patience": 2, "data": {"name": "tiny_images", "val": 0}}, "patience: tiny_images has no validation images"),
    ],
)
def test_what_fits_not_gets_a_sentence(tmp_path, changes, sentence):
    with pytest.raises(ConfigError) as error:
        train(tmp_path / "run", **changes)
    assert str(error.value).startswith(sentence) and "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())

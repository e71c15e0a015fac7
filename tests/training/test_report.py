"""What a run tells at its end, and what it warns of."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from foveal.data import get_data
from foveal.data.dataset import TensorDataset
from foveal.data.module import DataModule
from foveal.errors import DataError, RunError
from foveal.objectives import CrossEntropy, TNetObjective
from foveal.prediction import classify
from foveal.recipes.fit_config import fit_config
from foveal.runs import Run
from foveal.training import Optimiser, TrainingSummary
from foveal.training.learner import Learner
from foveal.training.report import differences, summarise
from tests.training.tiny import NORM_FREE, config

SHORT = {"model": NORM_FREE, "epochs": None, "accumulate": 1, "ema": None}


def lines_of(text: str) -> list[str]:
    return text.strip().splitlines()


# ------------------------------------------------------------------------------------------------------ of a real run


@pytest.fixture(scope="module")
def learnt(tmp_path_factory) -> Run:
    return fit_config(
        config(**{**SHORT, "steps": 60, "batch_size": 22, "val_every": 20, "ema": 0.5}),
        tmp_path_factory.mktemp("runs") / "run",
    )


def test_a_summary_says_what_the_kept_model_does(learnt):
    told = learnt.summary
    data = get_data("tiny_images").val
    right = (classify(learnt.load_model(), data.images).logits.argmax(1).numpy() == data.targets).mean()
    assert told["accuracy"] == pytest.approx(right) and told["images"] == 6 and told["validations"] == 3
    assert told["averaged"] and told["ended"] == "finished" and told["step"] == 60 and told["epoch"] == 60
    assert told["kept_step"] == torch.load(learnt.path / "best.ckpt", weights_only=True)["global_step"]
    rows = [line.split(",") for line in (learnt.path / "metrics.csv").read_text().splitlines()]
    validated = [(float(row[9]), -float(row[8]), int(row[0])) for row in rows[1:] if row[9]]
    assert told["kept_step"] == max(validated)[2] and told["last_accuracy"] == pytest.approx(validated[-1][0], abs=1e-6)
    assert told["training_accuracy"] == float([row[4] for row in rows[1:] if row[4]][-1])
    low, high = told["interval"]
    for bound in (
        (low, high) if 0 < told["accuracy"] < 1 else (low,)
    ):  # Wilson: where a test of the proportion stops to reject it
        assert abs(told["accuracy"] - bound) == pytest.approx(1.96 * np.sqrt(bound * (1 - bound) / 6), rel=1e-3)
    assert told["commonest_share"] == pytest.approx(1 / 3) and told["commonest"] == "red"


def test_what_is_printed_at_the_end(tmp_path, capsys):
    run = fit_config(config(**SHORT, steps=3), tmp_path / "a run")
    said = capsys.readouterr().out
    told = TrainingSummary(**run.summary)
    assert told.result() in said
    assert f"kept   weights of step 3 in {run.path}/model.safetensors" in said
    assert (
        f"next   foveal evaluate '{run.path}'\n       foveal predict '{run.path}' IMAGES" in said
    )  # as a shell takes it
    assert "at step 3, the best of 1 validation\n" in said
    assert all(len(line) <= 80 for line in lines_of(told.result()))


def test_python_users_get_it_too(learnt):
    assert TrainingSummary(**learnt.summary).result().startswith("run    60 updates, 60 epochs, in 0:")
    with pytest.raises(RunError, match=r"summary\.json: is damaged"):
        (learnt.path / "summary.json").write_text("half")
        _ = Run(learnt.path).summary
    (learnt.path / "summary.json").unlink()
    assert Run(learnt.path).summary is None
    fit_config(None, learnt.path, resume=True, quiet=True)  # finished already, and told again
    assert Run(learnt.path).summary == learnt.summary


def test_without_validation_images_the_training_accuracy_is_told(tmp_path, capsys):
    data = {"name": "tiny_images", "val": 0}
    run = fit_config(config(**SHORT, data=data, steps=5, log_every=2), tmp_path / "run")
    said = capsys.readouterr().out
    rows = [line.split(",") for line in (run.path / "metrics.csv").read_text().splitlines()]
    accuracy = float(rows[-1][4])
    assert (
        "nothing was validated: there are no validation images that can be read\n       accuracy "
        f"{100 * accuracy:.1f} % on the" in said
    )
    assert run.summary["accuracy"] is None and run.summary["interval"] is None and run.summary["kept_step"] == 5


def test_a_run_that_ended_before_its_first_validation_says_so(tmp_path):
    found, _ = told(tmp_path, "interrupted", best=None, last=None, rows=[(50, 0.9)])
    assert (
        "result nothing was validated before the run ended\n       accuracy 90.0 % on the training images"
        in found.result()
    )


def test_warnings_are_wrapped_on_a_terminal_alone(tmp_path, capsys, monkeypatch):
    found, text = told(tmp_path, best=(0.6, -1.0), last=(0.6, -1.0))
    found.show(tmp_path, brief=True)
    assert capsys.readouterr().err == f"foveal: {text}\n"
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    found.show(tmp_path, brief=True)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) > 1 and max(map(len, lines)) <= 80 and " ".join(lines) == f"foveal: {text}"


def test_validation_images_that_cannot_be_read_are_none(tmp_path):
    """Then the last weights are kept, and not those of the first validation, which saw nothing."""
    train = get_data("tiny_images").train
    val = type(train)(train.images[:3], train.targets[:3], train.classes)
    val.bad = (0, 1, 2)
    data = DataModule(train.classes, train, val, name="mine")
    run = fit_config(
        config(**SHORT, data={"name": "mine"}, steps=4, val_every=2), tmp_path / "run", quiet=True, data=data
    )
    assert run.summary["accuracy"] is None and run.summary["kept_step"] == 4 and not (run.path / "best.ckpt").exists()
    assert (
        run.summary["unread"] == 3
        and run.summary["warnings"][-1] == f"3 images could not be read; see {run.path / 'bad_images.csv'}"
    )


def test_an_interrupted_run_says_what_it_has_and_how_to_go_on(tmp_path, capsys, monkeypatch):
    step = Learner.training_step

    def interrupt(self, batch, batch_idx):
        if batch_idx == 7:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Learner, "training_step", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fit_config(
            config(
                **SHORT, steps=100, val_every=5, objective={"warm_up": 0.2, "warm_up_looks": "random", "teach": 0.0}
            ),
            tmp_path / "run",
        )
    said, told = capsys.readouterr(), Run(tmp_path / "run").summary
    assert (told["ended"], told["step"], told["kept_step"], told["validations"]) == ("interrupted", 8, 5, 1)
    assert "8 updates, 1.6 epochs" in said.out and ", interrupted" in said.out
    assert f"next   foveal fit --resume --out {tmp_path / 'run'}\n" in said.out
    warned = " ".join(told["warnings"])
    assert "the learning rate was still 99% of its maximum when the run ended; continue by `resume`" in warned
    assert "the objective had not reached its last phase (looks: random, later sampled)" in warned
    assert all(f"foveal: {warning}" in said.err for warning in told["warnings"])


def test_a_killed_run_has_no_summary_of_what_was_before(tmp_path, monkeypatch):
    fit_config(config(**SHORT, steps=2), tmp_path / "run", quiet=True)

    def fail(self, batch, batch_idx):
        raise RuntimeError("a bug")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(Learner, "training_step", fail)
        fit_config(config(**SHORT, steps=4), tmp_path / "run", resume=True, quiet=True)
    assert Run(tmp_path / "run").summary is None
    assert fit_config(config(**SHORT, steps=4), tmp_path / "run", resume=True, quiet=True).summary["step"] == 4
    (tmp_path / "run" / "summary.json").write_text("old")
    assert fit_config(config(**SHORT, steps=1), tmp_path / "run", overwrite=True, quiet=True).summary["step"] == 1


def test_a_run_that_diverges_keeps_its_best_weights_and_says_so(tmp_path, monkeypatch, capsys):
    call, calls = CrossEntropy.__call__, []

    def diverging(self, *args):
        calls.append(1)
        loss, state, log = call(self, *args)
        return (loss * float("nan") if len(calls) == 6 else loss), state, log

    monkeypatch.setattr(CrossEntropy, "__call__", diverging)
    changes = {**SHORT, "steps": 9, "val_every": 3, "objective": {"name": "cross_entropy"}}
    with pytest.raises(RunError, match="the loss is nan in step 6"):
        fit_config(config(**changes), tmp_path / "run")
    told = Run(tmp_path / "run").summary
    assert (told["ended"], told["step"], told["kept_step"]) == ("diverged", 5, 3)
    assert Run(tmp_path / "run").load_model().num_classes == 3
    assert f"foveal fit --resume --out {tmp_path / 'run'} --optimiser.lr LOWER" in capsys.readouterr().out


def test_a_run_that_time_ended_says_so(tmp_path):
    run = fit_config(config(**SHORT, steps=10**6, max_time=0.05), tmp_path / "run", quiet=True)
    assert run.summary["out_of_time"] and ", ended by max_time" in TrainingSummary(**run.summary).result()
    run = fit_config(config(**SHORT, steps=2, max_time=1000), tmp_path / "other", quiet=True)
    assert not run.summary["out_of_time"]


def test_one_class_is_no_data_to_learn_from(tmp_path):
    data = DataModule(("cat",), TensorDataset(torch.rand(4, 3, 16, 16), [0] * 4, ("cat",)), name="photos")
    with pytest.raises(
        DataError, match=r"^photos: there is only one class, 'cat'; give images of two classes or more$"
    ):
        fit_config(config(**SHORT, steps=1), tmp_path / "run", data=data, quiet=True)
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------------------------------------------------- warnings


def told(
    out: Path,
    ended: str = "finished",
    *,
    step: int = 1000,
    best=(0.9, -0.1),
    last=(0.9, -0.1),
    images: int = 500,
    rows=(),
    **more,
):
    """The summary of a run of 1,000 steps that ended in some way, and its warnings as one text."""
    optimiser = Optimiser(**more.pop("optimiser", {}))
    targets = np.array([0] * 60 + [1] * 40)
    val = TensorDataset(torch.zeros(100, 1, 1, 1), targets, ("common", "rare"))
    data = DataModule(("common", "rare"), val, val if best else None)
    settings = config(optimiser={}, accumulate=1, epochs=None, steps=1000, max_time=more.pop("max_time", None))
    settings.optimiser = optimiser
    learner = SimpleNamespace(
        config=settings,
        data=data,
        validates=best is not None,
        objective=more.pop("objective", CrossEntropy()),
        total_batches=more.pop("total", 1000),
        batches_per_epoch=25,
    )
    facts = {
        "step": step,
        "elapsed": 10.0,
        "left_out": more.pop("left_out", 0),
        "averaged": False,
        "lr_share": more.pop("lr_share", 0.0),
        "best": best,
        "last": last,
        "images": images,
        "validations": more.pop("validations", 1),
        "window": more.pop("window", {}),
    }
    out.mkdir(exist_ok=True)
    if rows:
        (out / "metrics.csv").write_text("step,accuracy\n" + "".join(f"{a},{b}\n" for a, b in rows))
    assert not more
    found = summarise(learner, out, ended, facts, {**facts, "step": 500})
    return found, "\n".join(found.warnings)


def test_a_good_run_has_no_warning(tmp_path):
    assert told(tmp_path)[1] == ""


@pytest.mark.parametrize(
    ("accuracy", "images", "validations", "warned"),
    [
        (0.60, 500, 1, True),
        (0.64, 500, 1, True),  # the interval is 59.7 to 68.1 %
        (0.66, 500, 1, False),  # 61.7 to 70.0 %
        (0.66, 500, 100, True),  # the best of a hundred
        (0.72, 500, 100, False),
        (0.40, 500, 1, True),  # worse than chance
        (0.70, 20, 1, True),
    ],
)
def test_a_result_within_its_interval_of_the_commonest_class_is_warned_of(
    tmp_path, accuracy, images, validations, warned
):
    found, text = told(tmp_path, best=(accuracy, -1.0), last=(accuracy, -1.0), images=images, validations=validations)
    assert (
        "is not clearly better than that of always predicting the commonest class, 'common' (60.0 %); train longer"
        in text
    ) == warned
    assert found.commonest == "common"


def test_the_training_accuracy_is_compared_where_nothing_was_validated(tmp_path):
    assert (
        "always predicting the commonest class"
        in told(tmp_path, best=None, last=None, rows=[(50, 0.61), (100, 0.6)])[1]
    )
    assert told(tmp_path, best=None, last=None, rows=[(50, 0.6), (100, 0.9)])[1] == ""


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"step": 100, "optimiser": {"warmup": 150}, "lr_share": 0.7},
            "the run ended after 100 updates, within the 150 of `optimiser.warmup`",
        ),
        ({"lr_share": 0.3}, "the learning rate was still 30% of its maximum when the run ended; train longer"),
        ({"lr_share": 0.3, "ended": "interrupted"}, "when the run ended; continue by `resume`"),
        ({"lr_share": 1.0, "optimiser": {"schedule": "step"}}, "still 100% of its maximum"),
        (
            {"last": (0.62, -9.0)},
            "accuracy fell from 90.0 % at step 500 to 62.0 % at the end, so training may have diverged; try a lower",
        ),
        (
            {"best": None, "last": None, "rows": [(50, 0.9), (100, 0.6)]},
            "accuracy fell from 90.0 % at step 50 to 60.0 % at the end",
        ),
        (
            {"step": 400, "ended": "interrupted", "objective": TNetObjective(warm_up=0.5)},
            "the objective had not reached its last phase (looks: whole, later sampled); continue by `resume`",
        ),
        (
            {"left_out": 1},
            "1 batch was left out: with one image, batch norm gets a single value per channel; set a larger "
            "`batch_size`",
        ),
        ({"left_out": 2000}, "2,000 batches were left out"),
    ],
)
def test_what_else_is_warned_of(tmp_path, changes, words):
    assert words in told(tmp_path, **changes)[1]


@pytest.mark.parametrize(
    "changes",
    [
        {"lr_share": 1.0, "optimiser": {"schedule": "constant"}, "ended": "interrupted"},  # it was never to come down
        {"lr_share": 0.1, "optimiser": {"schedule": "step"}},
        {"lr_share": 0.5, "optimiser": {"schedule": "step", "step_factor": 0.5}},
        {"last": (0.85, -0.2)},  # a little worse than the best
        {"last": (0.5, -0.2), "images": 4, "best": (1.0, 0.0)},  # which may be chance
        {"step": 400, "objective": TNetObjective(warm_up=0.5), "max_time": 5.0},
        {"step": 150, "optimiser": {"warmup": 150}},
    ],
)
def test_what_is_not_warned_of(tmp_path, changes):
    text = told(tmp_path, **changes)[1]
    assert not any(words in text for words in ("fell", "learning rate", "phase", "warmup"))


@pytest.mark.parametrize(
    ("window", "expected"),
    [
        ({"sums": {"accuracy": 6.0, "loss": 9.0}, "counts": {"accuracy": 8, "loss": 8}}, 0.75),
        ({"sums": {"accuracy": 6.0}, "images": 12}, 0.5),  # of an older version
        ({"sums": {}, "counts": {}}, 0.9),  # what metrics.csv says last
        ({}, 0.9),
    ],
)
def test_updates_after_the_last_line_of_the_metrics_count(tmp_path, window, expected):
    """Those of a run that was interrupted between two lines."""
    assert told(tmp_path, best=None, last=None, rows=[(50, 0.9)], window=window)[0].training_accuracy == expected


def test_differences_are_told_by_flag():
    old = {"steps": 2, "optimiser": {"lr": 0.1, "group_lr": {}}, "gone": 1}
    new = {"steps": 2, "optimiser": {"lr": 0.2, "group_lr": {"head": 0.5}}, "objective": None}
    expected = ["optimiser.lr: 0.1 -> 0.2", "optimiser.group_lr: {} -> {'head': 0.5}", "gone: 1 -> None"]
    assert differences(new, old) == expected
    assert differences(old, old) == []


def test_a_summary_is_plain_json(tmp_path):
    found, _ = told(tmp_path)
    found.write(tmp_path)
    assert TrainingSummary(**json.loads((tmp_path / "summary.json").read_text())).result() == found.result()

"""A run that was cut short and resumed is the run that was not, to the last bit."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from foveal.errors import ConfigError, RunError
from foveal.recipes.fit_config import fit_config
from foveal.runs import Run, load
from foveal.training.callbacks import Checkpoints
from foveal.training.learner import Learner
from tests.training.tiny import config

ROOT = Path(__file__).parents[2]


def script(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "tests.training.tiny", *map(str, arguments)]
    return subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=120)


def same(one, other, where: str = "") -> None:
    """Equal to the last bit, through dicts and lists."""
    assert type(one) is type(other), where
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for i, pair in enumerate(zip(one, other, strict=True)):
            same(*pair, f"{where}.{i}")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    else:
        assert one == other, where


def same_runs(one: Path, other: Path) -> None:
    for name in ("last.ckpt", "best.ckpt"):
        parts = [torch.load(folder / name, weights_only=True) for folder in (one, other)]
        for key in ("state_dict", "optimizer_states", "average", "global_step"):
            same(parts[0].get(key), parts[1].get(key), f"{name} {key}")
        same(parts[0]["callbacks"]["Checkpoints"], parts[1]["callbacks"]["Checkpoints"])
        same(parts[0]["callbacks"]["Metrics"], parts[1]["callbacks"]["Metrics"])
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    assert metrics(one) == metrics(other)
    summaries = [str({**Run(folder).summary, "seconds": 0}).replace(str(folder), "RUN") for folder in (one, other)]
    assert summaries[0] == summaries[1]


def metrics(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return [
            {k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in csv.DictReader(file)
        ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The run that nothing interrupts: 16 forward passes, 8 updates, validated after 3, 6 and 8."""
    return fit_config(config(), tmp_path_factory.mktemp("whole") / "run", quiet=True).path


class Cut(Exception):
    pass


def cut(monkeypatch, owner: type, name: str, at: int) -> None:
    """Let the ``at``-th call of a method fail as if the machine had."""
    method, calls = getattr(owner, name), []

    def failing(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == at + 1:
            raise Cut
        return method(self, *args, **kwargs)

    monkeypatch.setattr(owner, name, failing)


def resumed(monkeypatch, folder: Path, owner: type, name: str, at: int, **changes) -> Path:
    with monkeypatch.context() as patch:
        cut(patch, owner, name, at)
        with pytest.raises(Cut):
            fit_config(config(**changes), folder, quiet=True)
    return fit_config(config(**changes), folder, resume=True, quiet=True).path


def test_killed_and_resumed(tmp_path, whole):
    assert script(tmp_path / "run", "{}", '{"kill_at": 9}').returncode == -9
    fit_config(None, tmp_path / "run", resume=True, quiet=True)
    same_runs(tmp_path / "run", whole)


@pytest.mark.parametrize(
    "batch", [2, 6, 11, 13]
)  # within the first update, after a validation, within an update, in the last epoch
def test_cut_in_a_step(tmp_path, monkeypatch, whole, batch):
    same_runs(resumed(monkeypatch, tmp_path / "run", Learner, "training_step", batch), whole)


@pytest.mark.parametrize("batch", [0, 3])
def test_cut_in_validation(tmp_path, monkeypatch, whole, batch):
    same_runs(resumed(monkeypatch, tmp_path / "run", Learner, "validation_step", batch), whole)


def test_cut_while_saving(tmp_path, monkeypatch, whole):
    same_runs(resumed(monkeypatch, tmp_path / "run", Checkpoints, "save", 4), whole)


def test_cut_between_sparse_checkpoints(tmp_path, monkeypatch):
    changes = {"save_every": 3, "val_every": 100, "ema": None, "log_every": 2, "accumulate": 1}
    plain = fit_config(config(**changes), tmp_path / "plain", quiet=True).path
    same_runs(resumed(monkeypatch, tmp_path / "run", Learner, "training_step", 11, **changes), plain)


def test_attention_is_followed_in_a_resumed_run_too(tmp_path, monkeypatch):
    """Every second update, once each; the last radius is the one that the run ends with."""
    options = {
        "name": "test_resnet_cifar",
        "image_size": 32,
        "attention": "softmax",
        "conv": "expatt",
        "conv_options": {"ratio": 0.25},
    }
    changes = {"model": options, "save_every": 3, "val_every": 100, "ema": None, "log_every": 2}
    plain = fit_config(config(**changes), tmp_path / "plain", quiet=True)
    run = resumed(monkeypatch, tmp_path / "run", Learner, "training_step", 11, **changes)
    assert (run / "attention.csv").read_text() == (plain.path / "attention.csv").read_text()
    with (run / "attention.csv").open() as file:
        rows = list(csv.DictReader(file))
    kinds = {("layer1.0.attention", "entropy"), ("layer1.0.attention", "peak"), ("layer1.0.conv1", "radius")}
    assert kinds < {(row["module"].removeprefix("network."), row["figure"]) for row in rows}
    assert [row["step"] for row in rows if row["module"].endswith("layer2.0.conv1")] == ["2", "4", "6", "8"]
    learned = plain.load_model(which="last").get_submodule(rows[-3]["module"]).radius()
    assert rows[-3]["figure"] == "radius" and float(rows[-3]["value"]) == pytest.approx(learned.item(), rel=1e-5)
    assert all(0 < float(row["value"]) <= 1 for row in rows if row["figure"] == "entropy")


def test_resume_without_validation_and_with_workers(tmp_path, monkeypatch):
    changes = {"data": {"name": "tiny_images", "val": 0}, "ema": None}
    plain = fit_config(config(**changes), tmp_path / "plain", quiet=True).path
    assert not (plain / "best.ckpt").exists()
    assert torch.load(plain / "last.ckpt", weights_only=True)["global_step"] == 8
    run = resumed(monkeypatch, tmp_path / "run", Learner, "training_step", 8, workers=1, **changes)
    assert (run / "model.safetensors").read_bytes() == (plain / "model.safetensors").read_bytes()


def test_interrupted_and_resumed(tmp_path, whole):
    stopped = script(tmp_path / "run", '{"save_every": 100}', '{"interrupt_at": 8}')
    assert stopped.returncode == 130
    assert stopped.stderr.strip().startswith("stopped after step 5; go on with: foveal fit")
    assert len(stopped.stderr.strip().splitlines()) == 1
    assert torch.load(tmp_path / "run/last.ckpt", weights_only=True)["global_step"] == 5
    assert (tmp_path / "run/model.safetensors").exists()
    fit_config(config(), tmp_path / "run", resume=True, quiet=True)
    same_runs(tmp_path / "run", whole)


def test_terminated_in_the_step_before_a_validation(tmp_path, whole):
    stopped = script(tmp_path / "run", "{}", '{"interrupt_at": 11, "signal": "SIGTERM"}')
    assert stopped.returncode == 130
    assert metrics(tmp_path / "run")[-1]["val_accuracy"]  # the validation that was due has happened
    fit_config(None, tmp_path / "run", resume=True, quiet=True)
    same_runs(tmp_path / "run", whole)


def test_a_finished_run_is_resumed_by_doing_nothing(whole, monkeypatch, capsys):
    before = {file.name: file.read_bytes() for file in whole.iterdir()}
    monkeypatch.setattr(Learner, "training_step", None)
    fit_config(None, whole, resume=True)
    said = capsys.readouterr()
    assert (
        said.err.startswith(f"{whole}: finished already, after step 8; to train longer, ")
        and "resume after" not in said.out
    )
    assert {file.name: file.read_bytes() for file in whole.iterdir()} == before


def test_a_run_can_be_prolonged_with_another_learning_rate(tmp_path):
    short = {"optimiser": {"schedule": "constant", "lr": 0.01}, "epochs": None}
    fit_config(config(**short, steps=2), tmp_path / "run", quiet=True)
    longer = {"optimiser": {"schedule": "constant", "lr": 0.002}, "epochs": None}
    fit_config(config(**longer, steps=4), tmp_path / "run", resume=True, quiet=True)
    rates = [float(row["lr"]) for row in metrics(tmp_path / "run") if row["lr"]]
    assert rates == [0.01, 0.01, 0.002, 0.002]


def test_resuming_says_where_it_goes_on_and_what_has_changed(tmp_path, capsys):
    short = {"ema": None, "epochs": None}
    fit_config(config(**short, steps=2), tmp_path / "run", quiet=True)
    assert capsys.readouterr().out == ""
    fit_config(
        config(**short, steps=3, log_every=5, optimiser={"lr": 0.002, "warmup": 2}), tmp_path / "run", resume=True
    )
    said = capsys.readouterr().out.splitlines()
    told = said.index("resume after step 2; changed:")
    assert sorted(said[told + 1 : told + 4]) == [
        "       log_every: 1 -> 5",
        "       optimiser.lr: 0.01 -> 0.002",
        "       steps: 2 -> 3",
    ]
    assert said[told + 4].startswith("run    3 updates")
    fit_config(
        config(**short, steps=4, log_every=5, optimiser={"lr": 0.002, "warmup": 2}),
        tmp_path / "run",
        resume=True,
        quiet=True,
    )
    assert capsys.readouterr().out == ""


def test_resuming_without_a_change_says_so(tmp_path, monkeypatch, capsys):
    changes = {"ema": None, "epochs": None, "steps": 3, "accumulate": 1}
    with monkeypatch.context() as patch:
        cut(patch, Learner, "training_step", 2)
        with pytest.raises(Cut):
            fit_config(config(**changes), tmp_path / "run", quiet=True)
    fit_config(None, tmp_path / "run", resume=True)
    assert "resume after step 2; no value is changed\n" in capsys.readouterr().out


def test_checkpoints_of_older_versions_are_resumed(tmp_path, monkeypatch):
    """They counted the images of all columns together, within a window too, and knew of validations the best score
    alone.
    """
    changes = {"ema": None, "accumulate": 1, "log_every": 4, "save_every": 1, "objective": {"name": "cross_entropy"}}
    plain = fit_config(config(**changes), tmp_path / "plain", quiet=True)
    with monkeypatch.context() as patch:
        cut(patch, Learner, "training_step", 7)
        with pytest.raises(Cut):
            fit_config(config(**changes), tmp_path / "run", quiet=True)
    for name in ("last.ckpt", "best.ckpt"):
        checkpoint = torch.load(tmp_path / "run" / name, weights_only=True)
        states = checkpoint["callbacks"]
        counts = set(states["Metrics"]["counts"].values())
        assert counts == {12 if name == "last.ckpt" else 4}  # three of the four updates of a window, and one
        states["Metrics"] = {"sums": states["Metrics"]["sums"], "images": counts.pop()}
        states["Checkpoints"] = {"best": states["Checkpoints"]["best"]}
        del checkpoint["left_out"]
        torch.save(checkpoint, tmp_path / "run" / name)
    run = fit_config(None, tmp_path / "run", resume=True, quiet=True)
    assert (run.path / "model.safetensors").read_bytes() == (plain.path / "model.safetensors").read_bytes()
    assert metrics(run.path) == metrics(plain.path)
    assert (
        run.summary["accuracy"] == plain.summary["accuracy"] and run.summary["kept_step"] == plain.summary["kept_step"]
    )


def test_another_seed_is_another_run(tmp_path):
    fit_config(config(epochs=None, steps=1), tmp_path / "run", quiet=True)
    with pytest.raises(ConfigError, match=r"^seed: differs from the run to be resumed"):
        fit_config(config(epochs=None, steps=2, seed=4), tmp_path / "run", resume=True, quiet=True)
    with pytest.raises(ConfigError, match=r"^model.base_size: differs"):
        fit_config(
            config(epochs=None, steps=2, model={**config().model, "base_size": 24}),
            tmp_path / "run",
            resume=True,
            quiet=True,
        )


@pytest.mark.parametrize("given", [True, False])
def test_a_run_of_an_earlier_version_goes_on_as_it_was(tmp_path, given):
    """It was written without ``model.fit_grid``, and looks at the square around its images of 24 x 32 pixels."""
    common = {"optimiser": {"schedule": "constant"}, "epochs": None}
    short, longer = config(**common, steps=1), config(**common, steps=2)
    common["model"] = {**short.model, "fit_grid": False}
    fit_config(config(**common, steps=2), tmp_path / "whole", quiet=True)
    fit_config(config(**common, steps=1), tmp_path / "run", quiet=True)
    file = tmp_path / "run" / "config.yaml"
    written = yaml.safe_load(file.read_text())
    assert written["model"].pop("fit_grid") is False
    file.write_text(yaml.safe_dump({**written, **({} if given else {"steps": 2})}))
    fit_config(longer if given else None, tmp_path / "run", resume=True, quiet=True)
    assert yaml.safe_load(file.read_text())["model"]["fit_grid"] is False
    resumed, whole = (load(tmp_path / name, which="last").state_dict() for name in ("run", "whole"))
    assert all(torch.equal(value, whole[key]) for key, value in resumed.items())
    with pytest.raises(ConfigError, match=r"^model.fit_grid: differs"):
        fit_config(
            config(epochs=None, steps=3, model={**short.model, "fit_grid": True}),
            tmp_path / "run",
            resume=True,
            quiet=True,
        )


class Hostile:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return (Path.touch, (self.target,))


def test_a_hostile_checkpoint_is_refused(tmp_path):
    run = fit_config(config(epochs=None, steps=1), tmp_path / "run", quiet=True)
    checkpoint = torch.load(run.path / "last.ckpt", weights_only=True)
    torch.save({**checkpoint, "extra": Hostile(tmp_path / "touched")}, run.path / "last.ckpt")
    torch.load(run.path / "last.ckpt", weights_only=False)
    assert (tmp_path / "touched").exists()  # the trap works
    (tmp_path / "touched").unlink()
    with pytest.raises(
        RunError, match=r"last.ckpt: holds more than tensors and plain values and was not opened; [^\n]*$"
    ):
        fit_config(config(epochs=None, steps=2), run.path, resume=True, quiet=True)
    assert not (tmp_path / "touched").exists()


def test_damaged_checkpoints(tmp_path):
    run = fit_config(config(epochs=None, steps=1), tmp_path / "run", quiet=True)
    whole = (run.path / "last.ckpt").read_bytes()
    more = config(epochs=None, steps=2)
    for content in (whole[: len(whole) // 2], b"", b"not a checkpoint"):
        (run.path / "last.ckpt").write_bytes(content)
        with pytest.raises(RunError, match=r"last.ckpt: is damaged or half written; [^\n]*$"):
            fit_config(more, run.path, resume=True, quiet=True)
    torch.save({"a": torch.zeros(1)}, run.path / "last.ckpt")
    with pytest.raises(RunError, match=r"is not a checkpoint of a run"):
        fit_config(more, run.path, resume=True, quiet=True)
    checkpoint = torch.load(run.path / "best.ckpt", weights_only=True)
    checkpoint["state_dict"]["model.classifier.bias"] = torch.zeros(7)
    torch.save(checkpoint, run.path / "last.ckpt")
    with pytest.raises(
        RunError, match=r"the weights do not fit the model, model.classifier.bias is \(7,\) where the model has \(3,\)"
    ):
        fit_config(more, run.path, resume=True, quiet=True)
    (run.path / "last.ckpt").unlink()
    with pytest.raises(RunError, match=r"there is no last.ckpt to go on from"):
        fit_config(more, run.path, resume=True, quiet=True)

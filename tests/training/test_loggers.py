"""Values that services get are those of metrics.csv, also of a resumed run."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import yaml
from lightning.pytorch.loggers import Logger

from foveal.data import get_data
from foveal.errors import ConfigError, StorageError
from foveal.models import create_classifier
from foveal.recipes.configure import configure
from foveal.recipes.fit_config import FitConfig, fit_config
from foveal.training import Training, fit
from foveal.training.loggers import sending
from tests.training.tiny import NORM_FREE, config

ROOT = Path(__file__).parents[2]
SHORT: dict[str, Any] = {"model": NORM_FREE, "ema": None, "accumulate": 1, "epochs": None}


def written(run: Path) -> dict[tuple[int, str], float]:
    """Values of metrics.csv by step and name."""
    with (run / "metrics.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    skipped = ("step", "epoch", "seconds")
    return {
        (int(row["step"]), key): float(value)
        for row in rows
        for key, value in row.items()
        if value and key not in skipped
    }


def in_two_parts(out: Path, name: str) -> Path:
    """A run of 3 updates that is resumed to 5."""
    for steps in (3, 5):
        run = fit_config(config(**SHORT, steps=steps, logger=[name]), out, quiet=True, resume=steps == 5)
    return run.path


@pytest.mark.slow
def test_mlflow_in_the_run_folder(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    pytest.importorskip("alembic")
    from mlflow.tracking import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    run = in_two_parts(tmp_path / "run", "mlflow")
    client = MlflowClient(f"sqlite:///{run / 'mlflow.db'}")
    found = client.search_runs([client.get_experiment_by_name("foveal").experiment_id])
    assert len(found) == 1 and found[0].info.status == "FINISHED" and found[0].info.run_name == "run"
    values = {
        (m.step, key): m.value
        for key in found[0].data.metrics
        for m in client.get_metric_history(found[0].info.run_id, key)
    }
    assert values == pytest.approx(written(run), rel=1e-5) and {step for step, _ in values} == {1, 2, 3, 4, 5}
    assert not (tmp_path / "mlruns").exists()


@pytest.mark.slow
def test_trackio_in_its_folder(tmp_path):
    """In another process, because Trackio reads its folder when it is imported."""
    pytest.importorskip("trackio")
    script = (
        "import json, sys; from pathlib import Path; from tests.training.test_loggers import in_two_parts, written\n"
        "run = in_two_parts(Path(sys.argv[1]), 'trackio')\n"
        "from trackio.sqlite_storage import SQLiteStorage as Storage\n"
        "print(json.dumps([Storage.get_logs('foveal', name) for name in Storage.get_runs('foveal')]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "run")],
        check=False,
        cwd=ROOT,
        env={**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio")},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    (logged,) = json.loads(done.stdout)  # nothing else is printed, and both parts are one run
    values = {(row["step"], k): v for row in logged for k, v in row.items() if k not in ("step", "timestamp")}
    assert values == pytest.approx(written(tmp_path / "run"), rel=1e-5) and len(values) > 20
    assert list((tmp_path / "trackio").iterdir())


def test_wandb_without_an_account(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = in_two_parts(tmp_path / "run", "wandb")
    parts = sorted((run / "wandb").glob("offline-run-*"))
    number = json.loads((run / "logger.json").read_text())["id"]
    assert [part.name.rpartition("-")[2] for part in parts] == [number] * 2
    assert all(next(part.glob("*.wandb")).stat().st_size for part in parts)


def test_several_loggers_on_the_command_line():
    for flags in (["--logger", "csv,tensorboard"], ["--logger", "csv", "--logger", "tensorboard"]):
        wanted, _, _ = configure("demo", flags)
        assert wanted.logger == ["csv", "tensorboard"]
    assert configure("demo", [])[0].logger == [] and configure("demo", ["--freeze", "backbone"])[0].freeze == [
        "backbone"
    ]
    with pytest.raises(ConfigError, match=r"tensorboard: there is no such option any more; use --logger tensorboard$"):
        configure("demo", ["--tensorboard"])
    with pytest.raises(
        ConfigError, match=r"channels_last: there is no such option any more; leave it out, because [^\n]+$"
    ):
        configure("demo", ["--channels-last"])
    with pytest.raises(ConfigError, match=r"^logger: 'csw' is not known; use one of csv, tensorboard, wandb, mlflow"):
        FitConfig(epochs=1, logger=["csw"]).check()


def test_a_package_that_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(ConfigError, match=r"^logger: trackio is not installed; pip install 'foveal\[trackio\]'$"):
        fit_config(config(**SHORT, steps=1, logger=["trackio"]), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.parametrize("tensorboard", [True, False])
def test_runs_of_earlier_versions_are_resumed(tmp_path, capsys, tensorboard):
    logger = ["tensorboard"] if tensorboard else []
    run = fit_config(config(**SHORT, steps=2, logger=logger), tmp_path / "run", quiet=True).path
    values = yaml.safe_load((run / "config.yaml").read_text())
    for key in ("logger", "freeze", "sampling", "mixup", "label_smoothing", "nodes"):
        del values[key]
    del values["optimiser"]["layer_decay"], values["objective"]["label_smoothing"]
    (run / "config.yaml").write_text(
        yaml.safe_dump({**values, "steps": 3, "tensorboard": tensorboard, "channels_last": False})
    )
    fit_config(None, run, resume=True)
    assert "resume after step 2; no value is changed\n" in capsys.readouterr().out
    values = yaml.safe_load((run / "config.yaml").read_text())
    assert values["logger"] == logger and "channels_last" not in values
    assert torch.load(run / "last.ckpt", weights_only=True)["global_step"] == 3


# ---- objects of Lightning


class Kept(Logger):
    name, version = "kept", 0

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[tuple[int, str], float] = {}

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        pass

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.values |= {(step or 0, key): value for key, value in metrics.items()}


class Counting(pl.Callback):
    def __init__(self) -> None:
        self.steps = 0

    def state_dict(self) -> dict[str, int]:
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.steps = state["steps"]

    def on_train_batch_end(self, *_: Any) -> None:
        self.steps += 1


def test_callbacks_and_loggers_of_lightning(tmp_path):
    data, training = get_data("tiny_images"), Training(steps=3, batch_size=4, log_every=1, device="cpu")
    logger, counting = Kept(), Counting()

    def go(steps: int, **how: Any) -> Path:
        model = create_classifier("norm_free_16", num_classes=3)
        training.steps = steps
        return fit(model, data, tmp_path / "run", training=training, quiet=True, loggers=[logger], **how).path

    run = go(3, callbacks=[counting])
    assert counting.steps == 3 and logger.values == pytest.approx(written(run), rel=1e-5)
    again = Counting()
    go(5, callbacks=[again], resume=True)
    assert again.steps == 5  # its state was saved with the run
    assert logger.values == pytest.approx(written(run), rel=1e-5)
    with pytest.raises(ConfigError, match=r"^callbacks: an object of the type int was given; give a list of [^\n]+$"):
        go(5, callbacks=[3])


def test_a_service_that_fails_leaves_a_run_that_can_be_resumed(tmp_path):
    class Failing(Kept):
        def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
            if step == 2:
                raise RuntimeError("the server\nis gone.")

    model = create_classifier("norm_free_16", num_classes=3)
    training = Training(steps=4, batch_size=4, log_every=1, save_every=1, device="cpu")
    with pytest.raises(StorageError) as error:
        fit(model, get_data("tiny_images"), tmp_path / "run", training=training, quiet=True, loggers=[Failing()])
    assert str(error.value).startswith("Failing: cannot be written (the server is gone); the run is safe in ")
    with pytest.raises(StorageError, match=r"^Kept: cannot be written \(KeyError\)$"), sending(Kept()):
        raise KeyError

"""Signals to a run, alone or with its workers: it ends after the update, saves, and is gone on with as if nothing had
been.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from foveal.data import get_data
from foveal.errors import StorageError
from foveal.recipes.fit_config import FitConfig, fit_config
from foveal.runs import Run
from foveal.training import fitting, stopping
from foveal.training.callbacks import Checkpoints
from foveal.training.learner import Learner
from foveal.training.report import summarise
from foveal.training.stopping import Interrupted, StopSignals
from tests.training.test_kills import short
from tests.training.test_resume import metrics, same_runs
from tests.training.tiny import NORM_FREE, config

STOPS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    for i in range(12):
        path = root / ("train" if i < 8 else "val") / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((24, 32, 3), 20 * i, np.uint8)).save(path)
    (root / "train" / "a" / "spoilt.png").write_bytes(b"no image")
    return root


def of_files(photos: Path, workers: int, **changes: object) -> FitConfig:
    data = {"name": "folder", "root": str(photos)}
    return config(
        model=NORM_FREE, data=data, workers=workers, accumulate=1, epochs=None, steps=6, val_every=4, **changes
    )


@pytest.fixture(scope="module")
def whole(photos, tmp_path_factory) -> Path:
    return fit_config(of_files(photos, 0), tmp_path_factory.mktemp("whole") / "run", quiet=True).path


def at(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, call: int, *numbers: int, group: bool = False) -> None:
    """Send signals at the beginning of a call of a method: to this process and, as to a group, to its workers."""
    method, calls = getattr(owner, name), []

    def signalled(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            for number in numbers:
                for process in [*(children() if group else []), os.getpid()]:
                    os.kill(process, number)
        return method(self, *args, **kwargs)

    monkeypatch.setattr(owner, name, signalled)


def children() -> list[int]:
    return [int(word) for word in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


def stopped(out: Path, wanted: FitConfig, number: int = signal.SIGTERM, **how: bool) -> None:
    with pytest.raises(KeyboardInterrupt) as end:
        fit_config(wanted, out, quiet=True, **how)
    assert end.value.number == number


@pytest.mark.parametrize(
    ("workers", "group", "number"),
    [
        *((0, False, number) for number in STOPS),
        *(pytest.param(2, True, n, marks=[pytest.mark.slow] if n != signal.SIGTERM else []) for n in STOPS),
    ],
)
def test_a_signal_in_a_step(tmp_path, monkeypatch, photos, whole, number, workers, group):
    """Sent twice, as `timeout` does."""
    with monkeypatch.context() as patch:
        at(patch, Learner, "training_step", 3, number, number, signal.SIGCONT, group=group)
        stopped(tmp_path / "run", of_files(photos, workers, save_every=100), number)
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["global_step"] == 3
    assert Run(tmp_path / "run").summary["ended"] == "interrupted"
    fit_config(of_files(photos, workers), tmp_path / "run", resume=True, quiet=True)
    same_runs(tmp_path / "run", whole)
    assert (tmp_path / "run" / "bad_images.csv").read_text() == (whole / "bad_images.csv").read_text()


@pytest.mark.parametrize(
    ("owner", "name", "call", "saved"),
    [
        (Learner, "validation_step", 1, 4),
        (Checkpoints, "save", 1, 2),
        (Learner, "on_save_checkpoint", 2, 3),
        (Learner, "training_step", 1, 1),
    ],
)
def test_a_signal_elsewhere(tmp_path, monkeypatch, photos, whole, owner, name, call, saved):
    with monkeypatch.context() as patch:
        at(patch, owner, name, call, signal.SIGTERM)
        stopped(tmp_path / "run", of_files(photos, 0))
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["global_step"] == saved
    fit_config(None, tmp_path / "run", resume=True, quiet=True)
    same_runs(tmp_path / "run", whole)


@pytest.mark.parametrize(
    ("owner", "name"),
    [(Learner, "configure_optimizers"), (Learner, "on_train_start"), (Learner, "transfer_batch_to_device")],
)
@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_signal_before_the_first_update(tmp_path, monkeypatch, capsys, photos, owner, name, workers):
    """Nothing is left of the run; a run that is resumed stays."""
    with monkeypatch.context() as patch:
        at(patch, owner, name, 1, signal.SIGHUP, signal.SIGHUP, group=True)
        stopped(tmp_path / "made" / "run", of_files(photos, workers), signal.SIGHUP)
    assert not list(tmp_path.iterdir())
    before = fit_config(
        FitConfig.from_dict({**of_files(photos, 0).to_dict(), "steps": 2}), tmp_path / "run", quiet=True
    ).path
    weights = (before / "model.safetensors").read_bytes()
    with monkeypatch.context() as patch:
        at(patch, owner, name, 1, signal.SIGTERM)
        stopped(before, of_files(photos, workers), resume=True)
    assert (before / "model.safetensors").read_bytes() == weights


def test_a_signal_after_the_last_update_changes_nothing(tmp_path, monkeypatch, photos, whole):
    monkeypatch.setattr(fitting, "summarise", lambda *args: os.kill(os.getpid(), signal.SIGTERM) or summarise(*args))
    assert fit_config(of_files(photos, 0), tmp_path / "run", quiet=True).summary["ended"] == "finished"
    same_runs(tmp_path / "run", whole)


def test_another_ctrl_c_ends_at_once(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(stopping.time, "monotonic", lambda: now[0])
    learner = Learner.__new__(Learner)
    object.__setattr__(learner, "stop_requested", False)
    with StopSignals() as signals:
        signals._learner = learner
        os.kill(os.getpid(), signal.SIGTERM)
        assert learner.stop_requested
        os.kill(os.getpid(), signal.SIGINT)
        now[0] += 60
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(SystemExit) as end:
            os.kill(os.getpid(), signal.SIGINT)
    assert end.value.code == 130


def test_who_took_signals_before_takes_them_again():
    ignored = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        before = [signal.getsignal(number) for number in STOPS]
        with pytest.raises(Interrupted), StopSignals():
            os.kill(os.getpid(), signal.SIGHUP)  # nohup
            os.kill(os.getpid(), signal.SIGTERM)
        assert [signal.getsignal(number) for number in STOPS] == before
    finally:
        signal.signal(signal.SIGHUP, ignored)


def test_workers_end_with_a_killed_parent_and_leave_no_lock(tmp_path, photos):
    program = f"""if True:
        import os, signal
        from tests.training.test_signals import children, of_files
        from foveal.recipes.fit_config import fit_config
        from foveal.training.learner import Learner
        from pathlib import Path
        step = Learner.training_step
        def marked(self, batch, number):
            if number == 3:
                print(*children(), flush=True)
                os.kill(os.getpid(), signal.SIGKILL)
            return step(self, batch, number)
        Learner.training_step = marked
        fit_config(of_files(Path({str(photos)!r}), 2), {str(tmp_path / "run")!r}, quiet=True)
    """
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2]
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    workers = ended.stdout.split()
    assert len(workers) >= 2
    fit_config(None, tmp_path / "run", resume=True, quiet=True)
    while any(
        "python" in Path(f"/proc/{worker}/comm").read_text() for worker in workers if Path(f"/proc/{worker}").exists()
    ):
        time.sleep(0.1)  # until the watch has looked; a test that hangs here has failed
    assert len(metrics(tmp_path / "run")) == 6 + 2


def test_the_second_of_two_runs_in_a_folder_is_told(tmp_path, monkeypatch):
    """The second is a fork of the first, as a worker is."""
    out, step = tmp_path / "run", Learner.training_step

    def marked(self, *args):
        child = os.fork()
        if not child:
            try:
                fit_config(short(), out, quiet=True, overwrite=True)
            except StorageError as error:
                (tmp_path / "told").write_text(str(error))
            os._exit(0)
        os.waitpid(child, 0)
        return step(self, *args)

    monkeypatch.setattr(Learner, "training_step", marked)
    fit_config(short(), out, quiet=True)
    told = f"{out}: another process trains this run; wait until it has ended, or choose another `out`"
    assert (tmp_path / "told").read_text() == told
    assert not (out / ".lock").exists()


def test_data_are_read_while_signals_wait(photos):
    """A worker that is asked to end by its parent ends; by anybody else it does not."""
    loader = get_data("folder", root=str(photos)).loader(
        "train", batch_size=2, workers=1, seed=0, first_looks=None, device="cpu"
    )
    batches = iter(loader)
    next(batches)
    (worker,) = loader.workers._iterator._workers
    for number in STOPS:
        subprocess.run(["kill", f"-{number.value}", str(worker.pid)], check=True)  # another process than the parent
    assert sum(len(batch) for batch in batches) == 6
    worker.terminate()
    worker.join()
    assert worker.exitcode == 0

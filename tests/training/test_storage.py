"""A file that cannot be written ends a run with one sentence: which file, what is safe, how to go on."""

from __future__ import annotations

import builtins
import errno
import io
import os
import resource
import shutil
from pathlib import Path

import pytest
import torch

from foveal.cli import main
from foveal.errors import StorageError
from foveal.recipes.fit_config import FitConfig, fit_config
from tests.training.test_kills import NETWORK, same, short
from tests.training.tiny import config


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return fit_config(short(), tmp_path_factory.mktemp("whole") / "run", quiet=True).path


def fill(monkeypatch, name: str, after: int = 0) -> None:
    """Let opening a file fail whose name has a part, after it was opened so often."""
    count, opened = [0], io.open

    def full(file, mode="r", *args, **kwargs):
        if isinstance(file, str | os.PathLike) and name in Path(file).name and set(mode) & set("wax+"):
            count[0] += 1
            if count[0] > after:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return opened(file, mode, *args, **kwargs)

    monkeypatch.setattr(io, "open", full)
    monkeypatch.setattr(builtins, "open", full)


@pytest.mark.parametrize(
    ("name", "after", "saved"),
    [
        ("config.yaml", 0, None),
        ("config.json", 0, None),
        ("metrics.csv", 0, None),
        ("metrics.csv", 2, 1),
        ("bad_images.csv", 0, 1),
        ("attention.csv", 1, 1),
        ("last.ckpt", 0, None),
        ("last.ckpt", 1, 1),
        ("best.ckpt", 0, None),
        ("model.safetensors", 0, 2),
        ("summary.json", 0, 2),
    ],
)
def test_every_file_of_a_run(tmp_path, monkeypatch, whole, name, after, saved):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        fill(patch, name, after)
        with pytest.raises(StorageError) as told:
            fit_config(short(), out, quiet=True)
    first = f"{out / name}: cannot be written (No space left on device); "
    if saved is None:
        safe = (
            "nothing was saved before, and nothing is left of the run; make space or choose another `out`, and "
            "start again"
        )
        assert not out.exists()
    else:
        safe = (
            f"the run is safe in {out / 'last.ckpt'}, of step {saved}; when there is space, go on with: foveal fit "
            f"--resume --out {out}"
        )
        assert torch.load(out / "last.ckpt", weights_only=True)["global_step"] == saved
    assert str(told.value) == first + safe
    fit_config(short(), out, resume=saved is not None, quiet=True)
    same(out, whole)


def test_a_limit_of_the_size_of_files(tmp_path, whole):
    """The first checkpoint is larger than the limit, and what was there before is small."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = (whole / "last.ckpt").stat().st_size
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, limits[1]))
        with pytest.raises(
            StorageError, match=r"last\.ckpt: cannot be written \(File too large\); nothing was saved before"
        ):
            fit_config(short(), tmp_path / "run", quiet=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def test_a_table_that_is_a_full_device(tmp_path, whole):
    run = fit_config(FitConfig.from_dict({**short().to_dict(), "steps": 1}), tmp_path / "run", quiet=True).path
    for name in ("metrics.csv", "attention.csv"):
        (run / name).unlink()
        (run / name).symlink_to("/dev/full")
    safe = r"the run is safe in .*, of step 1; when there is space, go on with: foveal fit --resume --out "
    with pytest.raises(StorageError, match=rf"attention\.csv: cannot be written \(No space left on device\); {safe}"):
        fit_config(short(), run, resume=True, quiet=True)


def test_half_a_line_is_not_kept(tmp_path, whole):
    """However much of its last line a table has, the line is written again, once."""
    run = fit_config(FitConfig.from_dict({**short().to_dict(), "steps": 1}), tmp_path / "run", quiet=True).path
    full = {name: (whole / name).read_bytes() for name in ("metrics.csv", "attention.csv", "bad_images.csv")}
    for cut in (1, 2, 7):
        shutil.copytree(run, again := tmp_path / str(cut))
        for name, content in full.items():
            (again / name).write_bytes(content[:-cut])
        fit_config(short(), again, resume=True, quiet=True)
        same(again, whole)
    for name in full:  # started only
        (run / name).write_bytes(b"")
    fit_config(short(), run, resume=True, quiet=True)
    for name in full:
        assert (run / name).read_bytes().splitlines()[0] == full[name].splitlines()[0]


def test_tensorboard(tmp_path, monkeypatch):
    """It writes in a thread, and tells at the next number, or at the end."""
    writer = pytest.importorskip("tensorboard.summary.writer.record_writer")

    def full(self, *args, **kwargs):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(writer.RecordWriter, "write", full)
    with pytest.raises(StorageError, match=r"tensorboard: cannot be written \(Disk quota exceeded\); "):
        fit_config(config(epochs=None, steps=1, logger=["tensorboard"]), tmp_path / "run", quiet=True)


def test_the_command(tmp_path, monkeypatch, capsys):
    fill(monkeypatch, "last.ckpt")
    data = [
        "--data.canvas",
        "96",
        "--data.digit",
        "[12, 16]",
        "--data.distractors",
        "1",
        "--data.train",
        "8",
        "--data.val",
        "4",
    ]
    network = [
        "--model",
        "test_resnet",
        "--model.image_size",
        "32",
        "--batch-size",
        "4",
        "--steps",
        "1",
        "--device",
        "cpu",
        "--quiet",
    ]
    assert main(["fit", "--data", "digits", *data, *network, "--out", str(tmp_path / "run")]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"foveal: {tmp_path / 'run' / 'last.ckpt'}: cannot be written (No space left on device); ")
    assert said.count("\n") == 1
    assert NETWORK["name"] not in said


def test_a_run_continues_if_its_output_cannot_be_written(tmp_path, monkeypatch):
    with open("/dev/full", "w") as full:  # noqa: PTH123
        monkeypatch.setattr("sys.stdout", full)
        monkeypatch.setattr("sys.stderr", full)
        fit_config(config(epochs=None, steps=1), tmp_path / "run")
    assert (tmp_path / "run" / "summary.json").exists()

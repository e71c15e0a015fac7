"""``foveal fit`` as a command: what it says, where, and that errors come before anything else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from foveal.cli import main
from foveal.errors import ConfigError
from foveal.host import usable_device
from foveal.prediction import find_device
from foveal.recipes.fit_config import FitConfig
from tests.training.tiny import config

TINY = ["--model", "test_resnet", "--model.image_size", "32", "--batch-size", "4", "--steps", "2", "--device", "cpu"]


def photos(root: Path, classes: tuple[str, ...] = ("cat", "dog"), count: int = 5) -> Path:
    rng = np.random.default_rng(0)
    for name in classes:
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(root / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("command")
    assert (
        main(["fit", "--data.root", str(photos(folder / "photos")), *TINY, "--out", str(folder / "run"), "--quiet"])
        == 0
    )
    return folder / "run"


def failure(capsys, *argv) -> str:
    """The one sentence of a command that fails, which is all that it prints."""
    assert main([*map(str, argv)]) in (1, 2)
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and said.err.startswith("foveal: "), said
    return said.err.strip().removeprefix("foveal: ")


def test_at_the_end_stand_the_result_and_the_next_commands(run, capsys, tmp_path):
    out = tmp_path / "run"
    assert main(["fit", "--data.root", str(run.parent / "photos"), *TINY, "--out", str(out)]) == 0
    said = capsys.readouterr()
    result = said.out[said.out.index("run    2 updates") :].splitlines()
    assert result[1].startswith("result accuracy ") and "on 2 validation images (95 % interval: " in result[1]
    assert result[3:] == [
        f"kept   weights of step 2 in {out}/model.safetensors",
        f"next   foveal evaluate {out}",
        f"       foveal predict {out} IMAGES --out labels.csv",
        f"       foveal explain {out} IMAGE",
    ]
    assert "step 1/2  epoch " in said.err and "step 2/2  epoch " in said.err
    assert "foveal: an accuracy of " in said.err and "within the 100 of `optimiser.warmup`" in said.err


def test_quiet_prints_the_result_and_the_warnings_alone(run, capsys):
    assert main(["fit", "--out", str(run), "--resume", "--steps", "3", "--quiet"]) == 0
    said = capsys.readouterr()
    assert [line[:7] for line in said.out.splitlines()] == ["run    ", "result ", "       "]
    assert said.err and all(line.startswith("foveal: ") for line in said.err.splitlines())


@pytest.mark.parametrize("device", ["cuda", "cuda:7", "meta", "gpu", "hpu"])
def test_a_device_that_is_not_there_is_told_before_anything_is_printed(run, capsys, monkeypatch, device):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    if torch.cuda.device_count():
        monkeypatch.setattr("torch.empty", lambda *a, **k: (_ for _ in ()).throw(RuntimeError))
    words = f"--device {device}: this machine has no such device that torch can use; try auto or cpu"
    image, root = run.parent / "photos" / "cat" / "0.png", run.parent / "photos"
    flags = [x for x in TINY if x not in ("--device", "cpu")]
    commands = [
        ["fit", "--data.root", root, *flags, "--out", run.parent / "new"],
        ["fit", "--out", run, "--resume", "--steps", "9"],
        ["fit", "demo", "--out", run.parent / "new"],
        ["predict", run, image],
        ["evaluate", run],
        ["explain", run, image, "--out", run.parent / "page.html"],
        ["occlude", run, "--locations", "1"],
        ["compare", run, run],
    ]
    for command in commands:
        assert failure(capsys, *command, "--device", device) == words, command
    assert not (run.parent / "new").exists() and not (run.parent / "page.html").exists()


def test_devices_are_as_many_as_there_are(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert usable_device("auto").type == "cuda"
    with pytest.raises(ConfigError, match=r"^`devices` 2: this machine has 1 GPU; use `devices` 1$"):
        usable_device("auto", 2)
    assert usable_device("cpu", 2) == find_device("cpu")
    with pytest.raises(ConfigError, match=r"^`devices` 2: but `device` cpu:1 is a single one; use `device` cpu$"):
        FitConfig(device="cpu:1", devices=2, steps=1).check()


def test_a_processor_may_have_a_number(tmp_path):
    from foveal.recipes.fit_config import fit_config

    assert (
        fit_config(config(device="cpu:0", epochs=None, steps=1, ema=None), tmp_path / "run", quiet=True).summary["step"]
        == 1
    )


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["photos"], "photos: this is not a recipe, but a folder; use --data.root photos to train on its images"),
        (["photos/cat/"], "photos/cat/: this is not a recipe, but a folder; use --data.root photos/cat"),
        (["run"], "run: this is not a recipe, but a run folder; continue the run with foveal fit --resume --out run"),
        (["labels.csv"], "labels.csv: this is not a recipe, but a table; use --data manifest --data.file labels.csv"),
        (
            ["photos/cat/0.png"],
            "photos/cat/0.png: this is not a recipe, but a file of another kind; give a file that ends in .yaml",
        ),
        (
            ["--epochs", "3", "photos"],
            "photos: not expected here; the recipe comes first, then values after --key; give a folder of images",
        ),
        (
            ["--data", "photos"],
            "photos: there is no data set of this name; use --data.root photos for the images in this folder",
        ),
    ],
)
def test_a_folder_where_a_recipe_belongs(run, capsys, monkeypatch, argv, words):
    (run.parent / "labels.csv").touch()
    monkeypatch.chdir(run.parent)
    assert failure(capsys, "fit", *argv).startswith(words)


def test_a_folder_does_not_hide_a_recipe_of_its_name(capsys, monkeypatch, tmp_path):
    (tmp_path / "demo").mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(["fit", "demo", "--help"]) == 0


def test_one_class_only(capsys, tmp_path):
    root, out = photos(tmp_path / "photos", ("cat",)), tmp_path / "runs" / "run"
    said = failure(capsys, "fit", "--data.root", root, *TINY, "--out", out)
    assert said == f"{root}: there is only one class, 'cat'; give images of two classes or more"
    assert not (tmp_path / "runs").exists()


def test_what_cannot_be_trained_leaves_the_run_in_the_way(run, capsys):
    before = (run / "model.safetensors").read_bytes()
    batch = [
        "--model",
        "test_resnet",
        "--model.image_size",
        "16",
        "--batch-size",
        "1",
        "--steps",
        "2",
        "--device",
        "cpu",
    ]
    said = failure(capsys, "fit", "--data.root", run.parent / "photos", *batch, "--out", run, "--overwrite")
    assert said.startswith(
        "batch_size: 1 leaves one image, of which batch norm in test_resnet gets a single value per channel"
    )
    assert (run / "model.safetensors").read_bytes() == before

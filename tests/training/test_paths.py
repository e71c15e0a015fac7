"""A run knows its files from any folder, whatever the paths were relative to when it was trained."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from foveal.cli import main
from foveal.models import create_model
from foveal.runs import with_absolute_paths

FIT = [
    "--model",
    "test_resnet",
    "--model.image_size",
    "32",
    "--steps",
    "1",
    "--batch-size",
    "4",
    "--device",
    "cpu",
    "--quiet",
]


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The current folder, with images of two classes and a table of them."""
    lines = ["path,label"]
    for split in ("train", "val"):
        for i, name in enumerate(("cat", "dog", "cat", "dog")):
            path = tmp_path / "home" / "photos" / split / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((24, 30, 3), 60 * i, np.uint8)).save(path)
            lines.append(f"{path.relative_to(tmp_path / 'home' / 'photos')},{name}")
    (tmp_path / "home" / "photos" / "table.csv").write_text("\n".join(lines))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    return tmp_path / "home"


def stored(run: Path) -> dict:
    return yaml.safe_load((run / "config.yaml").read_text())


@pytest.mark.parametrize(
    ("flags", "paths"),
    [
        (["--data.root", "photos"], {"root": "photos"}),
        (["--data.root", "./photos/"], {"root": "photos"}),
        (["--data", "manifest", "--data.file", "photos/table.csv"], {"file": "photos/table.csv", "root": None}),
        (
            ["--data", "manifest", "--data.file", "photos/table.csv", "--data.root", "photos"],
            {"file": "photos/table.csv", "root": "photos"},
        ),
    ],
)
def test_the_data_of_a_run_are_found_from_anywhere(home, monkeypatch, flags, paths):
    assert main(["fit", *flags, *FIT, "--out", "run"]) == 0
    assert {key: stored(home / "run")["data"][key] for key in paths} == {
        key: path and str(home / path) for key, path in paths.items()
    }
    monkeypatch.chdir(home.parent / "elsewhere")
    assert main(["data", str(home / "run"), "--export", "samples", "--split", "val", "--count", "1"]) == 0
    assert len(list(Path("samples").iterdir())) == 1


def test_a_run_is_resumed_from_anywhere_and_by_either_spelling(home, monkeypatch):
    assert main(["fit", "--data.root", "photos", *FIT, "--out", "run"]) == 0
    assert main(["fit", "--data.root", "photos", *FIT, "--out", "run", "--resume"]) == 0
    monkeypatch.chdir(home.parent / "elsewhere")
    assert main(["fit", *FIT, "--out", str(home / "run"), "--resume"]) == 0
    assert stored(home / "run")["data"]["root"] == str(home / "photos")


def test_runs_with_relative_paths_work_where_they_were_trained(home, monkeypatch, capsys):
    """As older versions wrote them."""
    assert main(["fit", "--data.root", "photos", *FIT, "--out", "run"]) == 0
    config = stored(home / "run")
    (home / "run" / "config.yaml").write_text(yaml.safe_dump({**config, "data": {**config["data"], "root": "photos"}}))
    before = (home / "run" / "config.yaml").read_bytes()
    assert main(["data", "run"]) == 0
    assert main(["fit", *FIT, "--out", "run", "--resume"]) == 0
    (home / "run" / "config.yaml").write_bytes(before)
    monkeypatch.chdir(home.parent / "elsewhere")
    capsys.readouterr()
    assert main(["evaluate", str(home / "run"), "--quiet"]) == 1
    said = capsys.readouterr().err.strip()
    assert (
        "\n" not in said
        and f"{home / 'run'}: was trained on photos, a path from the folder where training was started" in said
    )
    assert said.endswith("run the command there, or give --data.root PATH")
    assert main(["data", str(home / "run"), "--data.root", str(home / "photos")]) == 0


def test_a_missing_relative_path_says_where_it_was_looked_for(home, capsys):
    assert main(["fit", "--data.root", "fotos", *FIT, "--out", "run"]) == 1
    assert f"fotos: there is no such file or folder in {home}; correct the path" in capsys.readouterr().err


def test_files_of_weights_are_kept_as_absolute_paths(home):
    torch.save(create_model("test_resnet", num_classes=2).state_dict(), "weights.pth")
    run = ["fit", "--data.root", "photos", *FIT]
    assert main([*run, "--model.pretrained", "weights.pth", "--out", "first"]) == 0
    assert stored(home / "first")["model"]["pretrained"] == str(home / "weights.pth")
    assert main([*run, "--model.pretrained", "weights.pth", "--out", "first", "--resume"]) == 0
    assert main([*run, "--init-from", "first", "--out", "second"]) == 0
    assert stored(home / "second")["init_from"] == str(home / "first")
    shutil.rmtree(home / "first")
    assert main(["predict", "second", "photos/val", "--device", "cpu", "--quiet"]) == 0


def test_what_is_no_path_stays(home):
    config = {
        "model": {"name": "tnet", "pretrained": True, "locator_pretrained": "w.pth"},
        "data": {"name": "x", "root": "s3://bucket/photos"},
    }
    same = with_absolute_paths({**config, "seed": 3})
    assert same["model"] == {"name": "tnet", "pretrained": True, "locator_pretrained": str(home / "w.pth")}
    assert same["data"] == config["data"] and same["seed"] == 3 and same["init_from"] is None
    assert with_absolute_paths({"data": {"root": "~/photos"}})["data"]["root"] == os.path.expanduser("~/photos")  # noqa: PTH111

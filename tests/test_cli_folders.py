"""Folders on the command line: training, prediction and ``foveal data`` find the same images and report the files that
they leave out.
"""

import os

import pytest

from foveal.cli import main
from foveal.data import get_data
from foveal.formats import SUFFIXES
from foveal.prediction import find_images, predict
from tests.data.layouts import make_folder, save_image


@pytest.fixture
def photos(tmp_path):
    """Two classes of three images each, with other files, system files and circular links."""
    root = make_folder(tmp_path / "photos", images=3, splits=())
    for name in (
        "0.jfif",
        "1.avif",
        "2.heic",
        "3.jxl",
        "4.dcm",
        "5.czi",
        "6.ptif",
        "7.tf8",
        "8.pnm",
        "9.img",
        "x.xcf",
        "Thumbs.db",
    ):
        (root / "class_0" / name).write_bytes(bytes(100))
    for name in ("@eaDir/1.jpg", "class_1/@eaDir/1.jpg", "__MACOSX/1.jpg", ".hidden/1.jpg", "class_1/.2.jpg"):
        save_image(root / name, 1)
    (root / "class_0" / "up").symlink_to("..")
    os.mkfifo(root / "class_1" / "pipe.png")
    return root


LEFT_OUT = {
    "hidden": 2,
    "made by the system or another program": 4,
    "suffix of no image format": 1,
    "link to a folder that is searched already": 1,
    "no regular file": 1,
    "suffix with other uses too; name the file to read it": 1,
}


def told(text: str) -> dict[str, int]:
    """Reason to count, from lines of a command's output."""
    lines = [line.partition("left out ")[2] for line in text.splitlines() if "left out " in line]
    return {line.partition("(")[2].partition("): ")[0]: int(line.split()[0]) for line in lines}


def test_training_and_prediction_find_the_same(photos):
    data = get_data("folder", root=str(photos), val_fraction=0)
    trained = [data.train.path(i) for i in range(len(data.train))]
    assert len(trained) == 15
    for name in (photos, f"{photos}/**", f"{photos}/*"):
        assert find_images([name]) == [(path, None) for path in trained]


def test_data_fit_and_predict_tell_what_is_left_out(capsys, photos, tmp_path):
    assert main(["data", "folder", "--data.root", str(photos)]) == 0
    assert told(capsys.readouterr().out) == LEFT_OUT
    fit = [
        "fit",
        "--data.root",
        str(photos),
        "--model",
        "test_resnet",
        "--model.image_size",
        "64",
        "--steps",
        "1",
        "--device",
        "cpu",
    ]
    assert main([*fit, "--workers", "0", "--batch-size", "4", "--out", str(tmp_path / "run")]) == 0
    assert told(capsys.readouterr().out) == LEFT_OUT
    command = ["predict", str(tmp_path / "run"), str(photos), "--device", "cpu"]
    main([*command, "--out", str(tmp_path / "rows.csv")])
    assert told(capsys.readouterr().err) == LEFT_OUT
    main([*command, "--quiet"])
    assert told("".join(capsys.readouterr())) == {}


def test_predict_names_folders_that_cannot_be_searched(photos, model, monkeypatch):
    closed = photos / "class_1"
    scandir = os.scandir

    def refusing(path):
        if str(path) == str(closed):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    rows = predict(model, photos, device="cpu").rows
    (row,) = [row for row in rows if row["path"] == str(closed)]
    assert row["error"].startswith(f"{closed}: the folder cannot be searched (Permission denied)")


@pytest.mark.parametrize("command", ["predict", "explain"])
def test_a_pipe_does_not_hang(capsys, photos, tmp_path, model, command):
    from foveal.runs import ModelInfo, save_model

    info = {"name": "tnet", "backbone": "test_efficientnet", "base_size": 32, "locations": [2, 1]}
    save_model(tmp_path / "run", model, ModelInfo(info, model.class_names))
    assert main([command, str(tmp_path / "run"), str(photos / "class_1" / "pipe.png"), "--device", "cpu"]) == 1
    assert "pipe.png: is a pipe, a socket or a device, not a regular file; copy" in capsys.readouterr().err


def test_help_of_predict_lists_the_suffixes(capsys):
    assert main(["predict", "--help"]) == 0
    assert set(SUFFIXES) <= set(capsys.readouterr().out.split())


@pytest.fixture(scope="module")
def model():
    import torch

    from foveal.glimpse.tnet import TNet

    torch.manual_seed(0)
    model = TNet(num_classes=4, backbone="test_efficientnet", base_size=32, locations=(2, 1)).eval()
    model.class_names = ("a", "b", "c", "d")
    return model

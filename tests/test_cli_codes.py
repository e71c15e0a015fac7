"""Exit codes: 2 for names, options and values that are not valid, in every command; 1 for other failures."""

import pytest

from foveal.cli import main
from foveal.cli.commands import COMMANDS
from tests.tiny import TINY

RUN, IMAGE = "RUN", "IMAGE"  # replaced by paths
SMALL = ["--data", "digits", "--data.train", "4", "--data.val", "0", "--data.test", "0", "--data.canvas", "96"]

INVALID = {
    "fit": [
        ["no_such_recipe"],
        ["demo", "--epochs", "many"],
        ["demo", "--epochs", "0"],
        ["demo", "--optimiser.lr", "-1"],
        ["demo", "--no-such-option", "1"],
        ["demo", "--model", "no_such_model"],
        ["demo", "--model.backbone", "no_such_network"],
        ["demo", "--data", "no_such_data"],
        ["demo", "--objective", "no_such_objective"],
        ["demo", "--device", "no_such_device"],
        ["demo", "--precision", "8"],
        ["demo", "--resume", "--overwrite"],
    ],
    "recipes": [["no_such_*"]],
    "visible": [
        [*SMALL, "--backbone", "no_such_network"],
        [*SMALL, "--backbone", "tnet"],
        [*SMALL, "--pretrained", "true"],  # of which backbone?
        [*SMALL, "--look-size", "1"],
        [*SMALL, "--limit", "0"],
        [*SMALL, "--device", "no_such_device"],
        ["--data", "no_such_data"],
        ["--looks", "0"],
        ["--split", "all"],
    ],
    "evaluate": [
        [RUN, "--locations", "many"],
        [RUN, "--policy", "no_such_policy"],
        [RUN, "--budget", "3apples"],
        [RUN, "--budget", "1locations", "--policy", "centre"],
        [RUN, "--budget", "1locations", "--measure", "quick"],
        [RUN, "--measure", "sometimes"],
        [RUN, "--device", "no_such_device"],
        [RUN, "--precision", "8"],
        [RUN, "--seed", "-1"],
        [RUN, "--batch-size", "0"],
        [RUN, "--split", "all"],
        [RUN, "--limit", "0"],
        [RUN, "--data", "no_such_data"],
        [RUN, "--data.no_such_option", "1"],
        [RUN, "--max-bytes", "much"],
        [RUN, "--import", "no_such_module"],
    ],
    "threshold": [
        [RUN],
        [RUN, "--at", "recall=2"],
        [RUN, "--at", "recall=0.9"],  # of which class?
        [RUN, "--at", "recall=0.9", "--class", "no_such_class"],
    ],
    "compare": [[RUN, "no_such_model"], [RUN, "--locations", "x"], [RUN, "--workers", "-1"]],
    "occlude": [[RUN, "--locations", "0"], [RUN, "--policy", "no_such_policy"], [RUN, "--device", "no_such_device"]],
    "faithfulness": [[RUN, "--map", "no_such_map"], [RUN, "--cam", "no_such_layer"], [RUN, "--locations", "x"]],
    "predict": [
        [RUN, IMAGE, "--locations", "x"],
        [RUN, IMAGE, "--policy", "no_such_policy"],
        [RUN, IMAGE, "--budget", "3apples"],
        [RUN, IMAGE, "--budget", "1locations", "--policy", "random"],
        [RUN, IMAGE, "--out", "labels.txt"],
        [RUN, IMAGE, "--top-k", "0"],
        [RUN, IMAGE, "--looks", IMAGE],
        [RUN, IMAGE, "--at-once", "0"],
        [RUN, IMAGE, "--device", "no_such_device"],
        [RUN, IMAGE, "--precision", "8"],
        [RUN],
        [RUN, "--manifest", IMAGE, "--shard", "4/4", "--out", "parts"],
        [RUN, IMAGE, "--cluster", "ray"],
        [RUN, "--manifest", IMAGE, "--cluster", "no_such_cluster"],
    ],
    "merge": [["no_such_folder"], ["."], [".", "--out", "labels.txt"]],
    "explain": [
        [RUN, IMAGE, "--out", "page.txt"],
        [RUN, IMAGE, "--overlay", "page.txt"],
        [RUN, IMAGE, "--looks", "looks.txt"],
        [RUN, IMAGE, "--heatmap", "map.png"],
        [RUN, IMAGE, IMAGE, "--labels", "no_such_file.csv"],
        [RUN, IMAGE, "--locations", "x"],
        [RUN, IMAGE, "--policy", "no_such_policy"],
        [RUN, IMAGE, "--device", "no_such_device"],
    ],
    "card": [[RUN, "--licence", "No Such!"], [RUN, "--picture", "no_such_file.png"]],
    "push": [[RUN, "owner/name"], [RUN, "no name", "--licence", "mit"]],
    "serve": [
        [RUN, "--images", "no_such_folder", "--port", "0"],
        [RUN, "--port", "70000"],
        [RUN, "--port", "-1"],
        [RUN, "--queue", "0"],
        [RUN, "--wait", "-1"],
        [RUN, "--timeout", "0"],
        [RUN, "--device", "no_such_device", "--port", "0"],
    ],
    "embed": [["no_such_network", RUN], [RUN, IMAGE, "--scale", "0"]],
    "index": [[]],
    "export": [
        [RUN, "--format", "pickle"],
        [RUN, "--precision", "8"],
        [RUN, "--format", "torch", "--precision", "int8"],
    ],
    "models": [["no_such_*"], ["--import", "no_such_module"], ["--import"]],
    "data": [
        ["no_such_data"],
        ["digits", "--data.no_such_option", "1"],
        ["digits", "--data.train", "many"],
        ["digits", "--split", "all"],
        ["digits", "--count", "0"],
    ],
    "cost": [
        ["no_such_model", "--image-size", "64"],
        ["tnet"],
        ["tnet", "--image-size", "0"],
        ["tnet", "--image-size", "64", "--locations", "x"],
        ["tnet", "--image-size", "64", "--set", "grid"],
        ["tnet", "--image-size", "64", "--set", "no_such_option=1"],
        ["tnet", "--image-size", "64", "--set", "backbone=no_such_network"],
        ["tnet", "--image-size", "64", "--num-classes", "0"],
        ["tnet", "--image-size", "64", "--num-classes", "3", "--set", "num_classes=4"],
    ],
    "table": [["no_such_table"], ["cifar", "--runs", "no_such_folder"]],
}

FAILED = [
    ["fit", "--data.root", "no_such_folder", "--epochs", "1"],
    ["visible", "--data.root", "no_such_folder"],
    ["evaluate", "no_such_run"],
    ["predict", RUN, "no_such_image.png"],
    ["predict", RUN, "--manifest", "no_such_table.csv", "--shard", "0/4", "--out", "parts"],
    ["explain", RUN, "no_such_image.png"],
    ["explain", "no_such_run", IMAGE],
    ["serve", "no_such_run", "--port", "0"],
    ["export", RUN, "--calibration", "no_such_folder", "--precision", "int8"],
]


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    top = tmp_path_factory.mktemp("codes")
    assert main(["fit", "demo", *TINY, "--steps", "1", "--out", str(top / "run")]) == 0
    assert main(["data", str(top / "run"), "--export", str(top / "images"), "--count", "1"]) == 0
    return {RUN: str(top / "run"), IMAGE: str(next((top / "images").iterdir()))}


def test_every_command_is_here():
    assert set(INVALID) == set(COMMANDS)


@pytest.mark.parametrize("command", INVALID)
def test_what_is_not_valid_exits_with_2_and_one_message(capsys, paths, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    for argv in INVALID[command]:
        assert main([command, *(paths.get(word, word) for word in argv)]) == 2, argv
        said = capsys.readouterr().err.strip().splitlines()
        assert said[-1].startswith("foveal") and "Traceback" not in "".join(said), argv
        assert list(tmp_path.iterdir()) == [], argv


@pytest.mark.parametrize("argv", FAILED)
def test_what_fails_exits_with_1(paths, tmp_path, monkeypatch, argv):
    monkeypatch.chdir(tmp_path)
    assert main([paths.get(word, word) for word in argv]) == 1

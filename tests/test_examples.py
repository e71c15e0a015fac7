"""The example of a user's model: passes `foveal.testing` and works with the command."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from foveal import cli
from foveal.objectives import OBJECTIVES
from foveal.policies import POLICIES
from foveal.registry import MODELS, import_module
from foveal.testing import GlimpseClassifierTester

EXAMPLE = Path(__file__).parents[1] / "examples" / "corners.py"
TINY = [
    "--data",
    "digits",
    "--data.canvas",
    "96",
    "--data.digit",
    "12,16",
    "--data.distractors",
    "1",
    "--data.train",
    "16",
    "--data.val",
    "4",
    "--data.test",
    "8",
    "--batch-size",
    "4",
    "--steps",
    "2",
    "--device",
    "cpu",
    "--quiet",
]


@pytest.fixture(scope="module", autouse=True)
def names():
    """Restores the registries afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        for registry in (MODELS, OBJECTIVES, POLICIES):
            patch.setattr(registry, "_entries", dict(registry._entries))
        patch.setattr(sys, "path", list(sys.path))
        patch.setattr("foveal.registry._IMPORTED", [])
        yield
    sys.modules.pop("corners", None)


@pytest.fixture(scope="module")
def run(names, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "corners"
    argv = [
        "fit",
        "--import",
        str(EXAMPLE),
        "--model",
        "corner_net",
        "--objective",
        "margin",
        "--objective.margin",
        "2",
        "--out",
        str(out),
    ]
    assert cli.main([*argv, *TINY]) == 0
    return out


class TestCornerNet(GlimpseClassifierTester):
    locations = ((), (1,), (4,), (9,))

    def make(self):
        return import_module(str(EXAMPLE)).CornerNet(num_classes=3)


def test_it_is_short_and_not_a_part_of_the_package():
    assert len(EXAMPLE.read_text().splitlines()) <= 120
    assert importlib.util.find_spec("examples") is None or "examples" not in sys.modules


def test_the_command_knows_its_names(names, capsys):
    assert cli.main(["models", f"--import={EXAMPLE}"]) == 0
    assert "corner_net" in capsys.readouterr().out.split()
    assert cli.main(["fit", "--import", str(EXAMPLE), "--data", "digits", "--model", "corner_net", "--help"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "--model.grid N (default: 3)" in told and "--objective.margin X minimum difference between the logit" in told


def test_a_run_of_it_is_evaluated_and_explained(run, tmp_path, capsys):
    card, config = json.loads((run / "config.json").read_text()), yaml.safe_load((run / "config.yaml").read_text())
    assert card["imports"] == config["imports"] == [str(EXAMPLE)]
    assert config["objective"] == {"trains": None, "margin": 2.0, "policy_weight": 0.1}  # the model's own
    known = ["--import", str(EXAMPLE), "--device", "cpu", "--quiet"]
    assert (
        cli.main(["evaluate", str(run), "--locations", "0..2", "--policy", "corners", "--measure", "none", *known]) == 0
    )
    points = json.loads((run / "evaluation.json").read_text())["points"]
    assert {point["kind"] for point in points} >= {"learned", "random", "corners"}
    assert (
        cli.main(["data", str(run), "--import", str(EXAMPLE), "--export", str(tmp_path), "--count", "1", "--quiet"])
        == 0
    )
    (image,) = tmp_path.glob("*.png")
    page = tmp_path / "report.html"
    assert cli.main(["explain", str(run), str(image), "--policy", "corners", "--out", str(page), *known]) == 0
    assert page.stat().st_size > 1000
    assert cli.main(["predict", str(run), str(image), *known]) == 0
    assert str(image) in capsys.readouterr().out


def told_by(argv, cwd):
    """Run a command in a new process, without the imports of this one."""
    done = subprocess.run([sys.executable, "-m", "foveal", *argv], capture_output=True, text=True, cwd=cwd, check=False)
    assert done.returncode in (1, 2) and "Traceback" not in done.stderr
    return done.stderr


def test_without_the_module_one_sentence_says_so_and_nothing_is_imported(run, tmp_path):
    """Modules that a run, a recipe or another file lists are not imported."""
    image = tmp_path / "image.png"
    sentence = f"model corner_net is not known; the run was made with --import {EXAMPLE}, give it again"
    said = told_by(["predict", str(run), str(image)], tmp_path)
    assert said == f"foveal: {run / 'config.json'}: {sentence}\n"
    assert told_by(["fit", str(run / "config.yaml")], tmp_path) == f"foveal: {sentence}\n"
    assert told_by(["fit", "--resume", "--out", str(run)], tmp_path) == f"foveal: {sentence}\n"
    # A module in the current folder, under every name that might be tried, that prints if it is imported.
    for name in ("evil", "corner_net", "margin"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('executed')\n")
    recipe = {"imports": ["evil"], "import": "evil", "model": {"name": "corner_net"}, "data": {"name": "digits"}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({key: recipe[key] for key in ("imports", "model", "data")}))
    assert "made with --import evil, give it again" in told_by(["fit", "recipe.yaml"], tmp_path)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert "executed" not in told_by(["fit", "recipe.yaml", "--model", "tnet"], tmp_path)
    card = json.loads((run / "config.json").read_text())
    forged = tmp_path / "forged"
    forged.mkdir()
    for imports in (["evil"], "evil", {"evil": 1}, [["evil"]], "evil.py"):
        (forged / "config.json").write_text(json.dumps({**card, "imports": imports}))
        assert "executed" not in told_by(["explain", str(forged), str(image)], tmp_path)


def test_a_flag_without_a_module(capsys):
    assert cli.main(["models", "--import"]) == 2 and "--import: the module is missing" in capsys.readouterr().err
    assert (
        cli.main(["models", "--import", "nowhere_at_all"]) == 2 and "there is no such module" in capsys.readouterr().err
    )


def test_objects_do_as_well_as_names(names):
    module = import_module(str(EXAMPLE))
    model, images = module.CornerNet(num_classes=3).eval(), torch.rand(2, 3, 64, 64)
    by_name, by_object = (model(images, policy=policy).logits for policy in ("corners", module.Corners()))
    assert torch.equal(by_name, by_object)

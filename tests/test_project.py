"""The project itself: what importing costs, what is exported, what is promised in its files."""

import ast
import gc
import importlib
import importlib.util
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from PIL import Image

import foveal
from foveal import cli
from foveal.importing import MANY, fast_imports
from foveal.models import create_model
from foveal.runs import ModelInfo, save_model

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MODULES = sorted((ROOT / "foveal").rglob("*.py"))


HEAVY = {
    "torch",
    "numpy",
    "timm",
    "torchvision",
    "torch._dynamo",
    "huggingface_hub",
    "lightning",
    "torchmetrics",
    "matplotlib",
    "pyarrow",
    "rich",
    "jsonargparse",
    "PIL",
    "tifffile",
    "imagecodecs",
    "sklearn",
    "skimage",
    "scipy",
    "pandas",
}
FOR_NETWORKS = {"timm", "torchvision", "torch._dynamo", "huggingface_hub", "PIL"}
"""timm, and what it imports itself."""


def imported(*commands: list[str]) -> list[set[str]]:
    """What of ``HEAVY`` one process has imported at the end of each of several commands, which it runs one after the
    other.
    """
    code = f"""
import contextlib, os, sys
from foveal.cli import main
for argv in {list(commands)!r}:
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        main(argv)
    print(*(m for m in {sorted(HEAVY)!r} if m in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return [set(line.split()) for line in done.stdout.splitlines()]


def test_importing_and_help_of_commands_are_light():
    """Not even numpy is there."""
    commands = next(a for a in cli._parser()._actions if a.dest == "command").choices
    listings = [
        [],
        ["--version"],
        *([c, "--help"] for c in commands),
        ["recipes"],
        ["recipes", "nonsense"],
        ["fit", "xyz"],
        ["fitt"],
        ["predict"],
    ]
    for argv, modules in zip(listings, imported(*listings), strict=True):
        assert not modules, argv


def test_help_of_a_recipe_and_lists_need_no_network():
    """Signatures of models are torch's; nothing of timm, and nothing that trains, draws or reads files, is there."""
    commands = [
        ["models"],
        ["data"],
        ["table", "cifar", "--runs", "docs"],
        ["predict", "nowhere", "x.png"],
        ["fit", "demo", "--help"],
        ["fit", "--data", "folder", "--model", "tnet", "--help"],
        ["fit", "fmow/tnet_step2.reference", "--help"],
        ["fit", "imagenet/saccader_nasnetalarge", "--help"],
        ["fit", "demo", "--epochs", "many"],
    ]
    for argv, modules in zip(commands, imported(*commands), strict=True):
        assert modules <= {"torch", "numpy", "rich", "jsonargparse"}, argv


def test_help_of_a_dense_network_needs_timm_and_no_more():
    (modules,) = imported(["fit", "--model", "resnet18", "--help"])
    assert modules == {"torch", "numpy", "jsonargparse", *FOR_NETWORKS}


def test_predicting_needs_networks_and_readers_only(tmp_path):
    """And no networks of timm where the model has none; not pyarrow for CSV; not the trainer, nor what draws or
    evaluates.
    """
    for name, backbone in (("ram", {}), ("tnet", {"backbone": "plain_convnet_32", "locations": [1]})):
        model = create_model(name, num_classes=2, **backbone)
        save_model(tmp_path / name, model, ModelInfo({"name": name, **backbone}, ("a", "b")))
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    out = ["--out", str(tmp_path / "out.csv"), "--overwrite", "--device", "cpu"]
    ram, tnet = imported(
        *(["predict", str(tmp_path / name), str(tmp_path / "a.png"), *out] for name in ("ram", "tnet"))
    )
    assert (tmp_path / "out.csv").read_text().count("\n") == 2
    assert ram <= {
        "torch",
        "numpy",
        "torch._dynamo",
        "PIL",
        "imagecodecs",
    }  # _dynamo: torch counts multiply-accumulates with it
    assert tnet <= ram | FOR_NETWORKS


def test_what_is_imported_counts_as_old():
    """The next collection of young objects does not look at it; what is garbage among it is found by a full one."""
    gc.collect()
    with fast_imports():
        made = [[i] for i in range(2 * MANY)]
        made[0].append(made)
    assert gc.get_count()[0] < MANY and gc.get_freeze_count() == 0
    alive = len(gc.get_objects(generation=2))
    assert alive > 2 * MANY
    del made
    assert gc.collect() > 2 * MANY and len(gc.get_objects(generation=2)) <= alive - 2 * MANY


def test_garbage_is_collected_again_after_imports():
    with pytest.raises(ImportError), fast_imports():
        assert not gc.isenabled()
        import nonsense_that_is_not_there  # noqa: F401
    assert gc.isenabled()
    gc.disable()
    try:
        with fast_imports():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


@pytest.mark.parametrize("name", [n for n in foveal.__all__ if n != "__version__"])
def test_every_export_is_there(name):
    assert getattr(foveal, name) is not None
    assert name in dir(foveal)


def test_dir_shows_the_public_names_alone():
    """Also after submodules were imported; none of them has the name of an export."""
    importlib.import_module("foveal.explain")
    assert dir(foveal) == sorted(foveal.__all__)
    assert not {name for name in foveal.__all__ if importlib.util.find_spec(f"foveal.{name}")}


def test_unknown_export_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = foveal.nonsense


def test_every_dependency_says_why():
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    wanted = PROJECT["project"]["dependencies"] + [
        d for extra in PROJECT["project"]["optional-dependencies"].values() for d in extra
    ]
    for dependency in wanted:
        (line,) = [x for x in lines if f'"{dependency}"' in x]
        if ">=" in dependency:
            assert "#" in line, f"{dependency}: why this bound?"


def test_every_module_opens_with_purpose_and_example():
    for file in MODULES:
        text = file.read_text()
        if text.strip():
            doc = ast.get_docstring(ast.parse(text)) or ""
            assert "Example:" in doc and ">>>" in doc, f"{file}: no example"


def test_rooms_import_downwards_only():
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_changelog_names_the_version():
    assert f"## {foveal.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_licence_is_apache():
    assert PROJECT["project"]["license"] == "Apache-2.0"
    assert "Version 2.0, January 2004" in (ROOT / "LICENSE").read_text()

"""The project itself: what importing costs, what is exported, what is promised in its files."""

import ast
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

import foveal

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MODULES = sorted((ROOT / "foveal").rglob("*.py"))


def python(code: str) -> tuple[str, float]:
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout, time.perf_counter() - start


@pytest.mark.parametrize(
    "code", ["import foveal", *(f"from foveal.cli import main; main({argv})" for argv in (["--help"], ["fit", "--help"]))]
)
def test_starting_is_light(code):
    """No heavy library is imported, so that it takes a fraction of a second; the bound has room for a busy machine."""
    heavy = ("torch", "lightning", "timm", "torchvision", "matplotlib", "pyarrow", "tifffile", "numpy")
    out, seconds = python(f"{code}; import sys; print(); print([m for m in {heavy!r} if m in sys.modules])")
    assert out.splitlines()[-1] == "[]"
    assert seconds < 3


@pytest.mark.parametrize("name", [n for n in foveal.__all__ if n != "__version__"])
def test_every_export_is_there(name):
    assert getattr(foveal, name) is not None
    assert name in dir(foveal)


def test_unknown_export_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = foveal.nonsense


def test_every_dependency_says_why():
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    wanted = PROJECT["project"]["dependencies"] + [d for extra in PROJECT["project"]["optional-dependencies"].values() for d in extra]
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

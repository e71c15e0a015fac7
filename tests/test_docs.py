"""The site: what the README, the tutorials and the guides say is done, pages are in the navigation, public names in the
reference, links lead somewhere, and the site is built without a warning.
"""

from __future__ import annotations

import doctest
import io
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import tifffile
import yaml
from packaging.requirements import Requirement
from PIL import Image

import foveal
import foveal.runtime
from foveal.cli import main
from foveal.cli.commands import COMMANDS
from foveal.data import DATA_SETS
from foveal.objectives import OBJECTIVES
from foveal.policies import POLICIES
from foveal.registry import MODELS
from tests.test_project import PROJECT
from tests.tiny import TINY

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
REPOSITORY = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "examples/README.md", "benchmarks/README.md")]
FENCE = re.compile(r"^```(\w+)(?: title=\"([^\"]+)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
EXAMPLE = "Output, for example"

SMALL = "--model.backbone test_efficientnet --model.pretrained false --model.base_size 32 --batch-size 4 --workers 0"
FAST = {
    "foveal fit demo --out": shlex.join([*TINY, "--steps", "2"]),
    "foveal fit --data": f"{SMALL} --steps 2 --device cpu",
    "foveal evaluate runs/photos --locations 4,1 --budget": "--limit 2",
    "foveal evaluate": "--measure none",
    "foveal fit features": "--steps 2 --device cpu --workers 0 --batch-size 2",
    "foveal embed": "--pretrained false --device cpu",
    "foveal visible": "--backbone test_efficientnet --pretrained= --look-size 32 --steps 2 --device cpu",
}
"""Flags that tests add to commands, by how these begin, because training and measuring take long. The first holds."""
SMALLER = {'"resnet50"': '"test_efficientnet"', "epochs=10": "epochs=1"}
"""What tests replace in Python, for the same reason."""


class Reader:
    """Follows a page in the current folder.

    ``shell`` blocks are commands. ``python`` blocks with a title are files, and others are run in one namespace. A
    ``text`` block with the title "Output" is what the block before it prints, with ``...`` for what may differ; numbers
    may differ too if the title is `EXAMPLE`. The command foveal is called in this process, which has imported torch
    already.
    """

    def __init__(self) -> None:
        self.said = ""
        self.commands: list[str] = []
        self.names: dict[str, object] = {}

    def follow(self, page: Path) -> None:
        for kind, title, body in FENCE.findall(page.read_text(encoding="utf-8")):
            if kind == "text" and title.startswith("Output"):
                change = without_numbers if title == EXAMPLE else str
                checked = doctest.OutputChecker().check_output(change(body), change(self.said), FLAGS)
                assert checked, f"{page.name}: expected\n{body}\nand got\n{self.said}"
            elif kind in ("python", "csv") and title:
                Path(title).write_text(body, encoding="utf-8")
            elif kind in ("shell", "python"):
                with redirect_stdout(io.StringIO()) as out:
                    if kind == "python":
                        for large, small in SMALLER.items():
                            body = body.replace(large, small)
                        exec(compile(body, page.name, "exec"), self.names)
                    else:
                        for line in body.replace("\\\n", " ").splitlines():
                            self.command(line)
                self.said = out.getvalue()

    def command(self, line: str) -> None:
        words = shlex.split(line, comments=True)
        if not words:
            return
        typed = shlex.join(words)
        self.commands.append(typed)
        name, *rest = words
        if name == "foveal":
            added = next((flags for start, flags in FAST.items() if typed.startswith(start)), "")
            with redirect_stderr(io.StringIO()) as err:
                code = main([*rest, *shlex.split(added)])
            assert code == 0, f"{line}\n{err.getvalue()}"
        elif rest[:2] == ["-m", "pytest"]:  # that it takes the options must do; this test is one of those that it runs
            assert (
                subprocess.run([sys.executable, *rest, "--version"], capture_output=True, check=False).returncode == 0
            )
        elif name == "python" and rest[0] != "-m":
            runpy.run_path(rest[0], run_name="__main__")
        elif name == "pip" or rest[:2] == ["-m", "pip"]:
            self.install(rest[rest.index("install") + 1 :])
        elif name == "make":
            planned = commands_of(*rest)
            assert planned, line
            for part in planned:
                self.command(part)
        else:
            raise AssertionError(f"{line}: the test does not know this command")

    def install(self, words: list[str]) -> None:
        """Nothing is installed; the project must have the extras that are asked for."""
        for word in words:
            if not word.startswith("-"):
                wanted = Requirement(word.replace(".", "foveal", 1) if word.startswith(".") else word)
                assert wanted.name == PROJECT["project"]["name"], word
                assert wanted.extras <= set(PROJECT["project"]["optional-dependencies"]), word


def without_numbers(text: str) -> str:
    """Text with 0 for each number and one dash for each line across a table."""
    return re.sub("─+", "─", re.sub(r"\d[\d.,]*(?=\W)", "0", text))


def commands_of(target: str) -> list[str]:
    """The commands by which make reaches a target of the Makefile from nothing, without those that make .venv."""
    make = ["make", "--dry-run", "--always-make", "--directory", str(ROOT), target]
    done = subprocess.run(make, capture_output=True, text=True, check=True)
    ours = re.compile(r"^(?:\w+=\S+ )*\.venv/bin/(.*)$", re.MULTILINE)
    return ours.findall(done.stdout)


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """A reader in an empty folder. The registries and imported modules are afterwards as they were."""
    for registry in (MODELS, OBJECTIVES, POLICIES, DATA_SETS):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr("foveal.registry._IMPORTED", [])
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield Reader()
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def write_images(folder: str, names: tuple[str, ...], side: int = 96, suffix: str = ".png") -> None:
    """Noise, as PNG files or as tiled TIFF files of 0.5 µm per pixel."""
    draws = np.random.default_rng(0)
    for name in names:
        file = Path(folder, name).with_suffix(suffix)
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = draws.integers(0, 256, (side, side, 3), dtype=np.uint8)
        if suffix == ".png":
            Image.fromarray(pixels).save(file)
        else:
            tifffile.imwrite(file, pixels, tile=(64, 64), resolution=(2e4, 2e4), resolutionunit="CENTIMETER")


CLASSES = tuple(f"{name}/{number}" for name in ("crack", "none") for number in range(4))


def test_the_readme_and_the_guides_that_go_on_with_its_run(reader):
    write_images("photos", CLASSES)
    write_images("new", ("a", "b"))
    reader.follow(ROOT / "README.md")
    assert {command.split()[0] for command in reader.commands} == {"pip", "make", "foveal", "python"}
    for written in ("runs/demo/report.html", "runs/photos/evaluation.json", "labels.csv", "runs/python/summary.json"):
        assert Path(written).stat().st_size, written
    for name in ("begin", "levels", "hub"):
        reader.follow(DOCS / "guides" / f"{name}.md")


def test_the_readme_is_short_and_names_the_two_commands():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 110
    assert "make demo" in text and "make test" in text


@pytest.mark.slow
def test_the_other_guides_do_what_they_say(reader):
    write_images("photos", CLASSES)
    write_images("images", ("001a", "001b", "002a", "003a", "004a"))
    write_images("slides", CLASSES, side=256, suffix=".tif")
    names = "imbalance", "slides", "annotations", "extending", "troubleshooting", "export", "shards", "features"
    for name in names:
        reader.follow(DOCS / "guides" / f"{name}.md")
    assert any("region_mpp" in command for command in reader.commands)


def test_the_page_on_installing(reader):
    reader.follow(DOCS / "install.md")


def test_the_table_of_extras_has_each():
    table = (DOCS / "install.md").read_text()
    first = "".join(re.findall(r"^\| (`.*?) \|", table, re.MULTILINE))
    assert set(re.findall(r"`(\w+)`", first)) == set(PROJECT["project"]["optional-dependencies"])


def test_the_tutorial_on_a_folder_and_that_on_a_policy(reader):
    """The second goes on in the folder of the first."""
    reader.follow(DOCS / "tutorials" / "folder.md")
    learned, random = accuracies(Path("runs/parts"))
    assert learned[0] < 0.7 and learned[1] > 0.85, "looking helps"
    assert random[1] < learned[1] - 0.15, "it matters where"
    reader.follow(DOCS / "tutorials" / "policy.md")


@pytest.mark.slow
def test_the_tutorial_on_slides(reader):
    reader.follow(DOCS / "tutorials" / "slide.md")
    learned, _ = accuracies(Path("runs/slides"))
    assert learned[1] > 0.85
    first, *_, last = map(json.loads, Path("labels.jsonl").read_text().splitlines())
    assert first["bytes_read"] < Path("slides/000.tif").stat().st_size and first["mpp"] == pytest.approx(0.5)
    assert [round(glimpse["mpp"], 3) for glimpse in last["glimpses"]] == [16, 6.5, 6.5]


def accuracies(run: Path) -> tuple[dict[int, float], dict[int, float]]:
    """Accuracy by the number of looks, of the learned policy and of random looks."""
    points = json.loads((run / "evaluation.json").read_text())["points"]
    learned, random = (
        {sum(point["locations"]): point["accuracy"] for point in points if point["kind"] == kind}
        for kind in ("learned", "random")
    )
    return learned, random


def navigation(entry: object) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    parts = entry if isinstance(entry, list) else list(entry.values())  # type: ignore[attr-defined]
    return [page for part in parts for page in navigation(part)]


def site() -> dict:
    text = (ROOT / "mkdocs.yml").read_text().replace("!!python/object/apply:pymdownx.slugs.slugify", "")
    return yaml.safe_load(text)


def test_every_page_is_in_the_navigation_once():
    shown = navigation(site()["nav"])
    outside = {"index.md", "contributing.md", "changelog.md", "benchmarks.md", "examples.md"}
    assert sorted(shown) == sorted([*outside, *(page.relative_to(DOCS).as_posix() for page in PAGES)])


def test_every_public_name_is_in_the_reference_once():
    shown = [name for page in (DOCS / "api").glob("*.md") for name in re.findall("^::: (.+)$", page.read_text(), re.M)]
    own = [f"foveal.{name}" for name in dir(foveal) if name != "__version__"]
    without_torch = [f"foveal.runtime.{name}" for name in foveal.runtime.__all__]
    assert sorted(shown) == sorted([*own, *without_torch, "foveal.export.export"])


def test_the_page_of_commands_has_a_row_for_each():
    table = (DOCS / "commands.md").read_text()
    assert set(re.findall(r"`foveal (\w+)", table)) - {"COMMAND"} == set(COMMANDS)


@pytest.mark.parametrize("page", [*REPOSITORY, *PAGES], ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files_of_the_repository(page):
    """As they are read in the repository; `mkdocs build --strict` checks them in the site, with their anchors."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", text):
        assert (page.parent / target).exists(), target


def test_the_site_is_built_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    built = {
        name: (tmp_path / "site" / name).read_text() for name in ("index.html", "commands.html", "api/training.html")
    }
    assert 'href="guides/levels.html"' in built["index.html"] and 'src="assets/explained.png"' in built["index.html"]
    assert all(f'id="{name}"' in built["commands.html"] for name in COMMANDS)
    assert "passes over the training images" in built["api/training.html"]
    for page in (tmp_path / "site").rglob("*.html"):
        loaded = re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=\"(https?://[^\"]+)", page.read_text())
        assert not loaded, f"{page.name} loads {loaded}"


def test_the_citation_names_the_version_and_complete_references():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == foveal.__version__ and citation["license"] == PROJECT["project"]["license"]
    assert {"cff-version", "message", "title", "authors", "type"} <= set(citation)
    for paper in citation["references"]:
        assert {"type", "title", "authors", "year", "url"} <= set(paper)
        arxiv = paper["url"].removeprefix("https://arxiv.org/abs/")
        assert arxiv in (DOCS / "hard_attention.md").read_text() + (DOCS / "soft_attention.md").read_text()


def test_pre_commit_runs_what_make_lint_runs():
    hooks = [
        hook["entry"].removeprefix(".venv/bin/").split()[:2]
        for repository in yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
        for hook in repository["hooks"]
        if "entry" in hook
    ]
    lint = [command.split() for command in commands_of("lint") if not command.startswith("python")]
    assert all([word for word in command if word not in ("--check", ".")][:2] in hooks for command in lint)


def test_pictures_are_small_and_the_curve_is_that_of_the_results():
    """Means over seeds are those of the table on the page of results."""
    for picture in (DOCS / "assets").glob("*.png"):
        assert picture.stat().st_size < 150_000
    drawn = runpy.run_path(str(ROOT / "benchmarks" / "pictures.py"))
    rows = json.loads(drawn["RESULTS"].read_text())["results"]["rows"]
    page = (DOCS / "results.md").read_text()
    table = page.partition("<!-- table: photographs -->")[2].partition("<!-- end -->")[0]
    told = {cells[0].strip("| "): cells for line in table.splitlines() if (cells := line.split(" | "))}
    for label, start in (("TNet, looks that it chooses", "TNet, looks: "), ("the same backbone, dense", "dense, ")):
        for name, macs, share in drawn["points"](rows)[label]:
            cells = told["TNet, first look alone" if name == "0" else start + name]
            assert f"{share:.1f}" == cells[1].split()[0]
            assert f"{macs:.3g}" == cells[5]

"""Names of files and classes with control characters, bidirectional text or formulas: printed and written output of
them.
"""

import csv
import html
import json
import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from foveal.cli import main
from foveal.prediction.output import read_rows
from foveal.training.learner import Learner

CLASSES = ("=1+1", "\u202ebad", "a <b>$x$ [red]")
FILES = (
    "=cmd.png",
    "@a.png",
    "-b.png",
    "\x1b[2J.png",
    "a\rb\n.png",
    "\u202egnp.png",
    "\x9b31m.png",
    "[bold]<i>.png",
    "'=c.png",
)


def save(path: Path, key: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(key).integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(path)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Path, Path]:
    """A run trained on such names, with one image that cannot be read; and the folder of its images."""
    top = tmp_path_factory.mktemp("names")
    for c, label in enumerate(CLASSES):
        for split, names in (("train", FILES), ("val", FILES[:3])):
            for n, name in enumerate(names):
                save(top / "data" / split / label / name, 100 * c + n)
    for bad in ("=bad\x1b[2J.png", "-bad\u202e.png"):
        (top / "data" / "val" / CLASSES[0] / bad).write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    (top / "data" / "train" / CLASSES[0] / "\x1b[2J.txt").write_text("no image")
    flags = [
        "--model",
        "test_resnet",
        "--model.image_size",
        "32",
        "--steps",
        "1",
        "--batch_size",
        "8",
        "--device",
        "cpu",
        "--log_every",
        "1",
    ]
    assert main(["fit", "--data.root", str(top / "data"), *flags, "--out", str(top / "run")]) == 0
    return top / "run", top / "data"


def check_screen(text: str) -> None:
    wrong = {c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") and c not in "\n\t"}
    assert not wrong, (wrong, text)


def images(data: Path) -> list[str]:
    return [str(data / "val" / CLASSES[0])]


@pytest.mark.parametrize(
    "command",
    [
        lambda run, data, out: ["predict", run, *images(data)],
        lambda run, data, out: ["predict", run, *images(data), "--out", out / "\x1b[2J.csv"],
        lambda run, data, out: ["predict", run, out / "\x1b[2J\u202enone.png"],
        lambda run, data, out: ["predict", out / "\x1b[2J", out],
        lambda run, data, out: ["predict", "--\x1b[2J", run],
        lambda run, data, out: ["explain", run, data / "val" / CLASSES[1] / FILES[0], "--out", out / "\x1b[2J.html"],
        lambda run, data, out: ["explain", run, data / "val" / CLASSES[0] / "=bad\x1b[2J.png"],
        lambda run, data, out: ["evaluate", run, "--measure", "none", "--out", out, "--split", "val"],
        lambda run, data, out: ["data", run],
        lambda run, data, out: ["data", run, "--export", out / "exported", "--split", "val", "--count", "7"],
        lambda run, data, out: ["cost", "\x1b[2J\u202e", "--image-size", "32"],
        lambda run, data, out: ["fit", "\x1b[2J\u202e"],
        lambda run, data, out: ["fit", "--data.root", out / "\x1b[2J\u202e", "--out", out / "run"],
        lambda run, data, out: ["recipes", "\x1b[2J"],
        lambda run, data, out: ["table", "cifar", "--runs", out / "\x9b2J"],
    ],
)
def test_screens(run, tmp_path, capsys, command):
    main([str(part) for part in command(*run, tmp_path)])
    printed = capsys.readouterr()
    assert printed.out + printed.err
    check_screen(printed.out)
    check_screen(printed.err)
    if (exported := tmp_path / "exported").is_dir():
        assert all(c.isprintable() for file in exported.iterdir() for c in file.name)


def test_a_run_that_is_trained_and_resumed(run, tmp_path, capsys):
    folder, data = run
    assert main(["fit", "--resume", "--out", str(folder), "--steps", "2"]) == 0
    printed = capsys.readouterr()
    check_screen(printed.out)
    check_screen(printed.err)
    with (folder / "bad_images.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert len(rows) == 2 and all("bad" in row["path"] for row in rows)
    learner = type("learner", (), {"bad_images": []})()
    Learner._note_bad(learner, [("=1.png", "-reason")])
    assert learner.bad_images == [("'=1.png", "'-reason")]
    assert json.loads((folder / "config.json").read_text())["class_names"] == sorted(CLASSES)
    assert yaml.safe_load((folder / "config.yaml").read_text())["data"]["root"] == str(data)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_tables_hold_the_names_as_they_are_and_no_formula(run, tmp_path, suffix, monkeypatch):
    folder, data = run
    monkeypatch.chdir(data / "train" / CLASSES[0])
    out = tmp_path / f"rows{suffix}"
    assert main(["predict", str(folder), "./", "--out", str(out), "--quiet"]) == 0
    names = {Path(row["path"]).name for row in read_rows(out)}
    assert names == set(FILES) and {row["label"] for row in read_rows(out)} <= set(CLASSES)
    monkeypatch.chdir(data / "train" / CLASSES[0])
    assert (
        main(
            [
                "predict",
                str(folder),
                *(f"./{name}" if name[0] == "-" else name for name in FILES),
                "--out",
                str(tmp_path / f"b{suffix}"),
                "--quiet",
            ]
        )
        == 0
    )
    assert {str(Path(row["path"])) for row in read_rows(tmp_path / f"b{suffix}")} == set(FILES)
    if suffix == ".csv":
        for file in (out, tmp_path / "b.csv"):
            with file.open(newline="") as lines:
                cells = [row[key] for row in csv.DictReader(lines) for key in ("path", "label", "error")]
            assert not [cell for cell in cells if cell.startswith(tuple("=+-@\t\r\n"))]


def test_pages_escape_names(run, tmp_path):
    folder, data = run
    page = tmp_path / "page.html"
    for file in FILES:
        assert (
            main(["explain", str(folder), str(data / "train" / CLASSES[2] / file), "--out", str(page), "--quiet"]) == 0
        )
        text = page.read_text()
        assert "<i>" not in re.sub(r'<i (class|style)="', "", text) and "<b>$x" not in text
        assert html.escape("a <b>$x$ [red]") in text
        assert not [c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs") and c != "\n"]

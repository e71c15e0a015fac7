"""Output of commands on a terminal of 80 columns, and without a terminal, where nothing is cut."""

import re
import shutil
import sys

import pytest
from rich.cells import cell_len

from foveal.cli import main
from foveal.cli.running import progress
from tests.tiny import TINY

HERE = ["--device", "cpu", "--batch-size", "4"]
LONG = "a_run_whose_name_goes_on_and_on_as_names_do_that_tell_every_option_of_a_training_and_the_day_of_the_week"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / LONG
    assert main(["fit", "demo", *TINY, "--steps", "2", "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def image(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    assert main(["data", str(run), "--export", str(folder), "--count", "1"]) == 0
    return next(folder.iterdir())


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    monkeypatch.setattr("foveal.evaluation.timing.QUICK_SECONDS", 0.01)


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then assumes a terminal
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")


COMMANDS = {
    "evaluate": ("evaluate RUN --against OTHER --policy centre,exhaustive", "random looks, %"),
    "evaluate without times": ("evaluate RUN --measure none", "accuracy, %"),
    "evaluate, all columns": ("evaluate RUN --wide", "ms at best batch"),
    "evaluate --budget": ("evaluate RUN --budget 1locations", "% sure"),
    "compare": ("compare RUN OTHER test_resnet --locations 0..2 --out OUT/compared", "MMAC"),
    "compare, all columns": ("compare RUN OTHER test_resnet --wide --out OUT/compared", "ECE at T, %"),
    "occlude": ("occlude RUN --by OTHER --policy centre", "judged by"),
    "faithfulness": ("faithfulness RUN --by OTHER", "pointing game"),
    "visible": (
        "visible --data digits --data.canvas 128 --data.digit 12,16 --data.train 12 --data.val 0 --data.test 0 "
        "--backbone test_efficientnet --look-size 64 --steps 2 --device cpu --wide",
        "16 random",
    ),
    "explain": ("explain RUN IMAGE --out OUT/page.html", "lead"),
    "table": ("table cifar --runs RUN", "published"),
    "cost": ("cost RUN --image-size 40000x123456 --locations 2", "parameters"),
    "models": ("models tnet*", "tnet_bagnet77.reference"),
    "data": ("data RUN", "10 classes"),
    "data sets": ("data", "digits"),
}
"""Each command, and words of its output."""

NAMELESS = ("visible", "explain", "table", "models", "data", "data sets")
"""Commands that do not name a run in their output."""


def said(capsys, command, run, image, out):
    """Output of a command without colours and without lines that only name a file."""
    words = {"RUN": run, "OTHER": shutil.copytree(run, out / "second"), "IMAGE": image, "OUT": out}
    argv = [re.sub("^(RUN|OTHER|IMAGE|OUT)", lambda found: str(words[found[1]]), word) for word in command.split()]
    capsys.readouterr()
    assert main([*argv, *(HERE if argv[0] in ("evaluate", "compare", "occlude", "faithfulness") else [])]) == 0
    lines = re.sub("\x1b\\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    return "\n".join(line for line in lines if not line.startswith(("All numbers are in ", "The page is ")))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_fits_a_terminal(capsys, terminal, run, image, tmp_path, name):
    command, words = COMMANDS[name]
    text = said(capsys, command, run, image, tmp_path)
    assert words in text and max(map(cell_len, text.splitlines())) <= 80
    assert not re.search(r"\de[+-]\d", text)


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in NAMELESS])
def test_away_from_a_terminal_nothing_is_cut(capsys, monkeypatch, run, image, tmp_path, name):
    monkeypatch.setenv("COLUMNS", "80")
    command, words = COMMANDS[name]
    text = said(capsys, command, run, image, tmp_path)
    assert words in text and "…" not in text and LONG in text


def test_progress_on_a_terminal(capsys, monkeypatch, run, image, tmp_path):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(["predict", str(run), str(image), "--device", "cpu"]) == 0
    assert "Traceback" not in capsys.readouterr().err
    assert main(["explain", str(run), str(image), "--out", str(tmp_path / "page.html"), "--device", "cpu"]) == 0
    assert "scanning" not in capsys.readouterr().err  # a bar is shown for large images only
    with progress("scanning", quiet=False, late=True) as show:
        assert not capsys.readouterr().err
        show(0.5, 1)
    assert "scanning" in capsys.readouterr().err

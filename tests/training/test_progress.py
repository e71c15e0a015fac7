"""What a run shows while it goes on: lines where there is no terminal, a bar of 80 columns where there is one."""

from __future__ import annotations

import io
import re
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from foveal.recipes.fit_config import fit_config
from foveal.training import progress
from foveal.training.learner import ENDLESS, Learner
from foveal.training.progress import Progress, as_duration, as_line, as_rate, pause
from tests.training.tiny import NORM_FREE, config

TEN = {"model": NORM_FREE, "epochs": None, "steps": 10, "accumulate": 1, "ema": None}
LINE = re.compile(
    r"step (?P<step>\d+)(?P<of>/\d+)?  epoch (?P<epoch>[\d.]+)  loss (?P<loss>-?[\d.]+)  acc (?P<acc>[\d.]+)%"
    r"(  val (?P<val>[\d.]+)%)?  (?P<speed>[\d.]+) img/s(  (?P<left>[\d:]+) left)?"
)


def test_a_run_of_ten_steps_shows_its_first_step_and_its_last(tmp_path, capsys):
    fit_config(config(**TEN, log_every=50), tmp_path / "run")
    lines = [found for line in capsys.readouterr().err.splitlines() if (found := LINE.fullmatch(line))]
    assert (lines[0]["step"], lines[0]["of"], lines[0]["epoch"]) == ("1", "/10", "0.2")
    assert (lines[-1]["step"], lines[-1]["epoch"], lines[-1]["left"]) == ("10", "2.0", "0:00")
    assert lines[0]["left"] and all(float(line["speed"]) > 0 for line in lines)
    assert lines[0]["val"] is None and lines[-1]["val"]  # the first epoch has been validated by then


def test_lines_come_every_few_seconds_and_rarely_in_long_runs(tmp_path, capsys, monkeypatch):
    assert [pause(seconds) for seconds in (0, 60, 600, 86_400)] == [5, 5, 30, 60]
    monkeypatch.setattr(progress, "pause", lambda elapsed: 0.0)
    fit_config(config(**TEN), tmp_path / "run")
    said = capsys.readouterr().err.splitlines()
    assert [int(found["step"]) for line in said if (found := LINE.fullmatch(line))] == list(range(1, 11))
    assert "validating, batch 1 of 2" in said and "validating, batch 2 of 2" in said


def test_quiet_is_quiet(tmp_path, capsys):
    fit_config(config(**TEN), tmp_path / "run", quiet=True)
    assert capsys.readouterr() == ("", "")


def test_the_shown_loss_is_a_mean_over_recent_updates(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(progress, "pause", lambda elapsed: 0.0)
    run = fit_config(config(**TEN, log_every=1), tmp_path / "run")
    shown = [float(found["loss"]) for line in capsys.readouterr().err.splitlines() if (found := LINE.fullmatch(line))]
    rows = (run.path / "metrics.csv").read_text().splitlines()
    losses = [float(row.split(",")[3]) for row in rows[1:] if row.split(",")[3]]
    weights = torch.tensor([progress.MEMORY ** (9 - i) for i in range(10)])
    assert shown[0] == pytest.approx(losses[0], abs=6e-4)
    assert shown[-1] == pytest.approx(float((torch.tensor(losses) * weights).sum() / weights.sum()), abs=6e-4)


def test_a_terminal_of_80_columns_gets_a_bar_with_the_values_below(tmp_path, monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(
        progress,
        "Console",
        lambda **_: Console(file=screen, force_terminal=True, width=80, height=24, color_system=None),
    )
    monkeypatch.setattr(progress, "REDRAW", 0.0)
    states, show = [], progress._Bar.show_values

    def rendered(self, *args):
        show(self, *args)
        shot = io.StringIO()
        Console(file=shot, width=80, color_system=None).print(self.bars.get_renderable())
        states.append(shot.getvalue().rstrip("\n").split("\n"))

    monkeypatch.setattr(progress._Bar, "show_values", rendered)
    fit_config(config(**TEN), tmp_path / "run")
    assert len(states) == 10
    for step, (bar, values) in enumerate(states, start=1):
        assert max(len(bar.rstrip()), len(values.rstrip())) <= 80
        assert bar.startswith("training ") and bar.count("━") >= 5 * step and bar.index("%") > 60
        assert f"{10 * step}%" in bar and re.search(r"\d:\d\d left", bar)
        found = LINE.fullmatch(values.rstrip())
        assert found and int(found["step"]) == step and not found["left"]
    assert "100%" in screen.getvalue()


def test_the_longest_values_fit_80_columns():
    values = {"step": "25020/500400", "epoch": "100.0", "loss": "12.345", "acc": "100.0%", "val": "100.0%"}
    assert len(as_line(values, 12_345.6)) <= 80


def test_the_bar_is_taken_down_where_a_run_fails(tmp_path, monkeypatch):
    closed = []
    monkeypatch.setattr(progress, "Console", lambda **_: Console(file=io.StringIO(), force_terminal=True, width=80))
    monkeypatch.setattr(progress._Bar, "close", lambda self: closed.append(self.bars.stop()))

    def fail(self, batch, batch_idx):
        raise RuntimeError("a bug")

    monkeypatch.setattr(Learner, "training_step", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        fit_config(config(**TEN), tmp_path / "run")
    assert len(closed) == 1


def test_a_dumb_terminal_gets_lines(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        progress, "Console", lambda **_: Console(file=io.StringIO(), force_terminal=True, _environ={"TERM": "dumb"})
    )
    fit_config(config(**TEN), tmp_path / "run")
    assert "step 10/10" in capsys.readouterr().err


def shown_left(done: int = 40, seconds: float = 2.0, validation: float = 10.0, every: int = 25, **learner) -> float:
    """Seconds that are left, after ``done`` passes of ``seconds`` each and validations of ``validation``."""
    shown = Progress()
    shown.seconds.add(seconds, 1)
    shown._validation_seconds = validation
    config = SimpleNamespace(max_time=learner.pop("max_time", None))
    learner = {"total_batches": 100, "validates": True, "elapsed": 90.0, "config": config, **learner}
    return shown._left(SimpleNamespace(val_check_batch=every), SimpleNamespace(**learner), done)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, 60 * 2 + 3 * 10),  # validated after 50, 75 and 100
        ({"every": 30}, 60 * 2 + 3 * 10),  # after 60, 90 and the end
        ({"done": 100}, 0),
        ({"validates": False}, 60 * 2),
        ({"total_batches": ENDLESS, "max_time": 100.0}, 10 + 10),
        ({"max_time": 100.0}, 10 + 10),  # time ends it first
        ({"max_time": 1e6}, 60 * 2 + 3 * 10),  # steps do
        ({"total_batches": ENDLESS, "max_time": 80.0, "validates": False}, 0),
    ],
)
def test_time_left_is_that_of_the_bound_that_is_reached_first(given, expected):
    assert shown_left(**given) == pytest.approx(expected)


def test_numbers_are_written_so_that_they_say_something():
    assert [as_rate(x) for x in (0.004, 0.34, 9.87, 12.3, 4321.0)] == ["0.004", "0.34", "9.9", "12", "4321"]
    assert [as_duration(x) for x in (0.2, 59.6, 61, 3599, 3600, 100_000)] == [
        "0:00",
        "1:00",
        "1:01",
        "59:59",
        "1:00:00",
        "27:46:40",
    ]
    assert as_line({"step": "1"}, 0.0, 3) == "step 1  0:03 left"  # no image could be read: there is no speed


def test_a_run_that_only_time_ends_shows_the_time_left(tmp_path, capsys):
    fit_config(config(**{**TEN, "steps": None}, max_time=0.05), tmp_path / "run")
    first = next(found for line in capsys.readouterr().err.splitlines() if (found := LINE.fullmatch(line)))
    assert first["of"] is None and first["left"] in ("0:00", "0:01")

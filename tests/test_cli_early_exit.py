"""``--budget`` of evaluate and predict: which thresholds are stored, and when a stored one is used."""

import shutil
from dataclasses import replace

import pytest

from foveal.cli import main
from foveal.errors import StorageError
from foveal.prediction import read_exits, write_exits
from tests.tiny import TINY, failure

HERE = ["--device", "cpu", "--batch-size", "4"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "tiny"
    assert main(["fit", "demo", *TINY, "--steps", "2", "--out", str(out)]) == 0
    return out


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture(scope="module")
def images(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    assert main(["data", str(trained), "--export", str(folder), "--count", "3"]) == 0
    return folder


def test_predict_takes_what_evaluate_solved(run, images, tmp_path, capsys):
    assert main(["evaluate", str(run), "--budget", "1locations", *HERE]) == 0
    (solved,) = read_exits(run)
    # A new solution would not have this mark.
    write_exits(run, [replace(solved, threshold=0.25, images=77)])
    capsys.readouterr()
    assert main(["predict", str(run), str(images), "--budget", "1.0 locations", *HERE]) == 0
    assert "1.0 locations: looking stops at a probability of 25.0 %, or after --locations 2" in capsys.readouterr().err
    assert [one.images for one in read_exits(run)] == [77]


@pytest.mark.parametrize(
    "asked",
    [["--locations", "1"], ["--precision", "bf16"], ["--at-once", "2"]],
    ids=["other looks", "other precision", "other turns"],
)
def test_other_conditions_get_their_own_thresholds(run, images, asked):
    for more in ([], asked):
        assert main(["predict", str(run), str(images), "--budget", "1locations", "--quiet", *HERE, *more]) == 0
    first, second = read_exits(run)
    assert first.conditions != second.conditions and (first.locations, first.at_once, first.precision) == (
        (2,),
        1,
        "32",
    )


def test_a_time_of_another_machine_or_batch_is_measured_again(run, images):
    command = ["predict", str(run), str(images), "--budget", "1000ms", "--quiet", "--device", "cpu", "--batch-size"]
    assert main([*command, "4"]) == 0
    (here,) = read_exits(run)
    assert here.batch_size == 4 and here.machine
    write_exits(run, [replace(here, machine="another machine")])
    for batch in ("4", "2", "2"):
        assert main([*command, batch]) == 0
    assert [(one.machine == here.machine, one.batch_size) for one in read_exits(run)] == [
        (True, 4),
        (False, 4),
        (True, 2),
    ]


def test_thresholds_found_on_other_data_are_not_the_runs(run, tmp_path):
    assert (
        main(
            ["evaluate", str(run), "--budget", "1locations", "--data.seed", "7", "--out", str(tmp_path / "out"), *HERE]
        )
        == 0
    )
    assert (tmp_path / "out" / "early_exit.json").is_file() and read_exits(run) == []


def test_a_run_that_cannot_be_written_gives_its_results_all_the_same(run, tmp_path, monkeypatch, capsys):
    def refuse(folder, exits):
        raise StorageError("exits.json: cannot be written (Permission denied); the thresholds are not stored")

    monkeypatch.setattr("foveal.prediction.write_exits", refuse)
    assert main(["evaluate", str(run), "--budget", "1locations", "--out", str(tmp_path / "out"), *HERE]) == 0
    assert (tmp_path / "out" / "early_exit.json").is_file()
    assert "cannot be written (Permission denied); the thresholds are not stored" in capsys.readouterr().err


def test_damaged_thresholds_are_told_of_before_the_work(run, capsys, monkeypatch):
    (run / "exits.json").write_text("{")
    monkeypatch.setattr(
        "foveal.evaluation.evaluate_early_exit", lambda *args, **options: pytest.fail("the work was done")
    )
    code, said = failure(capsys, "evaluate", run, "--budget", "1locations", *HERE)
    assert code == 1 and "exits.json: is damaged or not a file of foveal" in said and "delete it" in said


def test_data_must_have_the_models_classes_and_validation_images(run, images, tmp_path, capsys):
    for split in ("train", "val", "test"):
        for name in "ab":
            shutil.copytree(images, tmp_path / "folder" / split / name)
    command = ["evaluate", run, "--budget", "1locations", "--data", "folder", "--data.root", tmp_path / "folder", *HERE]
    code, said = failure(capsys, *command)
    assert code == 1 and "class 'a' is unknown to the model" in said
    code, said = failure(capsys, "evaluate", run, "--budget", "1locations", "--data.val", "0", *HERE)
    assert code == 1 and "thresholds are found on validation images, and there are none" in said
    assert read_exits(run) == []


def test_an_output_is_not_continued_without_its_budget(run, images, tmp_path, capsys):
    command = ["predict", run, images, "--out", tmp_path / "out.jsonl", "--quiet", *HERE]
    assert main([*map(str, command), "--budget", "0.5locations"]) == 0
    before = (tmp_path / "out.jsonl").read_bytes()
    code, said = failure(capsys, *command)
    assert code == 2 and "was written with other settings (budget)" in said
    assert (tmp_path / "out.jsonl").read_bytes() == before

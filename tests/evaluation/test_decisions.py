"""Decision thresholds: against brute force over all thresholds, and kept in a run by the command line."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import foveal
from foveal.cli import main
from foveal.data import DATA_SETS, DataModule, ImageDataset
from foveal.errors import ConfigError, DataError
from foveal.evaluation import Setting, evaluate, fit_threshold
from foveal.evaluation.decisions import AIMS, parse_aim, threshold_at, threshold_curve
from foveal.metrics import wilson
from foveal.recipes.fit_config import fit_config
from foveal.runs import Run
from tests.tiny import failure
from tests.training.tiny import NORM_FREE, config

CPU = Setting(device="cpu")


# ---- one class against the rest


def shares(true, scores, threshold):
    predicted = scores >= threshold
    found = (predicted & true).sum()
    return {
        "recall": found / true.sum(),
        "precision": found / predicted.sum() if predicted.any() else None,
        "specificity": (~predicted & ~true).sum() / (~true).sum(),
    }


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("aim", AIMS)
def test_a_threshold_is_the_best_of_all(aim, seed):
    rng = np.random.default_rng(seed)
    true = rng.random(30) < 0.4
    true[:2] = True, False
    scores = np.round(np.clip(rng.normal(0.5 + 0.2 * true, 0.3), 0, 1), 1)  # ties, and scores of 0 and 1
    every = {level: shares(true, scores, level) for level in np.unique(scores)}
    for wanted in (0.3, 0.8, 0.95, 1.0):
        threshold = threshold_at(aim, wanted, threshold_curve(true, scores))
        reached = [level for level, of in every.items() if of[aim] >= wanted - 1e-12]
        if not reached:
            assert threshold is None
            continue
        best = max(reached) if aim == "recall" else min(reached)
        assert (scores >= threshold).tolist() == (scores >= best).tolist()
        assert 0 <= threshold <= 1 and shares(true, scores, threshold)[aim] >= wanted - 1e-12


def test_a_threshold_is_halfway_between_scores():
    true, scores = np.array([True, False, True]), np.array([0.9, 0.5, 0.2])
    assert threshold_at("recall", 0.5, threshold_curve(true, scores)) == pytest.approx(0.7)
    assert threshold_at("recall", 1.0, threshold_curve(true, scores)) == pytest.approx(0.1)
    assert threshold_at("specificity", 1.0, threshold_curve(true, scores)) == pytest.approx(0.7)
    # There is no number between these.
    above = np.nextafter(0.5, 1)
    for low, high in ((0.5, above), (above, np.nextafter(above, 1))):
        threshold = threshold_at("specificity", 1.0, threshold_curve(np.array([False, True]), np.array([low, high])))
        assert low < threshold <= high


@pytest.mark.parametrize("aim", ["precision", "specificity"])
def test_what_no_threshold_reaches(aim):
    """The highest score, of 1, is that of an image without the class."""
    assert threshold_at(aim, 1.0, threshold_curve(np.array([False, True]), np.array([1.0, 0.5]))) is None


@pytest.mark.parametrize(
    "text", ["recall", "recall=", "recall=0", "recall=1.1", "recall=x", "F1=0.9", "", "recall=nan"]
)
def test_what_is_no_aim_gets_a_sentence(text):
    with pytest.raises(
        ConfigError, match=r"^`at` [^\n]*: is not an aim; give recall, precision, specificity and [^\n]*$"
    ):
        parse_aim(text)


def test_aims():
    assert [parse_aim(text) for text in ("recall=1", " precision = .5")] == [("recall", 1.0), ("precision", 0.5)]


# ---- a run


def made(root: Path, split: str, count: int, seed: int) -> ImageDataset:
    """Grey images in files; brighter ones are more often cracked."""
    rng = np.random.default_rng(seed)
    target = (np.arange(count) % 3 == 0).astype(int)
    files = []
    for i, kind in enumerate(target):
        level = rng.integers(60, 150) + 50 * kind
        pixels = np.clip(rng.normal(level, 10, (16, 16, 3)), 0, 255).astype(np.uint8)
        files.append(root / f"{split}_{i:02d}.png")
        Image.fromarray(pixels).save(files[-1])
    return ImageDataset([str(file) for file in files], target, ("sound", "cracked"))


@DATA_SETS.register
def tiny_cracks(root: str, val: int = 24) -> DataModule:
    folder = Path(root)
    folder.mkdir(exist_ok=True)
    splits = [made(folder, split, count, seed) for seed, (split, count) in enumerate([("train", 24), ("val", val)])]
    return DataModule(
        ("sound", "cracked"), splits[0], splits[1] if val else None, made(folder, "test", 15, 2), name="tiny_cracks"
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("cracks")
    changes = {"model": NORM_FREE, "accumulate": 1, "ema": None, "epochs": None, "steps": 12, "batch_size": 8}
    settings = config(data={"name": "tiny_cracks", "root": str(root / "data")}, **changes)
    return fit_config(settings, root / "run", quiet=True).path


@pytest.fixture
def run(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def predicted(run: Path, out: Path, *more: str) -> list[dict[str, str]]:
    images = run.parent / "test_images"
    assert main(["predict", str(run), str(images), "--out", str(out), "--device", "cpu", "--quiet", *more]) == 0
    with out.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture
def images(trained, run) -> Path:
    folder = run.parent / "test_images"
    folder.mkdir()
    for file in (trained.parent / "data").glob("test_*.png"):
        shutil.copy(file, folder / file.name)
    return folder


def test_a_threshold_of_a_run(run, images, capsys, tmp_path):
    data = tiny_cracks(str(tmp_path / "data"))
    plain = predicted(run, tmp_path / "plain.csv")
    assert main(["threshold", str(run), "--at", "recall=1", "--device", "cpu", "--quiet"]) == 0
    assert "cracked" in capsys.readouterr().out
    assert {"threshold.json", "threshold.png"} <= {file.name for file in run.iterdir()}
    (stored,) = json.loads((run / "threshold.json").read_text())["thresholds"]
    (kept,) = json.loads((run / "config.json").read_text())["thresholds"]
    assert kept == {key: stored[key] for key in ("label", "threshold", "at")}
    assert (kept["label"], kept["at"], stored["recall"]) == ("cracked", "recall=1", 1.0)
    assert stored["recall_interval"] == list(wilson(8, 8)) and (stored["positives"], stored["negatives"]) == (8, 16)
    # As the probabilities of the validation images say.
    folder = tmp_path / "data"
    rows = list(foveal.predict(Run(run), sorted(folder.glob("val_*.png")), device="cpu", top_k=2).rows)
    scores = np.array([next(t["probability"] for t in row["top_k"] if t["label"] == "cracked") for row in rows])
    true = data.val.targets == 1
    assert kept["threshold"] == pytest.approx(threshold_at("recall", 1.0, threshold_curve(true, scores)), abs=1e-9)
    assert stored["specificity"] == shares(true, scores, kept["threshold"])["specificity"]
    # And is used.
    later = predicted(run, tmp_path / "later.csv")
    p = [json.loads(row["top_k"]) for row in later]
    cracked = [next(t["probability"] for t in top if t["label"] == "cracked") for top in p]
    assert [row["label"] for row in later] == ["cracked" if x >= kept["threshold"] else "sound" for x in cracked]
    assert [row["label"] for row in later] != [row["label"] for row in plain]
    for row, x in zip(later, cracked, strict=True):
        assert float(row["probability"]) == pytest.approx(x if row["label"] == "cracked" else 1 - x, abs=1e-9)
    model = foveal.load(run)
    assert model.task.thresholds == ((1, kept["threshold"]),)
    result = evaluate(model, data, measure="none", setting=CPU)
    assert result.as_dict()["thresholds"] == [["cracked", kept["threshold"]]]
    right = np.mean(
        [(row["label"] == "cracked") == (target == 1) for row, target in zip(later, data.test.targets, strict=True)]
    )
    assert result.points[1].accuracy == pytest.approx(right)


def test_a_threshold_is_told(run, images, capsys, tmp_path):
    Run(run).keep_thresholds([{"label": "cracked", "threshold": 0.125, "at": "recall=0.9"}])
    rule = "cracked is predicted from 12.5 %"
    one = images / "test_00.png"
    page = tmp_path / "page.html"
    assert main(["explain", str(run), str(one), "--out", str(page), "--device", "cpu"]) == 0
    pages = [page] if page.is_file() else list(page.rglob("*.html"))
    assert rule in pages[0].read_text(encoding="utf-8")
    assert rule in " ".join(capsys.readouterr().out.split())
    assert main(["evaluate", str(run), "--measure", "none", "--device", "cpu", "--quiet"]) == 0
    assert "Classes are predicted by the thresholds of the run." in " ".join(capsys.readouterr().out.split())


def test_thresholds_are_removed(run):
    before = json.loads((run / "config.json").read_text())
    Run(run).keep_thresholds([{"label": "cracked", "threshold": 0.1, "at": "recall=0.9"}])
    assert foveal.load(run).task.thresholds
    assert main(["threshold", str(run), "--remove"]) == 0
    assert not foveal.load(run).task.thresholds
    assert json.loads((run / "config.json").read_text()) == {**before, "thresholds": []}


def test_one_of_two_classes_has_a_threshold(run):
    """With one for each, an image could reach both, and the recall of each would be another than was asked for."""
    for label in ("sound", "cracked"):
        assert main(["threshold", str(run), "--at", "recall=0.9", "--class", label, "--device", "cpu", "--quiet"]) == 0
        assert [one["label"] for one in Run(run).card["thresholds"]] == [label]


def test_the_threshold_of_one_class_is_removed(run):
    both = [{"label": label, "threshold": 0.2, "at": "recall=0.9"} for label in ("cracked", "sound")]
    Run(run).keep_thresholds(both)
    assert main(["threshold", str(run), "--remove", "--class", "sound"]) == 0
    assert Run(run).card["thresholds"] == both[:1]


def test_classes_are_named_as_in_the_run(run, tmp_path):
    """A data set may have the other Unicode form of a name, and the form that is stored must be that of the run."""
    model, data = foveal.load(run), tiny_cracks(str(tmp_path / "data"))
    model.class_names, data.classes = ("sound", "f\u00ealure"), ("sound", "fe\u0302lure")
    for label in (None, *data.classes[1:], *model.class_names[1:]):
        found = fit_threshold(model, data, "recall=0.9", label=label, setting=CPU)
        assert found.thresholds[0].label == "f\u00ealure"


def test_predictions_of_another_threshold_are_not_continued(run, images, capsys, tmp_path):
    out = tmp_path / "rows.csv"
    predicted(run, out)
    Run(run).keep_thresholds([{"label": "cracked", "threshold": 0.01, "at": "recall=0.9"}])
    command = ["predict", run, images, "--out", out, "--device", "cpu", "--quiet"]
    code, said = failure(capsys, *command)
    assert code == 2 and "rows.csv" in said and "thresholds" in said


def test_fitting_leaves_the_model_as_it_is(run, tmp_path):
    Run(run).keep_thresholds([{"label": "cracked", "threshold": 0.9, "at": "precision=0.9"}])
    model = foveal.load(run)
    data = tiny_cracks(str(tmp_path / "data"))
    found = fit_threshold(model, data, "recall=0.9", setting=CPU)
    assert model.task.thresholds == ((1, 0.9),)
    Run(run).keep_thresholds([])
    assert fit_threshold(run, data, "recall=0.9", setting=CPU).thresholds == found.thresholds


def test_the_rarer_class_does_not_depend_on_the_limit(run, tmp_path):
    data = tiny_cracks(str(tmp_path / "data"))
    few = [Setting(device="cpu", limit=limit, seed=seed) for limit in (4, 6) for seed in range(8)]
    drawn = []
    for setting in few:
        try:
            drawn.append(fit_threshold(run, data, "recall=0.1", setting=setting).thresholds[0])
        except DataError as error:
            assert "'cracked'" in str(error)  # it was not drawn
    assert {one.label for one in drawn} == {"cracked"}
    assert any(one.positives >= one.negatives for one in drawn)


def test_other_locations_are_told(run, capsys):
    command = ["threshold", str(run), "--at", "recall=0.9", "--device", "cpu"]
    assert main(command) == 0 and "holds for" not in capsys.readouterr().err
    assert main([*command, "--locations", "1"]) == 0
    assert "the threshold holds for --locations 1; give the same to predict" in capsys.readouterr().err


def test_a_threshold_that_is_none_is_not_kept(run):
    before = (run / "config.json").read_bytes()
    for one, fault in (
        ({"label": "crack", "threshold": 0.5, "at": ""}, "there is no class 'crack'"),
        ({"label": "cracked", "threshold": 2.0, "at": ""}, "2.0 is not from 0 to 1"),
    ):
        with pytest.raises(ConfigError, match=rf"^thresholds: {fault}; the thresholds of [^\n]* stay as they are$"):
            Run(run).keep_thresholds([one])
    assert (run / "config.json").read_bytes() == before


# ---- errors


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "--at: is missing; give an aim, such as recall=0.99, or --remove"),
        (["--at", "recall=0.9", "--remove"], "--remove: cannot be used with --at; use one of the two"),
        (["--remove", "--class", "cracked"], "--class cracked: has no threshold in "),
        (["--at", "recall=2"], "--at recall=2: is not an aim; give recall, precision, specificity and a share"),
        (
            ["--at", "recall=0.9", "--class", "crack"],
            "--class crack: there is no such class; use one of sound, cracked",
        ),
    ],
)
def test_errors_of_the_command(run, capsys, arguments, sentence):
    code, said = failure(capsys, "threshold", run, *arguments, *(["--device", "cpu"] if arguments else []))
    assert code == 2 and sentence in said
    assert "thresholds" not in json.loads((run / "config.json").read_text())


def test_a_run_without_validation_images(run, tmp_path):
    told = "thresholds are found on validation images, and there are none"
    with pytest.raises(DataError, match=rf"^tiny_cracks: {told}; give the data a val split$"):
        fit_threshold(run, tiny_cracks(str(tmp_path / "data"), val=0), "recall=0.9", setting=CPU)


def test_validation_images_of_one_class(run, tmp_path):
    data = tiny_cracks(str(tmp_path / "data"))
    data.val.targets[:] = 0
    with pytest.raises(
        DataError, match=r"^tiny_cracks: no validation image has the class 'cracked'; hold out images [^\n]*$"
    ):
        fit_threshold(run, data, "recall=0.9", setting=CPU)
    with pytest.raises(DataError, match=r"^tiny_cracks: every validation image has the class 'sound'; hold out"):
        fit_threshold(run, data, "recall=0.9", label="sound", setting=CPU)


def test_an_aim_out_of_reach(run, tmp_path):
    data = tiny_cracks(str(tmp_path / "data"))
    # The classes are interchanged, so that the most probable images are the wrong ones.
    data.val.targets[:] = 1 - data.val.targets
    found = r"^`at` precision=1: no threshold reaches it for 'sound', the best is [\d.]+ %; ask for less$"
    with pytest.raises(ConfigError, match=found):
        fit_threshold(run, data, "precision=1", label="sound", setting=CPU)


def test_several_classes_need_a_name():
    from tests.training.tiny import tiny_images

    model = foveal.create_model("tnet", backbone="norm_free_16", num_classes=3, base_size=16, locations=(1,))
    with pytest.raises(ConfigError, match=r"^`label`: there are 3 classes; name the one to be decided by a threshold$"):
        fit_threshold(model, tiny_images(), "recall=0.9", setting=CPU)
    found = fit_threshold(model, tiny_images(val=9), "recall=1", label="green", setting=CPU)
    assert [one.label for one in found.thresholds] == ["green"] and torch.is_grad_enabled()


# ---- metrics by name


def test_metrics_of_the_command(run, capsys):
    common = ["evaluate", str(run), "--measure", "none", "--device", "cpu", "--quiet"]
    assert main([*common, "--metrics", "nll,macro_f1"]) == 0
    stored = json.loads((run / "evaluation.json").read_text())
    assert stored["metrics"] == ["nll", "macro_f1"]
    assert {"accuracy", "nll", "macro_f1"} < set(stored["points"][0]) and "auroc" not in stored["points"][0]
    assert "NLL" in capsys.readouterr().out
    code, said = failure(capsys, *common, "--metrics", "nll,roc")
    assert code == 2 and "--metrics roc: there is no metric of this name; " in said
    with pytest.raises(ConfigError, match=r"^`metrics` roc: there is no metric of this name; "):
        Setting(metrics=["roc"])

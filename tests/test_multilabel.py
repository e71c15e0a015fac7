"""Several labels an image: digits of scikit-learn on canvases, from training to pages."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import sklearn.metrics as sklearn
import torch
from PIL import Image
from sklearn.datasets import load_digits

import foveal
from foveal.data import DATA_SETS, DataModule, ImageDataset, TensorDataset
from foveal.display import significant
from foveal.draws import Draws
from foveal.errors import ConfigError, DataError, RunError
from foveal.evaluation import (
    Setting,
    compare,
    evaluate,
    evaluate_early_exit,
    evaluate_faithfulness,
    fit_threshold,
    occlude,
)
from foveal.explain import report
from foveal.images import TensorViews
from foveal.models import create_model
from foveal.objectives.tnet import ReferenceTNetObjective
from foveal.policies import find_policy
from foveal.prediction import predict
from foveal.recipes.fit_config import fit_config
from foveal.runs import Run
from tests.training.tiny import NORM_FREE, config

CPU = Setting(device="cpu", batch_size=8)
LABELS = ("zero", "one", "two", "three")


def canvases(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(N, 32, 32) uint8 canvases with none to three different digits, and (N, 4) which."""
    digits, kind = load_digits(n_class=4, return_X_y=True)
    rng = np.random.default_rng(seed)
    images, target = np.zeros((count, 32, 32), np.uint8), np.zeros((count, 4), bool)
    for canvas, holds in zip(images, target, strict=True):
        here = rng.choice(4, rng.integers(0, 4), replace=False)
        holds[here] = True
        for digit, cell in zip(here, rng.choice(16, len(here), replace=False), strict=True):
            y, x = divmod(int(cell), 4)
            drawn = digits[rng.choice(np.flatnonzero(kind == digit))]
            canvas[8 * y : 8 * y + 8, 8 * x : 8 * x + 8] = 15 * drawn.reshape(8, 8)
    return images, target


def in_memory(count: int, seed: int) -> TensorDataset:
    images, target = canvases(count, seed)
    return TensorDataset(torch.from_numpy(images)[:, None].expand(-1, 3, -1, -1).contiguous(), target, LABELS)


@DATA_SETS.register
def many_digits(train: int = 48, val: int = 20) -> DataModule:
    return DataModule(LABELS, in_memory(train, 0), in_memory(val, 1), in_memory(14, 2), name="many_digits")


def files(folder: Path, data: TensorDataset) -> list[str]:
    folder.mkdir()
    paths = [folder / f"{i:02d}.png" for i in range(len(data))]
    for path, image in zip(paths, data.images, strict=True):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    return list(map(str, paths))


TRAINING = {"accumulate": 1, "ema": None, "epochs": None, "steps": 8, "batch_size": 8, "val_every": 4}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run whose images do not see each other, so that answers do not depend on batches."""
    out = tmp_path_factory.mktemp("many") / "run"
    settings = config(model=NORM_FREE, data={"name": "many_digits"}, **TRAINING, monitor="average_precision")
    return fit_config(settings, out, quiet=True).path


@pytest.fixture(scope="module")
def model(trained):
    return foveal.load(trained)


@pytest.fixture(scope="module")
def data():
    return many_digits()


def test_a_run_knows_its_task(trained, model):
    card = json.loads((trained / "config.json").read_text())
    assert card["task"] == "multilabel" and model.task.name == "multilabel" and model.class_names == LABELS
    with (trained / "metrics.csv").open() as file:
        validations = [row for row in csv.DictReader(file) if row["val_loss"]]
    assert len(validations) == 2 and all(0 < float(row["val_average_precision"]) < 1 for row in validations)
    summary = Run(trained).summary
    _, target = canvases(20, 1)
    sets, counts = np.unique(target, axis=0, return_counts=True)
    assert summary["commonest_share"] == counts.max() / 20
    assert summary["commonest"] == "|".join(np.array(LABELS)[sets[counts.argmax()]])


@pytest.mark.parametrize("name", ["tnet", "saccader"])
def test_contributions_add_up_for_each_label(name, data):
    small = {"saccader": {"backbone": "test_bagnet_lowd", "image_size": 45}, "tnet": NORM_FREE | {"name": None}}[name]
    own = create_model(name, **{key: value for key, value in small.items() if key != "name"}, num_classes=4)
    own.task = data.task
    seen = foveal.classify(own, data.test.images[:5], device="cpu")
    for one in seen:
        torch.testing.assert_close(one.glimpses.contribution.sum(0), one.logits, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(one.probabilities, one.logits.sigmoid())


def test_training_learns_labels(tmp_path):
    """The loss of the training images falls; every label has a gradient."""
    settings = config(model=NORM_FREE, data={"name": "many_digits"}, **{**TRAINING, "steps": 40, "val_every": 40})
    run = fit_config(settings, tmp_path / "run", quiet=True)
    with (run.path / "metrics.csv").open() as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file) if row["loss"]]
    assert np.mean(losses[-8:]) < np.mean(losses[:8]) - 0.02


def test_class_weights():
    """With a weight on one label alone, the last layer has a gradient for this label alone."""
    own = create_model("tnet", backbone="norm_free_16", num_classes=4, base_size=16)
    train = many_digits().train
    objective = ReferenceTNetObjective(image_share=0.5, class_weights=(0.0, 0.0, 1.0, 0.0))
    views = TensorViews(train.images[:8].float() / 255)
    rollouts = own.roll_out(views, (2,), [find_policy("greedy")], Draws(0, 0, np.arange(8)))
    loss, *_ = objective(rollouts, torch.from_numpy(train.targets[:8]), objective.initial_state())
    loss.backward()
    gradient = own.classifier.weight.grad.abs().sum(1)
    assert gradient[2] > 0 and gradient[[0, 1, 3]].eq(0).all()


def test_balanced_class_weights(tmp_path):
    """The loss that is written is the weighted one: the inverse of how often each label holds."""
    changes = {**TRAINING, "steps": 1, "log_every": 1, "ema": None}
    losses = {}
    counts = many_digits().train.counts()
    given = (1 / counts / (1 / counts).mean()).tolist()
    for name, weights in {"balanced": "balanced", "given": given, "none": None}.items():
        settings = config(model=NORM_FREE, data={"name": "many_digits"}, **changes, class_weights=weights)
        run = fit_config(settings, tmp_path / name, quiet=True)
        with (run.path / "metrics.csv").open() as file:
            losses[name] = float(next(csv.DictReader(file))["loss"])
    assert losses["balanced"] == pytest.approx(losses["given"], abs=2e-6)
    assert losses["none"] != pytest.approx(losses["given"], abs=1e-4)


def test_labels_are_not_balanced_and_an_older_run_stays(trained, tmp_path):
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    before = {file.name: file.read_bytes() for file in run.iterdir()}
    settings = config(model=NORM_FREE, data={"name": "many_digits"}, **TRAINING, sampling="balanced")
    with pytest.raises(ConfigError, match=r"^sampling: images of several labels cannot be balanced by class; "):
        fit_config(settings, run, overwrite=True, quiet=True)
    assert {file.name: file.read_bytes() for file in run.iterdir()} == before


# ---- evaluation


def test_evaluation_is_that_of_scikit_learn(trained, data, tmp_path):
    """On the rows of predictions, written to a file: to nine digits."""
    paths = files(tmp_path / "images", data.test)
    predict(trained, paths, out=tmp_path / "rows.jsonl", top_k=4, device="cpu")
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    p = np.array([[{t["label"]: t["probability"] for t in row["top_k"]}[label] for label in LABELS] for row in rows])
    predicted = np.array([[label in row["label"].split("|") for label in LABELS] for row in rows])
    target = data.test.targets
    assert (predicted == (p >= 0.5)).all()
    assert [row["probability"] for row in rows] == pytest.approx(np.maximum(p, 1 - p).min(1), abs=1e-12)
    on_disk = DataModule(LABELS, test=ImageDataset(paths, target, LABELS), name="many_digits")
    evaluate(trained, on_disk, locations=[(2,)], measure="none", setting=CPU).write(tmp_path / "result")
    point = json.loads((tmp_path / "result" / "evaluation.json").read_text())["points"][0]
    expected = {
        "accuracy": sklearn.accuracy_score(target, predicted),
        "macro_f1": sklearn.f1_score(target, predicted, average="macro", zero_division=np.nan),
        "auroc": sklearn.roc_auc_score(target, p, average="macro"),
        "average_precision": sklearn.average_precision_score(target, p, average="macro"),
        "nll": np.mean([sklearn.log_loss(*pair, labels=[0, 1]) for pair in zip(target.T, p.T, strict=True)]),
    }
    assert {name: point[name] for name in expected} == pytest.approx(expected, abs=1e-9)
    assert point["confusion"] == sklearn.multilabel_confusion_matrix(target, predicted).tolist()
    for i, one in enumerate(point["classes"]):
        assert one["auroc"] == pytest.approx(sklearn.roc_auc_score(target[:, i], p[:, i]), abs=1e-9)


@pytest.fixture(scope="module")
def trained_classes(tmp_path_factory) -> tuple[Path, ImageDataset]:
    """A run of two classes, and its test images in files."""
    root = tmp_path_factory.mktemp("two")
    out = fit_config(config(model=NORM_FREE, data={"name": "zero_or_not"}, **TRAINING), root / "run", quiet=True).path
    test = zero_or_not().test
    return out, ImageDataset(files(root / "images", test), test.targets, test.classes)


@DATA_SETS.register
def zero_or_not() -> DataModule:
    splits = []
    for seed, count in enumerate((48, 20, 15)):
        images, target = canvases(count, seed)
        pixels = torch.from_numpy(images)[:, None].expand(-1, 3, -1, -1).contiguous()
        splits.append(TensorDataset(pixels, target[:, 0].astype(int), ("not", "zero")))
    return DataModule(("not", "zero"), *splits, name="zero_or_not")


def test_evaluation_of_two_classes_is_that_of_scikit_learn(trained_classes, tmp_path):
    run, images = trained_classes
    predict(run, [images.path(i) for i in range(len(images))], out=tmp_path / "rows.jsonl", top_k=2, device="cpu")
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    p = np.array([{t["label"]: t["probability"] for t in row["top_k"]}["zero"] for row in rows])
    predicted, target = np.array([row["label"] == "zero" for row in rows]).astype(int), images.targets
    data = DataModule(("not", "zero"), test=images, name="zero_or_not")
    evaluate(run, data, locations=[(2,)], measure="none", setting=CPU).write(tmp_path / "result")
    stored = json.loads((tmp_path / "result" / "evaluation.json").read_text())
    point, rare = stored["points"][0], int(2 * target.sum() <= len(target))
    assert stored["positive"] == ("not", "zero")[rare]
    score = p if rare else 1 - p
    expected = {
        "accuracy": sklearn.accuracy_score(target, predicted),
        "balanced_accuracy": sklearn.balanced_accuracy_score(target, predicted),
        "macro_f1": sklearn.f1_score(target, predicted, average="macro"),
        "auroc": sklearn.roc_auc_score(target, p),
        "average_precision": sklearn.average_precision_score(target == rare, score),
        "nll": sklearn.log_loss(target, p),
    }
    assert {name: point[name] for name in expected} == pytest.approx(expected, abs=1e-9)
    assert point["confusion"] == sklearn.confusion_matrix(target, predicted, labels=[0, 1]).tolist()


def test_other_evaluations(model, data):
    compared = compare([model, "test_resnet"], data, measure="none", setting=CPU)
    assert {p.model for p in compared.points if p.images} == {"model"} and compared.points[0].metrics["auroc"].value
    hidden = occlude(model, data, setting=CPU)
    whole = next(p for p in hidden.points if p.kind == "whole")
    own = evaluate(model, data, locations=[(2,)], measure="none", setting=CPU).points[0]
    assert whole.metrics["auroc"] == own.metrics["auroc"]
    ended = evaluate_early_exit(model, data, ["1locations"], setting=CPU)
    (one,) = (way for way in ended.ways if way.stops)
    assert one.locations <= 2 and one.metrics["macro_f1"].value is not None


def test_faithfulness_refuses_in_a_sentence(model, data):
    with pytest.raises(ConfigError, match=r"^model: it predicts labels, and faithfulness [^\n]*; use occlude instead$"):
        evaluate_faithfulness(model, data, setting=CPU)


def test_thresholds_of_labels(trained, data, tmp_path):
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    found = fit_threshold(run, data, "recall=1", setting=CPU)
    assert [one.label for one in found.thresholds] == list(LABELS)
    Run(run).keep_thresholds([{"label": t.label, "threshold": t.threshold, "at": t.at} for t in found.thresholds])
    seen = foveal.classify(foveal.load(run), data.val.images, device="cpu")
    p = seen.logits.double().sigmoid().numpy()
    predicted = p >= [one.threshold for one in found.thresholds]
    assert (predicted | ~data.val.targets).all()  # no label is missed
    assert seen.label == ["|".join(np.array(LABELS)[row]) for row in predicted]


# ---- predictions and pages


def test_predictions_in_all_formats(trained, data, tmp_path):
    paths = files(tmp_path / "images", data.test)
    labels = {}
    for suffix in ("csv", "jsonl", "parquet"):
        out = tmp_path / f"rows.{suffix}"
        predict(trained, paths[:6], out=out, device="cpu", batch_size=4)
        predict(trained, paths, out=out, device="cpu", batch_size=4)  # goes on
        if suffix == "parquet":
            rows = pq.read_table(out).to_pylist()
        elif suffix == "csv":
            with out.open() as file:
                rows = list(csv.DictReader(file))
        else:
            rows = [json.loads(line) for line in out.read_text().splitlines()]
        assert [Path(row["path"]).name for row in rows] == [Path(path).name for path in paths]
        labels[suffix] = [(row["label"], round(float(row["probability"]), 6)) for row in rows]
    assert labels["csv"] == labels["jsonl"] == labels["parquet"]
    expected = foveal.classify(foveal.load(trained), paths, device="cpu").label
    assert [label for label, _ in labels["csv"]] == expected


def test_a_page_says_the_labels(model, data, tmp_path):
    own = model
    for threshold, label in ((0.0, "zero|one|two|three"), (1.0, "no label")):
        own.task = own.task.with_thresholds([(i, threshold) for i in range(4)])
        try:
            seen = foveal.classify(own, data.test.images[0], device="cpu")
            page = report(seen, data.test.images[0], tmp_path / f"{threshold}.html")
        finally:
            own.task = own.task.with_thresholds([])
        text = page.read_text(encoding="utf-8")
        assert f"<h1>{label} <small>least certain label: " in text
        assert f"zero is predicted from {significant(100 * threshold)} %" in text


# ---- what fits not


def test_data_of_another_task(trained, trained_classes, data):
    names = ("zero", "one", "two", "three")
    classes = TensorDataset(data.test.images, np.arange(14) % 4, names)
    sentence = r"^one of each: its targets are multiclass, the model is multilabel; use data of the same task$"
    with pytest.raises(ConfigError, match=sentence):
        evaluate(trained, DataModule(names, test=classes, name="one of each"), measure="none", setting=CPU)
    labels = TensorDataset(data.test.images, data.test.targets[:, :2], ("not", "zero"))
    with pytest.raises(ConfigError, match=r"^labels: its targets are multilabel, the model is multiclass; use [^\n]*$"):
        other = DataModule(("not", "zero"), test=labels, name="labels")
        evaluate(trained_classes[0], other, measure="none", setting=CPU)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"task": "regression"}, "task"),
        ({"task": ["multilabel"]}, "task"),
        ({"task": None}, "task"),
        ({"thresholds": {"zero": 0.5}}, "thresholds"),
        ({"thresholds": [0.5]}, "thresholds"),
        ({"thresholds": [{"label": "zero"}]}, "thresholds"),
        ({"thresholds": [{"label": "zero", "threshold": "0.5", "at": "recall=1"}]}, "thresholds"),
        (
            {"thresholds": [{"label": "nine", "threshold": 0.5, "at": "recall=1"}]},
            "there is no class 'nine'",
        ),
        ({"thresholds": [{"label": "zero", "threshold": 1.5, "at": "recall=1"}]}, "thresholds: 1.5 is not from 0 to 1"),
        ({"thresholds": [{"label": "zero", "threshold": float("nan"), "at": "recall=1"}]}, ""),
        ({"thresholds": [{"label": "zero", "threshold": 0.5, "at": "x"}] * 2}, "thresholds: 'zero' has several"),
    ],
)
def test_hostile_cards_get_a_sentence(trained, tmp_path, changes, what):
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    card = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(card | changes))
    with pytest.raises((RunError, DataError)) as error:
        foveal.load(run)
    said = str(error.value)
    assert "\n" not in said and said.startswith(f"{run / 'config.json'}: ") and what in said, said

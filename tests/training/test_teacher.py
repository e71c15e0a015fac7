"""A trained model teaches a policy: its weights are pooled over cells, and training needs it, but nothing else does."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from foveal.data import DataModule
from foveal.data.dataset import TensorDataset
from foveal.draws import Draws
from foveal.errors import ConfigError, RunError
from foveal.glimpse.base import GlimpseClassifier
from foveal.glimpse.scan import Scan
from foveal.glimpse.tnet import TNet
from foveal.images import TensorViews
from foveal.models import create_classifier
from foveal.objectives.rollout import MASKED
from foveal.recipes.fit_config import fit_config
from foveal.runs import ModelInfo, Run, load, save_model, with_absolute_paths
from foveal.training.learner import Learner, _rows
from foveal.training.teacher import Teacher, pooled
from tests.training.test_resume import metrics
from tests.training.tiny import NORM_FREE, config

SCAN = {"name": "scan", "look_size": 8, "scale": 1, "scout_width": 4, "candidates": 5}
CLASSES = ("red", "green", "blue")


def by_pixels(box: np.ndarray, weight: float, cells: np.ndarray, free: np.ndarray) -> np.ndarray:
    """(K,) weights of cells: pixels of the box are counted on a map of 64 x 64."""
    maps = np.zeros((len(cells) + 2, 64, 64), dtype=bool)
    around = [*cells[:, :2].min(0), *cells[:, 2:].max(0)]
    for drawn, (y0, x0, y1, x1) in zip(maps, [box, around, *cells], strict=True):
        drawn[int(y0) : int(y1), int(x0) : int(x1)] = True
    shared = (maps[2:] & maps[0]).sum((1, 2)) * free
    inside = (maps[0] & maps[1]).sum() / maps[0].sum()
    return weight * inside * shared / shared.sum() if shared.any() else np.zeros(len(cells))


def test_weights_are_pooled_as_pixels_are_counted():
    rng = np.random.default_rng(0)
    first = rng.integers(0, 50, (3, 6, 2))
    boxes = np.concatenate([first, first + rng.integers(1, 14, (3, 6, 2))], axis=-1).astype(float)
    weights = torch.from_numpy(rng.dirichlet(np.ones(6), 3))
    corner = rng.integers(0, 30, (3, 2, 4, 2))
    cells = np.concatenate([corner, corner + rng.integers(8, 34, (3, 2, 4, 2))], axis=-1).astype(float)
    free = rng.random((3, 2, 4)) < 0.7
    log_p = torch.where(torch.from_numpy(free), 0.0, 10 * MASKED).double()
    got = pooled(boxes, weights, cells, log_p).numpy()
    for b, g in np.ndindex(3, 2):
        expected = [by_pixels(boxes[b, i], float(weights[b, i]), cells[b, g], free[b, g]) for i in range(6)]
        np.testing.assert_allclose(got[b, g], np.sum(expected, 0), atol=1e-12)
    assert got.sum(2).min() > 0 and got.sum(2).max() < 1  # boxes at the edges and beyond


@pytest.fixture(scope="module")
def scan() -> Scan:
    torch.manual_seed(0)
    model = Scan(3, **{key: value for key, value in SCAN.items() if key != "name"}).eval()
    model.scout.score.weight.data *= 300  # scores of random weights are nearly equal
    return model


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(2, 3, 48, 64, generator=torch.Generator().manual_seed(1))


def test_a_scan_weighs_its_looks_as_its_head_does(scan, images):
    boxes, weights = scan.weighted_looks(TensorViews(images))
    looked = scan(images, 5)
    (tried,) = scan.rollouts(images, ["greedy"], Draws(0, 0, np.arange(2)), 5)
    for i, one in enumerate(looked):
        assert boxes[i].tolist() == [list(glimpse.box) for glimpse in one.glimpses if glimpse.level == 2]
    torch.testing.assert_close(weights, tried.scores[0][:, 0].exp())
    torch.testing.assert_close(weights.sum(1), torch.ones(2))
    assert not torch.allclose(weights, torch.full_like(weights, 0.2), atol=0.05)


@pytest.fixture(scope="module")
def taught_by(tmp_path_factory, scan) -> Path:
    """A run folder with a scan of random weights."""
    run = tmp_path_factory.mktemp("teacher") / "scan"
    save_model(run, scan, ModelInfo(SCAN, CLASSES))
    return run


def data(classes: tuple[str, ...] = CLASSES, bands: int = 3) -> DataModule:
    return DataModule(classes, TensorDataset(torch.rand(4, bands, 48, 64), np.arange(4) % 2, classes), name="some")


def test_every_grid_of_a_traversal_is_taught(taught_by, scan, images):
    """The second level too, within the cells that were chosen."""
    torch.manual_seed(0)
    student = TNet(3, backbone="norm_free_16", base_size=16, grid=3, region=0.5, locations=(2, 1))
    views, draws = TensorViews(images), Draws(0, 0, np.arange(2))
    boxes, weights = scan.weighted_looks(views)
    teacher = Teacher(taught_by, student, data())
    for policy in ("sampled", "whole"):
        (tried,) = teacher.teach(views, student.rollouts(views, [policy], draws))
        assert [len(tried.scores), len(tried.grids)] == [len(tried.taught)] * 2 == [2 if policy == "sampled" else 1] * 2
        torch.testing.assert_close(tried.taught[0].sum(2), torch.ones(2, 1))
        below = student.cells(student.root(views.sizes)[:, None], views.sizes)[0]
        np.testing.assert_array_equal(tried.grids[0], below)
        for depth, (cells, taught) in enumerate(zip(tried.grids, tried.taught, strict=True)):
            if depth:
                chosen = tried.cells[:, :2].numpy()
                parents = np.take_along_axis(below[:, 0], chosen[..., None], 1)
                np.testing.assert_array_equal(cells, student.cells(parents, views.sizes, depth=2)[0])
            for b, g in np.ndindex(cells.shape[:2]):
                free = (tried.scores[depth][b, g] > MASKED).numpy()
                each = [by_pixels(*one, cells[b, g], free) for one in zip(boxes[b], weights[b].tolist(), strict=True)]
                np.testing.assert_allclose(taught[b, g].numpy(), np.sum(each, 0), atol=1e-6)
        second = _rows(tried, torch.tensor([1]))  # as if the first image could not be read
        np.testing.assert_array_equal(second.grids[0], tried.grids[0][1:])
        assert torch.equal(second.taught[-1], tried.taught[-1][1:])


def fitted(out: Path, teacher: Path | None, **objective) -> Path:
    objective = {"warm_up": 0.3, "teacher": teacher and str(teacher), "teacher_weight": 0.5, **objective}
    options = config(model={**NORM_FREE, "locations": [2, 1]}, objective=objective, epochs=2)
    return fit_config(options, out, quiet=True).path


@pytest.fixture(scope="module")
def whole(tmp_path_factory, taught_by) -> Path:
    return fitted(tmp_path_factory.mktemp("whole") / "run", taught_by)


def test_a_taught_run_needs_its_teacher_for_training_only(whole, taught_by, tmp_path, monkeypatch):
    """It is cut short after three updates, and goes on when the teacher is back."""
    losses = [float(row["loss_imitation"]) for row in metrics(whole) if row["loss_imitation"]]
    assert len(losses) == 5 and min(losses) > 0  # of the warm-up and of sampled looks
    own, loaded = tmp_path / "teacher", tmp_path / "run"
    shutil.copytree(taught_by, own)
    step = Learner.training_step

    def stop(self, batch, batch_idx):
        if batch_idx == 6:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.chdir(tmp_path)
        patch.setattr(Learner, "training_step", stop)
        with pytest.raises(KeyboardInterrupt):
            fitted(loaded, Path("teacher"))
    assert yaml.safe_load((loaded / "config.yaml").read_text())["objective"]["teacher"] == str(own)
    state = torch.load(loaded / "last.ckpt", weights_only=True)["state_dict"]
    assert {name.partition(".")[0] for name in state} == {"model", "objective_state"}

    shutil.move(own, tmp_path / "away")
    images = torch.rand(2, 3, 24, 32)
    assert load(loaded, which="last")(images).logits.shape == (2, 3)
    with pytest.raises(RunError, match=f"^objective.teacher {own}: there is no such run folder; "):
        fit_config(None, loaded, resume=True, quiet=True)
    shutil.move(tmp_path / "away", own)
    fit_config(None, loaded, resume=True, quiet=True)
    assert (loaded / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert metrics(loaded) == metrics(whole)


def test_a_teacher_changes_what_is_learned_by_its_weight(whole, taught_by, tmp_path):
    """Without one, and with weight 0, a run is the same."""
    alone = fitted(tmp_path / "alone", None, warm_up=0.0)
    none = fitted(tmp_path / "none", taught_by, warm_up=0.0, teacher_weight=0.0)
    assert (alone / "model.safetensors").read_bytes() == (none / "model.safetensors").read_bytes()
    assert (alone / "model.safetensors").read_bytes() != (whole / "model.safetensors").read_bytes()


def test_a_run_of_an_earlier_version_goes_on_without_a_teacher(tmp_path):
    run = fitted(tmp_path / "run", None)
    stored = yaml.safe_load((run / "config.yaml").read_text())
    for key in ("teacher", "teacher_weight"):
        del stored["objective"][key]
    (run / "config.yaml").write_text(yaml.safe_dump({**stored, "epochs": 3}))
    resumed = fit_config(None, run, resume=True, quiet=True)
    assert Run(run).config["objective"]["teacher"] is None and resumed.summary["step"] > 5


def student(**options) -> GlimpseClassifier:
    return create_classifier(num_classes=3, **{**NORM_FREE, **options})


@pytest.mark.parametrize(
    ("model", "images", "fault"),
    [
        (student, data(("red", "green", "white")), "its classes are not those of some; give a run that was trained on"),
        (student, data(bands=1), "takes images of 3 bands, and those of some have 1; give "),
        (
            lambda: create_classifier("test_resnet", num_classes=3),
            data(),
            "test_resnet has no grids of boxes to be taught; leave it out, or train a model such as tnet",
        ),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(taught_by, model, images, fault):
    with pytest.raises(ConfigError, match=f"^objective.teacher {taught_by}: {fault}"):
        Teacher(taught_by, model(), images)


def test_a_teacher_has_seen_such_values_and_gives_weights(scan, tmp_path, taught_by):
    save_model(tmp_path / "range", scan, ModelInfo(SCAN, CLASSES, value_range=(0, 4095)))
    with pytest.raises(
        ConfigError, match=r"was trained with value_range \[0, 4095\], and some has None; set `data.val"
    ):
        Teacher(tmp_path / "range", student(), data())
    save_model(tmp_path / "tnet", student(), ModelInfo(NORM_FREE, CLASSES))
    with pytest.raises(ConfigError, match="tnet gives no weights to boxes; give a run of a model that does, such as "):
        Teacher(tmp_path / "tnet", student(), data())
    with pytest.raises(RunError, match=f"^objective.teacher {tmp_path / 'no'}: there is no such run folder"):
        Teacher(tmp_path / "no", student(), data())


def test_the_path_of_a_teacher_is_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = {"objective": {"teacher": "runs/scan", "warm_up": 0.1}}
    assert with_absolute_paths(given)["objective"] == {"teacher": str(tmp_path / "runs/scan"), "warm_up": 0.1}
    assert with_absolute_paths({"objective": None})["objective"] is None

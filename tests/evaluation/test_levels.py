"""Parts of `foveal.evaluation.levels`, compared with brute force."""

import numpy as np
import pytest
import torch

from foveal.data import TensorDataset
from foveal.evaluation.levels import PENALTIES, Sample, draw_sample, hits, probe, ridge, tiles
from foveal.evaluation.protocol import Setting


@pytest.mark.parametrize("side", [7, 16, 40])
@pytest.mark.parametrize("size", [(16, 33), (40, 40), (9, 90), (5, 5)])
def test_tiles_cover_an_image_and_are_as_few_as_possible(size, side):
    found = tiles(np.array(size), side)
    covered = np.zeros(size, dtype=bool)
    for y0, x0, y1, x1 in found.astype(int):
        assert (y1 - y0, x1 - x0) == (side, side)
        covered[max(y0, 0) : y1, max(x0, 0) : x1] = True
    assert covered.all() and len(found) == np.ceil(np.array(size) / side).prod()
    assert (found[:, :2] >= np.minimum((np.array(size) - side) // 2, 0)).all()


def test_a_look_shows_a_box_if_half_of_what_they_could_share_is_shared():
    rng = np.random.default_rng(0)
    corners = rng.integers(0, 30, (2, 40, 2))
    looks, boxes = (np.concatenate([c, c + rng.integers(1, 12, c.shape)], 1) for c in corners)

    def pixels(box, dy=0, dx=0):
        return {(y + dy, x + dx) for y in range(box[0], box[2]) for x in range(box[1], box[3])}

    def most(look, box):
        """With their corners at one place, they share as much as they can."""
        return len(pixels(look, -look[0], -look[1]) & pixels(box, -box[0], -box[1]))

    expected = [[len(pixels(look) & pixels(box)) >= 0.5 * most(look, box) for look in looks] for box in boxes]
    assert hits(looks, boxes).tolist() == expected and 0 < np.sum(expected) < 1600


def test_ridge_is_that_of_the_normal_equations_with_the_least_error_of_leaving_one_out():
    rng = np.random.default_rng(1)
    x, folds = rng.normal(3, 2, (30, 8)), np.arange(30) % 3
    x[:, 5] = 4.0  # constant
    y = np.stack([x[:, 0] - x[:, 1] + rng.normal(0, 2, 30), rng.normal(0, 1, 30)], 1)

    def fitted(x, y, penalty):
        """Weights and intercept, which is not penalised."""
        one = np.column_stack([x, np.ones(len(x))])
        return np.linalg.solve(one.T @ one + penalty * np.diag([1] * x.shape[1] + [0]), one.T @ y)

    expected = np.zeros_like(y)
    for fold in range(3):
        train = np.flatnonzero(folds != fold)
        kept = [0, 1, 2, 3, 4, 6, 7]
        scaled = (x[:, kept] - x[train][:, kept].mean(0)) / x[train][:, kept].std(0) / np.sqrt(7)
        errors = []
        for p in PENALTIES:
            left_out = [(i, np.setdiff1d(train, i)) for i in train]
            rest = [y[i] - np.append(scaled[i], 1) @ fitted(scaled[others], y[others], p) for i, others in left_out]
            errors.append(np.square(rest).sum())
        weights = fitted(scaled[train], y[train], PENALTIES[np.argmin(errors)])
        expected[folds == fold] = np.column_stack([scaled, np.ones(30)])[folds == fold] @ weights
    assert np.allclose(ridge(x, y, folds), expected, atol=1e-8)


def test_probing_separable_classes_is_perfect_and_noise_is_at_chance():
    rng = np.random.default_rng(2)
    targets, noise = np.arange(60) % 3, rng.normal(size=(60, 12))
    shifted = noise + 20 * np.eye(3, 12)[targets]
    assert probe(shifted, targets, 3, "accuracy", 0).value == 1
    low, high = probe(noise, targets, 3, "accuracy", 0).interval
    assert low < 1 / 3 < high
    labels = np.stack([targets == 0, targets != 1], 1)
    assert probe(shifted, labels, 2, "average_precision", 0).value == 1


def test_a_sample_has_equally_many_of_each_class_as_far_as_there_are():
    targets = torch.tensor([0] * 30 + [1] * 4 + [2] * 20)
    images = TensorDataset(torch.zeros(54, 1, 8, 8, dtype=torch.uint8), targets, ("a", "b", "c"))
    drawn = draw_sample(images, 24, seed=0)
    assert np.bincount(targets[drawn]).tolist() == [10, 4, 10] and len(set(drawn)) == 24
    assert drawn.tolist() == draw_sample(images, 24, seed=0).tolist() != draw_sample(images, 24, seed=1).tolist()
    sample = Sample(images, drawn, Setting(device="cpu"))
    assert sample.good == drawn.tolist() and sample.rounds == 3

import time
from itertools import combinations

import numpy as np
import pytest
import torch

from foveal.classification import Glimpses
from foveal.evaluation.looks import chosen_boxes, coverage, diversity


def share(*boxes, size=(224, 224)):
    return coverage(np.array([boxes], dtype=float), np.array([size]))[0]


def painted(boxes, size):
    """By painting a mask of pixels."""
    mask = np.zeros(size, bool)
    for y0, x0, y1, x1 in boxes.astype(int):
        mask[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)] = True
    return mask.mean()


def test_one_window_of_bagnet_77():
    one, other = (8, 16, 85, 93), (100, 120, 177, 197)
    assert share(one) == 5929 / 50176
    assert share(one, one) == share(one)
    assert share(one, other) == 2 * 5929 / 50176
    assert share(one, (8, 93, 85, 170)) == 2 * 5929 / 50176  # side by side


def test_what_is_outside_does_not_count():
    assert share((-10, -10, 10, 10), size=(20, 40)) == 100 / 800
    assert share((30, 0, 60, 40), (-20, -20, 0, 0), size=(20, 40)) == 0
    assert share((-5, -5, 100, 100), size=(20, 40)) == 1
    assert share((0.5, 0, 1, 8), (0.75, 2, 1.25, 6), size=(4, 8)) == (0.5 * 8 + 0.25 * 4) / 32


def test_nothing_chosen_covers_nothing():
    assert coverage(np.empty((3, 0, 4)), np.full((3, 2), 8)).tolist() == [0, 0, 0]
    assert coverage(np.full((1, 2, 4), np.nan), np.full((1, 2), 8)).tolist() == [0]


@pytest.mark.parametrize("count", [1, 2, 7, 60])
def test_equals_painting_a_mask(count):
    rng = np.random.default_rng(count)
    sizes = rng.integers(20, 90, (25, 2))
    corner = rng.integers(-20, 80, (25, count, 2))
    boxes = np.concatenate([corner, corner + rng.integers(0, 40, (25, count, 2))], 2).astype(float)
    expected = [painted(b, tuple(s)) for b, s in zip(boxes, sizes, strict=True)]
    np.testing.assert_allclose(coverage(boxes, sizes), expected, rtol=1e-12)


@pytest.mark.parametrize("released", [True, False])
def test_random_windows_cover_what_they_should(released):
    # Distinct cells of a 19 x 19 grid of windows of 77 px in 224 px, where they are, or where Saccader's released code
    # draws them.
    p = np.linspace(-1, 1, 19)
    first = np.trunc((224 * ((1 - 77 / 224) * p + 3) - 77) / 2) - 224 if released else 8.0 * np.arange(19)
    rng = np.random.default_rng(0)
    draws = 400
    cells = rng.random((draws, 361)).argsort(1)
    corner = first[np.stack([cells // 19, cells % 19], -1)]
    boxes, sizes = np.concatenate([corner, corner + 77], -1), np.full((draws, 2), 224)
    assert coverage(boxes[:1], sizes[:1])[0] == (
        1 if released else (221 / 224) ** 2
    )  # true windows end three pixels before the edge
    rows = (first[:, None] <= np.arange(224)) & (np.arange(224) < first[:, None] + 77)
    over = np.outer(rows.sum(0), rows.sum(0))  # windows that cover each pixel
    for count, published in {1: 11.8, 2: 21.6, 4: 36.9, 6: 47.4, 8: 55.8, 12: 66.3, 20: 77.3}.items():
        missed = np.prod([(361 - over - i) / (361 - i) for i in range(count)], axis=0)
        got = 100 * coverage(boxes[:, :count], sizes)
        assert got.mean() == pytest.approx(100 * (1 - missed.mean()), abs=1e-9 + 3.5 * got.std() / draws**0.5)
        if released:
            assert 100 * (1 - missed.mean()) == pytest.approx(published, abs=0.5)


def test_quick_for_many_boxes():
    corner = np.random.default_rng(0).uniform(0, 200, (32, 400, 2))
    start = time.perf_counter()
    coverage(np.concatenate([corner, corner + 20], 2), np.full((32, 2), 224))
    assert time.perf_counter() - start < 3  # 0.4 s where nothing else runs


def test_diversity_is_the_mean_over_pairs():
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 50, (3, 5, 2))
    boxes, sizes = np.concatenate([corner, corner + 10], 2), np.array([[60, 60], [60, 90], [120, 60]])
    boxes[1, 3:], boxes[2, 1:] = np.nan, np.nan
    got = diversity(boxes, sizes)
    for n, (b, s) in enumerate(zip(boxes[:2], sizes, strict=False)):
        centres = [((y0 + y1) / s[0] - 1, (x0 + x1) / s[1] - 1) for y0, x0, y1, x1 in b[~np.isnan(b[:, 0])]]
        assert got[n] == pytest.approx(
            np.mean([np.hypot(a[0] - c[0], a[1] - c[1]) for a, c in combinations(centres, 2)])
        )
    assert np.isnan(got[2])
    corners = np.array([[[0, 0, 0, 0], [8, 8, 8, 8]]], dtype=float)
    assert diversity(corners, np.array([[8, 8]]))[0] == pytest.approx(8**0.5)


def test_only_looks_beyond_the_first_are_chosen():
    box = np.arange(20.0).reshape(5, 4)
    looks = Glimpses(
        image=np.array([0, 0, 0, 1, 1]),
        box=box,
        size=np.array([8, 8]),
        level=np.array([1, 2, 3, 1, 2]),
        parent=np.array([-1, 0, 1, -1, 0]),
        probability=torch.ones(5),
    )
    got = chosen_boxes(looks, 3)
    np.testing.assert_array_equal(got[0], box[1:3])
    np.testing.assert_array_equal(got[1, 0], box[4])
    assert np.isnan(got[1, 1]).all() and np.isnan(got[2]).all()

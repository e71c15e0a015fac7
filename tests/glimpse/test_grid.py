"""The geometry of grids against the table of the spec (3.2) and brute force."""

from __future__ import annotations

import numpy as np
import pytest

from foveal.errors import ConfigError
from foveal.glimpse.grid import Grid, outside


@pytest.mark.parametrize(
    "side, region, length, starts, size",
    [
        (5, 77 / 224, 224, [-1, 36, 73, 110, 147], 77),
        (3, 0.5, 448, [0, 112, 224], 224),
        (3, 0.5, 896, [0, 224, 448], 448),
        (5, 0.35, 448, [-1, 72, 145, 218, 291], 157),
    ],
)
def test_published_starts(side, region, length, starts, size):
    boxes = Grid(side, region, padded=True).boxes(np.array([0, 0, length, length]))
    assert boxes.reshape(side, side, 4)[:, 0, 0].tolist() == boxes.reshape(side, side, 4)[0, :, 1].tolist() == starts
    assert np.all(boxes[:, 2] - boxes[:, 0] == size) and np.all(boxes[:, 3] - boxes[:, 1] == size)


def test_even_grids_reach_from_edge_to_edge_in_whole_pixels():
    for length in range(5, 300):
        boxes = Grid(5, 0.34).boxes(np.array([10, 20, 10 + length, 20 + length]))
        assert boxes[:, :2].min() == 10 and boxes[:, 2].max() == 10 + length and boxes[:, 3].max() == 20 + length
        assert np.array_equal(boxes, boxes.round()) and len(np.unique(boxes[:, 2] - boxes[:, 0])) == 1


def test_cells_are_numbered_row_by_row_for_any_batch_of_parents():
    parents = np.array([[[0, 0, 100, 200]], [[50, 60, 90, 70]]])
    boxes = Grid(3, 0.5).boxes(parents)
    assert boxes.shape == (2, 1, 9, 4)
    assert boxes[0, 0, 1].tolist() == [0, 50, 50, 150] and boxes[0, 0, 3].tolist() == [25, 0, 75, 100]


def test_outside():
    boxes = np.array([[[0, 0, 5, 5], [-5, 0, 0, 5], [9, 9, 12, 12], [10, 0, 12, 5], [0, 20, 5, 25]]] * 2)
    assert outside(boxes, np.array([[10, 20], [10, 21]])).tolist() == [[False, True, False, True, True], [False, True, False, True, False]]


@pytest.mark.parametrize("side, region", [(1, 0.5), (3, 0.0), (3, 1.5)])
def test_impossible_grids(side, region):
    with pytest.raises(ConfigError, match="at least 2 cells"):
        Grid(side, region)

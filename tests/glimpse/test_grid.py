"""The geometry of grids against the table of the spec (3.2) and brute force."""

from __future__ import annotations

import numpy as np
import pytest

from foveal.errors import ConfigError
from foveal.glimpse.grid import Grid, outside, share_inside


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
    assert outside(boxes, np.array([[10, 20], [10, 21]])).tolist() == [
        [False, True, False, True, True],
        [False, True, False, True, False],
    ]


def test_share_inside():
    boxes = np.array([[[0, 0, 4, 4], [-2, 0, 2, 4], [-2, -2, 2, 2], [-4, 0, 0, 4], [9, 9, 12, 12], [0, 0, 20, 10]]])
    assert share_inside(boxes, np.array([[10, 10]])).tolist() == [[1, 0.5, 0.25, 0, 1 / 9, 0.5]]


@pytest.mark.parametrize("side, region", [(1, 0.5), (3, 0.0), (3, 1.5)])
def test_impossible_grids(side, region):
    with pytest.raises(ConfigError, match="at least 2 cells"):
        Grid(side, region)


# ---- grids inside images


def laid(side, region, height, width):
    """(n, 4) cells that are offered in an image of this size."""
    cells, offered = Grid(side, region).inside(np.array([[0, 0, height, width]]), np.array([[height, width]]))
    assert cells.shape == (1, side**2, 4) and offered.any()
    return cells[offered]


SHAPES = [(2, 0.5), (3, 0.5), (3, 0.42), (3, 0.9), (4, 0.34), (5, 0.25), (7, 0.1), (3, 1.0)]


@pytest.mark.parametrize("side, region", SHAPES)
def test_a_square_look_gets_the_plain_grid(side, region):
    for length in range(1, 150):
        parents = np.array([[[5, 9, 5 + length, 9 + length]]])
        cells, offered = Grid(side, region).inside(parents, np.array([[500, 400]]))
        assert np.array_equal(cells, Grid(side, region).boxes(parents)) and offered.all()


@pytest.mark.parametrize("side, region", SHAPES)
def test_cells_are_squares_inside_the_image_that_leave_no_gap(side, region):
    rng = np.random.default_rng(0)
    for height, width in [(500, 1260), (18_000, 36_000), (1, 50), (7, 3), *rng.integers(1, 300, (200, 2)).tolist()]:
        cells = laid(side, region, height, width)
        size = cells[0, 2] - cells[0, 0]
        assert (cells[:, 2:] - cells[:, :2] == size).all() and np.array_equal(cells, cells.round())
        if max(height, width) <= side * min(height, width):
            assert (cells[:, :2] >= 0).all() and (cells[:, 2:] <= (height, width)).all()
        else:  # it holds the whole shorter side, in its middle
            axis = int(height > width)
            assert (np.abs(cells[:, axis] + cells[:, axis + 2] - (height, width)[axis]) <= 1).all()
        for axis, length in ((0, height), (1, width)):
            starts = np.unique(cells[:, axis])
            assert starts[0] <= 0 and starts[-1] + size >= length
            if region * side >= 1:
                assert (np.diff(starts) <= size + (height == width)).all()  # a plain grid may round to one pixel less


def test_no_two_cells_of_a_long_image_are_nearly_the_same():
    for width in range(100, 500):
        cells = laid(3, 0.5, 100, width)
        shared = np.clip(
            np.minimum(cells[:, None, 2:], cells[None, :, 2:]) - np.maximum(cells[:, None, :2], cells[None, :, :2]),
            0,
            None,
        )
        np.einsum("iij->ij", shared)[:] = 0
        # In a square look neighbours share half of each other; here three quarters at most, but for the rounding to
        # whole pixels.
        assert shared.prod(-1).max() <= 0.78 * (cells[0, 2] - cells[0, 0]) ** 2


@pytest.mark.parametrize(
    "height, width, rows, columns",
    [
        (500, 1260, [0], [0, 380, 760]),
        (1260, 500, [0, 380, 760], [0]),
        (18_000, 36_000, [0, 5272], [0, 11_636, 23_272]),
        (1080, 1920, [0, 180, 360], [0, 600, 1200]),
        (100, 1000, [-117], [0, 333, 666]),
    ],
)
def test_cells_of_some_images(height, width, rows, columns):
    cells = laid(3, 0.5, height, width)
    assert cells[:, :2].tolist() == [[y, x] for y in rows for x in columns]


def test_a_look_that_reaches_outside_has_its_cells_inside():
    # The middle cell of a strip of 100 x 1000 pixels: 100 x 334 of its pixels are in the image.
    cells, offered = Grid(3, 0.5).inside(np.array([[[-117, 333, 217, 667]]]), np.array([[100, 1000]]))
    expected = laid(3, 0.5, 100, 334) + np.array([0, 333, 0, 333])
    assert np.array_equal(cells[offered], expected)
    assert cells.shape == (1, 1, 9, 4)


def test_the_middle_row_or_column_stands_for_all():
    _, offered = Grid(5, 0.34).inside(np.array([[0, 0, 100, 450]]), np.array([[100, 450]]))
    assert np.flatnonzero(offered.reshape(5, 5).any(1)).tolist() == [2]
    _, offered = Grid(3, 0.5).inside(np.array([[0, 0, 36_000, 18_000]]), np.array([[36_000, 18_000]]))
    assert np.flatnonzero(offered.reshape(3, 3).any(0)).tolist() == [0, 2]

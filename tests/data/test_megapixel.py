"""Megapixel digits: looks against canvases drawn by brute force, content and errors."""

import pickle

import numpy as np
import pytest
import torch

from foveal.data import get_data
from foveal.data.megapixel import PATTERNS, SIDE, Scattered, strokes
from foveal.draws import generator
from foveal.errors import ConfigError, DataError
from foveal.images import Look, TensorViews
from tests.data.layouts import make_mnist


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_mnist(tmp_path_factory.mktemp("mnist"))


def data(root, **options):
    small = {"canvas": 500, "train": 12, "val": 6, "test": 6}
    return get_data("megapixel_digits", root=str(root), **{"download": False, **small, **options})


def whole(image):
    """(side, side) uint8: every pixel of a canvas, one patch after the other."""
    canvas = np.zeros(image.size, np.uint8)
    for patch, (y, x) in zip(image._patches, image._corners, strict=True):
        assert not canvas[y : y + SIDE, x : x + SIDE].any()
        canvas[y : y + SIDE, x : x + SIDE] = patch
    return canvas


def reduced(canvas, block):
    """Means of blocks; the last blocks can be smaller."""
    starts = np.arange(0, len(canvas), block)
    count = np.minimum(starts + block, len(canvas)) - starts
    return np.add.reduceat(np.add.reduceat(canvas.astype(np.int64), starts, 0), starts, 1) / np.outer(count, count)


@pytest.mark.parametrize("canvas", [500, 513, 1024])
def test_levels_are_those_of_the_whole_canvas(root, canvas):
    image = data(root, canvas=canvas).test.open(3)
    drawn = whole(image)
    for level, size in enumerate(image.level_sizes):
        expected = reduced(drawn, 1 << level)
        assert size == expected.shape and np.isclose(image._scales[level], 0.5**level).all()
        # Integers divided by powers of two are exact in float32. Only incomplete last blocks are rounded.
        np.testing.assert_array_equal(image.read(level, (0, 0, *size))[..., 0], expected.astype(np.float32))
        n = size[0]
        for box in ((-3, n // 2, n // 3, n + 5), (n // 3, n // 5, n // 3 + 1, n // 5 + 2), (n // 2, -4, n + 1, n // 2)):
            padded = np.pad(expected, 8)[box[0] + 8 : box[2] + 8, box[1] + 8 : box[3] + 8]
            np.testing.assert_array_equal(image.read(level, box)[..., 0], padded.astype(np.float32))


def test_looks_are_those_of_the_whole_canvas(root):
    image = data(root, canvas=512).test.open(0)
    pixels = torch.from_numpy(whole(image))[None, None]
    corner = image._corners[0].tolist()
    around = [corner[0] - 9, corner[1] - 9, corner[0] + 55, corner[1] + 55]
    native = np.array([[0, 0, 64, 64], [448, -20, 512, 44], around], dtype=np.float64)
    aligned = np.array([[0, 0, 512, 512], [128, 256, 384, 512], [-256, 0, 256, 512]], dtype=np.float64)
    uneven = np.array([[3.25, 100.5, 80.75, 178], [100, 200, 163, 263]])
    for boxes, tolerance in ((native, 0), (aligned, 1e-6), (uneven, 1e-6)):
        for fill in (None, torch.tensor([0.5])):
            expected = TensorViews(pixels).look(np.zeros(len(boxes), int), boxes, (64, 64), fill=fill)
            torch.testing.assert_close(image.look(boxes, (64, 64), fill=fill), expected, rtol=0, atol=tolerance)


def test_looking_touches_no_more_of_a_larger_canvas(root):
    patches, corners = np.full((3, SIDE, SIDE), 200, np.uint8), np.array([[10, 10], [60, 200], [300, 40]])
    read = {}
    for side in (512, 65536):
        image = Scattered(patches, corners, side)
        image.look(np.array([[0.0, 0, side, side]]), (64, 64))
        image.look(np.array([[0.0, 0, 64, 64]]), (64, 64))
        read[side] = image.bytes_read, image.tiles_decoded
    assert read[512] == read[65536] == (2 * 64 * 64, 3 + 1)


def test_batches_travel_to_workers_and_are_the_same_there(root):
    looks = lambda size: [Look((0, 0, *size), (64, 64))]  # noqa: E731
    module = data(root)
    here, there = (list(module.loader("train", batch_size=5, seed=3, workers=w, first_looks=looks)) for w in (0, 1))
    box = np.array([[0.0, 0, 500, 500]])
    for one, other in zip(here, there, strict=True):
        assert one.index.tolist() == other.index.tolist() and torch.equal(one.target, other.target)
        which = np.arange(len(one))
        seen = [
            b.views.look(which, np.repeat(box, len(b), 0), size)
            for b in (one, other)
            for size in ((64, 64), (125, 125))
        ]
        assert torch.equal(seen[0], seen[2]) and torch.equal(seen[1], seen[3])
    assert whole(pickle.loads(pickle.dumps(module.train.open(2)))).tobytes() == whole(module.train.open(2)).tobytes()


def test_a_canvas_depends_on_seed_split_and_index_alone(root):
    few, more, other = data(root, train=3), data(root, train=9, val=0, test=0), data(root, train=3, seed=1)
    for i in range(3):
        assert np.array_equal(whole(few.train.open(i)), whole(more.train.open(i)))
        assert not np.array_equal(whole(few.train.open(i)), whole(other.train.open(i)))
    assert few.train.targets.tolist() == more.train.targets[:3].tolist()
    assert more.val is None and more.test is None
    assert not np.array_equal(whole(few.val.open(0)), whole(few.train.open(0)))


@pytest.mark.parametrize(("task", "same", "others"), [("majority", 3, 2), ("one", 1, 0)])
def test_what_lies_on_a_canvas(root, task, same, others):
    # The first two pixels of a digit of the tiny MNIST are its row number.
    module, drawn = data(root, task=task, train=80, noise=20), {}
    for split in ("train", "val", "test"):
        dataset = getattr(module, split)
        noise = strokes(PATTERNS, generator(0, 0, 0, f"megapixel strokes {split}"))
        drawn[split] = set()
        for i, target in enumerate(dataset.targets.tolist()):
            image = dataset.open(i)
            assert image.size == (500, 500) and image.channels == 1 and len(image._patches) == same + others + 20
            digits, rest = image._patches[: same + others], image._patches[same + others :]
            rows = digits[:, 0, 0].astype(int) * 200 + digits[:, 0, 1]
            assert (rows % 10)[:same].tolist() == [target] * same and target not in (rows % 10)[same:]
            drawn[split] |= set(rows.tolist())
            assert all((noise == patch).all((1, 2)).any() for patch in rest)
            boxes = dataset.boxes[i]
            assert boxes.shape == (same, 4) and (boxes[:, 2:] - boxes[:, :2] == SIDE).all()
            assert np.array_equal(image.look(boxes[:1], (SIDE, SIDE))[0, 0] * 255, digits[0])
            whole(image)
    assert max(drawn["train"]) < 220 <= min(drawn["val"]) and max(drawn["val"]) < 240 and min(drawn["test"]) >= 1000
    assert len(set(module.train.targets.tolist())) == 10


def test_noise_grows_with_the_epoch_in_training_alone(root):
    module, full = data(root, noise=20, noise_from=4, noise_epochs=4), data(root, noise=20)
    for epoch, noise in enumerate([4, 8, 12, 16, 20, 20]):
        batch = module.train.batch(epoch, [3, 5], seed=0)
        for view, i in zip(batch.views.views, (3, 5), strict=True):
            assert len(view.image._patches) == 5 + noise
            drawn, whole_canvas = whole(view.image), whole(full.train.open(i))
            # The digits and the first patches of noise are those of the full canvas, and the others are missing.
            assert (drawn[drawn > 0] == whole_canvas[drawn > 0]).all()
            assert (drawn > 0).sum() < (whole_canvas > 0).sum() or noise == 20
    for dataset in (module.val, module.test, module.train.plain()):
        assert len(dataset.batch(0, [1], seed=0).views.views[0].image._patches) == 25


def test_strokes_are_two_thin_lines():
    drawn = strokes(200, generator(0, 0, 0, "test"))
    lit = drawn > 0
    assert drawn[lit].min() >= 0.8 * 255 - 1 and drawn.shape == (200, SIDE, SIDE)
    # A line has 28 pixels up to the slope of the diagonal, and at most 56 samples above. Two lines can overlap.
    assert lit.sum((1, 2)).min() >= SIDE - 1 and lit.sum((1, 2)).max() <= 4 * SIDE
    assert (lit[:, 0, 0] | lit[:, 0, -1]).all()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"task": "some"}, "there is no task 'some'; use one of majority, one"),
        (
            {"noise_from": 60},
            "noise from 60 to 50 patches in 6 epochs cannot grow; give 0 to `noise` and at least one epoch",
        ),
        ({"canvas": 300}, "55 patches of 28 px do not fit on 300 px; use a larger canvas or fewer"),
    ],
)
def test_what_cannot_be_drawn(root, options, said):
    with pytest.raises(ConfigError, match=rf"^data megapixel_digits: {said}$"):
        data(root, **options)


def test_files_that_are_not_there_or_damaged(tmp_path, monkeypatch):
    from torchvision.datasets import MNIST

    make_mnist(tmp_path)
    file = tmp_path / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:-7])
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(
            DataError, match=r"^\S+: there is no MNIST in this folder, or a file is damaged; correct the path[^\n]*$"
        ):
            data(folder)

    def offline(self):
        raise OSError("no route to host\nand more")

    monkeypatch.setattr(MNIST, "download", offline)
    with pytest.raises(
        DataError, match=r"^\S+: MNIST cannot be downloaded to this folder \(no route to host\); copy its files there$"
    ):
        data(tmp_path / "nowhere", download=True)

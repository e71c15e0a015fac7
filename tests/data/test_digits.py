"""The bundled digits: deterministic draws and disjoint splits."""

import numpy as np
import pytest
import torch

from foveal.data import get_data
from foveal.data.digits import _glyphs, _originals, _photographs, _place_squares, _shuffle
from foveal.errors import ConfigError, DataError

SMALL = {"canvas": 160, "digit": (16, 24), "train": 20, "val": 10, "test": 10}


def test_the_seed_decides_and_the_number_of_images_does_not():
    once, again, more = (get_data("digits", **SMALL | extra).train for extra in ({}, {}, {"train": 25}))
    assert torch.equal(once.images, again.images)
    assert torch.equal(once.images, more.images[:20])
    assert not torch.equal(once.images, get_data("digits", **SMALL, seed=1).train.images)


def test_no_original_is_in_two_splits_and_none_is_lost():
    from sklearn.datasets import load_digits

    everything = load_digits().data
    rows = np.concatenate([_originals(split)[0].numpy().reshape(-1, 64) * 16 for split in ("train", "val", "test")])
    assert sorted(map(tuple, rows.tolist())) == sorted(map(tuple, everything.tolist()))
    for split, share in (("train", 0.7), ("val", 0.1), ("test", 0.2)):
        counts = np.bincount(_originals(split)[1])
        assert np.abs(counts / np.bincount(load_digits().target) - share).max() < 0.01


def test_splits_see_different_parts_of_the_photographs():
    # A patch of a training photograph is in no photograph of another split.
    for other in ("val", "test"):
        for train, held in zip(_photographs("train", 20)[::4], _photographs(other, 20)[::4], strict=True):
            patch = train[:, :16, :16]
            windows = np.lib.stride_tricks.sliding_window_view(held, (3, 16, 16))[0]
            assert not (windows == patch).all(axis=(2, 3, 4)).any()
            assert (np.lib.stride_tricks.sliding_window_view(train, (3, 16, 16))[0][:1, :1] == patch).all()


def test_the_box_holds_the_digit_of_the_label():
    data = get_data("digits", **SMALL, distractors=0)
    for i in range(20):
        y0, x0, y1, x1 = data.train.boxes[i][0].astype(int).tolist()
        assert y1 - y0 == x1 - x0
        assert 16 <= y1 - y0 <= 24
        seen = data.train.images[i, :, y0:y1, x0:x1].float().mean(0).numpy()
        glyphs = _glyphs("train", y1 - y0)
        match = [np.corrcoef(seen.ravel(), g.ravel())[0, 1] for g in glyphs]
        assert max(match) > 0.95
        assert _originals("train")[1][int(np.argmax(match))] == data.train.targets[i] == i % 10


def test_the_plate_is_dark_and_the_ink_is_bright():
    data = get_data("digits", **SMALL, plate=0.0).train
    image, (y0, x0, y1, x1) = data.images[0].float(), data.boxes[0][0].astype(int).tolist()
    assert image[:, y0 - 1, x0:x1].max() == 0
    assert image[:, y0:y1, x0:x1].max() > 230


def test_things_do_not_touch():
    rng = np.random.default_rng(0)
    for _trial in range(50):
        rooms = rng.integers(20, 40, 6)
        places = np.array(_place_squares(rooms, 150, rng))
        cover = np.zeros((150, 150), dtype=int)
        for room, (y, x) in zip(rooms, places, strict=True):
            cover[y : y + room, x : x + room] += 1
        assert cover.max() == 1
        assert cover.sum() == (rooms**2).sum()


def test_shuffled_pieces_keep_the_ink_and_lose_the_shape():
    rng = np.random.default_rng(0)
    for glyph in _glyphs("train", 24)[:20]:
        shuffled = _shuffle(glyph, rng)
        assert shuffled.sum() == pytest.approx(glyph.sum(), rel=1e-5)
        assert np.corrcoef(shuffled.ravel(), glyph.ravel())[0, 1] < 0.9


def test_what_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="do not fit on 64 px"):
        get_data("digits", canvas=64)


def test_larger_canvases_and_left_out_splits():
    data = get_data("digits", canvas=512, digit=(40, 60), train=0, val=2, test=0, lookalikes=2)
    assert data.val.images.shape == (2, 3, 512, 512)
    assert data.train is None
    assert data.test is None


@pytest.mark.parametrize("options", [{"test": 10**12}, {"train": 10**12}])
def test_more_than_memory_holds_is_one_sentence(options):
    with pytest.raises(DataError, match="data digits: does not fit in memory with these options; give smaller numbers"):
        get_data("digits", **options)

import math

import numpy as np
import pytest
import torch

from foveal.data import Batch, DataModule
from foveal.errors import DataError
from foveal.evaluation import faithful, occlude
from foveal.evaluation.accuracy import Plan, judge, wilson
from foveal.images import ArrayPyramid, BlankViews
from foveal.models import create_model
from tests.evaluation.tiny import Looker, OpenImages, data


def test_wilson_inverts_the_test_of_a_proportion():
    z = 1.959964
    for successes, trials in [(1, 3), (17, 20), (90, 100), (4999, 10_000)]:
        for p in wilson(successes, trials):
            assert abs(successes / trials - p) == pytest.approx(z * math.sqrt(p * (1 - p) / trials), rel=1e-9)
    for trials in range(1, 40):
        assert wilson(0, trials)[0] == 0 and wilson(trials, trials)[1] == 1


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_scores_are_those_of_counting_by_hand(batch_size):
    plans = [Plan(()), Plan((3,)), Plan((6,))]
    found = judge(Looker(), data().loader("test", batch_size=batch_size), plans)
    assert [s.correct for s in found.scores] == [5, 15, 30]
    assert [s.images for s in found.scores] == [30, 30, 30]
    assert [s.locations for s in found.scores] == [0, 90, 180]
    assert found.size == (8, 8) and found.errors == []
    # With six looks every logit is known: 2 for the right class, 0 for others, less 0.01 times the class.
    nll = 0.0
    for t in range(6):
        logits = [2.0 * (c == t) - 0.01 * c for c in range(6)]
        nll += 5 * (math.log(sum(map(math.exp, logits))) - logits[t])
    assert found.scores[2].nll == pytest.approx(nll, rel=1e-6)
    # Classes a to e lead when a is said; f never is among five then.
    assert found.scores[0].correct5 == 25


def test_random_looks_do_not_depend_on_the_batch():
    scores = [judge(Looker(), data(50).loader("test", batch_size=n), [Plan((2,), "random")], seed=3).scores[0] for n in (1, 64)]
    assert scores[0].correct == scores[1].correct
    assert 0.05 < scores[0].correct / 300 < 0.35


class Spoiled(BlankViews):
    """Four images, the pixel of each its number; the second breaks when it is looked at."""

    def look(self, which, boxes, size, **options):
        self.errors[1] = "second.tif: broke off; copy it again"
        return torch.from_numpy(which)[:, None, None, None].expand(-1, 3, *size) / 255


def test_images_that_fail_count_nowhere():
    good = Batch(Spoiled(4, (8, 8)), torch.arange(4), np.arange(4), [("first.tif", "first.tif: is empty; copy it again")])
    found = judge(Looker(), [good], [Plan((6,)), Plan(())])
    assert [(s.images, s.correct) for s in found.scores] == [(3, 3), (3, 1)]
    assert [reason.split(":")[0] for _, reason in found.errors] == ["first.tif", "second.tif"]
    with pytest.raises(DataError, match="none of the 1 images"):
        judge(Looker(), [Batch(BlankViews(0, (8, 8)), torch.arange(0), np.arange(0), good.errors)], [Plan(())])


# ---- images that are not square


def long_and_square():
    """Images of which three cells are distinct, and one of which nine are."""
    rng = np.random.default_rng(0)
    images = [ArrayPyramid(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in [(48, 120), (48, 120), (90, 90), (120, 48)]]
    return DataModule(tuple("abcdef"), test=OpenImages(images), name="long and square")


def test_looks_are_counted_as_images_have_cells():
    torch.manual_seed(0)
    model = create_model("tnet", backbone="test_efficientnet", num_classes=6, base_size=32, locations=(5,)).eval()
    plans = [Plan((5,)), Plan((5, 1)), Plan((1,), "exhaustive"), Plan((2,))]
    scores = judge(model, long_and_square().loader("test", batch_size=4), plans).scores
    assert [score.locations for score in scores] == [3 + 3 + 5 + 3, 6 + 6 + 10 + 6, 3 + 3 + 9 + 3, 8]
    assert [score.budget for score in scores] == [(5,), (5, 1), (9,), (2,)]
    assert scores[0].coverage > 3 and scores[2].coverage == pytest.approx(4)  # all cells together cover every image


def test_hiding_and_showing_what_was_looked_at():
    torch.manual_seed(0)
    model = create_model("tnet", backbone="test_efficientnet", num_classes=6, base_size=32, locations=(5,)).eval()
    hidden = occlude(model, long_and_square(), budgets=[(5,)], device="cpu")
    looked = next(point for point in hidden.points if point.kind == "learned")
    assert looked.total_locations == 14 / 4 and 3 / 4 < looked.hidden <= 1
    found = faithful(model, long_and_square(), device="cpu")
    assert found.curves[0].share[0] == 0 and found.curves[0].share[-1] == pytest.approx(looked.hidden)

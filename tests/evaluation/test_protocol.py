import math

import numpy as np
import pytest
import torch

from foveal.data import Batch, DataModule
from foveal.errors import ConfigError, DataError
from foveal.evaluation import Setting, compare, evaluate, evaluate_faithfulness, find_thresholds, occlude
from foveal.evaluation.protocol import Strategy, score_batches, sweep_of
from foveal.images import ArrayPyramid, BlankViews
from foveal.metrics import compute_metrics
from foveal.models import create_model
from tests.evaluation.tiny import Looker, OpenImages, data

CPU = Setting(device="cpu")


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_scores_are_those_of_counting_by_hand(batch_size):
    plans = [Strategy(()), Strategy((3,)), Strategy((6,))]
    found = score_batches(Looker(), data().loader("test", batch_size=batch_size), plans)
    assert [s.answers.correct.sum() for s in found.scores] == [5, 15, 30]
    assert [len(s.answers) for s in found.scores] == [30, 30, 30]
    assert [s.looks.number.tolist() for s in found.scores] == [[0] * 30, [3] * 30, [6] * 30]
    assert found.size == (8, 8) and found.errors == []
    # With six looks every logit is known: 2 for the right class, 0 for others, less 0.01 times the class.
    nll = 0.0
    for t in range(6):
        logits = [2.0 * (c == t) - 0.01 * c for c in range(6)]
        nll += (math.log(sum(map(math.exp, logits))) - logits[t]) / 6
    assert compute_metrics(found.scores[2].answers)["nll"].value == pytest.approx(nll, rel=1e-6)
    # If a is predicted, classes a to e are the first five, without f.
    assert compute_metrics(found.scores[0].answers)["top5"].value == 25 / 30


def test_random_looks_do_not_depend_on_the_batch():
    scores = [
        score_batches(Looker(), data(50).loader("test", batch_size=n), [Strategy((2,), "random")], seed=3).scores[0]
        for n in (1, 64)
    ]
    assert scores[0].answers.correct.tolist() == scores[1].answers.correct.tolist()
    assert 0.05 < scores[0].answers.correct.mean() < 0.35


class Spoiled(BlankViews):
    """Four images whose pixel is their number; reading the second fails."""

    def look(self, which, boxes, size, **options):
        self.errors[1] = "second.tif: broke off; copy it again"
        return torch.from_numpy(which)[:, None, None, None].expand(-1, 3, *size) / 255


def test_images_that_fail_count_nowhere():
    good = Batch(
        Spoiled(4, (8, 8)), torch.arange(4), np.arange(4), [("first.tif", "first.tif: is empty; copy it again")]
    )
    found = score_batches(Looker(), [good], [Strategy((6,)), Strategy(())])
    assert [(len(s.answers), s.answers.correct.sum()) for s in found.scores] == [(3, 3), (3, 1)]
    assert found.places.tolist() == [0, 2, 3]
    assert [reason.split(":")[0] for _, reason in found.errors] == ["first.tif", "second.tif"]
    with pytest.raises(DataError, match="none of the 1 images"):
        score_batches(
            Looker(), [Batch(BlankViews(0, (8, 8)), torch.arange(0), np.arange(0), good.errors)], [Strategy(())]
        )


# ---- images that are not square


def long_and_square():
    """Images of which three cells are distinct, and one of which nine are."""
    rng = np.random.default_rng(0)
    images = [
        ArrayPyramid(rng.integers(0, 256, (*size, 3), dtype=np.uint8))
        for size in [(48, 120), (48, 120), (90, 90), (120, 48)]
    ]
    return DataModule(tuple("abcdef"), test=OpenImages(images), name="long and square")


def test_looks_are_counted_as_images_have_cells():
    torch.manual_seed(0)
    model = create_model("tnet", backbone="test_efficientnet", num_classes=6, base_size=32, locations=(5,)).eval()
    plans = [Strategy((5,)), Strategy((5, 1)), Strategy((1,), "exhaustive"), Strategy((2,))]
    scores = score_batches(model, long_and_square().loader("test", batch_size=4), plans).scores
    assert [score.looks.number.tolist() for score in scores] == [[3, 3, 5, 3], [6, 6, 10, 6], [3, 3, 9, 3], [2] * 4]
    assert [score.locations for score in scores] == [(5,), (5, 1), (9,), (2,)]
    assert scores[0].looks.coverage.sum() > 3 and scores[2].looks.coverage == pytest.approx(
        1
    )  # all cells cover an image


def test_hiding_and_showing_what_was_looked_at():
    torch.manual_seed(0)
    model = create_model("tnet", backbone="test_efficientnet", num_classes=6, base_size=32, locations=(5,)).eval()
    hidden = occlude(model, long_and_square(), locations=[(5,)], setting=CPU)
    looked = next(point for point in hidden.points if point.kind == "learned")
    assert looked.total_locations == 14 / 4 and 3 / 4 < looked.hidden <= 1
    found = evaluate_faithfulness(model, long_and_square(), setting=CPU)
    assert found.curves[0].share[0] == 0 and found.curves[0].share[-1] == pytest.approx(looked.hidden)


@pytest.mark.parametrize(
    "name, values",
    [
        ("batch_size", (0, -1, 2.5, "8")),
        ("workers", (-1,)),
        ("seed", (-1, 0.5)),
        ("limit", (0, -3)),
        ("precision", ("33", 32)),
    ],
)
def test_settings_that_cannot_be(name, values):
    for value in values:
        with pytest.raises(ConfigError, match=f"^`{name}` {value}: is not [^\n]*$"):
            Setting(**{name: value})


def test_a_setting_is_a_setting():
    for call in (
        lambda **how: evaluate(Looker(), data(), **how),
        lambda **how: occlude(Looker(), data(), **how),
        lambda **how: compare([Looker()], data(), **how),
        lambda **how: find_thresholds(Looker(), data(), ["2locations"], **how),
    ):
        with pytest.raises(ConfigError, match=r"^`setting` \{'limit': 3\}: is not a Setting; give foveal.Setting"):
            call(setting={"limit": 3})


def test_a_sweep_of_numbers():
    assert sweep_of([0, 1]) == sweep_of([(0,), (1,)]) == [(0,), (1,)]
    assert sweep_of(2) == [(2,)] and sweep_of([(2, 1), 3, ()]) == [(2, 1), (3,), ()]
    with pytest.raises(ConfigError, match=r"`locations` 1.7: are not whole numbers"):
        sweep_of([1, 1.7])

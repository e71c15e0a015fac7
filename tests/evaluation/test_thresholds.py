"""Thresholds for a mean cost, and their results."""

from __future__ import annotations

import io
import json
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console

from foveal.data import DataModule
from foveal.errors import ConfigError
from foveal.evaluation import Bench, Setting, evaluate_early_exit, find_thresholds
from foveal.evaluation.thresholds import NEVER_SURE, _times, mean_cost, score_exits, threshold_for
from foveal.evaluation.timing import REPEATS, WARM_UP
from foveal.images import ArrayPyramid
from foveal.images.views import TensorViews
from foveal.models import create_model
from foveal.prediction import count_cost
from tests.evaluation.tiny import OpenImages, data

CPU = Setting(device="cpu")


def tnet(**options):
    return create_model("tnet", backbone="test_efficientnet", num_classes=6, base_size=32, locations=(3,), **options)


def test_the_threshold_is_the_largest_that_keeps_within_the_cost():
    rng = np.random.default_rng(0)
    for _ in range(20):
        sure = rng.random((30, 4))
        price = np.cumsum(rng.random(4))
        wanted = rng.uniform(price[0], price[-1])
        found = threshold_for(sure, price, wanted)
        allowed = [t for t in [*np.unique(sure), NEVER_SURE] if mean_cost(sure, price, t) <= wanted]
        assert mean_cost(sure, price, found) == mean_cost(sure, price, max(allowed)) <= wanted


def test_mean_cost_by_hand():
    sure = np.array([[0.2, 0.9, 0.1], [0.6, 0.1, 0.1]])
    price = np.array([1.0, 3.0, 9.0])
    assert [mean_cost(sure, price, t) for t in (0.1, 0.5, 0.7, 0.95)] == [1.0, 2.0, 6.0, 9.0]


def test_budgets_are_met_in_looks_and_in_products():
    model, images = tnet(), data(5)
    price = [count_cost(model, 8, (k,) if k else ()).macs for k in range(4)]
    budgets = ["3locations", f"{price[3]}mac", "1.5locations", f"{(price[1] + price[2]) // 2}mac", f"{price[0]}mac"]
    whole, all_products, some, some_products, least = find_thresholds(
        model, images, budgets, setting=Setting(split="test", device="cpu")
    )
    assert whole.threshold == all_products.threshold == NEVER_SURE and (whole.cost, all_products.cost) == (3, price[3])
    assert (
        0 < some.cost <= 1.5 and price[0] < some_products.cost <= (price[1] + price[2]) / 2 and least.cost == price[0]
    )
    assert least.threshold < some.threshold < NEVER_SURE and some.images == 30


def test_images_with_fewer_cells_than_looks_are_counted_as_they_were_looked_at():
    """Of images of 1 : 2.5 three cells are distinct, of square ones nine; five looks are offered to each."""
    model = tnet()
    rng = np.random.default_rng(0)
    images = [
        ArrayPyramid(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in [*[(48, 120)] * 7, *[(90, 90)] * 3]
    ]
    splits = {"val": OpenImages(images[:7]), "test": OpenImages(images)}
    mixed = DataModule(tuple("abcdef"), **splits, name="mixed")
    exits = find_thresholds(model, mixed, ["2.5locations"], locations=(5,), setting=CPU)
    assert exits[0].threshold <= 1 and exits[0].cost <= 2.5
    unbound = find_thresholds(model, mixed, ["3locations"], locations=(5,), setting=CPU)
    assert unbound[0].threshold == NEVER_SURE and unbound[0].cost == 3  # the maximum on the validation images
    ways = score_exits(Bench([model], mixed, Setting(split="test", device="cpu", batch_size=4)), unbound)
    assert [way.locations for way in ways] == pytest.approx([0, 1, 2, 3, 3.3, 3.6, 3.6])
    cost = [count_cost(model, 90, (k,) if k else ()).macs for k in range(6)]
    assert [way.macs for way in ways] == pytest.approx(
        [*cost[:4], 0.7 * cost[3] + 0.3 * cost[4], 0.7 * cost[3] + 0.3 * cost[5], 0.7 * cost[3] + 0.3 * cost[5]]
    )


def test_the_report(tmp_path):
    result = evaluate_early_exit(
        tnet(),
        replace(data(4), val=data(4).test),
        ["1locations", "1000ms"],
        setting=Setting(split="test", device="cpu", batch_size=7),
    )
    result.write(tmp_path)
    fixed, early = [w for w in result.ways if not w.stops], [w for w in result.ways if w.stops]
    assert [w.name for w in fixed] == ["0", "1", "2", "3"] and [w.locations for w in fixed] == [0, 1, 2, 3]
    assert [w.macs for w in fixed] == [count_cost(tnet(), 8, (k,)).macs for k in range(4)]
    assert [w.name for w in early] == ["1locations", "1000ms"] and early[1].locations == 3
    assert all(
        w.images == 24 and w.milliseconds > 0 and w.interval[0] <= w.accuracy <= w.interval[1] for w in result.ways
    )
    stored = json.loads((tmp_path / "early_exit.json").read_text())
    assert stored["ways"][0]["name"] == "0" and stored["exits"][1]["machine"]
    shown = Console(width=80, record=True, file=io.StringIO())
    shown.print(result.table())
    words = [line.split()[:1] for line in shown.export_text().split("±:")[0].splitlines()[3:]]
    assert words == [["0"], ["1"], ["2"], ["3"], [], ["1locations"], ["1000ms"], []]


@pytest.mark.parametrize(
    ("model", "budget", "message"),
    [
        (tnet, "1mac", r"`budgets` 1mac: the first look alone costs \d.*MMAC; allow more"),
        (
            lambda: create_model("test_efficientnet", num_classes=6),
            "1ms",
            "with one look there is nothing to leave out",
        ),
        (lambda: create_model("ram", num_classes=6), "9locations", "ram cannot stop early; use `locations` instead"),
        (tnet, "many", "`budget` many: is not a cost"),
    ],
)
def test_what_cannot_be_solved_gets_a_sentence(model, budget, message):
    with pytest.raises(ConfigError, match=message):
        find_thresholds(model(), data(8), [budget], seconds=0.01, setting=Setting(split="test", device="cpu"))


def test_a_time_is_that_of_looking_on_turn_by_turn():
    """The time of early exit, not of equal locations, whose looks are taken at once."""

    class Slow(TensorViews):
        def look(self, which, boxes, size, **options):
            time.sleep(0.02)
            return super().look(which, boxes, size, **options)

    model, opened = tnet().eval(), []

    def views():
        opened.append(1)
        return Slow(torch.rand(4, 3, 64, 64))

    one, two = (_times(model, views, (3,), at_once, "32", 0.0) for at_once in (1, 2))
    assert len(one) == 4 and len(two) == 3 and (np.diff(one) > 20).all() and (np.diff(two) > 20).all()
    assert 20 < one[0] < one[-1] > 80 and len(opened) == 2 * (WARM_UP + REPEATS)

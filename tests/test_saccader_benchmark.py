"""The differences that `benchmarks/saccader.py` measures."""

import importlib
from pathlib import Path

import numpy as np
import pytest

from foveal.metrics import paired_interval

ROOT = Path(__file__).parents[1]


@pytest.fixture
def difference(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("saccader").difference


def test_with_one_seed_the_interval_is_that_of_paired_proportions(difference):
    rng = np.random.default_rng(0)
    first, second = rng.random(5000) < 0.7, rng.random(5000) < 0.65
    told = difference([first], [second])
    assert told["difference"] == pytest.approx(first.mean() - second.mean())
    assert told["interval"] == pytest.approx(paired_interval(first, second), abs=1e-4)


def test_with_several_seeds_it_is_that_of_the_mean_of_each_image(difference):
    rng = np.random.default_rng(1)
    first, second = list(rng.random((3, 4000)) < 0.7), [rng.random(4000) < 0.65]
    told = difference(first, second)
    assert told["by_seed"] == pytest.approx([a.mean() - second[0].mean() for a in first])
    each = np.stack(first).mean(0) - second[0]
    means = [each[rng.integers(0, 4000, 4000)].mean() for _ in range(1000)]  # a bootstrap over images
    assert told["interval"] == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=2e-3)
    assert np.mean(told["interval"]) == pytest.approx(told["difference"])

import gc
import time
from typing import get_args

import numpy as np
import pytest
import torch

from foveal.choices import MEASURES
from foveal.classification import Classification, Glimpses
from foveal.errors import ConfigError
from foveal.evaluation import timing
from foveal.evaluation.timing import Measure, TimedModel, measure, measure_locations, measure_steps
from foveal.glimpse.base import WholeImage
from foveal.images.views import TensorViews

MIB = 2**20


class Slow(torch.nn.Module):
    """Takes 4 ms, and 1 ms for each image, and holds memory for a moment."""

    num_classes = 2

    def __init__(self, memory=0):
        super().__init__()
        self.memory = memory

    def forward(self, x):
        if self.memory:
            np.ones(self.memory, dtype=np.uint8)
        time.sleep(0.004 + 0.001 * len(x))
        return torch.zeros(len(x), 2)


def views(n):
    return TensorViews(torch.zeros(n, 3, 8, 8))


def test_time_an_image():
    model = WholeImage(Slow(), image_size=8)
    one, ten = measure(model, views, 1, seconds=0.1), measure(model, views, 10, seconds=0.1)
    assert 5 <= one.p50 < 50 and one.p50 <= one.p95
    assert 1.4 <= ten.p50 < one.p50
    assert one.bytes_read is None


@pytest.mark.parametrize(
    ("milliseconds", "largest", "best"),
    [([9, 6, 4, 3.9, 1], 64, 4), ([9, 6, 4, 2], 4, 4), ([9, 9], 64, 1), ([9], 1, 1)],
)
def test_the_best_batch_is_where_doubling_no_longer_helps(monkeypatch, milliseconds, largest, best):
    told = iter(milliseconds)
    monkeypatch.setattr(
        timing, "measure", lambda model, views_of, n, **_: timing.Timing(n, next(told), 0, 5, None, None)
    )
    assert timing.best_batch(WholeImage(Slow(), image_size=8), views, largest).batch_size == best


def test_a_batch_that_finds_no_room_ends_the_search(monkeypatch):
    def measured(model, views_of, n, **_):
        if n == 4:
            raise torch.OutOfMemoryError
        return timing.Timing(n, 10 / n, 0, 5, None, None)

    monkeypatch.setattr(timing, "measure", measured)
    assert timing.best_batch(WholeImage(Slow(), image_size=8), views, 64).batch_size == 2


def test_memory_at_its_peak():
    gc.collect()  # garbage of other tests that is freed during the call would be used again
    took = measure(WholeImage(Slow(memory=200 * MIB), image_size=8), views, 1, seconds=0.01)
    if took.peak_memory is None:
        pytest.skip("this system does not tell")
    assert 195 * MIB < took.peak_memory < 260 * MIB
    assert measure(WholeImage(Slow(), image_size=8), views, 1, seconds=0.01).peak_memory < 50 * MIB


def test_bytes_are_those_of_the_first_call():
    class FromFiles(TensorViews):
        @property
        def bytes_read(self):
            return np.full(len(self), 1234)

    assert (
        measure(
            WholeImage(Slow(), image_size=8), lambda n: FromFiles(torch.zeros(n, 3, 8, 8)), 2, seconds=0.01
        ).bytes_read
        == 1234
    )


# ---- all locations of several models


NO_LOOKS = Glimpses(np.zeros(0, int), np.zeros((0, 4)), (8, 8), np.zeros(0, int), np.zeros(0, int), torch.zeros(0))


class Clocked(WholeImage):
    """Takes a given time per look, a little less in larger batches, by a clock that only it advances."""

    def __init__(self, clock, seconds):
        super().__init__(Slow(), image_size=8)
        self.clock, self.seconds, self.calls = clock, seconds, []

    def forward(self, images, locations=None, **options):
        looks = 1 + sum(locations)
        self.calls.append((len(images), looks - 1))
        self.clock[0] += self.seconds * looks * len(images) ** 0.9
        return Classification(torch.zeros(len(images), 2), NO_LOOKS)


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    return now


def timed(clock, seconds, steps, models=1):
    return [
        TimedModel(Clocked(clock, seconds), [(k,) if k else () for k in range(steps)], views, 1000)
        for _ in range(models)
    ]


@pytest.mark.parametrize("models", [1, 3])
@pytest.mark.parametrize("steps", [1, 5, 20])
@pytest.mark.parametrize("seconds", [1e-3, 0.03, 1.0])
def test_quick_timings_are_bounded_whatever_is_timed(clock, seconds, steps, models):
    panel = timed(clock, seconds, steps, models)
    found = measure_locations(panel, "quick")
    least = models * sum(4 * seconds * (1 + k) for k in range(steps)) + models * 2 * seconds * steps
    assert clock[0] <= max(1.15 * timing.QUICK_SECONDS, least + seconds * steps)
    for mine in found:
        assert list(mine) == [(k,) if k else () for k in range(steps)]
        for locations, (single, batched) in mine.items():
            assert single.batch_size == 1 and single.repeats >= 3 and batched.repeats >= 3
            assert single.p50 == pytest.approx(1e3 * seconds * (1 + sum(locations)))
            assert batched.p50 == pytest.approx(single.p50 * batched.batch_size**-0.1)
        assert len({batched.batch_size for _, batched in mine.values()}) == 1


def test_full_timings_find_the_best_batch_and_take_their_time(clock):
    (found,) = measure_locations(timed(clock, 0.01, 3), "full")
    assert {batched.batch_size for _, batched in found.values()} == {64}
    assert all(single.repeats * single.p50 >= 500 for single, _ in found.values())
    took, clock[0] = clock[0], 0.0
    (beside,) = measure_locations(timed(clock, 0.01, 3), "quick")
    assert clock[0] < took / 2
    assert [single.p50 for single, _ in beside.values()] == pytest.approx([single.p50 for single, _ in found.values()])


def test_models_and_locations_are_timed_in_turn(clock):
    both = timed(clock, 1.0, 2, models=2)
    order = []
    for name, one in zip("ab", both, strict=True):
        one.model.calls = type(
            "Log", (list,), {"append": lambda self, call, name=name: order.append((name, call[1]))}
        )()
    measure_locations(both, "quick")
    assert order[-12:] == [("a", 0), ("a", 1), ("b", 0), ("b", 1)] * 3


def test_steps_are_told(clock):
    for how in ("quick", "full"):
        told = []
        measure_locations(timed(clock, 1e-3, 2, models=3), how, on_step=lambda told=told: told.append(0))
        assert len(told) == measure_steps(3, how) == 8
    assert measure_locations(timed(clock, 1.0, 2), "none") == [{}] and measure_steps(3, "none") == 0
    assert get_args(Measure) == MEASURES
    with pytest.raises(ConfigError, match="`measure` often"):
        measure_locations([], "often")

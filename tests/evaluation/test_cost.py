import time

import numpy as np
import pytest
import torch

from foveal.evaluation import cost
from foveal.evaluation.cost import measure
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
    ("milliseconds", "largest", "best"), [([9, 6, 4, 3.9, 1], 64, 4), ([9, 6, 4, 2], 4, 4), ([9, 9], 64, 1), ([9], 1, 1)]
)
def test_the_best_batch_is_where_doubling_no_longer_helps(monkeypatch, milliseconds, largest, best):
    told = iter(milliseconds)
    monkeypatch.setattr(cost, "measure", lambda model, views_of, n, **_: cost.Measured(n, next(told), 0, 5, None, None))
    assert cost.best_batch(WholeImage(Slow(), image_size=8), views, largest).batch_size == best


def test_a_batch_that_finds_no_room_ends_the_search(monkeypatch):
    def measured(model, views_of, n, **_):
        if n == 4:
            raise torch.OutOfMemoryError
        return cost.Measured(n, 10 / n, 0, 5, None, None)

    monkeypatch.setattr(cost, "measure", measured)
    assert cost.best_batch(WholeImage(Slow(), image_size=8), views, 64).batch_size == 2


def test_memory_at_its_peak():
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

    assert measure(WholeImage(Slow(), image_size=8), lambda n: FromFiles(torch.zeros(n, 3, 8, 8)), 2, seconds=0.01).bytes_read == 1234

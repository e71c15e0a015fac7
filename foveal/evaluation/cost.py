"""What a model costs, measured: time, memory and bytes read on the machine at hand. (Counted: `count`.)

Example:
    >>> import timm, torch
    >>> from foveal.glimpse.base import WholeImage
    >>> from foveal.images.views import TensorViews
    >>> dense = WholeImage(timm.create_model("test_resnet", num_classes=5), image_size=64).eval()
    >>> cost = measure(dense, lambda n: TensorViews(torch.rand(n, 3, 64, 64)), 2, seconds=0.01)
    >>> cost.batch_size, cost.p50 <= cost.p95, cost.repeats >= 5
    (2, True, True)
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from foveal.glimpse.base import GlimpseClassifier
from foveal.images.views import Views
from foveal.prediction.cost import Cost, count
from foveal.prediction.device import autocast

__all__ = ["Cost", "Measured", "Trial", "best_batch", "count", "measure", "measure_in_turn"]

WARM_UP = 3
REPEATS = 5
MAX_REPEATS = 200
GAIN = 0.97


@dataclass(frozen=True)
class Measured:
    """What classifying a batch took, from opening the images to their classes.

    Attributes:
        batch_size: images of the batch.
        p50, p95: milliseconds an image, median and 95th percentile over repeats.
        repeats: how often it was timed.
        peak_memory: bytes. On a GPU the most that torch had allocated for it, weights included; on a CPU the growth of the process's
            resident memory, at its peak, above what it was before; None where the system does not tell.
        bytes_read: bytes read from files for each image, or None for images in memory.
    """

    batch_size: int
    p50: float
    p95: float
    repeats: int
    peak_memory: int | None
    bytes_read: float | None


class Trial(NamedTuple):
    """What is to be measured: arguments as of `measure`."""

    model: GlimpseClassifier
    views_of: Callable[[int], Views]
    batch_size: int = 1
    locations: Sequence[int] | None = None


def measure(
    model: GlimpseClassifier, views_of: Callable[[int], Views], batch_size: int = 1, *, locations: Sequence[int] | None = None,
    precision: str = "32", seconds: float = 0.5,
) -> Measured:  # fmt: skip
    """Time a model on fresh views of the same images.

    Args:
        model: the model, on its device, in evaluation mode.
        views_of: opens n images; its time counts.
        batch_size: images at a time.
        locations: budget; the model's own if None.
        precision: see `autocast`.
        seconds: repeat for at least so long, five times at least and 200 times at most, after three calls that do not count.
    """
    return measure_in_turn([Trial(model, views_of, batch_size, locations)], precision=precision, seconds=seconds)[0]


def measure_in_turn(
    trials: Sequence[Trial], *, precision: str = "32", seconds: float = 0.5, on_round: Callable[[], None] = lambda: None
) -> list[Measured]:
    """Time several models as `measure` does one, each in five turns, so that what else the machine does falls on all alike.

    Args:
        trials: what to time.
        precision: see `autocast`.
        seconds: of each trial, a fifth in each turn; one call in each turn at least and 40 at most.
        on_round: called after each of the five rounds.
    """
    calls = [_Call(trial, precision) for trial in trials]
    peaks = [_peak_memory(call, trial.model) for call, trial in zip(calls, trials, strict=True)]
    for call in calls:
        for _ in range(WARM_UP - 1):
            call()
    times: list[list[float]] = [[] for _ in trials]
    for _ in range(REPEATS):
        for call, mine in zip(calls, times, strict=True):
            turn: list[float] = []
            while not turn or (sum(turn) < seconds / REPEATS and len(turn) < MAX_REPEATS // REPEATS):
                start = time.perf_counter()
                call()
                turn.append(time.perf_counter() - start)
            mine += turn
        on_round()
    found = []
    for trial, call, mine, peak in zip(trials, calls, times, peaks, strict=True):
        p50, p95 = (float(q) for q in np.quantile(mine, [0.5, 0.95]) * 1000 / trial.batch_size)
        found.append(Measured(trial.batch_size, p50, p95, len(mine), peak, call.bytes_read))
    return found


class _Call:
    """Classifies a trial's images, and keeps how many bytes the first time read for each."""

    def __init__(self, trial: Trial, precision: str) -> None:
        self.trial, self.precision = trial, precision
        self.bytes_read: float | None = None
        self.first = True

    def __call__(self) -> None:
        model, device = self.trial.model, self.trial.model.mean.device
        views = self.trial.views_of(self.trial.batch_size)
        with torch.inference_mode(), autocast(self.precision, device):
            model(views, locations=self.trial.locations, contributions=False).logits.argmax(-1).cpu()
        if self.first:
            self.bytes_read, self.first = None if views.bytes_read is None else float(np.mean(views.bytes_read)), False


def best_batch(
    model: GlimpseClassifier, views_of: Callable[[int], Views], largest: int, *, locations: Sequence[int] | None = None,
    precision: str = "32", seconds: float = 0.5,
) -> Measured:  # fmt: skip
    """Measure at 1, 2, 4, ... up to ``largest`` images, until doubling gains less than 3 % or finds no room; the best of them."""
    best = measure(model, views_of, 1, locations=locations, precision=precision, seconds=seconds)
    while best.batch_size * 2 <= largest:
        try:
            doubled = measure(model, views_of, best.batch_size * 2, locations=locations, precision=precision, seconds=seconds)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            break
        if doubled.p50 > GAIN * best.p50:
            break
        best = doubled
    return best


def _peak_memory(call: Callable[[], None], model: GlimpseClassifier) -> int | None:
    """Call, and see how much memory that took at its peak."""
    device = model.mean.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        # What other models hold there is not this one's.
        others = torch.cuda.memory_allocated(device) - sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
        call()
        return torch.cuda.max_memory_allocated(device) - others
    try:
        # Memory that was freed but not given back would be used again unseen.
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
    except (OSError, AttributeError, KeyError):
        call()
        return None
    call()
    return max(_status("VmHWM") - before, 0)


def _status(key: str) -> int:
    """A value of /proc/self/status in bytes."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[key].split()[0]) * 1024

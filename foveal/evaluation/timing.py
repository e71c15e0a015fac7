"""The measured cost of a model: time, memory and bytes read. `foveal.prediction.count_cost` counts operations.

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
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch

from foveal.choices import MEASURES
from foveal.errors import ConfigError
from foveal.glimpse.base import GlimpseClassifier
from foveal.images.views import Views
from foveal.policies import GREEDY
from foveal.prediction.device import autocast
from foveal.prediction.folding import fold_norms

Measure = Literal["none", "quick", "full"]
"""How long is measured: not at all, about `QUICK_SECONDS` in all, or `FULL_SECONDS` and more for each number."""

QUICK_SECONDS = 20.0
FULL_SECONDS = 0.5
LARGEST_BATCH = {"cpu": 64, "cuda": 512}

WARM_UP = 3
REPEATS = 5
FEWEST_REPEATS = 3
MAX_REPEATS = 200
GAIN = 0.97


@dataclass(frozen=True)
class Timing:
    """Time and memory of classifying a batch, from opening the images to their classes.

    Attributes:
        batch_size: images of the batch.
        p50, p95: milliseconds an image, median and 95th percentile over repeats.
        repeats: how often it was timed.
        peak_memory: bytes. On a GPU the most that torch allocated, weights included. On a CPU the growth of the
            resident memory of the process at its peak; None where the system does not tell.
        bytes_read: bytes read from files for each image; None for images in memory.
    """

    batch_size: int
    p50: float
    p95: float
    repeats: int
    peak_memory: int | None
    bytes_read: float | None


class Trial(NamedTuple):
    """A model to be timed on a batch; arguments as of `measure`."""

    model: GlimpseClassifier
    views_of: Callable[[int], Views]
    batch_size: int = 1
    locations: Sequence[int] | None = None


def measure(
    model: GlimpseClassifier,
    views_of: Callable[[int], Views],
    batch_size: int = 1,
    *,
    locations: Sequence[int] | None = None,
    precision: str = "32",
    seconds: float = FULL_SECONDS,
    warm_up: int = WARM_UP,
) -> Timing:
    """Time a model on fresh views of the same images.

    Args:
        model: the model, on its device, in evaluation mode.
        views_of: opens n images; its time counts.
        batch_size: images at a time.
        locations: looks per grid at each level; the model's own if None.
        precision: see `autocast`.
        seconds: least time of all repeats; there are five at least and 200 at most.
        warm_up: calls before, which do not count; one at least.
    """
    return measure_in_turn(
        [Trial(model, views_of, batch_size, locations)], precision=precision, seconds=seconds, warm_up=warm_up
    )[0]


def measure_in_turn(
    trials: Sequence[Trial],
    *,
    precision: str = "32",
    seconds: float = FULL_SECONDS,
    warm_up: int = WARM_UP,
    most: float = math.inf,
    on_round: Callable[[], None] = lambda: None,
) -> list[Timing]:
    """Time several models like `measure`, in five rounds, so that other load of the machine affects all of them
    equally.

    Args:
        trials: what to time.
        precision: see `autocast`.
        seconds: of each trial, a fifth in each round; one call in each round at least and 40 at most.
        warm_up: see `measure`.
        most: seconds in all after which no fourth or fifth round is started.
        on_round: called after each round.
    """
    began = time.perf_counter()
    calls = [_Call(trial, precision) for trial in trials]
    peaks = [_peak_memory(call, trial.model) for call, trial in zip(calls, trials, strict=True)]
    for call in calls:
        for _ in range(warm_up - 1):
            call()
    times: list[list[float]] = [[] for _ in trials]
    for turns in range(REPEATS):
        if turns >= FEWEST_REPEATS and time.perf_counter() - began > most:
            break
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
        found.append(Timing(trial.batch_size, p50, p95, len(mine), peak, call.bytes_read))
    return found


class _Call:
    """Classifies the images of a trial. Keeps how many bytes the first call read for each."""

    def __init__(self, trial: Trial, precision: str) -> None:
        self.trial, self.precision = trial, precision
        self.bytes_read: float | None = None
        self.first = True

    def __call__(self) -> None:
        model, device = self.trial.model, self.trial.model.mean.device
        views = self.trial.views_of(self.trial.batch_size)
        with torch.inference_mode(), autocast(self.precision, device):
            model(views, locations=self.trial.locations, policy=GREEDY, contributions=False).logits.argmax(-1).cpu()
        if self.first:
            self.bytes_read, self.first = None if views.bytes_read is None else float(np.mean(views.bytes_read)), False


def best_batch(
    model: GlimpseClassifier,
    views_of: Callable[[int], Views],
    largest: int,
    *,
    locations: Sequence[int] | None = None,
    precision: str = "32",
    seconds: float = FULL_SECONDS,
    warm_up: int = WARM_UP,
) -> Timing:
    """The fastest of batches of 1, 2, 4, ... images; stops at ``largest``, at a gain below 3 %, or when memory is
    full."""

    def at(images: int) -> Timing:
        return measure(
            model, views_of, images, locations=locations, precision=precision, seconds=seconds, warm_up=warm_up
        )

    best = at(1)
    while best.batch_size * 2 <= largest:
        try:
            doubled = at(best.batch_size * 2)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            break
        if doubled.p50 > GAIN * best.p50:
            break
        best = doubled
    return best


class TimedModel(NamedTuple):
    """A model that is to be timed at several locations.

    Attributes:
        model: the model, on its device, in evaluation mode.
        locations: looks per grid at each level, several times.
        views_of: opens the first n of its images.
        images: how many there are.
    """

    model: GlimpseClassifier
    locations: Sequence[tuple[int, ...]]
    views_of: Callable[[int], Views]
    images: int


def measure_locations(
    timed: Sequence[TimedModel], how: Measure, *, precision: str = "32", on_step: Callable[[], None] = lambda: None
) -> list[dict[tuple[int, ...], tuple[Timing, Timing]]]:
    """Time several models at several locations in turn, at batch 1 and at the best batch of each model. Batch norms
    are folded.

    The best batch is the fastest at the most locations. A quick measurement takes about `QUICK_SECONDS` in all for any
    number of models and locations; it takes longer only where four calls of each at batch 1 do. It repeats less often,
    and tries only batches that it has time for.

    Args:
        timed: the models.
        how: ``"quick"``, ``"full"``, or ``"none"``, which takes no times.
        precision: see `autocast`.
        on_step: called as often as `measure_steps` says, or less often where time runs out.

    Returns:
        For each model, the timings at batch 1 and at the best batch by locations; empty for ``"none"``.

    Raises:
        ConfigError: ``how`` is another word.
    """
    check_measure(how)
    if how == "none":
        return [{} for _ in timed]
    began, quick = time.perf_counter(), how == "quick"
    timed = [one._replace(model=fold_norms(one.model)) for one in timed]
    largest = [min(LARGEST_BATCH.get(one.model.mean.device.type, 64), one.images) for one in timed]
    seconds, warm_up, most = FULL_SECONDS, WARM_UP, math.inf
    if quick:
        seconds, warm_up = min(QUICK_SECONDS / 4 / sum(len(one.locations) for one in timed), 0.2), 1
        largest = [max(1, min(pair)) for pair in zip(largest, _affordable(timed, precision), strict=True)]
    best: list[int] = []
    for one, images in zip(timed, largest, strict=True):
        search = partial(
            best_batch, locations=max(one.locations), precision=precision, seconds=seconds / 2 if quick else seconds
        )
        best.append(search(one.model, one.views_of, images, warm_up=warm_up).batch_size if images > 1 else 1)
        on_step()
    if quick:
        most = QUICK_SECONDS - (time.perf_counter() - began)
    trials = {
        (i, places, images): Trial(one.model, one.views_of, images, places)
        for i, one in enumerate(timed)
        for places in one.locations
        for images in (1, best[i])
    }
    times = measure_in_turn(
        list(trials.values()), precision=precision, seconds=seconds, warm_up=warm_up, most=most, on_round=on_step
    )
    at = dict(zip(trials, times, strict=True))
    return [
        {places: (at[i, places, 1], at[i, places, best[i]]) for places in one.locations} for i, one in enumerate(timed)
    ]


def measure_steps(models: int, how: Measure) -> int:
    """Steps that `measure_locations` takes for this many models."""
    return 0 if how == "none" else models + REPEATS


def check_measure(how: str) -> None:
    """Raise a `ConfigError` for a word that is not one of `Measure`."""
    if how not in MEASURES:
        raise ConfigError(f"`measure` {how}: is not known; use one of {', '.join(MEASURES)}")


def _affordable(timed: Sequence[TimedModel], precision: str) -> list[int]:
    """The largest batch of each model that a quick measurement has time for."""
    takes = []
    for one in timed:
        call = _Call(Trial(one.model, one.views_of, 1, max(one.locations)), precision)
        call()
        start = time.perf_counter()
        call()
        takes.append(time.perf_counter() - start)
    calls = 1 + REPEATS
    left = QUICK_SECONDS - calls * sum(len(one.locations) * seconds for one, seconds in zip(timed, takes, strict=True))
    # The search doubles the batch, so that it takes as long as two of the largest. Then all locations are timed at
    # that batch.
    return [
        int(left / len(timed) / (calls * (2 + len(one.locations)) * seconds))
        for one, seconds in zip(timed, takes, strict=True)
    ]


def _peak_memory(call: Callable[[], None], model: GlimpseClassifier) -> int | None:
    """The peak memory of a call."""
    device = model.mean.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        # Memory of other models on the device does not count.
        others = torch.cuda.memory_allocated(device) - sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
        call()
        return torch.cuda.max_memory_allocated(device) - others
    try:
        # Memory that was freed, but not returned to the system, would be used again and not be seen.
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

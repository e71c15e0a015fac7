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
from foveal.prediction.cost import Cost, count
from foveal.prediction.device import autocast
from foveal.prediction.folding import fold_norms

__all__ = ["Cost", "Measure", "Measured", "Timed", "Trial", "best_batch", "count", "measure", "measure_budgets", "measure_in_turn"]

Measure = Literal["none", "quick", "full"]
"""How thoroughly times are taken: not at all, in about `QUICK_SECONDS` in all, or in `FULL_SECONDS` and more for each number."""

QUICK_SECONDS = 20.0
FULL_SECONDS = 0.5
LARGEST_BATCH = {"cpu": 64, "cuda": 512}

WARM_UP = 3
REPEATS = 5
FEWEST_REPEATS = 3
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
    precision: str = "32", seconds: float = FULL_SECONDS, warm_up: int = WARM_UP,
) -> Measured:  # fmt: skip
    """Time a model on fresh views of the same images.

    Args:
        model: the model, on its device, in evaluation mode.
        views_of: opens n images; its time counts.
        batch_size: images at a time.
        locations: budget; the model's own if None.
        precision: see `autocast`.
        seconds: repeat for at least so long, five times at least and 200 times at most.
        warm_up: calls before, which do not count; one at least.
    """
    return measure_in_turn([Trial(model, views_of, batch_size, locations)], precision=precision, seconds=seconds, warm_up=warm_up)[0]


def measure_in_turn(
    trials: Sequence[Trial], *, precision: str = "32", seconds: float = FULL_SECONDS, warm_up: int = WARM_UP, most: float = math.inf,
    on_round: Callable[[], None] = lambda: None,
) -> list[Measured]:  # fmt: skip
    """Time several models as `measure` does one, each in five turns, so that what else the machine does falls on all alike.

    Args:
        trials: what to time.
        precision: see `autocast`.
        seconds: of each trial, a fifth in each turn; one call in each turn at least and 40 at most.
        warm_up: see `measure`.
        most: seconds in all after which no fourth or fifth turn is begun.
        on_round: called after each of the five rounds, or after those that there are.
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
    precision: str = "32", seconds: float = FULL_SECONDS, warm_up: int = WARM_UP,
) -> Measured:  # fmt: skip
    """Measure at 1, 2, 4, ... up to ``largest`` images, until doubling gains less than 3 % or finds no room; the best of them."""

    def at(images: int) -> Measured:
        return measure(model, views_of, images, locations=locations, precision=precision, seconds=seconds, warm_up=warm_up)

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


class Timed(NamedTuple):
    """A model whose budgets are to be timed.

    Attributes:
        model: the model, on its device, in evaluation mode.
        budgets: looks per grid at each level.
        views_of: opens the first n of its images.
        images: how many there are.
    """

    model: GlimpseClassifier
    budgets: Sequence[tuple[int, ...]]
    views_of: Callable[[int], Views]
    images: int


def measure_budgets(
    timed: Sequence[Timed], how: Measure, *, precision: str = "32", on_step: Callable[[], None] = lambda: None
) -> list[dict[tuple[int, ...], tuple[Measured, Measured]]]:
    """Time every budget of several models in turn, at batch 1 and at the best batch of its model. Batch norms are folded.

    The best batch is the one that is fastest for the largest budget. A quick measurement takes about `QUICK_SECONDS` in all, however many
    models and budgets there are; it takes longer only where four calls of each budget at batch 1 do. It repeats less often, and tries
    only batches that it has time for.

    Args:
        timed: the models.
        how: ``"quick"``, ``"full"``, or ``"none"``, which takes no times.
        precision: see `autocast`.
        on_step: called as often as `measure_steps` says, or less often where time runs out.

    Returns:
        For each model, its budgets with what was measured at batch 1 and at the best batch; empty for ``"none"``.

    Raises:
        ConfigError: another word.
    """
    check_measure(how)
    if how == "none":
        return [{} for _ in timed]
    began, quick = time.perf_counter(), how == "quick"
    timed = [one._replace(model=fold_norms(one.model)) for one in timed]
    largest = [min(LARGEST_BATCH.get(one.model.mean.device.type, 64), one.images) for one in timed]
    seconds, warm_up, most = FULL_SECONDS, WARM_UP, math.inf
    if quick:
        seconds, warm_up = min(QUICK_SECONDS / 4 / sum(len(one.budgets) for one in timed), 0.2), 1
        largest = [max(1, min(pair)) for pair in zip(largest, _affordable(timed, precision), strict=True)]
    best: list[int] = []
    for one, images in zip(timed, largest, strict=True):
        search = partial(best_batch, locations=max(one.budgets), precision=precision, seconds=seconds / 2 if quick else seconds)
        best.append(search(one.model, one.views_of, images, warm_up=warm_up).batch_size if images > 1 else 1)
        on_step()
    if quick:
        most = QUICK_SECONDS - (time.perf_counter() - began)
    trials = {
        (i, budget, images): Trial(one.model, one.views_of, images, budget)
        for i, one in enumerate(timed)
        for budget in one.budgets
        for images in (1, best[i])
    }
    times = measure_in_turn(list(trials.values()), precision=precision, seconds=seconds, warm_up=warm_up, most=most, on_round=on_step)
    at = dict(zip(trials, times, strict=True))
    return [{budget: (at[i, budget, 1], at[i, budget, best[i]]) for budget in one.budgets} for i, one in enumerate(timed)]


def measure_steps(models: int, how: Measure) -> int:
    """How many steps `measure_budgets` takes for so many models."""
    return 0 if how == "none" else models + REPEATS


def check_measure(how: str) -> None:
    """See that this is one of `Measure`.

    Raises:
        ConfigError: it is not.
    """
    if how not in MEASURES:
        raise ConfigError(f"--measure {how}: is not known; use one of {', '.join(MEASURES)}")


def _affordable(timed: Sequence[Timed], precision: str) -> list[int]:
    """The largest batch of each model that a quick measurement has time for."""
    takes = []
    for one in timed:
        call = _Call(Trial(one.model, one.views_of, 1, max(one.budgets)), precision)
        call()
        start = time.perf_counter()
        call()
        takes.append(time.perf_counter() - start)
    calls = 1 + REPEATS
    left = QUICK_SECONDS - calls * sum(len(one.budgets) * seconds for one, seconds in zip(timed, takes, strict=True))
    # The search doubles the batch, so that all of it takes as long as twice the largest; then each budget is timed at that.
    return [int(left / len(timed) / (calls * (2 + len(one.budgets)) * seconds)) for one, seconds in zip(timed, takes, strict=True)]


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

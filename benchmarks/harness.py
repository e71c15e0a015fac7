"""Common parts of the benchmarks: timing in alternation, and result files with the circumstances of the measurement."""

from __future__ import annotations

import json
import os
import platform
import random
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from foveal import __version__
from foveal.host import keep_freed_memory, processor_name


def synchronise(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def in_turn(
    tasks: dict[str, Callable[[], object]],
    *,
    seconds: float,
    device: str = "cpu",
    warm_up: int = 2,
    least: int = 5,
    settle: bool = False,
) -> dict[str, np.ndarray]:
    """Time tasks in alternation: seconds of each task, one call of each per round, so other load affects all tasks
    equally.

    Rounds are repeated until ``seconds`` have passed, but at least ``least`` times. The order in each round is random,
    with a fixed seed, so no task always follows the same other one. Freed memory is kept, as in ``foveal``.

    Args:
        tasks: functions by name.
        seconds, least: see above.
        device: device of the tasks.
        warm_up: number of rounds before the first timed one.
        settle: call each task once more immediately before it is timed, so caches do not depend on the previous task.
            For short tasks that alternate with one that uses much memory.
    """
    keep_freed_memory()
    for _ in range(warm_up):
        for task in tasks.values():
            task()
    times: dict[str, list[float]] = {name: [] for name in tasks}
    began = time.perf_counter()
    rounds, draws = 0, random.Random(0)
    while time.perf_counter() - began < seconds or rounds < least:
        rounds += 1
        for name, task in draws.sample(list(tasks.items()), len(tasks)):
            if settle:
                task()
            synchronise(device)
            start = time.perf_counter()
            task()
            synchronise(device)
            times[name].append(time.perf_counter() - start)
    return {name: np.array(values) for name, values in times.items()}


def ratio(above: np.ndarray, below: np.ndarray) -> dict[str, float]:
    """Median and quartiles of the ratios in each round, which pairs calls in immediate succession."""
    quarter, middle, three_quarters = np.percentile(above / below, (25, 50, 75))
    return {
        "median": round(float(middle), 4),
        "q1": round(float(quarter), 4),
        "q3": round(float(three_quarters), 4),
        "rounds": len(above),
    }


def milliseconds(times: np.ndarray, images: int = 1) -> float:
    return round(1e3 * float(np.median(times)) / images, 3)


def write(out: str | os.PathLike[str] | None, results: Any, *, device: str = "cpu", seed: int | None = 0) -> None:
    """Write ``results`` with the circumstances of the measurement: command, versions, machine, seed."""
    if out is None:
        return
    versions = {"python": platform.python_version()} | {
        name: version(name) for name in ("torch", "torchvision", "timm")
    }
    versions["foveal"] = __version__  # may run from a checkout without being installed
    name = (
        torch.cuda.get_device_name()
        if device.startswith("cuda")
        else f"{processor_name()}, {torch.get_num_threads()} threads"
    )
    record = {
        "command": " ".join(["python", *sys.argv]),
        "device": name,
        "versions": versions,
        "seed": seed,
        "results": results,
    }
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(json.dumps(record, indent=1) + "\n")
    temporary.replace(path)

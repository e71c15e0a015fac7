"""What every benchmark needs: times of several things taken in turn, and a result file that says how it was made."""

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
    """Seconds of each task, one call of each in every round, so that what else the machine does falls on all alike.

    Rounds go on until ``seconds`` have passed, but at least ``least`` times; each has an order of its own, drawn with a
    fixed seed, so that what one leaves in the caches does not always fall on the same other one. Freed memory is kept,
    as ``foveal`` itself does.

    Args:
        tasks: by name.
        seconds, least: see above.
        device: what the tasks run on.
        warm_up: rounds before the first that is timed.
        settle: call each task once more right before it is timed, so that what another leaves in the caches falls on
            none: for short tasks beside one that works through much memory.
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
    """Median of the rounds' ratios with their quartiles: rounds are pairs, taken one right after the other."""
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
    """Write ``results`` with what is needed to make them again: command, versions, machine, seed."""
    if out is None:
        return
    versions = {"python": platform.python_version()} | {
        name: version(name) for name in ("torch", "torchvision", "timm")
    }
    versions["foveal"] = __version__  # which may run from where it lies, without being installed
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

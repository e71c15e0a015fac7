"""Runs of ``foveal fit`` for benchmarks: one thread each, and as many steps as fit a processor time, which load does not change."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

TRIAL = 8  # seconds that two trial runs must differ by


def fit(flags: Sequence[str], out: Path, *, steps: int, seed: int = 0) -> float:
    """Train, and return the seconds of processor time that it took.

    Args:
        flags: of ``foveal fit``, the recipe first where there is one.
        out: run folder; what is there is replaced.
        steps: updates of the weights.
        seed: of the run.
    """
    command = [sys.executable, "-m", "foveal.cli", "fit", *flags, "--seed", str(seed), "--steps", str(steps), "--max_time", "1e6"]
    before = os.times()
    subprocess.run([*command, "--out", str(out), "--overwrite", "--quiet"], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def affordable(flags: Sequence[str], seconds: float, folder: Path) -> int:
    """Steps that fit; what comes before the first one is not counted. Trial runs go into ``folder``."""
    few = more = 5
    start = fit(flags, folder, steps=few)
    took = 0.0
    while took < TRIAL:
        more *= 2
        took = fit(flags, folder, steps=more) - start
    return round(seconds * (more - few) / took)

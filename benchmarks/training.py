"""Runs of ``foveal fit`` for benchmarks: one thread each, and as many steps as fit a processor time, which load does
not change.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

DIGITS = str(Path(__file__).with_name("digits.yaml"))
TRIAL = 8  # seconds that two trial runs must differ by


def fit(flags: Sequence[str], out: Path, *, steps: int, seed: int = 0) -> float:
    """Train, and return the seconds of processor time that it took.

    Args:
        flags: of ``foveal fit``, the recipe first where there is one.
        out: run folder; what is there is replaced.
        steps: updates of the weights.
        seed: of the run.
    """
    command = [
        sys.executable,
        "-m",
        "foveal",
        "fit",
        *flags,
        "--device",
        "cpu",
        "--seed",
        str(seed),
        "--steps",
        str(steps),
    ]
    run = subprocess.Popen(
        [*command, "--out", str(out), "--overwrite", "--quiet"], env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    _, status, used = os.wait4(run.pid, 0)  # of this run alone, while others may end beside it
    run.returncode = os.waitstatus_to_exitcode(status)
    if run.returncode:
        raise subprocess.CalledProcessError(run.returncode, command)
    return used.ru_utime + used.ru_stime


def affordable(flags: Sequence[str], seconds: float, folder: Path) -> int:
    """Steps that fit; what comes before the first one is not counted. Trial runs go into ``folder``."""
    few = more = 5
    start = fit(flags, folder, steps=few)
    took = 0.0
    while took < TRIAL:
        more *= 2
        took = fit(flags, folder, steps=more) - start
    return round(seconds * (more - few) / took)

"""Runs of ``foveal fit`` for benchmarks, with one thread each and a given processor time, which other load does not
change."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

DIGITS = str(Path(__file__).with_name("digits.yaml"))
TRIAL = 8  # minimum difference of two trial runs in seconds


def fit(flags: Sequence[str], out: Path, *, steps: int, seed: int = 0) -> float:
    """Train, and return the processor time in seconds.

    Args:
        flags: flags of ``foveal fit``, starting with the recipe if there is one.
        out: run folder; an existing one is replaced.
        steps: number of updates.
        seed: seed of the run.
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
    _, status, used = os.wait4(run.pid, 0)  # of this run only, while others may end at the same time
    run.returncode = os.waitstatus_to_exitcode(status)
    if run.returncode:
        raise subprocess.CalledProcessError(run.returncode, command)
    return used.ru_utime + used.ru_stime


def affordable(flags: Sequence[str], seconds: float, folder: Path) -> int:
    """Number of steps that fit the processor time. Start-up time is not counted. Trial runs are written to
    ``folder``."""
    few = more = 5
    start = fit(flags, folder, steps=few)
    took = 0.0
    while took < TRIAL:
        more *= 2
        took = fit(flags, folder, steps=more) - start
    return round(seconds * (more - few) / took)

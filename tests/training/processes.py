"""Processes of a run on several nodes, which this machine plays. They are forked from one process that has imported
everything, so that each takes a fraction of a second.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from tests.training.tiny import config, tampered

LAUNCHERS = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RUN_ID")
"""Variables by which launchers tell a process who it is."""


class Ended(NamedTuple):
    """How a process ended: its exit code, and what it wrote."""

    code: int | None
    text: str


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def by_torchrun(nodes: int, devices: int) -> list[dict[str, str]]:
    """The variables that ``torchrun`` sets for each process of a run."""
    common = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": free_port(),
        "GLOO_SOCKET_IFNAME": "lo",
        "TORCHELASTIC_RUN_ID": "none",
        "WORLD_SIZE": str(nodes * devices),
        "LOCAL_WORLD_SIZE": str(devices),
    }
    return [
        {**common, "RANK": str(rank), "GROUP_RANK": str(rank // devices), "LOCAL_RANK": str(rank % devices)}
        for rank in range(nodes * devices)
    ]


def run_together(
    folder: Path,
    environments: Sequence[dict[str, str]],
    changes: dict[str, Any],
    flags: Sequence[str] = (),
    hows: Sequence[dict[str, Any]] = (),
    wait: float = 120,
) -> list[Ended]:
    """Run the command ``foveal fit`` in one process for each environment.

    Args:
        folder: where the run is, in ``run``, and what the processes write.
        environments: variables of each process.
        changes: configuration, see `tests.training.tiny.config`.
        flags: flags of the command.
        hows: see `tests.training.tiny.tampered`, for each process.
        wait: seconds to wait for the first process, and then for each of the others.
    """
    recipe = folder / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(config(**changes).to_dict()))
    argv = ["fit", str(recipe), "--out", str(folder / "run"), *flags]
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["tests.training.tiny", "foveal.training.fitting", "foveal.cli"])
    logs = [folder / f"process{i}.txt" for i in range(len(environments))]
    workers = [
        server.Process(target=_run, args=(argv, variables, how, str(log)))
        for variables, how, log in zip(environments, hows or [{}] * len(environments), logs, strict=True)
    ]
    for worker in workers:
        worker.start()
    try:
        for worker in workers:
            worker.join(wait)
            if worker.exitcode is None:
                break
        return [Ended(worker.exitcode, log.read_text()) for worker, log in zip(workers, logs, strict=True)]
    finally:
        for worker in workers:
            worker.kill()


def _run(argv: list[str], variables: dict[str, str], how: dict[str, Any], log: str) -> None:
    import torch

    from foveal.cli import main

    for name in LAUNCHERS:
        os.environ.pop(name, None)
    os.environ.update(variables)
    file = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    torch.set_num_threads(1)
    tampered(how)
    sys.exit(main(argv))

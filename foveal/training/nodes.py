"""The processes of a run: whether all have been started, and what happens if one is lost.

A launcher starts the processes and tells each its rank by environment variables: ``torchrun``, Slurm's ``srun``, or
Lightning, which starts those of one node.

Example:
    >>> is_lost(RuntimeError("[gloo/transport/tcp/pair.cc:561] Connection closed by peer [10.0.0.2]:36766"))
    True
    >>> is_lost(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    False
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Sequence

import torch.distributed as dist
from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment

from foveal.errors import ConfigError, RunError

GRACE = 10.0
"""Seconds in which a process notices by itself that another one has ended."""

# Errors of exchanges between processes. Gloo raises a RuntimeError, whose text tells where.
_LOST = re.compile(r"gloo|NCCL|TCPStore|connection (closed|reset|refused)", re.IGNORECASE)


class ProcessLost(RunError):
    """Another process of the run has ended, or does not answer."""


def check_launch(nodes: int, devices: int) -> None:
    """Check that a launcher has started as many processes as a run has, or that Lightning can start them.

    Args:
        nodes: number of computers.
        devices: number of devices of each.

    Raises:
        ConfigError: it has not, or this process cannot know the others.
    """
    processes = nodes * devices
    count = "is one process" if processes == 1 else f"are {processes} processes"
    wanted = f"`nodes` {nodes} with `devices` {devices} {count}"
    if TorchElasticEnvironment.detect():
        started, here = (int(os.environ.get(name, "1")) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
        if (started, here) != (processes, devices):
            raise ConfigError(
                f"nodes: {wanted}, and torchrun has started {started}, {here} on this node; give torchrun the options "
                f"--nnodes {nodes} --nproc-per-node {devices}, or use `nodes` {started // here} and `devices` {here}"
            )
        return
    if processes == 1:
        return
    tasks = int(os.environ.get("SLURM_NTASKS", "1"))
    if SLURMEnvironment.detect():  # Lightning then starts no process
        here = int(os.environ.get("SLURM_NTASKS_PER_NODE", devices))
        if (tasks, here) != (processes, devices):
            raise ConfigError(
                f"nodes: {wanted}, and Slurm has started {tasks}; give srun the options --nodes {nodes} "
                f"--ntasks-per-node {devices}"
            )
        return
    if nodes == 1:
        return
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK") if name not in os.environ]
    if missing:
        raise ConfigError(
            f"nodes: {wanted}, and this one does not know the others, because {', '.join(missing)} "
            f"{'are' if len(missing) > 1 else 'is'} not set; start the command on every node by torchrun or srun, or "
            "set these variables"
        )
    number = os.environ["NODE_RANK"]
    if not number.isdecimal() or int(number) >= nodes:
        raise ConfigError(f"nodes: NODE_RANK is {number!r}, and `nodes` is {nodes}; set it from 0 to {nodes - 1}")


def is_lost(error: BaseException) -> bool:
    """Whether an error of an exchange between processes tells that another one has ended or does not answer."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and bool(_LOST.search(str(error))))


def lost_sentence(seconds: float) -> str:
    """What happened to another process of the run."""
    return f"another process of the run has ended, or did not answer for {seconds:g} seconds (`timeout`)"


def end_without(children: Sequence[subprocess.Popen], ended: threading.Event, message: str) -> None:
    """End this process if one of those that it started fails and training does not notice within `GRACE` seconds:
    some exchanges of GPUs wait for a lost process forever.

    Args:
        children: the processes of this node besides this one.
        ended: is set when training has ended in this process.
        message: what it then writes on standard error.
    """

    def watch() -> None:
        while not ended.wait(1):
            if any(child.poll() for child in children):
                if not ended.wait(GRACE):
                    sys.stderr.write(f"foveal: {message}\n")
                    sys.stderr.flush()
                    os._exit(1)
                return

    threading.Thread(target=watch, name="end without children", daemon=True).start()

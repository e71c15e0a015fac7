"""The process, its machine, its devices and the processes that it starts.

Example:
    >>> keep_freed_memory()
    >>> processor_name().endswith("processors")
    True
    >>> to_device(np.arange(3), torch.device("cpu"), torch.float32)
    tensor([0., 1., 2.])
"""

from __future__ import annotations

import ctypes
import math
import os
import platform
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from foveal.errors import ConfigError

STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""What asks a process to end: Ctrl-C; `kill`, `timeout`, Slurm and systemd; a terminal that was closed."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h


def keep_freed_memory() -> None:
    """Let glibc reuse the memory of large tensors instead of returning it to the kernel.

    On a CPU each training step allocates the same activations again. By default their memory comes from the kernel each
    time, which causes page faults (13,000 per step in the demo, a fifth of its time). Does nothing with other C
    libraries.
    """
    _mallopt({_M_TRIM_THRESHOLD: 2**31 - 1, _M_MMAP_THRESHOLD: 2**30})


def share_heap() -> None:
    """Let threads of glibc that start from now on allocate from the heap of the main thread.

    The heaps of other threads are small, and are returned to the kernel when they are empty. A model that runs in such
    a thread gets the memory of its activations from the kernel each time (up to 5,000 page faults per image in the
    service, a tenth of its time). Does nothing with other C libraries.
    """
    _mallopt({_M_ARENA_MAX: 1})


def _mallopt(values: dict[int, int]) -> None:
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in values.items():
            mallopt(option, value)


PROCESSES = 8
"""Most processes of training for each processor."""


def usable_device(name: str | torch.device = "auto", count: int = 1) -> torch.device:
    """The device with a name; ``"auto"`` is the first GPU if there is one, else the CPU.

    Args:
        name: ``auto``, or a device name of torch: ``cpu``, ``cuda``, ``cuda:1``, ...
        count: number of devices of that kind. Several processes can share a processor.

    Raises:
        ConfigError: this machine has no such device, or too few.
    """
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        if name != "auto":
            # torch accepts names of missing devices and "meta", which holds no values. Using them fails.
            torch.empty(1, device=device).tolist()
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        raise ConfigError(
            f"`device` {name}: this machine has no such device that torch can use; try auto or cpu"
        ) from error
    if device.index is not None and count > 1:
        raise ConfigError(f"`devices` {count}: but `device` {name} is a single one; use `device` {device.type}")
    if device.type == "cpu" and count > (most := PROCESSES * (os.cpu_count() or 1)):
        raise ConfigError(f"`devices` {count}: are too many for {os.cpu_count()} processors; use at most {most}")
    if device.type == "cuda" and count > (there := torch.cuda.device_count()):
        raise ConfigError(f"`devices` {count}: this machine has {there} GPU{'s' * (there != 1)}; use `devices` {there}")
    return device


@contextmanager
def deaf_children() -> Iterator[None]:
    """Processes that are started here get none of `STOP_SIGNALS`: they inherit that these are blocked.

    A signal to a group of processes would otherwise end workers before their parent has used what they read.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows has no groups of processes
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with_parent() -> None:
    """End this process within a second after its parent ends, in any way.

    It ends at once if the parent sends SIGTERM; `deaf_children` blocks SIGTERM from other processes.
    """
    parent = os.getppid()
    blocked = hasattr(signal, "sigtimedwait") and signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, ())

    def watch() -> None:
        while os.getppid() == parent:
            if not blocked:
                time.sleep(1)
            elif (got := signal.sigtimedwait((signal.SIGTERM,), 1)) and got.si_pid == parent:
                break
        os._exit(0)

    threading.Thread(target=watch, name="end with parent", daemon=True).start()


_RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_NTASKS", "SLURM_PROCID")


def global_rank(processes: int) -> int:
    """Rank of this process among all of a run; 0 writes. It is known before Lightning starts.

    ``torchrun`` sets ``RANK``. Lightning sets ``LOCAL_RANK``, and its users ``NODE_RANK``. Slurm sets ``SLURM_PROCID``,
    which is a rank of this run if Slurm started as many tasks as it has processes.
    """
    known = {name: int(value) for name, value in os.environ.items() if name in _RANKS and value.isdecimal()}
    if "RANK" in known:
        return known["RANK"]
    if "LOCAL_RANK" in known or "NODE_RANK" in known or not 1 < processes == known.get("SLURM_NTASKS"):
        # Not the exact rank on another node, but not 0 either.
        return known.get("LOCAL_RANK", 0) + (known.get("NODE_RANK", 0) if processes > 1 else 0)
    return known.get("SLURM_PROCID", 0)


def speaker(processes: int) -> str | None:
    """How this process begins its messages: empty for the process of rank 0, the name of the machine for the first
    process of another node. None for other processes, whose errors are those of the first one.
    """
    if global_rank(processes) == 0:
        return ""
    local = os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0"))
    return f"{platform.node()}: " if local == "0" else None


def memory() -> float:
    """Bytes of memory of this machine; infinity if the system does not tell."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        return math.inf


def check_memory(looks: int, channels: int, size: tuple[int, int]) -> None:
    """Check that looks, as float32, fit into the memory of this machine before they are read.

    Args:
        looks: number of looks at all images of a batch.
        channels: number of bands.
        size: (height, width) of a look.

    Raises:
        ConfigError: they do not.
    """
    if (needs := 4 * looks * channels * size[0] * size[1]) > (there := memory()):
        raise ConfigError(
            f"`batch_size`: {looks:,} look{'s' * (looks > 1)} of {size[0]} x {size[1]} px at once need "
            f"{needs / 2**30:,.1f} GiB, and this machine has {there / 2**30:,.1f} GiB of memory; use smaller looks, or "
            "fewer images at a time"
        )


def processor_name() -> str:
    """Model and number of processors, for example ``AMD EPYC 7B13, 2 processors``."""
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE) if cpuinfo.is_file() else None
    return f"{found[1] if found else platform.processor() or platform.machine()}, {os.cpu_count()} processors"


def to_device(values: np.ndarray | Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Copy an array or a tensor to a device asynchronously, optionally to another type."""
    tensor = torch.from_numpy(values) if isinstance(values, np.ndarray) else values
    return tensor.to(device, dtype, non_blocking=True)


def true_indices(which: np.ndarray, device: torch.device) -> Tensor:
    """Indices of True in a mask, on a device. Indexing with a mask on the device would wait for the device."""
    return to_device(np.flatnonzero(which), device)

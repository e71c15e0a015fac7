"""What the process asks of the machine it runs on, of its devices, and of the processes that it starts.

Example:
    >>> keep_freed_memory()
    >>> processor_name().endswith("processors")
    True
    >>> sent(np.arange(3), torch.device("cpu"), torch.float32)
    tensor([0., 1., 2.])
"""

from __future__ import annotations

import ctypes
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

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def keep_freed_memory() -> None:
    """Let glibc reuse the memory of large tensors instead of giving it back after each layer.

    On a CPU, every step of training allocates the same activations again; by default each comes fresh from the kernel, page
    fault by page fault (13,000 a step in the demo, a fifth of its time). Does nothing where the C library is another.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_M_MMAP_THRESHOLD, 2**30)


def usable_device(name: str | torch.device = "auto", count: int = 1) -> torch.device:
    """The device of that name; ``"auto"`` is the first GPU, or the CPU where there is none.

    Args:
        name: ``auto``, or as torch names devices: ``cpu``, ``cuda``, ``cuda:1``, ...
        count: how many devices of that kind are wanted. Any number of processes share a CPU.

    Raises:
        ConfigError: this machine has no such device, or fewer of them.
    """
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        if name != "auto":
            # torch takes names of devices that are not there, and "meta", which holds no numbers; using one fails.
            torch.empty(1, device=device).tolist()
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        raise ConfigError(f"--device {name}: this machine has no such device that torch can use; try auto or cpu") from error
    if device.index is not None and count > 1:
        raise ConfigError(f"--devices {count}: but --device {name} is a single one; use --device {device.type}")
    if device.type == "cuda" and count > (there := torch.cuda.device_count()):
        raise ConfigError(f"--devices {count}: this machine has {there} GPU{'s' * (there != 1)}; use --devices {there}")
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
    """Let this process end within a second after its parent, however that ends; or at once when the parent alone sends SIGTERM, where
    `deaf_children` keeps it from others."""
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


def processor_name() -> str:
    """Model and number of the processors, say ``AMD EPYC 7B13, 2 processors``."""
    told = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", told.read_text(), re.MULTILINE) if told.is_file() else None
    return f"{found[1] if found else platform.processor() or platform.machine()}, {os.cpu_count()} processors"


def sent(values: np.ndarray | Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """An array or a tensor on a device, in the given type or its own. Nobody waits for the device to take it, as after a plain ``.to``."""
    tensor = torch.from_numpy(values) if isinstance(values, np.ndarray) else values
    return tensor.to(device, dtype, non_blocking=True)


def rows_of(which: np.ndarray, device: torch.device) -> Tensor:
    """Where a mask (bool) is set, as an index on a device. Given the mask, the device would have to be asked how many rows it picks."""
    return sent(np.flatnonzero(which), device)

"""What the process asks of the machine it runs on.

Example:
    >>> keep_freed_memory()
    >>> processor_name().endswith("processors")
    True
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import sys
from pathlib import Path

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


def processor_name() -> str:
    """Model and number of the processors, say ``AMD EPYC 7B13, 2 processors``."""
    told = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", told.read_text(), re.MULTILINE) if told.is_file() else None
    return f"{found[1] if found else platform.processor() or platform.machine()}, {os.cpu_count()} processors"

"""Devices and precisions: the values of ``--device`` and ``--precision``.

Example:
    >>> find_device("cpu")
    device(type='cpu')
    >>> with autocast("bf16", find_device("cpu")):
    ...     (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
    torch.bfloat16
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from foveal.choices import PRECISIONS
from foveal.errors import ConfigError
from foveal.host import keep_freed_memory, processor_name, usable_device


def find_device(name: str | torch.device = "auto") -> torch.device:
    """The device with a name; ``"auto"`` is the first GPU if there is one, else the CPU.

    Raises:
        ConfigError: this machine has no such device.
    """
    device = usable_device(name)
    if device.type == "cpu":
        keep_freed_memory()
    return device


def machine_name(device: torch.device) -> str:
    """Name of the hardware for which measured times hold: the GPU, or the CPU and the number of threads."""
    return (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{processor_name()}, {torch.get_num_threads()} threads"
    )


def check_precision(precision: str) -> None:
    """Check that a precision is known.

    Raises:
        ConfigError: it is not.
    """
    if not isinstance(precision, str) or precision not in PRECISIONS:
        raise ConfigError(f"`precision` {precision}: is not known; use one of {', '.join(PRECISIONS)}")


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """A context in which matrix products and convolutions run in float32 (``"32"``), bfloat16 (``"bf16"``) or float16
    (``"16"``).

    Raises:
        ConfigError: the precision is unknown.
    """
    check_precision(precision)
    dtype = PRECISIONS[precision]
    return nullcontext() if dtype is None else torch.autocast(device.type, getattr(torch, dtype))

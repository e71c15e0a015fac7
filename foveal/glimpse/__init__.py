"""Classifiers that choose where to look, their base class, and their grids.

Names below are imported when first used, because `foveal.glimpse.grid` needs no torch.

Example:
    >>> import torch
    >>> from foveal.glimpse import TNet
    >>> model = TNet(num_classes=2, backbone="plain_convnet_32", locations=(1,)).eval()
    >>> [glimpse.level for glimpse in model(torch.rand(1, 3, 64, 64)).glimpses]
    [1, 2]
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_WHERE = {
    "DRAM": "dram",
    "RAM": "ram",
    "GlimpseClassifier": "base",
    "Grid": "grid",
    "TNet": "tnet",
    "WholeImage": "base",
}

__all__ = ["DRAM", "RAM", "GlimpseClassifier", "Grid", "TNet", "WholeImage"]

if TYPE_CHECKING:
    from foveal.glimpse.base import GlimpseClassifier, WholeImage
    from foveal.glimpse.dram import DRAM
    from foveal.glimpse.grid import Grid
    from foveal.glimpse.ram import RAM
    from foveal.glimpse.tnet import TNet


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'foveal.glimpse' has no attribute '{name}'")
    return getattr(importlib.import_module(f"foveal.glimpse.{_WHERE[name]}"), name)

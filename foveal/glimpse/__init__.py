"""Classifiers that choose where to look, their base class, and their grids.

Example:
    >>> import torch
    >>> model = TNet(num_classes=2, backbone="plain_convnet_32", locations=(1,)).eval()
    >>> [glimpse.level for glimpse in model(torch.rand(1, 3, 64, 64)).glimpses]
    [1, 2]
"""

from foveal.glimpse.base import GlimpseClassifier, WholeImage
from foveal.glimpse.dram import DRAM
from foveal.glimpse.grid import Grid
from foveal.glimpse.ram import RAM
from foveal.glimpse.tnet import TNet

__all__ = ["DRAM", "RAM", "GlimpseClassifier", "Grid", "TNet", "WholeImage"]

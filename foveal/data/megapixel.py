"""Megapixel MNIST: a few handwritten digits on a large black canvas, among strokes of noise.

"Processing Megapixel Images with Deep Attention-Sampling Models", Katharopoulos and Fleuret, ICML 2019, arXiv
1905.03711, section 4.1. Details follow the authors' script (idiap/attention-sampling, scripts/make_mnist.py): 5 digits
of 28 px that do not overlap, 3 of the target class and 2 of other classes; 50 patches of noise, each one of 50 patterns
of two straight lines; 5,000 canvases for training and 1,000 for testing, made of MNIST's training and test digits. What
differs here: noise does not cover digits, so small canvases can be solved; there are validation canvases of held-out
digits; there is a task with a single digit.

A canvas is never drawn whole. It is a list of patches, and a look draws the patches inside its box (`Scattered`), so
the cost of a look does not depend on the size of the canvas.

Example:
    >>> import numpy as np
    >>> canvas = Scattered(np.full((1, 28, 28), 255, np.uint8), np.array([[1000, 36]]), 3000)
    >>> canvas.look(np.array([[1000, 0, 1064, 64]]), (64, 64)).sum().item()
    784.0
    >>> megapixel_digits("/nowhere", download=False)
    Traceback (most recent call last):
    ...
    foveal.errors.DataError: /nowhere: there is no MNIST in this folder, or a file is damaged; correct the path...
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch

from foveal.data.dataset import Dataset, FirstLooks, Loaded, torchvision_set
from foveal.data.module import DATA_SETS, DataModule
from foveal.draws import generator
from foveal.errors import ConfigError
from foveal.images import Pyramid, View
from foveal.images.pyramid import Stored, Window

SIDE = 28
PATTERNS = 50
DIGITS = {"majority": (3, 2), "one": (1, 0)}
MegapixelTask = Annotated[str, tuple(DIGITS)]
"""Number of digits of the target class and of other classes, by task."""
HELD_OUT = 12
"""One in 12 of MNIST's training digits, the last 5,000, are held out for validation."""
_COARSEST = 16
"""No pyramid level has a side below this, in pixels, except one."""


@DATA_SETS.register
def megapixel_digits(
    root: str,
    download: bool = True,
    canvas: int = 1500,
    task: MegapixelTask = "majority",
    noise: int = 50,
    noise_from: int | None = None,
    noise_epochs: int = 6,
    train: int = 5000,
    val: int = 500,
    test: int = 1000,
    seed: int = 0,
) -> DataModule:
    """MNIST digits on black canvases of one band, among patches of noise: ten classes.

    Canvas i of a split is a function of (seed, split, i). Training canvases use MNIST's training digits without the
    last twelfth, validation canvases that twelfth, test canvases MNIST's test digits. Each split has its own noise
    patterns. Boxes are those of the digits of the target class.

    Args:
        root: folder that holds ``MNIST/raw``.
        download: download missing files.
        canvas: side of an image in pixels.
        task: ``majority``: five digits, three of them of the target class; ``one``: a single digit.
        noise: number of patches of noise.
        noise_from: number of patches of noise in the first epoch of training, if it grows to ``noise``; null for
            ``noise`` in all epochs. Canvases of later epochs have the patches of earlier ones, and more.
        noise_epochs: number of epochs over which it grows, in equal steps.
        train, val, test: number of images of each split; 0 for none.
        seed: seed of all random draws.

    Raises:
        ConfigError: unknown task, or the patches do not fit.
        DataError: the files are missing, damaged, or cannot be downloaded.
    """
    if task not in DIGITS:
        raise ConfigError(f"data megapixel_digits: there is no task {task!r}; use one of {', '.join(DIGITS)}")
    if noise_from is not None and not (0 <= noise_from <= noise and noise_epochs >= 1):
        raise ConfigError(
            f"data megapixel_digits: noise from {noise_from} to {noise} patches in {noise_epochs} epochs cannot grow; "
            "give 0 to `noise` and at least one epoch"
        )
    patches = sum(DIGITS[task]) + noise
    # Random placement without overlap gets stuck a little above half of the canvas.
    if patches * SIDE**2 > 0.4 * canvas**2:
        raise ConfigError(
            f"data megapixel_digits: {patches} patches of {SIDE} px do not fit on {canvas} px; use a larger canvas or "
            "fewer"
        )
    counts = {"train": train, "val": val, "test": test}
    halves = {half: _read_mnist(Path(root).expanduser(), half == "train", download) for half in ("train", "test")}
    held_out = len(halves["train"][1]) // HELD_OUT
    of_split = {
        "train": ("train", slice(None, -held_out)),
        "val": ("train", slice(-held_out, None)),
        "test": ("test", slice(None)),
    }
    splits = {}
    for split, count in counts.items():
        if count:
            half, part = of_split[split]
            images, labels = halves[half]
            splits[split] = Canvases(
                images[part],
                labels[part],
                split,
                count,
                canvas=canvas,
                digits=DIGITS[task],
                noise=noise,
                seed=seed,
                growth=(noise_from, noise_epochs) if split == "train" and noise_from is not None else None,
            )
    return DataModule(classes=Canvases.classes, name="megapixel_digits", **splits)


class Canvases(Dataset):
    """The canvases of a split.

    Args:
        images: (n, 28, 28) uint8 digits.
        labels: (n,) classes of the digits.
        split: name of the split; seeds the draws.
        count: number of canvases.
        canvas: side of a canvas in pixels.
        digits: number of digits of the target class and of other classes.
        noise: number of patches of noise.
        seed: seed of the draws.
        growth: number of patches of noise in the first epoch, and number of epochs until there are ``noise``.
    """

    classes = tuple("0123456789")
    channels = 1

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        split: str,
        count: int,
        *,
        canvas: int,
        digits: tuple[int, int],
        noise: int,
        seed: int,
        growth: tuple[int, int] | None = None,
    ) -> None:
        self._growth = growth
        self._digits, self._noise = sum(digits), noise
        self._split = split
        self._canvas = canvas
        self._patches = np.concatenate([images, strokes(PATTERNS, generator(seed, 0, 0, f"megapixel strokes {split}"))])
        self.targets = np.empty(count, dtype=np.int64)
        # Patches of each canvas and their top left corners; digits of the target class come first.
        self._chosen = np.empty((count, sum(digits) + noise), dtype=np.int32)
        self._corners = np.empty((count, sum(digits) + noise, 2), dtype=np.int32)
        same, other = ([np.flatnonzero((labels == c) == alike) for c in range(10)] for alike in (True, False))
        for i in range(count):
            rng = generator(seed, 0, i, f"megapixel {split}")
            self.targets[i] = c = rng.integers(10)
            drawn = [
                rng.choice(same[c], digits[0]),
                rng.choice(other[c], digits[1]),
                len(images) + rng.integers(PATTERNS, size=noise),
            ]
            self._chosen[i] = np.concatenate(drawn)
            self._corners[i] = _draw_corners(sum(digits) + noise, canvas, rng)
        that_count = self._corners[:, : digits[0]].astype(np.float64)
        self.boxes = list(np.concatenate([that_count, that_count + SIDE], axis=-1))

    def plain(self) -> Canvases:
        same = copy.copy(self)
        same._growth = None
        return same

    def noise(self, epoch: int) -> int:
        """Number of patches of noise in an epoch."""
        if self._growth is None:
            return self._noise
        first, epochs = self._growth
        return first + round((self._noise - first) * min(1.0, epoch / epochs))

    def open(self, i: int, noise: int | None = None) -> Scattered:
        """Canvas ``i`` as a pyramid, with all patches of noise or the first ``noise`` ones."""
        count = self._digits + (self._noise if noise is None else noise)
        chosen, corners = self._chosen[i, :count], self._corners[i, :count]
        return Scattered(self._patches[chosen], corners, self._canvas, path=f"megapixel_digits {self._split} {i}")

    def load(self, epoch: int, indices: Sequence[int], seed: int, first_looks: FirstLooks | None = None) -> Loaded:
        index = np.asarray(indices, dtype=np.int64)
        views = [View(self.open(i, self.noise(epoch))) for i in index.tolist()]
        if first_looks is not None:
            for view in views:
                view.prefetch(first_looks(view.size))
        return Loaded(views, torch.from_numpy(self.targets[index]), index)


class Scattered(Pyramid):
    """Small square patches on a black canvas of one band. Only patches inside a box are drawn.

    Level l has the exact means of blocks of 2^l x 2^l pixels; the last block of a side can be smaller. ``bytes_read``
    counts one byte per pixel of the windows drawn. ``tiles_decoded`` counts patches.

    Args:
        patches: (n, s, s) uint8.
        corners: (n, 2) top left pixels; overlapping patches are added.
        side: side of the canvas in pixels.
        path: name for messages.
    """

    def __init__(self, patches: np.ndarray, corners: np.ndarray, side: int, *, path: str = "canvas") -> None:
        sides = [side]
        while sides[-1] > _COARSEST:
            sides.append(-(-sides[-1] // 2))
        super().__init__(path, [(s, s) for s in sides], 1, np.dtype(np.float32), value_range=(0, 255), halved=True)
        self._patches = patches
        self._corners = np.asarray(corners, dtype=np.int64)

    def _read_stored(self, requests: list[tuple[int, Window]]) -> list[Stored]:
        return [(self._draw(level, window)[..., None], None) for level, window in requests]

    def _draw(self, level: int, box: Window) -> np.ndarray:
        """(height, width) float32 pixels of a window at a level."""
        (y0, x0, y1, x1), block, side = box, 1 << level, self._patches.shape[-1]
        first, last = self._corners >> level, (self._corners + side - 1) >> level
        touched = np.flatnonzero(((last >= (y0, x0)) & (first < (y1, x1))).all(1))
        # Block of each row and column of a patch, counted from its first block. These sums of integers are exact.
        blocks = (side + block - 2) // block + 1
        into = (self._corners[touched, :, None] % block + np.arange(side)) >> level
        rows, cols = (into[:, :, None] == np.arange(blocks)[:, None]).astype(np.float32).swapaxes(0, 1)
        sums = rows @ self._patches[touched].astype(np.float32) @ cols.swapaxes(1, 2)
        # The margin receives blocks outside the window.
        total = np.zeros((y1 - y0 + 2 * blocks, x1 - x0 + 2 * blocks), np.float32)
        for patch, (y, x) in zip(sums, (first[touched] - (y0, x0) + blocks).tolist(), strict=True):
            total[y : y + blocks, x : x + blocks] += patch
        height, width = (np.minimum(block, self.size[0] - np.arange(*ends) * block) for ends in ((y0, y1), (x0, x1)))
        self._count((y1 - y0) * (x1 - x0), len(touched))
        return total[blocks:-blocks, blocks:-blocks] / (height[:, None] * width).astype(np.float32)


def strokes(count: int, rng: np.random.Generator) -> np.ndarray:
    """Patches of noise as published: two straight lines from a corner, one pixel wide.

    Angles are uniform from 0 to 72 degrees. The second line is the first line of another patch, mirrored with
    probability 0.44 (two flips with probability 1/3 each). Pixels are between 80 and 100 % white.

    Returns:
        (count, 28, 28) uint8.
    """
    slopes = np.tan(rng.random(count) * np.pi / 2.5)
    lines = np.zeros((count, SIDE, SIDE), dtype=bool)
    for line, slope in zip(lines, slopes, strict=True):
        y = np.linspace(0, min(SIDE - 0.51, (SIDE - 0.51) / slope), 2 * SIDE)
        line[np.round(y).astype(int), np.round(slope * y).astype(int)] = True
    others = lines[rng.permutation(count)]
    mirrored = rng.random(count) < 0.44
    others[mirrored] = others[mirrored, :, ::-1]
    return ((lines | others) * rng.uniform(0.8, 1, lines.shape) * 255).astype(np.uint8)


def _draw_corners(count: int, canvas: int, rng: np.random.Generator) -> np.ndarray:
    """(count, 2) top left corners of patches that do not overlap, by redrawing the later patch of each collision."""
    corners, stays, moving = np.zeros((count, 2), dtype=np.int32), np.zeros(count, dtype=bool), np.arange(count)
    while len(moving):
        corners[moving] = rng.integers(0, canvas - SIDE + 1, (len(moving), 2))
        near = np.abs(corners[moving, None] - corners) < SIDE
        before = stays | (np.arange(count) < moving[:, None])
        clash = (near[..., 0] & near[..., 1] & before).any(1)
        stays[moving[~clash]] = True
        moving = moving[clash]
    return corners


def _read_mnist(root: Path, train: bool, download: bool) -> tuple[np.ndarray, np.ndarray]:
    """(n, 28, 28) uint8 digits of MNIST's training or test set, and their classes."""
    found = torchvision_set("MNIST", root, train, download)
    return found.data.numpy(), found.targets.numpy()

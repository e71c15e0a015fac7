"""The bundled data set: a handwritten digit somewhere on a photograph, to be found small and read large.

Real digits (scikit-learn's 1,797, eight pixels a side) are drawn in white on a darkened plate, on real photographs that
scikit-learn and scikit-image ship; distractors share the digit's ink or its plate, but not both, so that a thumbnail
shows where the digit may be and not which it is. Nothing is downloaded. Every canvas is a function of (seed, split,
index); no original digit and no part of a photograph is in two splits.

Example:
    >>> data = digits(canvas=128, digit=(16, 24), train=20, val=10, test=10)
    >>> data.train.images.shape, data.train.counts().tolist()
    (torch.Size([20, 3, 128, 128]), [2, 2, 2, 2, 2, 2, 2, 2, 2, 2])
    >>> data.train.boxes[0].shape
    (1, 4)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.data.dataset import TensorDataset
from foveal.data.module import DATA_SETS, DataModule
from foveal.draws import generator
from foveal.errors import ConfigError, DataError

PHOTOGRAPHS = {
    "sklearn.datasets.images": ("china.jpg", "flower.jpg"),
    "skimage.data": (
        "astronaut.png", "camera.png", "chelsea.png", "coffee.png", "coins.png", "grass.png", "gravel.png", "motorcycle_left.png",
        "rocket.jpg",
    ),
}  # fmt: skip
SHARES = {"train": 0.7, "val": 0.1, "test": 0.2}


@dataclass(frozen=True)
class Canvas:
    """What is drawn on a canvas; see `digits`."""

    side: int
    digit: tuple[int, int]
    distractors: int
    lookalikes: int
    plate: float
    margin: float
    ink: float


@DATA_SETS.register
def digits(
    canvas: int = 256, digit: tuple[int, int] = (24, 36), distractors: int = 4, lookalikes: int = 0, plate: float = 0.25,
    margin: float = 0.25, ink: float = 1.0, train: int = 4000, val: int = 500, test: int = 1000, seed: int = 0,
) -> DataModule:  # fmt: skip
    """Handwritten digits scattered over photographs; ten classes, held in memory.

    Args:
        canvas: side of an image in pixels.
        digit: smallest and largest side of the digit in pixels.
        distractors: things to mistake for the digit in passing: ink without a plate (shuffled pieces of a digit) and plates without a
            digit (a single stroke), by turns.
        lookalikes: shuffled pieces of a digit on a plate of their own; no thumbnail tells them from the digit.
        plate: brightness left to the photograph under a plate, 0 to 1.
        margin: width of the plate around the digit, as a share of the digit's side.
        ink: opacity of the ink, 0 to 1.
        train, val, test: images of each split; 0 leaves the split out.
        seed: another seed, other images.
    """
    smallest, largest = digit
    room = round(largest * (1 + 2 * margin))
    if not 8 <= smallest <= largest or (1 + distractors + lookalikes) * (room + 2) ** 2 > 0.45 * canvas**2:
        raise ConfigError(
            f"data digits: {1 + distractors + lookalikes} things of {largest} px do not fit on {canvas} px; use a larger canvas or fewer"
        )
    look = Canvas(canvas, (smallest, largest), distractors, lookalikes, plate, margin, ink)
    counts = {"train": train, "val": val, "test": test}
    splits = {split: _draw(look, split, count, seed) for split, count in counts.items() if count}
    return DataModule(classes=tuple("0123456789"), name="digits", **splits)


def _draw(look: Canvas, split: str, count: int, seed: int) -> TensorDataset:
    """The canvases of a split."""
    labels = _originals(split)[1]
    images = np.empty((count, 3, look.side, look.side), dtype=np.uint8)
    targets, boxes = np.empty(count, dtype=np.int64), np.empty((count, 4))
    backgrounds = _photographs(split, look.side)
    by_class = [np.flatnonzero(labels == c) for c in range(10)]
    for i in range(count):
        rng = generator(seed, 0, i, f"canvas {split}")
        targets[i] = i % 10
        chosen = int(rng.choice(by_class[i % 10]))
        images[i] = _background(backgrounds, look.side, rng)
        boxes[i] = _scatter(images[i], look, split, chosen, rng)
    return TensorDataset(torch.from_numpy(images), targets, tuple("0123456789"), boxes[:, None])


def _scatter(image: np.ndarray, look: Canvas, split: str, chosen: int, rng: np.random.Generator) -> np.ndarray:
    """Draw the digit and everything else on ``image`` in place; returns the digit's (y0, x0, y1, x1)."""
    things = ["digit"] + ["lookalike"] * look.lookalikes + [("ink", "plate")[j % 2] for j in range(look.distractors)]
    sides = rng.integers(look.digit[0], look.digit[1] + 1, len(things))
    rooms = sides + 2 * np.round(sides * look.margin).astype(int)
    for thing, side, space, (y, x) in zip(things, sides.tolist(), rooms.tolist(), _places(rooms, look.side, rng), strict=True):
        if thing == "plate":
            glyph = _stroke(side, rng)
        else:
            glyphs = _glyphs(split, side)
            glyph = glyphs[chosen] if thing == "digit" else _shuffle(glyphs[int(rng.integers(len(glyphs)))], rng)
        if thing != "ink":
            ground = image[:, y : y + space, x : x + space]
            ground[:] = ground * look.plate
        edge = (space - side) // 2
        paper = image[:, y + edge : y + edge + side, x + edge : x + edge + side]
        paper[:] = paper + (255.0 - paper) * (look.ink * glyph)
        if thing == "digit":
            box = np.array([y + edge, x + edge, y + edge + side, x + edge + side], dtype=np.float64)
    return box


def _places(rooms: np.ndarray, side: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Top left corners of squares that do not touch, by trial."""
    while True:
        placed: list[tuple[int, int]] = []
        for room in rooms.tolist():
            for y, x in rng.integers(0, side - room + 1, (50, 2)).tolist():
                if all(y + room < v or v + r < y or x + room < u or u + r < x for (v, u), r in zip(placed, rooms.tolist(), strict=False)):
                    placed.append((y, x))
                    break
            else:
                break
        if len(placed) == len(rooms):
            return placed


def _shuffle(glyph: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The quarters of a digit, each in a place that is not its own and on its head."""
    h = len(glyph) // 2
    quarters = [glyph[:h, :h], glyph[:h, -h:], glyph[-h:, :h], glyph[-h:, -h:]]
    # Two places on would stand the whole digit on its head, and 0, 3 and 8 could still be read.
    turn = int(rng.choice((1, 3)))
    out = np.zeros_like(glyph)
    out[:h, :h], out[:h, -h:], out[-h:, :h], out[-h:, -h:] = (quarters[(i + turn) % 4][::-1] for i in range(4))
    return out


def _stroke(side: int, rng: np.random.Generator) -> np.ndarray:
    """A straight stroke, an eighth of the side thick, through the middle."""
    angle = rng.uniform(0, np.pi)
    y = np.arange(side) - (side - 1) / 2
    across = np.abs(y[:, None] * np.cos(angle) - y * np.sin(angle))
    along = np.abs(y[:, None] * np.sin(angle) + y * np.cos(angle))
    return (np.clip(side / 16 + 0.5 - across, 0, 1) * np.clip(side * 0.45 - along, 0, 1)).astype(np.float32)


def _background(photographs: list[np.ndarray], side: int, rng: np.random.Generator) -> np.ndarray:
    """A random part of a random photograph: (3, side, side)."""
    photograph = photographs[int(rng.integers(len(photographs)))]
    y, x = rng.integers(0, (photograph.shape[1] - side + 1, photograph.shape[2] - side + 1)).tolist()
    return photograph[:, y : y + side, x : x + side]


@cache
def _originals(split: str) -> tuple[Tensor, np.ndarray]:
    """The original digits of a split, (n, 8, 8) in [0, 1], and their classes; every class is split alike."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError("data digits: scikit-learn is not installed; run pip install 'foveal[demo]'") from error
    images, labels = load_digits(return_X_y=True)
    shares = np.cumsum([0.0, *SHARES.values()])
    which = list(SHARES).index(split)
    rows = []
    for label in range(10):
        of_class = np.flatnonzero(labels == label)
        of_class = of_class[generator(0, 0, label, "digits split").permutation(len(of_class))]
        start, stop = np.round(shares[which : which + 2] * len(of_class)).astype(int)
        rows.append(of_class[start:stop])
    chosen = np.sort(np.concatenate(rows))
    return torch.from_numpy(images[chosen].reshape(-1, 8, 8) / 16).float(), labels[chosen]


@cache
def _glyphs(split: str, side: int) -> np.ndarray:
    """(n, side, side) float32 in [0, 1]: the split's digits, enlarged."""
    enlarged = F.interpolate(_originals(split)[0][:, None], (side, side), mode="bicubic", align_corners=False, antialias=True)
    return enlarged[:, 0].clamp(0, 1).numpy()


@cache
def _photographs(split: str, side: int) -> list[np.ndarray]:
    """The split's part of every photograph and its mirror image, (3, h, w) uint8, enlarged to leave a canvas room to move.

    Training has the first 55 % of the long side; the rest is halved between validation and test across the short side.
    """
    from PIL import Image

    parts = []
    for package, names in PHOTOGRAPHS.items():
        try:
            folder = resources.files(package)
            opened = [Image.open((folder / name).open("rb")).convert("RGB") for name in names]
        except (ImportError, FileNotFoundError) as error:
            raise DataError(
                f"data digits: {package.split('.')[0]} or its photographs are not installed; run pip install 'foveal[demo]'"
            ) from error
        for photograph in opened:
            wide = photograph if photograph.width >= photograph.height else photograph.transpose(Image.Transpose.ROTATE_90)
            w, h = wide.size
            cut = round(0.55 * w)
            part = wide.crop({"train": (0, 0, cut, h), "val": (cut, 0, w, h // 2), "test": (cut, h // 2, w, h)}[split])
            factor = 1.3 * side / min(part.size)
            if factor > 1:
                part = part.resize((round(part.width * factor), round(part.height * factor)), Image.Resampling.BICUBIC)
            pixels = np.asarray(part).transpose(2, 0, 1)
            parts += [np.ascontiguousarray(pixels), np.ascontiguousarray(pixels[:, :, ::-1])]
    return parts

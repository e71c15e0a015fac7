"""The bundled data set: a small handwritten digit somewhere on a photograph.

Real digits (scikit-learn's 1,797 of 8 x 8 px) are drawn in white on a darkened plate, on real photographs shipped with
scikit-learn and scikit-image. Distractors have either ink or a plate, never both, so a thumbnail shows where a digit
can be but not which one. Nothing is downloaded. Each canvas is a function of (seed, split, index). Splits share no
digits and no parts of photographs.

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
        "astronaut.png",
        "camera.png",
        "chelsea.png",
        "coffee.png",
        "coins.png",
        "grass.png",
        "gravel.png",
        "motorcycle_left.png",
        "rocket.jpg",
    ),
}
SHARES = {"train": 0.7, "val": 0.1, "test": 0.2}


@dataclass(frozen=True)
class Canvas:
    """Parameters of a canvas; see `digits`."""

    side: int
    digit: tuple[int, int]
    distractors: int
    lookalikes: int
    plate: float
    margin: float
    ink: float


@DATA_SETS.register
def digits(
    canvas: int = 256,
    digit: tuple[int, int] = (24, 36),
    distractors: int = 4,
    lookalikes: int = 0,
    plate: float = 0.25,
    margin: float = 0.25,
    ink: float = 1.0,
    train: int = 4000,
    val: int = 500,
    test: int = 1000,
    seed: int = 0,
) -> DataModule:
    """Handwritten digits on photographs: ten classes, held in memory.

    Args:
        canvas: side of an image in pixels.
        digit: smallest and largest side of the digit in pixels.
        distractors: number of distractors: alternately ink without a plate (shuffled pieces of a digit) and a plate
            without a digit (a single stroke).
        lookalikes: number of shuffled digits on a plate. A thumbnail cannot tell them from the digit.
        plate: brightness of the photograph under a plate, 0 to 1.
        margin: margin of the plate around the digit, as a fraction of the digit's side.
        ink: opacity of the ink, 0 to 1.
        train, val, test: number of images of each split; 0 for none.
        seed: seed of all random draws.
    """
    smallest, largest = digit
    room = round(largest * (1 + 2 * margin))
    if not 8 <= smallest <= largest or (1 + distractors + lookalikes) * (room + 2) ** 2 > 0.45 * canvas**2:
        raise ConfigError(
            f"data digits: {1 + distractors + lookalikes} things of {largest} px do not fit on {canvas} px; use a "
            "larger canvas or fewer"
        )
    look = Canvas(canvas, (smallest, largest), distractors, lookalikes, plate, margin, ink)
    counts = {"train": train, "val": val, "test": test}
    splits = {split: _draw_canvases(look, split, count, seed) for split, count in counts.items() if count}
    return DataModule(classes=tuple("0123456789"), name="digits", **splits)


def _draw_canvases(look: Canvas, split: str, count: int, seed: int) -> TensorDataset:
    """Draw the canvases of a split."""
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
    """Draw the digit and all distractors on ``image`` in place. Returns the box of the digit (y0, x0, y1, x1)."""
    things = ["digit"] + ["lookalike"] * look.lookalikes + [("ink", "plate")[j % 2] for j in range(look.distractors)]
    sides = rng.integers(look.digit[0], look.digit[1] + 1, len(things))
    rooms = sides + 2 * np.round(sides * look.margin).astype(int)
    for thing, side, space, (y, x) in zip(
        things, sides.tolist(), rooms.tolist(), _place_squares(rooms, look.side, rng), strict=True
    ):
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


def _place_squares(rooms: np.ndarray, side: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Top left corners of squares that do not touch, by rejection sampling."""
    while True:
        placed: list[tuple[int, int]] = []
        for room in rooms.tolist():
            for y, x in rng.integers(0, side - room + 1, (50, 2)).tolist():
                if all(
                    y + room < v or v + r < y or x + room < u or u + r < x
                    for (v, u), r in zip(placed, rooms.tolist(), strict=False)
                ):
                    placed.append((y, x))
                    break
            else:
                break
        if len(placed) == len(rooms):
            return placed


def _shuffle(glyph: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Move each quarter of a digit to another place and flip it upside down."""
    h = len(glyph) // 2
    quarters = [glyph[:h, :h], glyph[:h, -h:], glyph[-h:, :h], glyph[-h:, -h:]]
    # Moving by two places would turn the whole digit upside down: 0, 3 and 8 would still be readable.
    turn = int(rng.choice((1, 3)))
    out = np.zeros_like(glyph)
    out[:h, :h], out[:h, -h:], out[-h:, :h], out[-h:, -h:] = (quarters[(i + turn) % 4][::-1] for i in range(4))
    return out


def _stroke(side: int, rng: np.random.Generator) -> np.ndarray:
    """A straight stroke through the centre, an eighth of the side thick."""
    angle = rng.uniform(0, np.pi)
    y = np.arange(side) - (side - 1) / 2
    across = np.abs(y[:, None] * np.cos(angle) - y * np.sin(angle))
    along = np.abs(y[:, None] * np.sin(angle) + y * np.cos(angle))
    return (np.clip(side / 16 + 0.5 - across, 0, 1) * np.clip(side * 0.45 - along, 0, 1)).astype(np.float32)


def _background(photographs: list[np.ndarray], side: int, rng: np.random.Generator) -> np.ndarray:
    """A random crop of a random photograph: (3, side, side)."""
    photograph = photographs[int(rng.integers(len(photographs)))]
    y, x = rng.integers(0, (photograph.shape[1] - side + 1, photograph.shape[2] - side + 1)).tolist()
    return photograph[:, y : y + side, x : x + side]


@cache
def _originals(split: str) -> tuple[Tensor, np.ndarray]:
    """The original digits of a split, (n, 8, 8) in [0, 1], and their classes. Splits are stratified."""
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
    """The digits of a split enlarged: (n, side, side) float32 in [0, 1]."""
    enlarged = F.interpolate(
        _originals(split)[0][:, None], (side, side), mode="bicubic", align_corners=False, antialias=True
    )
    return enlarged[:, 0].clamp(0, 1).numpy()


@cache
def _photographs(split: str, side: int) -> list[np.ndarray]:
    """The split's part of each photograph and its mirror image: (3, h, w) uint8, at least 1.3 times the canvas.

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
                f"data digits: {package.split('.')[0]} or its photographs are not installed; run pip install "
                "'foveal[demo]'"
            ) from error
        for photograph in opened:
            wide = (
                photograph if photograph.width >= photograph.height else photograph.transpose(Image.Transpose.ROTATE_90)
            )
            w, h = wide.size
            cut = round(0.55 * w)
            part = wide.crop({"train": (0, 0, cut, h), "val": (cut, 0, w, h // 2), "test": (cut, h // 2, w, h)}[split])
            factor = 1.3 * side / min(part.size)
            if factor > 1:
                part = part.resize((round(part.width * factor), round(part.height * factor)), Image.Resampling.BICUBIC)
            pixels = np.asarray(part).transpose(2, 0, 1)
            parts += [np.ascontiguousarray(pixels), np.ascontiguousarray(pixels[:, :, ::-1])]
    return parts

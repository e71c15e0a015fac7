"""The places of a scan: blocks in which an image is read, peaks, and what is kept. This is NumPy, shared by
`foveal.glimpse.scan` and `foveal.runtime`.

Example:
    >>> highest(np.array([[[0.0, 2, 1], [0, 0, 0]]], np.float32), 1).tolist()
    [[[2.0, 2.0, 2.0], [2.0, 2.0, 2.0]]]
    >>> [block.last.tolist() for block in blocks_of(np.array([100, 4000]), scale=4, radius=1)]
    [[2, 63]]
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

NEVER = -1e9
"""Score of a place that cannot be chosen, as in `foveal.policies`."""

STRIDE = 2
"""Pixels of the scanned level between places."""
WINDOW = 11
"""Side of the window of a place, the receptive field of the scout, in pixels of the scanned level."""
TILE = 8
"""Places per axis of a tile. A tile is scored as a whole or, if all of its places are blank, not at all. Its fixed size
makes scores independent of the block in which they are computed."""
BLOCK = 32
"""Tiles per axis that are read at once."""
AHEAD = 16
"""Blocks of a remote image whose bytes are read in one round."""
FLAT = 1 / 255
"""Largest range of values, from 0 to 1, that counts as constant."""
SIDE = TILE * STRIDE + WINDOW - STRIDE
"""Side of a tile with the windows of its places, in pixels of the scanned level."""


class Block(NamedTuple):
    """Tiles of one image that are read at once: rows and columns [first, last) of tiles are kept, [begin, end) read."""

    image: int
    first: np.ndarray  # (2,)
    last: np.ndarray
    begin: np.ndarray
    end: np.ndarray


def blocks_of(size: np.ndarray, scale: int, radius: int, image: int = 0) -> list[Block]:
    """Blocks of an image of ``size`` (2,), in reading order. A block is read with the tiles around it in which a place
    may suppress one of the block. It is taller than wide: columns that two blocks read are in the reader's cache, rows
    that two blocks read may no longer be.

    Args:
        size: (height, width) of the image.
        scale: pixels of the image per pixel of the scanned level.
        radius: distance, in places, at which a place suppresses lower ones.
        image: index of the image.
    """
    ring = -(-radius // TILE)
    tiles = -(-np.asarray(size) // (scale * STRIDE * TILE))
    rows = min(2 * BLOCK, tiles[0])
    axes = [edges(n, step, 1 + ring) for n, step in zip(tiles, (rows, max(BLOCK**2 // rows, 1)), strict=True)]
    corners = [np.array([y, x]).T for y in pairwise(axes[0]) for x in pairwise(axes[1])]
    return [
        Block(image, first, last, np.maximum(first - ring, 0), np.minimum(last + ring, tiles))
        for first, last in corners
    ]


def block_box(block: Block, scale: int) -> tuple[np.ndarray, tuple[int, int]]:
    """Box of a block in the image, and its (height, width) at the scanned level: the windows of its places."""
    begin = block.begin * TILE * STRIDE - WINDOW // 2
    height, width = ((block.end - block.begin) * TILE * STRIDE + WINDOW - STRIDE).tolist()
    return np.concatenate([begin, (begin[0] + height, begin[1] + width)]) * float(scale), (height, width)


def inner(block: Block) -> tuple[slice, slice]:
    """Rows and columns of the places that a block keeps, among those that are read."""
    first, last = ((ends - block.begin) * TILE for ends in (block.first, block.last))
    return slice(first[0], last[0]), slice(first[1], last[1])


def readable(
    images: Any, blocks: list[Block], scale: int, blank_bytes: int | None
) -> tuple[list[Block], list[np.ndarray | None]]:
    """Blocks with a place that can be chosen, and their places (rows, columns) that can be, as far as is known without
    reading them; None for all.

    Args:
        images: `foveal.images.Views`, or the images of a loop.
        blocks, scale: see `blocks_of`.
        blank_bytes: see `foveal.images.Views.may_look`.
    """
    found = []
    for block in blocks:
        if images.is_blank(block.image, *block_box(block, scale)):
            continue
        allowed = allowed_places(images, block, scale, blank_bytes)
        if allowed is None or allowed.any():
            found.append((block, allowed))
    return [block for block, _ in found], [allowed for _, allowed in found]


def allowed_places(images: Any, block: Block, scale: int, blank_bytes: int | None) -> np.ndarray | None:
    """Places (rows, columns) of a block that can be chosen, as far as is known before the file is decoded; None for
    all. See `readable`.
    """
    ends = zip(block.begin, block.end, strict=True)
    y, x = ((np.arange(a * TILE, b * TILE) * STRIDE + 0.5) * scale for a, b in ends)
    return images.may_look(block.image, y, x, scale, blank_bytes)


def by_tile(values: np.ndarray) -> np.ndarray:
    """(n, rows, columns, TILE, TILE) view of values (n, rows x TILE, columns x TILE) of places."""
    n, height, width = values.shape
    return values.reshape(n, height // TILE, TILE, width // TILE, TILE).swapaxes(2, 3)


def middle(size: np.ndarray, scale: int) -> tuple[np.ndarray, np.ndarray]:
    """The place (1, 2) in the middle of an image, and the box (1, 4) of its window."""
    place = (size // (2 * scale * STRIDE))[None]
    corner = (place * STRIDE - WINDOW // 2) * float(scale)
    return place, np.concatenate([corner, corner + WINDOW * scale], axis=1)


@dataclass
class Kept:
    """The best places of one image so far, in descending order of their keys.

    Args:
        count: most places.
        learned: by their scores; else all places are equal.
        draws: add Gumbel noise, so that places are drawn without replacement from the softmax of the scores.
        windows: their windows, which the caller keeps in the same order, see `offer`.
    """

    count: int
    learned: bool
    draws: bool
    windows: Any = None
    places: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), int))  # (n, 2) row and column, in places
    keys: np.ndarray = field(default_factory=lambda: np.zeros(0))  # (n,) float64
    scores: np.ndarray = field(default_factory=lambda: np.zeros(0))  # (n,) float64
    log_total: float = -np.inf  # logarithm of the sum of exp(score) over all places offered

    def offer(self, places: np.ndarray, scores: np.ndarray, seed: np.uint64) -> tuple[np.ndarray, np.ndarray]:
        """Keep the best of the places so far and (n, 2) more of scores (n,).

        Returns:
            Indices of the new places that may be kept, and indices of those kept now, among the places so far followed
            by these new ones.
        """
        if not len(places):
            return np.zeros(0, int), np.arange(len(self.places))
        shown = scores if self.learned else np.zeros_like(scores)
        self.log_total = float(np.logaddexp(self.log_total, np.logaddexp.reduce(shown)))
        keys = shown + gumbel(seed, places) if self.draws else shown
        best = best_of(keys, places, self.count)
        places, keys = np.concatenate([self.places, places[best]]), np.concatenate([self.keys, keys[best]])
        order = best_of(keys, places, self.count)
        self.places, self.keys = places[order], keys[order]
        self.scores = np.concatenate([self.scores, shown[best]])[order]
        return best, order

    @property
    def log_probability(self) -> np.ndarray:
        """(n,) log-probability of each choice given those before it, among all places offered, without replacement."""
        share = np.exp(self.scores - self.log_total)
        left = np.log(np.clip(1 - (np.cumsum(share) - share), 1e-12, 1)) + self.log_total
        return np.minimum(self.scores - left, 0)


def look_boxes(places: np.ndarray, sizes: np.ndarray, side: int, scale: int) -> np.ndarray:
    """(B, N, 4) boxes of looks of ``side`` pixels at places (B, N, 2), moved into the images of ``sizes`` (B, 2), or
    centred on an image that is smaller than a look."""
    room = np.asarray(sizes)[:, None] - side
    corner = places * (STRIDE * scale) + scale // 2 - side // 2
    corner = np.where(room < 0, room // 2, np.clip(corner, 0, np.maximum(room, 0))).astype(np.float64)
    return np.concatenate([corner, corner + side], axis=-1)


def best_of(keys: np.ndarray, places: np.ndarray, count: int) -> np.ndarray:
    """Indices of the highest keys, in descending order; of equal keys the first in reading order comes first."""
    near = np.arange(len(keys))
    if 0 < count < len(keys):  # sorting all of them would take longer
        near = np.flatnonzero(keys >= np.partition(keys, -count)[-count])
    return near[np.lexsort((places[near, 1], places[near, 0], -keys[near]))[:count]]


def gumbel(seed: np.uint64, places: np.ndarray) -> np.ndarray:
    """(n,) standard Gumbel noise, a function of the seed and the place (splitmix64)."""
    z = (places[:, 0].astype(np.uint64) << np.uint64(32)) + places[:, 1].astype(np.uint64) + np.uint64(1)
    z = seed + z * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    uniform = ((z ^ (z >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return -np.log(-np.log(uniform + 2.0**-54))


def highest(scores: np.ndarray, radius: int) -> np.ndarray:
    """Highest score up to ``radius`` places away, along both axes, of scores (n, rows, columns)."""
    x = np.pad(scores, ((0, 0), (radius, radius), (radius, radius)), constant_values=NEVER)
    return _sliding_max(_sliding_max(x, 1, 2 * radius + 1), 2, 2 * radius + 1)


def _sliding_max(x: np.ndarray, dim: int, width: int) -> np.ndarray:
    """Maxima of ``width`` neighbours along a dimension; it becomes shorter by ``width`` - 1."""
    covered, before = 1, (slice(None),) * dim
    while covered < width:
        step = min(covered, width - covered)
        x = np.maximum(x[(*before, slice(None, -step))], x[(*before, slice(step, None))])
        covered += step
    return x


def rounded(count: int) -> int:
    """The next power of two from 2 to 32, or multiple of 32."""
    return max(2, 1 << (count - 1).bit_length()) if count <= 32 else -(-count // 32) * 32


def edges(count: int, step: int, margin: int) -> list[int]:
    """Where blocks of ``step`` tiles begin and end, up to ``count``.

    A block is read up to ``margin`` tiles beyond its end, which is a multiple of ``step``, as are the edges of the
    tiles of most files: then it touches fewer of them. The last block has up to ``margin`` tiles more.
    """
    margin %= step
    return [0, *range(step - margin, count - margin, step), count]


def together(blocks: list[list[Block]]) -> Iterator[list[Block]]:
    """The first blocks of all images, then the second ones, and so on; each time those of one shape together."""
    for step in range(max(map(len, blocks), default=0)):
        alike = defaultdict(list)
        for of_image in blocks:
            if step < len(of_image):
                alike[tuple(of_image[step].end - of_image[step].begin)].append(of_image[step])
        yield from alike.values()

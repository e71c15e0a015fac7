"""The loop of a scan; the twin of `foveal.glimpse.scan.Scan`.

Example:
    >>> kept = _Kept(2, True, False)
    >>> windows = np.zeros((3, 1, 11, 11), np.float32)
    >>> kept.offer(np.array([[0, 0], [0, 1], [4, 0]]), np.array([0.0, 2.0, 1.0]), np.uint64(0), windows)
    >>> kept.places.tolist()
    [[0, 1], [4, 0]]
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from foveal.draws import Draws
from foveal.glimpse.grid import whole_image
from foveal.glimpse.places import (
    FLAT,
    NEVER,
    SIDE,
    STRIDE,
    TILE,
    WINDOW,
    Block,
    best_of,
    block_box,
    blocks_of,
    gumbel,
    highest,
    look_boxes,
    together,
)
from foveal.runtime.answer import Looks, log_softmax
from foveal.runtime.engines import Engine
from foveal.runtime.looping import Images, Loop


class _Kept:
    """The best places of one image so far, in descending order of their keys; see `foveal.glimpse.scan`."""

    def __init__(self, count: int, learned: bool, draws: bool) -> None:
        self.count, self.learned, self.draws = count, learned, draws
        self.places = np.zeros((0, 2), dtype=int)
        self.keys, self.scores = np.zeros(0), np.zeros(0)
        self.windows: np.ndarray | None = None
        self.log_total = -np.inf

    def offer(self, places: np.ndarray, scores: np.ndarray, seed: np.uint64, windows: np.ndarray) -> None:
        """Keep the best of the places so far and (n, 2) more of scores (n,), with their windows (n, C, 11, 11)."""
        if not len(places):
            return
        shown = scores if self.learned else np.zeros_like(scores)
        self.log_total = float(np.logaddexp(self.log_total, np.logaddexp.reduce(shown)))
        keys = shown + gumbel(seed, places) if self.draws else shown
        best = best_of(keys, places, self.count)
        windows = windows[best]
        places, keys = np.concatenate([self.places, places[best]]), np.concatenate([self.keys, keys[best]])
        order = best_of(keys, places, self.count)
        self.places, self.keys = places[order], keys[order]
        self.scores = np.concatenate([self.scores, shown[best]])[order]
        self.windows = (windows if self.windows is None else np.concatenate([self.windows, windows]))[order]

    @property
    def log_probability(self) -> np.ndarray:
        """(n,) log-probability of each choice given those before it, among all places offered, without replacement."""
        share = np.exp(self.scores - self.log_total)
        left = np.log(np.clip(1 - (np.cumsum(share) - share), 1e-12, 1)) + self.log_total
        return np.minimum(self.scores - left, 0)


class ScanLoop(Loop):
    """A scan of the image at a coarse level, and looks at its best places."""

    def __init__(self, card: Mapping[str, Any], parts: Engine) -> None:
        super().__init__(card, parts)
        self.scale, self.radius, self.heads = (self.options[key] for key in ("scale", "radius", "heads"))
        self.std = np.array(card["std"], dtype=np.float32)

    def needs(self) -> list[str]:
        return ["scout", "place", "reader"]

    def root(self, sizes: np.ndarray) -> np.ndarray:
        return whole_image(sizes)

    def look(
        self, images: Images, locations: tuple[int, ...], policy: str, draws: Draws, contributions: bool
    ) -> tuple[np.ndarray, Looks]:
        batch, count, classes = len(images), sum(locations), self.card["num_classes"]
        kept = [_Kept(count, policy != "random", policy != "greedy") for _ in range(batch)]
        uniform = draws.uniform("scan 0") if policy != "greedy" else np.zeros(batch)
        seeds = (uniform * 2.0**63).astype(np.uint64)
        every = [blocks_of(size, self.scale, self.radius, i) for i, size in enumerate(np.asarray(images.sizes))]
        for some in together(every):
            self.scan(images, some, kept, seeds, policy != "random")
        places = np.zeros((batch, count, 2), dtype=int)
        taken, log_p = np.zeros((batch, count), dtype=bool), np.zeros((batch, count))
        windows = np.zeros((batch, count, self.card["channels"], WINDOW, WINDOW), dtype=np.float32)
        for i, keep in enumerate(kept):
            found, shown, chance = keep.places, keep.windows, keep.log_probability
            if count and shown is None:  # nothing but blank places: the middle of the image
                found, chance = (images.sizes[i] // (2 * self.scale * STRIDE))[None], np.zeros(1)
                corner = (found * STRIDE - WINDOW // 2) * float(self.scale)
                box = np.concatenate([corner, corner + WINDOW * self.scale], axis=1)
                shown = self.see(images, np.array([i]), box, (WINDOW, WINDOW))
            n = len(found)
            if n:
                places[i, :n], taken[i, :n], log_p[i, :n], windows[i, :n] = found, True, chance, shown
        boxes = look_boxes(places, images.sizes, self.size[0], self.scale)
        which = np.nonzero(taken)[0]
        outputs = self.parts.outputs("reader")["seen"][0]
        seen = np.zeros((batch, count, outputs), dtype=np.float32)
        scores = np.full((batch, count), NEVER, dtype=np.float32)
        if len(which):
            seen[taken] = self.parts("reader", look=self.see(images, which, boxes[taken]))["seen"]
            scores[taken] = self.parts("place", look=windows[taken])["scores"].reshape(-1)
        parts = self.weigh(seen, scores, taken, classes)
        shown_boxes = np.concatenate([self.root(images.sizes)[:, None], boxes], axis=1)
        every_taken = np.concatenate([np.ones((batch, 1), dtype=bool), taken], axis=1)
        image, column = np.nonzero(every_taken)
        sizes = np.repeat(-(-np.asarray(images.sizes) // self.scale)[:, None], count + 1, axis=1)
        sizes[:, 1:] = self.size
        given = np.concatenate([np.zeros((batch, 1, classes), np.float32), parts], axis=1)
        return parts.sum(1), Looks(
            image=image,
            box=shown_boxes[every_taken],
            size=sizes[every_taken],
            level=np.where(column, 2, 1),
            parent=np.where(column, 0, -1),
            probability=np.exp(np.pad(log_p, ((0, 0), (1, 0)))[every_taken]).astype(np.float32),
            contribution=given[every_taken] if contributions else None,
        )

    def weigh(self, seen: np.ndarray, scores: np.ndarray, taken: np.ndarray, classes: int) -> np.ndarray:
        """Contributions (B, N, classes) of looks; see `foveal.glimpse.scan.Head.weigh`."""
        if self.heads:
            by_head = seen.reshape(*seen.shape[:2], self.heads, classes + 1)
            values, products = by_head[..., :classes], by_head[..., classes]
        else:
            values, products = seen[..., None, :], np.zeros((*seen.shape[:2], 1), np.float32)
        if not seen.shape[1]:
            return np.zeros((*seen.shape[:2], classes), np.float32)
        masked = np.where(taken[..., None], scores[..., None] + products, np.float32(NEVER))
        weights = np.exp(log_softmax(masked.swapaxes(1, 2))).swapaxes(1, 2)
        return (weights[..., None] * values).mean(2) * taken[..., None]

    # ---- the scan

    def scan(self, images: Images, blocks: list[Block], kept: list[_Kept], seeds: np.ndarray, scored: bool) -> None:
        """Read blocks of the same shape, one of each image, and keep their best places."""
        allowed = [self.allowed(images, block) for block in blocks]
        blocks = [block for block, some in zip(blocks, allowed, strict=True) if some is None or some.any()]
        if not blocks:
            return
        allowed = [some for some in allowed if some is None or some.any()]
        boxes, shapes = zip(*(block_box(block, self.scale) for block in blocks), strict=True)
        which = np.array([block.image for block in blocks])
        seen = self.see(images, which, np.stack(boxes), shapes[0])
        begin = np.stack([block.begin for block in blocks]) * TILE
        blank = self.blank(seen, begin * STRIDE - WINDOW // 2, -(-np.asarray(images.sizes)[which] // self.scale))
        for i, some in enumerate(allowed):
            if some is not None:
                blank[i] |= ~some
        scores = np.where(blank, np.float32(NEVER), np.float32(0))
        if scored:
            n, rows, columns = blank.shape
            by_tile = scores.reshape(n, rows // TILE, TILE, columns // TILE, TILE).swapaxes(2, 3)
            full = ~blank.reshape(n, rows // TILE, TILE, columns // TILE, TILE).all((2, 4))
            tiles = np.lib.stride_tricks.sliding_window_view(seen, (SIDE, SIDE), (2, 3))
            tiles = tiles[:, :, :: TILE * STRIDE, :: TILE * STRIDE]
            at, y, x = np.nonzero(full)
            by_tile[full] = np.where(
                by_tile[full] < 0, np.float32(NEVER), self.parts("scout", look=tiles[at, :, y, x])["scores"]
            )
            scores = by_tile.swapaxes(2, 3).reshape(n, rows, columns)
        peaks = (scores == highest(scores, self.radius)) & ~blank
        windows = np.lib.stride_tricks.sliding_window_view(seen, (WINDOW, WINDOW), (2, 3))[:, :, ::STRIDE, ::STRIDE]
        for i, block in enumerate(blocks):
            inner = tuple(
                slice(a, b) for a, b in zip(block.first * TILE - begin[i], block.last * TILE - begin[i], strict=True)
            )
            mask = np.zeros_like(blank[i])
            mask[inner] = (peaks if scored else ~blank)[i][inner]
            y, x = np.nonzero(mask)
            keep = kept[block.image]
            chosen = scores[i][mask].astype(np.float64)
            keep.offer(np.stack([y, x], 1) + begin[i], chosen, seeds[block.image], windows[i][:, y, x].swapaxes(0, 1))

    def allowed(self, images: Images, block: Block) -> np.ndarray | None:
        """See `foveal.glimpse.scan.Scan._allowed`."""
        y, x = (np.arange(a * TILE, b * TILE) for a, b in zip(block.begin, block.end, strict=True))
        if images.is_blank(block.image, *block_box(block, self.scale)):
            return np.zeros((len(y), len(x)), dtype=bool)
        step = STRIDE * self.scale
        centres = y * step + self.scale / 2, x * step + self.scale / 2
        return images.may_look(block.image, *centres, self.scale, self.options["blank_bytes"])

    def blank(self, seen: np.ndarray, first: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """See `foveal.glimpse.scan.Scan._blank`. The same operations decide whether a place is blank."""
        seen = (seen - self.fill[:, None, None]) / self.std[:, None, None]
        at = [first[:, i, None] + np.arange(seen.shape[2 + i]) for i in (0, 1)]
        inside = [(p >= 0) & (p < sizes[:, i, None]) for i, p in enumerate(at)]
        near = slice(WINDOW // 2 - 1, -(WINDOW // 2) + STRIDE)
        shown = inside[0][:, None, near, None] & inside[1][:, None, None, near]
        high = _of_three(np.where(shown, seen[..., near, near], -np.inf), np.maximum)
        low = _of_three(np.where(shown, seen[..., near, near], np.inf), np.minimum)
        flat = ((high - low) * self.std[:, None, None]).max(1) <= np.float32(FLAT)
        centres = slice(WINDOW // 2, -(WINDOW // 2) + STRIDE - 1, STRIDE)
        there = [part[:, centres] for part in inside]
        return flat | ~(there[0][:, :, None] & there[1][:, None, :])


def _of_three(x: np.ndarray, extreme: Any) -> np.ndarray:
    """Extremes of 3 x 3 neighbours, at every second place."""
    x = extreme(extreme(x[:, :, :-2:STRIDE], x[:, :, 1:-1:STRIDE]), x[:, :, 2::STRIDE])
    return extreme(extreme(x[..., :-2:STRIDE], x[..., 1:-1:STRIDE]), x[..., 2::STRIDE])

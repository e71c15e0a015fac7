"""The loop of a scan; the twin of `foveal.glimpse.scan.Scan`.

Example:
    >>> options = {"scale": 4, "radius": 2, "heads": 0}
    >>> ScanLoop({"size": [40, 40], "mean": [0.5], "std": [1.0], "options": options}, None).needs()
    ['scout', 'place', 'reader']
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
    Kept,
    block_box,
    blocks_of,
    by_tile,
    highest,
    inner,
    look_boxes,
    middle,
    readable,
    together,
)
from foveal.runtime.answer import Looks, log_softmax
from foveal.runtime.engines import Engine
from foveal.runtime.looping import Images, Loop


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
        empty = np.zeros((0, self.card["channels"], WINDOW, WINDOW), np.float32)
        kept = [Kept(count, policy != "random", policy != "greedy", empty) for _ in range(batch)]
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
            if count and not len(found):  # nothing but blank places
                (found, box), chance = middle(images.sizes[i], self.scale), np.zeros(1)
                shown = self.see(images, np.array([i]), box, (WINDOW, WINDOW))
            n = len(found)
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

    def scan(self, images: Images, blocks: list[Block], kept: list[Kept], seeds: np.ndarray, scored: bool) -> None:
        """Read blocks of the same shape, one of each image, and keep their best places."""
        blocks, allowed = readable(images, blocks, self.scale, self.options["blank_bytes"])
        if not blocks:
            return
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
            full = np.logical_not(by_tile(blank).all((3, 4)))
            tiles = np.lib.stride_tricks.sliding_window_view(seen, (SIDE, SIDE), (2, 3))
            tiles = tiles[:, :, :: TILE * STRIDE, :: TILE * STRIDE]
            image, y, x = np.nonzero(full)
            scored_tiles, found = by_tile(scores), self.parts("scout", look=tiles[image, :, y, x])["scores"]
            scored_tiles[full] = np.where(scored_tiles[full] < 0, np.float32(NEVER), found)
        peaks = (scores == highest(scores, self.radius)) & ~blank
        windows = np.lib.stride_tricks.sliding_window_view(seen, (WINDOW, WINDOW), (2, 3))[:, :, ::STRIDE, ::STRIDE]
        for i, block in enumerate(blocks):
            mask, keep = np.zeros_like(blank[i]), kept[block.image]
            mask[inner(block)] = (peaks if scored else ~blank)[i][inner(block)]
            at = np.argwhere(mask)
            best, order = keep.offer(at + begin[i], scores[i][mask].astype(np.float64), seeds[block.image])
            near = windows[i][:, at[best, 0], at[best, 1]].swapaxes(0, 1)
            keep.windows = np.concatenate([keep.windows, near])[order]

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

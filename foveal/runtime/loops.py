"""Loops: how a model looks, with its networks run by an engine. They are the twins of `foveal.glimpse`, in NumPy.

A loop asks the images for boxes, the parts for what is in them, and decides where to look next. It gives the same
looks, logits and contributions as the model that was exported, up to rounding.

Example:
    >>> parts = Callables({"network": (lambda look: {"logits": look.mean((2, 3))}, {"logits": [3]})})
    >>> card = {"size": [4, 4], "mean": [0.5] * 3, "squash": True, "crop": None, "antialias": True}
    >>> seen = WholeLoop(card, parts)(Batch([ArrayImage(np.full((8, 6, 3), 51, np.uint8))]), ())
    >>> seen.logits.astype(float).round(3).tolist(), seen.looks.box.tolist()
    ([[0.2, 0.2, 0.2]], [[0.0, 0.0, 8.0, 6.0]])
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from foveal.draws import Draws
from foveal.errors import ConfigError
from foveal.glimpse.grid import (
    Grid,
    means,
    outside,
    share_inside,
    whole_image,
    windows,
)
from foveal.runtime.answer import Looks, log_softmax
from foveal.runtime.engines import Callables, Engine
from foveal.runtime.images import ArrayImage, Batch
from foveal.runtime.looping import Images, Loop
from foveal.runtime.scanning import ScanLoop

__all__ = ["ArrayImage", "Batch", "Callables", "Loop", "TNetLoop", "WholeLoop", "loop_of"]

NEVER = np.float32(-1e9)
"""Score of a masked cell, as in `foveal.policies`."""

Likelihood = Callable[[np.ndarray, np.ndarray], np.ndarray]


class WholeLoop(Loop):
    """A dense network: one look at the whole image; the twin of `foveal.glimpse.base.WholeImage`."""

    def needs(self) -> list[str]:
        return ["network"]

    def look(
        self, images: Images, locations: tuple[int, ...], policy: str, draws: Draws, contributions: bool
    ) -> tuple[np.ndarray, Looks]:
        which, boxes = np.arange(len(images)), self.root(images.sizes)
        logits = self.parts("network", look=self.see(images, which, boxes))["logits"]
        return logits, Looks(
            image=which,
            box=boxes,
            size=np.tile(np.array(self.size), (len(which), 1)),
            level=np.ones_like(which),
            parent=np.full_like(which, -1),
            probability=np.ones(len(which), dtype=np.float32),
            contribution=logits if contributions else None,
        )


class TNetLoop(Loop):
    """The traversal: a thumbnail, and cells of it, coarse to fine; the twin of `foveal.glimpse.tnet.TNet`."""

    def __init__(self, card: Mapping[str, Any], parts: Engine) -> None:
        super().__init__(card, parts)
        given = self.options
        self.grid = Grid(given["grid"], given["region"], given["padded"])
        self.fits, self.region_mpp, self.levels = given["fits"], given["region_mpp"], given["levels"]
        self.map_side, self.networks = given["map_side"], given["networks"]
        self.likelihood: Likelihood = {"plackett_luce": _plackett_luce, "independent": _independent}[
            given["likelihood"]
        ]
        first = np.arange(self.grid.side) * (1 - self.grid.region) / (self.grid.side - 1) * self.map_side
        self.square = means(first, first + self.grid.region * self.map_side, self.map_side)

    def needs(self) -> list[str]:
        return [*(f"look{i + 1}" for i in range(self.networks)), *["weigh"] * self.options["weighting"]]

    def root(self, sizes: np.ndarray) -> np.ndarray:
        return whole_image(sizes) if self.fits else super().root(sizes)

    def look(
        self, images: Images, locations: tuple[int, ...], policy: str, draws: Draws, contributions: bool
    ) -> tuple[np.ndarray, Looks]:
        count, most = len(images), self.grid.cells
        boxes, taken = self.root(images.sizes)[:, None], np.ones((count, 1), dtype=bool)
        position = np.zeros((count, 3), dtype=np.float32)
        parent, own, level = np.array([-1]), np.zeros(1, dtype=int), np.array([1])
        every: list[tuple[np.ndarray, ...]] = []  # features, logits, boxes and taken of each level
        steps: list[np.ndarray] = []  # log-probabilities of each level
        for depth in range(len(locations) + 1):
            n = boxes.shape[1]
            cells, offered = self.cells(boxes, images.sizes, images.mpp, depth + 1)
            rows, columns = self.weights(boxes[taken], cells[taken])
            seen = self.parts(
                f"look{min(depth + 1, self.networks)}",
                look=self.see(images, np.repeat(np.arange(count), n)[taken.ravel()], boxes[taken]),
                position=position[taken.ravel()],
                rows=rows,
                columns=columns,
            )
            every.append((_scatter(seen["feature"], taken), _scatter(seen["logits"], taken), boxes, taken))
            if depth == len(locations):
                break
            scores = _scatter(seen["scores"], taken)
            log_p = log_softmax(np.where(offered, scores, NEVER))
            # In a grid that is not fitted, cells outside the image are the least probable, but can be chosen.
            offered = offered & taken[..., None] if self.fits else np.ones_like(offered)
            noise = None
            if policy in DRAWN:
                noise = draws.gumbel(f"selection {depth + 1} 0", *log_p.shape[1:]).astype(log_p.dtype)
            chosen = choose(policy, log_p, most if policy == "exhaustive" else locations[depth], noise)
            steps.append((LIKELIHOODS.get(policy) or self.likelihood)(log_p, chosen).reshape(count, -1))
            k = chosen.shape[2]
            boxes = np.take_along_axis(cells, chosen[..., None], axis=2).reshape(count, n * k, 4)
            taken = np.take_along_axis(offered, chosen, axis=2).reshape(count, n * k)
            position = self.descend(position.reshape(count, n, 3), chosen, depth + 1)
            parent = np.concatenate([parent, np.repeat(own, k)])
            own = len(level) + np.arange(n * k)
            level = np.concatenate([level, np.full(n * k, depth + 2)])
        features, logits, boxes, taken = (np.concatenate(part, axis=1) for part in zip(*every, strict=True))
        if self.options["weighting"]:
            weight = self.parts("weigh", features=features, taken=taken.astype(np.float32))["weights"]
        else:
            weight = taken.astype(np.float32) / taken.sum(1, keepdims=True).astype(np.float32)
        parts = weight[..., None] * logits
        chance = np.exp(np.concatenate([np.zeros((count, 1), np.float32), *steps], axis=1))
        # Index of each look among the looks taken of its image, and index of its parent.
        index = np.cumsum(taken, axis=1) - 1
        image, column = np.nonzero(taken)
        parents = np.where(parent < 0, -1, index[:, parent])
        return parts.sum(1), Looks(
            image=image,
            box=boxes[taken],
            size=np.tile(np.array(self.size), (len(image), 1)),
            level=level[column],
            parent=parents[taken],
            probability=chance[taken].astype(np.float32),
            contribution=parts[taken] if contributions else None,
        )

    def cells(self, boxes: np.ndarray, sizes: np.ndarray, mpp: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
        """See `foveal.glimpse.tnet.TNet.cells`."""
        if not self.fits:
            cells = self.grid.boxes(boxes)
            return cells, ~outside(cells, sizes)
        given = None
        if self.region_mpp is not None:
            coarser = self.grid.region ** (depth - max(self.levels, 1))
            given = np.maximum(np.round(self.size[0] * self.region_mpp * coarser / mpp), 1.0)[:, None]
        return self.grid.inside(boxes, sizes, given)

    def weights(self, boxes: np.ndarray, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Weights (n, side, length) of the rows and the columns of maps, for cells (n, K, 4) of looks (n, 4)."""
        as_square = (cells == self.grid.boxes(boxes)).all((1, 2))[:, None, None]
        same = np.broadcast_to(self.square, (len(boxes), *self.square.shape))
        if as_square.all() or not self.fits:
            return same, same
        by_rows = cells.reshape(-1, self.grid.side, self.grid.side, 4)
        weights = []
        for axis, edges in enumerate((by_rows[:, :, 0], by_rows[:, 0])):
            pixels = (boxes[:, axis + 2] - boxes[:, axis])[:, None] / self.map_side
            first, last = ((edges[..., i] - boxes[:, None, axis]) / pixels for i in (axis, axis + 2))
            weights.append(np.where(as_square, same, means(first, last, self.map_side)))
        return weights[0], weights[1]

    def descend(self, position: np.ndarray, cells: np.ndarray, depth: int) -> np.ndarray:
        """Coordinates (B n k, 3) of cells (B, n, k) of looks at ``position`` (B, n, 3)."""
        y, x = (np.broadcast_to(position[..., None, i], cells.shape) for i in (0, 1))
        side = self.grid.side
        child = [side * y + cells // side, side * x + cells % side, np.full(cells.shape, depth)]
        return np.stack(child, axis=-1).reshape(-1, 3).astype(np.float32)


class SaccaderLoop(Loop):
    """One look, and windows of it one after another; the twin of `foveal.glimpse.saccader.Saccader`."""

    def needs(self) -> list[str]:
        return ["perceive", "score", "glimpse" if self.options["separate"] else "read"]

    def look(
        self, images: Images, locations: tuple[int, ...], policy: str, draws: Draws, contributions: bool
    ) -> tuple[np.ndarray, Looks]:
        batch, count, given = len(images), sum(locations), self.options
        roots = self.root(images.sizes)
        seen = self.parts("perceive", look=self.see(images, np.arange(batch), roots))
        places = windows(roots, np.array(given["starts"]), given["window"], self.size[0])
        share = share_inside(places, images.sizes)
        barred = share < share.max(1, keepdims=True) / 2 if given["fit_grid"] else outside(places, images.sizes)
        if count:
            cells, log_p = self.choose(seen["mixed"], barred.astype(np.float32), policy, count, draws)
        else:
            cells, log_p = np.zeros((batch, 0), dtype=int), np.zeros((batch, 0), dtype=np.float32)
        boxes = np.take_along_axis(places, cells[..., None], axis=1)
        rows = np.arange(batch)[:, None]
        if not count:
            alone = seen["whole"][:, None]
        elif given["separate"]:
            looks = self.see(images, np.repeat(rows, count), boxes.reshape(-1, 4), tuple(given["glimpse_size"]))
            alone = self.parts("glimpse", look=looks)["logits"].reshape(batch, count, -1)
        else:
            what = seen["what"][rows, cells]
            alone = self.parts("read", what=what.reshape(-1, what.shape[2]))["logits"].reshape(batch, count, -1)
        shares = alone / np.float32(alone.shape[1])
        if count:  # the first look contributes nothing
            shares = np.concatenate([np.zeros_like(shares[:, :1]), shares], axis=1)
        chance = np.concatenate([np.ones((batch, 1)), np.exp(log_p)], axis=1)
        return alone.mean(1), Looks(
            image=np.repeat(np.arange(batch), count + 1),
            box=np.concatenate([roots[:, None], boxes], axis=1).reshape(-1, 4),
            size=np.tile(np.array([self.size, *[given["glimpse_size"]] * count]), (batch, 1)),
            level=np.tile([1] + [2] * count, batch),
            parent=np.tile([-1] + [0] * count, batch),
            probability=chance.ravel().astype(np.float32),
            contribution=shares.reshape(-1, shares.shape[2]) if contributions else None,
        )

    def choose(
        self, mixed: np.ndarray, barred: np.ndarray, policy: str, count: int, draws: Draws
    ) -> tuple[np.ndarray, np.ndarray]:
        """(B, count) cells and their log-probabilities."""
        n = mixed.shape[1]
        if policy not in ("greedy", "sampled"):
            scores = np.where(barred > 0, NEVER, np.float32(0))
            noise = draws.gumbel("saccades ", n).astype(np.float32) if policy in DRAWN else None
            cells = choose(policy, scores, count, noise)
            return cells, LIKELIHOODS[policy](scores, cells)
        noise = draws.gumbel("saccades ", count, n).astype(np.float32) if policy == "sampled" else None
        steps, chances = [], []
        for t in range(count):
            log_p = self.parts("score", mixed=mixed, barred=barred)["log_p"]
            steps.append((log_p if noise is None else log_p + noise[:, t]).argmax(-1)[:, None])
            chances.append(np.take_along_axis(log_p, steps[-1], -1))
            barred = barred.copy()
            np.put_along_axis(barred, steps[-1], np.float32(2), 1)  # more than cells outside the image
        return np.concatenate(steps, 1), np.concatenate(chances, 1)


def _scatter(values: np.ndarray, taken: np.ndarray) -> np.ndarray:
    """Values of the looks taken, at the places (B, n) of all looks; 0 for the others."""
    if taken.all():
        return values.reshape(*taken.shape, *values.shape[1:])
    out = np.zeros((*taken.shape, *values.shape[1:]), dtype=values.dtype)
    out[taken] = values
    return out


# ---------------------------------------------------------------------------------------------------------- policies

DRAWN = ("sampled", "random")
"""Policies that need random numbers."""


def choose(policy: str, log_p: np.ndarray, k: int, noise: np.ndarray | None = None) -> np.ndarray:
    """Choose k cells of each grid; the twin of `foveal.policies.CellPolicy.choose`.

    Args:
        policy: ``greedy``, ``sampled``, ``random``, ``centre`` or ``exhaustive``.
        log_p: (..., K) log-probabilities.
        k: number of cells.
        noise: (..., K) standard Gumbel noise, for policies that draw.
    """
    equal = np.where(log_p < NEVER / 2, log_p, 0)
    if policy == "greedy":
        order = log_p
    elif policy == "sampled":
        order = log_p + noise
    elif policy == "random":
        order = equal + noise
    elif policy == "exhaustive":
        order = equal
    elif policy == "centre":
        side = round(log_p.shape[-1] ** 0.5)
        axis = (np.arange(side) - (side - 1) / 2) ** 2
        order = equal - (axis[:, None] + axis).ravel()
    else:
        raise ConfigError(f"policy {policy}: exported models do not know it; use greedy, sampled, random or centre")
    return np.argsort(-order, axis=-1, kind="stable")[..., :k]


def _plackett_luce(log_p: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """See `foveal.policies.plackett_luce`."""
    chosen, left = np.take_along_axis(log_p, cells, -1), log_p.copy()
    steps = []
    for j in range(cells.shape[-1]):
        highest = left.max(-1)
        total = highest + np.log(np.exp(left - highest[..., None]).sum(-1))
        steps.append(np.where(chosen[..., j] < NEVER / 2, 0, chosen[..., j] - total))
        np.put_along_axis(left, cells[..., j : j + 1], 2 * NEVER, -1)
    return np.stack(steps, -1) if steps else chosen


def _independent(log_p: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """See `foveal.policies.independent`."""
    return np.log(np.exp(np.take_along_axis(log_p, cells, -1)) + 1e-10)


def _uniform(log_p: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """See `foveal.policies.uniform`."""
    return _plackett_luce(np.where(log_p < NEVER / 2, log_p, 0), cells)


def _certain(log_p: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """See `foveal.policies.certain`."""
    return np.zeros(cells.shape, dtype=np.float32)


LIKELIHOODS: dict[str, Likelihood] = {"random": _uniform, "centre": _certain, "exhaustive": _certain}
"""Log-probability of the choices of policies that have one of their own."""

_LOOPS: dict[str, type[Loop]] = {"whole": WholeLoop, "tnet": TNetLoop, "saccader": SaccaderLoop, "scan": ScanLoop}


def loop_of(card: Mapping[str, Any], parts: Engine) -> Loop:
    """The loop that a card names."""
    return _LOOPS[card["loop"]](card, parts)


def check_locations(card: Mapping[str, Any], locations: Sequence[int], policy: str) -> tuple[int, ...]:
    """Check locations and policy against a card; see `foveal.glimpse.base.GlimpseClassifier.resolve_locations`.

    Raises:
        ConfigError: the model does not support them.
    """
    if policy not in card["policies"]:
        raise ConfigError(f"policy {policy}: this model does not know it; use one of {', '.join(card['policies'])}")
    taken = tuple(locations[: list(locations).index(0)] if 0 in locations else locations)
    levels, most = card["most_levels"], card["most_cells"]
    if (levels is not None and len(taken) > levels) or not all(1 <= k <= (most or k) for k in taken):
        takes = "looks once; leave locations out" if levels == 0 else f"takes 1 to {most or 'any number'} per grid"
        plural = "any number of levels" if levels is None else f"{levels} level{'s' * (levels != 1)}"
        raise ConfigError(f"locations {','.join(map(str, locations))}: this model {takes}, on {plural}")
    return (most,) * len(taken) if policy == "exhaustive" and most else taken

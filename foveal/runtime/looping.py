"""The base of loops: what a loop asks of images and parts, see `foveal.runtime.loops`.

Example:
    >>> issubclass(Loop, ABC)
    True
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from foveal.draws import Draws
from foveal.glimpse.grid import centred_square, enclosing_square, whole_image
from foveal.runtime.answer import Classification, Looks
from foveal.runtime.engines import Engine


class Images(Protocol):
    """A batch of images: `foveal.runtime.images.Batch`, or the views of `foveal.images` as arrays."""

    sizes: np.ndarray

    @property
    def mpp(self) -> np.ndarray: ...

    def __len__(self) -> int: ...

    def look(
        self, which: np.ndarray, boxes: np.ndarray, size: tuple[int, int], fill: np.ndarray, antialias: bool
    ) -> np.ndarray: ...

    def may_look(
        self, i: int, y: np.ndarray, x: np.ndarray, spacing: float, blank_bytes: int | None = None
    ) -> np.ndarray | None: ...

    def is_blank(self, i: int, box: np.ndarray, size: tuple[int, int]) -> bool: ...


class Loop(ABC):
    """How a model looks.

    Args:
        card: the card of the model, see `foveal.runtime.card`.
        parts: the engine that runs its parts.

    Attributes:
        region_mpp: µm per pixel of the closest looks, for models that need the pixel size of images; else None.
    """

    region_mpp: float | None = None

    def __init__(self, card: Mapping[str, Any], parts: Engine) -> None:
        self.card, self.parts = card, parts
        self.options: dict[str, Any] = card.get("options", {})
        self.size: tuple[int, int] = (card["size"][0], card["size"][1])
        self.fill = np.array(card["mean"], dtype=np.float32)

    def __call__(
        self,
        images: Images,
        locations: tuple[int, ...],
        policy: str = "greedy",
        draws: Draws | None = None,
        contributions: bool = True,
    ) -> Classification:
        """Classify images.

        Args:
            images: the images.
            locations: looks per grid at each level, as `foveal.runtime.Model.resolve_locations` returns them.
            policy: how looks are chosen.
            draws: random numbers for policies that need them; drawn with seed 0 if None.
            contributions: give the contribution of each look.
        """
        draws = draws or Draws(0, 0, np.arange(len(images)))
        logits, looks = self.look(images, locations, policy, draws, contributions)
        return Classification(
            logits,
            looks,
            tuple(self.card.get("class_names", ())),
            self.card.get("task", "multiclass"),
            tuple((int(i), float(p)) for i, p in self.card.get("thresholds", ())),
        )

    @abstractmethod
    def needs(self) -> list[str]:
        """Names of the parts that the loop uses."""

    def without_scale(self, images: Images) -> np.ndarray:
        """Indices of images whose pixel size is not known, although the model needs it."""
        return np.flatnonzero(np.isnan(images.mpp) & (self.region_mpp is not None))

    @abstractmethod
    def look(
        self, images: Images, locations: tuple[int, ...], policy: str, draws: Draws, contributions: bool
    ) -> tuple[np.ndarray, Looks]:
        """Logits (B, classes), and the looks."""

    def root(self, sizes: np.ndarray) -> np.ndarray:
        """Box (B, 4) of the first look."""
        if self.card["squash"]:
            return whole_image(sizes)
        crop = self.card["crop"]
        return enclosing_square(sizes) if crop is None else centred_square(sizes, crop)

    def see(
        self, images: Images, which: np.ndarray, boxes: np.ndarray, size: tuple[int, int] | None = None
    ) -> np.ndarray:
        """Pixels (n, C, height, width) of boxes (n, 4), from 0 to 1. The parts normalise them."""
        return images.look(which, boxes, size or self.size, self.fill, self.card["antialias"])

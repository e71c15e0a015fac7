"""Exported models without torch: a loop in NumPy, and networks run by ONNX Runtime or OpenVINO.

It needs NumPy, Pillow (for files of images) and the engine alone, and its import takes a fraction of a second.

    load(folder, *, engine=None, threads=None) -> Model
    Model.classify(images, *, locations=None, policy=None, batch_size=16, seed=0) -> Classification

Example:
    >>> from foveal import runtime
    >>> runtime.load("photos")
    Traceback (most recent call last):
    ...
    foveal.errors.RunError: photos: has no export.json, so it is no exported model; make one by foveal export
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from foveal.draws import Draws
from foveal.errors import ConfigError, ImageError, RunError
from foveal.runtime.answer import Classification, Looks
from foveal.runtime.card import CARD, check_files, is_exported, read_card
from foveal.runtime.engines import ENGINES, Engine, Files
from foveal.runtime.images import ArrayImage, Batch, Source, as_source, squashed
from foveal.runtime.looping import Loop
from foveal.runtime.loops import check_locations, loop_of

__all__ = [
    "ENGINES",
    "ArrayImage",
    "Classification",
    "Looks",
    "Model",
    "Source",
    "is_exported",
    "load",
]


class Model:
    """An exported model.

    Args:
        card: its card, see `foveal.runtime.card`.
        parts: the engine that runs its parts.

    Attributes:
        loop: how it looks.
    """

    def __init__(self, card: dict[str, Any], parts: Engine) -> None:
        self.card, self.parts = card, parts
        self.loop: Loop = loop_of(card, parts)

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(self.card["class_names"])

    def resolve_locations(
        self, locations: int | Sequence[int] | None = None, policy: str | None = None
    ) -> tuple[int, ...]:
        """Check locations and policy.

        Args:
            locations: looks per grid at each level, or a number for the first alone; the model's own if None.
            policy: how looks are chosen; the model's own if None.

        Raises:
            ConfigError: the model does not support them.
        """
        asked = self.card["locations"] if locations is None else locations
        if isinstance(asked, int):
            asked = [asked]
        return check_locations(self.card, list(asked), policy or self.card["policy"])

    def open(self, image: Any, name: str = "image") -> Source:
        """An image as the model takes it.

        Args:
            image: a path, a Pillow image, an array (see `ArrayImage`), or an object with the attributes of `Source`.
            name: name of an image in memory, for errors.

        Raises:
            ImageError: it cannot be read, or does not fit the model.
        """
        card = self.card
        ends = card["value_range"]
        opened = as_source(image, card["channels"], None if ends is None else (ends[0], ends[1]), name)
        if card["image_size"] is None:
            return opened
        return squashed(opened, card["channels"], card["image_size"], card["shorter_side"])

    def classify(
        self,
        images: Any,
        *,
        locations: int | Sequence[int] | None = None,
        policy: str | None = None,
        batch_size: int = 16,
        seed: int = 0,
    ) -> Classification:
        """Classify one image or several.

        Args:
            images: an image, or a list of images, see `open`.
            locations, policy: see `resolve_locations`.
            batch_size: images per batch.
            seed: seed of policies that draw.

        Raises:
            ImageError: an image cannot be read, or does not fit the model; or there is none.
            ConfigError: the model does not support the locations or the policy.
        """
        policy = policy or self.card["policy"]
        looks = self.resolve_locations(locations, policy)
        several = images if isinstance(images, list | tuple) else [images]
        if not several or batch_size < 1:
            raise (ImageError if batch_size >= 1 else ConfigError)("there is no image to classify; give at least one")
        parts = []
        for first in range(0, len(several), batch_size):
            some = several[first : first + batch_size]
            batch = Batch([self.open(image, f"[{first + i}]") for i, image in enumerate(some)])
            for i in self.loop.without_scale(batch):
                raise ImageError(
                    f"[{first + i}]: the image has no pixel size, which this model needs; give an image with `mpp`, in "
                    "µm per pixel"
                )
            parts.append(self.loop(batch, looks, policy, Draws(seed, 0, first + np.arange(len(batch)))))
        return _joined(parts)


def _joined(parts: Sequence[Classification]) -> Classification:
    """Batches as one."""
    if len(parts) == 1:
        return parts[0]
    offsets = np.cumsum([0, *(len(part) for part in parts)])
    looks = [part.looks._replace(image=part.looks.image + o) for part, o in zip(parts, offsets, strict=False)]
    each = zip(*looks, strict=True)
    joined = Looks(*(None if part[0] is None else np.concatenate(part) for part in each))  # type: ignore[arg-type]
    first = parts[0]
    return Classification(
        np.concatenate([part.logits for part in parts]), joined, first.class_names, first.task, first.thresholds
    )


def load(folder: str | os.PathLike[str], *, engine: str | None = None, threads: int | None = None) -> Model:
    """Load an exported model. Files are compared with the card; nothing is unpickled or downloaded.

    Args:
        folder: what ``foveal export`` wrote.
        engine: one of `ENGINES`; that of the format if None.
        threads: processors to use; all if None.

    Raises:
        RunError: the folder is not an exported model, or is damaged.
        ConfigError: the engine does not run the format, or is not installed.
    """
    place = Path(folder)
    card = read_card(place)
    check_files(place, card["parts"])
    try:
        model = Model(card, Files(place, card, engine, threads))
        missing = [name for name in model.loop.needs() if name not in card["parts"]]
    except (KeyError, TypeError, ValueError, IndexError, ZeroDivisionError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise RunError(f"{place / CARD}: has wrong `options` ({reason}); export the model again") from error
    if missing:
        raise RunError(f"{place / CARD}: has no part {missing[0]}, which the model needs; export the model again")
    return model

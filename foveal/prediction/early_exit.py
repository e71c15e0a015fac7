"""Early exit: look at an image until the answer is sure enough, so that easy images cost less than hard ones.

Looks are taken in descending probability, a few at a time. An image whose most probable class has reached the threshold
leaves the batch; what is not looked at is not read either. Which threshold spends a wanted cost on the mean image is
found on validation images (`foveal.evaluation.find_thresholds`) and kept in the run folder.

Example:
    >>> parse_cost("2.0GMAC"), parse_cost("15 ms"), parse_cost("3locations")
    ((2000000000.0, 'macs'), (15.0, 'ms'), (3.0, 'locations'))
    >>> import torch
    >>> from foveal.models import create_model
    >>> model = create_model("tnet", backbone="test_efficientnet", num_classes=4, base_size=32, locations=(3,)).eval()
    >>> look_until(model, torch.rand(2, 3, 96, 96), threshold=0.0).locations.tolist()
    [0, 0]
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, get_type_hints

import torch
from torch import Tensor

from foveal.classification import Classification, Glimpses
from foveal.display import amount, significant
from foveal.errors import ConfigError, RunError
from foveal.files import taking_turns
from foveal.glimpse.base import GlimpseClassifier
from foveal.images import Views
from foveal.runs import own_file
from foveal.signatures import mismatch
from foveal.strict import ContentError, read_json

EXITS = "exits.json"

_UNITS = {"mac": "macs", "ms": "ms", "location": "locations"}
_PREFIXES = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}


@dataclass(frozen=True)
class Exit:
    """When to stop looking at an image.

    Attributes:
        budget: mean cost of an image as it was asked for, say ``2.0GMAC``.
        threshold: probability of the most probable class from which on an image is left; above 1 none is.
        locations: the most looks to take.
        at_once: cells of the first grid to look into before asking again.
        cost: mean cost on the images it was solved on, in ``unit``.
        unit: ``macs``, ``ms`` or ``locations``.
        images: how many they were.
        model: fingerprint of the weights, for which alone it holds.
        precision: of the arithmetic.
        batch_size, machine: what milliseconds were asked for; None for other units. Where validation images are fewer
            than a batch has, they were measured on all there are.
    """

    budget: str
    threshold: float
    locations: tuple[int, ...]
    at_once: int
    cost: float
    unit: str
    images: int
    model: str = ""
    precision: str = "32"
    batch_size: int | None = None
    machine: str | None = None

    @property
    def asked(self) -> tuple[object, ...]:
        """What was asked for, and under which conditions: two exits that agree in it answer the same question."""
        return parse_cost(self.budget), self.locations, self.at_once, self.precision, self.batch_size, self.machine


def parse_cost(text: str) -> tuple[float, str]:
    """A mean cost as people type it, and its unit: ``macs``, ``ms`` or ``locations``.

    Raises:
        ConfigError: anything else than a positive number with a unit.
    """
    found = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*(?:([kmgt]?)(mac)s?|(ms)|(location)s?)", text.strip(), re.IGNORECASE)
    if found is None or not float(found[1]):
        raise ConfigError(
            f"`budget` {text}: is no cost; write multiply-accumulates as 2.0GMAC, time as 15ms, or looks as 3locations"
        )
    return float(found[1]) * _PREFIXES[(found[2] or "").lower()], _UNITS[(found[3] or found[4] or found[5]).lower()]


def format_cost(cost: float, unit: str) -> str:
    """A cost as people type it: ``1.93GMAC``."""
    number, _, unit = (
        (amount(cost, "MAC") if unit == "macs" else f"{significant(cost)} {unit}").replace(",", "").partition(" ")
    )
    return f"{number.rstrip('0').rstrip('.') if '.' in number else number}{unit}"


def look_until(
    model: GlimpseClassifier,
    images: Views | Tensor,
    threshold: float,
    locations: Sequence[int] | None = None,
    at_once: int = 1,
    contributions: bool = False,
) -> Classification:
    """Classify; leave each image as soon as it is sure enough.

    Args:
        model: a classifier; one that cannot stop on the way looks as often as the budget says.
        images: see `GlimpseClassifier.forward`.
        threshold: probability of the most probable class from which on an image is left.
        locations: the most looks to take; the model's own budget if None.
        at_once: cells of the first grid to look into before asking again.
        contributions: see `GlimpseClassifier.forward`.
    """
    walk = model.walk(images, locations, at_once, contributions)
    try:
        _, logits = next(walk)
        while True:
            _, logits = walk.send((confidence(logits) < threshold).cpu().numpy())
    except StopIteration as end:
        return end.value


def confidence(logits: Tensor) -> Tensor:
    """(n,) probability of the most probable class of logits (n, classes)."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(-1).amax(-1)


def turns(locations: Sequence[int], at_once: int) -> list[tuple[int, ...]]:
    """The budgets that an image can end with, the first look alone first."""
    if not locations:
        return [()]
    first, *below = locations
    return [(), *((min(k, first), *below) for k in range(at_once, first + at_once, at_once))]


def locations_of(looks: Glimpses, locations: Sequence[int]) -> tuple[int, ...]:
    """The budget that the looks at one image amount to, of one that was ended early."""
    first = int((looks.level == 2).sum())
    return (first, *locations[1:]) if first else ()


def read_exits(folder: Path) -> list[Exit]:
    """The exits that were solved for a run, on its own validation images.

    Raises:
        RunError: the file is damaged.
    """
    if not (folder / EXITS).exists():
        return []
    file = own_file(folder, EXITS)
    again = "delete it, and solve again by foveal evaluate --budget"
    hints = {**get_type_hints(Exit), "at_once": Annotated[int, range(1, 10**6)]}
    try:
        found = read_json(file)
        faults = [mismatch(values, hints) for values in found]
        if fault := next(filter(None, faults), None):
            raise RunError(f"{file}: {fault}; {again}")
        exits = [Exit(**{**values, "locations": tuple(values["locations"])}) for values in found]
        for one in exits:
            parse_cost(one.budget)
    except (ContentError, ConfigError, TypeError, KeyError, AttributeError, OSError) as error:
        raise RunError(f"{file}: is damaged or not ours ({str(error) or type(error).__name__}); {again}") from error
    return exits


def write_exits(folder: Path, exits: Sequence[Exit]) -> None:
    """Keep exits beside those that are there already; of two that answer the same question the new one.

    Raises:
        StorageError: they cannot be written.
    """
    with taking_turns(folder / EXITS, "the thresholds are not kept") as unfinished:
        kept = {one.asked: one for one in [*read_exits(folder), *exits]}
        unfinished.write_text(json.dumps([asdict(one) for one in kept.values()], indent=2) + "\n")

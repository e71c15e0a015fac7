"""Early exit: stop looking at an image when its most probable class reaches a threshold.

Looks are taken in descending probability, a few at a time. An image that reaches the threshold leaves the batch; the
rest of it is not read. `foveal.evaluation.find_thresholds` finds the threshold for a mean cost per image on validation
images. The run folder stores it.

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
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, get_type_hints

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
        budget: mean cost per image, as text such as ``2.0GMAC``.
        threshold: probability of the most probable class at which an image is left; above 1 no image is left early.
        locations: maximum looks per grid at each level.
        at_once: looks in the first grid between two comparisons with the threshold.
        cost: mean cost on the validation images, in ``unit``.
        unit: ``macs``, ``ms`` or ``locations``.
        images: number of the validation images.
        model: `foveal.prediction.fingerprint` of the model. The threshold holds for this model only.
        precision: see `foveal.prediction.autocast`.
        batch_size, machine: for which milliseconds were measured; None for other units. With fewer validation images
            than ``batch_size``, all of them were one batch.
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
    def conditions(self) -> tuple[object, ...]:
        """The budget and the conditions under which the threshold was found. Exits with equal values are equivalent."""
        return parse_cost(self.budget), self.locations, self.at_once, self.precision, self.batch_size, self.machine


def parse_cost(text: str) -> tuple[float, str]:
    """Parse a mean cost such as ``2.0GMAC``.

    Returns:
        The number and its unit: ``macs``, ``ms`` or ``locations``.

    Raises:
        ConfigError: the text is not a positive number with a unit.
    """
    found = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*(?:([kmgt]?)(mac)s?|(ms)|(location)s?)", text.strip(), re.IGNORECASE)
    if found is None or not float(found[1]):
        raise ConfigError(
            f"`budget` {text}: is not a cost; write multiply-accumulates as 2.0GMAC, time as 15ms, or looks as "
            "3locations"
        )
    return float(found[1]) * _PREFIXES[(found[2] or "").lower()], _UNITS[(found[3] or found[4] or found[5]).lower()]


def format_cost(cost: float, unit: str) -> str:
    """A cost as text, the inverse of `parse_cost`: ``1.93GMAC``."""
    number, _, unit = (
        (amount(cost, "MAC") if unit == "macs" else f"{significant(cost)} {unit}").replace(",", "").partition(" ")
    )
    return f"{number.rstrip('0').rstrip('.') if '.' in number else number}{unit}"


def look_until(
    model: GlimpseClassifier,
    images: Views | Tensor,
    threshold: float,
    locations: int | Sequence[int] | None = None,
    at_once: int = 1,
    contributions: bool = False,
    on_turn: Callable[[Tensor], bool] | None = None,
) -> Classification:
    """Classify images. Stop looking at an image when its most probable class reaches the threshold.

    Args:
        model: a classifier; one that cannot stop early takes all looks.
        images: see `GlimpseClassifier.forward`.
        threshold: probability of the most probable class at which an image is left.
        locations: maximum looks per grid at each level; the model's own if None.
        at_once: looks in the first grid between two comparisons with the threshold.
        contributions: see `GlimpseClassifier.forward`.
        on_turn: called with the logits (B, classes) of the images that are still looked at, after the first look and
            after each turn; returns whether to go on.
    """
    walk = model.walk(images, locations, at_once, contributions)
    try:
        _, logits = next(walk)
        while True:
            goes_on = (model.task.confidence(logits) < threshold).cpu().numpy()
            if on_turn is not None and not on_turn(logits):
                goes_on[:] = False
            _, logits = walk.send(goes_on)
    except StopIteration as end:
        return end.value


def turns(locations: Sequence[int], at_once: int) -> list[tuple[int, ...]]:
    """The locations after which an image can be left, in ascending order; first ``()``, the first look alone."""
    if not locations:
        return [()]
    first, *below = locations
    return [(), *((min(k, first), *below) for k in range(at_once, first + at_once, at_once))]


def locations_of(looks: Glimpses, locations: Sequence[int]) -> tuple[int, ...]:
    """The locations taken at one image that was left early.

    Args:
        looks: the looks at the image.
        locations: the maximum.
    """
    first = int((looks.level == 2).sum())
    return (first, *locations[1:]) if first else ()


def read_exits(folder: Path) -> list[Exit]:
    """The exits that a run folder stores, found on the run's validation images.

    Raises:
        RunError: the file is damaged.
    """
    if not (folder / EXITS).exists():
        return []
    file = own_file(folder, EXITS)
    again = "delete it, and find them again by foveal evaluate --budget"
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
        reason = str(error) or type(error).__name__
        raise RunError(f"{file}: is damaged or not a file of foveal ({reason}); {again}") from error
    return exits


def write_exits(folder: Path, exits: Sequence[Exit]) -> None:
    """Add exits to the file in a run folder. A new exit replaces one with an equal `Exit.conditions`.

    Raises:
        StorageError: the file cannot be written.
    """
    with taking_turns(folder / EXITS, "the thresholds are not stored") as unfinished:
        kept = {one.conditions: one for one in [*read_exits(folder), *exits]}
        unfinished.write_text(json.dumps([asdict(one) for one in kept.values()], indent=2) + "\n")

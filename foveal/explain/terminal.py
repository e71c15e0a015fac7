"""A classification in a terminal or a notebook.

Example:
    >>> import torch
    >>> from foveal.models import create_model
    >>> from foveal.prediction import classify
    >>> torch.manual_seed(0)  # doctest: +ELLIPSIS
    <torch...>
    >>> model = create_model("tnet", backbone="test_efficientnet", num_classes=3, base_size=32, locations=(1,))
    >>> show(classify(model, torch.rand(3, 64, 64)))
    1 ... %, then 0 ... %
    look  level  chosen  rows   columns        1        0  lead
    ───...───
    0         1          0:64   0:64     ...
    1         2   ...
    all       ...
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from foveal.classification import Classification, Glimpse
from foveal.display import TEXT, Column, Table, console, fixed, percent, printable, stacked
from foveal.errors import ConfigError
from foveal.explain.pictures import overlay
from foveal.tasks import MULTICLASS

if TYPE_CHECKING:
    from rich.console import Group

BAR = 8
"""Number of characters of the longest bar."""

NAMED = 8
"""Smallest width of the name of a class."""


def show(classification: Classification, image: Any = None, wide: bool = False) -> None:
    """Print where a model looked and what each look added to the logits of the two most probable classes.

    Args:
        classification: the classification of one image.
        image: the image; a notebook then shows it with the boxes.
        wide: print the five most probable classes, and the parent of each look.

    Raises:
        ConfigError: the classification is of several images.
    """
    console().print(classification_table(classification, wide))
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if image is not None and shell is not None and hasattr(shell, "kernel"):
        from IPython.display import display

        display(overlay(classification, image))


def classification_table(classification: Classification, wide: bool = False) -> Group:
    """The table of `show` for rich, with one row per look.

    Args:
        classification: the classification of one image.
        wide: see `show`.
    """
    if classification.logits.ndim != 1:
        count = len(classification)
        raise ConfigError(f"`classification`: is of {count} images, but show prints one image; show(c[0])")
    top = classification.top(5 if wide else 2)
    title = ", then ".join(f"{printable(name)} {percent(p)} %" for name, p in top)
    if classification.task != MULTICLASS:
        title = f"{printable(str(classification.label) or 'no label')} (probabilities: {title})"
    looks = list(enumerate(classification.glimpses))
    columns = [
        Column("look", lambda row: str(row[0]), TEXT),
        Column("level", lambda row: str(row[1].level) if row[1] else ""),
        *(
            [Column("from", lambda row: str(row[1].parent) if row[1] and row[1].parent is not None else "")]
            if wide
            else []
        ),
        Column("chosen", lambda row: fixed(row[1].probability, 3) if row[1] and row[1].parent is not None else ""),
        Column("rows", lambda row: f"{round(row[1].box[0])}:{round(row[1].box[2])}" if row[1] else "", TEXT),
        Column("columns", lambda row: f"{round(row[1].box[1])}:{round(row[1].box[3])}" if row[1] else "", TEXT),
    ]
    note = "The logits of this model are not a sum over looks, so there are no contributions."
    rows: list[tuple[int | str, Glimpse | None] | None] = [*looks]
    added = classification.glimpses.contribution
    if added is not None:
        order = classification.logits.topk(len(top)).indices.tolist()
        shares = added.detach().double().cpu()[:, order]
        columns += _contribution_columns([name for name, _ in top], shares)
        rows += [None, ("all", None)]
        note = "Columns of classes: contribution of each look to the logit."
        note += " lead: first class minus second class." if len(top) > 1 else ""
    count = len(classification.maps)
    drawn = (
        f"{count} attention {'map' if count == 1 else 'maps'}: foveal explain draws {'it' if count == 1 else 'them'}"
        if count
        else ""
    )
    rules = "; ".join(map(printable, classification.decision_rules()))
    return stacked(Table(title, columns, rows), note, f"{rules}." if rules else "", drawn)


def _contribution_columns(names: Sequence[str], shares: Tensor) -> list[Column]:
    """Columns of contributions (looks, classes), with sums over looks in the row ``"all"``."""
    decimals = _decimals(float(shares.abs().max()))
    added = {"all": shares.sum(0).tolist()} | dict(enumerate(shares.tolist()))

    def to(place: int) -> Callable[[Any], str]:
        return lambda row: fixed(added[row[0]][place], decimals, signed=True)

    columns = [Column(name, to(i), least=NAMED) for i, name in enumerate(names)]
    if len(names) > 1:
        leads = shares[:, 0] - shares[:, 1]
        bars = (BAR * leads / leads.abs().max()).nan_to_num().round().int().tolist()
        columns.append(
            Column("lead", lambda row: ("+" if bars[row[0]] > 0 else "-") * abs(bars[row[0]]) if row[1] else "", TEXT)
        )
    return columns


def _decimals(largest: float) -> int:
    """Number of decimals for three significant digits, at most four."""
    return min(max(2 - math.floor(math.log10(largest)), 0), 4) if 0 < largest < math.inf else 2

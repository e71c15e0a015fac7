"""A classification in a terminal or a notebook.

Example:
    >>> import torch
    >>> from foveal.runs import classify, create_model
    >>> torch.manual_seed(0)  # doctest: +ELLIPSIS
    <torch...>
    >>> model = create_model("tnet", backbone="test_efficientnet", num_classes=3, base_size=32, locations=(1,))
    >>> table(classify(model, torch.rand(3, 64, 64))).row_count
    2
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from foveal.classification import Classification
from foveal.explain.pictures import overlay

if TYPE_CHECKING:
    from rich.table import Table


def show(classification: Classification, image: Any = None) -> None:
    """Print where a model looked and what each look added to the three most probable classes.

    Args:
        classification: of one image.
        image: the image; if given, a notebook shows it with the boxes.
    """
    from rich.console import Console

    console = Console()
    console.print(table(classification))
    if classification.maps:
        count = len(classification.maps)
        console.print(f"{count} attention {'map' if count == 1 else 'maps'}: foveal explain draws {'it' if count == 1 else 'them'}")
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if image is not None and shell is not None and hasattr(shell, "kernel"):
        from IPython.display import display

        display(overlay(image, classification))


def table(classification: Classification) -> Table:
    """One row a glimpse, for rich to print: which look it was chosen from and how probably, its box in pixels, what it added."""
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    top = classification.top(3)
    order = classification.logits.topk(len(top)).indices.tolist()
    title = ", ".join(f"{escape(name)} {100 * p:.1f} %" for name, p in top)
    rows = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for name in ("look", "level", "from", "chosen", "rows", "columns"):
        rows.add_column(name, justify="right", no_wrap=True)
    additive = classification.glimpses.contribution is not None
    for name, _ in top if additive else []:
        rows.add_column(escape(name), justify="right", max_width=16)
    for number, glimpse in enumerate(classification.glimpses):
        y0, x0, y1, x1 = glimpse.box
        rows.add_row(
            str(number),
            str(glimpse.level),
            "" if glimpse.parent is None else str(glimpse.parent),
            f"{glimpse.probability:.3f}",
            f"{y0:.0f}:{y1:.0f}",
            f"{x0:.0f}:{x1:.0f}",
            *([f"{float(glimpse.contribution[i]):+.3f}" for i in order] if glimpse.contribution is not None else []),
        )
    return rows

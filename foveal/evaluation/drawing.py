"""Pictures of results: figures, series with intervals, and labels that avoid each other.

Example:
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, png_figure(Path(folder) / "a.png", 4, 3) as figure:
    ...     axes = figure.add_subplot()
    ...     draw_series(axes, [1e6, 2e6], [Metric(0.5, (0.4, 0.6)), Metric(0.7)], BLUE, label="a model")
    ...     finish(axes, xlabel="multiply-accumulates")
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from foveal.metrics import Metric

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, GREY, ORANGE, INK = "#2f6fb0", "#8a8f98", "#c8642a", "#222831"
OTHERS = ("#3a8f5c", "#8b5fb8", "#b8a02f", "#c0417a", "#2fa3a3")
"""Colours of policies other than the learned one and random looks."""

NUMBERED_CLASSES = 40
"""The most classes whose confusion matrix has a number in each cell."""
ACCURACY = "accuracy, % (bars: 95 % interval)"
"""Label of an axis."""


@contextmanager
def png_figure(file: Path, width: float, height: float, dpi: int = 150) -> Iterator[Figure]:
    """A figure of so many inches, saved as PNG at the end."""
    # Without pyplot: no global state is touched and no display is needed.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    yield figure
    figure.savefig(file, format="png")


def verbatim(text: str) -> str:
    """A text that matplotlib does not read as a formula.

    >>> verbatim("$1 and $2")
    '\\\\$1 and \\\\$2'
    """
    return text.replace("$", r"\$")


def policy_colours(kinds: Iterable[str]) -> dict[str, str]:
    """A colour for each policy. The learned one is last, so that it is drawn over the others."""
    others = [kind for kind in dict.fromkeys(kinds) if kind not in ("learned", "random", "against", "whole")]
    return {"random": GREY, **{kind: OTHERS[i % len(OTHERS)] for i, kind in enumerate(others)}, "learned": BLUE}


def draw_series(axes: Any, x: Sequence[float], shares: Sequence[Metric], colour: str, **style: Any) -> None:
    """Draw shares in per cent, with their intervals as bars.

    Args:
        axes: of matplotlib.
        x: where.
        shares: the shares; their values are not None.
        colour: of lines, markers and bars.
        style: further arguments of ``axes.errorbar``.
    """
    y = [100 * (share.value or 0) for share in shares]
    bounds = [share.interval or (share.value or 0,) * 2 for share in shares]
    spread = [[v - 100 * low for v, (low, _) in zip(y, bounds, strict=True)]]
    spread.append([100 * high - v for v, (_, high) in zip(y, bounds, strict=True)])
    # Rounding may leave a length a little below 0, which matplotlib refuses.
    style = {"marker": "o", "markersize": 5, "capsize": 3, **style}
    _, caps, bars = axes.errorbar(x, y, np.maximum(spread, 0), color=colour, **style)
    for artist in (*caps, *bars):
        artist.set_alpha(0.5)


def finish(axes: Any, **labels: str) -> None:
    """Set labels, a grid, and a legend where anything has a label; remove two sides of the frame.

    Args:
        axes: of matplotlib.
        labels: arguments of ``axes.set``: ``xlabel``, ``ylabel``.
    """
    axes.set(**labels)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False, loc="best", fontsize=8)


def draw_confusion(file: Path, counts: np.ndarray, names: Sequence[str], heading: str) -> None:
    """Draw a confusion matrix, with the share of the class, or of its presence or absence, as the colour of a cell.

    Args:
        file: PNG file.
        counts: (classes, classes) by class and predicted class, or (classes, 2, 2) by presence and predicted presence.
        names: of the classes.
        heading: text above the figure.
    """
    shares = counts / np.maximum(counts.sum(-1, keepdims=True), 1)
    rows = [verbatim(_shortened(name)) for name in names]
    columns = rows
    if counts.ndim == 3:
        counts, shares = (of.reshape(-1, 4)[:, [3, 2, 1, 0]] for of in (counts, shares))
        columns = ["found", "missed", "false alarm", "rightly absent"]
    many = len(rows) > NUMBERED_CLASSES
    cell, points = (0.14, 6) if many else (0.42, 8)
    height = max(1.5, cell * len(rows))
    width = max(3.0, cell * len(columns)) if columns is rows else 3.0
    named = 0.055 * max(map(len, rows))
    with png_figure(file, 0.8 + named + width, 1.2 + height + (named if columns is rows else 0.7)) as figure:
        axes = figure.add_subplot()
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        upright = 90 if many else 45
        axes.set_xticks(range(len(columns)), columns, rotation=upright, fontsize=points, rotation_mode="anchor")
        for label in axes.get_xticklabels():
            label.set(ha="right", va="center" if many else "top")
        axes.set_yticks(range(len(rows)), rows, fontsize=points)
        for row, column in np.argwhere(counts) if not many or columns is not rows else ():
            colour = "white" if shares[row, column] > 0.6 else INK
            text = f"{counts[row, column]:,}"
            axes.text(column, row, text, ha="center", va="center", fontsize=points - 1, color=colour)
        share = "of the class" if columns is rows else "with or without it"
        axes.set_xlabel(f"prediction; colour: share {share}", fontsize=8)
        axes.set_ylabel("class", fontsize=8)
        figure.suptitle(verbatim(heading), fontsize=9, x=0.01, ha="left")


def _shortened(name: str, most: int = 24) -> str:
    """A name without its middle, where it is long."""
    return name if len(name) <= most else f"{name[: most // 2]}…{name[1 - most // 2 :]}"


def title(figure: Figure, about: Mapping[str, Any], images: int) -> None:
    """Write model, data, split and number of images above a figure."""
    text = f"{about['model']}: {about['data']}, {about['split']}, {images} images"
    figure.suptitle(verbatim(text), fontsize=10, x=0.01, ha="left")


def plain_ticks(axes: Any, prefixes: bool) -> None:
    """Numbers without exponents along a logarithmic axis, more of them the shorter it is.

    Args:
        axes: of matplotlib.
        prefixes: shorten large numbers, as ``2 G``.
    """
    from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullFormatter

    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 200 * low else (1.0,)))
    axes.xaxis.set_major_formatter(EngFormatter() if prefixes else FuncFormatter(plain_number))
    axes.xaxis.set_minor_formatter(NullFormatter())


def plain_number(value: float, _: Any = None) -> str:
    """A number without an exponent: ``0.005``, ``2,000,000``."""
    return f"{value:,.9f}".rstrip("0").rstrip(".")


def drawn_boxes(axes: Any) -> list[Any]:
    """Boxes around markers and lines, for `write_beside`; lines in the background (``zorder=0``) are left out."""
    from matplotlib.transforms import Bbox

    lines = [_along(axes.transData.transform(line.get_xydata())) for line in axes.lines if line.get_zorder()]
    return [Bbox.from_bounds(x - 6, y - 6, 12, 12) for line in lines for x, y in line]


def _along(corners: np.ndarray) -> np.ndarray:
    """Points on a polyline: its corners, and four between two of them."""
    where = np.linspace(0, len(corners) - 1, 5 * len(corners) - 4)
    return np.stack([np.interp(where, np.arange(len(corners)), values) for values in corners.T], 1)


def write_beside(axes: Any, text: str, at: tuple[float, float], height: str, taken: list[Any], **style: Any) -> None:
    """Write beside a point, on the side where the text overlaps least.

    Args:
        axes: of matplotlib; the layout of its figure is final.
        text: to write.
        at: the point.
        height: the unit of its second coordinate, ``"data"`` or ``"axes fraction"``.
        taken: boxes to avoid; the box of the text is added.
        style: further arguments of ``axes.annotate``.
    """
    sides = [(9, 0, "left", "center"), (-9, 0, "right", "center")]
    above_below = ((10, "bottom"), (-10, "top"), (24, "bottom"), (-24, "top"))
    sides += [(dx, dy, ha, va) for dy, va in above_below for dx, ha in ((0, "center"), (8, "left"), (-8, "right"))]
    room, tries = axes.bbox, []
    for rank, (dx, dy, ha, va) in enumerate(sides):
        note = axes.annotate(verbatim(text), at, (dx, dy), ("data", height), "offset points", ha=ha, va=va, **style)
        box = note.get_window_extent(axes.figure.canvas.get_renderer())
        outside = not (room.x0 <= box.x0 and box.x1 <= room.x1 and room.y0 <= box.y0 and box.y1 <= room.y1)
        tries.append((box.count_overlaps(taken) + 2 * outside, rank, note, box))
    chosen = min(tries, key=lambda attempt: attempt[:2])
    for attempt in tries:
        if attempt is not chosen:
            attempt[2].remove()
    taken.append(chosen[3])

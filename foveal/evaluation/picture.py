"""Accuracy against multiply-accumulates, as a picture.

Example:
    >>> import tempfile
    >>> from types import SimpleNamespace as Some
    >>> def point(kind, macs, accuracy):
    ...     return Some(kind=kind, name=kind, macs=macs, accuracy=accuracy, interval=(accuracy - 0.1, accuracy + 0.1), locations=(1,))
    >>> result = Some(points=[point("learned", 1e6, 0.5), point("against", 9e6, 0.6)], about={"model": "m", "data": "d", "split": "test"},
    ...               dense=[Some(name="dense, full size", macs=9e6)])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     draw_tradeoff(result, Path(folder) / "tradeoff.png")
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from foveal.prediction.budget import format_budget

if TYPE_CHECKING:
    from foveal.evaluation.evaluation import Evaluation

BLUE, GREY, ORANGE, INK = "#2f6fb0", "#8a8f98", "#c8642a", "#222831"
OTHERS = ("#3a8f5c", "#8b5fb8", "#b8a02f", "#c0417a", "#2fa3a3")
"""Colours of policies beside the learned one and random looks."""


def draw_tradeoff(evaluation: Evaluation, file: Path) -> None:
    """Draw accuracy against MACs: every policy as a curve, other models as points, dense costs as lines; PNG."""
    # The figure by itself, not pyplot: nothing global is touched and no display is needed.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.8), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    others = [kind for kind in dict.fromkeys(p.kind for p in evaluation.points) if kind not in ("learned", "random", "against")]
    policies = [(kind, f"{kind} looks", OTHERS[i % len(OTHERS)]) for i, kind in enumerate(others)]
    for kind, label, colour in (
        ("random", "random looks", GREY), *policies, ("learned", "learned looks", BLUE), ("against", None, ORANGE),
    ):  # fmt: skip
        points = sorted((p for p in evaluation.points if p.kind == kind), key=lambda p: p.macs)
        if not points:
            continue
        x, y = [p.macs for p in points], [100 * p.accuracy for p in points]
        spread = [[100 * (p.accuracy - p.interval[0]) for p in points], [100 * (p.interval[1] - p.accuracy) for p in points]]
        line = {"against": "none", "learned": "-"}.get(kind, "--")
        axes.errorbar(
            x, y, spread, color=colour, marker="s" if kind == "against" else "o", markersize=5, linestyle=line, capsize=3, label=label
        )
        for p in points:
            if kind in ("learned", "against"):
                text = p.name if kind == "against" else format_budget(p.locations)
                axes.annotate(text, (p.macs, 100 * p.accuracy), (6, -12), textcoords="offset points", color=colour, fontsize=8)
    for cost in evaluation.dense:
        if cost.macs is not None:
            axes.axvline(cost.macs, color=INK, linestyle=":", linewidth=1)
            axes.annotate(
                cost.name, (cost.macs, 0.02), (-4, 0), ("data", "axes fraction"), "offset points", rotation=90, ha="right", fontsize=8
            )
    axes.set_xscale("log")
    axes.set_xlabel("multiply-accumulates an image")
    axes.set_ylabel("accuracy, % (bars: 95 % interval)")
    axes.set_title(f"{evaluation.about['model']}: {evaluation.about['data']}, {evaluation.about['split']}", fontsize=10, loc="left")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False, loc="best")
    figure.savefig(file, format="png")

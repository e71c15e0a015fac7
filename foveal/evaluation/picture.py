"""Accuracy against multiply-accumulates, and against what is hidden, as pictures.

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

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from foveal.prediction.budget import format_budget

if TYPE_CHECKING:
    from foveal.evaluation.evaluation import Evaluation
    from foveal.evaluation.occlusion import Occlusion

BLUE, GREY, ORANGE, INK = "#2f6fb0", "#8a8f98", "#c8642a", "#222831"
OTHERS = ("#3a8f5c", "#8b5fb8", "#b8a02f", "#c0417a", "#2fa3a3")
"""Colours of policies beside the learned one and random looks."""


def _colours(kinds: Iterable[str]) -> dict[str, str]:
    """A colour for each policy; the learned one comes last, to be drawn over the others."""
    others = [kind for kind in dict.fromkeys(kinds) if kind not in ("learned", "random", "against", "whole")]
    return {"random": GREY, **{kind: OTHERS[i % len(OTHERS)] for i, kind in enumerate(others)}, "learned": BLUE}


def draw_tradeoff(evaluation: Evaluation, file: Path) -> None:
    """Draw accuracy against MACs: every policy as a curve, other models as points, dense costs as lines; PNG."""
    # The figure by itself, not pyplot: nothing global is touched and no display is needed.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.8), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    policies = [(kind, f"{kind} looks", colour) for kind, colour in _colours(p.kind for p in evaluation.points).items()]
    for kind, label, colour in (*policies, ("against", None, ORANGE)):
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


def draw_occlusion(occlusion: Occlusion, file: Path) -> None:
    """Draw accuracy against the share of the image that is hidden: a panel a judge, a line a policy; PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    judges = list(dict.fromkeys(point.judge for point in occlusion.points))
    figure = Figure(figsize=(1 + 4.6 * len(judges), 4.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, judge in zip(figure.subplots(1, len(judges), sharey=True, squeeze=False)[0], judges, strict=True):
        of_judge = [p for p in occlusion.points if p.judge == judge]
        (whole,) = [p for p in of_judge if p.kind == "whole"]
        for kind, colour in _colours(p.kind for p in of_judge).items():
            points = [whole, *sorted((p for p in of_judge if p.kind == kind), key=lambda p: p.hidden)]
            spread = [[100 * (p.accuracy - p.interval[0]) for p in points], [100 * (p.interval[1] - p.accuracy) for p in points]]
            if len(points) > 1:
                axes.errorbar(
                    [100 * p.hidden for p in points], [100 * p.accuracy for p in points], spread, color=colour, marker="o", markersize=5,
                    linestyle="-" if kind == "learned" else "--", capsize=3, label=f"{kind} looks hidden",
                )  # fmt: skip
        axes.set_xlabel("hidden, % of the image")
        axes.set_title(f"judged by {judge}", fontsize=9, loc="left")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="best", fontsize=8)
    figure.axes[0].set_ylabel("accuracy, % (bars: 95 % interval)")
    about = occlusion.about
    figure.suptitle(f"{about['model']}: {about['data']}, {about['split']}, {about['images']} images", fontsize=10, x=0.01, ha="left")
    figure.savefig(file, format="png")

"""Accuracy against cost, of one model and of several, and against what is hidden, as pictures.

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

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from foveal.prediction.budget import format_budget

if TYPE_CHECKING:
    from foveal.evaluation.compare import Comparison, Standing
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


PANELS = {
    "macs": "multiply-accumulates an image",
    "ms": "milliseconds an image, at batch 1",
    "memory": "peak memory at batch 1, MB",
}
PAGE = 4096
"""Bytes that memory is counted in on a CPU: less cannot be seen, and a logarithmic axis has no 0."""


def draw_comparison(comparison: Comparison, file: Path) -> None:
    """Draw accuracy against MACs, time and memory, a colour a model; PNG of 1600 px."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    labels, palette = comparison.labels(), (BLUE, ORANGE, *OTHERS)
    colours = {model: palette[i % len(palette)] for i, model in enumerate(labels)}
    figure = Figure(figsize=(16, 6), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(zip(figure.subplots(1, len(PANELS), sharey=True), PANELS.items(), strict=True))
    for axes, (kind, title) in panels:
        axes.set_xscale("log")
        axes.set_autoscalex_on(False)  # of points that are nearly one, rounding may leave it no room
        axes.margins(y=0.15)
        for model, colour in colours.items():
            _draw_model(axes, kind, [p for p in comparison.points if p.model == model], colour)
        front = sorted((_cost(p, kind), 100 * (p.accuracy or 0)) for p in comparison.points if kind in p.front)
        costs = [cost for p in comparison.points if (cost := _cost(p, kind)) is not None]
        if costs:
            beside = max((max(costs) / min(costs)) ** 0.25, 2)
            axes.set_xlim(min(costs) / beside, max(costs) * beside)
        if front:
            last = axes.get_xlim()[1], front[-1][1]
            axes.step(*zip(*front, last, strict=True), where="post", color=INK, linewidth=5, alpha=0.18, zorder=0)
        else:
            axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color=GREY)
        _tick(axes, kind)
        axes.set_xlabel(title, fontsize=11)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0][0].set_ylabel("accuracy, %", fontsize=11)
    about = comparison.about
    figure.suptitle(
        f"{about['data']}, {about['split']}, {about['images']} images, {about['machine']}\n"
        "filled: learned looks or the whole image, with its 95 % interval; hollow: random looks; numbers: locations; "
        "grey band: Pareto front; dotted: models without weights", fontsize=10, x=0.01, ha="left",
    )  # fmt: skip
    figure.draw_without_rendering()  # places the axes, which labels must know
    figure.set_layout_engine("none")
    for axes, (kind, _) in panels:
        _label(axes, kind, comparison.points, labels, colours)
    figure.savefig(file, format="png")


def _cost(point: Standing, kind: str) -> float | None:
    cost = point.cost(kind)
    return cost if cost is None or kind != "memory" else max(cost, PAGE) / 1e6


def _tick(axes: Any, kind: str) -> None:
    """Numbers as people write them along a logarithmic axis, more of them the shorter it is."""
    from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullFormatter

    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 200 * low else (1.0,)))
    axes.xaxis.set_major_formatter(EngFormatter() if kind == "macs" else FuncFormatter(_plain))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _plain(value: float, _: Any = None) -> str:
    """A tick without an exponent: ``0.005``, ``2,000,000``."""
    return f"{value:,.9f}".rstrip("0").rstrip(".")


def _draw_model(axes: Any, kind: str, points: list[Standing], colour: str) -> None:
    """One model's budgets as a line, its random looks as another, or what it costs where it has no weights."""
    points = sorted((p for p in points if _cost(p, kind) is not None), key=lambda p: p.locations)
    known = [p for p in points if p.accuracy is not None and p.interval is not None]
    x, y = [_cost(p, kind) for p in known], [100 * (p.accuracy or 0) for p in known]
    spread = [[100 * (p.accuracy - p.interval[0]) for p in known], [100 * (p.interval[1] - p.accuracy) for p in known]]  # type: ignore[index, operator]
    if known:
        axes.errorbar(x, y, spread, fmt="none", ecolor=colour, alpha=0.4, elinewidth=1, capsize=3)
        axes.plot(x, y, color=colour, marker="o", markersize=7, linewidth=1.8)
    random = [(_cost(p, kind), 100 * p.random) for p in known if p.random is not None]
    if random:
        axes.plot(*zip(*random, strict=True), color=colour, marker="o", markersize=7, markerfacecolor="white", linestyle="--", linewidth=1)
    for p in points[len(known) :]:
        axes.axvline(_cost(p, kind), color=colour, linestyle=":", linewidth=1.5)


def _label(axes: Any, kind: str, points: Iterable[Standing], labels: Mapping[str, str], colours: Mapping[str, str]) -> None:
    """Name each model at its best point and each budget at its own, where there is room."""
    from matplotlib.transforms import Bbox

    drawn = [(p, cost) for p in points if (cost := _cost(p, kind)) is not None]
    # Markers, and points along the lines; one may write on the front.
    lines = [_along(axes.transData.transform(line.get_xydata())) for line in axes.lines if line.get_zorder()]
    taken = [Bbox.from_bounds(x - 6, y - 6, 12, 12) for line in lines for x, y in line]
    best = {p.model: p for p, _ in sorted(drawn, key=lambda pair: (pair[0].accuracy or 0, pair[0].locations))}
    for p, cost in sorted(drawn, key=lambda pair: best[pair[0].model] is not pair[0]):
        named = best[p.model] is p
        text = labels[p.model] if named else ""
        if any(other is not p and other.model == p.model for other, _ in drawn):
            text = f"{text} {format_budget(p.locations)}".strip()
        if text:
            y, height = (100 * p.accuracy, "data") if p.accuracy is not None else (0.97, "axes fraction")
            placed = _place(axes, text, (cost, y), height, taken, color=colours[p.model], fontsize=11 if named else 9)
            taken.append(placed)


def _along(corners: np.ndarray) -> np.ndarray:
    """Points on a polyline, every fifth of each of its pieces."""
    where = np.linspace(0, len(corners) - 1, 5 * len(corners) - 4)
    return np.stack([np.interp(where, np.arange(len(corners)), values) for values in corners.T], 1)


def _place(axes: Any, text: str, at: tuple[float, float], height: str, taken: list[Any], **style: Any) -> Any:
    """Write beside a point, on the side where least is in the way; the box that the text takes."""
    sides = [(9, 0, "left", "center"), (-9, 0, "right", "center")]
    above_below = ((10, "bottom"), (-10, "top"), (24, "bottom"), (-24, "top"))
    sides += [(dx, dy, ha, va) for dy, va in above_below for dx, ha in ((0, "center"), (8, "left"), (-8, "right"))]
    room, tries = axes.bbox, []
    for rank, (dx, dy, ha, va) in enumerate(sides):
        note = axes.annotate(text, at, (dx, dy), ("data", height), "offset points", ha=ha, va=va, **style)
        box = note.get_window_extent(axes.figure.canvas.get_renderer())
        outside = not (room.x0 <= box.x0 and box.x1 <= room.x1 and room.y0 <= box.y0 and box.y1 <= room.y1)
        tries.append((box.count_overlaps(taken) + 2 * outside, rank, note, box))
    chosen = min(tries, key=lambda attempt: attempt[:2])
    for attempt in tries:
        if attempt is not chosen:
            attempt[2].remove()
    return chosen[3]

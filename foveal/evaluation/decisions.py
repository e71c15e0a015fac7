"""Decision thresholds: which probability of a class is enough to predict it.

A class that is rare, or that must not be missed, is predicted from a probability other than the one at which it is the
most probable class. The threshold is found on validation images, for a wanted recall, precision or specificity of the
class against the rest.

Example:
    >>> true = np.array([True, False, True, False, True])
    >>> scores = np.array([0.9, 0.5, 0.4, 0.2, 0.1])
    >>> curve = threshold_curve(true, scores)
    >>> round(threshold_at("recall", 0.6, curve), 2), round(threshold_at("precision", 0.6, curve), 2)
    (0.3, 0.05)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

import numpy as np
import torch

from foveal.data import DataModule, Dataset
from foveal.data.module import class_key
from foveal.display import NAME, Column, Table, counted, percent, printable, significant, stacked
from foveal.errors import ConfigError, DataError
from foveal.evaluation.drawing import BLUE, INK, ORANGE, finish, png_figure, verbatim
from foveal.evaluation.protocol import DEFAULT, Setting, Strategy, validation_bench
from foveal.evaluation.results import INTERVALS, Result
from foveal.metrics import Answers, Metric, proportion
from foveal.prediction.predictor import Model
from foveal.tasks import MULTILABEL

if TYPE_CHECKING:
    from rich.console import Group

Aim = Literal["recall", "precision", "specificity"]
AIMS: tuple[Aim, ...] = get_args(Aim)


@dataclass(frozen=True, kw_only=True)
class DecisionThreshold:
    """The threshold of a class, and what it gives on the images on which it was found.

    Attributes:
        label: the class.
        threshold: the least probability at which it is predicted.
        at: the aim, ``recall=0.99``.
        positives, negatives: images with and without the class.
        metrics: ``recall``, ``precision`` and ``specificity``, with Wilson's interval.
        curve: (threshold, recall, precision, specificity) at each distinct probability, for the picture.
    """

    label: str
    threshold: float
    at: str
    positives: int
    negatives: int
    metrics: dict[str, Metric]
    curve: tuple[tuple[float, float, float, float], ...]


@dataclass(frozen=True, kw_only=True)
class Decisions(Result):
    """Result of `fit_threshold`."""

    file: ClassVar[str] = "threshold.json"
    picture: ClassVar[str] = "threshold.png"

    thresholds: tuple[DecisionThreshold, ...]

    def table(self, wide: bool = False) -> Group:
        columns = [
            Column("class", lambda one: printable(one.label), NAME),
            Column("predicted from, %", lambda one: significant(100 * one.threshold, 4)),
            Column("with it", lambda one: f"{one.positives:,}"),
            *(Column(f"{name}, %", _shown(name)) for name in AIMS),
        ]
        about = self.about
        images = counted(about["images"], "image")
        heading = f"{about['model']} on {about['data']}, {about['split']}: {images}, for {self.thresholds[0].at}"
        few = [printable(one.label) for one in self.thresholds if min(one.positives, one.negatives) < 30]
        note = f"Fewer than 30 images with or without {', '.join(few)}: mind the intervals." if few else ""
        return stacked(Table(heading, columns, self.thresholds), INTERVALS, note)

    def draw(self, file: Path) -> None:
        """Recall, precision and specificity against the threshold; a panel for each class."""
        shown = self.thresholds[:12]
        with png_figure(file, 4.2 * min(len(shown), 3), 3.4 * -(-len(shown) // 3)) as figure:
            panels = figure.subplots(-(-len(shown) // 3), min(len(shown), 3), squeeze=False).ravel()
            for axes, one in zip(panels, shown, strict=False):
                at, *values = np.array(one.curve).T
                for name, value, colour in zip(AIMS, values, (BLUE, ORANGE, INK), strict=True):
                    axes.step(100 * at, 100 * value, where="pre", color=colour, label=name, linewidth=1.5)
                axes.axvline(100 * one.threshold, color=INK, linestyle=":")
                axes.set_title(verbatim(printable(one.label)), fontsize=9, loc="left")
                finish(axes, xlabel="predicted from a probability of, %", ylabel="%")
            for axes in panels[len(shown) :]:
                axes.remove()


def fit_threshold(
    model: Model,
    data: DataModule,
    at: str,
    *,
    label: str | None = None,
    locations: int | Sequence[int] | None = None,
    setting: Setting = DEFAULT,
) -> Decisions:
    """Find decision thresholds on validation images.

    Args:
        model: a classifier, a dense network, or a run folder.
        data: images with labels.
        at: the aim: ``recall=0.99``, ``precision=0.9`` or ``specificity=0.95``.
        label: the class; if None, the rarer of two classes in the split, or every label of a multilabel model.
        locations: looks per grid at each level; the model's own if None.
        setting: which images, and how; the split is ``"val"`` if None.

    Raises:
        ConfigError: an aim that is unknown or cannot be reached, or no such class; or there are several classes and
            none is given.
        DataError: no validation images, or none with or without the class; or other classes than the model's.
    """
    aim, wanted = parse_aim(at)
    bench = validation_bench([model], data, setting)
    ((name, classifier),) = bench.models.items()
    data = replace(data, classes=classifier.class_names or data.classes)  # as the run writes them
    chosen = _classes(bench.images, data.classes, label)
    strategy = Strategy(classifier.resolve_locations(locations), classifier.usual_policy)
    step = setting.steps("validation", strategy.looks * len(bench.loader([])))
    scores = bench.score(classifier, [strategy], on_step=step, keep_logits=True).scores[0]
    assert scores.logits is not None
    answers = Answers.of(scores.logits, torch.from_numpy(scores.answers.target), keep_probabilities=True)
    about = {
        "model": name,
        "images": len(answers),
        "locations": list(strategy.locations),
        "policy": strategy.policy,
        **bench.circumstances(),
    }
    found = [_fit(answers, index, data, aim, wanted, at) for index in chosen]
    return Decisions(about=about, thresholds=tuple(found), errors=bench.failed())


def parse_aim(text: str) -> tuple[Aim, float]:
    """An aim such as ``recall=0.99``, as a name and a share.

    Raises:
        ConfigError: it is none.

    >>> parse_aim("recall=0.99")
    ('recall', 0.99)
    """
    name, _, value = str(text).partition("=")
    aim = next((each for each in AIMS if each == name.strip()), None)
    try:
        share = float(value)
    except ValueError:
        share = -1.0
    if aim is None or not 0 < share <= 1:
        what = f"give {', '.join(AIMS)} and a share above 0 and up to 1, as recall=0.99"
        raise ConfigError(f"`at` {text}: is not an aim; {what}")
    return aim, share


def threshold_at(aim: Aim, wanted: float, curve: np.ndarray) -> float | None:
    """The threshold that reaches an aim with the best of the other shares.

    For a recall it is the highest possible threshold; for a precision or a specificity the lowest. It is halfway
    between two scores, so that rounding does not decide about an image.

    Args:
        aim: what is to be reached.
        wanted: the least share, 0 to 1.
        curve: see `threshold_curve`.

    Returns:
        The threshold; None if no threshold reaches the aim.
    """
    reached = np.flatnonzero(curve[:, 1 + AIMS.index(aim)] >= wanted - 1e-12)
    if not len(reached):
        return None
    # The curve is by falling threshold.
    return float(curve[reached[0] if aim == "recall" else reached[-1], 0])


def threshold_curve(true: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Recall, precision and specificity at all thresholds at which an image or more is found.

    Args:
        true: (N,) bool, whether the class holds; both occur.
        scores: (N,) its probability.

    Returns:
        (T, 4): threshold, recall, precision and specificity, by falling threshold.
    """
    distinct, rank = np.unique(-scores, return_inverse=True)
    levels = -distinct
    found = np.cumsum(np.bincount(rank, true))
    passed = np.arange(1, len(scores) + 1)[np.cumsum(np.bincount(rank)) - 1]
    middles = (levels + np.append(levels[1:], 0)) / 2
    # There may be no number between two scores.
    thresholds = np.where(middles > np.append(levels[1:], -1), middles, levels)
    return np.stack([thresholds, found / true.sum(), found / passed, 1 - (passed - found) / (~true).sum()], 1)


def _classes(images: Dataset, names: Sequence[str], label: str | None) -> list[int]:
    """The classes that get a threshold, see `fit_threshold`. All images are counted, also with a limit."""
    if label is not None:
        known = list(map(class_key, names))
        if class_key(str(label)) not in known:
            raise ConfigError(f"`label` {label}: there is no such class; use one of {', '.join(names)}")
        return [known.index(class_key(str(label)))]
    if images.task.name == MULTILABEL.name:
        return list(range(len(names)))
    if len(names) != 2:
        raise ConfigError(f"`label`: there are {len(names)} classes; name the one to be decided by a threshold")
    first, second = images.counts()
    return [int(second <= first)]


def _fit(answers: Answers, index: int, data: DataModule, aim: Aim, wanted: float, at: str) -> DecisionThreshold:
    assert answers.probabilities is not None
    name, true, scores = data.classes[index], answers.marks[0][:, index], answers.probabilities[:, index]
    positives = int(true.sum())
    if not 0 < positives < len(true):
        what = "no validation image has" if not positives else "every validation image has"
        raise DataError(f"{data.name}: {what} the class {name!r}; hold out images with and without it")
    curve = threshold_curve(true, scores)
    threshold = threshold_at(aim, wanted, curve)
    if threshold is None:
        best = percent(float(curve[:, 1 + AIMS.index(aim)].max()))
        raise ConfigError(f"`at` {at}: no threshold reaches it for {name!r}, the best is {best} %; ask for less")
    predicted = scores >= threshold
    metrics = {
        "recall": proportion(predicted[true]),
        "precision": proportion(true[predicted]),
        "specificity": proportion(~predicted[~true]),
    }
    return DecisionThreshold(
        label=name,
        threshold=threshold,
        at=at,
        positives=positives,
        negatives=len(true) - positives,
        metrics=metrics,
        curve=tuple(map(tuple, curve.tolist())),
    )


def _shown(name: str) -> Callable[[DecisionThreshold], str]:
    return lambda one: percent(*one.metrics[name])

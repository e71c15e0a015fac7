"""Named metrics of classification, with confidence intervals.

A metric is a function of a model's `Answers`. It is registered with the header of its column, and may then be chosen by
its name in all evaluations. Intervals are of 95 %: Wilson's for proportions; the normal one for means and, on the scale
of the logit, for areas under curves; otherwise percentiles of a bootstrap over images.

Example:
    >>> import torch
    >>> answers = Answers.of(torch.tensor([[9.0, 0.0], [9.0, 0.0], [0.0, 1.0], [3.0, 0.0]]), torch.tensor([0, 1, 1, 0]))
    >>> found = compute_metrics(answers, ["accuracy", "nll", "auroc"])
    >>> found["accuracy"].value, [round(bound, 2) for bound in found["accuracy"].interval], round(found["nll"].value, 2)
    (0.75, [0.3, 0.95], 2.34)
    >>> found["auroc"].value
    0.625
    >>> [round(x, 3) for x in wilson(90, 100)]
    [0.826, 0.945]
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from foveal.display import fixed, percent
from foveal.errors import ConfigError
from foveal.tasks import Task, task_of

BINS = 15
"""Bins of the expected calibration error."""
ROWS = 4096
"""Images whose logits are converted to float64 at a time."""
RESAMPLES = 1000
"""Resamples of a bootstrap."""
RANKED_CLASSES = 20
"""The most classes for which metrics of rankings are computed unless they are chosen: they need every probability."""
_CHUNK = 4_000_000


class Metric(NamedTuple):
    """The value of a metric.

    Attributes:
        value: the value; None if it is undefined.
        interval: its 95 % confidence interval; None if there is none.
    """

    value: float | None = None
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Answers:
    """A model's predictions for N images, with their targets.

    Attributes:
        task: the task, whose thresholds decide.
        classes: number of classes.
        target, predicted: (N,) int64, the class and the predicted one; or (N, classes) bool, the labels.
        in_top5: (N,) bool, whether the class is among the five most probable ones; all false for labels.
        confidence: (N,) float64, the probability of the predicted class; or (N, classes), of the decision on each
            label.
        nll: (N,) float64, negative log-likelihood of the target, in nats; for labels their mean.
        probabilities: (N, classes) float64; None unless they were to be kept.
    """

    task: Task
    classes: int
    target: np.ndarray
    predicted: np.ndarray
    in_top5: np.ndarray
    confidence: np.ndarray
    nll: np.ndarray
    probabilities: np.ndarray | None = None

    @classmethod
    def of(
        cls,
        logits: Tensor,
        target: Tensor,
        temperature: float = 1.0,
        *,
        task: Task | None = None,
        keep_probabilities: bool | None = None,
    ) -> Answers:
        """Answers from logits and targets.

        Args:
            logits: (N, classes), which are divided by the temperature.
            target: (N,) classes, or (N, classes) labels.
            temperature: see `foveal.evaluation.fit_temperature`.
            task: a task with thresholds; the task of the targets if None.
            keep_probabilities: whether to keep all probabilities, 8 bytes each; if None, up to `RANKED_CLASSES`.
        """
        classes, parts, task = logits.shape[1], [], task or task_of(target)
        keep = classes <= RANKED_CLASSES if keep_probabilities is None else keep_probabilities
        for z, t in zip(logits.split(ROWS), target.split(ROWS), strict=True):
            scaled = z.double() / temperature
            p = task.probabilities(scaled)
            predicted, nll = task.decide(p), task.loss(scaled, t, reduction="none")
            if t.ndim == 1:
                top = (z.topk(min(5, classes), dim=1).indices == t[:, None]).any(1)
                confidence = p.gather(1, predicted[:, None]).squeeze(1)
            else:
                t, top, confidence = t.bool(), torch.zeros(len(t), dtype=torch.bool), torch.where(predicted, p, 1 - p)
            columns = [of.numpy() for of in (t, predicted, top, confidence, nll, *([p] if keep else []))]
            parts.append(cls(task, classes, *columns))
        return cls.cat(parts)

    @classmethod
    def cat(cls, parts: Sequence[Answers]) -> Answers:
        """Concatenate answers, one part or more."""
        columns = zip(*(part._columns() for part in parts), strict=True)
        return Answers(parts[0].task, parts[0].classes, *map(np.concatenate, columns))

    def take(self, rows: np.ndarray) -> Answers:
        """Answers for some of the images, by index or mask."""
        return Answers(self.task, self.classes, *(column[rows] for column in self._columns()))

    @property
    def correct(self) -> np.ndarray:
        """(N,) bool, whether the predicted class, or every label, is the target."""
        same = self.predicted == self.target
        return same if same.ndim == 1 else same.all(1)

    @cached_property
    def marks(self) -> tuple[np.ndarray, np.ndarray]:
        """(N, classes) bool each: the classes that hold, and those predicted."""
        if self.target.ndim == 2:
            return self.target, self.predicted
        every = np.arange(self.classes)
        return self.target[:, None] == every, self.predicted[:, None] == every

    @cached_property
    def samples(self) -> _Counts:
        """Numbers of images of the answers in the first row, and of their resamples in the others."""
        return _samples(self)

    @cached_property
    def positive(self) -> int | None:
        """The class of which two-class metrics speak: of two classes the rarer one, the second if they are equal."""
        if self.target.ndim == 2 or self.classes != 2:
            return None
        return int(2 * self.target.sum() <= len(self.target))

    def __len__(self) -> int:
        return len(self.target)

    def _columns(self) -> tuple[np.ndarray, ...]:
        own = self.target, self.predicted, self.in_top5, self.confidence, self.nll
        return own if self.probabilities is None else (*own, self.probabilities)


# ---- the registry


class Definition(NamedTuple):
    """A registered metric.

    Attributes:
        compute: computes the metric of one image or more.
        header: header of its column in a table.
        decimals: digits after the decimal point; if None, a share is printed in per cent with its interval.
        of_confidence: whether it depends on the temperature of the softmax.
        default: whether it is computed unless metrics are chosen.
        ranks: whether it needs all probabilities.
        lower_is_better: whether a smaller value is better.
        brief: whether it is part of tables that are not wide.
    """

    compute: Callable[[Answers], Metric]
    header: str
    decimals: int | None = None
    of_confidence: bool = False
    default: bool = True
    ranks: bool = False
    lower_is_better: bool = False
    brief: bool = True

    def show(self, metric: Metric) -> str:
        """The metric as text for a table."""
        return percent(*metric) if self.decimals is None else fixed(metric.value, self.decimals)


METRICS: dict[str, Definition] = {}


def metric(
    header: str,
    *,
    decimals: int | None = None,
    of_confidence: bool = False,
    default: bool = True,
    ranks: bool = False,
    lower_is_better: bool = False,
    brief: bool = True,
) -> Callable:
    """Register a function of `Answers` as a metric by its name; arguments as of `Definition`."""

    def register_metric(compute: Callable[[Answers], Metric]) -> Callable[[Answers], Metric]:
        METRICS[compute.__name__] = Definition(
            compute, header, decimals, of_confidence, default, ranks, lower_is_better, brief
        )
        return compute

    return register_metric


def choose_metrics(names: Sequence[str] | None, classes: int) -> tuple[str, ...]:
    """Names of the metrics to compute: accuracy, then the chosen ones.

    Args:
        names: metrics; if None, the default ones. Those of rankings are default up to `RANKED_CLASSES`.
        classes: number of classes.

    Raises:
        ConfigError: there is no metric of a name.
    """
    if names is None:
        return tuple(
            name for name, one in METRICS.items() if one.default and not (one.ranks and classes > RANKED_CLASSES)
        )
    for name in names:
        check_metric("metrics", name)
    return tuple(dict.fromkeys(["accuracy", *names]))


def check_metric(argument: str, name: str) -> None:
    """Check that a metric is registered, or register one of torchmetrics by its name, such as ``CohenKappa``.

    Args:
        argument: the argument that names it, for the error.
        name: its name.

    Raises:
        ConfigError: there is none.
    """
    if name not in METRICS and not _register_from_torchmetrics(str(name)):
        near = difflib.get_close_matches(str(name), METRICS, 1)
        hint = f"did you mean {near[0]}" if near else f"use one of {', '.join(METRICS)}"
        raise ConfigError(f"`{argument}` {name}: there is no metric of this name; {hint}")


def _register_from_torchmetrics(name: str) -> bool:
    """Register a metric by the name of its classes in torchmetrics, without ``Multiclass`` and ``Multilabel``.

    It has no interval, and torchmetrics' precision: most of its metrics are computed in float32. It does not use the
    thresholds of the task. Metrics that need options, or that are no single number, are not registered.
    """
    try:
        from torchmetrics import classification
    except ModuleNotFoundError:
        return False
    named = [getattr(classification, f"{prefix}{name}", None) for prefix in ("Multiclass", "Multilabel")]
    kinds = [
        kind if _is_number(kind, count) else None
        for kind, count in zip(named, ("num_classes", "num_labels"), strict=True)
    ]
    if not name[:1].isupper() or not any(kinds):
        return False

    def compute(answers: Answers) -> Metric:
        labels = answers.target.ndim == 2
        kind = kinds[labels]
        if kind is None or answers.probabilities is None:
            return Metric()
        count = {"num_labels" if labels else "num_classes": answers.classes}
        found = kind(**count)(torch.from_numpy(answers.probabilities), torch.from_numpy(answers.target).long())
        return Metric(float(found)) if found.numel() == 1 and bool(found.isfinite()) else Metric()

    lower = any(kind is not None and kind.higher_is_better is False for kind in kinds)
    METRICS[name] = Definition(compute, name, decimals=3, default=False, ranks=True, lower_is_better=lower)
    return True


def _is_number(kind: Any, count: str) -> bool:
    """Whether a class of torchmetrics needs no option but the number of classes, and computes a single number."""
    target = torch.tensor([0, 1]) if count == "num_classes" else torch.eye(2, dtype=torch.long)
    try:
        found = kind(**{count: 2})(torch.eye(2), target)
    except (TypeError, ValueError):
        return False
    return isinstance(found, Tensor) and found.numel() == 1


def compute_metrics(answers: Answers, names: Sequence[str] | None = None) -> dict[str, Metric]:
    """Metrics by name; see `choose_metrics`."""
    return {name: METRICS[name].compute(answers) for name in choose_metrics(names, answers.classes)}


def flat(metrics: Mapping[str, Metric]) -> dict[str, object]:
    """Metrics for JSON: the value by the metric's name, and the interval by ``<name>_interval``.

    The interval of the accuracy is called ``interval``.
    """
    content: dict[str, object] = {}
    for name, found in metrics.items():
        content[name] = found.value
        if found.interval is not None or found.value is None:
            content["interval" if name == "accuracy" else f"{name}_interval"] = found.interval
    return content


# ---- the metrics


@metric("accuracy, %")
def accuracy(answers: Answers) -> Metric:
    """Share of images whose predicted class is the target, or of which every label is right; Wilson's interval."""
    return proportion(answers.correct)


@metric("top 5, %", brief=False)
def top5(answers: Answers) -> Metric:
    """Share of images whose class is among the five most probable ones; undefined for five classes or fewer, and for
    labels.
    """
    return proportion(answers.in_top5) if answers.classes > 5 and answers.target.ndim == 1 else Metric()


@metric("balanced, %")
def balanced_accuracy(answers: Answers) -> Metric:
    """Mean recall of the classes that occur. A constant answer has 1 / classes, however rare a class is.

    For labels it is the mean of the recall of presence and of absence.
    """
    return _bootstrapped(answers, lambda counts: _mean(_recalls(counts)))


@metric("macro F1, %")
def macro_f1(answers: Answers) -> Metric:
    """Mean of the F1 scores of the classes that occur or are predicted."""
    return _bootstrapped(answers, lambda counts: _mean(_f1(counts)))


@metric("AUROC, %", ranks=True)
def auroc(answers: Answers) -> Metric:
    """Area under the receiver operating characteristic: mean over the classes, each against the rest.

    Of two classes it is that of the rarer one alone; the other's is the same, but for rounding.
    """
    return _area(answers, _auroc, _ranked(answers))


@metric("AP, %", ranks=True)
def average_precision(answers: Answers) -> Metric:
    """Average precision: sum of precisions at each score, weighted by the recall gained there.

    Mean over the classes, each against the rest; of two classes it is that of the rarer one alone.
    """
    return _area(answers, _average_precision, _ranked(answers))


@metric("NLL", decimals=3, of_confidence=True, lower_is_better=True, brief=False)
def nll(answers: Answers) -> Metric:
    """Mean negative log-likelihood of the targets, in nats, with the normal interval of a mean."""
    mean, count = float(answers.nll.mean()), len(answers)
    half = 1.959964 * float(answers.nll.std(ddof=1)) / math.sqrt(count) if count > 1 else math.inf
    return Metric(mean, (max(mean - half, 0.0), mean + half) if math.isfinite(half) else None)


@metric("ECE, %", of_confidence=True, lower_is_better=True, brief=False)
def ece(answers: Answers) -> Metric:
    """Expected calibration error, see `expected_calibration_error`; for labels over all decisions."""
    return Metric(expected_calibration_error(answers.confidence.ravel(), (answers.predicted == answers.target).ravel()))


def _ranked(answers: Answers) -> Sequence[int]:
    """The classes whose rankings are judged."""
    return range(answers.classes) if answers.positive is None else [answers.positive]


def _images(answers: Answers) -> np.ndarray:
    """(classes,) number of images of each class."""
    return answers.task.counts(answers.target, answers.classes)


# ---- classes


@dataclass(frozen=True)
class ClassMetrics:
    """Metrics of one class against the rest.

    Attributes:
        name: the class.
        images: how many have it.
        metrics: ``precision``, ``recall``, ``f1``, ``auroc`` and ``average_precision``; the last two only where all
            probabilities were kept.
    """

    name: str
    images: int
    metrics: Mapping[str, Metric]


def class_metrics(answers: Answers, names: Sequence[str]) -> tuple[ClassMetrics, ...]:
    """Metrics of each class, given their names."""
    true, predicted = answers.marks
    f1, images, found = _f1(answers.samples), _images(answers), []
    for index, name in enumerate(names):
        metrics = {
            "precision": proportion(true[predicted[:, index], index]),
            "recall": proportion(predicted[true[:, index], index]),
            "f1": _percentiles(f1[0, index], f1[1:, index], images[index : index + 1]),
        }
        if answers.probabilities is not None:
            metrics["auroc"] = _area(answers, _auroc, [index])
            metrics["average_precision"] = _area(answers, _average_precision, [index])
        found.append(ClassMetrics(name, int(images[index]), metrics))
    return tuple(found)


def confusion_matrix(answers: Answers) -> np.ndarray:
    """Images by (class, predicted class), or for each label by (presence, predicted presence)."""
    if answers.target.ndim == 1:
        cells = answers.target * answers.classes + answers.predicted
        return np.bincount(cells, minlength=answers.classes**2).reshape(answers.classes, answers.classes)
    cells = 2 * answers.target + answers.predicted
    return np.stack([np.bincount(column, minlength=4).reshape(2, 2) for column in cells.T])


def proportion(successes: np.ndarray) -> Metric:
    """The share of successes, (n,) bool, with Wilson's interval; undefined for none."""
    count = int(successes.sum())
    return Metric(count / len(successes), wilson(count, len(successes))) if len(successes) else Metric()


# ---- areas under curves

_Area = tuple[float, np.ndarray]
"""An area, and its derivatives with respect to the weight of each image, (N,)."""


def _area(answers: Answers, of_class: Callable[[np.ndarray, np.ndarray], _Area], which: Sequence[int]) -> Metric:
    """Mean of an area over the classes that have positives and negatives, with its interval.

    The standard error is that of the infinitesimal jackknife (Efron 1982): images are independent, and each adds the
    derivative of the area with respect to its weight. For the AUROC it is DeLong's (Biometrics 44, 1988). The interval
    is normal on the scale of the logit, as Boyd, Eng and Page recommend for average precision (ECML PKDD 2013). At 0
    and 1 it is `_end`. One positive or negative alone tells nothing about its kind: there is no interval.
    """
    if answers.probabilities is None:
        raise ConfigError("`metrics`: probabilities were not kept for the metrics of rankings; choose them by name")
    true = answers.marks[0]
    known = [c for c in which if true[:, c].any() and not true[:, c].all()]
    if not known:
        return Metric()
    values, derivatives = zip(*(of_class(true[:, c], answers.probabilities[:, c]) for c in known), strict=True)
    value, positives = float(np.mean(values)), true[:, known].sum(0)
    if not 1e-12 < value < 1 - 1e-12:
        return Metric(value, _end(value, positives))
    if min(positives.min(), len(true) - positives.max()) < 2:
        return Metric(value)
    own = np.mean([_unbiased(true[:, c], each) for c, each in zip(known, derivatives, strict=True)], axis=0)
    middle, half = math.log(value / (1 - value)), 1.959964 * math.sqrt(own @ own) / (value * (1 - value))
    return Metric(value, (1 / (1 + math.exp(half - middle)), 1 / (1 + math.exp(-half - middle))))


def _unbiased(true: np.ndarray, derivatives: np.ndarray) -> np.ndarray:
    """Derivatives of positives and of negatives with the factor that makes a variance of few unbiased."""
    count = np.where(true, true.sum(), (~true).sum())
    return derivatives * np.sqrt(count / (count - 1))


def _end(value: float, images: np.ndarray) -> tuple[float, float]:
    """The interval of a value of 0 or 1, where no error can be estimated: Wilson's for each class that occurs, with its
    images as trials; their mean.

    Args:
        value: about 0 or 1.
        images: (classes,) number of images of each.
    """
    low, high = np.mean([wilson(round(value) * n, n) for n in images.tolist() if n], axis=0)
    return min(float(low), value), max(float(high), value)


def _auroc(true: np.ndarray, scores: np.ndarray) -> _Area:
    """The probability that a positive has a higher score than a negative, where equal scores count half; and its
    derivatives with respect to the weight of each image.
    """
    group, positives, negatives = _by_score(true, scores)
    below = len(true) - true.sum() - np.cumsum(negatives) + negatives / 2
    above = np.cumsum(positives) - positives / 2
    pairs = true.sum() * (len(true) - true.sum())
    value = float((positives * below).sum() / pairs)
    own = np.where(true, below[group] / pairs - value / true.sum(), above[group] / pairs - value / (~true).sum())
    return value, own


def _average_precision(true: np.ndarray, scores: np.ndarray) -> _Area:
    """The sum over the distinct scores of the precision there times the recall gained; and its derivatives with respect
    to the weight of each image.
    """
    group, positives, negatives = _by_score(true, scores)
    found, passed = np.cumsum(positives), np.cumsum(negatives)
    both, all_positives = found + passed, true.sum()
    value = float((positives * found / both).sum() / all_positives)
    # One more positive raises the precision at its score and at all lower ones; one more negative reduces it.
    gained = np.cumsum((positives * passed / both**2)[::-1])[::-1]
    lost = np.cumsum((positives * found / both**2)[::-1])[::-1]
    own = np.where(true, (found / both + gained)[group] - value, -lost[group]) / all_positives
    return value, own


def _by_score(true: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The rank of each image's score among the distinct ones, from the highest; and positives and negatives by rank."""
    group = np.unique(-scores, return_inverse=True)[1]
    positives = np.bincount(group, true).astype(np.float64)
    return group, positives, np.bincount(group) - positives


# ---- the bootstrap


class _Counts(NamedTuple):
    """Numbers of images in R samples, (R, classes) each but ``images``: (R, 1)."""

    true: np.ndarray
    predicted: np.ndarray
    both: np.ndarray
    images: np.ndarray
    multilabel: bool


Statistic = Callable[[_Counts], np.ndarray]
"""(R, ...) values of R samples; NaN where it is undefined."""


def _bootstrapped(answers: Answers, statistic: Statistic) -> Metric:
    """The value of a statistic, with its interval."""
    values = statistic(answers.samples)
    return _percentiles(values[0], values[1:], _images(answers))


def _samples(answers: Answers) -> _Counts:
    """Numbers of images of the answers, and of `RESAMPLES` resamples of them.

    Images with the same target and prediction count the same, so that their numbers are drawn rather than images.
    """
    columns = [of.reshape(len(answers), -1) for of in (answers.target, answers.predicted)]
    _, first, counts = np.unique(np.hstack(columns), axis=0, return_index=True, return_counts=True)
    kinds = answers.take(first)
    rng, chunk = np.random.default_rng(0), max(1, _CHUNK // max(len(first), answers.classes))
    draws = (
        rng.multinomial(len(answers), counts / len(answers), min(chunk, RESAMPLES - start))
        for start in range(0, RESAMPLES, chunk)
    )
    parts = [_count(kinds, weights) for weights in (counts[None], *draws)]
    true, predicted, both, images = (np.concatenate(rows) for rows in list(zip(*parts, strict=True))[:4])
    return _Counts(true, predicted, both, images, parts[0].multilabel)


def _percentiles(value: np.ndarray, resampled: np.ndarray, images: np.ndarray) -> Metric:
    """A statistic, with the 2.5 and 97.5 % percentiles of its values for resamples; at 0 and 1 see `_end`."""
    found = float(value)
    if math.isnan(found):
        return Metric()
    if not 1e-12 < found < 1 - 1e-12:
        return Metric(found, _end(found, images) if images.any() else None)
    low, high = np.nanpercentile(resampled, (2.5, 97.5))
    # A value near the end of its range can be outside of the percentiles.
    return Metric(found, (min(float(low), found), max(float(high), found)))


def _count(answers: Answers, weights: np.ndarray) -> _Counts:
    """Numbers of images in R samples that hold each image as often as (R, N) weights say."""
    images, classes = weights.sum(1, keepdims=True), answers.classes
    if answers.target.ndim == 2:
        marks, floats = answers.marks, weights.astype(np.float64)  # BLAS multiplies floats
        true, predicted, both = (floats @ of.astype(np.float64) for of in (*marks, marks[0] & marks[1]))
        return _Counts(true, predicted, both, images, True)
    right = answers.correct
    true, predicted = (_totals(weights, of, classes) for of in (answers.target, answers.predicted))
    return _Counts(true, predicted, _totals(weights[:, right], answers.target[right], classes), images, False)


def _totals(weights: np.ndarray, of: np.ndarray, classes: int) -> np.ndarray:
    """(R, classes) sums of (R, N) weights by the class of each image, (N,)."""
    order = np.argsort(of, kind="stable")
    present, starts = np.unique(of[order], return_index=True)
    totals = np.zeros((len(weights), classes))
    if len(present):
        totals[:, present] = np.add.reduceat(weights[:, order], starts, axis=1)
    return totals


def _recalls(counts: _Counts) -> np.ndarray:
    """(R, classes) recall; for labels the mean of that of presence and of absence."""
    found = _ratio(counts.both, counts.true)
    if not counts.multilabel:
        return found
    absent = counts.images - counts.true
    return (found + _ratio(absent - counts.predicted + counts.both, absent)) / 2


def _f1(counts: _Counts) -> np.ndarray:
    """(R, classes) F1 score; NaN for classes that neither occur nor are predicted."""
    return _ratio(2 * counts.both, counts.true + counts.predicted)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Quotients; NaN where the whole is 0."""
    return np.divide(part, whole, out=np.full(np.broadcast(part, whole).shape, np.nan), where=whole != 0)


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean over the last dimension without NaN; NaN where there is nothing else."""
    known = ~np.isnan(values)
    return _ratio(np.where(known, values, 0).sum(-1), known.sum(-1))


# ---- calibration


def expected_calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = BINS) -> float:
    """Mean distance between confidence and accuracy, over bins of confidence weighted by their images.

    Equation 3 of Guo et al. 2017 (arXiv 1706.04599), after Naeini, Cooper and Hauskrecht (AAAI 2015). Bin m of M
    equally wide bins holds the confidences in ((m - 1) / M, m / M].

    Args:
        confidence: (N,) probability of the predicted class, N at least 1.
        correct: (N,) whether it is the label.
        bins: M.

    Returns:
        0 to 1.
    """
    which = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    # The number of images in a bin cancels.
    return float(np.abs(np.bincount(which, correct - confidence, bins)).sum() / len(confidence))


# ---- intervals


def wilson(successes: int, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson score interval of a proportion.

    Args:
        successes: number of successes, 0 to ``trials``.
        trials: number of trials, at least 1.
        z: quantile of the standard normal distribution; default 95 %.

    Returns:
        Lower and upper bound, 0 to 1.
    """
    p, n = successes / trials, trials
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # Rounding must not put the proportion outside of the interval.
    return max(min(centre - half, p), 0.0), min(max(centre + half, p), 1.0)


def paired_interval(first: np.ndarray, second: np.ndarray, z: float = 1.959964) -> tuple[float, float]:
    """Confidence interval of the difference of two accuracies on the same images.

    Wald's interval for the difference of paired proportions, with half an image added to each of the four cells
    (Agresti and Min, "Simple improved confidence intervals for comparing matched proportions", Statistics in Medicine
    24, 2005).

    Args:
        first, second: (N,) bool, whether each image was classified correctly; N at least 1.
        z: quantile of the standard normal distribution; 95 % by default.

    Returns:
        Lower and upper bound of the accuracy of ``first`` minus that of ``second``, -1 to 1.
    """
    only_first, only_second, n = int((first & ~second).sum()), int((second & ~first).sum()), len(first) + 2
    centre = (only_first - only_second) / n
    half = z * (only_first + only_second + 1 - (only_first - only_second) ** 2 / n) ** 0.5 / n
    return max(centre - half, -1.0), min(centre + half, 1.0)

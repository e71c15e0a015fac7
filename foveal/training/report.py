"""Texts that `fit` prints before and after training, and the summary in the run folder.

Example:
    >>> summary = TrainingSummary(
    ...     step=850, epoch=3.4, seconds=161.3, ended="finished", accuracy=0.641, interval=(0.598, 0.682), images=500,
    ...     last_accuracy=0.63, validations=4, training_accuracy=0.71, commonest="3", commonest_share=0.104,
    ...     kept_step=750, averaged=False)
    >>> print(summary.result())
    run    850 updates, 3.4 epochs, in 2:41
    result accuracy 64.1 % on 500 validation images (95 % interval: 59.8 to 68.2 %)
           at step 750, the best of 4 validations; 63.0 % at the last
    >>> differences({"steps": 4, "optimiser": {"lr": 0.1}}, {"steps": 2, "optimiser": {"lr": 0.1}})
    ['steps: 2 -> 4']
"""

from __future__ import annotations

import csv
import json
import math
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import NormalDist
from textwrap import TextWrapper
from typing import Any, Literal, NamedTuple

from foveal.data import value_notes
from foveal.display import printable
from foveal.files import replacing, storing
from foveal.metrics import METRICS as METRICS_BY_NAME
from foveal.metrics import wilson
from foveal.runs import BAD_IMAGES, METRICS, SUMMARY, WEIGHTS
from foveal.tasks import join
from foveal.training.config import Training
from foveal.training.learner import ENDLESS, Learner
from foveal.training.optimisation import lr_factor
from foveal.training.policy_gap import PolicyGap
from foveal.training.progress import as_duration, print_safely

Ended = Literal["finished", "interrupted", "diverged"]

# --------------------------------------------------------------------------------------------------- before a run


def describe(learner: Learner, out: Path, updates: int) -> str:
    """Describe model, data and length of a run before it starts, in a few lines.

    Args:
        learner: model, data and settings.
        out: run folder.
        updates: number of updates of the run; `ENDLESS` if it is limited by time only.
    """
    model, data, training = learner.model, learner.data, learner.config
    name = model.label
    backbone = f" on {model.spec['backbone']}" if model.spec.get("backbone") else ""
    beyond = f", {','.join(map(str, model.locations))} beyond the first" if model.locations else ""
    splits = {split: getattr(data, split) for split in ("train", "val", "test")}
    counts = ", ".join(f"{len(images):,} {split}" for split, images in splits.items() if images is not None)
    ends = ((training.epochs, "epoch"), (training.steps, "step"), (training.max_time, "second"))
    length = " or ".join(f"{value:g} {unit}{_s(value)}" for value, unit in ends if value is not None)
    length += f" ({updates:,} updates)" if training.epochs and updates < ENDLESS else ""
    count = sum(p.numel() for p in model.parameters())
    lines = _labelled(
        {
            "model": f"{name}{backbone}: {count:,} parameters",
            "looks": f"{model.size[0]} x {model.size[1]} px{beyond}",
            "data": f"{data.name}: {counts} images, {len(data.classes)} classes",
            "run": f"{length} in batches of {training.batch_size}, on {training.device}, in {out}",
        }
    )
    return "\n".join(
        [lines, *(_labelled({"note": printable(note)}, wrap=False) for note in (*data.notes, *value_notes(data)))]
    )


def differences(new: Mapping[str, Any], old: Mapping[str, Any]) -> list[str]:
    """Changed values of two configurations, as ``key: old -> new``."""
    now, before = _by_flag(new), _by_flag(old)
    changed = [key for key in {**now, **before} if now.get(key) != before.get(key)]
    return [f"{key}: {before.get(key)} -> {now.get(key)}" for key in changed]


def _by_flag(config: Mapping[str, Any]) -> dict[str, Any]:
    """Values of a configuration by dotted keys such as ``optimiser.lr``."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        found |= {f"{key}.{name}": part for name, part in value.items()} if isinstance(value, Mapping) else {key: value}
    return found


# ---------------------------------------------------------------------------------------------------- after a run


@dataclass(frozen=True)
class TrainingSummary:
    """The outcome of training, stored as ``summary.json`` in the run folder.

    Attributes:
        step: number of updates.
        epoch: number of passes over the training images.
        seconds: time of training and validation, including the time before the run was resumed.
        ended: ``finished``; ``interrupted`` by a signal; or ``diverged``: loss or weights became NaN or infinite.
        accuracy: accuracy of the best validation, 0 to 1; None if nothing was validated.
        interval: 95 % Wilson interval of ``accuracy``.
        images: number of validation images that could be read.
        last_accuracy: accuracy of the last validation.
        validations: number of validations.
        training_accuracy: mean over the images of the last updates; None if no image could be read.
        commonest: the most frequent class, or labels, of the validation images; of the training images if nothing was
            validated.
        commonest_share: its share of these images, 0 to 1. This is the accuracy of always predicting this class.
        kept_step: number of updates of the weights in ``model.safetensors``.
        averaged: whether these weights are the moving average.
        left_out: number of skipped batches of one image, see `foveal.training.norms`.
        unread: number of images that could not be read.
        out_of_time: whether the run was ended by ``max_time`` and not by epochs or steps.
        out_of_patience: whether the run was ended by ``patience``.
        monitor: name of the metric that decided which weights are kept.
        monitored: its value at the best validation; None if it is the accuracy, or undefined.
        policy: learned looks compared with random ones on validation images, see `foveal.training.policy_gap`; None if
            the run did not finish, trained in several processes, or has no such looks.
        warnings: warnings about the result, one sentence each.
    """

    step: int
    epoch: float
    seconds: float
    ended: Ended
    accuracy: float | None
    interval: tuple[float, float] | None
    images: int
    last_accuracy: float | None
    validations: int
    training_accuracy: float | None
    commonest: str
    commonest_share: float
    kept_step: int
    averaged: bool
    left_out: int = 0
    unread: int = 0
    out_of_time: bool = False
    out_of_patience: bool = False
    monitor: str = "accuracy"
    monitored: float | None = None
    policy: PolicyGap | None = None
    warnings: Sequence[str] = ()

    def write(self, out: Path) -> None:
        """Write ``summary.json`` into a run folder."""
        with storing(out / SUMMARY), replacing(out / SUMMARY) as unfinished:
            unfinished.write_text(json.dumps(asdict(self), indent=2) + "\n")

    def result(self) -> str:
        """Length of the run and accuracy of the model, in a few lines of 80 columns."""
        how = "ended by max_time" if self.out_of_time else "ended by patience" if self.out_of_patience else self.ended
        length = f"{self.step:,} update{_s(self.step)}, {self.epoch:.4g} epochs, in {as_duration(self.seconds)}"
        length += "" if how == "finished" else f", {how}"
        if self.accuracy is None or self.interval is None:
            none = ": there are no validation images that can be read"
            result = f"nothing was validated{none if self.ended == 'finished' else ' before the run ended'}"
            if self.training_accuracy is not None:
                result += f"\naccuracy {_percent(self.training_accuracy)} on the training images of the last updates"
        else:
            low, high = (f"{100 * bound:.1f}" for bound in self.interval)
            result = f"accuracy {_percent(self.accuracy)} on {self.images:,} validation images"
            result += f" (95 % interval: {low} to {high} %)\n"
            result += f"at step {self.kept_step:,}, the best of {self.validations} validation{_s(self.validations)}"
            by_metric = self.monitored is not None
            result += f" by {self.monitor}, {self.monitored:.3f}" if by_metric else ""
            if self.last_accuracy is not None and self.validations > 1:
                result += "\naccuracy " if by_metric else "; "
                result += f"{_percent(self.last_accuracy)} at the last"
        return _labelled({"run": length, "result": result})

    def show(self, out: Path, brief: bool = False) -> None:
        """Print the result, and the warnings on stderr.

        Args:
            out: run folder.
            brief: do not print which weights were saved, and the next commands.
        """
        print_safely(self.result())
        if not brief:
            folder = shlex.quote(str(out))
            use = f"evaluate {folder}", f"predict {folder} IMAGES --out labels.csv", f"explain {folder} IMAGE"
            go_on = f"foveal fit --resume --out {folder}"
            following = {
                "finished": "\n".join(f"foveal {command}" for command in use),
                "interrupted": go_on,
                "diverged": f"{go_on} --optimiser.lr LOWER",
            }
            kept = f"{'averaged ' * self.averaged}weights of step {self.kept_step:,} in {out / WEIGHTS}"
            print_safely(_labelled({"kept": kept, "next": following[self.ended]}, wrap=False))
        # Wrapped here, because a terminal wraps within words.
        wrapper = TextWrapper(shutil.get_terminal_size().columns, break_long_words=False, break_on_hyphens=False)
        for warning in self.warnings:
            text = f"foveal: {warning}"
            print_safely(wrapper.fill(text) if sys.stderr.isatty() else text, sys.stderr)


class _Score(NamedTuple):
    """Accuracy, 0 to 1, with the number of updates before and the number of images."""

    step: int
    accuracy: float
    images: int

    def interval(self, z: float = 1.959964) -> tuple[float, float]:
        return wilson(round(self.accuracy * self.images), self.images, z)


def facts(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Values of a checkpoint for `summarise`, without weights, so that the checkpoint can be freed."""
    groups = checkpoint["optimizer_states"][0]["param_groups"]
    return {
        "step": checkpoint["global_step"],
        "elapsed": checkpoint.get("elapsed", 0.0),
        "left_out": checkpoint.get("left_out", 0),
        "averaged": "average" in checkpoint,
        "lr_share": max((group["lr"] / group["base_lr"] for group in groups if group["base_lr"]), default=0.0),
        **checkpoint["callbacks"].get("Checkpoints", {}),
        "window": checkpoint["callbacks"].get("Metrics", {}),
    }


def summarise(
    learner: Learner,
    out: Path,
    ended: Ended,
    last: Mapping[str, Any],
    kept: Mapping[str, Any],
    policy: PolicyGap | None = None,
) -> TrainingSummary:
    """Summarise a run from the files in its folder.

    Args:
        learner: the learner of the run.
        out: run folder.
        ended: how the run ended.
        last: `facts` of the last checkpoint.
        kept: `facts` of the checkpoint with the saved weights.
        policy: learned looks compared with random ones, with these weights.
    """
    config, step = learner.config, last["step"]
    best = _score(kept, "best", learner) if learner.validates else None
    end = _score(last, "last", learner) or best if best else None
    scores = _training_scores(out / METRICS, config, last)
    images = learner.data.split("val" if best else "train")
    commonest, share = images.task.commonest(images.targets)
    by_steps = step * config.accumulate >= learner.total_batches
    out_of_patience = ended == "finished" and not by_steps and config.out_of_patience(last.get("waited", 0))
    found = TrainingSummary(
        step=step,
        epoch=step * config.accumulate / learner.batches_per_epoch,
        seconds=last["elapsed"],
        ended=ended,
        out_of_patience=out_of_patience,
        out_of_time=ended == "finished" and config.max_time is not None and not by_steps and not out_of_patience,
        accuracy=best.accuracy if best else None,
        interval=best.interval() if best else None,
        images=best.images if best else 0,
        last_accuracy=end.accuracy if end else None,
        validations=max(last.get("validations", 0), 1) if best else 0,
        training_accuracy=scores[-1].accuracy if scores else None,
        commonest=join([learner.data.classes[i] for i in commonest]),
        commonest_share=share,
        kept_step=kept["step"],
        averaged=kept["averaged"],
        left_out=last["left_out"],
        monitor=config.monitor,
        monitored=_monitored(kept, config) if best else None,
        unread=_lines_of(out / BAD_IMAGES),
        policy=policy,
    )
    judged = [best, end] if best and end else scores
    return replace(found, warnings=tuple(_warnings(found, learner, judged, last["lr_share"], out)))


def _score(facts: Mapping[str, Any], which: str, learner: Learner) -> _Score | None:
    """The best or last validation of a checkpoint. Older checkpoints lack the last one and the number of images."""
    if facts.get(which) is None or learner.data.val is None:
        return None
    return _Score(facts["step"], facts[which][0], facts.get("images") or len(learner.data.val))


def _monitored(facts: Mapping[str, Any], config: Training) -> float | None:
    """The monitored metric of the best validation of a checkpoint; None if it is the accuracy, or undefined."""
    signed = dict(enumerate(facts["best"])).get(2)
    if signed is None or not math.isfinite(signed):
        return None
    return -signed if config.monitor == "loss" or METRICS_BY_NAME[config.monitor].lower_is_better else signed


def _warnings(
    found: TrainingSummary, learner: Learner, scores: Sequence[_Score], lr_share: float, out: Path
) -> Iterator[str]:
    """Warnings about a result.

    Args:
        found: the summary so far.
        learner: the learner of the run.
        scores: validations, or training accuracies if nothing was validated, in order.
        lr_share: learning rate of the last update divided by the highest.
        out: run folder.
    """
    if scores:
        yield from _warnings_of_accuracy(found, max(scores, key=lambda score: score.accuracy), scores[-1])
    optimiser = learner.config.optimiser
    more = "continue by `resume`" if found.ended == "interrupted" else "train longer"
    if found.step < optimiser.warmup:
        length = f"{found.step:,} update{_s(found.step)}, within the {optimiser.warmup:,} of `optimiser.warmup`"
        yield f"the run ended after {length}; {more}, or set a shorter warm-up"
    elif not (found.ended == "diverged" or found.out_of_patience) and lr_share > lr_factor(optimiser, ENDLESS, 1) + 0.1:
        yield f"the learning rate was still {lr_share:.0%} of its maximum when the run ended; {more}"
    if found.ended == "interrupted":
        by_time = found.seconds / learner.config.max_time if learner.config.max_time else 0.0
        by_steps = found.step * learner.config.accumulate / learner.total_batches
        now, then = learner.objective.plan(min(1.0, max(by_time, by_steps))), learner.objective.plan(1.0)
        if now != then:
            phases = f"looks: {' and '.join(map(str, now))}, later {' and '.join(map(str, then))}"
            yield f"the objective had not reached its last phase ({phases}); {more}"
    if found.validations and found.monitor != "accuracy" and found.monitored is None:
        yield (
            f"`monitor` {found.monitor} was undefined for the validation images, as it is where a class is missing; "
            "accuracy decided which weights are kept"
        )
    if found.policy and (note := found.policy.note()):
        yield note
    if found.left_out:
        batches = "1 batch was" if found.left_out == 1 else f"{found.left_out:,} batches were"
        why = "with one image, batch norm gets a single value per channel"
        yield f"{batches} left out: {why}; set a larger `batch_size`"
    if found.unread:
        yield f"{found.unread:,} image{_s(found.unread)} could not be read; see {out / BAD_IMAGES}"


def _warnings_of_accuracy(found: TrainingSummary, best: _Score, end: _Score) -> Iterator[str]:
    chance = found.commonest_share
    lost_most = best.accuracy > chance and end.accuracy - chance < 0.5 * (best.accuracy - chance)
    if lost_most and end.interval()[1] < best.interval()[0]:
        yield (
            f"accuracy fell from {_percent(best.accuracy)} at step {best.step:,} to {_percent(end.accuracy)} at the "
            "end, so training may have diverged; try a lower `optimiser.lr` or `optimiser.clip` 1"
        )
    judged = best if found.validations else end
    # The best of many validations is more often above chance by luck than a single one, so the interval is wider.
    z = NormalDist().inv_cdf(1 - 0.025 / max(found.validations, 1))
    if judged.interval(z)[0] <= chance:
        yield (
            f"an accuracy of {_percent(judged.accuracy)} is not clearly better than that of always predicting the"
            f" commonest class, {found.commonest or 'none'!r} ({_percent(chance)}); train longer, or try another"
            " `optimiser.lr`"
        )


def _training_scores(file: Path, config: Training, last: Mapping[str, Any]) -> list[_Score]:
    """Training accuracies in ``metrics.csv`` and of the updates after its last line, with approximate image counts."""
    found: list[_Score] = []
    before = 0
    for row in _rows(file):
        if row.get("accuracy"):
            step = int(row["step"])
            images = max(step - before, 1) * config.batch_size * config.accumulate
            found.append(_Score(step, float(row["accuracy"]), images))
            before = step
    window = last["window"]
    images = window.get("counts", {}).get("accuracy", window.get("images", 0))
    if images and "accuracy" in window.get("sums", {}):
        found.append(_Score(last["step"], window["sums"]["accuracy"] / images, images))
    return [score for score in found if math.isfinite(score.accuracy)]


def _lines_of(file: Path) -> int:
    return sum(1 for _ in _rows(file))


def _rows(file: Path) -> Iterator[dict[str, str]]:
    """Rows of a table; none if the file does not exist."""
    if file.is_file():
        with file.open(newline="") as lines:
            yield from csv.DictReader(lines)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _s(count: float) -> str:
    """Plural ending."""
    return "" if count == 1 else "s"


def _labelled(texts: Mapping[str, str], wrap: bool = True) -> str:
    """Lines with labels. Text is wrapped at 80 columns unless it has commands or paths."""
    wrapper = TextWrapper(80, subsequent_indent=" " * 7, break_long_words=False, break_on_hyphens=False)
    lines = []
    for label, text in texts.items():
        for i, line in enumerate(text.split("\n")):
            line = f"{'' if i else label:<7}{line}"
            lines.append(wrapper.fill(line) if wrap else line)
    return "\n".join(lines)

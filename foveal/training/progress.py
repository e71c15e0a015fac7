"""Progress of training: a bar on a terminal, otherwise a line every few seconds.

Example:
    >>> print(as_line({"step": "120/850", "epoch": "2.1", "loss": "1.342", "acc": "45.3%"}, 215.4, 161.0))
    step 120/850  epoch 2.1  loss 1.342  acc 45.3%  215 img/s  2:41 left
    >>> as_rate(0.34), as_rate(12_345.6), as_duration(3 * 3600 + 62)
    ('0.34', '12346', '3:01:02')
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, TextIO

import lightning.pytorch as pl
from rich.console import Console, RenderableType
from rich.progress import BarColumn, TaskProgressColumn, TextColumn
from rich.progress import Progress as Bars
from rich.text import Text
from torch import Tensor

from foveal.display import unfiltered
from foveal.training.learner import ENDLESS, Learner

MEMORY = 0.95  # weight of the previous batches in a running mean
REDRAW = 0.25  # seconds between two updates of the bar


def pause(elapsed: float) -> float:
    """Seconds between two lines after ``elapsed`` seconds of training, 5 to 60."""
    return min(max(5.0, elapsed / 20), 60.0)


def print_safely(text: str, stream: TextIO | None = None) -> None:
    """Print to a stream, standard output if None.

    If this fails (closed terminal or pipe, full disk), further output to the stream is discarded; training continues.
    """
    stream = stream or sys.stdout
    try:
        print(text, file=stream, flush=True)
    except OSError:
        _silence(stream)


def _silence(stream: TextIO) -> None:
    """Discard buffered and further output of a stream."""
    with suppress(OSError, ValueError):  # streams in memory have no descriptor
        descriptor = os.open(os.devnull, os.O_WRONLY)
        os.dup2(descriptor, stream.fileno())
        os.close(descriptor)


class Progress(pl.Callback):
    """Shows the progress of training from the first update.

    Shown are step, epoch, loss and accuracy (means over recent batches), accuracy of the last validation, images per
    second, and the time left, estimated from the speed of recent batches and the duration of the last validation.
    """

    def __init__(self) -> None:
        self.loss, self.accuracy, self.images, self.seconds = (_Recent() for _ in range(4))
        self.display: _Bar | _Lines | None = None
        self._validation = ""
        self._validation_seconds = 0.0
        self._since = self._shown = 0.0
        self._passes = 0

    def on_train_start(self, trainer: pl.Trainer, learner: Learner) -> None:  # type: ignore[override]
        if not trainer.is_global_zero:
            return
        console = Console(stderr=True, file=unfiltered(sys.stderr))
        with self._drawing():
            self.display = _Bar(console, learner.progress) if console.is_interactive else _Lines()
        self._since = time.monotonic()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        learner: Learner,  # type: ignore[override]
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if self.display is None:
            return
        now = time.monotonic()
        self._passes += 1
        if self._passes == 2:
            self.seconds, self.images = _Recent(), _Recent()  # the first batch is slower than the others
        self.seconds.add(now - self._since, 1)
        self.images.add(outputs["images"], 1)
        self._since = now
        for mean, key in ((self.loss, "loss"), (self.accuracy, "accuracy")):
            if key in outputs["log"]:
                mean.add(outputs["log"][key].detach(), outputs["images"])
        due = not self._shown or learner.progress >= 1 or self.display.due(now, self._shown, learner.elapsed)
        if learner.updates_after(batch_idx) and due:
            with self._drawing():
                self._show(trainer, learner, batch_idx + 1)

    def on_validation_start(self, trainer: pl.Trainer, learner: Learner) -> None:  # type: ignore[override]
        self._began = time.monotonic()

    def on_validation_batch_end(self, trainer: pl.Trainer, learner: Learner, *args: Any) -> None:  # type: ignore[override]
        now, done, total = time.monotonic(), args[2] + 1, trainer.num_val_batches[0]  # type: ignore[index]
        if self.display is not None and self.display.due(now, self._shown, learner.elapsed):
            self._shown = now
            with self._drawing():
                self.display.show(f"validating, batch {done} of {total}")

    def on_validation_end(self, trainer: pl.Trainer, learner: Learner) -> None:  # type: ignore[override]
        self._validation = f"{float(trainer.callback_metrics['val_accuracy']):.1%}"
        self._validation_seconds = time.monotonic() - self._began
        self._since += self._validation_seconds

    def _show(self, trainer: pl.Trainer, learner: Learner, done: int) -> None:
        assert self.display is not None
        self._shown = time.monotonic()
        of = "" if learner.total_batches >= ENDLESS else f"/{learner.total_batches // learner.config.accumulate}"
        values = {"step": f"{learner.step}{of}", "epoch": f"{done / learner.batches_per_epoch:.1f}"}
        # Values are copied from the device only when they are shown, so that the host does not wait at each step.
        if self.loss.weight:
            values["loss"] = f"{float(self.loss.mean):.3f}"
        if self.accuracy.weight:
            values["acc"] = f"{float(self.accuracy.mean):.1%}"
        if self._validation:
            values["val"] = self._validation
        speed = float(self.images.mean) / max(float(self.seconds.mean), 1e-9) * trainer.world_size
        self.display.show_values(values, speed, self._left(trainer, learner, done), learner.progress)

    def _left(self, trainer: pl.Trainer, learner: Learner, done: int) -> float:
        """Estimated seconds until the end of the run."""
        total, left = learner.total_batches, []
        if total < ENDLESS:
            left.append((total - done) * float(self.seconds.mean))
            if learner.validates:
                every = int(trainer.val_check_batch or total)
                left[0] += (total // every - done // every + (total % every > 0)) * self._validation_seconds
        if learner.config.max_time:
            left.append(learner.config.max_time - learner.elapsed + learner.validates * self._validation_seconds)
        return max(min(left), 0.0)

    def on_exception(self, trainer: pl.Trainer, learner: Learner, exception: BaseException) -> None:  # type: ignore[override]
        self._close()

    def teardown(self, trainer: pl.Trainer, learner: Learner, stage: str) -> None:  # type: ignore[override]
        self._close()

    def _close(self) -> None:
        if self.display is not None:
            with self._drawing():
                self.display.close()
            self.display = None

    @contextmanager
    def _drawing(self) -> Iterator[None]:
        """Stop the display if the terminal was closed."""
        try:
            yield
        except OSError:
            _silence(sys.stderr)
            self.display = None


class _Recent:
    """A running mean with exponentially decaying weights."""

    def __init__(self) -> None:
        self.total: float | Tensor = 0.0
        self.weight = 0.0

    def add(self, value: float | Tensor, weight: float) -> None:
        self.total = self.total * MEMORY + value * weight
        self.weight = self.weight * MEMORY + weight

    @property
    def mean(self) -> float | Tensor:
        return self.total / self.weight


class _Lines:
    """Prints a line every few seconds on standard error."""

    def due(self, now: float, shown: float, elapsed: float) -> bool:
        return now - shown >= pause(elapsed)

    def show(self, text: str) -> None:
        print_safely(text, sys.stderr)

    def show_values(self, values: Mapping[str, str], speed: float, left: float, share: float) -> None:
        self.show(as_line(values, speed, left))

    def close(self) -> None:
        pass


class _Bar:
    """Two lines at the bottom of a terminal: a bar, and the values below it."""

    def __init__(self, console: Console, share: float) -> None:
        columns = TextColumn("training"), BarColumn(None), TaskProgressColumn(), TextColumn("{task.fields[left]}")
        self.bars = _WithText(*columns, console=console, transient=True, refresh_per_second=4, expand=True)
        self.bars.add_task("", total=1000, completed=round(1000 * share), left="")
        self.bars.start()

    def due(self, now: float, shown: float, elapsed: float) -> bool:
        return now - shown >= REDRAW

    def show(self, text: str) -> None:
        self.bars.text = text

    def show_values(self, values: Mapping[str, str], speed: float, left: float, share: float) -> None:
        self.bars.text = as_line(values, speed)
        self.bars.update(self.bars.task_ids[0], completed=round(1000 * share), left=f"{as_duration(left)} left")

    def close(self) -> None:
        self.bars.stop()


class _WithText(Bars):
    """Bars with a line of text below them."""

    text = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        yield Text(self.text, no_wrap=True, overflow="ellipsis")


def as_line(values: Mapping[str, str], speed: float, left: float | None = None) -> str:
    """One line with named values, images per second and the time left.

    Args:
        values: values by name.
        speed: images per second; not shown if 0.
        left: seconds left; not shown if None.
    """
    parts = [f"{name} {value}" for name, value in values.items()]
    parts += [f"{as_rate(speed)} img/s"] if speed else []  # 0 if no image could be read
    return "  ".join([*parts, *([] if left is None else [f"{as_duration(left)} left"])])


def as_rate(rate: float) -> str:
    """A rate as a whole number, or with two significant digits below 10."""
    return f"{rate:.0f}" if rate >= 10 else f"{rate:.2g}"


def as_duration(seconds: float) -> str:
    """Seconds as minutes:seconds, or hours:minutes:seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"

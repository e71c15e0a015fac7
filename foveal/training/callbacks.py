"""Callbacks of training: averaged weights, metrics, progress and checkpoints.

Lightning calls them in the order of `callbacks`: weights are averaged before they are saved.

Example:
    >>> signals = StopSignals()
    >>> [type(c).__name__ for c in callbacks(Path("runs/x"), ema=0.99, quiet=True, signals=signals)]
    ['Averaging', 'Metrics', 'Attention', 'BadImages', 'Checkpoints']
    >>> [type(c).__name__ for c in callbacks(Path("runs/x"), ema=None, quiet=False, signals=signals)][-2:]
    ['Progress', 'Checkpoints']
"""

from __future__ import annotations

import csv
import io
import math
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from foveal.errors import RunError
from foveal.files import replacing, storing
from foveal.layers import AttentionLayer, attention_maps
from foveal.metrics import METRICS as METRICS_BY_NAME
from foveal.runs import ATTENTION, BAD_IMAGES, BEST, LAST, METRICS
from foveal.training.learner import Diverged, Learner
from foveal.training.loggers import sending
from foveal.training.progress import Progress
from foveal.training.stopping import Interrupted, StopSignals

_COLUMNS = (
    "step",
    "epoch",
    "seconds",
    "loss",
    "accuracy",
    "entropy",
    "lr",
    "images_per_second",
    "val_loss",
    "val_accuracy",
)
_FIGURES = ("step", "module", "figure", "value")
_BAD = ("path", "reason")


def callbacks(folder: Path, ema: float | None, quiet: bool, signals: StopSignals) -> list[pl.Callback]:
    """All callbacks of a run, in their order."""
    averaging = [Averaging(ema)] if ema else []
    records = Metrics(folder / METRICS), Attention(folder / ATTENTION), BadImages(folder / BAD_IMAGES)
    return [*averaging, *records, *([] if quiet else [Progress()]), Checkpoints(folder, signals)]


class Averaging(pl.Callback):
    """Keeps an exponential moving average of the model's weights and statistics, which is validated instead.

    It copies the model only. Lightning's callback copies the whole learner with its data.

    Args:
        decay: weight of the previous average in each update.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay

    def setup(self, trainer: pl.Trainer, learner: Learner, stage: str) -> None:  # type: ignore[override]
        self.average = AveragedModel(learner.model, multi_avg_fn=get_ema_multi_avg_fn(self.decay), use_buffers=True)

    def on_fit_start(self, trainer: pl.Trainer, learner: Learner) -> None:  # type: ignore[override]
        self.average.to(learner.device)  # the learner has been moved since setup

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        learner: Learner,  # type: ignore[override]
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if learner.updates_after(batch_idx):
            self.average.update_parameters(learner.model)

    def on_validation_start(self, trainer: pl.Trainer, learner: Learner) -> None:  # type: ignore[override]
        self._swap(learner)

    def on_validation_end(self, trainer: pl.Trainer, learner: Learner) -> None:  # type: ignore[override]
        self._swap(learner)

    def _swap(self, learner: Learner) -> None:
        live, average = learner.model.state_dict(), self.average.module.state_dict()
        for name, value in live.items():
            kept = value.clone()
            value.copy_(average[name])
            average[name].copy_(kept)

    def on_save_checkpoint(self, trainer: pl.Trainer, learner: Learner, checkpoint: dict[str, Any]) -> None:  # type: ignore[override]
        checkpoint["average"] = self.average.state_dict()

    def on_load_checkpoint(self, trainer: pl.Trainer, learner: Learner, checkpoint: dict[str, Any]) -> None:  # type: ignore[override]
        if "average" not in checkpoint:
            raise RunError(f"{trainer.default_root_dir}: the run has no averaged weights; resume without `ema`")
        self.average.load_state_dict(checkpoint["average"])


class Score(NamedTuple):
    """The result of a validation.

    Attributes:
        accuracy: accuracy.
        negative_loss: negative mean loss.
        monitored: monitored metric, with its sign changed if lower values are better. None if it is one of these two.
    """

    accuracy: float
    negative_loss: float
    monitored: float | None = None

    @classmethod
    def of(cls, logged: Mapping[str, Any], monitor: str) -> Score:
        """The score of the values that a validation has logged."""
        accuracy, loss = float(logged["val_accuracy"]), float(logged["val_loss"])
        if monitor == "accuracy":
            return cls(accuracy, -loss)
        value = float(logged.get(f"val_{monitor}", math.nan))
        return cls(accuracy, -loss, -value if monitor == "loss" or METRICS_BY_NAME[monitor].lower_is_better else value)

    @property
    def key(self) -> tuple[float, ...]:
        """Scores are compared by this value."""
        if self.monitored is None:
            return self.accuracy, self.negative_loss
        return -math.inf if math.isnan(self.monitored) else self.monitored, self.accuracy, self.negative_loss


class Checkpoints(pl.Callback):
    """Saves ``last.ckpt`` after the first update, every ``save_every`` updates, each validation and at the end. The
    checkpoint with the best validation is also saved as ``best.ckpt``.

    After a signal the run is saved after the step, or after the validation that follows it, and ends; see
    `foveal.training.stopping`. If a validation follows a step, the run is saved after the validation only.

    Args:
        folder: run folder.
        signals: signals that stop the run.

    Attributes:
        best, last: `Score` of the best and of the last validation; None before the first.
        waited: number of validations since the best one.
        images: number of validation images that could be read.
        validations: number of validations of at least one image.
    """

    def __init__(self, folder: Path, signals: StopSignals) -> None:
        self.folder = folder
        self.signals = signals
        self.best: Score | None = None
        self.last: Score | None = None
        self.images = self.validations = self.waited = 0

    def state_dict(self) -> dict[str, Any]:
        scores = {"best": self.best and list(self.best), "last": self.last and list(self.last)}
        return {**scores, "images": self.images, "validations": self.validations, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        # Older checkpoints have the best only, and no monitored value.
        self.best, self.last = (None if state.get(name) is None else Score(*state[name]) for name in ("best", "last"))
        self.images, self.validations, self.waited = (state.get(key, 0) for key in ("images", "validations", "waited"))

    def on_train_start(self, trainer: pl.Trainer, learner: Learner) -> None:  # type: ignore[override]
        if trainer.world_size > 1:  # all processes stop after the same step
            self.signals.wait_for(learner)

    def on_train_batch_start(self, trainer: pl.Trainer, learner: Learner, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        self.signals.wait_for(learner)  # after this step there is something to save

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        learner: Learner,  # type: ignore[override]
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if not learner.updates_after(batch_idx):
            return
        if trainer.world_size == 1:
            learner.stopping |= learner.stop_requested  # a signal during the step
        end = learner.step * learner.config.accumulate >= learner.total_batches or learner.progress >= 1
        trainer.should_stop = end
        validates = learner.validates and (end or (batch_idx + 1) % int(trainer.val_check_batch or 1) == 0)
        if validates:
            return
        if end or learner.stopping or learner.step == 1 or learner.step % learner.config.save_every == 0:
            self.save(trainer, learner)
        if learner.stopping and not end:
            raise Interrupted

    def on_validation_end(self, trainer: pl.Trainer, learner: Learner) -> None:  # type: ignore[override]
        score = Score.of(trainer.callback_metrics, learner.config.monitor)
        self.images = int(trainer.callback_metrics["val_images"])
        better = self.images > 0 and (self.best is None or score.key > self.best.key)
        if self.images:
            self.last = score
            self.validations += 1
            self.waited = 0 if better else self.waited + 1
        if better:
            self.best = score
        trainer.should_stop |= learner.config.out_of_patience(self.waited)
        self.save(trainer, learner, better)
        if trainer.world_size == 1:
            learner.stopping |= learner.stop_requested
        if learner.stopping and not trainer.should_stop:
            raise Interrupted

    def save(self, trainer: pl.Trainer, learner: Learner, best: bool = False) -> None:
        """Write ``last.ckpt``, and with ``best`` the same as ``best.ckpt``."""
        if not torch.stack([p.isfinite().all() for p in learner.parameters()]).all():
            raise learner.diverged("weights are NaN or infinite")
        file = self.folder / LAST
        if not trainer.is_global_zero:
            trainer.save_checkpoint(file)  # a collective operation; one process writes
            return
        with storing(file), replacing(file) as unfinished:
            trainer.save_checkpoint(unfinished)
            if best:
                with storing(self.folder / BEST), replacing(self.folder / BEST) as copy:
                    shutil.copyfile(unfinished, copy)
        learner.saved = learner.step


class WholeFiles(TorchCheckpointIO):
    """Writes a checkpoint directly. Lightning's class writes a temporary copy in the same folder first."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        content = io.BytesIO()
        torch.save(checkpoint, content)  # in memory: with a file, torch hides the reason of an OSError
        Path(path).write_bytes(content.getbuffer())


class Metrics(pl.Callback):
    """Writes ``metrics.csv``.

    Training values are means over the images of this process since the last line. A value that only some updates have,
    such as the loss of a policy that is trained from a later step on, is a mean over the images of those updates. The
    last line of a run that diverged has the step in which this was found and nan as loss. Resuming before that step
    removes the line.

    Args:
        file: path of the file.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.sums: dict[str, Any] = {}
        self.counts: dict[str, int] = {}
        self._since, self._seen = time.monotonic(), 0

    def state_dict(self) -> dict[str, Any]:
        return {"sums": {key: float(total) for key, total in self.sums.items()}, "counts": dict(self.counts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sums = dict(state["sums"])
        # Older checkpoints count the images of all values together.
        self.counts = dict(state["counts"]) if "counts" in state else dict.fromkeys(self.sums, state["images"])

    def on_train_start(self, trainer: pl.Trainer, learner: Learner) -> None:  # type: ignore[override]
        if not trainer.is_global_zero:
            return
        if self.file.is_file():
            # Lines after the last checkpoint are written again.
            self._rewrite([row for row in _rows(self.file) if int(row["step"]) <= learner.step])
        self._since = time.monotonic()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        learner: Learner,  # type: ignore[override]
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        count = outputs["images"]
        self._seen += count
        for key, value in outputs["log"].items():
            self.sums[key] = (
                self.sums.get(key, 0.0) + value.detach() * count
            )  # stays on the device, so that the host does not wait for the step
            self.counts[key] = self.counts.get(key, 0) + count
        if not trainer.is_global_zero or not learner.updates_after(batch_idx):
            return
        if (learner.step % learner.config.log_every == 0 or learner.progress >= 1) and self.sums:
            means = {key: float(total) / self.counts[key] for key, total in self.sums.items()}
            self._write(trainer, learner, means | {"lr": trainer.optimizers[0].param_groups[0]["lr"]})
            self.sums, self.counts = {}, {}

    def on_validation_start(self, trainer: pl.Trainer, learner: Learner) -> None:  # type: ignore[override]
        self._validating = time.monotonic()

    def on_validation_end(self, trainer: pl.Trainer, learner: Learner) -> None:  # type: ignore[override]
        self._since += time.monotonic() - self._validating
        if trainer.is_global_zero:
            names = dict.fromkeys(("loss", "accuracy", learner.config.monitor))
            logged = {key: trainer.callback_metrics.get(f"val_{key}") for key in names}
            values = {f"val_{key}": float(value) for key, value in logged.items() if value is not None}
            self._write(trainer, learner, values)

    def on_exception(self, trainer: pl.Trainer, learner: Learner, exception: BaseException) -> None:  # type: ignore[override]
        if isinstance(exception, Diverged) and trainer.is_global_zero:
            self._write(trainer, learner, {"loss": math.nan}, exception.step)

    def _write(self, trainer: pl.Trainer, learner: Learner, values: dict[str, float], step: int | None = None) -> None:
        step = step or learner.step
        if "loss" in values:
            speed = self._seen / max(time.monotonic() - self._since, 1e-9)
            values = {**values, "images_per_second": speed * trainer.world_size}
            self._since, self._seen = time.monotonic(), 0
        epoch = step * learner.config.accumulate / learner.batches_per_epoch
        row = {
            "step": step,
            "epoch": f"{epoch:.4g}",
            "seconds": f"{learner.elapsed:.1f}",
            **{k: f"{v:.6g}" for k, v in values.items()},
        }
        header = _header(self.file)
        if set(row) <= set(header):
            _append(self.file, header, [row])
        else:
            self._rewrite([*_rows(self.file), row])
        for logger in trainer.loggers:
            with sending(logger):
                logger.log_metrics(values, step=step)

    def _rewrite(self, rows: list[dict[str, Any]]) -> None:
        _write_rows(self.file, list(dict.fromkeys([*_COLUMNS, *(key for row in rows for key in row)])), rows)


class Attention(pl.Callback):
    """Writes ``attention.csv`` for networks with attention modules, every ``log_every`` updates.

    A line has one value of one module, see `AttentionLayer.figures`: a learned radius, or the entropy and peak of the
    maps of the batch. Maps of compiled networks are not recorded, because this would compile them twice.

    Args:
        file: path of the file.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.modules: dict[str, AttentionLayer] = {}
        self._maps = ExitStack()

    def on_train_start(self, trainer: pl.Trainer, learner: Learner) -> None:  # type: ignore[override]
        if not trainer.is_global_zero:
            return
        self.modules = {
            name: module for name, module in learner.model.named_modules() if isinstance(module, AttentionLayer)
        }
        if self.file.is_file():
            _write_rows(self.file, _FIGURES, [row for row in _rows(self.file) if int(row["step"]) <= learner.step])

    def on_train_batch_start(self, trainer: pl.Trainer, learner: Learner, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        follows = learner.updates_after(batch_idx) and (learner.step + 1) % learner.config.log_every == 0
        if self.modules and follows and not learner.config.compile:
            self._maps.enter_context(attention_maps(learner.model))

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        learner: Learner,  # type: ignore[override]
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if not (self.modules and learner.updates_after(batch_idx) and learner.step % learner.config.log_every == 0):
            return
        found = {
            (name, what): value for name, module in self.modules.items() for what, value in module.figures().items()
        }
        self._maps.close()
        if not found:
            return
        values = torch.stack(list(found.values())).tolist()  # one transfer from the device
        lines = [(learner.step, *which, f"{value:.6g}") for which, value in zip(found, values, strict=True)]
        _append(self.file, _FIGURES, [dict(zip(_FIGURES, line, strict=True)) for line in lines])

    def on_exception(self, trainer: pl.Trainer, learner: Learner, exception: BaseException) -> None:  # type: ignore[override]
        self._maps.close()


class BadImages(pl.Callback):
    """Writes ``bad_images.csv``: the images that could not be read, once each.

    Args:
        file: path of the file.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.known: set[str] = set()

    def on_train_start(self, trainer: pl.Trainer, learner: Learner) -> None:  # type: ignore[override]
        if trainer.is_global_zero and self.file.is_file():
            rows = _rows(self.file)
            self.known = {row["path"] for row in rows}
            _write_rows(self.file, _BAD, rows)  # without an incomplete last line

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        learner: Learner,  # type: ignore[override]
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self._record(trainer, learner)

    def on_validation_end(self, trainer: pl.Trainer, learner: Learner) -> None:  # type: ignore[override]
        self._record(trainer, learner)

    def _record(self, trainer: pl.Trainer, learner: Learner) -> None:
        for path, reason in learner.bad_images:
            if path in self.known or not trainer.is_global_zero:
                continue
            self.known.add(path)
            _append(self.file, _BAD, [{"path": path, "reason": reason}])
        learner.bad_images.clear()


def _header(file: Path) -> list[str]:
    if not file.is_file():
        return []
    with file.open(newline="") as lines:
        return next(csv.reader(lines), [])


def _append(file: Path, header: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Append rows to a file, with a header if the file is new."""
    with storing(file), file.open("a", newline="") as lines:
        writer = csv.DictWriter(lines, header, restval="")
        if not lines.tell():
            writer.writeheader()
        writer.writerows(rows)


def _write_rows(file: Path, header: Sequence[str], rows: list[dict[str, Any]]) -> None:
    with storing(file), replacing(file) as unfinished, unfinished.open("w", newline="") as lines:
        writer = csv.DictWriter(lines, header, restval="")
        writer.writeheader()
        writer.writerows(rows)


def _rows(file: Path) -> list[dict[str, str]]:
    """The rows of a file without an incomplete last line, which a killed process or a full disk may leave."""
    if not file.is_file():
        return []
    with file.open(newline="") as lines:
        whole, _, _ = lines.read().rpartition("\n")
    return [row for row in csv.DictReader(io.StringIO(whole, newline="")) if None not in row.values()]

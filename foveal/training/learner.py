"""The Lightning module that trains any classifier with any objective.

For Lightning a run is a single epoch, a `Stream` of batches. The epoch of the data follows from the number of the
batch. A resumed run equals an uninterrupted one bit by bit: batches are a function of (seed, epoch, number), the random
numbers of a sample of (seed, epoch, sample), and those of torch of (seed, number).

Example:
    >>> from foveal.data import get_data
    >>> from foveal.models import create_classifier
    >>> from foveal.training.config import Training
    >>> model = create_classifier("test_resnet", num_classes=10, image_size=32)
    >>> data = get_data("digits", canvas=96, digit=(12, 16), distractors=1, train=8, val=4, test=4)
    >>> learner = Learner(model, model.default_objective(), data, Training(steps=3, batch_size=4))
    >>> learner.batches_per_epoch, len(learner.val_dataloader())
    (2, 1)
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from foveal.data import Batch, DataModule
from foveal.display import as_cell
from foveal.draws import Draws, generator
from foveal.errors import ConfigError, RunError
from foveal.glimpse.base import GlimpseClassifier
from foveal.host import to_device
from foveal.images import TensorViews, Views
from foveal.metrics import METRICS, Answers
from foveal.objectives import Objective
from foveal.objectives.rollout import Rollout
from foveal.policies import Policy
from foveal.tasks import task_of
from foveal.training.config import Training
from foveal.training.norms import takes_one_image
from foveal.training.optimisation import build, lr_factor
from foveal.training.teacher import Teacher

ENDLESS = 10**12
NOT_MIXED = "mixup: images are read look by look and cannot be mixed; set `data.image_size`, or leave `mixup` out"


class Stream:
    """The batches of a loader over all epochs. Its state is the number of batches so far.

    Args:
        loader: see `foveal.data.Loader`; its ``len`` is the number of batches per epoch.
        length: number of batches of the run.
    """

    def __init__(self, loader: Any, length: int) -> None:
        self.loader = loader
        self.length = length
        self.given = 0

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Batch]:
        while self.given < self.length:
            epoch, first = divmod(self.given, len(self.loader))
            self.loader.set_epoch(epoch, first)
            for batch in self.loader:
                self.given += 1
                yield batch
                if self.given == self.length:
                    return

    def state_dict(self) -> dict[str, int]:
        return {"given": self.given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.given = state["given"]


class DelayedScalars:
    """Copies scalars from a GPU to the host asynchronously: each is returned by the next call. On a CPU there is no
    delay.
    """

    def __init__(self) -> None:
        self._waiting: tuple[Tensor, torch.cuda.Event, int] | None = None

    def put(self, value: Tensor, mark: int) -> tuple[float, int] | None:
        """Start to copy a scalar. Returns the previous scalar and its mark, if it was not returned yet.

        Args:
            value: a scalar.
            mark: an identifier, such as the step.
        """
        before = self.flush()
        if not value.is_cuda:
            return float(value), mark
        host = torch.empty((), dtype=value.dtype, pin_memory=True)
        host.copy_(value, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._waiting = host, event, mark
        return before

    def flush(self) -> tuple[float, int] | None:
        """Wait for the last scalar. Returns it and its mark, if it was not returned yet."""
        if self._waiting is None:
            return None
        host, event, mark = self._waiting
        event.synchronize()
        self._waiting = None
        return float(host), mark


class Diverged(RunError):
    """The loss or weights are NaN or infinite.

    Attributes:
        step: the update in which this was found.
    """

    def __init__(self, sentence: str, step: int) -> None:
        super().__init__(sentence)
        self.step = step


class Learner(pl.LightningModule):
    """Train a classifier with an objective on a data set.

    Args:
        model: the model.
        objective: the objective. Its state is a buffer of the learner.
        data: the data set.
        config: see `Training`.

    Attributes:
        batches_per_epoch: number of forward passes per epoch.
        total_batches: number of forward passes of the run; `ENDLESS` if only time ends it.
        frozen: modules that are not trained.
        teacher: the teacher of the objective; None if it has none. It is no part of checkpoints.
        validates: whether there are validation images.
        bad_images: (path, reason) of images that could not be read and are not yet recorded, as cells of
            ``bad_images.csv``.
        left_out: number of batches left out because they had one image, see `foveal.training.norms`.
        stop_requested: set it to stop after the step.
        stopping: whether the processes have agreed to stop.
        saved: the update of the last checkpoint; None if there is none.
    """

    objective_state: Tensor

    def __init__(self, model: GlimpseClassifier, objective: Objective, data: DataModule, config: Training) -> None:
        super().__init__()
        self.model = model
        self.objective = objective
        self.frozen = freeze(model, objective.trains, config.freeze)
        taught_by = getattr(objective, "teacher", None)
        self.teacher = None if taught_by is None else Teacher(taught_by, model, data)
        self.data = data
        self.config = config
        self.register_buffer("objective_state", objective.initial_state().clone())
        count, size = len(data.split("train")), config.batch_size
        self.validates = self.data.val is not None and len(self.data.val) > 0
        self.drop_last = count >= size
        self.batches_per_epoch = count // size if self.drop_last else 1
        of_epochs = config.epochs * self.batches_per_epoch if config.epochs else ENDLESS
        # Only complete updates, of `accumulate` forward passes.
        updates = min(config.steps or ENDLESS, -(-of_epochs // config.accumulate))
        self.total_batches = updates * config.accumulate
        self.bad_images: list[tuple[str, str]] = []
        self.left_out = 0
        self.stop_requested = False
        self.stopping = False
        self.saved: int | None = None
        self._spent = self._clock = 0.0
        self._since: float | None = None
        self._groups: list[dict[str, Any]] = []
        self._validated: list[Tensor] = []
        self._validated_images = 0
        self._answers: list[tuple[Tensor, Tensor]] = []
        self._losses = DelayedScalars()
        self._takes_one: dict[tuple[str | Policy, ...], bool] = {}

    # ---- data

    def train_dataloader(self) -> Stream:
        balanced = self.config.sampling == "balanced"
        return Stream(self._loader("train", drop_last=self.drop_last, balanced=balanced), self.total_batches)

    def val_dataloader(self) -> Any:
        return self._loader("val") if self.validates else []

    def _loader(self, split: str, **options: Any) -> Any:
        ranks: dict[str, Any] = (
            {} if self._trainer is None else {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size}
        )
        return self.data.loader(
            split,
            batch_size=self.config.batch_size // ranks.get("world_size", 1),
            workers=self.config.workers,
            seed=self.config.seed,
            first_looks=_in_mode(self.model, split == "train").first_looks,
            device=self.device,
            **ranks,
            **options,
        )

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        return batch.to(device)

    # ---- progress

    @property
    def elapsed(self) -> float:
        """Seconds of training and validation, including those before the run was resumed."""
        return self._spent + (0.0 if self._since is None else time.monotonic() - self._since)

    @property
    def step(self) -> int:
        """Number of updates so far."""
        return self.trainer.global_step

    @property
    def progress(self) -> float:
        """Progress of the run, 0 to 1: the share of its updates or of its time, whichever is larger."""
        by_time = self._clock / self.config.max_time if self.config.max_time else 0.0
        return min(1.0, max(by_time, self.step * self.config.accumulate / self.total_batches))

    def updates_after(self, batch_idx: int) -> bool:
        """Whether an update follows the batch with this number."""
        return (batch_idx + 1) % self.config.accumulate == 0

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._check(self._losses.flush())  # do not save a diverged run
        checkpoint["elapsed"] = self.elapsed
        checkpoint["left_out"] = self.left_out

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._spent = float(checkpoint.get("elapsed", 0.0))
        self.left_out = int(checkpoint.get("left_out", 0))

    # ---- a step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimiser = build(self.model, self.model.parameter_groups(), self.config.optimiser)
        self._groups = [
            {key: value for key, value in group.items() if key != "params"} for group in optimiser.param_groups
        ]
        return optimiser

    @property
    def started(self) -> bool:
        """Whether this process has started to train."""
        return self._since is not None

    def on_train_start(self) -> None:
        self._since = time.monotonic()
        self._clock = self.elapsed
        # A resumed run takes the learning rate and other options from the configuration, which may have changed.
        for group, wanted in zip(self.optimizers().param_groups, self._groups, strict=True):  # type: ignore[union-attr]
            group.update(wanted)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        torch.manual_seed(
            int(
                np.random.SeedSequence((self.config.seed, batch_idx, self.global_rank)).generate_state(1, np.uint64)[0]
                >> 1
            )
        )
        self.train_mode()
        factor = lr_factor(self.config.optimiser, self.step, self.progress)
        for group in self.optimizers().param_groups:  # type: ignore[union-attr]
            group["lr"] = group["base_lr"] * factor

    def train_mode(self) -> None:
        """Put the modules that are not trained into eval mode."""
        for module in self.frozen:
            module.eval()

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        self._note_bad(batch.errors)
        left_out = self.left_out
        loss, log, good = self._loss(batch, *divmod(batch_idx, self.batches_per_epoch))
        world = self.trainer.world_size
        if world == 1:
            self._check(self._losses.put(loss.detach(), self.step + 1))
            self.stopping, self._clock = self.stop_requested, self.elapsed
            return {"loss": loss, "log": log, "images": good}
        # One all_reduce for all values that the processes share.
        failed, bad, skipped = not torch.isfinite(loss.detach()), len(self.bad_images), self.left_out - left_out
        values = [good, failed, self.stop_requested, bad, self.elapsed / world, skipped]
        shared = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(shared)
        count, failed, stop, bad, self._clock, skipped = shared.tolist()
        self.left_out = left_out + int(skipped)
        if failed:
            raise self.diverged(f"the loss is {float(loss.detach())}", self.step + 1)
        if bad:
            self._gather_bad_images()
        self.stopping = bool(stop)
        # DDP averages gradients over processes, which may have different numbers of readable images.
        share = good / count if count else 1 / world
        loss = loss * (share * world)
        if self.objective_state.numel():
            self.objective_state *= share
            dist.all_reduce(self.objective_state)
        return {"loss": loss, "log": log, "images": good}

    def _check(self, read: tuple[float, int] | None) -> None:
        """Raise `Diverged` if a loss, given with its step, is NaN or infinite."""
        if read is not None and not math.isfinite(read[0]):
            raise self.diverged(f"the loss is {read[0]}", read[1])

    def _loss(self, batch: Batch, epoch: int, number: int = 0) -> tuple[Tensor, dict[str, Tensor], int]:
        """Loss, values to log, and number of images that could be read, of a batch of an epoch."""
        plan = self.objective.plan(self.progress)
        share = 1.0
        if self.config.mixup and len(batch):
            rng = generator(self.config.seed, epoch, number, "mixup")
            share = float(rng.beta(self.config.mixup, self.config.mixup))  # the same in all processes
            other = to_device(rng.spawn(self.global_rank + 1)[-1].permutation(len(batch)), batch.target.device)
            batch = replace(batch, views=mixed(batch.views, share, other))
        rollouts, target = [], batch.target
        if len(batch) == 1 and not self.takes_one_image(plan):
            self.left_out += 1
            target = target[:0]
        elif len(batch):
            rollouts = self.model.rollouts(batch.views, plan, Draws(self.config.seed, epoch, batch.index))
            if self.teacher is not None:
                rollouts = self.teacher.teach(batch.views, rollouts)
            self._note_bad([_path_and_reason(text) for text in batch.views.errors.values()])
            if batch.views.errors:
                good = torch.tensor(
                    [i for i in range(len(batch)) if i not in batch.views.errors],
                    dtype=torch.long,
                    device=target.device,
                )
                rollouts, target = [_rows(tried, good) for tried in rollouts], target[good]
        if not len(target):
            # No image. DDP needs a gradient of at least one parameter. The last one mostly belongs to the classifier,
            # which gets gradients in every other process too.
            return 0.0 * [p for p in self.model.parameters() if p.requires_grad][-1].sum(), {}, 0
        loss, state, log = self._judge(rollouts, target)
        if share < 1:
            of_other = self._judge(rollouts, target[other])
            loss, state = (share * a + (1 - share) * b for a, b in zip((loss, state), of_other[:2], strict=True))
            log = {key: share * value + (1 - share) * of_other[2][key] for key, value in log.items()}
        self.objective_state.copy_(state.detach())
        if (entropy := rollouts[0].entropy) is not None:
            log["entropy"] = entropy.mean()
        return loss, log, len(target)

    def _judge(self, rollouts: list[Rollout], target: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Loss, next state of the objective, and values to log."""
        loss, state, log = self.objective(rollouts, target, self.objective_state)
        return (
            loss,
            state,
            {**log, "accuracy": (task_of(target).reward(rollouts[0].logits, target) == 1).float().mean()},
        )

    def takes_one_image(self, plan: Sequence[str | Policy]) -> bool:
        """Whether a batch of one image can be trained on; see `foveal.training.norms.takes_one_image`."""
        if tuple(plan) not in self._takes_one:
            self._takes_one[tuple(plan)] = takes_one_image(self.model, plan)
        return self._takes_one[tuple(plan)]

    def _note_bad(self, images: Sequence[tuple[str, str]]) -> None:
        self.bad_images += [(as_cell(path), as_cell(reason)) for path, reason in images]

    def _gather_bad_images(self) -> None:
        """Gather the bad images of all processes in each process."""
        if self.trainer.world_size > 1:
            found: list[list[tuple[str, str]]] = [[] for _ in range(self.trainer.world_size)]
            dist.all_gather_object(found, self.bad_images)
            self.bad_images = [pair for of_rank in found for pair in of_rank]

    def diverged(self, what: str, step: int | None = None) -> Diverged:
        """The error for a run that diverged in a step; in the current one if None."""
        if step is None and (read := self._losses.flush()) is not None and not math.isfinite(read[0]):
            what, step = f"the loss is {read[0]}", read[1]  # the earlier finding
        step = step or self.step + 1
        return Diverged(
            f"{self.trainer.default_root_dir}: {what} in step {step}; try a lower `optimiser.lr`, `optimiser.clip` 1 or"
            " `precision` 32, with `resume` to go on from the last checkpoint before",
            step,
        )

    # ---- validation

    def on_validation_epoch_start(self) -> None:
        self._validated, self._validated_images, self._answers = [], 0, []

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._note_bad(batch.errors)
        if not len(batch):
            return
        # Contributions would keep all attention maps.
        logits = self.model(batch.views, locations=self.config.locations, contributions=False).logits
        self._note_bad([_path_and_reason(text) for text in batch.views.errors.values()])
        logits, target = logits.float(), batch.target
        if batch.views.errors:
            good = [i for i in range(len(batch)) if i not in batch.views.errors]
            logits, target = logits[good], target[good]
        task = task_of(target)
        right, loss = (task.reward(logits, target) == 1).sum(), task.loss(logits, target, reduction="sum")
        # Stay on the device, so that the host does not wait for the batch.
        self._validated.append(torch.stack([right.float(), loss]))
        if self.config.monitor not in ("accuracy", "loss"):
            self._answers.append((logits, target))
        self._validated_images += len(target)

    def on_validation_epoch_end(self) -> None:
        self._gather_bad_images()
        totals = torch.zeros(3, dtype=torch.float64)
        if self._validated:
            totals = torch.tensor(
                [self._validated_images, *torch.stack(self._validated).cpu().double().sum(0)], dtype=torch.float64
            )
        if self.trainer.world_size > 1:
            totals = totals.to(self.device)
            dist.all_reduce(totals)
        count, right, loss = totals.tolist()
        means = {"val_accuracy": right / max(count, 1), "val_loss": loss / max(count, 1)}
        if self.config.monitor not in ("accuracy", "loss") and count:
            means[f"val_{self.config.monitor}"] = self._monitored()
        self.log_dict({**means, "val_images": count}, logger=False, rank_zero_only=False)

    def _monitored(self) -> float:
        """The monitored metric of the validation images of all processes; NaN if it is undefined."""
        metric = METRICS[self.config.monitor]
        answers = [Answers.of(z.cpu(), t.cpu(), keep_probabilities=metric.ranks) for z, t in self._answers]
        if self.trainer.world_size > 1:
            gathered: list[list[Answers]] = [[] for _ in range(self.trainer.world_size)]
            dist.all_gather_object(gathered, answers)
            answers = [part for of_rank in gathered for part in of_rank]
        value = metric.compute(Answers.cat(answers)).value
        return math.nan if value is None else value


def freeze(model: GlimpseClassifier, trains: Sequence[str] | None, names: Sequence[str] = ()) -> list[nn.Module]:
    """Freeze groups of parameters.

    Args:
        model: the model; ``requires_grad`` of its parameters is changed.
        trains: names of the groups to train; all if None.
        names: names of further groups, or of modules, to freeze. Modules of a dense network are named as in it.

    Returns:
        Fully frozen modules, and norms without parameters that follow frozen parameters. They stay in eval mode, so
        that norms keep their statistics.

    Raises:
        ConfigError: the model has no such group or module.
    """
    for p in getattr(model, "frozen_parameters", []):  # frozen by an earlier objective
        p.requires_grad_(True)
    groups = model.parameter_groups()
    for name in trains or ():
        if name not in groups:
            raise ConfigError(
                f"objective.trains: the model has no group of parameters {name!r}; use {' or '.join(groups)}"
            )
    frozen = [
        p for name, of in groups.items() for p in of if name in names or (trains is not None and name not in trains)
    ]
    modules = dict(getattr(model, "network", model).named_modules())
    for name in names:
        if name in groups:
            continue
        if not name or name not in modules:
            known = list(dict.fromkeys([*(name for name, of in groups.items() if of), *_children(modules)]))
            raise ConfigError(f"freeze: the model has no part {name!r}; use one of {', '.join(known)}")
        frozen += [p for p in modules[name].parameters() if p.requires_grad]
    for p in frozen:
        p.requires_grad_(False)
    model.__dict__["frozen_parameters"] = frozen
    if not frozen:
        return []
    found, last = [], False
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters:
            last = not parameters[-1].requires_grad
        if not any(p.requires_grad for p in parameters) and (
            parameters or (last and getattr(module, "running_mean", None) is not None)
        ):
            found.append(module)
    return found


def _children(modules: Mapping[str, nn.Module]) -> list[str]:
    """Names of the direct submodules that have parameters."""
    return [name for name, part in modules.items() if name and "." not in name and any(True for _ in part.parameters())]


def mixed(views: Views, share: float, other: Tensor) -> TensorViews:
    """Images mixed with others: ``share`` of each, and the rest of image ``other[i]`` ("mixup", arXiv 1710.09412).

    Raises:
        ConfigError: the images are not in memory.
    """
    if not isinstance(views, TensorViews):
        raise ConfigError(NOT_MIXED)
    pixels = views.images
    if not pixels.is_floating_point():
        pixels = pixels.float() / torch.iinfo(pixels.dtype).max
    return TensorViews(share * pixels + (1 - share) * pixels[other])


def _in_mode(model: GlimpseClassifier, training: bool) -> GlimpseClassifier:
    """A shallow copy of the model in a fixed mode, for the workers of a loader: the model's mode changes meanwhile."""
    same = copy.copy(model)
    same.training = training
    return same


def _rows(tried: Rollout, rows: Tensor) -> Rollout:
    """A rollout of some of its images."""
    changes: dict[str, Any] = {}
    for item in fields(tried):
        value = getattr(tried, item.name)
        if isinstance(value, Tensor):
            changes[item.name] = value[rows]
        elif isinstance(value, list):
            changes[item.name] = [part[rows if isinstance(part, Tensor) else rows.cpu().numpy()] for part in value]
    return replace(tried, **changes)


def _path_and_reason(sentence: str) -> tuple[str, str]:
    path, separator, reason = sentence.partition(": ")
    return (path, reason) if separator else ("", sentence)

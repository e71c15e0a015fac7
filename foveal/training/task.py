"""The one Lightning task: any classifier that can be rolled out, any objective.

To Lightning a run is a single long epoch, a `Stream` of batches; which epoch of the data a batch belongs to follows
from its number. So there is one way to stop and one way to go on, and a resumed run is the same run to the last bit:
batches follow from (seed, epoch, number), the draws of a sample from (seed, epoch, sample), torch's own from (seed,
number).

Example:
    >>> from foveal.data import get_data
    >>> from foveal.models import create_classifier
    >>> from foveal.training.config import Training
    >>> model = create_classifier("test_resnet", num_classes=10, image_size=32)
    >>> data = get_data("digits", canvas=96, digit=(12, 16), distractors=1, train=8, val=4, test=4)
    >>> task = Task(model, model.default_objective(), data, Training(steps=3, batch_size=4))
    >>> task.batches_per_epoch, len(task.val_dataloader())
    (2, 1)
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.data import Batch, DataModule
from foveal.display import as_cell
from foveal.draws import Draws
from foveal.errors import ConfigError, RunError
from foveal.glimpse.base import GlimpseClassifier
from foveal.objectives import Objective
from foveal.objectives.rollout import Rollout
from foveal.policies import Policy
from foveal.training.config import Training
from foveal.training.norms import takes_one_image
from foveal.training.optimisation import build, lr_factor

ENDLESS = 10**12


class Stream:
    """A loader's epochs one after another; knows where it is, and can be put there.

    Args:
        loader: see `foveal.data.Loader`; its ``len`` is a whole epoch.
        length: batches until the end of the run.
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


class Late:
    """Reads numbers off a device one call late, so that nobody waits for what the device is doing now; off a CPU at
    once.
    """

    def __init__(self) -> None:
        self._waiting: tuple[Tensor, torch.cuda.Event, int] | None = None

    def put(self, value: Tensor, mark: int) -> tuple[float, int] | None:
        """Hand in a scalar with a mark to know it by; returns the one that was handed in before, if it was not read
        yet.
        """
        before = self.rest()
        if not value.is_cuda:
            return float(value), mark
        host = torch.empty((), dtype=value.dtype, pin_memory=True)
        host.copy_(value, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._waiting = host, event, mark
        return before

    def rest(self) -> tuple[float, int] | None:
        """The scalar that was handed in last, if it was not read yet; waits for it."""
        if self._waiting is None:
            return None
        host, event, mark = self._waiting
        event.synchronize()
        self._waiting = None
        return float(host), mark


class Diverged(RunError):
    """The loss or the weights are no longer numbers.

    Attributes:
        step: the update in which that was found.
    """

    def __init__(self, sentence: str, step: int) -> None:
        super().__init__(sentence)
        self.step = step


class Task(pl.LightningModule):
    """Train a classifier with an objective on a data set.

    Args:
        model: what is trained.
        objective: what is minimised; what it remembers is a buffer of the task.
        data: where batches come from.
        config: see `Training`.

    Attributes:
        batches_per_epoch: forward passes of an epoch.
        total_batches: of the run; `ENDLESS` where only time ends it.
        frozen: modules that the objective leaves as they are.
        validates: there are validation images.
        bad_images: (path, reason) of images that could not be read and are not yet recorded, as cells of
            ``bad_images.csv``.
        left_out: number of batches left out because they held one image, see `foveal.training.norms`.
        stop_requested: set it to stop after the step.
        stopping: the processes have agreed to stop.
        saved: the update after which the run was saved last; None if it was not.
    """

    objective_state: Tensor

    def __init__(self, model: GlimpseClassifier, objective: Objective, data: DataModule, config: Training) -> None:
        super().__init__()
        self.model = model
        self.objective = objective
        self.frozen = freeze(model, objective.trains)
        self.data = data
        self.config = config
        self.register_buffer("objective_state", objective.initial_state().clone())
        count, size = len(data.split("train")), config.batch_size
        self.validates = self.data.val is not None and len(self.data.val) > 0
        self.drop_last = count >= size
        self.batches_per_epoch = count // size if self.drop_last else 1
        of_epochs = config.epochs * self.batches_per_epoch if config.epochs else ENDLESS
        # An update takes all its forward passes, so that the last one is like the others.
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
        self._losses = Late()
        self._takes_one: dict[tuple[str | Policy, ...], bool] = {}

    # ---- data

    def train_dataloader(self) -> Stream:
        return Stream(self._loader("train", drop_last=self.drop_last), self.total_batches)

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

    # ---- where the run is

    @property
    def elapsed(self) -> float:
        """Seconds of training and validation, over all the times the run was resumed."""
        return self._spent + (0.0 if self._since is None else time.monotonic() - self._since)

    @property
    def step(self) -> int:
        """Updates so far."""
        return self.trainer.global_step

    @property
    def progress(self) -> float:
        """How much of the run is over, 0 to 1: of its updates or its time, whichever will end it."""
        by_time = self._clock / self.config.max_time if self.config.max_time else 0.0
        return min(1.0, max(by_time, self.step * self.config.accumulate / self.total_batches))

    def updates_after(self, batch_idx: int) -> bool:
        """Whether the batch of this number ends an update."""
        return (batch_idx + 1) % self.config.accumulate == 0

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._check(self._losses.rest())  # a run that has diverged is not saved
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
    def begun(self) -> bool:
        """Whether the first step of this process has begun."""
        return self._since is not None

    def on_train_start(self) -> None:
        self._since = time.monotonic()
        self._clock = self.elapsed
        # A resumed run takes its learning rate and the like from the configuration, which may have been changed.
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
        """Put the modules that the objective does not train into evaluation mode."""
        for module in self.frozen:
            module.eval()

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        self._note_bad(batch.errors)
        left_out = self.left_out
        loss, log, good = self._loss(batch, batch_idx // self.batches_per_epoch)
        world = self.trainer.world_size
        if world == 1:
            self._check(self._losses.put(loss.detach(), self.step + 1))
            self.stopping, self._clock = self.stop_requested, self.elapsed
            return {"loss": loss, "log": log, "images": good}
        # What all processes must agree on is sent together: images, failure, the wish to stop, bad images, the time,
        # and whether the batch was left out.
        failed, bad, news = not torch.isfinite(loss.detach()), len(self.bad_images), self.left_out - left_out
        ours = [good, failed, self.stop_requested, bad, self.elapsed / world, news]
        shared = torch.tensor(ours, dtype=torch.float64, device=self.device)
        dist.all_reduce(shared)
        count, failed, stop, bad, self._clock, news = shared.tolist()
        self.left_out = left_out + int(news)  # of all processes
        if failed:
            raise self.diverged(f"the loss is {float(loss.detach())}", self.step + 1)
        if bad:
            self._gather_bad_images()
        self.stopping = bool(stop)
        # Gradients are averaged over processes, which may hold different numbers of good images.
        share = good / count if count else 1 / world
        loss = loss * (share * world)
        if self.objective_state.numel():
            self.objective_state *= share
            dist.all_reduce(self.objective_state)
        return {"loss": loss, "log": log, "images": good}

    def _check(self, read: tuple[float, int] | None) -> None:
        """Stop the run if a loss, with the step it belongs to, is no number."""
        if read is not None and not math.isfinite(read[0]):
            raise self.diverged(f"the loss is {read[0]}", read[1])

    def _loss(self, batch: Batch, epoch: int) -> tuple[Tensor, dict[str, Tensor], int]:
        """Loss, things to log and number of images that could be seen."""
        plan = self.objective.plan(self.progress)
        rollouts, target = [], batch.target
        if len(batch) == 1 and not self.takes_one_image(plan):
            self.left_out += 1
            target = target[:0]
        elif len(batch):
            rollouts = self.model.rollouts(batch.views, plan, Draws(self.config.seed, epoch, batch.index))
            self._note_bad([_path_and_reason(text) for text in batch.views.errors.values()])
            if batch.views.errors:
                good = torch.tensor(
                    [i for i in range(len(batch)) if i not in batch.views.errors],
                    dtype=torch.long,
                    device=target.device,
                )
                rollouts, target = [_rows(tried, good) for tried in rollouts], target[good]
        if not len(target):
            # Nothing to learn from. One parameter must take part all the same, or other processes would wait for this
            # one; the last is mostly the classifier's, which every rollout uses, so that no parameter gets a gradient
            # that it has not elsewhere.
            return 0.0 * [p for p in self.model.parameters() if p.requires_grad][-1].sum(), {}, 0
        loss, state, log = self.objective(rollouts, target, self.objective_state)
        self.objective_state.copy_(state.detach())
        log["accuracy"] = (rollouts[0].logits.argmax(-1) == target).float().mean()
        if (entropy := rollouts[0].entropy) is not None:
            log["entropy"] = entropy.mean()
        return loss, log, len(target)

    def takes_one_image(self, plan: Sequence[str | Policy]) -> bool:
        """Whether a batch of one image can be trained on; see `foveal.training.norms.takes_one_image`."""
        if tuple(plan) not in self._takes_one:
            self._takes_one[tuple(plan)] = takes_one_image(self.model, plan)
        return self._takes_one[tuple(plan)]

    def _note_bad(self, images: Sequence[tuple[str, str]]) -> None:
        self.bad_images += [(as_cell(path), as_cell(reason)) for path, reason in images]

    def _gather_bad_images(self) -> None:
        """All processes get the bad images of all."""
        if self.trainer.world_size > 1:
            found: list[list[tuple[str, str]]] = [[] for _ in range(self.trainer.world_size)]
            dist.all_gather_object(found, self.bad_images)
            self.bad_images = [pair for of_rank in found for pair in of_rank]

    def diverged(self, what: str, step: int | None = None) -> Diverged:
        """What to raise where a run has diverged: in a step, or the one that is being taken."""
        if step is None and (read := self._losses.rest()) is not None and not math.isfinite(read[0]):
            what, step = f"the loss is {read[0]}", read[1]  # which came before whatever was found
        step = step or self.step + 1
        return Diverged(
            f"{self.trainer.default_root_dir}: {what} in step {step}; try a lower `optimiser.lr`, `optimiser.clip` 1 or"
            " `precision` 32, with `resume` to go on from the last checkpoint before",
            step,
        )

    # ---- validation

    def on_validation_epoch_start(self) -> None:
        self._validated, self._validated_images = [], 0

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._note_bad(batch.errors)
        if not len(batch):
            return
        # Without contributions, which nobody reads here: they would keep every attention map.
        logits = self.model(batch.views, locations=self.config.locations, contributions=False).logits
        self._note_bad([_path_and_reason(text) for text in batch.views.errors.values()])
        logits, target = logits.float(), batch.target
        if batch.views.errors:
            good = [i for i in range(len(batch)) if i not in batch.views.errors]
            logits, target = logits[good], target[good]
        right = (logits.argmax(-1) == target).sum()
        # They stay on the device until all are there: reading them would wait for the batch.
        self._validated.append(torch.stack([right.float(), F.cross_entropy(logits, target, reduction="sum")]))
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
        self.log_dict({**means, "val_images": count}, logger=False, rank_zero_only=False)


def freeze(model: GlimpseClassifier, trains: Sequence[str] | None) -> list[nn.Module]:
    """Take the gradient from all groups of parameters but these, and see that norms in between keep their statistics.

    Args:
        model: the model; its parameters are changed.
        trains: names of the groups that learn; all if None.

    Returns:
        The modules that hold frozen parameters and no others, which belong in evaluation mode.

    Raises:
        ConfigError: the model has no such group.
    """
    for p in getattr(model, "frozen_parameters", []):  # by the objective before
        p.requires_grad_(True)
    frozen: list[nn.Parameter] = []
    if trains is not None:
        groups = model.parameter_groups()
        for name in trains:
            if name not in groups:
                raise ConfigError(
                    f"objective.trains: the model has no group of parameters {name!r}; use {' or '.join(groups)}"
                )
        frozen = [p for name, parameters in groups.items() for p in parameters if name not in trains]
    for p in frozen:
        p.requires_grad_(False)
    model.__dict__["frozen_parameters"] = frozen
    if not frozen:
        return []
    held = [(module, list(module.parameters())) for module in model.modules()]
    return [module for module, parameters in held if parameters and not any(p.requires_grad for p in parameters)]


def _in_mode(model: GlimpseClassifier, training: bool) -> GlimpseClassifier:
    """The same model in a mode of its own: a loader's workers ask it for looks whatever mode the model is in by
    then.
    """
    same = copy.copy(model)
    same.training = training
    return same


def _rows(tried: Rollout, rows: Tensor) -> Rollout:
    """Some images of a rollout."""
    changes: dict[str, Any] = {}
    for item in fields(tried):
        value = getattr(tried, item.name)
        if isinstance(value, Tensor):
            changes[item.name] = value[rows]
        elif isinstance(value, list):
            changes[item.name] = [part[rows] for part in value]
    return replace(tried, **changes)


def _path_and_reason(sentence: str) -> tuple[str, str]:
    path, separator, reason = sentence.partition(": ")
    return (path, reason) if separator else ("", sentence)

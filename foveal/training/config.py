"""Configuration of training. Fields correspond to the flags of ``foveal fit`` and the keys of ``config.yaml``.

Example:
    >>> Training(epochs=2, optimiser=Optimiser(lr=0.01)).to_dict()["optimiser"]["lr"]
    0.01
    >>> Training(epochs=2, batch_size=0).check()
    Traceback (most recent call last):
    ...
    foveal.errors.ConfigError: batch_size: is 0; set it above 0
"""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal, get_type_hints

from foveal.errors import ConfigError
from foveal.host import usable_device
from foveal.metrics import check_metric
from foveal.registry import imported
from foveal.signatures import mismatch

PRECISIONS = ("32", "bf16", "16", "64", "32-true", "bf16-mixed", "bf16-true", "16-mixed", "16-true", "64-true")
LOGGERS = ("csv", "tensorboard", "wandb", "mlflow", "trackio")
_OWN = ("adamw", "adam", "sgd")
_LONG = {"bf16": "bf16-mixed", "16": "16-mixed"}


@dataclass
class Optimiser:
    """The optimiser and the schedule of its learning rate.

    Attributes:
        name: ``adamw``, ``adam``, ``sgd``, or another name of ``timm.optim.list_optimizers()``, such as ``lion``.
            Weight decay is decoupled in ``adamw``, and added to the gradient in ``adam`` and ``sgd``.
        lr: learning rate.
        weight_decay: weight decay, not for biases, parameters of normalisation layers, and parameters in a module's
            ``no_weight_decay``.
        decay_all: weight decay for biases and normalisation layers too, as in older papers.
        betas: decay rates of Adam's averages. The first is the momentum of SGD. Other optimisers keep their own
            unless this is changed.
        nesterov: Nesterov momentum for SGD.
        eps: added to the denominator by Adam; 1e-7 in Keras and the published recipes. Other optimisers keep their own
            unless this is changed.
        group_lr: learning rates of single groups of parameters, such as ``{backbone: 1e-4}``.
        layer_decay: factor of the learning rate from each layer of the backbone to the one before, such as 0.75 to
            fine-tune a vision transformer; layers are those of timm. Other parameters keep the full rate.
        l2: penalty l2 * sum of squares in the loss, on weights and biases but not on normalisation layers (the
            published form).
        l2_groups: groups of parameters with the penalty ``l2``; all if None.
        schedule: ``constant``; ``step``, which multiplies the learning rate by ``step_factor`` at each ``step_at``; or
            ``cosine``, which reduces it to 0.
        step_at: when the schedule ``step`` changes the learning rate: one or more shares of the run, 0 to 1.
        step_factor: factor of the schedule ``step``.
        warmup: number of updates at the start with a lower learning rate.
        warmup_factor: factor of the learning rate in these updates; if None, it rises linearly from 0.
        clip: maximum norm of the gradient; None for no limit.
    """

    name: str = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.0
    decay_all: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    nesterov: bool = False
    eps: float = 1e-8
    group_lr: dict[str, float] = field(default_factory=dict)
    layer_decay: float | None = None
    l2: float = 0.0
    l2_groups: tuple[str, ...] | None = None
    schedule: Literal["constant", "step", "cosine"] = "cosine"
    step_at: float | tuple[float, ...] = 0.8
    step_factor: float = 0.1
    warmup: int = 0
    warmup_factor: float | None = None
    clip: float | None = None

    def steps(self) -> tuple[float, ...]:
        """``step_at`` as a tuple."""
        return tuple(self.step_at) if isinstance(self.step_at, list | tuple) else (self.step_at,)

    def check(self) -> None:
        """Check types and values.

        Raises:
            ConfigError: names the first invalid value.
        """
        if fault := mismatch(vars(self), get_type_hints(type(self)), "optimiser."):
            raise ConfigError(fault)
        _number("optimiser.clip", self.clip, "above 0", lambda value: value > 0)
        for key in ("lr", "weight_decay", "eps", "l2", "step_factor", "warmup", "warmup_factor"):
            _number(f"optimiser.{key}", getattr(self, key), "to 0 or more", lambda value: value >= 0)
        for name, lr in self.group_lr.items():
            _number(f"optimiser.group_lr.{name}", lr, "to 0 or more", lambda value: value >= 0)
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(
                f"optimiser.betas: are {self.betas[0]} and {self.betas[1]}; set `optimiser.betas` to numbers from 0 to "
                "below 1"
            )
        if self.name not in _OWN:  # timm takes a second to import
            from timm.optim import get_optimizer_info, list_optimizers

            if self.name not in (known := list_optimizers()):
                near = difflib.get_close_matches(self.name, known, 1)
                hint = f"did you mean {near[0]}" if near else "timm.optim.list_optimizers() lists them"
                raise ConfigError(f"optimiser.name: there is no optimiser {self.name!r}; {hint}")
            if get_optimizer_info(self.name).second_order:
                raise ConfigError(
                    f"optimiser.name: {self.name} needs second derivatives, which training does not compute; use "
                    "another one"
                )
        _number("optimiser.layer_decay", self.layer_decay, "above 0 and up to 1", lambda value: 0 < value <= 1)
        if self.l2 and self.name not in ("adam", "sgd"):
            raise ConfigError(
                f"optimiser.l2: is a term of the loss, which {self.name} replaces; use `optimiser.weight_decay`, or "
                "adam or sgd"
            )
        if self.nesterov and (self.name != "sgd" or not self.betas[0]):
            raise ConfigError(
                "optimiser.nesterov: is a kind of momentum of sgd; set `optimiser` sgd and a first beta above 0"
            )
        if not self.steps():
            raise ConfigError("optimiser.step_at: is empty; set `optimiser.step_at` to one share of the run or more")
        if not all(0 <= share <= 1 for share in self.steps()):
            raise ConfigError(f"optimiser.step_at: {self.step_at} are not shares of the run; give numbers from 0 to 1")


@dataclass
class Training:
    """Configuration of a run. It ends when the first of ``epochs``, ``steps`` and ``max_time`` is reached.

    Attributes:
        optimiser: see `Optimiser`.
        epochs: passes over the training images.
        steps: updates of the weights.
        max_time: seconds of training.
        batch_size: images per forward pass, on all devices of all nodes together.
        accumulate: forward passes per update.
        precision: Lightning's precision; ``bf16`` and ``16`` are short for ``bf16-mixed`` and ``16-mixed``.
        ema: decay of a moving average of the weights, which is validated and stored instead of them; None for none.
        freeze: groups of parameters, or modules by name, that stay as they are: weights, and statistics of their
            norms. The groups of most models are ``backbone`` and ``head``.
        class_weights: weight of each class in the objective; ``balanced`` for the inverse of its frequency.
        sampling: ``balanced`` shows every class equally often in an epoch, of the same length; images of rare classes
            come several times, with different random changes. ``each`` shows every image once.
        label_smoothing: share of the probability of a label that is spread over all classes, in the cross-entropies of
            the objective; the objective's own if None.
        mixup: mix pairs of training images, with shares drawn from Beta(mixup, mixup); usual values are 0.1 to 0.4. The
            images must be in memory, or be resized whole by ``data.image_size``. 0 for none.
        seed: seed of all random numbers.
        workers: processes that read images.
        device: where to train: ``cpu``, ``cuda``, ...; ``auto`` is the first GPU, or the CPU.
        devices: number of devices of each node.
        nodes: number of computers. The command runs on each of them; see the guide on several machines.
        timeout: seconds that a process waits for the others of the run in an exchange, before it takes them for lost
            and ends. Writing a checkpoint must take less.
        strategy: Lightning's strategy for several devices, such as ``ddp`` or ``fsdp``.
        init_from: run folder or file with the initial weights.
        compile: compile the backbone, or the dense network, by ``torch.compile``. The first updates take minutes.
        save_every: updates between checkpoints.
        val_every: updates between validations; one per epoch if None.
        monitor: metric of the validation images whose best value decides which weights are kept: a name of
            `foveal.metrics.METRICS`, or ``loss``. Equal values are decided by accuracy and loss.
        patience: validations without a better value of ``monitor`` after which the run ends; None for no limit.
        log_every: updates between lines of ``metrics.csv``, and of ``attention.csv`` for networks with attention
            modules.
        locations: looks per level in validation; the model's own if None.
        logger: also send the values of ``metrics.csv``, which is always written, to these services: ``tensorboard``,
            ``wandb``, ``mlflow`` or ``trackio``; several as ``tensorboard,mlflow``. ``csv`` adds nothing.
        imports: modules that ``--import`` has loaded, as information. They are not imported from here.
    """

    optimiser: Optimiser = field(default_factory=Optimiser)
    epochs: int | None = None
    steps: int | None = None
    max_time: float | None = None
    batch_size: int = 64
    accumulate: int = 1
    precision: Annotated[str, PRECISIONS] = "32"
    ema: float | None = None
    freeze: list[str] = field(default_factory=list)
    class_weights: Literal["balanced"] | list[float] | None = None
    sampling: Literal["each", "balanced"] = "each"
    label_smoothing: float | None = None
    mixup: float = 0.0
    seed: int = 0
    workers: int = 0
    device: str = "auto"
    devices: int = 1
    nodes: int = 1
    timeout: float = 600.0
    strategy: str = "auto"
    init_from: str | None = None
    compile: bool = False
    save_every: int = 500
    val_every: int | None = None
    monitor: str = "accuracy"
    patience: int | None = None
    log_every: int = 50
    locations: tuple[int, ...] | None = None
    logger: list[Annotated[str, LOGGERS]] = field(default_factory=list)
    imports: list[str] = field(default_factory=lambda: list(imported()))

    def __post_init__(self) -> None:
        # One spelling, because configurations of runs are compared.
        self.precision = _LONG.get(str(self.precision), self.precision)
        if isinstance(self.init_from, os.PathLike):
            self.init_from = os.fspath(self.init_from)

    @property
    def processes(self) -> int:
        """Number of processes that train together, one for each device."""
        return self.devices * self.nodes

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, for YAML and JSON."""
        return plain(asdict(self))

    def out_of_patience(self, waited: int) -> bool:
        """Whether the run ends, this number of validations after the best one."""
        return self.patience is not None and waited >= self.patience

    def check(self) -> None:
        """Check types and values.

        Raises:
            ConfigError: names the first invalid value.
        """
        if not isinstance(self.optimiser, Optimiser):
            raise ConfigError(
                f"optimiser: an object of the type {type(self.optimiser).__name__} was given; give a foveal.Optimiser"
            )
        if fault := mismatch(vars(self), {**get_type_hints(type(self)), "precision": str | int}):
            raise ConfigError(fault)
        if self.epochs is None and self.steps is None and self.max_time is None:
            raise ConfigError("epochs: the length of the run is not set; set `epochs`, `steps` or `max_time` SECONDS")
        for key in (
            "epochs",
            "steps",
            "max_time",
            "batch_size",
            "accumulate",
            "devices",
            "nodes",
            "timeout",
            "save_every",
            "val_every",
            "patience",
            "log_every",
        ):
            if (value := getattr(self, key)) is not None and not 0 < value < math.inf:
                raise ConfigError(f"{key}: is {value}; set it above 0{' and finite' * (value > 0)}")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed: is {self.seed}; set `seed` to 0 or more, and below 2 ** 63")
        if self.workers < 0:
            raise ConfigError(f"workers: is {self.workers}; set `workers` to 0 or more")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ConfigError(f"ema: is {self.ema}; set `ema` above 0 and below 1, or leave it out")
        for name in self.logger:
            if name not in LOGGERS:
                raise ConfigError(f"logger: {name!r} is not known; use one of {', '.join(LOGGERS)}")
        _number("mixup", self.mixup, "to 0 or more", lambda value: value >= 0)
        _number("label_smoothing", self.label_smoothing, "to 0 or more, and below 1", lambda value: 0 <= value < 1)
        if isinstance(self.class_weights, list | tuple):
            if not all(0 <= weight < math.inf for weight in self.class_weights) or not any(self.class_weights):
                raise ConfigError(
                    f"class_weights: {list(self.class_weights)} cannot weigh the classes; set `class_weights` to "
                    "finite numbers of 0 or more, not all 0"
                )
            if not math.isfinite(math.fsum(self.class_weights)):
                raise ConfigError("class_weights: their sum is not finite; set `class_weights` to smaller numbers")
        if self.monitor != "loss":
            check_metric("monitor", self.monitor)
        if str(self.precision) not in PRECISIONS:
            raise ConfigError(f"precision: {self.precision} is not known; use one of {', '.join(PRECISIONS)}")
        usable_device(self.device, self.devices)
        if self.batch_size % self.processes:
            raise ConfigError(
                f"batch_size: {self.batch_size} images cannot be split equally between {self.processes} devices; "
                "choose a multiple"
            )
        self.optimiser.check()


def renamed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values of a recipe or of a run of an earlier version, with today's options."""
    values = dict(values)
    values.pop("channels_last", None)  # every model chooses its memory format
    if values.pop("tensorboard", False) is True:
        values.setdefault("logger", ["tensorboard"])
    return values


def _number(name: str, value: float | None, how: str, holds: Callable[[float], bool]) -> None:
    """Check that a number is finite and has a property, which ``how`` describes. None is allowed."""
    if value is not None and not (math.isfinite(value) and holds(value)):
        raise ConfigError(f"{name}: is {value}; set `{name}` {how}{'' if math.isfinite(value) else ', and finite'}")


def plain(value: Any) -> Any:
    """Convert mappings to dicts and sequences to lists, recursively."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value

"""How a model is trained: plain values, one to one with the flags and with ``config.yaml``.

Example:
    >>> Training(epochs=2, optimiser=Optimiser(lr=0.01)).to_dict()["optimiser"]["lr"]
    0.01
    >>> Training(epochs=2, batch_size=0).check()
    Traceback (most recent call last):
    ...
    foveal.errors.ConfigError: batch_size: is 0; set it above 0
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

from foveal.errors import ConfigError
from foveal.host import usable_device
from foveal.registry import imported

PRECISIONS = ("32", "bf16", "16", "64", "32-true", "bf16-mixed", "bf16-true", "16-mixed", "16-true", "64-true")
_LONG = {"bf16": "bf16-mixed", "16": "16-mixed"}


@dataclass
class Optimiser:
    """How weights follow their gradients.

    Attributes:
        name: ``adam`` and ``sgd`` take weight decay into the gradient, ``adamw`` beside it.
        lr: learning rate.
        weight_decay: for weights, not for biases or parameters of normalisation layers, nor for what a module lists in
            ``no_weight_decay``.
        decay_all: weight decay for biases and normalisation layers too, as in the older papers.
        betas: decay rates of Adam's two averages; the first is the momentum of SGD.
        nesterov: Nesterov's momentum for SGD.
        eps: what Adam adds to the denominator; 1e-7 in Keras, and so in the published recipes.
        group_lr: learning rates of their own for groups of parameters that the model names, say ``{backbone: 1e-4}``.
        l2: penalty l2 * sum of squares in the loss, on weights and biases but not on normalisation layers (the
            published form).
        l2_groups: groups of parameters that the penalty ``l2`` is on; all if None.
        schedule: ``constant``; ``step``, times ``step_factor`` at each ``step_at`` of the run; or ``cosine``, down to
            0.
        step_at: when the schedule ``step`` changes the learning rate: a share of the run, or several.
        step_factor: what the schedule ``step`` multiplies the learning rate with.
        warmup: updates at the beginning with a lower learning rate.
        warmup_factor: what the learning rate is multiplied with in these; None lets it rise from 0.
        clip: largest norm of the gradient, which is scaled down to it; None for no limit.
    """

    name: Literal["adamw", "adam", "sgd"] = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.0
    decay_all: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    nesterov: bool = False
    eps: float = 1e-8
    group_lr: dict[str, float] = field(default_factory=dict)
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
        return self.step_at if isinstance(self.step_at, tuple) else (self.step_at,)


@dataclass
class Training:
    """How a model is trained. A run ends with the first of ``epochs``, ``steps`` and ``max_time`` that is reached.

    Attributes:
        optimiser: see `Optimiser`.
        epochs: passes over the training images.
        steps: updates of the weights.
        max_time: seconds of training.
        batch_size: images of a forward pass, on all devices together.
        accumulate: forward passes of an update.
        precision: of the arithmetic; ``bf16`` and ``16`` are short for Lightning's ``bf16-mixed`` and ``16-mixed``.
        ema: decay of a moving average of the weights, which is then what is validated and kept; None for none.
        class_weights: weight of each class in the objective; ``balanced`` is inverse to how often it is seen.
        seed: of everything random.
        workers: processes that read images ahead.
        device: where to train: ``cpu``, ``cuda``, ...; ``auto`` is the first GPU, or the CPU.
        devices: how many devices to train on.
        strategy: Lightning's strategy for several devices, such as ``ddp`` or ``fsdp``.
        init_from: run folder, or file of weights, that training begins with.
        compile: compile the model's parts, a dense network whole; a TNet calls its backbone in pieces, which stay as
            they are.
        channels_last: keep images and weights channels last.
        save_every: updates between checkpoints.
        val_every: updates between validations; one an epoch if None.
        log_every: updates between lines of ``metrics.csv``, and of ``attention.csv`` for networks with attention
            modules.
        locations: looks per level in validation; the model's own if None.
        tensorboard: log to TensorBoard too.
        imports: modules that ``--import`` has loaded, to tell of; nothing is imported because it stands here.
    """

    optimiser: Optimiser = field(default_factory=Optimiser)
    epochs: int | None = None
    steps: int | None = None
    max_time: float | None = None
    batch_size: int = 64
    accumulate: int = 1
    precision: Annotated[str, PRECISIONS] = "32"
    ema: float | None = None
    class_weights: Literal["balanced"] | list[float] | None = None
    seed: int = 0
    workers: int = 0
    device: str = "auto"
    devices: int = 1
    strategy: str = "auto"
    init_from: str | None = None
    compile: bool = False
    channels_last: bool = False
    save_every: int = 500
    val_every: int | None = None
    log_every: int = 50
    locations: tuple[int, ...] | None = None
    tensorboard: bool = False
    imports: list[str] = field(default_factory=lambda: list(imported()))

    def __post_init__(self) -> None:
        # One spelling, so that runs that differ in nothing else are told to be the same.
        self.precision = _LONG.get(str(self.precision), self.precision)

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, which YAML and JSON can write."""
        return plain(asdict(self))

    def check(self) -> None:
        """See that the values fit each other.

        Raises:
            ConfigError: names the first that does not.
        """
        if self.epochs is None and self.steps is None and self.max_time is None:
            raise ConfigError("epochs: nothing says how long to train; set `epochs`, `steps` or `max_time` SECONDS")
        for key in (
            "epochs",
            "steps",
            "max_time",
            "batch_size",
            "accumulate",
            "devices",
            "save_every",
            "val_every",
            "log_every",
        ):
            if (value := getattr(self, key)) is not None and value <= 0:
                raise ConfigError(f"{key}: is {value}; set it above 0")
        if self.seed < 0:
            raise ConfigError(f"seed: is {self.seed}; set it to 0 or more")
        if str(self.precision) not in PRECISIONS:
            raise ConfigError(f"precision: {self.precision} is not known; use one of {', '.join(PRECISIONS)}")
        usable_device(self.device, self.devices)
        if self.batch_size % self.devices:
            raise ConfigError(
                f"batch_size: {self.batch_size} images cannot be shared equally by {self.devices} devices; choose a "
                "multiple"
            )
        if self.optimiser.l2 and self.optimiser.name == "adamw":
            raise ConfigError(
                "optimiser.l2: is a term of the loss, which adamw replaces; use `optimiser.weight_decay`, or adam or "
                "sgd"
            )
        if self.optimiser.nesterov and (self.optimiser.name != "sgd" or not self.optimiser.betas[0]):
            raise ConfigError(
                "optimiser.nesterov: is a kind of momentum of sgd; set `optimiser` sgd and a first beta above 0"
            )
        if not all(0 <= share <= 1 for share in self.optimiser.steps()):
            raise ConfigError(
                f"optimiser.step_at: {self.optimiser.step_at} are no shares of the run; give numbers from 0 to 1"
            )


def plain(value: Any) -> Any:
    """Mappings as dicts, sequences as lists, the rest as it is."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value

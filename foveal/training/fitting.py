"""`fit`: train a model on data, in a run folder.

Example:
    >>> import tempfile
    >>> from foveal.data import get_data
    >>> from foveal.models import create_classifier
    >>> data = get_data("digits", canvas=96, digit=(12, 16), distractors=1, train=8, val=4, test=4)
    >>> model = create_classifier("test_resnet", num_classes=10, image_size=32)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = fit(model, data, folder + "/run", training=Training(steps=2, batch_size=4, device="cpu"), quiet=True)
    ...     names, summary = sorted(file.name for file in run.path.iterdir()), run.summary
    >>> names
    ['best.ckpt', 'config.json', 'config.yaml', 'last.ckpt', 'metrics.csv', 'model.safetensors', 'summary.json']
    >>> summary["step"], summary["kept_step"], summary["images"]
    (2, 2, 4)
"""

from __future__ import annotations

import math
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import yaml
from lightning.pytorch import loggers as pl_loggers
from torch import Tensor, nn

from foveal.data import DataModule, Encoder, ImageDataset
from foveal.data.loader import check_balanced
from foveal.data.values import check_readable
from foveal.errors import ConfigError, DataError, RunError, StorageError, renaming
from foveal.files import replacing, storing
from foveal.glimpse.base import GlimpseClassifier, WholeImage
from foveal.glimpse.tiles import TileClassifier
from foveal.host import check_memory, end_with_parent, global_rank
from foveal.models import as_classifier, read_weights
from foveal.objectives import OBJECTIVES, Objective
from foveal.policies import GREEDY, Random
from foveal.runs import (
    BEST,
    CONFIG,
    LAST,
    SUMMARY,
    ModelInfo,
    Run,
    as_written,
    check_claim,
    claim,
    clear,
    load,
    made_in_python,
    model_state,
    read_checkpoint,
    read_config,
    save_weights,
    with_absolute_paths,
    write_card,
)
from foveal.stored import check_weights
from foveal.strict import class_names_error
from foveal.tasks import MULTILABEL, SEPARATOR
from foveal.training.config import Training, plain, renamed
from foveal.training.learner import NOT_MIXED, Diverged, Learner
from foveal.training.loggers import loggers as create_loggers
from foveal.training.nodes import ProcessLost, check_launch
from foveal.training.policy_gap import PolicyGap, measure_policy_gap
from foveal.training.progress import print_safely
from foveal.training.report import Ended, describe, differences, facts, summarise
from foveal.training.stopping import Interrupted, Stopped, StopSignals
from foveal.training.trainer import check_hardware, run_trainer

# Options that a resumed run may not change.
_FIXED = ("model", "data", "objective", "seed", "batch_size", "accumulate", "freeze", "sampling", "mixup", "monitor")


def fit(
    model: GlimpseClassifier | nn.Module,
    data: DataModule,
    out: str | Path,
    *,
    objective: Objective | None = None,
    training: Training,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
    callbacks: Sequence[Any] = (),
    loggers: Sequence[Any] = (),
) -> Run:
    """Train a model. `foveal.recipes.fit_config.fit_config` does the same from names, for recipes and the command.

    Args:
        model: the model, whose weights are changed. A dense network looks once, at the whole image. A model that
            `foveal.create_model` did not create must be passed to `foveal.load`, too.
        data: training and validation images.
        out: run folder.
        objective: the objective; the model's own if None.
        training: see `Training`.
        resume: continue the run in ``out``. Learning rate, length and other options may have changed. Weights of
            ``model`` are replaced.
        overwrite: replace the run in ``out``.
        quiet: show no progress.
        callbacks: further callbacks of Lightning. They are called before those of foveal, which save the run. Their
            state is saved with it, and must be of tensors and plain values.
        loggers: further loggers of Lightning, which get the values of ``metrics.csv``.

    Returns:
        The run. Its model has the weights of the best validation, or the last ones without validation images. Its
        ``summary`` has the outcome.

    Raises:
        FovealError: the settings, the data or the folder are invalid, or the run diverged.
        StorageError: another process trains the run, or a file cannot be written. The message names what was saved.
        Stopped: Ctrl-C, SIGTERM or SIGHUP, after saving ``last.ckpt``. A KeyboardInterrupt, see
            `foveal.training.stopping`.
    """
    if not isinstance(training, Training):
        raise ConfigError(
            f"training: an object of the type {type(training).__name__} was given; give a foveal.Training, such as "
            "foveal.Training(epochs=10)"
        )
    training.check()
    if not isinstance(data, DataModule):
        raise ConfigError(
            f"data: an object of the type {type(data).__name__} was given; give a foveal.DataModule, such as "
            "foveal.get_data('digits')"
        )
    if objective is not None and not _is_objective(objective):
        raise ConfigError(
            f"objective: {_given(objective)} was given; give an objective, such as foveal.objectives.CrossEntropy(), "
            "or leave it out"
        )
    for name, given, kind in (("callbacks", callbacks, pl.Callback), ("loggers", loggers, pl_loggers.Logger)):
        if wrong := [one for one in given if not isinstance(one, kind)]:
            raise ConfigError(f"{name}: {_given(wrong[0])} was given; give a list of lightning's {kind.__name__}s")
    with opened(out, resume=resume, overwrite=overwrite, shape=(training.nodes, training.devices)) as opening:
        return opening.train(as_classifier(model), data, objective, training, quiet, callbacks, loggers)


def _is_objective(value: Any) -> bool:
    """Whether an object has the interface of an objective. Classes do not count."""
    parts = ("plan", "initial_state", "__call__")
    return (
        not isinstance(value, type)
        and hasattr(value, "trains")
        and all(callable(getattr(value, part, None)) for part in parts)
    )


def _given(value: Any) -> str:
    """Description of an argument for errors."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return f"an object of the type {type(value).__name__}"


@dataclass(frozen=True)
class Opening:
    """A run folder that is locked for training.

    Attributes:
        out: the folder.
        resume: whether to continue the run in it.
        main: whether this process writes. Lightning starts the other processes of a run with the same command.
        signals: signals that stop the run.
        stored: ``config.yaml`` of the run to continue.
    """

    out: Path
    resume: bool
    main: bool
    signals: StopSignals
    stored: dict[str, Any] | None

    def train(
        self,
        model: GlimpseClassifier,
        data: DataModule,
        objective: Objective | None,
        training: Training,
        quiet: bool,
        callbacks: Sequence[Any] = (),
        loggers: Sequence[Any] = (),
    ) -> Run:
        """Train in this folder, see `fit`."""
        plan = _plan(self, model, data, objective or model.default_objective(), training)
        with _report_saved_state(self.out, plan.learner, self.main):
            _run(plan, self, quiet, callbacks, loggers)
        return Run(self.out)


@contextmanager
def opened(
    out: str | Path, *, resume: bool = False, overwrite: bool = False, shape: tuple[int, int] | None = None
) -> Iterator[Opening]:
    """Lock a run folder for training, and handle the signals that stop it.

    Args:
        out, resume, overwrite: see `fit`.
        shape: number of nodes, and of devices of each; those of the run to resume if None.

    Raises:
        FovealError: ``resume`` and ``overwrite`` are both given; or see `foveal.runs.claim`.
        Stopped: a signal arrived before training.
    """
    if not isinstance(out, str | os.PathLike):
        raise ConfigError(f"out: an object of the type {type(out).__name__} was given; give the path of a run folder")
    if resume and overwrite:
        raise ConfigError("resume: cannot be used with `overwrite`, which removes the run; use one of the two")
    out = Path(out)
    if shape is None:
        stored = read_config(out) if resume else {}
        counts = (stored.get("nodes", 1), stored.get("devices", 1))
        shape = counts if all(isinstance(count, int) and count > 0 for count in counts) else (1, 1)
    check_launch(*shape)
    main = global_rank(math.prod(shape)) == 0
    if int(os.environ.get("LOCAL_RANK", "0")):
        end_with_parent()
    signals = StopSignals(at_once=main)
    try:
        # A process that waits for the main one would not learn that it has failed. No process saves before all train.
        if not main and (resume or (out / LAST).is_file()):
            check_claim(out, resume, overwrite)
        with signals, claim(out, resume=resume, overwrite=overwrite) if main else nullcontext():
            yield Opening(out, resume, main, signals, _stored(out) if resume else None)
    except Interrupted:
        raise Stopped(signals.number) from None


def _stored(out: Path) -> dict[str, Any]:
    """The stored configuration of a run, with options added since: those of the model as in `as_written`, others with
    their defaults."""
    stored, usual = renamed(read_config(out)), Training(imports=[]).to_dict()
    if isinstance(stored.get("optimiser"), dict):
        stored["optimiser"] = {**usual["optimiser"], **stored["optimiser"]}
    stored = {**usual, **stored}
    if isinstance(stored.get("model"), dict) and isinstance(stored["model"].get("name"), str):
        try:
            stored["model"] = as_written(stored["model"])
        except ConfigError as error:
            raise RunError(f"{out / CONFIG}: {error}") from error
    return stored


class _Plan(NamedTuple):
    """A checked training. Nothing is written yet.

    Attributes:
        learner, info: the learner, and the description of its model.
        resolved: the configuration of the run.
        checkpoint: the checkpoint from which to continue.
    """

    learner: Learner
    info: ModelInfo
    resolved: dict[str, Any]
    checkpoint: dict[str, Any] | None


def _plan(
    opening: Opening, model: GlimpseClassifier, data: DataModule, objective: Objective, training: Training
) -> _Plan:
    if len(data.classes) < 2:
        name = data.classes[0]
        raise DataError(f"{data.name}: there is only one class, {name!r}; give images of two classes or more")
    if fault := class_names_error(data.classes):
        raise DataError(f"{data.name}: its classes cannot be stored, {fault}; rename them")
    joined = [label for label in data.classes if SEPARATOR in label]
    if joined and data.task == MULTILABEL:
        raise DataError(f"{data.name}: the class {joined[0]!r} has a {SEPARATOR}, which separates labels; rename it")
    if model.num_classes != len(data.classes):
        raise ConfigError(
            f"model.num_classes: is {model.num_classes}, but {data.name} has {len(data.classes)} classes; give this "
            "number"
        )
    if data.encoder is not None:
        _check_features(model, data.encoder, data.name)
    if model.channels != (bands := data.split("train").channels):
        raise ConfigError(
            f"{data.name}: its images have {bands} bands, the model takes {model.channels}; set `model.in_chans` "
            f"{bands}"
        )
    if (training.monitor != "accuracy" or training.patience is not None) and not (
        data.val is not None and len(data.val)
    ):
        given = "monitor" if training.patience is None else "patience"
        raise ConfigError(f"{given}: {data.name} has no validation images; hold some out, or leave `{given}` out")
    if training.locations is not None:
        model.resolve_locations(training.locations)
    if training.mixup and data.encoder is not None:
        raise ConfigError("mixup: features of tiles cannot be mixed; leave `mixup` out")
    if training.mixup and isinstance(data.train, ImageDataset) and data.train.reading.image_size is None:
        raise ConfigError(NOT_MIXED)
    if training.sampling == "balanced":
        check_balanced(data.split("train"))
    check_hardware(training)
    checkpoint = read_checkpoint(opening.out / LAST) if opening.resume else None
    if not opening.resume:
        check_readable(data)
    model.class_names, model.task = data.classes, data.task
    model.usual_policy = GREEDY.name  # what earlier training found does not hold for other weights
    check_memory(training.batch_size, model.channels, model.size)
    if training.precision == "64":
        model.double()  # before weights are copied
    if isinstance(model, WholeImage):
        with renaming({"image_size": "`model.image_size`"}):
            model.check_output()
    objective = _adapted(_weighted(_smoothed(objective, training), data, training), model, data, opening.stored)
    learner = Learner(model, objective, data, training)
    if not any(p.requires_grad for p in model.parameters()):
        if training.freeze:
            raise ConfigError("freeze: leaves no parameter to train; name fewer parts of the model")
        raise ConfigError(
            "model: it has no parameters that can be trained; give a model in which some parameters require a gradient"
        )
    if training.init_from and not opening.resume:
        _load_initial_weights(Path(training.init_from), learner)
    if training.compile:
        model.compile_backbone()
    # Raise errors before the run that is replaced is removed.
    learner.configure_optimizers()
    _check_batches(learner)
    create_loggers(opening.out, training.logger, resume=False)  # whether they are installed
    resolved = _resolved(learner, training)
    if opening.stored is not None and checkpoint is not None:
        if isinstance(old := opening.stored.get("objective"), dict):  # some options were added later
            formerly = {"label_smoothing": 0.0, **getattr(objective, "formerly", {})}
            old.update({key: value for key, value in formerly.items() if key in resolved["objective"].keys() - old})
        _check_unchanged(resolved, with_absolute_paths(opening.stored))
        check_weights(learner, checkpoint["state_dict"], opening.out / LAST)
        learner.saved = checkpoint["global_step"]
    reading = getattr(data.train, "reading", None)
    how = {key: getattr(reading, key, None) for key in ("value_range", "image_size", "shorter_side")}
    encoder = None if data.encoder is None else data.encoder.about or None
    return _Plan(learner, ModelInfo(resolved["model"], data.classes, **how, encoder=encoder), resolved, checkpoint)


def _check_features(model: GlimpseClassifier, encoder: Encoder, name: str) -> None:
    """Check that a model takes the features of a data set.

    Raises:
        ConfigError: it does not.
    """
    if not isinstance(model, TileClassifier) or not model.reads_features:
        raise ConfigError(
            f"model {model.label}: reads pixels, and {name} has features of tiles; use `model` mil or tile_scan"
        )
    if model.features != encoder.width:
        raise ConfigError(
            f"model {model.label}: takes {model.features} features of a tile, and {name} has {encoder.width}; give the "
            "backbone that made them, or `model.features`"
        )
    if model.reads_coarse and not encoder.coarse:
        raise ConfigError(
            f"model {model.label}: chooses tiles by features of a coarser level; set `data.coarse` to their folder, or "
            "use `model` mil"
        )


def _smoothed(objective: Objective, training: Training) -> Objective:
    """The objective with the label smoothing of the training.

    Raises:
        ConfigError: the objective has no label smoothing.
    """
    if training.label_smoothing is None:
        return objective
    if not is_dataclass(objective) or "label_smoothing" not in {f.name for f in fields(objective)}:
        raise ConfigError(f"label_smoothing: {type(objective).__name__} has no cross-entropy to smooth; leave it out")
    return replace(objective, label_smoothing=training.label_smoothing)


def _adapted(
    objective: Objective, model: GlimpseClassifier, data: DataModule, stored: dict[str, Any] | None
) -> Objective:
    """The objective with the options that it decides by the number of training images and the model's grids."""
    if stored is not None:
        before = stored.get("objective") or {}
        missing = {key: value for key, value in getattr(objective, "formerly", {}).items() if key not in before}
        if missing:
            objective = replace(objective, **missing)  # type: ignore[type-var]
    adapted = getattr(objective, "adapted", None)
    if adapted is None:
        return objective
    pretrained = bool(model.spec.get("pretrained"))
    return adapted(len(data.split("train")), model.most_cells, len(model.locations), pretrained)


def _weighted(objective: Objective, data: DataModule, training: Training) -> Objective:
    """The objective with the class weights of the training.

    Raises:
        ConfigError: the number of weights is wrong, or the objective has no class weights.
    """
    weights = data.class_weights() if training.class_weights == "balanced" else training.class_weights
    if weights is None:
        return objective
    if len(weights) != len(data.classes):
        raise ConfigError(
            f"class_weights: {len(weights)} weights for {len(data.classes)} classes; give one per class, or balanced"
        )
    if not is_dataclass(objective) or "class_weights" not in {f.name for f in fields(objective)}:
        raise ConfigError(f"class_weights: {type(objective).__name__} has no class weights; leave them out")
    return replace(objective, class_weights=tuple(weights))


def _run(
    plan: _Plan, opening: Opening, quiet: bool, callbacks: Sequence[Any] = (), loggers: Sequence[Any] = ()
) -> None:
    """Train, and write the model and the summary, also if the run stops early."""
    learner, out, main = plan.learner, opening.out, opening.main
    updates = learner.total_batches // learner.config.accumulate
    finished = plan.checkpoint is not None and _finished(learner, plan.checkpoint)
    try:
        if main:
            _start(plan, opening)
            if not quiet:
                print_safely(describe(learner, out, updates))
                if plan.checkpoint is not None:
                    _print_resumed(out, plan.checkpoint["global_step"], finished, plan.resolved, opening.stored)
        if not finished:
            if main:
                (out / SUMMARY).unlink(missing_ok=True)
            run_trainer(learner, out, opening.resume, quiet, opening.signals, callbacks, loggers)
        opening.signals.wait_for(learner)  # ignore signals from now on
    except (Interrupted, Diverged) as end:
        if not main:
            raise SystemExit(0) from None  # Lightning kills the main process if another one fails
        interrupted = isinstance(end, Interrupted)
        if learner.saved is not None:
            _close(out, learner, "interrupted" if interrupted else "diverged", quiet)
            if interrupted and quiet:
                print_safely(
                    f"stopped after step {learner.saved}; go on with: {_resume_command(out, learner.config.nodes)}",
                    sys.stderr,
                )
        elif interrupted:
            _remove(out)
            print_safely("stopped before the first update; nothing is left of the run", sys.stderr)
        raise
    if main:
        _close(out, learner, "finished", quiet)


def _start(plan: _Plan, opening: Opening) -> None:
    """Remove the run that is replaced, and write the configuration."""
    out = opening.out
    with storing(out):
        if not opening.resume:
            clear(out)
    with storing(out / CONFIG), replacing(out / CONFIG) as unfinished:
        unfinished.write_text(yaml.safe_dump(plan.resolved, sort_keys=False))
    write_card(out, plan.learner.model, plan.info)


def _remove(out: Path) -> None:
    """Remove a run without checkpoint."""
    clear(out)
    (out / CONFIG).unlink(missing_ok=True)


@contextmanager
def _report_saved_state(out: Path, learner: Learner, main: bool) -> Iterator[None]:
    """Add to a `StorageError` or a `ProcessLost` which checkpoint is saved, and how to continue."""
    try:
        yield
    except (StorageError, ProcessLost) as error:
        full = isinstance(error, StorageError)
        if not main:
            if full:
                raise
            safe = "start again with `resume`, unless nothing was saved before"
        elif learner.saved is None:
            with suppress(OSError):
                _remove(out)
            remedy = "make space or choose another `out`, and start" if full else "start"
            safe = f"nothing was saved before, and nothing is left of the run; {remedy} again"
        else:
            saved = f"the run is safe in {out / LAST}, of step {learner.saved}"
            safe = f"{saved}; {'when there is space, ' * full}go on with: {_resume_command(out, learner.config.nodes)}"
        raise type(error)(f"{error}; {safe}") from error


def _resume_command(out: Path, nodes: int = 1) -> str:
    return f"foveal fit --resume --out {shlex.quote(str(out))}{' on every node' * (nodes > 1)}"


def _load_initial_weights(source: Path, learner: Learner) -> None:
    """Load weights of a file, or weights and the objective's state of a run. Children of the model without any of these
    weights keep their own.
    """
    weights = load(source).state_dict() if source.is_dir() else read_weights(source)
    weights = {name: value for name, value in weights.items() if name not in learner.model.unused_weights}
    loaded = {name.partition(".")[0] for name in weights}
    kept = {name: value for name, value in learner.model.state_dict().items() if name.partition(".")[0] not in loaded}
    check_weights(learner.model, {**kept, **weights}, source)
    learner.model.load_state_dict({**kept, **weights})
    if source.is_dir() and (source / LAST).is_file():
        state = read_checkpoint(source / LAST)["state_dict"].get("objective_state")
        if state is not None and state.shape == learner.objective_state.shape:
            learner.objective_state.copy_(state)


def _check_batches(learner: Learner) -> None:
    """Check that batches have enough images for batch norm.

    Raises:
        ConfigError: all batches have one image, and a batch norm would get a single value per channel.
    """
    config, count = learner.config, len(learner.data.split("train"))
    if min(config.batch_size, count) > config.processes:
        return
    learner.train_mode()
    if all(learner.takes_one_image(learner.objective.plan(progress)) for progress in (0.0, 1.0)):
        return
    few, remedy = f"batch_size: {config.batch_size} leaves", f"set `batch_size` to {2 * config.processes} or more"
    if count < config.batch_size:
        few, remedy = (
            f"{learner.data.name}: {count} training image{'s leave' if count > 1 else ' leaves'}",
            "add images",
        )
    each = " for each device" if config.processes > 1 else ""
    name = learner.model.spec.get("name", "the model")
    raise ConfigError(
        f"{few} one image{each}, of which batch norm in {name} gets a single value per channel; {remedy}, or use "
        "larger looks"
    )


def _print_resumed(
    out: Path, step: int, finished: bool, resolved: dict[str, Any], stored: dict[str, Any] | None
) -> None:
    """Print the step from which a run is resumed, and the changed options."""
    if finished:
        after = f"finished already, after step {step}"
        print_safely(f"{out}: {after}; to train longer, set more `epochs`, `steps` or `max_time`", sys.stderr)
        return
    changed = differences(resolved, stored) if stored else []
    first = f"resume after step {step:,}; {'changed:' if changed else 'no value is changed'}"
    print_safely("\n       ".join([first, *changed]))


def _finished(learner: Learner, checkpoint: dict[str, Any]) -> bool:
    out_of_time = learner.config.max_time is not None and checkpoint.get("elapsed", 0.0) >= learner.config.max_time
    waited = checkpoint["callbacks"].get("Checkpoints", {}).get("waited", 0)
    return (
        out_of_time
        or learner.config.out_of_patience(waited)
        or checkpoint["global_step"] * learner.config.accumulate >= learner.total_batches
    )


def _close(out: Path, learner: Learner, ended: Ended, quiet: bool) -> None:
    """Write the model with the weights of the best validation, or else the last ones; and the summary."""
    checkpoint = read_checkpoint(out / LAST)
    last = kept = facts(checkpoint)
    file = out / LAST
    if (out / BEST).is_file():
        file = out / BEST
        checkpoint = read_checkpoint(file)
        kept = facts(checkpoint)
    weights = model_state(checkpoint, file)
    save_weights(out, weights)
    gap = _policy_gap(learner, weights) if ended == "finished" else None
    if gap is not None:
        Run(out).keep_policy(Random.name if gap.harms else GREEDY.name)
    summary = summarise(learner, out, ended, last, kept, gap)
    summary.write(out)
    if not quiet:
        summary.show(out)


def _policy_gap(learner: Learner, weights: dict[str, Tensor]) -> PolicyGap | None:
    """Compare learned with random looks, with the weights that are kept. Those of the learner stay."""
    if learner.config.processes > 1 or not learner.validates:
        return None  # other processes have parts of the weights, or have ended
    model = learner.model
    last = {name: value.clone() for name, value in model.state_dict().items()}
    try:
        model.load_state_dict(weights)
        class_weights = getattr(learner.objective, "class_weights", None)
        return measure_policy_gap(model, learner.data, learner.config, class_weights)
    finally:
        model.load_state_dict(last)


def _resolved(learner: Learner, training: Training) -> dict[str, Any]:
    """The configuration of a run as plain values, for ``config.yaml``. Paths are absolute."""
    values: dict[str, Any] = {
        "model": learner.model.spec or {"name": made_in_python(learner.model)},
        "data": learner.data.spec or {"name": learner.data.name},
        "objective": _objective_spec(learner),
        **{f.name: getattr(training, f.name) for f in fields(Training)},
    }
    values["optimiser"] = asdict(training.optimiser)
    return with_absolute_paths(plain(values))


def _objective_spec(learner: Learner) -> dict[str, Any] | None:
    """Options of the objective, with its name unless it is the model's own."""
    objective = learner.objective
    name = OBJECTIVES.name_of(type(objective)) or made_in_python(objective)
    named = {} if type(objective) is learner.model.objective else {"name": name}
    options: dict[str, Any] = asdict(objective) if is_dataclass(objective) else {}  # type: ignore[call-overload]
    options.pop("class_weights", None)
    return {**named, **options}


def _check_unchanged(new: dict[str, Any], old: dict[str, Any]) -> None:
    """Check that a resumed run has the same fixed options."""
    for key in _FIXED:
        if new[key] != old[key]:
            what = key
            if isinstance(new[key], dict) and isinstance(old[key], dict):
                what = next(f"{key}.{k}" for k in [*new[key], *old[key]] if new[key].get(k) != old[key].get(k))
            raise ConfigError(
                f"{what}: differs from the run to be resumed; keep its value, or start another run with another `out`"
            )

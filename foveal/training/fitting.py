"""`fit`: from a configuration to a run folder.

Example:
    >>> import tempfile
    >>> from foveal.training.config import FitConfig
    >>> config = FitConfig(
    ...     model={"name": "test_resnet", "image_size": 32}, batch_size=4, steps=2, device="cpu",
    ...     data={"name": "digits", "canvas": 96, "digit": (12, 16), "distractors": 1, "train": 8, "val": 4, "test": 4})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = fit(config, folder + "/run", quiet=True)
    ...     names, summary = sorted(file.name for file in run.path.iterdir()), run.summary
    >>> names
    ['best.ckpt', 'config.json', 'config.yaml', 'last.ckpt', 'metrics.csv', 'model.safetensors', 'summary.json']
    >>> summary["step"], summary["kept_step"], summary["images"]
    (2, 2, 4)
"""

from __future__ import annotations

import inspect
import logging
import os
import shlex
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, is_dataclass, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import yaml

from foveal.data import DataModule, get_data, list_data
from foveal.data.module import data_constructor
from foveal.data.values import check_readable
from foveal.errors import ConfigError, DataError, RunError
from foveal.files import replacing
from foveal.glimpse.base import GlimpseClassifier, channels_last
from foveal.host import keep_freed_memory
from foveal.runs import (
    BEST,
    CONFIG,
    LAST,
    SUMMARY,
    ModelInfo,
    Run,
    as_written,
    check_fit,
    check_options,
    claim,
    class_fault,
    clear,
    constructor,
    create_classifier,
    load,
    model_state,
    read_checkpoint,
    read_config,
    read_weights,
    save_model,
    with_absolute_paths,
    without_weights,
    write_card,
)  # fmt: skip
from foveal.signatures import chain_of, hints_of, misfit
from foveal.training.callbacks import STOP_SIGNALS, Interrupted, callbacks
from foveal.training.config import FitConfig, plain
from foveal.training.report import Ended, describe, differences, facts, summarise
from foveal.training.task import ENDLESS, Diverged, Task, objective_for

# What a resumed run must share with the run it resumes: with another value it would be another run.
_FIXED = ("model", "data", "objective", "seed", "batch_size", "accumulate")


def fit(
    config: FitConfig | None,
    out: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
    data: DataModule | None = None,
) -> Run:
    """Train a model.

    Args:
        config: what to train, on what and how; None resumes with the configuration of the run.
        out: run folder.
        resume: go on with the run in ``out``; learning rate, length and the like may have been changed.
        overwrite: replace the run in ``out``.
        quiet: show no progress.
        data: what ``config.data`` names, already made; or your own data, of which the run records the name.

    Returns:
        The run; its model is the one of the best validation, or of the end where there are no validation images. Its
        ``summary`` holds the outcome.

    Raises:
        FovealError: the configuration, the data or the folder does not fit, or the run has diverged.
        KeyboardInterrupt: stopped by Ctrl-C or SIGTERM, after saving ``last.ckpt``.
    """
    if config is not None:
        config.check()
    main = int(os.environ.get("LOCAL_RANK", "0")) == 0  # Lightning starts the other processes as copies of the first
    out = Path(out)
    with _claimed(out, resume, overwrite) if main else nullcontext():
        stored = _stored(out) if resume else None
        if stored is not None:
            written = as_written(stored.model)
            added = {key: value for key, value in written.items() if key not in stored.model}
            stored = replace(stored, model=written)
            config = config and replace(config, model={**added, **config.model})
        config = config or stored
        if config is None:
            raise ConfigError("config: is missing; give one, or resume a run")
        if data is not None and config.data == FitConfig().data:
            config = replace(config, data={"name": data.name})
        config.check()
        checkpoint = read_checkpoint(out / LAST) if resume else None
        data = data or get_data(**config.data)
        if len(data.classes) < 2:
            name = data.classes[0]
            raise DataError(f"{data.name}: there is only one class, {name!r}; give images of two classes or more")
        if not resume:
            check_readable(data)
        model = _model(config, data, resume)
        task = _task(config, model, data, resume)
        # What cannot be made should be told while the run in the way is still there.
        task.configure_optimizers()
        _check_batches(task)
        if config.tensorboard:
            _tensorboard(out)
        resolved = _resolved(config, task)
        if stored is not None and checkpoint is not None:
            _same(resolved, with_absolute_paths(stored.to_dict()))
            check_fit(task, checkpoint["state_dict"], out / LAST)
        reading = getattr(data.train, "reading", None)
        how = {key: getattr(reading, key, None) for key in ("value_range", "image_size", "shorter_side")}
        info = ModelInfo(resolved["model"], data.classes, **how)
        if main:
            if not resume:
                clear(out)
            with replacing(out / CONFIG) as unfinished:
                unfinished.write_text(yaml.safe_dump(resolved, sort_keys=False))
            write_card(out, model, info)
    finished = checkpoint is not None and _finished(task, checkpoint)
    if main and not quiet:
        print(describe(config, model, data, out, task.total_batches // config.accumulate), flush=True)
        if checkpoint is not None:
            _tell_of_resuming(out, checkpoint["global_step"], finished, resolved, stored)
    try:
        if not finished:
            if main:
                (out / SUMMARY).unlink(missing_ok=True)
            _train(task, config, out, resume, quiet)
    except (Interrupted, Diverged) as end:
        interrupted = isinstance(end, Interrupted)
        if main and (out / LAST).is_file():
            _close(out, task, info, "interrupted" if interrupted else "diverged", quiet)
        if not interrupted:
            raise
        if main and quiet:
            go_on = f"foveal fit --resume --out {shlex.quote(str(out))}"
            print(f"stopped after step {task.step}; go on with: {go_on}", file=sys.stderr)
        raise KeyboardInterrupt from None
    if main:
        _close(out, task, info, "finished", quiet)
    return Run(out)


@contextmanager
def _claimed(out: Path, resume: bool, overwrite: bool) -> Iterator[None]:
    """`claim`, and leave no empty folder behind where what follows fails."""
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    claim(out, resume=resume, overwrite=overwrite)
    try:
        yield
    except BaseException:
        with suppress(OSError):  # it is not empty any more
            for folder in made:
                folder.rmdir()
        raise


def _stored(out: Path) -> FitConfig:
    """The configuration of the run in a folder.

    Raises:
        RunError: it has none, or one that is damaged.
    """
    try:
        config = FitConfig.from_dict(read_config(out))
        config.check()
        if config.data["name"] in list_data():
            hints = {key: hint for part in chain_of(data_constructor(config.data["name"])) for key, (hint, _) in hints_of(part).items()}
            if fault := misfit(config.data, {**hints, "name": str}, "data."):
                raise ConfigError(fault)
    except ConfigError as error:
        raise RunError(f"{out / CONFIG}: {error}") from error
    return config


def _model(config: FitConfig, data: DataModule, resume: bool) -> GlimpseClassifier:
    torch.manual_seed(config.seed)
    options = {**config.model}
    if resume:
        options = without_weights(options)
    if fault := class_fault(data.classes):
        raise DataError(f"{data.name}: its classes cannot be kept, {fault}; rename them")
    classes = options.pop("num_classes", len(data.classes))
    if classes != len(data.classes):
        raise ConfigError(f"model.num_classes: is {classes}, but {data.name} has {len(data.classes)} classes; leave it out")
    name = options.pop("name")
    check_options(name, {key: str(value) if isinstance(value, Path) else value for key, value in options.items()})
    model = create_classifier(name, num_classes=classes, **options)
    model.class_names = data.classes
    if model.channels != (bands := data.split("train").channels):
        raise ConfigError(f"{data.name}: its images have {bands} bands, the model takes {model.channels}; set --model.in_chans {bands}")
    if config.precision == "64":
        model.double()  # before anything copies its weights
    if config.channels_last:
        channels_last(model)
    return model


def _task(config: FitConfig, model: GlimpseClassifier, data: DataModule, resume: bool = False) -> Task:
    weights = data.class_weights() if config.class_weights == "balanced" else config.class_weights
    if weights is not None and len(weights) != len(data.classes):
        raise ConfigError(f"class_weights: {len(weights)} weights for {len(data.classes)} classes; give one a class, or balanced")
    task = Task(model, objective_for(model, config.objective, weights), data, config)
    if config.init_from and not resume:
        _begin_with(Path(config.init_from), task)
    if config.compile:
        for part in model.children():
            part.compile()
    return task


def _begin_with(source: Path, task: Task) -> None:
    """Weights of another run, and what its objective remembered; or weights of a file. Parts that they know nothing of begin anew."""
    weights = load(source).state_dict() if source.is_dir() else read_weights(source)
    known = {name.partition(".")[0] for name in weights}
    anew = {name: value for name, value in task.model.state_dict().items() if name.partition(".")[0] not in known}
    check_fit(task.model, {**anew, **weights}, source)
    task.model.load_state_dict({**anew, **weights})
    if source.is_dir() and (source / LAST).is_file():
        state = read_checkpoint(source / LAST)["state_dict"].get("objective_state")
        if state is not None and state.shape == task.objective_state.shape:
            task.objective_state.copy_(state)


def _check_batches(task: Task) -> None:
    """See that batches hold enough images for batch norm.

    Raises:
        ConfigError: every batch holds one image, of which a batch norm would see a single value per channel.
    """
    config, count = task.config, len(task.data.split("train"))
    if min(config.batch_size, count) > config.devices:
        return
    task.train_mode()
    if all(task.takes_one_image(task.objective.plan(progress)) for progress in (0.0, 1.0)):
        return
    few, remedy = f"batch_size: {config.batch_size} leaves", f"set --batch-size to {2 * config.devices} or more"
    if count < config.batch_size:
        few, remedy = f"{task.data.name}: {count} training image{'s leave' if count > 1 else ' leaves'}", "add images"
    each = " for each device" if config.devices > 1 else ""
    raise ConfigError(
        f"{few} one image{each}, of which batch norm in {config.model['name']} sees a single value per channel;"
        f" {remedy}, or use larger looks"
    )


def _tell_of_resuming(out: Path, step: int, finished: bool, resolved: dict[str, Any], stored: FitConfig | None) -> None:
    """Print the step after which a resumed run goes on, and the values that have changed."""
    if finished:
        after = f"finished already, after step {step}"
        print(f"{out}: {after}; to train on, give more --epochs, --steps or --max-time", file=sys.stderr)
        return
    changed = differences(resolved, stored.to_dict()) if stored else []
    first = f"resume after step {step:,}; {'changed:' if changed else 'no value is changed'}"
    print("\n       ".join([first, *changed]), flush=True)


def _finished(task: Task, checkpoint: dict[str, Any]) -> bool:
    out_of_time = task.config.max_time is not None and checkpoint.get("elapsed", 0.0) >= task.config.max_time
    return out_of_time or checkpoint["global_step"] * task.config.accumulate >= task.total_batches


def _train(task: Task, config: FitConfig, out: Path, resume: bool, quiet: bool) -> None:
    every = config.val_every * config.accumulate if config.val_every else task.batches_per_epoch
    several = config.devices > 1
    keep_freed_memory()
    with _calm(), _restoring_signals():
        trainer = pl.Trainer(
            accelerator=config.device.partition(":")[0].replace("cuda", "gpu"),
            devices=_devices(config),
            # Where a policy is not yet trained its weights get no gradient, which plain DDP would wait for.
            strategy="ddp_find_unused_parameters_true" if several and config.strategy in ("auto", "ddp") else config.strategy,
            precision={"32": "32-true", "64": "64-true"}.get(str(config.precision), config.precision),  # type: ignore[arg-type]
            max_epochs=-1,
            max_steps=min(task.total_batches // config.accumulate, ENDLESS),
            accumulate_grad_batches=config.accumulate,
            gradient_clip_val=config.optimiser.clip,
            val_check_interval=-(-every // config.accumulate) * config.accumulate,
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            callbacks=callbacks(out, config.ema, quiet),
            logger=_tensorboard(out) if config.tensorboard else False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            default_root_dir=out,
        )
        try:
            trainer.fit(task, ckpt_path=out / LAST if resume else None, weights_only=True)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            if not resume or task.begun:
                raise
            raise RunError(f"{out / LAST}: does not fit this run ({error!r:.100}); start again with --overwrite") from error


def _devices(config: FitConfig) -> int | list[int]:
    """How many devices, or which one where the name says so (``cuda:1``); there is one CPU, whatever its number."""
    kind, _, number = config.device.partition(":")
    return [int(number)] if number and kind != "cpu" else config.devices


def _tensorboard(out: Path) -> Any:
    try:
        from lightning.pytorch.loggers import TensorBoardLogger

        return TensorBoardLogger(out, name="", version="tensorboard")
    except ModuleNotFoundError as error:
        raise ConfigError("tensorboard: is not installed; pip install 'foveal[log]'") from error


@contextmanager
def _restoring_signals() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def _calm() -> Iterator[None]:
    """Keep Lightning's advice to itself: about workers, logging intervals, hardware."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "lightning")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\..*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _close(out: Path, task: Task, info: ModelInfo, ended: Ended, quiet: bool) -> None:
    """Write the model for use, the best one, or the last where nothing was validated; and the summary of the run."""
    checkpoint = read_checkpoint(out / LAST)
    last = kept = facts(checkpoint)
    file = out / LAST
    if (out / BEST).is_file():
        file = out / BEST
        checkpoint = read_checkpoint(file)
        kept = facts(checkpoint)
    save_model(out, task.model, info, model_state(checkpoint, file))
    summary = summarise(task, out, ended, last, kept)
    summary.write(out)
    if not quiet:
        summary.show(out)


def _resolved(config: FitConfig, task: Task) -> dict[str, Any]:
    """Every value of the run, defaults of model, data and objective included; paths are absolute."""
    values = config.to_dict()
    name = config.model["name"]
    values["model"] = {"name": name, **_defaults(constructor(name)), **config.model}
    values["model"].pop("num_classes", None)
    if config.data["name"] in list_data():
        values["data"] = {"name": config.data["name"], **_defaults(data_constructor(config.data["name"])), **config.data}
    if is_dataclass(task.objective):
        given = {"name": config.objective["name"]} if config.objective and "name" in config.objective else {}
        values["objective"] = {**given, **asdict(task.objective)}  # type: ignore[call-overload]
        values["objective"].pop("class_weights", None)
    return with_absolute_paths(plain(values))


def _defaults(build: Any) -> dict[str, Any]:
    simple = (bool, int, float, str, list, tuple, dict, type(None))
    parameters = inspect.signature(build).parameters.items()
    return {key: spec.default for key, spec in parameters if isinstance(spec.default, simple) and spec.default is not spec.empty}


def _same(new: dict[str, Any], old: dict[str, Any]) -> None:
    """See that a resumed run is the same run."""
    for key in _FIXED:
        if new[key] != old[key]:
            what = key
            if isinstance(new[key], dict) and isinstance(old[key], dict):
                what = next(f"{key}.{k}" for k in [*new[key], *old[key]] if new[key].get(k) != old[key].get(k))
            raise ConfigError(
                f"{what}: differs from the run that is to be resumed; leave it as it was, or start another run with another --out"
            )

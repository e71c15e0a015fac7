"""Run Lightning's trainer: train a `Learner` in a run folder.

Example:
    >>> with _quiet_lightning():
    ...     logging.getLogger("lightning.pytorch").isEnabledFor(logging.WARNING)
    False
"""

from __future__ import annotations

import difflib
import logging
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import lightning.pytorch as pl
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import Strategy, StrategyRegistry
from lightning.pytorch.strategies.launchers import subprocess_script

from foveal.errors import ConfigError, RunError
from foveal.host import deaf_children, keep_freed_memory
from foveal.runs import LAST
from foveal.training.callbacks import WholeFiles, callbacks
from foveal.training.config import Training
from foveal.training.learner import ENDLESS, Learner
from foveal.training.loggers import loggers, sending
from foveal.training.nodes import ProcessLost, end_without, is_lost, lost_sentence
from foveal.training.stopping import StopSignals

_MISFITS = (LookupError, TypeError, ValueError, AttributeError)
"""What Lightning raises for a checkpoint of another run."""


def run_trainer(
    learner: Learner,
    out: Path,
    resume: bool,
    quiet: bool,
    signals: StopSignals,
    more_callbacks: Sequence[pl.Callback] = (),
    more_loggers: Sequence[Logger] = (),
) -> None:
    """Train a learner to its end.

    Args:
        learner: the learner.
        out: run folder.
        resume: continue from ``last.ckpt``.
        quiet: show no progress.
        signals: signals that stop the learner.
        more_callbacks: callbacks that are called before the run is saved.
        more_loggers: loggers besides those of the configuration.

    Raises:
        Interrupted, Diverged, StorageError: see `foveal.training.fit`.
        ProcessLost: another process of the run has ended, or does not answer.
    """
    config = learner.config
    lost = f"{out}: {lost_sentence(config.timeout)}"
    ended = threading.Event()
    every = config.val_every * config.accumulate if config.val_every else learner.batches_per_epoch
    keep_freed_memory()
    with _quiet_lightning():
        trainer = pl.Trainer(
            **_hardware(config),
            max_epochs=-1,
            max_steps=min(learner.total_batches // config.accumulate, ENDLESS),
            accumulate_grad_batches=config.accumulate,
            gradient_clip_val=config.optimiser.clip,
            val_check_interval=-(-every // config.accumulate) * config.accumulate,
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            callbacks=[*more_callbacks, *callbacks(out, config.ema, quiet, signals)],
            plugins=[WholeFiles()],
            logger=[*loggers(out, config.logger, resume), *more_loggers],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            default_root_dir=out,
        )
        # StopSignals handles signals. Lightning's handlers would forward them to the other processes at any time.
        trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
        if trainer.is_global_zero:
            for logger in trainer.loggers:  # a service that cannot be reached stops the run before it starts
                with sending(logger):
                    _ = getattr(logger, "experiment", None)
        launcher: Any = trainer.strategy.launcher
        children = hasattr(launcher, "_call_children_scripts")
        if children:
            launcher._call_children_scripts = deaf_children()(launcher._call_children_scripts)
        # Lightning's observer would kill this process without a message.
        observer = mock.patch.object(
            subprocess_script,
            "_launch_process_observer",
            lambda procs: end_without(procs, ended, lost.replace("`", "")),
        )
        try:
            with observer:
                trainer.fit(learner, ckpt_path=out / LAST if resume else None, weights_only=True)
        except BaseException as error:
            if children and not learner.stopping:  # they may wait for this process forever
                launcher.kill(signal.SIGTERM if sys.platform == "win32" else signal.SIGKILL)
            if config.processes > 1 and is_lost(error):
                raise ProcessLost(lost) from error
            if resume and not learner.started and isinstance(error, _MISFITS):
                raise RunError(
                    f"{out / LAST}: does not fit this run ({error!r:.100}); start again with `overwrite`"
                ) from error
            raise
        finally:
            ended.set()


def _hardware(config: Training) -> dict[str, Any]:
    """Arguments of Lightning's trainer for device, strategy and precision."""
    return {
        "accelerator": config.device.partition(":")[0].replace("cuda", "gpu"),
        "devices": _devices(config),
        "num_nodes": config.nodes,
        "strategy": _strategy(config),
        "precision": {"32": "32-true", "64": "64-true"}.get(str(config.precision), config.precision),
    }


def _strategy(config: Training) -> str | Strategy:
    """Lightning's strategy, which waits for other processes no longer than ``timeout``."""
    name = config.strategy
    if config.processes == 1:
        return name
    if name in ("auto", "ddp"):
        # Weights of a policy that is not trained yet get no gradient, for which plain DDP would wait.
        name = "ddp_find_unused_parameters_true"
    if name not in StrategyRegistry or not name.startswith(("ddp", "fsdp")):
        return name
    chosen = StrategyRegistry[name]
    return chosen["strategy"](**chosen["init_params"], timeout=timedelta(seconds=config.timeout))


def check_hardware(config: Training) -> None:
    """Check that Lightning can train on these devices with this strategy and precision.

    Raises:
        ConfigError: it does not know the strategy, or cannot use it here.
    """
    known = StrategyRegistry.available_strategies()
    if config.strategy != "auto" and config.strategy not in known:
        near = difflib.get_close_matches(config.strategy, known, 1)
        hint = f"did you mean {near[0]}" if near else "set `strategy` to one such as auto, ddp or fsdp"
        raise ConfigError(f"strategy: Lightning has no strategy {config.strategy!r}; {hint}")
    off: dict[str, Any] = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    with _quiet_lightning():
        try:
            pl.Trainer(**_hardware(config), **off, max_steps=1)
        except Exception as error:
            reason = " ".join(str(error).split())[:200].rstrip(".")
            raise ConfigError(
                f"strategy: Lightning cannot use {config.strategy} on {config.device} with `precision` "
                f"{config.precision} ({reason}); set `strategy` auto"
            ) from error


def _devices(config: Training) -> int | list[int]:
    """Number of devices; or the list of one, for names with an index such as ``cuda:1``. A CPU's index is ignored."""
    kind, _, number = config.device.partition(":")
    return [int(number)] if number and kind != "cpu" else config.devices


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Hide Lightning's advice on workers, logging intervals and hardware, and tracebacks of TensorBoard's thread, whose
    errors `storing` raises.
    """
    excepthook = threading.excepthook
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "lightning")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        threading.excepthook = lambda error: (
            None if type(error.thread).__name__ == "_AsyncWriterThread" else excepthook(error)
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\..*")
            yield
    finally:
        threading.excepthook = excepthook
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)

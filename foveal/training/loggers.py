"""Services that get the values of ``metrics.csv``, by Lightning's loggers.

W&B works without an account: without an API key, values stay in the run folder. MLflow writes to ``mlflow.db`` in the
run folder unless ``MLFLOW_TRACKING_URI`` is set; Trackio writes to its own folder, see ``TRACKIO_DIR``. A resumed run
goes on where it was, by the id in ``logger.json``.

Example:
    >>> loggers(Path("runs/x"), ["csv"], resume=False)
    []
"""

from __future__ import annotations

import io
import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from foveal.errors import ConfigError, StorageError
from foveal.files import replacing, storing
from foveal.runs import LOGGER, TENSORBOARD

PROJECT = "foveal"
"""Name of the project, or of the experiment, in the services."""


def loggers(out: Path, names: Sequence[str], resume: bool) -> list[Logger]:
    """Loggers by name, for the run in a folder. Nothing is written yet.

    Raises:
        ConfigError: a package is not installed.
    """
    known = identity(out) if resume else None
    made = []
    for name in dict.fromkeys(names):
        if name == "csv":  # `Metrics` writes it
            continue
        try:
            made.append(_KINDS[name](out, known))
        except ImportError as error:
            raise ConfigError(f"logger: {name} is not installed; pip install 'foveal[{_EXTRAS[name]}]'") from error
    return made


def identity(out: Path) -> str | None:
    """The id of the run in the services; None if it has none."""
    try:
        found = json.loads((out / LOGGER).read_text())["id"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return found if isinstance(found, str) and found.isalnum() else None


@contextmanager
def sending(logger: Any) -> Iterator[None]:
    """Convert all that a service raises to a `StorageError`, after which the run can be resumed."""
    try:
        yield
    except StorageError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
        raise StorageError(f"{type(logger).__name__}: cannot be written ({reason})") from error


def _tensorboard(out: Path, known: str | None) -> Logger:
    import tensorboard  # noqa: F401  (Lightning would take tensorboardX)
    from lightning.pytorch.loggers import TensorBoardLogger

    class TensorBoard(TensorBoardLogger):
        """Raises a `StorageError` if writing fails. Lightning's logger raises an error about types instead."""

        @property
        def experiment(self) -> Any:
            with storing(self.log_dir):
                return super().experiment

        def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
            with storing(self.log_dir):
                for name, value in metrics.items():
                    self.experiment.add_scalar(name, value, step)

        def finalize(self, status: str) -> None:
            with storing(self.log_dir):
                super().finalize(status)

    return TensorBoard(out, name="", version=TENSORBOARD)


def _wandb(out: Path, known: str | None) -> Logger:
    import wandb
    from lightning.pytorch.loggers import WandbLogger

    class WandB(WandbLogger):
        """Takes the id of the run when it starts."""

        @property
        def experiment(self) -> Any:
            if self._experiment is None:
                self._wandb_init["id"] = self._id = _begun(out, known)
            return super().experiment

        def finalize(self, status: str) -> None:
            super().finalize(status)
            if self._experiment is not None:  # else the next run in this process would go on with it
                self._experiment.finish()
                self._experiment = None

    # Without a key it would ask for an account. Lightning sets "dryrun" for an earlier run of this process.
    offline = os.environ.get("WANDB_MODE", "dryrun") == "dryrun" and not wandb.api.api_key
    project = os.environ.get("WANDB_PROJECT", PROJECT)
    how: dict[str, Any] = {"mode": "offline"} if offline else {}
    return WandB(out.absolute().name, out.absolute(), offline=offline, project=project, **how)


def _mlflow(out: Path, known: str | None) -> Logger:
    from lightning.pytorch.loggers import MLFlowLogger

    class MLflow(MLFlowLogger):
        """Finds the run to resume by its tag."""

        @property
        def experiment(self) -> Any:
            if not self._initialized:
                client, tag = self._mlflow_client, f"{PROJECT}.id"
                if known is not None and (project := client.get_experiment_by_name(PROJECT)):
                    found = client.search_runs([project.experiment_id], f"tags.`{tag}` = '{known}'")
                    self._run_id = found[0].info.run_id if found else None
                self.tags = {tag: _begun(out, known)}
            return super().experiment

    own = None if (uri := os.environ.get("MLFLOW_TRACKING_URI")) else out.absolute()
    if own is not None:
        import alembic  # noqa: F401  (MLflow's store needs it)

        uri = f"sqlite:///{own / 'mlflow.db'}"
    where = None if own is None else (own / "mlruns").as_uri()
    return MLflow(PROJECT, out.absolute().name, uri, artifact_location=where)


def _trackio(out: Path, known: str | None) -> Logger:
    import trackio

    class Trackio(Logger):
        """Lightning has no logger for Trackio."""

        run: Any = None

        @property
        def name(self) -> str:
            return PROJECT

        @property
        def version(self) -> str:
            return out.absolute().name

        @property
        def experiment(self) -> Any:
            if self.run is None:
                name = f"{self.version}-{_begun(out, known)}"
                with redirect_stdout(io.StringIO()):
                    self.run = trackio.init(PROJECT, name, resume="allow", embed=False)
            return self.run

        def log_hyperparams(self, params: Any, *_: Any, **__: Any) -> None:
            pass

        def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
            self.experiment.log(dict(metrics), step=step)

        def finalize(self, status: str) -> None:
            if self.run is not None:
                with redirect_stdout(io.StringIO()):
                    trackio.finish()
                self.run = None

    return Trackio()


def _begun(out: Path, known: str | None) -> str:
    """The id of a run that is resumed, or a new one, which is stored."""
    if known is None and (known := identity(out)) is None:
        known = secrets.token_hex(4)
        with storing(out / LOGGER), replacing(out / LOGGER) as unfinished:
            unfinished.write_text(json.dumps({"id": known}) + "\n")
    return known


_KINDS: dict[str, Callable[[Path, str | None], Logger]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "mlflow": _mlflow,
    "trackio": _trackio,
}
_EXTRAS = {"tensorboard": "log", "wandb": "wandb", "mlflow": "mlflow", "trackio": "trackio"}

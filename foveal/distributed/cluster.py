"""The engine: workers of a Ray cluster make the parts of a job. Needs the extra ``ray``.

Each worker is an actor that loads the model once, and makes one part at a time. What is done is what parts are there:
the engine keeps no state, and a second call makes the missing parts. Ray starts a worker that died again and repeats
its part, which continues where it was killed if the parts are in a folder.

Example:
    >>> default_shards(2_500_000), default_shards(7)
    (2500, 1)
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from foveal.distributed.manifest import Manifest, open_manifest
from foveal.distributed.shards import Part, Shards
from foveal.errors import ConfigError, FovealError
from foveal.images.reading import short
from foveal.prediction.predictor import Model

ROWS = 1000
"""Rows of a shard, if the number of shards is not given."""


@dataclass
class Made:
    """What workers made.

    Attributes:
        parts: the parts that are there, in the order in which they were made.
        errors: (shard, error) of each part that could not be made.
    """

    parts: list[Part] = field(default_factory=list)
    errors: list[tuple[int, str]] = field(default_factory=list)


def default_shards(rows: int) -> int:
    """Number of shards of a manifest: one for each `ROWS` rows."""
    return -(-rows // ROWS)


def predict_on_ray(
    model: Model,
    manifest: str | Path,
    out: str | Path,
    *,
    root: str | Path | None = None,
    shards: int | None = None,
    actors: int | None = None,
    address: str | None = None,
    retry: bool = False,
    modules: Sequence[str] = (),
    on_progress: Callable[[int, int], None] | None = None,
    **how: Any,
) -> Made:
    """Make all parts of a manifest with the workers of a Ray cluster, by `Shards.make`.

    Args:
        model: a run folder or an exported model, which all machines find under this path, or a model of the Hub.
        manifest: a table, CSV or Parquet, with the column ``path``, which all machines find under this path.
        out: folder that all machines share, or URL, for the parts.
        root: folder that paths are relative to; that of the manifest if None.
        shards: number of shards; one for each `ROWS` rows if None.
        actors: number of workers; one for each GPU of the cluster, or else for each processor, if None.
        address: address of a cluster that runs, ``auto`` for the one of this machine; if None, a cluster is started on
            this machine, and ended with the call. If Ray is connected already, this connection is used.
        retry: see `Shards.make`.
        modules: modules and ``.py`` files that register models of your own, to be imported by workers.
        on_progress: called after each part with the number of parts done, and that of all.
        how: settings of `Shards`.

    Raises:
        ConfigError: Ray is not installed, or does not find a cluster; see also `Shards`.
        DataError, RunError, StorageError: see `Shards` and `open_manifest`.
    """
    if find_spec("ray") is None:
        raise ConfigError("a cluster needs Ray; run pip install 'foveal[ray]'")
    table = open_manifest(manifest, root)
    count = shards or default_shards(table.rows)
    if not isinstance(model, str | Path):
        raise ConfigError("`model`: workers load the model themselves; give its folder")
    place = str(out) if "://" in str(out) else os.path.abspath(out)  # noqa: PTH100
    where = str(model) if "://" in str(model) or not Path(model).exists() else os.path.abspath(model)  # noqa: PTH100
    device = how.pop("device", "auto")
    if how.get("masks") is not None:
        how["masks"] = os.path.abspath(how["masks"])  # noqa: PTH100
    Shards(where, table, count, place, **how, device="cpu")  # its errors are better than those of workers
    made = Made()
    with _connected(address) as ray:
        gpus = int(ray.cluster_resources().get("GPU", 0)) if str(device) != "cpu" else 0
        workers = actors or gpus or int(ray.cluster_resources().get("CPU", 1))
        data = ray.data.from_items([{"shard": shard} for shard in range(count)], override_num_blocks=count)
        arguments = (where, table, count, place, retry, tuple(modules), {**how, "device": device})
        results = data.map_batches(
            Worker,
            fn_constructor_args=arguments,
            batch_size=1,
            # A second task of an actor would wait for the first while other actors have none.
            compute=ray.data.ActorPoolStrategy(size=min(workers, count), max_tasks_in_flight_per_actor=1),
            num_cpus=0 if gpus else 1,
            num_gpus=1 if gpus else None,
        )
        for result in results.iter_rows():
            if result["error"]:
                made.errors.append((result["shard"], result["error"]))
            else:
                made.parts.append(Part(**{key: result[key] for key in Part.__dataclass_fields__}))
            if on_progress is not None:
                on_progress(len(made.parts) + len(made.errors), count)
    return made


class Worker:
    """An actor, which makes the parts of the shards that it is given. Its results have the fields of `Part`, and
    ``error``, which is empty if the part is there.

    Args:
        model, manifest, shards, out, retry, modules, how: see `predict_on_ray`.
    """

    def __init__(
        self,
        model: str,
        manifest: Manifest,
        shards: int,
        out: str,
        retry: bool,
        modules: Sequence[str],
        how: dict[str, Any],
    ) -> None:
        self.retry, self.error = retry, ""
        try:
            from foveal.registry import import_module

            for module in modules:
                import_module(module)
            self.shards: Shards | None = Shards(model, manifest, shards, out, **how)
        except FovealError as error:  # Ray would start the worker again for ever
            self.shards, self.error = None, str(error)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        (shard,) = batch["shard"].tolist()
        part, error = Part("", shard, 0, 0, 0, 0.0), self.error
        if self.shards is not None:
            try:
                part = self.shards.make(shard, self.retry)
            except FovealError as reason:
                error = str(reason)
        return {key: [value] for key, value in (asdict(part) | {"error": error}).items()}


@contextmanager
def _connected(address: str | None) -> Any:
    """Ray, connected to a cluster."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no connection that was not asked for
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # notices for developers of Ray
    import ray
    import ray.data

    mine = not ray.is_initialized()
    if mine:
        limits = ("FOVEAL_MAX_BYTES", "FOVEAL_REMOTE_")
        passed = {key: value for key, value in os.environ.items() if key.startswith(limits)}
        try:
            _check_reachable(address)
            ray.init(
                address or "local",
                include_dashboard=None if address else False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env={"env_vars": passed} if passed else None,
            )
        except (OSError, OverflowError) as error:
            raise ConfigError(
                f"`address` {address}: there is no Ray cluster ({short(error)}); start one by ray start "
                "--head, or leave it out"
            ) from error
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        yield ray
    finally:
        if mine:
            ray.shutdown()


def _check_reachable(address: str | None) -> None:
    """Raise OSError or OverflowError if no program listens at an address. Ray tries for minutes."""
    host, _, port = (address or "").rpartition("://")[2].rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()

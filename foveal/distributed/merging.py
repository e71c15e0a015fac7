"""Join the parts of a job into one table, after checking that each row of the manifest is there once.

Example:
    >>> shard_list([3, 4, 5, 9, 11, 12])
    '3-5,9,11-12'
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foveal import __version__
from foveal.choices import FORMATS
from foveal.distributed.shards import JOB, PART, ROW, Job, opened_part, part_schema, read_job, read_place, shard_rows
from foveal.distributed.stores import Store, open_store
from foveal.errors import ConfigError, StorageError
from foveal.files import replacing, storing
from foveal.importing import need_parquet
from foveal.prediction.output import write_rows
from foveal.prediction.rows import COLUMNS, SCHEMA

GROUP = 10_000
"""Rows of a row group of a merged Parquet file, about."""

CHECKED = ("row", "path", "error")
"""Columns that are read to check a part."""

SHOWN = 20
"""Most failed images, or shards, of which the error is shown."""


@dataclass
class Merged:
    """What `merge` found.

    Attributes:
        rows: number of rows of the manifest.
        shards: number of shards.
        missing: shards whose part is missing. Nothing is written if there are any.
        failed: number of images that failed.
        failed_shards: shards with such images.
        errors: (path, error) of the first `SHOWN` of them.
        out: the file; None if none was written.
    """

    rows: int
    shards: int
    missing: list[int]
    failed: int = 0
    failed_shards: list[int] = field(default_factory=list)
    errors: list[tuple[str, str]] = field(default_factory=list)
    out: Path | None = None


def shard_list(shards: Sequence[int]) -> str:
    """Sorted numbers of shards as ``sbatch --array`` takes them."""
    ends: list[list[int]] = []
    for shard in shards:
        if ends and shard == ends[-1][1] + 1:
            ends[-1][1] = shard
        else:
            ends.append([shard, shard])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ends)


def merge(parts: str | Path, out: str | Path | None = None) -> Merged:
    """Check the parts of a job, and join them in the order of the manifest, with a few thousand rows in memory.

    Args:
        parts: folder or URL of the parts.
        out: ``.parquet``, ``.csv`` or ``.jsonl`` file with the columns of predictions and
            `foveal.distributed.shards.ROW`. It is replaced if it exists. Parts are only checked if None.

    Raises:
        ConfigError: there are no parts, or ``out`` is not valid.
        StorageError: the folder has a part of another job, of another model, settings or manifest; a part is damaged;
            or ``out`` cannot be written.
    """
    target = None if out is None else Path(os.path.realpath(out))
    if target is not None:
        if target.suffix.lower() not in FORMATS:
            raise ConfigError(f"`out` {out}: merged rows are written as {', '.join(FORMATS)}; give one of these")
        if PART.fullmatch(target.name):
            raise ConfigError(f"`out` {out}: is the name of a part, which would be replaced; choose another")
        if not target.parent.is_dir():
            raise ConfigError(f"`out` {out}: there is no folder {target.parent}; make it first")
    need_parquet(Path(str(parts)))
    store = open_store(parts, create=False)
    names, job = list(store.names()), read_job(store.read(JOB), store)
    if job.version[1] != SCHEMA:
        raise ConfigError(
            f"{store.name}: the parts have the columns of foveal {job.version[0]}, and this is {__version__}; merge "
            "them with that version"
        )
    found = _by_shard(names, job, store)
    merged = Merged(job.rows, job.shards, [shard for shard in range(job.shards) if shard not in found])
    if merged.missing:
        return merged
    columns = CHECKED if target is None else None
    batches = _batches([found[shard] for shard in range(job.shards)], job, store, merged, columns)
    if target is None:
        for _ in batches:
            pass
        return merged
    with storing(target, "make space, or choose another `out`"), replacing(target) as unfinished:
        if target.suffix.lower() == ".parquet":
            _write(unfinished, batches)
        else:
            rows = (row for batch in batches for row in batch.to_pylist())
            write_rows(unfinished, rows, target.suffix.lower(), (ROW, *COLUMNS))
    merged.out = target
    return merged


def _by_shard(names: Sequence[str], job: Job, store: Store) -> dict[int, str]:
    """Names of parts by their shards.

    Raises:
        StorageError: a shard has two parts, or a part is of a job with another number of shards.
    """
    found: dict[int, str] = {}
    for name in sorted(names):
        if not (match := PART.fullmatch(name)):
            continue
        shard, shards = int(match[1]), int(match[2])
        if shards != job.shards or shard >= shards or shard in found:
            for each in filter(None, (name, found.get(shard))):
                with _opened(store, each) as parquet:
                    _check_place(parquet, each, job, store)
            raise StorageError(f"{store.name}/{name}: this shard has two parts; remove both, and make it again")
        found[shard] = name
    return found


def _check_place(parquet: Any, name: str, job: Job, store: Store) -> range:
    """Check that a part is of the job and the shard in its name.

    Returns:
        Its rows.

    Raises:
        StorageError: it is not.
    """
    place = read_place(parquet)
    if place is None or place.job != job.digest:
        raise StorageError(
            f"{store.name}/{name}: is a part of another job, with another model, settings or manifest; move it away"
        )
    rows = shard_rows(job.rows, place.shard, job.shards)
    match = PART.fullmatch(name)
    named = match is not None and (int(match[1]), int(match[2])) == (place.shard, job.shards)
    if not named or place.rows != (rows.start, rows.stop):
        raise StorageError(f"{store.name}/{name}: has rows of shard {place.shard}; remove it, and make the shard again")
    return rows


def _batches(
    names: Sequence[str], job: Job, store: Store, merged: Merged, columns: Sequence[str] | None
) -> Iterator[Any]:
    """Rows of parts as record batches, in order; counts failed images in ``merged``.

    Args:
        columns: columns to read, with `CHECKED`; all if None.

    Raises:
        StorageError: a part is damaged, or lacks rows.
    """
    schema = part_schema()
    for shard, name in enumerate(names):
        with _opened(store, name) as parquet:
            rows = _check_place(parquet, name, job, store)
            after, failed = rows.start, merged.failed
            if not parquet.schema_arrow.equals(schema):
                raise StorageError(f"{store.name}/{name}: has other columns; remove it, and make shard {shard} again")
            for batch in parquet.iter_batches(1000, columns=columns):
                numbers = batch.column("row").to_pylist()
                if numbers != list(range(after, after + len(numbers))):
                    break
                after += len(numbers)
                for place in _indices(batch):
                    merged.failed += 1
                    if len(merged.errors) < SHOWN:
                        merged.errors.append(
                            (batch.column("path")[place].as_py(), batch.column("error")[place].as_py())
                        )
                yield batch
            if after != rows.stop:
                raise StorageError(
                    f"{store.name}/{name}: does not have each of its rows once; remove it, and make shard {shard} again"
                )
            if merged.failed > failed:
                merged.failed_shards.append(shard)


def _indices(batch: Any) -> list[int]:
    """Places of the rows with an error."""
    import pyarrow.compute as pc

    return pc.indices_nonzero(pc.is_valid(batch.column("error"))).to_pylist()


def _opened(store: Store, name: str) -> AbstractContextManager[Any]:
    return opened_part(store.source(name), f"{store.name}/{name}")


def _write(file: Path, batches: Iterator[Any]) -> None:
    """Write record batches as Parquet, in row groups of about `GROUP` rows."""
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    with ParquetWriter(file, part_schema()) as table:
        waiting: list[Any] = []
        for batch in batches:
            waiting.append(batch)
            if sum(map(len, waiting)) >= GROUP:
                table.write_table(pa.Table.from_batches(waiting))
                waiting = []
        if waiting:
            table.write_table(pa.Table.from_batches(waiting))

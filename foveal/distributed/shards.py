"""The unit of work: classify the images of one shard of a manifest, and write their rows as one part.

Shard i of k has the rows from ``rows * i // k`` to ``rows * (i + 1) // k`` of the manifest, so that it reads few row
groups of a large table, and merging in order is joining. A part is a Parquet file with the columns of predictions and
`ROW`. Its name has a digest of all that it is made of: the job (manifest, number of shards, model, settings, version),
the number of the shard, and the paths in its rows. Any worker may make any part, in any order, and twice.

Example:
    >>> list(shard_rows(10, 1, 3)), [len(shard_rows(10, i, 3)) for i in range(3)], parse_shard("3/64")
    ([3, 4, 5], [3, 3, 4], (3, 64))
"""

from __future__ import annotations

import hashlib
import heapq
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch

from foveal import __version__
from foveal.distributed.manifest import Manifest, open_manifest
from foveal.distributed.stores import AGAIN, Store, open_store
from foveal.errors import ConfigError, StorageError
from foveal.files import remove_unfinished, storing
from foveal.importing import need_parquet
from foveal.policies import Policy
from foveal.prediction import Predictor, predict_rows
from foveal.prediction.checks import check_whole
from foveal.prediction.device import check_precision
from foveal.prediction.early_exit import Exit
from foveal.prediction.journal import Journal
from foveal.prediction.output import parquet_types, settings_of
from foveal.prediction.predictor import Model
from foveal.prediction.rows import SCHEMA, Named, Row, check_how, check_masks

JOB = "job.json"
"""Name of the file that describes the job, beside the parts."""

ROW = "row"
"""Column of a part besides those of predictions: the number of the row in the manifest."""

PART = re.compile(r"part-(\d+)-of-(\d+)-[0-9a-f]{16}\.parquet")
"""Names of parts, with shard and number of shards."""


def parse_shard(text: str) -> tuple[int, int]:
    """A shard and the number of shards, written as ``3/64``.

    Raises:
        ConfigError: the text is something else, or there is no such shard.
    """
    found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text.strip())
    if not found:
        raise ConfigError(f"`shard` {text}: is not a shard; write its number, from 0, and that of all shards, as 3/64")
    shard, shards = int(found[1]), int(found[2])
    check_shard(shard, shards)
    return shard, shards


def check_shard(shard: int, shards: int) -> None:
    """Check that there is such a shard.

    Raises:
        ConfigError: there is not.
    """
    if not 0 <= shard < shards:
        raise ConfigError(
            f"`shard` {shard}/{shards}: "
            + (f"shards are counted from 0 to {shards - 1}; give one of these" if shards else "give at least 1 shard")
        )


def shard_rows(rows: int, shard: int, shards: int) -> range:
    """The rows of a shard. Shards differ by at most one row; with more shards than rows, some have none."""
    return range(rows * shard // shards, rows * (shard + 1) // shards)


class Place(NamedTuple):
    """A part in its job, as stored in the metadata of the file.

    Attributes:
        job: digest of the job.
        shard: number of the shard.
        rows: its first row, and the one after its last.
        paths: digest of the paths in its rows.
    """

    job: str
    shard: int
    rows: tuple[int, int]
    paths: str


@dataclass(frozen=True)
class Job:
    """What all parts of one output have in common.

    Attributes:
        rows: number of rows of the manifest.
        manifest: its digest, see `Manifest`.
        shards: number of shards.
        settings: the model and all that determines predictions, see `foveal.prediction.output.settings_of`.
        version: version of the package, and of the columns.
    """

    rows: int
    manifest: str
    shards: int
    settings: dict[str, Any]
    version: tuple[str, int] = (__version__, SCHEMA)

    @cached_property
    def text(self) -> str:
        """The job as JSON."""
        return json.dumps({key: getattr(self, key) for key in self.__dataclass_fields__}, sort_keys=True)

    @cached_property
    def digest(self) -> str:
        """16 hexadecimal digits."""
        return _digest(self.text)

    def join(self, store: Store) -> None:
        """Write the job into its store, or check that the store has the same.

        Raises:
            ConfigError: the store has parts of another job.
            StorageError: it cannot be read or written.
        """
        there = store.read(JOB)
        if there is None:
            with store.working(JOB) as folder:
                unfinished = folder / f".{JOB}.unfinished"
                with storing(unfinished, AGAIN):
                    unfinished.unlink(missing_ok=True)
                    unfinished.write_text(self.text, encoding="utf-8")
                store.put(JOB, unfinished)
            there = store.read(JOB) or b""
        other = read_job(there, store)
        if other.text != self.text:
            raise ConfigError(
                f"{store.name}: has parts of another job ({', '.join(_differences(other, self))}); choose another `out`"
            )


def read_job(content: bytes | None, store: Store) -> Job:
    """The job of a store.

    Args:
        content: content of its file `JOB`.
        store: the store, for errors.

    Raises:
        ConfigError: there is no such file, or it is damaged.
    """
    if content is None:
        raise ConfigError(f"{store.name}: has no {JOB}, so there are no parts; give the folder of foveal predict")
    try:
        values = json.loads(content)
        job = Job(**values | {"version": tuple(values["version"])})
        if not all(type(number) is int and number > 0 for number in (job.rows, job.shards)):
            raise ValueError("there are no rows or no shards")
        if type(job.manifest) is not str or type(job.settings) is not dict:
            raise ValueError("another type")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ConfigError(
            f"{store.name}/{JOB}: is damaged; remove it, and make any part again, which writes it anew"
        ) from error
    return job


def _differences(one: Job, other: Job) -> Iterator[str]:
    """Names of what differs between two jobs."""
    if (one.rows, one.manifest) != (other.rows, other.manifest):
        yield "manifest"
    if one.shards != other.shards:
        yield f"{one.shards} shards"
    keys = {**one.settings, **other.settings}
    yield from (key for key in keys if one.settings.get(key) != other.settings.get(key))
    if one.version != other.version:
        yield f"version {one.version[0]}, columns {one.version[1]}"


def _digest(*values: Any) -> str:
    return hashlib.blake2b(json.dumps(values).encode(), digest_size=8).hexdigest()


@dataclass(frozen=True)
class Part:
    """A part that is there.

    Attributes:
        name: name of the file in its store.
        shard: number of the shard.
        rows: number of rows.
        predicted: number of images that this call classified; 0 if the part was there.
        failed: number of these that failed.
        seconds: wall time of the call.
    """

    name: str
    shard: int
    rows: int
    predicted: int
    failed: int
    seconds: float


class Shards:
    """Makes parts. The model is loaded once.

    Args:
        model: a classifier, a dense network, a run folder or an exported model.
        manifest: the table, see `open_manifest`.
        shards: number of shards.
        out: folder or URL of the parts, see `open_store`.
        locations, policy, batch_size, threads, device, precision, top_k, seed, until, masks: see
            `foveal.prediction.predict_rows`.
        headers: index of the headers of remote images; that beside the manifest if None.

    Raises:
        ConfigError: an argument is invalid, pyarrow is not installed, or ``out`` has parts of another job.
        RunError: the run folder cannot be loaded.
        StorageError: ``out`` cannot be read or written.
    """

    def __init__(
        self,
        model: Model,
        manifest: Manifest,
        shards: int,
        out: str | Path,
        *,
        locations: int | Sequence[int] | None = None,
        policy: str | Policy | None = None,
        batch_size: int = 8,
        threads: int | None = None,
        device: str | torch.device = "auto",
        precision: str = "32",
        top_k: int = 5,
        seed: int = 0,
        until: Exit | None = None,
        masks: str | Path | None = None,
        headers: str | Path | None = None,
    ) -> None:
        need_parquet(Path(out, "part.parquet"))
        check_whole("shards", shards)
        check_how(batch_size=batch_size, threads=threads, top_k=top_k, until=until)
        check_precision(precision)
        predictor = Predictor(model, device=device, precision=precision)
        policy = policy or predictor.model.usual_policy
        looks = predictor.locations(locations, policy)
        check_masks(predictor, masks)
        settings = settings_of(
            predictor, locations=looks, policy=policy, top_k=top_k, seed=seed, until=until, masks=masks
        )
        self.manifest = manifest
        self.job = Job(manifest.rows, manifest.digest, shards, json.loads(json.dumps(settings)))
        self.store = open_store(out)
        self.job.join(self.store)
        self._predictor = predictor.folded()  # `predict_rows` would fold for each shard, and not for a short one
        self._how: dict[str, Any] = {
            "locations": looks,
            "policy": policy,
            "batch_size": batch_size,
            "threads": threads,
            "top_k": top_k,
            "seed": seed,
            "until": until,
            "masks": masks,
            "headers": headers or manifest.headers,
        }

    def make(self, shard: int, retry: bool = False, on_progress: Callable[[int, int], None] | None = None) -> Part:
        """Make the part of a shard, unless it is there. A call that was killed is continued, if ``out`` is a folder. If
        two processes make the same part, one of the two is kept.

        Args:
            shard: number of the shard.
            retry: if the part is there, predict its failed images again, and replace it.
            on_progress: called after each batch with the number of images done, and that of the shard.

        Raises:
            ConfigError: there is no such shard.
            DataError: the manifest cannot be read.
            StorageError: the part cannot be written.
        """
        start = time.perf_counter()
        check_shard(shard, self.job.shards)
        rows = shard_rows(self.job.rows, shard, self.job.shards)
        images = self.manifest.images(rows)
        place = Place(self.job.digest, shard, (rows.start, rows.stop), _digest([image.path for image in images]))
        name = f"part-{shard:05}-of-{self.job.shards:05}-{_digest(*place)}.parquet"
        with self.store.working(name) as folder:
            file, unfinished = folder / f".{name}.foveal", folder / f".{name}.unfinished"
            remove_unfinished(folder, file.name)
            unfinished.unlink(missing_ok=True)  # it may be another name of the part
            there = self.store.has(name)
            where = f"{self.store.name}/{name}"
            todo = [] if there else list(rows)
            if there and retry:
                todo = failed_rows(self.store.source(name), where, place)
            failed = 0
            if todo or not there:
                with storing(file, AGAIN):
                    journal = Journal(file)
                with closing(journal):
                    self._predict(journal, {row: images[row - rows.start] for row in todo}, name, on_progress)
                    made: Iterable[Row] = (row for line in islice(journal.lines(), 1, None) for row in line)
                    if there:
                        again = set(todo)
                        found = read_part(self.store.source(name), where)
                        kept = (row for row in found if row["row"] not in again)
                        made = heapq.merge(kept, made, key=lambda row: row["row"])
                    with storing(unfinished, AGAIN):
                        failed = write_part(unfinished, made, place)
                self.store.put(name, unfinished, replace=there)
            file.unlink(missing_ok=True)
        return Part(name, shard, len(rows), len(todo), failed, time.perf_counter() - start)

    def _predict(
        self, journal: Journal, todo: dict[int, Named], name: str, on_progress: Callable[[int, int], None] | None
    ) -> None:
        """Write the rows of images into a journal, one line for each batch after the header. Batches that it has
        already are left out.
        """
        size = self._how["batch_size"]
        numbers, header = list(todo), {"part": name, "batch_size": size, "rows": _digest(list(todo))}
        lines = journal.lines() if journal else iter(())
        done = 0
        if next(lines, None) == header:
            done = sum(1 for _ in lines)
        else:
            with storing(journal.file, AGAIN):
                journal.restart(header)
        batches = [numbers[i : i + size] for i in range(0, len(numbers), size)]
        found = predict_rows(self._predictor, list(todo.values()), **self._how, first_batch=done)
        with closing(found):
            for i in range(done, len(batches)):
                line = [{ROW: row} | predicted for row, predicted in zip(batches[i], next(found), strict=True)]
                with storing(journal.file, f"{AGAIN}; the rows of earlier batches are safe"):
                    journal.append(line)
                if on_progress is not None:
                    on_progress(min((i + 1) * size, len(numbers)), len(numbers))


# ------------------------------------------------------------------------------------------------------- files of parts


def part_schema() -> Any:
    """The columns of a part, as a schema of pyarrow."""
    import pyarrow as pa

    return pa.schema({ROW: pa.int64(), **parquet_types()})


def write_part(file: Path, rows: Iterable[Row], place: Place) -> int:
    """Write a part, with at most a thousand rows in memory.

    Returns:
        The number of images that failed.
    """
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    rows, failed = iter(rows), 0
    schema = part_schema().with_metadata({"foveal": json.dumps(place._asdict())})
    with ParquetWriter(file, schema, write_page_checksum=True) as table:
        while some := list(islice(rows, 1000)):
            failed += sum(row["error"] is not None for row in some)
            table.write_table(pa.Table.from_pylist(some, schema))
    return failed


def read_place(parquet: Any) -> Place | None:
    """Where a part belongs; None if this is no part.

    Args:
        parquet: an open file, a ``pyarrow.parquet.ParquetFile``.
    """
    with suppress(ValueError, TypeError, KeyError):
        values = json.loads((parquet.schema_arrow.metadata or {})[b"foveal"])
        return Place(**values | {"rows": tuple(values["rows"])})
    return None


@contextmanager
def opened_part(source: Any, where: str = "") -> Iterator[Any]:
    """An open part, a ``pyarrow.parquet.ParquetFile``.

    Args:
        source: the file, see `Store.source`.
        where: its place, for the error.

    Raises:
        StorageError: it is damaged.
    """
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(source, page_checksum_verification=True) as parquet:
            yield parquet
    except (pa.ArrowException, ValueError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise StorageError(f"{where or source}: is damaged ({reason}); remove it, and make its shard again") from error


def read_part(source: Any, where: str = "") -> Iterator[Row]:
    """Rows of a part. Arguments are those of `opened_part`.

    Raises:
        StorageError: it is damaged.
    """
    with opened_part(source, where) as parquet:
        for batch in parquet.iter_batches(1000):
            yield from batch.to_pylist()


def failed_rows(source: Any, where: str, place: Place) -> list[int]:
    """Numbers of the rows with an error in a part.

    Raises:
        StorageError: it is damaged, or another part.
    """
    with opened_part(source, where) as parquet:
        if read_place(parquet) != place or not parquet.schema_arrow.equals(part_schema()):
            raise StorageError(f"{where}: is another part, or none; remove it, and make its shard again")
        return [
            row
            for batch in parquet.iter_batches(columns=["row", "error"])
            for row, error in zip(*(batch[name].to_pylist() for name in ("row", "error")), strict=True)
            if error is not None
        ]


def predict_shard(
    model: Model,
    manifest: str | Path,
    shard: int,
    shards: int,
    out: str | Path,
    *,
    root: str | Path | None = None,
    retry: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
    **how: Any,
) -> Part:
    """Classify the images of one shard of a manifest, and write their rows as one part; see `Shards`.

    Args:
        manifest: a table, CSV or Parquet, with the column ``path``.
        shard: number of the shard, from 0.
        shards: number of shards.
        out: folder or URL for the parts of all shards.
        root: folder that paths are relative to; that of the manifest if None.
        retry, on_progress: see `Shards.make`.
        model, how: see `Shards`.

    Raises:
        ConfigError, DataError, RunError, StorageError: see `Shards` and `open_manifest`.
    """
    check_shard(shard, shards)
    table = open_manifest(manifest, root)
    return Shards(model, table, shards, out, **how).make(shard, retry, on_progress)

"""Predictions as a file that grows: Parquet, CSV or JSON Lines, begun, interrupted, continued and finished.

Rows of finished batches are kept in a journal beside the output (``.NAME.foveal``: settings in the first line, a batch
in each of the others). At the end they join the rows already in the output, which is written anew under another name
and renamed; then the settings stay in the journal, and a digest of the output, so that the next call can tell whether
it continues the same work.

Example:
    >>> import tempfile
    >>> with Output(Path(tempfile.mkdtemp()) / "rows.csv", {"top_k": 1}) as out:
    ...     out.add([{"path": "a.tif", "label": "cat", "top_k": [{"label": "cat", "probability": 1.0}], "error": None}])
    ...     out.finish()
    >>> [(row["path"], row["top_k"]) for row in read_rows(out.path)]
    [('a.tif', [{'label': 'cat', 'probability': 1.0}])]
"""

from __future__ import annotations

import csv
import glob
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext, suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from foveal.choices import FORMATS
from foveal.display import as_cell, from_cell
from foveal.errors import ConfigError, StorageError
from foveal.files import locked, remove_unfinished, replacing, storing
from foveal.images import LeftOut, is_path
from foveal.policies import GREEDY, Policy
from foveal.prediction.early_exit import Exit
from foveal.prediction.journal import Journal
from foveal.prediction.predictor import Model, Predictor
from foveal.prediction.rows import (
    COLUMNS,
    Named,
    Row,
    as_text,
    find_named,
    predict_rows,
)


@dataclass(frozen=True)
class Summary:
    """What a call of `predict` did.

    Attributes:
        images: images found, and paths that led to none.
        predicted: of those, predicted now.
        skipped: whose row is that of an earlier call that wrote to the same output; also of those that failed.
        failed: (path, one sentence) of each that failed, in an earlier call or now.
        seconds: wall time.
        out: the file written, or None.
        rows: the predictions, where no file was written.
        left_out: files and folders that were no images to predict, by reason.
    """

    images: int
    predicted: int
    skipped: int
    failed: tuple[tuple[str, str], ...]
    seconds: float
    out: Path | None = None
    rows: tuple[Row, ...] = field(default=(), repr=False)
    left_out: LeftOut = field(default_factory=LeftOut)


def predict(
    model: Model,
    paths: Any,
    *,
    locations: Sequence[int] | None = None,
    policy: str | Policy = GREEDY,
    batch_size: int = 8,
    threads: int | None = None,
    device: str | torch.device = "auto",
    precision: str = "32",
    top_k: int = 5,
    seed: int = 0,
    until: Exit | None = None,
    out: str | Path | None = None,
    resume: bool = True,
    retry: bool = False,
    on_progress: Callable[[int, int, list[Row]], None] | None = None,
) -> Summary:
    """Classify many images: one row an image, see `foveal.prediction.rows.COLUMNS`.

    Bad images do not stop the others; they are rows with an ``error``. With ``out``, a call that was interrupted, or
    killed, goes on where it stopped when it is repeated. Its batches are those of a call that was not interrupted, and
    so are the order of its rows and every number in them but ``seconds``.

    With other images or another batch size, the images that have no row yet are predicted, in batches of their own, and
    their rows appended in the order given. An image that has a row is not predicted again, even if its file is another
    one now. One that failed keeps its row unless its file has changed since or was missing, or with ``retry``.

    Batch size, threads and device may differ from call to call; they change numbers by no more than rounding. Model,
    budget, policy, precision, top_k and seed may not. One call at a time writes to an output, and it must be left as it
    is in between.

    Images in memory are named in the column ``path`` by their place in what is given, ``[3]``. That tells nobody which
    image it was, so that an output with rows of such names is not continued.

    Args:
        model: a classifier, a dense network, or a run folder.
        paths: an image, any iterable of images, or a (B, C, H, W) tensor. An image is a file, a folder or a pattern,
            see `foveal.prediction.rows.find_images`, or one in memory, as `foveal.classify` takes it.
        out: ``.parquet``, ``.csv`` or ``.jsonl`` file; rows are returned if None.
        resume: continue ``out`` if it is there; else it is replaced.
        retry: predict those images of ``out`` again that failed.
        on_progress: called after each batch with how many images are done, how many there are, and the batch's rows.
        locations, policy, batch_size, threads, device, precision, top_k, seed, until: see
        `foveal.prediction.rows.predict_rows`.

    Raises:
        ConfigError: an option that does not fit, or an output that was not made with the same model and options.
        RunError: a run folder that is none.
        StorageError: an output that another call writes, that another program changed, or that cannot be written. The
            rows of batches before are safe.
    """
    start = time.perf_counter()
    predictor = Predictor(model, device=device, precision=precision)
    looks = predictor.locations(locations, policy)
    left_out = LeftOut()
    found = find_named(paths, left_out)
    settings = {
        "model": fingerprint(predictor.model),
        "locations": list(looks),
        "policy": str(policy),
        "precision": precision,
        "top_k": top_k,
        "seed": seed,
    }
    if until is not None:
        settings["budget"] = [until.threshold, list(until.locations), until.at_once]
    with nullcontext() if out is None else Output(Path(out), settings, resume) as output:
        todo, first_batch, failed, kept, safe = found, 0, [], [], "that are there"
        try:
            if output is not None:
                _check_names(output, found)
                todo, first_batch = output.begin(found, batch_size, retry)
                failed = output.failures(found, todo[first_batch * batch_size :])
            skipped = done = len(found) - len(todo[first_batch * batch_size :])
            safe = f"of {done:,} of {len(found):,} images"
            batches = predict_rows(
                predictor,
                todo,
                locations=looks,
                policy=policy,
                batch_size=batch_size,
                threads=threads,
                top_k=top_k,
                seed=seed,
                until=until,
                first_batch=first_batch,
            )
            before = len(failed)
            with closing(batches):
                for rows in batches:
                    if output is None:
                        kept += rows
                    else:
                        output.add(rows)
                    done += len(rows)
                    safe = f"of {done:,} of {len(found):,} images"
                    failed += [(row["path"], row["error"]) for row in rows if row["error"]]
                    if on_progress is not None:
                        on_progress(done, len(found), rows)
            if output is not None and (todo or output.unfinished):
                output.finish()
        except KeyboardInterrupt as end:
            if output is not None:
                again = "" if resume else " without --overwrite (in Python resume=False)"
                end.add_note(f"the rows {safe} are safe; the same command{again} goes on")
            raise
    return Summary(
        len(found),
        len(found) - skipped - len(failed) + before,
        skipped,
        tuple(failed),
        time.perf_counter() - start,
        None if out is None else Path(out),
        tuple(kept),
        left_out,
    )


def _check_names(output: Output, images: Sequence[Named]) -> None:
    """See that no image in memory would be taken for the one that had its place in an earlier call."""
    for image in images:
        if not is_path(image.image) and (image.path in output.written or image.path in output.waiting):
            raise ConfigError(
                f"{output.path}: has a row of an image {image.path} in memory, which may have been another one; "
                "choose another --out, or"
                " replace it by resume=False"
            )


class Output:
    """A file of predictions with its journal. Nobody else can have the same file open, under whatever name, until it is
    closed.

    Args:
        path: the file; its suffix is one of `FORMATS`. Of a link what it leads to is written.
        settings: plain values that decide what is predicted; an output is continued only with the same.
        resume: continue what is there; else it is replaced, at the end.

    Attributes:
        written: error, or None, of each path in the file.
        waiting: the same of rows that are in the journal alone.

    Raises:
        ConfigError: another suffix, no such folder, or a file that was not made with these settings.
        StorageError: another call writes there; the disk is full; or the file is not as it was left.
    """

    def __init__(self, path: Path, settings: dict[str, Any], resume: bool = True) -> None:
        if path.suffix.lower() not in FORMATS:
            raise ConfigError(
                f"{path}: predictions are written as {', '.join(FORMATS)}; give the output one of these suffixes"
            )
        if not path.parent.is_dir():
            raise ConfigError(f"{path}: there is no folder {path.parent}; make it first")
        self.path = Path(os.path.realpath(path))
        self.settings = json.loads(json.dumps(settings))
        self.written: dict[str, str | None] = {}
        self.waiting: dict[str, str | None] = {}
        self._stamps: dict[str, Any] = {}  # of files that failed
        self._there: str | None = None  # digest of the file as it was left
        self._joins = resume  # whether its rows are kept
        self._batches = 0
        self._plan = ""
        self._start = time.time_ns()
        with ExitStack() as stack:
            taken = f"{path}: another call writes predictions there; wait for its end, or choose another --out"
            stack.enter_context(locked(self.path.with_name(f".{self.path.name}.lock"), taken))
            _remove_leftovers(self.path)
            with storing(self.path, "choose another --out, or make space and repeat the command"):
                self.journal = Journal(self.path.with_name(f".{self.path.name}.foveal"))
                stack.callback(self.journal.close)
                self._open()
            self._stack = stack.pop_all()

    def __enter__(self) -> Output:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let others have the file. What is in the journal stays there."""
        self._stack.close()

    def begin(self, images: Sequence[Named], batch_size: int, retry: bool = False) -> tuple[list[Named], int]:
        """What there is to predict, and how many batches of it an interrupted call did.

        A call with the same list and batch size goes on with that call's batches, so that its rows are those of one
        call. Any other call first writes the rows that there are, and makes batches of the images that have none.

        Args:
            images: all that are wanted.
            batch_size: images of a batch.
            retry: predict those again that failed. Without it, those are whose file has changed since, or was missing.
        """
        todo = self._missing(images, retry)
        plan = _plan(todo, batch_size)
        if self._batches and (plan != self._plan or (retry and any(self.waiting.values()))):
            self.finish()
            todo = self._missing(images, retry)
            plan = _plan(todo, batch_size)
        if todo and plan != self._plan:
            self._plan = plan
            with self._storing(self.journal.file):
                self.journal.restart(self._header())
        return todo, self._batches

    def add(self, rows: Sequence[Row]) -> None:
        """Keep the rows of a batch, so that they survive whatever happens to this process.

        Raises:
            StorageError: they cannot be written; those of batches before are safe.
        """
        stamps = {row["path"]: _stamp(row["path"], self._start) for row in rows if row["error"]}
        with self._storing(self.journal.file):
            self.journal.append({"rows": rows, "stamps": stamps})
        self._count(rows, stamps)

    def failures(self, images: Sequence[Named], todo: Sequence[Named]) -> list[tuple[str, str]]:
        """(path, one sentence) of the rows with an error that stay, of these images but those that are to be
        predicted.
        """
        errors = {**self.written, **self.waiting}
        others = {image.path for image in todo}
        named = [(as_text(image.path), image.path) for image in images]
        return [(name, error) for name, path in named if path not in others and (error := errors.get(name))]

    @property
    def unfinished(self) -> bool:
        """Whether the file does not have all rows yet, or others."""
        return self._there is None or not self._joins or bool(self._batches)

    def finish(self) -> None:
        """Write the file.

        Raises:
            StorageError: it cannot be written, or is not as it was left; the rows are safe in the journal.
        """
        with self._storing(self.path):
            self._check(_digest(self.path))
            with replacing(self.path) as unfinished:
                write_rows(unfinished, self._rows(), self.path.suffix.lower())
                there = _digest(unfinished)
                self._check(_digest(self.path))
                # Who finds this file in place knows that it has the rows of the journal.
                self.journal.append({"there": there}, sync=True)
            self._settle(there)

    def _open(self) -> None:
        """Find out what is there, and begin or continue."""
        there = _digest(self.path)
        if not self._joins:
            self._there = there
            self.journal.restart(self._header())
            return
        if not self.journal:
            if there is not None:
                raise ConfigError(
                    f"{self.path}: is there already and is not known to be a file of predictions, since "
                    f"{self.journal.file.name} is not"
                    " beside it; choose another --out, or remove it"
                )
            self.journal.restart(self._header())
            return
        lines = self.journal.lines()
        header = next(lines, None) or self._earlier(there)
        self._check_settings(header["settings"])
        self._there, self._joins, self._plan, self._stamps = (
            header["there"],
            header["joins"],
            header["plan"],
            header["stamps"],
        )
        settled = False
        for line in lines:
            settled = line.get("there") == there is not None
            if "rows" in line:
                self._count(line["rows"], line["stamps"])
        if settled:
            self._there, self._joins = there, True
        self._check(there)
        try:
            self.written = {row["path"]: row.get("error") for row in self._old_rows(("path", "error"))}
        except (ValueError, KeyError) as error:
            raise ConfigError(
                f"{self.path}: is no longer a file of predictions; choose another --out, or remove it and "
                f"{self.journal.file.name}"
            ) from error
        if settled:
            self._settle(there)

    def _earlier(self, there: str | None) -> dict[str, Any]:
        """The header of a journal whose first line is none of ours: of version 0.1.0, where each line was a row."""
        try:
            settings, *rows = [
                json.loads(line)
                for line in self.journal.file.read_text("utf-8").splitlines(True)
                if line.endswith("\n")
            ]
            rows = list({row["path"]: row for row in rows}.values())
            self._check_settings(dict(settings))
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{self.journal.file}: is damaged, so that {self.path.name} cannot be continued; choose another "
                "--out, or replace it by"
                " --overwrite (in Python resume=False)"
            ) from error
        self._there = there
        self.journal.restart(self._header())
        if rows:
            self.journal.append({"rows": rows, "stamps": {}})
            self._count(rows, {})
        return self._header()

    def _check_settings(self, before: dict[str, Any]) -> None:
        changed = [key for key in {**before, **self.settings} if before.get(key) != self.settings.get(key)]
        if changed:
            raise ConfigError(
                f"{self.path}: was begun with another {' and '.join(changed)}; choose another --out, or replace it by "
                "--overwrite"
                " (in Python resume=False)"
            )

    def _header(self) -> dict[str, Any]:
        return {
            "settings": self.settings,
            "there": self._there,
            "joins": self._joins,
            "plan": self._plan,
            "stamps": self._stamps,
        }

    def _count(self, rows: Sequence[Row], stamps: dict[str, Any]) -> None:
        self._batches += 1
        self.waiting |= {row["path"]: row["error"] for row in rows}
        self._stamps |= stamps

    def _settle(self, there: str | None) -> None:
        """The file has all rows now."""
        self.written = {**(self.written if self._joins else {}), **self.waiting}
        self._stamps = {path: stamp for path, stamp in self._stamps.items() if self.written.get(path)}
        self._there, self._joins, self._plan, self._batches, self.waiting = there, True, "", 0, {}
        self.journal.restart(self._header())

    def _missing(self, images: Sequence[Named], retry: bool) -> list[Named]:
        return [image for image in images if not self._keeps(image, retry)]

    def _keeps(self, image: Named, retry: bool) -> bool:
        """Whether the file has a row of the image that is to stay."""
        name = as_text(image.path)
        if not self._joins or name not in self.written:
            return False
        if self.written[name] is None:
            return True
        stamp = self._stamps.get(name)
        return not retry and stamp is not None and stamp == _stamp(image.path)

    def _rows(self) -> Iterator[Row]:
        """Rows of the file but those that were predicted again, then those of the journal."""
        yield from (row for row in self._old_rows() if row["path"] not in self.waiting)
        yield from (row for line in self.journal.lines() for row in line.get("rows", ()))

    def _old_rows(self, columns: Sequence[str] | None = None) -> Iterator[Row]:
        return read_rows(self.path, columns) if self._joins and self._there is not None else iter(())

    def _check(self, there: str | None) -> None:
        """See that the file is as it was left.

        Args:
            there: digest of the file as it is.
        """
        if there == self._there or (there is None and not self._joins):
            return
        what = (
            "is gone"
            if there is None
            else "was changed by another program"
            if self._there
            else "was put there by another program"
        )
        mend = "move it away" if self._there is None else "put the file back as it was"
        raise StorageError(
            f"{self.path}: {what}; {self._safe()}{mend} and repeat the command, choose another --out, or predict "
            "everything again by"
            " --overwrite (in Python resume=False)"
        )

    def _safe(self) -> str:
        return (
            f"the rows of {len(self.waiting):,} images are safe in {self.journal.file.name}; " if self.waiting else ""
        )

    def _storing(self, file: Path) -> AbstractContextManager[None]:
        return storing(file, f"{self._safe()}make space, or mend the rights, and repeat the command")


def _remove_leftovers(path: Path) -> None:
    """Temporary files of calls that were killed, also of version 0.1.0. To be called by who holds the lock."""
    for name in (path.name, f".{path.name}.foveal"):
        remove_unfinished(path.parent, glob.escape(name))
        for file in path.parent.glob(f".{glob.escape(name)}.*"):
            if file.name.removeprefix(f".{name}.").isdecimal():
                with suppress(OSError):
                    file.unlink()


def _plan(images: Sequence[Named], batch_size: int) -> str:
    """A name of these images in these batches."""
    return hashlib.blake2b(
        json.dumps([batch_size, [image.path for image in images]]).encode(), digest_size=8
    ).hexdigest()


def _digest(path: Path) -> str | None:
    """16 hexadecimal digits of what a file holds; None where there is none."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).hexdigest()
    except FileNotFoundError:
        return None


def _stamp(path: str, since: int | None = None) -> Any:
    """What changes when a file does; of one that changed after ``since`` None, as it may have been read before."""
    try:
        found = os.stat(path)  # noqa: PTH116 (Path raises where a name is too long)
    except (OSError, ValueError):
        return "missing"
    stamp = [found.st_size, found.st_mtime_ns, found.st_ctime_ns]
    return None if since is not None and max(stamp[1:]) >= since else stamp


def fingerprint(model: nn.Module) -> str:
    """16 hexadecimal digits that change when the weights of a model or its classes do."""
    digest = hashlib.blake2b(
        repr((getattr(model, "class_names", ()), getattr(model, "size", None))).encode(), digest_size=8
    )
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def write_rows(path: Path, rows: Iterable[Row], suffix: str) -> None:
    """Write rows as they come, holding a thousand at most; ``suffix`` names the format.

    Texts of CSV files are written by `foveal.display.as_cell`, so that no spreadsheet takes one for a formula.
    `read_rows` gives back what was written; the other formats hold every text as it is.
    """
    if suffix == ".parquet":
        _write_parquet(path, rows)
        return
    with path.open("w", encoding="utf-8", newline="") as file:
        if suffix == ".jsonl":
            file.writelines(json.dumps(row) + "\n" for row in rows)
            return
        table = csv.DictWriter(file, COLUMNS)
        table.writeheader()
        table.writerows({key: _to_csv(value) for key, value in row.items()} for row in rows)


def _to_csv(value: Any) -> Any:
    if isinstance(value, str):
        return as_cell(value)
    return json.dumps(value) if isinstance(value, list) else value


def read_rows(path: Path, columns: Sequence[str] | None = None) -> Iterator[Row]:
    """Rows of a file that `write_rows` wrote; with ``columns`` these alone, in less time, if the format allows it."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        from pyarrow.parquet import ParquetFile

        with ParquetFile(path) as parquet:
            for batch in parquet.iter_batches(1000, columns=columns):
                yield from batch.to_pylist()
        return
    with path.open(encoding="utf-8", newline="") as file:
        if suffix == ".jsonl":
            yield from map(json.loads, file)
            return
        csv.field_size_limit(2**31 - 1)
        for row in csv.DictReader(file):
            yield {key: _from_csv(key, text) for key, text in row.items() if columns is None or key in columns}


def _from_csv(column: str, text: str) -> Any:
    if column in ("path", "label", "error"):
        return from_cell(text) or None
    return json.loads(text) if text else None


def _write_parquet(path: Path, rows: Iterable[Row]) -> None:
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    top = pa.struct({"label": pa.string(), "probability": pa.float32()})
    glimpse = pa.struct(
        {"box": pa.list_(pa.float64()), "level": pa.int32(), "probability": pa.float32(), "mpp": pa.float64()}
    )
    types = {
        "path": pa.string(),
        "label": pa.string(),
        "probability": pa.float32(),
        "top_k": pa.list_(top),
        "locations": pa.int32(),
        "glimpses": pa.list_(glimpse),
        "mpp": pa.float64(),
        "macs": pa.int64(),
        "bytes_read": pa.int64(),
        "seconds": pa.float64(),
        "error": pa.string(),
    }
    rows = iter(rows)
    with ParquetWriter(path, pa.schema(types)) as table:
        while some := list(islice(rows, 1000)):
            table.write_table(pa.Table.from_pylist(some, table.schema))

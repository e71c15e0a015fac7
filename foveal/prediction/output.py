"""Output files of predictions: Parquet, CSV or JSON Lines. An interrupted prediction can be continued.

Rows of finished batches are appended to a journal beside the output (``.NAME.foveal``): the first line holds the
settings, each other line a batch. At the end the rows of the journal are merged with those of the output, which is
written under a temporary name and renamed. The journal then holds the settings and a digest of the output, by which the
next call decides whether it can continue the output.

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
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext, suppress
from dataclasses import dataclass, field
from itertools import islice, product
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from foveal.choices import FORMATS
from foveal.display import as_cell, from_cell
from foveal.errors import ConfigError, ImageError, StorageError
from foveal.files import locked, remove_unfinished, replacing, storing
from foveal.images import LeftOut, find_mask, is_path
from foveal.images.uris import is_remote
from foveal.importing import need_parquet
from foveal.policies import Policy
from foveal.prediction.device import check_precision
from foveal.prediction.early_exit import Exit
from foveal.prediction.journal import Journal
from foveal.prediction.predictor import Model, Predictor
from foveal.prediction.rows import (
    COLUMNS,
    Named,
    Row,
    as_text,
    check_how,
    check_masks,
    completed,
    find_named,
    predict_rows,
)


@dataclass(frozen=True)
class Summary:
    """The outcome of a call of `predict`.

    Attributes:
        images: number of images found, and of paths that led to none.
        predicted: number of images predicted by this call.
        skipped: number of images whose row was written by an earlier call, rows with an error included.
        failed: (path, error) of each image that failed, in an earlier call or in this one.
        seconds: wall time.
        out: the output file; None if there is none.
        rows: the predictions, if there is no output file.
        left_out: files and folders that are not images, counted by reason.
    """

    images: int
    predicted: int
    skipped: int
    failed: tuple[tuple[str, str], ...]
    seconds: float
    out: Path | None = None
    rows: tuple[Row, ...] = field(default=(), repr=False)
    left_out: LeftOut = field(default_factory=LeftOut)


class Sink(Protocol):
    """What is written for each image besides its row, see `foveal.annotations`."""

    def has(self, path: str) -> bool:
        """Whether it is there already, by an earlier call.

        Args:
            path: the column ``path`` of the row.
        """

    def write(self, row: Row) -> None:
        """Write it. The row may be of an image that failed."""


def predict(
    model: Model,
    paths: Any,
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
    out: str | Path | None = None,
    resume: bool = True,
    retry: bool = False,
    masks: str | Path | None = None,
    headers: str | Path | None = None,
    sinks: Sequence[Sink] = (),
    on_progress: Callable[[int, int, list[Row]], None] | None = None,
    on_scan: Callable[[float, int], None] | None = None,
) -> Summary:
    """Classify many images: one row per image, see `foveal.prediction.rows.COLUMNS`.

    An image that cannot be read has a row with an ``error``; the others are predicted. With ``out``, repeating a call
    that was interrupted or killed continues it. The batches, the order of the rows and all values except ``seconds``
    equal those of an uninterrupted call.

    With other images or another batch size, the images without a row are predicted, and their rows appended in the
    order given. An image with a row is not predicted again, even if its file has changed. A row with an error is
    replaced if the file has changed, was missing or is remote, or with ``retry``.

    Batch size, threads and device may differ between calls; they change values by rounding errors only. Model,
    locations, policy, precision, top_k and seed may not. Only one call at a time may write to an output, and no other
    program may change it between calls.

    The ``path`` of an image in memory is its index, ``[3]``. An output with such rows cannot be continued, because
    another call may have another image at that index.

    Args:
        model: a classifier, a dense network, or a run folder.
        paths: an image, any iterable of images, or a (B, C, H, W) tensor. An image is a file, a folder or a pattern,
            see `foveal.prediction.rows.find_images`, or an image in memory, see `foveal.classify`.
        out: ``.parquet``, ``.csv`` or ``.jsonl`` file; rows are returned if None.
        resume: continue ``out`` if it exists; otherwise it is replaced.
        retry: predict the images with an error in ``out`` again.
        sinks: further outputs, such as `foveal.annotations.LooksFolder`. Each gets a row before this is stored, and the
            rows of earlier calls that it has not written yet.
        on_progress: called after each batch with the number of images done, the number of all images, and the batch's
            rows.
        on_scan: called during scans of large images with the number of images done, which includes fractions, and the
            number of all images.
        locations, policy, batch_size, threads, device, precision, top_k, seed, until, masks, headers: see
            `foveal.prediction.rows.predict_rows`.

    Raises:
        ConfigError: an argument is invalid, or the output was written with another model or other settings.
        RunError: the run folder is missing or damaged.
        StorageError: another call writes to the output, another program changed it, or it cannot be written. The rows
            of earlier batches are safe.
    """
    start = time.perf_counter()
    check_how(batch_size=batch_size, threads=threads, top_k=top_k, until=until)
    check_precision(precision)
    predictor = Predictor(model, device=device, precision=precision)
    policy = policy or predictor.model.usual_policy
    looks = predictor.locations(locations, policy)
    check_masks(predictor, masks)
    left_out = LeftOut()
    found = find_named(paths, left_out)
    settings = settings_of(predictor, locations=looks, policy=policy, top_k=top_k, seed=seed, until=until, masks=masks)
    with nullcontext() if out is None else Output(Path(out), settings, resume) as output:
        todo, first_batch, failed, kept, safe = found, 0, [], [], "that are there"
        try:
            if output is not None:
                _check_names(output, found)
                todo, first_batch = output.begin(found, batch_size, retry)
                failed = output.failures(found, todo[first_batch * batch_size :])
                _catch_up(sinks, output, found, todo[first_batch * batch_size :])
            skipped = done = len(found) - len(todo[first_batch * batch_size :])
            safe = f"of {done:,} of {len(found):,} images"

            def scanned(share: float) -> None:
                if on_scan is not None:
                    on_scan(done + share * min(batch_size, len(found) - done), len(found))

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
                masks=masks,
                headers=headers,
                on_scan=scanned,
            )
            before = len(failed)
            with closing(batches):
                for rows in batches:
                    for sink, row in product(sinks, rows):
                        sink.write(row)
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
                again = "" if resume else " without `overwrite`"
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


def settings_of(
    predictor: Predictor,
    *,
    locations: Sequence[int],
    policy: str | Policy,
    top_k: int,
    seed: int,
    until: Exit | None,
    masks: str | Path | None,
) -> dict[str, Any]:
    """What determines the rows of predictions: the model and the settings, as plain values. See `predict`."""
    settings: dict[str, Any] = {
        "model": fingerprint(predictor.model),
        "locations": list(locations),
        "policy": str(policy),
        "precision": predictor.precision,
        "top_k": top_k,
        "seed": seed,
    }
    if thresholds := predictor.model.task.thresholds:
        settings["thresholds"] = [list(pair) for pair in thresholds]
    if until is not None:
        settings["budget"] = [until.threshold, list(until.locations), until.at_once]
    if masks is not None:
        settings["masks"] = os.path.realpath(masks)
    return settings


def _catch_up(sinks: Sequence[Sink], output: Output, found: Sequence[Named], todo: Sequence[Named]) -> None:
    """Give sinks the rows of earlier calls that they have not written."""
    if not sinks:
        return
    done = {as_text(image.path) for image in found} - {as_text(image.path) for image in todo}
    lacking = [(sink, {path for path in done if not sink.has(path)}) for sink in sinks]
    if not any(paths for _, paths in lacking):
        return
    for row in output.rows():
        for sink, paths in lacking:
            if row["path"] in paths and not row["error"]:
                sink.write(row)


def _check_names(output: Output, images: Sequence[Named]) -> None:
    """Check that no image in memory has the name of a row that an earlier call wrote."""
    for image in images:
        if not is_path(image.image) and (image.path in output.written or image.path in output.waiting):
            raise ConfigError(
                f"{output.path}: has a row of an image {image.path} in memory, which may be another image; "
                "choose another `out`, or replace it by resume=False"
            )


class Output:
    """A file of predictions with its journal, locked until it is closed.

    Args:
        path: the file; its suffix is one of `FORMATS`. If it is a link, its target is written.
        settings: plain values that determine the predictions. An output is continued only with equal settings.
        resume: continue an existing file; otherwise it is replaced by `finish`.

    Attributes:
        written: error, or None, of each path in the file.
        waiting: error, or None, of each path that only the journal has.

    Raises:
        ConfigError: the suffix is unknown, the folder does not exist, or the file was written with other settings.
        StorageError: another call writes to the file, another program changed it, or the disk is full.
    """

    def __init__(self, path: Path, settings: dict[str, Any], resume: bool = True) -> None:
        if path.suffix.lower() not in FORMATS:
            raise ConfigError(
                f"{path}: predictions are written as {', '.join(FORMATS)}; give the output one of these suffixes"
            )
        if path.suffix.lower() == ".parquet":
            need_parquet(path)
        if not path.parent.is_dir():
            raise ConfigError(f"{path}: there is no folder {path.parent}; make it first")
        self.path = Path(os.path.realpath(path))
        self.settings = json.loads(json.dumps(settings))
        self.written: dict[str, str | None] = {}
        self.waiting: dict[str, str | None] = {}
        self._stamps: dict[str, Any] = {}  # of the files with an error
        self._files: dict[str, Any] = {}  # by the paths in rows, see `Named`
        self._there: str | None = None  # digest of the file after the last write
        self._joins = resume  # whether the rows of the file are kept
        self._batches = 0
        self._plan = ""
        self._start = time.time_ns()
        with ExitStack() as stack:
            taken = f"{path}: another call writes predictions there; wait for its end, or choose another `out`"
            stack.enter_context(locked(self.path.with_name(f".{self.path.name}.lock"), taken))
            _remove_leftovers(self.path)
            with storing(self.path, "choose another `out`, or make space and repeat the command"):
                self.journal = Journal(self.path.with_name(f".{self.path.name}.foveal"))
                stack.callback(self.journal.close)
                self._open()
            self._stack = stack.pop_all()

    def __enter__(self) -> Output:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the lock. The journal stays."""
        self._stack.close()

    def begin(self, images: Sequence[Named], batch_size: int, retry: bool = False) -> tuple[list[Named], int]:
        """Determine the images to predict.

        A call with the same images and batch size continues the batches of the interrupted call. Any other call first
        merges the journal into the file, and forms batches of the images without a row.

        Args:
            images: all images.
            batch_size: images per batch.
            retry: predict all images with an error again. If False, only those whose file has changed or was missing.

        Returns:
            The images, and the number of their batches that an interrupted call finished.
        """
        self._files = {as_text(image.path): image.image for image in images if is_path(image.image)}
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
        """Append the rows of a batch to the journal.

        Raises:
            StorageError: they cannot be written. The rows of earlier batches are safe.
        """
        stamps = {row["path"]: self._stamp(row["path"], self._start) for row in rows if row["error"]}
        with self._storing(self.journal.file):
            self.journal.append({"rows": rows, "stamps": stamps})
        self._count(rows, stamps)

    def failures(self, images: Sequence[Named], todo: Sequence[Named]) -> list[tuple[str, str]]:
        """(path, error) of the images that have a row with an error and are not in ``todo``."""
        errors = {**self.written, **self.waiting}
        others = {image.path for image in todo}
        named = [(as_text(image.path), image.path) for image in images]
        return [(name, error) for name, path in named if path not in others and (error := errors.get(name))]

    @property
    def unfinished(self) -> bool:
        """Whether `finish` would change the file."""
        return self._there is None or not self._joins or bool(self._batches)

    def finish(self) -> None:
        """Merge the journal into the file.

        Raises:
            StorageError: the file cannot be written, or another program changed it. The rows are safe in the journal.
        """
        with self._storing(self.path):
            self._check(_digest(self.path))
            with replacing(self.path) as unfinished:
                write_rows(unfinished, self.rows(), self.path.suffix.lower())
                there = _digest(unfinished)
                self._check(_digest(self.path))
                # If the process ends before the next line, the digest shows that the file has the journal's rows.
                self.journal.append({"there": there}, sync=True)
            self._settle(there)

    def _open(self) -> None:
        """Read the journal and the file, and start or continue."""
        there = _digest(self.path)
        if not self._joins:
            self._there = there
            self.journal.restart(self._header())
            return
        if not self.journal:
            if there is not None:
                raise ConfigError(
                    f"{self.path}: exists, but {self.journal.file.name} does not, so it may not be a file of "
                    "predictions; choose another `out`, or remove it"
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
                f"{self.path}: is no longer a file of predictions; choose another `out`, or remove it and "
                f"{self.journal.file.name}"
            ) from error
        if settled:
            self._settle(there)

    def _earlier(self, there: str | None) -> dict[str, Any]:
        """Convert a journal of version 0.1.0, which has a row per line, and return the new header."""
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
                "`out`, or replace it by `overwrite` (in Python resume=False)"
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
                f"{self.path}: was written with other settings ({', '.join(changed)}); choose another `out`, or "
                "replace it by `overwrite` (in Python resume=False)"
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
        """Clear the journal after its rows were merged into the file, whose digest is ``there``."""
        self.written = {**(self.written if self._joins else {}), **self.waiting}
        self._stamps = {path: stamp for path, stamp in self._stamps.items() if self.written.get(path)}
        self._there, self._joins, self._plan, self._batches, self.waiting = there, True, "", 0, {}
        self.journal.restart(self._header())

    def _missing(self, images: Sequence[Named], retry: bool) -> list[Named]:
        return [image for image in images if not self._keeps(image, retry)]

    def _keeps(self, image: Named, retry: bool) -> bool:
        """Whether the file has a row of the image that is not to be replaced."""
        name = as_text(image.path)
        if not self._joins or name not in self.written:
            return False
        if self.written[name] is None:
            return True
        stamp = self._stamps.get(name)
        return not retry and stamp is not None and stamp == self._stamp(name)

    def _stamp(self, path: str, since: int | None = None) -> Any:
        """`_stamp` of an image, and of its mask if there are masks."""
        stamp, masks = _stamp(self._files.get(path, path), since), self.settings.get("masks")
        if masks is None:
            return stamp
        try:
            mask = _stamp(os.fspath(find_mask(masks, path)), since)
        except ImageError:
            mask = "missing"
        return None if stamp is None or mask is None else [stamp, mask]

    def rows(self) -> Iterator[Row]:
        """Rows of the file without those predicted again, then rows of the journal."""
        yield from (completed(row) for row in self._old_rows() if row["path"] not in self.waiting)
        yield from (completed(row) for line in self.journal.lines() for row in line.get("rows", ()))

    def _old_rows(self, columns: Sequence[str] | None = None) -> Iterator[Row]:
        return read_rows(self.path, columns) if self._joins and self._there is not None else iter(())

    def _check(self, there: str | None) -> None:
        """Check that no other program changed the file.

        Args:
            there: digest of the file now.
        """
        if there == self._there or (there is None and not self._joins):
            return
        what = (
            "is gone"
            if there is None
            else "was changed by another program"
            if self._there
            else "was created by another program"
        )
        mend = "move it away" if self._there is None else "put the file back as it was"
        raise StorageError(
            f"{self.path}: {what}; {self._safe()}{mend} and repeat the command, choose another `out`, or predict "
            "everything again by `overwrite` (in Python resume=False)"
        )

    def _safe(self) -> str:
        return (
            f"the rows of {len(self.waiting):,} images are safe in {self.journal.file.name}; " if self.waiting else ""
        )

    def _storing(self, file: Path) -> AbstractContextManager[None]:
        return storing(file, f"{self._safe()}make space, or change the permissions, and repeat the command")


def _remove_leftovers(path: Path) -> None:
    """Remove temporary files of killed calls, also those of version 0.1.0. The caller holds the lock."""
    for name in (path.name, f".{path.name}.foveal"):
        remove_unfinished(path.parent, glob.escape(name))
        for file in path.parent.glob(f".{glob.escape(name)}.*"):
            if file.name.removeprefix(f".{name}.").isdecimal():
                with suppress(OSError):
                    file.unlink()


def _plan(images: Sequence[Named], batch_size: int) -> str:
    """A digest of the paths and the batch size."""
    return hashlib.blake2b(
        json.dumps([batch_size, [image.path for image in images]]).encode(), digest_size=8
    ).hexdigest()


def _digest(path: Path) -> str | None:
    """Digest of a file's content, 16 hexadecimal digits; None if it does not exist."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).hexdigest()
    except FileNotFoundError:
        return None


def _stamp(path: str, since: int | None = None) -> Any:
    """Size and times of a file, or "missing". None if it changed after ``since``: it may have been read before. None
    also if it is remote: to ask for its state takes as long as to open it.
    """
    if is_remote(path):
        return None
    try:
        found = os.stat(path)  # noqa: PTH116 (Path raises where a name is too long)
    except (OSError, ValueError):
        return "missing"
    stamp = [found.st_size, found.st_mtime_ns, found.st_ctime_ns]
    return None if since is not None and max(stamp[1:]) >= since else stamp


_ATTRIBUTES = ("class_names", "size", "squash", "antialias", "crop", "value_range", "image_size", "shorter_side")
_ADDRESS = re.compile(r" at 0x[0-9a-f]+", re.IGNORECASE)  # in the repr of a function, different in each process


def fingerprint(model: nn.Module) -> str:
    """Digest of a model: its weights, its structure and how it reads images; 16 hexadecimal digits.

    Networks may differ in their structure alone, for example in activations or strides.
    """
    networks = [model, *filter(None, [getattr(model, "network", None)])]
    described = {
        "kinds": [f"{type(one).__module__}.{type(one).__qualname__}" for one in networks],
        "structure": repr(model),
        "spec": {key: value for key, value in getattr(model, "spec", {}).items() if not key.endswith("pretrained")},
        "attributes": {key: getattr(model, key, None) for key in _ATTRIBUTES},
        "normalisation": [getattr(model, key).tolist() for key in ("mean", "std") if hasattr(model, key)],
    }
    text = json.dumps(described, sort_keys=True, default=repr)
    digest = hashlib.blake2b(_ADDRESS.sub("", text).encode(), digest_size=8)
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def write_rows(path: Path, rows: Iterable[Row], suffix: str, columns: Sequence[str] = COLUMNS) -> None:
    """Write rows, with at most a thousand in memory. The format follows from ``suffix``; Parquet has `COLUMNS`.

    Text in CSV files is escaped by `foveal.display.as_cell`, so that a spreadsheet does not take it for a formula.
    `read_rows` undoes this. The other formats hold text unchanged.
    """
    if suffix == ".parquet":
        _write_parquet(path, rows)
        return
    with path.open("w", encoding="utf-8", newline="") as file:
        if suffix == ".jsonl":
            file.writelines(json.dumps(row) + "\n" for row in rows)
            return
        table = csv.DictWriter(file, columns)
        table.writeheader()
        table.writerows({key: _to_csv(value) for key, value in row.items()} for row in rows)


def _to_csv(value: Any) -> Any:
    if isinstance(value, str):
        return as_cell(value)
    return json.dumps(value) if isinstance(value, list) else value


def read_rows(path: Path, columns: Sequence[str] | None = None) -> Iterator[Row]:
    """Rows of a file that `write_rows` wrote. Parquet and CSV read only ``columns``, if given."""
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
    if column in ("path", "label", "crs", "error", "file_version"):
        return from_cell(text) or None
    return json.loads(text) if text else None


def parquet_types() -> dict[str, Any]:
    """Types of `COLUMNS` in Parquet, of pyarrow."""
    import pyarrow as pa

    number, numbers, whole = pa.float64(), pa.list_(pa.float64()), pa.list_(pa.int32())
    glimpse = {
        "box": numbers,
        "size": whole,
        "level": pa.int32(),
        "parent": pa.int32(),
        "probability": pa.float32(),
        "contribution": number,
        "mpp": number,
        "box_um": numbers,
        "corners": pa.list_(numbers),
    }
    return {
        "path": pa.string(),
        "label": pa.string(),
        "probability": number,
        "top_k": pa.list_(pa.struct({"label": pa.string(), "probability": number})),
        "locations": pa.int32(),
        "glimpses": pa.list_(pa.struct(glimpse)),
        "size": whole,
        "levels": pa.list_(whole),
        "mpp": number,
        "crs": pa.string(),
        "transform": numbers,
        "bounds": whole,
        "macs": pa.int64(),
        "bytes_read": pa.int64(),
        "requests": pa.int32(),
        "bytes": pa.int64(),
        "file_size": pa.int64(),
        "file_version": pa.string(),
        "seconds": number,
        "error": pa.string(),
        "schema": pa.int32(),
    }


def _write_parquet(path: Path, rows: Iterable[Row]) -> None:
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    rows = iter(rows)
    with ParquetWriter(path, pa.schema(parquet_types())) as table:
        while some := list(islice(rows, 1000)):
            table.write_table(pa.Table.from_pylist(some, table.schema))

"""Predictions as a file that grows: Parquet, CSV or JSON Lines, begun, interrupted, continued and finished.

Rows of finished batches are kept in a journal beside the output (``.NAME.foveal``: settings in the first line, a row in each
of the others). At the end they join the rows already in the output, which is written anew under another name and renamed;
then only the settings stay in the journal, so that the next run can tell whether it continues the same work.

Example:
    >>> import tempfile
    >>> out = Output(Path(tempfile.mkdtemp()) / "rows.csv", {"top_k": 1})
    >>> out.add([{"path": "a.tif", "label": "cat", "top_k": [{"label": "cat", "probability": 1.0}]}])
    >>> out.finish()
    >>> [(row["path"], row["top_k"]) for row in read_rows(out.path)]
    [('a.tif', [{'label': 'cat', 'probability': 1.0}])]
"""

from __future__ import annotations

import csv
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from foveal.choices import FORMATS
from foveal.errors import ConfigError
from foveal.files import replacing
from foveal.glimpse.base import GlimpseClassifier
from foveal.images import LeftOut, is_path
from foveal.prediction.device import find_device
from foveal.prediction.early_exit import Exit
from foveal.prediction.rows import (
    COLUMNS,
    Named,
    Row,
    as_text,
    check_locations,
    check_policies,
    failed_row,
    find_named,
    predict_rows,
    ready,
)
from foveal.runs import Run


@dataclass(frozen=True)
class Summary:
    """What a call of `predict` did.

    Attributes:
        images: images found, and paths that led to none.
        predicted: of those, predicted now.
        skipped: predicted by an earlier call that wrote to the same output.
        failed: (path, one sentence) of each that failed.
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
    model: GlimpseClassifier | nn.Module | Run | str | Path, paths: Any, *, locations: Sequence[int] | None = None,
    policy: str = "greedy", batch_size: int = 8, threads: int | None = None, device: str | torch.device = "auto", precision: str = "32",
    top_k: int = 5, seed: int = 0, until: Exit | None = None, out: str | Path | None = None, resume: bool = True,
    on_progress: Callable[[int, int, list[Row]], None] | None = None,
) -> Summary:  # fmt: skip
    """Classify many images: one row an image, see `foveal.prediction.rows.COLUMNS`.

    Bad images do not stop the others; they are rows with an ``error``. With ``out``, a call that was interrupted goes on
    where it stopped when it is repeated; images that were predicted are not predicted again, new ones are appended, and
    those that failed are tried again.

    Images in memory are named in the column ``path`` by their place in what is given, ``[3]``. That tells nobody which image it was,
    so that an output with rows of such names is not continued.

    Args:
        model: a classifier, a dense network, or a run folder.
        paths: an image, any iterable of images, or a (B, C, H, W) tensor. An image is a file, a folder or a pattern, see
            `foveal.prediction.rows.find_images`, or one in memory, as `foveal.classify` takes it.
        out: ``.parquet``, ``.csv`` or ``.jsonl`` file; rows are returned if None.
        resume: continue ``out`` if it is there; else it is replaced.
        on_progress: called after each batch with how many images are done, how many there are, and the batch's rows.
        locations, policy, batch_size, threads, device, precision, top_k, seed, until: see `foveal.prediction.rows.predict_rows`.

    Raises:
        ConfigError: an option that does not fit, or an output that was not made with the same model and options.
        RunError: a run folder that is none.
    """
    start = time.perf_counter()
    classifier = ready(model, find_device(device))
    budget = check_locations(classifier, locations)
    check_policies(classifier, [policy])
    left_out = LeftOut()
    found = find_named(paths, left_out)
    output = None
    if out is not None:
        settings = {
            "model": fingerprint(classifier),
            "locations": list(budget),
            "policy": policy,
            "precision": precision,
            "top_k": top_k,
            "seed": seed,
        }
        if until is not None:
            settings["budget"] = [until.threshold, list(until.locations), until.at_once]
        output = Output(Path(out), settings, resume)
        _check_names(output, found)
    todo = [image for image in found if output is None or as_text(image.path) not in output.done]
    nothing = [failed_row(image.path, image.error) for image in todo if image.error]
    batches = predict_rows(
        classifier, [image for image in todo if not image.error], locations=budget, policy=policy, batch_size=batch_size, threads=threads,
        device=device, precision=precision, top_k=top_k, seed=seed, until=until,
    )  # fmt: skip
    done, failed, kept = len(found) - len(todo), [], []
    for rows in chain([nothing] if nothing else [], batches):
        done += len(rows)
        failed += [(row["path"], row["error"]) for row in rows if row["error"]]
        if output is None:
            kept += rows
        else:
            output.add(rows)
        if on_progress is not None:
            on_progress(done, len(found), rows)
    if output is not None and (todo or output.unfinished):
        output.finish()
    return Summary(
        len(found), len(todo) - len(failed), len(found) - len(todo), tuple(failed), time.perf_counter() - start,
        None if out is None else Path(out), tuple(kept), left_out,
    )  # fmt: skip


def _check_names(output: Output, images: Sequence[Named]) -> None:
    """See that no image in memory would be taken for the one that had its place in an earlier call."""
    for image in images:
        if not is_path(image.image) and image.path in output.done:
            raise ConfigError(
                f"{output.path}: has a row of an image {image.path} in memory, which may have been another one; choose another --out, or"
                " replace it by resume=False"
            )


class Output:
    """A file of predictions with its journal.

    Args:
        path: the file; its suffix is one of `FORMATS`.
        settings: plain values that decide what is predicted; an output is continued only with the same.
        resume: continue what is there; else it is replaced, at the end.

    Attributes:
        done: paths predicted without an error so far.

    Raises:
        ConfigError: another suffix, no such folder, or a file that was not made with these settings.
    """

    def __init__(self, path: Path, settings: dict[str, Any], resume: bool = True) -> None:
        if path.suffix.lower() not in FORMATS:
            raise ConfigError(f"{path}: predictions are written as {', '.join(FORMATS)}; give the output one of these suffixes")
        if not path.parent.is_dir():
            raise ConfigError(f"{path}: there is no folder {path.parent}; make it first")
        self.path = path
        self.journal = path.with_name(f".{path.name}.foveal")
        self.settings = json.loads(json.dumps(settings))
        self.resume = resume
        try:
            # Written anew in any case: what follows the part of a line that a killed process left would be lost with it.
            self._write_journal(self._journal_rows() if resume and self._continues() else [])
            self.done = {row["path"] for row in self._rows() if row.get("error") is None}
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read or written ({error.strerror}); choose another --out") from error
        except (ValueError, KeyError) as error:
            raise ConfigError(
                f"{path}: is no longer a file of predictions; choose another --out, or remove it and {self.journal.name}"
            ) from error

    def add(self, rows: Sequence[Row]) -> None:
        """Keep the rows of a batch, so that they survive an interruption."""
        with self.journal.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)

    @property
    def unfinished(self) -> bool:
        """Whether there are rows that the file does not have yet."""
        if not self.path.exists():
            return True
        with self.journal.open(encoding="utf-8") as file:
            return sum(1 for _ in zip(file, range(2), strict=False)) > 1

    def finish(self) -> None:
        """Write the output."""
        with replacing(self.path) as unfinished:
            write_rows(unfinished, self._rows(), self.path.suffix.lower())
        self._write_journal([])
        self.resume = True

    def _continues(self) -> bool:
        """Whether there is something to continue; raises where it is something else."""
        if not self.journal.exists():
            if self.path.exists():
                raise ConfigError(
                    f"{self.path}: is there already and is not known to be a file of predictions; choose another --out, or remove it"
                )
            return False
        try:
            with self.journal.open(encoding="utf-8") as file:
                before = json.loads(file.readline())
        except ValueError:
            before = {}
        changed = [key for key in {**before, **self.settings} if before.get(key) != self.settings.get(key)]
        if changed:
            raise ConfigError(
                f"{self.path}: was begun with another {' and '.join(changed)}; choose another --out, or replace it by --overwrite"
                " (in Python resume=False)"
            )
        return True

    def _rows(self) -> Iterator[Row]:
        """Rows of the output, then those of the journal; of two with one path the later."""
        last = {row["path"]: i for i, row in enumerate(self._all_rows())}
        return (row for i, row in enumerate(self._all_rows()) if last[row["path"]] == i)

    def _all_rows(self) -> Iterator[Row]:
        if self.resume and self.path.exists():
            yield from read_rows(self.path)
        yield from self._journal_rows()

    def _journal_rows(self) -> Iterator[Row]:
        with self.journal.open(encoding="utf-8") as file:
            for line in islice(file, 1, None):
                if line.endswith("\n"):
                    yield json.loads(line)

    def _write_journal(self, rows: Iterable[Row]) -> None:
        with replacing(self.journal) as unfinished, unfinished.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in [self.settings, *rows])


def fingerprint(model: nn.Module) -> str:
    """16 hexadecimal digits that change when the weights of a model or its classes do."""
    digest = hashlib.blake2b(repr((getattr(model, "class_names", ()), getattr(model, "size", None))).encode(), digest_size=8)
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def write_rows(path: Path, rows: Iterable[Row], suffix: str) -> None:
    """Write rows as they come, holding a thousand at most; ``suffix`` names the format."""
    if suffix == ".parquet":
        _write_parquet(path, rows)
        return
    with path.open("w", encoding="utf-8", newline="") as file:
        if suffix == ".jsonl":
            file.writelines(json.dumps(row) + "\n" for row in rows)
            return
        table = csv.DictWriter(file, COLUMNS)
        table.writeheader()
        table.writerows({key: json.dumps(value) if isinstance(value, list) else value for key, value in row.items()} for row in rows)


def read_rows(path: Path) -> Iterator[Row]:
    """Rows of a file that `write_rows` wrote."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        from pyarrow.parquet import ParquetFile

        with ParquetFile(path) as parquet:
            for batch in parquet.iter_batches(1000):
                yield from batch.to_pylist()
        return
    with path.open(encoding="utf-8", newline="") as file:
        if suffix == ".jsonl":
            yield from map(json.loads, file)
            return
        csv.field_size_limit(2**31 - 1)
        for row in csv.DictReader(file):
            yield {key: _from_csv(key, text) for key, text in row.items()}


def _from_csv(column: str, text: str) -> Any:
    if column in ("path", "label", "error"):
        return text or None
    return json.loads(text) if text else None


def _write_parquet(path: Path, rows: Iterable[Row]) -> None:
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    top = pa.struct({"label": pa.string(), "probability": pa.float32()})
    glimpse = pa.struct({"box": pa.list_(pa.float64()), "level": pa.int32(), "probability": pa.float32(), "mpp": pa.float64()})
    types = {
        "path": pa.string(), "label": pa.string(), "probability": pa.float32(), "top_k": pa.list_(top), "locations": pa.int32(),
        "glimpses": pa.list_(glimpse), "mpp": pa.float64(), "macs": pa.int64(), "bytes_read": pa.int64(), "seconds": pa.float64(),
        "error": pa.string(),
    }  # fmt: skip
    rows = iter(rows)
    with ParquetWriter(path, pa.schema(types)) as table:
        while some := list(islice(rows, 1000)):
            table.write_table(pa.Table.from_pylist(some, table.schema))

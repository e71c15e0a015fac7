"""Tables of images, of which only the rows that are asked for are held in memory.

Example:
    >>> import tempfile
    >>> table = Path(tempfile.mkdtemp()) / "images.csv"
    >>> _ = table.write_text("path\\na.png\\nb.png\\nc.png\\n")
    >>> manifest = open_manifest(table)
    >>> manifest.rows, manifest.paths(range(1, 3)), manifest.images(range(1))[0].path
    (3, ['b.png', 'c.png'], 'a.png')
"""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from foveal.data.folder import base_folder, existing, placed
from foveal.errors import DataError
from foveal.images.header_index import beside
from foveal.images.uris import shown
from foveal.importing import need_parquet
from foveal.prediction.rows import Named

PARQUET = (".parquet", ".pq")
"""Suffixes of Parquet files. Other tables are CSV."""


@dataclass(frozen=True)
class Manifest:
    """A table with the column ``path``. Its rows are numbered from 0. An image may be in several rows.

    Attributes:
        file: the table, CSV or Parquet, as an absolute path.
        root: folder that paths are relative to, as an absolute path, or its address.
        rows: number of rows.
        digest: 16 hexadecimal digits: of a CSV file, or of the footer of a Parquet file, which has the sizes, places
            and statistics of its columns. Neither depends on the place of the file.
        stamp: size, time and number of the file when it was opened. If they differ, the digest is compared.
    """

    file: Path
    root: str | Path
    rows: int
    digest: str
    stamp: tuple[int, int, int]

    @property
    def headers(self) -> Path | None:
        """The index of the headers of its remote images beside it, if there is one."""
        index = beside(self.file)
        return index if index.exists() else None

    def paths(self, rows: range) -> list[str]:
        """Paths of consecutive rows as they are written; empty where there is none. A Parquet file is read from the
        row group of the first row, a CSV file from its start.

        Raises:
            DataError: the table cannot be read, or was changed since it was opened.
        """
        with _reading(self.file):
            found = list(islice(_cells(self.file, rows.start), len(rows)))
            stamp = _stamp(self.file)
            same = stamp == self.stamp or _digest(self.file, stamp) == self.digest
        if not same or len(found) < len(rows):
            raise DataError(f"{self.file}: was changed while it was in use; run the command again")
        return ["" if path is None else str(path).strip() for path in found]

    def images(self, rows: range) -> list[Named]:
        """Images of consecutive rows, named by their paths as they are written, without secrets of addresses. A row
        without a path is an error of this image.

        Raises:
            DataError: see `paths`.
        """
        return [
            Named(shown(path), placed(path, self.root))
            if path
            else Named("", "", f"{self.file.name}: row {number} has no path; complete it or remove it")
            for number, path in zip(rows, self.paths(rows), strict=True)
        ]


def open_manifest(file: str | Path, root: str | Path | None = None) -> Manifest:
    """Open a table. A CSV file is read once, to count its rows; of a Parquet file only the footer is read.

    Args:
        file: the table, with the column ``path``.
        root: folder or address that paths are relative to; the folder of the table if None.

    Raises:
        ConfigError: it is a Parquet file, and pyarrow is not installed.
        DataError: the table or the folder does not exist, the table cannot be read, lacks the column, or has no rows.
    """
    table = Path(os.path.abspath(existing(file)))  # noqa: PTH100 (links are kept)
    base = table.parent if root is None else base_folder(root)
    base = base if isinstance(base, str) else Path(os.path.abspath(base))  # noqa: PTH100
    if table.suffix.lower() in PARQUET:
        need_parquet(table)
    with _reading(table):
        stamp = _stamp(table)
        rows, columns, digest = _describe(table)
    if (count := columns.count("path")) != 1:
        what = "is missing" if not count else f"is there {count} times"
        raise DataError(f"{table}: the column 'path' {what}; name the one with the paths of images so")
    if not rows:
        raise DataError(f"{table}: there are no rows; list at least one image")
    return Manifest(table, base, rows, digest, stamp)


def _stamp(table: Path) -> tuple[int, int, int]:
    stat = table.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


@lru_cache(8)
def _digest(table: Path, stamp: tuple[int, int, int]) -> str:
    return _describe(table)[2]


def _describe(table: Path) -> tuple[int, list[str], str]:
    """Number of rows, names of columns, and digest of a table."""
    with table.open("rb") as file:
        if table.suffix.lower() in PARQUET:
            from pyarrow.parquet import ParquetFile

            with ParquetFile(table) as parquet:
                rows, columns = parquet.metadata.num_rows, parquet.schema_arrow.names
                if columns.count("path") == 1:
                    _check_type(table, parquet.schema_arrow.field("path").type)
            file.seek(-8, os.SEEK_END)
            length = int.from_bytes(file.read(4), "little")
            file.seek(-8 - length, os.SEEK_END)
            return rows, columns, hashlib.blake2b(file.read(length), digest_size=8).hexdigest()
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).hexdigest()
    with table.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, strict=True)
        columns = list(reader.fieldnames or [])
        return sum(1 for _ in reader), columns, digest


def _check_type(table: Path, kind: Any) -> None:
    """Check that a column of a Parquet file holds text. Some programs write text as bytes.

    Raises:
        DataError: it does not.
    """
    import pyarrow as pa

    plain = kind.value_type if pa.types.is_dictionary(kind) else kind
    if plain not in (pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.null()):
        raise DataError(f"{table}: the column 'path' holds {kind}, not text; write the paths of images into it")


def _cells(table: Path, first: int) -> Iterator[str | None]:
    """Cells of the column ``path`` from a row on."""
    if table.suffix.lower() not in PARQUET:
        with table.open(encoding="utf-8-sig", newline="") as lines:
            yield from (row["path"] for row in islice(csv.DictReader(lines, strict=True), first, None))
        return
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    with ParquetFile(table) as parquet:
        groups, before = list(range(parquet.num_row_groups)), 0
        while groups and before + parquet.metadata.row_group(groups[0]).num_rows <= first:
            before += parquet.metadata.row_group(groups.pop(0)).num_rows
        skip = first - before
        for batch in parquet.iter_batches(65_536, row_groups=groups, columns=["path"]):
            yield from batch.column(0)[skip:].cast(pa.string()).to_pylist()
            skip = max(0, skip - len(batch))


@contextmanager
def _reading(table: Path) -> Iterator[None]:
    """Convert errors of reading.

    Raises:
        DataError: the table cannot be read.
    """
    try:
        yield
    except (ValueError, NotImplementedError, csv.Error, OSError) as error:  # errors of pyarrow are of these types
        kind = "a Parquet file" if table.suffix.lower() in PARQUET else "a CSV file in UTF-8"
        reason = str(error).partition("\n")[0]
        raise DataError(f"{table}: this is not {kind} that can be read ({reason}); write it anew") from error

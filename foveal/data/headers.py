"""Indexing the headers of the remote images that a table lists, see `foveal.images.header_index`.

Example:
    >>> import pathlib, tempfile
    >>> table = pathlib.Path(tempfile.mkdtemp(), "images.csv")
    >>> _ = table.write_text("path,label\\na.tif,cat\\n")
    >>> index_images([table])
    Traceback (most recent call last):
    ...
    foveal.errors.DataError: ...images.csv: lists no remote image; files on this machine need no index
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from foveal.data.folder import existing, placed, records_of
from foveal.errors import ConfigError, DataError, FovealError
from foveal.images.header_index import SUFFIX, Entry, beside, make_entry, write_index
from foveal.images.remote import list_images, settings
from foveal.images.uris import is_folder, is_remote, shown

TABLES = (".csv", ".parquet", ".pq")


class Indexed(NamedTuple):
    """The outcome of a call of `index_images`.

    Attributes:
        out: the index.
        images: number of images in it.
        failed: (address without secrets, error) of the images that cannot be opened.
    """

    out: Path
    images: int
    failed: list[tuple[str, str]]


def index_images(
    paths: Sequence[str | os.PathLike[str]],
    *,
    out: str | os.PathLike[str] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Indexed:
    """Read the headers of remote images, and write them into an index; none if no image can be opened.

    Args:
        paths: tables with a column ``path``, CSV or Parquet; addresses of images, and of folders, which end with a
            slash.
        out: the index, whose name ends in ``.headers.parquet``; beside the first table if None.
        on_progress: called with the number of images done, and of all.

    Raises:
        ConfigError: there is no table and no ``out``, or a path is neither a table nor an address.
        DataError: a table cannot be read, or there is no remote image.
        ImageError: a folder cannot be listed.
        StorageError: the index cannot be written.
    """
    tables = [Path(path) for path in paths if not is_remote(path)]
    for table in tables:
        if table.suffix.lower() not in TABLES:
            raise ConfigError(f"{table}: is neither a table ({', '.join(TABLES)}) nor an address; give one of these")
    if out is None and not tables:
        raise ConfigError(f"`out` is not given, and there is no table to write the index beside; give NAME{SUFFIX}")
    target = Path(out) if out is not None else beside(tables[0])
    uris: dict[str, None] = {}
    for path in paths:
        uris |= dict.fromkeys(_addresses(os.fspath(path)))
    if not uris:
        raise DataError(f"{tables[0] if tables else shown(os.fspath(paths[0]))}: {_NONE}")
    failed: list[tuple[str, str]] = []
    entries: list[Entry] = []
    with ThreadPoolExecutor(settings().requests, "foveal-index") as pool:
        for done, found in enumerate(pool.map(_entry, uris), start=1):
            if isinstance(found, Entry):
                entries.append(found)
            else:
                failed.append(found)
            if on_progress is not None:
                on_progress(done, len(uris))
    if entries:
        write_index(target, entries)
    return Indexed(target, len(entries), failed)


_NONE = "lists no remote image; files on this machine need no index"


def _addresses(path: str) -> list[str]:
    """The remote images of a table, a folder or an address."""
    if is_remote(path):
        return list_images(path).paths if is_folder(path) else [path]
    table = existing(path)
    found = []
    for number, record in records_of(table):
        if "path" not in record:
            raise DataError(f"{table}: the column 'path' is missing; name it so")
        if not record["path"]:
            raise DataError(f"{table}: row {number} has no path; complete it or remove it")
        found.append(placed(str(record["path"]).strip(), table.parent))
    return [one for one in found if is_remote(one)]


def _entry(uri: str) -> Entry | tuple[str, str]:
    try:
        return make_entry(uri)
    except FovealError as error:
        return shown(uri), str(error)

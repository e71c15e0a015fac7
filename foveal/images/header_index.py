"""An index of the headers of remote images: one Parquet file, from which images are opened without a request.

An entry has the size and the ETag of an object, and of tiled TIFFs the bytes of the header with the lists of tiles, as
far as these are short. It describes the object as it was then: a read of an object that has changed since is an error.
Entries are found by a digest of the address, so the file has no secrets.

Example:
    >>> import pathlib, tempfile
    >>> file = pathlib.Path(tempfile.mkdtemp(), "slides.headers.parquet")
    >>> entry = Entry("s3://slides/a.svs", State(2048, '"5f0d"', 0.0), {0: b"II*"})
    >>> write_index(file, [entry])
    >>> find(file, "s3://slides/a.svs").state
    State(size=2048, etag='"5f0d"', modified=0.0)
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from foveal.errors import DataError, ImageError
from foveal.files import replacing, storing
from foveal.images.remote import RemoteObject, State
from foveal.images.uris import identity, shown
from foveal.importing import need_parquet

SUFFIX = ".headers.parquet"
_GROUP = 64  # entries that are read together
_MAGIC = 64  # bytes that tell the format
_LISTS = 256 << 10  # lists of tiles of a level are stored if they have at most so many bytes
_VERSION = b"1"


class Entry(NamedTuple):
    """An image of an index.

    Attributes:
        uri: its address.
        state: its size, ETag and time.
        pages: bytes of its header by position; those that tell the format of images that are read whole.
    """

    uri: str
    state: State
    pages: dict[int, bytes]


def beside(table: str | os.PathLike[str]) -> Path:
    """Path of the index of the images that a table lists.

    >>> beside("data/images.csv").name
    'images.headers.parquet'
    """
    return Path(table).with_suffix(SUFFIX)


def make_entry(uri: str) -> Entry:
    """Read what an index holds of an image.

    Raises:
        ImageError: the image cannot be opened.
    """
    from foveal.images.open import open_image
    from foveal.images.remote import RemoteObject
    from foveal.images.tiff import TiffPyramid

    with open_image(uri, value_range=(0, 1), convert=False) as image:
        remote = image.remote
        if not isinstance(remote, RemoteObject):
            raise ImageError(f"{image.path}: has no header that can be indexed; leave it out, it is read without")
        if not remote.state.is_version:
            what = "its server gives neither an ETag nor a time, so that a change would not be noticed"
            raise ImageError(f"{image.path}: {what}; leave it out, it is read without")
        if not isinstance(image, TiffPyramid):
            return Entry(uri, remote.state, {0: remote.read_up_to(_MAGIC, 0)})
        image.read_lists(_LISTS)
        return Entry(uri, remote.state, remote.pages)


def write_index(file: str | os.PathLike[str], entries: Iterable[Entry]) -> None:
    """Write an index. It has a column ``path`` for people, with the addresses without secrets.

    Raises:
        DataError: pyarrow is not installed.
        StorageError: the file cannot be written.
    """
    need_parquet(Path(file))
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {
            "key": _key(entry.uri),
            "path": shown(entry.uri),
            **entry.state._asdict(),
            "starts": list(entry.pages),
            "bytes": list(entry.pages.values()),
        }
        for entry in entries
    ]
    types: dict[str, Any] = {
        "key": pa.binary(16),
        "path": pa.string(),
        "size": pa.int64(),
        "etag": pa.string(),
        "modified": pa.float64(),
        "starts": pa.list_(pa.int64()),
        "bytes": pa.list_(pa.binary()),
    }
    schema = pa.schema(types, {"foveal_headers": _VERSION})
    table = pa.Table.from_pylist(sorted(rows, key=lambda row: row["key"]), schema)
    with storing(file), replacing(Path(file)) as unfinished:
        pq.write_table(table, unfinished, row_group_size=_GROUP, compression="zstd", write_page_checksum=True)


def find(file: str | os.PathLike[str], uri: str) -> RemoteObject:
    """An image as the index describes it, without a request; as the server describes it if the index lacks it.

    Raises:
        DataError: the file is not an index of headers.
        ImageError: see `RemoteObject`.
    """
    row = _opened(os.fspath(file)).row(_key(uri))
    if row is None:
        return RemoteObject(uri)
    return RemoteObject(
        uri, State(row["size"], row["etag"], row["modified"]), dict(zip(row["starts"], row["bytes"], strict=True))
    )


class _Index:
    """An open index. Its keys are in memory, 16 bytes each, and the last group of entries that was read."""

    def __init__(self, file: str) -> None:
        need_parquet(Path(file))
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            self._parquet = pq.ParquetFile(file, page_checksum_verification=True)
            if (self._parquet.schema_arrow.metadata or {}).get(b"foveal_headers") != _VERSION:
                raise ValueError("another kind of table")
            keys = self._parquet.read(["key"]).column("key").to_pylist()
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            raise DataError(f"{file}: is not an index of headers; write it by foveal index") from error
        self._file = file
        self._keys = np.array(keys, dtype="S16") if keys else np.empty(0, "S16")
        self._lock = threading.Lock()
        self._group: tuple[int, Sequence[dict[str, Any]]] = (-1, [])

    def row(self, key: bytes) -> dict[str, Any] | None:
        place = int(np.searchsorted(self._keys, np.array(key, dtype="S16")))
        group, inside = divmod(place, _GROUP)
        if place == len(self._keys):
            return None
        with self._lock:
            if self._group[0] != group:
                try:
                    self._group = group, self._parquet.read_row_group(group).to_pylist()
                except Exception as error:  # of pyarrow
                    raise DataError(f"{self._file}: is damaged; write it again by foveal index") from error
            row = self._group[1][inside]
        return row if row["key"] == key else None


@lru_cache(8)
def _open(file: str, size: int, time: int, process: int) -> _Index:
    return _Index(file)


def _opened(file: str) -> _Index:
    try:
        stat = Path(file).stat()
    except OSError as error:
        raise DataError(f"{file}: there is no such index of headers; write it by foveal index") from error
    return _open(file, stat.st_size, stat.st_mtime_ns, os.getpid())


def _key(uri: str) -> bytes:
    # No zero bytes, which numpy drops at the end of a key.
    return hashlib.sha256(identity(uri).encode()).digest()[:16].replace(b"\0", b"\1")

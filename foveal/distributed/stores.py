"""Where parts are kept: a folder, or a bucket of an object store. A part is whole or not there, and is not replaced.

Example:
    >>> import tempfile
    >>> store = open_store(tempfile.mkdtemp())
    >>> with store.working("a") as folder:
    ...     (folder / "a.unfinished").write_text("first") and store.put("a", folder / "a.unfinished")
    ...     (folder / "a.unfinished").write_text("second") and store.put("a", folder / "a.unfinished")
    True
    False
    >>> store.read("a"), store.read("b"), list(store.names())
    (b'first', None, ['a'])
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from shutil import rmtree
from typing import Any, Protocol

from foveal.errors import ConfigError, FovealError, StorageError
from foveal.files import locked, storing
from foveal.images.reading import short
from foveal.images.remote import fault_of, s3_options, start_client
from foveal.images.uris import shown

SCHEMES = ("s3://", "gs://", "az://")
"""What the address of an object store begins with."""

AGAIN = "make space, or change the permissions, and run the same command again"


class Store(Protocol):
    """A place for parts.

    Attributes:
        name: its folder or URL, for messages and for `open_store`.
    """

    name: str

    def has(self, name: str) -> bool:
        """Whether a file is there."""

    def names(self) -> Iterator[str]:
        """Names of all files, in no order."""

    def read(self, name: str) -> bytes | None:
        """Content of a file; None if it is not there."""

    def source(self, name: str) -> Any:
        """A file as pyarrow takes it."""

    def put(self, name: str, file: Path, replace: bool = False) -> bool:
        """Publish a file, which is whole at once under its name.

        Args:
            name: its name in the store.
            file: a local file, in the folder of `working`, which is removed.
            replace: replace a file that is there.

        Returns:
            Whether it was published; False if there is one already.

        Raises:
            StorageError: it cannot be written.
        """

    def working(self, name: str) -> Any:
        """A context with a local folder for the files from which a file is made. If the process is killed, the next
        one gets the same folder where that is possible, and no other process gets it at the same time.
        """


class FolderStore:
    """A folder, which is created if it does not exist.

    Raises:
        ConfigError: there is a file of this name.
        StorageError: the folder cannot be created.
    """

    def __init__(self, folder: str | Path, create: bool = True) -> None:
        self.folder = Path(os.path.abspath(Path(folder).expanduser()))  # noqa: PTH100 (links are kept)
        self.name = str(self.folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise ConfigError(f"{folder}: is a file; give a folder for the parts")
        if create:
            with storing(self.folder, "choose another folder"):
                self.folder.mkdir(parents=True, exist_ok=True)
        elif not self.folder.is_dir():
            raise ConfigError(f"{folder}: there is no such folder; check the path")

    def has(self, name: str) -> bool:
        with _reading(self, name):
            return (self.folder / name).exists()

    def names(self) -> Iterator[str]:
        with _reading(self, ""), os.scandir(self.folder) as entries:
            yield from (entry.name for entry in entries if not entry.name.startswith("."))

    def read(self, name: str) -> bytes | None:
        with _reading(self, name), suppress(FileNotFoundError):
            return (self.folder / name).read_bytes()
        return None

    def source(self, name: str) -> Any:
        return self.folder / name

    def put(self, name: str, file: Path, replace: bool = False) -> bool:
        target = self.folder / name
        with storing(target, AGAIN):
            with file.open("rb+") as written:
                os.fsync(written.fileno())
            if not replace:
                try:
                    os.link(file, target)  # fails if there is a file, which a rename would replace
                except FileExistsError:
                    file.unlink()
                    return False
                except OSError:  # a file system without hard links
                    if target.exists():
                        file.unlink()
                        return False
                else:
                    file.unlink()
                    return True
            file.replace(target)
        return True

    @contextmanager
    def working(self, name: str) -> Iterator[Path]:
        with ExitStack() as stack:
            for number in count():
                # Another process may make the same. It may be one that a scheduler has given up, so this one does not
                # wait for it, and takes another folder.
                lock, taken = self.folder / f".{name}{f'.{number}' * (number > 0)}.lock", "another process"
                try:
                    stack.enter_context(locked(lock, taken))
                except StorageError as error:
                    if str(error) != taken:
                        raise
                else:
                    break
            if number:
                folder = lock.with_suffix("")
                with storing(folder, AGAIN):
                    folder.mkdir(exist_ok=True)
                yield folder
                rmtree(folder, ignore_errors=True)
            else:
                yield self.folder
                self._remove_left(name)

    def _remove_left(self, name: str) -> None:
        """Remove the folders of killed processes that made the same."""
        for folder in self.folder.glob(f".{name}.[0-9]*"):
            if folder.is_dir():
                with suppress(StorageError), locked(Path(f"{folder}.lock"), "another process"):
                    rmtree(folder, ignore_errors=True)


@contextmanager
def _reading(store: FolderStore, name: str) -> Iterator[None]:
    """Convert errors of reading a file into a `StorageError`."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{store.folder / name}: cannot be read ({short(error)}); correct its permissions, or move it away"
        ) from error


class ObjectStore:
    """A folder of a bucket: ``s3://bucket/folder``, ``gs://...`` or ``az://...``. Credentials are those of the
    environment, as obstore finds them. A file is written by a conditional request.

    Raises:
        ConfigError: obstore is not installed, or this is not the address of a store.
    """

    def __init__(self, url: str) -> None:
        if shown(url) != url or not url.startswith(SCHEMES):
            raise ConfigError(
                f"{shown(url)}: is not the address of a folder of an object store; write it as s3://bucket/folder, "
                "gs://... or az://..., and set credentials in the environment"
            )
        if find_spec("obstore") is None:
            raise ConfigError(f"{url}: object stores need obstore; run pip install 'foveal[remote]'")
        from obstore.store import from_url

        self.name = url.rstrip("/")
        try:
            self._store = from_url(self.name, **(s3_options() if url.startswith("s3://") else {}))
        except Exception as error:
            fault = fault_of(error)
            raise ConfigError(f"{url}: {fault.what}; {fault.advice}") from None

    def has(self, name: str) -> bool:
        with self._asking(name) as obstore:
            try:
                obstore.head(self._store, name)
            except (obstore.exceptions.NotFoundError, FileNotFoundError):
                return False
        return True

    def names(self) -> Iterator[str]:
        with self._asking("") as obstore:
            for some in obstore.list(self._store):
                yield from (entry["path"] for entry in some)

    def read(self, name: str) -> bytes | None:
        with self._asking(name) as obstore:
            try:
                return bytes(obstore.get(self._store, name).bytes())
            except (obstore.exceptions.NotFoundError, FileNotFoundError):
                return None

    def source(self, name: str) -> Any:
        import pyarrow as pa

        content = self.read(name)
        if content is None:
            raise StorageError(f"{self.name}/{name}: is gone; run the same command again")
        return pa.BufferReader(content)

    def put(self, name: str, file: Path, replace: bool = False) -> bool:
        with self._asking(name) as obstore:
            try:
                # An upload in pieces cannot be conditional.
                obstore.put(self._store, name, file, mode="overwrite" if replace else "create", use_multipart=False)
            except (obstore.exceptions.AlreadyExistsError, FileExistsError):
                return False
            finally:
                file.unlink()
        return True

    @contextmanager
    def working(self, name: str) -> Iterator[Path]:
        with ExitStack() as stack:
            with storing("the folder for temporary files", "make space in it, or set TMPDIR to another one"):
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="foveal-"))
            yield Path(folder)

    @contextmanager
    def _asking(self, name: str) -> Iterator[Any]:
        """Yield obstore; convert its errors into a `StorageError`. Their text may have secrets."""
        place = f"{self.name}/{name}"
        try:
            yield start_client(place)
        except FovealError:
            raise
        except Exception as error:
            fault = fault_of(error)
            what, advice = fault.what, fault.advice
            if fault.status == 404:
                what, advice = "there is no such bucket", "check the address"
            raise StorageError(f"{place}: {what}; {advice}") from None


def open_store(place: str | Path, create: bool = True) -> Store:
    """The store at a place.

    Args:
        place: a folder, or a URL of an object store.
        create: create a folder that does not exist.

    Raises:
        ConfigError, StorageError: see `FolderStore` and `ObjectStore`.
    """
    return ObjectStore(str(place)) if "://" in str(place) else FolderStore(place, create)

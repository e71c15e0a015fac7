"""Objects in stores, read by ranges of bytes: S3, Google Cloud Storage, Azure, HTTP. Needs the extra ``remote``.

The reader of a file decides which bytes it needs; obstore sends the requests. One request reads the first bytes of an
object, and its size and ETag. `RemoteObject.fetch` then reads any number of ranges in one parallel round. Ranges are
joined if they nearly touch, and only then. Bytes are kept on the local disk (`foveal.images.range_cache`).

Every request names the ETag that was seen first, and every answer is compared with it and with the range that was asked
for, so the bytes of two versions of an object are never mixed. Answers of overloaded or failing servers, lost
connections and short answers are requested again, with increasing waiting times. What remains is an `ImageError`.

Credentials are those of the environment (obstore reads the variables of each store), or for S3 those that boto3 finds,
if it is installed. They never appear in messages, see `foveal.images.uris`.

Environment:
    FOVEAL_REMOTE_REQUESTS: requests of a process at a time; 32.
    FOVEAL_REMOTE_TIMEOUT: seconds until a request is given up; 30.
    FOVEAL_REMOTE_RETRIES: how often a request is repeated; 4.
    FOVEAL_REMOTE_CACHE_BYTES: size of the cache on the disk, see `foveal.images.range_cache`; 0 for none.

Example:
    >>> spans = [(0, 100), (100, 50), (5_000_000, 10)]
    >>> [(start, end) for start, end, _ in joined(spans)]
    [(0, 150), (5000000, 5000010)]
"""

from __future__ import annotations

import base64
import hashlib
import os
import posixpath
import random
import re
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

from foveal.errors import ConfigError, ImageError
from foveal.formats import BASE, SUFFIXES
from foveal.images.range_cache import user_cache
from foveal.images.reading import memory_limit
from foveal.images.uris import identity, shown, suffix_of
from foveal.images.walk import UNKNOWN, FoundFiles, set_apart

Span = tuple[int, int]
"""(position, length) in bytes."""

FIRST = 64 << 10  # bytes of an object that are read first
FIRST_PLAIN = 1 << 20  # the same for formats that are read whole
_AHEAD = 32 << 10  # bytes that are read at once where a header continues elsewhere
_PAGE = 16 << 10  # unit in which lists of tiles are read
_NEAR = 4 << 10  # ranges are joined if at most so many bytes lie between them
_PART = 8 << 20  # longest range of one request, unless a single tile is longer
_HELD = 4 << 20  # bytes of headers that an object keeps in memory
_NEXT = 16 << 20  # bytes of the next looks that an object keeps in memory
_PICKLED = 256 << 10
_FIRST_WAIT = 0.2  # seconds before the first repetition; each following wait is twice as long
_LONGEST_WAIT = 30.0
_LARGEST_SETTING = 1_000_000
_TIFF = {".tif", ".tiff", ".btf", ".tf8", ".ptif", ".ptiff", ".svs", ".qptiff"}
_PLAIN = set(BASE) - _TIFF - {".jxl"}
_READ = tuple(_TIFF | _PLAIN)
LOCAL_ONLY = "of a format that is read from local files only"
_AGAIN = {408, 425, 429, 500, 502, 503, 504}
_OWN_URL = re.compile(r"[\w.\-/]*", re.ASCII)  # paths of URLs that a store may hold without another encoding

_started_in: int | None = None


class Settings(NamedTuple):
    """Limits of requests; see the module."""

    requests: int
    timeout: float
    retries: int


def settings() -> Settings:
    """The limits of requests, from the environment.

    Raises:
        ConfigError: a variable is not a number, or too small.
    """
    return Settings(
        int(_number("FOVEAL_REMOTE_REQUESTS", 32, 1)),
        _number("FOVEAL_REMOTE_TIMEOUT", 30, 0.001),
        int(_number("FOVEAL_REMOTE_RETRIES", 4, 0)),
    )


def _number(name: str, default: float, least: float) -> float:
    text = os.environ.get(name, "")
    if not text:
        return default
    if not re.fullmatch(r"[0-9]+(\.[0-9]+)?", text) or not least <= float(text) <= _LARGEST_SETTING:
        limits = f"from {least:g} to {_LARGEST_SETTING:,}"
        raise ConfigError(f"{name} is {text!r}; set it to a number {limits}, or unset it")
    return float(text)


class State(NamedTuple):
    """What identifies the content of an object.

    Attributes:
        size: in bytes.
        etag: its ETag; "" if the server gives none.
        modified: seconds since 1970 when it was modified, if the ETag is weak or there is none; 0 if not known.
    """

    size: int
    etag: str
    modified: float

    @classmethod
    def of(cls, meta: Any) -> State:
        """The state in the metadata of an answer."""
        etag = meta["e_tag"] or ""
        return cls(int(meta["size"]), etag, 0.0 if _is_strong(etag) else meta["last_modified"].timestamp())

    @property
    def is_version(self) -> bool:
        """Whether another version has another state. If not, the object must not be remembered."""
        return bool(self.etag or self.modified)


def _is_strong(etag: str) -> bool:
    """Whether an ETag tells versions apart byte by byte. Others never match the header If-Match."""
    return etag.startswith('"')


class RemoteObject:
    """An object in a store. Threads may share it, and it can be pickled.

    Args:
        uri: its address.
        state: its state if it is known, as from an index of headers; else the first request asks for it.
        pages: bytes of its headers that are known, by position.

    Attributes:
        name: the address without secrets.
        state: its size, ETag and time.
        requests: number of requests, repetitions included.
        bytes: number of bytes received.

    Raises:
        ImageError: the object does not exist, access is denied, the server does not answer, or the object is empty.
    """

    def __init__(self, uri: str, state: State | None = None, pages: dict[int, bytes] | None = None) -> None:
        self.uri = uri
        self.name = shown(uri)
        self.requests = 0
        self.bytes = 0
        self._lock = threading.Lock()
        self._pages = dict(pages or {})
        self._whole: bytes | None = None
        self._next: dict[Span, bytes] = {}
        self._known = state
        self._salt = os.urandom(16).hex()
        if state is None:
            first = FIRST_PLAIN if suffix_of(uri) in _PLAIN else FIRST
            self._pages = {0: next(self._requested([(0, first)]))}

    @property
    def state(self) -> State:
        assert self._known is not None
        return self._known

    @property
    def size(self) -> int:
        return self.state.size

    @property
    def key(self) -> str:
        """Digest of the address, without what signs it, and of the state; if this is no version, of this object."""
        salt = "" if self.state.is_version else self._salt
        return hashlib.sha256(f"{identity(self.uri)}\n{self.state}{salt}".encode()).hexdigest()[:40]

    @property
    def pages(self) -> dict[int, bytes]:
        """The bytes of headers that were read, by position."""
        with self._lock:
            return dict(self._pages)

    def __getstate__(self) -> dict[str, Any]:
        pages = self.pages
        small = sum(map(len, pages.values())) <= _PICKLED
        left = {"_lock": None, "_whole": None, "_next": {}, "_pages": pages if small else {}}
        return {**self.__dict__, **left}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def read_up_to(self, length: int, position: int) -> bytes:
        """Bytes of a header, fewer at the end of the object. They are kept in memory, with some that follow."""
        length = max(0, min(length, self.size - position))
        if length == 0 or position < 0:
            return b""
        found = self._held(position, length)
        if found is None:
            end = min(self.size, position + max(length, _AHEAD))
            self._keep([(position, end - position)])
            found = self._held(position, length)
        return self.fetch([(position, length)])[0] if found is None else found

    def ahead(self, spans: Iterable[Span]) -> None:
        """Read small parts of headers, such as entries of lists of tiles, in one parallel round, and keep them."""
        pages = set()
        for position, length in spans:
            length = min(length, self.size - position)
            if position >= 0 and length > 0 and self._held(position, length) is None:
                pages |= set(range(position // _PAGE, (position + length - 1) // _PAGE + 1))
        self._keep([(page * _PAGE, min(_PAGE, self.size - page * _PAGE)) for page in sorted(pages)])

    def fetch(self, spans: Sequence[Span]) -> list[bytes]:
        """Read ranges in one parallel round.

        Raises:
            ValueError: a range goes past the end of the object.
            ImageError: the object changed, or the server fails.
        """
        found: list[bytes | None] = []
        cache, key, keeps = user_cache(), self.key, self.state.is_version
        for position, length in spans:
            if position < 0 or position + length > self.size:
                raise ValueError("it lies past the end of the file")
            data = b"" if length == 0 else self._next.pop((position, length), None) or self._held(position, length)
            found.append(cache.get(key, position, length) if data is None and keeps else data)
        missing = [i for i, data in enumerate(found) if data is None]
        requests = joined([spans[i] for i in missing])
        answers = self._requested([(start, end - start) for start, end, _ in requests])
        for (start, _, members), answer in zip(requests, answers, strict=True):
            for i in (missing[place] for place in members):
                position, length = spans[i]
                part = found[i] = answer[position - start : position - start + length]
                if keeps:
                    cache.put(key, position, part)
        return [data or b"" for data in found]

    def hold(self, spans: Sequence[Span]) -> None:
        """Read ranges in one parallel round, and keep them in memory until `fetch` returns them or the next call of
        this. Ranges that go past the end of the object, and those beyond `_NEXT` bytes, are left to `fetch`.

        Raises:
            ImageError: the object changed, or the server fails.
        """
        chosen, total = [], 0
        for span in dict.fromkeys(spans):
            total += span[1]
            if total > _NEXT:
                break
            if span[0] >= 0 and sum(span) <= self.size and span[1]:
                chosen.append(span)
        found = dict(zip(chosen, self.fetch(chosen), strict=True))
        with self._lock:
            self._next = found

    def whole(self, limit: int) -> bytes:
        """All bytes of the object, which are kept in memory until `release`.

        Args:
            limit: largest size in bytes.

        Raises:
            ImageError: the object is larger.
        """
        self._check_whole(self.size, limit)
        if self._whole is None:
            start = self._pages.get(0, b"")
            spans = [(at, min(_PART, self.size - at)) for at in range(len(start), self.size, _PART)]
            self._whole = b"".join([start, *self.fetch(spans)])
        return self._whole

    def _check_whole(self, size: int, limit: int) -> None:
        if size > limit:
            what = f"has {size:,} bytes and must be read whole, and the limit is {limit:,}"
            raise ImageError(f"{self.name}: {what}; store it as a tiled TIFF, or raise --max-bytes or FOVEAL_MAX_BYTES")

    def release(self) -> None:
        """Forget the bytes that `whole` read."""
        self._whole = None

    def _held(self, position: int, length: int) -> bytes | None:
        with self._lock:
            for start, data in self._pages.items():
                if start <= position and position + length <= start + len(data):
                    return data[position - start : position - start + length]
        whole = self._whole  # another thread may release it
        return None if whole is None else whole[position : position + length]

    def _keep(self, spans: Sequence[Span]) -> None:
        if not spans:
            return
        # Neighbouring pages become one, so that parts which cross their border are found.
        runs = [(start, end - start) for start, end, _ in joined(spans, near=0)]
        for (start, _), data in zip(runs, self.fetch(runs), strict=True):
            with self._lock:
                self._pages[start] = data
                while len(self._pages) > 1 and sum(map(len, self._pages.values())) > _HELD:
                    self._pages.pop(next(iter(self._pages)))

    def _requested(self, spans: Sequence[Span]) -> Iterator[bytes]:
        """The bytes of ranges, each by a request, in parallel."""
        if not spans:
            return iter(())
        limits = settings()
        obstore = start_client(self.name)
        store, path = open_store(self.uri, limits.timeout)
        pool = threads(limits.requests)
        futures = [pool.submit(self._get, obstore, store, path, span, limits.retries) for span in spans]
        try:
            return iter([future.result() for future in futures])
        finally:
            for future in futures:
                future.cancel()

    def _get(self, obstore: Any, store: Any, path: str, span: Span, retries: int) -> bytes:
        for attempt in range(retries + 1):
            with self._lock:
                self.requests += 1
            try:
                return self._answer(obstore, store, path, span)
            except ImageError:
                raise
            except Exception as error:
                if self._known is None and fault_of(error).status == 416:
                    raise ImageError(f"{self.name}: the file is empty; copy it again") from None
                wait = wait_after(error, self.name, attempt, retries)
            time.sleep(wait)
        raise AssertionError("unreachable")

    def _answer(self, obstore: Any, store: Any, path: str, span: Span) -> bytes:
        """The answer to one request, checked against what was asked for. If the server has no ranges, files that are
        read whole anyway are fetched at once.
        """
        position, length = span
        known = self._known
        options: dict[str, Any] = {"range": (position, position + length)}
        if known is not None and _is_strong(known.etag):
            options["if_match"] = known.etag
        try:
            answer = obstore.get(store, path, options=options)
        except obstore.exceptions.NotSupportedError:
            if suffix_of(self.uri) not in _PLAIN:
                raise
            with self._lock:
                self.requests += 1
            del options["range"]
            answer = obstore.get(store, path, options=options)
        state = State.of(answer.meta)
        if known is not None and state != known:
            raise _Fault(*_CHANGED)
        asked = min(length, state.size - position)
        if whole := "range" not in options:
            self._check_whole(state.size, memory_limit())
            asked = state.size
        data = bytes(answer.bytes())
        with self._lock:
            self.bytes += len(data)
        if len(data) != asked:
            what = f"the server sent {len(data):,} bytes where {asked:,} were asked for"
            raise _Fault(what, _SERVER, passing=True)
        if known is None:
            self._known = state
        return data[position : position + length] if whole and known is not None else data


def joined(spans: Sequence[Span], near: int = _NEAR) -> list[tuple[int, int, list[int]]]:
    """Join ranges that nearly touch.

    Args:
        spans: the ranges, in any order.
        near: largest gap in bytes between ranges that are joined.

    Returns:
        (start, end, indices in ``spans``) of each request.
    """
    found: list[tuple[int, int, list[int]]] = []
    for i in sorted(range(len(spans)), key=spans.__getitem__):
        start, end = spans[i][0], spans[i][0] + spans[i][1]
        if found and start - found[-1][1] <= near and max(end, found[-1][1]) - found[-1][0] <= _PART:
            first, last, members = found.pop()
            found.append((first, max(last, end), [*members, i]))
        else:
            found.append((start, end, [i]))
    return found


# ------------------------------------------------------------------------------------------------------- the client


def start_client(name: str) -> Any:
    """Import obstore.

    Args:
        name: the address, for messages.

    Raises:
        ImageError: obstore is not installed, or this process was forked from one that used it: its threads do not exist
            here, and a request would wait for ever.
    """
    global _started_in  # noqa: PLW0603
    try:
        import obstore
    except ImportError as error:
        raise ImageError(f"{name}: needs obstore, which is not installed; run: pip install 'foveal[remote]'") from error
    if _started_in not in (None, os.getpid()):
        what = "remote images were read before this process was forked, and cannot be read in it"
        raise ImageError(f"{name}: {what}; start processes by spawn (multiprocessing_context='spawn')")
    _started_in = os.getpid()
    return obstore


def is_started() -> bool:
    """Whether this process used obstore, so that processes forked from it cannot."""
    return _started_in is not None


@lru_cache(128)
def _store(kind: str, place: str, timeout: float) -> Any:
    """A store.

    Args:
        kind: the scheme of its addresses.
        place: bucket or container; of HTTP the address of all or one of its objects.
        timeout: seconds.
    """
    from obstore.store import AzureStore, GCSStore, HTTPStore, S3Store

    # Requests are repeated, and counted, by those who send them.
    client: dict[str, Any] = {"timeout": f"{timeout * 1000:.0f}ms", "connect_timeout": f"{timeout * 1000:.0f}ms"}
    common: dict[str, Any] = {"client_options": client, "retry_config": {"max_retries": 0}}
    if kind in ("http", "https"):
        client["allow_http"] = kind == "http"  # https is not redirected to http
        user, _, host = place.partition("://")[2].partition("/")[0].rpartition("@")
        if user:
            place = place.replace(f"{user}@{host}", host, 1)
            client["default_headers"] = {"authorization": "Basic " + base64.b64encode(unquote(user).encode()).decode()}
        return HTTPStore.from_url(place, **common)
    if kind == "gs":
        return GCSStore(place, **common)
    if kind == "az":
        return AzureStore(place, **common)
    options = s3_options()
    return S3Store(place, **common | options | {"client_options": client | options["client_options"]})


def s3_options() -> dict[str, Any]:
    """Options of a store of S3: the server, and credentials that obstore does not find itself."""
    options: dict[str, Any] = {"client_options": {}}
    endpoint = next((os.environ[k] for k in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL") if os.environ.get(k)), None)
    if endpoint is not None:
        options |= {"endpoint": endpoint, "client_options": {"allow_http": endpoint.startswith("http://")}}
    if (provider := _aws_credentials()) is not None:
        options["credential_provider"] = provider
    return options


def _aws_credentials() -> Any:
    """Credentials of AWS's configuration files, if there are any, no others are set, and boto3 is installed."""
    given = {"AWS_ACCESS_KEY_ID", "AWS_SKIP_SIGNATURE", "AWS_WEB_IDENTITY_TOKEN_FILE"} & os.environ.keys()
    files = [os.environ.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials")]
    files.append(os.environ.get("AWS_CONFIG_FILE", "~/.aws/config"))
    if given or not any(Path(file).expanduser().is_file() for file in files):
        return None
    try:
        from obstore.auth.boto3 import Boto3CredentialProvider

        return Boto3CredentialProvider()
    except Exception:  # boto3 is not installed, or the files have no credentials
        return None


def open_store(uri: str, timeout: float) -> tuple[Any, str]:
    """The store of an object, and its path in it.

    Raises:
        ImageError: the address is not valid.
    """
    kind, _, rest = uri.partition("://")
    kind = kind.lower()
    place, _, path = rest.partition("/")
    if not place:
        raise ImageError(f"{shown(uri)}: has no {'server' if 'http' in kind else 'bucket'}; write {kind}://NAME/PATH")
    if kind in ("http", "https"):
        path, mark, query = path.partition("#")[0].partition("?")
        place = f"{kind}://{place}/{mark}{query}"
        if not _OWN_URL.fullmatch(path) or posixpath.normpath(path) != path:
            # A store would encode the path in its own way. So it is that of the one object.
            place, path = f"{kind}://{rest.partition('#')[0]}", ""
    elif path and {"", ".", ".."} & {*path.removesuffix("/").split("/")}:  # the client would read another object
        raise ImageError(f"{shown(uri)}: {_UNREAD[0]}; {_UNREAD[1]}")
    try:
        return _store(kind, place, timeout), path
    except Exception as error:
        raise fault_of(error).error(shown(uri)) from None


_pools: dict[int, ThreadPoolExecutor] = {}
_making = threading.Lock()


def _forget() -> None:
    """Forget the threads of the process that this one was forked from."""
    global _making  # noqa: PLW0603
    _pools.clear()
    _store.cache_clear()
    _making = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def threads(most: int) -> ThreadPoolExecutor:
    """Threads for at most so many requests at a time, the same for all images."""
    with _making:
        if most not in _pools:
            _pools[most] = ThreadPoolExecutor(most, "foveal-remote")
        return _pools[most]


# ------------------------------------------------------------------------------------------------------- its errors


class _Fault(Exception):
    """A failed request.

    Args:
        what: what failed.
        advice: what to do.
        passing: whether the request may succeed if it is repeated.
        status: status of HTTP; 0 if there is none.
    """

    def __init__(self, what: str, advice: str, passing: bool = False, status: int = 0) -> None:
        super().__init__(what)
        self.what, self.advice, self.passing, self.status = what, advice, passing, status

    def error(self, name: str, attempts: int = 1) -> ImageError:
        """The error of an object whose last attempt failed in this way."""
        times = f", in {attempts} attempts" if attempts > 1 else ""
        return ImageError(f"{name}: {self.what}{times}; {self.advice}")


def wait_after(error: Exception, name: str, attempt: int, retries: int) -> float:
    """Seconds until a failed request is repeated.

    Args:
        error: why it failed.
        name: the object, for the error.
        attempt: number of the attempt, from 0.
        retries: most repetitions.

    Raises:
        ImageError: it is not repeated.
    """
    fault = fault_of(error)
    if attempt == retries or not fault.passing:
        raise fault.error(name, attempt + 1) from None
    return min(_FIRST_WAIT * 2**attempt, _LONGEST_WAIT) * random.uniform(0.5, 1)


_SERVER = "the server or a proxy is faulty, so copy the file and read the copy"
_CHANGED = "was changed while it was read", "open it again, and renew its index if there is one"
_INVALID = "the address, or the configuration of its store in the environment, is not valid", "correct it"
_UNREAD = (
    "a part of a path is empty, has dots only or a control character, which the client of the stores does not read",
    "rename the object, or list others in a table",
)
_ODD = "the server gives an answer that is not understood", "check the address"
_LATER = "try again later"


def fault_of(error: Exception) -> _Fault:
    """Fault of an exception of obstore. Its text is not shown, since it has the whole address."""
    if isinstance(error, _Fault):
        return error
    kind, text = type(error).__name__, str(error)
    named = re.search(r"://(169\.254\.169\.254|metadata\.google)", text)
    found = re.search(r"status code: (\d{3})", text)
    # What follows are names of errors of obstore. Addresses and the text of the server may have the same words.
    text = re.sub(r'\S*://\S*|"(?:[^"\\]|\\.)*"', "", text.partition("Debug source:")[2] or text)
    if named or re.search("MissingCredential|NoCredentials", text):
        advice = "set them in the environment, for a public bucket of S3 AWS_SKIP_SIGNATURE=true"
        return _Fault("there are no credentials for its store", advice)
    status = int(found[1]) if found else 0
    if status in _AGAIN:
        what = f"the server answers that it is overloaded ({status})" if status in (429, 503) else ""
        return _Fault(what or f"the server fails ({status})", _LATER, passing=True, status=status)
    if status == 416 or "StartTooLarge" in text:
        return _Fault(*_CHANGED, status=416)
    if status == 404 or isinstance(error, FileNotFoundError):
        return _Fault("there is no such object", "check the address; that of a folder ends with a slash", status=404)
    if status in (401, 403) or kind in ("PermissionDeniedError", "UnauthenticatedError"):
        advice = "set the credentials of the store in the environment, or renew a signed address"
        return _Fault(f"access is denied ({status or 403})", advice, status=status)
    if status == 412 or kind == "PreconditionError":
        return _Fault(*_CHANGED, status=412)
    if kind == "InvalidPathError":
        return _Fault(*_UNREAD)
    if kind == "NotSupportedError":
        return _Fault("the server sends no ranges of bytes", "copy the file, or serve it by one that does")
    if status:
        return _Fault(f"the server refuses the request ({status})", "check the address", status=status)
    if "MissingContentLength" in text:
        return _Fault("the server does not tell the length of its answer", _SERVER)
    if re.search("UnexpectedRange|NoContentRange|ParseContentRange", text):
        return _Fault("the server answered with another range of bytes than was asked for", _SERVER)
    if "kind: Builder" in text:
        return _Fault(*_INVALID)
    if "Certificate" in text:
        return _Fault("the certificate of the server is not valid", "check the address, or SSL_CERT_FILE")
    if "BareRedirect" in text:
        return _Fault("the server redirects to no address", "check the address, for a bucket of S3 also AWS_REGION")
    if "Redirect" in text:
        return _Fault("the server redirects without an end", "check the address")
    if re.search(r"kind: Timeout|TimedOut", text):
        return _Fault("the server does not answer in time", f"{_LATER}, or raise FOVEAL_REMOTE_TIMEOUT", passing=True)
    if "kind: Connect" in text:
        return _Fault("the server cannot be reached", "check its name and the network", passing=True)
    if re.search(r"kind: (Interrupted|Request|Body|Unknown|Decode)|IncompleteBody|Hyper|reqwest", text):
        return _Fault("the connection was lost", "check the network", passing=True)
    unset = isinstance(error, ValueError) or "must be specified" in text
    return _Fault(*(_INVALID if unset else _ODD))


# ---------------------------------------------------------------------------------------------------------- folders


def list_images(uri: str) -> FoundFiles:
    """The images in a bucket or a folder of one, with its subfolders. Names are selected as in local folders.

    Args:
        uri: its address, with a slash at the end.

    Raises:
        ImageError: it cannot be listed.
    """
    limits = settings()
    obstore = start_client(shown(uri))
    bucket = uri if "/" in uri.partition("://")[2] else uri + "/"
    store, prefix = open_store(bucket, limits.timeout)
    top = bucket[: len(bucket) - len(prefix)]
    found = FoundFiles()
    for attempt in range(limits.retries + 1):
        try:
            listed = [meta["path"] for part in obstore.list(store, prefix.rstrip("/") or None) for meta in part]
            break
        except Exception as error:
            time.sleep(wait_after(error, f"{shown(uri)}: cannot be listed", attempt, limits.retries))
    for path in sorted(listed, key=lambda path: path.split("/")):
        inside = path[len(prefix) :].split("/")
        if reason := next(filter(None, map(set_apart, inside)), None):
            found.left_out.add(reason, top + path)
        elif not path.lower().endswith(_READ):
            found.left_out.add(LOCAL_ONLY if path.lower().endswith(SUFFIXES) else UNKNOWN, top + path)
        else:
            found.paths.append(top + path)
    return found

"""Addresses of remote images: ``s3://``, ``gs://``, ``az://``, ``https://`` and ``http://``.

An address may hold secrets: the signature or token of a query, or a user and a password. They are needed for requests
only. Messages, rows, logs and names of files have the address as `shown` returns it.

Example:
    >>> is_remote("s3://slides/a.svs"), is_remote("slides/a.svs")
    (True, False)
    >>> shown("https://me:secret@example.org/a.svs?X-Amz-Signature=5f0d")
    'https://example.org/a.svs'
    >>> shown("slides/a.svs?"), shown("ftp://me:secret@example.org/a.svs")
    ('slides/a.svs?', 'ftp://example.org/a.svs')
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import re
from typing import Any, TypeGuard
from urllib.parse import unquote

SCHEMES = ("s3://", "gs://", "az://", "https://", "http://")
"""What the address of a remote image begins with."""

_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_HOST = re.compile(r"(.*@)?(\[.*\]|[^:]*)(:[0-9]*)?")
# Parameters of signed addresses of S3, CloudFront, Google and Azure. They change while the object stays the same.
_SIGNING = re.compile("x-amz-.*|x-goog-.*|signature|sig|token|access_token")
# Parameters that belong to a signature only if it is there. Elsewhere they may select the object.
_WITH_SIGNATURE = {
    "signature": {"awsaccesskeyid", "googleaccessid", "expires", "policy", "key-pair-id"},
    "sig": set(re.findall(r"\w+", "sv ss srt sp se st spr sr sip sdd saoid suoid scid skoid sktid skt ske sks skv")),
}


def is_remote(path: Any) -> TypeGuard[str]:
    """Whether a path is the address of a remote object."""
    return isinstance(path, str) and path[:8].lower().startswith(SCHEMES)


def is_remote_zarr(path: str) -> bool:
    """Whether a path is the address of an OME-Zarr image, or of a part of one.

    >>> is_remote_zarr("s3://slides/a.zarr/0"), is_remote_zarr("s3://slides/a.zarr.tif")
    (True, False)
    """
    return is_remote(path) and bool(re.search(r"\.zarr(/|$)", _parts(path)[0], re.IGNORECASE))


def is_folder(path: str) -> bool:
    """Whether an address is a folder of images: it ends with a slash, or is a bucket only. OME-Zarr is one image."""
    if is_remote_zarr(path):
        return False
    return not path[:8].lower().startswith(("http://", "https://")) and (
        path.endswith("/") or "/" not in path.partition("://")[2]
    )


def shown(path: str | os.PathLike[str]) -> str:
    """A path for messages and tables. Addresses, also those that are not read, are without user, password and query;
    other paths are unchanged.

    Parameters of a query that are not known to belong to a signature may select the object. They are replaced by 16
    hexadecimal digits that depend on them, so that different objects have different names.

    >>> shown("https://example.org/get?id=3"), shown("https://example.org/get?id=4")
    ('https://example.org/get?3a61b75b7aa22faa', 'https://example.org/get?83b6a5d9056b37b9')
    """
    path = os.fspath(path)
    if not _ADDRESS.match(path):
        return path
    address, kept = _parts(path)
    return address + (f"?{hashlib.sha256(os.fsencode(kept)).hexdigest()[:16]}" if kept else "")


def identity(uri: str) -> str:
    """A text that is the same for all signed addresses of an object. It may hold secrets: only hash it."""
    address, kept = _parts(uri)
    return f"{address}?{kept}"


def suffix_of(uri: str) -> str:
    """Suffix of the name of an object, in lower case.

    >>> suffix_of("https://example.org/a.TIF?size=large.jpg")
    '.tif'
    """
    return posixpath.splitext(unquote(uri.partition("?")[0]))[1].lower()


def join(root: str, path: str) -> str:
    """Address of a path that is relative to an address.

    >>> join("s3://slides/train", "a.svs")
    's3://slides/train/a.svs'
    """
    return f"{root.rstrip('/')}/{path.replace(os.sep, '/').lstrip('/')}"


def _parts(uri: str) -> tuple[str, str]:
    """The address without secrets, and the parameters of its query that may select the object."""
    scheme, _, rest = uri.partition("://")
    scheme = scheme.lower()
    body, _, query = rest.partition("?")
    if scheme in ("http", "https"):
        body, query = body.partition("#")[0], query.partition("#")[0]
    host, slash, path = body.partition("/")
    if "@" in path and not _HOST.fullmatch(host):  # a password with a slash, which should have been encoded
        host, slash, path = body.rpartition("@")[2].partition("/")
    named = [(part.partition("=")[0].lower(), part) for part in query.split("&") if part]
    dropped = set().union(*(_WITH_SIGNATURE.get(name, set()) for name, _ in named))
    kept = [part for name, part in named if name not in dropped and not _SIGNING.fullmatch(name)]
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}", "&".join(kept)

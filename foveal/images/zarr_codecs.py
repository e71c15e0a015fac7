"""Codecs of Zarr arrays: which are read, and a check that one of them lacks.

Only codecs in a list are read, which turn bytes into numbers and can run no code; pickle is not among them. Blosc of
numcodecs does not know the length of its input: it reads past the end of a chunk that is cut short, and returns wrong
pixels. `guarded` compares this length with that in the header of the chunk first.

Example:
    >>> import tempfile, zarr
    >>> array = zarr.create_array(tempfile.mkdtemp(), shape=(8, 8), dtype="uint8", zarr_format=2)
    >>> check_array("a.zarr", "level 0", array)
    >>> check_blosc(b"cut short")
    Traceback (most recent call last):
    ...
    ValueError: it is 9 bytes long, shorter than a header
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import numpy as np

from foveal.errors import ImageError
from foveal.images.reading import memory_limit

_CODECS = {
    "adler32",
    "astype",
    "bitround",
    "blosc",
    "bytes",
    "bz2",
    "crc32",
    "crc32c",
    "delta",
    "fixedscaleoffset",
    "fletcher32",
    "gzip",
    "jenkins_lookup3",
    "lz4",
    "lzma",
    "packbits",
    "quantize",
    "sharding_indexed",
    "shuffle",
    "transpose",
    "zlib",
    "zstd",
}


def check_array(path: str, name: str, array: Any) -> None:
    """Raise ImageError for anything but an array of numbers with known codecs.

    Args:
        path: path of the image.
        name: what the array is, for messages.
        array: what the file has under this name.
    """
    if not hasattr(array, "chunks"):
        raise ImageError(f"{path}: its {name} is a group, not an array; the metadata are damaged, copy it again")
    if array.dtype.kind not in "biuf":
        raise ImageError(f"{path}: its {name} holds {array.dtype}, not numbers; convert it")
    if unknown := sorted(set(_names(array.metadata.to_dict())) - _CODECS):
        raise ImageError(f"{path}: its {name} has the codec {unknown[0]}, which is not read; convert it")


def _names(metadata: Any) -> Iterator[str]:
    """Names of all codecs in the metadata of an array, also those inside of shards, without ``numcodecs.``."""
    for key in ("compressor", "filters", "codecs", "index_codecs"):
        value = metadata.get(key) or ()
        for codec in [value] if isinstance(value, Mapping) else value:
            codec = codec if isinstance(codec, Mapping) else {"name": str(codec)}
            yield str(codec.get("id") or codec.get("name")).removeprefix("numcodecs.").lower()
            yield from _names(codec.get("configuration") or {})


def guarded(array: Any) -> Any:
    """The array with `check_blosc` before each chunk of Blosc is decoded."""
    import zarr

    metadata = array.metadata
    if metadata.zarr_format == 2:
        filters = None if metadata.filters is None else tuple(map(_guarded, metadata.filters))
        changes = {"compressor": _guarded(metadata.compressor), "filters": filters}
    else:
        changes = {"codecs": tuple(map(_guarded, metadata.codecs))}
    return zarr.Array(zarr.AsyncArray(metadata=dataclasses.replace(metadata, **changes), store_path=array.store_path))


def _guarded(codec: Any) -> Any:
    from zarr.codecs import ShardingCodec

    if isinstance(codec, ShardingCodec):
        return dataclasses.replace(codec, codecs=tuple(map(_guarded, codec.codecs)))
    for plain, checked in _classes():
        if type(codec) is plain:
            return checked.from_dict(codec.to_dict()) if hasattr(codec, "to_dict") else checked(**_options(codec))
    return codec


def _options(codec: Any) -> dict[str, Any]:
    return {name: value for name, value in codec.get_config().items() if name != "id"}


@cache
def _classes() -> list[tuple[type, Any]]:
    """Blosc of Zarr 2 and Zarr 3, each with the class that checks."""
    from numcodecs import Blosc
    from zarr.codecs import BloscCodec

    class CheckedBlosc(Blosc):
        def decode(self, buf: Any, out: Any = None) -> Any:
            check_blosc(buf)
            return super().decode(buf, out)

    class CheckedBloscCodec(BloscCodec):
        async def _decode_single(self, chunk_bytes: Any, chunk_spec: Any) -> Any:
            check_blosc(chunk_bytes.as_numpy_array())
            return await super()._decode_single(chunk_bytes, chunk_spec)

        def _decode_sync(self, chunk_bytes: Any, chunk_spec: Any) -> Any:
            check_blosc(chunk_bytes.as_numpy_array())
            return super()._decode_sync(chunk_bytes, chunk_spec)

    return [(Blosc, CheckedBlosc), (BloscCodec, CheckedBloscCodec)]


def check_blosc(data: Any) -> None:
    """Raise ValueError if a chunk of Blosc is not as long as its header says, or claims too many pixels."""
    found = np.frombuffer(data, np.uint8)
    if len(found) < 16:
        raise ValueError(f"it is {len(found)} bytes long, shorter than a header")
    pixels, length = (int(number) for number in found[[*range(4, 8), *range(12, 16)]].view("<u4"))
    if length != len(found):
        raise ValueError(f"it is {len(found)} bytes long, and {length} by its header")
    if pixels > memory_limit():
        raise ValueError(f"it claims {pixels:,} bytes of pixels, more than the limit of {memory_limit():,}")

"""Reader of OME-Zarr images (NGFF 0.1 to 0.5), on Zarr 2 and Zarr 3, in a folder or at a URL. It needs zarr.

Each look reads the chunks that it needs, of the best level; of a sharded array only those inner chunks. Those of a
remote image are read in parallel, and repeated where a server fails, see `foveal.images.remote`. Channels become
bands, at the first time and depth. A chunk that is missing has the fill value of its array, as Zarr defines. The first
image of a container that bioformats2raw wrote is read; labels are not. See https://ngff.openmicroscopy.org/0.5.

Only arrays of numbers are read, see `foveal.images.zarr_codecs`.

Example:
    >>> import tempfile, zarr
    >>> from foveal.images import open_image
    >>> place = tempfile.mkdtemp(suffix=".zarr")
    >>> image = zarr.open_group(place, mode="w")
    >>> _ = image.create_array("0", shape=(3, 200, 300), dtype="uint8", chunks=(3, 64, 64))
    >>> axes = [{"name": "c"}, *({"name": name, "unit": "micrometer"} for name in "yx")]
    >>> scale = [{"type": "scale", "scale": [1, 0.5, 0.5]}]
    >>> level = {"path": "0", "coordinateTransformations": scale}
    >>> image.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": [level]}]}
    >>> opened = open_image(place)
    >>> opened.size, opened.channels, opened.mpp
    ((200, 300), 3, 0.5)
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from foveal.errors import ImageError
from foveal.images import remote, scale
from foveal.images.grid import GridPyramid
from foveal.images.pyramid import Stored
from foveal.images.reading import check_claim, memory_limit, reading
from foveal.images.uris import is_remote_zarr
from foveal.images.zarr_codecs import check_array, guarded

_LEAST = 64  # pixels; smaller chunks are read several at once
_PLURAL = {"plate": "a plate of several wells", "well": "a well with several fields"}


class _Layout(NamedTuple):
    """Axes, arrays and scale of an image.

    Attributes:
        arrays: the array of each level, finest first.
        axes: names of the axes of the arrays.
        scales: (y, x) pixels of each level per full-resolution pixel; None if the file does not tell.
        mpp: µm per full-resolution pixel; None if unknown.
    """

    arrays: list[Any]
    axes: list[str]
    scales: list[tuple[float, float]] | None
    mpp: float | None

    def along(self, level: int, name: str, *, chunk: bool = False) -> int:
        """Length of an axis of a level, or of its chunks; 1 if there is no such axis."""
        array = self.arrays[level]
        return (array.chunks if chunk else array.shape)[self.axes.index(name)] if name in self.axes else 1


class OmeZarrPyramid(GridPyramid):
    """An OME-Zarr image.

    Args:
        path: path of the folder, or its address, such as ``https://`` and ``s3://``.
        name: path for messages, as of a URL without secrets; ``path`` if None.
        options: ``channels``, ``value_range``, ``max_bytes``; see `Pyramid`.

    Raises:
        ImageError: it is no OME-Zarr image, or it is damaged; or zarr is not installed.
    """

    def __init__(self, path: str, *, name: str | None = None, **options: Any) -> None:
        self._place, path = path, name or path
        folder = RemoteFolder(self._place, path) if is_remote_zarr(self._place) else None
        layout = _open(self._place, path, folder)
        limit = options.get("max_bytes") or memory_limit()
        dtype = np.dtype(layout.arrays[0].dtype).newbyteorder("=")
        tiles: list[tuple[int, int]] = []
        for level, array in enumerate(layout.arrays):
            chunk = layout.along(level, "y", chunk=True), layout.along(level, "x", chunk=True)
            size = layout.along(level, "y"), layout.along(level, "x")
            check_claim(path, size, 0, limit)
            height, width = (n * max(1, min(_LEAST, whole) // n) for n, whole in zip(chunk, size, strict=True))
            most = max(math.prod(array.chunks), height * width * layout.along(level, "c"))
            check_claim(path, chunk, most * array.dtype.itemsize, limit)
            tiles.append((height, width))
        super().__init__(
            path,
            [(layout.along(level, "y"), layout.along(level, "x")) for level in range(len(tiles))],
            layout.along(0, "c"),
            dtype,
            tiles=tiles,
            scales=layout.scales,
            metadata={} if layout.mpp is None else {"mpp": layout.mpp},
            **options,
        )
        self.remote = folder
        self._layout: _Layout | None = layout
        self._count_bytes(layout)

    def _count_bytes(self, layout: _Layout) -> None:
        layout.arrays[0].store.count = lambda number: self._count(number, 0)

    def __getstate__(self) -> dict[str, Any]:
        # Arrays count their bytes for this image, so that a copy needs its own.
        return {**super().__getstate__(), "_layout": None}

    @property
    def _folder(self) -> RemoteFolder | None:
        return self.remote if isinstance(self.remote, RemoteFolder) else None

    def _tiles(self, keys: Sequence[tuple[int, int, int]]) -> Iterator[Stored]:
        if self._folder is None:
            yield from super()._tiles(keys)
            return
        most = self._folder.limits.requests
        for start in range(0, len(keys), most):
            yield from remote.threads(most).map(self._tile, keys[start : start + most])

    def _read_tile(self, level: int, row: int, column: int) -> Stored:
        if self._layout is None:
            with reading(self.path, "cannot be opened any more", "put it back"):
                self._layout = _open(self._place, self.path, self._folder)
                self._count_bytes(self._layout)
        layout = self._layout
        parts = {"c": slice(None)}
        for name, place, side, length in zip(
            "yx", (row, column), self._grids[level], self._stored_sizes[level], strict=True
        ):
            parts[name] = slice(place * side, min((place + 1) * side, length))
        where = f"the chunk at ({row}, {column}) of level {level}"
        with reading(self.path, f"{where} cannot be read", "the image is damaged there, copy it again"), _no_bugs():
            pixels = np.asarray(layout.arrays[level][tuple(parts.get(name, 0) for name in layout.axes)])
        kept = [name for name in layout.axes if name in parts]
        if "c" not in kept:
            pixels, kept = pixels[..., None], [*kept, "c"]
        return pixels.transpose([kept.index(name) for name in "yxc"]).astype(self.dtype, copy=False), None


class RemoteFolder:
    """A folder of objects in a store, of which zarr reads some.

    Args:
        uri: its address.
        name: the address without secrets.

    Attributes:
        requests: number of requests, repetitions included.
        bytes: number of bytes received.
        state, size: None; each object has its own.
    """

    state, size = None, None

    def __init__(self, uri: str, name: str) -> None:
        self.uri, self.name = uri, name
        self.requests = 0
        self.bytes = 0

    @property
    def limits(self) -> remote.Settings:
        return remote.settings()

    def store(self) -> tuple[Any, str]:
        """The store of the folder for zarr, and the path in it."""
        from zarr.storage import ObjectStore

        remote.start_client(self.name)
        store, path = remote.open_store(self.uri.rstrip("/"), self.limits.timeout)
        return ObjectStore(store, read_only=True), path

    async def read(self, request: Callable[[], Awaitable[Any]]) -> Any:
        """Repeat a request until it succeeds.

        Args:
            request: starts the request; its answer is None where there is no such object.

        Raises:
            ImageError: it fails.
        """
        retries = self.limits.retries
        for attempt in range(retries + 1):
            self.requests += 1
            try:
                answer = await request()
            except Exception as error:
                wait = remote.wait_after(error, self.name, attempt, retries)
            else:
                self.bytes += 0 if answer is None else len(answer)
                return answer
            await asyncio.sleep(wait)
        raise AssertionError("unreachable")


class _no_bugs:
    """Context manager for calls with arguments from a file, where wrong ones are damage and not a bug."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, TypeError | ImportError | AttributeError | AssertionError):
            raise ValueError(str(error) or type(error).__name__) from error


def _open(place: str, path: str, folder: RemoteFolder | None) -> _Layout:
    """Open the arrays of an image.

    Args:
        place: path of the folder, or its address.
        path: path for messages.
        folder: the folder of a remote image.
    """
    from foveal.images.optional import need

    zarr = need("zarr", path)
    store, inside = _store(place, folder)
    with reading(path, "its Zarr metadata cannot be read", "check them, and copy the folder again"), _no_bugs():
        try:
            group = zarr.open_group(store, path=inside, mode="r")
        except zarr.errors.ContainsArrayError:
            raise ImageError(f"{path}: is a Zarr array without OME-Zarr metadata; give the folder above it") from None
        except (FileNotFoundError, zarr.errors.GroupNotFoundError):
            what = "has no zarr.json, and no .zgroup, as an OME-Zarr image has"
            raise ImageError(f"{path}: {what}; check the path, and copy it again") from None
        group, attributes = _image_of(path, group)
        if not attributes.get("multiscales"):
            what = "has no OME-Zarr metadata (multiscales in zarr.json or .zattrs)"
            raise ImageError(f"{path}: {what}; copy it again, or name the image if it is a group of several")
        return _layout(path, group, attributes["multiscales"][0])


def _store(place: str, folder: RemoteFolder | None) -> tuple[Any, str]:
    """Zarr store of an image, and the path of the image in it. The attribute ``count`` of the store is called with the
    number of bytes of each read.
    """
    from zarr.storage import LocalStore, WrapperStore

    class Counting(WrapperStore):
        count: Callable[[int], None] = staticmethod(lambda number: None)

        async def get(self, *args: Any, **options: Any) -> Any:
            request = partial(super().get, *args, **options)
            value = await (request() if folder is None else folder.read(request))
            self.count(0 if value is None else len(value))
            return value

    store, inside = (LocalStore(place, read_only=True), "") if folder is None else folder.store()
    return Counting(store), inside


def _attributes(group: Any) -> Mapping[str, Any]:
    """OME metadata of a group: those of version 0.5 have a key of their own."""
    found = group.attrs.asdict()
    return found.get("ome", found)


def _image_of(path: str, group: Any) -> tuple[Any, Mapping[str, Any]]:
    """The group of the image, and its metadata.

    Raises:
        ImageError: it is a plate, a well or a list of labels.
    """
    found = _attributes(group)
    for kind, what in _PLURAL.items():
        if kind in found and "multiscales" not in found:
            inside = found[kind]["wells" if kind == "plate" else "images"][0]["path"]
            one = f"{path.rstrip('/')}/{inside}{'/0' * (kind == 'plate')}"
            raise ImageError(f"{path}: is {what}; name one of its images, such as {one}")
    if "bioformats2raw.layout" in found and "multiscales" not in found:
        group = _level(path, group, "0")
        return group, _attributes(group)
    if "labels" in found and "multiscales" not in found:
        raise ImageError(f"{path}: is a list of labels; name the image above it, or one of the labels")
    return group, found


def _layout(path: str, group: Any, image: Mapping[str, Any]) -> _Layout:
    levels = image["datasets"]
    arrays = [_level(path, group, str(level["path"])) for level in levels]
    for level, array in zip(levels, arrays, strict=True):
        check_array(path, f"level {level['path']}", array)
    arrays = [guarded(array) for array in arrays]
    if not arrays:
        raise ImageError(f"{path}: has no levels; the metadata are damaged, copy it again")
    axes, units = _axes(path, image.get("axes"), arrays[0].ndim)
    layout = _Layout(arrays, axes, None, None)
    for i, array in enumerate(arrays[1:], 1):
        if array.ndim != len(axes) or array.dtype != arrays[0].dtype or layout.along(i, "c") != layout.along(0, "c"):
            raise ImageError(f"{path}: level {i} has other axes, channels or types than level 0; copy it again")
        sizes = [(layout.along(n, "y"), layout.along(n, "x")) for n in (i - 1, i)]
        if sizes[1] == sizes[0] or any(small > large for large, small in zip(*sizes, strict=True)):
            (h, w), (height, width) = sizes
            what = f"level {i} of {width} x {height} pixels is not smaller than the one before, of {w} x {h}"
            raise ImageError(f"{path}: {what}; make the levels again")
    at = axes.index("y"), axes.index("x")
    found = [_scale(level.get("coordinateTransformations"), len(axes)) for level in levels]
    first, common = found[0], _scale(image.get("coordinateTransformations"), len(axes))
    if first is None:
        return layout
    ratios = [None if one is None else (first[at[0]] / one[at[0]], first[at[1]] / one[at[1]]) for one in found]
    scales = [(0.0, 0.0) if ratio is None else ratio for ratio in ratios]  # 0 does not fit, and is ignored
    whole = [first[i] * (1.0 if common is None else common[i]) for i in at]
    return layout._replace(scales=scales, mpp=scale.of_axes(whole, [units[i] for i in at]))


def _level(path: str, group: Any, name: str) -> Any:
    try:
        return group[name]
    except KeyError:
        raise ImageError(f"{path}: its level {name} is missing; copy it again") from None


def _axes(path: str, given: Any, count: int) -> tuple[list[str], list[str]]:
    """Names and units of the axes; those of versions 0.1 and 0.2, which do not list them, are always the same."""
    listed = list("tczyx") if given is None else given
    axes = [{"name": axis} if isinstance(axis, str) else axis for axis in listed]
    kinds = {"time": "t", "channel": "c"}
    names = [kinds.get(str(axis.get("type")), str(axis["name"])) for axis in axes]
    if len(names) != count or len({*names}) != count or not {"y", "x"} <= {*names} <= {*"tczyx"}:
        what = (
            f"has the axes {', '.join(names)} for arrays of {count}, where y and x are needed, and t, c, z are possible"
        )
        raise ImageError(f"{path}: {what}; correct the metadata")
    return names, [str(axis.get("unit", "")) for axis in axes]


def _scale(transforms: Any, count: int) -> Sequence[float] | None:
    """Scale of each axis; None if there is none. Damaged scales are ignored."""
    with suppress(TypeError, ValueError, KeyError, AttributeError):
        for transform in transforms or ():
            if transform["type"] == "scale":
                found = [float(value) for value in transform["scale"]]
                return found if len(found) == count and all(0 < value < math.inf for value in found) else None
    return None

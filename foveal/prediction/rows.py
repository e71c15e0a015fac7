"""Rows of predictions: find images, open them while the model runs, and classify them batch by batch.

A row is a dictionary with the keys of `COLUMNS`. The row of an image that fails has a path and an ``error`` only.

Example:
    >>> import tempfile, pathlib
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> for name in ("b.tif", "a.JPG", "notes.txt"): (folder / name).touch()
    >>> [(pathlib.Path(path).name, error) for path, error in find_images([folder])]
    [('a.JPG', None), ('b.tif', None)]
"""

from __future__ import annotations

import glob
import os
import stat
import time
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from foveal.classification import Classification
from foveal.draws import Draws
from foveal.errors import ConfigError, FovealError, ImageError
from foveal.glimpse.base import GlimpseClassifier, WholeImage
from foveal.images import ImageViews, LeftOut, Pyramid, View, as_text, each, find_mask, is_path, walk
from foveal.images.reading import reading
from foveal.images.uris import is_folder, is_remote, shown
from foveal.images.walk import FoundFiles, match
from foveal.policies import Policy
from foveal.prediction.checks import check_whole
from foveal.prediction.cost import LookCounter
from foveal.prediction.early_exit import Exit, locations_of
from foveal.prediction.looks import IMAGE_KEYS, LOOK_KEYS, describe_image, describe_looks
from foveal.prediction.predictor import Model, Predictor

Row = dict[str, Any]

_WAITING = 32  # threads that wait for stores of remote images

FOLD_FROM = 16
"""Minimum number of images for which batch norms are folded."""

SCHEMA = 3
"""Version of the columns and of the keys of a glimpse. Version 2 had no ``requests``, ``bytes``, ``file_size`` and
``file_version``.
Version 1 had no image keys but ``mpp``, and glimpses with ``box``, ``level``, ``probability`` and ``mpp`` only.
"""

COLUMNS = (
    "path",
    "label",
    "probability",
    "top_k",
    "locations",
    "glimpses",
    *IMAGE_KEYS,
    "macs",
    "bytes_read",
    "requests",
    "bytes",
    "file_size",
    "file_version",
    "seconds",
    "error",
    "schema",
)
"""Columns of a prediction.

``label`` is the predicted class, or the predicted labels with ``|`` between them; empty if there are none.
``probability`` is that of the class, or of the least certain decision on a label.
``path`` of a remote image is its address without secrets, see `foveal.images.uris.shown`; that of an image in memory is
its index, ``[3]``, or ``[3][0]`` in a batch in a list. ``top_k`` is a list of
``{"label", "probability"}``, ``locations`` the number of looks after the first, ``glimpses`` a list with the keys
`foveal.prediction.looks.LOOK_KEYS`. `foveal.prediction.looks.IMAGE_KEYS` describe the image. ``macs`` and
``bytes_read`` count this image. ``requests`` is the number of requests to the store of a remote image, and ``bytes``
what it sent; None for other images. ``file_size`` and ``file_version`` tell which file was read, see `FileState`.
``seconds`` is the time to open it plus its share of the time of its batch.
``schema`` is `SCHEMA`.
"""

LISTS = ("top_k", "glimpses")
"""Columns that are empty lists, and not None, in the row of an image that failed."""


class Named(NamedTuple):
    """An image and its name.

    Attributes:
        path: path of a file, without the secrets of an address; index of an image in memory.
        image: a path, or an image in memory.
        error: why there is no image; None if there is one.
    """

    path: str
    image: Any
    error: str | None = None


class FileState(NamedTuple):
    """What identifies the content of a file.

    Attributes:
        size: in bytes; None if it is not known, as of a folder.
        version: ETag of a remote object; time of modification (UTC, ISO 8601, to the nanosecond) of a local file, or of
            an object without ETag; None if it is not known.
    """

    size: int | None = None
    version: str | None = None


NO_STATE = FileState()


class Opened(NamedTuple):
    """An open image.

    Attributes:
        path: path of a file; index of an image in memory.
        view: the image; None if it cannot be read.
        error: why it cannot be read.
        seconds: time to open it.
        source: the file, by a path that can be opened. It is closed after its batch. None for an image in memory.
        state: the state of the file before it was opened.
    """

    path: str
    view: View | None
    error: str | None
    seconds: float
    source: Any = None
    state: FileState = NO_STATE


def find_images(
    paths: Sequence[str | os.PathLike[str]], left_out: LeftOut | None = None
) -> list[tuple[str, str | None]]:
    """Find images by files, folders (with subfolders) and patterns such as ``scans/**/*.svs``.

    Folders are searched as in training, see `foveal.images.walk`, and those of stores, ``s3://bucket/folder/`` with a
    slash at the end, in the same way. A file may have any suffix if it is given by its
    path, or by a pattern whose last part is not just ``*``.

    Args:
        paths: files, folders and patterns.
        left_out: counts files and folders that are left out, if given.

    Returns:
        (path, None) of each image once, in the order given and sorted by name within a folder or pattern; (path, error)
        of a path without images.
    """
    found: dict[str, str | None] = {}
    for path in (os.fspath(path) for path in paths):
        inside, reason = FoundFiles([path]), ""
        if is_remote(path):
            if is_folder(path):
                inside, reason = _listed_folder(path)
        elif os.path.isdir(path):  # noqa: PTH112 (Path.is_dir raises where a name is too long)
            inside = walk(path)
            reason = (
                f"{path}: the folder has no images; name one that has, or name files of unusual suffixes themselves"
            )
        elif glob.has_magic(path) and not os.path.lexists(path):
            inside = match(path)
            reason = f"{path}: no file matches this pattern; check it, and quote it so that the shell leaves it alone"
        found |= dict.fromkeys(inside.paths) | dict(inside.unreadable) or {path: reason}
        if left_out is not None:
            left_out.join(inside.left_out)
    return list(found.items())


def _listed_folder(uri: str) -> tuple[FoundFiles, str]:
    """The images in a folder of a store, and the error if there are none."""
    from foveal.images.remote import list_images

    try:
        return list_images(uri), f"{shown(uri)}: the folder has no images; check the address"
    except ImageError as error:
        return FoundFiles(), str(error)


def find_named(images: Any, left_out: LeftOut | None = None) -> list[Named]:
    """Images with their names.

    Args:
        images: an image, a (B, C, H, W) tensor, or any iterable of images. An image is a path, see `find_images`, or an
            image in memory, see `foveal.images.as_image`; or all of a list are `Named`.
        left_out: counts files and folders that are left out, if given.

    Returns:
        Each file once; images in memory as often as they are given.

    Raises:
        ConfigError: an iterator yields the same object several times with different content.
    """
    if isinstance(images, list) and images and all(isinstance(image, Named) for image in images):
        return list({image.path: image for image in images}.values())
    found: list[Named] = []
    files: set[str] = set()
    for name, image in each(_listed(images)):
        if not is_path(image):
            found.append(Named(name, image))
            continue
        new = [Named(shown(path), path, error) for path, error in find_images([image], left_out) if path not in files]
        found += new
        files |= {one.image for one in new}
    return found


def _listed(images: Any) -> Any:
    """A list of images, or a (B, C, H, W) tensor."""
    if isinstance(images, Tensor):
        return images if images.ndim == 4 else [images]
    if isinstance(images, np.ndarray) and images.ndim == 1 and images.dtype.kind in "UO":
        return images.tolist()  # paths
    if is_path(images) or isinstance(images, np.ndarray | bytes) or not isinstance(images, Iterable):
        return [images]
    items = list(images)
    held = [id(image) for image in items if not is_path(image)]
    if isinstance(images, Iterator) and len(set(held)) < len(held):
        raise ConfigError(
            "the iterator yields the same object several times, with its last content only; yield copies of it"
        )
    return items


def _names(images: Sequence[Any]) -> Iterator[Named]:
    for i, image in enumerate(images):
        if isinstance(image, Named):
            yield image
        else:
            yield from (Named(name, one) for name, one in each(image, f"[{i}]"))


def check_how(*, batch_size: int, threads: int | None, top_k: int, until: Exit | None) -> None:
    """Check arguments of `predict_rows`.

    Raises:
        ConfigError: a number is too small, or ``until`` is not an `Exit`.
    """
    check_whole("batch_size", batch_size)
    check_whole("top_k", top_k)
    if threads is not None:
        check_whole("threads", threads)
    if until is not None and not isinstance(until, Exit):
        raise ConfigError(
            f"`until` {until}: is not an Exit; give one that foveal.prediction.read_exits or "
            "foveal.evaluation.find_thresholds returns"
        )


def check_masks(predictor: Predictor, masks: str | Path | None) -> None:
    """Check that a folder of masks exists and that the model uses masks.

    Raises:
        ConfigError: there is no such folder, or the model does not use it.
    """
    if masks is None:
        return
    if not predictor.model.searches:
        raise ConfigError(f"`masks` {masks}: the model {predictor.model.label} has no scan; leave `masks` out")
    if not Path(masks).is_dir():
        raise ConfigError(f"`masks` {masks}: there is no such folder; check the path")


def predict_rows(
    model: Predictor | Model,
    images: Sequence[Any],
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
    first_batch: int = 0,
    masks: str | Path | None = None,
    headers: str | Path | None = None,
    on_scan: Callable[[float], None] | None = None,
) -> Generator[list[Row], None, None]:
    """Classify images. The next batch is opened while the model runs. Batch norms are folded for `FOLD_FROM` images or
    more.

    Args:
        model: a predictor, classifier, dense network or run folder.
        images: files, images in memory (see `foveal.images.as_image`), or `Named` images.
        locations: looks per grid at each level; the model's own if None.
        policy: how locations are selected, one of ``model.policies``; if None, see `foveal.classify`.
        batch_size: images per batch. At most two batches are open at a time.
        threads: threads that open images; if None, one per image of a batch, at most twice the number of CPUs, or 32
            for remote images.
        device, precision: see `Predictor`. Ignored if ``model`` is a predictor.
        top_k: number of classes listed for each image.
        seed: seed of policies that draw. Draws depend on it and on the path or index of the image only.
        until: early exit; its locations are the maximum.
        first_batch: number of batches to skip. The others do not depend on it.
        masks: folder of the masks of files, for models with ``searches``; see `foveal.images.masks`.
        headers: index of the headers of remote images, see `foveal.images.header_index`.
        on_scan: see `foveal.images.Views`, for each batch.

    Yields:
        The rows of each batch, in the order of ``images``.

    Raises:
        ConfigError: an argument is invalid. Errors of images are in their rows.
    """
    check_how(batch_size=batch_size, threads=threads, top_k=top_k, until=until)
    predictor = model if isinstance(model, Predictor) else Predictor(model, device=device, precision=precision)
    policy = policy or predictor.model.usual_policy
    looks = predictor.locations(locations, policy)
    check_masks(predictor, masks)
    named = list(_names(images))
    batches = [named[i : i + batch_size] for i in range(first_batch * batch_size, len(named), batch_size)]
    if not batches:
        return
    if len(named) >= FOLD_FROM:
        predictor = predictor.folded()
    counter = LookCounter(predictor.model, policy)

    def classify_opened(views: ImageViews, paths: Sequence[str]) -> Classification:
        views.on_scan = on_scan
        samples = np.array([zlib.crc32(as_text(path).encode()) for path in paths])
        told = tells_contributions(predictor.model)
        return predictor(views, looks, policy, Draws(seed, 0, samples), until, contributions=told)

    def macs(one: Classification, view: View) -> int:
        spent = looks if until is None else locations_of(one.glimpses, until.locations)
        return counter(one, view.size, spent, view.mpp)

    most = _WAITING if any(is_remote(one.image) for one in named) else 2 * (os.cpu_count() or 1)
    pool = ThreadPoolExecutor(threads or min(batch_size, most), "foveal-open")
    try:
        ahead: list[Future[Opened]] = [pool.submit(_open, image, predictor, masks, headers) for image in batches[0]]
        for following in [*batches[1:], []]:
            opened = [future.result() for future in ahead]
            ahead = [pool.submit(_open, image, predictor, masks, headers) for image in following]
            yield rows_of(opened, classify_opened, macs, top_k)
    finally:
        pool.shutdown(cancel_futures=True)


def tells_contributions(model: GlimpseClassifier) -> bool:
    """Whether rows tell contributions. A dense network has one look, which contributes everything, and it would also
    compute its attention maps.
    """
    return not isinstance(model, WholeImage)


def rows_of(
    opened: Sequence[Opened],
    classify: Callable[[ImageViews, Sequence[str]], Classification],
    macs: Callable[[Classification, View], int],
    top_k: int,
) -> list[Row]:
    """Classify a batch of open images, and close those of files.

    Args:
        opened: the images; those with an error get its row.
        classify: the classification of views, which are given with their paths.
        macs: multiply-accumulates of the classification of one image.
        top_k: number of classes listed for each image.

    Returns:
        A row for each image.
    """
    good = {place: image for place, image in enumerate(opened) if image.view is not None}
    results: dict[int, Row] = {}
    try:
        if good:
            views = ImageViews([image.view for image in good.values() if image.view is not None])
            start = time.perf_counter()
            seen = Classification.cat([classify(views, [image.path for image in good.values()])])
            seen = replace(seen, logits=seen.logits.double())
            share = (time.perf_counter() - start) / len(good)
            for i, (place, image) in enumerate(good.items()):
                one, view = seen[i], cast(View, image.view)
                if fault := views.errors.get(i) or _fault(image, one):
                    results[place] = failed_row(image.path, fault, image.state)
                    continue
                results[place] = make_row(
                    image.path,
                    one,
                    view.image,
                    top_k=top_k,
                    macs=macs(one, view),
                    seconds=image.seconds + share,
                    state=image.state,
                )
    finally:
        for image in good.values():
            if image.view is not None and image.source is not None:
                image.view.image.close()
    return [
        results.get(place) or failed_row(image.path, image.error, image.state) for place, image in enumerate(opened)
    ]


def _fault(image: Opened, seen: Classification) -> str | None:
    """Why the classification of an image is not valid."""
    if not bool(seen.logits.isfinite().all()):
        return f"{image.path}: the logits of this image are not finite; check its values"
    if image.view is not None and image.state != file_state(image.source, image.view.image):
        return f"{image.path}: was changed while it was read; predict it again"
    return None


def file_state(file: Any, image: Pyramid | None = None) -> FileState:
    """State of a file.

    Args:
        file: its path; anything else has no state.
        image: the open image. That of a remote object has its state.
    """
    if image is not None and image.remote is not None and image.remote.state is not None:
        size, etag, modified = image.remote.state
        return FileState(size, etag or _time(round(modified * 10**9)) if etag or modified else None)
    if is_path(file) and not is_remote(file):
        with suppress(OSError, ValueError):
            found = os.stat(file)  # noqa: PTH116 (Path raises where a name is too long)
            return FileState(None if stat.S_ISDIR(found.st_mode) else found.st_size, _time(found.st_mtime_ns))
    return NO_STATE


def _time(nanoseconds: int) -> str:
    seconds, rest = divmod(nanoseconds, 10**9)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:09}Z"


def _open(named: Named, predictor: Predictor, masks: str | Path | None, headers: str | Path | None) -> Opened:
    path, start = named.path, time.perf_counter()
    source = named.image if is_path(named.image) else None
    if named.error is not None:
        return Opened(path, None, named.error, 0.0)
    state = file_state(source)
    try:
        with reading(path, "cannot be looked at"):
            mask = None if masks is None or source is None else find_mask(masks, path)
            image = predictor.open(named.image, path, mask, headers)
            view = View(image)
            view.prefetch(predictor.model.first_looks(image.size))
    except FovealError as error:
        return Opened(path, None, str(error), 0.0, source, state)
    if view.image.remote is not None:
        state = file_state(source, view.image)
    return Opened(path, view, None, time.perf_counter() - start, source, state)


def make_row(
    path: str,
    seen: Classification,
    image: Pyramid,
    *,
    top_k: int,
    macs: int,
    seconds: float,
    state: FileState = NO_STATE,
) -> Row:
    """The row of an image that was classified.

    Args:
        path: its path or name.
        seen: the classification of the one image.
        image: the open image.
        top_k: number of most probable classes to list.
        macs: multiply-accumulates that it took.
        seconds: time that it took.
        state: state of its file.
    """
    return {
        "path": as_text(path),
        "label": str(seen.label),
        "probability": float(seen.probability),
        "top_k": [{"label": name, "probability": p} for name, p in seen.top(top_k)],
        "locations": seen.locations,
        "glimpses": describe_looks(seen, image),
        **describe_image(image),
        "macs": macs,
        "bytes_read": seen.bytes_read,
        "requests": None if image.remote is None else image.remote.requests,
        "bytes": None if image.remote is None else image.remote.bytes,
        "file_size": state.size,
        "file_version": state.version,
        "seconds": seconds,
        "error": None,
        "schema": SCHEMA,
    }


def failed_row(path: str, error: str | None, state: FileState = NO_STATE) -> Row:
    """The row of an image that failed."""
    row: Row = {column: [] if column in LISTS else None for column in COLUMNS}
    return row | {
        "path": as_text(path),
        "error": error and as_text(error),
        "file_size": state.size,
        "file_version": state.version,
        "schema": SCHEMA,
    }


def completed(row: Row) -> Row:
    """A row of an earlier version with all columns; those that it lacks are None. Version 1 had no ``schema``."""
    whole = {column: row.get(column) for column in COLUMNS}
    if row.get("schema") is not None:
        return whole
    glimpses = [{key: look.get(key) for key in LOOK_KEYS} for look in row.get("glimpses") or []]
    return whole | {"glimpses": glimpses, "schema": 1}

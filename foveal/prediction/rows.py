"""From images to rows: find the images, open them ahead of the model, classify them batch by batch.

A row is a plain dictionary with the keys of `COLUMNS`. An image that fails is a row too: it has an ``error``, one
sentence, and nothing else.

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
import time
import zlib
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from foveal.classification import Classification
from foveal.draws import Draws
from foveal.errors import ConfigError, FovealError
from foveal.glimpse.base import GlimpseClassifier
from foveal.images import ImageViews, LeftOut, View, as_text, each, is_path, walk
from foveal.images.reading import reading
from foveal.images.walk import FoundFiles, match
from foveal.policies import GREEDY, Policy
from foveal.prediction.cost import LookCounter
from foveal.prediction.early_exit import Exit, budget_of
from foveal.prediction.predictor import Model, Predictor
from foveal.runs import Run

Row = dict[str, Any]

FOLD_FROM = 16
"""Images from which on it pays to fold batch norms first."""

COLUMNS = (
    "path",
    "label",
    "probability",
    "top_k",
    "locations",
    "glimpses",
    "mpp",
    "macs",
    "bytes_read",
    "seconds",
    "error",
)
"""Columns of a prediction.

``path`` of an image in memory is its place in what was given, ``[3]``, or ``[3][0]`` in a batch in a list. ``top_k`` is
a list of ``{"label", "probability"}``, ``locations`` the number of looks beyond the first, ``glimpses`` a list of
``{"box": [y0, x0, y1, x1], "level", "probability", "mpp"}``. ``mpp`` is the micrometres per pixel of the image, and of
each look as the model sees it; None where the file does not say. ``macs`` and ``bytes_read`` are of this image;
``seconds`` is what opening it took plus its share of the time of its batch.
"""


class Named(NamedTuple):
    """An image, with what its row calls it.

    Attributes:
        path: of a file; else the place in a list.
        image: a path, or an image in memory.
        error: one sentence, where nothing was found; else None.
    """

    path: str
    image: Any
    error: str | None = None


class _Opened(NamedTuple):
    path: str
    view: View | None
    error: str | None
    seconds: float
    ours: bool = False  # to close


def find_images(
    paths: Sequence[str | os.PathLike[str]], left_out: LeftOut | None = None
) -> list[tuple[str, str | None]]:
    """Files behind files, folders (searched to the bottom) and patterns such as ``scans/**/*.svs``.

    Folders are searched as in training, see `foveal.images.walk`. A file that is named, or matched by a pattern that
    says more of its name than ``*``, may have any suffix.

    Args:
        paths: what to look for.
        left_out: counts what is left out, if given.

    Returns:
        (path, None) of every image once, in the order given and by name within a folder or pattern; (path, one
        sentence) of what led to no image.
    """
    found: dict[str, str | None] = {}
    for path in (os.fspath(path) for path in paths):
        inside, reason = FoundFiles([path]), ""
        if os.path.isdir(path):  # noqa: PTH112 (Path.is_dir raises where a name is too long)
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


def find_named(images: Any, left_out: LeftOut | None = None) -> list[Named]:
    """One image or many, with their names: paths as `find_images` finds them, and what `foveal.images.as_image` takes.

    Args:
        images: an image, a (B, C, H, W) tensor, or any iterable of images, which is read to its end.
        left_out: counts what is left out of folders, if given.

    Returns:
        Each file once, everything else as often as it is given.

    Raises:
        ConfigError: an iterator that puts one image after the other into the same object.
    """
    found: list[Named] = []
    files: set[str] = set()
    for name, image in each(_listed(images)):
        if not is_path(image):
            found.append(Named(name, image))
            continue
        new = [Named(path, path, error) for path, error in find_images([image], left_out) if path not in files]
        found += new
        files |= {one.path for one in new}
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
            "the iterator gives one object several times, and only its last content is left; give copies of it"
        )
    return items


def _names(images: Sequence[Any]) -> Iterator[Named]:
    for i, image in enumerate(images):
        if isinstance(image, Named):
            yield image
        else:
            yield from (Named(name, one) for name, one in each(image, f"[{i}]"))


def ready(
    model: GlimpseClassifier | nn.Module | Run | str | Path, device: torch.device | str = "cpu"
) -> GlimpseClassifier:
    """A classifier for use: loaded if it is a run folder, wrapped if it is a dense network, on the device, in
    evaluation mode.

    Raises:
        RunError: its weights are not all finite numbers.
    """
    return Predictor(model, device=device).model


def check_locations(model: GlimpseClassifier, locations: Sequence[int] | None) -> tuple[int, ...]:
    """The budget to use: the model's own if None.

    Raises:
        ConfigError: the model cannot meet it.
    """
    return model.budget(locations)


def check_policies(model: GlimpseClassifier, policies: Sequence[str | Policy]) -> None:
    """See that a model can select cells in these ways.

    Raises:
        ConfigError: it does not know one, or does not choose where to look.
    """
    for policy in policies:
        if str(policy) != GREEDY.name and not model.locations:
            raise ConfigError(f"policy {policy}: this model looks once, at the whole image; leave policy out")
    model.check_policies(policies)


def predict_rows(
    model: Predictor | Model,
    images: Sequence[Any],
    *,
    locations: Sequence[int] | None = None,
    policy: str | Policy = GREEDY,
    batch_size: int = 8,
    threads: int | None = None,
    device: str | torch.device = "auto",
    precision: str = "32",
    top_k: int = 5,
    seed: int = 0,
    until: Exit | None = None,
    first_batch: int = 0,
) -> Generator[list[Row], None, None]:
    """Classify images; while the model runs on one batch, the next is opened. For many images batch norms are folded
    first.

    Args:
        model: a predictor, or what one is made of: a classifier, a dense network, or a run folder.
        images: files, images in memory (see `foveal.images.as_image`), and what `find_named` returns.
        locations: budget; the model's own if None.
        policy: how cells are selected, one of ``model.policies``.
        batch_size: images of a batch; at most two batches are open at a time.
        threads: that open images; one for each image of a batch, but not more than twice the processors, if None.
        device, precision: see `Predictor`, for a model that is none yet.
        top_k: classes listed for each image.
        seed: of policies that draw; with the path, or the place in the list, it decides what is drawn.
        until: when to stop looking at an image; it says how often to look at most.
        first_batch: leave out the batches before; those that follow are what they would be after them.

    Yields:
        The rows of each batch, in the order of ``images``.

    Raises:
        ConfigError: a budget, policy, device or precision that does not fit. What is wrong with an image is in its row
            instead.
    """
    predictor = model if isinstance(model, Predictor) else Predictor(model, device=device, precision=precision)
    looks = predictor.locations(locations, policy)
    named = list(_names(images))
    batches = [named[i : i + batch_size] for i in range(first_batch * batch_size, len(named), batch_size)]
    if not batches:
        return
    if len(named) >= FOLD_FROM:
        predictor = predictor.folded()
    macs = LookCounter(predictor.model, policy)
    pool = ThreadPoolExecutor(threads or min(batch_size, 2 * (os.cpu_count() or 1)), "foveal-open")
    try:
        ahead: list[Future[_Opened]] = [pool.submit(_open, image, predictor) for image in batches[0]]
        for following in [*batches[1:], []]:
            opened = [future.result() for future in ahead]
            ahead = [pool.submit(_open, image, predictor) for image in following]
            good = {place: image for place, image in enumerate(opened) if image.view is not None}
            results: dict[int, Row] = {}
            try:
                if good:
                    views = ImageViews([image.view for image in good.values() if image.view is not None])
                    samples = np.array([zlib.crc32(as_text(image.path).encode()) for image in good.values()])
                    start = time.perf_counter()
                    seen = predictor(views, looks, policy, Draws(seed, 0, samples), until, contributions=False)
                    seen = Classification.cat([seen])
                    share = (time.perf_counter() - start) / len(good)
                    for i, (place, image) in enumerate(good.items()):
                        if broken := views.errors.get(i):
                            results[place] = failed_row(image.path, broken)
                            continue
                        one = seen[i]
                        if not bool(one.logits.isfinite().all()):
                            what = f"{image.path}: the model gives no finite answer for this image; check its values"
                            results[place] = failed_row(image.path, what)
                            continue
                        spent = looks if until is None else budget_of(one.glimpses, until.locations)
                        mpp = cast(View, image.view).mpp
                        cost = macs(one, views.sizes[i], spent, mpp)
                        results[place] = _row(image.path, one, top_k, mpp, cost, image.seconds + share)
            finally:
                for image in good.values():
                    if image.view is not None and image.ours:
                        image.view.image.close()
            yield [results.get(place) or failed_row(image.path, image.error) for place, image in enumerate(opened)]
    finally:
        pool.shutdown(cancel_futures=True)


def _open(named: Named, predictor: Predictor) -> _Opened:
    path, start = named.path, time.perf_counter()
    if named.error is not None:
        return _Opened(path, None, named.error, 0.0)
    try:
        with reading(path, "cannot be looked at"):
            image = predictor.open(named.image, path)
            view = View(image)
            view.prefetch(predictor.model.first_looks(image.size))
    except FovealError as error:
        return _Opened(path, None, str(error), 0.0)
    return _Opened(path, view, None, time.perf_counter() - start, is_path(named.image))


def _row(path: str, seen: Classification, top_k: int, mpp: float | None, macs: int, seconds: float) -> Row:
    top = seen.top(top_k)
    return {
        "path": as_text(path),
        "label": top[0][0],
        "probability": top[0][1],
        "top_k": [{"label": name, "probability": p} for name, p in top],
        "locations": seen.locations,
        "glimpses": [
            {
                "box": list(g.box),
                "level": g.level,
                "probability": g.probability,
                "mpp": None if mpp is None else mpp * g.pixels_each,
            }
            for g in seen.glimpses
        ],
        "mpp": mpp,
        "macs": macs,
        "bytes_read": seen.bytes_read,
        "seconds": seconds,
        "error": None,
    }


def failed_row(path: str, error: str | None) -> Row:
    return {column: [] if column in ("top_k", "glimpses") else None for column in COLUMNS} | {
        "path": as_text(path),
        "error": error and as_text(error),
    }

"""`Service`: a model that answers requests of several clients, without HTTP.

Images are opened in a pool of threads and classified in one thread, in batches of those that arrived together with the
same settings. An answer is a row of `foveal.predict`, see `foveal.prediction.COLUMNS`.

Example:
    >>> import tempfile
    >>> from PIL import Image
    >>> from foveal.models import create_model
    >>> folder = Path(tempfile.mkdtemp())
    >>> Image.new("RGB", (64, 48)).save(folder / "a.png")
    >>> service = Service(create_model("test_resnet", num_classes=2), images=folder)
    >>> answer = service.classify(service.find("a.png"), service.settings()).result()
    >>> answer["path"], len(answer["top_k"])
    ('a.png', 2)
    >>> service.close()
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from foveal.classification import Classification
from foveal.draws import Draws
from foveal.errors import ConfigError, FovealError, ImageError
from foveal.images import BlankViews, ImageViews, Pyramid, View, as_text, jxl, open_image, plain
from foveal.images.cache import Unconverted, default_folder
from foveal.images.open import _TIFF as TIFF
from foveal.images.reading import reading
from foveal.prediction import Exit, Predictor, fingerprint, format_locations, parse_cost, parse_locations, read_exits
from foveal.prediction.cost import LookCounter
from foveal.prediction.device import machine_name
from foveal.prediction.early_exit import locations_of
from foveal.prediction.predictor import Model
from foveal.prediction.rows import Opened, Row, file_state, rows_of, tells_contributions
from foveal.runs import Run
from foveal.serve.batching import Batcher
from foveal.serve.folder import ImageFolder
from foveal.serve.limits import Limits, Refused
from foveal.serve.uploads import Uploads

TOP_K = 100
"""Most classes that an answer can list."""


class Source(NamedTuple):
    """An image of a request.

    Attributes:
        name: name in the answer and in messages.
        path: the file.
        uploaded: whether it came with the request.
    """

    name: str
    path: Path
    uploaded: bool = False


@dataclass(frozen=True)
class Settings:
    """How an image is classified.

    Attributes:
        locations: looks per grid at each level.
        until: early exit; None for all looks.
    """

    locations: tuple[int, ...]
    until: Exit | None = None


class Turn(NamedTuple):
    """The state of a classification after some looks.

    Attributes:
        turn: 0 after the first look.
        looks: (box, size) of the looks since the turn before. Those of a scan are left out.
        label: the most probable class so far, or the labels.
        probability: its probability.
        top_k: the most probable classes, as in an answer.
    """

    turn: int
    looks: list[dict[str, Any]]
    label: str
    probability: float
    top_k: list[dict[str, Any]]


@dataclass(frozen=True, eq=False)
class _Alone:
    """Key of a job that has no batch."""

    run: Callable[[_Image], Any]


class _Job(NamedTuple):
    source: Source
    top_k: int


class _Image(NamedTuple):
    job: _Job
    opened: Opened
    bytes: int  # of `Room`


class Service:
    """A model that answers requests of several clients.

    Args:
        model: a classifier, a dense network, or a run folder.
        images: folder of the images that requests can name; None for none.
        limits: see `Limits`; the defaults if None.
        device: see `foveal.prediction.find_device`.
        precision: see `foveal.prediction.autocast`.

    Attributes:
        predictor: the model, with folded batch norms.
        uploads: the folder of uploaded images.
        folder: the folder of images, or None.
        on_batch: called with the number of images of each batch, and its seconds.
        budgets: early exits that the run folder stores for this model, by budget and locations.

    Raises:
        ConfigError: the folder of images or the device does not exist, or ``model`` is not a model.
        RunError: the run folder cannot be loaded.
    """

    def __init__(
        self,
        model: Model,
        *,
        images: str | os.PathLike[str] | None = None,
        limits: Limits | None = None,
        device: str | torch.device = "auto",
        precision: str = "32",
    ) -> None:
        self.limits = limits = limits or Limits()
        self.folder = None if images is None else ImageFolder(images)
        run = Run(model) if isinstance(model, str | Path) else model
        original = Predictor(run, device=device, precision=precision)
        self.name = Path(run.path).resolve().name if isinstance(run, Run) else type(original.model).__name__
        self.fingerprint = fingerprint(original.model)
        self.budgets = self._stored_exits(run.path, original) if isinstance(run, Run) else {}
        self.predictor = original.folded()
        self._macs = LookCounter(self.predictor.model, self.predictor.model.usual_policy)
        self._room = Room(limits.open_bytes, 2 * limits.batch_size)
        self.uploads = Uploads()
        self.on_batch: Callable[[int, float], None] = lambda size, seconds: None
        self.seconds_each = 0.1  # running mean of the time per image, for Retry-After
        self._warm_up()
        self._batcher: Batcher[_Job, _Image, Row] = Batcher(
            self._open, self._run, self._release, batch_size=limits.batch_size, wait=limits.wait, on_batch=self._count
        )

    @property
    def alive(self) -> bool:
        """Whether it classifies."""
        return self._batcher.alive

    def close(self) -> None:
        """Answer all accepted requests, and end the threads."""
        self._batcher.close()
        self.uploads.close()

    # ---- requests

    def settings(
        self, locations: str | None = None, budget: str | None = None, stop_at: float | None = None
    ) -> Settings:
        """Check the settings of a request.

        Args:
            locations: looks per level as text, ``2,1``; the model's own if None.
            budget: mean cost of an image, one of those that the run stores.
            stop_at: probability of the most probable class at which looking stops.

        Raises:
            ConfigError: the model does not support them, or the run does not store the budget.
        """
        looks = self.predictor.locations(None if locations is None else parse_locations(locations))
        if budget is not None and stop_at is not None:
            raise ConfigError("`budget` and `stop_at` both say when to stop; give one of them")
        if stop_at is not None:
            return Settings(looks, Exit(f"{stop_at:g}", stop_at, looks, 1, 0.0, "locations", 0) if looks else None)
        if budget is None:
            return Settings(looks)
        cost = parse_cost(budget)
        known = [until for until in self.budgets if parse_cost(until.budget) == cost]
        for until in known:
            if locations is None or until.locations == looks:
                return Settings(until.locations, until)
        if known:
            most = " or ".join(format_locations(until.locations) for until in known)
            raise ConfigError(
                f"`budget` {budget}: is stored for `locations` {most} only; give these, or leave them out"
            )
        stored = ", ".join(dict.fromkeys(until.budget for until in self.budgets)) or "none"
        raise ConfigError(
            f"`budget` {budget}: the run stores {stored}; foveal evaluate RUN --budget {budget} adds one, or give "
            "`stop_at`"
        )

    def find(self, name: str) -> Source:
        """The image of a name below the folder.

        Raises:
            Refused: there is none.
        """
        if self.folder is None:
            raise Refused(404, "the service has no folder of images; start it with --images FOLDER, or upload an image")
        return Source(name, self.folder.find(name))

    @contextmanager
    def uploading(self, name: str) -> Iterator[Source]:
        """A file for an uploaded image, which is removed at the end.

        Args:
            name: name given by the client, for the answer only.
        """
        with self.uploads.file() as path:
            yield Source(as_text(name.encode("utf-8", "replace").decode())[-200:] or "upload", path, True)

    def classify(self, source: Source, settings: Settings, top_k: int = 5) -> Future[Row]:
        """Classify an image; the future has its row, or the `Refused` of an image that cannot be classified."""
        return self._batcher.submit(_Job(source, top_k), settings)

    def walk(self, source: Source, settings: Settings, top_k: int, on_turn: Callable[[Turn], bool]) -> Future[Row]:
        """Classify an image look by look.

        Args:
            source, settings, top_k: see `classify`.
            on_turn: called after the first look and after each further turn, in the thread that classifies; returns
                whether to go on.
        """
        return self._batcher.submit(_Job(source, top_k), _Alone(lambda image: self._walk(image, settings, on_turn)))

    def explain(self, source: Source, settings: Settings) -> Future[str]:
        """The self-contained page of an image, see `foveal.explain.explain`."""

        def run(image: _Image) -> str:
            from foveal.explain import explain

            with tempfile.TemporaryDirectory(dir=self.uploads.folder) as folder:
                out = Path(folder, "report.html")
                explain(self.predictor.model, source.path, out, locations=settings.locations)
                return self.public(source, out.read_text(encoding="utf-8"))

        return self._batcher.submit(_Job(source, 5), _Alone(run))  # type: ignore[return-value]

    def public(self, source: Source, message: str) -> str:
        """A message without paths of this machine."""
        root = [] if self.folder is None else [self.folder.root]
        hidden = (
            *root,
            str(self.uploads.folder),
            str(default_folder()),
            tempfile.gettempdir(),
            str(Path.home()),
            str(Path.cwd()),
        )
        for path in dict.fromkeys((as_text(source.path), os.path.realpath(source.path))):
            message = message.replace(path, source.name)
        for path in filter(lambda path: len(path) > 1, hidden):
            message = message.replace(path, "(folder of the service)")
        return message

    def open_pyramid(self, source: Source) -> Pyramid:
        """Open an image with the bands and value range of the model.

        Raises:
            Refused: it cannot be opened; or it was uploaded and is too large, or in a format that may name other files.
        """
        model = self.predictor.model
        options: dict[str, Any] = {"channels": model.channels, "value_range": getattr(model, "value_range", None)}
        try:
            if source.uploaded:
                if not _holds_itself(source.path):
                    raise Refused(
                        415, f"{source.name}: uploads are TIFF, JPEG, PNG, WebP, GIF, BMP, PNM or JPEG XL; convert it"
                    )
                options["convert"] = False
            elif _describes_others(source.path):
                raise Refused(
                    422, f"{source.name}: VRT may name files outside of the folder; convert it by gdal_translate"
                )
            image = open_image(source.path, **options)
        except Unconverted as error:
            raise Refused(413, f"{source.name}: {self._too_large()}") from error
        except ImageError as error:
            raise Refused(422, self.public(source, str(error))) from error
        height, width = image.size
        if source.uploaded and height * width > self.limits.upload_pixels:
            image.close()
            raise Refused(413, f"{source.name}: has {width} x {height} pixels; {self._too_large()}")
        return image

    # ---- in the threads that open images

    def _open(self, job: _Job) -> _Image:
        start, state = time.perf_counter(), file_state(job.source.path)
        pyramid = self.open_pyramid(job.source)
        bytes = self._room.enter(_decoded_bytes(pyramid))
        try:
            with reading(str(job.source.path), "cannot be looked at"):
                image = self.predictor.open(pyramid)
                view = View(image)
                view.prefetch(self.predictor.model.first_looks(image.size))
            seconds = time.perf_counter() - start
            return _Image(job, Opened(job.source.name, view, None, seconds, job.source.path, state), bytes)
        except BaseException as error:
            self._room.leave(bytes)
            pyramid.close()
            if isinstance(error, FovealError) and not isinstance(error, Refused):
                raise Refused(422, self.public(job.source, str(error))) from error
            raise

    # ---- in the thread that classifies

    def _run(self, key: Hashable, images: list[_Image]) -> list[Row]:
        if isinstance(key, _Alone):
            return [key.run(image) for image in images]
        assert isinstance(key, Settings)
        return self._rows(images, key, lambda views, paths: self._classify(views, paths, key))

    def _classify(self, views: ImageViews, paths: Sequence[str], settings: Settings) -> Classification:
        samples = np.array([zlib.crc32(as_text(path).encode()) for path in paths])
        told = tells_contributions(self.predictor.model)
        return self.predictor(views, settings.locations, None, Draws(0, 0, samples), settings.until, told)

    def _walk(self, image: _Image, settings: Settings, on_turn: Callable[[Turn], bool]) -> Row:
        turns = 0

        def classify(views: ImageViews, paths: Sequence[str]) -> Classification:
            watched = _Watched(views)

            def told(logits: torch.Tensor) -> bool:
                nonlocal turns
                looks, watched.looks = watched.looks if turns else [], []
                one = Classification(logits[0].cpu().double(), _none(), self.predictor.class_names, task=model.task)
                top = [{"label": name, "probability": p} for name, p in one.top(image.job.top_k)]
                turn = Turn(turns, looks, str(one.label), float(one.probability), top)
                turns += 1
                return on_turn(turn)

            shown = tells_contributions(model)
            return self.predictor(watched, settings.locations, until=settings.until, contributions=shown, on_turn=told)

        model = self.predictor.model
        return self._rows([image], settings, classify)[0]

    def _rows(
        self,
        images: list[_Image],
        settings: Settings,
        classify: Callable[[ImageViews, Sequence[str]], Classification],
    ) -> list[Row]:
        def macs(one: Classification, view: View) -> int:
            first = settings.until is not None
            spent = locations_of(one.glimpses, settings.locations) if first else settings.locations
            return self._macs(one, view.size, spent, view.mpp)

        rows = rows_of([image.opened for image in images], classify, macs, max(image.job.top_k for image in images))
        for row, image in zip(rows, images, strict=True):
            row["top_k"] = row["top_k"][: image.job.top_k]
            if row["error"]:
                row["error"] = self.public(image.job.source, row["error"])
        return rows

    def _release(self, image: _Image) -> None:
        self._room.leave(image.bytes)
        if image.opened.view is not None:
            image.opened.view.image.close()

    def _count(self, size: int, seconds: float) -> None:
        self.seconds_each += 0.1 * (seconds / size - self.seconds_each)
        self.on_batch(size, seconds)

    def _warm_up(self) -> None:
        """Load kernels and allocate memory before the first request."""
        model = self.predictor.model
        self.predictor(BlankViews(1, model.size, model.channels, self.predictor.device)).logits.cpu()

    def _stored_exits(self, path: Path, predictor: Predictor) -> tuple[Exit, ...]:
        machine = machine_name(predictor.device)
        fits = [
            until
            for until in read_exits(path)
            if (until.model, until.precision) == (self.fingerprint, predictor.precision)
            and until.machine in (None, machine)
        ]
        return tuple(sorted(fits, key=lambda until: until.cost))

    def _too_large(self) -> str:
        most = self.limits.upload_pixels
        return f"uploads have at most {most:,} pixels; put it into the folder of the service and name its path"


class Room:
    """Memory for open images. An image that needs more than there is waits until it is alone.

    Args:
        bytes: memory for pixels.
        images: most images.
    """

    def __init__(self, bytes: int, images: int) -> None:
        self._all, self._least, self._used = bytes, -(-bytes // images), 0
        self._changed = threading.Condition()

    def enter(self, bytes: int) -> int:
        """Wait for room. Returns the argument of `leave`."""
        bytes = min(max(bytes, self._least), self._all)
        with self._changed:
            self._changed.wait_for(lambda: self._used + bytes <= self._all)
            self._used += bytes
        return bytes

    def leave(self, bytes: int) -> None:
        with self._changed:
            self._used -= bytes
            self._changed.notify_all()


class _Watched(ImageViews):
    """Views that remember the boxes that a model reads."""

    def __init__(self, views: ImageViews) -> None:
        super().__init__(views.views, threads=views.threads)
        self.errors = views.errors  # those of the batch
        self.looks: list[dict[str, Any]] = []

    def look(self, which: np.ndarray, boxes: np.ndarray, size: tuple[int, int], **how: Any) -> torch.Tensor:
        self.looks += [{"box": box, "size": list(size)} for box in np.asarray(boxes, float).reshape(-1, 4).tolist()]
        return super().look(which, boxes, size, **how)


def _holds_itself(path: Path) -> bool:
    """Whether a file has a format that is read without optional libraries. A VRT or a slide may name other files."""
    with path.open("rb") as file:
        head = file.read(64)
    return head[:4] in TIFF or plain.kind_of(head) is not None or jxl.is_jxl(head)


def _describes_others(path: Path) -> bool:
    """Whether a file is text that names other files, for GDAL, such as VRT. GDAL looks at the content alone."""
    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError:
        return False  # opening it as an image says why
    begin = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    return path.suffix.lower() == ".vrt" or b"<VRTDataset" in head or begin in (b"<", b"{")


def _decoded_bytes(image: Pyramid) -> int:
    """Memory of an image that is decoded whole; 0 for those that are read in tiles."""
    height, width = image.size
    return height * width * image.channels * image.dtype.itemsize if len(image.level_sizes) == 1 else 0


def _none() -> Any:
    from foveal.classification import Glimpses

    empty = np.zeros(0, dtype=int)
    return Glimpses(empty, np.zeros((0, 4)), np.zeros((0, 2), dtype=int), empty, empty, torch.zeros(0))

"""Encode the tiles of images, and write a file of features for each.

Example:
    >>> import tempfile
    >>> from PIL import Image
    >>> folder = Path(tempfile.mkdtemp())
    >>> pixels = np.random.default_rng(0).integers(256, size=(64, 100, 3), dtype=np.uint8)
    >>> Image.fromarray(pixels).save(folder / "1.png")
    >>> done = embed("test_resnet", folder, folder / "features", format="zarr", tile_size=32, pretrained=False)
    >>> done.encoded, done.tiles, sorted(file.name for file in (folder / "features").iterdir())
    (1, 8, ['1.zarr', 'encoder.safetensors', 'report.jsonl'])
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save as serialise
from torch import nn

from foveal.draws import Draws
from foveal.embedding.encoders import TileEncoder, settings_digest, tile_encoder
from foveal.errors import ConfigError, DataError, ImageError
from foveal.features import FEATURE_FORMATS, Writer, read_header, writing
from foveal.features.files import ENCODER, LOCK, remove_unfinished
from foveal.files import locked, replacing, storing
from foveal.glimpse.mil import AttentionPooling
from foveal.images import ImageViews, LeftOut, as_text, find_mask
from foveal.images.reading import reading
from foveal.images.uris import is_remote, shown
from foveal.models import without_warnings
from foveal.policies import GREEDY
from foveal.prediction import Predictor, autocast, find_device, find_images, fold_norms
from foveal.prediction.checks import check_whole
from foveal.prediction.rows import FOLD_FROM

REPORT = "report.jsonl"


@dataclass(frozen=True)
class Embedded:
    """What `embed` did.

    Attributes:
        out: the folder.
        encoded: number of images that were encoded.
        skipped: number of images that had been encoded before.
        tiles: number of tiles that were encoded.
        failed: (path, error) of each image that failed.
        left_out: files and folders that were left out.
        seconds: time.
    """

    out: Path
    encoded: int = 0
    skipped: int = 0
    tiles: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    left_out: LeftOut = field(default_factory=LeftOut)
    seconds: float = 0.0


def embed(
    model: Any,
    images: Sequence[str | Path] | str | Path,
    out: str | Path,
    *,
    format: Annotated[str, FEATURE_FORMATS] = "h5",
    tile_size: int | None = None,
    tile_stride: int | None = None,
    scale: int | None = None,
    stages: int | None = None,
    backbone_options: dict[str, Any] | None = None,
    pretrained: bool | str = True,
    in_chans: int = 3,
    value_range: tuple[float, float] | None = None,
    locations: int | Sequence[int] | None = None,
    masks: str | Path | None = None,
    licence: str | None = None,
    overwrite: bool = False,
    device: str | torch.device = "auto",
    precision: str = "32",
    batch_size: int = 64,
    on_progress: Callable[[float, float], None] | None = None,
) -> Embedded:
    """Encode the tiles of images, a file for each image.

    Args:
        model, tile_size, tile_stride, scale, stages: see `tile_encoder`.
        backbone_options, pretrained, in_chans, value_range, locations, licence: see `tile_encoder`.
        images: files, folders and patterns, see `foveal.prediction.find_images`.
        out: folder of the files; created if missing.
        format: ``h5`` or ``zarr``.
        masks: folder of masks of the images, see `foveal.images.masks`; tiles outside are left out.
        overwrite: make files anew that were made with other settings.
        device, precision: see `foveal.prediction.Predictor`.
        batch_size: tiles that are encoded at once.
        on_progress: called with the number of images that are done, a part of one included, and of all.

    Raises:
        ConfigError: an argument does not fit, files were made with other settings, two images have the same name, or
            h5py or zarr is not installed. Errors of images are in ``failed``.
        StorageError: a file cannot be written, or another process writes to the folder.
    """
    start = time.perf_counter()
    check_whole("batch_size", batch_size)
    if format not in FEATURE_FORMATS:
        raise ConfigError(f"`format` {format}: is not known; use {' or '.join(FEATURE_FORMATS)}")
    if masks is not None and not Path(masks).is_dir():
        raise ConfigError(f"`masks` {masks}: there is no such folder; check the path")
    where = find_device(device)
    autocast(precision, where)  # check it
    with without_warnings("timm"):
        encoder = tile_encoder(
            model,
            tile_size=tile_size,
            tile_stride=tile_stride,
            scale=scale,
            stages=stages,
            backbone_options=backbone_options,
            pretrained=pretrained,
            in_chans=in_chans,
            value_range=value_range,
            locations=locations,
            licence=licence,
        )
    settings = encoder.settings(precision, masks is not None)
    settings["digest"] = settings_digest(settings)
    settings["licence"] = encoder.licence
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"`out` {out}: is a file; give a folder")
    failed: list[tuple[str, str]] = []
    left_out = LeftOut()
    named = _named_images(images, failed, left_out)
    with storing(folder, "choose another folder"):
        folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / LOCK, f"{folder}: another process writes there; wait, or choose another folder"):
        remove_unfinished(folder)
        waiting = _to_do(named, folder, format, settings["digest"], overwrite)
        _store_weights(folder / ENCODER, encoder.tiles.encoder, settings["weights"], overwrite)
        skipped, encoded, tiles = len(named) - len(waiting), 0, 0
        work = _Work(encoder, where, precision, batch_size, settings, masks, len(named))
        with storing(folder, "the same command continues"), _reporting(folder / REPORT) as report:
            for path, error in failed:
                report(path, error=error)
            for number, (path, file) in enumerate(waiting, start=skipped):

                def show(share: float, before: int = number) -> None:
                    if on_progress is not None:
                        on_progress(before + share, len(named))

                show(0.0)
                began = time.perf_counter()
                try:
                    count, blank = work(path, file, show)
                except ImageError as error:
                    failed.append((shown(path), str(error)))
                    report(path, error=str(error))
                    continue
                encoded, tiles = encoded + 1, tiles + count
                seconds = round(time.perf_counter() - began, 3)
                report(path, file=file.relative_to(folder).as_posix(), tiles=count, blank=blank, seconds=seconds)
    return Embedded(folder, encoded, skipped, tiles, failed, left_out, round(time.perf_counter() - start, 3))


def _named_images(
    images: Sequence[str | Path] | str | Path, failed: list[tuple[str, str]], left_out: LeftOut
) -> dict[str, str]:
    """Paths of images by name. What cannot be searched is added to ``failed``.

    Raises:
        ConfigError: two images have the same name.
    """
    found: dict[str, str] = {}
    paths = [images] if isinstance(images, str | Path) else images
    for top in (os.fspath(path) for path in paths):
        for path, error in find_images([top], left_out):
            if error is not None:
                failed.append((shown(path), error))
                continue
            # An image in Zarr is a folder, too. Addresses may hold secrets.
            searched = path != top and (is_remote(top) or Path(top).is_dir())
            inside = Path(shown(path)).relative_to(shown(top)) if searched else Path(Path(shown(path)).name)
            name = inside.with_suffix("").as_posix()
            if (other := found.setdefault(name, path)) != path:
                what = "name one of them, or encode them into two folders"
                if Path(shown(path)).parent != Path(shown(other)).parent:
                    what = "give the folder that holds both, or encode them into two folders"
                raise ConfigError(f"{shown(path)}: has the same name as {shown(other)}; {what}")
    return found


def _to_do(named: dict[str, str], folder: Path, format: str, digest: str, overwrite: bool) -> list[tuple[str, Path]]:
    """(image, file) of the images that have no file of these settings."""
    waiting = []
    for name, path in named.items():
        file = folder / f"{name}.{format}"
        other = next((file.with_suffix(f".{o}") for o in FEATURE_FORMATS if o != format), file)
        if other.exists():
            raise ConfigError(f"{other}: is of another format; use `format` {other.suffix[1:]}, or another `out`")
        if file.exists():
            try:
                if read_header(file).settings.get("digest") == digest:
                    continue
                what = "was made with other settings, or by another program"
            except DataError:
                what = "is damaged, or no file of features"
            if not overwrite:
                raise ConfigError(f"{file}: {what}; choose another `out`, or `overwrite`")
        waiting.append((path, file))
    return waiting


def _store_weights(file: Path, encoder: nn.Module, digest: str, overwrite: bool) -> None:
    """Write the weights of the network, unless they are there."""
    if file.exists():
        if stored_digest(file) == digest:
            return
        if not overwrite:
            raise ConfigError(f"{file}: has the weights of another network; choose another `out`, or `overwrite`")
    weights = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in encoder.state_dict().items()}
    with storing(file), replacing(file) as unfinished:
        unfinished.write_bytes(serialise(weights, metadata={"digest": digest}))


def stored_digest(file: Path) -> str | None:
    """Digest in a file of weights; None if it has none or is damaged."""
    with suppress(Exception), safe_open(file, framework="pt") as content:
        return (content.metadata() or {}).get("digest")
    return None


@contextmanager
def _reporting(file: Path) -> Iterator[Callable[..., None]]:
    """Append lines to the report. A line that a killed process left unfinished is ended first."""
    with file.open("ab+") as before:
        if before.tell():
            before.seek(-1, os.SEEK_END)
            if before.read() != b"\n":
                before.write(b"\n")
    with file.open("a", encoding="utf-8") as stream:

        def report(path: str, **known: Any) -> None:
            row = {"file": None, "tiles": None, "blank": None, "seconds": None, "error": None, **known}
            stream.write(json.dumps({"path": as_text(shown(path)), **row}) + "\n")
            stream.flush()

        yield report


class _Work:
    """Encodes an image.

    Args:
        encoder: the network.
        device, precision, batch_size, masks: see `embed`.
        settings: content of the attribute ``foveal`` of the files.
        images: number of images, those done before included, so that features of a continued command are the same; of
            many, batch norms are folded.
    """

    def __init__(
        self,
        encoder: TileEncoder,
        device: torch.device,
        precision: str,
        batch_size: int,
        settings: dict[str, Any],
        masks: str | Path | None,
        images: int,
    ) -> None:
        tiles = cast(AttentionPooling, fold_norms(encoder.tiles)) if images >= FOLD_FROM else encoder.tiles
        self.encoder = replace(encoder, tiles=tiles.to(device))
        if encoder.scan is not None:
            self.encoder.scan = encoder.scan.to(device)
        self.predictor = Predictor(self.encoder.tiles, precision=precision)
        self.predictor.model.value_range = encoder.value_range  # type: ignore[assignment]
        self.batch_size, self.settings, self.masks = batch_size, settings, masks

    def __call__(self, path: str, file: Path, show: Callable[[float], None]) -> tuple[int, int]:
        """Encode an image and write its file.

        Returns:
            Number of tiles, and of blank ones that were left out.

        Raises:
            FovealError: the image cannot be read.
        """
        tiles, blank = self.encoder.tiles, 0
        with reading(shown(path), "cannot be encoded"):
            mask = None if self.masks is None else find_mask(self.masks, path)
            image = self.predictor.open(path, mask=mask)
        with image:
            views = ImageViews([image])
            file.parent.mkdir(parents=True, exist_ok=True)
            side = tiles.size[0] * tiles.scale
            about: dict[str, Any] = {
                "size": image.size,
                "side": side,
                "patch_size": tiles.size[0],
                "encoder": self.encoder.name,
            }
            overlap = 0 if self.encoder.scan is not None else max(tiles.size[0] - tiles.stride, 0)
            with writing(file, tiles.features, **about, overlap=overlap, settings=self.settings) as writer:
                with torch.inference_mode(), autocast(self.predictor.precision, self.predictor.device):
                    if self.encoder.scan is not None:
                        self._encode_looks(views, writer)
                    else:
                        blank = self._encode_grid(views, writer, show)
                writer.settings["blank"] = blank
        return writer.count, blank

    def _encode_grid(self, views: ImageViews, writer: Writer, show: Callable[[float], None]) -> int:
        """Encode the tiles that are not blank. Returns the number of the others."""
        tiles = self.encoder.tiles
        count = int(tiles.count(views.sizes)[0])
        for first in range(0, count, self.batch_size):
            numbers = np.arange(first, min(first + self.batch_size, count))
            features, kept = tiles.encoded(views, np.zeros_like(numbers), numbers)
            self._append(views, writer, features, tiles.boxes(views.sizes[:1], numbers[kept]))
            show((numbers[-1] + 1) / count)
        if not writer.count:
            middle = np.array([[tiles.middle_tile(views, 0)]])
            features = tiles.encode(tiles.read(views, np.zeros(1, np.int64), middle)[0])
            self._append(views, writer, features, tiles.boxes(views.sizes[:1], middle[0]))
        return count - writer.count

    def _encode_looks(self, views: ImageViews, writer: Writer) -> None:
        """Encode the looks that the scan chooses."""
        scan = self.encoder.scan
        assert scan is not None
        found = scan.scan(views, sum(self.encoder.locations), GREEDY, Draws(0, 0, np.zeros(1, np.int64)), "scan 0")
        boxes = scan.boxes(found.places, views.sizes)[0][found.taken[0]]
        pixels = scan.see(views, np.zeros(len(boxes), np.int64), boxes)
        self._append(views, writer, self.encoder.tiles.encode(pixels), boxes)

    def _append(self, views: ImageViews, writer: Writer, features: torch.Tensor, boxes: np.ndarray) -> None:
        for error in views.errors.values():
            raise ImageError(error)
        try:
            writer.append(features.float().cpu().numpy(), boxes[:, [1, 0]].astype(np.int64))
        except DataError as error:
            raise ImageError(f"{views.name(0)}: its {error}") from error

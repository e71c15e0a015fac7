"""Image pyramids: boxes of one image, resampled from the best level.

`Pyramid` is the base class of all readers. A reader defines the sizes of the levels and reads windows of them; the base
class selects the level for a box, reads the window and resamples it. `ArrayPyramid` is an image in memory.

Transparent pixels and no-data pixels of a file count as outside the image. They take the fill value, in proportion to
the uncovered share of an output pixel.

Example:
    >>> import numpy as np, torch
    >>> image = ArrayPyramid(np.full((60, 40, 3), 255, np.uint8))
    >>> image.size, image.channels
    ((60, 40), 3)
    >>> seen = image.look(np.array([[0, 0, 60, 40], [0, -40, 40, 0]]), (8, 8), fill=torch.tensor([0.1, 0.2, 0.3]))
    >>> seen.shape, round(seen[0].min().item(), 6), round(seen[1, 2].max().item(), 4)
    (torch.Size([2, 3, 8, 8]), 1.0, 0.3)
"""

from __future__ import annotations

import copy
import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.errors import ConfigError, ImageError
from foveal.images.info import ImageInfo, image_info
from foveal.images.notices import noting
from foveal.images.reading import memory_limit, reading
from foveal.images.resample import ResamplePlan, composite, cut, plan

if TYPE_CHECKING:
    from foveal.images.ome_zarr import RemoteFolder
    from foveal.images.remote import RemoteObject

Window = tuple[int, int, int, int]
Stored = tuple[np.ndarray, np.ndarray | None]

# EXIF orientation -> (transpose, then flip y, flip x) from stored pixels to the upright image.
ORIENTATIONS = {
    1: (False, False, False),
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}


class Cut(NamedTuple):
    """The source pixels of one box, before resampling.

    Attributes:
        plan: how to resample them.
        pixels: (h, w, bands) stored pixels, or None if the whole box is outside the image.
        alpha: (h, w) float32 alpha of the pixels, or None if all are opaque.
    """

    plan: ResamplePlan
    pixels: np.ndarray | None
    alpha: np.ndarray | None


class Pyramid(ABC):
    """Base class of images with one or more levels.

    Pyramids can be shared by threads, inherited by forked processes and pickled.

    Args:
        path: path of the file, or name of the image in messages.
        stored_sizes: (height, width) of each level before orientation, finest first.
        bands: number of colour bands, without alpha.
        dtype: type of the stored pixels.
        channels: number of bands of a look; that of the image if None.
        value_range: stored values that are scaled to 0 and 1; the range of the type if None.
        orientation: EXIF orientation of the stored pixels, 1 to 8.
        metadata: metadata of the file.
        premultiplied: the stored colours are premultiplied by alpha.
        bits: number of used bits of the stored type, if not all.
        halved: each level was made from the one before by averaging 2 x 2 blocks, padded at the end; one value for all
            levels, or one for each level.
        max_bytes: memory limit of the source pixels of one look; `foveal.images.reading.memory_limit` if None.

    Attributes:
        stored_range: default of ``value_range``: the range of the type, or of its used bits. None for types without a
            range, such as floating-point types.
        size: (height, width) after orientation.
        mask: (h, w) bool, stretched over the image: where a scan may look; everywhere if None. See
            `foveal.images.masks`.
        level_sizes: (height, width) of each level, level 0 first.
        remote: the remote file, or folder of OME-Zarr, which counts requests; None if the image is local.
        bytes_read, tiles_decoded: counts since the image was opened; a file that is decoded whole counts as one tile.

    Raises:
        ImageError: the number of bands does not match ``channels``, or the type has no range and ``value_range`` is
            None.
    """

    def __init__(
        self,
        path: str,
        stored_sizes: Sequence[tuple[int, int]],
        bands: int,
        dtype: np.dtype,
        *,
        channels: int | None = None,
        value_range: tuple[float, float] | None = None,
        orientation: int = 1,
        metadata: dict[str, Any] | None = None,
        premultiplied: bool = False,
        bits: int | None = None,
        halved: bool | Sequence[bool] = False,
        max_bytes: int | None = None,
    ) -> None:
        self.path = path
        self.dtype = np.dtype(dtype)
        self.channels = fitting(path, bands, channels)
        self._own_range = value_range is None
        self._range_was_given = value_range is not None
        self.stored_range = _stored_range(self.dtype, bits)
        self.value_range = (
            _range(path, self.dtype, self.stored_range) if value_range is None else checked_range(value_range)
        )
        self._blank: bool | None = None
        self.mask: np.ndarray | None = None
        self.metadata = {"orientation": orientation, **(metadata or {})}
        self.remote: RemoteObject | RemoteFolder | None = None
        self.bytes_read = 0
        self.tiles_decoded = 0
        self._stored_sizes = tuple(stored_sizes)
        self._bands = bands
        self._orientation = orientation if orientation in ORIENTATIONS else 1
        self._premultiplied = premultiplied
        self._max_bytes = max_bytes or memory_limit()
        self._lock = threading.Lock()
        self._info: ImageInfo | None = None
        transpose = ORIENTATIONS[self._orientation][0]
        self.level_sizes = tuple((w, h) if transpose else (h, w) for h, w in self._stored_sizes)
        by_halves = [halved] * len(self.level_sizes) if isinstance(halved, bool) else halved
        self._scales = [
            tuple(_scale(n, of, half) for n, of in zip(level, self.size, strict=True))
            for level, half in zip(self.level_sizes, by_halves, strict=True)
        ]

    @property
    def size(self) -> tuple[int, int]:
        return self.level_sizes[0]

    @property
    def mpp(self) -> float | None:
        """µm per full-resolution pixel, see `foveal.images.scale`; None if unknown."""
        return self.metadata.get("mpp")

    @property
    def info(self) -> ImageInfo:
        """Size, levels, scale and position; of the original if the image was resized by `squash`."""
        if self._info is None:
            self._info = image_info(self)
        return self._info

    @property
    def stored_orientation(self) -> int:
        """EXIF orientation of the stored pixels, 1 to 8."""
        return self._orientation

    def look(
        self, boxes: np.ndarray, size: tuple[int, int], *, fill: Tensor | None = None, antialias: bool = True
    ) -> Tensor:
        """Crop boxes and resample them.

        A box is read from the coarsest level with at least one pixel for each output pixel (1 % upsampling is allowed),
        averaged by a power of two, and resampled as in `foveal.images.resample`. Without antialiasing it is resampled
        bilinearly from that level; images in memory from level 0.

        Args:
            boxes: (n, 4) float64 (y0, x0, y1, x1) in full-resolution pixels; may reach outside the image.
            size: (height, width) of every output.
            fill: (channels,) value of pixels that are outside, transparent or no data; 0 if None.
            antialias: see `foveal.images.resample`.

        Returns:
            (n, channels, height, width) float32 in [0, 1].

        Raises:
            ImageError: the file is damaged in a box.
        """
        out = torch.empty(len(boxes), self.channels, *size)
        for slot, piece in zip(out, self.read_cuts(boxes, size, antialias=antialias), strict=True):
            slot.copy_(composite(*self.resample_cut(piece), fill))
        return out

    def read_cuts(
        self, boxes: np.ndarray, size: tuple[int, int], *, antialias: bool = True, bounds: Sequence[float] | None = None
    ) -> list[Cut]:
        """First half of `look`: read the source pixels of the boxes, each tile once.

        Args:
            boxes, size, antialias: see `look`.
            bounds: (y0, x0, y1, x1) of the visible part of the image; pixels beyond it count as outside.
        """
        rows = np.asarray(boxes, dtype=np.float64).reshape(-1, 4).tolist()
        wanted = [self._planned(box, size, antialias, bounds) for box in rows]
        for level, how in wanted:
            y0, x0, y1, x1 = (0, 0, 0, 0) if how.empty else how.window
            if (cost := (y1 - y0) * (x1 - x0) * self._bands * self.dtype.itemsize) > self._max_bytes:
                needs = f"a look needs {x1 - x0} x {y1 - y0} pixels of level {level}, {cost:,} bytes"
                what = f"{needs}, more than the limit of {self._max_bytes:,}"
                raise ImageError(
                    f"{self.path}: {what}; add coarser levels to the file, or raise --max-bytes or FOVEAL_MAX_BYTES"
                )
        windows = iter(self._windows([(level, how.window) for level, how in wanted if not how.empty]))
        return [Cut(how, None, None) if how.empty else Cut(how.at_origin(), *next(windows)) for _, how in wanted]

    def read_ahead(  # noqa: B027 (local files have nothing to do)
        self, boxes: np.ndarray, sizes: Sequence[tuple[int, int]]
    ) -> None:
        """Read the bytes of boxes that are looked at next, in one round of requests, if the file is remote. Readers of
        remote files override this.

        Args:
            boxes: see `look`.
            sizes: (height, width) of each look.

        Raises:
            ImageError: the server fails.
        """

    def _planned(
        self, box: Sequence[float], size: tuple[int, int], antialias: bool = True, bounds: Sequence[float] | None = None
    ) -> tuple[int, ResamplePlan]:
        """The level from which a box is read, and the plan in pixels of this level; see `read_cuts`."""
        level = self._level(box, size, antialias)
        (h, w), (full_h, full_w) = self.level_sizes[level], self.size
        scale = self._scales[level] * 2
        y0, x0, y1, x1 = bounds or (0, 0, full_h, full_w)
        limits = (max(y0, 0), max(x0, 0), min(y1, full_h), min(x1, full_w))
        how = plan(
            [b * s for b, s in zip(box, scale, strict=True)],
            size,
            [b * s for b, s in zip(limits, scale, strict=True)],
            antialias=antialias,
            shrink=True,
        )
        # A level that was halved may lack an odd last row or column; its last pixels are used instead.
        return level, how._replace(y=how.y._replace(last=min(how.y.last, h)), x=how.x._replace(last=min(how.x.last, w)))

    def is_constant(self, box: Sequence[float], size: tuple[int, int]) -> bool:
        """Whether all source pixels of a block of a scan are known to be equal, or missing, before they are decoded.

        False does not mean that they differ. Readers of tiled files override this, and keep the tiles of a block for
        the next one.
        """
        return False

    def tile_bytes(self, y: np.ndarray, x: np.ndarray, spacing: float) -> np.ndarray | None:
        """Encoded size of the tiles from which points are read; None if the file has no tiles.

        Args:
            y, x: coordinates in full-resolution pixels, of shapes that can be broadcast.
            spacing: full-resolution pixels per pixel of the look, which determines the level.

        Returns:
            Bytes, of the common shape; 0 for tiles that are missing.
        """
        return None

    def resample_cut(self, piece: Cut) -> tuple[Tensor, Tensor | None]:
        """Second half of `look`: resample the source pixels of a box.

        Returns:
            (channels, height, width) in [0, 1], premultiplied by the cover; and the (height, width) cover in [0, 1], or
            None if it is 1 everywhere.

        Raises:
            ImageError: all of the image is transparent or no data.
        """
        size = (piece.plan.y.outputs, piece.plan.x.outputs)
        if piece.pixels is None:
            return torch.zeros(self.channels, *size), torch.zeros(size)
        pixels = torch.from_numpy(np.require(piece.pixels, requirements=["C", "W"])).permute(2, 0, 1)[None]
        low, high = self.value_range
        # Clamp values beyond a given range before resampling. The range of the type needs no clamping.
        if not self._own_range or piece.alpha is not None:
            # Copy, because the pixels may share memory with the image.
            pixels = pixels.to(torch.float32, copy=True).sub_(low).div_(high - low).clamp_(0, 1)
        if piece.alpha is not None:
            alpha = torch.from_numpy(piece.alpha)[None, None]
            pixels = torch.cat([pixels if self._premultiplied else pixels * alpha, alpha], 1)
        seen, cover = cut(pixels, piece.plan)
        seen = seen[0]
        if piece.alpha is not None:
            seen, cover = seen[:-1], seen[-1]
            if self._blank is not False:
                self._refuse_blank(cover)
        elif self._own_range:
            seen = (seen / high).clamp_(0, 1)  # resampling may exceed the range by a rounding error
        return seen.expand(self.channels, -1, -1), cover

    def _refuse_blank(self, cover: Tensor) -> None:
        """Raise ImageError if all of the image is transparent or no data; checked once, after an empty look."""
        if self._blank is None and bool(cover.max() > 0):
            self._blank = False
        elif self._blank is None:
            whole = np.array([[0, 0, *self.size]], dtype=np.float64)
            around = self.read_cuts(whole, (64, 64))[0]
            self._blank = around.alpha is not None and not around.alpha.any()
        if self._blank:
            raise ImageError(
                f"{self.path}: is wholly transparent, masked or no data, with nothing to see; save it again"
            )

    def read(self, level: int, box: Window) -> np.ndarray:
        """Read stored pixels of a level.

        Args:
            level: pyramid level.
            box: (y0, x0, y1, x1) integers, in pixels of that level; pixels outside the level are 0.

        Returns:
            (height, width, bands) in the dtype of the image.
        """
        y0, x0, y1, x1 = box
        out = np.zeros((y1 - y0, x1 - x0, self._bands), self.dtype)
        h, w = self.level_sizes[level]
        inside = (max(y0, 0), max(x0, 0), min(y1, h), min(x1, w))
        if inside[2] > inside[0] and inside[3] > inside[1]:
            out[inside[0] - y0 : inside[2] - y0, inside[1] - x0 : inside[3] - x0] = self._windows([(level, inside)])[0][
                0
            ]
        return out

    def taken_as(self, channels: int | None, value_range: tuple[float, float] | None) -> Pyramid:
        """The image with the channels and value range of a model; a copy that shares the pixels if they differ.

        Args:
            channels: number of bands of a look, see `Pyramid`; that of this image if None.
            value_range: stored values that are scaled to 0 and 1. It is ignored if the image was opened with a range.

        Raises:
            ImageError: the number of bands does not match ``channels``.
        """
        wanted = self.channels if channels is None else fitting(self.path, self._bands, channels)
        changed = value_range is not None and not self._range_was_given
        if wanted == self.channels and not changed:
            return self
        same = copy.copy(self)
        same.channels = wanted
        if changed and value_range is not None:
            same._own_range, same._range_was_given = False, True
            same.value_range = checked_range(value_range)
        return same

    def sample(self, most: int = 1 << 14) -> np.ndarray:
        """A sample of stored pixels. The cost does not depend on the size of the image.

        The pixels are from the coarsest level of at least 256 x 256 pixels: from the whole level if it is small,
        otherwise from nine windows spread over it.

        Args:
            most: largest number of pixels.

        Returns:
            (n, bands) in the dtype of the image, without pixels that are transparent, no data or not finite; n may be
            0.

        Raises:
            ImageError: the file is damaged in a window.
        """
        level = max((i for i, (h, w) in enumerate(self.level_sizes) if h * w >= 1 << 16), default=0)
        h, w = self.level_sizes[level]
        windows = [(0, 0, h, w)]
        if h * w > 1 << 22:
            side = 256
            corners = [[round(share * max(0, n - side)) for share in (0, 0.5, 1)] for n in (h, w)]
            windows = [(y, x, min(h, y + side), min(w, x + side)) for y in corners[0] for x in corners[1]]
        parts = []
        for pixels, alpha in self._windows([(level, window) for window in windows]):
            rows = pixels.reshape(-1, pixels.shape[2])
            parts.append(rows if alpha is None else rows[alpha.reshape(-1) == 1])
        found = np.concatenate(parts)
        if found.dtype.kind == "f":
            found = found[np.isfinite(found).all(1)]
        return found if len(found) <= most else found[np.linspace(0, len(found) - 1, most).round().astype(int)]

    def close(self) -> None:
        """Close the file. A later look opens it again."""
        return

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.path!r}, size={self.size}, channels={self.channels}, "
            f"levels={len(self.level_sizes)})"
        )

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    @abstractmethod
    def _read_stored(self, requests: list[tuple[int, Window]]) -> list[Stored]:
        """(h, w, bands) pixels and (h, w) alpha (or None) of windows inside the levels, before orientation."""

    def _level(self, box: Sequence[float], size: tuple[int, int], antialias: bool) -> int:
        scale = min((box[2] - box[0]) / size[0], (box[3] - box[1]) / size[1]) * 1.01
        h, w = self.size
        return max((i for i, (lh, lw) in enumerate(self.level_sizes) if max(h / lh, w / lw) <= scale), default=0)

    def _windows(self, requests: list[tuple[int, Window]]) -> list[Stored]:
        """Like `_read_stored`, after orientation. Errors are raised as `ImageError`; warnings name the file."""
        if self._orientation == 1:
            with reading(self.path, "cannot be read"), noting(self.path):
                return self._read_stored(requests)
        transpose, flip_y, flip_x = ORIENTATIONS[self._orientation]
        stored = []
        for level, (top, left, bottom, right) in requests:
            h, w = self.level_sizes[level]
            y0, y1 = (h - bottom, h - top) if flip_y else (top, bottom)
            x0, x1 = (w - right, w - left) if flip_x else (left, right)
            stored.append((level, (x0, y0, x1, y1) if transpose else (y0, x0, y1, x1)))

        def turn(a: np.ndarray) -> np.ndarray:
            a = a.swapaxes(0, 1) if transpose else a
            return a[:: -1 if flip_y else 1, :: -1 if flip_x else 1]

        with reading(self.path, "cannot be read"), noting(self.path):
            return [
                (turn(p), None if a is None else np.ascontiguousarray(turn(a))) for p, a in self._read_stored(stored)
            ]

    def _count(self, bytes_read: int, tiles: int) -> None:
        with self._lock:
            self.bytes_read += bytes_read
            self.tiles_decoded += tiles


class ArrayPyramid(Pyramid):
    """An image in memory. Workers of data loaders pass its pixels in shared memory.

    Args:
        pixels: (h, w, bands), any real dtype.
        alpha: (h, w) float32 in [0, 1], or None.
        path: name of the image in messages.
        options: see `Pyramid`.
    """

    def __init__(
        self, pixels: np.ndarray | Tensor, alpha: np.ndarray | None = None, *, path: str = "image", **options: Any
    ) -> None:
        array = pixels.numpy() if isinstance(pixels, Tensor) else pixels
        super().__init__(path, [array.shape[:2]], array.shape[2], array.dtype, **options)
        self._fill_with(array, alpha)

    def _fill_with(self, pixels: np.ndarray, alpha: np.ndarray | None) -> None:
        self._pixels = torch.from_numpy(np.require(pixels, requirements=["C", "W"]))
        self._alpha = None if alpha is None else torch.from_numpy(np.ascontiguousarray(alpha, dtype=np.float32))

    def _level(self, box: Sequence[float], size: tuple[int, int], antialias: bool) -> int:
        return 0

    def _read_stored(self, requests: list[tuple[int, Window]]) -> list[Stored]:
        out: list[Stored] = []
        for _, (y0, x0, y1, x1) in requests:
            alpha = None if self._alpha is None else self._alpha[y0:y1, x0:x1].numpy()
            out.append(
                (
                    self._pixels[y0:y1, x0:x1].numpy(),
                    None if alpha is None or alpha.min() == 1 else np.ascontiguousarray(alpha),
                )
            )
        return out


def squash(image: Pyramid, side: int, shorter_side: int | None = None) -> ArrayPyramid:
    """Resize a whole image to a square, without keeping its aspect ratio, bilinearly without antialiasing.

    Args:
        image: the image.
        side: side of the square.
        shorter_side: first shrink the image with antialiasing until its shorter side is at most this.

    Raises:
        ImageError: the image is damaged.
    """
    height, width = image.size
    factor = 1.0 if shorter_side is None else min(1.0, shorter_side / min(height, width))
    size = max(1, round(height * factor)), max(1, round(width * factor))
    pixels = image.look(np.array([[0, 0, height, width]], dtype=np.float64), size)
    pixels = F.interpolate(pixels, (side, side), mode="bilinear", align_corners=False).clamp(0, 1)
    squashed = ArrayPyramid(pixels[0].permute(1, 2, 0), path=image.path, value_range=(0, 1))
    squashed.bytes_read, squashed.tiles_decoded = image.bytes_read, image.tiles_decoded
    squashed.remote = image.remote
    squashed._info = image.info
    return squashed


def checked_range(value_range: Sequence[float]) -> tuple[float, float]:
    """Convert a value range to two floats.

    Raises:
        ConfigError: a value is not finite, or the second is not larger than the first.
    """
    low, high = (float(value) for value in value_range)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ConfigError(
            f"value_range {low:g},{high:g}: the first must be the value of black and the second a larger one, that of "
            "white"
        )
    return low, high


def without_gaps(pixels: np.ndarray, alpha: np.ndarray | None) -> Stored:
    """Set pixels that are not finite to 0 and their alpha to 0."""
    if pixels.dtype.kind != "f" or (finite := np.isfinite(pixels)).all():
        return pixels, alpha
    seen = finite.all(2).astype(np.float32)
    return np.where(finite, pixels, 0).astype(pixels.dtype), seen if alpha is None else alpha * seen


def fitting(path: str, bands: int, wanted: int | None) -> int:
    """Number of bands of a look: the requested number, or that of the image if None.

    Raises:
        ImageError: the image has another number of bands, except for a grey image if 3 are requested.
    """
    if wanted in (None, bands) or (wanted == 3 and bands == 1):
        return wanted or bands
    plural = "s" * (bands != 1)
    raise ImageError(
        f"{path}: has {bands} band{plural} where {wanted} are expected; convert it, or use a model made for {bands}"
    )


def _scale(level: int, full: int, halved: bool) -> float:
    """Scale of a level along one axis. The ratio of the sizes is not exact: 75 pixels are halved to 37, not 37.5."""
    times = round(math.log2(full / level))
    return 0.5**times if halved or level == full >> times else level / full


def _stored_range(dtype: np.dtype, bits: int | None) -> tuple[float, float] | None:
    if dtype.kind == "b":
        return 0.0, 1.0
    return (0.0, float((1 << bits) - 1 if bits else np.iinfo(dtype).max)) if dtype.kind == "u" else None


def _range(path: str, dtype: np.dtype, own: tuple[float, float] | None) -> tuple[float, float]:
    if own is None:
        raise ImageError(
            f"{path}: pixels are {dtype}, whose range is not known; train with --data.value_range BLACK,WHITE, which "
            "the run keeps, or open it in Python by open_image(..., value_range=(BLACK, WHITE))"
        )
    return own

"""Batches of images whose boxes are read and resampled on request.

A hard-attention model requests boxes from `Views` instead of taking full-resolution images. The pixels may come from a
tensor or from tiles of a file. Tensors are resampled like files: large boxes are first shrunk by a power of two, like
the levels of a pyramid. If the corners of a box lie on the pixel grid of the level that is used, the look from memory
equals that from a file of halved levels to 0.005 (rounding of the levels to integers) and the compression of the file.
For other boxes the averaged blocks are not aligned: on photographs the root mean square difference is 0.01 (0.03 at
worst, single pixels at sharp edges up to 0.2).

Example:
    >>> import numpy as np, torch
    >>> views = TensorViews(torch.rand(2, 3, 64, 48))
    >>> views.look(np.array([0, 1, 1]), np.array([[0, 0, 32, 32], [0, 0, 64, 48], [-8, -8, 8, 8]]), (16, 16)).shape
    torch.Size([3, 3, 16, 16])
"""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.errors import ImageError
from foveal.host import to_device
from foveal.images.inputs import check_sample
from foveal.images.pyramid import Cut, Pyramid
from foveal.images.reading import reading
from foveal.images.resample import ResamplePlan, composite, cut, plan, shrink
from foveal.images.transform import Transform

_WAITING = 32  # threads that wait for stores of remote images
_GATHERED = 1 << 20  # elements of windows that are copied at once; they fit into the CPU cache
_GATHERED_CUDA = 1 << 27
_MEAN_SIZE = (64, 64)  # size of the look from which the mean colour of a view is computed


class Look(NamedTuple):
    """A box to prefetch.

    Attributes:
        box: (y0, x0, y1, x1) in full-resolution pixels of the view.
        size: (height, width) of the output.
        fill: value of each channel outside the image, or None for 0.
        antialias: see `foveal.images.resample`.
    """

    box: tuple[float, float, float, float]
    size: tuple[int, int]
    fill: tuple[float, ...] | None = None
    antialias: bool = True


class Views(ABC):
    """Base class of batches of images.

    Attributes:
        sizes: (B, 2) int, (height, width) of each image in full-resolution pixels.
        channels: number of bands of a look.
        errors: error messages by the index of the image. Failed looks have the fill value.
        on_scan: called during scans of large images with the share that is done, 0 to 1; None if nobody asks.
    """

    sizes: np.ndarray
    channels: int
    errors: dict[int, str]
    on_scan: Callable[[float], None] | None = None

    @property
    def is_remote(self) -> bool:
        """Whether an image is read from a store, so that it pays to call `read_ahead`."""
        return False

    def read_ahead(  # noqa: B027 (images in memory have nothing to do)
        self, which: np.ndarray, boxes: np.ndarray, sizes: Sequence[tuple[int, int]]
    ) -> None:
        """Read the bytes of looks that follow, in one round of requests. Images that are not remote are left alone, and
        errors are those of the looks.

        Args:
            which, boxes: see `look`.
            sizes: (height, width) of each output.
        """

    @property
    def mpp(self) -> np.ndarray:
        """(B,) µm per full-resolution pixel of each image; NaN if unknown."""
        return np.full(len(self), np.nan)

    def name(self, i: int) -> str:
        """Name of image ``i`` in messages: the path of its file if there is one."""
        return f"image {i}"

    def __len__(self) -> int:
        return len(self.sizes)

    @abstractmethod
    def look(
        self,
        which: np.ndarray,
        boxes: np.ndarray,
        size: tuple[int, int],
        *,
        fill: Tensor | None = None,
        antialias: bool = True,
    ) -> Tensor:
        """Crop boxes and resample them.

        Args:
            which: (N,) int, index of the image of each box.
            boxes: (N, 4) float64 (y0, x0, y1, x1) in full-resolution pixels; may reach outside the image.
            size: (height, width) of every output.
            fill: (channels,) value of pixels outside the image and of transparent ones; 0 if None.
            antialias: see `foveal.images.resample`; False is for models whose paper resizes without antialiasing.

        Returns:
            (N, channels, height, width) float32 in [0, 1], on the device of the views.
        """

    def may_look(
        self, i: int, y: np.ndarray, x: np.ndarray, spacing: float, blank_bytes: int | None = None
    ) -> np.ndarray | None:
        """Whether a model may look at the points of a grid.

        Args:
            i: index of the image.
            y, x: (rows,) and (columns,) coordinates in full-resolution pixels.
            spacing: full-resolution pixels per pixel of the look that shows the points.
            blank_bytes: tiles of the file with at most this many bytes count as blank; None for no limit.

        Returns:
            (rows, columns) bool: the point is inside the mask of the image, and its tile is not blank; None if all may
            be looked at.
        """
        return None

    def is_blank(self, i: int, box: np.ndarray, size: tuple[int, int]) -> bool:
        """Whether a look is known to show a single colour before the file is decoded. False does not mean that it has
        several."""
        return False

    @property
    def bytes_read(self) -> np.ndarray | None:
        """(B,) number of bytes read from files, or None for images in memory."""
        return None


class TensorViews(Views):
    """Images in memory, all of one size.

    Boxes with the same resampling plan (equal size and subpixel position) are resampled together. When a look shrinks
    the whole images, an intermediate level of at least twice the size of the look is kept. Later boxes on the pixel
    grid of this level are read from it.

    Args:
        images: (B, C, H, W); floating point in [0, 1], or an unsigned integer type over its range.

    Raises:
        ValueError: ``images`` does not have four dimensions.
    """

    def __init__(self, images: Tensor) -> None:
        if images.ndim != 4:
            raise ValueError(
                f"expected images as (B, C, H, W), got shape {tuple(images.shape)}; add the missing dimensions"
            )
        self.images = images
        self.errors = {}
        self.channels = images.shape[1]
        self.sizes = np.tile(np.array(images.shape[-2:]), (len(images), 1))
        self._level: tuple[int, Tensor] | None = None

    def look(
        self,
        which: np.ndarray,
        boxes: np.ndarray,
        size: tuple[int, int],
        *,
        fill: Tensor | None = None,
        antialias: bool = True,
    ) -> Tensor:
        size = (int(size[0]), int(size[1]))
        bounds = (0, 0, *self.images.shape[-2:])
        rows = np.asarray(boxes, dtype=np.float64).tolist()
        alike: dict[ResamplePlan, list[int]] = defaultdict(list)
        corners = np.zeros((len(rows), 2), np.int64)
        # If all boxes are equal, as for thumbnails, plan once: planning each box takes longer than resampling.
        one = len(rows) > 0 and rows.count(rows[0]) == len(rows)
        for group in [range(len(rows))] if one else [range(i, i + 1) for i in range(len(rows))]:
            how = plan(rows[group[0]], size, bounds, antialias=antialias, shrink=True)
            corners[group[0] : group[-1] + 1] = how.y.first, how.x.first
            alike[how.at_origin()] += group
        which = np.asarray(which)
        out = (
            torch.empty(0)
            if len(alike) == 1
            else self.images.new_empty((len(boxes), self.channels, *size), dtype=torch.float32)
        )
        for how, members in alike.items():
            pixels, by = self._serving(how, which[members], corners[members])
            how = how.on_level(by)
            height, width = how.y.last, how.x.last
            step = max(
                1, (_GATHERED_CUDA if self.images.is_cuda else _GATHERED) // max(1, self.channels * height * width)
            )
            parts = []
            for begin in range(0, len(members), step):
                chunk = members[begin : begin + step]
                parts.append(
                    self._finish(_windows(pixels, which[chunk], corners[chunk] // by, height, width), how, fill)
                )
            seen = parts[0] if len(parts) == 1 else torch.cat(parts)
            if len(alike) == 1:
                return seen
            out[to_device(torch.tensor(members), out.device)] = seen
        return out if len(alike) != 0 else self.images.new_empty((0, self.channels, *size), dtype=torch.float32)

    def _serving(self, how: ResamplePlan, which: np.ndarray, corners: np.ndarray) -> tuple[Tensor, int]:
        """The source pixels, either the images or the kept level, and the factor by which they are smaller."""
        height, width = self.images.shape[-2:]
        factor = min(how.y.factor, how.x.factor)
        whole = (how.y.last, how.x.last) == (height, width) and len(which) >= len(self.images)
        if self._level is None and whole and factor >= 4 and height % factor == width % factor == 0:
            self._level = factor // 2, shrink(self.images, factor // 2, factor // 2)
        if self._level is not None:
            by, pixels = self._level
            if not any(v % by for v in (how.y.factor, how.x.factor, how.y.last, how.x.last, *corners.flat)):
                return pixels, by
        return self.images, 1

    def _finish(self, windows: Tensor, how: ResamplePlan, fill: Tensor | None) -> Tensor:
        seen, cover = cut(windows, how)
        if not self.images.is_floating_point():
            seen = (seen / torch.iinfo(self.images.dtype).max).clamp_(0, 1)
        elif seen.untyped_storage().data_ptr() == windows.untyped_storage().data_ptr():
            seen = seen.clone()  # it may be a view of the images
        return composite(seen, cover, fill).float().contiguous()


def _windows(pixels: Tensor, which: np.ndarray, corners: np.ndarray, height: int, width: int) -> Tensor:
    """(n, C, height, width) windows; without a copy if they are one slice."""
    y, x = corners[0].tolist()
    if (corners == corners[0]).all() and (np.diff(which) == 1).all():
        return pixels[which[0] : which[0] + len(which), :, y : y + height, x : x + width]
    if not pixels.is_cuda:
        places = zip(which.tolist(), corners.tolist(), strict=True)
        return torch.stack([pixels[i, :, y : y + height, x : x + width] for i, (y, x) in places])
    at = torch.from_numpy(np.column_stack([which, corners])).to(pixels.device, non_blocking=True)
    rows = at[:, 1, None] + torch.arange(height, device=pixels.device)
    cols = at[:, 2, None] + torch.arange(width, device=pixels.device)
    bands = torch.arange(pixels.shape[1], device=pixels.device)
    return pixels[at[:, 0, None, None, None], bands[:, None, None], rows[:, None, :, None], cols[:, None, None, :]]


class View:
    """One image with a transform.

    Args:
        image: the image.
        transform: geometric and colour transform; the identity if None.

    Attributes:
        size: (height, width) of the transformed image, in whose pixels boxes are given.
        channels: number of bands of a look.
    """

    def __init__(self, image: Pyramid, transform: Transform | None = None) -> None:
        self.image = image
        self.transform = transform or Transform.identity(image.size)
        self.channels = image.channels
        self._ahead: dict[tuple, Tensor] = {}
        self._means: list[Tensor] | None = None

    @property
    def size(self) -> tuple[int, int]:
        return self.transform.size

    @property
    def mpp(self) -> float | None:
        """µm per pixel of the transformed image; None if unknown."""
        (a, b, _), (d, e, _) = self.transform.matrix
        return None if self.image.mpp is None else self.image.mpp * math.sqrt(abs(a * e - b * d))

    def prefetch(self, looks: Sequence[Look]) -> None:
        """Read looks and keep them for later calls of `look`. They are pickled with the view.

        Raises:
            ImageError: the file is damaged in a box.
        """
        for look in looks:
            fill = None if look.fill is None else torch.tensor(look.fill)
            seen = self.look(np.array([look.box]), look.size, fill=fill, antialias=look.antialias)
            self._ahead[_key(look.box, look.size, fill, look.antialias)] = seen[0]

    def look(
        self, boxes: np.ndarray, size: tuple[int, int], *, fill: Tensor | None = None, antialias: bool = True
    ) -> Tensor:
        """(n, channels, height, width) float32 in [0, 1]; see `Views.look`."""
        out = torch.empty(len(boxes), self.channels, *size)
        pieces = self.read_cuts(boxes, size, antialias)
        for slot, box, piece in zip(out, boxes, pieces, strict=True):
            slot.copy_(composite(*self.resample_cut(piece, box, size), fill))
        return out

    def ahead(self, box: np.ndarray, size: tuple[int, int], fill: Tensor | None, antialias: bool) -> Tensor | None:
        """(channels, height, width) of a prefetched look, or None."""
        return self._ahead.get(_key(box, size, fill, antialias)) if self._ahead else None

    def read_cuts(self, boxes: np.ndarray, size: tuple[int, int], antialias: bool) -> list[Cut]:
        """First half of `look`: read the source pixels. This is thread-safe."""
        colour = self.transform.colour
        if colour is not None and self._means is None:
            frame = np.array([[0, 0, *self.size]], dtype=np.float64)
            pixels, cover = self._place(self._read(frame, _MEAN_SIZE, True)[0], frame[0], _MEAN_SIZE)
            self._means = colour.means(_uncovered(pixels, cover), cover)
        return self._read(boxes, size, antialias)

    def resample_cut(self, piece: Cut, box: np.ndarray, size: tuple[int, int]) -> tuple[Tensor, Tensor | None]:
        """Second half of `look`: (channels, height, width) pixels, premultiplied by the (height, width) cover."""
        pixels, cover = self._place(piece, box, size)
        if self.transform.colour is not None and self._means is not None:
            pixels = self.transform.colour.apply(_uncovered(pixels, cover), self._means)
            pixels = pixels if cover is None else pixels * cover
        return pixels, cover

    def may_look(self, y: np.ndarray, x: np.ndarray, spacing: float, blank_bytes: int | None) -> np.ndarray | None:
        """See `Views.may_look`."""
        if self.image.mask is None and blank_bytes is None:
            return None
        (a, b, c), (d, e, f) = self.transform.matrix
        y, x = np.asarray(y)[:, None], np.asarray(x)[None]
        y, x = (a * y + c, e * x + f) if b == d == 0 else (a * y + b * x + c, d * y + e * x + f)
        allowed = np.ones(np.broadcast_shapes(y.shape, x.shape), dtype=bool)
        if (mask := self.image.mask) is not None:
            (h, w), (height, width) = mask.shape, self.image.size
            rows, columns = (y * (h / height)).astype(int), (x * (w / width)).astype(int)
            allowed = mask[rows.clip(0, h - 1), columns.clip(0, w - 1)]
        if blank_bytes is not None:
            counts = self.image.tile_bytes(y, x, spacing * min(math.hypot(a, d), math.hypot(b, e)))
            allowed = allowed if counts is None else allowed & (counts > blank_bytes)
        return allowed

    def read_ahead(self, boxes: np.ndarray, sizes: Sequence[tuple[int, int]]) -> None:
        """See `Views.read_ahead`."""
        if self.transform.aligned:
            low, high = _image_boxes(self.transform, boxes)
            (a, _, _), _ = self.transform.matrix
            self.image.read_ahead(np.hstack([low, high]), [size if a else (size[1], size[0]) for size in sizes])

    def is_blank(self, box: np.ndarray, size: tuple[int, int]) -> bool:
        """See `Views.is_blank`."""
        plain = self.transform.matrix == Transform.identity(self.size).matrix and self.transform.bounds is None
        return plain and self.size == self.image.size and self.image.is_constant(box.tolist(), size)

    def _read(self, boxes: np.ndarray, size: tuple[int, int], antialias: bool) -> list[Cut]:
        t = self.transform
        boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
        if t.aligned:
            (a, _, _), _ = t.matrix
            low, high = _image_boxes(t, boxes)
            frame_low, frame_high = _image_boxes(t, np.array([[0, 0, *t.size]], dtype=np.float64))
            bounds = [*frame_low[0], *frame_high[0]]
            if t.bounds is not None:
                bounds = [*np.maximum(bounds[:2], t.bounds[:2]), *np.minimum(bounds[2:], t.bounds[2:])]
            return self.image.read_cuts(
                np.hstack([low, high]), size if a else (size[1], size[0]), antialias=antialias, bounds=bounds
            )
        pieces = []
        for box in boxes:
            around, raster = _enclosing(t, box, size)
            pieces += self.image.read_cuts(around[None], raster, antialias=antialias, bounds=t.bounds)
        return pieces

    def _place(self, piece: Cut, box: np.ndarray, size: tuple[int, int]) -> tuple[Tensor, Tensor | None]:
        """Resample source pixels and apply the geometric transform."""
        pixels, cover = self.image.resample_cut(piece)
        t = self.transform
        if not t.aligned:
            return _sample(t, np.asarray(box, dtype=np.float64), size, pixels, cover)
        (a, b, _), (d, e, _) = t.matrix
        transpose = a == 0
        flips = [dim for dim, factor in ((-2, d if transpose else a), (-1, b if transpose else e)) if factor < 0]
        if transpose:
            pixels, cover = pixels.transpose(-1, -2), None if cover is None else cover.T
        if flips:
            pixels, cover = pixels.flip(flips), None if cover is None else cover.flip(flips)
        return pixels, cover


class ImageViews(Views):
    """Views of image files or decoded images, each with its own transform.

    Different images are read in parallel by threads, because decoders release the GIL. If an image cannot be read, its
    looks have the fill value and ``errors`` has the message.

    Args:
        views: views or pyramids, all with the same number of channels.
        threads: number of threads; the number of CPU cores, at most 16, if None; 32 for remote images.

    Raises:
        ImageError: the images have different numbers of bands.
    """

    def __init__(self, views: Sequence[View | Pyramid], *, threads: int | None = None) -> None:
        self.views = [v if isinstance(v, View) else View(v) for v in views]
        self.errors = {}
        self.sizes = np.array([v.size for v in self.views], dtype=np.int64).reshape(-1, 2)
        self.channels = self.views[0].channels if self.views else 3
        self.threads = threads or (_WAITING if self.is_remote else min(16, os.cpu_count() or 1))
        for v in self.views:
            if v.channels != self.channels:
                first = self.views[0].image.path
                what = f"has {v.channels} bands and {first} has {self.channels}"
                raise ImageError(f"{v.image.path}: {what}; open all images with the same channels=")

    def look(
        self,
        which: np.ndarray,
        boxes: np.ndarray,
        size: tuple[int, int],
        *,
        fill: Tensor | None = None,
        antialias: bool = True,
    ) -> Tensor:
        size = (int(size[0]), int(size[1]))
        fill = None if fill is None else fill.cpu()
        boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
        out = torch.empty(len(boxes), self.channels, *size)
        missing: dict[int, list[int]] = defaultdict(list)
        for n, i in enumerate(np.asarray(which).tolist()):
            seen = self.views[i].ahead(boxes[n], size, fill, antialias)
            if seen is None:
                missing[i].append(n)
            else:
                out[n] = seen

        def guarded(i: int, read: Callable[[], Any]) -> Any:
            """Call ``read``; if the file of image ``i`` cannot be read, keep the error and return None."""
            if i in self.errors:
                return None
            try:
                with reading(self.views[i].image.path, "cannot be looked at"):
                    return read()
            except ImageError as error:
                self.errors[i] = str(error)
                return None

        def gather(item: tuple[int, list[int]]) -> list[Cut] | None:
            i, places = item
            return guarded(i, lambda: self.views[i].read_cuts(boxes[places], size, antialias))

        parallel = self.threads > 1 and len(missing) > 1
        found = _pool(self.threads).map(gather, missing.items()) if parallel else map(gather, missing.items())
        for (i, places), pieces in zip(missing.items(), found, strict=True):
            for n, piece in zip(places, pieces or (), strict=bool(pieces)):
                if seen := guarded(i, partial(self.views[i].resample_cut, piece, boxes[n], size)):
                    pixels, cover = seen
                    out[n] = composite(pixels, cover, fill)
            if i in self.errors:
                out[places] = 0.0 if fill is None else fill[:, None, None].float()
        return out

    @property
    def is_remote(self) -> bool:
        return any(v.image.remote is not None for v in self.views)

    def read_ahead(self, which: np.ndarray, boxes: np.ndarray, sizes: Sequence[tuple[int, int]]) -> None:
        def read(i: int) -> None:
            of_image = np.flatnonzero(which == i)
            with suppress(ImageError):
                self.views[i].read_ahead(boxes[of_image], [sizes[n] for n in of_image.tolist()])

        remote = [i for i in np.unique(which).tolist() if self.views[i].image.remote is not None]
        list(_pool(self.threads).map(read, remote))

    def may_look(
        self, i: int, y: np.ndarray, x: np.ndarray, spacing: float, blank_bytes: int | None = None
    ) -> np.ndarray | None:
        return self.views[i].may_look(y, x, spacing, blank_bytes)

    def is_blank(self, i: int, box: np.ndarray, size: tuple[int, int]) -> bool:
        if i in self.errors:
            return True
        with suppress(ImageError):  # a look at the box reports it
            return self.views[i].is_blank(box, size)
        return False

    @property
    def mpp(self) -> np.ndarray:
        return np.array([np.nan if view.mpp is None else view.mpp for view in self.views], dtype=np.float64)

    def name(self, i: int) -> str:
        return self.views[i].image.path

    @property
    def bytes_read(self) -> np.ndarray:
        """(B,) number of bytes read from files."""
        return np.array([v.image.bytes_read for v in self.views], dtype=np.int64)

    @property
    def tiles_decoded(self) -> np.ndarray:
        """(B,) number of decoded tiles."""
        return np.array([v.image.tiles_decoded for v in self.views], dtype=np.int64)


class Occluded(Views):
    """Views with hidden boxes, which take the fill value.

    Every output pixel whose centre lies in a box is hidden. In looks at full resolution, boxes on whole pixels are
    hidden exactly. In looks that shrink, pixels beside a box contain a little of its border.

    Args:
        views: the original views.
        boxes: (B, N, 4) (y0, x0, y1, x1) in full-resolution pixels, half-open; NaN for unused boxes.
        inverse: hide everything outside the boxes instead.
    """

    def __init__(self, views: Views, boxes: np.ndarray, inverse: bool = False) -> None:
        self.views = views
        self.boxes = np.asarray(boxes, dtype=np.float64)
        self.inverse = inverse
        self.sizes = views.sizes
        self.channels = views.channels
        self.errors = views.errors
        self.on_scan = views.on_scan

    def look(
        self,
        which: np.ndarray,
        boxes: np.ndarray,
        size: tuple[int, int],
        *,
        fill: Tensor | None = None,
        antialias: bool = True,
    ) -> Tensor:
        seen = self.views.look(which, boxes, size, fill=fill, antialias=antialias)
        hidden = self.boxes[np.asarray(which)]
        rows, columns = (_centres_inside(boxes, hidden, axis, int(size[axis])) for axis in (0, 1))
        mask = to_device((rows.swapaxes(1, 2) @ columns > 0) != self.inverse, seen.device)
        ground = seen.new_zeros(self.channels) if fill is None else to_device(fill, seen.device, seen.dtype)
        return torch.where(mask[:, None], ground[:, None, None], seen)

    @property
    def is_remote(self) -> bool:
        return self.views.is_remote

    def read_ahead(self, which: np.ndarray, boxes: np.ndarray, sizes: Sequence[tuple[int, int]]) -> None:
        self.views.read_ahead(which, boxes, sizes)

    def may_look(
        self, i: int, y: np.ndarray, x: np.ndarray, spacing: float, blank_bytes: int | None = None
    ) -> np.ndarray | None:
        return self.views.may_look(i, y, x, spacing, blank_bytes)

    @property
    def mpp(self) -> np.ndarray:
        return self.views.mpp

    def name(self, i: int) -> str:
        return self.views.name(i)

    @property
    def bytes_read(self) -> np.ndarray | None:
        return self.views.bytes_read


def _centres_inside(looks: np.ndarray, boxes: np.ndarray, axis: int, count: int) -> np.ndarray:
    """(n, N, count) float32, 1 if the centre of a row (or column) of the look lies in a box."""
    first, last = (
        np.asarray(looks, dtype=np.float64)[:, axis, None],
        np.asarray(looks, dtype=np.float64)[:, axis + 2, None],
    )
    centres = (first + (np.arange(count) + 0.5) * (last - first) / count)[:, None]
    return ((boxes[..., axis, None] <= centres) & (centres < boxes[..., axis + 2, None])).astype(np.float32)


class BlankViews(Views):
    """Views of zeros, of any size and pixel size, for measuring the cost of a model without images."""

    def __init__(
        self,
        count: int,
        size: tuple[int, int],
        channels: int = 3,
        device: str | torch.device = "cpu",
        mpp: float | None = None,
    ) -> None:
        self.sizes = np.tile(np.array(size), (count, 1))
        self._mpp = np.nan if mpp is None else mpp
        self.channels = channels
        self.errors = {}
        self.device = device

    def look(
        self,
        which: np.ndarray,
        boxes: np.ndarray,
        size: tuple[int, int],
        *,
        fill: Tensor | None = None,
        antialias: bool = True,
    ) -> Tensor:
        return torch.zeros(len(which), self.channels, *size, device=self.device)

    @property
    def mpp(self) -> np.ndarray:
        return np.full(len(self), self._mpp)


def as_views(images: Views | Tensor | Sequence[View | Pyramid]) -> Views:
    """Convert a (B, C, H, W) tensor or a list of pyramids or views to `Views`; `Views` are returned unchanged.

    Raises:
        TypeError: ``images`` has another type.
        ValueError: a tensor does not have four dimensions.
        ImageError: a tensor of floats has values outside of [0, 1] in a sample of its pixels.
    """
    if isinstance(images, Views):
        return images
    if isinstance(images, Tensor):
        views = TensorViews(images)
        check_sample(images)
        return views
    if isinstance(images, Pyramid | View):
        return ImageViews([images])
    if isinstance(images, Sequence) and all(isinstance(v, Pyramid | View) for v in images):
        return ImageViews(images)
    kind = type(images).__name__
    raise TypeError(f"images of type {kind} were given; give a (B, C, H, W) tensor, Views, or a list of open images")


_pools: dict[int, ThreadPoolExecutor] = {}
if hasattr(os, "register_at_fork"):
    # A forked child inherits the pools but not their threads.
    os.register_at_fork(after_in_child=_pools.clear)


def _pool(threads: int) -> ThreadPoolExecutor:
    if threads not in _pools:
        _pools[threads] = ThreadPoolExecutor(threads, thread_name_prefix="foveal-look")
    return _pools[threads]


def _key(box: Sequence[float] | np.ndarray, size: tuple[int, int], fill: Tensor | None, antialias: bool) -> tuple:
    values = None if fill is None else np.asarray(fill, dtype=np.float32).tobytes()
    return np.asarray(box, dtype=np.float64).tobytes(), (int(size[0]), int(size[1])), values, bool(antialias)


def _uncovered(pixels: Tensor, cover: Tensor | None) -> Tensor:
    """Undo the premultiplication by the cover."""
    return pixels if cover is None else pixels / cover.clamp(min=1e-6)


def _image_boxes(t: Transform, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Map boxes (n, 4) of an axis-aligned view to the image: (n, 2) lower and (n, 2) upper corners."""
    one, other = t.points(boxes[:, :2]), t.points(boxes[:, 2:])
    return np.minimum(one, other), np.maximum(one, other)


def _enclosing(t: Transform, box: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int]]:
    """Bounding box in the image of a rotated box, with a margin for interpolation, and the size at which to read it."""
    y0, x0, y1, x1 = box
    corners = t.points([[y0, x0], [y0, x1], [y1, x0], [y1, x1]])
    matrix = np.array(t.matrix)[:, :2]
    step = min(np.linalg.norm(matrix[:, 0]) * (y1 - y0) / size[0], np.linalg.norm(matrix[:, 1]) * (x1 - x0) / size[1])
    low, high = corners.min(0) - 2 * step, corners.max(0) + 2 * step
    raster = [math.ceil(extent / step) for extent in high - low]
    return np.array([*low, *(low + np.array(raster) * step)]), (raster[0], raster[1])


def _sample(
    t: Transform, box: np.ndarray, size: tuple[int, int], pixels: Tensor, cover: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Resample a rotated look bilinearly from the pixels of its bounding box."""
    around, raster = _enclosing(t, box, size)
    y = box[0] + (np.arange(size[0]) + 0.5) * (box[2] - box[0]) / size[0]
    x = box[1] + (np.arange(size[1]) + 0.5) * (box[3] - box[1]) / size[1]
    points = t.points(np.stack(np.meshgrid(y, x, indexing="ij"), -1).reshape(-1, 2))
    relative = (points - around[:2]) / (around[2:] - around[:2]) * 2 - 1
    grid = torch.from_numpy(relative[:, ::-1].reshape(1, *size, 2).astype(np.float32))
    cover = torch.ones(raster) if cover is None else cover
    stack = torch.cat([pixels, cover[None]])[None]
    with torch.autocast("cpu", enabled=False):
        seen = F.grid_sample(stack, grid, mode="bilinear", padding_mode="zeros", align_corners=False)[0]
    # Points beyond the view count as outside, even if the image continues there.
    inside = ((y >= 0) & (y < t.size[0]))[:, None] & ((x >= 0) & (x < t.size[1]))
    seen = seen * torch.from_numpy(inside)
    return seen[:-1], seen[-1]

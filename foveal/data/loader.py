"""Which images are read when: batches of a data set, in an order that is a function of (seed, epoch).

The order does not depend on how many processes share the work, and an epoch can be entered at any batch: a run that was
stopped goes on with exactly the batches it had not seen.

Example:
    >>> import torch
    >>> from foveal.data.dataset import TensorDataset
    >>> data = TensorDataset(torch.zeros(10, 3, 8, 8), torch.arange(10) % 2, ("even", "odd"))
    >>> loader = Loader(data, batch_size=4, seed=7, shuffle=True)
    >>> whole = [batch.index.tolist() for batch in loader]
    >>> loader.set_epoch(0, first_batch=1)
    >>> len(loader), [batch.index.tolist() for batch in loader] == whole[1:]
    (3, True)
"""

from __future__ import annotations

import io
import math
import os
import pickle
import weakref
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset

from foveal.data.dataset import Batch, Dataset, FirstLooks, Loaded, TensorDataset
from foveal.draws import generator
from foveal.errors import ConfigError
from foveal.host import deaf_children, end_with_parent


class Order(Sampler[tuple[int, list[int]]]):
    """Batches, as (epoch, indices), for one of ``world_size`` processes.

    Batch j of all processes together holds ``batch_size * world_size`` images: those that one process with the larger
    batch would see. Process r takes every ``world_size``-th of them, starting at r. Every process gets the same number
    of batches and no image is used twice; in the last batch (unless dropped) a process may get one image fewer, or
    none.

    Args:
        count: images.
        batch_size: images of a batch, for each process.
        seed: with the epoch, decides the order.
        shuffle: a random order; else that of the data set.
        drop_last: leave an incomplete last batch out.
        rank, world_size: which of how many processes.
        limit: use the first so many images of the order; all if None.
        classes: (count,) class of each image, for a random order in which each class comes equally often, give or take
            one. Images of small classes are repeated after all others of their class, as i + count, i + 2 count, ...
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = False,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
        limit: int | None = None,
        classes: np.ndarray | None = None,
    ) -> None:
        self.whole = count
        self.classes = classes
        self.count = min(count, count if limit is None else limit)
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.first_batch = 0

    def __len__(self) -> int:
        """Batches of a whole epoch, wherever it is entered."""
        together = self.batch_size * self.world_size
        return self.count // together if self.drop_last else -(-self.count // together)

    def __iter__(self) -> Iterator[tuple[int, list[int]]]:
        rng = generator(self.seed, self.epoch, 0, "order")
        if self.classes is not None:
            order = balanced_order(self.classes, rng)
        else:
            order = rng.permutation(self.whole) if self.shuffle else np.arange(self.whole)
        order = order[: self.count]
        together = self.batch_size * self.world_size
        for j in range(self.first_batch, len(self)):
            mine = order[j * together : (j + 1) * together][self.rank :: self.world_size]
            yield self.epoch, mine.tolist()


def balanced_order(classes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random order in which each class comes equally often, give or take one.

    Args:
        classes: (N,) class of each image.
        rng: source of randomness.

    Returns:
        (N,) positions of images. The r-th repetition of image i is i + r N. An image is repeated when all others of its
        class have come as often.
    """
    members = [np.flatnonzero(classes == label) for label in np.unique(classes)]
    wanted = len(classes) // len(members) + (rng.permutation(len(members)) < len(classes) % len(members))
    chosen = []
    for rows, count in zip(members, wanted, strict=True):
        rounds = range(-(-count // len(rows)))
        chosen.append(np.concatenate([rng.permutation(rows) + r * len(classes) for r in rounds])[:count])
    return rng.permutation(np.concatenate(chosen))


def check_balanced(data: Dataset) -> None:
    """Check that classes can be shown equally often.

    Raises:
        ConfigError: images have several labels.
    """
    if data.targets.ndim > 1:
        raise ConfigError(
            "sampling: images of several labels cannot be balanced by class; leave it out, or use `class_weights`"
        )


class Loader:
    """Iterates the `Batch`es of a data set.

    ``len()`` is the number of batches of a whole epoch, also when the epoch is entered late: progress and schedules
    count from the epoch's beginning. Images in memory are picked and augmented by whoever iterates, on the device they
    are on: sending them from a worker takes longer.

    Args:
        data: what to read.
        batch_size: images of a batch, for each process.
        workers: processes that open, augment and read ahead; 0 does it in this one, as is always done with images in
            memory. They leave signals to this process, and end when it does.
        seed: decides the order and every augmentation.
        first_looks: size of a view to the looks that workers read ahead, usually a model's ``first_looks``.
        device: where images in memory are kept from now on, see `Dataset.to`; where they are if None.
        balanced: show each class equally often, see `Order`; the number of batches is the same. Repetitions of an image
            get other random changes.
        shuffle, drop_last, rank, world_size, limit: see `Order`.

    Raises:
        ConfigError: ``balanced``, and images have several labels.
    """

    def __init__(
        self,
        data: Dataset,
        *,
        batch_size: int,
        workers: int = 0,
        seed: int = 0,
        first_looks: FirstLooks | None = None,
        device: str | torch.device | None = None,
        balanced: bool = False,
        shuffle: bool = False,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
        limit: int | None = None,
    ) -> None:
        if balanced:
            check_balanced(data)
        self.data = data if device is None else data.to(device)
        self.order = Order(
            len(data),
            batch_size,
            seed=seed,
            shuffle=shuffle,
            drop_last=drop_last,
            rank=rank,
            world_size=world_size,
            limit=limit,
            classes=data.targets if balanced else None,
        )
        self.reader = _Reader(self.data, seed, first_looks)
        self.workers: DataLoader | None = None
        if workers and not isinstance(data, TensorDataset):
            self.workers = DataLoader(
                self.reader,
                batch_sampler=self.order,  # type: ignore[arg-type]
                num_workers=workers,
                collate_fn=_pack,  # type: ignore[arg-type]
                persistent_workers=True,
                worker_init_fn=_begin,
                # The threads of a client of stores do not exist in forked processes.
                multiprocessing_context="spawn" if data.is_remote else None,
                generator=torch.Generator(),  # else every epoch's beginning would advance torch's global generator
            )
            # Garbage collection of a cycle that holds the iterator, such as an interrupted training, closes the pipes
            # to the workers first. The iterator's own end then waits five seconds for each worker.
            weakref.finalize(self, _end, self.workers, os.getpid()).atexit = False

    def __len__(self) -> int:
        return len(self.order)

    def set_epoch(self, epoch: int, first_batch: int = 0) -> None:
        """The next iteration yields batches ``first_batch``, ``first_batch + 1``, ... of ``epoch``."""
        self.order.epoch = epoch
        self.order.first_batch = first_batch

    def __iter__(self) -> Iterator[Batch]:
        if self.workers is not None:
            with deaf_children():
                arriving = iter(self.workers)
            return self._received(arriving)
        return (self.reader.__getitems__(wanted).batch() for wanted in self.order)

    def _received(self, arriving: Iterator[_Packed]) -> Iterator[Batch]:
        for packed in arriving:
            yield _unpack(packed).batch()


def _begin(worker: int) -> None:
    end_with_parent()


def _end(workers: DataLoader, process: int) -> None:
    """End the workers of a loader, in the process that began them."""
    if workers._iterator is not None and os.getpid() == process:
        workers._iterator._shutdown_workers()  # type: ignore[attr-defined]


class _Reader(TorchDataset):
    """A data set as torch's workers want it: a batch at a time."""

    def __init__(self, data: Dataset, seed: int, first_looks: FirstLooks | None) -> None:
        self.data = data
        self.seed = seed
        self.first_looks = first_looks

    def __getitems__(self, wanted: tuple[int, list[int]]) -> Loaded:
        epoch, indices = wanted
        count, parts = len(self.data), []
        # Repetitions of an image in an epoch are images i + r count, with the random changes of another epoch.
        for r in sorted({i // count for i in indices}) or [0]:
            rows = [i % count for i in indices if i // count == r]
            parts.append(self.data.load(epoch + (r << 32), rows, self.seed, self.first_looks))
            parts[-1].index = parts[-1].index + r * count
        return Loaded.join(parts)


class _Packed(NamedTuple):
    """What a worker sends: everything but the numbers pickled, and all the numbers in one tensor.

    Each tensor that crosses a process boundary alone takes a file descriptor; a thousand of them are all a process may
    have.
    """

    pickled: bytes
    numbers: Tensor
    places: list[int]


def _pack(loaded: Loaded) -> _Packed:
    """Gather the tensors of a batch, wherever they are in it."""
    tensors: list[Tensor] = []

    class Pickler(pickle.Pickler):
        def persistent_id(self, thing: object) -> tuple | None:
            if not isinstance(thing, Tensor):
                return None
            tensors.append(thing.contiguous())
            return len(tensors) - 1, thing.dtype, tuple(thing.shape)

    buffer = io.BytesIO()
    Pickler(buffer, protocol=5).dump(loaded)
    # Aligned, so that any type can be viewed where it lies.
    places = np.cumsum([0, *(-(-t.nbytes // 64) * 64 for t in tensors)]).tolist()
    numbers = torch.empty(places[-1], dtype=torch.uint8)
    for place, tensor in zip(places, tensors, strict=False):
        numbers[place : place + tensor.nbytes] = tensor.reshape(-1).view(torch.uint8)
    return _Packed(buffer.getvalue(), numbers, places)


def _unpack(packed: _Packed) -> Loaded:
    class Unpickler(pickle.Unpickler):
        def persistent_load(self, pid: tuple) -> Tensor:
            i, dtype, shape = pid
            place = packed.places[i]
            return packed.numbers[place : place + math.prod(shape) * dtype.itemsize].view(dtype).view(shape)

    return Unpickler(io.BytesIO(packed.pickled)).load()

"""Data sets with their splits, and the registry of their names.

A constructor is a function with typed arguments, registered by ``@DATA_SETS.register``. The command line makes flags
from its signature.

Example:
    >>> from foveal.data import get_data
    >>> data = get_data("digits", canvas=96, digit=(12, 16), train=8, val=4, test=4)
    >>> len(data.classes), len(data.train)
    (10, 8)
    >>> [len(batch) for batch in data.loader("train", batch_size=3)]
    [3, 3, 2]
"""

from __future__ import annotations

import difflib
import inspect
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from foveal.choices import SPLITS
from foveal.data.dataset import Dataset, FirstLooks
from foveal.data.loader import Loader
from foveal.errors import ConfigError, DataError
from foveal.registry import Registry
from foveal.tasks import MULTICLASS, Task


@dataclass(frozen=True)
class Encoder:
    """The network that made the features of a data set.

    Attributes:
        width: number of features of a tile.
        options: options of a model of tiles, such as ``backbone``, with which it has this network and grid; or
            ``features`` alone, for a model without network.
        weights: file of the weights of the network.
        digest: digest in this file.
        about: ``name`` of the network and ``licence`` of its weights, each None if not known.
        coarse: whether there are features of a coarser level.
    """

    width: int
    options: dict[str, Any]
    weights: Path | None = None
    digest: str | None = None
    about: dict[str, str | None] = field(default_factory=dict)
    coarse: bool = False


@dataclass
class DataModule:
    """The splits of a data set.

    Attributes:
        classes: names of the classes, in the order of the labels.
        train, val, test: the splits; None if missing.
        name: name of the data set in errors.
        encoder: the network that made the features, for data sets of features instead of images.
        spec: ``name`` and options to make the data set by `get_data`; empty if it was made otherwise.
        notes: sentences for the user, for example on files that were left out.
    """

    classes: tuple[str, ...]
    train: Dataset | None = None
    val: Dataset | None = None
    test: Dataset | None = None
    name: str = "the data set"
    encoder: Encoder | None = field(default=None, init=False)
    notes: tuple[str, ...] = field(default=(), init=False)
    spec: dict[str, Any] = field(default_factory=dict, init=False)

    @property
    def task(self) -> Task:
        """What the targets are."""
        splits = (self.train, self.val, self.test)
        return next((data.task for data in splits if data is not None), MULTICLASS)

    def split(self, split: str) -> Dataset:
        """A split by name.

        Raises:
            DataError: the split does not exist or is empty.
        """
        data = getattr(self, split) if split in SPLITS else None
        if data is None or not len(data):
            have = [s for s in SPLITS if getattr(self, s) is not None and len(getattr(self, s))]
            raise DataError(
                f"{self.name}: there is no split {split!r}; use one of "
                f"{', '.join(have) or 'none: the data set is empty'}"
            )
        return data

    def loader(
        self,
        split: str,
        *,
        batch_size: int,
        workers: int = 0,
        seed: int = 0,
        first_looks: FirstLooks | None = None,
        device: str | torch.device | None = None,
        drop_last: bool = False,
        shuffle: bool | None = None,
        balanced: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> Loader:
        """Batches of a split, see `foveal.data.loader.Loader`. ``shuffle=None`` shuffles the training split only."""
        return Loader(
            self.split(split),
            batch_size=batch_size,
            workers=workers,
            seed=seed,
            first_looks=first_looks,
            device=device,
            drop_last=drop_last,
            shuffle=split == "train" if shuffle is None else shuffle,
            balanced=balanced,
            rank=rank,
            world_size=world_size,
        )

    def class_weights(self) -> list[float]:
        """Class weights, inversely proportional to the training images of a class; 0 for classes without images.

        The mean of the weights of all training images is 1.
        """
        counts = self.split("train").counts()
        present = counts > 0
        return np.where(present, counts.sum() / (present.sum() * np.maximum(counts, 1)), 0.0).tolist()


DATA_SETS: Registry[Callable[..., DataModule]] = Registry("data set")
"""Constructors of data sets by name: functions with typed arguments, which are the options everywhere."""


def list_data() -> list[str]:
    """Names of the known data sets."""
    return DATA_SETS.names()


def data_constructor(name: str) -> Callable[..., DataModule]:
    """The constructor behind a name, for its signature.

    Raises:
        ConfigError: no data set has that name.
    """
    if name not in DATA_SETS and Path(name).is_dir():
        raise ConfigError(
            f"{name}: there is no data set of this name; use `data.root` {name} for the images in this folder"
        )
    return DATA_SETS.get(name)


def get_data(name: str, **options) -> DataModule:
    """Make a data set by name.

    Raises:
        ConfigError: unknown name or option.
        DataError: the data set is missing or malformed.
    """
    constructor = data_constructor(name)
    parameters = inspect.signature(constructor).parameters
    for option in options:
        if option not in parameters:
            near = difflib.get_close_matches(option, parameters, 1)
            raise ConfigError(
                f"data {name}: there is no option {option!r}; use "
                f"{near[0] if near else 'one of ' + ', '.join(parameters)}"
            )
    missing = [p.name for p in parameters.values() if p.default is p.empty and p.name not in options]
    if missing:
        raise ConfigError(f"data {name}: the option {missing[0]!r} is missing; set `data.{missing[0]}`")
    try:
        data = constructor(**options)
    except MemoryError as error:
        raise DataError(f"data {name}: does not fit in memory with these options; give smaller numbers") from error
    data.spec = {
        "name": name,
        **{key: p.default for key, p in parameters.items() if p.default is not p.empty},
        **options,
    }
    return data


def class_key(name: str) -> str:
    """Normal form of a class name, equal for the Unicode forms that macOS and Linux write."""
    return unicodedata.normalize("NFC", class_text(name))


def class_text(name: str) -> str:
    """A class name as valid text: bytes of a folder name that are not UTF-8 become ``\\udcXX``."""
    return name.encode("utf-8", "backslashreplace").decode()


def check_classes(expected: Sequence[str], data: DataModule) -> None:
    """Check that the data have the classes of a model, in the same order.

    Raises:
        DataError: the names or their order differ.
    """
    known, here = ([class_key(name) for name in names] for names in (expected, data.classes))
    if known == here:
        return
    unknown = [name for name, form in zip(data.classes, here, strict=True) if form not in known]
    what = (
        f"class {unknown[0]!r} is unknown to the model"
        if unknown
        else f"it has {len(data.classes)} classes, the model {len(expected)}, or in another order"
    )
    raise DataError(f"{data.name}: {what}; use data with the classes that the model was trained on")

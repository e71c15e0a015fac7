"""Random draws as functions of (seed, epoch, sample, purpose).

With a shared generator, a resumed run would differ from an uninterrupted one, and several processes from one. Here the
draws for a sample depend on the sample only. `Draws` is for a batch, `generator` for one sample.

Example:
    >>> import numpy as np
    >>> draws = Draws(seed=0, epoch=3, samples=np.array([17, 4]))
    >>> draws.uniform("selection", 9).shape
    (2, 9)
    >>> alone = Draws(seed=0, epoch=3, samples=np.array([4]))
    >>> bool((alone.uniform("selection", 9)[0] == draws.uniform("selection", 9)[1]).all())
    True
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np


def generator(seed: int, epoch: int, sample: int, purpose: str) -> np.random.Generator:
    """A new generator for a sample and a purpose, for example ``"augmentation"``."""
    return np.random.Generator(
        np.random.Philox(np.random.SeedSequence((seed, epoch, sample, zlib.crc32(purpose.encode()))))
    )


@dataclass(frozen=True)
class Draws:
    """Random draws for a batch.

    Args:
        seed: seed of the run.
        epoch: epoch, from 0; 0 outside training.
        samples: (B,) index of each image in its data set.
    """

    seed: int
    epoch: int
    samples: np.ndarray

    def uniform(self, purpose: str, *shape: int) -> np.ndarray:
        """(B, *shape) float64 in the open interval (0, 1). Row i depends on ``samples[i]`` only."""
        rows = [generator(self.seed, self.epoch, int(s), purpose).random(shape) for s in self.samples]
        return np.clip(np.stack(rows), 1e-12, 1 - 1e-12) if rows else np.empty((0, *shape))

    def gumbel(self, purpose: str, *shape: int) -> np.ndarray:
        """(B, *shape) float64 standard Gumbel noise."""
        return -np.log(-np.log(self.uniform(purpose, *shape)))

"""The result of a classification: logits and the looks behind them.

Every classifier of this package returns a `Classification`, for one image or a batch. Explanation, evaluation and
prediction read only this type. Coordinates are (y0, x0, y1, x1) in full-resolution pixels of the image as displayed;
boxes are half-open, have float coordinates and can reach outside the image.

Example:
    >>> import numpy as np, torch
    >>> looks = Glimpses(image=np.array([0, 0]), box=np.array([[0, 0, 64, 64], [32, 0, 64, 32.]]),
    ...                  size=np.array([16, 16]), level=np.array([1, 2]), parent=np.array([-1, 0]),
    ...                  probability=torch.tensor([1, 0.5]),
    ...                  contribution=torch.tensor([[0.5, 0.0], [1.5, 0.5]]))
    >>> batch = Classification(logits=torch.tensor([[2.0, 0.5]]), glimpses=looks, class_names=("cat", "dog"))
    >>> batch[0].label, round(float(batch[0].probability), 3), len(batch[0].glimpses)
    ('cat', 0.818, 2)
    >>> batch[0].glimpses[1].box
    (32.0, 0.0, 64.0, 32.0)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from foveal.display import significant
from foveal.host import to_device
from foveal.tasks import MULTICLASS, Task, join

Box = tuple[float, float, float, float]


class Glimpse(NamedTuple):
    """A look at an image.

    Attributes:
        image: index of the image in the batch.
        box: (y0, x0, y1, x1) in full-resolution pixels.
        size: (height, width) that the box was resampled to.
        level: processing level, 1 for the thumbnail.
        parent: index, among the glimpses of the image, of the glimpse that this one was chosen from; None for the
            first.
        probability: probability of the choice, given the looks before it; 1 for a look that is always taken.
        contribution: (classes,) contribution to the logits; None if the model is not additive.
    """

    image: int
    box: Box
    size: tuple[int, int]
    level: int
    parent: int | None
    probability: float
    contribution: Tensor | None

    @property
    def pixels_each(self) -> float:
        """Side of a pixel of the look in full-resolution pixels; the geometric mean if it is not square."""
        y0, x0, y1, x1 = self.box
        return math.sqrt((y1 - y0) / self.size[0] * (x1 - x0) / self.size[1])


@dataclass(frozen=True)
class Glimpses(Sequence[Glimpse]):
    """The looks of a batch, grouped by image, in the order of their choice.

    Attributes:
        image: (M,) int, index of the image in the batch; ascending.
        box: (M, 4) float64.
        size: (M, 2) int, (height, width) that each box was resampled to; a single pair applies to all.
        level: (M,) int, processing level.
        parent: (M,) int, index of the parent glimpse among the glimpses of the image; -1 for none.
        probability: (M,) tensor.
        contribution: (M, classes) tensor, or None.
    """

    image: np.ndarray
    box: np.ndarray
    size: np.ndarray
    level: np.ndarray
    parent: np.ndarray
    probability: Tensor
    contribution: Tensor | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", np.broadcast_to(np.asarray(self.size), (len(self.image), 2)))

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, index):  # type: ignore[override]
        """A `Glimpse` by index, or `Glimpses` by slice or mask."""
        if isinstance(index, slice | np.ndarray):
            rows = np.arange(len(self))[index]
            share, gave = self.probability, self.contribution
            return Glimpses(
                self.image[index],
                self.box[index],
                self.size[index],
                self.level[index],
                self.parent[index],
                share[to_device(rows, share.device)],
                None if gave is None else gave[to_device(rows, gave.device)],
            )
        parent = int(self.parent[index])
        return Glimpse(
            image=int(self.image[index]),
            box=tuple(map(float, self.box[index])),  # type: ignore[arg-type]
            size=tuple(map(int, self.size[index])),  # type: ignore[arg-type]
            level=int(self.level[index]),
            parent=None if parent < 0 else parent,
            probability=float(self.probability[index].detach()),
            contribution=None if self.contribution is None else self.contribution[index],
        )

    def __iter__(self) -> Iterator[Glimpse]:
        return (self[i] for i in range(len(self)))


@dataclass(frozen=True)
class Classification:
    """Logits of one image, (classes,), or of a batch, (B, classes), and the looks behind them.

    Indexing or iterating a batch gives the classification of each image.

    Attributes:
        logits: (classes,) or (B, classes).
        glimpses: the looks.
        class_names: names in the order of the logits; if empty, numbers are used.
        maps: attention maps by name, each (heads, h, w) or (B, heads, h, w).
        bytes_read: bytes read from files per image, int or (B,) array; None for images in memory.
        task: what the logits mean, and the thresholds of decisions.
    """

    logits: Tensor
    glimpses: Glimpses
    class_names: tuple[str, ...] = ()
    maps: dict[str, Tensor] = field(default_factory=dict)
    bytes_read: np.ndarray | int | None = None
    task: Task = MULTICLASS

    @property
    def probabilities(self) -> Tensor:
        """Softmax of the logits, or their sigmoid for labels; of the same shape, in float32 or more."""
        return self.task.probabilities(self.logits)

    @property
    def probability(self) -> Tensor:
        """Probability of the predicted class, or of the least certain decision on a label: a scalar, or (B,)."""
        return self.task.certainty(self.probabilities)

    @property
    def label(self) -> str | list[str]:
        """Name of the predicted class, or the predicted labels with ``|`` between them, empty if there are none.

        A list for a batch.
        """
        decided = self.task.decide(self.probabilities).cpu()
        return self._names(decided) if self.logits.ndim == 1 else [self._names(one) for one in decided]

    @property
    def predicted(self) -> tuple[int, ...]:
        """Indices of the predicted class or labels of one image."""
        return self.task.indices(self.task.decide(self.probabilities))

    def top(self, k: int = 5) -> list[tuple[str, float]]:
        """The ``k`` most probable classes of one image and their probabilities, in descending order."""
        p, order = self.probabilities.topk(min(k, self.logits.shape[-1]), dim=-1)
        return [(self._name(i), v) for i, v in zip(order.tolist(), p.tolist(), strict=True)]

    @property
    def locations(self) -> np.ndarray | int:
        """Number of looks beyond the first: an int, or (B,)."""
        chosen = self.glimpses.level > 1
        return (
            int(chosen.sum())
            if self.logits.ndim == 1
            else np.bincount(self.glimpses.image[chosen], minlength=len(self))
        )

    def decision_rules(self) -> list[str]:
        """A sentence for each class that is predicted by a threshold."""
        return [f"{self._name(i)} is predicted from {significant(100 * least)} %" for i, least in self.task.thresholds]

    def _names(self, decided: Tensor) -> str:
        return join([self._name(i) for i in self.task.indices(decided)])

    def _name(self, i: int) -> str:
        return self.class_names[i] if self.class_names else str(i)

    def __len__(self) -> int:
        if self.logits.ndim == 1:
            raise TypeError("this is the classification of one image; it has no length")
        return len(self.logits)

    def __getitem__(self, i: int) -> Classification:
        """The classification of image ``i`` of the batch."""
        i = range(len(self))[i]
        looks = self.glimpses[self.glimpses.image == i]
        return replace(
            self,
            logits=self.logits[i],
            glimpses=replace(looks, image=np.zeros_like(looks.image)),
            maps={k: v[i] for k, v in self.maps.items()},
            bytes_read=int(self.bytes_read[i]) if isinstance(self.bytes_read, np.ndarray) else self.bytes_read,
        )

    def __iter__(self) -> Iterator[Classification]:
        return (self[i] for i in range(len(self)))

    @classmethod
    def merge(
        cls, parts: Sequence[tuple[np.ndarray, Classification]], bytes_read: np.ndarray | None = None
    ) -> Classification:
        """Merge parts of a batch, given with the (n,) positions of their images in the batch."""
        which = np.concatenate([images for images, _ in parts])
        looks = [part.glimpses for _, part in parts]
        image = np.concatenate([images[g.image] for (images, _), g in zip(parts, looks, strict=True)])
        order = np.argsort(image, kind="stable")
        additive = all(g.contribution is not None for g in looks)
        whole = Glimpses(
            image=image,
            box=np.concatenate([g.box for g in looks]),
            size=np.concatenate([g.size for g in looks]),
            level=np.concatenate([g.level for g in looks]),
            parent=np.concatenate([g.parent for g in looks]),
            probability=torch.cat([g.probability for g in looks]),
            contribution=torch.cat([g.contribution for g in looks]) if additive else None,  # type: ignore[misc]
        )
        logits = torch.cat([part.logits for _, part in parts])
        rows = to_device(np.argsort(which), logits.device)
        return cls(logits[rows], whole[order], parts[0][1].class_names, bytes_read=bytes_read, task=parts[0][1].task)

    @classmethod
    def cat(cls, parts: Sequence[Classification]) -> Classification:
        """Concatenate batches on the CPU."""
        offsets = np.cumsum([0, *(len(p) for p in parts)])
        looks = [p.glimpses for p in parts]
        additive = all(g.contribution is not None for g in looks)
        read = [p.bytes_read for p in parts]
        return cls(
            logits=torch.cat([p.logits.cpu() for p in parts]),
            glimpses=Glimpses(
                image=np.concatenate([g.image + o for g, o in zip(looks, offsets, strict=False)]),
                box=np.concatenate([g.box for g in looks]),
                size=np.concatenate([g.size for g in looks]),
                level=np.concatenate([g.level for g in looks]),
                parent=np.concatenate([g.parent for g in looks]),
                probability=torch.cat([g.probability.cpu() for g in looks]),
                contribution=torch.cat([g.contribution.cpu() for g in looks]) if additive else None,  # type: ignore[union-attr]
            ),
            class_names=parts[0].class_names,
            task=parts[0].task,
            maps={k: torch.cat([p.maps[k].cpu() for p in parts]) for k in parts[0].maps},
            bytes_read=None if any(r is None for r in read) else np.concatenate([np.atleast_1d(r) for r in read]),  # type: ignore[arg-type]
        )

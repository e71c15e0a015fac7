"""An exported model as a classifier of foveal: the same commands and functions run it. This module needs torch.

Example:
    >>> import tempfile, torch
    >>> from pathlib import Path
    >>> import foveal
    >>> from foveal.export import export
    >>> model = foveal.create_classifier("test_resnet", num_classes=2, image_size=32).eval()
    >>> same = load_exported(export(model, format="torch", out=Path(tempfile.mkdtemp(), "exported")))
    >>> images = torch.rand(1, 3, 40, 50)
    >>> bool(torch.allclose(foveal.classify(same, images).logits, model(images).logits, atol=1e-5))
    True
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from foveal import runtime
from foveal.classification import Classification, Glimpses
from foveal.draws import Draws
from foveal.errors import ConfigError
from foveal.glimpse.base import GlimpseClassifier
from foveal.images.views import Views
from foveal.objectives.rollout import Rollout
from foveal.policies import Policy, find_policy
from foveal.runtime.answer import Classification as Answer
from foveal.runtime.engines import Callables
from foveal.runtime.loops import loop_of
from foveal.tasks import MULTICLASS, TASKS, Task


class ViewImages:
    """`Views` as arrays, for a loop."""

    def __init__(self, views: Views) -> None:
        self.views = views
        self.sizes = views.sizes

    @property
    def mpp(self) -> np.ndarray:
        return self.views.mpp

    def __len__(self) -> int:
        return len(self.views)

    def look(
        self, which: np.ndarray, boxes: np.ndarray, size: tuple[int, int], fill: np.ndarray, antialias: bool
    ) -> np.ndarray:
        return self.views.look(which, boxes, size, fill=torch.from_numpy(fill), antialias=antialias).cpu().numpy()

    def may_look(
        self, i: int, y: np.ndarray, x: np.ndarray, spacing: float, blank_bytes: int | None = None
    ) -> np.ndarray | None:
        return self.views.may_look(i, y, x, spacing, blank_bytes)

    def is_blank(self, i: int, box: np.ndarray, size: tuple[int, int]) -> bool:
        return self.views.is_blank(i, box, size)


def answer_of(answer: Answer, bytes_read: np.ndarray | None = None, task: Task = MULTICLASS) -> Classification:
    """The answer of a loop as a `foveal.Classification`."""
    looks = answer.looks
    glimpses = Glimpses(
        looks.image,
        looks.box,
        looks.size,
        looks.level,
        looks.parent,
        torch.from_numpy(looks.probability),
        None if looks.contribution is None else torch.from_numpy(looks.contribution),
    )
    return Classification(
        torch.from_numpy(answer.logits), glimpses, answer.class_names, bytes_read=bytes_read, task=task
    )


class Exported(GlimpseClassifier):
    """An exported model. It predicts on the CPU, and is not trained.

    Args:
        model: the model of `foveal.runtime`.
    """

    def __init__(self, model: runtime.Model) -> None:
        card = model.card
        super().__init__(
            card["num_classes"],
            (card["size"][0], card["size"][1]),
            card["mean"],
            card["std"],
            squash=card["squash"],
            antialias=card["antialias"],
            crop=card["crop"],
        )
        self.exported = model
        self.spec = dict(card["model"])
        self.class_names = tuple(card["class_names"])
        self.task = TASKS[card["task"]].with_thresholds([(int(i), float(p)) for i, p in card["thresholds"]])
        self.locations, self.usual_policy = tuple(card["locations"]), card["policy"]
        self.policies = tuple(card["policies"])
        self.most_levels = card["most_levels"]
        ends = card["value_range"]
        self.value_range = None if ends is None else (ends[0], ends[1])
        self.image_size, self.shorter_side = card["image_size"], card["shorter_side"]

    @property
    def most_cells(self) -> int | None:
        return self.exported.card["most_cells"]

    def _find_policies(self, policies: Sequence[str | Policy], more: Any = ()) -> list[Policy]:
        for policy in policies:
            if str(policy) not in self.policies:
                raise ConfigError(
                    f"policy {policy}: this exported model does not know it; use one of {', '.join(self.policies)}"
                )
        return [find_policy(policy) for policy in policies]

    def root(self, sizes: np.ndarray) -> np.ndarray:
        return self.exported.loop.root(sizes)

    def classify(
        self, views: Views, locations: tuple[int, ...], policy: Policy, draws: Draws, contributions: bool
    ) -> Classification:
        for i in self.exported.loop.without_scale(ViewImages(views)).tolist():
            problem = "has no pixel size, which this model needs; give a file with one, or use another model"
            views.errors.setdefault(i, f"{views.name(i)}: {problem}")
        answer = self.exported.loop(ViewImages(views), locations, str(policy), draws, contributions)
        return answer_of(answer, views.bytes_read, self.task)

    def count_macs(self, views: Views, locations: tuple[int, ...], policy: str) -> int:
        """Multiply-accumulates for blank images, from those of each part."""
        card, spent = self.exported.card, [0]

        def made(part: dict[str, Any]) -> Any:
            def run(**inputs: np.ndarray) -> dict[str, np.ndarray]:
                count = len(next(iter(inputs.values())))
                spent[0] += count * part["macs"]
                return {name: np.zeros((count, *shape), np.float32) for name, shape in part["outputs"].items()}

            return run, part["outputs"]

        loop = loop_of(card, Callables({name: made(part) for name, part in card["parts"].items()}))
        loop(ViewImages(views), locations, policy, contributions=False)
        return spent[0]

    def parts(self) -> Any:
        raise ConfigError("model: is exported already; export the run that it was made from")

    def roll_out(self, views: Views, locations: tuple[int, ...], policies: list[Policy], draws: Draws) -> list[Rollout]:
        raise ConfigError("model: is exported, so it cannot be trained; use the run that it was made from")

    def dense(self) -> nn.Module:
        raise ConfigError("model: is exported, so its networks are not at hand; use the run that it was made from")

    def get_extra_state(self) -> Tensor:
        """The digests of its files, so that other files are another model."""
        digests = [digest for part in self.exported.card["parts"].values() for digest in part["files"].values()]
        return torch.frombuffer(bytearray("".join(digests).encode()), dtype=torch.uint8)


def load_exported(folder: str | Path, engine: str | None = None, threads: int | None = None) -> Exported:
    """The classifier of an exported folder; see `foveal.runtime.load`."""
    return Exported(runtime.load(folder, engine=engine, threads=threads)).eval()  # type: ignore[return-value]

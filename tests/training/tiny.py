"""A run so small that many of them fit a test; as a script it trains one, and kills itself where it is told to."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.models import build_model_with_cfg, register_model
from torch import Tensor, nn

from foveal.data.dataset import Dataset, Loaded, TensorDataset
from foveal.data.module import DATA_SETS, DataModule
from foveal.recipes.fit_config import FitConfig, fit_config


class NormFree(nn.Module):
    """Two convolutions without normalisation, so that images of a batch do not see each other."""

    def __init__(self, num_classes: int = 3, in_chans: int = 3) -> None:
        super().__init__()
        self.num_classes, self.num_features = num_classes, 16
        self.feature_info = [
            {"num_chs": 8, "reduction": 2, "module": "first"},
            {"num_chs": 16, "reduction": 4, "module": "second"},
        ]
        self.first = nn.Sequential(nn.Conv2d(in_chans, 8, 3, 2, 1), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU())
        self.classifier = nn.Linear(16, num_classes) if num_classes else nn.Identity()

    def get_classifier(self) -> nn.Module:
        return self.classifier

    def forward_features(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = x.mean((2, 3))
        return x if pre_logits else self.classifier(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


default_cfgs = {
    "norm_free_16": {
        "url": "",
        "num_classes": 3,
        "input_size": (3, 16, 16),
        "first_conv": "first.0",
        "classifier": "classifier",
    }
}


@register_model
def norm_free_16(pretrained: bool = False, **kwargs: Any) -> NormFree:
    return build_model_with_cfg(NormFree, "norm_free_16", pretrained, **kwargs)


class Spoilt(TensorDataset):
    """Some of its images cannot be opened."""

    bad: tuple[int, ...] = ()

    def load(self, epoch: int, indices: Any, seed: int, first_looks: Any = None) -> Loaded:
        loaded = super().load(epoch, [i for i in indices if i not in self.bad], seed, first_looks)
        loaded.errors = [(f"{i}.png", "the file is empty; copy it again") for i in indices if i in self.bad]
        return loaded


def _split(count: int, seed: int, bad: tuple[int, ...] = ()) -> Dataset:
    rng = np.random.default_rng(seed)
    target = np.arange(count) % 3
    images = rng.random((count, 3, 24, 32), dtype=np.float32) * 0.2
    images[np.arange(count), target] += 0.5
    data = Spoilt(torch.from_numpy(images), target, ("red", "green", "blue"))
    data.bad = tuple(bad)
    return data


@DATA_SETS.register
def tiny_images(count: int = 22, bad: tuple[int, ...] = (), val: int = 6, seed: int = 0) -> DataModule:
    return DataModule(
        ("red", "green", "blue"), _split(count, seed, bad), _split(val, seed + 1) if val else None, name="tiny_images"
    )


def config(**changes: Any) -> FitConfig:
    """A configuration of everything that a resumed run could get wrong, with some values changed."""
    values: dict[str, Any] = {
        "model": {
            "name": "tnet",
            "backbone": "test_efficientnet",
            "base_size": 16,
            "locations": [2],
            "head_dropout": 0.3,
            "std": [0.25],
        },
        "data": {"name": "tiny_images"},
        "optimiser": {"lr": 0.01, "warmup": 2},
        "batch_size": 4,
        "accumulate": 2,
        "epochs": 3,
        "ema": 0.8,
        "save_every": 1,
        "log_every": 1,
        "device": "cpu",
        "seed": 3,
    }
    if changes.get("model", values["model"]).get("name") == "tnet":
        values["objective"] = {"teach": 0.0}  # so few images would have a teacher, and no policy gradient
    return FitConfig.from_dict({**values, **changes})


NORM_FREE = {"name": "tnet", "backbone": "norm_free_16", "base_size": 16, "locations": [2]}


def tampered(how: dict[str, Any]) -> None:
    """Let a process do something at a batch: {"kill_at": batch}, with "kill_rank" only the process of this rank;
    {"stop_at": batch} or {"interrupt_at": batch}."""
    from foveal.training.learner import Learner

    step = Learner.training_step

    def marked(self: Learner, batch: Any, batch_idx: int) -> Any:
        if batch_idx == how.get("kill_at") and self.global_rank == how.get("kill_rank", self.global_rank):
            os.kill(os.getpid(), signal.SIGKILL)
        if batch_idx == how.get("stop_at"):
            os.kill(os.getpid(), signal.SIGSTOP)
        if batch_idx == how.get("interrupt_at"):
            os.kill(os.getpid(), getattr(signal, how.get("signal", "SIGINT")))
        return step(self, batch, batch_idx)

    Learner.training_step = marked  # type: ignore[method-assign]


def main(out: str, changes: str = "{}", how: str = "{}") -> None:
    """Train; ``how`` may say what `tampered` does, or {"resume": true}."""
    options = json.loads(how)
    tampered(options)
    try:
        fit_config(config(**json.loads(changes)), Path(out), resume=options.get("resume", False), quiet=True)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])

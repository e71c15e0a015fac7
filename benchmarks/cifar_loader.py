"""Is training on CIFAR bound by the network or by the loader?

Times in alternation: picking and augmenting a batch, looking at it and normalising it (all steps before the network),
and the training step of a network on a batch in memory. Random pixels replace the 50,000 images of CIFAR; the times do
not depend on them.

    python benchmarks/cifar_loader.py --model resnet20_cifar --device cuda --out benchmarks/results/cifar_loader.json
"""

from __future__ import annotations

import argparse
from itertools import count
from typing import Any

import numpy as np
import torch
from harness import in_turn, milliseconds, ratio, write

from foveal.data import DataModule, TensorDataset
from foveal.draws import Draws
from foveal.models import create_classifier
from foveal.prediction.device import autocast
from foveal.training import Optimiser
from foveal.training.learner import Stream
from foveal.training.optimisation import build


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet20_cifar")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="32", choices=("32", "bf16"))
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--out")
    options = parser.parse_args()
    device = torch.device(options.device)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (options.images, 3, 32, 32), dtype=torch.uint8, generator=generator)
    classes = tuple("0123456789")
    data = DataModule(classes, TensorDataset(images, np.arange(options.images) % 10, classes, augmentation="crop_flip"))
    batches = iter(Stream(data.loader("train", batch_size=options.batch, drop_last=True, device=device), 10**12))
    model = create_classifier(options.model, num_classes=10, image_size=32).to(device).train()
    optimiser = build(model, model.parameter_groups(), Optimiser(name="sgd", lr=0.01, weight_decay=1e-4))
    objective = model.default_objective()
    fixed = next(batches).to(device)
    number = count()

    def step(batch: Any) -> None:
        torch.manual_seed(next(number))
        with autocast(options.precision, device):
            rollouts = model.rollouts(batch.views, objective.plan(0.0), Draws(0, 0, batch.index))
            loss = objective(rollouts, batch.target, objective.initial_state())[0]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    def look() -> None:
        batch = next(batches).to(device)
        model.see(batch.views, np.arange(len(batch)), model.root(batch.views.sizes))

    tasks = {
        "pick and augment": lambda: next(batches).to(device),
        "pick, augment and look": look,
        "step on a batch that is there": lambda: step(fixed),
        "step with its loading": lambda: step(next(batches).to(device)),
    }
    times = in_turn(tasks, seconds=options.seconds, device=options.device)
    rows = []
    for name, taken in times.items():
        rows.append(
            {
                "what": name,
                "ms": milliseconds(taken),
                "images_per_second": round(options.batch / float(np.median(taken))),
                "of_the_step": ratio(taken, times["step on a batch that is there"]),
            }
        )
        print(
            f"{name:30} {rows[-1]['ms']:9.3f} ms {rows[-1]['images_per_second']:9} img/s  x "
            f"{rows[-1]['of_the_step']['median']}"
        )
    about = {"model": options.model, "batch": options.batch, "precision": options.precision, "images": options.images}
    write(options.out, {**about, "rows": rows}, device=options.device)


if __name__ == "__main__":
    main()

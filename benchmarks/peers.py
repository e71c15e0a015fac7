"""Published peers of the scan, and dense networks, on megapixel MNIST of 1,500 px.

Trains iterative patch selection, attention pooling over all tiles, and a small convolutional network on whole canvases
at a quarter of their size and at full size, from random weights on one thread. Each has a fixed number of updates: as
many as take about the processor time of the scan on this task, 570 seconds with one digit and 690 with five, by a short
trial. Iterative patch selection encodes tiles of one value once while scanning (``reuse_blank``), which changes nothing
but the time. Measures on test canvases: accuracy; the share of digits of which at least half are in a tile that was
kept; and milliseconds, multiply-accumulates and bytes of one image. Finished runs and existing results are kept; costs
are measured in alternation, with random weights.

With ``--authors``, a folder with the code of github.com/benbergner/ips, also measures how long an update of that code
takes on the same canvases, by its own ``train_one_epoch``.

    python benchmarks/peers.py --root data --precision bf16 --authors ips --out benchmarks/results/peers.json
    python benchmarks/peers.py --root data --contenders --authors ips --out benchmarks/results/peers.json  # costs alone
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from harness import write

from foveal import create_classifier, get_data, load
from foveal.evaluation import Trial, measure_in_turn
from foveal.metrics import wilson
from foveal.prediction import count_cost
from foveal.recipes import load_recipe
from foveal.runs import METRICS, WEIGHTS

CANVAS = 1500
TASKS = ("one", "majority")
DENSE = {"name": "plain_convnet_32", "in_chans": 1, "global_pool": "max", "mean": [0.0], "std": [1.0]}


class Contender(NamedTuple):
    """A model to be trained.

    Attributes:
        recipe: recipe, with a place for the task.
        model: options of the model that differ from the recipe.
        updates: number of updates, by the task.
        batch_size: images of an update.
    """

    recipe: str
    model: dict[str, Any]
    updates: dict[str, int]
    batch_size: int


CONTENDERS = {
    "ips.reference": Contender("megapixel/ips_{}_1500", {"reuse_blank": True}, {"one": 80, "majority": 98}, 16),
    "mil": Contender("megapixel/mil_one_1500", {}, {"one": 148, "majority": 180}, 8),
    "dense, a quarter": Contender(
        "megapixel/mil_one_1500", {**DENSE, "image_size": 375}, {"one": 530, "majority": 640}, 16
    ),
    "dense, full size": Contender(
        "megapixel/mil_one_1500", {**DENSE, "image_size": 1500}, {"one": 215, "majority": 260}, 2
    ),
}
WARMUP = 10 / 150
"""Share of the updates with a rising learning rate; published for iterative patch selection."""


def fit(name: str, task: str, seed: int, root: str, folder: Path, precision: str) -> Path:
    """Train a run unless it is finished. Its processor time is stored in the run folder."""
    one, out = CONTENDERS[name], folder / f"{name.replace(', ', '_').replace(' ', '_')}_{task}_{seed}"
    if (out / WEIGHTS).is_file() and (out / "processor_seconds").is_file():
        return out
    steps = one.updates[task]
    flags = f"--data.root {root} --data.task {task} --data.val 20 --data.test 0 --seed {seed} --steps {steps}"
    flags += f" --optimiser.warmup {round(WARMUP * steps)} --batch_size {one.batch_size} --log-every 5 --workers 0"
    flags += f" --device cpu --precision {precision}"
    for key, value in one.model.items():
        flags += f" --model {value}" if key == "name" else f" --model.{key} {json.dumps(value)}"
    command = [sys.executable, "-m", "foveal", "fit", one.recipe.format(task), *flags.split()]
    start = os.times()
    command += ["--overwrite", "--quiet", "--out", str(out)]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    end = os.times()
    took = end.children_user + end.children_system - start.children_user - start.children_system
    (out / "processor_seconds").write_text(f"{took:.1f}\n")
    return out


def canvases(task: str, root: str, **counts: int) -> Any:
    values = load_recipe(CONTENDERS["ips.reference"].recipe.format(task))["data"]
    return get_data(**{**values, "task": task, "root": root, "train": 0, "val": 0, "test": 0, **counts})


def row_of(name: str, task: str, seed: int, run: Path, root: str, images: int) -> dict[str, Any]:
    model, data = load(run, device="cpu").eval(), canvases(task, root, test=images)
    right, found = [], []
    for batch in data.loader("test", batch_size=10):
        looked = model(batch.views, contributions=False)
        right.append((looked.logits.argmax(-1) == batch.target).numpy())
        found.append([held(one, data.test.boxes[i]) for one, i in zip(looked, batch.index, strict=True)])
    hits = int(np.concatenate(right).sum())
    low, high = wilson(hits, images)
    steps = int((run / METRICS).read_text().strip().splitlines()[-1].split(",")[0])
    return {
        "contender": name,
        "task": task,
        "seed": seed,
        "updates": steps,
        "batch_size": CONTENDERS[name].batch_size,
        "processor_seconds": float((run / "processor_seconds").read_text()),
        "test_images": images,
        "right": hits,
        "accuracy": round(hits / images, 4),
        "interval": [round(low, 4), round(high, 4)],
        "found": round(float(np.concatenate(found).mean()), 4) if name == "ips.reference" else None,
    }


def held(looked: Any, digits: np.ndarray) -> float:
    """Share of the digits (n, 4) of which at least half are in one of the tiles that were kept."""
    tiles = looked.glimpses.box[looked.glimpses.level == 2][:, None]
    low, high = np.maximum(tiles[..., :2], digits[:, :2]), np.minimum(tiles[..., 2:], digits[:, 2:])
    shown = np.clip(high - low, 0, None).prod(-1) / (digits[:, 2:] - digits[:, :2]).prod(-1)
    return float((shown >= 0.5).any(0).mean()) if len(tiles) else 0.0


def costs(root: str) -> list[dict[str, Any]]:
    """Cost of one canvas of one digit, measured in alternation."""
    models, test = {}, canvases("one", root, test=1).test
    for name, one in CONTENDERS.items():
        own = load_recipe(one.recipe.format("one"))["model"]
        options = {**({} if "name" in one.model else own), **one.model}
        models[name] = create_classifier(**options, num_classes=10).eval()
        if options.get("reuse_blank"):
            models[f"{name}, every tile encoded"] = create_classifier(**{**options, "reuse_blank": False}).eval()
    trials = [Trial(model, lambda n: test.batch(0, range(n), 0).views) for model in models.values()]
    trials[0].model(trials[0].views_of(1))  # memory that a process allocates once does not count
    measured = measure_in_turn(trials, seconds=2)
    return [
        {
            "contender": name,
            "ms": round(m.p50, 1),
            "peak_memory": m.peak_memory,
            "bytes": m.bytes_read,
            "macs": count_cost(model, CANVAS).macs,
        }
        for (name, model), m in zip(models.items(), measured, strict=True)
    ]


class Patches(torch.utils.data.Dataset):
    """Canvases in the form of the authors' data set: all patches of each, and the class by the name of the task."""

    def __init__(self, data: Any, count: int) -> None:
        self.data, self.count = data, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> dict[str, Any]:
        batch = self.data.batch(0, [i], 0)
        canvas = batch.views.look(np.zeros(1, int), np.array([[0.0, 0, CANVAS, CANVAS]]), (CANVAS, CANVAS))[0]
        patches = canvas.unfold(1, 50, 50).unfold(2, 50, 50).permute(1, 2, 0, 3, 4).reshape(-1, 1, 50, 50)
        return {"input": patches, "class": int(batch.target[0])}


def authors(folder: str, task: str, root: str, updates: int) -> dict[str, Any]:
    """Processor time of an update of the released code, with one task. All patches are encoded."""
    import yaml

    sys.path.insert(0, folder)
    from architecture.ips_net import IPSNet
    from training.iterative import train_one_epoch
    from utils.utils import Logger, Struct

    conf = Struct(**yaml.safe_load(Path(folder, "config", "mnist_config.yml").read_text()))
    conf.tasks = {"task0": {"id": 0, "name": "class", "act_fn": "softmax", "metric": "accuracy"}}
    conf.n_token, conf.n_epoch, conf.n_epoch_warmup = 1, 1, 1 / 15
    torch.manual_seed(0)
    device = torch.device("cpu")
    net = IPSNet(device, conf)
    loader = torch.utils.data.DataLoader(Patches(canvases(task, root, train=5000).train, 16 * updates), conf.B_seq)
    optimiser = torch.optim.AdamW(net.parameters(), lr=0, weight_decay=conf.wd)
    start = time.process_time()
    with torch.enable_grad():
        train_one_epoch(net, {"class": torch.nn.NLLLoss()}, loader, optimiser, device, 0, Logger(conf.tasks), conf)
    took = (time.process_time() - start) / updates
    return {"task": task, "updates": updates, "seconds_per_update": round(took, 2), "updates_in_1400": int(1400 / took)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="folder with torchvision's MNIST/raw")
    parser.add_argument("--folder", type=Path, default=Path("runs/peers"), help="where the run folders go")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=["one"])
    parser.add_argument("--contenders", nargs="*", choices=list(CONTENDERS), default=list(CONTENDERS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", default="32", help="of training; bf16 halves its time on some processors")
    parser.add_argument("--images", type=int, default=1000, help="test canvases")
    parser.add_argument("--authors", help="folder with the authors' code of iterative patch selection")
    parser.add_argument("--out")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = json.loads(Path(args.out).read_text())["results"] if args.out and Path(args.out).is_file() else {}
    rows = found.setdefault("rows", [])
    kept = {(row["contender"], row["task"], row["seed"]) for row in rows}
    for task in args.tasks:
        for name in args.contenders:
            if (name, task, args.seed) not in kept:
                run = fit(name, task, args.seed, args.root, args.folder, args.precision)
                rows.append(row_of(name, task, args.seed, run, args.root, args.images))
                write(args.out, found, seed=args.seed)
    if args.authors and "authors" not in found:
        found["authors"] = authors(args.authors, args.tasks[0], args.root, 2)
    if "costs" not in found:
        found["costs"] = costs(args.root)
    write(args.out, found, seed=args.seed)
    for row in rows:
        low, high = (100 * share for share in row["interval"])
        print(
            f"{row['task']}, {row['contender']}: {100 * row['accuracy']:.1f} % ({low:.1f} to {high:.1f}) after "
            f"{row['updates']} updates, {row['processor_seconds']:.0f} s"
        )
    for row in found["costs"]:
        print(f"{row['contender']}: {row['ms']} ms, {row['bytes']:,} bytes, {row['macs'] / 1e9:.2f} GMACs")


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()

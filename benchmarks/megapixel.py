"""Cost and accuracy of TNet on megapixel MNIST, by canvas size and task.

Trains each recipe for the given seconds on one thread, from the weights of its ``init_from``, whose run is trained
first: that of the next smaller canvas, or of one digit on the same canvas. Measures on the test canvases: accuracy with
the recipe's locations, with the same number of random looks, of the thumbnail alone and with other locations; the share
of the relevant digits inside the last looks, and the accuracy depending on it; milliseconds, peak memory,
multiply-accumulates and bytes for one image; and the same costs of the backbone on the whole canvas. Bytes are those of
an uncompressed pyramid with one byte per pixel. Canvases are drawn when they are read, which the milliseconds include.
Finished runs and existing rows are kept, except for costs, which are measured in alternation.

    python benchmarks/megapixel.py --root data --seeds 0 1 2 --seconds 1800 --out benchmarks/results/megapixel.json
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import write

from foveal import get_data, load
from foveal.evaluation import Strategy, Trial, measure_in_turn, score_batches
from foveal.glimpse.base import GlimpseClassifier, WholeImage
from foveal.prediction import count_cost
from foveal.recipes import load_recipe
from foveal.runs import METRICS, WEIGHTS

CANVASES = (500, 1000, 1500, 3000)
TASKS = ("one", "majority")
BUDGETS = ((1, 1), (2, 1), (5, 1))


def recipe_of(task: str, canvas: int) -> str:
    return f"megapixel/{'one_' if task == 'one' else ''}{canvas}"


def run_of(recipe: str, seed: int, folder: Path) -> Path:
    return folder / f"{recipe.removeprefix('megapixel/')}_{seed}"


def fit(recipe: str, root: str, seed: int, seconds: float, folder: Path) -> tuple[Path, float]:
    """Train a run and the runs it starts from, unless they are finished.

    Returns:
        Run folder, and total training seconds of all of these runs. Processor time of the training is stored in the run
        folder.
    """
    out, spent = run_of(recipe, seed, folder), 0.0
    command = [
        sys.executable,
        "-m",
        "foveal",
        "fit",
        recipe,
        "--data.root",
        root,
        "--seed",
        str(seed),
        "--max_time",
        str(seconds),
    ]
    command += ["--epochs", "1000000", "--workers", "0", "--device", "cpu", "--out", str(out), "--overwrite", "--quiet"]
    if source := load_recipe(recipe).get("init_from"):
        first, spent = fit(source.removeprefix("runs/"), root, seed, seconds, folder)
        command += ["--init-from", str(first)]
    if not ((out / WEIGHTS).is_file() and (out / "processor_seconds").is_file()):
        start = os.times()
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        end = os.times()
        took = end.children_user + end.children_system - start.children_user - start.children_system
        (out / "processor_seconds").write_text(f"{took:.1f}\n")
    return out, spent + trained(out)[1]


def trained(run: Path) -> tuple[int, float]:
    """Updates and seconds of a run."""
    steps, _, seconds = (float(v) for v in (run / METRICS).read_text().strip().splitlines()[-1].split(",")[:3])
    return int(steps), seconds


def found(model: GlimpseClassifier, data: Any) -> dict[str, Any]:
    """Share of the relevant digits inside a last look, up to 3 px, which the grids of the recipes allow, and its effect
    on accuracy.

    Returns:
        The share over all images; and for each number of digits found in an image, the number of images and their
        accuracy.
    """
    count, right = [], []
    for batch in data.loader("test", batch_size=50):
        looked = model(batch.views, contributions=False)
        last = looked.glimpses.box[looked.glimpses.level == looked.glimpses.level.max()].reshape(len(batch), -1, 1, 4)
        digits = np.stack([data.test.boxes[i] for i in batch.index])[:, None]
        held = (last[..., :2] <= digits[..., :2] + 3) & (last[..., 2:] >= digits[..., 2:] - 3)
        count.append(held.all(-1).any(1).sum(1))
        right.append((looked.logits.argmax(-1) == batch.target).numpy())
    every, answers, digits = np.concatenate(count), np.concatenate(right), len(data.test.boxes[0])
    split = [answers[every == n] for n in range(digits + 1)]
    return {
        "found": round(float(every.mean() / digits), 4),
        "images_by_found": [len(part) for part in split],
        "right_by_found": [round(float(part.mean()), 4) if len(part) else None for part in split],
    }


def row_of(task: str, canvas: int, seed: int, run: Path, chain: float, root: str, images: int) -> dict[str, Any]:
    recipe = recipe_of(task, canvas)
    data = get_data(**{**load_recipe(recipe)["data"], "root": root, "train": 0, "val": 0, "test": images})
    model = load(run, device="cpu").eval()
    strategies = [Strategy(model.locations), Strategy(model.locations, "random"), Strategy(()), *map(Strategy, BUDGETS)]
    scores = score_batches(model, data.loader("test", batch_size=50), strategies, seed=seed).scores
    right = [float(s.answers.correct.mean()) for s in scores]
    steps, seconds = trained(run)
    return {
        "task": task,
        "canvas": canvas,
        "seed": seed,
        "recipe": recipe,
        "locations": list(model.locations),
        "test_images": images,
        "steps": steps,
        "training_seconds": seconds,
        "processor_seconds": float((run / "processor_seconds").read_text()),
        "training_seconds_of_chain": round(chain, 1),
        **dict(zip(("accuracy", "random", "thumbnail"), right, strict=False)),
        "by_budget": {",".join(map(str, budget)): share for budget, share in zip(BUDGETS, right[3:], strict=True)},
        **found(model, data),
    }


def costs(rows: list[dict[str, Any]], root: str, folder: Path) -> None:
    """Measure the cost of one image for all rows in alternation, and add it to the rows."""
    kinds, trials = ("looking", "whole_canvas"), []
    for row in rows:
        data = get_data(**{**load_recipe(row["recipe"])["data"], "root": root, "train": 0, "val": 0, "test": 1})
        model = load(run_of(row["recipe"], row["seed"], folder), device="cpu").eval()
        dense = model.dense()
        dense.in_chans = model.channels  # otherwise WholeImage assumes three bands
        whole = WholeImage(dense, row["canvas"], mean=model.mean.tolist(), std=model.std.tolist()).eval()
        trials += [Trial(m, lambda n, test=data.test: test.batch(0, range(n), 0).views) for m in (model, whole)]
    for trial in trials[:2]:
        trial.model(trial.views_of(1))  # memory that a process allocates once does not count
    measured = measure_in_turn(trials, seconds=3)
    for (row, kind), trial, m in zip(product(rows, kinds), trials, measured, strict=True):
        macs = count_cost(trial.model, row["canvas"]).macs
        row[kind] = {
            "ms": round(m.p50, 3),
            "ms_p95": round(m.p95, 3),
            "peak_memory": m.peak_memory,
            "bytes": m.bytes_read,
            "macs": macs,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="folder with torchvision's MNIST/raw")
    parser.add_argument("--folder", type=Path, default=Path("runs/megapixel"), help="where the run folders go")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--canvases", type=int, nargs="+", choices=CANVASES, default=list(CANVASES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--seconds", type=float, default=1800, help="training time of each run, on one thread")
    parser.add_argument("--images", type=int, default=1000, help="test canvases")
    parser.add_argument("--out")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = json.loads(Path(args.out).read_text())["results"] if args.out and Path(args.out).is_file() else []
    kept = {(row["task"], row["canvas"], row["seed"]) for row in rows}
    for task in args.tasks:
        for canvas in args.canvases:
            for seed in args.seeds:
                if (task, canvas, seed) not in kept:
                    run, chain = fit(recipe_of(task, canvas), args.root, seed, args.seconds, args.folder)
                    rows.append(row_of(task, canvas, seed, run, chain, args.root, args.images))
                    write(args.out, rows, seed=None)
    costs(rows, args.root, args.folder)
    write(args.out, rows, seed=None)
    for row in rows:
        right = ", ".join(f"{name} {100 * row[name]:.1f} %" for name in ("accuracy", "random", "thumbnail"))
        print(f"{row['task']} {row['canvas']} px, seed {row['seed']}: {right}")
        for what in ("looking", "whole_canvas"):
            c = row[what]
            memory = (c["peak_memory"] or 0) / 2**20
            print(
                f"    {what}: {c['ms']:.1f} ms, {memory:.0f} MiB, {c['macs'] / 1e6:.1f} MMAC, {c['bytes'] / 1e3:.0f} kB"
            )


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()

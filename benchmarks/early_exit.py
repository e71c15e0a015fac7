"""Early exit compared with fixed locations, in accuracy and wall time: TNet on the bundled digits.

Trains the TNet of digits.yaml (``small``: looks of 32 px, images of 256 px), then continues with looks of 64 px and
images of 512 px (``large``: the same digits, four times the work per look). Thresholds are determined on the validation
images. The test images are then classified with fixed locations and with early exit, batch by batch in alternation,
with batches of 1, 32 and 128 images, on one thread. Rounds are repeated, and the fastest time of each batch counts:
wall time (``ms``) and the time of the thread (``processor_ms``), which is the wall time without other load. Finished
runs and existing rows are kept.

    python benchmarks/early_exit.py --out benchmarks/results/early_exit.json
"""

from __future__ import annotations

import argparse
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import write
from training import DIGITS, fit

from foveal import get_data, load
from foveal.evaluation import Setting, find_thresholds
from foveal.glimpse.base import GlimpseClassifier
from foveal.prediction import count_cost, fold_norms
from foveal.prediction.early_exit import look_until, turns
from foveal.recipes import load_recipe
from foveal.runs import WEIGHTS

MOST = (4,)
BATCHES = (1, 32, 128)
LEFT = (1, 8, 32, 128)
MEAN_LOOKS = (0.5, 1, 1.5, 2, 3)
TASKS: dict[str, dict[str, Any]] = {  # changes to digits.yaml
    "small": {"canvas": 256, "test": 1000, "seeds": (0, 1), "steps": 2571, "flags": []},
    "large": {
        "canvas": 512,
        "test": 600,
        "seeds": (0,),
        "steps": 600,
        "after": "small",
        "flags": [
            "--model.base_size",
            "64",
            "--model.location_features",
            "stages.2",
            "--data.train",
            "2000",
            "--optimiser.lr",
            "1e-3",
        ],
    },
}


def run_of(folder: Path, task: str, seed: int) -> Path:
    """Load a run, after training it if needed."""
    out, how = folder / f"{task}_{seed}", TASKS[task]
    if not (out / WEIGHTS).is_file():
        after = ["--init_from", str(run_of(folder, how["after"], seed))] if "after" in how else []
        fit([DIGITS, "--data.canvas", str(how["canvas"]), *how["flags"], *after], out, steps=how["steps"], seed=seed)
    return out


def data_of(task: str, val: int, test: int) -> Any:
    return get_data(
        **{**load_recipe(DIGITS)["data"], "canvas": TASKS[task]["canvas"], "train": 0, "val": val, "test": test}
    )


def take(
    model: GlimpseClassifier, data: Any, ways: list[dict[str, Any]], macs: np.ndarray, batch_size: int, rounds: int
) -> list[dict[str, Any]]:
    """Mean cost and number of right predictions of each strategy; ``rounds_ms`` are the milliseconds of every round."""
    images = len(data.test)
    starts = range(0, images, batch_size)
    wall, busy = np.empty((2, rounds, len(ways), len(starts)))
    right, looks = np.empty((2, len(ways), len(starts)), int)
    products = np.empty((len(ways), len(starts)))
    for r in range(-1, rounds):  # the first round is a warm-up on a few batches
        for b, start in enumerate(starts if r >= 0 else starts[:4]):
            rows = list(range(start, min(start + batch_size, images)))
            for w in np.roll(np.arange(len(ways)), b):
                way, began, busy_before = ways[w], time.perf_counter(), time.thread_time()
                batch = data.test.batch(0, rows, 0)
                if way["way"] == "exit":
                    seen = look_until(model, batch.views, way["threshold"], MOST, way["at_once"])
                else:
                    seen = model(batch.views, locations=way["locations"], contributions=False)
                answer = seen.logits.argmax(-1)
                wall[r, w, b], busy[r, w, b] = time.perf_counter() - began, time.thread_time() - busy_before
                right[w, b] = int((answer == batch.target).sum())
                looks[w, b], products[w, b] = np.sum(seen.locations), macs[seen.locations].sum()
    each = 1e3 * wall.sum(2) / images
    best, processor = (1e3 * seconds.min(0).sum(1) / images for seconds in (wall, busy))
    return [
        {
            "accuracy": int(right[w].sum()) / images,
            "looks": int(looks[w].sum()) / images,
            "macs": round(products[w].sum() / images),
            "ms": round(best[w], 4),
            "processor_ms": round(processor[w], 4),
            "rounds_ms": each[:, w].round(4).tolist(),
        }
        for w in range(len(ways))
    ]


def rows_of(task: str, seed: int, run: Path, rounds: int) -> list[dict[str, Any]]:
    """Rows of fixed locations, of exits at a mean number of looks or MACs, and of exits at the time of fixed
    locations."""
    data, model = data_of(task, 500, TASKS[task]["test"]), fold_norms(load(run, device="cpu").eval())
    macs = np.array([count_cost(model, TASKS[task]["canvas"], end).macs for end in turns(MOST, 1)])

    def exits(budgets: dict[str, str], at_once: int = 1, batch_size: int = 100) -> list[dict[str, Any]]:
        setting = Setting(batch_size=batch_size, device="cpu")
        solved = find_thresholds(
            model, data, [*budgets.values()], locations=MOST, at_once=at_once, seconds=3, setting=setting
        )
        about = zip(budgets, solved, strict=True)
        return [
            {"way": "exit", "name": name, "at_once": at_once, "budget": x.budget, "threshold": x.threshold}
            for name, x in about
        ]

    fixed: list[dict[str, Any]] = [{"way": "fixed", "name": f"{sum(end)}", "locations": end} for end in turns(MOST, 1)]
    counted = [
        *exits({f"{k} looks": f"{k}locations" for k in MEAN_LOOKS}),
        *exits({"MACs of 1 look": f"{macs[1]}MAC"}),
        *exits({"2 looks, 2 at once": "2locations"}, at_once=2),
    ]
    rows = []
    for batch_size in BATCHES:
        some = fixed[1:3]
        timed = zip(some, take(model, data, some, macs, batch_size, 1), strict=True)
        budgets = {f"time of {way['name']} at batch {batch_size}": f"{found['ms']:.3f}ms" for way, found in timed}
        ways = [*fixed, *counted, *exits(budgets, batch_size=batch_size)]
        for way, found in zip(ways, take(model, data, ways, macs, batch_size, rounds), strict=True):
            about = {"task": task, "seed": seed, "batch": batch_size, **way, **found}
            rows.append({key: value for key, value in about.items() if key != "locations"})
    return rows


def turns_of(task: str, run: Path) -> list[dict[str, Any]]:
    """Time of one more look at every image, as part of fixed locations and as a separate step, by the number of images
    left in the batch."""
    data, model = data_of(task, 0, max(LEFT)), fold_norms(load(run, device="cpu").eval())
    rows = []
    for images in LEFT:

        def call(looks: int, exits: bool, images: int = images) -> None:
            views = data.test.batch(0, list(range(images)), 0).views
            if exits:
                look_until(model, views, 2.0, (looks,))  # this confidence is never reached
            else:
                model(views, locations=(looks,), contributions=False)

        tasks = [partial(call, looks, exits) for exits in (False, True) for looks in (1, *MOST)]
        busy = np.empty((max(10, 200 // images), len(tasks)))
        for r, t in np.ndindex(busy.shape):
            before = time.thread_time()
            tasks[t]()
            busy[r, t] = 1e3 * (time.thread_time() - before)
        one, most = np.median(busy, 0).reshape(2, 2).T / images
        for name, more in zip(("budget", "turn"), (most - one) / (MOST[0] - 1), strict=True):
            rows.append({"task": task, "images": images, "as": name, "processor_ms": round(float(more), 4)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path("runs/early_exit"), help="where the run folders go")
    parser.add_argument("--out")
    args = parser.parse_args()
    results = (
        json.loads(Path(args.out).read_text())["results"]
        if args.out and Path(args.out).is_file()
        else {"ways": [], "turns": []}
    )
    kept = {(row["task"], row["seed"]) for row in results["ways"]}
    with torch.inference_mode():
        for task in args.tasks:
            for seed in TASKS[task]["seeds"]:
                if (task, seed) not in kept:
                    results["ways"] += rows_of(task, seed, run_of(args.folder, task, seed), args.rounds)
                    write(args.out, results, seed=None)
            if task not in {row["task"] for row in results["turns"]}:
                results["turns"] += turns_of(task, run_of(args.folder, task, 0))
                write(args.out, results, seed=None)
    for row in results["turns"]:
        print(row["task"], f"{row['images']} left: one more look, {row['as']} {row['processor_ms']:.3f} ms an image")
    for row in results["ways"]:
        costs = (
            f"{row['looks']:.2f} looks, {row['macs'] / 1e6:.1f} MMAC, {row['ms']:.2f} ({row['processor_ms']:.2f}) ms"
        )
        print(
            row["task"],
            row["seed"],
            f"batch {row['batch']}:",
            row["way"],
            row["name"],
            costs,
            f"{100 * row['accuracy']:.1f} %",
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()

"""Does looking help on the bundled digits, and which ingredients make them learnable in minutes?

Trains the demo for each seed, with the number of updates of its recipe. Then trains, for the same processor time:

- alternatives of a user: the same network on thumbnails only, with random looks, or on the whole image;
- the demo with one ingredient removed or changed.

The number of updates that fit the time is estimated by short trials, so other load on the machine does not reduce it.
Two trainings run at a time, with one thread each. Rows that exist in ``--out`` are kept.

    python benchmarks/bundled.py --seeds 0 1 2 3 4 --other-seeds 0 1 --folder runs/bundled --out
    benchmarks/results/bundled.json
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import torch
from harness import write
from training import affordable, fit

from foveal import get_data, load
from foveal.draws import Draws
from foveal.glimpse.base import GlimpseClassifier
from foveal.recipes import load_recipe

RECIPE = load_recipe("demo")
NETWORK = json.dumps(RECIPE["model"]["backbone_options"])
DEMO = "tnet"
CONTENDERS = {
    DEMO: [],
    "thumbnail only": ["--model.locations", "[]"],
    "random looks": ["--objective.warm_up", "1.0", "--objective.warm_up_looks", "random"],
    "dense": [
        "--model",
        "plain_convnet_32",
        "--model.image_size",
        "256",
        "--model.widths",
        "[16,32,64,96]",
        "--model.global_pool",
        "max",
        "--objective",
        "cross_entropy",
    ],
    "warm-up with random looks": ["--objective.warm_up_looks", "random"],
    "no warm-up": ["--objective.warm_up", "0"],
    "detached policy": ["--model.detached_policy", "true"],
    "average pooling": ["--model.backbone_options", NETWORK.replace('"max"', '"avg"')],
    "looks of 32 px": ["--model.base_size", "32"],
}


def accuracy(model: GlimpseClassifier, data: Any, locations: tuple[int, ...], policy: str = "greedy") -> float:
    right = 0
    with torch.inference_mode():
        for batch in data.loader("test", batch_size=100):
            out = model(batch.views, locations, policy, Draws(0, 0, batch.index), contributions=False)
            right += int((out.logits.argmax(-1) == batch.target).sum())
    return round(right / len(data.test), 4)


def judge(name: str, run: Path, data: Any) -> dict[str, Any]:
    model = load(run)
    if name in ("dense", "thumbnail only"):
        return {"accuracy": accuracy(model, data, ())}
    policy = "random" if name == "random looks" else "greedy"
    budgets = {k: accuracy(model, data, (k,), policy) for k in (1, 2, 3, 4)}
    controls = {"thumbnail": accuracy(model, data, ()), "random": accuracy(model, data, (2,), "random")}
    return {"accuracy": budgets[2], "by_looks": budgets, **controls}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="of the demo")
    parser.add_argument("--other-seeds", type=int, nargs="+", default=[0, 1], help="of everything else")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--folder", type=Path, default=Path("runs/bundled"))
    parser.add_argument("--out")
    args = parser.parse_args()
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in {**RECIPE["data"], "train": 0, "val": 0}.items()}
    data = get_data(**options)
    there = args.out and Path(args.out).is_file()
    rows: list[dict[str, Any]] = json.loads(Path(args.out).read_text())["results"]["runs"] if there else []

    def train(name: str, seed: int, steps: int) -> None:
        if any((row["contender"], row["seed"]) == (name, seed) for row in rows):
            return
        out = args.folder / f"{name.replace(' ', '_')}_{seed}"
        seconds = fit(["demo", *CONTENDERS[name]], out, steps=steps, seed=seed)
        row = {
            "contender": name,
            "seed": seed,
            "steps": steps,
            "cpu_seconds": round(seconds, 1),
            **judge(name, out, data),
        }
        print(json.dumps(row), flush=True)
        rows.append(row)
        order = sorted(rows, key=lambda row: (list(CONTENDERS).index(row["contender"]), row["seed"]))
        write(args.out, {"threads_each": 1, "runs": order}, seed=None)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda seed: train(DEMO, seed, RECIPE["steps"]), args.seeds))
        seconds = median(row["cpu_seconds"] for row in rows if row["contender"] == DEMO)
        others = [name for name in args.contenders if name != DEMO]

        def trial(name: str) -> int:
            return affordable(["demo", *CONTENDERS[name]], seconds, args.folder / f"trial_{name.replace(' ', '_')}")

        steps = dict(zip(others, pool.map(trial, others), strict=True))
        print("steps:", steps, flush=True)
        list(
            pool.map(
                lambda job: train(*job, steps[job[0]]), [(name, seed) for name in others for seed in args.other_seeds]
            )
        )


if __name__ == "__main__":
    main()

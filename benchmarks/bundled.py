"""What does looking buy on the bundled digits? TNet beside what a user would pick instead, each trained for the same time.

Trains, for each seed: the demo's TNet; the same network on thumbnails only; the same with looks taken at random; and the
dense network on the whole image. All have the demo's data and optimiser and as many steps as fit the given seconds of one
processor, which a short trial finds out, so that what else the machine does takes nothing from anyone. Two run at a time.

    python benchmarks/bundled.py --seeds 0 1 2 --seconds 240 --folder runs/bundled --out benchmarks/results/bundled.json
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import write
from training import affordable, fit

from foveal import get_data, load
from foveal.draws import Draws
from foveal.glimpse.base import GlimpseClassifier
from foveal.recipes import load_recipe

CONTENDERS = {
    "tnet": [],
    "thumbnail only": ["--model.locations", "[]"],
    "random looks": ["--objective.warm_up", "1.0"],
    "dense": ["--model", "plain_convnet_32", "--model.image_size", "256"],
}


def accuracy(model: GlimpseClassifier, data: Any, locations: tuple[int, ...], policy: str = "greedy") -> float:
    right = 0
    with torch.inference_mode():
        for batch in data.loader("test", batch_size=100):
            out = model(batch.views, locations, policy, Draws(0, 0, batch.index), contributions=False)
            right += int((out.logits.argmax(-1) == batch.target).sum())
    return round(right / len(data.test), 4)


def judge(name: str, seed: int, steps: int, run: Path, data: Any) -> dict[str, Any]:
    model = load(run)
    row: dict[str, Any] = {"contender": name, "seed": seed, "steps": steps}
    if name in ("dense", "thumbnail only"):
        return row | {"accuracy": accuracy(model, data, ())}
    policy = "random" if name == "random looks" else "greedy"
    budgets = {k: accuracy(model, data, (k,), policy) for k in (1, 2, 3, 4)}
    return row | {
        "accuracy": budgets[2],
        "by_looks": budgets,
        "thumbnail": accuracy(model, data, ()),
        "random": accuracy(model, data, (2,), "random"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--other-seeds", type=int, nargs="+", help="seeds of TNet's rivals, if others than --seeds")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--seconds", type=float, default=240)
    parser.add_argument("--folder", type=Path, default=Path("runs/bundled"))
    parser.add_argument("--out")
    args = parser.parse_args()
    jobs = [(name, seed) for name in args.contenders for seed in (args.seeds if name == "tnet" else args.other_seeds or args.seeds)]
    steps = {name: affordable(["demo", *CONTENDERS[name]], args.seconds, args.folder / "trial") for name in args.contenders}
    print("steps:", steps, flush=True)

    def train(job: tuple[str, int]) -> Path:
        name, seed = job
        out = args.folder / f"{name.replace(' ', '_')}_{seed}"
        fit(["demo", *CONTENDERS[name]], out, steps=steps[name], seed=seed)
        return out

    with ThreadPoolExecutor(2) as pool:
        runs = list(pool.map(train, jobs))
    options = {**load_recipe("demo")["data"], "train": 0, "val": 0}
    data = get_data(**{k: tuple(v) if isinstance(v, list) else v for k, v in options.items()})
    rows = []
    for (name, seed), run in zip(jobs, runs, strict=True):
        rows.append(judge(name, seed, steps[name], run, data))
        print(json.dumps(rows[-1]), flush=True)
    for name in args.contenders:
        got = np.array([row["accuracy"] for row in rows if row["contender"] == name])
        print(f"{name}: {100 * got.mean():.1f} % (standard deviation {100 * got.std(ddof=1 if len(got) > 1 else 0):.1f})")
    write(args.out, {"processor_seconds_each": args.seconds, "threads_each": 1, "runs": rows}, seed=None)


if __name__ == "__main__":
    main()

"""Does training improve the locations of Saccader? Its three stages on CIFAR-10, compared with policies without
learning and with DRAM.

Stage 1 is trained once; the following stages, and DRAM, once for each seed. Measures accuracy and coverage of the test
images by number of glimpses, for: the three stages; the same without stage 2; after stage 2 only; all stages in one
run; ordered logits, Sobel and random looks with the BagNet of stage 1; DRAM. Finished runs and existing rows are kept.

    python benchmarks/saccader.py --root data/cifar10 --folder runs/saccader --seeds 0 1 2 --out
    benchmarks/results/saccader.json
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from harness import write

from foveal import get_data, load
from foveal.draws import Draws
from foveal.evaluation import chosen_boxes, coverage
from foveal.runs import METRICS, WEIGHTS

GLIMPSES = (1, 2, 4, 6, 8, 12, 20)
COVERED = 1000  # number of images for coverage
UNLEARNED = ("ordered_logits", "random", "random_released", "sobel_mean", "sobel_var")
CHAINS = {  # recipe, and the run it starts from
    "stage 2": ("cifar10/saccader_stage2", "stage 1"),
    "saccader": ("cifar10/saccader_stage3", "stage 2"),
    "without stage 2": ("cifar10/saccader_stage3", "stage 1"),
    "one run": ("cifar10/saccader", None),
    "dram": ("cifar10/dram", None),
}


def folder_of(folder: Path, name: str, seed: int) -> Path:
    return folder / f"{name.replace(' ', '_')}.{0 if name == 'stage 1' else seed}"


def fit(folder: Path, root: str, name: str, seed: int, flags: list[str]) -> None:
    """Train a run unless it is finished; continue interrupted training."""
    recipe, before = CHAINS.get(name, ("cifar10/saccader_stage1", None))
    out = folder_of(folder, name, seed)
    if (out / WEIGHTS).is_file():
        return
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
        "--out",
        str(out),
        "--quiet",
    ]
    command += ["--init_from", str(folder_of(folder, before, seed))] if before else []
    command += ["--resume"] if (out / "last.ckpt").is_file() else ["--overwrite"]
    subprocess.run([*command, *flags], check=True)


def measure(run: Path, name: str, seed: int, data: Any, batch_size: int, device: str) -> list[dict[str, Any]]:
    """Accuracy and coverage by policy and number of glimpses. Fewer glimpses are prefixes of the largest number."""
    model = load(run, device=device)
    policies = {"stage 1": UNLEARNED, "saccader": ("greedy", "ordered_logits", "random")}.get(
        name, ("greedy", "random")
    )
    most = max(GLIMPSES)
    right, covered, none, images, looked = Counter[tuple[str, int]](), Counter[tuple[str, int]](), 0, 0, 0
    for batch in data.loader("test", batch_size=batch_size, shuffle=False):
        batch = batch.to(device)
        draws, target = Draws(seed, 0, batch.index), batch.target
        images += len(batch)
        for policy, tried in zip(policies, model.rollouts(batch.views, policies, draws, (most,)), strict=True):
            each = tried.glimpse_logits[:, -most:]
            for k in GLIMPSES:
                logits = each[:, :k].mean(1) if tried.additive else each[:, k - 1]
                right[policy, k] += int((logits.argmax(-1) == target).sum())
        none += int((model(batch.views, (), contributions=False).logits.argmax(-1) == target).sum())
        if looked >= COVERED:
            continue
        looked += len(batch)
        for policy in policies:
            boxes = chosen_boxes(model(batch.views, (most,), policy, draws, contributions=False).glimpses, len(batch))
            for k in GLIMPSES:
                covered[policy, k] += float(coverage(boxes[:, :k], batch.views.sizes).sum())
    about = {"run": name, "seed": seed, "images": images, "training_seconds": seconds_of(run)}
    first = {**about, "policy": "none", "glimpses": 0, "accuracy": none / images, "coverage": 0.0}
    chosen = [(policy, k) for policy in policies for k in GLIMPSES]
    return [first] + [
        {**about, "policy": p, "glimpses": k, "accuracy": right[p, k] / images, "coverage": covered[p, k] / looked}
        for p, k in chosen
    ]


def seconds_of(run: Path) -> float:
    """Training seconds, from the last line of the run's metrics."""
    return float((run / METRICS).read_text().strip().splitlines()[-1].split(",")[2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="folder with CIFAR-10's files")
    parser.add_argument("--folder", type=Path, default=Path("runs/saccader"), help="where the run folders go")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", nargs="+", default=["stage 1", *CHAINS], metavar="ROW", choices=["stage 1", *CHAINS])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="bf16-mixed")
    parser.add_argument(
        "--epochs", type=json.loads, default={}, help='epochs of a row instead of its recipe\'s, as {"stage 1": 15}'
    )
    parser.add_argument("--jobs", type=int, default=2, help="seeds trained at a time")
    parser.add_argument("--out", default=None)
    args = parser.parse_args()

    def flags(name: str) -> list[str]:
        chosen = ["--epochs", str(args.epochs[name])] if name in args.epochs else []
        return [*chosen, "--device", args.device, "--precision", args.precision]

    def chain(seed: int) -> None:
        for name in (row for row in args.rows if row != "stage 1"):
            fit(args.folder, args.root, name, seed, flags(name))

    if "stage 1" in args.rows:
        fit(args.folder, args.root, "stage 1", 0, flags("stage 1"))
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(chain, args.seeds))

    data = get_data("cifar10", root=args.root)
    rows = json.loads(Path(args.out).read_text())["results"] if args.out and Path(args.out).is_file() else []
    for name in args.rows:
        for seed in [0] if name == "stage 1" else args.seeds:
            if any((row["run"], row["seed"]) == (name, seed) for row in rows):
                continue
            rows += measure(folder_of(args.folder, name, seed), name, seed, data, 500, args.device)
            write(args.out, rows, device=args.device, seed=None)
            for row in rows[-len(GLIMPSES) :]:
                print(
                    name,
                    seed,
                    row["policy"],
                    row["glimpses"],
                    f"{100 * row['accuracy']:.2f} %  covering {row['coverage']:.3f}",
                )


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()

"""Does training improve the locations of Saccader? Its three stages on CIFAR-10, compared with policies without
learning and with DRAM.

Stage 1 is trained once; the following stages, and DRAM, once for each seed. Measures accuracy and coverage of the test
images by number of glimpses, for: the three stages, with stage 3 as published; the same without stage 2; after stage 2
only; all stages in one run; ordered logits, Sobel and random looks with the BagNet of stage 1; DRAM. Finished runs and
existing rows are kept.

    python benchmarks/saccader.py --root data/cifar10 --folder runs/saccader --seeds 0 1 2 --out
    benchmarks/results/saccader.json

``--stage3`` compares stage 3 as published with that of the recipe instead, in a few minutes: a smaller BagNet, 20,000
training images, 5,000 validation images. Stages 1 and 2 are trained once, both kinds of stage 3 for each seed, with the
same number of updates, and two kinds between them once; and all stages in one run of as many epochs for each seed. It
also measures the negative log-likelihood, and differences of accuracy on the same images.

    python benchmarks/saccader.py --stage3 --root data/cifar10 --folder runs/saccader_stage3 --seeds 0 1 2 --out
    benchmarks/results/saccader_stage3.json
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import write

from foveal import get_data, load
from foveal.cli import main as foveal
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
PUBLISHED = ["--model.scaled", "false", "--objective.credit", "image", "--objective.trains", "null"]
PUBLISHED += ["--optimiser.lr", "0.01"]
SHORT = ["--epochs", "1", "--batch_size", "64", "--optimiser.warmup", "20"]
STAGE3 = {  # recipe, the run it starts from, flags, and policies that are measured
    "stage 1": ("cifar10/saccader_stage1", None, ["--epochs", "12"], ("ordered_logits",)),
    "stage 2": ("cifar10/saccader_stage2", "stage 1", SHORT, ("greedy",)),
    "new stage 3": ("cifar10/saccader_stage3", "stage 2", SHORT, ("greedy",)),
    "published stage 3": ("cifar10/saccader_stage3", "stage 2", [*SHORT, *PUBLISHED], ("greedy", "ordered_logits")),
    "not scaled": ("cifar10/saccader_stage3", "stage 2", [*SHORT, "--model.scaled", "false"], ("greedy",)),
    "sampled credit": ("cifar10/saccader_stage3", "stage 2", [*SHORT, "--objective.credit", "image"], ("greedy",)),
    "one run": ("cifar10/saccader", None, ["--epochs", "14"], ("greedy", "ordered_logits")),
}
ONCE = ("stage 1", "stage 2", "not scaled", "sampled credit")
STAGE3_DATA = {"train": 20_000, "val": 5_000}
STAGE3_BACKBONE = {"widths": [16, 16, 32, 48], "low_dim": 96}
DIFFERENCES = (  # of accuracy: run and policy, minus run and policy
    (("new stage 3", "greedy"), ("stage 2", "greedy")),
    (("published stage 3", "greedy"), ("stage 2", "greedy")),
    (("new stage 3", "greedy"), ("published stage 3", "greedy")),
    (("new stage 3", "greedy"), ("stage 1", "ordered_logits")),
    (("published stage 3", "greedy"), ("stage 1", "ordered_logits")),
    (("published stage 3", "greedy"), ("published stage 3", "ordered_logits")),
    (("one run", "greedy"), ("new stage 3", "greedy")),
    (("one run", "greedy"), ("one run", "ordered_logits")),
)


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


# ---------------------------------------------------------------------------------------------------- stage 3


def fit_stage3(folder: Path, root: str, name: str, seed: int, first: int, device: str, precision: str) -> float:
    """Train a run of `STAGE3` unless it is finished, from a run with the seed ``first``. Returns the seconds of
    processor time that it took."""
    recipe, before, flags, _ = STAGE3[name]
    out, seconds = folder / f"{name.replace(' ', '_')}.{seed}", folder / f"{name.replace(' ', '_')}.{seed}.seconds"
    if not seconds.is_file():
        command = ["fit", recipe, "--data.root", root, "--seed", str(seed), "--out", str(out), "--overwrite", "--quiet"]
        command += ["--device", device, "--precision", precision]
        command += ["--model.backbone_options", json.dumps(STAGE3_BACKBONE)]
        command += [word for key, value in STAGE3_DATA.items() for word in (f"--data.{key}", str(value))]
        command += ["--init_from", str(folder / f"{before.replace(' ', '_')}.{first}")] if before else []
        began = time.process_time()
        with torch.enable_grad():
            if foveal([*command, *flags]):
                raise SystemExit(f"{out}: training failed")
        seconds.write_text(f"{time.process_time() - began:.1f}")
    return float(seconds.read_text())


def answers(run: Path, data: Any, policies: tuple[str, ...], device: str) -> dict[tuple[str, int], dict[str, Any]]:
    """By policy and number of glimpses: ``right`` (N,) of the test images, mean ``nll``, and ``largest``, the mean over
    images of the largest averaged logit. ``none`` and 0: the BagNet."""
    model, found, counts = load(run, device=device), Counter[tuple[str, int, str]](), GLIMPSES[:-1]
    right: dict[tuple[str, int], list[np.ndarray]] = {}
    images = 0
    for batch in data.loader("test", batch_size=500, shuffle=False):
        batch = batch.to(device)
        images += len(batch)
        tried = model.rollouts(batch.views, (*policies, "exhaustive"), Draws(0, 0, batch.index), (max(counts),))
        logits = {("none", 0): tried[-1].logits}
        for policy, rollout in zip(policies, tried, strict=False):
            logits |= {(policy, k): rollout.glimpse_logits[:, :k].mean(1) for k in counts}
        for key, z in logits.items():
            right.setdefault(key, []).append((z.argmax(-1) == batch.target).cpu().numpy())
            found[(*key, "nll")] += float(torch.nn.functional.cross_entropy(z, batch.target, reduction="sum"))
            found[(*key, "largest")] += float(z.amax(-1).sum())
    return {
        key: {"right": np.concatenate(of)} | {what: found[(*key, what)] / images for what in ("nll", "largest")}
        for key, of in right.items()
    }


def difference(first: list[np.ndarray], second: list[np.ndarray]) -> dict[str, Any]:
    """Accuracy of ``first`` minus that of ``second``, lists of (N,) bool by seed, of the same images. A single entry
    stands for all seeds. The interval (95 %, normal) is that of the mean over seeds, over images."""
    count = max(len(first), len(second))
    pairs = zip(first * (count // len(first)), second * (count // len(second)), strict=True)
    each = np.array([a.astype(float) - b for a, b in pairs])
    by_image = each.mean(0)
    half = 1.959964 * by_image.std(ddof=1) / len(by_image) ** 0.5
    mean = float(by_image.mean())
    return {"difference": mean, "interval": [mean - half, mean + half], "by_seed": each.mean(1).tolist()}


def stage3(args: argparse.Namespace) -> None:
    rows, right = [], {}
    data = get_data("cifar10", root=args.root)
    runs = [(name, seed) for name in STAGE3 for seed in (args.seeds[:1] if name in ONCE else args.seeds)]
    for name, seed in runs:
        seconds = fit_stage3(args.folder, args.root, name, seed, args.seeds[0], args.device, args.precision)
        found = answers(args.folder / f"{name.replace(' ', '_')}.{seed}", data, STAGE3[name][-1], args.device)
        for (policy, k), of in found.items():
            right.setdefault((name, policy, k), []).append(of["right"])
            shown = {"accuracy": float(of["right"].mean()), "nll": of["nll"], "largest": of["largest"]}
            about = {"run": name, "seed": seed, "processor_seconds": seconds, "images": len(of["right"])}
            rows.append({**about, "policy": policy, "glimpses": k, **shown})
            print(name, seed, policy, k, f"{100 * shown['accuracy']:.2f} %  {of['nll']:.3f} nats", flush=True)
        differences = [
            {"first": first, "second": second, "glimpses": k, **difference(right[*first, k], right[*second, k])}
            for first, second in DIFFERENCES
            for k in GLIMPSES
            if {len(right.get((*of, k), ())) for of in (first, second)} <= {1, len(args.seeds)}
        ]
        write(args.out, {"rows": rows, "differences": differences}, device=args.device, seed=None)


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
    parser.add_argument("--stage3", action="store_true", help="compare the two kinds of stage 3 instead")
    args = parser.parse_args()
    if args.stage3:
        stage3(args)
        return

    def flags(name: str) -> list[str]:
        chosen = ["--epochs", str(args.epochs[name])] if name in args.epochs else []
        chosen += PUBLISHED if name in ("saccader", "without stage 2") else []
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

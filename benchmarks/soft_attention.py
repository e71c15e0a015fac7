"""Does soft attention help? Networks of the size of ResNet-20, or of another depth, on part of CIFAR-10, with the same
recipe and several seeds.

Each contender is a recipe of ``cifar10/`` with fewer images and epochs and the cosine schedule; one of them also with a
lower learning rate, and some with other options. The test accuracy is that of the last epoch. Two trainings run at a
time, with one thread each. Runs that were made by the same command are kept, so an interrupted benchmark can be
continued.

    python benchmarks/soft_attention.py --root data/cifar10 --seeds 0 1 2 --epochs 15 --out
    benchmarks/results/soft_attention.json
    python benchmarks/soft_attention.py --root data/cifar10 --depth 8 --contenders plain "attention, bounded"
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from harness import write

CONTENDERS = {
    "plain": ["resnet20"],
    "attention, bounded": ["attn_resnet20"],
    "attention, bounded by 0.5": ["attn_resnet20", "--model.attention_options.bound", "0.5"],
    "attention, scaled": ["attn_resnet20.scaled"],
    "attention, scaled, slower": ["attn_resnet20.scaled"],
    "attention, scaled, at most 4": ["attn_resnet20.clip"],
    "attention, scaled, root temperature": ["attn_resnet20.scaled", "--model.attention_options.temperature", "sqrt"],
    "attention, scaled, gradients cut": ["attn_resnet20.scaled", "--optimiser.clip", "1"],
    "attention, gate": [
        "attn_resnet20",
        "--model.attention_options.mode",
        "gate",
        "--model.attention_options.init",
        "random",
    ],
    "attention, uniform control": ["attn_resnet20.uniform"],
    "SE": ["se_resnet20"],
    "CBAM": ["cbam_resnet20"],
    "ExpAtt": ["expatt_resnet20"],
    "ExpAtt, radius 0.03": ["expatt_resnet20", "--model.conv_options.radius_init", "0.03"],
    "ExpAtt, ratio 0.25": ["expatt_resnet20", "--model.conv_options.ratio", "0.25"],
    "ExpAtt, narrowed control": ["expatt_resnet20", "--model.conv", "narrow"],
}
SLOWER = 0.2  # factor on the learning rate of "slower" contenders


def command(name: str, seed: int, args: argparse.Namespace, out: Path) -> list[str]:
    flags = {
        "model.depth": args.depth,
        "data.root": args.root,
        "data.train": args.train,
        "epochs": args.epochs,
        "seed": seed,
        "device": args.device,
        "precision": args.precision,
        "optimiser.schedule": "cosine",
        "optimiser.warmup": args.warmup,
        "optimiser.lr": args.lr * (SLOWER if name.endswith("slower") else 1),
    }
    recipe, *options = CONTENDERS[name]
    return [
        sys.executable,
        "-m",
        "foveal",
        "fit",
        f"cifar10/{recipe}",
        *options,
        "--out",
        str(out),
        "--overwrite",
        "--quiet",
        *(text for key, value in flags.items() for text in (f"--{key}", str(value))),
    ]


def train(name: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    out = args.folder / f"{name.replace(',', '').replace(' ', '_')}_{args.depth}_{seed}"
    row: dict[str, Any] = {"contender": name, "depth": args.depth, "seed": seed}
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    wanted, made_by = command(name, seed, args, out), out / "command.txt"
    if not made_by.is_file() or made_by.read_text() != " ".join(wanted):
        made_by.unlink(missing_ok=True)
        fit = subprocess.run(wanted, check=False, env=environment, stderr=subprocess.PIPE, text=True)
        if fit.returncode and "the loss is" not in fit.stderr:
            raise RuntimeError(fit.stderr)
        evaluate = [
            sys.executable,
            "-m",
            "foveal",
            "evaluate",
            str(out),
            "--quiet",
            "--device",
            args.device,
            "--batch-size",
            "250",
        ]
        if not fit.returncode:
            subprocess.run(evaluate, check=True, env=environment, stdout=subprocess.DEVNULL)
        made_by.write_text(" ".join(wanted))
    if not (out / "evaluation.json").is_file():
        row |= {"accuracy": None, "diverged": True}  # divergence is a result too
        print(json.dumps(row), flush=True)
        return row
    row["accuracy"] = accuracy_of(json.loads((out / "evaluation.json").read_text()))
    print(json.dumps(row), flush=True)
    return row


def accuracy_of(evaluation: dict[str, Any]) -> float:
    """Test accuracy of the trained network, from 0 to 1."""
    (point,) = [point for point in evaluation["points"] if point["kind"] == "learned"]
    return float(point["accuracy"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="folder with torchvision's CIFAR-10 files")
    parser.add_argument("--train", type=int, default=10_000, help="training images")
    parser.add_argument("--depth", type=int, default=20, help="layers of the networks, 6 n + 2")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--warmup", type=int, default=100)
    parser.add_argument(
        "--precision", choices=("32", "bf16"), default="32", help="of the training; the evaluation's is 32"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--folder", type=Path, default=Path("runs/soft_attention"))
    parser.add_argument("--out")
    args = parser.parse_args()
    jobs = [(name, seed, args) for seed in args.seeds for name in args.contenders]
    scale = {key: getattr(args, key) for key in ("train", "epochs", "lr", "warmup", "precision")} | {
        "schedule": "cosine",
        "test": 10_000,
    }
    rows = []
    with ThreadPoolExecutor(args.jobs) as pool:
        for row in pool.map(lambda job: train(*job), jobs):
            rows.append(row)
            write(args.out, {"scale": scale, "runs": rows}, device=args.device, seed=None)
    for name in args.contenders:
        mine = [row["accuracy"] for row in rows if row["contender"] == name]
        got = 100 * np.array([accuracy for accuracy in mine if accuracy is not None])
        if len(got):
            print(
                f"{name}: {got.mean():.2f} % (standard deviation {got.std(ddof=1 if len(got) > 1 else 0):.2f})",
                end="; ",
            )
        print(f"{name}: {len(mine) - len(got)} of {len(mine)} diverged")


if __name__ == "__main__":
    main()

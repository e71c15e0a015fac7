"""Do predictions depend on the regions that a model highlights? Looks, attention maps and Grad-CAM on the bundled
digits, compared with random regions.

Trains three networks for about the same processor time on canvases of 128 px: TNet, which highlights its looks; its
backbone on the whole image (at 64 px), explained by Grad-CAM; and a ResNet-8 with attention pooling (at 48 px),
explained by its attention map and by Grad-CAM. Measures on test images: deletion and insertion; the pointing game; and,
at the area of the first look of TNet, how often half of the digit is inside and the accuracy. Finished runs and
existing rows are kept.

    python benchmarks/faithfulness.py --seeds 0 1 --out benchmarks/results/faithfulness.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import write
from training import DIGITS, fit

from foveal import get_data, load
from foveal.evaluation import Setting, evaluate_faithfulness
from foveal.prediction import count_cost
from foveal.recipes import load_recipe
from foveal.runs import WEIGHTS

DATA: dict[str, Any] = {"canvas": 128, "digit": (20, 28), "distractors": 2}
CONTENDERS: dict[str, dict[str, Any]] = {  # options of training, and explanations
    "tnet": {"steps": 1800, "flags": [], "ways": {"two looks": {}, "four looks": {"locations": (4,)}}},
    "dense": {
        "steps": 1500,
        "flags": ["--model", "plain_convnet_32", "--model.image_size", "64"],
        "ways": {"Grad-CAM": {"cam": "stages.3"}},
    },
    "attention": {
        "steps": 1200,
        "ways": {"attention map": {}, "Grad-CAM": {"cam": "layer3"}},
        "flags": [
            "--model",
            "resnet20_cifar",
            "--model.depth",
            "8",
            "--model.head",
            "attnpool",
            "--model.image_size",
            "48",
        ],
    },
}


def run_of(folder: Path, name: str, seed: int) -> Path:
    """Load a run, after training it if needed. Its processor time is stored in the run folder."""
    out = folder / f"{name}_{seed}"
    if not (out / WEIGHTS).is_file() or not (out / "processor_seconds").is_file():
        drawn = [part for key, value in DATA.items() for part in (f"--data.{key}", json.dumps(value))]
        took = fit([DIGITS, *CONTENDERS[name]["flags"], *drawn], out, steps=CONTENDERS[name]["steps"], seed=seed)
        (out / "processor_seconds").write_text(f"{took:.1f}\n")
    return out


def row_of(name: str, seed: int, way: str, run: Path, data: Any, images: int, area: float | None) -> dict[str, Any]:
    """Results of one explanation of a run at ``area``, or at that of the first region if None, linearly interpolated
    between steps."""
    model = load(run, device="cpu").eval()
    setting = Setting(limit=images, batch_size=100, device="cpu", seed=seed)
    found = evaluate_faithfulness(model, data, **CONTENDERS[name]["ways"][way], setting=setting)
    area = found.curves[0].share[1] if area is None else area
    inside = found.found
    assert inside is not None
    curves = {
        curve.change: {
            "auc": curve.auc,
            "auc_random": curve.auc_random,
            "difference": curve.difference,
            "interval": curve.interval,
            "share": curve.share[-1],
            "accuracy": float(np.interp(area, curve.share, curve.accuracy)),
            "accuracy_random": float(np.interp(area, curve.share, curve.random_accuracy)),
        }
        for curve in found.curves
    }
    half = {
        key: float(np.interp(area, inside.share, values))
        for key, values in (("half", inside.half), ("random", inside.random_half))
    }
    centre = {key: getattr(found.pointing[0], key) for key in ("share", "interval", "random", "random_interval")}
    return {
        "contender": name,
        "seed": seed,
        "way": way,
        "images": found.about["images"],
        "steps": CONTENDERS[name]["steps"],
        "processor_seconds": float((run / "processor_seconds").read_text()),
        "macs": count_cost(model, DATA["canvas"]).macs,
        "accuracy": found.curves[0].accuracy[0],
        "regions": found.about["regions"],
        "area": area,
        "pointing": centre,
        "inside": half,
        **curves,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--images", type=int, default=500, help="test images")
    parser.add_argument("--folder", type=Path, default=Path("runs/faithfulness"), help="where the run folders go")
    parser.add_argument("--out")
    args = parser.parse_args()
    options = {**load_recipe(DIGITS)["data"], **DATA, "train": 0, "val": 0, "test": args.images}
    data = get_data(**options)
    rows = json.loads(Path(args.out).read_text())["results"] if args.out and Path(args.out).is_file() else []
    kept = {(row["contender"], row["seed"], row["way"]) for row in rows}
    for seed in args.seeds:
        for name, how in CONTENDERS.items():
            run = run_of(args.folder, name, seed)
            for way in how["ways"]:
                if (name, seed, way) not in kept:
                    area = next((row["area"] for row in rows if row["way"] == "two looks"), None)
                    rows.append(row_of(name, seed, way, run, data, args.images, area))
                    write(args.out, rows, seed=None)
    for row in rows:
        print(
            f"{row['contender']} {row['seed']}, {row['way']}: {100 * row['accuracy']:.1f} % right, "
            f"{row['processor_seconds']:.0f} s"
        )
        for change in ("deletion", "insertion"):
            of = row[change]
            print(f"    {change}: {100 * of['auc']:.1f} beside {100 * of['auc_random']:.1f}", end="; ")
            print(
                f"at {100 * row['area']:.1f} % of the image {100 * of['accuracy']:.1f} beside "
                f"{100 * of['accuracy_random']:.1f} % right"
            )
        inside, centre = row["inside"], row["pointing"]
        print(f"    pointing: {100 * centre['share']:.1f} beside {100 * centre['random']:.1f} %", end="; ")
        print(f"half of the digit inside: {100 * inside['half']:.1f} beside {100 * inside['random']:.1f} %")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()

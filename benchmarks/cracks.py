"""Cracks: a class that 52 of 399 photographs have, judged by average precision.

KolektorSDD (Tabernik et al., 2019): grey photographs of electrical commutators, 500 x 1,260 px; a crack is some 280 px
long and as thin as a hair. ``split`` of ``labels.json`` gives the training and the 79 test images, 10 of them with a
crack. Of the training images, by class and number, every fifth is for validation.

One TNet with a MobileNetV2 from ImageNet's weights is trained. The weights with the best average precision on the
validation images are kept. Then ``foveal evaluate`` with all numbers of looks, ``foveal threshold`` for a recall of
0.95, ``foveal evaluate`` with this threshold, and ``foveal explain`` for a test image with a crack.

    python benchmarks/cracks.py --root kolektorsdd --weights imagenet-mobilenetv2-int8.npz --folder runs/cracks
    --out benchmarks/results/cracks.json
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import mobilenet_int8
from harness import write
from training import fit

from foveal.files import replacing

CLASSES = ("fine", "crack")
HELD = 5  # every fifth training image of a class is for validation
AIM = "recall=0.95"
FLAGS = """--data manifest --model tnet --model.backbone mobilenetv2_100
--model.backbone_options {"pad_type":"same"} --model.base_size 160 --model.locations [2] --batch_size 16
--class_weights balanced --monitor average_precision --val_every 40 --optimiser.name adamw --optimiser.lr 1e-3
--optimiser.weight_decay 1e-2 --optimiser.schedule cosine --optimiser.warmup 20"""


def prepare(root: Path, folder: Path) -> tuple[Path, list[str], list[str]]:
    """Write the table of images. Returns it, the training images, and the test images with a crack."""
    labels = json.loads((root / "labels.json").read_text())
    rows, counts = [], [0, 0]
    for name, of_image in sorted(labels.items()):
        kind, split = bool(of_image["defect"]), "test"
        if of_image["split"] == "train":
            counts[kind] += 1
            split = "val" if counts[kind] % HELD == 0 else "train"
        rows.append((str((root / f"{name}.jpg").resolve()), CLASSES[kind], split))
    folder.mkdir(parents=True, exist_ok=True)
    table = folder / "table.csv"
    with replacing(table) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "label", "split"), *rows])
    cracks = [path for path, label, split in rows if (label, split) == ("crack", "test")]
    return table, [path for path, _, split in rows if split == "train"], cracks


def foveal(*arguments: str) -> None:
    """Run a command of foveal."""
    subprocess.run([sys.executable, "-m", "foveal", *arguments], check=True)


def read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder with labels.json and the images, 000.jpg ...")
    parser.add_argument("--weights", type=Path, required=True, help="archive of MobileNetV2, see mobilenet_int8.py")
    parser.add_argument("--folder", type=Path, default=Path("runs/cracks"), help="for the table, weights and the run")
    parser.add_argument("--steps", type=int, default=400, help="updates; the default takes some 7 minutes of one core")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cracks.json"))
    args = parser.parse_args()

    table, training, cracks = prepare(args.root, args.folder)
    weights, run = args.folder / "mobilenetv2.safetensors", args.folder / f"run_{args.seed}"
    if not weights.is_file():
        mobilenet_int8.write(args.weights, training[:64], weights)
    flags = [*FLAGS.split(), "--data.file", str(table), "--model.pretrained", str(weights)]
    seconds = fit(flags, run, steps=args.steps, seed=args.seed)
    foveal("evaluate", str(run), "--locations", "0..4", "--measure", "none")
    plain = read(run / "evaluation.json")
    foveal("threshold", str(run), "--at", AIM)
    foveal("evaluate", str(run), "--measure", "none", "--out", str(run / "decided"))
    foveal("explain", str(run), cracks[0], "--out", str(args.folder / "crack.html"))
    found = read(run / "threshold.json")["thresholds"][0]
    decided = read(run / "decided" / "evaluation.json")
    write(
        args.out,
        {
            "command": " ".join(["python", *sys.argv]),
            "flags": FLAGS.split(),
            "seed": args.seed,
            "steps": args.steps,
            "processor_seconds": round(seconds),
            "summary": read(run / "summary.json"),
            "points": plain["points"],
            "threshold": {key: value for key, value in found.items() if key != "curve"},
            "decided": [point for point in decided["points"] if point["kind"] == "learned"][-1],
        },
    )


if __name__ == "__main__":
    main()

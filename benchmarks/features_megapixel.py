"""Training on features that were made once, beside training through the backbone: one digit on canvases of 1,500 px.

The canvases are those of ``megapixel/scan_one_1500``, written as PNG files. ``foveal embed`` encodes their tiles by a
MobileNetV2 with ImageNet's weights, which is frozen: 64 px at full resolution, and the same tiles at a quarter of it.
``mil`` is trained on the fine features. ``tile_scan`` chooses fine tiles by the coarse ones. The settings are those of
the recipe ``features``; none was chosen by results. Figures of training through the backbone are copied from
``results/scan.json`` and ``results/peers.json``.

Times are processor seconds. Images, features and runs that are there are not made again.

    python benchmarks/features_megapixel.py --root mnist --weights imagenet-mobilenetv2-int8.npz --photos kolektorsdd
    --out benchmarks/results/features_megapixel.json
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import Any

import mobilenet_int8
import numpy as np
import torch
from cracks import read
from features import encode, fit, logits_of, of_images
from harness import write
from PIL import Image

from foveal.data import get_data
from foveal.files import replacing
from foveal.metrics import wilson
from foveal.prediction import count_cost

CANVAS = 1500
LEVELS = {
    "64@1": {"tile_size": 64, "tile_stride": 32, "scale": 1},
    "16@4": {"tile_size": 16, "tile_stride": 8, "scale": 4},
}
WAYS: dict[str, dict[str, Any]] = {
    "mil": {"level": "64@1", "coarse": None, "epochs": 30},
    "tile_scan": {"level": "64@1", "coarse": "16@4", "epochs": 30},
}
LOOKS = (1, 4, 16)
THEMSELVES = 50
"""Number of test images that are also classified as images, by the first run."""


def prepare(root: Path, folder: Path, train: int, test: int) -> tuple[Path, dict[str, list[str]]]:
    """Write the canvases and their table. Returns the table, and the images of each split."""
    data = get_data("megapixel_digits", root=str(root), canvas=CANVAS, task="one", train=train, val=0, test=test)
    table, rows = folder / "table.csv", []
    paths: dict[str, list[str]] = {"train": [], "test": []}
    (folder / "canvases").mkdir(parents=True, exist_ok=True)
    for split, files in paths.items():
        canvases = getattr(data, split)
        for i, target in enumerate(canvases.targets.tolist()):
            file = folder / "canvases" / f"{split}_{i:05}.png"
            if not file.is_file():
                pixels = canvases.open(i).look(np.array([[0, 0, CANVAS, CANVAS]], float), (CANVAS, CANVAS))[0, 0]
                with replacing(file) as unfinished:
                    Image.fromarray((255 * pixels).round().byte().numpy()).save(unfinished, format="png")
            files.append(str(file))
            rows.append((str(file.resolve()), canvases.classes[target], split))
    with replacing(table) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as opened:
        csv.writer(opened).writerows([("path", "label", "split"), *rows])
    return table, paths


def share(right: np.ndarray) -> dict[str, Any]:
    """Mean accuracy of several runs, and its 95 % interval over test images.

    Args:
        right: (runs, images) whether answers are right.
    """
    low, high = wilson(round(float(right.mean(0).sum())), right.shape[1])
    return {"accuracy": round(float(right.mean()), 4), "interval": [round(low, 4), round(high, 4)]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder of MNIST")
    parser.add_argument("--weights", type=Path, required=True, help="archive of MobileNetV2, see mobilenet_int8.py")
    parser.add_argument("--photos", type=Path, required=True, help="folder of photographs that adapt its batch norms")
    parser.add_argument("--folder", type=Path, default=Path("runs/features_megapixel"))
    parser.add_argument("--train", type=int, default=1000, help="number of training canvases")
    parser.add_argument("--test", type=int, default=300, help="number of test canvases")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)

    table, splits = prepare(args.root, args.folder, args.train, args.test)
    weights = args.folder / "mobilenetv2.safetensors"
    if not weights.is_file():
        mobilenet_int8.write(args.weights, [str(path) for path in sorted(args.photos.glob("*.jpg"))[:64]], weights)
    images = [Path(path) for paths in splits.values() for path in paths]
    made = [encode(images, level, tiles, args.folder, weights) for level, tiles in LEVELS.items()]
    rows = []
    for name, way in WAYS.items():
        runs = [fit(table, args.folder, way, seed, args.folder / f"{name}_{seed}") for seed in args.seeds]
        for looks, policy in (
            [(None, None)] if way["coarse"] is None else [(k, p) for p in (None, "random") for k in LOOKS]
        ):
            right = []
            for run in runs:
                targets, logits = logits_of(run, table, args.folder, way, looks, policy)
                right.append(logits.argmax(1) == targets)
            row = {"name": name, "looks": looks, "policy": policy, **share(np.stack(right))}
            row |= {"single": [round(float(one.mean()), 4) for one in right]}
            row |= {"seconds": [read(run / "processor_seconds.json") for run in runs]}
            if policy is None:
                row["macs"] = count_cost(runs[0], (CANVAS, CANVAS), looks).macs
            if policy is None and looks in (None, 4):
                own, seconds = of_images(runs[0], splits["test"][:THEMSELVES], looks)
                targets, logits = logits_of(runs[0], table, args.folder, way, looks)
                row |= {
                    "difference": float(np.abs(own - logits[:THEMSELVES]).max()),
                    "seconds_image": round(seconds, 3),
                }
            rows.append(row)
            print(row, flush=True)
    stored = {
        name: json.loads((Path(__file__).parent / "results" / f"{name}.json").read_text())["results"]
        for name in ("scan", "peers")
    }
    beside = [
        {"name": f"{row['contender']}", "accuracy": row["accuracy"], "seconds": row["processor_seconds"]}
        for row in stored["peers"]["rows"]
        if row["task"] == "one" and row["contender"] in ("mil", "dense, a quarter")
    ]
    beside += [
        {"name": "scan, 4 looks", "accuracy": row["accuracy"]["4"], "seconds": row["processor_seconds"]}
        for row in stored["scan"]["trained"]
        if row["recipe"] == "scan_one_1500"
    ]
    counts = {"train": args.train, "test": args.test, "seeds": args.seeds, "themselves": THEMSELVES}
    write(args.out, {**counts, "features": made, "rows": rows, "beside": beside})


if __name__ == "__main__":
    main()

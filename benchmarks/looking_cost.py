"""Cost of a prediction from disk by image size: Saccader as released, Saccader with a separate classifier, and TNet.

One tiled pyramidal JPEG file per size, in the page cache. A prediction opens, reads and classifies it. Saccader as
released processes the whole image: once at 224 px for any file, and once at the full size of the file. Weights are
random; the cost does not depend on them. For models too large to run, only the MACs are counted.

    python benchmarks/looking_cost.py --folder runs/pyramids --seconds 10 --out benchmarks/results/looking_cost.json
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from harness import write
from traversal import write_pyramid

from foveal.evaluation import measure
from foveal.glimpse.base import GlimpseClassifier
from foveal.images import ImageViews
from foveal.models import create_classifier
from foveal.prediction import Predictor
from foveal.prediction.cost import count_cost

SIDES = (224, 896, 4096)
LARGEST = 896  # largest side for the released model; above it, activations take gigabytes


def contenders(side: int) -> dict[str, tuple[str, dict[str, Any]]]:
    """Name and options of every model for images of this side."""
    found: dict[str, tuple[str, dict[str, Any]]] = {
        "saccader_bagnet77.reference, sees 224 px": ("saccader_bagnet77.reference", {}),
        "saccader_separate, resnet50, 6 glimpses": ("saccader_separate", {}),
        "tnet, efficientnet_b0, locations 2,1": ("tnet", {}),
    }
    if side > 224:
        found["saccader_bagnet77.reference, sees all"] = ("saccader_bagnet77.reference", {"image_size": side})
    return found


def row(name: str, model: GlimpseClassifier, file: Path, side: int, seconds: float, run: bool) -> dict[str, Any]:
    cost = count_cost(model, side)
    result: dict[str, Any] = {
        "model": name,
        "side": side,
        "macs": cost.macs,
        "parameters": cost.parameters,
        "measured": None,
    }
    if run:
        measured = measure(
            model, lambda n: ImageViews([Predictor(model).open(file) for _ in range(n)]), 1, seconds=seconds
        )
        result["measured"] = asdict(measured)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the files are, or go")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--out", default=None)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for side in SIDES:
        file = args.folder / f"{side}.tif"
        if not file.exists():
            write_pyramid(file, side)
        for name, (model_name, options) in contenders(side).items():
            run = not name.endswith("sees all") or side <= LARGEST
            torch.manual_seed(0)
            model = create_classifier(model_name, num_classes=1000, **options).eval()
            rows.append(row(name, model, file, side, args.seconds, run))
            told = rows[-1]["measured"]
            timed = (
                f"{told['p50']:8.1f} ms  {told['peak_memory'] / 2**20:7.0f} MiB  {told['bytes_read'] / 1024:7.0f} KiB"
                if told
                else "counted only"
            )
            print(f"{side:5d}  {name:45s} {rows[-1]['macs'] / 1e9:8.2f} GMACs  {timed}", flush=True)
            write(args.out, rows)


if __name__ == "__main__":
    main()

"""Cracks: at which scale does a network from ImageNet tell them, on parts that it has not seen?

The training images of KolektorSDD (see ``cracks.py``) show 40 parts, eight images each, in the order of their numbers.
Neighbours show the same part, so images that are held out one by one are easier than those of new parts. Here every
fourth part is held out, in turn; test images are not read.

Whole images at several scales pass through MobileNetV2 with ImageNet's weights, which stay as they are. A feature map
is pooled by its mean, or by the mean of its largest 2 %. A logistic regression of the pooled features is fitted to the
images of the other parts. The rows are average precisions, means over the four folds, and the cracks that rank below
the first quarter of the images of their fold, of which an eighth has a crack.

    python benchmarks/cracks_scales.py --root kolektorsdd --weights imagenet-mobilenetv2-int8.npz
    --features features.npz --out benchmarks/results/cracks_scales.json
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import mobilenet_int8
import numpy as np
import torch
from cracks import average_precision
from harness import write
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from foveal.files import replacing

SCALES = (1.0, 0.64, 0.448, 0.32)  # looks of 500, 320, 224 and 160 px at cells of 500 px
TAPS = ("blocks.5", "feat")
POOLS = ("avg", "top")
INVERSE_PENALTY = 0.1
PART, FOLDS = 8, 4
TOP = 50  # one position of so many counts as large


def training_images(root: Path) -> tuple[list[str], np.ndarray]:
    """Names (N,) of the training images in order, and whether each has a crack, (N,) bool."""
    labels = json.loads((root / "labels.json").read_text())
    names = sorted(name for name, of in labels.items() if of["split"] == "train")
    return names, np.array([bool(labels[name]["defect"]) for name in names])


@torch.inference_mode()
def pooled(root: Path, weights: Path) -> dict[str, np.ndarray]:
    """Pooled features (N, channels) of the training images, by scale, part of the network and pooling."""
    network = mobilenet_int8.convert(weights).eval().to(memory_format=torch.channels_last)
    maps: dict[str, Tensor] = {}

    def keep(name: str, module: nn.Module) -> None:
        module.register_forward_hook(lambda _m, _i, out: maps.__setitem__(name, out))

    for name in TAPS[:-1]:
        keep(name, network.get_submodule(name))
    mean, std = (torch.tensor(network.pretrained_cfg[key])[:, None, None] for key in ("mean", "std"))
    found: dict[str, list[np.ndarray]] = {}
    for name in training_images(root)[0]:
        image = Image.open(root / f"{name}.jpg").convert("L")
        for scale in SCALES:
            width, height = round(image.width * scale), round(image.height * scale)
            pixels = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR), dtype=np.float32) / 255
            seen = (torch.from_numpy(pixels).expand(3, height, width) - mean) / std
            maps["feat"] = network.forward_features(seen[None].contiguous(memory_format=torch.channels_last))
            for tap in TAPS:
                values = maps[tap][0].flatten(1)
                top = values.topk(max(1, values.shape[1] // TOP), 1).values
                for pool, of in (("avg", values), ("top", top)):
                    found.setdefault(f"{scale}|{tap}|{pool}", []).append(of.mean(1).numpy().copy())
    return {key: np.stack(values) for key, values in found.items()}


def across_parts(features: np.ndarray, true: np.ndarray) -> tuple[float, np.ndarray]:
    """Mean average precision over the folds, and the rank of each image, 0 to 1, in its fold."""
    fold = np.arange(len(true)) // PART % FOLDS
    found, rank = [], np.zeros(len(true))
    for held in (fold == number for number in range(FOLDS)):
        model = LogisticRegression(C=INVERSE_PENALTY, class_weight="balanced", max_iter=300)
        scores = make_pipeline(StandardScaler(), model).fit(features[~held], true[~held])
        scores = scores.decision_function(features[held])
        found.append(average_precision(true[held], scores))
        rank[held] = (-scores).argsort().argsort() / len(scores)
    return float(np.mean(found)), rank


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder with labels.json and the images, 000.jpg ...")
    parser.add_argument("--weights", type=Path, required=True, help="archive of MobileNetV2, see mobilenet_int8.py")
    parser.add_argument("--features", type=Path, required=True, help="file of pooled features, made if missing")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cracks_scales.json"))
    args = parser.parse_args()
    if not args.features.is_file():
        began = time.process_time()
        features = pooled(args.root, args.weights)
        print(f"features: {time.process_time() - began:.0f} s")
        with replacing(args.features) as unfinished, unfinished.open("wb") as file:
            np.savez(file, **features)  # type: ignore[arg-type]
    names, true = training_images(args.root)
    rows: list[dict[str, Any]] = []
    with np.load(args.features, allow_pickle=False) as stored:
        for scale in SCALES:
            row: dict[str, Any] = {"scale": scale}
            for tap in TAPS:
                for pool in POOLS:
                    row[f"{tap}.{pool}"], rank = across_parts(stored[f"{scale}|{tap}|{pool}"], true)
                    row[f"{tap}.{pool}.missed"] = [names[i] for i in np.flatnonzero(true) if rank[i] > 0.25]
            rows.append(row)
            print(row)
    write(args.out, {"images": len(true), "cracks": int(true.sum()), "parts": len(true) // PART, "rows": rows})


if __name__ == "__main__":
    main()

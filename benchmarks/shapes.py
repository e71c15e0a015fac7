"""What should the looks of TNet cover in images that are not square?

KolektorSDD, 399 grey photographs of 500 x 1240 to 1270 px, of which 52 show a crack. Four geometries of TNet, each with
MobileNetV2 and ImageNet weights, the same images in the same order and the same number of updates:

- square: the first look is the square around the image, and the cells divide this square, as in earlier versions.
- letterbox: the first look is the same; the cells are squares inside the image.
- fit: the first look is the whole image, squashed; the cells are squares inside the image. This is the default.
- squash: the first look is the whole image, squashed; the cells have the image's aspect ratio and are squashed too.

Nothing is selected on validation images, so the models are evaluated on them too: 143 images with 18 cracks outside the
training set, and the 79 test images alone. Also measures the share of the looks inside the image, for images of other
shapes too. Finished runs are kept.

    python benchmarks/shapes.py --root kolektorsdd --weights imagenet-mobilenetv2-int8.npz --raster
    rio-tiler-cog_world.tif --out benchmarks/results/shapes.json
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mobilenet_int8
import numpy as np
import torch
from harness import write
from torchmetrics.functional.classification import binary_auroc, binary_average_precision

from foveal import get_data, load, open_image
from foveal.data import DataModule
from foveal.evaluation.looks import coverage
from foveal.files import replacing
from foveal.glimpse.base import enclosing_square
from foveal.glimpse.grid import share_inside
from foveal.glimpse.tnet import TNet
from foveal.recipes.fit_config import FitConfig, fit_config
from foveal.registry import MODELS
from foveal.runs import WEIGHTS

FOLDS = 5  # every fifth training image of a class is for validation
BUDGETS = (0, 1, 2, 3)
RANDOM = 2  # number of looks that is also measured with random looks
JUDGED = 16  # images at a time


@MODELS.register("tnet_letterbox")
class Letterbox(TNet):
    """TNet with cells inside the image and a first look at the square around it."""

    def root(self, sizes: np.ndarray) -> np.ndarray:
        return enclosing_square(sizes)


WAYS: dict[str, dict[str, Any]] = {
    "square": {"name": "tnet", "fit_grid": False},
    "letterbox": {"name": "tnet_letterbox"},
    "fit": {"name": "tnet"},
    "squash": {"name": "tnet", "squash": True},
}


def prepare(root: Path, folder: Path) -> tuple[Path, list[str]]:
    """Write the table of images, and return it with the training images."""
    labels = json.loads((root / "labels.json").read_text())
    rows, seen = [], {0: 0, 1: 0}
    for name, about in sorted(labels.items()):
        crack, split = int(about["defect"]), "test"
        if about["split"] == "train":
            seen[crack] += 1
            split = "val" if seen[crack] % FOLDS == 0 else "train"
        rows.append((str((root / f"{name}.jpg").resolve()), ("whole", "crack")[crack], split))
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / "table.csv") as unfinished, unfinished.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "label", "split"), *rows])
    return folder / "table.csv", [path for path, _, split in rows if split == "train"]


def train(way: str, seed: int, steps: int, table: Path, weights: Path, out: Path) -> float:
    """Train, and return the seconds of processor time that it took."""
    model = {
        "backbone": "mobilenetv2_100",
        "backbone_options": {"pad_type": "same"},
        "base_size": 128,
        "locations": [2],
        "pretrained": str(weights),
        **WAYS[way],
    }
    config = FitConfig.from_dict(
        {
            "model": model,
            "data": {"name": "manifest", "file": str(table), "augmentation": "light"},
            "class_weights": "balanced",
            "optimiser": {"name": "adamw", "lr": 5e-4, "weight_decay": 1e-2, "schedule": "cosine", "warmup": 10},
            "steps": steps,
            "batch_size": 16,
            "val_every": 10**6,
            "device": "cpu",
            "seed": seed,
        }
    )
    began = time.process_time()
    fit_config(config, out, overwrite=True, quiet=True)
    return time.process_time() - began


def judged(model: TNet, data: DataModule, looks: int, policy: str) -> Iterator[dict[str, Any]]:
    """Metrics on the images outside the training set: one row for all of them, and one for the test images alone."""
    positive = data.classes.index("crack")
    scores, cracks, test, shares, covered, taken = [], [], [], [], [], []
    for split in ("val", "test"):
        for batch in data.loader(split, batch_size=JUDGED, shuffle=False):
            with torch.inference_mode():
                seen = model(batch.views, locations=(looks,) if looks else (), policy=policy, contributions=False)
            which, boxes = seen.glimpses.image, seen.glimpses.box
            scores.append((seen.logits[:, positive] - seen.logits[:, 1 - positive]).float())
            cracks.append((batch.target == positive).long())
            test += [split == "test"] * len(batch)
            shares.append(share_inside(boxes[:, None], batch.views.sizes[which]))
            chosen = seen.glimpses.level > 1
            each = np.full((len(batch), looks, 4), np.nan)
            for i in range(len(batch)):
                mine = boxes[chosen & (which == i)]
                each[i, : len(mine)] = mine
            covered.append(coverage(each, batch.views.sizes))
            taken.append(seen.locations)
    score, crack = torch.cat(scores), torch.cat(cracks)
    for images, part in (("unseen", np.ones(len(test), dtype=bool)), ("test", np.array(test))):
        some = torch.from_numpy(np.flatnonzero(part))
        yield {
            "images": images,
            "count": len(some),
            "cracks": int(crack[some].sum()),
            "policy": policy,
            "looks": looks,
            "locations": round(float(np.concatenate(taken)[part].mean()), 3),
            "average_precision": round(float(binary_average_precision(score[some], crack[some])), 4),
            "auroc": round(float(binary_auroc(score[some], crack[some])), 4),
            "accuracy": round(float(((score[some] > 0).long() == crack[some]).float().mean()), 4),
            "inside": round(float(np.concatenate(shares).mean()), 4),
            "covered": round(float(np.concatenate(covered)[part].mean()), 4),
        }


def shares(way: str, name: str, size: tuple[int, int]) -> dict[str, Any]:
    """Share of each look inside an image: of the first look, of all its cells that can be chosen, and of all cells of
    these."""
    options = dict(WAYS[way])
    model = {"tnet": TNet, "tnet_letterbox": Letterbox}[options.pop("name")](
        2, backbone="test_efficientnet", base_size=32, **options
    )
    levels = [model.root(np.array([size]))]
    for _ in range(2):
        grids = [model.cells(box[None, None], np.array([size])) for box in levels[-1]]
        levels.append(np.concatenate([cells[offered] for cells, offered in grids]))
    found = [share_inside(boxes[None], np.array([size])) for boxes in levels]
    told = {
        f"level_{i}": {"looks": of.size, "mean": round(float(of.mean()), 4), "least": round(float(of.min()), 4)}
        for i, of in enumerate(found, start=1)
    }
    return {"way": way, "image": name, "size": list(size), **told}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder with labels.json and the photographs, NNN.jpg")
    parser.add_argument("--weights", required=True, help="archive of MobileNetV2, see mobilenet_int8.py")
    parser.add_argument("--raster", help="an image twice as wide as high, for the shares")
    parser.add_argument("--folder", type=Path, default=Path("runs/shapes"), help="where the run folders go")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=70, help="updates of 16 images")
    parser.add_argument("--out")
    args = parser.parse_args()
    torch.set_num_threads(1)
    table, images = prepare(args.root, args.folder)
    weights = args.folder / "mobilenetv2.safetensors"
    if not weights.is_file():
        mobilenet_int8.write(args.weights, images, weights)
    data = get_data("manifest", file=str(table))
    sizes = {"KolektorSDD": (500, 1260), "3 : 4": (3000, 4000), "9 : 16": (1080, 1920), "1 : 10": (500, 5000)}
    if args.raster:
        with open_image(args.raster) as raster:
            sizes["world"] = raster.size
    results: dict[str, list] = {
        "shares": [shares(way, name, size) for name, size in sizes.items() for way in args.ways],
        "trained": [],
        "rows": [],
    }
    for seed in args.seeds:
        for way in args.ways:
            out = args.folder / f"{way}_{seed}"
            if not (out / WEIGHTS).is_file() or not (out / "trained.json").is_file():
                took = train(way, seed, args.steps, table, weights, out)
                (out / "trained.json").write_text(
                    json.dumps({"steps": args.steps, "processor_seconds": round(took, 1)}) + "\n"
                )
            about = {"way": way, "seed": seed}
            results["trained"].append({**about, **json.loads((out / "trained.json").read_text())})
            model = load(out).eval()
            assert isinstance(model, TNet)
            for looks, policy in [*((k, "greedy") for k in BUDGETS), (RANDOM, "random")]:
                results["rows"] += [{**about, **row} for row in judged(model, data, looks, policy)]
            print(json.dumps([row for row in results["rows"] if row["images"] == "unseen"][-3]), flush=True)
            write(args.out, results, seed=None)
    write(args.out, results, seed=None)


if __name__ == "__main__":
    main()

"""Training on features that were made once, beside training through the backbone: cracks of KolektorSDD.

Images, splits and the measure, average precision on 79 test images, are those of `cracks.py`; so is the network, a
MobileNetV2 with ImageNet's weights, which is frozen here. ``foveal embed`` makes features of tiles at several levels.
``mil`` is trained on those of one level. ``tile_scan`` chooses tiles by those of a coarser level. The grid of ``mil``,
and then the coarser level of the same grid, were chosen by average precision on training and validation images, with
every fourth part held out in turn (``cracks.py --fold``), for one seed. Then runs
with several seeds are trained on the training images. The first run of each is also given the test images themselves:
it encodes what it needs.

Times are processor seconds. Features and runs that are there are not made again. Figures of training through the
backbone are copied from ``results/cracks.json``.

    python benchmarks/features.py --root kolektorsdd --weights imagenet-mobilenetv2-int8.npz --folder runs/features
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
from cracks import FOLDS, average_precision, judged, prepare, read
from harness import write

import foveal
from foveal.data import get_data
from foveal.draws import Draws
from foveal.prediction import count_cost
from foveal.recipes.configure import configure
from foveal.recipes.fit_config import fit_config

NETWORK, OPTIONS = "mobilenetv2_100", {"pad_type": "same"}
LEVELS = {
    "128@1": {"tile_size": 128, "scale": 1},
    "64@2": {"tile_size": 64, "scale": 2},
    "32@4": {"tile_size": 32, "scale": 4},
    "128@2": {"tile_size": 128, "tile_stride": 64, "scale": 2},
    "64@4": {"tile_size": 64, "tile_stride": 32, "scale": 4},
    "32@8": {"tile_size": 32, "tile_stride": 16, "scale": 8},
}
"""Side of a tile in pixels of the level, and image pixels per pixel. The first three have the same boxes, the others
too; those overlap by half."""
COARSER = {"128@1": ("64@2", "32@4"), "128@2": ("64@4", "32@8")}
EPOCHS = 10
LOOKS = (1, 2, 4, 8)
SIZE = (1250, 500)
"""About the size of an image, for multiply-accumulates."""


def encode(images: list[Path], level: str, tiles: dict[str, int], folder: Path, weights: Path) -> dict[str, Any]:
    """Make the features of all images at a level, unless they are there.

    Args:
        level: its name.
        tiles: arguments of `foveal.embed` that describe the tiles.
    """
    out = folder / level
    start = time.process_time()
    done = foveal.embed(NETWORK, images, out, **tiles, backbone_options=OPTIONS, pretrained=str(weights), device="cpu")
    if done.failed:
        raise SystemExit(str(done.failed[0]))
    told = out / "processor_seconds.json"
    if done.encoded:
        told.write_text(json.dumps(round(time.process_time() - start, 1)))
    rows = [json.loads(line) for line in (out / "report.jsonl").read_text().splitlines()]
    return {"level": level, "seconds": read(told), "tiles": sum(row["tiles"] for row in rows)}


def fit(table: Path, folder: Path, way: dict[str, Any], seed: int, out: Path) -> Path:
    """Train a run unless it is there. Its processor time is stored in its folder."""
    flags = ["--data.root", str(folder / way["level"]), "--data.labels", str(table), "--data.val_fraction", "0"]
    flags += ["--epochs", str(way["epochs"]), "--sampling", "balanced", "--seed", str(seed), "--device", "cpu"]
    flags += ["--workers", "0", "--val_every", "1000000", "--quiet"]
    if way["coarse"]:
        flags += ["--model", "tile_scan", "--data.coarse", str(folder / way["coarse"])]
    if not (out / "processor_seconds.json").is_file():
        config, _, _ = configure("features", [*flags, "--out", str(out)])
        start = time.process_time()
        fit_config(config, out, overwrite=out.exists(), quiet=True)
        (out / "processor_seconds.json").write_text(json.dumps(round(time.process_time() - start, 1)))
    return out


def logits_of(
    run: Path, table: Path, folder: Path, way: dict[str, Any], looks: int | None, policy: str | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(N,) classes of the test images, and (N, classes) logits."""
    model = foveal.load(run).eval()
    coarse = str(folder / way["coarse"]) if way["coarse"] else None
    data = get_data("features", root=str(folder / way["level"]), labels=str(table), coarse=coarse, val_fraction=0.0)
    logits, targets = [], []
    with torch.inference_mode():
        for batch in data.loader("test", batch_size=16):
            draws = Draws(0, 0, batch.index)
            logits.append(np.asarray(model(batch.views, looks, policy, draws).logits))
            targets.append(batch.target.numpy())
    return np.concatenate(targets), np.concatenate(logits)


def scores(
    run: Path, table: Path, folder: Path, way: dict[str, Any], looks: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """(N,) whether test images have a crack, and (N,) logit of the crack minus that of the other class."""
    crack = foveal.load(run).class_names.index("crack")
    classes, found = logits_of(run, table, folder, way, looks)
    return classes == crack, found[:, crack] - found[:, 1 - crack]


def of_images(run: Path, paths: list[str], looks: int | None) -> tuple[np.ndarray, float]:
    """(N, classes) logits of image files, and processor seconds of an image."""
    model = foveal.load(run)
    start = time.process_time()
    found = np.concatenate([np.asarray(foveal.classify(model, [path], locations=looks).logits) for path in paths])
    return found, (time.process_time() - start) / len(paths)


def name_of(way: dict[str, Any]) -> str:
    return "_".join(["scan" if way["coarse"] else "mil", way["level"], way["coarse"] or "", str(way["epochs"])])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder with labels.json and the images, 000.jpg ...")
    parser.add_argument("--weights", type=Path, required=True, help="archive of MobileNetV2, see mobilenet_int8.py")
    parser.add_argument("--folder", type=Path, default=Path("runs/features"), help="for tables, features and runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/features.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)

    table, splits = prepare(args.root, args.folder, None, False)
    weights = args.folder / "mobilenetv2.safetensors"
    if not weights.is_file():
        mobilenet_int8.write(args.weights, splits["train"][:64], weights)
    images = sorted(args.root.glob("*.jpg"))
    made = [encode(images, level, tiles, args.folder / "k", weights) for level, tiles in LEVELS.items()]
    folder = args.folder / "k"
    folds = [prepare(args.root, args.folder / f"fold_{fold}", fold, False)[0] for fold in range(FOLDS)]

    def held_out(way: dict[str, Any]) -> dict[str, Any]:
        """Mean average precision of the parts held out, by looks."""
        found: dict[int | None, list[float]] = {}
        for fold, of_fold in enumerate(folds):
            run = fit(of_fold, folder, way, 0, args.folder / f"fold_{fold}" / name_of(way))
            for looks in LOOKS if way["coarse"] else (None,):
                found.setdefault(looks, []).append(average_precision(*scores(run, of_fold, folder, way, looks)))
        print(way, {looks: round(float(np.mean(ap)), 3) for looks, ap in found.items()}, flush=True)
        return {**way, "held_out": {str(looks or "all"): float(np.mean(ap)) for looks, ap in found.items()}}

    tried = [held_out({"level": level, "coarse": None, "epochs": EPOCHS}) for level in COARSER]
    best = max(tried, key=lambda way: way["held_out"]["all"])
    level = best["level"]
    scans = [held_out({"level": level, "coarse": coarse, "epochs": EPOCHS}) for coarse in COARSER[level]]
    best_scan = max(scans, key=lambda way: max(way["held_out"].values()))
    rows = []
    for way in (best, best_scan):
        runs = [fit(table, folder, way, seed, args.folder / f"{name_of(way)}_{seed}") for seed in args.seeds]
        for looks in LOOKS if way["coarse"] else (None,):
            each = [scores(run, table, folder, way, looks) for run in runs]
            true, found = each[0][0], np.stack([one for _, one in each])
            row = {**{key: way[key] for key in ("level", "coarse", "epochs")}, "looks": looks}
            row |= {"single": [average_precision(true, one) for one in found], "learned": judged(found, true)}
            row |= {"seconds": [read(run / "processor_seconds.json") for run in runs]}
            row |= {"macs": count_cost(runs[0], SIZE, looks).macs}
            if looks in (None, 4):
                logits, seconds = of_images(runs[0], splits["test"], looks)
                crack = foveal.load(runs[0]).class_names.index("crack")
                own = logits[:, crack] - logits[:, 1 - crack]
                difference = float(np.abs(own - found[0]).max())
                row |= {"of_images": average_precision(true, own), "difference": difference, "seconds_image": seconds}
            rows.append(row)
            print(row, flush=True)
    cracks = json.loads((Path(__file__).parent / "results" / "cracks.json").read_text())["results"]
    beside = [{"name": "tnet", "learned": cracks["rows"][3]["learned"], "seconds": cracks["processor_seconds"]}]
    for name, size in (("dense-full", [1248, 512]), ("dense-640", [640, 640]), ("dense-224", [224, 224])):
        (one,) = (row for row in cracks["dense"] if row["size"] == size)
        beside.append({"name": name, "learned": one["learned"], "seconds": one["processor_seconds"]})
    results = {"images": len(images), "test": len(splits["test"]), "seeds": args.seeds, "features": made}
    write(args.out, {**results, "tried": [*tried, *scans], "rows": rows, "beside": beside})


if __name__ == "__main__":
    main()

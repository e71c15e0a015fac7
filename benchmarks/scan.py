"""Scan, then look, on megapixel MNIST: what it finds and reads, what that takes, and what it needs to begin.

Three parts, each with its own key of the results:

* ``trained``: the recipes ``megapixel/scan_*``, with the updates of the recipe. Accuracy on the test canvases by the
  number of looks, and with random looks; the share of the relevant digits that a look contains, by the number of looks;
  processor seconds of the training.
* ``ablation``: ``scan_one`` with one ingredient less, on smaller canvases and with fewer updates.
* ``costs``: one prediction of untrained models, in alternation: scan, TNet, and the backbone of TNet on the whole
  canvas. Bytes are those of an uncompressed pyramid with one byte per pixel.

Finished runs and existing rows are kept, so an interrupted benchmark can be continued.

    python benchmarks/scan.py --root data --seeds 0 1 2 --out benchmarks/results/scan.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import write
from training import fit

from foveal import get_data, load
from foveal.evaluation import Strategy, Trial, measure_in_turn, score_batches
from foveal.glimpse.base import GlimpseClassifier, WholeImage
from foveal.models import create_classifier
from foveal.recipes import load_recipe
from foveal.runs import WEIGHTS

PARTS = ("trained", "ablation", "costs")
RECIPES = ("scan_one_1500", "scan_one_3000", "scan_majority_1500", "scan_majority_3000")
LOOKS = (1, 2, 4, 8)
MARGIN = 3  # pixels of a digit, which has an empty margin, that may be outside of a look
SHORT = ("--data.canvas", "1000", "--data.train", "2500", "--data.noise_epochs", "2")
ABLATIONS: dict[str, tuple[str, ...]] = {
    "all": (),
    "cross-entropy of every look, all the time": ("--objective.fading", "false"),
    "no cross-entropy of every look": ("--objective.alone", "0"),
    "no regression of the scout": ("--objective.regression", "0"),
    "no reservoir": ("--model.reservoir", "0", "--model.candidates", "12"),
    "all noise from the beginning": ("--data.noise_from", "null"),
    "looks not distorted": ("--model.distortion", "0"),
    "four attention heads": ("--model.heads", "4"),
}


def processor_seconds(flags: Sequence[str], out: Path, steps: int, seed: int) -> float:
    """Train a run, unless it is finished. Returns the processor time, which is stored in the run folder."""
    stored = out / "processor_seconds"
    if not (stored.is_file() and (out / WEIGHTS).is_file()):
        seconds = fit([*flags, "--workers", "0"], out, steps=steps, seed=seed)
        stored.write_text(f"{seconds:.1f}\n")
    return float(stored.read_text())


def measure(run: Path, data: dict[str, Any], seed: int, images: int) -> dict[str, Any]:
    """Accuracy and recall of digits on test canvases."""
    test = get_data(**{**data, "train": 0, "val": 0, "test": images})
    model = load(run, device="cpu").eval()
    strategies = [*(Strategy((k,)) for k in LOOKS), *(Strategy((k,), "random") for k in LOOKS)]
    scores = score_batches(model, test.loader("test", batch_size=20), strategies, seed=seed).scores
    right = [round(float(s.answers.correct.mean()), 4) for s in scores]
    return {
        "test_images": images,
        "accuracy": dict(zip(map(str, LOOKS), right, strict=False)),
        "random": dict(zip(map(str, LOOKS), right[len(LOOKS) :], strict=True)),
        "found": found(model, test, "test", (max(LOOKS),), LOOKS),
    }


def found(
    model: GlimpseClassifier, data: Any, split: str, locations: Sequence[int], counts: Sequence[int]
) -> dict[str, float]:
    """Share of the relevant digits inside one of the first looks of the last level, by their number."""
    inside = []
    for batch in data.loader(split, batch_size=20):
        looked = model(batch.views, locations, contributions=False)
        for i, one in enumerate(looked):
            looks = np.array([g.box for g in one.glimpses if g.level == 1 + len(locations)])[:, None]
            digits = data.split(split).boxes[batch.index[i]]
            held = (looks[..., :2] <= digits[:, :2] + MARGIN) & (looks[..., 2:] >= digits[:, 2:] - MARGIN)
            held = np.maximum.accumulate(held.all(-1), axis=0)
            inside.append([held[min(k, len(held)) - 1].mean() for k in counts])
    return dict(zip(map(str, counts), np.mean(inside, 0).round(4).tolist(), strict=True))


def train_and_measure(
    name: str, flags: Sequence[str], steps: int | None, seed: int, args: argparse.Namespace, **changed: Any
) -> dict[str, Any]:
    recipe, out = load_recipe(f"megapixel/{name}"), args.folder / "_".join([name, *map(str, (steps, seed))])
    if flags:
        out = out.with_name(f"{out.name}_{'_'.join(flags[len(SHORT) :]).replace('--', '').replace('.', '_')}")
    number = steps or recipe["steps"]
    common = ("--data.root", args.root, "--data.val", "0", "--data.test", "0", "--precision", args.precision)
    flags = [f"megapixel/{name}", *common, *flags]
    seconds = processor_seconds(flags, out, number, seed)
    data = {**recipe["data"], "root": args.root, **changed}
    return {"seed": seed, "steps": number, "processor_seconds": seconds, **measure(out, data, seed, args.images)}


def costs(root: str) -> list[dict[str, Any]]:
    """Cost of one image. Weights are random: the cost depends on them only through what is looked at."""
    rows: list[dict[str, Any]] = []
    trials = []
    for canvas in (1500, 3000):
        data = get_data(
            **{**load_recipe(f"megapixel/one_{canvas}")["data"], "root": root, "train": 0, "val": 0, "test": 1}
        )
        models: dict[str, GlimpseClassifier] = {}
        for kind, recipe in (("scan", f"scan_one_{canvas}"), ("TNet", f"one_{canvas}")):
            options = {**load_recipe(f"megapixel/{recipe}")["model"]}
            models[kind] = create_classifier(options.pop("name"), num_classes=10, **options).eval()
        dense = models["TNet"].dense()
        dense.in_chans = 1
        models["whole canvas"] = WholeImage(dense, canvas, mean=[0.0], std=[1.0]).eval()
        for kind, model in models.items():
            rows.append({"canvas": canvas, "model": kind, "locations": list(model.locations)})
            trials.append(Trial(model, partial(lambda test, n: test.batch(0, range(n), 0).views, data.test)))
    trials[0].model(trials[0].views_of(1))  # memory that a process allocates once does not count
    for row, m in zip(rows, measure_in_turn(trials, seconds=3), strict=True):
        row |= {"ms": round(m.p50, 3), "ms_p95": round(m.p95, 3), "peak_memory": m.peak_memory, "bytes": m.bytes_read}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="folder with torchvision's MNIST/raw")
    parser.add_argument("--folder", type=Path, default=Path("runs/scan"), help="where the run folders go")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--variants", nargs="+", choices=ABLATIONS, default=list(ABLATIONS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, help="updates of the trained recipes, instead of the recipe's")
    parser.add_argument("--short", type=int, default=480, help="updates of each run of the ablation")
    parser.add_argument("--precision", default="32", help="of training; bf16 halves its time on some processors")
    parser.add_argument("--images", type=int, default=1000, help="test canvases")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    known = json.loads(args.out.read_text())["results"] if args.out and args.out.is_file() else {}
    results: dict[str, Any] = {part: known.get(part, []) for part in PARTS}

    def keep(part: str, row: dict[str, Any]) -> None:
        results[part].append(row)
        print(part, json.dumps(row), flush=True)
        write(args.out, results, seed=None)

    if "trained" in args.parts:
        for name in args.recipes:
            for seed in args.seeds:
                steps = args.steps or load_recipe(f"megapixel/{name}")["steps"]
                key = {"recipe": name, "seed": seed, "steps": steps}
                if not any(key.items() <= row.items() for row in results["trained"]):
                    keep("trained", {"recipe": name, **train_and_measure(name, (), steps, seed, args)})
    if "ablation" in args.parts:
        for variant in args.variants:
            for seed in args.seeds:
                key = {"variant": variant, "seed": seed, "steps": args.short}
                if not any(key.items() <= row.items() for row in results["ablation"]):
                    flags = (*SHORT, *ABLATIONS[variant])
                    row = train_and_measure("scan_one_1500", flags, args.short, seed, args, canvas=1000)
                    keep("ablation", {"variant": variant, **row})
    if "costs" in args.parts:
        results["costs"] = costs(args.root)
        write(args.out, results, seed=None)
        for row in results["costs"]:
            print(json.dumps(row))


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()

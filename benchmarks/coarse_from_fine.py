"""Coarse from fine: a scan teaches the policy of TNet, on thumbnails that show a digit more or less clearly.

Megapixel MNIST with one digit on canvases of 1,000 px; for 1/4, which takes long, of 500 px with as much noise. The
thumbnail has 1/16, 1/8 or 1/4 of the side, so a digit of 28 px has 1.8, 3.6 or 7.2 px in it. Looks are cells of one
grid at full resolution, with the size of the thumbnail; for 1/16, looks at 1/4 of full resolution are in between.

The teacher is a scan at 1/4 (`megapixel/scan_one_1500` on canvases of 1,000 px, with 480 updates). Every student is
trained from random weights by the recipe `megapixel/taught_one_1500` with the same number of updates, with the
teacher (``objective.teacher``) and without. Three parts, each with its own key of the results:

* ``weights``: accuracy on validation canvases by ``objective.teacher_weight``.
* ``trained``: accuracy on test canvases by the number of looks, and the share of digits that a last look contains.
* ``costs``: one prediction, in alternation with the scan, by the side of the canvas.

Finished runs and existing rows are kept, so an interrupted benchmark can be continued.

    python benchmarks/coarse_from_fine.py --root data --precision bf16 --out benchmarks/results/coarse_from_fine.json
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from harness import write
from scan import SHORT, found, processor_seconds
from torch.utils.flop_counter import FlopCounterMode

from foveal import get_data, load
from foveal.evaluation import Strategy, Trial, measure_in_turn, score_batches
from foveal.glimpse.base import GlimpseClassifier
from foveal.models import create_classifier
from foveal.prediction import count_cost
from foveal.recipes import load_recipe

PARTS = ("weights", "trained", "costs")
RECIPE = "megapixel/taught_one_1500"
CANVAS = 1000
LOOKS = (1, 2, 4)
TEACHER_STEPS = 480
# Canvas, base_size, grid, region, location_features, locations. The grid is the coarsest in which some cell contains
# any digit, except for at most 3 px.
SETTINGS: dict[str, tuple[int, int, int, float, str, tuple[int, ...]]] = {
    "1/16, two levels": (1000, 64, 5, 0.253, "stages.2", (2, 1)),
    "1/8": (1000, 128, 10, 0.128, "stages.2", (2,)),
    "1/4": (500, 128, 5, 0.256, "stages.2", (2,)),
}


def common(args: argparse.Namespace) -> list[str]:
    """Flags of all runs."""
    return ["--data.root", args.root, "--data.val", "0", "--data.test", "0", "--precision", args.precision, *SHORT]


def teacher(args: argparse.Namespace, seed: int) -> Path:
    """The run of the teacher with a seed, trained if there is none."""
    out = args.folder / f"teacher_{TEACHER_STEPS}_{seed}"
    processor_seconds(["megapixel/scan_one_1500", *common(args)], out, TEACHER_STEPS, seed)
    return out


def model_options(setting: str) -> dict[str, Any]:
    """Options of the student that differ from the recipe."""
    _, base_size, grid, region, features, locations = SETTINGS[setting]
    options = {"base_size": base_size, "grid": grid, "region": region}
    return {**options, "location_features": features, "locations": list(locations)}


def student(
    args: argparse.Namespace, setting: str, weight: float | None, steps: int, seed: int
) -> tuple[Path, dict[str, Any]]:
    """The run of a student, trained if there is none, and its description. Without a teacher if ``weight`` is None."""
    options = {
        **{f"model.{key}": value for key, value in model_options(setting).items()},
        "objective.teacher": "null" if weight is None else teacher(args, seed),
    }
    if weight is not None:
        options["objective.teacher_weight"] = weight
    name = "_".join(map(str, (setting.replace("/", "-").replace(", ", "_").replace(" ", "_"), weight, steps, seed)))
    flags = [part for key, value in options.items() for part in (f"--{key}", str(value))]
    flags = [RECIPE, *common(args), "--data.canvas", str(SETTINGS[setting][0]), *flags]
    seconds = processor_seconds(flags, args.folder / name, steps, seed)
    return args.folder / name, {
        "thumbnail": setting,
        "canvas": SETTINGS[setting][0],
        "weight": weight,
        "steps": steps,
        "seed": seed,
        "processor_seconds": seconds,
    }


def measure(run: Path, canvas: int, split: str, args: argparse.Namespace) -> dict[str, Any]:
    """Accuracy, and recall of digits in the last looks."""
    model = load(run)
    data = canvases(args.root, canvas, split, args.images)
    below = tuple(model.locations[1:])
    strategies = [*(Strategy((k, *below)) for k in LOOKS), Strategy((LOOKS[1], *below), "random")]
    scores = score_batches(model, data.loader(split, batch_size=20), strategies, seed=0).scores
    *right, random = (round(float(s.answers.correct.mean()), 4) for s in scores)
    return {
        f"{split}_images": args.images,
        "accuracy": dict(zip(map(str, LOOKS), right, strict=True)),
        "random": random,
        "found": found(model, data, split, (max(LOOKS), *below), LOOKS),
    }


def canvases(root: str, canvas: int, split: str, images: int) -> Any:
    counts = {name: images if name == split else 0 for name in ("train", "val", "test")}
    return get_data("megapixel_digits", root=root, canvas=canvas, task="one", **counts)


def costs(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Cost of one canvas: time, and multiply-accumulates, also those of an image without blank places (``macs_full``).
    Weights of TNet are random, as its cost does not depend on them."""
    models: dict[str, GlimpseClassifier] = {"scan": load(teacher(args, args.seeds[0]))}
    for setting, (side, *_) in SETTINGS.items():
        options = load_recipe(RECIPE)["model"] | model_options(setting)
        options["base_size"] *= CANVAS // side
        models[setting] = create_classifier(options.pop("name"), num_classes=10, **options).eval()
    rows: list[dict[str, Any]] = []
    trials = []
    for canvas in (CANVAS, 3 * CANVAS):
        data = canvases(args.root, canvas, "test", 20)
        for name, model in models.items():
            locations = (1, *model.locations[1:])
            counter = FlopCounterMode(display=False)
            with counter:
                model(data.test.batch(0, range(20), 0).views, locations, contributions=False)
            macs = counter.get_total_flops() // 2 // 20
            full = count_cost(model, canvas, locations).macs
            row = {"canvas": canvas, "model": name, "locations": list(locations), "macs": macs, "macs_full": full}
            rows.append(row)
            trials.append(
                Trial(model, partial(lambda test, n: test.batch(0, range(n), 0).views, data.test), 1, locations)
            )
    trials[0].model(trials[0].views_of(1))  # memory that a process allocates once does not count
    for row, m in zip(rows, measure_in_turn(trials, seconds=1), strict=True):
        row |= {"ms": round(m.p50, 3), "ms_p95": round(m.p95, 3), "bytes": m.bytes_read}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="folder with torchvision's MNIST/raw")
    parser.add_argument("--folder", type=Path, default=Path("runs/coarse_from_fine"), help="where the run folders go")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=300, help="updates of each student")
    parser.add_argument("--taught", action="store_true", help="train students with a teacher only")
    parser.add_argument("--weight", type=float, default=1.0, help="objective.teacher_weight of the students")
    parser.add_argument("--weights", type=float, nargs="+", default=[0.3, 1.0], help="those that are compared")
    parser.add_argument("--short", type=int, default=300, help="updates of each student of the part weights")
    parser.add_argument("--precision", default="32", help="of training; bf16 halves its time on some processors")
    parser.add_argument("--images", type=int, default=500, help="canvases on which accuracy is measured")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    known = json.loads(args.out.read_text())["results"] if args.out and args.out.is_file() else {}
    results: dict[str, Any] = {part: known.get(part, []) for part in PARTS}

    def add(part: str, split: str, setting: str, weight: float | None, steps: int, seed: int) -> None:
        key = {"thumbnail": setting, "weight": weight, "steps": steps, "seed": seed}
        if any(key.items() <= row.items() for row in results[part]):
            return
        run, row = student(args, setting, weight, steps, seed)
        results[part].append(row | measure(run, row["canvas"], split, args))
        print(part, json.dumps(results[part][-1]), flush=True)
        write(args.out, results, seed=None)

    if "weights" in args.parts:
        for weight in args.weights:
            add("weights", "val", "1/8", weight, args.short, args.seeds[0])
    if "trained" in args.parts:
        for seed in args.seeds:
            for setting in args.settings:
                for weight in (None, args.weight)[args.taught :]:
                    add("trained", "test", setting, weight, args.steps, seed)
    if "costs" in args.parts:
        results["costs"] = costs(args)
        write(args.out, results, seed=None)
        for row in results["costs"]:
            print(json.dumps(row))


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()

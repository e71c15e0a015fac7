"""Photographs: TNet and Saccader, or the whole image through the same backbone?

RSSCN7, 2,800 aerial scenes of 400 px in 7 classes. TNet, Saccader with a separate classifier, and the dense network on
a thumbnail, at half and at full resolution, all with MobileNetV2. Trained from ImageNet weights, from ImageNet weights
for twice as long, and from random weights, each for the same processor time of one core. Images with odd numbers are
for training, the last 40 of them in each class for validation; images with even numbers are for testing.

Measures on the test images: accuracy for all locations, with random looks, and with early exit at thresholds determined
on the validation images; and, for the first seed, milliseconds per image from opening its file to its class, with all
contenders in alternation. Finished runs and existing rows are kept.

    python benchmarks/photographs.py --root rsscn7 --weights imagenet-mobilenetv2-int8.npz --out
    benchmarks/results/photographs.json
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import mobilenet_int8
import numpy as np
import torch
from harness import ratio, write
from training import affordable, fit

from foveal import get_data, load
from foveal.classification import Classification
from foveal.data import DataModule
from foveal.data.folder import list_classes
from foveal.evaluation import Strategy, score_batches
from foveal.evaluation.thresholds import left_after, threshold_for
from foveal.files import replacing
from foveal.glimpse.base import GlimpseClassifier
from foveal.host import keep_freed_memory
from foveal.images import Views
from foveal.prediction import count_cost, fold_norms
from foveal.prediction.early_exit import look_until
from foveal.runs import WEIGHTS

SIDE = 400
LAST_TRAINING = 320  # images with odd numbers after it are for validation
SCALES = 4  # images 1 to 100 of each class have the first scale, 101 to 200 the second, ...
LONGER = 2  # times the steps
TRAININGS = {
    "pretrained": "from ImageNet's weights",
    "longer": f"the same, for {LONGER} times the steps",
    "scratch": "from nothing",
}
MOST = 4  # looks
RANDOM = (2, MOST)  # numbers of looks that are also measured with random looks
EXITS = (0.5, 1.0, 1.5, 2.0, 3.0)  # looks of the mean image
JUDGED = 16  # images at a time
BATCHES = (1, 16)  # images at a time, timed
YARDSTICK = "dense 400"
PARTS = 10  # of the timed images, for the spread

COMMON = [
    "--data",
    "manifest",
    "--data.augmentation",
    "light",
    "--batch_size",
    "32",
    "--workers",
    "0",
    "--device",
    "cpu",
    "--optimiser.name",
    "adamw",
    "--optimiser.lr",
    "1e-3",
    "--optimiser.weight_decay",
    "1e-2",
    "--optimiser.schedule",
    "cosine",
    "--optimiser.warmup",
    "20",
    "--val_every",
    "1000000",
]


class Phase(NamedTuple):
    """A training phase: share of the time, flags, and whether the backbone starts from ImageNet weights."""

    share: float
    flags: list[str]
    backbone: bool = True


def dense(side: int) -> list[Phase]:
    return [Phase(1, ["--model", "mobilenetv2_100", "--model.pad_type", "same", "--model.image_size", str(side)])]


TNET = [
    "--model",
    "tnet",
    "--model.backbone",
    "mobilenetv2_100",
    "--model.backbone_options",
    "{pad_type: same}",
    "--model.base_size",
    "128",
    "--model.locations",
    "[2]",
]
CONTENDERS = {
    # As published: the policy gradient trains the location module only. The warm-up has random looks.
    "tnet": [Phase(1, [*TNET, "--model.detached_policy", "true", "--objective.warm_up_looks", "random"])],
    "tnet, default": [Phase(1, TNET)],
    # The locator's windows are 33 px of 96, so that a glimpse is a third of the image's side.
    "saccader": [
        Phase(
            1 / 3,
            [
                "--model",
                "saccader",
                "--model.backbone",
                "bagnet_small",
                "--model.image_size",
                "96",
                "--model.locations",
                "[4]",
                "--model.backbone_options",
                "{strides: [2, 2, 2, 1], kernel3: [1, 1, 1, 1]}",
            ],
            backbone=False,
        ),
        Phase(
            2 / 3,
            [
                "--model",
                "saccader_separate",
                "--model.backbone",
                "bagnet_small",
                "--model.image_size",
                "96",
                "--model.locations",
                "[4]",
                "--model.backbone_options",
                "{strides: [2, 2, 2, 1], kernel3: [1, 1, 1, 1]}",
                "--model.classifier",
                "mobilenetv2_100",
                "--model.classifier_options",
                "{pad_type: same}",
                "--model.glimpse_size",
                "96",
                "--objective",
                "cross_entropy",
                "--objective.trains",
                "[classifier]",
            ],
        ),
    ],
    "dense 100": dense(100),
    "dense 200": dense(200),
    "dense 400": dense(400),
}


# ----------------------------------------------------------------------------------------------------------------- data


def number_of(path: str) -> int:
    """Number of an image in its class, 1 to 400: ``aGrass/a017.webp`` is number 17."""
    return int("".join(filter(str.isdigit, Path(path).stem)))


def split_of(path: str) -> str:
    number = number_of(path)
    return "test" if number % 2 == 0 else "val" if number > LAST_TRAINING else "train"


def prepare(root: Path, folder: Path) -> tuple[Path, list[str]]:
    """Write the table of images, and return it with the training images."""
    rows = [
        (str(Path(path).resolve()), label, split_of(path))
        for label, paths in list_classes(root).items()
        for path in paths
    ]
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / "table.csv") as unfinished, unfinished.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "label", "split"), *rows])
    return folder / "table.csv", [path for path, _, split in rows if split == "train"]


# ------------------------------------------------------------------------------------------------------------- training


class Job(NamedTuple):
    contender: str
    training: str
    seed: int

    def run(self, folder: Path, phase: int = -1) -> Path:
        phases = range(len(CONTENDERS[self.contender]))
        stage = f"_{phases[phase] + 1}" if len(phases) > 1 else ""
        return folder / f"{self.contender.replace(' ', '_')}{stage}_{self.training}_{self.seed}"


def flags_of(job: Job, phase: int, table: Path, weights: Path, folder: Path) -> list[str]:
    _, flags, backbone = CONTENDERS[job.contender][phase]
    flags = [*COMMON, "--data.file", str(table), *flags]
    if job.training != "scratch" and backbone:
        flags += ["--model.pretrained", str(weights)]
    return flags + (["--init-from", str(job.run(folder, phase - 1))] if phase else [])


def train(job: Job, steps: Sequence[int], table: Path, weights: Path, folder: Path) -> None:
    """Train all missing phases of a contender. The time of each is stored beside its weights."""
    for phase, afforded in enumerate(steps):
        most = afforded * (LONGER if job.training == "longer" else 1)
        out = job.run(folder, phase)
        if not (out / WEIGHTS).is_file() or not (out / "trained.json").is_file():
            took = fit(flags_of(job, phase, table, weights, folder), out, steps=most, seed=job.seed)
            (out / "trained.json").write_text(json.dumps({"steps": most, "processor_seconds": round(took, 1)}) + "\n")


# -------------------------------------------------------------------------------------------------------------- judging


def locations_of(model: GlimpseClassifier) -> list[tuple[int, ...]]:
    return [(k,) if k else () for k in range(MOST + 1)] if model.locations else [()]


def accuracy_rows(job: Job, model: GlimpseClassifier, data: DataModule) -> Iterator[dict[str, Any]]:
    """A row for each value of ``locations``, each number of random looks, and each threshold of early exit."""
    all_locations = locations_of(model)
    plans = [Strategy(locations) for locations in all_locations]
    drawn = [Strategy((k,), "random") for k in RANDOM if model.locations]
    loader = data.loader("test", batch_size=JUDGED)
    found = score_batches(model, loader, [*plans, *drawn], seed=job.seed, keep_logits=True)
    kept = [scores.logits for scores in found.scores]
    target = np.asarray(data.test.targets)[found.places]
    scale = np.array([(number_of(data.test.path(i)) - 1) // 100 for i in range(len(data.test))])[found.places]
    macs = np.array([count_cost(model, SIDE, locations).macs for locations in all_locations])

    def row(policy: str, asked: float, answer: np.ndarray, looks: float, cost: float, **more: Any) -> dict[str, Any]:
        right = answer == target
        by_scale = [round(float(right[scale == s].mean()), 4) for s in range(SCALES)]
        return {
            **job._asdict(),
            "policy": policy,
            "asked": asked,
            "accuracy": round(float(right.mean()), 4),
            "by_scale": by_scale,
            "looks": looks,
            "macs": round(cost),
            "images": len(right),
            **more,
        }

    for plan, logits in zip([*plans, *drawn], kept, strict=True):
        looks = sum(plan.locations)
        yield row(plan.policy if looks else "none", looks, logits.argmax(-1).numpy(), looks, macs[looks])
    if job.contender == "tnet":  # greedy looks are nested, so steps of the walk are fixed locations
        known = score_batches(model, data.loader("val", batch_size=JUDGED), plans, keep_logits=True)
        sure = np.stack([model.task.confidence(scores.logits).numpy() for scores in known.scores], 1)
        seen = np.stack([model.task.confidence(logits).numpy() for logits in kept[: len(plans)]], 1)
        answers = np.stack([logits.argmax(-1).numpy() for logits in kept[: len(plans)]], 1)
        price = np.arange(len(plans), dtype=float)
        for wanted in EXITS:
            threshold = threshold_for(sure, price, wanted)
            turn = left_after(seen, threshold)
            answer = answers[np.arange(len(turn)), turn]
            looks = round(float(price[turn].mean()), 4)
            yield row("exit", wanted, answer, looks, macs[turn].mean(), threshold=threshold)


# --------------------------------------------------------------------------------------------------------------- timing


def time_rows(
    jobs: Sequence[Job], folder: Path, data: DataModule, rows: list[dict[str, Any]], batch: int, images: int
) -> Iterator[dict[str, Any]]:
    """Milliseconds per image of these runs, batch by batch in alternation. Ratios are relative to dense 400, for each
    part of the images."""
    ways: dict[tuple[str, str, float], Callable[[Views], Classification]] = {}
    for job in jobs:
        model = fold_norms(load(job.run(folder), device="cpu").eval())
        for locations in locations_of(model):
            ways[job.contender, "greedy" if locations else "none", sum(locations)] = (
                lambda views, m=model, b=locations: m(views, b, contributions=False)
            )
        for row in rows:
            if row["policy"] == "exit" and (row["contender"], row["training"], row["seed"]) == job:
                key = job.contender, "exit", row["asked"]
                ways[key] = lambda views, m=model, r=row: look_until(m, views, r["threshold"], (MOST,))
    some = np.random.default_rng(0).permutation(len(data.test))[:images]
    batches = [some[i : i + batch] for i in range(0, len(some), batch)]
    took = {key: np.empty((2, len(batches))) for key in ways}  # wall time and processor time
    with torch.inference_mode():
        for number, which in [
            (0, batches[0]),
            *enumerate(batches),
        ]:  # the first is called twice, and the second call counts
            for key, classify in ways.items():
                began, worked = time.perf_counter(), time.process_time()
                classify(data.test.batch(0, which.tolist(), 0).views).logits.argmax(-1).tolist()
                took[key][:, number] = time.perf_counter() - began, time.process_time() - worked
    # With early exit, batches differ too much to be compared in pairs.
    parts = {
        key: np.stack([part.sum(1) for part in np.array_split(mine, PARTS, axis=1)], 1) for key, mine in took.items()
    }
    whole = parts[YARDSTICK, "none", 0]
    for (contender, policy, asked), mine in parts.items():
        ms, processor_ms = (1e3 * mine.sum(1) / len(some)).round(3).tolist()
        yield {
            "training": jobs[0].training,
            "contender": contender,
            "policy": policy,
            "asked": asked,
            "batch": batch,
            "images": len(some),
            "ms": ms,
            "processor_ms": processor_ms,
            "of_dense_400": ratio(mine[0], whole[0]),
            "processor_of_dense_400": ratio(mine[1], whole[1]),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder with the seven class folders of RSSCN7")
    parser.add_argument("--weights", required=True, help="archive of MobileNetV2, see mobilenet_int8.py")
    parser.add_argument("--folder", type=Path, default=Path("runs/photographs"), help="where the run folders go")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    told = "; ".join(f"{name}: {meaning}" for name, meaning in TRAININGS.items())
    parser.add_argument("--trainings", nargs="+", choices=TRAININGS, default=list(TRAININGS), help=told)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--seconds", type=float, default=300, help="processor time of a training; twice that of a longer one"
    )
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time")
    parser.add_argument("--train-only", action="store_true", help="leave judging to another call")
    parser.add_argument("--timed-images", type=int, default=480, help="0 for none: where the machine is busy")
    parser.add_argument("--out")
    args = parser.parse_args()
    if args.timed_images and not args.train_only and YARDSTICK not in args.contenders:
        parser.error(
            f"--timed-images: times are given beside those of {YARDSTICK!r}; add it to --contenders, or take "
            "--timed-images 0"
        )
    table, training_images = prepare(args.root, args.folder)
    weights = args.folder / "mobilenetv2.safetensors"
    if not weights.is_file():
        mobilenet_int8.write(args.weights, training_images[:: max(1, len(training_images) // 256)][:256], weights)

    steps_file = args.folder / "steps.json"
    kept = json.loads(steps_file.read_text()) if steps_file.is_file() else {"seconds": args.seconds, "steps": {}}
    if (before := kept.get("seconds")) != args.seconds:
        parser.error(
            f"--seconds {args.seconds:g}: the runs in {args.folder} are of {before} s; give those, or another --folder"
        )
    steps = kept["steps"]
    for name in args.contenders:
        if name not in steps:
            trial = Job(name, "pretrained", -1)
            steps[name] = []
            for phase, (share, *_) in enumerate(CONTENDERS[name]):
                flags = flags_of(trial, phase, table, weights, args.folder)
                steps[name].append(affordable(flags, share * args.seconds, trial.run(args.folder, phase)))
            steps_file.write_text(json.dumps(kept) + "\n")
    print("steps:", steps, flush=True)
    jobs = [Job(name, training, seed) for training in args.trainings for seed in args.seeds for name in args.contenders]
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(lambda job: train(job, steps[job.contender], table, weights, args.folder), jobs))
    if args.train_only:
        return

    keep_freed_memory()
    data = get_data("manifest", file=str(table))
    results = (
        json.loads(Path(args.out).read_text())["results"]
        if args.out and Path(args.out).is_file()
        else {"trained": [], "rows": []}
    )
    kept = {(row["contender"], row["training"], row["seed"]) for row in results["rows"]}
    for job in jobs:
        if job not in kept:
            phases = [
                json.loads((job.run(args.folder, i) / "trained.json").read_text())
                for i in range(len(CONTENDERS[job.contender]))
            ]
            results["trained"].append({**job._asdict(), "phases": phases})
            model = load(job.run(args.folder), device="cpu").eval()
            results["rows"] += accuracy_rows(job, model, data)
            print(*job, "done", flush=True)
            write(args.out, results, seed=None)
    if args.timed_images:
        first = [Job(name, args.trainings[0], args.seeds[0]) for name in args.contenders]
        results["times"] = [
            row
            for batch in BATCHES
            for row in time_rows(first, args.folder, data, results["rows"], batch, args.timed_images)
        ]
        write(args.out, results, seed=None)
        for row in results["times"]:
            print(json.dumps(row))


if __name__ == "__main__":
    main()

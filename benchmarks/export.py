"""Speed of exported engines: TNet and the dense network, both on EfficientNet-B0, one image at a time.

Images of noise are in memory, weights are random; times do not depend on either. All contenders take turns. Ratios
compare calls in immediate succession. With one thread, processor time is compared, which other programs hardly affect.
With several threads it is the time that passes, which they do; the quartiles say how much.

    python benchmarks/export.py --folder exported --out benchmarks/results/export.json

``--run`` measures instead what a precision costs in accuracy: a trained run is exported, int8 is calibrated on training
images, and all test images of a table are classified by each engine.

    python benchmarks/export.py --folder exported --run runs/photographs/tnet --table runs/photographs/table.csv --out
    benchmarks/results/export.json
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import os
import random
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("GOMP_SPINCOUNT", "5000")  # as the command does; torch reads it when it is imported

import torch
from harness import milliseconds, ratio, write

from foveal import classify, get_data, runtime
from foveal.export import export
from foveal.glimpse.base import GlimpseClassifier
from foveal.models import create_classifier
from foveal.prediction import Predictor, count_cost

LOCATIONS = (2, 1)
MODELS = ("tnet-fp32", "tnet-int8", "dense-fp32")
PRECISIONS = ("fp32", "fp16", "int8")
CALIBRATION = 128  # training images
BATCH = 32  # test images at a time


def classifier(kind: str, side: int) -> GlimpseClassifier:
    """TNet with looks of 224 px, or the dense network at ``side`` px."""
    torch.manual_seed(0)
    if kind == "tnet":
        return create_classifier("tnet", num_classes=45, locations=LOCATIONS).eval()
    return create_classifier("efficientnet_b0", num_classes=45, image_size=side).eval()


def exported(folder: Path, kind: str, side: int, precision: str) -> Path:
    """The exported model, which is kept between calls."""
    place = folder / f"{kind}-{'any' if kind == 'tnet' else side}-{precision}"
    if not runtime.is_exported(place):
        noise = np.random.default_rng(1).integers(0, 256, (1, side, side, 3), dtype=np.uint8)
        export(classifier(kind, side), precision=precision, out=place, calibration=list(noise), overwrite=True)
    return place


def contenders(folder: Path, side: int, threads: int, wanted: Sequence[str]) -> dict[str, Callable[[], object]]:
    """Functions that classify one image of noise."""
    image = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    tasks: dict[str, Callable[[], object]] = {}
    eager = Predictor(classifier("tnet", side)).folded()
    tasks["tnet, torch"] = lambda: eager.classify(image)
    for name in wanted:
        kind, precision = name.split("-")
        for engine in ("onnx", "openvino"):
            model = runtime.load(exported(folder, kind, side, precision), engine=engine, threads=threads)
            tasks[f"{kind}, {engine} {precision}"] = lambda model=model: model.classify(image)
    return tasks


def in_turn(
    tasks: dict[str, Callable[[], object]], clock: Callable[[], float], seconds: float
) -> dict[str, np.ndarray]:
    """Seconds of each task in each round, by a clock; one call of each task per round, in random order. Rounds go on
    until ``seconds`` of the clock have passed, but there are at least five."""
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for task in tasks.values():
        task()
    draws, began = random.Random(0), clock()
    while clock() - began < seconds or min(map(len, times.values())) < 5:
        for name, task in draws.sample(list(tasks.items()), len(tasks)):
            start = clock()
            task()
            times[name].append(clock() - start)
    return {name: np.array(values) for name, values in times.items()}


def compare(folder: Path, side: int, seconds: float, threads: int, wanted: Sequence[str]) -> dict[str, Any]:
    """Times of all contenders for images of one side, and ratios."""
    clock = time.process_time if threads == 1 else time.perf_counter
    times = in_turn(contenders(folder, side, threads, wanted), clock, seconds)
    dense = create_classifier("efficientnet_b0", num_classes=45).dense()
    macs = {"tnet": count_cost(classifier("tnet", side), side).macs, "dense": count_cost(dense, side).macs}
    looking = [name for name in times if name.startswith("tnet, ") and name != "tnet, torch"]
    return {
        "side": side,
        "threads": threads,
        "clock": "processor time" if threads == 1 else "time",
        "macs": macs,
        "promise": macs["dense"] / macs["tnet"],
        "milliseconds": {name: milliseconds(each) for name, each in times.items()},
        "fastest": {name: round(1e3 * float(each.min()), 3) for name, each in times.items()},
        "than_torch": {name: ratio(times["tnet, torch"], times[name]) for name in looking},
        "than_dense": {
            name: ratio(times[name.replace("tnet", "dense")], times[name])
            for name in looking
            if name.replace("tnet", "dense") in times
        },
    }


def accuracy(folder: Path, run: Path, table: Path, images: int | None) -> list[dict[str, Any]]:
    """Accuracy of a run on the test images of a table by engine and precision, and how often the label is the same as
    torch's. Differences of accuracy have normal 95 % intervals over the images."""
    with table.open(encoding="utf-8") as file:
        test = [row for row in csv.DictReader(file) if row["split"] == "test"][:images]
    paths, expected = [row["path"] for row in test], np.array([row["label"] for row in test])

    def labels(of: Callable[[list[str]], Sequence[str]]) -> np.ndarray:
        return np.concatenate([of(paths[start : start + BATCH]) for start in range(0, len(paths), BATCH)])

    def told(name: str, found: np.ndarray) -> dict[str, Any]:
        more = (found == expected).astype(float) - (of_torch == expected)
        half = 1.959964 * more.std(ddof=1) / len(more) ** 0.5
        return {
            "runs": name,
            "images": len(paths),
            "accuracy": float((found == expected).mean()),
            "minus_torch": [float(more.mean() + side * half) for side in (0, -1, 1)],
            "same_label": float((found == of_torch).mean()),
        }

    of_torch = labels(lambda batch: classify(run, batch).label)
    rows = [told("torch", of_torch)]
    data = get_data("manifest", file=str(table))
    for precision, engine in itertools.product(PRECISIONS, ("onnx", "openvino")):
        place = folder / f"run-{engine}-{precision}"
        if not runtime.is_exported(place):
            export(run, format=engine, precision=precision, out=place, calibration=data, images=CALIBRATION)
        model = runtime.load(place, engine=engine, threads=1)
        rows.append(told(f"{engine} {precision}", labels(lambda batch, model=model: model.classify(batch).labels)))
        print(rows[-1], flush=True)
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where exported models are, or go")
    parser.add_argument("--sides", type=int, nargs="+", default=[896, 1792])
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS)
    parser.add_argument("--seconds", type=float, default=60, help="of each side")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--run", type=Path, help="a trained run, for its accuracy instead of times")
    parser.add_argument("--table", type=Path, help="manifest with its training and test images")
    parser.add_argument("--images", type=int, help="of the test images; all of them if left out")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(argv)
    args.folder.mkdir(parents=True, exist_ok=True)
    packages = {name: version(name) for name in ("onnx", "onnxruntime", "openvino", "nncf")}
    known = json.loads(args.out.read_text())["results"] if args.out and args.out.is_file() else {}
    if args.run:
        torch.set_num_threads(1)
        write(args.out, known | {"accuracy": accuracy(args.folder, args.run, args.table, args.images)})
        return
    rows: list[dict[str, Any]] = []
    for threads, side in itertools.product(args.threads, args.sides):
        torch.set_num_threads(threads)
        rows.append(compare(args.folder, side, args.seconds, threads, args.models))
        print(rows[-1], flush=True)
        write(args.out, known | {"packages": packages, "rows": rows})


if __name__ == "__main__":
    main()

"""Cracks: a class that 52 of 399 photographs have, judged by average precision.

KolektorSDD (Tabernik et al., 2019): grey photographs of electrical commutators, 500 x 1,260 px; a crack is some 280 px
long and as thin as a hair. ``split`` of ``labels.json`` gives the training and the 79 test images, 10 of them with a
crack. Of the training images, by class and number, every fifth is for validation.

TNets with a MobileNetV2 from ImageNet's weights are trained by the recipe ``few`` with several seeds, and the same
network on whole images at several sizes for the same processor time. All have the same first layers frozen. The last
weights are kept: validation images, of which 8 have a crack, show the parts of training images, are all right after
half of the updates, and tell nothing more. Without ``--decide`` they are not used at all. Settings were chosen on
training images, with every fourth part held out in turn (``--fold``); a part has eight images.

The images have three cells. A TNet looks at all of them in turn. Its head is additive, so the answers with fewer looks,
learned and random ones, follow from the contributions of the looks. Random looks are drawn `DRAWS` times. Intervals
are of a bootstrap over seeds and test images, paired for differences. A crack is covered if at least half of the area
of its outline is inside a look.

With ``--decide``, for the first seed, ``foveal threshold`` for a recall of 0.95, ``foveal evaluate`` with this
threshold, and ``foveal explain`` for a test image with a crack.

    python benchmarks/cracks.py --root kolektorsdd --weights imagenet-mobilenetv2-int8.npz --folder runs/cracks
    --out benchmarks/results/cracks.json

``--dense '{"dense-224": [80, [0]]}'`` trains dense networks for so many updates with these seeds. A run that is there
is not trained again.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mobilenet_int8
import numpy as np
from harness import write
from PIL import Image, ImageDraw
from training import fit

import foveal
from foveal.files import replacing

CLASSES = ("fine", "crack")
HELD = 5  # every fifth training image of a class is for validation
AIM = "recall=0.95"
DRAWS, RESAMPLES, COVERED = 20, 2000, 0.5
PART, FOLDS = 8, 4
RECIPE = "few --precision bf16"
TNET = """--model.backbone mobilenetv2_100 --model.backbone_options {"pad_type":"same"}"""
DENSE = "--model mobilenetv2_100 --model.pad_type same --model.squash true --model.image_size"
FROZEN = ("conv_stem", "bn1", "blocks.0", "blocks.1", "blocks.2", "blocks.3")
SIZES = {"dense-224": (224, 224), "dense-640": (640, 640), "dense-full": (1248, 512)}


def prepare(root: Path, folder: Path, fold: int | None, validate: bool) -> tuple[Path, dict[str, list[str]]]:
    """Write the table of images. Returns it, and the images of each split.

    Args:
        root: folder of the data set.
        folder: where the table is written.
        fold: use training images only, and test on this fold of their parts.
        validate: keep the validation images.
    """
    labels = json.loads((root / "labels.json").read_text())
    rows, counts, seen = [], [0, 0], 0
    for name, of_image in sorted(labels.items()):
        kind, split = bool(of_image["defect"]), "test"
        if of_image["split"] == "train":
            counts[kind] += 1
            split = "val" if counts[kind] % HELD == 0 else "train"
            if fold is not None:
                split = "test" if seen // PART % FOLDS == fold else "train"
            seen += 1
        elif fold is not None:
            continue
        if validate or split != "val":
            rows.append((str((root / f"{name}.jpg").resolve()), CLASSES[kind], split))
    folder.mkdir(parents=True, exist_ok=True)
    table = folder / "table.csv"
    with replacing(table) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "label", "split"), *rows])
    splits: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for path, _, split in rows:
        splits[split].append(path)
    return table, splits


def outlined(root: Path, path: str) -> np.ndarray | None:
    """The (height, width) bool mask of the crack of an image; None if it has none."""
    of_image = json.loads((root / "labels.json").read_text())[Path(path).stem]
    if not of_image["defect"]:
        return None
    mask = Image.new("1", (of_image["width"], of_image["height"]))
    for polygon in of_image["polygons"]:
        points = np.array(polygon).reshape(-1, 2) * mask.size
        ImageDraw.Draw(mask).polygon([tuple(point) for point in points.tolist()], fill=1, outline=1)
    return np.array(mask)


class Seen:
    """The answers of a TNet to N images from the looks at all K cells, in the order of the policy.

    Attributes:
        thumbnail: (N,) logit of the crack minus that of the other class, of the first look.
        cells: (N, K) the same of the looks at cells.
        inside: (N, K, ...) mask of the pixels of the crack of an image that a look shows; None without a crack.
    """

    def __init__(self, run: Path, paths: list[str], root: Path) -> None:
        model = foveal.load(run)
        crack = model.class_names.index("crack")
        self.thumbnail, self.cells, self.inside = [], [], []
        for path in paths:
            looks = foveal.classify(model, path, policy="greedy", locations=model.most_cells).glimpses
            own = np.asarray(looks.contribution) * len(looks)
            own = own[:, crack] - own[:, 1 - crack]
            self.thumbnail.append(own[0])
            self.cells.append(own[1:])
            self.inside.append(_shown(outlined(root, path), np.asarray(looks.box)[1:]))
        self.thumbnail, self.cells = np.array(self.thumbnail), np.array(self.cells)

    def scores(self, looks: int, order: np.ndarray | None = None) -> np.ndarray:
        """(N,) scores with the first look and some cells; in the order of the policy, or in a given one (N, K)."""
        cells = self.cells if order is None else np.take_along_axis(self.cells, order, 1)
        return (self.thumbnail + cells[:, :looks].sum(1)) / (1 + looks)

    def covered(self, looks: int, order: np.ndarray | None = None) -> np.ndarray:
        """(cracks,) bool, whether a look shows the crack."""
        found = []
        for i, inside in enumerate(self.inside):
            if inside is not None:
                chosen = inside if order is None else inside[order[i]]
                found.append(bool(looks) and chosen[:looks].mean(1).max() >= COVERED)
        return np.array(found)


def _shown(mask: np.ndarray | None, boxes: np.ndarray) -> np.ndarray | None:
    """(K, pixels of the crack) bool."""
    if mask is None:
        return None
    y, x = np.nonzero(mask)
    return np.stack([(y0 <= y) & (y < y1) & (x0 <= x) & (x < x1) for y0, x0, y1, x1 in boxes])


def average_precision(true: np.ndarray, scores: np.ndarray) -> float:
    order = np.argsort(-scores, kind="stable")
    hits = true[order]
    return float((np.cumsum(hits) / np.arange(1, len(hits) + 1))[hits].mean())


def bootstrap(of: Callable[[np.ndarray, np.ndarray], float], seeds: int, true: np.ndarray) -> list[float]:
    """A statistic of (seeds, images), with its 95 % interval over resampled seeds, and images of each class."""
    rng = np.random.default_rng(0)
    kinds = [np.flatnonzero(true == kind) for kind in (True, False)]
    drawn = [
        of(rng.integers(0, seeds, seeds), np.concatenate([rng.choice(kind, len(kind)) for kind in kinds]))
        for _ in range(RESAMPLES)
    ]
    return [of(np.arange(seeds), np.arange(len(true))), *map(float, np.quantile(drawn, (0.025, 0.975)))]


def judged(scores: np.ndarray, true: np.ndarray) -> list[float]:
    """Average precision, a mean over seeds, of scores (seeds, images), with its interval."""

    def mean(seeds: np.ndarray, images: np.ndarray) -> float:
        return float(np.mean([average_precision(true[images], scores[seed, images]) for seed in seeds]))

    return bootstrap(mean, len(scores), true)


def by_looks(seen: list[Seen], true: np.ndarray) -> list[dict[str, Any]]:
    """Average precision and covered cracks for each number of looks, learned and random."""
    rows, most = [], seen[0].cells.shape[1]
    rng = np.random.default_rng(0)
    orders = [rng.random((DRAWS, *one.cells.shape)).argsort(-1) for one in seen]
    for looks in range(most + 1):
        learned = np.stack([one.scores(looks) for one in seen])
        chance = np.stack([[one.scores(looks, order) for order in of] for one, of in zip(seen, orders, strict=True)])

        def by_chance(s: np.ndarray, i: np.ndarray, chance: np.ndarray = chance, draws: int = DRAWS) -> float:
            return float(np.mean([average_precision(true[i], chance[x, d, i]) for x in s for d in range(draws)]))

        def gap(s: np.ndarray, i: np.ndarray, learned: np.ndarray = learned, few: Any = by_chance) -> float:
            return float(np.mean([average_precision(true[i], learned[x, i]) for x in s])) - few(s, i, draws=4)

        row: dict[str, Any] = {"looks": looks, "learned": judged(learned, true)}
        row["single"] = [average_precision(true, one) for one in learned]
        if 0 < looks < most:
            row["random"] = bootstrap(lambda s, i, of=by_chance: of(s, i, draws=4), len(seen), true)  # type: ignore[misc]
            row["random"][0] = by_chance(np.arange(len(seen)), np.arange(len(true)))
            row["gap"] = bootstrap(gap, len(seen), true)
            row["gap"][0] = row["learned"][0] - row["random"][0]
            row["covered_random"] = float(
                np.mean([one.covered(looks, order) for one, of in zip(seen, orders, strict=True) for order in of])
            )
        row["covered"] = float(np.mean([one.covered(looks) for one in seen]))
        rows.append(row)
    return rows


def dense_scores(run: Path, paths: list[str]) -> np.ndarray:
    """(N,) logit of the crack minus that of the other class."""
    model = foveal.load(run)
    crack = model.class_names.index("crack")
    logits = np.concatenate([np.asarray(foveal.classify(model, [path]).logits) for path in paths])
    return logits[:, crack] - logits[:, 1 - crack]


def command(*arguments: str) -> None:
    """Run a command of foveal."""
    subprocess.run([sys.executable, "-m", "foveal", *arguments], check=True)


def read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text())


def flags_of(network: str) -> list[str]:
    """Flags of ``foveal fit`` that do not depend on the machine."""
    if network == "tnet":
        return [*RECIPE.split(), *TNET.split()]
    return [*RECIPE.split(), *DENSE.split(), json.dumps(SIZES[network]), "--freeze", json.dumps(list(FROZEN))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder with labels.json and the images, 000.jpg ...")
    parser.add_argument("--weights", type=Path, required=True, help="archive of MobileNetV2, see mobilenet_int8.py")
    parser.add_argument("--folder", type=Path, default=Path("runs/cracks"), help="for the table, weights and the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="seeds of the TNets")
    parser.add_argument("--steps", type=int, default=80, help="updates of a TNet")
    parser.add_argument(
        "--fold", type=int, choices=range(FOLDS), help="cross-validate on training images: parts held out"
    )
    parser.add_argument("--decide", action="store_true", help="use validation images, for a threshold")
    parser.add_argument("--dense", type=json.loads, default={}, help='{"dense-224": [steps, [seeds]], ...}')
    parser.add_argument("--train-only", action="store_true", help="train, and judge nothing")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cracks.json"))
    args = parser.parse_args()

    table, splits = prepare(args.root, args.folder, args.fold, args.decide)
    weights = args.folder / "mobilenetv2.safetensors"
    if not weights.is_file():
        mobilenet_int8.write(args.weights, splits["train"][:64], weights)
    trained: dict[str, list[Path]] = {}
    for network, (steps, seeds) in {"tnet": (args.steps, args.seeds), **args.dense}.items():
        for seed in seeds:
            run = args.folder / f"{network}_{seed}"
            trained.setdefault(network, []).append(run)
            if not (run / "processor_seconds.json").is_file():
                source = ["--data.file", str(table), "--data.val_fraction", "0", "--model.pretrained", str(weights)]
                source += ["--val_every", str(steps), *([] if args.decide else ["--monitor", "accuracy"])]
                seconds = fit([*flags_of(network), *source], run, steps=steps, seed=seed)
                (run / "processor_seconds.json").write_text(json.dumps(round(seconds)))
    if args.train_only:
        return

    test = splits["test"]
    true = np.array([outlined(args.root, path) is not None for path in test])
    seen = [Seen(run, test, args.root) for run in trained["tnet"]]
    dense = []
    for network, runs in trained.items():
        if network != "tnet":
            scores = np.stack([dense_scores(run, test) for run in runs])
            size, used = SIZES[network], [read(run / "processor_seconds.json") for run in runs]
            single = [average_precision(true, one) for one in scores]
            steps = args.dense[network][0]
            row = {"size": size, "steps": steps, "single": single, "learned": judged(scores, true)}
            dense.append({**row, "processor_seconds": used})
    decisions = {}
    if args.decide:
        first = trained["tnet"][0]
        command("threshold", str(first), "--at", AIM)
        command("evaluate", str(first), "--measure", "none", "--out", str(first / "decided"))
        command("explain", str(first), test[int(np.flatnonzero(true)[0])], "--out", str(args.folder / "crack.html"))
        found, decided = read(first / "threshold.json")["thresholds"][0], read(first / "decided" / "evaluation.json")
        decisions = {
            "threshold": {key: value for key, value in found.items() if key != "curve"},
            "decided": [point for point in decided["points"] if point["kind"] == "learned"][-1],
        }
    write(
        args.out,
        {
            "command": " ".join(["python", *sys.argv]),
            "flags": {network: flags_of(network) for network in trained},
            "seeds": args.seeds,
            "steps": {"tnet": args.steps, **{network: steps for network, (steps, _) in args.dense.items()}},
            "images": len(true),
            "cracks": int(true.sum()),
            "processor_seconds": [read(run / "processor_seconds.json") for run in trained["tnet"]],
            "summaries": [read(run / "summary.json") for run in trained["tnet"]],
            "rows": by_looks(seen, true),
            "dense": dense,
            **decisions,
        },
    )


if __name__ == "__main__":
    main()

"""Does ``foveal visible`` recommend the level at which the evidence is known to be visible, with every seed?

- Megapixel MNIST with one digit of 28 px, with its box, on canvases of 1,500 and 3,000 px: a digit has 7 px at a
  quarter of the size, 1.2 and 0.6 px in a thumbnail of 64 px.
- KolektorSDD: 500 x 1,260 px, 34 of 320 training images with a crack, with the boxes of its outlines and without them.
- RSSCN7: aerial scenes of 400 x 400 px in 7 classes, without boxes.

200 of the training images are used; 100 with boxes or MobileNetV2. Without boxes, features are those of the small
random network or of MobileNetV2 with ImageNet's weights (`mobilenet_int8.py`).

    python benchmarks/visible.py --mnist mnist --cracks kolektorsdd --rsscn7 rsscn7
    --weights imagenet-mobilenetv2-int8.npz --out benchmarks/results/visible.json
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cracks
import mobilenet_int8
import numpy as np
import photographs
from harness import write

from foveal import DataModule, get_data, visible
from foveal.display import console
from foveal.files import replacing

FEW = {"limit": 100}
MOBILENET = {"backbone": "mobilenetv2_100", **FEW}


def with_boxes(table: Path, root: Path) -> Path:
    """Write the table of cracks with a column of the boxes of their outlines."""
    labels = json.loads((root / "labels.json").read_text())
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        of_image = labels[Path(row["path"]).stem]
        boxes = []
        for polygon in of_image["polygons"]:
            x, y = np.array(polygon[::2]) * of_image["width"], np.array(polygon[1::2]) * of_image["height"]
            boxes.append(f"{y.min():.1f} {x.min():.1f} {y.max():.1f} {x.max():.1f}")
        row["boxes"] = "|".join(boxes)
    out = table.with_name("boxes.csv")
    with replacing(out) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return out


def settings(args: argparse.Namespace) -> Iterator[tuple[str, DataModule, dict[str, Any]]]:
    """Names, data and options of the measurements."""
    if args.mnist:
        for canvas in (1500, 3000):
            data = get_data("megapixel_digits", root=str(args.mnist), download=False, canvas=canvas, task="one")
            yield f"digits, {canvas:,} px", data, FEW
    weights = args.folder / "mobilenetv2.safetensors"
    if args.cracks:
        table, splits = cracks.prepare(args.cracks, args.folder / "cracks", fold=None, validate=True)
        if not weights.is_file():
            mobilenet_int8.write(args.weights, splits["train"][:64], weights)
        data = get_data("manifest", file=str(table))
        yield "cracks, boxes", get_data("manifest", file=str(with_boxes(table, args.cracks))), FEW
        yield "cracks", data, {}
        yield "cracks, MobileNetV2", data, MOBILENET | {"pretrained": str(weights)}
    if args.rsscn7:
        table, _ = photographs.prepare(args.rsscn7, args.folder / "rsscn7")
        data = get_data("manifest", file=str(table))
        yield "aerial scenes", data, {"look_size": 128}
        yield "aerial scenes, MobileNetV2", data, MOBILENET | {"look_size": 128, "pretrained": str(weights)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", type=Path, help="folder with MNIST/raw")
    parser.add_argument("--cracks", type=Path, help="folder with labels.json and the images, 000.jpg ...")
    parser.add_argument("--rsscn7", type=Path, help="folder with one folder per class")
    parser.add_argument("--weights", type=Path, help="archive of MobileNetV2, see mobilenet_int8.py")
    parser.add_argument("--folder", type=Path, default=Path("runs/visible"), help="for tables and weights")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", help="names of measurements, such as 'cracks, boxes'; others are kept")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/visible.json"))
    args = parser.parse_args()

    rows = json.loads(args.out.read_text())["results"] if args.only and args.out.is_file() else []
    for name, data, options in settings(args):
        if args.only and name not in args.only:
            continue
        for seed in args.seeds:
            began = time.process_time()
            found = visible(data, seed=seed, device="cpu", **options)
            seconds = time.process_time() - began
            print(f"\n{name}, seed {seed}: {seconds:.0f} s")
            console().print(found.table())
            content = found.as_dict() | {"data": name, "processor_seconds": round(seconds)}
            del content["notes"]
            for one in content["suggested"]:
                one["flags"] = ["FILE" if flag == options.get("pretrained") else flag for flag in one["flags"]]
            rows = [row for row in rows if (row["data"], row["seed"]) != (name, seed)] + [content]
            write(args.out, rows, seed=None)


if __name__ == "__main__":
    main()

"""Cost of TNet compared with its backbone.

Four questions, each with a reference that is measured in the same run:

(a) memory: prediction of TNet, relative to the backbone on the same crops in the same batches

(b) dense: prediction of TNet, relative to the dense backbone on the whole image, with the ratio of their MACs

(c) disk: a complete prediction (open, read, classify) of a tiled pyramid, relative to the backbone on the same crops

(d) training: share of a training step outside the forward and backward pass of the backbone, and the step of the dense
backbone

In (a) and (c) the reference is the unmodified backbone, and once more with folded batch norms as in predictions; in (b)
all batch norms are folded.

    python benchmarks/traversal.py memory dense training --out benchmarks/results/traversal.json
    python benchmarks/traversal.py disk --folder runs/pyramids --out benchmarks/results/traversal_disk.json
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from harness import in_turn, milliseconds, ratio, synchronise, write
from torch import Tensor, nn

from foveal import create_model
from foveal.draws import Draws
from foveal.glimpse.tnet import TNet
from foveal.images.views import TensorViews, Views
from foveal.models import as_classifier
from foveal.prediction import count_cost, fold_norms

PRESETS = {"reference": "tnet_efficientnet_b0.reference_fmow", "default": "tnet"}
BUDGETS = {448: (2,), 896: (2, 1), 1792: (2, 1)}


def build(preset: str, device: str) -> TNet:
    torch.manual_seed(0)
    return create_model(PRESETS[preset], num_classes=62).eval().to(device)


class Recording(Views):
    """Views that record all looks, so the reference processes the same crops."""

    def __init__(self, views: Views) -> None:
        self.views, self.sizes, self.channels, self.errors = views, views.sizes, views.channels, {}
        self.asked: list[tuple[tuple, dict]] = []
        self.crops: list[Tensor] = []

    def look(self, *args, **options) -> Tensor:
        self.asked.append((args, options))
        self.crops.append(self.views.look(*args, **options))
        return self.crops[-1]


def crops_of(model: TNet, views: Views, locations: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    recording = Recording(views)
    with torch.inference_mode():
        model(recording, locations)
    mean, std = model.mean[:, None, None], model.std[:, None, None]
    return [
        ((c.to(mean.device) - mean) / std).to(memory_format=torch.channels_last, dtype=dtype) for c in recording.crops
    ]


def replay(views: Views, asked: list[tuple[tuple, dict]]) -> list[Tensor]:
    return [views.look(*args, **options) for args, options in asked]


def through(backbone: nn.Module, crops: list[Tensor]) -> list[Tensor]:
    return [backbone.forward_head(backbone.forward_features(c), pre_logits=True) for c in crops]


def memory(device: str, batches: list[int], seconds: float, precision: str) -> Iterator[dict]:
    for preset in PRESETS:
        model = build(preset, device)
        folded = fold_norms(model)
        for side, locations in BUDGETS.items():
            for batch in batches:
                images = torch.rand(batch, 3, side, side, device=device)
                crops = crops_of(model, TensorViews(images), locations)
                looks = Recording(TensorViews(images))
                with (
                    torch.inference_mode(),
                    torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16"),
                ):
                    model(looks, locations)
                    times = in_turn(
                        {
                            "tnet": lambda m=folded, v=images, k=locations: m(TensorViews(v), k, contributions=False),
                            "floor": lambda m=model, c=crops: through(m.backbone, c),
                            "folded": lambda m=folded, c=crops: through(m.backbone, c),
                            "resampling": lambda v=images, w=looks.asked: replay(TensorViews(v), w),
                        },
                        seconds=seconds,
                        device=device,
                    )
                yield {
                    "question": "memory",
                    "preset": preset,
                    "side": side,
                    "locations": locations,
                    "batch": batch,
                    "precision": precision,
                    "tnet_ms": milliseconds(times["tnet"], batch),
                    "floor_ms": milliseconds(times["floor"], batch),
                    "folded_floor_ms": milliseconds(times["folded"], batch),
                    "resampling_ms": milliseconds(times["resampling"], batch),
                    "tnet_over_floor": ratio(times["tnet"], times["floor"]),
                    "tnet_over_folded_floor": ratio(times["tnet"], times["folded"]),
                }


def dense(device: str, batches: list[int], seconds: float, precision: str) -> Iterator[dict]:
    for preset in PRESETS:
        model = build(preset, device)
        network, model = fold_norms(as_classifier(model.dense()).eval()).network, fold_norms(model)
        for side, locations in BUDGETS.items():
            macs = count_cost(network, side).macs / count_cost(model, side, locations).macs
            for batch in batches:
                images = torch.rand(batch, 3, side, side, device=device)
                normalised = images.mul(2).sub(1).to(memory_format=torch.channels_last)
                with (
                    torch.inference_mode(),
                    torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16"),
                ):
                    times = in_turn(
                        {
                            "tnet": lambda m=model, v=images, k=locations: m(TensorViews(v), k, contributions=False),
                            "dense": lambda n=network, x=normalised: n(x),
                        },
                        seconds=seconds,
                        device=device,
                    )
                yield {
                    "question": "dense",
                    "preset": preset,
                    "side": side,
                    "locations": locations,
                    "batch": batch,
                    "precision": precision,
                    "tnet_ms": milliseconds(times["tnet"], batch),
                    "dense_ms": milliseconds(times["dense"], batch),
                    "speed_up": ratio(times["dense"], times["tnet"]),
                    "macs_ratio": round(macs, 3),
                }


def training(device: str, batches: list[int], seconds: float, precision: str) -> Iterator[dict]:
    for preset in PRESETS:
        model = build(preset, device).train()
        objective = model.default_objective()
        for side, locations in {448: (2,), 896: (2, 1)}.items():
            for batch in batches:
                images, target = (
                    torch.rand(batch, 3, side, side, device=device),
                    torch.arange(batch, device=device) % 62,
                )
                crops = crops_of(copy.deepcopy(model).eval(), TensorViews(images), locations)
                optimiser = torch.optim.AdamW(model.parameters(), lr=0.0)
                state = objective.initial_state().to(device)
                autocast = torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16")

                def step(
                    m=model,
                    want=objective,
                    v=images,
                    k=locations,
                    t=target,
                    o=optimiser,
                    s=state,
                    b=batch,
                    cast=autocast,
                ) -> None:
                    with cast:
                        rollouts = m.rollouts(TensorViews(v), want.plan(1.0), Draws(0, 0, np.arange(b)), k)
                        loss, _, _ = want(rollouts, t, s)
                    o.zero_grad()
                    loss.backward()
                    o.step()

                def floor(m=model, c=crops, cast=autocast) -> None:
                    m.zero_grad()
                    with cast:
                        features = through(m.backbone, c)
                    torch.cat(features).float().sum().backward()

                network = model.dense().train()
                whole = images.to(memory_format=torch.channels_last)

                def dense_step(n=network, x=whole, t=target, cast=autocast) -> None:
                    n.zero_grad()
                    with cast:
                        loss = torch.nn.functional.cross_entropy(n(x), t)
                    loss.backward()

                times = in_turn({"step": step, "floor": floor, "dense": dense_step}, seconds=seconds, device=device)
                share = 1 - times["floor"] / times["step"]
                yield {
                    "question": "training",
                    "preset": preset,
                    "side": side,
                    "locations": locations,
                    "batch": batch,
                    "precision": precision,
                    "step_ms": milliseconds(times["step"], batch),
                    "floor_ms": milliseconds(times["floor"], batch),
                    "step_over_floor": ratio(times["step"], times["floor"]),
                    "not_backbone": round(float(np.median(share)), 4),
                    "dense_step_ms": milliseconds(times["dense"], batch),
                    "dense_over_step": ratio(times["dense"], times["step"]),
                }


# ------------------------------------------------------------------------------------------------------------ from disk


def write_pyramid(path: Path, side: int, seed: int = 0) -> None:
    """Write a tiled pyramidal JPEG file of ``side`` squared: photographs in tiles of 256 px, with levels down to one
    tile.

    Tiles are encoded once and reused in random order, which costs a reader the same.
    """
    import imagecodecs
    import tifffile
    from skimage import data

    rng = np.random.default_rng(seed)
    photographs = [data.astronaut(), data.coffee(), data.chelsea(), data.rocket()]
    tiles = []
    for _ in range(64):
        photograph = photographs[rng.integers(len(photographs))]
        y, x = (int(rng.integers(0, n - 256)) for n in photograph.shape[:2])
        tile = np.ascontiguousarray(photograph[y : y + 256, x : x + 256])
        tiles.append(
            imagecodecs.jpeg8_encode(tile, level=85, subsampling="420", colorspace="rgb", outcolorspace="ycbcr")
        )
    temporary = path.with_suffix(".part")
    with tifffile.TiffWriter(temporary, bigtiff=True) as writer:
        size = side
        while True:
            across = -(-size // 256)
            order = rng.integers(0, len(tiles), across * across)
            writer.write(
                (tiles[i] for i in order),
                shape=(size, size, 3),
                dtype=np.uint8,
                tile=(256, 256),
                photometric="ycbcr",
                subsampling=(2, 2),
                compression="jpeg",
                subfiletype=0 if size == side else 1,
                metadata=None,
            )
            if size <= 256:
                break
            size //= 2
    temporary.rename(path)


def native(side: int) -> tuple[int, ...]:
    """Locations with levels added until the last look is at native resolution."""
    levels = max(1, round(np.log2(side / 224)))
    return (2,) + (1,) * (levels - 1)


def disk(folder: Path, seconds: float) -> Iterator[dict]:
    folder.mkdir(parents=True, exist_ok=True)
    for side in (4096, 16384, 32768):
        if not (folder / f"{side}.tif").exists():
            write_pyramid(folder / f"{side}.tif", side)
    for preset in PRESETS:
        for name, sides in (("(2,1)", (4096, 16384, 32768)), ("native", (4096, 16384, 32768))):
            for side in sides:
                # One process per file, so memory of earlier files does not count.
                locations = map(str, (2, 1) if name == "(2,1)" else native(side))
                command = [
                    sys.executable,
                    __file__,
                    "one-file",
                    "--folder",
                    str(folder),
                    "--preset",
                    preset,
                    "--side",
                    str(side),
                ]
                command += ["--seconds", str(seconds), "--locations", *locations]
                yield {
                    "question": "disk",
                    "budget": name,
                    **json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout),
                }


def one_file(folder: Path, preset: str, side: int, locations: tuple[int, ...], seconds: float) -> dict:
    from foveal import open_image
    from foveal.images import ImageViews

    bare = build(preset, "cpu")
    model = fold_norms(bare)
    path = folder / f"{side}.tif"

    def predict(file: Path = path) -> int:
        with open_image(file, channels=3) as image, torch.inference_mode():
            views = ImageViews([image])
            model(views, locations, contributions=False)
            return int(views.bytes_read[0])

    def only_read(wanted: list[tuple[np.ndarray, tuple[int, int]]]) -> None:
        with open_image(path, channels=3) as image:
            views = ImageViews([image])
            for boxes, size in wanted:
                views.look(np.zeros(len(boxes), dtype=int), boxes, size)

    # Warm up with the smallest file, so later growth of memory is due to the measured file.
    for _ in range(5):
        predict(folder / "4096.tif")
    before = memory_kib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    bytes_read = predict()
    peak = memory_kib("VmHWM") - before
    with open_image(path, channels=3) as image:
        views = ImageViews([image])
        crops = crops_of(model, views, locations)
        with torch.inference_mode():
            looked = model(views, locations).glimpses
    wanted = [(looked.box[looked.level == level], model.size) for level in np.unique(looked.level)]
    with torch.inference_mode():
        times = in_turn(
            {
                "prediction": predict,
                "floor": lambda: through(bare.backbone, crops),
                "folded": lambda: through(model.backbone, crops),
                "reading": lambda: only_read(wanted),
            },
            seconds=seconds,
        )
    return {
        "preset": preset,
        "side": side,
        "locations": locations,
        "glimpses": sum(len(c) for c in crops),
        "bytes_read": bytes_read,
        "file_bytes": path.stat().st_size,
        "prediction_ms": milliseconds(times["prediction"]),
        "floor_ms": milliseconds(times["floor"]),
        "folded_floor_ms": milliseconds(times["folded"]),
        "open_and_read_ms": milliseconds(times["reading"]),
        "prediction_over_floor": ratio(times["prediction"], times["floor"]),
        "prediction_over_folded_floor": ratio(times["prediction"], times["folded"]),
        "peak_above_warm_kib": peak,
    }


def memory_kib(field: str) -> int:
    return next(
        int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("questions", nargs="+", choices=("memory", "dense", "disk", "training", "one-file"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--seconds", type=float, default=10, help="for each case")
    parser.add_argument(
        "--folder", type=Path, help="where the pyramids of the disk question are, or are written (about 0.5 GB)"
    )
    parser.add_argument("--out", help="JSON file for the results")
    parser.add_argument("--preset", choices=PRESETS, help=argparse.SUPPRESS)
    parser.add_argument("--side", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--locations", type=int, nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.questions == ["one-file"]:
        print(json.dumps(one_file(args.folder, args.preset, args.side, tuple(args.locations), args.seconds)))
        return
    if "disk" in args.questions and args.folder is None:
        parser.error("the disk question needs --folder")
    if "disk" in args.questions and args.device != "cpu" and len(args.questions) > 1:
        parser.error("the disk question is asked of a CPU; ask it alone")
    results, began = [], time.time()
    for question in args.questions:
        if question == "disk":  # on a CPU
            rows = disk(args.folder, args.seconds)
        else:
            rows = {"memory": memory, "dense": dense, "training": training}[question](
                args.device, args.batch, args.seconds, args.precision
            )
        for row in rows:
            print(json.dumps(row), flush=True)
            results.append(row)
            write(args.out, results, device="cpu" if args.questions == ["disk"] else args.device)
    synchronise(args.device)
    print(f"{time.time() - began:.0f} s")


if __name__ == "__main__":
    main()

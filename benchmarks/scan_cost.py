"""What a scan of a large file costs: memory, bytes and time by image size, its parts, and the tiles not decoded.

Synthetic slides are tiled pyramidal JPEG files of photographs, in the page cache: full, or on a disc of 40 % of the
area with one colour around it. Real files are those of the folder ``--real``. Times are processor time of one thread;
weights are random, and the cost does not depend on them. Each memory figure comes from a process of its own.

    python benchmarks/scan_cost.py --folder runs/slides --real data/wsi-cog --out benchmarks/results/scan_cost.json
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import write

from foveal.draws import Draws
from foveal.evaluation.timing import _peak_memory, _status
from foveal.glimpse.scan import Scan
from foveal.host import keep_freed_memory
from foveal.images import ImageViews, open_image, tiff
from foveal.policies import GREEDY

SIDES = (1500, 4000, 8000, 16_000, 32_000)
ROUNDS = 5
REAL = ("rio-tiler-cog_world.tif", "tcga-cr-7395-ts1.svs", "CMU-1-Small-Region.svs")
LIMITS = (300, 1000)  # bytes


def write_slide(path: Path, side: int, share: float = 1.0, levels: bool = True) -> None:
    """Write a tiled pyramid, see the module. Tiles are encoded once, and reused in random order.

    Args:
        path: the file.
        side: height and width in pixels.
        share: share of the area with photographs.
        levels: write all levels; else level 0 only.
    """
    import imagecodecs
    import tifffile
    from skimage import data

    rng, tiles = np.random.default_rng(0), []
    photographs = [data.astronaut(), data.coffee(), data.chelsea(), data.rocket()]
    for number in range(65):
        photograph = photographs[number % len(photographs)]
        y, x = (int(rng.integers(0, n - 256)) for n in photograph.shape[:2])
        tile = photograph[y : y + 256, x : x + 256] if number < 64 else np.full((256, 256, 3), 242, np.uint8)
        tiles.append(
            imagecodecs.jpeg8_encode(
                np.ascontiguousarray(tile), level=85, subsampling="420", colorspace="rgb", outcolorspace="ycbcr"
            )
        )

    def level(across: int) -> Iterator[bytes]:
        middle = (np.arange(across) + 0.5) / across - 0.5
        inside = (
            np.hypot(*np.meshgrid(middle, middle)) <= np.sqrt(share / np.pi) if share < 1 else np.ones((across,) * 2)
        )
        yield from (tiles[rng.integers(64) if one else 64] for one in inside.flat)

    options: dict[str, Any] = {"tile": (256, 256), "photometric": "ycbcr", "subsampling": (2, 2), "compression": "jpeg"}
    temporary, size = path.with_suffix(".part"), side
    with tifffile.TiffWriter(temporary, bigtiff=True) as writer:
        while True:
            writer.write(
                level(-(-size // 256)),
                shape=(size, size, 3),
                dtype=np.uint8,
                subfiletype=int(size < side),
                metadata=None,
                **options,
            )
            if size <= 256 or not levels:
                break
            size = -(-size // 2)
    temporary.rename(path)


def model_for(channels: int, scale: int, **options: Any) -> Scan:
    torch.manual_seed(0)
    return Scan(num_classes=2, in_chans=channels, scale=scale, **options).eval()


def scan(file: Path, scale: int, count: int = 8, **options: Any) -> dict[str, Any]:
    """Scan a file, and describe what that took."""
    with open_image(file) as image:
        model, views = model_for(image.channels, scale, **options), ImageViews([image])
        level = image._level((0, 0, scale, scale), (1, 1), True)
        looks: list[int] = []
        see = model.see
        model.see = lambda *args: looks.append(1) or see(*args)  # type: ignore[assignment, func-returns-value]
        start = time.process_time()
        with torch.inference_mode():
            found = model.scan(views, count, GREEDY, Draws(0, 0, np.zeros(1, int)), "scan")
        seconds = time.process_time() - start
        grid = image._headers().levels[level]
        return {
            "size": list(image.size),
            "scale": scale,
            "level_scale": round(image.size[0] / image.level_sizes[level][0], 3),
            "tiles": grid.rows * grid.columns,
            "tiles_decoded": image.tiles_decoded,
            "blocks": len(model._blocks(views.sizes)[0]),
            "blocks_read": len(looks),
            "bytes_read": image.bytes_read,
            "file_bytes": file.stat().st_size,
            "cpu_seconds": round(seconds, 3),
            "places": found.places[found.taken].tolist(),
        }


def memory(file: Path) -> dict[str, Any]:
    """Peak memory of a process that scans one file, and its growth during the scan. A scan of a small image comes
    first, to load the kernels."""
    keep_freed_memory()
    model, done = model_for(3, 4), dict[str, Any]()
    scan(file.with_name("0.tif"), 4)
    added = _peak_memory(lambda: done.update(scan(file, 4)), model)
    return {**done, "peak_kib": _status("VmHWM") // 1024, "added_kib": (added or 0) // 1024}


def parts(file: Path) -> dict[str, Any]:
    """Processor time of a scan, of reading its blocks, and of scoring all of its tiles, in turn."""
    model, draws = model_for(3, 4), Draws(0, 0, np.zeros(1, int))
    with open_image(file) as image:
        views = ImageViews([image])
        blocks = model._blocks(views.sizes)[0]
        boxes = [model._box(block) for block in blocks]
        seen = [model.see(views, np.array([0]), box[None], shape) for box, shape in boxes]

    def read() -> None:
        with open_image(file) as image:
            views = ImageViews([image])
            for box, shape in boxes:
                image.is_constant(box.tolist(), shape)  # keeps the tiles for the next block
                model.see(views, np.array([0]), box[None], shape)

    def score() -> None:
        for block, pixels in zip(blocks, seen, strict=True):
            model._score_tiles(pixels, np.ones((1, *(block.end - block.begin)), bool))

    def whole() -> None:
        with open_image(file) as image:
            model.scan(ImageViews([image]), 8, GREEDY, draws, "scan")

    times: dict[str, list[float]] = {"scan": [], "read": [], "score": []}
    with torch.inference_mode():
        for number in range(ROUNDS + 1):
            for name, task in (("scan", whole), ("read", read), ("score", score)):
                start = time.process_time()
                task()
                if number:  # the first round is a warm-up
                    times[name].append(time.process_time() - start)
    return {name: round(float(np.median(values)), 4) for name, values in times.items()} | {"rounds": ROUNDS}


def without_rule(file: Path, scale: int, count: int) -> dict[str, Any]:
    """`scan`, decoding every tile and reading every block."""
    found, tiff._CONSTANT = tiff._CONSTANT, 1 << 40
    try:
        return scan(file, scale, count)
    finally:
        tiff._CONSTANT = found


def spared(file: Path, scale: int) -> dict[str, Any]:
    """Scans of one file with the default rule, without it, and with limits of bytes."""
    ours, plain = scan(file, scale, 100), without_rule(file, scale, 100)
    limits = {}
    for limit in LIMITS if scale > 1 else ():
        done = scan(file, scale, 100, blank_bytes=limit)
        lost = len({*map(tuple, ours["places"])} - {*map(tuple, done["places"])})
        limits[str(limit)] = {**done, "places": len(done["places"]), "places_lost": lost}
    kept = len(ours["places"])
    assert ours["places"] == plain["places"]
    return {"default": {**ours, "places": kept}, "every": {**plain, "places": len(plain["places"])}, "limits": limits}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--folder", type=Path, required=True, help="where synthetic slides are written, half a gigabyte"
    )
    parser.add_argument("--real", type=Path, required=True, help="folder with the real files")
    parser.add_argument("--memory-of", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", default=None)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.memory_of:
        print(json.dumps(memory(args.memory_of)))
        return
    args.folder.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"sizes": [], "real": []}
    write_slide(args.folder / "0.tif", 300)
    for side in SIDES:
        for kind, share in (("full", 1.0), ("disc", 0.4)):
            file = args.folder / f"{kind}_{side}.tif"
            write_slide(file, side, share)
            command = [sys.executable, __file__, "--folder", args.folder, "--real", args.real, "--memory-of", file]
            told = subprocess.run([*map(str, command)], capture_output=True, text=True, check=True)
            row = {"kind": kind, "side": side, **json.loads(told.stdout)}
            row["places"] = len(row["places"])
            results["sizes"].append(row)
            print(row, flush=True)
            if kind == "full" and side == 8000:
                results["parts"] = {"side": side, **parts(file)}
                print(results["parts"], flush=True)
            file.unlink()
    file = args.folder / "flat_8000.tif"
    write_slide(file, 7900, levels=False)
    results["one_level"] = {"side": 7900, **scan(file, 4)}
    del results["one_level"]["places"]
    file.unlink()
    for name in REAL:
        for scale in (4, 1):
            results["real"].append({"file": name, **spared(args.real / name, scale)})
            print(results["real"][-1], flush=True)
    write(args.out, results)


if __name__ == "__main__":
    main()

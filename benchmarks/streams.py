"""Photographs in a folder, and in shards read by foveal, webdataset and litdata.

    pip install webdataset litdata
    python benchmarks/streams.py --out benchmarks/results/streams.json

All four decode the same JPEG files with the same reader and the same random crops, in one process. Passes over the
images alternate, so that other load affects all of them. The files are in the page cache. Orders are compared for one
process and for two, which see half of each batch.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from harness import write
from PIL import Image

from foveal.data import get_data
from foveal.data.augmentation import change_pixels, draw_change
from foveal.data.shards import INDEX, pack
from foveal.draws import generator
from foveal.images import open_content

SIDE, SEED, BATCH = 96, 0, 32
OPTIONS: dict[str, Any] = {"val_fraction": 0.0, "augmentation": "inception", "image_size": SIDE}


def make(folder: Path, images: int) -> Path:
    """Smooth JPEG images with noise, which compress as photographs do, in folders of ten classes."""
    draws = np.random.default_rng(0)
    for i in range(images):
        target = folder / str(i % 10) / f"{i:05}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(draws.integers(0, 256, (15, 20, 3), np.uint8))
        pixels = np.asarray(coarse.resize((320, 240), Image.Resampling.BICUBIC), np.int16)
        noisy = (pixels + draws.integers(-12, 13, pixels.shape, np.int16)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(target, quality=90)
    return folder


def decoded(content: bytes, number: int) -> Any:
    """The pixels that a data set of foveal makes of a file."""
    image = open_content(content, str(number), channels=3)
    change = draw_change("inception", (0, 0, *image.size), None, generator(SEED, 0, number, "augmentation"))
    with image:
        return change_pixels(change, image, SIDE, None)


def by_webdataset(shards: list[str], rank: int = 0, world: int = 1) -> Iterator[dict[str, Any]]:
    """Samples in the order of webdataset with a buffer of a thousand."""
    import webdataset

    os.environ.update({"RANK": str(rank), "WORLD_SIZE": str(world)})
    try:
        stream = webdataset.WebDataset(
            shards, shardshuffle=len(shards), seed=SEED, nodesplitter=webdataset.split_by_node, empty_check=False
        )
        yield from stream.shuffle(1000, seed=SEED)
    finally:
        del os.environ["RANK"], os.environ["WORLD_SIZE"]


def litdata_set(folder: str, rank: int = 0, world: int = 1) -> Any:
    from litdata import StreamingDataset
    from litdata.utilities.env import _DistributedEnv

    data = StreamingDataset(folder, shuffle=True, seed=SEED)
    data.distributed_env = _DistributedEnv(world, rank, 1)
    return data


def litdata_loader(data: Any) -> Any:
    from litdata import StreamingDataLoader

    return StreamingDataLoader(data, batch_size=BATCH, collate_fn=list)


def write_litdata(paths: list[str], out: str) -> None:
    from litdata.streaming.writer import BinaryWriter

    writer = BinaryWriter(out, chunk_bytes="8MB")
    for i, path in enumerate(paths):
        writer.add_item(i, {"jpg": Path(path).read_bytes(), "number": i})
    writer.done()
    writer.merge()


def timed(run: Callable[[], int]) -> tuple[float, float, int]:
    """Processor seconds, seconds and the result of a function."""
    began, cpu = time.perf_counter(), time.process_time()
    count = run()
    return time.process_time() - cpu, time.perf_counter() - began, count


def same_batches(one: list[Any], halves: list[list[Any]]) -> bool:
    """Whether two processes together see the batches of one."""
    return all(
        sorted(one[j * BATCH : (j + 1) * BATCH])
        == sorted(x for half in halves for x in half[j * BATCH // 2 : (j + 1) * BATCH // 2])
        for j in range(len(one) // BATCH)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        results = measure(Path(folder), args.images, args.rounds)
    results["versions"] = {name: version(name) for name in ("webdataset", "litdata")}
    write(args.out, results)


def measure(folder: Path, images: int, rounds: int) -> dict[str, Any]:
    root = make(folder / "photos", images)
    files = get_data("folder", root=str(root), **OPTIONS)
    pack(files, folder / "shards", shard_bytes=8 << 20)
    shards = sorted(str(path) for path in (folder / "shards").glob("*.tar"))
    paths = [files.train.path(i) for i in range(images)]
    lit = folder / "lit"
    lit.mkdir()
    write_litdata(paths, str(lit))
    ours = get_data("shards", root=str(folder / "shards"), **OPTIONS)

    def loader(data: Any, **ranks: int) -> Any:
        return data.loader("train", batch_size=BATCH // ranks.get("world_size", 1), seed=SEED, **ranks)

    reads: dict[str, Callable[[], Iterator[bytes]]] = {
        "folder": lambda: (Path(paths[i]).read_bytes() for i in generator(SEED, 0, 0, "order").permutation(images)),
        "shards": lambda: (ours.train.content(int(i)) for i in generator(SEED, 0, 0, "order").permutation(images)),
        "webdataset": lambda: (sample["jpg"] for sample in by_webdataset(shards)),
        "litdata": lambda: (sample["jpg"] for batch in litdata_loader(litdata_set(str(lit))) for sample in batch),
    }
    passes: dict[str, Callable[[], int]] = {
        "folder": lambda: sum(len(batch) for batch in loader(files)),
        "shards": lambda: sum(len(batch) for batch in loader(ours)),
        **{
            name: lambda name=name: sum(len(decoded(content, i)) // 3 for i, content in enumerate(reads[name]()))
            for name in ("webdataset", "litdata")
        },
    }
    tasks = {
        **{(name, "pass"): run for name, run in passes.items()},
        **{(name, "read"): lambda make=make: sum(1 for _ in make()) for name, make in reads.items()},
    }
    times: dict[tuple[str, str], list[tuple[float, float]]] = {key: [] for key in tasks}
    draws = np.random.default_rng(1)
    for number in range(rounds + 1):
        for key in draws.permutation(np.array(list(tasks), dtype=object)).tolist():
            cpu, wall, count = timed(tasks[tuple(key)])
            assert count == images, (key, count)
            if number:  # the first round warms up
                times[tuple(key)].append((cpu, wall))
    figures: dict[str, dict[str, Any]] = {}
    for name in passes:
        whole, read = np.array(times[name, "pass"]), np.array(times[name, "read"])
        figures[name] = {
            "cpu_ms": round(1e3 * float(np.median(whole[:, 0])) / images, 4),
            "cpu_ms_range": [round(1e3 * float(x) / images, 4) for x in (whole[:, 0].min(), whole[:, 0].max())],
            "images_per_second": round(images / float(np.median(whole[:, 1]))),
            "read_cpu_us": round(1e6 * float(np.median(read[:, 0])) / images, 1),
        }

    # Going on in the middle of an epoch: what the next batch costs, and whether it is the one of the whole epoch.
    half = images // BATCH // 2

    def ours_from(data: Any) -> list[int]:
        it = loader(data)
        it.set_epoch(0, half)
        return next(iter(it.order))[1]

    whole_order = [i for _, batch in loader(ours).order for i in batch]
    for name, data in (("folder", files), ("shards", ours)):

        def resume(data: Any = data) -> int:
            it = loader(data)
            it.set_epoch(0, half)
            return len(next(iter(it)))

        costs = [timed(resume)[0] for _ in range(rounds)]
        figures[name]["resume_ms"] = round(1e3 * float(np.median(costs)), 1)
        figures[name]["resume_exact"] = ours_from(data) == whole_order[half * BATCH : (half + 1) * BATCH]
        halves = [[i for _, b in loader(data, rank=r, world_size=2).order for i in b] for r in range(2)]
        figures[name]["same_for_two"] = same_batches(whole_order, halves)

    def keys(rank: int = 0, world: int = 1) -> list[str]:
        return [sample["__key__"] for sample in by_webdataset(shards, rank, world)]

    whole_keys = keys()

    def resume_webdataset() -> int:
        at = half * BATCH
        found = list(islice(by_webdataset(shards), at, at + BATCH))
        nonlocal exact
        exact = [s["__key__"] for s in found] == whole_keys[at : at + BATCH]
        return len([decoded(s["jpg"], at + i) for i, s in enumerate(found)])

    exact = False
    costs = [timed(resume_webdataset)[0] for _ in range(rounds)]
    figures["webdataset"]["resume_ms"] = round(1e3 * float(np.median(costs)), 1)
    figures["webdataset"]["resume_exact"] = exact
    figures["webdataset"]["same_for_two"] = same_batches(whole_keys, [keys(rank, 2) for rank in range(2)])

    def numbers(rank: int = 0, world: int = 1) -> list[int]:
        return [s["number"] for batch in litdata_loader(litdata_set(str(lit), rank, world)) for s in batch]

    whole_numbers = numbers()

    def resume_litdata() -> tuple[float, bool]:
        first = litdata_loader(litdata_set(str(lit)))
        for _ in islice(iter(first), half):
            pass
        state = first.state_dict()

        def go() -> int:
            nonlocal next_batch
            again = litdata_loader(litdata_set(str(lit)))
            again.load_state_dict(state)
            next_batch = next(iter(again))
            return len([decoded(s["jpg"], i) for i, s in enumerate(next_batch)])

        next_batch: list[Any] = []
        cost = timed(go)[0]
        return cost, [s["number"] for s in next_batch] == whole_numbers[half * BATCH : (half + 1) * BATCH]

    tried = [resume_litdata() for _ in range(rounds)]
    figures["litdata"]["resume_ms"] = round(1e3 * float(np.median([cost for cost, _ in tried])), 1)
    figures["litdata"]["resume_exact"] = all(exact for _, exact in tried)
    figures["litdata"]["same_for_two"] = same_batches(whole_numbers, [numbers(rank, 2) for rank in range(2)])

    # Opening
    def opened(name: str, root: Path) -> float:
        return 1e6 * timed(lambda: len(get_data(name, root=str(root), **OPTIONS).train))[0] / images

    figures["folder"]["open_us"] = round(min(opened("folder", root) for _ in range(3)), 1)
    figures["shards"]["open_us"] = round(min(opened("shards", folder / "shards") for _ in range(3)), 1)
    for index in (folder / "shards").glob(f"*{INDEX}"):
        index.unlink()
    figures["shards"]["index_us"] = round(opened("shards", folder / "shards"), 1)
    bytes_each = sum(Path(path).stat().st_size for path in paths) // images
    shutil.rmtree(lit)
    return {
        "images": images,
        "bytes_each": bytes_each,
        "shards": len(shards),
        "rounds": rounds,
        "side": SIDE,
        "batch": BATCH,
        "figures": figures,
    }


if __name__ == "__main__":
    main()

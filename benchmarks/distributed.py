"""Parts of a manifest: throughput of two workers compared with one, memory, and what large jobs are made of.

    python benchmarks/distributed.py --out benchmarks/results/distributed.json

A worker is a process on one processor. Rounds in which one worker makes shards, and in which both do, alternate; each
worker works alone in every second round. Processor time of a worker is divided into reading (opening, decoding and
resampling), writing (journal and parts) and deciding (the rest). The rows of the manifest list the same images many
times, so the files are in the page cache. Models have random weights. The same is measured with workers of a local Ray
cluster (`--ray 0` leaves it out), and the costs of an image, a part, a manifest and a merge are measured one by one.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import ratio, write
from serve import MODELS, make
from traversal import write_pyramid

from foveal.distributed import cluster, merge, open_manifest, predict_on_ray, shards
from foveal.distributed.shards import Shards, shard_rows
from foveal.images import ImageViews
from foveal.images.views import View
from foveal.models import create_model
from foveal.prediction import rows
from foveal.prediction.journal import Journal
from foveal.runs import ModelInfo, save_model

ROWS = 250
"""Rows of a shard."""

SPENT = {"reading": 0.0, "writing": 0.0}
_local = threading.local()


def count(owner: Any, name: str, what: str) -> None:
    """Count the processor time of calls of a function, of the outermost if they are nested."""
    function = getattr(owner, name)

    def counted(*given: Any, **options: Any) -> Any:
        if getattr(_local, "inside", False):
            return function(*given, **options)
        _local.inside, start = True, time.thread_time()
        try:
            return function(*given, **options)
        finally:
            _local.inside = False
            SPENT[what] += time.thread_time() - start

    setattr(owner, name, counted)


def count_all() -> None:
    for owner, name in ((rows, "_open"), (ImageViews, "look"), (View, "read_cuts")):
        count(owner, name, "reading")
    for owner, name in ((Journal, "append"), (shards, "write_part")):
        count(owner, name, "writing")


def resident() -> float:
    """Memory of this process in MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20


def worker(processor: int, run: Path, manifest: Any, total: int, out: Path, link: Any) -> None:
    """Make the shards that are asked for; tell times and memory."""
    os.sched_setaffinity(0, {processor})
    torch.set_num_threads(1)
    count_all()
    made = Shards(run, manifest, total, out, device="cpu")
    link.send("ready")
    while wanted := link.recv():
        before, began, began_cpu = dict(SPENT), time.perf_counter(), time.process_time()
        memory = []
        for shard in wanted:
            made.make(shard)
            memory.append(round(resident(), 1))
        link.send(
            {
                "seconds": time.perf_counter() - began,
                "cpu": time.process_time() - began_cpu,
                **{key: SPENT[key] - before[key] for key in SPENT},
                "memory": memory,
            }
        )


def list_images(file: Path, names: list[str], count: int) -> Any:
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.table({"path": [names[i % len(names)] for i in range(count)]}), file)
    return open_manifest(file)


def throughput(folder: Path, rounds: int) -> dict:
    """One worker and two, in turn."""
    run, names = make(folder / "small", *MODELS["small network, 256 px"], 400)
    total = 6 * rounds + 2
    manifest = list_images(folder / "small" / "images" / "images.parquet", names, total * ROWS)
    context = multiprocessing.get_context("spawn")
    links, processes = [], []
    for i, processor in enumerate(sorted(os.sched_getaffinity(0))[:2]):
        mine, theirs = context.Pipe()
        given = (processor, run, manifest, total, folder / "small" / "parts", theirs)
        processes.append(context.Process(target=worker, args=given))
        processes[i].start()
        links.append(mine)
    numbers = iter(range(total))

    def ask(which: list[int], shards: int = 2) -> tuple[float, list[dict]]:
        began = time.perf_counter()
        for i in which:
            links[i].send([next(numbers) for _ in range(shards)])
        told = [links[i].recv() for i in which]
        return time.perf_counter() - began, told

    for link in links:
        assert link.recv() == "ready"
    ask([0, 1], 1)  # warm up
    wall: dict[str, list[float]] = {"one": [], "two": []}
    cpu: dict[str, list[float]] = {"one": [], "two": []}
    parts = {"reading": 0.0, "writing": 0.0, "cpu": 0.0}
    memory: list[list[float]] = [[], []]
    for turn in range(rounds):
        for name, which in (("one", [turn % 2]), ("two", [0, 1])):
            seconds, told = ask(which)
            wall[name].append(seconds / len(which))
            cpu[name].append(sum(one["cpu"] for one in told) / len(which))
            for i, one in zip(which, told, strict=True):
                memory[i] += one["memory"]
                for key in parts:
                    parts[key] += one[key]
    for link, process in zip(links, processes, strict=True):
        link.send(None)
        process.join()
    per_shard = 2 * ROWS
    each = [len(values) * ROWS for values in memory]
    slopes = [np.polyfit(np.arange(1, len(values) + 1) * ROWS / 1000, values, 1)[0] for values in memory]
    return {
        "model": "small network, 256 px",
        "rounds": rounds,
        "rows_of_a_shard": ROWS,
        "images_per_second": {name: round(per_shard * len(values) / sum(values), 1) for name, values in wall.items()},
        "throughput_ratio": ratio(np.array(wall["one"]), np.array(wall["two"])),
        "processor_time_ratio": ratio(2 * np.array(cpu["one"]), np.array(cpu["two"])),
        "cpu_ms": {name: round(1e3 * sum(values) / (per_shard * len(values)), 3) for name, values in cpu.items()},
        "shares": {
            "reading": round(parts["reading"] / parts["cpu"], 4),
            "deciding": round(1 - (parts["reading"] + parts["writing"]) / parts["cpu"], 4),
            "writing": round(parts["writing"] / parts["cpu"], 4),
        },
        "memory": [
            {
                "images": images,
                "first_mib": values[0],
                "last_mib": values[-1],
                "largest_mib": max(values),
                "second_half_mib_per_1000": round(
                    float(np.polyfit(np.arange(len(values) // 2) * ROWS / 1000, values[-(len(values) // 2) :], 1)[0]), 3
                ),
                "mib_per_1000": round(float(slope), 3),
            }
            for images, values, slope in zip(each, memory, slopes, strict=True)
        ],
    }


PIN = """
import os
for processor in sorted(os.sched_getaffinity(0)):
    try:
        os.close(os.open(f"{os.path.dirname(__file__)}/pinned_{processor}", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        continue
    os.sched_setaffinity(0, {processor})
    break
"""


def on_ray(folder: Path, pairs: int, shards_of_worker: int = 4) -> dict:
    """One worker and two of a local Ray cluster, in turn; without the time until each has made its first part. The
    shards have the size that the cluster chooses by default.
    """
    import ray

    run, names = make(folder / "ray", *MODELS["small network, 256 px"], 400)
    rate: dict[int, list[float]] = {1: [], 2: []}
    ray.init("local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR, num_cpus=2)
    for pair in range(pairs):
        for actors in (1, 2):
            place = folder / "ray" / f"{actors}_{pair}"
            place.mkdir()
            (place / "pin.py").write_text(PIN)
            total = shards_of_worker * actors
            list_images(folder / "ray" / "images" / "images.parquet", names, total * cluster.ROWS)
            predict_on_ray(
                run,
                folder / "ray" / "images" / "images.parquet",
                place / "parts",
                actors=actors,
                modules=[str(place / "pin.py")],
                device="cpu",
            )
            ends = sorted(file.stat().st_mtime_ns / 1e9 for file in (place / "parts").glob("part-*"))
            rate[actors].append((total - actors) * cluster.ROWS / (ends[-1] - ends[actors - 1]))
    ray.shutdown()
    return {
        "rows_of_a_shard": cluster.ROWS,
        "shards_of_a_worker": shards_of_worker,
        "images_per_second": {
            name: round(float(np.median(rate[actors])), 1) for name, actors in (("one", 1), ("two", 2))
        },
        "throughput_ratio": ratio(np.array(rate[2]), np.array(rate[1])),
    }


def cpu_of(work: Callable[[], Any]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def image_cost(folder: Path, options: dict, names: list[str], place: Path, images: int, batch: int) -> dict:
    """Processor seconds of an image, and bytes of its row, in a process like that of a worker."""
    torch.manual_seed(0)
    given = {key: value for key, value in options.items() if key != "name"}
    run = folder / "run"
    save_model(run, create_model(options["name"], num_classes=10, **given), ModelInfo(options, tuple("0123456789")))
    manifest = list_images(place / "images.parquet", names, 2 * images)
    made = Shards(run, manifest, 2, folder / "parts", device="cpu", batch_size=batch)
    made.make(0)
    before = SPENT["reading"]
    seconds = cpu_of(lambda: made.make(1))
    (part,) = (folder / "parts").glob("part-00001-*")
    read = [row["bytes_read"] for row in shards.read_part(part)]
    return {
        "images": images,
        "cpu_s": round(seconds / images, 5),
        "reading": round((SPENT["reading"] - before) / seconds, 3),
        "bytes_read": round(float(np.mean(read))),
        "model": options,
    }


def parts_of_a_job(folder: Path) -> dict:
    """What an image, a start, a shard, a manifest and a merge cost."""
    import pyarrow as pa
    from pyarrow import parquet

    count_all()
    found: dict[str, Any] = {}
    network, side = MODELS["EfficientNet-B0, 1,024 px"]
    _, names = make(folder / "photographs", network, side, 16)
    where = folder / "photographs" / "images"
    found["photograph"] = image_cost(folder / "photographs", network, names, where, 64, 8) | {"side": side}
    (folder / "slides").mkdir()
    write_pyramid(folder / "slides" / "slide.tif", 16_384)
    deep = network | {"locations": [2, 1, 1, 1, 1]}
    found["slide"] = image_cost(folder / "slides", deep, ["slide.tif"], folder / "slides", 32, 8) | {"side": 16_384}

    run, parts = folder / "small" / "run", folder / "small" / "parts"
    few = list_images(folder / "few.parquet", ["a.png"], 1)
    made = Shards(run, few, 1000, folder / "empty", device="cpu")
    empty = [i for i in range(1000) if not shard_rows(1, i, 1000)][:50]
    sizes = [file.stat().st_size for file in parts.glob("part-*")]
    found["part_bytes_a_row"] = round(sum(sizes) / len(sizes) / ROWS)
    found["shard_cpu_s"] = round(cpu_of(lambda: [made.make(i) for i in empty]) / len(empty), 5)
    command = [sys.executable, "-m", "foveal", "predict", str(run), "--manifest", str(folder / "few.parquet")]
    command += ["--shard", "1/4", "--out", str(folder / "start"), "--device", "cpu", "--quiet"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    found["start_cpu_s"] = round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 2)

    for suffix in ("parquet", "csv"):
        out = folder / f"merged.{suffix}"
        merged: list[Any] = []
        seconds = cpu_of(lambda out=out, merged=merged: merged.append(merge(parts, out)))
        assert merged[0].out is not None
        found[f"merge_{suffix}"] = {
            "rows": merged[0].rows,
            "parts": merged[0].shards,
            "cpu_us_a_row": round(1e6 * seconds / merged[0].rows, 2),
            "bytes_a_row": round(out.stat().st_size / merged[0].rows),
        }

    count, group = 2_000_000, 100_000
    middle = range(count // 2 + group // 2, count // 2 + group // 2 + 1000)
    paths = [f"s3://photographs/2026/{i // 1000:06}/{i:012}.jpg" for i in range(count)]
    parquet.write_table(pa.table({"path": paths}), folder / "paths.parquet", row_group_size=group)
    (folder / "paths.csv").write_text("path\n" + "\n".join(paths) + "\n")
    for suffix in ("parquet", "csv"):
        file = folder / f"paths.{suffix}"
        opened: list[Any] = []
        opening = cpu_of(lambda file=file, opened=opened: opened.append(open_manifest(file)))
        found[f"manifest_{suffix}"] = {
            "rows": count,
            "bytes_a_row": round(file.stat().st_size / count, 1),
            "open_cpu_s": round(opening, 4),
            "shard_cpu_s": round(cpu_of(lambda opened=opened: opened[0].paths(middle)), 4),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=28, help="of one worker and two; 28 are 21,000 images each")
    parser.add_argument("--ray", type=int, default=3, help="rounds with Ray")
    parser.add_argument("--out")
    args = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        results["workers"] = throughput(folder, args.rounds)
        print(json.dumps(results["workers"]), flush=True)
        results["parts"] = parts_of_a_job(folder)
        print(json.dumps(results["parts"]), flush=True)
        write(args.out, results)
        if args.ray:
            results["ray"] = on_ray(folder, args.ray)
            print(json.dumps(results["ray"]), flush=True)
    write(args.out, results)


if __name__ == "__main__":
    main()

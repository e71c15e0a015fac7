"""The service under load, compared with `predict` at the same batch size.

    python benchmarks/serve.py --out benchmarks/results/serve.json

A service runs in another process on the loopback. Clients in a third one send the paths of images and wait for each
answer. Rounds of the service and of `predict_rows` alternate, so that other load affects both. The clients use the same
processors. Processor seconds are those of the service alone. The models have random weights.
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from urllib.parse import urlencode

import numpy as np
import torch
from harness import ratio, write
from PIL import Image

from foveal.models import create_model
from foveal.prediction import Predictor, predict_rows
from foveal.runs import ModelInfo, save_model

MODELS = {
    "EfficientNet-B0, 1,024 px": (
        {"name": "tnet", "backbone": "efficientnet_b0", "base_size": 224, "locations": [2]},
        1024,
    ),
    "small network, 256 px": ({"name": "tnet", "backbone": "plain_convnet_32", "base_size": 48, "locations": [2]}, 256),
}
BATCH = 8


def make(folder: Path, options: dict, side: int, images: int) -> tuple[Path, list[str]]:
    """A run, and smooth JPEG images with noise, which compress as photographs do."""
    torch.manual_seed(0)
    given = {key: value for key, value in options.items() if key != "name"}
    model = create_model(options["name"], num_classes=10, **given)
    save_model(folder / "run", model, ModelInfo(options, tuple("0123456789")))
    (folder / "images").mkdir()
    draws = np.random.default_rng(0)
    for i in range(images):
        coarse = Image.fromarray(draws.integers(0, 256, (side // 16, side // 16, 3), np.uint8))
        pixels = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), np.int16)
        noisy = (pixels + draws.integers(-12, 13, pixels.shape, np.int16)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / "images" / f"{i:03}.jpg", quality=90)
    return folder / "run", sorted(path.name for path in (folder / "images").iterdir())


def start(run: Path, images: Path) -> tuple[subprocess.Popen, int]:
    command = [sys.executable, "-m", "foveal", "serve", str(run), "--images", str(images), "--port", "0"]
    process = subprocess.Popen(
        [*command, "--batch-size", str(BATCH), "--device", "cpu"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, int(re.search(r":(\d+)/", process.stdout.readline())[1])  # type: ignore[index]


def metric(port: int, name: str) -> float:
    link = http.client.HTTPConnection("127.0.0.1", port)
    link.request("GET", "/metrics")
    return float(re.search(rf"^{name} (\S+)$", link.getresponse().read().decode(), re.MULTILINE)[1])  # type: ignore[index]


def clients(count: int, orders: multiprocessing.Queue, answers: multiprocessing.Queue) -> None:
    """For each port and list of names: ask for all of them, each client one at a time; tell seconds and latencies."""
    while order := orders.get():
        port, names = order
        links = [http.client.HTTPConnection("127.0.0.1", port, timeout=600) for _ in range(count)]
        left, lock, told = list(enumerate(names)), threading.Lock(), []

        def work(link: http.client.HTTPConnection, left=left, lock=lock, told=told) -> None:
            while True:
                with lock:
                    if not left:
                        return
                    place, name = left.pop()
                began = time.perf_counter()
                headers = {"Content-Type": "application/x-www-form-urlencoded"}
                link.request("POST", "/v1/classify", urlencode({"path": name}), headers)
                response = link.getresponse()
                body = json.loads(response.read())
                right = response.status == 200 and body["path"] == name
                told.append((place, time.perf_counter() - began, right))

        threads = [threading.Thread(target=work, args=(link,)) for link in links]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        answers.put((time.perf_counter() - began, told))


def measure(options: dict, side: int, count: int, seconds: float, images: int) -> dict:
    with tempfile.TemporaryDirectory() as place:
        run, names = make(Path(place), options, side, images)
        paths = [str(Path(place, "images", name)) for name in names]
        context = multiprocessing.get_context("fork")
        orders, answers = context.Queue(), context.Queue()
        asking = context.Process(target=clients, args=(count, orders, answers))
        asking.start()
        predictor = Predictor(run, device="cpu")
        process, port = start(run, Path(place, "images"))
        try:
            times: dict[str, list[float]] = {"service": [], "predict": []}
            cpu: dict[str, list[float]] = {"service": [], "predict": []}
            latencies: list[float] = []
            asked = once = 0
            memory = []
            warm = True
            while warm or sum(times["service"]) < seconds:
                before = metric(port, "process_cpu_seconds_total")
                orders.put((port, names))
                took, told = answers.get()
                served = took, metric(port, "process_cpu_seconds_total") - before
                batches = predict_rows(predictor, paths, batch_size=BATCH)
                next(batches)  # folds the batch norms, which the service did at its start
                began, began_cpu = time.perf_counter(), time.process_time()
                assert all(row["error"] is None for rows in batches for row in rows)
                share = len(names) / (len(names) - BATCH)
                predicted = (time.perf_counter() - began) * share, (time.process_time() - began_cpu) * share
                if not warm:
                    times["service"].append(served[0])
                    cpu["service"].append(served[1])
                    times["predict"].append(predicted[0])
                    cpu["predict"].append(predicted[1])
                    latencies += [latency for _, latency, _ in told]
                    asked += len(names)
                    once += len({position for position, _, right in told if right}) if len(told) == len(names) else 0
                memory.append(metric(port, "process_resident_memory_bytes") / 2**20)
                warm = False
            orders.put(None)
            asking.join(30)
        finally:
            process.terminate()
            process.wait(60)
        rate = {name: images * len(values) / sum(values) for name, values in times.items()}
        return {
            "clients": count,
            "batch_size": BATCH,
            "rounds": len(times["service"]),
            "seconds": round(sum(times["service"]), 1),
            "requests": asked,
            "answered_once": once,
            "images_per_second": {name: round(value, 2) for name, value in rate.items()},
            "throughput_ratio": ratio(np.array(times["predict"]), np.array(times["service"])),
            "cpu_ms": {name: round(1e3 * sum(values) / (images * len(values)), 2) for name, values in cpu.items()},
            "latency_s": {f"p{q}": round(float(np.percentile(latencies, q)), 3) for q in (50, 95, 99)},
            "memory_mib": {"first": round(memory[0]), "last": round(memory[-1]), "largest": round(max(memory))},
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60, help="of the service, for each model")
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--out")
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = {}
    for name, (options, side) in MODELS.items():
        results[name] = measure(options, side, args.clients, args.seconds, args.images)
        print(name, json.dumps(results[name]), flush=True)
        write(args.out, results)


if __name__ == "__main__":
    main()

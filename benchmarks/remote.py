"""Looks at a remote image: requests, bytes and time, compared with GDAL's vsicurl, and memory by image size.

    python benchmarks/remote.py --out benchmarks/results/remote.json

A web server on this machine answers each request after 50 ms. A cloud-optimised TIFF of 16,384 x 16,384 px (JPEG tiles
of 256 px) is opened and looked at four times, one look after the other, as by a model whose looks depend on what it
saw: the whole image, then three parts at full resolution, each at 224 px. Also with the three parts in one turn, as by
a model that chooses several looks at once, and for eight images together. No cache is used, and every repetition has an
address of its own, so that nothing is known before. Each method reads the same parts; the pixels are compared.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import struct
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from harness import in_turn, ratio, write
from PIL import Image

from foveal.images import ImageViews, open_image, remote
from foveal.images.header_index import make_entry, write_index

DELAY = 0.05
LOOK = 224
Turns = list[np.ndarray]
"""(n, 4) boxes of each turn, which depends on the one before."""
VSICURL: dict[str, dict[str, str]] = {
    "vsicurl": {},
    "vsicurl, tuned": {
        "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
        "GDAL_INGESTED_BYTES_AT_OPEN": "65536",
        "GDAL_HTTP_MERGE_CONSECUTIVE_RANGES": "YES",
    },
}
"""Configurations of GDAL: its defaults, and what its documentation advises for cloud-optimised files."""


def write_cloud(file: Path, side: int) -> None:
    """Write a cloud-optimised TIFF of texture on smooth shapes, with JPEG tiles."""
    import rasterio
    from rasterio.shutil import copy

    rng = np.random.default_rng(0)
    grain = rng.normal(0, 12, (512, side + 512)).astype(np.float32)
    flat = file.with_suffix(".flat.tif")
    options = {"driver": "GTiff", "width": side, "height": side, "count": 3, "dtype": "uint8", "photometric": "RGB"}
    with rasterio.open(flat, "w", tiled=True, interleave="pixel", **options) as target:
        x = np.arange(side, dtype=np.float32)
        for top in range(0, side, 512):
            y = np.arange(top, min(side, top + 512), dtype=np.float32)[:, None]
            shift = int(rng.integers(512))
            strip = [
                128
                + 80 * np.sin(x / (600 + 200 * i) + i) * np.cos(y / (500 + 90 * i))
                + grain[: len(y), shift : shift + side]
                for i in range(3)
            ]
            window = ((top, top + len(y)), (0, side))
            target.write(np.clip(strip, 0, 255).astype(np.uint8), window=window)
    copy(flat, file, driver="COG", blocksize=256, compress="JPEG", quality=80)
    flat.unlink()


def write_constant(file: Path, side: int, tile: int = 256) -> None:
    """Write a pyramid of any size in little time: all tiles of all levels are the same bytes of the file."""
    buffer = io.BytesIO()
    Image.new("RGB", (tile, tile), (200, 120, 90)).save(buffer, "JPEG", quality=80, subsampling=0)
    data = buffer.getvalue()
    sides = [side >> i for i in range(32) if side >> i >= tile]
    tags, start = 11, 16
    lists = start + len(sides) * (8 + 20 * tags + 8 + 8)
    end = lists + sum(16 * (n // tile) ** 2 for n in sides)
    out, bodies = bytearray(struct.pack("<2sHHHQ", b"II", 43, 8, 0, start)), bytearray()
    for i, n in enumerate(sides):
        tiles = (n // tile) ** 2
        at = lists + len(bodies)
        bits = struct.pack("<4H", 8, 8, 8, 0)
        entries = [
            (254, 4, 1, struct.pack("<Q", int(i > 0))),
            (256, 4, 1, struct.pack("<Q", n)),
            (257, 4, 1, struct.pack("<Q", n)),
            (258, 3, 3, bits),
            (259, 3, 1, struct.pack("<Q", 7)),
            (262, 3, 1, struct.pack("<Q", 6)),
            (277, 3, 1, struct.pack("<Q", 3)),
            (322, 4, 1, struct.pack("<Q", tile)),
            (323, 4, 1, struct.pack("<Q", tile)),
            (324, 16, tiles, struct.pack("<Q", end if tiles == 1 else at)),
            (325, 16, tiles, struct.pack("<Q", len(data) if tiles == 1 else at + 8 * tiles)),
        ]
        if tiles > 1:
            bodies += np.full(tiles, end, "<u8").tobytes() + np.full(tiles, len(data), "<u8").tobytes()
        else:
            bodies += bytes(16)
        out += struct.pack("<Q", tags)
        for code, kind, number, value in entries:
            out += struct.pack("<HHQ", code, kind, number) + value
        following = len(out) + 16
        out += struct.pack("<QQ", following if i < len(sides) - 1 else 0, 0)
    assert len(out) == lists
    file.write_bytes(bytes(out + bodies) + data)


def boxes(side: int) -> list[np.ndarray]:
    """The looks: the whole image, and three parts at full resolution."""
    rng = np.random.default_rng(1)
    corners = rng.integers(0, side - LOOK, (3, 2))
    return [np.array([[0, 0, side, side]], float), *(np.array([[y, x, y + LOOK, x + LOOK]], float) for y, x in corners)]


def by_foveal(urls: list[str], turns: Turns, **options: Any) -> list[np.ndarray]:
    with ThreadPoolExecutor(len(urls)) as pool:
        images = list(pool.map(lambda url: open_image(url, **options), urls))
    views, seen = ImageViews(images), []
    for turn in turns:
        which = np.repeat(np.arange(len(urls)), len(turn))
        looks = views.look(which, np.tile(turn, (len(urls), 1)), (LOOK, LOOK)).numpy()
        seen += list(looks[: len(turn)])
    if views.errors:
        raise RuntimeError(views.errors)
    return seen


def by_rasterio(urls: list[str], turns: Turns, options: dict[str, str]) -> list[np.ndarray]:
    """One image after another, since rasterio waits for ever if several threads open addresses."""
    import rasterio
    from rasterio.enums import Resampling

    seen = []
    for url in urls:
        with rasterio.Env(**options), rasterio.open(f"/vsicurl/{url}") as data:
            for y0, x0, y1, x1 in np.concatenate(turns).astype(int).tolist():
                window = ((y0, y1), (x0, x1))
                seen.append(data.read(window=window, out_shape=(3, LOOK, LOOK), resampling=Resampling.average))
    return seen[: sum(map(len, turns))]


class Server:
    """The server, as a process of its own: GDAL blocks the threads of this one while it waits.

    Args:
        folder: folder of the files.
    """

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, str(Path(__file__).with_name("loopback.py")), str(folder)]
        command += ["--port", "0", "--delay", str(DELAY)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().partition(" at ")[2].partition(";")[0]
        self.numbers = count()

    def fresh(self, name: str) -> str:
        """An address of a file that was not used before."""
        return f"{self.url}/as/{next(self.numbers)}/{name}"

    def counted(self, task: Callable[[], Any]) -> dict[str, int]:
        """Requests, rounds and bytes of a task."""
        self.clear()
        task()
        return self.clear()

    def clear(self) -> dict[str, int]:
        with urllib.request.urlopen(f"{self.url}/-/clear") as answer:
            return json.load(answer)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


def of_looks(folder: Path, server: Server, side: int, seconds: float) -> dict[str, Any]:
    """Counts and times of the looks, by case and method."""
    write_cloud(folder / "cloud.tif", side)
    whole, *parts = boxes(side)
    together = [whole, np.concatenate(parts)]
    cases: dict[str, tuple[int, Turns]] = {
        "three looks, one after the other": (1, [whole, *parts]),
        "three looks at once": (1, together),
        "eight images, three looks at once": (8, together),
    }
    found: dict[str, Any] = {"side": side, "delay": DELAY, "cases": []}
    found["header"] = server.counted(lambda: open_image(server.fresh("cloud.tif")))
    image = open_image(server.fresh("cloud.tif"))
    for box in (whole, *parts):
        image.look(box, (LOOK, LOOK))
    found["bytes_of_tiles"] = image.bytes_read
    for case, (number, turns) in cases.items():
        known = [server.fresh("cloud.tif") for _ in range(number)]
        index = folder / f"{number}.headers.parquet"
        write_index(index, [make_entry(uri) for uri in known])

        def fresh(number: int = number) -> list[str]:
            return [server.fresh("cloud.tif") for _ in range(number)]

        tasks: dict[str, Callable[[], Any]] = {
            "foveal": partial(lambda fresh, turns: by_foveal(fresh(), turns), fresh, turns),
            "foveal, indexed": partial(by_foveal, known, turns, headers=index),
        }
        for name, options in VSICURL.items():
            tasks[name] = partial(
                lambda fresh, turns, options: by_rasterio(fresh(), turns, options), fresh, turns, options
            )
        pairs = zip(tasks["foveal"](), tasks["vsicurl"](), strict=True)
        difference = max(float(np.abs(a * 255 - b).max()) for a, b in list(pairs)[1:])
        methods: dict[str, Any] = {name: server.counted(task) for name, task in tasks.items()}
        for name, times in (timed := in_turn(tasks, seconds=seconds, warm_up=1, least=5)).items():
            quarter, median, three_quarters = np.percentile(times, (25, 50, 75))
            spread = {"q1": round(float(quarter), 4), "q3": round(float(three_quarters), 4)}
            methods[name] |= {"seconds": round(float(median), 4), **spread}
            methods[name]["times_foveal"] = ratio(times, timed["foveal"])
        found["cases"].append({"case": case, "largest_difference": round(difference, 3), "methods": methods})
    return found


def of_layouts(folder: Path, server: Server) -> Iterator[dict[str, Any]]:
    """Rounds to open files whose headers are in one place or spread over the file."""
    import rasterio
    import tifffile
    from rasterio.enums import Resampling

    pixels = np.random.default_rng(0).integers(0, 256, (4096, 4096), dtype=np.uint8)
    write_cloud(folder / "small.tif", 4096)
    with tifffile.TiffWriter(folder / "subifds.tif", bigtiff=True) as writer:
        for i in range(4):
            more: dict[str, Any] = {"subfiletype": 1} if i else {"subifds": 3}
            writer.write(pixels[:: 1 << i, :: 1 << i], tile=(256, 256), metadata=None, **more)
    with tifffile.TiffWriter(folder / "pages.tif", bigtiff=True) as writer:
        for i in range(4):
            writer.write(pixels[:: 1 << i, :: 1 << i], tile=(256, 256), metadata=None, subfiletype=1 if i else 0)
    options = {"driver": "GTiff", "width": 4096, "height": 4096, "count": 1, "dtype": "uint8", "tiled": True}
    with rasterio.open(folder / "gdaladdo.tif", "w", **options) as target:
        target.write(pixels[None])
    with rasterio.open(folder / "gdaladdo.tif", "r+") as target:
        target.build_overviews([2, 4, 8], Resampling.nearest)
    layouts = {
        "cloud-optimised": "small.tif",
        "levels as SubIFDs (OME-TIFF)": "subifds.tif",
        "levels as pages (SVS and most others)": "pages.tif",
        "levels added later (gdaladdo)": "gdaladdo.tif",
    }
    look, index = np.array([[100, 100, 324, 324]], float), folder / "layout.headers.parquet"
    for layout, name in layouts.items():
        uri = f"{server.url}/{name}"
        opened = server.counted(partial(open_image, uri))
        write_index(index, [make_entry(uri)])
        looked = server.counted(partial(lambda uri: open_image(uri, headers=index).look(look, (LOOK, LOOK)), uri))
        yield {"layout": layout, **opened, "indexed_open_and_look_rounds": looked["rounds"]}


def of_memory(folder: Path, server: Server) -> Iterator[dict[str, Any]]:
    """Memory, requests and bytes of the looks by image size, each in a process of its own."""
    for gigapixels in (1, 4, 16):
        side = int((gigapixels << 30) ** 0.5)
        write_constant(folder / f"{side}.tif", side)
        command = [sys.executable, __file__, "--child", f"{server.url}/{side}.tif", "--side", str(side)]
        server.clear()
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        yield {"gigapixels": gigapixels, "side": side, **json.loads(done.stdout), **server.clear()}
        (folder / f"{side}.tif").unlink()


def child(url: str, side: int) -> None:
    """Look at an image, and print by how much the process grew, in MB."""
    remote.start_client(url)
    open_image(url).look(np.array([[0, 0, side, side]], float), (LOOK, LOOK))  # allocates what any image needs
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = _memory("VmRSS")
    by_foveal([url], boxes(side))
    print(json.dumps({"grown_mb": round(_memory("VmHWM") - before, 1)}))


def _memory(name: str) -> float:
    """A line of the state of this process, in MB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=16384)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # threads that wait in a loop would slow down the server
    os.environ["FOVEAL_REMOTE_CACHE_BYTES"] = "0"
    if arguments.child:
        child(arguments.child, arguments.side)
        return
    with tempfile.TemporaryDirectory() as name, Server(folder := Path(name)) as server:
        results = {
            "looks": of_looks(folder, server, arguments.side, arguments.seconds),
            "layouts": list(of_layouts(folder, server)),
            "memory": list(of_memory(folder, server)),
        }
    print(json.dumps(results, indent=1))
    write(arguments.out, results, seed=0)


if __name__ == "__main__":
    main()

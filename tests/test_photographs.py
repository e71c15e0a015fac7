"""The benchmark on photographs: its weights are those of the file, its images are split as it says, and it runs."""

import csv
import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
# Sandler et al. 2018, Table 2: expansion, channels, blocks, stride.
TABLE = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


def layers():
    """(channels in, channels out, kernel, stride, groups, clipped, starts a block whose input is added) of the 52
    convolutions.
    """
    yield 3, 32, 3, 2, 1, True, False
    width = 32
    for expansion, channels, blocks, stride in TABLE:
        for block in range(blocks):
            step, wide = stride if block == 0 else 1, width * expansion
            added = step == 1 and width == channels
            if expansion > 1:
                yield width, wide, 1, 1, 1, True, added
            yield wide, wide, 3, step, wide, True, added and expansion == 1
            yield wide, channels, 1, 1, 1, False, False
            width = channels
    yield 320, 1280, 1, 1, 1, True, False


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    rng = np.random.default_rng(0)
    found = {}
    shapes = [(out, into // groups, kernel, kernel) for into, out, kernel, _, groups, *_ in layers()]
    for i, shape in enumerate([*shapes, (1000, 1280, 1, 1)]):
        found[f"w{i:02d}"] = rng.integers(-127, 128, shape, dtype=np.int8)
        found[f"s{i:02d}"] = (rng.uniform(0.5, 1.5, shape[0]) / 73 / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
        found[f"b{i:02d}"] = rng.normal(0, 0.3, shape[0]).astype(np.float32)
    file = tmp_path_factory.mktemp("weights") / "weights.npz"
    np.savez(file, **found)
    return file


def as_published(archive, x, border):
    """The network on images from -1 to 1, written out: TensorFlow's "same" padding, ReLU6, no batch norms; ``border``
    is around it.
    """
    with np.load(archive) as found:
        kernels = [
            torch.from_numpy(found[f"w{i:02d}"].astype(float) * found[f"s{i:02d}"].astype(float)[:, None, None, None])
            for i in range(53)
        ]
        biases = [torch.from_numpy(found[f"b{i:02d}"]).double() for i in range(53)]
    kept = None
    for i, (_, _, kernel, stride, groups, clipped, starts) in enumerate(layers()):
        if starts:
            kept = x
        missing = max((-(-x.shape[-1] // stride) - 1) * stride + kernel - x.shape[-1], 0)
        around = border if i == 0 else 0.0
        x = F.pad(x - around, (missing // 2, missing - missing // 2) * 2) + around
        x = F.conv2d(x, kernels[i], biases[i], stride, groups=groups)
        x = x.clamp(0, 6) if clipped else x
        if not clipped and kept is not None:
            x, kept = x + kept, None
    return x.mean((2, 3)) @ kernels[52].flatten(1).T + biases[52]


@pytest.mark.parametrize("side", [64, 75])
def test_converted_weights_answer_as_the_file_does(benchmark, archive, side):
    network = benchmark("mobilenet_int8").convert(archive)
    torch.manual_seed(0)
    pixels = torch.rand(2, 3, side, side)
    mean, std = (torch.tensor(network.pretrained_cfg[key])[:, None, None] for key in ("mean", "std"))
    with torch.no_grad():
        found = network((pixels - mean) / std)
        expected = as_published(archive, 2 * pixels.double() - 1, 2 * mean.double() - 1)
    assert float(expected.std()) > 0.01
    assert torch.allclose(found.double(), expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def test_unfolding_keeps_answers_and_lets_the_network_train(benchmark, archive):
    tools = benchmark("mobilenet_int8")
    network = tools.convert(archive)
    torch.manual_seed(0)
    images = torch.randn(8, 3, 64, 64)
    with torch.no_grad():
        before = network(images)
        tools.unfold(network, images.split(4))
        assert torch.allclose(network(images), before, atol=1e-4 * float(before.abs().max()))
        norm = network.blocks[3][0].bn1
        inputs = []
        norm.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
        network(images)
        assert torch.allclose(norm.running_mean, inputs[0].mean((0, 2, 3)), atol=1e-4)
        # In training mode, on all of those images, what is normalised is what was.
        assert torch.allclose(network.train()(images), before, atol=0.05 * float(before.abs().max()))


def test_an_archive_of_something_else_is_refused(benchmark, tmp_path):
    np.savez(tmp_path / "other.npz", w00=np.zeros((8, 3, 3, 3), np.int8), s00=np.ones(8), b00=np.zeros(8))
    with pytest.raises(ValueError, match="layer 0 is not one of MobileNetV2's"):
        benchmark("mobilenet_int8").convert(tmp_path / "other.npz")


@pytest.fixture
def scenes(tmp_path):
    """Two classes of images with the split in their numbers."""
    rng = np.random.default_rng(0)
    for label, brightness in (("aDark", 60), ("bBright", 190)):
        (tmp_path / "scenes" / label).mkdir(parents=True)
        for number in (1, 3, 5, 121, 2, 4, 104, 204, 304, 321, 399):
            pixels = rng.normal(brightness, 20, (64, 64, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "scenes" / label / f"{label[0]}{number:03d}.webp", lossless=True)
    return tmp_path / "scenes"


def test_splits_are_by_number(benchmark, scenes, tmp_path):
    table, training = benchmark("photographs").prepare(scenes, tmp_path / "runs")
    with table.open() as file:
        split = {Path(row["path"]).stem: row["split"] for row in csv.DictReader(file)}
    assert {name: split[name] for name in ("a001", "a121", "a321", "b399", "b002", "b304")} == {
        "a001": "train",
        "a121": "train",
        "a321": "val",
        "b399": "val",
        "b002": "test",
        "b304": "test",
    }
    assert sorted(Path(path).stem for path in training) == sorted(name for name, of in split.items() if of == "train")


@pytest.mark.slow
def test_contenders_train_and_are_judged_and_timed(archive, scenes, tmp_path):
    runs, out = tmp_path / "runs", tmp_path / "out.json"
    runs.mkdir()
    (runs / "steps.json").write_text(json.dumps({"tnet": [1], "saccader": [1, 1], "dense 100": [1], "dense 400": [1]}))
    command = [
        sys.executable,
        str(BENCHMARKS / "photographs.py"),
        "--root",
        str(scenes),
        "--weights",
        str(archive),
        "--folder",
        str(runs),
    ]
    command += ["--seeds", "3", "--out", str(out), "--contenders"]
    for more in (
        ["tnet", "saccader", "dense 400", "--trainings", "pretrained", "--timed-images", "4"],
        ["dense 100", "--timed-images", "0"],
    ):
        subprocess.run([*command, *more], check=True)
    found = json.loads(out.read_text())["results"]
    assert {(row["contender"], row["training"]) for row in found["rows"]} == {
        *((name, "pretrained") for name in ("tnet", "saccader", "dense 400")),
        *(("dense 100", training) for training in ("pretrained", "longer", "scratch")),
    }
    assert {(row["training"], phase["steps"]) for row in found["trained"] for phase in row["phases"]} == {
        ("pretrained", 1),
        ("longer", 2),
        ("scratch", 1),
    }
    assert {row["policy"] for row in found["rows"] if row["contender"] == "tnet"} == {
        "none",
        "greedy",
        "random",
        "exit",
    }
    # The second call added rows, and left the times of the first.
    assert {(row["contender"], row["batch"]) for row in found["times"]} == {
        (name, batch) for name in ("tnet", "saccader", "dense 400") for batch in (1, 16)
    }
    assert all(row["ms"] > 0 for row in found["times"])


def test_times_need_something_to_compare_with(archive, scenes, tmp_path):
    command = [sys.executable, str(BENCHMARKS / "photographs.py"), "--root", str(scenes), "--weights", str(archive)]
    done = subprocess.run(
        [*command, "--folder", str(tmp_path / "runs"), "--contenders", "tnet"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "times are given beside those of 'dense 400'" in done.stderr
    assert not (tmp_path / "runs").exists()

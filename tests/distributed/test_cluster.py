"""Workers of a Ray cluster leave each row once, also if a worker or the driver is killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from foveal.distributed import merge, open_manifest, predict_on_ray, predict_shard
from foveal.distributed.cluster import Worker, default_shards
from foveal.distributed.shards import PART
from foveal.errors import ConfigError
from foveal.prediction.output import read_rows

HOW = {"device": "cpu", "batch_size": 3}


def test_a_worker_makes_parts_and_tells_errors(run, images, tmp_path):
    worker = Worker(str(run), open_manifest(images / "images.csv"), 8, str(tmp_path / "parts"), False, (), HOW)
    told = [worker({"shard": np.array([shard])}) for shard in (0, 1, 0)]
    assert [(one["predicted"], one["failed"], one["error"]) for one in told] == [
        ([5], [0], [""]),
        ([5], [1], [""]),
        ([0], [0], [""]),
    ]
    (tmp_path / "parts" / "job.json").write_text("{}")
    damaged = Worker(str(run), open_manifest(images / "images.csv"), 8, str(tmp_path / "parts"), False, (), HOW)
    assert "job.json: is damaged" in damaged({"shard": np.array([2])})["error"][0]
    lacking = Worker(str(run), open_manifest(images / "images.csv"), 8, "p", False, ("no_such_module",), HOW)
    assert "no_such_module" in lacking({"shard": np.array([2])})["error"][0]


def test_shards_by_default():
    assert [default_shards(rows) for rows in (1, 1000, 1001)] == [1, 1, 2]


def test_without_ray(run, images, tmp_path, monkeypatch):
    monkeypatch.setattr("foveal.distributed.cluster.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'foveal\[ray\]'"):
        predict_on_ray(run, images / "images.csv", tmp_path / "parts")


SLOW = '''
"""Makes parts slow enough to be killed in the middle."""
import time
from foveal.distributed import shards
write = shards.write_part
def write_part(*given):
    time.sleep(1)
    return write(*given)
shards.write_part = write_part
'''


class Driver:
    """The command, on a cluster of three workers. A module makes parts take a second each."""

    def __init__(self, run, images, tmp_path):
        pytest.importorskip("ray")
        (tmp_path / "slowly.py").write_text(SLOW)
        self.parts = tmp_path / "parts"
        self.command = [sys.executable, "-m", "foveal", "predict", run, "--manifest", images / "images.csv"]
        self.command += ["--cluster", "ray", "--shards", "12", "--actors", "3", "--out", self.parts]
        self.command += ["--device", "cpu", "--batch-size", "3", "--import", tmp_path / "slowly.py"]

    def start(self):
        return subprocess.Popen(self.command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def wait_for(self, count, process):
        while len(self.made()) < count:
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)

    def made(self):
        return sorted(file.name for file in self.parts.glob("part-*.parquet"))


def workers(driver):
    """Processes of actors below a driver."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            title, pid = (folder / "cmdline").read_bytes(), int(folder.name)
            while title.startswith(b"ray::MapWorker") and pid > 1:
                pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
                if pid == driver:
                    found.append(int(folder.name))
        except OSError:
            continue
    return found


@pytest.fixture(scope="module")
def expected(run, images, tmp_path_factory):
    """Rows of one process."""
    folder = tmp_path_factory.mktemp("one")
    predict_shard(run, images / "images.csv", 0, 1, folder / "parts", **HOW)
    merge(folder / "parts", folder / "rows.csv")
    return list(read_rows(folder / "rows.csv"))


def check(folder, expected):
    merged = merge(folder, folder / "rows.csv")
    assert (merged.rows, merged.missing, merged.failed) == (40, [], 2)
    rows = list(read_rows(folder / "rows.csv"))
    for row, other in zip(rows, expected, strict=True):
        for key in ("row", "path", "label", "locations", "size", "macs", "error", "file_size", "file_version"):
            assert row[key] == other[key], key
        assert row["probability"] == pytest.approx(other["probability"], abs=1e-5)
        assert [look["box"] for look in row["glimpses"]] == [look["box"] for look in other["glimpses"]]


@pytest.mark.slow
def test_a_worker_that_is_killed_is_started_again(run, images, expected, tmp_path):
    driver = Driver(run, images, tmp_path)
    process = driver.start()
    driver.wait_for(2, process)
    running = workers(process.pid)
    assert len(running) >= 2, "several processes work"
    os.kill(running[0], signal.SIGKILL)
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert out.splitlines()[-1].startswith("12 parts: 40 rows, ")  # after Ray's notice of the worker that died
    check(driver.parts, expected)


@pytest.mark.slow
def test_a_second_call_goes_on_after_the_driver_was_killed(run, images, expected, tmp_path):
    driver = Driver(run, images, tmp_path)
    process = driver.start()
    driver.wait_for(3, process)
    process.kill()
    process.communicate()
    before = {name: (driver.parts / name).stat().st_mtime_ns for name in driver.made()}
    assert 3 <= len(before) < 12
    again = driver.start()
    _, err = again.communicate()
    assert again.returncode == 0, err
    check(driver.parts, expected)
    assert {name: (driver.parts / name).stat().st_mtime_ns for name in before} == before, "parts are not made again"
    assert all(PART.fullmatch(name) for name in driver.made()) and len(driver.made()) == 12


@pytest.mark.slow
def test_without_a_cluster(run, images, tmp_path):
    pytest.importorskip("ray")
    for address in ("auto", "127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:70000"):  # Ray tries some for minutes
        with pytest.raises(ConfigError, match=f"`address` {address}: there is no Ray cluster"):
            predict_on_ray(run, images / "images.csv", tmp_path / "parts", address=address, **HOW)

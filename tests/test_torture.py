"""A short form of `make torture`: some seconds of what it does in an hour."""

import random

import numpy as np
import pytest

from benchmarks.torture import kills, mutants, tiles, variants
from benchmarks.torture.seeds import VARIANTS
from benchmarks.torture.worker import Worker

FAST = [v for v in VARIANTS if v.module is None]


def test_damaged_files_are_right_or_named(tmp_path):
    found = mutants.run(tmp_path, 150, "short", FAST)
    assert found["mutants"] > 100 and not found["intact_refused"]
    assert not [
        (one["variant"], one["number"], one["outcome"], one.get("told"), one.get("why")) for one in found["bad"]
    ]
    assert found["outcomes"]["named"] > 40 and found["outcomes"]["right"] > 5


def test_damaged_tiles_are_right_or_named(tmp_path):
    found = tiles.run(tmp_path, 56, "short")
    assert found["tiles"] == 56 and not found["bad"] and found["outcomes"]["named"] > 25


def test_intact_files_are_read_as_others_read_them(tmp_path, monkeypatch):
    monkeypatch.setattr(variants, "VARIANTS", FAST[::7])
    for row in variants.run(tmp_path):
        assert row["foveal"] == "read", row
        assert {"same", "close"} & set(row["others"].values()) or "OME" in row["name"], row


def test_the_oracle_tells_damage_from_none(tmp_path):
    """Whatever is judged: the oracle must see what it is there to see."""
    jpeg = next(v for v in VARIANTS if v.title == "JPEG 4:2:0")
    with mutants.Trial(tmp_path) as trial:
        data = trial.write(jpeg).read_bytes()
        assert trial.judge(jpeg, data)["outcome"] == "right"
        assert trial.judge(jpeg, data + b"trailer")["outcome"] == "right"
        assert trial.judge(jpeg, data[:-300])["outcome"] == "named"
    intact = {"looks": {(2, 2): "a"}}
    nothing = {"told": {}, "same": ["Pillow", "GDAL"], "warned": {}}
    told = {"told": {"CRC": "wrong"}, "same": [], "warned": {}}
    assert mutants.judge({"errors": [], "looks": {(2, 2): "b"}}, intact, told) == "accepted"
    assert mutants.judge({"errors": [], "looks": {(2, 2): "b"}}, intact, nothing) == "undetectable"
    assert mutants.judge({"errors": ["x"], "looks": {}}, intact, nothing) == "refused"
    assert mutants.judge({"errors": ["x"], "looks": {}}, intact, told) == "named"


def test_the_oracle_tells_metadata_from_pixels(tmp_path):
    """EXIF data with a wrong checksum are ignored, so that the picture is not turned; Pillow refuses the file."""
    png = next(v for v in VARIANTS if v.title == "PNG orientation 6 and text")
    gif = next(v for v in VARIANTS if v.title == "GIF animated")
    with mutants.Trial(tmp_path) as trial:
        data = trial.write(png).read_bytes()
        at = data.index(b"eXIf") + 4
        assert trial.judge(png, data[:at] + bytes(8) + data[at + 8 :])["outcome"] == "metadata"
        at = data.index(b"IDAT") + 400
        assert trial.judge(png, data[:at] + bytes(8) + data[at + 8 :])["outcome"] == "named"
        data = trial.write(gif).read_bytes()
        colour = bytes([data[60] ^ 255])  # of the palette, which has no checksum
        damaged = data[:60] + colour + data[61:-400] + bytes(399) + b";"
        assert trial.judge(gif, damaged)["outcome"] == "undetectable"  # the damage of the last frame does not count


def test_changes_are_a_function_of_the_seed():
    data = bytes(range(256)) * 4
    first, second = ([mutants.mutate(data, data, random.Random(f"{i}")) for i in range(50)] for _ in range(2))
    assert first == second and len({change for change, _ in first}) > 8


def test_a_worker_tells_crashes_hangs_and_memory():
    import mmap
    import os
    import time

    def act(task):
        if task == "die":
            os.abort()
        if task == "sleep":
            time.sleep(60)
        if task == "take":  # mapped, because malloc may keep what is freed
            with mmap.mmap(-1, 300 << 20) as memory:
                memory[:: mmap.PAGESIZE] = b"x" * (len(memory) // mmap.PAGESIZE)
        return task

    worker = Worker(act)
    try:
        small = worker.ask("nothing", 20)
        assert (small.kind, small.value) == ("done", "nothing")
        assert worker.ask("take", 20).mebibytes > small.mebibytes + 250
        assert worker.ask("nothing", 20).mebibytes < small.mebibytes + 50
        assert worker.ask("die", 20).kind == "crash" and worker.ask("sleep", 0.5).kind == "hang"
        assert worker.ask("again", 20).value == "again"
    finally:
        worker.stop()


def test_the_distance_of_pictures_sees_orientation_and_other_colours():
    seen = np.random.default_rng(0).random((4, 6, 3))
    turned = np.rint(seen.swapaxes(0, 1)[::-1] * 255).astype(np.uint8)
    assert (
        variants.judge(seen, turned, 255.0) == "same" and variants.judge(seen, 255 - turned // 2, 255.0) == "as stored"
    )


@pytest.mark.slow
def test_killed_commands_end_as_others_do(tmp_path):
    found = kills.run(tmp_path, 6, names=("predict .csv",))
    assert not [row for row in found["rows"] if row["wrong"]]
    assert sum(row["kills"] for row in found["rows"]) >= 2

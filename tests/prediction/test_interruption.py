"""Whatever ends a prediction, the call repeated gives the rows of one that was not ended: each once, in order, every
bit.
"""

import errno
import json
import os
import random
import resource
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveal import files
from foveal.errors import ConfigError, StorageError
from foveal.files import locked
from foveal.prediction import Exit, predict
from foveal.prediction.journal import Journal
from foveal.prediction.output import FORMATS, Output, read_rows

BATCH = {"batch_size": 3, "device": "cpu"}


def rows_of(out):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in read_rows(out)]


def in_child(work):
    """Run in a forked process; returns its exit code as `subprocess` does."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def die_at(step):
    """Kill this process at an operation on files; a write is then half done or not started."""
    count, write = 0, os.write

    def passing():
        nonlocal count
        count += 1
        return count == step

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    def writing(descriptor, data):
        if passing():
            die()
        if passing():
            write(descriptor, bytes(data)[: len(data) // 2])
            die()
        return write(descriptor, data)

    def before(call):
        def made(*args, **options):
            if passing():
                die()
            return call(*args, **options)

        return made

    def opening(event, args):
        if event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR) and passing():
            die()

    os.write = writing
    for name in ("fsync", "ftruncate", "replace", "rename", "unlink"):
        setattr(os, name, before(getattr(os, name)))
    sys.addaudithook(opening)


def killed(model, folder, out, step, **options):
    """Whether the prediction was killed at this step and did not end before."""

    def work():
        die_at(step)
        predict(model, folder, out=out, **BATCH, **options)

    return {0: False, -signal.SIGKILL: True}[in_child(work)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Rows of an uninterrupted call, by folder and options."""
    kept = {}

    def rows(model, folder, suffix, **options):
        key = suffix, str(folder), json.dumps(options, default=str)
        if key not in kept:
            out = tmp_path_factory.mktemp("whole") / f"rows{suffix}"
            predict(model, folder, out=out, **{**BATCH, **options})
            kept[key] = rows_of(out)
        return kept[key]

    return rows


def kill_and_go_on(model, folder, tmp_path, whole, suffix, steps):
    expected = whole(model, folder, suffix)
    points = 0
    for step in steps:
        place = tmp_path / f"at_{step}"
        place.mkdir()
        out = place / f"rows{suffix}"
        if not killed(model, folder, out, step):
            break
        points += 1
        predict(model, folder, out=out, **BATCH)
        assert rows_of(out) == expected, step
        left = {file.name for file in place.iterdir()}
        assert left == {out.name, f".{out.name}.foveal"}, step
        shutil.rmtree(place)
    return points


def test_rows_are_those_of_one_call_after_a_kill(folder, model, tmp_path, whole):
    assert kill_and_go_on(model, folder, tmp_path, whole, ".csv", range(1, 1000, 5)) > 4


@pytest.mark.slow
@pytest.mark.parametrize("suffix", FORMATS)
def test_rows_are_those_of_one_call_after_a_kill_at_any_step(folder, model, tmp_path, whole, suffix):
    points = kill_and_go_on(model, folder, tmp_path, whole, suffix, range(1, 1000))
    print(f"{suffix}: {points} places to be killed at")
    assert points > 20


@pytest.mark.slow
@pytest.mark.parametrize("suffix", FORMATS)
def test_rows_are_those_of_one_call_after_kills_and_kills(folder, model, tmp_path, whole, suffix):
    """Also of a call that appends, and of one that replaces."""
    draw = random.Random(suffix)
    first, second = sorted(folder.glob("[0-9].png"))[:4], [folder]
    for trial in range(12):
        place = tmp_path / f"trial_{trial}"
        place.mkdir()
        out = place / f"rows{suffix}"
        for given in (first, second):
            while killed(model, given, out, draw.randint(1, 45)):
                pass
        names = [row["path"] for row in rows_of(out)]
        assert names == [str(path) for path in [*first, *sorted(folder.rglob("[4-6].png"), key=lambda path: path.name)]]
        options = {"locations": (1,)}
        again = {"resume": False}
        while killed(model, folder, out, draw.randint(1, 45), **options, **again):
            again = {"resume": True} if json_settings(out) == [1] else again
        assert rows_of(out) == whole(model, folder, suffix, **options)


def json_settings(out):
    return next(Journal(out.with_name(f".{out.name}.foveal")).lines())["settings"]["locations"]


class Stop(Exception):
    pass


def stopped_after(count, model, images, out, **options):
    """A call that ends with an error after a number of rows."""

    def stop(done, total, rows):
        if done >= count:
            raise Stop

    with pytest.raises(Stop):
        predict(model, images, out=out, **{**BATCH, **options}, on_progress=stop)


def test_batches_and_folded_norms_are_those_of_one_call(folder, model, tmp_path, whole):
    """Fewer images are left than it pays to fold norms for, and they are no whole number of batches from the end."""
    for i in range(7, 20):
        pixels = np.random.default_rng(i).integers(0, 256, (60 + 20 * (i % 2), 90, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02}.png")
    (folder / "03.png").write_bytes(b"")
    until = Exit("1locations", 0.27, (2, 1), 1, 1.0, "locations", 8)
    for n, options in enumerate([{}, {"policy": "random", "seed": 3}, {"until": until}]):
        out = tmp_path / f"rows_{n}.jsonl"
        stopped_after(12, model, folder, out, **options)
        summary = predict(model, folder, out=out, **BATCH, **options)
        assert (summary.images, summary.predicted, summary.skipped, len(summary.failed)) == (21, 9, 12, 1)
        assert rows_of(out) == whole(model, folder, ".jsonl", **options)


def test_another_list_or_batch_size_appends(folder, model, tmp_path):
    out = tmp_path / "rows.csv"
    stopped_after(3, model, sorted(folder.glob("[0-9].png"))[1:], out)
    assert predict(model, folder, out=out, batch_size=2, device="cpu").skipped == 3
    assert [Path(row["path"]).stem for row in read_rows(out)] == ["1", "2", "3", "0", "4", "5", "6"]


def test_images_in_memory_are_not_continued(model, tmp_path):
    images = [np.zeros((40, 40, 3), np.uint8)] * 7
    stopped_after(3, model, images, tmp_path / "rows.csv")
    with pytest.raises(ConfigError, match=r"has a row of an image \[0\] in memory"):
        predict(model, images, out=tmp_path / "rows.csv", **BATCH)


# ---- two calls


@pytest.mark.parametrize("name", ["rows.csv", "link.csv", "linked/rows.csv", "linked/link.csv"])
def test_one_call_at_a_time_writes_to_an_output(folder, model, tmp_path, name):
    (tmp_path / "link.csv").symlink_to("rows.csv")
    (tmp_path / "linked").symlink_to(".")
    out = tmp_path / "rows.csv"
    with Output(out, {}):  # in this process
        with pytest.raises(
            StorageError, match="another call writes predictions there; wait for its end, or choose another `out`"
        ):
            Output(tmp_path / name, {})

        def as_another_process():
            files._held.clear()
            with pytest.raises(StorageError, match="another call writes predictions there"):
                Output(tmp_path / name, {})

        assert in_child(as_another_process) == 0
    out.with_name(".rows.csv.foveal").unlink()
    predict(model, folder, out=tmp_path / name, **BATCH)
    assert len(rows_of(out)) == 7 and not out.is_symlink()


def test_a_killed_call_leaves_no_lock_and_no_temporary_files(folder, model, tmp_path):
    out = tmp_path / "[rows].csv"
    for name in (
        ".[rows].csv.77.unfinished",
        ".[rows].csv.77",
        "..[rows].csv.foveal.77.unfinished",
        "..[rows].csv.foveal.77",
    ):
        (tmp_path / name).write_text("half")
    others = [".[rows].csv.mine", ".r.csv.77.unfinished", "rows.csv.77"]
    for name in others:
        (tmp_path / name).write_text("somebody else's")

    def hold():
        with locked(tmp_path / ".[rows].csv.lock", "taken"):
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(hold) == -signal.SIGKILL
    predict(model, folder, out=out, **BATCH)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(
        [*others, "[rows].csv", ".[rows].csv.foveal", "images"]
    )


# ---- files changed by other programs


@pytest.fixture
def begun(folder, model, tmp_path):
    """An output of three rows, and a call that was interrupted after three more."""
    out = tmp_path / "rows.csv"
    predict(model, sorted(folder.glob("[0-9].png"))[:3], out=out, **BATCH)
    stopped_after(6, model, folder, out)
    return out


def edit(file):
    text = file.read_bytes()
    file.write_bytes(text.replace(b"0", b"1", 1))
    os.utime(file, ns=(1, 1))


CHANGES = {
    "gone": (lambda out: out.unlink(), "is gone"),
    "edited": (edit, "was changed by another program"),
    "another": (lambda out: out.write_text("name,grade\nAda,1\n"), "was changed by another program"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_an_output_that_changed_between_calls_is_told(folder, model, begun, change, whole):
    do, says = CHANGES[change]
    kept = begun.read_bytes()
    do(begun)
    changed = begun.exists() and begun.read_bytes()
    with pytest.raises(
        StorageError, match=f"rows.csv: {says}; the rows of 3 images are safe in .rows.csv.foveal; put the file back as"
    ):
        predict(model, folder, out=begun, **BATCH)
    assert (begun.exists() and begun.read_bytes()) == changed
    begun.write_bytes(kept)
    predict(model, folder, out=begun, **BATCH)
    assert rows_of(begun) == whole(model, folder, ".csv")


@pytest.mark.parametrize("change", CHANGES)
def test_an_output_that_changed_during_a_call_is_told(folder, model, begun, change, whole):
    do, says = CHANGES[change]
    kept = begun.read_bytes()
    with pytest.raises(
        StorageError, match=f"rows.csv: {says}; the rows of 4 images are safe in .rows.csv.foveal; put the file back as"
    ):
        predict(model, folder, out=begun, **BATCH, on_progress=lambda *_: do(begun))
    begun.write_bytes(kept)
    assert predict(model, folder, out=begun, **BATCH).predicted == 0
    assert rows_of(begun) == whole(model, folder, ".csv")


def test_a_file_that_another_program_puts_there_is_not_overwritten(folder, model, tmp_path):
    out = tmp_path / "rows.csv"
    with pytest.raises(
        StorageError,
        match=r"was created by another program; the rows of 7 images are safe in \.rows\.csv\.foveal; move it",
    ):
        predict(model, folder, out=out, **BATCH, on_progress=lambda *_: out.write_text("mine"))
    assert out.read_text() == "mine"
    out.unlink()
    assert predict(model, folder, out=out, **BATCH).predicted == 0 and len(rows_of(out)) == 7


def test_a_journal_that_is_deleted_or_replaced_during_a_call_is_put_back(folder, model, begun, whole, caplog):
    journal = begun.with_name(".rows.csv.foveal")
    predict(model, folder, out=begun, **BATCH, on_progress=lambda *_: journal.unlink())
    assert "another program deleted or replaced it; it is restored" in caplog.text
    assert rows_of(begun) == whole(model, folder, ".csv")
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(folder / "new.png")

    def replace(*_):
        journal.unlink()
        journal.write_text("mine")

    predict(model, folder, out=begun, **BATCH, on_progress=replace)
    assert len(rows_of(begun)) == 8 and predict(model, folder, out=begun, **BATCH).skipped == 8


def test_a_journal_that_is_edited_during_a_call_is_told(folder, model, begun, whole):
    journal = begun.with_name(".rows.csv.foveal")

    def change(*_):
        lines = journal.read_text().splitlines(True)
        with journal.open("r+") as file:
            file.write("".join([lines[0], lines[1].replace("0", "1"), *lines[2:]]))

    with pytest.raises(
        StorageError,
        match="another program changed it while this call ran; the rows before the change are safe; repeat",
    ):
        predict(model, folder, out=begun, **BATCH, on_progress=change)
    predict(model, folder, out=begun, **BATCH)
    assert rows_of(begun) == whole(model, folder, ".csv")


def test_a_journal_that_is_edited_between_calls_is_told(folder, model, tmp_path, whole, caplog):
    out, journal = tmp_path / "rows.jsonl", tmp_path / ".rows.jsonl.foveal"
    stopped_after(6, model, folder, out)
    lines = journal.read_text().splitlines(True)
    journal.write_text("".join([lines[0], lines[1].replace('"label": "', '"label": "not '), lines[2]]))
    assert predict(model, folder, out=out, **BATCH).predicted == 7
    assert "another program changed it; everything after its first" in caplog.text
    assert rows_of(out) == whole(model, folder, ".jsonl")
    journal.write_text("{half\n")
    with pytest.raises(
        ConfigError, match=r"is damaged, so that rows.jsonl cannot be continued; choose another `out`, or replace it by"
    ):
        predict(model, folder, out=out, **BATCH)
    journal.unlink()
    with pytest.raises(ConfigError, match=r"exists, but .rows.jsonl.foveal does not"):
        predict(model, folder, out=out, **BATCH)


# ---- a full disk


def fail_at(step, number):
    """Let an operation on files and all later ones fail."""
    count, write = 0, os.write

    def check():
        nonlocal count
        count += 1
        if count >= step:
            raise OSError(number, os.strerror(number))

    def writing(descriptor, data):
        try:
            check()
        except OSError:
            write(descriptor, bytes(data)[: len(data) // 2])
            raise
        return write(descriptor, data)

    def before(call):
        def made(*args, **options):
            check()
            return call(*args, **options)

        return made

    def hook(event, args):
        if event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR):
            check()

    os.write = writing
    for name in ("fsync", "replace"):
        setattr(os, name, before(getattr(os, name)))
    sys.addaudithook(hook)


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_full_disk_is_told_at_every_step(folder, model, tmp_path, whole, suffix):
    out, told = tmp_path / f"rows{suffix}", tmp_path / "told"
    step = 1
    while True:
        saved = os.open(told, os.O_RDWR | os.O_CREAT | os.O_TRUNC)

        def work(step=step, saved=saved):
            fail_at(step, errno.ENOSPC)
            try:
                predict(model, folder, out=out, **BATCH)
            except StorageError as error:
                os.pwrite(saved, str(error).encode(), 0)
                os._exit(3)

        code = in_child(work)
        os.close(saved)
        if code == 0:
            break
        assert code == 3, step
        text = told.read_text()
        assert "No space left on device" in text and "\n" not in text and text.startswith(str(tmp_path))
        step += 2
    assert step > 12
    assert rows_of(out) == whole(model, folder, suffix)


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_limit_of_file_sizes_is_told(folder, model, tmp_path, whole, suffix):
    """The error also occurs within the libraries that write the formats."""
    out = tmp_path / f"rows{suffix}"
    for limit in (100, 3000, 6000):

        def work(limit=limit):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            try:
                predict(model, folder, out=out, **BATCH)
            except StorageError as error:
                os._exit(3 if "cannot be written (" in str(error) and "repeat the command" in str(error) else 4)

        assert in_child(work) in (0, 3), limit
    predict(model, folder, out=out, **BATCH)
    assert rows_of(out) == whole(model, folder, suffix)

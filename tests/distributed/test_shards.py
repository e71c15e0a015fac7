"""Parts of shards together are the rows of one process, whatever is killed and made twice."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
from pyarrow import parquet

from foveal.cli import main
from foveal.distributed import merge, open_manifest, predict_shard
from foveal.distributed.shards import PART, Shards, parse_shard, read_part
from foveal.errors import ConfigError, DataError, StorageError
from foveal.prediction import COLUMNS, predict
from foveal.prediction.output import read_rows
from tests.kills import killed
from tests.tiny import failure

HOW = {"device": "cpu", "batch_size": 3}


@pytest.fixture(scope="module")
def expected(run, images):
    """Rows of one call of `predict`, which knows nothing of shards, by their places in the manifest."""
    names = [*(f"{i:02}.png" for i in range(39)), "03.png"]
    rows = predict(run, [str(images / name) for name in names], **HOW).rows
    by_path = {row["path"]: row for row in rows}
    return [{**by_path[str(images / name)], "path": name} for name in names]


def check_equal(found, expected):
    """Equal, up to rounding errors and times."""
    assert [row["row"] for row in found] == list(range(len(expected)))
    for row, other in zip(found, expected, strict=True):
        for key in set(COLUMNS) - {"seconds", "probability", "top_k", "glimpses"}:
            assert row[key] == other[key], key
        assert row["probability"] == pytest.approx(other["probability"], abs=1e-5)
        assert [look["box"] for look in row["glimpses"]] == [look["box"] for look in other["glimpses"]]
        for one, two in zip(row["glimpses"], other["glimpses"], strict=True):
            assert one["contribution"] == pytest.approx(two["contribution"], abs=1e-4)


def merged(folder, out):
    merge(folder, out)
    return list(read_rows(out))


def test_shards_are_the_rows_of_one_process(run, images, expected, tmp_path):
    shards = Shards(run, open_manifest(images / "images.csv"), 8, tmp_path / "parts", **HOW)
    made = [shards.make(shard) for shard in (5, 0, 7, 2, 1, 6, 4, 3)]
    assert sum(part.rows for part in made) == sum(part.predicted for part in made) == 40
    assert sum(part.failed for part in made) == 2
    names = sorted(file.name for file in (tmp_path / "parts").iterdir())
    assert names == ["job.json", *sorted(part.name for part in made)] and all(map(PART.fullmatch, names[1:]))
    before = {name: (tmp_path / "parts" / name).stat() for name in names}
    assert all(shards.make(shard).predicted == 0 for shard in range(8))
    assert {name: (tmp_path / "parts" / name).stat() for name in names} == before, "parts are not made again"
    for suffix in (".parquet", ".csv", ".jsonl"):
        rows = merged(tmp_path / "parts", tmp_path / f"rows{suffix}")
        check_equal(rows, expected)
        for row in rows:
            file = images / row["path"]
            if file.exists():
                assert row["file_size"] == file.stat().st_size
                assert row["file_version"].startswith(
                    time.strftime("%Y-%m-%dT%H:%M:%S.", time.gmtime(file.stat().st_mtime))
                )
            else:
                assert row["file_size"] is row["file_version"] is None


def start(work):
    """Run in a forked process."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return child


def kill_and_start_until_done(run, images, folder, seed, turns, longest):
    """Eight shards in four processes that are killed at random times. Returns the number of kills."""
    draw, kills = random.Random(seed), 0
    shards = Shards(run, open_manifest(images / "images.csv"), 8, folder, **HOW)

    def work(numbers):
        for shard in numbers:
            shards.make(shard)

    for turn in range(100):
        order = draw.sample(range(8), 8)
        # Two neighbours share a shard, so that some are made by two processes at once.
        given = [[*order[2 * i : 2 * i + 2], order[2 * i - 1]] for i in range(4)]
        children = [start(lambda numbers=numbers: work(numbers)) for numbers in given]
        for child in children:
            if turn < turns:
                time.sleep(draw.random() * longest)
                os.kill(child, signal.SIGKILL)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            assert code in (0, -signal.SIGKILL)
            kills += code != 0
        if not merge(folder).missing and turn >= turns:
            return kills
    raise AssertionError("no end")


def left_over(folder):
    return [file.name for file in folder.iterdir() if file.name != "job.json" and not PART.fullmatch(file.name)]


def test_four_processes_killed_at_random_leave_each_row_once(run, images, expected, tmp_path):
    assert kill_and_start_until_done(run, images, tmp_path / "parts", 0, 3, 0.1) > 0
    check_equal(merged(tmp_path / "parts", tmp_path / "rows.parquet"), expected)
    assert len(list((tmp_path / "parts").glob("part-*.parquet"))) == 8


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 7))
def test_four_processes_killed_at_random_many_times(run, images, expected, tmp_path, seed):
    assert kill_and_start_until_done(run, images, tmp_path / "parts", seed, 8, 0.3) > 0  # fast machines are done early
    check_equal(merged(tmp_path / "parts", tmp_path / "rows.parquet"), expected)


@pytest.mark.slow
def test_commands_in_four_processes_killed_at_random(run, images, expected, tmp_path):
    """The command itself, each shard in a process of its own."""
    draw, todo, kills = random.Random(0), list(range(8)), 0
    while todo:
        running = {}
        for shard in draw.sample(todo, min(4, len(todo))):
            command = [sys.executable, "-m", "foveal", "predict", run, "--manifest", images / "images.csv"]
            more = ["--shard", f"{shard}/8", "--out", tmp_path / "parts", "--device", "cpu", "--batch-size", "3"]
            running[shard] = subprocess.Popen([*command, *more], stdout=subprocess.DEVNULL)
        for process in running.values():
            if kills < 8:
                time.sleep(draw.random() * 6)
                process.kill()
                kills += 1
        codes = {shard: process.wait() for shard, process in running.items()}
        assert set(codes.values()) <= {0, -signal.SIGKILL}
        todo = [shard for shard in todo if codes.get(shard) != 0]
    check_equal(merged(tmp_path / "parts", tmp_path / "rows.parquet"), expected)


def each_kill(run, images, expected, tmp_path, every):
    """Kill before each operation on files, or every few, and go on."""
    manifest = open_manifest(images / "images.csv")
    for at in range(0, 1000, every):
        folder = tmp_path / str(at)
        folder.mkdir()
        shards = Shards(run, manifest, 4, folder, **HOW)
        if not killed(lambda shards=shards: shards.make(1), at, folder):
            return at
        assert shards.make(1).rows == 10
        assert left_over(folder) == [], at
        (part,) = folder.glob("part-*.parquet")
        rows = [row | {"row": row["row"] - 10} for row in read_part(part)]
        check_equal(rows, expected[10:20])
        shutil.rmtree(folder)
    raise AssertionError("no end")


def test_a_shard_killed_at_operations_on_files_is_continued(run, images, expected, tmp_path):
    assert each_kill(run, images, expected, tmp_path, 4) > 4


@pytest.mark.slow
def test_a_shard_killed_at_any_operation_on_files_is_continued(run, images, expected, tmp_path):
    assert each_kill(run, images, expected, tmp_path, 1) > 8


def test_a_killed_shard_keeps_the_batches_that_are_done(run, images, tmp_path):
    shards = Shards(run, open_manifest(images / "images.csv"), 2, tmp_path, **HOW)

    def stop(done, total):
        if done >= 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shards.make(0, on_progress=stop)
    seen = []
    shards.make(0, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(12, 20), (15, 20), (18, 20), (20, 20)]


def test_failed_images_are_predicted_again_on_request(run, images, tmp_path):
    shutil.copytree(images, tmp_path / "images")
    shards = Shards(run, open_manifest(tmp_path / "images" / "images.csv"), 4, tmp_path / "parts", **HOW)
    first = [shards.make(shard) for shard in range(4)]
    assert merge(tmp_path / "parts").failed_shards == [0, 1]
    shutil.copy(images / "06.png", tmp_path / "images" / "05.png")
    assert shards.make(0).predicted == 0
    again = shards.make(0, retry=True)
    assert (again.name, again.predicted, again.failed) == (first[0].name, 1, 0)
    found = merge(tmp_path / "parts", tmp_path / "rows.jsonl")
    assert (found.failed, found.failed_shards, found.errors[0][0]) == (1, [1], "11.png")
    rows = list(read_rows(tmp_path / "rows.jsonl"))
    assert [row["row"] for row in rows] == list(range(40))
    assert rows[5]["probability"] == pytest.approx(rows[6]["probability"], abs=1e-6)
    assert rows[5]["file_size"] == rows[6]["file_size"]


def test_an_image_that_changes_while_it_is_read_has_an_error(run, images, tmp_path, monkeypatch):
    shutil.copytree(images, tmp_path / "images")
    from foveal.prediction import predictor

    def opened(*args, real=predictor.open_image, **options):
        image = real(*args, **options)
        if str(args[0]).endswith("01.png"):
            os.utime(tmp_path / "images" / "01.png", ns=(1, 1))
        return image

    monkeypatch.setattr(predictor, "open_image", opened)
    part = predict_shard(run, tmp_path / "images" / "images.csv", 0, 8, tmp_path / "parts", **HOW)
    rows = list(read_part(tmp_path / "parts" / part.name))
    changed = "01.png: was changed while it was read; predict it again"
    assert [row["error"] for row in rows] == [None, changed, None, None, None]
    assert all(row["file_size"] for row in rows)


def test_a_folder_holds_the_parts_of_one_job(run, images, tmp_path):
    table = tmp_path / "images.csv"
    shutil.copy(images / "images.csv", table)
    given = {"model": run, "manifest": table, "root": images, "shards": 8, "out": tmp_path / "parts", **HOW}
    predict_shard(shard=0, **given)
    predict_shard(shard=1, **given | {"batch_size": 8})  # changes rounding errors only
    for changed, what in (
        ({"locations": 2}, r"\(locations\)"),
        ({"policy": "random", "seed": 1}, r"\(policy, seed\)"),
        ({"shards": 9}, r"\(8 shards\)"),
    ):
        with pytest.raises(ConfigError, match=f"has parts of another job {what}; choose another `out`"):
            predict_shard(shard=0, **given | changed)
    table.write_text(table.read_text().replace("38.png", "37.png"))
    with pytest.raises(ConfigError, match=r"another job \(manifest\)"):
        predict_shard(shard=0, **given)


@pytest.fixture
def parts(run, images, tmp_path):
    """A folder with three parts, and one with the parts of another job."""
    table = open_manifest(images / "images.csv")
    for name, locations in (("parts", 1), ("other", 2)):
        shards = Shards(run, table, 3, tmp_path / name, locations=locations, **HOW)
        for shard in range(3):
            shards.make(shard)
    return sorted((tmp_path / "parts").glob("part-*")), sorted((tmp_path / "other").glob("part-*"))


def test_merging_tells_what_is_missing_mixed_or_damaged(parts, tmp_path):
    (first, second, _), (strange, *_) = parts
    folder, out = tmp_path / "parts", tmp_path / "rows.parquet"

    def fails(message):
        with pytest.raises(StorageError, match=message) as error:
            merge(folder, out)
        assert "\n" not in str(error.value) and not out.exists()

    shutil.copy(strange, folder)  # beside the right one
    fails(f"{strange.name}: is a part of another job, with another model, settings or manifest; move it away")
    first.rename(tmp_path / "kept")  # instead of the right one
    fails(f"{strange.name}: is a part of another job")
    (folder / strange.name).unlink()
    assert merge(folder, out).missing == [0] and not out.exists()
    (tmp_path / "kept").rename(first)
    copied = folder / first.name.replace("part-00000", "part-00001")
    second.rename(tmp_path / "kept")
    shutil.copy(first, copied)
    fails("has rows of shard 0")
    copied.unlink()
    (tmp_path / "kept").rename(second)
    for name in (copied.name.replace("00001-of", "00007-of"), copied.name.replace("of-00003", "of-00009")):
        shutil.copy(first, folder / name)
        fails(f"{name}: has rows of shard 0; remove it")
        (folder / name).unlink()
    whole = second.read_bytes()
    second.write_bytes(whole[: len(whole) // 2])
    fails(f"{second.name}: is damaged")
    table = parquet.ParquetFile(first)
    with parquet.ParquetWriter(tmp_path / "short", table.schema_arrow) as short:
        short.write_table(table.read()[:-1])
    first.write_bytes((tmp_path / "short").read_bytes())
    fails(f"{first.name}: does not have each of its rows once")


def test_no_damage_of_a_part_goes_unseen(parts, tmp_path):
    (first, *_), _ = parts
    merge(tmp_path / "parts", tmp_path / "rows.parquet")
    whole, expected, named = first.read_bytes(), parquet.read_table(tmp_path / "rows.parquet"), 0
    for place in range(0, len(whole), len(whole) // 60):
        first.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            merge(tmp_path / "parts", tmp_path / "rows.parquet")
        except StorageError as error:
            named += 1
            assert first.name in str(error)
        assert parquet.read_table(tmp_path / "rows.parquet").equals(expected), place
    assert named > 30


def test_what_is_not_the_part_is_not_predicted_again(parts, run, images, tmp_path):
    (first, second, _), (strange, *_) = parts
    shards, whole = Shards(run, open_manifest(images / "images.csv"), 3, tmp_path / "parts", **HOW), first.read_bytes()
    for content, what in (
        (b"", f"{first}: is damaged .*; remove it, and make its shard again"),
        (whole[: len(whole) // 2], f"{first}: is damaged"),
        (second.read_bytes(), f"{first}: is another part, or none; remove it, and make its shard again"),
        (strange.read_bytes(), f"{first}: is another part"),
    ):
        first.write_bytes(content)
        with pytest.raises(StorageError, match=what):
            shards.make(0, retry=True)
        assert first.read_bytes() == content
    # Damage of a column other than those that tell what failed.
    first.write_bytes(whole)
    group = parquet.read_metadata(first).row_group(0)
    seconds = next(group.column(i) for i in range(group.num_columns) if group.column(i).path_in_schema == "seconds")
    place = (seconds.dictionary_page_offset or seconds.data_page_offset) + seconds.total_compressed_size - 3
    first.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    with pytest.raises(StorageError, match=f"{first}: is damaged"):
        shards.make(0, retry=True)


def test_a_part_that_the_system_does_not_give_is_not_called_damaged(parts, tmp_path):
    """Nobody should remove it."""
    (first, *_), _ = parts
    first.rename(tmp_path / "kept")
    first.symlink_to(tmp_path / "not mounted" / "part")
    with pytest.raises(StorageError, match=r"cannot be read \(No such file or directory\); correct it, and try again"):
        merge(tmp_path / "parts")


def test_parts_are_not_replaced_by_merged_rows(parts, tmp_path):
    (first, *_), _ = parts
    before = first.read_bytes()
    with pytest.raises(ConfigError, match="is the name of a part, which would be replaced; choose another"):
        merge(tmp_path / "parts", first)
    assert first.read_bytes() == before


def test_parts_of_a_version_with_other_columns_are_not_called_damaged(parts, tmp_path, monkeypatch):
    monkeypatch.setattr("foveal.distributed.merging.SCHEMA", 99)
    with pytest.raises(ConfigError, match=r"and this is .*; merge them with that version"):
        merge(tmp_path / "parts")


def test_a_foreign_index_is_named_before_all_images_fail(run, images, tmp_path):
    shutil.copy(images / "images.csv", tmp_path)
    (tmp_path / "images.headers.parquet").write_text("something else")
    with pytest.raises(DataError, match=r"images.headers.parquet: is not an index of headers; write it by"):
        Shards(run, open_manifest(tmp_path / "images.csv"), 2, tmp_path / "parts", **HOW)
    assert not (tmp_path / "parts").exists()


@pytest.mark.parametrize("shards", [0, -3, 1.5])
def test_a_job_has_shards(run, images, tmp_path, shards):
    with pytest.raises(ConfigError, match="shards"):
        Shards(run, open_manifest(images / "images.csv"), shards, tmp_path / "parts", **HOW)
    assert not (tmp_path / "parts").exists()


def test_a_merged_file_has_large_row_groups_and_few_rows_in_memory(parts, tmp_path, monkeypatch):
    monkeypatch.setattr("foveal.distributed.merging.GROUP", 20)
    merge(tmp_path / "parts", tmp_path / "rows.parquet")
    metadata = parquet.read_metadata(tmp_path / "rows.parquet")
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [26, 14]


def test_more_shards_than_rows(run, images, tmp_path):
    (tmp_path / "two.csv").write_text("path\n00.png\n01.png\n")
    for shard in range(3):
        predict_shard(run, tmp_path / "two.csv", shard, 3, tmp_path / "parts", root=images, **HOW)
    assert [row["path"] for row in merged(tmp_path / "parts", tmp_path / "rows.csv")] == ["00.png", "01.png"]


@pytest.mark.parametrize("text", ["3", "a/b", "3/3", "-1/3", "0/0", "1/2/3", ""])
def test_shards_are_counted_from_0(text):
    with pytest.raises(ConfigError, match="`shard`"):
        parse_shard(text)


def test_the_commands(run, images, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = ["predict", str(run), "--manifest", str(images / "images.csv"), "--device", "cpu"]
    assert main([*given, "--shard", "1/2", "--out", "parts"]) == 0, "failed images are rows, and merge tells them"
    assert "20 rows, 20 predicted now, of which 0 failed" in capsys.readouterr().out
    assert failure(capsys, "merge", "parts") == (
        1,
        "foveal: 1 of 2 parts are missing; make these shards: 0",
    )
    assert main([*given, "--shard", "0/2", "--out", "parts", "--quiet"]) == 0
    assert main(["merge", "parts", "--out", "rows.csv"]) == 1
    out, err = capsys.readouterr()
    assert out == "40 rows in 2 parts, each once; all are in rows.csv\n"
    first, *listed = err.splitlines()
    assert first == "foveal: 2 images failed; predict these shards again with --retry: 0"
    assert [line.split(":")[0] for line in listed] == ["  05.png", "  11.png"]
    assert main([*given, "--out", "plain.csv", "--quiet"]) == 1
    plain = {row["path"]: row["label"] for row in read_rows(tmp_path / "plain.csv")}
    assert plain == {row["path"]: row["label"] for row in read_rows(tmp_path / "rows.csv")}
    assert json.loads((tmp_path / "parts" / "job.json").read_text())["rows"] == 40


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        ([], 2, "foveal: give IMAGES, or --manifest and a table of images"),
        (["IMAGE", "--manifest", "M"], 2, "foveal: give IMAGES, or --manifest and a table of images, not both"),
        (["IMAGE", "--shard", "0/2"], 2, "foveal: --shard 0/2: is for a manifest; give --manifest and a table"),
        (["IMAGE", "--actors", "2"], 2, "foveal: --actors 2: is for a cluster; give --cluster ray, or leave it out"),
        (["--manifest", "M", "--shard", "0/2"], 2, "the rows need a folder or a URL; give one by --out"),
        (["--manifest", "M", "--shard", "2/2", "--out", "p"], 2, "shards are counted from 0 to 1; give one of these"),
        (["--manifest", "M", "--shard", "two", "--out", "p"], 2, "--shard two: is not a shard"),
        (["--manifest", "M", "--shard", "0/2", "--out", "IMAGE"], 2, "is a file; give a folder for the parts"),
        (
            ["--manifest", "M", "--shard", "0/2", "--out", "p", "--looks", "l"],
            2,
            "--looks: cannot be used with --shard",
        ),
        (["--manifest", "M", "--shard", "0/2", "--out", "p", "--cluster", "ray"], 2, "a cluster predicts all shards"),
        (["--manifest", "none.csv", "--shard", "0/2", "--out", "p"], 1, "none.csv: there is no such file or folder"),
    ],
)
def test_mistakes_in_commands_are_one_sentence(run, images, tmp_path, capsys, monkeypatch, flags, code, message):
    monkeypatch.chdir(tmp_path)
    words = {"IMAGE": str(images / "00.png"), "M": str(images / "images.csv")}
    found, said = failure(capsys, "predict", run, *(words.get(flag, flag) for flag in flags))
    assert found == code and message in said
    assert list(tmp_path.iterdir()) == []


def test_mistakes_in_merging_are_one_sentence(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert failure(capsys, "merge", "none") == (2, "foveal: none: there is no such folder; check the path")
    assert "has no job.json, so there are no parts" in failure(capsys, "merge", ".")[1]
    assert "merged rows are written as .parquet" in failure(capsys, "merge", ".", "--out", "rows.txt")[1]
    (tmp_path / "job.json").write_text("{}")
    for damaged in ("{}", "[" * 100_000, '{"version": [1, 2], "rows": 1, "shards": 0, "manifest": "", "settings": {}}'):
        (tmp_path / "job.json").write_text(damaged)
        assert "job.json: is damaged" in failure(capsys, "merge", ".")[1]

"""The guide does what it says: its commands here, and those of schedulers with what these set."""

import os
import re
import shlex
import shutil
from pathlib import Path

import pytest
from pyarrow import parquet

from foveal.cli import main
from tests.test_docs import CLASSES, DOCS, FENCE, reader, write_images  # noqa: F401 (a fixture)

GUIDE = DOCS / "guides" / "million.md"


@pytest.fixture
def here(reader, run):  # noqa: F811
    write_images("photos", CLASSES, side=40)
    write_images("new", ("a", "b"), side=40)
    shutil.copytree(run, "runs/photos")
    return reader


def test_the_guide_does_what_it_says(here, monkeypatch):
    here.follow(GUIDE)
    table = parquet.read_table("labels.parquet")
    assert table["path"].to_pylist() == Path("images.csv").read_text().replace(",", "\n").split("\n")[2:-1:2]
    assert table["row"].to_pylist() == [0, 1, 2, 3, 4]
    parquet.write_table(table.select(["path"]), "images.parquet")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "63")
    scripts = [body for kind, _, body in FENCE.findall(GUIDE.read_text(encoding="utf-8")) if kind in ("bash", "yaml")]
    for shard, script in zip((3, 7, 63), scripts, strict=True):
        command = re.search(r"foveal predict .*?--out \S+", script.replace("\\\n", " "), re.DOTALL)[0]
        for of_cluster, of_test in (("{}", "7"), ("/shared/", ""), ("/data/", ""), ("s3://", "")):
            command = command.replace(of_cluster, of_test)
        words = [os.path.expandvars(word) for word in shlex.split(command)]
        words[-1] = f"parts_{shard}"
        assert main([*words[1:], "--quiet", "--device", "cpu"]) == 0, command
        assert len(list(Path(words[-1]).glob(f"part-{shard:05}-of-00064-*.parquet"))) == 1, command

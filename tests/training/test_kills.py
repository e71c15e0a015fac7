"""A run that is killed at any of its file operations is repeated, or gone on with, as it says, and is the run that was
not killed.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from foveal.errors import RunError
from foveal.recipes.fit_config import FitConfig, fit_config
from foveal.runs import Run
from tests.kills import killed
from tests.training.test_resume import metrics
from tests.training.tiny import config

NETWORK = {"name": "test_resnet_cifar", "image_size": 32, "attention": "softmax"}


def short(seed: int = 3) -> FitConfig:
    """A run with two updates, validations and images that cannot be read."""
    data = {"name": "tiny_images", "count": 8, "bad": [2, 5]}
    return config(
        model=NETWORK,
        data=data,
        ema=None,
        epochs=None,
        steps=2,
        val_every=1,
        accumulate=1,
        optimiser={"lr": 0.01},
        seed=seed,
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[int, Path]:
    """Uninterrupted runs of two seeds."""
    folder = tmp_path_factory.mktemp("whole")
    return {seed: fit_config(short(seed), folder / str(seed), quiet=True).path for seed in (3, 4)}


def again(out: Path, **how: bool) -> str:
    """Run the same command, then the command that its error names. Returns which one worked."""
    try:
        fit_config(short(), out, quiet=True, **how)
    except RunError as error:
        how = {"resume": True} if "`resume`" in str(error) else {"overwrite": True}
        assert f"`{next(iter(how))}`" in str(error)
        fit_config(short(), out, quiet=True, **how)
        return next(iter(how))
    return "same"


def same(out: Path, whole: Path) -> None:
    assert sorted(file.name for file in out.iterdir()) == sorted(file.name for file in whole.iterdir())
    for name in ("model.safetensors", "config.yaml", "config.json", "bad_images.csv", "attention.csv"):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name
    assert metrics(out) == metrics(whole)
    assert {**Run(out).summary, "seconds": 0, "warnings": []} == {**Run(whole).summary, "seconds": 0, "warnings": []}


def points(every: int) -> Iterator[int]:
    return count(0, every)


def try_all(begin: Callable[[Path], object], every: int, folder: Path, check: Callable[[Path], object]) -> int:
    """Kill at every n-th operation. Returns the number of operations."""
    for at in points(every):
        out = folder / str(at) / "run"
        out.parent.mkdir()
        if not killed(lambda: begin(out), at, out.parent):  # noqa: B023
            return at
        check(out)
        shutil.rmtree(out.parent)
    raise AssertionError


def test_killed_anywhere(tmp_path, whole, every=11):
    ways = []

    def check(out: Path) -> None:
        ways.append(again(out))
        same(out, whole[3])

    operations = try_all(lambda out: fit_config(short(), out, quiet=True), every, tmp_path, check)
    print(operations, ways)
    assert operations > 50
    assert set(ways) == {"same", "overwrite", "resume"}


def test_killed_anywhere_while_it_replaces_another_run(tmp_path, whole, every=23):
    """The folder then holds the old run, the new run or none."""

    def begin(out: Path) -> None:
        fit_config(short(), out, overwrite=True, quiet=True)

    def before(out: Path) -> None:
        shutil.copytree(whole[4], out)

    def check(out: Path) -> None:
        shutil.copytree(out, other := out.with_name("other"))
        assert again(out, overwrite=True) == "same"
        same(out, whole[3])
        try:
            fit_config(None, other, resume=True, quiet=True)
        except RunError as error:
            assert "`overwrite`" in str(error)
        else:
            same(other, whole[Run(other).config["seed"]])

    for at in points(every):
        out = tmp_path / str(at) / "run"
        before(out)
        if not killed(lambda: begin(out), at, out):  # noqa: B023
            break
        check(out)
    print(at, "operations")
    assert at > 50


@pytest.mark.slow
def test_killed_at_every_operation(tmp_path, whole):
    test_killed_anywhere(tmp_path, whole, 1)


@pytest.mark.slow
def test_killed_at_every_operation_of_replacing(tmp_path, whole):
    test_killed_anywhere_while_it_replaces_another_run(tmp_path, whole, 1)

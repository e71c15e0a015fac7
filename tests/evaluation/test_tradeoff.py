import errno
import io
import json
import math
from dataclasses import replace

import pytest
import torch
from PIL import Image
from rich.console import Console

from foveal.draws import generator
from foveal.errors import ConfigError, DataError, StorageError
from foveal.evaluation import Setting, evaluate
from foveal.models import create_model
from foveal.prediction import count_cost
from tests.evaluation.tiny import Looker, data
from tests.training.tiny import Spoilt

CPU = Setting(device="cpu")


def tnet(**options):
    return create_model("tnet", backbone="test_efficientnet", num_classes=6, base_size=32, **options)


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    dense = create_model("test_efficientnet", num_classes=6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("foveal.evaluation.timing.QUICK_SECONDS", 0.01)
        result = evaluate(tnet(locations=(2, 1)), data(), locations=[(), (2, 1)], against=dense, setting=CPU)
    result.write(folder)
    return result, folder


@pytest.mark.parametrize("before", [True, False])
def test_a_result_that_cannot_be_drawn_leaves_the_old_files(evaluation, tmp_path, before, monkeypatch):
    result, _ = evaluation
    if before:
        (tmp_path / "evaluation.json").write_text("old")
        (tmp_path / "tradeoff.png").write_text("old")
    kept = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def full(self, file):
        file.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(type(result), "draw", full)
    with pytest.raises(StorageError, match=r"tradeoff.png: cannot be written \(No space left on device\)"):
        result.write(tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == kept


def test_points(evaluation):
    points = evaluation[0].points
    assert [(p.kind, p.locations, p.total_locations) for p in points] == [
        ("learned", (), 0),
        ("learned", (2, 1), 4),
        ("random", (2, 1), 4),
        ("against", (), 0),
    ]
    model = tnet(locations=(2, 1))
    assert [p.macs for p in points[:3]] == [count_cost(model, 8, places).macs for places in [(), (2, 1), (2, 1)]]
    assert points[1].parameters == count_cost(model, 8).parameters
    assert all(
        p.interval[0] <= p.accuracy <= p.interval[1] and p.images == 30 and 0 < p.metrics["top5"].value <= 1
        for p in points
    )
    assert points[0].single.batch_size == 1 and points[1].batched.batch_size >= 1 and points[2].single is None


def test_dense_costs_are_included(evaluation):
    small, full = evaluation[0].dense
    backbone = tnet().dense()
    assert (small.size, small.macs) == ((32, 32), count_cost(backbone, 32).macs)
    assert (full.size, full.macs) == ((8, 8), count_cost(backbone, 8).macs)


def test_files(evaluation):
    result, folder = evaluation
    assert sorted(p.name for p in folder.iterdir()) == ["confusion.png", "evaluation.json", "tradeoff.png"]
    stored = json.loads((folder / "evaluation.json").read_text())
    assert stored["data"] == "numbers" and stored["split"] == "test" and stored["errors"] == []
    assert stored["points"][1]["accuracy"] == result.points[1].accuracy
    assert stored["points"][1]["single"]["p50"] > 0
    assert Image.open(folder / "tradeoff.png").size == (1125, 720)


def test_the_table_has_a_row_per_locations(evaluation):
    shown = Console(width=80, record=True, file=io.StringIO())
    shown.print(evaluation[0].table())
    rows = [
        line.split()[0] for line in shown.export_text().split("further metrics")[0].splitlines()[3:] if line.strip()
    ]
    assert rows == ["0", "2,1", "model", "dense,", "dense,"]


def test_learned_looks_beat_random_ones_where_they_should():
    points = evaluate(Looker(), data(20), locations=[(), (6,)], measure="none", setting=CPU).points
    assert [(p.kind, p.accuracy) for p in points[:2]] == [("learned", pytest.approx(1 / 6)), ("learned", 1.0)]
    assert points[2].kind == "random" and points[2].accuracy < 0.4


def test_all_locations_up_to_the_models_own_by_default():
    points = evaluate(tnet(locations=(2, 1)), data(), measure="none", setting=CPU).points
    assert [p.locations for p in points if p.kind == "learned"] == [(), (1, 1), (2, 1)]
    assert [
        p.locations
        for p in evaluate(create_model("test_resnet", num_classes=6), data(), measure="none", setting=CPU).points
    ] == [()]


@pytest.mark.parametrize("seed", [0, 1])
def test_a_limit_draws_images_by_the_seed(seed):
    setting = Setting(device="cpu", batch_size=16, seed=seed, limit=50)
    result = evaluate(Looker(), data(20), locations=[(3,)], measure="none", setting=setting)
    drawn = generator(seed, 0, 0, "order").permutation(120)[:50]
    assert result.points[0].images == result.as_dict()["limit"] == 50
    assert result.points[0].accuracy == (data(20).test.targets[drawn] < 3).mean()  # three looks, three classes


def test_progress_counts_looks_at_batches_then_timings():
    told = []
    evaluate(
        tnet(),
        data(),
        locations=[(), (2, 1)],
        measure="none",
        setting=Setting(device="cpu", batch_size=8, on_progress=lambda *step: told.append(step)),
    )
    # Four batches; learned, learned and random looks, the first included.
    assert told == [(11 * batch + done, 44, "accuracy") for batch in range(4) for done in (1, 6, 11)]


def test_progress_goes_on_where_a_batch_cannot_be_read():
    told = []
    split = Spoilt(data().test.images, torch.from_numpy(data().test.targets), data().classes)
    split.bad = tuple(range(8))
    setting = Setting(device="cpu", batch_size=8, on_progress=lambda *step: told.append(step))
    evaluate(tnet(), replace(data(), test=split), locations=[()], measure="none", setting=setting)
    assert told == [(i, 4, "accuracy") for i in range(1, 5)]


def test_times_are_of_learned_looks_and_told_in_the_file(monkeypatch):
    monkeypatch.setattr("foveal.evaluation.timing.QUICK_SECONDS", 0.01)
    told = []
    setting = Setting(device="cpu", on_progress=lambda *step: told.append(step))
    dense = create_model("test_resnet", num_classes=6)
    result = evaluate(tnet(), data(), locations=[(), (2,)], against=dense, setting=setting)
    assert [(p.kind, p.single is not None, p.batched is not None) for p in result.points] == [
        ("learned", True, True),
        ("learned", True, True),
        ("random", False, False),
        ("against", True, True),
    ]
    assert result.as_dict()["measure"] == "quick"
    parts = [part for *_, part in told]
    assert parts == sorted(parts) and told[-1][1:] == (2 + 5, "timings")  # two models and five rounds
    assert evaluate(tnet(), data(), locations=[()], measure="none", setting=CPU).as_dict()["measure"] == "none"


def test_what_does_not_fit_is_told():
    model = tnet()
    model.class_names = tuple("abcdeg")
    with pytest.raises(DataError, match="'f' is unknown to the model"):
        evaluate(model, data(), measure="none", setting=CPU)
    with pytest.raises(ConfigError, match="has 6 classes, the model 3"):
        evaluate(create_model("test_resnet", num_classes=3), data(), measure="none", setting=CPU)
    with pytest.raises(ConfigError, match="looks once"):
        evaluate(create_model("test_resnet", num_classes=6), data(), locations=[(2,)], measure="none", setting=CPU)
    with pytest.raises(ConfigError, match="`measure` often: is not known; use one of none, quick, full"):
        evaluate(tnet(), data(), measure="often", setting=CPU)
    with pytest.raises(DataError, match="no split 'train'"):
        evaluate(tnet(), data(), measure="none", setting=Setting(split="train", device="cpu"))


@pytest.fixture(scope="module")
def several():
    """A TNet, its policies and their results."""
    sweep = [(), (1,), (3,), (2, 1), (1, 2)]
    return evaluate(
        tnet(locations=(3,)), data(), locations=sweep, policies=("centre", "exhaustive"), measure="none", setting=CPU
    )


def test_every_policy_at_all_locations(several):
    points = {(p.kind, p.locations): p for p in several.points}
    assert len(points) == len(several.points) == 5 + 4 + 4 + 2
    for policy in ("learned", "random", "centre"):
        assert {b for kind, b in points if kind == policy} == {
            (1,),
            (3,),
            (2, 1),
            (1, 2),
            *([()] if policy == "learned" else []),
        }
    assert [points["centre", b].total_locations for b in [(1,), (3,), (2, 1), (1, 2)]] == [1, 3, 4, 3]
    # Every cell, for any locations: once for each number of levels.
    assert [b for kind, b in points if kind == "exhaustive"] == [(9,), (9, 9)]
    every = points["exhaustive", (9,)]
    assert (every.total_locations, every.macs) == (9, count_cost(tnet(), 8, (9,)).macs)
    assert points["exhaustive", (9, 9)].total_locations == 90


def test_coverage_and_diversity_of_known_choices(several):
    points = {(p.kind, p.locations): p for p in several.points}
    # Cells of an 8 x 8 image are regions of half its side, their middles a quarter of it apart.
    assert points["learned", ()].coverage == 0 and points["learned", ()].diversity is None
    assert points["centre", (1,)].coverage == 0.25 and points["centre", (1,)].diversity is None
    assert points["learned", (1,)].coverage == 0.25
    assert points["exhaustive", (9,)].coverage == 1
    cells = [(y, x) for y in (-0.5, 0, 0.5) for x in (-0.5, 0, 0.5)]
    pairs = [math.dist(a, b) for i, a in enumerate(cells) for b in cells[:i]]
    assert points["exhaustive", (9,)].diversity == pytest.approx(sum(pairs) / 36)
    assert 0.25 < points["random", (3,)].coverage < 0.8


def test_policies_have_a_table_of_their_own_and_a_line(several, tmp_path):
    shown = Console(width=80, record=True, file=io.StringIO())
    shown.print(several.table(wide=True))
    lines = [line.split() for line in shown.export_text().splitlines()]
    start = next(i for i, line in enumerate(lines) if line[:3] == ["accuracy", "by", "policy"])
    assert lines[start + 1] == ["policy", "0", "1", "1,2", "2,1", "3", "9", "9,9"]
    assert [line[0] for line in lines[start + 3 : start + 7]] == ["learned", "random", "centre", "exhaustive"]
    found = [f"{100 * p.accuracy:.1f}" for p in several.points if p.kind == "exhaustive"]
    assert lines[start + 6] == ["exhaustive", *found]
    covered = next(i for i, line in enumerate(lines) if line[:2] == ["share", "of"])
    assert lines[covered + 6] == ["exhaustive", "100.0", "100.0"] and lines[covered + 5][:2] == ["centre", "25.0"]
    several.write(tmp_path)
    stored = json.loads((tmp_path / "evaluation.json").read_text())
    assert {"foveal", "torch", "device", "seed"} < set(stored) and stored["points"][-1]["kind"] == "exhaustive"


def test_policies_that_fit_not(tmp_path):
    with pytest.raises(ConfigError, match="`policy` telepathy: tnet does not know it; use one of greedy"):
        evaluate(tnet(), data(), locations=[()], policies=("centre", "telepathy"), measure="none", setting=CPU)
    with pytest.raises(ConfigError, match="`policy` centre: this model looks once"):
        evaluate(create_model("test_resnet", num_classes=6), data(), policies=("centre",), measure="none", setting=CPU)


def test_what_a_policy_asked_for_twice_or_anyway_adds():
    points = evaluate(
        tnet(), data(), locations=[(1,)], policies=("random", "greedy", "centre", "centre"), measure="none", setting=CPU
    ).points
    assert [p.kind for p in points] == ["learned", "random", "centre"]

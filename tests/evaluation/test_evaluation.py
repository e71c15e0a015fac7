import io
import json

import pytest
from PIL import Image
from rich.console import Console

from foveal.errors import ConfigError, DataError
from foveal.evaluation import evaluate
from foveal.prediction import count
from foveal.runs import create_model
from tests.evaluation.test_accuracy import Looker, data


def tnet(**options):
    return create_model("tnet", backbone="test_efficientnet", num_classes=6, base_size=32, **options)


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    dense = create_model("test_efficientnet", num_classes=6)
    return evaluate(tnet(locations=(2, 1)), data(), budgets=[(), (2, 1)], against=dense, device="cpu", seconds=0.01, out=folder), folder


def test_points(evaluation):
    points = evaluation[0].points
    assert [(p.kind, p.locations, p.total_locations) for p in points] == [
        ("learned", (), 0), ("learned", (2, 1), 4), ("random", (2, 1), 4), ("against", (), 0),
    ]  # fmt: skip
    model = tnet(locations=(2, 1))
    assert [p.macs for p in points[:3]] == [count(model, 8, budget).macs for budget in [(), (2, 1), (2, 1)]]
    assert points[1].parameters == count(model, 8).parameters
    assert all(p.interval[0] <= p.accuracy <= p.interval[1] and p.images == 30 and p.top5 is not None for p in points)
    assert points[0].single.batch_size == 1 and points[1].batched.batch_size >= 1 and points[2].single is None


def test_dense_costs_stand_beside(evaluation):
    small, full = evaluation[0].dense
    backbone = tnet().dense()
    assert (small.size, small.macs) == ((32, 32), count(backbone, 32).macs)
    assert (full.size, full.macs) == ((8, 8), count(backbone, 8).macs)


def test_files(evaluation):
    result, folder = evaluation
    assert sorted(p.name for p in folder.iterdir()) == ["evaluation.json", "tradeoff.png"]
    stored = json.loads((folder / "evaluation.json").read_text())
    assert stored["data"] == "numbers" and stored["split"] == "test" and stored["errors"] == []
    assert stored["points"][1]["accuracy"] == result.points[1].accuracy
    assert stored["points"][1]["single"]["p50"] > 0
    assert Image.open(folder / "tradeoff.png").size == (1125, 720)


def test_the_table_has_a_row_a_budget(evaluation):
    shown = Console(width=200, record=True, file=io.StringIO())
    shown.print(evaluation[0].table())
    lines = [line for line in shown.export_text().splitlines() if "looks" in line or "dense" in line or "model 1" in line]
    assert len(lines) == 1 + 2 + 1 + 2
    assert any("2,1" in line and "%" in line for line in lines)


def test_learned_looks_beat_random_ones_where_they_should():
    points = evaluate(Looker(), data(20), budgets=[(), (6,)], measured=False, device="cpu").points
    assert [(p.kind, p.accuracy) for p in points[:2]] == [("learned", pytest.approx(1 / 6)), ("learned", 1.0)]
    assert points[2].kind == "random" and points[2].accuracy < 0.4


def test_every_budget_up_to_its_own_unless_told():
    points = evaluate(tnet(locations=(2, 1)), data(), measured=False, device="cpu").points
    assert [p.locations for p in points if p.kind == "learned"] == [(), (1, 1), (2, 1)]
    assert [p.locations for p in evaluate(create_model("test_resnet", num_classes=6), data(), measured=False, device="cpu").points] == [()]


def test_progress_counts_batches():
    told = []
    evaluate(tnet(), data(), budgets=[()], measured=False, device="cpu", batch_size=8, on_progress=lambda *step: told.append(step))
    assert told == [(i, 4) for i in range(1, 5)]


def test_what_does_not_fit_is_told():
    model = tnet()
    model.class_names = tuple("abcdeg")
    with pytest.raises(DataError, match="'f' is unknown to the model"):
        evaluate(model, data(), measured=False, device="cpu")
    with pytest.raises(ConfigError, match="has 6 classes, the model 3"):
        evaluate(create_model("test_resnet", num_classes=3), data(), measured=False, device="cpu")
    with pytest.raises(ConfigError, match="looks once"):
        evaluate(create_model("test_resnet", num_classes=6), data(), budgets=[(2,)], measured=False, device="cpu")
    with pytest.raises(DataError, match="no split 'train'"):
        evaluate(tnet(), data(), split="train", measured=False, device="cpu")

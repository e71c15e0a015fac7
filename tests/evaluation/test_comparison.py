import io
import json
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from rich.console import Console

from foveal.classification import Classification, Glimpses
from foveal.cli import main
from foveal.data import DataModule, ImageDataset, TensorDataset
from foveal.draws import generator
from foveal.errors import ConfigError, DataError
from foveal.evaluation import Setting, compare, evaluate, fit_temperature, pareto
from foveal.evaluation.calibration import COLDEST, HOTTEST
from foveal.evaluation.drawing import plain_number
from foveal.evaluation.timing import Trial, measure_in_turn
from foveal.glimpse.base import WholeImage
from foveal.images.views import TensorViews
from foveal.models import as_classifier, create_model
from foveal.prediction import count_cost
from foveal.runs import ModelInfo, save_model
from tests.evaluation.tiny import Looker
from tests.training.tiny import Spoilt

CPU = Setting(device="cpu")

NAMES = tuple("abcdef")


def split(per_class, kind=TensorDataset, bad=()):
    target = torch.arange(6).repeat(per_class)
    images = target[:, None, None, None].expand(-1, 3, 8, 8).to(torch.uint8).contiguous()
    made = kind(images, target, NAMES)
    if bad:
        made.bad = bad
    return made


def data(**splits):
    return DataModule(classes=NAMES, name="numbers", **({"val": split(3), "test": split(5)} | splits))


def tnet(**options):
    return create_model("tnet", backbone="test_efficientnet", num_classes=6, base_size=32, **options)


def pareto_by_force(costs, values):
    points = list(zip(costs, values, strict=True))
    return [
        not any((c <= cost and v >= value) and (c, v) != (cost, value) for c, v in points) for cost, value in points
    ]


def test_the_front_is_what_nothing_dominates():
    rng = np.random.default_rng(0)
    for size in [0, 1, 2, *range(3, 60)]:
        costs, values = rng.integers(1, 9, size).tolist(), rng.integers(0, 9, size).tolist()  # many ties
        assert pareto(costs, values) == pareto_by_force(costs, values)


class Counting(WholeImage):
    """Records its calls."""

    def __init__(self, calls, name):
        super().__init__(torch.nn.Identity(), image_size=8)
        self.calls, self.name = calls, name

    def forward(self, images, locations=None, policy="greedy", draws=None, contributions=True):
        self.calls.append(self.name)
        none = Glimpses(np.zeros(0, int), np.zeros((0, 4)), (8, 8), np.zeros(0, int), np.zeros(0, int), torch.zeros(0))
        return Classification(torch.zeros(len(images), 2), none)


def test_models_are_timed_in_turn():
    calls, rounds = [], []
    trials = [
        Trial(Counting(calls, name), lambda n: TensorViews(torch.zeros(n, 3, 8, 8)), n)
        for name, n in [("a", 1), ("b", 4)]
    ]
    found = measure_in_turn(trials, seconds=1e-9, on_round=lambda: rounds.append(0))
    assert calls == ["a", "b", "a", "a", "b", "b", *["a", "b"] * 5]  # once for memory, to warm up, five rounds
    assert [(m.batch_size, m.repeats) for m in found] == [(1, 5), (4, 5)] and len(rounds) == 5


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    folder = tmp_path_factory.mktemp("comparison")
    torch.manual_seed(0)
    models = [tnet(locations=(2,)), create_model("test_efficientnet", num_classes=6), "test_resnet"]
    told = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("foveal.evaluation.timing.QUICK_SECONDS", 0.01)
        setting = Setting(device="cpu", batch_size=7, on_progress=lambda *step: told.append(step))
        result = compare(models, data(), setting=setting)
    result.write(folder)
    return models, result, folder, told


def value(point, name):
    return point.metrics[name].value


def test_points(comparison):
    models, result, _, told = comparison
    points = result.points
    assert [(p.model, p.locations) for p in points] == [
        ("model", ()),
        ("model", (2,)),
        ("model 1", ()),
        ("test_resnet", ()),
    ]
    setting = Setting(device="cpu", batch_size=7)
    expected = evaluate(
        models[0], data(), locations=[(), (2,)], against=[models[1]], measure="none", setting=setting
    ).points
    learned = {(p.name, p.locations): p for p in expected if p.kind in ("learned", "against")}
    for p in points[:3]:
        same = learned[p.model, p.locations]
        assert (p.accuracy, p.interval, p.macs, p.parameters) == (
            same.accuracy,
            same.interval,
            same.macs,
            same.parameters,
        )
        assert {name: p.metrics[name] for name in same.metrics} == same.metrics
        assert p.images == 30 and p.total_locations == same.total_locations
        assert 0 <= value(p, "ece") <= 1 and 0.05 <= p.temperature <= 20 and 0 <= value(p, "ece_after") <= 1
        assert p.single.batch_size == 1 and p.batched.p50 > 0
    (random,) = [p for p in expected if p.kind == "random"]
    gap, (low, high) = points[1].metrics["gap"]
    assert value(points[1], "random") == random.accuracy and gap == points[1].accuracy - random.accuracy
    assert low <= gap <= high
    assert value(points[0], "random") is value(points[2], "random") is None
    bare = points[3]
    assert {metric.value for metric in bare.metrics.values()} == {None} and bare.metrics.keys() == points[
        1
    ].metrics.keys()
    assert bare.images is None and bare.front == () and bare.single.p50 > 0
    assert bare.macs == count_cost(as_classifier(create_model("test_resnet", num_classes=6)), 8).macs
    # Looks at three batches of validation and five of test images: 1 and 3, and 3 random ones; then 1 of the dense
    # network.
    first = [i for batch in range(3) for i in (4 * batch + 1, 4 * batch + 4)]
    first += [12 + 7 * batch + done for batch in range(5) for done in (1, 4, 7)]
    total = 3 * 4 + 5 * 7 + 3 + 5
    assert [step for step in told if step[2] == "accuracy"] == [
        (i, total, "accuracy") for i in (*first, *range(48, total + 1))
    ]
    # Then three searches and five rounds, two of which are left out where time is up.
    assert told[-1][1:] == (8, "timings") and [i for i, *_, part in told if part == "timings"][:6] == [1, 2, 3, 4, 5, 6]


def test_fronts_are_among_learned_looks(comparison):
    points = comparison[1].points[:3]
    for kind, costs in [("macs", [p.macs for p in points]), ("ms", [p.single.p50 for p in points])]:
        assert [kind in p.front for p in points] == pareto_by_force(costs, [p.accuracy for p in points])


def test_the_temperature_is_that_of_the_validation_images(comparison):
    models, result, *_ = comparison
    batch = data().val.batch(0, range(18), 0)
    with torch.inference_mode():
        logits = as_classifier(models[1]).eval()(batch.views).logits
        seen = as_classifier(models[1])(data().test.batch(0, range(30), 0).views).logits
    p = result.points[2]
    assert p.temperature == pytest.approx(fit_temperature(logits, batch.target), rel=1e-3)
    after = F.cross_entropy(seen.double() / p.temperature, torch.from_numpy(data().test.targets))
    assert value(p, "nll_after") == pytest.approx(float(after), rel=1e-5)


def test_files(comparison):
    _, result, folder, _ = comparison
    assert sorted(p.name for p in folder.iterdir()) == ["comparison.json", "comparison.png"]
    stored = json.loads((folder / "comparison.json").read_text())
    assert stored["models"] == ["model", "model 1", "test_resnet"] and stored["images"] == 30
    assert {"device", "machine", "foveal", "torch", "seed", "precision", "how"} < set(stored)
    told, *at_bounds = stored["notes"]
    assert told == "test_resnet: has no weights, so that only its cost is given; train it by foveal fit"
    bound = {
        p.model
        for p in result.points
        if p.temperature in (pytest.approx(COLDEST, rel=0.01), pytest.approx(HOTTEST, rel=0.01))
    }
    assert {note.partition(": no temperature between")[0] for note in at_bounds} == bound
    assert stored["points"][1]["gap"] == value(result.points[1], "gap") and stored["points"][3]["accuracy"] is None
    assert Image.open(folder / "comparison.png").size == (1600, 600)


def test_ticks_have_no_exponents():
    assert [plain_number(x) for x in (2e6, 500.0, 1.0, 0.3, 5e-6, 0.1 + 0.2)] == [
        "2,000,000",
        "500",
        "1",
        "0.3",
        "0.000005",
        "0.3",
    ]


def test_one_point_is_drawn_without_a_warning(comparison, tmp_path, monkeypatch):
    """At a cost that is another number once it has been to the first panel and back."""
    monkeypatch.setattr("foveal.evaluation.comparison._cost", lambda point, kind: 6.07)
    alone = replace(comparison[1], points=comparison[1].points[:1])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.simplefilter("error", RuntimeWarning)
        alone.draw(tmp_path / "alone.png")
    assert Image.open(tmp_path / "alone.png").size == (1600, 600)


def test_the_table_marks_the_fronts(comparison):
    shown = Console(width=80, record=True, file=io.StringIO())
    shown.print(comparison[1].table())
    text = shown.export_text()
    assert max(map(len, text.splitlines())) <= 80 and "…" not in text
    assert text.count("*") - 1 == sum(len(p.front) for p in comparison[1].points)  # one is in the explanation
    (bare,) = [line for line in text.splitlines() if line.startswith("test_resnet ")]
    assert "±" not in bare and "*" not in bare


def test_a_gap_where_there_must_be_one():
    points = compare([Looker()], data(test=split(20)), locations=[(6,)], measure="none", setting=CPU).points
    gap, (low, _) = points[0].metrics["gap"]
    assert points[0].accuracy == 1 and value(points[0], "random") < 0.4
    assert 0.5 < low < gap == 1 - value(points[0], "random")


def test_sweeps_are_for_those_that_can_meet_them():
    models = [tnet(locations=(2, 1)), create_model("test_efficientnet", num_classes=6)]
    points = compare(models, data(), locations=[(), (1,), (10,)], measure="none", setting=CPU)
    assert [p.locations for p in points.points] == [(), (1,), ()]
    note, *_ = points.about["notes"]
    assert note.startswith("model: locations 10 are left out: ")


@pytest.mark.parametrize(
    ("name", "options", "own"),
    [
        ("saccader", {"backbone": "test_bagnet_lowd", "image_size": 32, "locations": (3,)}, [(), (3,)]),
        (
            "dram",
            {"backbone": "test_resnetv2_slim", "image_size": 64, "base_size": 24, "hidden": 16, "locations": (3,)},
            [(), (3,)],
        ),
    ],
)
def test_any_model_that_looks(name, options, own):
    found = compare([create_model(name, num_classes=6, **options)], data(val=None), measure="none", setting=CPU)
    left_out = sum("are left out" in note for note in found.about["notes"])
    assert [p.locations for p in found.points] == own[left_out:]
    assert found.points[-1].metrics["gap"].interval is not None


def test_files_and_the_bytes_that_were_read(tmp_path, monkeypatch):
    target = np.arange(12) % 6
    paths = [str(tmp_path / f"{i}.png") for i in range(12)]
    for path, t in zip(paths, target, strict=True):
        Image.fromarray(np.full((40, 48, 3), 40 * t, np.uint8)).save(path)
    (tmp_path / "5.png").write_bytes(b"broken")
    files = data(test=ImageDataset(paths, target, NAMES), val=None)
    monkeypatch.setattr("foveal.evaluation.timing.QUICK_SECONDS", 0.01)
    found = compare([tnet(locations=(2,)), create_model("test_resnet", num_classes=6)], files, setting=CPU)
    assert [p.images for p in found.points] == [11] * 3
    assert [path for path, _ in found.errors] == [paths[5]]
    sizes = [Path(path).stat().st_size for i, path in enumerate(paths) if i != 5]
    assert [p.batched.bytes_read for p in found.points] == pytest.approx(
        [np.mean(sizes[: p.batched.batch_size]) for p in found.points]
    )
    assert found.about["image_size"] == [40, 48]


def test_without_other_validation_images_there_is_no_temperature():
    dense = create_model("test_resnet", num_classes=6)
    for splits, reason in [
        ({"val": None}, "there are no validation images"),
        ({"test": None}, "the validation images are those compared"),
    ]:
        found = compare([dense], data(**splits), measure="none", setting=CPU)
        assert found.about["notes"] == [f"no temperature was fitted: {reason}"]
        assert (
            found.points[0].temperature
            is value(found.points[0], "nll_after")
            is value(found.points[0], "ece_after")
            is None
        )
        assert (
            value(found.points[0], "nll") > 0 and found.points[0].single is None and found.points[0].front == ("macs",)
        )


def test_images_that_are_read_otherwise_are_told():
    model = as_classifier(create_model("test_resnet", num_classes=6))
    model.image_size = 64  # as in a run with resized images
    found = compare([model], data(val=None), measure="none", setting=CPU)
    told = (
        "model: was trained on images resized to 64 px first, and these are of their own size; that may cost it "
        "accuracy"
    )
    assert told in found.about["notes"]


class Squeamish(Looker):
    """Cannot read images of one class."""

    def forward(self, images, **options):
        found = super().forward(images, **options)
        bad = found.logits[:, :4].argmax(1) == 3 if options.get("policy") != "random" else []
        images.errors.update(dict.fromkeys(np.flatnonzero(bad).tolist(), "too dark"))
        return found


def test_thresholds_are_told():
    first, second = Looker(), Looker()
    second.task = second.task.with_thresholds([(2, 0.1)])
    found = compare([first, second], data(), measure="none", setting=Setting(device="cpu"))
    assert [note for note in found.about["notes"] if "threshold" in note] == [
        "model 1: predicts by the thresholds of the run"
    ]


def test_an_image_that_one_model_cannot_read_counts_for_none():
    found = compare(
        [Looker(), Squeamish()],
        data(test=split(5, Spoilt, bad=(0, 4)), val=None),
        locations=[(6,)],
        measure="none",
        setting=CPU,
    )
    # Of 30 images two cannot be opened, and five are of the class that the second model cannot read.
    assert [p.images for p in found.points] == [23, 23] and [p.accuracy for p in found.points] == [1, 1]
    assert [name for name, _ in found.errors] == [
        "0.png",
        "4.png",
        "image 3",
        "image 9",
        "image 15",
        "image 21",
        "image 27",
    ]


def test_a_limit_holds_for_all_models_and_splits():
    setting = Setting(device="cpu", limit=10, on_progress=lambda *step: told.append(step))
    told = []
    found = compare([Looker(), Looker()], data(), locations=[(3,)], measure="none", setting=setting)
    drawn = generator(0, 0, 0, "order").permutation(30)[:10]
    assert [p.images for p in found.points] == [10, 10] and found.about["limit"] == 10
    assert [p.accuracy for p in found.points] == [(data().test.targets[drawn] < 3).mean()] * 2
    assert told[-1] == (
        24,
        24,
        "accuracy",
    )  # two models, of each 4 learned looks on two splits and 4 random ones on one


def test_what_does_not_fit_is_told():
    here = {"measure": "none", "setting": CPU}
    with pytest.raises(ConfigError, match="test_resnet, test_vit: no model here has weights"):
        compare(["test_resnet", "test_vit"], data(), **here)
    with pytest.raises(ConfigError, match="resnet5000: there is no model of this name"):
        compare([tnet(), "resnet5000"], data(), **here)
    with pytest.raises(ConfigError, match="`locations` 2: these models look once"):
        compare([create_model("test_resnet", num_classes=6)], data(), locations=[(2,)], **here)
    with pytest.raises(ConfigError, match="`locations` 10: none of them fits model"):
        compare([tnet()], data(), locations=[(10,)], **here)
    with pytest.raises(DataError, match="no image could be read by every model"):
        compare([Nothing((0, 1, 2)), Nothing((3, 4, 5))], data(val=None), **here)


class Nothing(Looker):
    """Cannot read images of some classes."""

    def __init__(self, classes):
        super().__init__()
        self.classes = classes

    def forward(self, images, **options):
        found = super().forward(images, **{**options, "locations": (6,), "policy": "greedy"})
        images.errors.update(
            {i: "too dark" for i, says in enumerate(found.logits.argmax(1).tolist()) if says in self.classes}
        )
        return found


TINY = [
    "--data.canvas",
    "64",
    "--data.digit",
    "12,16",
    "--data.distractors",
    "1",
    "--data.train",
    "8",
    "--data.val",
    "8",
    "--data.test",
    "12",
]
HERE = ["--device", "cpu", "--quiet"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    short = ["--steps", "1", "--batch-size", "8", *TINY, *HERE]
    looks = ["--model.backbone", "plain_convnet_32", "--model.locations", "2"]
    assert main(["fit", "demo", *looks, *short, "--out", str(folder / "looks")]) == 0
    assert (
        main(
            [
                "fit",
                "demo",
                "--model",
                "plain_convnet_32",
                "--model.image_size",
                "32",
                *short,
                "--out",
                str(folder / "dense"),
            ]
        )
        == 0
    )
    return folder


def test_the_command(runs, tmp_path, capsys):
    argv = ["compare", str(runs / "looks"), str(runs / "dense"), "test_resnet", "--locations", "0..2", *HERE]
    assert main([*argv, "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "test_resnet: has no weights" in shown and "…" not in shown
    stored = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert [p["locations"] for p in stored["points"]] == [[], [1], [2], [], []]
    assert [p["model"] for p in stored["points"]] == [*[str(runs / "looks")] * 3, str(runs / "dense"), "test_resnet"]
    assert (
        stored["measure"] == "quick"
        and stored["command"].startswith("foveal compare ")
        and stored["images"] == 12
        and stored["split"] == "test"
    )
    for p in stored["points"][:4]:
        assert p["interval"][0] <= p["accuracy"] <= p["interval"][1] and p["temperature"] > 0 and p["nll_after"] > 0
    assert Image.open(tmp_path / "out" / "comparison.png").width == 1600


def test_the_command_says_what_does_not_fit(runs, tmp_path, capsys):
    other = tmp_path / "other"
    model = as_classifier(create_model("test_resnet", num_classes=10), image_size=32)
    save_model(other, model, ModelInfo({"name": "test_resnet", "image_size": 32}, tuple("012x456789")))
    for argv, code, said in [
        ([runs / "looks", other], 1, f"{runs / 'looks'} and {other}: class 3 is '3' in the one and 'x' in the other"),
        ([runs / "nowhere", runs / "dense"], 1, "there is no such run folder"),
        (["test_resnet"], 2, "test_resnet: no model here has weights"),
        ([runs / "looks", "resnet5000"], 2, "resnet5000: there is no model of this name"),
        ([runs / "looks", "--locations", "x"], 2, "are not locations"),
    ]:
        assert main(["compare", *map(str, argv), *HERE, "--out", str(tmp_path / "out")]) == code
        err = capsys.readouterr().err.strip()
        assert said in err and "\n" not in err
    assert main(["compare", str(runs / "looks"), "--measure", "often"]) == 2
    assert "invalid choice: 'often'" in capsys.readouterr().err
    assert main(["compare", "--help"]) == 0
    assert capsys.readouterr().out.count("foveal compare") >= 3

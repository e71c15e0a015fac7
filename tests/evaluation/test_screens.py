"""Each result on a terminal of 80 columns, with long names and extreme numbers."""

import io
import json
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from rich.cells import cell_len
from rich.console import Console

from foveal.evaluation import (
    ComparedPoint,
    Comparison,
    Curve,
    Decisions,
    DecisionThreshold,
    DenseCost,
    EarlyExit,
    EvaluatedPoint,
    Evaluation,
    ExitPoint,
    Faithfulness,
    ObjectInside,
    Occlusion,
    OcclusionPoint,
    PointingGame,
    Timing,
)
from foveal.metrics import Answers, Metric, class_metrics, compute_metrics, confusion_matrix
from foveal.prediction import Exit

ABOUT = {
    "model": "runs/demo",
    "data": "digits",
    "split": "test",
    "image_size": [256, 256],
    "machine": "a processor, 2 threads",
    "measure": "quick",
}
LONG = "runs/photographs/of/the/whole/country/tnet_with_a_pretrained_backbone_at_a_low_rate_seed_" + "x" * 60
COUNTRY = {**ABOUT, "model": LONG, "data": "photographs of the whole country " * 5, "image_size": [36_000, 118_000]}


def printed(what, width):
    shown = Console(width=width, record=True, file=io.StringIO())
    shown.print(what)
    return shown.export_text()


def cells_of(text):
    """Words in tables, without the paragraphs below and shortened words."""
    return [word for word in re.split(r" {2,}|\n", text) if word.strip() and "─" not in word]


def check(result, names=()):
    """At most 80 columns, no line break in a row, no shortened number or header; unlimited without a terminal."""
    for wide in (False, True):
        narrow, whole = printed(result.table(wide), 80), printed(result.table(wide), 1_000_000)
        assert max(map(cell_len, narrow.splitlines())) <= 80
        assert "…" not in whole and all(name in whole for name in names)
        numbers = {text: Counter(re.findall(r"(?<![\w.])[-+]?\d[\d,.]*(?![\w.])", text)) for text in (narrow, whole)}
        assert not numbers[whole] - numbers[narrow], numbers[whole] - numbers[narrow]
        assert not re.search(r"\de[+-]?\d", whole) and not re.search(r"(?<![\d:.])[-+]0(\.0*)?(?![\d.])", whole)
        headers = cells_of(whole)
        assert all(
            header in narrow for header in headers if header not in names and re.fullmatch(r"[A-Za-z]\D{0,20}", header)
        ), headers
    return printed(result.table(), 80)


# ---- evaluate


def point(
    locations=(2,), kind="learned", accuracy=0.934, name="runs/demo", macs=32_700_000, p50=4.8, memory=3_300_000, **more
):
    looks = float(sum(locations))
    timed = None if p50 is None else Timing(1, p50, 1.1 * p50, 5, memory, 12_345.6)
    batched = None if p50 is None else Timing(64, p50 / 2, p50 / 1.9, 5, memory, 12_345.6)
    interval = (accuracy - 0.022, min(accuracy + 0.019, 1))
    metrics = {"accuracy": Metric(accuracy, interval), "top5": Metric(0.99), "nll": Metric(0.25), "ece": Metric(0.07)}
    return EvaluatedPoint(
        kind=kind,
        name=name,
        locations=locations,
        total_locations=looks,
        coverage=0.3,
        diversity=0.5 if looks > 1 else None,
        images=500,
        metrics=metrics,
        macs=macs,
        parameters=123_456,
        single=timed,
        batched=batched,
        **more,
    )


def evaluation(**more):
    points = [
        point((k,) if k else (), accuracy=0.6 + 0.09 * k, macs=10_900_000 * (k + 1), p50=2.14 * (k + 1))
        for k in range(5)
    ]
    points += [point((k,), "random", accuracy=0.6 + 0.01 * k, p50=None) for k in range(1, 5)]
    points.append(point((), "against", 0.951, "runs/dense", 698_000_000, 30.1))
    dense = (
        DenseCost("dense, thumbnail", (32, 32), 10_900_000, 99),
        DenseCost("dense, full size", (256, 256), 698_000_000, 99),
    )
    return replace(Evaluation(about=ABOUT, points=tuple(points), dense=dense), **more)


def test_evaluate():
    lines = check(evaluation(), ["runs/dense"]).splitlines()
    assert lines[0] == "runs/demo on digits, test: 500 images of 256 x 256 px"
    assert lines[1].split() == ["locations", "accuracy,", "%", "random", "looks,", "%", "MMAC", "ms", "MB"]
    assert [line.split() for line in lines[3:8]] == [
        ["0", "60.0", "±", "2.2", "10.9", "2.14", "3.30"],
        *(
            [
                str(k),
                f"{60 + 9 * k:.1f}",
                "±",
                "2.2",
                f"{60 + k:.1f}",
                "±",
                "2.2",
                f"{10.9 * (k + 1):.3g}",
                f"{2.14 * (k + 1):.3g}",
                "3.30",
            ]
            for k in range(1, 4)
        ),
        ["4", "96.0", "±", "2.2", "64.0", "±", "2.2", "54.5", "10.7", "3.30"],
    ]
    assert lines[9].split() == ["runs/dense", "95.1", "±", "2.2", "698", "30.1", "3.30"]
    assert lines[12].split() == ["dense,", "256", "x", "256", "px", "698"]
    assert len(lines) < 32


def test_evaluate_awkwardly():
    points = [
        point(tuple(range(9, 0, -1)), accuracy=1.0, macs=10**14, p50=2_051_234.5, memory=9 * 10**10),
        point((), accuracy=0.0, macs=77_200, p50=0.00123, memory=0, name=LONG),
        replace(point((1,), p50=None), metrics=point().metrics | {"top5": Metric()}),
        *(point((k,), "random", 0.1, p50=None) for k in range(1, 40)),
        *(
            point((k,), kind, 0.1, p50=None)
            for kind in ("ordered_logits", "exhaustive", "centre", "sampled")
            for k in range(1, 40)
        ),
        *(point((), "against", 0.5, f"{LONG}{end}") for end in "ab"),
    ]
    dense = (DenseCost("dense, full size", (36_000, 118_000), None, None),)
    found = Evaluation(about=COUNTRY, points=tuple(points), dense=dense)
    text = check(found, [LONG + "a"])
    assert "takes no image" in text and "77.2" in text and "2,050,000" in text
    assert (
        len({line.split()[0] for line in text.splitlines() if "…" in line and "50.0 ±" in line}) == 2
    )  # runs have different names


def test_evaluate_one_point_without_times():
    text = check(Evaluation(about={**ABOUT, "measure": "none"}, points=(point((), p50=None),), dense=()))
    assert "ms" not in text and "MB" not in text and "random" not in text


# ---- compare


METRICS = {
    "accuracy": Metric(0.934, (0.91, 0.95)),
    "top5": Metric(0.99, (0.97, 0.995)),
    "nll": Metric(0.2512),
    "ece": Metric(0.04),
    "random": Metric(0.64),
    "gap": Metric(0.294, (0.25, 0.33)),
    "nll_after": Metric(0.24),
    "ece_after": Metric(0.031),
}


def compared(model, locations, metrics=(), **more):
    timed = Timing(1, 4.8, 5.9, 5, 3_300_000, None)
    known = ComparedPoint(
        model=model,
        locations=locations,
        total_locations=float(sum(locations)),
        images=500,
        metrics=METRICS | dict(metrics),
        temperature=1.5,
        macs=10_900_000 * (sum(locations) + 1),
        parameters=123_456,
        single=timed,
        batched=timed,
        front=("macs", "ms"),
    )
    return replace(known, **more)


def comparison():
    about = {**ABOUT, "images": 500, "notes": ["runs/b: a note"]}
    points = [
        *(compared("runs/tnet", (k,) if k else ()) for k in (0, 4)),
        compared("runs/dense", (), {"random": Metric()}, front=()),
    ]
    return Comparison(about=about, points=tuple(points))


def test_compare():
    lines = check(comparison(), ["tnet", "dense"]).splitlines()
    assert lines[1].split() == ["model", "locations", "accuracy,", "%", "random,", "%", "MMAC", "ms", "MB"]
    assert lines[3].split() == ["tnet", "0", "93.4", "±", "2.4", "64.0", "10.9", "*", "4.80", "*", "3.30"]
    assert (
        lines[5].split() == ["dense", "0", "93.4", "±", "2.4", "10.9", "4.80", "3.30"]
        and lines[-1].rstrip() == "runs/b: a note"
    )


def test_compare_awkwardly():
    points = [
        compared(LONG + "/a", (3, 2, 1), {"gap": Metric(-0.0001, (-0.05, 0.05)), "nll": Metric(12_345.6)}),
        compared(LONG + "/b/a", (3, 2, 1), macs=7 * 10**12),
        compared(
            "nfnet_" + "very_" * 30 + "deep",
            (),
            dict.fromkeys(METRICS, Metric()),
            total_locations=None,
            images=None,
            temperature=None,
            single=None,
            batched=None,
            front=(),
        ),
    ]
    notes = [f"{LONG}: was trained on images of another size; that may cost it accuracy"]
    check(Comparison(about={**COUNTRY, "images": 1, "notes": notes}, points=tuple(points)))


# ---- evaluate --budget


def way(name, stops, looks, macs, ms):
    return ExitPoint(
        name=name,
        stops=stops,
        locations=looks,
        macs=macs,
        images=500,
        metrics={key: METRICS[key] for key in ("accuracy", "top5", "nll", "ece")},
        milliseconds=ms,
        batch_size=8,
    )


def early_exit(**more):
    ways = [way(str(k), False, float(k), 10.9e6 * (k + 1), 2.1 * k + 2) for k in range(5)]
    ways += [way(name, True, 1.98, 2.1e7, 4.4) for name in ("2.0locations", "20MMAC")]
    exits = (Exit("2.0locations", 0.931, (4,), 1, 1.98, "locations", 64), Exit("20MMAC", 2.0, (4,), 1, 1e9, "macs", 64))
    return replace(EarlyExit(about=ABOUT, exits=exits, ways=tuple(ways)), **more)


def test_early_exit():
    text = check(early_exit())
    assert "93.1 % sure" in text and "never early" in text
    ways = [replace(way, macs=10 ** (2 * i), milliseconds=10**i) for i, way in enumerate(early_exit().ways)]
    check(early_exit(about=COUNTRY, ways=tuple(ways)))


# ---- occlude


def occlusion(judges, kinds, sweep, about=ABOUT):
    points = [
        OcclusionPoint(
            judge=judge,
            kind=kind,
            locations=locations,
            total_locations=float(sum(locations)),
            hidden=0.0 if kind == "whole" else 0.176,
            images=500,
            metrics={"accuracy": Metric(0.9, (0.85, 0.92))},
        )
        for kind, of in [("whole", [()]), *((kind, sweep) for kind in kinds)]
        for locations in of
        for judge in judges
    ]
    about = {**about, "images": 500, "judges": [{"name": judge} for judge in judges]}
    return Occlusion(about=about, points=tuple(points))


def test_occlude():
    lines = check(
        occlusion(["runs/demo", "runs/dense"], ["learned", "random"], [(1,), (2,)]), ["runs/dense"]
    ).splitlines()
    assert lines[1].split() == ["judged", "by", "locations", "hidden,", "%", "learned", "random"]
    assert lines[3].split() == ["runs/demo", "0", "0.0", "90.0", "±", "5.0"]
    assert lines[4].split() == ["runs/demo", "1", "17.6", "90.0", "±", "5.0", "90.0", "±", "5.0"]


def test_occlude_awkwardly():
    kinds = ["learned", "random", "ordered_logits", "centre", "sampled", "exhaustive"]
    check(occlusion([f"{LONG}/{i}" for i in range(9)], kinds, [(9, 8, 7, 6)], COUNTRY), [LONG])


# ---- faithfulness


def faithfulness(judges, regions="looks", about=ABOUT, **more):
    curves = [
        Curve(judge, change, (0.0, 0.4), (0.9, 0.5), (0.9, 0.5), (0.9, 0.8), (0.9, 0.8), 0.7, 0.85, -0.15, (-0.2, -0.1))
        for judge in judges
        for change in ("deletion", "insertion")
    ]
    hits = [
        PointingGame(what, 500, 0.8, (0.75, 0.84), 0.2, (0.17, 0.24))
        for what in ("centre on the object", "half of the object covered")
    ]
    found = ObjectInside(500, (0.0, 0.2, 0.4), (0.0, 0.6, 0.8), (0.0, 0.1, 0.2))
    about = {**about, "images": 500, "regions": regions}
    return replace(Faithfulness(about=about, curves=tuple(curves), pointing=tuple(hits), found=found), **more)


def test_faithfulness():
    text = check(faithfulness(["runs/demo", "runs/dense"]), ["runs/dense"])
    assert "-15.0 ± 5.0" in text and "half of the object covered  80.0 ± 5.0  20.0 ± 4.0" in text


def test_faithfulness_awkwardly():
    judges = [f"{LONG}/{i}" for i in range(5)]
    check(
        faithfulness(judges, "map stages.3.blocks.17.attention.relative_positions", COUNTRY, pointing=(), found=None),
        [LONG],
    )


# ---- metrics and classes of evaluate, and its confusion matrix


def answered(classes, labels=False, count=600):
    """Answers to which every metric is known."""
    rng = np.random.default_rng(classes)
    share = np.linspace(1, 4, classes)
    if labels:
        target = rng.random((count, classes)) < share / 8
        logits = rng.normal(size=(count, classes)) + 2 * target - 1
    else:
        target = rng.choice(classes, count, p=share / share.sum())
        logits = rng.normal(size=(count, classes)) + 2 * np.eye(classes)[target]
    return Answers.of(torch.from_numpy(logits), torch.from_numpy(target))


def measured(classes, names, labels=False):
    answers = answered(classes, labels)
    fields = {
        "metrics": compute_metrics(answers),
        "classes": class_metrics(answers, names),
        "confusion": tuple(confusion_matrix(answers).tolist()),
    }
    points = [replace(point((k,), kind), **fields) for kind in ("learned", "random") for k in (1, 2)]
    about = {**ABOUT, "metrics": None, "positive": names[0] if classes == 2 else None}
    return Evaluation(about=about, points=tuple(points), dense=())


NAMES = {
    "digits": [str(i) for i in range(100)],
    "long": [f"the {i}th of the very long names of classes of a whole country of photographs" for i in range(100)],
    "odd": [f"class\t{i}th | [red]\x1b[31m\n $\\frac$" for i in range(100)],
}


@pytest.mark.parametrize("names", NAMES)
@pytest.mark.parametrize(("classes", "labels"), [(2, False), (5, False), (10, False), (30, False), (4, True)])
def test_classes_and_metrics(classes, labels, names):
    found = measured(classes, NAMES[names][:classes], labels)
    text = check(found, [] if names == "odd" else NAMES[names][:1] if classes <= 5 else [])
    assert "further metrics" in text and "balanced, %" in text and "macro F1, %" in text
    assert ("AUROC, %" in text) == (classes <= 20)
    assert ("classes, at 2 locations" in text) == (classes <= 5)
    wide = printed(found.table(wide=True), 1_000_000)
    rows = wide.split("classes, at 2 locations")[1].split("±:")[0].splitlines()
    assert len([line for line in rows if "±" in line]) == classes
    assert ("NLL" in wide) and "precision, %" in wide and "recall, %" in wide and "F1, %" in wide
    assert ("rarer one" in " ".join(text.split())) == (classes == 2)


def test_chosen_metrics_alone_are_told():
    found = measured(5, NAMES["digits"][:5])
    text = check(replace(found, about={**found.about, "metrics": ["nll", "macro_f1"]}))
    assert "NLL" in text and "macro F1" in text and "AUROC" not in text.split("classes, at")[0]


def test_undefined_metrics_have_no_column():
    """All images are of one class."""
    logits = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    answers = Answers.of(logits, torch.zeros(40, dtype=torch.int64))
    fields = {
        "metrics": compute_metrics(answers),
        "classes": class_metrics(answers, "ab"),
        "confusion": tuple(confusion_matrix(answers).tolist()),
    }
    text = check(Evaluation(about=ABOUT, points=(replace(point((1,)), **fields),), dense=()))
    assert "AUROC" not in text and "balanced" in text and "nan" not in text


@pytest.mark.parametrize(
    ("classes", "labels", "names"),
    [
        (2, False, "digits"),
        (2, False, "long"),
        (10, False, "odd"),
        (100, False, "long"),
        (4, True, "odd"),
        (100, True, "digits"),
    ],
)
def test_confusion_is_a_picture(tmp_path, classes, labels, names):
    measured(classes, NAMES[names][:classes], labels).draw_confusion(tmp_path / "confusion.png")
    width, height = Image.open(tmp_path / "confusion.png").size
    assert 400 < width < 5000 and 400 < height < 5000


def test_more_classes_than_are_listed_have_no_picture(tmp_path):
    found = Evaluation(about=ABOUT, points=(point((1,)),), dense=())
    found.write(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"evaluation.json", "tradeoff.png"}


# ---- threshold


def decision(label, threshold, **more):
    metrics = {name: Metric(0.9, (0.85, 0.94)) for name in ("recall", "precision", "specificity")}
    curve = ((0.9, 0.1, 1.0, 1.0), (threshold, 0.9, 0.5, 0.6), (0.0, 1.0, 0.1, 0.0))
    known = {"label": label, "threshold": threshold, "at": "recall=0.9", "positives": 12, "negatives": 3_456}
    return DecisionThreshold(**(known | more), metrics=metrics, curve=curve)


@pytest.mark.parametrize(("count", "names"), [(1, "digits"), (2, "long"), (14, "odd")])
def test_threshold(tmp_path, names, count):
    found = tuple(decision(name, 0.00012 * (i + 1)) for i, name in enumerate(NAMES[names][:count]))
    result = Decisions(about={**ABOUT, "split": "val", "images": 3_468}, thresholds=found)
    text = check(result)
    assert "0.01" in text and "mind the intervals" in " ".join(text.split()) and "3,468 images" in text
    result.write(tmp_path)
    stored = json.loads((tmp_path / "threshold.json").read_text())["thresholds"]
    assert len(stored) == count and stored[0]["recall_interval"] == [0.85, 0.94]
    assert min(Image.open(tmp_path / "threshold.png").size) > 300


@pytest.mark.parametrize("size", [(500, 1260), 3])
def test_sizes_are_never_broken(size):
    """One image, one number of locations, one digit more or less."""
    about = {**ABOUT, "image_size": size if isinstance(size, tuple) else [size, size]}
    check(evaluation(about=about, points=(replace(point((1,)), images=1),)))


@pytest.mark.parametrize(
    ("result", "points"),
    [
        (evaluation(), "points"),
        (comparison(), "points"),
        (early_exit(), "ways"),
        (occlusion(["runs/demo"], ["learned", "random"], [(1,), (2,)]), "points"),
        (faithfulness(["runs/demo"]), "curves"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_result_is_a_file_and_a_picture(result, points, tmp_path):
    replace(result, errors=(("a.png", "a.png: is empty"),)).write(tmp_path / "new")
    assert {file.name for file in (tmp_path / "new").iterdir()} == {result.file, result.picture}
    stored = json.loads((tmp_path / "new" / result.file).read_text())
    assert stored["data"] == "digits" and stored["errors"] == [{"image": "a.png", "error": "a.png: is empty"}]
    assert min(Image.open(tmp_path / "new" / result.picture).size) > 500
    for point, written in zip(getattr(result, points), stored[points], strict=True):
        for name, (value, interval) in getattr(point, "metrics", {}).items():
            assert written[name] == value
            assert written.get("interval" if name == "accuracy" else f"{name}_interval") == (
                interval and list(interval)
            )
        assert "metrics" not in written and len(written) > 5

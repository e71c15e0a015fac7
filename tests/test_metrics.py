"""Named metrics and intervals, compared with scikit-learn, torchmetrics, closed forms, slow loops and simulation."""

import math

import numpy as np
import pytest
import sklearn.metrics as sklearn
import torch
import torchmetrics.functional.classification as torchmetrics
from torchmetrics.functional.classification import binary_calibration_error, multiclass_accuracy

from foveal.choices import METRIC_NAMES
from foveal.errors import ConfigError
from foveal.metrics import (
    METRICS,
    RANKED_CLASSES,
    Answers,
    Metric,
    _auroc,
    _average_precision,
    check_metric,
    choose_metrics,
    class_metrics,
    compute_metrics,
    confusion_matrix,
    expected_calibration_error,
    flat,
    metric,
    paired_interval,
    wilson,
)
from foveal.tasks import MULTICLASS


def logits_and_labels(count=9000, classes=7):
    logits = torch.randn(count, classes, generator=torch.Generator().manual_seed(1))
    return logits, torch.arange(count) % classes


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_answers_are_those_of_the_softmax(temperature):
    logits, target = logits_and_labels()
    found = Answers.of(logits, target, temperature)
    p = (logits.double() / temperature).softmax(1)
    assert found.predicted.tolist() == p.argmax(1).tolist() and found.target.tolist() == target.tolist()
    assert found.correct.tolist() == (p.argmax(1) == target).tolist()
    assert torch.from_numpy(found.confidence).allclose(p.max(1).values)
    assert torch.from_numpy(found.nll).allclose(-p[torch.arange(9000), target].log())


def test_accuracies_are_those_of_torchmetrics():
    logits, target = logits_and_labels(500)
    found = compute_metrics(Answers.of(logits, target))
    for name, k in (("accuracy", 1), ("top5", 5)):
        theirs = float(multiclass_accuracy(logits, target, 7, average="micro", top_k=k))
        assert found[name].value == pytest.approx(theirs) and found[name].interval == wilson(round(500 * theirs), 500)
    few = Answers.of(logits[:, :5], target % 5)
    assert compute_metrics(few)["top5"] == Metric()


def test_parts_and_rows_of_answers():
    logits, target = logits_and_labels(20)
    whole = Answers.of(logits, target)
    parts = Answers.cat([Answers.of(logits[:7], target[:7]), Answers.of(logits[7:], target[7:])])
    assert compute_metrics(parts) == compute_metrics(whole) and len(parts) == 20
    rows = np.array([3, 9, 11])
    assert compute_metrics(whole.take(rows)) == compute_metrics(Answers.of(logits[rows], target[rows]))


def test_a_metric_is_registered_once_for_all():
    @metric("always wrong, %")
    def wrong(answers):
        return Metric(float((~answers.correct).mean()))

    try:
        found = compute_metrics(Answers.of(*logits_and_labels(100)))
        assert found["wrong"].value == pytest.approx(1 - found["accuracy"].value)
        assert METRICS["wrong"].show(Metric(0.25)) == "25.0"
    finally:
        del METRICS["wrong"]


def test_json_of_metrics():
    metrics = {
        "accuracy": Metric(0.5, (0.4, 0.6)),
        "gap": Metric(0.1, (0.0, 0.2)),
        "nll": Metric(0.7),
        "top5": Metric(),
    }
    assert flat(metrics) == {
        "accuracy": 0.5,
        "interval": (0.4, 0.6),
        "gap": 0.1,
        "gap_interval": (0.0, 0.2),
        "nll": 0.7,
        "top5": None,
        "top5_interval": None,
    }


# ---- calibration


def by_loop(confidence, correct, bins=15):
    """Equation 3 of Guo et al., bin by bin and image by image."""
    total = 0.0
    for m in range(1, bins + 1):
        inside = [(c, r) for c, r in zip(confidence, correct, strict=True) if (m - 1) / bins < c <= m / bins]
        if inside:
            sure, right = np.mean([c for c, _ in inside]), np.mean([r for _, r in inside])
            total += len(inside) / len(confidence) * abs(sure - right)
    return total


@pytest.mark.parametrize("count", [1, 2, 15, 400])
@pytest.mark.parametrize("bins", [1, 15, 40])
def test_ece_is_that_of_a_slow_loop(count, bins):
    rng = np.random.default_rng(count)
    confidence = rng.random(count)
    correct = rng.random(count) < confidence**2
    confidence[: count // 4] = 1  # as of a saturated network
    assert expected_calibration_error(confidence, correct, bins) == pytest.approx(
        by_loop(confidence, correct, bins), abs=1e-12
    )


def test_ece_is_that_of_torchmetrics():
    rng = np.random.default_rng(0)
    confidence = rng.random(500).astype(np.float32)
    correct = rng.random(500) < 0.6
    theirs = binary_calibration_error(
        torch.from_numpy(confidence), torch.from_numpy(correct).int(), n_bins=15, norm="l1"
    )
    assert expected_calibration_error(confidence.astype(float), correct) == pytest.approx(float(theirs), abs=1e-5)


def test_ece_of_known_cases():
    assert expected_calibration_error(np.ones(7), np.zeros(7, bool)) == 1  # certain and wrong
    assert expected_calibration_error(np.ones(7), np.ones(7, bool)) == 0  # certain and right
    # Calibrated in each of three bins.
    confidence = np.repeat([0.25, 0.5, 0.75], 4)
    correct = np.array([1, 0, 0, 0, 1, 1, 0, 0, 1, 1, 1, 0], bool)
    assert expected_calibration_error(confidence, correct) == 0
    assert expected_calibration_error(confidence, ~correct) == pytest.approx((0.5 + 0 + 0.5) / 3)
    # An edge belongs to the bin below. In one bin these two would cancel out.
    assert expected_calibration_error(np.array([0.5, 0.500001]), np.array([True, False]), bins=2) == pytest.approx(
        0.5, abs=1e-5
    )


# ---- intervals


def test_wilson_inverts_the_test_of_a_proportion():
    z = 1.959964
    for successes, trials in [(1, 3), (17, 20), (90, 100), (4999, 10_000)]:
        for p in wilson(successes, trials):
            assert abs(successes / trials - p) == pytest.approx(z * math.sqrt(p * (1 - p) / trials), rel=1e-9)
    for trials in range(1, 40):
        assert wilson(0, trials)[0] == 0 and wilson(trials, trials)[1] == 1


def test_paired_interval_by_hand():
    # Of 20 images the first alone is right about 7, the second alone about 1: Agresti's own R code gives these limits.
    first, second = np.array([1] * 8 + [0] * 12, bool), np.array([1] + [0] * 7 + [1] + [0] * 11, bool)
    b, c, n = 7, 1, 20
    middle = (b - c) / (n + 2)
    sd = math.sqrt((b + c + 1) - (b - c) ** 2 / (n + 2)) / (n + 2)
    assert paired_interval(first, second) == pytest.approx((middle - 1.959964 * sd, middle + 1.959964 * sd))
    low, high = paired_interval(second, first)
    assert (-high, -low) == pytest.approx(paired_interval(first, second))
    assert paired_interval(np.ones(2, bool), np.zeros(2, bool))[1] == 1


@pytest.mark.parametrize(
    ("n", "both", "first", "second"), [(60, 0.3, 0.2, 0.1), (200, 0.7, 0.1, 0.02), (500, 0.05, 0.4, 0.4)]
)
def test_paired_interval_covers_the_difference_95_times_of_100(n, both, first, second):
    rng = np.random.default_rng(n)
    cells = rng.multinomial(n, [both, first, second, 1 - both - first - second], 2000)
    covered = 0
    for b, f, s, _ in cells:
        one, other = np.zeros(n, bool), np.zeros(n, bool)
        one[: b + f] = True
        other[:b] = other[b + f : b + f + s] = True
        low, high = paired_interval(one, other)
        covered += low <= first - second <= high
    assert 0.935 < covered / 2000 < 0.975


# ---- against scikit-learn and torchmetrics


def answers_with_ties(classes, count=300, seed=0, ties=True):
    """Answers whose logits, and so probabilities, are often equal; some classes are rare."""
    rng = np.random.default_rng(seed)
    share = np.linspace(1, 3, classes)
    target = rng.choice(classes, count, p=share / share.sum())
    target[:classes] = np.arange(classes)
    logits = rng.normal(size=(count, classes)) + 1.2 * np.eye(classes)[target]
    if ties:
        logits = np.round(2 * logits) / 2
        logits[2 * count // 3 :] = logits[: count - 2 * count // 3]
    return Answers.of(torch.from_numpy(logits), torch.from_numpy(target))


def labels_with_ties(classes=4, count=300, seed=0):
    rng = np.random.default_rng(seed)
    target = rng.random((count, classes)) < np.linspace(0.1, 0.6, classes)
    logits = np.round(2 * (rng.normal(size=target.shape) + 1.5 * target - 1)) / 2
    return Answers.of(torch.from_numpy(logits), torch.from_numpy(target))


@pytest.mark.parametrize("classes", [2, 3, 12])
@pytest.mark.parametrize("seed", [0, 1])
def test_metrics_of_classes_are_those_of_scikit_learn(classes, seed):
    answers = answers_with_ties(classes, seed=seed)
    p, target, predicted, every = answers.probabilities, answers.target, answers.predicted, range(classes)
    assert len(np.unique(p[:, 0])) < 0.9 * len(p) and (predicted == p.argmax(1)).all()
    found = {name: one.value for name, one in compute_metrics(answers).items()}
    expected = {
        "accuracy": sklearn.accuracy_score(target, predicted),
        "balanced_accuracy": sklearn.balanced_accuracy_score(target, predicted),
        "macro_f1": sklearn.f1_score(target, predicted, average="macro"),
        "nll": sklearn.log_loss(target, p, labels=every),
    }
    if classes == 2:
        rare = answers.positive
        assert rare == np.bincount(target).argmin()
        expected["auroc"] = sklearn.roc_auc_score(target == rare, p[:, rare])
        expected["average_precision"] = sklearn.average_precision_score(target == rare, p[:, rare])
    else:
        expected["auroc"] = sklearn.roc_auc_score(target, p, multi_class="ovr", average="macro")
        expected["average_precision"] = sklearn.average_precision_score(np.eye(classes)[target], p, average="macro")
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-9)
    own = class_metrics(answers, [f"class {i}" for i in every])
    theirs = sklearn.precision_recall_fscore_support(target, predicted, labels=every, zero_division=np.nan)
    for i, one in enumerate(own):
        assert (one.name, one.images) == (f"class {i}", theirs[3][i])
        for name, values in zip(("precision", "recall", "f1"), theirs, strict=False):
            assert one.metrics[name].value == pytest.approx(values[i], abs=1e-9)
        assert one.metrics["auroc"].value == pytest.approx(sklearn.roc_auc_score(target == i, p[:, i]), abs=1e-9)
        ap = sklearn.average_precision_score(target == i, p[:, i])
        assert one.metrics["average_precision"].value == pytest.approx(ap, abs=1e-9)
    assert confusion_matrix(answers).tolist() == sklearn.confusion_matrix(target, predicted, labels=every).tolist()


def test_top_five_is_that_of_scikit_learn():
    answers = answers_with_ties(12, ties=False)  # which of equal classes is among the five is not defined
    theirs = sklearn.top_k_accuracy_score(answers.target, answers.probabilities, k=5)
    assert compute_metrics(answers, ["top5"])["top5"].value == pytest.approx(theirs, abs=1e-9)


@pytest.mark.parametrize("seed", [0, 1])
def test_metrics_of_labels_are_those_of_scikit_learn(seed):
    answers = labels_with_ties(seed=seed)
    p, target, predicted = answers.probabilities, answers.target, answers.predicted
    found = {name: one.value for name, one in compute_metrics(answers).items()}
    expected = {
        "accuracy": sklearn.accuracy_score(target, predicted),  # of whole sets
        "balanced_accuracy": np.mean(
            [sklearn.balanced_accuracy_score(*pair) for pair in zip(target.T, predicted.T, strict=True)]
        ),
        "macro_f1": sklearn.f1_score(target, predicted, average="macro"),
        "auroc": sklearn.roc_auc_score(target, p, average="macro"),
        "average_precision": sklearn.average_precision_score(target, p, average="macro"),
        "nll": np.mean([sklearn.log_loss(*pair) for pair in zip(target.T, p.T, strict=True)]),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-9)
    assert found["top5"] is None
    sure, right = np.maximum(p, 1 - p).ravel(), (predicted == target).ravel()
    assert found["ece"] == pytest.approx(by_loop(sure, right), abs=1e-12)
    assert confusion_matrix(answers).tolist() == sklearn.multilabel_confusion_matrix(target, predicted).tolist()
    theirs = sklearn.precision_recall_fscore_support(target, predicted, zero_division=np.nan)
    for i, one in enumerate(class_metrics(answers, "abcd")):
        assert one.images == theirs[3][i]
        for name, values in zip(("precision", "recall", "f1"), theirs, strict=False):
            assert one.metrics[name].value == pytest.approx(values[i], abs=1e-9)


@pytest.mark.parametrize("classes", [3, 12])
def test_metrics_of_classes_are_those_of_torchmetrics(classes):
    """Which computes in float32."""
    answers = answers_with_ties(classes)
    p, target = torch.from_numpy(answers.probabilities), torch.from_numpy(answers.target)
    expected = {
        "balanced_accuracy": torchmetrics.multiclass_accuracy(p, target, classes, average="macro"),
        "macro_f1": torchmetrics.multiclass_f1_score(p, target, classes, average="macro"),
        "auroc": torchmetrics.multiclass_auroc(p, target, classes),
        "average_precision": torchmetrics.multiclass_average_precision(p, target, classes),
    }
    found = {name: one.value for name, one in compute_metrics(answers).items()}
    assert {name: found[name] for name in expected} == pytest.approx(
        {name: float(value) for name, value in expected.items()}, abs=1e-6
    )


def test_metrics_of_labels_are_those_of_torchmetrics():
    answers = labels_with_ties()
    p, target = torch.from_numpy(answers.probabilities), torch.from_numpy(answers.target).int()
    # Its decision is above 0.5, ours from 0.5 on.
    decided = torch.from_numpy(answers.predicted).int()
    expected = {
        "accuracy": torchmetrics.multilabel_exact_match(decided, target, 4),
        "macro_f1": torchmetrics.multilabel_f1_score(decided, target, 4),
        "auroc": torchmetrics.multilabel_auroc(p, target, 4),
        "average_precision": torchmetrics.multilabel_average_precision(p, target, 4),
    }
    found = {name: one.value for name, one in compute_metrics(answers).items()}
    assert {name: found[name] for name in expected} == pytest.approx(
        {name: float(value) for name, value in expected.items()}, abs=1e-6
    )


def test_thresholds_decide_in_metrics():
    plain = answers_with_ties(3, ties=False)
    logits, target = torch.from_numpy(plain.probabilities).log(), torch.from_numpy(plain.target)
    task = MULTICLASS.with_thresholds([(0, 0.1)])
    found = Answers.of(logits, target, task=task)
    assert found.predicted.tolist() == task.decide(torch.from_numpy(plain.probabilities)).tolist()
    assert (found.predicted == 0).sum() > (plain.predicted == 0).sum()
    assert found.confidence.tolist() == found.probabilities[np.arange(300), found.predicted].tolist()
    of = {name: [compute_metrics(each)[name].value for each in (plain, found)] for name in ("auroc", "accuracy")}
    assert of["auroc"][0] == pytest.approx(of["auroc"][1], abs=1e-12) and of["accuracy"][0] != of["accuracy"][1]


# ---- intervals of metrics


@pytest.mark.parametrize(
    ("area", "reference"),
    [(_auroc, sklearn.roc_auc_score), (_average_precision, sklearn.average_precision_score)],
    ids=["auroc", "average precision"],
)
def test_derivatives_of_areas_are_finite_differences(area, reference):
    rng = np.random.default_rng(0)
    true = rng.random(40) < 0.3
    scores = np.round(rng.normal(size=40) + true, 1)
    assert len(np.unique(scores)) < 36
    value, own = area(true, scores)
    assert value == pytest.approx(reference(true, scores), abs=1e-12)
    for i, derivative in enumerate(own):
        by_weight = []
        for sign in (1, -1):
            weights = np.ones(40)
            weights[i] += sign * 1e-5
            by_weight.append(reference(true, scores, sample_weight=weights))
        assert derivative == pytest.approx((by_weight[0] - by_weight[1]) / 2e-5, abs=1e-7)


def test_error_of_the_auroc_is_delongs():
    """Placement values, one pair at a time."""
    answers = answers_with_ties(2, 80)
    true, scores = answers.target == answers.positive, answers.probabilities[:, answers.positive]
    wins = (scores[true][:, None] > scores[~true]) + 0.5 * (scores[true][:, None] == scores[~true])
    variance = wins.mean(1).var(ddof=1) / true.sum() + wins.mean(0).var(ddof=1) / (~true).sum()
    assert standard_error(compute_metrics(answers)["auroc"]) == pytest.approx(math.sqrt(variance), rel=1e-5)


def standard_error(found):
    """Of an interval that is normal on the scale of the logit."""
    low, high = (math.log(bound / (1 - bound)) for bound in found.interval)
    return (high - low) / (2 * 1.959964) * found.value * (1 - found.value)


@pytest.mark.parametrize("name", ["auroc", "average_precision"])
@pytest.mark.parametrize("made", [lambda: answers_with_ties(2), lambda: answers_with_ties(4), labels_with_ties])
def test_errors_of_areas_are_those_of_a_plain_bootstrap(name, made):
    answers, rng = made(), np.random.default_rng(0)
    found = METRICS[name].compute(answers)
    # The class of two-class metrics is that of all images.
    which = range(answers.classes) if answers.positive is None else [answers.positive]
    area = {"auroc": _auroc, "average_precision": _average_precision}[name]
    values = []
    for _ in range(400):
        part = answers.take(rng.integers(0, len(answers), len(answers)))
        values.append(np.mean([area(part.marks[0][:, c], part.probabilities[:, c])[0] for c in which]))
    assert standard_error(found) == pytest.approx(np.std(values), rel=0.15)


@pytest.mark.parametrize("made", [lambda: answers_with_ties(3), labels_with_ties])
def test_intervals_of_the_bootstrap_are_those_of_resampled_images(made):
    answers, rng = made(), np.random.default_rng(5)
    true, predicted = answers.marks
    found = compute_metrics(answers, ["balanced_accuracy", "macro_f1"])
    values = {name: [] for name in ("balanced_accuracy", "macro_f1")}
    for _ in range(1000):
        rows = rng.integers(0, len(answers), len(answers))
        t, s = true[rows], predicted[rows]
        recall, absent = (t & s).sum(0) / t.sum(0), (~t & ~s).sum(0) / (~t).sum(0)
        values["balanced_accuracy"].append((recall if answers.target.ndim == 1 else (recall + absent) / 2).mean())
        values["macro_f1"].append((2 * (t & s).sum(0) / (t.sum(0) + s.sum(0))).mean())
    for name, of in values.items():
        low, high = np.percentile(of, (2.5, 97.5))
        assert found[name].interval == pytest.approx((low, high), abs=0.15 * (high - low))


@pytest.mark.parametrize("chunk", [100, 1000, 70_000])
@pytest.mark.parametrize("made", [lambda: answers_with_ties(3), labels_with_ties])
def test_intervals_of_the_bootstrap_do_not_depend_on_chunks(monkeypatch, made, chunk):
    answers, names = made(), ["balanced_accuracy", "macro_f1"]
    whole = compute_metrics(answers, names), class_metrics(answers, "abcd"[: answers.classes])
    assert (compute_metrics(answers, names), class_metrics(answers, "abcd"[: answers.classes])) == whole
    monkeypatch.setattr("foveal.metrics._CHUNK", chunk)
    assert (compute_metrics(answers, names), class_metrics(answers, "abcd"[: answers.classes])) == whole


@pytest.mark.parametrize(
    ("name", "share"),
    [
        ("balanced_accuracy", 0.15),
        ("macro_f1", 0.15),
        ("auroc", 0.5),
        ("auroc", 0.15),
        ("average_precision", 0.5),
        ("average_precision", 0.15),
        ("nll", 0.15),
    ],
)
def test_intervals_cover_the_metric_95_times_of_100(monkeypatch, name, share):
    """Scores are normal, and the truth is that of a very large sample."""
    monkeypatch.setattr("foveal.metrics.RESAMPLES", 100)
    rng = np.random.default_rng(0)

    def sample(count):
        target = (rng.random(count) < share).astype(int)
        logit = rng.normal(1.5 * target - 0.75, 1)
        return Answers.of(torch.from_numpy(np.stack([np.zeros(count), logit], 1)), torch.from_numpy(target))

    large = sample(200_000)
    truth = METRICS[name].compute(large).value
    found = [METRICS[name].compute(sample(100)) for _ in range(500)]
    covered = np.mean([one.interval is not None and one.interval[0] <= truth <= one.interval[1] for one in found])
    assert 0.9 < covered < 0.98


# ---- degenerate cases


def two_class(target, score):
    logits = torch.tensor([[0.0, value] for value in score], dtype=torch.float64)
    return Answers.of(logits, torch.tensor(target))


def within(found):
    return found.value is None or found.interval is None or 0 <= found.interval[0] <= found.value <= found.interval[1]


def test_a_class_that_is_absent():
    logits, target = logits_and_labels(60, 3)
    found = compute_metrics(Answers.of(logits, target % 2))
    for name in ("auroc", "average_precision"):
        p = logits.double().softmax(1).numpy()
        area = {"auroc": sklearn.roc_auc_score, "average_precision": sklearn.average_precision_score}[name]
        assert found[name].value == pytest.approx(np.mean([area(target % 2 == c, p[:, c]) for c in range(2)]))
    absent = class_metrics(Answers.of(logits, target % 2), "abc")[2]
    assert absent.images == 0 and absent.metrics["recall"] == Metric() and absent.metrics["auroc"] == Metric()
    assert absent.metrics["precision"].value == absent.metrics["f1"].value == 0
    never = class_metrics(Answers.of(logits[:, :2].repeat(1, 2)[:, :3] - torch.tensor([0, 0, 99.0]), target % 2), "abc")
    assert all(one == Metric() for one in never[2].metrics.values())


@pytest.mark.parametrize("only", [0, 1])
def test_all_images_of_one_class(only):
    found = compute_metrics(two_class([only] * 5, [1, -1, 2, 3, -2]))
    assert found["auroc"] == found["average_precision"] == Metric()
    assert found["balanced_accuracy"].value == found["accuracy"].value and all(map(within, found.values()))


@pytest.mark.parametrize("target", [torch.tensor([1]), torch.tensor([[True, False]])])
def test_one_image(target):
    found = compute_metrics(Answers.of(torch.tensor([[0.0, 1.0]]), target))
    assert found["auroc"] == Metric() and found["nll"].interval is None and all(map(within, found.values()))
    for one in class_metrics(Answers.of(torch.tensor([[0.0, 1.0]]), target), "ab"):
        assert all(map(within, one.metrics.values()))


def test_a_perfect_and_a_reversed_ranking():
    """No error can be estimated; the interval is that of as many successes as there are images of the class."""
    target = [1] * 6 + [0] * 20
    for sign, value in ((1, 1.0), (-1, 0.0)):
        found = compute_metrics(two_class(target, [sign * (t - 0.5) for t in target]))
        assert found["auroc"].value == value and found["auroc"].interval == wilson(6 * int(value), 6)
        ends = wilson(6 * int(value), 6), wilson(20 * int(value), 20)
        for name in ("balanced_accuracy", "macro_f1"):
            assert found[name].value == value
            assert found[name].interval == pytest.approx(np.mean(ends, axis=0))
        assert all(map(within, found.values()))
    perfect = compute_metrics(two_class(target, target))["average_precision"]
    assert perfect == Metric(1.0, wilson(6, 6))


def test_one_positive_alone_has_no_interval():
    found = compute_metrics(two_class([1, 0, 0, 0, 0], [1, 2, 0, 0, -1]))
    assert found["auroc"] == Metric(0.75) and found["average_precision"] == Metric(0.5)
    assert METRICS["auroc"].show(found["auroc"]) == "75.0"


def test_saturated_probabilities_keep_the_ranking_of_the_rarer_class():
    """The probability of the other class is rounded to 1."""
    target, score = [1, 1, 0, 0, 0], [-38.0, -39.0, -40.0, -41.0, -42.0]
    found = compute_metrics(two_class(target, score))
    assert found["auroc"].value == found["average_precision"].value == 1


# ---- choosing


def test_names_in_help_are_those_of_metrics():
    assert list(METRICS) == list(METRIC_NAMES)


def test_metrics_are_chosen_by_the_number_of_classes_or_by_name():
    assert choose_metrics(None, RANKED_CLASSES) == METRIC_NAMES
    ranks = {name for name, one in METRICS.items() if one.ranks}
    assert ranks == {"auroc", "average_precision"}
    assert set(choose_metrics(None, RANKED_CLASSES + 1)) == set(METRIC_NAMES) - ranks
    assert choose_metrics(["auroc", "nll", "auroc"], 1000) == ("accuracy", "auroc", "nll")
    assert choose_metrics([], 3) == ("accuracy",)
    logits, target = logits_and_labels(60, RANKED_CLASSES + 1)
    assert Answers.of(logits, target).probabilities is None
    with pytest.raises(ConfigError, match=r"^`metrics`: probabilities were not kept [^\n]*; choose them by name$"):
        compute_metrics(Answers.of(logits, target), ["auroc"])
    kept = Answers.of(logits, target, keep_probabilities=True)
    assert compute_metrics(kept, ["auroc"])["auroc"].value is not None


@pytest.mark.parametrize(
    "name", ["ROC", "PrecisionRecallCurve", "FBetaScore", "RecallAtFixedPrecision", "StatScores", "ConfusionMatrix"]
)
def test_classes_of_torchmetrics_that_are_no_number_are_unknown(name):
    """They need options, or compute curves and tables."""
    with pytest.raises(ConfigError, match=rf"^`metrics` {name}: there is no metric of this name; "):
        choose_metrics([name], 3)
    assert name not in METRICS


@pytest.mark.parametrize(("name", "lower"), [("CohenKappa", False), ("HammingDistance", True), ("RankingLoss", True)])
def test_metrics_of_torchmetrics_are_better_in_their_own_direction(name, lower):
    try:
        check_metric("monitor", name)
        assert METRICS[name].lower_is_better == lower
    finally:
        METRICS.pop(name, None)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("auroca", "did you mean auroc"), ("AP", "use one of accuracy, top5, "), (3, "use one of accuracy, ")],
)
def test_unknown_metrics_get_a_sentence(name, hint):
    with pytest.raises(ConfigError, match=rf"^`metrics` {name}: there is no metric of this name; {hint}[^\n]*$"):
        choose_metrics([name], 3)
    with pytest.raises(ConfigError, match=rf"^`monitor` {name}: there is no metric"):
        check_metric("monitor", name)

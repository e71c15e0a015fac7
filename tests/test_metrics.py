"""Named metrics and intervals, compared with torchmetrics, closed forms, slow loops and simulation."""

import math

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import binary_calibration_error, multiclass_accuracy

from foveal.metrics import (
    METRICS,
    Answers,
    Metric,
    compute_metrics,
    expected_calibration_error,
    flat,
    metric,
    paired_interval,
    wilson,
)


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

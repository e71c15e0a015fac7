import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchmetrics.functional.classification import binary_calibration_error

from foveal.evaluation.calibration import expected_calibration_error, fit_temperature, said


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
    confidence[: count // 4] = 1  # where a network is saturated
    assert expected_calibration_error(confidence, correct, bins) == pytest.approx(by_loop(confidence, correct, bins), abs=1e-12)


def test_ece_is_that_of_torchmetrics():
    rng = np.random.default_rng(0)
    confidence = rng.random(500).astype(np.float32)
    correct = rng.random(500) < 0.6
    theirs = binary_calibration_error(torch.from_numpy(confidence), torch.from_numpy(correct).int(), n_bins=15, norm="l1")
    assert expected_calibration_error(confidence.astype(float), correct) == pytest.approx(float(theirs), abs=1e-5)


def test_ece_of_known_cases():
    assert expected_calibration_error(np.ones(7), np.zeros(7, bool)) == 1  # sure and wrong
    assert expected_calibration_error(np.ones(7), np.ones(7, bool)) == 0  # sure and right
    # As often right as it says, in each of three bins.
    confidence = np.repeat([0.25, 0.5, 0.75], 4)
    correct = np.array([1, 0, 0, 0, 1, 1, 0, 0, 1, 1, 1, 0], bool)
    assert expected_calibration_error(confidence, correct) == 0
    assert expected_calibration_error(confidence, ~correct) == pytest.approx((0.5 + 0 + 0.5) / 3)
    # The edge of a bin belongs to the one below: in one bin these two would cancel out.
    assert expected_calibration_error(np.array([0.5, 0.500001]), np.array([True, False]), bins=2) == pytest.approx(0.5, abs=1e-5)


def test_what_is_said():
    logits, target = torch.randn(9000, 5, generator=torch.Generator().manual_seed(1)), torch.arange(9000) % 5
    for temperature in (1.0, 3.0):
        found = said(logits, target, temperature)
        p = (logits.double() / temperature).softmax(1)
        assert found.correct.tolist() == (p.argmax(1) == target).tolist()
        assert torch.from_numpy(found.confidence).allclose(p.max(1).values)
        assert torch.from_numpy(found.nll).allclose(-p[torch.arange(9000), target].log())


def drawn(temperature, count=200_000, classes=4):
    """Logits whose labels are drawn from them at a temperature."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(count, classes, generator=generator)
    return logits, (logits / temperature).softmax(1).multinomial(1, generator=generator)[:, 0]


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5, 7.0])
def test_the_temperature_that_labels_were_drawn_at_is_found(temperature):
    assert fit_temperature(*drawn(temperature)) == pytest.approx(temperature, rel=0.01)


@pytest.mark.parametrize("count", [1, 3, 30])
@pytest.mark.parametrize("seed", range(8))
def test_the_likelihood_never_falls_where_it_is_fitted(count, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = 10 ** (seed / 2 - 2) * torch.randn(count, 3, generator=generator)
    target = torch.randint(3, (count,), generator=generator)
    fitted = fit_temperature(logits, target)
    nll = F.cross_entropy(logits.double() / fitted, target)
    assert 0.05 <= fitted <= 20
    assert nll <= F.cross_entropy(logits.double(), target) + 1e-12
    grid = [float(F.cross_entropy(logits.double() / t, target)) for t in np.geomspace(0.05, 20, 400)]
    assert float(nll) <= min(grid) + 1e-9


def test_the_ends_of_the_range():
    assert fit_temperature(torch.eye(3), torch.arange(3)) == 0.05  # always right: the surer the better
    assert fit_temperature(torch.eye(3), torch.tensor([1, 2, 0])) == 20  # always wrong
    assert 0.05 <= fit_temperature(torch.zeros(4, 3), torch.zeros(4, dtype=torch.long)) <= 20  # nothing to tell

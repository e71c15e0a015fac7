import numpy as np
import pytest
import torch
import torch.nn.functional as F

from foveal.evaluation import fit_temperature


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
    assert fit_temperature(torch.eye(3), torch.arange(3)) == 0.05  # always right: the lowest temperature is best
    assert fit_temperature(torch.eye(3), torch.tensor([1, 2, 0])) == 20  # always wrong
    assert 0.05 <= fit_temperature(torch.zeros(4, 3), torch.zeros(4, dtype=torch.long)) <= 20  # no information

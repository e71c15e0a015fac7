"""The objective of a scan against its formulas, look by look."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from foveal.errors import ConfigError
from foveal.objectives import Rollout, ScanObjective
from foveal.policies import NEVER


def rollout(looks, scores):
    log_w = scores.log_softmax(1)
    return Rollout(
        (log_w.exp()[..., None] * looks).sum(1),
        looks,
        np.full(looks.shape[1], 2),
        scores=[log_w[:, None]],
        additive=False,
        values=scores,
    )


def random_looks(*shape):
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def smooth_l1(x):
    return 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5


def expected(p, w, scores, truth, chance):
    """Loss terms of one image. ``p`` (N, labels) are probabilities; ``truth`` the labels that hold."""

    def negative_log(probabilities):
        if chance == 0.5:
            terms = [-math.log(q if t else 1 - q) for q, t in zip(probabilities, truth, strict=True)]
            return sum(terms) / len(terms)
        return -math.log(probabilities[truth.index(1)])

    mixture = negative_log([sum(a * q for a, q in zip(w, of_class, strict=True)) for of_class in zip(*p, strict=True)])
    alone = [negative_log(q) for q in p]
    gains = [max(-loss - math.log(chance), math.log(chance)) for loss in alone]
    scout = [smooth_l1(s - g) for s, g in zip(scores, gains, strict=True)]
    return mixture, sum(alone) / len(alone), sum(scout) / len(scout)


@pytest.mark.parametrize("fading", [False, True])
@pytest.mark.parametrize("multilabel", [False, True])
def test_terms_are_those_of_the_formulas(multilabel, fading):
    looks, scores = random_looks(2, 3, 4), random_looks(2, 3)
    p = looks.sigmoid() if multilabel else looks.softmax(-1)
    truths = [[1, 0, 1, 0], [0, 0, 0, 1]] if multilabel else [[0, 1, 0, 0], [0, 0, 0, 1]]
    target = torch.tensor(truths).bool() if multilabel else torch.tensor([1, 3])
    _, _, log = ScanObjective(alone=0.3, regression=0.7, fading=fading)(
        [rollout(looks, scores)], target, torch.zeros(0)
    )
    w, chance = scores.softmax(1), 0.5 if multilabel else 0.25
    each = [expected(p[i].tolist(), w[i].tolist(), scores[i].tolist(), truths[i], chance) for i in range(2)]
    if fading:
        each = [(mixture, alone * (1 - math.exp(-mixture)), scout) for mixture, alone, scout in each]
    mixture, alone, scout = np.mean(each, axis=0)
    assert log["loss_mixture"].item() == pytest.approx(mixture)
    assert log["loss_alone"].item() == pytest.approx(alone)
    assert log["loss_scout"].item() == pytest.approx(scout)
    assert log["loss"].item() == pytest.approx(mixture + 0.3 * alone + 0.7 * scout)


def test_looks_that_are_missing_do_not_count():
    looks, scores, target = random_looks(2, 3, 4), random_looks(2, 3), torch.tensor([1, 3])
    whole = ScanObjective()([rollout(looks, scores)], target, torch.zeros(0))[0]
    padded = torch.cat([scores, torch.full((2, 2), NEVER, dtype=torch.float64)], 1)
    more = torch.cat([looks, random_looks(2, 2, 4)], 1).requires_grad_()
    loss = ScanObjective()([rollout(more, padded)], target, torch.zeros(0))[0]
    loss.backward()
    torch.testing.assert_close(loss, whole)
    assert not more.grad[:, 3:].any() and more.grad[:, :3].abs().sum() > 0


def test_class_weights_multiply_the_terms_of_a_class():
    looks, scores = random_looks(1, 3, 4), random_looks(1, 3)
    plain, weighted = (
        ScanObjective(fading=False, class_weights=weights)([rollout(looks, scores)], torch.tensor([2]), torch.zeros(0))[
            2
        ]
        for weights in (None, (1, 1, 3, 1))
    )
    torch.testing.assert_close(weighted["loss_alone"], 3 * plain["loss_alone"])
    torch.testing.assert_close(weighted["loss_scout"], plain["loss_scout"])


def test_other_models_are_refused():
    looks = random_looks(1, 3, 4)
    with pytest.raises(ConfigError, match="has no scout"):
        ScanObjective()([Rollout(looks.mean(1), looks, np.array([1, 2, 2]))], torch.tensor([0]), torch.zeros(0))

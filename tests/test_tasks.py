"""Tasks against torch, closed forms and brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from foveal.objectives.objective import cross_entropy
from foveal.tasks import MULTICLASS, MULTILABEL, TASKS, Multiclass, Multilabel, join, task_of


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def labels(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < 0.4


def test_targets_tell_the_task():
    assert task_of(torch.tensor([1, 0])) is MULTICLASS and task_of(np.zeros((2, 3))) is MULTILABEL
    assert TASKS == {"multiclass": MULTICLASS, "multilabel": MULTILABEL}
    assert join(["a", "b"]) == "a|b" and join([]) == ""


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_probabilities(dtype):
    logits = normal(2, 3, 5).to(dtype)
    wide = logits.float() if dtype is torch.bfloat16 else logits
    assert torch.equal(MULTICLASS.probabilities(logits), wide.softmax(-1))
    torch.testing.assert_close(MULTILABEL.probabilities(logits), 1 / (1 + (-wide).exp()))


# ---- loss


@pytest.mark.parametrize("weights", [None, [0.2, 1.0, 3.0, 0.5]])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_loss_of_classes_is_that_of_torch(weights, smoothing, reduction):
    logits, target = normal(7, 4), torch.arange(7) % 4
    weight = None if weights is None else torch.tensor(weights)
    theirs = F.cross_entropy(logits, target, weight=weight, label_smoothing=smoothing, reduction=reduction)
    assert torch.equal(MULTICLASS.loss(logits, target, weights, smoothing, reduction), theirs)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_loss_of_every_look_is_that_of_torch(smoothing):
    logits, target = normal(3, 5, 4), torch.tensor([2, 0, 3])
    spread = target[:, None].expand(3, 5).flatten()
    theirs = F.cross_entropy(logits.flatten(0, 1), spread, label_smoothing=smoothing)
    assert torch.equal(cross_entropy(logits, target, label_smoothing=smoothing), theirs)


@pytest.mark.parametrize("weights", [None, [0.2, 1.0, 3.0, 0.5]])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_loss_of_labels(weights, smoothing):
    """Against the formula, label by label; and against torch where there are no weights of labels."""
    logits, target = normal(7, 4).double(), labels(7, 4)
    wanted = np.where(target.numpy(), 1 - smoothing / 2, smoothing / 2)
    p = 1 / (1 + np.exp(-logits.numpy()))
    each = -(wanted * np.log(p) + (1 - wanted) * np.log(1 - p))
    of_image = np.average(each, axis=1, weights=weights)
    for reduction, value in (("none", of_image), ("sum", of_image.sum()), ("mean", of_image.mean())):
        found = MULTILABEL.loss(logits, target, weights, smoothing, reduction)
        np.testing.assert_allclose(found.numpy(), value, rtol=1e-12)
    if weights is None:
        theirs = F.binary_cross_entropy_with_logits(logits, torch.from_numpy(wanted))
        torch.testing.assert_close(MULTILABEL.loss(logits, target, None, smoothing), theirs)


def test_loss_of_labels_of_every_look():
    logits, target = normal(3, 5, 4), labels(3, 4)
    theirs = F.binary_cross_entropy_with_logits(logits, target[:, None].expand(3, 5, 4).float())
    torch.testing.assert_close(cross_entropy(logits, target), theirs)
    every = [MULTILABEL.loss(logits[:, look], target) for look in range(5)]
    torch.testing.assert_close(cross_entropy(logits, target), torch.stack(every).mean())


# ---- reward and evidence


def test_reward_of_classes():
    logits, target = normal(6, 5, 4), torch.arange(6) % 4
    found = MULTICLASS.reward(logits, target)
    assert found.tolist() == [[float(int(z.argmax()) == t) for z in of] for of, t in zip(logits, target, strict=True)]
    assert MULTICLASS.reward(logits[:, 0], target).tolist() == found[:, 0].tolist()


def test_reward_of_labels_is_the_jaccard_index():
    every = [set(s) for k in range(4) for s in itertools.combinations(range(3), k)]
    for predicted, true in itertools.product(every, every):
        logits = torch.tensor([[1.5 if c in predicted else -0.5 for c in range(3)]])
        target = torch.tensor([[c in true for c in range(3)]])
        union = predicted | true
        index = len(predicted & true) / len(union) if union else 1.0
        assert MULTILABEL.reward(logits, target).tolist() == pytest.approx([index])
        looks = torch.stack([logits, -logits], 1)
        other = set(range(3)) - predicted
        assert MULTILABEL.reward(looks, target)[0].tolist() == pytest.approx(
            [index, len(other & true) / len(other | true) if other | true else 1.0]
        )


def test_reward_is_that_of_the_decision_at_even_odds():
    logits, target = torch.zeros(1, 2), torch.tensor([[True, True]])
    assert MULTILABEL.decide(MULTILABEL.probabilities(logits)).tolist() == [[True, True]]
    assert MULTILABEL.reward(logits, target).item() == 1


def test_evidence_is_the_log_probability():
    logits, target = normal(6, 5, 4).double(), torch.arange(6) % 4
    # As the credit of a look was computed before there were tasks.
    former = -F.cross_entropy(logits.transpose(1, 2), target[:, None].expand(-1, 5), reduction="none")
    assert torch.equal(MULTICLASS.evidence(logits, target), former)
    torch.testing.assert_close(
        MULTICLASS.evidence(logits[:, 0], target), MULTICLASS.probabilities(logits[:, 0])[range(6), target].log()
    )
    many, p = labels(6, 4), MULTILABEL.probabilities(logits)
    hit = torch.where(many[:, None], p, 1 - p)
    torch.testing.assert_close(MULTILABEL.evidence(logits, many), hit.log().mean(-1))
    assert torch.equal(MULTILABEL.evidence(logits[:, 0], many), -MULTILABEL.loss(logits[:, 0], many, reduction="none"))


# ---- decisions


def by_hand(p: list[float], thresholds: dict[int, float]) -> int:
    """The most probable class that reaches its threshold; else of those without; else of all."""
    reached = [c for c in range(len(p)) if c in thresholds and p[c] >= thresholds[c]]
    others = [c for c in range(len(p)) if c not in thresholds]
    return max(reached or others or range(len(p)), key=lambda c: (p[c], -c))


@pytest.mark.parametrize(
    "thresholds",
    [
        {},
        {2: 0.1},
        {2: 0.9},
        {0: 0.3, 3: 0.2},
        {0: 0.0},
        {1: 1.0},
        {0: 0.5, 1: 0.6, 2: 0.7, 3: 0.8},
        {0: 0.1, 1: 0.1, 2: 0.1, 3: 0.1},
    ],
)
def test_decisions_on_classes(thresholds):
    task = MULTICLASS.with_thresholds(list(thresholds.items()))
    p = MULTICLASS.probabilities(normal(200, 4)).double()
    p[:20] = p[:20].mul(10).round().div(10)  # ties
    chosen = [by_hand(row, thresholds) for row in p.tolist()]
    assert task.decide(p).tolist() == chosen
    assert task.decide(p.reshape(10, 20, 4)).flatten().tolist() == chosen
    assert task.certainty(p).tolist() == [row[c] for row, c in zip(p.tolist(), chosen, strict=True)]
    assert task.indices(task.decide(p[0])) == (chosen[0],) and float(task.certainty(p[0])) == p[0, chosen[0]]


def test_a_threshold_may_be_on_the_probability():
    p = torch.tensor([0.7, 0.3], dtype=torch.float64)
    assert Multiclass(((1, 0.3),)).decide(p) == 1 and Multiclass(((1, 0.3 + 1e-12),)).decide(p) == 0
    assert Multilabel(((1, 0.3),)).decide(p).tolist() == [True, True]


@pytest.mark.parametrize("thresholds", [{}, {2: 0.1}, {0: 0.9, 3: 0.4}, {0: 0.0, 1: 1.0}])
def test_decisions_on_labels(thresholds):
    task = MULTILABEL.with_thresholds(list(thresholds.items()))
    p = MULTILABEL.probabilities(normal(100, 4)).double()
    p[0] = 0.5
    decided = [[value >= thresholds.get(c, 0.5) for c, value in enumerate(row)] for row in p.tolist()]
    assert task.decide(p).tolist() == decided
    assert task.indices(task.decide(p[3])) == tuple(c for c in range(4) if decided[3][c])
    sure = [
        min(x if yes else 1 - x for x, yes in zip(*pair, strict=True)) for pair in zip(p.tolist(), decided, strict=True)
    ]
    assert task.certainty(p).tolist() == sure


def test_confidence_ignores_thresholds():
    logits = normal(9, 4)
    for task in (MULTICLASS, MULTILABEL):
        other = task.with_thresholds([(1, 0.01), (0, 0.99)])
        assert other.thresholds == ((0, 0.99), (1, 0.01)) and other.name == task.name
        assert torch.equal(other.confidence(logits), task.certainty(task.probabilities(logits)))
    assert torch.equal(MULTICLASS.confidence(logits), logits.softmax(-1).amax(-1))


# ---- counts


def test_counts_and_the_commonest_target():
    target = np.array([2, 0, 2, 1, 2])
    assert MULTICLASS.counts(target, 4).tolist() == [1, 1, 3, 0] and MULTICLASS.commonest(target) == ((2,), 0.6)
    many = np.array([[1, 0, 1], [0, 0, 0], [1, 0, 1], [1, 1, 1], [0, 0, 0], [0, 0, 0]], bool)
    assert MULTILABEL.counts(many, 3).tolist() == [3, 1, 3] and MULTILABEL.commonest(many) == ((), 0.5)
    assert MULTILABEL.commonest(many[:4]) == ((0, 2), 0.5)

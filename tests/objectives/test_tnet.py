"""The objectives against exact expectations: every ordered choice on a small grid is enumerated."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from foveal.objectives.rollout import MASKED, Rollout
from foveal.objectives.tnet import (
    ReferenceTNetObjective,
    TNetObjective,
    contrastive,
    credit,
    imitation_loss,
)
from foveal.policies import find_policy, plackett_luce

TARGET = torch.tensor([1])


class Table:
    """One image whose looks are known beforehand: a thumbnail and ``cells`` cells, each with fixed logits."""

    def __init__(self, cells: int, classes: int = 3, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.looks = 2 * torch.randn(cells + 1, classes, generator=generator, dtype=torch.float64)
        self.scores = torch.randn(cells, generator=generator, dtype=torch.float64).requires_grad_()

    def rollout(self, chosen: tuple[int, ...], policy: str = "sampled") -> Rollout:
        alone = self.looks[[0, *(c + 1 for c in chosen)]][None]
        cells = torch.tensor([chosen])
        log_p = self.scores.log_softmax(0)[None]
        return Rollout(
            logits=alone.mean(1),
            glimpse_logits=alone,
            level=np.array([1] + [2] * len(chosen)),
            parent=np.array([-1] + [0] * len(chosen)),
            log_probability=plackett_luce(log_p, cells),
            scores=[log_p[:, None]],
            cells=cells,
            policy=policy,
        )

    def orders(self, k: int):
        return list(itertools.permutations(range(len(self.scores)), k))

    def gradient(self, loss: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(loss, self.scores)[0]


def test_choices_of_a_grid_are_a_distribution():
    table = Table(9)
    total = sum(table.rollout(order).log_probability.sum().exp() for order in table.orders(2))
    assert total.item() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("cells, k, baseline", [(9, 2, 0.0), (9, 2, 1.7), (5, 3, 0.3)])
def test_the_policy_gradient_is_unbiased(cells, k, baseline):
    """The objective's gradient, averaged over everything that can be drawn, is that of the expected loss."""
    table = Table(cells)
    objective = TNetObjective(policy_weight=1.0, warm_up=0.0)
    drawn = {order: table.rollout(order) for order in table.orders(k)}
    probability = {order: r.log_probability.sum().exp() for order, r in drawn.items()}
    expected_loss = sum(p * F.cross_entropy(drawn[order].logits, TARGET) for order, p in probability.items())
    truth = table.gradient(expected_loss)

    estimate = torch.zeros_like(truth)
    for order in drawn:
        loss, _, _ = objective([table.rollout(order)], TARGET, torch.tensor(baseline))
        estimate += probability[order].item() * table.gradient(loss)
    torch.testing.assert_close(estimate, truth, rtol=1e-9, atol=1e-12)


def test_credit_against_its_definition():
    """Three levels: looks 1 and 2 from the thumbnail's grid, 3 and 4 from theirs."""
    g = torch.Generator().manual_seed(0)
    alone = torch.randn(1, 5, 3, generator=g, dtype=torch.float64)
    p = torch.rand(1, 4, generator=g, dtype=torch.float64)
    level, parent = np.array([1, 2, 2, 3, 3]), np.array([-1, 0, 0, 1, 2])
    tried = Rollout(logits=alone.mean(1), glimpse_logits=alone, level=level, log_probability=p.log(), parent=parent)

    def value(*looks: int) -> float:
        return -F.cross_entropy(alone[0, list(looks)].mean(0, keepdim=True), TARGET).item()

    p1, whole = p[0, 0].item(), value(0, 1, 2, 3, 4)
    expected = [
        whole
        - ((1 - p1) * value(0, 2) + p1 * value(0, 1)),  # everything follows from the first choice but the thumbnail
        whole - value(0, 1, 3),  # the last of its grid, without its descendant
        whole - value(0, 1, 2, 4),  # grids of one level do not know of each other
        whole - value(0, 1, 2, 3),
    ]
    torch.testing.assert_close(credit(tried, TARGET)[0].tolist(), expected)


def test_credit_is_less_noisy_than_the_whole_reward():
    """The reason for it: the policy gradient's variance, by enumeration."""
    table = Table(9)
    spread = {}
    for name in ("credit", "reward"):
        grads = []
        for order in table.orders(2):
            tried = table.rollout(order)
            weigh = credit(tried, TARGET) if name == "credit" else -F.cross_entropy(tried.logits, TARGET).expand(1, 2)
            p = tried.log_probability.sum().exp().item()
            grads.append((p, table.gradient((weigh * tried.log_probability).sum())))
        mean = sum(p * g for p, g in grads)
        spread[name] = sum(p * (g - mean).square().sum().item() for p, g in grads)
    assert spread["credit"] < 0.5 * spread["reward"]


def test_random_looks_train_the_perception_only():
    table = Table(9)
    objective = TNetObjective(warm_up=0.5, warm_up_looks="random")
    assert objective.plan(0.0) == ("random",) and objective.plan(0.5) == ("sampled",)
    tried = table.rollout((1, 2), "random")
    tried.logits.requires_grad_()
    loss, state, _ = objective([tried], TARGET, torch.tensor(0.2))
    assert loss.requires_grad and state == pytest.approx(0.2)
    assert torch.autograd.grad(loss, table.scores, allow_unused=True)[0] is None


def batch(seed: int = 0) -> tuple[Rollout, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    alone = torch.randn(6, 4, 3, generator=g).requires_grad_()
    log_p = torch.randn(6, 3, generator=g).sub(3).requires_grad_()
    level = np.array([1, 2, 2, 3])
    tried = Rollout(
        logits=alone.mean(1),
        glimpse_logits=alone,
        level=level,
        log_probability=log_p,
        fused=torch.randn(6, 5, generator=g),
        parent=np.array([-1, 0, 0, 1]),
    )
    return tried, torch.randint(0, 3, (6,), generator=g)


@pytest.mark.parametrize("feature_levels", [None, 2])
def test_reference_loss_against_loops(feature_levels):
    """Spec section 6, term by term."""
    tried, target = batch()
    share, weight, beta = 0.3, 0.1, 0.5
    highest = feature_levels or 3
    judged = [i for i, level in enumerate(tried.level) if level <= highest]
    ce_image = ce_feature = rl_image = rl_feature = rewards_image = rewards_feature = 0.0
    for b, c in enumerate(target.tolist()):
        right = float(tried.logits[b].argmax() == c)
        ce_image += F.cross_entropy(tried.logits[b], target[b]).item() / 6
        rl_image += (right - beta) * -tried.log_probability[b].sum().item() / 6
        rewards_image += right / 6
        for i in judged:
            ce_feature += F.cross_entropy(tried.glimpse_logits[b, i], target[b]).item() / (6 * len(judged))
            if i:
                good = float(tried.glimpse_logits[b, i].argmax() == c)
                rl_feature += (good - beta) * -tried.log_probability[b, i - 1].item() / (6 * (len(judged) - 1))
                rewards_feature += good / (6 * (len(judged) - 1))
    loss, state, _ = ReferenceTNetObjective(share, weight, feature_levels)([tried], target, torch.tensor(beta))
    expected = share * ce_image + (1 - share) * ce_feature + weight * (share * rl_image + (1 - share) * rl_feature)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert state.item() == pytest.approx(
        0.9 * beta + 0.1 * (share * rewards_image + (1 - share) * rewards_feature), rel=1e-5
    )


def test_reference_loss_of_a_thumbnail_is_its_share_of_the_cross_entropy():
    tried, target = batch()
    thumbnail = Rollout(logits=tried.logits, glimpse_logits=tried.glimpse_logits[:, :1], level=np.array([1]))
    loss, state, _ = ReferenceTNetObjective(0.3)([thumbnail], target, torch.tensor(0.5))
    assert (
        loss.item() == pytest.approx(0.3 * F.cross_entropy(tried.logits, target).item(), rel=1e-6)
        and state.item() == 0.5
    )


def test_contrastive_against_all_pairs():
    g = torch.Generator().manual_seed(0)
    vectors, labels = torch.randn(8, 5, generator=g), torch.randint(0, 2, (8,), generator=g)
    expected = 0.0
    for group in (range(4), range(4, 8)):
        for i, j in itertools.product(group, group):
            cos = F.cosine_similarity(vectors[i], vectors[j], dim=0).item()
            expected += ((1 - cos) if labels[i] == labels[j] else max(cos - 0.4, 0)) / 16 / 2
    assert contrastive(vectors, labels, group=4).item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_class_weights_weigh_classes():
    tried, target = batch()
    even = TNetObjective(image_share=1.0, warm_up=1.0)
    skewed = TNetObjective(image_share=1.0, warm_up=1.0, class_weights=(1.0, 2.0, 3.0))
    tried.policy = find_policy("random")
    got = skewed([tried], target, torch.tensor(0.0))[0]
    expected = F.cross_entropy(tried.logits, target, weight=torch.tensor([1.0, 2, 3]))
    assert got.item() == pytest.approx(expected.item()) and got.item() != pytest.approx(
        even([tried], target, torch.tensor(0.0))[0].item()
    )


# -------------------------------------------------------------------------------------------------- the warm-up


def whole(log_p: torch.Tensor, alone: torch.Tensor) -> Rollout:
    """A rollout with the policy ``whole``: (B, K) log-probabilities of the cells, (B, K, classes) what each says."""
    return Rollout(
        logits=alone.mean(1),
        glimpse_logits=alone,
        level=np.full(alone.shape[1], 2),
        scores=[log_p[:, None]],
        additive=False,
        policy="whole",
    )


def test_imitation_is_the_divergence_from_what_cells_say():
    g = torch.Generator().manual_seed(0)
    alone, log_p = torch.randn(4, 9, 3, generator=g).double(), torch.randn(4, 9, generator=g).double().log_softmax(1)
    target = torch.tensor([0, 2, 1, 1])
    right = np.stack([F.softmax(alone[i], -1)[:, t].numpy() for i, t in enumerate(target)])
    teacher = right / right.sum(1, keepdims=True)
    expected = (teacher * (np.log(teacher) - log_p.numpy())).sum(1).mean()
    assert imitation_loss(whole(log_p, alone), target).item() == pytest.approx(expected, rel=1e-12)
    assert imitation_loss(whole(torch.from_numpy(np.log(teacher)), alone), target).item() == pytest.approx(0, abs=1e-12)


def test_masked_cells_are_not_imitated():
    g = torch.Generator().manual_seed(0)
    alone, scores = torch.randn(2, 4, 3, generator=g).double(), torch.randn(2, 4, generator=g).double()
    masked = torch.tensor([[False, False, True, True], [False] * 4])
    log_p = scores.masked_fill(masked, 10 * MASKED).log_softmax(1).requires_grad_()
    loss = imitation_loss(whole(log_p, alone), torch.tensor([1, 1]))
    loss.backward()
    few = imitation_loss(whole(scores[:1, :2].log_softmax(1), alone[:1, :2]), torch.tensor([1]))
    all_four = imitation_loss(whole(scores[1:].log_softmax(1), alone[1:]), torch.tensor([1]))
    assert loss.item() == pytest.approx((few + all_four).item() / 2, rel=1e-12)
    assert log_p.grad.isfinite().all() and (log_p.grad[0, 2:] == 0).all()


def test_the_warm_up_sees_the_whole_image():
    objective = TNetObjective(warm_up=0.25)
    assert objective.plan(0.2) == ("whole",) and objective.plan(0.25) == ("sampled",)
    assert TNetObjective(warm_up=0.25, warm_up_looks="random").plan(0.2) == ("random",)
    alone = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    tried = whole(torch.full((2, 4), 0.25).log(), alone)
    loss, state, log = objective([tried], torch.tensor([0, 1]), torch.tensor(0.5))
    assert state == 0.5 and loss == log["loss_perception"] + log["loss_imitation"]
    torch.testing.assert_close(log["loss_perception"], F.cross_entropy(tried.logits, torch.tensor([0, 1])))


# ------------------------------------------------------------------------------------------------------- few images


def exhaustive(order: tuple[int, ...]) -> tuple[Table, Rollout]:
    table = Table(4)
    return table, table.rollout(order, "exhaustive")


def test_a_teacher_knows_every_cell_in_any_order():
    table, tried = exhaustive((2, 0, 3, 1))
    alone = table.looks[1:].softmax(1)[:, 1].numpy()
    teacher, log_p = alone / alone.sum(), table.scores.log_softmax(0).detach().numpy()
    expected = float((teacher * (np.log(teacher) - log_p)).sum())
    assert imitation_loss(tried, TARGET).item() == pytest.approx(expected, rel=1e-12)
    gradient = table.gradient(imitation_loss(tried, TARGET))
    np.testing.assert_allclose(gradient, np.exp(log_p) - teacher, atol=1e-12)  # of a divergence to a softmax


def test_taught_updates_minimise_two_losses():
    table, tried = exhaustive((0, 1, 2, 3))
    loss, state, log = TNetObjective(teach=1.0, policy_weight=2.0)([tried], TARGET, torch.tensor(0.25))
    together = F.cross_entropy(table.looks.mean(0)[None], TARGET)
    assert loss.item() == pytest.approx((together + 2 * imitation_loss(tried, TARGET)).item(), rel=1e-12)
    assert state == 0.25 and set(log) == {"loss", "loss_perception", "loss_imitation"}


def test_imitation_finds_the_informative_cell():
    """Descent on the scores alone ends at the cell that shows the class."""
    table, _ = exhaustive((0, 1, 2, 3))
    table.looks[1:] = torch.tensor([0.0, -4.0, 0.0])
    table.looks[3] = torch.tensor([0.0, 6.0, 0.0])
    for _ in range(200):
        gradient = table.gradient(imitation_loss(table.rollout((0, 1, 2, 3), "exhaustive"), TARGET))
        table.scores.data -= 2 * gradient
    assert table.scores.argmax() == 2 and table.scores.softmax(0)[2] > 0.9


@pytest.mark.parametrize(
    ("images", "cells", "levels", "teach"),
    [(499, 9, 1, 1.0), (500, 9, 1, 0.0), (40, 25, 1, 1.0), (40, 36, 1, 0.0), (40, 9, 2, 0.0), (40, None, 1, 0.0)],
)
def test_few_images_get_a_teacher(images, cells, levels, teach):
    adapted = TNetObjective(warm_up=0.3).adapted(images, cells, levels, True)
    assert adapted.teach == teach and adapted.warm_up == 0.3
    assert {adapted.plan(progress) for progress in (0.0, 0.5, 1.0)} == (
        {("exhaustive",)} if teach else {("whole",), ("sampled",)}
    )
    assert TNetObjective().adapted(images, cells, levels, False).teach == 0
    assert TNetObjective(teach=0.5).adapted(images, cells, levels, True).teach == 0.5


def test_a_teacher_comes_first():
    objective = TNetObjective(teach=0.2, warm_up=0.3)
    assert [*map(objective.plan, (0.1, 0.25, 0.9, 1.0))] == [("exhaustive",), ("whole",), ("sampled",), ("sampled",)]
    assert TNetObjective(warm_up=0.3).plan(0.1) == ("whole",)  # undecided


# ------------------------------------------------------------------------------------------------ another model teaches


def taught_rollout() -> tuple[Rollout, list[torch.Tensor], list[torch.Tensor]]:
    """Two images; a grid of four cells, and two grids of three cells below. Returns log-probabilities and weights."""
    g = torch.Generator().manual_seed(0)
    scores = [torch.randn(2, n, k, generator=g).double().requires_grad_() for n, k in ((1, 4), (2, 3))]
    weights = [torch.rand(2, n, k, generator=g).double() for n, k in ((1, 4), (2, 3))]
    weights[0] /= weights[0].sum(-1, keepdim=True)
    weights[1] *= 0.3
    weights[1][0, 1] = 0  # a grid in which the teacher sees nothing
    alone = torch.randn(2, 5, 3, generator=g).double()
    tried = Rollout(
        logits=alone.mean(1),
        glimpse_logits=alone,
        level=np.array([1, 2, 2, 3, 3]),
        parent=np.array([-1, 0, 0, 1, 2]),
        log_probability=torch.zeros(2, 4).double(),
        scores=[s.log_softmax(-1) for s in scores],
        taught=weights,
        policy="sampled",
    )
    return tried, scores, weights


def test_a_taught_policy_has_the_divergence_of_every_grid():
    tried, scores, weights = taught_rollout()
    expected = 0.0
    for log_p, of_level in zip(tried.scores, weights, strict=True):
        for b, g in np.ndindex(*of_level.shape[:2]):
            if inside := float(of_level[b, g].sum()):
                teacher = (of_level[b, g] / inside).numpy()
                divergence = (teacher * (np.log(teacher) - log_p[b, g].detach().numpy())).sum()
                expected += inside * divergence / 2
    loss = imitation_loss(tried, torch.tensor([0, 1]))
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    for score, weight, gradient in zip(scores, weights, torch.autograd.grad(loss, scores), strict=True):
        p = score.softmax(-1).detach()
        torch.testing.assert_close(gradient, (weight.sum(-1, keepdim=True) * p - weight) / 2)  # 0 for an unseen grid


def test_the_teacher_is_imitated_beside_the_policy_gradient():
    tried, _, _ = taught_rollout()
    target, state = torch.tensor([0, 1]), torch.tensor(0.25)
    objective = TNetObjective(teacher="run", teacher_weight=0.7)
    loss, after, log = objective([tried], target, state)
    imitation = imitation_loss(tried, target)
    tried.taught = []
    without, same, _ = objective([tried], target, state)
    assert loss.item() == pytest.approx((without + 0.7 * imitation).item(), rel=1e-12) and after == same
    assert log["loss_imitation"] == imitation and "credit" in log


def test_another_model_teaches_instead_of_the_looks():
    """In the warm-up and where all cells are looked at; its own weight counts."""
    table, tried = exhaustive((2, 0, 3, 1))
    tried.taught = [torch.tensor([[[0.1, 0.2, 0.3, 0.4]]], dtype=torch.float64)]
    loss, _, log = TNetObjective(teacher_weight=2.0, policy_weight=5.0)([tried], TARGET, torch.tensor(0.0))
    teacher, log_p = tried.taught[0][0, 0], table.scores.log_softmax(0)
    expected = (teacher * (teacher.log() - log_p)).sum()
    assert log["loss_imitation"].item() == pytest.approx(expected.item(), rel=1e-12)
    assert loss.item() == pytest.approx((log["loss_perception"] + 2 * expected).item(), rel=1e-12)

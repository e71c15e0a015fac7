"""Saccader: geometry, cell, policies and stages."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

import foveal.glimpse.saccader
from foveal.draws import Draws
from foveal.errors import ConfigError
from foveal.glimpse.saccader import Saccader, SaccaderCell, SaccaderSeparate, _Seen
from foveal.images.views import TensorViews
from foveal.models import create_classifier, create_model
from foveal.objectives import CrossEntropy, SaccaderLocations, SaccaderObjective
from foveal.objectives.saccader import cell_values
from foveal.policies import find_policy
from foveal.prediction.cost import count_cost
from foveal.runs import ModelInfo, load, save_model
from foveal.testing import CountingViews, GlimpseClassifierTester
from foveal.training.fitting import _load_initial_weights
from foveal.training.learner import freeze

TINY = {"backbone": "test_bagnet_lowd", "image_size": 45, "locations": (4,)}


class TestSaccader(GlimpseClassifierTester):
    locations = ((), (1,), (3,), (20,))
    looks_once = True

    def make(self):
        return awake(Saccader(num_classes=5, **TINY))


class TestSaccaderWithBottleneckAndReleasedBoxes(GlimpseClassifierTester):
    image = (4, 70, 90)
    locations = ((2,),)
    looks_once = True

    def make(self):
        options = {**TINY, "backbone": "test_bagnet", "backbone_options": {"downsample_bn": "main"}}
        return awake(Saccader(num_classes=3, in_chans=4, released_boxes=True, **options))


class TestSaccaderSeparate(GlimpseClassifierTester):
    locations = ((), (1,), (6,))

    def make(self):
        return awake(SaccaderSeparate(num_classes=4, classifier="test_resnet", glimpse_size=32, **TINY))


def awake(model: Saccader) -> Saccader:
    """With every weight that starts at zero or one moved away from there, so that nothing is hidden behind a zero."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return model


@pytest.fixture
def model() -> Saccader:
    torch.manual_seed(0)
    return awake(Saccader(num_classes=5, **TINY)).double().eval()


def images(n: int = 2, side: int = 45) -> torch.Tensor:
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(1)).double()  # looks are float32


def repeated(model: Saccader, n: int) -> _Seen:
    """What is seen of one image, n times."""
    seen = model.perceive(TensorViews(images(1)))
    return _Seen(seen.look, seen.root, seen.features, seen.what.detach().expand(n, -1, -1), seen.barred.expand(n, -1))


def draws(n: int = 2, seed: int = 0) -> Draws:
    return Draws(seed, 0, np.arange(n))


# ------------------------------------------------------------------------------------------------ counts and geometry


@pytest.mark.parametrize(
    ("name", "trainable", "total"),
    [("saccader_bagnet77.reference", 35_523_625, 35_583_913), ("saccader_nasnetalarge.reference", None, 124_537_764)],
)
def test_totals_are_those_of_the_paper(name, trainable, total):
    with torch.device("meta"):
        model = create_model(name, num_classes=1001)
    statistics = sum(b.numel() for key, b in model.named_buffers() if key.endswith(("running_mean", "running_var")))
    assert sum(p.numel() for p in model.parameters()) + statistics == total
    assert trainable is None or sum(p.numel() for p in model.parameters()) == trainable


def test_parts_have_the_parameters_of_the_specification():
    with torch.device("meta"):
        model = create_model("saccader_bagnet77.reference", num_classes=1001)
    parts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    statistics = sum(b.numel() for key, b in model.attention.named_buffers() if not key.endswith("tracked"))
    assert parts["attention"] + statistics == 14_430_208 and (parts["mix"], parts["cell"]) == (524_800, 512)


def test_macs_by_hand():
    model = Saccader(num_classes=5, **TINY)
    cells, features, what = model.side**2, model.backbone.feature_channels, model.backbone.num_features
    dense = count_cost(model.backbone, 45).macs - 5 * what
    half, quarter = features // 2, features // 4
    where = cells * (features * half + 9 * half**2 + half * quarter + 9 * quarter**2)
    mix = cells * (quarter + what) * what
    step = 3 * cells * what  # query, pooling, scores
    assert count_cost(model, 500, (4,)).macs == dense + where + mix + 4 * (step + 5 * what)
    assert count_cost(model, 500, ()).macs == dense + 5 * what


def test_released_boxes_are_those_of_the_released_formula():
    expected = [0, 8, 16, 24, 32, 40, 49, 57, 65, 73, 81, 89, 98, 106, 114, 122, 130, 138, 147]
    with torch.device("meta"):
        released, ours = create_model("saccader_bagnet77.reference"), Saccader(num_classes=2)
    square = np.array([[0.0, 0.0, 224.0, 224.0]])
    for model, starts in ((released, expected), (ours, [8 * i for i in range(19)])):
        boxes = model._windows(square).reshape(19, 19, 4)
        assert boxes[0, :, 1].tolist() == boxes[:, 0, 0].tolist() == starts
        assert (boxes[..., 2:] - boxes[..., :2] == 77).all()


def test_what_a_glimpse_adds_depends_on_its_box_and_nothing_else(model):
    x = images().requires_grad_()
    model.size = (45, 45)
    out = model(TensorViews(x), draws=draws())
    for number in (1, 2):
        glimpse = out[0].glimpses[number]
        (gradient,) = torch.autograd.grad(glimpse.contribution.sum(), x, retain_graph=True)
        touched = gradient[0].abs().sum(0) > 0
        y0, x0, y1, x1 = map(int, glimpse.box)
        inside = torch.zeros_like(touched)
        inside[y0:y1, x0:x1] = True
        assert (y1 - y0, x1 - x0) == glimpse.size and torch.equal(touched, inside) and not gradient[1].any()


def test_boxes_follow_the_image_to_full_resolution(model):
    small, large = (model(x).glimpses.box for x in (images(), F.interpolate(images(), scale_factor=4, mode="nearest")))
    assert large.max() == 180
    steps = (large - np.tile(large[:1, :2], 2)) / 4 % model.backbone.jump
    assert set(np.unique(steps[1:5, :2])) == {0.0} and small.max() == 45


# ------------------------------------------------------------------------------------------------ the cell


def slow_cell(mixed: np.ndarray, query: np.ndarray, visited: np.ndarray) -> np.ndarray:
    """Section 3.3, a cell and a channel at a time."""
    cells, channels = mixed.shape
    spatial = [
        sum(query[c] * mixed[n, c] for c in range(channels)) / math.sqrt(channels) - 1e5 * visited[n]
        for n in range(cells)
    ]
    alpha = np.exp(np.array(spatial) - max(spatial))
    alpha /= alpha.sum()
    values = [sum(alpha[n] * mixed[n, c] for n in range(cells)) for c in range(channels)]
    beta = np.exp(np.array(values) - max(values))
    beta /= beta.sum()
    return np.array([sum(beta[c] * mixed[n, c] for c in range(channels)) - 1e5 * visited[n] for n in range(cells)])


def test_the_cell_is_the_one_of_the_specification():
    rng = np.random.default_rng(0)
    cell = SaccaderCell(6).double()
    mixed, query, visited = rng.normal(size=(3, 9, 6)), rng.normal(size=6), rng.integers(0, 2, (3, 9)).astype(float)
    cell.query.data[0] = torch.from_numpy(query)
    scores = cell(torch.from_numpy(mixed), torch.from_numpy(visited)).detach().numpy()
    for i in range(3):
        np.testing.assert_allclose(scores[i], slow_cell(mixed[i], query, visited[i]), rtol=1e-12)


def test_greedy_saccades_follow_the_cell_and_mark_what_was_visited(model):
    seen = model.perceive(TensorViews(images()))
    mixed = model._mixed(seen, detached=False)
    chosen = model.saccade(seen, find_policy("greedy"), 5, draws())
    for i in range(2):
        visited = np.zeros(model.side**2)
        for t in range(5):
            scores = slow_cell(mixed[i].detach().numpy(), model.cell.query[0].detach().numpy(), visited)
            assert chosen.cells[i, t] == scores.argmax()
            p = np.exp(scores - scores.max())
            assert float(chosen.log_probability[i, t].detach().exp()) == pytest.approx(
                p[scores.argmax()] / p.sum(), rel=1e-9
            )
            visited[scores.argmax()] = 1


@pytest.mark.parametrize(
    "policy", ["greedy", "sampled", "random", "centre", "ordered_logits", "sobel_mean", "sobel_var", "exhaustive"]
)
def test_no_cell_is_chosen_twice(model, policy):
    cells = model.side**2
    out = model.saccade(model.perceive(TensorViews(images())), find_policy(policy), cells, draws()).cells
    assert all(sorted(row) == list(range(cells)) for row in out.tolist())


def test_cells_outside_the_image_come_last(model):
    wide = torch.rand(1, 3, 20, 80, dtype=torch.float64)
    chosen = model.saccade(
        seen := model.perceive(TensorViews(wide)), find_policy("sampled"), model.side**2, draws(1)
    ).cells[0]
    beside = seen.barred[0, chosen] > 0
    assert 0 < beside.sum() < len(beside) and not beside[: -int(beside.sum())].any()


@pytest.mark.parametrize("size", [(36, 90), (20, 80), (90, 36)])
def test_windows_mostly_outside_a_long_image_are_excluded(model, size):
    """Without the rule some of those offered see next to nothing of it."""
    views = TensorViews(torch.rand(1, 3, *size, dtype=torch.float64))
    seen = model.perceive(views)
    windows = model._windows(seen.root)[0]
    within = np.clip(np.minimum(windows[:, 2:], size) - np.maximum(windows[:, :2], 0), 0, None).prod(1)
    share = within / (windows[:, 2:] - windows[:, :2]).prod(1)
    offered = seen.barred[0].numpy() == 0
    assert np.array_equal(offered, share >= share.max() / 2) and share[offered].min() >= 0.5
    model.fit_grid = False
    assert np.array_equal(model.perceive(views).barred[0].numpy() == 0, share > 0) and 0 < share[share > 0].min() < 0.5


def test_where_no_window_sees_much_the_best_are_offered(model):
    barred = model.perceive(TensorViews(torch.rand(1, 3, 4, 90, dtype=torch.float64))).barred[0]
    assert 0 < (barred == 0).sum() < len(barred)


@pytest.mark.parametrize("options", [{}, {"released_boxes": True}, {"squash": True}])
def test_all_windows_of_a_square_image_are_offered(options):
    model = Saccader(num_classes=5, **TINY, **options).eval()
    assert not model.perceive(TensorViews(images(2, 61).float())).barred.any()


def test_sampling_draws_from_the_policy(model):
    n = 4000
    seen = repeated(model, n)
    mixed = model._mixed(model.perceive(TensorViews(images(1))), detached=False).detach().expand(n, -1, -1)
    chosen = model.saccade(seen, find_policy("sampled"), 2, draws(n), mixed=mixed)
    p = chosen.log_p[0, 0].exp()
    found = torch.bincount(chosen.cells[:, 0], minlength=len(p)) / n
    often = p * n > 20
    assert often.sum() > 3 and ((found - p).abs() < 4.5 * (p * (1 - p) / n).sqrt())[often].all()


def test_autocast_leaves_the_cell_in_full_precision():
    torch.manual_seed(0)
    model = awake(Saccader(num_classes=5, **TINY)).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        seen = model.perceive(TensorViews(images().float()))
        chosen = model.saccade(seen, find_policy("greedy"), 10, draws())
    assert seen.what.dtype == torch.bfloat16 and chosen.log_p.dtype == torch.float32
    assert torch.isfinite(chosen.log_p).all() and all(len(set(row)) == 10 for row in chosen.cells.tolist())


# -------------------------------------------------------------------------------------------- policies without learning


def test_all_cells_are_the_bagnet_itself(model):
    x = images(3)
    own = model.backbone((x - model.mean[:, None, None]) / model.std[:, None, None])
    torch.testing.assert_close(model(x, (), "greedy").logits, own, rtol=1e-9, atol=1e-9)
    for out in (model(x, (model.side**2,), "ordered_logits"), model(x, policy="exhaustive")):
        torch.testing.assert_close(out.logits, own * model.log_scale.exp(), rtol=1e-9, atol=1e-9)


def test_ordered_logits_are_the_cells_that_speak_most_for_the_predicted_class(model):
    x = images(4)
    look = (x - model.mean[:, None, None]) / model.std[:, None, None]
    what = model.backbone.reduce(model.backbone.forward_features(look))
    maps = F.conv2d(what, model.backbone.fc.weight[..., None, None], model.backbone.fc.bias)
    answer = model.backbone(look).argmax(1)
    cells = model.saccade(model.perceive(TensorViews(x)), find_policy("ordered_logits"), 5, draws(4)).cells
    for i in range(4):
        of_answer = maps[i, answer[i]].flatten()
        assert cells[i].tolist() == of_answer.argsort(descending=True)[:5].tolist()
    one = model(x, (1,), "ordered_logits").logits
    alone = torch.stack([maps[i].flatten(1)[:, cells[i, 0]] for i in range(4)])
    torch.testing.assert_close(one, alone * model.log_scale.exp())


def test_sobel_windows_by_hand(model):
    x = images(2)
    seen = model.perceive(TensorViews(x))
    grey = (seen.look * torch.tensor([0.2989, 0.587, 0.114], dtype=torch.float64)[:, None, None]).sum(1).numpy()
    padded = np.pad(grey, ((0, 0), (1, 1), (1, 1)), mode="reflect")
    down = padded[:, 2:] - padded[:, :-2]
    across = padded[:, :, 2:] - padded[:, :, :-2]
    gy = down[:, :, :-2] + 2 * down[:, :, 1:-1] + down[:, :, 2:]
    gx = across[:, :-2] + 2 * across[:, 1:-1] + across[:, 2:]
    edge = np.sqrt(gx**2 + gy**2)
    side, jump = model.backbone.receptive_field, model.backbone.jump
    for name, statistic in (("sobel_mean", np.mean), ("sobel_var", lambda w: np.var(w, ddof=1))):
        cells = model.saccade(seen, find_policy(name), 4, draws()).cells
        for i in range(2):
            value = [
                statistic(edge[i, jump * r : jump * r + side, jump * c : jump * c + side])
                for r in range(model.side)
                for c in range(model.side)
            ]
            assert cells[i].tolist() == np.argsort(value)[::-1][:4].tolist()


def test_random_as_released_favours_inner_cells_and_may_come_back(model):
    n = 3000
    out = model.saccade(repeated(model, n), find_policy("random_released"), 2, draws(n))
    share = torch.bincount(out.cells[:, 0], minlength=model.side**2) / n
    grid = share.reshape(model.side, model.side)
    inner, border, corner = grid[1:-1, 1:-1].mean(), grid[0, 1:-1].mean(), grid[0, 0]
    assert float(border / inner) == pytest.approx(0.5, abs=0.15) and float(corner / inner) == pytest.approx(
        0.25, abs=0.2
    )
    assert (out.cells[:, 0] == out.cells[:, 1]).any()
    expected = torch.full((model.side,), 1.0 / (model.side - 1))
    expected[[0, -1]] /= 2
    rows, cols = out.cells[:, 0] // model.side, out.cells[:, 0] % model.side
    torch.testing.assert_close(out.log_probability[:, 0].exp().float(), expected[rows] * expected[cols])


def test_the_middle_as_released_is_the_same_cell_each_time(model):
    cells = model.saccade(model.perceive(TensorViews(images())), find_policy("centre_released"), 3, draws()).cells
    assert set(cells.flatten().tolist()) == {model.side**2 // 2}
    assert (
        model.saccade(model.perceive(TensorViews(images())), find_policy("centre"), 1, draws()).cells.flatten().tolist()
        == [model.side**2 // 2] * 2
    )


@pytest.mark.parametrize(("side", "cells", "middle"), [(33, 6, 14), (37, 7, 24), (13, 1, 0)])
def test_the_middle_of_other_grids(side, cells, middle):
    model = Saccader(num_classes=2, backbone="test_bagnet_lowd", image_size=side, locations=(1,)).eval()
    seen = model.perceive(TensorViews(torch.rand(2, 3, side, side)))
    assert (
        model.side == cells
        and model.saccade(seen, find_policy("centre_released"), 2, draws()).cells.tolist() == [[middle] * 2] * 2
    )
    released = model.saccade(seen, find_policy("random_released"), 2, draws())
    assert released.cells.max() < cells**2 and torch.isfinite(released.log_probability).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_policies_decide_in_full_precision(dtype):
    torch.manual_seed(0)
    model = awake(Saccader(num_classes=5, **TINY)).eval()
    with torch.no_grad(), torch.autocast("cpu", dtype):
        seen = model.perceive(TensorViews(images(8).float()))
        ordered = model.saccade(seen, find_policy("ordered_logits"), 20, draws(8)).cells
        edges = model.saccade(seen, find_policy("sobel_var"), 20, draws(8)).cells
    what, head = seen.what.double(), model.double().backbone.fc
    answer = head(what.mean(1)).argmax(-1)
    spoken = head(what).gather(-1, answer[:, None, None].expand(-1, what.shape[1], 1)).squeeze(-1).gather(1, ordered)
    assert (spoken.diff(dim=1) <= 1e-5).all()
    plain = (
        model.float()
        .saccade(model.perceive(TensorViews(images(8).float())), find_policy("sobel_var"), 20, draws(8))
        .cells
    )
    assert (edges == plain).float().mean() > 0.9


def test_nothing_can_be_learned_from_no_glimpse():
    model = Saccader(num_classes=2, **{**TINY, "locations": (0,)})
    with pytest.raises(ConfigError, match="`locations` 0: training needs at least one glimpse"):
        model.rollouts(torch.rand(2, 3, 45, 45), ("sampled",), draws())
    assert model.rollouts(torch.rand(2, 3, 45, 45), ("exhaustive",), draws())[0].logits.shape == (2, 2)


# ------------------------------------------------------------------------------------------------ the three stages


def stage(model, objective, target=(0, 1, 2, 3)):
    model.train()
    model.zero_grad(set_to_none=True)
    freeze(model, objective.trains)
    rollouts = model.rollouts(images(4), objective.plan(1.0), draws(4))
    loss, _, log = objective(rollouts, torch.tensor(target), objective.initial_state())
    loss.backward()
    freeze(model, None)
    return loss, log, {name: p.grad is not None and bool(p.grad.any()) for name, p in model.named_parameters()}


def test_stage_one_trains_the_bagnet_alone(model):
    _, _, touched = stage(model, CrossEntropy(policy="exhaustive"))
    assert all(hit == name.startswith("backbone") for name, hit in touched.items())


@pytest.mark.parametrize("rollout", ["teacher", "sampled"])
def test_stage_two_trains_what_chooses_alone(model, rollout):
    _, log, touched = stage(model, SaccaderLocations(rollout))
    assert all(hit != name.startswith("backbone") for name, hit in touched.items())
    assert rollout == "sampled" or float(log["barred"]) == 0


def test_stage_two_starts_at_a_uniform_policy():
    torch.manual_seed(0)
    model = Saccader(num_classes=5, **TINY)
    for rollout in ("teacher", "sampled"):
        log = stage(model.double(), SaccaderLocations(rollout))[1]
        assert float(log["loss"]) == pytest.approx(math.log(model.side**2), abs=0.35)


def test_barred_cells_are_told_apart_from_the_loss_that_means_something(model):
    objective = SaccaderLocations("sampled")
    rollouts = model.rollouts(images(4), objective.plan(0.0), draws(4))
    sampled, wanted = rollouts[0].cells, rollouts[1].cells
    barred = [[wanted[i, t] in sampled[i, :t] for t in range(4)] for i in range(4)]
    rollouts[0].cells[0, 0] = wanted[0, 1]  # make sure that there is one
    barred[0][1] = True
    log = objective(rollouts, torch.zeros(4, dtype=torch.long), torch.zeros(0))[2]
    assert float(log["barred"]) == pytest.approx(np.mean(barred))


def test_stage_two_fits_the_scale_of_glimpses(model):
    """The gradient of the cross-entropy by the logarithm of the scale is E z - z of the target, in closed form."""
    objective, target = SaccaderLocations(), torch.tensor([0, 1, 2, 3])
    _, log, _ = stage(model, objective)
    logits = model.rollouts(images(4), ("ordered_logits",), draws(4))[0].logits.detach()
    expected = (logits.softmax(1) * logits).sum(1) - logits.gather(1, target[:, None])[:, 0]
    torch.testing.assert_close(model.log_scale.grad, expected.mean())
    assert float(log["loss_classes"]) == pytest.approx(float(F.cross_entropy(logits, target)))
    released = Saccader(num_classes=5, scaled=False, **TINY).double()
    loss, log, _ = stage(released, objective)
    assert float(loss.detach()) == pytest.approx(float(log["loss"])) and "loss_classes" not in log


@pytest.mark.parametrize("credit", ["cells", "image"])
def test_stage_three_trains_everything(model, credit):
    assert all(stage(model, SaccaderObjective(pretraining=0.0, credit=credit))[2].values())


def test_stage_three_can_leave_the_bagnet_as_it_is(model):
    _, _, touched = stage(model, SaccaderObjective(pretraining=0.0, trains=("location",)))
    assert touched["log_scale"] and all(hit != name.startswith("backbone") for name, hit in touched.items())


def test_the_value_of_each_cell_by_exchanging_it(model):
    model.eval()
    sampled, exhaustive = model.rollouts(images(2), ("sampled", "exhaustive"), draws(2))
    target = torch.tensor([1, 3])
    values = cell_values(sampled, exhaustive.glimpse_logits, target)
    assert values.shape == (2, 4, model.side**2)
    views = TensorViews(images(2))
    seen = model.perceive(views)
    for t, n in ((0, 0), (2, 17), (3, 80)):
        cells = sampled.cells.clone()
        cells[:, t] = n
        logits = model.read(views, seen, np.arange(2), cells).mean(1)
        torch.testing.assert_close(values[:, t, n], -F.cross_entropy(logits, target, reduction="none").detach())


def test_credit_of_all_cells_is_the_gradient_of_what_a_choice_is_worth(model):
    """With a single choice, the policy term is the expected log-probability of the target, summed over the cells."""
    model.eval()
    target = torch.tensor([1, 3])
    rollouts = model.rollouts(images(2), ("sampled", "exhaustive"), draws(2), (1,))
    objective = SaccaderObjective(pretraining=0.0, policy_weight=0.7)
    loss = objective(rollouts, target, torch.zeros(0))[0]
    views, scores = TensorViews(images(2)), rollouts[0].scores[0][:, 0]
    seen, expected = model.perceive(views), 0.0
    for n in range(model.side**2):
        logits = model.read(views, seen, np.arange(2), torch.full((2, 1), n)).mean(1).detach()
        expected = expected + (scores[:, n].exp() * F.cross_entropy(logits, target, reduction="none")).mean()
    classes = (F.cross_entropy(rollouts[0].logits, target) + F.cross_entropy(rollouts[1].logits, target)) / 2
    torch.testing.assert_close(loss, classes + 0.7 * expected)
    own, by_hand = (torch.autograd.grad(of, model.cell.query, retain_graph=True)[0] for of in (loss, 0.7 * expected))
    torch.testing.assert_close(own, by_hand)


def test_the_reference_is_trained_as_published():
    with torch.device("meta"):
        model = create_classifier("saccader_bagnet77.reference", num_classes=5)
    objective = model.default_objective()
    assert model.log_scale is None and (objective.credit, objective.trains) == ("image", None)
    assert objective.plan(0.0) == objective.plan(1.0) == ("sampled",)


@pytest.mark.parametrize("scaled", [True, False])
def test_weights_with_and_without_a_scale_start_from_each_other(tmp_path, scaled):
    torch.manual_seed(0)
    source, model = (Saccader(num_classes=5, scaled=of, **TINY) for of in (not scaled, scaled))
    weights = source.state_dict()
    save_file({name: value.contiguous() for name, value in weights.items()}, tmp_path / "weights.safetensors")
    _load_initial_weights(tmp_path / "weights.safetensors", SimpleNamespace(model=model))
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items() if name != "log_scale")
    assert (model.log_scale is None) != scaled


def test_stage_three_by_hand(model):
    objective = SaccaderObjective(pretraining=0.0, policy_weight=0.7, samples=2, credit="image")
    rollouts = model.train().rollouts(images(4), objective.plan(0.0), draws(4))
    assert [r.policy.name for r in rollouts] == ["sampled"] * 2 and not torch.equal(
        rollouts[0].cells, rollouts[1].cells
    )
    target = torch.tensor([int(rollouts[0].logits[0].argmax()), 1, 2, int(rollouts[1].logits[3].argmax())])
    loss = objective(rollouts, target, torch.zeros(0))[0]
    right = [[float(r.logits[i].argmax() == target[i]) for i in range(4)] for r in rollouts]
    mean = sum(map(sum, right)) / 8
    policy = [
        -(right[s][i] - mean) * float(rollouts[s].log_probability[i, t].detach())
        for s in range(2)
        for i in range(4)
        for t in range(4)
    ]
    classes = [-float(r.logits[i].detach().log_softmax(-1)[target[i]]) for r in rollouts for i in range(4)]
    assert 0 < mean < 1 and float(loss.detach()) == pytest.approx(np.mean(classes) + 0.7 * np.mean(policy), rel=1e-9)


@pytest.mark.parametrize("punish", [False, True])
def test_a_reward_that_is_the_same_for_all_teaches_no_location(model, punish):
    objective = SaccaderObjective(pretraining=0.0, punish=punish, credit="image")
    rollouts = model.rollouts(images(4), objective.plan(0.0), draws(4))
    answer = rollouts[0].logits.argmax(-1)
    for target in (answer, (answer + 1) % 5):
        loss, _, log = objective(rollouts, target, torch.zeros(0))
        assert float(loss.detach()) == pytest.approx(float(log["loss_classes"]), abs=1e-12)


def test_one_run_goes_through_all_stages():
    objective = SaccaderObjective(pretraining=0.6)
    assert objective.plan(0.59) == ("exhaustive", "ordered_logits")
    assert objective.plan(0.6) == ("sampled", "exhaustive")


def test_a_frozen_part_keeps_weights_and_statistics(model):
    frozen = freeze(model.train(), ("location",))
    for module in frozen:
        module.eval()
    assert not any(p.requires_grad for p in model.backbone.parameters()) and all(
        p.requires_grad for p in model.attention.parameters()
    )
    assert not any(m.training for m in model.backbone.modules()) and all(m.training for m in model.attention.modules())
    before = {k: v.clone() for k, v in model.backbone.state_dict().items()}
    stage_before = model.attention[1].running_mean.clone()
    rollouts = model.rollouts(images(4), ("ordered_logits",), draws(4))
    SaccaderLocations()(rollouts, torch.zeros(4, dtype=torch.long), torch.zeros(0))[0].backward()
    assert all(torch.equal(v, before[k]) for k, v in model.backbone.state_dict().items())
    assert not torch.equal(model.attention[1].running_mean, stage_before)
    with pytest.raises(ConfigError, match="no group of parameters 'policy'; use backbone or location"):
        freeze(model, ("policy",))
    assert freeze(model, None) == [] and all(p.requires_grad for p in model.parameters())


# ------------------------------------------------------------------------------------------------ a separate classifier


def separate(**options) -> SaccaderSeparate:
    torch.manual_seed(0)
    return awake(
        SaccaderSeparate(num_classes=4, classifier="test_resnet", glimpse_size=24, **{**TINY, **options})
    ).eval()


def test_the_separate_classifier_sees_full_resolution_normalised_its_own_way():
    model = separate(mean=(0.2, 0.4, 0.6), std=(0.5, 0.25, 0.125))
    x = torch.rand(2, 3, 180, 180, generator=torch.Generator().manual_seed(0))
    views = CountingViews(x)
    with torch.no_grad():
        out = model(views, (3,))
        card = timm.get_pretrained_cfg("test_resnet")
        for one, image in zip(out, x, strict=True):
            looks = []
            for g in one.glimpses[1:]:
                y0, x0, y1, x1 = map(int, g.box)
                assert (y1 - y0, x1 - x0) == (52, 52) and g.size == (24, 24)
                patch = F.interpolate(image[None, :, y0:y1, x0:x1], (24, 24), mode="bilinear", antialias=True)
                looks.append((patch - torch.tensor(card.mean)[:, None, None]) / torch.tensor(card.std)[:, None, None])
            torch.testing.assert_close(model.classifier(torch.cat(looks)).mean(0), one.logits, rtol=1e-2, atol=2e-2)
    assert len(views.looks) == 2 + 6


def test_the_separate_classifier_finds_locations_as_saccader_does():
    model = separate()
    alone = Saccader(num_classes=4, scaled=False, **TINY)
    alone.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("classifier")})
    x = torch.rand(2, 3, 90, 90, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert (model(x).glimpses.box == alone.eval()(x).glimpses.box).all()
        torch.testing.assert_close(model(x, ()).logits, alone(x, ()).logits)


def test_the_separate_classifier_has_no_logits_of_all_cells():
    model = separate()
    assert model.default_objective().credit == "image"
    objective = SaccaderObjective(pretraining=0.0)
    rollouts = model.rollouts(torch.rand(2, 3, 90, 90), objective.plan(0.0), draws(2))
    with pytest.raises(ConfigError, match=r"objective.credit: cells needs the logits of all cells.*use image"):
        objective(rollouts, torch.tensor([0, 1]), torch.zeros(0))


# ------------------------------------------------------------------------------------------------ wrong input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "resnet18"}, "`backbone` resnet18: is not a BagNet; use one, such as bagnet77_lowd"),
        ({"backbone": "bagnet7"}, "backbone bagnet7: there is no backbone of this name; did you mean bagnet"),
        (
            {"image_size": 12},
            "`image_size` 12: test_bagnet_lowd needs at least its window of 13 px; choose a larger one",
        ),
        ({"locations": (2, 1)}, "`locations` 2,1: this model has one grid, of 81 cells; give one number, 0 to 81"),
        ({"locations": (82,)}, "`locations` 82: this model has one grid"),
        ({"crop": 0.9, "squash": True}, "`crop` 0.9 with `squash` True: cannot be done"),
    ],
)
def test_options_that_do_not_fit_get_a_sentence(options, message):
    with pytest.raises(ConfigError, match=message):
        Saccader(num_classes=2, **{**TINY, **options})


@pytest.mark.parametrize(
    ("backbone", "side", "sentence"),
    [
        (
            "bagnet77_lowd",
            96,
            "image_size 96: each of the 3 x 3 windows of bagnet77_lowd has 77 px, 80 % of the image's side, "
            "so glimpses overlap strongly; choose image_size 224, or backbone bagnet33_lowd, whose windows are 33 px",
        ),
        (
            "bagnet77_lowd",
            128,
            "image_size 128: each of the 7 x 7 windows of bagnet77_lowd has 77 px, 60 % of the image's side, "
            "so glimpses overlap strongly; choose image_size 224, or backbone bagnet33_lowd, whose windows are 33 px",
        ),
        (
            "bagnet77_lowd",
            77,
            "image_size 77: the one window of bagnet77_lowd has 77 px, 100 % of the image's side, "
            "so glimpses overlap strongly; choose image_size 224, or backbone bagnet17_lowd, whose windows are 17 px",
        ),
        (
            "test_bagnet_lowd",
            20,
            "image_size 20: each of the 2 x 2 windows of test_bagnet_lowd has 13 px, 65 % of the image's side, "
            "so glimpses overlap strongly; choose image_size 40",
        ),
        ("bagnet77_lowd", 224, None),
        ("bagnet33_lowd", 96, None),
    ],
)
def test_windows_that_are_large_for_the_image_are_told_once(caplog, backbone, side, sentence):
    foveal.glimpse.saccader._advise.cache_clear()
    for _ in range(2):
        Saccader(num_classes=2, backbone=backbone, image_size=side, locations=(1,))
    assert caplog.messages == ([sentence] if sentence else [])


def test_a_trained_model_is_loaded_without_advice(tmp_path, caplog):
    options = {"name": "saccader", "backbone": "test_bagnet_lowd", "image_size": 20, "locations": [1]}
    save_model(tmp_path, create_classifier(**options, num_classes=2), ModelInfo(options))
    foveal.glimpse.saccader._advise.cache_clear()
    caplog.clear()
    assert load(tmp_path).side == 2 and not caplog.messages

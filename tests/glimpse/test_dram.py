"""DRAM: the contract of every classifier that looks, the counts of its paper, and its sensor against slow loops."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from foveal.cli import main
from foveal.draws import Draws
from foveal.errors import ConfigError
from foveal.glimpse.dram import DRAM, finest_only, windows, with_coordinates
from foveal.images.views import TensorViews
from foveal.models import create_classifier
from foveal.policies import find_policy
from foveal.prediction.cost import count_cost
from foveal.testing import GlimpseClassifierTester

TINY = {"backbone": "test_resnetv2_slim", "image_size": 48, "base_size": 16, "hidden": 12}


def tiny(**changes) -> DRAM:
    torch.manual_seed(0)
    return DRAM(**{"num_classes": 3, "locations": (2,), **TINY, **changes})


class TestDRAM(GlimpseClassifierTester):
    locations = ((), (1,), (2,), (7,))
    additive = False
    looks_once = True

    def make(self) -> DRAM:
        return DRAM(num_classes=3, locations=(2,), **TINY)

    def test_glimpses_lie_in_the_first_look(self, model):
        for one in self.run(model, self.images()):
            assert [g.parent for g in one.glimpses] == [None, 0, 0] and [g.probability for g in one.glimpses] == [
                1,
                1,
                1,
            ]
            assert [g.size for g in one.glimpses] == [(48, 48), (16, 16), (16, 16)]
            y0, x0, y1, x1 = one.glimpses[0].box
            for g in one.glimpses[1:]:
                assert (g.box[2] - g.box[0], g.box[3] - g.box[1]) == pytest.approx(((y1 - y0) / 3, (x1 - x0) / 3))
                assert (
                    y0 - 1e-3 <= g.box[0] and x0 - 1e-3 <= g.box[1] and g.box[2] <= y1 + 1e-3 and g.box[3] <= x1 + 1e-3
                )

    def test_batch_equals_single_images(self, model):
        """Places are points of the plane, which other sums round otherwise."""
        images = self.images(3)
        for i, one in enumerate(self.run(model, images)):
            alone = self.run(model, images[i : i + 1])[0]
            torch.testing.assert_close(alone.logits, one.logits, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(alone.glimpses.box, one.glimpses.box, atol=1e-3)


class TestMeanOfSteps(TestDRAM):
    additive = True

    def make(self) -> DRAM:
        return DRAM(num_classes=3, locations=(2,), aggregate="mean", **TINY)


# ---------------------------------------------------------------------------------------------------------- counts


def test_published_count(capsys):
    assert main(["cost", "dram.reference", "--image-size", "224", "--num-classes", "1001", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parameters_and_statistics"] == 45_610_219


def test_parameters_of_its_parts():
    parts = create_classifier("dram.reference", num_classes=1001).parameter_groups()
    total = {name: sum(p.numel() for p in part) for name, part in parts.items()}
    assert total["head"] == 12_587_008 + 1_026_025 and total["location"] == 8_392_704 + 2_050


def slim_resnet_macs(side: int, bands: int) -> int:
    """Multiplications of slim's ResNet-v2-50, convolution by convolution."""
    side = -(-side // 2)
    macs, channels, side = side**2 * 7 * 7 * bands * 64, 64, -(-side // 2)
    for stage, (blocks, width) in enumerate(zip((3, 4, 6, 3), (64, 128, 256, 512), strict=True)):
        for block in range(blocks):
            after = -(-side // 2) if stage < 3 and block == blocks - 1 else side
            macs += side**2 * channels * width + after**2 * (9 * width * width + width * 4 * width)
            macs += after**2 * channels * 4 * width if block == 0 else 0
            channels, side = 4 * width, after
    return macs


@pytest.mark.parametrize("steps", [0, 1, 6])
def test_macs_by_hand(steps):
    model = create_classifier("dram.reference", num_classes=1001)
    look = slim_resnet_macs(77, 15) + (2048 + 1024) * 4 * 1024
    choice = 2 * 1024 * 4 * 1024 + 1024 * 2
    budget = (steps,) if steps else ()
    assert (
        count_cost(model, 224, budget).macs
        == (1 + steps) * look + steps * choice + 1024 * 1001
        == count_cost(model, 60_000, budget).macs
    )


# ---------------------------------------------------------------------------------------------------------- sensor


def bilinear(field: np.ndarray, y: float, x: float) -> np.ndarray:
    """The value between the four pixels around a point (C,), those outside replaced by the nearest."""
    h, w = field.shape[1:]
    y, x = min(max(y, 0), h - 1), min(max(x, 0), w - 1)
    top, left = int(y), int(x)
    below, right = min(top + 1, h - 1), min(left + 1, w - 1)
    v, u = y - top, x - left
    upper = (1 - u) * field[:, top, left] + u * field[:, top, right]
    return (1 - v) * upper + v * ((1 - u) * field[:, below, left] + u * field[:, below, right])


def test_windows_against_a_slow_loop():
    rng = np.random.default_rng(0)
    field, where, sides, size = rng.random((2, 3, 11, 14)), np.array([[0.3, -0.9], [-1.0, 0.55]]), (0.3, 0.65, 1.0), 4
    expected = np.empty((2, 9, size, size))
    for r in range(2):
        for k, side in enumerate(sides):
            for i in range(size):
                for j in range(size):
                    y = ((where[r, 0] - side) + 2 * side * (i + 0.5) / size + 1) / 2 * 11 - 0.5
                    x = ((where[r, 1] - side) + 2 * side * (j + 0.5) / size + 1) / 2 * 14 - 0.5
                    expected[r, 3 * k : 3 * k + 3, i, j] = bilinear(field[r], y, x)
    seen = windows(torch.from_numpy(field), torch.from_numpy(where), sides, size)
    torch.testing.assert_close(seen, torch.from_numpy(expected))


def test_the_fine_window_at_whole_pixels_is_the_crop():
    field = torch.rand(1, 2, 40, 40)
    for top, left in ((0, 0), (24, 24), (5, 17)):
        where = (torch.tensor([[top, left]]) + 8) / 20 - 1
        seen = windows(field, where, (16 / 40, 28 / 40, 1.0), 16)
        torch.testing.assert_close(seen[:, :2], field[..., top : top + 16, left : left + 16], rtol=1e-4, atol=1e-5)


def test_published_sides_and_limit():
    model = create_classifier("dram.reference", num_classes=2)
    assert [round(224 * side) for side in model.sides] == [77, 150, 224]
    assert model.where.limit == 0.65625 and model.where.sd == 0.1


def test_coordinates_are_rows_then_columns():
    field = with_coordinates(torch.zeros(1, 3, 3, 5))
    assert field[0, 3, :, 0].tolist() == [-1, 0, 1] and field[0, 4, 0].tolist() == [-1, -0.5, 0, 0.5, 1]
    assert bool((field[0, 3] == field[0, 3, :, :1]).all()) and bool((field[0, 4] == field[0, 4, :1]).all())


def test_blanked_windows_have_no_gradient_and_their_mean():
    seen = torch.rand(2, 15, 8, 8, requires_grad=True)
    left = finest_only(seen)
    torch.testing.assert_close(left[:, :5], seen[:, :5])
    torch.testing.assert_close(left[:, 5:], seen[:, 5:].mean((2, 3), keepdim=True).expand(-1, -1, 8, 8))
    (gradient,) = torch.autograd.grad(left.square().sum(), seen)
    assert gradient[:, :5].all() and not gradient[:, 5:].any()


# --------------------------------------------------------------------------------------------------------- rollout


def test_the_context_step_alters_only_the_location_memory():
    model, images = tiny().eval(), torch.rand(2, 3, 48, 48)
    with torch.inference_mode():
        field, middle = (
            with_coordinates((images - model.mean[:, None, None]) / model.std[:, None, None]),
            torch.zeros(2, 2),
        )
        # What is classified first comes from the middle alone, as if there had been no context step ...
        looked = model(images, locations=(1,), policy="centre")
        state, _ = model.recognise(model.perceive(field, middle), model.recognise.zeros(2))
        torch.testing.assert_close(looked.logits, model.classifier(state))
        # ... and the place that is looked at first from the context.
        context, _ = model.recognise(model.perceive(field, middle, context=True), model.recognise.zeros(2))
        torch.testing.assert_close(model(images, locations=()).logits, model.classifier(context))
        first = model.where(model.locate(context, model.locate.zeros(2))[0])
    box = model(images, locations=(1,)).glimpses.box[1::2]
    torch.testing.assert_close(torch.from_numpy((box[:, :2] + box[:, 2:]) / 48 - 1).float(), first)


def test_what_lies_outside_the_fine_window_cannot_be_classified_by():
    model, images = tiny().eval(), torch.rand(1, 3, 48, 48)
    other = images.clone()
    other[..., :8, :] = images[..., :8, :].flip(
        -1
    )  # neither the place nor the mean of a window around the middle changes
    with torch.inference_mode():
        fields = [with_coordinates(x) for x in (images, other)]
        blind = [model.perceive(f, torch.zeros(1, 2)) for f in fields]
        seeing = [model.perceive(f, torch.zeros(1, 2), context=True) for f in fields]
    torch.testing.assert_close(*blind, rtol=1e-3, atol=1e-3)
    assert (seeing[0] - seeing[1]).abs().max() > 10 * (blind[0] - blind[1]).abs().max()


@pytest.mark.parametrize("policy", ["greedy", "sampled", "random", "centre"])
def test_places_stay_within_the_limit(policy):
    model = tiny(sd=5.0)
    with torch.no_grad():
        model.where.emit.weight.mul_(100)
        seen = model.trace(TensorViews(torch.rand(3, 3, 48, 48)), 4, [find_policy(policy)], Draws(0, 0, np.arange(3)))
    assert seen.where.shape == (3, 4, 2) and seen.where.abs().max() <= model.where.limit == pytest.approx(2 / 3)


def test_log_probability_is_the_density_of_every_choice():
    model, images, draws = tiny().eval(), torch.rand(3, 3, 48, 48), Draws(0, 0, np.arange(3))
    with torch.no_grad():
        greedy, sampled = model.rollouts(images, ("greedy", "sampled"), draws)
    top = -2 * np.log(0.1 * np.sqrt(2 * np.pi))
    torch.testing.assert_close(greedy.log_probability, torch.full((3, 2), top).float())
    assert (
        sampled.log_probability.shape == (3, 2)
        and (sampled.log_probability < top).all()
        and sampled.glimpse_logits.shape == (3, 3, 3)
    )


def test_the_reference_trains_the_prediction_alone():
    assert create_classifier("dram.reference", num_classes=2, **TINY).default_objective().image_share == 1
    assert tiny().default_objective().image_share == 0.5 and tiny().default_objective().policy_weight == 0.1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"base_size": 48}, "`base_size` 48: is not above 0 and below `image_size` 48"),
        ({"aggregate": "first"}, "`aggregate` first: is not known; use last or mean"),
        ({"locations": (2, 1)}, "`locations` 2,1: dram looks at one place after another"),
        ({"backbone": "resnet5"}, "backbone resnet5"),
    ],
)
def test_impossible_options(options, words):
    with pytest.raises(ConfigError, match=words):
        tiny(**options)

"""RAM: the contract of every classifier that looks, and its own arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from foveal.draws import Draws
from foveal.errors import ConfigError
from foveal.glimpse.ram import RAM
from foveal.images.views import TensorViews
from foveal.models import create_classifier
from foveal.prediction.cost import count_cost
from foveal.testing import CountingViews, GlimpseClassifierTester


class TestRAM(GlimpseClassifierTester):
    locations = ((), (1,), (2,), (7,))
    additive = False

    def make(self) -> RAM:
        return RAM(num_classes=3, base_size=6, patches=2, locations=(2,))

    def test_glimpses_equal_the_looks_taken(self, model):
        """Of each glimpse its finest patch is told; the others have the same middle and twice the side of the one
        before."""
        views = CountingViews(self.images())
        out = self.run(model, views)
        finest = [(g.image, g.box) for g in out.glimpses]
        coarse = []
        for image, (y0, x0, y1, x1) in finest:
            h, w = (y1 - y0) / 2, (x1 - x0) / 2
            coarse.append((image, (y0 - h, x0 - w, y1 + h, x1 + w)))
        assert sorted(views.looks) == sorted(finest + coarse)
        assert all(g.probability == 1 and g.contribution is None for g in out.glimpses)


def test_parameters_by_hand():
    model = create_classifier("ram", num_classes=10)
    see, place, join = 3 * 3 * 12 * 12 * 128 + 128, 2 * 128 + 128, 256 * 256 + 256
    core, policy, baseline, classes = 512 * 256 + 256, 256 * 2 + 2, 256 + 1, 256 * 10 + 10
    cost = count_cost(model, 500)
    assert cost.parameters == see + place + join + core + policy + baseline + classes
    # Six places after the middle; the last state needs no further place.
    looks = 3 * 3 * 12 * 12 * 128 + 2 * 128 + 256 * 256 + 512 * 256
    assert cost.macs == 7 * looks + 6 * (256 * 2 + 256) + 256 * 10 == count_cost(model, 90_000).macs


def test_patches_are_at_whole_pixels_and_double():
    model = RAM(region=0.2, patches=3)
    boxes = model.patch_boxes(np.array([[100, 100], [40, 60]]), np.array([[[0.0, 0.0]], [[-1.0, 1.0]]]))
    assert boxes[0, 0].tolist() == [[40, 40, 60, 60], [30, 30, 70, 70], [10, 10, 90, 90]]
    assert boxes[1, 0].tolist() == [[-6, 54, 6, 66], [-12, 48, 12, 72], [-24, 36, 24, 84]]


def test_what_it_sees_is_the_crop_and_its_surroundings():
    images = torch.rand(1, 3, 60, 60)
    model = RAM(base_size=12, patches=2, region=0.2, num_classes=2)
    seen = []
    model.what_seen[0].register_forward_hook(lambda _m, given, _out: seen.append(given[0]))
    model(images, locations=())
    crop, around = (
        images[..., 24:36, 24:36],
        images[..., 18:42, 18:42].unflatten(2, (12, 2)).unflatten(4, (12, 2)).mean((3, 5)),
    )
    torch.testing.assert_close(seen[0][:, 0], crop * 2 - 1)
    torch.testing.assert_close(seen[0][:, 1], around * 2 - 1)


def test_the_policy_changes_nothing_but_itself():
    torch.manual_seed(0)
    model = RAM(num_classes=3, base_size=6, patches=1)
    (tried,) = model.rollouts(torch.rand(4, 3, 40, 40), ("sampled",), Draws(0, 0, np.arange(4)))
    (tried.log_probability.sum() + tried.values.sum()).backward()
    touched = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert touched == {"where.emit.weight", "where.emit.bias", "baseline.weight", "baseline.bias"}


def test_rollouts_side_by_side_are_rollouts_alone():
    torch.manual_seed(0)
    model, images, draws = (
        RAM(num_classes=3, base_size=6, patches=2).eval(),
        torch.rand(2, 3, 40, 40),
        Draws(0, 0, np.arange(2)),
    )
    with torch.inference_mode():
        for policy, tried in zip(
            ("greedy", "centre"), model.rollouts(images, ("greedy", "centre"), draws), strict=True
        ):
            torch.testing.assert_close(tried.logits, model.rollouts(images, (policy,), draws)[0].logits)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"region": 1.5}, "`region` 1.5"),
        ({"patches": 0}, "`patches` 0"),
        ({"locations": (2, 1)}, "`locations` 2,1.*one number"),
    ],
)
def test_impossible_options(options, words):
    with pytest.raises(ConfigError, match=words):
        RAM(**options)


def test_policies_it_does_not_know():
    with pytest.raises(ConfigError, match="`policy` exhaustive: ram does not know it"):
        RAM(num_classes=2)(TensorViews(torch.rand(1, 3, 20, 20)), policy="exhaustive")

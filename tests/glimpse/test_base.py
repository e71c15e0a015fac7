"""Dense networks as classifiers that look once, and the boxes of first looks."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch

from foveal.errors import ConfigError
from foveal.glimpse.base import WholeImage, enclosing_square, per_band, whole_image
from foveal.glimpse.saccader import ReleasedCentre
from foveal.images.views import TensorViews
from foveal.policies import CellPolicy, Centre, Exhaustive, Whole
from foveal.testing import GlimpseClassifierTester


class TestWholeImage(GlimpseClassifierTester):
    def make(self):
        return WholeImage(timm.create_model("test_resnet", num_classes=5), 64)

    def test_is_the_network_on_the_normalised_image(self, model):
        images = self.images(2, (64, 64))
        card = model.network.pretrained_cfg
        mean, std = (torch.tensor(card[k])[:, None, None] for k in ("mean", "std"))
        with torch.inference_mode():
            torch.testing.assert_close(model(images).logits, model.network((images - mean) / std))


def test_first_boxes():
    assert enclosing_square(np.array([[100, 300], [8, 5]])).tolist() == [[-100, 0, 200, 300], [0, -2, 8, 6]]
    assert whole_image(np.array([[100, 300]])).tolist() == [[0, 0, 100, 300]]


def test_pixels_outside_are_zero_after_normalisation():
    model = WholeImage(timm.create_model("test_resnet", num_classes=5), 64)
    views = TensorViews(torch.rand(1, 3, 32, 64))
    seen = model.see(views, np.array([0]), enclosing_square(views.sizes))
    assert torch.equal(seen[:, :, :16], torch.zeros(1, 3, 16, 64)) and seen[:, :, 32].abs().min() > 0


def test_per_band():
    assert per_band((0.2, 0.4, 0.6), 3) == (0.2, 0.4, 0.6)
    assert np.allclose(per_band((0.2, 0.4, 0.6), 5), [0.4] * 5)


def test_parts_that_a_network_names_are_groups_of_their_own():
    model = WholeImage(timm.create_model("stn_cnn"))
    groups = {name: {id(p) for p in parameters} for name, parameters in model.parameter_groups().items()}
    assert groups["localisation"] == {id(p) for p in model.network.transformer.parameters()}
    assert groups["head"] == {id(p) for p in model.network.fc.parameters()}
    assert sum(map(len, groups.values())) == len(list(model.parameters())) == len(set().union(*groups.values()))


# ---- the template: budgets and policies


class Counting(WholeImage):
    """Levels and cells are given."""

    most_levels, most_cells = None, None

    def __init__(self, levels: int | None, cells: int | None):
        super().__init__(torch.nn.Identity(), 8)
        self.most_levels, self.most_cells = levels, cells


@pytest.mark.parametrize(
    ("levels", "cells", "asked", "taken"),
    [
        (None, 9, (2, 1), (2, 1)),
        (None, 9, (2, 0, 5), (2,)),
        (None, 9, (0,), ()),
        (None, 9, (10,), "each level can look at 1 to 9 of its cells"),
        (None, 9, (-1,), "each level"),
        (1, 25, (25,), (25,)),
        (1, 25, (26,), "this model has one grid, of 25 cells; give one number, 0 to 25"),
        (1, 25, (2, 1), "`locations` 2,1: this model has one grid"),
        (1, None, (99,), (99,)),
        (1, None, (2, 1), "Counting looks at one place after another; give one number"),
        (0, None, (), ()),
        (0, None, (2,), "`locations` 2: this model looks once, at the whole image; leave `locations` out"),
    ],
)
def test_budgets(levels, cells, asked, taken):
    model = Counting(levels, cells)
    if isinstance(taken, tuple):
        assert model.resolve_locations(asked) == taken
    else:
        with pytest.raises(ConfigError, match=taken):
            model.resolve_locations(asked)


def test_locations_are_whole_numbers():
    model = Counting(None, 9)
    assert model.resolve_locations(2) == model.resolve_locations(np.int64(2)) == (2,)
    assert model.resolve_locations(np.array([2, 1])) == model.resolve_locations(iter([2, 1])) == (2, 1)
    assert model.resolve_locations(0) == ()
    for asked in (1.7, (1.7,), "2,1", True, [None]):
        with pytest.raises(ConfigError, match=r"^`locations` .*: are not whole numbers; give looks per level, such as"):
            model.resolve_locations(asked)


def test_a_policy_may_take_every_cell_of_the_levels_asked_for():
    assert Counting(None, 9).resolve_locations((2, 1), Exhaustive()) == (9, 9)
    assert Counting(None, 9).resolve_locations((), Exhaustive()) == ()


def test_policies_are_known_by_their_kind():
    class Unnamed(CellPolicy):
        name = "nobody has registered it"

    model = Counting(None, 9)
    assert model._find_policies(["centre", Unnamed()]) == [Centre(), Unnamed()]
    for other in (ReleasedCentre(), "centre_released", "whole", "nobody has registered it"):
        with pytest.raises(ConfigError, match="Counting does not know it; use one of greedy"):
            model.check_policies([other])
    assert model._find_policies(["whole"], ["whole"]) == [Whole()]

"""Dense networks as classifiers that look once, and the boxes of first looks."""

from __future__ import annotations

import numpy as np
import timm
import torch
from foveal.glimpse.base import WholeImage, enclosing_square, per_band, whole_image
from foveal.images.views import TensorViews
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

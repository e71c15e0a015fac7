"""Shapes, counts and receptive field of the norm-free BagNet (TNet spec 4.1)."""

from __future__ import annotations

import pytest
import timm
import torch

import foveal.backbones  # noqa: F401


@pytest.mark.parametrize("side, expected", [(77, [75, 38, 19, 9, 7]), (224, [222, 111, 56, 27, 25])])
def test_sides(side, expected):
    net = timm.create_model("bagnet77_tnet", num_classes=0).to("meta")
    x, sides = net.stem(torch.zeros(1, 3, side, side, device="meta")), []
    sides.append(x.shape[-1])
    for stage in net.stages:
        x = stage(x)
        sides.append(x.shape[-1])
    assert sides == expected and x.shape[1] == 2048


def test_parameters_of_the_dense_baseline():
    assert sum(p.numel() for p in timm.create_model("bagnet77_tnet").parameters()) == 20_546_664


def test_a_feature_sees_77_pixels_and_no_more():
    net = timm.create_model("test_bagnet_tnet", num_classes=0).double().eval()
    x = torch.randn(1, 3, 224, 224, dtype=torch.float64, requires_grad=True)
    net.forward_features(x)[0, :, 12, 12].sum().backward()
    rows = x.grad[0].abs().sum((0, 2)).nonzero()
    assert rows.max() - rows.min() + 1 == 77


def test_there_is_no_normalisation_and_every_convolution_has_a_bias():
    net = timm.create_model("bagnet77_tnet")
    assert not list(net.buffers())
    assert all(m.bias is not None for m in net.modules() if isinstance(m, torch.nn.Conv2d))

"""All registered backbones: all checks for small ones, checks on the meta device for large ones."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.models import model_entrypoint

import foveal.backbones  # noqa: F401
from foveal.testing import BackboneTester

OURS = sorted(name for name in timm.list_models() if model_entrypoint(name).__module__.startswith("foveal."))
SMALL = sorted({name for name in OURS if name.startswith("test_")} | {"plain_convnet_32", "stn_cnn"})


def test_there_are_some():
    assert set(SMALL) < set(OURS) and {"densenet_bc_100_12_cifar", "bagnet77_tnet"} < set(OURS)


@pytest.mark.parametrize("name", SMALL, scope="class")
class TestSmall(BackboneTester):
    @pytest.fixture(autouse=True)
    def named(self, name):
        self.name = name


@pytest.mark.parametrize("name", sorted(set(OURS) - set(SMALL)))
def test_shapes_of_the_large(name):
    with torch.device("meta"):
        net = timm.create_model(name, num_classes=7, in_chans=2).eval()
        x = torch.empty(1, 2, *net.pretrained_cfg["input_size"][1:])
        features = net.forward_features(x)
        assert features.shape[1] == getattr(net, "feature_channels", net.num_features)
        assert net.num_features == net.forward_head(features, pre_logits=True).shape[1]
        assert net.forward_head(features).shape == (1, 7)
        net.reset_classifier(0)
        assert net.forward_head(features).shape == (1, net.num_features)

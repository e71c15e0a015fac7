"""The small plain network: pooling."""

from __future__ import annotations

import pytest
import timm
import torch

import foveal.backbones  # noqa: F401  registers the networks


@pytest.mark.parametrize("pool", ["avg", "max"])
def test_pooling(pool):
    torch.manual_seed(0)
    network = timm.create_model("plain_convnet_32", num_classes=4, global_pool=pool).eval()
    features = network.forward_features(torch.rand(2, 3, 48, 32)).flatten(2)
    pooled = features.max(2).values if pool == "max" else features.mean(2)
    torch.testing.assert_close(network.forward_head(features.unflatten(2, (6, 4)), pre_logits=True), pooled)


def test_unknown_pooling():
    with pytest.raises(ValueError, match="'avg' or 'max'"):
        timm.create_model("plain_convnet_32", global_pool="gem")

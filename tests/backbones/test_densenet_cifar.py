"""Counts of DenseNet-BC, and outputs compared with another library."""

from __future__ import annotations

import pytest
import timm
import torch

import foveal.backbones  # noqa: F401
from foveal.prediction.cost import count_cost

COUNTS = {
    "densenet_bc_100_12_cifar": {10: 769_162, 100: 800_032},
    "densenet_bc_250_24_cifar": {10: 15_324_406, 100: 15_480_556},
    "densenet_bc_190_40_cifar": {10: 25_624_430, 100: 25_821_620},
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameters(name):
    with torch.device("meta"):
        for classes, expected in COUNTS[name].items():
            assert sum(p.numel() for p in timm.create_model(name, num_classes=classes).parameters()) == expected


def test_macs():
    depth, growth = 100, 12
    channels, side, macs = 2 * growth, 32, 32 * 32 * 9 * 3 * 2 * growth
    for block in range(3):
        for _ in range((depth - 4) // 6):
            macs += side * side * (channels * 4 * growth + 9 * 4 * growth * growth)
            channels += growth
        if block < 2:
            macs += side * side * channels * (channels // 2)
            channels, side = channels // 2, side // 2
    assert count_cost(timm.create_model("densenet_bc_100_12_cifar"), 32).macs == macs + channels * 10 == 287_929_692


@pytest.mark.parametrize("classes", [10, 100])
def test_logits_of_pytorchcv(classes):
    models = pytest.importorskip("pytorchcv.model_provider")
    ours = timm.create_model("densenet_bc_100_12_cifar", num_classes=classes).eval()
    theirs = models.get_model(f"densenet100_k12_bc_cifar{classes}").eval()
    weights = ours.state_dict()
    # Both networks have the same tensors in the same order.
    assert [v.shape for v in theirs.state_dict().values()] == [v.shape for v in weights.values()]
    theirs.load_state_dict(dict(zip(theirs.state_dict(), weights.values(), strict=True)))
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(ours(x), theirs(x))


def test_features_have_the_sizes_they_say():
    net = timm.create_model("test_densenet_cifar").eval()
    x = torch.rand(1, 3, 32, 32)
    last, taps = net.forward_intermediates(x)
    assert [(t.shape[1], 32 // t.shape[2]) for t in taps] == [(i["num_chs"], i["reduction"]) for i in net.feature_info]
    torch.testing.assert_close(last, net.forward_features(x))


def test_a_depth_that_does_not_exist():
    with pytest.raises(ValueError, match="depth 41"):
        timm.create_model("densenet_bc_100_12_cifar", depth=41)

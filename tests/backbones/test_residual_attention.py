"""The Residual Attention Network: counts, masks, and the output for a mask of zero."""

from __future__ import annotations

import pytest
import timm
import torch
from torch.nn import functional as F

from foveal.backbones.residual_attention import AttentionModule, ResidualAttentionNet, ResidualUnit
from foveal.layers import attention_maps


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("modules, published", [(2, 1.9), (6, 5.1)])
def test_published_parameters(modules, published):
    with torch.device("meta"):
        assert round(parameters(ResidualAttentionNet(100, modules=modules)) / 1e6, 1) == published


def test_parameters():
    counts = {name: parameters(timm.create_model(name)) for name in ("attention56_cifar", "attention92_cifar")}
    assert counts == {"attention56_cifar": 1_030_362, "attention92_cifar": 1_841_242}


@pytest.mark.parametrize("name, m", [("attention56_cifar", 1), ("attention92_cifar", 2)])
def test_depth_of_the_trunk(name, m):
    net = timm.create_model(name)
    trunk = 0
    for stage in net.stages:
        for block in stage:
            parts = [block] if isinstance(block, ResidualUnit) else [*block.before, *block.trunk, *block.after]
            trunk += sum(3 for part in parts if isinstance(part, ResidualUnit))
    assert trunk + 2 == 36 * m + 20 == int(name[9:11])


@pytest.mark.parametrize("depth, size", [(1, (7, 9)), (2, (16, 16)), (3, (33, 32))])
def test_a_module_is_pytorchcvs(depth, size):
    theirs = pytest.importorskip("pytorchcv.models.resattnet").AttBlock(32, 32, depth, [1, 2, 1])
    module = AttentionModule(32, depth)
    assert parameters(module) == parameters(theirs)
    assert module(torch.randn(2, 32, *size)).shape == (2, 32, *size)


@pytest.mark.parametrize("mask", ["mixed", "channel", "spatial"])
def test_masks_against_loops(mask):
    x = torch.randn(2, 8, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = torch.empty_like(x)
    for b in range(2):
        for c in range(8):
            for i in range(3):
                for j in range(5):
                    value, own = x[b, c, i, j], x[b, c]
                    expected[b, c, i, j] = {
                        "mixed": 1 / (1 + torch.exp(-value)),
                        "channel": value / x[b, :, i, j].square().sum().sqrt(),
                        "spatial": 1 / (1 + torch.exp(-(value - own.mean()) / (own.var(correction=0) + 1e-5).sqrt())),
                    }[mask]
    torch.testing.assert_close(AttentionModule(8, 1, mask).attend(x), expected)


@pytest.mark.parametrize("mask", ["mixed", "channel", "spatial"])
def test_a_module_multiplies_its_trunk_by_one_plus_the_mask_it_shows(mask):
    torch.manual_seed(0)
    module = AttentionModule(16, 2, mask).double().eval()
    x, seen = torch.randn(2, 16, 8, 8, dtype=torch.float64), {}
    module.trunk.register_forward_hook(lambda _, args, out: seen.update(trunk=out))
    module.after.register_forward_pre_hook(lambda _, args: seen.update(product=args[0]))
    with attention_maps(module) as maps, torch.no_grad():
        module(x)
    ratio = seen["product"] / seen["trunk"] - 1
    torch.testing.assert_close(maps[""], ratio.mean(1, keepdim=True).float())
    low, high = (-1, 1) if mask == "channel" else (0, 1)
    assert ratio.min() >= low and ratio.max() <= high and ratio.std() > 1e-3


def test_without_a_mask_the_trunk_passes(monkeypatch):
    module = AttentionModule(16, 1).eval()
    monkeypatch.setattr(module, "attend", torch.zeros_like)
    x = torch.randn(2, 16, 8, 8)
    torch.testing.assert_close(module(x), module.after(module.trunk(module.before(x))), rtol=0, atol=0)


def test_a_unit_is_pre_activation():
    torch.manual_seed(0)
    unit = ResidualUnit(16, 32, stride=2).eval()
    x = torch.randn(2, 16, 9, 9)
    active = F.relu(x / (1 + 1e-5) ** 0.5)
    y = F.conv2d(active, unit.conv1.weight)
    for conv, padding, stride in ((unit.conv2[2], 1, 2), (unit.conv3[2], 0, 1)):
        y = F.conv2d(F.relu(y / (1 + 1e-5) ** 0.5), conv.weight, padding=padding, stride=stride)
    torch.testing.assert_close(unit(x), y + F.conv2d(active, unit.shortcut.weight, stride=2))


def test_an_unknown_mask():
    with pytest.raises(ValueError, match="mixed or channel or spatial"):
        timm.create_model("test_attention_cifar", mask="l2")

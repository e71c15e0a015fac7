"""Attention augmentation against loops over its definition, other libraries and explicit attention."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from timm.layers.bottleneck_attn import PosEmbedRel
from torch import nn

from foveal.layers import AttentionAugmentation, ExplicitAttention, attention_maps
from foveal.layers.augmented import relative_to_absolute


def by_loops(layer, x):
    """The definition, one logit at a time, on the grid of ``x``."""
    _, _, height, width = x.shape
    d = layer.key_channels // layer.heads
    q, k, v = layer.qkv(x).split([layer.key_channels, layer.key_channels, layer.value_channels], 1)
    out, maps = torch.zeros_like(v), torch.zeros(len(x), layer.heads, height, width, height, width, dtype=x.dtype)
    places = [(i, j) for i in range(height) for j in range(width)]
    for b in range(len(x)):
        for h in range(layer.heads):
            keys, values = slice(h * d, (h + 1) * d), layer.value_channels // layer.heads
            table = h if len(layer.rel_height) > 1 else 0
            for y, x_ in places:
                query = q[b, keys, y, x_]
                for to_y, to_x in places:
                    rel = layer.rel_height[table, to_y - y + height - 1] + layer.rel_width[table, to_x - x_ + width - 1]
                    maps[b, h, y, x_, to_y, to_x] = (query @ k[b, keys, to_y, to_x] + query @ rel) / math.sqrt(d)
                maps[b, h, y, x_] = maps[b, h, y, x_].flatten().softmax(0).reshape(height, width)
                for c in range(h * values, (h + 1) * values):
                    out[b, c, y, x_] = (maps[b, h, y, x_] * v[b, c]).sum()
    return layer.project(out), maps


def small(size=(3, 5), seed=0, **options):
    torch.manual_seed(seed)
    return AttentionAugmentation(
        6, 8, size=size, **{"ratio": 0.5, "heads": 2, "min_key_channels": 3, **options}
    ).double()


@pytest.mark.parametrize("shared", [True, False])
@torch.no_grad()
def test_it_is_its_definition(shared):
    layer, x = small(shared_positions=shared), torch.randn(2, 6, 3, 5, dtype=torch.float64)
    wanted, maps = by_loops(layer, x)
    with attention_maps(layer) as kept:
        y = layer(x)
    torch.testing.assert_close(y[:, 4:], wanted, rtol=0, atol=1e-13)
    assert torch.equal(y[:, :4], layer.conv(x))
    torch.testing.assert_close(kept[""], maps[:, :, 1, 2].float(), rtol=0, atol=1e-6)
    torch.testing.assert_close(kept[""].sum((2, 3)), torch.ones(2, 2))
    assert layer.attention_map is None


def test_the_fused_form_is_the_explicit_one_forward_and_backward():
    layer, x = small(size=(7, 4)), torch.randn(2, 6, 7, 4, dtype=torch.float64, requires_grad=True)

    def explicit():
        q, k, v = (
            p.reshape(2, 2, -1, 28).mT for p in layer.qkv(x).split([layer.key_channels, layer.key_channels, 4], 1)
        )
        logits = (q @ k.mT + layer.relative_logits(q, (7, 4))) / math.sqrt(layer.key_channels // 2)
        attended = layer.project((logits.softmax(-1) @ v).mT.reshape(2, 4, 7, 4))
        return torch.cat([layer.conv(x), attended], 1)

    weight = torch.randn(2, 8, 7, 4, dtype=torch.float64)
    results = []
    for y in (layer(x), explicit()):
        results.append([y, *torch.autograd.grad((y * weight).sum(), [x, *layer.parameters()])])
    assert len(results[0]) == 7
    for fused, wanted in zip(*results, strict=True):
        torch.testing.assert_close(fused, wanted, rtol=1e-11, atol=1e-12)


def test_relative_logits_are_indexed_by_offset():
    rel = torch.randn(2, 3, 4, 7)
    wanted = torch.stack([torch.stack([rel[..., a, b - a + 3] for b in range(4)], -1) for a in range(4)], -2)
    assert torch.equal(relative_to_absolute(rel), wanted)


@torch.no_grad()
def test_relative_logits_are_timms():
    layer, q = small(heads=1), torch.randn(2, 1, 15, 3, dtype=torch.float64)
    theirs = PosEmbedRel((3, 5), dim_head=3, scale=1.0).double()
    theirs.height_rel.copy_(layer.rel_height[0])
    theirs.width_rel.copy_(layer.rel_width[0])
    torch.testing.assert_close(layer.relative_logits(q, (3, 5))[:, 0], theirs(q[:, 0]), rtol=0, atol=1e-14)


@pytest.mark.parametrize("stride", [1, 2])
@torch.no_grad()
def test_with_a_gaussian_for_logits_it_is_explicit_attention(stride):
    # Without queries and keys, and with logits that depend on distance only.
    size = (6, 10)
    layer, explicit = (
        small(size=size, stride=stride),
        ExplicitAttention(6, 8, stride=stride, ratio=0.5, coord="pixel", radius_init=1.7, attn_stride="pool").double(),
    )
    height, width = size[0] // stride, size[1] // stride
    at = torch.cartesian_prod(torch.arange(height), torch.arange(width)).double()
    logits = -(at[:, None] - at).square().sum(-1) / 2 * explicit.radius.inverse(torch.float64).square()
    layer.relative_logits = lambda q, grid: logits.expand(*q.shape[:2], -1, -1)
    layer.qkv.weight[: 2 * layer.key_channels] = 0
    explicit.value.weight.copy_(layer.qkv.weight[2 * layer.key_channels :])
    explicit.project.load_state_dict(layer.project.state_dict())
    explicit.conv.load_state_dict(layer.conv.state_dict())
    x = torch.randn(2, 6, *size, dtype=torch.float64)
    torch.testing.assert_close(layer(x), explicit(x), rtol=0, atol=1e-13)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("size", [(8, 12), (7, 9), (1, 5)])
def test_shapes_are_those_of_the_convolution(size, stride, pool):
    torch.manual_seed(0)
    x = torch.randn(2, 16, *size)
    conv = nn.Conv2d(16, 32, 3, stride, 1)
    for ratio, parts in ((0.5, True), (0.0, False), (1.0, True)):
        layer = AttentionAugmentation(
            16, 32, stride=stride, size=size, ratio=ratio, heads=4, min_key_channels=3, pool=pool
        )
        assert layer(x).shape == conv(x).shape
        assert hasattr(layer, "qkv") is parts and (layer.conv is None) is (ratio == 1)
        grid = [-(-side // (stride * (1 + pool))) for side in size]
        assert not parts or [layer.rel_height.shape[1], layer.rel_width.shape[1]] == [2 * side - 1 for side in grid]
        layer(x).sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


@torch.no_grad()
def test_stride_averages_first_and_pool_attends_on_a_coarser_grid():
    torch.manual_seed(0)
    x = torch.randn(2, 6, 9, 12, dtype=torch.float64)
    strided = small(size=(9, 12), stride=2)
    cells = torch.stack(
        [
            torch.stack([x[:, :, y : y + 2, c : c + 2].mean((2, 3)) for c in range(0, 12, 2)], -1)
            for y in range(0, 9, 2)
        ],
        -2,
    )
    torch.testing.assert_close(strided(x)[:, 4:], by_loops(strided, cells)[0], rtol=0, atol=1e-13)
    pooled = small(size=(9, 12), pool=True)
    near = [
        [x[:, :, max(0, y - 1) : y + 2, max(0, c - 1) : c + 2].mean((2, 3)) for c in range(0, 12, 2)]
        for y in range(0, 9, 2)
    ]  # padding is not counted
    coarse = by_loops(pooled, torch.stack([torch.stack(row, -1) for row in near], -2))[0]
    wanted = F.interpolate(coarse, (9, 12), mode="bilinear")
    torch.testing.assert_close(pooled(x)[:, 4:], wanted, rtol=0, atol=1e-13)


@torch.no_grad()
def test_other_grids_resample_the_tables():
    layer = small(size=(4, 6))
    with torch.no_grad():
        for table, side in ((layer.rel_height, 4), (layer.rel_width, 6)):
            # On a grid twice as fine, queries are half way between the old ones, so a linear table keeps its slope per
            # pixel.
            table.copy_(torch.arange(-side + 1.0, side)[None, :, None].expand_as(table))
    q = torch.ones(1, 2, 8 * 9, 3, dtype=torch.float64)
    logits = layer.relative_logits(q, (8, 9)).reshape(2, 8, 9, 8, 9)
    along_y, along_x = logits[0, 4, 4, :, 4] / 3, logits[0, 4, 4, 4, :] / 3
    torch.testing.assert_close(along_y[1:], (torch.arange(1, 8) - 4) * 7 / 15 + torch.zeros(7, dtype=torch.float64))
    torch.testing.assert_close(along_x, (torch.arange(9) - 4) * 11 / 17 + torch.zeros(9, dtype=torch.float64))
    for size in ((4, 6), (5, 3), (1, 1), (11, 2)):
        assert layer(torch.randn(1, 6, *size, dtype=torch.float64)).shape == (1, 8, *size)
    alone = layer.relative_logits(torch.ones(1, 2, 1, 3, dtype=torch.float64), (1, 1))
    assert alone.abs().max() < 1e-14  # the offset 0


def test_channels_and_parameters_as_expected():
    for width, grid, values in ((128, 28, 8), (256, 14, 24), (512, 7, 48)):
        layer = AttentionAugmentation(width, width, size=(grid, grid))
        assert (layer.value_channels, layer.key_channels) == (values, 160)
        count = 9 * width * (width - values) + width * (320 + values) + values**2 + (4 * grid - 2) * 20
        assert sum(p.numel() for p in layer.parameters()) == count
    own = AttentionAugmentation(128, 128, size=(28, 28), shared_positions=False)
    shared = AttentionAugmentation(128, 128, size=(28, 28))
    assert sum(p.numel() for p in own.parameters()) - sum(p.numel() for p in shared.parameters()) == 7 * 110 * 20


def test_autocast_and_channels_last():
    torch.manual_seed(0)
    layer = AttentionAugmentation(32, 64, size=(8, 8), ratio=0.25)
    x = torch.randn(2, 32, 8, 8)
    exact = layer(x)
    torch.testing.assert_close(
        layer.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last)), exact
    )
    with torch.autocast("cpu", torch.bfloat16):
        rough = layer(x)
    rough.float().sum().backward()
    assert (rough.float() - exact).norm() < 0.02 * exact.norm()
    assert layer.rel_width.grad.dtype == torch.float32


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 2},
        {"ratio": 1.5},
        {"heads": 0},
        {"size": (0, 4)},
        {"key_ratio": 0.0, "min_key_channels": 0},
        {"ratio": 0.01},
    ],
)
def test_impossible_options_are_one_sentence(options):
    with pytest.raises(ValueError, match=r"; .*\."):
        AttentionAugmentation(8, 8, **{"size": (4, 4), **options})


@pytest.mark.slow
@torch.no_grad()
def test_it_compiles():
    layer, x = small(stride=2, size=(6, 10), pool=True).float(), torch.randn(2, 6, 6, 10)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True)(x), layer(x))

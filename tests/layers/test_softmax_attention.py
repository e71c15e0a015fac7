"""Spatial softmax attention against loops, closed forms and the initial identity."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from foveal.layers import SpatialSoftmaxAttention, attention_maps, captions

MAPS = {"group": 4, "one": 1, "channel": 8, "mean": 1}


def attention(channels: int = 8, **options) -> SpatialSoftmaxAttention:
    torch.manual_seed(0)
    return SpatialSoftmaxAttention(channels, **{"init": "random", **options}).double()


def features(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("maps", MAPS)
@pytest.mark.parametrize("mode", ["bounded", "scaled", "faithful", "gate", "residual", "sigmoid", "pool"])
def test_shapes_and_maps(maps, mode):
    layer, x = attention(maps=maps, mode=mode), features(2, 8, 5, 7)
    with attention_maps(layer) as kept:
        y = layer(x)
    assert y.shape == ((2, 8) if mode == "pool" else x.shape)
    assert kept[""].shape == (2, MAPS[maps], 5, 7)
    assert torch.allclose(layer.weights(layer.logits(x)).sum((2, 3)), torch.ones((), dtype=torch.float64), atol=1e-14)
    y.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize("maps", MAPS)
def test_a_map_serves_its_channels(maps):
    layer, x = attention(maps=maps, mode="faithful", temperature=0.5), features(2, 8, 3, 4)
    y, z = layer(x), layer.conv(x)
    k = z.shape[1]
    for b in range(2):
        weights = [(z[b, i] / 0.5).exp() / (z[b, i] / 0.5).exp().sum() for i in range(k)]
        for c in range(8):
            weight = sum(weights) / k if maps == "mean" else weights[c * k // 8]
            assert torch.allclose(y[b, c], x[b, c] * weight, atol=1e-14)


def test_modes_in_terms_of_the_weights():
    x = features(2, 8, 3, 5)
    faithful = attention(maps="one", mode="faithful")
    a = faithful(x) / x
    expected = {
        "scaled": 15 * a,
        "residual": 1 + a,
        "gate": 1 + 0.3 * (15 * a - 1),
        "sigmoid": faithful.conv(x).sigmoid(),
    }
    for mode, multiplier in expected.items():
        assert torch.allclose(
            attention(maps="one", mode=mode, **({"gate": 0.3} if mode == "gate" else {}))(x), x * multiplier, atol=1e-7
        )
    assert torch.allclose(attention(maps="one", mode="scaled", clip=1.01)(x), x * (15 * a).clamp(max=1.01), atol=1e-12)
    assert torch.allclose(attention(maps="one", mode="pool")(x), (x * a).sum((2, 3)), atol=1e-12)


@pytest.mark.parametrize("c", [None, 0.3, 2])
def test_bounded_weights_against_the_formula(c):
    layer, x = attention(maps="one", bound=c, temperature=0.5), features(2, 8, 3, 5)
    c = c or 1
    e = (c * torch.tanh(layer.conv(x) / (0.5 * c))).exp()
    assert torch.allclose(layer(x), x * 15 * e / e.sum((2, 3), keepdim=True), atol=1e-14)
    nn.init.normal_(layer.conv.weight, std=100)
    weights = layer.multiplier(layer.logits(x))
    assert weights.min() >= math.exp(-2 * c) and weights.max() <= math.exp(2 * c)
    assert torch.allclose(weights.amax((2, 3)) / weights.amin((2, 3)), torch.tensor(math.exp(2 * c)).double())
    assert torch.allclose(weights.mean((2, 3)), torch.ones(()).double())


def test_a_softmax_over_channels_compares_maps():
    layer, x = attention(softmax_axis="channel", mode="scaled"), features(2, 8, 3, 5)
    expected = 4 * layer.conv(x).softmax(1).repeat_interleave(2, 1)
    assert torch.allclose(layer(x), x * expected, atol=1e-12)


def test_temperatures():
    x = features(1, 16, 4, 4)
    assert attention(16, temperature="sqrt").tau == 4
    assert torch.equal(attention(16, temperature="learnable")(x), attention(16)(x))
    assert attention(16, temperature="learnable").no_weight_decay == ("log_temperature",)
    assert attention(16, mode="gate").no_weight_decay == ("gate",)


@pytest.mark.parametrize(
    "options", [{}, {"maps": "mean"}, {"mode": "gate"}, {"attn_input": "uniform"}, {"softmax_axis": "channel"}]
)
def test_it_starts_as_the_identity(options):
    layer = SpatialSoftmaxAttention(16, **options)
    x = torch.randn(2, 16, 8, 16)
    assert torch.equal(layer(x), x)
    x = torch.randn(2, 16, 7, 13)
    assert torch.allclose(layer(x), x, rtol=1e-6)
    assert not options.get("attn_input") or not list(layer.parameters())


def test_a_pool_starts_as_the_mean():
    x = torch.randn(2, 16, 8, 8)
    assert torch.allclose(SpatialSoftmaxAttention(16, mode="pool")(x), x.mean((2, 3)), atol=1e-6)


def test_a_random_gate_starts_as_the_identity_and_learns():
    layer, x = attention(mode="gate"), features(2, 8, 4, 4)
    y = layer(x)
    assert torch.equal(y, x)
    y.square().sum().backward()
    assert layer.gate.grad.abs() > 0


def test_fixed_maps_do_not_see_the_image():
    layer = attention(attn_input="fixed", size=(4, 4))
    x = features(3, 8, 4, 4)
    with attention_maps(layer) as kept:
        y = layer(x)
    assert kept[""].shape == (3, 4, 4, 4)
    ratio = y / x
    assert torch.allclose(ratio[0], ratio[2], atol=1e-12) and ratio[0].std() > 0.1
    assert layer(features(1, 8, 6, 8)).shape == (1, 8, 6, 8)
    assert torch.equal(SpatialSoftmaxAttention(8, attn_input="fixed", size=(4, 4))(x.float()), x.float())


def test_gradient_of_the_logits_against_the_closed_form():
    # dL/dZ_p = A_p (g_p - sum_q A_q g_q), g_p the sum over the map's channels of F_p dL/dY_p
    layer, x, upstream = attention(mode="faithful"), features(2, 8, 3, 5), features(2, 8, 3, 5).flip(0)
    z = layer.conv(x).detach().requires_grad_()
    y = x * layer.multiplier(z).repeat_interleave(2, 1)
    y.backward(upstream)
    a = layer.weights(z)
    g = (x * upstream).unflatten(1, (4, 2)).sum(2)
    expected = a * (g - (a * g).sum((2, 3), keepdim=True))
    assert torch.allclose(z.grad, expected, atol=1e-14)


def test_the_softmax_is_in_float32_under_autocast():
    layer, x = attention(mode="scaled").float(), torch.randn(2, 8, 32, 32)
    with torch.autocast("cpu", torch.bfloat16), attention_maps(layer) as kept:
        y = layer(x.bfloat16())
        z = layer.conv(x.bfloat16())
    assert z.dtype == y.dtype == torch.bfloat16
    expected = 1024 * z.float().flatten(2).softmax(2).unflatten(2, (32, 32))
    assert torch.equal(kept[""], expected)


def test_layout_of_memory_is_kept():
    x = torch.randn(2, 16, 8, 8).to(memory_format=torch.channels_last)
    layer = SpatialSoftmaxAttention(16, init="random").to(memory_format=torch.channels_last)
    y = layer(x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(y, layer(x.contiguous()), atol=1e-6)


def test_what_it_says_of_its_map():
    layer = SpatialSoftmaxAttention(4, maps="one", kernel_size=1, mode="scaled")
    assert captions(layer) == {}
    nn.init.ones_(layer.conv.weight)
    x = torch.zeros(1, 4, 2, 2)
    x[0, 0, 0, 0] = math.log(5)  # weights 5/8, 1/8, 1/8, 1/8
    with attention_maps(layer):
        layer(x)
    entropy = -(5 / 8 * math.log(5 / 8) + 3 / 8 * math.log(1 / 8)) / math.log(4)
    assert captions(layer) == {"": f"entropy {entropy:.3f}, peak 2.5 x the mean"}


@pytest.mark.parametrize("mode", ["residual", "gate", "scaled", "bounded"])
def test_figures_are_of_the_weights_not_of_what_is_made_of_them(mode):
    layer, x = attention(mode=mode, init="random"), features(2, 8, 4, 4)
    with attention_maps(layer):
        layer(x)
    share = layer.weights(layer.logits(x)).flatten(2)
    entropy = -(share * share.log()).sum(2).mean() / math.log(16)
    torch.testing.assert_close(
        layer.figures(), {"entropy": entropy, "peak": 16 * share.max()}, check_dtype=False, rtol=1e-5, atol=0
    )


def test_half_precision_holds_maps_of_many_positions():
    """n A can be 67,600 with 260 x 260 positions, above the largest float16, to which it is clipped."""
    layer = attention(maps="one", mode="scaled").half()
    x = torch.zeros(1, 8, 260, 260, dtype=torch.float16)
    x[0, :, 7, 9] = 1
    nn.init.constant_(layer.conv.weight, 20)
    with torch.no_grad():
        y = layer(x)
    assert y.isfinite().all() and y[0, 0, 7, 9] > 1000


@pytest.mark.parametrize(
    "options, said",
    [
        ({"count": 3}, "cannot share 16 channels"),
        ({"mode": "gate", "gate": 0.0}, "never gets a gradient"),
        ({"attn_input": "fixed"}, "give size"),
        ({"softmax_axis": "channel", "maps": "one"}, "needs several maps"),
        ({"mode": "faithful", "clip": 4}, "with mode='scaled'"),
        ({"temperature": 0.0}, "positive number"),
        ({"kernel_size": 2}, "odd"),
        ({"kernel_size": -1}, "odd number from 1"),
        ({"mode": "gate", "attn_input": "uniform"}, "uniform maps never"),
        ({"mode": "soft"}, "scaled, faithful"),
        ({"gate": 0.5}, "has no gate"),
        ({"mode": "sigmoid", "temperature": "learnable"}, "has no softmax"),
        ({"mode": "sigmoid", "softmax_axis": "channel"}, "has no softmax"),
        ({"maps": "one", "count": 2}, "maps='one' has 1 map, not 2"),
        ({"temperature": "warm"}, "temperature=warm is not valid"),
        ({"mode": "scaled", "clip": "x"}, "`clip` x: does not fit; give a number"),
        ({"clip": 4}, "with mode='scaled'"),
        ({"bound": 0}, "positive number"),
        ({"mode": "faithful", "bound": 1}, "with mode='bounded'"),
    ],
)
def test_what_cannot_be(options, said):
    with pytest.raises(ValueError, match=said):
        SpatialSoftmaxAttention(16, **options)

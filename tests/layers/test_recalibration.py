"""CBAM, Gather-Excite and non-local blocks against loops and other libraries."""

from __future__ import annotations

import pytest
import timm.layers
import torch
from timm.layers.cbam import CbamModule
from torch import nn

from foveal.layers import CBAM, GatherExcite, NonLocal, attention_maps


def features(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_cbam_is_the_authors_module():
    theirs = pytest.importorskip("pytorchcv.models.cbamresnet").CbamBlock(32).double()
    ours, x = CBAM(32).double(), features(2, 32, 6, 5)
    assert count(ours) == count(theirs)
    state = dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True))
    state["mlp.0.weight"], state["mlp.2.weight"] = (
        state["mlp.0.weight"][..., None, None],
        state["mlp.2.weight"][..., None, None],
    )
    state["conv.weight"] = state["conv.weight"].flip(1)  # pytorchcv concatenates the maximum first
    ours.load_state_dict(state)
    assert torch.allclose(ours(x), theirs(x), atol=1e-12)


def test_cbam_without_biases_is_timms():
    theirs, ours, x = CbamModule(32).double(), CBAM(32, biases=False).double(), features(2, 32, 6, 5)
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    with attention_maps(ours) as maps:
        assert torch.allclose(ours(x), theirs(x), atol=1e-12)
    assert maps[""].shape == (2, 1, 6, 5) and maps[""].min() > 0 and maps[""].max() < 1


def test_maps_of_an_outer_context_outlast_an_inner_one():
    first, second, x = CBAM(8).double(), CBAM(8).double(), features(2, 8, 6, 5)
    net = nn.Sequential(first, second)
    with attention_maps(net) as outer:
        net(x)
        with attention_maps(net) as nothing:
            pass
        with attention_maps(net[1:]) as inner:
            second(2 * x)
        before = second.attention_map
        with attention_maps(net) as whole:
            net(x)
        first(3 * x)
    with attention_maps(net) as expected:
        second(2 * x)
        first(3 * x)
    assert nothing == {} and set(inner) == {"1"} and set(whole) == set(outer) == {"0", "1"}
    assert torch.equal(before, inner["1"]) and torch.equal(before, expected["1"])
    assert torch.equal(outer["0"], expected["0"]) and torch.equal(outer["1"], whole["1"])
    assert first.attention_map is None and not first._records_map


def test_cbam_counts():
    # r = 16: hidden 1, 2, 4 for the widths of CIFAR nets; 98 of the 7x7 kernel
    for channels, hidden in ((16, 1), (32, 2), (64, 4), (8, 1)):
        weights, biases = 2 * channels * hidden, channels + hidden
        assert count(CBAM(channels)) == weights + biases + 98 + 2
        assert count(CBAM(channels, biases=False, spatial_norm=False)) == weights + 98


@pytest.mark.parametrize("extent", [2, 4, 8])
def test_gathering_by_pooling_against_loops(extent):
    x = features(1, 3, 9, 12)
    expected = torch.empty_like(x)
    for c in range(3):
        for i in range(9):
            for j in range(12):
                # nearest cell of the pooled grid; cell (a, b) averages positions less than an extent from (a e, b e)
                rows, columns = -(-9 // extent), -(-12 // extent)
                a, b = i * rows // 9 * extent, j * columns // 12 * extent
                window = x[0, c, max(0, a - extent + 1) : a + extent, max(0, b - extent + 1) : b + extent]
                expected[0, c, i, j] = x[0, c, i, j] * window.mean().sigmoid()
    layer = GatherExcite(3, extent)
    with attention_maps(layer) as maps:
        assert torch.allclose(layer(x), expected, atol=1e-14)
    assert maps[""].shape == (1, 1, 9, 12) and count(layer) == 0


def test_gathering_everything():
    x = features(2, 16, 4, 4)
    assert torch.allclose(GatherExcite(16)(x), x * x.mean((2, 3), keepdim=True).sigmoid(), atol=1e-14)
    assert torch.allclose(GatherExcite(16)(x), timm.layers.GatherExcite(16, use_mlp=False)(x), atol=1e-14)


def test_timms_gather_excite_is_still_of_no_use_here():
    with pytest.raises(TypeError):
        timm.layers.GatherExcite(16)


def test_learned_gathering():
    assert count(GatherExcite(16, 4, "theta")) == 2 * (9 * 16 + 2 * 16)
    assert count(GatherExcite(16, 8, "theta_plus")) == 3 * (9 * 16 + 2 * 16) + 16 + 1 + 16 + 16
    assert count(GatherExcite(16, 0, "theta", size=(5, 4))) == 20 * 16 + 2 * 16
    x = features(2, 16, 5, 4)
    for options in ({"extent": 4}, {"extent": 0, "size": (5, 4)}):
        for params in ("theta", "theta_plus"):
            layer = GatherExcite(16, params=params, **options).double()
            layer(x).square().sum().backward()
            assert layer(x).shape == x.shape and all(p.grad is not None for p in layer.parameters())


def test_learned_global_gathering_is_one_number_a_channel():
    layer, x = GatherExcite(16, 0, "theta", size=(5, 4)).double().eval(), features(2, 16, 5, 4)
    gathered = (x * layer.gather[0].weight[:, 0]).sum((2, 3), keepdim=True) / (1 + 1e-5) ** 0.5
    assert torch.allclose(layer(x), x * gathered.sigmoid(), atol=1e-12)


def test_squeeze_and_excitation_is_gathering_everything_with_its_bottleneck():
    # theta-plus with an averaging global kernel is squeeze-and-excitation
    x = features(2, 32, 4, 4)
    ge, se = (
        GatherExcite(32, 0, "theta_plus", size=(4, 4)).double().eval(),
        timm.layers.SEModule(32, rd_divisor=1).double(),
    )
    nn.init.constant_(ge.gather[0].weight, (1 + 1e-5) ** 0.5 / 16)
    ge.mlp.load_state_dict(
        {f"{i}.{key}": value for i, fc in ((0, se.fc1), (2, se.fc2)) for key, value in fc.state_dict().items()}
    )
    assert torch.allclose(ge(x), se(x), atol=1e-12)


@pytest.mark.parametrize("mode", ["embedded", "gaussian", "dot", "concatenation"])
@pytest.mark.parametrize("sub_sample", [False, True])
def test_non_local_against_loops(mode, sub_sample):
    block, x = NonLocal(8, mode, sub_sample).double().eval(), features(2, 8, 4, 6)
    assert torch.equal(block(x), x)
    nn.init.normal_(block.bn.weight)
    theta, phi, g = (x, x, block.g(x)) if mode == "gaussian" else (block.theta(x), block.phi(x), block.g(x))
    if sub_sample:
        phi, g = nn.functional.max_pool2d(phi, 2), nn.functional.max_pool2d(g, 2)
    theta, keys, values = theta.flatten(2), phi.flatten(2), g.flatten(2)
    n, y = keys.shape[2], torch.zeros(2, 4, 24, dtype=torch.float64)
    central = {}
    for b in range(2):
        for i in range(24):
            if mode == "concatenation":
                w = block.w.weight[0]
                f = torch.stack([(w @ torch.cat([theta[b, :, i], keys[b, :, j]])).relu() for j in range(n)]) / n
            else:
                f = torch.stack([theta[b, :, i] @ keys[b, :, j] for j in range(n)])
                f = f / n if mode == "dot" else f.exp() / f.exp().sum()
            y[b, :, i] = sum(f[j] * values[b, :, j] for j in range(n))
            central[b] = f if i == 2 * 6 + 3 else central.get(b)
    expected = x + block.bn(block.out(y.unflatten(2, (4, 6))))
    with attention_maps(block) as maps:
        assert torch.allclose(block(x), expected, atol=1e-12)
    assert torch.allclose(maps[""][1].flatten(), central[1].float(), atol=1e-6) and maps[""].shape[2:] == phi.shape[2:]


def test_non_local_is_the_identity_at_the_start_of_training_and_learns():
    block, x = NonLocal(16), torch.randn(2, 16, 8, 8)
    y = block(x)
    assert torch.equal(y, x)
    y.square().sum().backward()
    assert block.bn.weight.grad.abs().max() > 0
    with torch.autocast("cpu", torch.bfloat16):
        for mode in ("embedded", "concatenation"):
            assert NonLocal(16, mode)(x).isfinite().all()


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda: GatherExcite(16, 3), "use 2, 4 or 8"),
        (lambda: GatherExcite(16, 0, "theta"), "give size"),
        (lambda: GatherExcite(16, 2, "phi"), "theta_plus"),
        (lambda: GatherExcite(16, 2, "theta_plus", reduction=0), "1 or more"),
        (lambda: CBAM(16, 0), "1 or more"),
        (lambda: NonLocal(16, "mean"), "embedded"),
    ],
)
def test_what_cannot_be(make, said):
    with pytest.raises(ValueError, match=said):
        make()

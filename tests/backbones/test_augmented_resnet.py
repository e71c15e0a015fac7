"""ExpAtt- and AA-ResNets: expected counts through timm and the command line; weights."""

from __future__ import annotations

import json

import pytest
import timm
import torch
from safetensors.torch import save_file

import foveal
from foveal.cli import main
from foveal.errors import ConfigError
from foveal.layers import AttentionAugmentation, ExplicitAttention, attention_maps
from foveal.models import create_model
from foveal.prediction import count_cost

TINY = ("test_expatt_resnet", "test_aa_resnet")


def meta(name, **options):
    with torch.device("meta"):
        return timm.create_model(name, **options)


def parameters(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    "name, options, expected",
    [
        ("expatt_resnet34", {}, 20_962_966),
        ("expatt_resnet34", {"basic_conv": 2}, 20_826_774),
        ("expatt_resnet50", {}, 24_586_134),
        ("expatt_resnet101", {}, 42_718_504),
        ("expatt_resnet152", {}, 57_656_118),
        ("aa_resnet34", {}, 20_749_552),
        ("aa_resnet50", {}, 25_813_872),
        ("aa_resnet101", {}, 45_391_208),
        ("aa_resnet152", {}, 61_622_496),
        # Half of the tables of stage 2 are missing: 4 or 8 blocks of 56 rows of 20.
        ("aa_resnet50", {"aa_pool_stage2": True}, 25_813_872 - 4 * 56 * 20),
        ("aa_resnet152", {"aa_pool_stage2": True}, 61_622_496 - 8 * 56 * 20),
    ],
)
def test_parameters(name, options, expected):
    assert parameters(meta(name, **options)) == expected


@pytest.mark.parametrize(
    "name, options, gflops, tolerance",
    [
        ("expatt_resnet34", {"impl": "dense"}, 7.17, 0.005),
        ("expatt_resnet34", {"impl": "separable"}, 7.11, 0.005),
        ("expatt_resnet50", {"impl": "dense"}, 7.99, 0.005),
        ("expatt_resnet50", {"impl": "separable"}, 7.93, 0.005),
        ("expatt_resnet101", {"impl": "dense"}, 15.11, 0.005),
        ("expatt_resnet101", {"impl": "separable"}, 15.02, 0.005),
        ("expatt_resnet152", {"impl": "dense"}, 22.29, 0.005),
        ("expatt_resnet152", {"impl": "separable"}, 22.12, 0.005),
        ("aa_resnet152", {}, 26.4, 0.05),
        ("aa_resnet152", {"aa_pool_stage2": True}, 24.3, 0.05),
        ("aa_resnet101", {"aa_pool_stage2": True}, 16.4, 0.05),
        ("aa_resnet50", {"aa_pool_stage2": True}, 8.4, 0.05),
    ],
)
def test_flops(name, options, gflops, tolerance):
    stride = {"attn_stride": "pool"} if "expatt" in name else {}
    assert 2 * count_cost(meta(name, **options, **stride), 224).macs / 1e9 == pytest.approx(gflops, abs=tolerance)


@pytest.mark.parametrize(
    "argv, parameters, gflops",
    [
        (["expatt_resnet34", "--set", "attn_stride=pool", "--set", "impl=dense"], 20_962_966, 7.17),
        (
            ["expatt_resnet34", "--set", "basic_conv=2", "--set", "attn_stride=pool", "--set", "impl=separable"],
            20_826_774,
            7.08,
        ),
        (["aa_resnet50", "--set", "aa_pool_stage2=true"], 25_809_392, 8.43),
    ],
)
def test_the_command_counts_the_same(argv, parameters, gflops, capsys):
    assert main(["cost", *argv, "--image-size", "224", "--json"]) == 0
    line = json.loads(capsys.readouterr().out)
    assert line["parameters"] == parameters
    assert 2 * line["macs"] / 1e9 == pytest.approx(gflops, abs=0.005)


def test_the_layers_are_where_the_specification_wants_them():
    model = meta("aa_resnet50")
    found = {name: layer for name, layer in model.named_modules() if isinstance(layer, AttentionAugmentation)}
    assert list(found) == [
        f"layer{stage}.{block}.conv2" for stage, blocks in ((2, 4), (3, 6), (4, 3)) for block in range(blocks)
    ]
    grids = {
        name: tuple((t.shape[1] + 1) // 2 for t in (layer.rel_height, layer.rel_width)) for name, layer in found.items()
    }
    assert {grids[f"layer2.{b}.conv2"] for b in range(4)} == {(28, 28)}
    assert {grids[f"layer4.{b}.conv2"] for b in range(3)} == {(7, 7)}
    pooled = meta("aa_resnet50", aa_pool_stage2=True)
    assert [pooled.get_submodule(name).pool for name in found] == [True] * 4 + [False] * 9


def test_options_reach_layer_and_network():
    model = timm.create_model(
        "test_expatt_resnet", heads=2, radius_init=0.25, radius_scope="global", drop_rate=0.5, in_chans=1
    )
    layers = [m for m in model.modules() if isinstance(m, ExplicitAttention)]
    assert len(layers) == 3 and len({id(layer.radius) for layer in layers}) == 1
    torch.testing.assert_close(layers[0].radius(), torch.tensor([0.25]))
    assert model.drop_rate == 0.5 and model.conv1.in_channels == 1
    one = timm.create_model("test_aa_resnet", stages=(4,), shared_positions=False)
    assert [name for name, m in one.named_modules() if isinstance(m, AttentionAugmentation)] == ["layer4.0.conv1"]
    assert one.layer4[0].conv1.rel_width.shape == (2, 3, 6)
    with pytest.raises(ConfigError, match="no option 'ratios'"):
        create_model("test_aa_resnet", ratios=0.5)


@pytest.mark.parametrize("name", TINY)
def test_it_is_a_timm_model(name):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5)
    for size in ((64, 64), (48, 80)):
        x = torch.randn(2, 3, *size)
        features = model.forward_features(x)
        assert features.shape == (
            2,
            model.num_features,
            size[0] // 32 + size[0] % 32 // 16,
            size[1] // 32 + size[1] % 32 // 16,
        )
        assert model.forward_head(features, pre_logits=True).shape == (2, model.num_features)
        model(x).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    with attention_maps(model) as maps:
        model(x)
    assert list(maps) == ["layer2.0.conv1", "layer3.0.conv1", "layer4.0.conv1"]
    for of in maps.values():
        torch.testing.assert_close(of.sum((2, 3)), torch.ones(of.shape[:2]))
    model.reset_classifier(3)
    assert model.get_classifier().out_features == model.num_classes == 3
    taps = timm.create_model(name, features_only=True)
    assert [f.shape[1] for f in taps(torch.randn(1, 3, 64, 64))] == taps.feature_info.channels()


@pytest.mark.parametrize("name", TINY)
def test_weights_load_from_a_file_and_from_nowhere_else(name, tmp_path):
    model = create_model(name)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    again = create_model(name, pretrained=tmp_path / "w.safetensors").eval()
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(again(x), model.eval()(x))
    with pytest.raises(ConfigError, match=r"pretrained weights do not load .*pretrained=FILE"):
        create_model(name, pretrained=True)


def test_weights_of_explicit_attention_serve_any_size():
    """The state fits all image sizes, because no parameter depends on the size."""
    model = foveal.create_model("test_expatt_resnet", num_classes=4)
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    for size in (64, 96):
        assert model(torch.randn(2, 3, size, size)).shape == (2, 4)
    assert {name: value.shape for name, value in model.state_dict().items()} == shapes
    tables = {
        tuple(v.shape)
        for k, v in create_model("test_aa_resnet", img_size=128).state_dict().items()
        if "rel_height" in k
    }
    assert tables == {(1, 31, 4), (1, 15, 4), (1, 7, 6)}

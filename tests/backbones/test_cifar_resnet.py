"""ResNets for 32 px: published counts, networks of pytorchcv, public weights, and attention in residual branches."""

from __future__ import annotations

import inspect

import pytest
import timm
import torch
from torch import nn

import foveal
from foveal.backbones import CifarResNet
from foveal.errors import ConfigError
from foveal.layers import CBAM, AttentionLayer, GatherExcite, NonLocal, SpatialSoftmaxAttention, attention_maps
from foveal.prediction.cost import count_cost

SOFTMAX = {"attention": "softmax"}
PLAIN = 1_727_962


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def tiny(**options) -> CifarResNet:
    torch.manual_seed(0)
    return CifarResNet(8, **{"widths": (16, 16, 32), **options})


@pytest.mark.parametrize(
    "expected, options",
    [
        (1_730_714, {"shortcut": "B"}),
        (1_733_812, {"num_classes": 100}),
        (1_730_522, {"preact": True, "shortcut": "B"}),
        (1_803_506, {**SOFTMAX, "shortcut": "B"}),
        (1_800_754 + 5_850, {**SOFTMAX, "num_classes": 100}),
        (PLAIN + 2_070, {**SOFTMAX, "attention_options": {"maps": "one", "kernel_size": 1}}),
        (PLAIN + 18_198, {**SOFTMAX, "attention_options": {"maps": "one"}}),
        (PLAIN + 8_280, {**SOFTMAX, "attention_options": {"kernel_size": 1}}),
        (PLAIN + 72_792, {**SOFTMAX, "attention_options": {"maps": "mean"}}),
        (PLAIN + 145_584, {**SOFTMAX, "attention_options": {"count": 8}}),
        (PLAIN + 98_784, {**SOFTMAX, "attention_options": {"maps": "channel", "kernel_size": 1}}),
        (PLAIN + 872_928, {**SOFTMAX, "attention_options": {"maps": "channel"}}),
        (PLAIN, {**SOFTMAX, "attention_options": {"attn_input": "uniform"}}),
        (PLAIN + 18 * 4 * (32**2 + 16**2 + 8**2), {**SOFTMAX, "attention_options": {"attn_input": "fixed"}}),
        (PLAIN + 4_044, {**SOFTMAX, "place": "stage"}),
        (PLAIN + 64 * 36 + 4, {**SOFTMAX, "place": "last"}),
        (PLAIN, {**SOFTMAX, "place": "none"}),
        (1_748_050, {"attention": "se", "num_classes": 100}),
        (1_744_952, {"attention": "se", "shortcut": "B"}),
        (1_740_058, {"attention": "se", "attention_options": {"bias": False}}),
        (1_762_666, {"attention": "se", "attention_options": {"rd_divisor": 8}}),
        (1_753_450, {"attention": "cbam", "num_classes": 100}),
        (1_745_350, {"attention": "cbam", "attention_options": {"biases": False, "spatial_norm": False}}),
        (1_745_458, {"attention": "cbam", "attention_options": {"biases": False}}),
        (PLAIN - 640 + 4 * 640, {"head": "flatten", "img_size": 8}),  # 2 x 2 positions of 64 channels
        (PLAIN + 64 * 36 + 4, {"head": "attnpool"}),
    ],
)
def test_parameters_of_depth_110(expected, options):
    with torch.device("meta"):
        assert parameters(CifarResNet(110, **options)) == expected


@pytest.mark.parametrize(
    "name, expected",
    [
        ("resnet110_cifar", PLAIN),
        ("preact_resnet110_cifar", PLAIN),
        ("attn_resnet110_cifar", 1_800_754),
        ("se_resnet110_cifar", 1_742_200),
        ("cbam_resnet110_cifar", 1_747_600),
        ("ge_resnet110_cifar", PLAIN),
        # two blocks: C / 2 wide, biases, batch norm
        ("nl_resnet110_cifar", PLAIN + sum(2 * c * c + 3 * c // 2 + c + 2 * c for c in (32, 64))),
    ],
)
def test_parameters_by_name(name, expected):
    with torch.device("meta"):
        assert parameters(timm.create_model(name)) == expected


def test_macs_of_depth_110():
    plain, attention = (count_cost(timm.create_model(f"{prefix}resnet110_cifar"), 32).macs for prefix in ("", "attn_"))
    assert round(plain / 1e6) == 253
    # n k^2 C K per module, and attention in the first block of a stage is on the output grid
    assert attention - plain == 18 * sum(n * 9 * c * 4 for n, c in ((1024, 16), (256, 32), (64, 64)))
    assert round((attention - plain) / 1e6, 1) == 18.6


@pytest.mark.parametrize(
    "kind, options", [("resnet", {}), ("preresnet", {"preact": True}), ("seresnet", {"attention": "se"})]
)
def test_shortcut_b_is_pytorchcvs_network(kind, options):
    provider = pytest.importorskip("pytorchcv.model_provider")
    with torch.device("meta"):
        for classes in (10, 100):
            theirs = provider.get_model(f"{kind}110_cifar{classes}", num_classes=classes)
            assert parameters(CifarResNet(110, classes, shortcut="B", **options)) == parameters(theirs)
    torch.manual_seed(0)
    theirs = provider.get_model(f"{kind}20_cifar10").double().eval()
    ours = CifarResNet(20, shortcut="B", **options).double().eval()
    values = zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True)
    ours.load_state_dict({name: value.reshape(own.shape) for (name, own), value in values})
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    assert torch.allclose(ours(x), theirs(x), atol=1e-10)


def test_every_name_is_registered_once_and_says_what_it_is():
    for depth in (20, 32, 44, 56, 110):
        for prefix in ("", "attn_", "se_", "cbam_", "ge_", "nl_", "expatt_", "aa_"):
            build = timm.model_entrypoint(f"{prefix}resnet{depth}_cifar")
            assert (
                build.__doc__.startswith(f"ResNet-{depth} for 32 px")
                and build.__name__ == f"{prefix}resnet{depth}_cifar"
            )
    with torch.device("meta"):
        assert len(timm.create_model("attn_resnet56_cifar").layer3) == 9
        assert timm.create_model("preact_resnet20_cifar").preact


@pytest.mark.parametrize("preact", [False, True])
@pytest.mark.parametrize("attention", [None, "softmax", "se", "cbam", "ge", "nl"])
@pytest.mark.parametrize("place", ["block", "stage", "middle", "last"])
def test_it_trains_wherever_attention_is(preact, attention, place):
    if attention is None and place != "block":
        pytest.skip("there is nothing to place")
    model = tiny(preact=preact, attention=attention, place=place).to(memory_format=torch.channels_last)
    y = model(torch.randn(4, 3, 17, 20))
    assert y.shape == (4, 10) and (y < 0).any()  # logits
    nn.functional.cross_entropy(y, torch.arange(4)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    layers = [
        m
        for m in model.modules()
        if isinstance(m, (SpatialSoftmaxAttention, timm.layers.SEModule, CBAM, GatherExcite, NonLocal))
    ]
    assert len(layers) == (0 if attention is None else {"block": 3, "stage": 3, "middle": 2, "last": 1}[place])


@pytest.mark.parametrize("conv", ["expatt", "aa"])
def test_other_convolutions(conv):
    plain, model = tiny(widths=(16, 32, 64)), tiny(conv=conv, widths=(16, 32, 64), img_size=16)
    inside = [name for name, module in model.named_modules() if isinstance(module, AttentionLayer)]
    assert inside == [f"layer{i}.0.conv1" for i in (1, 2, 3)]
    assert [model.get_submodule(name).value_channels for name in inside] == [1, 3, 6]  # a tenth
    assert parameters(model) != parameters(plain)
    x = torch.randn(2, 3, 16, 16)
    with attention_maps(model) as maps:
        model(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters()) and maps.keys() == set(inside)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"attention_options": {"clip": 4}}, "need attention"),
        ({"place": "stage"}, "need attention"),
        ({"conv_options": {"ratio": 0.5}}, "need conv"),
        ({"conv": "expatt", "conv_options": {"ratios": 0.5}}, "has no option 'ratios'"),
        ({"conv": "aa", "img_size": 0}, "img_size=0 is not possible"),
    ],
)
def test_options_that_nothing_takes_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        tiny(**options)


def test_dropout_before_the_classifier():
    model, x = tiny(drop_rate=0.5), torch.randn(2, 3, 16, 16)
    pooled = model.train().forward_head(model.forward_features(x), pre_logits=True)
    assert 0.2 < (pooled == 0).float().mean() < 0.8
    assert not (model.eval().forward_head(model.forward_features(x), pre_logits=True) == 0).all()
    plain = tiny()
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(plain.eval()(x), model(x))


def test_names_tell_what_they_take():
    parameters = inspect.signature(timm.model_entrypoint("nl_resnet110_cifar")).parameters
    assert (parameters["place"].default, parameters["depth"].default, parameters["shortcut"].default) == (
        "middle",
        110,
        "A",
    )


def test_which_blocks_a_non_local_block_follows():
    with torch.device("meta"):
        model = CifarResNet(110, attention="nl", place="middle")
    assert [name for name, m in model.named_modules() if isinstance(m, NonLocal)] == [
        "layer2.8.after",
        "layer3.8.after",
    ]


def test_shortcut_a_has_zeros_around_every_other_pixel():
    model = tiny(widths=(16, 20, 32))
    x = torch.randn(1, 16, 5, 5)
    y = model.layer2[0].shortcut(x)
    assert y.shape == (1, 20, 3, 3) and torch.equal(y[:, 2:18], x[:, :, ::2, ::2])
    assert not y[:, :2].any() and not y[:, 18:].any()


@pytest.mark.parametrize(
    "options", [{}, {"attn_input": "uniform"}, {"attn_input": "fixed"}, {"mode": "gate", "init": "random"}]
)
@pytest.mark.parametrize("preact", [False, True])
def test_attention_starts_as_the_plain_network(options, preact):
    plain, ours = tiny(preact=preact), tiny(preact=preact, attention="softmax", attention_options=options)
    ours.load_state_dict(plain.state_dict(), strict=False)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(ours(x), plain(x))
    x = torch.randn(2, 3, 40, 36)
    assert torch.allclose(ours(x), plain(x), atol=1e-4)


def branches(mode: str | None) -> torch.Tensor:
    """Standard deviation of the first residual branch of each stage at initialisation."""
    model = tiny(
        widths=(16, 32, 64), **({} if mode is None else {"attention": "softmax", "attention_options": {"mode": mode}})
    )
    seen = []
    for stage in (model.layer1, model.layer2, model.layer3):
        stage[0].attention.register_forward_hook(lambda _, __, y: seen.append(y.std()))
    with torch.no_grad():
        model(torch.randn(32, 3, 32, 32))
    return torch.stack(seen)


def test_faithful_attention_removes_the_branch_and_scaled_does_not():
    plain, n = branches(None), torch.tensor([32**2, 16**2, 8**2])
    assert branches("faithful")[0] <= 1e-2 * plain[0]
    assert torch.allclose(branches("faithful"), plain / n, rtol=1e-2)
    assert torch.allclose(branches("scaled"), plain, rtol=1e-4)
    assert torch.allclose(branches("residual"), plain * (1 + 1 / n), rtol=1e-2)


def test_a_hundred_steps_in_bfloat16_stay_finite():
    model = tiny(attention="bounded").to(memory_format=torch.channels_last)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    x, y = torch.randn(16, 3, 16, 16), torch.arange(16) % 10
    for _ in range(100):
        with torch.autocast("cpu", torch.bfloat16):
            loss = nn.functional.cross_entropy(model(x), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert all(p.isfinite().all() for p in model.parameters()) and loss < 0.5
    assert model.layer1[0].attention.conv.weight.abs().max() > 0


@pytest.mark.parametrize("head, features", [("gap", 32), ("attnpool", 32), ("flatten", 32 * 8 * 8)])
def test_heads(head, features):
    model, x = tiny(head=head), torch.randn(2, 3, 32, 32)
    pooled = model.forward_head(model.forward_features(x), pre_logits=True)
    assert pooled.shape == (2, features) and model.num_features == features
    assert torch.allclose(model(x), model.get_classifier()(pooled))
    if head == "attnpool":
        assert torch.allclose(pooled, model.forward_features(x).mean((2, 3)), atol=1e-5)
    model.reset_classifier(3)
    assert model(x).shape == (2, 3)


def public(model: nn.Module) -> dict[str, torch.Tensor]:
    """A state with the keys of public weights."""
    return {
        f"module.{'linear' + key[2:] if key.startswith('fc.') else key}": value
        for key, value in model.state_dict().items()
    }


def test_public_weights_load(tmp_path):
    torch.manual_seed(0)
    theirs = CifarResNet(20).eval()
    torch.save({"state_dict": public(theirs), "best_prec1": 91.7}, tmp_path / "resnet20.th")
    ours = foveal.create_model("resnet20_cifar", pretrained=str(tmp_path / "resnet20.th")).eval()
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(ours(x), theirs(x))
    assert (
        foveal.create_model("resnet20_cifar", num_classes=3, pretrained=tmp_path / "resnet20.th").fc.out_features == 3
    )
    with pytest.raises(ConfigError, match="resnet32_cifar"):
        foveal.create_model("resnet32_cifar", pretrained=tmp_path / "resnet20.th")
    with pytest.raises(ConfigError, match="give a local file"):
        foveal.create_model("resnet20_cifar", pretrained=True)


def test_public_weights_have_these_names():
    names = list(public(CifarResNet(20)))
    assert names[:3] == ["module.conv1.weight", "module.bn1.weight", "module.bn1.bias"]
    assert {"module.layer1.0.conv1.weight", "module.layer3.2.bn2.running_var", "module.linear.weight"} <= set(names)
    assert not [name for name in names if "shortcut" in name]


@pytest.mark.parametrize(
    "options, said",
    [
        ({"depth": 21}, "6 n"),
        ({"shortcut": "C"}, "A, B"),
        ({"attention": "bam"}, "bounded, softmax, se"),
        ({"attention": "softmax", "attention_options": {"moed": "scaled"}}, "has no option 'moed'"),
        ({"place": "start"}, "block, stage"),
        ({"conv": "lambda"}, "expatt"),
        ({"head": "max"}, "gap"),
    ],
)
def test_what_cannot_be(options, said):
    with pytest.raises(ValueError, match=said):
        CifarResNet(**options)

"""Replacing convolutions: parameters and FLOPs of networks against expected counts, and errors."""

from functools import partial

import pytest
import timm
import torch
from timm.layers import BlurPool2d
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from foveal.layers import ExplicitAttention, NarrowedConv, augment_convs, share_radius, stage_of

NARROW = {"channels": (16, 32, 64, 128), "num_classes": 5}


def expatt(depth: int, basic_conv=1, **options) -> nn.Module:
    with torch.device("meta"):
        return augment_convs(
            timm.create_model(f"resnet{depth}"), partial(ExplicitAttention, ratio=0.1, **options), basic_conv=basic_conv
        ).eval()


@pytest.mark.parametrize("stride", [1, 2])
def test_the_narrowed_convolution_stands_for_a_convolution(stride):
    """A tenth of 64 channels is 6. The k x k convolution keeps 58 / 64 of its parameters, and 58 x 64 are added."""
    plain, layer = nn.Conv2d(32, 64, 3, stride, 1, bias=False), NarrowedConv(32, 64, 3, stride, ratio=0.1)
    x = torch.randn(2, 32, 9, 12)
    assert layer(x).shape == plain(x).shape
    assert parameters(layer) == 9 * 32 * 58 + 58 * 64
    assert parameters(NarrowedConv(32, 64, ratio=0)) == parameters(plain) + 64 * 64
    net = augment_convs(timm.create_model("resnet18", **NARROW), NarrowedConv)
    assert next(name for name, module in net.named_modules() if isinstance(module, NarrowedConv)) == "layer2.0.conv1"
    assert net(torch.randn(1, 3, 64, 64)).shape == (1, 5)


@pytest.mark.parametrize("ratio", [-0.1, 1, 2])
def test_a_narrowed_convolution_has_channels(ratio):
    with pytest.raises(ValueError, match=f"ratio={ratio} leaves no channels, or more than there are"):
        NarrowedConv(8, 8, ratio=ratio)


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def augmented(model: nn.Module) -> dict[str, ExplicitAttention]:
    return {name: module for name, module in model.named_modules() if isinstance(module, ExplicitAttention)}


@pytest.fixture
def narrow() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("resnet18", **NARROW)


@pytest.mark.parametrize(
    "depth, basic_conv, count, dense, separable",
    [
        (34, 1, 20_962_966, 7.17, 7.11),
        (34, 2, 20_826_774, 7.14, 7.08),
        (50, 1, 24_586_134, 7.99, 7.93),
        (101, 1, 42_718_504, 15.11, 15.02),
        (152, 1, 57_656_118, 22.29, 22.12),
    ],
)
def test_parameters_and_flops_as_expected(depth, basic_conv, count, dense, separable):
    for impl, expected in (("dense", dense), ("separable", separable)):
        model = expatt(depth, basic_conv, impl=impl, attn_stride="pool")
        assert parameters(model) == count
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.empty(1, 3, 224, 224, device="meta"))
        assert counter.get_total_flops() / 1e9 == pytest.approx(expected, abs=0.005)


@pytest.mark.parametrize(
    "options, stages, count",
    [
        ({}, (1, 2, 3, 4), 57.647),
        ({"output_projection": False}, (2, 3, 4), 57.625),
        ({"heads": 8}, (2, 3, 4), 57.796),
    ],
)
def test_variants_at_depth_152(options, stages, count):
    with torch.device("meta"):
        model = augment_convs(timm.create_model("resnet152"), partial(ExplicitAttention, ratio=0.1, **options), stages)
    assert parameters(share_radius(model, "module")) / 1e6 == pytest.approx(count, abs=5.1e-4)


def test_which_convolutions(narrow):
    assert augment_convs(narrow, partial(ExplicitAttention, ratio=0.25)) is narrow
    assert list(augmented(narrow)) == [f"layer{stage}.{block}.conv1" for stage in (2, 3, 4) for block in (0, 1)]
    both = augment_convs(timm.create_model("resnet18", **NARROW), ExplicitAttention, stages=(3,), basic_conv="both")
    assert list(augmented(both)) == [f"layer3.{block}.conv{conv}" for block in (0, 1) for conv in (1, 2)]
    assert list(augmented(expatt(50))) == [
        f"layer{s}.{b}.conv2" for s, blocks in ((2, 4), (3, 6), (4, 3)) for b in range(blocks)
    ]


def test_an_augmented_network_is_trained_and_still_a_timm_model(narrow):
    model = augment_convs(narrow, partial(ExplicitAttention, ratio=0.25)).to(memory_format=torch.channels_last)
    out = model(torch.randn(2, 3, 70, 50).to(memory_format=torch.channels_last))
    assert out.shape == (2, 5)
    out.square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    model.reset_classifier(0)
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 128)


def test_new_layers_are_where_the_old_ones_were(narrow):
    narrow.to(torch.bfloat16).eval()
    for name, layer in augmented(augment_convs(narrow, ExplicitAttention)).items():
        assert not layer.training and {p.dtype for p in layer.parameters()} == {torch.bfloat16}, name
    meta = augment_convs(timm.create_model("resnet18", **NARROW).to("meta"), ExplicitAttention)
    assert all(p.is_meta for p in meta.parameters())


def test_layers_that_are_tied_to_a_grid_are_told_its_size(narrow):
    told = {}

    class Tied(nn.Conv2d):
        def __init__(self, in_channels, out_channels, kernel_size=3, stride=1, *, size, share=0.5):
            super().__init__(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False)
            told[in_channels, out_channels, stride] = size

    model = augment_convs(narrow, partial(Tied, share=0.1), stages=(1, 2, 3), image_size=(96, 64))
    first = {(64, 16, 1): (24, 16), (16, 16, 1): (24, 16)}
    assert told == first | {(16, 32, 2): (24, 16), (32, 32, 1): (12, 8), (32, 64, 2): (12, 8), (64, 64, 1): (6, 4)}
    assert model(torch.randn(1, 3, 96, 64)).shape == (1, 5) and narrow.training
    told.clear()
    augment_convs(timm.create_model("resnet18", **NARROW), Tied, stages=(4,))  # 224 px, from the model
    assert told == {(64, 128, 2): (14, 14), (128, 128, 1): (7, 7)}
    told.clear()
    augment_convs(timm.create_model("resnet18", **NARROW), partial(Tied, size=(3, 3)), stages=(4,))
    assert set(told.values()) == {(3, 3)}
    unknown = timm.create_model("resnet18", **NARROW)
    del unknown.pretrained_cfg
    with pytest.raises(ValueError, match="give image_size"):
        augment_convs(unknown, Tied)


def test_antialiased_blocks_keep_their_pooling():
    model = timm.create_model("resnet18", aa_layer=BlurPool2d, **NARROW)
    strides = [layer.stride for layer in augmented(augment_convs(model, ExplicitAttention)).values()]
    assert strides == [1] * 6 and model(torch.randn(2, 3, 64, 64)).shape == (2, 5)


@pytest.mark.parametrize(
    "name, options, arguments, word",
    [
        ("resnet18", {}, {"stages": (5,)}, "no stage 5; choose among 1, 2, 3, 4"),
        ("resnet18", {}, {"stages": 3}, "stages=3 names"),
        ("resnet18", {}, {"stages": ()}, r"stages=\(\) names no stage"),
        ("resnet18", {}, {"basic_conv": 3}, "basic_conv"),
        ("resnext50_32x4d", {}, {}, r"layer2.0.conv2 is grouped"),
        ("resnet50", {"output_stride": 8}, {}, "dilated"),
        ("test_vit", {}, {}, "no stage 2"),
        ("res2net50_26w_4s", {}, {}, "missing"),
        ("test_resnet", {}, {"make": "swap"}, "ExplicitAttention"),
    ],
)
def test_what_cannot_be_swapped(name, options, arguments, word):
    with torch.device("meta"):
        model = timm.create_model(name, **options)
        if arguments.pop("make", None):
            augment_convs(model, ExplicitAttention)
        with pytest.raises(ValueError, match=word):
            augment_convs(model, ExplicitAttention, **arguments)


def test_stages_of_modules():
    names = ("layer1.0.conv1", "stages.0.3.attention", "stages.0.3.1", "attention", "head.pool", "blocks.3")
    assert [stage_of(name) for name in names] == ["layer1", "stages.0", "stages.0.3", "attention", "head", "blocks"]


@pytest.mark.parametrize("scope, count", [("head", 24), ("module", 6), ("stage", 3), ("global", 1)])
def test_radii_are_shared(narrow, scope, count):
    model = augment_convs(narrow, partial(ExplicitAttention, ratio=0.25, heads=4, radius_init=0.2))
    before = parameters(model)
    assert share_radius(model, scope) is model
    radii = [p for name, p in model.named_parameters() if name.endswith("radius.raw")]
    assert sum(p.numel() for p in radii) == count and before - parameters(model) == 24 - count
    x = torch.randn(2, 3, 64, 64)
    model(x).square().sum().backward()
    assert all(r.grad is not None for r in radii)
    torch.testing.assert_close(radii[0].exp(), torch.full_like(radii[0], 0.2))
    other = share_radius(
        augment_convs(timm.create_model("resnet18", **NARROW), partial(ExplicitAttention, ratio=0.25, heads=4)), scope
    )
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other.eval()(x), model.eval()(x))


def test_radii_of_a_scope_that_is_not_there(narrow):
    with pytest.raises(ValueError, match="radius_scope"):
        share_radius(narrow, "block")


def test_all_are_swapped_or_none(narrow):
    """100 value channels do not fit the 32 channels of the first stage, but the 128 of the second."""
    with pytest.raises(ValueError, match="100 value channels"):
        augment_convs(narrow, partial(ExplicitAttention, value_channels=100), stages=(4, 2))
    assert not augmented(narrow)


def test_a_stage_named_twice_is_swapped_once(narrow):
    augment_convs(narrow, partial(ExplicitAttention, ratio=0.1), stages=(2, 2))
    assert list(augmented(narrow)) == ["layer2.0.conv1", "layer2.1.conv1"]

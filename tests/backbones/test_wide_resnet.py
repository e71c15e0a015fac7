"""Wide ResNets against pytorchcv, published parameters and the sum over layers."""

from __future__ import annotations

import pytest
import timm
import torch

import foveal.backbones  # noqa: F401
from foveal.layers import AttentionAugmentation, ExplicitAttention


def meta(name, **options):
    with torch.device("meta"):
        return timm.create_model(name, **options)


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def augmented(model, kind):
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, kind)}


@pytest.mark.parametrize("classes", [10, 100])
def test_parameters_are_pytorchcvs(classes):
    theirs = pytest.importorskip("pytorchcv.model_provider")
    with torch.device("meta"):
        wanted = parameters(theirs.get_model(f"wrn28_10_cifar{classes}"))
    assert parameters(meta("wrn_28_10_cifar", num_classes=classes)) == wanted
    assert round(wanted / 1e6, 1) == 36.5


def test_outputs_are_pytorchcvs():
    # pytorchcv has the stride in the other convolution of a block, so only networks of one stage can be compared
    # exactly.
    theirs = pytest.importorskip("pytorchcv.models.preresnet")
    torch.manual_seed(0)
    block = timm.create_model("test_wrn_cifar").layer1[0].eval()
    unit = theirs.PreResUnit(in_channels=16, out_channels=32, stride=1, bottleneck=False, conv1_stride=True).eval()
    for target, source in (
        (unit.body.conv1.bn, block.bn1),
        (unit.body.conv1.conv, block.conv1),
        (unit.body.conv2.bn, block.bn2),
        (unit.body.conv2.conv, block.conv2),
        (unit.identity_conv, block.shortcut),
    ):
        for tensor in (t for t in source.state_dict().values() if t.is_floating_point()):
            tensor.copy_(torch.rand_like(tensor))
        target.load_state_dict(source.state_dict())
    x = torch.randn(2, 16, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(block(x), unit(x))


def test_augmented_parameters_are_the_published_ones():
    assert parameters(meta("wrn_28_10_cifar")) == 36_479_194
    # The paper states 36.2 million, and 36.3 for the plain network.
    assert parameters(meta("aa_wrn_28_10_cifar", num_classes=100)) == 36_312_660
    plain, explicit = (parameters(meta(name)) for name in ("wrn_28_10_cifar", "expatt_wrn_28_10_cifar"))
    saved = sum(
        8 * c_in * d - d**2 - 1
        for c_in, d in ((16, 16), *[(160, 16)] * 3, (160, 32), *[(320, 32)] * 3, (320, 64), *[(640, 64)] * 3)
    )
    assert plain - explicit == saved


@pytest.mark.parametrize(
    "name, kind", [("aa_wrn_28_10_cifar", AttentionAugmentation), ("expatt_wrn_28_10_cifar", ExplicitAttention)]
)
def test_the_first_convolution_of_every_block_attends(name, kind):
    layers = augmented(meta(name), kind)
    assert list(layers) == [f"layer{stage}.{block}.conv1" for stage in (1, 2, 3) for block in range(4)]
    if kind is AttentionAugmentation:
        assert {layer.heads for layer in layers.values()} == {8}
        assert [layer.rel_width.shape[1] for layer in layers.values()] == [63] * 4 + [31] * 4 + [15] * 4


@pytest.mark.parametrize(
    "options", [{}, {"conv": "expatt"}, {"conv": "aa", "conv_options": {"heads": 2, "min_key_channels": 4}}]
)
def test_it_is_a_timm_model(options):
    torch.manual_seed(0)
    model = timm.create_model("test_wrn_cifar", num_classes=5, **options)
    for size in ((32, 32), (20, 28)):
        x = torch.randn(2, 3, *size)
        features = model.forward_features(x)
        assert features.shape == (2, model.num_features, size[0] // 4, size[1] // 4)
        assert model.forward_head(features, pre_logits=True).shape == (2, model.num_features)
        model(x).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    model.reset_classifier(0)
    assert model(x).shape == (2, model.num_features)
    taps = timm.create_model("test_wrn_cifar", features_only=True, **options)
    assert [tuple(f.shape[1:]) for f in taps(torch.randn(1, 3, 32, 32))] == [(32, 32, 32), (64, 16, 16), (128, 8, 8)]


def test_dropout_is_between_the_convolutions_and_off_by_default():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 32, 32)
    plain, dropping = timm.create_model("test_wrn_cifar"), timm.create_model("test_wrn_cifar", drop_rate=0.3)
    assert torch.equal(plain(x), plain(x)) and not torch.equal(dropping(x), dropping(x))
    dropping.eval()
    assert torch.equal(dropping(x), dropping(x))


def test_impossible_options():
    for options in ({"depth": 20}, {"conv": "lambda"}, {"conv": "aa", "conv_options": {"ratios": 1}}):
        with pytest.raises(ValueError, match=";"):
            timm.create_model("test_wrn_cifar", **options)

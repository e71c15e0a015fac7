"""Batch norms folded into convolutions: the same answers, from fewer layers, and hands off where it would not be the
same.
"""

import copy

import pytest
import timm
import torch
from PIL import Image
from timm.layers import ScaledStdConv2d
from timm.layers.split_batchnorm import SplitBatchNorm2d
from torch import nn
from torch.nn.utils.parametrizations import orthogonal

import foveal.backbones  # noqa: F401
from foveal import classify
from foveal.glimpse.base import WholeImage
from foveal.images.views import TensorViews
from foveal.models import create_model
from foveal.prediction import count_cost, predict
from foveal.prediction.folding import fold_norms, norms_of
from foveal.prediction.rows import FOLD_FROM
from tests.images.files import photo


def worn(model):
    """The model with statistics and scales that differ from the initial ones, as after training."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for name, value in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
                if value.is_floating_point():
                    low, high = (-0.5, 0.5) if name in ("bias", "running_mean") else (0.5, 1.5)
                    value.data = torch.rand(value.shape, generator=generator) * (high - low) + low
    return model.eval()


def dense(name, size=64, **options):
    torch.manual_seed(0)
    return worn(WholeImage(timm.create_model(name, num_classes=7, **options), image_size=size))


@pytest.mark.parametrize(
    ("name", "size", "left"),
    [
        ("resnet18", 64, 0),
        ("seresnet50", 64, 0),
        ("resnet50d", 64, 0),
        ("mobilenetv2_100", 64, 0),
        ("mobilenetv3_small_100", 64, 0),
        ("efficientnet_b0", 64, 0),
        ("tf_efficientnet_b0", 64, 0),
        ("regnety_002", 64, 0),
        ("repvgg_a0", 64, 17),
        ("resnetv2_50d_evos", 64, 0),
        ("densenet121", 64, 62),
        ("convnext_atto", 64, 0),
        ("vit_tiny_patch16_224", 224, 0),
        ("resnet20_cifar", 32, 0),
        ("preact_resnet110_cifar", 32, 55),
        ("densenet_bc_100_12_cifar", 32, 51),
        ("stn_cnn", 32, 0),
        ("expatt_resnet34", 64, 13),
        ("aa_resnet34", 64, 13),
        ("cbam_resnet20_cifar", 32, 0),
        ("attention56_cifar", 32, 36),
        ("bagnet_small", 64, 4),
        ("plain_convnet_32", 32, 0),
        ("wrn_28_10_cifar", 32, 12),
    ],
)
def test_a_network_says_the_same(name, size, left):
    model = dense(name, size, **({"img_size": size} if name == "aa_resnet34" else {}))
    before = copy.deepcopy(model.state_dict())
    folded, images = fold_norms(model), torch.rand(2, 3, size, size)
    with torch.inference_mode():
        expected, found = model(images).logits, folded(images).logits
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert len(norms_of(folded)) == left
    assert all(
        torch.equal(value, before[key]) for key, value in model.state_dict().items()
    )  # the model itself is unchanged
    assert count_cost(model, size).macs == count_cost(folded, size).macs


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("tnet", {"backbone": "test_efficientnet", "base_size": 32, "locations": (2, 1)}),
        (
            "tnet",
            {"backbone": "test_efficientnet", "base_size": 32, "locations": (2, 1), "location_features": "conv_stem"},
        ),
        ("saccader", {"backbone": "test_bagnet", "image_size": 64, "locations": (3,)}),
        (
            "saccader_separate",
            {
                "backbone": "test_bagnet",
                "image_size": 64,
                "locations": (2,),
                "classifier": "test_resnet",
                "glimpse_size": 32,
            },
        ),
        (
            "dram",
            {"backbone": "test_resnetv2_slim", "image_size": 64, "base_size": 24, "hidden": 16, "locations": (2,)},
        ),
    ],
)
def test_a_model_that_looks_looks_at_the_same_places(name, options):
    torch.manual_seed(0)
    model = worn(create_model(name, num_classes=4, **options))
    folded, images = fold_norms(model), TensorViews(torch.rand(3, 3, 96, 96))
    assert len(norms_of(folded)) < len(norms_of(model)) or not norms_of(model)
    with torch.inference_mode():
        expected, found = model(images), folded(images)
    assert torch.allclose(found.logits, expected.logits, rtol=1e-3, atol=1e-4)
    assert found.glimpses.box == pytest.approx(expected.glimpses.box, abs=1e-3)


class Takes(nn.Conv2d):
    def forward(self, input, scale=1.0):
        return super().forward(input) * scale


class Net(nn.Module):
    """A convolution, a norm, and a part that may prevent folding."""

    num_classes = 2

    def __init__(self, way):
        super().__init__()
        make = {"weights made anew": ScaledStdConv2d, "another argument": Takes}.get(way, nn.Conv2d)
        self.way, self.conv, self.norm = way, make(3, 4, 3, padding=1), nn.BatchNorm2d(4, affine=way != "no scale")
        self.other, self.head, self.too = nn.BatchNorm2d(4), nn.Linear(4, 2), nn.ModuleList([self.conv])
        if way == "parametrized":
            orthogonal(self.conv, use_trivialization=False)
        if way == "hooked":
            self.conv.register_forward_hook(lambda module, given, out: 2 * out)
        if way == "split":
            self.norm = SplitBatchNorm2d(4, num_splits=2)
        if way == "shared weights":
            self.twin = nn.Conv2d(3, 4, 3, padding=1)
            self.twin.weight = self.conv.weight

    def forward(self, x):
        z = self.too[0](x) if self.way == "another name" else self.conv(x)
        if self.way == "written":
            buffer = torch.zeros_like(x.new_empty(len(x), 8, *x.shape[2:]))
            buffer[:, :4] = z
            return self.head((self.norm(z) + buffer[:, :4]).mean((2, 3)))
        y = self.norm(z)
        if self.way == "read":
            y = y + self.norm.weight[:, None, None]
        if self.way == "shared weights":
            y = y + self.twin(x)
        if self.way == "used twice":
            y = y + z
        if self.way == "two norms":
            y = y + self.other(z)
        if self.way == "used again":
            y = y + self.conv(x)
        if self.way == "norm again":
            y = self.norm(y)
        return self.head(y.mean((2, 3)))


@pytest.mark.parametrize(
    ("way", "left"),
    [
        ("plain", 1),
        ("no scale", 1),
        ("another name", 1),
        ("read", 1),
        ("shared weights", 1),
        ("used twice", 2),
        ("two norms", 2),
        ("used again", 2),
        ("norm again", 2),
        ("written", 2),
        ("weights made anew", 2),
        ("another argument", 2),
        ("parametrized", 2),
        ("hooked", 2),
        ("split", None),
    ],
)
def test_only_what_stays_the_same_is_folded(way, left):
    model = worn(WholeImage(Net(way), image_size=16))
    folded, images = fold_norms(model), torch.rand(2, 3, 16, 16)
    assert len(norms_of(folded)) == (len(norms_of(model)) if left is None else left)
    assert torch.allclose(folded(images).logits, model(images).logits, atol=1e-5)


def test_statistics_of_each_level_stay():
    options = {"backbone": "test_efficientnet", "base_size": 32, "locations": (1,), "level_statistics": True}
    model = worn(create_model("tnet", num_classes=4, **options))
    assert len(norms_of(fold_norms(model))) == len(norms_of(model)) > 0


def test_predictions_are_those_of_the_model(tmp_path):
    for i in range(FOLD_FROM):
        Image.fromarray(photo(90, 80, seed=i)).save(tmp_path / f"{i}.png")
    torch.manual_seed(0)
    model = worn(create_model("tnet", num_classes=4, backbone="test_efficientnet", base_size=32, locations=(2,)))
    rows = predict(model, tmp_path, device="cpu", top_k=4).rows
    assert len(rows) == FOLD_FROM
    for row in rows:
        seen = classify(model, row["path"])
        assert row["label"] == seen.label and row["probability"] == pytest.approx(
            float(seen.probabilities.max()), abs=1e-5
        )

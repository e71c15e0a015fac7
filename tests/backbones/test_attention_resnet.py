"""ResNet-50 with attention: published counts, and the plain network at the start."""

from __future__ import annotations

import json

import pytest
import timm
import torch
from torch import nn

import foveal
from foveal.backbones import AttentionResNet
from foveal.layers import SpatialSoftmaxAttention, attention_maps
from foveal.models import create_classifier
from foveal.runs import CARD, ModelInfo, save_model


def parameters(name: str, **options) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in timm.create_model(name, **options).parameters())


def test_parameters():
    assert parameters("cbam_resnet50") == 28_089_624
    # K (C + 1) a module, C = 256, 512, 1024, 2048 in 3, 4, 6 and 3 blocks
    one = 3 * 257 + 4 * 513 + 6 * 1025 + 3 * 2049
    assert parameters("attn_resnet50") == parameters("resnet50") + 4 * one
    assert parameters("attn_resnet50", attention_options={"maps": "one"}) == parameters("resnet50") + one


def test_it_starts_as_the_plain_network():
    torch.manual_seed(0)
    options = {"layers": (1, 1, 1, 1), "channels": (16, 16, 16, 16), "num_classes": 5, "zero_init_last": False}
    plain = timm.models.ResNet(timm.models.resnet.Bottleneck, **options)
    ours, x = AttentionResNet(**options), torch.randn(2, 3, 64, 64)
    assert all(not m.conv.weight.any() for m in ours.modules() if isinstance(m, SpatialSoftmaxAttention))
    ours.load_state_dict(plain.state_dict(), strict=False)
    assert torch.equal(ours(x), plain(x))


def test_maps_of_every_block():
    model = timm.create_model("test_attn_resnet", num_classes=5)
    with attention_maps(model) as maps:
        model(torch.randn(2, 3, 64, 64)).sum().backward()
    assert {name: tuple(of.shape) for name, of in maps.items()} == {
        f"layer{i}.0.se": (2, 4, side, side) for i, side in ((1, 16), (2, 8), (3, 4), (4, 2))
    }


def modes(model: nn.Module) -> set[str]:
    return {m.mode for m in model.modules() if isinstance(m, SpatialSoftmaxAttention)}


@pytest.mark.parametrize("name, unwritten", [("test_attn_resnet", ["attention"]), ("test_attn_resnet_cifar", [])])
def test_runs_of_earlier_versions_keep_their_mode(tmp_path, name, unwritten):
    """They name ``softmax``, or are of a network whose attention was not an option."""
    torch.manual_seed(0)
    model = create_classifier(name, num_classes=2, attention="softmax", image_size=32).eval()
    assert modes(model) == {"scaled"} and modes(create_classifier(name)) == {"bounded"}
    for layer in model.modules():
        if isinstance(layer, SpatialSoftmaxAttention):
            nn.init.normal_(layer.conv.weight)
    save_model(tmp_path, model, ModelInfo(model.spec, ("a", "b")))
    card = json.loads((tmp_path / CARD).read_text())
    assert card["model"]["attention"] == "softmax"
    card["model"] = {key: value for key, value in card["model"].items() if key not in unwritten}
    (tmp_path / CARD).write_text(json.dumps(card))
    loaded, x = foveal.load(tmp_path), torch.rand(2, 3, 32, 32)
    assert modes(loaded) == {"scaled"}
    assert torch.equal(loaded(x).logits, model(x).logits)

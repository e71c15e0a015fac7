"""ResNet-50 with attention: published counts, and the plain network at the start."""

from __future__ import annotations

import timm
import torch

from foveal.backbones import AttentionResNet
from foveal.layers import SpatialSoftmaxAttention, attention_maps


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

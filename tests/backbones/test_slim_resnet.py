"""ResNet-v2-50 of slim against published counts, and with other strides against timm."""

import timm
import torch
from torch import nn

from foveal.prediction.cost import count_cost


def test_published_counts():
    assert (
        count_cost(timm.create_model("resnetv2_50_slim", num_classes=1001), 224).parameters_and_statistics == 25_615_849
    )
    assert (
        count_cost(timm.create_model("resnetv2_50_slim", num_classes=0, in_chans=15), 77).parameters_and_statistics
        == 23_602_432
    )


def test_sides_of_the_feature_maps():
    net, seen = timm.create_model("resnetv2_50_slim", num_classes=0), []
    for module in (net.conv1, net.pool1, *net.stages):
        module.register_forward_hook(lambda _m, _i, out: seen.append(out.shape[-1]))
    net.to("meta")(torch.empty(1, 3, 77, 77, device="meta"))
    assert seen == [39, 20, 10, 5, 3, 3]


def test_timm_has_the_same_network_but_for_strides_and_biases():
    torch.manual_seed(0)
    ours, theirs = (
        timm.create_model("resnetv2_50_slim", num_classes=0).eval(),
        timm.create_model("resnetv2_50", num_classes=0).eval(),
    )
    for i, (mine, their) in enumerate(zip(ours.stages, theirs.stages, strict=True)):
        if i < 3:
            mine[-1].stride, mine[-1].conv2.stride = 1, (1, 1)
        if i > 0:
            mine[0].conv2.stride, mine[0].project.stride = (2, 2), (2, 2)
        for block, other in zip(mine, their.blocks, strict=True):
            for name in ("norm1", "norm2", "norm3"):
                getattr(other, name).load_state_dict(getattr(block, name)[0].state_dict())
            for name in ("conv1", "conv2", "conv3"):
                getattr(other, name).weight = getattr(block, name).weight
            if block.project is not None:
                other.downsample.conv.weight = block.project.weight
    theirs.stem.conv.weight = ours.conv1.weight
    theirs.norm.load_state_dict(ours.norm[0].state_dict())
    theirs.stem.pool = nn.MaxPool2d(3, 2, padding=1)
    x = torch.randn(1, 3, 77, 77)  # an odd side after the stem, where both have the same padding
    with torch.inference_mode():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)

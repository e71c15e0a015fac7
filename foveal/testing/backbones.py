"""Tests for backbones. Derive a class and set ``name``.

Example:
    >>> class TestMyBackbone(BackboneTester):
    ...     name = "plain_convnet_32"
    >>> TestMyBackbone().make(num_classes=5).num_classes
    5
"""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from safetensors.torch import load, save
from timm.models import group_parameters
from torch import nn

import foveal.backbones  # noqa: F401
from foveal.backbones.head import ClassifierBackbone
from foveal.prediction.cost import count_cost


class BackboneTester:
    """Derive from this class and set ``name``; override other attributes if needed.

    Attributes:
        name: name registered with timm.
        options: keywords of the constructor.
        odd_size: (height, width) of test images that differ from the network's input size; None if it accepts one size
            only.
    """

    name: str
    options: dict[str, object] = {}  # noqa: RUF012
    odd_size: tuple[int, int] | None = (45, 37)

    def make(self, **options) -> nn.Module:
        return timm.create_model(self.name, **{**self.options, **options})

    @pytest.fixture
    def net(self) -> nn.Module:
        torch.manual_seed(0)
        return self.make(num_classes=5)

    def images(self, net: nn.Module, count: int = 2, size: tuple[int, int] | None = None) -> torch.Tensor:
        channels, *own = net.pretrained_cfg["input_size"]
        return torch.randn(count, channels, *(size or own), generator=torch.Generator().manual_seed(1))

    def test_every_parameter_is_trained(self, net):
        with torch.no_grad():  # layers initialised with zeros block gradients
            for p in net.parameters():
                p.add_(0.01 * torch.randn_like(p))
        net.train()(self.images(net)).square().mean().backward()
        assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []

    def test_other_image_size(self, net):
        if self.odd_size is None:
            pytest.skip("takes images of one size")
        with torch.inference_mode():
            logits = net.eval()(self.images(net, 1, self.odd_size))
        assert logits.shape == (1, 5) and logits.isfinite().all()

    def test_forward_features_and_forward_head_equal_forward(self, net):
        x = self.images(net)
        with torch.inference_mode():
            features = net.eval().forward_features(x)
            pooled = net.forward_head(features, pre_logits=True)
            torch.testing.assert_close(net.forward_head(features), net(x), rtol=0, atol=0)
            torch.testing.assert_close(net.get_classifier()(pooled), net(x))
        assert pooled.shape == (2, net.num_features) and features.shape[1] == getattr(
            net, "feature_channels", net.num_features
        )

    def test_feature_info_matches_features_only(self, net):
        x, seen = self.images(net), []
        net.eval()
        for info in net.feature_info:
            net.get_submodule(info["module"]).register_forward_hook(lambda _m, _i, out: seen.append(out))
        taps = self.make(features_only=True).eval()
        with torch.inference_mode():
            net(x)
            maps = taps(x)
        assert [m.shape for m in maps] == [m.shape for m in seen] and taps.feature_info.channels() == [
            m.shape[1] for m in maps
        ]

    def test_reset_classifier(self, net):
        x = self.images(net, 1)
        with torch.inference_mode():
            pooled = net.eval().forward_head(net.forward_features(x), pre_logits=True)
            for classes in (3, 0):
                net.reset_classifier(classes)
                assert net.num_classes == classes and net(x).shape == (1, classes or net.num_features)
            torch.testing.assert_close(net(x), pooled)
            assert self.make(num_classes=0).eval()(x).shape == pooled.shape

    def test_other_number_of_bands(self, net):
        other = self.make(in_chans=2).eval()
        with torch.inference_mode():
            assert other(self.images(net, 1)[:, :2]).shape == (1, other.num_classes) and other.in_chans == 2

    def test_save_and_load(self, net):
        x = self.images(net)
        weights = load(save({k: v.contiguous() for k, v in net.state_dict().items()}))
        other = self.make(num_classes=5).eval()
        other.load_state_dict(weights)
        with torch.inference_mode():
            torch.testing.assert_close(other(x), net.eval()(x), rtol=0, atol=0)

    def test_gradient_checkpointing(self, net):
        gradients = []
        for checkpointing in (False, True):
            net.set_grad_checkpointing(checkpointing)
            net.zero_grad()
            torch.manual_seed(0)  # dropout
            net.train()(self.images(net)).square().mean().backward()
            gradients.append([p.grad.clone() for p in net.parameters()])
        torch.testing.assert_close(*gradients, rtol=0, atol=0)

    @pytest.mark.parametrize("coarse", [False, True])
    def test_parameter_depth(self, net, coarse):
        names = [name for name, _ in net.named_parameters()]
        depth = {name: d for d, group in group_parameters(net, net.group_matcher(coarse)).items() for name in group}
        last = depth[net.pretrained_cfg["classifier"] + ".weight"]
        first = [depth[name] for name in names if name.startswith(("stem.", "conv1.", "transformer."))]
        assert set(depth) == set(names) and min(depth.values()) == 0 and last == max(depth.values()) and not any(first)
        for i, info in enumerate(net.feature_info):
            own = [depth[name] for name in names if name.startswith(info["module"] + ".")]
            assert own == sorted(own) and (not coarse or set(own) <= {i, i + 1})
            # Networks of timm may list their last norm in feature_info, but group it with the classifier.
            assert not isinstance(net, ClassifierBackbone) or all(d < last for d in own)

    def test_pretrained_cfg(self, net):
        named = dict(net.named_modules())
        first = net.pretrained_cfg["first_conv"]
        for name in (first,) if isinstance(first, str) else first:
            assert isinstance(named[name], nn.Conv2d) and named[name].in_channels == net.in_chans
        assert named[net.pretrained_cfg["classifier"]] is net.get_classifier()
        assert [info for info in net.feature_info if info["module"] not in named] == []

    def test_channels_last_gives_the_same_output(self, net):
        x = self.images(net)
        with torch.inference_mode():
            expected = net.double().eval()(x.double())
            last = copy.deepcopy(net).to(memory_format=torch.channels_last)
            actual = last(x.double().contiguous(memory_format=torch.channels_last))
        torch.testing.assert_close(actual, expected)

    def test_cost_on_the_meta_device(self, net):
        cost = count_cost(net, self.images(net).shape[-2:])
        assert cost.macs > 0 and cost.parameters == sum(p.numel() for p in net.parameters())

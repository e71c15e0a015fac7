"""Batch norms folded into the convolutions before them: the same answers in less time.

A batch norm that has been trained multiplies and shifts every channel by fixed numbers, and the convolution before it can do that as well.
On small batches passing over the activations once more for each layer is a good part of a prediction's time.

Example:
    >>> from foveal.glimpse.base import WholeImage
    >>> import timm
    >>> model = WholeImage(timm.create_model("test_efficientnet", num_classes=5), image_size=64).eval()
    >>> folded, images = fold_norms(model), torch.rand(2, 3, 64, 64)
    >>> torch.allclose(folded(images).logits, model(images).logits, atol=1e-5), len(norms_of(model)), len(norms_of(folded))
    (True, 13, 0)
"""

from __future__ import annotations

import copy
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from foveal.glimpse.base import GlimpseClassifier
from foveal.prediction.cost import look_at_nothing

TOLERANCE = 1e-3  # of the largest output: far above rounding, far below what a convolution that changes its weights would be off by
STATISTICS = {"running_mean", "running_var", "num_batches_tracked"}


def fold_norms(model: GlimpseClassifier) -> GlimpseClassifier:
    """A copy for prediction whose batch norms are part of the convolutions before them, where that changes nothing.

    A norm is folded if a convolution's output goes to it and nowhere else, which one pass without images shows, and if both together
    give what they gave before. Whatever stands in a norm's place, an activation perhaps, stays. The copy is not for training, and its
    parameters are not those that were trained.

    Args:
        model: a classifier, in evaluation mode, on any device.
    """
    folded = copy.deepcopy(model).eval()
    for conv_name, norm_name in _pairs(model):
        conv, norm = folded.get_submodule(conv_name), folded.get_submodule(norm_name)
        found = _folded(conv, norm)
        if found is not None:
            for name, module in zip((conv_name, norm_name), found, strict=True):
                parent, _, last = name.rpartition(".")
                setattr(folded.get_submodule(parent), last, module)
    return folded


def norms_of(model: nn.Module) -> list[str]:
    """Names of a model's batch norms."""
    return [name for name, module in model.named_modules() if isinstance(module, _BatchNorm)]


class _Watch(TorchFunctionMode):
    """Sees which convolution's output each norm is given, and how many operations take each tensor."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.made: list[tuple[str, Tensor]] = []
        self.given: list[tuple[str, Tensor | None]] = []
        self.taken: list[Tensor] = []  # kept, so that no other tensor gets the identity of one that is gone
        for name, module in model.named_modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(lambda _m, _i, out, name=name: self.made.append((name, out)))
            elif isinstance(module, _BatchNorm):
                module.register_forward_pre_hook(lambda _m, given, name=name: self.given.append((name, given[0] if given else None)))

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if any(isinstance(leaf, Tensor) for leaf in tree_leaves(out)):
            self.taken += [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        return out


def _pairs(model: GlimpseClassifier) -> list[tuple[str, str]]:
    """Names of convolutions and norms that only ever work one right after the other."""
    seen = look_at_nothing(model, (2 * model.size[0], 2 * model.size[1]), _Watch)
    uses, norm_of = Counter(map(id, seen.taken)), {id(tensor): norm for norm, tensor in seen.given}
    conv_of = {id(tensor): conv for conv, tensor in seen.made}
    norms_after, convs_before = defaultdict(set), defaultdict(set)
    for conv, tensor in seen.made:
        norms_after[conv].add(norm_of.get(id(tensor)) if uses[id(tensor)] == 1 else None)
    for norm, tensor in seen.given:
        convs_before[norm].add(conv_of.get(id(tensor)))
    return [(conv, norm) for conv, (norm, *others) in norms_after.items() if norm and not others and convs_before[norm] == {conv}]


def _folded(conv: nn.Module, norm: nn.Module) -> tuple[nn.Conv2d, nn.Module] | None:
    """What takes the places of both; None where it would not be the same."""
    if not isinstance(conv, nn.Conv2d) or not isinstance(norm, _BatchNorm):
        return None
    if norm.running_mean is None or {name for name, _ in norm.named_buffers(recurse=False)} != STATISTICS:
        return None
    both = copy.deepcopy(conv)
    both.weight, both.bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias  # type: ignore[arg-type]
    )  # fmt: skip
    rest = [module for module in norm.children() if not isinstance(module, nn.Identity)]
    after = nn.Sequential(*rest) if len(rest) > 1 else rest[0] if rest else nn.Identity()
    side = [
        dilation * (kernel - 1) + stride + 1 for dilation, kernel, stride in zip(conv.dilation, conv.kernel_size, conv.stride, strict=True)
    ]
    given = torch.rand(2, conv.in_channels, *side, generator=torch.Generator().manual_seed(0)).to(conv.weight)
    with torch.no_grad():
        before, now = norm(conv(given)), after(both(given))
    return (both, after) if (before - now).abs().max() <= TOLERANCE * before.abs().max() else None

"""Fold batch norms into the convolutions before them, for faster prediction with the same results.

In eval mode a batch norm scales and shifts each channel by constants, which can be part of the preceding convolution's
weights. This saves a pass over the activations per layer.

Example:
    >>> from foveal.glimpse.base import WholeImage
    >>> import timm
    >>> model = WholeImage(timm.create_model("test_efficientnet", num_classes=5), image_size=64).eval()
    >>> folded, images = fold_norms(model), torch.rand(2, 3, 64, 64)
    >>> same = torch.allclose(folded(images).logits, model(images).logits, atol=1e-5)
    >>> same, len(norms_of(model)), len(norms_of(folded))
    (True, 13, 0)
"""

from __future__ import annotations

import copy
import inspect
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.nn.utils.parametrize import is_parametrized
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from foveal.glimpse.base import GlimpseClassifier
from foveal.prediction.cost import run_on_blank

TOLERANCE = 1e-6  # relative to the largest output, in float64; modules that transform their weights exceed it by far
STATISTICS = {"running_mean", "running_var", "num_batches_tracked"}
METADATA = {
    "__get__",
    "size",
    "dim",
    "stride",
    "numel",
    "is_contiguous",
    "is_floating_point",
    "is_complex",
    "get_device",
    "type",
}
"""Operations that use no values of a tensor, if they do not return a tensor."""


class FoldedNorm(nn.BatchNorm2d):
    """A batch norm that was folded into the convolution before it. Its attributes stay."""

    def forward(self, input: Tensor) -> Tensor:
        return input


@cache
def folded_norms() -> dict[type, Any]:
    """The folded class of each class of batch norm. A function, because timm is imported late."""
    from timm.layers import BatchNormAct2d

    class FoldedNormAct(BatchNormAct2d):
        """A folded batch norm with an activation. Dropout and activation stay."""

        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.drop(x))

    return {nn.BatchNorm2d: FoldedNorm, BatchNormAct2d: FoldedNormAct}


def fold_norms(model: GlimpseClassifier) -> GlimpseClassifier:
    """Fold batch norms into the convolutions before them, where the results stay the same.

    A norm is folded if it is the only consumer of a convolution's output, which a forward pass on a blank image shows,
    and if the folded convolution's output agrees with that of both. This takes some tenths of a second, which ten to
    thirty images save on a CPU.

    Args:
        model: a classifier in eval mode, on any device.

    Returns:
        A copy for prediction only, with other parameters; the model itself if it has no batch norms.
    """
    if not norms_of(model):
        return model
    folded = copy.deepcopy(model).eval()
    for conv_name, norm_name in _pairs(model):
        _fold(folded.get_submodule(conv_name), folded.get_submodule(norm_name))
    return folded


def norms_of(model: nn.Module) -> list[str]:
    """Names of the batch norms of a model that are not folded."""
    norms = [(name, module) for name, module in model.named_modules() if isinstance(module, _BatchNorm)]
    return [name for name, norm in norms if not isinstance(norm, tuple(folded_norms().values()))]


class _Trace(TorchFunctionMode):
    """Records outputs of convolutions, inputs of norms, and the tensors that each operation takes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.made: list[tuple[str, Tensor]] = []
        self.given: list[tuple[str, Tensor | None]] = []
        self.taken: list[Tensor] = []  # references keep ids unique
        for name, module in model.named_modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(lambda _m, _i, out, name=name: self.made.append((name, out)))
            elif isinstance(module, _BatchNorm):
                module.register_forward_pre_hook(
                    lambda _m, given, name=name: self.given.append((name, given[0] if given else None))
                )

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") not in METADATA or any(isinstance(leaf, Tensor) for leaf in tree_leaves(out)):
            self.taken += [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        return out


def _pairs(model: GlimpseClassifier) -> list[tuple[str, str]]:
    """Names of convolutions and norms where the norm is the only consumer of the convolution's output."""
    seen = run_on_blank(model, (2 * model.size[0], 2 * model.size[1]), _Trace)
    uses, norm_of = Counter(map(id, seen.taken)), {id(tensor): norm for norm, tensor in seen.given}
    conv_of = {id(tensor): conv for conv, tensor in seen.made}
    norms_after, convs_before = defaultdict(set), defaultdict(set)
    for conv, tensor in seen.made:
        norms_after[conv].add(norm_of.get(id(tensor)) if uses[id(tensor)] == 1 else None)
    for norm, tensor in seen.given:
        convs_before[norm].add(conv_of.get(id(tensor)))
    return [
        (conv, norm)
        for conv, (norm, *others) in norms_after.items()
        if norm and not others and convs_before[norm] == {conv}
    ]


def _fold(conv: nn.Module, norm: nn.Module) -> None:
    """Fold the norm into the convolution, if the folded convolution's output agrees with that of both."""
    if not (isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d) and _plain(conv) and _plain(norm)):
        return
    if type(norm) not in folded_norms() or {name for name, _ in norm.named_buffers(recurse=False)} != STATISTICS:
        return
    before, both, exact = (copy.deepcopy(module).to("cpu", torch.float64) for module in (conv, conv, norm))
    numbers: list[Any] = [exact.running_mean, exact.running_var, exact.weight, exact.bias]
    mean, variance, scale, shift = numbers
    both.weight, both.bias = fuse_conv_bn_weights(before.weight, before.bias, mean, variance, norm.eps, scale, shift)
    shape = zip(conv.dilation, conv.kernel_size, conv.stride, strict=True)
    side = [dilation * (kernel - 1) + stride + 1 for dilation, kernel, stride in shape]
    given = torch.rand(2, conv.in_channels, *side, generator=torch.Generator().manual_seed(0)).to(before.weight)
    with torch.no_grad():
        expected, found = F.batch_norm(before(given), mean, variance, scale, shift, eps=norm.eps), both(given)
    if (expected - found).abs().max() <= TOLERANCE * expected.abs().max():
        conv.weight, conv.bias = (
            nn.Parameter(value.to(conv.weight), requires_grad=False) for value in (both.weight, both.bias)
        )
        norm.__class__ = folded_norms()[type(norm)]


def _plain(module: nn.Module) -> bool:
    """Whether a module has no hooks and parametrizations, and its forward takes one argument."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
    return (
        not any(hooks) and not is_parametrized(module) and len(inspect.signature(type(module).forward).parameters) == 2
    )

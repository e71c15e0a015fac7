"""Training batches of one image: batch norm needs at least two values per channel to compute a variance.

How many values a batch norm sees depends on the network and on the size of the looks. At 32 px, the last feature maps
of many networks are a single pixel, so that one image gives one value per channel.

Example:
    >>> from foveal.models import create_classifier
    >>> small, large = (create_classifier("test_resnet", num_classes=2, image_size=side) for side in (16, 64))
    >>> takes_one_image(small, ("greedy",)), takes_one_image(large, ("greedy",))
    (False, True)
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import nn

from foveal.draws import Draws
from foveal.glimpse.base import GlimpseClassifier
from foveal.images import as_views
from foveal.policies import Policy


class _OneValue(Exception):
    """A batch norm got one value per channel."""


def takes_one_image(model: GlimpseClassifier, plan: Sequence[str | Policy]) -> bool:
    """Whether the model can be trained on a batch of one image.

    Makes a forward pass on one black image, without gradients. The model's buffers and torch's random state are
    restored.

    Args:
        model: the model, in the mode in which it is trained.
        plan: policies of the rollouts, as of `foveal.objectives.Objective.plan`.

    Returns:
        False if a batch norm would get a single value per channel.
    """

    def watch(norm: nn.Module, inputs: tuple[Any, ...]) -> None:
        if inputs[0].numel() == inputs[0].shape[1] and (norm.training or norm.running_mean is None):
            raise _OneValue

    if not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        return True
    device = model.mean.device
    image = torch.zeros(1, model.channels, *model.size, device=device)
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]
    with ExitStack() as context:
        context.enter_context(torch.no_grad())
        context.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
        if any(module._compiled_call_impl is not None for module in model.modules()):
            # Compiled code ignores hooks that were registered after it was compiled.
            context.enter_context(torch.compiler.set_stance("force_eager"))
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                context.callback(module.register_forward_pre_hook(watch).remove)
        try:
            model.rollouts(as_views(image), plan, Draws(0, 0, np.zeros(1, dtype=np.int64)))
        except _OneValue:
            return False
        finally:
            for buffer, value in before:
                buffer.copy_(value)
    return True

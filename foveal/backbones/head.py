"""What our networks have in common: pooling and a linear classifier that can be exchanged, as timm's have them, and CIFAR's data card.

Example:
    >>> import torch
    >>> class Means(Headed):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.num_features = 3
    ...         self.reset_classifier(5)
    ...     def forward_features(self, x):
    ...         return x
    ...     def pooled(self, x):
    ...         return x.mean((2, 3))
    >>> Means()(torch.rand(2, 3, 8, 8)).shape
    torch.Size([2, 5])
"""

from __future__ import annotations

import inspect
import re
from typing import Any

import torch
import torch.nn.functional as F
from timm.models import checkpoint_seq
from torch import Tensor, nn


def cifar_card(first_conv: str, classifier: str = "fc") -> dict[str, Any]:
    """What timm wants to know of a network for CIFAR: 32 px, three stages, the mean and deviation of CIFAR-10.

    Args:
        first_conv: name of the module that sees the image.
        classifier: name of the last one.
    """
    return {
        "url": "", "num_classes": 10, "input_size": (3, 32, 32), "pool_size": (8, 8), "crop_pct": 1.0, "interpolation": "bilinear",
        "mean": (0.4914, 0.4822, 0.4465), "std": (0.2470, 0.2435, 0.2616), "first_conv": first_conv, "classifier": classifier,
    }  # fmt: skip


def takes(network: type[nn.Module], **ours: Any) -> inspect.Signature:
    """What a named network takes: keywords of its class, with the defaults that the name gives them, for help and for comparisons.

    Args:
        network: the class.
        ours: keywords that the name stands for.
    """
    kind = inspect.Parameter.KEYWORD_ONLY
    own = [p.replace(kind=kind, default=ours.get(name, p.default)) for name, p in inspect.signature(network).parameters.items()]
    pretrained = inspect.Parameter("pretrained", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=False, annotation=bool)
    return inspect.Signature([pretrained, *own, inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD, annotation=Any)])


class Stage(nn.Sequential):
    """Blocks one after the other.

    Attributes:
        checkpointing: make the activations of each block again for the backward pass, see `Headed.set_grad_checkpointing`.
    """

    checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint_seq(self, x) if self.checkpointing and torch.is_grad_enabled() else super().forward(x)


class Headed(nn.Module):
    """A network of `forward_features`, `pooled`, dropout and a linear classifier ``fc``.

    Args:
        drop_rate: share of the pooled features dropped in training.

    Attributes:
        num_features: length of what the classifier sees.
        feature_info: timm's description of the stages, whose names end with their numbers.
    """

    num_features: int
    feature_info: list[dict[str, Any]]

    def __init__(self, drop_rate: float = 0.0) -> None:
        super().__init__()
        self.drop_rate = drop_rate

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) images to (B, c, h, w) features."""
        raise NotImplementedError

    def pooled(self, x: Tensor) -> Tensor:
        """Features to (B, num_features)."""
        raise NotImplementedError

    def get_classifier(self) -> nn.Module:
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier; 0 classes leave it out.

        Raises:
            ValueError: another pooling than the network's own.
        """
        if global_pool is not None:
            raise ValueError(f"global_pool={global_pool!r}: {type(self).__name__} pools in one way; leave it out.")
        self.num_classes = num_classes
        self.fc: nn.Module = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep no activations inside blocks but make them again for the backward pass: less memory, for one more forward pass.

        As with timm's networks, running statistics of batch norms then move twice a step.
        """
        for module in self.modules():
            if isinstance(module, Stage):
                module.checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """What timm's learning rates by depth go by: what is before the stages, blocks in order (``coarse``: stages), and the rest."""
        first = self.feature_info[0]["module"]
        stage = re.escape(first.rstrip("0123456789")) + r"(\d+)"
        of_blocks = isinstance(self.get_submodule(first), Stage) and not coarse
        return {"stem": r"^(?:stem|conv1|bn1|transformer)\b", "blocks": rf"^{stage}\.(\d+)" if of_blocks else f"^{stage}"}

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = F.dropout(self.pooled(x), self.drop_rate, self.training)
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

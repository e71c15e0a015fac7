"""Base class of the networks: pooling and a replaceable linear classifier, with the interface of ``timm`` models.

Example:
    >>> import torch
    >>> class Means(ClassifierBackbone):
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
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import checkpoint_seq
from torch import Tensor, nn

from foveal.signatures import typed


def cifar_cfg(first_conv: str, classifier: str = "fc") -> dict[str, Any]:
    """Default configuration of a network for CIFAR: 32 px, mean and standard deviation of CIFAR-10.

    Args:
        first_conv: name of the first convolution.
        classifier: name of the classifier.
    """
    cfg = image_cfg(32, 8, num_classes=10, crop_pct=1.0, first_conv=first_conv, classifier=classifier)
    return cfg | {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2470, 0.2435, 0.2616)}


def image_cfg(side: int, cells: int, **changes: Any) -> dict[str, Any]:
    """Default configuration of a network for ``timm``; by default for ImageNet.

    Args:
        side: side of the images in pixels.
        cells: side of the last feature map.
        changes: other keys of the configuration.
    """
    cfg = {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, side, side),
        "pool_size": (cells, cells),
        "crop_pct": 0.875,
        "interpolation": "bilinear",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "conv1",
        "classifier": "fc",
    }
    return cfg | changes


def model_signature(network: type[nn.Module], **defaults: Any) -> inspect.Signature:
    """Signature of a registered model: the keywords of its class with other defaults. Help reads it.

    Args:
        network: the class.
        defaults: keywords that the registered model sets.
    """
    kind = inspect.Parameter.KEYWORD_ONLY
    own = [
        p.replace(kind=kind, default=defaults.get(name, p.default))
        for name, p in inspect.signature(network).parameters.items()
    ]
    pretrained = inspect.Parameter(
        "pretrained", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=False, annotation=bool
    )
    return inspect.Signature(
        [pretrained, *own, inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD, annotation=Any)]
    )


class Stage(nn.Sequential):
    """A sequence of blocks.

    Attributes:
        checkpointing: recompute activations in the backward pass, see `ClassifierBackbone.set_grad_checkpointing`.
    """

    checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint_seq(self, x) if self.checkpointing and torch.is_grad_enabled() else super().forward(x)


class ClassifierBackbone(nn.Module):
    """A network of `forward_features`, `pooled`, dropout and a linear classifier ``fc``.

    Args:
        drop_rate: dropout rate of the pooled features.

    Attributes:
        num_features: number of input features of the classifier.
        feature_info: description of the stages for ``timm``. Their module names end with their numbers.
    """

    num_features: int
    feature_info: list[dict[str, Any]]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        typed(cls)

    def __init__(self, drop_rate: float = 0.0) -> None:
        super().__init__()
        self.drop_rate = drop_rate

    def forward_features(self, x: Tensor) -> Tensor:
        """Features (B, c, h, w) of images (B, C, H, W)."""
        raise NotImplementedError

    def pooled(self, x: Tensor) -> Tensor:
        """Pool features to (B, num_features)."""
        raise NotImplementedError

    def get_classifier(self) -> nn.Module:
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier; 0 classes remove it.

        Raises:
            ValueError: ``global_pool`` is given; pooling cannot be changed.
        """
        if global_pool is not None:
            raise ValueError(
                f"global_pool={global_pool!r}: the pooling of {type(self).__name__} cannot be changed; leave it out."
            )
        self.num_classes = num_classes
        self.fc: nn.Module = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations inside blocks in the backward pass: less memory for one more forward pass.

        As in ``timm``, running statistics of batch norms are then updated twice per step.
        """
        for module in self.modules():
            if isinstance(module, Stage):
                module.checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Parameter groups by depth for ``timm``: the stem, the blocks in order (``coarse``: stages), and the rest."""
        first = self.feature_info[0]["module"]
        stage = re.escape(first.rstrip("0123456789")) + r"(\d+)"
        of_blocks = isinstance(self.get_submodule(first), Stage) and not coarse
        return {
            "stem": r"^(?:stem|conv1|bn1|transformer)\b",
            "blocks": rf"^{stage}\.(\d+)" if of_blocks else f"^{stage}",
        }

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = F.dropout(self.pooled(x), self.drop_rate, self.training)
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

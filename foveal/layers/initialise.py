"""Weight initialisation.

Example:
    >>> layer = nn.Linear(4, 2)
    >>> glorot(layer)
    >>> layer.bias.tolist()
    [0.0, 0.0]
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


def glorot(module: nn.Module, fill: Callable[[Tensor], Tensor] = nn.init.xavier_uniform_) -> None:
    """Initialise convolutions and linear layers like TensorFlow: Glorot weights, zero biases. Skips other modules."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        fill(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)

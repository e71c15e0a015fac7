"""Attention maps of the modules of any model.

A module with attention derives from `AttentionLayer` and passes its map to `record_map` in each forward pass. Maps are
computed and kept inside `attention_maps` only.

Example:
    >>> class Halves(AttentionLayer):
    ...     def forward(self, x):
    ...         self.record_map(lambda: torch.full_like(x[:, :1], 0.5))
    ...         return x / 2
    >>> net = nn.Sequential(Halves(), nn.ReLU())
    >>> with attention_maps(net) as maps:
    ...     _ = net(torch.ones(2, 3, 4, 4))
    >>> {name: tuple(of.shape) for name, of in maps.items()}
    {'0': (2, 1, 4, 4)}
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from foveal.signatures import typed


class AttentionLayer(nn.Module):
    """A module with an attention map.

    Attributes:
        attention_map: (B, heads, h, w) float32, detached: the map of the last forward pass inside `attention_maps`,
            None outside. Of a module with a map per query, the map of the central query.
        no_weight_decay: names of the module's own parameters that are exempt from weight decay.
    """

    attention_map: Tensor | None = None
    no_weight_decay: tuple[str, ...] = ()
    _records_map: bool = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        typed(cls)

    def record_map(self, make: Callable[[], Tensor]) -> None:
        """Record the map (B, heads, h, w) that ``make`` returns, inside `attention_maps` only."""
        if self._records_map:
            with torch.no_grad():
                self.attention_map = make().detach().float()

    def figures(self) -> dict[str, Tensor]:
        """Numbers to log in training, by name: by default `evenness` of the recorded map."""
        return {} if self.attention_map is None else evenness(self.attention_map)

    def describe(self) -> str:
        """A short caption for the map, such as the radius of a Gaussian."""
        return ""


def evenness(maps: Tensor) -> dict[str, Tensor]:
    """Entropy and peak of maps (B, heads, h, w). Negative weights count as 0.

    Returns:
        ``entropy``: entropy over positions relative to a uniform map, averaged over maps. ``peak``: the largest weight
        relative to the mean of its map.
    """
    share = maps.float().flatten(2).clamp(min=0)
    share = share / share.sum(2, keepdim=True).clamp(min=torch.finfo(share.dtype).tiny)
    n = share.shape[2]
    entropy = torch.special.entr(share).sum(2).mean() / math.log(n) if n > 1 else share.new_ones(())
    return {"entropy": entropy, "peak": n * share.max()}


@contextmanager
def attention_maps(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Record attention maps. The dictionary is filled when the context ends. Contexts can be nested.

    Yields:
        Maps (B, heads, h, w) of the last forward pass by module name.
    """
    attending = {name: module for name, module in model.named_modules() if isinstance(module, AttentionLayer)}
    maps: dict[str, Tensor] = {}
    before = [(module, module._records_map, module.attention_map) for module in attending.values()]
    for module in attending.values():
        module._records_map, module.attention_map = True, None
    try:
        yield maps
        maps |= {name: module.attention_map for name, module in attending.items() if module.attention_map is not None}
    finally:
        for module, kept, earlier in before:
            # An outer context gets these maps too. Without new ones it keeps its earlier map.
            module._records_map = kept
            if not kept or module.attention_map is None:
                module.attention_map = earlier


def captions(model: nn.Module) -> dict[str, str]:
    """Captions of attention modules by module name."""
    return {
        name: text
        for name, module in model.named_modules()
        if isinstance(module, AttentionLayer) and (text := module.describe())
    }


def stage_of(name: str) -> str:
    """The stage of a module: ``layer1`` of ``layer1.0.conv1``, ``stages.0`` of ``stages.0.3.attention``."""
    return re.match(r"[^.]*(\.\d+(?=\.\d))*", name)[0]  # type: ignore[index]

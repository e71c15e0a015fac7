"""Attention maps: how a module shows where it attends, whatever model it is in.

A module that attends derives from `Attends` and hands its map to `keep` in every forward pass; nothing is kept, and
nothing computed, unless somebody asks by `attention_maps`.

Example:
    >>> class Halves(Attends):
    ...     def forward(self, x):
    ...         self.keep(lambda: torch.full_like(x[:, :1], 0.5))
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

import torch
from torch import Tensor, nn


class Attends(nn.Module):
    """A module with an attention map.

    Attributes:
        attention_map: (B, heads, h, w) float32, detached: how much each position counts, as of the last forward pass inside
            `attention_maps`; of a module whose map differs from query to query, the map of the central query. None outside.
        no_weight_decay: names of own parameters that weight decay must leave alone.
    """

    attention_map: Tensor | None = None
    no_weight_decay: tuple[str, ...] = ()
    _keeps: bool = False

    def keep(self, make: Callable[[], Tensor]) -> None:
        """Keep what ``make`` returns, (B, heads, h, w), if somebody asked for maps."""
        if self._keeps:
            with torch.no_grad():
                self.attention_map = make().detach().float()

    def figures(self) -> dict[str, Tensor]:
        """Numbers to follow in training, by name: of the map that is kept, see `evenness`; none where none is."""
        return {} if self.attention_map is None else evenness(self.attention_map)

    def describe(self) -> str:
        """A few words to stand under the map, such as the radius of a Gaussian; nothing if there is nothing to say."""
        return ""


def evenness(maps: Tensor) -> dict[str, Tensor]:
    """How even maps (B, heads, h, w) of weights are, of which those below 0 count as 0.

    Returns:
        ``entropy`` over the positions, the mean of all maps, as a share of a uniform one's; ``peak``, the largest weight of all over the
        mean of its map.
    """
    share = maps.float().flatten(2).clamp(min=0)
    share = share / share.sum(2, keepdim=True).clamp(min=torch.finfo(share.dtype).tiny)
    n = share.shape[2]
    entropy = torch.special.entr(share).sum(2).mean() / math.log(n) if n > 1 else share.new_ones(())
    return {"entropy": entropy, "peak": n * share.max()}


@contextmanager
def attention_maps(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Collect the maps of the forward passes inside; they are in the dictionary when the context is left. Contexts nest.

    Yields:
        Module names to (B, heads, h, w); of several passes, the last one's.
    """
    attending = {name: module for name, module in model.named_modules() if isinstance(module, Attends)}
    maps: dict[str, Tensor] = {}
    before = [(module, module._keeps, module.attention_map) for module in attending.values()]
    for module in attending.values():
        module._keeps, module.attention_map = True, None
    try:
        yield maps
        maps |= {name: module.attention_map for name, module in attending.items() if module.attention_map is not None}
    finally:
        for module, kept, earlier in before:
            # A context around this one gets these maps as well, and still has the earlier ones where there are none.
            module._keeps = kept
            if not kept or module.attention_map is None:
                module.attention_map = earlier


def captions(model: nn.Module) -> dict[str, str]:
    """What the attending modules say of themselves, by module name."""
    return {name: said for name, module in model.named_modules() if isinstance(module, Attends) and (said := module.describe())}


def stage_of(name: str) -> str:
    """The part of a network that a module belongs to: ``layer1`` for ``layer1.0.conv1``, ``stages.0`` for ``stages.0.3.attention``."""
    return re.match(r"[^.]*(\.\d+(?=\.\d))*", name)[0]  # type: ignore[index]

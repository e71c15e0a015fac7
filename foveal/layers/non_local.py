"""Non-local block: attention between all pairs of positions.

"Non-local Neural Networks", Wang et al., CVPR 2018, https://arxiv.org/abs/1711.07971. ``timm.layers.NonLocalAttn``
reduces channels by 8 and has one kind of affinity; the paper reduces by 2 and has four.

Example:
    >>> block, x = NonLocal(64), torch.rand(2, 64, 8, 8)
    >>> torch.equal(block(x), x)  # identity at the start
    True
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from foveal.layers.maps import AttentionLayer


class NonLocal(AttentionLayer):
    """Map features x (B, C, h, w) to x + BN(W_z y), where y_i = sum_j f(x_i, x_j) g(x_j) and f is normalised over j.

    The attention map is f of the central position: (B, 1, h, w), or half that size with ``sub_sample``.

    Args:
        channels: C; theta, phi and g have C / 2.
        mode: the affinity f (section 3.2). ``embedded``: softmax of theta(x_i) . phi(x_j). ``gaussian``: softmax of
            x_i . x_j. ``dot``: theta(x_i) . phi(x_j) / N. ``concatenation``: relu(w . [theta(x_i), phi(x_j)]) / N.
        sub_sample: halve the grid of phi and g by max pooling (section 3.3).

    Raises:
        ValueError: unknown mode.
    """

    def __init__(self, channels: int, mode: str = "embedded", sub_sample: bool = False) -> None:
        super().__init__()
        if mode not in ("embedded", "gaussian", "dot", "concatenation"):
            raise ValueError(f"mode={mode!r} is unknown; use embedded, gaussian, dot or concatenation")
        self.mode, inner = mode, max(1, channels // 2)
        self.theta, self.phi = (
            nn.Identity() if mode == "gaussian" else nn.Conv2d(channels, inner, 1) for _ in range(2)
        )
        self.g = nn.Conv2d(channels, inner, 1)
        self.pool = nn.MaxPool2d(2) if sub_sample else nn.Identity()
        if mode == "concatenation":
            self.w = nn.Linear(2 * inner, 1, bias=False)
        self.out = nn.Conv2d(inner, channels, 1)
        self.bn = nn.BatchNorm2d(channels)
        # Section 4.1: the block starts as the identity, so it can be inserted into a trained network.
        nn.init.zeros_(self.bn.weight)

    def forward(self, x: Tensor) -> Tensor:
        keys = self.pool(self.phi(x))
        f = self.affinity(self.theta(x).flatten(2).transpose(1, 2), keys.flatten(2))
        h, w = x.shape[2:]
        self.record_map(lambda: f[:, h // 2 * w + w // 2].unflatten(1, (1, *keys.shape[2:])))
        y = f @ self.pool(self.g(x)).flatten(2).transpose(1, 2)
        return x + self.bn(self.out(y.transpose(1, 2).unflatten(2, (h, w))))

    def affinity(self, queries: Tensor, keys: Tensor) -> Tensor:
        """f: queries (B, N, c) and keys (B, c, M) to (B, N, M). The softmax is at least float32."""
        if self.mode == "concatenation":
            by_query, by_key = self.w.weight[0].to(queries.dtype).chunk(2)
            return (queries @ by_query.unsqueeze(1) + by_key @ keys.unsqueeze(1)).relu() / keys.shape[2]
        f = queries @ keys
        if self.mode == "dot":
            return f / keys.shape[2]
        return f.softmax(2, dtype=torch.promote_types(f.dtype, torch.float32)).to(f.dtype)

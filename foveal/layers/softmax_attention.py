"""Spatial softmax attention: features are multiplied by a softmax over positions of the output of a convolution.

"Attention-Based Convolutional Neural Networks for Image Classification", section 3.1, which has no equations. Let F (B,
C, h, w) be features on n = h w positions, Z = conv(F) logits (B, K, h, w), and A_k[p] = exp(Z_k[p] / tau) / sum_q
exp(Z_k[q] / tau) weights. The paper multiplies F by A. The weights of a map sum to 1, so this shrinks features and
gradients by about n; n A has the mean 1. But n A can be as large as n, and then training diverges at the paper's
learning rate of 0.1. `SpatialSoftmaxAttention` bounds the logits by default.

Example:
    >>> attention = SpatialSoftmaxAttention(16)
    >>> x = torch.rand(2, 16, 8, 8)
    >>> torch.equal(attention(x), x)  # logits of zero: uniform weights
    True
    >>> nn.init.normal_(attention.conv.weight).shape, attention(x).shape
    (torch.Size([4, 16, 3, 3]), torch.Size([2, 16, 8, 8]))
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foveal.layers.maps import AttentionLayer, evenness

CHOICES = {
    "maps": ("group", "one", "channel", "mean"),
    "mode": ("bounded", "scaled", "faithful", "gate", "residual", "sigmoid", "pool"),
    "softmax_axis": ("space", "channel"),
    "attn_input": ("dynamic", "fixed", "uniform"),
    "init": ("zero", "random"),
}


class SpatialSoftmaxAttention(AttentionLayer):
    """Multiply features (B, C, h, w) by attention maps; ``mode="pool"`` then sums over positions to (B, C).

    Args:
        channels: C.
        maps: assignment of K maps to C channels. ``group``: one for each of ``count`` equal groups of neighbouring
            channels. ``one``: a single map. ``channel``: one per channel. ``mean``: the average of ``count`` maps for
            all channels.
        count: K of ``group`` and ``mean``; None is 4.
        kernel_size: odd kernel size of the convolution for the logits.
        mode: multiplier of the features. ``bounded``: n A of the logits c tanh(Z / (c tau)), which has the mean 1 and
            is from exp(-2 c) to exp(2 c). ``scaled``: n A. ``faithful``: A, as in the paper. ``gate``: 1 + g (n A - 1)
            with a learned scalar g. ``residual``: 1 + A. ``sigmoid``: sigmoid(Z). ``pool``: A, then a sum over
            positions, for a classifier.
        softmax_axis: axis of the softmax: ``space``, the positions of a map, or ``channel``, the maps at a position
            (then n is K).
        temperature: tau; ``"learnable"`` starts at 1, ``"sqrt"`` is the square root of C.
        attn_input: input of the logits. ``dynamic``: the features. ``fixed``: a learned map of ``size``, the same for
            all images, resized to the features. ``uniform``: none; A = 1 / n, a control without parameters.
        bound: c of ``bounded``; None is 1.
        init: initial values of the convolution or map: ``zero`` (uniform weights) or ``random`` (PyTorch's default;
            normal for ``fixed``).
        gate: initial g; None is 1 with zero logits (equal to ``scaled``) and 0 with random ones.
        clip: upper bound of n A in ``scaled``, for example 4 or 8; None does not bound it.
        size: (height, width) of the features, for ``fixed``.

    Attributes:
        heads: number of maps in ``attention_map``, which holds the multiplier of the features (n A in ``pool``).

    Raises:
        ValueError: an unknown choice, maps that do not divide the channels, or a combination that cannot learn.
    """

    def __init__(
        self,
        channels: int,
        *,
        maps: str = "group",
        count: int | None = None,
        kernel_size: int = 3,
        mode: str = "bounded",
        bound: float | None = None,
        softmax_axis: str = "space",
        temperature: float | str = 1.0,
        attn_input: str = "dynamic",
        init: str = "zero",
        gate: float | None = None,
        clip: float | None = None,
        size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        given = {"maps": maps, "mode": mode, "softmax_axis": softmax_axis, "attn_input": attn_input, "init": init}
        for name, value in given.items():
            if value not in CHOICES[name]:
                raise ValueError(f"{name}={value!r} is unknown; use {', '.join(CHOICES[name])}")
        k = {"one": 1, "channel": channels}.get(maps, 4 if count is None else count)
        if count not in (None, k):
            raise ValueError(f"maps={maps!r} has {k} map{'s' if k > 1 else ''}, not {count}; leave count out")
        self.heads = 1 if maps in ("one", "mean") else k
        if k < 1 or channels % self.heads:
            raise ValueError(f"{k} maps cannot share {channels} channels equally; choose a count that divides them")
        if kernel_size < 1:
            raise ValueError(f"kernel_size={kernel_size} is too small; use an odd number from 1")
        if kernel_size % 2 == 0:
            raise ValueError(
                f"kernel_size={kernel_size} is even and would shift the maps by half a position; use an odd one"
            )
        if softmax_axis == "channel" and (self.heads == 1 or mode == "pool"):
            raise ValueError(
                "a softmax over channels needs several maps and no pooling; use maps='group' or softmax_axis='space'"
            )
        if clip is not None and (mode != "scaled" or not isinstance(clip, (int, float)) or clip < 1):
            raise ValueError("clip bounds n A, whose mean is 1; use a clip of 1 or more, with mode='scaled'")
        if bound is not None and (mode != "bounded" or not isinstance(bound, (int, float)) or not 0 < bound < math.inf):
            raise ValueError(f"bound={bound} limits logits; use a positive number, with mode='bounded'")
        self.k, self.mode, self.softmax_axis, self.attn_input, self.init, self.clip = (
            k,
            mode,
            softmax_axis,
            attn_input,
            init,
            clip,
        )
        self.bound = (1.0 if bound is None else float(bound)) if mode == "bounded" else None
        self._evenness: dict[str, Tensor] = {}

        if attn_input == "dynamic":
            self.conv = nn.Conv2d(channels, k, kernel_size, padding=kernel_size // 2)
        elif attn_input == "fixed":
            if size is None:
                raise ValueError(
                    "attn_input='fixed' learns a map of one size; give size=(height, width) of the features"
                )
            self.logit_map = nn.Parameter(torch.empty(1, k, *size))
        if gate is not None and mode != "gate":
            raise ValueError(f"mode={mode!r} has no gate; use mode='gate', or leave gate out")
        if mode == "sigmoid" and (temperature != 1 or softmax_axis != "space"):
            raise ValueError("mode='sigmoid' has no softmax; leave temperature and softmax_axis out")
        if mode == "gate":
            if attn_input == "uniform":
                raise ValueError(
                    "a gate over uniform maps never gets a gradient; use mode='scaled' or another attn_input"
                )
            start = (0.0 if init == "random" else 1.0) if gate is None else gate
            if start == 0 and init == "zero":
                raise ValueError("a gate of 0 over logits of 0 never gets a gradient; use gate=1.0 or init='random'")
            self.gate = nn.Parameter(torch.tensor(float(start)))
        self.tau: float | None = None
        if temperature == "learnable":
            self.log_temperature = nn.Parameter(torch.zeros(()))
        else:
            try:
                self.tau = math.sqrt(channels) if temperature == "sqrt" else float(temperature)
            except ValueError:
                self.tau = 0.0
            if not 0 < self.tau < math.inf:
                raise ValueError(
                    f"temperature={temperature} is not valid; use a positive number, 'learnable' or 'sqrt'"
                )
        self.no_weight_decay = tuple(name for name in ("gate", "log_temperature") if hasattr(self, name))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the logits by ``init``. Call this after initialising all convolutions of a network alike."""
        if self.attn_input == "dynamic":
            self.conv.reset_parameters()
            if self.init == "zero":
                nn.init.zeros_(self.conv.weight)
                nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]
        elif self.attn_input == "fixed":
            nn.init.normal_(self.logit_map, std=float(self.init == "random"))

    def forward(self, x: Tensor) -> Tensor:
        z = self.logits(x)
        multiplier = self.multiplier(z)
        self.record_map(lambda: self._with_evenness(z, multiplier.expand(len(x), -1, -1, -1)))
        if x.dtype == torch.float16:
            multiplier = multiplier.clamp(max=torch.finfo(x.dtype).max)  # n A can overflow from 256 x 256 positions on
        # A product of five axes would be a third slower on a CPU.
        y = x * multiplier.to(x.dtype).repeat_interleave(x.shape[1] // self.heads, 1)
        return y.mean((2, 3)) if self.mode == "pool" else y

    def logits(self, x: Tensor) -> Tensor:
        """Z: (B, K, h, w), or (1, K, h, w) if it is the same for all images."""
        if self.attn_input == "dynamic":
            return self.conv(x)
        if self.attn_input == "uniform":
            return x.new_zeros(1, self.k, *x.shape[2:])
        same = self.logit_map.shape[2:] == x.shape[2:]
        return (
            self.logit_map if same else F.interpolate(self.logit_map, x.shape[2:], mode="bilinear", align_corners=False)
        )

    def weights(self, z: Tensor) -> Tensor:
        """A: softmax of the logits, of the same shape, in float32 or more even under autocast."""
        tau = self.log_temperature.exp() if self.tau is None else self.tau
        z = z.to(torch.promote_types(z.dtype, torch.float32)) / tau
        if self.bound is not None:
            z = self.bound * (z / self.bound).tanh()
        return z.softmax(1) if self.softmax_axis == "channel" else z.flatten(2).softmax(2).unflatten(2, z.shape[2:])

    def multiplier(self, z: Tensor) -> Tensor:
        """Multiplier of the features: logits (B, K, h, w) to (B, heads, h, w)."""
        a = self._attention(z)
        if self.heads < self.k:
            a = a.mean(1, keepdim=True)
        n = self.k if self.softmax_axis == "channel" else z.shape[2] * z.shape[3]
        if self.mode in ("bounded", "scaled", "pool"):
            return (n * a).clamp(max=self.clip) if self.clip else n * a
        if self.mode == "gate":
            return 1 + self.gate * (n * a - 1)
        return 1 + a if self.mode == "residual" else a

    def _attention(self, z: Tensor) -> Tensor:
        return z.sigmoid() if self.mode == "sigmoid" else self.weights(z)

    def figures(self) -> dict[str, Tensor]:
        """`evenness` of A when a map was last recorded."""
        return self._evenness

    def describe(self) -> str:
        """Entropy (1 if uniform) of A, and its largest value relative to the mean, when a map was last recorded."""
        of = self._evenness
        return f"entropy {of['entropy']:.3f}, peak {of['peak']:.1f} x the mean" if of else ""

    def extra_repr(self) -> str:
        options = (
            f"mode={self.mode}, maps={self.k}, heads={self.heads}, softmax_axis={self.softmax_axis}, "
            f"attn_input={self.attn_input}"
        )
        tau = "learnable" if self.tau is None else f"{self.tau:g}"
        limits = "".join(f", {name}={value:g}" for name in ("bound", "clip") if (value := getattr(self, name)))
        return f"{options}, init={self.init}, temperature={tau}{limits}"

    def _with_evenness(self, z: Tensor, multiplier: Tensor) -> Tensor:
        self._evenness = evenness(self._attention(z))
        return multiplier

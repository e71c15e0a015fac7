"""Explicitly modelled attention: the map is a function of distance with a learned radius, the same for all images.

"Explicitly Modeled Attention Maps for Image Classification", Tan et al., AAAI 2021, https://arxiv.org/abs/2006.07872.
Only the abstract was available. Other choices follow attention augmentation (https://arxiv.org/abs/1904.09925); the
parameter counts of the networks then agree with the abstract.

The layer replaces a k x k convolution. Some output channels, the values, come from a 1x1 convolution, are averaged over
the whole grid with weights that fall with distance, and are mixed by another 1x1 convolution. The other channels remain
a convolution.

Example:
    >>> layer = ExplicitAttention(64, 128, stride=2, ratio=0.1)
    >>> layer(torch.rand(2, 64, 28, 28)).shape
    torch.Size([2, 128, 14, 14])
    >>> layer.describe()
    'radius 0.10 of the side'
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from foveal.layers.maps import AttentionLayer

DENSE_QUERIES = 4096
"""With more queries, a dense map is computed in pieces of this many, and again in the backward pass, to save memory."""


class Kernel(NamedTuple):
    """Weight of a position as a function of its distance.

    Attributes:
        weigh: unnormalised weights of distances given in radii.
        separable: the weight of (dy, dx) is the product of the weights of dy and dx; else it depends on the Euclidean
            distance.
        learns: the radius has a gradient.
        smallest: smallest effective radius in pixels. A query between pixels must reach at least one.
        fixed: radius in pixels of a kernel without a radius parameter.
    """

    weigh: Callable[[Tensor], Tensor]
    separable: bool
    learns: bool = True
    smallest: float = 0.3
    fixed: float | None = None


def _within(z: Tensor) -> Tensor:
    return (z.abs() <= 1 + 1e-4).to(z.dtype)  # tolerance for the rounding of a radius such as exp(log(3))


def _linear(z: Tensor) -> Tensor:
    return (1 - z.abs()).relu()


def _exponential(z: Tensor) -> Tensor:
    return z.abs().neg().exp()


KERNELS = {
    "gauss": Kernel(lambda z: (-z.square() / 2).exp(), separable=True),
    "laplace1": Kernel(_exponential, separable=True),
    "laplace2": Kernel(_exponential, separable=False),
    "box": Kernel(_within, separable=True, learns=False, smallest=0.75),
    "disc": Kernel(_within, separable=False, learns=False, smallest=0.75),
    "cone": Kernel(_linear, separable=False, smallest=0.75),
    "triangle": Kernel(_linear, separable=True, smallest=0.75),
    "cauchy": Kernel(lambda z: 1 / (1 + z.square()), separable=False),
    "uniform": Kernel(_within, separable=True, learns=False, fixed=math.inf),
    "identity": Kernel(_within, separable=True, learns=False, fixed=0.5),
}


RAW: dict[str, Callable[[float], float]] = {
    "log": math.log,
    "softplus": lambda radius: radius + math.log(-math.expm1(-radius)),
    "inv": lambda radius: 1 / radius,
}
"""Inverse of each ``radius_param``: radius to the raw parameter."""


class _LowerBound(torch.autograd.Function):
    """The maximum of a tensor and a bound. Below the bound, only gradients that increase the tensor pass.

    A plain clamp has no gradient there, so a value below the bound could not grow again. With the full gradient it
    could fall without limit.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, bound: float) -> Tensor:
        return x.clamp(min=bound)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.bound = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return torch.where(x < ctx.bound, grad.clamp(max=0), grad), None


class Radius(nn.Module):
    """A positive number, or one per head, learned without constraints. Several layers can share one.

    Args:
        init: initial radius.
        count: number of radii.
        param: parametrisation: "log" (logarithm), "softplus" (inverse softplus) or "inv" (inverse; reaches infinite
            radii).
        train: False fixes the radius.
    """

    no_weight_decay = ("raw",)

    def __init__(
        self, init: float, count: int = 1, param: Literal["log", "softplus", "inv"] = "log", train: bool = True
    ) -> None:
        super().__init__()
        if not isinstance(init, (int, float)) or not 0 < init < math.inf:
            raise ValueError(f"radius_init={init!r} is not a radius; choose a number above 0.")
        if param not in RAW:
            raise ValueError(f"radius_param={param!r} is unknown; choose one of {', '.join(RAW)}.")
        self.init, self.param = init, param
        self.raw = nn.Parameter(torch.full((count,), RAW[param](init)), requires_grad=train)

    def inverse(self, dtype: torch.dtype = torch.float32, smallest: float | None = None) -> Tensor:
        """1 / radius, (count,). Smaller radii count as ``smallest``."""
        raw = self.raw.to(dtype)
        if self.param == "inv":
            inverse = raw.abs()
            return inverse if smallest is None else -_LowerBound.apply(-inverse, -1 / smallest)
        # Bound the raw parameter, not the inverse radius: its slope is unbounded for small radii.
        if smallest is not None:
            raw = _LowerBound.apply(raw, RAW[self.param](smallest))
        return raw.neg().exp() if self.param == "log" else 1 / F.softplus(raw)

    def forward(self) -> Tensor:
        """The radius, (count,), in the units of the layer."""
        return 1 / self.inverse()


class ExplicitAttention(AttentionLayer):
    """Replacement for ``Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=False)``.

    Maps (B, in_channels, H, W) to (B, out_channels, ceil(H / stride), ceil(W / stride)). Channels of the convolution
    come first.

    Args:
        ratio: fraction of attention channels in the output (upsilon), rounded down to a multiple of the heads. 0 is a
            plain convolution, 1 has no convolution.
        value_channels: number of attention channels; None derives it from ``ratio``.
        heads: number of groups of values, each with its own radius.
        kernel: a name from `KERNELS`. The radius of "box" and "disc" has no gradient; "uniform" and "identity" have no
            radius.
        coord: unit of the radius: "norm", the longer side of the grid, or "pixel", a pixel of the grid.
        radius_param: parametrisation of the radius, see `Radius`.
        radius_init: initial radius in the units of ``coord``.
        radius_train: False fixes the radius.
        attn_stride: with a stride: "query" averages around the centres of its cells, "pool" pools the input first.
        impl: "dense" (an N x N map), "separable" (one map per axis, the same result) or "auto": separable if the kernel
            is, except for several heads on grids of up to 100 pixels.
        output_projection: end with a 1x1 convolution of the values.

    Raises:
        ValueError: impossible options.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        *,
        ratio: float = 0.1,
        value_channels: int | None = None,
        heads: int = 1,
        kernel: str = "gauss",
        coord: Literal["norm", "pixel"] = "norm",
        radius_param: Literal["log", "softplus", "inv"] = "log",
        radius_init: float = 0.1,
        radius_train: bool = True,
        attn_stride: Literal["query", "pool"] = "query",
        impl: Literal["auto", "dense", "separable"] = "auto",
        output_projection: bool = True,
    ) -> None:
        super().__init__()
        for name, value, known in (
            ("kernel", kernel, tuple(KERNELS)),
            ("coord", coord, ("norm", "pixel")),
            ("attn_stride", attn_stride, ("query", "pool")),
            ("impl", impl, ("auto", "dense", "separable")),
        ):
            if value not in known:
                raise ValueError(f"{name}={value!r} is unknown; choose one of {', '.join(known)}.")
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size={kernel_size} is even; choose an odd one.")
        if impl == "separable" and not KERNELS[kernel].separable:
            raise ValueError(
                f"impl='separable' does not support kernel={kernel!r}, which is not separable; choose impl='auto'."
            )
        if heads != int(heads) or heads < 1:
            raise ValueError(f"heads={heads!r} is not possible; choose a whole number from 1.")
        heads = int(heads)  # from a NumPy integer
        if value_channels is None:
            value_channels = math.floor(ratio * out_channels + 1e-9) // heads * heads
            if ratio > 0 and not value_channels:
                raise ValueError(
                    f"ratio={ratio} of {out_channels} output channels leaves no channels for {heads} heads; "
                    "choose a larger ratio, fewer heads, or ratio=0 for the plain convolution."
                )
        if not 0 <= value_channels <= out_channels or value_channels % heads:
            raise ValueError(
                f"{value_channels} value channels in {heads} heads do not fit {out_channels} output channels; "
                "choose a multiple of the heads from 0 to the output channels (a ratio from 0 to 1)."
            )
        self.in_channels, self.out_channels, self.kernel_size, self.stride = (
            in_channels,
            out_channels,
            kernel_size,
            stride,
        )
        self.value_channels, self.heads = value_channels, heads
        self.kernel, self.coord, self.attn_stride, self.impl = kernel, coord, attn_stride, impl
        self.conv: nn.Conv2d | None = None
        if value_channels < out_channels:
            self.conv = nn.Conv2d(
                in_channels, out_channels - value_channels, kernel_size, stride, kernel_size // 2, bias=False
            )
            nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")
        self.radius: Radius | None = None
        if value_channels:
            self.value = nn.Conv2d(in_channels, value_channels, 1, bias=False)
            self.project = (
                nn.Conv2d(value_channels, value_channels, 1, bias=False) if output_projection else nn.Identity()
            )
            if KERNELS[kernel].fixed is None:
                self.radius = Radius(radius_init, heads, radius_param, radius_train and KERNELS[kernel].learns)
        self._mixing_stride = 1 if attn_stride == "pool" else stride
        self._cached: tuple[tuple, Tensor | None, tuple[Tensor, ...]] | None = None
        self._grid: tuple[int, int] | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.value_channels:
            return self.conv(x)  # type: ignore[misc]
        pooled = self.attn_stride == "pool" and self.stride > 1
        v = self.value(F.avg_pool2d(x, self.stride, ceil_mode=True, count_include_pad=False) if pooled else x)
        self.record_map(lambda: self._central_map(v))
        y = self.project(self._mix(v))
        return y if self.conv is None else torch.cat([self.conv(x), y], 1)

    def _mix(self, v: Tensor) -> Tensor:
        """A V per head: (B, value_channels, H, W) to (B, value_channels, H_o, W_o)."""
        grid = (v.shape[-2], v.shape[-1])
        if self._separates(grid):
            return _by_head(_mix_axes, v, *self._cached_maps(self._axis_maps, grid, v))
        if grid[0] * grid[1] <= DENSE_QUERIES:
            return _mix_all(v, self._cached_maps(self._dense_map, grid, v)[0], -(-grid[1] // self._mixing_stride))
        return self._mix_in_pieces(v, grid)

    def _separates(self, grid: tuple[int, int]) -> bool:
        # Measured on a CPU. With one map, separable is never slower from 7 x 7 on. With several, it is slower on small
        # grids.
        worth = self.impl == "separable" or self.has_one_map or grid[0] * grid[1] > 100
        return self.impl != "dense" and KERNELS[self.kernel].separable and worth

    def _mix_in_pieces(self, v: Tensor, grid: tuple[int, int]) -> Tensor:
        dy, dx = self._distances(grid, v)
        inverse = self._inverse_radius(grid, dy.dtype)

        def piece(v: Tensor, inverse: Tensor, dy: Tensor) -> Tensor:
            return _mix_all(v, self._weigh_all(dy, dx, inverse).to(v.dtype), len(dx))

        pieces = dy.split(max(1, DENSE_QUERIES // len(dx)))
        return torch.cat([checkpoint(piece, v, inverse, rows, use_reentrant=False) for rows in pieces], 2)  # type: ignore[misc]

    # The maps

    def _cached_maps(
        self, make: Callable[..., tuple[Tensor, ...]], grid: tuple[int, int], v: Tensor
    ) -> tuple[Tensor, ...]:
        """Maps of ``make``. In evaluation they are cached until the radius changes."""
        raw = None if self.radius is None else self.radius.raw
        watched = torch.compiler.is_compiling() or torch.jit.is_tracing()
        if self.training or torch.is_grad_enabled() or watched or (raw is not None and raw.is_inference()):
            return make(grid, v)
        if (address := _address(raw)) is None:
            return make(grid, v)
        # In-place changes increase the version of a parameter. New memory changes its address, which is not reused
        # while the cache holds the old memory. Only writes through ``.data`` are missed.
        key = (make.__name__, grid, v.dtype, v.device, address, raw is not None and raw._version)
        cached = self._cached  # read once: another thread may replace it
        if cached is None or cached[0] != key:
            cached = self._cached = key, None if raw is None else raw.detach(), make(grid, v)
        return cached[2]

    def __getstate__(self) -> dict[str, Any]:
        # Maps are not state, and the version of a copied parameter starts again at 0.
        return {**self.__dict__, "_cached": None}

    def train(self, mode: bool = True) -> Self:
        self._cached = None
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._cached = None
        return super()._apply(fn, recurse)

    def _axis_maps(self, grid: tuple[int, int], v: Tensor) -> tuple[Tensor, ...]:
        """Rows (heads, H_o, H) and columns (heads, W_o, W); each row sums to 1."""
        dy, dx = self._distances(grid, v)
        inverse = self._inverse_radius(grid, dy.dtype)
        rows = self._weigh(dy, inverse).to(v.dtype)
        return rows, rows if grid[0] == grid[1] else self._weigh(dx, inverse).to(v.dtype)

    def _dense_map(self, grid: tuple[int, int], v: Tensor) -> tuple[Tensor, ...]:
        """(heads, H_o W_o, H W); each row sums to 1."""
        dy, dx = self._distances(grid, v)
        return (self._weigh_all(dy, dx, self._inverse_radius(grid, dy.dtype)).to(v.dtype),)

    def _weigh_all(self, dy: Tensor, dx: Tensor, inverse: Tensor) -> Tensor:
        if KERNELS[self.kernel].separable:
            rows, columns = self._weigh(dy, inverse), self._weigh(dx, inverse)
            return (rows[:, :, None, :, None] * columns[:, None, :, None, :]).flatten(3).flatten(1, 2)
        return self._weigh(torch.hypot(dy[:, None, :, None], dx[None, :, None, :]).flatten(2).flatten(0, 1), inverse)

    def _weigh(self, distance: Tensor, inverse: Tensor) -> Tensor:
        """Weights (heads, queries, keys) of distances (queries, keys); rows sum to 1."""
        weights = KERNELS[self.kernel].weigh(distance * inverse[:, None, None])
        return weights / weights.sum(-1, keepdim=True)

    def _inverse_radius(self, grid: tuple[int, int], dtype: torch.dtype) -> Tensor:
        """1 / radius in pixels of ``grid``: (heads,)."""
        kernel = KERNELS[self.kernel]
        if self.radius is None:
            return torch.full((1,), 1 / kernel.fixed, dtype=dtype, device=self.value.weight.device)  # type: ignore[operator]
        unit = max(grid) if self.coord == "norm" else 1
        return self.radius.inverse(dtype, kernel.smallest / unit) / unit

    def _distances(self, grid: tuple[int, int], v: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels from queries to keys by axis: (H_o, H), (W_o, W). Queries are the centres of stride cells."""
        dtype = torch.float64 if v.dtype == torch.float64 else torch.float32

        def along(cells: int) -> Tensor:
            keys = torch.arange(cells, dtype=dtype, device=v.device)
            first = keys[:: self._mixing_stride]
            last = (first + self._mixing_stride - 1).clamp(max=cells - 1)
            return (first + last)[:, None] / 2 - keys

        return along(grid[0]), along(grid[1])

    # Attention maps and captions

    @property
    def has_one_map(self) -> bool:
        """Whether all attention channels share one map: one head, one radius, or no radius."""
        return self.radius is None or self.radius.raw.numel() == 1

    def output_grid(self, grid: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of the queries for a ``grid`` as in `attention_map_of`."""
        return -(-grid[0] // self._mixing_stride), -(-grid[1] // self._mixing_stride)

    def attention_map_of(self, query: tuple[int, int], grid: tuple[int, int]) -> Tensor:
        """Attention map of one query.

        Args:
            query: (y, x) on the output grid.
            grid: (height, width) of the keys: that of the input, or of the output with ``attn_stride="pool"``.

        Returns:
            (heads, height, width) in float32 or float64, like the weights. Each head sums to 1.

        Raises:
            ValueError: the layer has no attention channels, or the query is outside the grid.
        """
        if not self.value_channels:
            raise ValueError("this layer is a plain convolution without a map; choose a larger ratio.")
        dy, dx = self._distances(grid, self.value.weight)
        if not (0 <= query[0] < len(dy) and 0 <= query[1] < len(dx)):
            raise ValueError(f"query {query} is outside the output grid of {len(dy)} x {len(dx)}; choose one inside.")
        weights = self._weigh_all(dy[query[0], None], dx[query[1], None], self._inverse_radius(grid, dy.dtype))
        return weights.reshape(-1, *grid)

    def _central_map(self, v: Tensor) -> Tensor:
        self._grid = (v.shape[-2], v.shape[-1])
        height, width = self.output_grid(self._grid)
        return self.attention_map_of((height // 2, width // 2), self._grid).expand(len(v), -1, -1, -1)

    def figures(self) -> dict[str, Tensor]:
        """Radii in the units of ``coord``; with several heads one per head, counted from 0."""
        if self.radius is None:
            return {}
        radii = self.radius().detach()
        return (
            {"radius": radii[0]} if len(radii) == 1 else {f"radius {head}": radius for head, radius in enumerate(radii)}
        )

    def describe(self) -> str:
        """The radius, also in pixels of the grid of the last recorded map."""
        if self.radius is None:
            return ""
        with torch.no_grad():
            pixels = self._grid and [f"{1 / i:.1f}" for i in self._inverse_radius(self._grid, torch.float32).tolist()]
            radii = ", ".join(f"{r:.2f}" for r in self.radius().tolist())
        word = "radius" if self.radius.raw.numel() == 1 else "radii"
        if self.coord == "pixel":
            return f"{word} {radii} px"
        return f"{word} {radii} of the side" + (f", {', '.join(pixels)} px" if pixels else "")

    def extra_repr(self) -> str:
        heads = (
            f"{self.value_channels} of {self.out_channels} channels attend in {self.heads} "
            f"head{'s' if self.heads > 1 else ''}"
        )
        return f"{heads}, kernel={self.kernel}, coord={self.coord}, attn_stride={self.attn_stride}, impl={self.impl}"

    @torch.no_grad()
    def fold(self) -> Self:
        """Merge the two 1x1 convolutions for inference. The output is the same.

        Returns:
            This layer.

        Raises:
            ValueError: heads have different maps, which do not commute with a convolution across heads.
        """
        if not self.has_one_map:
            raise ValueError(
                f"a layer with {self.heads} different maps cannot be folded; choose heads=1, or share the radius."
            )
        if self.value_channels and isinstance(self.project, nn.Conv2d):
            product = self.project.weight.double().flatten(1) @ self.value.weight.double().flatten(1)
            self.value.weight.copy_(product[:, :, None, None])
            self.project = nn.Identity()
        return self


def _address(raw: Tensor | None) -> int | None:
    """Memory address of a parameter: 0 without one, None if it has no storage of its own, as under `torch.vmap`."""
    try:
        return 0 if raw is None else raw.data_ptr()
    except RuntimeError:
        return None


def _mix_axes(v: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """rows V columns^T per channel: (B, C, H, W), (H_o, H), (W_o, W) to (B, C, H_o, W_o).

    Both products are in channels-last layout.
    """
    v = v.permute(0, 2, 3, 1)
    # Start with the axis that leaves fewer values.
    if rows.shape[0] * v.shape[2] <= columns.shape[0] * v.shape[1]:
        v = _mix_columns(_mix_rows(v, rows), columns)
    else:
        v = _mix_rows(_mix_columns(v, columns), rows)
    return v.permute(0, 3, 1, 2)


def _mix_rows(v: Tensor, rows: Tensor) -> Tensor:
    """(B, H, W, C) to (B, H_o, W, C)."""
    batch, height, width, channels = v.shape
    return torch.bmm(rows.expand(batch, -1, -1), v.reshape(batch, height, width * channels)).view(
        batch, rows.shape[0], width, channels
    )


def _mix_columns(v: Tensor, columns: Tensor) -> Tensor:
    """(B, H, W, C) to (B, H, W_o, C)."""
    batch, height, width, channels = v.shape
    if columns.shape[0] > 4 * channels:
        # Without this, the gradient of ``columns`` would need W_o x W numbers per image row: more than the values.
        return F.linear(v.mT, columns).mT
    return torch.bmm(columns.expand(batch * height, -1, -1), v.reshape(batch * height, width, channels)).unflatten(
        0, (batch, height)
    )


def _mix_all(v: Tensor, maps: Tensor, width: int) -> Tensor:
    """A V: (B, heads c, H, W) and (heads, H_o W_o, H W) to (B, heads c, H_o, W_o)."""
    return _by_head(F.linear, v.flatten(2), maps).unflatten(2, (-1, width))


def _by_head(mix: Callable[..., Tensor], v: Tensor, *maps: Tensor) -> Tensor:
    """Apply ``mix`` per head to its channels and maps, and concatenate."""
    if len(maps[0]) == 1:
        return mix(v, *(one[0] for one in maps))  # chunk and cat would copy the gradient

    return torch.cat([mix(part, *own) for part, *own in zip(v.chunk(len(maps[0]), 1), *maps, strict=True)], 1)

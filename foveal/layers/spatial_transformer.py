"""Spatial transformer: a localisation network predicts an affine transformation that resamples the feature map.

"Spatial Transformer Networks" (Jaderberg et al., NeurIPS 2015, arXiv 1506.02025), section 3, affine.

Example:
    >>> transform = SpatialTransformer(3).eval()
    >>> x = torch.rand(2, 3, 20, 24)
    >>> torch.allclose(transform(x), x, atol=1e-5)
    True
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foveal.layers.maps import AttentionLayer


class SpatialTransformer(AttentionLayer):
    """Resample features (B, C, H, W) on an affine grid to (B, C, *size). Starts as the identity.

    Coordinates run from -1 to 1, from the outer edge of the first pixel to that of the last (``align_corners=False``).
    Values outside are 0. The attention map (B, 1, H, W) is the density of samples: the total weight of each input
    position in the output.

    The paper's localisation networks differ by task. This one has two 3x3 convolutions with batch norm and 2x2 max
    pooling, an average over a 4x4 grid, and two linear layers. It learns better with a lower learning rate than the
    rest (a tenth in the paper's SVHN runs). All its parameters are in ``localisation``.

    Args:
        in_channels: C.
        size: (height, width) of the output; None is that of the input.
        width: channels of the convolutions and units of the hidden layer of the localisation network.
    """

    def __init__(self, in_channels: int, size: tuple[int, int] | None = None, width: int = 32) -> None:
        super().__init__()
        self.size = size
        convs: list[nn.Module] = []
        for channels in (in_channels, width):
            convs += [
                nn.Conv2d(channels, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            ]
            convs.append(nn.MaxPool2d(2, ceil_mode=True))
        theta = _Float32Linear(width, 6)
        nn.init.zeros_(theta.weight)
        with torch.no_grad():
            theta.bias.copy_(torch.eye(2, 3).flatten())
        self.localisation = nn.Sequential(
            *convs, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * width, width), nn.LeakyReLU(0.1), theta
        )

    def locate(self, x: Tensor) -> Tensor:
        """theta (B, 2, 3) from output (x, y, 1) to input (x, y) coordinates, all from -1 to 1 (equation 1)."""
        return self.localisation(x).unflatten(1, (2, 3))

    def forward(self, x: Tensor) -> Tensor:
        size = self.size or (x.shape[-2], x.shape[-1])
        exact = torch.promote_types(x.dtype, torch.float32)
        grid = affine_grid(self.locate(x).to(exact), size)
        self.record_map(lambda: sampling_density(grid, (x.shape[-2], x.shape[-1])))
        return F.grid_sample(x.to(exact), grid, align_corners=False).to(x.dtype)


class _Float32Linear(nn.Linear):
    """A linear layer in float32 or more, even under autocast. bfloat16 positions are only exact to a pixel of 256."""

    def forward(self, x: Tensor) -> Tensor:
        exact = torch.promote_types(x.dtype, torch.float32)
        # Autocast does not change products and sums. Disabling autocast is an error on the meta device.
        return (x.to(exact)[:, None] * self.weight.to(exact)).sum(2) + self.bias.to(exact)


def affine_grid(theta: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, h, w, 2) input coordinates of the pixels of an output of ``size``, for theta (B, 2, 3)."""
    # Not F.affine_grid: autocast computes its matrix product in bfloat16.
    y, x = ((2 * torch.arange(n, device=theta.device, dtype=theta.dtype) + 1) / n - 1 for n in size)
    per_axis = theta[:, None, None]
    return per_axis[..., 0] * x[:, None] + per_axis[..., 1] * y[:, None, None] + per_axis[..., 2]


def sampling_density(grid: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, 1, H, W) summed weights of bilinear sampling at ``grid`` (B, h, w, 2) in an input of ``size``."""
    ones, image = grid.new_ones(len(grid), 1, *grid.shape[1:3]), grid.new_empty(len(grid), 1, *size)
    # The adjoint of sampling, applied to ones, sums the weights. It is called directly because inference mode has no
    # autograd.
    bilinear, zeros = 0, 0
    return torch.ops.aten.grid_sampler_2d_backward(ones, image, grid, bilinear, zeros, False, (True, False))[0]

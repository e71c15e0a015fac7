"""The spatial transformer: initial identity, grids, maps, and training on transformed digits."""

from __future__ import annotations

import math

import pytest
import timm
import torch
from torch.nn import functional as F

import foveal.backbones  # noqa: F401
from foveal.layers import SpatialTransformer, attention_maps
from foveal.layers.spatial_transformer import affine_grid, sampling_density


def thetas(count: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    noise = torch.randn(count, 2, 3, dtype=dtype, generator=torch.Generator().manual_seed(0))
    return torch.eye(2, 3, dtype=dtype) + 0.3 * noise


@pytest.mark.parametrize("size", [(16, 16), (17, 40), (33, 20)])
def test_the_network_begins_as_the_one_without_a_transformer(size):
    net = timm.create_model("stn_cnn", in_chans=2).eval()
    plain = timm.create_model("plain_convnet_32", in_chans=2).eval()
    plain.load_state_dict({name: w for name, w in net.state_dict().items() if not name.startswith("transformer.")})
    x = torch.randn(2, 2, *size)
    torch.testing.assert_close(net.transformer(x), x, rtol=0, atol=1e-4)
    torch.testing.assert_close(net(x), plain(x), rtol=1e-3, atol=1e-4)


def test_a_smaller_output_is_a_smaller_grid_of_the_whole_image():
    x = torch.randn(2, 3, 32, 24)
    small = SpatialTransformer(3, size=(16, 12)).eval()(x)
    torch.testing.assert_close(small, F.avg_pool2d(x, 2), rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(5, 8), (1, 1), (16, 3)])
def test_the_grid_is_torchs(size):
    theta = thetas(3)
    torch.testing.assert_close(affine_grid(theta, size), F.affine_grid(theta, (3, 1, *size), align_corners=False))


def test_autocast_leaves_positions_exact():
    theta = thetas(2, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(affine_grid(theta, (64, 64)), affine_grid(theta.double(), (64, 64)).float())
        assert SpatialTransformer(3)(torch.randn(2, 3, 32, 32)).dtype == torch.float32


def test_a_known_transform_against_loops():
    transform = SpatialTransformer(1).double().eval()
    x = torch.randn(1, 1, 6, 6, dtype=torch.float64)
    with torch.no_grad():  # a quarter turn and a shift by one pixel
        transform.localisation[-1].bias.copy_(torch.tensor([0.0, 1.0, 2 / 6, -1.0, 0.0, 0.0]))
    expected = torch.zeros_like(x)
    for i in range(6):
        for j in range(6):
            row, column = 5 - j, i + 1
            expected[0, 0, i, j] = x[0, 0, row, column] if column < 6 else 0
    torch.testing.assert_close(transform(x), expected)


def test_density_is_what_each_pixel_weighs():
    grid = affine_grid(thetas(2), (7, 5))
    x = torch.zeros(2, 1, 8, 6, dtype=torch.float64, requires_grad=True)
    F.grid_sample(x, grid, align_corners=False).sum().backward()
    torch.testing.assert_close(sampling_density(grid, (8, 6)), x.grad)


def test_its_map():
    net = timm.create_model("stn_cnn", size=(16, 16)).eval()
    with torch.no_grad():  # half the size, around the centre
        net.transformer.localisation[-1].bias.mul_(0.5)
    with torch.inference_mode(), attention_maps(net) as maps:
        net(torch.rand(2, 3, 32, 32))
    expected = torch.zeros(2, 1, 32, 32)
    expected[..., 8:24, 8:24] = 1
    torch.testing.assert_close(maps["transformer"], expected, rtol=0, atol=1e-5)


def distort(
    images: torch.Tensor, draw: torch.Generator, side: int = 32
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Digits rotated by up to 45 degrees, 0.3 to 0.5 of the canvas wide, anywhere; their centres and sizes."""
    angle = (torch.rand(len(images), generator=draw) * 2 - 1) * math.pi / 4
    scale = 0.3 + 0.2 * torch.rand(len(images), generator=draw)
    shift = (torch.rand(len(images), 2, generator=draw) * 2 - 1) * 0.4
    cos, sin = angle.cos() / scale, angle.sin() / scale
    turn = torch.stack([cos, sin, -sin, cos], 1).unflatten(1, (2, 2))
    grid = affine_grid(torch.cat([turn, -turn @ shift[..., None]], 2), (side, side))
    return F.grid_sample(images, grid, align_corners=False), shift, scale


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return torch.corrcoef(torch.stack([a, b]))[0, 1].item()


@pytest.mark.slow
def test_it_finds_distorted_digits():
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    images, labels = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16, torch.tensor(digits.target)
    torch.manual_seed(0)
    draw, steps = torch.Generator().manual_seed(0), 400
    net = timm.create_model("stn_cnn", in_chans=1, widths=(8, 16, 32), size=(16, 16), localisation_width=16)
    groups: dict[bool, list[torch.nn.Parameter]] = {False: [], True: []}
    for name, p in net.named_parameters():
        groups[name.startswith("transformer.")].append(p)
    optimiser = torch.optim.Adam([{"params": groups[False], "lr": 3e-3}, {"params": groups[True], "lr": 1e-3}])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        which = torch.randint(1300, (64,), generator=draw)
        optimiser.zero_grad()
        F.cross_entropy(net(distort(images[which], draw)[0]), labels[which]).backward()
        optimiser.step()
        schedule.step()
    x, shift, scale = distort(images[1300:], torch.Generator().manual_seed(1))
    with torch.inference_mode():
        accuracy = (net.eval()(x).argmax(1) == labels[1300:]).float().mean()
        theta = net.transformer.locate(x)
    # Chance is 0.1. The network is not trained on the positions and sizes of digits.
    assert accuracy > 0.6
    assert correlation(theta[:, :, :2].det().abs().sqrt(), scale) > 0.6
    assert (correlation(theta[:, 0, 2], shift[:, 0]) + correlation(theta[:, 1, 2], shift[:, 1])) / 2 > 0.35

"""Resizing with eight kernels, against closed forms and other libraries."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.integrate import quad

from foveal.data.kernels import _INTERPOLATING, KERNELS, resize


@pytest.fixture
def photograph() -> torch.Tensor:
    return torch.rand(3, 37, 52, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", [(20, 31), (64, 80), (37, 52)])
def test_bilinear_is_torchs(photograph, size):
    expected = F.interpolate(photograph[None], size, mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(resize(photograph, size, "bilinear"), expected, atol=5e-6, rtol=0)


@pytest.mark.parametrize("size", [(20, 31), (64, 80)])
def test_nearest_and_area_are_torchs(photograph, size):
    nearest = F.interpolate(photograph[None], size, mode="nearest-exact")[0]
    torch.testing.assert_close(resize(photograph, size, "nearest"), nearest)
    # "area" in torch rounds bins to whole pixels, brute force does not.
    fine = photograph.repeat_interleave(size[0], 1).repeat_interleave(size[1], 2)
    brute = fine.reshape(3, size[0], 37, size[1], 52).mean(dim=(2, 4))
    torch.testing.assert_close(resize(photograph, size, "area"), brute, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("kernel", "pillow"), [("bicubic", Image.Resampling.BICUBIC), ("lanczos3", Image.Resampling.LANCZOS)]
)
def test_enlarging_is_pillows(photograph, kernel, pillow):
    # Filters of Pillow are wider for reduction only; for enlargement they equal the kernels.
    channel = photograph[0].numpy()
    expected = np.asarray(Image.fromarray(channel).resize((100, 90), pillow))
    np.testing.assert_allclose(resize(photograph, (90, 100), kernel)[0].numpy(), expected, atol=2e-6)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_constant_image_stays_constant(kernel):
    torch.testing.assert_close(resize(torch.full((1, 9, 14), 0.3), (13, 5), kernel), torch.full((1, 13, 5), 0.3))


@pytest.mark.parametrize("kernel", ["bilinear", "lanczos3", "lanczos5", "bicubic", "nearest", "area"])
def test_the_same_size_is_the_same_image(photograph, kernel):
    torch.testing.assert_close(resize(photograph, (37, 52), kernel), photograph, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("kernel", "area", "at_half"),
    [
        ("bilinear", 1.0, 0.5),
        ("bicubic", 1.0, 0.5625),  # Keys, a = -1/2
        ("mitchell", 1.0, 77 / 144),
        ("gaussian", 1.2499, np.exp(-0.5)),
        ("lanczos3", 0.9970, (2 / np.pi) * (6 / np.pi) * np.sin(np.pi / 6)),
        ("lanczos5", 0.9989, (2 / np.pi) * (10 / np.pi) * np.sin(np.pi / 10)),
    ],
)
def test_kernels_have_their_closed_form(kernel, area, at_half):
    radius, weigh = _INTERPOLATING[kernel]
    value = lambda x: float(weigh(torch.tensor([x], dtype=torch.float64)))  # noqa: E731
    assert value(0.5) == pytest.approx(at_half, abs=1e-9)
    assert value(-0.5) == pytest.approx(at_half, abs=1e-9)
    assert quad(value, -radius, radius, limit=200)[0] == pytest.approx(area, abs=1e-3)
    assert value(radius + 0.01) == 0


def test_no_antialiasing_when_an_image_is_made_smaller():
    # Four times smaller, bilinear reads two of four pixels along each axis.
    stripes = torch.zeros(1, 16, 16)
    stripes[:, :, 0::4] = 1
    assert resize(stripes, (4, 4), "bilinear").abs().max() == 0
    assert resize(stripes, (4, 4), "area").min() == pytest.approx(0.25)

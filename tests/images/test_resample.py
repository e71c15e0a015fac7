import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from foveal.images.resample import Axis, cut, plan, resample, shrink

PIXELS = torch.rand(2, 3, 90, 70, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("size", [(32, 32), (90, 70), (17, 50), (128, 96)])
@pytest.mark.parametrize("box", [(0, 0, 90, 70), (10, 20, 74, 60), (3, 5, 4, 70)])
def test_integer_box_equals_torch_on_the_crop(box, size, antialias):
    expected = F.interpolate(PIXELS[..., box[0] : box[2], box[1] : box[3]], size, mode="bilinear", antialias=antialias)
    assert torch.equal(resample(PIXELS, box, size, antialias=antialias), expected)


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("box", [(-20, -30, 50, 40), (60, 50, 110, 90), (-13, -7, 101, 99)])
def test_outside_is_fill_as_if_padded_first(box, antialias):
    fill = torch.tensor([0.1, 0.5, 0.9])
    pad = 40
    padded = F.pad(PIXELS - fill[:, None, None], (pad,) * 4) + fill[:, None, None]
    y0, x0, y1, x1 = (v + pad for v in box)
    expected = F.interpolate(padded[..., y0:y1, x0:x1], (24, 20), mode="bilinear", antialias=antialias)
    # torch computes where to sample in single precision, hence not 1e-6 without antialiasing.
    seen = resample(PIXELS, box, (24, 20), fill=fill, antialias=antialias)
    torch.testing.assert_close(seen, expected, atol=1e-6 if antialias else 1e-5, rtol=0)


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize(
    "box", [(0.3, 1.7, 60.2, 65.9), (10.25, 10.5, 18.75, 15.5), (-5.5, 20.1, 30.3, 80.8), (4.2, 4.2, 4.6, 4.7)]
)
def test_fractional_box_equals_the_rule_written_out(box, antialias):
    fill = torch.tensor([0.2, 0.4, 0.6])
    got = resample(PIXELS.double(), box, (9, 7), fill=fill, antialias=antialias)
    expected = torch.empty_like(got)
    for i in range(9):
        for j in range(7):
            expected[:, :, i, j] = _written_out(box, i, j, fill, antialias)
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)


def _written_out(box, i, j, fill, antialias):
    axes = []
    for start, stop, at, count in ((box[0], box[2], i, 9), (box[1], box[3], j, 7)):
        scale = (stop - start) / count
        centre, support, weights = start + (at + 0.5) * scale, 1.0, {}
        if antialias:
            support = max(scale, 1.0)
        else:
            inset = min(0.5, (stop - start) / 2)
            centre = min(max(centre, start + inset), stop - inset)
        for pixel in range(math.floor(start) - 1, math.ceil(stop) + 1):
            weight = max(0.0, 1 - abs(pixel + 0.5 - centre) / support)
            overlap = max(0.0, min(pixel + 1, stop) - max(pixel, start))
            share = overlap if antialias else float(overlap > 0)
            weights[pixel] = weight * share
        total = sum(weights.values())
        axes.append({pixel: w / total for pixel, w in weights.items() if w})
    value = torch.zeros(2, 3, dtype=torch.float64)
    for y, wy in axes[0].items():
        for x, wx in axes[1].items():
            inside = 0 <= y < 90 and 0 <= x < 70
            value += wy * wx * (PIXELS[:, :, y, x].double() if inside else fill.double())
    return value


def test_identity_returns_the_very_pixels_in_memory_of_its_own():
    seen = resample(PIXELS, (8, 4, 40, 36), (32, 32))
    assert torch.equal(seen, PIXELS[..., 8:40, 4:36])
    seen.zero_()
    assert PIXELS[..., 8:40, 4:36].sum() > 1000


def test_identity_is_exact_where_the_box_leaves_the_image():
    seen = resample(PIXELS, (-8, 50, 24, 82), (32, 32), fill=torch.tensor([0.3, 0.3, 0.3]))
    assert torch.equal(seen[..., 8:, :20], PIXELS[..., :24, 50:])
    assert (seen[..., :8, :] == torch.tensor(0.3)).all() and (seen[..., 20:] == torch.tensor(0.3)).all()


def test_wholly_outside_is_exactly_fill():
    fill = torch.tensor([0.485, 0.456, 0.406])
    seen = resample(PIXELS, (200, 200, 300, 300), (8, 8), fill=fill)
    assert torch.equal(seen, fill[:, None, None].expand(2, 3, 8, 8))


def test_tiny_errors_of_float_arithmetic_change_nothing():
    assert torch.equal(
        resample(PIXELS, (10 + 1e-9, 20, 74, 60 - 1e-9), (32, 20)), resample(PIXELS, (10, 20, 74, 60), (32, 20))
    )


def test_box_edges_act_smoothly():
    one, other = (resample(PIXELS, (y, 3, 61, 67), (16, 16)) for y in (10.0, 9.999))
    assert (one - other).abs().max() < 1e-3


@pytest.mark.parametrize("layout", ["planes", "pixels"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float32])
@pytest.mark.parametrize(("rows", "cols"), [(2, 2), (8, 4), (16, 1), (64, 128)])
def test_shrink_averages_blocks(rows, cols, dtype, layout):
    values = np.random.default_rng(0).integers(0, 255, (1, 3, 83, 61))
    pixels = torch.from_numpy(
        values.astype({torch.uint8: np.uint8, torch.uint16: np.uint16, torch.float32: np.float32}[dtype])
    )
    if layout == "pixels":
        pixels = pixels.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    expected = F.avg_pool2d(torch.from_numpy(values).double(), (rows, cols), ceil_mode=True, count_include_pad=False)
    torch.testing.assert_close(shrink(pixels, rows, cols).double(), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("rows,cols", [(1, 2), (2, 2), (8, 4), (8, 16), (32, 4), (16, 16), (64, 32)])
def test_shrink_of_bytes_is_exact(rows, cols):
    """Blocks of up to 128 bytes are summed in int16; white blocks have the largest sums."""
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 128, 64), dtype=np.uint8))
    pixels[1] = 255
    blocks = pixels.double().unflatten(3, (-1, cols)).mean(4).unflatten(2, (-1, rows)).mean(3)
    assert torch.equal(shrink(pixels, rows, cols), blocks.float())


def test_shrinking_first_stays_close_to_the_full_triangle():
    y, x = torch.meshgrid(torch.arange(512.0), torch.arange(512.0), indexing="ij")
    picture = (torch.sin(x / 30) * torch.cos(y / 17 + x / 50) / 2 + 0.5)[None, None]
    for box in [(0, 0, 512, 512), (3, 5, 483, 501), (10.5, 20.25, 400.1, 380.9), (-40, -40, 470, 470)]:
        how = plan(box, (48, 48), (0, 0, 512, 512), shrink=True)
        y0, x0, y1, x1 = how.window
        shrunk, _ = cut(picture[..., y0:y1, x0:x1], how)
        expected = resample(picture, box, (48, 48))
        assert how.y.factor == 8
        assert (shrunk - expected).abs().max() < 0.05
        assert (shrunk - expected).pow(2).mean().sqrt() < 0.01


def test_only_the_box_is_touched():
    poisoned = PIXELS.clone()
    poisoned[..., 60:, :] = math.nan
    for antialias in (True, False):
        assert not resample(poisoned, (10, 10, 60, 60), (30, 30), antialias=antialias).isnan().any()
        assert not resample(poisoned, (10.2, 10.2, 59.9, 60.5), (30, 30), antialias=antialias).isnan().any()


def test_precision_survives_autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside, across = resample(PIXELS, (0, 0, 64, 64), (40, 40)), resample(PIXELS, (-3.3, 0, 60, 64), (40, 40))
    assert torch.equal(inside, resample(PIXELS, (0, 0, 64, 64), (40, 40)))
    assert torch.equal(across, resample(PIXELS, (-3.3, 0, 60, 64), (40, 40)))


def test_empty_box_is_refused():
    with pytest.raises(ValueError, match="empty"):
        resample(PIXELS, (10, 10, 10, 20), (4, 4))


@pytest.mark.parametrize("factor", [1, 2])
def test_boxes_on_the_grid_are_pasted_as_they_are_resampled(monkeypatch, factor):
    def cuts():
        for box in ((-6, -4, 10, 12), (8, 20, 40, 36), (-8, -8, 32, 40)):
            how = plan(box, ((box[2] - box[0]) // factor, (box[3] - box[1]) // factor), (0, 0, 24, 32), shrink=True)
            y0, x0, y1, x1 = how.window
            yield cut(PIXELS[..., :24, :32][..., y0:y1, x0:x1], how)

    pasted = list(cuts())
    monkeypatch.setattr(Axis, "on_grid", False)
    for (pixels, cover), (expected, weight) in zip(pasted, cuts(), strict=True):
        assert torch.equal(pixels, expected) and torch.equal(cover, weight.to(cover.dtype))


@pytest.mark.parametrize("box", [(-6.5, -4, 9.5, 12), (-6, -4, 11, 12), (-6, -4, 10, 12.5)])
def test_other_boxes_are_not_on_the_grid(box):
    how = plan(box, (16, 16), (0, 0, 24, 32))
    assert not (how.y.on_grid and how.x.on_grid)
    assert not plan((-6, -4, 10, 12), (16, 16), (0.5, 0, 24, 32)).y.on_grid

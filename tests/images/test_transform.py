import colorsys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from foveal.images import ArrayPyramid, Colour, ImageViews, Transform, View
from tests.images.files import photo

PIXELS = photo(96, 64)
IMAGE = torch.from_numpy(PIXELS).permute(2, 0, 1) / 255
START = Transform.identity((96, 64))
FILL = torch.tensor([0.2, 0.4, 0.6])


def _whole(transform, size=None, fill=FILL):
    return View(ArrayPyramid(PIXELS), transform).look(
        np.array([[0, 0, *transform.size]]), size or transform.size, fill=fill
    )[0]


@pytest.mark.parametrize("quarters", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("flipped", [False, True])
def test_turns_and_flips_are_exact(quarters, flipped):
    transform = START.turn(quarters)
    expected = torch.rot90(IMAGE, quarters, (1, 2))
    if flipped:
        transform, expected = transform.flip(), expected.flip(2)
    assert torch.equal(_whole(transform), expected)


def test_order_of_changes_is_the_order_of_calls():
    transform = START.flip().turn(1).crop((5, 10, 45, 90)).turn(2)
    expected = torch.rot90(torch.rot90(IMAGE.flip(2), 1, (1, 2))[:, 5:45, 10:90], 2, (1, 2))
    assert transform.size == (40, 80)
    assert torch.equal(_whole(transform), expected)


def test_beside_a_crop_is_outside():
    seen = View(ArrayPyramid(PIXELS), START.crop((20, 10, 60, 50))).look(
        np.array([[-8, -8, 48, 48]]), (56, 56), fill=FILL
    )[0]
    assert torch.equal(seen[:, 8:48, 8:48], IMAGE[:, 20:60, 10:50])
    assert torch.equal(seen[:, :8], FILL[:, None, None].expand(3, 8, 56))


def test_shift_after_crop_shows_fill_not_what_was_cropped_away():
    seen = _whole(START.crop((20, 10, 60, 50)).shift(4, -6))
    assert torch.equal(seen[:, 4:, :34], IMAGE[:, 20:56, 16:50])
    assert (seen[:, :4] == FILL[:, None, None]).all() and (seen[:, :, 34:] == FILL[:, None, None]).all()


def test_resize_squashes_the_frame():
    square = START.resize((48, 48))
    expected = F.interpolate(IMAGE[None], (24, 24), mode="bilinear", antialias=True)[0]
    torch.testing.assert_close(_whole(square, (24, 24)), expected, atol=0.05, rtol=0)
    # A quarter of the squashed frame is a quarter of the image.
    part = View(ArrayPyramid(PIXELS), square).look(np.array([[24, 0, 48, 24]]), (48, 32))[0]
    assert torch.equal(part, IMAGE[:, 48:, :32])


@pytest.mark.parametrize("degrees", [20.0, -35.0, 117.0])
def test_rotation_follows_torchvision(degrees):
    from torchvision.transforms.v2.functional import InterpolationMode, rotate

    smooth = (np.stack([np.sin(np.mgrid[:96, :96][i % 2] / (9.0 + i)) for i in range(3)], -1) * 100 + 120).astype(
        np.uint8
    )
    seen = View(ArrayPyramid(smooth), Transform.identity((96, 96)).rotate(degrees)).look(
        np.array([[0, 0, 96, 96]]), (96, 96)
    )[0]
    expected = rotate(torch.from_numpy(smooth).permute(2, 0, 1) / 255, degrees, InterpolationMode.BILINEAR)
    disc = torch.from_numpy(np.hypot(*(np.mgrid[:96, :96] - 47.5)) < 46)
    assert ((seen - expected).abs() * disc).max() < 0.02
    assert _corner_is_fill(smooth, degrees)


def _corner_is_fill(pixels, degrees):
    view = View(ArrayPyramid(pixels), Transform.identity((96, 96)).rotate(degrees))
    corner = view.look(np.array([[0, 0, 2, 2]]), (2, 2), fill=FILL)[0]
    return torch.allclose(corner, FILL[:, None, None].expand(3, 2, 2), atol=1e-6)


def test_rotation_by_a_quarter_is_a_turn():
    seen = View(ArrayPyramid(PIXELS[:64]), Transform.identity((64, 64)).rotate(90.0001)).look(
        np.array([[0, 0, 64, 64]]), (64, 64)
    )[0]
    expected = torch.rot90(IMAGE[:, :64], 1, (1, 2))
    torch.testing.assert_close(seen[:, 2:-2, 2:-2], expected[:, 2:-2, 2:-2], atol=0.01, rtol=0)


def test_details_and_thumbnail_of_a_rotated_view_show_the_same_picture():
    smooth = (np.stack([np.sin(np.mgrid[:256, :256][i % 2] / (25.0 + i)) for i in range(3)], -1) * 100 + 120).astype(
        np.uint8
    )
    view = View(
        ArrayPyramid(smooth), Transform.identity((256, 256)).crop((10, 20, 240, 250)).rotate(17).resize((224, 224))
    )
    thumbnail = view.look(np.array([[0, 0, 224, 224]]), (56, 56), fill=FILL)[0]
    detail = view.look(np.array([[56, 84, 140, 168]]), (84, 84), fill=FILL)
    torch.testing.assert_close(F.avg_pool2d(detail, 4)[0], thumbnail[:, 14:35, 21:42], atol=0.02, rtol=0)


def test_colour_follows_the_definitions():
    r, g, b = 0.8, 0.3, 0.5
    pixel = torch.tensor([r, g, b])[:, None, None]
    h, s, v = colorsys.rgb_to_hsv(r, g, b)
    for name, amount, expected in (
        ("saturation", 0.5, colorsys.hsv_to_rgb(h, s * 0.5, v)),
        ("saturation", 3.0, colorsys.hsv_to_rgb(h, 1.0, v)),
        ("hue", 0.2, colorsys.hsv_to_rgb((h + 0.2) % 1, s, v)),
        ("hue", -0.45, colorsys.hsv_to_rgb((h - 0.45) % 1, s, v)),
        ("brightness", 0.1, (r + 0.1, g + 0.1, b + 0.1)),
        ("brightness", 0.5, (1.0, 0.8, 1.0)),
    ):
        assert Colour(((name, amount),)).apply(pixel, [])[:, 0, 0].tolist() == pytest.approx(expected, abs=1e-6)
    mean = torch.tensor([0.5, 0.5, 0.5])
    assert Colour((("contrast", 2.0),)).apply(pixel, [mean])[:, 0, 0].tolist() == pytest.approx([1.0, 0.1, 0.5])
    with pytest.raises(ValueError, match="brightness"):
        Colour((("blur", 1.0),))


def test_hue_of_every_sextant():
    colours = torch.rand(3, 1, 200, generator=torch.Generator().manual_seed(0))
    seen = Colour((("hue", 0.31),)).apply(colours, [])
    for i in range(200):
        h, s, v = colorsys.rgb_to_hsv(*colours[:, 0, i].tolist())
        assert seen[:, 0, i].tolist() == pytest.approx(colorsys.hsv_to_rgb((h + 0.31) % 1, s, v), abs=1e-5)


def test_contrast_is_around_the_mean_of_the_whole_view_in_every_look():
    colour = Colour((("brightness", 0.05), ("contrast", 0.5)))
    view = View(ArrayPyramid(PIXELS), START.coloured(colour))
    mean = (IMAGE + 0.05).mean((1, 2))[:, None, None]
    for box in [(0, 0, 96, 64), (10, 20, 40, 50)]:
        y0, x0, y1, x1 = box
        seen = view.look(np.array([box]), (y1 - y0, x1 - x0))[0]
        expected = ((IMAGE[:, y0:y1, x0:x1] + 0.05 - mean) * 0.5 + mean).clamp(0, 1)
        torch.testing.assert_close(seen, expected, atol=1e-4, rtol=0)


def test_colour_leaves_the_fill_alone_and_goes_through_image_views():
    view = View(ArrayPyramid(PIXELS), START.coloured(Colour((("brightness", 0.3), ("contrast", 1.4), ("hue", 0.1)))))
    box = np.array([[-20, -20, 20, 20.0]])
    seen = ImageViews([view]).look(np.array([0]), box, (40, 40), fill=FILL)[0]
    assert torch.equal(seen[:, :20], FILL[:, None, None].expand(3, 20, 40))
    assert torch.equal(seen, view.look(box, (40, 40), fill=FILL)[0])


def test_grey_has_no_colour():
    grey = torch.rand(1, 4, 4)
    assert torch.equal(Colour((("hue", 0.2), ("saturation", 0.1))).apply(grey, []), grey)

"""Augmentations: drawing and applying changes."""

import math

import numpy as np
import pytest
import torch
from torchvision.transforms import RandomResizedCrop, v2
from torchvision.transforms.functional import rotate

from foveal.data import ImageDataset, Reading, TensorDataset
from foveal.data.augmentation import (
    _COLOUR_ORDERS,
    Change,
    crop_flip,
    distorted_crop,
    draw_change,
    draw_crop_flip,
    inception_crop,
    rand_augment,
    rotate_and_shift,
)
from foveal.draws import generator
from foveal.errors import ConfigError
from tests.data.layouts import save_image

REGION = (0, 0, 90, 120)


def drawn(augmentation: str, boxes: np.ndarray | None = None, count: int = 400, **options) -> list[Change]:
    return [draw_change(augmentation, REGION, boxes, np.random.default_rng(i), **options) for i in range(count)]


def test_none_changes_nothing():
    assert draw_change("none", (3, 4, 50, 60), None, np.random.default_rng(0)) == Change((3, 4, 50, 60))


def test_light_keeps_the_aspect_and_most_of_the_image():
    changes = drawn("light")
    for change in changes:
        y0, x0, y1, x1 = change.crop
        assert min(y0, x0) >= 0
        assert y1 <= 90.0001
        assert x1 <= 120.0001
        assert 0.85 <= (y1 - y0) / 90 <= 1
        assert (y1 - y0) / 90 == pytest.approx((x1 - x0) / 120)
        assert not change.colour
        assert change.degrees == 0
    assert 0.4 < np.mean([c.mirrored for c in changes]) < 0.6


def test_surfaces_are_flipped_both_ways_and_change_their_brightness():
    changes, light = drawn("surface"), drawn("light")
    assert [(c.crop, c.mirrored) for c in changes] == [(c.crop, c.mirrored) for c in light]
    assert 0.4 < np.mean([c.inverted for c in changes]) < 0.6
    assert 0.2 < np.mean([c.inverted and c.mirrored for c in changes]) < 0.3
    amounts = np.array([[amount for _, amount in c.colour] for c in changes])
    assert {tuple(name for name, _ in c.colour) for c in changes} == {("brightness", "contrast")}
    for (low, high), column in zip(((-0.15, 0.15), (0.7, 1.4)), amounts.T, strict=True):
        assert low <= column.min() < low + 0.02 and high >= column.max() > high - 0.02


def test_light_never_loses_the_object():
    boxes = np.array([[0, 100, 20, 120.0]])
    for y0, x0, y1, x1 in (change.crop for change in drawn("light", boxes)):
        assert y0 <= 1e-9
        assert x0 <= 100
        assert y1 >= 20
        assert x1 >= 120 - 1e-9
    whole = np.array([[-10, 0, 95, 120.0]])
    assert len(drawn("light", whole, 5)) == 5


def test_tnet_crops_are_what_the_specification_says():
    changes = drawn("tnet")
    crops = np.array([c.crop for c in changes])
    sides = crops[:, 2:] - crops[:, :2]
    cropped = ~(sides == (90, 120)).all(1)
    assert cropped.mean() > 0.9
    area = sides.prod(1) / (90 * 120)
    assert (area[cropped] >= 0.85).all() and (area <= 1).all()
    assert area[cropped].min() < 0.87
    aspect = sides[:, 1] / sides[:, 0]
    assert aspect.min() >= 0.5 and aspect.max() <= 2.01
    assert np.ptp(aspect) > 0.2
    assert (crops == crops.round()).all()
    assert (crops[:, :2] >= 0).all() and (crops[:, 2:] <= (90, 120)).all()


def test_tnet_crops_cover_a_tenth_of_some_box():
    corner = np.array([[0, 0, 9, 10.0]])
    rng = np.random.default_rng(0)
    for _ in range(300):
        y0, x0, _, _ = distorted_crop(REGION, corner, rng)
        assert (9 - y0) * (10 - x0) >= 0.1 * 90
    # Crops that ignore the box sometimes lose it.
    free = [distorted_crop(REGION, None, np.random.default_rng(i)) for i in range(300)]
    assert any(max(9 - c[0], 0) * max(10 - c[1], 0) < 9 for c in free)
    # No crop with aspect ratio up to 2 covers 85 % of a long strip.
    assert distorted_crop((0, 0, 90, 900), None, rng) == (0, 0, 90, 900)


def test_tnet_changes_colour_in_one_of_five_ways():
    changes = drawn("tnet")
    orders = [tuple(name for name, _ in c.colour) for c in changes]
    share = {order: orders.count(order) / len(orders) for order in _COLOUR_ORDERS}
    assert sum(share.values()) == pytest.approx(1)
    assert all(0.13 < s < 0.27 for s in share.values())
    amounts = {name: [a for c in changes for n, a in c.colour if n == name] for name in _COLOUR_ORDERS[0]}
    for name, (low, high) in {
        "brightness": (-32 / 255, 32 / 255),
        "saturation": (0.5, 1.5),
        "hue": (-0.2, 0.2),
        "contrast": (0.5, 1.5),
    }.items():
        assert low <= min(amounts[name]) < low + 0.05 * (high - low)
        assert high >= max(amounts[name]) > high - 0.05 * (high - low)


def test_kernels_are_drawn_evenly():
    kernels = [c.kernel for c in drawn("tnet", kernels=tuple("abcdefgh"))]
    assert all(30 < kernels.count(k) < 72 for k in "abcdefgh")


def test_birds_are_shifted_and_rotated_and_keep_their_colour():
    changes = drawn("tnet_birds", np.array([[0, 0, 1, 1.0]]))
    assert not any(c.colour for c in changes)
    shift, degrees = np.array([c.shift for c in changes]), np.array([c.degrees for c in changes])
    assert np.abs(shift).max() <= 0.1 and np.abs(shift).max() > 0.095
    assert 19 < np.abs(degrees).max() <= 20
    assert abs(degrees.mean()) < 2


@pytest.mark.parametrize("degrees", [-20.0, 7.5, 90.0])
def test_rotation_is_torchvisions(degrees):
    pixels = torch.rand(2, 41, 41, generator=torch.Generator().manual_seed(0))
    same = (rotate_and_shift(pixels, (0, 0), degrees) == rotate(pixels, degrees)).float().mean()
    assert same > 0.99  # ties are rounded either way


def test_a_shift_moves_down_and_right_before_the_rotation():
    pixels = torch.zeros(1, 21, 21)
    pixels[0, 10, 10] = 1
    assert rotate_and_shift(pixels, (2 / 21, 5 / 21), 0)[0].nonzero().tolist() == [[12, 15]]
    angle = math.radians(90)
    down, right = 2 * math.cos(angle) - 5 * math.sin(angle), 2 * math.sin(angle) + 5 * math.cos(angle)
    assert rotate_and_shift(pixels, (2 / 21, 5 / 21), 90)[0].nonzero().tolist() == [
        [10 + round(down), 10 + round(right)]
    ]
    # Pixels shifted out of the frame stay lost after the rotation.
    edge = torch.ones(1, 21, 21)
    assert rotate_and_shift(edge, (0, 10 / 21), 180)[0, :, -10:].sum() == 0


class TorchsDraws:
    """Draws numbers as torchvision does, from torch's generator."""

    def uniform(self, low, high):
        return torch.empty(1).uniform_(low, high).item()

    def integers(self, low, high):
        return torch.randint(low, high, (1,)).item()


@pytest.mark.parametrize("size", [(90, 120), (500, 333), (64, 64), (30, 400), (400, 30)])
def test_inception_crops_are_torchvisions(size):
    """The same random numbers give the same crop. Images too long for any draw get the centre crop."""
    image = torch.empty(3, *size)
    for seed in range(200):
        torch.manual_seed(seed)
        top, left, height, width = RandomResizedCrop.get_params(image, (0.08, 1.0), (3 / 4, 4 / 3))
        torch.manual_seed(seed)
        assert inception_crop((0, 0, *size), TorchsDraws()) == (top, left, top + height, left + width)
        torch.manual_seed(seed)
        assert inception_crop((7, 5, 7 + size[0], 5 + size[1]), TorchsDraws()) == (
            top + 7,
            left + 5,
            top + height + 7,
            left + width + 5,
        )


def test_inception_mirrors_half_and_is_reached_by_its_name():
    changes = drawn("inception")
    assert 0.43 < np.mean([c.mirrored for c in changes]) < 0.57
    areas = [(c.crop[2] - c.crop[0]) * (c.crop[3] - c.crop[1]) / (90 * 120) for c in changes]
    assert min(areas) < 0.12 and 0.45 < np.mean(areas) < 0.58 and max(areas) <= 1.0
    assert len({c.crop for c in changes}) > 390


def test_crop_and_flip_by_loops():
    generator_ = torch.Generator().manual_seed(0)
    for dtype in (torch.uint8, torch.float32):
        pixels = torch.randint(0, 256, (30, 3, 9, 7), generator=generator_).to(dtype)
        chosen = draw_crop_flip(30, np.random.default_rng(0))
        fill = torch.tensor([1.0, 2.0, 3.0])
        out = crop_flip(pixels, chosen, fill)
        assert out.dtype == dtype
        for image, (down, right, mirrored), seen in zip(pixels, chosen.tolist(), out, strict=True):
            for y in range(9):
                for x in range(7):
                    from_y, from_x = y + down - 4, (6 - x if mirrored else x) + right - 4
                    inside = 0 <= from_y < 9 and 0 <= from_x < 7
                    assert torch.equal(seen[:, y, x], image[:, from_y, from_x] if inside else fill.to(dtype))


def test_crops_and_flips_are_drawn_evenly():
    chosen = draw_crop_flip(90_000, np.random.default_rng(0))
    for column, count in ((0, 9), (1, 9), (2, 2)):
        share = np.bincount(chosen[:, column], minlength=count) / 90_000
        assert len(share) == count and np.abs(share * count - 1).max() < 0.05
    assert len(np.unique(chosen, axis=0)) == 9 * 9 * 2


# ---- RandAugment


def test_operations_on_views_are_two_of_those_they_can_express():
    changes, light = drawn("randaugment"), drawn("light")
    assert [(c.crop, c.mirrored) for c in changes] == [(c.crop, c.mirrored) for c in light]
    seen = {"shift": 0, "degrees": 0, "colour": 0, "none": 0}
    for change in changes:
        assert {abs(part) for part in change.shift} <= {0, 0.3 * 150 / 331, 0.6 * 150 / 331}
        assert abs(change.degrees) in (0, 9, 18) and len(change.colour) <= 2
        for operation, amount in change.colour:
            assert abs(amount if operation == "brightness" else amount - 1) == pytest.approx(
                0.135 if operation == "brightness" else 0.27
            )
        for what in ("shift", "degrees", "colour"):
            seen[what] += bool(np.any(getattr(change, what))) if what != "colour" else bool(change.colour)
        seen["none"] += change == light[changes.index(change)]
    assert all(count > 4 for count in seen.values()), seen


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_whole_images_get_that_of_torchvision(dtype):
    pixels = torch.randint(0, 256, (3, 24, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pixels = pixels if dtype == torch.uint8 else pixels / 255
    different = 0
    for seed in range(30):
        state = torch.get_rng_state()
        changed = rand_augment(pixels, np.random.default_rng(seed))
        assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(int(np.random.default_rng(seed).integers(2**63)))
        assert torch.equal(changed, v2.RandAugment()(pixels))
        assert changed.dtype == dtype and changed.shape == pixels.shape
        different += not torch.equal(changed, pixels)
    assert different > 20


def test_data_sets_apply_it_by_seed_epoch_and_image(tmp_path):
    sizes = [save_image(tmp_path / f"{i}.jpg", i) for i in range(3)]
    paths = [str(tmp_path / f"{i}.jpg") for i in range(3)]
    files = ImageDataset(paths, [0, 1, 0], ("a", "b"), reading=Reading("randaugment", image_size=16))
    light = ImageDataset(paths, [0, 1, 0], ("a", "b"), reading=Reading("light", image_size=16))
    images = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    memory = TensorDataset(images, np.array([0, 1, 0]), ("a", "b"), augmentation="randaugment")
    for data in (files, memory):
        whole, alone = data.batch(2, [0, 1, 2], 5).views.images, data.batch(2, [1], 5).views.images
        assert torch.equal(whole[1], alone[0])
        several = [data.batch(epoch, [1], 5).views.images for epoch in range(6)]
        assert len({image.float().sum().item() for image in several}) > 1
        assert torch.equal(data.plain().batch(2, [1], 5).views.images, data.plain().batch(3, [1], 6).views.images)
    for epoch in range(4):  # the same crop and flip, then the operations
        before = light.batch(epoch, [1], 5).views.images[0]
        rng = generator(5, epoch, 1, "augmentation")
        draw_change("light", (0, 0, *sizes[1]), None, rng)
        assert torch.equal(files.batch(epoch, [1], 5).views.images[0], rand_augment(before, rng))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Reading("randaugment", channels=4, image_size=16),
        lambda: TensorDataset(torch.zeros(1, 4, 8, 8), np.zeros(1), ("a", "b"), augmentation="randaugment"),
    ],
)
def test_other_bands_are_refused(make):
    with pytest.raises(ConfigError, match=r"^data.augmentation: randaugment takes images of 1 or 3 bands[^\n]+$"):
        make()
    Reading("randaugment", channels=4)  # views of any number of bands have brightness and contrast

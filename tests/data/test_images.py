"""Batches of files: bad images, augmentation, looks read ahead, workers, images of one size."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from foveal.data import ImageDataset, Loader, Reading
from foveal.data.augmentation import Change, change_pixels, change_view, draw_change
from foveal.data.loader import _pack, _unpack
from foveal.draws import generator
from foveal.images import Colour, ImageViews, Look, TensorViews, open_image
from tests.data.layouts import save_image


@pytest.fixture
def paths(tmp_path) -> list[str]:
    for i in range(6):
        save_image(tmp_path / f"{i}.png", i)
    return [str(tmp_path / f"{i}.png") for i in range(6)]


def dataset(paths, **reading) -> ImageDataset:
    return ImageDataset(paths, np.arange(len(paths)) % 2, ("even", "odd"), reading=Reading(**reading))


def first_looks(size: tuple[int, int]) -> list[Look]:
    return [Look((0.0, 0.0, float(size[0]), float(size[1])), (16, 16))]


def whole(views) -> torch.Tensor:
    boxes = np.hstack([np.zeros_like(views.sizes), views.sizes]).astype(float)
    return views.look(np.arange(len(views)), boxes, (16, 16))


def test_a_batch_shows_the_files(paths):
    batch = dataset(paths).batch(0, [4, 1], 0)
    assert isinstance(batch.views, ImageViews)
    for n, i in enumerate((4, 1)):
        pixels = torch.from_numpy(np.asarray(Image.open(paths[i])).copy()).permute(2, 0, 1) / 255
        assert tuple(batch.views.sizes[n]) == pixels.shape[1:]
        seen = batch.views.look(
            np.array([n]), np.array([[0, 0, *pixels.shape[1:]]], dtype=float), tuple(pixels.shape[1:])
        )
        torch.testing.assert_close(seen[0], pixels, atol=1e-6, rtol=0)


def test_one_bad_image_costs_that_image(paths):
    Path(paths[1]).write_bytes(b"not an image")
    Path(paths[2]).write_bytes(Path(paths[2]).read_bytes()[:200])
    Path(paths[3]).unlink()
    data = dataset(paths)
    batch = data.batch(0, range(6), 0, first_looks)
    assert batch.index.tolist() == [0, 4, 5]
    assert batch.target.tolist() == [0, 0, 1]
    assert [path for path, _ in batch.errors] == [paths[1], paths[2], paths[3]]
    assert all(reason.startswith(path) for path, reason in batch.errors)
    nothing = data.batch(0, [1, 3], 0, first_looks)
    assert len(nothing) == len(nothing.views) == 0
    assert nothing.target.shape == (0,)
    resized = dataset(paths, image_size=24).batch(0, range(6), 0)
    assert resized.index.tolist() == [0, 4, 5]
    assert resized.views.images.shape == (3, 3, 24, 24)
    assert len(dataset(paths, image_size=24).batch(0, [1], 0)) == 0


def test_bands_that_do_not_fit_are_left_out_too(tmp_path, paths):
    Image.new("L", (40, 30), 7).save(tmp_path / "grey.png")
    assert dataset([str(tmp_path / "grey.png")]).batch(0, [0], 0).views.channels == 3
    batch = dataset(paths[:1], channels=5).batch(0, [0], 0)
    assert len(batch) == 0
    assert "5" in batch.errors[0][1]


@pytest.mark.parametrize("augmentation", ["none", "light", "tnet", "tnet_birds"])
def test_workers_see_what_the_process_sees(paths, augmentation):
    data = dataset(paths, augmentation=augmentation)
    alone = {0: [], 2: []}
    for workers, seen in alone.items():
        loader = Loader(data, batch_size=4, shuffle=True, seed=3, workers=workers, first_looks=first_looks)
        for epoch in (0, 1):
            loader.set_epoch(epoch)
            seen += [whole(batch.views) for batch in loader]
    assert len(alone[0]) == 4
    for a, b in zip(alone[0], alone[2], strict=True):
        assert torch.equal(a, b)
    same = torch.equal(torch.cat(alone[0][:2]).sort(0).values, torch.cat(alone[0][2:]).sort(0).values)
    assert same == (augmentation == "none")


def test_a_batch_crosses_processes_in_one_piece(paths):
    data = dataset(paths, augmentation="light")
    loaded = data.load(0, range(6), 0, first_looks)
    packed = _pack(loaded)
    assert packed.numbers.nbytes > 6 * 3 * 16 * 16 * 4
    again = _unpack(packed)
    assert len(packed.pickled) < 20_000
    assert torch.equal(again.target, loaded.target)
    assert all(v.image.path == path for v, path in zip(again.pixels, paths, strict=True))
    assert torch.equal(whole(again.batch().views), whole(loaded.batch().views))
    start = packed.numbers.data_ptr()
    held = [t for view in again.pixels for t in view._ahead.values()]
    assert len(held) == 6
    assert all(start <= t.data_ptr() < start + packed.numbers.nbytes for t in held)


def test_workers_may_be_spawned(paths):
    loader = Loader(dataset(paths), batch_size=4, workers=1, first_looks=first_looks)
    loader.multiprocessing_context = "spawn"
    expected = [whole(batch.views) for batch in Loader(dataset(paths), batch_size=4)]
    for a, batch in zip(expected, loader, strict=True):
        assert torch.equal(a, whole(batch.views))


def test_augmentation_is_a_function_of_seed_epoch_and_sample(paths):
    data = dataset(paths, augmentation="tnet")
    together = data.batch(2, [0, 1, 2, 3], 7)
    alone = data.batch(2, [3], 7)
    assert together.views.views[3].transform == alone.views.views[0].transform
    assert alone.views.views[0].transform != data.batch(3, [3], 7).views.views[0].transform
    assert alone.views.views[0].transform != data.batch(2, [3], 8).views.views[0].transform


def test_looks_known_beforehand_are_read_ahead(paths):
    # After deleting the files, only the prefetched looks are available.
    batch = dataset(paths).batch(0, [0, 1], 0, first_looks)
    expected = whole(dataset(paths).batch(0, [0, 1], 0).views)
    for view in batch.views.views:
        view.image.gather = None
    assert torch.equal(whole(batch.views), expected)


def test_view_and_pixels_agree(paths):
    # The same change applied to looks and to pixels. The frame of the view is the crop; the look resizes it.
    image = open_image(paths[0])
    crop = (3.0, 5.0, 35.0, 69.0)
    for change in (
        Change(crop),
        Change(crop, mirrored=True),
        Change(crop, inverted=True),
        Change(crop, mirrored=True, colour=(("brightness", 0.1), ("saturation", 1.4), ("hue", -0.1))),
    ):
        view = change_view(change, image)
        assert view.size == (32, 64)
        seen = view.look(np.array([[0, 0, 32, 64]], dtype=float), (32, 32), antialias=False)[0]
        torch.testing.assert_close(seen, change_pixels(change, image, 32), atol=1e-5, rtol=0)


def test_shift_and_rotation_of_view_and_pixels_agree(tmp_path):
    # A smooth image, so that nearest neighbour and bilinear are close, with an off-centre bright spot for the
    # direction.
    y, x = np.mgrid[:64, :64]
    spot = np.exp(-((y - 20) ** 2 + (x - 40) ** 2) / 60)
    Image.fromarray((255 * np.stack([spot, spot / 2, spot / 3], -1)).astype(np.uint8)).save(tmp_path / "spot.png")
    image = open_image(tmp_path / "spot.png")
    change = Change((0.0, 0.0, 64.0, 64.0), mirrored=True, shift=(4 / 64, -6 / 64), degrees=17.0)
    seen = change_view(change, image).look(np.array([[0, 0, 64, 64]], dtype=float), (64, 64))[0]
    assert (seen - change_pixels(change, image, 64)).abs().max() < 0.08
    assert (
        seen - change_pixels(Change(change.crop, mirrored=True, shift=change.shift, degrees=-17.0), image, 64)
    ).abs().max() > 0.3


def test_images_of_one_size_are_bilinear_and_unaugmented_in_evaluation(paths):
    data = dataset(paths, image_size=28)
    batch = data.batch(0, [2, 3], 0)
    assert isinstance(batch.views, TensorViews)
    for n, i in enumerate((2, 3)):
        pixels = torch.from_numpy(np.asarray(Image.open(paths[i])).copy()).permute(2, 0, 1)[None] / 255
        expected = F.interpolate(pixels, (28, 28), mode="bilinear", align_corners=False)[0]
        torch.testing.assert_close(batch.views.images[n], expected, atol=5e-6, rtol=0)


def test_images_of_one_size_follow_the_drawn_change(paths):
    data = dataset(paths, image_size=20, augmentation="tnet", kernels="tnet")
    kernels = set()
    for epoch in range(30):
        change = draw_change(
            "tnet",
            (0, 0, *open_image(paths[0]).size),
            None,
            generator(1, epoch, 0, "augmentation"),
            ("bilinear", "lanczos3", "lanczos5", "bicubic", "gaussian", "mitchell", "nearest", "area"),
        )
        kernels.add(change.kernel)
        pixels = data.batch(epoch, [0], 1).views.images[0]
        assert torch.equal(pixels, change_pixels(change, open_image(paths[0]), 20))
        assert pixels.min() >= 0
        assert pixels.max() <= 1
    assert len(kernels) == 8


def test_colour_of_pixels_is_that_of_the_whole_image(paths):
    image = open_image(paths[0])
    plain = change_pixels(Change((0.0, 0.0, *map(float, image.size))), image, 30)
    harder = change_pixels(Change((0.0, 0.0, *map(float, image.size)), colour=(("contrast", 0.5),)), image, 30)
    mean = plain.mean((1, 2), keepdim=True)
    torch.testing.assert_close(harder, (plain - mean) * 0.5 + mean)
    assert Colour((("contrast", 0.5),)).operations


def test_the_shorter_side_is_bounded_first(paths):
    image = open_image(paths[0])
    height, width = image.size
    whole_box = (0.0, 0.0, float(height), float(width))
    small = image.look(np.array([whole_box]), (20, round(width * 20 / height)))[0]
    expected = F.interpolate(small[None], (32, 32), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(
        change_pixels(Change(whole_box), image, 32, shorter_side=20), expected, atol=5e-6, rtol=0
    )
    assert torch.equal(
        change_pixels(Change(whole_box), image, 32, shorter_side=500), change_pixels(Change(whole_box), image, 32)
    )


def test_regions_are_all_that_is_seen(paths):
    regions = np.array([[2, 3, 30, 40.0]])
    data = ImageDataset(paths[:1], [0], ("a",), regions=regions)
    pixels = torch.from_numpy(np.asarray(Image.open(paths[0])).copy()).permute(2, 0, 1) / 255
    views = data.batch(0, [0], 0).views
    assert views.sizes.tolist() == [[28, 37]]
    around = views.look(np.array([0]), np.array([[-5, 0, 28, 37.0]]), (33, 37))[0]
    torch.testing.assert_close(around[:, 5:], pixels[:, 2:30, 3:40], atol=1e-6, rtol=0)
    assert around[:, :5].abs().max() == 0

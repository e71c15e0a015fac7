import pickle

import numpy as np
import pytest
import torch

from foveal.errors import ImageError
from foveal.images import (
    ArrayPyramid,
    BlankViews,
    ImageViews,
    Look,
    Occluded,
    TensorViews,
    View,
    as_views,
    open_image,
    resample,
)
from tests.images.files import photo, write_pyramid

FILL = torch.tensor([0.1, 0.5, 0.9])


def _boxes(n, h, w, seed=0):
    rng = np.random.default_rng(seed)
    corner, extent = rng.uniform(-30, (h, w), (n, 2)), rng.uniform(10, 120, (n, 2))
    return np.hstack([corner, corner + extent])


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.uint16])
def test_tensor_views_equal_one_box_at_a_time(dtype, antialias):
    pixels = np.stack(
        [photo(100, 130, seed=s, dtype=np.uint16 if dtype == torch.uint16 else np.uint8) for s in range(4)]
    )
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    floats = images.float() / torch.iinfo(images.dtype).max
    which = np.random.default_rng(1).integers(0, 4, 40)
    boxes = np.vstack(
        [_boxes(10, 100, 130), np.tile([[8, 16, 40, 48]], (10, 1)), _grid(10), np.tile([[300, 300, 340, 340]], (10, 1))]
    )
    views = TensorViews(floats if dtype == torch.float32 else images)
    seen = views.look(which, boxes, (32, 32), fill=FILL, antialias=antialias)
    assert seen.dtype == torch.float32 and seen.is_contiguous()
    for i, box, got in zip(which, boxes, seen, strict=True):
        expected = resample(floats[i : i + 1], box, (32, 32), fill=FILL, antialias=antialias)[0]
        if antialias and (box[2:] - box[:2]).max() > 60:  # shrunk first
            assert (got - expected).pow(2).mean().sqrt() < 0.03
        else:
            torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)


def _grid(n):
    corner = np.random.default_rng(2).integers(0, 60, (n, 2)).astype(float)
    return np.hstack([corner, corner + 32])


def test_tensor_views_give_memory_of_their_own():
    images = torch.rand(3, 3, 16, 16)
    before = images.clone()
    views = TensorViews(images)
    views.look(np.arange(3), np.tile([[0, 0, 16, 16.0]], (3, 1)), (16, 16)).zero_()
    views.look(np.array([1]), np.array([[2, 2, 10, 10.0]]), (8, 8)).zero_()
    assert torch.equal(images, before)


def test_no_boxes_no_looks():
    empty = np.empty((0, 4))
    assert TensorViews(torch.rand(2, 3, 8, 8)).look(np.empty(0, int), empty, (4, 4)).shape == (0, 3, 4, 4)
    assert ImageViews([ArrayPyramid(photo(20, 20))]).look(np.empty(0, int), empty, (4, 4)).shape == (0, 3, 4, 4)


def test_large_boxes_of_a_large_image_touch_little_memory():
    import tracemalloc

    views = TensorViews(torch.zeros(1, 1, 64, 64))
    tracemalloc.start()
    seen = views.look(np.array([0]), np.array([[-1e6, -1e6, 1e6, 1e6]]), (8, 8), fill=torch.tensor([0.5]))
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    torch.testing.assert_close(seen, torch.full((1, 1, 8, 8), 0.5), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "box",
    [(0, 0, 512, 384), (64, 32, 320, 288), (-64, -64, 448, 448), (33.3, 40.4, 300.9, 333.3), (100, 100, 164, 164)],
)
def test_memory_and_file_agree(tmp_path, box):
    pixels = photo(512, 384)
    write_pyramid(tmp_path / "a.tif", pixels, 4, tile=64, compression="deflate")
    boxes = np.array([box], dtype=float)
    from_file = open_image(tmp_path / "a.tif").look(boxes, (64, 64), fill=FILL)
    from_memory = TensorViews(torch.from_numpy(pixels).permute(2, 0, 1)[None]).look(
        np.array([0]), boxes, (64, 64), fill=FILL
    )
    from_array = ArrayPyramid(pixels).look(boxes, (64, 64), fill=FILL)
    torch.testing.assert_close(from_array, from_memory, atol=1e-6, rtol=0)
    aligned = all(v % 8 == 0 for v in box)
    torch.testing.assert_close(from_file, from_memory, atol=0.005 if aligned else 0.05, rtol=0)
    assert (from_file - from_memory).pow(2).mean().sqrt() < 0.01


def test_image_views_equal_their_pyramids_in_the_order_asked(tmp_path):
    images = []
    for i in range(5):
        write_pyramid(tmp_path / f"{i}.tif", photo(200 + 10 * i, 180, seed=i), 2)
        images.append(open_image(tmp_path / f"{i}.tif"))
    which, boxes = np.random.default_rng(0).integers(0, 5, 30), _boxes(30, 200, 180)
    for threads in (1, 4):
        views = ImageViews(images, threads=threads)
        seen = views.look(which, boxes, (16, 24), fill=FILL)
        for i, box, got in zip(which, boxes, seen, strict=True):
            assert torch.equal(got, images[i].look(box[None], (16, 24), fill=FILL)[0])
    assert views.sizes.tolist() == [[200 + 10 * i, 180] for i in range(5)]
    assert (views.bytes_read[np.unique(which)] > 0).all() and (views.tiles_decoded[np.unique(which)] > 0).all()


def test_one_bad_image_does_not_spoil_the_others(tmp_path):
    for i in range(3):
        write_pyramid(tmp_path / f"{i}.tif", photo(128, 128, seed=i), 1, compression="jpeg")
    images = [open_image(tmp_path / f"{i}.tif") for i in range(3)]
    (tmp_path / "1.tif").write_bytes((tmp_path / "1.tif").read_bytes()[:400])
    views = ImageViews(images)
    boxes = np.array([[0, 0, 128, 128.0]] * 3)
    seen = views.look(np.arange(3), boxes, (32, 32), fill=FILL)
    assert list(views.errors) == [1] and str(tmp_path / "1.tif") in views.errors[1]
    assert torch.equal(seen[1], FILL[:, None, None].expand(3, 32, 32))
    for i in (0, 2):
        assert torch.equal(seen[i], images[i].look(boxes[:1], (32, 32), fill=FILL)[0])


def test_looks_read_ahead_travel_and_are_not_read_again(tmp_path):
    write_pyramid(tmp_path / "a.tif", photo(256, 256), 2)
    model_fill = (0.485, 0.456, 0.406)
    view = View(open_image(tmp_path / "a.tif"))
    view.prefetch([Look((0.0, 0.0, 256.0, 256.0), (32, 32), model_fill)])
    travelled = pickle.loads(pickle.dumps(view))
    assert travelled.image.bytes_read == view.image.bytes_read > 0
    (tmp_path / "a.tif").unlink()
    views = ImageViews([travelled])
    whole = np.array([[0, 0, 256, 256]])
    seen = views.look(np.array([0]), whole, (32, 32), fill=torch.tensor(model_fill))
    assert not views.errors
    assert torch.equal(seen, view.look(whole, (32, 32), fill=torch.tensor(model_fill)))
    views.look(np.array([0]), whole, (16, 16), fill=torch.tensor(model_fill))
    assert 0 in views.errors


def test_as_views():
    assert isinstance(as_views(torch.rand(1, 3, 8, 8)), TensorViews)
    pyramid = ArrayPyramid(photo(8, 8))
    assert len(as_views([pyramid, View(pyramid)])) == 2 and len(as_views(pyramid)) == 1
    views = BlankViews(2, (9, 9))
    assert as_views(views) is views
    with pytest.raises(ValueError, match=r"\(B, C, H, W\)"):
        as_views(torch.rand(3, 8, 8))
    with pytest.raises(TypeError, match="ndarray"):
        as_views(np.zeros((1, 3, 8, 8)))
    with pytest.raises(ImageError, match="channels="):
        ImageViews([pyramid, ArrayPyramid(photo(8, 8, 1))])


@pytest.mark.gpu
def test_tensor_views_on_a_gpu_equal_those_on_a_cpu():
    images = torch.rand(8, 3, 200, 180)
    which, boxes = (
        np.random.default_rng(0).integers(0, 8, 60),
        np.vstack([_boxes(30, 200, 180), np.round(_boxes(30, 200, 180, 1))]),
    )
    boxes[40:] = np.hstack([boxes[40:, :2], boxes[40:, :2] + 64])
    for antialias in (True, False):
        seen = TensorViews(images.cuda()).look(which, boxes, (32, 32), fill=FILL, antialias=antialias)
        expected = TensorViews(images).look(which, boxes, (32, 32), fill=FILL, antialias=antialias)
        torch.testing.assert_close(seen.cpu(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
@pytest.mark.parametrize("side", [256, 250])
def test_a_level_left_by_the_thumbnail_changes_no_look(dtype, side):
    """Looks after a thumbnail equal those without one, on the grid of the kept level and off it."""
    images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    images = images if dtype == torch.float32 else (255 * images).to(dtype)
    boxes = np.array(
        [
            [0, 0, 128, 128],
            [64, 128, 192, 250],
            [3, 5, 131, 133],
            [96, 96, 160, 160],
            [-16, 0, 112, 128],
            [0, 0, 32, 32],
        ],
        float,
    )
    which = np.array([0, 1, 1, 0, 1, 0])
    fresh = TensorViews(images).look(which, boxes, (32, 32), fill=torch.full((3,), 0.5))
    views = TensorViews(images)
    whole = np.array([[0, 0, side, side]] * 2, float)
    thumbnail = views.look(np.arange(2), whole, (32, 32))
    assert (views._level is not None) == (side == 256)
    torch.testing.assert_close(views.look(which, boxes, (32, 32), fill=torch.full((3,), 0.5)), fresh, rtol=0, atol=1e-6)
    pixels = images if dtype == torch.float32 else images / 255
    if side == 256:
        torch.testing.assert_close(thumbnail, torch.nn.functional.avg_pool2d(pixels, 8), rtol=0, atol=1e-6)
    before = views.images.clone()
    views.look(which, boxes, (32, 32)).zero_()
    assert torch.equal(views.images, before)
    torch.testing.assert_close(views.look(which, boxes, (32, 32), fill=torch.full((3,), 0.5)), fresh, rtol=0, atol=1e-6)


@pytest.mark.parametrize("fill", [None, FILL])
def test_occlusion_is_painting_the_pixels(tmp_path, fill):
    pixels = torch.from_numpy(np.stack([photo(48, 64, seed=s) for s in range(2)])).permute(0, 3, 1, 2)
    hidden = np.array([[[8, 4, 20, 30], [12, 20, 30, 70]], [[-5, -5, 6, 7], [np.nan] * 4]])
    painted = pixels.float() / 255
    ground = (torch.zeros(3) if fill is None else fill)[:, None, None]
    painted[0, :, 8:20, 4:30] = painted[0, :, 12:30, 20:] = painted[1, :, :6, :7] = ground
    for i, image in enumerate(pixels):
        write_pyramid(tmp_path / f"{i}.tif", image.permute(1, 2, 0).numpy())
    which, boxes = (
        np.array([0, 1, 0, 1]),
        np.array([[0, 0, 48, 64], [0, 0, 48, 64], [4, 10, 52, 74], [-4, -4, 44, 60.0]]),
    )
    expected = TensorViews(painted).look(which, boxes, (48, 64), fill=fill)
    for views in (TensorViews(pixels), ImageViews([open_image(tmp_path / f"{i}.tif") for i in range(2)])):
        occluded = Occluded(views, hidden)
        torch.testing.assert_close(occluded.look(which, boxes, (48, 64), fill=fill), expected, atol=1e-6, rtol=0)
        assert occluded.sizes is views.sizes and occluded.channels == 3 and occluded.errors is views.errors
        assert (occluded.bytes_read is None) == (views.bytes_read is None)


def test_pixels_of_a_smaller_look_are_hidden_by_their_centres():
    views = Occluded(TensorViews(torch.ones(1, 1, 8, 8)), np.array([[[0, 1, 2.9, 3], [7, 7, 7, 8]]]))
    seen = views.look(np.array([0]), np.array([[0, 0, 8, 8.0]]), (4, 4))[0, 0]
    expected = torch.ones(4, 4)  # rows' and columns' centres are at 1, 3, 5 and 7
    expected[0, 0] = 0
    assert torch.equal(seen, expected)
    assert torch.equal(
        Occluded(views.views, np.empty((1, 0, 4))).look(np.array([0]), np.array([[0, 0, 8, 8.0]]), (4, 4)),
        torch.ones(1, 1, 4, 4),
    )

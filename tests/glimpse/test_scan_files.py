"""Scans of files: what is not read or not decoded, masks, and the bytes that are read."""

from __future__ import annotations

import math
import struct
import time

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from foveal.data import DataModule, ImageDataset, Reading, TensorDataset
from foveal.draws import Draws
from foveal.errors import ConfigError, ImageError
from foveal.evaluation import Setting, find_thresholds
from foveal.glimpse import places
from foveal.glimpse.places import STRIDE, TILE, WINDOW
from foveal.glimpse.scan import Scan
from foveal.images import ArrayPyramid, ImageViews, Transform, View, find_mask, open_image, tiff
from foveal.images.views import Occluded
from foveal.models import create_model
from foveal.policies import GREEDY, NEVER, Random, Sampled
from foveal.prediction import look_until, predict
from foveal.prediction.cost import count_cost, count_looks
from tests.glimpse.test_scan import brute_peaks, whole_scan
from tests.images.files import write_pyramid

SIDE = 64  # of the tiles of the files


def small(**options):
    torch.manual_seed(0)
    sizes = {"num_classes": 3, "look_size": 16, "scale": 2, "scout_width": 8, "locations": (3,), "in_chans": 1}
    return Scan(**{**sizes, **options}).eval()


def draws(count=1):
    return Draws(0, 0, np.arange(count))


def found(model, image, policy=GREEDY, count=12):
    views = ImageViews([image])
    kept = model.scan(views, count, policy, draws(), "x", reservoir=4)
    assert not views.errors
    return kept


def same(one, other):
    assert (one.places == other.places).all() and (one.taken == other.taken).all()
    assert torch.equal(one.windows, other.windows) and (one.log_probability == other.log_probability).all()


@pytest.fixture
def patchy(tmp_path):
    """A pyramid of 768 x 640 px: noise in some tiles of level 1, and else one of two colours."""
    rng = np.random.default_rng(0)
    pixels = np.full((768, 640, 1), 200, np.uint8)
    pixels[:, 512:] = 90
    for y, x in ((0, 0), (128, 128), (640, 512), (640, 0)):
        pixels[y : y + 128, x : x + 128] = rng.integers(0, 256, (128, 128, 1))
    write_pyramid(tmp_path / "a.tif", pixels, 2, compression="zlib")
    return tmp_path / "a.tif"


@pytest.mark.parametrize("policy", [GREEDY, Sampled(), Random()])
def test_constant_tiles_are_decoded_once_and_nothing_changes(monkeypatch, patchy, policy):
    monkeypatch.setattr(places, "BLOCK", 4)
    model = small()
    with open_image(patchy) as image:
        kept = found(model, image, policy)
        # 30 tiles of level 1, of which 4 are noise; each colour is decoded once.
        assert image.tiles_decoded == 4 + 2
    looked = []
    monkeypatch.setattr(ImageViews, "is_blank", lambda *_: looked.append(1) or False)
    monkeypatch.setattr(tiff, "_CONSTANT", 10**9)
    with open_image(patchy) as image:
        same(kept, found(model, image, policy))
        assert image.tiles_decoded >= 30
    whole = ArrayPyramid(tifffile.imread(patchy, key=1)[..., None])
    same(kept, found(small(scale=1, look_size=8), whole, policy))


def test_blocks_of_one_colour_are_not_read(monkeypatch, patchy):
    monkeypatch.setattr(places, "BLOCK", 2)
    model, looks, look = small(), [], ImageViews.look
    monkeypatch.setattr(ImageViews, "look", lambda *a, **k: looks.append(a[2]) or look(*a, **k))
    with open_image(patchy) as image:
        found(model, image)
    blocks = len(model._blocks(np.array([[768, 640]]))[0])
    assert 0 < len(looks) < 0.75 * blocks
    # Hidden regions would not be seen in a block that is not read.
    views = Occluded(ImageViews([open_image(patchy)]), np.array([[[300, 200, 330, 230]]]))
    assert not any(views.is_blank(0, *model._box(block)) for block in model._blocks(views.sizes)[0])


def test_equal_bytes_of_another_size_are_decoded(tmp_path):
    # Tiles at the edge of an image may be cropped: a tile is known by its size, too.
    pixels = np.full((100, 100), 7, np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", pixels, tile=(64, 64), compression="zlib")
    with open_image(tmp_path / "a.tif") as image:
        assert (image.read(0, (0, 0, 100, 100)) == 7).all()
        assert image.tiles_decoded == len({tuple(image._headers().levels[0].shapes(i)) for i in range(4)})


def test_missing_tiles_are_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(places, "BLOCK", 2)
    path = tmp_path / "a.tif"
    pixels = np.zeros((512, 512), np.uint8)
    pixels[64:128, 64:192] = np.random.default_rng(0).integers(0, 256, (64, 128))
    tifffile.imwrite(path, pixels, tile=(64, 64), compression="zlib")
    with tifffile.TiffFile(path) as file:
        tag = file.pages[0].tags["TileByteCounts"]
        counts = list(tag.value)
        at, kind = tag.valueoffset, f"<{len(counts)}{ {3: 'H', 4: 'I'}[int(tag.dtype)] }"
    empty = [0 if n == min(counts) else n for n in counts]
    with path.open("r+b") as file:
        file.seek(at)
        file.write(struct.pack(kind, *empty))
    model = small(scale=1, mean=(0.0,))
    with open_image(path) as image:
        kept = found(model, image)
        assert image.tiles_decoded == np.count_nonzero(empty) == 2 and image.bytes_read == sum(empty)
    same(kept, found(model, ArrayPyramid(pixels[..., None])))


def test_tiles_of_few_bytes_are_skipped_if_asked(monkeypatch, patchy):
    monkeypatch.setattr(places, "BLOCK", 3)
    with open_image(patchy) as image:
        counts = image._headers().levels[1].counts.all(image._descriptor(str(patchy))).reshape(6, 5)
        few = int(np.sort(counts.ravel())[-4]) - 1  # all but the four tiles of noise
        kept = found(small(blank_bytes=few), image, Random(), 40)
        tiles = (kept.places[kept.taken] * STRIDE) // SIDE
        assert (counts[tuple(tiles.T)] > few).all() and image.tiles_decoded < 30
    with open_image(patchy) as image:
        default = found(small(), image, Random(), 40)
        assert (counts[tuple(((default.places[default.taken] * STRIDE) // SIDE).T)] <= few).any()  # beside the noise


# ------------------------------------------------------------------------------------------------ masks


def noise(h, w, bands=1, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (h, w, bands), dtype=np.uint8)


def disc(h, w):
    y, x = np.mgrid[:h, :w]
    return ((y - h / 3) / h) ** 2 + ((x - w / 2) / w) ** 2 < 0.06


@pytest.mark.parametrize("block", [1, 4, 32])
def test_a_scan_looks_inside_the_mask(monkeypatch, block):
    monkeypatch.setattr(places, "BLOCK", block)
    model, image = small(), ArrayPyramid(noise(180, 240))
    image.mask = disc(30, 40)
    scores = whole_scan(model, torch.from_numpy(image._pixels.numpy()).permute(2, 0, 1) / 255)
    for y in range(scores.shape[0]):
        for x in range(scores.shape[1]):
            if not image.mask[int((4 * y + 1) * 30 / 180), int((4 * x + 1) * 40 / 240)]:
                scores[y, x] = NEVER
    expected = brute_peaks(scores, model.radius)
    kept = model.scan(ImageViews([image]), 400, GREEDY, draws(), "x")
    assert kept.places[kept.taken].tolist() == [list(peak[1:]) for peak in expected] and len(expected) > 5
    every = model.scan(ImageViews([image]), 9, Random(), draws(), "x")
    assert all(scores[tuple(place)] > NEVER / 2 for place in every.places[0])


def test_blocks_outside_the_mask_are_not_read(monkeypatch, tmp_path):
    monkeypatch.setattr(places, "BLOCK", 2)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, noise(512, 512)[..., 0], tile=(64, 64))
    mask = np.zeros((8, 8), bool)
    mask[2, 3] = True
    with open_image(path, mask=mask) as image:
        kept = found(small(scale=1), image)
        assert (kept.places[0] // 32 == [2, 3]).all() and image.tiles_decoded <= 16


def test_masks_turn_with_the_image():
    pixels, mask, model = noise(120, 160), disc(12, 16), small()
    image = ArrayPyramid(pixels)
    image.mask = mask
    turned = ArrayPyramid(np.ascontiguousarray(pixels[:, ::-1]))
    turned.mask = np.ascontiguousarray(mask[:, ::-1])
    view = View(image, Transform.identity((120, 160)).flip())
    same(found(model, view), found(model, turned))


def save_mask(mask, path):
    Image.fromarray(mask.astype(np.uint8) * 255).save(path)
    return path


def test_masks_of_files(tmp_path):
    path, masks = tmp_path / "slide.png", tmp_path / "masks"
    masks.mkdir()
    Image.fromarray(noise(120, 160)[..., 0]).save(path)
    with pytest.raises(ImageError, match=r"slide\.png: has no mask in .*masks; add slide\.png there"):
        find_mask(masks, path)
    file = save_mask(disc(60, 80), masks / "slide.png")
    assert find_mask(masks, path) == file
    assert (open_image(path, mask=file).mask == disc(60, 80)).all()
    for wrong, message in (
        (
            save_mask(disc(60, 60), tmp_path / "square.png"),
            r"square\.png is 60 x 60 pixels, .*slide\.png 160 x 120",
        ),
        (save_mask(np.zeros((60, 80), bool), tmp_path / "black.png"), "black.png has no white pixel"),
        (np.zeros((60, 80)), r"slide\.png: the mask is an array of float64 of shape \(60, 80\)"),
        (tmp_path / "absent.png", r"absent\.png: there is no such file"),
    ):
        with pytest.raises(ImageError, match=message):
            open_image(path, mask=wrong)


def test_masks_in_prediction_and_training(tmp_path):
    model, masks, images = small(locations=(5,)), tmp_path / "masks", tmp_path / "images"
    model.class_names = ("a", "b", "c")
    masks.mkdir()
    images.mkdir()
    for name in "ab":
        Image.fromarray(noise(120, 160)[..., 0]).save(images / f"{name}.png")
    mask = disc(60, 80)
    save_mask(mask, masks / "a.png")
    good, bad = predict(model, images, masks=masks, device="cpu").rows
    assert bad["error"].endswith(f"b.png: has no mask in {masks}; add b.png there, white where to look")
    middles = [((g["box"][0] + g["box"][2]) / 2, (g["box"][1] + g["box"][3]) / 2) for g in good["glimpses"][1:]]
    assert len(middles) == 5 and all(mask[int(y / 2), int(x / 2)] for y, x in middles)

    data = ImageDataset([images / "a.png", images / "b.png"], [0, 1], model.class_names, reading=Reading(channels=1))
    data.reading = Reading(channels=1, masks=str(masks))
    batch = data.batch(0, [0, 1], 0, model.first_looks)
    assert [path for path, _ in batch.errors] == [str(images / "b.png")]
    boxes = model(batch.views).glimpses.box[1:]
    assert boxes.tolist() == [g["box"] for g in good["glimpses"][1:]]

    with pytest.raises(ConfigError, match=r"`masks` .*: the model test_resnet has no scan; leave `masks` out"):
        predict(create_model("test_resnet", in_chans=1, num_classes=3), images, masks=masks, device="cpu")
    with pytest.raises(ConfigError, match="there is no such folder"):
        predict(model, images, masks=masks / "deeper", device="cpu")


def test_a_mask_that_was_repaired_is_noticed(tmp_path):
    model, masks, images = small(locations=(2,)), tmp_path / "masks", tmp_path / "images"
    model.class_names = ("a", "b", "c")
    masks.mkdir()
    images.mkdir()
    Image.fromarray(noise(120, 160)[..., 0]).save(images / "a.png")
    save_mask(np.zeros((60, 80), bool), masks / "a.png")

    def call():
        done = predict(model, images, out=tmp_path / "rows.csv", masks=masks, device="cpu")
        return len(done.failed), done.predicted, done.skipped

    time.sleep(0.05)  # a file that changed during reading may be complete now
    assert call() == (1, 0, 0)
    assert call() == (1, 0, 1)  # neither file has changed
    save_mask(disc(60, 80), masks / "a.png")
    assert call() == (0, 1, 0)


# ------------------------------------------------------------------------------------------------ bytes, memory, cost


def test_bytes_read_and_tiles_kept(monkeypatch, tmp_path):
    monkeypatch.setattr(places, "BLOCK", 8)
    monkeypatch.setattr(tiff, "_KEPT", 0)
    model, path, kept = small(scale=4), tmp_path / "a.tif", {}
    for height, width in ((1024, 1024), (1024, 2048)):
        write_pyramid(path, noise(height, width), 4, compression="zlib", tile=32)
        with open_image(path) as image:
            found(model, image)
            level = image._headers().levels[2]
            # Blocks are 8 tiles of the file high, and a row of tiles is read again for the next one.
            assert image.tiles_decoded <= math.ceil(9 / 8 * level.rows) * level.columns
            assert image.bytes_read <= path.stat().st_size / 12
            kept[width] = image._keep
    assert kept[1024] == kept[2048] <= 10 * 6 * 32**2


def test_progress_within_large_images(monkeypatch):
    monkeypatch.setattr(places, "BLOCK", 2)
    model, shares = small(), []
    for side, told in ((50, False), (400, True)):
        views = ImageViews([ArrayPyramid(noise(side, side))])
        views.on_scan = shares.append
        model(views)
        assert bool(shares) == told
    assert shares == sorted(shares) and shares[-1] == 1 and len(shares) > 4


def test_cost_of_an_image_of_many_blocks():
    model, size = small(scale=1, in_chans=1), (1500, 1000)
    blocks = model._blocks(np.array([size]))[0]
    assert len(blocks) > 4
    tiles = sum(int((block.end - block.begin).prod()) for block in blocks)
    looks = count_cost(model, 64, 3).macs - count_cost(model, 64, 0).macs
    first = (TILE * STRIDE + WINDOW - STRIDE - WINDOW) // 2 + 5
    scout = first**2 * 8 * 9 + ((first - 2) ** 2 + (first - 4) ** 2) * 8 * 8 * 9
    assert count_cost(model, size, 3).macs == tiles * scout + looks


def test_thresholds_for_looks_are_those_of_images_with_places():
    model = small(locations=(4,))
    model.class_names = ("a", "b", "c")
    images = torch.from_numpy(noise(6 * 64, 64).reshape(6, 1, 64, 64))
    data = DataModule(classes=model.class_names, val=TensorDataset(images, np.arange(6) % 3, model.class_names))
    assert [count_looks(model, (20_000, 30_000), k) for k in (0, 1, 4)] == [0, 1, 4]
    exits = find_thresholds(model, data, ["1locations", "2.5locations"], setting=Setting(device="cpu", batch_size=3))
    for exit, most in zip(exits, (1, 2.5), strict=True):
        taken = look_until(model, images, exit.threshold, exit.locations).locations
        assert taken.mean() == exit.cost <= most
    assert exits[1].cost > 0


@pytest.mark.parametrize("orientation", [1, 2, 4, 6, 7])
def test_bytes_of_tiles_of_turned_images(tmp_path, orientation):
    path, pixels = tmp_path / "a.tif", noise(192, 128)[..., 0]
    pixels[64:128, :64] = 5
    tag = [(274, "H", 1, orientation, True)]
    tifffile.imwrite(path, pixels, tile=(64, 64), compression="zlib", extratags=tag)
    with open_image(path) as image:
        height, width = image.size
        y, x = np.arange(height)[:, None] + 0.5, np.arange(width)[None] + 0.5
        few = image.tile_bytes(y, x, 1.0) < 1000
        plain = image.read(0, (0, 0, height, width))[..., 0] == 5
        assert few.sum() == 64 * 64 and plain[few].all()

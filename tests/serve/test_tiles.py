"""Tiles put together are the image; looks are those of the model."""

import io
import math

import numpy as np
import pytest
import tifffile
from PIL import Image

from foveal.images import open_image
from foveal.serve.limits import Refused
from foveal.serve.tiles import TILE, Tiles, _Cache

SIZE = (700, 1100)


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    """A pyramid of smooth colours, with three levels."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    pixels = np.stack([y * 255 // SIZE[0], x * 255 // SIZE[1], (x + y) * 255 // sum(SIZE)], 2).astype(np.uint8)
    path = tmp_path_factory.mktemp("slide") / "slide.tif"
    with tifffile.TiffWriter(path) as writer:
        for i in range(3):
            writer.write(pixels[:: 2**i, :: 2**i], tile=(128, 128), compression="zlib", subfiletype=int(i > 0))
    return path, pixels


def decode(data):
    return np.asarray(Image.open(io.BytesIO(data)))


@pytest.fixture(scope="module")
def tiles():
    return Tiles(open_image)


def test_the_description_of_a_slide(tiles, slide):
    about = tiles.describe(slide[0])
    assert (about["width"], about["height"], about["tile"], about["levels"]) == (1100, 700, TILE, 12)
    assert about["stored_levels"] == [[1100, 700], [550, 350], [275, 175]]


@pytest.mark.parametrize("level", [11, 10, 9, 6, 0])
def test_tiles_of_a_level_are_the_reduced_image(tiles, slide, level):
    path, pixels = slide
    scale = 2 ** (11 - level)
    height, width = math.ceil(SIZE[0] / scale), math.ceil(SIZE[1] / scale)
    rows = [
        np.concatenate(
            [decode(tiles.tile(path, level, column, row)) for column in range(math.ceil(width / TILE))], axis=1
        )
        for row in range(math.ceil(height / TILE))
    ]
    whole = np.concatenate(rows)
    assert whole.shape == (height, width, 3)
    y = (np.arange(height) + 0.5) * scale - 0.5
    x = (np.arange(width) + 0.5) * scale - 0.5
    expected = pixels[np.ix_(y.round().astype(int).clip(0, SIZE[0] - 1), x.round().astype(int).clip(0, SIZE[1] - 1))]
    # Neighbours differ by at most one; the last pixel of a level is stretched.
    inner = (slice(0, -1), slice(0, -1)) if height > 1 else (slice(None), slice(None))
    allowed = 4 + 255 * scale / min(SIZE)
    assert np.abs(whole[inner].astype(int) - expected[inner]).max() <= allowed


@pytest.mark.parametrize("place", [(12, 0, 0), (-1, 0, 0), (11, 5, 0), (11, 0, 3), (11, -1, 0), (10**9, 0, 0)])
def test_there_are_no_tiles_outside(tiles, slide, place):
    with pytest.raises(Refused):
        tiles.tile(slide[0], *place)


def test_a_look_is_what_the_model_sees(tiles, slide):
    path, _ = slide
    box = (-40.0, 100.0, 216.0, 356.0)
    seen = decode(tiles.look(path, box, (64, 64), (1.0, 0.0, 0.5), True))
    with open_image(path) as image:
        import torch

        expected = image.look(np.array([box]), (64, 64), fill=torch.tensor([1.0, 0.0, 0.5]))[0]
    assert np.abs(seen - expected.permute(1, 2, 0).numpy() * 255).max() <= 0.51
    assert tuple(seen[0, 0]) == (255, 0, 128)  # outside


def test_a_changed_file_gives_new_tiles(tmp_path):
    tiles, path = Tiles(open_image), tmp_path / "a.png"
    Image.new("RGB", (40, 40), "red").save(path)
    before, version = decode(tiles.tile(path, 6, 0, 0)), tiles.version(path)
    Image.new("RGB", (40, 41), "blue").save(path)
    after = decode(tiles.tile(path, 6, 0, 0))
    assert tiles.version(path) != version and before[0, 0, 0] > 250 and after[0, 0, 2] > 250


def test_the_cache_keeps_the_last_used_up_to_its_size():
    cache = _Cache(10)
    for i in range(4):
        cache.put(i, str(i), 3)
        cache.get(0)
    assert [cache.get(i) for i in range(4)] == ["0", None, "2", "3"] and cache.size == 9
    cache.put("large", "x", 50)
    assert cache.get("large") == "x" and cache.get(0) is None and cache.size == 50
    cache.put("small", "y", 1)
    assert cache.get("large") is None and cache.size == 1


def test_an_image_is_opened_once_for_many_tiles(slide):
    opened = []
    tiles = Tiles(lambda path: opened.append(path) or open_image(path))
    for column in range(3):
        tiles.tile(slide[0], 11, column, 0)
    assert len(opened) == 1

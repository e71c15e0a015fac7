"""Errors of files are raised as `ImageError` with the path, at every look; programming errors are not converted."""

import os
import struct

import numpy as np
import pytest
import tifffile
import torch

from foveal.errors import ConfigError, ImageError
from foveal.images import ArrayPyramid, ImageViews, open_image, tiff
from foveal.images.reading import reading
from tests.images.files import halve, photo, write_pyramid

SMALL, LARGE = (64, 64), (256, 256)
WHOLE = np.array([[0, 0, 256, 256.0]])


def _pyramid(path, bigtiff=False):
    pixels = photo(256, 256)
    with tifffile.TiffWriter(path, bigtiff=bigtiff) as writer:
        for level in (pixels, halve(pixels), halve(halve(pixels))):
            writer.write(
                level,
                tile=(64, 64),
                photometric="rgb",
                compression="jpeg",
                subfiletype=int(level is not pixels),
                metadata=None,
            )


def _set(path, code, value):
    """Replace the entry of the first tile in a list of level 0."""
    with tifffile.TiffFile(path) as file:
        tag = file.pages[0].tags[code]
        size = {3: 2, 4: 4, 16: 8}[int(tag.dtype)]
    data = bytearray(path.read_bytes())
    data[tag.valueoffset : tag.valueoffset + size] = (value & ((1 << 8 * size) - 1)).to_bytes(size, "little")
    path.write_bytes(data)


def _other_tiles(path):
    data = path.read_bytes()
    with tifffile.TiffFile(path) as file:
        page = file.pages[2]
        at, length = page.dataoffsets[0], page.databytecounts[0]
    tile = bytearray(data[at : at + length])
    frame = tile.index(b"\xff\xc0")
    tile[frame + 5 : frame + 9] = struct.pack(">HH", 32, 32)
    path.write_bytes(data + bytes(tile))
    _set(path, 324, len(data))
    _set(path, 325, len(tile))


TRICKS = {
    "tiles of another size": _other_tiles,
    "an offset beyond every file": lambda path: _set(path, 324, -1),
    "an offset beyond this file": lambda path: _set(path, 324, path.stat().st_size),
    "more bytes than the file has": lambda path: _set(path, 325, (1 << 60) - 1),
}


@pytest.mark.parametrize("bigtiff", [False, True])
@pytest.mark.parametrize("trick", TRICKS)
def test_the_second_look_is_as_safe_as_the_first(tmp_path, trick, bigtiff):
    for name in "abc":
        _pyramid(tmp_path / f"{name}.tif", bigtiff)
    TRICKS[trick](tmp_path / "b.tif")
    views = ImageViews([open_image(tmp_path / f"{name}.tif") for name in "abc"])
    boxes, fill = WHOLE.repeat(3, 0), torch.tensor([0.5, 0.5, 0.5])
    views.look(np.arange(3), boxes, SMALL, fill=fill)
    assert not views.errors, "the first look is served by a level that is intact"
    seen = views.look(np.arange(3), boxes, LARGE, fill=fill)
    assert list(views.errors) == [1] and views.errors[1].startswith(f"{tmp_path / 'b.tif'}: ")
    assert (seen[1] == 0.5).all() and torch.equal(seen[0], seen[2])


@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
def test_a_file_that_becomes_shorter_between_two_looks(tmp_path, share):
    path = tmp_path / "a.tif"
    _pyramid(path)
    with tifffile.TiffFile(path) as file:
        first = min(page.dataoffsets[0] for page in file.pages)
    image = open_image(path)
    views = ImageViews([image])
    views.look(np.array([0]), WHOLE[:, [0, 0, 2, 3]] / 4, SMALL)
    os.truncate(path, max(16, int(share * first)))
    views.look(np.array([0]), WHOLE, LARGE)
    assert views.errors[0].startswith(f"{path}: ")


def test_a_file_that_is_gone_at_the_second_look(tmp_path):
    for name in ("a.tif", "a.png"):
        write_pyramid(tmp_path / "a.tif", photo(64, 64), 1)
        from PIL import Image

        Image.fromarray(photo(64, 64)).save(tmp_path / "a.png")
        views = ImageViews([open_image(tmp_path / name)])
        (tmp_path / name).unlink()
        views.look(np.array([0]), np.array([[0, 0, 64, 64.0]]), SMALL)
        assert views.errors[0].startswith(f"{tmp_path / name}: ") and "put it back" in views.errors[0]


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("what a codec says"),
        OverflowError("too large"),
        MemoryError(),
        struct.error("short"),
        OSError(5, "disk"),
    ],
)
def test_whatever_reading_raises_names_the_file(tmp_path, monkeypatch, error):
    write_pyramid(tmp_path / "a.tif", photo(64, 64), 1)
    views = ImageViews([open_image(tmp_path / "a.tif")])

    def fail(*_):
        raise error

    monkeypatch.setattr(tiff, "decode_tile", fail)
    views.look(np.array([0]), np.array([[0, 0, 64, 64.0]]), SMALL)
    assert views.errors[0].startswith(f"{tmp_path / 'a.tif'}: tile 0 of level 0 cannot be decoded")


@pytest.mark.parametrize("bug", ["unknown name", "wrong call", "missing function", "assertion", "failed import"])
def test_mistakes_of_a_program_are_not_called_damage(tmp_path, monkeypatch, bug):
    def fail(*_):
        if bug == "unknown name":
            raise NameError("name 'tiel' is not defined")
        if bug == "wrong call":
            halve(photo(8, 8), factor=3)
        elif bug == "missing function":
            os.preadd(1, 2, 3)
        elif bug == "failed import":
            import no_such_module_at_all  # noqa: F401
        raise AssertionError

    write_pyramid(tmp_path / "a.tif", photo(64, 64), 1)
    views = ImageViews([open_image(tmp_path / "a.tif")])
    monkeypatch.setattr(tiff, "decode_tile", fail)
    with pytest.raises((NameError, TypeError, AttributeError, AssertionError, ImportError)):
        views.look(np.array([0]), np.array([[0, 0, 64, 64.0]]), SMALL)
    monkeypatch.setattr(tiff, "outline", fail)
    with pytest.raises((NameError, TypeError, AttributeError, AssertionError, ImportError)):
        open_image(tmp_path / "a.tif")


def test_errors_are_one_short_line():
    with pytest.raises(ImageError) as error, reading("a.tif", "cannot be decoded"):
        raise ValueError("several\nlines " * 100)
    assert "\n" not in str(error.value) and len(str(error.value)) < 250


def test_systems_without_positional_reads(tmp_path, monkeypatch):
    """As on Windows; many threads share one file position."""
    levels = write_pyramid(tmp_path / "a.tif", photo(500, 500), 3, compression="deflate")
    monkeypatch.delattr(os, "pread")
    image = open_image(tmp_path / "a.tif")
    assert np.array_equal(image.read(0, (0, 0, 500, 500)), levels[0])
    from concurrent.futures import ThreadPoolExecutor

    boxes = [(y, x, y + 70, x + 70) for y in range(0, 420, 60) for x in range(0, 420, 60)]
    with ThreadPoolExecutor(8) as pool:
        for box, seen in zip(boxes, pool.map(lambda b: image.read(0, b), boxes), strict=True):
            assert np.array_equal(seen, levels[0][box[0] : box[2], box[1] : box[3]])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_named_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "a.tif")
    with pytest.raises(ImageError, match="is a pipe"):
        open_image(tmp_path / "a.tif")


def test_impossible_paths_are_errors_of_that_image(tmp_path):
    for name in ("n" * 300 + ".tif", "folder/" * 2000 + "a.tif", "a\0b.tif"):
        with pytest.raises(ImageError, match=r"cannot be opened|no such file"):
            open_image(f"{tmp_path}/{name}")


@pytest.mark.parametrize("value_range", [(1, 0), (3, 3), (0, float("nan")), (float("-inf"), 1)])
def test_ranges_that_are_reversed_empty_or_no_numbers_are_refused(tmp_path, value_range):
    from foveal.data.dataset import Reading

    tifffile.imwrite(tmp_path / "a.tif", photo(32, 32, 3, np.float32), photometric="rgb")
    with pytest.raises(ConfigError, match="value_range"):
        open_image(tmp_path / "a.tif", value_range=value_range)
    with pytest.raises(ConfigError, match="value_range"):
        Reading(value_range=value_range)


def test_an_image_in_which_nothing_can_be_seen_is_an_error(tmp_path):
    from PIL import Image

    rgba = np.dstack([photo(64, 64), np.zeros((64, 64), np.uint8)])
    Image.fromarray(rgba).save(tmp_path / "transparent.png")
    tifffile.imwrite(tmp_path / "alpha.tif", rgba, photometric="rgb", extrasamples=["unassalpha"], tile=(32, 32))
    nothing = np.full((64, 64), -9999, np.float32)
    tifffile.imwrite(
        tmp_path / "nodata.tif", nothing, tile=(32, 32), extratags=[(42113, 2, None, "-9999", True)], metadata=None
    )
    tifffile.imwrite(tmp_path / "nan.tif", np.full((64, 64), np.nan, np.float32), tile=(32, 32))
    tifffile.imwrite(tmp_path / "absent.tif", np.zeros((64, 64), np.uint8), tile=(32, 32), metadata=None)
    with tifffile.TiffFile(tmp_path / "absent.tif", mode="r+") as file:
        file.pages[0].tags[325].overwrite([0] * 4)
    rgba[10, 10, 3] = 255
    Image.fromarray(rgba).save(tmp_path / "nearly.png")
    tifffile.imwrite(tmp_path / "nearly.tif", rgba, photometric="rgb", extrasamples=["unassalpha"], tile=(32, 32))
    files = sorted(tmp_path.iterdir())
    views = ImageViews(
        [
            open_image(f, channels=3, value_range=(0, 255) if f.name[0] == "n" and f.suffix == ".tif" else None)
            for f in files
        ]
    )
    corner = np.array([[32, 32, 64, 64.0]]).repeat(len(files), 0)
    for boxes in (corner, np.array([[0, 0, 64, 64.0]]).repeat(len(files), 0)):
        views.look(np.arange(len(files)), boxes, (8, 8))
    told = {files[i].name for i in views.errors}
    assert told == {"transparent.png", "alpha.tif", "nodata.tif", "nan.tif", "absent.tif"}
    assert all("nothing to see" in reason for reason in views.errors.values())


def test_a_few_numbers_that_are_none_are_no_data():
    pixels = photo(32, 32, 3, np.float32)
    from foveal.images.pyramid import without_gaps

    broken = pixels.copy()
    broken[3:5, 7, 1] = np.nan
    broken[20, 20] = np.inf
    shown, alpha = without_gaps(broken, None)
    assert (
        np.isfinite(shown).all() and (alpha == 0).sum() == 3 and np.array_equal(shown[alpha == 1], pixels[alpha == 1])
    )
    seen = ArrayPyramid(shown, alpha, value_range=(0, 1)).look(
        np.array([[0, 0, 32, 32.0]]), (32, 32), fill=torch.zeros(3)
    )
    assert seen.isfinite().all()

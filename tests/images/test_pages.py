"""Roles of the pages of a TIFF, which are defined by tags and not by their order."""

import numpy as np
import pytest
import tifffile
import torch

from foveal.errors import ImageError
from foveal.images import open_image
from tests.images.files import halve, photo, write_pyramid


def _whole(image, level=0):
    return image.read(level, (0, 0, *image.level_sizes[level]))


@pytest.mark.parametrize("tiled", [True, False])
@pytest.mark.parametrize("thumbnail_tiled", [True, False])
def test_a_reduced_copy_that_comes_first_is_not_the_picture(tmp_path, thumbnail_tiled, tiled):
    pixels = photo(256, 320)
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for level, reduced, tiles in ((pixels[::8, ::8], 1, thumbnail_tiled), (pixels, 0, tiled)):
            writer.write(level, subfiletype=reduced, photometric="rgb", tile=(64, 64) if tiles else None, metadata=None)
    image = open_image(tmp_path / "a.tif")
    assert np.array_equal(_whole(image), pixels)
    assert len(image.level_sizes) == 1 + (tiled and thumbnail_tiled)


def test_older_files_say_so_in_another_tag(tmp_path):
    pixels = photo(128, 128)
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for level, meaning in ((pixels[::4, ::4], 2), (pixels, 1)):
            writer.write(level, photometric="rgb", metadata=None, extratags=[(255, 3, 1, meaning, True)])
    assert np.array_equal(_whole(open_image(tmp_path / "a.tif")), pixels)


def test_a_picture_that_is_the_child_of_its_thumbnail(tmp_path):
    """As in DNG files. The orientation of the parent page applies to the main image."""
    pixels = photo(128, 192)
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        options = {"photometric": "rgb", "metadata": None}
        writer.write(pixels[::8, ::8], subfiletype=1, subifds=2, extratags=[(274, 3, 1, 6, True)], **options)
        writer.write(pixels, subfiletype=0, tile=(64, 64), **options)
        writer.write(halve(pixels), subfiletype=1, tile=(64, 64), **options)
    image = open_image(tmp_path / "a.tif")
    assert np.array_equal(_whole(image), np.rot90(pixels, -1)) and image.level_sizes == ((192, 128), (96, 64))


@pytest.mark.parametrize("flagged", [True, False])
def test_from_small_to_large(tmp_path, flagged):
    levels = [photo(251, 330)]
    for _ in range(3):
        levels.append(halve(levels[-1]))
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for level in reversed(levels):
            reduced = int(flagged and level is not levels[0])
            writer.write(level, subfiletype=reduced, tile=(32, 32), photometric="rgb", metadata=None)
    image = open_image(tmp_path / "a.tif")
    assert image.level_sizes == tuple(level.shape[:2] for level in levels)
    assert all(np.array_equal(_whole(image, i), level) for i, level in enumerate(levels))


def test_pages_of_a_document_are_no_levels(tmp_path):
    """The first page is the image if other pages have another shape, or are twice the size but not tiled."""
    pixels = photo(64, 96)
    for name, others in (("shape", [photo(150, 192)]), ("strips", [np.repeat(np.repeat(pixels, 2, 0), 2, 1)])):
        with tifffile.TiffWriter(tmp_path / f"{name}.tif") as writer:
            for page in (pixels, *others):
                writer.write(page, photometric="rgb", metadata=None, tile=(32, 32) if name == "shape" else None)
        assert np.array_equal(_whole(open_image(tmp_path / f"{name}.tif")), pixels)


@pytest.mark.parametrize("bands", [2, 3, 5])
@pytest.mark.parametrize("kind", ["OME", "OME with levels", "ImageJ", "ImageJ, one page", "tifffile"])
def test_channels_that_are_pages_are_bands(tmp_path, kind, bands):
    pixels = photo(100, 120, bands)
    planes, path = pixels.transpose(2, 0, 1), tmp_path / "a.tif"
    coarse = np.stack([halve(plane[..., None])[..., 0] for plane in planes])
    if kind == "OME with levels":
        with tifffile.TiffWriter(path, ome=True) as writer:
            options = {"photometric": "minisblack", "tile": (32, 32), "compression": "zlib"}
            writer.write(planes, subifds=1, metadata={"axes": "CYX"}, **options)
            writer.write(coarse, subfiletype=1, **options)
    elif kind.startswith("ImageJ"):
        tifffile.imwrite(
            path, planes, imagej=True, metadata={"axes": "CYX"}, **({"contiguous": True} if "one" in kind else {})
        )
        if "one" in kind:  # ImageJ leaves out the pages of stacks that are larger than classic TIFF
            with tifffile.TiffFile(path) as file:
                first = file.pages[0]
                end = first.offset + 2 + 12 * len(first.tags)
            data = bytearray(path.read_bytes())
            data[end : end + 4] = bytes(4)
            path.write_bytes(data)
    else:
        tifffile.imwrite(path, planes, ome=kind == "OME", metadata={"axes": "CYX"}, photometric="minisblack")
    image = open_image(path)
    assert image.channels == bands and np.array_equal(_whole(image), pixels)
    assert np.array_equal(image.read(0, (37, 50, 80, 111)), pixels[37:80, 50:111])
    if kind == "OME with levels":
        assert np.array_equal(_whole(image, 1), coarse.transpose(1, 2, 0))
    if bands != 3:
        with pytest.raises(ImageError, match=rf"has {bands} bands where 3 are expected"):
            open_image(path, channels=3)


@pytest.mark.parametrize("axes", ["ZCYX", "TCYX", "CZYX"])
@pytest.mark.parametrize("kind", ["OME", "ImageJ"])
def test_channels_of_a_stack_are_those_of_its_first_plane(tmp_path, kind, axes):
    stack = np.stack([photo(40, 50, 3, seed=i).transpose(2, 0, 1) for i in range(2)])
    if kind == "ImageJ":
        if axes == "CZYX":
            pytest.skip("ImageJ has one order")
        tifffile.imwrite(tmp_path / "a.tif", stack, imagej=True, metadata={"axes": axes})
    else:
        data = stack if axes != "CZYX" else stack.transpose(1, 0, 2, 3)
        tifffile.imwrite(tmp_path / "a.tif", data, ome=True, metadata={"axes": axes}, photometric="minisblack")
    assert np.array_equal(_whole(open_image(tmp_path / "a.tif")), photo(40, 50, 3, seed=0))


def test_jpeg_tables_of_channels_that_are_pages(tmp_path):
    """Each page has separate JPEG tables, without which its tiles cannot be decoded."""
    pixels = photo(64, 64)
    with tifffile.TiffWriter(tmp_path / "a.tif", ome=True) as writer:
        options = {"photometric": "minisblack", "tile": (64, 64), "compression": "jpeg", "metadata": {"axes": "CYX"}}
        writer.write(pixels.transpose(2, 0, 1), **options)
    assert np.abs(_whole(open_image(tmp_path / "a.tif")).astype(int) - pixels).mean() < 2


def test_channels_in_other_files_are_told(tmp_path):
    planes = photo(40, 50, 3).transpose(2, 0, 1)
    tifffile.imwrite(tmp_path / "a.ome.tif", planes, ome=True, metadata={"axes": "CYX"}, photometric="minisblack")
    data = (tmp_path / "a.ome.tif").read_bytes()
    assert b'SizeC="3"' in data
    (tmp_path / "a.ome.tif").write_bytes(data.replace(b'SizeC="3"', b'SizeC="4"'))
    with pytest.raises(ImageError, match=r"a\.ome\.tif"):
        open_image(tmp_path / "a.ome.tif").read(0, (0, 0, 40, 50))


def _padded_levels(pixels, tile, count):
    """Levels halved from an image whose true size is a multiple of its tiles, each padded to whole tiles with white."""
    stack, level = [], pixels
    for _ in range(count):
        h, w = (-(-n // tile) * tile for n in level.shape[:2])
        whole = np.full((h, w, 3), 255, np.uint8)
        whole[: level.shape[0], : level.shape[1]] = level
        stack.append(whole)
        odd = np.pad(level, ((0, level.shape[0] % 2), (0, level.shape[1] % 2), (0, 0)), mode="edge")
        level = halve(odd)
    return stack


@pytest.mark.parametrize("size", [(160, 352), (352, 160), (96, 96)])
def test_levels_that_are_padded_to_whole_tiles(tmp_path, size):
    """As in Philips slides: the size in the header is padded; the scale of level k is still 2^k."""
    tile = 32
    y, x = np.mgrid[: size[0], : size[1]]
    pixels = np.stack([y * 200 / size[0], x * 200 / size[1], (y // 16 + x // 16) % 2 * 200], 2).astype(np.uint8)
    stack = _padded_levels(pixels, tile, 6)
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for i, level in enumerate(stack):
            writer.write(
                level, tile=(tile, tile), photometric="rgb", subfiletype=int(i > 0), metadata=None, compression="zlib"
            )
    image = open_image(tmp_path / "a.tif")
    expected = [tuple(-(-n // 2**k) for n in size) for k in range(6)]
    assert image.level_sizes == tuple(expected)
    plain = open_image_of(pixels)
    for box, out in (
        ((0, 0, *size), (16, 16)),
        ((size[0] - 64, size[1] - 64, *size), (16, 16)),
        ((32, 32, 96, 96), (8, 8)),
    ):
        one, other = (v.look(np.array([box], float), out) for v in (image, plain))
        assert (one - other).abs().max() < 0.03, "no white from the padding, and nothing shifted"


def open_image_of(pixels):
    from foveal.images import ArrayPyramid

    return ArrayPyramid(pixels)


def test_labels_in_tiles_are_not_taken_for_padded_levels(tmp_path):
    pixels = photo(256, 320)
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        options = {"tile": (32, 32), "photometric": "rgb", "metadata": None}
        writer.write(pixels, subfiletype=0, **options)
        writer.write(photo(64, 32), subfiletype=0, **options)
        writer.write(halve(pixels), subfiletype=1, **options)
    assert open_image(tmp_path / "a.tif").level_sizes == ((256, 320), (128, 160))


def test_levels_without_the_mask_that_level_0_has_are_not_used(tmp_path):
    pixels = photo(128, 128)
    mask = np.zeros((128, 128), bool)
    mask[:, 40:] = True
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        options = {"tile": (32, 32), "metadata": None}
        writer.write(pixels, photometric="rgb", **options)
        writer.write(halve(pixels), photometric="rgb", subfiletype=1, **options)
        writer.write(mask, photometric="mask", subfiletype=4, **options)
    image = open_image(tmp_path / "a.tif")
    seen = image.look(np.array([[0, 0, 128, 128.0]]), (32, 32), fill=torch.tensor([0.9, 0.9, 0.9]))[0]
    assert image.level_sizes == ((128, 128),) and (seen[:, :, :10] == 0.9).all() and not (seen[:, :, 10:] == 0.9).any()


def test_pyramids_of_the_package_itself_are_read_as_before(tmp_path):
    levels = write_pyramid(tmp_path / "a.tif", photo(300, 200), 3)
    assert open_image(tmp_path / "a.tif").level_sizes == tuple(level.shape[:2] for level in levels)

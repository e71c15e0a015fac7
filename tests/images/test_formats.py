"""Every suffix has a reader and is in the documentation; pipes and devices are refused."""

import os
import re
import sys
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from foveal.errors import ImageError
from foveal.formats import BASE, BY_NAME, EXTRAS, SUFFIXES
from foveal.images import jxl, open_image
from tests.images.files import photo

ROOT = Path(__file__).parents[2]


def test_the_documentation_has_the_same_list():
    text = (ROOT / "docs" / "images.md").read_text().split("\n## Formats\n")[1].split("\n## ")[0]
    lines = [line for line in text.splitlines() if line.startswith("| ") and "`." in line]
    found, named = ([re.findall(r"`(\.\w+)`", line.split("|")[column]) for line in lines] for column in (3, 4))
    assert found == [list(BASE), *([*extra.suffixes, *extra.folders] for extra in EXTRAS.values())]
    assert named == [[], *(list(extra.by_name) for extra in EXTRAS.values())]
    assert len(set(SUFFIXES + BY_NAME)) == len(SUFFIXES + BY_NAME)


def write(path: Path, pixels: np.ndarray) -> None:
    """Write pixels in the format of the suffix."""
    if path.suffix in (".tif", ".tiff", ".btf", ".tf8", ".ptif", ".ptiff", ".svs", ".qptiff"):
        tifffile.imwrite(path, pixels, tile=(64, 64), photometric="rgb", bigtiff=path.suffix in (".btf", ".tf8"))
    elif path.suffix == ".jxl":
        path.write_bytes(imagecodecs.jpegxl_encode(pixels, lossless=True))
    else:
        kinds = {".png": "PNG", ".apng": "PNG", ".webp": "WEBP", ".bmp": "BMP", ".dib": "BMP", ".gif": "GIF"}
        kinds |= dict.fromkeys((".ppm", ".pgm", ".pbm", ".pnm"), "PPM")
        Image.fromarray(pixels).save(
            path, kinds.get(path.suffix, "JPEG"), **({"lossless": True} if path.suffix == ".webp" else {})
        )


@pytest.mark.parametrize("suffix", BASE)
def test_base_formats_are_read(tmp_path, suffix):
    pixels = photo(90, 70)
    write(tmp_path / f"a{suffix}", pixels)
    seen = open_image(tmp_path / f"a{suffix}", channels=3).read(0, (0, 0, 90, 70))
    # JPEG and the palette of GIF are lossy.
    assert np.abs(seen.astype(int) - pixels).mean() < (12 if suffix == ".gif" else 8)


@pytest.mark.parametrize(
    ("suffix", "module"), [(s, e.module) for e in EXTRAS.values() for s in (*e.suffixes, *e.by_name)]
)
def test_other_formats_go_to_the_reader_of_their_extra(tmp_path, monkeypatch, suffix, module):
    (tmp_path / f"a{suffix}").write_bytes(b"some unknown content" * 10)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImageError, match=f"needs {module}, which is not installed"):
        open_image(tmp_path / f"a{suffix}")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("bands", [1, 3, 4])
@pytest.mark.parametrize("container", [False, True])
def test_jpeg_xl_is_exact(tmp_path, dtype, bands, container):
    pixels = photo(264, 301, bands, dtype)
    encoded = imagecodecs.jpegxl_encode(pixels.squeeze(), lossless=True, usecontainer=container)
    (tmp_path / "a.jxl").write_bytes(encoded)
    image = open_image(tmp_path / "a.jxl")
    colours = min(bands, 3)
    assert (image.size, image.channels) == ((264, 301), colours)
    assert np.array_equal(image.read(0, (0, 0, 264, 301)), pixels[..., :colours])
    look = image.look(np.array([[0, 0, 264, 301]]), (264, 301))[0].numpy().transpose(1, 2, 0) * np.iinfo(dtype).max
    cover = pixels[..., 3:] / np.iinfo(dtype).max if bands == 4 else 1
    assert np.abs(look - pixels[..., :colours] * cover).max() < 1e-3 * np.iinfo(dtype).max


@pytest.mark.parametrize("size", [(8, 8), (64, 96), (30, 40), (1080, 1920), (100, 200), (77, 513), (9000, 3), (1, 1)])
@pytest.mark.parametrize("container", [False, True])
def test_the_size_of_jpeg_xl_is_known_before_it_is_decoded(tmp_path, size, container):
    (tmp_path / "a.jxl").write_bytes(
        imagecodecs.jpegxl_encode(np.zeros((*size, 3), np.uint8), usecontainer=container, effort=1)
    )
    assert jxl.read_jxl_size(str(tmp_path / "a.jxl")) == size
    with pytest.raises(
        ImageError, match=rf"claims {size[1]} x {size[0]} pixels, which take .* bytes, more than the limit of 7;"
    ):
        open_image(tmp_path / "a.jxl", max_bytes=7)


def test_large_jpeg_xl_is_converted_once(tmp_path, monkeypatch):
    monkeypatch.setattr("foveal.images.plain.LARGE", 10_000)
    pixels = photo(300, 400)
    (tmp_path / "a.jxl").write_bytes(imagecodecs.jpegxl_encode(pixels, lossless=True))
    image = open_image(tmp_path / "a.jxl", cache_dir=tmp_path / "cache")
    assert len(image.level_sizes) == 2
    assert np.array_equal(image.read(0, (0, 0, 300, 400)), pixels)


@pytest.mark.parametrize("keep", [1, 2, 5, 13, 40, 0.5, 0.999])
@pytest.mark.parametrize("container", [False, True])
def test_jpeg_xl_cut_short_is_damaged(tmp_path, keep, container):
    encoded = imagecodecs.jpegxl_encode(photo(60, 50), lossless=True, usecontainer=container)
    (tmp_path / "a.jxl").write_bytes(encoded[: keep if isinstance(keep, int) else int(keep * len(encoded))])
    with pytest.raises(ImageError, match=r"a\.jxl: "):
        open_image(tmp_path / "a.jxl", cache_dir=tmp_path / "cache").look(np.array([[0, 0, 60, 50]]), (8, 8))


@pytest.mark.parametrize(
    "make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), lambda path: path.symlink_to("/dev/tty")]
)
def test_pipes_and_devices_are_refused_at_once(tmp_path, make):
    make(tmp_path / "a.png")
    with pytest.raises(ImageError, match=r"a\.png: is a pipe, a socket or a device, not a regular file; copy"):
        open_image(tmp_path / "a.png")


@pytest.mark.parametrize("name", ["x" * 300 + ".png", "/".join(["d" * 200] * 30), "null\0.png"])
def test_impossible_paths_are_one_sentence(name):
    with pytest.raises(ImageError, match=r"cannot be opened \(File name too long\)|cannot be opened \(embedded null"):
        open_image(name)

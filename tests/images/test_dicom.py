"""DICOM slides: pixels are those of wsidicom, labels are never read, and damage is one sentence."""

import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("wsidicom")
import pydicom
import wsidicom

from foveal.errors import ImageError
from foveal.images import open_image
from foveal.images.dicom import one_of_each, read_header
from tests.images.dicoms import new_series, write_instance, write_slide
from tests.images.files import halve, photo

PIXELS = photo(150, 203)
LEVELS = [PIXELS, halve(PIXELS)]


def whole(image, level=0):
    return image.read(level, (0, 0, *image.level_sizes[level]))


@pytest.fixture(scope="module")
def slide(tmp_path_factory) -> Path:
    """A folder with a slide of two levels, its label and an overview."""
    folder = tmp_path_factory.mktemp("slide")
    series = write_slide(folder, LEVELS)
    for kind in ("LABEL", "OVERVIEW"):
        write_instance(folder / f"a_{kind.lower()}.dcm", PIXELS[None, :64, :64], series, kind=kind)
    return folder


@pytest.mark.parametrize(
    "options",
    [
        {"colour": "YBR_FULL_422"},
        {"colour": "YBR_FULL"},
        {"colour": "RGB"},
        {"coding": "jpeg2000", "colour": "YBR_RCT"},
        {"coding": "native", "colour": "RGB"},
        {"missing": {(0, 1), (2, 3)}},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_pixels_are_those_of_wsidicom(tmp_path, options):
    write_slide(tmp_path, LEVELS, **options)
    image = open_image(tmp_path)
    assert (image.size, image.channels, image.dtype) == ((150, 203), 3, np.uint8)
    assert image.mpp == pytest.approx(0.5) and image._scales[1] == pytest.approx((0.5, 0.5))
    with wsidicom.WsiDicom.open(tmp_path) as other:
        for level in range(2):
            height, width = image.level_sizes[level]
            assert np.array_equal(whole(image, level), np.asarray(other.read_region((0, 0), level, (width, height))))
        part = np.asarray(other.read_region((50, 60), 0, (100, 70)))
        assert np.array_equal(image.read(0, (60, 50, 130, 150)), part)
    lossless = options.get("coding") in ("jpeg2000", "native")
    assert np.abs(whole(image).astype(int) - PIXELS).max() == 0 if lossless else True


def test_frames_that_a_sparse_instance_lacks_are_outside(tmp_path):
    write_slide(tmp_path, LEVELS[:1], missing={(0, 1)})
    image = open_image(tmp_path)
    look = image.look(np.array([[0, 64, 64, 128], [64, 64, 128, 128]]), (8, 8), fill=torch.tensor([0.25, 0.5, 0.75]))
    assert torch.allclose(look[0], torch.tensor([0.25, 0.5, 0.75])[:, None, None].expand(3, 8, 8))
    assert (look[1] - 0.25).abs().max() > 0.1


def test_optical_paths_of_a_grey_slide_are_bands(tmp_path):
    pixels = photo(100, 130, 3, np.uint16)
    planes = np.moveaxis(pixels, -1, 0)[..., None]
    write_instance(tmp_path / "a.dcm", planes, new_series(), coding="jpeg2000", colour="MONOCHROME2")
    image = open_image(tmp_path / "a.dcm")
    assert (image.channels, image.dtype) == (3, np.uint16) and np.array_equal(whole(image), pixels)
    with wsidicom.WsiDicom.open(tmp_path) as other:
        for band in range(3):
            region = np.asarray(other.read_region((0, 0), 0, (130, 100), path=str(band)))
            assert np.array_equal(whole(image)[..., band], region)


def test_any_file_of_a_slide_opens_it(slide, monkeypatch):
    wanted = whole(open_image(slide))
    monkeypatch.chdir(slide)
    for relative in (".", "slide1.dcm", "./slide0.dcm"):
        assert np.array_equal(whole(open_image(relative)), wanted)
    for name in ("slide0.dcm", "slide1.dcm"):
        assert np.array_equal(whole(open_image(slide / name)), wanted)


def test_a_file_without_suffix(tmp_path):
    write_slide(tmp_path, LEVELS)
    for file in tmp_path.iterdir():
        file.rename(file.with_suffix(""))
    assert np.array_equal(whole(open_image(tmp_path / "slide1")), whole(open_image(tmp_path)))


def test_labels_and_overviews_are_never_read(slide, monkeypatch):
    files = []
    real = wsidicom.WsiDicom.open
    monkeypatch.setattr(
        wsidicom.WsiDicom, "open", lambda given, **options: files.extend(given) or real(given, **options)
    )
    image = open_image(slide)
    whole(image)
    assert sorted(Path(file).name for file in files) == ["slide0.dcm", "slide1.dcm"]
    assert "Secret" not in repr(image.metadata) and "Secret" not in repr(read_header(str(slide / "slide0.dcm")))
    for kind in ("label", "overview"):
        with pytest.raises(ImageError, match=rf"a_{kind}\.dcm: is the {kind} of a slide, which is not read, since it"):
            open_image(slide / f"a_{kind}.dcm")


def test_bytes_and_tiles_are_counted(slide):
    image = open_image(slide)
    assert image.bytes_read == 0
    image.read(0, (0, 0, 20, 20))
    once = image.bytes_read
    assert image.tiles_decoded == 1 and 0 < once < (slide / "slide0.dcm").stat().st_size
    image.read(0, (5, 5, 60, 60))
    assert (image.tiles_decoded, image.bytes_read) == (1, once)


def test_copies_forks_and_closing(slide):
    image = open_image(slide)
    wanted = whole(image)
    assert np.array_equal(whole(pickle.loads(pickle.dumps(image))), wanted)
    image._kept.clear()
    if (child := os.fork()) == 0:
        os._exit(0 if np.array_equal(whole(image), wanted) else 1)
    assert os.waitpid(child, 0)[1] == 0
    image._kept.clear()
    image.close()
    assert np.array_equal(whole(image), wanted)


@pytest.mark.parametrize("missing", [None, set()], ids=["full", "sparse"])
def test_levels_in_several_files(tmp_path, missing):
    series, uid = new_series(), new_series()["PyramidUID"]
    for number, frames in enumerate((slice(0, 5), slice(5, 12)), 1):
        part = (uid, number, 2)
        write_instance(
            tmp_path / f"{number}.dcm",
            PIXELS[None],
            series,
            frames=frames,
            part=part,
            missing=missing,
            coding="native",
            colour="RGB",
        )
    assert np.array_equal(whole(open_image(tmp_path)), PIXELS)
    (tmp_path / "2.dcm").unlink()
    with pytest.raises(ImageError, match="1 of the 2 files of a level are there; copy all files of the slide"):
        open_image(tmp_path / "1.dcm")
    if missing is None:
        found = pydicom.dcmread(tmp_path / "1.dcm")
        del found.InConcatenationTotalNumber
        found.save_as(tmp_path / "1.dcm")
        with pytest.raises(ImageError, match="level 0 has 5 frames where its size needs 12; a file is missing or"):
            open_image(tmp_path / "1.dcm")


def test_a_missing_finest_level_is_logged(tmp_path, caplog):
    write_slide(tmp_path, LEVELS)
    (tmp_path / "slide0.dcm").unlink()
    assert open_image(tmp_path).size == LEVELS[1].shape[:2]
    assert "its finest level is missing" in caplog.text


def _cut(share):
    def damage(folder):
        file = folder / "slide0.dcm"
        file.write_bytes(file.read_bytes()[: share if share > 1 else int(share * file.stat().st_size)])

    return damage


def _erase(folder):
    file = folder / "slide0.dcm"
    data = bytearray(file.read_bytes())
    at = data.find(b"\xff\xda", len(data) // 2) + 40
    data[at : at + 300] = bytes(300)
    file.write_bytes(data)


def _edit(**changes):
    def damage(folder):
        found = pydicom.dcmread(folder / "slide0.dcm")
        for name, value in changes.items():
            setattr(found, name, value)
        found.save_as(folder / "slide0.dcm")

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_cut(0.9), r"cannot be read|cannot be opened"),
        (_cut(0.5), r"cannot be read|cannot be opened"),
        (_cut(300), "is not DICOM, or its header is damaged; copy it again"),
        (_edit(NumberOfFrames=5), "number of frames 5"),
        (_edit(Rows=32), r"32|damaged"),
        (_edit(SOPClassUID="1.2.840.10008.5.1.4.1.1.2"), "is DICOM, but not a whole-slide image; convert it"),
        (_edit(SamplesPerPixel=2), "level 1 has other pixels than level 0"),
        (_edit(Rows=0), "cannot|damaged"),
        (
            _edit(TotalPixelMatrixRows=10**6, TotalPixelMatrixColumns=10**6, Rows=1, Columns=1),
            "claims 1000000 x 1000000",
        ),
        (_edit(TotalPixelMatrixRows=0), "with nothing to see"),
    ],
)
@pytest.mark.parametrize("coding", ["jpeg", "jpeg2000", "native"])
def test_damage_is_one_sentence(tmp_path, damage, message, coding):
    colours = {"jpeg": "YBR_FULL_422", "jpeg2000": "YBR_RCT", "native": "RGB"}
    write_slide(tmp_path, LEVELS, coding=coding, colour=colours[coding])
    damage(tmp_path)
    path = tmp_path / "slide0.dcm"
    with pytest.raises(ImageError, match=rf"^{path}: .*({message})") as found:
        whole(open_image(path))
    assert "\n" not in str(found.value) and "; " in str(found.value)


def test_a_damaged_jpeg_costs_its_frame_only(tmp_path):
    write_slide(tmp_path, LEVELS)
    wanted = whole(open_image(tmp_path), 1)
    _erase(tmp_path)
    image = open_image(tmp_path)
    assert np.array_equal(whole(image, 1), wanted)
    with pytest.raises(ImageError, match=r"the frame at \(\d, \d\) of level 0 cannot be read .*; copy the slide again"):
        whole(image)


def test_folders_without_a_slide(tmp_path, slide):
    other = new_series()
    write_instance(tmp_path / "ct.dcm", PIXELS[None], other, SOPClassUID="1.2.840.10008.5.1.4.1.1.2")
    with pytest.raises(ImageError, match=r"the folder has DICOM files, but no whole-slide image; give a folder"):
        open_image(tmp_path)
    for name in ("b", "c"):
        write_slide(tmp_path, LEVELS, name=name)
    with pytest.raises(ImageError, match=r"the folder has 2 slides; name a file of one, such as b0\.dcm, c0\.dcm"):
        open_image(tmp_path)
    assert open_image(tmp_path / "c1.dcm").size == (150, 203)
    found = one_of_each(str(file) for file in tmp_path.iterdir())
    assert {Path(one).name: [Path(file).name for file in others] for one, others in found.items()} == {
        "b0.dcm": ["b1.dcm"],
        "c0.dcm": ["c1.dcm"],
        "ct.dcm": [],
    }


def test_absent_extra_is_named(slide, monkeypatch):
    monkeypatch.setitem(sys.modules, "wsidicom", None)
    for path in (slide, slide / "slide0.dcm"):
        with pytest.raises(ImageError, match=r"needs wsidicom, which is not installed; .*'foveal\[dicom\]'"):
            open_image(path)

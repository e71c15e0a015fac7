"""Value ranges: inspection of images, suggestions, and use in a run."""

import json

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from foveal.cli import main
from foveal.data import ImageDataset, Reading, get_data, value_notes
from foveal.data import values as sampling
from foveal.data.values import check_values, look_at_values, sensible_range
from foveal.errors import ConfigError
from foveal.images import open_image
from foveal.images.cache import Unconverted
from foveal.prediction import Predictor
from foveal.runs import Run, load
from tests.images.files import photo, write_pyramid

FIT = [
    "--model",
    "test_resnet",
    "--model.image_size",
    "64",
    "--model.in_chans",
    "1",
    "--data.channels",
    "1",
    "--data.augmentation",
    "none",
    "--steps",
    "2",
    "--batch-size",
    "4",
    "--workers",
    "0",
    "--device",
    "cpu",
]
LOW, HIGH = 300, 3900  # in a 12-bit camera image stored as 16 bits


def twelve_bits(seed: int, height: int = 60, width: int = 80, bands: int = 1) -> np.ndarray:
    return (LOW + photo(height, width, bands, np.float64, seed) * (HIGH - LOW)).round().astype(np.uint16)


def save(path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, pixels.squeeze(), photometric="rgb" if pixels.shape[2] == 3 else "minisblack")


@pytest.fixture
def dark(tmp_path):
    """Two classes of 12-bit images in 16-bit files. In the second class, the right half is brighter."""
    root = tmp_path / "dark"
    for i in range(12):
        pixels = twelve_bits(i, 64, 64)
        if i % 2:
            pixels[:, 32:] = HIGH
        save(root / ("plain" if i % 2 == 0 else "bright") / f"{i}.tif", pixels)
    return root


def notes(root, **options) -> list[str]:
    return value_notes(get_data("folder", root=str(root), val_fraction=0.2, **options))


def test_16_bit_images_that_use_a_small_part_get_a_suggestion(dark):
    (note,) = notes(dark)
    assert note.startswith("the values of 10 uint16 images looked at lie between ") or note.startswith(
        "the values of 9 uint16"
    )
    assert "a small part of 0 to 65535" in note
    assert note.endswith("; set `data.value_range` 0,4095")
    # With the suggested range there is no further note.
    assert notes(dark, value_range=(0, 4095)) == []


def test_images_that_use_their_type_are_left_alone(tmp_path):
    for i in range(4):
        save(tmp_path / "a" / f"{i}.tif", photo(40, 50, 3, np.uint16, i))
        save(tmp_path / "b" / f"{i}.tif", photo(40, 50, 3, np.uint16, i) // 2)
    assert notes(tmp_path) == []


def test_8_bit_images_are_never_nagged_about(tmp_path):
    for i in range(6):
        pixels = np.full((20, 30, 3), 3 + i % 2, np.uint8)
        (tmp_path / f"{i % 2}").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / f"{i % 2}" / f"{i}.png")
    assert notes(tmp_path) == []
    assert notes(tmp_path, value_range=(0, 10_000)) == []


@pytest.mark.parametrize(
    ("dtype", "low", "high", "suggested"),
    [
        (np.float32, 0.0, 0.93, "0,1"),
        (np.float32, -0.98, 0.97, "-1,1"),
        (np.int16, -1000, 2960, "-1000,3000"),
        (np.float64, 0, 254.7, "0,255"),
        (np.float32, 270.2, 309.8, "270,310"),
        (np.uint32, 0, 9900, "0,10000"),
    ],
)
def test_types_without_a_range_get_one_suggested(tmp_path, dtype, low, high, suggested):
    for i in range(4):
        pixels = low + photo(50, 60, 1, np.float64, i) * (high - low)
        save(tmp_path / f"{i % 2}" / f"{i}.tif", pixels.astype(dtype))
    (note,) = notes(tmp_path)
    assert note.endswith(f"set `data.value_range` {suggested}")
    wanted = "a small part of 0 to" if np.dtype(dtype).kind == "u" else "their pixel type has no range"
    assert wanted in note


def test_a_range_that_does_not_fit_is_told(dark):
    (note,) = notes(dark, value_range=(0, 1000))
    assert "% of them beyond `data.value_range` 0,1000; set `data.value_range` 0,4095" in note
    (note,) = notes(dark, value_range=(0, 65535))
    assert "a small part of `data.value_range` 0,65535; set `data.value_range` 0,4095" in note


def test_images_of_two_types_are_told_instead(dark):
    Image.fromarray(photo(40, 40)).save(dark / "plain" / "8bit.png")
    data = get_data("folder", root=str(dark), val_fraction=0)
    (note,) = value_notes(data)
    assert note.endswith("; 1 others are 8-bit, which no common range fits: convert the images to one type")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 4095], (0, 4095)),
        ([12, 3970], (0, 4095)),
        ([0, 1020], (0, 1023)),
        ([0, 16000], (0, 16383)),
        ([0, 9800], (0, 10_000)),
        ([0, 65535], (0, 65535)),
        ([20_100, 22_300], (20_000, 22_500)),
        ([-90, -10], (-90, -10)),
        ([0, 0.61], (0, 0.7)),
        ([1e-7, 9.2e-6], (0, 1e-5)),
        ([3, 190], (0, 200)),
    ],
)
def test_ranges_are_round_and_hold_the_values(values, expected):
    assert sensible_range(np.linspace(*values, 5000)) == pytest.approx(expected, rel=1e-9)


def test_a_few_values_far_out_do_not_count():
    values = np.r_[np.linspace(0, 1000, 20_000), [60_000, 65_535]]
    assert sensible_range(values) == (0, 1023)
    # Values only a little outside are included.
    assert sensible_range(np.r_[np.linspace(0, 1000, 20_000), [1190]]) == (0, 1200)


def test_every_image_counts_alike_whatever_its_size(tmp_path):
    save(tmp_path / "0.tif", np.full((10, 10, 1), 500, np.uint16))
    save(tmp_path / "1.tif", np.full((300, 300, 1), 1500, np.uint16))
    data = ImageDataset([str(tmp_path / f"{i}.tif") for i in range(2)], [0, 1], ("a", "b"), reading=Reading(channels=1))
    assert np.mean(look_at_values(data).values == 500) == 0.5


def test_which_images_are_looked_at_is_decided_by_the_seed(dark, monkeypatch):
    monkeypatch.setattr(sampling, "IMAGES", 3)
    data = get_data("folder", root=str(dark), val_fraction=0)
    opened: list[list[str]] = []
    real = ImageDataset.open

    def opening(self, i, **options):
        opened[-1].append(self.path(i))
        return real(self, i, **options)

    monkeypatch.setattr(ImageDataset, "open", opening)
    for seed in (0, 0, 1):
        opened.append([])
        value_notes(data, seed)
    assert len(opened[0]) == 3
    assert opened[0] == opened[1] != opened[2]


def test_slides_are_read_through_coarse_levels_and_nothing_is_converted(tmp_path, monkeypatch):
    pixels = twelve_bits(0, 2048, 2048)
    write_pyramid(tmp_path / "a.tif", pixels, 5, tile=128)
    with open_image(tmp_path / "a.tif") as image:
        assert np.abs(image.sample().mean() - pixels.mean()) < 20
        assert image.bytes_read < pixels.nbytes / 20
    # Without coarse levels, a few windows are read.
    tifffile.imwrite(tmp_path / "b.tif", np.repeat(pixels, 2, 1).squeeze(), tile=(128, 128), photometric="minisblack")
    with open_image(tmp_path / "b.tif") as image:
        assert np.abs(image.sample().mean() - pixels.mean()) < 100
        assert image.bytes_read < 2 * pixels.nbytes / 4
    # Files that need a conversion are skipped, unless they can be read by windows.
    monkeypatch.setattr("foveal.images.plain.LARGE", 1000)
    with pytest.raises(Unconverted):
        Image.fromarray(pixels.squeeze()).save(tmp_path / "c.png")
        open_image(tmp_path / "c.png", convert=False, cache_dir=tmp_path / "cache")
    tifffile.imwrite(tmp_path / "d.tif", pixels.squeeze(), rowsperstrip=64, photometric="minisblack")
    with open_image(tmp_path / "d.tif", convert=False, cache_dir=tmp_path / "cache") as image:
        assert len(image.sample())
    assert not (tmp_path / "cache").exists()


def test_no_data_does_not_count(tmp_path):
    pixels = twelve_bits(0)
    pixels[:30] = 65_000
    tifffile.imwrite(
        tmp_path / "a.tif", pixels.squeeze(), photometric="minisblack", extratags=[(42113, 2, 6, "65000", True)]
    )
    with open_image(tmp_path / "a.tif") as image:
        assert image.sample().max() <= HIGH
    values = photo(40, 40, 1, np.float32)
    values[:3], values[3, 3] = np.nan, np.inf
    tifffile.imwrite(tmp_path / "b.tif", values.squeeze(), photometric="minisblack")
    with open_image(tmp_path / "b.tif", value_range=(0, 1)) as image:
        assert np.isfinite(image.sample()).all()


def test_images_that_cannot_be_read_are_told(tmp_path, dark):
    (dark / "plain" / "0.tif").write_bytes(b"")
    (first, _) = value_notes(get_data("folder", root=str(dark), val_fraction=0))
    assert (
        first == "1 of 12 images looked at cannot be read, the first: "
        f"{dark / 'plain' / '0.tif'}: the file is empty; copy it again"
    )


def test_training_on_images_of_which_none_can_be_read_is_refused(capsys, tmp_path):
    for i in range(4):
        save(tmp_path / "float" / f"{i % 2}" / f"{i}.tif", photo(40, 40, 1, np.float32, i))
        save(tmp_path / "bands" / f"{i % 2}" / f"{i}.tif", photo(40, 40, 3, np.uint8, i))
    for name, words in {
        "float": ", and their pixel type has no range; set --data.value_range 0,1\n",
        "bands": "none of 2 images looked at can be read, the first: ",
    }.items():
        out = tmp_path / "run"
        assert main(["fit", "--data.root", str(tmp_path / name), *FIT, "--quiet", "--out", str(out)]) == 1
        said = capsys.readouterr().err
        assert words in said and said.count("\n") == 1
        assert not out.exists()
    # One readable image is enough to train on.
    save(tmp_path / "bands" / "0" / "grey.tif", photo(40, 40, 1))
    assert (
        main(
            [
                "fit",
                "--data.root",
                str(tmp_path / "bands"),
                *FIT,
                "--quiet",
                "--data.val_fraction",
                "0",
                "--out",
                str(out),
            ]
        )
        == 0
    )


def test_a_data_set_in_memory_is_not_looked_at():
    assert value_notes(get_data("digits", canvas=96, digit=(12, 16), train=4, val=2, test=2)) == []


@pytest.mark.parametrize("pack", ["strips", "tiles", "jpeg"])
def test_12_bits_that_the_header_tells_of_are_the_range(tmp_path, pack):
    pixels = twelve_bits(0, 128, 128)
    options = {"strips": {}, "tiles": {"tile": (64, 64)}, "jpeg": {"tile": (64, 64), "compression": "jpeg"}}[pack]
    tifffile.imwrite(tmp_path / "a.tif", pixels.squeeze(), photometric="minisblack", bitspersample=12, **options)
    with open_image(tmp_path / "a.tif") as image:
        assert image.stored_range == image.value_range == (0.0, 4095.0)
        seen = image.look(np.array([[0, 0, 128, 128]]), (128, 128))[0, 0].numpy()
    assert np.abs(seen - pixels.squeeze() / 4095).max() < 0.02
    data = ImageDataset([str(tmp_path / "a.tif")], [0], ("a",), reading=Reading(channels=1))
    assert look_at_values(data).stored_range == (0.0, 4095.0)


@pytest.mark.parametrize("value_range", [(5, 5), (9, 1), (0, float("nan")), (0, float("inf"))])
def test_ranges_that_hold_nothing_are_refused(tmp_path, dark, value_range):
    with pytest.raises(ConfigError, match="the first must be the value of black"):
        Reading(value_range=value_range)
    with pytest.raises(ConfigError, match="the first must be the value of black"):
        open_image(dark / "plain" / "0.tif", value_range=value_range)


def test_fit_and_data_suggest_and_the_run_keeps_it(capsys, dark, tmp_path):
    assert main(["data", "folder", "--data.root", str(dark), "--data.channels", "1"]) == 0
    suggestion = capsys.readouterr().out.partition("; set ")[2].strip()
    assert suggestion == "--data.value_range 0,4095"
    assert main(["fit", "--data.root", str(dark), *FIT, "--out", str(tmp_path / "unset")]) == 0
    assert "; set `data.value_range` 0,4095" in capsys.readouterr().out
    out = tmp_path / "run"
    assert main(["fit", "--data.root", str(dark), *FIT, *suggestion.split(), "--out", str(out)]) == 0
    assert "value_range" not in capsys.readouterr().out
    assert json.loads((out / "config.json").read_text())["value_range"] == [0, 4095]
    # Prediction and report pages open images as in training.
    model = load(out)
    pixels = tifffile.imread(dark / "bright" / "1.tif")
    with Predictor(model).open(dark / "bright" / "1.tif") as image:
        seen = image.look(np.array([[0, 0, 64, 64]]), (64, 64))
    torch.testing.assert_close(seen[0, 0], torch.from_numpy(pixels / 4095).float(), atol=1e-6, rtol=0)


def test_pages_and_pictures_show_what_the_model_sees(capsys, dark, tmp_path):
    import base64
    import io
    import re

    out, image = tmp_path / "run", dark / "bright" / "1.tif"
    assert (
        main(["fit", "--data.root", str(dark), *FIT, "--data.value_range", "0,4095", "--quiet", "--out", str(out)]) == 0
    )
    page, overlay = tmp_path / "page.html", tmp_path / "overlay.png"
    assert (
        main(
            [
                "explain",
                str(out),
                str(image),
                "--out",
                str(page),
                "--overlay",
                str(overlay),
                "--device",
                "cpu",
                "--quiet",
            ]
        )
        == 0
    )
    expected = tifffile.imread(image) / 4095 * 255
    drawn = [np.asarray(Image.open(overlay).convert("L"))]
    for encoded in re.findall(r"data:image/\w+;base64,([^\"]+)", page.read_text()):
        drawn.append(np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))).convert("L")))
    assert len(drawn) >= 3
    for picture in drawn:
        assert abs(picture.mean() - expected.mean()) < 4
    assert main(["data", str(out), "--export", str(tmp_path / "export"), "--split", "train", "--count", "1"]) == 0
    (exported,) = (tmp_path / "export").iterdir()
    assert np.asarray(Image.open(exported)).mean() > 100


def test_another_data_set_is_read_as_the_models_images_were(capsys, dark, tmp_path):
    out = tmp_path / "run"
    assert (
        main(["fit", "--data.root", str(dark), *FIT, "--data.value_range", "0,4095", "--quiet", "--out", str(out)]) == 0
    )
    table = tmp_path / "labels.csv"
    rows = [f"{path},{path.parent.name},test" for path in sorted(dark.rglob("*.tif"))]
    table.write_text("\n".join(["path,label,split", *rows]))
    other = ["--data", "manifest", "--data.file", str(table), "--data.channels", "1"]
    from foveal.cli.running import data_of

    assert data_of(Run(out), other).test.reading.value_range == [0, 4095]
    own = data_of(Run(out), [])
    check_values(load(out), own)
    with pytest.raises(
        ConfigError,
        match=r"read with the value range none, the model was trained with 0,4095; set `data.value_range` 0,40",
    ):
        check_values(load(out), get_data("manifest", file=str(table), channels=1))

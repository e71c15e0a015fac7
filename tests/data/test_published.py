"""Published data sets, on generated files in the layouts of the downloads."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from foveal.data import get_data
from foveal.data.fmow import with_context
from foveal.errors import DataError
from tests.data.layouts import make_cub, make_fmow, make_imagenet, make_nabirds


def files(dataset) -> list[str]:
    return [Path(dataset.path(i)).name for i in range(len(dataset))]


# ---- ImageNet


@pytest.mark.parametrize("layout", ["folders", "devkit", "kaggle"])
def test_imagenet(tmp_path, layout):
    data = get_data("imagenet", root=str(make_imagenet(tmp_path, classes=3, images=2, layout=layout)))
    assert data.classes == ("n01440764", "n01441761", "n01442758")
    assert data.test is None
    assert files(data.train)[:3] == ["n01440764_0.JPEG", "n01440764_1.JPEG", "n01441761_0.JPEG"]
    assert data.train.targets.tolist() == [0, 0, 1, 1, 2, 2]
    # Validation image n has the class (n - 1) mod 3.
    numbers = [int(Path(name).stem[-8:]) for name in files(data.val)]
    assert sorted(numbers) == [1, 2, 3, 4, 5, 6]
    assert data.val.targets.tolist() == [(n - 1) % 3 for n in numbers]
    assert data.train.boxes[0].shape == (0, 4)
    assert data.train.boxes[1].tolist() == [[5, 10, 30, 35]]


def test_imagenet_takes_a_file_of_labels(tmp_path):
    root = make_imagenet(tmp_path, layout="devkit")
    listed = tmp_path / "val.txt"
    wnids = ("n01440764", "n01441761")
    listed.write_text("".join(f"ILSVRC2012_val_{n:08d}.JPEG {wnids[n % 2]}\n" for n in range(1, 7)))
    assert get_data("imagenet", root=str(root), val_labels=str(listed)).val.targets.tolist() == [1, 0, 1, 0, 1, 0]
    listed.write_text("".join(f"ILSVRC2012_val_{n:08d}.JPEG {wnids[n % 2]}\n" for n in range(1, 6)))
    with pytest.raises(DataError, match=r"ILSVRC2012_val_00000006.JPEG: its class \(not in .*val.txt\)"):
        get_data("imagenet", root=str(root), val_labels=str(listed))


def test_imagenet_without_labels_or_with_too_few(tmp_path):
    root = make_imagenet(tmp_path, layout="devkit")
    truth = root / "ILSVRC2012_devkit_t12" / "data" / "ILSVRC2012_validation_ground_truth.txt"
    truth.write_text("1\n2\n")
    with pytest.raises(DataError, match="labels 2 images, but there are 6"):
        get_data("imagenet", root=str(root))
    truth.unlink()
    with pytest.raises(DataError, match=r"ILSVRC2012_validation_ground_truth.txt: there is no such file"):
        get_data("imagenet", root=str(root))


def test_a_damaged_annotation_costs_its_image(tmp_path):
    root = make_imagenet(tmp_path)
    (root / "Annotations" / "train" / "n01440764" / "n01440764_1.xml").write_text("<annotation><obj")
    batch = get_data("imagenet", root=str(root), augmentation="tnet").train.batch(0, [0, 1, 2], 0)
    assert batch.index.tolist() == [0, 2]
    assert "n01440764_1.xml: this is not an annotation" in batch.errors[0][1]


# ---- fMoW


@pytest.mark.parametrize("false_detection", [False, True])
def test_fmow(tmp_path, false_detection):
    data = get_data("fmow", root=str(make_fmow(tmp_path)), false_detection=false_detection)
    assert data.classes == ("airport", "barn", "false_detection")[: 2 + false_detection]
    assert files(data.train)[:3] == ["airport_0_0_rgb.jpg", "airport_1_0_rgb.jpg", "airport_2_0_rgb.jpg"]
    expected = np.repeat(np.arange(2 + false_detection), 3).tolist()
    for split in ("train", "val", "test"):
        assert getattr(data, split).targets.tolist() == expected
    # Folders of test images are numbered; the mapping has their classes.
    assert files(data.test)[0] == "0000019_0_rgb.jpg"
    assert data.train.boxes[0].tolist() == [[5, 10, 20, 30]]
    assert data.test.boxes[1].tolist() == [[5, 10, 20, 30], [1, 1, 13, 13], [3, 3, 12, 5]]
    assert len(data.test.batch(0, range(6), 0)) == 6


def test_fmow_boxes(tmp_path):
    data = get_data("fmow", root=str(make_fmow(tmp_path)), crop_boxes=True)
    # The second place has three boxes, one a false detection and one 2 px wide.
    for split in ("train", "val", "test"):
        dataset = getattr(data, split)
        assert dataset.targets.tolist() == [0, 0, 0, 1, 1, 1]
        assert len(set(files(dataset))) == 6
    note = json.loads(Path(data.train.path(0).replace(".jpg", ".json")).read_text())
    expected = with_context((10, 5, 20, 15), (note["img_height"], note["img_width"]))
    assert data.train.regions[0].tolist() == list(expected)
    views = data.train.batch(0, [0], 0).views.views[0]
    y0, x0, y1, x1 = expected
    assert 0.8 * (y1 - y0) < views.size[0] <= y1 - y0
    assert 0.8 * (x1 - x0) < views.size[1] <= x1 - x0
    three = get_data("fmow", root=str(tmp_path), crop_boxes=True, false_detection=True)
    # One in each of two places of other classes; one, two and one in places of its own class.
    assert three.train.counts().tolist() == [3, 3, 2 + 4]


@pytest.mark.parametrize(
    ("side", "extra"),
    [(50, 0.15), (49, 0.2), (40, 0.2), (39, 0.3), (30, 0.3), (29, 0.5), (20, 0.5), (19, 1), (10, 1), (9, 2)],
)
def test_context_of_boxes_follows_the_table(side, extra):
    half = int(side * extra / 2)
    assert with_context((1000, 1000, side * 30, side), (3000, 100 * 30)) == with_context(
        (1000, 1000, side * 30, side), (3000, 3000)
    )
    y0, x0, y1, x1 = with_context((40, 30, side, side), (100, 100))
    assert (y0, y1) == (max(0, 30 - half), min(100, 30 + side + half))
    assert (x0, x1) == (max(0, 40 - half), min(100, 40 + side + half))


def test_fmow_test_images_with_class_folders_or_without_truth(tmp_path):
    root = make_fmow(tmp_path)
    mapping = root / "test_gt_mapping.json"
    content = mapping.read_text()
    mapping.write_text("[{}]")
    with pytest.raises(DataError, match="not the mapping of test images"):
        get_data("fmow", root=str(root))
    mapping.unlink()
    with pytest.raises(DataError, match=r"test_gt_mapping.json: this file is missing"):
        get_data("fmow", root=str(root))
    mapping.write_text(content)
    (root / "test" / "0000019").rename(root / "gone")
    with pytest.raises(
        DataError, match=r"test/0000019: this folder of test images, named in test_gt_mapping.json, is missing"
    ):
        get_data("fmow", root=str(root))
    mapping.unlink()
    (root / "test").rename(root / "numbers")
    (root / "val").rename(root / "test")
    data = get_data("fmow", root=str(root))
    assert data.val is None
    assert data.test.targets.tolist() == [0, 0, 0, 1, 1, 1]


def test_fmow_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="images in class folders; give the folder that holds train"):
        get_data("fmow", root=str(tmp_path))


# ---- Birds


def test_cub(tmp_path):
    root = make_cub(tmp_path / "CUB_200_2011", classes=3, images=2)
    data = get_data("cub", root=str(tmp_path))
    assert data.classes == ("001.Some_Bird_0", "002.Some_Bird_1", "003.Some_Bird_2")
    assert data.val is None
    assert data.train.targets.tolist() == data.test.targets.tolist() == [0, 0, 1, 1, 2, 2]
    assert files(data.train)[:2] == ["Some_Bird_2.jpg", "Some_Bird_4.jpg"]
    text = dict(line.split(" ", 1) for line in (root / "bounding_boxes.txt").read_text().splitlines())
    x, y, w, h = map(float, text["2"].split())
    assert data.train.boxes[0].tolist() == [[y, x, y + h, x + w]]
    assert get_data("cub", root=str(root)).classes == data.classes


def test_cub_can_hold_out_validation_images(tmp_path):
    data = get_data("cub", root=str(make_cub(tmp_path, images=4)), val_fraction=0.25)
    assert (len(data.train), len(data.val), len(data.test)) == (6, 2, 8)
    assert len(data.val.boxes) == 2
    assert data.val.reading.augmentation == "none"


def test_nabirds(tmp_path):
    data = get_data("nabirds", root=str(make_nabirds(tmp_path, classes=3, images=2)))
    # Only classes with images are used, in the order of their numbers.
    assert data.classes == ("Oak Titmouse (Adult 0)", "Oak Titmouse (Adult 1)", "Oak Titmouse (Adult 2)")
    assert sorted(data.train.targets.tolist()) == sorted(data.test.targets.tolist()) == [0, 0, 1, 1, 2, 2]
    for dataset in (data.train, data.test):
        folders = [Path(dataset.path(i)).parent.name for i in range(len(dataset))]
        assert folders == [f"{817 + 3 * label:04d}" for label in dataset.targets.tolist()]


def test_nabirds_classes_of_one_name_are_told_apart(tmp_path):
    root = make_nabirds(tmp_path)
    (root / "classes.txt").write_text("817 Oak Titmouse\n820 Oak Titmouse\n")
    assert get_data("nabirds", root=str(root)).classes == ("Oak Titmouse (817)", "Oak Titmouse (820)")


def test_incomplete_birds_are_refused(tmp_path):
    root = make_cub(tmp_path)
    (root / "image_class_labels.txt").write_text("1 1\n")
    with pytest.raises(DataError, match=r"images.txt: the image 2 has no label or split"):
        get_data("cub", root=str(root))
    (root / "train_test_split.txt").unlink()
    with pytest.raises(DataError, match=r"train_test_split.txt: there is no such file"):
        get_data("cub", root=str(root))


# ---- all of them


@pytest.mark.parametrize(
    ("name", "make", "augmentation"),
    [
        ("imagenet", make_imagenet, "tnet"),
        ("fmow", make_fmow, "tnet"),
        ("cub", make_cub, "tnet_birds"),
        ("nabirds", make_nabirds, "tnet_birds"),
    ],
)
def test_reference_batches(tmp_path, name, make, augmentation):
    data = get_data(name, root=str(make(tmp_path)), augmentation=augmentation, image_size=32, kernels="tnet")
    for split in ("train", "val", "test"):
        if getattr(data, split) is None:
            continue
        batches = list(data.loader(split, batch_size=4, seed=1))
        assert not any(batch.errors for batch in batches)
        pixels = torch.cat([batch.views.images for batch in batches])
        assert pixels.shape == (len(getattr(data, split)), 3, 32, 32)
        assert pixels.min() >= 0
        assert pixels.max() <= 1
        assert pixels.std(dim=(1, 2, 3)).min() > 0.02

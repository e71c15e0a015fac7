"""CIFAR: reading, splits and errors."""

import hashlib
import pickle

import numpy as np
import pytest
import torch
from torchvision import datasets

from foveal.data import get_data
from foveal.errors import ConfigError, DataError

KINDS = {
    "cifar10": (datasets.CIFAR10, "labels", "label_names"),
    "cifar100": (datasets.CIFAR100, "fine_labels", "fine_label_names"),
}


@pytest.fixture(params=KINDS)
def name(request):
    return request.param


@pytest.fixture
def root(name, tmp_path, monkeypatch):
    """A folder in the format of torchvision with 10 or 20 images per file."""
    kind, labels, names = KINDS[name]
    folder = tmp_path / kind.base_folder
    folder.mkdir()
    rng = np.random.default_rng(0)

    def write(file: str, content: dict) -> tuple[str, str]:
        raw = pickle.dumps(content)
        (folder / file).write_bytes(raw)
        return file, hashlib.md5(raw).hexdigest()

    def part(count: int) -> dict:
        return {"data": rng.integers(0, 256, (count, 3072), np.uint8), labels: rng.integers(0, 3, count).tolist()}

    for files, count in (("train_list", 20), ("test_list", 10)):
        monkeypatch.setattr(kind, files, [list(write(file, part(count))) for file, _ in getattr(kind, files)])
    file, md5 = write(kind.meta["filename"], {names: ["cat", "dog", "owl"]})
    monkeypatch.setattr(kind, "meta", {"filename": file, "key": names, "md5": md5})
    return tmp_path


def test_images_are_torchvisions(name, root):
    data = get_data(name, root=str(root), download=False)
    assert data.classes == ("cat", "dog", "owl") and data.val is None and data.name == name
    for split, train in ((data.train, True), (data.test, False)):
        theirs = KINDS[name][0](root, train=train)
        assert split.images.dtype == torch.uint8 and split.channels == 3
        assert np.array_equal(split.images.permute(0, 2, 3, 1), theirs.data)
        assert split.targets.tolist() == theirs.targets
    assert (data.train.augmentation, data.test.augmentation) == ("crop_flip", "none")


def test_validation_images_are_held_out_and_the_first_of_the_rest_used(root):
    whole = (
        get_data("cifar10", root=str(root))
        if (root / "cifar-10-batches-py").exists()
        else get_data("cifar100", root=str(root))
    )
    name = whole.name
    some = get_data(name, root=str(root), val=6, train=9)
    every = get_data(name, root=str(root), val=6)
    assert (len(some.train), len(some.val), len(every.train)) == (9, 6, len(whole.train) - 6)
    assert torch.equal(some.train.images, every.train.images[:9]) and torch.equal(some.val.images, every.val.images)
    as_set = lambda *parts: {image.numpy().tobytes() for part in parts for image in part.images}  # noqa: E731
    assert as_set(every.train, every.val) == as_set(whole.train)
    assert not torch.equal(get_data(name, root=str(root), val=6, seed=1).val.images, every.val.images)
    assert every.val.augmentation == "none"
    assert torch.equal(get_data(name, root=str(root), train=5).train.images, whole.train.images[:5])


@pytest.mark.parametrize("options", [{"val": 100}, {"train": 101}, {"train": 20, "val": 95}])
def test_more_than_there_is_cannot_be_had(name, root, options):
    with pytest.raises(ConfigError, match=r"^data cifar100?: train=.* training images; ask for fewer$"):
        get_data(name, root=str(root), **options)


@pytest.mark.parametrize(
    ("options", "said"),
    [({"train": 0}, "train=0 leaves .*; give 1 or more"), ({"val": -1}, "val=-1 is .*; give 0 for none")],
)
def test_too_few_cannot_be_had(name, root, options, said):
    with pytest.raises(ConfigError, match=rf"^data cifar100?: {said}[^\n]*$"):
        get_data(name, root=str(root), **options)


def test_an_unknown_augmentation(name, root):
    with pytest.raises(
        ConfigError,
        match=r"^data: there is no augmentation 'light' for images in memory; use none or crop_flip or randaugment$",
    ):
        get_data(name, root=str(root), augmentation="light")


@pytest.mark.parametrize("harm", ["missing", "damaged"])
def test_files_that_are_not_there_or_damaged(name, root, harm, monkeypatch):
    kind = KINDS[name][0]
    file = root / kind.base_folder / kind.train_list[-1][0]
    if harm == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-7] + b"garbage")
    with pytest.raises(
        DataError, match=r"^\S+: there is no CIFAR100? in this folder, or a file is damaged; correct the path[^\n]*$"
    ):
        get_data(name, root=str(root), download=False)

    def offline(self):
        raise OSError("no route to host\nand more")

    monkeypatch.setattr(kind, "download", offline)
    with pytest.raises(
        DataError,
        match=r"^\S+: CIFAR100? cannot be downloaded to this folder \(no route to host\); copy its files there$",
    ):
        get_data(name, root=str(root))

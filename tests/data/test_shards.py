"""Images in shards: those of the library webdataset and our own, read in any order, damaged, and trained from."""

from __future__ import annotations

import io
import os
import shutil
import signal
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from foveal.cli import main
from foveal.data import get_data
from foveal.data.shards import INDEX, Index, index_of, pack, scan
from foveal.errors import ConfigError, DataError, ImageError, StorageError
from foveal.recipes.fit_config import fit_config
from foveal.training.learner import Learner
from tests.training.tiny import NORM_FREE, config


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Twelve photographs of three classes, of different sizes, as JPEG, PNG, WebP, BMP and GIF."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i, name in enumerate(("2/a.jpg", "2/b.c.jpg", "2/c.png", "2/d.webp", "10/a.jpg", "10/b.bmp", "10/c.jpg")):
        (root / name).parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20 + i, 30, 3), np.uint8)).save(root / name)
    for i in range(5):
        (root / "1").mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (24, 30 + i, 3), np.uint8)).save(root / "1" / f"{i}.jpg")
    return root


def member(archive: tarfile.TarFile, name: str, content: bytes, **how) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in how.items():
        setattr(info, key, value)
    archive.addfile(info, io.BytesIO(content))


def jpeg(grey: int = 100) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (30, 20), (grey, grey, grey)).save(file, "JPEG")
    return file.getvalue()


def pixels(data, split="train", epoch=0):
    """Pixels, targets and errors of the batches of an epoch."""
    loader = data.loader(split, batch_size=4, seed=5)
    loader.set_epoch(epoch)
    return [(b.views.images, b.target.tolist(), b.index.tolist()) for b in loader]


def same(one, other) -> None:
    assert len(one) == len(other) > 0
    for (a, *of_a), (b, *of_b) in zip(one, other, strict=True):
        assert of_a == of_b
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("augmentation", ["light", "randaugment"])
def test_packed_photographs_are_those_in_folders(photos, tmp_path, augmentation):
    """Bit by bit, in the same order, with the same augmentation and the same held-out images."""
    options = {"image_size": 16, "augmentation": augmentation, "val_fraction": 0.3}
    folder = get_data("folder", root=str(photos), **options)
    assert pack(folder, tmp_path / "shards", shard_bytes=4000) == []
    assert len(list((tmp_path / "shards").glob("train-*.tar"))) > 1
    for _ in range(2):  # with a stored index, and with one that is made anew
        data = get_data("shards", root=str(tmp_path / "shards"), **options)
        assert data.classes == folder.classes == ("1", "10", "2")
        for split in ("train", "val"):
            for epoch in (0, 1):
                same(pixels(data, split, epoch), pixels(folder, split, epoch))
        for index in (tmp_path / "shards").glob(f"*{INDEX}"):
            index.unlink()


def test_a_run_on_shards_is_a_run_on_folders(photos, tmp_path, monkeypatch):
    """Also when it is stopped within an epoch and resumed."""
    assert main(["data", "folder", "--data.root", str(photos), "--pack", str(tmp_path / "shards")]) == 0
    changes = {"model": NORM_FREE, "ema": None, "batch_size": 3, "accumulate": 1, "epochs": 2}
    data = {"root": str(photos), "name": "folder", "augmentation": "inception"}
    one = fit_config(config(**changes, data=data), tmp_path / "one", quiet=True).path
    changes["data"] = {**data, "root": str(tmp_path / "shards"), "name": "shards"}
    step = Learner.training_step

    def stopped(self, batch, number):
        if number == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, batch, number)

    monkeypatch.setattr(Learner, "training_step", stopped)
    with pytest.raises(KeyboardInterrupt):
        fit_config(config(**changes), tmp_path / "two", quiet=True)
    two = fit_config(config(**changes), tmp_path / "two", resume=True, quiet=True).path
    states = [torch.load(run / "last.ckpt", weights_only=True) for run in (one, two)]
    assert states[0]["global_step"] == states[1]["global_step"] > 4
    states = [state["state_dict"] for state in states]
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value, rtol=0, atol=0, msg=key)


def test_shards_that_webdataset_wrote(photos, tmp_path):
    webdataset = pytest.importorskip("webdataset")
    folder = get_data("folder", root=str(photos), image_size=16, val_fraction=0)
    with webdataset.ShardWriter(str(tmp_path / "birds-train-%06d.tar"), maxcount=5, verbose=0) as writer:
        for i in range(len(folder.train)):
            path, target = Path(folder.train.path(i)), int(folder.train.targets[i])
            sample = {"__key__": f"x/{i:04d}", path.suffix[1:]: path.read_bytes(), "cls": target}
            writer.write({**sample, "json": {"from": path.name}, "txt": "a bird"})
    with webdataset.TarWriter(str(tmp_path / "birds-val-000000.tar")) as writer:
        writer.write({"__key__": "one", "jpg": (photos / "1" / "0.jpg").read_bytes(), "cls": "0"})
    data = get_data("shards", root=str(tmp_path), image_size=16)
    assert len(list(tmp_path.glob("*.tar"))) == 4 and data.classes == ("0", "1", "2") and len(data.val) == 1
    same(pixels(data), pixels(folder))
    (tmp_path / "classes.txt").write_text("finch\ngull\nwren\n")
    assert get_data("shards", root=str(tmp_path)).classes == ("finch", "gull", "wren")
    # and webdataset reads what we write
    pack(folder, tmp_path / "ours")
    back = webdataset.WebDataset(str(tmp_path / "ours" / "train-000000.tar"), shardshuffle=False)
    read = [(next(s[k] for k in ("jpg", "png", "webp", "bmp") if k in s), int(s["cls"])) for s in back]
    paths = [Path(folder.train.path(i)) for i in range(len(folder.train))]
    assert read == [(path.read_bytes(), int(target)) for path, target in zip(paths, folder.train.targets, strict=True)]


def test_a_plain_tar_of_class_folders(photos, tmp_path):
    """As ``tar -cf`` writes it, with names so long that they take headers of their own, and with links."""
    with tarfile.open(tmp_path / "all.tar", "w") as archive:
        archive.add(photos / "1", "photos/1")
        member(archive, f"photos/{'x' * 150}/{'y' * 120}.jpg", jpeg(), mtime=1.5)
        member(archive, "photos/1/link.jpg", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        member(archive, "notes.txt", b"no image")
    data = get_data("shards", root=str(tmp_path), val_fraction=0, image_size=8)
    assert data.classes == ("1", "x" * 150) and data.train.counts().tolist() == [5, 1]
    assert data.notes == ("samples without an image, and second images of a sample: 1",)
    assert sum(len(target) for _, target, _ in pixels(data)) == 6


# ---- damage


def test_a_bad_image_costs_that_image(tmp_path):
    with tarfile.open(tmp_path / "train.tar", "w") as archive:
        for i, content in enumerate((jpeg(), b"", b"II*\0tiff", jpeg()[:200], b"no image", jpeg())):
            member(archive, f"grey/{i}.jpg", content)
    data = get_data("shards", root=str(tmp_path), val_fraction=0, image_size=8, augmentation="none")
    (batch,) = data.loader("train", batch_size=6)
    assert sorted(batch.index.tolist()) == [0, 5]
    shard = tmp_path / "train.tar"
    for (path, error), what in zip(
        sorted(batch.errors), ("is empty", "is no JPEG, PNG", "", "is no JPEG, PNG"), strict=True
    ):
        assert error.startswith(f"{path}: ") and path.startswith(f"{shard}/grey/") and what in error
        assert "\n" not in error


def test_a_damaged_shard_is_one_sentence(tmp_path):
    shard = tmp_path / "train.tar"
    with tarfile.open(shard, "w") as archive:
        for i in range(3):
            member(archive, f"grey/{i}.jpg", jpeg(50 * i))
    whole = shard.read_bytes()
    data = get_data("shards", root=str(tmp_path), val_fraction=0)
    second = int(data.train._offsets[1])
    wrong = whole[: second - 400] + b"\xff" * 50 + whole[second - 350 :]
    cut = [
        whole[:end] for end in (0, 100, second - 512, second - 100, second, second + 10, int(data.train._offsets[2]))
    ]
    for content in (*cut, wrong, b"\xff" * 3000):
        shard.write_bytes(content)
        with pytest.raises(DataError, match=rf"^{shard}: is no tar file, is damaged or cut short after \d samp[^\n]*$"):
            scan(shard)
    shard.write_bytes(whole[: data.train._offsets[2] + 10])  # its index does not fit any more
    with pytest.raises(DataError, match="cut short after"):
        get_data("shards", root=str(tmp_path))
    with pytest.raises(ImageError, match=rf"^{shard}/grey/2.jpg: cannot be read [^\n]*; the shard is damaged or cut"):
        data.train.content(2)
    assert data.train.content(0) == jpeg(0)
    # another shard of the same size
    with tarfile.open(shard, "w") as archive:
        for i in range(3):
            member(archive, f"dark/{i}.jpg", jpeg(50 * i))
    assert shard.stat().st_size == len(whole)
    with pytest.raises(
        ImageError, match=r"the shard has been replaced; remove .*train\.tar\.index\.npz and start again"
    ):
        data.train.content(1)


def test_changed_labels_of_a_shard_of_the_same_size_are_read(tmp_path):
    """The headers of the images do not tell; the time of the file does."""
    shard = tmp_path / "train.tar"
    for labels in ("012", "021"):
        with tarfile.open(shard, "w") as archive:
            for i, label in enumerate(labels):
                member(archive, f"{i}.jpg", jpeg(50 * i))
                member(archive, f"{i}.cls", label.encode())
        os.utime(shard)
        found = get_data("shards", root=str(tmp_path), val_fraction=0).train
        assert found.targets.tolist() == [int(label) for label in labels]


def test_second_images_and_copies_are_told(tmp_path):
    with tarfile.open(tmp_path / "train.tar", "w") as archive:
        for name in ("a/1.jpg", "a/1.png", "b/2.jpg"):
            member(archive, name, jpeg())
    (tmp_path / "val").mkdir()
    shutil.copy(tmp_path / "train.tar", tmp_path / "val" / "copy.tar")
    data = get_data("shards", root=str(tmp_path))
    assert len(data.train) == len(data.val) == 2
    assert data.notes[0] == "samples without an image, and second images of a sample: 2"
    assert data.notes[1].endswith(
        "copy.tar lists the same images as " + f"{tmp_path}/train.tar; remove it if it is a copy"
    )
    with tarfile.open(tmp_path / "train.tar", "w") as archive:
        for name in ("a/1.jpg", "a/1.JPG"):
            member(archive, name, jpeg())
    with pytest.raises(DataError, match=r"has a/1\.JPG twice, or with another case of its suffix"):
        get_data("shards", root=str(tmp_path))


def test_the_name_of_a_shard_tells_its_split_before_its_folders(tmp_path):
    (tmp_path / "test-data").mkdir()
    for split in ("train", "val"):
        with tarfile.open(tmp_path / "test-data" / f"{split}-000000.tar", "w") as archive:
            member(archive, "a/1.jpg", jpeg())
    data = get_data("shards", root=str(tmp_path))
    assert len(data.train) == len(data.val) == 1 and data.test is None


def test_an_image_beyond_the_limit_of_memory_is_not_read(tmp_path, monkeypatch):
    with tarfile.open(tmp_path / "train.tar", "w") as archive:
        member(archive, "a/1.jpg", jpeg())
    data = get_data("shards", root=str(tmp_path), val_fraction=0)
    monkeypatch.setenv("FOVEAL_MAX_BYTES", "500")
    with pytest.raises(ImageError, match=r"a/1\.jpg: has \d+ bytes, more than the limit of 500"):
        data.train.content(0)


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04 no archive", None, {"labels": np.array([b"a", b"b"])}, {"sizes": 3}]
)
def test_a_damaged_index_is_made_anew(tmp_path, content):
    shard = tmp_path / "train.tar"
    with tarfile.open(shard, "w") as archive:
        member(archive, "grey/1.jpg", jpeg())
    expected = index_of(shard)
    index = shard.with_name(shard.name + INDEX)
    if content is None:  # pickled objects in it are not loaded
        np.savez(index.open("wb"), **{**expected._asdict(), "names": np.array([print], dtype=object)})
    elif isinstance(content, dict):
        np.savez(index.open("wb"), **{**expected._asdict(), **content})
    else:
        index.write_bytes(content)
    found = index_of(shard)
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True)) and isinstance(found, Index)


@pytest.mark.parametrize(
    ("members", "sentence"),
    [
        ({"a/1.jpg": jpeg(), "a/1.pyd": b"x"}, r"holds pickled data in a/1\.pyd, which can run code"),
        ({"a/1.jpg": jpeg(), "a/1.PKL": b"x"}, r"holds pickled data in a/1\.PKL"),
        ({"1.jpg": jpeg()}, r"train\.tar/1\.jpg: has no class; add a member \.cls"),
        ({"a/1.txt": b"x"}, "there is no image in the shards"),
    ],
)
def test_shards_that_cannot_be_used(tmp_path, members, sentence):
    with tarfile.open(tmp_path / "train.tar", "w") as archive:
        for name, content in members.items():
            member(archive, name, content)
    with pytest.raises(DataError, match=rf"^{tmp_path}[^\n]*{sentence}[^\n]*$"):
        get_data("shards", root=str(tmp_path))


def test_unknown_classes_and_missing_shards(tmp_path):
    with pytest.raises(DataError, match=r"there are no \.tar files in it"):
        get_data("shards", root=str(tmp_path))
    for split, name in (("train", "a"), ("val", "b")):
        with tarfile.open(tmp_path / f"{split}.tar", "w") as archive:
            member(archive, f"{name}/1.jpg", jpeg())
    with pytest.raises(DataError, match=r"have the class 'b', which is not among those that training shards have"):
        get_data("shards", root=str(tmp_path))
    (tmp_path / "classes.txt").write_text("a\n")
    with pytest.raises(DataError, match=r"class 'b', which is not among those that classes\.txt has"):
        get_data("shards", root=str(tmp_path))
    (tmp_path / "val.tar").rename(tmp_path / "val.tar.gz")
    with pytest.raises(DataError, match="is compressed, so that an image cannot be read alone"):
        get_data("shards", root=str(tmp_path))


def test_what_cannot_be_packed(photos, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="shards are made of image files"):
        pack(get_data("tiny_images"), tmp_path / "out")
    data = get_data("folder", root=str(photos))
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match="is there already"):
        pack(data, tmp_path / "out")
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot be written"):
        pack(data, tmp_path / "file" / "out")
    for name in ("a\x85b", " a"):  # line breaks and spaces are lost in classes.txt
        (tmp_path / repr(name) / name).mkdir(parents=True)
        (tmp_path / repr(name) / name / "1.jpg").write_bytes(jpeg())
        with pytest.raises(DataError, match="; rename"):
            pack(get_data("folder", root=str(tmp_path / repr(name)), val_fraction=0), tmp_path / "lines")
    (tmp_path / "photos" / "a").mkdir(parents=True)
    (tmp_path / "photos" / "a" / "1.jpg").write_bytes(jpeg())
    (tmp_path / "photos" / "a" / "2.jpg").write_bytes(b"no image")
    ((path, reason),) = pack(get_data("folder", root=str(tmp_path / "photos"), val_fraction=0), tmp_path / "packed")
    assert path.endswith("2.jpg") and "is no JPEG" in reason
    assert len(get_data("shards", root=str(tmp_path / "packed"), val_fraction=0).train) == 1
    with monkeypatch.context() as full, pytest.raises(StorageError, match="No space left"):
        full.setattr(tarfile.TarFile, "addfile", lambda *_: os.write(os.open("/dev/full", os.O_WRONLY), b"x"))
        pack(data, tmp_path / "more")
    assert not (tmp_path / "more").exists() and not (tmp_path / ".more.unfinished").exists()

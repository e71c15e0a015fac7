"""Class folders and manifests: search, splits and errors."""

import os
from pathlib import Path

import numpy as np
import pytest

from foveal.data import check_classes, get_data, list_data
from foveal.data.folder import hold_out, hold_out_groups, manifest
from foveal.errors import ConfigError, DataError
from tests.data.layouts import make_folder, make_manifest, save_image, write_table


def names(dataset) -> list[str]:
    return [str(Path(dataset.path(i)).relative_to(Path(dataset.path(i)).parents[2])) for i in range(len(dataset))]


def test_splits_are_folders_where_they_exist(tmp_path):
    data = get_data("folder", root=str(make_folder(tmp_path, classes=3, images=2)))
    assert data.classes == ("class_0", "class_1", "class_2")
    for split in ("train", "val", "test"):
        dataset = getattr(data, split)
        assert names(dataset) == [f"{split}/class_{c}/{n}.jpg" for c in range(3) for n in range(2)]
        assert dataset.targets.tolist() == [0, 0, 1, 1, 2, 2]
    assert data.train.reading.augmentation == "light"
    assert data.val.reading.augmentation == data.test.reading.augmentation == "none"


def test_a_class_folder_alone_is_split_by_seed_class_by_class(tmp_path):
    root = str(make_folder(tmp_path, classes=2, images=10, splits=()))
    data = get_data("folder", root=root, val_fraction=0.3)
    assert data.test is None
    assert data.train.counts().tolist() == [7, 7]
    assert data.val.counts().tolist() == [3, 3]
    paths = [{d.path(i) for i in range(len(d))} for d in (data.train, data.val)]
    assert not paths[0] & paths[1]
    assert len(paths[0] | paths[1]) == 20
    again, other = (get_data("folder", root=root, val_fraction=0.3, seed=seed) for seed in (0, 1))
    assert {again.val.path(i) for i in range(6)} == paths[1]
    assert {other.val.path(i) for i in range(6)} != paths[1]
    assert get_data("folder", root=root, val_fraction=0).val is None
    assert len(get_data("folder", root=root, val_fraction=1).val) == 20


def test_val_is_taken_from_train_when_there_is_only_test(tmp_path):
    data = get_data("folder", root=str(make_folder(tmp_path, images=4, splits=("train", "test"))), val_fraction=0.25)
    assert (len(data.train), len(data.val), len(data.test)) == (6, 2, 8)


@pytest.mark.parametrize(
    ("count", "fraction", "held"),
    [(10, 0.3, 3), (2, 0.1, 1), (1, 0.5, 0), (5, 0.0, 0), (5, 0.99, 4), (5, 1.0, 5), (1, 1.0, 1)],
)
def test_how_many_are_held_out(count, fraction, held):
    targets = np.repeat([0, 2], count)
    mask = hold_out(targets, fraction, seed=3)
    assert mask[:count].sum() == mask[count:].sum() == held


def test_nested_folders_are_searched_and_other_files_passed_over(tmp_path):
    root = make_folder(tmp_path, images=1, splits=())
    save_image(root / "class_0" / "deep" / "er" / "x.PNG", 1)
    (root / "class_0" / "notes.txt").write_text("no image")
    (root / "class_0" / ".hidden.jpg").write_bytes(b"")
    (root / ".cache").mkdir()
    data = get_data("folder", root=str(root), val_fraction=0)
    assert data.train.counts().tolist() == [2, 1]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda root: (root / "train" / "class_9").mkdir(),
            r"class_9: there is no image in this class folder; add some or remove",
        ),
        (
            lambda root: save_image(root / "val" / "class_9" / "x.jpg", 0),
            r"val/class_9: there is no training image of the class 'class_9'",
        ),
        (lambda root: root.rename(root.parent / "away"), r"there is no such file or folder; correct the path"),
    ],
)
def test_bad_folders_are_refused(tmp_path, spoil, message):
    root = make_folder(tmp_path / "data")
    spoil(root)
    with pytest.raises(DataError, match=message) as caught:
        get_data("folder", root=str(root))
    assert str(caught.value).startswith(str(root))


def test_a_folder_without_folders_is_refused(tmp_path):
    with pytest.raises(DataError, match="no class folders in it"):
        get_data("folder", root=str(tmp_path))
    file = tmp_path / "x.txt"
    file.write_text("")
    with pytest.raises(DataError, match="not a folder that can be read"):
        get_data("folder", root=str(file))


@pytest.mark.parametrize("parquet", [False, True])
def test_manifests(tmp_path, parquet):
    make_manifest(tmp_path, classes=2, images=2, parquet=parquet)
    data = get_data("manifest", file=str(tmp_path / ("manifest.parquet" if parquet else "manifest.csv")))
    assert data.classes == ("class_0", "class_1")
    assert [len(getattr(data, s)) for s in ("train", "val", "test")] == [4, 4, 4]
    assert data.test.path(0) == str(tmp_path / "images" / "8.jpg")
    assert data.test.targets.tolist() == [0, 0, 1, 1]


def test_a_manifest_without_splits_is_split_and_takes_a_root(tmp_path):
    make_manifest(tmp_path / "a", images=5, splits=())
    moved = tmp_path / "elsewhere.csv"
    # A byte order mark, as spreadsheets write it, and numbers for labels.
    moved.write_bytes(b"\xef\xbb\xbf" + (tmp_path / "a" / "manifest.csv").read_bytes().replace(b"class_", b""))
    data = get_data("manifest", file=str(moved), root=str(tmp_path / "a"), val_fraction=0.2)
    assert data.classes == ("0", "1")
    assert (data.train.counts().tolist(), data.val.counts().tolist()) == ([4, 4], [1, 1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[5].update(label="bird"), r"row 7 has the label 'bird', which no training row has"),
        (
            lambda rows: rows[5].update(path="gone.jpg"),
            r"1 of 6 images are missing, first .*gone.jpg in row 7; correct",
        ),
        (lambda rows: rows[1].update(split="holdout"), r"row 3 has the split 'holdout'; use train, val or test"),
        (lambda rows: rows[1].update(label=""), r"row 3 has no label"),
        (lambda rows: [row.pop("label") for row in rows], r"the column 'label' is missing"),
    ],
)
def test_bad_manifests_are_refused(tmp_path, change, message):
    rows = []
    for i in range(6):
        save_image(tmp_path / f"{i}.jpg", i)
        rows.append({"path": f"{i}.jpg", "label": "cat" if i % 2 else "dog", "split": "train" if i < 4 else "test"})
    change(rows)
    table = write_table(tmp_path / "m.csv", rows)
    with pytest.raises(DataError, match=message) as caught:
        get_data("manifest", file=str(table))
    assert str(caught.value).startswith(str(table))


def test_labels_in_parquet_may_be_lists(tmp_path):
    rows = [{"path": f"{i}.jpg", "label": ["crack", "dust", "oil"][:i], "split": "train"} for i in range(4)]
    for i in range(4):
        save_image(tmp_path / f"{i}.jpg", i)
    table = write_table(tmp_path / "m.parquet", rows)
    data = get_data("manifest", file=str(table), task="multilabel", val_fraction=0)
    assert data.classes == ("crack", "dust", "oil")
    assert data.train.targets.tolist() == [[j < i for j in range(3)] for i in range(4)]


def test_classes_that_a_split_lacks_are_told(tmp_path):
    """Tumours of two patients are in both splits, those of one are all needed for training."""
    rows = [{"path": f"{i}.jpg", "label": "tumour" if i < 4 else "none", "group": f"p{i // 2}"} for i in range(20)]
    for i in range(20):
        save_image(tmp_path / f"{i}.jpg", i)
    data = get_data("manifest", file=str(write_table(tmp_path / "m.csv", rows)), val_fraction=0.1)
    assert data.val.counts().tolist() == [2, 2] and not data.notes
    for row in rows[:4]:
        row["group"] = "p0"
    data = get_data("manifest", file=str(write_table(tmp_path / "n.csv", rows)), val_fraction=0.1)
    assert data.val.counts().tolist() == [2, 0]
    assert data.notes == ("the val split has no image of 1 of 2 classes: tumour",)


def test_an_image_in_two_splits_is_told(tmp_path):
    rows = [{"path": f"{i % 4}.jpg", "label": "ab"[i % 2], "split": "train" if i < 4 else "test"} for i in range(6)]
    for i in range(4):
        save_image(tmp_path / f"{i}.jpg", i)
    data = get_data("manifest", file=str(write_table(tmp_path / "m.csv", rows)))
    assert data.notes == (f"images in several splits: 2, first {tmp_path / '0.jpg'}",)
    assert not get_data("manifest", file=str(write_table(tmp_path / "n.csv", rows[:4]))).notes


def test_tables_that_are_none_are_refused(tmp_path):
    for name, content, message in (
        ("a.parquet", b"PAR1 but not really", "not a Parquet file that can be read"),
        ("b.csv", b"\xff\xfe\x00path", "not a CSV file in UTF-8"),
        ("c.csv", b"path,label\n", "there are no rows"),
        ("d.csv", b"", "there are no rows"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=message):
            get_data("manifest", file=str(tmp_path / name))


def test_names_and_options_that_do_not_exist():
    assert {"digits", "folder", "manifest", "imagenet", "fmow", "cub", "nabirds"} <= set(list_data())
    with pytest.raises(ConfigError, match="fodler: there is no data set of this name; did you mean folder"):
        get_data("fodler")
    with pytest.raises(ConfigError, match="there is no option 'rot'; use root"):
        get_data("folder", rot="x")
    with pytest.raises(ConfigError, match=r"the option 'root' is missing; set `data\.root`"):
        get_data("folder")


def test_unknown_augmentations_are_refused(tmp_path):
    with pytest.raises(
        ConfigError, match="there is no augmentation 'heavy'; use one of none, light, surface, inception, "
    ):
        get_data("folder", root=str(make_folder(tmp_path)), augmentation="heavy")


def test_classes_must_be_those_of_the_model(tmp_path):
    data = get_data("folder", root=str(make_folder(tmp_path)))
    check_classes(("class_0", "class_1"), data)
    with pytest.raises(DataError, match="class 'class_0' is unknown to the model"):
        check_classes(("cat", "dog"), data)
    with pytest.raises(DataError, match="in another order"):
        check_classes(("class_1", "class_0"), data)


def test_class_weights_balance(tmp_path):
    root = make_folder(tmp_path, images=2)
    for n in range(4):
        save_image(root / "train" / "class_1" / f"more_{n}.jpg", n)
    data = get_data("folder", root=str(root))
    weights = np.array(data.class_weights())
    assert weights.tolist() == [2.0, pytest.approx(2 / 3)]
    assert weights[data.train.targets].mean() == pytest.approx(1)


def test_a_split_that_is_not_there_is_named(tmp_path):
    data = get_data("folder", root=str(make_folder(tmp_path, splits=())))
    with pytest.raises(DataError, match="there is no split 'test'; use one of train, val"):
        data.loader("test", batch_size=1)


# ---- other names of splits, other forms of names, and notes


def counts(data) -> tuple[int | None, ...]:
    return tuple(None if (split := getattr(data, name)) is None else len(split) for name in ("train", "val", "test"))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("train", "valid", "test"), (4, 4, 4)),
        (("train", "validation"), (4, 4, None)),
        (("training", "validation", "testing"), (4, 4, 4)),
        (("Train", "Val"), (4, 4, None)),
        (("TRAIN", "Dev", "Test"), (4, 4, 4)),
        (("train", "test"), (2, 2, 4)),
        (("testing",), (None, None, 4)),
    ],
)
def test_splits_are_recognised_under_usual_names(tmp_path, names, expected):
    data = get_data("folder", root=str(make_folder(tmp_path, images=2, splits=names)), val_fraction=0.5)
    assert data.classes == ("class_0", "class_1")
    assert counts(data) == expected
    told = sorted(note.partition(" is taken as the ")[0] for note in data.notes if "is taken as the" in note)
    assert told == sorted(str(tmp_path / name) for name in names if name not in ("train", "val", "test"))


def test_two_folders_for_one_split_are_refused(tmp_path):
    root = make_folder(tmp_path, splits=("train", "val", "validation"))
    with pytest.raises(
        DataError, match="val: this folder and 'validation' are both the val split; keep one of them, or merge them"
    ):
        get_data("folder", root=str(root))


@pytest.mark.parametrize("classes", [("invalid", "valid"), ("dev", "prod"), ("cat", "testing")])
def test_a_class_may_have_the_name_of_a_split(tmp_path, classes):
    for key, name in enumerate(classes):
        save_image(tmp_path / name / "deep" / "1.jpg", key)
    assert get_data("folder", root=str(tmp_path), val_fraction=0).classes == classes


def test_files_next_to_the_splits_are_reported(tmp_path):
    root = make_folder(tmp_path, images=2, splits=("train", "val"))
    for n in range(3):
        save_image(root / "spare" / "class_0" / f"{n}.jpg", n)
    save_image(root / "preview.jpg", 9)
    (root / "docs").mkdir()
    (root / "val" / "class_0" / "notes.txt").touch()
    save_image(root / "val" / "1.jpg", 5)
    data = get_data("folder", root=str(root))
    assert counts(data) == (4, 4, None)
    assert data.notes == (
        f"left out 4 (image beside the splits): {root / 'spare' / 'class_0' / '0.jpg'}, ...",
        f"left out 1 (suffix of no image format): {root / 'val' / 'class_0' / 'notes.txt'}",
        f"left out 1 (image beside the class folders): {root / 'val' / '1.jpg'}",
    )


def test_names_in_two_unicode_forms_are_one_class(tmp_path):
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    save_image(tmp_path / "train" / decomposed / "1.jpg", 1)
    save_image(tmp_path / "train" / "tea" / "1.jpg", 2)
    save_image(tmp_path / "val" / "tea" / "1.jpg", 3)
    save_image(tmp_path / "val" / composed / "1.jpg", 4)
    data = get_data("folder", root=str(tmp_path))
    assert data.classes == (decomposed, "tea")
    assert [Path(data.val.path(i)).parent.name for i in np.argsort(data.val.targets)] == [composed, "tea"]
    assert not data.notes
    # The model can have either form of the name.
    check_classes((composed, "tea"), data)
    save_image(tmp_path / "train" / composed / "2.jpg", 5)
    data = get_data("folder", root=str(tmp_path))
    assert data.train.counts().tolist() == [2, 1]
    assert data.notes == (f"{composed!r} is written in two Unicode forms, which are one class",)


def test_labels_in_two_unicode_forms_are_one_class(tmp_path):
    rows = []
    for i, (label, split) in enumerate([("cafe\u0301", "train"), ("tea", "train"), ("caf\u00e9", "val")]):
        save_image(tmp_path / f"{i}.jpg", i)
        rows.append({"path": f"{i}.jpg", "label": label, "split": split})
    data = get_data("manifest", file=str(write_table(tmp_path / "m.csv", rows)))
    assert data.classes == ("cafe\u0301", "tea")
    assert data.val.targets.tolist() == [0]


@pytest.mark.parametrize("name", ["Class_0", "class_0 ", "CLASS_0"])
def test_classes_that_differ_in_case_or_spaces_only_are_told(tmp_path, name):
    root = make_folder(tmp_path, splits=("train", "val"))
    (root / "val" / "class_0").rename(root / "val" / name)
    advice = (
        rf"the class {name!r}; training has 'class_0', which differs in case or spaces only: give both the same name"
    )
    with pytest.raises(DataError, match=rf"val/{name}: there is no training image of {advice}"):
        get_data("folder", root=str(root))
    save_image(root / "train" / name / "1.jpg", 1)
    assert any(
        "differ in case or spaces only, and are two classes" in note
        for note in get_data("folder", root=str(root)).notes
    )


def test_a_manifest_may_call_splits_by_their_other_names(tmp_path):
    table = make_manifest(tmp_path, images=2) / "manifest.csv"
    table.write_text(
        table.read_text().replace(",train", ",Training").replace(",val", ",validation").replace(",test", ",TEST")
    )
    assert counts(get_data("manifest", file=str(table))) == (4, 4, 4)


def test_labels_that_differ_in_case_only_are_told(tmp_path):
    root = make_manifest(tmp_path, splits=("train", "val"))
    table = root / "manifest.csv"
    table.write_text(table.read_text().replace("class_1,val", "Class_1,val"))
    with pytest.raises(
        DataError,
        match=r"the label 'Class_1', which no training row has; training has 'class_1', which differs in case",
    ):
        get_data("manifest", file=str(table))


def test_classes_without_an_image_in_a_split_are_told(tmp_path):
    root = make_folder(tmp_path, classes=6, images=1, splits=("train", "val", "test"))
    for c in (1, 2, 3, 5):
        (root / "val" / f"class_{c}" / "0.jpg").unlink()
    (root / "val" / "class_1").rmdir()
    (root / "val" / "unknown").mkdir()  # an empty folder is ignored
    data = get_data("folder", root=str(root))
    assert data.notes == (f"{root / 'val'} has no image of 4 of 6 classes: class_1, class_2, class_3, ...",)
    for c in (0, 4):
        (root / "val" / f"class_{c}" / "0.jpg").unlink()
    with pytest.raises(DataError, match="val: there is no image in its class folders"):
        get_data("folder", root=str(root))


def test_a_class_of_files_that_are_no_images_says_what_they_are(tmp_path):
    root = make_folder(tmp_path, splits=())
    (root / "drawings").mkdir()
    for n in range(2):
        (root / "drawings" / f"{n}.xcf").touch()
    left_out = rf"left out 2 \(suffix of no image format\): {root / 'drawings'}/0.xcf, \.\.\."
    with pytest.raises(
        DataError, match=rf"drawings: there is no image in this class folder, {left_out}; add some or remove the folder"
    ):
        get_data("folder", root=str(root))


def test_other_programs_folders_and_loops_do_no_harm(tmp_path):
    root = make_folder(tmp_path, images=2, splits=())
    for name in (
        "__MACOSX/class_0/._0.jpg",
        "@eaDir/x.jpg",
        "class_0/@eaDir/0.jpg",
        "$RECYCLE.BIN/1.jpg",
        ".ipynb_checkpoints/1.jpg",
    ):
        save_image(root / name, 1)
    (root / "class_0" / "up").symlink_to("..")
    (root / "class_1" / "same").symlink_to(".")
    data = get_data("folder", root=str(root), val_fraction=0)
    assert data.classes == ("class_0", "class_1")
    assert data.train.counts().tolist() == [2, 2]
    assert len(data.notes) == 3  # hidden, made by others, links


def test_a_link_out_of_a_split_does_not_bring_in_another_split(tmp_path):
    root = make_folder(tmp_path, images=2, splits=("train", "val"))
    (root / "train" / "class_0" / "up").symlink_to("../..")
    assert counts(get_data("folder", root=str(root))) == (4, 4, None)
    # A split can be a link to another split.
    (root / "test").symlink_to("val")
    assert counts(get_data("folder", root=str(root))) == (4, 4, 4)


def test_class_names_that_are_not_utf8_are_text(tmp_path):
    root = make_folder(tmp_path, classes=1, splits=())
    (root / "class_0").rename(root / os.fsdecode(b"d\xf6g"))
    data = get_data("folder", root=str(root), val_fraction=0)
    assert data.classes == ("d\\udcf6g",)
    "".join(data.classes).encode()
    assert len(data.train.batch(0, [0], 0)) == 1


# ---- groups


@pytest.mark.parametrize("seed", range(40))
def test_no_group_is_on_both_sides(seed):
    """Random tables, against the definition: whole groups, about the share of every class, no class lost."""
    rng = np.random.default_rng(seed)
    classes, fraction = int(rng.integers(2, 5)), float(rng.choice([0.1, 0.2, 0.5]))
    count = int(rng.integers(20, 300))
    groups = [f"p{i}" if rng.random() < 0.9 else "" for i in rng.integers(0, rng.integers(2, count), count)]
    targets = rng.choice(classes, count, p=rng.dirichlet(np.full(classes, 3.0)))
    held = hold_out_groups(targets, groups, fraction, seed)
    for name in {name for name in groups if name}:
        assert len({bool(held[i]) for i in range(count) if groups[i] == name}) == 1
    assert set(targets[~held]) == set(targets)
    assert (held == hold_out_groups(targets, groups, fraction, seed)).all()
    largest = max(sum(g == name for g in groups) for name in set(groups) - {""})
    if largest < 0.05 * count:
        assert 0.5 * fraction < held.mean() < 1.5 * fraction + 0.05


def test_small_groups_are_split_as_images_are():
    targets = np.repeat([0, 1, 2], [500, 100, 20])
    groups = [f"p{i // 2}" for i in range(620)]
    for seed in range(5):
        held = hold_out_groups(targets, groups, 0.2, seed)
        assert [held[targets == c].mean() for c in range(3)] == pytest.approx([0.2, 0.2, 0.2], abs=0.02)
    assert (held != hold_out_groups(targets, groups, 0.2, 99)).any()
    assert hold_out_groups(targets, groups, 1.0, 0).all()
    assert not hold_out_groups(np.array([0, 0, 1, 1]), ["a", "a", "b", "b"], 0.5, 0).any()  # a class would be lost
    several = np.eye(3)[targets]
    assert (hold_out_groups(several, groups, 0.2, 4) == hold_out_groups(targets, groups, 0.2, 4)).all()


def grouped(tmp_path, rows) -> Path:
    file = tmp_path / "table.csv"
    for i, (path, *_) in enumerate(rows):
        save_image(tmp_path / path, i)
    file.write_text("path,label,split,group\n" + "".join(",".join(row) + "\n" for row in rows))
    return file


def test_a_table_with_groups(tmp_path):
    rows = [(f"{i}.png", "ab"[i % 2], "", f"p{i // 4}") for i in range(24)]
    data = manifest(str(grouped(tmp_path, rows)), val_fraction=0.3)
    split = [{int(Path(part.path(i)).stem) // 4 for i in range(len(part))} for part in (data.train, data.val)]
    assert split[0] | split[1] == set(range(6)) and not split[0] & split[1]
    assert len(split[1]) == 2 and data.val.counts().tolist() == [4, 4]


def test_groups_in_two_splits_are_refused(tmp_path):
    rows = [("0.png", "a", "train", "p0"), ("1.png", "b", "train", "p1"), ("2.png", "a", "test", "p1")]
    with pytest.raises(DataError, match=r"table.csv: the group 'p1' has images in train and in test; put all [^\n]+$"):
        manifest(str(grouped(tmp_path, rows)))
    rows[2] = ("2.png", "a", "test", "")
    rows[1] = ("1.png", "b", "train", "")
    assert len(manifest(str(grouped(tmp_path, rows)), val_fraction=0).test) == 1


def test_groups_that_each_have_a_class_are_not_held_out(tmp_path):
    rows = [(f"{i}.png", "ab"[i // 2], "", f"p{i // 2}") for i in range(4)]
    data = manifest(str(grouped(tmp_path, rows)), val_fraction=0.5)
    assert data.val is None and data.notes == (
        "no group is held out for validation, because each has all images of a class",
    )


def test_boxes_of_a_manifest_stay_with_their_images(tmp_path):
    cells = ["1 2 30 40", "", "5 6.5 7 8 | 0 0 10 20", "3 4 5 6"]
    for i in range(4):
        save_image(tmp_path / f"{i}.jpg", i)
    rows = [{"path": f"{i}.jpg", "label": "ab"[i % 2], "boxes": boxes} for i, boxes in enumerate(cells)]
    table = write_table(tmp_path / "table.csv", rows)
    data = get_data("manifest", file=str(table), val_fraction=0.5, seed=3)
    found = {}
    for images in (data.train, data.val):
        found |= {Path(images.path(i)).stem: images.objects(i).tolist() for i in range(len(images))}
    assert found == {"0": [[1, 2, 30, 40]], "1": [], "2": [[5, 6.5, 7, 8], [0, 0, 10, 20]], "3": [[3, 4, 5, 6]]}
    for wrong in ("1 2 3", "a b c d", "5 5 5 9", "1 2 30 nan"):
        write_table(table, [*rows, {"path": "0.jpg", "label": "a", "boxes": wrong}])
        with pytest.raises(DataError, match=f"row 6 has the boxes '{wrong}'; write y0 x0 y1 x1 in pixels"):
            get_data("manifest", file=str(table))

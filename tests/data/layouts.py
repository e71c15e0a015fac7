"""Tiny data sets in the layouts of the real downloads. Every function returns the root."""

from __future__ import annotations

import csv
import json
import pickle
import struct
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from PIL import Image

FMOW_CLASSES = ("airport", "barn", "crop_field", "dam", "false_detection")


def save_image(path: Path, key: int) -> tuple[int, int]:
    """Smooth noise of 40 to 90 px a side, never square; returns (height, width)."""
    rng = np.random.default_rng(key)
    height, width = int(rng.integers(40, 65)), int(rng.integers(66, 91))
    if key % 2:
        height, width = width, height
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    coarse.resize((width, height), Image.Resampling.BICUBIC).save(path, quality=90)
    return height, width


def make_folder(
    root: Path,
    classes: int = 2,
    images: int = 3,
    splits: tuple[str, ...] = ("train", "val", "test"),
    suffix: str = ".jpg",
) -> Path:
    """root/<split>/class_<c>/<n>.jpg, or root/class_<c>/<n>.jpg if ``splits`` is empty."""
    key = 0
    for split in splits or ("",):
        for c in range(classes):
            for n in range(images):
                save_image(root / split / f"class_{c}" / f"{n}{suffix}", key := key + 1)
    return root


def make_manifest(
    root: Path,
    classes: int = 2,
    images: int = 3,
    splits: tuple[str, ...] = ("train", "val", "test"),
    parquet: bool = False,
) -> Path:
    """root/images/<n>.jpg and root/manifest.csv (or .parquet) with path, label and, if ``splits``, split."""
    rows = []
    for split in splits or ("",):
        for c in range(classes):
            for _ in range(images):
                path = f"images/{len(rows)}.jpg"
                save_image(root / path, len(rows))
                rows.append({"path": path, "label": f"class_{c}"} | ({"split": split} if split else {}))
    write_table(root / f"manifest.{'parquet' if parquet else 'csv'}", rows)
    return root


def write_table(table: Path, rows: list[dict]) -> Path:
    """Write rows as CSV or Parquet, by suffix."""
    if table.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), table)
    else:
        with table.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    return table


def make_imagenet(root: Path, classes: int = 2, images: int = 3, layout: str = "folders") -> Path:
    """ImageNet ILSVRC-2012, with XML boxes under root/Annotations.

    ``layout``: ``folders`` (val/<wnid>/), ``devkit`` (flat val, ground truth and meta.mat of the devkit), ``kaggle``
    (Data/CLS-LOC and LOC_val_solution.csv).
    """
    wnids = [f"n{1440764 + 997 * c:08d}" for c in range(classes)]
    data = root / "ILSVRC" / "Data" / "CLS-LOC" if layout == "kaggle" else root
    notes = root / "ILSVRC" / "Annotations" / "CLS-LOC" if layout == "kaggle" else root / "Annotations"
    key, truth = 0, []
    for wnid in wnids:
        for n in range(images):
            size = save_image(data / "train" / wnid / f"{wnid}_{n}.JPEG", key := key + 1)
            if n:  # not every training image has boxes
                _write_voc(notes / "train" / wnid / f"{wnid}_{n}.xml", size, (10, 5, 35, 30))
    for n in range(classes * images):
        wnid, name = wnids[n % classes], f"ILSVRC2012_val_{n + 1:08d}"
        save_image(data / "val" / (wnid if layout == "folders" else "") / f"{name}.JPEG", key := key + 1)
        truth.append((name, wnid))
    if layout == "kaggle":
        rows = [{"ImageId": name, "PredictionString": f"{wnid} 1 2 30 30 "} for name, wnid in reversed(truth)]
        write_table(root / "LOC_val_solution.csv", rows)
    if layout == "devkit":
        from scipy.io import savemat

        # The devkit numbers classes in another order and lists inner nodes of the hierarchy after them.
        ids = {wnid: classes - c for c, wnid in enumerate(wnids)}
        synsets = np.zeros(
            classes + 1, dtype=[(name, object) for name in ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children")]
        )
        for row, (wnid, number) in zip(synsets, sorted(ids.items(), key=lambda pair: pair[1]), strict=False):
            row["ILSVRC2012_ID"], row["WNID"], row["words"], row["gloss"], row["num_children"] = (
                number,
                wnid,
                "a thing",
                "some thing",
                0,
            )
        last = synsets[-1]
        last["ILSVRC2012_ID"], last["WNID"], last["words"], last["gloss"], last["num_children"] = (
            classes + 1,
            "n00000001",
            "any",
            "any thing",
            classes,
        )
        kit = root / "ILSVRC2012_devkit_t12" / "data"
        kit.mkdir(parents=True)
        savemat(kit / "meta.mat", {"synsets": synsets})
        (kit / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(f"{ids[wnid]}\n" for _, wnid in truth))
    return root


def _write_voc(path: Path, size: tuple[int, int], box: tuple[int, int, int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    top = ElementTree.Element("annotation")
    bounds = ElementTree.SubElement(ElementTree.SubElement(top, "object"), "bndbox")
    for name, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True):
        ElementTree.SubElement(bounds, name).text = str(value)
    sides = ElementTree.SubElement(top, "size")
    ElementTree.SubElement(sides, "width").text, ElementTree.SubElement(sides, "height").text = (
        str(size[1]),
        str(size[0]),
    )
    ElementTree.ElementTree(top).write(path)


def make_fmow(root: Path, classes: int = 2, images: int = 3) -> Path:
    """fMoW-rgb: JSON beside each image, test_gt and test_gt_mapping.json; false_detection is an additional class."""
    names = [*FMOW_CLASSES[:classes], "false_detection"]
    key, mapping = 0, []
    for split in ("train", "val", "test"):
        for name in names:
            for n in range(images):
                key += 1
                place = root / split / name / f"{name}_{n}" if split != "test" else root / "test" / f"{key:07d}"
                size = save_image(place / f"{place.name}_0_rgb.jpg", key)
                save_image(place / f"{place.name}_0_msrgb.jpg", key)
                boxes = [{"ID": 7, "category": name, "box": [10, 5, 20, 15]}]
                if n == 1:
                    boxes += [
                        {"ID": 8, "category": "false_detection", "box": [1, 1, 12, 12]},
                        {"ID": 9, "category": name, "box": [3, 3, 2, 9]},
                    ]
                if split != "test":
                    _write_json(place / f"{place.name}_0_rgb.json", size, boxes)
                    continue
                # Test boxes have no category; the labels are in separate folders named by class.
                _write_json(place / f"{place.name}_0_rgb.json", size, [{"ID": b["ID"], "box": b["box"]} for b in boxes])
                truth = root / "test_gt" / name / f"{name}_{n}"
                truth.mkdir(parents=True)
                _write_json(
                    truth / f"{truth.name}_0_rgb.json",
                    size,
                    [{"ID": -1, "category": name, "box": [0, 0, 9, 9]}, *boxes],
                )
                mapping.append({"input": f"test_gt/{name}/{truth.name}", "output": f"test/{place.name}"})
    (root / "test_gt_mapping.json").write_text(json.dumps(mapping))
    return root


def _write_json(path: Path, size: tuple[int, int], boxes: list[dict]) -> None:
    # In the real files a single box is sometimes not in a list.
    path.write_text(
        json.dumps(
            {
                "gsd": 0.5,
                "img_width": size[1],
                "img_height": size[0],
                "bounding_boxes": boxes if len(boxes) > 1 else boxes[0],
            }
        )
    )


def make_cub(root: Path, classes: int = 2, images: int = 3) -> Path:
    """CUB-200-2011: ``images`` training and as many test images of each class."""
    names = {str(c + 1): f"{c + 1:03d}.Some_Bird_{c}" for c in range(classes)}
    listed = [(str(i + 1), str(i // (2 * images) + 1), i % 2) for i in range(classes * 2 * images)]
    files = {image: f"{names[label]}/Some_Bird_{image}.jpg" for image, label, _ in listed}
    _write_birds(root, names, listed, files, "{:.1f}")
    return root


def make_nabirds(root: Path, classes: int = 2, images: int = 3) -> Path:
    """NABirds: like `make_cub`, but with UUIDs, and with inner nodes of the hierarchy in classes.txt."""
    names = {"0": "Birds", "1": "Ducks, Geese, and Swans"} | {
        str(817 + 3 * c): f"Oak Titmouse (Adult {c})" for c in range(classes)
    }
    labels = list(names)[2:]
    listed = [
        (f"{i:08x}-21dc-4d0c-bfe1-4cae3c85c829", labels[i % classes], i // classes % 2)
        for i in range(classes * 2 * images)
    ]
    files = {image: f"{int(label):04d}/{image.replace('-', '')}.jpg" for image, label, _ in listed}
    _write_birds(root, names, listed, files, "{:.0f}")
    (root / "hierarchy.txt").write_text("".join(f"{label} 1\n" for label in labels) + "1 0\n")
    return root


def _write_birds(
    root: Path, names: dict[str, str], listed: list[tuple[str, str, int]], files: dict[str, str], number: str
) -> None:
    sizes = {image: save_image(root / "images" / files[image], key) for key, (image, _, _) in enumerate(listed)}
    box = {image: " ".join(number.format(v) for v in (5, 8, w - 20, h - 15)) for image, (h, w) in sizes.items()}
    for file, lines in (
        ("classes.txt", [f"{k} {v}" for k, v in names.items()]),
        ("images.txt", [f"{image} {files[image]}" for image, _, _ in listed]),
        ("image_class_labels.txt", [f"{image} {label}" for image, label, _ in listed]),
        ("train_test_split.txt", [f"{image} {training}" for image, _, training in listed]),
        ("bounding_boxes.txt", [f"{image} {box[image]}" for image, _, _ in listed]),
    ):
        (root / file).write_text("\n".join(lines) + "\n")


def make_cifar10(root: Path, classes: int = 2, images: int = 4) -> Path:
    """Unpacked CIFAR-10 with ``images`` per file. Tests must disable the checksums of torchvision."""
    files = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    return _write_cifar(
        root / "cifar-10-batches-py", files, "batches.meta", "labels", "label_names", classes, images, root
    )


def make_cifar100(root: Path, classes: int = 2, images: int = 4) -> Path:
    """CIFAR-100 likewise."""
    return _write_cifar(
        root / "cifar-100-python", ["train", "test"], "meta", "fine_labels", "fine_label_names", classes, images, root
    )


def _write_cifar(
    folder: Path, files: list[str], meta: str, labels: str, names: str, classes: int, images: int, root: Path
) -> Path:
    rng = np.random.default_rng(0)
    folder.mkdir()
    for file in files:
        part = {"data": rng.integers(0, 256, (images, 3072), np.uint8), labels: [n % classes for n in range(images)]}
        (folder / file).write_bytes(pickle.dumps(part))
    (folder / meta).write_bytes(pickle.dumps({names: [f"class_{c}" for c in range(classes)]}))
    return root


def make_mnist(root: Path) -> Path:
    """MNIST as torchvision unpacks it: 240 and 60 digits of noise, row i of class i % 10.

    The first two pixels are a digit's row number (that of the test digits begins at 1,000) in base 200.
    """
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for half, first, count in (("train", 0, 240), ("t10k", 1000, 60)):
        images, rows = rng.integers(0, 256, (count, 28, 28), np.uint8), first + np.arange(count)
        images[:, 0, :2] = np.stack([rows // 200, rows % 200], axis=1)
        (folder / f"{half}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, count, 28, 28) + images.tobytes())
        (folder / f"{half}-labels-idx1-ubyte").write_bytes(
            struct.pack(">2i", 2049, count) + (rows % 10).astype(np.uint8).tobytes()
        )
    return root

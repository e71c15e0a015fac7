"""Published data sets, in the layouts that they are downloaded in: ImageNet, fMoW, CUB-200-2011, NABirds.

Each is split as its publishers say. Boxes of objects, where there are any, keep random crops from losing the object, and say where it is.

Example:
    >>> get_data("imagenet", root="/nowhere")
    Traceback (most recent call last):
    ...
    foveal.errors.DataError: /nowhere: there is no such file or folder; correct the path
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from foveal.data.augmentation import Augmentation
from foveal.data.dataset import ImageDataset, Reading, Resizing
from foveal.data.folder import assemble, existing, list_classes, list_images
from foveal.data.module import DATA_SETS, DataModule, get_data
from foveal.errors import DataError
from foveal.images import LeftOut
from foveal.images.walk import set_apart

__all__ = ["cub", "fmow", "get_data", "imagenet", "nabirds"]

FALSE_DETECTION = "false_detection"


@dataclass(frozen=True)
class LazyBoxes(Sequence[np.ndarray]):
    """Boxes that are read from one file an image, when they are asked for.

    Attributes:
        files: annotation file of each image.
        read: file to (k, 4) boxes.
    """

    files: Sequence[str]
    read: Callable[[str], np.ndarray]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i):  # type: ignore[override]
        return self.read(self.files[i])


# ---- ImageNet


@DATA_SETS.register
def imagenet(
    root: str, val_labels: str | None = None, annotations: str | None = None, augmentation: Augmentation = "light",
    image_size: int | None = None, kernels: Resizing = "bilinear",
) -> DataModule:  # fmt: skip
    """ImageNet ILSVRC-2012: training images and the 50,000 validation images; classes are WordNet ids in their order.

    Training images are expected in ``train/<wnid>/``, validation images in ``val/<wnid>/`` or all in ``val/``; both below the root or,
    as Kaggle packs them, below ``ILSVRC/Data/CLS-LOC``.

    Args:
        root: folder of the data set.
        val_labels: for a flat ``val`` folder, a file with a line ``image wnid`` for each; looked for if None: Kaggle's
            ``LOC_val_solution.csv``, then the unpacked devkit ``ILSVRC2012_devkit_t12``.
        annotations: folder of the training images' XML boxes, ``<wnid>/<image>.xml``, which random crops of the augmentation ``tnet``
            respect; looked for if None: ``Annotations/train``, ``ILSVRC/Annotations/CLS-LOC/train``. Images without a file have no box.
        augmentation: random changes to training images: ``light`` crops a little and mirrors, ``inception`` crops as is usual for ImageNet,
            ``tnet`` and ``tnet_birds`` do what TNet's paper does.
        image_size: resize whole images to this side first, without keeping their aspect ratio; None leaves them as they are.
        kernels: with ``image_size``, ``bilinear`` or ``tnet`` (one of eight kernels, drawn anew for each training image).

    Raises:
        DataError: a part of the data set is missing or malformed.
    """
    reading = Reading(augmentation, image_size=image_size, kernels=kernels)
    top = existing(root)
    images = top / "ILSVRC" / "Data" / "CLS-LOC" if (top / "ILSVRC").is_dir() else top
    left_out = LeftOut()
    by_class = list_classes(images / "train", left_out=left_out)
    classes = list(by_class)
    paths = [path for name in classes for path in by_class[name]]
    listings = {"train": (paths, np.repeat(np.arange(len(classes)), [len(by_class[name]) for name in classes]))}
    if (images / "val").is_dir():
        listings["val"] = _imagenet_val(top, images / "val", classes, val_labels, left_out)
    data = assemble(str(top), classes, listings, reading, notes=left_out.lines())
    notes = next(
        (f for f in (annotations, top / "Annotations" / "train", top / "ILSVRC/Annotations/CLS-LOC/train") if f and Path(f).is_dir()), None
    )
    if annotations is not None and notes != annotations:
        raise DataError(f"{annotations}: there is no such folder; give the one with a folder of XML files for each class, or leave it out")
    if notes is not None and isinstance(data.train, ImageDataset):
        files = [str(Path(notes, Path(path).parent.name, Path(path).stem + ".xml")) for path in paths]
        data.train.boxes = LazyBoxes(files, _voc_boxes)
    return data


def _imagenet_val(
    top: Path, folder: Path, classes: list[str], val_labels: str | None, left_out: LeftOut
) -> tuple[list[str], np.ndarray]:  # fmt: skip
    """(paths, targets) of the validation images; ``left_out`` counts what is there besides."""
    if any(entry.is_dir() and set_apart(entry.name) is None for entry in os.scandir(folder)):
        by_class = list_classes(folder, left_out=left_out)
        wnid_of = {path: name for name, paths in by_class.items() for path in paths}
        paths, source = list(wnid_of), folder
    else:
        paths = list_images(folder, left_out=left_out)
        solution, kit = top / "LOC_val_solution.csv", top / "ILSVRC2012_devkit_t12" / "data"
        if val_labels is not None or solution.is_file():
            source = existing(val_labels or solution)
            listed = (re.split(r"[\s,]+", line.strip())[:2] for line in _lines(source))
            labels = {pair[0].removesuffix(".JPEG"): pair[1] for pair in listed if len(pair) == 2}
        else:
            source = existing(kit / "ILSVRC2012_validation_ground_truth.txt")
            # The devkit's lines are in the order of the images' names.
            names = _devkit_names(kit)
            truth = [names.get(line.strip(), "") for line in _lines(source)]
            if len(truth) != len(paths):
                raise DataError(
                    f"{source}: it labels {len(truth)} images, but there are {len(paths)} in {folder}; unpack the archive again"
                )
            labels = {Path(path).stem: wnid for path, wnid in zip(paths, truth, strict=True)}
        wnid_of = {path: labels.get(Path(path).stem, "") for path in paths}
    code = {name: i for i, name in enumerate(classes)}
    strange = next((path for path in paths if wnid_of[path] not in code), None)
    if strange is not None:
        raise DataError(
            f"{strange}: its class ({wnid_of[strange] or f'not in {source}'}) is none of those in the train folder; complete the data set"
        )
    return paths, np.array([code[wnid_of[path]] for path in paths], dtype=np.int64)


def _devkit_names(kit: Path) -> dict[str, str]:
    """The devkit's class number to WordNet id."""
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise DataError(f"{kit}: reading the devkit takes SciPy; run pip install scipy, or give val_labels") from error
    synsets = loadmat(existing(kit / "meta.mat"), squeeze_me=True)["synsets"]
    return {str(int(row["ILSVRC2012_ID"])): str(row["WNID"]) for row in synsets if int(row["num_children"]) == 0}


def _voc_boxes(file: str) -> np.ndarray:
    """Boxes of a Pascal VOC annotation; none where there is no file."""
    if not Path(file).exists():
        return np.empty((0, 4))
    try:
        bounds = ElementTree.parse(file).iter("bndbox")
        boxes = [[float(b.findtext(name, "")) for name in ("ymin", "xmin", "ymax", "xmax")] for b in bounds]
    except (ElementTree.ParseError, ValueError) as error:
        raise DataError(f"{file}: this is not an annotation with boxes ({error}); unpack it again or remove it") from error
    return np.array(boxes).reshape(-1, 4)


# ---- fMoW


@DATA_SETS.register
def fmow(
    root: str, false_detection: bool = False, crop_boxes: bool = False, shorter_side: int | None = None,
    augmentation: Augmentation = "light", image_size: int | None = None, kernels: Resizing = "bilinear",
) -> DataModule:  # fmt: skip
    """Functional Map of the World, the RGB version: satellite images of places, 62 classes.

    Expected below the root: ``train/<class>/<place>/<place>_<n>_rgb.jpg`` with a JSON file beside each, ``val`` alike; for the test
    images either ``test/<number>/<number>_<n>_rgb.jpg`` with ``test_gt/`` and ``test_gt_mapping.json`` (of the archive ``groundtruth``),
    or a ``test`` folder with class folders, or ``test_gt`` with images. Multispectral renderings (``_msrgb``) are passed over.

    Args:
        root: folder of the data set.
        false_detection: keep the class ``false_detection``, the 63rd.
        crop_boxes: one sample for each box instead of each image: the box with its context; reads every JSON file first.
        shorter_side: with ``image_size``, make images smaller until their shorter side is this at most, before anything else.
        augmentation: random changes to training images: ``light`` crops a little and mirrors, ``inception`` crops as is usual for ImageNet,
            ``tnet`` and ``tnet_birds`` do what TNet's paper does.
        image_size: resize whole images (or boxes) to this side first, without keeping their aspect ratio; None leaves them as they are.
        kernels: with ``image_size``, ``bilinear`` or ``tnet`` (one of eight kernels, drawn anew for each training image).

    Raises:
        DataError: a part of the data set is missing or malformed.
    """
    reading = Reading(augmentation, image_size=image_size, kernels=kernels, shorter_side=shorter_side)
    top = existing(root)
    places = {split: list(_fmow_images(top, split)) for split in ("train", "val", "test")}
    if not places["train"]:
        raise DataError(
            f"{top / 'train'}: there are no *_rgb.jpg images in class folders; give the folder that holds train, val and test of fMoW-rgb"
        )
    classes = tuple(sorted({place.category for place in places["train"]} - (set() if false_detection else {FALSE_DETECTION})))
    splits = {}
    for split, found in places.items():
        if samples := [place for place in found if place.category in classes]:
            read = reading if split == "train" else reading.plain()
            splits[split] = _fmow_boxes(samples, classes, read) if crop_boxes else _fmow_whole(samples, classes, read)
    return DataModule(classes, name=str(top), **splits)


@dataclass(frozen=True)
class _Place:
    """An image of fMoW, the JSON file that describes it, and the class of the folder."""

    image: str
    note: str
    category: str


def _fmow_images(top: Path, split: str) -> Iterator[_Place]:
    """The images of a split, sorted."""
    mapping = top / "test_gt_mapping.json"
    folder = top / split
    if split == "test" and mapping.is_file() and folder.is_dir():
        try:
            pairs = [(entry["input"], entry["output"]) for entry in json.loads(mapping.read_text())]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{mapping}: this is not the mapping of test images to their truth; unpack the archive groundtruth again"
            ) from error
        for truth, place in sorted(pairs):
            if not (top / place).is_dir():
                raise DataError(
                    f"{top / place}: this folder of test images, named in {mapping.name}, is missing; unpack the test archive again"
                )
            for image in list_images(top / place, ("_rgb.jpg",)):
                name = Path(image).stem.replace(Path(place).name, Path(truth).name, 1)
                yield _Place(image, str(top / truth / f"{name}.json"), Path(truth).parent.name)
        return
    if split == "test" and not folder.is_dir():
        folder = top / "test_gt"
    if folder.is_dir():
        for category in sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and set_apart(entry.name) is None):
            if split == "test" and category.isdigit():
                raise DataError(
                    f"{mapping}: this file is missing, and with it the labels of the test images; unpack the archive groundtruth there"
                )
            for image in list_images(folder / category, ("_rgb.jpg",)):
                yield _Place(image, image.removesuffix(".jpg") + ".json", category)


def _fmow_whole(places: list[_Place], classes: tuple[str, ...], reading: Reading) -> ImageDataset:
    """One sample an image."""
    boxes = LazyBoxes([place.note for place in places], _fmow_note_boxes)
    return ImageDataset([p.image for p in places], [classes.index(p.category) for p in places], classes, reading=reading, boxes=boxes)


def _fmow_boxes(places: list[_Place], classes: tuple[str, ...], reading: Reading) -> ImageDataset:
    """One sample a box."""
    with ThreadPoolExecutor() as pool:
        notes = list(pool.map(_fmow_note, [place.note for place in places]))
    paths, targets, regions = [], [], []
    for place, (size, boxes) in zip(places, notes, strict=True):
        for category, box in boxes:
            if min(box[2:]) > 2 and (category or place.category) in classes:
                paths.append(place.image)
                targets.append(classes.index(category or place.category))
                regions.append(with_context(box, size))
    return ImageDataset(paths, targets, classes, reading=reading, regions=np.array(regions, dtype=np.float64))


def with_context(box: tuple[float, float, float, float], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """A box of fMoW with the context that its baseline adds, the more the smaller the box; clipped to the image.

    Args:
        box: (x, y, width, height), as fMoW writes it.
        size: (height, width) of the image.

    Returns:
        (y0, x0, y1, x1).
    """
    sides = []
    for start, length, whole in ((box[1], box[3], size[0]), (box[0], box[2], size[1])):
        share = length / whole
        extra = next(m for limit, m in ((0.5, 0.15), (0.4, 0.2), (0.3, 0.3), (0.2, 0.5), (0.1, 1.0), (0.0, 2.0)) if share >= limit)
        half = int(extra * length / 2)
        sides.append((max(0, int(start) - half), min(whole, int(start + length) + half)))
    (y0, y1), (x0, x1) = sides
    return y0, x0, y1, x1


def _fmow_note(file: str) -> tuple[tuple[int, int], list[tuple[str | None, tuple[float, float, float, float]]]]:
    """(height, width) and the (category, (x, y, width, height)) boxes of an image; those with the number -1 stand for nothing."""
    try:
        note = json.loads(Path(file).read_text())
        boxes = note["bounding_boxes"]
        boxes = boxes if isinstance(boxes, list) else [boxes]
        size = int(note["img_height"]), int(note["img_width"])
        return size, [(b.get("category"), tuple(map(float, b["box"]))) for b in boxes if b.get("ID") != -1]  # type: ignore[misc]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file}: this is not a description of an fMoW image ({error}); unpack it again") from error


def _fmow_note_boxes(file: str) -> np.ndarray:
    """(k, 4) boxes of an image."""
    boxes = np.array([box for _, box in _fmow_note(file)[1]]).reshape(-1, 4)
    return np.stack([boxes[:, 1], boxes[:, 0], boxes[:, 1] + boxes[:, 3], boxes[:, 0] + boxes[:, 2]], axis=1)


# ---- Birds


@DATA_SETS.register
def cub(
    root: str,
    val_fraction: float = 0.0,
    seed: int = 0,
    augmentation: Augmentation = "light",
    image_size: int | None = None,
    kernels: Resizing = "bilinear",
) -> DataModule:
    """Caltech-UCSD Birds-200-2011: 5,994 training and 5,794 test images of 200 kinds of birds.

    Args:
        root: folder with ``images.txt`` and the others, or the one that holds it as ``CUB_200_2011``.
        val_fraction: share of each class's training images to keep for validation; none, as published, by default.
        seed: decides which images are kept for validation.
        augmentation: random changes to training images: ``light`` crops a little and mirrors, ``inception`` crops as is usual for ImageNet,
            ``tnet`` and ``tnet_birds`` do what TNet's paper does.
        image_size: resize whole images to this side first, without keeping their aspect ratio; None leaves them as they are.
        kernels: with ``image_size``, ``bilinear`` or ``tnet`` (one of eight kernels, drawn anew for each training image).

    Raises:
        DataError: a part of the data set is missing or malformed.
    """
    return _birds(root, "CUB_200_2011", Reading(augmentation, image_size=image_size, kernels=kernels), val_fraction, seed)


@DATA_SETS.register
def nabirds(
    root: str,
    val_fraction: float = 0.0,
    seed: int = 0,
    augmentation: Augmentation = "light",
    image_size: int | None = None,
    kernels: Resizing = "bilinear",
) -> DataModule:
    """NABirds: 23,929 training and 24,633 test images of 555 kinds of birds, plumages apart.

    Args:
        root: folder with ``images.txt`` and the others, or the one that holds it as ``nabirds``.
        val_fraction: share of each class's training images to keep for validation; none, as published, by default.
        seed: decides which images are kept for validation.
        augmentation: random changes to training images: ``light`` crops a little and mirrors, ``inception`` crops as is usual for ImageNet,
            ``tnet`` and ``tnet_birds`` do what TNet's paper does.
        image_size: resize whole images to this side first, without keeping their aspect ratio; None leaves them as they are.
        kernels: with ``image_size``, ``bilinear`` or ``tnet`` (one of eight kernels, drawn anew for each training image).

    Raises:
        DataError: a part of the data set is missing or malformed.
    """
    return _birds(root, "nabirds", Reading(augmentation, image_size=image_size, kernels=kernels), val_fraction, seed)


def _birds(root: str, inner: str, reading: Reading, val_fraction: float, seed: int) -> DataModule:
    """The layout that both share: five tables of ``image value`` lines and a folder of images."""
    top = existing(root)
    top = top / inner if not (top / "images.txt").exists() and (top / inner).is_dir() else top
    files, labels, training, bounds = (
        _table(top / f"{name}.txt") for name in ("images", "image_class_labels", "train_test_split", "bounding_boxes")
    )
    used = sorted(set(labels.values()), key=lambda label: (len(label), label))
    names = _table(top / "classes.txt")
    # Only leaves of NABirds' hierarchy have images; different leaves may bear one name.
    named = [names.get(label, label) for label in used]
    classes = [f"{name} ({label})" if named.count(name) > 1 else name for name, label in zip(named, used, strict=True)]
    code = {label: i for i, label in enumerate(used)}
    rows: dict[str, list[str]] = {"train": [], "test": []}
    for image in files:
        if image not in labels or image not in training:
            raise DataError(f"{top / 'images.txt'}: the image {image} has no label or split; unpack the archive again")
        rows["train" if training[image] == "1" else "test"].append(image)
    listings = {
        split: (
            [str(top / "images" / files[image]) for image in images],
            np.array([code[labels[image]] for image in images], dtype=np.int64),
        )
        for split, images in rows.items()
        if images
    }
    data = assemble(str(top), classes, listings, reading, val_fraction, seed)
    box_of = {str(top / "images" / files[image]): bounds[image] for image in files if image in bounds}
    for split in (data.train, data.val, data.test):
        if isinstance(split, ImageDataset):
            split.boxes = [_xywh(box_of.get(split.path(i), "")) for i in range(len(split))]
    return data


def _xywh(text: str) -> np.ndarray:
    """(1, 4) box of an ``x y width height`` text; (0, 4) of an empty one."""
    x, y, w, h = map(float, text.split()) if text else (0.0, 0.0, 0.0, 0.0)
    return np.array([[y, x, y + h, x + w]])[: bool(text)]


def _table(path: Path) -> dict[str, str]:
    """Lines of ``key the rest``."""
    return dict(line.strip().split(" ", 1) for line in _lines(existing(path)) if " " in line.strip())


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()

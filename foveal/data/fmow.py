"""Functional Map of the World (fMoW), the RGB version.

Example:
    >>> with_context((10, 10, 40, 40), (100, 100))
    (6, 6, 54, 54)
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from foveal.data.annotations import LazyBoxes
from foveal.data.augmentation import Augmentation
from foveal.data.dataset import ImageDataset, Reading, Resizing
from foveal.data.folder import existing, list_images
from foveal.data.module import DATA_SETS, DataModule
from foveal.data.options import document_options
from foveal.errors import DataError
from foveal.images.walk import set_apart

FALSE_DETECTION = "false_detection"


@DATA_SETS.register
@document_options()
def fmow(
    root: str,
    false_detection: bool = False,
    crop_boxes: bool = False,
    shorter_side: int | None = None,
    augmentation: Augmentation = "light",
    image_size: int | None = None,
    kernels: Resizing = "bilinear",
) -> DataModule:
    """Functional Map of the World, RGB: satellite images of places in 62 classes.

    Images are in ``train/<class>/<place>/<place>_<n>_rgb.jpg`` with a JSON file beside each, and likewise in ``val``.
    Test images are in ``test/<number>/<number>_<n>_rgb.jpg`` with the archive ``groundtruth`` (``test_gt/`` and
    ``test_gt_mapping.json``), or in class folders in ``test`` or ``test_gt``. Multispectral images (``_msrgb``) are
    ignored.

    Args:
        false_detection: keep the class ``false_detection``, the 63rd.
        crop_boxes: make one sample of each box, cropped with some context, instead of one of each image. Reads all JSON
            files first.
        shorter_side: with ``image_size``: first reduce images until their shorter side is at most this.

    Raises:
        DataError: a part of the data set is missing or malformed.
    """
    reading = Reading(augmentation, image_size=image_size, kernels=kernels, shorter_side=shorter_side)
    top = existing(root)
    places = {split: list(_fmow_images(top, split)) for split in ("train", "val", "test")}
    if not places["train"]:
        raise DataError(
            f"{top / 'train'}: there are no *_rgb.jpg images in class folders; give the folder that holds train, val "
            "and test"
        )
    classes = tuple(
        sorted({place.category for place in places["train"]} - (set() if false_detection else {FALSE_DETECTION}))
    )
    splits = {}
    for split, found in places.items():
        if samples := [place for place in found if place.category in classes]:
            read = reading if split == "train" else reading.plain()
            splits[split] = _fmow_boxes(samples, classes, read) if crop_boxes else _fmow_whole(samples, classes, read)
    return DataModule(classes, name=str(top), **splits)


@dataclass(frozen=True)
class _Place:
    """An image, its JSON file, and the class of its folder."""

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
                f"{mapping}: this is not the mapping of test images to their labels; unpack the archive groundtruth "
                "again"
            ) from error
        for truth, place in sorted(pairs):
            if not (top / place).is_dir():
                raise DataError(
                    f"{top / place}: this folder of test images, named in {mapping.name}, is missing; unpack the test "
                    "archive again"
                )
            for image in list_images(top / place, ("_rgb.jpg",)):
                name = Path(image).stem.replace(Path(place).name, Path(truth).name, 1)
                yield _Place(image, str(top / truth / f"{name}.json"), Path(truth).parent.name)
        return
    if split == "test" and not folder.is_dir():
        folder = top / "test_gt"
    if folder.is_dir():
        for category in sorted(
            entry.name for entry in os.scandir(folder) if entry.is_dir() and set_apart(entry.name) is None
        ):
            if split == "test" and category.isdigit():
                raise DataError(
                    f"{mapping}: this file is missing; unpack the archive groundtruth, which labels the test images"
                )
            for image in list_images(folder / category, ("_rgb.jpg",)):
                yield _Place(image, image.removesuffix(".jpg") + ".json", category)


def _fmow_whole(places: list[_Place], classes: tuple[str, ...], reading: Reading) -> ImageDataset:
    """One sample per image."""
    boxes = LazyBoxes([place.note for place in places], _fmow_note_boxes)
    return ImageDataset(
        [p.image for p in places], [classes.index(p.category) for p in places], classes, reading=reading, boxes=boxes
    )


def _fmow_boxes(places: list[_Place], classes: tuple[str, ...], reading: Reading) -> ImageDataset:
    """One sample per box."""
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
    """Add context to a box of fMoW as its baseline does: smaller boxes get more. The result is clipped to the image.

    Args:
        box: (x, y, width, height).
        size: (height, width) of the image.

    Returns:
        (y0, x0, y1, x1).
    """
    sides = []
    for start, length, whole in ((box[1], box[3], size[0]), (box[0], box[2], size[1])):
        share = length / whole
        extra = next(
            m
            for limit, m in ((0.5, 0.15), (0.4, 0.2), (0.3, 0.3), (0.2, 0.5), (0.1, 1.0), (0.0, 2.0))
            if share >= limit
        )
        half = int(extra * length / 2)
        sides.append((max(0, int(start) - half), min(whole, int(start + length) + half)))
    (y0, y1), (x0, x1) = sides
    return y0, x0, y1, x1


def _fmow_note(file: str) -> tuple[tuple[int, int], list[tuple[str | None, tuple[float, float, float, float]]]]:
    """(height, width) and (category, (x, y, width, height)) boxes of an image. Boxes with the ID -1 are dummies."""
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

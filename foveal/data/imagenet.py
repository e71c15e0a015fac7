"""ImageNet, ILSVRC-2012.

Example:
    >>> imagenet(root="/nowhere")
    Traceback (most recent call last):
    ...
    foveal.errors.DataError: /nowhere: there is no such file or folder; correct the path
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from foveal.data.annotations import LazyBoxes, read_lines
from foveal.data.augmentation import Augmentation
from foveal.data.dataset import ImageDataset, Reading, Resizing
from foveal.data.folder import assemble, existing, list_classes, list_images
from foveal.data.module import DATA_SETS, DataModule
from foveal.data.options import document_options
from foveal.errors import DataError
from foveal.images import LeftOut
from foveal.images.walk import set_apart


@DATA_SETS.register
@document_options()
def imagenet(
    root: str,
    val_labels: str | None = None,
    annotations: str | None = None,
    augmentation: Augmentation = "light",
    image_size: int | None = None,
    kernels: Resizing = "bilinear",
) -> DataModule:
    """ImageNet ILSVRC-2012: the training images and the 50,000 validation images of 1,000 classes.

    Training images are in ``train/<wnid>/``. Validation images are in ``val/<wnid>/`` or directly in ``val/``. Both
    folders are in the root or, as in Kaggle's archive, in ``ILSVRC/Data/CLS-LOC``. Classes are WordNet ids in sorted
    order.

    Args:
        val_labels: file with a line ``image wnid`` per image, for a ``val`` folder without class folders. None looks
            for Kaggle's ``LOC_val_solution.csv``, then for the unpacked devkit ``ILSVRC2012_devkit_t12``.
        annotations: folder of XML files with boxes of the training images, ``<wnid>/<image>.xml``; the augmentation
            ``tnet`` crops around these boxes. None looks for ``Annotations/train``, then
            ``ILSVRC/Annotations/CLS-LOC/train``. Images without a file have no box.

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
        (
            f
            for f in (annotations, top / "Annotations" / "train", top / "ILSVRC/Annotations/CLS-LOC/train")
            if f and Path(f).is_dir()
        ),
        None,
    )
    if annotations is not None and notes != annotations:
        raise DataError(
            f"{annotations}: there is no such folder; give the folder of class folders of XML files, or leave it out"
        )
    if notes is not None and isinstance(data.train, ImageDataset):
        files = [str(Path(notes, Path(path).parent.name, Path(path).stem + ".xml")) for path in paths]
        data.train.boxes = LazyBoxes(files, _voc_boxes)
    return data


def _imagenet_val(
    top: Path, folder: Path, classes: list[str], val_labels: str | None, left_out: LeftOut
) -> tuple[list[str], np.ndarray]:
    """(paths, targets) of the validation images; ``left_out`` collects other files."""
    if any(entry.is_dir() and set_apart(entry.name) is None for entry in os.scandir(folder)):
        by_class = list_classes(folder, left_out=left_out)
        wnid_of = {path: name for name, paths in by_class.items() for path in paths}
        paths, source = list(wnid_of), folder
    else:
        paths = list_images(folder, left_out=left_out)
        solution, kit = top / "LOC_val_solution.csv", top / "ILSVRC2012_devkit_t12" / "data"
        if val_labels is not None or solution.is_file():
            source = existing(val_labels or solution)
            listed = (re.split(r"[\s,]+", line.strip())[:2] for line in read_lines(source))
            labels = {pair[0].removesuffix(".JPEG"): pair[1] for pair in listed if len(pair) == 2}
        else:
            source = existing(kit / "ILSVRC2012_validation_ground_truth.txt")
            # The devkit lists labels in the order of the image names.
            names = _devkit_names(kit)
            truth = [names.get(line.strip(), "") for line in read_lines(source)]
            if len(truth) != len(paths):
                raise DataError(
                    f"{source}: it labels {len(truth)} images, but there are {len(paths)} in {folder}; unpack the "
                    "archive again"
                )
            labels = {Path(path).stem: wnid for path, wnid in zip(paths, truth, strict=True)}
        wnid_of = {path: labels.get(Path(path).stem, "") for path in paths}
    code = {name: i for i, name in enumerate(classes)}
    unknown = next((path for path in paths if wnid_of[path] not in code), None)
    if unknown is not None:
        raise DataError(
            f"{unknown}: its class ({wnid_of[unknown] or f'not in {source}'}) is not in the train folder; complete "
            "the data set"
        )
    return paths, np.array([code[wnid_of[path]] for path in paths], dtype=np.int64)


def _devkit_names(kit: Path) -> dict[str, str]:
    """WordNet id of each class number of the devkit."""
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise DataError(f"{kit}: the devkit needs SciPy; run pip install scipy, or give val_labels") from error
    synsets = loadmat(existing(kit / "meta.mat"), squeeze_me=True)["synsets"]
    return {str(int(row["ILSVRC2012_ID"])): str(row["WNID"]) for row in synsets if int(row["num_children"]) == 0}


def _voc_boxes(file: str) -> np.ndarray:
    """(k, 4) boxes of a Pascal VOC annotation; (0, 4) if there is no file."""
    if not Path(file).exists():
        return np.empty((0, 4))
    try:
        bounds = ElementTree.parse(file).iter("bndbox")
        boxes = [[float(b.findtext(name, "")) for name in ("ymin", "xmin", "ymax", "xmax")] for b in bounds]
    except (ElementTree.ParseError, ValueError) as error:
        raise DataError(
            f"{file}: this is not an annotation with boxes ({error}); unpack it again or remove it"
        ) from error
    return np.array(boxes).reshape(-1, 4)

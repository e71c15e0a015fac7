"""Writing an exported model: its parts, its card, calibration, and the comparison with the model.

Example:
    >>> import foveal
    >>> model = foveal.create_classifier("test_resnet", num_classes=2, image_size=32)
    >>> make_card(model, "onnx", "fp32")["parts"]["network"]["inputs"]
    {'look': [3, 32, 32]}
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from foveal.card import facts
from foveal.choices import EXPORT_FORMATS, EXPORT_PRECISIONS
from foveal.data import DataModule
from foveal.errors import ConfigError, ImageError, RunError
from foveal.export.formats import SUFFIXES, write
from foveal.files import locked, storing
from foveal.glimpse.base import GlimpseClassifier, Part
from foveal.images import ImageViews, LeftOut, TensorViews, Views
from foveal.prediction import Predictor
from foveal.prediction.output import find_named
from foveal.prediction.predictor import Model
from foveal.runs import CARD as RUN_CARD
from foveal.runs import WEIGHTS, Run, load
from foveal.runtime.adapter import ViewImages, answer_of
from foveal.runtime.card import CARD, VERSION, card_error, is_exported, read_card, sha256
from foveal.runtime.engines import Callables, Files
from foveal.runtime.loops import loop_of

_logger = logging.getLogger(__name__)

TOLERANCE = 1e-4
"""Largest difference of a logit in fp32, relative to the largest logit if that is above 1."""

SAME_LABELS = 0.95
"""Least share of the calibration images that int8 may give the label of the model without a warning."""

RESAMPLING = (
    "A look is cut from the image at its box and resampled to `size`, {how}. Values are scaled from `value_range`, or "
    "from the range of the integer type, to 0 and 1. Pixels outside the image have the value `mean`. The parts "
    "normalise."
)
ANTIALIASED = (
    "antialiased: first averaged by the largest power of two that leaves a pixel for each output pixel, then bilinear "
    "with a triangle filter of two output pixels' width"
)
PLAIN = "bilinear without antialiasing, half-pixel centres"


def export(
    model: Model,
    *,
    format: str = "onnx",
    precision: str = "fp32",
    out: str | Path | None = None,
    calibration: DataModule | Sequence[Any] | str | Path | None = None,
    images: int = 64,
    licence: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Export a model.

    Args:
        model: run folder, classifier or dense network.
        format: ``onnx``, ``openvino`` or ``torch``.
        precision: ``fp32``; ``fp16``, weights of half the size; or ``int8``, quantised by NNCF.
        out: folder to write; ``exported/FORMAT-PRECISION`` in the run folder if None.
        calibration: for int8: a data set, whose training images are used without augmentation, or images, as
            `foveal.predict` takes them. The networks are calibrated on the looks that the model takes at them.
        images: largest number of them.
        licence: licence of the weights, for the card.
        overwrite: replace an exported model that is there.

    Returns:
        The folder.

    Raises:
        ConfigError: the model cannot be exported, an argument is invalid, or a package is missing.
        RunError: the run folder cannot be loaded; or the exported model gives other results.
    """
    for name, value, known in (
        ("format", format, EXPORT_FORMATS),
        ("precision", precision, EXPORT_PRECISIONS),
    ):
        if value not in known:
            raise ConfigError(f"`{name}` {value}: is not known; use one of {', '.join(known)}")
    if (format, precision) == ("torch", "int8"):
        raise ConfigError("`precision` int8: is not written as torch; use onnx or openvino")
    run = Run(model) if isinstance(model, str | Path) else model if isinstance(model, Run) else None
    if out is None and run is None:
        raise ConfigError("`out`: is missing; give the folder to write")
    folder = Path(out) if out is not None else run.path / "exported" / f"{format}-{precision}"  # type: ignore[union-attr]
    _check_free(folder, overwrite)
    predictor = Predictor(model, device="cpu")
    parts = predictor.model.parts()  # before any work: it says if the model cannot be exported
    classifier = predictor.folded().model
    parts = classifier.parts()
    card = make_card(classifier, format, precision, run, licence)
    card |= {"loop": parts.loop, "options": parts.options}
    seen = _calibration(predictor, card, parts.parts, calibration, images) if precision == "int8" else {}
    with storing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
    taken = f"{folder}: another export writes there; wait for its end, or choose another `out`"
    with locked(folder.with_name(f".{folder.name}.lock"), taken):
        _write(classifier, card, parts.parts, folder, seen, lambda: _views(predictor, calibration), images)
    return folder


def _write(
    model: GlimpseClassifier,
    card: dict[str, Any],
    parts: dict[str, Part],
    folder: Path,
    seen: dict[str, list[dict[str, np.ndarray]]],
    views: Callable[[], Iterable[Views]],
    most: int,
) -> None:
    """Write the folder under another name, check it, and rename it.

    Args:
        model, card: the model, and what is known about it.
        parts: its networks.
        folder: the folder.
        seen: inputs of each part for the calibration of int8.
        views: gives the calibration images.
        most: largest number of them.
    """
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    with storing(folder):
        shutil.rmtree(unfinished, ignore_errors=True)  # of a killed export
        unfinished.mkdir()
    try:
        with storing(folder):
            for name, part in parts.items():
                file = unfinished / f"{name}{SUFFIXES[card['format']]}"
                files = write(part, file, card["format"], card["precision"], seen.get(name, []))
                card["parts"][name]["files"] = {file.name: sha256(file) for file in files}
        card["parity"] = check_parity(model, card, unfinished)
        if seen:
            card["parity"] |= _same_labels(model, card, unfinished, views(), most)
        with storing(folder):
            text = json.dumps(card, indent=2) + "\n"
            (unfinished / CARD).write_text(text)
            _replace(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def for_engine(model: Any, engine: str) -> Any:
    """A model that an engine runs, for prediction.

    Args:
        model: an exported folder, a run folder, or anything else that `foveal.predict` takes. A run folder is exported
            into its folder ``exported``, unless that holds the same model already.
        engine: ``torch``, ``onnx`` or ``openvino``.

    Raises:
        ConfigError, RunError: see `export` and `foveal.load`.
    """
    if is_exported(model):
        return load(model, engine=engine)
    if engine == "torch":
        return model
    run = Run(model)
    folder = run.path / "exported" / f"{engine}-fp32"
    if not is_exported(folder) or read_card(folder).get("about", {}).get("run") != _digest(run):
        export(run, format=engine, overwrite=True)
    return load(folder)


def _digest(run: Run) -> str:
    """Digest of the model of a run folder: its weights and its card."""
    return "".join(sha256(run.file(name))[:32] for name in (WEIGHTS, RUN_CARD))


def _check_free(folder: Path, overwrite: bool) -> None:
    """Check that the folder may be written."""
    if not folder.exists():
        return
    if not overwrite:
        raise ConfigError(f"{folder}: is there already; choose another `out`, or replace it with `overwrite`")
    if not (folder / CARD).is_file():
        raise ConfigError(f"{folder}: is no exported model, so it is not replaced; choose another `out`")


def _replace(new: Path, folder: Path) -> None:
    """Rename a folder; a folder of that name is removed."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


# ------------------------------------------------------------------------------------------------------------ the card


def make_card(
    model: GlimpseClassifier, format: str, precision: str, run: Run | None = None, licence: str | None = None
) -> dict[str, Any]:
    """The card of a model, see `foveal.runtime.card.Card`, without the files of its parts."""
    from foveal import __version__

    parts = model.parts()
    card: dict[str, Any] = {
        "version": VERSION,
        "foveal": __version__,
        "format": format,
        "precision": precision,
        "loop": parts.loop,
        "options": parts.options,
        "model": {key: value for key, value in model.spec.items() if not key.endswith("pretrained")},
        "num_classes": model.num_classes,
        "class_names": list(model.class_names),
        "task": model.task.name,
        "thresholds": [list(pair) for pair in model.task.thresholds],
        "locations": list(model.locations),
        "policy": model.usual_policy,
        "policies": [
            name for name in model.policies if name in ("greedy", "sampled", "random", "centre", "exhaustive")
        ],
        "most_levels": model.most_levels,
        "most_cells": model.most_cells,
        "channels": model.channels,
        "size": list(model.size),
        "mean": model.mean.tolist(),
        "std": model.std.tolist(),
        "value_range": getattr(model, "value_range", None),
        "image_size": getattr(model, "image_size", None),
        "shorter_side": getattr(model, "shorter_side", None),
        "squash": model.squash,
        "antialias": model.antialias,
        "crop": model.crop,
        "resampling": RESAMPLING.format(how=ANTIALIASED if model.antialias else PLAIN),
        "parts": {name: _described(part) for name, part in parts.parts.items()},
        "about": {"class": type(model).__name__} | ({} if run is None else {"run": _digest(run)}),
        "licence": licence,
        "metrics": {} if run is None else _metrics(run),
    }
    return json.loads(json.dumps(card))


def _described(part: Part) -> dict[str, Any]:
    """Inputs, outputs and cost of a part."""
    counter = FlopCounterMode(display=False)
    given = list(part.inputs.values())
    with torch.no_grad(), counter:
        outputs = part.network(*given)
    return {
        "files": {},
        "inputs": {name: list(value.shape[part.free :]) for name, value in part.inputs.items()},
        "outputs": {name: list(value.shape[part.free :]) for name, value in zip(part.outputs, outputs, strict=True)},
        "macs": counter.get_total_flops() // 2 // int(np.prod(given[0].shape[: part.free])),
    }


def _metrics(run: Run) -> dict[str, Any]:
    """The outcome of training and evaluation, as in the model card."""
    told = facts(run)
    return {key: told[key] for key in ("training", "evaluation") if told[key]}


# --------------------------------------------------------------------------------------------------------- calibration


def _calibration(
    predictor: Predictor,
    card: dict[str, Any],
    parts: dict[str, Part],
    given: DataModule | Sequence[Any] | str | Path | None,
    most: int,
) -> dict[str, list[dict[str, np.ndarray]]]:
    """Inputs of each part while the model looks at calibration images, one after another."""
    seen: dict[str, list[dict[str, np.ndarray]]] = {name: [] for name in parts}
    loop = loop_of(card, eager(parts, lambda name, inputs: seen[name].append(inputs)))
    used, problem = 0, None
    for one in _views(predictor, given):
        before = {name: len(inputs) for name, inputs in seen.items()}
        loop(ViewImages(one), tuple(card["locations"]))
        if one.errors:  # of a damaged image, whose looks are blank
            seen = {name: inputs[: before[name]] for name, inputs in seen.items()}
            problem = next(iter(one.errors.values()))
            _logger.warning("%s; it is left out of the calibration", problem)
        elif (used := used + 1) == most:
            break
    if not used:
        why = f"can be read in none of its images ({problem})" if problem else "has no images"
        raise ConfigError(f"`calibration`: {why}; give some of the kind that the model was trained on")
    return seen


def _views(predictor: Predictor, given: DataModule | Sequence[Any] | str | Path | None) -> Iterable[Views]:
    """The calibration images, one by one."""
    if given is None:
        raise ConfigError("`calibration`: is missing; give images for int8, like those of training")
    if isinstance(given, DataModule):
        plain = replace(given, train=given.split("train").plain())
        return (batch.views for batch in plain.loader("train", batch_size=1, shuffle=True))
    return _opened(predictor, find_named([given] if isinstance(given, str | Path) else given, LeftOut()))


def _opened(predictor: Predictor, images: Iterable[Any]) -> Iterator[Views]:
    """Views of the images that can be opened, one by one.

    Raises:
        ImageError: none can be opened; it is the error of the last one.
    """
    opened, last = 0, None
    for image in images:
        try:
            if image.error is not None:
                raise ImageError(image.error)
            view = predictor.open(image.image, image.path)
        except ImageError as error:
            _logger.warning("%s; it is left out of the calibration", error)
            last = error
        else:
            opened += 1
            yield ImageViews([view])
    if not opened and last is not None:
        raise last


def eager(parts: dict[str, Part], watch: Any = None) -> Callables:
    """The parts of a model as an engine that runs them in torch, as they are.

    Args:
        parts: see `foveal.glimpse.base.GlimpseClassifier.parts`.
        watch: called with the name and the inputs of a part, before each run.
    """

    def made(name: str, part: Part) -> tuple[Any, dict[str, list[int]]]:
        def run(**inputs: np.ndarray) -> dict[str, np.ndarray]:
            if watch is not None:
                watch(name, inputs)
            with torch.inference_mode():
                given = [torch.tensor(inputs[key]) for key in part.inputs]
                given = [one.contiguous(memory_format=torch.channels_last) if one.ndim == 4 else one for one in given]
                return {key: value.numpy() for key, value in zip(part.outputs, part.network(*given), strict=True)}

        return run, _described(part)["outputs"]

    return Callables({name: made(name, part) for name, part in parts.items()})


# -------------------------------------------------------------------------------------------------------------- parity


def check_parity(model: GlimpseClassifier, card: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Compare an exported model with the model, on two images of noise.

    Returns:
        The largest difference of a logit, relative to the largest logit if that is above 1, and whether the looks are
        the same.

    Raises:
        RunError: they differ in fp32.
    """
    if fault := card_error(card):
        raise RunError(f"{folder}: {fault}; this is a fault of foveal, please report it")
    noise = np.random.default_rng(0).integers(0, 256, (2, model.channels, 4, 6), dtype=np.uint8)
    side = max(64, 2 * model.size[0])
    large = torch.from_numpy(noise).float().div(255)
    views = TensorViews(torch.nn.functional.interpolate(large, (side, side + side // 4), mode="bilinear"))
    with torch.inference_mode():
        expected = model(views)
    found = answer_of(loop_of(card, Files(folder, card))(ViewImages(views), tuple(model.resolve_locations(None))))
    scale = max(1.0, float(expected.logits.abs().max()))
    differs = float((found.logits - expected.logits).abs().max()) / scale
    same = np.array_equal(found.glimpses.box, expected.glimpses.box)
    if card["precision"] == "fp32" and not (differs <= TOLERANCE and same):
        raise RunError(
            f"{model.label}: as {card['format']} it gives other logits (by {differs:.2g}) or looks; use "
            "another format, and report it"
        )
    return {"logits": differs, "looks": bool(same)}


def _same_labels(
    model: GlimpseClassifier, card: dict[str, Any], folder: Path, views: Iterable[Views], most: int
) -> dict[str, int]:
    """The number of calibration images, and of those that get the label of the model. Warns if these are few."""
    loop, images, same = loop_of(card, Files(folder, card)), 0, 0
    for one in views:
        with torch.inference_mode():
            seen = model(one), answer_of(loop(ViewImages(one), tuple(model.resolve_locations(None))))
        if one.errors:
            continue
        expected, found = (model.task.decide(model.task.probabilities(answer.logits)) for answer in seen)
        images, same = images + 1, same + bool(torch.equal(expected, found))
        if images == most:
            break
    if same < SAME_LABELS * images:
        told = f"int8 changes the label of {images - same} of {images} calibration images"
        _logger.warning("%s; measure what it costs by foveal predict, or use fp16 or fp32", told)
    return {"images": images, "same_label": same}

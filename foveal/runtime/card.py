"""The card of an exported model: ``export.json``, which says how its parts are used.

An exported folder holds the card and one file for each part (two for OpenVINO). A part is a network with named inputs
and outputs, whose first dimension is the batch.

Example:
    >>> import tempfile
    >>> read_card(tempfile.mkdtemp())
    Traceback (most recent call last):
    ...
    foveal.errors.RunError: ...: has no export.json, so it is no exported model; make one by foveal export
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypedDict, get_type_hints

from foveal.choices import EXPORT_FORMATS, EXPORT_PRECISIONS
from foveal.errors import RunError
from foveal.signatures import mismatch
from foveal.strict import ContentError, read_json

CARD = "export.json"
VERSION = 1
LOOPS = ("whole", "tnet", "saccader", "scan")

MOST_BYTES = 2**30
"""Limit of the size of one look, in float32."""

_Count = Annotated[int, range(1, 1_000_001)]


class PartCard(TypedDict):
    """A part in the card.

    Attributes:
        files: name and SHA-256 of its files, the one to load first.
        inputs, outputs: shape of each without the batch, in the order of the network.
        macs: multiply-accumulates for one item of the batch.
    """

    files: dict[str, str]
    inputs: dict[str, list[int]]
    outputs: dict[str, list[int]]
    macs: Annotated[int, range(10**16)]


class Card(TypedDict, total=False):
    """Types of the values of a card; all but ``about``, ``licence`` and ``metrics`` are required.

    Attributes:
        version: version of the format of the card.
        foveal: version of foveal that wrote it.
        format, precision: of the parts.
        loop: how the parts are used, one of `LOOPS`; ``options`` are its constants, such as the grid.
        model: name and options of the model.
        class_names, num_classes, task, thresholds: what logits mean.
        locations, policy: looks per grid at each level, and how they are chosen, unless others are asked for.
        most_levels, most_cells, policies: what may be asked for.
        channels, size, value_range, image_size, shorter_side, squash, antialias, crop: how looks are read.
        mean, std: normalisation, which is inside the parts. A look outside the image has the value ``mean``.
        resampling: the rule, in words.
        about: what the model was made from; ``licence`` of the weights; ``metrics`` of the run; ``parity`` with the
            model that was exported.
    """

    version: int
    foveal: str
    format: Annotated[str, EXPORT_FORMATS]
    precision: Annotated[str, EXPORT_PRECISIONS]
    loop: Annotated[str, LOOPS]
    options: dict[str, Any]
    model: dict[str, Any]
    num_classes: _Count
    class_names: list[str]
    task: Annotated[str, ("multiclass", "multilabel")]
    thresholds: list[tuple[int, float]]
    locations: list[Annotated[int, range(10_001)]]
    policy: str
    policies: list[str]
    most_levels: Annotated[int, range(101)] | None
    most_cells: _Count | None
    channels: _Count
    size: tuple[_Count, _Count]
    mean: list[float]
    std: list[float]
    value_range: tuple[float, float] | None
    image_size: _Count | None
    shorter_side: _Count | None
    squash: bool
    antialias: bool
    crop: float | None
    resampling: str
    parts: dict[str, PartCard]
    about: dict[str, Any]
    licence: str | None
    metrics: dict[str, Any]
    parity: dict[str, Any]


OPTIONAL = ("about", "licence", "metrics", "parity")


def is_exported(folder: str | Path) -> bool:
    """Whether a folder is an exported model."""
    return Path(folder, CARD).is_file()


def read_card(folder: str | Path) -> dict[str, Any]:
    """Read and check the card of an exported model. The files of its parts are checked by `check_files`.

    Raises:
        RunError: there is no card; or it is damaged, of a later version, or has other values than `Card`.
    """
    file = Path(folder, CARD)
    if not file.is_file():
        raise RunError(f"{folder}: has no {CARD}, so it is no exported model; make one by foveal export")
    try:
        card = read_json(file)
    except (ContentError, OSError) as error:
        raise RunError(f"{file}: is damaged ({error}); export the model again") from error
    if fault := card_error(card):
        raise RunError(f"{file}: {fault}; export the model again")
    return card


def card_error(card: Any) -> str | None:
    """The first error in the content of a card; None if it is valid."""
    if not isinstance(card, dict):
        return "is not a mapping of keys to values"
    if (version := card.get("version")) != VERSION:
        return f"has version {version!r}, and this foveal reads version {VERSION}"
    hints = get_type_hints(Card, include_extras=True)
    if absent := next((key for key in hints if key not in card and key not in OPTIONAL), None):
        return f"{absent}: is missing"
    if error := mismatch(card, hints):
        return error
    if len(card["mean"]) != card["channels"] or len(card["std"]) != card["channels"]:
        return "mean, std: have not one value for each of the `channels`"
    if card["class_names"] and len(card["class_names"]) != card["num_classes"]:
        return f"class_names: are {len(card['class_names'])} for {card['num_classes']} classes"
    if any(not 0 <= index < card["num_classes"] for index, _ in card["thresholds"]):
        return "thresholds: name a class that is not there"
    if card["size"][0] * card["size"][1] * card["channels"] * 4 > MOST_BYTES:
        return f"size: a look would need more than {MOST_BYTES:,} bytes"
    names = [name for part in card["parts"].values() for name in part["files"]]
    if not card["parts"] or not all(part["files"] for part in card["parts"].values()):
        return "parts: there are none, or one has no file"
    if odd := next((name for name in names if Path(name).name != name or name.startswith(".")), None):
        return f"parts: {odd!r} is not the name of a file in the folder"
    return None


def check_files(folder: str | Path, parts: Mapping[str, PartCard]) -> None:
    """Check that the files of the parts are those that were exported.

    Raises:
        RunError: one is missing, is a link, or has other bytes.
    """
    for part in parts.values():
        for name, digest in part["files"].items():
            file = Path(folder, name)
            if file.is_symlink() or not file.is_file():
                raise RunError(f"{file}: is missing, or not a file; copy the whole folder, or export the model again")
            if sha256(file) != digest:
                raise RunError(f"{file}: is damaged, or was not written with {CARD}; export the model again")


def sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()

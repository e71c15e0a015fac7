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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict, get_type_hints

from foveal.choices import EXPORT_FORMATS, EXPORT_PRECISIONS
from foveal.errors import RunError
from foveal.signatures import mismatch
from foveal.strict import ContentError, class_names_error, read_json

CARD = "export.json"
VERSION = 1

MOST_BYTES = 2**30
"""Limit of the size of one look, in float32."""

_Count = Annotated[int, range(1, 1_000_001)]


class WholeOptions(TypedDict):
    """Options of the loop of a dense network: none."""


class TNetOptions(TypedDict):
    """Options of the loop of `foveal.glimpse.tnet.TNet`."""

    grid: Annotated[int, range(2, 1_001)]
    region: float
    padded: bool
    fits: bool
    region_mpp: float | None
    levels: Annotated[int, range(101)]
    map_side: Annotated[int, range(1, 10_001)]
    networks: Annotated[int, range(1, 101)]
    weighting: bool
    likelihood: Literal["plackett_luce", "independent"]


class SaccaderOptions(TypedDict):
    """Options of the loop of `foveal.glimpse.saccader.Saccader`."""

    starts: list[float]
    window: Annotated[int, range(1, 100_001)]
    fit_grid: bool
    glimpse_size: tuple[_Count, _Count]
    separate: bool


class ScanOptions(TypedDict):
    """Options of the loop of `foveal.glimpse.scan.Scan`."""

    scale: Annotated[int, tuple(2**i for i in range(16))]
    radius: Annotated[int, range(101)]
    heads: Annotated[int, range(10_001)]
    blank_bytes: Annotated[int, range(2**40)] | None


LOOPS: dict[str, Any] = {
    "whole": WholeOptions,
    "tnet": TNetOptions,
    "saccader": SaccaderOptions,
    "scan": ScanOptions,
}
"""Types of the options of each loop."""


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
    loop: Annotated[str, tuple(LOOPS)]
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
    return _options_error(card) or _values_error(card) or _parts_error(card)


def _options_error(card: Mapping[str, Any]) -> str | None:
    """The first error in the options of the loop."""
    options, hints = card["options"], get_type_hints(LOOPS[card["loop"]], include_extras=True)
    if absent := next((key for key in hints if key not in options), None):
        return f"options.{absent}: is missing"
    if error := mismatch(options, hints, "options."):
        return error
    if not 0 < options.get("region", 1) <= 1 or not (options.get("region_mpp") or 1) > 0:
        return "options: region is not from 0 to 1, or region_mpp is not positive"
    if "starts" in options and not 1 <= len(options["starts"]) <= 1_000:
        return "options.starts: are not 1 to 1000"
    return _too_large("options.glimpse_size", card, options.get("glimpse_size", (1, 1)))


def _values_error(card: Mapping[str, Any]) -> str | None:
    """The first error in numbers and names."""
    if len(card["mean"]) != card["channels"] or len(card["std"]) != card["channels"]:
        return "mean, std: have not one value for each of the `channels`"
    if not all(abs(value) < 1e6 for value in card["mean"]) or not all(1e-9 < value < 1e6 for value in card["std"]):
        return "mean, std: are too large, or std is not positive"
    if card["class_names"] and len(card["class_names"]) != card["num_classes"]:
        return f"class_names: are {len(card['class_names'])} for {card['num_classes']} classes"
    if error := class_names_error(card["class_names"]):
        return f"class_names: {error}"
    if any(not 0 <= index < card["num_classes"] for index, _ in card["thresholds"]):
        return "thresholds: name a class that is not there"
    if any(not 0 <= least <= 1 for _, least in card["thresholds"]):
        return "thresholds: are not from 0 to 1"
    low, high = card["value_range"] or (0, 1)
    if not low < high:
        return f"value_range: {low} is not below {high}"
    if card["crop"] is not None and (card["squash"] or not 0 < card["crop"] <= 1):
        return "crop: is not a share up to 1, or is given with squash"
    side = card["image_size"] or 1
    return _too_large("size", card, card["size"]) or _too_large("image_size", card, (side, side))


def _too_large(name: str, card: Mapping[str, Any], size: Sequence[int]) -> str | None:
    if size[0] * size[1] * card["channels"] * 4 > MOST_BYTES:
        return f"{name}: a look would need more than {MOST_BYTES:,} bytes"
    return None


def _parts_error(card: Mapping[str, Any]) -> str | None:
    """The first error in the names of files."""
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

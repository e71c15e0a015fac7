"""Run folders: what training writes, and what a trained model is loaded from.

A run folder holds ``config.yaml`` (every value the run was made with), ``metrics.csv``, ``attention.csv`` (of networks
with attention modules), ``summary.json`` (the outcome of training), ``last.ckpt`` and ``best.ckpt`` (to go on
training), and ``model.safetensors`` with ``config.json`` (for everything else). The last two suffice to use a model,
and rebuild it without downloading anything.

Example:
    >>> import tempfile, torch
    >>> from foveal.models import create_classifier
    >>> model = create_classifier("test_resnet", num_classes=2, image_size=64).eval()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_model(folder, model, ModelInfo({"name": "test_resnet", "image_size": 64}, ("cat", "dog")))
    ...     same = load(folder)
    >>> images = torch.rand(1, 3, 80, 60)
    >>> same.class_names, torch.equal(same(images).logits, model(images).logits)
    (('cat', 'dog'), True)
"""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as serialise
from torch import Tensor, nn

from foveal.errors import ConfigError, RunError
from foveal.files import locked, replacing, storing
from foveal.glimpse.base import GlimpseClassifier
from foveal.models import (
    as_classifier,
    check_options,
    constructor,
    create_classifier,
    unpickled,
    without_warnings,
)
from foveal.registry import UnknownName, imported, made_with
from foveal.stored import card_error, check_outline, check_weights, checkpoint_error, limit_parameters
from foveal.strict import ContentError, read_json, read_yaml

CONFIG, METRICS, ATTENTION, LAST, BEST, WEIGHTS, CARD, BAD_IMAGES, SUMMARY = (
    "config.yaml",
    "metrics.csv",
    "attention.csv",
    "last.ckpt",
    "best.ckpt",
    "model.safetensors",
    "config.json",
    "bad_images.csv",
    "summary.json",
)
LOCK, TENSORBOARD = ".lock", "tensorboard"

RUN_FILES = (CONFIG, METRICS, ATTENTION, LAST, BEST, WEIGHTS, CARD, BAD_IMAGES, SUMMARY)
"""What `foveal.training.fit` writes into a run."""

_UNFINISHED = re.compile(
    rf"\.({'|'.join(map(re.escape, RUN_FILES))})(\.\d+\.unfinished|\.unfinished|\.\d+)"
)  # the last two of older versions

FOUND_OUT = (
    "evaluation.json",
    "tradeoff.png",
    "occlusion.json",
    "occlusion.png",
    "faithfulness.json",
    "faithfulness.png",
    "exits.json",
    "early_exit.json",
)
"""What commands write into a run about its model."""

DATA_PATHS = ("root", "file", "val_labels", "annotations")
"""Options of data sets that are paths."""


@dataclass(frozen=True)
class ModelInfo:
    """What must be known beside the weights to use a model.

    Attributes:
        model: ``name`` and options, as of `create_classifier`.
        class_names: in the order of the logits.
        value_range: (low, high) of the pixels of images whose type does not tell; None where it does.
        image_size: side that whole images are resized to before anything looks at them; None leaves them as they are.
        shorter_side: see `foveal.images.squash`.
        locations: default budget.
    """

    model: dict[str, Any]
    class_names: tuple[str, ...] = ()
    value_range: tuple[float, float] | None = None
    image_size: int | None = None
    shorter_side: int | None = None
    locations: tuple[int, ...] | None = None


def save_model(
    folder: str | Path, model: GlimpseClassifier, info: ModelInfo, weights: dict[str, Tensor] | None = None
) -> None:
    """Write ``model.safetensors`` and ``config.json`` into a folder.

    Args:
        folder: made if it is not there.
        model: the model; what it sees and how it normalises is written too.
        info: the rest.
        weights: weights to write instead of the model's own.

    Raises:
        StorageError: a file cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_card(folder, model, info)
    state = {
        name: value.detach().to("cpu", copy=True).contiguous()
        for name, value in (weights or model.state_dict()).items()
    }
    with storing(folder / WEIGHTS), replacing(folder / WEIGHTS) as unfinished:
        unfinished.write_bytes(serialise(state, metadata={"format": "pt"}))


def write_card(folder: Path, model: GlimpseClassifier, info: ModelInfo) -> None:
    """Write ``config.json`` alone: what a folder needs beside weights."""
    from foveal import __version__

    card = {
        "foveal": __version__,
        "imports": imported(),
        # Weights come from this folder: rebuilding must not fetch the ones training began with.
        "model": {
            key: info.model.get(key, getattr(model, key, None)) for key in without_weights(as_written(info.model))
        },
        "num_classes": model.num_classes,
        "class_names": list(info.class_names),
        "channels": model.channels,
        "size": list(model.size),
        "mean": model.mean.tolist(),
        "std": model.std.tolist(),
        "value_range": info.value_range,
        "image_size": info.image_size,
        "shorter_side": info.shorter_side,
        "locations": list(model.locations if info.locations is None else info.locations),
    }
    with storing(folder / CARD), replacing(folder / CARD) as unfinished:
        unfinished.write_text(json.dumps(card, indent=2) + "\n")


def without_weights(options: dict[str, Any]) -> dict[str, Any]:
    """A model's options, but for those that say where its first weights come from."""
    return {key: value for key, value in options.items() if not key.endswith("pretrained")}


def with_absolute_paths(config: dict[str, Any]) -> dict[str, Any]:
    """A run's configuration from which the run can be used in any folder: relative paths are taken from the current
    one.

    Paths are the options `DATA_PATHS` of the data set, files of pretrained weights, and ``init_from``.
    """
    data, model = dict(config.get("data") or {}), dict(config.get("model") or {})
    data |= {key: _absolute(data[key]) for key in DATA_PATHS if key in data}
    model |= {key: _absolute(value) for key, value in model.items() if key.endswith("pretrained")}
    return {**config, "data": data, "model": model, "init_from": _absolute(config.get("init_from"))}


def _absolute(path: Any) -> Any:
    return str(Path(path).expanduser().absolute()) if isinstance(path, str | Path) and "://" not in str(path) else path


def as_written(options: dict[str, Any]) -> dict[str, Any]:
    """A stored model's name and options, with those that it was written without, because they did not exist, as it
    behaved then.
    """
    if options["name"].startswith(_PYTHON):
        return options
    formerly = getattr(constructor(options["name"]), "formerly", {})
    return {**options, **{key: value for key, value in formerly.items() if key not in options}}


_PYTHON = "python:"


def made_in_python(thing: object) -> str:
    """What stands for the name of an object that no name makes."""
    return f"{_PYTHON}{type(thing).__module__}.{type(thing).__qualname__}"


def load(
    path: str | Path, device: str | torch.device = "cpu", which: str = "best", model: nn.Module | None = None
) -> GlimpseClassifier:
    """The trained model of a run folder, or of any folder with ``model.safetensors`` and ``config.json``; see
    `Run.load_model`.
    """
    return Run(path).load_model(device, which, model)


@dataclass(frozen=True)
class Run:
    """A run folder.

    Raises:
        RunError: there is no such folder, or it holds no run.
    """

    path: Path = field()

    def __init__(self, path: str | Path) -> None:
        object.__setattr__(self, "path", Path(path))
        if not self.path.exists():
            raise RunError(f"{path}: there is no such run folder; check the path, or make it by foveal fit")
        if not self.path.is_dir():
            raise RunError(f"{path}: is a file, not a run folder; give the folder it is in")
        if not (self.path / CARD).is_file():
            raise RunError(
                f"{path}: has no {CARD}, so it is no run folder or was never finished; give another folder or train "
                "again"
            )

    def file(self, name: str) -> Path:
        """The path of one of its files.

        Raises:
            RunError: it is a link that leads out of the run: whoever made the run does not say which other files are
                read.
        """
        return own_file(self.path, name)

    @cached_property
    def config(self) -> dict[str, Any]:
        """Every value the run was made with.

        Raises:
            RunError: there is no ``config.yaml``, or it is damaged.
        """
        return read_config(self.path)

    @cached_property
    def card(self) -> dict[str, Any]:
        """Content of ``config.json``: model, class names, normalisation, budget.

        Raises:
            RunError: it is damaged.
        """
        file = self.file(CARD)
        try:
            card = read_json(file)
        except (ContentError, OSError) as error:
            raise RunError(
                f"{file}: is damaged or not ours ({_reason(error)}); copy it again or train again"
            ) from error
        if fault := card_error(card):
            raise RunError(f"{file}: {fault}; copy it again, use the version of foveal that wrote it, or train again")
        return card

    @cached_property
    def summary(self) -> dict[str, Any] | None:
        """The outcome of training, as `foveal.training.TrainingSummary` describes it; None if there is none (yet).

        Raises:
            RunError: the file is damaged.
        """
        file = self.file(SUMMARY)
        if not file.is_file():
            return None
        again = f"foveal fit --out {self.path} --resume writes it again"
        try:
            summary = read_json(file)
        except (ContentError, OSError) as error:
            raise RunError(f"{file}: is damaged ({_reason(error)}); {again}") from error
        if not isinstance(summary, dict):
            raise RunError(f"{file}: is not a summary of a run; {again}")
        return summary

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(self.card["class_names"])

    def load_model(
        self, device: str | torch.device = "cpu", which: str = "best", model: nn.Module | None = None
    ) -> GlimpseClassifier:
        """The model, in evaluation mode.

        Args:
            device: where to.
            which: ``"best"``, the weights chosen on the validation images; or ``"last"``, those of the latest
                checkpoint.
            model: takes the weights, where the model was not made by a name; it is made by its name if None.

        Raises:
            RunError: no weights, damaged ones, or some that do not fit; a model that this version does not know.
        """
        file = self.file(WEIGHTS if which == "best" else LAST)
        shapes, weights = self._weights(file)
        if model is None:
            # On the meta device first: the configuration may describe a model that does not fit into memory.
            with (
                torch.random.fork_rng(devices=()),
                torch.device("meta"),
                limit_parameters(len(shapes), self.path / CARD),
            ):
                outline = self._build()
            check_weights(outline, shapes, file)
            check_outline(outline, self.card, self.path / CARD)
        classifier = self._build(model)
        check_weights(classifier, shapes, file)
        classifier.load_state_dict(weights())
        return classifier.eval().to(device)

    def _build(self, given: nn.Module | None = None) -> GlimpseClassifier:
        file, card = self.path / CARD, self.card
        if given is None and card["model"]["name"].startswith(_PYTHON):
            made = card["model"]["name"].removeprefix(_PYTHON)
            raise RunError(f"{file}: the model was made in Python, as {made}; give it: foveal.load(path, model=...)")
        model = self._made_by_name() if given is None else as_classifier(given)
        model.class_names = self.class_names
        if (locations := card.get("locations")) is not None:
            model.locations = tuple(locations)
        for key in ("value_range", "image_size", "shorter_side"):
            setattr(model, key, card.get(key))
        return model

    def _made_by_name(self) -> GlimpseClassifier:
        file, card = self.path / CARD, self.card
        name = card["model"]["name"]
        try:
            with (
                made_with(card.get("imports")),
                without_warnings("foveal.glimpse"),
            ):  # advice on a model comes too late when it is trained
                check_options(name, _but_name(card["model"]), stored=True)
                options = as_written(card["model"])
                return create_classifier(options.pop("name"), num_classes=card.get("num_classes"), **options)
        except ConfigError as error:
            advice = (
                ""
                if isinstance(error, UnknownName) and error.elsewhere
                else "; or use the version of foveal that wrote it"
            )
            raise RunError(f"{file}: {error}{advice}") from error
        except RunError:
            raise
        except Exception as error:  # constructors raise whatever values lead them to that they were not made for
            raise RunError(
                f"{file}: model {name} cannot be built of its options ({_reason(error)}); copy it again, or train again"
            ) from error

    def _weights(self, file: Path) -> tuple[dict[str, Tensor], Callable[[], dict[str, Tensor]]]:
        """Shapes of the weights, as tensors without memory; and what reads the weights themselves."""
        if not file.is_file():
            go_on = f"go on by foveal fit --out {self.path} --resume, or in Python take {LAST} by which='last'"
            hint = go_on if (self.path / LAST).is_file() else "train again"
            raise RunError(f"{file}: there are no weights, so training has not got that far; {hint}")
        if file.suffix != ".safetensors":
            state = model_state(read_checkpoint(file), file)
            return state, lambda: state
        try:
            with safe_open(file, "pt") as header:
                shapes = {
                    name: torch.empty(header.get_slice(name).get_shape(), device="meta")
                    for name in header.keys()  # noqa: SIM118
                }
        except (SafetensorError, OSError) as error:
            raise RunError(f"{file}: is damaged or half written; copy it again or train again") from error
        return shapes, lambda: load_file(file)


def own_file(folder: Path, name: str) -> Path:
    """The path of a file of a run folder; see `Run.file`."""
    file = folder / name
    if file.is_symlink() and not file.resolve().is_relative_to(folder.resolve()):
        raise RunError(
            f"{file}: is a link to a file outside of the run, which is not read; put a copy of that file in its place"
        )
    return file


def _but_name(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key != "name"}


def _reason(error: Exception) -> str:
    """An error in a few words on one line."""
    text = (getattr(error, "strerror", None) or str(error)).strip().partition("\n")[0].rstrip(".")
    return text[:200] or type(error).__name__


def read_config(folder: Path) -> dict[str, Any]:
    """Content of a run folder's ``config.yaml``; raises `RunError` without a sound one."""
    again = f"put a copy back, or train it again by foveal fit RECIPE --out {folder} --overwrite"
    file = own_file(folder, CONFIG)
    try:
        config = read_yaml(file)
    except OSError as error:
        raise RunError(
            f"{file}: cannot be read ({error.strerror}); put it back, or train again with another `out`"
        ) from error
    except ContentError as error:
        raise RunError(f"{file}: is damaged ({error}); {again}") from error
    if not isinstance(config, dict):
        raise RunError(f"{folder / CONFIG}: is not a list of options with values; {again}")
    return config


def read_checkpoint(file: Path) -> dict[str, Any]:
    """A training checkpoint, of tensors and plain values; anything that would run code is refused.

    Raises:
        RunError: it is missing, damaged or holds anything else.
    """
    file = own_file(file.parent, file.name)
    if not file.is_file():
        raise RunError(f"{file}: there is no checkpoint to go on from; start again with `overwrite`")
    try:
        content = unpickled(file)
    except ContentError as error:
        raise RunError(f"{file}: {error}; bring a copy that you trust, or start again with `overwrite`") from error
    except Exception as error:  # the reader raises whatever a damaged file leads it to
        hostile = isinstance(error, pickle.UnpicklingError) and zipfile.is_zipfile(file)
        what = (
            "holds more than tensors and plain values and was not opened" if hostile else "is damaged or half written"
        )
        raise RunError(f"{file}: {what}; bring a copy that you trust, or start again with `overwrite`") from error
    if fault := checkpoint_error(content):
        raise RunError(
            f"{file}: is not a checkpoint of a run ({fault}); bring the right file, or start again with `overwrite`"
        )
    return content


def model_state(checkpoint: dict[str, Any], file: Path) -> dict[str, Tensor]:
    """The model's weights in a checkpoint, averaged ones if it has them."""
    source, prefix = (
        (checkpoint["average"], "module.") if "average" in checkpoint else (checkpoint["state_dict"], "model.")
    )
    state = {name.removeprefix(prefix): value for name, value in source.items() if name.startswith(prefix)}
    if not state:
        raise RunError(f"{file}: holds no model; bring the right file, or start again with `overwrite`")
    return state


@contextmanager
def claim(out: str | Path, *, resume: bool = False, overwrite: bool = False) -> Iterator[Path]:
    """Keep a folder for one run, and make it; a run to be replaced stays until `clear`. A folder that is still empty at
    the end is removed.

    Raises:
        RunError: something is there already, or there is nothing to go on with.
        StorageError: another process trains the run.
    """
    out = Path(out)
    try:
        if resume and not out.is_dir():
            raise RunError(f"{out}: there is no {LAST} to go on from; check the path, or train without `resume`")
        if out.exists() and not out.is_dir():
            raise RunError(f"{out}: is there already and is not a run; choose another `out`")
        made = [folder for folder in (out, *out.parents) if not folder.exists()]
        if not (made or resume or (out / CONFIG).is_file()) and any(not _ours(file) for file in out.iterdir()):
            raise RunError(f"{out}: is there already and is not a run; choose another `out`")
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{out}: cannot be written ({error.strerror}); choose another `out`") from error
    try:
        with locked(
            out / LOCK, f"{out}: another process trains this run; wait until it has ended, or choose another `out`"
        ):
            _check_claim(out, resume, overwrite)
            for file in out.iterdir():
                if _ours(file) and file.name != LOCK:  # of a process that was killed: others are kept out by the lock
                    file.unlink(missing_ok=True)
            yield out
    finally:
        with suppress(OSError):  # it is not empty any more
            for folder in made:
                folder.rmdir()


def _check_claim(out: Path, resume: bool, overwrite: bool) -> None:
    kept = [name for name in (LAST, BEST, WEIGHTS) if (out / name).is_file()]
    instead = "replace it by `overwrite`, or choose another `out`"
    if resume and LAST not in kept:
        again = "start again with `overwrite`" if (out / CONFIG).is_file() else "train without `resume`"
        raise RunError(f"{out}: there is no {LAST} to go on from; check the path, or {again}")
    if resume or overwrite or not (out / CONFIG).is_file():
        return
    if LAST in kept:
        raise RunError(f"{out}: a run is there already; go on with it by `resume`, {instead}")
    if kept:
        raise RunError(f"{out}: a run without {LAST} is there already; {instead}")
    raise RunError(f"{out}: a run was begun there and ended before it saved anything; {instead}")


def _ours(file: Path) -> bool:
    """Whether a file says nothing of a run: a lock, or what a process that was killed left of a file that it wrote."""
    return file.name == LOCK or _UNFINISHED.fullmatch(file.name) is not None


def clear(out: Path) -> None:
    """Remove the run in a folder, with what was found out about its model; ``config.yaml`` stays until there is
    another.

    What a run is taken for goes first: no part of an old run is ever seen as one.
    """
    for name in (LAST, BEST, WEIGHTS, *FOUND_OUT, SUMMARY, METRICS, ATTENTION, BAD_IMAGES, CARD):
        (out / name).unlink(missing_ok=True)
    for pattern in ("events.out.tfevents.*", "hparams.yaml"):
        for file in (out / TENSORBOARD).glob(pattern):
            file.unlink(missing_ok=True)
    with suppress(OSError):  # there is none, or something else is in it
        (out / TENSORBOARD).rmdir()

"""Run folders: written by training, and read to load a trained model.

A run folder holds ``config.yaml`` (the configuration), ``metrics.csv``, ``attention.csv`` (for networks with attention
modules), ``summary.json`` (the outcome of training), ``last.ckpt`` and ``best.ckpt`` (to resume training), and
``model.safetensors`` with ``config.json`` (for everything else). The last two are sufficient to load the model, without
any download.

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as serialise
from torch import Tensor, nn

from foveal.errors import ConfigError, RunError, renaming
from foveal.files import locked, replacing, storing
from foveal.glimpse.base import GlimpseClassifier, WholeImage
from foveal.host import usable_device
from foveal.hub import download, on_hub
from foveal.model_options import check_options
from foveal.models import as_classifier, constructor, create_classifier, unpickled, without_warnings
from foveal.policies import GREEDY
from foveal.registry import UnknownName, imported, made_with
from foveal.runtime.card import is_exported
from foveal.stored import (
    card_error,
    check_normalisation,
    check_outline,
    check_weights,
    checkpoint_error,
    limit_parameters,
)
from foveal.strict import ContentError, read_json
from foveal.strict_yaml import read_yaml
from foveal.tasks import TASKS, Task

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
LOCK, TENSORBOARD, LOGGER = ".lock", "tensorboard", "logger.json"

RUN_FILES = (CONFIG, METRICS, ATTENTION, LAST, BEST, WEIGHTS, CARD, BAD_IMAGES, SUMMARY)
"""Files that `foveal.training.fit` writes into a run folder."""

_UNFINISHED = re.compile(
    rf"\.({'|'.join(map(re.escape, RUN_FILES))})(\.\d+\.unfinished|\.unfinished|\.\d+)"
)  # the last two of older versions

RESULT_FILES = (
    "evaluation.json",
    "tradeoff.png",
    "confusion.png",
    "threshold.json",
    "threshold.png",
    "occlusion.json",
    "occlusion.png",
    "faithfulness.json",
    "faithfulness.png",
    "exits.json",
    "early_exit.json",
    "early_exit.png",
)
"""Files that commands write into a run folder."""

DATA_PATHS = ("root", "file", "val_labels", "annotations", "masks", "labels", "coarse")
"""Options of data sets whose values are paths."""
OBJECTIVE_PATHS = ("teacher",)
"""Options of objectives whose values are paths."""


@dataclass(frozen=True)
class ModelInfo:
    """Description of a model, stored next to its weights.

    Attributes:
        model: ``name`` and options of `create_classifier`.
        class_names: names of the classes, in the order of the logits.
        value_range: (low, high) of pixel values, for types of images that do not imply it; else None.
        image_size: side to which whole images are resized before any look; None for no resizing.
        shorter_side: see `foveal.images.squash`.
        locations: default looks per grid at each level; the model's own if None.
        encoder: ``name`` of the network that made the features of the training data, and ``licence`` of its weights.
    """

    model: dict[str, Any]
    class_names: tuple[str, ...] = ()
    value_range: tuple[float, float] | None = None
    image_size: int | None = None
    shorter_side: int | None = None
    locations: tuple[int, ...] | None = None
    encoder: dict[str, str | None] | None = None


def save_model(folder: str | Path, model: GlimpseClassifier, info: ModelInfo) -> None:
    """Write ``model.safetensors`` and ``config.json`` into a folder.

    Args:
        folder: run folder; it is created if it does not exist.
        model: the model, whose input size and normalisation are stored too.
        info: see `ModelInfo`.

    Raises:
        StorageError: a file cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_card(folder, model, info)
    save_weights(folder, model.state_dict())


def save_weights(folder: Path, weights: dict[str, Tensor]) -> None:
    """Write ``model.safetensors`` only."""
    state = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in weights.items()}
    with storing(folder / WEIGHTS), replacing(folder / WEIGHTS) as unfinished:
        unfinished.write_bytes(serialise(state, metadata={"format": "pt"}))


def write_card(folder: Path, model: GlimpseClassifier, info: ModelInfo) -> None:
    """Write ``config.json`` only."""
    from foveal import __version__

    card = {
        "foveal": __version__,
        "imports": imported(),
        # Loading must not download the pretrained weights with which training started.
        "model": {
            key: info.model.get(key, getattr(model, key, None)) for key in without_weights(as_written(info.model))
        },
        "num_classes": model.num_classes,
        "class_names": list(info.class_names),
        "task": model.task.name,
        "channels": model.channels,
        "size": list(model.size),
        "mean": model.mean.tolist(),
        "std": model.std.tolist(),
        "value_range": info.value_range,
        "image_size": info.image_size,
        "shorter_side": info.shorter_side,
        "locations": list(model.locations if info.locations is None else info.locations),
        **({} if info.encoder is None else {"encoder": info.encoder}),
    }
    with storing(folder / CARD), replacing(folder / CARD) as unfinished:
        unfinished.write_text(json.dumps(card, indent=2) + "\n")


def without_weights(options: dict[str, Any]) -> dict[str, Any]:
    """Options of a model without those that name pretrained weights."""
    return {key: value for key, value in options.items() if not key.endswith("pretrained")}


def with_absolute_paths(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration with absolute instead of relative paths.

    Paths are the options `DATA_PATHS` of the data set and `OBJECTIVE_PATHS` of the objective, files of pretrained
    weights, and ``init_from``.
    """
    data, model = dict(config.get("data") or {}), dict(config.get("model") or {})
    data |= {key: _absolute(data[key]) for key in DATA_PATHS if key in data}
    if isinstance(objective := config.get("objective"), dict):
        paths = {key: _absolute(objective[key]) for key in OBJECTIVE_PATHS if key in objective}
        config = {**config, "objective": {**objective, **paths}}
    model |= {key: _absolute(value) for key, value in model.items() if key.endswith("pretrained")}
    return {**config, "data": data, "model": model, "init_from": _absolute(config.get("init_from"))}


def _absolute(path: Any) -> Any:
    return str(Path(path).expanduser().absolute()) if isinstance(path, str | Path) and "://" not in str(path) else path


def as_written(options: dict[str, Any]) -> dict[str, Any]:
    """Name and options of a stored model. Options added since it was stored get values that keep its behaviour."""
    if options["name"].startswith(_PYTHON):
        return options
    formerly = getattr(constructor(options["name"]), "formerly", {})
    return {**options, **{key: value for key, value in formerly.items() if key not in options}}


_PYTHON = "python:"


def made_in_python(thing: object) -> str:
    """Module and class of an object that was made in Python, stored in place of a registered name. For a dense network,
    the class is that of the network.
    """
    kind = type(thing.network if isinstance(thing, WholeImage) else thing)
    return f"{_PYTHON}{kind.__module__}.{kind.__qualname__}"


Which = Literal["best", "last"]
"""Weights of a run: those with the best validation, or those of the last checkpoint."""


def load(
    path: str | Path,
    *,
    device: str | torch.device = "cpu",
    which: Which = "best",
    model: nn.Module | None = None,
    engine: str | None = None,
) -> GlimpseClassifier:
    """The trained model of a run folder, of any folder with ``model.safetensors`` and ``config.json``, or of one that
    `foveal.export.export` wrote.

    Args:
        path: the folder; ``hf-hub:owner/name`` is a repository of the Hugging Face Hub, of which no code is run.
        device, which, model: for run folders, see `Run.load_model`.
        engine: for exported models, one of `foveal.runtime.ENGINES`; that of the format if None.

    Raises:
        ConfigError, RunError: see `Run.load_model` and `foveal.runtime.load`.
    """
    if is_exported(path):
        from foveal.runtime.adapter import load_exported

        return load_exported(path, engine)
    if engine is not None:
        raise ConfigError(f"`engine` {engine}: is for exported models, and {path} is none; export it first")
    return Run(path).load_model(device=device, which=which, model=model)


@dataclass(frozen=True)
class Run:
    """A run folder.

    Args:
        path: the folder, or ``hf-hub:owner/name`` for a model of the Hugging Face Hub, see `foveal.hub.download`.

    Raises:
        RunError: there is no such folder, or it holds no run.
    """

    path: Path = field()

    def __init__(self, path: str | Path) -> None:
        object.__setattr__(self, "path", download(str(path)) if on_hub(path) else Path(path))
        if not self.path.exists():
            raise RunError(f"{path}: there is no such run folder; check the path, or make it by foveal fit")
        if not self.path.is_dir():
            raise RunError(f"{path}: is a file, not a run folder; give the folder it is in")
        if is_exported(self.path):
            raise RunError(f"{path}: is an exported model, not a run folder; give the run that it was made from")
        if not (self.path / CARD).is_file():
            raise RunError(
                f"{path}: has no {CARD}, so it is no run folder or was never finished; give another folder or train "
                "again"
            )

    def file(self, name: str) -> Path:
        """The path of one of its files.

        Raises:
            RunError: it is a link to a file outside of the run folder. Such links are not followed.
        """
        return own_file(self.path, name)

    @cached_property
    def config(self) -> dict[str, Any]:
        """Content of ``config.yaml``: the configuration of the run.

        Raises:
            RunError: the file is missing or damaged.
        """
        return read_config(self.path)

    @cached_property
    def card(self) -> dict[str, Any]:
        """Content of ``config.json``: model, class names, normalisation, locations.

        Raises:
            RunError: the file is damaged.
        """
        file = self.file(CARD)
        try:
            card = read_json(file)
        except (ContentError, OSError) as error:
            raise RunError(
                f"{file}: is damaged or not a file of foveal ({_reason(error)}); copy it again or train again"
            ) from error
        if fault := card_error(card):
            raise RunError(f"{file}: {fault}; copy it again, use the version of foveal that wrote it, or train again")
        return card

    def keep_thresholds(self, thresholds: Sequence[Mapping[str, Any]]) -> None:
        """Store decision thresholds in ``config.json``, instead of those that are there.

        They are lost when training writes other weights.

        Args:
            thresholds: ``label``, ``threshold`` and ``at`` of each, see `foveal.evaluation.DecisionThreshold`.

        Raises:
            ConfigError: a class that the model does not have, or has twice here; or no probability.
            StorageError: the file cannot be written.
        """
        card = {**self.card, "thresholds": [dict(one) for one in thresholds]}
        if fault := card_error(card):
            raise ConfigError(f"{fault}; the thresholds of {self.path} stay as they are")
        self._keep(card)

    def keep_policy(self, policy: str) -> None:
        """Store in ``config.json`` how predictions choose looks if no policy is named: ``greedy`` or ``random``.

        It is lost when training writes other weights.

        Raises:
            StorageError: the file cannot be written.
        """
        self._keep({**self.card, "policy": policy})

    def _keep(self, card: Mapping[str, Any]) -> None:
        with storing(self.path / CARD), replacing(self.path / CARD) as unfinished:
            unfinished.write_text(json.dumps(card, indent=2) + "\n")
        self.__dict__.pop("card", None)  # the file has changed

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

    @property
    def task(self) -> Task:
        """The task of the model, with the thresholds that the run stores."""
        found = [(self.class_names.index(one["label"]), one["threshold"]) for one in self.card.get("thresholds", [])]
        return TASKS[self.card.get("task", "multiclass")].with_thresholds(found)

    def load_model(
        self, *, device: str | torch.device = "cpu", which: Which = "best", model: nn.Module | None = None
    ) -> GlimpseClassifier:
        """Load the model in eval mode.

        Args:
            device: device of the model, see `foveal.prediction.find_device`.
            which: ``"best"``, the weights with the best validation; or ``"last"``, those of the last checkpoint.
            model: a network that gets the weights, for models that were made in Python. If None, the model is created
                by its name.

        Raises:
            ConfigError: ``which`` is unknown, or this machine has no such device.
            RunError: the weights are missing, damaged or do not fit; or this version does not have the model.
        """
        if which not in get_args(Which):
            raise ConfigError(f"`which` {which}: is not known; use one of {', '.join(get_args(Which))}")
        place = usable_device(device)
        file = self.file(WEIGHTS if which == "best" else LAST)
        shapes, weights = self._weights(file)
        if model is None:
            # On the meta device first: the configuration may describe a model that does not fit into memory.
            with (
                torch.random.fork_rng(devices=()),
                torch.device("meta"),
                limit_parameters(len(shapes), self.path / CARD),
            ):
                outline = self._build(check=True)
            check_weights(outline, shapes, file)
            check_outline(outline, self.card, self.path / CARD)
        classifier = self._build(model)
        check_normalisation(classifier, self.card, self.path / CARD)
        check_weights(classifier, shapes, file)
        classifier.load_state_dict(weights())
        classifier.source = str(self.path)
        return classifier.eval().to(place)

    def _build(self, given: nn.Module | None = None, check: bool = False) -> GlimpseClassifier:
        file, card = self.path / CARD, self.card
        if given is None and card["model"]["name"].startswith(_PYTHON):
            made = card["model"]["name"].removeprefix(_PYTHON)
            raise RunError(f"{file}: the model was made in Python, as {made}; give it: foveal.load(path, model=...)")
        model = self._made_by_name(check) if given is None else as_classifier(given)
        model.class_names, model.task = self.class_names, self.task
        if (locations := card.get("locations")) is not None:
            model.locations = tuple(locations)
        model.usual_policy = card.get("policy", GREEDY.name)
        for key in ("value_range", "image_size", "shorter_side"):
            setattr(model, key, card.get(key))
        return model

    def _made_by_name(self, check: bool) -> GlimpseClassifier:
        file, card = self.path / CARD, self.card
        name = card["model"]["name"]
        try:
            with (
                made_with(card.get("imports")),
                renaming({key: f"model.{key}" for key in card["model"]}),
                without_warnings("foveal.glimpse"),
            ):  # constructors warn of unsuitable options, which matters before training only
                options = _but_name(as_written(card["model"]))
                if check:
                    check_options(name, _but_name(card["model"]), stored=True)
                return create_classifier(name, num_classes=card.get("num_classes"), **options)
        except ConfigError as error:
            advice = (
                ""
                if isinstance(error, UnknownName) and error.elsewhere
                else "; or use the version of foveal that wrote it"
            )
            raise RunError(f"{file}: {error}{advice}") from error
        except RunError:
            raise
        except Exception as error:  # constructors raise any exception for invalid values
            what = f"model {name} cannot be created with its options ({_reason(error)})"
            raise RunError(f"{file}: {what}; copy it again, or train again") from error

    def _weights(self, file: Path) -> tuple[dict[str, Tensor], Callable[[], dict[str, Tensor]]]:
        """The weights as tensors on the meta device, and a function that reads them."""
        if not file.is_file():
            go_on = f"go on by foveal fit --out {self.path} --resume, or in Python take {LAST} by which='last'"
            hint = go_on if (self.path / LAST).is_file() else "train again"
            raise RunError(f"{file}: there are no weights, so training has not finished; {hint}")
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
    """Path of a file of a run folder, see `Run.file`."""
    file = folder / name
    if file.is_symlink() and not file.resolve().is_relative_to(folder.resolve()):
        raise RunError(
            f"{file}: is a link to a file outside of the run, which is not read; put a copy of that file in its place"
        )
    return file


def _but_name(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key != "name"}


def _reason(error: Exception) -> str:
    """The first line of an error's message, at most 200 characters."""
    text = (getattr(error, "strerror", None) or str(error)).strip().partition("\n")[0].rstrip(".")
    return text[:200] or type(error).__name__


def read_config(folder: Path) -> dict[str, Any]:
    """Content of a run folder's ``config.yaml``.

    Raises:
        RunError: the file is missing or damaged.
    """
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
        raise RunError(f"{folder / CONFIG}: is not a mapping of options to values; {again}")
    return config


def read_checkpoint(file: Path) -> dict[str, Any]:
    """Read a training checkpoint. Only tensors and plain values are unpickled.

    Raises:
        RunError: the file is missing, damaged, or contains other objects.
    """
    file = own_file(file.parent, file.name)
    if not file.is_file():
        raise RunError(f"{file}: there is no checkpoint to go on from; start again with `overwrite`")
    try:
        content = unpickled(file)
    except ContentError as error:
        raise RunError(f"{file}: {error}; bring a copy that you trust, or start again with `overwrite`") from error
    except Exception as error:  # torch.load raises any exception for damaged files
        unsafe = isinstance(error, pickle.UnpicklingError) and zipfile.is_zipfile(file)
        what = "holds more than tensors and plain values and was not opened" if unsafe else "is damaged or half written"
        raise RunError(f"{file}: {what}; bring a copy that you trust, or start again with `overwrite`") from error
    if fault := checkpoint_error(content):
        raise RunError(
            f"{file}: is not a checkpoint of a run ({fault}); bring the right file, or start again with `overwrite`"
        )
    return content


def model_state(checkpoint: dict[str, Any], file: Path) -> dict[str, Tensor]:
    """The weights of the model in a checkpoint; the moving average if there is one."""
    source, prefix = (
        (checkpoint["average"], "module.") if "average" in checkpoint else (checkpoint["state_dict"], "model.")
    )
    state = {name.removeprefix(prefix): value for name, value in source.items() if name.startswith(prefix)}
    if not state:
        raise RunError(f"{file}: holds no model; bring the right file, or start again with `overwrite`")
    return state


@contextmanager
def claim(out: str | Path, *, resume: bool = False, overwrite: bool = False) -> Iterator[Path]:
    """Lock a folder for one run, and create it. A run to be replaced stays until `clear` is called. A folder that is
    empty at the end is removed.

    Raises:
        RunError: the folder holds a run or other files; or there is no run to resume.
        StorageError: another process trains the run.
    """
    out = Path(out)
    try:
        if resume and not out.is_dir():
            raise RunError(f"{out}: there is no {LAST} to go on from; check the path, or train without `resume`")
        if out.exists() and not out.is_dir():
            raise RunError(f"{out}: is there already and is not a run; choose another `out`")
        made = [folder for folder in (out, *out.parents) if not folder.exists()]
        if not (made or resume or (out / CONFIG).is_file()) and any(not _is_leftover(file) for file in out.iterdir()):
            raise RunError(f"{out}: is there already and is not a run; choose another `out`")
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{out}: cannot be written ({error.strerror}); choose another `out`") from error
    try:
        with locked(
            out / LOCK, f"{out}: another process trains this run; wait until it has ended, or choose another `out`"
        ):
            check_claim(out, resume, overwrite)
            for file in out.iterdir():
                if _is_leftover(file) and file.name != LOCK:  # of a killed process, because this one holds the lock
                    file.unlink(missing_ok=True)
            yield out
    finally:
        with suppress(OSError):  # it is not empty any more
            for folder in made:
                folder.rmdir()


def check_claim(out: Path, resume: bool, overwrite: bool) -> None:
    """Check that a folder has a run to resume, or none that would be lost.

    Raises:
        RunError: it has not, or it has one.
    """
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
    raise RunError(f"{out}: a run started there and ended before it saved anything; {instead}")


def _is_leftover(file: Path) -> bool:
    """Whether a file is a lock, or a temporary file of a killed process."""
    return file.name == LOCK or _UNFINISHED.fullmatch(file.name) is not None


def clear(out: Path) -> None:
    """Remove the run in a folder with the results of commands. ``config.yaml`` stays until another one is written.

    Checkpoints and weights are removed first, so that the rest is not taken for a run if the process is killed.
    """
    for name in (LAST, BEST, WEIGHTS, *RESULT_FILES, SUMMARY, METRICS, ATTENTION, BAD_IMAGES, LOGGER, CARD):
        (out / name).unlink(missing_ok=True)
    for pattern in ("events.out.tfevents.*", "hparams.yaml"):
        for file in (out / TENSORBOARD).glob(pattern):
            file.unlink(missing_ok=True)
    with suppress(OSError):  # there is none, or something else is in it
        (out / TENSORBOARD).rmdir()

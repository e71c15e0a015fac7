"""The front door: make a model by name, classify with it, keep it in a run folder.

A run folder holds ``config.yaml`` (every value the run was made with), ``metrics.csv``, ``attention.csv`` (of networks with
attention modules), ``summary.json`` (the outcome of training), ``last.ckpt`` and ``best.ckpt`` (to go on training), and
``model.safetensors`` with ``config.json`` (for everything else). The last two suffice to use a model, and rebuild it without
downloading anything.

Example:
    >>> import tempfile, torch
    >>> model = as_classifier(create_model("test_resnet", num_classes=2), image_size=64)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_model(folder, model, ModelInfo({"name": "test_resnet", "image_size": 64}, ("cat", "dog")))
    ...     same = load(folder)
    >>> image = torch.rand(3, 80, 60)
    >>> same.class_names, torch.equal(classify(same, image).logits, classify(model, image).logits)
    (('cat', 'dog'), True)
"""

from __future__ import annotations

import difflib
import fnmatch
import inspect
import json
import logging
import pickle
import re
import socket
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialise
from torch import Tensor, nn

import foveal.glimpse.dram
import foveal.glimpse.ram
import foveal.glimpse.saccader
import foveal.glimpse.tnet  # noqa: F401  (they register their models)
from foveal.classification import Classification
from foveal.errors import ConfigError, ImageError, RunError
from foveal.files import replacing
from foveal.glimpse.base import GlimpseClassifier, WholeImage, check_network, networks, size_options
from foveal.glimpse.registry import MODELS
from foveal.images import (
    ImageViews,
    Pyramid,
    TensorViews,
    View,
    Views,
    as_batch,
    as_image,
    check_type,
    each,
    is_one,
    is_path,
    open_image,
    squash,
)
from foveal.policies import GREEDY, Policy
from foveal.registry import UnknownName, imported, made_with

CONFIG, METRICS, ATTENTION, LAST, BEST, WEIGHTS, CARD, BAD_IMAGES, SUMMARY = (
    "config.yaml", "metrics.csv", "attention.csv", "last.ckpt", "best.ckpt", "model.safetensors", "config.json", "bad_images.csv",
    "summary.json",
)  # fmt: skip

FOUND_OUT = (
    "evaluation.json", "tradeoff.png", "occlusion.json", "occlusion.png", "faithfulness.json", "faithfulness.png", "exits.json",
    "early_exit.json",
)  # fmt: skip
"""What commands write into a run about its model."""

DATA_PATHS = ("root", "file", "val_labels", "annotations")
"""Options of data sets that are paths."""

# --------------------------------------------------------------------------------------------------- models by name


def list_models(pattern: str = "*") -> list[str]:
    """Names that `create_model` knows, ours first; ``pattern`` may hold ``*`` and ``?``."""
    ours = MODELS.names()
    return fnmatch.filter([*ours, *(name for name in networks().list_models() if name not in MODELS)], pattern)


def constructor(name: str) -> Callable[..., Any]:
    """What builds the model of this name, for its signature.

    Raises:
        ConfigError: nothing has that name.
    """
    if name in MODELS:
        return MODELS.get(name)
    check_network(name, name, "there is no model of this name", "foveal models lists them", MODELS.names(), kind="model")
    return networks().model_entrypoint(name.partition(".")[0])


def create_model(name: str, *, num_classes: int | None = None, pretrained: bool | str | Path = False, **options: Any) -> nn.Module:
    """Make a model: one of timm's, as timm makes it, or a `GlimpseClassifier` of ours.

    Args:
        name: see `list_models`.
        num_classes: classes; the model's own number if None.
        pretrained: load timm's weights (downloaded once, by timm), or those of a local file, ``.safetensors`` or saved by `torch.save`.
        options: keywords of the model.

    Raises:
        ConfigError: an unknown name or option, or weights that cannot be had. Where the Hugging Face Hub cannot be reached, and the
            weights were not downloaded before, this is told at once.
    """
    build = constructor(name)
    if num_classes is not None:
        options["num_classes"] = num_classes
    if pretrained:
        options["pretrained"] = True if pretrained is True else str(pretrained)
    if isinstance(pretrained, str | Path):
        weights = read_weights(Path(pretrained))
        if name not in MODELS:
            options |= {"pretrained": True, "pretrained_cfg_overlay": {"state_dict": weights, **_classes_of(name, weights)}}
    try:
        with _hub_at_once() if pretrained is True else nullcontext():
            return build(**options) if name in MODELS else networks().create_model(name, **options)
    except TypeError as error:
        raise _option_error(name, build, options, error) from error
    except ValueError as error:
        raise ConfigError(f"model {name}: {str(error).rstrip('.')}") from error
    except (OSError, RuntimeError) as error:
        if not pretrained:
            raise
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise ConfigError(
            f"{name}: its pretrained weights do not load ({reason}); give a local file that fits,"
            " by --model.pretrained FILE or in Python pretrained=FILE"
        ) from error


@contextmanager
def _hub_at_once() -> Iterator[None]:
    """Where the Hugging Face Hub cannot be reached, work offline. It would retry for a minute, even for weights that are here already."""
    from huggingface_hub import constants

    offline = constants.HF_HUB_OFFLINE
    try:
        constants.HF_HUB_OFFLINE = offline or not _reachable(constants.ENDPOINT)
        with _hushed("huggingface_hub.utils._http"):  # what a dozen warnings would say is said once, at the end
            yield
    finally:
        constants.HF_HUB_OFFLINE = offline


@contextmanager
def _hushed(logger: str) -> Iterator[None]:
    """Without warnings of a logger."""
    log = logging.getLogger(logger)
    level = log.level
    try:
        log.setLevel(logging.ERROR)
        yield
    finally:
        log.setLevel(level)


def _reachable(url: str) -> bool:
    """Whether a server answers. It may be behind a proxy, which nobody can tell without a request."""
    address = urlsplit(url)
    if getproxies():
        return True
    try:
        socket.create_connection((address.hostname, address.port or (80 if address.scheme == "http" else 443)), timeout=10).close()
    except OSError:
        return False
    return True


def create_classifier(name: str, *, num_classes: int | None = None, **options: Any) -> GlimpseClassifier:
    """`create_model`, with a dense network wrapped to look once at the whole image.

    Args:
        name, num_classes: as of `create_model`.
        options: keywords of the model; for a dense network also those of `foveal.glimpse.base.WholeImage`. A network that is built for
            images of one size is built for ``image_size``.

    Raises:
        ConfigError: see `create_model`; or the network takes no images of ``image_size``.
    """
    if name in MODELS:
        return as_classifier(create_model(name, num_classes=num_classes, **options))
    how = {key: options.pop(key) for key in wrapper_options() if key in options}
    if (size := how.get("image_size")) is not None:
        constructor(name)  # a name that is wrong should be told first
        told = options if num_classes is None else {**options, "num_classes": num_classes}
        options |= size_options(name, (size, size) if isinstance(size, int) else tuple(size), told)
    return as_classifier(create_model(name, num_classes=num_classes, **options), **how)


def as_classifier(model: nn.Module | Run | str | Path, **options: Any) -> GlimpseClassifier:
    """The model itself if it looks; else wrapped in `WholeImage`, to which ``options`` go. A run folder is loaded.

    Raises:
        ConfigError: it is no model.
        RunError: see `Run.load_model`.
    """
    if isinstance(model, Run):
        return model.load_model()
    if isinstance(model, str | Path):
        return load(model)
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model: an object of the type {type(model).__name__} was given; give a network, or the path of a run folder")
    return model if isinstance(model, GlimpseClassifier) else WholeImage(model, **options)


def wrapper_options() -> list[str]:
    """Keywords that any dense network takes beside its own."""
    return [name for name in inspect.signature(WholeImage).parameters if name != "network"]


def read_weights(file: Path) -> dict[str, Tensor]:
    """Tensors by name from a ``.safetensors`` file or one that `torch.save` wrote; nothing in it is executed.

    Raises:
        ConfigError: there is no such file, or it holds anything else.
    """
    try:
        content = load_file(file) if file.suffix == ".safetensors" else _unpickled(file)
    except FileNotFoundError as error:
        raise ConfigError(f"{file}: there is no such file of weights; check the path") from error
    except Exception as error:  # the readers raise whatever a damaged file leads them to
        raise ConfigError(f"{file}: is not a file of tensors alone; save a state_dict as .safetensors") from error
    weights: Any = content.get("state_dict", content) if isinstance(content, dict) else None
    if not weights or not all(isinstance(value, Tensor) for value in weights.values()):
        raise ConfigError(f"{file}: is not a file of named tensors; save a state_dict as .safetensors")
    return weights


def _unpickled(file: Path) -> Any:
    """What `torch.save` wrote, as far as it is tensors and plain values."""
    with warnings.catch_warnings():
        # Said of a file that torch goes on to refuse.
        warnings.filterwarnings("ignore", "Detected pickle protocol")
        return torch.load(file, map_location="cpu", weights_only=True)


def _classes_of(name: str, weights: dict[str, Tensor]) -> dict[str, int]:
    """The number of classes of a file of weights, without which timm takes that of its own and may drop the classifier."""
    card = networks().get_pretrained_cfg(name, allow_unregistered=True)
    classifier = f"{card and card.classifier}.weight"
    heads = [w for key, w in weights.items() if key.endswith(classifier)] or [w for w in weights.values() if w.ndim == 2]
    return {"num_classes": len(heads[0])} if len(heads) == 1 else {}


def _option_error(name: str, build: Callable[..., Any], options: dict[str, Any], error: TypeError) -> Exception:
    """The sentence for an option that a model does not take, or not with this value; the error itself where no option was given."""
    found = re.search(r"(?:(\w+)\.__init__\(\) )?got (?:an unexpected|multiple values for) (?:keyword )?argument '([^']+)'", str(error))
    if not found or found[2] not in options:
        if not options.keys() - {"num_classes", "pretrained", "pretrained_cfg_overlay"}:
            return error  # nobody chose anything: a bug
        reason = str(error).strip().partition("\n")[0]
        return ConfigError(f"model {name}: an option has a value of a wrong type ({reason}); foveal fit --model {name} --help lists types")
    build = getattr(build, "func", build)
    takes = [build, getattr(sys.modules[build.__module__], found[1] or "", build)]
    known = {
        p
        for what in takes
        for p, spec in inspect.signature(what).parameters.items()
        if spec.kind not in (spec.VAR_KEYWORD, spec.VAR_POSITIONAL)
    }
    near = difflib.get_close_matches(found[2], known - {"self"}, 3)
    hint = f"did you mean {_either(near)}" if near else f"foveal fit --model {name} --help lists them"
    return ConfigError(f"model {name}: there is no option {found[2]!r}; {hint}")


def _either(names: Iterable[str]) -> str:
    return " or ".join(names)


# --------------------------------------------------------------------------------------------------------- classify


def classify(
    model: nn.Module | Run | str | Path, images: Any, *, locations: Sequence[int] | None = None, policy: str | Policy = GREEDY,
    batch_size: int = 16, device: str | torch.device | None = None,
) -> Classification:  # fmt: skip
    """Classify one image or several, by any model.

    The same pixels give the same answer whether they come as a file, a Pillow image, an array or a tensor.

    Args:
        model: a classifier that looks; any dense network, which then sees the whole image at once; or a run folder.
        images: an image, a list of images, or a (B, C, H, W) tensor. An image is a path, a Pillow image, a NumPy array (H, W) or
            (H, W, C), a tensor (C, H, W), or what `foveal.open_image` returns. Pixels are uint8, uint16, or floats from 0 to 1; for a
            model that was trained with a value range, they are values in that range. See `foveal.images.inputs`.
        locations: budget, looks per grid at each level; the model's own if None.
        policy: how locations are selected, see `GlimpseClassifier.forward`.
        batch_size: images at a time.
        device: where to; where the model is if None.

    Returns:
        The classification of the one image, or of all of them.

    Raises:
        ImageError: an image cannot be opened or read, or cannot be one that the model takes; `foveal.predict` goes on instead.
        ConfigError: a model or device that is none.
        RunError: a run folder that is none.
    """
    classifier = as_classifier(model)
    if device is not None:
        classifier = _moved(classifier, device)
    one = not isinstance(images, Views) and is_one(images)
    was_training = classifier.training
    try:
        classifier.eval()
        with torch.inference_mode():
            parts = [_classify(classifier, batch, locations, policy) for batch in _batches(images, classifier, batch_size)]
    finally:
        classifier.train(was_training)
    if not parts:
        raise ImageError("there is no image to classify; give at least one")
    return parts[0][0] if one else parts[0] if len(parts) == 1 else Classification.cat(parts)


def _moved(classifier: GlimpseClassifier, device: str | torch.device) -> GlimpseClassifier:
    try:
        return classifier.to(device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"device {device}: this machine has no such device that torch can use; give cpu, or leave it out") from error


def _classify(classifier: GlimpseClassifier, views: Views, locations: Sequence[int] | None, policy: str | Policy) -> Classification:
    result = classifier(views, locations=locations, policy=policy)
    for reason in views.errors.values():
        raise ImageError(reason)
    return result


def _batches(images: Any, classifier: GlimpseClassifier, batch_size: int) -> Iterator[Views]:
    as_they_are = getattr(classifier, "value_range", None) is None and getattr(classifier, "image_size", None) is None
    if isinstance(images, Views):
        if len(images):
            yield images
    elif isinstance(images, Tensor) and as_they_are:
        for part in as_batch(images, classifier.channels).split(batch_size):
            part = part.to(classifier.mean.device)
            if part.dtype == torch.uint16 and part.device.type != "cpu":
                part = part.float() / 65535  # few of torch's kernels know the type there
            if len(part):
                yield TensorViews(part)
    else:
        named = each(images)
        while some := list(islice(named, batch_size)):
            opened = [image if isinstance(image, View) else open_for(classifier, image, name) for name, image in some]
            yield ImageViews(opened)
            for (_, image), mine in zip(some, opened, strict=True):
                if is_path(image) and isinstance(mine, Pyramid):
                    mine.close()


def open_for(classifier: GlimpseClassifier, image: Any, name: str = "image") -> Pyramid:
    """Open an image as the classifier's training images were opened: its bands, its range of values, its size if they had one.

    Args:
        classifier: the model that is to look.
        image: a path, or what `foveal.images.as_image` takes.
        name: of an image that is no file, for errors.

    Raises:
        ImageError: see `foveal.images.open_image` and `foveal.images.as_image`.
    """
    value_range = getattr(classifier, "value_range", None)
    taken: dict[str, Any] = {"channels": classifier.channels, "value_range": value_range}
    opened = open_image(image, **taken) if is_path(image) else as_image(image, name=name, **taken)
    check_type(opened, value_range)
    side = getattr(classifier, "image_size", None)
    if side is None:
        return opened
    with opened if is_path(image) else nullcontext():
        return squash(opened, side, getattr(classifier, "shorter_side", None))


# ------------------------------------------------------------------------------------------------------ run folders


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


def save_model(folder: str | Path, model: GlimpseClassifier, info: ModelInfo, weights: dict[str, Tensor] | None = None) -> None:
    """Write ``model.safetensors`` and ``config.json`` into a folder.

    Args:
        folder: made if it is not there.
        model: the model; what it sees and how it normalises is written too.
        info: the rest.
        weights: weights to write instead of the model's own.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_card(folder, model, info)
    state = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in (weights or model.state_dict()).items()}
    with replacing(folder / WEIGHTS) as unfinished:
        unfinished.write_bytes(serialise(state, metadata={"format": "pt"}))


def write_card(folder: Path, model: GlimpseClassifier, info: ModelInfo) -> None:
    """Write ``config.json`` alone: what a folder needs beside weights."""
    from foveal import __version__

    card = {
        "foveal": __version__,
        "imports": imported(),
        # Weights come from this folder: rebuilding must not fetch the ones training began with.
        "model": {key: info.model.get(key, getattr(model, key, None)) for key in without_weights(as_written(info.model))},
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
    with replacing(folder / CARD) as unfinished:
        unfinished.write_text(json.dumps(card, indent=2) + "\n")


def without_weights(options: dict[str, Any]) -> dict[str, Any]:
    """A model's options, but for those that say where its first weights come from."""
    return {key: value for key, value in options.items() if not key.endswith("pretrained")}


def with_absolute_paths(config: dict[str, Any]) -> dict[str, Any]:
    """A run's configuration from which the run can be used in any folder: relative paths are taken from the current one.

    Paths are the options `DATA_PATHS` of the data set, files of pretrained weights, and ``init_from``.
    """
    data, model = dict(config.get("data") or {}), dict(config.get("model") or {})
    data |= {key: _absolute(data[key]) for key in DATA_PATHS if key in data}
    model |= {key: _absolute(value) for key, value in model.items() if key.endswith("pretrained")}
    return {**config, "data": data, "model": model, "init_from": _absolute(config.get("init_from"))}


def _absolute(path: Any) -> Any:
    return str(Path(path).expanduser().absolute()) if isinstance(path, str | Path) and "://" not in str(path) else path


def as_written(options: dict[str, Any]) -> dict[str, Any]:
    """A stored model's name and options, with those that it was written without, because they did not exist, as it behaved then."""
    formerly = getattr(constructor(options["name"]), "formerly", {})
    return {**options, **{key: value for key, value in formerly.items() if key not in options}}


def load(path: str | Path, device: str | torch.device = "cpu", which: str = "best") -> GlimpseClassifier:
    """The trained model of a run folder, or of any folder with ``model.safetensors`` and ``config.json``; see `Run.load_model`."""
    return Run(path).load_model(device, which)


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
            raise RunError(f"{path}: has no {CARD}, so it is no run folder or was never finished; give another folder or train again")

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
        try:
            card = json.loads((self.path / CARD).read_text())
            if not isinstance(card["model"]["name"], str) or not isinstance(card["class_names"], list):
                raise TypeError
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(f"{self.path / CARD}: is damaged or not ours; copy it again or train again") from error
        return card

    @cached_property
    def summary(self) -> dict[str, Any] | None:
        """The outcome of training, as `foveal.training.TrainingSummary` describes it; None if there is none (yet).

        Raises:
            RunError: the file is damaged.
        """
        file = self.path / SUMMARY
        try:
            return json.loads(file.read_text()) if file.is_file() else None
        except ValueError as error:
            raise RunError(f"{file}: is damaged; foveal fit --out {self.path} --resume writes it again") from error

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(self.card["class_names"])

    def load_model(self, device: str | torch.device = "cpu", which: str = "best") -> GlimpseClassifier:
        """The model, in evaluation mode.

        Args:
            device: where to.
            which: ``"best"``, the weights chosen on the validation images; or ``"last"``, those of the latest checkpoint.

        Raises:
            RunError: no weights, damaged ones, or some that do not fit; a model that this version does not know.
        """
        model = self._build()
        file = self.path / (WEIGHTS if which == "best" else LAST)
        weights = self._weights(file)
        check_fit(model, weights, file)
        model.load_state_dict(weights)
        return model.eval().to(device)

    def _build(self) -> GlimpseClassifier:
        try:
            with made_with(self.card.get("imports")), _hushed("foveal.glimpse"):  # advice on a model comes too late when it is trained
                options = as_written(self.card["model"])
                model = create_classifier(options.pop("name"), num_classes=self.card.get("num_classes"), **options)
        except ConfigError as error:
            advice = "" if isinstance(error, UnknownName) and error.elsewhere else "; or use the version of foveal that wrote it"
            raise RunError(f"{self.path / CARD}: {error}{advice}") from error
        model.class_names = self.class_names
        model.locations = tuple(self.card.get("locations") or ())
        for key in ("value_range", "image_size", "shorter_side"):
            setattr(model, key, self.card.get(key))
        return model

    def _weights(self, file: Path) -> dict[str, Tensor]:
        if not file.is_file():
            go_on = f"go on by foveal fit --out {self.path} --resume, or in Python take {LAST} by which='last'"
            hint = go_on if (self.path / LAST).is_file() else "train again"
            raise RunError(f"{file}: there are no weights, so training has not got that far; {hint}")
        if file.suffix == ".safetensors":
            try:
                return load_file(file)
            except (SafetensorError, OSError) as error:
                raise RunError(f"{file}: is damaged or half written; copy it again or train again") from error
        return model_state(read_checkpoint(file), file)


def read_config(folder: Path) -> dict[str, Any]:
    """Content of a run folder's ``config.yaml``; raises `RunError` without a sound one."""
    again = f"put a copy back, or train it again by foveal fit RECIPE --out {folder} --overwrite"
    try:
        config = yaml.safe_load((folder / CONFIG).read_text())
    except OSError as error:
        raise RunError(f"{folder / CONFIG}: cannot be read ({error.strerror}); put it back, or train again with another --out") from error
    except (ValueError, yaml.YAMLError) as error:
        raise RunError(f"{folder / CONFIG}: is damaged; {again}") from error
    if not isinstance(config, dict):
        raise RunError(f"{folder / CONFIG}: is not a list of options with values; {again}")
    return config


def read_checkpoint(file: Path) -> dict[str, Any]:
    """A training checkpoint, of tensors and plain values; anything that would run code is refused.

    Raises:
        RunError: it is missing, damaged or holds anything else.
    """
    if not file.is_file():
        raise RunError(f"{file}: there is no checkpoint to go on from; start again with --overwrite")
    try:
        content = _unpickled(file)
    except Exception as error:  # the reader raises whatever a damaged file leads it to
        hostile = isinstance(error, pickle.UnpicklingError) and zipfile.is_zipfile(file)
        what = "holds more than tensors and plain values and was not opened" if hostile else "is damaged or half written"
        raise RunError(f"{file}: {what}; bring a copy that you trust, or start again with --overwrite") from error
    if not isinstance(content, dict) or not {"state_dict", "loops", "global_step"} <= content.keys():
        raise RunError(f"{file}: is not a checkpoint of a run; bring the right file, or start again with --overwrite")
    return content


def model_state(checkpoint: dict[str, Any], file: Path) -> dict[str, Tensor]:
    """The model's weights in a checkpoint, averaged ones if it has them."""
    source, prefix = (checkpoint["average"], "module.") if "average" in checkpoint else (checkpoint["state_dict"], "model.")
    state = {name.removeprefix(prefix): value for name, value in source.items() if name.startswith(prefix)}
    if not state:
        raise RunError(f"{file}: holds no model; bring the right file, or start again with --overwrite")
    return state


def check_fit(model: nn.Module, weights: dict[str, Tensor], file: Path) -> None:
    """See that weights are those of the model.

    Raises:
        RunError: names the first tensor that is missing, too many, or of another shape.
    """
    wanted = model.state_dict()
    for name in [*wanted, *weights]:
        here, there = wanted.get(name), weights.get(name)
        if here is None or there is None:
            what = f"{name} is {'missing' if there is None else 'not a part of this model'}"
        elif here.shape != there.shape:
            what = f"{name} is {tuple(there.shape)} where the model has {tuple(here.shape)}"
        else:
            continue
        raise RunError(f"{file}: the weights do not fit the model, {what}; use the config that they were trained with")


def claim(out: str | Path, *, resume: bool = False, overwrite: bool = False) -> Path:
    """Make sure that a run may be written to a folder, and make it; a run to be replaced stays until `clear`.

    Raises:
        RunError: something is there already, or there is nothing to go on with.
    """
    out = Path(out)
    try:
        used = out.exists() and (not out.is_dir() or any(out.iterdir()))
        if resume:
            if not (out / LAST).is_file():
                raise RunError(f"{out}: there is no {LAST} to go on from; check the path, or start again with --overwrite")
            return out
        if used and not (out / CONFIG).is_file():
            raise RunError(f"{out}: is there already and is not a run; choose another --out")
        if used and not overwrite:
            raise RunError(f"{out}: a run is there already; go on with it by --resume, replace it by --overwrite, or choose another --out")
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{out}: cannot be written ({error.strerror}); choose another --out") from error
    return out


def clear(out: Path) -> None:
    """Remove the run in a folder, with what was found out about its model."""
    for name in (METRICS, ATTENTION, LAST, BEST, WEIGHTS, CARD, BAD_IMAGES, SUMMARY, *FOUND_OUT, CONFIG):
        (out / name).unlink(missing_ok=True)

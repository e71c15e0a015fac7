"""Models by name: classifiers of foveal, and dense networks of timm, which look once at the whole image.

Example:
    >>> model = create_classifier("test_resnet", num_classes=2, image_size=64)
    >>> model.size, model.num_classes
    ((64, 64), 2)
"""

from __future__ import annotations

import difflib
import fnmatch
import inspect
import logging
import re
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import foveal.glimpse.dram
import foveal.glimpse.ips
import foveal.glimpse.mil
import foveal.glimpse.ram
import foveal.glimpse.saccader
import foveal.glimpse.scan
import foveal.glimpse.tile_scan
import foveal.glimpse.tnet  # noqa: F401  (they register their models)
from foveal.errors import ConfigError
from foveal.glimpse.base import GlimpseClassifier, WholeImage
from foveal.glimpse.networks import check_look, check_network, import_timm, size_options
from foveal.hub import reachable
from foveal.registry import MODELS
from foveal.strict import ContentError


def list_models(pattern: str = "*") -> list[str]:
    """Names of all models: those of foveal, then those of timm. ``pattern`` may have the wildcards ``*`` and ``?``."""
    others = [name for name in import_timm().list_models() if name not in MODELS]
    return fnmatch.filter([*MODELS.names(), *others], pattern)


def constructor(name: str) -> Callable[..., Any]:
    """The function or class that creates a model, for its signature.

    Raises:
        ConfigError: there is no model with this name.
    """
    if name in MODELS:
        return MODELS.get(name)
    check_network(
        name, name, "there is no model of this name", "foveal models lists them", MODELS.names(), kind="model"
    )
    return import_timm().model_entrypoint(name.partition(".")[0])


def create_model(
    name: str, *, num_classes: int | None = None, pretrained: bool | str | Path = False, **options: Any
) -> nn.Module:
    """Create a model: a `GlimpseClassifier`, or a network of timm as by `timm.create_model`.

    Args:
        name: see `list_models`.
        num_classes: number of classes; the model's default if None.
        pretrained: load the pretrained weights of timm (downloaded once, by timm), or those of a local file,
            ``.safetensors`` or saved by `torch.save`.
        options: keyword arguments of the model.

    Returns:
        The model. Its ``spec`` is its name with all options, defaults included, for run folders.

    Raises:
        ConfigError: the name or an option is unknown, or the weights cannot be loaded. If the Hugging Face Hub cannot
            be reached and the weights are not in its cache, this is raised without retries.
    """
    build = constructor(name)
    spec = {"name": name, **simple_defaults(build), **options}
    if pretrained:
        spec["pretrained"] = str(pretrained) if isinstance(pretrained, Path) else pretrained
    spec.pop("num_classes", None)  # the data determines it
    if num_classes is not None:
        options["num_classes"] = num_classes
    if isinstance(img_size := options.get("img_size"), int | tuple):
        check_look(options.get("in_chans", 3), img_size=img_size)
    if pretrained:
        options["pretrained"] = True if pretrained is True else str(pretrained)
    if isinstance(pretrained, str | Path):
        weights = read_weights(Path(pretrained))
        if name not in MODELS:
            options |= {
                "pretrained": True,
                "pretrained_cfg_overlay": {"state_dict": weights, **_classes_of(name, weights)},
            }
    try:
        with _without_hub_retries() if pretrained is True else nullcontext():
            model = build(**options) if name in MODELS else import_timm().create_model(name, **options)
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
            " by `model.pretrained` FILE or in Python pretrained=FILE"
        ) from error
    model.spec = spec
    return model


@contextmanager
def _without_hub_retries() -> Iterator[None]:
    """Work offline if the Hugging Face Hub cannot be reached. It would retry for a minute, even for cached weights."""
    from huggingface_hub import constants

    offline = constants.HF_HUB_OFFLINE
    try:
        constants.HF_HUB_OFFLINE = offline or not reachable(constants.ENDPOINT)
        with without_warnings("huggingface_hub.utils._http"):  # a dozen warnings; one error follows
            yield
    finally:
        constants.HF_HUB_OFFLINE = offline


@contextmanager
def without_warnings(logger: str) -> Iterator[None]:
    """Suppress the warnings of a logger."""
    log = logging.getLogger(logger)
    level = log.level
    try:
        log.setLevel(logging.ERROR)
        yield
    finally:
        log.setLevel(level)


def create_classifier(name: str, *, num_classes: int | None = None, **options: Any) -> GlimpseClassifier:
    """`create_model`, with a dense network wrapped to look once at the whole image.

    Args:
        name, num_classes: as of `create_model`.
        options: keywords of the model; for a dense network also those of `foveal.glimpse.base.WholeImage`. A network
            that is built for images of one size is built for ``image_size``.

    Raises:
        ConfigError: see `create_model`; or the network takes no images of ``image_size``.
    """
    how: dict[str, Any] = {}
    sized: dict[str, Any] = {}
    if name not in MODELS:
        how = {key: options.pop(key) for key in wrapper_options() if key in options}
        if (size := how.get("image_size")) is not None:
            constructor(name)  # raise for an unknown name first
            check_look(options.get("in_chans", 3), image_size=size)
            classes = {} if num_classes is None else {"num_classes": num_classes}
            sized = size_options(name, (size, size) if isinstance(size, int) else tuple(size), {**options, **classes})
    classifier = as_classifier(create_model(name, num_classes=num_classes, **options, **sized), **how)
    classifier.spec = {key: value for key, value in classifier.spec.items() if key not in sized}
    return classifier


def simple_defaults(build: Callable[..., Any]) -> dict[str, Any]:
    """Default values of a signature that a file can store."""
    simple = (bool, int, float, str, list, tuple, dict, type(None))
    parameters = inspect.signature(build).parameters.items()
    return {
        key: spec.default
        for key, spec in parameters
        if isinstance(spec.default, simple) and spec.default is not spec.empty
    }


def as_classifier(model: Any, **options: Any) -> GlimpseClassifier:
    """A `GlimpseClassifier` unchanged; another network wrapped in `WholeImage` with ``options``.

    Raises:
        ConfigError: ``model`` is not a network.
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"model: an object of the type {type(model).__name__} was given; give a network, or the path of a run "
            "folder"
        )
    if isinstance(model, GlimpseClassifier):
        return model
    classifier = WholeImage(model, **options)
    classifier.spec = {**getattr(model, "spec", {}), **options}
    return classifier


def wrapper_options() -> list[str]:
    """Options of `WholeImage`, which apply to all dense networks."""
    return [name for name in inspect.signature(WholeImage).parameters if name != "network"]


def read_weights(file: Path) -> dict[str, Tensor]:
    """Read tensors by name from a ``.safetensors`` file or one that `torch.save` wrote. No code in it is executed.

    Raises:
        ConfigError: the file does not exist, or contains anything else.
    """
    try:
        content = load_file(file) if file.suffix == ".safetensors" else unpickled(file)
    except FileNotFoundError as error:
        raise ConfigError(f"{file}: there is no such file of weights; check the path") from error
    except Exception as error:  # both readers raise any exception for damaged files
        raise ConfigError(f"{file}: is not a file of tensors alone; save a state_dict as .safetensors") from error
    weights: Any = content.get("state_dict", content) if isinstance(content, dict) else None
    if not weights or not all(isinstance(value, Tensor) for value in weights.values()):
        raise ConfigError(f"{file}: is not a file of named tensors; save a state_dict as .safetensors")
    return weights


def unpickled(file: Path) -> Any:
    """Read a file that `torch.save` wrote. It may contain tensors and plain values only."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise ContentError("is compressed, which torch.save does not do, and may be larger than memory")
    with warnings.catch_warnings():
        # torch.load refuses such files.
        warnings.filterwarnings("ignore", "Detected pickle protocol")
        return torch.load(file, map_location="cpu", weights_only=True)


def _classes_of(name: str, weights: dict[str, Tensor]) -> dict[str, int]:
    """``num_classes`` of a file of weights. Without it timm uses its default and may drop the classifier."""
    card = import_timm().get_pretrained_cfg(name, allow_unregistered=True)
    classifier = f"{card and card.classifier}.weight"
    heads = [w for key, w in weights.items() if key.endswith(classifier)] or [
        w for w in weights.values() if w.ndim == 2
    ]
    return {"num_classes": len(heads[0])} if len(heads) == 1 else {}


def _option_error(name: str, build: Callable[..., Any], options: dict[str, Any], error: TypeError) -> Exception:
    """A `ConfigError` for an unknown option or a value of a wrong type; ``error`` if there were no options."""
    found = re.search(
        r"(?:(\w+)\.__init__\(\) )?got (?:an unexpected|multiple values for) (?:keyword )?argument '([^']+)'",
        str(error),
    )
    if not found or found[2] not in options:
        if not options.keys() - {"num_classes", "pretrained", "pretrained_cfg_overlay"}:
            return error  # without options it is a bug
        reason = str(error).strip().partition("\n")[0]
        return ConfigError(
            f"model {name}: an option has a value of a wrong type ({reason}); foveal fit --model {name} --help lists "
            "types"
        )
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

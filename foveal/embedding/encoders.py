"""Networks that encode tiles: by name, or those of a run.

Example:
    >>> encoder = tile_encoder("test_resnet", tile_size=32, pretrained=False)
    >>> encoder.name, encoder.tiles.features, encoder.settings("32", masked=False)["encoder"]["tile_size"]
    ('test_resnet', 96, 32)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from foveal.errors import ConfigError
from foveal.glimpse.base import GlimpseClassifier, WholeImage
from foveal.glimpse.mil import AttentionPooling
from foveal.glimpse.networks import import_timm
from foveal.glimpse.scan import Scan
from foveal.glimpse.tiles import TileClassifier
from foveal.hub import on_hub
from foveal.models import wrapper_options
from foveal.prediction import Predictor, fingerprint


@dataclass
class TileEncoder:
    """A network that encodes tiles.

    Attributes:
        tiles: a classifier of tiles, whose head is not used.
        name: name of the network.
        licence: that of the weights; None if not known.
        scan: the scan that chooses the looks to encode; None for all tiles.
        locations: number of its looks.
        value_range: stored values that become 0 and 1; None for the range of the pixel type.
    """

    tiles: AttentionPooling
    name: str
    licence: str | None = None
    scan: Scan | None = None
    locations: tuple[int, ...] = ()
    value_range: tuple[float, float] | None = None

    def settings(self, precision: str, masked: bool) -> dict[str, Any]:
        """What features depend on, besides the image, as plain values."""
        tiles = self.tiles
        options = {key: tiles.spec.get(key) for key in ("backbone", "backbone_options", "stages")}
        options |= {"in_chans": tiles.channels, "tile_size": tiles.size[0], "tile_stride": tiles.stride}
        options |= {"scale": tiles.scale, "mean": tiles.mean.tolist(), "std": tiles.std.tolist()}
        chosen = None
        if self.scan is not None:
            chosen = {"scan": fingerprint(self.scan), "locations": list(self.locations)}
        return {
            "version": 1,
            "encoder": options,
            "weights": weights_digest(self.tiles.encoder),
            "value_range": None if self.value_range is None else [float(x) for x in self.value_range],
            "precision": precision,
            "masked": masked,
            "chosen": chosen,
        }


def weights_digest(encoder: nn.Module) -> str:
    """Digest of the weights of a network, 16 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in encoder.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


_LOCAL = "local-dir:"


def settings_digest(settings: dict[str, Any]) -> str:
    """Digest of settings, 16 hexadecimal digits."""
    return hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=8).hexdigest()


def tile_encoder(
    model: Any,
    *,
    tile_size: int | None = None,
    tile_stride: int | None = None,
    scale: int | None = None,
    stages: int | None = None,
    backbone_options: dict[str, Any] | None = None,
    pretrained: bool | str = True,
    in_chans: int = 3,
    value_range: tuple[float, float] | None = None,
    locations: int | Sequence[int] | None = None,
    licence: str | None = None,
) -> TileEncoder:
    """Create the network that encodes tiles.

    Args:
        model: a run folder, or a classifier: of tiles, whose grid and encoder are used; of the model ``scan``, whose
            looks are encoded by its reader; or a dense network, without its classifier. Or the name of a network: one
            of timm's, ``hf-hub:owner/name`` of a network of timm on the Hugging Face Hub, or ``local-dir:folder`` of
            one in a folder, as `timm.models.push_to_hf_hub` writes.
        tile_size: side of a tile in pixels of the level; that of the run, or the input size of the network, if None.
        tile_stride: pixels of the level between the beginnings of tiles; that of the run, or ``tile_size``, if None.
        scale: pixels of the image per pixel of the level, along each axis; that of the run, or 1, if None.
        stages: for a name: number of stages of the network, whose last output is averaged; the whole network if None.
        backbone_options: for a timm name: further keywords for `timm.create_model`.
        pretrained: for a timm name: True loads the weights that timm downloads; a path loads that file.
        in_chans: for a name: number of bands of the images.
        value_range: for a name: stored values that become 0 and 1; the range of the pixel type if None.
        locations: for a scan: number of looks; its own if None.
        licence: licence of the weights, if timm does not know it.

    Raises:
        ConfigError: there is no such network, it has no features, or an argument does not fit.
        RunError: the run cannot be loaded.
    """
    of_grid = {"tile_size": tile_size, "tile_stride": tile_stride, "scale": scale}
    given = {key: value for key, value in of_grid.items() if value is not None}
    if isinstance(model, str) and not Path(model).is_dir() and not (on_hub(model) and not _of_timm(model)):
        if on_hub(model) or model.startswith(_LOCAL):
            if backbone_options:
                raise ConfigError("`backbone_options`: are for networks of timm by name; leave them out")
            found = _from_timm(model, given, stages, in_chans, licence)
        elif "/" in model:
            raise ConfigError(f"{model}: there is no such run folder, and no network of this name; check it")
        else:
            found = _named(model, given, stages, backbone_options, pretrained, in_chans, licence)
        if value_range is not None:
            found.value_range = (float(value_range[0]), float(value_range[1]))
        chosen = None
    else:
        for name, unusual in (
            ("stages", stages is not None),
            ("backbone_options", backbone_options),
            ("pretrained", pretrained is not True),
            ("in_chans", in_chans != 3),
            ("value_range", value_range is not None),
        ):
            if unusual:
                raise ConfigError(f"`{name}`: is for networks by name, and a run has its own; leave it out")
        classifier = Predictor(model).model
        if getattr(classifier, "image_size", None) is not None:
            raise ConfigError(f"model {classifier.label}: was trained on resized images; give a run without image_size")
        found = _of_classifier(classifier, given, licence)
        found.value_range = getattr(classifier, "value_range", None)
        chosen = found.scan
    if chosen is None and locations is not None:
        raise ConfigError("`locations`: are for a run of the model scan; leave them out")
    if chosen is not None:
        if given:
            raise ConfigError(f"`{next(iter(given))}`: a scan chooses its own looks; leave it out")
        found.locations = chosen.resolve_locations(locations)
    return found


def _of_timm(name: str) -> bool:
    """Whether a repository of the Hub has a network of timm, and not a run of foveal."""
    from timm.models._hub import load_model_config_from_hf

    with suppress(Exception):
        return bool(load_model_config_from_hf(name.removeprefix("hf-hub:"))[1])
    return False


def _named(
    name: str,
    given: dict[str, Any],
    stages: int | None,
    backbone_options: dict[str, Any] | None,
    pretrained: bool | str,
    in_chans: int,
    licence: str | None,
) -> TileEncoder:
    config = import_timm().get_pretrained_cfg(name, allow_unregistered=True)
    side = given.get("tile_size") or (config.input_size[-1] if config is not None else 224)
    options = {"backbone": name, "backbone_options": backbone_options or None, "stages": stages, "in_chans": in_chans}
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)  # the same random weights each time
        tiles = AttentionPooling(2, **{**options, **given, "tile_size": side}, pretrained=pretrained)  # type: ignore[arg-type]
    known = config.license if config is not None and pretrained is True else None
    return TileEncoder(_told(tiles, {**options, **given, "tile_size": side}), name, licence or known)


def _from_timm(name: str, given: dict[str, Any], stages: int | None, in_chans: int, licence: str | None) -> TileEncoder:
    """A network of timm on the Hub or in a folder: its architecture by name, and its weights."""
    timm = import_timm()
    from timm.models._hub import load_model_config_from_hf, load_model_config_from_path

    try:
        place = name.partition(":")[2]
        of = load_model_config_from_hf if on_hub(name) else load_model_config_from_path
        config, architecture, options = of(place)
        whole = timm.create_model(name, pretrained=True, in_chans=in_chans, num_classes=0)
    except Exception as error:  # timm and the Hub raise many types
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise ConfigError(f"{name}: cannot be loaded ({reason}); check the name") from error
    side = given.get("tile_size") or tuple(config.get("input_size", (3, 224, 224)))[-1]
    keys = {key: value for key, value in dict(options or {}).items() if key not in ("num_classes", "in_chans")}
    spec: dict[str, Any] = {
        "backbone": architecture,
        "backbone_options": keys or None,
        "stages": stages,
        "in_chans": in_chans,
    }
    normalised: dict[str, Any] = {key: tuple(config[key]) for key in ("mean", "std") if config.get(key)}
    tiles = AttentionPooling(2, **{**spec, **given, "tile_size": side}, **normalised)
    _load(tiles, whole.state_dict(), name, prefix="0." if stages is not None else "")
    known = licence or config.get("license") or (_licence_on_hub(place) if on_hub(name) else None)
    return TileEncoder(_told(tiles, {**spec, **given, "tile_size": side}), name, known)


def _licence_on_hub(place: str) -> str | None:
    """Licence in the card of a repository; None if it cannot be read."""
    from huggingface_hub import ModelCard

    with suppress(Exception):
        licence = ModelCard.load(place.partition("@")[0]).data.license
        return licence if isinstance(licence, str) else None
    return None


def _of_classifier(model: GlimpseClassifier, given: dict[str, Any], licence: str | None) -> TileEncoder:
    spec = model.spec
    network: nn.Module
    options: dict[str, Any]
    scan = None
    if isinstance(model, TileClassifier) and not isinstance(model.encoder, nn.Identity):
        options = {key: spec.get(key) for key in ("backbone", "backbone_options", "stages")}
        options |= {"tile_size": model.size[0], "tile_stride": model.stride, "scale": model.scale}
        if "tile_size" in given:
            options["tile_stride"] = None
        network, name = model.encoder, spec.get("backbone") or "small_reader"
    elif isinstance(model, Scan):
        scan, network = model, model.reader
        options = {"backbone": spec.get("backbone"), "backbone_options": spec.get("backbone_options")}
        options |= {"tile_size": model.size[0]}
        name = spec.get("backbone") or "small_reader"
    elif isinstance(model, WholeImage) and spec.get("name"):
        own = {key: value for key, value in spec.items() if key not in ("name", "pretrained", "in_chans")}
        own = {key: value for key, value in own.items() if key not in (*wrapper_options(), "num_classes")}
        network, name = model.network, spec["name"]
        options = {"backbone": name, "backbone_options": own or None, "tile_size": model.size[0]}
    else:
        what = "has no network that encodes tiles" if spec else "was not created by name, so its network is not known"
        raise ConfigError(f"model {model.label}: {what}; give a run of mil, ips, scan or a dense network, or a name")
    options |= {"in_chans": model.channels, **given}
    tiles = AttentionPooling(2, **options, mean=model.mean.tolist(), std=model.std.tolist())
    _load(tiles, network.state_dict(), model.label)
    return TileEncoder(_told(tiles, options), name, licence, scan)


def _load(tiles: AttentionPooling, weights: dict[str, Tensor], name: str, prefix: str = "") -> None:
    """Load the weights that the encoder has; others, those of a classifier, are left out."""
    weights = {prefix + key: value for key, value in weights.items()}
    own = tiles.encoder.state_dict()
    if lacking := next((key for key, t in own.items() if key not in weights or weights[key].shape != t.shape), None):
        raise ConfigError(f"{name}: its weights {lacking} do not fit its network without a classifier")
    tiles.encoder.load_state_dict({key: weights[key] for key in own})


def _told(tiles: AttentionPooling, options: dict[str, Any]) -> AttentionPooling:
    tiles.spec = {"name": "mil", **options}
    tiles.skip_blank = tiles.searches = True
    return tiles.eval()

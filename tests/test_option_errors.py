"""Errors about options: of which types they are, how large they may be, and what they are called."""

import inspect
from types import UnionType
from typing import get_args

import numpy as np
import pytest
import torch

from foveal.backbones import AttentionResNet
from foveal.errors import ConfigError, renaming, section
from foveal.glimpse import networks
from foveal.glimpse.scan import Scan
from foveal.host import check_memory
from foveal.layers import SpatialSoftmaxAttention
from foveal.models import create_classifier, create_model
from foveal.recipes.fit_config import FitConfig, make_data, make_model, make_objective
from foveal.registry import MODELS
from foveal.signatures import chain_of, hints_of
from tests.training.tiny import tiny_images

SIDES = {"look_size", "tile_size", "base_size", "image_size", "glimpse_size"}


def options(name):
    """Type hints of the options of a registered model that its constructor takes by keyword."""
    first, *bases = chain_of(MODELS.get(name))
    own = inspect.signature(first).parameters  # a partial leaves out what it sets
    found = {key: hint for key, (hint, _) in hints_of(first).items() if key in own}
    for part in bases:
        taken = inspect.signature(part).parameters
        found = {key: hint for key, (hint, _) in hints_of(part).items() if key in taken} | found
    return found


@pytest.mark.parametrize("name", MODELS.names())
def test_numbers_of_every_model_are_numbers(name):
    wrong = {}
    for key, hint in options(name).items():
        if key == "variant":  # a part of the backbone's name
            continue
        kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
        if int in kinds and float not in kinds:
            wrong[key] = (2.0, True, "3")
        elif float in kinds:
            wrong[key] = (True, "0.5")
        elif bool in kinds and str not in kinds:
            wrong[key] = (1, 0.5)
    assert len(wrong) >= 3
    for key, values in wrong.items():
        for value in values:
            with pytest.raises(ConfigError, match=rf"^`{key}` {value!r}: does not fit; give "):
                MODELS.get(name)(**{key: value})


@pytest.mark.parametrize(("name", "key"), [(n, k) for n in MODELS.names() for k in sorted(SIDES & options(n).keys())])
def test_a_huge_look_is_refused_before_anything_is_allocated(monkeypatch, name, key):
    monkeypatch.setattr(networks, "create_network", None)
    monkeypatch.setattr(torch.nn.Module, "__init__", None)
    with pytest.raises(
        ConfigError, match=rf"^`{key}` 100000: is (too large and needs [\d,.]+ GiB of|not above 0 and) "
    ):
        MODELS.get(name)(**{key: 100_000})


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"image_size": 100_000}, "`image_size` 100000: is too large"),
        ({"image_size": (90_000, 80_000)}, "`image_size` 90000x80000: is too large"),
        ({"image_size": 0}, "`image_size` 0: is too small"),
        ({"img_size": 100_000}, "`img_size` 100000: is too large"),
    ],
)
def test_a_huge_image_of_a_dense_network_is_refused(given, words):
    with pytest.raises(ConfigError, match=words):
        create_classifier("vit_tiny_patch16_224", **given)


def test_looks_that_are_larger_than_memory_are_not_read(monkeypatch):
    monkeypatch.setattr("foveal.host.memory", lambda: 4.0 * 2 * 3 * 40 * 40)
    check_memory(2, 3, (40, 40))
    model = create_classifier("test_resnet", num_classes=2, image_size=40).eval()
    assert len(model(torch.rand(2, 3, 60, 60)).logits) == 2
    with pytest.raises(ConfigError, match=r"`batch_size`: 3 looks of 40 x 40 px at once need .* this machine"):
        model(torch.rand(3, 3, 60, 60))


def test_layers_and_networks_check_types_too():
    for wrong in ({"bound": True}, {"clip": True, "mode": "scaled"}, {"kernel_size": 3.0}, {"count": "4"}):
        key, value = next(iter(wrong.items()))
        with pytest.raises(ValueError, match=f"`{key}` {value!r}: does not fit"):
            SpatialSoftmaxAttention(8, **wrong)
        with pytest.raises(ConfigError, match=f"`{key}` {value!r}: does not fit"):
            create_model("attn_resnet20_cifar", attention_options=wrong)
    with pytest.raises(ConfigError, match="`depth` True: does not fit; give a whole number"):
        create_model("resnet20_cifar", depth=True)
    with pytest.raises(ValueError, match="`attention` 3: does not fit"):
        AttentionResNet(3)


def test_numbers_of_numpy_are_numbers():
    made = Scan(num_classes=np.int64(3), scale=np.int32(2), distortion=np.float32(0.25), mean=[np.float64(0.5)] * 3)
    assert made.scale == 2 and made.distortion == 0.25
    assert inspect.signature(Scan).parameters["scale"].default == 4


def test_errors_name_options_as_recipes_do():
    """Of models, dense networks, data sets and objectives."""
    data = tiny_images()

    def failing(call, *args):
        with pytest.raises(ConfigError) as error:
            call(*args)
        return str(error.value)

    for options, words in (
        ({"name": "scan", "heads": -1}, "`model.heads` -1: is too small"),
        ({"name": "scan", "look_size": 20_000}, "`model.look_size` 20000: is too large"),
        ({"name": "ram", "locations": [2, 1]}, "`model.locations` 2,1: "),
        ({"name": "dram", "base_size": 300}, "`model.base_size` 300: is not above 0 and below `model.image_size` 224"),
        ({"name": "test_resnet", "crop": 3.0}, "`model.crop` 3.0 with `model.squash` False"),
    ):
        assert words in failing(make_model, FitConfig(model=options), data)
    assert "`data.noise`" in failing(make_data, {"name": "megapixel_digits", "root": "x", "noise_from": 9, "noise": 1})
    with pytest.raises(ConfigError, match=r"^`model\.heads` and `other`$"), renaming(section("model", ["heads"])):
        raise ConfigError("`heads` and `other`")
    model = create_model("scan", num_classes=2)
    assert failing(make_objective, model, {"nothing": 1}).startswith("objective: ")

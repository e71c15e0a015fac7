"""Networks of every family at sizes that are not their own: as dense networks and as TNet's backbone, by one option
each."""

import json
from pathlib import Path

import pytest
import timm
import torch

from benchmarks.networks import OTHER, backbone, dense, members, row
from foveal.errors import ConfigError
from foveal.glimpse.networks import size_options
from foveal.glimpse.saccader import SaccaderSeparate
from foveal.glimpse.tnet import TNet, _as_map
from foveal.models import create_classifier
from foveal.runs import ModelInfo, load, save_model

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "networks.json"
FIXED = (
    "deit_tiny_patch16_224",
    "swin_tiny_patch4_window7_224",
    "mixer_s32_224",
    "levit_128s",
    "coat_lite_tiny",
    "volo_d1_224",
    "test_maxvit",
    "vit_tiny_r_s16_p8_224",
)


@pytest.mark.parametrize("name", FIXED)
def test_networks_of_a_fixed_size_are_built_for_the_size_asked(name):
    assert dense(name, OTHER) is None
    assert size_options(name, (OTHER, OTHER), {}) == {"img_size": OTHER}


@pytest.mark.parametrize(
    "name", ["xcit_nano_12_p16_224", "deit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "mixer_s32_224"]
)
def test_they_are_backbones_too(name):
    assert backbone(name, OTHER) is None


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_vit", "mvitv2_tiny"])
def test_networks_that_take_any_size_are_told_nothing(name):
    """As before, so that runs of them load as they were."""
    assert size_options(name, (OTHER, OTHER), {}) == {}


def test_what_the_user_says_of_the_size_is_left_alone():
    assert size_options("vit_tiny_patch16_224", (OTHER, OTHER), {"dynamic_img_size": True}) == {}
    assert size_options("vit_tiny_patch16_224", (OTHER, OTHER), {"img_size": OTHER}) == {}
    with pytest.raises(ConfigError, match=r"vit_tiny_patch16_224: does not take images of 192 x 192 px \(Input height"):
        size_options("vit_tiny_patch16_224", (OTHER, OTHER), {"img_size": 128})


def test_images_that_are_not_square_are_taken():
    assert size_options("vit_tiny_patch16_224", (96, 160), {}) == {"img_size": (96, 160)}
    model = create_classifier("test_vit_relpos", num_classes=3, image_size=(96, 160)).eval()
    assert model(torch.rand(2, 3, 100, 150)).logits.shape == (2, 3)


def test_a_size_that_nothing_helps_is_one_sentence():
    for make in (
        lambda: create_classifier("efficientformer_l1", num_classes=3, image_size=OTHER),
        lambda: TNet(num_classes=3, backbone="efficientformer_l1", base_size=OTHER),
    ):
        with (
            torch.device("meta"),
            pytest.raises(ConfigError, match=r"does not take images of 192 x 192 px .*; choose 224, its own") as caught,
        ):
            make()
        assert "\n" not in str(caught.value)


def test_a_network_without_a_map_is_one_sentence():
    with (
        torch.device("meta"),
        pytest.raises(
            ConfigError,
            match=r"does not process .* with `location_features` .*; choose another `base_size`",
        ),
    ):
        TNet(num_classes=3, backbone="coat_tiny", base_size=OTHER)


def test_a_run_of_such_a_network_is_loaded_as_it_was(tmp_path):
    torch.manual_seed(0)
    options = {"name": "test_vit_relpos", "image_size": 96}
    model = create_classifier(**options, num_classes=3).eval()
    save_model(tmp_path / "dense", model, ModelInfo(options, ("a", "b", "c")))
    images = torch.rand(2, 3, 96, 96)
    assert torch.equal(load(tmp_path / "dense")(images).logits, model(images).logits)
    options = {"name": "tnet", "backbone": "test_vit_relpos", "base_size": 96, "locations": (2,)}
    tnet = create_classifier(**options, num_classes=3).eval()
    save_model(tmp_path / "tnet", tnet, ModelInfo(options, ("a", "b", "c")))
    images = torch.rand(2, 3, 200, 150)
    assert torch.equal(load(tmp_path / "tnet")(images).logits, tnet(images).logits)


def test_trying_a_size_draws_nothing():
    """The weights of a run are decided by its seed, whether or not a size is tried first."""
    weights = []
    for size in (None, OTHER):
        torch.manual_seed(3)
        weights.append(create_classifier("test_efficientnet", num_classes=3, image_size=size).network.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(*(w.values() for w in weights), strict=True))


def test_the_separate_classifier_of_saccader_is_built_for_its_glimpses():
    model = SaccaderSeparate(
        num_classes=3,
        classifier="test_vit_relpos",
        glimpse_size=96,
        backbone="test_bagnet",
        image_size=64,
        locations=(2,),
    ).eval()
    assert model(torch.rand(1, 3, 150, 150)).logits.shape == (1, 3)


class Network(torch.nn.Module):
    def __init__(self, prefix: int = 0, fmt: str = "NCHW") -> None:
        super().__init__()
        self.num_prefix_tokens, self.output_fmt = prefix, fmt


@pytest.mark.parametrize(
    ("tokens", "declared", "prefix", "side"),
    [
        (196, 0, 0, 14),
        (197, 1, 1, 14),
        (196, 1, 0, 14),
        (197, 0, 1, 14),
        (201, 5, 5, 14),
        (201, 0, 5, 14),
        (9, 5, 5, 2),
        (146, 2, 2, 12),
        (5, 1, 1, 2),
        (1, 0, 0, 1),
    ],
)
def test_maps_of_tokens_are_told_by_their_number(tokens, declared, prefix, side):
    x = torch.arange(tokens, dtype=torch.float)[None, :, None].expand(2, -1, 7)
    found = _as_map(x, Network(declared))
    assert found.shape == (2, 7, side, side)
    assert found[1, 3].flatten().tolist() == list(range(prefix, tokens))
    assert torch.equal(_as_map((x, (side, side)), Network(declared)), found)


def test_maps_with_channels_first_or_last_are_told_by_their_sides():
    first = torch.rand(2, 12, 7, 7)
    for fmt in ("NCHW", "NHWC"):
        assert torch.equal(_as_map(first, Network(fmt=fmt)), first)
        assert torch.equal(_as_map(first.permute(0, 2, 3, 1), Network(fmt=fmt)), first)
    cube = torch.rand(2, 7, 7, 7)
    assert torch.equal(_as_map(cube, Network()), cube)
    assert torch.equal(_as_map(cube, Network(fmt="NHWC")), cube.permute(0, 3, 1, 2))


@pytest.mark.parametrize("x", [torch.rand(2, 12, 7, 5), torch.rand(2, 3), [], "text", (torch.rand(4), torch.rand(3))])
def test_what_is_no_map_is_refused(x):
    with pytest.raises(ValueError, match="its output is not a map of a square look but"):
        _as_map(x, Network())


@pytest.mark.slow
@pytest.mark.parametrize("family", timm.list_modules())
def test_every_family_works_or_says_why_not(family):
    """What the table of the documentation says of it."""
    told = {entry["name"]: entry for entry in json.loads(RESULTS.read_text())["results"]}
    for name in members(family):
        found = row(family, name)
        for key, value in found.items():
            if key.startswith(("dense", "tnet")):
                assert value is None or (name in value and "\n" not in value), value
                if name in told:
                    assert (value is None) == (told[name][key] is None), f"{key}: {value}"

"""Every recipe runs as it stands, on tiny data in the layout of the real one; only size and length are overridden."""

import re
import shutil

import pytest

from foveal.errors import ConfigError
from foveal.recipes import find_recipe, list_recipes, load_recipe, merge, parse_value
from foveal.recipes.configure import configure
from tests.data import layouts

PUBLISHED = [name for name in list_recipes() if name not in ("demo", "folder")]


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """A root for each data set, made when it is first asked for."""
    made = {}

    def root(name):
        if name not in made:
            made[name] = getattr(layouts, f"make_{name}")(tmp_path_factory.mktemp(name))
        return made[name]

    return root


def shrunk(name):
    """Flags that make a recipe cheap and leave its data, augmentation, model family and objective alone."""
    flags = ["--steps", "1", "--batch-size", "2", "--log-every", "1", "--workers", "0", "--device", "cpu", "--quiet"]
    if "bagnet77" in name:
        # The same network with few channels. With fewer than 16, the backward pass of strided 1x1 convolutions in channels-last
        # layout crashes torch 2.15 on a CPU.
        widths = "{widths: [16, 16, 16, 16], features: 16}"
        dense = ["--model.widths", "[16,16,16,16]", "--model.features", "16"]
        flags += ["--model.backbone_options", widths] if name.startswith("imagenet/tnet") else dense
    elif "/efficientnet" in name:
        flags += ["--data.image_size", "128", "--model.image_size", "128"]
    elif name.startswith("fmow/tnet"):
        flags += ["--data.image_size", "224"]
    if name.startswith(("cub/tnet", "nabirds/tnet")):
        flags += ["--model.locations", "1"]
    if name.endswith("step2.reference"):
        flags += ["--model.locations", "1,1"]
    return flags


def test_recipes_are_those_of_the_specification():
    birds = [f"{data}/{kind}_b{b}.reference" for data in ("cub", "nabirds") for kind in ("efficientnet", "tnet") for b in range(5)]
    fmow = [f"fmow/efficientnet_b0_{kind}.reference" for kind in ("224", "448", "896", "boxes")]
    fmow += ["fmow/tnet_step1.reference", "fmow/tnet_step2.reference"]
    assert sorted([*birds, *fmow, "imagenet/bagnet77.reference", "imagenet/tnet_bagnet77.reference"]) == sorted(PUBLISHED)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # Specification of TNet, section 7: epochs, lr, drop at, batch, L2.
        ("imagenet/tnet_bagnet77.reference", (200, 1e-4, 0.8, 64, 0)),
        ("imagenet/bagnet77.reference", (200, 1e-4, 0.8, 64, 0)),
        ("fmow/tnet_step1.reference", (40, 1e-3, 0.8, 64, 1e-5)),
        ("fmow/tnet_step2.reference", (10, 1e-3, 0.8, 64, 1e-5)),
        ("fmow/efficientnet_b0_boxes.reference", (65, 1e-3, 0.8, 64, 1e-5)),
        ("fmow/efficientnet_b0_224.reference", (60, 1e-3, 0.8, 64, 1e-5)),
        ("fmow/efficientnet_b0_448.reference", (30, 1e-3, 0.8, 32, 1e-5)),
        ("fmow/efficientnet_b0_896.reference", (30, 1e-3, 0.8, 32, 1e-5)),
        ("cub/tnet_b0.reference", (200, 1e-3, 0.9, 64, 1e-4)),
        ("cub/tnet_b4.reference", (125, 1e-3, 0.9, 64, 1e-4)),
        ("nabirds/tnet_b2.reference", (100, 1e-3, 0.9, 64, 1e-4)),
        ("cub/efficientnet_b3.reference", (200, 1e-3, 0.9, 64, 1e-4)),
        ("nabirds/efficientnet_b3.reference", (100, 1e-3, 0.9, 64, 1e-4)),
    ],
)
def test_hyper_parameters_are_the_published_ones(name, expected):
    config, out, _ = configure(name, ["--data.root", "nowhere"])
    optimiser = config.optimiser
    assert (config.epochs, optimiser.lr, optimiser.step_at, config.batch_size, optimiser.l2) == expected
    assert (optimiser.name, optimiser.eps, optimiser.schedule, optimiser.step_factor) == ("adam", 1e-7, "step", 0.1)
    assert out.as_posix() == f"runs/{name}"
    birds = name.startswith(("cub", "nabirds"))
    assert optimiser.l2_groups == (("head",) if birds else None)
    assert optimiser.group_lr == ({} if not birds else {"backbone": 1e-4 if "tnet_b" in name and "efficientnet" not in name else 5e-5})


def test_locations_trained_with_are_the_published_ones():
    trained = {name: load_recipe(name)["model"]["locations"] for name in PUBLISHED if "locations" in load_recipe(name)["model"]}
    assert trained == {
        "imagenet/tnet_bagnet77.reference": [3],
        "fmow/tnet_step1.reference": [2],
        "fmow/tnet_step2.reference": [2, 1],
        **{f"cub/tnet_b{b}.reference": [5] for b in range(5)},
        **{f"nabirds/tnet_b{b}.reference": [5 if b < 3 else 3] for b in range(5)},
    }


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipe_runs(name, roots, tmp_path):
    from foveal.training import fit

    flags = [*shrunk(name), "--data.root", str(roots(name.partition("/")[0])), "--out", str(tmp_path / "run")]
    if "init_from" in load_recipe(name):
        before = ["--data.root", str(roots("fmow")), "--out", str(tmp_path / "before")]
        config, out, how = configure("fmow/tnet_step1.reference", [*shrunk("fmow/tnet_step1.reference"), *before])
        flags += ["--init-from", str(fit(config, out, **how).path)]
    config, out, how = configure(name, flags)
    run = fit(config, out, **how)
    assert run.load_model().num_classes == 2
    line = (run.path / "metrics.csv").read_text().splitlines()[-1]
    assert line.startswith("1,") and "nan" not in line
    # The checkpoints of all recipes together are more than pytest should keep.
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize("more", [[], ["--model", "test_resnet", "--model.image_size", "64"]])
def test_recipe_for_a_folder_runs(more, roots, tmp_path):
    from foveal.training import fit

    tiny = [] if more else ["--model.backbone", "test_efficientnet", "--model.base_size", "32"]
    flags = ["--data.root", str(roots("folder")), "--steps", "1", "--batch-size", "2", "--workers", "0", "--device", "cpu", "--quiet"]
    config, out, how = configure("folder", [*flags, *tiny, *more, "--out", str(tmp_path / "run")])
    assert fit(config, out, **how).class_names == ("class_0", "class_1")


def test_recipes_merge_and_name_what_replaces_what(tmp_path):
    (tmp_path / "base.yaml").write_text("model: {name: tnet, grid: 5}\nepochs: 1e1\ndata: digits\n")
    (tmp_path / "same.yaml").write_text("base: base.yaml\nmodel: {region: 0.4}\n")
    (tmp_path / "other.yaml").write_text("base: base.yaml\nmodel: {name: resnet18}\n")
    assert load_recipe(str(tmp_path / "same.yaml")) == {
        "model": {"name": "tnet", "grid": 5, "region": 0.4}, "epochs": 10.0, "data": {"name": "digits"},
    }  # fmt: skip
    assert load_recipe(str(tmp_path / "other.yaml"))["model"] == {"name": "resnet18"}
    assert merge({"a": {"b": 1}}, {"a": {"c": 2}}) == {"a": {"b": 1, "c": 2}}


def test_values_read_as_people_mean_them():
    assert [parse_value(x) for x in ("1e-4", "3", "2.5", "[2, 1]", "null", "yes", "a b")] == [1e-4, 3, 2.5, [2, 1], None, True, "a b"]
    with pytest.raises(ConfigError, match="brackets"):
        parse_value("[1")


def test_recipe_names_lead_to_files():
    for name in list_recipes():
        assert find_recipe(name).is_file()
        assert re.match(r"# \S", find_recipe(name).read_text())

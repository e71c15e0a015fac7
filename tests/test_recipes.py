"""Every recipe runs on tiny data in the layout of the real data; only sizes and lengths are overridden."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from foveal.errors import ConfigError
from foveal.evaluation import paper_table
from foveal.recipes import find_recipe, list_recipes, load_recipe, merge, parse_value
from foveal.recipes.configure import configure
from tests.data import layouts

MEGAPIXEL = [name for name in list_recipes() if name.startswith("megapixel/")]
OTHERS = ("demo", "features", "few", "folder", "ram_digits")
PUBLISHED = [name for name in list_recipes() if name not in (*OTHERS, *MEGAPIXEL)]
SACCADERS = [name for name in PUBLISHED if "/saccader" in name]
DRAMS = [name for name in PUBLISHED if "/dram" in name]
TNETS = [name for name in PUBLISHED if name.endswith(".reference") and name not in DRAMS]
SOFT = [name for name in PUBLISHED if name not in TNETS + DRAMS + SACCADERS]


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """A root for each data set, made when it is first used."""
    made = {}
    patch = pytest.MonkeyPatch()
    patch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5=None: Path(path).is_file())

    def root(name):
        if name not in made:
            made[name] = getattr(layouts, f"make_{name}")(tmp_path_factory.mktemp(name))
        return made[name]

    yield root
    patch.undo()


def shrunk(name):
    """Flags that make a recipe cheap without changing its data, augmentation, model family and objective."""
    flags = ["--steps", "1", "--batch-size", "2", "--log-every", "1", "--workers", "0", "--device", "cpu", "--quiet"]
    if "bagnet77" in name:
        # The same network with few channels. With fewer than 16, the backward pass of strided 1x1 convolutions in
        # channels-last layout crashes torch 2.15 on a CPU.
        widths = "{widths: [16, 16, 16, 16], features: 16}"
        dense = ["--model.widths", "[16,16,16,16]", "--model.features", "16"]
        flags += ["--model.backbone_options", widths] if name.startswith("imagenet/tnet") else dense
    elif "/efficientnet" in name:
        flags += ["--data.image_size", "128", "--model.image_size", "128"]
    elif name.startswith("fmow/tnet"):
        flags += ["--data.image_size", "224"]
    elif name == "imagenet/dram.reference":
        flags += [
            "--model.image_size",
            "64",
            "--model.base_size",
            "24",
            "--model.hidden",
            "16",
            "--model.backbone",
            "test_resnetv2_slim",
        ]
    elif name.startswith("imagenet/saccader"):
        flags += ["--model.backbone", "test_bagnet_lowd", "--model.image_size", "45"]
        flags += ["--model.classifier", "test_resnet", "--model.glimpse_size", "32"] if "nasnet" in name else []
    if name.startswith(("cub/tnet", "nabirds/tnet")):
        flags += ["--model.locations", "1"]
    if name.endswith("step2.reference"):
        flags += ["--model.locations", "1,1"]
    return [*flags, *shrunk_dense(name)]


def shrunk_dense(name):
    """Flags that make a network of the soft-attention tables shallow; of the wide ones also thin."""
    model = load_recipe(name)["model"]["name"]
    share = "0.25"  # a tenth of so few channels is too little for eight heads of attention augmentation
    if name.startswith("imagenet/") and name in SOFT:
        thin = ["--model.image_size", "64", "--model.layers", "[1,1,1,1]", "--model.channels", "[16,32,32,64]"]
        return [*thin, "--model.ratio", share] if model.startswith("aa_") else thin
    if model == "aa_wrn_28_10_cifar":
        return ["--model.depth", "10", "--model.width", "2", "--model.conv_options.ratio", share]
    if "resnet" in model and model.endswith("_cifar"):
        return ["--model.depth", "8"]
    return {
        "densenet_bc_100_12_cifar": ["--model.depth", "10"],
        "attention56_cifar": ["--model.widths", "[16,64,64,64]"],
        "attention92_cifar": ["--model.widths", "[16,64,64,64]"],
    }.get(model, ["--model.depth", "10", "--model.width", "2"] if "wrn" in model else [])


def test_recipes_of_tnet_are_those_of_the_specification():
    birds = [
        f"{data}/{kind}_b{b}.reference"
        for data in ("cub", "nabirds")
        for kind in ("efficientnet", "tnet")
        for b in range(5)
    ]
    fmow = [f"fmow/efficientnet_b0_{kind}.reference" for kind in ("224", "448", "896", "boxes")]
    fmow += ["fmow/tnet_step1.reference", "fmow/tnet_step2.reference"]
    assert sorted([*birds, *fmow, "imagenet/bagnet77.reference", "imagenet/tnet_bagnet77.reference"]) == sorted(TNETS)


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
    assert optimiser.group_lr == (
        {} if not birds else {"backbone": 1e-4 if "tnet_b" in name and "efficientnet" not in name else 5e-5}
    )


def test_every_row_of_the_soft_tables_has_a_recipe_and_every_recipe_a_row():
    rows = [row for name in ("cifar", "imagenet") for row in paper_table(name, "nowhere").rows if row.recipe]
    by_recipe = {row.recipe: row.model for row in rows if row.recipe in SOFT}
    wanted = {
        row.recipe for row in rows if row.section in ("main", "ablation", "other attention", "ResNets with attention")
    }
    assert wanted <= set(SOFT)
    for name in SOFT:
        model = {key: value for key, value in load_recipe(name)["model"].items() if key not in ("image_size", "crop")}
        row = by_recipe.get(re.sub(r"(_cosine|\.original|\.document)$", "", name))
        assert row is None or dict(row) == model, name
        assert row is not None or name in wanted, name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # Specification of the attention-based CNN, section 3: epochs or steps, batch, schedule, drops, warm-up,
        # momentum of Nesterov.
        ("cifar10/attn_resnet110", (200, 128, "step", (0.5, 0.75), 400, 0.1, False, True, 1e-4)),
        ("cifar100/se_resnet110", (200, 128, "step", (0.5, 0.75), 400, 0.1, False, True, 1e-4)),
        ("cifar10/attn_resnet110_cosine", (200, 128, "cosine", (0.5, 0.75), 400, 0.1, False, True, 1e-4)),
        ("cifar10/resnet20", (200, 128, "step", (0.5, 0.75), 0, None, False, True, 1e-4)),
        ("cifar10/densenet_bc_100_12", (200, 128, "step", (0.5, 0.75), 0, None, False, True, 1e-4)),
        ("cifar100/densenet_bc_100_12.original", (300, 64, "step", (0.5, 0.75), 0, None, True, True, 1e-4)),
        ("cifar10/resnet110.original", (None, 128, "step", (0.5, 0.75), 400, 0.1, False, True, 1e-4)),
        (
            "imagenet/attn_resnet50.document",
            (90, 256, "step", (pytest.approx(1 / 3), pytest.approx(2 / 3)), 0, None, False, True, 1e-4),
        ),
        # Specification of ExpAtt, section 8; 5 epochs of 1,281,167 images in batches of 256.
        ("imagenet/expatt_resnet152", (100, 256, "cosine", 0.8, 5 * (1281167 // 256), None, False, False, 1e-4)),
    ],
)
def test_hyper_parameters_of_soft_attention_are_those_of_the_specification(name, expected):
    config, _, _ = configure(name, ["--data.root", "nowhere"])
    o = config.optimiser
    got = (
        config.epochs,
        config.batch_size,
        o.schedule,
        o.step_at,
        o.warmup,
        o.warmup_factor,
        o.nesterov,
        o.decay_all,
        o.weight_decay,
    )
    assert got == expected
    assert (o.name, o.lr, o.betas[0], o.step_factor, config.precision) == ("sgd", 0.1, 0.9, 0.1, "32")
    assert config.data["augmentation"] == ("inception" if name.startswith("imagenet") else "crop_flip")
    assert config.data["name"] == name.partition("/")[0]


def test_locations_trained_with_are_the_published_ones():
    trained = {
        name: load_recipe(name)["model"]["locations"] for name in TNETS if "locations" in load_recipe(name)["model"]
    }
    assert trained == {
        "imagenet/tnet_bagnet77.reference": [3],
        "fmow/tnet_step1.reference": [2],
        "fmow/tnet_step2.reference": [2, 1],
        **{f"cub/tnet_b{b}.reference": [5] for b in range(5)},
        **{f"nabirds/tnet_b{b}.reference": [5 if b < 3 else 3] for b in range(5)},
    }


def _shared(name):
    """Recipes that run the code of a smaller one of their family are slow tests."""
    larger = re.search(r"_b[1-4]\.reference$|resnet(101|152)$|_(448|896)\.reference$|tnet_step1", name)
    return pytest.param(name, marks=pytest.mark.slow) if larger or name.startswith("nabirds/") else name


@pytest.mark.parametrize("name", [_shared(name) for name in PUBLISHED])
def test_recipe_runs(name, roots, tmp_path):
    from foveal.recipes.fit_config import fit_config

    def trained(name):
        flags = [*shrunk(name), "--data.root", str(roots(name.partition("/")[0])), "--out", str(tmp_path / name)]
        if before := load_recipe(name).get("init_from"):
            flags += ["--init-from", str(trained(before.removeprefix("runs/")).path)]
        config, out, how = configure(name, flags)
        return fit_config(config, out, **how)

    run = trained(name)
    assert run.load_model().num_classes == 2
    line = (run.path / "metrics.csv").read_text().splitlines()[-1]
    assert line.startswith("1,") and "nan" not in line
    # The checkpoints of all recipes together are more than pytest should keep.
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize("more", [[], ["--model", "test_resnet", "--model.image_size", "64"]])
def test_recipe_for_a_folder_runs(more, roots, tmp_path):
    from foveal.recipes.fit_config import fit_config

    tiny = [] if more else ["--model.backbone", "test_efficientnet", "--model.base_size", "32"]
    flags = [
        "--data.root",
        str(roots("folder")),
        "--steps",
        "1",
        "--batch-size",
        "2",
        "--workers",
        "0",
        "--device",
        "cpu",
        "--quiet",
    ]
    config, out, how = configure("folder", [*flags, *tiny, *more, "--out", str(tmp_path / "run")])
    assert fit_config(config, out, **how).class_names == ("class_0", "class_1")


def test_recipe_for_few_images_runs(tmp_path):
    import timm
    import yaml
    from safetensors.torch import save_file

    from foveal.recipes.fit_config import fit_config

    table = layouts.make_manifest(tmp_path) / "manifest.csv"
    before = timm.create_model("test_efficientnet").state_dict()
    save_file(before, tmp_path / "weights.safetensors")
    flags = ["--data.file", str(table), "--model.backbone", "test_efficientnet"]
    flags += ["--model.pretrained", str(tmp_path / "weights.safetensors"), "--model.base_size", "32"]
    flags += ["--steps", "2", "--batch-size", "2", "--device", "cpu", "--quiet", "--out", str(tmp_path / "run")]
    config, out, how = configure("few", flags)
    run = fit_config(config, out, **how)
    assert yaml.safe_load((run.path / "config.yaml").read_text())["objective"]["teach"] == 1
    after = run.load_model().backbone.state_dict()
    frozen = tuple(part.removeprefix("backbone.") + "." for part in load_recipe("few")["freeze"])
    changed = {name for name in before.keys() & after.keys() if not after[name].equal(before[name])}
    assert changed and not any(name.startswith(frozen) for name in changed)


def test_recipe_for_the_digits_runs(tmp_path):
    from foveal.recipes.fit_config import fit_config

    few = [
        "--data.train",
        "8",
        "--data.val",
        "4",
        "--data.test",
        "4",
        "--steps",
        "2",
        "--batch-size",
        "4",
        "--device",
        "cpu",
        "--quiet",
    ]
    config, out, how = configure("ram_digits", [*few, "--out", str(tmp_path / "run")])
    assert fit_config(config, out, **how).load_model().locations == tuple(
        load_recipe("ram_digits")["model"]["locations"]
    )


@pytest.fixture(scope="module")
def canvases(roots, tmp_path_factory):
    """A run of a recipe for megapixel digits, made when it is first used, after the runs that it starts from."""
    from foveal.recipes.fit_config import fit_config

    made = {}

    def run(name, *more):
        if name not in made:
            flags = [
                *more,
                "--data.root",
                str(roots("mnist")),
                "--data.train",
                "4",
                "--data.val",
                "2",
                "--data.test",
                "2",
                "--steps",
                "1",
            ]
            flags += [
                "--batch-size",
                "2",
                "--workers",
                "0",
                "--device",
                "cpu",
                "--quiet",
                "--out",
                str(tmp_path_factory.mktemp("run")),
            ]
            if before := load_recipe(name).get("init_from"):
                flags += ["--init-from", str(run(before.removeprefix("runs/")).path)]
            if teacher := (load_recipe(name).get("objective") or {}).get("teacher"):
                flags += ["--objective.teacher", str(run(teacher.removeprefix("runs/")).path)]
            config, out, how = configure(name, flags)
            made[name] = fit_config(config, out, **how)
        return made[name]

    return run


@pytest.mark.parametrize("name", [name for name in MEGAPIXEL if "/scan_" in name])
def test_recipe_for_a_scan_of_megapixel_digits_runs(name, canvases):
    model, canvas = canvases(name).load_model(), load_recipe(name)["data"]["canvas"]
    # A look that is centred up to 10 px from the centre of a digit contains it.
    assert model.size[0] >= 28 + 2 * 10
    assert (str(canvas), model.locations) == (name[-4:], (4,) if "one" in name else (8,))


def test_recipe_for_megapixel_digits_taught_by_a_scan_runs(canvases):
    run = canvases("megapixel/taught_one_1500")
    model, header = run.load_model(), (run.path / "metrics.csv").read_text().splitlines()[0]
    assert (model.locations, model.size) == ((2,), (192, 192)) and "loss_imitation" in header
    cells = model.grid.boxes(np.array([0, 0, 1500, 1500]))
    # Neighbours share a digit of 28 px, except for its empty margin.
    assert cells[1, 1] <= cells[0, 3] - 28 + 3


@pytest.mark.parametrize("name", [name for name in MEGAPIXEL if "/mil_" in name or "/ips_one" in name])
def test_recipe_for_all_tiles_of_megapixel_digits_runs(name, canvases):
    model = canvases(name, "--data.canvas", "200", "--data.noise", "5", "--optimiser.warmup", "0").load_model()
    assert model.count(np.array([[1500, 1500]])).tolist() == [900] and model.size == (50, 50)


def test_recipes_for_iterative_patch_selection_have_the_published_settings():
    for name, task in (("ips_one_1500", "one"), ("ips_majority_1500", "majority")):
        config, _, _ = configure(f"megapixel/{name}", ["--data.root", "nowhere"])
        o = config.optimiser
        assert (config.epochs, config.batch_size, o.name, o.lr, o.weight_decay, o.decay_all, o.schedule, o.warmup) == (
            150,
            16,
            "adamw",
            1e-3,
            0.1,
            True,
            "cosine",
            10 * (5000 // 16),
        )
        assert (config.data["task"], config.data["canvas"]) == (task, 1500)


LOOKING = [name for name in MEGAPIXEL if not any(kind in name for kind in ("/scan_", "/ips_", "/mil_", "/taught_"))]


@pytest.mark.parametrize("name", LOOKING)
def test_recipe_for_megapixel_digits_runs(name, canvases):
    model, canvas = canvases(name).load_model(), load_recipe(name)["data"]["canvas"]
    root = np.array([[0.0, 0, canvas, canvas]])
    first = model.grid.boxes(root)[0]
    last = model.grid.boxes(first)
    # The last looks are at native resolution, and no digit is cut by more than 3 px in all cells of its look.
    assert (last[..., 2:] - last[..., :2] == model.size).all()
    starts = np.unique(last[0, :, 0])
    assert np.diff(starts).max() <= model.size[0] - 28 + 3


@pytest.mark.parametrize("name", list_recipes())
def test_recipes_are_bounded_by_updates_and_not_by_the_clock(name):
    """A slower machine takes longer and gets the same result."""
    values = load_recipe(name)
    assert values.get("epochs") or values.get("steps")
    assert values.get("max_time") is None


def test_recipes_merge_and_name_what_replaces_what(tmp_path):
    (tmp_path / "base.yaml").write_text("model: {name: tnet, grid: 5}\nepochs: 1e1\ndata: digits\n")
    (tmp_path / "same.yaml").write_text("base: base.yaml\nmodel: {region: 0.4}\n")
    (tmp_path / "other.yaml").write_text("base: base.yaml\nmodel: {name: resnet18}\n")
    assert load_recipe(str(tmp_path / "same.yaml")) == {
        "model": {"name": "tnet", "grid": 5, "region": 0.4},
        "epochs": 10.0,
        "data": {"name": "digits"},
    }
    assert load_recipe(str(tmp_path / "other.yaml"))["model"] == {"name": "resnet18"}
    assert merge({"a": {"b": 1}}, {"a": {"c": 2}}) == {"a": {"b": 1, "c": 2}}


def test_options_of_an_objective_stay_with_models_of_the_same_objective(tmp_path):
    """Also if a user's recipe changes the model of its base."""
    options = {"image_share": 0.6, "warm_up": 0.2}
    base = {"model": {"name": "tnet"}, "objective": options}
    assert merge(base, {"model": {"name": "test_resnet"}})["objective"] == {}
    assert merge(base, {"model": {"name": "ram"}, "objective": {"image_share": 0.5}})["objective"] == {
        "image_share": 0.5
    }
    assert merge(base, {"model": {"name": "tnet", "grid": 4}})["objective"] == options
    stage = {"model": {"name": "saccader"}, "objective": {"pretraining": 0.0}}
    assert merge(stage, {"model": {"name": "saccader_separate"}})["objective"] == {"pretraining": 0.0}
    named = {"model": {"name": "tnet"}, "objective": {"name": "cross_entropy", "label_smoothing": 0.1}}
    assert merge(named, {"model": {"name": "test_resnet"}})["objective"] == named["objective"]
    (tmp_path / "mine.yaml").write_text("base: demo\nmodel: test_resnet\n")
    assert not configure(str(tmp_path / "mine.yaml"), [])[0].objective
    with pytest.raises(ConfigError, match="no model of this name; did you mean tnet"):
        configure("demo", ["--model", "tnett"])


def test_values_read_as_people_mean_them():
    assert [parse_value(x) for x in ("1e-4", "3", "2.5", "[2, 1]", "null", "yes", "a b")] == [
        1e-4,
        3,
        2.5,
        [2, 1],
        None,
        True,
        "a b",
    ]
    with pytest.raises(ConfigError, match="brackets"):
        parse_value("[1")


def test_recipe_names_lead_to_files():
    for name in list_recipes():
        assert find_recipe(name).is_file()
        assert re.match(r"# \S", find_recipe(name).read_text())

"""Help compared with the code: widths, recipes, defaults, and accepted values."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from foveal import cli
from foveal.choices import FORMATS, POLICY_NAMES, PRECISIONS, SACCADER_POLICY_NAMES, SPLITS
from foveal.data import ImageDataset, Reading, TensorDataset, data_constructor, get_data, list_data
from foveal.errors import ConfigError
from foveal.models import create_model, list_models
from foveal.objectives import OBJECTIVES
from foveal.prediction import autocast, parse_cost
from foveal.recipes import GROUPS, describe_recipe, find_recipe, list_recipes, load_recipe, parse_value
from foveal.recipes.fit_config import FitConfig
from foveal.recipes.help import trace_arguments
from foveal.registry import MODELS
from foveal.signatures import chain_of, target_of
from foveal.training.config import plain

ROOT = Path(__file__).parents[1]
COMMANDS = sorted(next(a for a in cli._parser()._actions if a.dest == "command").choices)
FIT = [
    ["fit", "demo"],
    ["fit", "--data", "folder", "--model", "tnet"],
    ["fit", "--model", "efficientnet_b0"],
    ["fit", "imagenet/tnet_bagnet77.reference"],
    ["fit", "cifar10/attn_resnet110.faithful_random"],
]


@pytest.fixture
def help_of(capsys):
    def of(*argv):
        assert cli.main([*argv, "--help"]) == 0
        said = capsys.readouterr()
        assert said.err == ""
        return said.out

    return of


def options(text):
    """{key: (accepted values, default as typed or None)} from the help of ``fit``."""
    found = {}
    for block in re.split(r"\n(?=  --)", text)[1:]:
        words = " ".join(block.partition("\n\n")[0].split())
        key, _, rest = words.removeprefix("--").partition(" ")
        default = re.search(r"\(default: (.*)\)$", rest)
        form = re.match(r"\{[^}]*\}(\|null)?|\S+", rest)
        listed = re.search(r"; one of (.*?) \(", rest)
        found[key.replace("-", "_")] = (
            "{" + listed[1].replace(", ", ",") + "}" if listed else form[0],
            default
            and parse_value(f"[{default[1]}]" if re.fullmatch(r"[^\[{,]+(,[^,]+)+", default[1]) else default[1]),
        )
    return found


def words(form):
    assert form.startswith("{"), form
    return set(form.strip("{}").split(","))


def same(told, value):
    """Whether a default in help equals a value; a list of one item is written as the item."""
    value = plain(value)
    return told == value or [told] == value or (isinstance(value, str) and str(told) == value)


# ---- width


@pytest.mark.parametrize("columns", [None, "200", "80", "40", "1"])
@pytest.mark.parametrize("argv", [[], *([c] for c in COMMANDS), *FIT], ids=" ".join)
def test_help_fits_80_columns(help_of, monkeypatch, argv, columns):
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns is not None:
        monkeypatch.setenv("COLUMNS", columns)
    lines = help_of(*argv).splitlines()
    assert lines[0].startswith("usage: foveal") and max(map(len, lines)) <= 80
    prose = [line for line in lines if re.match(r"[A-Z]", line)]
    if columns == "40":
        assert prose and max(map(len, prose)) <= 40


def test_help_of_every_recipe_fits_80_columns(help_of):
    seen = set()
    for name in list_recipes():
        recipe = load_recipe(name)
        if (kind := (recipe["model"]["name"], recipe["data"]["name"])) not in seen:
            seen.add(kind)
            assert max(map(len, help_of("fit", name).splitlines())) <= 80, name


def test_help_of_a_recipe_with_a_long_path_fits(help_of, tmp_path):
    folder = tmp_path / "a folder of a long name" / ("x" * 60)
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("# A recipe of my own.\nbase: demo\n")
    text = help_of("fit", str(folder / "mine.yaml"))
    assert max(map(len, text.splitlines())) <= 80 and "A recipe of my own." in text.replace("\n", " ")
    assert options(text)["out"][1] == "runs/mine"


def test_examples_of_help_are_commands_there_are(help_of):
    for command in COMMANDS:
        for example in re.findall(r"^  foveal (\w+)", help_of(command), re.MULTILINE):
            assert example in COMMANDS


# ---- recipes


def test_every_recipe_has_a_line_that_says_what_it_is(capsys):
    assert cli.main(["recipes"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line]
    found = dict(re.split(r" {2,}", line, maxsplit=1) for line in lines)
    assert sorted(found) == list_recipes() and max(map(len, lines)) <= 80
    for name, text in found.items():
        assert len(text.split()) > 1 or "-" in text
        assert find_recipe(name).read_text().startswith(f"# {text}.\n")
    in_group = {(name.partition("/")[0], text) for name, text in found.items()}
    assert len(in_group) == len(found), "two recipes of a group are told by the same words"


def test_recipes_are_found_by_group_and_pattern(capsys):
    assert cli.main(["recipes", "megapixel", "--quiet"]) == 0
    assert capsys.readouterr().out.split() == [name for name in list_recipes() if name.startswith("megapixel/")]
    assert cli.main(["recipes", "*saccader_stage?", "--quiet"]) == 0
    assert len(capsys.readouterr().out.split()) == 6
    assert cli.main(["recipes", "nonsense*"]) == 2
    assert capsys.readouterr() == ("", "foveal: nonsense*: no recipe has such a name; foveal recipes lists all\n")


def test_help_of_fit_lists_recipes_and_counts_groups(help_of):
    text = help_of("fit")
    assert set(GROUPS) == {name.partition("/")[0] for name in list_recipes() if "/" in name}
    for name in list_recipes():
        if "/" not in name:
            assert re.search(rf"^  {name} +{re.escape(describe_recipe(name))}$", text, re.MULTILINE)
    for group, what in GROUPS.items():
        count = sum(name.startswith(f"{group}/") for name in list_recipes())
        assert re.search(rf"^  {group}/ +{count} {re.escape(what)}$", text, re.MULTILINE)


def test_a_group_is_no_recipe(capsys):
    assert cli.main(["fit", "cifar10"]) == 2
    assert (
        capsys.readouterr().err
        == "foveal: cifar10: this is a group of recipes; give one that foveal recipes cifar10 lists\n"
    )


def test_a_recipe_that_is_not_there_is_told_in_one_short_line(capsys):
    for name in ("xyz", "nowhere.yaml"):
        assert cli.main(["fit", name]) == 2
        assert len(capsys.readouterr().err) < 120


# ---- defaults


def test_defaults_of_a_run_are_those_of_its_configuration(help_of):
    told = options(help_of("fit", "--data", "digits", "--model", "tnet"))
    config = FitConfig.from_dict(load_recipe("folder"))
    for section, prefix in ((config.to_dict(), ""), (config.to_dict()["optimiser"], "optimiser.")):
        for key, value in section.items():
            if f"{prefix}{key}" in told:
                assert same(told[f"{prefix}{key}"][1], value), key
    others = ("model", "data", "objective", "optimiser", "imports")
    assert len([key for key in told if "." not in key]) == 4 + len(config.to_dict()) - len(others)


@pytest.mark.parametrize("name", list_data())
def test_defaults_of_data_are_those_of_its_constructor(help_of, name):
    text = help_of("fit", "--data", name)
    told = options(text)
    parameters = inspect.signature(data_constructor(name)).parameters
    assert {key.removeprefix("data.") for key in told if key.startswith("data.")} == {"name", *parameters}
    for key, parameter in parameters.items():
        if parameter.default is parameter.empty:
            assert told[f"data.{key}"][1] is None and re.search(rf"--data\.{key} [^(]*\(required\)", text)
        else:
            assert same(told[f"data.{key}"][1], parameter.default), key


TOLD = [
    "locations",
    "squash",
    "antialias",
    "crop",
    "weighting",
    "aggregate",
    "released_boxes",
    "level_statistics",
    "scale",
]


@pytest.mark.parametrize("name", [name for name in MODELS.names() if not re.search("_b[1-3].reference", name)])
def test_defaults_of_a_model_and_its_objective_are_those_of_the_model_made(help_of, name):
    """The model on the meta device, where weights take no time."""
    told = options(help_of("fit", "--data", "digits", "--model", name))
    with torch.device("meta"):
        model = create_model(name)
    compared = [key for key in TOLD if f"model.{key}" in told and hasattr(model, key)]
    assert len(compared) >= 2 or compared == ["scale"]  # models that read all tiles have no locations
    for key in compared:
        value = getattr(model, key)
        assert same(told[f"model.{key}"][1], value is not None if key == "weighting" else value), key
    side = told.get("model.base_size" if hasattr(model, "grid") else "model.image_size", (0, None))[1]
    assert side in (None, model.size[0])
    objective = model.default_objective()
    assert OBJECTIVES.get(told["objective.name"][1]) is type(objective)
    keys = [key.removeprefix("objective.") for key in told if key.startswith("objective.") and key != "objective.name"]
    assert keys == [key for key in inspect.signature(type(objective)).parameters if key != "class_weights"]
    for key in keys:
        assert same(told[f"objective.{key}"][1], getattr(objective, key)), key


def test_defaults_follow_what_the_recipe_says(help_of):
    """The published objective of fMoW has other shares with two levels than with one."""
    for step, share, levels in ((1, 0.2, None), (2, 0.05, 2)):
        told = options(help_of("fit", f"fmow/tnet_step{step}.reference"))
        assert (told["objective.image_share"][1], told["objective.feature_levels"][1]) == (share, levels)
        assert told["model.locations"][1] == ([2, 1] if step == 2 else 2) and told["model.head_dropout"][1] == 0.5


def test_an_objective_by_name_has_its_own_defaults(help_of):
    told = options(text := help_of("fit", "--data", "digits", "--objective", "tnet.reference"))
    assert told["objective.policy_weight"][1] == 0.1 and re.search(
        r"--objective\.image_share X\s[^(]*\([^)]*\)[^(]*\(required\)", text
    )


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        # In timm, the default stochastic depth of Swin is 0.1, and VGG has none.
        ("swin_tiny_patch4_window7_224", {"in_chans": 3, "drop_rate": 0.0, "drop_path_rate": 0.1}),
        ("vgg11", {"in_chans": 3, "drop_rate": 0.0}),
        (
            "attn_resnet20_cifar",
            {"in_chans": 3, "drop_rate": 0.0, "depth": 20, "attention": "bounded", "place": "block", "conv": None},
        ),
        ("bagnet77_tnet", {"in_chans": 3}),
    ],
)
def test_defaults_of_dense_networks(help_of, network, expected):
    told = options(help_of("fit", "--data", "digits", "--model", network))
    found = {key.removeprefix("model."): default for key, (_, default) in told.items() if key.startswith("model.")}
    assert found | expected == found
    assert ("drop_path_rate" in found) == ("drop_path_rate" in expected)


def test_options_of_a_network_of_ours_are_in_its_help(help_of):
    """Also of options that recipes set, with their values."""
    told = options(help_of("fit", "cifar10/attn_resnet110.clip"))
    assert told["model.attention_options"][1] == {"mode": "scaled", "clip": 4} and told["model.depth"][1] == 110


def test_every_option_is_explained_and_says_its_default(help_of):
    """For every model that looks, every data set and every objective."""
    ours = [
        name for name in list_data() if data_constructor(name).__module__.startswith("foveal.")
    ]  # other tests register more
    for choice in (*(["--model", name] for name in MODELS), *(["--data", name] for name in ours), *OBJECTIVES):
        for block in re.split(
            r"\n(?=  --)", help_of("fit", *(["--objective", choice] if isinstance(choice, str) else choice))
        )[1:]:
            option = " ".join(block.partition("\n\n")[0].split())
            assert re.search(r"\((default: \S.*|required)\)$", option), option
            assert not re.fullmatch(r"--\S+ (\{[^}]*\}(\|null)?|\S+) \((default: .*|required)\)", option), (
                f"{choice}: {option}"
            )


@pytest.mark.parametrize("command", [c for c in COMMANDS if c != "fit"])
def test_defaults_of_commands_are_those_of_their_parser(command):
    parser = next(a for a in cli._parser()._actions if a.dest == "command").choices[command]
    for action in parser._actions:
        told = re.search(r"\(default: (.*)\)$", action.help or "")
        assert action.help, action.dest
        if action.default not in (None, False, [], "==SUPPRESS=="):
            assert told and told[1] == str(action.default), action.dest
        elif action.nargs != 0 and action.option_strings and not action.required and action.dest not in NOTHING:
            assert told, f"{action.dest} says nothing of its default"


NOTHING = (
    "import",
    "policies",
    "budgets",
    "judges",
    "against",
    "overlay_out",
    "cam",
    "export",
    "pack",
    "set",
    "data.KEY",
)
"""Options without effect if they are not set."""


# ---- values


def listed(error):
    """The names that an error lists."""
    return set(re.split(r", | or ", re.search(r"use (?:one of )?(.*)$", str(error.value))[1]))


@pytest.mark.parametrize("name", list_data())
def test_help_lists_the_augmentations_that_data_takes(help_of, name):
    told = options(help_of("fit", "--data", name))
    if "data.augmentation" not in told:
        return
    values = words(told["data.augmentation"][0])
    with pytest.raises(ConfigError) as error:
        if name.startswith("cifar"):
            TensorDataset(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), [0], ("a",), augmentation="nonsense")
        else:
            Reading("nonsense")
    assert values == listed(error)
    for value in values:  # and each is applied
        if not name.startswith("cifar"):
            assert ImageDataset(["a.png"], [0], ("a",), reading=Reading(value)).reading.augmentation == value


def test_help_lists_the_kernels_and_tasks_that_data_takes(help_of, tmp_path):
    with pytest.raises(ConfigError) as error:
        Reading(kernels="nonsense")
    assert words(options(help_of("fit", "--data", "folder"))["data.kernels"][0]) == listed(error)
    with pytest.raises(ConfigError) as error:
        get_data("megapixel_digits", root=str(tmp_path), task="nonsense")
    assert words(options(help_of("fit", "--data", "megapixel_digits"))["data.task"][0]) == listed(error)


def test_help_lists_the_precisions_that_training_takes(help_of):
    with pytest.raises(ConfigError) as error:
        FitConfig(epochs=1, precision="nonsense").check()
    assert words(options(help_of("fit", "demo"))["precision"][0]) == listed(error)


def test_help_lists_data_sets_and_objectives(help_of):
    told = options(help_of("fit", "demo"))
    assert words(told["data.name"][0]) == set(list_data())
    assert words(told["objective.name"][0]) == set(OBJECTIVES)


@pytest.mark.parametrize("name", ["dram"])
def test_help_lists_the_aggregates_that_a_model_takes(help_of, name):
    with pytest.raises(ConfigError) as error:
        create_model(name, aggregate="nonsense", backbone="plain_convnet_32", image_size=64, base_size=24)
    assert words(options(help_of("fit", "--data", "digits", "--model", name))["model.aggregate"][0]) == listed(error)


@pytest.mark.parametrize("name", ["tnet", "saccader", "ram", "scan"])
def test_help_lists_the_policies_that_the_model_knows(help_of, name):
    told = options(help_of("fit", "--data", "digits", "--model", name, "--objective", "cross_entropy"))
    assert words(told["objective.policy"][0]) == set(target_of(MODELS.get(name)).policies)


@pytest.mark.parametrize(
    ("network", "option"),
    [
        ("resnet20_cifar", "place"),
        ("resnet20_cifar", "head"),
        ("resnet20_cifar", "shortcut"),
        ("attn_resnet20_cifar", "attention"),
        ("wrn_28_10_cifar", "conv"),
        ("expatt_resnet20_cifar", "conv"),
        ("bagnet9", "downsample_bn"),
        ("attn_resnet50", "attention"),
    ],
)
def test_help_lists_what_options_of_our_networks_take(help_of, network, option):
    with pytest.raises(ConfigError) as error:
        create_model(network, **{option: "nonsense"})
    assert words(options(help_of("fit", "--data", "digits", "--model", network))[f"model.{option}"][0]) - {
        "null"
    } == listed(error)


def test_help_lists_the_values_of_commands(help_of):
    predict = " ".join(help_of("predict").split())
    with pytest.raises(ConfigError) as error:
        autocast("nonsense", torch.device("cpu"))
    assert listed(error) == set(PRECISIONS)
    for value in (*PRECISIONS, *POLICY_NAMES, *SACCADER_POLICY_NAMES, *FORMATS):
        assert re.search(rf"(?<!\w){re.escape(value)}(?!\w)", predict), value
    known = {policy for build in map(MODELS.get, MODELS) for policy in target_of(build).policies}
    assert known == {*POLICY_NAMES, *SACCADER_POLICY_NAMES}
    assert "{" + ",".join(SPLITS) + "}" in help_of("evaluate")
    for unit in re.search(r"a number with (.*) or locations", predict)[1].split(", "):
        assert parse_cost(f"3{unit}")
    assert parse_cost("3locations")[1] == "locations"


# ---- trace_arguments


def test_nothing_is_built_for_help_and_classes_are_as_they_were():
    classes = {
        c
        for build in map(MODELS.get, MODELS)
        for target in chain_of(build)
        if inspect.isclass(target)
        for c in target.__mro__
    }
    before = {c: vars(c).get("__init__") for c in classes}
    made, arguments = trace_arguments(MODELS.get("tnet_efficientnet_b4.reference_cub"))
    assert arguments["backbone"] == "tf_efficientnet_b4" and not hasattr(made, "backbone")
    assert made.default_objective().contrastive == 100
    trace_arguments(MODELS.get("dram.reference"))
    assert before == {c: vars(c).get("__init__") for c in classes}


def test_what_a_constructor_makes_has_to_be_said():
    def silent(**options):
        return object()

    with pytest.raises(ConfigError, match="does not declare its class"):
        trace_arguments(silent)


# ---- python -m foveal


@pytest.mark.parametrize(
    "argv", [["--help"], ["fitt"], ["predict", "a"], ["recipes", "nonsense*"], ["fit", "xyz"]], ids=" ".join
)
def test_python_m_foveal_is_the_command(argv):
    """The same output, errors and exit code as `main`."""
    commands = (
        [sys.executable, "-m", "foveal"],
        [sys.executable, "-c", "from foveal.cli import main; raise SystemExit(main())"],
    )
    first, second = (
        subprocess.run([*c, *argv], cwd=ROOT, capture_output=True, text=True, check=False) for c in commands
    )
    assert (first.returncode, first.stdout, first.stderr) == (second.returncode, second.stdout, second.stderr)
    assert "__main__" not in first.stdout + first.stderr and "foveal" in first.stdout + first.stderr


def test_models_are_named_without_timm(capsys):
    assert cli.main(["models"]) == 0
    assert capsys.readouterr().out.split() == MODELS.names() == [name for name in list_models() if name in MODELS]

"""The command, called in this process: what it prints, what it writes, how it ends."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveal.cli import main
from tests.data import layouts
from tests.tiny import TINY, failure

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "tiny"
    assert main(["fit", "demo", *TINY, "--steps", "4", "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def images(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    assert main(["data", str(run), "--export", str(folder), "--count", "3"]) == 0
    return folder


# ---- version, help, usage


def test_version_and_help(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == "foveal 0.1.0\n"
    assert main([]) == 0
    assert "foveal fit demo" in capsys.readouterr().out


@pytest.mark.parametrize(
    "command",
    [
        "fit",
        "recipes",
        "visible",
        "evaluate",
        "compare",
        "occlude",
        "faithfulness",
        "faithful",
        "predict",
        "export",
        "explain",
        "models",
        "data",
        "cost",
        "table",
    ],
)
def test_help_of_each_command_shows_examples(capsys, command):
    assert main([command, "--help"]) == 0
    out = capsys.readouterr().out
    assert out.count(f"foveal {command}") >= 3
    assert "--quiet" in out


def test_unknown_command_is_a_usage_error(capsys):
    assert main(["fitt"]) == 2
    assert "invalid choice" in capsys.readouterr().err


def test_a_usage_error_shows_the_usage_of_its_command(capsys):
    assert main(["predict", "runs/x", "a.png", "--tpo-k", "1"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("usage: foveal predict ") and said.endswith(
        "foveal predict: error: unrecognized arguments: --tpo-k 1\n"
    )
    assert main(["--tpo-k"]) == 2
    assert capsys.readouterr().err.startswith("usage: foveal [-h]")


def test_reader_that_goes_away_is_no_error():
    command = f"{sys.executable} -m foveal models '*' | head -1"
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.strip() and done.stderr == ""


# ---- fit


def test_fit_writes_a_run_with_every_value(run):
    import yaml

    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["data"] | {"canvas": 128, "digit": [12, 16], "ink": 1.0} == config["data"]
    assert config["model"]["name"] == "tnet" and config["model"]["grid"] == 3
    assert config["steps"] == 4
    for name in ("metrics.csv", "last.ckpt", "best.ckpt", "model.safetensors", "config.json"):
        assert (run / name).stat().st_size


def test_fit_leaves_an_existing_run_alone(capsys, run):
    before = (run / "model.safetensors").stat().st_mtime_ns
    code, said = failure(capsys, "fit", "demo", *TINY, "--steps", 4, "--out", run)
    assert code == 1 and "--resume" in said and "--overwrite" in said
    assert (run / "model.safetensors").stat().st_mtime_ns == before


def test_fit_says_what_it_trains_and_goes_on_when_resumed(capsys, tmp_path):
    out = tmp_path / "run"
    loud = [x for x in TINY if x != "--quiet"]
    assert main(["fit", "demo", *loud, "--steps", "2", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    for words in ("tnet on plain_convnet_32", "32 train, 8 val, 8 test images, 10 classes", str(out), "2 steps"):
        assert words in said
    assert main(["fit", "--resume", "--out", str(out), "--steps", "3", "--quiet"]) == 0
    last = (out / "metrics.csv").read_text().splitlines()[-1]
    assert last.startswith("3,")


def test_fit_says_first_what_cannot_be_resumed(capsys, run, tmp_path):
    resume = ["fit", "demo", *[x for x in TINY if x != "--quiet"], "--steps", "4", "--resume", "--out"]
    damaged = tmp_path / "damaged"
    shutil.copytree(run, damaged)
    (damaged / "last.ckpt").write_bytes(b"half")
    for out, words in (
        (tmp_path / "nothing", "there is no last.ckpt to go on from"),
        (damaged, "is damaged or half written"),
    ):
        assert main([*resume, str(out)]) == 1
        said = capsys.readouterr()
        assert said.out == "" and words in said.err and said.err.count("\n") == 1
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("quiet", [[], ["--quiet"]])
def test_fit_says_at_the_end_how_many_images_could_not_be_read(capsys, tmp_path, quiet):
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("dark", "light"):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for i in range(3):
                pixels = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data" / split / name / f"{i}.png")
    (tmp_path / "data" / "train" / "dark" / "1.png").write_bytes(b"")
    tiny = [
        "--model",
        "test_resnet",
        "--model.image_size",
        "32",
        "--batch-size",
        "6",
        "--steps",
        "2",
        "--device",
        "cpu",
        *quiet,
    ]
    out = tmp_path / "run"
    assert main(["fit", "--data.root", str(tmp_path / "data"), *tiny, "--out", str(out)]) == 0
    assert (
        capsys.readouterr().err.splitlines()[-1] == f"foveal: 1 image could not be read; see {out / 'bad_images.csv'}"
    )


def test_fit_trains_a_dense_network_by_the_same_command(tmp_path):
    tiny = [x for i, x in enumerate(TINY) if not x.startswith("--model") and not TINY[i - 1].startswith("--model")]
    out = tmp_path / "dense"
    assert (
        main(
            [
                "fit",
                "demo",
                *tiny,
                "--model",
                "test_resnet",
                "--model.image_size",
                "64",
                "--steps",
                "1",
                "--out",
                str(out),
            ]
        )
        == 0
    )
    assert json.loads((out / "config.json").read_text())["model"]["image_size"] == 64


def test_fit_reads_a_recipe_of_the_users_own(tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("base: demo\noptimiser: {lr: 1e-4}\nmodel: {grid: 4}\n")
    assert main(["fit", str(recipe), *TINY, "--steps", "1", "--out", str(tmp_path / "run")]) == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["model"]["grid"] == 4


def test_fit_help_explains_the_chosen_model_and_data(capsys):
    assert main(["fit", "demo", "--help"]) == 0
    said = capsys.readouterr().out
    for words in ("--model.region", "cell as a share", "--data.canvas", "--optimiser.lr", "--objective."):
        assert words in said
    assert main(["fit", "demo", "--model", "resnet18", "--data", "folder", "--help"]) == 0
    said = capsys.readouterr().out
    assert "--model.region" not in said and "--model.image_size" in said and "--data.root" in said


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["dem"], 2, "did you mean demo"),
        (["nowhere.yaml"], 2, "no such file"),
        (["demo", "--optimiser.lrr", "1"], 2, "did you mean optimiser.lr?"),
        (["demo", "--lr", "1"], 2, "did you mean optimiser.lr?"),
        (["demo", "--optimiser", "sgx"], 2, "optimiser.name: there is no optimiser 'sgx'; did you mean sgd"),
        (["demo", "--epochs", "many"], 2, "many does not fit; give a whole number"),
        (["demo", "--model", "tnett"], 2, "did you mean tnet"),
        (["demo", "--data", "digit"], 2, "digits"),
        (["demo", "--model.locations", "few"], 2, "a list of numbers"),
        (["--epochs", "3", "demo"], 2, "the recipe comes first"),
        (["--out", "x"], 2, "--data.root: this option is missing"),
    ],
)
def test_fit_says_in_one_sentence_what_does_not_fit(capsys, argv, code, words):
    got, said = failure(capsys, "fit", *argv)
    assert (got, words in said) == (code, True), said


def test_recipe_errors_name_the_file(capsys, tmp_path):
    recipe = tmp_path / "mine.yaml"
    for text, words in (
        ("optimiser: {lrr: 1}", "did you mean optimiser.lr?"),
        ("epochs: many", "many does not fit"),
        ("- 1", "not a recipe"),
        ("a: [1", "not valid YAML"),
        ("base: mine.yaml", "leads back to itself"),
        ("model: [1]", "model is not a mapping"),
    ):
        recipe.write_text(text)
        code, said = failure(capsys, "fit", recipe)
        assert code == 2 and said.startswith(f"foveal: {recipe}: ") and words in said, said


# ---- predict, explain, evaluate


def test_data_names_sets_and_exports_images(capsys, run, images):
    assert main(["data"]) == 0
    assert {"digits", "folder", "manifest", "imagenet", "fmow", "cub", "nabirds"} <= set(
        capsys.readouterr().out.split()
    )
    assert main(["data", str(run)]) == 0
    assert "train: 32 images, val: 8 images, test: 8 images" in capsys.readouterr().out
    assert sorted(p.name for p in images.iterdir()) == ["0_0.png", "1_1.png", "2_2.png"]
    assert Image.open(images / "0_0.png").size == (128, 128)


def test_data_exports_the_pixels_themselves(run, images):
    from foveal.data import get_data

    data = get_data("digits", canvas=128, digit=(12, 16), distractors=2, train=32, val=8, test=8)
    assert np.array_equal(np.asarray(Image.open(images / "1_1.png")), data.test.images[1].permute(1, 2, 0).numpy())


def test_predict_writes_rows_and_lists_failures(capsys, run, images, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    out = tmp_path / "rows.jsonl"
    assert main(["predict", str(run), str(images), "--out", str(out), "--device", "cpu"]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 3 and all(row["error"] is None and row["locations"] == 2 for row in rows)
    capsys.readouterr()
    assert main(["predict", str(run), str(images), str(bad), "--out", str(out), "--device", "cpu", "--quiet"]) == 1
    said = capsys.readouterr().err
    assert "bad.png" in said and "1 " in said
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [bool(row["error"]) for row in rows].count(True) == 1 and len(rows) == 4


def test_predict_without_a_file_prints_a_table(capsys, run, images):
    assert main(["predict", str(run), str(images / "0_0.png"), "--locations", "1", "--device", "cpu"]) == 0
    assert "0_0.png" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["predict", "nowhere", "x.png"], 1, "there is no such run folder"),
        (["predict", "RUN", "x.png", "--locations", "two"], 2, "--locations two"),
        (["predict", "RUN", "x.png", "--device", "abacus"], 2, "--device abacus"),
        (["evaluate", "RUN", "--locations", "3..1"], 2, "backwards"),
        (["evaluate", "RUN", "--data", "nonsense"], 2, "no data set of this name"),
        (["explain", "RUN", "nowhere.png"], 1, "nowhere.png"),
        (
            ["predict", "RUN", "x.png", "--policy", "telepathy"],
            2,
            "--policy telepathy: tnet does not know it; use one of greedy",
        ),
        (
            ["explain", "RUN", "nowhere.png", "--policy", "telepathy"],
            2,
            "--policy telepathy: tnet does not know it; use one of greedy",
        ),
        (["occlude", "RUN", "--locations", "0"], 2, "hides nothing"),
        (["occlude", "RUN", "--by", "nowhere"], 1, "there is no such run folder"),
        (
            ["evaluate", "RUN", "--policy", "centre,telepathy"],
            2,
            "--policy telepathy: tnet does not know it; use one of greedy",
        ),
    ],
)
def test_errors_are_one_sentence(capsys, run, argv, code, words):
    found, said = failure(capsys, *[run if a == "RUN" else a for a in argv])
    assert found == code and words in said, said


def test_evaluate_writes_table_file_and_curve(capsys, run, tmp_path):
    assert main(["evaluate", str(run), "--locations", "0..2", "--out", str(tmp_path), "--device", "cpu"]) == 0
    assert json.loads((tmp_path / "evaluation.json").read_text())
    assert Image.open(tmp_path / "tradeoff.png").size[0] > 300
    assert "random" in capsys.readouterr().out


def test_evaluate_sets_policies_side_by_side(capsys, run, tmp_path):
    assert (
        main(
            [
                "evaluate",
                str(run),
                "--locations",
                "1..2",
                "--policy",
                "centre,exhaustive",
                "--out",
                str(tmp_path),
                "--device",
                "cpu",
            ]
        )
        == 0
    )
    stored = json.loads((tmp_path / "evaluation.json").read_text())
    assert {p["kind"] for p in stored["points"]} == {"learned", "random", "centre", "exhaustive"}
    assert "--policy centre,exhaustive" in stored["command"]
    assert "exhaustive" in capsys.readouterr().out


def test_predict_and_explain_by_other_policies(run, images, tmp_path):
    image, out = str(images / "0_0.png"), tmp_path / "rows.jsonl"
    for policy, looks in (("centre", 2), ("exhaustive", 9)):
        assert (
            main(
                [
                    "predict",
                    str(run),
                    image,
                    "--policy",
                    policy,
                    "--out",
                    str(out),
                    "--overwrite",
                    "--device",
                    "cpu",
                    "--quiet",
                ]
            )
            == 0
        )
        (row,) = [json.loads(line) for line in out.read_text().splitlines()]
        assert row["locations"] == looks
    assert row["glimpses"][1]["box"][:2] == [0, 0] and row["glimpses"][-1]["box"][2:] == [128, 128]
    page = tmp_path / "report.html"
    assert (
        main(["explain", str(run), image, "--policy", "exhaustive", "--out", str(page), "--device", "cpu", "--quiet"])
        == 0
    )
    assert page.read_text().count("data:image") >= 10


def test_occlude_hides_the_looks_before_judges(capsys, run, tmp_path):
    argv = [
        "occlude",
        str(run),
        "--locations",
        "1..2",
        "--policy",
        "centre",
        "--by",
        str(run),
        "--limit",
        "6",
        "--device",
        "cpu",
    ]
    assert main(argv) == 0
    assert "centre" in capsys.readouterr().out
    assert main([*argv, "--out", str(tmp_path), "--quiet"]) == 0
    stored = json.loads((tmp_path / "occlusion.json").read_text())
    assert stored["command"].startswith("foveal occlude") and stored["images"] == 6 and stored["limit"] == 6
    assert [p["kind"] for p in stored["points"]] == [
        "whole",
        *["learned"] * 2,
        *["random"] * 2,
        *["centre"] * 2,
    ]  # one judge, not two
    assert Image.open(tmp_path / "occlusion.png").size[0] > 300


def test_explain_draws_by_its_seed(run, images, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("foveal.explain.show", lambda seen, wide: drawn.append([g.box for g in seen.glimpses]))
    random = [
        "explain",
        str(run),
        str(images / "0_0.png"),
        "--policy",
        "random",
        "--out",
        str(tmp_path / "r.html"),
        "--device",
        "cpu",
    ]
    for seed in (1, 2, 3, 1):
        assert main([*random, "--seed", str(seed)]) == 0
    assert drawn[0] == drawn[3] and len({str(boxes) for boxes in drawn}) > 1


def test_explain_writes_one_page(run, images, tmp_path):
    page, picture = tmp_path / "report.html", tmp_path / "looked.png"
    assert (
        main(
            [
                "explain",
                str(run),
                str(images / "0_0.png"),
                "--out",
                str(page),
                "--overlay",
                str(picture),
                "--device",
                "cpu",
            ]
        )
        == 0
    )
    text = page.read_text()
    assert text.lstrip().lower().startswith("<!doctype html>") and "0_0.png" in text
    assert "http://" not in text.replace("http://www.w3.org", "")
    assert min(Image.open(picture).size) >= 100


# ---- models and costs


def test_models(capsys):
    assert main(["models"]) == 0
    said = capsys.readouterr()
    assert "tnet" in said.out.split() and "resnet18" not in said.out.split() and "dense networks" in said.err
    assert main(["models", "resnet1*"]) == 0
    assert "resnet18" in capsys.readouterr().out.split()
    assert main(["models", "tn*"]) == 0
    ours, dense = (block.splitlines() for block in capsys.readouterr().out.split("\n\n"))
    assert ours[:2] == ["models that look:", "tnet"] and all(name.startswith("tnet") for name in ours[1:])
    assert dense[0] == "dense networks, of timm and foveal:" and all(name.startswith("tnt_") for name in dense[1:])
    assert main(["models", "tn*", "--quiet"]) == 0
    assert capsys.readouterr().out.split() == [*ours[1:], *dense[1:]]
    assert failure(capsys, "models", "nonsense*")[0] == 2


@pytest.mark.parametrize(
    ("argv", "parameters", "statistics", "macs"),
    [
        # The numbers of the specification: 21.86 M and 10.84 G; 4.52 M (+ 42,016 statistics) and 1.925 G without SE's
        # products.
        (["tnet_bagnet77.reference", "--image-size", "224", "--locations", "5"], 21_859_949, 0, 10_843_335_296),
        (
            ["tnet_efficientnet_b0.reference_fmow", "--image-size", "896", "--locations", "2,1"],
            4_517_575,
            42_016,
            1_925_172_400,
        ),
    ],
)
def test_cost_is_one_line_of_json(capsys, argv, parameters, statistics, macs):
    assert main(["cost", *argv, "--json"]) == 0
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    line = json.loads(said)
    assert line == {
        "model": argv[0],
        "image_size": int(argv[2]),
        "locations": [int(k) for k in argv[4].split(",")],
        "parameters": parameters,
        "parameters_and_statistics": parameters + statistics,
        "macs": macs,
    }


def test_cost_takes_options_classes_and_runs(capsys, run):
    options = ["--locations", "1", "--num-classes", "7", "--set", "backbone=plain_convnet_32"]
    assert main(["cost", "tnet", "--image-size", "512x768", *options, "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert first["image_size"] == [512, 768] and first["locations"] == [1]
    assert main(["cost", str(run), "--image-size", "512"]) == 0
    assert "dense backbone" in capsys.readouterr().out
    code, said = failure(capsys, "cost", "tnet", "--image-size", "64", "--set", "gird=4")
    assert code == 2 and "no option 'gird'; did you mean grid" in said
    assert failure(capsys, "cost", "tnet", "--image-size", "64", "--set", "grid")[0] == 2
    assert main(["cost", "aa_resnet20_cifar", "--image-size", "32", "--set", "conv_options.heads=1"]) == 0


def test_cost_takes_the_number_of_classes_as_an_option_too(capsys):
    cost = ["cost", "test_resnet", "--image-size", "64", "--json"]
    said = []
    for more in (["--num-classes", "7"], ["--set", "num_classes=7"], ["--num-classes", "7", "--set", "num_classes=7"]):
        assert main([*cost, *more]) == 0
        said.append(json.loads(capsys.readouterr().out)["parameters"])
    assert len(set(said)) == 1
    code, said = failure(capsys, *cost, "--num-classes", "7", "--set", "num_classes=8")
    assert code == 2 and said == "foveal: --num-classes 7: differs from --set num_classes=8; give one of the two"
    for value in ("many", "0", "true"):
        assert failure(capsys, *cost, "--set", f"num_classes={value}")[0] == 2


def test_table_prints_columns_and_json(capsys, tmp_path, run):
    assert main(["table", "cifar", "--runs", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "95.2 / 95.3" in said and "not found" in said and "arXiv 1709.01507" in said
    assert main(["table", "cifar", "--runs", str(run.parent), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert rows[0] | {"name": "ResNet-110", "claimed": [93.6], "measured": [], "recipe": "cifar10/resnet110"} == rows[0]
    assert failure(capsys, "table", "mnist") == (
        2,
        "foveal: mnist: there is no table of this name; use cifar or imagenet",
    )


def test_table_says_which_runs_it_leaves_out_and_why(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5=None: Path(path).is_file())
    root, out = layouts.make_cifar10(tmp_path), tmp_path / "runs" / "short"
    short = [
        "--data.root",
        str(root),
        "--epochs",
        "1",
        "--log-every",
        "1",
        "--batch-size",
        "4",
        "--device",
        "cpu",
        "--quiet",
        "--out",
        str(out),
    ]
    assert main(["fit", "cifar10/resnet20", *short]) == 0
    assert main(["table", "cifar", "--runs", str(tmp_path / "runs")]) == 0
    assert f"{out}: has no evaluation of these weights; foveal evaluate {out}" in capsys.readouterr().err
    assert main(["evaluate", str(out), "--device", "cpu", "--quiet"]) == 0
    capsys.readouterr()
    assert main(["table", "cifar", "--runs", str(tmp_path / "runs")]) == 0
    assert "was evaluated on 4 test images, not on" in capsys.readouterr().err


def test_flags_of_a_soft_attention_network_reach_it(tmp_path, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5=None: Path(path).is_file())
    root, out = layouts.make_cifar10(tmp_path), tmp_path / "run"
    short = [
        "--data.root",
        str(root),
        "--steps",
        "1",
        "--batch-size",
        "4",
        "--device",
        "cpu",
        "--quiet",
        "--out",
        str(out),
    ]
    options = [
        "--model.place",
        "stage",
        "--model.attention_options.mode",
        "faithful",
        "--model.depth",
        "8",
        "--model.widths",
        "16,32,64",
    ]
    assert main(["fit", "cifar10/attn_resnet20", *short, *options]) == 0
    told = json.loads((out / "config.json").read_text())["model"]
    assert (
        told | {"place": "stage", "attention_options": {"mode": "faithful"}, "depth": 8, "widths": [16, 32, 64]} == told
    )
    picture = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(picture)
    assert (
        main(["explain", str(out), str(picture), "--out", str(tmp_path / "page.html"), "--device", "cpu", "--quiet"])
        == 0
    )
    assert "Attention maps" in (tmp_path / "page.html").read_text()


def test_interruption_ends_with_130(capsys, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("foveal.models.list_models", interrupt)
    assert main(["models", "*"]) == 130
    assert capsys.readouterr().err == "foveal: interrupted; the same command starts again\n"


def test_a_bug_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr("foveal.models.list_models", lambda pattern: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["models", "*"])


def test_output_is_flushed(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    assert main(["--version"]) == 0


# ---- every model that looks, by the same commands

LOOKING = {
    "tnet": ["--model.backbone", "plain_convnet_32", "--model.base_size", "32", "--model.locations", "2"],
    "saccader": ["--model.backbone", "test_bagnet_lowd", "--model.image_size", "64", "--model.locations", "3"],
    "saccader_separate": [
        "--model.backbone",
        "test_bagnet_lowd",
        "--model.image_size",
        "64",
        "--model.locations",
        "3",
        "--model.classifier",
        "test_resnet",
        "--model.glimpse_size",
        "32",
    ],
    "dram": [
        "--model.backbone",
        "plain_convnet_32",
        "--model.image_size",
        "64",
        "--model.base_size",
        "24",
        "--model.hidden",
        "32",
        "--model.locations",
        "2",
    ],
    "ram": ["--model.locations", "2"],
}


@pytest.mark.parametrize("model", LOOKING)
def test_every_model_that_looks_goes_through_the_same_commands(capsys, images, tmp_path, model):
    few = [x for i, x in enumerate(TINY) if not x.startswith("--model") and not TINY[i - 1].startswith("--model")]
    run, picture = str(tmp_path / "run"), str(sorted(images.iterdir())[0])
    assert main(["fit", "--data", "digits", "--model", model, *LOOKING[model], *few, "--steps", "2", "--out", run]) == 0
    assert main(["evaluate", run, "--locations", "0..2", "--policy", "centre", "--device", "cpu", "--quiet"]) == 0
    points = json.loads(Path(run, "evaluation.json").read_text())["points"]
    assert {"learned", "random", "centre"} <= {p["kind"] for p in points} and all(
        0 <= p["coverage"] <= 1 for p in points
    )
    assert main(["occlude", run, "--locations", "1", "--device", "cpu", "--quiet", "--limit", "4"]) == 0
    assert (
        main(
            [
                "predict",
                run,
                str(images),
                "--locations",
                "1",
                "--out",
                str(tmp_path / "p.jsonl"),
                "--device",
                "cpu",
                "--quiet",
            ]
        )
        == 0
    )
    rows = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert len(rows) == 3 and all(
        row["locations"] == 1 and len(row["glimpses"]) == 2 and row["error"] is None for row in rows
    )
    assert main(["explain", run, picture, "--out", str(tmp_path / "r.html"), "--device", "cpu", "--quiet"]) == 0
    assert (tmp_path / "r.html").read_text().count('class="look"') == 1 + int(
        LOOKING[model][LOOKING[model].index("--model.locations") + 1]
    )
    capsys.readouterr()
    assert main(["cost", run, "--image-size", "3000", "--locations", "1", "--json"]) == 0
    assert {json.loads(capsys.readouterr().out)["macs"]} == {
        row["macs"] for row in rows
    }  # whatever the size of the image


def test_the_memory_of_an_image_is_a_flag(run, images, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("FOVEAL_MAX_BYTES", raising=False)
    argv = ["predict", str(run), str(images), "--out", str(tmp_path / "rows.csv"), "--device", "cpu", "--quiet"]
    assert main([*argv, "--max-bytes", "1KiB"]) == 1 and "more than the limit of 1,024" in capsys.readouterr().err
    assert "FOVEAL_MAX_BYTES" not in os.environ
    assert main([*argv, "--max-bytes=2MiB", "--overwrite"]) == 0
    code, said = failure(capsys, *argv, "--max-bytes", "much")
    assert code == 2 and "--max-bytes much" in said and "4GiB" in said

"""Published tables with runs. The run folders are written by hand, so that all numbers are known."""

import json
import os
import re
import statistics
from collections import Counter
from importlib.resources import files

import pytest
import torch
import yaml
from rich.console import Console

from foveal.errors import ConfigError
from foveal.evaluation import paper_table
from foveal.evaluation.papers import NOT_FOUND, table_names
from foveal.models import create_model
from foveal.prediction import count_cost

WRAPPER = {"image_size": None, "mean": None, "std": None, "squash": False, "antialias": True, "crop": None}


def make_run(
    folder,
    accuracy,
    *,
    seed=0,
    model=None,
    epoch=200,
    schedule="step",
    images=10_000,
    split="test",
    data=None,
    top5=0.99,
    optimiser=None,
    seconds=900,
    machine=("cpu", "laptop"),
    **config,
):
    """A run folder as after training and evaluation, with invalid weights."""
    folder.mkdir(parents=True)
    model = {"pretrained": False, **WRAPPER, **(model or {"name": "resnet20_cifar"})}
    config = {
        "model": model,
        "data": {"name": "cifar10", "root": f"somewhere/{seed}", "train": None, "augmentation": "crop_flip"}
        | (data or {}),
        "epochs": 200,
        "steps": None,
        "max_time": None,
        "batch_size": 128,
        "precision": "32",
        "log_every": 50,
        "init_from": None,
        "seed": seed,
        "device": "cuda" if seed else "cpu",
        "optimiser": {"name": "sgd", "lr": 0.1, "weight_decay": 1e-4, "schedule": schedule} | (optimiser or {}),
    } | config
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    card = {key: value for key, value in model.items() if key != "pretrained"}
    (folder / "config.json").write_text(json.dumps({"model": card, "class_names": []}))
    (folder / "metrics.csv").write_text(
        f"step,epoch,seconds\n50,0.128,5.0\n100,0.256,10.0\n{391 * epoch},{epoch},{seconds}\n"
    )
    (folder / "model.safetensors").write_bytes(b"")
    point = {"kind": "learned", "images": images, "accuracy": accuracy, "top5": top5, "batched": {"p50": 0.5 + seed}}
    about = {"split": split, "device": machine[0], "machine": machine[1]}
    (folder / "evaluation.json").write_text(json.dumps(about | {"points": [point]}))
    return folder


def row_of(found, name, data="cifar10", section=None):
    (row,) = [row for row in found.rows if row.name == name and row.data == data and section in (None, row.section)]
    return row


def printed(found, width=200, wide=True):
    console = Console(width=width, record=True, file=open(os.devnull, "w"))  # noqa: SIM115, PTH123
    console.print(found.table(wide))
    return console.export_text()


def test_claims_are_the_documents():
    """Specification of the attention-based CNN, 4.1: table 1, table 3, and the ablations of tables 2 and 4."""
    found = paper_table("cifar", "nowhere")
    wanted = {
        "ResNet-110": ((93.6,), (72.7,)),
        "DenseNet-BC-100-12": ((94.4, 95.0), (73.3, 76.4)),
        "SE-ResNet-110": ((95.2, 95.3), (75.7, 77.1)),
        "CBAM-ResNet-110": ((95.5,), (76.1,)),
        "attention CNN": ((96.2,), (80.5,)),
        "without attention": ((93.8,), (73.6, 74.3)),
        "with, in every block": ((96.2,), (80.5,)),
    }
    for name, (ten, hundred) in wanted.items():
        assert (row_of(found, name).claimed, row_of(found, name, "cifar100").claimed) == (ten, hundred)
    assert {row.name for row in found.rows if row.claimed} == set(wanted)


def test_published_accuracies_are_the_published_errors():
    """The same, section 6."""
    errors = {
        ("ResNet-110", "cifar10"): 6.43,
        ("ResNet-110, pre-activation", "cifar10"): 6.37,
        ("DenseNet-BC-100-12", "cifar10"): 4.51,
        ("DenseNet-BC-100-12", "cifar100"): 22.27,
        ("SE-ResNet-110", "cifar10"): 5.21,
        ("SE-ResNet-110", "cifar100"): 23.85,
        ("Residual Attention Network, 92", "cifar10"): 4.99,
        ("Residual Attention Network, 92", "cifar100"): 21.71,
    }
    found = paper_table("cifar", "nowhere")
    for (name, data), error in errors.items():
        assert row_of(found, name, data).published[0].value == pytest.approx(100 - error, abs=1e-9)
    assert row_of(found, "CBAM-ResNet-110").published == NOT_FOUND
    used = {
        p.source
        for name in table_names()
        for row in paper_table(name, "nowhere").rows
        if isinstance(row.published, tuple)
        for p in row.published
    }
    assert used < {key for name in table_names() for key in paper_table(name, "nowhere").sources}


def test_columns_are_never_mixed(tmp_path):
    make_run(tmp_path / "a", 0.9123, model={"name": "se_resnet110_cifar"})
    lines = printed(paper_table("cifar", tmp_path)).splitlines()
    head = next(line for line in lines if "claimed" in line)
    line = next(line for line in lines if "SE-ResNet-110" in line)
    assert re.split(" {2,}", head.strip()) == [
        "claimed",
        "published",
        "source",
        "measured",
        "runs",
        "best",
        "ms",
        "on",
        "parameters",
        "GMAC",
    ]
    assert re.split(" {2,}", line.strip()) == [
        "SE-ResNet-110",
        "95.2 / 95.3",
        "94.79",
        "se",
        "91.23",
        "1",
        "91.23",
        "0.500",
        "cpu",
        "1,742,200",
        "0.253",
    ]
    assert "not found" in next(line for line in lines if "CBAM-ResNet-110" in line)
    assert "SE-ResNet-110, cifar10, 91.23: 200 epochs, step, batches of 128" in lines


@pytest.mark.parametrize("name", table_names())
def test_the_table_fits_a_terminal(tmp_path, name):
    ways = [{}, {"schedule": "cosine"}, {"objective": {"smoothing": 0.123456789}}] if name == "cifar" else []
    for number, way in enumerate(ways):
        for seed in range(2):
            model = {"name": "attention92_cifar" if number else "se_resnet110_cifar"}
            make_run(tmp_path / f"{number}/{seed}", 0.91 + seed / 100, seed=seed, model=model, **way)
    found = paper_table(name, tmp_path)
    text, whole = printed(found, 80, wide=False), printed(found, 10_000, wide=False)
    assert max(map(len, text.splitlines())) <= 80 and "…" not in whole
    tables = [re.split(r"\n\n(?=\S+, \w+, |No run)", part)[0] for part in (text, whole)]  # without the paragraphs
    numbers = [Counter(re.findall(r"(?<![\w-])\d+\.\d+(?: ± \d+\.\d+)?", part)) for part in tables]
    assert numbers[0] == numbers[1] and sum(numbers[0].values()) > 20
    if ways:
        assert "91.50 ± 0.71" in text and "200 epochs, cosine" in text
    assert max(map(len, printed(found, 80, wide=True).splitlines())) <= 80


def test_seeds_are_averaged_and_nothing_else(tmp_path):
    values = [0.91, 0.92, 0.915]
    for seed, value in enumerate(values):
        make_run(tmp_path / f"resnet20/{seed}", value, seed=seed)
    make_run(tmp_path / "cosine", 0.95, schedule="cosine")
    make_run(tmp_path / "few", 0.80, data={"train": 10_000})
    make_run(tmp_path / "other", 0.99, data={"name": "digits"})
    found = paper_table("cifar", tmp_path)
    assert not found.left_out
    step, *others = row_of(found, "ResNet-20").measured
    assert step.mean == pytest.approx(100 * statistics.fmean(values)) and step.deviation == pytest.approx(
        100 * statistics.stdev(values)
    )
    assert (step.best, step.seeds, step.milliseconds, step.device) == (pytest.approx(92.0), (0, 1, 2), 0.5, "cpu")
    assert step.how == "200 epochs, step, batches of 128"
    assert {(group.how, round(group.mean), group.deviation) for group in others} == {
        ("200 epochs, cosine, batches of 128", 95, None),
        ("200 epochs of 10,000 images, step, batches of 128", 80, None),
    }
    text = printed(found)
    assert "91.50 ± 0.50" in text and "10,000 images" in text
    assert json.loads(json.dumps(found.as_dict()))["rows"][0]["published"] == [{"value": 93.57, "source": "resnet"}]


def test_one_model_may_be_in_two_sections(tmp_path):
    make_run(tmp_path / "a", 0.93, model={"name": "resnet110_cifar"})
    found = paper_table("cifar", tmp_path)
    assert [row.name for row in found.rows if row.measured] == ["ResNet-110", "without attention"]


def test_options_decide_the_row(tmp_path):
    make_run(tmp_path / "a", 0.5, model={"name": "attn_resnet110_cifar", "attention_options": {"mode": "faithful"}})
    make_run(
        tmp_path / "b",
        0.5,
        model={"name": "attn_resnet110_cifar", "attention_options": {"mode": "faithful", "count": 2}},
    )
    found = paper_table("cifar", tmp_path)
    assert [row.name for row in found.rows if row.measured] == ["attention CNN, faithful"]
    ((folder, reason),) = found.left_out
    assert folder == str(tmp_path / "b") and "is no row" in reason


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"epoch": 150}, "not trained to its end"),
        ({"images": 9_000}, "9,000 test images, not on the 10,000"),
        ({"split": "train"}, "train images"),
        ({"split": "val"}, "10,000 val images, not on the 10,000 test images"),
        ({"epoch": 3, "max_time": 36_000}, "not trained to its end"),
        ({"model": {"name": "no_such_net"}}, "no model of this name"),
    ],
)
def test_what_does_not_count_is_left_out_with_the_reason(tmp_path, change, words):
    make_run(tmp_path / "a", 0.5, **change)
    found = paper_table("cifar", tmp_path)
    ((_, reason),) = found.left_out
    assert words in reason and not any(row.measured for row in found.rows)


def test_a_run_that_diverged_is_told_so(tmp_path):
    folder = make_run(tmp_path / "a", 0.5, epoch=150)
    (folder / "model.safetensors").unlink()  # not written if a run diverges
    (folder / "metrics.csv").write_text("step,epoch,seconds,loss\n50,0.128,5.0,2.1\n73,0.187,7.1,nan\n")
    ((_, reason),) = paper_table("cifar", tmp_path).left_out
    assert reason == "diverged in step 73; train with a lower `optimiser.lr` or `optimiser.clip` 1"


def test_damaged_and_old_evaluations_are_left_out(tmp_path):
    for name in ("none", "damaged", "old"):
        make_run(tmp_path / name, 0.5)
    (tmp_path / "none" / "evaluation.json").unlink()
    (tmp_path / "damaged" / "evaluation.json").write_text("{")
    os.utime(tmp_path / "old" / "evaluation.json", (1, 1))
    found = paper_table("cifar", tmp_path)
    reasons = {folder.rpartition(os.sep)[2]: reason for folder, reason in found.left_out}
    assert "no evaluation of these weights" in reasons["none"] and "no evaluation of these weights" in reasons["old"]
    assert "damaged" in reasons["damaged"]
    assert all(f"foveal evaluate {tmp_path / name}" in reason for name, reason in reasons.items())


@pytest.mark.parametrize(
    "damage",
    [
        ("metrics.csv", "step,epoch,seconds\n50,0.128,5.0\n78200"),
        ("metrics.csv", "step,epoch\nmany,\x01\n"),
        ("metrics.csv", "\n\n1,2\n"),
        ("config.yaml", "data: cifar10"),
        ("config.yaml", "data: {name: cifar10}"),
        ("config.yaml", "- a"),
        ("config.yaml", "data: {name: [}"),
        ("config.json", "[]"),
        ("config.json", '{"model": {"name": "resnet20_cifar"}, "class_names": 3}'),
        ("evaluation.json", "[]"),
        ("evaluation.json", '{"split": "test", "points": [{"kind": "learned", "images": "all"}]}'),
    ],
)
def test_a_bad_folder_is_left_out_and_hides_no_other(tmp_path, damage):
    make_run(tmp_path / "a", 0.5)
    make_run(tmp_path / "b", 0.9)
    (tmp_path / "a" / damage[0]).write_text(damage[1])
    found = paper_table("cifar", tmp_path)
    ((folder, reason),) = found.left_out
    assert folder == str(tmp_path / "a") and (damage[0] in reason or "evaluated on all" in reason)
    assert row_of(found, "ResNet-20").measured[0].runs == (str(tmp_path / "b"),)


@pytest.mark.parametrize("seconds", [36_001, 35_100])
def test_time_ends_a_run_too(tmp_path, seconds):
    """The last line may be as far from the end as the line before is from it."""
    run = make_run(tmp_path / "a", 0.5, epoch=30, max_time=36_000)
    (run / "metrics.csv").write_text(f"step,epoch,seconds\n50,14,17000\n100,28,34000\n11000,30,{seconds}\n")
    assert (
        row_of(paper_table("cifar", tmp_path), "ResNet-20").measured[0].how
        == "200 epochs or 36,000 s, step, batches of 128"
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"init_from": "runs/[/other]"}, "init_from runs/[/other]"),
        ({"model": {"name": "resnet20_cifar", "pretrained": "resnet20.th"}}, "model.pretrained resnet20.th"),
        ({"model": {"name": "resnet20_cifar", "image_size": 64}}, "model.image_size 64"),
        ({"data": {"augmentation": "none"}}, "data.augmentation none"),
        ({"optimiser": {"lr": 0.05, "weight_decay": 5e-4}}, "optimiser.lr 0.05, optimiser.weight_decay 0.0005"),
        ({"optimiser": {"name": "adam"}}, "optimiser.name adam"),
        ({"precision": "bf16-mixed"}, "bf16-mixed"),
    ],
)
def test_differences_from_the_recipe_are_shown_for_a_single_run(tmp_path, change, words):
    make_run(tmp_path / "a", 0.9, **change)
    found = paper_table("cifar", tmp_path)
    assert row_of(found, "ResNet-20").measured[0].how == f"200 epochs, step, batches of 128, {words}"
    assert words.split(", ")[0] in printed(found)


def test_lines_of_a_row_never_read_the_same(tmp_path):
    changes = [{}, {"ema": 0.99}, {"accumulate": 2}, {"objective": {"smoothing": 0.1}}, {"optimiser": {"warmup": 400}}]
    for i, change in enumerate(changes):
        make_run(tmp_path / f"{i}", 0.9, **({"ema": None} | change))
    make_run(tmp_path / "older", 0.9, seed=1)  # before the option existed
    groups = row_of(paper_table("cifar", tmp_path), "ResNet-20").measured
    assert [len(group.runs) for group in groups] == [2, 1, 1, 1, 1]
    words = ("128", "ema 0.99", "accumulate 2", "objective.smoothing 0.1", "optimiser.warmup 400")
    assert all(group.how.endswith(word) for group, word in zip(groups, words, strict=True))


def test_the_usual_settings_are_those_of_the_recipes():
    from foveal.recipes import load_recipe

    for name in table_names():
        content = yaml.safe_load(files("foveal.evaluation").joinpath("tables", f"{name}.yaml").read_text())
        usual = content["tables"]["cifar10" if name == "cifar" else "top1"]["usual"]
        for row in paper_table(name, "nowhere").rows:
            if row.recipe is not None and row.data in ("cifar10", "top1"):
                recipe = load_recipe(row.recipe)
                recipe["model"] = {"name": recipe["model"]} if isinstance(recipe["model"], str) else recipe["model"]
                for key, value in usual.items():
                    section, _, option = key.rpartition(".")
                    assert (recipe[section] if section else recipe).get(option) == value, (row.recipe, key)


def test_a_written_default_is_no_difference(tmp_path):
    make_run(tmp_path / "a", 0.90)
    run = make_run(tmp_path / "b", 0.91, seed=1, precision="32-true")
    config = yaml.safe_load((run / "config.yaml").read_text()) | {
        "model": {"name": "resnet20_cifar", "num_classes": None}
    }
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert row_of(paper_table("cifar", tmp_path), "ResNet-20").measured[0].seeds == (0, 1)


def test_defaults_of_the_network_and_numbers_in_two_spellings_are_no_difference(tmp_path):
    written = {
        "place": "block",
        "shortcut": "A",
        "in_chans": 3,
        "widths": [16, 32, 64],
        "conv_options": {},
        "drop_rate": 0.0,
    }
    for seed, more in enumerate(({}, written, {"attention_options": {}})):
        make_run(tmp_path / f"attn{seed}", 0.9, seed=seed, model={"name": "attn_resnet110_cifar", **more})
    for seed, clip in enumerate((4, 4.0)):
        model = {"name": "attn_resnet110_cifar", "attention_options": {"mode": "scaled", "clip": clip}}
        make_run(tmp_path / f"clip{seed}", 0.9, seed=seed, model=model, optimiser={"lr": 1 if seed else 1.0})
    make_run(tmp_path / "nl", 0.9, model={"name": "nl_resnet110_cifar", "place": "block"})  # the default is middle
    found = paper_table("cifar", tmp_path)
    for name, seeds in (("attention CNN", (0, 1, 2)), ("clipped at 4, zero start", (0, 1))):
        assert [group.seeds for group in row_of(found, name).measured] == [seeds]
    assert [(folder, "is no row" in reason) for folder, reason in found.left_out] == [(str(tmp_path / "nl"), True)]


def test_a_training_repeated_is_no_second_seed(tmp_path):
    for i, name in enumerate("acb"):
        make_run(tmp_path / name, 0.9 + i / 100)
        os.utime(tmp_path / name / "model.safetensors", (i + 1, i + 1))
    found = paper_table("cifar", tmp_path)
    (group,) = row_of(found, "ResNet-20").measured
    assert (group.mean, group.deviation, group.runs) == (pytest.approx(92), None, (str(tmp_path / "b"),))
    assert [folder for folder, _ in found.left_out] == [str(tmp_path / "a"), str(tmp_path / "c")]
    assert all(f"repeats the training of {tmp_path / 'b'}" in reason for _, reason in found.left_out)


def test_times_of_two_machines_are_not_compared(tmp_path):
    make_run(tmp_path / "a", 0.9, machine=("cuda:0", "fast"))
    assert re.search(r"0\.500 +cuda", printed(paper_table("cifar", tmp_path)))
    make_run(tmp_path / "b", 0.9, seed=1)
    (group,) = row_of(paper_table("cifar", tmp_path), "ResNet-20").measured
    assert (group.milliseconds, group.device, len(group.runs)) == (None, None, 2)


def test_networks_that_are_not_shipped_have_published_numbers_alone():
    """Bello et al., table of CIFAR-100."""
    found = paper_table("cifar", "nowhere")
    for name, value in (("SE-WRN-28-10", 81.0), ("GE-WRN-28-10", 79.8)):
        row = row_of(found, name, "cifar100")
        assert (row.published, row.model, row.recipe) == (((value, "aa"),), None, None)
        assert row_of(found, name).published is None


def test_imagenet_has_two_tables(tmp_path):
    model, data = {"name": "seresnet50", "image_size": 224}, {"name": "imagenet", "augmentation": "inception"}
    make_run(tmp_path / "a", 0.77, top5=0.93, model=model, images=50_000, data=data, split="val")
    make_run(tmp_path / "b", 0.77, top5=0.93, model=model, images=50_000, data=data, split="test")
    found = paper_table("imagenet", tmp_path)
    assert [row_of(found, "SE-ResNet-50", data).measured[0].mean for data in ("top1", "top5")] == [
        pytest.approx(77),
        pytest.approx(93),
    ]
    assert row_of(found, "SE-ResNet-50", "top1").measured[0].how == "200 epochs, step, batches of 128"
    ((folder, reason),) = found.left_out
    assert folder == str(tmp_path / "b") and "not on the 50,000 val images" in reason
    assert row_of(found, "ExpAtt-ResNet-152", "top1").claimed == (80.0,)
    assert (
        row_of(found, "ExpAtt-ResNet-152", "top5").claimed
        == row_of(found, "ExpAtt-ResNet-50", "top1").published
        == NOT_FOUND
    )
    assert row_of(found, "attention CNN", "top1").model is None


def test_no_such_table():
    with pytest.raises(ConfigError, match="did you mean cifar"):
        paper_table("cifr")
    with pytest.raises(ConfigError, match="use cifar or imagenet"):
        paper_table("mnist")


def costed(every):
    rows = [
        row for name in table_names() for row in paper_table(name, "nowhere").rows if row.model and row.data != "top5"
    ]
    assert all(row.parameters for row in rows)
    wanted = ("ResNet-110", "SE-ResNet-20", "with, after each stage")
    return [row for row in rows if every or (row.name in wanted and row.data == "cifar10")]


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_costs_are_those_of_the_models(every):
    for row in costed(every):
        options = dict(row.model)
        classes, size = {"cifar10": (10, 32), "cifar100": (100, 32), "top1": (1000, 224)}[row.data]
        with torch.device("meta"):
            cost = count_cost(create_model(options.pop("name"), num_classes=classes, **options), size)
        assert (cost.parameters, cost.macs) == (row.parameters, row.macs), row.name

"""Run folders that somebody else made: nothing outside of them is read, nothing is fetched, and what is wrong is one
sentence.
"""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import timm
import torch
import yaml

from foveal import runs
from foveal.cli import main
from foveal.errors import FovealError, RunError
from foveal.recipes import list_recipes, load_recipe

MODELS = {
    "tnet": {"name": "tnet", "backbone": "test_efficientnet", "base_size": 32, "locations": [2]},
    "dense": {"name": "test_resnet", "image_size": 32},
    "open": {"name": "test_attn_resnet", "image_size": 32},  # its class accepts any keyword
    "unannotated": {"name": "regnetx_002", "image_size": 32},
    "separate": {
        "name": "saccader_separate",
        "backbone": "test_bagnet_lowd",
        "classifier": "test_resnet",
        "image_size": 48,
        "locations": [2],
    },
    "ram": {"name": "ram", "in_chans": 3},
}

WATCH = """
import json, resource, sys, time
from pathlib import Path
import torch, timm, foveal.backbones, foveal.runs
from foveal.errors import FovealError
allowed = (sys.prefix, sys.base_prefix, str(Path(foveal.__file__).parents[1]), "/proc/", "/sys/", "/dev/null")
events, inside = [], [None]
def watch(event, args):
    if inside[0] is None:
        return
    if event.startswith(("socket.", "urllib.", "subprocess.", "os.system", "os.exec", "ctypes.dlopen")):
        events.append([event, str(args)[:100]])
    if event == "open" and isinstance(args[0], str) and not args[0].startswith((inside[0], *allowed)):
        events.append([event, args[0]])
sys.addaudithook(watch)
for folder in map(Path, sys.argv[1:]):
    inside[0], start = str(folder), time.perf_counter()
    try:
        foveal.runs.load(folder)
        said = "loaded"
    except FovealError as error:
        said = str(error)
    except BaseException as error:
        said = f"TRACEBACK {error!r}"
    inside[0] = None
    print(json.dumps([folder.name, said, events, time.perf_counter() - start]))
    events.clear()
# The kernel keeps ru_maxrss of the process that started this one.
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM:"))
print(json.dumps(int(peak.split()[1]) / 1024))
"""


def load_watched(folders: list[Path]) -> tuple[dict[str, tuple[str, list, float]], float]:
    """Load each folder in one new process: errors, opened files, and peak memory in MB."""
    done = subprocess.run(
        [sys.executable, "-c", WATCH, *map(str, folders)],
        check=False,
        capture_output=True,
        text=True,
        cwd=Path(runs.__file__).parents[1],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    *lines, memory = map(json.loads, done.stdout.splitlines())
    return {name: (said, events, seconds) for name, said, events, seconds in lines}, memory


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, Path]:
    top = tmp_path_factory.mktemp("runs")
    for name, model in MODELS.items():
        options = {key: value for key, value in model.items() if key != "name"}
        classifier = runs.create_classifier(model["name"], num_classes=3, **options)
        runs.save_model(top / name, classifier, runs.ModelInfo(model, ("a", "b", "c")))
    return {name: top / name for name in MODELS}


def changed(source: Path, target: Path, change) -> Path:
    """A copy of a run folder; ``change`` is called with its card, or gives the text of another one."""
    shutil.copytree(source, target)
    card = json.loads((source / "config.json").read_text())
    other = change(card)
    (target / "config.json").write_bytes(other if isinstance(other, bytes) else json.dumps(card).encode())
    return target


def option(**options):
    return lambda card: card["model"].update(options)


FEATURE = "blocks.1"
"""Which the TNet below chooses itself."""

URL = "http://localhost:1/w.pth"
FETCHES = {
    **{
        f"{base}.{key}": (base, option(**{key: value}))
        for base in ("tnet", "dense", "open", "unannotated")
        for key, value in {
            "pretrained": True,
            "pretrained_cfg": {"url": URL},
            "pretrained_cfg_overlay": {"file": "/etc/hostname"},
            "checkpoint_path": "/etc/hostname",
            "cache_dir": "/tmp",
            "pretrained_strict": False,
            "pretrained_model_args": {"a": 1},
            "pruned": True,
            "features_only": True,
            "model_cfg": {"a": 1},
            "hf_hub_id": "a/b",
        }.items()
        if key != "hf_hub_id" or base not in ("open", "unannotated")  # reaches the class, which has no such keyword
    },
    **{
        f"nested.{base}.{key}": (base, option(**{which: {key: value}}))
        for base, which in (
            ("tnet", "backbone_options"),
            ("separate", "backbone_options"),
            ("separate", "classifier_options"),
        )
        for key, value in {
            "pretrained": True,
            "pretrained_cfg": {"url": URL},
            "pretrained_cfg_overlay": {"url": URL},
            "checkpoint_path": "/etc/hostname",
            "cache_dir": "/tmp",
        }.items()
    },
    **{
        f"{base}.{key} {name[:5]}": (base, option(**{key: name}))
        for base, key in (("tnet", "name"), ("dense", "name"), ("tnet", "backbone"), ("separate", "classifier"))
        for name in (
            "hf-hub:timm/resnet18.a1_in1k",
            "local-dir:/tmp",
            "HF-HUB:timm/x",
            "file:///etc/hostname",
            "timm/resnet18",
        )
    },
    "locator": ("separate", option(locator_pretrained="/etc/hostname")),
    "preset": ("tnet", option(name="tnet_bagnet77.reference", backbone_options={"checkpoint_path": "/etc/hostname"})),
    "path": ("tnet", option(backbone_options="/etc/hostname")),
}


def test_loading_a_run_reads_nothing_else_and_fetches_nothing(made, tmp_path):
    """A Python audit hook in a new process records sockets and opened files."""
    folders = [
        changed(made[base], tmp_path / name.replace("/", "_"), change) for name, (base, change) in FETCHES.items()
    ]
    found, _ = load_watched([*made.values(), *folders])
    for name, (said, events, _) in found.items():
        assert not events, (name, events)
        assert "\n" not in said and not said.startswith("TRACEBACK"), (name, said)
        assert (said == "loaded") == (name in made), (name, said)
        assert said == "loaded" or f"{name}/config.json: " in said, (name, said)


def names(*given):
    return lambda card: card.update(class_names=list(given))


def fitting(size=None, **options):
    """Options on which no shape of the weights depends, once the feature that describes cells is named."""

    def change(card):
        card["model"] |= {"location_features": FEATURE, **options}
        card["size"] = size or card["size"]

    return change


WRONG = {
    "too few names": ("tnet", names("a", "b"), "class_names: 2 names for 3 classes"),
    "too many names": ("tnet", names(*"abcd"), "class_names: 4 names for 3 classes"),
    "a number as name": ("tnet", names("a", "b", 3), "class_names: "),
    "an empty name": ("tnet", names("a", "", "c"), "class_names: name 1"),
    "a name twice": ("tnet", names("a", "b", "a"), "class_names: 'a' occurs twice"),
    "a line break": ("tnet", names("a", "b", "c\nd"), "class_names: name 2"),
    "an escape": ("tnet", names("a", "b", "\x1b[31mc"), "class_names: name 2"),
    "no names": ("tnet", lambda card: card.pop("class_names") and None, "class_names: is missing"),
    "no classes": ("tnet", lambda card: card.update(num_classes=0, class_names=[]), "num_classes: 0"),
    "negative classes": ("dense", lambda card: card.update(num_classes=-3), "num_classes: -3"),
    "many classes": ("tnet", lambda card: card.update(num_classes=10**9, class_names=[]), "num_classes: 1000000000"),
    "quite many classes": (
        "tnet",
        lambda card: card.update(num_classes=10**6, class_names=[]),
        "classifier.weight is (3, 256)",
    ),
    "classes as text": ("tnet", lambda card: card.update(num_classes="3"), "num_classes: '3'"),
    "half a class": ("tnet", lambda card: card.update(num_classes=2.5), "num_classes: 2.5"),
    "true classes": ("tnet", lambda card: card.update(num_classes=True), "num_classes: True"),
    "no bands": ("tnet", option(in_chans=0), "in_chans"),
    "no bands, dense": ("dense", option(in_chans=0), "in_chans: 0"),
    "many bands": ("dense", option(in_chans=10**9), "in_chans"),
    "no backbone": ("tnet", option(backbone=None), "backbone: None"),
    "a list as name": ("tnet", option(name=["tnet"]), "model.name"),
    "no model": ("tnet", lambda card: card.update(model=None), "model: None"),
    "a list as model": ("tnet", lambda card: card.update(model=[1]), "model: [1]"),
    "unknown key": (
        "tnet",
        lambda card: card.update(clas_names=[]),
        "clas_names: there is no such option; did you mean class_names",
    ),
    "unknown option": ("tnet", option(gird=3), "gird: there is no such option; did you mean grid"),
    "unknown option, dense": ("dense", option(drop_rat=0.1), "drop_rat"),
    "a text as number": ("tnet", option(grid="3"), "grid: '3'"),
    "deep options": ("tnet", option(backbone_options={"a": json.loads("[" * 30 + "]" * 30)}), "backbone_options.a"),
    "deeper": ("tnet", lambda card: b'{"model": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested more than"),
    "an array": ("tnet", lambda card: b"[]", "not a mapping of keys to values"),
    "null": ("tnet", lambda card: b"null", "not a mapping of keys to values"),
    "NaN": ("tnet", option(region=float("nan")), "NaN"),
    "infinite": ("tnet", option(region=float("inf")), "Infinity"),
    "1e999": ("tnet", lambda card: json.dumps(card).replace('"base_size": 32', '"region": 1e999').encode(), "1e999"),
    "digits": ("tnet", lambda card: b'{"model": ' + b"9" * 5000 + b"}", "is not valid JSON"),
    "a key twice": ("tnet", lambda card: b'{"model": {}, "model": {}}', "'model' occurs twice"),
    "Latin-1": ("tnet", lambda card: b'{"model": "\xe9"}', "not UTF-8"),
    "40 MB": ("tnet", lambda card: b" " * 40_000_000 + b"{}", "larger than"),
    "empty": ("tnet", lambda card: b"", "not valid JSON"),
    "large looks": ("tnet", option(base_size=10**6), "base_size: 1000000 is too large"),
    "quite large looks": (
        "tnet",
        option(base_size=30_000, location_features="blocks.0"),
        "model.base_size 30000: is too large and needs 10.1 GiB",
    ),
    "large looks that fit": (
        "tnet",
        fitting(base_size=20_000, size=[20_000, 20_000]),
        "model.base_size 20000: is too large and needs",
    ),
    "large images": ("dense", option(image_size=[20_000, 20_000]), "model.image_size 20000: is too large"),
    "large grid": ("tnet", fitting(grid=20_000), "model: buffers that are not stored need more"),
    "wide": ("dense", option(channels=[32_000] * 4), "the weights do not fit"),
    "very wide": ("dense", option(channels=[10**9] * 4), "channels: [1000000000, "),
    "very wide below": (
        "tnet",
        option(backbone_options={"stem_size": 10**6}),
        "backbone_options: {'stem_size': 1000000} is too large",
    ),
    "deep network": ("dense", option(layers=[30_000, 1, 1, 1]), "layers"),
    "open deep network": ("open", option(layers=[30_000, 1, 1, 1]), "layers"),
    "wrong layers": ("dense", option(layers="abc"), "model test_resnet: an option has a value of a wrong type"),
    "many patches": ("ram", option(patches=30_000), "is too large and needs"),
    "more patches": ("ram", option(base_size=30_000), "model.base_size 30000: is too large"),
    "many looks": ("ram", lambda card: card.update(locations=[10**9]), "locations: "),
    "levels": ("tnet", lambda card: card.update(locations=[9] * 30), "locations: "),
    "negative looks": ("tnet", lambda card: card.update(locations=[-1]), "locations: "),
    "other bands": ("tnet", lambda card: card.update(channels=4, mean=[0.5] * 4, std=[0.5] * 4), "channels: is 4"),
    "other size": ("tnet", lambda card: card.update(size=[64, 64]), "size: is [64, 64]"),
    "a range upside down": ("tnet", lambda card: card.update(value_range=[1, 0]), "value_range: 1 is not below 0"),
    "half a range": ("tnet", lambda card: card.update(value_range=[1]), "value_range: [1]"),
    "no image size": ("tnet", lambda card: card.update(image_size=0), "image_size: 0"),
    "large image size": ("tnet", lambda card: card.update(image_size=10**6), "image_size: 1000000"),
}


def test_what_is_wrong_in_a_card_is_one_sentence_before_memory_is_taken(made, tmp_path):
    folders = [changed(made[base], tmp_path / name, change) for name, (base, change, _) in WRONG.items()]
    found, memory = load_watched([*made.values(), *folders])
    for name, (_, _, expected) in WRONG.items():
        said, events, seconds = found[name]
        assert any(part in said for part in expected.split("|")), (name, said)
        assert "\n" not in said and len(said) < 500 and not events and str(tmp_path) in said, (name, said)
        assert seconds < 10, (name, seconds)
    assert memory < 1500, memory  # importing torch and timm takes a third of that


def test_options_of_all_recipes_and_networks_may_be_stored():
    for recipe in list_recipes():
        model = dict(load_recipe(recipe).get("model") or {"name": "tnet"})
        runs.check_options(model.pop("name"), model)
    for name in timm.list_models():
        runs.check_options(name, {"in_chans": 3, "drop_rate": 0.1, "image_size": 224}, stored=True)


# --------------------------------------------------------------------------------------- configurations and checkpoints


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "run"
    data = [
        "--data",
        "digits",
        "--data.canvas",
        "96",
        "--data.digit",
        "12,16",
        "--data.distractors",
        "1",
        "--data.train",
        "8",
    ]
    data += ["--data.val", "4", "--data.test", "0", "--model", "test_resnet", "--model.image_size", "32"]
    assert (
        main(["fit", *data, "--steps", "1", "--batch_size", "4", "--device", "cpu", "--quiet", "--out", str(out)]) == 0
    )
    return out


LAUGHS = "a0: &a0 [l, o, l]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
MERGED = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 12))

CONFIGS = {
    "laughs": (LAUGHS, "with its aliases expanded"),
    "merged": (MERGED, "with its aliases expanded"),
    "itself": ("data: &a [*a]", "an alias refers to a value that contains it"),
    "deep": ("data: " + "[" * 100_000, "nested more than"),
    "deep blocks": ("data:\n" + "".join(" " * i + "a:\n" for i in range(1, 3000)), "nested more than"),
    "a key twice": ("data: {name: digits}\ndata: {}", "'data' occurs twice"),
    "Latin-1": (b"data: \xe9", "not UTF-8"),
    "an object": ("data: !!python/object/apply:os.system [echo]", "is not valid YAML"),
    "a month": ("data: 2020-13-45", "is not valid YAML"),
    "control": ("data: \x07", "is not valid YAML"),
    "text": ("hello", "is not a mapping of options|is no recipe"),
    "empty": ("", "is not a mapping of options|data"),
    "base": ("base: /etc/hostname.yaml", "base: a run has|is not stored"),
    "section": ("data: 3\nmodel: {name: test_resnet}", "data"),
    "number as name": ("data: {name: 3}\nmodel: {name: test_resnet}", "data"),
    "list as name": ("data: {name: [digits]}\nmodel: {name: [tnet]}", "name"),
    "no name": ("data: {train: 8}\nmodel: {name: test_resnet}", "data"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_wrong_in_config_yaml_is_one_sentence(trained, tmp_path, capsys, name):
    content, expected = CONFIGS[name]
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    (folder / "config.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    for argv in (["evaluate", str(folder)], ["fit", "--resume", "--out", str(folder)]):
        assert main(argv) in (1, 2)
        said = capsys.readouterr().err.strip()
        assert "\n" not in said and len(said) < 600 and str(folder) in said, said
        assert any(part in said for part in expected.split("|")), said
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


TYPES = {
    "epochs": "many",
    "steps": 1.5,
    "batch_size": "4",
    "optimiser": 3,
    "optimiser.lr": "fast",
    "optimiser.betas": [1, 2, 3],
    "seed": None,
    "ema": [],
    "class_weights": "other",
    "init_from": 3,
    "locations": "2",
    "model": None,
    "data": [],
    "compile": "yes",
    "optimiser.x": 1,
    "model.checkpoint_path": "/etc/hostname",
    "model.pretrained_cfg": {"url": URL},
    "data.train": "x",
    "data.canvas": [1],
    "epoch": 3,
}


@pytest.mark.parametrize("key", TYPES)
def test_a_value_of_another_type_in_config_yaml_is_named(trained, tmp_path, capsys, key):
    from foveal.recipes.fit_config import fit_config

    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    *way, last = key.split(".")
    at = config
    for part in way:
        at = at[part]
    at[last] = TYPES[key]
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert main(["fit", "--resume", "--out", str(folder)]) in (1, 2)
    said = capsys.readouterr().err.strip()
    assert last in said and "\n" not in said, said
    with pytest.raises(FovealError, match=rf"^[^\n]*{last}[^\n]*$"):
        fit_config(None, folder, resume=True, quiet=True)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


CHECKPOINTS = {
    "a list": lambda c: [1],
    "a tensor": lambda c: torch.zeros(3),
    "nothing": lambda c: {},
    "no loops": lambda c: c.pop("loops") and None,
    "text as step": lambda c: c.update(global_step="2"),
    "negative step": lambda c: c.update(global_step=-2),
    "weights as text": lambda c: c["state_dict"].update({"model.network.fc.weight": "w"}),
    "no weights": lambda c: c.update(state_dict={}),
    "other shape": lambda c: c["state_dict"].update({"model.network.fc.weight": torch.zeros(2, 2)}),
    "no optimiser": lambda c: c.update(optimizer_states=[]),
    "empty optimiser": lambda c: c.update(optimizer_states=[{}]),
    "other groups": lambda c: c["optimizer_states"][0].update(
        param_groups=[{"lr": 1.0, "base_lr": 1.0, "params": [0]}]
    ),
    "other loops": lambda c: c.update(loops={"fit_loop": {"epoch_loop.batch_progress": 3}}),
    "callbacks": lambda c: c.update(callbacks=[1]),
    "elapsed": lambda c: c.update(elapsed="long"),
    "expanded": lambda c: c["state_dict"].update({"model.network.fc.weight": torch.zeros(1).expand(10**6, 10**6)}),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_what_is_wrong_in_a_checkpoint_is_one_sentence(trained, tmp_path, capsys, name):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    content = torch.load(folder / "last.ckpt", weights_only=True)
    other = CHECKPOINTS[name](content)
    torch.save(content if other is None else other, folder / "last.ckpt")
    assert main(["fit", "--resume", "--out", str(folder), "--steps", "2"]) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"{folder}/last.ckpt: " in said and len(said) < 500, said
    if name not in (
        "no optimiser",
        "empty optimiser",
        "other groups",
        "no loops",
        "other loops",
        "callbacks",
        "elapsed",
    ):
        with pytest.raises(RunError, match=r"^[^\n]*last.ckpt: [^\n]*$"):
            runs.load(folder, which="last")


def test_a_compressed_checkpoint_is_not_opened(trained, tmp_path):
    """Compressed, 8 GB of zeros take 8 MB."""
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    with (
        zipfile.ZipFile(trained / "last.ckpt") as source,
        zipfile.ZipFile(folder / "last.ckpt", "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for entry in source.namelist():
            target.writestr(entry, source.read(entry))
    with pytest.raises(RunError, match=r"last.ckpt: is compressed"):
        runs.load(folder, which="last")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "config.yaml", "last.ckpt", "summary.json"])
def test_links_that_lead_out_of_a_run_are_not_followed(trained, tmp_path, name):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    (folder / name).rename(tmp_path / name)
    (folder / name).symlink_to(tmp_path / name)
    with pytest.raises(RunError, match=rf"{name}: is a link to a file outside of the run[^\n]*$"):
        run = runs.Run(folder)
        assert run.config and run.summary and run.load_model() and run.load_model(which="last")
    (folder / name).unlink()
    (tmp_path / name).rename(folder / "inside")
    (folder / name).symlink_to("inside")
    run = runs.Run(folder)
    assert run.config and run.summary and run.load_model() and run.load_model(which="last")


@pytest.mark.parametrize(
    "content", ["[1]", "{", "3", '{"step": 1, "step": 2}', '{"step": NaN}', "[" * 10_000, "\udce9"]
)
def test_what_is_wrong_in_a_summary_or_exits_is_one_sentence(trained, tmp_path, content):
    from foveal.prediction import read_exits

    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    for name in ("summary.json", "exits.json"):
        (folder / name).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(RunError, match=r"^[^\n]*summary.json: [^\n]*$"):
        _ = runs.Run(folder).summary
    with pytest.raises(RunError, match=r"^[^\n]*exits.json: [^\n]*$"):
        read_exits(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"threshold": "x"},
        {"locations": ["a"]},
        {"locations": 3},
        {"budget": 3},
        {"budget": "3 miles"},
        {"more": 1},
        {"at_once": 0},
    ],
)
def test_exits_of_other_types_are_refused(tmp_path, change):
    from foveal.prediction import Exit, read_exits, write_exits

    write_exits(tmp_path, [Exit("3locations", 0.5, (2, 1), 1, 2.5, "locations", 10)])
    (values,) = json.loads((tmp_path / "exits.json").read_text())
    (tmp_path / "exits.json").write_text(json.dumps([values | change]))
    with pytest.raises(RunError, match=r"^[^\n]*exits.json: [^\n]*$"):
        read_exits(tmp_path)

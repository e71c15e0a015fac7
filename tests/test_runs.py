"""Models by name, classify, and valid and invalid run folders."""

from __future__ import annotations

import dataclasses
import inspect
import io
import json
import logging
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

import foveal.hub as hub
import foveal.models as models
import foveal.runs as runs
from foveal.errors import ConfigError, ImageError, RunError, StorageError
from foveal.glimpse.base import GlimpseClassifier, WholeImage
from foveal.images.views import TensorViews
from foveal.prediction import classify, find_device

TNET = {"name": "tnet", "backbone": "test_efficientnet", "base_size": 32, "locations": [2]}


def tnet(**changes) -> GlimpseClassifier:
    torch.manual_seed(0)
    return models.create_classifier(**{**TNET, **changes}, num_classes=3).eval()


@pytest.fixture
def folder(tmp_path) -> Path:
    model = tnet()
    runs.save_model(tmp_path / "run", model, runs.ModelInfo(TNET, ("a", "b", "c"), (0.0, 2.0)))
    return tmp_path / "run"


def test_options_that_a_run_was_written_without_are_as_they_were_then(folder):
    """Runs of versions without ``fit_grid`` look at the square around an image."""
    card = json.loads((folder / runs.CARD).read_text())
    assert card["model"] == {**TNET, "fit_grid": True}  # written although it is not set
    del card["model"]["fit_grid"]
    image = torch.rand(3, 60, 150)
    now = classify(runs.load(folder), image)
    (folder / runs.CARD).write_text(json.dumps(card))
    then = classify(runs.load(folder), image)
    assert now.glimpses.box[0].tolist() == [0, 0, 60, 150] and then.glimpses.box[0].tolist() == [-45, 0, 105, 150]
    loaded = runs.load(folder)
    model = tnet(fit_grid=False)
    model.load_state_dict(loaded.state_dict())
    model.value_range = loaded.value_range  # a tensor is opened like a file with a value range
    assert torch.equal(classify(model, image).logits, then.logits)
    runs.save_model(folder / "copy", model, runs.ModelInfo(TNET))
    assert json.loads((folder / "copy" / runs.CARD).read_text())["model"]["fit_grid"] is False


def test_references_are_written_as_they_were(tmp_path):
    model = models.create_classifier("tnet_bagnet77.reference", backbone="test_bagnet_tnet", num_classes=3)
    runs.write_card(
        tmp_path, model, runs.ModelInfo({"name": "tnet_bagnet77.reference", "backbone": "test_bagnet_tnet"})
    )
    assert json.loads((tmp_path / runs.CARD).read_text())["model"] == {
        "name": "tnet_bagnet77.reference",
        "backbone": "test_bagnet_tnet",
    }


# ------------------------------------------------------------------------------------------------------------- names


def test_timms_models_are_timms():
    model = models.create_model("test_resnet", num_classes=7)
    assert type(model) is type(timm.create_model("test_resnet")) and model.num_classes == 7
    assert isinstance(models.as_classifier(model), WholeImage)
    assert models.as_classifier(tnet := models.create_classifier(**TNET)) is tnet


@pytest.mark.parametrize("name", ["tnet", "tnet_bagnet77.reference", "tnet_efficientnet_b0.reference_cub"])
def test_models_of_ours_take_a_number_of_classes(name):
    assert models.create_model(name, num_classes=11).num_classes == 11


def test_options_of_the_wrapper_are_told_from_those_of_the_network():
    model = models.create_classifier(
        "test_resnet", num_classes=2, image_size=48, squash=True, mean=[0.1, 0.2, 0.3], drop_rate=0.4
    )
    assert model.size == (48, 48) and model.squash and model.network.drop_rate == 0.4
    assert model.mean.tolist() == pytest.approx([0.1, 0.2, 0.3])


def test_listing():
    assert "tnet" in models.list_models() and "resnet18" in models.list_models()
    assert models.list_models("tnet*") and all(name.startswith("tnet") for name in models.list_models("tnet*"))


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        ({"name": "tnett"}, "tnett: there is no model of this name; did you mean tnet"),
        ({"name": "tnet_nope"}, "tnet_nope: there is no model of this name; did you mean tnet or "),
        ({"name": "resnet_18"}, "resnet_18: there is no model of this name; did you mean .*resnet18"),
        (
            {"name": "resnet18.a1_in1kk"},
            "resnet18.a1_in1kk: there is no model of this name; did you mean .*resnet18.a1_in1k",
        ),
        ({"name": "zzz"}, "zzz: there is no model of this name; foveal models lists them"),
        ({"name": "tnet", "basesize": 3}, "model tnet: there is no option 'basesize'; did you mean base_size"),
        (
            {"name": "test_resnet", "drop_rat": 3},
            "model test_resnet: there is no option 'drop_rat'; did you mean drop_rate",
        ),
        ({"name": "resnet20_cifar", "place": "front"}, "model resnet20_cifar: place='front' is unknown; use block"),
        ({"name": "resnet20_cifar", "widths": 16}, "model resnet20_cifar: `widths` 16: does not fit; give "),
        ({"name": "resnet20_cifar", "a.b": 1}, "model resnet20_cifar: there is no option 'a.b'"),
        (
            {"name": "test_resnet", "pretrained": "none.safetensors"},
            "none.safetensors: there is no such file of weights",
        ),
    ],
)
def test_what_is_unknown_gets_a_near_name(call, sentence):
    with pytest.raises(ConfigError, match=rf"^{sentence}[^\n]*$"):
        models.create_model(**call)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_pretrained_weights_of_a_file(tmp_path, suffix):
    """As in timm, the classifier is initialised if the number of classes differs."""
    source = timm.create_model("test_resnet", num_classes=1000)
    file = tmp_path / f"weights{suffix}"
    state = source.state_dict()
    save_file(state, file) if suffix == ".safetensors" else torch.save(state, file)
    model = models.create_model("test_resnet", num_classes=2, pretrained=file)
    for name, value in model.state_dict().items():
        assert name.startswith("fc.") or torch.equal(value, state[name]), name
    two = model.state_dict()
    save_file(two, file) if suffix == ".safetensors" else torch.save({"state_dict": two}, file)
    same = models.create_model("test_resnet", num_classes=2, pretrained=file).state_dict()
    assert all(torch.equal(value, two[name]) for name, value in same.items())
    (tmp_path / "bad.pth").write_bytes(b"nothing")
    with pytest.raises(ConfigError, match=r"bad.pth: is not a file of tensors alone"):
        models.create_model("test_resnet", pretrained=tmp_path / "bad.pth")
    del state["conv1.0.weight" if "conv1.0.weight" in state else next(iter(state))]
    torch.save(state, tmp_path / "part.pth")
    with pytest.raises(ConfigError, match=r"test_resnet: its pretrained weights do not load \([^\n]*$"):
        models.create_model("test_resnet", pretrained=tmp_path / "part.pth")


def test_pretrained_weights_without_a_network(monkeypatch, caplog):
    def unreachable(*_, **__):
        logging.getLogger("huggingface_hub.utils._http").warning("Retrying in 1s [Retry 1/5].")
        raise FileNotFoundError("we cannot find the requested files in the local cache.")

    monkeypatch.setattr("timm.create_model", unreachable)
    with pytest.raises(
        ConfigError, match=r"cache\); give [^\n]* `model.pretrained` FILE or in Python pretrained=FILE$"
    ):
        models.create_model("test_resnet", pretrained=True)
    assert "Retrying" not in caplog.text
    logging.getLogger("huggingface_hub.utils._http").warning("as loud as before")
    assert "as loud as before" in caplog.text


@pytest.mark.parametrize(("reached", "proxies"), [(True, {}), (False, {}), (False, {"https": "http://proxy"})])
def test_the_hub_is_asked_only_where_it_can_be_reached(monkeypatch, reached, proxies):
    """huggingface_hub would retry for a minute."""
    from huggingface_hub import constants

    def connect(address, timeout):
        assert address == ("huggingface.co", 443)
        if not reached:
            raise OSError("network is unreachable")
        return io.BytesIO()  # can be closed

    offline = []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "https://huggingface.co")
    monkeypatch.setattr(hub.socket, "create_connection", connect)
    monkeypatch.setattr(hub, "getproxies", lambda: proxies)
    monkeypatch.setattr(
        "timm.create_model", lambda *_, **__: offline.append(constants.HF_HUB_OFFLINE) or torch.nn.Identity()
    )
    models.create_model("test_resnet", pretrained=True)
    models.create_model("test_resnet")
    assert offline == [not reached and not proxies, False] and not constants.HF_HUB_OFFLINE


HUB = "a model of the Hugging Face Hub or of a folder is not loaded by its name; give"


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("hf-hub:timm/resnet18.a1_in1k", rf"{HUB} resnet18.a1_in1k, and `model.pretrained` true for its weights"),
        ("hf_hub:timm/resnet18.a1_in1k@main", rf"{HUB} resnet18.a1_in1k, and"),
        ("timm/resnet18", rf"{HUB} resnet18, and"),
        (
            "hf-hub:somebody/birds",
            rf"{HUB} the name of its architecture in timm, and its file of weights by `model.pretrained` FILE",
        ),
        ("local-dir:/models/birds", rf"{HUB} the name of its architecture in timm"),
        ("resnet18.a1_in1kk", "UNKNOWN; did you mean resnet18.a1_in1k or "),
        ("resnet_18", "UNKNOWN; did you mean resnet18"),
        ("zzz", "UNKNOWN; foveal models"),
    ],
)
def test_networks_that_timm_does_not_know(name, sentence):
    """As a model, and as the backbone or classifier of one."""
    separate = {"name": "saccader_separate", "backbone": "test_bagnet_lowd", "image_size": 32}
    for options, who, unknown in (
        ({"name": name}, name, "there is no model of this name"),
        ({"name": "tnet", "backbone": name}, f"backbone {name}", "there is no backbone of this name"),
        ({**separate, "classifier": name}, f"backbone {name}", "there is no backbone of this name"),
    ):
        with pytest.raises(ConfigError, match=rf"^{re.escape(who)}: {sentence.replace('UNKNOWN', unknown)}[^\n]*$"):
            models.create_model(**options)


def test_weights_that_would_run_code_are_refused_without_a_warning(tmp_path, recwarn):
    (tmp_path / "w.pth").write_bytes(pickle.dumps({"a": Path()}, protocol=4))
    with pytest.raises(ConfigError, match=r"w.pth: is not a file of tensors alone"):
        models.read_weights(tmp_path / "w.pth")
    assert not list(recwarn)


# ---------------------------------------------------------------------------------------------------------- classify


def test_classify_one_and_many():
    model, images = tnet(), torch.rand(5, 3, 70, 90)
    with torch.no_grad():
        expected = model(images).logits
    torch.testing.assert_close(classify(model, images, batch_size=2).logits, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(classify(model, list(images)).logits, expected, rtol=1e-4, atol=1e-5)
    one = classify(model, images[3])
    assert one.logits.shape == (3,) and len(one.glimpses) == 3
    torch.testing.assert_close(one.logits, expected[3], rtol=1e-4, atol=1e-5)
    assert classify(model, images[3], locations=()).locations == 0
    assert classify(model, TensorViews(images)).logits.shape == (5, 3)


def test_classify_leaves_the_mode_and_takes_any_network():
    network = timm.create_model("test_resnet", num_classes=4).train()
    images = torch.rand(2, 3, 50, 40)
    result = classify(network, images)
    assert result.logits.shape == (2, 4) and not result.logits.requires_grad and network.training
    with pytest.raises(ImageError, match="there is no image to classify"):
        classify(network, [])


def test_classify_files(tmp_path):
    Image = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    model = tnet()
    one = classify(model, tmp_path / "a.png")
    memory = classify(model, torch.from_numpy(pixels).permute(2, 0, 1).float() / 255)
    torch.testing.assert_close(one.logits, memory.logits, rtol=1e-3, atol=1e-3)
    assert classify(model, [tmp_path / "a.png", str(tmp_path / "a.png")]).logits.shape == (2, 3)
    with pytest.raises(ImageError, match=r"^[^\n]*b\.png: [^\n]+$"):
        classify(model, tmp_path / "b.png")


# ------------------------------------------------------------------------------------------------------- run folders


def test_what_is_saved_is_loaded(folder):
    model, image = tnet(), torch.rand(3, 64, 80)
    same = runs.load(folder)
    # The run's value range is 0 to 2.
    assert torch.equal(classify(same, 2 * image).logits, classify(model, image.permute(1, 2, 0).numpy()).logits)
    assert (
        same.class_names == ("a", "b", "c")
        and same.locations == (2,)
        and list(same.value_range) == [0.0, 2.0]
        and not same.training
    )
    card = json.loads((folder / "config.json").read_text())
    assert card["size"] == [32, 32] and len(card["mean"]) == 3 and card["channels"] == 3
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize(
    "asked, sentence",
    [
        ({"which": "bets"}, r"^`which` bets: is not known; use one of best, last$"),
        ({"device": "banana"}, r"^`device` banana: this machine has no such device that torch can use; try"),
    ],
)
def test_weights_and_devices_that_there_are_not(folder, asked, sentence):
    with pytest.raises(ConfigError, match=sentence):
        runs.load(folder, **asked)
    with pytest.raises(ConfigError, match=sentence):
        runs.Run(folder).load_model(**asked)
    with pytest.raises(TypeError, match="positional"):
        runs.load(folder, "cpu")
    assert runs.load(folder, device="auto").mean.device == find_device("auto")


def test_loading_never_fetches_pretrained_weights(tmp_path, monkeypatch):
    runs.save_model(tmp_path, tnet(), runs.ModelInfo({**TNET, "pretrained": True}))
    monkeypatch.setattr("timm.models._builder.load_pretrained", None)
    assert runs.load(tmp_path).num_classes == 3


@pytest.mark.parametrize("key", ["mean", "std"])
def test_another_normalisation_than_that_of_the_model_is_refused(folder, key):
    file = folder / "config.json"
    card = json.loads(file.read_text())
    values = [round(value, 6) for value in card[key]]  # written by hand: equal as float32
    file.write_text(json.dumps({**card, key: values}))
    assert getattr(runs.load(folder), key).tolist() == card[key]
    file.write_text(json.dumps({**card, key: [*values[:-1], values[-1] + 0.01]}))
    with pytest.raises(RunError, match=rf"config.json: {key}: is \[[^\n]*, but the model with these options has \["):
        runs.load(folder)
    file.write_text(json.dumps({**card, key: values[:1]}))
    with pytest.raises(RunError, match=rf"config.json: {key}: is \[[^\n]*, but the model"):
        runs.load(folder)
    file.write_text(json.dumps({name: value for name, value in card.items() if name != key}))
    assert runs.load(folder).mean.tolist() == card["mean"]


def test_the_class_of_a_network_made_in_python_is_stored():
    network = timm.create_model("test_resnet", num_classes=2)
    assert runs.made_in_python(models.as_classifier(network)) == "python:timm.models.resnet.ResNet"


def test_a_write_that_fails_leaves_what_was_there(folder, monkeypatch):
    before = {file.name: file.read_bytes() for file in folder.iterdir()}

    def full(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr(runs, "serialise", full)
    with pytest.raises(StorageError, match=r"model.safetensors: cannot be written \(no space left on device\)"):
        runs.save_model(folder, tnet(), runs.ModelInfo(TNET, ("a", "b", "c"), (0.0, 2.0)))
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def spoil(folder: Path, how: str) -> None:
    card, weights = folder / "config.json", folder / "model.safetensors"
    content = json.loads(card.read_text())
    tensors = load_file(weights)
    match how:
        case "no config.json":
            card.unlink()
        case "half a config.json":
            card.write_text(card.read_text()[:40])
        case "another config.json":
            card.write_text('{"architecture": "resnet18"}')
        case "no weights":
            weights.unlink()
        case "half the weights":
            weights.write_bytes(weights.read_bytes()[:1000])
        case "unknown model":
            card.write_text(json.dumps({**content, "model": {"name": "tnet9"}}))
        case "other shapes":
            card.write_text(json.dumps({**content, "num_classes": 5}))
        case "missing tensor":
            save_file({k: v for k, v in tensors.items() if k != "classifier.bias"}, weights)
        case "further tensor":
            save_file({**tensors, "extra.bias": torch.zeros(1)}, weights)
        case "no best yet":
            weights.rename(folder / "last.ckpt")


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("no config.json", r"run: has no config.json, so it is no run folder or was never finished; "),
        ("half a config.json", r"config.json: is damaged or not a file of foveal \(line \d+ is not valid JSON\); "),
        ("another config.json", r"config.json: model: is missing; "),
        ("no weights", r"model.safetensors: there are no weights, so training has not finished; train again"),
        (
            "no best yet",
            r"model.safetensors: there are no weights, .*; go on by foveal fit --out \S+run --resume, or in Python ",
        ),
        ("half the weights", r"model.safetensors: is damaged or half written; "),
        ("unknown model", r"config.json: tnet9: there is no model of this name; did you mean tnet"),
        (
            "other shapes",
            r"the weights do not fit the model, classifier.weight is \(3, 256\) where the model has \(5, 256\)",
        ),
        ("missing tensor", r"the weights do not fit the model, classifier.bias is missing"),
        ("further tensor", r"the weights do not fit the model, extra.bias is not part of this model"),
    ],
)
def test_a_spoilt_folder_gets_one_sentence(folder, how, sentence):
    spoil(folder, how)
    with pytest.raises(RunError, match=rf"^[^\n]*{sentence}[^\n]*$"):
        runs.load(folder)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (
            "model: [",
            r"config.yaml: is damaged \(line 1 is not valid YAML\); .* foveal fit RECIPE --out \S+run --overwrite",
        ),
        (
            "- 1",
            r"config.yaml: is not a mapping of options .* train it again by foveal fit RECIPE --out \S+run --overwrite",
        ),
        (
            None,
            r"config.yaml: cannot be read \(No such file or directory\); put it back, or train again with another "
            r"`out`",
        ),
    ],
)
def test_a_config_that_is_none(folder, content, sentence):
    if content is not None:
        (folder / "config.yaml").write_text(content)
    with pytest.raises(RunError, match=rf"^[^\n]*{sentence}$"):
        _ = runs.Run(folder).config


def test_what_is_no_folder(tmp_path):
    with pytest.raises(RunError, match="there is no such run folder"):
        runs.load(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="is a file, not a run folder"):
        runs.Run(tmp_path / "file")


def claimed(out, **how):
    with runs.claim(out, **how):
        pass


def test_claiming(tmp_path):
    with runs.claim(tmp_path / "a" / "b") as out:
        assert out.is_dir()
    assert not (tmp_path / "a").exists()  # nothing was written
    out.mkdir(parents=True)
    claimed(out)  # empty, so it can be used
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="is not a run; choose another `out`"):
        claimed(tmp_path / "file", overwrite=True)
    with pytest.raises(RunError, match=r"cannot be written \(Not a directory\); choose another `out`"):
        claimed(tmp_path / "file" / "run")
    with pytest.raises(
        RunError, match=r"there is no last.ckpt to go on from; check the path, or train without `resume`$"
    ):
        claimed(tmp_path / "a", resume=True)
    (out / "notes.txt").touch()
    with pytest.raises(RunError, match="is not a run; choose another `out`"):
        claimed(out, overwrite=True)


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        (
            ["last.ckpt"],
            "a run is there already; go on with it by `resume`, replace it by `overwrite`, or choose another `out`",
        ),
        (
            ["model.safetensors"],
            "a run without last.ckpt is there already; replace it by `overwrite`, or choose another `out`",
        ),
        (["best.ckpt"], "a run without last.ckpt is there already; replace it by `overwrite`, or choose another `out`"),
        (
            [],
            "a run started there and ended before it saved anything; replace it by `overwrite`, or choose another "
            "`out`",
        ),
    ],
)
def test_a_folder_in_use_says_what_works(tmp_path, files, sentence):
    for name in ("config.yaml", *files):
        (tmp_path / name).touch()
    with pytest.raises(RunError) as told:
        claimed(tmp_path)
    assert str(told.value) == f"{tmp_path}: {sentence}"
    claimed(tmp_path, overwrite=True)
    if "last.ckpt" not in files:
        with pytest.raises(RunError, match=r"start again with `overwrite`$"):
            claimed(tmp_path, resume=True)


def test_what_killed_processes_left_is_removed_under_the_lock(tmp_path):
    left = [".config.yaml.12.unfinished", ".last.ckpt.unfinished", ".metrics.csv.345", ".lock"]
    others = [".evaluation.json.12.unfinished", ".hidden"]  # perhaps of another process; and of the user
    for name in left:
        (tmp_path / name).touch()
    with runs.claim(tmp_path):
        assert [file.name for file in tmp_path.iterdir()] == [".lock"]
        with pytest.raises(
            StorageError, match=r"another process trains this run; wait until it has ended, or choose another `out`$"
        ):
            claimed(tmp_path, resume=False)
    (tmp_path / "config.yaml").touch()
    for name in (*left, *others):
        (tmp_path / name).touch()
    claimed(tmp_path, overwrite=True)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(["config.yaml", *others])


def test_files_are_opened_as_the_training_images_were(tmp_path):
    """A model trained on images resized to a square resizes its images."""
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 255, (40, 100, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    model = models.create_classifier("test_resnet", num_classes=2, image_size=32, squash=True, antialias=False)
    runs.save_model(
        tmp_path / "run",
        model,
        runs.ModelInfo({"name": "test_resnet", "image_size": 32, "squash": True, "antialias": False}, image_size=48),
    )
    got = classify(runs.load(tmp_path / "run"), tmp_path / "wide.png")
    whole = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
    square = torch.nn.functional.interpolate(whole, (48, 48), mode="bilinear")
    torch.testing.assert_close(got.logits, classify(model, square)[0].logits, rtol=1e-4, atol=1e-5)
    assert got.glimpses[0].box == (0, 0, 48, 48)


def test_an_overwritten_run_stays_until_the_new_one_is_sound(tmp_path):
    from foveal.recipes.fit_config import FitConfig, fit_config

    tiny = {"name": "digits", "canvas": 96, "digit": (12, 16), "distractors": 1, "train": 8, "val": 4, "test": 0}
    config = FitConfig(model={"name": "test_resnet", "image_size": 32}, data=tiny, steps=1, batch_size=4, device="cpu")
    out = tmp_path / "run"
    fit_config(config, out, quiet=True)
    (out / "evaluation.json").write_text("{}")
    before = (out / "model.safetensors").read_bytes()
    for wrong in (
        {"batch_size": 0},
        {"precision": "foo"},
        {"seed": -1},
        {"device": "cuda:99"},
        {"model": {"name": "test_resnet", "grid": 2}},
    ):
        with pytest.raises(ConfigError):
            fit_config(dataclasses.replace(config, **wrong), out, overwrite=True, quiet=True)
        assert (out / "model.safetensors").read_bytes() == before
    fit_config(config, out, overwrite=True, quiet=True)
    assert not (out / "evaluation.json").exists()


def test_overwriting_removes_every_file_of_results():
    from foveal import evaluation

    kinds = [k for k in vars(evaluation).values() if inspect.isclass(k) and issubclass(k, evaluation.Result)]
    names = {name for kind in kinds for name in (getattr(kind, "file", None), getattr(kind, "picture", None)) if name}
    of_runs = names - {"comparison.json", "comparison.png"}  # written to another folder
    assert len(of_runs) >= 8 and of_runs <= set(runs.RESULT_FILES)

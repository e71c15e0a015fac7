"""Exported models give the answers of the models that they were made from."""

import json
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch

import foveal
from foveal import runtime
from foveal.cli import main
from foveal.errors import ConfigError, RunError, StorageError
from foveal.export import export
from foveal.files import locked
from foveal.images import ImageViews
from foveal.runs import ModelInfo, save_model
from foveal.runtime.card import CARD, read_card, sha256

SMALL = {
    "tnet": {"backbone": "test_efficientnet", "base_size": 32},
    "saccader": {"backbone": "bagnet77_lowd", "image_size": 96},
}
"""Options that make models of a name small; presets of the published ones keep theirs."""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder with a TNet on a tiny backbone."""
    torch.manual_seed(0)
    spec = {"name": "tnet", "backbone": "test_efficientnet", "base_size": 32, "locations": (2, 1)}
    options = {key: value for key, value in spec.items() if key != "name"}
    model = foveal.create_classifier("tnet", num_classes=3, **options).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.02 * torch.randn_like(p))
    folder = tmp_path_factory.mktemp("run")
    save_model(folder, model, ModelInfo(spec, ("ant", "bee", "cat")))
    (folder / "summary.json").write_text(json.dumps({"accuracy": 0.75, "images": 20, "ended": "finished"}))
    return folder


@pytest.fixture(scope="module")
def onnx(run):
    return export(run, format="onnx", licence="CC0-1.0")


@pytest.fixture(scope="module")
def torch_format(run):
    return export(run, format="torch")


@pytest.fixture(scope="module")
def images():
    random = np.random.default_rng(0)
    return [random.integers(0, 256, size, dtype=np.uint8) for size in ((150, 100, 3), (64, 64, 3), (90, 260))]


def assert_same(found, expected, tolerance=1e-4):
    looks, glimpses = found.looks, expected.glimpses
    np.testing.assert_allclose(found.logits, expected.logits.numpy(), rtol=0, atol=tolerance)
    np.testing.assert_array_equal(looks.box, glimpses.box)
    for name in ("image", "size", "level", "parent"):
        np.testing.assert_array_equal(getattr(looks, name), getattr(glimpses, name))
    np.testing.assert_allclose(looks.probability, glimpses.probability.numpy(), atol=tolerance)
    if glimpses.contribution is not None:
        np.testing.assert_allclose(looks.contribution, glimpses.contribution.numpy(), atol=tolerance)
    np.testing.assert_allclose(found.probabilities, expected.probabilities.numpy(), atol=tolerance)
    assert found.labels == expected.label


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_engines_give_the_answer_of_torch(run, onnx, images, engine):
    model = runtime.load(onnx, engine=engine, threads=1)
    for locations in (None, (1,), ()):
        assert_same(model.classify(images, locations=locations), foveal.classify(run, images, locations=locations))


@pytest.mark.parametrize("policy", ["random", "sampled", "centre"])
def test_policies_draw_the_same_looks(run, onnx, images, policy):
    predictor = foveal.Predictor(run)
    from foveal.draws import Draws
    from foveal.images import ImageViews

    views = ImageViews([predictor.open(image) for image in images])
    expected = predictor(views, policy=policy, draws=Draws(3, 0, np.arange(len(images))))
    assert_same(runtime.load(onnx).classify(images, policy=policy, seed=3), expected)


def test_the_card(onnx, run):
    card = json.loads((onnx / CARD).read_text())
    assert onnx == run / "exported" / "onnx-fp32"
    assert (card["class_names"], card["licence"], card["locations"]) == (["ant", "bee", "cat"], "CC0-1.0", [2, 1])
    assert card["parity"]["logits"] < 1e-5 and card["parity"]["looks"]
    assert card["metrics"] == {"training": {"accuracy": 0.75, "images": 20}}
    assert str(run) not in (onnx / CARD).read_text()


def test_it_is_loaded_like_a_run(onnx, run, images):
    model = foveal.load(onnx)
    expected = foveal.classify(run, images)
    found = foveal.classify(model, images)
    torch.testing.assert_close(found.logits, expected.logits, rtol=0, atol=1e-4)
    torch.testing.assert_close(found.glimpses.contribution, expected.glimpses.contribution, rtol=0, atol=1e-4)
    mine, its = (foveal.predict(one, images, batch_size=2).rows for one in (onnx, run))
    for one, other in zip(mine, its, strict=True):
        assert (one["label"], one["locations"]) == (other["label"], other["locations"])
        assert one["macs"] == pytest.approx(other["macs"], rel=0.01)  # the parts also score cells of the last looks
    with pytest.raises(ConfigError, match="cannot be trained"):
        model.rollouts(torch.rand(1, 3, 64, 64), ("greedy",), None)


def test_torch_is_not_imported(onnx):
    code = (
        "import sys, numpy; from foveal import runtime;"
        f"seen = runtime.load({str(onnx)!r}).classify(numpy.zeros((50, 60, 3), numpy.uint8));"
        "assert len(seen.looks.box) == 5; assert not {'torch', 'timm', 'openvino', 'yaml'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_the_format_of_torch(run, torch_format, images):
    assert_same(runtime.load(torch_format).classify(images), foveal.classify(run, images))
    with pytest.raises(ConfigError, match="does not run"):
        runtime.load(torch_format, engine="onnx")


@pytest.mark.parametrize("name", ["scan", "test_resnet"])
def test_the_format_of_torch_in_half_precision(tmp_path, images, name):
    """Parts of a scan share their network, and the result is compared with the model in float32."""
    torch.manual_seed(0)
    options = {"scan": {"look_size": 16, "scale": 2, "scout_width": 8, "locations": (3,)}}
    model = foveal.create_classifier(name, num_classes=3, **options.get(name, {"image_size": 32})).eval()
    expected = foveal.classify(model, images)
    folder = export(model, format="torch", precision="fp16", out=tmp_path / "exported")
    found = runtime.load(folder).classify(images)
    np.testing.assert_allclose(found.logits, expected.logits.numpy(), rtol=0, atol=0.01)
    assert 0 < json.loads((folder / CARD).read_text())["parity"]["logits"] < 0.01
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("weights_config.json", b'"use_pickle": false', b'"use_pickle": true'),
        ("model.json", b"torch.ops.aten.conv2d.default", b"torch.hub.load"),
    ],
)
def test_archives_with_code_are_refused(torch_format, tmp_path, file, old, new):
    folder = changed(torch_format, tmp_path / "other")
    with zipfile.ZipFile(folder / "look1.pt2") as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    name = next(name for name in content if name.endswith(file))
    assert old in content[name]
    content[name] = content[name].replace(old, new, 1)
    with zipfile.ZipFile(folder / "look1.pt2", "w") as archive:
        for each, data in content.items():
            archive.writestr(each, data)
    card = json.loads((folder / CARD).read_text())
    card["parts"]["look1"]["files"] = {"look1.pt2": sha256(folder / "look1.pt2")}
    (folder / CARD).write_text(json.dumps(card))
    with pytest.raises(RunError, match="pickled objects, or calls"):
        runtime.load(folder)


@pytest.mark.parametrize(
    "names",
    [
        ["look1/data/aotinductor/model/model.so"],  # torch would load the library
        ["version", "serialized_exported_program.json", "serialized_state_dict.pt"],  # of an earlier format: pickles
        ["look1/data/constants/custom_obj_0"],
        ["other/models/model.json"],
        ["look1/models/model.json"],  # twice: readers may take the first or the last
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_archives_with_other_files_are_refused(torch_format, tmp_path, names):
    folder = changed(torch_format, tmp_path / "other")
    with zipfile.ZipFile(folder / "look1.pt2", "a") as archive:
        for name in names:
            archive.writestr(name, b"{}")
    card = json.loads((folder / CARD).read_text())
    card["parts"]["look1"]["files"] = {"look1.pt2": sha256(folder / "look1.pt2")}
    (folder / CARD).write_text(json.dumps(card))
    with pytest.raises(RunError, match="which may be code"):
        runtime.load(folder)


def changed(folder, to, **values):
    shutil.copytree(folder, to)
    card = json.loads((to / CARD).read_text())
    (to / CARD).write_text(json.dumps({**card, **values}))
    return to


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"version": 2}, "has version 2, and this foveal reads version 1"),
        ({"loop": "other"}, "loop"),
        ({"mean": [0.5]}, "have not one value"),
        ({"class_names": ["ant"]}, "are 1 for 3 classes"),
        ({"size": [10**6, 10**6]}, "would need more than"),
        ({"options": {}}, "options.grid: is missing"),
        ({"class_names": ["ant", "ant", "bee"]}, "'ant' occurs twice"),
        ({"class_names": ["ant", "a\nb", "bee"]}, "line break"),
        ({"std": [0, 1, 1]}, "std is not positive"),
        ({"mean": [1e300, 0, 0]}, "are too large"),
        ({"thresholds": [[0, 5.0]]}, "are not from 0 to 1"),
        ({"value_range": [1, 0]}, "1 is not below 0"),
        ({"crop": 0}, "is not a share up to 1"),
        ({"image_size": 100_000}, "image_size: a look would need"),
        ({"parts": {"look1": {"files": {"../x.onnx": ""}, "inputs": {}, "outputs": {}, "macs": 0}}}, "not the name"),
    ],
)
def test_damaged_cards(onnx, tmp_path, values, problem):
    with pytest.raises(RunError, match=problem):
        runtime.load(changed(onnx, tmp_path / "other", **values))


@pytest.mark.parametrize(
    ("option", "value"),
    [("grid", 10**9), ("region", -1), ("padded", "x"), ("map_side", 0), ("networks", True), ("likelihood", "other")],
)
def test_damaged_options(onnx, tmp_path, option, value):
    options = json.loads((onnx / CARD).read_text())["options"]
    with pytest.raises(RunError, match=f"options.*{option}"):
        runtime.load(changed(onnx, tmp_path / "other", options=options | {option: value}))


@pytest.mark.parametrize("values", [{"size": [48, 48]}, {"options": {"map_side": 3}}])
def test_values_that_do_not_fit_the_network_are_one_sentence(onnx, tmp_path, values):
    card = json.loads((onnx / CARD).read_text())
    values = {key: {**card[key], **value} if isinstance(value, dict) else value for key, value in values.items()}
    model = runtime.load(changed(onnx, tmp_path / "other", **values))
    with pytest.raises(RunError, match=r"onnx cannot run the part look1 .*; export the model again"):
        model.classify(np.zeros((40, 50, 3), np.uint8))


def test_damaged_files(onnx, tmp_path):
    other = changed(onnx, tmp_path / "other")
    with (other / "look1.onnx").open("r+b") as file:
        file.seek(1000)
        file.write(b"xxxx")
    with pytest.raises(RunError, match=r"look1\.onnx: is damaged"):
        foveal.load(other)
    (other / "look1.onnx").unlink()
    with pytest.raises(RunError, match=r"look1\.onnx: is missing"):
        foveal.load(other)
    (other / CARD).write_text("{")
    with pytest.raises(RunError, match="is damaged"):
        foveal.load(other)


def test_what_is_there_is_not_replaced(onnx, run, tmp_path):
    with pytest.raises(ConfigError, match="is there already"):
        export(run)
    (tmp_path / "notes").mkdir()
    with pytest.raises(ConfigError, match="is no exported model"):
        export(run, out=tmp_path / "notes", overwrite=True)


def test_a_killed_export_leaves_nothing_to_the_next_one(tmp_path):
    model = foveal.create_classifier("test_resnet", num_classes=2, image_size=32)
    folder = tmp_path / "exported"
    (tmp_path / ".exported.unfinished").mkdir()
    (tmp_path / ".exported.unfinished" / "network.pt2").touch()
    with locked(tmp_path / ".exported.lock", "taken"), pytest.raises(StorageError, match="another export writes there"):
        export(model, format="torch", out=folder)
    export(model, format="torch", out=folder)
    assert {file.name for file in tmp_path.iterdir()} == {"exported"}
    export(model, format="torch", out=folder, overwrite=True)
    assert {file.name for file in folder.iterdir()} == {CARD, "network.pt2"}


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"format": "tflite"}, "`format` tflite"),
        ({"precision": "int4"}, "`precision` int4"),
        ({"format": "torch", "precision": "int8"}, "not written as torch"),
        ({"precision": "int8"}, "`calibration`: is missing"),
    ],
)
def test_wrong_options(run, tmp_path, options, problem):
    with pytest.raises(ConfigError, match=problem):
        export(run, out=tmp_path / "exported", **options)
    assert not list(tmp_path.iterdir())


def test_images_that_cannot_be_read_are_left_out_of_the_calibration(run, tmp_path, images, caplog):
    from PIL import Image

    from foveal.export.exporting import _calibration, make_card

    for name in ("good.png", "broken.png"):
        Image.fromarray(images[0]).save(tmp_path / name)
    (tmp_path / "broken.png").write_bytes((tmp_path / "good.png").read_bytes()[:3000])
    (tmp_path / "empty.png").touch()
    predictor = foveal.Predictor(run, device="cpu")
    parts, card = predictor.model.parts(), make_card(predictor.model, "onnx", "int8")
    seen = _calibration(predictor, card, parts.parts, str(tmp_path), 5)
    alone = _calibration(predictor, card, parts.parts, str(tmp_path / "good.png"), 5)
    assert len(seen["look1"]) == len(alone["look1"]) > 0
    assert [name in caplog.text for name in ("broken.png", "empty.png", "good.png")] == [True, True, False]
    (tmp_path / "good.png").unlink()
    with pytest.raises(ConfigError, match=r"`calibration`: can be read in none of its images"):
        export(run, precision="int8", out=tmp_path / "exported", calibration=str(tmp_path))


def test_changed_labels_of_calibration_images_are_told(run, torch_format, images, caplog):
    from foveal.export.exporting import _same_labels

    model, card = foveal.load(run), read_card(torch_format)
    views = [ImageViews([foveal.Predictor(run).open(image)]) for image in (*images, *images)]
    assert _same_labels(model, card, torch_format, views, 4) == {"images": 4, "same_label": 4} and not caplog.text
    rarest = foveal.classify(run, images).logits.argmax(1).bincount(minlength=3).argmin()
    with torch.no_grad():
        model.classifier.bias[rarest] += 99
    assert _same_labels(model, card, torch_format, views, 3) == {"images": 3, "same_label": 0}
    assert "changes the label of 3 of 3 calibration images" in caplog.text


def test_locations_and_images_that_do_not_fit(onnx):
    model = runtime.load(onnx)
    image = np.zeros((40, 40, 3), np.uint8)
    with pytest.raises(ConfigError, match="locations 10"):
        model.classify(image, locations=10)
    with pytest.raises(ConfigError, match="policy greed"):
        model.classify(image, policy="greed")
    with pytest.raises(foveal.FovealError, match="no such file"):
        model.classify("missing.png")
    with pytest.raises(foveal.FovealError, match=r"shape \(40, 40, 2\)"):
        model.classify(image[..., :2])


@pytest.mark.slow
def test_every_registered_model_is_exported_or_says_why():
    whys = set()
    for name in foveal.MODELS.names():
        kind = foveal.MODELS.get(name)
        model = foveal.create_classifier(name, num_classes=2, **SMALL.get(name.partition(".")[0], {}))
        try:
            parts = model.parts()
            assert parts.parts and set(json.loads(json.dumps(parts.options))) == set(parts.options), kind
        except ConfigError as error:
            assert str(error).count(".") <= 2 and "cannot be exported, because" in str(error)
            whys.add(name.partition(".")[0])
    assert whys == {"ram", "dram", "ips", "mil", "tile_scan"}


def test_models_that_cannot_be_exported_say_why(onnx, tmp_path):
    for name in ("ram", "mil"):
        with pytest.raises(ConfigError, match=r"cannot be exported, because foveal\.runtime has no loop"):
            export(foveal.create_classifier(name, num_classes=2), out=tmp_path / "exported")
    with pytest.raises(ConfigError, match="is exported already"):
        foveal.load(onnx).parts()


def test_the_command(run, onnx, tmp_path, capsys):
    from PIL import Image

    Image.fromarray(np.random.default_rng(1).integers(0, 256, (70, 90, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    told = []
    for model, engine in ((run, []), (run, ["--engine", "onnx"]), (onnx, []), (onnx, ["--engine", "openvino"])):
        assert main(["predict", str(model), str(tmp_path / "a.png"), *engine, "--quiet"]) == 0
        told.append(capsys.readouterr().out)
    assert len(set(told)) == 1 and "\t" in told[0]
    assert main(["predict", str(onnx), str(tmp_path / "broken.png")]) == 1
    assert main(["explain", str(onnx), str(tmp_path / "a.png"), "--out", str(tmp_path / "page.html"), "--quiet"]) == 0
    assert (tmp_path / "page.html").stat().st_size > 10_000
    capsys.readouterr()
    for words, problem in (
        (["predict", str(onnx), "a.png", "--engine", "torch"], "does not run"),
        (["evaluate", str(onnx)], "is an exported model, not a run folder"),
        (["predict", str(onnx), str(tmp_path / "a.png"), "--budget", "2locations"], "is an exported model"),
        (["predict", str(onnx), str(tmp_path / "a.png"), "--precision", "bf16"], "has that of its export"),
        (["export", str(run)], "is there already"),
        (["export", str(onnx)], "is an exported model"),
        (["export", str(tmp_path)], "config.json"),
    ):
        assert main(words) in (1, 2), words
        assert problem in capsys.readouterr().err, words


@pytest.mark.slow
def test_int8_and_fp16(run, onnx, images, tmp_path, capfd):
    expected = foveal.classify(run, images)
    sizes = {"fp32": (onnx / "look1.onnx").stat().st_size}
    for precision in ("int8", "fp16"):
        folder = export(run, precision=precision, out=tmp_path / precision, calibration=images)
        found = runtime.load(folder, threads=1).classify(images)
        np.testing.assert_allclose(found.probabilities, expected.probabilities.numpy(), atol=0.05)
        sizes[precision] = (folder / "look1.onnx").stat().st_size
    assert max(sizes["int8"], sizes["fp16"]) < 0.8 * sizes["fp32"]
    assert capfd.readouterr() == ("", "")
    parity = json.loads((tmp_path / "int8" / CARD).read_text())["parity"]
    assert (parity["images"], parity["same_label"]) == (len(images), len(images))
    assert b"QuantizeLinear" in (tmp_path / "int8" / "look1.onnx").read_bytes()

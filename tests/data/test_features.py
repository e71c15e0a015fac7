"""Training on features, and what the trained model does with images."""

import csv
import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

import foveal
from foveal.card import write_model_card
from foveal.cli import main
from foveal.data import get_data
from foveal.embedding import embed
from foveal.errors import ConfigError, DataError
from foveal.features import FeatureViews, read, read_header, writing
from foveal.glimpse.tiles import TileClassifier
from foveal.runs import Run
from tests.features.test_files import COORDS, clam, trident, values
from tests.tiny import failure

COLOURS = ((200, 60, 40), (40, 60, 200))
FLAGS = ["--batch-size", "4", "--device", "cpu", "--quiet", "--workers", "0"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Noise with a square of one of two colours in one of 12 tiles of 32 px, and a table of labels."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    rows = [("path", "label", "split")]
    for i in range(24):
        pixels = rng.integers(90, 166, size=(96, 128, 3), dtype=np.uint8)
        y, x = 32 * rng.integers((3, 4))
        pixels[y : y + 32, x : x + 32] = COLOURS[i % 2] + pixels[y : y + 32, x : x + 32] // 4
        Image.fromarray(pixels).save(folder / f"{i}.png")
        rows.append((f"{i}.png", ("red", "blue")[i % 2], ("train", "val", "test")[(i // 2) % 3 if i < 12 else 0]))
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder


@pytest.fixture(scope="module")
def made(photos, tmp_path_factory):
    """Folders of features at two levels, by one network."""
    folder = tmp_path_factory.mktemp("features")
    torch.manual_seed(0)
    model = foveal.create_classifier("mil", num_classes=2, tile_size=32)
    embed(model, photos, folder / "fine", device="cpu", licence="mit")
    embed(model, photos, folder / "coarse", tile_size=16, scale=2, format="zarr", device="cpu")
    return folder


def data(photos, made, **options):
    return get_data("features", root=str(made / "fine"), labels=str(photos / "labels.csv"), **options)


@pytest.fixture(scope="module")
def runs(photos, made, tmp_path_factory):
    """Runs of both models, trained by the command."""
    folder = tmp_path_factory.mktemp("runs")
    source = ["--data.root", str(made / "fine"), "--data.labels", str(photos / "labels.csv")]
    source += ["--optimiser.lr", "0.01", "--val-every", "40", *FLAGS]
    assert main(["fit", "features", "--epochs", "8", *source, "--out", str(folder / "mil")]) == 0
    scan = ["--model", "tile_scan", "--data.coarse", str(made / "coarse"), "--model.locations", "2"]
    scan += ["--model.candidates", "4", "--model.reservoir", "4"]
    assert main(["fit", "features", "--epochs", "12", *source, *scan, "--out", str(folder / "scan")]) == 0
    return folder


def test_batches(photos, made):
    found = data(photos, made, coarse=str(made / "coarse"))
    assert found.classes == ("blue", "red") and [len(s) for s in (found.train, found.val, found.test)] == [16, 4, 4]
    (batch,) = found.loader("test", batch_size=8)
    views = batch.views
    assert (
        isinstance(views, FeatureViews)
        and views.counts.tolist() == [12] * 4
        and views.sizes.tolist() == [[96, 128]] * 4
    )
    own, beside = read(made / "fine/4.h5"), read(made / "coarse/4.zarr")
    first, tiles = np.zeros(2, np.int64), np.array([3, 7])
    np.testing.assert_array_equal(views.features(first, tiles), own.features[[3, 7]].astype(np.float32))
    np.testing.assert_array_equal(views.features(first, tiles, coarse=True), beside.features[[3, 7]])
    assert views.boxes(np.array([0]), np.array([5])).tolist() == [[32, 32, 64, 64]]


@pytest.mark.parametrize("name", ["mil", "scan"])
def test_trained_on_features_and_used_on_images(photos, made, runs, name):
    """Logits of features and of images agree, but for half precision; and the colour of one tile is learned."""
    model = foveal.load(runs / name)
    batches = data(photos, made, coarse=str(made / "coarse")).loader("test", batch_size=8)
    (batch,) = batches
    with torch.inference_mode():
        of_features = model(batch.views)
    paths = [photos / f"{i}.png" for i in (4, 5, 10, 11)]
    of_images = foveal.classify(model, paths, device="cpu")
    torch.testing.assert_close(of_features.logits, of_images.logits, rtol=5e-3, atol=2e-2)
    assert [g.box for g in of_features.glimpses] == [g.box for g in of_images.glimpses]
    assert of_images.logits.argmax(1).tolist() == batch.target.tolist()


def test_only_chosen_tiles_are_encoded_at_the_finer_level(photos, runs, monkeypatch):
    model, seen = foveal.load(runs / "scan"), []
    encode = TileClassifier._encode
    monkeypatch.setattr(
        TileClassifier, "_encode", lambda self, x: seen.extend([x.shape[-1]] * len(x)) or encode(self, x)
    )
    foveal.classify(model, photos / "4.png", locations=3)
    assert sorted(seen) == [16] * 12 + [32] * 3
    seen.clear()
    foveal.classify(foveal.load(runs / "mil"), photos / "4.png")
    assert seen == [32] * 12


def test_the_scout_finds_the_tile(photos, made, runs):
    """Looks of the trained scout show the square more often than random ones."""
    model = foveal.load(runs / "scan")
    found = {"greedy": 0, "random": 0}
    for i in range(24):
        pixels = np.asarray(Image.open(photos / f"{i}.png"), dtype=float)
        red_to_blue = np.abs(pixels[..., 0] - pixels[..., 2]).reshape(3, 32, 4, 32).mean((1, 3))
        y, x = (32 * k for k in np.unravel_index(red_to_blue.argmax(), (3, 4)))
        for policy in found:
            looks = foveal.classify(model, photos / f"{i}.png", locations=1, policy=policy).glimpses
            found[policy] += looks[1].box == (y, x, y + 32, x + 32)
    assert found["greedy"] >= 18 > 8 >= found["random"]


def test_the_card_names_the_licence_of_the_encoder(made, runs, tmp_path):
    shutil.copytree(runs / "mil", tmp_path / "mil")
    file, lacking = write_model_card(Run(tmp_path / "mil"))
    name = read_header(made / "fine/4.h5").encoder
    written = name.replace("_", r"\_")
    assert f"- encoder: {written}, frozen; licence of its weights: mit\n" in file.read_text()
    assert lacking[0].endswith(f"give `licence`, the encoder {name} has mit")


def test_evaluate_and_resume(photos, made, runs, tmp_path, capsys):
    assert main(["evaluate", str(runs / "mil"), "--measure", "none", "--device", "cpu", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "evaluation.json").is_file()
    assert main(["fit", "--resume", "--out", str(runs / "mil"), "--epochs", "9", *FLAGS]) == 0


def test_features_of_trident_and_clam(tmp_path, capsys):
    """They are trained on; a model of them has no network, and says so."""
    for write, name in ((trident, "trident"), (clam, "clam")):
        root = tmp_path / name
        for i in range(8):
            (root / str(i % 2)).mkdir(parents=True, exist_ok=True)
            write(root / str(i % 2) / f"{i}.h5", values(seed=i) + i % 2)
        run = tmp_path / f"run_{name}"
        source = ["--data.root", str(root), "--data.val_fraction", "0.25", "--steps", "3", *FLAGS]
        assert main(["fit", "features", *source, "--out", str(run)]) == 0
        model = foveal.load(run)
        assert model.features == 6 and model.class_names == ("0", "1")
        capsys.readouterr()
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    assert main(["predict", str(run), str(tmp_path / "a.png"), "--device", "cpu"]) == 1
    assert "was trained on features of tiles, and has no network" in capsys.readouterr().err
    assert main(["predict", str(run), str(root / "0" / "0.h5"), "--device", "cpu"]) == 1
    assert "no image in it; features of tiles are classified by foveal evaluate" in capsys.readouterr().err
    assert main(["evaluate", str(run), "--split", "val", "--device", "cpu", "--measure", "none"]) == 0


def test_what_does_not_fit(photos, made, tmp_path, capsys):
    root, labels = str(made / "fine"), str(photos / "labels.csv")
    for flags, words in (
        (["--model", "tnet"], "model tnet: reads pixels, and"),
        (["--model", "ips"], "model ips: reads pixels, and"),
        (["--model.features", "128"], "--model.features 128: the network of the features is known; leave it out"),
        (["--model", "tile_scan"], "set --data.coarse to their folder"),
        (["--mixup", "0.2"], "mixup: features of tiles cannot be mixed"),
        (["--model.tile_size", "48"], "--model.tile_size 48: the features were made with 32; leave it out"),
        (["--data.coarse", root, "--model", "tile_scan", "--model.coarse", "2"], "--model.coarse 2: the features"),
    ):
        flags = ["--data.root", root, "--data.labels", labels, "--out", str(tmp_path / "run"), *FLAGS, *flags]
        code, said = failure(capsys, "fit", "features", *flags)
        assert code == 2 and words in said, said
    assert not (tmp_path / "run").exists()


def written(path, width=6, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path, width, **options) as file:
        file.append(values(4, width), COORDS)


def test_errors(tmp_path, photos, made):
    def refused(words, **options):
        with pytest.raises((DataError, ConfigError)) as error:
            get_data("features", **{"root": str(tmp_path / "f"), **options})
        assert words in str(error.value) and "\n" not in str(error.value), error.value

    refused("there is no such file or folder")
    (tmp_path / "f").mkdir()
    refused("has no files of features; make them by foveal embed")
    for name in "abcd":
        written(tmp_path / "f" / f"{name}.h5")
    refused("a.h5: is in no folder of a class; move it into one, or set `data.labels` to a table")
    table = tmp_path / "labels.csv"
    table.write_text("path,label\na,x\nslides/b.svs,y\nc.tif,x\nd,\n")
    refused("row 5 has no label", labels=str(table))
    table.write_text("path,label\na,x\nslides/b.svs,y\nc.tif,x\nz,y\n")
    refused("1 of 4 images are missing, first", labels=str(table))
    table.write_text("path,label\na,x\nslides/b.svs,y\nc.tif,x\n")
    found = get_data("features", root=str(tmp_path / "f"), labels=str(table), val_fraction=0)
    assert [path.rpartition("/")[2] for path in found.train.paths] == ["a.h5", "b.h5", "c.h5"]
    assert any("left out 1 files of features without label" in note for note in found.notes)
    written(tmp_path / "f" / "b.h5", 7)
    refused("has 7 features of a tile, and", labels=str(table))
    written(tmp_path / "f" / "b.h5", settings={"digest": "other"})
    refused("was made with other settings than", labels=str(table))
    (tmp_path / "f" / "b.h5").write_bytes(b"")
    refused("b.h5: is not an HDF5 file that can be read", labels=str(table))
    fine = {"root": str(made / "fine"), "labels": str(photos / "labels.csv")}
    for i in range(24):
        written(tmp_path / "f" / f"{i}.h5")
    refused("has features of 6 numbers, and", **fine, coarse=str(tmp_path / "f"))


def test_a_file_that_is_damaged_later_costs_that_image(photos, made, tmp_path):
    for i in range(4):
        written(tmp_path / "f" / str(i % 2) / f"{i}.h5")
    found = get_data("features", root=str(tmp_path / "f"), val_fraction=0)
    (tmp_path / "f/0/2.h5").write_bytes(b"damaged")
    (batch,) = found.loader("train", batch_size=4, shuffle=False)
    assert len(batch) == 3 and [path for path, _ in batch.errors] == [str(tmp_path / "f/0/2.h5")]


def test_other_weights_are_noticed(photos, made, tmp_path):
    """Features of one network with the weights of another."""
    shutil.copytree(made / "fine", tmp_path / "f")
    torch.manual_seed(1)
    other = foveal.create_classifier("mil", num_classes=2, tile_size=32)
    embed(other, photos / "0.png", tmp_path / "g", device="cpu")
    shutil.copy(tmp_path / "g" / "encoder.safetensors", tmp_path / "f")
    argv = ["fit", "features", "--data.root", str(tmp_path / "f"), "--data.labels", str(photos / "labels.csv"), *FLAGS]
    assert main([*argv, "--out", str(tmp_path / "run")]) == 1


def test_coarse_features_of_other_tiles(photos, made, tmp_path):
    torch.manual_seed(0)
    model = foveal.create_classifier("mil", num_classes=2, tile_size=32)
    embed(model, photos, tmp_path / "c", tile_size=16, device="cpu")
    with pytest.raises(DataError, match="are not those of"):
        data(photos, made, coarse=str(tmp_path / "c"))


def folder_of(tmp_path, names, table="", **options):
    """Features in a folder, and a table of labels; the data set of both."""
    for name in names:
        written(tmp_path / "f" / f"{name}.h5")
    (tmp_path / "labels.csv").write_text(f"path,label\n{table}")
    return get_data(
        "features", root=str(tmp_path / "f"), labels=str(tmp_path / "labels.csv"), val_fraction=0, **options
    )


def test_names_of_images(tmp_path):
    """Slides have dots in their names, and tables name them with suffix and without."""
    names = ["TCGA-A1", "TCGA-A1.F6E9", "b", "c"]
    found = folder_of(tmp_path, names, "slides/TCGA-A1.F6E9,x\nTCGA-A1.svs,y\nb.ome.tif,x\nc.tif,y\n")
    assert [Path(path).stem for path in found.train.paths] == ["TCGA-A1.F6E9", "TCGA-A1", "b", "c"]
    with pytest.raises(
        DataError, match=r"labels\.csv: here/b\.tif and there/b\.tif both have the features of .*b\.h5; "
    ):
        folder_of(tmp_path, names, "here/b.tif,x\nthere/b.tif,y\n")


def test_images_without_tiles_are_left_out(tmp_path):
    """TRIDENT writes files without tiles for slides in which it finds no tissue."""
    (tmp_path / "f").mkdir()
    for name in "ab":
        trident(tmp_path / "f" / f"{name}.h5", values(0), COORDS[:0])
    (tmp_path / "labels.csv").write_text("path,label\na,x\nb,y\n")
    with pytest.raises(DataError, match="has no features, as all files, because the images had no tiles"):
        get_data("features", root=str(tmp_path / "f"), labels=str(tmp_path / "labels.csv"))
    for name in "cde":
        trident(tmp_path / "f" / f"{name}.h5", values())
    (tmp_path / "labels.csv").write_text("path,label,group\na,x,1\nc,x,2\nd,y,3\nb,y,4\ne,y,5\n")
    found = get_data("features", root=str(tmp_path / "f"), labels=str(tmp_path / "labels.csv"), val_fraction=0.3)
    splits = [
        (Path(path).stem, int(target))
        for split in (found.train, found.val)
        for path, target in zip(split.paths, split.targets, strict=True)
    ]
    assert sorted(splits) == [("c", 0), ("d", 1), ("e", 1)]
    assert any(f"left out 2 files of images without tiles: {tmp_path}/f/a.h5" in note for note in found.notes)


def test_two_networks_in_a_folder(tmp_path):
    for i, encoder in enumerate(("uni_v1", "None", "conch_v1")):
        trident(tmp_path / f"{i}.h5", values(), attributes={"encoder": encoder})
    (tmp_path / "labels.csv").write_text("path,label\n0,x\n1,y\n2,y\n")
    with pytest.raises(DataError, match=r"2\.h5: was made by conch_v1, and .*0\.h5 by uni_v1; make all files with one"):
        get_data("features", root=str(tmp_path), labels=str(tmp_path / "labels.csv"))
    for i in range(2):
        (tmp_path / f"{i}.h5").write_bytes(b"")
    with pytest.raises(DataError, match=r"0\.h5: is not an HDF5 file .*; 1 more of 3 files are not right either"):
        get_data("features", root=str(tmp_path), labels=str(tmp_path / "labels.csv"))


def test_settings_of_files_decide_the_network_and_nothing_else(tmp_path, photos, made):
    """They come from a file of somebody else: no weights are loaded that they name."""
    shutil.copytree(made / "fine", tmp_path / "f")
    table = str(photos / "labels.csv")

    def changed(encoder=None, **changes):
        for path in (tmp_path / "f").glob("*.h5"):
            settings = read_header(made / "fine" / path.name).settings
            settings |= {"encoder": settings["encoder"] | (encoder or {}), **changes}
            with h5py.File(path, "a") as file:
                file["features"].attrs["foveal"] = json.dumps(settings)
        return get_data("features", root=str(tmp_path / "f"), labels=table)

    options = changed(encoder={"pretrained": "evil.pt", "num_classes": 9}).encoder.options
    assert options == data(photos, made).encoder.options and "pretrained" not in options
    for wrong in (
        {"encoder": {"scale": 0}},
        {"encoder": {"tile_size": "x"}},
        {"value_range": [1]},
        {"value_range": "ab"},
    ):
        with pytest.raises(DataError, match="the settings in its files are damaged, or of another version"):
            changed(**wrong)
    changed()
    (tmp_path / "f" / "encoder.safetensors").unlink()
    found = changed()
    assert found.encoder.options == {"features": 128}
    assert any("the model will classify features and no images, because" in note for note in found.notes)


def test_a_large_file_leaves_room_for_others(tmp_path, monkeypatch):
    monkeypatch.setattr("foveal.data.features.KEPT", 100)
    found = folder_of(tmp_path, "ab", "a,x\nb,y\n").train
    with writing(tmp_path / "f" / "a.h5", 6) as file:
        file.append(values(9), np.arange(18).reshape(9, 2))
    found.load(0, [0, 1], 0)
    assert list(found._kept) == [1]


def test_features_of_other_tiles_or_another_network_are_not_evaluated(photos, made, runs, tmp_path, capsys):
    torch.manual_seed(1)
    embed(foveal.create_classifier("mil", num_classes=2, tile_size=32), photos, tmp_path / "other", device="cpu")
    for root, words in (
        (made / "coarse", "have a tile size of 16, and the model one of 32"),
        (tmp_path / "other", "of another network"),
    ):
        command = ["evaluate", str(runs / "mil"), "--data.root", str(root), "--measure", "none", "--device", "cpu"]
        assert main([*command, "--out", str(tmp_path / "out")]) == 1
        assert words in capsys.readouterr().err and not (tmp_path / "out").exists()

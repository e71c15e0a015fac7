"""Encoding the tiles of images once: what is written, repeated commands, failures."""

import json
import multiprocessing
import os
import signal

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image

import foveal
from foveal.cli import main
from foveal.embedding import embed, tile_encoder
from foveal.embedding.images import _store_weights, stored_digest
from foveal.errors import ConfigError, StorageError
from foveal.features import read, read_header
from foveal.glimpse.base import WholeImage
from foveal.glimpse.mil import AttentionPooling
from foveal.glimpse.scan import Scan
from foveal.models import create_classifier
from tests.tiny import failure

NET = {"tile_size": 32, "pretrained": False, "device": "cpu", "batch_size": 5}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Noise, in one of them beside a plain half, and a file that is no image."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for name, size in (("cat/1", (64, 96)), ("cat/2", (70, 40)), ("dog/1", (96, 128))):
        (folder / name).parent.mkdir(exist_ok=True)
        pixels = rng.integers(256, size=(*size, 3), dtype=np.uint8)
        if name == "dog/1":
            pixels[:, 64:] = 90
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return folder


@pytest.fixture(autouse=True)
def same_weights():
    torch.manual_seed(0)


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.h5"))


def rows(folder):
    return [json.loads(line) for line in (folder / "report.jsonl").read_text().splitlines()]


def by_hand(path, side, network, mean, std, scale=1):
    """Corners (x, y) and features of all tiles of an image, padded with the mean."""
    image = torch.from_numpy(np.asarray(Image.open(path)).copy()).permute(2, 0, 1) / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (mean, std))
    image = (image - mean) / std
    step = side * scale
    image = torch.nn.functional.pad(image, (0, -image.shape[2] % step, 0, -image.shape[1] % step))
    tiles = image.unfold(1, step, step).unfold(2, step, step)
    corners = [(x * step, y * step) for y in range(tiles.shape[1]) for x in range(tiles.shape[2])]
    tiles = tiles.permute(1, 2, 0, 3, 4).flatten(0, 1)
    with torch.inference_mode():
        return corners, network.eval()(torch.nn.functional.avg_pool2d(tiles, scale) if scale > 1 else tiles).numpy()


@pytest.mark.parametrize("scale", [1, 2])
def test_features_are_those_of_timm(tmp_path, photos, scale):
    network = timm.create_model("test_resnet", num_classes=0)
    safetensors.torch.save_file(network.state_dict(), tmp_path / "weights.safetensors")
    how = NET | {"pretrained": str(tmp_path / "weights.safetensors"), "scale": scale}
    done = embed("test_resnet", photos / "cat", tmp_path / "out", **how)
    config = timm.get_pretrained_cfg("test_resnet")
    assert (done.encoded, done.skipped, done.failed) == (2, 0, [])
    corners, features = by_hand(photos / "cat/1.png", 32, network, config.mean, config.std, scale)
    found = read(tmp_path / "out" / "1.h5")
    assert found.coords.tolist() == [list(corner) for corner in corners] and found.size == (64, 96)
    assert found.side == 32 * scale and found.features.dtype == np.float16
    np.testing.assert_allclose(found.features, features, rtol=2e-3, atol=2e-3)
    stored = safetensors.torch.load_file(tmp_path / "out" / "encoder.safetensors")
    assert all(torch.equal(stored[name], value) for name, value in network.state_dict().items())


def test_blank_tiles_are_left_out(tmp_path, photos):
    done = embed("test_resnet", photos, tmp_path, **NET)
    assert files(tmp_path) == ["cat/1.h5", "cat/2.h5", "dog/1.h5"]
    assert set(map(tuple, read(tmp_path / "dog/1.h5").coords.tolist())) == {
        (x, y) for x in (0, 32) for y in (0, 32, 64)
    }
    assert done.tiles == 6 + 6 + 6 and sum(row["blank"] for row in rows(tmp_path)) == 6
    Image.new("RGB", (96, 64), (9, 9, 9)).save(tmp_path / "plain.png")
    embed("test_resnet", tmp_path / "plain.png", tmp_path / "plain", **NET)
    assert read(tmp_path / "plain" / "plain.h5").coords.tolist() == [[32, 32]]  # the middle


def test_masks(tmp_path, photos):
    (tmp_path / "masks").mkdir()
    mask = np.zeros((64, 96), np.uint8)
    mask[40:50, 70:80] = 255
    Image.fromarray(mask).save(tmp_path / "masks" / "1.png")
    embed("test_resnet", photos / "cat/1.png", tmp_path / "out", masks=tmp_path / "masks", **NET)
    assert read(tmp_path / "out/1.h5").coords.tolist() == [[64, 32]]


def test_the_grid_of_embedding_is_that_of_the_model(tmp_path, photos):
    """A run of ``mil`` gives the logits that its head gives of the features."""
    model = create_classifier("mil", num_classes=3, tile_size=32, tile_stride=16, skip_blank=True).eval()
    embed(model, photos / "dog/1.png", tmp_path, device="cpu")
    found = read(tmp_path / "1.h5")
    features = torch.from_numpy(found.features).float()[None]
    with torch.inference_mode():
        logits = model._parts(features, np.ones(features.shape[:2], bool)).sum(1)
        expected = foveal.classify(model, photos / "dog/1.png")
    torch.testing.assert_close(logits[0], expected.logits, rtol=2e-3, atol=2e-3)
    boxes = [g.box for g in expected.glimpses][1:]
    assert [(x, y) for y, x, *_ in boxes] == [tuple(corner) for corner in found.coords.tolist()]


def test_a_dense_network_without_its_classifier(tmp_path, photos):
    network = timm.create_model("test_resnet", num_classes=5)
    model = create_classifier("test_resnet", num_classes=5, image_size=64)
    model.network.load_state_dict(network.state_dict())
    embed(model, photos / "cat/1.png", tmp_path, tile_size=32, device="cpu")
    network.reset_classifier(0)
    _, features = by_hand(photos / "cat/1.png", 32, network, model.mean.tolist(), model.std.tolist())
    np.testing.assert_allclose(read(tmp_path / "1.h5").features, features, rtol=2e-3, atol=2e-3)


def test_looks_of_a_scan(tmp_path, photos):
    model = create_classifier("scan", num_classes=3, look_size=16, scale=2, locations=[3]).eval()
    embed(model, photos / "dog/1.png", tmp_path, locations=2, device="cpu")
    looks = foveal.classify(model, photos / "dog/1.png", locations=2).glimpses
    found = read(tmp_path / "1.h5")
    assert [[x, y] for y, x, *_ in (g.box for g in looks if g.level == 2)] == found.coords.tolist()
    with torch.inference_mode():
        pixels = foveal.open_image(photos / "dog/1.png").look(np.array([g.box for g in looks][1:]), (16, 16))
        features = model.reader[:-1]((pixels - 0.5) / 0.5)
    np.testing.assert_allclose(found.features, features, rtol=2e-3, atol=2e-3)
    with pytest.raises(ConfigError, match="`tile_size`: a scan chooses its own looks"):
        embed(model, photos, tmp_path, tile_size=8)


def test_a_network_in_a_folder_of_the_hub(tmp_path, photos):
    """``local-dir:`` and ``hf-hub:`` are read by the same functions of timm."""
    from timm.models._hub import save_for_hf

    network = timm.create_model("test_resnet", num_classes=7)
    network.pretrained_cfg["license"] = "cc-by-4.0"
    save_for_hf(network, tmp_path / "net", safe_serialization=True)
    embed(f"local-dir:{tmp_path / 'net'}", photos / "cat/1.png", tmp_path / "out", tile_size=32, device="cpu")
    network.reset_classifier(0)
    cfg = network.pretrained_cfg
    _, features = by_hand(photos / "cat/1.png", 32, network, cfg["mean"], cfg["std"])
    np.testing.assert_allclose(read(tmp_path / "out/1.h5").features, features, rtol=2e-3, atol=2e-3)
    settings = read_header(tmp_path / "out/1.h5").settings
    assert settings["licence"] == "cc-by-4.0" and settings["encoder"]["backbone"] == "test_resnet"


def test_each_image_once(tmp_path, photos, monkeypatch):
    embed("test_resnet", photos / "cat", tmp_path, **NET)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    torch.manual_seed(0)
    again = embed("test_resnet", photos / "cat", tmp_path, **NET)
    assert (again.encoded, again.skipped) == (0, 2)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    for changed in ({"tile_size": 16}, {"scale": 2}, {"precision": "bf16"}):
        torch.manual_seed(0)
        with pytest.raises(ConfigError, match=r"1\.h5: was made with other settings.* `overwrite`"):
            embed("test_resnet", photos / "cat", tmp_path, **NET | changed)
    other = create_classifier("mil", num_classes=2, tile_size=32)
    with pytest.raises(ConfigError, match=r"1\.h5: was made with other settings"):
        embed(other, photos / "cat", tmp_path, device="cpu")
    with pytest.raises(ConfigError, match=r"1\.h5: is of another format; use `format` h5"):
        embed("test_resnet", photos / "cat", tmp_path, format="zarr", **NET)
    done = embed(other, photos / "cat", tmp_path, overwrite=True, device="cpu")
    assert done.encoded == 2 and len(rows(tmp_path)) == 4 and read(tmp_path / "1.h5").features.shape == (6, 128)


def _killed(photos, out):
    """Ends without cleaning up after the first image and a part of the second."""
    torch.manual_seed(0)
    torch.set_num_threads(1)

    def on_progress(done, total):
        if done > 1:
            (out / ".2.h5.1.unfinished").touch()
            with (out / "report.jsonl").open("a") as report:
                report.write('{"path": ')
            os.kill(os.getpid(), signal.SIGKILL)

    embed("test_resnet", photos / "cat", out, on_progress=on_progress, **NET)


def test_a_killed_process_is_continued(tmp_path, photos):
    process = multiprocessing.get_context("fork").Process(target=_killed, args=(photos, tmp_path))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL and files(tmp_path) == ["1.h5"]
    done = embed("test_resnet", photos / "cat", tmp_path, **NET)
    assert (done.encoded, done.skipped) == (1, 1) and files(tmp_path) == ["1.h5", "2.h5"]
    assert [path.name for path in tmp_path.iterdir() if "unfinished" in path.name] == []
    assert json.loads((tmp_path / "report.jsonl").read_text().splitlines()[-1])["file"] == "2.h5"


def test_a_continued_command_folds_norms_as_the_whole_one(tmp_path, photos, monkeypatch):
    folded = []
    monkeypatch.setattr("foveal.embedding.images.FOLD_FROM", 2)
    monkeypatch.setattr("foveal.embedding.images.fold_norms", lambda model: folded.append(1) or model)
    embed("test_resnet", photos / "cat", tmp_path, **NET)
    (tmp_path / "2.h5").unlink()
    torch.manual_seed(0)
    embed("test_resnet", photos / "cat", tmp_path, **NET)
    assert len(folded) == 2


def test_weights_have_the_usual_permissions_and_a_full_disk_is_an_error(tmp_path, photos, monkeypatch):
    embed("test_resnet", photos / "cat/1.png", tmp_path / "a", **NET)
    modes = {(tmp_path / "a" / name).stat().st_mode for name in ("encoder.safetensors", "report.jsonl", "1.h5")}
    assert len(modes) == 1
    tied = torch.nn.ModuleList([layer := torch.nn.Linear(2, 2), layer])
    _store_weights(tmp_path / "tied.safetensors", tied, "x", False)
    assert stored_digest(tmp_path / "tied.safetensors") == "x"
    monkeypatch.setattr("pathlib.Path.write_bytes", lambda *_: os.write(os.open("/dev/full", os.O_WRONLY), b"x"))
    with pytest.raises(StorageError, match=r"encoder\.safetensors: cannot be written \(No space left"):
        embed("test_resnet", photos / "cat/1.png", tmp_path / "b", **NET)


def test_a_bad_image_costs_that_image(tmp_path, photos, capsys):
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "1.png").write_bytes((photos / "cat/1.png").read_bytes()[:3000])
    (bad / "2.png").write_bytes((photos / "cat/2.png").read_bytes())
    argv = ["embed", "test_resnet", str(bad), "--pretrained", "false", "--tile-size", "32", "--device", "cpu"]
    assert main([*argv, "--out", str(tmp_path / "out")]) == 1
    out, err = capsys.readouterr()
    assert "1 encoded, 6 tiles" in out and "1 image failed:" in err and str(bad / "1.png") in err
    failed, good = rows(tmp_path / "out")
    assert failed["path"] == str(bad / "1.png") and failed["error"] and failed["file"] is None
    assert good["error"] is None and files(tmp_path / "out") == ["2.h5"]


def test_memory_does_not_grow_with_the_tiles(tmp_path, monkeypatch):
    """A large image is read and encoded a few tiles at a time."""
    Image.fromarray(np.random.default_rng(0).integers(256, size=(640, 640), dtype=np.uint8)).save(tmp_path / "1.png")
    encode, largest = AttentionPooling.encode, []
    monkeypatch.setattr(AttentionPooling, "encode", lambda self, x: largest.append(len(x)) or encode(self, x))
    done = embed("test_resnet", tmp_path / "1.png", tmp_path / "out", **NET | {"tile_size": 32})
    assert done.tiles == 400 and max(largest) == 5


def test_errors(tmp_path, photos, capsys):
    out = ["--out", tmp_path / "out"]
    argv = ["embed", "--pretrained", "false", "test_resnet", photos / "cat"]
    (tmp_path / "cat").mkdir()
    Image.new("RGB", (40, 40)).save(tmp_path / "cat" / "1.png")
    for more, words in (
        ([tmp_path / "cat", *out], "has the same name as"),
        (["--tile-size", "32", "--masks", tmp_path / "none", *out], "--masks"),
        (["--locations", "2", *out], "--locations: are for a run of the model scan"),
        (["--out", photos / "cat/1.png"], "--out"),
    ):
        code, said = failure(capsys, *argv, *more)
        assert code == 2 and words in said, said
    code, said = failure(capsys, "embed", "resnet81", photos, *out)
    assert code == 2 and "did you mean" in said
    code, said = failure(capsys, "embed", "local-dir:/nowhere", photos, *out)
    assert code == 2 and "cannot be loaded" in said
    assert not (tmp_path / "out").exists()
    for name, value in (("pretrained", False), ("in_chans", 4), ("value_range", (0, 9)), ("stages", 2)):
        with pytest.raises(ConfigError, match=f"`{name}`: is for networks by name, and a run has its own"):
            tile_encoder(create_classifier("mil", num_classes=2), **{name: value})
    for model in (
        WholeImage(timm.create_model("test_resnet", num_classes=2)),
        create_classifier("tnet", num_classes=2),
    ):
        with pytest.raises(ConfigError, match="give a run of mil, ips, scan or a dense network"):
            tile_encoder(model)
    assert isinstance(tile_encoder(Scan(2)).scan, Scan)


def test_two_processes_do_not_write_together(tmp_path, photos):
    from foveal.files import locked

    with locked(tmp_path / ".embed.lock", "taken"), pytest.raises(StorageError, match="another process writes there"):
        embed("test_resnet", photos, tmp_path, **NET)

"""Addresses wherever a path stands: rows, classification, explanation, training, the command."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from foveal.cli import main
from foveal.data import ImageDataset, Loader
from foveal.data.folder import manifest
from foveal.data.headers import index_images
from foveal.distributed import predict_shard
from foveal.distributed.shards import read_part
from foveal.embedding import embed
from foveal.errors import ConfigError, DataError
from foveal.explain import explain, explain_many
from foveal.images import remote
from foveal.prediction import classify, predict

from ..images.files import photo, write_pyramid
from ..images.remote_server import Loopback


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Six images of two classes."""
    folder = tmp_path_factory.mktemp("served")
    for i in range(4):
        Image.fromarray(photo(60 + 20 * (i % 2), 90, seed=i)).save(folder / f"{i}.png")
    for i in (4, 5):
        write_pyramid(folder / f"{i}.tif", photo(400, 500, seed=i), compression="zlib")
    with pytest.MonkeyPatch.context() as patch, Loopback(folder) as running:
        patch.setenv("FOVEAL_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(remote, "_FIRST_WAIT", 0.001)
        yield running


@pytest.fixture
def table(server, tmp_path):
    """A table of the images, with signed addresses."""
    names = ["0.png", "1.png", "2.png", "3.png", "4.tif", "5.tif"]
    lines = [f"{server.url}/{name}?sig=SECRET,{'ab'[i % 2]}" for i, name in enumerate(names)]
    (tmp_path / "images.csv").write_text("\n".join(["path,label", *lines]))
    return tmp_path / "images.csv"


def test_rows_equal_those_of_local_files_and_count_requests(model, server, tmp_path):
    names = ["0.png", "4.tif", "5.tif"]
    paths = [f"{server.url}/{name}?sig=SECRET" for name in names]
    server.clear()
    rows = predict(model, [*paths, f"{server.url}/none.png?sig=SECRET"]).rows
    local = predict(model, [server.folder / name for name in names]).rows
    assert [row["path"] for row in rows] == [f"{server.url}/{name}" for name in [*names, "none.png"]]
    for here, there in zip(rows, local, strict=False):
        assert here["top_k"] == there["top_k"] and here["glimpses"] == there["glimpses"]
        assert (there["requests"], there["bytes"]) == (None, None) and here["bytes_read"] == there["bytes_read"]
        state = Path(there["path"]).stat()
        assert here["file_size"] == there["file_size"] == state.st_size
        assert here["file_version"] == f'"{state.st_size:x}-{state.st_mtime_ns:x}"'  # the ETag of the server
    assert sum(row["requests"] or 0 for row in rows) == len(server.log) - 1  # a failed image has no counts
    assert sum(row["bytes"] or 0 for row in rows) == server.sent
    assert rows[3]["error"].startswith(f"{server.url}/none.png: there is no such object")
    assert "SECRET" not in json.dumps(rows)


def test_parts_of_a_manifest_hold_no_secrets_and_use_the_index_beside_it(model, server, table, tmp_path):
    expected = predict(model, [f"{server.url}/{i}.{'png' if i < 4 else 'tif'}" for i in range(6)]).rows
    requests = []
    for headers in (False, True):
        if headers:
            index_images([table])
        part = predict_shard(model, table, 0, 1, tmp_path / f"parts {headers}")
        rows = list(read_part(tmp_path / f"parts {headers}" / part.name))
        assert [row["path"] for row in rows] == [row["path"] for row in expected]
        assert [(row["label"], row["error"]) for row in rows] == [(row["label"], None) for row in expected]
        requests.append(sum(row["requests"] for row in rows))
    assert requests[1] < requests[0]
    for file in (file for kind in (False, True) for file in (tmp_path / f"parts {kind}").rglob("*") if file.is_file()):
        assert b"SECRET" not in file.read_bytes(), file


def test_features_of_signed_addresses_hold_no_secrets(server, tmp_path):
    paths = [f"{server.url}/{name}?sig=a.SECRET" for name in ("0.png", "none.png")]
    done = embed("test_resnet", paths, tmp_path / "out", format="zarr", tile_size=32, pretrained=False)
    assert [path for path, _ in done.failed] == [f"{server.url}/none.png"] and (tmp_path / "out" / "0.zarr").is_dir()
    for file in (tmp_path / "out").rglob("*"):
        assert "SECRET" not in file.name and not (file.is_file() and b"SECRET" in file.read_bytes()), file


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_a_prediction_goes_on_and_tries_failed_images_again(model, server, tmp_path, suffix):
    out, paths = tmp_path / f"rows.{suffix}", [f"{server.url}/{name}?sig=1" for name in ("0.png", "late.png")]
    first = predict(model, paths, out=out)
    server.contents["late.png"] = (server.folder / "1.png").read_bytes()
    second = predict(model, [path.replace("sig=1", "sig=2") for path in paths], out=out)
    assert (first.predicted, len(first.failed), second.skipped, second.predicted) == (1, 1, 1, 1)
    del server.contents["late.png"]


def test_an_address_is_classified_and_explained(model, server, tmp_path):
    path = f"{server.url}/4.tif?sig=SECRET"
    assert torch.equal(classify(model, path).logits, classify(model, server.folder / "4.tif").logits)
    explain(model, path, tmp_path / "one.html")
    (tmp_path / "labels.csv").write_text(f"path,label\n{path},a\n")
    rows = explain_many(model, [path, f"{server.url}/0.png"], tmp_path / "many", labels=tmp_path / "labels.csv")
    assert [row["path"] for row in rows] == [f"{server.url}/4.tif", f"{server.url}/0.png"]
    pages = [tmp_path / "one.html", *(tmp_path / "many").iterdir()]
    assert not any("SECRET" in page.read_text() for page in pages)
    verdict = "right" if rows[0]["label"] == "a" else "wrong"
    assert f"{verdict}: a" in (tmp_path / "many" / "index.html").read_text()


def test_images_of_a_table_are_trained_on(server, table):
    data = manifest(str(table), val_fraction=0.34, augmentation="none")
    assert data.train.is_remote and len(data.train) == 4 and len(data.val) == 2
    seen = {}
    for batch in Loader(data.train, batch_size=2):
        looks = batch.views.look(np.arange(2), np.array([[0, 0, 60, 60]] * 2), (16, 16))
        seen |= {int(i): look for i, look in zip(batch.index, looks, strict=True)}
    local = [str(server.folder / data.train.path(i).split("/")[-1].partition("?")[0]) for i in range(4)]
    for i, path in enumerate(local):
        one = ImageDataset([path], [0], ("a",), reading=data.train.reading).batch(0, [0], 0)
        assert torch.equal(one.views.look(np.zeros(1, int), np.array([[0, 0, 60, 60]]), (16, 16))[0], seen[i])
    missing = ImageDataset([f"{server.url}/none.png?sig=SECRET"], [0], ("a",))
    assert [path for path, _ in missing.batch(0, [0], 0).errors] == [f"{server.url}/none.png"]


def test_workers_of_a_loader_are_spawned_for_remote_images(table):
    """Forked processes cannot use the client of the process they were forked from."""
    data = manifest(str(table), val_fraction=0.34)
    workers = Loader(data.train, batch_size=2, workers=1).workers
    assert workers.multiprocessing_context.get_start_method() == "spawn"


@pytest.mark.slow
def test_workers_read_remote_images(server, table):
    data = manifest(str(table), val_fraction=0.34, augmentation="none")
    alone, together = Loader(data.train, batch_size=2), Loader(data.train, batch_size=2, workers=2)
    for one, other in zip(alone, together, strict=True):
        assert np.array_equal(one.index, other.index) and not other.errors
        for batch in (one, other):
            batch.seen = batch.views.look(np.arange(2), np.array([[0, 0, 60, 60]] * 2), (16, 16))
        assert torch.equal(one.seen, other.seen)


def test_an_index_beside_a_table_is_used(model, server, table, capsys, monkeypatch):
    assert main(["index", str(table)]) == 0
    assert capsys.readouterr().out == f"{table.parent / 'images.headers.parquet'}: 6 images\n"
    data = manifest(str(table), val_fraction=0.34, augmentation="none")
    server.clear()
    data.train.batch(0, [i for i in range(4) if data.train.path(i).partition("?")[0].endswith("tif")], 0)
    assert not server.log
    monkeypatch.setenv("FOVEAL_REMOTE_CACHE_BYTES", "0")
    headers = table.parent / "images.headers.parquet"
    rows = [predict(model, [f"{server.url}/5.tif?sig=1"], headers=index).rows[0] for index in (headers, None)]
    assert rows[0]["requests"] < rows[1]["requests"] and rows[0]["glimpses"] == rows[1]["glimpses"]


def test_errors_of_an_index_are_named(server, tmp_path, capsys):
    (tmp_path / "a.csv").write_text(f"path\n{server.url}/0.png\n{server.url}/none.png\n")
    assert main(["index", str(tmp_path / "a.csv"), "--quiet"]) == 1
    assert f"{server.url}/none.png: there is no such object" in capsys.readouterr().err
    (tmp_path / "b.csv").write_text("file\na.tif\n")
    for paths, error, text in (
        ([tmp_path / "b.csv"], DataError, "the column 'path' is missing"),
        ([tmp_path / "a.txt"], ConfigError, "is neither a table"),
        ([f"{server.url}/0.png"], ConfigError, "`out` is not given"),
    ):
        with pytest.raises(error, match=text):
            index_images(paths)


def test_roots_of_tables_may_be_addresses(server, tmp_path):
    (tmp_path / "a.csv").write_text("path,label\n0.png,a\n1.png,b\n")
    data = manifest(str(tmp_path / "a.csv"), root=server.url, val_fraction=0)
    assert data.train.path(1) == f"{server.url}/1.png"
    with pytest.raises(DataError, match=f"^{server.url}/: has a query or a user; leave them out"):
        manifest(str(tmp_path / "a.csv"), root=f"{server.url}/?sig=SECRET")
    with pytest.raises(DataError, match=r"s3://b/a: only images are read from there; list them in a table"):
        manifest("s3://b/a")

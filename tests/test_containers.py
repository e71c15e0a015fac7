"""Folders that are images, OME-Zarr and DICOM, wherever a path may stand."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("zarr")
pytest.importorskip("wsidicom")

from foveal.cli import main
from foveal.data import get_data
from foveal.explain import explain
from foveal.images import open_image
from foveal.models import create_model
from foveal.prediction import predict
from foveal.prediction.output import read_rows
from foveal.prediction.rows import find_images
from foveal.runs import ModelInfo, save_model
from tests.images.dicoms import write_slide
from tests.images.files import halve, photo
from tests.images.zarrs import write_ome_zarr

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    made = create_model("tnet", backbone="test_efficientnet", num_classes=2, base_size=32, locations=(2,)).eval()
    made.class_names = ("cat", "dog")
    return made


@pytest.fixture(scope="module")
def top(tmp_path_factory, model):
    """A run, and a folder with an OME-Zarr image, a DICOM slide, a PNG and a damaged OME-Zarr image."""
    top = tmp_path_factory.mktemp("containers")
    info = {"name": "tnet", "backbone": "test_efficientnet", "base_size": 32, "locations": [2]}
    save_model(top / "runs" / "slides", model, ModelInfo(info, model.class_names))
    pixels = photo(150, 203)
    levels = [np.moveaxis(level, -1, 0) for level in (pixels, halve(pixels))]
    write_ome_zarr(top / "scans" / "a.ome.zarr", levels)
    (top / "scans" / "b").mkdir()
    write_slide(top / "scans" / "b", [pixels, halve(pixels)], coding="jpeg2000", colour="YBR_RCT")
    Image.fromarray(pixels).save(top / "scans" / "c.png")
    write_ome_zarr(top / "scans" / "d.zarr", levels)
    (top / "scans" / "d.zarr" / "zarr.json").write_text("{")
    return top


NAMES = ["a.ome.zarr", "b/slide0.dcm", "c.png", "d.zarr"]


def test_the_commands_of_the_docs(top, monkeypatch, capsys):
    page = (DOCS / "images.md").read_text()
    commands = re.findall(r"^foveal (.*)$", page[page.index("## OME-Zarr") : page.index("## DICOM")], re.MULTILINE)
    monkeypatch.chdir(top)
    codes = [main([*command.split(), "--device", "cpu"]) for command in commands]
    assert len(commands) == 2 and codes == [1, 0]  # 1 for the damaged image
    assert "d.zarr: its Zarr metadata cannot be read" in capsys.readouterr().err
    rows = {row["path"]: row for row in read_rows(Path("labels.csv"))}
    assert [path for path, row in rows.items() if not row["error"]] == [f"scans/{name}" for name in NAMES[:3]]
    assert list(rows) == [f"scans/{name}" for name in NAMES]
    page = Path("a.html").read_text()
    assert "a.ome.zarr" in page and "0.5" in page


def test_rows_are_those_of_the_same_pixels(top, model):
    rows = predict(model, top / "scans", device="cpu").rows
    assert [Path(row["path"]).relative_to(top / "scans").as_posix() for row in rows] == NAMES
    zarr, dicom, png, damaged = rows
    for row in (zarr, dicom):
        assert row["label"] == png["label"] and row["probability"] == pytest.approx(png["probability"], abs=0.02)
        assert row["mpp"] == pytest.approx(0.5) and row["bytes_read"] > 0
    assert "d.zarr: its Zarr metadata cannot be read" in damaged["error"]
    assert find_images([top / "scans" / "b"]) == [(str(top / "scans" / NAMES[1]), None)]
    assert find_images([top / "scans" / NAMES[0]]) == [(str(top / "scans" / NAMES[0]), None)]


def test_folders_of_slides_are_explained(top, model, tmp_path):
    seen = explain(model, top / "scans" / "b", tmp_path / "page.html", device="cpu")
    assert len(seen.class_names) == 2 and "0.5" in (tmp_path / "page.html").read_text()


def test_class_folders_and_manifests(top, tmp_path):
    for name in ("cat", "dog"):
        shutil.copytree(top / "scans", tmp_path / "images" / name)
    shutil.copytree(top / "scans" / "a.ome.zarr", tmp_path / "images" / "beside.zarr")
    data = get_data("folder", root=str(tmp_path / "images"), val_fraction=0)
    assert data.classes == ("cat", "dog")
    found = [Path(data.train.path(i)).relative_to(tmp_path / "images").as_posix() for i in range(len(data.train))]
    assert found == [f"{label}/{name}" for label in ("cat", "dog") for name in NAMES]
    manifest = tmp_path / "manifest.csv"
    manifest.write_text(
        "path,label,split\n"
        + "".join(f"images/{label}/{NAMES[i]},{label},train\n" for label in ("cat", "dog") for i in (0, 1))
    )
    data = get_data("manifest", file=str(manifest), val_fraction=0)
    assert len(data.train) == 4 and open_image(data.train.path(0)).size == (150, 203)


def test_a_service_lists_and_shows_them(top, model):
    pytest.importorskip("fastapi")
    pytest.importorskip("httpx")
    from starlette.testclient import TestClient

    from foveal.serve import Limits, Service, make_app

    service = Service(model, images=top / "scans", limits=Limits(wait=0.01), device="cpu")
    try:
        client = TestClient(make_app(service), base_url="http://localhost:8000", raise_server_exceptions=False)
        listed = client.get("/v1/images").json()
        assert listed["images"] == NAMES
        for name, status in ((NAMES[0], 200), (NAMES[1], 200), (NAMES[3], 422)):
            answer = client.post("/v1/classify", data={"path": name})
            assert answer.status_code == status, answer.text
    finally:
        service.close()

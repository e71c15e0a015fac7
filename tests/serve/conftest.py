"""A tiny model, a folder of images and a client of the service."""

import numpy as np
import pytest
import torch
from PIL import Image

from foveal.models import create_model
from foveal.runs import ModelInfo, save_model

pytest.importorskip("fastapi")
pytest.importorskip("httpx")


@pytest.fixture(scope="package")
def model():
    torch.manual_seed(0)
    made = create_model("tnet", backbone="test_efficientnet", num_classes=4, base_size=32, locations=(3,))
    made.class_names = ("cat", "<b>dog</b>", "cow", "hen")
    return made.eval()


@pytest.fixture(scope="package")
def folder(tmp_path_factory):
    """``root`` is served; beside it lies a file that must not be."""
    top = tmp_path_factory.mktemp("served")
    root = top / "root"
    (root / "deep").mkdir(parents=True)
    draws = np.random.default_rng(0)
    for i, name in enumerate(("a.png", "b.png", "deep/c.png", "d <i>&.png")):
        Image.fromarray(draws.integers(0, 256, (90 + i, 128, 3), np.uint8)).save(root / name)
    Image.new("RGB", (32, 32)).save(top / "secret.png")
    (root / "out.png").symlink_to(top / "secret.png")
    (root / "up").symlink_to(top)
    (root / "in.png").symlink_to(root / "a.png")
    (root / ".hidden.png").write_bytes((root / "a.png").read_bytes())
    (root / "notes.txt").write_text("private")
    (root / "broken.png").write_bytes((root / "a.png").read_bytes()[:2000])
    return root


@pytest.fixture(scope="package")
def service(model, folder):
    from foveal.serve import Limits, Service

    made = Service(model, images=folder, limits=Limits(wait=0.05), device="cpu")
    yield made
    made.close()


@pytest.fixture(scope="package")
def client(service):
    from starlette.testclient import TestClient

    from foveal.serve import make_app

    # Without its lifespan, which would close the service.
    return TestClient(make_app(service), base_url="http://localhost:8000", raise_server_exceptions=False)


@pytest.fixture(scope="package")
def run(tmp_path_factory, model):
    out = tmp_path_factory.mktemp("runs") / "tiny"
    options = {"name": "tnet", "backbone": "test_efficientnet", "base_size": 32, "locations": [3]}
    save_model(out, model, ModelInfo(options, model.class_names))
    return out

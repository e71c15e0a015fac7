import numpy as np
import pytest
import torch
from PIL import Image

from foveal.glimpse.tnet import TNet
from foveal.runs import ModelInfo, save_model


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """A run folder with a tiny model."""
    options = {"backbone": "plain_convnet_32", "base_size": 16, "locations": [1]}
    torch.manual_seed(0)
    model = TNet(num_classes=3, backbone="plain_convnet_32", base_size=16, locations=(1,)).eval()
    folder = tmp_path_factory.mktemp("model") / "run"
    save_model(folder, model, ModelInfo({"name": "tnet", **options}, ("a", "b", "c")))
    return folder


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """A folder with 38 images, one of them broken, one missing and one listed twice in its manifest of 40 rows."""
    folder = tmp_path_factory.mktemp("images")
    draws = np.random.default_rng(0)
    for i in range(39):
        Image.fromarray(draws.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(folder / f"{i:02}.png")
    (folder / "05.png").write_bytes(b"")
    (folder / "11.png").unlink()
    (folder / "images.csv").write_text("".join(["path\n", *(f"{i:02}.png\n" for i in range(39)), "03.png\n"]))
    return folder

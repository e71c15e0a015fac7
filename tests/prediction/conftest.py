import numpy as np
import pytest
import torch
from PIL import Image

from foveal.glimpse.tnet import TNet


@pytest.fixture
def folder(tmp_path):
    """Seven images of two sizes in two levels of folders, and other files."""
    root = tmp_path / "images"
    (root / "deep").mkdir(parents=True)
    for i in range(7):
        pixels = np.random.default_rng(i).integers(0, 256, (60 + 20 * (i % 2), 90, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / ("deep" if i > 4 else "") / f"{i}.png")
    (root / "notes.txt").write_text("not an image")
    (root / ".hidden.png").write_text("not an image")
    return root


@pytest.fixture(scope="session")
def model():
    torch.manual_seed(0)
    model = TNet(num_classes=4, backbone="test_efficientnet", base_size=32, locations=(2, 1)).eval()
    model.class_names = ("a", "b", 'c "quoted", with comma', "d\u00e9")
    return model

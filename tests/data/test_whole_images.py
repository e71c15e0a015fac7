"""Input of dense networks: looks at whole images in memory, and the centre crop of ImageNet."""

import numpy as np
import pytest
import timm
import torch
from torchvision.transforms import CenterCrop, Resize
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from foveal import models, runs
from foveal.data import Loader, TensorDataset
from foveal.errors import ConfigError
from foveal.glimpse.base import WholeImage
from foveal.images import Look
from foveal.images.views import TensorViews
from foveal.prediction import classify
from foveal.training.learner import DelayedScalars, _in_mode


def images(count: int = 5, height: int = 32, width: int = 32, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    made = torch.randint(
        0, 256, (count, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    return made if dtype == torch.uint8 else made.to(dtype) / 255


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("size", [(32, 32), (16, 16), (48, 40)])
@pytest.mark.parametrize("box", [(0, 0, 32, 32), (-4, -4, 36, 36), (3, 2.5, 20, 30)])
def test_one_box_for_all_images_is_the_same_as_one_for_each(dtype, size, box):
    views = TensorViews(images(dtype=dtype))
    which, boxes = np.array([0, 1, 2, 4]), np.tile(np.array(box, dtype=np.float64), (4, 1))
    fill = torch.tensor([0.1, 0.5, 0.9])
    together = views.look(which, boxes, size, fill=fill)
    # With a different box, each look is planned separately.
    apart = TensorViews(images(dtype=dtype)).look(
        np.append(which, 0), np.vstack([boxes, [1, 1, 9, 9]]), size, fill=fill
    )
    assert torch.equal(together, apart[:4])


def test_whole_images_at_their_own_size_are_their_pixels():
    pixels = images()
    seen = TensorViews(pixels).look(np.arange(5), np.tile([0.0, 0, 32, 32], (5, 1)), (32, 32))
    assert torch.equal(seen, pixels.float() / 255)


def dense(**options) -> WholeImage:
    return WholeImage(timm.create_model("test_resnet", num_classes=2), **options)


@pytest.mark.parametrize("size", [(375, 500), (500, 333), (256, 256), (1200, 301)])
def test_the_crop_is_that_of_resize_and_centre_crop(size):
    """Resize(256), CenterCrop(224): the same box to a pixel of the resized image, and nearly the same pixels."""
    model = dense(image_size=224, crop=0.875).eval()
    y0, x0, y1, x1 = model.root(np.array([size]))[0]
    scale = min(size) / 256
    height, width = (round(s / scale) for s in size)
    top, left = round((height - 224) / 2), round((width - 224) / 2)
    assert np.abs(np.array([y0, x0, y1, x1]) / scale - (top, left, top + 224, left + 224)).max() <= 1
    smooth = torch.nn.functional.interpolate(
        torch.rand(1, 3, 9, 9, generator=torch.Generator().manual_seed(0)), size, mode="bicubic"
    )
    image = (smooth.clamp(0, 1) * 255).byte()
    theirs = pil_to_tensor(CenterCrop(224)(Resize(256)(to_pil_image(image[0])))) / 255
    ours = TensorViews(image).look(np.array([0]), np.array([[y0, x0, y1, x1]]), (224, 224))[0]
    assert (ours - theirs).abs().mean() < 0.01


def test_training_sees_all_that_augmentation_left():
    model = dense(image_size=32, crop=0.875).train()
    sizes = np.array([[40, 30], [64, 64]])
    assert model.root(sizes).tolist() == [[0, 0, 40, 30], [0, 0, 64, 64]]
    assert model.eval().root(sizes).tolist() == [[20 - 13.125, 15 - 13.125, 20 + 13.125, 15 + 13.125], [4, 4, 60, 60]]
    for training in (False, True):
        looks = _in_mode(model, training).first_looks((64, 64))
        assert looks == [
            Look((0.0, 0.0, 64.0, 64.0) if training else (4.0, 4.0, 60.0, 60.0), (32, 32), model._fill, True)
        ]
    assert not model.training and not model.network.training


@pytest.mark.parametrize("options", [{"crop": 0.0}, {"crop": 1.2}, {"crop": 0.9, "squash": True}])
def test_crops_that_cannot_be_had(options):
    with pytest.raises(ConfigError, match=r"cannot be done; give a share above 0 and up to 1, without `squash`$"):
        dense(image_size=32, **options)


def test_the_crop_survives_the_run_folder(tmp_path):
    model = models.create_classifier("test_resnet", num_classes=2, image_size=32, crop=0.5)
    runs.save_model(tmp_path, model, runs.ModelInfo({"name": "test_resnet", "image_size": 32, "crop": 0.5}, ("a", "b")))
    image = images(1, 64, 64)[0] / 255
    result = classify(runs.load(tmp_path), image)
    assert result.glimpses.box.tolist() == [[16, 16, 48, 48]]
    model.crop = None
    torch.testing.assert_close(result.logits, model.eval()(image[None, :, 16:48, 16:48]).logits[0])


@pytest.mark.gpu
def test_nothing_waits_for_the_gpu():
    """Indexing, augmentation, looks and logging only queue work. In this mode, waiting for the device is an error."""
    data = TensorDataset(images(64), np.arange(64) % 2, ("a", "b"), augmentation="crop_flip")
    loader = Loader(data, batch_size=16, seed=1, shuffle=True, device="cuda")
    model, late = dense(image_size=32).cuda(), DelayedScalars()
    expected = {
        int(i): image
        for batch in Loader(data, batch_size=16, seed=1)
        for i, image in zip(batch.index, batch.views.images, strict=True)
    }
    seen, read = [], []
    next(iter(loader)).to("cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step, batch in enumerate(loader):
            batch = batch.to("cuda")
            seen.append(
                (batch.index, batch.views.images, model.see(batch.views, np.arange(16), model.root(batch.views.sizes)))
            )
            read.append(late.put(batch.target.float().sum(), step))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(
        torch.equal(image.cpu(), expected[int(i)])
        for index, pixels, _ in seen
        for i, image in zip(index, pixels, strict=True)
    )
    assert read[0] is None and [mark for _, mark in read[1:]] == [0, 1, 2] and late.flush()[1] == 3

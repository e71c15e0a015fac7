"""Models with known answers, and data for them."""

import numpy as np
import torch
import torch.nn.functional as F

from foveal.classification import Classification, Glimpses
from foveal.data import DataModule, ImageDataset, TensorDataset
from foveal.glimpse.base import WholeImage
from foveal.images import View
from foveal.images.views import as_views

CLASSES = tuple("abcdef")


class Looker(WholeImage):
    """Says its images' class, which is their first pixel, where that is below the number of looks; chance for random
    looks.
    """

    locations = (2,)

    def __init__(self, classes=6):
        super().__init__(torch.nn.Identity(), image_size=8, mean=(0.0,), std=(1.0,))
        self.num_classes = classes

    def forward(self, images, locations=None, policy="greedy", draws=None, contributions=True):
        k = sum(self.locations if locations is None else locations)
        views = images
        count = len(views)
        seen = views.look(np.arange(count), np.tile([0.0, 0, 1, 1], (count, 1)), (1, 1))
        truth = (seen[:, 0, 0, 0] * 255).round().long()
        says = torch.where(truth < k, truth, 0)
        if policy == "random" and draws is not None:  # without draws when the cost is counted
            says = torch.from_numpy((draws.uniform("guess")[:] * self.num_classes).astype(int))
        looks = Glimpses(
            image=np.repeat(np.arange(count), k + 1),
            box=np.zeros((count * (k + 1), 4)),
            size=(8, 8),
            level=np.tile([1] + [2] * k, count),
            parent=np.tile([-1] + [0] * k, count),
            probability=torch.ones(count * (k + 1)),
        )
        logits = 2.0 * F.one_hot(says, self.num_classes).float() - 0.01 * torch.arange(self.num_classes)
        return Classification(logits, looks, self.class_names, bytes_read=views.bytes_read)


class OpenImages(ImageDataset):
    """Images in memory of any sizes, all of the first class."""

    def __init__(self, images):
        super().__init__([str(i) for i in range(len(images))], [0] * len(images), tuple("abcdef"))
        self.images = images

    def _open(self, epoch, i, seed, first_looks):
        return View(self.images[i])


def data(per_class=5, classes=6):
    target = torch.arange(classes).repeat(per_class)
    images = target[:, None, None, None].expand(-1, 3, 8, 8).to(torch.uint8).contiguous()
    names = tuple("abcdef"[:classes])
    return DataModule(classes=names, test=TensorDataset(images, target, names), name="numbers")


class Spotter(WholeImage):
    """Looks at the whole image for the one bright square of its 3 x 3, whose brightness is the class, and points at
    it.
    """

    locations = (1,)

    def __init__(self):
        super().__init__(torch.nn.Identity(), image_size=24, mean=(0.0,), std=(1.0,))
        self.num_classes = len(CLASSES)

    def forward(self, images, locations=None, policy="greedy", draws=None, contributions=True):
        views, k = as_views(images), sum(self.locations if locations is None else locations)
        count = len(views)
        whole = np.tile([0.0, 0, 24, 24], (count, 1))
        bright = F.avg_pool2d(views.look(np.arange(count), whole, (24, 24))[:, :1], 8).flatten(1)
        order = bright.argsort(descending=True, stable=True).numpy()
        if policy == "random":
            order = draws.uniform("cells", 9).argsort(1)
        cell = order[:, :k]
        corner = 8.0 * np.stack([cell // 3, cell % 3], -1)
        box = np.concatenate([whole[:, None], np.concatenate([corner, corner + 8], -1)], 1)
        says = (bright.amax(1) * 255 / 40).round().long().sub(1).clamp(0)
        looks = Glimpses(
            image=np.repeat(np.arange(count), k + 1),
            box=box.reshape(-1, 4),
            size=np.array([8, 8]),
            level=np.tile([1] + [2] * k, count),
            parent=np.tile([-1] + [0] * k, count),
            probability=torch.ones(count * (k + 1)),
        )
        return Classification(
            F.one_hot(says, len(CLASSES)).float(), looks, self.class_names, bytes_read=views.bytes_read
        )

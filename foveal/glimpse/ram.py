"""RAM, the Recurrent Attention Model.

"Recurrent Models of Visual Attention", Mnih, Heess, Graves and Kavukcuoglu, NeurIPS 2014, arXiv 1406.6247. A glimpse
consists of several patches around one place (section 3.1, glimpse sensor). Each patch has twice the side of the one
before, and all are resampled to the same size, so resolution falls with the distance from the place. A recurrent
network combines the glimpses and chooses the next place. No other part of the image is read, so the cost does not
depend on the size of the image.

Example:
    >>> import torch
    >>> model = RAM(num_classes=4, locations=(3,)).eval()
    >>> looked = model(torch.rand(1, 3, 100, 100))
    >>> [g.level for g in looked.glimpses], looked.glimpses[0].box
    ([1, 2, 2, 2], (40.0, 40.0, 60.0, 60.0))
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from foveal.draws import Draws
from foveal.errors import ConfigError
from foveal.glimpse.base import on_host, per_band
from foveal.glimpse.networks import check_look
from foveal.glimpse.recurrent import GaussianPolicy, RecurrentAttention, Trace
from foveal.images.views import Look, Views
from foveal.policies import Policy
from foveal.registry import MODELS


@MODELS.register("ram")
class RAM(RecurrentAttention):
    """The Recurrent Attention Model. The first look is at the centre of the image.

    Places are coordinates from -1 to 1 across the image, for any aspect ratio, so every glimpse is centred inside the
    image. The box reported for a glimpse is that of its finest patch.

    Args:
        num_classes: number of classes.
        in_chans: number of bands of the images.
        base_size: side in pixels that every patch is resampled to.
        patches: number of patches of a glimpse.
        region: side of the finest patch as a share of the image's longer side, rounded to whole pixels.
        locations: default number of glimpses after the first.
        sd: standard deviation of the sampled places in training. The paper does not give its value; re-implementations
            tune it.
        mean, std: normalisation.
        antialias: resample with antialiasing.

    Raises:
        ConfigError: ``region`` is not in (0, 1], ``patches`` is less than 1, or ``locations`` has several levels.
    """

    def __init__(
        self,
        num_classes: int = 10,
        *,
        in_chans: int = 3,
        base_size: int = 12,
        patches: int = 3,
        region: float = 0.2,
        locations: Sequence[int] = (6,),
        sd: float = 0.15,
        mean: Sequence[float] = (0.5,),
        std: Sequence[float] = (0.5,),
        antialias: bool = True,
    ) -> None:
        check_look(in_chans * max(patches, 1) * 128, base_size=base_size)  # weights of the first layer
        if not 0 < region <= 1 or patches < 1:
            raise ConfigError(
                f"`region` {region} and `patches` {patches}: give a region above 0 and up to 1, and at least one patch"
            )
        size = (base_size, base_size)
        super().__init__(
            num_classes,
            size,
            per_band(mean, in_chans),
            per_band(std, in_chans),
            antialias=antialias,
            locations=locations,
        )
        self.patches, self.region = patches, region
        self.what_seen = nn.Sequential(nn.Flatten(), nn.Linear(patches * in_chans * base_size**2, 128), nn.ReLU())
        self.where_seen = nn.Sequential(nn.Linear(2, 128), nn.ReLU())
        self.glimpse = nn.Sequential(nn.Linear(256, 256), nn.ReLU())
        self.core = nn.Sequential(nn.Linear(512, 256), nn.ReLU())
        self.where = GaussianPolicy(256, 1.0, sd)
        self.baseline = nn.Linear(256, 1)
        self.classifier = nn.Linear(256, num_classes)

    def first_looks(self, size: tuple[int, int]) -> list[Look]:
        boxes = self.patch_boxes(np.array([size]), np.zeros((1, 1, 2)))[0, 0]
        return [Look(tuple(box), self.size, self._fill, self.antialias) for box in boxes.tolist()]

    def patch_boxes(self, sizes: np.ndarray, where: np.ndarray) -> np.ndarray:
        """Boxes of the patches around places, finest first. The finest patch is at whole pixels.

        Args:
            sizes: (B, 2) (height, width) of the images.
            where: (B, T, 2) places.

        Returns:
            (B, T, patches, 4).
        """
        sizes = np.asarray(sizes, dtype=np.float64)
        side = np.maximum(1, np.round(self.region * sizes.max(1)))[:, None, None]
        # Boxes at whole pixels are read without interpolation.
        middle = (np.round((where + 1) / 2 * sizes[:, None] - side / 2) + side / 2)[:, :, None]
        reach = side[..., None] / 2 * 2.0 ** np.arange(self.patches)[:, None]
        return np.concatenate([middle - reach, middle + reach], axis=3)

    def glance(self, views: Views, where: Tensor, state: Tensor) -> Tensor:
        """Look at one place (R, 2) of each image in every rollout, and update the state (R, 256) of the core
        network."""
        rollouts = len(where) // len(views)
        boxes = self.patch_boxes(np.tile(views.sizes, (rollouts, 1)), on_host(where)[:, None])
        which = np.tile(np.arange(len(views)), rollouts)
        seen = self.see(views, np.repeat(which, self.patches), boxes.reshape(-1, 4))
        seen = seen.contiguous().unflatten(0, (-1, self.patches))
        glimpse = self.glimpse(torch.cat([self.what_seen(seen), self.where_seen(where.to(seen.dtype))], 1))
        return self.core(torch.cat([glimpse, state], 1))

    def trace(self, views: Views, steps: int, policies: Sequence[Policy], draws: Draws) -> Trace:
        images, rollouts = len(views), len(policies)
        middle = torch.zeros(images, 2, device=self.mean.device)
        state = self.glance(views, middle, self.mean.new_zeros(images, 256)).repeat(rollouts, 1)
        rows, features = images * rollouts, [state]
        places, densities, values = (
            [state.new_zeros(rows, 0, 2)],
            [state.new_zeros(rows, 0)],
            [state.new_zeros(rows, 0)],
        )
        for step in range(steps):
            # The policy and the baseline are trained on the state without gradients into it.
            detached = state.detach()
            place, density = self.decide(detached, policies, draws, step)
            values.append(self.baseline(detached))
            state = self.glance(views, place, state)
            features.append(state)
            places.append(place[:, None])
            densities.append(density[:, None])
        return Trace(torch.stack(features, 1), torch.cat(places, 1), torch.cat(densities, 1), torch.cat(values, 1))

    def boxes(self, sizes: np.ndarray, where: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        first = self.patch_boxes(sizes, np.zeros((len(sizes), 1, 2)))[:, 0, 0]
        return first, self.patch_boxes(sizes, where)[:, :, 0]

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """``head``, and ``location`` for the policy and its baseline."""
        location = [p for part in (self.where, self.baseline) for p in part.parameters() if p.requires_grad]
        ids = {id(p) for p in location}
        return {"head": [p for p in self.parameters() if p.requires_grad and id(p) not in ids], "location": location}

    def dense(self) -> nn.Module:
        """The layers of the glimpse network on the whole image, shrunk to one patch."""
        features = self.channels * self.size[0] * self.size[1]
        shrunk: list[nn.Module] = [nn.AdaptiveAvgPool2d(self.size), nn.Flatten(), nn.Linear(features, 128), nn.ReLU()]
        return nn.Sequential(*shrunk, nn.Linear(128, 256), nn.ReLU(), nn.Linear(256, self.num_classes)).to(
            self.mean.device
        )

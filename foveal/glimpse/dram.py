"""DRAM, the Deep Recurrent Attention Model.

"Multiple Object Recognition with Visual Attention", Ba, Mnih and Kavukcuoglu, ICLR 2015, arXiv 1412.7755, in the form
that the authors of Saccader compare with on ImageNet (arXiv 1908.07644; released code google-research/saccader). The
model reads the image once, at a fixed size. A glimpse is cut from this image: three concentric windows around a place,
from fine to the whole image, with the coordinates of every pixel as two further bands. A first step, the context step,
sees all three windows around the centre and initialises the location LSTM. In the following steps only the finest
window is used for classification; the other windows are reduced to their mean colour.

`dram` trains the prediction after every step. ``dram.reference`` follows the released code.

Example:
    >>> import torch
    >>> model = DRAM(num_classes=4, backbone="test_resnetv2_slim", image_size=64, base_size=24, hidden=16)
    >>> looked = model.eval()(torch.rand(1, 3, 128, 128), locations=(3,))
    >>> [g.size for g in looked.glimpses], looked.glimpses[1].box[2] - looked.glimpses[1].box[0]
    ([(64, 64), (24, 24), (24, 24), (24, 24)], 48.0)
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.draws import Draws
from foveal.errors import ConfigError
from foveal.glimpse.base import per_band
from foveal.glimpse.networks import channels_last, check_look, create_network
from foveal.glimpse.recurrent import Aggregate, GaussianPolicy, LSTMCell, RecurrentAttention, Trace
from foveal.host import to_device
from foveal.images.views import Views
from foveal.objectives.recurrent import RecurrentObjective
from foveal.policies import Policy
from foveal.registry import MODELS

WINDOWS = 3

# ------------------------------------------------------------------------------------------------ sensor


def with_coordinates(seen: Tensor) -> Tensor:
    """Append two bands to (B, C, h, w): the row and the column of each pixel, from -1 to 1."""
    h, w = seen.shape[-2:]
    line = partial(torch.linspace, -1, 1, dtype=seen.dtype, device=seen.device)
    rows, columns = torch.meshgrid(line(h), line(w), indexing="ij")
    return torch.cat([seen, torch.stack([rows, columns]).expand(len(seen), -1, -1, -1)], 1)


def windows(field: Tensor, where: Tensor, sides: Sequence[float], size: int) -> Tensor:
    """Concentric windows, resampled bilinearly. Outside the field, values of the edge are repeated.

    Args:
        field: (R, C, h, w).
        where: (R, 2) centres of the windows, y and x; -1 and 1 are the borders of the field.
        sides: sides of the windows as shares of the side of the field.
        size: side in pixels that each window is resampled to.

    Returns:
        (R, len(sides) * C, size, size), one window after another.
    """
    unit = (torch.arange(size, device=field.device, dtype=where.dtype) * 2 + 1) / size - 1
    axis = to_device(torch.tensor(sides, dtype=where.dtype), where.device)[:, None] * unit
    y, x = (axis + at[:, None, None] for at in where.unbind(1))  # (R, windows, size)
    grid = torch.stack([x[:, :, None, :].expand(-1, -1, size, -1), y[..., None].expand(-1, -1, -1, size)], -1)
    exact = torch.promote_types(field.dtype, torch.float32)  # float16 is too coarse for coordinates
    seen = F.grid_sample(
        field.to(exact), grid.flatten(1, 2).to(exact), mode="bilinear", padding_mode="border", align_corners=False
    )
    return seen.to(field.dtype).unflatten(2, (len(sides), size)).transpose(1, 2).flatten(1, 2)


def finest_only(seen: Tensor) -> Tensor:
    """Replace all windows but the first by the mean of each band, without gradient (``limit_classification_rf``)."""
    fine, coarse = seen.split([seen.shape[1] // WINDOWS, seen.shape[1] - seen.shape[1] // WINDOWS], 1)
    return torch.cat([fine, coarse.detach().mean((2, 3), keepdim=True).expand_as(coarse)], 1)


# ------------------------------------------------------------------------------------------------------------ model


@MODELS.register("dram")
class DRAM(RecurrentAttention):
    """The Deep Recurrent Attention Model on any timm backbone.

    Args:
        num_classes: number of classes.
        backbone: timm name of the network for the windows of a glimpse, which are stacked as bands.
        backbone_options: further keywords for `timm.create_model`.
        in_chans: number of bands of the images.
        image_size: side in pixels that the image is resampled to.
        base_size: side of a glimpse in pixels: of the finest window before resampling, and of all windows after it.
        locations: default number of places after the context step.
        hidden: length of the states of the two LSTMs.
        sd: standard deviation of the sampled places in training; the border of the image is at 1.
        aggregate: ``last`` predicts from the last step; ``mean`` averages the predictions after each step.
        mean, std: normalisation; the backbone's if None.
        squash: resample the whole image to a square, instead of the square around it.
        antialias: resample with antialiasing.
        crop: look at the centred square whose side is this share of the image's shorter side; at the whole image if
            None.

    Raises:
        ConfigError: the backbone is unknown, ``base_size`` is not below ``image_size``, or ``locations`` has several
            levels.
    """

    image_share = 0.5

    def __init__(
        self,
        num_classes: int = 1000,
        *,
        backbone: str = "resnetv2_50_slim",
        backbone_options: dict[str, Any] | None = None,
        in_chans: int = 3,
        image_size: int = 224,
        base_size: int = 77,
        locations: Sequence[int] = (6,),
        hidden: int = 1024,
        sd: float = 0.1,
        aggregate: Aggregate = "last",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        squash: bool = False,
        antialias: bool = True,
        crop: float | None = None,
    ) -> None:
        check_look(in_chans, image_size=image_size)
        if not 0 < base_size < image_size:
            raise ConfigError(
                f"`base_size` {base_size}: is not above 0 and below `image_size` {image_size}; make it smaller"
            )
        options = backbone_options or {}
        network: Any = create_network(
            backbone, WINDOWS * (in_chans + 2), False, {"num_classes": 0, **options}, base_size
        )
        config = getattr(network, "pretrained_cfg", None) or {}
        super().__init__(
            num_classes,
            (image_size, image_size),
            per_band(mean or config.get("mean", (0.5,)), in_chans),
            per_band(std or config.get("std", (0.5,)), in_chans),
            squash=squash,
            antialias=antialias,
            crop=crop,
            aggregate=aggregate,
            locations=locations,
        )
        self.base_size = base_size
        self.sides = tuple(float(side) for side in np.trunc(np.linspace(base_size, image_size, WINDOWS)) / image_size)
        self._create_dense = partial(create_network, backbone, in_chans, False, {"num_classes": num_classes, **options})
        self.backbone = channels_last(network)
        self.recognise = LSTMCell(getattr(network, "head_hidden_size", None) or network.num_features, hidden)
        self.locate = LSTMCell(hidden, hidden)
        self.where = GaussianPolicy(hidden, 1 - base_size / image_size, sd)
        self.classifier = nn.Linear(hidden, num_classes)
        for layer in (self.where.emit, self.classifier):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def perceive(self, field: Tensor, where: Tensor, context: bool = False) -> Tensor:
        """Pass windows of the field (R, C + 2, h, w) around places (R, 2) through the backbone: features (R, D)."""
        seen = windows(field, where, self.sides, self.base_size)
        seen = (seen if context else finest_only(seen)).contiguous(memory_format=torch.channels_last)
        network: Any = self.backbone
        return network.forward_head(network.forward_features(seen), pre_logits=True)

    def trace(self, views: Views, steps: int, policies: Sequence[Policy], draws: Draws) -> Trace:
        images, rollouts = len(views), len(policies)
        field = with_coordinates(self.see(views, np.arange(images), self.root(views.sizes)))
        seen = self.perceive(field, torch.zeros(images, 2, device=field.device), context=True)
        context, _ = self.recognise(seen, self.recognise.zeros(images))
        # The state of the classification LSTM is reset after the context step. Only its output is kept, as the first
        # input of the location LSTM.
        rows = images * rollouts
        field, features = field.repeat(rollouts, 1, 1, 1), [context.repeat(rollouts, 1)]
        state, memory = self.recognise.zeros(rows), self.locate.zeros(rows)
        places, densities = [self.mean.new_zeros(rows, 0, 2)], [self.mean.new_zeros(rows, 0)]
        for step in range(steps):
            memory = self.locate(features[-1], memory)
            place, density = self.decide(memory[0], policies, draws, step)
            state = self.recognise(self.perceive(field, place), state)
            features.append(state[0])
            places.append(place[:, None])
            densities.append(density[:, None])
        return Trace(torch.stack(features, 1), torch.cat(places, 1), torch.cat(densities, 1))

    def boxes(self, sizes: np.ndarray, where: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        first = self.root(sizes)
        middle, half = (first[:, 2:] + first[:, :2]) / 2, (first[:, 2:] - first[:, :2]) / 2
        middle, reach = (
            middle[:, None] + where * half[:, None],
            np.broadcast_to(half[:, None] * self.sides[0], where.shape),
        )
        return first, np.concatenate([middle - reach, middle + reach], axis=2)

    def glimpse_sizes(self, steps: int) -> np.ndarray:
        return np.array([self.size] + [(self.base_size, self.base_size)] * steps)

    def default_objective(self) -> RecurrentObjective:
        return RecurrentObjective(policy_weight=0.1, image_share=self.image_share)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """``backbone``; ``head``, the classification LSTM and the classifier; ``location``, the location LSTM and the
        policy."""
        parts = {
            "backbone": [self.backbone],
            "head": [self.recognise, self.classifier],
            "location": [self.locate, self.where],
        }
        return {
            name: [p for part in modules for p in part.parameters() if p.requires_grad]
            for name, modules in parts.items()
        }

    def dense(self) -> nn.Module:
        return self._create_dense().to(self.mean.device)


class ReferenceDRAM(DRAM):
    """DRAM as published: cross-entropy of the final prediction only."""

    image_share = 1.0


@MODELS.register("dram.reference")
def dram(num_classes: int = 1000, **options: Any) -> ReferenceDRAM:
    """ImageNet: image of 224 px, glimpses of 77 px, ResNet-v2-50 of TF-Slim. 45,610,219 parameters and running
    statistics with 1,001 classes."""
    preset = {"crop": 224 / 246, "antialias": False}
    if options.get("squash"):
        preset.pop("crop")
    return ReferenceDRAM(num_classes, **{**preset, **options})

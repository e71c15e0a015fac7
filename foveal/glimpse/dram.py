"""DRAM, the deep recurrent attention model: one network for glimpses, one memory for what was seen and one for where.

"Multiple Object Recognition with Visual Attention", Ba, Mnih and Kavukcuoglu, ICLR 2015, arXiv 1412.7755, in the form
that Saccader's authors compare with on ImageNet (arXiv 1908.07644; released code of google-research/saccader). It looks
at the image once, at a fixed size, and cuts what it attends to from that look: three windows around a place, from fine
to whole, with the coordinates of every pixel as two more bands. A context step in the middle sees all three and tells
the location memory where to begin. In the steps after it only the fine window can be used to classify: of the others
the mean colour is left.

`dram` is our default: it learns to predict after every step. ``dram.reference`` follows the published code.

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
from foveal.glimpse.networks import channels_last, create_network
from foveal.glimpse.recurrent import Aggregate, GaussianPolicy, LSTMCell, RecurrentAttention, Trace
from foveal.glimpse.registry import MODELS
from foveal.host import to_device
from foveal.images.views import Views
from foveal.objectives.recurrent import RecurrentObjective
from foveal.policies import Policy

WINDOWS = 3

# ------------------------------------------------------------------------------------------------ sensor


def with_coordinates(seen: Tensor) -> Tensor:
    """(B, C, h, w) with two more bands, the row and the column of each pixel from -1 to 1."""
    h, w = seen.shape[-2:]
    line = partial(torch.linspace, -1, 1, dtype=seen.dtype, device=seen.device)
    rows, columns = torch.meshgrid(line(h), line(w), indexing="ij")
    return torch.cat([seen, torch.stack([rows, columns]).expand(len(seen), -1, -1, -1)], 1)


def windows(field: Tensor, where: Tensor, sides: Sequence[float], size: int) -> Tensor:
    """Concentric windows, resampled bilinearly; what lies outside repeats the edge.

    Args:
        field: (R, C, h, w).
        where: (R, 2) their middles, y and x from -1 to 1, the borders of the field.
        sides: of the windows, as shares of the field's.
        size: side that each is resampled to.

    Returns:
        (R, len(sides) * C, size, size), window by window.
    """
    unit = (torch.arange(size, device=field.device, dtype=where.dtype) * 2 + 1) / size - 1
    axis = to_device(torch.tensor(sides, dtype=where.dtype), where.device)[:, None] * unit
    y, x = (axis + at[:, None, None] for at in where.unbind(1))  # (R, windows, size)
    grid = torch.stack([x[:, :, None, :].expand(-1, -1, size, -1), y[..., None].expand(-1, -1, -1, size)], -1)
    exact = torch.promote_types(field.dtype, torch.float32)  # halves cannot tell places apart
    seen = F.grid_sample(
        field.to(exact), grid.flatten(1, 2).to(exact), mode="bilinear", padding_mode="border", align_corners=False
    )
    return seen.to(field.dtype).unflatten(2, (len(sides), size)).transpose(1, 2).flatten(1, 2)


def finest_only(seen: Tensor) -> Tensor:
    """Of all but the first window leave the mean of each band, without a gradient (``limit_classification_rf``)."""
    fine, coarse = seen.split([seen.shape[1] // WINDOWS, seen.shape[1] - seen.shape[1] // WINDOWS], 1)
    return torch.cat([fine, coarse.detach().mean((2, 3), keepdim=True).expand_as(coarse)], 1)


# ------------------------------------------------------------------------------------------------------------ model


@MODELS.register("dram")
class DRAM(RecurrentAttention):
    """The deep recurrent attention model on any timm backbone.

    Args:
        num_classes: classes.
        backbone: timm name of the network that sees the windows of a glimpse, stacked as bands.
        backbone_options: further keywords for `timm.create_model`.
        in_chans: bands of the images.
        image_size: side that the image is looked at with.
        base_size: side of a glimpse: of the finest window as it is cut, and of all windows after resampling.
        locations: default budget: places that are looked at after the context step.
        hidden: length of the two memories.
        sd: standard deviation of the places that are tried in training, of 1 at the image's border.
        aggregate: what is predicted: ``last``, after the last step, or ``mean``, the mean of the predictions after
            each.
        mean, std: normalisation; the backbone's if None.
        squash: squash the whole image into the look, rather than look at the square around it.
        antialias: resample with antialiasing.
        crop: look at the centred square of this share of the image's shorter side; at all of it if None.

    Raises:
        ConfigError: an unknown backbone, a glimpse that is as large as the image, or a budget of several levels.
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
        if not 0 < base_size < image_size:
            raise ConfigError(
                f"base_size={base_size} leaves no choice of places on image_size={image_size}; make it smaller"
            )
        options = backbone_options or {}
        network: Any = create_network(
            backbone, WINDOWS * (in_chans + 2), False, {"num_classes": 0, **options}, base_size
        )
        card = getattr(network, "pretrained_cfg", None) or {}
        super().__init__(
            num_classes,
            (image_size, image_size),
            per_band(mean or card.get("mean", (0.5,)), in_chans),
            per_band(std or card.get("std", (0.5,)), in_chans),
            squash=squash,
            antialias=antialias,
            crop=crop,
            aggregate=aggregate,
            locations=locations,
        )
        self.base_size = base_size
        self.sides = tuple(float(side) for side in np.trunc(np.linspace(base_size, image_size, WINDOWS)) / image_size)
        self._twin = partial(create_network, backbone, in_chans, False, {"num_classes": num_classes, **options})
        self.backbone = channels_last(network)
        self.recognise = LSTMCell(getattr(network, "head_hidden_size", None) or network.num_features, hidden)
        self.locate = LSTMCell(hidden, hidden)
        self.where = GaussianPolicy(hidden, 1 - base_size / image_size, sd)
        self.classifier = nn.Linear(hidden, num_classes)
        for layer in (self.where.emit, self.classifier):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def perceive(self, field: Tensor, where: Tensor, context: bool = False) -> Tensor:
        """Pass windows of the field (R, C + 2, h, w) around places (R, 2) through the backbone: (R, D)."""
        seen = windows(field, where, self.sides, self.base_size)
        seen = (seen if context else finest_only(seen)).contiguous(memory_format=torch.channels_last)
        network: Any = self.backbone
        return network.forward_head(network.forward_features(seen), pre_logits=True)

    def trace(self, views: Views, steps: int, policies: Sequence[Policy], draws: Draws) -> Trace:
        images, tries = len(views), len(policies)
        field = with_coordinates(self.see(views, np.arange(images), self.root(views.sizes)))
        seen = self.perceive(field, torch.zeros(images, 2, device=field.device), context=True)
        context, _ = self.recognise(seen, self.recognise.zeros(images))
        # What the context step left in the classification memory is forgotten; the location memory reads its output
        # first.
        rows = images * tries
        field, features = field.repeat(tries, 1, 1, 1), [context.repeat(tries, 1)]
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
        """``backbone``; ``head``, the classification memory and the classifier; ``location``, the other memory and the
        policy."""
        parts = {
            "backbone": [self.backbone],
            "head": [self.recognise, self.classifier],
            "location": [self.locate, self.where],
        }
        return {
            name: [p for part in those for p in part.parameters() if p.requires_grad] for name, those in parts.items()
        }

    def dense(self) -> nn.Module:
        return self._twin().to(self.mean.device)


class ReferenceDRAM(DRAM):
    """DRAM as published: only the prediction is trained, no step before it."""

    image_share = 1.0


@MODELS.register("dram.reference")
def dram(num_classes: int = 1000, **options: Any) -> ReferenceDRAM:
    """ImageNet: a 224 px image, 77 px glimpses, slim's ResNet-v2-50. 45,610,219 parameters and statistics with 1,001
    classes."""
    preset = {"crop": 224 / 246, "antialias": False}
    if options.get("squash"):
        preset.pop("crop")
    return ReferenceDRAM(num_classes, **{**preset, **options})

"""Saccader: hard attention over the windows of a BagNet.

"Saccader: Improving Accuracy of Hard Attention Models for Vision", Elsayed, Kornblith and Le, NeurIPS 2019, arXiv
1908.07644. Details follow the released TensorFlow code (google-research/saccader). The representation network is a
BagNet, whose features each see one window of the image; it gives the *what* features of every cell. The attention
network, a small convolutional network on features of the BagNet, gives the *where* features. The Saccader cell chooses
one cell at a time, and never the same one twice. The logits at the chosen cells are averaged, so the contribution of
each glimpse to the logits is exact.

Training has three stages: (1) cross-entropy of the mean over all cells; (2) the policy imitates *ordered logits*, the
cells with the highest logits of the predicted class; (3) a policy gradient trains the locations, in the released code
together with the BagNet.

The released model computes features of the whole image before it chooses, so hard attention explains the prediction but
saves no time. `saccader_separate` finds locations in a small version of the image and classifies the full-resolution
glimpses with a second network. Its cost does not depend on the size of the image.

Example:
    >>> import torch
    >>> model = Saccader(num_classes=4, backbone="test_bagnet_lowd", image_size=32, locations=(3,)).eval()
    >>> looked = model(torch.rand(1, 3, 96, 128))
    >>> looked.locations.tolist(), [g.size for g in looked.glimpses][:2]
    ([3], [(32, 32), (13, 13)])
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.classification import Classification, Glimpses
from foveal.draws import Draws
from foveal.errors import ConfigError
from foveal.glimpse.base import GlimpseClassifier, Normalised, Part, Parts, Walk, on_host, per_band
from foveal.glimpse.grid import outside, share_inside, windows
from foveal.glimpse.networks import channels_last, check_look, create_network
from foveal.host import to_device, true_indices
from foveal.images.views import Views
from foveal.layers.initialise import glorot
from foveal.objectives.objective import CrossEntropy, Objective
from foveal.objectives.rollout import Rollout
from foveal.objectives.saccader import SaccaderObjective
from foveal.policies import GREEDY, NEVER, POLICIES, CellPolicy, Policy, certain
from foveal.registry import MODELS

BARRED = 1e5
"""Penalty on the scores of barred cells: finite, and exact in float32."""

_LARGEST_SHARE = 0.5
"""Windows with a larger share of the image's side cause a warning. Windows of 77 px overlap too much at 128 px."""

_log = logging.getLogger("foveal.glimpse")


@lru_cache
def _advise(side: int, backbone: str, window: int, cells: int) -> None:
    """Warn once that windows are large, and suggest the image size with the share of the paper (77 px of 224 px)."""
    better = 8 * math.ceil(window * 224 / 77 / 8)
    smaller = next(
        (
            f", or backbone bagnet{w}_lowd, whose windows are {w} px"
            for w in (33, 17, 9)
            if w <= side * 0.4 and w < window
        ),
        "",
    )
    grid = "the one window" if cells == 1 else f"each of the {cells} x {cells} windows"
    _log.warning(
        "image_size %d: %s of %s has %d px, %.0f %% of the image's side, so glimpses overlap strongly;"
        " choose image_size %d%s",
        side,
        grid,
        backbone,
        window,
        100 * window / side,
        better,
        smaller,
    )


# ------------------------------------------------------------------------------------------------ modules


def attention_network(channels: int) -> nn.Sequential:
    """The attention network: two groups of a 1x1 and a dilated 3x3 convolution. Each group halves the number of
    channels."""
    layers: list[nn.Module] = []
    for _ in range(2):
        width = channels // 2
        for kernel, dilation in ((1, 1), (3, 2)):
            conv = nn.Conv2d(channels, width, kernel, padding=dilation * (kernel // 2), dilation=dilation, bias=False)
            layers += [conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            channels = width
    return nn.Sequential(*layers)


class SaccaderCell(nn.Module):
    """Scores the cells for the next glimpse.

    A softmax over the cells pools the mixed features. A softmax over the channels of the pooled vector gives channel
    weights. The score of a cell is the weighted sum of its channels. Barred cells are excluded from the pooling and
    cannot be chosen.

    Args:
        channels: number of channels of the mixed features.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.empty(1, channels))

    def forward(self, mixed: Tensor, barred: Tensor) -> Tensor:
        """Score cells.

        Args:
            mixed: (B, N, C) mixed features.
            barred: (B, N), 0 for free cells and at least 1 for barred cells.

        Returns:
            (B, N) scores.
        """
        penalty = BARRED * barred
        pooled = ((mixed @ self.query.T.to(mixed.dtype)).squeeze(-1) / math.sqrt(mixed.shape[-1]) - penalty).softmax(-1)
        channels = (pooled[:, None] @ mixed).softmax(-1)
        return (mixed @ channels.transpose(1, 2)).squeeze(-1) - penalty


# ------------------------------------------------------------------------------------------------ model


@dataclass
class _Seen:
    """Features of a batch: F channels of features, N cells."""

    look: Tensor  # (B, C, S, S)
    root: np.ndarray  # (B, 4)
    features: Tensor  # (B, F, h, w)
    what: Tensor  # (B, N, D)
    barred: Tensor  # (B, N), 1 for windows outside the image or mostly outside it

    def rows(self, which: np.ndarray) -> _Seen:
        """Select images by index."""
        at = to_device(which, self.what.device)
        return _Seen(self.look[at], self.root[which], self.features[at], self.what[at], self.barred[at])


@dataclass
class _Saccades:
    """T cells chosen one after another."""

    cells: Tensor  # (B, T)
    log_p: Tensor | None  # (B, T, N) of the learned policy, if computed
    log_probability: Tensor  # (B, T) of the chosen cells under the policy that chose

    def rows(self, on: Tensor) -> _Saccades:
        """Select images by index."""
        return _Saccades(self.cells[on], None if self.log_p is None else self.log_p[on], self.log_probability[on])


class SaccaderPolicy(Policy):
    """Base class of policies that only Saccader supports. They are not learned and may use the features of the
    image."""

    likelihood = certain

    def cells(self, model: Saccader, seen: _Seen, count: int, draws: Draws, purpose: str) -> tuple[Tensor, Tensor]:
        """Choose (B, count) cells, and return the log-probability of each."""
        with _without_autocast(seen.barred.device):  # half precision would change the order of similar scores
            scores = self.scores(model, seen).to(seen.barred)
        scores = scores.masked_fill(seen.barred > 0, NEVER)
        cells = GREEDY.choose(scores, count)
        return cells, certain(scores, cells)

    def scores(self, model: Saccader, seen: _Seen) -> Tensor:
        """(B, N) scores; the highest is chosen first."""
        raise NotImplementedError


@POLICIES.register
class OrderedLogits(SaccaderPolicy):
    """Cells in descending order of their logit of the predicted class."""

    name, teaches = "ordered_logits", True

    def scores(self, model: Saccader, seen: _Seen) -> Tensor:
        return model.logits_of_predicted_class(seen)


@POLICIES.register
class SobelMean(SaccaderPolicy):
    """Windows in descending order of the mean magnitude of the Sobel gradient."""

    name = "sobel_mean"

    def scores(self, model: Saccader, seen: _Seen) -> Tensor:
        return model.sobel(seen.look.to(seen.barred.dtype), variance=False)


@POLICIES.register
class SobelVariance(SaccaderPolicy):
    """Windows in descending order of the variance of the magnitude of the Sobel gradient."""

    name = "sobel_var"

    def scores(self, model: Saccader, seen: _Seen) -> Tensor:
        return model.sobel(seen.look.to(seen.barred.dtype), variance=True)


@POLICIES.register
class ReleasedRandom(SaccaderPolicy):
    """Random cells as in the released code: two uniform coordinates, rounded. Inner cells are more probable than those
    of the border, and cells may repeat."""

    name, draws = "random_released", True

    def cells(self, model: Saccader, seen: _Seen, count: int, draws: Draws, purpose: str) -> tuple[Tensor, Tensor]:
        side, device = model.side, seen.barred.device
        place = torch.from_numpy(draws.uniform(f"places {purpose}", count, 2) * 2 - 1)
        y, x = ((place + 1) * (side - 1) / 2).round().long().unbind(-1)
        inner = torch.full((side,), 1 / max(side - 1, 1), dtype=torch.float64)
        inner[[0, -1]] /= 2 if side > 1 else 1
        return to_device(y * side + x, device), to_device((inner[y] * inner[x]).log(), device, seen.barred.dtype)


@POLICIES.register
class ReleasedCentre(SaccaderPolicy):
    """The centre cell at every step, as in the released code."""

    name = "centre_released"

    def cells(self, model: Saccader, seen: _Seen, count: int, draws: Draws, purpose: str) -> tuple[Tensor, Tensor]:
        cell = round((model.side - 1) / 2) * (model.side + 1)
        cells = torch.full((len(seen.what), count), cell, device=seen.barred.device)
        return cells, certain(seen.barred, cells)


@MODELS.register("saccader")
class Saccader(GlimpseClassifier):
    """Saccader on any BagNet.

    Policies in addition to those of all models with a grid: ``ordered_logits`` chooses the cells with the highest
    logits of the predicted class; ``sobel_mean`` and ``sobel_var`` the windows with the highest mean or variance of the
    Sobel gradient; ``random_released`` draws two uniform coordinates and rounds them, so inner cells are more probable
    and cells may repeat; ``centre_released`` repeats the centre cell. The last two follow the released code.

    Without locations the prediction is that of the BagNet, the mean over all cells.

    Args:
        num_classes: number of classes.
        backbone: name of a network of `foveal.backbones.bagnet`.
        backbone_options: further keywords for the backbone.
        pretrained: weights to load into the backbone.
        in_chans: number of bands of the images.
        image_size: side in pixels that the image is resampled to; the backbone's input size if None. At least twice the
            side of the backbone's window is recommended.
        locations: default number of glimpses.
        released_boxes: report boxes by the formula of the released code, which is off by up to 3 px, instead of the
            windows that the features see.
        mean, std: normalisation; the backbone's if None.
        squash: resample the whole image to a square, instead of the square around it.
        antialias: resample with antialiasing.
        crop: look at the centred square whose side is this share of the image's shorter side.
        fit_grid: for images that are not square, offer only windows that contain at least half as much of the image as
            the best window. False offers all windows that overlap the image, as in earlier versions.
        scaled: multiply the logits of glimpses by a learned positive number. The logits of chosen cells are several
            times larger than their mean over all cells, so without it the probabilities after a few glimpses are far
            too certain. It does not change the order of classes. The released model has no such number.

    Raises:
        ConfigError: the backbone is not a BagNet, ``image_size`` is smaller than its window, or ``locations`` exceeds
            the number of cells.
    """

    objective: type[Any] = SaccaderObjective
    formerly: ClassVar[dict[str, Any]] = {"fit_grid": False, "scaled": False}
    policy_kinds = (CellPolicy, SaccaderPolicy)

    def __init__(
        self,
        num_classes: int = 1000,
        *,
        backbone: str = "bagnet77_lowd",
        backbone_options: dict[str, Any] | None = None,
        pretrained: bool | str = False,
        in_chans: int = 3,
        image_size: int | None = None,
        locations: Sequence[int] = (6,),
        released_boxes: bool = False,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        squash: bool = False,
        antialias: bool = True,
        crop: float | None = None,
        fit_grid: bool = True,
        scaled: bool = True,
    ) -> None:
        check_look(in_chans, image_size=image_size)
        network = create_network(
            backbone, in_chans, pretrained, {"num_classes": num_classes, **(backbone_options or {})}
        )
        from foveal.backbones.bagnet import BagNet

        if not isinstance(network, BagNet):
            raise ConfigError(f"`backbone` {backbone}: is not a BagNet; use one, such as bagnet77_lowd")
        config = getattr(network, "pretrained_cfg", None) or {}
        side = image_size or config.get("input_size", (3, 224, 224))[-1]
        mean, std = mean or config.get("mean", (0.5,)), std or config.get("std", (0.5,))
        super().__init__(
            num_classes,
            (side, side),
            per_band(mean, in_chans),
            per_band(std, in_chans),
            squash=squash,
            antialias=antialias,
            crop=crop,
        )
        if side < network.receptive_field:
            raise ConfigError(
                f"`image_size` {side}: {backbone} needs at least its window of {network.receptive_field} px;"
                " choose a larger one"
            )
        self.released_boxes = released_boxes
        self.fit_grid = fit_grid
        self.side = network.grid(side)
        if network.receptive_field > _LARGEST_SHARE * side:
            _advise(side, backbone, network.receptive_field, self.side)
        self.locations = self.resolve_locations(locations)
        self.glimpse_size = (network.receptive_field, network.receptive_field)
        self.backbone = network
        self.attention = attention_network(network.feature_channels)
        where, what = network.feature_channels // 4, network.num_features
        self.mix = nn.Conv2d(where + what, what, 1)
        self.cell = SaccaderCell(what)
        for module in (self.attention, self.mix, self.cell):
            module.apply(glorot)
        nn.init.xavier_uniform_(self.cell.query)
        self.scaled = scaled
        self.log_scale = nn.Parameter(torch.zeros(())) if scaled else None
        self.unused_weights = () if scaled else ("log_scale",)
        self.to(memory_format=torch.channels_last)

    @property
    def most_cells(self) -> int:
        return self.side**2

    # ---- one look at the image

    def perceive(self, views: Views) -> _Seen:
        """Look at each image once and compute the features of its cells."""
        root = self.root(views.sizes)
        look = self.see(views, np.arange(len(views)), root)
        features = self.backbone.forward_features(look)
        what = self.backbone.reduce(features).flatten(2).transpose(1, 2)
        windows = self._windows(root)
        share = share_inside(windows, views.sizes)
        barred = share < share.max(1, keepdims=True) / 2 if self.fit_grid else outside(windows, views.sizes)
        return _Seen(
            look, root, features, what, to_device(barred, what.device, torch.promote_types(what.dtype, torch.float32))
        )

    def _mixed(self, seen: _Seen, detached: bool) -> Tensor:
        """Mix *where* and *what* features: (B, N, C), in float32 or better.

        Args:
            seen: see `perceive`.
            detached: detach the features of the BagNet.
        """
        features, what = seen.features, seen.what.transpose(1, 2).unflatten(2, (self.side, self.side))
        if detached:
            features, what = features.detach(), what.detach()
        mixed = self.mix(torch.cat([self.attention(features), what], dim=1))
        return mixed.flatten(2).transpose(1, 2).to(seen.barred.dtype)

    def _windows(self, root: np.ndarray) -> np.ndarray:
        """Windows of all cells, row by row: (B, N, 4) in full-resolution pixels, for first looks at the boxes ``root``
        (B, 4)."""
        return windows(root, self._starts(), self.backbone.receptive_field, self.size[0])

    def _starts(self) -> np.ndarray:
        """(side,) first pixel of the windows along an axis of the look."""
        window, size = self.backbone.receptive_field, self.size[0]
        if self.released_boxes:
            share, place = 1 - window / size, np.linspace(-1, 1, self.side)
            return np.trunc((size * (share * place + 3) - window) / 2) - size
        return self.backbone.jump * np.arange(self.side, dtype=np.float64)

    # ---- the saccades

    def saccade(
        self, seen: _Seen, policy: Policy, count: int, draws: Draws, purpose: str = "", mixed: Tensor | None = None
    ) -> _Saccades:
        """Choose ``count`` cells.

        Args:
            seen: see `perceive`.
            policy: policy that chooses.
            count: number of glimpses.
            draws: random numbers.
            purpose: key of the random numbers, different for each rollout of the same images.
            mixed: mixed features. If given, log-probabilities of the learned policy are computed for every policy. If
                None, they are computed only where the learned policy chooses.
        """
        if not count:
            return _Saccades(
                torch.empty(len(seen.what), 0, dtype=torch.long, device=seen.what.device), None, seen.barred[:, :0]
            )
        given, log_probability = self._cells_without_learning(seen, policy, count, draws, purpose)
        if given is None and mixed is None:
            mixed = self._mixed(seen, detached=False)
        if mixed is None:
            return _Saccades(cast(Tensor, given), None, log_probability)
        noise = None
        if policy.sampled:
            noise = to_device(draws.gumbel(f"saccades {purpose}", count, mixed.shape[1]), mixed.device, mixed.dtype)
        barred, cells, log_p = seen.barred, [], []
        with _without_autocast(mixed.device):
            for t in range(count):
                log_p.append(self.cell(mixed, barred).log_softmax(-1))
                scores = log_p[-1].detach() if noise is None else log_p[-1].detach() + noise[:, t]
                cells.append(scores.argmax(-1, keepdim=True) if given is None else given[:, t : t + 1])
                # Visited cells get a higher penalty than cells outside the image.
                barred = barred.scatter(1, cells[-1], 2.0)
        steps, chosen = torch.stack(log_p, 1), torch.cat(cells, 1)
        return _Saccades(
            chosen, steps, steps.gather(-1, chosen[..., None]).squeeze(-1) if given is None else log_probability
        )

    def _cells_without_learning(
        self, seen: _Seen, policy: Policy, count: int, draws: Draws, purpose: str
    ) -> tuple[Tensor | None, Tensor]:
        """Cells (B, count) and their log-probabilities, for policies that are not learned; no cells for learned
        policies."""
        if policy.learned:
            return None, seen.barred.new_zeros(len(seen.what), count)
        if isinstance(policy, SaccaderPolicy):
            return policy.cells(self, seen, count, draws, purpose)
        scores, noise = seen.barred.new_zeros(len(seen.what), self.side**2).masked_fill(seen.barred > 0, NEVER), None
        if policy.draws:
            noise = to_device(draws.gumbel(f"saccades {purpose}", self.side**2), scores.device, scores.dtype)
        cells = cast(CellPolicy, policy).choose(scores, count, noise)
        return cells, (policy.likelihood or certain)(scores, cells)

    def logits_of_predicted_class(self, seen: _Seen) -> Tensor:
        """(B, N) logit of each cell for the class that the mean over all cells predicts."""
        head = cast(nn.Linear, self.backbone.fc)
        weight, what = head.weight.detach().to(seen.barred.dtype), seen.what.detach().to(seen.barred.dtype)
        bias = None if head.bias is None else head.bias.detach().to(what.dtype)
        predicted = F.linear(what.mean(1), weight, bias).argmax(-1)
        return (what @ weight[predicted][..., None]).squeeze(-1)  # the bias does not change the order

    def sobel(self, look: Tensor, variance: bool) -> Tensor:
        """(B, N) mean, or variance, of the magnitude of the Sobel gradient in each window."""
        grey = look.new_tensor((0.2989, 0.587, 0.114) if look.shape[1] == 3 else (1 / look.shape[1],) * look.shape[1])
        grey = (look * grey[:, None, None]).sum(1, keepdim=True)
        edge = look.new_tensor([[-1, -2, -1], [0, 0, 0], [1, 2, 1]])
        slopes = F.conv2d(F.pad(grey, (1, 1, 1, 1), mode="reflect"), torch.stack([edge, edge.T])[:, None])
        energy = slopes.square().sum(1, keepdim=True)
        window, jump = self.backbone.receptive_field, self.backbone.jump
        mean = F.avg_pool2d(energy.sqrt(), window, jump)
        if variance:
            mean = (F.avg_pool2d(energy, window, jump) - mean.square()) * (window**2 / (window**2 - 1))
        return mean.flatten(1)

    # ---- classification

    def read(self, views: Views, seen: _Seen, which: np.ndarray, cells: Tensor) -> Tensor:
        """Classify glimpses: logits (R, T, classes) of cells (R, T) of the images ``which`` (R,)."""
        logits = self.backbone.fc(seen.what[to_device(which, cells.device)[:, None], cells])
        return logits if self.log_scale is None else logits * self.log_scale.exp()

    def classify(
        self, views: Views, locations: tuple[int, ...], policy: Policy, draws: Draws, contributions: bool
    ) -> Classification:
        count, every_image, seen = sum(locations), np.arange(len(views)), self.perceive(views)
        chosen = self.saccade(seen, policy, count, draws)
        alone = self.read(views, seen, every_image, chosen.cells) if count else self._whole(seen)[:, None]
        return self._classified(seen.root, chosen.cells, chosen.log_probability, alone, contributions, views.bytes_read)

    def classify_in_turns(self, views: Views, locations: tuple[int, ...], at_once: int, contributions: bool) -> Walk:
        """See `GlimpseClassifier.walk`. All cells are chosen after the first look, at the same cost as one cell. The
        looks of `SaccaderSeparate` are taken a few at a time."""
        count = sum(locations)
        which, done, seen = np.arange(len(views)), [], self.perceive(views)
        whole = self._whole(seen)
        chosen, alone = self.saccade(seen, GREEDY, 0, Draws(0, 0, which)), whole[:, None][:, :0]

        def classified(rows: np.ndarray, on: Tensor) -> tuple[np.ndarray, Classification]:
            looks = alone.shape[1]
            cells, chance = chosen.cells[on, :looks], chosen.log_probability[on, :looks]
            own = alone[on] if looks else whole[to_device(rows, whole.device), None]
            return rows, self._classified(seen.root[rows], cells, chance, own, contributions)

        for start in range(0, count, at_once):
            going = yield which, alone.mean(1) if start else whole
            on = true_indices(going, whole.device)
            if not going.all():
                done.append(classified(which[~going], true_indices(~going, whole.device)))
            which, alone = which[going], alone[on]
            if not len(which):
                break
            chosen = chosen.rows(on) if start else self.saccade(seen.rows(which), GREEDY, count, Draws(0, 0, which))
            alone = torch.cat([alone, self.read(views, seen, which, chosen.cells[:, start : start + at_once])], 1)
        if len(which) or not done:
            done.append(classified(which, torch.arange(len(which), device=whole.device)))
        return Classification.merge(done, views.bytes_read)

    def _whole(self, seen: _Seen) -> Tensor:
        """(B, classes) logits of the BagNet: the mean over all cells."""
        return self.backbone.fc(seen.what.mean(1))

    def _classified(
        self,
        root: np.ndarray,
        cells: Tensor,
        log_p: Tensor,
        alone: Tensor,
        contributions: bool,
        read: np.ndarray | None = None,
    ) -> Classification:
        """Average the logits of glimpses.

        Args:
            root: (R, 4) boxes of the first looks.
            cells: (R, T) chosen cells.
            log_p: (R, T) their log-probabilities.
            alone: (R, T, classes) logits of each glimpse, or (R, 1, classes) of the first look if T is 0. The first
                look contributes nothing otherwise.
            contributions: return the contribution of each glimpse.
            read: bytes read for each image.
        """
        images, count = cells.shape
        share = alone / alone.shape[1] if contributions else None
        if share is not None and count:
            share = F.pad(share, (0, 0, 1, 0))
        glimpses = Glimpses(
            image=np.repeat(np.arange(images), count + 1),
            box=np.concatenate([root[:, None], self.boxes(root, cells)], axis=1).reshape(-1, 4),
            size=np.tile(np.array([self.size, *[self.glimpse_size] * count]), (images, 1)),
            level=np.tile([1] + [2] * count, images),
            parent=np.tile([-1] + [0] * count, images),
            probability=F.pad(log_p.exp(), (1, 0), value=1.0).flatten(),
            contribution=None if share is None else share.flatten(0, 1),
        )
        return Classification(alone.mean(1), glimpses, self.class_names, bytes_read=read, task=self.task)

    def boxes(self, root: np.ndarray, cells: Tensor) -> np.ndarray:
        """Windows of the chosen cells.

        Args:
            root: (R, 4) boxes of the first looks.
            cells: (R, T) cells.

        Returns:
            (R, T, 4) in full-resolution pixels.
        """
        return np.take_along_axis(self._windows(root), on_host(cells)[..., None], axis=1)

    def roll_out(self, views: Views, locations: tuple[int, ...], policies: list[Policy], draws: Draws) -> list[Rollout]:
        """One rollout for each policy.

        The policy ``exhaustive`` is the BagNet: the features of all cells are averaged and classified. Beside a sampled
        policy its glimpses are all cells, whose logits have no gradient. If a policy is a teacher (``ordered_logits``),
        the scores have no gradient into the features.
        """
        count, seen = sum(locations), self.perceive(views)
        needs_scores = not all(policy.every_cell for policy in policies)
        if needs_scores and not count:
            raise ConfigError(
                "`locations` 0: training needs at least one glimpse; give 1 or more, or use the policy exhaustive"
            )
        mixed = self._mixed(seen, detached=any(policy.teaches for policy in policies)) if needs_scores else None
        rollouts = []
        for number, policy in enumerate(policies):
            if policy.every_cell:
                whole = self._whole(seen)
                rollout = Rollout(whole, whole[:, None], level=np.array([1]), policy=policy)
                if any(other.sampled for other in policies):
                    rollout = self._with_every_cell(rollout, views, seen)
                rollouts.append(rollout)
                continue
            chosen = self.saccade(seen, policy, count, draws, str(number), mixed)
            rollouts.append(self._rollout(self.read(views, seen, np.arange(len(views)), chosen.cells), chosen, policy))
        return rollouts

    def _with_every_cell(self, rollout: Rollout, views: Views, seen: _Seen) -> Rollout:
        """The rollout with the logits (B, N, classes) of each cell as a glimpse, without gradient."""
        every = torch.arange(self.most_cells, device=seen.what.device).expand(len(seen.what), -1)
        with torch.no_grad():
            alone = self.read(views, seen, np.arange(len(views)), every)
        # Glimpses are scaled, their mean over all cells is not.
        return replace(rollout, glimpse_logits=alone, level=np.full(self.most_cells, 2), additive=False)

    def _rollout(self, alone: Tensor, chosen: _Saccades, policy: Policy) -> Rollout:
        """The rollout of glimpses with logits (B, T, classes), which are averaged."""
        scores = cast(Tensor, chosen.log_p)
        return Rollout(
            logits=alone.mean(1),
            glimpse_logits=alone,
            level=np.full(alone.shape[1], 2),
            parent=np.zeros(alone.shape[1], dtype=int),
            log_probability=scores.gather(-1, chosen.cells[..., None]).squeeze(-1),
            scores=[scores],
            cells=chosen.cells,
            policy=policy,
        )

    # ---- parts for export

    def parts(self) -> Parts:
        """``perceive``: a look to the features and the mixed features of its cells, and the logits of the BagNet.
        ``score``: mixed features and barred cells to the log-probabilities of the next cell. ``read``: features of
        cells to their logits."""
        cells, what = self.most_cells, self.backbone.num_features
        mixed = self.mean.new_zeros(2, cells, what)
        scored = {"mixed": mixed, "barred": mixed[..., 0]}
        parts = {
            "perceive": Part(
                Normalised(self, _Perceive(self)), {"look": self.example_looks()}, ("what", "mixed", "whole")
            ),
            "score": Part(_Score(self.cell), scored, ("log_p",)),
            **self._reading(),
        }
        options = {
            "starts": self._starts().tolist(),
            "window": self.backbone.receptive_field,
            "fit_grid": self.fit_grid,
            "glimpse_size": list(self.glimpse_size),
            "separate": "glimpse" in parts,
        }
        return Parts("saccader", parts, options)

    def _reading(self) -> dict[str, Part]:
        """The part that classifies glimpses."""
        what = {"what": self.mean.new_zeros(2, self.backbone.num_features)}
        return {"read": Part(_Read(self), what, ("logits",))}

    # ---- parameters and the dense baseline

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """``backbone``, the BagNet and its classifier; ``location``, attention network, mixing layer, cell and the
        scale of the logits of glimpses; other modules by name."""
        groups: dict[str, list[nn.Parameter]] = {"backbone": [], "location": []}
        for name, part in self.named_children():
            group = "location" if name in ("attention", "mix", "cell") else name
            groups.setdefault(group, []).extend(p for p in part.parameters() if p.requires_grad)
        if self.log_scale is not None and self.log_scale.requires_grad:
            groups["location"].append(self.log_scale)
        return groups

    def dense(self) -> nn.Module:
        return self.backbone


def _without_autocast(device: torch.device) -> torch.autocast:
    """A context without autocast."""
    return torch.autocast(device.type if torch.amp.is_autocast_available(device.type) else "cpu", enabled=False)


# ------------------------------------------------------------------------------------------------ a separate classifier


@MODELS.register("saccader_separate")
class SaccaderSeparate(Saccader):
    """Saccader with a second network that classifies full-resolution glimpses (Saccader-NASNet in the paper).

    The BagNet finds locations in a small version of the image. Each glimpse is cut from the full-resolution image,
    resampled to the input size of the classifier and classified. The logits are averaged. Training usually starts from
    the weights of a trained `Saccader` (``init_from``). Without locations the prediction is that of the BagNet.

    Args:
        num_classes: number of classes.
        classifier: timm name of the network that classifies glimpses.
        classifier_options: further keywords for the classifier.
        pretrained: True loads the weights that timm downloads into the classifier; a path loads that file.
        glimpse_size: side in pixels that a glimpse is resampled to; the classifier's input size if None.
        locator_pretrained: weights to load into the BagNet.
        options: see `Saccader`.

    Raises:
        ConfigError: see `Saccader`.
    """

    formerly: ClassVar[dict[str, Any]] = {"fit_grid": False}
    gain: Tensor
    shift: Tensor

    def __init__(
        self,
        num_classes: int = 1000,
        *,
        classifier: str = "resnet50",
        classifier_options: dict[str, Any] | None = None,
        pretrained: bool | str = False,
        glimpse_size: int | None = None,
        locator_pretrained: bool | str = False,
        backbone: str = "bagnet77_lowd",
        backbone_options: dict[str, Any] | None = None,
        in_chans: int = 3,
        image_size: int | None = None,
        locations: Sequence[int] = (6,),
        released_boxes: bool = False,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        squash: bool = False,
        antialias: bool = True,
        crop: float | None = None,
        fit_grid: bool = True,
    ) -> None:
        check_look(in_chans, glimpse_size=glimpse_size)
        super().__init__(
            num_classes,
            backbone=backbone,
            backbone_options=backbone_options,
            pretrained=locator_pretrained,
            in_chans=in_chans,
            image_size=image_size,
            locations=locations,
            released_boxes=released_boxes,
            mean=mean,
            std=std,
            squash=squash,
            antialias=antialias,
            crop=crop,
            fit_grid=fit_grid,
            scaled=False,  # the classifier learns from glimpses
        )
        options = {"num_classes": num_classes, **(classifier_options or {})}
        network = create_network(classifier, in_chans, pretrained, options, glimpse_size)
        config = getattr(network, "pretrained_cfg", None) or {}
        side = glimpse_size or config.get("input_size", (3, 224, 224))[-1]
        self.glimpse_size = (side, side)
        self.classifier = channels_last(network)
        # Convert from the normalisation of the BagNet to that of the classifier.
        own_mean, own_std = (torch.tensor(per_band(config.get(key, (0.5,)), in_chans)) for key in ("mean", "std"))
        self.register_buffer("gain", (self.std / own_std)[:, None, None], persistent=False)
        self.register_buffer("shift", ((self.mean - own_mean) / own_std)[:, None, None], persistent=False)

    def read(self, views: Views, seen: _Seen, which: np.ndarray, cells: Tensor) -> Tensor:
        # In training, batch norms need all glimpses at once. In evaluation, chunks of 16 cells limit the memory.
        return torch.cat(
            [
                self._classify_glimpses(views, seen, which, part)
                for part in cells.split(cells.shape[1] if self.training else 16, 1)
            ],
            1,
        )

    def _classify_glimpses(self, views: Views, seen: _Seen, which: np.ndarray, cells: Tensor) -> Tensor:
        boxes = self.boxes(seen.root[which], cells)
        glimpses = self.see(views, np.repeat(which, boxes.shape[1]), boxes.reshape(-1, 4), self.glimpse_size)
        return self.classifier(torch.addcmul(self.shift, glimpses, self.gain)).unflatten(0, (len(which), -1))

    def _reading(self) -> dict[str, Part]:
        network = Normalised(self, _Glimpse(self))
        return {"glimpse": Part(network, {"look": self.example_looks(self.glimpse_size)}, ("logits",))}

    def _with_every_cell(self, rollout: Rollout, views: Views, seen: _Seen) -> Rollout:
        return rollout  # the classifier would have to look at every cell

    def default_objective(self) -> Objective:
        return SaccaderObjective(credit="image")

    def dense(self) -> nn.Module:
        return self.classifier


# ------------------------------------------------------------------------------------------------ parts for export


class _Perceive(nn.Module):
    """A look, see `Saccader.parts`."""

    def __init__(self, model: Saccader) -> None:
        super().__init__()
        self.model = model

    def forward(self, look: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        model = self.model
        features = model.backbone.forward_features(look)
        what = model.backbone.reduce(features).flatten(2).transpose(1, 2)
        seen = _Seen(look, np.zeros(0), features, what, what.float())
        return what, model._mixed(seen, detached=False), model._whole(seen)


class _Score(nn.Module):
    """Log-probabilities of the next cell."""

    def __init__(self, cell: SaccaderCell) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, mixed: Tensor, barred: Tensor) -> tuple[Tensor]:
        return (self.cell(mixed, barred).log_softmax(-1),)


class _Read(nn.Module):
    """Logits of cells from their features (R, D)."""

    def __init__(self, model: Saccader) -> None:
        super().__init__()
        self.fc, self.log_scale = model.backbone.fc, model.log_scale

    def forward(self, what: Tensor) -> tuple[Tensor]:
        logits = self.fc(what)
        return (logits if self.log_scale is None else logits * self.log_scale.exp(),)


class _Glimpse(nn.Module):
    """Logits of glimpses, from looks with the normalisation of the BagNet."""

    gain: Tensor
    shift: Tensor

    def __init__(self, model: SaccaderSeparate) -> None:
        super().__init__()
        self.classifier = model.classifier
        self.register_buffer("gain", model.gain)
        self.register_buffer("shift", model.shift)

    def forward(self, look: Tensor) -> Tensor:
        return self.classifier(torch.addcmul(self.shift, look, self.gain))


# ------------------------------------------------------------------------------------------------ presets


class ReferenceSaccader(Saccader):
    """Saccader as released. Its three stages are separate runs, see the recipes."""

    def default_objective(self) -> Objective:
        return SaccaderObjective(pretraining=0.0, credit="image")


_RELEASED_OPTIONS: dict[str, Any] = {
    "backbone_options": {"downsample_bn": "main"},
    "released_boxes": True,
    "antialias": False,
    "crop": 224 / 246,
    "fit_grid": False,
}


@MODELS.register("saccader_bagnet77.reference")
def saccader_bagnet77(num_classes: int = 1000, *, locations: Sequence[int] = (6,), **options: Any) -> ReferenceSaccader:
    """ImageNet: BagNet-77 with a bottleneck, 224 px, 19 x 19 cells. 35,583,913 parameters and running statistics with
    1,001 classes."""
    preset = {**_RELEASED_OPTIONS, "scaled": False}
    return ReferenceSaccader(num_classes, locations=locations, **{**preset, **options})


class ReferenceSaccaderSeparate(SaccaderSeparate):
    """The separate classifier as published: fine-tuned on the glimpses of a frozen Saccader."""

    objective = CrossEntropy

    def default_objective(self) -> Objective:
        return CrossEntropy(trains=("classifier",))


@MODELS.register("saccader_nasnetalarge.reference")
def saccader_nasnetalarge(
    num_classes: int = 1000, *, locations: Sequence[int] = (6,), **options: Any
) -> ReferenceSaccaderSeparate:
    """ImageNet: locations at 224 px, classified by NASNet-A (large) from glimpses of 113 px, which is about their size
    in images of 331 px."""
    preset = {**_RELEASED_OPTIONS, "classifier": "nasnetalarge", "glimpse_size": 113}
    return ReferenceSaccaderSeparate(num_classes, locations=locations, **{**preset, **options})

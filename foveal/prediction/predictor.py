"""`Predictor`: loads a model, opens images as the training images were opened, and classifies them.

`classify`, `foveal.predict`, explanations and evaluation use it.

Example:
    >>> import torch
    >>> from foveal.models import create_model
    >>> predictor = Predictor(create_model("test_resnet", num_classes=2))
    >>> predictor.classify([torch.rand(3, 80, 60), torch.rand(3, 40, 40)]).logits.shape
    torch.Size([2, 2])
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from foveal.choices import PRECISIONS
from foveal.classification import Classification
from foveal.draws import Draws
from foveal.errors import ConfigError, ImageError, RunError
from foveal.glimpse.base import GlimpseClassifier
from foveal.images import (
    ImageViews,
    Pyramid,
    TensorViews,
    View,
    Views,
    as_batch,
    as_image,
    check_type,
    each,
    is_one,
    is_path,
    open_image,
    squash,
)
from foveal.models import as_classifier
from foveal.policies import Policy
from foveal.prediction.checks import check_whole
from foveal.prediction.device import autocast, find_device
from foveal.prediction.early_exit import Exit, look_until
from foveal.prediction.folding import fold_norms
from foveal.runs import Run, load
from foveal.runtime.adapter import Exported
from foveal.runtime.card import is_exported

Model = GlimpseClassifier | nn.Module | Run | str | Path
"""A classifier, a dense network, a run folder, or the path of an exported model."""


class Predictor:
    """A model for prediction.

    Args:
        model: a classifier; a dense network, which looks once at the whole image; or a folder, of a run or of an
            exported model. A model is put into eval mode.
        device: see `find_device`; the device of the model if None.
        precision: see `autocast`.

    Attributes:
        model: the classifier.
        device: its device.
        precision: the precision.

    Raises:
        ConfigError: ``model`` is not a model, or the device does not exist.
        RunError: the run folder cannot be loaded, or weights are NaN or infinite.
    """

    def __init__(self, model: Model, *, device: str | torch.device | None = None, precision: str = "32") -> None:
        where = None if device is None else find_device(device)
        if isinstance(model, str | Path) and is_exported(model):
            model = load(model)
        run = Run(model) if isinstance(model, str | Path) else model if isinstance(model, Run) else None
        classifier = as_classifier(model) if run is None else run.load_model()
        if where is not None and isinstance(classifier, Exported):
            if where.type != "cpu" and device != "auto":
                raise ConfigError(f"`device` {device}: exported models run on the CPU; leave it out")
            where = None
        if isinstance(classifier, Exported) and PRECISIONS.get(precision) is not None:
            raise ConfigError(f"`precision` {precision}: an exported model has that of its export; leave it out")
        _check_finite(classifier, "the model" if run is None else run.path)
        self.model: GlimpseClassifier = (classifier if where is None else classifier.to(where)).eval()
        self.device = self.model.mean.device
        self.precision = precision

    def folded(self) -> Predictor:
        """A faster predictor with a copy of the model, whose batch norms are folded into convolutions. Results agree
        within rounding errors.
        """
        other = copy.copy(self)
        other.model = fold_norms(self.model)
        return other

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the logits; empty if the model has none."""
        return self.model.class_names

    def locations(
        self, locations: int | Sequence[int] | None = None, policy: str | Policy | None = None
    ) -> tuple[int, ...]:
        """Check locations and policy.

        Returns:
            The locations, the model's own if None; see `GlimpseClassifier.resolve_locations`.

        Raises:
            ConfigError: the model does not support them.
        """
        self.model.check_policies([policy or self.model.usual_policy])
        return self.model.resolve_locations(locations)

    def open(
        self,
        image: Any,
        name: str = "image",
        mask: str | Path | None = None,
        headers: str | Path | None = None,
    ) -> Pyramid:
        """Open an image as the training images were opened: with the same bands, value range and, if any, size.

        Args:
            image: a path, or an image in memory, see `foveal.images.as_image`.
            name: name of an image in memory, for errors.
            mask: mask of a file, see `foveal.images.masks`. It is for models with ``searches``.
            headers: index of the headers of remote images, see `foveal.images.open_image`.

        Raises:
            ConfigError: the model does not search inside masks, or the image is not a file.
            ImageError: see `foveal.images.open_image` and `foveal.images.as_image`.
        """
        if mask is not None and not (self.model.searches and is_path(image)):
            what = (
                "only those of files are read" if self.model.searches else f"the model {self.model.label} has no scan"
            )
            raise ConfigError(f"`mask` {mask}: cannot be used, {what}; leave it out")
        value_range = getattr(self.model, "value_range", None)
        taken: dict[str, Any] = {"channels": self.model.channels, "value_range": value_range}
        if is_path(image):
            opened = open_image(image, mask=mask, headers=headers, **taken)
        else:
            opened = as_image(image, name=name, **taken)
        check_type(opened, value_range)
        side = getattr(self.model, "image_size", None)
        if side is None:
            return opened
        with opened if is_path(image) else nullcontext():
            return squash(opened, side, getattr(self.model, "shorter_side", None))

    def __call__(
        self,
        views: Views,
        locations: int | Sequence[int] | None = None,
        policy: str | Policy | None = None,
        draws: Draws | None = None,
        until: Exit | None = None,
        contributions: bool = True,
        on_turn: Callable[[Tensor], bool] | None = None,
    ) -> Classification:
        """Classify open images.

        Args:
            views: the images. ``views.errors`` lists those that could not be read; their results are invalid.
            locations, policy, draws, contributions: see `GlimpseClassifier.forward`.
            until: early exit. Its locations replace ``locations``.
            on_turn: for learned looks, see `look_until`.
        """
        with torch.inference_mode(), autocast(self.precision, self.device):
            if until is not None:
                how = until.threshold, until.locations, until.at_once
                return look_until(self.model, views, *how, contributions, on_turn)
            if on_turn is not None:
                return look_until(self.model, views, math.inf, locations, 1, contributions, on_turn)
            return self.model(views, locations, policy or self.model.usual_policy, draws, contributions)

    def classify(
        self,
        images: Any,
        *,
        locations: int | Sequence[int] | None = None,
        policy: str | Policy | None = None,
        batch_size: int = 16,
    ) -> Classification:
        """Classify one image or several; see the function `classify` for arguments and errors."""
        check_whole("batch_size", batch_size)
        one = not isinstance(images, Views) and is_one(images)
        parts = []
        for views in self._batches(images, batch_size):
            parts.append(self(views, locations, policy))
            for reason in views.errors.values():
                raise ImageError(reason)
        if not parts:
            raise ImageError("there is no image to classify; give at least one")
        return parts[0][0] if one else parts[0] if len(parts) == 1 else Classification.cat(parts)

    def _batches(self, images: Any, batch_size: int) -> Iterator[Views]:
        unchanged = getattr(self.model, "value_range", None) is None and getattr(self.model, "image_size", None) is None
        if isinstance(images, Views):
            if len(images):
                yield images
        elif isinstance(images, Tensor) and unchanged:
            for part in as_batch(images, self.model.channels).split(batch_size):
                part = part.to(self.device)
                if part.dtype == torch.uint16 and part.device.type != "cpu":
                    part = part.float() / 65535  # few CUDA kernels support uint16
                if len(part):
                    yield TensorViews(part)
        else:
            named = each(images)
            while some := list(islice(named, batch_size)):
                opened = [image if isinstance(image, View) else self.open(image, name) for name, image in some]
                yield ImageViews(opened)
                for (_, image), view in zip(some, opened, strict=True):
                    if is_path(image) and isinstance(view, Pyramid):
                        view.close()


def _check_finite(model: GlimpseClassifier, name: Any) -> None:
    weights = {key: tensor for key, tensor in model.state_dict().items() if tensor.is_floating_point()}
    # The sum of a tensor with NaN or infinity is not finite. Other sums may overflow, so the tensors decide then.
    if not weights or bool(torch.stack([tensor.sum().float() for tensor in weights.values()]).isfinite().all()):
        return
    for key, tensor in weights.items():
        if not bool(tensor.isfinite().all()):
            raise RunError(
                f"{name}: the weights {key} are not all finite numbers, so it cannot classify; train it again"
            )


def classify(
    model: Model,
    images: Any,
    *,
    locations: int | Sequence[int] | None = None,
    policy: str | Policy | None = None,
    batch_size: int = 16,
    device: str | torch.device | None = None,
) -> Classification:
    """Classify one image or several.

    Equal pixels give equal results, whether they come from a file, a Pillow image, an array or a tensor. For repeated
    calls use a `Predictor`, which checks the weights once.

    Args:
        model: a classifier; a dense network, which looks once at the whole image; or a run folder.
        images: an image, a list of images, or a (B, C, H, W) tensor. An image is a path, a Pillow image, a NumPy array
            (H, W) or (H, W, C), a tensor (C, H, W), or a `foveal.images.Pyramid`. Pixels are uint8, uint16, or floats
            from 0 to 1; for a model that was trained with a value range, they are values in that range. See
            `foveal.images.inputs`.
        locations: looks per grid at each level; the model's own if None.
        policy: how locations are selected, see `GlimpseClassifier.forward`; if None, ``greedy``, or ``random`` where
            training found the learned policy worse.
        batch_size: images per batch.
        device: see `find_device`; the device of the model if None.

    Returns:
        The classification of the one image, or of all of them.

    Raises:
        ImageError: an image cannot be opened or read, or does not fit the model. `foveal.predict` continues instead.
        ConfigError: ``model`` is not a model, the device does not exist, or another argument is invalid.
        RunError: the run folder cannot be loaded, or weights are NaN or infinite.
    """
    was_training = isinstance(model, nn.Module) and model.training
    try:
        predictor = Predictor(model, device=device)
        return predictor.classify(images, locations=locations, policy=policy, batch_size=batch_size)
    finally:
        if isinstance(model, nn.Module):
            model.train(was_training)

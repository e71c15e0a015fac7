"""Base class of the classifiers that choose where to look.

A classifier reads boxes of images through `Views` and normalises them. It returns a `Classification` for prediction and
`Rollout`s for training. `WholeImage` wraps a dense network as a classifier with one look at the whole image.

Example:
    >>> import timm, torch
    >>> dense = WholeImage(timm.create_model("test_resnet", num_classes=5), image_size=64).eval()
    >>> dense(torch.rand(2, 3, 100, 80)).logits.shape
    torch.Size([2, 5])
"""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Collection, Generator, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from foveal.classification import Classification, Glimpses
from foveal.draws import Draws
from foveal.errors import ConfigError, ImageError
from foveal.glimpse.grid import centred_square, enclosing_square, whole_image
from foveal.glimpse.networks import channels_last, check_look
from foveal.host import check_memory
from foveal.images.views import Look, Views, as_views
from foveal.layers import attention_maps
from foveal.objectives.objective import CrossEntropy, Objective
from foveal.objectives.rollout import Rollout
from foveal.policies import GREEDY, POLICIES, CellPolicy, Policy, find_policy
from foveal.registry import MODELS
from foveal.signatures import typed
from foveal.tasks import MULTICLASS, Task

Walk = Generator[tuple[np.ndarray, Tensor], np.ndarray, Classification]
"""See `GlimpseClassifier.walk`."""


@dataclass(frozen=True)
class Part:
    """A network of a model, as it is exported.

    Attributes:
        network: takes and returns tensors whose first dimension is the batch, of any size. Looks are not normalised:
            the network does it.
        inputs: examples by name, for a batch of 2, in the order of the network's arguments.
        outputs: names of what it returns, a tuple of tensors.
        free: number of first dimensions that may have any size, the same for all inputs.
    """

    network: nn.Module
    inputs: dict[str, Tensor]
    outputs: tuple[str, ...]
    free: int = 1


@dataclass(frozen=True)
class Parts:
    """What a model consists of, for `foveal.export`.

    Attributes:
        loop: name of the loop of `foveal.runtime.loops` that uses the parts.
        parts: the networks by name.
        options: constants of the loop, plain values.
    """

    loop: str
    parts: dict[str, Part]
    options: dict[str, Any] = field(default_factory=dict)


class Normalised(nn.Module):
    """Normalises its first argument, looks (N, C, h, w) in [0, 1], and passes it on with the others.

    Args:
        model: the classifier with the normalisation.
        network: takes normalised looks; a tensor that it returns becomes a tuple.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: GlimpseClassifier, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", model.mean[:, None, None].clone())
        self.register_buffer("std", model.std[:, None, None].clone())

    def forward(self, look: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        seen = self.network((look - self.mean) / self.std, *others)
        return (seen,) if isinstance(seen, Tensor) else seen


def whole_locations(locations: int | Sequence[int]) -> tuple[int, ...]:
    """Locations as a tuple. A number stands for one grid.

    Raises:
        ConfigError: they are not whole numbers.
    """
    each = tuple(locations) if isinstance(locations, Iterable) and not isinstance(locations, str) else (locations,)
    try:
        if any(isinstance(k, bool) for k in each):
            raise TypeError
        return tuple(operator.index(k) for k in cast(Any, each))
    except TypeError:
        raise ConfigError(
            f"`locations` {locations}: are not whole numbers; give looks per level, such as 2 or (2, 1)"
        ) from None


class _Policies:
    """Names of all registered policies whose class is in ``policy_kinds`` of the model."""

    def __get__(self, model: GlimpseClassifier | None, kind: type[GlimpseClassifier]) -> tuple[str, ...]:
        return tuple(name for name in POLICIES if issubclass(POLICIES.get(name), kind.policy_kinds))


class GlimpseClassifier(nn.Module, ABC):
    """Base class of classifiers that look at boxes of images.

    Subclasses implement `classify`, `roll_out` and `dense`.

    Args:
        num_classes: number of classes.
        size: (height, width) that every look is resampled to.
        mean, std: normalisation per channel, for values in [0, 1].
        squash: resample the whole image to ``size`` for the first look, instead of the centred square around it.
        antialias: resample with antialiasing.
        crop: in evaluation mode, the first look is the centred square whose side is this share of the image's shorter
            side. In training mode it is the whole image, squashed. ImageNet's usual recipe is 0.875 with the
            augmentation ``inception``.

    Raises:
        ConfigError: ``crop`` is not in (0, 1], or is combined with ``squash``.

    Attributes:
        locations: default number of looks per grid at each processing level; empty for models without locations.
        policies: names of the supported policies, which are those of a class in ``policy_kinds``.
        rollout_policies: names of further policies that only `rollouts` supports.
        usual_policy: policy of calls that name none; ``random`` if training found the learned one worse.
        most_levels: maximum number of levels with locations; None for any number.
        most_cells: number of cells of each grid; None for any number of locations.
        searches: whether the model looks inside the masks of images only.
        teachable: whether rollouts have the boxes of the cells of all grids, so that another model can teach the
            policy.
        not_exported: why `parts` fails, as the end of a sentence, for models that do not define it.
        objective: class of the default objective.
        formerly: options that were added in later versions, with the values that reproduce earlier versions. The model
            has an attribute of the same name for each option. Run folders store it.
        unused_weights: names of weights that the model leaves out when it starts from those of another model.
        class_names: set when the model is trained or loaded.
        task: what targets are, with the thresholds of decisions; set when the model is trained or loaded.
        spec: ``name`` and options with which `foveal.models.create_classifier` creates the same model; empty if the
            model was created in another way.
        source: the run folder from which it was loaded, or None.
    """

    locations: tuple[int, ...] = ()
    policy_kinds: ClassVar[tuple[type[Policy], ...]] = (CellPolicy,)
    policies: tuple[str, ...] = cast(Any, _Policies())
    rollout_policies: tuple[str, ...] = ()
    usual_policy: str = GREEDY.name
    most_levels: int | None = 1
    searches: bool = False
    teachable: ClassVar[bool] = False
    not_exported: ClassVar[str] = "it defines no `parts`; use the model itself"
    objective: type[Any] = CrossEntropy
    formerly: ClassVar[dict[str, Any]] = {}
    unused_weights: tuple[str, ...] = ()
    mean: Tensor
    std: Tensor

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        typed(cls, ConfigError)

    def __init__(
        self,
        num_classes: int,
        size: tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
        *,
        squash: bool = False,
        antialias: bool = True,
        crop: float | None = None,
    ) -> None:
        super().__init__()
        if crop is not None and (squash or not 0 < crop <= 1):
            raise ConfigError(
                f"`crop` {crop} with `squash` {squash}: cannot be done; give a share above 0 and up to 1, without "
                "`squash`"
            )
        self.num_classes = num_classes
        self.size = size
        self.squash = squash
        self.antialias = antialias
        self.crop = crop
        self.class_names: tuple[str, ...] = ()
        self.task: Task = MULTICLASS
        self.spec: dict[str, Any] = {}
        self.source: str | None = None
        self.register_buffer("mean", torch.tensor([*map(float, mean)]), persistent=False)
        self.register_buffer("std", torch.tensor([*map(float, std)]), persistent=False)
        # A tuple, because data-loader workers and threads read it without a copy from the device.
        self._fill = tuple(map(float, mean))

    @property
    def channels(self) -> int:
        return len(self._fill)

    @property
    def label(self) -> str:
        """Name of the model in messages: as in ``spec``, or that of its class in `foveal.registry.MODELS`."""
        return self.spec.get("name") or MODELS.name_of(type(self)) or type(self).__name__

    @property
    def most_cells(self) -> int | None:
        return None

    def root(self, sizes: np.ndarray) -> np.ndarray:
        """Box of the first look: sizes (B, 2) of images to boxes (B, 4)."""
        if self.squash or (self.crop is not None and self.training):
            return whole_image(sizes)
        return enclosing_square(sizes) if self.crop is None else centred_square(sizes, self.crop)

    def first_looks(self, size: tuple[int, int]) -> list[Look]:
        """Looks that do not depend on a forward pass, which data loaders read in advance."""
        return [Look(tuple(self.root(np.array([size]))[0]), self.size, self._fill, self.antialias)]

    def see(self, views: Views, which: np.ndarray, boxes: np.ndarray, size: tuple[int, int] | None = None) -> Tensor:
        """Read and normalise boxes of images.

        The result is in channels-last memory format, which halves the time of convolutions on CPUs and GPUs.

        Args:
            views: the images.
            which: (N,) index of the image of each box.
            boxes: (N, 4) boxes.
            size: (height, width) to resample to; ``size`` of the model if None.

        Returns:
            (N, C, height, width), 0 outside the image.

        Raises:
            ImageError: the number of bands of the images differs from that of the model.
            ConfigError: the looks are larger than the memory of this machine.
        """
        if views.channels != self.channels:
            raise ImageError(
                f"images: have {views.channels} bands where the model takes {self.channels};"
                f" open them with channels={self.channels}, or let foveal.classify do it"
            )
        if not self.mean.is_meta:
            check_memory(len(which), self.channels, size or self.size)
        fill = torch.tensor(self._fill)
        seen = views.look(which, boxes, size or self.size, fill=fill, antialias=self.antialias)
        seen = seen.to(self.mean.device, self.mean.dtype, non_blocking=True)
        seen.sub_(self.mean[:, None, None]).div_(self.std[:, None, None])
        return seen.contiguous(memory_format=torch.channels_last)

    def parts(self) -> Parts:
        """The networks that the model consists of, for `foveal.export`.

        Raises:
            ConfigError: the model cannot be exported.
        """
        raise ConfigError(f"model {self.label}: cannot be exported, because {self.not_exported}")

    def example_looks(self, size: tuple[int, int] | None = None) -> Tensor:
        """Two looks (2, C, height, width) in [0, 1], as examples of inputs of parts."""
        generator = torch.Generator().manual_seed(0)
        return torch.rand(2, self.channels, *(size or self.size), generator=generator).to(self.mean)

    # ---- forward pass and rollouts

    def forward(
        self,
        images: Views | Tensor,
        locations: int | Sequence[int] | None = None,
        policy: str | Policy | None = None,
        draws: Draws | None = None,
        contributions: bool = True,
    ) -> Classification:
        """Classify images.

        Args:
            images: views, or a (B, C, H, W) tensor in [0, 1].
            locations: number of looks per grid at each level; the model's default if None; () for the first look only.
            policy: policy that selects locations, or its name, see ``policies``; ``usual_policy`` if None.
            draws: random numbers for policies that need them; drawn with seed 0 if None.
            contributions: return the contribution of each glimpse to the logits, and the attention maps.

        Raises:
            ConfigError: the model does not support the locations or the policy.
        """
        views, (policy,) = as_views(images), self._find_policies([policy or self.usual_policy])
        draws = draws or Draws(0, 0, np.arange(len(views)))
        return self.classify(views, self.resolve_locations(locations, policy), policy, draws, contributions)

    @abstractmethod
    def classify(
        self, views: Views, locations: tuple[int, ...], policy: Policy, draws: Draws, contributions: bool
    ) -> Classification:
        """Classify images; see `forward`, which checks the arguments."""

    def walk(
        self,
        images: Views | Tensor,
        locations: int | Sequence[int] | None = None,
        at_once: int = 1,
        contributions: bool = True,
    ) -> Walk:
        """Classify greedily, a few looks at a time. The caller decides before each step which images get more looks.

        Args:
            images: see `forward`.
            locations: maximum number of looks per grid at each level.
            at_once: cells of the first grid to look at in one step.
            contributions: see `forward`.

        Yields:
            Indices (n,) of the images that still get looks and their current logits (n, classes): after the first look,
            and before every further step. The generator expects (n,) bool in return, True for images that get more
            looks. Models that cannot stop early yield nothing.

        Returns:
            The classification of all images.
        """
        locations = self.resolve_locations(locations)
        return (yield from self.classify_in_turns(as_views(images), locations, at_once, contributions))

    def classify_in_turns(self, views: Views, locations: tuple[int, ...], at_once: int, contributions: bool) -> Walk:
        """See `walk`. Models that can stop early override this."""
        yield from ()
        return self(views, locations, GREEDY, contributions=contributions)

    def rollouts(
        self,
        images: Views | Tensor,
        policies: Sequence[str | Policy],
        draws: Draws,
        locations: int | Sequence[int] | None = None,
    ) -> list[Rollout]:
        """One rollout of the batch for each policy, with gradients. For the arguments see `forward`."""
        locations, found = self.resolve_locations(locations), self._find_policies(policies, self.rollout_policies)
        return self.roll_out(as_views(images), locations, found, draws)

    def weighted_looks(self, views: Views) -> tuple[np.ndarray, Tensor]:
        """Boxes that matter for the class, with weights. Models that have them can teach the policies of others, see
        `foveal.training.teacher`.

        Returns:
            Boxes (B, N, 4), and weights (B, N) that sum to 1.
        """
        raise NotImplementedError

    def push_to_hub(self, repo: str, **options: Any) -> str:
        """Publish the model on the Hugging Face Hub; see `foveal.card.push` for options and errors.

        Args:
            repo: ``owner/name``.

        Returns:
            The address of the repository.
        """
        return import_module("foveal.card").push(self, repo, **options)  # by name, because it is built on run folders

    @abstractmethod
    def roll_out(self, views: Views, locations: tuple[int, ...], policies: list[Policy], draws: Draws) -> list[Rollout]:
        """One rollout for each policy; see `rollouts`, which checks the arguments."""

    def resolve_locations(self, locations: int | Sequence[int] | None, policy: Policy = GREEDY) -> tuple[int, ...]:
        """Check locations, and cut them at the first zero.

        Args:
            locations: looks per grid at each level, or a number for the first alone; the model's own if None.
            policy: how locations are selected. Policies with ``every_cell`` take all cells of each of these levels.

        Returns:
            Positive numbers, one for each level that is looked at.

        Raises:
            ConfigError: they are not whole numbers; or the model has fewer levels, or fewer cells per grid.
        """
        asked = self.locations if locations is None else whole_locations(locations)
        taken = asked[: asked.index(0)] if 0 in asked else asked
        levels, most = self.most_levels, self.most_cells
        if (levels is not None and len(taken) > levels) or not all(1 <= k <= (most or k) for k in taken):
            raise ConfigError(f"`locations` {','.join(map(str, asked))}: {self._takes()}")
        return (most,) * len(taken) if policy.every_cell and most else taken

    def _takes(self) -> str:
        """The locations that the model takes, as the end of an error message."""
        if self.most_levels == 0:
            return "this model looks once, at the whole image; leave `locations` out"
        if self.most_levels == 1 and self.most_cells:
            return f"this model has one grid, of {self.most_cells} cells; give one number, 0 to {self.most_cells}"
        if not self.most_cells:
            return f"{self.label} looks at one place after another; give one number"
        return f"each level can look at 1 to {self.most_cells} of its cells; choose such numbers"

    def check_policies(self, policies: Sequence[str | Policy]) -> None:
        """Check that the model can select locations by these policies.

        Raises:
            ConfigError: the model does not support one of them, or looks once, at the whole image.
        """
        for policy in policies:
            if self.most_levels == 0 and str(policy) != GREEDY.name:
                raise ConfigError(f"`policy` {policy}: this model looks once, at the whole image; leave `policy` out")
        self._find_policies(policies)

    def _find_policies(self, policies: Sequence[str | Policy], more: Collection[str] = ()) -> list[Policy]:
        """The policies with these names. ``more`` are names allowed in addition to ``policies`` of the model."""
        known = (*self.policies, *more)
        for policy in policies:
            if not isinstance(policy, self.policy_kinds) and str(policy) not in known:
                raise ConfigError(
                    f"`policy` {policy}: {self.label} does not know it; use one of {', '.join(self.policies)}"
                )
        return [find_policy(policy) for policy in policies]

    def default_objective(self) -> Objective:
        """The objective that the model is trained with by default."""
        return self.objective()

    def compile_backbone(self) -> None:
        """Let `torch.compile` compile the backbone when it is used next.

        Raises:
            ConfigError: there is no backbone.
        """
        network: Any = getattr(self, "backbone", None)
        if network is None:
            raise ConfigError(f"compile: {self.label} has no backbone; leave it out")
        network.forward_features = torch.compile(network.forward_features)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Trainable parameters by group, for separate learning rates and weight decay."""
        return {"head": [p for p in self.parameters() if p.requires_grad]}

    @abstractmethod
    def dense(self) -> nn.Module:
        """The backbone with a linear classifier, as a baseline without glimpses."""


class WholeImage(GlimpseClassifier):
    """A dense network as a classifier with one look at the whole image.

    Args:
        network: maps (B, C, h, w) normalised images to (B, classes) logits.
        image_size: side, or (height, width), that the image is resampled to; the network's input size if None.
        mean, std: normalisation per band; that of the network if None, or 0.5 if it has none.
        squash: resample the whole image to ``image_size``, instead of the centred square around it.
        antialias: resample with antialiasing.
        crop: in evaluation mode, look at the centred square whose side is this share of the image's shorter side. In
            training mode look at the whole image, squashed. ImageNet's usual recipe is 0.875 with the augmentation
            ``inception``. The whole image in both modes if None.

    Raises:
        ConfigError: the network has no classes. Without an attribute ``num_classes``, the network is run on an empty
            image to count them.
    """

    def __init__(
        self,
        network: nn.Module,
        image_size: int | tuple[int, int] | None = None,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        squash: bool = False,
        antialias: bool = True,
        crop: float | None = None,
    ) -> None:
        config = getattr(network, "pretrained_cfg", None) or {}
        channels = getattr(network, "in_chans", None) or (config.get("input_size") or (3,))[0]
        check_look(channels, image_size=image_size)
        size = image_size or tuple(config.get("input_size", (3, 224, 224))[1:])
        size = (size, size) if isinstance(size, int) else tuple(size)
        classes = getattr(network, "num_classes", None)
        if type(self) is not WholeImage:
            classes = classes or 1000  # subclasses set their own
        if classes == 0:
            raise ConfigError(
                f"model: {type(network).__name__} has num_classes 0 and gives features; give a network that returns "
                "(images, classes) logits"
            )
        super().__init__(
            classes or _count_classes(network, channels, size),
            size,
            per_band(mean or config.get("mean", (0.5,)), channels),
            per_band(std or config.get("std", (0.5,)), channels),
            squash=squash,
            antialias=antialias,
            crop=crop,
        )
        self.network = channels_last(network)

    def check_output(self) -> None:
        """Run the network on an empty image, and check that it gives one logit per class. Subclasses, which may
        get logits in another way, are not checked.

        Raises:
            ConfigError: it cannot be run, or gives something else.
        """
        if type(self) is not WholeImage:
            return
        if (found := _count_classes(self.network, self.channels, self.size)) != self.num_classes:
            raise ConfigError(
                f"model: {type(self.network).__name__} has num_classes {self.num_classes}, but gives an output of "
                f"shape (1, {found}) for one image; give a network that returns (images, classes) logits"
            )

    @property
    def most_levels(self) -> int:  # type: ignore[override]
        return len(self.locations)

    def classify(
        self, views: Views, locations: tuple[int, ...], policy: Policy, draws: Draws, contributions: bool
    ) -> Classification:
        which, box = np.arange(len(views)), self.root(views.sizes)
        with ExitStack() as stack:
            maps = stack.enter_context(attention_maps(self.network)) if contributions else {}
            logits = self.network(self.see(views, which, box))
        looks = Glimpses(
            image=which,
            box=box,
            size=np.array(self.size),
            level=np.ones_like(which),
            parent=np.full_like(which, -1),
            probability=torch.ones(len(which)),
            contribution=logits if contributions else None,
        )
        return Classification(logits, looks, self.class_names, maps, views.bytes_read, self.task)

    def parts(self) -> Parts:
        if type(self) is not WholeImage:
            return super().parts()
        part = Part(Normalised(self, self.network), {"look": self.example_looks()}, ("logits",))
        return Parts("whole", {"network": part})

    def roll_out(self, views: Views, locations: tuple[int, ...], policies: list[Policy], draws: Draws) -> list[Rollout]:
        logits = self.network(self.see(views, np.arange(len(views)), self.root(views.sizes)))
        return [Rollout(logits, logits[:, None], level=np.array([1]))]

    def compile_backbone(self) -> None:
        self.network.compile()

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """``head``, ``backbone``, and the groups of the network's attribute ``groups`` (group name to submodule)."""
        head = getattr(self.network, "get_classifier", lambda: None)()
        parts = {name: self.network.get_submodule(part) for name, part in getattr(self.network, "groups", {}).items()}
        heads = head if isinstance(head, tuple | list) else (head,)  # distilled networks have two
        if all(isinstance(part, nn.Module) for part in heads):
            parts["head"] = nn.ModuleList(heads)
        group_of = {id(p): name for name, part in parts.items() for p in part.parameters()}
        groups: dict[str, list[nn.Parameter]] = {"head": [], "backbone": [], **{name: [] for name in parts}}
        for p in self.parameters():
            if p.requires_grad:
                groups[group_of.get(id(p), "backbone")].append(p)
        return groups

    def dense(self) -> nn.Module:
        return self.network


def _count_classes(network: nn.Module, channels: int, size: tuple[int, int]) -> int:
    """Number of logits that a network gives for an empty image.

    Raises:
        ConfigError: it cannot be run, or gives something else.
    """
    name = type(network).__name__
    weight = next((p for p in network.parameters() if p.is_floating_point()), torch.zeros(0))
    image = torch.zeros(1, channels, *size, dtype=weight.dtype, device=weight.device)
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=()):
            output = network(image)
    except Exception as error:
        shown = f"{channels} x {size[0]} x {size[1]}"
        remedy = "give the `image_size` and bands that it takes"
        if getattr(network, "num_classes", None) is None:
            remedy = f"set num_classes on the network, or {remedy}"
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        raise ConfigError(f"model: {name} cannot classify an image of {shown} ({reason}); {remedy}") from error
    finally:
        for module in training:
            module.training = True
    if not isinstance(output, Tensor):
        given = f"of the type {type(output).__name__}"
    elif output.ndim != 2 or len(output) != 1:
        given = f"of shape {tuple(output.shape)} for one image"
    else:
        return output.shape[1]
    raise ConfigError(f"model: {name} gives an output {given}; give a network that returns (images, classes) logits")


def on_host(cells: Tensor) -> np.ndarray:
    """Copy chosen cells to the host, for the geometry. Tensors on the meta device become zeros."""
    return np.zeros(cells.shape, dtype=np.int64) if cells.is_meta else cells.cpu().numpy()


def per_band(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """One value per channel: ``values``, or their mean where their number differs from that of the channels."""
    return tuple(values) if len(values) == channels else (sum(values) / len(values),) * channels

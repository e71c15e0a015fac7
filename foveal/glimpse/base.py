"""What every classifier that looks has in common.

A classifier is handed `Views` and asks for boxes; it normalises what it sees; it returns a `Classification` when it
predicts and `Rollout`s when it is trained. A dense network fits the same contract: it looks once, at the whole image
(`WholeImage`).

Example:
    >>> import timm, torch
    >>> dense = WholeImage(timm.create_model("test_resnet", num_classes=5), image_size=64).eval()
    >>> dense(torch.rand(2, 3, 100, 80)).logits.shape
    torch.Size([2, 5])
"""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Collection, Generator, Sequence
from contextlib import ExitStack
from types import ModuleType
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from foveal.classification import Classification, Glimpses
from foveal.draws import Draws
from foveal.errors import ConfigError, ImageError
from foveal.images.views import Look, Views, as_views
from foveal.importing import fast_imports
from foveal.layers import attention_maps
from foveal.objectives.objective import CrossEntropy, Objective
from foveal.objectives.rollout import Rollout
from foveal.policies import GREEDY, POLICIES, CellPolicy, Policy, find_policy
from foveal.registry import UnknownName

Walk = Generator[tuple[np.ndarray, Tensor], np.ndarray, Classification]
"""See `GlimpseClassifier.walk`."""


def enclosing_square(sizes: np.ndarray) -> np.ndarray:
    """(B, 4) the centred square around each image of ``sizes`` (B, 2), at whole pixels."""
    sizes = np.asarray(sizes, dtype=np.float64)
    side = sizes.max(1, keepdims=True)
    first = np.floor((sizes - side) / 2)
    return np.concatenate([first, first + side], axis=1)


def whole_image(sizes: np.ndarray) -> np.ndarray:
    """(B, 4) the box of each whole image; resampling it to a square squashes what is not square."""
    sizes = np.asarray(sizes, dtype=np.float64)
    return np.concatenate([np.zeros_like(sizes), sizes], axis=1)


def centred_square(sizes: np.ndarray, share: float) -> np.ndarray:
    """(B, 4) the centred square of a share of each image's shorter side."""
    sizes = np.asarray(sizes, dtype=np.float64)
    half = share / 2 * sizes.min(1, keepdims=True)
    return np.concatenate([sizes / 2 - half, sizes / 2 + half], axis=1)


class _Policies:
    """Names of the registered policies whose class is in ``policy_kinds`` of the model."""

    def __get__(self, model: GlimpseClassifier | None, kind: type[GlimpseClassifier]) -> tuple[str, ...]:
        return tuple(name for name in POLICIES if issubclass(POLICIES.get(name), kind.policy_kinds))


class GlimpseClassifier(nn.Module, ABC):
    """A classifier that looks at boxes of images. A model says how it does three things: `classify`, `roll_out` and
    `dense`.

    Args:
        num_classes: classes.
        size: (height, width) that every look is resampled to.
        mean, std: normalisation, per channel, of values in [0, 1].
        squash: the first look is the whole image, squashed to ``size``, instead of the centred square around it.
        antialias: resample with antialiasing.
        crop: the first look is the centred square of this share of the image's shorter side, and in training mode all
            of what augmentation left, squashed: ImageNet's usual recipe, with 0.875 and the augmentation ``inception``.

    Raises:
        ConfigError: ``crop`` is not a share, or ``squash`` is asked for as well.

    Attributes:
        locations: default budget, looks per grid at each processing level; empty for models that choose nothing.
        policies: names of the policies that the model knows: those of a kind in ``policy_kinds``.
        rollout_policies: names of further ones that only `rollouts` knows.
        most_levels: how many levels of locations there can be; None for any number.
        most_cells: how many locations each grid has; None for any number.
        objective: kind of objective that it is trained with unless told otherwise.
        formerly: options that earlier versions did not have, with the values that describe what models did then. The
            model has an attribute of the same name for each, which run folders store.
        class_names: set when trained or loaded.
        spec: ``name`` and options that `foveal.models.create_classifier` makes the same model of; empty where it was
            made in another way.
    """

    locations: tuple[int, ...] = ()
    policy_kinds: ClassVar[tuple[type[Policy], ...]] = (CellPolicy,)
    policies: tuple[str, ...] = cast(Any, _Policies())
    rollout_policies: tuple[str, ...] = ()
    most_levels: int | None = 1
    objective: type[Any] = CrossEntropy
    formerly: ClassVar[dict[str, Any]] = {}
    mean: Tensor
    std: Tensor

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
                f"crop={crop} with squash={squash} cannot be done; give a crop above 0 and up to 1, without squash"
            )
        self.num_classes = num_classes
        self.size = size
        self.squash = squash
        self.antialias = antialias
        self.crop = crop
        self.class_names: tuple[str, ...] = ()
        self.spec: dict[str, Any] = {}
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.register_buffer("std", torch.tensor(std), persistent=False)
        # Looks run in data-loader workers and threads; a tuple saves them a transfer from the device.
        self._fill = tuple(map(float, mean))

    @property
    def channels(self) -> int:
        return len(self._fill)

    @property
    def most_cells(self) -> int | None:
        return None

    def root(self, sizes: np.ndarray) -> np.ndarray:
        """(B, 4) box of the first look at images of ``sizes`` (B, 2)."""
        if self.squash or (self.crop is not None and self.training):
            return whole_image(sizes)
        return enclosing_square(sizes) if self.crop is None else centred_square(sizes, self.crop)

    def first_looks(self, size: tuple[int, int]) -> list[Look]:
        """Looks that do not depend on a forward pass. Data loaders read them ahead."""
        return [Look(tuple(self.root(np.array([size]))[0]), self.size, self._fill, self.antialias)]

    def see(self, views: Views, which: np.ndarray, boxes: np.ndarray, size: tuple[int, int] | None = None) -> Tensor:
        """Look at boxes and normalise: (N, C, height, width), 0 outside the image; at the model's ``size`` unless told
        otherwise.

        Channels come last in memory: convolutions take half the time so, on a CPU and on a GPU.

        Raises:
            ImageError: the images have another number of bands than the model.
        """
        if views.channels != self.channels:
            raise ImageError(
                f"images: have {views.channels} bands where the model takes {self.channels};"
                f" open them with channels={self.channels}, or let foveal.classify do it"
            )
        fill = torch.tensor(self._fill)
        seen = views.look(which, boxes, size or self.size, fill=fill, antialias=self.antialias)
        seen = seen.to(self.mean.device, self.mean.dtype, non_blocking=True)
        seen.sub_(self.mean[:, None, None]).div_(self.std[:, None, None])
        return seen.contiguous(memory_format=torch.channels_last)

    # ---- the interface, and what each model implements

    def forward(
        self,
        images: Views | Tensor,
        locations: Sequence[int] | None = None,
        policy: str | Policy = GREEDY,
        draws: Draws | None = None,
        contributions: bool = True,
    ) -> Classification:
        """Classify.

        Args:
            images: views, or a (B, C, H, W) tensor in [0, 1].
            locations: budget, looks per grid at each level; the model's own if None; () is the first look only.
            policy: how locations are selected: one of ``policies`` or its name.
            draws: randomness for policies that need it; a fixed seed if None.
            contributions: say what each glimpse added to the logits, and keep the maps of attention layers; False
                spares that.

        Raises:
            ConfigError: a budget that cannot be met, or a policy that the model does not know.
        """
        views, (policy,) = as_views(images), self._find_policies([policy])
        draws = draws or Draws(0, 0, np.arange(len(views)))
        return self.classify(views, self.resolve_locations(locations, policy), policy, draws, contributions)

    @abstractmethod
    def classify(
        self, views: Views, budget: tuple[int, ...], policy: Policy, draws: Draws, contributions: bool
    ) -> Classification:
        """Classify. The arguments of `forward` have been checked."""

    def walk(
        self,
        images: Views | Tensor,
        locations: Sequence[int] | None = None,
        at_once: int = 1,
        contributions: bool = True,
    ) -> Walk:
        """Classify greedily, a few looks at a time; whoever drives this says which images are worth looking at further.

        Args:
            images: see `forward`.
            locations: the most looks to take.
            at_once: cells of the first grid to look into before asking again.
            contributions: see `forward`.

        Yields:
            Which images are looked at still, (n,) int, and their logits so far, (n, classes); first after the first
            look, last before the last looks. It wants to be sent (n,) bool: which of them go on. Models that cannot
            stop on the way yield nothing.

        Returns:
            The classification of all images, each with the looks that it got.
        """
        locations = self.resolve_locations(locations)
        return (yield from self.classify_in_turns(as_views(images), locations, at_once, contributions))

    def classify_in_turns(self, views: Views, budget: tuple[int, ...], at_once: int, contributions: bool) -> Walk:
        """See `walk`. Override it in a model that can stop early."""
        yield from ()
        return self(views, budget, contributions=contributions)

    def rollouts(
        self,
        images: Views | Tensor,
        policies: Sequence[str | Policy],
        draws: Draws,
        locations: Sequence[int] | None = None,
    ) -> list[Rollout]:
        """One rollout of the batch for each policy, with gradients."""
        locations, found = self.resolve_locations(locations), self._find_policies(policies, self.rollout_policies)
        return self.roll_out(as_views(images), locations, found, draws)

    @abstractmethod
    def roll_out(self, views: Views, budget: tuple[int, ...], policies: list[Policy], draws: Draws) -> list[Rollout]:
        """One rollout for each policy. The arguments of `rollouts` have been checked."""

    def resolve_locations(self, locations: Sequence[int] | None, policy: Policy = GREEDY) -> tuple[int, ...]:
        """Check locations, and cut them at the first zero.

        Args:
            locations: looks per grid at each level; the model's own if None.
            policy: how locations are selected. Policies with ``every_cell`` take all cells of each of these levels.

        Returns:
            Positive numbers, one for each level that is looked at.

        Raises:
            ConfigError: the model has fewer levels, or fewer cells per grid.
        """
        asked = self.locations if locations is None else tuple(int(k) for k in locations)
        taken = asked[: asked.index(0)] if 0 in asked else asked
        levels, most = self.most_levels, self.most_cells
        if (levels is not None and len(taken) > levels) or not all(1 <= k <= (most or k) for k in taken):
            raise ConfigError(f"locations {','.join(map(str, asked))}: {self._takes()}")
        return (most,) * len(taken) if policy.every_cell and most else taken

    def _takes(self) -> str:
        """The locations that the model takes, as the end of an error message."""
        if self.most_levels == 0:
            return "this model looks once, at the whole image; leave locations out"
        if self.most_levels == 1 and self.most_cells:
            return f"this model has one grid, of {self.most_cells} cells; give one number, 0 to {self.most_cells}"
        if not self.most_cells:
            return f"{type(self).__name__} looks at one place after another; give one number"
        return f"each level can look at 1 to {self.most_cells} of its cells; choose such numbers"

    def check_policies(self, policies: Sequence[str | Policy]) -> None:
        """Check that the model can select locations by these policies.

        Raises:
            ConfigError: the model does not support one of them, or looks once, at the whole image.
        """
        for policy in policies:
            if self.most_levels == 0 and str(policy) != GREEDY.name:
                raise ConfigError(f"policy {policy}: this model looks once, at the whole image; leave policy out")
        self._find_policies(policies)

    def _find_policies(self, policies: Sequence[str | Policy], more: Collection[str] = ()) -> list[Policy]:
        """The policies with these names. ``more`` are names allowed in addition to ``policies`` of the model."""
        known = (*self.policies, *more)
        for policy in policies:
            if not isinstance(policy, self.policy_kinds) and str(policy) not in known:
                raise ConfigError(
                    f"policy {policy}: {type(self).__name__} does not know it; use one of {', '.join(self.policies)}"
                )
        return [find_policy(policy) for policy in policies]

    def default_objective(self) -> Objective:
        """The objective that this model is trained with by default."""
        return self.objective()

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters by group name, for learning rates and weight decay of their own."""
        return {"head": [p for p in self.parameters() if p.requires_grad]}

    @abstractmethod
    def dense(self) -> nn.Module:
        """The backbone with a linear classifier, without glimpses, as a baseline."""


class WholeImage(GlimpseClassifier):
    """A dense network as a classifier that looks once, at the whole image.

    Args:
        network: (B, C, h, w) normalised images to (B, classes) logits, as timm's models do.
        image_size: side, or (height, width), that the whole image is resampled to; the network's own if None.
        mean, std: normalisation, per band; the network's own if None, or 0.5 where it has none.
        squash: squash the whole image to ``size``, instead of the centred square around it.
        antialias: resample with antialiasing.
        crop: look at the centred square of this share of the image's shorter side, and in training mode at all of what
            augmentation
            left, squashed: ImageNet's usual recipe, with 0.875 and the augmentation ``inception``. The whole image if
                None.
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
        card = getattr(network, "pretrained_cfg", None) or {}
        channels = getattr(network, "in_chans", None) or (card.get("input_size") or (3,))[0]
        size = image_size or tuple(card.get("input_size", (3, 224, 224))[1:])
        classes = getattr(network, "num_classes", None) or 1000
        super().__init__(
            classes,
            (size, size) if isinstance(size, int) else tuple(size),
            per_band(mean or card.get("mean", (0.5,)), channels),
            per_band(std or card.get("std", (0.5,)), channels),
            squash=squash,
            antialias=antialias,
            crop=crop,
        )
        self.network = channels_last(network)

    @property
    def most_levels(self) -> int:  # type: ignore[override]
        return len(self.locations)

    def classify(
        self, views: Views, budget: tuple[int, ...], policy: Policy, draws: Draws, contributions: bool
    ) -> Classification:
        which, box = np.arange(len(views)), self.root(views.sizes)
        with ExitStack() as asked:
            maps = asked.enter_context(attention_maps(self.network)) if contributions else {}
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
        return Classification(logits, looks, self.class_names, maps, views.bytes_read)

    def roll_out(self, views: Views, budget: tuple[int, ...], policies: list[Policy], draws: Draws) -> list[Rollout]:
        logits = self.network(self.see(views, np.arange(len(views)), self.root(views.sizes)))
        return [Rollout(logits, logits[:, None], level=np.array([1]))]

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """``head``, ``backbone``, and parts of the network that its attribute ``groups`` names, as group to
        submodule."""
        head = getattr(self.network, "get_classifier", lambda: None)()
        parts = {name: self.network.get_submodule(part) for name, part in getattr(self.network, "groups", {}).items()}
        if isinstance(head, nn.Module):
            parts["head"] = head
        group_of = {id(p): name for name, part in parts.items() for p in part.parameters()}
        groups: dict[str, list[nn.Parameter]] = {"head": [], "backbone": [], **{name: [] for name in parts}}
        for p in self.parameters():
            if p.requires_grad:
                groups[group_of.get(id(p), "backbone")].append(p)
        return groups

    def dense(self) -> nn.Module:
        return self.network


def networks() -> ModuleType:
    """timm, with which our networks are registered. Importing it takes longer than importing torch: ask when a network
    is needed."""
    with fast_imports():
        import timm

        import foveal.backbones  # noqa: F401  (registers ours)
    return timm


def create_network(
    name: str, in_chans: int, pretrained: bool | str, options: dict[str, Any], size: int | None = None
) -> nn.Module:
    """A network of timm's or ours for a model that looks.

    Args:
        name: timm name.
        in_chans: bands of its input.
        pretrained: load timm's pretrained weights, or those of this file.
        options: further keywords for `timm.create_model`.
        size: side of its input; its own if None.

    Raises:
        ConfigError: an unknown name, or a size that it does not take.
    """
    check_network(name, f"backbone {name}", "timm knows no such model", "foveal models '*' lists those there are")
    options = {"in_chans": in_chans, **options}
    if size is not None:
        options |= size_options(name, (size, size), options)
    if isinstance(pretrained, str):
        options = {**options, "pretrained_cfg_overlay": {"file": pretrained}}
    return networks().create_model(name, pretrained=bool(pretrained), **options)


def check_network(
    name: str, what: str, unknown: str, elsewhere: str, ours: Collection[str] = (), kind: str = "backbone"
) -> None:
    """See that timm, with our backbones, has a network of this name.

    Models of the Hugging Face Hub and of folders are refused: a run must be rebuilt from its own files.

    Args:
        name: of a network, with the tag of its weights or without.
        what: what errors begin with.
        unknown: what they say where there is none of this name.
        elsewhere: what they end with where no name is near.
        ours: further names that may be meant.
        kind: of `foveal.registry.UnknownName`.

    Raises:
        UnknownName: it has none.
        ConfigError: the name leads elsewhere.
    """
    timm = networks()
    source, _, place = name.rpartition(":")
    if source or "/" in place:
        here = place.rpartition("/")[2].partition("@")[0]
        advice = "give the name of its architecture in timm, and its file of weights by --model.pretrained FILE"
        if _has_network(here):
            advice = f"give {here}, and --model.pretrained true for its weights"
        raise ConfigError(f"{what}: a model of the Hugging Face Hub or of a folder is not loaded by its name; {advice}")
    if _has_network(name):
        return
    architecture, _, tag = name.partition(".")
    tags = timm.list_pretrained(f"{architecture}.*") if tag and timm.is_model(architecture) else []
    # Names of ours come first: among timm's thousand names some are always closer.
    near = [
        match
        for names in (tags or ours, tags or timm.list_models())
        for match in difflib.get_close_matches(name, names, 3)
    ]
    advice = f"did you mean {' or '.join(list(dict.fromkeys(near))[:3])}" if near else elsewhere
    raise UnknownName(f"{what}: {unknown}; {advice}", kind, name)


def _has_network(name: str) -> bool:
    timm, (architecture, _, tag) = networks(), name.partition(".")
    return timm.is_model(architecture) and (not tag or name in timm.list_pretrained(f"{architecture}.*"))


def size_options(name: str, size: tuple[int, int], options: dict[str, Any]) -> dict[str, Any]:
    """What a network has to be told so that it takes images of a size: nothing, or ``img_size``.

    Some networks, such as ViT, Swin and Mixer, are built for one size. Whether this is one of them is tried, on the
    meta device.

    Args:
        name: timm name.
        size: (height, width) of the images.
        options: keywords for `timm.create_model`. Nothing is added where they have ``img_size`` or
            ``dynamic_img_size``.

    Raises:
        ConfigError: it takes no images of this size in any case.
    """
    timm = networks()
    card = timm.get_pretrained_cfg(name, allow_unregistered=True)
    own = tuple(card.input_size[1:]) if card is not None else None
    if size == own:
        return {}
    options = {
        key: value for key, value in options.items() if not key.startswith("pretrained") and key != "checkpoint_path"
    }
    told: dict[str, Any] = {"img_size": size[0] if size[0] == size[1] else size}
    reasons: list[Exception] = []
    for more in ({}, told) if options.keys().isdisjoint(("img_size", "dynamic_img_size")) else ({},):
        try:
            with torch.random.fork_rng(devices=()), torch.device("meta"):
                network = timm.create_model(name, **options, **more).eval()
        except Exception as error:
            if not more:
                return {}  # creating it in earnest will fail as well, and say why
            reasons.append(error)
            break
        if (refusal := _refusal(network, size)) is None:
            return more
        reasons.append(refusal)
    # The error of the second attempt is more specific, unless ``img_size`` is not an option.
    reason = next((e for e in reversed(reasons) if not isinstance(e, TypeError)), reasons[0])
    text = str(reason).strip().partition("\n")[0].rstrip(".") or type(reason).__name__
    choice = f"choose {own[0]}, its own size, or another network" if own else "choose another size"
    raise ConfigError(f"{name}: does not take images of {size[0]} x {size[1]} px ({text}); {choice}") from reason


def _refusal(network: nn.Module, size: tuple[int, int]) -> Exception | None:
    """Why a network on the meta device does not take images of a size, or None."""
    channels = (
        getattr(network, "in_chans", None)
        or (getattr(network, "pretrained_cfg", None) or {}).get("input_size", (3,))[0]
    )
    try:
        with torch.no_grad():
            network(torch.zeros(1, channels, *size, device="meta"))
    except NotImplementedError:  # it cannot be tried without numbers
        return None
    except Exception as error:
        return None if "meta tensor" in str(error) else error
    return None


def channels_last(network: nn.Module) -> nn.Module:
    """The network, with the weights of its convolutions channels last in memory. `nn.Module.to` fails where there are
    3-d convolutions."""
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.ndim == 4:
            tensor.data = tensor.data.to(memory_format=torch.channels_last)
    return network


def on_host(cells: Tensor) -> np.ndarray:
    """Chosen cells, for the geometry; shapes alone are counted on the meta device, where any cell will do."""
    return np.zeros(cells.shape, dtype=np.int64) if cells.is_meta else cells.cpu().numpy()


def per_band(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """One value per channel; statistics of another number of channels are replaced by their mean."""
    return tuple(values) if len(values) == channels else (sum(values) / len(values),) * channels

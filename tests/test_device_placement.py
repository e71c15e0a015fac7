"""Whether tensors are made where the model is, on machines without a GPU: fake tensors have a device, a type and a
shape, and no numbers.

What mixes devices raises, as it does on a GPU. Not seen here: what depends on numbers, such as `walk`; backward passes,
for which autograd asks CUDA itself; and single numbers on the CPU, which fake tensors let pass everywhere and a GPU
does not in `torch.stack`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import foveal.backbones  # noqa: F401
from foveal.classification import Classification
from foveal.data import Loader, TensorDataset
from foveal.draws import Draws
from foveal.glimpse import ips, ram, recurrent, saccader, scan, tnet
from foveal.images.resample import _taps
from foveal.images.views import Occluded, TensorViews
from foveal.layers import (
    CBAM,
    AttentionAugmentation,
    ExplicitAttention,
    GatherExcite,
    NonLocal,
    SpatialSoftmaxAttention,
    SpatialTransformer,
    attention_maps,
)
from foveal.layers.explicit import KERNELS
from foveal.layers.maps import evenness
from foveal.models import create_classifier
from foveal.objectives.objective import CrossEntropy
from foveal.objectives.recurrent import RecurrentObjective
from foveal.objectives.saccader import SaccaderLocations, SaccaderObjective
from foveal.objectives.scan import ScanObjective
from foveal.objectives.tnet import TNetObjective

Module = TypeVar("Module", bound=nn.Module)


@contextmanager
def fake_cuda() -> Iterator[None]:
    """Inside, ``device="cuda"`` works everywhere. Modules are made outside, where real CPU tensors are still what comes
    by default.
    """
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            yield
    finally:
        _taps.cache_clear()  # otherwise it returns fake tensors in later tests


def moved(module: Module) -> Module:
    """Like ``.to("cuda")``: moves registered parameters and buffers, and nothing else."""
    for part in module.modules():
        for held in (part._parameters, part._buffers):
            for name, value in held.items():
                if value is not None:
                    there = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="cuda")
                    held[name] = nn.Parameter(there, value.requires_grad) if isinstance(value, nn.Parameter) else there
    return module


def on_cuda(*tensors: Tensor) -> bool:
    return all(t.device.type == "cuda" for t in tensors)


class Impatient(TorchDispatchMode):
    """Raises if the program would wait for a copy to or from the GPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default and not kwargs.get("non_blocking"):
            to = kwargs.get("device") or args[0].device
            assert torch.device(to).type == args[0].device.type, f"waits for a copy from {args[0].device} to {to}"
        return func(*args, **kwargs)


# ---- errors that these tests detect


class Forgetful(nn.Module):
    """Typical ways to forget the device."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.weight, self.kept = how, nn.Parameter(torch.ones(4)), torch.ones(4)

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.weight
        return {
            "nothing": lambda: x,
            "no buffer": lambda: x * self.kept,
            "made here": lambda: x + torch.arange(4),
            "NumPy": lambda: x + torch.from_numpy(np.ones(4)),
            "index": lambda: x.gather(0, torch.zeros(1, 4, dtype=torch.long)),
            "product": lambda: x @ torch.eye(4),
        }[self.how]()


@pytest.mark.parametrize("how", ["no buffer", "made here", "NumPy", "index", "product"])
def test_a_layer_that_forgets_the_device_is_caught(how):
    wrong, right = Forgetful(how), Forgetful("nothing")
    with fake_cuda():
        x = torch.empty(3, 4, device="cuda")
        assert on_cuda(moved(right)(x))
        with pytest.raises(RuntimeError, match=r"same device.*cuda:0 and cpu|Unhandled FakeTensor Device Propagation"):
            moved(wrong)(x)


@pytest.mark.parametrize(
    "wait", [lambda x: torch.ones(3).to(x), lambda x: x.cpu(), lambda x: x.new_tensor([1]), lambda x: x[[0, 2]]]
)
def test_a_wait_is_caught(wait):
    with fake_cuda(), Impatient():
        there = torch.ones(3).to("cuda", non_blocking=True).to(torch.float16)
        with pytest.raises(AssertionError, match="waits for a copy"):
            wait(there)


# ---- layers and networks

LAYERS = {
    **{
        f"explicit, {kernel}": partial(ExplicitAttention, 8, 16, ratio=0.5, heads=2, kernel=kernel, stride=2)
        for kernel in KERNELS
    },
    "explicit, dense": partial(ExplicitAttention, 8, 16, ratio=0.5, impl="dense", radius_param="inv"),
    "explicit, in pieces": partial(ExplicitAttention, 8, 16, ratio=0.5, kernel="cone", attn_stride="pool", stride=2),
    "augmentation": partial(AttentionAugmentation, 8, 16, size=(12, 10), ratio=0.5, heads=2, min_key_channels=4),
    "augmentation, pooled": partial(
        AttentionAugmentation, 8, 16, size=(6, 6), ratio=0.5, heads=2, min_key_channels=4, pool=True
    ),
    "CBAM": partial(CBAM, 8),
    "gather-excite": partial(GatherExcite, 8, 2, "theta_plus"),
    **{
        f"non-local, {mode}": partial(NonLocal, 8, mode, True)
        for mode in ("embedded", "gaussian", "dot", "concatenation")
    },
    **{
        f"softmax, {mode}": partial(SpatialSoftmaxAttention, 8, mode=mode, init="random", temperature="learnable")
        for mode in ("bounded", "scaled", "faithful", "gate", "residual", "pool")
    },
    "softmax, fixed": partial(
        SpatialSoftmaxAttention, 8, mode="scaled", attn_input="fixed", size=(6, 6), softmax_axis="channel", clip=4
    ),
    "softmax, uniform": partial(SpatialSoftmaxAttention, 8, attn_input="uniform", mode="faithful"),
    "spatial transformer": partial(SpatialTransformer, 8, (5, 7)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name, monkeypatch):
    monkeypatch.setattr("foveal.layers.explicit.DENSE_QUERIES", 64 if "in pieces" not in name else 16)
    layer = LAYERS[name]()
    with fake_cuda(), Impatient():
        moved(layer)
        with attention_maps(layer) as maps:
            assert on_cuda(layer(torch.empty(2, 8, 12, 10, device="cuda")))
        assert maps and on_cuda(*maps.values(), *layer.figures().values())


def test_figures_of_a_map_of_one_position():
    """One CPU scalar among those that training stacks."""
    with fake_cuda():
        assert on_cuda(*evenness(torch.empty(2, 4, 1, 1, device="cuda")).values())


NETWORKS = (  # others come with the classifiers below
    "stn_cnn",
    "test_attention_cifar",
    "test_attn_resnet",
    "test_bagnet_tnet",
    "test_densenet_cifar",
    "test_expatt_resnet",
    "test_wrn_cifar",
)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name):
    network = timm.create_model(name, num_classes=5).train()
    with fake_cuda(), Impatient():
        assert on_cuda(moved(network)(torch.empty(2, *network.pretrained_cfg["input_size"], device="cuda")))


# ---- classifiers

TNET = {"name": "tnet", "backbone": "test_efficientnet", "base_size": 32, "locations": (2, 1)}
PUBLISHED = {
    "location_features": "blocks.1",
    "location_index": (0, 1, 2),
    "location_context": True,
    "score_scale": None,
    "position_concat": True,
    "weighting": True,
    "padded_grid": True,
    "squash": True,
    "antialias": False,
    "locations": (2,),
}
SACCADER = {"name": "saccader", "backbone": "test_bagnet_lowd", "image_size": 32, "locations": (3,)}
SEPARATE = {**SACCADER, "name": "saccader_separate", "classifier": "test_resnet", "glimpse_size": 24, "crop": 0.9}
DRAM = {
    "name": "dram",
    "backbone": "test_resnetv2_slim",
    "image_size": 64,
    "base_size": 24,
    "hidden": 16,
    "locations": (2,),
}
WEIGHTS = (1.0, 2.0, 3.0, 4.0)
CLASSIFIERS = {
    "tnet": (TNET, TNetObjective(warm_up=0.0, class_weights=WEIGHTS)),
    "tnet as published": (
        {**TNET, **PUBLISHED},
        TNetObjective(warm_up=1.0),
    ),  # the published objective picks looks by a mask: by numbers
    "saccader": (SACCADER, SaccaderObjective(class_weights=WEIGHTS)),
    "saccader, later": (SACCADER, SaccaderObjective(0.0, samples=2)),
    "saccader, imitating": (SACCADER, SaccaderLocations("sampled")),
    "saccader_separate": (SEPARATE, SaccaderObjective(0.0, credit="image")),
    "ram": ({"name": "ram", "locations": (2,)}, RecurrentObjective(class_weights=WEIGHTS)),
    "dram": ({**DRAM, "aggregate": "mean"}, RecurrentObjective(image_share=0.5)),
    "scan": (
        {"name": "scan", "look_size": 16, "scale": 2, "locations": (2,)},
        ScanObjective(class_weights=WEIGHTS),
    ),
    "ips": (
        {"name": "ips", "backbone": "test_resnet", "tile_size": 32, "memory": 3, "at_once": 2},
        CrossEntropy(class_weights=WEIGHTS),
    ),
    "mil": ({"name": "mil", "tile_size": 32, "gated": True, "train_tiles": 4}, CrossEntropy(class_weights=WEIGHTS)),
    "whole image": (
        {"name": "test_resnet", "image_size": 32},
        CrossEntropy(class_weights=WEIGHTS, label_smoothing=0.1),
    ),
}
POLICIES = {
    "tnet": ("sampled",),
    "tnet as published": ("centre",),
    "saccader": ("random", "ordered_logits", "sobel_var", "random_released"),
    "saccader, later": ("greedy",),
    "saccader, imitating": ("sampled",),
    "saccader_separate": ("exhaustive",),
    "ram": ("random",),
    "dram": ("sampled",),
    "scan": ("sampled", "random"),
    "ips": ("greedy",),
    "mil": ("greedy",),
    "whole image": ("greedy",),
}


def any_cells(cells: Tensor) -> np.ndarray:
    """Replaces `on_host`, because fake tensors have no values."""
    assert on_cuda(cells)
    return np.zeros(cells.shape, np.float64 if cells.is_floating_point() else np.int64)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers(name, monkeypatch):
    """Policies and objectives on images with fill."""
    for module in (tnet, saccader, recurrent, ram, scan, ips):
        monkeypatch.setattr(module, "on_host", any_cells)
    options, objective = CLASSIFIERS[name]
    model, draws = create_classifier(**options, num_classes=4).eval(), Draws(0, 0, np.arange(2))
    with fake_cuda():
        moved(model)
        images, target = (
            torch.empty(2, 3, 80, 64, dtype=torch.uint8, device="cuda"),
            torch.zeros(2, dtype=torch.long, device="cuda"),
        )
        with torch.no_grad():  # in inference mode fake tensors of one number are copied as if they were real
            for policy in POLICIES[name]:
                seen = model(TensorViews(images), policy=policy, draws=draws)
                assert on_cuda(seen.logits, seen[1].logits)
                assert seen.glimpses.contribution is None or on_cuda(seen.glimpses.contribution)
                assert not on_cuda(Classification.cat([seen, seen]).logits)
            for views in (TensorViews(images.cpu()), Occluded(TensorViews(images), np.zeros((2, 1, 4)))):
                assert on_cuda(model(views, ()).logits)
        model.train()
        rollouts = model.rollouts(TensorViews(images), objective.plan(0.5), draws)
        loss, state, log = objective(rollouts, target, objective.initial_state().to("cuda"))
        assert on_cuda(loss, state, *log.values()) and loss.requires_grad


@pytest.mark.parametrize("options", [TNET, {**TNET, "weighting": True}])
def test_a_long_image_that_has_fewer_cells_than_looks_are_wanted(options, monkeypatch):
    """All three rows of the grid are equal; two of five looks are not taken."""
    monkeypatch.setattr(
        tnet, "on_host", lambda cells: np.tile([3, 4, 5, 0, 1][: cells.shape[-1]], (*cells.shape[:-1], 1))
    )
    objective = TNetObjective(warm_up=0.0)
    model, draws = (
        create_classifier(**{**options, "locations": (5, 1)}, num_classes=4).eval(),
        Draws(0, 0, np.arange(2)),
    )
    with fake_cuda():
        moved(model)
        images, target = (
            torch.empty(2, 3, 40, 100, dtype=torch.uint8, device="cuda"),
            torch.zeros(2, dtype=torch.long, device="cuda"),
        )
        with torch.no_grad():
            seen = model(TensorViews(images), draws=draws)
            assert on_cuda(seen.logits, seen[1].logits, seen.glimpses.contribution) and seen.locations.tolist() == [
                6,
                6,
            ]
        rollouts = model.train().rollouts(TensorViews(images), objective.plan(0.5), draws)
        loss, state, log = objective(rollouts, target, objective.initial_state().to("cuda"))
        assert on_cuda(loss, state, *log.values()) and loss.requires_grad
        if model.weighting is None:
            assert on_cuda(*model.rollouts(TensorViews(images), ("whole",), draws)[0].scores)


# ---- training


def test_a_step_on_images_in_memory_waits_for_nothing(monkeypatch):
    """From selection to the loss, as `tests/data/test_whole_images.py` tests on a GPU."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**30, 2**30))
    pixels = torch.zeros(64, 3, 32, 32, dtype=torch.uint8)
    data = TensorDataset(pixels, np.arange(64) % 2, ("a", "b"), augmentation="crop_flip")
    model, objective = create_classifier("test_resnet_cifar", num_classes=2), CrossEntropy(class_weights=(1.0, 2.0))
    with fake_cuda():
        moved(model.train())
        loader = Loader(data, batch_size=16, seed=1, shuffle=True, device="cuda")
        with Impatient():
            batch = next(iter(loader)).to("cuda")
            assert on_cuda(batch.views.images, batch.target)
            rollouts = model.rollouts(batch.views, objective.plan(0.0), Draws(0, 0, batch.index))
            assert on_cuda(objective(rollouts, batch.target, objective.initial_state())[0])

"""Explicit attention against double loops, closed forms, attention of torch, and limits."""

import copy
import math
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from foveal.layers import AttentionAugmentation, ExplicitAttention, attention_maps, captions
from foveal.layers import explicit as module
from foveal.layers.explicit import KERNELS, Radius
from foveal.training.config import Optimiser
from foveal.training.optimisation import build

SEPARABLE = [name for name, kernel in KERNELS.items() if kernel.separable]

# Kernels by their formulas: weight of a distance (dy, dx) in pixels for radius r.
ON_PAPER = {
    "gauss": lambda dy, dx, r: math.exp(-(dy**2 + dx**2) / (2 * r**2)),
    "laplace1": lambda dy, dx, r: math.exp(-(abs(dy) + abs(dx)) / r),
    "laplace2": lambda dy, dx, r: math.exp(-math.hypot(dy, dx) / r),
    "box": lambda dy, dx, r: float(max(abs(dy), abs(dx)) <= r),
    "disc": lambda dy, dx, r: float(math.hypot(dy, dx) <= r),
    "cone": lambda dy, dx, r: max(0.0, 1 - math.hypot(dy, dx) / r),
    "triangle": lambda dy, dx, r: max(0.0, 1 - abs(dy) / r) * max(0.0, 1 - abs(dx) / r),
    "cauchy": lambda dy, dx, r: 1 / (1 + (dy**2 + dx**2) / r**2),
    "uniform": lambda dy, dx, r: 1.0,
    "identity": lambda dy, dx, r: float(max(abs(dy), abs(dx)) <= 0.5),
}


def centres(cells: int, stride: int) -> list[float]:
    inside = [[i for i in range(cells) if i // stride == o] for o in range(-(-cells // stride))]
    return [sum(cell) / len(cell) for cell in inside]


def by_loops(kernel: str, radius: float, height: int, width: int, stride: int = 1) -> torch.Tensor:
    rows = []
    for y, x in product(centres(height, stride), centres(width, stride)):
        row = torch.tensor(
            [ON_PAPER[kernel](y - b, x - a, radius) for b, a in product(range(height), range(width))],
            dtype=torch.float64,
        )
        rows.append(row / row.sum())
    return torch.stack(rows)


def only_mixing(
    radius: float = 2.3, channels: int = 3, dtype: torch.dtype = torch.float64, **options
) -> ExplicitAttention:
    """A layer that computes A V only, with its radius in pixels."""
    options = {"coord": "pixel", "ratio": 1, "output_projection": False, "radius_init": radius} | options
    layer = ExplicitAttention(channels, channels, **options).to(dtype)
    nn.init.eye_(layer.value.weight.data[:, :, 0, 0])
    if layer.radius is not None and layer.radius.param == "log":
        layer.radius.raw.data.fill_(math.log(radius))  # in full precision
    return layer


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_every_kernel_equals_a_double_loop(kernel, stride):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 7, 6, dtype=torch.float64)
    layer = only_mixing(kernel=kernel, stride=stride)
    expected = by_loops(kernel, 2.3, 7, 6, stride)
    wanted = (x.flatten(2) @ expected.T).view(2, 3, -(-7 // stride), -(-6 // stride))
    for impl in ("dense", "separable") if kernel in SEPARABLE else ("dense",):
        layer.impl = impl
        torch.testing.assert_close(layer(x), wanted, rtol=0, atol=1e-12)
    grid = [layer.attention_map_of(query, (7, 6)) for query in product(range(wanted.shape[2]), range(wanted.shape[3]))]
    torch.testing.assert_close(torch.stack(grid).flatten(1), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_radius_of_nothing_still_reaches_a_pixel(kernel):
    for stride, size in ((1, (5, 4)), (2, (5, 4)), (4, (9, 7))):
        layer = only_mixing(radius=1e-6, kernel=kernel, stride=stride)
        out = layer(torch.ones(1, 3, *size, dtype=torch.float64))
        torch.testing.assert_close(out, torch.ones_like(out), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "options", [{}, {"heads": 3}, {"stride": 2}, {"stride": 2, "attn_stride": "pool"}, {"output_projection": False}]
)
def test_has_the_shape_of_the_convolution_that_it_stands_for(options):
    for k, size in product((1, 3, 5), ((7, 10), (8, 5))):  # odd and even, height and width apart
        layer = ExplicitAttention(6, 20, k, ratio=0.3, **options)
        conv = nn.Conv2d(6, 20, k, options.get("stride", 1), k // 2, bias=False)
        assert layer(torch.randn(2, 6, *size)).shape == conv(torch.randn(2, 6, *size)).shape


def test_without_values_it_is_the_convolution_and_with_values_only_there_is_none():
    x = torch.randn(2, 4, 6, 6)
    plain = ExplicitAttention(4, 8, stride=2, ratio=0)
    assert plain.value_channels == 0 and list(plain.state_dict()) == ["conv.weight"]
    torch.testing.assert_close(plain(x), F.conv2d(x, plain.conv.weight, stride=2, padding=1))
    assert plain.describe() == "" and plain.fold() is plain
    with attention_maps(plain) as maps:
        plain(x)
    assert maps == {}
    with pytest.raises(ValueError, match="plain convolution"):
        plain.attention_map_of((0, 0), (6, 6))
    whole = ExplicitAttention(4, 8, ratio=1)
    assert whole.conv is None and whole(x).shape == (2, 8, 6, 6)


def test_the_share_is_rounded_down_to_whole_channels_and_to_the_heads():
    assert [ExplicitAttention(8, w, ratio=0.1).value_channels for w in (64, 128, 256, 512)] == [6, 12, 25, 51]
    assert [ExplicitAttention(8, w, ratio=0.1, heads=8).value_channels for w in (128, 256, 512)] == [8, 24, 48]
    assert ExplicitAttention(8, 100, ratio=0.29).value_channels == 29  # 0.29 * 100 is 28.999999999999996
    assert ExplicitAttention(8, 100, value_channels=7).value_channels == 7


def test_parameters_are_those_of_the_formula():
    layer = ExplicitAttention(128, 128, ratio=0.1)
    assert sum(p.numel() for p in layer.parameters()) == 9 * 128 * 128 - 12_143
    torch.testing.assert_close(layer.radius(), torch.tensor([0.1]))


@pytest.mark.parametrize(
    "options, word",
    [
        ({"kernel": "sinc"}, "kernel"),
        ({"coord": "mm"}, "coord"),
        ({"attn_stride": "skip"}, "attn_stride"),
        ({"impl": "fast"}, "impl"),
        ({"kernel_size": 2}, "odd"),
        ({"kernel": "disc", "impl": "separable"}, "not separable"),
        ({"ratio": 1.2}, "ratio"),
        ({"value_channels": 5, "heads": 2}, "heads"),
        ({"radius_init": 0.0}, "radius_init"),
        ({"radius_param": "exp"}, "radius_param"),
        ({"radius_init": "wide"}, "radius_init"),
        ({"heads": 0}, "heads=0"),
        ({"ratio": 0.05}, "ratio=0 for the plain"),
        ({"heads": 16}, "fewer heads"),
    ],
)
def test_impossible_options(options, word):
    with pytest.raises(ValueError, match=word):
        ExplicitAttention(16, 16, **({"ratio": 0.5} | options))


# The map


def test_rows_add_up_to_one_and_constants_stay():
    a = by_loops("gauss", 1.7, 5, 8)
    assert not torch.allclose(a, a.T)  # symmetric only before normalisation
    layer = only_mixing(1.7)
    got = torch.stack([layer.attention_map_of(query, (5, 8)) for query in product(range(5), range(8))]).flatten(1)
    torch.testing.assert_close(got.sum(1), torch.ones(40, dtype=torch.float64), rtol=0, atol=1e-14)
    constant = torch.full((1, 3, 5, 8), 0.37, dtype=torch.float64)
    torch.testing.assert_close(layer(constant), constant, rtol=0, atol=1e-14)


def test_equals_torchs_attention_without_queries_and_keys():
    """The module is attention whose logits are -distance squared / (2 radius squared)."""
    torch.manual_seed(1)
    layer = ExplicitAttention(5, 4, ratio=1, heads=2, radius_init=0.2).double()
    layer.radius.raw.data = torch.tensor([0.15, 0.6], dtype=torch.float64).log()
    x = torch.randn(2, 5, 6, 9, dtype=torch.float64)
    v = layer.value(x).view(2, 2, 2, 54).mT  # (B, heads, N, c)
    position = torch.tensor(list(product(range(6), range(9))), dtype=torch.float64) / 9
    logits = (
        -torch.cdist(position, position).square()
        / (2 * torch.tensor([0.15, 0.6], dtype=torch.float64).square())[:, None, None]
    )
    nothing = torch.zeros(2, 2, 54, 1, dtype=torch.float64)
    attended = F.scaled_dot_product_attention(nothing, nothing, v, attn_mask=logits.expand(2, 2, 54, 54))
    torch.testing.assert_close(layer(x), layer.project(attended.mT.reshape(2, 4, 6, 9)), rtol=0, atol=1e-12)


def test_limits_are_identity_and_global_average():
    x = torch.randn(2, 3, 6, 5, dtype=torch.float64)
    wide = only_mixing(1e6)(x)
    torch.testing.assert_close(wide, x.mean((2, 3), keepdim=True).expand_as(x), rtol=0, atol=1e-10)
    torch.testing.assert_close(
        only_mixing(kernel="uniform")(x), x.mean((2, 3), keepdim=True).expand_as(x), rtol=0, atol=1e-12
    )
    torch.testing.assert_close(only_mixing(kernel="identity")(x), x, rtol=0, atol=0)
    # A radius below 0.3 px counts as 0.3 px.
    torch.testing.assert_close(only_mixing(1e-3)(x), only_mixing(0.3)(x), rtol=0, atol=1e-12)
    assert (only_mixing(1e-3)(x) - x).abs().max() < 0.1
    infinite = only_mixing(radius_param="inv")
    infinite.radius.raw.data.zero_()
    torch.testing.assert_close(infinite(x), x.mean((2, 3), keepdim=True).expand_as(x), rtol=0, atol=1e-12)


def test_is_a_gaussian_blur_away_from_the_borders():
    x = torch.randn(1, 3, 40, 40, dtype=torch.float64)
    t = torch.arange(-15, 16, dtype=torch.float64)
    one = torch.exp(-t.square() / (2 * 1.5**2))
    blur = torch.outer(one, one) / one.sum() ** 2
    expected = F.conv2d(x, blur.expand(3, 1, -1, -1), groups=3)
    torch.testing.assert_close(only_mixing(1.5)(x)[..., 15:-15, 15:-15], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kernel", SEPARABLE)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_dense_equals_separable(kernel, dtype, tolerance):
    torch.manual_seed(2)
    for size, stride, heads, memory_format in (
        ((14, 9), 1, 1, torch.channels_last),
        ((9, 14), 2, 2, torch.contiguous_format),
        ((30, 30), 1, 1, torch.channels_last),
    ):
        layer = only_mixing(channels=4, dtype=dtype, kernel=kernel, stride=stride, heads=heads)
        x = torch.randn(3, 4, *size, dtype=dtype).to(memory_format=memory_format)
        results = []
        for layer.impl in ("dense", "separable", "auto"):
            layer.zero_grad()
            out = layer(x)
            out.square().sum().backward()
            moved = layer.radius is not None and layer.radius.raw.grad is not None
            results.append((out.detach(), layer.value.weight.grad, layer.radius.raw.grad if moved else torch.zeros(1)))
        for other in results[1:]:
            torch.testing.assert_close(other[0], results[0][0], rtol=0, atol=tolerance)
            for got, wanted in zip(other[1:], results[0][1:], strict=True):
                torch.testing.assert_close(got, wanted, rtol=1e3 * tolerance, atol=1e3 * tolerance)


def test_auto_is_separable_but_for_heads_on_small_grids():
    for kernel, heads, size, expected in (
        ("gauss", 1, 7, True),
        ("gauss", 2, 7, False),
        ("gauss", 2, 11, True),
        ("cone", 1, 30, False),
        ("uniform", 2, 7, True),
    ):
        layer = ExplicitAttention(4, 4, ratio=1, kernel=kernel, heads=heads).eval()
        with torch.no_grad():
            layer(torch.randn(1, 4, size, size))
        assert (len(layer._cached[2]) == 2) is expected, (kernel, heads, size)


def test_in_pieces_it_is_the_same(monkeypatch):
    torch.manual_seed(3)
    for kernel, stride in (("gauss", 1), ("cauchy", 2)):
        x = torch.randn(2, 4, 9, 10, dtype=torch.float64, requires_grad=True)
        layer = only_mixing(channels=4, kernel=kernel, heads=2, stride=stride, impl="dense")
        found = []
        for at_once in (4096, 25):
            monkeypatch.setattr(module, "DENSE_QUERIES", at_once)
            out = layer(x)
            found.append([out, *torch.autograd.grad(out.sin().sum(), [x, layer.radius.raw, layer.value.weight])])
        for got, wanted in zip(found[1], found[0], strict=True):
            torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)


# The radius


@pytest.mark.parametrize("impl", ["dense", "separable"])
def test_gradient_of_the_radius_is_the_closed_form(impl):
    """dA_ij / dr = A_ij (d_ij^2 - E_i[d^2]) / r^3."""
    torch.manual_seed(4)
    r = 1.9
    layer = only_mixing(r, impl=impl)
    x = torch.randn(2, 3, 6, 7, dtype=torch.float64)
    weight = torch.randn(2, 3, 6, 7, dtype=torch.float64)
    (layer(x) * weight).sum().backward()
    a = by_loops("gauss", r, 6, 7)
    at = torch.tensor(list(product(range(6), range(7))), dtype=torch.float64)
    squared = torch.cdist(at, at).square()
    of_a = a * (squared - (a * squared).sum(1, keepdim=True)) / r**3
    expected = torch.einsum("bci,ij,bcj->", weight.flatten(2), of_a, x.flatten(2))
    torch.testing.assert_close(layer.radius.raw.grad[0] / r, expected, rtol=1e-12, atol=1e-12)  # raw is the logarithm


@pytest.mark.parametrize("param", ["log", "softplus", "inv"])
def test_every_parametrisation_begins_at_the_radius_and_learns_it(param):
    for wanted in (0.03, 0.1, 1.0, 40.0):
        torch.testing.assert_close(Radius(wanted, 2, param)(), torch.full((2,), wanted), rtol=2e-5, atol=0)
    layer = only_mixing(0.2, radius_param=param, dtype=torch.float32)  # below the bound, but it can grow
    x = torch.randn(4, 3, 8, 8)
    wanted = only_mixing(1.0, dtype=torch.float32)(x).detach()
    optimiser = torch.optim.Adam(layer.radius.parameters(), 0.05)
    for _ in range(150):
        optimiser.zero_grad()
        F.mse_loss(layer(x), wanted).backward()
        optimiser.step()
    assert layer.radius().item() == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("param", ["log", "softplus", "inv"])
def test_a_radius_that_wants_to_be_nothing_stays_near_its_bound(param):
    torch.manual_seed(0)
    layer = only_mixing(0.1, coord="norm", radius_param=param, dtype=torch.float32)
    x = torch.randn(8, 3, 7, 7)
    optimiser = torch.optim.SGD(layer.radius.parameters(), 0.1, momentum=0.9)
    for _ in range(200):
        optimiser.zero_grad()
        F.mse_loss(layer(x), x).backward()
        optimiser.step()
    # Momentum moves it below the bound, but not further.
    assert 0.01 < 7 * layer.radius().item() < 0.5
    assert 1 / layer._inverse_radius((7, 7), torch.float32).item() > 0.3 - 1e-6


@pytest.mark.parametrize("param", ["log", "softplus", "inv"])
@pytest.mark.parametrize("radius", [0.2, 1e-9])
def test_below_the_bound_a_radius_has_the_gradient_at_the_bound_but_only_upwards(param, radius):
    x = torch.randn(2, 3, 7, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = {}
    for r in (radius, module.KERNELS["gauss"].smallest):
        layer = only_mixing(r, radius_param=param).float()
        for wanted, to in (("larger", x.mean((2, 3), keepdim=True).expand_as(x)), ("smaller", x)):
            layer.zero_grad()
            F.mse_loss(layer(x.float()), to.float()).backward()
            found[r, wanted] = layer.radius.raw.grad.clone()
    at = module.KERNELS["gauss"].smallest
    assert found[at, "larger"].isfinite().all() and found[at, "larger"] != 0 != found[at, "smaller"]
    torch.testing.assert_close(found[radius, "larger"], found[at, "larger"], rtol=1e-3, atol=0)
    assert found[radius, "smaller"] == 0


def test_what_learns_and_what_weight_decay_leaves_alone():
    assert ExplicitAttention(8, 8, ratio=0.5).radius.raw.requires_grad
    assert not ExplicitAttention(8, 8, ratio=0.5, radius_train=False).radius.raw.requires_grad
    assert not ExplicitAttention(8, 8, ratio=0.5, kernel="disc").radius.raw.requires_grad
    assert ExplicitAttention(8, 8, ratio=0.5, kernel="uniform").radius is None
    layer = ExplicitAttention(8, 8, ratio=0.5, heads=4)
    assert layer.radius.raw.shape == (4,)
    # Without a gradient, only weight decay changes a weight.
    optimiser = build(layer, {"head": list(layer.parameters())}, Optimiser(name="sgd", lr=0.1, weight_decay=0.5))
    before = {name: p.detach().clone() for name, p in layer.named_parameters()}
    for p in layer.parameters():
        p.grad = torch.zeros_like(p)
    optimiser.step()
    assert {name for name, p in layer.named_parameters() if torch.equal(p, before[name])} == {"radius.raw"}


def test_normalised_coordinates_scale_with_the_grid():
    layer = ExplicitAttention(4, 4, ratio=1, radius_init=0.1).double()
    for height, width in ((28, 28), (10, 20)):
        pixels = only_mixing(0.1 * max(height, width))
        expected = pixels.attention_map_of((3, 4), (height, width))
        torch.testing.assert_close(layer.attention_map_of((3, 4), (height, width)), expected, rtol=1e-6, atol=1e-9)


# In use


def test_the_map_does_not_depend_on_the_image_and_is_that_of_the_central_query():
    layer = ExplicitAttention(4, 8, stride=2, ratio=0.5, heads=2)
    found = []
    for _ in range(2):
        with attention_maps(nn.Sequential(layer)) as maps:
            layer(torch.randn(3, 4, 14, 10))
        found.append(maps["0"])
    assert found[0].shape == (3, 2, 14, 10)
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    torch.testing.assert_close(found[0][0], layer.attention_map_of((3, 2), (14, 10)))
    with pytest.raises(ValueError, match="outside"):
        layer.attention_map_of((7, 0), (14, 10))


def test_caption_tells_the_radius():
    layer = ExplicitAttention(4, 8, ratio=0.5)
    assert layer.describe() == "radius 0.10 of the side"
    with attention_maps(layer):
        layer(torch.randn(1, 4, 28, 20))
    assert captions(layer) == {"": "radius 0.10 of the side, 2.8 px"}
    assert ExplicitAttention(4, 8, ratio=0.5, coord="pixel", radius_init=2, heads=2).describe() == "radii 2.00, 2.00 px"
    assert ExplicitAttention(4, 8, ratio=0.5, kernel="uniform").describe() == ""


def test_folded_it_gives_the_same():
    torch.manual_seed(5)
    layer = ExplicitAttention(6, 20, stride=2, ratio=0.5).double().eval()
    x = torch.randn(2, 6, 9, 9, dtype=torch.float64)
    before = layer(x)
    assert layer.fold() is layer and isinstance(layer.project, nn.Identity)
    torch.testing.assert_close(layer(x), before, rtol=0, atol=1e-12)
    torch.testing.assert_close(layer.fold()(x), before, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="heads"):
        ExplicitAttention(6, 20, ratio=0.5, heads=2).fold()


def test_weights_serve_every_resolution():
    layer = ExplicitAttention(6, 20, ratio=0.5)
    state = {name: tuple(value.shape) for name, value in layer.state_dict().items()}
    assert state == {
        "conv.weight": (10, 6, 3, 3),
        "radius.raw": (1,),
        "value.weight": (10, 6, 1, 1),
        "project.weight": (10, 10, 1, 1),
    }
    for size in ((5, 5), (31, 17)):
        assert layer(torch.randn(1, 6, *size)).shape == (1, 20, *size)


def test_channels_stay_last():
    layer = ExplicitAttention(16, 32, ratio=0.25).to(memory_format=torch.channels_last)
    x = torch.randn(2, 16, 12, 10).to(memory_format=torch.channels_last)
    for layer.impl in ("dense", "separable"):
        assert layer(x).is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(layer(x), layer(x.contiguous()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("impl", ["dense", "separable"])
def test_under_autocast_maps_are_made_in_float32(impl, monkeypatch):
    layer = ExplicitAttention(4, 8, ratio=0.5, impl=impl)
    made, weigh = [], ExplicitAttention._weigh
    monkeypatch.setattr(ExplicitAttention, "_weigh", lambda *args: made.append(weigh(*args)) or made[-1])
    x = torch.randn(2, 4, 9, 9)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    out.float().square().sum().backward()
    assert out.dtype == torch.bfloat16 and {m.dtype for m in made} == {torch.float32}
    assert layer.radius.raw.dtype == layer.radius.raw.grad.dtype == torch.float32
    torch.testing.assert_close(out.float(), layer(x), rtol=0.1, atol=0.1)


def test_maps_are_kept_in_evaluation_and_never_stale():
    layer = ExplicitAttention(4, 8, ratio=0.5, coord="pixel", radius_init=1.0).eval()
    x = torch.randn(2, 4, 9, 9)

    @torch.no_grad()
    def fresh() -> torch.Tensor:
        return copy.deepcopy(layer).train()(x)

    def check() -> None:
        with torch.no_grad():
            torch.testing.assert_close(layer(x), fresh(), rtol=0, atol=0)
            kept = layer._cached[2]
            layer(x)
            assert all(a is b for a, b in zip(layer._cached[2], kept, strict=True))

    check()
    with torch.no_grad():
        layer.radius.raw.fill_(math.log(3.0))
    check()
    layer.load_state_dict({name: value * 0.5 for name, value in layer.state_dict().items()})
    check()
    layer.load_state_dict({name: value * 1.5 for name, value in layer.state_dict().items()}, assign=True)
    check()
    layer.radius.raw = nn.Parameter(torch.tensor([0.1]))
    check()
    layer.double().float()
    check()
    layer.radius = Radius(2.0)
    check()
    nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(layer.parameters()) * 0.7, layer.parameters())
    check()
    weights, layer = {name: value * 0.5 for name, value in layer.state_dict().items()}, copy.deepcopy(layer)
    layer.load_state_dict(weights)
    check()
    assert pickle.loads(pickle.dumps(layer))._cached is None
    with torch.no_grad():
        small = layer(x[..., :5, :6])
    torch.testing.assert_close(small, layer(x[..., :5, :6]).detach(), rtol=0, atol=0)
    # Maps cached in inference mode are not used when gradients are needed.
    with torch.inference_mode():
        layer(x)
    layer(x).sum().backward()
    assert layer.radius.raw.grad is not None
    layer.train()
    assert layer._cached is None


def test_heads_are_a_whole_number():
    assert ExplicitAttention(4, 8, ratio=0.5, heads=np.int64(2)).heads == 2
    for heads, sentence in ((0, "heads=0 is not possible"), (1.5, "`heads` 1.5: does not fit"), (-1, "heads=-1 is")):
        with pytest.raises(ValueError, match=sentence):
            ExplicitAttention(4, 8, ratio=0.5, heads=heads)


def test_threads_may_share_a_layer():
    """Each thread has its own grid and replaces the cached maps of the others."""
    layer = ExplicitAttention(4, 4, ratio=1).eval()
    images = {size: torch.randn(1, 4, size, size) for size in (5, 6, 7, 8)}
    with torch.no_grad():
        expected = {size: layer(x) for size, x in images.items()}

    def work(size: int) -> bool:
        with torch.no_grad():
            return all(torch.equal(layer(images[size]), expected[size]) for _ in range(300))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(work, images))
    finally:
        sys.setswitchinterval(interval)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.torch.jit.trace:FutureWarning")
@pytest.mark.parametrize(
    "make", [ExplicitAttention, partial(AttentionAugmentation, size=(9, 9), heads=2, min_key_channels=4)]
)
def test_it_can_be_traced_and_exported_for_any_number_of_images(make):
    layer, x, more = make(8, 8, ratio=0.5).eval(), torch.randn(2, 8, 9, 9), torch.randn(5, 8, 9, 9)
    with torch.no_grad():
        traced = torch.jit.trace(layer, x)
        torch.testing.assert_close(traced(more), layer(more))
        exported = torch.export.export(
            layer, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=2, max=64)},)
        ).module()
        torch.testing.assert_close(exported(more), layer(more))


def test_runs_on_meta_tensors():
    with torch.device("meta"):
        for options in ({}, {"kernel": "cone"}, {"stride": 2}, {"stride": 2, "attn_stride": "pool"}, {"impl": "dense"}):
            layer = ExplicitAttention(4, 8, ratio=0.5, **options)
            stride = options.get("stride", 1)
            for size in ((14, 14), (70, 70)):
                out = layer.eval()(torch.empty(1, 4, *size))
                assert out.is_meta and out.shape == (1, 8, -(-size[0] // stride), -(-size[1] // stride))


def test_runs_for_many_models_at_once():
    models = [ExplicitAttention(3, 4, ratio=0.5, radius_init=r).eval() for r in (0.1, 0.4)]
    parameters, buffers = torch.func.stack_module_state(models)
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        together = torch.vmap(lambda p, b: torch.func.functional_call(models[0], (p, b), (x,)))(parameters, buffers)
        torch.testing.assert_close(together, torch.stack([model(x) for model in models]), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{"impl": "separable"}, {"impl": "dense"}, {"stride": 2, "heads": 2}, {"kernel": "disc"}]
)
def test_compiles_in_one_graph(options):
    torch.manual_seed(6)
    layer = ExplicitAttention(4, 8, ratio=0.5, **options)
    compiled = torch.compile(layer, fullgraph=True)
    x = torch.randn(2, 4, 12, 10)
    expected = layer(x)
    wanted = torch.autograd.grad(expected.square().sum(), [p for p in layer.parameters() if p.requires_grad])
    got = compiled(x)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    for a, b in zip(
        torch.autograd.grad(got.square().sum(), [p for p in layer.parameters() if p.requires_grad]), wanted, strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(layer.eval(), fullgraph=True)(x), expected, rtol=1e-4, atol=1e-5)

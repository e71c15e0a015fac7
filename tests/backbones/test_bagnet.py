"""Shapes, counts, receptive fields and norms of the BagNets of TNet and Saccader."""

from __future__ import annotations

import json

import pytest
import timm
import torch

import foveal.backbones  # noqa: F401
from foveal.cli import main


@pytest.mark.parametrize("side, expected", [(77, [75, 38, 19, 9, 7]), (224, [222, 111, 56, 27, 25])])
def test_sides(side, expected):
    net = timm.create_model("bagnet77_tnet", num_classes=0).to("meta")
    x, sides = net.stem(torch.zeros(1, 3, side, side, device="meta")), []
    sides.append(x.shape[-1])
    for stage in net.stages:
        x = stage(x)
        sides.append(x.shape[-1])
    assert sides == expected and x.shape[1] == 2048


def test_parameters_of_the_dense_baseline():
    assert sum(p.numel() for p in timm.create_model("bagnet77_tnet").parameters()) == 20_546_664


def test_a_feature_sees_77_pixels_and_no_more():
    net = timm.create_model("test_bagnet_tnet", num_classes=0).double().eval()
    x = torch.randn(1, 3, 224, 224, dtype=torch.float64, requires_grad=True)
    net.forward_features(x)[0, :, 12, 12].sum().backward()
    rows = x.grad[0].abs().sum((0, 2)).nonzero()
    assert rows.max() - rows.min() + 1 == 77


def test_there_is_no_normalisation_and_every_convolution_has_a_bias():
    net = timm.create_model("bagnet77_tnet")
    assert not list(net.buffers())
    assert all(m.bias is not None for m in net.modules() if isinstance(m, torch.nn.Conv2d))


def saccader(name="test_bagnet", *, seed=0, **options):
    """A BagNet in double precision with non-zero blocks and random statistics."""
    torch.manual_seed(seed)
    net = timm.create_model(name, **{"num_classes": 5, **options}).double().eval()
    with torch.no_grad():
        for norm in norms(net):
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_(std=0.1)
            norm.running_mean.normal_(std=0.1)
            norm.running_var.uniform_(0.5, 1.5)
    return net


def norms(net):
    return [m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)]


def blocks(net):
    return [block for stage in net.stages for block in stage]


@pytest.mark.parametrize(
    "name, classes, trainable, total",
    [
        ("bagnet77_lowd", 1001, 20_574_249, 20_628_393),
        ("bagnet77_lowd", 1000, None, 20_627_880),
        ("bagnet77", 1001, None, 21_115_305),
    ],
)
@pytest.mark.parametrize("downsample_bn", ["main", "shortcut"])
def test_published_counts(name, classes, trainable, total, downsample_bn):
    with torch.device("meta"):
        net = timm.create_model(name, num_classes=classes, downsample_bn=downsample_bn)
    statistics = sum(m.num_features * 2 for m in norms(net))
    parameters = sum(p.numel() for p in net.parameters())
    assert parameters + statistics == total and trainable in (None, parameters)


def test_the_command_counts_as_the_paper_does(capsys):
    assert main(["cost", "bagnet77_lowd", "--image-size", "224", "--num-classes", "1001", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parameters_and_statistics"] == 20_628_393


def test_the_table_of_sides_and_channels():
    with torch.device("meta"):
        net = timm.create_model("bagnet77_lowd", num_classes=1001).eval()
        x, seen = net.stem(torch.empty(1, 3, 224, 224)), []
        assert x.shape == (1, 64, 222, 222)
        for stage in net.stages:
            seen.append([])
            for block in stage:
                x = block(x)
                seen[-1].append((x.shape[1], x.shape[-1]))
        assert net.reduce(x).shape == (1, 512, 19, 19) and net.num_features == 512 and net.feature_channels == 2048
    assert seen == [
        [(256, 110), (256, 108), (256, 108)],
        [(512, 53), (512, 51), (512, 51), (512, 51)],
        [(1024, 25), (1024, 23), (1024, 23), (1024, 23), (1024, 23), (1024, 23)],
        [(2048, 21), (2048, 19), (2048, 19)],
    ]


@pytest.mark.parametrize("side, cells", [(331, 32), (224, 19), (128, 7), (100, 3), (96, 3), (85, 2), (84, 1), (77, 1)])
def test_cells_by_side(side, cells):
    with torch.device("meta"):
        net = timm.create_model("bagnet77", num_classes=0).eval()
        assert net.grid(side) == net.forward_features(torch.empty(1, 3, side, side)).shape[-1] == cells
        assert net.grid(76) == net.grid(1) == 0
        with pytest.raises(ValueError, match="images of 224 x 76 px are smaller than the receptive field of 77 px"):
            net(torch.empty(1, 3, 224, 76))


@pytest.mark.parametrize("name", ["bagnet9", "bagnet17", "bagnet_small", "test_bagnet_lowd"])
def test_the_grid_of_every_side_is_that_of_the_network(name):
    with torch.device("meta"):
        net = timm.create_model(name, num_classes=0).eval()
        for side in range(net.receptive_field, net.receptive_field + 3 * net.jump + 1):
            features = net.forward_features(torch.empty(1, 3, side, side + 5))
            assert features.shape[-2:] == (net.grid(side), net.grid(side + 5))


def window(net, i, j, height, width):
    """First and last row, then column, of the pixels that move cell (i, j)."""
    x = torch.randn(1, 3, height, width, dtype=torch.float64, requires_grad=True)
    net.forward_features(x)[0, :, i, j].sum().backward()
    seen = x.grad[0].abs().sum(0)
    rows, columns = (seen.sum(axis).nonzero().flatten() for axis in (1, 0))
    # Every pixel of the window has an influence, not only those at its edges.
    assert (seen > 0).sum() == len(rows) * len(columns) == (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
    return rows[0].item(), rows[-1].item(), columns[0].item(), columns[-1].item()


@pytest.mark.parametrize("downsample_bn", ["main", "shortcut"])
@pytest.mark.parametrize("field", [9, 17, 33, 77])
def test_a_cell_sees_its_window_and_all_of_it(field, downsample_bn):
    net = saccader(f"bagnet{field}", widths=(16,) * 4, stem=16, downsample_bn=downsample_bn)
    assert (net.receptive_field, net.jump) == (field, 8)
    side = field + 27
    assert net.grid(side) == 4
    for i, j in [(0, 0), (1, 3), (3, 2)]:
        assert window(net, i, j, side, side + 8) == (8 * i, 8 * i + field - 1, 8 * j, 8 * j + field - 1)


@pytest.mark.parametrize("name", ["bagnet_small", "test_bagnet", "test_bagnet_lowd"])
def test_small_fields(name):
    net = saccader(name)
    rf, jump = net.receptive_field, net.jump
    assert (rf, jump) == (13, 2 if name == "bagnet_small" else 4)
    assert window(net, 2, 4, 33, 32) == (2 * jump, 2 * jump + rf - 1, 4 * jump, 4 * jump + rf - 1)


def test_the_shortcut_has_the_centre_of_each_window():
    net = saccader(downsample_bn="shortcut")
    block = net.stages[1][0]
    assert block.conv2[0].kernel_size == (3, 3) and block.conv2[0].stride == (2, 2)
    with torch.no_grad():
        for p in block.conv3.parameters():
            p.zero_()
        block.conv3[1].running_mean.zero_()
        x = torch.randn(1, 64, 11, 12, dtype=torch.float64)
        conv, norm = block.shortcut
        centres = x[:, :, 1:-1:2, 1:-1:2]
        projected = torch.einsum("oc,bchw->bohw", conv.weight[:, :, 0, 0], centres)
        torch.testing.assert_close(block(x), norm(projected).relu())
        assert centres.shape[-2:] == block.conv2(torch.zeros(1, 16, 11, 12, dtype=torch.float64)).shape[-2:]


@pytest.mark.parametrize("downsample_bn", ["main", "shortcut"])
def test_the_second_norm_hides_the_scale_of_the_first_where_there_is_a_projection(downsample_bn):
    net = saccader(widths=(16,) * 4, layers=(2, 2, 1, 1), downsample_bn=downsample_bn).train()
    projections = [len(block.shortcut) > 0 for block in blocks(net)]
    assert projections == [True, False, True, False, False, False]
    x = torch.randn(4, 16, 12, 12, dtype=torch.float64)
    for block, projects in zip(blocks(net), projections, strict=True):
        x = x.detach()
        scale, (before, after) = block.conv3[1].weight, (block(x), None)
        with torch.no_grad():
            scale.mul_(3)
            after = block(x)
            scale.div_(-3)
            flipped = block(x)
            scale.neg_()
        hidden = projects and downsample_bn == "main"
        assert torch.allclose(before, after, rtol=1e-4, atol=1e-4) == hidden
        assert not torch.allclose(before, flipped, rtol=1e-2, atol=1e-2)
        x = before


def test_where_the_released_norm_is():
    for kind, in_main, in_shortcut in (("main", [3, 2], [1, 0]), ("shortcut", [2, 2], [2, 0])):
        stage = timm.create_model("test_bagnet", downsample_bn=kind).stages[0]
        assert [len(block.conv3) for block in stage] == in_main and [
            len(block.shortcut) for block in stage
        ] == in_shortcut


def test_a_zero_scale_that_the_second_norm_meets_has_316_times_the_gradient():
    gradients = []
    for kind in ("main", "shortcut"):
        torch.manual_seed(0)
        block = timm.create_model("test_bagnet", downsample_bn=kind).double().train().stages[0][0]
        x = torch.randn(4, 16, 9, 9, dtype=torch.float64)
        with torch.no_grad():
            block.shortcut[0].weight.zero_()  # the shortcut is then 0 in both
            (block.conv3[2] if kind == "main" else block.shortcut[1]).bias.fill_(9.0)  # and the ReLU has no effect
        (
            block(x) * torch.linspace(0, 1, x[0, 0, 1:-1:2, 1:-1:2].numel(), dtype=torch.float64).view(4, 4)
        ).sum().backward()
        gradients.append(block.conv3[1].weight.grad)
    torch.testing.assert_close(gradients[0], gradients[1] / 1e-5**0.5)


def test_how_it_starts():
    torch.manual_seed(0)
    net = timm.create_model("test_bagnet_lowd")
    last = {id(block.conv3[1]) for block in blocks(net)}
    for norm in norms(net):
        assert (norm.momentum, norm.eps) == (0.1, 1e-5) and not norm.bias.any()
        assert torch.equal(norm.weight, torch.full_like(norm.weight, float(id(norm) not in last)))
    weighted = [m for m in net.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    net.reset_classifier(3)
    for m in [*weighted, net.fc]:
        fan = (m.weight.shape[0] + m.weight.shape[1]) * m.weight[0, 0].numel()
        limit = (6 / fan) ** 0.5
        assert 0.9 * limit < m.weight.abs().max() <= limit and (m.bias is None or not m.bias.any())
        assert abs(m.weight.std() - limit / 3**0.5) < 0.2 * limit


@pytest.mark.parametrize("name", ["bagnet9", "bagnet33_lowd", "bagnet77_lowd", "bagnet_small", "test_bagnet_lowd"])
def test_nothing_is_padded_and_only_the_classifier_has_a_bias(name):
    with torch.device("meta"):
        net = timm.create_model(name)
    convs = [m for m in net.modules() if isinstance(m, torch.nn.Conv2d)]
    assert all(m.padding == (0, 0) and m.bias is None for m in convs) and net.fc.bias is not None


@pytest.mark.parametrize("name", ["test_bagnet", "test_bagnet_lowd"])
def test_the_class_of_the_mean_is_the_mean_of_the_classes(name):
    net = saccader(name)
    with torch.no_grad():
        net.fc.bias.normal_()
        x = torch.randn(2, 3, 32, 40, dtype=torch.float64)
        cells = net.reduce(net.forward_features(x))
        logits = torch.nn.functional.conv2d(cells, net.fc.weight[:, :, None, None], net.fc.bias)
        assert logits.shape == (2, 5, 5, 7)
        torch.testing.assert_close(net(x), logits.mean((2, 3)))
        torch.testing.assert_close(net(x), net.fc(net.pooled(net.forward_features(x))), rtol=0, atol=0)


def test_a_window_cut_out_has_the_features_of_its_cell():
    net = saccader("test_bagnet_lowd")
    x, rf, jump = torch.randn(1, 3, 40, 40, dtype=torch.float64), net.receptive_field, net.jump
    with torch.no_grad():
        cells = net.forward_features(x)
        alone = net.forward_features(x[:, :, 3 * jump : 3 * jump + rf, jump : jump + rf])
    torch.testing.assert_close(alone[0, :, 0, 0], cells[0, :, 3, 1])


@pytest.mark.parametrize(
    "options, says",
    [
        ({"downsample_bn": "both"}, "downsample_bn='both' is unknown; use main or shortcut"),
        ({"layers": (1, 1)}, "are of different lengths"),
        ({"kernel3": (3, 1, 0, 0)}, "must be from 0 to layers"),
        ({"layers": (2, 1, 0, 1)}, "must be from 0 to layers"),
    ],
)
def test_options_that_do_not_fit(options, says):
    with pytest.raises(ValueError, match=says):
        timm.create_model("test_bagnet", **options)


def test_reductions_are_what_the_maps_show():
    net = timm.create_model("bagnet77_lowd", features_only=True).to("meta")
    assert net.feature_info.reduction() == [2, 4, 8, 8] and net.feature_info.channels() == [256, 512, 1024, 2048]
    assert [m.shape[-1] for m in net(torch.empty(1, 3, 224, 224, device="meta"))] == [108, 51, 23, 19]

import io
import json
import re
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from rich.console import Console
from torch import nn

from foveal.classification import Classification
from foveal.cli import main
from foveal.data import DataModule, ImageDataset, Reading, TensorDataset
from foveal.draws import Draws
from foveal.errors import ConfigError, DataError
from foveal.evaluation import Setting, evaluate_faithfulness
from foveal.evaluation.faithfulness import area, cells, grad_cam, shifted
from foveal.glimpse.base import WholeImage
from foveal.images import Occluded, TensorViews, as_views
from foveal.layers import AttentionLayer
from foveal.models import create_classifier
from foveal.runs import ModelInfo, save_model
from tests.evaluation.tiny import CLASSES, Spotter

CPU = Setting(device="cpu")


def visible(pixels):
    """Logits whose first class has a probability that is the share of the square that can be seen."""
    share = 1e-9 + (1 - 1e-6) * pixels.sum((1, 2, 3)) / (3 * 64)
    rest = torch.full((len(share), len(CLASSES) - 1), 1 / (len(CLASSES) - 1)) * (1 - share)[:, None]
    return torch.cat([share[:, None], rest], 1).log()


class Seer(Spotter):
    """Looks at three cells: the one with the square first, or third with the only contribution."""

    locations = (3,)

    def __init__(self, additive=False):
        super().__init__()
        self.additive = additive

    def forward(self, images, locations=None, policy="greedy", draws=None, contributions=True):
        views = as_views(images)
        seen = super().forward(views, locations, policy, draws, contributions)
        logits = visible(views.look(np.arange(len(views)), self.root(views.sizes), (24, 24)))
        looks = seen.glimpses
        if self.additive:
            box = looks.box.reshape(len(views), 4, 4)[:, [0, 3, 2, 1]].reshape(-1, 4)
            added = torch.tensor([9.0, 0.0, 0.1, 0.2]).repeat(
                len(views)
            )  # the first look, the thumbnail, is never ranked
            looks = type(looks)(
                looks.image,
                box,
                looks.size,
                looks.level,
                looks.parent,
                looks.probability,
                F.one_hot(torch.zeros(len(added), dtype=torch.long), len(CLASSES)) * added[:, None],
            )
        return Classification(logits, looks, (), bytes_read=None)


class Brightness(AttentionLayer):
    def forward(self, x):
        self.record_map(lambda: F.avg_pool2d(x[:, :2], 8))  # two heads
        return x


class Net(nn.Module):
    """Attention to the square."""

    num_classes, in_chans = len(CLASSES), 3

    def __init__(self):
        super().__init__()
        self.stage, self.last = nn.Sequential(Brightness()), nn.Identity()

    def forward(self, x):
        return visible(self.last(self.stage(x)))


def attending():
    return WholeImage(Net(), image_size=24, mean=(0.0,), std=(1.0,))


def squares(count):
    """White squares in cells of 3 x 3, all of the first class; and their boxes."""
    images, rng = torch.zeros(count, 3, 24, 24), np.random.default_rng(0)
    corners = 8 * np.stack(np.divmod(rng.integers(9, size=count), 3), 1)
    for image, (y, x) in zip(images, corners, strict=True):
        image[:, y : y + 8, x : x + 8] = 1
    around = np.concatenate([corners, corners + 8], 1).astype(float)
    return images, np.zeros(count, dtype=int), around


def data(count=60, boxes=lambda around: around):
    images, target, around = squares(count)
    return DataModule(classes=CLASSES, test=TensorDataset(images, target, CLASSES, boxes(around)), name="squares")


# ---- curves


@pytest.mark.parametrize("model", [Seer(), Seer(additive=True)], ids=["in the order chosen", "by contribution"])
def test_looks_at_what_matters(model):
    deletion, insertion = evaluate_faithfulness(model, data(400), setting=Setting(device="cpu", batch_size=100)).curves
    for curve in (deletion, insertion):
        assert curve.share == pytest.approx([0, 1 / 9, 2 / 9, 1 / 3]) and curve.judge == "model"
    assert deletion.probability == pytest.approx([1, 0, 0, 0], abs=2e-6) and deletion.accuracy[0] == 1
    assert insertion.probability == pytest.approx([0, 1, 1, 1], abs=2e-6) and insertion.accuracy == (0, 1, 1, 1)
    assert (deletion.auc, insertion.auc) == pytest.approx((1 / 6, 5 / 6), abs=2e-6)
    # A region moved at random covers a share s of anything with s of the image: the expected curves are 1 - s and s.
    for curve, expected in ((deletion, 5 / 6), (insertion, 1 / 6)):
        assert curve.random_probability == pytest.approx(
            [1 - s if curve is deletion else s for s in curve.share], abs=0.06
        )  # 3 standard errors
        assert curve.auc_random == pytest.approx(expected, abs=0.05)
        assert curve.difference == pytest.approx(curve.auc - curve.auc_random)
        assert curve.interval[0] < curve.auc - expected < curve.interval[1]


@pytest.mark.parametrize("options", [{}, {"attention": "stage"}, {"attention": "stage.0"}])
def test_maps_over_the_whole_image(options):
    result = evaluate_faithfulness(attending(), data(300), **options, setting=Setting(device="cpu", batch_size=100))
    assert result.about["regions"] == "map stage.0"
    deletion, insertion = result.curves
    assert deletion.share == pytest.approx([round(i * 9 / 10) / 9 for i in range(11)])
    assert deletion.auc == pytest.approx(1 / 18, abs=2e-6) and insertion.auc == pytest.approx(17 / 18, abs=2e-6)
    assert deletion.auc_random == pytest.approx(0.5, abs=0.05) and insertion.auc_random == pytest.approx(0.5, abs=0.05)
    assert deletion.interval[1] < -0.35 and insertion.interval[0] > 0.35
    assert [hits.what for hits in result.pointing] == ["centre on the object"]


def test_the_interval_is_that_of_paired_differences():
    model, images = Seer(), data(30)
    curve = evaluate_faithfulness(model, images, setting=CPU).curves[0]
    moves = np.floor(Draws(0, 0, np.arange(30)).uniform("random regions", 2) * 24)
    aucs = []
    for image, move in zip(squares(30)[0], moves, strict=True):
        order = np.argsort(-F.avg_pool2d(image[:1], 8).flatten().numpy(), kind="stable")[:3]
        left, heights = image.clone(), [1.0]
        for cell in order:
            mask = torch.zeros(24, 24, dtype=torch.bool)
            y, x = 8 * (cell // 3), 8 * (cell % 3)
            mask[y : y + 8, x : x + 8] = True
            left = torch.where(torch.roll(mask, tuple(move.astype(int).tolist()), (0, 1)), 0.0, left)
            heights.append(float(left.sum()) / 192)
        aucs.append(np.trapezoid(heights, [0, 1, 2, 3]) / 3)
    apart = 1 / 6 - np.array(aucs)
    half = 1.959964 * apart.std(ddof=1) / 30**0.5
    assert curve.auc_random == pytest.approx(np.mean(aucs), abs=1e-5)
    assert curve.interval == pytest.approx((apart.mean() - half, apart.mean() + half), abs=1e-5)


def test_area_is_the_mean_height_by_trapezoids():
    share = np.array([[0, 0.1, 0.3, 0.3], [0, 0.5, 0.75, 1], [0.2, 0.2, 0.2, 0.2]])
    height = np.array([[1, 0.5, 0.2, 0.1], [0, 1, 1, 0.5], [0.1, 0.2, 0.3, 0.4]])
    expected = [(0.1 * 0.75 + 0.2 * 0.35) / 0.3, np.trapezoid(height[1], share[1]), 0.25]
    np.testing.assert_allclose(area(share, height), expected)


def test_regions_moved_by_every_distance_cover_everything_alike():
    size, box = (6, 5), np.array([[[1, 0, 4, 2.0], [0, 3, 6, 5]]])
    covered = np.zeros((2, *size))
    for move in np.ndindex(size):
        for n, pieces in enumerate(shifted(box, np.array([size]), np.array([move], dtype=float))[0]):
            once = np.zeros(size)
            for y0, x0, y1, x1 in pieces.astype(int):
                once[y0:y1, x0:x1] += 1
            rolled = np.zeros(size)
            y0, x0, y1, x1 = box[0, n].astype(int)
            rolled[y0:y1, x0:x1] = 1
            assert np.array_equal(once, np.roll(rolled, move, (0, 1)))
            covered[n] += once
    assert (covered[0] == 6).all() and (covered[1] == 12).all()


def test_what_is_shown_and_what_is_hidden_make_up_the_image():
    views, boxes = TensorViews(torch.rand(2, 3, 12, 10)), np.array([[[1, 2, 5, 6.0]], [[0, 0, 0, 0]]])
    whole, fill = np.array([[0, 0, 12, 10.0]] * 2), torch.tensor([0.1, 0.2, 0.3])
    hidden, shown = (
        Occluded(views, boxes, inverse).look(np.arange(2), whole, (12, 10), fill=fill) for inverse in (False, True)
    )
    torch.testing.assert_close(hidden + shown, views.images + fill[:, None, None])
    assert torch.equal(shown[0, :, 1:5, 2:6], views.images[0, :, 1:5, 2:6]) and torch.equal(hidden[1], views.images[1])


def test_cells_lie_in_the_image_best_first():
    values = torch.tensor([[[1.0, 4, 2], [0, 3, 3]]])
    wide = cells(values, np.array([[-20, 0, 40, 90.0]]), np.array([[20, 90]]))[0]
    assert wide[:, 1].tolist() == [30, 30, 60, 60, 0, 0] and wide[:, 0].tolist() == [0, 10, 10, 0, 0, 10]
    assert wide[:, 2].tolist() == [10, 20, 20, 10, 10, 20]
    low = cells(values, np.array([[-30, 0, 30, 90.0]]), np.array([[30, 90]]))[0]  # the upper row is outside
    assert low[:3].tolist() == [[0, 30, 30, 60], [0, 60, 30, 90], [0, 0, 30, 30]] and np.isnan(low[3:]).all()
    square = cells(values, np.array([[0, 0, 60, 90.0]]), np.array([[60, 90]]))
    order = [(y // 30, x // 30) for y, x, *_ in square[0].tolist()]
    assert order == [(0, 1), (1, 1), (1, 2), (0, 2), (0, 0), (1, 0)]
    fine = torch.rand(2, 64, 48)
    assert cells(fine, np.tile([0, 0, 64, 48], (2, 1)), np.full((2, 2), 64)).shape == (2, 256, 4)


# ---- pointing


def test_pointing_by_hand():
    at, half = evaluate_faithfulness(Seer(), data(200), setting=Setting(device="cpu", batch_size=100)).pointing
    assert (at.what, at.share, at.images) == ("centre on the object", 1.0, 200)
    assert (half.what, half.share) == ("half of the object covered", 1.0)
    moves = np.floor(Draws(0, 0, np.arange(200)).uniform("random regions", 2) * 24)
    centres = squares(200)[2][:, :2] + 4
    moved = (centres + moves) % 24
    assert at.random == pytest.approx(((abs(moved - centres) < 4) | (moved == centres - 4)).all(1).mean())
    assert at.interval[0] < 1 and at.random_interval[0] < 1 / 9 < at.random_interval[1]


def test_pointing_beside_the_object():
    at, half = evaluate_faithfulness(Seer(), data(40, boxes=lambda around: around + 5), setting=CPU).pointing
    assert at.share == half.share == 0


@pytest.mark.parametrize(("wider", "share"), [(8, 1.0), (9, 0.0)])
def test_half_of_the_object_is_enough(wider, share):
    # So wide to both sides that no other look covers half of it.
    half = evaluate_faithfulness(
        Seer(), data(40, boxes=lambda around: around + np.array([0, -wider / 2, 0, wider / 2])), setting=CPU
    ).pointing[1]
    assert half.share == share


def test_the_object_inside_the_regions_pixel_by_pixel():
    wide = np.array([0, -4, 0, 4])
    result = evaluate_faithfulness(attending(), data(50, boxes=lambda around: around + wide), setting=CPU)
    images, _, around = squares(50)
    moves = np.floor(Draws(0, 0, np.arange(50)).uniform("random regions", 2) * 24).astype(int)
    expected = np.zeros((2, 11))
    for image, (y0, x0, y1, x1), move in zip(images, (around + wide).astype(int), moves, strict=True):
        bright = image[0].reshape(3, 8, 3, 8).mean((1, 3)).flatten()
        order = np.argsort(-bright.numpy(), kind="stable")
        for step in range(11):
            shown = np.isin(np.arange(9), order[: round(step * 9 / 10)]).reshape(3, 3).repeat(8, 0).repeat(8, 1)
            for row, mask in zip(expected, (shown, np.roll(shown, tuple(move), (0, 1))), strict=True):
                row[step] += mask[y0:y1, max(x0, 0) : x1].sum() >= (y1 - y0) * (x1 - x0) / 2
    assert result.found.images == 50 and result.found.share == result.curves[0].share
    assert result.found.half == pytest.approx(expected[0] / 50) and result.found.random_half == pytest.approx(
        expected[1] / 50
    )
    assert 0 < result.found.random_half[3] < result.found.half[3]


def test_no_boxes_no_game():
    none = DataModule(classes=CLASSES, test=TensorDataset(*squares(20)[:2], CLASSES), name="squares")
    without = evaluate_faithfulness(Seer(), none, setting=CPU)
    assert without.pointing == () and without.found is None and without.as_dict()["found"] is None
    some = TensorDataset(*squares(20)[:2], CLASSES)
    some.boxes = [np.empty((0, 4))] * 15 + [np.array([[0, 0, 24, 24.0]])] * 5
    (at, _) = evaluate_faithfulness(
        Seer(), DataModule(classes=CLASSES, test=some, name="squares"), setting=CPU
    ).pointing
    assert (at.images, at.share, at.random) == (5, 1, 1)


def test_boxes_that_cannot_be_read_cost_the_game_alone():
    class Unreadable(list):
        def __getitem__(self, i):
            if i == 3:
                raise DataError("3.json: is empty; unpack it again")
            return super().__getitem__(i)

    images = data(10)
    images.test.boxes = Unreadable(images.test.boxes)
    result = evaluate_faithfulness(Seer(), images, setting=CPU)
    assert (
        result.about["images"] == 10
        and result.pointing[0].images == 9
        and result.errors == (("image 3", "3.json: is empty; unpack it again"),)
    )


def test_a_data_set_says_where_its_object_is(tmp_path):
    Image.new("RGB", (60, 30)).save(tmp_path / "a.png")
    boxes = [np.array([[3, 6, 15, 60.0]])]
    plain = ImageDataset([str(tmp_path / "a.png")], [0], ("a",), boxes=boxes)
    squashed = ImageDataset([str(tmp_path / "a.png")], [0], ("a",), boxes=boxes, reading=Reading(image_size=20))
    part = ImageDataset([str(tmp_path / "a.png")], [0], ("a",), boxes=boxes, regions=np.array([[0, 0, 9, 9]]))
    assert plain.objects(0).tolist() == boxes[0].tolist() and part.objects(0) is None
    np.testing.assert_allclose(squashed.objects(0), [[2, 2, 10, 20]])


# ---- Grad-CAM


class Pooled(nn.Module):
    num_classes, in_chans = len(CLASSES), 3

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 20, 3, padding=1, stride=2), nn.Linear(20, len(CLASSES))
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.head(self.act(self.conv(x)).mean((2, 3)))


@pytest.mark.parametrize("frozen", [False, True])
def test_grad_cam_of_global_average_pooling(frozen):
    pytest.importorskip("captum")
    torch.manual_seed(0)
    network, images, target = Pooled().requires_grad_(not frozen), torch.randn(4, 3, 16, 12), torch.tensor([0, 5, 2, 2])
    with torch.no_grad():
        maps = network.act(network.conv(images))
    # dy/dA = w / (h w) everywhere, so that is the weight of a map (equation 1).
    expected = torch.einsum("bk,bkyx->byx", network.head.weight[target], maps) / (8 * 6)
    torch.testing.assert_close(grad_cam(network, "act", images, target), expected)
    # Before the ReLU a gradient is w / (h w) where the map is above 0: what comes after in place must not spoil the
    # map.
    with torch.no_grad():
        before = network.conv(images)
    weight = network.head.weight[target] * (before > 0).float().mean((2, 3)) / (8 * 6)
    torch.testing.assert_close(grad_cam(network, "conv", images, target), torch.einsum("bk,bkyx->byx", weight, before))


def test_grad_cam_ranks_the_cells_of_a_dense_network():
    pytest.importorskip("captum")
    model = WholeImage(Net(), image_size=24, mean=(0.0,), std=(1.0,))
    result = evaluate_faithfulness(model, data(60), cam="last", setting=CPU)
    assert result.about["regions"] == "cam last" and result.curves[0].auc < 0.2 < 0.4 < result.curves[0].auc_random
    with pytest.raises(ConfigError, match="`cam` head: this module gives no maps"):
        evaluate_faithfulness(
            WholeImage(Pooled(), image_size=24, mean=(0.5,), std=(0.5,)), data(4), cam="head", setting=CPU
        )


def test_without_captum_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(ConfigError, match=r"pip install 'foveal\[cam\]'"):
        evaluate_faithfulness(attending(), data(4), cam="last", setting=CPU)


# ---- judges, files, errors


def test_judges_answer_for_the_class_that_the_model_predicted():
    class Certain(Seer):
        def forward(self, *args, **kwargs):
            return Classification(
                torch.tensor([[0, 3.0, 0, 0, 0, 0]]).expand(len(args[0]), 6), super().forward(*args, **kwargs).glimpses
            )

    curves = evaluate_faithfulness(Seer(), data(20), judges=[Certain()], setting=CPU).curves
    assert [(c.judge, c.change) for c in curves] == [
        (j, c) for j in ("model", "model 1") for c in ("deletion", "insertion")
    ]
    assert curves[2].probability == pytest.approx([1 / (5 + np.exp(3))] * 4) and curves[2].accuracy == (0, 0, 0, 0)


def test_bad_images_cost_themselves_alone(tmp_path):
    images, target, around = squares(12)
    paths = [tmp_path / f"{i}.png" for i in range(12)]
    for path, pixels in zip(paths, images, strict=True):
        Image.fromarray((pixels.permute(1, 2, 0) * 255).byte().numpy()).save(path)
    paths[4].write_bytes(paths[4].read_bytes()[:60])
    dataset = ImageDataset(list(map(str, paths)), target, CLASSES, boxes=list(around[:, None]))
    result = evaluate_faithfulness(
        Seer(), DataModule(classes=CLASSES, test=dataset, name="files"), setting=Setting(device="cpu", batch_size=5)
    )
    assert result.about["images"] == result.pointing[0].images == 11 and result.curves[0].auc == pytest.approx(
        1 / 6, abs=2e-6
    )
    assert len(result.errors) == 1 and str(paths[4]) in result.errors[0][1]
    for path in paths:
        path.write_bytes(b"")
    with pytest.raises(DataError, match="none of the 12 images could be read"):
        evaluate_faithfulness(Seer(), DataModule(classes=CLASSES, test=dataset, name="files"), setting=CPU)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Run folders of a tiny TNet and a tiny dense network, not trained."""
    folders = {}
    images = {"name": "digits", "canvas": 96, "digit": [12, 16], "train": 10, "val": 10, "test": 12}
    for name, options in (
        ("tnet", {"backbone": "plain_convnet_32", "base_size": 32, "locations": [2]}),
        ("plain_convnet_32", {"image_size": 96}),
    ):
        torch.manual_seed(0)
        folders[name] = folder = tmp_path_factory.mktemp(name)
        model = create_classifier(name, num_classes=10, **options)
        save_model(folder, model, ModelInfo({"name": name, **options}, tuple("0123456789")))
        (folder / "config.yaml").write_text(yaml.safe_dump({"data": images}))
    return folders["tnet"], folders["plain_convnet_32"]


def test_help_shows_examples(capsys):
    assert main(["faithfulness", "--help"]) == 0
    assert capsys.readouterr().out.count("foveal faithfulness runs/") >= 3


def test_the_command(capsys, runs, tmp_path):
    tnet, dense = map(str, runs)
    assert main(["faithfulness", tnet, "--by", dense, "--limit", "8", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "deletion" in said and "pointing game, 8 images" in said
    stored = json.loads((runs[0] / "faithfulness.json").read_text())
    assert stored["command"].startswith("foveal faithfulness") and stored["regions"] == "looks"
    assert {"model", "judges", "split", "device", "machine", "torch", "foveal", "seed", "how"} < set(stored)
    assert (
        len(stored["found"]["half"]) == 3
        and len(stored["curves"]) == 4
        and stored["pointing"][1]["images"] == 8
        and len(stored["curves"][0]["probability"]) == 3
    )
    assert Image.open(runs[0] / "faithfulness.png").size[0] > 1000
    assert main(["faithful", tnet, "--locations", "4", "--out", str(tmp_path), "--quiet", "--device", "cpu"]) == 0
    assert len(json.loads((tmp_path / "faithfulness.json").read_text())["curves"][0]["share"]) == 5


@pytest.mark.parametrize("name", ["faithfulness", "faithful"])
def test_errors_of_the_command_name_its_flags(capsys, runs, name):
    assert main([name, str(runs[1]), "--map", "nowhere", "--cam", "stages.2", "--device", "cpu"]) == 2
    assert capsys.readouterr().err.startswith(
        "foveal: --map nowhere and --cam stages.2: regions are ranked by one of them"
    )
    assert main([name, str(runs[0]), "--cam", "stages.2", "--device", "cpu"]) == 2
    assert capsys.readouterr().err.endswith("its looks are ranked; leave --map and --cam out\n")


def test_the_command_with_grad_cam(runs, tmp_path):
    pytest.importorskip("captum")
    assert (
        main(
            [
                "faithfulness",
                str(runs[1]),
                "--cam",
                "stages.2",
                "--limit",
                "4",
                "--out",
                str(tmp_path),
                "--device",
                "cpu",
            ]
        )
        == 0
    )
    stored = json.loads((tmp_path / "faithfulness.json").read_text())
    assert stored["regions"] == "cam stages.2" and stored["curves"][0]["share"][-1] == pytest.approx(1)


def test_the_table_has_a_row_a_curve():
    shown = Console(width=80, record=True, file=io.StringIO())
    shown.print(evaluate_faithfulness(Seer(), data(20), judges=[Seer()], setting=CPU).table())
    rows = [re.split(" {2,}", line) for line in shown.export_text().splitlines()]
    curves = [[change, judge] for judge in ("model", "model 1") for change in ("deletion", "insertion")]
    assert [row[:2] for row in rows if row[0] in ("deletion", "insertion")] == curves
    assert [row[0] for row in rows if row[0].startswith(("centre", "half"))] == [
        "centre on the object",
        "half of the object covered",
    ]


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        (attending(), {"attention": "nowhere"}, "`attention` nowhere: .* use one of stage.0"),
        (attending(), {"attention": "stage", "cam": "last"}, "ranked by one of them"),
        (attending(), {"locations": (2,)}, "looks once"),
        (WholeImage(Pooled(), 24), {}, "neither looks closer nor attends; .* `cam` act"),
        (WholeImage(Pooled(), 24), {"cam": "layer4"}, "no module of this name; use one such as conv, head, act"),
        (WholeImage(Pooled(), 24), {"attention": "layer4"}, "attends; .* `cam` act"),
        (Seer(), {"cam": "last"}, "chooses where to look"),
        (Seer(), {"locations": ()}, "shows no region"),
    ],
)
def test_what_does_not_fit_is_told(model, options, words):
    with pytest.raises(ConfigError, match=words):
        evaluate_faithfulness(model, data(4), **options, setting=CPU)

"""Scan, then look: what a scan keeps against brute force on the whole image, and what it costs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms import functional

from foveal.data.dataset import TensorDataset
from foveal.data.module import DataModule
from foveal.draws import Draws
from foveal.errors import ConfigError
from foveal.glimpse import places
from foveal.glimpse import scan as scanning
from foveal.glimpse.places import BLOCK, STRIDE, TILE, WINDOW
from foveal.glimpse.scan import Scan
from foveal.images import ArrayPyramid, ImageViews
from foveal.images.views import BlankViews, TensorViews
from foveal.objectives.rollout import MASKED
from foveal.policies import GREEDY, NEVER, Random, Sampled, plackett_luce
from foveal.prediction.cost import LookCounter, count_cost
from foveal.testing import CountingViews, GlimpseClassifierTester


def small(**options):
    torch.manual_seed(0)
    sizes = {"num_classes": 3, "look_size": 16, "scale": 2, "scout_width": 8, "locations": (3,), "candidates": 5}
    return Scan(**{**sizes, "reservoir": 3, **options}).eval()


def noise(*shape, seed=1):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def draws(count):
    return Draws(0, 0, np.arange(count))


class ScanTester(GlimpseClassifierTester):
    locations = ((), (1,), (4,))

    def test_glimpses_equal_the_looks_taken(self, model):
        views = CountingViews(self.images())
        out = self.run(model, views)
        blocks = [(i, model.first_looks(self.image[1:])[0].box) for i in range(2)]
        assert sorted([(g.image, g.box) for g in out.glimpses if g.level == 2] + blocks) == sorted(views.looks)
        for one in out:
            assert [g.parent for g in one.glimpses] == [None] + [0] * (len(one.glimpses) - 1)
            assert all(0 < g.probability <= 1 for g in one.glimpses)
            first = one.glimpses[0]
            assert first.box == (0, 0, *self.image[1:]) and first.size == tuple(
                -(-n // model.scale) for n in self.image[1:]
            )
            assert not first.contribution.any()

    @pytest.mark.skip("a scan reads the whole image; see test_cost_is_that_of_an_image_without_blank_places")
    def test_cost_does_not_depend_on_the_image(self): ...


class TestScan(ScanTester):
    def make(self):
        return small(num_classes=5)


class TestScanWithBackbone(ScanTester):
    image = (2, 96, 120)

    def make(self):
        return small(num_classes=4, backbone="plain_convnet_32", in_chans=2, look_size=32, scale=4, locations=(2,))


class TestScanWithAttention(ScanTester):
    def make(self):
        return small(num_classes=5, heads=2)


def test_attention_heads_are_cross_attention_of_pytorch():
    classes, heads, d, scores = 3, 2, 6, torch.tensor([[0.5, -1.0, 0.0, 2.0]])
    features, taken = noise(1, 4, d), np.array([[True, True, False, True]])
    w, query, key = noise(heads, classes, d, seed=2), noise(heads, d, seed=3), noise(heads, d, d, seed=4)
    head = scanning.Head(classes, heads)
    # A reader whose last layer has the values of each head, and its query times its key.
    last = torch.cat([w, (query[:, None] @ key)], 1).flatten(0, 1)
    parts, log_w = head.weigh(features @ last.T, scores, taken)
    mask = torch.where(torch.from_numpy(taken), scores, -torch.inf)
    keys, values = (torch.einsum("hod,bnd->bhno", m, features) for m in (key, w))
    expected = F.scaled_dot_product_attention(query[None, :, None], keys, values, mask[:, None, None], scale=1.0)
    torch.testing.assert_close(parts.sum(1), expected.mean(1)[:, 0])
    torch.testing.assert_close(head(features @ last.T), values.mean(1))
    assert not parts[0, 2].any() and log_w[0, 2] < MASKED
    torch.testing.assert_close(log_w.exp().sum(1), torch.ones(1))
    with pytest.raises(ConfigError, match="`heads` -1"):
        small(heads=-1)


# ------------------------------------------------------------------------------------------------ what is kept


def whole_scan(model, image):
    """Scores of all places of an image (C, H, W), by one pass over the padded image; NEVER where it is blank."""
    level = F.avg_pool2d(image[None], model.scale) if model.scale > 1 else image[None]
    level = (level - model.mean[:, None, None]) / model.std[:, None, None]
    rows, columns = (-(-n // STRIDE) for n in level.shape[2:])
    padded = F.pad(level, [WINDOW // 2, WINDOW // 2 + 1] * 2)
    with torch.no_grad():
        scores = model.scout(padded)[0, :rows, :columns]
    for y in range(rows):
        for x in range(columns):
            near = level[0, :, max(2 * y - 1, 0) : 2 * y + 2, max(2 * x - 1, 0) : 2 * x + 2]
            if (near == near[:, :1, :1]).all():
                scores[y, x] = NEVER
    return scores


def brute_peaks(scores, radius):
    """(row, column) of the places that no place up to ``radius`` away exceeds, by descending score."""
    found = []
    for y in range(scores.shape[0]):
        for x in range(scores.shape[1]):
            around = scores[max(y - radius, 0) : y + radius + 1, max(x - radius, 0) : x + radius + 1]
            if scores[y, x] > NEVER / 2 and scores[y, x] == around.max():
                found.append((float(scores[y, x]), y, x))
    return sorted(found, key=lambda peak: (-peak[0], peak[1:]))


@pytest.mark.parametrize(("scale", "radius"), [(1, 4), (2, 2)])
def test_peaks_are_those_of_one_pass_over_the_whole_image(scale, radius):
    model, image = small(scale=scale), noise(3, 88, 140)
    image[:, :30, 50:100] = 0.25
    assert model.radius == radius
    scores = whole_scan(model, image)
    expected = brute_peaks(scores, radius)
    found = model.scan(TensorViews(image[None]), 1000, GREEDY, draws(1), "x")
    assert found.taken.sum() == len(expected) > 5
    assert found.places[found.taken].tolist() == [list(peak[1:]) for peak in expected]
    values = torch.tensor([peak[0] for peak in expected])
    torch.testing.assert_close(model.scores(found)[0][: len(expected)], values, rtol=1e-4, atol=1e-5)
    every = torch.full((1, 1000), NEVER)
    every[0, : len(expected)] = values
    log_p = plackett_luce(every, torch.arange(len(expected))[None])[0].numpy()
    np.testing.assert_allclose(found.log_probability[found.taken], log_p, atol=1e-3)


@pytest.mark.parametrize("policy", [GREEDY, Sampled(), Random()])
def test_blocks_of_any_size_keep_the_same(monkeypatch, policy):
    model, images = small(scale=1), TensorViews(noise(2, 3, 150, 210))
    images.images[:, :, 40:70, :90] = 0.5
    blocks = {}
    for size in (1, 2, 3, 5, BLOCK):
        monkeypatch.setattr(places, "BLOCK", size)
        blocks[size] = model.scan(images, 9, policy, draws(2), "x", reservoir=6)
    whole = blocks.pop(BLOCK)
    assert whole.taken.all() and len(model._blocks(images.sizes)[0]) == 1
    for kept in blocks.values():
        assert (kept.places == whole.places).all() and torch.equal(kept.windows, whole.windows)
        assert torch.equal(model.scores(kept), model.scores(whole))
        np.testing.assert_allclose(kept.log_probability, whole.log_probability, rtol=0, atol=1e-9)


def test_windows_and_boxes_are_around_the_places():
    model, image = small(scale=2), noise(3, 90, 90)
    views = TensorViews(image[None])
    found = model.scan(views, 6, GREEDY, draws(1), "x")
    level = F.pad(F.avg_pool2d(image[None], 2)[0] * 2 - 1, [WINDOW // 2] * 4)  # mean and std are 0.5
    for (y, x), window, box in zip(
        found.places[0].tolist(), found.windows[0], model.boxes(found.places, views.sizes)[0], strict=True
    ):
        torch.testing.assert_close(window, level[:, 2 * y : 2 * y + WINDOW, 2 * x : 2 * x + WINDOW])
        corner = np.clip(np.array([4 * y + 1, 4 * x + 1]) - 8, 0, 90 - 16)
        assert box.tolist() == [*corner, *(corner + 16)]


@pytest.mark.parametrize(("block", "radius"), [(1, 1), (2, 9), (5, 30), (32, 2), (32, 300)])
def test_blocks_cover_each_tile_once(monkeypatch, block, radius):
    monkeypatch.setattr(places, "BLOCK", block)
    model = small(scale=1)
    model.radius, ring = radius, -(-radius // TILE)
    for height, width in ((10, 10), (500, 520), (2000, 300), (16, 4000)):
        seen = np.zeros((-(-height // 16), -(-width // 16)), int)
        for one in model._blocks(np.array([[height, width]]))[0]:
            seen[one.first[0] : one.last[0], one.first[1] : one.last[1]] += 1
            assert (one.begin == np.maximum(one.first - ring, 0)).all()
            assert (one.end == np.minimum(one.last + ring, seen.shape)).all()
            assert (one.last > one.first).all()
            assert np.prod(one.last - one.first) <= 2 * block**2 + 3 * block * (ring + 2) + (ring + 2) ** 2
        assert (seen == 1).all()


class Streamed(BlankViews):
    """Noise of any size, of which nothing is kept; the elements of every look are counted."""

    def __init__(self, side):
        super().__init__(1, (side, side), 1)
        self.elements = []

    def look(self, which, boxes, size, **options):
        self.elements.append(len(boxes) * size[0] * size[1])
        return torch.rand(len(which), 1, *size, generator=torch.Generator().manual_seed(len(self.elements)))


def test_memory_does_not_grow_with_the_image(monkeypatch):
    monkeypatch.setattr(places, "BLOCK", 2)
    best, compared = places.best_of, []
    monkeypatch.setattr(places, "best_of", lambda keys, *rest: compared.append(len(keys)) or best(keys, *rest))
    model, largest = small(in_chans=1, scale=4), {}
    for side in (600, 2400):
        views = Streamed(side)
        blocks = model._blocks(views.sizes)[0]
        found = model.scan(views, 7, GREEDY, draws(1), "x")
        assert found.taken.all() and len(views.elements) == len(blocks) > side / 60
        assert found.windows.untyped_storage().nbytes() == 7 * WINDOW**2 * 4
        largest[side] = max(views.elements)
    # A block offers at most all of its places, and 7 are kept.
    most = max(np.prod(block.last - block.first) for block in blocks)
    assert largest[600] == largest[2400] and max(compared) <= most * TILE**2


def test_blank_places_are_neither_scored_nor_chosen():
    model, image = small(in_chans=1, scale=2, locations=(50,)), torch.zeros(1, 1, 300, 400)
    image[0, 0, 110:120, 210:230] = noise(10, 20)
    scored = []
    model.scout.features[0].register_forward_hook(lambda module, seen, out: scored.append(tuple(seen[0].shape)))
    looked = model(TensorViews(image))
    # The tile of 32 px from (96, 192), its right neighbour (from column 224), then windows.
    assert [shape[0] for shape in scored if shape[2] > WINDOW] == [2]
    for glimpse in list(looked.glimpses)[1:]:
        middle = (glimpse.box[0] + 8, glimpse.box[1] + 8)
        assert 106 <= middle[0] <= 124 and 206 <= middle[1] <= 234
    assert 1 < len(looked.glimpses) < 51


def test_random_places_are_uniform():
    model, image = small(in_chans=1, scale=1), torch.zeros(1, 1, 40, 40)
    image[0, 0, 12:17, 8:13] = noise(5, 5)  # places of rows 6 to 8 and columns 4 to 6, and none beside them
    found = model.scan(TensorViews(image.expand(900, -1, -1, -1)), 2, Random(), draws(900), "x")
    cells, counts = np.unique(found.places[:, 0], axis=0, return_counts=True)
    n = len(cells)
    assert 9 <= n <= 16 and ((counts - 900 / n) ** 2 / (900 / n)).sum() < 2.5 * n
    assert (found.places[:, 0] != found.places[:, 1]).any(1).all()
    np.testing.assert_allclose(found.log_probability, np.log([[1 / n, 1 / (n - 1)]] * 900))


def test_sampled_places_follow_the_scores():
    model, images = small(in_chans=1, scale=1), noise(1, 1, 24, 24)
    with torch.no_grad():
        model.scout.score.weight.mul_(30)
    every = model.scan(TensorViews(images), 100, GREEDY, draws(1), "x")
    expected = model.scores(every)[0].softmax(0).detach().numpy()[: every.taken.sum()]
    sampled = model.scan(TensorViews(images.expand(800, -1, -1, -1)), 1, Sampled(), draws(800), "x").places[:, 0]
    shares = [(sampled == place).all(1).mean() for place in every.places[0][: len(expected)]]
    assert sum(shares) == pytest.approx(1) and np.abs(shares - expected).max() < 0.07


def test_draws_depend_on_the_sample_only():
    model, images = small(), noise(3, 3, 100, 100)
    for policy in ("random", "sampled"):
        first = model(TensorViews(images), policy=policy, draws=Draws(4, 0, np.array([7, 8, 9])))
        again = model(TensorViews(images[1:2]), policy=policy, draws=Draws(4, 0, np.array([8])))
        other = model(TensorViews(images[1:2]), policy=policy, draws=Draws(4, 1, np.array([8])))
        assert first[1].glimpses.box.tolist() == again.glimpses.box.tolist() != other.glimpses.box.tolist()


# ------------------------------------------------------------------------------------------------ images


def test_images_of_different_sizes_in_one_batch():
    model = small()
    arrays = [(noise(h, w, 3, seed=h) * 255).byte().numpy() for h, w in ((100, 60), (12, 9), (64, 200), (100, 60))]
    views = ImageViews([ArrayPyramid(a) for a in arrays])
    with torch.no_grad():
        together = model(views)
        for one, array in zip(together, arrays, strict=True):
            alone = model(torch.from_numpy(array).permute(2, 0, 1)[None])
            assert one.glimpses.box.tolist() == alone.glimpses.box.tolist()
            torch.testing.assert_close(one.logits, alone[0].logits, rtol=1e-4, atol=1e-5)
    # A look is centred on an image that is smaller.
    assert together[1].glimpses.box[1:].tolist() == [[-2, -4, 14, 12]] * (len(together[1].glimpses) - 1)


def test_images_with_few_peaks_have_as_many_turns():
    model, images = small(in_chans=1), torch.zeros(2, 1, 64, 64)
    images[0, :, 30:34, 30:34], images[1] = 1, noise(1, 64, 64)
    turns, walk = [], model.walk(images, (4,))
    try:
        which, logits = next(walk)
        while True:
            turns.append((which.tolist(), logits))
            which, logits = walk.send(np.ones(len(which), dtype=bool))
    except StopIteration as end:
        looked = end.value
    whole = model(images, (4,))
    assert [which for which, _ in turns] == [[0, 1]] * 4
    assert [sum(g.level == 2 for g in one.glimpses) for one in looked] == [1, 4]
    torch.testing.assert_close(turns[2][1][0], looked.logits[0])
    torch.testing.assert_close(looked.logits, whole.logits)


def test_a_blank_image_is_looked_at_in_its_middle():
    model = small()
    one = model(torch.full((1, 3, 80, 120), 0.7))[0]
    assert [g.box for g in one.glimpses][1:] == [(33, 53, 49, 69)] and one.glimpses[1].probability == 1
    rollout = model.train().rollouts(torch.full((2, 3, 80, 120), 0.7), ("greedy",), draws(2))[0]
    assert torch.isfinite(model.default_objective()([rollout], torch.tensor([0, 1]), torch.zeros(0))[0])


# ------------------------------------------------------------------------------------------------ training


def test_rollouts_of_training_look_at_peaks_and_other_places():
    model, images = small().train(), noise(2, 3, 120, 120)
    images[1] = 0
    images[1, :, 50:60, 50:60] = noise(3, 10, 10)
    views = CountingViews(images)
    (rollout,) = model.rollouts(views, ("greedy",), draws(2))
    peaks = model.scan(TensorViews(images), 5, GREEDY, draws(2), "scan 0")
    boxes = model.boxes(peaks.places, views.sizes)
    seen = [box for image, box in views.looks[2:] if image == 0]
    assert seen[:5] == [tuple(box) for box in boxes[0].tolist()] and len(set(seen)) == len(seen) == 8
    taken = rollout.scores[0][:, 0] > MASKED
    assert rollout.glimpse_logits.shape == (2, 8, 3) and taken[0].all() and 0 < taken[1].sum() <= 8
    weights = rollout.scores[0][:, 0].exp()
    torch.testing.assert_close(rollout.logits, (weights[..., None] * rollout.glimpse_logits).sum(1))
    rollout.logits[0, 0].backward()
    assert model.scout.features[0].weight.grad.abs().sum() > 0 and model.reader[0].weight.grad.abs().sum() > 0


def test_looks_are_distorted_as_by_torchvision_and_in_training_only():
    looks = F.avg_pool2d(noise(2, 2, 41, 41), 5, 1, 2)
    amounts = np.array([[0.3, 0.0, 0.0, 0.0], [0.0, 0.2, 0.2, 0.0]])
    turned = functional.rotate(looks[0], math.degrees(0.3), functional.InterpolationMode.BILINEAR)
    smaller = functional.affine(
        looks[1], 0, [0, 0], math.exp(-0.2), [0.0], interpolation=functional.InterpolationMode.BILINEAR
    )
    torch.testing.assert_close(scanning.distort(looks, amounts), torch.stack([turned, smaller]), atol=2e-3, rtol=0)
    sheared = scanning.distort(looks[:1], np.array([[0.0, 0.0, 0.0, 0.5]]))
    torch.testing.assert_close(sheared[..., 20, :], looks[:1, :, 20])
    assert (sheared - looks[:1])[..., 5, :].abs().max() > 0.1
    views = TensorViews(noise(2, 1, 64, 64))
    for training in (False, True):
        plain, distorted = (
            small(in_chans=1, distortion=amount).train(training).rollouts(views, ["greedy"], draws(2))[0]
            for amount in (0.0, 0.2)
        )
        assert torch.equal(plain.values, distorted.values)
        assert torch.equal(plain.logits, distorted.logits) != training


def test_cost_is_that_of_an_image_without_blank_places():
    model, width = small(in_chans=1, scale=2), 8

    def scout(side):
        first = (side - WINDOW) // 2 + 5
        return first**2 * width * 9 + ((first - 2) ** 2 + (first - 4) ** 2) * width**2 * 9

    reader = 64 * 24 * 9 + 16 * 24 * 48 * 9 + 4 * 48 * 96 * 9 + 4 * 96 * 128 * 9 + 128 * 3
    for size, tiles in (((96, 128), 12), ((64, 65), 6)):
        for locations in (1, 3):
            expected = tiles * scout(TILE * STRIDE + WINDOW - STRIDE) + locations * (scout(WINDOW) + reader)
            assert count_cost(model, size, locations).macs == expected
    counter = LookCounter(model)
    costs = [counter(model(noise(1, 1, h, 64))[0], (h, 64), (3,)) for h in (64, 96, 64)]
    assert costs[0] == costs[2] == count_cost(model, 64, 3).macs < costs[1] == count_cost(model, (96, 64), 3).macs


def test_options_that_cannot_be():
    for options, message in (
        ({"scale": 3}, "not a power of two"),
        ({"candidates": 0}, "`candidates` 0: is too small"),
        ({"distortion": -0.1}, "`distortion` -0.1: is not from 0 to 1"),
        ({"distortion": math.nan}, "`distortion` nan: is not from 0 to 1"),
        ({"pretrained": True}, "`backbone`: is missing"),
        ({"locations": (2, 1)}, "give one number"),
    ):
        with pytest.raises(ConfigError, match=message):
            small(**options)


def shapes(count, seed):
    """Canvases of 96 px with one of three textures of 8 px, the class, among 6 patches of noise."""
    rng = np.random.default_rng(seed)
    line = np.arange(8) // 2 % 2
    textures = np.stack([np.tile(line, (8, 1)), np.tile(line[:, None], (1, 8)), line[:, None] ^ line])
    images, targets = np.zeros((count, 1, 96, 96), np.uint8), rng.integers(3, size=count)
    for image, target in zip(images[:, 0], targets, strict=True):
        corners = [np.array(divmod(n, 8)) * 12 for n in rng.choice(64, 7, replace=False)]
        for (y, x), patch in zip(corners, [textures[target], *rng.integers(2, size=(6, 8, 8))], strict=True):
            image[y : y + 8, x : x + 8] = 200 * patch
    return TensorDataset(torch.from_numpy(images), targets, ("vertical", "horizontal", "checked"))


@pytest.mark.slow
def test_learns_to_find_and_read():
    data = DataModule(classes=("a", "b", "c"), train=shapes(512, 0), test=shapes(128, 1))
    model = small(in_chans=1, scale=1, scout_width=16, mean=(0.0,), std=(1.0,), candidates=4, reservoir=2).train()
    objective, optimiser = model.default_objective(), torch.optim.AdamW(model.parameters(), 3e-3)
    for epoch in range(6):
        for batch in data.loader("train", batch_size=16):
            (rollout,) = model.rollouts(batch.views, objective.plan(0), Draws(0, epoch, batch.index))
            loss, _, _ = objective([rollout], batch.target, torch.zeros(0))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    test = data.test.batch(0, range(128), 0)
    right = {}
    with torch.no_grad():
        for policy in ("greedy", "random"):
            logits = model.eval()(test.views, locations=1, policy=policy).logits
            right[policy] = (logits.argmax(1) == test.target).float().mean().item()
    assert right["greedy"] > 0.9 > 0.65 > right["random"], right


def test_tiles_are_scored_in_batches_of_few_sizes():
    model, seen = small(scale=1), noise(1, 3, 8 * 16 + 9, 10 * 16 + 9)
    sizes, full = set(), np.zeros((1, 8, 10), bool)
    model.scout.features[0].register_forward_hook(lambda module, given, out: sizes.add(len(out)))
    with torch.no_grad():
        every = model._score_tiles(seen, ~full)
        for count in range(1, 81):
            full.flat[:count] = True
            assert (model._score_tiles(seen, full) == every[:count]).all()
    assert sizes == {2, 4, 8, 16, 32, 64, 96}

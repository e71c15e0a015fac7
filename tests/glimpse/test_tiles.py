"""Classifiers of all tiles: iterative patch selection and attention-based multiple-instance pooling."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import resnet18

from foveal.draws import Draws, generator
from foveal.errors import ConfigError
from foveal.glimpse.ips import IPS
from foveal.glimpse.mil import AttentionPooling
from foveal.images import ImageViews
from foveal.images.pyramid import ArrayPyramid
from foveal.images.views import BlankViews, TensorViews
from foveal.models import create_model
from foveal.prediction import count_cost
from foveal.testing import CountingViews, GlimpseClassifierTester

SMALL_IPS = {"backbone": None, "stages": None, "tile_size": 16, "memory": 5, "at_once": 4, "heads": 2, "key": 4}


def small_ips(**options):
    torch.manual_seed(0)
    return IPS(3, **{**SMALL_IPS, "hidden": 16, **options}).eval()


def small_mil(**options):
    torch.manual_seed(0)
    return AttentionPooling(3, **{"tile_size": 16, "hidden": 8, "at_once": 4, **options}).eval()


def noise(*shape, seed=1):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def draws(count):
    return Draws(0, 0, np.arange(count))


class TileTester(GlimpseClassifierTester):
    def test_all_locations_with_one_checkpoint(self, model):
        out = self.run(model, self.images())
        assert torch.isfinite(out.logits).all() and out.locations.tolist() == [self.kept(model, self.image[1:])] * 2
        with pytest.raises(ConfigError, match="reads every tile"):
            model(self.images(), locations=2)

    def test_glimpses_equal_the_looks_taken(self, model):
        views = CountingViews(self.images())
        out = self.run(model, views)
        every = [(i, tuple(box)) for i in range(2) for box in unfolded(model, self.image[1:])]
        assert sorted(views.looks) == sorted(every)  # each tile once
        for one in out:
            first, *tiles = one.glimpses
            assert first.box == (0, 0, *self.image[1:]) and first.level == 1 and first.parent is None
            boxes = {g.box for g in tiles}
            assert len(boxes) == len(tiles) and boxes <= {box for _, box in every}
            assert {(g.level, g.parent, g.size, g.probability) for g in tiles} == {(2, 0, model.size, 1)}

    def kept(self, model, size):
        return min(getattr(model, "memory", math.inf), len(unfolded(model, size)))

    @pytest.mark.skip("there is no choice of locations")
    def test_random_looks_depend_on_the_sample_only(self): ...

    @pytest.mark.skip("all tiles are read")
    def test_cost_does_not_depend_on_the_image(self): ...


class TestIPS(TileTester):
    additive = False

    def make(self):
        return small_ips()


class TestIPSWithBackbone(TileTester):
    image = (2, 64, 96)
    additive = False

    def make(self):
        return small_ips(backbone="test_resnet", stages=2, in_chans=2, tile_size=32, scale=2, memory=100)


class TestAttentionPooling(TileTester):
    def make(self):
        return small_mil()


class TestGatedAttentionPooling(TileTester):
    image = (2, 64, 96)

    def make(self):
        return small_mil(backbone="plain_convnet_32", in_chans=2, tile_size=32, tile_stride=16, gated=True)


def unfolded(model, size):
    """Boxes of tiles, one after another, until the image is covered."""
    side, step = model.size[0] * model.scale, model.stride * model.scale
    starts = []
    for extent in size:
        starts.append([0])
        while starts[-1][-1] + side < extent:
            starts[-1].append(starts[-1][-1] + step)
    return [(float(y), float(x), float(y + side), float(x + side)) for y in starts[0] for x in starts[1]]


def patches(images, side, step):
    """(B, N, C, side, side) patches of normalised images."""
    return images.unfold(2, side, step).unfold(3, side, step).permute(0, 2, 3, 1, 4, 5).flatten(1, 2) * 2 - 1


# ------------------------------------------------------------------------------------------------ the published IPS


def transcribed(state, patches, order, memory, at_once, tokens, heads, key):
    """Logits and chosen tiles of the paper's algorithm for one image (N, C, side, side), written down again."""
    encoder = resnet18()
    encoder.conv1 = nn.Conv2d(patches.shape[1], 64, 7, 2, 3, bias=False)
    names = {name: value for name, value in state.items() if name.startswith("encoder.0.")}
    encoder.load_state_dict({name.removeprefix("encoder.0."): value for name, value in names.items()}, strict=False)
    net = nn.Sequential(
        encoder.conv1, encoder.bn1, encoder.relu, encoder.maxpool, encoder.layer1, encoder.layer2, encoder.avgpool
    ).eval()
    w = {name.removeprefix("attention."): value for name, value in state.items()}
    place, rate = torch.arange(len(patches))[:, None], 10000 ** (-torch.arange(0, 128, 2) / 128)
    codes = torch.zeros(len(patches), 128)
    codes[:, 0::2], codes[:, 1::2] = torch.sin(place * rate), torch.cos(place * rate)

    def attention(x):
        q = (w["query"][0] @ w["to_query.weight"].T).view(tokens, heads, key)
        k = (x @ w["to_key.weight"].T).view(-1, heads, key)
        return (torch.einsum("thd,nhd->htn", q, k) / math.sqrt(key)).softmax(-1)

    embedded = net(patches).flatten(1) + codes
    kept = order[:memory]
    for first in range(memory, len(order), at_once):
        pool = torch.cat([kept, order[first : first + at_once]])
        kept = pool[attention(embedded[pool]).mean((0, 1)).argsort(descending=True)[:memory]]
    x = embedded[kept]
    v = (x @ w["to_value.weight"].T).view(-1, heads, key)
    seen = torch.einsum("htn,nhd->thd", attention(x), v).flatten(1) @ w["merge.weight"].T + w["query"][0]
    seen = F.layer_norm(seen, (128,), w["norm_attention.weight"], w["norm_attention.bias"], 1e-6)
    inner = F.relu(seen @ w["layers.0.weight"].T + w["layers.0.bias"]) @ w["layers.2.weight"].T + w["layers.2.bias"]
    out = F.layer_norm(inner + seen, (128,), w["norm_layers.weight"], w["norm_layers.bias"], 1e-6)
    return out.mean(0) @ state["head.weight"].T + state["head.bias"], kept


def test_selection_and_logits_are_those_of_the_published_algorithm():
    torch.manual_seed(3)
    options = {"tile_size": 24, "memory": 6, "at_once": 5, "queries": 4, "mean": (0.5,), "std": (0.5,)}
    model = create_model("ips.reference", num_classes=5, **options).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.02 * torch.randn_like(p))
        for name, buffer in model.named_buffers():
            if name.endswith("running_var"):
                buffer.mul_(0.5 + torch.rand_like(buffer))
        images = noise(2, 1, 96, 120)
        kept, logits = model.select(TensorViews(images)), model(images).logits
        order = torch.from_numpy(generator(0, 0, 20, "tiles").permutation(20))
        for i, tiles in enumerate(patches(images, 24, 24)):
            expected, chosen = transcribed(model.state_dict(), tiles, order, 6, 5, 4, 8, 16)
            assert kept.tiles[i].tolist() == chosen.tolist() and len(set(chosen.tolist()) - set(order[:6].tolist()))
            torch.testing.assert_close(logits[i], expected, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(kept.pixels[i], tiles[chosen], rtol=0, atol=1e-6)


def test_the_reference_has_the_published_sizes():
    model = create_model("ips.reference")
    # conv1 1 x 64 x 49, layer1 4 x 64 x 64 x 9, layer2 (64 + 3 x 128) x 128 x 9 and a shortcut 64 x 128; batch norms.
    encoder = 3136 + 147_456 + 516_096 + 8192 + 2 * (64 * 5 + 128 * 5)
    assert sum(p.numel() for p in model.encoder.parameters()) == encoder
    # Query, three projections and one back, two layers of 512, layer norms, and the classifier.
    assert sum(p.numel() for p in model.attention.parameters()) == 128 + 4 * 128**2 + 2 * 128 * 512 + 640 + 4 * 128
    assert (model.memory, model.at_once, model.attention.heads, model.size, model.stride) == (100, 100, 8, (50, 50), 50)
    assert model.count(np.array([[1500, 1500]])).tolist() == [900]


def test_training_selects_in_evaluation_mode_and_encodes_again_with_gradient():
    model, images, seen = small_ips(dropout=0.0).train(), noise(2, 3, 64, 64), []
    model.encoder[0].register_forward_hook(
        lambda module, x, out: seen.append((len(x[0]), model.encoder[1].training, out.requires_grad))
    )
    (rollout,) = model.rollouts(images, ("greedy",), draws(2))
    assert [n for n, *_ in seen] == [10, 8, 8, 6, 10]  # memory, parts of 4 for two images, memory again
    assert [how for _, *how in seen] == [[False, False]] * 4 + [[True, True]]
    assert model.encoder[1].training and model.encoder[1].num_batches_tracked == 1
    rollout.logits.sum().backward()
    assert model.encoder[0].weight.grad.abs().sum() > 0


def test_orders_of_training_depend_on_the_sample_only():
    model, images = small_ips(), np.arange(3)
    together = model._order(3, images, 30, Draws(0, 1, np.array([4, 7, 9])))
    alone = model._order(1, images[:1], 30, Draws(0, 1, np.array([7])))
    assert together[1].tolist() == alone[0].tolist() != together[0].tolist()
    assert sorted(alone[0].tolist()) == list(range(30))


@pytest.mark.parametrize("make", [small_ips, small_mil])
def test_blank_tiles_encoded_once_change_nothing(make):
    images, encoded = noise(2, 3, 96, 96), []
    images[:, :, :50] = 0.5
    images[0, :, 60:, 60:] = 0.25
    plain, reusing = make(), make(reuse_blank=True)
    reusing.encoder[0].register_forward_hook(lambda module, x, out: encoded.append(len(x[0])))
    with torch.no_grad():
        expected, found = plain(images), reusing(images)
    torch.testing.assert_close(found.logits, expected.logits)
    assert found.glimpses.box.tolist() == expected.glimpses.box.tolist()
    assert sum(encoded) < 2 * 36 - 20


# ------------------------------------------------------------------------------------------------ the published pooling


@pytest.mark.parametrize("gated", [False, True])
def test_pooling_is_that_of_the_paper(gated):
    model, image = small_mil(gated=gated), noise(1, 3, 64, 80)
    with torch.no_grad():
        looked = model(image)
        h = model.encoder(patches(image, 16, 16)[0])
        net = model.attention
        scores = [float(net.score.bias) for _ in h]
        for k, row in enumerate(h):
            hidden = torch.tanh(net.hidden.weight @ row + net.hidden.bias)
            if gated:
                hidden = hidden * torch.sigmoid(net.gate.weight @ row + net.gate.bias)
            scores[k] += float(net.score.weight[0] @ hidden)
        a = np.exp(scores) / np.exp(scores).sum()
        z = sum(float(weight) * row for weight, row in zip(a, h, strict=True))
        torch.testing.assert_close(looked.logits[0], model.head(z), rtol=1e-4, atol=1e-5)
    parts = looked.glimpses.contribution
    torch.testing.assert_close(parts[0], model.head.bias)
    for weight, row, part in zip(a, h, parts[1:], strict=True):
        torch.testing.assert_close(part, float(weight) * (model.head.weight @ row), rtol=1e-4, atol=1e-6)


def test_training_takes_a_sample_of_tiles():
    model, images = small_mil(train_tiles=6), noise(2, 3, 64, 64)
    views = CountingViews(images)
    model.train().rollouts(views, ("greedy",), draws(2))
    assert len(set(views.looks)) == 12 and {image for image, _ in views.looks} == {0, 1}
    seen = [model._tiles(views, Draws(0, epoch, np.array([5, 8])))[0] for epoch in range(300)]
    counts = np.bincount(np.concatenate(seen).ravel(), minlength=16) / 600
    assert np.abs(counts - 6 / 16).max() < 0.1
    alone = model._tiles(TensorViews(images[:1]), Draws(0, 2, np.array([8])))[0]
    assert alone[0].tolist() == seen[2][1].tolist()
    model.eval()
    assert len(model(images)[0].glimpses) == 17


# ------------------------------------------------------------------------------------------------ images of any size


@pytest.mark.parametrize("make", [small_ips, small_mil])
def test_images_of_different_sizes_in_one_batch(make):
    model = make()
    arrays = [(noise(h, w, 3, seed=h) * 255).byte().numpy() for h, w in ((70, 60), (12, 9), (33, 48), (70, 60))]
    with torch.no_grad():
        together = model(ImageViews([ArrayPyramid(a) for a in arrays]))
        for one, array in zip(together, arrays, strict=True):
            alone = model(torch.from_numpy(array).permute(2, 0, 1)[None])
            assert one.glimpses.box.tolist() == alone.glimpses.box.tolist()
            torch.testing.assert_close(one.logits, alone[0].logits, rtol=1e-4, atol=1e-5)


class Streamed(BlankViews):
    """Noise of any size, of which nothing is kept; the tiles of every call are counted."""

    def __init__(self, side):
        super().__init__(1, (side, side), 3)
        self.tiles = []

    def look(self, which, boxes, size, **options):
        self.tiles.append(len(boxes))
        return torch.rand(len(which), 3, *size, generator=torch.Generator().manual_seed(len(self.tiles)))


@pytest.mark.parametrize("make", [small_ips, small_mil])
def test_tiles_of_a_large_image_are_read_a_few_at_a_time(make):
    for side in (64, 208):
        views = Streamed(side)
        with torch.no_grad():
            make()(views)
        assert sum(views.tiles) == (side // 16) ** 2 and max(views.tiles) <= 5


def test_memory_of_a_scan_does_not_grow_with_the_image(monkeypatch):
    model, compared = small_ips(), set()
    scores = model.attention.scores
    monkeypatch.setattr(model.attention, "scores", lambda tiles: compared.add(tiles.shape[1]) or scores(tiles))
    kept = [model.select(Streamed(side)) for side in (64, 208)]
    assert {k.pixels.untyped_storage().nbytes() for k in kept} == {5 * 3 * 16**2 * 4} and max(compared) == 9


def test_cost_is_that_of_all_tiles():
    reader = 64 * 24 * 27 + 16 * 24 * 48 * 9 + 4 * 48 * 96 * 9 + 4 * 96 * 128 * 9
    pooling = 128 * 8 + 8 + 128 * 3
    assert count_cost(small_mil(), (64, 80)).macs == 20 * (reader + pooling)
    # Memory of 5, then 15 tiles in parts of 4, 4, 4 and 3: keys of all, values of the memory.
    keys = 128 * 8 + 8
    attention = (9 * 3 + 8) * keys + 4 * 128 * 8
    end = 5 * (keys + 128 * 8 + 8) + 128 * 8 + 8 * 128 + 2 * 128 * 16 + 128 * 3
    assert count_cost(small_ips(), (64, 80)).macs == 20 * reader + attention + end


def test_options_that_cannot_be():
    for make, options, message in (
        (small_ips, {"memory": 0}, "`memory` 0: is too small"),
        (small_ips, {"tile_stride": 0}, "`tile_stride` 0: is too small"),
        (small_ips, {"backbone": "test_resnet", "stages": 9}, "`stages` 9: test_resnet does not have so many"),
        (small_mil, {"train_tiles": 0}, "`train_tiles` 0: is too small"),
        (small_mil, {"pretrained": True}, "`backbone`: is missing"),
    ):
        with pytest.raises(ConfigError, match=message):
            make(**options)
    with pytest.raises(ConfigError, match="`policy` random: this model reads every tile"):
        small_ips().check_policies(["random"])

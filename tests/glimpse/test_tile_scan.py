"""The scan of tiles at a coarse level, and looks at a finer one."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from foveal.draws import Draws
from foveal.errors import ConfigError
from foveal.glimpse.tile_scan import TileScan
from foveal.images.views import BlankViews
from foveal.policies import Random
from foveal.testing import CountingViews, GlimpseClassifierTester


def small(**options):
    torch.manual_seed(0)
    model = TileScan(3, **{"tile_size": 16, "coarse": 2, "hidden": 8, "candidates": 3, "reservoir": 2, **options})
    with torch.no_grad():  # scores of a new scout hardly differ
        model.scout[-1].weight.mul_(50)
    return model.eval()


def noise(*shape, seed=1):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


class TileScanTester(GlimpseClassifierTester):
    locations = ((), (1,), (5,))

    def test_glimpses_equal_the_looks_taken(self, model):
        views = CountingViews(self.images())
        out = self.run(model, views)
        side, step = model.size[0] * model.scale, model.stride * model.scale
        first = {(i, (float(y), float(x), y + side, x + side)) for i in (0, 1) for y in (0, step) for x in (0, step)}
        count = int(model.count(views.sizes[:1])[0])
        assert first <= set(views.looks) and len(views.looks) == 2 * (count + sum(model.locations))
        taken = [(g.image, g.box) for g in out.glimpses if g.level == 2]
        assert sorted(views.looks[2 * count :]) == sorted(taken)

    @pytest.mark.skip("all tiles are read at the coarse level")
    def test_cost_does_not_depend_on_the_image(self): ...

    @pytest.mark.skip("a grid is no first look")
    def test_first_looks(self): ...


class TestTileScan(TileScanTester):
    def make(self):
        return small()


class TestWithHeadsAndBackbone(TileScanTester):
    image = (2, 64, 96)
    locations = ((1,),)

    def make(self):
        return small(backbone="plain_convnet_32", in_chans=2, tile_size=32, tile_stride=16, heads=2, locations=(3,))


def test_answer_is_that_of_brute_force():
    """All tiles are encoded at both levels, by interpolation and slices; the best of the scout are added."""
    model, images = small(locations=(4,)), noise(1, 3, 64, 80)
    with torch.inference_mode():
        found = model(images)[0]
        fine = images.unfold(2, 16, 16).unfold(3, 16, 16).permute(0, 2, 3, 1, 4, 5).flatten(0, 2) * 2 - 1
        scores = model.scout(model.encoder(F.avg_pool2d(fine, 2)))[:, 0]
        best = scores.argsort(descending=True)[:4]
        logits = (scores[best].softmax(0)[:, None] * model.head(model.encoder(fine[best]))).sum(0)
    torch.testing.assert_close(found.logits, logits, rtol=1e-4, atol=1e-5)
    corners = [tuple(int(x) for x in g.box[:2]) for g in found.glimpses][1:]
    assert corners == [(16 * (i // 5), 16 * (i % 5)) for i in best.tolist()]


def test_reservoir_has_other_tiles():
    model = small().train()
    found = model.scan(CountingViews(noise(1, 3, 96, 96)), 3, Random(), Draws(0, 0, np.arange(1)), "scan 0", 2)
    assert found.taken.all() and len(set(found.tiles[0].tolist())) == 5
    few = model.scan(CountingViews(noise(1, 3, 16, 32)), 3, Random(), Draws(0, 0, np.arange(1)), "scan 0", 2)
    assert few.taken.sum() == 2


def test_blank_tiles_are_not_chosen():
    images = torch.full((1, 3, 64, 64), 0.3)
    images[:, :, 16:32, 48:64] = noise(3, 16, 16)
    assert [g.box for g in small()(images).glimpses if g.level == 2] == [(16.0, 48.0, 32.0, 64.0)]
    (middle,) = (g.box for g in small()(images * 0).glimpses if g.level == 2)
    assert middle == (32.0, 32.0, 48.0, 48.0)


def test_memory_of_a_scan_does_not_grow_with_the_image(monkeypatch):
    model, largest = small(at_once=8, skip_blank=False), []
    encode = model.encode
    monkeypatch.setattr(model, "encode", lambda pixels: largest.append(len(pixels)) or encode(pixels))
    found = model.scan(BlankViews(1, (160, 160)), 4, Random(), Draws(0, 0, np.arange(1)), "scan 0")
    assert max(largest) == 8 and sum(largest) == 100 and found.taken.sum() == 4


def test_errors():
    with pytest.raises(ConfigError, match="`tile_size` 15: is no multiple of `coarse` 2"):
        small(tile_size=15)
    with pytest.raises(ConfigError, match="`coarse` 2: the network does not take tiles of 160 px and of 80 px"):
        small(backbone="test_vit", tile_size=160, backbone_options={"dynamic_img_size": False})
    with pytest.raises(ConfigError, match="`features` 8: cannot be used with `backbone`"):
        small(backbone="test_resnet", features=8)

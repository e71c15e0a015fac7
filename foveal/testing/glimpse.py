"""Tests for classifiers that choose where to look. Derive a class and define `make`.

Example:
    >>> views = CountingViews(torch.rand(1, 3, 8, 8))
    >>> views.look(np.array([0]), np.array([[0.0, 0, 4, 4]]), (2, 2)).shape, views.looks
    (torch.Size([1, 3, 2, 2]), [(0, (0.0, 0.0, 4.0, 4.0))])
"""

from __future__ import annotations

import copy
import io

import numpy as np
import pytest
import safetensors.torch
import torch

from foveal.classification import Classification
from foveal.draws import Draws
from foveal.errors import ConfigError
from foveal.export import eager, export
from foveal.export.exporting import make_card
from foveal.glimpse.base import GlimpseClassifier
from foveal.images.views import BlankViews, TensorViews, Views
from foveal.runs import load
from foveal.runtime.adapter import ViewImages, answer_of
from foveal.runtime.loops import check_locations, loop_of


class CountingViews(TensorViews):
    """Views that record every look."""

    def __init__(self, images: torch.Tensor) -> None:
        super().__init__(images)
        self.looks: list[tuple[int, tuple[float, ...]]] = []

    def look(self, which, boxes, size, **options):
        self.looks += [(int(i), tuple(b)) for i, b in zip(which, boxes.tolist(), strict=True)]
        return super().look(which, boxes, size, **options)


class GlimpseClassifierTester:
    """Derive from this class and define ``make``; override attributes if needed.

    Attributes:
        image: (channels, height, width) of test images.
        locations: ``locations`` that the model is tested with.
        additive: contributions of glimpses add up to the logits.
        looks_once: chosen glimpses are parts of the first look, and no further look is read.
    """

    image = (3, 96, 96)
    locations: tuple[tuple[int, ...], ...] = ((),)
    additive = True
    looks_once = False

    def make(self) -> GlimpseClassifier:
        raise NotImplementedError

    @pytest.fixture
    def model(self) -> GlimpseClassifier:
        torch.manual_seed(0)
        return self.make().eval()

    def images(self, count: int = 2, size: tuple[int, int] | None = None) -> torch.Tensor:
        h, w = size or self.image[1:]
        return torch.rand(count, self.image[0], h, w, generator=torch.Generator().manual_seed(1))

    def run(self, model: GlimpseClassifier, images: torch.Tensor | Views, **options) -> Classification:
        with torch.inference_mode():
            return model(images, **options)

    def test_all_locations_with_one_checkpoint(self, model):
        before = copy.deepcopy(model.state_dict())
        for locations in self.locations:
            out = self.run(model, self.images(), locations=locations)
            assert out.logits.shape == (2, model.num_classes) and torch.isfinite(out.logits).all()
            expected = sum(int(np.prod(locations[: i + 1])) for i in range(len(locations)))
            assert out.locations.tolist() == [expected] * 2
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())

    def test_contributions_add_up_to_the_logits(self, model):
        if not self.additive:
            pytest.skip("not additive")
        out = self.run(model, self.images())
        for one in out:
            total = torch.stack([g.contribution for g in one.glimpses]).sum(0)
            torch.testing.assert_close(total, one.logits, rtol=1e-5, atol=1e-6)
        assert self.run(model, self.images(), contributions=False).glimpses.contribution is None

    def test_glimpses_equal_the_looks_taken(self, model):
        views = CountingViews(self.images())
        out = self.run(model, views)
        reported = sorted((g.image, g.box) for g in out.glimpses if g.level == 1 or not self.looks_once)
        assert reported == sorted(views.looks)
        for one in out:
            for i, g in enumerate(one.glimpses):
                assert (g.parent is None) == (i == 0) and (g.parent is None or g.parent < i)
                assert 0 < g.probability <= 1 + 1e-6

    def test_policies(self, model):
        for policy in model.policies:
            out = self.run(model, self.images(), policy=policy, draws=Draws(0, 0, np.arange(2)))
            assert torch.isfinite(out.logits).all() and len(set(out.locations.tolist())) == 1
        if model.locations:
            with pytest.raises(ConfigError, match="does not know it; use one of greedy"):
                self.run(model, self.images(), policy="clairvoyant")

    def test_batch_equals_single_images(self, model):
        images = self.images(3)
        together = self.run(model, images)
        for i, one in enumerate(together):
            alone = self.run(model, images[i : i + 1])[0]
            torch.testing.assert_close(alone.logits, one.logits, rtol=1e-4, atol=1e-5)
            assert [g.box for g in alone.glimpses] == [g.box for g in one.glimpses]

    def test_random_looks_depend_on_the_sample_only(self, model):
        images = self.images(2)
        first = self.run(model, images, policy="random", draws=Draws(0, 0, np.array([5, 9])))
        swapped = self.run(model, images.flip(0), policy="random", draws=Draws(0, 0, np.array([9, 5])))
        assert [g.box for g in first[0].glimpses] == [g.box for g in swapped[1].glimpses]

    @pytest.mark.parametrize("size", [(64, 160), (123, 77)])
    def test_images_that_are_not_square(self, model, size):
        out = self.run(model, self.images(2, size))
        assert torch.isfinite(out.logits).all()
        for g in out.glimpses:
            assert g.box[0] < size[0] and g.box[1] < size[1] and g.box[2] > 0 and g.box[3] > 0

    def test_cost_does_not_depend_on_the_image(self, model):
        small = self.run(model, BlankViews(1, (128, 128), self.image[0]))
        huge = self.run(model, BlankViews(1, (100_000, 100_000), self.image[0]))
        assert len(small.glimpses) == len(huge.glimpses) and small.logits.shape == huge.logits.shape

    def test_first_looks(self, model):
        views = CountingViews(self.images(1))
        self.run(model, views)
        assert {look.box for look in model.first_looks(self.image[1:])} <= {box for _, box in views.looks}

    def test_objective_trains_every_parameter(self, model):
        model.train()
        with torch.no_grad():  # layers initialised with zeros block gradients
            for p in model.parameters():
                p.add_(0.01 * torch.randn_like(p))
        objective = model.default_objective()
        grads = {name: False for name, _ in model.named_parameters()}
        for progress in (0.0, 1.0):
            rollouts = model.rollouts(self.images(4), objective.plan(progress), Draws(0, 0, np.arange(4)))
            loss, state, log = objective(rollouts, torch.arange(4) % model.num_classes, objective.initial_state())
            model.zero_grad()
            loss.backward()
            assert torch.isfinite(loss) and torch.isfinite(state).all() and "loss" in log
            for name, p in model.named_parameters():
                grads[name] |= p.grad is not None and bool(p.grad.abs().sum() > 0)
        assert not [name for name, has_gradient in grads.items() if not has_gradient]

    def test_rollouts_agree_with_prediction(self, model):
        images = self.images()
        with torch.no_grad():
            (rollout,) = model.rollouts(images, ("greedy",), Draws(0, 0, np.arange(2)))
        torch.testing.assert_close(rollout.logits, self.run(model, images).logits)
        if rollout.additive:
            torch.testing.assert_close(rollout.glimpse_logits.mean(1), rollout.logits, rtol=1e-5, atol=1e-6)

    def test_save_and_load(self, model):
        weights = safetensors.torch.load(
            safetensors.torch.save({k: v.contiguous() for k, v in model.state_dict().items()})
        )
        torch.manual_seed(7)
        other = self.make().eval()
        other.load_state_dict(weights)
        torch.testing.assert_close(
            self.run(other, self.images()).logits, self.run(model, self.images()).logits, rtol=0, atol=0
        )

    def test_deepcopy_and_pickle(self, model):
        copied = copy.deepcopy(model)
        buffer = io.BytesIO()
        torch.save(model, buffer)
        buffer.seek(0)
        pickled = torch.load(buffer, weights_only=False)
        expected = self.run(model, self.images()).logits
        with torch.no_grad():
            for p in model.parameters():
                p.zero_()
        for other in (copied, pickled):
            torch.testing.assert_close(self.run(other, self.images()).logits, expected, rtol=0, atol=0)

    def test_parameter_groups_partition_the_parameters(self, model):
        ids = [id(p) for group in model.parameter_groups().values() for p in group]
        assert len(ids) == len(set(ids)) and set(ids) == {id(p) for p in model.parameters()}

    def test_dense(self, model):
        dense = model.dense().eval()
        with torch.inference_mode():
            assert dense(torch.zeros(1, self.image[0], *model.size)).shape == (1, model.num_classes)

    # ---- export

    def test_runtime_gives_the_same_answer(self, model):
        """The loop of `foveal.runtime` over the parts of the model, which torch runs as they are."""
        if type(model).parts is GlimpseClassifier.parts:
            pytest.skip("the model has no parts to export")
        card = make_card(model, "torch", "fp32")
        loop = loop_of(card, eager(model.parts().parts))
        policies = [name for name in ("greedy", "random", "sampled") if name in card["policies"]]
        wide = self.images(2, (self.image[1] // 2, self.image[2] + 7))
        for images, locations in [(wide, model.locations), *((self.images(3), each) for each in self.locations)]:
            for policy in policies if images is wide else policies[:1]:
                draws = Draws(7, 0, np.arange(len(images)))
                expected = self.run(model, images, locations=locations, policy=policy, draws=draws)
                taken = check_locations(card, locations, policy)
                found = answer_of(loop(ViewImages(TensorViews(images)), taken, policy, draws))
                torch.testing.assert_close(found.logits, expected.logits, rtol=1e-4, atol=1e-5)
                for name in ("image", "box", "size", "level", "parent"):
                    np.testing.assert_array_equal(getattr(found.glimpses, name), getattr(expected.glimpses, name))
                given, wanted = found.glimpses, expected.glimpses
                torch.testing.assert_close(given.probability, wanted.probability, rtol=1e-4, atol=1e-5)
                assert (given.contribution is None) == (wanted.contribution is None)
                if wanted.contribution is not None:
                    torch.testing.assert_close(given.contribution, wanted.contribution, rtol=1e-4, atol=1e-5)

    @pytest.mark.slow
    @pytest.mark.parametrize("format", ["torch", "onnx", "openvino"])
    def test_export(self, model, tmp_path, format):
        """Files of each format, which `foveal.export.export` compares with the model."""
        if type(model).parts is GlimpseClassifier.parts:
            pytest.skip("the model has no parts to export")
        folder = export(model, format=format, out=tmp_path / "exported")
        images = self.images(3, (self.image[1] // 2, self.image[2] + 7))
        found, expected = load(folder)(images), self.run(model, images)
        torch.testing.assert_close(found.logits, expected.logits, rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(found.glimpses.box, expected.glimpses.box)

    # ---- walk

    def drive(self, model, images, wanted, locations=None):
        """Run `GlimpseClassifier.walk` with ``wanted(image, step)``; return the classification and all yielded
        values."""
        with torch.inference_mode():
            walk, yielded = model.walk(images, locations), []
            try:
                which, logits = next(walk)
                while True:
                    yielded.append((which.copy(), logits.clone()))
                    which, logits = walk.send(np.array([wanted(int(i), len(yielded)) for i in which]))
            except StopIteration as end:
                return end.value, yielded

    def test_complete_walk_equals_forward(self, model):
        images = self.images(3)
        whole, yielded = self.drive(model, images, lambda image, step: True)
        expected = self.run(model, images)
        torch.testing.assert_close(whole.logits, expected.logits, rtol=1e-4, atol=1e-5)
        for one, other in zip(whole, expected, strict=True):
            assert sorted(g.box for g in one.glimpses) == sorted(g.box for g in other.glimpses)
            probabilities = [sorted(round(g.probability, 5) for g in seen.glimpses) for seen in (one, other)]
            assert probabilities[0] == pytest.approx(probabilities[1], abs=1e-4)
        if yielded:
            first = self.run(model, images, locations=())
            torch.testing.assert_close(yielded[0][1], first.logits, rtol=1e-4, atol=1e-5)

    def test_walk_with_images_that_stop_early(self, model):
        images, size = self.images(3), model.locations[:1] or (0,)
        if not self.drive(model, images, lambda image, step: True)[1]:
            pytest.skip("this model cannot stop early")
        views = CountingViews(images)
        steps = {0: 0, 1: min(1, size[0]), 2: size[0]}  # number of steps of each image
        out, yielded = self.drive(model, views, lambda image, step: step <= steps[image])
        for i in range(3):
            locations = (steps[i], *model.locations[1:]) if steps[i] else ()
            alone = self.run(model, images[i : i + 1], locations=locations)[0]
            torch.testing.assert_close(out[i].logits, alone.logits, rtol=1e-4, atol=1e-5)
            assert sorted(g.box for g in out[i].glimpses) == sorted(g.box for g in alone.glimpses)
            if self.additive:
                total = torch.stack([g.contribution for g in out[i].glimpses]).sum(0)
                torch.testing.assert_close(total, out[i].logits, rtol=1e-4, atol=1e-5)
            parents = [g.parent for g in out[i].glimpses]
            assert parents[0] is None and all(0 <= p < n for n, p in enumerate(parents) if n)
        assert [which.tolist() for which, _ in yielded] == [[0, 1, 2], [1, 2], *[[2]] * (size[0] - 2)][: size[0]]
        if not self.looks_once:
            assert len(views.looks) == sum(len(one.glimpses) for one in out)

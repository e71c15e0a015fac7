"""`Classification` and `Glimpse`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from foveal.classification import Classification, Glimpses
from foveal.draws import Draws, generator
from foveal.tasks import MULTICLASS, MULTILABEL


def batch(images: int, seed: int = 0) -> Classification:
    g = torch.Generator().manual_seed(seed)
    count = 3 * images
    looks = Glimpses(
        image=np.repeat(np.arange(images), 3),
        box=np.arange(4.0 * count).reshape(-1, 4),
        size=(8, 8),
        level=np.tile([1, 2, 2], images),
        parent=np.tile([-1, 0, 0], images),
        probability=torch.rand(count, generator=g),
        contribution=torch.randn(count, 4, generator=g),
    )
    return Classification(
        torch.randn(images, 4, generator=g), looks, ("a", "b", "c", "d"), bytes_read=np.arange(images)
    )


def test_images_of_a_batch():
    both = batch(2)
    assert len(both) == 2 and both.label == [one.label for one in both] and both.locations.tolist() == [2, 2]
    second = both[1]
    assert (
        second.logits.shape == (4,) and len(second.glimpses) == 3 and second.locations == 2 and second.bytes_read == 1
    )
    assert (
        second.glimpses[2].parent == 0
        and second.glimpses[0].parent is None
        and second.glimpses[0].box == (12, 13, 14, 15)
    )
    assert both[-1].label == second.label
    with pytest.raises(IndexError):
        both[2]
    with pytest.raises(TypeError, match="one image"):
        len(second)


def test_top_and_probabilities():
    one = batch(1)[0]
    assert one.top(4)[0][0] == one.label and sum(p for _, p in one.top(9)) == pytest.approx(1)
    torch.testing.assert_close(one.probability, one.probabilities.max())


def test_joined_batches_are_their_parts():
    parts = [batch(2, 1), batch(3, 2)]
    joined = Classification.cat(parts)
    assert len(joined) == 5
    for got, want in zip(joined, [one for part in parts for one in part], strict=True):
        assert (
            torch.equal(got.logits, want.logits)
            and got.glimpses[1].box == want.glimpses[1].box
            and got.bytes_read == want.bytes_read
        )


def test_draws_depend_on_the_sample_alone():
    together = Draws(3, 1, np.array([4, 9, 2])).uniform("x", 2, 3)
    assert np.array_equal(together[1], Draws(3, 1, np.array([9])).uniform("x", 2, 3)[0])
    for other in (Draws(4, 1, np.array([9])), Draws(3, 2, np.array([9])), Draws(3, 1, np.array([8]))):
        assert not np.array_equal(together[1], other.uniform("x", 2, 3)[0])
    assert not np.array_equal(together[1], Draws(3, 1, np.array([9])).uniform("y", 2, 3)[0])
    assert generator(0, 0, 1, "a").random() == generator(0, 0, 1, "a").random()
    assert Draws(0, 0, np.array([], dtype=int)).gumbel("x", 4).shape == (0, 4)


# ---- tasks


def of_task(task, logits) -> Classification:
    whole = batch(2)
    return replace(whole, logits=torch.tensor(logits), task=task)


def test_labels_of_several():
    both = of_task(MULTILABEL, [[2.0, -1.0, 0.0, -3.0], [-1.0, -2.0, -3.0, -4.0]])
    assert both.label == ["a|c", ""] and [one.label for one in both] == ["a|c", ""]
    assert [one.predicted for one in both] == [(0, 2), ()]
    torch.testing.assert_close(both.probabilities, both.logits.sigmoid())
    torch.testing.assert_close(both.probability, torch.tensor([0.5, 1 - torch.tensor(-1.0).sigmoid()]))
    assert both[0].top(2) == [("a", pytest.approx(0.880797, abs=1e-6)), ("c", 0.5)]
    strict = of_task(MULTILABEL.with_thresholds([(3, 0.01), (0, 0.9)]), both.logits.tolist())
    assert strict.label == ["c|d", "d"] and Classification.cat([strict, strict]).label == ["c|d", "d"] * 2
    assert strict[0].decision_rules() == ["a is predicted from 90.0 %", "d is predicted from 1.00 %"]


def test_a_class_with_a_threshold():
    logits = [[2.0, -1.0, 0.0, -3.0], [-1.0, -2.0, 3.0, -4.0]]
    plain, rare = of_task(MULTICLASS, logits), of_task(MULTICLASS.with_thresholds([(1, 0.03)]), logits)
    assert plain.label == ["a", "c"] and rare.label == ["b", "c"]
    assert [one.predicted for one in rare] == [(1,), (2,)]
    torch.testing.assert_close(rare.probability, torch.stack([rare.probabilities[0, 1], rare.probabilities[1, 2]]))
    torch.testing.assert_close(rare[0].probability, rare.probability[0])
    assert plain.decision_rules() == [] and rare.decision_rules() == ["b is predicted from 3.00 %"]
    assert rare[0].top(1)[0][0] == "a"  # the most probable one is told, too

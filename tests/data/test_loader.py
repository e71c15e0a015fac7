"""Loaders: order, resuming, sharing among processes, workers."""

import gc
from itertools import chain

import numpy as np
import pytest
import torch
from PIL import Image

from foveal.data import Batch, ImageDataset, Loader, Reading, TensorDataset
from foveal.data.augmentation import crop_flip, draw_crop_flip
from foveal.draws import generator
from foveal.errors import ConfigError, DataError
from foveal.images.views import TensorViews


def numbered(count: int = 23) -> TensorDataset:
    """Images whose pixels are their index."""
    images = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(count, 3, 6, 5).contiguous()
    return TensorDataset(images, torch.arange(count) % 3, ("a", "b", "c"))


def indices(loader: Loader) -> list[list[int]]:
    return [batch.index.tolist() for batch in loader]


def test_batches_hold_what_their_index_says():
    data = numbered()
    for batch in Loader(data, batch_size=4, shuffle=True, seed=5):
        assert isinstance(batch.views, TensorViews)
        assert batch.views.images[:, 0, 0, 0].tolist() == batch.index.tolist()
        assert batch.target.tolist() == (batch.index % 3).tolist()
        assert batch.target.dtype == torch.int64
        assert len(batch) == len(batch.index)


def test_order_is_a_function_of_seed_and_epoch():
    loader = Loader(numbered(), batch_size=4, shuffle=True, seed=5)
    first = indices(loader)
    assert sorted(chain(*first)) == list(range(23))
    assert list(chain(*first)) == generator(5, 0, 0, "order").permutation(23).tolist()
    loader.set_epoch(1)
    second = indices(loader)
    assert second != first
    loader.set_epoch(0)
    assert indices(loader) == first
    assert indices(Loader(numbered(), batch_size=4, shuffle=True, seed=6)) != first
    assert indices(Loader(numbered(), batch_size=4)) == [list(range(i, min(i + 4, 23))) for i in range(0, 23, 4)]


def test_a_limit_takes_the_first_of_the_order():
    whole = list(chain(*indices(Loader(numbered(), batch_size=4, shuffle=True, seed=5))))
    for limit, batches in ((1, 1), (4, 1), (10, 3), (23, 6), (99, 6)):
        loader = Loader(numbered(), batch_size=4, shuffle=True, seed=5, limit=limit)
        assert list(chain(*indices(loader))) == whole[:limit] and len(loader) == batches


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_can_be_entered_at_any_batch(workers):
    loader = Loader(numbered(), batch_size=4, shuffle=True, seed=5, workers=workers)
    whole = indices(loader)
    for first_batch in (0, 2, 5, 6):
        loader.set_epoch(0, first_batch)
        assert indices(loader) == whole[first_batch:]
        assert len(loader) == 6
    loader.set_epoch(1)
    assert indices(loader) == indices_of_epoch(1)


def indices_of_epoch(epoch: int) -> list[list[int]]:
    loader = Loader(numbered(), batch_size=4, shuffle=True, seed=5)
    loader.set_epoch(epoch)
    return indices(loader)


def test_drop_last():
    loader = Loader(numbered(), batch_size=4, drop_last=True)
    assert len(loader) == len(indices(loader)) == 5


@pytest.mark.parametrize(
    ("count", "world_size", "drop_last"), [(23, 2, False), (23, 3, True), (9, 4, False), (24, 2, False)]
)
def test_processes_share_the_batches_of_one(count, world_size, drop_last):
    data = numbered(count)
    alone = indices(Loader(data, batch_size=2 * world_size, shuffle=True, seed=1, drop_last=drop_last))
    shared = [
        indices(Loader(data, batch_size=2, shuffle=True, seed=1, drop_last=drop_last, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    assert {len(batches) for batches in shared} == {len(alone)}
    for j, together in enumerate(alone):
        assert sorted(together) == sorted(chain(*(batches[j] for batches in shared)))
        lengths = [len(batches[j]) for batches in shared]
        assert max(lengths) - min(lengths) <= 1


def test_iterating_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    indices(Loader(numbered(), batch_size=4, shuffle=True))
    assert torch.equal(torch.rand(1), expected)


def test_an_empty_batch_is_legal():
    batch = numbered().batch(0, [], 0)
    assert isinstance(batch, Batch)
    assert len(batch) == 0
    assert batch.views.look(np.empty(0, dtype=int), np.empty((0, 4)), (2, 2)).shape == (0, 3, 2, 2)


def test_moving_a_batch_moves_pixels_and_labels():
    batch = numbered().batch(0, [1, 2], 0).to("meta")
    assert batch.target.device.type == batch.views.images.device.type == "meta"


def test_a_batch_that_is_there_already_is_not_copied():
    batch = numbered().batch(0, [1, 2], 0)
    moved = batch.to("cpu")
    assert (
        moved.views.images.data_ptr() == batch.views.images.data_ptr()
        and moved.target.data_ptr() == batch.target.data_ptr()
    )


def test_a_device_takes_the_images_once_and_the_data_set_stays_where_it_is():
    data = numbered()
    loader = Loader(data, batch_size=4, device="meta")
    assert loader.data.images.device.type == "meta" and data.images.device.type == "cpu"
    assert {batch.views.images.device.type for batch in loader} == {"meta"}
    assert Loader(data, batch_size=4, device="cpu").data.images.data_ptr() == data.images.data_ptr()


def augmented() -> TensorDataset:
    images = torch.randint(0, 256, (23, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return TensorDataset(images, torch.arange(23) % 3, ("a", "b", "c"), augmentation="crop_flip")


def pixels(loader: Loader) -> dict[int, torch.Tensor]:
    return {int(i): image for batch in loader for i, image in zip(batch.index, batch.views.images, strict=True)}


def test_augmentation_is_a_function_of_seed_epoch_and_sample():
    loader = Loader(augmented(), batch_size=4, seed=5, shuffle=True)
    whole = pixels(loader)
    loader.set_epoch(1)
    other = pixels(loader)
    assert sum(torch.equal(whole[i], other[i]) for i in range(23)) < 5
    expected = crop_flip(
        augmented().images,
        draw_crop_flip(23, generator(5, 0, 0, "crop_flip")),
        augmented().images.float().mean((0, 2, 3)).round(),
    )
    assert all(torch.equal(whole[i], expected[i]) for i in range(23))
    # Started later, with another batch size and process: samples have the same images.
    late = Loader(augmented(), batch_size=3, seed=5, shuffle=True, rank=1, world_size=2, workers=2)
    late.set_epoch(0, first_batch=2)
    found = pixels(late)
    assert 0 < len(found) < 12 and all(torch.equal(whole[i], image) for i, image in found.items())
    different = pixels(Loader(augmented(), batch_size=4, seed=6))
    assert sum(torch.equal(whole[i], different[i]) for i in range(23)) < 5
    plain = pixels(Loader(augmented().plain(), batch_size=4, seed=5))
    assert all(torch.equal(plain[i], augmented().images[i]) for i in range(23))


# ---- targets


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        (torch.zeros(4, 1), r"targets are \(4, 1\) for 4 images and 2 classes; give"),
        (torch.zeros(3), r"targets are \(3,\) for 4 images and 2 classes; give"),
        (torch.tensor([0, 1, 2, 0]), "some targets are not classes from 0 to 1; correct them"),
        (torch.tensor([0, 1, -1, 0]), "some targets are not classes from 0 to 1; correct them"),
        (torch.full((4, 2), 0.3), "some targets are not labels of 0 or 1; correct them"),
    ],
)
def test_targets_that_are_none(target, sentence):
    with pytest.raises(DataError, match=f"^data: {sentence}"):
        TensorDataset(torch.zeros(4, 3, 8, 8), target, ("a", "b"))


# ---- balanced sampling


def skewed(counts: tuple[int, ...] = (40, 7, 3)) -> TensorDataset:
    target = np.repeat(np.arange(len(counts)), counts)
    images = torch.arange(len(target)).float()[:, None, None, None].expand(-1, 3, 8, 8) / len(target)
    return TensorDataset(images, target, tuple("abcdef"[: len(counts)]))


@pytest.mark.parametrize("counts", [(40, 7, 3), (1, 1, 99), (5, 5), (20, 0, 3)])
def test_balanced_epochs_show_every_class_equally_often(counts):
    data = skewed(counts)
    loader = Loader(data, batch_size=4, seed=3, shuffle=True, balanced=True)
    seen = []
    for epoch in range(3):
        loader.set_epoch(epoch)
        batches = list(loader)
        assert [len(batch) for batch in batches] == [4] * (len(data) // 4) + [len(data) % 4] * (len(data) % 4 > 0)
        index = np.concatenate([batch.index for batch in batches])
        target = np.concatenate([batch.target for batch in batches])
        assert (data.targets[index % len(data)] == target).all()
        shown = np.bincount(target, minlength=len(counts))[np.array(counts) > 0]
        assert shown.sum() == len(data) and shown.max() - shown.min() <= 1
        for label, count in enumerate(counts):  # every image of a class as often as the others, give or take one
            times = np.bincount(index[target == label] % len(data), minlength=len(data))[data.targets == label]
            assert count == 0 or times.max() - times.min() <= 1
        assert len(set(index.tolist())) == len(data)
        seen.append(index.tolist())
    assert seen[0] != seen[1] != seen[2]
    loader.set_epoch(1, first_batch=2)
    assert np.concatenate([batch.index for batch in loader]).tolist() == seen[1][8:]


def test_processes_share_a_balanced_epoch():
    whole = indices(Loader(skewed(), batch_size=6, seed=3, shuffle=True, balanced=True))
    parts = [
        indices(Loader(skewed(), batch_size=2, seed=3, shuffle=True, balanced=True, rank=r, world_size=3))
        for r in range(3)
    ]
    assert [sorted(chain.from_iterable(part[i] for part in parts)) for i in range(len(whole))] == [
        sorted(b) for b in whole
    ]


@pytest.mark.parametrize("workers", [0, 1])
def test_repetitions_of_an_image_are_changed_differently(tmp_path, workers):
    rng = np.random.default_rng(0)
    for i in range(8):
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    paths = [str(tmp_path / f"{i}.png") for i in range(8)]
    data = ImageDataset(paths, [0] * 7 + [1], ("a", "b"), reading=Reading("inception", image_size=16))
    seen = {}
    for batch in Loader(data, batch_size=3, seed=1, shuffle=True, balanced=True, workers=workers):
        for i, image in zip(batch.index.tolist(), batch.views.images, strict=True):
            seen[i] = image
    rare = [seen[i] for i in sorted(seen) if i % 8 == 7]
    assert len(rare) == 4 and all(not torch.equal(rare[0], other) for other in rare[1:])
    assert torch.equal(rare[0], data.batch(0, [7], 1).views.images[0])  # the first time as ever


def test_several_labels_cannot_be_balanced():
    data = skewed()
    data.targets = np.eye(3, dtype=np.float32)[data.targets]
    with pytest.raises(ConfigError, match=r"^sampling: images of several labels cannot be balanced by class; [^\n]+$"):
        Loader(data, batch_size=4, balanced=True)


def test_workers_of_a_loader_in_a_cycle_end_at_once(tmp_path):
    """As after a training that was interrupted, whose traceback holds the loader."""
    for i in range(8):
        Image.new("L", (20, 20)).save(tmp_path / f"{i}.png")
    data = ImageDataset([tmp_path / f"{i}.png" for i in range(8)], [0] * 8, ("a",))
    loader, alive = Loader(data, batch_size=2, workers=2), []
    arriving = iter(loader)
    next(arriving)

    def watched(worker):
        join = worker.join

        def joined(timeout=None):
            join(timeout)
            alive.append(worker.is_alive())

        worker.join = joined

    for worker in loader.workers._iterator._workers:
        watched(worker)
    cycle = [loader, arriving]
    cycle.append(cycle)
    del loader, arriving, cycle, worker
    gc.collect()
    assert alive == [False, False]


def test_workers_go_on_while_their_batches_are_iterated(tmp_path):
    Image.new("L", (20, 20)).save(tmp_path / "a.png")
    data = ImageDataset([tmp_path / "a.png"] * 9, [0] * 9, ("a",))
    assert sum(len(batch) for batch in Loader(data, batch_size=2, workers=2)) == 9

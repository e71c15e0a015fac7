"""An image shared by threads, forked processes, pickles and workers of loaders always gives the same looks."""

import multiprocessing
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from foveal.images import ArrayPyramid, ImageViews, Look, View, open_image
from tests.images.files import photo, write_pyramid

SIZE = (32, 32)


def _box(i):
    y, x = np.random.default_rng(i).uniform(0, 300, 2)
    return np.array([[y, x, y + 150, x + 120]])


@pytest.fixture(params=["tiff", "jpeg"])
def image(request, tmp_path):
    if request.param == "tiff":
        write_pyramid(tmp_path / "a.tif", photo(512, 480), 3, compression="jpeg")
        return open_image(tmp_path / "a.tif")
    Image.fromarray(photo(512, 480)).save(tmp_path / "a.jpg")
    return open_image(tmp_path / "a.jpg")


def test_threads(image):
    copy = pickle.loads(pickle.dumps(image))
    expected = [copy.look(_box(i), SIZE) for i in range(40)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: image.look(_box(i), SIZE), range(40)))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_pickle_keeps_what_was_counted_and_opens_again(image):
    image.look(_box(0), SIZE)
    copy = pickle.loads(pickle.dumps(image))
    assert (copy.bytes_read, copy.size, copy.metadata) == (image.bytes_read, image.size, image.metadata)
    assert torch.equal(copy.look(_box(1), SIZE), image.look(_box(1), SIZE))


def test_closed_image_opens_again(image):
    expected = image.look(_box(0), SIZE)
    image.close()
    image.close()
    assert torch.equal(image.look(_box(0), SIZE), expected)


def test_no_file_stays_open(image):
    before = len(list(Path("/proc/self/fd").iterdir()))
    for i in range(20):
        copy = pickle.loads(pickle.dumps(image))
        copy.look(_box(i), SIZE)
        del copy
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1


def _in_child(image, views, queue):
    torch.set_num_threads(1)
    seen = [image.look(_box(i), SIZE).numpy() for i in range(10)]
    seen.append(views.look(np.array([0, 1]), np.vstack([_box(0), _box(1)]), SIZE).numpy())
    queue.put(seen)


def test_fork_after_use_in_the_parent(image):
    views = ImageViews([image, pickle.loads(pickle.dumps(image))], threads=2)
    views.look(np.array([0, 1]), np.vstack([_box(0), _box(1)]), SIZE)
    expected = [image.look(_box(i), SIZE).numpy() for i in range(10)]
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    children = [context.Process(target=_in_child, args=(image, views, queue)) for _ in range(3)]
    for child in children:
        child.start()
    found = [queue.get(timeout=60) for _ in children]
    for child in children:
        child.join(60)
    for seen in found:
        assert all(np.array_equal(a, b) for a, b in zip(seen[:10], expected, strict=True))
        assert np.array_equal(seen[10], np.concatenate(expected[:2]))


class _Set(Dataset):
    """Data set of views with prefetched thumbnails."""

    def __init__(self, image):
        self.image = image

    def __len__(self):
        return 8

    def __getitem__(self, i):
        view = View(pickle.loads(pickle.dumps(self.image)))
        view.prefetch([Look(tuple(_box(i)[0]), SIZE)])
        return view


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_views_travel_from_loader_workers(image, method):
    expected = [image.look(_box(i), SIZE) for i in range(8)]
    loader = DataLoader(_Set(image), batch_size=4, num_workers=2, collate_fn=list, multiprocessing_context=method)
    views = ImageViews([view for batch in loader for view in batch])
    read = views.bytes_read.copy()
    assert (read > 0).all()
    seen = views.look(np.arange(8), np.vstack([_box(i) for i in range(8)]), SIZE)
    assert torch.equal(seen, torch.cat(expected)) and (views.bytes_read == read).all(), "nothing is read twice"
    later = views.look(np.arange(8), np.vstack([_box(i + 1) for i in range(8)]), SIZE)
    assert torch.equal(later[:7], torch.cat(expected[1:])) and not views.errors


def test_decoded_pixels_travel_in_shared_memory():
    view = View(ArrayPyramid(photo(64, 64)))
    loader = DataLoader([view], batch_size=None, num_workers=1, multiprocessing_context="fork", collate_fn=lambda v: v)
    (received,) = list(loader)
    assert received.image._pixels.is_shared()
    assert np.array_equal(received.image.read(0, (0, 0, 64, 64)), photo(64, 64))

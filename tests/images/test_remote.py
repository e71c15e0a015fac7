"""Remote images: equal to local ones, in few rounds of requests, and never wrong because of a server or a network."""

import logging
import multiprocessing
import os
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from foveal.errors import ConfigError, DataError, ImageError
from foveal.images import ImageViews, View, open_image, remote
from foveal.images.header_index import SUFFIX, find, make_entry, write_index
from foveal.images.range_cache import RangeCache
from foveal.images.remote import RemoteObject, joined
from foveal.images.uris import is_folder, is_remote, is_remote_zarr, join, shown

from . import remote_server as faults
from .files import photo, write_pyramid
from .remote_server import Loopback

LOOKS = np.array([[130, 140, 258, 268], [900, 300, 1028, 428], [500, 820, 628, 948]], dtype=np.float64)
WHOLE = np.array([[0, 0, 1100, 1000]], dtype=np.float64)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Files in several formats: a cloud-optimised pyramid, one whose headers are spread, and plain ones."""
    import rasterio
    from rasterio.shutil import copy

    folder = tmp_path_factory.mktemp("files")
    pixels = photo(1100, 1000)
    write_pyramid(folder / "spread.tif", pixels, 4, subifds=True, compression="zlib")
    write_pyramid(folder / "pages.tif", photo(700, 600, dtype=np.uint16), 3, compression="zstd")
    with rasterio.open(
        folder / "flat.tif", "w", driver="GTiff", width=1000, height=1100, count=3, dtype="uint8"
    ) as flat:
        flat.write(pixels.transpose(2, 0, 1))
    copy(folder / "flat.tif", folder / "cloud.tif", driver="COG", blocksize=128, compress="DEFLATE")
    Image.fromarray(pixels).save(folder / "photo.jpg")
    Image.fromarray(photo(90, 80)).save(folder / "small.png")
    Image.fromarray(photo(90, 80)).save(folder / "small.webp", lossless=True)
    (folder / "empty.tif").touch()
    (folder / "slide.ndpi").write_bytes((folder / "pages.tif").read_bytes())
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def started(files):
    with Loopback(files) as running:
        yield running


@pytest.fixture
def server(started, tmp_path, monkeypatch):
    """The server, without faults or delay, and an empty cache."""
    monkeypatch.setenv("FOVEAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "_FIRST_WAIT", 0.001)
    started.clear()
    started.delay, started.fault, started.contents = 0.0, None, {}
    return started


# ------------------------------------------------------------------------------------------------------ equal pixels


@pytest.mark.parametrize("name", ["cloud.tif", "spread.tif", "pages.tif", "photo.jpg", "small.png", "small.webp"])
def test_looks_equal_those_of_the_local_file(server, files, name):
    with open_image(f"{server.url}/{name}") as here, open_image(files / name) as there:
        assert (here.size, here.level_sizes, here.metadata) == (there.size, there.level_sizes, there.metadata)
        for boxes in (LOOKS, WHOLE):
            assert torch.equal(here.look(boxes, (64, 64)), there.look(boxes, (64, 64)))
        assert (here.path, there.remote) == (f"{server.url}/{name}", None)
        assert here.remote.requests == len(server.log) and here.remote.bytes == server.sent


def test_a_plain_image_is_fetched_whole_and_once(server, files, monkeypatch):
    monkeypatch.setattr(remote, "FIRST_PLAIN", 1000)
    with open_image(f"{server.url}/photo.jpg") as image:
        for _ in range(2):
            image.look(LOOKS, (64, 64))
    assert server.sent == (files / "photo.jpg").stat().st_size and len(server.log) == 2
    with pytest.raises(ImageError, match=r"photo.jpg: has [\d,]+ bytes and must be read whole, .* limit is 50,000;"):
        open_image(f"{server.url}/photo.jpg", max_bytes=50_000)


def test_a_large_plain_image_is_converted_once(server, files, tmp_path, monkeypatch):
    monkeypatch.setattr("foveal.images.plain.LARGE", 100_000)
    for _ in range(2):
        with open_image(f"{server.url}/photo.jpg", cache_dir=tmp_path) as here:
            seen = here.look(LOOKS, (128, 128))
    assert len(list(tmp_path.glob("*.tif"))) == 1 and here.remote.requests == 1
    exact = np.asarray(Image.open(files / "photo.jpg"))[130:258, 140:268] / 255
    assert np.abs(seen[0].permute(1, 2, 0).numpy() - exact).max() < 0.03  # two decoders of JPEG


def test_images_go_on_after_pickling(server):
    import pickle

    with open_image(f"{server.url}/cloud.tif") as image:
        there = pickle.loads(pickle.dumps(image))
        server.clear()
        assert torch.equal(there.look(LOOKS, (64, 64)), image.look(LOOKS, (64, 64)))
    assert not any(span == "bytes=0-65535" for _, span in server.log)  # the header goes with it


def test_formats_of_other_readers_are_refused(server):
    for name in ("slide.ndpi", "notes.txt"):
        with pytest.raises(ImageError, match=f"{name}: is of a format that is read from local files only"):
            open_image(f"{server.url}/{name}")
    with pytest.raises(ImageError, match=r"empty.tif: the file is empty"):
        open_image(f"{server.url}/empty.tif")
    with pytest.raises(ImageError, match="give an address as text, not as a Path"):
        open_image(Path(f"{server.url}/small.png"))
    with pytest.raises(ImageError, match=r"ftp://web/a.tif: there is no such file; addresses begin with s3://, gs://"):
        open_image("ftp://me:secret@web/a.tif")
    assert open_image(f"{server.url.upper()}/small.png").size == (90, 80)


# ------------------------------------------------------------------------------------------------ rounds and bytes


def test_each_turn_is_one_round_of_what_it_needs(server):
    server.delay = 0.03
    image = open_image(f"{server.url}/cloud.tif")
    assert server.rounds == 1 and server.sent == remote.FIRST
    for turn, boxes in enumerate([WHOLE, LOOKS[:1], LOOKS[1:]]):
        image.look(boxes, (128, 128))
        assert server.rounds == 2 + turn
    assert server.sent - remote.FIRST <= 1.3 * image.bytes_read


def test_images_of_a_batch_are_read_in_one_round(server):
    images = [open_image(f"{server.url}/cloud.tif?id={i}") for i in range(6)]
    server.clear()
    server.delay = 0.05
    ImageViews(images).look(np.arange(6), np.repeat(LOOKS[:1], 6, 0), (128, 128))
    assert server.rounds == 1 and len(server.log) >= 6


def test_spread_headers_take_one_more_round(server):
    server.delay = 0.03
    open_image(f"{server.url}/spread.tif")
    assert server.rounds == 2


def test_ranges_are_joined_only_where_they_nearly_touch():
    rng = np.random.default_rng(0)
    for near in (0, 7, 100):
        spans = [(int(a), int(n)) for a, n in zip(rng.integers(0, 3000, 40), rng.integers(1, 60, 40), strict=True)]
        requests = joined(spans, near)
        bytes_asked = np.zeros(3100, dtype=int)
        for start, end, members in requests:
            bytes_asked[start:end] += 1
            assert all(start <= spans[i][0] and sum(spans[i]) <= end for i in members)
        wanted = np.zeros(3100, dtype=bool)
        for start, length in spans:
            wanted[start : start + length] = True
        assert bytes_asked.max() == 1 and (bytes_asked[wanted] == 1).all()
        gaps = re.findall("(?<=1)0+(?=1)", "".join(map(str, wanted.astype(int))))
        assert len(requests) == 1 + sum(len(gap) > near for gap in gaps)
        assert sorted(i for *_, members in requests for i in members) == list(range(40))


def test_at_most_so_many_requests_at_a_time(server, monkeypatch):
    monkeypatch.setenv("FOVEAL_REMOTE_REQUESTS", "2")
    server.contents["a"] = bytes(1 << 20)
    server.delay = 0.02
    found = RemoteObject(f"{server.url}/a").fetch([(i << 17, 10) for i in range(1, 7)])
    assert found == [bytes(10)] * 6 and server.rounds >= 1 + 3


def test_wrong_settings_are_named(server, monkeypatch):
    for name, text in (
        ("REQUESTS", "0"),
        ("REQUESTS", "9" * 400),
        ("TIMEOUT", "soon"),
        ("RETRIES", "-1"),
        ("CACHE_BYTES", "1GB"),
    ):
        with monkeypatch.context() as patch, pytest.raises(ConfigError, match=f"FOVEAL_REMOTE_{name} is '{text}'"):
            patch.setenv(f"FOVEAL_REMOTE_{name}", text)
            open_image(f"{server.url}/cloud.tif").look(LOOKS, (64, 64))


# ------------------------------------------------------------------------------------------------------------ faults

PASSING = {
    "429": faults.status(429),
    "500": faults.status(500),
    "503": faults.status(503),
    "reset": faults.reset,
    "shorter body": faults.shorter,
    "understated length": faults.understated,
    "slowness": faults.slow,
}
LASTING = {
    "404": (faults.status(404), "there is no such object"),
    "403": (faults.status(403), r"access is denied \(403\)"),
    "401": (faults.status(401), r"access is denied \(401\)"),
    "400": (faults.status(400), r"the server refuses the request \(400\)"),
    "no ranges": (faults.whole, "the server sends no ranges of bytes"),
    "other range": (faults.other_range, "the server answered with another range"),
    "changed": (faults.changed, "was changed while it was read"),
    "other length": (faults.longer, "was changed while it was read"),
    "endless redirect": (faults.redirect("/endless-redirect.tif"), "the server redirects without an end"),
}
TEXTS = {
    "429": r"overloaded \(429\)",
    "500": r"the server fails \(500\)",
    "503": r"overloaded \(503\)",
    "reset": "the connection was lost",
    "shorter body": "the connection was lost",
    "understated length": r"the server sent [\d,]+ bytes where [\d,]+ were asked for",
    "slowness": "the server does not answer in time",
}


@pytest.fixture(scope="module")
def picture(files):
    """A file in memory, whose tiles are not in what is read first, and its looks."""
    image = open_image(files / "cloud.tif")
    return (files / "cloud.tif").read_bytes(), image.look(LOOKS, (64, 64))


def after_the_header(server, answer, times=10**6):
    """Answer the first ``times`` requests after the header by a fault; return a list of those."""
    given = []

    def fault(handler, content):
        if handler.headers["Range"] == "bytes=0-65535" or len(given) >= times:
            return False
        given.append(handler.path)
        answer(handler, content)
        return True

    server.fault = fault
    return given


@pytest.mark.parametrize("kind", PASSING)
def test_passing_faults_are_overcome(server, picture, monkeypatch, kind):
    monkeypatch.setenv("FOVEAL_REMOTE_TIMEOUT", "0.3")
    name = f"{kind.replace(' ', '-')}-twice.tif"
    server.contents[name] = picture[0]
    given = after_the_header(server, PASSING[kind], times=2)
    image = open_image(f"{server.url}/{name}")
    assert torch.equal(image.look(LOOKS, (64, 64)), picture[1])
    assert len(given) == 2 and image.remote.requests == sum(path == name for path, _ in server.log)


@pytest.mark.parametrize("kind", [*PASSING, *LASTING])
def test_lasting_faults_are_named_in_one_sentence(server, picture, monkeypatch, kind):
    monkeypatch.setenv("FOVEAL_REMOTE_TIMEOUT", "0.1")
    monkeypatch.setenv("FOVEAL_REMOTE_RETRIES", "1")
    name = f"{kind.replace(' ', '-')}.tif"  # a late request of another test is not counted
    server.contents[name] = picture[0]
    answer, text = LASTING[kind] if kind in LASTING else (PASSING[kind], TEXTS[kind])
    after_the_header(server, answer)
    image = open_image(f"{server.url}/{name}?token=SECRET")
    with pytest.raises(ImageError) as raised:
        image.look(LOOKS[:1], (64, 64))
    message = str(raised.value)
    assert re.match(re.escape(f"{server.url}/{name}: ") + ".*" + text, message), message
    assert "SECRET" not in message and "private" not in message and "\n" not in message and message.count(". ") == 0
    again = kind in PASSING
    assert ("in 2 attempts; " in message) == again
    spans = [span for path, span in server.log if path == name and span != "bytes=0-65535"]
    if kind != "endless redirect":
        assert len(spans) <= len(set(spans)) * (1 + again)


@pytest.mark.parametrize("kind", ["404", "403", "500", "slowness", "no ranges"])
def test_faults_of_the_first_request_are_named(server, picture, monkeypatch, kind):
    monkeypatch.setenv("FOVEAL_REMOTE_TIMEOUT", "0.1")
    monkeypatch.setenv("FOVEAL_REMOTE_RETRIES", "0")
    server.contents["picture.tif"] = picture[0]
    answer, text = LASTING[kind] if kind in LASTING else (PASSING[kind], TEXTS[kind])
    server.fault = lambda handler, content: answer(handler, content) or True
    with pytest.raises(ImageError, match=f"picture.tif: .*{text}"):
        open_image(f"{server.url}/picture.tif")


def test_words_of_an_address_or_an_answer_are_no_fault(server, monkeypatch):
    monkeypatch.setenv("FOVEAL_REMOTE_RETRIES", "0")
    with pytest.raises(ImageError, match="the server cannot be reached"):
        open_image("http://127.0.0.1:9/Certificate-Redirect-NoCredentials.tif")
    server.contents["a.tif"] = b"II*"
    server.fault = lambda handler, content: handler.answer(500, b"NoCredentials, Certificate") or True
    with pytest.raises(ImageError, match=r"the server fails \(500\)"):
        open_image(f"{server.url}/a.tif")


def test_without_ranges_images_are_read_that_are_read_whole_anyway(server, files, monkeypatch):
    server.contents |= {name: (files / name).read_bytes() for name in ("photo.jpg", "cloud.tif")}
    server.fault = lambda handler, content: handler.answer(200, content) or True
    with open_image(f"{server.url}/photo.jpg") as here, open_image(files / "photo.jpg") as there:
        assert torch.equal(here.look(LOOKS, (64, 64)), there.look(LOOKS, (64, 64)))
        assert here.remote.requests == len(server.log) == 2
    with pytest.raises(ImageError, match=r"cloud.tif: the server sends no ranges of bytes"):
        open_image(f"{server.url}/cloud.tif")
    monkeypatch.setenv("FOVEAL_MAX_BYTES", "50000")
    with pytest.raises(ImageError, match=r"photo.jpg: has [\d,]+ bytes and must be read whole, .* limit is 50,000;"):
        open_image(f"{server.url}/photo.jpg")


def test_what_cannot_be_told_from_another_version_is_not_remembered(server, tmp_path):
    """A server with neither ETags nor times."""
    server.fault = lambda handler, content: handler.answer(206, *_span(handler, content)) or True
    found, keys = [], set()
    for content in (bytes(200_000), bytes([1]) * 200_000):
        server.contents["a.tif"] = content
        remote = RemoteObject(f"{server.url}/a.tif")
        found += remote.fetch([(100_000, 2)])
        keys.add(remote.key)
    assert found == [b"\0\0", b"\1\1"] and len(keys) == 2  # cached conversions have the name `key`
    server.contents["a.tif"] = (server.folder / "cloud.tif").read_bytes()
    with pytest.raises(ImageError, match=r"a.tif: its server gives neither an ETag nor a time, .*; leave it out"):
        make_entry(f"{server.url}/a.tif")


def _span(handler, content):
    """Bytes of a range and its header."""
    start, end = faults.range_of(handler)
    part = content[start:end]
    return part, {"Content-Range": f"bytes {start}-{start + len(part) - 1}/{len(content)}"}


def test_of_weak_etags_the_time_counts_too(server):
    server.contents["a.tif"] = bytes(200_000)
    times = iter(["Mon, 01 Jan 2024 00:00:00 GMT", "Tue, 02 Jan 2024 00:00:00 GMT"])

    def fault(handler, content):
        body, headers = _span(handler, content)
        handler.answer(206, body, headers | {"ETag": 'W/"a"', "Last-Modified": next(times)})
        return True

    server.fault = fault
    image = RemoteObject(f"{server.url}/a.tif")
    with pytest.raises(ImageError, match="was changed while it was read"):
        image.fetch([(100_000, 10)])


def test_an_answer_without_a_length_is_named(server, monkeypatch):
    monkeypatch.setenv("FOVEAL_REMOTE_RETRIES", "0")
    server.contents["a.tif"] = bytes(200_000)

    def fault(handler, content):
        body, headers = _span(handler, content)
        handler.send_response(206)
        for name, text in (headers | {"Connection": "close"}).items():
            handler.send_header(name, text)
        handler.end_headers()
        handler.wfile.write(body[:100])
        handler.close_connection = True
        return True

    server.fault = fault
    with pytest.raises(ImageError, match="the server does not tell the length of its answer"):
        RemoteObject(f"{server.url}/a.tif")


def test_a_server_that_is_not_there_is_named(server, monkeypatch):
    monkeypatch.setenv("FOVEAL_REMOTE_RETRIES", "1")
    with pytest.raises(ImageError, match=r"http://127.0.0.1:9/a.tif: the server cannot be reached"):
        open_image("http://127.0.0.1:9/a.tif")


def test_an_object_that_changes_between_two_ranges_is_named(server, picture):
    server.contents["picture.tif"] = picture[0]
    image = open_image(f"{server.url}/picture.tif")
    image.look(LOOKS[:1], (64, 64))
    server.contents["picture.tif"] = picture[0][:-1] + b"\0"  # the server answers 412
    with pytest.raises(ImageError, match="was changed while it was read; open it again"):
        image.look(LOOKS[1:2], (64, 64))


def test_without_etags_the_time_tells_that_an_object_changed(server, picture):
    server.contents["picture.tif"] = picture[0]
    times = iter(["Mon, 01 Jan 2024 00:00:00 GMT"] * 2 + ["Tue, 02 Jan 2024 00:00:00 GMT"])

    def fault(handler, content):
        start, end = faults.range_of(handler)
        span = {"Content-Range": f"bytes {start}-{min(end, len(content)) - 1}/{len(content)}"}
        handler.answer(206, content[start:end], span | {"Last-Modified": next(times)})
        return True

    server.fault = fault
    image = RemoteObject(f"{server.url}/picture.tif")
    image.fetch([(100_000, 10)])
    with pytest.raises(ImageError, match="was changed while it was read"):
        image.fetch([(200_000, 10)])


def test_redirects_are_followed(server, picture):
    server.contents |= {"picture.tif": picture[0], "old.tif": b"moved"}
    server.fault = lambda handler, content: (
        content == b"moved" and (faults.redirect("/picture.tif")(handler, content) or True)
    )
    assert torch.equal(open_image(f"{server.url}/old.tif").look(LOOKS, (64, 64)), picture[1])


def test_a_header_that_lies_is_an_error_of_the_image(server, picture):
    """A tile past the end: the same error as of a local file that is cut short."""
    server.contents["picture.tif"] = picture[0][: len(picture[0]) // 2]
    image = open_image(f"{server.url}/picture.tif")
    with pytest.raises(ImageError, match=r"picture.tif: tile \d+ of level 0 cannot be read \(it lies past the end"):
        image.look(LOOKS, (128, 128))


def test_processes_forked_after_reading_are_told_to_be_spawned(server):
    open_image(f"{server.url}/small.png")
    receiver, sender = multiprocessing.Pipe(False)

    def read():
        try:
            open_image(f"{server.url}/small.png")
        except ImageError as error:
            sender.send(str(error))

    process = multiprocessing.get_context("fork").Process(target=read)
    process.start()
    assert "start processes by spawn" in receiver.recv()
    process.join()


# ------------------------------------------------------------------------------------------------------------- cache


def test_what_was_read_is_not_requested_again(server, tmp_path):
    for _ in range(2):
        image = open_image(f"{server.url}/cloud.tif")
        image.look(LOOKS, (128, 128))
    assert image.remote.requests == 1 and image.bytes_read > 0
    for file in (tmp_path / "cache").rglob("*-*"):
        file.write_bytes(file.read_bytes()[:-1] + b"?")  # damaged
    again = open_image(f"{server.url}/cloud.tif")
    assert torch.equal(again.look(LOOKS, (128, 128)), image.look(LOOKS, (128, 128))) and again.remote.requests > 1


def test_another_version_is_another_entry(server, picture):
    server.contents["picture.tif"] = picture[0]
    first = RemoteObject(f"{server.url}/picture.tif")
    first.fetch([(100_000, 10)])
    server.contents["picture.tif"] = bytes(len(picture[0]))
    second = RemoteObject(f"{server.url}/picture.tif")
    assert second.fetch([(100_000, 10)]) == [bytes(10)] != first.fetch([(100_000, 10)])


def test_the_cache_can_be_off_full_or_in_the_way(server, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("FOVEAL_REMOTE_CACHE_BYTES", "0")
    for _ in range(2):
        image = open_image(f"{server.url}/cloud.tif")
        image.look(LOOKS, (128, 128))
    assert image.remote.requests > 1 and not (tmp_path / "cache").exists()
    monkeypatch.setenv("FOVEAL_REMOTE_CACHE_BYTES", "1000000")
    (tmp_path / "cache").write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING, "foveal"):
        open_image(f"{server.url}/cloud.tif").look(LOOKS, (128, 128))
    assert len([r for r in caplog.records if "are not kept there" in r.message]) == 1


def test_a_read_only_cache_is_read(tmp_path, monkeypatch):
    cache = RangeCache(tmp_path)
    cache.put("key", 0, b"tile")

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "utime", refuse)
    assert cache.get("key", 0, 4) == b"tile"


def test_a_folder_that_another_process_removes_is_no_error(tmp_path, monkeypatch):
    cache, real = RangeCache(tmp_path), os.makedirs
    with monkeypatch.context() as patch:
        patch.setattr(os, "makedirs", lambda folder, **_: real(folder, exist_ok=True) or Path(folder).rmdir())
        cache.put("key", 0, b"tile")
    cache.put("key", 0, b"tile")
    assert cache.get("key", 0, 4) == b"tile"


def test_threads_may_keep_the_same_range(tmp_path, monkeypatch, caplog):
    cache, real, both = RangeCache(tmp_path), os.replace, threading.Barrier(2)
    monkeypatch.setattr(os, "replace", lambda *files: (both.wait(), real(*files))[1])
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda _: cache.put("key", 0, b"tile"), range(2)))
    assert cache.get("key", 0, 4) == b"tile" and not caplog.records and len(list(tmp_path.rglob("0-4*"))) == 1


def _use(folder: str, seed: int) -> None:
    cache, rng = RangeCache(folder, limit=200_000), np.random.default_rng(seed)
    for i in rng.integers(0, 100, 300).tolist():
        found = cache.get("key", i, 5000 + i)
        assert found in (None, bytes([i]) * (5000 + i))
        if found is None:
            cache.put("key", i, bytes([i]) * (5000 + i))


def test_processes_share_a_cache_of_limited_size(tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_use, args=(str(tmp_path), seed)) for seed in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    files = list(tmp_path.rglob("*-*"))
    # Each process checks the size after a 64th of the limit, or a file if that is larger.
    assert 100_000 < sum(file.stat().st_size for file in files) < 200_000 + 4 * 10_000
    assert not [file for file in files if "." in file.name]  # nothing unfinished


def test_the_least_recently_used_files_go_first(tmp_path):
    cache = RangeCache(tmp_path, limit=100_000)
    for i in range(60):
        cache.put("key", i, bytes(2000))
        os.utime(tmp_path / "ke" / "y" / f"{i:x}-7d0", (i + 1, i + 1))
        cache.get("key", 0, 2000)
    assert cache.get("key", 0, 2000) is not None and cache.get("key", 59, 2000) is not None
    assert cache.get("key", 1, 2000) is None


# ----------------------------------------------------------------------------------------------------------- secrets


def test_secrets_are_nowhere(server, tmp_path, monkeypatch, caplog):
    """Neither in errors and logs, nor in the names and contents of what is written, nor in what an image shows."""
    monkeypatch.setenv("FOVEAL_REMOTE_RETRIES", "0")
    place = server.url.replace("//", "//user:SECRET@")
    seen = []
    server.fault = lambda handler, content: seen.append(handler.headers["Authorization"]) or False
    server.contents["a.tif"] = (server.folder / "cloud.tif").read_bytes()
    with caplog.at_level(logging.DEBUG):
        image = open_image(f"{place}/a.tif?X-Amz-Signature=SECRET&sig=SECRET")
        image.look(LOOKS, (64, 64))
        write_index(tmp_path / f"a{SUFFIX}", [make_entry(f"{place}/a.tif?sig=SECRET")])
        messages = []
        for path in (f"{place}/none.tif?key=SECRET", "s3:///SECRET", f"{place}/notes.txt#SECRET"):
            with pytest.raises(ImageError) as raised:
                open_image(path)
            messages += [str(raised.value), repr(raised.value.__cause__)]
    assert set(seen) == {"Basic dXNlcjpTRUNSRVQ="}  # user:SECRET
    assert image.path == f"{server.url}/a.tif" and "SECRET" not in repr(image)
    written = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(written) > 3
    assert not any("SECRET" in str(file) or b"SECRET" in file.read_bytes() for file in written)
    assert "SECRET" not in "".join(messages[:2] + messages[4:]) and "SECRET" not in caplog.text


def test_signed_addresses_of_an_object_share_its_name_and_cache(server):
    names = set()
    for signature in ("X-Amz-Signature=1&X-Amz-Date=3", "X-Amz-Signature=2&X-Amz-Date=4"):
        image = open_image(f"{server.url}/cloud.tif?{signature}")
        image.look(LOOKS, (64, 64))
        names.add(image.path)
    assert len(names) == 1 and image.remote.requests == 1


@pytest.mark.parametrize(
    ("uri", "text"),
    [
        ("https://h.org/a/b.tif", "https://h.org/a/b.tif"),
        ("https://u:p@h.org/a@b.tif?Signature=x", "https://h.org/a@b.tif"),
        ("az://c/a.tif?sv=1&se=2&sp=r&sig=abc", "az://c/a.tif"),
        ("https://h.org/a.tif?Expires=1&Signature=2#part", "https://h.org/a.tif"),
        ("https://h.org/a.tif?TOKEN=1", "https://h.org/a.tif"),
        ("s3://bucket/a#b.tif", "s3://bucket/a#b.tif"),
        ("scans/a?sig=1.tif", "scans/a?sig=1.tif"),
        ("HTTPS://u:p@h.org/a.tif?token=1", "https://h.org/a.tif"),
        ("https://u:p/q@h.org/a.tif", "https://h.org/a.tif"),
        ("https://h.org:80/a@b.tif", "https://h.org:80/a@b.tif"),
        ("ftp://u:p@h.org/a.tif", "ftp://h.org/a.tif"),
    ],
)
def test_addresses_are_shown_without_secrets(uri, text):
    assert shown(uri) == text


def test_short_names_of_parameters_belong_to_a_signature_only_if_it_is_there():
    names = [shown(f"https://h.org/get?{query}") for query in ("sp=1", "sp=2", "se=1", "expires=1", "policy=1")]
    assert len({*names, "https://h.org/get"}) == 6


def test_many_addresses_have_different_names():
    assert len({shown(f"https://h.org/get?id={i}") for i in range(200_000)}) == 200_000


def test_parts_of_addresses():
    assert [is_folder(uri) for uri in ("s3://b", "s3://b/", "s3://b/a/", "s3://b/a.tif", "https://h/a/")] == [
        *[True] * 3,
        *[False] * 2,
    ]
    assert not is_folder("s3://b/a.ome.zarr/") and is_folder("s3://b/a.zarrs/")
    assert [is_remote_zarr(f"https://h/{path}") for path in ("a.ZARR?b", "a.zarr/0", "a.zarr.tif", "a?b=.zarr")] == [
        *[True] * 2,
        *[False] * 2,
    ]
    assert is_remote("gs://a") and not is_remote(Path("s3://a")) and not is_remote("C://a")
    assert join("s3://b/", "a/c.tif") == "s3://b/a/c.tif"


# ------------------------------------------------------------------------------------------------------------- index


def test_an_indexed_image_is_opened_without_a_request(server, tmp_path, files):
    index = tmp_path / f"all{SUFFIX}"
    names = ["cloud.tif", "spread.tif", "photo.jpg"]
    write_index(index, [make_entry(f"{server.url}/{name}") for name in names])
    server.delay = 0.03
    for name in names:
        server.clear()
        image = open_image(f"{server.url}/{name}", headers=index)
        assert (server.rounds, image.size) == (1 if name == "photo.jpg" else 0, (1100, 1000))
        seen = image.look(LOOKS, (64, 64))
        assert server.rounds <= 1 and torch.equal(seen, open_image(files / name).look(LOOKS, (64, 64)))
    server.clear()
    assert open_image(f"{server.url}/small.png", headers=index).size == (90, 80) and server.rounds == 1


def test_an_index_of_many_finds_each(tmp_path):
    from foveal.images.header_index import Entry
    from foveal.images.remote import State

    file = tmp_path / f"many{SUFFIX}"
    write_index(file, [Entry(f"s3://b/{i}.tif", State(i, f'"{i}"', 0.0), {0: bytes([i])}) for i in range(200)])
    for i in (0, 63, 64, 199):
        found = find(file, f"s3://b/{i}.tif")
        assert (found.size, found.pages, found.requests) == (i, {0: bytes([i])}, 0)


def test_an_index_of_another_version_is_named(server, picture, tmp_path):
    server.contents["picture.tif"] = picture[0]
    index = tmp_path / f"a{SUFFIX}"
    write_index(index, [make_entry(f"{server.url}/picture.tif")])
    server.contents["picture.tif"] = picture[0] + b"\0"
    image = open_image(f"{server.url}/picture.tif", headers=index)
    with pytest.raises(ImageError, match=r"was changed .*, and renew its index if there is one"):
        image.look(LOOKS, (64, 64))


def test_a_damaged_index_is_named(server, tmp_path):
    """Wrong bytes of a header would be wrong places of tiles."""
    index = tmp_path / f"a{SUFFIX}"
    write_index(index, [make_entry(f"{server.url}/{name}") for name in ("cloud.tif", "pages.tif")])
    whole = index.read_bytes()
    named = 0
    for place in range(4, len(whole) - 4, len(whole) // 150):
        index.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        for name in ("cloud.tif", "pages.tif"):
            try:
                pages = find(index, f"{server.url}/{name}").pages
            except DataError as error:
                assert str(error).startswith(f"{index}: ") and error.__cause__ is not None
                named += 1
            else:
                content = (server.folder / name).read_bytes()
                assert all(content[start:].startswith(data) for start, data in pages.items())
    assert named > 100


def test_what_is_no_index_is_named(server, tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"no table")
    for name, text in (("a.parquet", "is not an index of headers"), ("none", "there is no such index of headers")):
        with pytest.raises(DataError, match=f"{name}: {text}"):
            open_image(f"{server.url}/cloud.tif", headers=tmp_path / name)


# ---------------------------------------------------------------------------------------------------------------- S3


@pytest.fixture(scope="module")
def bucket(files):
    """A bucket of moto's server."""
    pytest.importorskip("flask")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    import boto3
    from moto.server import ThreadedMotoServer

    running = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    keys = {"AWS_ACCESS_KEY_ID": "PUBLIC", "AWS_SECRET_ACCESS_KEY": "SECRET", "AWS_REGION": "us-east-1"}
    with pytest.MonkeyPatch.context() as patch:
        for name, text in {**keys, "AWS_ENDPOINT_URL": f"http://{host}:{port}"}.items():
            patch.setenv(name, text)
        remote._store.cache_clear()
        client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1")
        client.create_bucket(Bucket="slides")
        for key in ("train/cloud.tif", "train/deep/a b#1.png", "train/.hidden.png", "train/a.txt", "trainee.png"):
            name = "cloud.tif" if key.endswith("tif") else "small.png"
            client.upload_file(str(files / name), "slides", key)
        yield client
    remote._store.cache_clear()
    running.stop()


def test_objects_of_s3_are_read_and_listed(bucket, server, files):
    found = remote.list_images("s3://slides/train/")
    assert found.paths == ["s3://slides/train/cloud.tif", "s3://slides/train/deep/a b#1.png"]
    assert {reason: count for reason, (count, _) in found.left_out.items()} == {
        "hidden": 1,
        "suffix of no image format": 1,
    }
    assert len(remote.list_images("s3://slides").paths) == 3 and not remote.list_images("s3://slides/none/").paths
    for path, name in zip(found.paths, ("cloud.tif", "small.png"), strict=True):
        with open_image(path) as here, open_image(files / name) as there:
            assert torch.equal(here.look(LOOKS, (64, 64)), there.look(LOOKS, (64, 64)))


def test_names_that_the_client_would_change_are_refused(bucket, server):
    """It reads another object for some: //a is a."""
    bucket.create_bucket(Bucket="odd-names")
    small = (server.folder / "small.png").read_bytes()
    for key in ("a.png", "x/b//c.png"):
        bucket.put_object(Bucket="odd-names", Key=key, Body=small)
    for path in ("/a.png", "./a.png", "x/../a.png", "x/b//c.png"):
        with pytest.raises(ImageError, match=r"\.png: a part of a path is empty, has dots .*; rename the object"):
            open_image(f"s3://odd-names/{path}")
    with pytest.raises(ImageError, match="s3://odd-names/x/: cannot be listed: a part of a path is empty"):
        remote.list_images("s3://odd-names/x/")


def test_errors_of_s3_are_named(bucket, server, monkeypatch):
    monkeypatch.setenv("FOVEAL_REMOTE_RETRIES", "0")
    with pytest.raises(ImageError, match=r"s3://slides/none.tif: there is no such object; .* folder ends with a slash"):
        open_image("s3://slides/none.tif")
    with pytest.raises(ImageError, match="s3://nobucket/: cannot be listed: there is no such object"):
        remote.list_images("s3://nobucket/")
    image = open_image("s3://slides/train/cloud.tif")
    bucket.put_object(Bucket="slides", Key="train/cloud.tif", Body=b"other")
    with pytest.raises(ImageError, match="was changed while it was read"):
        image.look(LOOKS, (64, 64))
    bucket.upload_file(str(server.folder / "cloud.tif"), "slides", "train/cloud.tif")


def test_memory_does_not_grow_with_plain_images(server):
    """The bytes of a decoded image are forgotten."""
    image = View(open_image(f"{server.url}/photo.jpg"))
    image.look(LOOKS, (64, 64))
    assert image.image.remote._whole is None


def test_a_scan_reads_many_blocks_in_one_round(server, tmp_path, monkeypatch):
    from foveal.draws import Draws
    from foveal.glimpse import places
    from foveal.glimpse.scan import Scan
    from foveal.policies import GREEDY

    monkeypatch.setattr(places, "BLOCK", 4)
    monkeypatch.setenv("FOVEAL_REMOTE_CACHE_BYTES", "0")
    write_pyramid(tmp_path / "scanned.tif", photo(1100, 1000), 4, compression="zlib")
    server.contents["scanned.tif"] = (tmp_path / "scanned.tif").read_bytes()
    torch.manual_seed(0)
    model = Scan(num_classes=2, look_size=16, scale=2, scout_width=8, locations=(3,)).eval()
    found, read = [], []
    for place in (tmp_path / "scanned.tif", f"{server.url}/scanned.tif"):
        image = open_image(place)
        server.clear()
        server.delay = 0.05
        views = ImageViews([image])
        kept = model.scan(views, 12, GREEDY, Draws(0, 0, np.arange(1)), "x")
        assert not views.errors
        found.append(kept)
        read.append(image.bytes_read)
    blocks = len(places.blocks_of(np.array([1100, 1000]), 2, model.radius))
    assert blocks > 2 * places.AHEAD and server.rounds <= -(-blocks // places.AHEAD) + 2
    assert (found[0].places == found[1].places).all() and torch.equal(found[0].windows, found[1].windows)
    assert server.sent <= 1.1 * read[0]

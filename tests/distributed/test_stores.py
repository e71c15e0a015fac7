"""The same checks for a folder and for a bucket of moto's server."""

import os
import signal
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest

from foveal.distributed import merge, predict_shard
from foveal.distributed.stores import FolderStore, open_store
from foveal.errors import ConfigError, StorageError


@pytest.fixture(scope="module")
def bucket():
    """Address of a bucket on this machine."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    urllib.request.urlopen(urllib.request.Request(f"http://{host}:{port}/bucket", method="PUT")).close()
    with pytest.MonkeyPatch.context() as patch:
        for key, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "name",
            "AWS_SECRET_ACCESS_KEY": "secret-of-the-test",
            "AWS_REGION": "us-east-1",
            "AWS_ALLOW_HTTP": "true",
        }.items():
            patch.setenv(key, value)
        yield "s3://bucket"
    server.stop()


@pytest.fixture(params=["folder", "bucket"])
def place(request, tmp_path):
    if request.param == "folder":
        return str(tmp_path / "parts")
    return f"{request.getfixturevalue('bucket')}/{tmp_path.name}"


def test_of_many_writers_one_wins_and_readers_see_nothing_else(place, tmp_path):
    store = open_store(place)
    assert not store.has("a") and store.read("a") is None and list(store.names()) == []
    contents = [bytes([65 + i]) * 200_000 for i in range(8)]

    def write(i):
        with store.working(f"a{i}") as folder:
            file = folder / f".a{i}"
            file.write_bytes(contents[i])
            return store.put("a", file), file.exists()

    with ThreadPoolExecutor(8) as threads:
        told = list(threads.map(write, range(8)))
    assert not any(left for _, left in told)
    (won,) = (i for i, (published, _) in enumerate(told) if published)
    assert store.read("a") == contents[won] and list(store.names()) == ["a"]
    (tmp_path / "new").write_bytes(b"new")
    assert store.put("a", tmp_path / "new", replace=True) and store.read("a") == b"new"


def test_a_folder_without_hard_links(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    store = FolderStore(tmp_path / "parts")
    for content, published in (("first", True), ("second", False)):
        (tmp_path / "unfinished").write_text(content)
        assert store.put("a", tmp_path / "unfinished") is published
    assert store.read("a") == b"first"


def test_two_processes_that_make_the_same_get_different_folders(tmp_path):
    store = FolderStore(tmp_path)
    with store.working("a") as first, store.working("a") as second, store.working("b") as other:
        assert first == other == tmp_path and second.parent == tmp_path
        with store.working("a") as third:
            assert len({first, second, third}) == 3
    assert list(tmp_path.iterdir()) == []


def test_the_folder_of_a_killed_process_is_used_again_or_removed(tmp_path):
    store, folders = FolderStore(tmp_path), []

    def work():
        with store.working("a") as folder:
            (folder / "journal").write_text("some rows")
            os.kill(os.getpid(), signal.SIGKILL)

    with store.working("a"):
        for _ in range(2):
            child = os.fork()
            if child == 0:
                work()
            os.waitpid(child, 0)
            folders.append([file.parent for file in tmp_path.rglob("journal")])
    assert folders[0] == folders[1] and len(folders[0]) == 1, "a third process goes on where the second was killed"
    assert list(tmp_path.iterdir()) == [], "the first removes what the others left"


def test_a_folder_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "job.json").mkdir()
    with pytest.raises(StorageError, match=r"job.json: cannot be read \(Is a directory\); correct its permissions"):
        FolderStore(tmp_path).read("job.json")
    store = FolderStore(tmp_path / "gone")
    store.folder.rmdir()
    with pytest.raises(StorageError, match=r"gone: cannot be read \(No such file or directory\)"):
        list(store.names())


@pytest.mark.parametrize(
    "url",
    ["memory://parts", "file:///parts", "http://me:SECRET@web/parts?sig=SECRET", "s3://me:SECRET@bucket/x", "s3:///x"],
)
def test_what_is_no_object_store_is_named_without_secrets(url):
    """Parts in memory would be lost; and a query or a user would be in all messages."""
    with pytest.raises(ConfigError) as error:
        open_store(url)
    assert "SECRET" not in str(error.value) and str(error.value).startswith(url.partition("://")[0])


def test_a_server_of_the_environment_needs_no_other_variable(bucket, monkeypatch):
    """As for images."""
    monkeypatch.delenv("AWS_ALLOW_HTTP")
    assert open_store(f"{bucket}/none").read("a") is None


def test_without_space_for_temporary_files(bucket, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", "/none")
    store = open_store(f"{bucket}/none")
    with pytest.raises(StorageError, match=r"cannot be written \(No such .*\); make space in it"), store.working("a"):
        pass


def test_parts_in_a_bucket(bucket, run, images, tmp_path):
    where = {"model": run, "manifest": images / "images.csv", "device": "cpu", "shards": 2}
    for shard in (0, 1, 1):
        made = predict_shard(shard=shard, out=f"{bucket}/job", **where)
    assert made.predicted == 0, "the second call finds the part"
    predict_shard(shard=0, out=tmp_path / "job", **where)
    predict_shard(shard=1, out=tmp_path / "job", **where)
    merge(f"{bucket}/job", tmp_path / "bucket.csv")
    merge(tmp_path / "job", tmp_path / "folder.csv")

    def rows(name):
        return [line.split(",")[:4] for line in (tmp_path / name).read_text().splitlines()]

    assert rows("bucket.csv") == rows("folder.csv")


def test_an_object_store_that_does_not_answer_or_is_none(bucket, monkeypatch):
    with pytest.raises(ConfigError, match="is not the address of a folder of an object store"):
        open_store("s4://bucket/job")
    with pytest.raises(StorageError, match="no-such-bucket/job/a: there is no such bucket; check") as error:
        store = open_store("s3://no-such-bucket/job")
        with store.working("a") as folder:
            (folder / "a").write_text("a")
            store.put("a", folder / "a")
    assert "secret-of-the-test" not in str(error.value) and "\n" not in str(error.value)
    monkeypatch.setattr("foveal.distributed.stores.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'foveal\[remote\]'"):
        open_store("s3://bucket/job")

"""The guide on images in a bucket does what it says, with a server of S3 on this machine."""

import logging

import pytest

from foveal.images import remote

from .images.files import photo, write_pyramid
from .test_docs import DOCS, reader  # noqa: F401


@pytest.fixture
def slides(tmp_path_factory, monkeypatch):
    """A bucket of small slides."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    import boto3
    from moto.server import ThreadedMotoServer

    running = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    url = "http://{}:{}".format(*running.get_host_and_port())
    keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "us-east-1", "AWS_ENDPOINT_URL": url}
    for name, text in {**keys, "FOVEAL_CACHE": str(tmp_path_factory.mktemp("cache"))}.items():
        monkeypatch.setenv(name, text)
    remote._store.cache_clear()
    client = boto3.client("s3", endpoint_url=url, region_name="us-east-1")
    client.create_bucket(Bucket="slides")
    for i, key in enumerate(
        ("train/a.tif", "train/b.tif", "train/c.tif", "train/d.tif", "new/e.tif", "new/deep/f.tif")
    ):
        file = tmp_path_factory.mktemp("files") / "a.tif"
        write_pyramid(file, photo(256, 256, seed=i), 2, compression="zlib")
        client.upload_file(str(file), "slides", key)
    yield
    remote._store.cache_clear()
    running.stop()


@pytest.mark.slow
def test_the_guide_on_images_in_a_bucket(reader, slides):  # noqa: F811
    reader.follow(DOCS / "guides" / "remote.md")
    assert [command.split()[1] for command in reader.commands] == ["install", "index", "fit", "predict", "explain"]
    assert reader.said.startswith("(256, 256) 1") and "requests," in reader.said

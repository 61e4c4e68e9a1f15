"""Images in S3, from a server of the same protocol in this process."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from sca_batch.data.sources import plan_sources
from sca_batch.errors import ImageError
from sca_batch.images import Places, read_image
from sca_batch.images.places import read_bytes

pytest.importorskip("s3fs")
moto_server = pytest.importorskip("moto.server")


@pytest.fixture
def bucket(monkeypatch):
    """A bucket named corpus, reached as a user would configure it: by the environment."""
    import boto3
    import s3fs

    server = moto_server.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "hush",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    client = boto3.client("s3")
    client.create_bucket(Bucket="corpus")
    yield client
    client.close()
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_objects_are_listed_and_read(bucket):
    buffer = io.BytesIO()
    Image.new("RGB", (6, 4)).save(buffer, "PNG")
    for key in ("night/b/2.png", "night/1.png", "night/notes.txt", "day/3.png"):
        bucket.put_object(Bucket="corpus", Key=key, Body=buffer.getvalue())
    plan = plan_sources(["s3://corpus/night"], is_image=lambda path: True)
    assert plan.frame["key"].to_list() == ["1.png", "b/2.png"]
    assert plan.frame["uri"].to_list() == ["s3://corpus/night/1.png", "s3://corpus/night/b/2.png"]
    assert plan.skipped_files == 1
    assert read_image("s3://corpus/night/1.png").size_hw == (4, 6)
    with pytest.raises(ImageError) as caught:
        read_bytes("s3://corpus/night/nobody.png", Places())
    assert caught.value.code == "missing"
    with pytest.raises(ImageError) as caught:
        read_bytes("s3://corpus/night/1.png", Places(max_bytes=10))
    assert caught.value.code == "too_large"

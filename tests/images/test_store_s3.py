"""Images in S3, from a server of the same protocol that throttles, breaks, drips and hangs up."""

from __future__ import annotations

import io

import pytest
from PIL import Image
from store_servers import faulty_proxy, s3_server

from sca_batch.errors import ImageError
from sca_batch.images.decode import read_image
from sca_batch.images.fetch import read_bytes
from sca_batch.images.policy import ReadPolicy
from sca_batch.plan.sources import plan_sources
from sca_batch.storage import stores

pytest.importorskip("s3fs")
pytest.importorskip("moto.server")
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def png():
    buffer = io.BytesIO()
    Image.effect_noise((60, 40), 50).save(buffer, "PNG")
    return buffer.getvalue()


IMAGE = png()


@pytest.fixture(scope="module")
def server():
    with s3_server("corpus") as server:
        for key in ("night/b/2.png", "night/1.png", "night/notes.txt", "day/3.png"):
            server.client.put_object(Bucket="corpus", Key=key, Body=IMAGE)
        yield server


@pytest.fixture
def faults(server, monkeypatch):
    """Requests go by a proxy; what is added to this befalls them. Waits are short."""
    import s3fs

    with faulty_proxy(server.host, server.port) as (url, faults):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        monkeypatch.setattr(stores, "FIRST_WAIT_S", 0.01)
        s3fs.S3FileSystem.clear_instance_cache()
        yield faults
    s3fs.S3FileSystem.clear_instance_cache()


def code_of(uri, **limits):
    with pytest.raises(ImageError) as caught:
        read_bytes(uri, ReadPolicy(**limits))
    return caught.value.code


def test_objects_are_listed_and_read(server):
    plan = plan_sources(["s3://corpus/night"])
    assert plan.frame["key"].to_list() == ["1.png", "b/2.png"]
    assert plan.frame["uri"].to_list() == ["s3://corpus/night/1.png", "s3://corpus/night/b/2.png"]
    assert plan.skipped_files == 1
    (batch,) = plan.batches()
    assert batch["size"].to_list() == [len(IMAGE)] * 2
    assert batch["etag"].null_count() == 0
    assert read_image("s3://corpus/night/1.png").size_hw == (40, 60)
    assert code_of("s3://corpus/night/nobody.png") == "missing"
    assert code_of("s3://nowhere/1.png") == "missing"
    assert code_of("s3://corpus/night/1.png", max_bytes=10) == "too_large"
    with pytest.raises(ImageError) as caught:
        read_image("s3://corpus/night/1.png", sha256="0" * 64)
    assert caught.value.code == "checksum"


@pytest.mark.parametrize("what", ["throttle", "break", "hang up", "truncate"])
def test_what_may_pass_is_asked_for_again(faults, what):
    faults.add("GET /corpus/night/1.png", what, stores.TRIES - 1)
    assert read_bytes("s3://corpus/night/1.png", ReadPolicy()) == IMAGE
    asked = [line for line in faults.seen if line.startswith("GET /corpus/night/1.png")]
    assert len(asked) == stores.TRIES


@pytest.mark.parametrize("what", ["throttle", "break", "hang up", "truncate"])
def test_what_does_not_pass_is_a_row_after_a_stated_number_of_tries(faults, what):
    faults.add("GET /corpus/night/1.png", what, 99)
    assert code_of("s3://corpus/night/1.png") == "unreadable"
    asked = [line for line in faults.seen if line.startswith("GET /corpus/night/1.png")]
    # On a connection that was kept open the client itself asks once more when it is hung up on.
    assert len(asked) in (range(5, 11) if what == "hang up" else [stores.TRIES])


def test_a_missing_object_is_asked_for_once(faults):
    assert code_of("s3://corpus/night/nobody.png") == "missing"
    assert sum("nobody" in line for line in faults.seen) <= 2  # it, or a folder of that name


def test_a_body_that_drips_ends_at_the_deadline(faults):
    faults.add("GET /corpus/night/1.png", "drip", 99)
    assert code_of("s3://corpus/night/1.png", timeout_s=0.5) == "timeout"


def test_a_listing_is_asked_for_again_too(faults):
    faults.add("GET /corpus?", "throttle", 2)
    assert len(plan_sources(["s3://corpus/night"])) == 2

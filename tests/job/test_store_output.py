"""A run whose output is an object store: killed, resumed, verified, drawn, locked, updated."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from jobs import ended, small_request, start_job
from PIL import Image
from store_servers import faulty_proxy, s3_server

from sca_batch.dataset.shards import iter_rows
from sca_batch.dataset.verify import verify_dataset
from sca_batch.errors import ScaError
from sca_batch.job.caption import caption_corpus
from sca_batch.job.events import ImageDone
from sca_batch.job.run import refuse_foreign_folder, remove_run
from sca_batch.storage.lock import Lease, leased
from sca_batch.storage.stores import StoreError, StorePath

pytest.importorskip("s3fs")
pytest.importorskip("moto.server")
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

IMAGES = 4


@pytest.fixture(scope="module")
def server():
    with s3_server("runs") as server:
        yield server


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Four small images with a box each; one cannot be read."""
    folder = tmp_path_factory.mktemp("store") / "images"
    folder.mkdir()
    lines = []
    for i in range(IMAGES):
        Image.new("RGB", (12, 10), (i * 20, 50, 90)).save(folder / f"{i}.png")
        lines.append(json.dumps({"uri": f"images/{i}.png", "boxes_xyxy": [[0, 0, 6, 5]]}))
    (folder / "2.png").write_bytes(b"broken")
    path = folder.parent / "m.jsonl"
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="module")
def run_job(manifest, server):
    """Runs the job in a process of its own; gives back how it ended."""

    def run(out, workers=1, **environment):
        environment = {**server.environment, **environment}
        preload = ("s3fs", "aiobotocore.session")
        return ended(start_job(manifest, out, environment, preload=preload, workers=workers))

    return run


@pytest.fixture(scope="module")
def whole(run_job, manifest):
    """The same run in a local folder, undisturbed."""
    out = manifest.parent / "whole"
    assert run_job(str(out)) == 0
    return out


def assert_equal(out: StorePath, other: Path) -> None:
    """Same objects as there are files, the same bytes in shards and export, and no others."""
    names = sorted(p.name for p in other.rglob("*") if p.is_file() and p.name != ".lock")
    assert sorted(name.rpartition("/")[2] for name in out.find()) == names
    for path in [*other.glob("shard-*"), other / "captions.json"]:
        assert (out / path.name).read_bytes() == path.read_bytes()
    assert list(iter_rows(out)) == list(iter_rows(other))
    assert list(verify_dataset(out)) == []


# Every point at which something of a run is in the store and the next thing is not.
POINTS = [
    "lock.taken", "plan.named", "run.named", "partial.named", "shard.written", "shard.named",
    "worker.committed", "export.written",
]  # fmt: skip


@pytest.mark.parametrize("point", POINTS)
def test_a_run_killed_at(run_job, whole, point):
    out = f"s3://runs/{point}"
    assert run_job(out, SCA_FAULT=f"{point}@group") == -signal.SIGKILL
    assert run_job(out) == 0
    assert_equal(StorePath(out), whole)


def test_workers_commit_to_the_store_themselves(run_job, whole, tmp_path):
    out, once = "s3://runs/workers", tmp_path / "once"
    fault = {"SCA_FAULT": "shard.named", "SCA_FAULT_ONCE": str(once)}
    assert run_job(out, workers=2, **fault) == 0
    assert once.exists()
    assert_equal(StorePath(out), whole)


def start(manifest, out, **options):
    return caption_corpus(small_request(manifest, out), **options)


def images(events):
    return sum(isinstance(event, ImageDone) for event in events)


def test_a_stopped_run_goes_on_from_what_the_store_has(manifest, whole):
    import fsspec

    out = StorePath("memory://run/out")
    try:
        seen = []
        stopped = start(manifest, out, listen=seen.append, should_stop=lambda: images(seen) == 2)
        assert stopped.tally.stopped
        pieces = [f".shard-000000.partial-{i}-{i + 1}.parquet" for i in range(2)]
        assert sorted(path.name for path in out.glob(".shard-*")) == pieces
        tally = start(manifest, out).tally
        assert (tally.images, tally.resumed_images) == (IMAGES - 2, 2)
        assert list(iter_rows(out)) == list(iter_rows(whole))
        assert list(out.glob(".shard-*")) == []
        with pytest.raises(ScaError, match="other files"):
            refuse_foreign_folder(StorePath("memory://run"))
        remove_run(out)
        assert out.find() == {}
    finally:
        fsspec.filesystem("memory").rm("/run", recursive=True)


def test_a_store_that_does_not_answer_stops_the_run_and_is_not_taken_for_damage(
    manifest, server, whole, monkeypatch, caplog
):
    import s3fs

    from sca_batch.storage import stores

    out = StorePath("s3://runs/faulty")
    monkeypatch.setattr(stores, "FIRST_WAIT_S", 0.01)
    with faulty_proxy(server.host, server.port) as (url, faults):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        s3fs.S3FileSystem.clear_instance_cache()
        faults.add("PUT /runs/faulty/shard-000000", "throttle", stores.TRIES - 1)
        faults.add("PUT /runs/faulty/shard-000001", "break", 99)
        with pytest.raises(StoreError) as stopped:
            start(manifest, out)
        assert stopped.value.exit_code == 75
        assert [path.name for path in out.glob("shard-*")] == ["shard-000000.parquet"]
        faults.rules.clear()
        faults.add("GET /runs/faulty/shard-000000", "throttle", 99)
        with pytest.raises(StoreError):
            start(manifest, out)
        faults.rules.clear()
        faults.add("GET /runs/faulty/shard-000000", "throttle", stores.TRIES - 1)
        assert start(manifest, out).tally.resumed_images == 3
        assert "made again" not in caplog.text
        assert list(iter_rows(out)) == list(iter_rows(whole))
        s3fs.S3FileSystem.clear_instance_cache()


def test_a_second_run_is_refused_while_the_first_lives_and_not_after(server):
    path = StorePath("s3://runs/locked/.lock")
    with leased(path), pytest.raises(ScaError, match="another run is writing here"):
        leased(path).__enter__()
    assert not path.exists()

    dead = json.dumps({"token": "x", "host": "elsewhere", "pid": 1, "started": "1", "beat": 3})
    path.write_bytes(dead.encode())
    began = time.monotonic()
    with leased(path, expires_s=0.3):
        assert time.monotonic() - began >= 0.3
    # One that is renewed on another machine is alive.
    renewing = Lease(path, 0.05)
    renewing._holder["host"] = "elsewhere"
    assert renewing.take()
    with pytest.raises(ScaError, match="elsewhere"):
        leased(path, expires_s=5).__enter__()
    # Who finds another name in the object has lost it, and does not remove what is not its own.
    # Put again and again, as by one that holds it and renews it: a first one may fall between the
    # other's look and its own renewal.
    deadline = time.monotonic() + 10
    while not renewing.lost and time.monotonic() < deadline:
        path.write_bytes(dead.encode())
        time.sleep(0.1)
    renewing.end()
    assert renewing.lost
    assert json.loads(path.read_bytes())["token"] == "x"


def test_the_command_writes_to_a_store_and_reads_from_it(
    server, shapes_images, shapes_folder, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    small = [
        "--points-per-side", "4", "--pred-iou-thresh", "0.5", "--stability-score-thresh", "0.7",
        "--stability-score-offset", "0.5", "--num-beams", "1", "--max-new-tokens", "3",
        "--shard-size", "2", "--model", str(shapes_folder),
    ]  # fmt: skip

    def sca(*arguments, code=0):
        # A process of its own, as a person's: workers come from a fork server, and one that an
        # earlier test began has that test's environment, without this server's credentials.
        command = [sys.executable, str(Path(__file__).parents[2] / "sca.py"), *arguments]
        said = subprocess.run(command, env=server.environment, capture_output=True, text=True)
        assert said.returncode == code, said.stderr
        return said.stderr + said.stdout

    for path in sorted(shapes_images.iterdir()):
        server.client.upload_file(str(path), "runs", f"corpus/{path.name}")
    caption = ["caption", "s3://runs/corpus", "-o", "s3://runs/command", *small]
    assert "Captioned 3 images" in sca(*caption)
    assert "all is well" in sca("verify", "s3://runs/command")
    sca("draw", "s3://runs/command", "shapes-0.png", "-o", "one.png")
    assert Path("one.png").stat().st_size > 100
    assert "command" in sca("stats", "s3://runs/command")

    # An object that was replaced is known by its etag; one put again as it was, by its digest.
    shutil.copy(shapes_images / "shapes-0.png", "other.png")
    server.client.upload_file("other.png", "runs", "corpus/shapes-1.png")
    server.client.delete_object(Bucket="runs", Key="corpus/shapes-2.png")
    said = sca(*caption, "--update")
    assert "0 new, 1 changed, 1 vanished, 0 back, 1 unchanged" in said
    assert "Captioned 1 images" in said
    assert "inside the source" in sca(*caption[:3], "s3://runs/corpus/out", *small, code=2)
    assert "memory://" in sca(*caption[:3], "memory://x", *small, code=2)
    assert "is there such a bucket" in sca(*caption[:3], "s3://nowhere/x", *small, code=2)
    assert threading.active_count() < 20

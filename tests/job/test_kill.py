"""kill -9 at every named place: the same job again ends with the same rows, none twice.

Jobs run in processes forked from one that has loaded the libraries, so that a kill costs
milliseconds; their captioner needs no model.
"""

from __future__ import annotations

import json
import multiprocessing
import random
import signal
import time

import pytest
from PIL import Image

from sca_batch.cli.nightly import PRELOAD
from sca_batch.dataset.shards import iter_rows
from sca_batch.faults import POINTS
from sca_batch.runners.local import start_fork_server

IMAGES = 8


@pytest.fixture(scope="module")
def processes():
    start_fork_server(PRELOAD)
    return multiprocessing.get_context("forkserver")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Eight small images with a box each; one cannot be read."""
    folder = tmp_path_factory.mktemp("kill") / "images"
    folder.mkdir()
    lines = []
    for i in range(IMAGES):
        Image.new("RGB", (12, 10), (i * 20, 50, 90)).save(folder / f"{i}.png")
        lines.append(json.dumps({"uri": f"images/{i}.png", "boxes_xyxy": [[0, 0, 6, 5]]}))
    (folder / "3.png").write_bytes(b"broken")
    path = folder.parent / "m.jsonl"
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="module")
def start(manifest, processes):
    """Starts a job in a process of its own."""
    from nightly_workers import whole_job

    def begin(out, workers=0, **environment):
        arguments = (str(manifest), str(out), environment, workers)
        process = processes.Process(target=whole_job, args=arguments)
        process.start()
        return process

    return begin


@pytest.fixture(scope="module")
def whole(start, manifest):
    """The dataset of a run that nobody disturbed."""
    out = manifest.parent / "whole"
    assert ended(start(out)) == 0
    return out


@pytest.fixture
def job(start, tmp_path):
    """Runs the job in `tmp_path`/out; gives back how it ended."""
    return lambda workers=0, **environment: ended(start(tmp_path / "out", workers, **environment))


def ended(process):
    process.join(60)
    assert process.exitcode is not None
    return process.exitcode


def assert_whole(out, other):
    """Same rows, same export, and nothing left lying about."""
    assert list(iter_rows(out)) == list(iter_rows(other))
    assert [row["image_id"] for row in iter_rows(out)] == list(range(1, IMAGES + 1))
    assert (out / "captions.json").read_bytes() == (other / "captions.json").read_bytes()
    for shard in other.glob("shard-*"):
        assert (out / shard.name).read_bytes() == shard.read_bytes()
    assert sorted(p.name for p in out.rglob("*")) == sorted(p.name for p in other.rglob("*"))


# Without workers, the supervisor's own places are not passed.
ALONE = [point for point in POINTS if point not in ("job.assigned", "job.heard")]
WORKERS_PASS = [p for p in POINTS if p.startswith(("worker.", "shard.", "partial."))]
GROUP = [p for p in POINTS if p.startswith("job.")] + WORKERS_PASS


@pytest.mark.parametrize("point", ALONE)
def test_a_job_killed_at(job, whole, tmp_path, point):
    assert job(SCA_FAULT=point) == -signal.SIGKILL
    assert job() == 0
    assert_whole(tmp_path / "out", whole)


@pytest.mark.parametrize("point", WORKERS_PASS)
def test_a_worker_killed_once_at(job, whole, tmp_path, point):
    once = tmp_path / "once"
    assert job(workers=2, SCA_FAULT=point, SCA_FAULT_ONCE=str(once)) == 0
    assert once.exists()
    assert_whole(tmp_path / "out", whole)


@pytest.mark.parametrize("point", GROUP)
def test_the_whole_process_group_killed_at(job, whole, tmp_path, point):
    assert job(workers=2, SCA_FAULT=f"{point}@group") == -signal.SIGKILL
    assert job(workers=2) == 0
    assert_whole(tmp_path / "out", whole)


def test_a_few_kills_at_random_moments(start, job, whole, tmp_path):
    chance = random.Random(7)
    for _ in range(6):
        process = start(tmp_path / "out", workers=2)
        time.sleep(chance.uniform(0.0, 0.4))
        process.kill()
        process.join()
    assert job(workers=2) == 0
    assert_whole(tmp_path / "out", whole)

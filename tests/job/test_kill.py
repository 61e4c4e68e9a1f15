"""kill -9 at every named place: the same job again ends with the same rows, none twice.

Runs are the product's own, in processes forked from one that has loaded the libraries, so that a
kill costs less than a second.
"""

from __future__ import annotations

import json
import random
import signal
import time

import pytest
from jobs import ended, start_job
from PIL import Image

from sca_batch.dataset.shards import iter_rows
from sca_batch.faults import POINTS

IMAGES = 8


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
def whole(manifest):
    """The dataset of a run that nobody disturbed."""
    out = manifest.parent / "whole"
    assert ended(start_job(manifest, out)) == 0
    return out


@pytest.fixture
def job(manifest, tmp_path):
    """Runs the job in `tmp_path`/out; gives back how it ended."""
    return lambda workers=1, **environment: ended(
        start_job(manifest, tmp_path / "out", environment, workers=workers)
    )


def assert_whole(out, other):
    """Same rows, same export, and nothing left lying about."""
    assert list(iter_rows(out)) == list(iter_rows(other))
    assert [row["image_id"] for row in iter_rows(out)] == list(range(1, IMAGES + 1))
    assert (out / "captions.json").read_bytes() == (other / "captions.json").read_bytes()
    for shard in other.glob("shard-*"):
        assert (out / shard.name).read_bytes() == shard.read_bytes()
    assert sorted(p.name for p in out.rglob("*")) == sorted(p.name for p in other.rglob("*"))


# Places that workers come to, and those that the process comes to which supervises them.
WORKERS_PASS = [p for p in POINTS if p.startswith(("worker.", "shard.", "partial."))]
ALONE = [p for p in POINTS if p not in WORKERS_PASS]
GROUP = [p for p in POINTS if p.startswith("job.")] + WORKERS_PASS


@pytest.mark.parametrize("point", ALONE)
def test_a_run_killed_at(job, whole, tmp_path, point):
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


def test_a_few_kills_at_random_moments(manifest, job, whole, tmp_path):
    chance = random.Random(7)
    for _ in range(6):
        process = start_job(manifest, tmp_path / "out", workers=2)
        time.sleep(chance.uniform(0.0, 0.8))
        process.kill()
        process.join()
    assert job(workers=2) == 0
    assert_whole(tmp_path / "out", whole)

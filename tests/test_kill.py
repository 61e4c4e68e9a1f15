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
from pathlib import Path

import pytest
from PIL import Image

from sca_batch.cli.nightly import PRELOAD
from sca_batch.data.shards import iter_rows
from sca_batch.faults import POINTS
from sca_batch.runners.local import start_fork_server

IMAGES = 8


@pytest.fixture(scope="module")
def processes():
    start_fork_server(PRELOAD)
    return multiprocessing.get_context("forkserver")


@pytest.fixture
def job(tmp_path, monkeypatch, processes):
    """Starts a job in a process; gives back how it ended."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    from nightly_workers import whole_job

    folder = tmp_path / "images"
    folder.mkdir()
    lines = []
    for i in range(IMAGES):
        Image.new("RGB", (12, 10), (i * 20, 50, 90)).save(folder / f"{i}.png")
        lines.append(json.dumps({"uri": f"images/{i}.png", "boxes_xyxy": [[0, 0, 6, 5]]}))
    (folder / "3.png").write_bytes(b"broken")
    manifest = tmp_path / "m.jsonl"
    manifest.write_text("\n".join(lines))

    def start(out, workers=0, **environment):
        process = processes.Process(
            target=whole_job, args=(str(manifest), str(tmp_path / out), environment, workers)
        )
        process.start()
        return process

    def run(out, workers=0, **environment):
        process = start(out, workers, **environment)
        process.join(60)
        assert process.exitcode is not None
        return process.exitcode

    run.start = start
    return run


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


@pytest.mark.parametrize("point", ALONE)
def test_a_job_killed_at(job, tmp_path, point):
    assert job("whole") == 0
    assert job("out", SCA_FAULT=point) == -signal.SIGKILL
    assert job("out") == 0
    assert_whole(tmp_path / "out", tmp_path / "whole")


WORKERS_PASS = [p for p in POINTS if p.startswith(("worker.", "shard.", "partial."))]


@pytest.mark.parametrize("point", WORKERS_PASS)
def test_a_worker_killed_once_at(job, tmp_path, point):
    assert job("whole") == 0
    once = str(tmp_path / "once")
    assert job("out", workers=2, SCA_FAULT=point, SCA_FAULT_ONCE=once) == 0
    assert Path(once).exists()
    assert_whole(tmp_path / "out", tmp_path / "whole")


@pytest.mark.parametrize("point", [p for p in POINTS if p.startswith("job.")] + WORKERS_PASS)
def test_the_whole_process_group_killed_at(job, tmp_path, point):
    assert job("whole") == 0
    assert job("out", workers=2, SCA_FAULT=f"{point}@group") == -signal.SIGKILL
    assert job("out", workers=2) == 0
    assert_whole(tmp_path / "out", tmp_path / "whole")


def test_a_few_kills_at_random_moments(job, tmp_path):
    assert job("whole") == 0
    chance = random.Random(7)
    for _ in range(6):
        process = job.start("out", workers=2)
        time.sleep(chance.uniform(0.0, 0.4))
        process.kill()
        process.join()
    deadline = time.monotonic() + 30
    while (code := job("out", workers=2)) != 0:
        # Orphans hold nothing, but one may be at its last file.
        assert time.monotonic() < deadline, code
    assert_whole(tmp_path / "out", tmp_path / "whole")

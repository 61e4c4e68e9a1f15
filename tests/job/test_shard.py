"""A shard in progress: what is kept of it, what it is resumed from, what is left to do."""

from __future__ import annotations

import json

import pytest

from sca_batch.dataset.shards import read_shard, read_shard_mark, shard_path
from sca_batch.job.shard import JobContext, ShardInProgress, unit_index, unit_name
from sca_batch.manifests.read import read_manifest
from sca_batch.plan.plan import make_plan
from sca_batch.plan.run_plan import open_run_plan, run_plan_frames, write_run_plan
from sca_batch.records import ImageRecord


@pytest.fixture
def resume(tmp_path):
    """The only shard of a run over five images, as a worker resumes it."""
    manifest = tmp_path / "m.jsonl"
    manifest.write_text("\n".join(json.dumps({"uri": f"{i}.png"}) for i in range(5)))
    plan = make_plan([read_manifest(str(manifest))])
    out = tmp_path / "out"
    write_run_plan(run_plan_frames(plan, 5), out)

    def resume(digest="d", commit_every_s=1e9):
        run_plan = open_run_plan(out)
        context = JobContext(out, digest, run_plan.rows_digest, commit_every_s)
        return ShardInProgress(context, run_plan, 0)

    resume.out = out
    return resume


def failed(ref):
    return ImageRecord(ref, "failed", error_code="missing", error="none")


def work(shard, images):
    for ref in shard.remaining()[:images]:
        shard.add(failed(ref))
    shard.commit()


def names(out):
    return sorted(path.name for path in out.iterdir() if path.name != "plan")


def test_units_are_named_after_their_shards():
    assert unit_name(7) == "shard-000007"
    assert unit_index(unit_name(1_234_567)) == 1_234_567


def test_pieces_are_hidden_and_added_to_until_the_shard_is_whole(resume):
    shard = resume()
    work(shard, 2)
    assert names(resume.out) == [".shard-000000.partial-0-2.parquet"]
    work(shard, 1)
    assert names(resume.out) == [
        ".shard-000000.partial-0-2.parquet", ".shard-000000.partial-2-3.parquet",
    ]  # fmt: skip
    again = resume()
    assert [ref.key for ref in again.remaining()] == ["3.png", "4.png"]
    work(again, 2)
    assert names(resume.out) == ["shard-000000.parquet"]
    assert [r.ref.key for r in read_shard(shard_path(resume.out, 0))] == [
        f"{i}.png" for i in range(5)
    ]


def test_commits_come_with_time(resume):
    shard = resume(commit_every_s=-1.0)
    shard.add(failed(shard.remaining()[0]))
    assert names(resume.out) == [".shard-000000.partial-0-1.parquet"]


def test_a_beginning_of_other_settings_or_a_damaged_one_is_made_again(resume, caplog):
    work(resume("one"), 2)
    assert len(resume("other").remaining()) == 5
    assert "made from other settings" in caplog.text
    (partial,) = resume.out.glob(".shard-*")
    partial.write_bytes(partial.read_bytes()[:50])
    assert len(resume("one").remaining()) == 5
    assert "not a readable Parquet file" in caplog.text


def test_of_a_finished_shard_only_changed_rows_are_left_to_do(resume):
    work(resume(), 5)
    assert resume().complete
    plan = open_run_plan(resume.out)
    (batch,) = plan.batches()
    raised = batch.with_columns(version=(batch["key"] == "2.png").cast(batch.schema["version"]))
    write_run_plan([raised], resume.out, plan.digest)
    shard = resume()
    assert [ref.key for ref in shard.remaining()] == ["2.png"]
    work(shard, 1)
    assert json.loads(read_shard_mark(shard_path(resume.out, 0)).versions) == {"2": 1}
    assert names(resume.out) == ["shard-000000.parquet"]

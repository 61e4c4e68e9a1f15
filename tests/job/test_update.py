"""A plan that follows its sources, against the same thing done with dicts."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import polars as pl
import pytest

from sca_batch.errors import ScaError
from sca_batch.job.events import SourcesChanged
from sca_batch.job.update import source_changes, update_plan
from sca_batch.manifests.read import read_manifest
from sca_batch.plan.plan import make_plan
from sca_batch.plan.run_plan import open_run_plan, run_plan_frames, write_run_plan
from sca_batch.storage.spool import Spool, rebatched


def plan_of(folder, rows):
    path = folder / "m.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return make_plan([read_manifest(str(path))])


@pytest.mark.parametrize("rows_at_once", [7, 1 << 19])
def test_rows_are_matched_by_key_wherever_they_stand_now(tmp_path, rows_at_once):
    chance = random.Random(0)
    before = {f"{i}.jpg": chance.randrange(5) for i in range(200)}
    plan = plan_of(tmp_path, [{"uri": key, "n": n} for key, n in before.items()])
    write_run_plan(run_plan_frames(plan, 64), tmp_path)

    kept = chance.sample(sorted(before), 150)
    now = {key: before[key] for key in kept}
    changed = set(chance.sample(kept, 30))
    now |= dict.fromkeys(changed, 9)
    now |= {f"new-{i}.jpg": i for i in range(70)}
    order = chance.sample(sorted(now), len(now))
    listed = plan_of(tmp_path, [{"uri": key, "n": now[key]} for key in order])
    expected = SourcesChanged(new=70, changed=30, gone=50, back=0, unchanged=120, followed=False)
    assert source_changes(open_run_plan(tmp_path), listed, rows_at_once=rows_at_once) == expected
    updated = update_plan(tmp_path, listed, 64, rows_at_once=rows_at_once)
    assert updated == replace(expected, followed=True)

    after = open_run_plan(tmp_path)
    after.check()
    rows = pl.concat(after.batches()).to_dicts()
    assert [row["key"] for row in rows[:200]] == list(before)
    assert [row["key"] for row in rows[200:]] == [key for key in order if "new" in key]
    assert [row["image_id"] for row in rows] == list(range(1, 271))
    assert [row["shard"] for row in rows[200:]] == [4] * 64 + [5] * 6
    for row in rows:
        n = now.get(row["key"], before.get(row["key"]))
        assert json.loads(row["extra"]) == {"n": n}
        assert row["gone"] == (row["key"] not in now)
        assert row["version"] == (row["key"] in changed)
    assert [after.is_gone(i) for i in range(270)] == [row["gone"] for row in rows]

    # Everything comes back, as it was.
    again = SourcesChanged(new=0, changed=30, gone=70, back=50, unchanged=170, followed=True)
    assert update_plan(tmp_path, plan, 64, rows_at_once=rows_at_once) == again


def test_ids_that_were_given_stay(tmp_path):
    plan = plan_of(tmp_path, [{"uri": "a.jpg", "id": 7}, {"uri": "b.jpg", "id": 3}])
    write_run_plan(run_plan_frames(plan, 64), tmp_path)
    listed = plan_of(tmp_path, [{"uri": "c.jpg", "id": 5}, {"uri": "a.jpg", "id": 7}])
    assert update_plan(tmp_path, listed, 64).new == 1
    rows = pl.concat(open_run_plan(tmp_path).batches(["image_id", "gone"])).rows()
    assert rows == [(7, False), (3, True), (5, False)]


def test_rows_whose_given_regions_changed_are_made_again_and_no_others(tmp_path):
    mask = {"size": [2, 3], "counts": [1, 4, 1]}
    rows = [
        {"uri": "a.jpg", "boxes_xyxy": [[0, 0, 1.5, 2], None], "masks_rle": [None, mask]},
        {"uri": "b.jpg", "points": [[1, 2]], "prompt_ids": ["left"]},
        {"uri": "c.jpg", "boxes_xyxy": []},
        {"uri": "d.jpg"},
    ]
    write_run_plan(run_plan_frames(plan_of(tmp_path, rows), 64), tmp_path)
    same = update_plan(tmp_path, plan_of(tmp_path, rows[::-1]), 64)
    assert (same.changed, same.unchanged) == (0, 4)

    rows[1]["points"] = [[1, 3]]
    del rows[2]["boxes_xyxy"]
    found = update_plan(tmp_path, plan_of(tmp_path, rows), 64)
    assert (found.changed, found.unchanged) == (2, 2)
    after = open_run_plan(tmp_path).refs(0)
    assert [ref.key for ref in after] == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
    assert after[1].prompts[0].points_xy == ((1, 3),)
    assert after[2].prompts is None
    assert len(after[0].prompts) == 2


def test_ids_that_are_used_up_are_refused_by_name(tmp_path):
    plan = plan_of(tmp_path, [{"uri": "a.jpg", "id": 2**63 - 1}])
    write_run_plan(run_plan_frames(plan, 64), tmp_path)
    listed = plan_of(tmp_path, [{"uri": "a.jpg", "id": 2**63 - 1}, {"uri": "b.jpg"}])
    with pytest.raises(ScaError, match="leaves no numbers for new images"):
        update_plan(tmp_path, listed, 64)


def test_a_spool_gives_back_its_rows_whole_in_batches_and_by_number():
    schema = {"a": pl.Int64(), "b": pl.String()}
    frames = [pl.DataFrame({"a": range(i, i + n), "b": ["x"] * n}) for i, n in ((0, 5), (5, 900))]
    spool = Spool.of([*frames, pl.DataFrame(schema=schema)], schema)
    assert len(spool) == 905
    assert spool.frame().equals(pl.concat(frames))
    assert pl.concat(spool.batches(["a"]))["a"].to_list() == list(range(905))
    assert spool.take(pl.Series([904, 3, 5, 3]).to_numpy())["a"].to_list() == [3, 5, 904]


@pytest.mark.parametrize(("rows", "max_bytes"), [(7, 1 << 20), (100, 1 << 20), (100, 300)])
def test_batches_are_bounded_by_rows_and_by_bytes(rows, max_bytes):
    frames = [pl.DataFrame({"a": [f"{i:050}" for i in range(n)]}) for n in (3, 1, 60, 9)]
    found = list(rebatched(frames, rows, max_bytes))
    assert pl.concat(found).equals(pl.concat(frames))
    assert all(frame.height <= rows for frame in found)
    assert all(frame.estimated_size() <= max_bytes for frame in found)
    assert len(found) == {(7, 1 << 20): 12, (100, 1 << 20): 1}.get((rows, max_bytes), len(found))

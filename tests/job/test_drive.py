"""A run in a folder: planned once, resumed, refused when settings differ, locked."""

from __future__ import annotations

import pytest
from jobs import small_request

from sca_batch.dataset.shards import iter_rows
from sca_batch.errors import ScaError
from sca_batch.job.caption import caption_corpus
from sca_batch.job.events import ImageDone
from sca_batch.job.run import refuse_foreign_folder, remove_run
from sca_batch.storage.lock import locked

# What the little shapes model needs to find anything; the defaults are for real SAM.
SMALL = {
    "points_per_side": 6,
    "pred_iou_thresh": 0.5,
    "stability_score_thresh": 0.7,
    "stability_score_offset": 0.5,
    "max_new_tokens": 4,
}


@pytest.fixture
def start(shapes_images, tmp_path):
    def run(*, out=tmp_path / "out", shard_size=2, options=None, **listening):
        settings = {**SMALL, "shard_size": shard_size, **(options or {})}
        return caption_corpus(small_request(str(shapes_images), out, **settings), **listening)

    return run


def images(events):
    return sum(isinstance(event, ImageDone) for event in events)


def files_of(out):
    return sorted(path.name for path in out.iterdir())


def assert_same_rows(first, second):
    """Everything equal, floats within 1e-4: other batches may differ in the last bits."""

    def rounded(value):
        if isinstance(value, float):
            return pytest.approx(value, abs=1e-4)
        if isinstance(value, list):
            return [rounded(item) for item in value]
        if isinstance(value, dict):
            return {key: rounded(item) for key, item in value.items()}
        return value

    assert list(first) == [rounded(row) for row in second]


def test_a_run_leaves_a_plan_shards_and_run_json(start, tmp_path):
    outcome = start()
    tally = outcome.tally
    assert (tally.images, tally.stopped, tally.failures.total()) == (3, False, 0)
    assert (outcome.exit_code, outcome.planned) == (0, 3)
    assert files_of(tmp_path / "out") == [
        ".lock", "captions.json", "plan", "run.json", "shard-000000.parquet",
        "shard-000001.parquet", "summary.json",
    ]  # fmt: skip
    rows = list(iter_rows(tmp_path / "out"))
    assert [row["key"] for row in rows] == ["shapes-0.png", "shapes-1.png", "shapes-2.png"]


def test_a_finished_run_does_nothing_again(start, tmp_path):
    start()
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("shard-*")}
    outcome = start()
    assert (outcome.tally.images, outcome.tally.resumed_images) == (0, 3)
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("shard-*")}


@pytest.mark.parametrize("stop_after", [1, 2])
def test_a_stopped_run_goes_on_where_it_was_and_ends_with_the_same_rows(
    start, tmp_path, stop_after
):
    start(out=tmp_path / "whole", shard_size=3)
    seen = []
    outcome = start(
        shard_size=3, listen=seen.append, should_stop=lambda: images(seen) == stop_after
    )
    assert outcome.tally.stopped
    assert outcome.exit_code == 75
    pieces = [name for name in files_of(tmp_path / "out") if "partial" in name]
    assert pieces == [f".shard-000000.partial-{i}-{i + 1}.parquet" for i in range(stop_after)]
    outcome = start(shard_size=3)
    assert (outcome.tally.images, outcome.tally.resumed_images) == (3 - stop_after, stop_after)
    assert not [name for name in files_of(tmp_path / "out") if "partial" in name]
    assert_same_rows(iter_rows(tmp_path / "out"), iter_rows(tmp_path / "whole"))


def test_an_exception_in_the_middle_keeps_what_was_done(start, tmp_path):
    seen = []

    def fail(event):
        seen.append(event)
        if images(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        start(shard_size=3, listen=fail)
    assert ".shard-000000.partial-1-2.parquet" in files_of(tmp_path / "out")
    assert start(shard_size=3).tally.images == 1


def test_a_damaged_shard_is_made_again(start, tmp_path, caplog):
    start()
    shard = tmp_path / "out/shard-000001.parquet"
    good = shard.read_bytes()
    shard.write_bytes(good[: len(good) // 2])
    outcome = start()
    assert (outcome.tally.images, outcome.tally.resumed_images) == (1, 2)
    assert "made again" in caplog.text
    assert len(list(iter_rows(tmp_path / "out"))) == 3


def test_other_settings_are_refused_with_the_keys_that_differ(start):
    start()
    with pytest.raises(ScaError, match="task was 'caption', is now 'recognition'"):
        start(options={"task": "recognition"})


def test_a_new_image_does_not_shift_a_plan_that_was_made(start, shapes_images, tmp_path):
    start()
    (shapes_images / "aaa.png").write_bytes((shapes_images / "shapes-0.png").read_bytes())
    assert start().tally.images == 0
    assert len(list(iter_rows(tmp_path / "out"))) == 3


def test_failed_images_are_counted_by_code(start, shapes_images):
    (shapes_images / "shapes-1.png").write_bytes(b"")
    (shapes_images / "shapes-1.png").rename(shapes_images / "shapes-9.png")
    (shapes_images / "shapes-9.png").write_bytes(
        (shapes_images / "shapes-0.png").read_bytes()[:200]
    )
    outcome = start()
    assert outcome.tally.failures == {"truncated": 1}


def test_two_runs_on_one_folder_the_second_is_refused(tmp_path):
    with locked(tmp_path / "out"), pytest.raises(ScaError, match="another run"):
        locked(tmp_path / "out", wait_s=0.1).__enter__()
    with locked(tmp_path / "out"):
        pass


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ScaError, match=r"thesis\.txt"):
        refuse_foreign_folder(tmp_path)


def test_removing_a_run_touches_its_own_files_only(start, tmp_path):
    start()
    out = tmp_path / "out"
    (out / "notes.txt").write_text("mine")
    remove_run(out)
    assert files_of(out) == [".lock", "notes.txt"]

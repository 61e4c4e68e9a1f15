"""A run in a folder: planned once, resumed, refused when settings differ, locked."""

from __future__ import annotations

import pytest

from sca_batch.captioners.sca import CaptionSettings, ScaCaptioner
from sca_batch.dataset.shards import iter_rows
from sca_batch.errors import ScaError
from sca_batch.images.formats import looks_like_image
from sca_batch.job import ShardWorker, locked, open_run, refuse_foreign_folder, remove_run, run_job
from sca_batch.pipeline import BatchSettings, Pipeline, RegionSettings
from sca_batch.plan.sources import plan_sources
from sca_batch.runners import InlineRunner


@pytest.fixture
def pipeline(shapes_model, shapes_settings):
    captioner = ScaCaptioner(shapes_model, CaptionSettings(num_beams=1, max_new_tokens=4))
    regions = RegionSettings(automatic=shapes_settings)
    return Pipeline(shapes_model, captioner, regions, BatchSettings())


@pytest.fixture
def start(shapes_images, tmp_path, pipeline):
    def run(*, out=tmp_path / "out", shard_size=2, content=None, **options):
        opened = open_run(
            out,
            make_plan=lambda: plan_sources([str(shapes_images)], is_image=looks_like_image),
            content=content or {"task": "caption"},
            settings={"model": "shapes"},
            shard_size=shard_size,
        )
        return run_job(opened, InlineRunner(lambda: ShardWorker(pipeline)), **options)

    return run


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
    assert (outcome.images, outcome.stopped, outcome.failures.total()) == (3, False, 0)
    assert files_of(tmp_path / "out") == [
        "plan", "run.json", "shard-000000.parquet", "shard-000001.parquet",
    ]  # fmt: skip
    rows = list(iter_rows(tmp_path / "out"))
    assert [row["key"] for row in rows] == ["shapes-0.png", "shapes-1.png", "shapes-2.png"]


def test_a_finished_run_does_nothing_again(start, tmp_path):
    start()
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("shard-*")}
    outcome = start()
    assert (outcome.images, outcome.resumed_images) == (0, 3)
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("shard-*")}


@pytest.mark.parametrize("stop_after", [1, 2])
def test_a_stopped_run_goes_on_where_it_was_and_ends_with_the_same_rows(
    start, tmp_path, stop_after
):
    start(out=tmp_path / "whole", shard_size=3)
    seen = []
    outcome = start(
        shard_size=3, on_record=seen.append, should_stop=lambda: len(seen) == stop_after
    )
    assert outcome.stopped
    assert f".shard-000000.partial-{stop_after}.parquet" in files_of(tmp_path / "out")
    outcome = start(shard_size=3)
    assert (outcome.images, outcome.resumed_images) == (3 - stop_after, stop_after)
    assert not [name for name in files_of(tmp_path / "out") if "partial" in name]
    assert_same_rows(iter_rows(tmp_path / "out"), iter_rows(tmp_path / "whole"))


def test_an_exception_in_the_middle_keeps_what_was_done(start, tmp_path):
    seen = []

    def fail(record):
        seen.append(record)
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        start(shard_size=3, on_record=fail)
    assert ".shard-000000.partial-2.parquet" in files_of(tmp_path / "out")
    assert start(shard_size=3).images == 1


def test_a_damaged_shard_is_made_again(start, tmp_path, caplog):
    start()
    shard = tmp_path / "out/shard-000001.parquet"
    good = shard.read_bytes()
    shard.write_bytes(good[: len(good) // 2])
    outcome = start()
    assert (outcome.images, outcome.resumed_images) == (1, 2)
    assert "made again" in caplog.text
    assert len(list(iter_rows(tmp_path / "out"))) == 3


def test_other_settings_are_refused_with_the_keys_that_differ(start):
    start()
    with pytest.raises(ScaError, match="task was 'caption', is now 'recognition'"):
        start(content={"task": "recognition"})


def test_a_new_image_does_not_shift_a_plan_that_was_made(start, shapes_images, tmp_path):
    start()
    (shapes_images / "aaa.png").write_bytes((shapes_images / "shapes-0.png").read_bytes())
    assert start().images == 0
    assert len(list(iter_rows(tmp_path / "out"))) == 3


def test_failed_images_are_counted_by_code(start, shapes_images):
    (shapes_images / "shapes-1.png").write_bytes(b"")
    (shapes_images / "shapes-1.png").rename(shapes_images / "shapes-9.png")
    (shapes_images / "shapes-9.png").write_bytes(
        (shapes_images / "shapes-0.png").read_bytes()[:200]
    )
    outcome = start()
    assert outcome.failures == {"truncated": 1}


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
    assert files_of(out) == ["notes.txt"]

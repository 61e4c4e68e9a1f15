"""Runs that are left alone: growing corpora, second tries, limits, exit codes."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import polars as pl
import pytest

from sca_batch.cli import main

SMALL = (
    "--points-per-side", "4", "--pred-iou-thresh", "0.5", "--stability-score-thresh", "0.7",
    "--stability-score-offset", "0.5", "--num-beams", "1", "--max-new-tokens", "3",
    "--shard-size", "2",
)  # fmt: skip


@pytest.fixture
def caption(tmp_path, shapes_images, shapes_folder, monkeypatch, capfd):
    """Runs `sca caption images -o out ARGUMENTS`; gives back what was said."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, code=0):
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(["caption", "images", "-o", "out", "--model", str(shapes_folder), *SMALL,
                  *map(str, arguments)])  # fmt: skip
        _, errors = capfd.readouterr()
        assert ended.value.code == code, errors
        assert "Traceback" not in errors
        return errors

    return run


def verify(code=0):
    with pytest.raises(SystemExit) as ended:
        main(["verify", "out"])
    assert ended.value.code == code


def rows(columns=("image_id", "key", "status")):
    table = pl.read_parquet("out/shard-*.parquet").sort("image_id")
    return table.select(columns).rows()


def test_an_update_captions_what_is_new_or_changed_and_marks_what_vanished(caption, shapes_images):
    caption()
    untouched = os.stat("out/shard-000000.parquet").st_mtime_ns
    images = shapes_images
    shutil.copy(images / "shapes-0.png", images / "a-new-one.png")
    shutil.copy(images / "shapes-1.png", images / "shapes-2.png")
    os.utime(images / "shapes-0.png", ns=(1, 1))  # another time, the same bytes
    before = dict(rows(("key", "sha256")))
    said = caption("--update")
    assert "1 new, 1 changed, 0 vanished, 0 back, 2 unchanged" in said
    assert "Captioned 2 images" in said
    assert os.stat("out/shard-000000.parquet").st_mtime_ns == untouched
    after = dict(rows(("key", "sha256")))
    assert [key for key in before if before[key] != after[key]] == ["shapes-2.png"]
    assert rows()[-1] == (4, "a-new-one.png", "ok")

    (images / "shapes-1.png").rename("elsewhere.png")
    assert "0 new, 0 changed, 1 vanished, 0 back, 3 unchanged" in caption("--update")
    exported = json.loads(Path("out/captions.json").read_text())
    assert [image["id"] for image in exported["images"]] == [1, 3, 4]
    assert len(rows()) == 4
    os.rename("elsewhere.png", images / "shapes-1.png")
    assert "0 new, 0 changed, 0 vanished, 1 back, 4 unchanged" in caption("--update")
    assert "Captioned 0 images" in caption()
    verify()


@pytest.mark.parametrize("form", ["zip", "tar"])
def test_an_update_notices_what_was_replaced_inside_of_an_archive(
    shapes_images, shapes_folder, tmp_path, monkeypatch, form
):
    from jobs import small_request

    from sca_batch.job.caption import caption_corpus
    from sca_batch.job.events import SourcesChanged

    def pack():
        shutil.make_archive(str(tmp_path / "photos"), form, shapes_images)
        return tmp_path / f"photos.{form}"

    def update():
        told = []
        request = small_request(pack(), tmp_path / "packed", points_per_side=4, update=True)
        caption_corpus(request, listen=told.append)
        return next(event for event in told if isinstance(event, SourcesChanged))

    caption_corpus(small_request(pack(), tmp_path / "packed", points_per_side=4))
    again = update()
    assert (again.changed, again.unchanged) == (0, 3)
    shutil.copy(shapes_images / "shapes-0.png", shapes_images / "shapes-1.png")
    os.utime(shapes_images / "shapes-1.png", (1e9, 1e9))
    replaced = update()
    assert (replaced.new, replaced.changed, replaced.gone, replaced.unchanged) == (0, 1, 0, 2)


def test_a_run_that_goes_on_says_how_its_sources_have_changed(caption, shapes_images):
    caption()
    assert "have changed" not in caption()
    shutil.copy(shapes_images / "shapes-0.png", shapes_images / "new.png")
    os.utime(shapes_images / "shapes-0.png", ns=(1, 1))
    (shapes_images / "shapes-1.png").unlink()
    said = caption(code=1)  # exit code 0 says that every listed image has a record
    assert "1 images have no record: add --update" in said
    assert "1 new, 1 changed, 1 vanished, 0 back" in said
    assert "--update" in said
    assert len(rows()) == 3
    shapes_images.rename("elsewhere")
    assert "cannot be listed again: images: no such file" in caption()
    assert "no such file" in caption("--update", code=2)


def test_verify_content_finds_a_change_that_size_and_time_hide(caption, shapes_images):
    caption()
    path = shapes_images / "shapes-0.png"
    status = path.stat()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert "0 changed" in caption("--update")
    assert "1 changed" in caption("--update", "--verify-content")


def test_an_update_that_was_killed_goes_on_without_the_option(caption, shapes_images):
    caption()
    shutil.copy(shapes_images / "shapes-1.png", shapes_images / "shapes-0.png")
    caption("--update", "--time-limit", "0.001s", code=75)
    assert "Captioned 1 images" in caption()
    verify()


def test_failed_images_are_tried_again_when_asked_and_only_those(caption, shapes_images):
    good = (shapes_images / "shapes-1.png").read_bytes()
    (shapes_images / "shapes-1.png").write_bytes(good[:100])
    (shapes_images / "shapes-3.png").write_bytes(b"")
    caption(code=1)
    (shapes_images / "shapes-1.png").write_bytes(good)
    assert "Captioned 0 images" in caption(code=1)
    assert "0 failed images" in caption("--retry-failed", "timeout,oom", code=1)
    assert "Captioned 2 images" in caption("--retry-failed", code=1)
    assert dict(rows(("key", "error_code"))) == {
        "shapes-0.png": None, "shapes-1.png": None, "shapes-2.png": None,
        "shapes-3.png": "empty_file",
    }  # fmt: skip
    assert "no such code" in caption("--retry-failed", "everything", code=2)


@pytest.mark.parametrize(("allowed", "code"), [("0", 1), ("1", 0), ("24%", 1), ("25%", 0)])
def test_max_failures_is_a_number_or_a_share(caption, shapes_images, allowed, code):
    (shapes_images / "broken.png").write_bytes(b"")
    caption("--max-failures", allowed, code=code)


def test_verify_names_what_is_wrong(caption, capfd):
    caption()
    verify()
    path = Path("out/shard-000001.parquet")
    good = path.read_bytes()
    table = pl.read_parquet("out/shard-000000.parquet")
    path.unlink()
    capfd.readouterr()
    verify(code=1)
    assert "shard-000001.parquet: missing; 1 images have no record" in capfd.readouterr().out
    path.write_bytes(good[:-20])
    verify(code=1)
    assert "not a readable Parquet file" in capfd.readouterr().out
    assert "Captioned 1 images" in caption()
    table.write_parquet(path)
    capfd.readouterr()
    verify(code=1)
    assert "not a shard" in capfd.readouterr().out


def test_verify_compares_masks_with_boxes_and_areas(caption, capfd, tmp_path):
    from dataclasses import replace

    from sca_batch.dataset import shards

    caption()
    path = tmp_path / "out/shard-000000.parquet"
    mark = shards.read_shard_mark(path)
    first, second = shards.read_shard(path)
    assert first.regions

    # What a writer with a bug would leave behind, under a digest that fits.
    lying = replace(first, regions=(), status="ok")
    shards.write_shard([lying, replace(second, ref=replace(second.ref, image_id=9))], path, mark)
    capfd.readouterr()
    verify(code=1)
    said = capfd.readouterr().out
    assert "status 'ok' with 0 regions" in said
    assert "stands where the plan has shapes-1.png, image_id 2" in said


def test_nothing_but_lines_is_written_without_a_terminal(caption):
    assert "\r" not in caption()


def test_the_summary_says_how_long_each_stage_took(caption):
    caption("--workers", "2")
    summary = json.loads(Path("out/summary.json").read_text())
    assert summary["images"] == 3
    assert summary["workers"] == 2
    assert {"decode", "encode", "propose", "caption", "commit"} <= summary["stages"].keys()
    assert summary["stages"]["decode"]["count"] == 3
    assert summary["stages"]["encode"]["p50_s"] <= summary["stages"]["encode"]["p95_s"]


@pytest.fixture
def one_thread():
    """As many threads for one worker as for each of two: then not even last bits differ."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_one_and_two_workers_write_the_same_bytes(caption, one_thread):
    files = ["shard-000000.parquet", "shard-000001.parquet"]
    caption("--workers", "1")
    one = [Path("out", name).read_bytes() for name in files]
    shutil.rmtree("out")
    caption("--workers", "2")
    assert [Path("out", name).read_bytes() for name in files] == one
    shutil.rmtree("out")
    caption("--workers", "1")
    assert [Path("out", name).read_bytes() for name in files] == one


def test_durations_are_written_as_people_write_them():
    from sca_batch.cli.options import Duration

    assert [Duration().convert(t, None, None) for t in ("7h45m", "90m", "30s", "2.5", 4)] == [
        27900.0, 5400.0, 30.0, 2.5, 4.0,
    ]  # fmt: skip


if sys.platform != "linux":
    pytest.skip("signals to oneself and fork servers as on Linux", allow_module_level=True)

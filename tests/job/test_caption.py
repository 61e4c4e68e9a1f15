"""`caption_corpus`: what listeners hear, what is refused before anything is written, exit codes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from jobs import SHAPES, small_request

from sca_batch import events
from sca_batch.errors import ScaError
from sca_batch.job.caption import caption_corpus, caption_images, preview_corpus


@pytest.fixture
def boxed(shapes_images, tmp_path):
    """A manifest with a box in each of three pictures."""
    manifest = tmp_path / "boxed.jsonl"
    rows = [
        {"uri": str(path), "boxes_xyxy": [[5, 5, 60, 50]]}
        for path in sorted(shapes_images.iterdir())
    ]
    manifest.write_text("\n".join(map(json.dumps, rows)))
    return manifest


def heard(request, **options):
    told = []
    outcome = caption_corpus(request, listen=told.append, **options)
    return outcome, told


def test_a_listener_hears_a_run_in_its_order(boxed, tmp_path):
    outcome, told = heard(small_request(boxed, tmp_path / "out"))
    assert [type(event) for event in told] == [
        events.EngineChosen, events.Planned, events.Resumed, events.ImageDone, events.ImageDone,
        events.ImageDone, events.Exporting, events.Finished,
    ]  # fmt: skip
    assert told[1] == events.Planned(3)
    assert told[3].regions == 1
    assert told[3].shard == "shard-000000"
    assert told[-1] == events.Finished(complete=True)
    assert (outcome.exit_code, outcome.tally.regions) == (0, 3)


def test_a_run_that_goes_on_tells_what_was_done_and_how_its_sources_have_changed(
    shapes_images, tmp_path
):
    request = small_request(shapes_images, tmp_path / "out", points_per_side=4)
    heard(request)
    (shapes_images / "shapes-1.png").unlink()
    _, told = heard(request)
    changed = events.SourcesChanged(new=0, changed=0, gone=1, back=0, unchanged=2, followed=False)
    assert changed in told
    assert events.Resumed(3) in told
    shutil.rmtree(shapes_images)
    _, told = heard(request)
    assert "no such file" in next(e.error for e in told if isinstance(e, events.SourcesUnlisted))


def test_workers_of_their_own_end_with_the_same_rows(boxed, tmp_path):
    from sca_batch.dataset.shards import iter_rows

    heard(small_request(boxed, tmp_path / "here"))
    outcome, _ = heard(small_request(boxed, tmp_path / "there", workers=2, shard_size=1))
    assert outcome.exit_code == 0
    assert list(iter_rows(tmp_path / "here")) == list(iter_rows(tmp_path / "there"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "sca-tinny"}, "Did you mean sca-tiny"),
        ({"metrics_file": "nowhere/sca.prom"}, "--metrics-file nowhere/sca.prom"),
        ({"root": "nowhere"}, "--root nowhere: no such folder"),
        ({"regions": "given", "limit": 1}, "have no boxes"),
        ({"workers": 0, "image_timeout": 3.0}, "takes a worker process to end"),
        ({"device": "cuda:7"}, "cuda"),
        ({"engine": "openvino", "engine_dir": "nowhere"}, "--engine openvino"),
    ],
)
def test_overwrite_removes_nothing_before_the_whole_request_is_known_to_be_good(
    shapes_images, boxed, tmp_path, monkeypatch, options, message
):
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out"
    heard(small_request(boxed, out))
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    with pytest.raises(ScaError, match=message) as refused:
        caption_corpus(small_request(shapes_images, out, overwrite=True, **options))
    assert refused.value.exit_code == 2
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


@pytest.mark.parametrize("option", ["workers", "update", "shard_size", "time_limit", "overwrite"])
def test_lines_refuse_what_means_nothing_without_a_dataset(shapes_images, option):
    value = {"workers": 2, "update": True, "shard_size": 4, "time_limit": 3.0, "overwrite": True}
    from sca_batch.job.request import CaptionRequest

    request = CaptionRequest.of(shapes_images, format="jsonl", **{option: value[option]})
    with pytest.raises(ScaError, match=f"--{option.replace('_', '-')} has no effect"):
        next(caption_images(request))


def test_images_are_captioned_one_after_the_other_without_a_dataset(boxed, tmp_path):
    from sca_batch.job.request import CaptionRequest

    request = CaptionRequest.of(boxed, model=SHAPES, num_beams=1, max_new_tokens=2)
    told = []
    records = list(caption_images(request, listen=told.append))
    assert [record.status for record in records] == ["ok"] * 3
    assert sum(isinstance(event, events.ImageDone) for event in told) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["boxed.jsonl", "images"]


def test_a_preview_tells_what_the_run_in_the_output_and_the_model_settle(boxed, tmp_path):
    out = tmp_path / "out"
    heard(small_request(boxed, out, num_beams=2))
    from sca_batch.job.request import CaptionRequest

    preview = preview_corpus(CaptionRequest.of(boxed, output=out))
    assert (preview.request.captions.num_beams, len(preview.plan)) == (2, 3)
    fresh = preview_corpus(CaptionRequest.of(boxed, output=tmp_path / "fresh"))
    assert fresh.request.regions.automatic.points_per_side == 14  # sca-tiny's own
    assert not (tmp_path / "fresh").exists()


@pytest.mark.parametrize(("allowed", "code"), [("0", 1), ("1", 0), ("24%", 1), ("25%", 0)])
def test_more_failures_than_allowed_are_exit_code_1(boxed, tmp_path, allowed, code):
    with boxed.open("a") as file:
        file.write('\n{"uri": "missing.png", "boxes_xyxy": [[0, 0, 1, 1]]}')
    request = small_request(boxed, tmp_path / "out", max_failures=allowed)
    assert caption_corpus(request).exit_code == code


def test_a_script_without_a_main_guard_runs_once(boxed, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "from sca_batch import CaptionRequest, caption_corpus\n"
        "print('begun')\n"
        "request = CaptionRequest.of(sys.argv[1], output=sys.argv[2], model=sys.argv[3],\n"
        "                            num_beams=1, max_new_tokens=2, workers=2)\n"
        "print(caption_corpus(request).exit_code)\n"
    )
    command = [sys.executable, script, boxed, tmp_path / "out", SHAPES]
    said = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path.cwd())
    assert said.stdout.split() == ["begun", "0"]

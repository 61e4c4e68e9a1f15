"""A request: frozen, checked, its content marked, and resolved without being written into."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from sca_batch.captioners.settings import CaptionSettings
from sca_batch.errors import ScaError
from sca_batch.job.request import CaptionRequest, Failures, ModelReport, RunningSettings
from sca_batch.options import option_fields, option_values

REPORT = ModelReport(
    weights="w", dtype="float32", device="cpu", engine="openvino", engine_label="openvino-fp32",
    engine_why="because", plans=("a.plan",), domain=None, versions={"sca": "0"},
)  # fmt: skip

# What records depend on besides the plan, the weights, the dtype and the engine.
CONTENT = {
    "root", "allow_http", "max_pixels", "regions", "min_area", "max_area", "max_regions",
    "min_caption_score", "points_per_side", "pred_iou_thresh", "stability_score_thresh",
    "stability_score_offset", "box_nms_thresh", "crop_n_layers", "crop_nms_thresh",
    "crop_overlap_ratio", "crop_n_points_downscale_factor", "min_mask_region_area", "task",
    "prompt", "num_beams", "max_new_tokens", "captions_per_region",
}  # fmt: skip


def test_the_fingerprint_is_made_of_the_marked_fields():
    content = CaptionRequest.of("a", root="/somewhere", num_beams=1).content(REPORT)
    assert content.keys() == CONTENT | {"weights", "dtype", "engine"}
    assert (content["root"], content["num_beams"]) == ("/somewhere", 1)
    assert (content["weights"], content["engine"]) == ("w", "openvino-fp32")


@pytest.mark.parametrize("name", sorted(CONTENT))
def test_each_marked_field_changes_the_fingerprint(name):
    found = next(f for f in option_fields(CaptionRequest) if f.name == name)
    other = {bool: True, int: 2, float: 0.25, str: next(iter(found.choices[-1:]), ""), Path: "/x"}
    # As many beams as the captions that are kept of them.
    more = {"num_beams": 4} if name == "captions_per_region" else {}
    changed = CaptionRequest.of("a", **more, **{name: other[found.kind]})
    assert changed.content(REPORT) != CaptionRequest.of("a", **more).content(REPORT)


def test_a_relative_root_means_the_same_folder_wherever_the_run_goes_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = CaptionRequest.of("a", root="corpus").content(REPORT)["root"]
    assert root == str(tmp_path / "corpus")


def test_what_was_left_out_gives_way_and_what_was_given_does_not():
    request = CaptionRequest.of("a", num_beams=3)  # its default, but somebody said so
    resumed = request.resolved({"num_beams": 1, "task": "recognition", "root": "/r", "new": 9})
    assert resumed.captions.num_beams == 3
    assert resumed.captions.task == "recognition"
    assert resumed.source.read.root == Path("/r")
    # What the run has said, the model does not change any more.
    assert resumed.resolved({"task": "caption"}).captions.task == "recognition"
    assert request.captions.task == "caption"


def test_what_differs_from_its_default_was_given():
    request = CaptionRequest(captions=CaptionSettings(num_beams=1))
    assert request.given == {"num_beams"}
    assert request.resolved({"num_beams": 2}).captions.num_beams == 1


def test_the_engine_that_was_found_is_what_a_run_goes_on_with():
    found = CaptionRequest.of("a").with_engine(REPORT)
    assert (found.model.engine, found.model.plans) == ("openvino", ("a.plan",))
    assert "engine" not in found.given
    options = found.informative(REPORT)["options"]
    assert options["engine"] == "openvino"
    assert options.keys() >= CONTENT | {"model", "dtype", "engine", "int8", "shard_size"}


def test_nothing_can_be_written_into_a_request():
    request = CaptionRequest.of("a")
    with pytest.raises(dataclasses.FrozenInstanceError):
        request.captions.num_beams = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        request.given = frozenset()


def test_values_are_read_as_scripts_write_them(tmp_path):
    request = CaptionRequest.of(
        tmp_path, output=tmp_path / "out", max_failures="2%", format="parquet", retry_failed="oom"
    )
    assert request.source.names == (str(tmp_path),)
    assert request.output.output == str(tmp_path / "out")
    assert request.running.max_failures == Failures(share=0.02)
    assert option_values(request)["retry_failed"] == ("oom",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beams": 3}, "no option beams; expected some of accept_vanished"),
        ({"num_beams": "3"}, "--num-beams is 3; expected a whole number of at least 1"),
        ({"num_beams": True}, "--num-beams is True; expected a whole number"),
        ({"min_caption_score": 1.5}, "--min-caption-score is 1.5; expected a finite number from 0"),
        ({"update": 1}, "--update is 1; expected True or False"),
        ({"task": "poem"}, "--task 'poem': expected caption, recognition"),
        ({"format": "xml"}, "expected some of parquet, coco, jsonl"),
        ({"format": "jsonl,coco"}, "goes alone"),
        ({"retry_failed": "everything"}, "no such code"),
        ({"verify_content": True}, "--verify-content goes with --update"),
        ({"overwrite": True, "update": True}, "--overwrite removes the run that --update"),
        ({"overwrite": True, "retry_failed": "all"}, "--overwrite removes the run"),
        ({"max_failures": "many"}, "a share such as 0.1%"),
        ({"max_failures": "101%"}, "a share such as 0.1%"),
        ({"time_limit": float("nan")}, "--time-limit is nan"),
    ],
)
def test_values_that_make_no_sense_are_refused_as_they_are_spelled(options, message):
    with pytest.raises(ScaError) as refused:
        CaptionRequest.of("a", **options)
    assert message in str(refused.value)


def test_failures_are_allowed_by_number_or_share():
    assert Failures(2).allow(2, 10)
    assert not Failures(2).allow(3, 10)
    assert Failures(share=0.25).allow(1, 4)
    assert not Failures(share=0.24).allow(1, 4)
    assert [str(Failures(3)), str(Failures(share=0.001))] == ["3", "0.001"]


def test_defaults_stand_in_one_place():
    assert RunningSettings().image_timeout == 900.0
    assert option_values(CaptionRequest()) == {
        found.name: found.default for found in option_fields(CaptionRequest)
    }

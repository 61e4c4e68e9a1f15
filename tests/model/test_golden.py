"""Every stage of the published implementation, on every model set it was recorded for."""

import json

import pytest
import torch

from sca_batch.checks import check, read_recording, verdict
from sca_batch.checks.stages import GENERATED, STAGES
from sca_batch.model.checkpoint import load_checkpoint, parameter_counts

SETS = [
    "gpt2-box",
    "gpt2-heads2",
    "gpt2-point",
    "gpt2-points-labels",
    "llama-box",
    "llama-box+point",
    "timm-box",
]
ID_SETS = {"greedy", "beam3", "greedy_chunk2", "beam3_new10"}


@pytest.mark.parametrize("name", SETS)
def test_every_stage_and_every_id_is_that_of_the_published_implementation(golden, name):
    results = check(load_checkpoint(golden / name), golden / name)
    stages = STAGES if name == "timm-box" else STAGES.keys() - {"timm_features"}
    expected = {*stages, *(f"generate.{n}" for n in {*GENERATED, *ID_SETS})}
    assert {result.stage for result in results} == expected
    assert [result for result in results if not result.ok] == []
    assert verdict(results) == (True, f"OK: {len(expected)} stages within tolerance")


@pytest.mark.parametrize("name", SETS)
def test_parameter_counts_are_those_of_the_published_implementation(golden, name):
    model = load_checkpoint(golden / name)
    info = json.loads((golden / name / "info.json").read_text())
    assert parameter_counts(model) == (info["n_params"], info["n_trainable"])


@pytest.mark.parametrize("name", ["gpt2-box", "llama-box"])
def test_ids_do_not_change_when_regions_are_captioned_one_by_one(golden, name):
    model, recording = load_checkpoint(golden / name), read_recording(golden / name)
    embedding = model.encode_image(recording.inputs["pixel_values"])
    boxes = recording.inputs["input_boxes"]
    num_images, num_regions = boxes.shape[:2]
    image_R = torch.arange(num_images).repeat_interleave(num_regions)
    queries = model.region_queries(embedding, image_R=image_R, boxes_R4=boxes.flatten(0, 1)).queries
    together = model.generate(queries)
    for i in range(len(queries)):
        alone = model.region_queries(
            embedding, image_R=image_R[i : i + 1], boxes_R4=boxes.flatten(0, 1)[i : i + 1]
        ).queries
        [[[best]]] = model.generate(alone)
        assert best.ids == together[i][0][0].ids
        assert best.logprob == pytest.approx(together[i][0][0].logprob, abs=1e-4)

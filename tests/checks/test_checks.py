"""Recordings: written, compared, taken apart, spoiled and refused."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from sca_batch.checks import StageResult, check, read_recording, record, verdict
from sca_batch.checks.generation import GenerateSettings, captions_in, settings_of
from sca_batch.checks.stages import STAGES
from sca_batch.errors import ScaError
from sca_batch.model.checkpoint import load_checkpoint

FILES = ("inputs.safetensors", "stages.safetensors", "generate.safetensors", "info.json")


@pytest.fixture(scope="module")
def gpt2(golden):
    return load_checkpoint(golden / "gpt2-box")


@pytest.fixture(scope="module")
def llama(golden):
    return load_checkpoint(golden / "llama-box")


@pytest.fixture
def copied(golden, tmp_path):
    """Copies the recording of a golden set, without its checkpoint, to be changed."""

    def copy(name="gpt2-box"):
        folder = tmp_path / name
        folder.mkdir()
        for file_name in FILES:
            shutil.copy(golden / name / file_name, folder / file_name)
        return folder

    return copy


def change(folder, name, **tensors):
    """Replaces tensors of one file; None removes one."""
    path = folder / f"{name}.safetensors"
    state = load_file(path) | tensors
    save_file({key: value.contiguous() for key, value in state.items() if value is not None}, path)


def change_info(folder, **entries):
    path = folder / "info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def result_of(results, stage):
    [result] = [result for result in results if result.stage == stage]
    return result


def failed(results):
    return [result.stage for result in results if result.ok is False]


# gpt2-box has SAM's encoder; a timm recording has one stage more.
SAM_STAGES = [stage for stage in STAGES if stage != "timm_features"]


@pytest.mark.parametrize("stage", SAM_STAGES)
def test_a_changed_value_fails_its_stage_and_no_other(gpt2, copied, stage):
    folder = copied()
    value = load_file(folder / "stages.safetensors")[stage].clone()
    value.flatten()[0] += 1
    change(folder, "stages", **{stage: value})
    results = check(gpt2, folder)
    assert failed(results) == [stage]
    assert result_of(results, stage).max_error == pytest.approx(1, abs=0.01)
    assert verdict(results) == (False, f"FAILED: 1 of 22 stages: {stage}")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_fails_whatever_the_tolerance(gpt2, copied, value):
    folder = copied()
    masks = load_file(folder / "stages.safetensors")["low_res_masks"]
    masks[0, 1, 2, 3, 4] = value
    change(folder, "stages", low_res_masks=masks)
    results = check(gpt2, folder, atol={"*": 1e9})
    assert failed(results) == ["low_res_masks"]
    assert "not finite" in result_of(results, "low_res_masks").note


def test_a_model_that_computes_nan_fails(golden):
    model = load_checkpoint(golden / "gpt2-box")
    model.projection.bias[0] = math.nan
    results = check(model, golden / "gpt2-box")
    assert "query_embeddings" not in failed(results)
    assert {"projected_query", "lm_logits", "loss", "generate.beam3"} <= set(failed(results))


def test_logits_at_padding_are_not_compared(gpt2, copied):
    folder = copied()
    stages = load_file(folder / "stages.safetensors")
    padded = stages["lm_attention_mask"] == 0
    assert padded.any()
    stages["lm_logits"][padded] = math.nan
    change(folder, "stages", lm_logits=stages["lm_logits"])
    assert failed(check(gpt2, folder)) == []


def test_one_id_more_or_less_before_the_end_fails(gpt2, copied):
    folder = copied()
    ids = load_file(folder / "generate.safetensors")["beam3"]
    ids[0, 1, 0, 3] += 1
    change(folder, "generate", beam3=ids)
    result = result_of(check(gpt2, folder), "generate.beam3")
    assert (result.ok, result.max_error, result.tolerance) == (False, 1, 0)
    assert result.note.startswith("row 1 is [44, 399, 171,")

    change(folder, "generate", beam3=ids[..., :-4])
    assert result_of(check(gpt2, folder), "generate.beam3").max_error == 3
    assert failed(check(gpt2, folder, atol={"generate.beam3": 2})) == ["generate.beam3"]
    assert failed(check(gpt2, folder, atol={"generate.beam3": 3})) == []


def test_ids_after_the_end_and_the_bos_in_front_are_not_compared(gpt2, copied):
    folder = copied()
    ids = load_file(folder / "generate.safetensors")["greedy"]
    assert ids[0, 1, 0, 8] == 499
    ids[0, 1, 0, 9:] = 7  # a padding id of another tokenizer
    change(folder, "generate", greedy=ids, beam3=None)
    change_info(folder, generated_ids=None)
    assert failed(check(gpt2, folder)) == []
    # Newer releases put no BOS in front.
    change(folder, "generate", greedy=ids[..., 1:])
    assert failed(check(gpt2, folder)) == []


def test_the_missing_end_of_a_caption_fails(gpt2, copied):
    folder = copied()
    ids = load_file(folder / "generate.safetensors")["greedy"]
    change(folder, "generate", greedy=ids[:, :, :, :8])
    results = check(gpt2, folder)
    assert "generate.greedy" in failed(results)


def test_ids_that_only_info_json_lists_are_compared(gpt2, copied):
    folder = copied()
    (folder / "generate.safetensors").unlink()
    results = check(gpt2, folder)
    assert result_of(results, "generate.beam3_new10").ok
    listed = json.loads((folder / "info.json").read_text())["generated_ids"]
    listed["greedy"][2][1] += 1
    change_info(folder, generated_ids=listed)
    assert failed(check(gpt2, folder)) == ["generate.greedy"]


@pytest.mark.parametrize("kept", [*SAM_STAGES, "generate.greedy"])
def test_a_recording_may_hold_one_stage_alone(gpt2, copied, kept):
    folder = copied()
    if kept.startswith("generate."):
        (folder / "stages.safetensors").unlink()
        change(folder, "generate", **dict.fromkeys(GENERATE_BUT_GREEDY))
    else:
        (folder / "generate.safetensors").unlink()
        stages = load_file(folder / "stages.safetensors")
        change(folder, "stages", **{name: None for name in stages if name != kept})
    change_info(folder, generated_ids=None)
    [result] = check(gpt2, folder)
    assert (result.stage, result.ok) == (kept, True)


GENERATE_BUT_GREEDY = [
    "beam3",
    "beam3_new10",
    "greedy_chunk2",
    "iou_scores",
    "projected_query_logits",
    "query_logits",
]


def test_without_info_json_names_say_how_ids_were_generated(gpt2, llama, copied):
    for model, folder in ((gpt2, copied()), (llama, copied("llama-box"))):
        (folder / "info.json").unlink()
        results = check(model, folder)
        if model is gpt2:
            assert failed(results) == []
            assert all(result.ok for result in results)
        else:  # the second image's task was "recognition", and nothing says so any more
            assert "lm_inputs_embeds" in failed(results)


def test_tasks_are_those_of_the_recording(llama, copied):
    folder = copied("llama-box")
    change_info(folder, tasks=["recognition", "caption"])
    assert "lm_inputs_embeds" in failed(check(llama, folder))
    assert "query_embeddings" not in failed(check(llama, folder))
    change_info(folder, tasks="caption")
    assert "lm_inputs_embeds" in failed(check(llama, folder))


def test_image_embeddings_stand_in_for_pixels_that_are_missing(gpt2, copied):
    folder = copied()
    change(folder, "inputs", pixel_values=None)
    results = check(gpt2, folder)
    assert failed(results) == []
    assert result_of(results, "image_embeddings").ok is None
    assert "pixel_values" in result_of(results, "image_embeddings").note
    assert verdict(results) == (True, "OK: 21 stages within tolerance (1 not compared)")


@pytest.mark.parametrize(
    "missing", [["attention_mask"], ["labels"], ["input_ids"], ["labels", "attention_mask"]]
)
def test_captions_follow_from_what_is_left_of_them(gpt2, copied, missing):
    folder = copied()
    change(folder, "inputs", **dict.fromkeys(missing))
    results = check(gpt2, folder)
    if missing == ["labels", "attention_mask"]:  # then every id counts, padding too
        assert {"lm_attention_mask", "loss"} <= set(failed(results))
    else:
        assert failed(results) == []
        assert all(result.ok for result in results)


def test_stages_whose_inputs_are_missing_are_named_and_not_compared(gpt2, copied):
    folder = copied()
    change(folder, "inputs", input_ids=None, attention_mask=None, labels=None)
    results = check(gpt2, folder)
    left_out = [result.stage for result in results if result.ok is None]
    assert left_out == ["lm_inputs_embeds", "lm_attention_mask", "lm_logits", "loss"]
    assert failed(results) == []

    change(folder, "inputs", input_boxes=None)
    results = check(gpt2, folder)
    compared = [result.stage for result in results if result.ok]
    assert compared == ["image_embeddings", "image_positional_embeddings"]


def test_unknown_tensors_are_named(gpt2, copied):
    folder = copied()
    change(folder, "inputs", original_sizes=torch.zeros(1, 2))
    change(folder, "stages", roi_features=torch.zeros(1))
    change(folder, "generate", attentions=torch.zeros(1, 2))
    results = check(gpt2, folder)
    unknown = {result.stage: result.note for result in results if result.ok is None}
    assert unknown == {
        "inputs.original_sizes": "unknown tensor, not used",
        "roi_features": "unknown tensor, not compared",
        "generate.attentions": "unknown tensor, not compared",
    }


def test_unsupported_generation_arguments_are_named_and_not_followed(gpt2, copied):
    folder = copied()
    settings = {"num_beams": 3, "max_length": 20, "length_penalty": 2.0}
    change_info(folder, generate={"beam3": settings})
    result = result_of(check(gpt2, folder), "generate.beam3")
    assert result.ok is None
    assert "length_penalty" in result.note


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"num_beams": 3, "max_length": 20}, GenerateSettings(3, 19)),
        ({"num_beams": 3, "max_new_tokens": 10}, GenerateSettings(3, 10)),
        ({"max_length": 5, "max_new_tokens": 10}, GenerateSettings(1, 10)),
        ({"outer": {"generate_chunk_size": 2}, "max_length": 20}, GenerateSettings(1, 19)),
        ({"do_sample": False, "length_penalty": 1.0, "pad_token_id": 0}, GenerateSettings(1, 19)),
    ],
)
def test_generation_arguments_are_the_recordings(given, expected):
    assert settings_of("any", {"generate": {"any": given}}) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("greedy", GenerateSettings(1, 19)),
        ("greedy_chunk2", GenerateSettings(1, 19)),
        ("beam5", GenerateSettings(5, 19)),
        ("beam3_new10", GenerateSettings(3, 10)),
    ],
)
def test_generation_arguments_follow_from_a_name(name, expected):
    assert settings_of(name, {}) == expected


@pytest.mark.parametrize(
    ("name", "info"),
    [
        ("mystery", {}),
        ("a", {"generate": {"a": 3}}),
        ("a", {"generate": {"a": {"num_beams": "3"}}}),
        ("a", {"generate": {"a": {"max_length": 1}}}),
        ("a", {"generate": {"a": {"do_sample": True}}}),
    ],
)
def test_generation_arguments_that_make_no_sense_are_said_to(name, info):
    assert isinstance(settings_of(name, info), str)


def test_captions_lie_between_the_bos_and_the_first_end():
    assert captions_in([[1, 5, 6, 2, 2], [1, 2, 2, 2, 2]], 1, 2) == [[5, 6, 2], [2]]
    # A model whose captions begin with a BOS of their own keeps it.
    assert captions_in([[1, 1, 5, 2]], 1, 2) == [[1, 5, 2]]
    assert captions_in([[5, 1, 2], [1, 7, 8]], 1, 2) == [[5, 1, 2], [1, 7, 8]]
    assert captions_in([[9, 5, 6, 7]], 9, 9) == [[5, 6, 7]]


def test_tolerances_are_replaced_by_name_and_by_pattern(gpt2, golden):
    folder = golden / "gpt2-box"
    assert failed(check(gpt2, folder, atol={"lm_logits": 1e-9})) == ["lm_logits"]
    assert set(failed(check(gpt2, folder, atol={"*quer*": 0}))) == {
        "query_embeddings",
        "projected_query",
        "generate.query_logits",
        "generate.projected_query_logits",
    }


@pytest.mark.parametrize(
    ("atol", "message"),
    [
        ({"lm_logit": 1.0}, "no stage 'lm_logit'; did you mean lm_logits"),
        ({"zzz": 1.0}, "no stage 'zzz'; one of"),
        ({"loss": -1.0}, "expected a number of at least 0"),
        ({"loss": math.nan}, "expected a number of at least 0"),
    ],
)
def test_a_tolerance_for_nothing_is_refused(gpt2, golden, atol, message):
    with pytest.raises(ScaError, match=message):
        check(gpt2, golden / "gpt2-box", atol=atol)


def test_a_recording_of_another_model_fails_with_both_shapes(llama, golden):
    results = check(llama, golden / "gpt2-box")
    assert len(failed(results)) == 22
    note = result_of(results, "projected_query").note
    assert note == "shape (3, 4, 32), but this model gives (3, 8, 48)"


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        pytest.param(
            {"pixel_values": torch.zeros(1, 3, 64, 64)},
            r"pixel_values is \(1, 3, 64, 64\), this model needs \(any, 3, 128, 128\)",
            id="image size",
        ),
        pytest.param(
            {"input_boxes": torch.zeros(3, 4)}, r"input_boxes is \(3, 4\)", id="no images"
        ),
        pytest.param(
            {"input_boxes": torch.zeros(2, 3, 4)}, r"\(2, 3\)\] and 1 images", id="more images"
        ),
        pytest.param(
            {"input_points": torch.zeros(1, 2, 1, 2)},
            "the same \\(images, regions\\)",
            id="regions",
        ),
        pytest.param(
            {"input_points": torch.zeros(1, 3, 2, 2), "input_labels": torch.ones(1, 3, 1)},
            "one label for each of input_points",
            id="labels",
        ),
        pytest.param(
            {"input_ids": torch.full((1, 3, 9), 500)},
            "beyond the model's 500 tokens",
            id="vocabulary",
        ),
        pytest.param(
            {"input_ids": torch.zeros(1, 3, 4, dtype=torch.long)},
            "do not belong together",
            id="ids",
        ),
        pytest.param(
            {"labels": torch.zeros(1, 2, 10, dtype=torch.long)},
            r"labels is \(1, 2, 10\)",
            id="rows",
        ),
    ],
)
def test_an_input_that_does_not_fit_is_named(gpt2, copied, tensors, message):
    folder = copied()
    change(folder, "inputs", **tensors)
    with pytest.raises(ScaError, match=message):
        check(gpt2, folder)


@pytest.mark.parametrize("tasks", [["caption", "caption"], ["describe"], {"a": 1}, [["caption"]]])
def test_tasks_that_make_no_sense_are_refused(gpt2, copied, tasks):
    folder = copied()
    change_info(folder, tasks=tasks)
    with pytest.raises(ScaError, match=r"info\.json: tasks is"):
        check(gpt2, folder)


def test_a_folder_that_is_no_recording_is_refused_with_what_to_do(gpt2, golden, tmp_path, copied):
    with pytest.raises(ScaError, match="no such folder"):
        check(gpt2, tmp_path / "nowhere")
    with pytest.raises(ScaError, match=r"no inputs\.safetensors.*sca model record"):
        check(gpt2, golden / "anything")
    folder = copied()
    for name in ("stages", "generate"):
        (folder / f"{name}.safetensors").unlink()
    change_info(folder, generated_ids=None)
    with pytest.raises(ScaError, match=r"expected stages\.safetensors or generate\.safetensors"):
        check(gpt2, folder)


def test_a_recording_in_which_nothing_can_be_compared_does_not_pass(gpt2, copied):
    folder = copied()
    (folder / "generate.safetensors").unlink()
    change_info(folder, generated_ids=None)
    stages = load_file(folder / "stages.safetensors")
    change(folder, "stages", **dict.fromkeys(stages), something=torch.zeros(1))
    with pytest.raises(ScaError, match="nothing in this recording can be compared: something"):
        check(gpt2, folder)


@pytest.mark.parametrize("name", FILES)
def test_a_broken_file_of_a_recording_is_named(gpt2, copied, name):
    folder = copied()
    (folder / name).write_bytes(b'{"half": ')
    with pytest.raises(ScaError, match=name):
        check(gpt2, folder)


@pytest.mark.parametrize(
    ("name", "prompts"),
    [
        ("gpt2-box", {}),
        ("gpt2-heads2", {"boxes": [[3, 4, 60, 50]]}),
        ("llama-box", {"points": [[[30, 20]], [[50, 40]]]}),
        ("llama-box+point", {"points": [[[30, 20, 1], [9, 9, 0]]], "boxes": [[10, 5, 60, 40]]}),
    ],
)
def test_a_model_passes_against_its_own_recording_on_a_picture(golden, tmp_path, name, prompts):
    pixels = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    model = load_checkpoint(golden / name)
    info = record(model, tmp_path / "own", image=tmp_path / "picture.png", **prompts)
    assert sorted(path.name for path in (tmp_path / "own").iterdir()) == sorted(FILES)

    results = check(model, tmp_path / "own")
    assert verdict(results) == (True, "OK: 21 stages within tolerance")
    assert max(result.max_error for result in results) == 0
    assert info["tasks"] == ["caption"]
    assert info["image"] == "picture.png"
    assert len(info["captions"][0]) == info["regions"]


def test_another_model_fails_against_that_recording(golden, gpt2, tmp_path):
    record(gpt2, tmp_path, task="recognition")
    other = load_checkpoint(golden / "gpt2-box")
    other.mixer.queries.weight[0] += 0.01
    results = check(other, tmp_path)
    assert result_of(results, "iou_scores").ok
    assert {"query_embeddings", "lm_logits"} <= set(failed(results))


def test_a_recording_has_the_tensors_and_shapes_of_the_published_ones(gpt2, golden, tmp_path):
    record(gpt2, tmp_path)
    ours, theirs = read_recording(tmp_path), read_recording(golden / "gpt2-box")
    assert ours.inputs.keys() == theirs.inputs.keys()
    assert ours.stages.keys() == theirs.stages.keys()
    assert ours.generated.keys() == theirs.generated.keys() - {"greedy_chunk2"}
    for name in ("image_embeddings", "query_embeddings", "low_res_masks", "iou_scores"):
        assert ours.stages[name].shape == theirs.stages[name].shape
    for name in ("architecture", "n_params", "n_trainable", "bos_token_id", "eos_token_id"):
        assert ours.info[name] == theirs.info[name]
    assert ours.inputs["labels"].shape[-1] == ours.inputs["input_ids"].shape[-1] + 1
    assert (ours.inputs["labels"][..., 0] == -100).all()
    assert (ours.generated["greedy"][..., 0] == 499).all()


def test_given_captions_are_teacher_forced(shapes_model, tmp_path):
    info = record(
        shapes_model, tmp_path, boxes=[[2, 3, 40, 50]], captions=["a red circle on a table"]
    )
    assert shapes_model.tokenizer.decode(info["captions"][0][0]) == "a red circle on a table"
    assert read_recording(tmp_path).inputs["input_ids"][0].tolist() == info["captions"][0]
    assert verdict(check(shapes_model, tmp_path))[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"boxes": []}, "no region to record"),
        ({"boxes": [[0, 0, 1, 1]], "points": [[[1, 1]], [[2, 2]]]}, "1 boxes and points for 2"),
        ({"points": [[[1, 1]], [[2, 2], [3, 3]]]}, "regions have 1 or 2 points"),
        ({"points": [[]]}, "regions have 0 points"),
        ({"task": "describe"}, "task 'describe'"),
        ({"captions": ["one"]}, "1 captions for 3 regions"),
        ({"captions": ["one", "two", "three"]}, "captions need a tokenizer"),
    ],
)
def test_what_cannot_be_recorded_is_refused(gpt2, tmp_path, arguments, message):
    with pytest.raises(ScaError, match=message):
        record(gpt2, tmp_path / "own", **arguments)
    assert not (tmp_path / "own").exists()


def test_the_verdict_counts_what_was_compared():
    results = [
        StageResult("a", 0.0, 1.0, True),
        StageResult("b", 2.0, 1.0, False),
        StageResult("c", None, 1.0, None),
    ]
    assert verdict(results) == (False, "FAILED: 1 of 2 stages: b (1 not compared)")
    assert verdict(results[:1]) == (True, "OK: 1 stages within tolerance")

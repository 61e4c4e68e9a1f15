"""`sca model` as it is typed: tables, verdicts, exit codes."""

import json
import re
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file, save_file

from sca_batch.cli.model import model
from sca_batch.errors import ScaError
from sca_batch.model.checkpoint import load_checkpoint, save_checkpoint


@pytest.fixture
def run():
    """Runs `sca model ...` and returns what it wrote, having compared the exit code."""

    def invoke(*arguments, code=0):
        result = CliRunner().invoke(model, [str(argument) for argument in arguments])
        if isinstance(result.exception, ScaError):
            assert result.exception.exit_code == code, result.exception
            return str(result.exception)
        assert result.exit_code == code, (result.output, result.exception)
        return result.stdout

    return invoke


@pytest.fixture
def picture(tmp_path):
    pixels = np.random.default_rng(3).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def test_list_shows_the_bundled_model_and_the_published_ones(run):
    lines = run("list").splitlines()
    titles = ["MODEL", "LANGUAGE MODEL", "TRAINED ON", "CIDER", "METEOR", "WHERE"]
    assert re.split("  +", lines[0]) == titles
    assert lines[1].startswith("sca-tiny ")
    assert lines[1].endswith(" bundled")
    assert len(lines) == 6
    assert re.search(r"gpt2_large-pt_vg +GPT2-large .* 149\.8 +17\.5 +hub$", lines[4])


def test_info_shows_sizes_parameters_files_and_tokenizer(run, golden):
    text = run("info", golden / "anything")
    assert "128 x 128 pixels" in text
    assert "8 queries" in text
    assert re.search(r"^file +model\.safetensors, 1\.0 MB$", text, re.M)
    assert re.search(r"^on disk +float32 \(248,774 values\)$", text, re.M)
    assert re.search(r"^tokenizer +tokenizer\.json$", text, re.M)

    info = json.loads((golden / "gpt2-points-labels" / "info.json").read_text())
    text = run("info", golden / "gpt2-points-labels")
    counts = f"{info['n_params']:,}, of them {info['n_trainable']:,} trainable"
    assert counts in text
    assert "pytorch_model.bin" in text
    assert re.search(r"^tokenizer +none$", text, re.M)


def test_info_shows_the_licence_and_the_card_that_lie_beside(run, golden, tmp_path):
    import torch

    save_checkpoint(load_checkpoint(golden / "gpt2-box"), tmp_path, dtype=torch.float16)
    (tmp_path / "README.md").write_text("# A card\nTrained on nothing.\n")
    text = run("info", tmp_path)
    assert "float16 (" in text
    assert text.endswith("README.md:\n# A card\nTrained on nothing.\n")


def test_info_reads_a_composition(run, golden, tmp_path):
    whole = golden / "gpt2-box"
    load_checkpoint(whole).language_model.save_pretrained(tmp_path / "lm")
    text = run("info", f"sam={whole},lm={tmp_path / 'lm'},mixer={whole}")
    assert "3 layers, 4 queries" in text
    assert f"language model  {tmp_path / 'lm'}" in text


@pytest.mark.parametrize("name", ["gpt2-box", "gpt2-points-labels", "llama-box"])
def test_a_golden_folder_is_its_own_checkpoint_and_recording(run, golden, name):
    lines = run("check", golden / name).splitlines()
    assert lines[0].split() == ["STAGE", "MAX", "ERROR", "TOLERANCE", "OK"]
    assert re.fullmatch(r"image_embeddings +\d\.\de-06 +1e-05 +ok", lines[1])
    assert re.fullmatch(r"generate\.beam3 +0 +0 +ok", lines[19])
    assert lines[-1] == "OK: 22 stages within tolerance"


def test_a_stage_that_fails_is_exit_1_and_stands_in_the_last_line(run, golden):
    folder = golden / "llama-box"
    lines = run("check", folder, "--atol", "lm_logits=1e-6", code=1).splitlines()
    assert lines[-1] == "FAILED: 1 of 22 stages: lm_logits"
    [row] = [line for line in lines if line.startswith("lm_logits")]
    assert row.split()[2:] == ["1e-06", "FAILED"]
    run("check", folder, "--atol", "lm_logits=1e-6", "--atol", "lm_*=1")


def test_ids_that_differ_are_counted_and_the_first_is_shown(run, golden, tmp_path):
    recording = shutil.copytree(golden / "gpt2-box", tmp_path / "recording")
    path = recording / "generate.safetensors"
    generated = load_file(path)
    generated["greedy"][0, 1, 0, 1] = 5
    save_file(generated, path)
    lines = run("check", golden / "gpt2-box", "--against", recording, code=1).splitlines()
    [row] = [line for line in lines if re.match(r"generate\.greedy ", line)]
    assert "FAILED  row 1 is [5, 399, 170," in row
    assert lines[-1] == "FAILED: 1 of 22 stages: generate.greedy"


def test_json_has_every_stage_and_no_nan(run, golden, tmp_path):
    document = json.loads(run("check", golden / "gpt2-box", "--json"))
    assert document["ok"] is True
    assert document["verdict"] == "OK: 22 stages within tolerance"
    assert set(document["stages"][0]) == {"stage", "max_error", "tolerance", "ok", "note"}

    recording = shutil.copytree(golden / "gpt2-box", tmp_path / "recording")
    path = recording / "stages.safetensors"
    stages = load_file(path)
    stages["loss"][0] = float("nan")
    save_file(stages, path)
    text = run("check", golden / "gpt2-box", "--against", recording, "--json", code=1)
    assert "NaN" not in text
    assert json.loads(text)["ok"] is False
    [loss] = [s for s in json.loads(text)["stages"] if s["stage"] == "loss"]
    assert (loss["max_error"], loss["ok"]) == (None, False)


def test_half_precision_is_compared_with_its_own_tolerances(run, golden):
    folder, options = golden / "gpt2-box", ["--device", "cpu", "--dtype", "bfloat16"]
    run("check", folder, *options, code=1)
    # Values stay near; the captions of a random model may all change.
    wide = [option for stage in ("*=3", "generate.*=3") for option in ("--atol", stage)]
    assert "OK: 22 stages" in run("check", folder, *options, *wide)


def test_a_folder_that_is_no_recording_is_exit_2(run, golden, tmp_path):
    assert "not a recording" in run("check", golden / "anything", code=2)
    assert "not a recording" in run("check", golden / "gpt2-box", "--against", tmp_path, code=2)
    run("check", golden / "gpt2-box", "--against", tmp_path / "nowhere", code=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--atol", "lm_logits"], "expected STAGE=X"),
        (["--atol", "lm_logits=wide"], "expected STAGE=X"),
        (["--atol", "lm_logit=1"], "did you mean lm_logits"),
        (["--device", "cuda:77"], "device cuda:77"),
    ],
)
def test_options_of_check_that_make_no_sense_are_exit_2(run, golden, options, message):
    assert message in run("check", golden / "gpt2-box", *options, code=2)


@pytest.mark.parametrize("command", ["info", "check"])
def test_a_model_that_is_not_there_is_exit_2(run, command):
    assert "Did you mean sca-tiny" in run(command, "sca-tinny", code=2)


@pytest.mark.parametrize(
    ("options", "regions", "prompt"),
    [
        pytest.param([], 3, "box", id="left out"),
        pytest.param(["--box", "3,4,40,30", "--box", "1,1,5.5,9"], 2, "box", id="boxes"),
        pytest.param(["--point", "10,12"], 1, "point", id="a point"),
        pytest.param(
            ["--point", "10,12 30,2,0", "--point", "5,5,1 6,6"], 2, "point", id="points with labels"
        ),
        pytest.param(["--box", "3,4,40,30", "--point", "9,9,0"], 1, "box+point", id="both"),
    ],
)
def test_what_was_recorded_passes(run, golden, tmp_path, picture, options, regions, prompt):
    checkpoint, out = golden / "gpt2-box", tmp_path / "recording"
    run("record", checkpoint, "-o", out, "--image", picture, *options)
    info = json.loads((out / "info.json").read_text())
    assert (info["regions"], info["prompt"], info["image"]) == (regions, prompt, "picture.png")
    assert info["model"] == "gpt2-box"
    assert str(golden) not in (out / "info.json").read_text()
    assert run("check", checkpoint, "--against", out).endswith("OK: 21 stages within tolerance\n")
    other = golden / "gpt2-points-labels"
    assert "FAILED" in run("check", other, "--against", out, code=1)


def test_a_recording_is_not_replaced_unasked(run, golden, tmp_path):
    checkpoint = golden / "gpt2-box"
    run("record", checkpoint, "-o", tmp_path)
    first = (tmp_path / "info.json").read_text()
    message = run("record", checkpoint, "-o", tmp_path, "--task", "recognition", code=2)
    assert "--overwrite" in message
    assert (tmp_path / "info.json").read_text() == first
    run("record", checkpoint, "-o", tmp_path, "--task", "recognition", "--overwrite")
    assert json.loads((tmp_path / "info.json").read_text())["tasks"] == ["recognition"]


def test_captions_are_teacher_forced_by_a_model_with_a_tokenizer(run, golden, tmp_path):
    options = ["--box", "9,9,60,60", "--caption", "a red circle"]
    run("record", golden / "anything", "-o", tmp_path / "a", *options)
    assert "need a tokenizer" in run(
        "record", golden / "gpt2-box", "-o", tmp_path / "b", *options, code=2
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--box", "1,2,3"], "expected X0,Y0,X1,Y1"),
        (["--box", "1,2,3,nan"], "expected X0,Y0,X1,Y1"),
        (["--point", "1"], "expected X,Y or X,Y,LABEL"),
        (["--point", "1,2,5"], "expected X,Y or X,Y,LABEL"),
        (["--box", "1,2,3,4", "--point", "1,2", "--point", "3,4"], "1 boxes and points for 2"),
        (["--caption", "one"], "1 captions for 3 regions"),
    ],
)
def test_regions_that_make_no_sense_are_exit_2(run, golden, tmp_path, options, message):
    out = tmp_path / "recording"
    assert message in run("record", golden / "gpt2-box", "-o", out, *options, code=2)
    assert not out.exists()


def test_an_image_that_cannot_be_read_is_exit_2(run, golden, tmp_path):
    (tmp_path / "notes.png").write_text("not a picture")
    options = ["-o", tmp_path / "out", "--image", tmp_path / "notes.png"]
    assert "in none of the formats" in run("record", golden / "gpt2-box", *options, code=2)

"""Runs on real files: they learn, they stop in every way, and they go on as if they had not."""

import dataclasses
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("accelerate")
pytest.importorskip("pycocoevalcap")

from caption_runs import (
    GOLDEN,
    QUICK,
    REPOSITORY,
    STILL,
    losses,
    rows_of,
    run,
    write_data,
)

from sca_batch.cli import main
from sca_batch.errors import ScaError
from sca_batch.model.checkpoint import load_checkpoint, published_state
from sca_batch.train.caption_task import train_captioner
from sca_batch.train.loop import RunOptions
from sca_batch.train.recipes import DataPart
from sca_batch.train.request import RunRequest
from sca_batch.train.state import Checkpoints


def test_a_run_logs_validates_paints_and_keeps_three_checkpoints_and_the_best(unbroken):
    rows = rows_of(unbroken)

    assert len(rows) == QUICK.steps
    assert all(row["grad_norm"] > 0 and row["regions_per_s"] > 0 for row in rows)
    validated = {row["step"]: row["validation"] for row in rows if "validation" in row}
    assert validated.keys() == {3, 7}
    assert {"loss", "cider_d", "bleu_1", "bleu_4", "regions"} <= validated[3].keys()
    assert validated[3]["regions"] == 6
    kept, best = Checkpoints(unbroken).steps(), Checkpoints(unbroken).best()
    assert kept[-3:] == [4, 6, 8]
    assert best.step in kept
    assert {path.name for path in (unbroken / "pictures").iterdir()} == {
        "step-00000004-0.png", "step-00000008-0.png",
    }  # fmt: skip
    assert len(list((unbroken / "tensorboard").iterdir())) == 1
    with Image.open(unbroken / "curves.png") as picture:
        assert picture.format == "PNG"


def test_only_what_the_paper_trains_has_changed(unbroken):
    before = published_state(load_checkpoint(GOLDEN / "anything"))
    after = published_state(load_checkpoint(unbroken / "model"))

    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    trained = ("mask_decoder.additional_transformer.", "mask_decoder.caption_tokens.",
               "language_project.", "task_tokens.")  # fmt: skip
    assert before.keys() == after.keys()
    assert changed
    assert all(name.startswith(trained) for name in changed)
    assert any(name.startswith("task_tokens") for name in changed)


def test_the_result_captions_by_its_own_tokenizer(unbroken):
    model = load_checkpoint(unbroken / "model")

    assert model.tokenizer.decode(model.tokenizer.encode("a red bus")) == "a red bus"
    assert {path.name for path in (unbroken / "model").iterdir()} == {
        "config.json", "model.safetensors", "tokenizer.json",
    }  # fmt: skip


def test_the_loss_falls_and_captions_get_better(data, tmp_path):
    recipe = dataclasses.replace(
        STILL, steps=60, lr=4e-3, validate_every=60, checkpoint_every=60, warmup_steps=5,
        images_per_step=5, lr_images=5,
    )  # fmt: skip
    run(recipe, tmp_path, data, validation=data)

    by_step = losses(tmp_path)
    assert np.mean(by_step[-5:]) < np.mean(by_step[:5]) - 1


def test_a_run_that_was_stopped_goes_on_with_the_losses_of_an_unbroken_one(
    unbroken, data, tmp_path
):
    said = []
    run(QUICK, tmp_path, data, validation=data, stop_after=3)
    run(QUICK, tmp_path, data, validation=data, resume=True, said=said)

    assert any("Going on from step 3 of 8" in line for line in said)
    assert losses(tmp_path) == pytest.approx(losses(unbroken), rel=1e-6)
    weights = [published_state(load_checkpoint(out / "model")) for out in (unbroken, tmp_path)]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, msg=name)


def test_a_run_that_was_killed_goes_on_with_the_losses_of_an_unbroken_one(unbroken, data, tmp_path):
    out = tmp_path / "out"
    program = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        sys.path.insert(0, sys.argv[1])
        from caption_runs import QUICK, run
        run(QUICK, Path(sys.argv[2]), Path(sys.argv[3]), validation=Path(sys.argv[3]))
        """
    )
    command = [
        sys.executable,
        "-c",
        program,
        str(REPOSITORY / "tests/helpers"),
        str(out),
        str(data),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not Checkpoints(out).steps():
        assert process.poll() is None, "it ended before there was a checkpoint"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()

    run(QUICK, out, data, validation=data, resume=True)

    assert losses(out) == pytest.approx(losses(unbroken), rel=1e-6)


def test_accumulated_batches_are_those_of_one_large_one(data, tmp_path):
    one = dataclasses.replace(STILL, steps=3, images_per_device=2, validate_every=100)
    two = dataclasses.replace(one, images_per_device=1)
    for name, recipe in (("one", one), ("two", two)):
        run(recipe, tmp_path / name, data)

    # Every caption has another length, so that means of means differ a little.
    assert losses(tmp_path / "one") == pytest.approx(losses(tmp_path / "two"), rel=0.1)


def test_cached_embeddings_give_the_same_losses_without_the_encoder(data, tmp_path):
    recipe = dataclasses.replace(STILL, steps=6, validate_every=100)
    run(recipe, tmp_path / "plain", data)
    run(recipe, tmp_path / "first", data, cache=tmp_path / "cache")
    files = list((tmp_path / "cache").rglob("*.safetensors"))
    times = {path: path.stat().st_mtime_ns for path in files}
    run(recipe, tmp_path / "second", data, cache=tmp_path / "cache")

    assert len(files) == 5
    assert times == {path: path.stat().st_mtime_ns for path in times}
    assert losses(tmp_path / "first") == losses(tmp_path / "plain")
    assert losses(tmp_path / "second") == losses(tmp_path / "plain")


def test_a_cache_is_refused_for_a_run_with_jitter(data, tmp_path):
    with pytest.raises(ScaError, match="jittered"):
        run(QUICK, tmp_path / "out", data, cache=tmp_path / "cache")


def test_a_loss_that_is_not_finite_stops_with_the_images_and_keeps_the_checkpoint(data, tmp_path):
    recipe = dataclasses.replace(QUICK, lr=1e30, images_per_step=1, warmup_steps=3)
    with pytest.raises(ScaError, match=r"step \d: the loss is (nan|inf) on images \d\.png") as told:
        run(recipe, tmp_path, data)

    assert "The checkpoint of step 2 is kept" in str(told.value)
    assert Checkpoints(tmp_path).steps() == [2]
    assert all(np.isfinite(losses(tmp_path)))


def test_an_image_that_vanished_is_named_and_nothing_is_lost(tmp_path):
    data = write_data(tmp_path / "data", images=8)
    recipe = dataclasses.replace(QUICK, checkpoint_every=100, images_per_step=1)
    run(recipe, tmp_path / "out", data, stop_after=2)
    for path in (tmp_path / "data").glob("*.png"):
        path.rename(path.with_suffix(".gone"))

    with pytest.raises(ScaError, match=r"step 2: \d\.png: no file") as told:
        run(recipe, tmp_path / "out", data, resume=True)

    assert "skip_bad_images" in str(told.value)
    assert Checkpoints(tmp_path / "out").steps()[-1] == 2


def test_an_image_that_cannot_be_read_may_be_replaced_by_another(tmp_path):
    data = write_data(tmp_path / "data")
    (tmp_path / "data" / "1.png").write_bytes(b"no image")
    recipe = dataclasses.replace(QUICK, steps=6, skip_bad_images=True, validate_every=100)

    run(recipe, tmp_path / "out", data)

    assert len(losses(tmp_path / "out")) == 6


def test_a_folder_with_a_run_is_neither_overwritten_nor_continued_with_another_recipe(
    unbroken, data
):
    with pytest.raises(ScaError, match="--resume"):
        run(QUICK, unbroken, data)
    with pytest.raises(ScaError, match=r"lr was 0\.0002, is 0\.1"):
        run(dataclasses.replace(QUICK, lr=0.1), unbroken, data, resume=True)


def test_a_run_is_not_continued_on_other_data(unbroken, tmp_path):
    other = write_data(tmp_path / "data", images=4)
    with pytest.raises(ScaError, match=r"is another run: manifests was"):
        run(QUICK, unbroken, other, resume=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"precision": "fp16"}, "needs a GPU"),
        ({"images_per_step": 3, "images_per_device": 2}, "cannot be divided"),
        ({"data": (DataPart("a", 1), DataPart("b", 1))}, "--data a=MANIFEST --data b=MANIFEST"),
        ({"also_trained": ("decoder",)}, "no parameter decoder"),
    ],
)
def test_a_request_that_cannot_be_met_is_refused(data, tmp_path, change, message):
    with pytest.raises(ScaError, match=message):
        train_captioner(
            dataclasses.replace(QUICK, **change), {"vg": data} if "data" not in change else {},
            tmp_path, RunOptions(lambda line: None, RunRequest(cpu=True)),
        )  # fmt: skip


def test_a_mix_of_data_sets_trains(data, tmp_path):
    parts = (DataPart("a", 3), DataPart("b", 1))
    recipe = dataclasses.replace(QUICK, data=parts, steps=2, validate_every=100)

    run(recipe, tmp_path / "out", data)

    assert len(losses(tmp_path / "out")) == 2


def test_the_command_trains_and_previews(data, tmp_path, capsys):
    settings = ["start=" + str(GOLDEN / "anything"), "steps=1", "precision=no", "images_per_step=1"]
    command = ["train", "vg-ablation", "--data", str(data), "--workers", "0"]
    for setting in settings:
        command += ["--set", setting]

    with pytest.raises(SystemExit) as stopped:
        main([*command, "--dry-run"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert "vg: 5 images, 0.2 epochs" in shown
    assert "trainable parameters: " in shown

    with pytest.raises(SystemExit) as stopped:
        main([*command, "-o", str(tmp_path / "out"), "--cpu"])
    assert stopped.value.code == 0
    assert (tmp_path / "out/model/model.safetensors").is_file()

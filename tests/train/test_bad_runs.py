"""What can go wrong with a run on disk and with its data: told in one line, and nothing is lost."""

import dataclasses
import os
import resource
import subprocess
from contextlib import contextmanager

import pytest

pytest.importorskip("accelerate")
pytest.importorskip("pycocoevalcap")

from caption_runs import QUICK, command_of, losses, rows_of, run, write_data

from sca_batch.cli import main
from sca_batch.errors import OutputError, ScaError
from sca_batch.train.state import Checkpoints


@contextmanager
def files_of_at_most(size):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def hidden(folder):
    return [path for path in folder.rglob(".*") if path.is_file() and path.name != ".lock"]


def test_a_disk_that_is_full_at_a_checkpoint_keeps_the_last_one(unbroken, data, tmp_path):
    run(QUICK, tmp_path, data, validation=data, stop_after=2)
    before = Checkpoints(tmp_path).path(2).read_bytes()
    with (
        files_of_at_most(len(before) // 2),
        pytest.raises(OutputError, match="the checkpoint of step 2 is whole") as told,
    ):
        run(QUICK, tmp_path, data, validation=data, resume=True)

    assert "Make room" in str(told.value)
    assert told.value.exit_code == 75
    assert Checkpoints(tmp_path).path(2).read_bytes() == before
    assert not hidden(tmp_path)
    run(QUICK, tmp_path, data, validation=data, resume=True)
    assert losses(tmp_path) == losses(unbroken)


def test_a_disk_that_is_full_at_the_end_needs_no_step_again(data, tmp_path):
    recipe = dataclasses.replace(QUICK, steps=2, validate_every=100)
    run(recipe, tmp_path, data, stop_after=1)
    size = Checkpoints(tmp_path).path(1).stat().st_size
    with (
        files_of_at_most(size + 10_000),
        pytest.raises(OutputError, match=r"model.*; the checkpoint of step 2 is whole"),
    ):
        run(recipe, tmp_path, data, resume=True)

    assert not hidden(tmp_path)
    assert not (tmp_path / "model/model.safetensors").exists()
    log = (tmp_path / "log.jsonl").read_bytes()
    run(recipe, tmp_path, data, resume=True)
    assert (tmp_path / "model/model.safetensors").exists()
    assert (tmp_path / "log.jsonl").read_bytes() == log


def test_a_real_file_system_that_is_full(unbroken, data, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1200k", "tmpfs", str(disk)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("may not mount a file system")
    try:
        with pytest.raises(OutputError, match=r"(?i)no space left") as told:
            run(QUICK, disk / "out", data, validation=data)
        steps = Checkpoints(disk / "out").steps()
        assert f"the checkpoint of step {steps[-1]} is whole" in str(told.value)
        subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True)
        run(QUICK, disk / "out", data, validation=data, resume=True)
        assert losses(disk / "out") == losses(unbroken)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_checkpoint_that_was_cut_short_is_named_and_the_one_before_serves(
    unbroken, data, tmp_path
):
    run(QUICK, tmp_path, data, validation=data, stop_after=4)
    path = Checkpoints(tmp_path).path(4)
    os.truncate(path, path.stat().st_size // 2)

    with pytest.raises(ScaError, match=r"step-00000004\.pt: cannot be read .*; remove it"):
        run(QUICK, tmp_path, data, validation=data, resume=True)

    path.unlink()
    run(QUICK, tmp_path, data, validation=data, resume=True)
    assert losses(tmp_path) == losses(unbroken)


def test_an_image_of_the_validation_that_vanished_loses_no_step(unbroken, data, tmp_path):
    held_out = write_data(tmp_path / "held-out", images=5)
    image = tmp_path / "held-out" / "0.png"
    content = image.read_bytes()
    image.unlink()
    recipe = dataclasses.replace(QUICK, checkpoint_every=1000)
    out = tmp_path / "out"

    with pytest.raises(ScaError, match=r"validation, 0\.png: no file"):
        run(recipe, out, data, validation=held_out)

    assert Checkpoints(out).steps() == [4]
    image.write_bytes(content)
    run(recipe, out, data, validation=held_out, resume=True)
    assert losses(out) == losses(unbroken)
    assert [row["step"] for row in rows_of(out) if "validation" in row] == [3, 7]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"uri": "0.png", "boxes_xyxy": [[1, 2, 30', "line 1"),
        (b'{"uri": "0.png", "boxes_xyxy": [[9, 2, 3, 4]], "references": [["a"]]}', "line 1"),
        (b'{"uri": "0.png", "boxes_xyxy": [[1, 2, 3, 4]], "references": []}', "references"),
        (b"", "manifest.jsonl"),
    ],
    ids=["cut off", "a box that is none", "no references", "empty"],
)
def test_a_corrupt_manifest_stops_before_anything_is_written(tmp_path, capsys, content, message):
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_bytes(content)

    with pytest.raises(SystemExit) as stopped:
        main(command_of(QUICK, tmp_path / "out", manifest))

    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("Error: ")
    assert message in said
    assert not list(tmp_path.glob("out/[!.]*"))

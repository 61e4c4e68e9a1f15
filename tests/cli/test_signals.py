"""Signals to the whole process group, as a terminal and a service manager send them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest
from jobs import SHAPES

ROOT = Path(__file__).parents[2]


@pytest.fixture
def start(shapes_images, tmp_path):
    """Starts `sca caption` over many images in a process group of its own."""
    for i in range(60):
        shutil.copy(shapes_images / "shapes-0.png", shapes_images / f"more-{i}.png")

    def begin(*more, at_hangup=signal.SIG_DFL):
        command = [
            sys.executable, str(ROOT / "sca.py"), "caption", "images", "-o", "out", "--model",
            str(SHAPES), "--points-per-side", "4", "--pred-iou-thresh", "0.5", "--num-beams", "1",
            "--stability-score-thresh", "0.7", "--max-new-tokens", "3", "--shard-size", "8", *more,
        ]  # fmt: skip
        before = signal.signal(signal.SIGHUP, at_hangup)  # inherited, by the tests' own runner too
        try:
            return subprocess.Popen(
                command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True
            )
        finally:
            signal.signal(signal.SIGHUP, before)

    return begin


def await_line(process, text):
    """What was said until a line with this text."""
    said = []
    for line in process.stderr:
        said.append(line)
        if text in line:
            break
    return "".join(said)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGHUP, 75)]
)
def test_a_signal_to_the_group_while_the_model_loads_is_one_line(start, number, code, tmp_path):
    running = start()
    time.sleep(1.0)
    os.killpg(running.pid, number)
    _, said = running.communicate(timeout=60)
    assert running.returncode == code, said
    assert said == "Stopped. What is done is kept; the same command goes on.\n"
    assert not (tmp_path / "out/run.json").exists()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGUSR1, 75)]
)
def test_a_signal_to_the_group_while_images_are_captioned_keeps_what_is_done(
    start, number, code, tmp_path
):
    running = start("--workers", "2")
    await_line(running, "Engine")
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("out/shard-*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(running.pid, number)
    _, said = running.communicate(timeout=60)
    assert running.returncode == code, said
    assert "Traceback" not in said
    assert "died" not in said
    assert "The same command goes on" in said
    assert json.loads((tmp_path / "out/summary.json").read_text())["complete"] is False
    again = start("--workers", "2")
    _, said = again.communicate(timeout=120)
    assert again.returncode == 0, said
    assert "images were done before" in said
    rows = pl.read_parquet(tmp_path / "out/shard-*.parquet")
    assert sorted(rows["image_id"].to_list()) == list(range(1, 64))  # none twice, none missing


def test_a_run_under_nohup_outlives_its_terminal(start, tmp_path):
    running = start("--workers", "2", "--limit", "20", at_hangup=signal.SIG_IGN)
    await_line(running, "Engine")
    os.killpg(running.pid, signal.SIGHUP)
    _, said = running.communicate(timeout=120)
    assert running.returncode == 0, said
    assert json.loads((tmp_path / "out/summary.json").read_text())["complete"] is True


def test_a_second_signal_acts_at_once(start):
    running = start()
    await_line(running, "Engine")
    time.sleep(0.3)
    for number in (signal.SIGTERM, signal.SIGTERM):
        os.killpg(running.pid, number)
        time.sleep(0.02)
    began = time.monotonic()
    _, said = running.communicate(timeout=60)
    assert running.returncode == 75, said
    assert time.monotonic() - began < 10
    assert "Traceback" not in said


def test_a_reader_that_leaves_ends_the_command_quietly(start, tmp_path):
    command = (
        f"{sys.executable} {ROOT / 'sca.py'} -q caption images --format jsonl -o - --model "
        f"{SHAPES} --points-per-side 4 --num-beams 1 --max-new-tokens 2 | head -c 10; "
        "echo ${PIPESTATUS[0]}"
    )
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.split("\n")[-2].endswith("0")
    assert done.stderr == ""


def test_another_pipe_that_breaks_is_not_taken_for_the_reader():
    code = (
        "import click, os, sca_batch.cli as cli\n"
        "@click.group(cls=cli.LazyGroup, invoke_without_command=True)\n"
        "def group():\n"
        "    ours, theirs = os.pipe()\n"
        "    os.close(ours)\n"
        "    os.write(theirs, b'to a helper that died')\n"
        "cli.run_command(group, 'sca', [])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 70, done.stderr
    assert "BrokenPipeError" in done.stderr
    assert "This is a bug in sca" in done.stderr


def test_an_output_that_cannot_be_made_is_a_request_that_cannot_be_met(start):
    running = start("-o", "/proc/nowhere/out")
    _, said = running.communicate(timeout=60)
    assert running.returncode == 2, said
    assert "/proc/nowhere/out" in said
    assert "Traceback" not in said

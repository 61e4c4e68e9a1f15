"""Signals and the clock: a run stops with a checkpoint, and goes on as if it had not stopped."""

import dataclasses
import os
import signal
import subprocess
import sys
import time

import pytest

pytest.importorskip("accelerate")
pytest.importorskip("pycocoevalcap")

from caption_runs import QUICK, REPOSITORY, Started, command_of, losses, rows_of, run

from sca_batch.train.state import Checkpoints

# No checkpoint of its own accord, so that the one that is found is the signal's; and slow enough
# to be stopped on its way.
LONG = dataclasses.replace(QUICK, steps=400, checkpoint_every=1000, validate_every=1000)


def start(recipe, out, data, *options, group=False):
    said = out.with_name(f"{out.name}-{len(options)}.said")
    return Started([*command_of(recipe, out, data), *options], said, group=group)


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGTERM, 75),
        pytest.param(signal.SIGUSR1, 75, marks=pytest.mark.slow),
        (signal.SIGINT, 130),
    ],
)
def test_a_signal_stops_after_the_step_with_a_checkpoint(data, tmp_path, number, code):
    # With a worker: it has to outlive the signal, which a scheduler sends to the whole group.
    process = start(LONG, tmp_path, data, "--workers", "1")
    process.wait_for_rows(tmp_path, 3)
    process.send(number)

    assert process.ended() == code
    steps = len(rows_of(tmp_path))
    assert 3 <= steps < LONG.steps
    assert Checkpoints(tmp_path).steps() == [steps]
    assert f"Stopped at step {steps}; --resume goes on." in process.said.read_text()


def test_a_signal_to_the_whole_group_does_not_take_the_workers_away(data, tmp_path):
    process = start(LONG, tmp_path, data, "--workers", "2", group=True)
    process.wait_for_rows(tmp_path, 3)
    os.killpg(process.process.pid, signal.SIGTERM)

    assert process.ended() == 75, process.said.read_text()
    assert Checkpoints(tmp_path).steps() == [len(rows_of(tmp_path))]


def test_a_run_that_a_signal_stopped_goes_on_with_the_losses_of_an_unbroken_one(
    unbroken, data, tmp_path
):
    slow = dataclasses.replace(QUICK, checkpoint_every=1000)
    process = start(slow, tmp_path, data, "--validation", str(data))
    process.wait_for_rows(tmp_path, 2)
    process.send(signal.SIGTERM)
    assert process.ended() == 75
    assert 2 <= len(rows_of(tmp_path)) < QUICK.steps

    run(slow, tmp_path, data, validation=data, resume=True)

    assert losses(tmp_path) == pytest.approx(losses(unbroken), rel=1e-6)
    assert [row.get("validation") for row in rows_of(tmp_path)] == [
        row.get("validation") for row in rows_of(unbroken)
    ]


def test_a_validation_that_was_stopped_is_made_up(unbroken, data, tmp_path):
    asked = iter([False] * 5 + [True] * 100)  # four steps, one image of the first validation

    stopped = run(QUICK, tmp_path, data, validation=data, should_stop=lambda: next(asked))

    assert (stopped.step, stopped.stopped) == (4, True)
    assert len(rows_of(tmp_path)) == 3, "the fourth step waits for its scores"
    run(QUICK, tmp_path, data, validation=data, resume=True)
    scores = [[row.get("validation") for row in rows_of(out)] for out in (tmp_path, unbroken)]
    assert scores[0] == scores[1]
    assert scores[0][3] is not None
    assert losses(tmp_path) == pytest.approx(losses(unbroken), rel=1e-6)


@pytest.mark.slow
def test_a_second_interrupt_stops_at_once(data, tmp_path):
    slow = dataclasses.replace(LONG, images_per_step=150, lr_images=150, report_every=1)
    process = start(slow, tmp_path, data, "--workers", "0")
    process.wait_for_words("step 0: ")
    time.sleep(1)  # into the next step, which takes several seconds
    process.send(signal.SIGINT)
    process.wait_for_words("Once more to stop at once")
    process.send(signal.SIGINT)

    assert process.ended(10) == 130, process.said.read_text()
    assert "Interrupted." in process.said.read_text()
    assert Checkpoints(tmp_path).steps() == [], "the second step was not finished"


@pytest.mark.slow  # in a process that has to load torch first, since the time counts from its start
def test_the_time_limit_stops_before_it_has_passed(data, tmp_path):
    began = time.monotonic()
    command = command_of(dataclasses.replace(LONG, steps=100_000), tmp_path, data)
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "sca.py"), *command, "--time-limit", "30s"],
        capture_output=True,
        text=True,
        timeout=120,
    )

    assert done.returncode == 75, done.stderr
    # Ending a process that has loaded torch takes a moment, and starting one is not counted.
    assert 20 < time.monotonic() - began < 40
    assert "--time-limit is near" in done.stderr
    assert Checkpoints(tmp_path).steps() == [len(rows_of(tmp_path))]


def test_two_runs_do_not_write_into_one_folder(data, tmp_path):
    first = start(LONG, tmp_path, data)
    first.wait_for_rows(tmp_path, 1)
    second = start(LONG, tmp_path, data, "--resume")

    assert second.ended() == 2
    assert "another run is writing here" in second.said.read_text()
    first.send(signal.SIGTERM)
    assert first.ended() == 75

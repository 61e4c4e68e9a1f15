"""Workers that die, hang, refuse and log, and the supervisor that outlives them all."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

import pytest

from sca_batch.errors import ScaError
from sca_batch.job.caption import PRELOAD
from sca_batch.runners.local import LocalRunner
from sca_batch.runners.protocol import Done, InlineRunner, Lost, Stopped
from sca_batch.runners.spawn import start_fork_server


@pytest.fixture
def run(monkeypatch):
    """Runs units with a worker that misbehaves; gives back the events, without `Began`."""
    from bad_workers import MakeBad

    start_fork_server(PRELOAD)  # one for all tests, whichever comes first

    def go(deeds=None, *, units=("u",), workers=1, marks=None, at_start=None, stop=None, **options):
        events = []
        make = MakeBad(tuple((deeds or {}).items()), marks and str(marks), at_start)
        with LocalRunner(make, ["cpu"] * workers, **options) as runner:
            go.about = runner.about()
            runner.run(units, None, events.append, stop or (lambda: False))
        return [event for event in events if isinstance(event, Done | Stopped | Lost)]

    return go


def results(events):
    """The last thing said of each item."""
    return {event.item: event.result for event in events if isinstance(event, Done)}


def test_units_are_spread_over_the_workers_and_each_is_finished_once(run):
    events = run(units=[f"u{i}" for i in range(5)], workers=2)
    assert sorted(e.unit for e in events if isinstance(e, Stopped)) == [f"u{i}" for i in range(5)]
    assert len(results(events)) == 50


@pytest.mark.parametrize("deed", ["kill", "abort", "exit", "bug"])
def test_a_worker_that_dies_once_costs_nothing_but_time(run, tmp_path, deed, caplog):
    events = run({"u/4": deed}, marks=tmp_path)
    assert [e for e in events if isinstance(e, Stopped)] == [Stopped("u", True, None)]
    assert "killed_worker" not in results(events).values()
    assert len(results(events)) == 10
    assert "died" in caplog.text


@pytest.mark.parametrize("deed", ["kill", "abort", "bug"])
def test_an_item_that_keeps_killing_is_given_up_and_the_others_are_not(run, deed, caplog):
    events = run({"u/4": deed, "u/9": deed}, units=["t", "u"])
    wrong = {item for item, result in results(events).items() if result == "killed_worker"}
    assert wrong == {"u/4", "u/9"}
    assert {e.unit for e in events if isinstance(e, Stopped)} == {"t", "u"}
    assert "u/4 is given up" in caplog.text


def test_an_item_that_hangs_is_named_and_given_up_at_its_deadline(run, caplog):
    events = run({"u/3": "hang"}, item_timeout_s=0.4)
    assert {i for i, r in results(events).items() if r == "timeout"} == {"u/3"}
    assert "Nothing has moved" in caplog.text
    assert "u/3" in caplog.text


def test_a_unit_that_is_not_done_in_time_is_taken_up_again_and_then_lost_by_name(run, caplog):
    events = run({"u/5": "hang"}, units=["u", "t"], unit_timeout_s=2.0, retries=1)
    (lost,) = [event for event in events if isinstance(event, Lost)]
    assert (lost.unit, lost.is_bug) == ("u", False)
    assert "not done after 2 s 2 times" in lost.error
    assert [e.unit for e in events if isinstance(e, Stopped)] == ["t"]
    assert len({item for item in results(events) if item.startswith("t/")}) == 10


def test_a_slow_item_that_moves_is_left_alone(run):
    events = run({f"u/{i}": "slow" for i in range(10)}, item_timeout_s=0.45)
    assert set(results(events).values()) == {"fine"}


def test_a_bug_at_every_item_is_a_bug_and_not_a_corpus_of_bad_images(run):
    with pytest.raises(RuntimeError, match="a bug of ours"):
        run({f"u/{i}": "bug" for i in range(10)})


def test_a_request_that_cannot_be_met_comes_back_as_it_was_said(run):
    with pytest.raises(ScaError, match="name another"):
        run(at_start="refuse")
    with pytest.raises(ScaError, match="free some"):
        run({"u/2": "refuse"})


def test_workers_that_cannot_start_do_not_start_for_ever(run):
    with pytest.raises(ScaError, match=r"SIGKILL.*4 times"):
        run(at_start="die")
    with pytest.raises(RuntimeError, match="made wrong"):
        run(at_start="bug")


@pytest.mark.parametrize("devices", [["good", "bad"], ["bad", "good", "good"]])
@pytest.mark.parametrize("at_start", ["die", "bug"])
def test_a_device_that_cannot_start_is_left_out_and_the_others_go_on(devices, at_start, caplog):
    from bad_workers import MakeBad

    events = []
    start_fork_server(PRELOAD)
    with LocalRunner(MakeBad(at_start=at_start, on_device="bad"), devices) as runner:
        assert runner.about()["device"] == "good"
        runner.run([f"u{i}" for i in range(9)], None, events.append, lambda: False)
        assert runner.retired in ((), ("bad",))  # units may be done before the last try
        if devices[0] == "bad":
            assert runner.retired == ("bad",)
    assert sorted(e.unit for e in events if isinstance(e, Stopped)) == [f"u{i}" for i in range(9)]


def test_a_device_that_refuses_what_others_do_is_left_out(caplog):
    from bad_workers import MakeBad

    events = []
    start_fork_server(PRELOAD)
    slow = tuple((f"u{n}/{i}", "slow") for n in range(9) for i in range(10))
    make = MakeBad(deeds=slow, at_start="refuse", on_device="bad")
    with LocalRunner(make, ["good", "bad"]) as runner:
        runner.about()
        runner.run([f"u{i}" for i in range(3)], None, events.append, lambda: False)
        assert runner.retired == ("bad",)
    assert "no such model" in caplog.text
    assert len([e for e in events if isinstance(e, Stopped)]) == 3


def test_a_worker_killed_in_the_middle_of_a_message_is_a_dead_worker_and_no_traceback():
    from multiprocessing import Pipe

    from sca_batch.runners.slots import Slot

    ours, theirs = Pipe()
    theirs.send_bytes(b"x" * 100)
    os.write(theirs.fileno(), (1000).to_bytes(4, "big") + b"half")
    theirs.close()
    slot = Slot("cpu", connection=ours)
    assert ours.recv_bytes() == b"x" * 100
    assert list(slot.messages()) == []
    assert slot.connection is None


def test_what_a_worker_logs_is_written_by_the_supervisor(run, caplog):
    with caplog.at_level(logging.WARNING):
        run({"u/1": "log"})
    assert ("bad", logging.WARNING, "said by the worker") in caplog.record_tuples


def test_told_to_stop_the_worker_finishes_its_item_and_says_what_is_left(run):
    asked = []
    deeds = {f"u/{i}": "slow" for i in range(10)}
    events = run(deeds, units=["u", "v"], stop=lambda: asked.append(1) or len(asked) > 3)
    stopped = [e for e in events if isinstance(e, Stopped)]
    assert [e.unit for e in stopped] == ["u"]
    assert not stopped[0].complete
    assert 0 < len(results(events)) < 10


def test_no_worker_outlives_its_supervisor(run):
    run()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{run.about['pid']}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_inline_runner_says_the_same_things(monkeypatch):
    from bad_workers import BadWorker

    events = []
    runner = InlineRunner(lambda device: BadWorker({}, None, device), "cpu")
    assert runner.about()["pid"] == os.getpid()
    runner.run(["u", "v"], None, events.append, lambda: False)
    assert [e.unit for e in events if isinstance(e, Stopped)] == ["u", "v"]
    assert len(results(events)) == 20

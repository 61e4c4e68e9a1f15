"""The clock: one must stop as long before the limit as two of the slowest steps take."""

from __future__ import annotations

import time

from sca_batch.job.deadline import Deadline


def test_without_a_limit_it_is_never_near():
    deadline = Deadline(None, began=time.monotonic() - 1e9)
    deadline.step()
    assert not deadline.look()


def test_it_is_near_when_two_of_the_slowest_steps_would_not_fit():
    now = time.monotonic()
    deadline = Deadline(100.0, began=now - 50)
    assert not deadline.look()
    deadline._heard_at = now - 30  # a step of half a minute
    deadline.step()
    assert deadline.look()


def test_once_near_it_stays_so():
    deadline = Deadline(0.0, began=time.monotonic() - 1)
    assert deadline.look()
    deadline._limit_s = 1e9
    assert deadline.look()

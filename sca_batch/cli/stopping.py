"""Wishes that a command stop: by a signal, of which the second acts at once, or by the clock."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType

from sca_batch.cli.logs import tell
from sca_batch.errors import EXIT_INTERRUPTED, EXIT_STOPPED

__all__ = ["SIGNALS", "Stop", "said", "stop_on_signals", "stop_training"]

STARTED = time.monotonic()  # about when the process began, which is what --time-limit counts from

# A service manager's, a scheduler's warning, a terminal that is gone; and Ctrl-C.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


class Stop:
    """The wish to stop; nobody's yet, as long as `requested` is False.

    A signal ends what is done at once, as KeyboardInterrupt, since nothing is lost by it; while
    somebody is `patient`, who asks now and then, the first one only makes the wish.
    """

    def __init__(self, time_limit_s: float | None = None) -> None:
        from sca_batch.job.deadline import Deadline

        self.signal: int | None = None
        self.patient = False
        self._deadline = Deadline(time_limit_s, STARTED)

    @property
    def exit_code(self) -> int:
        return EXIT_INTERRUPTED if self.signal == signal.SIGINT else EXIT_STOPPED

    def requested_after_step(self) -> bool:
        """The same, once a step: so long before the limit one must stop."""
        self._deadline.step()
        return self.requested()

    def requested(self) -> bool:
        was_near = self._deadline.is_near
        if self.signal is None and self._deadline.look() and not was_near:
            tell("Stopping: --time-limit is near.")
        return self.signal is not None or self._deadline.is_near

    def ended(self, step: int, stopped: bool) -> int:
        """The exit code of a training that ended at a step; says so where it was stopped."""
        if stopped:
            tell(f"Stopped at step {step:,}; --resume goes on.")
        return self.exit_code if stopped else 0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        is_first = self.signal is None
        self.signal = number
        if not (is_first and self.patient):
            raise KeyboardInterrupt
        tell("\nStopping after this batch; what is done is kept. Once more to stop at once.")


@contextmanager
def stop_on_signals(time_limit_s: float | None = None, *, patient: bool = False) -> Iterator[Stop]:
    """`SIGNALS` ask to stop, under `nohup` all but SIGHUP; the handlers before come back."""
    stop = Stop(time_limit_s)
    stop.patient = patient
    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread may have handlers
        return
    is_nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN  # asked to outlive its terminal
    heard = [number for number in SIGNALS if not (is_nohup and number == signal.SIGHUP)]
    before = {number: signal.signal(number, stop) for number in heard}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def stop_training(out: Path, time_limit_s: float | None) -> Iterator[Stop]:
    """The same for a training, which has its folder for itself meanwhile.

    Of several processes that train together the first one's lock is enough.
    """
    from sca_batch.storage.lock import locked

    lock = locked(out) if os.environ.get("RANK", "0") == "0" else nullcontext()
    with lock, stop_on_signals(time_limit_s, patient=True) as stop:
        yield stop


def said(line: str) -> None:
    """Reports a training's line to whoever watches."""
    tell(line)

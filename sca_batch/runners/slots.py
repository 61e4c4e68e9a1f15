"""Workers and unfinished units as the supervisor remembers them."""

from __future__ import annotations

import multiprocessing.process
import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

from sca_batch.runners.protocol import GiveUp

__all__ = ["Slot", "Unit"]


@dataclass(eq=False)
class Unit:
    """A unit that is not finished."""

    name: str
    careful: bool = False
    deaths: int = 0  # with no item to blame
    strikes: Counter[str] = field(default_factory=Counter)
    given_up: dict[str, GiveUp] = field(default_factory=dict)


@dataclass(eq=False)
class Slot:
    """One worker process, or the gap that one has left."""

    device: str
    process: multiprocessing.process.BaseProcess | None = None
    connection: Connection | None = None
    ready: bool = False
    unit: Unit | None = None
    item: str | None = None
    assigned_at: float = 0.0
    heard_at: float = 0.0
    warned: bool = False
    timed_out: bool = False
    overdue: bool = False
    told_to_stop: bool = False
    crash: str | None = None
    failed_starts: int = 0
    refusal: str | None = None
    retired: bool = False  # no worker could be started here

    def messages(self) -> Iterator[object]:
        """The worker's messages since, without waiting for more."""
        try:
            while self.connection is not None and self.connection.poll():
                yield self.connection.recv()
        except (EOFError, OSError):  # OSError: killed in mid-sentence
            self.connection = None

    def send(self, message: object) -> None:
        try:
            if self.connection is not None:
                self.connection.send(message)
        except OSError:
            return  # it has died since; whoever listens finds out

    def how_it_died(self, code: int | None, unit_timeout_s: float | None) -> str:
        """Of a worker that is gone: why, in words."""
        if self.timed_out:
            return "took too long"
        if self.overdue:
            return f"was not done after {unit_timeout_s:,.0f} s"
        return f"died ({describe(code, self.crash)})"


def describe(code: int | None, crash: str | None) -> str:
    """An exit code, a signal or the last line of a traceback, in words."""
    if crash:
        return crash.strip().splitlines()[-1]
    if code is not None and code < 0:
        return signal.Signals(-code).name
    return f"exit code {code}"

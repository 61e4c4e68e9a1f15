"""One worker process per device, and a supervisor that restarts what dies.

The supervisor never touches an image or a model, so that whatever kills a worker leaves someone to
go on. The unit of a worker that died is taken up again carefully, one item at a time; the item
during which workers keep dying is given up, and the unit goes on without it.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from typing import Any

from sca_batch.errors import ScaError
from sca_batch.faults import fault
from sca_batch.runners import Alive, Began, Done, Emit, GiveUp, Lost, Stopped, Task, Worker
from sca_batch.runners.serve import STOP, Crashed, LogLine, Ready, Refused, serve

__all__ = ["STRIKES", "STRIKES_IF_KILLED", "LocalRunner", "start_fork_server"]

# How often a worker may die during one item that it works on alone. A crash convicts sooner than
# SIGKILL, which may also have come from a person or from the machine's out-of-memory killer.
STRIKES, STRIKES_IF_KILLED = 2, 3
LOOK_EVERY_S = 0.2  # at the clock and at `should_stop`
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
BUGS_IN_A_ROW = 5  # items given up for exceptions of our own, before that is what is reported
GRACE_S = 300.0  # for a worker that was told to stop: it finishes the batch that it is at

log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Unit:
    """What the supervisor remembers of a unit that is not finished."""

    name: str
    careful: bool = False
    deaths: int = 0  # with no item to blame
    strikes: Counter[str] = field(default_factory=Counter)
    given_up: dict[str, GiveUp] = field(default_factory=dict)


@dataclass(eq=False)
class _Slot:
    """The place of one worker process."""

    device: str
    process: multiprocessing.process.BaseProcess | None = None
    connection: Connection | None = None
    ready: bool = False
    unit: _Unit | None = None
    item: str | None = None
    heard_at: float = 0.0
    warned: bool = False
    timed_out: bool = False
    told_to_stop: bool = False
    crash: str | None = None
    failed_starts: int = 0


class LocalRunner:
    """One worker process per entry of `devices`; use it in a `with` statement.

    `make_worker` is called with its device in each process and must be picklable. A unit whose
    worker dies more than `retries` times with no item to blame is lost; the others go on. An item
    that takes longer than `item_timeout_s` is given up; None waits for ever.
    """

    def __init__(
        self,
        make_worker: Callable[[str], Worker],
        devices: Sequence[str],
        *,
        retries: int = 3,
        item_timeout_s: float | None = None,
        start_method: str = "forkserver",
        preload: Sequence[str] = (),
    ) -> None:
        self._make_worker = make_worker
        self._slots = [_Slot(device) for device in devices]
        self._retries = retries
        self._timeout_s = item_timeout_s
        # By default no fork of this process: its threads' locks would be copied as they are.
        self._processes: Any = multiprocessing.get_context(start_method)
        self._preload = preload
        self._again: deque[_Unit] = deque()
        self._about: Any = None
        self._was_ready = False
        self._bugs_in_a_row = 0

    def __enter__(self) -> LocalRunner:
        return self

    def __exit__(self, *error: object) -> None:
        for slot in self._slots:
            if slot.process is not None:
                # Nothing is lost: a worker between two units holds nothing.
                slot.process.kill()
                slot.process.join()
                slot.process = slot.connection = None

    @property
    def workers(self) -> int:
        return len(self._slots)

    def start(self) -> None:
        """Begins to start the first worker, and returns at once."""
        if self._slots[0].process is None:
            self._start(self._slots[0])

    def about(self) -> Any:
        """What the first worker says of itself.

        Raises:
            ScaError: when no worker can be made.
        """
        while not self._was_ready:
            self.start()
            self._listen(lambda event: None)
        return self._about

    def run(
        self, units: Iterable[str], context: Any, emit: Emit, should_stop: Callable[[], bool]
    ) -> None:
        """Has every unit worked on; emits what workers emit, and `Stopped` or `Lost` per unit."""
        for slot in self._slots:
            slot.unit = None
        self._again.clear()
        fresh = iter(units)
        # One unit is looked ahead for, so that no worker is started for nothing.
        following = next(fresh, None)
        while True:
            stopping = should_stop()
            for slot in self._slots:
                if stopping or slot.unit or not (self._again or following is not None):
                    continue
                if slot.process is None:
                    self._start(slot)
                elif slot.ready:
                    if self._again:
                        unit = self._again.popleft()
                    else:
                        assert following is not None
                        unit, following = _Unit(following), next(fresh, None)
                    self._assign(slot, unit, context)
            busy = [slot for slot in self._slots if slot.unit]
            if not busy and (stopping or not (self._again or following is not None)):
                return
            if stopping:
                self._tell_to_stop(busy)
            self._listen(emit)
            self._watch()

    def _start(self, slot: _Slot) -> None:
        ours, theirs = self._processes.Pipe()
        slot.process = self._processes.Process(
            target=serve,
            args=(theirs, self._make_worker, slot.device, logging.getLogger().level),
            name=f"sca-worker-{slot.device}",
        )
        with _signals_blocked():
            if self._processes.get_start_method() == "forkserver":
                start_fork_server(self._preload)
            slot.process.start()
        theirs.close()
        slot.connection, slot.crash = ours, None
        slot.ready = slot.warned = slot.timed_out = slot.told_to_stop = False

    def _assign(self, slot: _Slot, unit: _Unit, context: Any) -> None:
        slot.unit, slot.item = unit, None
        slot.heard_at, slot.warned = time.monotonic(), False
        self._send(slot, Task(unit.name, context, unit.careful, dict(unit.given_up)))
        fault("job.assigned")

    def _tell_to_stop(self, busy: Sequence[_Slot]) -> None:
        for slot in busy:
            if not slot.told_to_stop:
                slot.told_to_stop, slot.heard_at = True, time.monotonic()
                self._send(slot, STOP)

    def _send(self, slot: _Slot, message: Any) -> None:
        try:
            if slot.connection is not None:
                slot.connection.send(message)
        except (BrokenPipeError, ConnectionResetError):
            return  # it has died since; `_listen` finds out

    def _listen(self, emit: Emit) -> None:
        """Passes on what workers say, for a moment, and sees who has died."""
        sources: dict[Any, _Slot] = {}
        for slot in self._slots:
            if slot.process is not None:
                sources[slot.process.sentinel] = slot
                if slot.connection is not None:
                    sources[slot.connection] = slot
        heard = {id(s): s for s in (sources[source] for source in wait(sources, LOOK_EVERY_S))}
        for slot in heard.values():
            assert slot.process is not None
            # Asked before the pipe is emptied: what a dead worker still said comes first.
            dead = not slot.process.is_alive()
            for message in _messages(slot):
                self._hear(slot, message, emit)
            if dead or slot.connection is None:
                self._bury(slot, emit)

    def _hear(self, slot: _Slot, message: Any, emit: Emit) -> None:
        if isinstance(message, LogLine):
            logging.getLogger(message.name).log(message.level, "%s", message.text)
            return
        if isinstance(message, Refused):
            error = ScaError(message.message)
            error.exit_code = message.exit_code
            raise error
        if isinstance(message, Crashed):
            slot.crash = message.trace
            return
        # An item worked on alone has its own clock, whatever moves meanwhile.
        if not (isinstance(message, Alive) and slot.unit and slot.unit.careful):
            slot.heard_at, slot.warned = time.monotonic(), False
        if isinstance(message, Ready):
            slot.ready, slot.failed_starts = True, 0
            if not self._was_ready:
                self._was_ready, self._about = True, message.about
        elif isinstance(message, Began):
            slot.item = message.item
        elif isinstance(message, Done):
            slot.item = None
            if slot.unit and message.item not in slot.unit.given_up:
                slot.unit.strikes.pop(message.item, None)
                self._bugs_in_a_row = 0
            fault("job.heard")
            emit(message)
        elif isinstance(message, Stopped):
            slot.unit = slot.item = None
            emit(message)

    def _bury(self, slot: _Slot, emit: Emit) -> None:
        """A worker is gone: who was it, what was it doing, and what follows for its unit?"""
        assert slot.process is not None
        slot.process.join()
        code = slot.process.exitcode
        unit, item, crash = slot.unit, slot.item, slot.crash
        was_ready, timed_out = slot.ready, slot.timed_out
        slot.process = slot.connection = slot.unit = slot.item = None
        slot.ready = False
        if not was_ready:
            self._refuse_endless_starts(slot, code, crash)
        if unit is None:
            return
        how = "took too long" if timed_out else f"died ({_describe(code, crash)})"
        log.warning("A worker %s in %s%s.", how, unit.name, f", at {item}" if item else "")
        if not (unit.careful and item):
            unit.deaths += 1
            unit.careful = True
        else:
            unit.strikes[item] += 1
            killed = code == -signal.SIGKILL
            if timed_out or unit.strikes[item] >= (STRIKES_IF_KILLED if killed else STRIKES):
                unit.given_up[item] = "timeout" if timed_out else "killed_worker"
                log.warning("%s is given up: every worker %s there.", item, how)
                # A bug in our own code is not the image's fault alone; it is shown either way.
                self._bugs_in_a_row = self._bugs_in_a_row + 1 if crash else 0
                if crash and self._bugs_in_a_row >= BUGS_IN_A_ROW:
                    raise RuntimeError(f"a worker failed {crash}")
                if crash:
                    log.error("A worker failed.", extra={"trace": crash})
        if unit.deaths > self._retries:
            emit(Lost(unit.name, crash or f"its worker {how} {unit.deaths} times", bool(crash)))
        else:
            self._again.append(unit)

    def _refuse_endless_starts(self, slot: _Slot, code: int | None, crash: str | None) -> None:
        slot.failed_starts += 1
        if slot.failed_starts > self._retries or (crash and not self._was_ready):
            if crash:
                raise RuntimeError(f"a worker failed {crash}")
            raise ScaError(
                f"workers on {slot.device} die while they start ({_describe(code, None)}), "
                f"{slot.failed_starts} times; is there memory for one model each? Try --workers 1"
            )

    def _watch(self) -> None:
        """Names the item that a worker is stuck at, and ends that worker at the deadline."""
        now = time.monotonic()
        for slot in self._slots:
            if slot.unit is None or slot.process is None:
                continue
            silent = now - slot.heard_at
            if slot.told_to_stop and silent > GRACE_S:
                slot.process.kill()
            if self._timeout_s is None:
                continue
            if silent > self._timeout_s / 2 and not slot.warned:
                slot.warned = True
                log.warning(
                    "Nothing has moved for %.0f s at %s (%s); the worker is ended after %.0f s.",
                    silent, slot.item or "the start", slot.unit.name, self._timeout_s,
                )  # fmt: skip
            if silent > self._timeout_s and not slot.timed_out:
                slot.timed_out = True
                slot.process.kill()


def start_fork_server(preload: Sequence[str]) -> None:
    """Starts the process that workers are forked from, if it does not run yet."""
    if preload:
        forkserver.set_forkserver_preload(list(preload))
    # Before Python 3.13 it imports from the environment's path, not from ours.
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    try:
        with _signals_blocked():
            forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Signals are the supervisor's to answer: blocked, they stay so in what is started meanwhile.

    A Ctrl-C, or a service manager's SIGTERM, reaches every process of a job.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _messages(slot: _Slot) -> Iterator[Any]:
    try:
        while slot.connection is not None and slot.connection.poll():
            yield slot.connection.recv()
    except (EOFError, ConnectionResetError):
        slot.connection = None


def _describe(code: int | None, crash: str | None) -> str:
    if crash:
        return crash.strip().splitlines()[-1]
    if code is not None and code < 0:
        return signal.Signals(-code).name
    return f"exit code {code}"

"""One worker process per device, and a supervisor that restarts what dies.

The supervisor never touches an image or a model, so that whatever kills a worker leaves someone to
go on. The unit of a worker that died is resumed carefully, one item at a time; the item
during which workers keep dying is given up, and the unit goes on without it.
"""

from __future__ import annotations

import logging
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from multiprocessing.connection import wait
from multiprocessing.context import ForkContext, ForkServerContext, SpawnContext
from typing import Generic, Literal

from sca_batch.errors import EXIT_STOPPED, ScaError
from sca_batch.faults import fault
from sca_batch.runners.protocol import (
    A,
    Alive,
    Began,
    C,
    Done,
    Emit,
    Lost,
    R,
    Resumed,
    S,
    Stopped,
    Task,
    Worker,
)  # fmt: skip
from sca_batch.runners.serve import STOP, Crashed, LogLine, Ready, Refused, serve
from sca_batch.runners.slots import Slot, Unit, describe
from sca_batch.runners.spawn import main_module_hidden, signals_blocked, start_fork_server

__all__ = ["STRIKES", "STRIKES_IF_KILLED", "LocalRunner", "start_fork_server"]

# How often a worker may die during one item that it works on alone. A crash convicts sooner than
# SIGKILL, which may also have come from a person or from the machine's out-of-memory killer.
STRIKES, STRIKES_IF_KILLED = 2, 3
LOOK_EVERY_S = 0.2  # at the clock and at `should_stop`
BUGS_IN_A_ROW = 5  # items given up for exceptions of our own, before that is what is reported
GRACE_S = 300.0  # for a worker that was told to stop: it finishes the batch that it is at

_Context = ForkServerContext | ForkContext | SpawnContext
_CONTEXTS: dict[str, type[_Context]] = {
    "forkserver": ForkServerContext, "fork": ForkContext, "spawn": SpawnContext,
}  # fmt: skip

log = logging.getLogger(__name__)


class LocalRunner(Generic[C, R, S, A]):
    """One worker process per entry of `devices`; use it in a `with` statement.

    `make_worker` is called with its device in each process and must be picklable. A unit whose
    worker dies more than `retries` times with no item to blame is lost; the others go on. An item
    that takes longer than `item_timeout_s` is given up, and a unit that is not done after
    `unit_timeout_s` counts as one whose worker died; None waits for ever. A device on which no
    worker can start is retired; the others go on.
    """

    def __init__(
        self,
        make_worker: Callable[[str], Worker[C, R, S, A]],
        devices: Sequence[str],
        *,
        retries: int = 3,
        item_timeout_s: float | None = None,
        unit_timeout_s: float | None = None,
        start_method: Literal["forkserver", "fork", "spawn"] = "forkserver",
        preload: Sequence[str] = (),
    ) -> None:
        self.make_worker = make_worker  # of the workers that are started from now on
        self._slots = [Slot(device) for device in devices]
        self._retries = retries
        self._timeout_s, self._unit_timeout_s = item_timeout_s, unit_timeout_s
        # By default no fork of this process: its threads' locks would be copied as they are.
        self._processes: _Context = _CONTEXTS[start_method]()
        self._preload = preload
        self._again: deque[Unit] = deque()
        self._answer: A | None = None  # of the first worker that was ready
        self._bugs_in_a_row = 0

    def __enter__(self) -> LocalRunner[C, R, S, A]:
        return self

    def __exit__(self, *error: object) -> None:
        for slot in self._slots:
            if slot.process is not None:
                # Nothing is lost: a worker between two units holds nothing.
                slot.process.kill()
                slot.process.join()
                slot.process = slot.connection = None

    @property
    def retired(self) -> tuple[str, ...]:
        """Devices on which no worker could start."""
        return tuple(slot.device for slot in self._slots if slot.retired)

    @property
    def workers(self) -> int:
        return len(self._slots)

    def start(self) -> None:
        """Begins to start the first worker, and returns at once."""
        first = next(slot for slot in self._slots if not slot.retired)
        if first.process is None:
            self._start(first)

    def about(self) -> A:
        """The answer of the first worker that is ready.

        Raises:
            ScaError: when no worker can be made.
        """
        while self._answer is None:
            self.start()
            self._listen(lambda event: None)
        return self._answer

    def run(
        self,
        units: Iterable[str],
        context: C,
        emit: Emit[R, S],
        should_stop: Callable[[], bool],
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
                if slot.retired:
                    continue
                if slot.process is None:
                    self._start(slot)
                elif slot.ready:
                    if self._again:
                        unit = self._again.popleft()
                    else:
                        assert following is not None
                        unit, following = Unit(following), next(fresh, None)
                    self._assign(slot, unit, context)
            busy = [slot for slot in self._slots if slot.unit]
            if not busy and (stopping or not (self._again or following is not None)):
                return
            if stopping:
                self._tell_to_stop(busy)
            self._listen(emit)
            self._watch()

    def _start(self, slot: Slot) -> None:
        ours, theirs = self._processes.Pipe()
        slot.process = self._processes.Process(
            target=serve,
            args=(theirs, self.make_worker, slot.device, logging.getLogger().level),
            name=f"sca-worker-{slot.device}",
        )
        with signals_blocked(), main_module_hidden():
            if self._processes.get_start_method() == "forkserver":
                start_fork_server(self._preload)
            slot.process.start()
        theirs.close()
        slot.connection, slot.crash = ours, None
        slot.ready = slot.warned = slot.timed_out = slot.overdue = slot.told_to_stop = False

    def _assign(self, slot: Slot, unit: Unit, context: C) -> None:
        slot.unit, slot.item = unit, None
        slot.assigned_at = slot.heard_at = time.monotonic()
        slot.warned = False
        slot.send(Task(unit.name, context, unit.careful, dict(unit.given_up)))
        fault("job.assigned")

    def _tell_to_stop(self, busy: Sequence[Slot]) -> None:
        for slot in busy:
            if not slot.told_to_stop:
                slot.told_to_stop, slot.heard_at = True, time.monotonic()
                slot.send(STOP)

    def _listen(self, emit: Emit[R, S]) -> None:
        """Passes on what workers say, for a moment, and sees who has died."""
        alive = [slot for slot in self._slots if slot.process is not None]
        pipes = [slot.connection for slot in alive if slot.connection is not None]
        sentinels = [slot.process.sentinel for slot in alive if slot.process is not None]
        ready = wait([*pipes, *sentinels], LOOK_EVERY_S)
        for slot in alive:
            assert slot.process is not None
            if slot.process.sentinel not in ready and slot.connection not in ready:
                continue
            # Asked before the pipe is emptied: what a dead worker still said comes first.
            dead = not slot.process.is_alive()
            for message in slot.messages():
                self._hear(slot, message, emit)
            if dead or slot.connection is None:
                self._bury(slot, emit)

    def _hear(self, slot: Slot, message: object, emit: Emit[R, S]) -> None:
        if isinstance(message, LogLine):
            logging.getLogger(message.name).log(message.level, "%s", message.text)
            return
        if isinstance(message, Refused):
            if slot.ready or self._answer is None:
                error = ScaError(message.message)
                error.exit_code = message.exit_code
                raise error
            slot.crash = slot.refusal = message.message  # others work: it is this device's affair
            return
        if isinstance(message, Crashed):
            slot.crash = message.trace
            return
        # An item worked on alone has its own clock, whatever moves meanwhile.
        if not (isinstance(message, Alive) and slot.unit and slot.unit.careful):
            slot.heard_at, slot.warned = time.monotonic(), False
        if isinstance(message, Ready):
            slot.ready, slot.failed_starts = True, 0
            if self._answer is None:
                self._answer = message.about
        elif isinstance(message, Began):
            slot.item = message.item
        elif isinstance(message, Done):
            slot.item = None
            if slot.unit and message.item not in slot.unit.given_up:
                slot.unit.strikes.pop(message.item, None)
                self._bugs_in_a_row = 0
            fault("job.heard")
            emit(message)
        elif isinstance(message, Resumed):
            emit(message)
        elif isinstance(message, Stopped):
            slot.unit = slot.item = None
            emit(message)

    def _bury(self, slot: Slot, emit: Emit[R, S]) -> None:
        """A worker is gone: who was it, what was it doing, and what follows for its unit?"""
        assert slot.process is not None
        slot.process.join()
        code = slot.process.exitcode
        unit, item, crash = slot.unit, slot.item, slot.crash
        was_ready, timed_out, overdue = slot.ready, slot.timed_out, slot.overdue
        how = slot.how_it_died(code, self._unit_timeout_s)
        slot.process = slot.connection = slot.unit = slot.item = None
        slot.ready = False
        if not was_ready:
            self._start_failed(slot, code, crash)
        if unit is None:
            return
        log.warning("A worker %s in %s%s.", how, unit.name, f", at {item}" if item else "")
        if overdue or not (unit.careful and item):
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

    def _start_failed(self, slot: Slot, code: int | None, crash: str | None) -> None:
        """A worker died before it was ready: it is started again, or its device is retired.

        Raises:
            ScaError, RuntimeError: when no other device is left that might serve.
        """
        slot.failed_starts += 1
        is_hopeless = slot.refusal is not None or (crash is not None and self._answer is None)
        if slot.failed_starts <= self._retries and not is_hopeless:
            return
        others = [
            other
            for other in self._slots
            if other is not slot
            and not other.retired
            and (self._answer is not None or other.device != slot.device)
        ]
        if others:
            slot.retired = True
            log.error(
                "Workers on %s die while they start (%s). It is left out; %d others go on.",
                slot.device, describe(code, crash), len(others),
            )  # fmt: skip
            return
        if crash and slot.refusal is None:
            raise RuntimeError(f"a worker failed {crash}")
        error = ScaError(
            f"workers on {slot.device} die while they start ({describe(code, crash)}), "
            f"{slot.failed_starts} times; is there memory for one model each? Try --workers 1"
        )
        if self._answer is not None:
            error.exit_code = EXIT_STOPPED  # something was begun, and may go on
        raise error

    def _watch(self) -> None:
        """Names the item that a worker is stuck at, and ends that worker at the deadline."""
        now = time.monotonic()
        for slot in self._slots:
            if slot.unit is None or slot.process is None:
                continue
            silent = now - slot.heard_at
            if slot.told_to_stop and silent > GRACE_S:
                slot.process.kill()
            late = self._unit_timeout_s is not None and not slot.overdue
            if late and now - slot.assigned_at > (self._unit_timeout_s or 0.0):
                slot.overdue = True
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

"""What hands units of work to workers, in this process or in others.

A unit and its items are opaque names here: no room of the house is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

__all__ = [
    "Alive",
    "Began",
    "Done",
    "Emit",
    "Event",
    "GiveUp",
    "InlineRunner",
    "Lost",
    "Runner",
    "Stopped",
    "Task",
    "Worker",
]

GiveUp = Literal["killed_worker", "timeout"]


@dataclass(frozen=True, slots=True)
class Task:
    """One unit as a worker gets it. `careful` asks for one item at a time, each committed.

    `given_up` names items that must not be touched again, with the reason.
    """

    unit: str
    context: Any = None
    careful: bool = False
    given_up: Mapping[str, GiveUp] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Began:
    """The worker now waits for this item; of several in flight, the oldest."""

    item: str


@dataclass(frozen=True, slots=True)
class Alive:
    """Something moved, though no item is finished."""


@dataclass(frozen=True, slots=True)
class Done:
    """An item is finished. `result` is the worker's own affair."""

    item: str
    result: Any = None


@dataclass(frozen=True, slots=True)
class Stopped:
    """The worker has let go of a unit. `complete` says that nothing is left of it."""

    unit: str
    complete: bool
    result: Any = None


@dataclass(frozen=True, slots=True)
class Lost:
    """A unit that no worker could finish, and why."""

    unit: str
    error: str
    is_bug: bool


Event = Began | Alive | Done | Stopped | Lost
Emit = Callable[[Event], None]


class Worker(Protocol):
    """What works on units: made once in its own process, for one device."""

    def about(self) -> Any:
        """What the supervisor should know of it."""

    def run(self, task: Task, emit: Emit, should_stop: Callable[[], bool]) -> Stopped:
        """Works on the unit, emits `Began` and `Done` for its items, and says how it ended."""


class Runner(Protocol):
    """The plug point: has every unit worked on, and emits `Stopped` or `Lost` for each."""

    def about(self) -> Any: ...

    def run(
        self, units: Iterable[str], context: Any, emit: Emit, should_stop: Callable[[], bool]
    ) -> None: ...


class InlineRunner:
    """Works in this process: for notebooks and tests. It cannot outlive what kills it."""

    def __init__(self, make_worker: Callable[[], Worker]) -> None:
        self._make_worker = make_worker
        self._worker: Worker | None = None

    @property
    def worker(self) -> Worker:
        self._worker = self._worker or self._make_worker()
        return self._worker

    def about(self) -> Any:
        return self.worker.about()

    def run(
        self, units: Iterable[str], context: Any, emit: Emit, should_stop: Callable[[], bool]
    ) -> None:
        for unit in units:
            if should_stop():
                return
            stopped = self.worker.run(Task(unit, context), emit, should_stop)
            emit(stopped)
            if not stopped.complete:
                return

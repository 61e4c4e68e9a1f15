"""The plug point of runners: units of work for workers, in this process or in others.

A unit and its items are opaque names here: no room of the house is imported.
"""

# Types:  C context of a run   R result of an item   S result of a unit   A answer of a worker

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Generic, Literal, Protocol, TypeVar

__all__ = [
    "Alive", "Began", "Done", "Emit", "Event", "GiveUp", "InlineRunner", "Lost", "Resumed",
    "Runner", "Stopped", "Task", "Worker",
]  # fmt: skip

C = TypeVar("C")
R = TypeVar("R")
S = TypeVar("S")
A = TypeVar("A")
C_co = TypeVar("C_co", covariant=True)
C_contra = TypeVar("C_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)
S_co = TypeVar("S_co", covariant=True)
A_co = TypeVar("A_co", covariant=True)

GiveUp = Literal["killed_worker", "timeout"]


@dataclass(frozen=True, slots=True)
class Task(Generic[C_co]):
    """One unit as a worker gets it. `careful` asks for one item at a time, each committed.

    `given_up` names items that must not be touched again, with the reason.
    """

    unit: str
    context: C_co
    careful: bool = False
    given_up: Mapping[str, GiveUp] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Resumed:
    """So many items of a unit were done before the worker was given it."""

    unit: str
    items: int


@dataclass(frozen=True, slots=True)
class Began:
    """The worker now waits for this item; of several in flight, the oldest."""

    item: str


@dataclass(frozen=True, slots=True)
class Alive:
    """Something moved, though no item is finished."""


@dataclass(frozen=True, slots=True)
class Done(Generic[R_co]):
    """An item is finished. `result` is the worker's own affair."""

    item: str
    result: R_co


@dataclass(frozen=True, slots=True)
class Stopped(Generic[S_co]):
    """The worker has let go of a unit. `complete` says that nothing is left of it."""

    unit: str
    complete: bool
    result: S_co


@dataclass(frozen=True, slots=True)
class Lost:
    """A unit that no worker could finish, and why."""

    unit: str
    error: str
    is_bug: bool


Event = Resumed | Began | Alive | Done[R] | Stopped[S] | Lost
Emit = Callable[[Event[R, S]], None]


class Worker(Protocol[C_contra, R_co, S_co, A_co]):
    """A worker on units: made once in its own process, for one device."""

    def about(self) -> A_co:
        """The answer to the supervisor who asks what it is."""

    def run(
        self,
        task: Task[C_contra],
        emit: Callable[[Event[R_co, S_co]], None],
        should_stop: Callable[[], bool],
    ) -> Stopped[S_co]:
        """Works on the unit, emits `Began` and `Done` for its items, and says how it ended."""


class Runner(Protocol[C_contra, R_co, S_co, A_co]):
    """The plug point: has every unit worked on, and emits `Stopped` or `Lost` for each."""

    def about(self) -> A_co: ...

    def run(
        self,
        units: Iterable[str],
        context: C_contra,
        emit: Callable[[Event[R_co, S_co]], None],
        should_stop: Callable[[], bool],
    ) -> None: ...


class InlineRunner(Generic[C, R, S, A]):
    """Works in this process, for notebooks and debuggers. It cannot outlive what kills it."""

    workers = 1
    retired: tuple[str, ...] = ()

    def __init__(self, make_worker: Callable[[str], Worker[C, R, S, A]], device: str) -> None:
        self.make_worker = make_worker
        self._device = device
        self._worker: Worker[C, R, S, A] | None = None

    def __enter__(self) -> InlineRunner[C, R, S, A]:
        return self

    def __exit__(self, *error: object) -> None:
        self._worker = None

    def start(self) -> None:
        """Nothing to begin: the worker is made when it is asked for."""

    def _made(self) -> Worker[C, R, S, A]:
        if self._worker is None:
            self._worker = self.make_worker(self._device)
        return self._worker

    def about(self) -> A:
        return self._made().about()

    def run(
        self,
        units: Iterable[str],
        context: C,
        emit: Emit[R, S],
        should_stop: Callable[[], bool],
    ) -> None:
        for unit in units:
            if should_stop():
                return
            stopped = self._made().run(Task(unit, context), emit, should_stop)
            emit(stopped)
            if not stopped.complete:
                return

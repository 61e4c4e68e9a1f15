"""The worker's side of the pipe: one process, one worker, unit after unit."""

from __future__ import annotations

import ctypes
import logging
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Generic

from sca_batch.errors import ScaError
from sca_batch.runners.protocol import A, C, R, S, Task, Worker

__all__ = ["STOP", "Crashed", "LogLine", "Ready", "Refused", "serve"]

STOP = "stop"  # sent to a worker in the middle of a unit
PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True, slots=True)
class Ready(Generic[A]):
    """The worker was made; `about` is what it says of itself."""

    about: A


@dataclass(frozen=True, slots=True)
class Refused:
    """A request that cannot be met; the message is for the person who made it."""

    message: str
    exit_code: int


@dataclass(frozen=True, slots=True)
class Crashed:
    """A bug. The worker has said so and leaves."""

    trace: str


@dataclass(frozen=True, slots=True)
class LogLine:
    """A worker's log line, written by the supervisor, a whole line at a time."""

    name: str
    level: int
    text: str


def serve(
    connection: Connection,
    make_worker: Callable[[str], Worker[C, R, S, A]],
    device: str,
    log_level: int,
) -> None:
    """Makes a worker and has it work on every unit that comes through the pipe, until it closes."""
    _die_with_the_supervisor()
    speaking = threading.Lock()  # threads that decode ahead log too

    def send(message: object) -> None:
        with speaking:
            connection.send(message)

    root = logging.getLogger()
    root.handlers[:] = [_ToSupervisor(send)]
    root.setLevel(log_level)
    unit = "its start"
    try:
        worker = make_worker(device)
        send(Ready(worker.about()))
        while (task := connection.recv()) is not None:
            if isinstance(task, Task):  # a STOP that came too late is no task
                unit = task.unit
                send(worker.run(task, send, connection.poll))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the supervisor is gone
    except ScaError as error:
        send(Refused(str(error), error.exit_code))
    except Exception:  # the worker's outermost frame: the supervisor decides what follows
        send(Crashed(f"in {unit}:\n{traceback.format_exc()}"))


def _die_with_the_supervisor() -> None:
    # Whatever kills the supervisor must not leave workers that write into its folder.
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class _ToSupervisor(logging.Handler):
    def __init__(self, send: Callable[[object], None]) -> None:
        super().__init__()
        self._send = send

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._send(LogLine(record.name, record.levelno, self.format(record)))
        except OSError:
            self.handleError(record)

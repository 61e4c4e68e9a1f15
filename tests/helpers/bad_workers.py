"""Workers that misbehave, by the protocol of `sca_batch.runners`."""

from __future__ import annotations

import logging
import os
import signal
import time
from dataclasses import dataclass

from sca_batch.errors import ScaError
from sca_batch.runners.protocol import Began, Done, Stopped


@dataclass(frozen=True)
class MakeBad:
    """Makes a worker for units of ten items; `deeds` says what befalls it at which item.

    With `marks`, a folder, a deed is done once only.
    """

    deeds: tuple[tuple[str, str], ...] = ()
    marks: str | None = None
    at_start: str | None = None
    on_device: str | None = None  # what happens at the start happens there only

    def __call__(self, device):
        if self.on_device not in (None, device):
            return BadWorker(dict(self.deeds), self.marks, device)
        if self.at_start == "refuse":
            raise ScaError("no such model; name another")
        if self.at_start == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.at_start == "bug":
            raise ZeroDivisionError("made wrong")
        return BadWorker(dict(self.deeds), self.marks, device)


class BadWorker:
    def __init__(self, deeds, marks, device):
        self.deeds, self.marks, self.device = deeds, marks, device
        self.done = {}

    def about(self):
        return {"device": self.device, "pid": os.getpid()}

    def run(self, task, emit, should_stop):
        for i in range(10):
            item = f"{task.unit}/{i}"
            if item in task.given_up:
                emit(Done(item, task.given_up[item]))
                continue
            emit(Began(item))
            self._deed(item)
            emit(Done(item, "careful" if task.careful else "fine"))
            if should_stop():
                return Stopped(task.unit, i == 9, None)
        return Stopped(task.unit, True, None)

    def _deed(self, item):
        deed = self.deeds.get(item)
        if deed is None:
            return
        if self.marks:
            try:
                os.close(os.open(f"{self.marks}/{item.replace('/', '-')}", os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                return
        if deed == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif deed == "abort":
            os.abort()
        elif deed == "exit":
            os._exit(3)
        elif deed == "bug":
            raise ZeroDivisionError("a bug of ours")
        elif deed == "refuse":
            raise ScaError("no space left; free some")
        elif deed == "hang":
            time.sleep(600)
        elif deed == "log":
            logging.getLogger("bad").warning("said by the worker")
        elif deed == "slow":
            time.sleep(0.05)

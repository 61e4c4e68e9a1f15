"""Starting worker processes: forked from a process without threads, deaf to signals."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker
from types import ModuleType

__all__ = ["main_module_hidden", "signals_blocked", "start_fork_server"]

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


def start_fork_server(preload: Sequence[str]) -> None:
    """Starts the process that workers are forked from, if it does not run yet."""
    if preload:
        forkserver.set_forkserver_preload(list(preload))
    # Before Python 3.13 it imports from the environment's path, not from ours.
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    try:
        # First the tracker of shared resources, which the fork server starts too: who starts it
        # unblocks SIGINT and SIGTERM again (CPython's resource_tracker), and what is started then
        # would hear them.
        resource_tracker.ensure_running()
        with signals_blocked():
            forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Signals are the supervisor's to answer: blocked, they stay so in what is started meanwhile.

    A Ctrl-C, or a service manager's SIGTERM, reaches every process of a job.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def main_module_hidden() -> Iterator[None]:
    """Processes started meanwhile do not run the caller's script again.

    Workers need nothing of it, and a script without `if __name__ == "__main__"` would start a run
    of its own in each.
    """
    before = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = before

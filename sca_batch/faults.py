"""Named points at which a test may have this process killed, as a power cut or `kill -9` would.

`SCA_FAULT=NAME` kills the process that comes to the point NAME with SIGKILL: no handler runs and
nothing is flushed. `SCA_FAULT=NAME@group` kills its whole process group. With `SCA_FAULT_ONCE=FILE`
only the first process to create FILE is killed. Without `SCA_FAULT` every point is one look-up.
"""

from __future__ import annotations

import os
import signal

__all__ = ["POINTS", "fault"]

# Every file that a run writes has four points: it exists and is empty; it is written but may be
# in memory only; it is flushed but has no name yet; it has its name but the folder is not flushed.
FILES = ("plan", "run", "partial", "shard", "export", "summary")
POINTS = (
    *(f"{file}.{moment}" for file in FILES for moment in ("opened", "written", "flushed", "named")),
    "lock.taken",  # the run holds its folder and has done nothing in it
    "job.planned",  # listed and numbered, nothing written
    "job.assigned",  # a worker was given a shard
    "job.heard",  # the supervisor heard of an image
    "job.finished",  # every shard is there, nothing was exported
    "worker.began",  # a worker took up a shard
    "worker.made",  # a record exists in memory only
    "worker.reported",  # the supervisor was told of a record that is not committed
    "worker.committed",  # a file was committed, those that it replaces are still there
)


def fault(name: str) -> None:
    """Dies here when the environment names this point."""
    wanted, _, reach = os.environ.get("SCA_FAULT", "").partition("@")
    if wanted != name:
        return
    once = os.environ.get("SCA_FAULT_ONCE")
    if once:
        try:
            os.close(os.open(once, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            return
    if reach == "group":
        os.killpg(0, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)

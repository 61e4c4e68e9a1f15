"""Two runs on one place in an object store: the second is refused, unless the first is dead.

A store has no lock that dies with its process. The holder puts an object with its name in it,
create-if-absent, and renews it. Whoever finds one waits to see whether it is renewed, and takes
over what is not. Where a holder was only slow, it finds another name in the object and stops.
Between these two moments both may write: their shards hold the same rows, so that nothing is lost
but work.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from sca_batch.errors import ScaError
from sca_batch.storage.stores import StorePath

__all__ = ["EXPIRES_S", "RENEWED_EVERY_S", "Lease", "leased"]

RENEWED_EVERY_S = 10.0
NOT_LINUX = "?"  # who cannot tell when a process began, waits for the time to be up
EXPIRES_S = 60.0  # after which one that was not renewed is taken over


class Lease:
    """A run's hold on a place in a store, while its thread renews it; `lost` when it was taken."""

    def __init__(self, path: StorePath, renewed_every_s: float) -> None:
        self.path = path
        self.lost = False
        self._every_s = renewed_every_s
        self._holder = {"token": uuid4().hex, "host": _host(), **_process(os.getpid())}
        self._beat = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    def take(self) -> bool:
        """Puts the object if there is none; False when there is one."""
        # Looked for first, and looked at afterwards: there are stores that know no create-if-absent
        # and let the last of two that put it win.
        if _read(self.path) is not None:
            return False
        # One that exists may be ours, put by a try that was answered too late.
        with suppress(FileExistsError):
            self.path.write_bytes(self._content(), create=True)
        if not self._is_ours():
            return False
        self._thread.start()
        return True

    def end(self) -> None:
        self._ended.set()
        self._thread.join()
        if not self.lost and self._is_ours():
            self.path.unlink(missing_ok=True)

    def _content(self) -> bytes:
        return json.dumps({**self._holder, "beat": self._beat}).encode()

    def _is_ours(self) -> bool:
        found = _read(self.path) or {}
        return bool(found.get("token") == self._holder["token"])

    def _renew(self) -> None:
        while not self._ended.wait(self._every_s):
            try:
                if not self._is_ours():
                    self.lost = True
                    return
                self._beat += 1
                self.path.write_bytes(self._content())
            except (ScaError, OSError):
                continue  # the next one may pass; whoever takes over is found then


@contextmanager
def leased(
    path: StorePath, *, renewed_every_s: float = RENEWED_EVERY_S, expires_s: float = EXPIRES_S
) -> Iterator[Lease]:
    """Holds the object at `path` as a lock.

    Raises:
        ScaError: when another run holds it.
    """
    lease = Lease(path, renewed_every_s)
    while not lease.take():
        _await_death(path, expires_s)
        path.unlink(missing_ok=True)
    try:
        yield lease
    finally:
        lease.end()


def _await_death(path: StorePath, expires_s: float) -> None:
    """Returns when the holder is dead: its process on this machine is gone, or its time is up."""
    found = first = _read(path)
    deadline = time.monotonic() + expires_s
    while found is not None and found == first:
        if found.get("host") == _host() and found.get("started") != NOT_LINUX:
            if _process(found.get("pid", 0))["started"] != found.get("started"):
                return
            break
        if time.monotonic() > deadline:
            return
        time.sleep(min(1.0, expires_s / 10))
        found = _read(path)
    if found is not None:
        raise ScaError(
            f"{path.parent}: another run is writing here ({found.get('host', '?').split('|')[0]}, "
            f"process {found.get('pid')}); wait for it, or choose another -o"
        )


def _read(path: StorePath) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _host() -> str:
    """This machine, since it was started, and the part of it that knows our process numbers."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    space = Path("/proc/self/ns/pid")
    return "|".join(
        [
            socket.gethostname(),
            boot.read_text().strip() if boot.exists() else "",
            os.readlink(space) if space.is_symlink() else "",
        ]
    )


def _process(pid: int) -> dict[str, Any]:
    """A process by its number and, since numbers come again, the time it was started at."""
    if not Path("/proc/self/stat").exists():
        return {"pid": pid, "started": NOT_LINUX}
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return {"pid": pid, "started": None}
    return {"pid": pid, "started": None if fields[0] in "ZX" else fields[19]}

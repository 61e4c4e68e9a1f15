"""One run at a time in a folder or store: the second is refused, unless the first is dead.

In a folder that is a flock, which dies with its process. A store has nothing like it: there the
lock is a lease, an object with the holder's name in it, put create-if-absent and renewed. Whoever
finds one waits to see whether it is renewed, and takes over what is not. Where a holder was only
slow, it finds another name in the object and stops. Between these two moments both may write:
their shards hold the same rows, so that nothing is lost but work.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from sca_batch.errors import ScaError
from sca_batch.faults import fault
from sca_batch.records import JsonObject
from sca_batch.storage.stores import AnyPath, StorePath

__all__ = ["LOCK_FILE", "Lease", "Lock", "leased", "locked"]

LOCK_FILE = ".lock"
RENEWED_EVERY_S = 10.0
EXPIRES_S = 60.0  # after which one that was not renewed is taken over
NOT_LINUX = "?"  # who cannot tell when a process began, waits for the time to be up
# Said by Lustre without -o flock, by NFS without its lock daemon, and by others.
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)

log = logging.getLogger(__name__)


class Lock:
    """A run's hold on its folder. On a store it can be `lost`: then the run must stop."""

    lost = False


@contextmanager
def locked(out: AnyPath, wait_s: float = 3.0) -> Iterator[Lock]:
    """Keeps a second run out of the folder. The lock dies with its process, however that ends.

    One that is restarted at once waits `wait_s` for what was killed to be gone.

    Raises:
        ScaError: when another run holds it, or the folder cannot be made.
    """
    if isinstance(out, StorePath):
        with leased(out / LOCK_FILE) as lease:
            fault("lock.taken")
            yield lease
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
        opened = (out / LOCK_FILE).open("a")
    except OSError as error:
        why = error.strerror or error
        raise ScaError(f"{out}: cannot be written ({why}); name another folder with -o") from None
    with opened as file:
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise _in_use(out) from None
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
                log.warning(
                    "%s: this file system has no locks (%s); see to it yourself that no second run "
                    "writes here", out, error.strerror,
                )  # fmt: skip
                break
            time.sleep(0.05)
        fault("lock.taken")
        yield Lock()


def _in_use(out: AnyPath, holder: str = "") -> ScaError:
    return ScaError(
        f"{out}: another run is writing here{holder}; wait for it, or choose another -o"
    )


class Lease(Lock):
    """A hold on an object in a store, which a thread renews; `lost` when another took it over."""

    def __init__(self, path: StorePath, renewed_every_s: float = RENEWED_EVERY_S) -> None:
        self.path = path
        self._every_s = renewed_every_s
        self._holder: JsonObject = {
            "token": uuid4().hex,
            "host": _host(),
            "pid": os.getpid(),
            "started": _started(os.getpid()),
        }
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
        return (_read(self.path) or {}).get("token") == self._holder["token"]

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
def leased(path: StorePath, *, expires_s: float = EXPIRES_S) -> Iterator[Lease]:
    """Holds the object at `path` as a lock.

    Raises:
        ScaError: when another run holds it.
    """
    lease = Lease(path)
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
        pid, started = found.get("pid"), found.get("started")
        if found.get("host") == _host() and started != NOT_LINUX:
            if _started(pid) != started:
                return
            break
        if time.monotonic() > deadline:
            return
        time.sleep(min(1.0, expires_s / 10))
        found = _read(path)
    if found is not None:
        host = str(found.get("host", "?")).split("|")[0]
        raise _in_use(path.parent, f" ({host}, process {found.get('pid')})")


def _read(path: StorePath) -> JsonObject | None:
    """The holder that the object names: empty where it is no such object, None without one."""
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
    booted = boot.read_text().strip() if boot.exists() else ""
    return "|".join(
        [socket.gethostname(), booted, os.readlink(space) if space.is_symlink() else ""]
    )


def _started(pid: object) -> str | None:
    """The time that a process was started at, since numbers come again; None without a process."""
    if not Path("/proc/self/stat").exists():
        return NOT_LINUX
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]

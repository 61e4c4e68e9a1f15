"""Files and objects that appear under their name only when they are complete."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from sca_batch.errors import NoRoomError
from sca_batch.faults import fault
from sca_batch.storage.stores import AnyPath, StorePath

__all__ = ["NO_ROOM", "fsync_folder", "remove_unfinished", "writing"]

# The disk, the quota, the limit on a file's size.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
UNFINISHED = re.compile(r"\..+\.\d+-[0-9a-f]{8}")
# What points in `faults` call a file, by the first part of its name.
KINDS = {"manifest": "plan", "run": "run", "captions": "export", "summary": "summary"}


@contextmanager
def writing(path: AnyPath, size: int | None = None) -> Iterator[BinaryIO]:
    """A file to write to, which gets the name `path` when the block ends without an error.

    `size` is how many bytes it will have, if that is known.

    Raises:
        OutputError: when there is no room for it, with how much it takes and how much there is.
    """
    kind = _kind(path.name)
    folder = Path(tempfile.gettempdir()) if isinstance(path, StorePath) else path.parent
    try:
        with _uploaded(path, kind) if isinstance(path, StorePath) else _renamed(path, kind) as file:
            yield file
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        takes = "" if size is None else f"; it takes {_mib(size)}"
        free = _mib(shutil.disk_usage(folder).free)
        raise NoRoomError(
            f"{folder}: no space left to write {path.name}{takes}, and {free} are free"
        ) from None


@contextmanager
def _uploaded(path: StorePath, kind: str) -> Iterator[BinaryIO]:
    # There is no rename: the object is made in one request, of a file that is complete.
    with tempfile.TemporaryFile() as file:
        fault(f"{kind}.opened")
        yield file
        file.flush()
        fault(f"{kind}.written")
        path.upload(file)
        fault(f"{kind}.named")


@contextmanager
def _renamed(path: Path, kind: str) -> Iterator[BinaryIO]:
    # A name of its own: two workers that race on a shard must not share a file.
    hidden = path.with_name(f".{path.name}.{os.getpid()}-{uuid4().hex[:8]}")
    try:
        with hidden.open("xb") as file:
            fault(f"{kind}.opened")
            yield file
            file.flush()
            fault(f"{kind}.written")
            os.fsync(file.fileno())  # a rename is atomic, but must not outlive the bytes it names
            fault(f"{kind}.flushed")
        hidden.replace(path)
        fault(f"{kind}.named")
    except BaseException:
        hidden.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def fsync_folder(folder: Path) -> None:
    """Makes renames inside the folder survive a power cut, where the file system can."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network and user-space file systems have no such thing for folders.
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def remove_unfinished(folder: AnyPath) -> None:
    """Removes what a killed process was writing. Only the holder of the run's lock may do so."""
    if isinstance(folder, Path) and folder.is_dir():
        for path in folder.iterdir():
            if UNFINISHED.fullmatch(path.name):
                path.unlink(missing_ok=True)


def _mib(size: int) -> str:
    return f"{size / 2**20:,.2f} MiB"


def _kind(name: str) -> str:
    if name.startswith(".shard-"):
        return "partial"
    if name.startswith("shard-"):
        return "shard"
    return KINDS.get(name.split(".")[0], "file")
